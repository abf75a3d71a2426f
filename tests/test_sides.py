"""What a run is set against: the frozen policy and the start that it played itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_compare import write_run

import lpds
from lpds.stats import crossed_mean, paired_share_gain, wilson


def test_what_a_method_starts_from_is_taken_off_in_a_note_of_its_own(tmp_path):
    """A start of 7 out of 10 leaves 3; a run without such episodes, or one seed of several, says nothing."""
    runs = [write_run(tmp_path / f"s{seed}", "dsrl-na", seed, [10.0 + seed] * 8) for seed in range(3)]
    assert not any("untrained" in note for note in lpds.compare(runs).notes)
    for run in runs:
        assert not any("untrained" in note for note in lpds.compare(runs).notes)
        rows = [{"step": 1000, "kind": "final start", "seed": 0, "episode": e, "scale": 1.0, "return": 7.0} for e in range(8)]
        with open(run / "eval.jsonl", "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    mean, low, high = crossed_mean(np.arange(3.0, 6.0)[:, None].repeat(8, 1))
    assert mean == 4.0
    (note,) = [note for note in lpds.compare(runs).notes if "untrained" in note]
    assert note == f"toy: return over what it starts from, untrained: dsrl-na +4.00 [{low:+.2f}, {high:+.2f}]"
    (found,) = [row for row in lpds.compare(runs).to_json()["rows"] if row["label"] == "dsrl-na"]
    assert found["over"]["start"] == {"difference": pytest.approx([4.0, low, high]), "success_difference": [None] * 3}


def test_a_note_that_says_how_to_find_out_goes_when_the_run_has_found_out(tmp_path):
    """A quiet run plays the frozen policy with as little noise at its end."""
    run = write_run(tmp_path / "quiet", "lpds", 0, [9.0] * 8, settings={"eval_noise_scale": 0.3})
    (note,) = [note for note in lpds.compare([run]).notes if "less than all of the noise" in note]
    assert note.endswith("lpds (lpds eval RUN plays the frozen policy with as little)")
    rows = [{"step": 1000, "kind": "final quiet", "seed": 0, "episode": e, "scale": 0.0, "return": 7.0} for e in range(8)]
    with open(run / "eval.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (note,) = [note for note in lpds.compare([run]).notes if "less than all of the noise" in note]
    assert note.endswith("which the frozen policy has: lpds")


def test_a_run_from_another_machine_is_set_against_the_frozen_policy_that_it_played(tmp_path):
    """Rounding differs between processors, and in a chaotic task with it every return of the same frozen policy."""
    rng = np.random.default_rng(1)
    returns = (10 + rng.normal(size=20)).tolist()
    here = write_run(tmp_path / "here", "lpds", 0, returns, frozen=2.0)
    there = [write_run(tmp_path / f"there{seed}", "dsrl-na", seed, returns, frozen=5.0 + seed) for seed in (0, 1)]
    for run in (here, *there):  # known by its id, so one environment whatever comes out
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**config, "env": "Mine-v0"}))
    report = lpds.compare([here, *there])
    gains = {row.label: row.difference for row in report.rows}
    assert gains["lpds"][0] == pytest.approx(np.mean(returns) - 2.0, rel=1e-12)
    assert gains["dsrl-na"][0] == pytest.approx(np.mean(returns) - 5.5, rel=1e-12)
    # two seeds' gains differ by the 1 by which their frozen policies do
    assert gains["dsrl-na"] == pytest.approx(crossed_mean(np.subtract(returns, [[5.0], [6.0]])), rel=1e-12)
    (note,) = [note for note in report.notes if "another machine" in note]
    assert "there0 and 1 more did not return" in note
    # the other way round it is the same pairs
    frozen = lpds.compare([here, *there], "dsrl-na").rows[0].difference
    assert frozen == pytest.approx([-gains["dsrl-na"][at] for at in (0, 2, 1)], rel=1e-12)


def test_the_run_that_stands_for_the_frozen_policy_is_not_told_to_differ_from_itself(tmp_path):
    """The one with the most episodes does, wherever it comes."""
    runs = [write_run(tmp_path / "few", "lpds", 0, [9.0] * 8, frozen=1.0)]
    runs += [write_run(tmp_path / "many", "lpds", 1, [9.0] * 20, frozen=5.0)]
    for run in runs:
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**config, "env": "Mine-v0"}))
    (note,) = [note for note in lpds.compare(runs).notes if "did not return" in note]
    assert note.index("few") < note.index("did not return") < note.rindex("many")


def test_a_run_and_what_it_started_from_are_a_pair(tmp_path):
    """Machines' levels go into both: gains of 5, 5.1 and 4.9 are 5 within a quarter, wherever the runs were made."""
    runs = []
    for seed, (level, gain) in enumerate(((0.0, 5.0), (40.0, 5.1), (80.0, 4.9))):
        run = write_run(tmp_path / f"s{seed}", "dsrl-na", seed, [level + gain] * 8)
        rows = [{"step": 1000, "kind": "final start", "seed": 0, "episode": e, "scale": 1.0, "return": level} for e in range(8)]
        with open(run / "eval.jsonl", "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        runs.append(run)
    mean, low, high = lpds.compare(runs).rows[1].over["start"].difference
    assert mean == pytest.approx(5.0)
    assert mean - 0.25 < low < high < mean + 0.25


def test_runs_that_end_as_their_own_frozen_policies_leave_success_its_chance():
    """Two machines, two frozen policies, each run ends in every episode as the one beside it: fifty do not tell all."""
    before = np.random.default_rng(0).integers(0, 2, (2, 50)).astype(float)
    assert paired_share_gain(before, before) == (0.0, -wilson(0, 50)[2], wilson(0, 50)[2])
    assert paired_share_gain(before, before, same=True) == (0.0, 0.0, 0.0)
