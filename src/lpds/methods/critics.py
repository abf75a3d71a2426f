"""The value networks of DPPO's code base: a residual MLP for V and plain ones for Q, with Mish and no LayerNorm.

Both read normalised observations, and Q the normalised executed chunk behind them. Initial weights come from a generator.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FAR = 10.0
"""Bound of a normalised observation in what the critics read: a coordinate that was constant in the data may leave it by
millions."""


def linear(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with torch's own initial range, drawn from a generator."""
    layer = torch.nn.utils.skip_init(nn.Linear, fan_in, fan_out)
    bound = 1.0 / math.sqrt(fan_in)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2.0 - 1.0) * bound)
    out: nn.Linear = layer
    return out


class ResidualBlock(nn.Module):
    """h + l2(mish(l1(mish(h))))."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.l1, self.l2 = linear(width, width, generator), linear(width, width, generator)

    def forward(self, h: Tensor) -> Tensor:
        """One pre-activation residual step."""
        out: Tensor = h + self.l2(F.mish(self.l1(F.mish(h))))
        return out


class ValueMLP(nn.Module):
    """V(s): input layer, residual blocks of two layers (one for depth 3, as released), output layer."""

    def __init__(self, inputs: int, width: int, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        blocks = [ResidualBlock(width, generator) for _ in range(max(1, depth // 2))]
        self.layers = nn.ModuleList([linear(inputs, width, generator), *blocks, linear(width, 1, generator)])

    def forward(self, obs: Tensor) -> Tensor:
        """[B, O] to [B]."""
        h = obs.clamp(-FAR, FAR)
        for layer in self.layers:
            h = layer(h)
        return h.squeeze(-1)


class TwinQ(nn.Module):
    """Q_1 and Q_2 of (s, a): plain MLPs."""

    def __init__(self, inputs: int, width: int, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [inputs] + [width] * depth
        self.heads = nn.ModuleList()
        for _ in range(2):
            layers: list[nn.Module] = []
            for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
                layers += [linear(fan_in, fan_out, generator), nn.Mish()]
            self.heads.append(nn.Sequential(*layers, linear(width, 1, generator)))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """[B, O] and [B, T * A] to [2, B]."""
        x = torch.cat([obs.clamp(-FAR, FAR), action], dim=1)
        return torch.stack([head(x).squeeze(-1) for head in self.heads])


def twin_loss(q: Tensor, target: Tensor) -> Tensor:
    """Sum over the heads [2, B] of the mean squared error to one target [B]."""
    return (q - target).square().mean(1).sum()
