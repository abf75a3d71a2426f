"""Comparisons that would have said too much: ties, seeds of other episodes, fewer shared episodes, damaged evaluations."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scripted import TINY, identity_decoder, toy_decoder
from small_envs import Two
from test_compare import write_run
from test_report import make_run, write_rows

import lpds
from lpds.digits import told, unsigned_zero
from lpds.envs.four_mode import make_four_mode
from lpds.evaluation import EvalReport
from lpds.log import read_json_lines
from lpds.report import write_report
from lpds.report.compare import compare
from lpds.report.html import _pooled
from lpds.report.read import group_runs, read_runs
from lpds.stats import crossed_bootstrap, iqm, paired_share_gain, pairs_that_differ, share_difference, told_apart, wilson
from lpds.tell import differences, table
from lpds.verdict import against_line, verdict_line

SHORT = {**TINY, "steps": 400, "eval_every": 0}


def cut(run, keep):
    """Keep so many of the last evaluation's episodes a side."""
    rows = [row for row in read_json_lines(run / "eval.jsonl") if row["kind"] != "final" or row["episode"] < keep]
    (run / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def two_runs(tmp_path):
    for seed in (0, 1):
        settings = {**SHORT, "final_episodes": 40, "seed": seed}
        lpds.steer(decoder=toy_decoder(), env=make_four_mode, out=tmp_path / f"s{seed}", **settings)
    return [tmp_path / "s0", tmp_path / "s1"]


BRIEF = TINY | {"steps": 360, "warmup_steps": 150, "num_envs": 2, "delta": 0.5}


def test_episodes_that_all_went_alike_leave_a_difference_of_success_its_chance():
    half = np.repeat([1.0, 0.0], 25)
    chance = wilson(0.0, 50)[2]
    assert share_difference(half, half) == pytest.approx((0.0, -chance, chance))
    assert share_difference(half, np.stack([half] * 3)) == pytest.approx((0.0, -chance, chance))
    assert share_difference(half, half, same=True) == (0.0, 0.0, 0.0)  # one policy beside itself
    other = half.copy()
    other[0] = 0.0
    assert share_difference(half, other)[0] == pytest.approx(-0.02)


def test_episodes_that_return_alike_and_last_differently_are_not_the_same_policy(tmp_path):
    """Where the reward is success, equal returns say no more than that."""
    run = make_run(tmp_path / "a", success=True)
    rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    for row in rows:
        won = float(row["episode"] % 4 > 0)
        row |= {"return": won, "success": won, "success_at_end": won}
    for shift, same in ((1, False), (0, True)):
        for row in rows:
            row["length"] = 100 + row["episode"] + int(row["scale"]) * shift
        write_rows(run / "eval.jsonl", rows)
        steered = compare([run]).rows[-1]
        assert (steered.verdict == "the same") is same
        assert (steered.success_difference[1] < 0.0 < steered.success_difference[2]) is not same
        (comparison,) = (data.comparison() for data in read_runs([run]))
        assert comparison.same is same
        assert comparison.difference("success") == pytest.approx(steered.success_difference)


def test_a_policy_beside_itself_leaves_nothing_to_chance_even_where_all_succeed():
    ones = np.ones(6)
    assert share_difference(ones, ones, same=True) == (0.0, 0.0, 0.0)
    low, high = share_difference(ones, ones)[1:]
    assert low < 0.0 < high

    def report(lengths):
        return EvalReport(ones, ones, ones, np.asarray(lengths, np.int64), 0, 0.0, np.zeros((6, 1), np.float32))

    ((same,), (other,)) = (differences([("a", report([5] * 6)), ("b", report(lengths))]) for lengths in ([5] * 6, [6] * 6))
    assert "success +0 points [+0, +0]" in same
    assert "success +0 points [+0, +0]" not in other


def test_a_finished_runs_verdict_is_in_the_tables_intervals(tmp_path):
    """Its summary may be from before an interval was mended; what else the run said is in its records, too."""
    run = lpds.steer("toy", out=tmp_path / "run", **SHORT, eval_noise_scale=0.25)
    said = json.loads((run.folder / "summary.json").read_text())
    assert "against the frozen policy with 0.25 of its noise, too" in said["verdict"]
    (run.folder / "summary.json").write_text(json.dumps({**said, "verdict": "in intervals of long ago"}))
    (data,) = read_runs([run.folder])
    assert data.verdict() == said["verdict"] == run.verdict()


def test_fewer_shared_episodes_than_were_played_are_told(tmp_path):
    runs = two_runs(tmp_path)
    assert "episodes that all" not in str(compare(runs))
    cut(runs[1], 8)
    said = str(compare(runs))
    assert "lpds by the 8 episodes that all of its seeds played, of 40" in said
    assert "the difference of lpds is over 8 shared episodes, its return over 8, that of frozen over 40" in said


def test_a_damaged_evaluation_is_told_and_never_a_traceback(tmp_path, refused):
    runs = two_runs(tmp_path)
    path = runs[1] / "eval.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    torn = lines[0][:20] + "\n"
    path.write_text("".join([lines[0], torn, *lines[2:]]))
    said = str(compare(runs))
    assert f"{runs[1]}: eval.jsonl is damaged: {len(lines) - 1} of its {len(lines)} lines cannot be read" in said
    assert "is finished, but its last evaluation cannot be read" in said
    with refused("nothing to compare", "is finished, but its last evaluation cannot be read"):
        compare([runs[1]])
    assert "eval.jsonl is damaged" in write_report([runs[1]], tmp_path / "page.html").read_text()
    path.write_text("".join(lines)[:-30])  # a finished run's last line, half written
    assert "eval.jsonl is damaged: 1 of its" in str(compare(runs))
    for key, value in (("return", "high"), ("episode", None), ("seed", "0")):
        rows = [{**json.loads(line), key: value} if n == len(lines) - 1 else json.loads(line) for n, line in enumerate(lines)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert "eval.jsonl is damaged: 1 of its" in str(compare(runs))
        write_report(runs, tmp_path / "page.html")


def test_a_run_that_goes_on_may_have_half_a_line(tmp_path):
    run = lpds.steer(decoder=toy_decoder(), env=make_four_mode, out=tmp_path / "run", **SHORT).folder
    (run / "summary.json").unlink()
    for name in ("metrics", "eval"):  # and a whole row may be there without its line's end
        path = run / f"{name}.jsonl"
        path.write_text(path.read_text()[:-1])
    assert "damaged" not in write_report([run], tmp_path / "page.html").read_text()
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('\n{"format_version": 1, "st')
    assert "damaged" not in write_report([run], tmp_path / "page.html").read_text()


def test_nothing_has_no_sign():
    assert told([-0.001, 20.0, 42.0], sign=True) == ["0.0", "+20.0", "+42.0"]
    assert unsigned_zero("-0") == "0"
    assert unsigned_zero("-0.1") == "-0.1"


def test_a_second_group_of_one_variant_keeps_its_name(tmp_path):
    for number, fingerprint in enumerate("ab"):
        run = tmp_path / "toy" / "lpds+small" / f"seed{number}"
        write_run(run, "lpds", number, [1.0] * 8)
        config = json.loads((run / "config.json").read_text())
        config["decoder"]["fingerprint"] = fingerprint * 64
        (run / "config.json").write_text(json.dumps(config))
    first, second = group_runs(read_runs([tmp_path / "toy" / "lpds+small" / f"seed{number}" for number in range(2)]))
    assert first.label == "lpds+small"
    assert second.label.startswith("lpds+small (")


def test_environments_that_only_a_factorys_name_makes_one_are_told(tmp_path):
    folders = []
    for name in ("one", "two"):
        decoder = identity_decoder((1, 2), 3, name=name)
        folders.append(lpds.steer(decoder=decoder, env=Two, out=tmp_path / name, **BRIEF).folder)
    assert "shares no frozen episode" in "\n".join(compare(folders).notes)
    assert "shares no frozen episode" not in "\n".join(compare(folders[:1]).notes)


def test_seeds_of_other_frozen_episodes_are_no_more_episodes_in_the_overview(tmp_path):
    """Three seeds of fifty shared episodes, all of which the steered policies pass: the bounds of a comparison."""
    rng = np.random.default_rng(0)
    frozen = [(rng.random(50) < 0.9).astype(float) for _ in range(3)]
    folders = []
    for seed, before in enumerate(frozen):
        folders.append(write_run(tmp_path / f"s{seed}", "lpds", seed, [1.0] * 50))
        rows = [
            {"step": 9, "kind": "final", "seed": 0, "episode": e, "scale": scale, "return": won, "success": won, "length": 7}
            for scale, column in ((0.0, before), (1.0, np.ones(50)))
            for e, won in enumerate(column.tolist())
        ]
        (folders[-1] / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (group,) = group_runs(read_runs(folders))
    row = _pooled(group, "success")
    mean, low, high = (100.0 * value for value in paired_share_gain(np.stack(frozen), np.ones((3, 50))))
    assert row[2] == f"{mean:+.0f} points [{low:+.0f}, {high:+.0f}]"


def test_ties_are_no_pairs_that_tell_a_sign():
    """Four episodes of fifty went another way, all up: by chance in one case of eight (exact McNemar p = 0.125)."""
    frozen, steered = np.zeros(50), np.r_[np.ones(4), np.zeros(46)]
    assert pairs_that_differ(frozen, steered) == 4
    difference = lpds.stats.paired_difference(frozen, steered)
    assert difference[1] > 0.0
    assert told_apart(difference, 4) == 0
    line = verdict_line((0.0, 0.08), None, difference, 50, 4)
    assert "not told apart" in line
    assert "4 do" in line
    assert "over 50 episodes" in line
    assert "not told apart" in against_line(frozen, steered, "x")
    assert "BETTER" in verdict_line((0.0, 0.2), None, (0.2, 0.1, 0.3), 50, 10)
    seeds = np.stack([steered, frozen, np.r_[np.zeros(4), np.ones(2), np.zeros(44)]])
    assert pairs_that_differ(frozen, seeds) == 6
    assert pairs_that_differ([math.nan, 1.0], [math.nan, 1.0]) == 0


def test_a_comparison_of_ties_is_undecided(tmp_path):
    write_run(tmp_path / "run", "lpds", 0, [1.0] * 4 + [0.0] * 46)
    report = compare(tmp_path / "run")
    row = report.rows[-1]
    assert (row.pairs, row.differ, row.verdict) == (50, 4, "undecided")
    assert "fewer than 6 episodes that differ cannot decide it" in str(report)
    assert "P(better)" not in str(report)  # a column of nothing


def test_the_interquartile_mean_of_one_episode_has_no_bounds():
    found = crossed_bootstrap([5.0], iqm)
    assert found[0] == 5.0
    assert all(map(math.isnan, found[1:]))


def test_columns_of_a_table_stay_apart_whatever_the_returns():
    """Returns of seven digits ran into the number of episodes: 4-4033263.9."""

    def report_of(returns):
        nothing = np.full(4, np.nan)
        return EvalReport(returns, nothing, nothing, np.full(4, 9), 0, 0.0, np.zeros((4, 1), np.float32))

    big = -4e6 * np.arange(1.0, 5.0)
    rows = [("frozen", report_of(big)), ("steered", report_of(np.arange(4.0)))]
    head, *lines = table(rows).splitlines()
    assert {len(head[: head.index("success")].rstrip()), *map(len, lines)} == {len(lines[0])}
    assert [line.split()[1] for line in lines] == ["4", "4"]
