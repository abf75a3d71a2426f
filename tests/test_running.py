"""What a run says and leaves while it runs."""

from __future__ import annotations

import io
import sys

import gymnasium
import pytest
from scripted import TINY, toy_decoder
from test_report import make_run

import lpds
from lpds.cli import main
from lpds.envs.four_mode import FourMode
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
