"""``keep=best``: the best point of the learning curve is evaluated at the end and saved, and nothing learns from that."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scripted import TINY, Scripted, assert_same_run, identity_decoder, toy_decoder

import lpds
from lpds.best import BestPoint
from lpds.config import CURVE_SEED, RunSettings
from lpds.evaluation import EvalReport
from lpds.log import read_json_lines
from lpds.report.compare import compare
from lpds.runner import Runner

SHORT = TINY | {"eval_every": 100, "eval_episodes": 6, "delta": 8.0}


def report(returns, successes):
    told, lengths = np.asarray(successes, float), np.ones(len(returns), np.int64)
    return EvalReport(np.asarray(returns, float), told, told, lengths, 0, 1.0, np.zeros((len(returns), 1), np.float32))


def curve(run):
    """(success rate, mean return) of every point, by step."""
    points = {}
    for row in read_json_lines(run / "eval.jsonl"):
        if row["kind"] == "curve":
            points.setdefault(row["step"], []).append((row["success"], row["return"]))
    return {step: tuple(np.mean(rows, 0)) for step, rows in points.items()}


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    return lpds.steer("toy", decoder=toy_decoder(), out=tmp_path_factory.mktemp("best") / "run", keep="best", **SHORT)


def test_success_counts_before_return_and_the_first_of_equals_stays():
    point = BestPoint()
    for step, returns, successes, kept in [
        (0, [5.0, 5.0], [0.0, 0.0], 0),
        (1, [1.0, 1.0], [1.0, 0.0], 1),
        (2, [9.0, 9.0], [0.0, 0.0], 1),
        (3, [1.0, 1.0], [0.0, 1.0], 1),
        (4, [2.0, 1.0], [0.0, 1.0], 4),
        (5, [9.0, 9.0], [np.nan, np.nan], 4),
    ]:
        point.offer(report(returns, successes), step, lambda step=step: {"x": torch.tensor(step)})
        assert (point.step, int(point.tensors["x"])) == (kept, kept)


def test_without_success_the_return_counts_and_the_frozen_policy_is_a_point_without_weights():
    point = BestPoint()
    point.offer(report([3.0], [np.nan]), 0, None)
    point.offer(report([2.0], [np.nan]), 1, lambda: {"x": torch.ones(1)})
    assert (point.step, point.tensors) == (0, None)
    again = BestPoint()
    again.restore(json.loads(json.dumps(point.facts())), {})
    assert (again.step, again.score, again.tensors) == (point.step, point.score, None)


def test_the_saved_policy_is_that_of_the_best_point_to_the_bit(best):
    points = curve(best.folder)
    kept = json.loads((best.folder / "summary.json").read_text())["kept_step"]
    assert kept == max(points, key=points.get)
    assert 0 < kept < max(points)  # a run whose end is not its best, or this says nothing
    assert f"the best point of the learning curve: step {kept:,}." in (best.folder / "report.html").read_text()
    played = lpds.evaluate(lpds.load_policy(best.folder, toy_decoder()), "toy", episodes=6, seed=best_seed(best) + CURVE_SEED)
    rows = [row for row in read_json_lines(best.folder / "eval.jsonl") if (row["step"], row["kind"]) == (kept, "curve")]
    assert [row["return"] for row in rows] == list(played.returns)
    again = lpds.evaluate(lpds.load_policy(best.folder, toy_decoder()), "toy", episodes=3, seed=best_seed(best))
    assert list(again.returns) == list(best.steered.returns)


def best_seed(run):
    return json.loads((run.folder / "config.json").read_text())["run"]["eval_seed"]


def test_nothing_that_is_learned_sees_it(best, tmp_path):
    last = lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "last", **SHORT).folder
    assert curve(last) == curve(best.folder)
    assert (last / "policy/policy.safetensors").read_bytes() != (best.folder / "policy/policy.safetensors").read_bytes()
    clocks = {"wall_s", "env_steps_per_s", "updates_per_s"}
    ours, theirs = (
        [{key: value for key, value in row.items() if key not in clocks} for row in read_json_lines(run / "metrics.jsonl")]
        for run in (last, best.folder)
    )
    assert ours == theirs
    text = str(compare([last, best.folder]))
    assert "kept at the best point" in text


def test_a_stopped_run_goes_on_to_the_same_best_point(best, tmp_path, monkeypatch):
    before = Runner._due

    def stop_late(self, last=False):
        before(self, last)
        self.stop_requested = self.step >= 500

    with monkeypatch.context() as patched:
        patched.setattr(Runner, "_due", stop_late)
        stopped = lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "run", keep="best", **SHORT)
    assert not stopped.finished
    resumed = lpds.resume(stopped.folder, decoder=toy_decoder(), quiet=True)
    assert resumed.finished
    assert_same_run(best.folder, resumed.folder)


def test_where_no_point_is_above_the_frozen_policy_that_is_what_is_saved(tmp_path):
    run = lpds.steer(
        env=lambda: Scripted([([0.0, 0.0, 0.0, 0.0], "truncated")]),
        decoder=identity_decoder((1, 1)),
        out=tmp_path / "run",
        keep="best",
        **SHORT,
    )
    assert json.loads((run.folder / "policy/policy.json").read_text())["method"] == "base"
    assert "no point of the learning curve is above" in run.verdict()
    assert json.loads((run.folder / "summary.json").read_text())["learned"] is False
    assert list(run.frozen.returns) == list(run.steered.returns)


def test_a_run_that_ends_worse_names_the_remedy(tmp_path, monkeypatch, capsys):
    loud = SHORT | {"quiet": False, "steps": 300}
    for keep, wanted in (("last", "a run with --keep best"), ("best", "kept the best point of the learning curve: step")):
        with monkeypatch.context() as patched:
            patched.setattr(lpds.Run, "worse", True)
            lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / keep, keep=keep, **loud)
        said = "".join(capsys.readouterr())
        assert wanted in said
        assert ("a run with --keep best" in said) == (keep == "last")


def test_a_best_point_needs_a_curve(refused):
    with refused("keep best", "eval_every 0"):
        RunSettings(keep="best", eval_every=0)
    with refused("best, last"):
        RunSettings(keep="first")
