"""LP-DS: Lagrangian Perturbation Diffusion Steering (Simsir and Oguz, ICML 2026, arXiv 2606.01151).

    maximise over theta   E[ Q^W(s, eps + Delta_theta(s)) ]     subject to   E_s ||Delta_theta(s)||^2 <= delta     (5)

One update, in this order: action critic by TD (2), latent critic distilled from it at the base noise (3), Delta by
ascent on the Lagrangian (6), alpha by dual ascent (7), slow copies. No gradient passes through the decoder.

Where the paper is silent, or this differs from it:

- *Noise bound.* Delta = b tanh(u / b) per coordinate; a box on w would clip eps and change the frozen policy.
- *Scale.* Q runs from 1 to 1000s over tasks. Equation 6 is divided by s, the running mean norm of dQ^W/dw, and alpha is
  kept as a multiple a of its natural size s / (2 sqrt(delta)) - the value at which the constraint's gradient balances Q's
  at ||Delta||^2 = delta. Then a -> max(0, a + eta (E||Delta||^2 / delta - 1)) is equation 7 with
  eta_alpha = eta s / (2 delta^1.5), and theta, a do not change when every reward is multiplied by a constant.
- *Growing budget.* delta may grow to its size over the first updates of Delta (``delta_updates``); the paper's is constant.
- *Warm start.* With ``critics_only`` an update stops after (3): the runner fits both critics to the warm-up's returns,
  which are on-policy for the frozen policy, before Delta moves (``warmup_fits``; 0 is the paper's loop).
- *Kept noises.* The distillation pairs (eps, Phi(s, eps)) of a state may be decoded once and kept (``kept_noises``).
- *Kept targets.* So may the next state's chunks in (2), with Delta' as it is when the row is made (``target_actions=kept``):
  then no update calls the decoder, and theta' lags by the age of the row. The mean over K of them stands for (2)'s one.
- *Less noise.* ``noise_scale`` k < 1 acts, and learns, with w = k eps + Delta; eq. 3 stays at the whole noise. What is
  evaluated and saved may have a further factor, at once or as Delta is learned (``eval_noise_scale``, ``_updates``).
- *Average.* What is evaluated and saved may be a running mean of theta (``eval_average_updates``); nothing that learns sees it.
- *Pictures* in the state go through an encoder (:mod:`lpds.methods.encoder`) that (2) trains; all else sees it detached.
- Inputs are scaled by the warm-up's mean and deviation. Delta's last layer starts at zero: the start is Phi itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from lpds.config import LPDSSettings, delta_to_sum
from lpds.methods.encoder import shifted_pictures
from lpds.methods.learner import Learner, typicality_of
from lpds.methods.shift import ShiftPolicy, open_shift
from lpds.methods.state import adam
from lpds.metrics import quiet_nats
from lpds.nn import EnsembleMLP, Scaling, polyak
from lpds.types import Batch, Decoder, LatentSpec, Metrics, Shape

SMALL_BUDGET = 0.02
"""Delta per free coordinate below which a run says that it is small: hands learned far more with 0.08 than with 0.003."""


class LPDS(Learner[ShiftPolicy]):
    """The learner: Delta (``online``; ``policy`` is what is evaluated), Q^A, Q^W, alpha and their slow copies."""

    policy_kind: type[ShiftPolicy] = ShiftPolicy
    sees_pictures = shifts = True

    def __init__(self, settings: LPDSSettings, decoder: Decoder, *, generator: torch.Generator, device: torch.device) -> None:
        """Build the networks.

        Args:
            settings: see :class:`LPDSSettings`.
            decoder: frozen; only called.
            generator: draws the initial weights.
            device: of everything.
        """
        super().__init__()
        c, spec = settings, decoder.spec
        self.settings, self.decoder = c, decoder
        self.kept_noises = c.kept_noises
        kept = c.target_actions == "kept" or (c.target_actions == "auto" and not decoder.decodes_states)
        self.kept_next = c.kept_next if kept else 0
        self.decodes = not (self.kept_noises and self.kept_next)
        self.ignores = (*type(self).ignores, *_idle(c, kept))
        shifted = self._shifted_spec()
        self.delta = delta_to_sum(c.delta, c.delta_unit, shifted.free_size)
        self.remark = self._remark(shifted.free_size)
        d, a, k = spec.latent_size, spec.action_size, c.noise_scale
        self._quiet_nats = quiet_nats(k, spec.free_size)

        sizes = (c.width, c.depth, c.activation)

        def shift_policy() -> ShiftPolicy:
            form = (c.shift_form, c.shift_rank, k)
            return self.policy_kind(shifted, *sizes, c.noise_bound, c.state_cap * self.delta, generator, *form)

        self.online = shift_policy().to(device)
        self.slow_policy = shift_policy().to(device).requires_grad_(False)
        self.policy = copy.deepcopy(self.online).requires_grad_(False) if c.eval_average_updates else self.online

        def critic(inputs: int) -> EnsembleMLP:
            return EnsembleMLP(c.critics, inputs, 1, c.width, c.depth, generator, c.activation).to(device)

        o = self.online.scaling.outputs
        self.q_action, self.q_latent = critic(o + a), critic(o + d)
        self.q_slow = critic(o + a).requires_grad_(False)
        self.slow_policy.load_state_dict(self.online.state_dict())
        self.q_slow.load_state_dict(self.q_action.state_dict())
        self.action_scaling = Scaling(a).to(device)
        self._pairs = [
            (list(self.q_slow.parameters()), list(self.q_action.parameters())),
            (list(self.slow_policy.parameters()), list(self.online.parameters())),
        ]

        parts = ("slow_policy", "q_action", "q_slow", "q_latent", "action_scaling")
        self.state.modules = {"policy": self.online, **{name: getattr(self, name) for name in parts}}
        if self.policy is not self.online:
            self.state.modules["mean_policy"] = self.policy
        self.adam_action = adam(nn.ModuleList([self.q_action, self.online.scaling]), c.lr)
        self.adam_latent = adam(self.q_latent, c.lr)
        self.adam_shift = adam(self.online, c.actor_lr, without=self.online.scaling)
        self.state.optimisers = {"q_action": self.adam_action, "q_latent": self.adam_latent, "policy": self.adam_shift}
        free = c.dual == "off" or (c.dual == "adaptive" and math.isinf(self.delta))
        self.alpha = torch.tensor(0.0 if free else c.alpha_init, device=device)  # the multiple a
        self.q_scale = torch.zeros((), device=device)  # s; zero until the first actor update
        self.reward_scale = torch.ones((), device=device)  # Q's unit; every metric is told in reward units
        self.ascents = torch.zeros((), dtype=torch.long)  # updates of Delta
        self.state.scalars = {"alpha": self.alpha, "q_scale": self.q_scale, "reward_scale": self.reward_scale}
        self.state.scalars["ascents"] = self.ascents
        self._turn_down()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore everything; what is evaluated has its noise again. An older checkpoint did not count ``ascents``."""
        super().load_tensors({"ascents": torch.zeros_like(self.ascents), **tensors})
        self._turn_down()

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

    def update(self, batch: Batch, noise: dict[str, Tensor], *, critics_only: bool = False) -> Metrics:
        """One pass over equations 2, 3, 6, 7 on B transitions; returns detached scalars."""
        seen, next_seen, spec = batch.obs, batch.next_obs, self.decoder.spec
        if spec.pictures:
            seen, next_seen = (
                shifted_pictures(o, spec, n) for o, n in zip((seen, next_seen), noise["moves"].split(2, 1), strict=True)
            )
        obs = self.online.scaling(seen)  # with a gradient for equation 2 only, which trains an encoder of pictures
        metrics = self._td(batch, obs, noise.get("next"), next_seen, frozen=critics_only)
        metrics |= self._distill(batch, obs.detach(), noise)
        if not critics_only:
            metrics |= self._ascend(batch, obs.detach(), noise["actor"])
            self.ascents += 1
            self._average()
            self._turn_down()
        slow, fast = zip(*self._pairs, strict=True)
        polyak([p for group in slow for p in group], [p for group in fast for p in group], self.settings.tau)
        return metrics

    def _td(
        self, batch: Batch, obs: Tensor, next_eps: Tensor | None, next_seen: Tensor | None = None, *, frozen: bool = False
    ) -> Metrics:
        """Eq. 2: y = r + gamma Qbar^A(s', Phi(s', eps' + Delta'(s'))); without eps' the chunks are the kept ones.

        ``frozen`` bootstraps with Phi(s', eps'), the policy whose returns the warm-up's are.
        """
        with torch.no_grad():
            if next_eps is None:
                next_action = batch.next_action
            elif frozen:
                next_action = self._decode(batch.next_obs, next_eps).unsqueeze(1)
            else:
                shift = self._next_policy(batch.next_obs)
                next_action = self._steered(batch.next_obs, next_eps, shift).unsqueeze(1)
            count = next_action.shape[1]
            next_obs = _each(self.slow_policy.scaling(batch.next_obs if next_seen is None else next_seen), count)
            next_q = self._reduce(self._value(self.q_slow, next_obs, next_action.flatten(0, 1)))
            y = self.reward_scale * batch.reward + batch.discount * next_q.unflatten(0, (-1, count)).mean(1)
        q = self._value(self.q_action, obs, batch.action)
        loss = (q - y).square().sum(0).mean()
        self.adam_action.zero_grad(set_to_none=True)
        loss.backward()
        self.adam_action.step()
        return {
            "td_loss": loss.detach() / self.reward_scale**2,
            "q_action": q.detach().mean() / self.reward_scale,
        }

    def _distill(self, batch: Batch, obs: Tensor, noise: dict[str, Tensor]) -> Metrics:
        """Eq. 3: (Q^W_i(s, eps) - Q^A_i(s, Phi(s, eps)))^2 at the base noise, heads matched by index."""
        obs, eps, action = self._base_pairs(batch, obs, noise)
        with torch.no_grad():
            target = self._value(self.q_action, obs, action)
        q = self._latent_value(obs, eps)
        loss = (q - target).square().sum(0).mean()
        self.adam_latent.zero_grad(set_to_none=True)
        loss.backward()
        self.adam_latent.step()
        gap = (q.detach() - target).mean()
        return {
            "distill_loss": loss.detach() / self.reward_scale**2,
            "distill_gap_base": gap / self.reward_scale,
        }

    def _ascend(self, batch: Batch, obs: Tensor, eps: Tensor) -> Metrics:
        """Eq. 6 in theta, then eq. 7 in alpha, both in units of s = E||dQ^W/dw||."""
        c = self.settings
        shift = self.online(batch.obs)
        at = shift.detach().requires_grad_()
        q = self._reduce(self._shifted_value(batch, obs, eps, at))
        (slope,) = torch.autograd.grad(q.sum(), at)
        if self.online.mask is not None:  # where Delta cannot go, a slope is no scale
            slope = slope * self.online.mask
        norm = slope.norm(dim=1).mean()
        # the first batch sets the scale, the later ones move it
        self.q_scale.copy_(torch.where(self.q_scale == 0, norm, torch.lerp(self.q_scale, norm, c.tau)))
        # dL/dDelta = slope / s - a Delta / sqrt(delta); the chain rule ends at Delta, so Q^W's weights get no gradient
        ascent = slope / self.q_scale.clamp(min=1e-12)
        if c.dual != "off":
            ascent = ascent - (self.alpha / math.sqrt(self._finite_budget)) * shift.detach()
        self.adam_shift.zero_grad(set_to_none=True)
        shift.backward(-ascent / len(shift))
        self.adam_shift.step()
        norm_sq = shift.detach().square().sum(1)
        mean_sq = norm_sq.mean()
        if c.dual == "adaptive":
            self.alpha.add_(c.dual_step * (mean_sq / self.budget - 1.0)).clamp_(min=0.0)
        return {
            "q_latent": q.detach().mean() / self.reward_scale,
            "delta_sq_mean": mean_sq,
            "kl_nats": 0.5 * mean_sq + self._quiet_nats,  # eq. 4; KL(N(Delta, k^2 I) || N(0, I))
            "alpha": self.alpha * self.q_scale / (2.0 * math.sqrt(self._finite_budget) * self.reward_scale),
            "q_scale": self.q_scale / self.reward_scale,
        }

    @torch.no_grad()
    def diagnose(self, batch: Batch, noise: dict[str, Tensor]) -> Metrics:
        """What is too dear for every update: the distillation gap at the steered latent, the tail of ||Delta||^2."""
        shift = self.online(batch.obs)
        obs, norm_sq, w = self.online.scaling(batch.obs), shift.square().sum(1), self._quietened(noise["actor"]) + shift
        if self.kept_next:  # at the latents that the kept chunks were decoded from
            obs = _each(self.online.scaling(batch.next_obs), self.kept_next)
            at, action = batch.next_latent.flatten(0, 1), batch.next_action.flatten(0, 1)
        else:
            at, action = w, self._decode(batch.obs, w)
        gap = self._latent_value(obs, at) - self._value(self.q_action, obs, action)
        return typicality_of(w, self.decoder.spec) | {
            "distill_gap_steered": gap.mean() / self.reward_scale,
            "delta_sq_p95": torch.quantile(norm_sq, 0.95),
            "delta_sq_beyond": (norm_sq > self.budget).float().mean(),
        }

    @property
    def behaviour(self) -> ShiftPolicy:
        """What collects: the policy with all of k."""
        return self.online.with_noise(self.settings.noise_scale)

    @property
    def target(self) -> ShiftPolicy:
        """What chooses kept chunks: Delta' of eq. 2, with all of k."""
        return self._next_policy.with_noise(self.settings.noise_scale)

    @property
    def _eval_factor(self) -> float:
        """Of k, in what is evaluated and saved."""
        c = self.settings
        share = min(1.0, int(self.ascents) / c.eval_noise_updates) if c.eval_noise_updates else 1.0
        factor: float = 1.0 - share * (1.0 - c.eval_noise_scale)
        return factor

    def _average(self) -> None:
        """Move what is evaluated towards theta: by 2 / (t + 2), a mean in which theta_i weighs i + 1, then by 1 / N."""
        if self.policy is not self.online:
            rate = max(2.0 / (int(self.ascents) + 2), 1.0 / self.settings.eval_average_updates)
            polyak(list(self.policy.parameters()), list(self.online.parameters()), rate)

    def _turn_down(self) -> None:
        self.policy.noise_scale = self.settings.noise_scale * self._eval_factor

    @property
    def _next_policy(self) -> ShiftPolicy:
        return self.slow_policy if self.settings.target_shift == "slow" else self.online

    @property
    def budget(self) -> float:
        """The trust region's delta as it is now."""
        grown = self.settings.delta_updates
        return self.delta * min(1.0, (int(self.ascents) + 1) / grown) if grown else self.delta

    def _remark(self, size: int) -> str:
        c, each = self.settings, self.delta / size
        if c.dual != "adaptive" or not math.isfinite(self.delta):
            return "no trust region holds Delta: " + ("a penalty of fixed weight" if c.dual == "fixed" else f"dual {c.dual}")
        grows = f", growing to that over {c.delta_updates:,} updates" if c.delta_updates else ""
        told = f"trust region: ||Delta||^2 <= {self.delta:.3g} in the mean, {each:.1g} for each of {size} free coordinates"
        small = "; if that is too little, --delta 0.08 --delta-unit mean (docs/learning.md)" if each < SMALL_BUDGET else ""
        return told + grows + small

    @property
    def _finite_budget(self) -> float:
        return self.budget if math.isfinite(self.budget) else 1.0

    def _base_pairs(self, batch: Batch, obs: Tensor, noise: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        eps, action = batch.base_noise, batch.base_action
        if not self.kept_noises:
            eps = noise["base"]
            with torch.no_grad():
                rows = batch.obs.repeat_interleave(eps.shape[1], 0)
                action = self._decode(rows, eps.flatten(0, 1)).unflatten(0, eps.shape[:2])
        return _each(obs, eps.shape[1]), eps.flatten(0, 1), action.flatten(0, 1)

    def _shifted_spec(self) -> LatentSpec:
        """Shapes of what Delta shifts."""
        return self.decoder.spec

    def _steered(self, obs: Tensor, eps: Tensor, shift: Tensor) -> Tensor:
        """Phi(s, k eps + Delta(s)), eq. 1."""
        return self._decode(obs, self._quietened(eps) + shift)

    def _shifted_value(self, batch: Batch, obs: Tensor, eps: Tensor, shift: Tensor) -> Tensor:
        """Q^W_i(s, k eps + Delta(s)), with a gradient in Delta."""
        return self._latent_value(obs, self._quietened(eps) + shift)

    def _quietened(self, eps: Tensor) -> Tensor:
        return self.decoder.spec.quietened(eps, self.settings.noise_scale)

    def _decode(self, obs: Tensor, w: Tensor) -> Tensor:
        context = self.decoder.prepare(obs)
        return self.decoder.decode(context, w.unflatten(1, self.decoder.spec.latent_shape)).flatten(1)

    def _value(self, critic: EnsembleMLP, obs: Tensor, action: Tensor) -> Tensor:
        """[n, B] for scaled observations and raw chunks."""
        out: Tensor = critic(torch.cat([obs, self.action_scaling(action)], dim=1)).squeeze(-1)
        return out

    def _latent_value(self, obs: Tensor, w: Tensor) -> Tensor:
        out: Tensor = self.q_latent(torch.cat([obs, w], dim=1)).squeeze(-1)
        return out

    def _reduce(self, q: Tensor) -> Tensor:
        return q.amin(0) if self.settings.pessimism == "min" else q.mean(0)

    def policy_tensors(self) -> dict[str, Tensor]:
        """Delta's weights and input scaling."""
        return {key: value.detach().clone() for key, value in self.policy.state_dict().items()}

    def policy_settings(self) -> dict[str, Any]:
        """What :meth:`open_policy` needs beside the weights."""
        return {**asdict(self.settings), "eval_noise_scale": self._eval_factor, "cap_sq": self.online.cap_sq}

    @staticmethod
    def open_policy(decoder: Decoder, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ShiftPolicy:
        """Build Delta again from a saved policy."""
        return open_shift(ShiftPolicy, decoder.spec, settings, tensors)


def _idle(c: LPDSSettings, kept: bool) -> tuple[str, ...]:
    """Settings that others leave without an effect."""
    idle = {
        "shift_rank": c.shift_form != "lowrank",
        "kept_next": not kept,
        "eval_noise_updates": c.eval_noise_scale == 1.0,
        "dual_step": c.dual != "adaptive",
        "alpha_init": c.dual == "off",
        **dict.fromkeys(("delta", "delta_unit"), c.dual == "off" and math.isinf(c.state_cap)),
        "delta_updates": c.dual == "off",
    }
    return tuple(name for name, is_idle in idle.items() if is_idle)


def _each(rows: Tensor, count: int) -> Tensor:
    """Every row ``count`` times in a row."""
    return rows if count == 1 else rows.repeat_interleave(count, 0)
