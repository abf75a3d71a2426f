"""Networks of every method: an ensemble of MLPs in one set of stacked tensors; and Polyak averaging and copies of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EnsembleMLP(nn.Module):
    """``n`` independent MLPs evaluated as one: linear, LayerNorm, activation, ``depth`` times, then a linear head.

    Weights are stacked [n, in, out], so that one batched product serves all members. DSRL's layout is ``"tanh"`` with
    an affine LayerNorm; ``"relu"`` without one is cheaper on a CPU, where tanh costs about as much as a product of 128
    columns. (The bias before the LayerNorm still gives every unit its own offset.)
    """

    def __init__(
        self,
        members: int,
        inputs: int,
        outputs: int,
        width: int,
        depth: int,
        generator: torch.Generator,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self._tanh = activation == "tanh"
        self.members, self.inputs, self.outputs, self.width, self.depth = members, inputs, outputs, width, depth
        sizes = [inputs] + [width] * depth + [outputs]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        self.gains = nn.ParameterList()
        self.offsets = nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            bound = 1.0 / math.sqrt(fan_in)  # torch.nn.Linear's own initial range
            self.weights.append(nn.Parameter(_uniform((members, fan_in, fan_out), bound, generator)))
            self.biases.append(nn.Parameter(_uniform((members, 1, fan_out), bound, generator)))
            if layer < depth and self._tanh:
                self.gains.append(nn.Parameter(torch.ones(members, 1, fan_out)))
                self.offsets.append(nn.Parameter(torch.zeros(members, 1, fan_out)))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in] (shared by the members) to [n, B, out]."""
        h = x.unsqueeze(0).expand(self.members, -1, -1)
        for layer in range(self.depth):
            h = torch.baddbmm(self.biases[layer], h, self.weights[layer])
            h = F.layer_norm(h, (self.width,))
            if self._tanh:
                h = torch.tanh(torch.addcmul(self.offsets[layer], h, self.gains[layer]))
            else:
                h = F.relu_(h)  # in place: LayerNorm's backward needs its input, not its output
        return torch.baddbmm(self.biases[self.depth], h, self.weights[self.depth])

    def zero_head(self) -> None:
        """Set the last layer to zero, so that the output is exactly zero until it is trained."""
        with torch.no_grad():
            self.weights[self.depth].zero_()
            self.biases[self.depth].zero_()


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) * 2.0 - 1.0) * bound


class Scaling(nn.Module):
    """An affine input scaling ``(x - mean) / std``, the identity until it is calibrated."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.outputs = size
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def calibrate(self, x: Tensor) -> None:
        """Take mean and standard deviation of the [N, size] rows; a constant column keeps unit scale."""
        if not x.shape[1]:  # of pictures alone
            return
        std = x.std(0, unbiased=False)
        self.mean.copy_(x.mean(0))
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale [..., size]; far outliers are clipped at ten standard deviations."""
        return ((x - self.mean) / self.std).clamp(-10.0, 10.0)


@torch.no_grad()
def polyak(target: Sequence[Tensor], online: Sequence[Tensor], rate: float) -> None:
    """Move the target weights a share ``rate`` (tau) towards the online ones, in place."""
    torch._foreach_lerp_(list(target), list(online), rate)


def copies(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module, detached and cloned."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
