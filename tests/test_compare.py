"""Comparisons: statistics with known answers, and the table from made-up run folders."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import lpds
from lpds.errors import LpdsError
from lpds.report.read import read_runs
from lpds.stats import (
    crossed_difference,
    share_over_seeds,
    wilson,
)

# -- the table -----------------------------------------------------------------------------------------------------------


def write_run(folder, method, seed, returns, *, finished=True, steps=1000, frozen=0.0, settings=None):
    folder.mkdir(parents=True)
    config = {"task": "toy", "method": method, "run": {"seed": seed, "steps": steps}, "settings": settings or {}}
    config["decoder"] = {"name": "d", "fingerprint": "f" * 64}
    (folder / "config.json").write_text(json.dumps(config))
    rows = []
    for at in (0, steps):
        rows += [
            {"step": at, "kind": "curve", "seed": 9, "episode": e, "scale": float(at > 0), "return": r * at / steps}
            for e, r in enumerate(returns)
        ]
    if finished:
        for scale in (0.0, 1.0):
            rows += [
                {"step": steps, "kind": "final", "seed": 0, "episode": e, "scale": scale, "return": r if scale else frozen}
                for e, r in enumerate(returns)
            ]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(0)
    good = [write_run(tmp_path / f"g{s}", "lpds", s, (10 + rng.normal(size=30)).tolist()) for s in range(3)]
    bad = [write_run(tmp_path / f"b{s}", "dsrl-na", s, (-5 + rng.normal(size=30)).tolist()) for s in range(3)]
    return good + bad


def test_the_table_says_who_is_better_and_worse_than_the_frozen_policy(runs):
    report = lpds.compare(runs)
    frozen, good, bad = report.rows
    assert [row.label for row in report.rows] == ["frozen", "lpds", "dsrl-na"]
    assert (good.seeds, bad.seeds, frozen.seeds) == (3, 3, 1)
    assert good.difference[0] == pytest.approx(10, abs=0.5)
    assert (frozen.verdict, good.verdict, bad.verdict) == ("", "better", "worse")
    assert good.area[0] == pytest.approx(5, abs=0.3)  # a straight line from 0 to 10
    assert math.isnan(good.improvement[0])  # a frozen policy has no seeds
    text = str(report)
    assert "toy: against frozen" in text
    assert all(len(line) < 200 for line in text.splitlines())
    assert json.loads(json.dumps(report.to_json()))["rows"][1]["verdict"] == "better"


def test_unequal_updates_and_fits_are_said(tmp_path):
    """2.5 times the updates on one side and 3,000 fits on the other went without a word."""

    def learned(method, updates, **settings):
        folder = write_run(tmp_path / method, method, 0, [1.0, 2.0, 3.0, 5.0, 6.0, 7.0])
        config = json.loads((folder / "config.json").read_text())
        settings = {"batch_size": 256, "warmup_fits": 0, **settings}
        (folder / "config.json").write_text(json.dumps(config | {"run": config["run"] | settings}))
        rows = [{"step": 500, "updates": updates // 2}, {"step": 1000, "updates": updates}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    ours, theirs = learned("lpds", 23_000, warmup_fits=3000), learned("dsrl-na", 57_500)
    search = learned("golden-ticket", 0)
    said = "toy: learned with unequal updates: lpds 23,000 of 256 transitions after 3,000 fits to the first returns; "
    assert said + "dsrl-na 57,500 of 256 transitions" in lpds.compare([ours, theirs, search]).notes
    level = learned("dsrl-sac", 23_100, warmup_fits=3000)
    assert not [note for note in lpds.compare([ours, level, search]).notes if "unequal updates" in note]
    chain = learned("dppo", 380)  # which learns from no batch of the replay, whatever its size
    (note,) = [note for note in lpds.compare([ours, chain]).notes if "unequal updates" in note]
    assert note.endswith("3,000 fits to the first returns; dppo 380 of what it had just collected")
    for other, unequal in ((390, False), (760, True)):
        again = learned(f"dppo{other}", other, clip=0.1)
        config = json.loads((again / "config.json").read_text())
        (again / "config.json").write_text(json.dumps(config | {"method": "dppo"}))
        assert any("unequal updates" in note for note in lpds.compare([chain, again]).notes) == unequal


def test_a_folder_of_seeds_or_of_methods_stands_for_the_runs_in_it(tmp_path, refused):
    for method in ("lpds", "dsrl-na"):
        for seed in (0, 9, 10):
            write_run(tmp_path / "toy" / method / f"seed{seed}", method, seed, [float(seed)] * 6)
    (tmp_path / "toy" / "lpds" / "seed0.log").write_text("")
    given = [tmp_path / "toy" / "lpds" / f"seed{seed}" for seed in (0, 9, 10)]
    assert [run.folder for run in read_runs([tmp_path / "toy" / "lpds"])] == given
    assert len(read_runs([tmp_path / "toy"])) == len(read_runs([tmp_path / "toy", *given])) == 6
    assert len(read_runs([tmp_path])) == 6  # the folder that lpds bench writes its page into
    (tmp_path / "toy" / "empty").mkdir()
    with refused("no run in", "empty"):
        read_runs([tmp_path / "toy" / "empty"])


def test_what_steer_returned_is_as_good_as_its_folder(runs, refused):
    class Returned:
        def __init__(self, folder):
            self.folder = folder

    assert str(lpds.compare([Returned(run) for run in runs])) == str(lpds.compare(runs))
    assert str(lpds.compare(run for run in runs)) == str(lpds.compare(runs))  # what glob gives
    assert str(lpds.compare(Returned(runs[0]))) == str(lpds.compare(runs[0]))
    with refused("not a int"):
        lpds.compare([3])


def test_another_reference_and_unknown_ones(runs, refused):
    report = lpds.compare(runs, reference="dsrl-na")
    assert report.references == {"toy": "dsrl-na"}
    assert report.rows[1].difference[0] == pytest.approx(15, abs=0.7)
    assert report.rows[1].improvement[0] == 1.0
    with refused("unknown reference 'sac' on toy", "frozen, lpds, dsrl-na"):
        lpds.compare(runs, reference="sac")


def test_a_label_is_chosen_before_a_method_and_a_method_of_several_groups_is_no_choice(tmp_path, refused):
    quiet = [write_run(tmp_path / "lpds+quiet" / f"seed{s}", "lpds", s, [9.0 + s] * 8, settings={"delta": 2}) for s in (0, 1)]
    plain = [write_run(tmp_path / "lpds" / f"seed{s}", "lpds", s, [5.0 + s] * 8) for s in (0, 1)]
    assert lpds.compare(quiet + plain, reference="lpds").references == {"toy": "lpds"}
    moved = [write_run(tmp_path / "lpds+x" / f"seed{s}", "lpds", s, [5.0 + s] * 8, settings={"delta": 3}) for s in (0, 1)]
    with refused("ambiguous reference 'lpds' on toy", "lpds+quiet, lpds+x"):
        lpds.compare(quiet + moved, reference="lpds")


def test_one_seed_is_told_and_so_is_what_shares_no_episode(tmp_path):
    one = write_run(tmp_path / "a", "lpds", 0, [1.0, 2.0, 3.0, 5.0, 6.0, 7.0])
    other = write_run(tmp_path / "b", "base", 0, [0.0] * 6)
    rows = [json.loads(line) | {"seed": 77} for line in (other / "eval.jsonl").read_text().splitlines()]
    (other / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = lpds.compare([one, other])
    assert lpds.compare(str(one)).rows == lpds.compare([one]).rows
    assert any("one seed only" in note and "lpds" in note for note in report.notes)
    assert report.rows[2].difference[0] == 0.0  # from the frozen policy in its own run
    notes = lpds.compare([one, other], "lpds").notes
    assert any("base shares no episode with lpds: another eval_seed?" in note for note in notes)
    assert math.isnan(report.rows[1].area[1])


def test_frozen_policies_of_one_decoder_that_played_otherwise_are_told(tmp_path):
    one, other = (write_run(tmp_path / name, "lpds", seed, [1.0 + seed] * 8) for seed, name in enumerate("ab"))
    for run in (one, other):  # known by its id, so one environment whatever comes out
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**config, "env": "Mine-v0"}))
    assert not any("did not return" in note for note in lpds.compare([one, other]).notes)
    rows = [json.loads(line) for line in (other / "eval.jsonl").read_text().splitlines()]
    rows = [row | {"return": 100.0 * row["return"] + 7.0} for row in rows]  # another machine, another version
    (other / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (note,) = (note for note in lpds.compare([one, other]).notes if "did not return" in note)
    assert str(other) in note
    assert str(one) in note
    assert not any("did not begin at" in note for note in lpds.compare([one]).notes)
    changed = {**config, "settings": {"delta": 2.0}}  # two groups, of which each has its own start
    (other / "config.json").write_text(json.dumps({**changed, "env": "Mine-v0"}))
    (own,) = (note for note in lpds.compare([one, other]).notes if "did not begin at" in note)
    assert own.endswith("the row 'frozen': its difference is from its own frozen policy, 7.00 there")


def test_fewer_episodes_of_one_frozen_policy_are_no_other_start(tmp_path):
    frozen = np.arange(50.0) * 3.0
    write_run(tmp_path / "lpds" / "seed0", "lpds", 0, np.arange(50.0), frozen=1.0)
    write_run(tmp_path / "dsrl-na" / "seed0", "dsrl-na", 0, np.arange(20.0), frozen=1.0)
    for method, count in (("lpds", 50), ("dsrl-na", 20)):
        place = tmp_path / method / "seed0" / "eval.jsonl"
        rows = [json.loads(line) for line in place.read_text().splitlines()]
        rows = [row | ({"return": frozen[row["episode"]]} if row.get("scale") == 0.0 else {}) for row in rows]
        place.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert sum(row["kind"] == "final" for row in rows) == 2 * count
    report = lpds.compare([tmp_path / "lpds", tmp_path / "dsrl-na"])
    assert not any("did not begin at" in note for note in report.notes)


def test_what_learns_nothing_cuts_nobodys_area(tmp_path):
    """A short look at the frozen policy beside long runs would have changed which of these is ahead."""
    for method, steps in (("lpds", 1000), ("dsrl-na", 1000), ("base", 200)):
        write_run(tmp_path / method / "seed0", method, 0, np.arange(8.0), steps=steps)
    before = {row.label: row.area for row in lpds.compare([tmp_path / "lpds", tmp_path / "dsrl-na"]).rows}
    report = lpds.compare([tmp_path / name for name in ("lpds", "dsrl-na", "base")])
    assert {row.label: row.area for row in report.rows if row.label in ("lpds", "dsrl-na")} == {
        name: pytest.approx(before[name], nan_ok=True) for name in ("lpds", "dsrl-na")
    }
    assert not any("areas stop" in note for note in report.notes)
    (alone,) = (row for row in lpds.compare([tmp_path / "base"]).rows if row.label == "base")
    assert alone.area[0] == pytest.approx(3.5 / 2)  # a line from 0 to the mean of 0 .. 7, to its own end


def test_what_ends_alike_is_the_same(tmp_path):
    runs = [write_run(tmp_path / name, "base", seed, [0.0] * 8) for seed, name in enumerate("ab")]
    assert lpds.compare(runs).rows[1].verdict == "the same"


def test_success_is_compared_as_returns_are(tmp_path):
    rates = {0: [1.0] * 30, 1: [1.0] * 20 + [0.0] * 10, 2: [1.0] * 25 + [0.0] * 5}
    runs = []
    for seed, values in rates.items():
        run = write_run(tmp_path / f"s{seed}", "lpds", seed, values)
        rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
        rows = [row | {"success": row["return"] if row["scale"] else float(row["episode"] % 2)} for row in rows]
        (run / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.append(run)
    frozen, row = lpds.compare(runs).rows
    values, before = np.array(list(rates.values())), np.arange(30) % 2
    assert row.success == share_over_seeds(list(values))
    assert row.success_difference == pytest.approx(crossed_difference(before[None], values))
    assert frozen.success == pytest.approx(wilson(15, 30))
    assert "  points  " in str(lpds.compare(runs))


def test_runs_from_before_a_setting_existed_are_one_group_with_new_ones(tmp_path):
    from lpds.config import LPDSSettings, RunSettings
    from lpds.fields import to_json

    old = write_run(tmp_path / "old", "lpds", 0, [1.0] * 8)
    new = write_run(tmp_path / "new", "lpds", 1, [2.0] * 8)
    config = json.loads((new / "config.json").read_text())
    config["settings"] = to_json(LPDSSettings())
    config["run"] = {**to_json(RunSettings()), **config["run"]}
    (new / "config.json").write_text(json.dumps(config))
    rows = lpds.compare([old, new]).rows
    assert [row.seeds for row in rows] == [1, 2]


def test_labels_are_unique(tmp_path):
    """Groups that the three settings shown do not tell apart, of three budgets."""
    changes = [
        {"critics": c, "depth": d, "delta": e, "tau": t} for c, d, e, t in ((2, 3, 1, 0.1), (2, 3, 1, 0.2), (4, 5, 6, 0.1))
    ]
    runs = [
        write_run(tmp_path / f"r{n}", "lpds", 0, [1.0] * 8, settings=found, steps=1000 * (n + 1))
        for n, found in enumerate(changes)
    ]
    rows = lpds.compare(runs).rows[1:]
    assert len({row.label for row in rows}) == 3
    assert [row.steps for row in rows] == [1000, 2000, 3000]


def test_unfinished_runs_are_left_out_and_told(runs, tmp_path, refused):
    late = write_run(tmp_path / "late", "lpds", 5, [1.0] * 30, finished=False)
    report = lpds.compare([*runs, late])
    assert f"toy: left out: {late} is not finished" in report.notes
    assert report.rows[1].seeds == 3
    with refused("nothing to compare"):
        lpds.compare([late])


def test_an_undecided_pair_says_how_many_episodes_would_decide_it(tmp_path):
    rng = np.random.default_rng(1)
    run = write_run(tmp_path / "a", "lpds", 0, (0.2 + rng.normal(size=20)).tolist())
    text = str(lpds.compare([run]))
    assert "undecided: about" in text
    assert "more episodes would decide it" in text


def test_one_task_in_two_environments_is_two_tasks(tmp_path):
    runs = [
        write_run(tmp_path / name, "lpds", seed, [value] * 8) for seed, (name, value) in enumerate([("a", 1.0), ("b", 50.0)])
    ]
    for folder, env in zip(runs, ("One-v0", "Two-v0"), strict=True):
        config = json.loads((folder / "config.json").read_text()) | {"env_name": env}
        (folder / "config.json").write_text(json.dumps(config))
    report = lpds.compare(runs)
    assert list(report.references) == ["toy in One-v0", "toy in Two-v0"]
    assert [row.mean[0] for row in report.rows if row.label == "lpds"] == [1.0, 50.0]


def test_a_seed_counts_once(tmp_path):
    runs = [write_run(tmp_path / name, "lpds", 0, [1.0] * 8) for name in "ab"]
    report = lpds.compare(runs)
    assert report.rows[1].seeds == 1
    assert f"toy: {runs[1]} left out: lpds has seed 0 already, from {runs[0]}" in report.notes


def test_a_verdict_of_the_comparison_needs_six_episodes_too(tmp_path):
    runs = [write_run(tmp_path / name, "lpds", seed, [5.0, 6.0, 7.0]) for seed, name in enumerate("abc")]
    report = lpds.compare(runs)
    assert report.rows[1].verdict == "undecided"
    assert "fewer than 6 episodes cannot decide it" in str(report)


def test_seeds_that_share_no_episode_are_refused(tmp_path, refused):
    runs = [write_run(tmp_path / name, "lpds", seed, [1.0, 2.0]) for name, seed in (("a", 0), ("b", 1))]
    rows = [json.loads(line) | {"seed": 77} for line in (runs[1] / "eval.jsonl").read_text().splitlines()]
    (runs[1] / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with refused(f"{runs[0]}, {runs[1]} share no episode", "eval_seed"):
        lpds.compare(runs)


def test_a_named_variant_is_told_by_its_name(tmp_path):
    runs = [
        write_run(tmp_path / "toy" / name / "seed0", "base", 0, [value, value + 1.0]) for name, value in (("base+chain", 3.0),)
    ]
    runs += [write_run(tmp_path / "toy" / "lpds" / "seed0", "lpds", 0, [1.0, 2.0])]
    assert [row.label for row in lpds.compare(runs).rows] == ["frozen", "base+chain", "lpds"]


def test_each_is_compared_with_the_frozen_policy_that_it_was_made_from(tmp_path):
    rng = np.random.default_rng(5)
    runs = []
    for name, frozen, gain in (("lpds", 0.0, 10.0), ("lpds+flow", 100.0, 3.0)):
        folder = write_run(
            tmp_path / name / "seed0", "lpds", 0, (frozen + gain + rng.normal(0, 0.1, 20)).tolist(), frozen=frozen
        )
        config = json.loads((folder / "config.json").read_text())
        config["decoder"]["fingerprint"] = name[-1] * 64
        (folder / "config.json").write_text(json.dumps(config))
        runs.append(folder)
    report = lpds.compare(runs)
    assert [row.label for row in report.rows] == ["frozen ssssss", "frozen wwwwww", "lpds", "lpds+flow"]
    assert [round(row.difference[0]) for row in report.rows[2:]] == [10, 3]
    assert report.references == {"toy": "each one's own frozen policy"}
    assert round(lpds.compare(runs, "lpds").rows[3].difference[0]) == 93
    # one that is named is everyone's reference
    assert [round(row.difference[0]) for row in lpds.compare(runs, "frozen ssssss").rows[2:]] == [10, 103]


def test_logs_beside_run_folders_are_no_runs(tmp_path):
    """A grid writes seedN.log beside seedN, and ``seed*`` matches both; a file of another name is still refused."""
    for seed in range(2):
        write_run(tmp_path / f"seed{seed}", "lpds", seed, [1.0 + e for e in range(8)])
        (tmp_path / f"seed{seed}.log").write_text("said")
    assert lpds.compare(sorted(tmp_path.glob("seed*"))).rows[-1].seeds == 2
    (tmp_path / "seed0.txt").write_text("said")
    with pytest.raises(LpdsError, match=r"seed0\.txt"):
        lpds.compare([tmp_path / "seed0.txt"])
