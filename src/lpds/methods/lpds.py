"""LP-DS: Lagrangian Perturbation Diffusion Steering (Simsir and Oguz, ICML 2026, arXiv 2606.01151).

    maximise over theta   E[ Q^W(s, eps + Delta_theta(s)) ]     subject to   E_s ||Delta_theta(s)||^2 <= delta     (5)

One update, in this order: action critic by TD (2), latent critic distilled from it at the base noise (3), Delta by
ascent on the Lagrangian (6), alpha by dual ascent (7), slow copies. No gradient passes through the decoder.

Where the paper is silent, or this differs from it:

- *Noise bound.* Delta = b tanh(u / b) per coordinate; a box on w would clip eps and change the frozen policy.
- *Scale.* Q runs from 1 to 1000s over tasks. Equation 6 is divided by s, the running mean norm of dQ^W/dw, and alpha is
  kept relative to s, so that theta does not change when every reward is multiplied by a constant
  (:mod:`lpds.methods.trust_region`, the dual step in these units).
- *Rewards* in (2) are multiplied by one factor that a run takes from its warm-up (``reward_scale``, ``return_std``); n
  decisions may be summed before the bootstrap (``n_step``; the paper's and the default is 1).
- *Shape and size of Delta.* One shift for the whole chunk, or r of them (``shift_form``), and a cap on a single state's
  ``||Delta||^2`` (``state_cap``) are settings; the paper's Delta has every coordinate and no cap.
- *Growing budget.* delta may grow to its size over the first updates of Delta (``delta_updates``); the paper's is constant.
- *Warm start.* With ``critics_only`` an update stops after (3): a run fits both critics to the warm-up's returns,
  which are on-policy for the frozen policy, before Delta moves (``warmup_fits``; 0 is the paper's loop).
- *Distillation noises.* (3) sees two base noises a state (``distill_noises``; the paper's one is ``--preset paper``'s), whose
  pairs (eps, Phi(s, eps)) may be decoded once and kept (``kept_noises``).
- *Kept targets.* So may the next state's chunks in (2), with Delta' as it is when the row is made (``target_actions=kept``):
  then, with kept noises besides, no update decodes, and theta' lags by the age of the row. The mean over K of them
  stands for (2)'s one.
- *Less noise.* ``noise_scale`` k < 1 acts, and learns, with w = k eps + Delta; eq. 3 stays at the whole noise.
- *What is evaluated* and saved may be quieter still, or a running mean of theta (:mod:`lpds.methods.evaluated`).
- *Pictures* in the state go through an encoder (:mod:`lpds.methods.encoder`) that (2) trains; all else sees it detached.
- Inputs are scaled by the warm-up's mean and deviation. Delta's last layer starts at zero: the start is Phi itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lpds.methods.encoder import shifted_pictures
from lpds.methods.learner import typicality_of
from lpds.methods.shift_learner import ShiftLearner
from lpds.methods.state import descend
from lpds.nn import EnsembleMLP, polyak
from lpds.types import Batch, Metrics


class LPDS(ShiftLearner):
    """The learner: Delta, Q^A, Q^W, alpha and their slow copies."""

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
            self.region.ascents += 1
            self._evaluated.follow(int(self.region.ascents))
        polyak(self.slow, self.fast, self.settings.tau)
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
        descend(self.adam_action, loss)
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
        descend(self.adam_latent, loss)
        gap = (q.detach() - target).mean()
        return {
            "distill_loss": loss.detach() / self.reward_scale**2,
            "distill_gap_base": gap / self.reward_scale,
        }

    def _ascend(self, batch: Batch, obs: Tensor, eps: Tensor) -> Metrics:
        """Eq. 6 in theta, then eq. 7 in alpha, both in units of s = E||dQ^W/dw||."""
        shift = self.online(batch.obs)
        at = shift.detach().requires_grad_()
        q = self._reduce(self._shifted_value(batch, obs, eps, at))
        (slope,) = torch.autograd.grad(q.sum(), at)
        if self.online.mask is not None:  # where Delta cannot go, a slope is no scale
            slope = slope * self.online.mask
        ascent = self.region.gradient(slope, shift.detach())  # eq. 6
        # the chain rule ends at Delta, so Q^W's weights get no gradient
        self.adam_shift.zero_grad(set_to_none=True)
        shift.backward(-ascent / len(shift))
        self.adam_shift.step()
        mean_sq = shift.detach().square().sum(1).mean()
        self.region.dual_step(mean_sq)  # eq. 7
        return {
            "q_latent": q.detach().mean() / self.reward_scale,
            "delta_sq_mean": mean_sq,
            "kl_nats": 0.5 * mean_sq + self._quiet_nats,  # eq. 4; KL(N(Delta, k^2 I) || N(0, I))
            **self.region.told(self.reward_scale),
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
            "delta_sq_beyond": (norm_sq > self.region.budget).float().mean(),
        }

    def _base_pairs(self, batch: Batch, obs: Tensor, noise: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        eps, action = batch.base_noise, batch.base_action
        if not self.kept_noises:
            eps = noise["base"]
            with torch.no_grad():
                rows = batch.obs.repeat_interleave(eps.shape[1], 0)
                action = self._decode(rows, eps.flatten(0, 1)).unflatten(0, eps.shape[:2])
        return _each(obs, eps.shape[1]), eps.flatten(0, 1), action.flatten(0, 1)

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


def _each(rows: Tensor, count: int) -> Tensor:
    """Every row ``count`` times in a row."""
    return rows if count == 1 else rows.repeat_interleave(count, 0)
