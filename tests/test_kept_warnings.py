"""What a run warned of is told when it is quiet, too, kept with it, and told again by whoever compares it."""

from __future__ import annotations

import json
import signal

import gymnasium
import pytest
import torch
from scripted import TINY, toy_decoder

import lpds
from lpds import remarks
from lpds.cli import main
from lpds.envs.four_mode import FourMode
from lpds.grid import grid_cells, too_short
from lpds.log import Display
from lpds.report.compare import compare

SHORT = {**TINY, "steps": 400, "eval_every": 0, "quiet": True}
SHAPES = {"obs_shape": 2, "latent_shape": (1, 2), "action_shape": (1, 2)}


def toy():
    return gymnasium.wrappers.TimeLimit(FourMode(), 40)


def test_a_quiet_run_of_a_policy_that_ignores_its_noise_says_so_and_keeps_it(tmp_path, capsys):
    """Only the verdict was to be seen, which sent its reader to turn down a noise that decides nothing."""
    blind = lpds.wrap_decoder(lambda obs, w: torch.tanh(-obs[:, None]) + 0.0 * w, **SHAPES, name="blind")
    lpds.steer(decoder=blind, env=toy, out=tmp_path / "run", **SHORT)
    told = capsys.readouterr().err
    assert "gives the same actions for different noises" in told
    assert "warm-up done" not in told  # all that is no warning stays unsaid
    (kept,) = json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"]
    assert kept in told
    assert f"run: {kept}" in str(compare([tmp_path / "run"]))
    lpds.steer(decoder=blind, env=toy, out=tmp_path / "second", **SHORT, seed=1)
    assert str(compare([tmp_path / "run", tmp_path / "second"])).count(kept) == 1  # and once of two runs that both say it
    capsys.readouterr()
    lpds.steer("toy", out=tmp_path / "other", **SHORT)
    assert "warnings" not in json.loads((tmp_path / "other" / "summary.json").read_text())
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("ctrl_c")
def test_a_run_that_goes_on_keeps_what_it_warned_of_before(tmp_path):
    """Of the actions it looks once, at the warm-up's end; a stop after that must not lose it."""
    calls = []

    def far(obs, w):
        calls.append(len(obs))
        if len(calls) == 150:
            signal.raise_signal(signal.SIGINT)
        return 30.0 * torch.tanh(w)

    def sized():
        return lpds.wrap_decoder(far, **SHAPES, name="sized")

    run = lpds.steer(decoder=sized(), env=toy, out=tmp_path / "run", **SHORT)
    assert not run.finished
    facts = json.loads((tmp_path / "run" / "checkpoint" / "checkpoint.json").read_text())
    assert any("lie beyond the environment's box" in line for line in facts["warnings"])
    assert lpds.resume(tmp_path / "run", decoder=sized(), env=toy, quiet=True).finished
    kept = json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"]
    assert sum("lie beyond the environment's box" in line for line in kept) == 1


def test_a_warning_is_kept_once_and_a_reader_that_is_gone_costs_it_nothing(tmp_path):
    with (tmp_path / "told").open("w") as stream:
        display = Display(10, quiet=True, stream=stream)
        for line in ("WARNING: a", "as usual", "WARNING: b", "WARNING: a"):
            display.say(line)
    assert display.warnings == ["WARNING: a", "WARNING: b"]
    assert (tmp_path / "told").read_text().splitlines() == ["WARNING: a", "WARNING: b", "WARNING: a"]


def test_a_place_for_figures_that_is_none_is_refused_before_a_page_is_drawn(tmp_path, capsys):
    lpds.steer("toy", out=tmp_path / "run", **SHORT)
    (tmp_path / "taken").write_text("")
    words = ["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html"), "--figures", str(tmp_path / "taken")]
    assert main(words) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_episodes_without_an_end_are_warned_of_when_the_warm_up_is_over(tmp_path, capsys):
    """A whole budget was spent before an evaluation found that none of its episodes ends."""
    assert remarks.of_endless([999, 5_000], None) == []
    assert remarks.of_endless([1_000, 5_000], 6_000) == []
    (line,) = remarks.of_endless([1_000, 5_000], None)
    assert "in its last 1,000 steps and no time limit is known" in line

    class Endless(FourMode):
        def step(self, action):
            obs, reward, _, _, info = super().step(action)
            return obs, reward, False, False, info

    budget = {**SHORT, "steps": 2_400, "warmup_steps": 2_200, "num_envs": 2, "updates_per_decision": 0.01, "final_episodes": 1}
    with pytest.raises(lpds.LpdsError, match="an episode of 20,000 steps without an end"):
        lpds.steer(decoder=toy_decoder(), env=Endless, out=tmp_path / "run", **budget)
    assert "WARNING: no sub-environment has ended an episode" in capsys.readouterr().err


def test_a_grid_says_ahead_whose_warm_up_takes_the_whole_budget():
    """A search has no warm-up, and the frozen policy none; LP-DS has 8,000 steps by default."""
    cells = grid_cells("hopper", ["base", "golden-ticket", "lpds", "lpds+short:warmup_steps=1000"], 2, 3_000)
    (line,) = too_short(cells)
    assert line.startswith("WARNING: hopper/lpds: the warm-up of 8,000 steps takes the whole budget of 3,000")
    assert too_short(grid_cells("hopper", ["lpds"], 1, 8_000)) == []


def test_a_replay_that_does_not_hold_the_warm_up_is_warned_of(tmp_path, capsys):
    lpds.steer("toy", out=tmp_path / "run", **{**SHORT, "replay_size": 8, "warmup_steps": 200, "batch_size": 4})
    assert "replay_size 8 does not hold the warm-up's 100 decisions" in capsys.readouterr().err
