"""Grids of runs: cells, restarts, kills, evidence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scripted import TINY, toy_decoder

import lpds
from lpds import grid
from lpds.cli import main
from lpds.errors import LpdsError
from lpds.files import locked
from lpds.grid import Cell, check_methods, grid_cells, run_grid
from lpds.zoo import FOLDER


def test_cells_are_every_combination_seed_by_seed():
    cells = grid_cells("toy,hopper", ["base", "lpds+free:dual=off,noise_bound=inf"], 2, 500)
    assert len(cells) == 8
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4
    assert str(cells[1].path) == "toy/lpds+free/seed0"
    assert cells[1].settings == {"steps": "500", "dual": "off", "noise_bound": "inf"}
    assert {cell.task for cell in grid_cells("gym", ["base"], 1)} == {"hopper", "walker2d", "halfcheetah"}


@pytest.mark.parametrize(
    ("suite", "methods", "seeds", "words"),
    [
        ("gim", ["base"], 1, "unknown suite or task 'gim'"),
        ("toy", ["bas"], 1, "unknown method 'bas'"),
        ("toy", ["base"], 0, "seeds must be at least 1"),
        ("toy", ["lpds+free"], 1, "need a name and a name needs settings"),
        ("toy", ["lpds:dual=off"], 1, "need a name and a name needs settings"),
        ("toy", ["lpds+a:dual"], 1, "settings are key=value"),
        ("toy", ["lpds+a:delta=1", "lpds+a:delta=2"], 1, "toy/lpds+a/seed0 is asked for 2 times"),
        ("toy,toy", ["base"], 1, "toy/base/seed0 is asked for 2 times"),
    ],
)
def test_what_is_no_grid(suite, methods, seeds, words, refused):
    with refused(words):
        grid_cells(suite, methods, seeds)


QUICK = {k: str(v) for k, v in TINY.items() if k not in ("quiet", "steps")} | {"warmup_fits": "2", "final_episodes": "2"}

SEARCH = {"steps": "400", "eval_every": "0", "final_episodes": "2", "warmup_steps": "1"}


def test_a_grid_runs_once_goes_on_after_a_kill_and_tells_what_failed(tmp_path):
    settings = {**QUICK, "steps": "300", "eval_every": "0"}
    cells = [Cell("toy", "lpds", "tiny", seed, settings) for seed in (0, 1)]
    broken = Cell("toy", "lpds", "broken", 0, {**settings, "delta": "-1"})
    lines: list[str] = []
    finished = run_grid([cells[0], broken], tmp_path, jobs=2, evidence=tmp_path / "kept", say=lines.append)
    assert finished == [tmp_path / cells[0].path]
    assert any("FAILED with code 2 (lpds: delta must be a positive number" in line for line in lines)
    assert "delta must be a positive number" in (tmp_path / f"{broken.path}.log").read_text()
    assert not (tmp_path / "kept" / cells[0].path / "checkpoint").exists()
    assert lpds.load_policy(tmp_path / "kept" / cells[0].path).method == "lpds"
    stamp = (tmp_path / cells[0].path / "summary.json").stat().st_mtime_ns
    assert len(run_grid(cells, tmp_path)) == 2
    assert (tmp_path / cells[0].path / "summary.json").stat().st_mtime_ns == stamp  # not run twice
    longer = Cell("toy", "lpds", "tiny", 0, {**settings, "steps": "400"})
    assert run_grid([longer], tmp_path) == [tmp_path / longer.path]
    assert json.loads((tmp_path / longer.path / "config.json").read_text())["run"]["steps"] == 400


def test_a_grid_tells_a_warning_of_its_runs_once(tmp_path):
    """A run's own terminal is a log that nobody opens: here the warm-up takes the whole budget."""
    settings = {**QUICK, "steps": "200", "warmup_steps": "400", "eval_every": "0"}
    lines: list[str] = []
    run_grid([Cell("toy", "lpds", "late", seed, settings) for seed in (0, 1)], tmp_path, say=lines.append)
    (warning,) = [line for line in lines if "WARNING" in line]
    assert warning.startswith("toy/lpds+late/seed0: WARNING: the warm-up of 400 steps takes the whole budget of 200")


