"""The trust region of LP-DS: the budget of ``E_s ||Delta(s)||^2`` and the multiplier that holds it (eqs. 5 to 7).

Equation 6 is divided by s, the running mean norm of dQ^W/dw, and alpha is kept as a multiple a of its natural size
s / (2 sqrt(delta)) - the value at which the constraint's gradient balances Q's at ||Delta||^2 = delta. Then
a -> max(0, a + eta (E||Delta||^2 / delta - 1)) is equation 7 with eta_alpha = eta s / (2 delta^1.5), and Delta, a do not
change when every reward is multiplied by a constant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lpds.config import LPDSSettings, delta_to_sum
from lpds.types import Metrics

SMALL_BUDGET = 0.02
"""Delta per free coordinate below which a run says that it is small: hands learned far more with 0.08 than with 0.003."""


class TrustRegion:
    """delta, a and s; what is mutable is in :attr:`scalars`."""

    def __init__(self, settings: LPDSSettings, free_size: int, device: torch.device) -> None:
        """Set the budget for ``free_size`` coordinates that Delta shifts."""
        c = self.settings = settings
        self.free_size, self.delta = free_size, delta_to_sum(c.delta, c.delta_unit, free_size)
        self.alpha = torch.tensor(0.0 if self._unheld else c.alpha_init, device=device)  # the multiple a
        self.q_scale = torch.zeros((), device=device)  # s; zero until the first actor update
        self.ascents = torch.zeros((), dtype=torch.long)  # updates of Delta
        self.scalars = {"alpha": self.alpha, "q_scale": self.q_scale, "ascents": self.ascents}

    def gradient(self, slope: Tensor, shift: Tensor) -> Tensor:
        """Equation 6 over s, which this moves first: dL/dDelta = slope / s - a Delta / sqrt(delta).

        Args:
            slope: dQ^W/dw [B, H * L], zero where Delta cannot go; of LP-DS-A dQ^A/da, [B, T * A].
            shift: Delta(s), of the same shape, detached.

        Returns:
            The gradient, of the same shape.
        """
        norm = slope.norm(dim=1).mean()
        # the first batch sets the scale, the later ones move it
        self.q_scale.copy_(torch.where(self.q_scale == 0, norm, torch.lerp(self.q_scale, norm, self.settings.tau)))
        gradient = slope / self.q_scale.clamp(min=1e-12)
        if self.settings.dual == "off":
            return gradient
        return gradient - (self.alpha / math.sqrt(self._finite)) * shift

    def dual_step(self, mean_sq: Tensor) -> None:
        """Equation 7: a -> max(0, a + eta (E||Delta||^2 / delta - 1)), for the mean square norm of a batch, a scalar."""
        if self.settings.dual == "adaptive":
            self.alpha.add_(self.settings.dual_step * (mean_sq / self.budget - 1.0)).clamp_(min=0.0)

    def told(self, unit: Tensor) -> Metrics:
        """Equation 7's alpha, and s, in units of rewards; Q is ``unit``, a scalar, times larger."""
        alpha = self.alpha * self.q_scale / (2.0 * math.sqrt(self._finite) * unit)
        return {"alpha": alpha, "q_scale": self.q_scale / unit}

    @property
    def _unheld(self) -> bool:
        """Whether nothing pulls Delta back."""
        return self.settings.dual == "off" or (self.settings.dual == "adaptive" and math.isinf(self.delta))

    @property
    def budget(self) -> float:
        """The trust region's delta as it is now."""
        grown = self.settings.delta_updates
        return self.delta * min(1.0, (int(self.ascents) + 1) / grown) if grown else self.delta

    @property
    def _finite(self) -> float:
        return self.budget if math.isfinite(self.budget) else 1.0

    @property
    def remark(self) -> str:
        """What a run should say of it."""
        c, each = self.settings, self.delta / self.free_size
        if c.dual == "fixed":
            return "no trust region holds Delta: a penalty of fixed weight"
        if self._unheld:
            return "no trust region holds Delta: " + ("dual off" if c.dual == "off" else "delta inf")
        grows = f", growing to that over {c.delta_updates:,} updates" if c.delta_updates else ""
        size = f"{each:.1g} for each of {self.free_size} free coordinates"
        told = f"trust region: ||Delta||^2 <= {self.delta:.3g} in the mean, {size}"
        small = "; if that is too little, --delta 0.08 --delta-unit mean (docs/learning.md)" if each < SMALL_BUDGET else ""
        return told + grows + small

    @property
    def ignores(self) -> tuple[str, ...]:
        """Settings of the region that others leave without an effect."""
        c, endless = self.settings, math.isinf(self.delta)
        idle = {
            "dual_step": c.dual != "adaptive" or endless,
            "alpha_init": self._unheld,
            "delta": c.dual == "off" and math.isinf(c.state_cap),
            "delta_unit": endless or (c.dual == "off" and math.isinf(c.state_cap)),
            "delta_updates": c.dual == "off" or endless,
            "state_cap": endless and math.isfinite(c.state_cap),  # a multiple of delta
        }
        return tuple(name for name, is_idle in idle.items() if is_idle)
