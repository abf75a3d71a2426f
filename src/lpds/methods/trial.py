"""Whether less noise pays, asked of the training episodes themselves: some sub-environments play as a deployed policy would.

Noise that is turned down (``w = e k eps + Delta(s)``, ``eval_noise_scale`` e) pays once Delta is learned, and may cost before
that. The first q sub-environments collect with e from the end of the warm-up on, the others with all of k, and the last
episodes of both are compared. It costs no step: their transitions are learned from like any other, since equation 2 is
off-policy. An episode that was under way when the warm-up ended belongs to neither.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lpds.methods.learner import LatentPolicy
from lpds.methods.shift import ShiftPolicy
from lpds.types import Decision, Decoder

MEMORY = 10
"""Last episodes of either kind that are compared: many enough for a mean, few enough to be of about today's policy."""
FEWEST = 3
"""Episodes of either kind before anything is concluded."""
MAX_LANES = 4096
"""Sub-environments that can play at once."""


class NoiseTrial:
    """The last returns of either kind, [2, MEMORY], quiet ones second; NaN where there is none yet."""

    def __init__(self, quiet_envs: int) -> None:
        self.quiet_envs = quiet_envs
        self.returns = torch.full((2, MEMORY), math.nan, dtype=torch.float64)
        self.counts = torch.zeros(2, dtype=torch.long)
        self.begun = torch.zeros(MAX_LANES, dtype=torch.bool)  # whether the lane's episode began after the warm-up
        self.scalars = {"trial.returns": self.returns, "trial.counts": self.counts, "trial.begun": self.begun}

    def observe(self, lanes: list[int], returns: list[float]) -> None:
        """Book finished episodes."""
        for lane, total in zip(lanes, returns, strict=True):
            if self.begun[lane]:
                kind = int(lane < self.quiet_envs)
                self.returns[kind, self.counts[kind] % MEMORY] = total
                self.counts[kind] += 1
            self.begun[lane] = True

    @property
    def won(self) -> bool:
        """Whether the quiet episodes return more, on the mean of the last ones."""
        loud, quiet = self.returns.nanmean(1).tolist()
        return bool(self.counts.min() >= FEWEST and quiet > loud)


class TrialPolicy(LatentPolicy):
    """What collects during the trial: the first rows with less of the noise, the others as ``policy`` does."""

    def __init__(self, policy: ShiftPolicy, quiet_envs: int, factor: float) -> None:
        self.policy, self.quiet_envs, self.factor = policy, quiet_envs, factor

    def latent(self, obs: Tensor, eps: Tensor, scale: float) -> Tensor:
        """See :meth:`ShiftPolicy.latent`."""
        return self.policy.latent(obs, self._quietened(eps, scale), scale)

    def act(self, decoder: Decoder, obs: Tensor, eps: Tensor, scale: float) -> Decision:
        """See :class:`lpds.types.Policy`."""
        return self.policy.act(decoder, obs, self._quietened(eps, scale), scale)

    def _quietened(self, eps: Tensor, scale: float) -> Tensor:
        q = self.quiet_envs
        return torch.cat([self.policy.spec.quietened(eps[:q], 1.0 - scale * (1.0 - self.factor)), eps[q:]])
