"""Intervals against scipy, entropies against closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scripted import identity_decoder

import lpds
from lpds.metrics import TIE_FLOOR, knn_entropy, mode_coverage, mode_shares, share_beyond, typicality
from lpds.stats import (
    bootstrap_mean,
    crossed_difference,
    crossed_mean,
    mean_over_seeds,
    paired_difference,
    share_difference,
    told_apart,
    wilson,
)


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (1, 10), (5, 10), (10, 10), (33, 40), (400, 400), (0, 1)])
def test_wilson_against_scipy(hits, trials):
    share, low, high = wilson(hits, trials)
    wanted = stats.binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    assert share == hits / trials
    assert low == pytest.approx(wanted.low, abs=1e-12)
    assert high == pytest.approx(wanted.high, abs=1e-12)
    assert 0.0 <= low <= share <= high <= 1.0


def test_bootstrap_against_scipy_and_the_normal_approximation():
    x = np.random.default_rng(3).gamma(2.0, 100.0, 80)
    mean, low, high = bootstrap_mean(x)
    wanted = stats.bootstrap((x,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(1))
    interval = wanted.confidence_interval
    width = interval.high - interval.low
    assert mean == pytest.approx(x.mean())
    assert low == pytest.approx(interval.low, abs=0.04 * width)
    assert high == pytest.approx(interval.high, abs=0.04 * width)
    assert width == pytest.approx(2 * 1.96 * x.std() / np.sqrt(80), rel=0.05)


def test_bootstrap_covers_and_is_equal_twice():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        _, low, high = bootstrap_mean(rng.normal(1.0, 2.0, 40), resamples=500)
        hits += low <= 1.0 <= high
    assert 0.90 <= hits / 300 <= 0.98
    x = rng.normal(size=20)
    assert bootstrap_mean(x) == bootstrap_mean(x)
    assert bootstrap_mean(x, seed=1) != bootstrap_mean(x)


def test_the_percentiles_of_a_small_sample_are_taken_further_out():
    """Hesterberg's expanded percentile: of N = 5 values the tail is Phi(-sqrt(5/4) t_{.975, 4}), 0.1 % in place of 2.5."""
    x = np.array([3.0, -1.0, 4.5, 0.2, 9.0])
    every = np.array(list(itertools.product(x, repeat=5))).mean(1)  # all 3,125 resamples
    for level, tail in ((0.95, 0.00096), (0.8, 0.0433)):
        quantile = (1.0 + level) / 2.0
        assert stats.norm.cdf(-math.sqrt(5 / 4) * stats.t.ppf(quantile, 4)) == pytest.approx(tail, rel=0.01)
        wanted, plain = (np.quantile(every, [share, 1.0 - share]) for share in (tail, 1.0 - quantile))
        mean, *bounds = bootstrap_mean(x, level=level, resamples=40_000)
        assert mean == x.mean()
        np.testing.assert_allclose(bounds, wanted, atol=0.2)
        assert (np.abs(plain - wanted) > 0.5).all()


def test_five_normal_values_are_covered_nearly_as_often_as_is_said():
    """The plain percentiles hold the mean of five in 83 % of samples."""
    rng, draws = np.random.default_rng(0), 1_000
    held = 0
    for _ in range(draws):
        _, low, high = bootstrap_mean(rng.normal(1.0, 2.0, 5), resamples=1_000)
        held += low <= 1.0 <= high
    assert 0.88 < held / draws < 0.96


