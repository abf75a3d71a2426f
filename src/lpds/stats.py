"""Intervals and paired comparisons."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Interval = tuple[float, float, float]
"""(estimate, low, high)."""

Z95 = 1.959963984540054


def bootstrap_mean(x: npt.ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of a sample with a percentile-bootstrap interval.

    Args:
        x: [N] values; NaN are left out.
        level: coverage.
        resamples: number of bootstrap samples.
        seed: of the resampling, so that a report is the same twice.

    Returns:
        (mean, low, high); all NaN for an empty sample.
    """
    values = np.asarray(x, np.float64)
    values = values[~np.isnan(values)]
    if values.size == 0:
        return math.nan, math.nan, math.nan
    draws = np.random.default_rng(seed).integers(values.size, size=(resamples, values.size))
    means = values[draws].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high)


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's 95 % score interval of a proportion, as (share, low, high)."""
    if trials == 0:
        return math.nan, math.nan, math.nan
    z2, p = Z95**2, successes / trials
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    # the ends never cross the share itself, as rounding would have it at 0 and 1
    return p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, *, seed: int = 0) -> Interval:
    """Mean of ``b - a`` over pairs with a bootstrap interval; the pairs share seed and noise."""
    return bootstrap_mean(np.asarray(b, np.float64) - np.asarray(a, np.float64), seed=seed)
