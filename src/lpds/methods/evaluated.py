"""What of LP-DS is evaluated and saved, where that is not what learns: quieter, or a mean of Delta's weights."""

from __future__ import annotations

import copy

from lpds.config import LPDSSettings
from lpds.methods.shift import ShiftPolicy
from lpds.nn import polyak


class Evaluated:
    """A view on Delta as it learns.

    Without a mean it is Delta itself, whose ``noise_scale`` is then the evaluation's: what collects and learns asks for its own
    (:attr:`ShiftLearner.behaviour`, ``target``).
    """

    def __init__(self, settings: LPDSSettings, online: ShiftPolicy) -> None:
        """Begin at Delta as it is."""
        self.settings, self.online = settings, online
        averaged = bool(settings.eval_average_updates)
        self.policy = copy.deepcopy(online).requires_grad_(False) if averaged else online
        self.turn_down(0)

    def follow(self, ascents: int) -> None:
        """Move towards theta, after t updates by 2 / (t + 2), a mean in which theta_i weighs i + 1, then by 1 / N."""
        if self.policy is not self.online:
            rate = max(2.0 / (ascents + 2), 1.0 / self.settings.eval_average_updates)
            polyak(list(self.policy.parameters()), list(self.online.parameters()), rate)
        self.turn_down(ascents)

    def turn_down(self, ascents: int) -> None:
        """Give it the noise that it has after so many updates of Delta."""
        self.policy.noise_scale = self.settings.noise_scale * self.factor(ascents)

    def factor(self, ascents: int) -> float:
        """Of k, the noise of what learns."""
        c = self.settings
        share = min(1.0, ascents / c.eval_noise_updates) if c.eval_noise_updates else 1.0
        factor: float = 1.0 - share * (1.0 - c.eval_noise_scale)
        return factor
