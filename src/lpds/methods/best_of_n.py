"""Best of N: decode N chunks of the frozen policy, act with the one that a learned critic values most.

    a = argmax over i of Q^A(s, Phi(s, eps_i)),   eps_1 .. eps_N ~ N(0, I)

Only Q^A is learned, by the same TD as LP-DS's, whose target takes the best of ``target_candidates`` chunks at the next
state:  y = r + gamma max_i Qbar^A(s', Phi(s', eps'_i)). With ``critics_only`` (fits to the warm-up's returns, which are
on-policy for the frozen policy) the target is the mean over the candidates instead. Nothing leaves the decoder's own
distribution, so this is the floor for what choosing among its samples gives. (EMaQ, Ghasemipour et al. 2021, is its
offline form.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from lpds.config import BestOfNSettings
from lpds.errors import LpdsError
from lpds.fields import of_a_file
from lpds.methods.learner import Learner
from lpds.methods.state import adam, descend
from lpds.nn import EnsembleMLP, Scaling, copies, polyak
from lpds.types import Batch, Decision, Decoder, LatentSpec, Metrics, Shape


class BestOfNPolicy(nn.Module):
    """The critic and the choice."""

    def __init__(self, spec: LatentSpec, settings: BestOfNSettings, generator: torch.Generator) -> None:
        super().__init__()
        c = settings
        self.draws, self.pessimism = c.candidates, c.pessimism
        self.obs_scaling, self.action_scaling = Scaling(spec.obs_size), Scaling(spec.action_size)
        sizes = (c.width, c.depth, generator, c.activation)
        self.critic = EnsembleMLP(c.critics, spec.obs_size + spec.action_size, 1, *sizes)

    def heads(self, obs: Tensor, action: Tensor) -> Tensor:
        """[n, B] for [B, O] and [B, T * A]."""
        q: Tensor = self.critic(torch.cat([self.obs_scaling(obs), self.action_scaling(action)], 1)).squeeze(-1)
        return q

    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """[B], one value of all heads."""
        q = self.heads(obs, action)
        return q.amin(0) if self.pessimism == "min" else q.mean(0)

    def candidates(self, decoder: Decoder, obs: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Chunks [B, N, T, A] of noises [B, N, H, L], and their values [B, N]."""
        count = eps.shape[1]
        rows = obs.repeat_interleave(count, 0)
        action = decoder.decode(decoder.prepare(rows), eps.flatten(0, 1))
        value = self.value(rows, action.flatten(1))
        return action.unflatten(0, (-1, count)), value.unflatten(0, (-1, count))

    @torch.no_grad()
    def act(self, decoder: Decoder, obs: Tensor, eps: Tensor, scale: float) -> Decision:
        """The best of the draws eps [B, N, H, L]; ``scale`` 0 takes the first, and there is nothing between."""
        self.check_scale(scale)
        if scale == 0.0:
            return Decision(decoder.decode(decoder.prepare(obs), eps[:, 0]), eps[:, 0])
        action, value = self.candidates(decoder, obs, eps)
        row, best = torch.arange(len(obs), device=obs.device), value.argmax(1)
        return Decision(action[row, best], eps[row, best])

    def check_scale(self, scale: float) -> None:
        """Refuse what lies between the first draw and the best."""
        if scale not in (0.0, 1.0):
            raise LpdsError(f"scale must be 0 or 1 for best-of-n, which has nothing in between, not {scale}")

    def shift(self, obs: Tensor, scale: float = 1.0) -> None:
        """Nothing is shifted."""
        return


ACTING = ("critics", "width", "depth", "activation", "candidates", "pessimism")
"""Settings of what acts."""


class BestOfN(Learner[BestOfNPolicy]):
    """The learner: Q^A and its slow copy."""

    def __init__(
        self, settings: BestOfNSettings, decoder: Decoder, *, generator: torch.Generator, device: torch.device
    ) -> None:
        """Build the critics.

        Args:
            settings: see :class:`BestOfNSettings`.
            decoder: frozen; only called.
            generator: draws the initial weights.
            device: of everything.
        """
        super().__init__()
        self.settings, self.decoder = settings, decoder
        self.policy = BestOfNPolicy(decoder.spec, settings, generator).to(device)
        self.slow = BestOfNPolicy(decoder.spec, settings, generator).to(device).requires_grad_(False)
        self.slow.load_state_dict(self.policy.state_dict())
        self.adam = adam(self.policy.critic, settings.lr)
        self.reward_scale = torch.ones((), device=device)
        self.state.modules = {"policy": self.policy, "slow": self.slow}
        self.state.optimisers = {"critic": self.adam}
        self.state.scalars = {"reward_scale": self.reward_scale}

    def noise_shapes(self, batch_size: int) -> dict[str, Shape]:
        """The candidates' noises at the next state."""
        return {"next": (batch_size, self.settings.target_candidates, *self.decoder.spec.latent_shape)}

    def calibrate(self, obs: Tensor, action: Tensor, reward_scale: float) -> None:
        """Fix the input scaling from the warm-up's rows [N, O] and [N, T * A], and the unit of Q."""
        self.reward_scale.fill_(reward_scale)
        for policy in (self.policy, self.slow):
            policy.obs_scaling.calibrate(obs)
            policy.action_scaling.calibrate(action)

    def update(self, batch: Batch, noise: dict[str, Tensor], *, critics_only: bool = False) -> Metrics:
        """One TD step on B transitions."""
        with torch.no_grad():
            _, values = self.slow.candidates(self.decoder, batch.next_obs, noise["next"])
            following = values.mean(1) if critics_only else values.amax(1)
            y = self.reward_scale * batch.reward + batch.discount * following
        q = self.policy.heads(batch.obs, batch.action)
        loss = (q - y).square().sum(0).mean()
        descend(self.adam, loss)
        polyak(list(self.slow.critic.parameters()), list(self.policy.critic.parameters()), self.settings.tau)
        return {"td_loss": loss.detach() / self.reward_scale**2, "q_action": q.detach().mean() / self.reward_scale}

    def policy_tensors(self) -> dict[str, Tensor]:
        """The critic's weights and input scaling."""
        return copies(self.policy)

    def policy_settings(self) -> dict[str, Any]:
        """What :meth:`open_policy` needs beside the weights."""
        return asdict(self.settings)

    @staticmethod
    def open_policy(decoder: Decoder, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> BestOfNPolicy:
        """Build the policy again."""
        policy = BestOfNPolicy(decoder.spec, of_a_file(BestOfNSettings, settings, ACTING), torch.Generator())
        policy.load_state_dict(dict(tensors))
        return policy.requires_grad_(False)
