"""Intervals and paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from scipy.stats import t as student

Array = npt.NDArray[np.float64]
Interval = tuple[float, float, float]
"""(estimate, low, high)."""

Z95 = 1.959963984540054

RESAMPLED_AT_ONCE = 2**22
"""Values; a sample of a hundred thousand, resampled in one piece, would take the memory of a machine."""
FEWEST_PAIRS = 6
"""Below so many that differ no sign is sure at 95 %: five all of one sign come by chance in 2 of 32 cases, 6 % (sign test)."""


def bootstrap_mean(x: npt.ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of a sample with a percentile-bootstrap interval, expanded for small samples.

    The plain percentiles are too narrow by ``sqrt((N - 1) / N)`` and by the normal quantile in place of Student's; they are
    taken further out by both (Hesterberg 2015, "expanded percentile"). Nothing helps three values, though: where they are
    seeds, use :func:`crossed_difference`.

    Args:
        x: [N] values; NaN are left out.
        level: coverage.
        resamples: number of bootstrap samples.
        seed: of the resampling, so that a report is the same twice.

    Returns:
        (mean, low, high); the bounds are NaN for a single value, all of it for an empty sample.
    """
    values = np.asarray(x, np.float64)
    values = values[~np.isnan(values)]
    if values.size < 2:
        return float(values[0]) if values.size else math.nan, math.nan, math.nan
    rng, rows = np.random.default_rng(seed), max(1, RESAMPLED_AT_ONCE // values.size)
    sizes = [min(rows, resamples - at) for at in range(0, resamples, rows)]
    means = np.concatenate([values[rng.integers(values.size, size=(size, values.size))].mean(1) for size in sizes])
    tail = _expanded_tail(values.size, level)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(values.mean()), float(low), float(high)


def _expanded_tail(size: int, level: float) -> float:
    """Share of resamples to leave out on each side, for a sample of this size."""
    wide = math.sqrt(size / (size - 1)) * float(student.ppf((1 + level) / 2, size - 1))
    return float(norm.cdf(-wide))


def wilson(successes: float, trials: int) -> Interval:
    """Wilson's 95 % score interval of a proportion, as (share, low, high); a mean over seeds need not be whole successes."""
    if trials == 0:
        return math.nan, math.nan, math.nan
    z2, p = Z95**2, successes / trials
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    # the ends never cross the share itself, as rounding would have it at 0 and 1
    return p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike) -> Interval:
    """Mean of ``b - a`` [E] over pairs that share seed and noise: :func:`crossed_difference` of one run with another.

    Pairs of which one is NaN are left out. A verdict and a comparison of the same pairs so say the same.
    """
    values = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    values = values[~np.isnan(values)]
    return crossed_mean(values) if values.size else (math.nan, math.nan, math.nan)


def noise_share(outcomes: npt.ArrayLike) -> float:
    """Share of an outcome's variance that the noise decides, the rest being the episode's own (where it begins, say).

    One-way random effects by moments: the variance within episodes over N noises, and that between episodes' means less what
    the noises leave in them. A policy whose failures the noise does not decide cannot be steered out of them.

    Args:
        outcomes: [N, E] of the same E episodes under N noises, two at least.

    Returns:
        The share, 0 to 1; NaN where the outcome does not vary.
    """
    x = np.asarray(outcomes, np.float64)
    within = float(x.var(0, ddof=1).mean())
    between = max(0.0, float(x.mean(0).var(ddof=1)) - within / len(x)) if x.shape[1] > 1 else 0.0
    return within / (within + between) if within + between > 0.0 else math.nan


def pairs_that_differ(a: npt.ArrayLike, b: npt.ArrayLike) -> int:
    """Episodes in which not all seeds of [S_a, E] and [S_b, E] came to the same: the others say nothing of a sign."""
    values = np.vstack([np.atleast_2d(np.asarray(x, np.float64)) for x in (a, b)])
    return int(((values != values[:1]) & ~(np.isnan(values) & np.isnan(values[:1]))).any(0).sum())


def told_apart(difference: Interval, pairs: int) -> int:
    """Sign of a paired difference whose 95 % interval excludes zero, else 0; 0 for fewer than :data:`FEWEST_PAIRS` pairs.

    Args:
        difference: (mean, low, high).
        pairs: those that differ (:func:`pairs_that_differ`).
    """
    _, low, high = difference
    return 0 if pairs < FEWEST_PAIRS else int(low > 0.0) - int(high < 0.0)


