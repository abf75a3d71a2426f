"""The part of LP-DS that acts: a bounded, state-dependent shift of the base noise, in one of several forms."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lpds.errors import LpdsError, unknown_name
from lpds.methods.encoder import make_encoder
from lpds.methods.learner import LatentPolicy
from lpds.nn import EnsembleMLP
from lpds.types import LatentSpec

P = TypeVar("P", bound="ShiftPolicy")


class ShiftPolicy(nn.Module, LatentPolicy):
    """``w = eps + Delta(s)`` (eq. 1), or ``k eps + Delta(s)``, bounded per coordinate and, if asked, per state.

    Delta is an [H, L] matrix of one of these forms; eps is white in all of them:

    - ``full``: every coordinate by itself, ``Delta = b tanh(u(s) / b)``;
    - ``tied``: one [L] shift for all H steps of the chunk;
    - ``lowrank``: ``Delta = B^T C(s)``, C = ``b tanh(u(s) / b)`` [r, L] and B [r, H] a time basis that is learned too. B is
      divided by its largest ``sum_r |B_rh|`` where that exceeds 1, so that b bounds Delta as well. It starts as the first
      r cosines, divided by r: the constant one, which is ``tied``, the half wave, ...
    """

    def __init__(
        self,
        spec: LatentSpec,
        *,
        width: int,
        depth: int,
        activation: str,
        noise_bound: float,
        cap_sq: float,
        generator: torch.Generator,
        shift_form: str = "full",
        shift_rank: int = 1,
        noise_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.spec, self.noise_bound, self.cap_sq, self.noise_scale = spec, noise_bound, cap_sq, noise_scale
        steps, columns = spec.latent_shape
        rows = {"full": steps, "tied": 1, "lowrank": shift_rank}
        if shift_form not in rows:
            raise unknown_name("shift_form", shift_form, rows)
        if rows[shift_form] > steps:
            raise LpdsError(f"shift_rank must be at most {steps}, the steps of the latent, not {shift_rank}")
        self.form, self.rows = shift_form, rows[shift_form]
        self.scaling = make_encoder(spec, generator)
        self.net = EnsembleMLP(1, self.scaling.outputs, self.rows * columns, width, depth, generator, activation)
        self.net.zero_head()
        if shift_form == "lowrank":
            self.basis = nn.Parameter(cosines(self.rows, steps) / self.rows)
        self.register_buffer("mask", spec.free_mask(), persistent=False)
        self.mask: Tensor | None

    def forward(self, obs: Tensor) -> Tensor:
        """Delta(s) [B, H * L] for observations [B, O]."""
        shift: Tensor = self.net(self.scaling(obs).detach()).squeeze(0)
        if math.isfinite(self.noise_bound):
            shift = self.noise_bound * torch.tanh(shift / self.noise_bound)
        if self.form != "full":
            # not @, which multiplies in another order where a gradient is wanted, and so rounds otherwise than what acts
            shift = torch.einsum("rh,brl->bhl", self._over_time(), shift.unflatten(1, (self.rows, -1))).flatten(1)
        if self.mask is not None:
            shift = shift * self.mask
        if math.isfinite(self.cap_sq):
            norm_sq = shift.square().sum(1, keepdim=True)
            shift = shift * torch.rsqrt(torch.clamp(norm_sq / self.cap_sq, min=1.0))
        return shift

    def _over_time(self) -> Tensor:
        """B [r, H]: what of each of the r shifts reaches a step of the chunk."""
        if self.form == "tied":
            return torch.ones(1, self.spec.latent_shape[0], device=self.net.biases[-1].device)
        return self.basis / self.basis.abs().sum(0).amax().clamp(min=1.0)

    @torch.no_grad()
    def shift(self, obs: Tensor, scale: float = 1.0) -> Tensor | None:
        """``scale`` * Delta(s) as [B, H, L], or ``None`` where it is nothing at all."""
        return None if scale == 0.0 else scale * self(obs).unflatten(1, self.spec.latent_shape)

    def latent(self, obs: Tensor, eps: Tensor, scale: float) -> Tensor:
        """``w = (1 - scale (1 - k)) eps + scale * Delta(s)`` [B, H, L]; scale 0 gives eps to the bit."""
        shift = self.shift(obs, scale)
        return eps if shift is None else self.spec.quietened(eps, self.quiet(scale)) + shift

    def with_noise(self: P, noise_scale: float) -> P:
        """The same weights with another k."""
        if noise_scale == self.noise_scale:
            return self
        twin = copy.copy(self)
        twin.noise_scale = noise_scale
        return twin

    def quiet(self, scale: float) -> float:
        """What ``scale`` makes of k: 1, the whole noise, at 0."""
        return 1.0 - scale * (1.0 - self.noise_scale)


def open_shift(kind: type[P], spec: LatentSpec, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> P:
    """Build Delta again from a saved policy; one saved before a setting existed has its default."""
    sizes = {key: settings[key] for key in ("width", "depth", "activation", "noise_bound", "cap_sq")}
    form = {key: settings[key] for key in ("shift_form", "shift_rank") if key in settings}
    k = settings.get("noise_scale", 1.0) * settings.get("eval_noise_scale", 1.0)
    policy = kind(spec, **sizes, **form, noise_scale=k, generator=torch.Generator())
    policy.load_state_dict(dict(tensors))
    return policy.requires_grad_(False)


def cosines(count: int, steps: int) -> Tensor:
    """The first waves of the cosine transform over a chunk, [count, H]; the first is 1 everywhere."""
    order, step = torch.arange(count).unsqueeze(1), torch.arange(steps)
    return torch.cos(math.pi * order * (step + 0.5) / steps)
