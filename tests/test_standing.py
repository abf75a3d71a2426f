"""Which of several methods is the highest, and which may be as high."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_compare import write_run

import lpds
from lpds.report.sides import Side
from lpds.report.standing import against, standing
from lpds.stats import crossed_difference

EPISODES = [(0, episode) for episode in range(12)]


def side(label, returns, successes=None, keys=EPISODES):
    """A method whose seeds are the rows."""
    returns = np.asarray(returns, float)
    told = np.full_like(returns, np.nan) if successes is None else np.asarray(successes, float)
    columns = {"return": returns, "success": told, "length": np.ones_like(returns)}
    return Side(label, label.partition("+")[0], (object(),) * len(returns), "d", list(keys), columns)


def noisy(mean, spread, seed=0, seeds=3):
    rng = np.random.default_rng(seed)
    return mean + rng.normal(0.0, 1.0, 12) + rng.normal(0.0, spread, (seeds, 1)) + rng.normal(0.0, 0.1, (seeds, 12))


def test_a_method_is_below_where_the_interval_of_the_difference_excludes_zero():
    high, near, low = side("dql", noisy(10.0, 0.3)), side("lpds", noisy(9.9, 0.3, 1)), side("idql", noisy(2.0, 0.3, 2))
    (line,) = standing("toy", [near, low, high])
    top = max(high.columns["return"].mean(), near.columns["return"].mean())
    best, other = (high, near) if high.columns["return"].mean() == top else (near, high)
    height = other.columns["return"].mean()
    level = f"{other.label} ({height:.4g}) (1 below it)"
    assert line == f"toy: highest return: {best.label}, {top:.4g}; not told apart from it: {level}"
    assert crossed_difference(best.columns["return"], low.columns["return"])[2] < 0.0


def test_where_all_are_below_that_is_said():
    assert standing("toy", [side("lpds", noisy(10.0, 0.1)), side("dql", noisy(1.0, 0.1, 1))])[0].endswith(
        "; all others are below it"
    )


def test_success_ranks_before_return_where_every_method_tells_it():
    rich, sure = side("dql", noisy(90.0, 0.1), np.zeros((3, 12))), side("lpds", noisy(1.0, 0.1, 1), np.ones((3, 12)))
    assert standing("toy", [rich, sure]) == ["toy: highest success: lpds, 100 %; all others are below it"]
    untold = side("dql", noisy(90.0, 0.1))
    assert standing("toy", [untold, sure])[0].startswith("toy: highest return: dql")


def test_one_method_has_no_standing_and_one_seed_is_said_to_be_one():
    assert standing("toy", [side("lpds", noisy(1.0, 0.1))]) == []
    line = standing("toy", [side("lpds", noisy(1.0, 0.1)), side("dql", noisy(9.0, 0.1, 1, seeds=1))])[0]
    assert "highest return: dql (one seed)" in line


@pytest.mark.parametrize(("lost", "said"), [(5, "not told apart from it: dql"), (6, "all others are below it")])
def test_success_is_told_apart_by_the_project_s_own_rule(lost, said):
    """Fewer than six episodes that went differently say nothing of a sign, whatever their interval says."""
    keys = [(0, episode) for episode in range(50)]
    ones, fewer = np.ones((1, 50)), np.ones((1, 50))
    fewer[0, :lost] = 0.0
    high, low = (side(name, won * 1.0, won, keys) for name, won in (("lpds", ones), ("dql", fewer)))
    assert against(low, high).success[2] < 0.0
    assert against(low, high).turned == lost
    assert said in standing("toy", [high, low])[0]


def test_identical_methods_are_level():
    same = noisy(5.0, 0.2)
    (line,) = standing("toy", [side("lpds", same), side("lpds+again", same)])
    assert line.endswith(f"not told apart from it: lpds+again ({same.mean():.4g})")


def test_a_method_has_no_difference_from_itself():
    one = side("lpds", noisy(1.0, 0.1))
    assert np.isnan(against(one, one).difference[0])
    assert against(one, one).pairs == 0


@pytest.mark.parametrize("gain", [0.0, 50.0])
def test_the_frozen_policy_is_one_of_those_that_may_be_as_high(gain, tmp_path):
    """Steering that adds nothing to the frozen policy's 0 is not told apart from it."""
    returns = gain + np.linspace(-1.0, 1.0, 8)
    runs = [write_run(tmp_path / f"a{s}", "lpds", s, list(returns)) for s in range(3)]
    runs += [write_run(tmp_path / f"b{s}", "dql", s, list(returns - 100.0)) for s in range(3)]
    (line,) = lpds.compare(runs).standings
    assert ("frozen" in line) == (gain == 0.0)


