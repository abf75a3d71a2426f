"""The part of LP-DS that acts: a bounded, state-dependent shift of the base noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lpds.methods.learner import LatentPolicy
from lpds.nn import EnsembleMLP, Scaling
from lpds.types import LatentSpec


class ShiftPolicy(nn.Module, LatentPolicy):
    """``w = eps + Delta(s)`` (eq. 1), bounded per coordinate and, if asked, per state."""

    def __init__(
        self,
        spec: LatentSpec,
        width: int,
        depth: int,
        activation: str,
        noise_bound: float,
        cap_sq: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.spec, self.noise_bound, self.cap_sq = spec, noise_bound, cap_sq
        self.scaling = Scaling(spec.obs_size)
        self.net = EnsembleMLP(1, spec.obs_size, spec.latent_size, width, depth, generator, activation)
        self.net.zero_head()
        self.register_buffer("mask", spec.free_mask(), persistent=False)
        self.mask: Tensor | None

    def forward(self, obs: Tensor) -> Tensor:
        """Delta(s) [B, H * L] for raw observations [B, O]."""
        shift: Tensor = self.net(self.scaling(obs)).squeeze(0)
        if math.isfinite(self.noise_bound):
            shift = self.noise_bound * torch.tanh(shift / self.noise_bound)
        if self.mask is not None:
            shift = shift * self.mask
        if math.isfinite(self.cap_sq):
            norm_sq = shift.square().sum(1, keepdim=True)
            shift = shift * torch.rsqrt(torch.clamp(norm_sq / self.cap_sq, min=1.0))
        return shift

    @torch.no_grad()
    def shift(self, obs: Tensor, scale: float = 1.0) -> Tensor | None:
        """``scale`` * Delta(s) as [B, H, L], or ``None`` where it is nothing at all."""
        return None if scale == 0.0 else scale * self(obs).unflatten(1, self.spec.latent_shape)

    def latent(self, obs: Tensor, eps: Tensor, scale: float) -> Tensor:
        """``w = eps + scale * Delta(s)`` [B, H, L]; scale 0 gives eps to the bit."""
        shift = self.shift(obs, scale)
        return eps if shift is None else eps + shift