def test_intervals_are_equivariant_and_leave_out_nan():
    x = np.random.default_rng(1).normal(size=30)
    mean, low, high = bootstrap_mean(x)
    np.testing.assert_allclose(bootstrap_mean(10 * x + 3), (10 * mean + 3, 10 * low + 3, 10 * high + 3))
    assert bootstrap_mean([*x, math.nan]) == bootstrap_mean(x)
    assert all(math.isnan(v) for v in bootstrap_mean([math.nan]))
    assert all(math.isnan(v) for v in wilson(0, 0))
    assert bootstrap_mean([2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_a_paired_difference_sees_what_two_intervals_do_not():
    rng = np.random.default_rng(0)
    a = 1000.0 * rng.normal(size=50)
    b = a + 5.0 + rng.normal(size=50)
    mean, low, high = paired_difference(a, b)
    assert low > 4.0
    assert high < 6.0
    np.testing.assert_allclose(paired_difference(b, a)[0], -mean)
    assert paired_difference(a, a) == (0.0, 0.0, 0.0)


def test_a_verdict_has_the_interval_of_the_comparison_which_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(1)
    a, b = rng.gamma(1.0, 100.0, size=(2, 20))
    test = stats.ttest_rel(b, a)
    bounds = test.confidence_interval()
    assert paired_difference(a, b) == pytest.approx(((b - a).mean(), bounds.low, bounds.high))
    assert paired_difference(a, b) == pytest.approx(crossed_difference(a[None], b[None]))
    assert np.isnan(paired_difference([math.nan], [1.0])).all()


@pytest.mark.parametrize("d", [1, 2, 3])
def test_entropy_of_a_gaussian(d):
    rng = np.random.default_rng(d)
    root = rng.normal(size=(d, d)) + 2 * np.eye(d)
    x = rng.normal(size=(6000, d)) @ root.T
    exact = 0.5 * d * math.log(2 * math.pi * math.e) + math.log(abs(np.linalg.det(root)))
    assert knn_entropy(x) == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_entropy_of_a_uniform(k):
    x = np.random.default_rng(0).uniform(size=(8000, 2)) * [3.0, 0.5]
    assert knn_entropy(x, k) == pytest.approx(math.log(1.5), abs=0.05)


def test_entropy_by_hand():
    """Points 0, 1, 3, k = 1: distances 1, 1, 2; psi(3) - psi(1) = 3/2; V_1 = 2."""
    assert knn_entropy([0.0, 1.0, 3.0], 1) == pytest.approx(1.5 + math.log(2) + math.log(2) / 3)


def test_entropy_laws():
    x = np.random.default_rng(0).normal(size=(500, 3))
    h = knn_entropy(x)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    assert knn_entropy(x @ turn + 7.0) == pytest.approx(h, abs=1e-9)  # rigid motions
    assert knn_entropy(5.0 * x) == pytest.approx(h + 3 * math.log(5.0), abs=1e-9)  # scaling
    assert knn_entropy(x[::-1]) == pytest.approx(h, abs=1e-12)  # order
    assert knn_entropy(x.reshape(500, 3, 1)) == h


def test_ties_are_floored_at_a_stated_distance():
    same = np.zeros((100, 2))
    value = knn_entropy(same)
    assert math.isfinite(value)
    assert knn_entropy(same, floor=1e-3) - value == pytest.approx(2 * math.log(1e-3 / TIE_FLOOR))
    x = np.random.default_rng(0).normal(size=(400, 2))
    clipped = np.clip(x, -0.5, 0.5)  # corners coincide
    assert math.isfinite(knn_entropy(clipped))
    assert knn_entropy(clipped) < knn_entropy(x)


def test_entropy_refuses_what_it_cannot_estimate():
    with pytest.raises(ValueError, match="need more than 3 samples"):
        knn_entropy(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="NaN"):
        knn_entropy([0.0, 1.0, math.nan, 2.0, 3.0])
    assert lpds.metrics.knn_entropy is knn_entropy


def test_mode_shares_of_four_clusters_and_of_what_lies_between():
    rng = np.random.default_rng(0)
    centres = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], float)
    x = np.concatenate([centres[[0] * 60 + [1] * 30 + [2] * 4] + rng.normal(0, 0.01, (94, 2)), np.zeros((6, 2))])
    shares = mode_shares(x, centres, radius=0.5)
    assert shares == pytest.approx([0.60, 0.30, 0.04, 0.0])
    assert mode_coverage(shares) == 2
    assert mode_coverage([0.05, 0.95]) == 2  # the edge counts
    assert mode_shares(x, centres).sum() == pytest.approx(1.0)


def test_typicality_of_the_prior_itself():
    rng = np.random.default_rng(1)
    found = typicality(rng.standard_normal((4000, 4, 3)))
    assert found.prior_norm == pytest.approx(stats.chi(12).mean())
    assert found.norm == pytest.approx(found.prior_norm, rel=0.01)
    assert found.p_value > 0.01
    assert abs(found.autocorrelation) < 0.02


def test_typicality_tells_a_repeated_row_a_wide_box_and_a_small_shift_apart():
    rng = np.random.default_rng(2)
    eps = rng.standard_normal((4000, 4, 3))
    repeated = typicality(np.repeat(eps[:, :1], 4, axis=1))
    assert repeated.autocorrelation == pytest.approx(1.0)
    assert repeated.p_value < 1e-6
    wide = typicality(rng.uniform(-3, 3, (4000, 4, 3)))
    assert wide.norm > 1.5 * wide.prior_norm
    assert wide.ks > 0.5
    shift = typicality(eps + np.sqrt(0.5 / 12))  # ||Delta||^2 = 0.5
    assert shift.norm**2 == pytest.approx(found_square(12.5), rel=0.02)
    assert shift.ks < 0.06
    assert shift.autocorrelation == pytest.approx(0.5 / 12.5, abs=0.015)
    assert np.isnan(typicality(eps[:, :1]).autocorrelation)


def found_square(mean_square, size=12):
    """Square of the mean norm of a Gaussian in ``size`` dimensions with this mean square of the norm, nearly centred."""
    return mean_square - (size - stats.chi(size).mean() ** 2)


