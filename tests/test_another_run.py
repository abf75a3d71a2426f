"""A run folder that is not what its files say: edited, mixed from two runs, half lost. Nothing of it may pass for a result."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from scripted import TINY

import lpds
from lpds.log import JsonLines, read_json_lines
from lpds.report import write_report
from lpds.runner import Runner


def half_a_run(folder: Path, monkeypatch, seed: int = 0) -> Path:
    """A run that was asked to stop half-way."""
    with monkeypatch.context() as patched:
        patched.setattr(
            Runner, "stop_requested", property(lambda self: self.step >= 350, lambda self, value: None), raising=False
        )
        assert not lpds.steer("toy", out=folder, seed=seed, **TINY).finished
    return folder


def edit(path: Path, **changes) -> None:
    facts = json.loads(path.read_text())
    for key, value in changes.items():
        *way, last = key.split("__")
        inner = facts
        for part in way:
            inner = inner[part]
        inner[last] = value
    path.write_text(json.dumps(facts))


def silence(run: Path) -> None:
    """Take every word of success out of a run's records."""
    for name in ("eval", "episodes"):
        rows = [{**row, "success": None, "success_at_end": None} for row in read_json_lines(run / f"{name}.jsonl")]
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_checkpoint_goes_on_with_the_settings_that_made_it_alone(tmp_path, monkeypatch, refused):
    """Another seed's checkpoint and an edited config.json were resumed, and compared as if they were what they said."""
    run, other = half_a_run(tmp_path / "run", monkeypatch), half_a_run(tmp_path / "other", monkeypatch, seed=1)
    before = (run / "metrics.jsonl").read_bytes()
    whole = (run / "config.json").read_bytes()
    for key, value, said in (
        ("run__seed", 7, "seed 0, config.json has 7"),
        ("run__gamma", 0.5, "gamma 0.99, config.json has 0.5"),
        ("run__num_envs", 3, "num_envs 4, config.json has 3"),
        ("settings__delta", 1.0, "delta 0.05, config.json has 1.0"),
    ):
        edit(run / "config.json", **{key: value})
        with refused("is of another run", said):
            lpds.resume(run, quiet=True)
        (run / "config.json").write_bytes(whole)
    assert (run / "metrics.jsonl").read_bytes() == before
    edit(run / "config.json", run__threads=1, run__checkpoint_every=300)  # what changes no bit may change
    shutil.copytree(run / "checkpoint", tmp_path / "kept")
    shutil.rmtree(run / "checkpoint")
    shutil.copytree(other / "checkpoint", run / "checkpoint")
    with refused("is of another run", "seed 1, config.json has 0"):
        lpds.resume(run, quiet=True)
    shutil.rmtree(run / "checkpoint")
    shutil.copytree(tmp_path / "kept", run / "checkpoint")
    assert lpds.resume(run, quiet=True).finished


def test_a_checkpoint_from_before_its_settings_were_written_goes_on(tmp_path, monkeypatch):
    run = half_a_run(tmp_path / "run", monkeypatch)
    facts = json.loads((run / "checkpoint" / "checkpoint.json").read_text())
    del facts["made_with"]
    (run / "checkpoint" / "checkpoint.json").write_text(json.dumps(facts))
    assert lpds.resume(run, quiet=True).finished


def test_a_run_that_lost_its_checkpoint_does_not_begin_anew_over_its_own_records(tmp_path, monkeypatch, refused, capsys):
    run = half_a_run(tmp_path / "run", monkeypatch)
    before = (run / "metrics.jsonl").read_bytes()
    (run / "checkpoint" / "checkpoint.json").unlink()
    with refused("cannot go on: checkpoint/checkpoint.json is missing"):
        lpds.resume(run, quiet=True)
    assert (run / "metrics.jsonl").read_bytes() == before
    for later in sorted((run / "checkpoint").glob("replay-*"))[1:]:  # one of each is what a kill in the very first save leaves
        later.unlink()
    capsys.readouterr()
    assert lpds.resume(run).finished
    assert f"no checkpoint in {run} yet: the run begins anew" in capsys.readouterr().err


def test_a_log_is_cut_back_to_whole_rows_wherever_a_checkpoint_saw_it(tmp_path):
    """The rest of a row stayed, the next one glued on behind it, and all rows behind that were lost to every report."""
    path = tmp_path / "rows.jsonl"
    rows = JsonLines(path)
    for number in range(5):
        rows.write({"step": number})
    rows.close()
    line = len(path.read_bytes()) // 5
    cut = JsonLines(path, 3 * line - 4)
    assert cut.lost == line - 4
    cut.write({"step": 9})
    cut.close()
    assert [row["step"] for row in read_json_lines(path)] == [0, 1, 9]


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", {"run__steps": "many"}, ("config.json", "steps")),
        ("config.json", {"settings__delta": "x"}, ("config.json", "delta")),
        ("config.json", {"settings__noise_scale": None}, ("config.json", "noise_scale")),
        ("config.json", {"decoder": 5}, ("config.json", "decoder is no dict")),
    ],
)
def test_an_edited_config_is_one_line_for_a_report_and_a_comparison(tmp_path, refused, file, change, said):
    run = lpds.steer("toy", out=tmp_path / "run", **TINY).folder
    edit(run / file, **change)
    for look in (lambda: write_report([run], tmp_path / "page.html"), lambda: lpds.compare([run])):
        with refused(*said):
            look()


