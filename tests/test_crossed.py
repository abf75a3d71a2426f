"""What intervals of seeds and episodes cover, against scipy, rliable and simulation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats
from test_compare import write_run

import lpds
from lpds.report.lines import hint
from lpds.stats import (
    area_under_curve,
    crossed_bootstrap,
    crossed_difference,
    crossed_mean,
    episodes_to_decide,
    iqm,
    mean_over_seeds,
    probability_of_improvement,
    share_over_seeds,
    wilson,
)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 40, 101])
def test_interquartile_mean_is_scipys_trimmed_mean(size):
    x = np.random.default_rng(size).normal(size=size)
    assert iqm(x) == pytest.approx(scipy_stats.trim_mean(x, 0.25), rel=1e-12)


def test_probability_of_improvement_is_mann_whitneys_u_over_the_product_with_ties_halved():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 23), rng.integers(1, 8, 17)
    u = scipy_stats.mannwhitneyu(b, a).statistic
    estimate, low, high = probability_of_improvement(a, b)
    assert estimate == pytest.approx(u / (23 * 17), rel=1e-12)
    assert low < estimate < high
    assert probability_of_improvement([1, 1], [1, 1])[0] == 0.5


def test_intervals_against_rliable():
    """Figures of benchmarks/rliable_reference.py; intervals agree up to the chance of resampling."""
    wanted = json.loads((Path(__file__).parent / "rliable.json").read_text())
    runs = {name: np.array(wanted[name]) for name in "xy"}
    found = {name: crossed_bootstrap(runs[name][:, None], iqm, resamples=20_000) for name in "xy"}
    for name, (value, low, high) in found.items():
        width = wanted["iqm"][name][2] - wanted["iqm"][name][1]
        assert value == pytest.approx(wanted["iqm"][name][0], rel=1e-12)
        assert (low, high) == pytest.approx(wanted["iqm"][name][1:], abs=0.04 * width)
    better = probability_of_improvement(runs["x"], runs["y"], resamples=20_000)
    assert better[0] == pytest.approx(wanted["probability_y_above_x"][0], rel=1e-12)
    assert better[1:] == pytest.approx(wanted["probability_y_above_x"][1:], abs=0.03)


def test_crossed_interval_has_the_width_of_the_seeds_spread_where_episodes_do_not_matter():
    """Seeds' means N(0, 1) with constant episodes: the interval is the plain bootstrap over the seeds."""
    means = np.random.default_rng(1).normal(size=12)
    found = crossed_bootstrap(np.tile(means[:, None], 30), resamples=6_000)
    plain = scipy_stats.bootstrap((means,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    assert found == pytest.approx((means.mean(), plain.low, plain.high), abs=0.06)


def test_the_same_episodes_seen_by_three_equal_seeds_are_not_three_times_as_many():
    values = np.random.default_rng(0).normal(size=(1, 50))
    once, thrice = crossed_bootstrap(values, iqm), crossed_bootstrap(np.repeat(values, 3, 0), iqm)
    assert thrice[2] - thrice[1] == pytest.approx(once[2] - once[1], rel=0.1)


def test_crossed_interval_covers_the_mean_nineteen_times_in_twenty_with_many_seeds():
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(120):
        table = rng.normal(size=(1, 30)) + rng.normal(size=(25, 1)) + rng.normal(0, 2.0, (25, 30))
        _, low, high = crossed_bootstrap(table, resamples=300, seed=trial)
        hits += low < 0.0 < high
    assert 0.88 <= hits / 120 <= 1.0


def test_means_over_seeds():
    """Equal numbers of values are the same episodes; others count by their means; one value has no interval."""
    table = np.random.default_rng(3).normal(size=(3, 10))
    assert mean_over_seeds(list(table)) == crossed_mean(table)
    uneven = mean_over_seeds([[1.0, 3.0], [4.0], [math.nan, 9.0, 9.0, 9.0]])
    wanted = scipy_stats.t.interval(0.95, 2, 5.0, np.array([2.0, 4.0, 9.0]).std(ddof=1) / math.sqrt(3))
    assert uneven == pytest.approx((5.0, *wanted))
    assert mean_over_seeds([[7.0], []])[0] == 7.0
    assert all(map(math.isnan, mean_over_seeds([[7.0]])[1:]))
    assert all(map(math.isnan, mean_over_seeds([[], [math.nan]])))


def test_three_equal_seeds_of_successes_are_no_surer_than_one():
    seed = np.r_[np.ones(46), np.zeros(4)]
    assert share_over_seeds([seed]) == wilson(46, 50)
    share, low, high = share_over_seeds([seed] * 3)
    assert share == pytest.approx(0.92)
    assert low <= wilson(46, 50)[1]
    assert high >= wilson(46, 50)[2]
    share, low, high = share_over_seeds([np.ones(50), np.r_[np.ones(25), np.zeros(25)], np.zeros(50)])
    assert share == pytest.approx(0.5)
    assert (low, high) == (0.0, 1.0)
    assert share_over_seeds([np.ones(50)] * 3) == pytest.approx(wilson(50, 50))  # no spread at all, and fifty episodes


def test_crossed_difference_keeps_episodes_paired():
    """Hard and easy episodes of a hundred times the effect: paired, the effect is still told apart from zero."""
    rng = np.random.default_rng(3)
    episodes = rng.normal(0, 100, 40)
    a = episodes + rng.normal(0, 0.5, (3, 40))
    b = episodes + 1.0 + rng.normal(0, 0.5, (4, 40))
    mean, low, high = crossed_difference(a, b)
    assert mean == pytest.approx(b.mean() - a.mean())
    assert 0.5 < low < mean < high < 1.5
    alone = crossed_difference(a, b[:, np.random.default_rng(4).permutation(40)])
    assert alone[2] - alone[1] > 10 * (high - low)


def test_area_under_a_straight_curve_is_its_middle_and_a_cut_interpolates(monkeypatch):
    assert area_under_curve([0, 10, 20], [0.0, 1.0, 2.0]) == pytest.approx(1.0)
    assert area_under_curve([0, 10, 20], [0.0, 1.0, 2.0], 15) == pytest.approx(0.75)
    assert area_under_curve([0, 20], [0.0, 2.0], 5) == pytest.approx(0.25)
    assert area_under_curve([0, 20], [0.0, 2.0], 50) == pytest.approx(1.0)
    assert area_under_curve([3], [7.0]) == 7.0
    monkeypatch.delattr(np, "trapezoid", raising=False)  # NumPy before 2.0 has none
    assert area_under_curve([0, 5, 20], [1.0, 3.0, 0.0]) == pytest.approx((5 * 2.0 + 15 * 1.5) / 20)
    assert math.isnan(area_under_curve([], []))


@pytest.mark.parametrize(("seed_sd", "rest_sd"), [(1.0, 1.0), (0.05, 3.0)])
def test_crossed_difference_covers_zero_nineteen_times_in_twenty_with_three_seeds(seed_sd, rest_sd):
    """Against a frozen policy; resampling three seeds would cover it two times in three where seeds are most of the chance."""
    rng = np.random.default_rng(6)
    hits = 0
    for _ in range(600):
        frozen = rng.normal(size=(1, 50))
        steered = frozen + rng.normal(0, seed_sd, (3, 1)) + rng.normal(0, rest_sd, (3, 50))
        _, low, high = crossed_difference(frozen, steered)
        hits += low < 0.0 < high
    assert 0.92 <= hits / 600 <= 0.99


def test_crossed_difference_of_single_runs_is_students_paired_interval():
    a, b = np.random.default_rng(7).normal(size=(2, 12))
    wanted = scipy_stats.ttest_rel(b, a).confidence_interval(0.95)
    assert crossed_difference(a, b) == pytest.approx(((b - a).mean(), wanted.low, wanted.high))


def test_crossed_mean_of_seeds_whose_episodes_do_not_matter_is_students_interval_over_seeds():
    means = np.array([3.0, 4.0, 8.0])
    wanted = scipy_stats.t.interval(0.95, 2, means.mean(), means.std(ddof=1) / math.sqrt(3))
    assert crossed_mean(np.tile(means[:, None], 20)) == pytest.approx((5.0, *wanted))
    assert crossed_difference([[1.0, 1.0]], [[3.0, 3.0]]) == (2.0, 2.0, 2.0)


def test_episodes_to_decide_is_what_makes_the_interval_touch_zero():
    """One run against another: half a width of q sd / sqrt(n - 1), q Student's of n - 1."""
    d = np.array([3.0, -1.0, 2.0, -2.0, 1.0])
    n = len(d) + episodes_to_decide(np.zeros(5), d)

    def half(n):
        return scipy_stats.t.ppf(0.975, n - 1) * d.std() / math.sqrt(n - 1)

    assert half(n) <= d.mean() <= half(n - 1)
    assert episodes_to_decide(np.zeros(3), np.array([5.0, 5.1, 4.9])) == 0
    assert episodes_to_decide(np.zeros(2), [1.0, -1.0]) is None
    assert episodes_to_decide([0.0], [1.0]) is None  # one pair has no bounds


def test_the_episodes_that_would_decide_it_do_when_they_come_again_and_none_are_promised_that_would_not():
    """Episodes to come have the moments of those that were; three seeds' freedom falls to two as they come.

    The variance of the seeds' means is the seeds' own and a share of the residual, r / E (a two-way analysis of variance
    without replication). More episodes leave the first, so the means draw together by what is left of the second.
    """
    rng = np.random.default_rng(11)
    found = {True: 0, False: 0}
    for _ in range(250):
        frozen = rng.normal(size=(1, 12))
        steered = frozen + rng.uniform(0.1, 0.8) + rng.normal(0, rng.uniform(0.02, 0.2), (3, 1)) + rng.normal(0, 1, (3, 12))
        more = episodes_to_decide(frozen, steered)
        if more == 0:
            continue

        def decided(times, frozen=frozen, steered=steered):
            means = steered.mean(1, keepdims=True) - steered.mean()
            residual = steered - means - steered.mean(0)
            spread = means.var(ddof=1)
            of_episodes = min(spread, (residual**2).sum() / (2 * 11) / 12)
            drawn = np.sqrt((spread - of_episodes + of_episodes / times) / spread)
            _, low, high = crossed_difference(np.tile(frozen, times), np.tile(steered - means + drawn * means, times))
            return low > 0.0 or high < 0.0

        found[more is not None] += 1
        if more is None:
            assert not decided(3000)
        else:
            times = (12 + more) / 12
            assert decided(math.ceil(times))
            assert not decided(math.ceil(times) - 1)
    assert min(found.values()) > 10


def test_seeds_that_differ_by_their_episodes_alone_are_not_called_open():
    """No seed has an effect of its own: episodes decide it, and are asked for in most samples of those undecided."""
    rng = np.random.default_rng(3)
    more = []
    for _ in range(300):
        frozen, steered = (shift + rng.normal(0, 5, (3, 50)) for shift in (0.0, 0.8))
        more.append(episodes_to_decide(frozen, steered))
    undecided = [found for found in more if found != 0]
    assert len(undecided) > 200
    assert sum(found is None for found in undecided) < 0.75 * len(undecided)


def test_an_interquartile_mean_does_not_know_where_a_missing_return_belongs(tmp_path):
    assert math.isnan(iqm([math.nan, 0, 10, 20, 30]))
    run = write_run(tmp_path / "run", "lpds", 0, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    lines = (run / "eval.jsonl").read_text().splitlines()
    (run / "eval.jsonl").write_text("\n".join([*lines[:-1], json.dumps({**json.loads(lines[-1]), "return": None})]) + "\n")
    (row,) = (row for row in lpds.compare(run).rows if row.label == "lpds")
    assert math.isnan(row.iqm[0])
    assert "toy: lpds lacks the returns of 1 of 8 episodes" in lpds.compare(run).notes


def test_equal_seeds_have_the_interval_of_one():
    wins = [1] * 16 + [0] * 4
    assert share_over_seeds([wins, wins, wins]) == share_over_seeds([wins])
    other = [0, *wins[1:16], 1, *wins[17:]]  # as many, elsewhere
    assert share_over_seeds([wins, other])[2] >= share_over_seeds([wins])[2]


def test_what_would_decide_it_is_told_from_either_side(tmp_path):
    """One seed against three is as open as three against one, and a new episode is played by all four."""
    rng = np.random.default_rng(5)
    three = [
        write_run(tmp_path / f"a{s}", "lpds", s, (shift + rng.normal(size=30)).tolist()) for s, shift in enumerate((0, 9, -8))
    ]
    one = write_run(tmp_path / "b", "dsrl-na", 0, rng.normal(size=30).tolist())
    forth, back = (
        next(row for row in lpds.compare([*three, one], reference).rows if row.label == label)
        for reference, label in (("dsrl-na", "lpds"), ("lpds", "dsrl-na"))
    )
    assert hint(forth) == hint(back) == ": only more seeds would decide it"


def test_no_number_of_episodes_decides_what_the_seeds_leave_open():
    frozen = np.random.default_rng(0).normal(size=(1, 50))
    steered = frozen + np.array([[300.0], [-100.0], [-50.0]]) + np.random.default_rng(1).normal(size=(3, 50))
    assert crossed_difference(frozen, steered)[1] < 0.0
    assert episodes_to_decide(frozen, steered) is None
