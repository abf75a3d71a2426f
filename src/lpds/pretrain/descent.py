"""The gradient steps of a clone: AdamW under a cosine rate, and a running mean of the weights, which is what is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class Rates(Protocol):
    """What settings say of them."""

    @property
    def steps(self) -> int:
        """Gradient steps in all."""
        ...

    @property
    def lr(self) -> float:
        """Of the first step."""
        ...

    @property
    def lr_final(self) -> float:
        """Of the last."""
        ...

    @property
    def weight_decay(self) -> float:
        """AdamW's."""
        ...

    @property
    def ema(self) -> float:
        """Decay, per step, of the running mean."""
        ...


class Descent:
    """One training's optimiser and averaged weights."""

    def __init__(self, parameters: Sequence[nn.Parameter], rates: Rates, *, clip: float = math.inf) -> None:
        """Begin at the parameters as they are; gradients are cut to the norm ``clip``."""
        self._parameters, self._rates, self._clip = list(parameters), rates, clip
        self.averaged = [parameter.detach().clone() for parameter in self._parameters]
        self.optimiser = torch.optim.AdamW(self._parameters, lr=rates.lr, weight_decay=rates.weight_decay, fused=True)

    def step(self, number: int, loss: Tensor) -> None:
        """Gradient step ``number``, counted from 0."""
        c = self._rates
        share = 0.5 * (1 + math.cos(math.pi * number / c.steps))
        self.optimiser.param_groups[0]["lr"] = c.lr_final + (c.lr - c.lr_final) * share
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if math.isfinite(self._clip):
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self.optimiser.step()
        # a short memory at first, so that the initial weights do not linger
        rate = max(1.0 - c.ema, 1.0 / (1.0 + number))
        torch._foreach_lerp_(self.averaged, [parameter.detach() for parameter in self._parameters], rate)

    def keep_mean(self) -> None:
        """Put the averaged weights in the place of the last."""
        with torch.no_grad():
            for parameter, mean in zip(self._parameters, self.averaged, strict=True):
                parameter.copy_(mean)


def smoothed(running: Tensor, loss: Tensor) -> None:
    """Update the running loss that a progress bar shows, a scalar that begins as NaN, in place."""
    value = loss.detach().double()
    running.copy_(torch.where(running.isnan(), value, 0.95 * running + 0.05 * value))