def test_level_in_success_and_below_in_return_is_said():
    """Where every episode succeeds, success tells nothing apart; the return may."""
    fast, slow = side("golden-ticket", noisy(90.0, 0.1), np.ones((3, 12))), side("lpds", noisy(1.0, 0.1, 1), np.ones((3, 12)))
    (line,) = standing("toy", [slow, fast])
    assert line == "toy: highest success: golden-ticket, 100 %; not told apart from it: lpds (100 %; its return is below)"
    (line,) = standing("toy", [fast, side("dql", noisy(90.0, 0.1), np.ones((3, 12)))])
    assert line.endswith("not told apart from it: dql (100 %)")
    alone = side("lpds", noisy(1.0, 0.1, 1, seeds=1), np.ones((1, 12)))
    assert standing("toy", [fast, alone])[0].endswith("lpds (100 %; one seed; its return is below)")


def test_a_method_whose_returns_are_not_known_is_not_as_high_as_any():
    """An interval of NaN excludes nothing, which is no reason to call it level with the highest."""
    lost = noisy(5.0, 0.2)
    lost[0, 3] = np.nan
    high, low, unknown = side("lpds", noisy(9.0, 0.2)), side("dql", noisy(1.0, 0.2, 1)), side("golden-ticket", lost)
    (line,) = standing("toy", [high, low, unknown])
    assert line.endswith("; all others are below it (1 below it, 1 with returns that are not known)")
    (line,) = standing("toy", [high, unknown])
    assert line == "toy: which method is the highest is not told: of fewer than two are all returns known"


def test_a_method_that_played_other_episodes_is_below_nothing():
    """Its figures are the same to the digit: nothing says that it is lower."""
    same, elsewhere = noisy(5.0, 0.2), [(7, episode) for episode in range(12)]
    high, away = side("lpds", same), side("dql", same, keys=elsewhere)
    (line,) = standing("toy", [high, away])
    assert line == "toy: which method is the highest is not told: no two played the same episodes (another eval_seed?)"
    (line,) = standing("toy", [high, side("idql", noisy(1.0, 0.1)), away])
    assert line.endswith("none of those that played the same is as high (1 below it, 1 on other episodes)")


def test_heights_are_those_on_the_episodes_that_all_played():
    """One policy, of which one run was evaluated on the easy episodes only."""
    returns = noisy(0.0, 0.1) + np.linspace(10.0, -10.0, 12)
    part = side("lpds", returns[:, :7], keys=EPISODES[:7])
    (line,) = standing("toy", [side("dql", returns), part])
    mean = returns[:, :7].mean()
    level = f"not told apart from it: lpds ({mean:.4g})"
    assert line == f"toy: highest return over the 7 episodes that all played: dql, {mean:.4g}; {level}"


def test_a_difference_from_a_frozen_policy_that_is_not_the_row_shown_is_said(tmp_path):
    """The row's frozen policy is at 0; the other run's own, on its episodes, at 3: 12 is 9 above it, not 12."""
    runs = [write_run(tmp_path / "a", "lpds", 0, list(np.linspace(9.0, 11.0, 12)))]
    runs.append(write_run(tmp_path / "b", "dql", 0, list(np.linspace(11.0, 13.0, 12)), frozen=3.0))
    moved = [json.loads(line) for line in (runs[1] / "eval.jsonl").read_text().splitlines()]
    moved = [row | {"seed": 5} if row["kind"] == "final" else row for row in moved]
    (runs[1] / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in moved))
    report = lpds.compare(runs)
    rows = {row.label: row for row in report.rows}
    (label,) = (label for label in rows if label.startswith("dql"))
    assert rows[label].difference[0] == pytest.approx(9.0)
    (note,) = (note for note in report.notes if "its own frozen policy" in note)
    assert note.startswith(f"toy: {label} played other episodes than the row 'frozen'")
    assert note.endswith("3.00 there")
