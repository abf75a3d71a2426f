"""The toy's figure: paths, coverage, the grid of runs and what is written."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import lpds
from lpds import session
from lpds.cli import main
from lpds.envs.four_mode import GOAL_RADIUS, TIME_LIMIT
from lpds.methods.base import BasePolicy
from lpds.metrics import mode_coverage
from lpds.reproduce import reproduce_toy, toy
from lpds.reproduce.paths import mode_entropy, path_ratio, roll_out

TINY = {"width": 8, "warmup_fits": 5, "warmup_steps": 100, "final_episodes": 4, "checkpoint_every": 100}


def test_a_grid_without_a_budget_is_refused(tmp_path, refused) -> None:
    with refused("deltas"):
        reproduce_toy(tmp_path, deltas=(), seeds=1, say=print)


def test_a_straight_way_has_ratio_one() -> None:
    path = np.linspace([0.0, 0.0], [0.9, 0.0], 10)
    assert path_ratio(path) == pytest.approx(1.0)


def test_a_detour_counts_its_length_over_the_chord() -> None:
    path = np.array([[0.0, 0.0], [0.0, 0.4], [0.9, 0.4], [0.9, 0.0]])
    assert path_ratio(path) == pytest.approx(1.7 / 0.9)


def test_a_way_that_comes_back_is_measured_against_the_nearest_rim() -> None:
    path = np.array([[0.1, 0.0], [0.5, 0.0], [0.1, 0.0]])
    assert path_ratio(path) == pytest.approx(0.8 / (0.9 - GOAL_RADIUS))


def test_a_mode_counts_from_five_percent_of_all_rollouts_on() -> None:
    assert mode_coverage(np.array([20, 20, 19, 341]) / 400) == 3
    assert mode_coverage(np.array([0.25, 0.25, 0.25, 0.25])) == 4
    assert mode_coverage(np.array([1.0, 0.0, 0.0, 0.0])) == 1
    assert mode_coverage(np.zeros(4)) == 0


def test_mode_entropy_is_log_four_for_four_alike_and_nothing_for_one() -> None:
    assert mode_entropy(np.full(4, 0.2)) == pytest.approx(math.log(4))
    assert mode_entropy(np.array([0.0, 0.9, 0.0, 0.0])) == 0.0
    assert mode_entropy(np.zeros(4)) == 0.0


def test_rollouts_are_those_of_the_evaluation_with_every_position() -> None:
    decoder = lpds.load_decoder("toy")
    rolled = roll_out(BasePolicy(), decoder, episodes=23, seed=5, scale=0.0)
    report = lpds.evaluate(decoder, "toy", episodes=23, seed=5)
    np.testing.assert_array_equal(rolled.report.returns, report.returns)
    assert [len(path) - 1 for path in rolled.paths] == report.lengths.tolist()
    np.testing.assert_array_equal(np.stack([path[-1] for path in rolled.paths]).astype(np.float32), report.final_obs)
    assert np.abs(np.stack([path[0] for path in rolled.paths])).max() < 0.1
    assert ((rolled.modes >= 0) == (report.successes == 1)).all()
    assert (rolled.ratios >= 1.0 - 1e-6).all()
    assert rolled.shares.sum() == pytest.approx(report.successes.mean())


def test_the_frozen_policy_dithers_and_keeps_every_mode() -> None:
    rolled = roll_out(BasePolicy(), lpds.load_decoder("toy"), episodes=40, seed=0, scale=0.0)
    assert mode_coverage(rolled.shares) == 4
    assert np.median(rolled.ratios) > 2.0
    assert rolled.shares.sum() > 0.85
    assert rolled.report.lengths.max() <= TIME_LIMIT


def test_the_grid_goes_on_where_it_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(session, "_write_report", lambda *given: None)

    def reproduce() -> str:
        said.clear()
        return reproduce_toy(tmp_path, 1, said.append, deltas=(1.0, 0.1), steps=200, rollouts=6, changes=TINY)

    text = reproduce()
    assert said[0] == f"3 of 3 runs of 200 steps are missing in {tmp_path / 'runs'} and are made now"
    assert sum(line.endswith(": run") for line in said) == 3
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["format_version"] == 1
    assert [point["delta"] for point in summary["points"]] == [0.0, 0.1, 1.0, 0.0]
    assert [point["name"] for point in summary["points"]] == ["frozen", "delta 0.1", "delta 1", "dsrl-na"]
    for point in summary["points"]:
        assert 0 <= point["modes_covered"] <= 4
        assert point["path_ratio"][1] <= point["path_ratio"][0] <= point["path_ratio"][2]
        assert [seed["seed"] for seed in point["seeds"]] == [0]
    assert "paper" in text
    assert "delta 0.1" in text
    rows = list(csv.DictReader((tmp_path / "toy.csv").read_text().splitlines()))
    assert [(row["name"], row["seed"]) for row in rows] == [
        (name, seed) for name in ("frozen", "delta 0.1", "delta 1", "dsrl-na") for seed in ("all", "0")
    ]
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "toy.svg").read_bytes()

    monkeypatch.setattr(toy, "write_figure", lambda out, points, rows: None)

    # one run was made with other settings: it is nobody's to delete
    path = tmp_path / "runs/delta1/seed0/config.json"
    made = path.read_text()
    config = json.loads(made)
    config["settings"]["lr"] = 0.5
    path.write_text(json.dumps(config))
    with pytest.raises(lpds.LpdsError, match="is a run with other settings or another decoder"):
        reproduce()
    path.write_text(made)
    # another was stopped before its end
    (tmp_path / "runs/delta0.1/seed0/summary.json").unlink()
    before = (tmp_path / "summary.json").read_bytes()
    assert reproduce() == text
    ways = [line.split(": ")[1] for line in said if line.endswith(("run", "finished", "before"))]
    assert ways == ["resumed and finished", "finished before", "finished before"]
    assert (tmp_path / "summary.json").read_bytes() == before

    # a run from before a setting existed did as that setting's default does
    path = tmp_path / "runs/delta0.1/seed0/config.json"
    config = json.loads(path.read_text())
    del config["run"]["n_step"], config["settings"]["noise_scale"]
    path.write_text(json.dumps(config))

    # nothing is left to run
    monkeypatch.setattr(toy, "steer", lambda *a, **k: pytest.fail("a finished run was run again"))
    monkeypatch.setattr(toy, "resume", lambda *a, **k: pytest.fail("a finished run was resumed"))
    assert reproduce() == text


def test_a_grid_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lpds.LpdsError, match="at least 1"):
        reproduce_toy(tmp_path, 0, lambda line: None)


def test_the_toy_is_redrawn_from_what_is_there_and_a_run_that_is_not_is_named(tmp_path, capsys):
    """``--no-run`` was refused, so the figure could not be drawn again."""
    assert main(["reproduce", "toy", "--no-run", "--out", str(tmp_path)]) == 2
    assert "delta0.01/seed0 is no finished run: leave --no-run out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    kept = {"deltas": (0.1,), "rivals": (), "steps": 200, "rollouts": 8, "changes": TINY}
    first = reproduce_toy(tmp_path, 1, say=lambda line: None, **kept)
    said = []
    assert reproduce_toy(tmp_path, 1, say=said.append, may_run=False, **kept) == first
    assert "delta 0.1, seed 0: finished before" in said