def test_a_grid_takes_no_run_with_other_settings_for_its_own(tmp_path, refused):
    cell = Cell("toy", "golden-ticket", "few", 0, {**SEARCH, "tickets": "2"})
    run_grid([cell], tmp_path)
    records = (tmp_path / cell.path / "eval.jsonl").read_bytes()
    with refused(str(tmp_path / cell.path), "other settings (tickets 2 in place of 8)", "another name for the variant"):
        run_grid([Cell("toy", "golden-ticket", "few", 0, {**SEARCH, "tickets": "8"})], tmp_path)
    with refused("decoder toy in place of toy-flow"):
        run_grid([Cell("toy", "golden-ticket", "few", 0, {**SEARCH, "tickets": "2", "decoder": "toy-flow"})], tmp_path)
    with refused("ddim_steps None in place of 3"):
        run_grid([Cell("toy", "golden-ticket", "few", 0, {**SEARCH, "tickets": "2", "ddim_steps": "3"})], tmp_path)
    with refused("env four-mode in place of Mine-v0"):
        run_grid([Cell("toy", "golden-ticket", "few", 0, {**SEARCH, "tickets": "2", "env": "Mine-v0"})], tmp_path)
    assert run_grid([cell], tmp_path) == [tmp_path / cell.path]
    assert (tmp_path / cell.path / "eval.jsonl").read_bytes() == records


def test_what_figures_do_not_hang_on_is_no_other_setting(tmp_path):
    """A grid goes on in fewer evaluation environments, or with another number of threads; its seeds stay one method."""
    run_grid([Cell("toy", "golden-ticket", "few", 0, SEARCH)], tmp_path)
    cells = [Cell("toy", "golden-ticket", "few", seed, {**SEARCH, "eval_envs": "5", "threads": "2"}) for seed in (0, 1)]
    said: list[str] = []
    assert run_grid(cells, tmp_path, say=said.append) == [tmp_path / cell.path for cell in cells]
    assert said[0] == "2 runs, 1 finished before"
    assert [row.seeds for row in lpds.compare([tmp_path / cell.path for cell in cells]).rows] == [1, 2]


def test_a_decoder_option_is_part_of_a_cell_and_a_switch_is_one(tmp_path, refused):
    fewer = Cell("toy", "golden-ticket", "fewer", 0, {**SEARCH, "tickets": "2", "ddim_steps": "3"})
    assert run_grid([fewer, fewer], tmp_path) == [tmp_path / fewer.path] * 2
    with refused("ddim_steps 3 in place of None"):
        run_grid([Cell("toy", "golden-ticket", "fewer", 0, {**SEARCH, "tickets": "2"})], tmp_path)
    (cell,) = grid_cells("toy", ["base+flat:flat=true"], 1)
    assert cell.settings == {"flat": "true"}
    lines: list[str] = []
    assert run_grid([cell], tmp_path, say=lines.append) == []
    assert any("decoder 'toy'" in line and "flat" in line and "expected one argument" not in line for line in lines)
    with refused("flat is either left out or true"):
        grid_cells("toy", ["base+flat:flat=no"], 1)


def test_a_decoder_is_compared_by_where_it_is(tmp_path, refused):
    """Whatever had a colon in it was taken for the same decoder."""
    for name in ("old", "new"):
        shutil.copytree(FOLDER / "toy", tmp_path / name)
    cell = Cell("toy", "golden-ticket", "mine", 0, {**SEARCH, "tickets": "2", "decoder": f"folder:{tmp_path / 'old'}"})
    run_grid([cell], tmp_path / "runs")
    again = replace(cell, settings={**cell.settings, "decoder": f"folder:{tmp_path / 'new' / '..' / 'old'}"})
    assert run_grid([again], tmp_path / "runs") == [tmp_path / "runs" / cell.path]
    for other in (f"folder:{tmp_path / 'new'}", "toy-flow", "toy"):
        with refused("other settings (decoder folder:", f"in place of {other}"):
            run_grid([replace(cell, settings={**cell.settings, "decoder": other})], tmp_path / "runs")


