"""How the critics and Delta see a state: scaled numbers, and pictures through a small convolutional network.

The network is trained by the action critic's loss alone, on pictures shifted by up to four pixels (Yarats et al. 2021, DrQ);
whatever else sees its output sees it without a gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpds.nn import Scaling
from lpds.types import LatentSpec

CODE, CHANNELS, LAYERS = 64, 32, 4
PAD = 4
"""Pixels that a picture is shifted by at most, its edge repeated."""


class PictureNetwork(nn.Module):
    """Pictures [B, C, H, W] of bytes to codes [B, 64]: four strided 3x3 convolutions, one linear layer, LayerNorm, tanh."""

    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator) -> None:
        super().__init__()
        channels, height, width = shape
        self.convolutions = nn.ModuleList()
        for layer in range(LAYERS):
            self.convolutions.append(nn.Conv2d(channels if layer == 0 else CHANNELS, CHANNELS, 3, stride=2, padding=1))
            height, width = (height + 1) // 2, (width + 1) // 2
        self.head = nn.Linear(CHANNELS * height * width, CODE)
        with torch.no_grad():
            for parameter in self.parameters():  # He's range for weights under relu, from the run's own generator
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
                bound = math.sqrt(6.0 / fan_in) if fan_in else 0.0
                parameter.copy_((2.0 * torch.rand(parameter.shape, generator=generator) - 1.0) * bound)

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, C, H, W] with values 0 to 255 to [B, 64]."""
        h = pictures / 255.0 - 0.5
        for convolution in self.convolutions:
            h = F.relu(convolution(h))
        return torch.tanh(F.layer_norm(self.head(h.flatten(1)), (CODE,)))


class Encoder(nn.Module):
    """States [B, O], whose last columns are pictures, to [B, V + 64 for each picture]."""

    def __init__(self, spec: LatentSpec, generator: torch.Generator) -> None:
        super().__init__()
        self._spec = spec
        self.scaling = Scaling(spec.vector_size)
        self.networks = nn.ModuleList(PictureNetwork(shape, generator) for shape in spec.pictures)
        self.outputs = spec.vector_size + CODE * len(spec.pictures)

    def calibrate(self, obs: Tensor) -> None:
        """Take mean and deviation of the numbers from rows [N, V or more]."""
        self.scaling.calibrate(obs[:, : self._spec.vector_size])

    def forward(self, obs: Tensor) -> Tensor:
        """Encode [B, O]."""
        numbers, *pictures = split_pictures(obs, self._spec)
        codes = [network(picture) for network, picture in zip(self.networks, pictures, strict=True)]
        return torch.cat([self.scaling(numbers), *codes], 1)


def make_encoder(spec: LatentSpec, generator: torch.Generator) -> Scaling | Encoder:
    """A scaling for states without pictures, which draws nothing; else an encoder."""
    return Encoder(spec, generator) if spec.pictures else Scaling(spec.obs_size)


def split_pictures(obs: Tensor, spec: LatentSpec) -> list[Tensor]:
    """The numbers [B, V] of states [B, O], then each picture [B, C, H, W]."""
    sizes = [spec.vector_size, *(math.prod(shape) for shape in spec.pictures)]
    numbers, *pictures = obs.split(sizes, 1)
    return [numbers, *(picture.unflatten(1, shape) for picture, shape in zip(pictures, spec.pictures, strict=True))]


def shifted_pictures(obs: Tensor, spec: LatentSpec, noise: Tensor) -> Tensor:
    """States [B, O] whose pictures are moved by whole pixels, uniform in -4 .. 4 both ways; all of a row alike.

    Args:
        obs: [B, O].
        spec: says where the pictures are.
        noise: standard normal [B, 2].
    """
    numbers, *pictures = split_pictures(obs, spec)
    moves = (torch.special.ndtr(noise) * (2 * PAD + 1)).long().clamp(max=2 * PAD) - PAD
    row = torch.arange(len(obs), device=obs.device)[:, None, None]
    moved = [numbers]
    for picture in pictures:
        down, across = (
            (torch.arange(size, device=obs.device) + moves[:, axis : axis + 1]).clamp(0, size - 1)
            for axis, size in enumerate(picture.shape[2:])
        )
        # advanced indices on both sides of a slice put the picture's channels last
        moved.append(picture[row, :, down[:, :, None], across[:, None, :]].movedim(-1, 1).flatten(1))
    return torch.cat(moved, 1)
