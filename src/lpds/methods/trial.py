"""Whether less noise pays, asked of the training episodes themselves: some sub-environments play as a deployed policy would.

Noise that is turned down (``w = e k eps + Delta(s)``, ``eval_noise_scale`` e) pays once Delta is learned, and may cost before
that. The first q sub-environments collect with e from the end of the warm-up on, the others with all of k, and the last
episodes of both are compared. It costs no step: their transitions are learned from like any other, since equation 2 is
off-policy. An episode that was under way when the warm-up ended belongs to neither.
"""

from __future__ import annotations

import math
from statistics import fmean

import torch
from torch import Tensor

from lpds.methods.learner import LatentPolicy
from lpds.methods.shift import ShiftPolicy
from lpds.types import Decision, Decoder

MEMORY = 5
"""Last episodes of a sub-environment that are compared. Counted by sub-environment, since all get the same number of steps:
the more of them play one way, the more episodes of it there are, not older ones."""
FEWEST = 3
"""Episodes of either kind before anything is concluded."""
MAX_LANES = 4096
"""Sub-environments that can play at once."""


class NoiseTrial:
    """The last returns of every sub-environment, [MAX_LANES, MEMORY], the quiet ones first; NaN where there is none yet."""

    def __init__(self, quiet_envs: int) -> None:
        self.quiet_envs = quiet_envs
        self.returns = torch.full((MAX_LANES, MEMORY), math.nan, dtype=torch.float64)
        self.counts = torch.full((MAX_LANES,), -1, dtype=torch.long)  # -1: its episode began before the end of the warm-up
        self.scalars = {"trial.returns": self.returns, "trial.counts": self.counts}

    def observe(self, lanes: list[int], returns: list[float]) -> None:
        """Book finished episodes."""
        for lane, total in zip(lanes, returns, strict=True):
            if self.counts[lane] >= 0:
                self.returns[lane, self.counts[lane] % MEMORY] = total
            self.counts[lane] += 1

    @property
    def won(self) -> bool:
        """Whether the quiet episodes return more, on the mean of the last ones."""
        kinds = self.returns[: self.quiet_envs], self.returns[self.quiet_envs :]
        quiet, loud = ([total for total in kind.flatten().tolist() if not math.isnan(total)] for kind in kinds)
        return min(len(quiet), len(loud)) >= FEWEST and fmean(quiet) > fmean(loud)


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