def test_share_of_states_beyond_the_budget():
    assert share_beyond([0.1, 0.35, 0.36, 2.0], 0.35) == 0.5
    assert math.isnan(share_beyond([math.nan, 0.1], 0.35))  # what diverged is not within its budget
    assert math.isnan(share_beyond([], 0.35))


def test_samples_may_be_tensors_of_any_kind_and_bad_ones_get_a_line():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert knn_entropy(x.clone().requires_grad_()) == knn_entropy(x.numpy())
    assert knn_entropy(x.bfloat16()) == knn_entropy(x.bfloat16().float().numpy())
    for bad, words in ((np.empty((0, 2)), "more than 3 samples"), (np.empty((9, 0)), "no coordinates")):
        with pytest.raises(ValueError, match=words):
            knn_entropy(bad)
    with pytest.raises(TypeError):
        knn_entropy(x, k=3.0)
    with pytest.raises(ValueError, match="no samples"):
        mode_shares(np.empty((0, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"\[N, H, L\]"):
        typicality(np.empty((0, 4, 3)))


def test_what_a_run_logs_of_its_latents_is_the_typicality():
    from lpds.methods.learner import typicality_of
    from lpds.types import LatentSpec

    shift = torch.linspace(-1.0, 1.0, 3)
    w = torch.randn(500, 4, 3, generator=torch.Generator().manual_seed(0)) + shift
    told, wanted = typicality_of(w.flatten(1), LatentSpec((2,), (4, 3), (4, 3))), typicality(w.numpy())
    assert float(told["w_norm"]) == pytest.approx(wanted.norm, rel=1e-5)
    assert float(told["w_autocorrelation"]) == pytest.approx(wanted.autocorrelation, rel=1e-4)
    assert set(typicality_of(w.flatten(1), LatentSpec((2,), (1, 12), (1, 12)))) == {"w_norm"}


@pytest.mark.parametrize("actions", [2, 7])
def test_the_frozen_policys_entropy_is_its_own_and_less_noise_lowers_it(actions):
    """Actions w: the frozen policy against itself is 0 to the bit, and k < 1 costs d ln k, d the dimensions looked at."""
    from lpds.diagnose import COMPONENTS, action_entropy, frozen_entropy
    from lpds.methods.base import BasePolicy

    class Quiet(BasePolicy):
        def latent(self, obs, eps, scale):
            return eps * 0.25**scale

    decoder, obs = identity_decoder((1, actions)), torch.zeros(8, 2)
    frozen = frozen_entropy(Quiet(), decoder, obs)
    assert action_entropy(BasePolicy(), decoder, obs, frozen) == frozen.entropy
    less = action_entropy(Quiet(), decoder, obs, frozen) - frozen.entropy
    assert less == pytest.approx(min(actions, COMPONENTS) * math.log(0.25), abs=1e-4)


def test_all_or_none_leave_a_difference_of_shares_its_chance():
    """0 of 50 against 50 of 50: Wilson's 0.929 and 0.071, put together by square and add; never beyond one."""
    edge = wilson(0, 50)[2]
    none, everything = np.zeros((1, 50)), np.ones((3, 50))
    found = share_difference(none, everything)
    assert found == pytest.approx((1.0, 1.0 - math.sqrt(2.0) * edge, 1.0))
    assert share_difference(everything, none) == pytest.approx((-1.0, -1.0, -1.0 + math.sqrt(2.0) * edge))
    few, seeds = (np.arange(50) < 2)[None].astype(float), np.stack([np.arange(50) < n for n in (50, 47, 36)]).astype(float)
    assert crossed_difference(few, seeds)[2] > 1.0 == share_difference(few, seeds)[2]
    some, more = (np.arange(50) % 3 == 0).astype(float), (np.arange(50) % 2 == 0).astype(float)
    assert share_difference(some, more) == crossed_difference(some, more)


def test_one_value_has_no_bounds():
    for found in (bootstrap_mean([5.0]), crossed_mean([[5.0]]), crossed_difference([0.0], [5.0]), mean_over_seeds([[5.0]])):
        assert found[0] == 5.0
        assert np.isnan(found[1:]).all()
    assert told_apart(crossed_difference([0.0], [5.0]), 1) == 0


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.86), (3, 0.92)])
@pytest.mark.parametrize("spread", [0.25, 0.5, 1.0, 2.0])
def test_what_the_intervals_of_few_seeds_cover(seeds, least, spread):
    """Of one frozen policy and few seeds, whose spread is some share of their episodes': a little less than 95 %."""
    rng, draws = np.random.default_rng(0), 1_500
    held = 0
    for _ in range(draws):
        episodes = rng.normal(size=50)
        frozen = (episodes + rng.normal(size=50))[None]
        steered = episodes + rng.normal(size=(seeds, 1)) * spread + rng.normal(size=(seeds, 50))
        _, low, high = crossed_difference(frozen, steered)
        held += low <= 0.0 <= high
    assert least < held / draws < 0.96
