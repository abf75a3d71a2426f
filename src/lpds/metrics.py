"""Entropy, modes and typicality: pure functions of samples."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln

TIE_FLOOR = 1e-6
"""Smallest neighbour distance that counts: clipped actions coincide, and log 0 would be minus infinity."""


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
        ValueError: not more than k samples, or one that is not finite.
    """
    points = np.asarray(x, np.float64)
    points = points[:, None] if points.ndim == 1 else points.reshape(len(points), -1)
    n, d = points.shape
    if n <= k or k < 1:
        raise ValueError(f"k = {k} neighbours need more than {k} samples and k >= 1, got {n} samples")
    if not np.isfinite(points).all():
        raise ValueError("samples hold NaN or infinity")
    distance = cKDTree(points).query(points, k=k + 1)[0][:, k]
    log_volume = d / 2 * math.log(math.pi) - float(gammaln(d / 2 + 1))
    return float(digamma(n) - digamma(k) + log_volume + d * np.log(np.maximum(distance, floor)).mean())