def test_evidence_of_more_steps_is_not_replaced(tmp_path, refused):
    cells = [Cell("toy", "golden-ticket", "few", 0, {**SEARCH, "tickets": "2", "steps": steps}) for steps in ("500", "300")]
    run_grid(cells[:1], tmp_path / "runs", evidence=tmp_path / "kept")
    before = (tmp_path / "kept" / cells[0].path / "eval.jsonl").read_bytes()
    with refused("holds a run of 500 steps, which one of 300 would replace"):
        run_grid(cells[1:], tmp_path / "quick", evidence=tmp_path / "kept")
    with refused("other settings (tickets 2 in place of 4)"):
        other = replace(cells[0], settings={**cells[0].settings, "tickets": "4"})
        run_grid([other], tmp_path / "quick", evidence=tmp_path / "kept")
    assert (tmp_path / "kept" / cells[0].path / "eval.jsonl").read_bytes() == before
    run_grid(cells[:1], tmp_path / "runs", evidence=tmp_path / "kept")  # the same again may be


def test_what_another_grid_finished_meanwhile_is_left_alone(tmp_path, monkeypatch):
    cells = [Cell("toy", "golden-ticket", "few", seed, {**SEARCH, "tickets": "2"}) for seed in (0, 1)]
    start, begun = grid._start, []

    def started(cell, out):
        begun.append(cell.seed)
        if cell.seed == 0:  # while this one runs, another process makes the second
            start(cells[1], out).wait()
        return start(cell, out)

    monkeypatch.setattr(grid, "_start", started)
    assert len(run_grid(cells, tmp_path)) == 2
    assert begun == [0]


def test_a_run_that_another_grid_has_under_way_is_waited_for_and_not_called_failed(tmp_path, monkeypatch):
    """The first attempt meets the lock; by the second the other process has let go."""
    (cell,) = grid_cells("toy", ["golden-ticket+few:tickets=2,eval_every=0,final_episodes=2"], 1, 400)
    folder, start, lines = tmp_path / cell.path, grid._start, []
    folder.mkdir(parents=True)
    with ExitStack() as held:
        held.enter_context(locked(folder))

        def started(cell, out):
            if not lines[1:]:
                return subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])  # what a run in use ends with
            return start(cell, out)

        def say(line):
            lines.append(line)
            if "under way in another process" in line:
                held.close()
                folder.rmdir()

        monkeypatch.setattr(grid, "_start", started)
        monkeypatch.setattr(grid, "PATIENCE", 0.0)
        Path(f"{folder}.log").touch()
        assert run_grid([cell], tmp_path, say=say) == [folder]
    assert sum("under way in another process" in line for line in lines) == 1
    assert not any("FAILED" in line for line in lines)


def test_a_search_that_cannot_grow_is_refused_before_the_first_run(tmp_path, refused):
    settings = {**SEARCH, "tickets": "2"}
    few = Cell("toy", "golden-ticket", "few", 0, settings)
    run_grid([few], tmp_path)
    lines: list[str] = []
    more = [Cell("toy", "base", "", 0, {"steps": "500"}), replace(few, settings={**settings, "steps": "500"})]
    with refused("has 400 steps, which golden-ticket divided into phases", "choose another --out"):
        run_grid(more, tmp_path, say=lines.append)
    assert not lines
    assert not (tmp_path / more[0].path).exists()


def test_a_value_that_begins_with_a_minus_is_a_value(tmp_path):
    (cell,) = grid_cells("toy", ["golden-ticket+a:reward_offset=-1e-3,tickets=2,eval_every=0,final_episodes=2"], 1, 400)
    assert run_grid([cell], tmp_path) == [tmp_path / cell.path]


def test_evidence_costs_no_run(tmp_path, refused):
    """Copied onto the runs themselves it would; committed without a checkpoint it cannot go on, and is left as it is."""
    cell = Cell("toy", "base", "", 0, SEARCH)
    with refused("cannot be copied onto the runs themselves"):
        run_grid([cell], tmp_path / "runs", evidence=tmp_path / "runs" / ".." / "runs")
    run_grid([cell], tmp_path / "runs", evidence=tmp_path / "kept")
    kept = tmp_path / "kept" / cell.path
    before = {path.name: path.read_bytes() for path in kept.iterdir() if path.is_file()}
    for steps in (None, 600):
        with refused(f"the run in {kept} is finished and keeps no checkpoint"):
            lpds.resume(kept, steps=steps, quiet=True)
    lines: list[str] = []
    longer = Cell("toy", "base", "", 0, {**SEARCH, "steps": "600"})
    assert run_grid([longer], tmp_path / "kept", say=lines.append) == []
    assert any("FAILED" in line and "keeps no checkpoint" in line for line in lines)
    assert {path.name: path.read_bytes() for path in kept.iterdir() if path.is_file()} == before