def iqm(x: npt.ArrayLike) -> float:
    """Interquartile mean: the mean of the middle half, the lowest and highest ``floor(N / 4)`` values left out.

    As ``scipy.stats.trim_mean(x, 0.25)``; rliable takes that of the scores of runs. NaN for an empty sample, or one with NaN.
    """
    values = np.sort(np.asarray(x, np.float64), axis=None)  # NaN last
    if not values.size or np.isnan(values[-1]):
        return math.nan
    cut = values.size // 4
    return float(values[cut : values.size - cut].mean())


def crossed_bootstrap(
    values: npt.ArrayLike,
    statistic: Callable[[Array], float] = lambda x: float(x.mean()),
    *,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """A statistic of [S, E] values where all seeds played the same episodes, with a percentile-bootstrap interval.

    Every resample draws seeds with replacement, and one set of episodes for all of them: episodes drawn anew inside each seed
    would take three looks at fifty episodes for a hundred and fifty of them. With one value a seed it is rliable's stratified
    bootstrap. With few seeds it is too narrow all the same.

    Args:
        values: [S, E] by seed and episode.
        statistic: of the pooled values.
        level: coverage.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Returns:
        (estimate, low, high); the bounds of a single value are NaN.
    """
    table = np.atleast_2d(np.asarray(values, np.float64))
    if table.size == 1:
        return statistic(table), math.nan, math.nan
    rng = np.random.default_rng(seed)
    rows, columns = (rng.integers(size, size=(resamples, size)) for size in table.shape)
    found = [statistic(table[np.ix_(r, c)]) for r, c in zip(rows, columns, strict=True)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return statistic(table), float(low), float(high)


def mean_over_seeds(seeds: Sequence[npt.ArrayLike]) -> Interval:
    """Mean over several seeds' values, with an interval for other seeds, and other episodes where they share them.

    Args:
        seeds: [E_i] values of each seed; NaN are left out. Where all have the same number of them, they are taken for the same
            episodes (:func:`crossed_mean`); else seeds count by their means.

    Returns:
        (mean, low, high); bounds that are NaN where there is a single value, all NaN where there is none.
    """
    groups = [values[~np.isnan(values)] for values in (np.asarray(x, np.float64).ravel() for x in seeds)]
    groups = [values for values in groups if values.size]
    if not groups:
        return math.nan, math.nan, math.nan
    if len({values.size for values in groups}) > 1:
        groups = [np.array([values.mean()]) for values in groups]
    table = np.stack(groups)
    return crossed_mean(table)


def share_over_seeds(seeds: Sequence[npt.ArrayLike]) -> Interval:
    """Share of successes [E_i] of several seeds, with an interval for other seeds and episodes; of one seed Wilson's.

    That of :func:`mean_over_seeds`, and never narrower than Wilson's of one seed's episodes: the seeds share them. Seeds that
    all did alike in every episode are one policy, as far as they tell, and are counted as one seed.
    """
    groups = [values[~np.isnan(values)] for values in (np.asarray(x, np.float64).ravel() for x in seeds)]
    groups = [values for values in groups if values.size]
    if groups and all(np.array_equal(values, groups[0]) for values in groups):
        return wilson(int(groups[0].sum()), groups[0].size)
    share, low, high = mean_over_seeds(groups)
    if math.isnan(share):
        return share, low, high
    trials = min(values.size for values in groups)
    _, least, most = wilson(round(share * trials), trials)
    bounds = [value for value in (low, high) if not math.isnan(value)]
    # rounding to whole successes may put the share just outside Wilson's
    return share, max(0.0, min([least, share, *bounds])), min(1.0, max([most, share, *bounds]))


def crossed_difference(a: npt.ArrayLike, b: npt.ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of ``b - a`` where all seeds of both play the same episodes, with an interval for other seeds and other episodes.

    Seeds and episodes are crossed random effects: an episode that is easy is easy for all seeds, so episodes stay paired
    while seeds do not. The variance of the mean is that of the seeds' means over S_a, over S_b, and that of the episodes'
    differences over E, less the residual variance that these count twice; the interval is Student's t with the degrees of
    freedom of Satterthwaite. Three seeds are few, and it says so: resampling them, as rliable does, covers the true value
    two times in three where it should nineteen times in twenty.

    Args:
        a: [S_a, E] values by seed and episode; one row has no seed to speak of (a frozen policy, or a single run).
        b: [S_b, E], the same episodes in the same order.
        level: coverage.

    Returns:
        (estimate, low, high); a single pair has no bounds (NaN).
    """
    first, second = (np.atleast_2d(np.asarray(x, np.float64)) for x in (a, b))
    estimate = float(second.mean() - first.mean())
    if first.size == second.size == 1:
        return estimate, math.nan, math.nan
    variance, freedom = _crossed_variance(first, second)
    half = float(student.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)
    return estimate, estimate - half, estimate + half


def share_difference(a: npt.ArrayLike, b: npt.ArrayLike, *, same: bool = False) -> Interval:
    """:func:`crossed_difference` of successes [S_a, E] and [S_b, E], with the bounds of :func:`share_bounds`."""
    return share_bounds(crossed_difference(a, b), a, b, same=same)


def paired_gain(before: npt.ArrayLike, after: npt.ArrayLike, *, level: float = 0.95) -> Interval:
    """:func:`crossed_difference` where every seed's ``after`` [S, E] was played beside a ``before`` [S, E] of its own.

    What a run starts from, or the frozen policy on the machine that the run was made on: the two are a pair, while the seeds
    of two methods are draws of their own. Where all of ``before`` is one row, it is what :func:`crossed_difference` gives.
    """
    gain = np.atleast_2d(np.asarray(after, np.float64)) - np.atleast_2d(np.asarray(before, np.float64))
    return crossed_difference(np.zeros((1, gain.shape[1])), gain, level=level)


def paired_share_gain(before: npt.ArrayLike, after: npt.ArrayLike, *, same: bool = False) -> Interval:
    """:func:`paired_gain` of successes, with the bounds of :func:`share_bounds`."""
    return share_bounds(paired_gain(before, after), before, after, same=same)


def share_bounds(found: Interval, a: npt.ArrayLike, b: npt.ArrayLike, *, same: bool = False) -> Interval:
    """Bounds of a difference of shares: within -1 and 1, and with chance left where a sample has none.

    Where all of one side succeed or fail, its values do not scatter, and yet fifty episodes do not tell 100 % from 95: there
    the interval is no narrower than the two shares' Wilson intervals put together (square and add, Newcombe 1998).

    Nor do fifty episodes that all went alike on both sides tell that the next one will: as many as a Wilson interval of none
    in fifty leaves may go either way.

    Args:
        found: (estimate, low, high) of mean ``b - a``.
        a: [S_a, E] or [E] successes, 0 or 1.
        b: [S_b, E] or [E], the same episodes.
        same: both are one policy, as their episodes tell, so that nothing is left to chance.
    """
    if same:
        return found
    estimate, low, high = found
    sides = [np.atleast_2d(np.asarray(x, np.float64)) for x in (a, b)]
    one_row = all(bool((row == sides[0][0]).all()) for x in sides for row in x)
    if one_row or np.array_equal(sides[0], sides[1]):
        chance = wilson(0.0, sides[0].shape[1])[2]
        low, high = min(low, -chance), max(high, chance)
    if any(x.min() == x.max() for x in sides):
        (p, p_low, p_high), (q, q_low, q_high) = (wilson(float(x.mean()) * x.shape[1], x.shape[1]) for x in sides)
        low = float(np.fmin(low, estimate - math.hypot(q - q_low, p_high - p)))
        high = float(np.fmax(high, estimate + math.hypot(q_high - q, p - p_low)))
    return estimate, max(-1.0, low), min(1.0, high)


def crossed_mean(values: npt.ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of [S, E] values by seed and episode, with the interval of :func:`crossed_difference` from zero."""
    found = np.atleast_2d(np.asarray(values, np.float64))
    return crossed_difference(np.zeros((1, found.shape[1])), found, level=level)


def _crossed_variance(first: Array, second: Array, times: float = 1.0) -> tuple[float, float]:
    """Variance of the mean difference, and Satterthwaite's degrees of freedom (at least 1).

    ``times``: as if every episode had come so often; for infinity what the seeds leave is left: the variance of their means
    less what of it is the residual's, which a mean over episodes does not keep.
    """
    episodes = first.shape[1]
    count = times * episodes - 1.0  # degrees of freedom of the episodes
    parts = [(float((second.mean(0) - first.mean(0)).var()) / count, count) if count else (0.0, 0.0)]
    twice = 0.0
    for values in (first, second):
        if len(values) > 1:
            part, freedom = _variance_of_mean(values.mean(1))
            if count:
                rest = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
                square = float((rest**2).mean())
                twice += square / ((len(values) - 1) * count)
                lasting = max(0.0, part - square / ((len(values) - 1) * (episodes - 1)))
                part = lasting + (part - lasting) / times
            parts.append((part, freedom))
    # what is subtracted is an estimate too: never below the largest part
    variance = max(sum(part for part, _ in parts) - twice, *(part for part, _ in parts))
    if variance == 0.0:
        return 0.0, 1.0
    return variance, max(1.0, variance**2 / sum(part**2 / max(count, 1.0) for part, count in parts))


def _variance_of_mean(values: Array) -> tuple[float, float]:
    """Variance of a sample's mean, and its degrees of freedom; (0, 0) for one value."""
    return (float(values.var(ddof=1)) / values.size, values.size - 1.0) if values.size > 1 else (0.0, 0.0)


def probability_of_improvement(
    a: npt.ArrayLike, b: npt.ArrayLike, *, level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Interval:
    """P(b > a) + P(b = a) / 2 of one value drawn from each, with a percentile-bootstrap interval.

    The Mann-Whitney statistic over the product of the sizes (Agarwal et al. 2021).

    Args:
        a: [N] values, for instance one mean a seed.
        b: [M] values.
        level: coverage.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Returns:
        (estimate, low, high); all NaN if one is empty.
    """
    first, second = (np.asarray(x, np.float64).ravel() for x in (a, b))
    if not first.size or not second.size:
        return math.nan, math.nan, math.nan
    wins = np.sign(second[None, :] - first[:, None]) / 2.0 + 0.5
    rng = np.random.default_rng(seed)
    found = np.empty(resamples)
    for index in range(resamples):
        rows, columns = (rng.integers(size, size=size) for size in wins.shape)
        found[index] = wins[np.ix_(rows, columns)].mean()
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(wins.mean()), float(low), float(high)


def area_under_curve(steps: npt.ArrayLike, values: npt.ArrayLike, end: float | None = None) -> float:
    """Mean height of a learning curve from its first step to ``end``, by the trapezium rule.

    Args:
        steps: [N], increasing.
        values: [N].
        end: where the curve is cut, the last point by default; between points it is interpolated.

    Returns:
        The area over the width, in the values' unit; the only value if there is one; NaN if there is none.
    """
    x, y = (np.asarray(v, np.float64) for v in (steps, values))
    if not x.size:
        return math.nan
    stop = float(x[-1] if end is None else min(end, x[-1]))
    inside = x < stop
    x, y = np.append(x[inside], stop), np.append(y[inside], np.interp(stop, x, y))
    return float(((y[1:] + y[:-1]) / 2.0) @ np.diff(x) / (x[-1] - x[0])) if len(x) > 1 else float(y[0])


def episodes_to_decide(a: npt.ArrayLike, b: npt.ArrayLike) -> int | None:
    """How many more episodes would make the interval of :func:`crossed_difference` exclude zero, the seeds being what they are.

    If the episodes to come are like those that were: their part of the variance falls with their number, the seeds' does
    not, but for what of it is left of the episodes, and as it comes to be most of the chance the degrees of freedom fall to the
    seeds'.

    Args:
        a: [S_a, E] values by seed and episode.
        b: [S_b, E], the same episodes.

    Returns:
        0 if it is decided already, ``None`` if no number would do for good: only more seeds would, or all pairs are equal.
    """
    first, second = (np.atleast_2d(np.asarray(x, np.float64)) for x in (a, b))
    mean, low, high = crossed_difference(first, second)
    if low > 0.0 or high < 0.0:
        return 0
    episodes: int = first.shape[1]
    if episodes == 1 or not (second.mean(0) - first.mean(0)).var():
        return None

    def decides(number: float) -> bool:
        variance, freedom = _crossed_variance(first, second, number / episodes)
        return bool(mean**2 > float(student.ppf(0.975, freedom)) ** 2 * variance)

    if not decides(math.inf):
        return None
    least: int = episodes
    most: int = 2 * episodes
    while not decides(most):
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if decides(middle) else (middle, most)
    return most - episodes
