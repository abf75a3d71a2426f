"""LP-DS-A, the paper's own ablation: the same residual, bound, trust region and loop, on the decoded action.

    a = clip(Phi(s, eps) + h Delta_theta(s)),   maximise E[ Q^A(s, a) ] subject to E_s ||Delta_theta(s)||^2 <= delta

h is half the range of the decoder's actions, so that Delta is in normalised action units (1, and nothing clipped, where the
decoder knows no range, as one wrapped without ``action_range`` does not). The gradient goes straight
through Q^A; there is no latent critic. delta is no KL here: an action that was moved is off the decoder's distribution
however little it was moved, and the same number allows another change than in the latent. Everything else - target,
dual, warm start, scaling - is :mod:`lpds.methods.lpds`, by inheritance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lpds.config import LPDSASettings
from lpds.methods.lpds import LPDS
from lpds.methods.shift import ShiftPolicy, open_shift
from lpds.types import Batch, Decision, Decoder, LatentSpec, Metrics, Shape


class ActionShiftPolicy(ShiftPolicy):
    """The residual on the chunk."""

    def act(self, decoder: Decoder, obs: Tensor, eps: Tensor, scale: float) -> Decision:
        """Decode eps and add ``scale`` * h * Delta(s); see :class:`lpds.types.Policy`."""
        w = decoder.spec.quietened(eps[:, 0], self.quiet(scale))
        action = decoder.decode(decoder.prepare(obs), w)
        if scale != 0.0:
            action = shifted_action(decoder, action, scale * self(obs).unflatten(1, decoder.spec.action_shape))
        return Decision(action, w)

    def shift(self, obs: Tensor, scale: float = 1.0) -> Tensor | None:
        """The noise itself is not shifted."""
        return None


class LPDSA(LPDS):
    """The learner: Delta, Q^A, alpha and their slow copies."""

    policy_kind = ActionShiftPolicy
    shifts = "action"
    ignores = ("kept_noises", "distill_noises")

    def __init__(self, settings: LPDSASettings, decoder: Decoder, *, generator: torch.Generator, device: torch.device) -> None:
        """Build the networks; see :class:`lpds.methods.lpds.LPDS`."""
        super().__init__(settings, decoder, generator=generator, device=device)
        del self.q_latent, self.adam_latent, self.state.modules["q_latent"], self.state.optimisers["q_latent"]
        low, high = decoder.action_range()  # its budget is in units of actions
        unknown = (
            "the decoder knows no range of its actions: Delta is in the environment's own units, and nothing is clipped "
            "(wrap_decoder(..., action_range=) gives it one)"
        )
        self.remark = "" if bool(torch.isfinite(high - low).all()) else unknown
        self.kept_noises, self.decodes = 0, True  # its actor decodes, whatever is kept

    def noise_shapes(self, batch_size: int) -> dict[str, Shape]:
        """Standard normal tensors that one update consumes."""
        return {name: shape for name, shape in super().noise_shapes(batch_size).items() if name != "base"}

    @torch.no_grad()
    def diagnose(self, batch: Batch, noise: dict[str, Tensor]) -> Metrics:
        """The tail of ||Delta||^2."""
        norm_sq = self.online(batch.obs).square().sum(1)
        return {
            "delta_sq_p95": torch.quantile(norm_sq, 0.95),
            "delta_sq_beyond": (norm_sq > self.region.budget).float().mean(),
        }

    def _ascend(self, batch: Batch, obs: Tensor, eps: Tensor) -> Metrics:
        metrics = super()._ascend(batch, obs, eps)
        return {key: value for key, value in metrics.items() if key not in ("q_latent", "kl_nats")}

    def _distill(self, batch: Batch, obs: Tensor, noise: dict[str, Tensor]) -> Metrics:
        return {}

    def _shifted_spec(self) -> LatentSpec:
        return _action_spec(self.decoder)

    def _steered(self, obs: Tensor, eps: Tensor, shift: Tensor) -> Tensor:
        action = self._decode(obs, self._quietened(eps)).unflatten(1, self.decoder.spec.action_shape)
        return shifted_action(self.decoder, action, shift.view_as(action)).flatten(1)

    def _shifted_value(self, batch: Batch, obs: Tensor, eps: Tensor, shift: Tensor) -> Tensor:
        return self._value(self.q_action, obs, self._steered(batch.obs, eps, shift))

    @staticmethod
    def open_policy(decoder: Decoder, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ActionShiftPolicy:
        """Build Delta again from a saved policy."""
        return open_shift(ActionShiftPolicy, _action_spec(decoder), settings, tensors)


def _action_spec(decoder: Decoder) -> LatentSpec:
    """Shapes with the chunk in the latent's place, all of it free."""
    return replace(decoder.spec, latent_shape=decoder.spec.action_shape, free=None)


def shifted_action(decoder: Decoder, action: Tensor, shift: Tensor) -> Tensor:
    """``clip(a + h Delta)`` for [B, T, A]; h is 1 and nothing is clipped where the decoder knows no range."""
    low, high = (edge.to(action.device) for edge in decoder.action_range())
    half = torch.where(torch.isfinite(high - low), (high - low) / 2.0, torch.ones_like(low))
    return torch.minimum(torch.maximum(action + half * shift, low), high)
