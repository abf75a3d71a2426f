"""Figures about what acts, computed at a few fixed states with fixed noise."""

from __future__ import annotations

import numpy as np
import torch

from lpds.metrics import knn_entropy
from lpds.random import normal
from lpds.replay import Replay
from lpds.types import Decoder, Policy

STATES = 8
"""Warm-up states, evenly spaced, at which the entropy is taken; the same for a whole run."""
SAMPLES = 128
"""Noises per state, the same for all."""


def action_entropy(policy: Policy, decoder: Decoder, replay: Replay) -> float:
    """Mean k-NN entropy (k = 3, nats) of the first action of the chunk over a few warm-up states.

    Compare with the frozen policy's under the same protocol only: the estimate is biased in many dimensions.
    """
    spec = decoder.spec
    first = replay.everything("obs")[: 100 * STATES]
    obs = first[:: max(1, len(first) // STATES)][:STATES]
    eps = torch.from_numpy(normal("probe", 7, shape=(SAMPLES, *spec.latent_shape))).to(obs.device)
    rows = obs.repeat_interleave(SAMPLES, 0)
    with torch.no_grad():
        w = policy.latent(rows, eps.repeat(len(obs), 1, 1), 1.0)
        action = decoder.decode(decoder.prepare(rows), w)[:, 0].unflatten(0, (len(obs), SAMPLES))
    return float(np.mean([knn_entropy(samples) for samples in action.cpu().numpy()]))