@pytest.mark.parametrize("passport", ['{"decoder": null}', "5", "", '{"decoder": 7}'])
def test_a_page_is_drawn_whatever_the_passport_says(tmp_path, passport):
    run = lpds.steer("toy", out=tmp_path / "run", **TINY).folder
    (run / "passport.json").write_text(passport)
    assert "passport.json cannot be read" in write_report([run], tmp_path / "page.html").read_text()


@pytest.mark.parametrize(("file", "figure"), [("metrics", "delta_sq_mean"), ("episodes", "return"), ("eval", "length")])
@pytest.mark.parametrize("value", ['"x"', "1e400", "NaN", "[1]"])
def test_a_figure_that_is_none_is_damage_and_the_page_is_drawn(tmp_path, file, figure, value):
    run = lpds.steer("toy", out=tmp_path / "run", **TINY).folder
    path = run / f"{file}.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[-1])
    lines[-1] = json.dumps({**row, figure: 123454321}).replace("123454321", value)
    path.write_text("\n".join(lines) + "\n")
    assert f"{file}.jsonl is damaged: 1 of its" in write_report([run], tmp_path / "page.html").read_text()


def test_what_a_decoder_was_is_of_its_kinds(tmp_path, monkeypatch, refused):
    run = half_a_run(tmp_path / "run", monkeypatch)
    edit(run / "config.json", decoder__fingerprint=5)
    with refused("has a int as the fingerprint of its decoder"):
        lpds.resume(run, quiet=True)


def test_a_scheduler_that_ends_the_last_evaluation_is_told_what_is_saved(tmp_path, monkeypatch):
    """SIGTERM killed it there without a word."""
    evaluate = Runner.evaluate

    def ended(self, episodes, seed, scale, kind, **more):
        if kind == "final":
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, episodes, seed, scale, kind, **more)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(Runner, "evaluate", ended)
        with pytest.raises(KeyboardInterrupt, match="only its last evaluation is missing: lpds resume"):
            lpds.steer("toy", out=tmp_path / "run", **TINY)
    assert signal.getsignal(signal.SIGTERM) is before
    assert lpds.resume(tmp_path / "run", quiet=True).finished


def test_runs_that_are_read_together_keep_their_own_rows(tmp_path):
    """That one run's silence of success is a failure beside another's word was written into the caller's rows."""
    from lpds.report.read import read_runs
    from lpds.report.worlds import by_task

    told, silent = (lpds.steer("toy", out=tmp_path / name, seed=seed, **TINY).folder for seed, name in enumerate("ab"))
    silence(silent)
    runs = read_runs([told, silent])
    (together,) = by_task(runs).values()
    assert all(row["success"] is None for row in runs[1].evaluations)
    assert np.all([row["success"] == 0.0 for row in together[1].evaluations])


@pytest.mark.parametrize(
    ("file", "content"), [("passport.json", ""), ("policy/policy.json", "{}"), ("policy/policy.safetensors", "x")]
)
def test_what_a_disk_lost_comes_back_with_going_on(tmp_path, monkeypatch, file, content):
    """An empty passport stayed one in a finished run."""
    run = half_a_run(tmp_path / "run", monkeypatch)
    (run / file).write_text(content)
    (run / "policy" / ".policy.json.1.tmp").write_text("of a kill")
    assert lpds.resume(run, quiet=True).finished
    assert json.loads((run / "passport.json").read_text())["decoder"]["name"] == "toy"
    assert lpds.load_policy(run).shift(np.zeros((1, 2), np.float32)).shape == (1, 2, 2)
    assert not list((run / "policy").glob(".*"))


def test_a_page_agrees_with_itself_where_one_runs_silence_is_anothers_failure(tmp_path):
    told, silent = (lpds.steer("toy", out=tmp_path / name, seed=seed, **TINY).folder for seed, name in enumerate("ab"))
    silence(silent)
    page = write_report([told, silent], tmp_path / "page.html").read_text()
    assert "success 0% -&gt; 0%" in page or "success 0% -> 0%" in page


def test_a_record_whose_setting_is_out_of_todays_range_is_read(tmp_path):
    run = lpds.steer("toy", out=tmp_path / "run", **TINY).folder
    edit(run / "config.json", run__threads=4096)
    assert "toy" in str(lpds.compare([run]))
