"""DSRL: diffusion steering via reinforcement learning (Wagenmaker et al., CoRL 2025, arXiv 2506.15799).

    maximise over pi   E[ sum_t gamma^t (r_t - alpha log pi(a_t | s_t)) ],   w = b a,  a ~ pi(. | s) in (-1, 1)^D

Soft actor-critic over the initial noise of a frozen decoder. ``a`` is the *scaled* latent, log pi its density.

- *DSRL-SAC* takes the decoder for a part of the environment: one critic Q(s, a) over scaled latents.
- *DSRL-NA* (noise aliased) fits Q^A(s, chunk) to decoded chunks, and distils Q^W(s, a) from it for the actor to climb.

One gradient step, in this order; alpha is read before its own step and used throughout:

1. temperature: descend -log(alpha) (log pi(a | s) + target entropy);
2. critic: y = r + discount (min_i Qslow_i(s', .) - alpha log pi(a' | s')), half the sum over heads of mean squared errors;
3. actor: descend alpha log pi(a | s) - min_i Q_i(s, a), in NA with Q^W;
4. slow copies of the critics.

In NA a block of distillation steps follows the block of gradient steps: eps ~ N(0, I) in the decoder's units, never
clipped; Q^W_i(s, eps / b) is fitted to the online Q^A_i(s, Phi(s, eps)), heads matched by index. No gradient passes
through the decoder.

Facts of the released code, and where this differs from it:

- *Box.* Its ``action_magnitude`` acts in SAC only; released NA draws latents in [-1, 1]. Hence ``box`` 1.5 and 1.0.
- *Noise.* The base noise eps of a decision is the Gaussian that the actor squashes, so evaluations are paired.
- *Policy.* A scale below 1 mixes eps back in, 0 is the frozen policy. Masked latent columns keep eps.
- *Inputs.* Its environments scale observations and chunks to [-1, 1] by the data's range; here the warm-up's mean and
  deviation do (``input_scaling``), as for LP-DS.
- *Warm-up.* Chunks of the frozen policy on N(0, I), stored with eps / b; its SAC clips those to the box, also where they
  act, which would be another frozen policy here. With ``warmup_fits`` the critics are first fitted
  to its returns (and Q^W distilled), the actor and the temperature left alone; the released code does no such fit.
- *Options* that it lacks, or leaves off: ``temperature`` fixed, several ``distill_noises``, ``deterministic_eval``.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lpds.config import DSRLNASettings, DSRLSACSettings
from lpds.fields import of_a_file
from lpds.methods.gaussian import GaussianLatentPolicy, falling, input_scaling
from lpds.methods.learner import Learner, typicality_of
from lpds.methods.state import adam, descend
from lpds.nn import EnsembleMLP, Scaling, copies, polyak
from lpds.types import Batch, Decoder, Experience, Metrics, Shape

ACTING = ("width", "depth", "activation", "box", "input_scaling", "deterministic_eval")
"""Settings of what acts."""


class _SoftActorCritic(Learner[GaussianLatentPolicy]):
    """The gradient step, whatever the critic is fitted on and whatever the actor climbs."""

    def __init__(
        self, settings: DSRLSACSettings, decoder: Decoder, inputs: int, generator: torch.Generator, device: torch.device
    ) -> None:
        """Build actor, critic on observations and ``inputs`` more numbers, and temperature.

        Args:
            settings: see :class:`DSRLSACSettings`.
            decoder: frozen; only called.
            inputs: length of what the critic sees beside the observation.
            generator: draws the initial weights.
            device: of everything.
        """
        super().__init__()
        c = settings
        self.settings, self.decoder, self._device = c, decoder, device
        self.ignores = ("target_entropy",) if c.temperature else ()
        self.policy = GaussianLatentPolicy(decoder.spec, c, generator).to(device)
        self._start = copy.deepcopy(self.policy).requires_grad_(False)
        self._start.scaling = self.policy.scaling  # one module, which the warm-up or a checkpoint calibrates
        self.critic, self.slow = self._make_critic(inputs, generator), self._make_critic(inputs, generator)
        self.slow.requires_grad_(False).load_state_dict(self.critic.state_dict())
        self.log_alpha = torch.full((1,), math.log(c.temperature or 1.0), device=device, requires_grad=True)
        self.reward_scale = torch.ones((), device=device)  # Q's unit; every metric is told in reward units
        self.adam_policy, self.adam_critic = adam(self.policy, c.lr), adam(self.critic, c.lr)
        self.adam_alpha = torch.optim.Adam([self.log_alpha], lr=c.lr, fused=True)
        self.state.modules = {"policy": self.policy, "critic": self.critic, "slow": self.slow}
        self.state.optimisers = {"policy": self.adam_policy, "critic": self.adam_critic, "alpha": self.adam_alpha}
        self.state.scalars = {"log_alpha": self.log_alpha, "reward_scale": self.reward_scale}

    def _make_critic(self, inputs: int, generator: torch.Generator) -> EnsembleMLP:
        c, size = self.settings, self.decoder.spec.obs_size + inputs
        return EnsembleMLP(c.critics, size, 1, c.width, c.depth, generator, c.activation).to(self._device)

    @property
    def start(self) -> GaussianLatentPolicy:
        """The untrained actor, whose latents are shorter than the prior's: what that does to a decoder is no learning."""
        return self._start

    @property
    def behaviour(self) -> GaussianLatentPolicy:
        """What collects always samples."""
        return self.policy.sampling()

    @property
    def caveat(self) -> str:
        """A temperature that fell for most of the run."""
        return "" if self.settings.temperature else falling(self.log_alpha, self.adam_alpha)

    def block_rounds(self, total_rounds: int) -> int:
        """Learn after every ``update_every`` rounds."""
        return int(self.settings.update_every)

    def noise_shapes(self, batch_size: int) -> dict[str, Shape]:
        """The actor's Gaussian at s and at s'."""
        d = self.decoder.spec.latent_size
        return {"actor": (batch_size, d), "next": (batch_size, d)}

    def calibrate(self, obs: Tensor, action: Tensor, reward_scale: float) -> None:
        """Fix the unit of Q, and from the warm-up's rows the input scaling where there is one."""
        self.reward_scale.fill_(reward_scale)
        if isinstance(self.policy.scaling, Scaling):
            self.policy.scaling.calibrate(obs)

    def update(self, batch: Batch, noise: dict[str, Tensor], *, critics_only: bool = False) -> Metrics:
        """One gradient step on B transitions; ``critics_only`` leaves actor and temperature alone."""
        alpha = self.log_alpha.detach().exp()  # before its own step
        if critics_only:
            metrics = self._td(batch, noise["next"], alpha, frozen=True)
        else:
            a, log_prob = self.policy.sample(batch.obs, noise["actor"])
            if not self.settings.temperature:
                self._temper(log_prob.detach())
            metrics = self._td(batch, noise["next"], alpha, frozen=False) | self._climb(batch, a, log_prob, alpha)
        polyak(list(self.slow.parameters()), list(self.critic.parameters()), self.settings.tau)
        return metrics | {"alpha": alpha.squeeze(0) / self.reward_scale}

    def _temper(self, log_prob: Tensor) -> None:
        """Step 1: alpha falls while the entropy is above its target."""
        loss = -(self.log_alpha * (log_prob + self.settings.target_entropy)).mean()
        descend(self.adam_alpha, loss)

    def _td(self, batch: Batch, next_eps: Tensor, alpha: Tensor, *, frozen: bool) -> Metrics:
        """Step 2: the bootstrapped value is soft; that of the frozen policy, which the warm-up's returns are of, is not."""
        with torch.no_grad():
            if frozen:
                a, log_prob = next_eps / self.settings.box, torch.zeros_like(batch.reward)
            else:
                a, log_prob = self.policy.sample(batch.next_obs, next_eps)
            next_q = self._value(self.slow, batch.next_obs, self._asked(batch.next_obs, a)).amin(0)
            y = self.reward_scale * batch.reward + batch.discount * (next_q - alpha * log_prob)
        q = self._value(self.critic, batch.obs, self._stored(batch))
        loss = 0.5 * (q - y).square().sum(0).mean()
        descend(self.adam_critic, loss)
        unit = self.reward_scale
        return {"td_loss": 2.0 * loss.detach() / unit**2, "q_action": q.detach().mean() / unit}

    def _climb(self, batch: Batch, a: Tensor, log_prob: Tensor, alpha: Tensor) -> Metrics:
        """Step 3: the actor's; the critic that it climbs gets no gradient."""
        q = self._latent_value(batch.obs, a).amin(0)
        loss = (alpha * log_prob - q).mean()
        self.adam_policy.zero_grad(set_to_none=True)
        loss.backward(inputs=list(self.policy.parameters()))
        self.adam_policy.step()
        return {"q_latent": q.detach().mean() / self.reward_scale}

    @torch.no_grad()
    def diagnose(self, batch: Batch, noise: dict[str, Tensor]) -> Metrics:
        """Norm and correlation of the decoded latent."""
        a, _ = self.policy.sample(batch.obs, noise["actor"])
        return typicality_of(self.settings.box * a, self.policy.spec)

    @abstractmethod
    def _stored(self, batch: Batch) -> Tensor:
        """What the critic sees of a transition, beside the observation."""

    @abstractmethod
    def _asked(self, obs: Tensor, a: Tensor) -> Tensor:
        """What the critic sees of a scaled latent [B, H * L], beside the observation."""

    @abstractmethod
    def _latent_value(self, obs: Tensor, a: Tensor) -> Tensor:
        """The value [n, B] of scaled latents that the actor climbs."""

    def _value(self, critic: EnsembleMLP, obs: Tensor, x: Tensor) -> Tensor:
        """[n, B] for raw observations and whatever else the critic sees."""
        out: Tensor = critic(torch.cat([self.policy.scaling(obs), x], dim=1)).squeeze(-1)
        return out

    def policy_tensors(self) -> dict[str, Tensor]:
        """The actor's weights and input scaling."""
        return copies(self.policy)

    def policy_settings(self) -> dict[str, Any]:
        """What :meth:`open_policy` needs beside the weights."""
        return asdict(self.settings)

    @staticmethod
    def open_policy(decoder: Decoder, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GaussianLatentPolicy:
        """Build the actor again from a saved policy."""
        policy = GaussianLatentPolicy(decoder.spec, of_a_file(DSRLSACSettings, settings, ACTING), torch.Generator())
        policy.load_state_dict(dict(tensors))
        return policy.requires_grad_(False)


class DSRLSAC(_SoftActorCritic):
    """SAC over scaled latents; the decoder is a part of the environment."""

    decodes = False

    def __init__(
        self, settings: DSRLSACSettings, decoder: Decoder, *, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(settings, decoder, decoder.spec.latent_size, generator, device)
        self.extras = {"latent": (decoder.spec.latent_size,)}

    def _stored(self, batch: Batch) -> Tensor:
        return batch.extra["latent"]

    def _asked(self, obs: Tensor, a: Tensor) -> Tensor:
        return a

    def _latent_value(self, obs: Tensor, a: Tensor) -> Tensor:
        return self._value(self.critic, obs, a)


class DSRLNA(_SoftActorCritic):
    """Noise aliasing: ``critic`` is Q^A on decoded chunks, ``q_latent`` is Q^W on scaled latents."""

    settings: DSRLNASettings

    def __init__(self, settings: DSRLNASettings, decoder: Decoder, *, generator: torch.Generator, device: torch.device) -> None:
        super().__init__(settings, decoder, decoder.spec.action_size, generator, device)
        self.q_latent = self._make_critic(decoder.spec.latent_size, generator)
        self.adam_latent = adam(self.q_latent, settings.lr)
        self.action_scaling = input_scaling(decoder.spec.action_size, settings.input_scaling).to(device)
        self.state.modules |= {"q_latent": self.q_latent, "action_scaling": self.action_scaling}
        self.state.optimisers |= {"q_latent": self.adam_latent}

    def learn(self, experience: Experience, updates: int) -> Iterator[Metrics]:
        """Gradient steps, then the block of distillation steps; every one has a batch of its own."""
        for left in range(updates - 1, -1, -1):
            metrics = self.update(*experience.draw())
            if left == 0:  # the block's means go with the last gradient step: one dict for each of those
                steps = [self._distill(*experience.draw()) for _ in range(math.ceil(self.settings.distill_share * updates))]
                metrics |= {key: torch.stack([step[key] for step in steps]).mean() for key in steps[0]}
            yield metrics

    def noise_shapes(self, batch_size: int) -> dict[str, Shape]:
        """The actor's Gaussians, and the base noise of distillation."""
        d = self.decoder.spec.latent_size
        return super().noise_shapes(batch_size) | {"base": (batch_size, self.settings.distill_noises, d)}

    def calibrate(self, obs: Tensor, action: Tensor, reward_scale: float) -> None:
        """See the superclass; chunks are scaled too."""
        super().calibrate(obs, action, reward_scale)
        if isinstance(self.action_scaling, Scaling):
            self.action_scaling.calibrate(action)

    def update(self, batch: Batch, noise: dict[str, Tensor], *, critics_only: bool = False) -> Metrics:
        """One gradient step; ``critics_only`` fits Q^A and distils Q^W once, :meth:`learn` distils in blocks."""
        metrics = super().update(batch, noise, critics_only=critics_only)
        return metrics | self._distill(batch, noise) if critics_only else metrics

    def _distill(self, batch: Batch, noise: dict[str, Tensor]) -> Metrics:
        """(Q^W_i(s, eps / b) - Q^A_i(s, Phi(s, eps)))^2 over the base noise."""
        count = self.settings.distill_noises
        obs, eps = batch.obs.repeat_interleave(count, 0), noise["base"].flatten(0, 1)
        with torch.no_grad():
            target = self._value(self.critic, obs, self._decode(obs, eps))
        q = self._latent_value(obs, eps / self.settings.box)
        loss = 0.5 * (q - target).square().sum(0).mean()
        descend(self.adam_latent, loss)
        return {
            "distill_loss": 2.0 * loss.detach() / self.reward_scale**2,
            "distill_gap_base": (q.detach() - target).mean() / self.reward_scale,
        }

    @torch.no_grad()
    def diagnose(self, batch: Batch, noise: dict[str, Tensor]) -> Metrics:
        """The norm of the decoded latent, and the distillation gap at it."""
        a, _ = self.policy.sample(batch.obs, noise["actor"])
        gap = self._latent_value(batch.obs, a) - self._value(self.critic, batch.obs, self._asked(batch.obs, a))
        return super().diagnose(batch, noise) | {"distill_gap_steered": gap.mean() / self.reward_scale}

    def _stored(self, batch: Batch) -> Tensor:
        out: Tensor = self.action_scaling(batch.action)
        return out

    def _asked(self, obs: Tensor, a: Tensor) -> Tensor:
        return self._decode(obs, self.settings.box * a)

    def _latent_value(self, obs: Tensor, a: Tensor) -> Tensor:
        return self._value(self.q_latent, obs, a)

    def _decode(self, obs: Tensor, w: Tensor) -> Tensor:
        """Chunks [B, T * A] as the critic sees them."""
        chunk = self.decoder.decode(self.decoder.prepare(obs), w.unflatten(1, self.decoder.spec.latent_shape))
        out: Tensor = self.action_scaling(chunk.flatten(1))
        return out
