"""Figures about what acts, computed at a few fixed states with fixed noise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpds.metrics import knn_entropy
from lpds.random import normal
from lpds.types import Decoder, Policy

STATES = 8
"""Warm-up states, evenly spaced, at which the entropy is taken; the same for a whole run."""
SAMPLES = 128
"""Noises per state, the same for all."""
COMPONENTS = 4
"""Dimensions that the estimate is made in at most; a hand's 24 would drown it in bias."""


PICTURES = 16
"""States of whole pictures that are decoded at a time."""
ROWS = STATES * SAMPLES
"""Others that are."""
SHOWN = 64
"""Warm-up states, evenly spaced, that a run folder keeps for its report."""


def probe_rows(first: int, last: int, count: int = STATES) -> Tensor:
    """Pick ``count`` evenly spaced rows of the warm-up's, which are those from ``first`` up to ``last``."""
    return torch.arange(first, last, max(1, (last - first) // count))[:count]


@dataclass(frozen=True)
class FrozenEntropy:
    """What the action entropy of a steered policy is to be set against: the frozen policy's at the same states and noises."""

    entropy: float
    """Nats."""
    axes: npt.NDArray[np.float32] | None
    """[A, COMPONENTS], the leading principal components of its samples about their mean at each state; None for few
    dimensions."""


def frozen_entropy(policy: Policy, decoder: Decoder, obs: Tensor) -> FrozenEntropy:
    """The frozen policy's (``policy`` at scale 0) over a few states [S, O], and the axes that it fixes."""
    samples = _first_actions(policy, decoder, obs, 0.0)
    axes = None
    if samples.shape[2] > COMPONENTS:
        centred = samples - samples.mean(1, keepdims=True)
        axes = np.linalg.svd(centred.reshape(-1, samples.shape[2]), full_matrices=False)[2][:COMPONENTS].T
    return FrozenEntropy(_entropy(samples, axes), axes)


def action_entropy(policy: Policy, decoder: Decoder, obs: Tensor, frozen: FrozenEntropy) -> float:
    """Mean k-NN entropy (k = 3, nats) of the first action of the chunk over a few states [S, O], along ``frozen``'s axes.

    Its difference from the frozen policy's means something, itself it does not: the estimate is biased in many dimensions.
    """
    return _entropy(_first_actions(policy, decoder, obs, 1.0), frozen.axes)


def entropies_lost(policy: Policy, decoder: Decoder, obs: Tensor, ways: Iterable[tuple[float, float]]) -> list[float]:
    """What each way of acting costs in spread: its :func:`action_entropy` less the frozen policy's, nats.

    Args:
        policy: of a method.
        decoder: the frozen policy; it takes one vector.
        obs: [S, O] states.
        ways: scale and factor of eps of each; minus infinity for a way that has one action in every state.
    """
    frozen, lost = frozen_entropy(policy, decoder, obs), []
    for way in ways:
        samples = _first_actions(policy, decoder, obs, *way)
        same = bool(np.ptp(samples, axis=1).max() <= 1e-5 * np.abs(samples).max())  # but for rounding
        lost.append(-math.inf if same else _entropy(samples, frozen.axes) - frozen.entropy)
    return lost


def _first_actions(
    policy: Policy, decoder: Decoder, obs: Tensor, scale: float, noise_scale: float = 1.0
) -> npt.NDArray[np.float32]:
    """[S, SAMPLES, A] under the same noises for every state; the first draw, eps, is the same for every policy, too."""
    spec = decoder.spec
    first = normal("probe", 7, shape=(SAMPLES, 1, *spec.latent_shape))
    further = normal("probe", 8, shape=(SAMPLES, policy.draws - 1, *spec.latent_shape))
    eps = spec.quietened(torch.from_numpy(np.concatenate([first, further], 1)).to(obs.device), noise_scale)
    rows, noises = obs.repeat_interleave(SAMPLES, 0), eps.repeat(len(obs), 1, 1, 1)
    # whole pictures in pieces of an evaluation's size: a thousand at once are gigabytes, and more than a server takes
    piece = PICTURES if decoder.spec.pictures else ROWS
    with torch.no_grad():
        found = [
            policy.act(decoder, rows[start : start + piece], noises[start : start + piece], scale).action[:, 0]
            for start in range(0, len(rows), piece)
        ]
    actions: npt.NDArray[np.float32] = torch.cat(found).unflatten(0, (len(obs), SAMPLES)).cpu().numpy()
    return actions


def _entropy(samples: npt.NDArray[np.float32], axes: npt.NDArray[np.float32] | None) -> float:
    return float(np.mean([knn_entropy(state if axes is None else state @ axes) for state in samples]))
