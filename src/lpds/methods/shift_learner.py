"""What LP-DS has and keeps: networks, optimisers, what acts, what is saved. The algorithm is :mod:`lpds.methods.lpds`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from lpds.config import LPDSSettings
from lpds.methods.evaluated import Evaluated
from lpds.methods.learner import Learner
from lpds.methods.shift import ShiftPolicy, open_shift
from lpds.methods.state import adam
from lpds.methods.trust_region import TrustRegion
from lpds.metrics import quiet_nats
from lpds.nn import EnsembleMLP, Scaling, copies
from lpds.types import Decoder, LatentSpec, Shape


class ShiftLearner(Learner[ShiftPolicy]):
    """A learner of Delta (``online``; ``policy`` is what is evaluated) with a critic of chunks and one of latents."""

    policy_kind: type[ShiftPolicy] = ShiftPolicy
    sees_pictures = True
    shifts = "noise"

    def __init__(self, settings: LPDSSettings, decoder: Decoder, *, generator: torch.Generator, device: torch.device) -> None:
        """Build the networks.

        Args:
            settings: see :class:`LPDSSettings`.
            decoder: frozen; only called.
            generator: draws the initial weights.
            device: of everything.

        Raises:
            LpdsError: a ``shift_rank`` beyond the latent's steps.
        """
        super().__init__()
        c, spec = settings, decoder.spec
        self.settings, self.decoder = c, decoder
        self.kept_noises, self.drawn_noises = c.kept_noises, c.distill_noises
        kept = c.target_actions == "kept" or (c.target_actions == "auto" and not decoder.decodes_states)
        self.kept_next = c.kept_next if kept else 0
        self.decodes = not (self.kept_noises and self.kept_next)
        shifted = self._shifted_spec()
        self.region = TrustRegion(c, shifted.free_size, device)
        self.remark, self.ignores = self.region.remark, (*type(self).ignores, *_idle(c, kept), *self.region.ignores)
        d, a, k = spec.latent_size, spec.action_size, c.noise_scale
        self._quiet_nats = quiet_nats(k, spec.free_size)

        def shift_policy() -> ShiftPolicy:
            return self.policy_kind(
                shifted,
                width=c.width,
                depth=c.depth,
                activation=c.activation,
                noise_bound=c.noise_bound,
                cap_sq=c.state_cap * self.region.delta,
                generator=generator,
                shift_form=c.shift_form,
                shift_rank=c.shift_rank,
                noise_scale=k,
            )

        self.online = shift_policy().to(device)
        self.slow_policy = shift_policy().to(device).requires_grad_(False)

        def critic(inputs: int) -> EnsembleMLP:
            return EnsembleMLP(c.critics, inputs, 1, c.width, c.depth, generator, c.activation).to(device)

        o = self.online.scaling.outputs
        self.q_action, self.q_latent = critic(o + a), critic(o + d)
        self.q_slow = critic(o + a).requires_grad_(False)
        self.slow_policy.load_state_dict(self.online.state_dict())
        self.q_slow.load_state_dict(self.q_action.state_dict())
        self.slow = [*self.q_slow.parameters(), *self.slow_policy.parameters()]
        self.fast = [*self.q_action.parameters(), *self.online.parameters()]
        self.action_scaling = Scaling(a).to(device)
        self._evaluated = Evaluated(c, self.online)
        self.policy = self._evaluated.policy

        parts = ("slow_policy", "q_action", "q_slow", "q_latent", "action_scaling")
        self.state.modules = {"policy": self.online, **{name: getattr(self, name) for name in parts}}
        if self.policy is not self.online:
            self.state.modules["mean_policy"] = self.policy
        self.adam_action = adam(nn.ModuleList([self.q_action, self.online.scaling]), c.lr)
        self.adam_latent = adam(self.q_latent, c.lr)
        self.adam_shift = adam(self.online, c.actor_lr, without=self.online.scaling)
        self.state.optimisers = {"q_action": self.adam_action, "q_latent": self.adam_latent, "policy": self.adam_shift}
        self.reward_scale = torch.ones((), device=device)  # Q's unit; every metric is told in reward units
        self.state.scalars = {**self.region.scalars, "reward_scale": self.reward_scale}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore everything; what is evaluated has its noise again. An older checkpoint did not count ``ascents``."""
        super().load_tensors({"ascents": torch.zeros_like(self.region.ascents), **tensors})
        self._evaluated.turn_down(int(self.region.ascents))

    def noise_shapes(self, batch_size: int) -> dict[str, Shape]:
        """Standard normal tensors that one update consumes."""
        d = self.decoder.spec.latent_size
        shapes: dict[str, Shape] = {} if self.kept_next else {"next": (batch_size, d)}
        shapes["actor"] = (batch_size, d)
        if not self.kept_noises:
            shapes["base"] = (batch_size, self.settings.distill_noises, d)
        if self.decoder.spec.pictures:
            shapes["moves"] = (batch_size, 4)
        return shapes

    def calibrate(self, obs: Tensor, action: Tensor, reward_scale: float) -> None:
        """Fix the input scaling from the warm-up's rows [N, O] and [N, T * A], and the unit of Q."""
        self.reward_scale.fill_(reward_scale)
        for policy in (self.online, self.slow_policy, self.policy):
            policy.scaling.calibrate(obs)
        self.action_scaling.calibrate(action)

    @property
    def behaviour(self) -> ShiftPolicy:
        """What collects: the policy with all of k."""
        return self.online.with_noise(self.settings.noise_scale)

    @property
    def target(self) -> ShiftPolicy:
        """What chooses kept chunks: Delta' of eq. 2, with all of k."""
        return self._next_policy.with_noise(self.settings.noise_scale)

    @property
    def _next_policy(self) -> ShiftPolicy:
        return self.slow_policy if self.settings.target_shift == "slow" else self.online

    def _shifted_spec(self) -> LatentSpec:
        """Shapes of what Delta shifts."""
        return self.decoder.spec

    def policy_tensors(self) -> dict[str, Tensor]:
        """Delta's weights and input scaling."""
        return copies(self.policy)

    def policy_settings(self) -> dict[str, Any]:
        """What :meth:`open_policy` needs beside the weights."""
        return {
            **asdict(self.settings),
            "eval_noise_scale": self._evaluated.factor(int(self.region.ascents)),
            "cap_sq": self.online.cap_sq,
        }

    @staticmethod
    def open_policy(decoder: Decoder, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ShiftPolicy:
        """Build Delta again from a saved policy."""
        return open_shift(ShiftPolicy, decoder.spec, settings, tensors)


def _idle(c: LPDSSettings, kept: bool) -> tuple[str, ...]:
    """Settings that others leave without an effect."""
    idle = {
        "shift_rank": c.shift_form != "lowrank",
        "kept_next": not kept,
        "eval_noise_updates": c.eval_noise_scale == 1.0 or c.noise_scale == 0.0,
        "eval_noise_scale": c.noise_scale == 0.0,
        "pessimism": c.critics == 1,
    }
    return tuple(name for name, is_idle in idle.items() if is_idle)
