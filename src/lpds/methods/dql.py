"""DQL: Diffusion-QL (Wang et al. 2022, arXiv 2208.06193) as fine-tuning, after the code of DPPO (arXiv 2409.00588).

    minimise over theta   L_noise(a_theta) - eta E[ Q_i(s, a_theta) ] / E|Q_j(s, a_theta)|

with a_theta the chunk that the chain gives with all its K noisy steps, through which the gradient passes, L_noise the
pre-training loss with that very chunk as clean data, and (i, j) = (1, 2) or (2, 1) by a coin flip.

One update, in this order: both critics to y = r + discount min_i Qbar_i(s', a'), a' from the chain; the actor; Qbar by
Polyak averaging.

Deviations from the released code: rewards are multiplied by the scale calibrated on the warm-up instead of 0.01; the
discount is that of the batch, exact inside a chunk. That the behaviour cloning term uses the sampled chunk and not the
replayed one is the released code's, not the paper's, which ``clone="data"`` gives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpds.chain_config import DQLSettings
from lpds.methods.chain import ChainPolicy, DenoisingChain, check_whole
from lpds.methods.chain_learner import ChainLearner
from lpds.methods.critics import TwinQ, twin_loss
from lpds.methods.state import adam, descend
from lpds.nn import polyak
from lpds.types import Batch, Decoder, Metrics, Shape


def q_term(q: Tensor, coin: Tensor) -> Tensor:
    """-E Q_i / E|Q_j| of q [2, B], the denominator detached; a positive coin takes i = 1, another i = 2."""
    first, second = q[0], q[1]
    heads = -first.mean() / second.detach().abs().mean(), -second.mean() / first.detach().abs().mean()
    return torch.where(coin > 0, *heads).squeeze()


def actor_loss(
    chain: DenoisingChain,
    q: Callable[[Tensor], Tensor],
    obs: Tensor,
    noise: Tensor,
    time: Tensor,
    clone: Tensor,
    coin: Tensor,
    eta: float,
    cloned: Tensor | None = None,
) -> Tensor:
    """L_noise plus eta times the Q term.

    Args:
        chain: its gradient passes through all K steps.
        q: chunks [B, C] to [2, B].
        obs: normalised [B, O].
        noise: [B, K + 1, C], of the chain.
        time: [B], of L_noise.
        clone: [B, C], the noise of L_noise.
        coin: one number, positive or not.
        eta: weight of the Q term.
        cloned: normalised chunks [B, C] to clone; the sampled ones by default.
    """
    chunk = chain.sample(obs, noise)[:, -1]
    return chain.noise_loss(chunk if cloned is None else cloned, time, clone, obs) + eta * q_term(q(chunk), coin)


class DQL(ChainLearner[ChainPolicy]):
    """The learner: the chain's weights, two critics and their slow copies."""

    name = "dql"
    settings_kind = DQLSettings
    settings: DQLSettings

    def __init__(self, settings: DQLSettings, decoder: Decoder, *, generator: torch.Generator, device: torch.device) -> None:
        """Copy the decoder's network.

        Args:
            settings: see :class:`DQLSettings`.
            decoder: of diffusion; frozen, its network is copied.
            generator: draws the critics' initial weights.
            device: of everything.

        Raises:
            LpdsError: a decoder without a denoising chain, or for ``clone=data`` one that executes a part of its chunk.
        """
        super().__init__(settings, decoder, device)
        c, spec = settings, decoder.spec
        if c.clone == "data":
            check_whole(decoder, "dql with clone=data")
        self.policy, self.sampling = (ChainPolicy(self.chain, self.name, evaluation=last) for last in (True, False))

        def critic() -> TwinQ:
            return TwinQ(spec.obs_size + spec.action_size, c.width, c.depth, generator).to(device)

        self.q, self.q_slow = critic(), critic().requires_grad_(False)
        self.q_slow.load_state_dict(self.q.state_dict())
        self.adam_actor, self.adam_q = adam(self.chain.net, c.actor_lr), adam(self.q, c.lr)
        self.state.modules |= {"q": self.q, "q_slow": self.q_slow}
        self.state.optimisers = {"net": self.adam_actor, "q": self.adam_q}

    def noise_shapes(self, batch_size: int) -> dict[str, Shape]:
        """Two chains, the times and noises of the behaviour cloning term, the coin."""
        d = self.chain.spec.latent_size
        chain = (batch_size, self.chain.steps + 1, d)
        return {"next": chain, "actor": chain, "time": (batch_size,), "clone": (batch_size, d), "coin": (1,)}

    def update(self, batch: Batch, noise: dict[str, Tensor], *, critics_only: bool = False) -> Metrics:
        """Critics, actor, targets on B transitions; returns detached scalars."""
        obs, next_obs = self.chain.observation(batch.obs), self.chain.observation(batch.next_obs)
        with torch.no_grad():
            next_action = self.chain.executed(self.chain.sample(next_obs, noise["next"])[:, -1])
            y = self.reward_scale * batch.reward + batch.discount * self.q_slow(next_obs, next_action).amin(0)
        action = self.chain.normalise_action(batch.action)
        q = self.q(obs, action)
        loss = twin_loss(q, y)
        descend(self.adam_q, loss)
        if not critics_only:
            actor = actor_loss(
                self.chain,
                lambda chunk: self.q(obs, self.chain.executed(chunk)),
                obs,
                noise["actor"],
                self.chain.times(noise["time"]),
                noise["clone"],
                noise["coin"],
                self.settings.eta,
                cloned=action if self.settings.clone == "data" else None,
            )
            descend(self.adam_actor, actor)
        # the fits are too few for a slow copy to follow
        polyak(list(self.q_slow.parameters()), list(self.q.parameters()), 1.0 if critics_only else self.settings.tau)
        return {
            "td_loss": loss.detach() / self.reward_scale.square(),
            "q_action": q.detach().mean() / self.reward_scale,
        }
