"""Figures about what acts, computed at a few fixed states with fixed noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lpds.metrics import knn_entropy
from lpds.random import normal
from lpds.types import Decoder, Policy

STATES = 8
"""Warm-up states, evenly spaced, at which the entropy is taken; the same for a whole run."""
SAMPLES = 128
"""Noises per state, the same for all."""


SHOWN = 64
"""Warm-up states, evenly spaced, that a run folder keeps for its report."""


def probe_rows(first: int, last: int, count: int = STATES) -> Tensor:
    """Pick ``count`` evenly spaced rows of the warm-up's, which are those from ``first`` up to ``last``."""
    return torch.arange(first, last, max(1, (last - first) // count))[:count]


def action_entropy(policy: Policy, decoder: Decoder, obs: Tensor) -> float:
    """Mean k-NN entropy (k = 3, nats) of the first action of the chunk over a few states [S, O].

    Compare with the frozen policy's under the same protocol only: the estimate is biased in many dimensions.
    """
    spec = decoder.spec
    eps = torch.from_numpy(normal("probe", 7, shape=(SAMPLES, policy.draws, *spec.latent_shape))).to(obs.device)
    rows = obs.repeat_interleave(SAMPLES, 0)
    with torch.no_grad():
        decision = policy.act(decoder, rows, eps.repeat(len(obs), 1, 1, 1), 1.0)
        action = decision.action[:, 0].unflatten(0, (len(obs), SAMPLES))
    return float(np.mean([knn_entropy(samples) for samples in action.cpu().numpy()]))
