"""Entropy, modes and typicality: pure functions of samples."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln
from scipy.stats import chi, chi2, kstest

TIE_FLOOR = 1e-6
"""Smallest neighbour distance that counts: clipped actions coincide, and log 0 would be minus infinity."""


def _array(x: Any) -> npt.NDArray[np.float64]:
    """As float64; a tensor of any kind, wherever it is and whatever depends on it."""
    return np.asarray(x.detach().cpu().double() if hasattr(x, "detach") else x, np.float64)


def knn_entropy(x: npt.ArrayLike, k: int = 3, *, floor: float = TIE_FLOOR) -> float:
    """Kozachenko-Leonenko estimate of differential entropy, in nats.

    ``psi(N) - psi(k) + log V_d + (d / N) sum_i log r_i`` with r_i the distance to the k-th neighbour and V_d the volume of
    the unit ball. Biased in many dimensions: compare equal N and d only.

    Args:
        x: [N, d] samples (or [N] of a scalar), N > k.
        k: neighbour.
        floor: smallest r_i, so that ties do not give minus infinity.

    Returns:
        Entropy in nats.

    Raises:
        ValueError: not more than k samples, samples of no dimension, or one that is not finite.
        TypeError: a k that is no whole number.
    """
    points, k = _array(x), operator.index(k)
    n = len(points) if points.ndim else 0
    if n <= k or k < 1:
        raise ValueError(f"k = {k} neighbours need more than {k} samples and k >= 1, got {n} samples")
    points = points.reshape(n, -1)
    d = points.shape[1]
    if not d:
        raise ValueError(f"samples have no coordinates: {list(np.shape(x))}")
    if not np.isfinite(points).all():
        raise ValueError("samples hold NaN or infinity")
    distance = cKDTree(points).query(points, k=k + 1)[0][:, k]
    log_volume = d / 2 * math.log(math.pi) - float(gammaln(d / 2 + 1))
    return float(digamma(n) - digamma(k) + log_volume + d * np.log(np.maximum(distance, floor)).mean())


def mode_shares(x: npt.ArrayLike, centres: npt.ArrayLike, radius: float = math.inf) -> npt.NDArray[np.float64]:
    """Share of samples that belong to every known mode.

    Args:
        x: [N, d] samples.
        centres: [K, d], one point a mode.
        radius: a sample farther than this from its nearest centre belongs to none.

    Returns:
        [K] shares of all N samples; they add up to 1 less the share that belongs to none.

    Raises:
        ValueError: no samples.
    """
    points, known = _array(x), _array(centres)
    if not len(points):
        raise ValueError("shares of no samples")
    distance, nearest = cKDTree(known).query(points)
    return np.bincount(nearest[distance <= radius], minlength=len(known)) / len(points)


def mode_coverage(shares: npt.ArrayLike, at_least: float = 0.05) -> int:
    """Number of modes that hold at least this share of the samples."""
    return int((np.asarray(shares, np.float64) >= at_least - 1e-12).sum())


@dataclass(frozen=True)
class Typicality:
    """Whether latents look like draws from the decoder's prior N(0, I)."""

    norm: float
    """Mean of ``||w||``."""
    prior_norm: float
    """Its value under the prior: the mean of a chi distribution with H * L degrees."""
    ks: float
    """Kolmogorov-Smirnov distance of ``||w||^2`` from chi-squared with H * L degrees, 0 to 1."""
    p_value: float
    """Probability of so large a distance for N draws from the prior."""
    autocorrelation: float
    """Mean over latent columns of the lag-1 correlation along the chunk; 0 for white noise, 1 for a repeated row; NaN for
    chunks of one row."""


def typicality(w: npt.ArrayLike) -> Typicality:
    """Compare latents with the prior they should come from.

    Args:
        w: [N, H, L].

    Returns:
        Norm, distance from the chi-squared distribution and correlation along the chunk. The correlation is about zero, the
        prior's mean, not about the samples' own: a constant shift along the chunk is a correlation.

    Raises:
        ValueError: no latents, or of another form.
    """
    latents = _array(w)
    if latents.ndim != 3 or not latents.size:
        raise ValueError(f"latents must be [N, H, L], none of them 0, not {list(latents.shape)}")
    n, h, size = latents.shape
    squares = np.square(latents).reshape(n, -1).sum(1)
    test = kstest(squares, chi2(h * size).cdf)
    correlation = math.nan
    if h > 1:
        products, power = (latents[:, 1:] * latents[:, :-1]).mean((0, 1)), np.square(latents).mean((0, 1))
        correlation = float(np.mean(products / np.maximum(power, TIE_FLOOR**2)))
    return Typicality(
        float(np.sqrt(squares).mean()), float(chi(h * size).mean()), float(test.statistic), float(test.pvalue), correlation
    )


def share_beyond(delta_sq: npt.ArrayLike, delta: float) -> float:
    """Share of states whose own ``||Delta(s)||^2`` [N] exceeds the budget, which bounds only their mean.

    NaN for no states, and where one of them is NaN: a Delta that diverged is not within its budget.
    """
    sizes = np.asarray(delta_sq, np.float64)
    return math.nan if not sizes.size or np.isnan(sizes).any() else float((sizes > delta).mean())


def quiet_nats(k: float, free: int) -> float:
    """What k of ``w = k eps + Delta`` costs beside Delta, KL(N(0, k^2 I) || N(0, I)) over D free coordinates; inf at 0."""
    return free * (0.5 * (k * k - 1.0) - math.log(k)) if k > 0.0 else math.inf
