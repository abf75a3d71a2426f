"""The part of DSRL that acts: a squashed Gaussian over the initial noise."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from lpds.config import DSRLSACSettings
from lpds.methods.learner import LatentPolicy
from lpds.nn import EnsembleMLP, Scaling
from lpds.types import Decision, Decoder, LatentSpec

HALF_LOG_TAU = 0.5 * math.log(2.0 * math.pi)
FALLING = 0.75
"""Share of the fall that a learned temperature could have had at most, from which on that is said."""


class GaussianLatentPolicy(nn.Module, LatentPolicy):
    """``w = b tanh(mu(s) + sigma(s) eps)``."""

    def __init__(self, spec: LatentSpec, settings: DSRLSACSettings, generator: torch.Generator) -> None:
        super().__init__()
        c, outputs = settings, 2 * spec.latent_size
        self.spec, self.box, self.deterministic = spec, c.box, c.deterministic_eval
        self.scaling = input_scaling(spec.obs_size, c.input_scaling)
        self.net = EnsembleMLP(1, spec.obs_size, outputs, c.width, c.depth, generator, c.activation)
        self.register_buffer("mask", spec.free_mask(), persistent=False)
        self.mask: Tensor | None

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log sigma [B, H * L] for raw observations [B, O]."""
        mean, log_std = self.net(self.scaling(obs)).squeeze(0).chunk(2, dim=1)
        return mean, log_std.clamp(-20.0, 2.0)

    def sample(self, obs: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled latent a [B, H * L] for [B, O] and standard normal [B, H * L], and log pi(a | s) [B]."""
        mean, log_std = self(obs)
        a = torch.tanh(mean + log_std.exp() * eps)
        log_prob = -0.5 * eps.square() - log_std - HALF_LOG_TAU - torch.log(1.0 - a.square() + 1e-6)
        if self.mask is not None:
            a, log_prob = torch.where(self.mask > 0.0, a, eps / self.box), log_prob * self.mask
        return a, log_prob.sum(1)

    def sampling(self) -> GaussianLatentPolicy:
        """The same weights, never deterministic."""
        twin = copy.copy(self)
        twin.deterministic = False
        return twin

    def latent(self, obs: Tensor, eps: Tensor, scale: float) -> Tensor:
        """``sqrt(1 - scale^2) eps + scale w`` [B, H, L]; scale 0 gives eps to the bit."""
        if scale == 0.0:
            return eps
        flat = eps.flatten(1)
        mean, log_std = self(obs)
        w = self.box * torch.tanh(mean if self.deterministic else mean + log_std.exp() * flat)
        if scale < 1.0:
            w = math.sqrt(1.0 - scale**2) * flat + scale * w
        if self.mask is not None:
            w = torch.where(self.mask > 0.0, w, flat)
        out: Tensor = w.unflatten(1, self.spec.latent_shape)
        return out

    def act(self, decoder: Decoder, obs: Tensor, eps: Tensor, scale: float) -> Decision:
        """Decode w of states [B, O] and noises [B, 1, H, L], and keep w / b [B, H * L] beside the chunk."""
        w = self.latent(obs, eps[:, 0], scale)
        return Decision(decoder.decode(decoder.prepare(obs), w), w, {"latent": w.flatten(1) / self.box})


def input_scaling(size: int, wanted: bool) -> nn.Module:
    """An affine scaling, or nothing at all: raw inputs are not clipped."""
    return Scaling(size) if wanted else nn.Identity()


def falling(log_alpha: Tensor, optimiser: torch.optim.Adam) -> str:
    """What is to be said of a learned temperature that fell as fast as Adam steps for most of its updates; mostly nothing.

    While it falls so, the entropy is what decides: on Adroit's hands, at one update for two decisions, for 80,000 of 100,000
    steps (docs/rivals.md).

    Args:
        log_alpha: its logarithm [1], which began at 0.
        optimiser: its own.
    """
    steps = float(optimiser.state.get(log_alpha, {}).get("step", 0.0))
    fell, most = -float(log_alpha.detach()), optimiser.param_groups[0]["lr"] * steps
    if not steps or fell < FALLING * most:
        return ""
    return (
        f"its learned temperature fell nearly all the time as fast as it can, from 1 to {math.exp(-fell):.2g}: until it is "
        "small beside what is earned, entropy decides what is done; more updates, or a fixed --temperature, end that"
    )