def test_runs_of_a_grid_that_is_killed_save_and_end(tmp_path):
    """kill -9 leaves no time to tell them: they are told by the system."""
    words = ["bench", "toy", "--methods", "lpds+w:width=8,depth=1", "--seeds", "1", "--steps", "200000", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "lpds", *words], stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    folder = tmp_path / "toy" / "lpds+w" / "seed0"
    try:
        for _ in range(600):
            time.sleep(0.1)
            if (folder / "metrics.jsonl").is_file() and (folder / "metrics.jsonl").stat().st_size:
                break
    finally:
        process.kill()
        process.wait()
    for _ in range(600):
        time.sleep(0.1)
        if (folder / "checkpoint" / "checkpoint.json").is_file():
            break
    assert (folder / "checkpoint" / "checkpoint.json").is_file()


def test_a_grid_that_is_interrupted_leaves_runs_that_go_on(tmp_path):
    words = ["bench", "toy", "--methods", "lpds+w:width=8,depth=1", "--seeds", "1", "--steps", "200000", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "lpds", *words], stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        _interrupt(process, tmp_path / "toy" / "lpds+w" / "seed0")
    finally:
        process.kill()
        process.wait()


def _interrupt(process, folder):
    for _ in range(600):
        time.sleep(0.1)
        if (folder / "metrics.jsonl").is_file() and (folder / "metrics.jsonl").stat().st_size:
            break
    process.send_signal(signal.SIGTERM)  # SIGINT is ignored where the tests run in the background
    assert process.wait(120) == 130
    assert (folder / "checkpoint" / "checkpoint.json").is_file()
    assert not (folder / "summary.json").exists()


class Played:
    """In a process's place: under way until it has been looked at so many times, finished then."""

    returncode = 0

    def __init__(self, cell, out, looks, ended):
        self.folder, self.steps, self.left, self.ended = out / cell.path, int(cell.settings["steps"]), looks, ended

    def poll(self):
        self.left -= 1
        if self.left > 0:
            return None
        self.folder.mkdir(parents=True)
        (self.folder / "config.json").write_text(json.dumps({"run": {"steps": self.steps}}))
        (self.folder / "summary.json").write_text("{}")
        Path(f"{self.folder}.log").touch()
        self.ended.append(self.folder)
        return 0


@pytest.mark.parametrize("jobs", [1, 2, 7])
def test_as_many_runs_as_jobs_are_under_way_and_each_is_begun_once(tmp_path, monkeypatch, jobs):
    """Five runs of unequal length: never more at a time than asked for, as many as that while some wait, none twice."""
    begun, ended, alive = [], [], []

    def start(cell, out):
        begun.append(out / cell.path)
        alive.append(len(begun) - len(ended))
        return Played(cell, out, 1 + cell.seed % 3, ended)

    monkeypatch.setattr(grid, "_start", start)
    cells = [Cell("toy", "lpds", "tiny", seed, {"steps": "300"}) for seed in range(5)]
    folders = [tmp_path / cell.path for cell in cells]
    assert run_grid(cells, tmp_path, jobs=jobs) == folders
    assert begun == folders
    assert sorted(ended) == folders
    assert alive[: min(jobs, 5)] == list(range(1, min(jobs, 5) + 1))
    assert max(alive) == min(jobs, 5)


