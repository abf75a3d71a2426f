"""What a run says and leaves while it runs."""

from __future__ import annotations

import io
import platform
import sys
from pathlib import Path

import gymnasium
import pytest
import torch
from scripted import CPU, TINY, toy_decoder
from test_report import make_run

import lpds
from lpds.cli import main
from lpds.decoders.base import BaseDecoder
from lpds.envs.four_mode import FourMode
from lpds.errors import LpdsError
from lpds.log import read_json_lines
from lpds.methods.lpds import LPDS
from lpds.passport import processor
from lpds.records import Records
from lpds.report import write_report
from lpds.report.compare import compare

SHORT = {**TINY, "steps": 400, "eval_every": 0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_quiet_run_is_in_the_same_environment_as_a_loud_one(tmp_path):
    """It plays the frozen policy with less noise besides, which is no other environment."""

    def make():
        return gymnasium.wrappers.TimeLimit(FourMode(), 40)

    for name, settings in (("loud", {}), ("quiet", {"eval_noise_scale": 0.3})):
        lpds.steer(decoder=toy_decoder(), env=make, out=tmp_path / name, **SHORT, **settings)
    report = compare([tmp_path / "loud", tmp_path / "quiet"])
    assert len(report.references) == 1
    assert not any("did not return what it did" in note for note in report.notes)


def test_the_banner_and_every_card_name_the_variant_that_they_are_of(tmp_path):
    """Five variants of one method and one seed are five runs, of which one is bad."""
    good = make_run(tmp_path / "lpds" / "seed0")
    bad = make_run(tmp_path / "lpds+unbounded" / "seed0", gain=-30.0, settings={"delta": 0.5, "noise_bound": "inf"})
    page = write_report([good, bad], tmp_path / "report.html").read_text()
    (banner,) = [line for line in page.splitlines() if 'class="warning"' in line]
    assert "hopper · lpds+unbounded · seed 0" in banner
    for name in ("lpds", "lpds+unbounded"):
        assert page.count(f"<h3>hopper · {name} · seed 0</h3>") == 1
        assert page.count(f"<summary>hopper · {name} · seed 0: settings</summary>") == 1
        assert f"Run folder .../{tmp_path.name}/{name}/seed0;" in page


def test_a_refusal_after_the_bar_is_up_leaves_the_streams_as_they_were(monkeypatch, tmp_path):
    """Dppo's replay is looked at once the runner is built."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Terminal())
    before = (sys.stdout, sys.stderr)
    with pytest.raises(lpds.LpdsError, match="replay_size 5"):
        lpds.steer("toy", "dppo", out=tmp_path / "run", replay_size=5, **{**SHORT, "quiet": False})
    assert (sys.stdout, sys.stderr) == before


def test_an_interrupted_evaluation_tells_what_it_played(tmp_path, monkeypatch, capsys):
    calls = []
    played = lpds.api.evaluate

    def evaluate(*args, **given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        given["progress"](1, 2)
        return played(*args, **given)

    monkeypatch.setattr("lpds.api.evaluate", evaluate)
    words = ["eval", "toy", "--env", "four-mode", "--episodes", "2", "--noise-scale", "1,0.5,0"]
    assert main([*words, "--json"]) == 130
    assert len(capsys.readouterr().out.splitlines()) == 4
    calls.clear()
    assert main(words) == 130
    said = capsys.readouterr()
    assert "frozen, noise x0.5" in said.out
    assert "2 of 3 evaluations" in said.err


@pytest.mark.parametrize(("kind", "every"), [("shipped", 150), ("shipped", 10_000), ("wrapped", 150), ("lost", 150)])
def test_a_run_that_changed_its_decoder_ends_in_one_line_and_has_no_result(tmp_path, monkeypatch, refused, kind, every):
    """What was learned, and what would be evaluated, is then no policy that anybody has. A thousandth of one weight will do."""
    weight = torch.eye(2)
    decoder = lpds.load_decoder("toy")
    if kind != "shipped":  # hashed by what it decodes, to two decimals
        decoder = lpds.wrap_decoder(
            lambda obs, w: torch.tanh(obs[:, None] + w @ weight),
            obs_shape=(2,),
            latent_shape=(4, 2),
            action_shape=(4, 2),
            name="toy",
        )
    changed, size = (decoder.net.mlp_mean.layers[-1].bias, 1e-3) if kind == "shipped" else (weight, 0.1)
    if kind == "lost":  # it is no decoder any more

        def draws(self):
            raise LpdsError("draws noise of its own")

        monkeypatch.setattr(BaseDecoder, "is_as_it_was", draws)
    update, fingerprint, count = LPDS.update, decoder.fingerprint, list[int]()

    def careless(self, batch, noise, *, critics_only=False):
        count.append(1)
        if len(count) == 10:
            changed.view(-1)[0] += size
        return update(self, batch, noise, critics_only=critics_only)

    monkeypatch.setattr(LPDS, "update", careless)
    with refused("decoder 'toy' was changed by the run", "its fingerprint was", fingerprint):
        lpds.steer("toy", decoder=decoder, out=tmp_path / "run", **SHORT | {"checkpoint_every": every})
    assert len(count) > 10
    assert not (tmp_path / "run" / "summary.json").exists()
    # nor is it acted by, or gone on from with a decoder that is whole
    monkeypatch.setattr(LPDS, "update", update)
    with refused("policy"):
        lpds.load_policy(tmp_path / "run", decoder)
    weight.copy_(torch.eye(2))
    whole = lpds.load_decoder("toy") if kind == "shipped" else decoder
    with refused("cannot go on", "changed its own decoder"):
        lpds.resume(tmp_path / "run", decoder=whole)


def test_a_decoder_is_as_it_was_to_rounding():
    """Rounded to two decimals a hash may flip on a rounding that is another for a processor's kernels: 1e-6 is no change."""
    factor = torch.ones(())
    flipped = 0
    for seed in range(12):
        matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
        decoder = lpds.wrap_decoder(
            lambda obs, w, m=matrix: factor * torch.tanh(w @ m),
            obs_shape=(2,),
            latent_shape=(16, 4),
            action_shape=(16, 4),
            name="a",
        )
        factor.fill_(1.0)
        before = decoder.fingerprint, decoder.probe
        factor.fill_(1.0 + 1e-5)
        assert decoder.is_as_it_was()
        assert (decoder.fingerprint, decoder.probe) == before
        flipped += decoder._fingerprint() != before[0]
        factor.fill_(1.1)
        assert not decoder.is_as_it_was()
    assert flipped


def test_a_row_tells_the_mean_of_the_updates_since_the_last_row_and_nothing_where_there_were_none(tmp_path):
    """1, 2 and 6 are 3; in the next row it is null, and what a checkpoint held of the sums goes on into the one after."""
    records = Records(tmp_path, device=CPU, say=lambda line: None)
    records.open()
    for value in (1.0, 2.0, 6.0):
        records.add({"td_loss": torch.tensor(value), **({"own": torch.tensor(value)} if value > 1.0 else {})})
    rows = [records.metrics(4, 3, {"alpha": 0.5}), records.metrics(8, 3, {})]
    for value in (10.0, 20.0):
        records.add({"td_loss": torch.tensor(value)})
    records.restore(records.tensors(), records.facts(), 8, 3)
    records.add({"td_loss": torch.tensor(60.0)})
    rows.append(records.metrics(12, 6, {}))
    records.close()
    assert [row["td_loss"] for row in rows] == [3.0, None, 30.0]
    assert [row.get("own") for row in rows] == [4.0, None, None]
    assert [row["alpha"] for row in rows] == [0.5, None, None]
    assert [row["td_loss"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == [3.0, None, 30.0]


def test_a_passport_names_the_processor_where_the_system_tells_it(monkeypatch):
    """Two with the same kernels round otherwise: without its name, which run was made on which is guessed from returns."""
    told = "processor\t: 0\nmodel name\t: Some CPU\ncpu family\t: 25\nmodel\t\t: 17\n"
    monkeypatch.setattr(Path, "read_text", lambda path: told)
    assert processor() == "Some CPU (cpu family 25, model 17)"
    monkeypatch.setattr(Path, "read_text", lambda path: "Processor\t: ARMv8\n")
    assert processor() == platform.processor()

    def nothing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", nothing)
    assert processor() == platform.processor()