def test_an_interrupt_on_windows_waits_for_runs_that_its_console_has_told(tmp_path, monkeypatch):
    """Windows sends no SIGINT to a process: in place of waiting, the grid ended in a ValueError."""
    waited = []

    class Told:
        def send_signal(self, number):
            raise ValueError(f"Unsupported signal: {number}")

        def wait(self):
            waited.append(self)

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(signal, "CTRL_C_EVENT", 0, raising=False)
    monkeypatch.setattr(grid, "_start", lambda cell, out: Told())
    monkeypatch.setattr(grid.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_grid([Cell("toy", "lpds", "", seed, {"steps": "300"}) for seed in range(2)], tmp_path, jobs=2)
    assert len(waited) == 2


def test_not_one_job_is_refused(tmp_path):
    with pytest.raises(LpdsError, match="jobs must be at least 1"):
        run_grid([], tmp_path, jobs=0)


def test_a_grid_with_demonstrations_goes_on_and_its_evidence_names_no_machine(tmp_path, monkeypatch):
    """The run keeps the file's place from the root, the cell has it as typed, the copy from the working folder."""
    from lpds.pretrain.recipes import toy_data

    monkeypatch.chdir(tmp_path)
    data = toy_data(decisions=40)
    rows = len(data.obs)
    replace(
        data,
        rewards=np.zeros(rows, np.float32),
        final_obs=data.obs[:40].copy(),
        terminated=np.zeros(40, bool),
    ).save(tmp_path / "demos.npz")
    cells = [Cell("toy", "lpds", "demos", 0, {**QUICK, "steps": "300", "eval_every": "0", "demos": "demos.npz"})]
    finished = run_grid(cells, Path("runs"), evidence=Path("kept"))
    assert len(finished) == 1
    lines: list[str] = []
    assert run_grid(cells, Path("runs"), say=lines.append) == finished
    assert lines == ["1 runs, 1 finished before"]
    assert json.loads((finished[0] / "config.json").read_text())["run"]["demos"] == str(tmp_path / "demos.npz")
    assert json.loads((Path("kept") / cells[0].path / "config.json").read_text())["run"]["demos"] == "demos.npz"
    assert run_grid(cells, Path("runs"), evidence=Path("kept")) == finished  # its own evidence is no other run's
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    elsewhere = [Cell("toy", "lpds", "demos", 0, {**cells[0].settings, "demos": str(tmp_path / "demos.npz")})]
    for _ in range(2):
        run_grid(elsewhere, tmp_path / "runs", evidence=Path("kept"))
    assert json.loads((Path("kept") / cells[0].path / "config.json").read_text())["run"]["demos"] == "demos.npz"


def test_a_method_that_the_shared_policy_cannot_serve_is_refused_before_the_first_run(tmp_path, refused):
    """It was found out by every seed's own process, after the others' hours."""
    shared = {"decoder": "mine", "env": "Hopper-v5"}
    cells = grid_cells("own", ["lpds", "dppo", "dql+other:decoder=hopper"], 2, 1000, shared)
    with refused("own/dppo: dppo trains a denoising chain", "has none"):
        check_methods(cells, "mine", toy_decoder())
    check_methods([cell for cell in cells if cell.method != "dppo"], "mine", toy_decoder())


def test_a_grid_of_a_task_with_another_decoder_is_refused_before_the_first_run(tmp_path, capsys):
    words = ["bench", "toy", "--decoder", "toy-flow", "--methods", "lpds", "dppo", "--seeds", "1", "--steps", "200"]
    assert main([*words, "--out", str(tmp_path / "grid")]) == 2
    assert "toy/dppo: dppo trains a denoising chain" in capsys.readouterr().err
    assert not (tmp_path / "grid").exists()


def test_a_missing_extra_is_one_line_and_no_run_is_begun(tmp_path, monkeypatch, capsys):
    """Every run of the grid began, some seconds each, only to say the same."""
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    monkeypatch.setattr(grid, "_start", lambda cell, out: pytest.fail("a run was begun"))
    words = ["bench", "adroit-pen", "--methods", "lpds", "dsrl-na", "--seeds", "3", "--out", str(tmp_path / "grid")]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "no run of adroit-pen is begun: " in told
    assert "pip install 'lpds[adroit]'" in told
    assert not (tmp_path / "grid").exists()


def test_what_is_finished_is_compared_without_its_environment(tmp_path, monkeypatch):
    from lpds.commands import grids

    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    cells = grid_cells("adroit-pen", ["lpds"], 1, 1000)
    monkeypatch.setattr(grid, "finished_cells", lambda cells, out: cells)
    grids._check_environments(cells, tmp_path)
