"""IDQL: implicit diffusion Q-learning (Hansen-Estruch et al. 2023, arXiv 2304.10573), after the code of DPPO (2409.00588).

The chain stays a model of the data and never sees a value; values choose among N chunks that it gives.

    V:   minimise E[ w (Qbar(s, a) - V(s))^2 ],  w = tau where Qbar > V, 1 - tau elsewhere        Qbar the smaller of two
    Q:   minimise sum_i E[ (Q_i(s, a) - r - discount V(s'))^2 ]
    chain: the pre-training loss on the replay's chunks, unweighted

Acting: of N chunks, collecting draws one with weights 0.7 (Qbar > V) and 0.3, evaluation takes the largest Qbar.

One update, in this order: V, Q, Qbar by Polyak averaging, chain.

Deviations from the released code: rewards are multiplied by the scale calibrated on the warm-up instead of 0.01; the
discount is that of the batch, exact inside a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lpds.chain_config import IDQLSettings
from lpds.fields import of_a_file
from lpds.methods.chain import ChainPolicy, DecoderChain, check_whole
from lpds.methods.chain_learner import ChainLearner
from lpds.methods.critics import TwinQ, ValueMLP, twin_loss
from lpds.methods.state import adam, descend
from lpds.nn import copies, part, polyak
from lpds.types import Batch, Decision, Decoder, Metrics, Shape


def expectile_loss(advantage: Tensor, expectile: float) -> Tensor:
    """E[ w A^2 ], w = expectile where A > 0 and 1 - expectile elsewhere."""
    return (torch.where(advantage > 0, expectile, 1.0 - expectile) * advantage.square()).mean()


def explore(q: Tensor, value: Tensor, weight: float, normal: Tensor) -> Tensor:
    """Draw one candidate for each row.

    Args:
        q: [B, N].
        value: [B].
        weight: of candidates with q > V; the others have 1 - weight.
        normal: [B], standard normal; its distribution function is the uniform draw.

    Returns:
        Indices [B].
    """
    share = torch.where(q > value[:, None], weight, 1.0 - weight).double().cumsum(1)
    uniform: Tensor = torch.special.ndtr(normal.double())
    return (share / share[:, -1:] <= uniform[:, None]).sum(1).clamp(max=q.shape[1] - 1)


class CandidatePolicy(ChainPolicy):
    """Acts by the best, or by a weighted draw, of N chunks of the chain."""

    def __init__(self, chain: DecoderChain, q: TwinQ, value: ValueMLP | None, c: IDQLSettings) -> None:
        """Take a chain and the values that choose.

        Args:
            chain: gives the chunks.
            q: the target critics.
            value: V, to collect; ``None`` to evaluate.
            c: settings.
        """
        super().__init__(chain, "idql", evaluation=value is None)
        self.q, self.value, self.candidates, self.explore_weight = q, value, c.candidates, c.explore_weight

    @property
    def draws(self) -> int:
        """The noises of N chains, and one latent whose first number makes the choice."""
        return self.candidates * (self.chain.steps + 1) + 1

    def _act(self, obs: Tensor, noise: Tensor) -> Decision:
        rows = obs.repeat_interleave(self.candidates, 0)
        chains = noise[:, :-1].unflatten(1, (self.candidates, -1)).flatten(0, 1)
        chunks = self.chain.sample(rows, chains, evaluation=self.evaluation)[:, -1]
        q = self.q(rows, self.chain.executed(chunks)).amin(0).view(len(obs), -1)
        if self.value is None:
            index = q.argmax(1)
        else:
            index = explore(q, self.value(obs), self.explore_weight, noise[:, -1, 0])
        chosen = chunks.unflatten(0, (len(obs), -1))[torch.arange(len(obs), device=obs.device), index]
        return Decision(self.chain.action(chosen))


class IDQL(ChainLearner[CandidatePolicy]):
    """The learner: the chain's weights, V, two critics and their slow copies."""

    name = "idql"
    settings_kind = IDQLSettings
    acting = ("sampling_std", "width", "depth", "candidates")
    settings: IDQLSettings

    def __init__(self, settings: IDQLSettings, decoder: Decoder, *, generator: torch.Generator, device: torch.device) -> None:
        """Copy the decoder's network.

        Args:
            settings: see :class:`IDQLSettings`.
            decoder: of diffusion, executing the whole chunk; frozen, its network is copied.
            generator: draws the initial weights of the value networks.
            device: of everything.

        Raises:
            LpdsError: a decoder without a denoising chain, or one whose chunk is not executed to its end.
        """
        super().__init__(settings, decoder, device)
        c, spec = settings, decoder.spec
        check_whole(decoder, "idql")
        self.value = ValueMLP(spec.obs_size, c.width, c.depth, generator).to(device)
        self.q, self.q_slow = (_critic(spec.obs_size + spec.action_size, c, generator).to(device) for _ in range(2))
        self.q_slow.requires_grad_(False).load_state_dict(self.q.state_dict())
        self.policy = CandidatePolicy(self.chain, self.q_slow, None, c)
        self.sampling = CandidatePolicy(self.chain, self.q_slow, self.value, c)
        self.adam_chain = adam(self.chain.net, c.actor_lr)
        self.adam_value, self.adam_q = adam(self.value, c.lr), adam(self.q, c.lr)
        self.state.modules |= {"value": self.value, "q": self.q, "q_slow": self.q_slow}
        self.state.optimisers = {"net": self.adam_chain, "value": self.adam_value, "q": self.adam_q}

    def noise_shapes(self, batch_size: int) -> dict[str, Shape]:
        """Times and noises of the chain's loss."""
        return {"time": (batch_size,), "clone": (batch_size, self.chain.spec.latent_size)}

    def update(self, batch: Batch, noise: dict[str, Tensor], *, critics_only: bool = False) -> Metrics:
        """V, Q, Qbar, chain on B transitions; returns detached scalars."""
        obs, next_obs = self.chain.observation(batch.obs), self.chain.observation(batch.next_obs)
        action = self.chain.normalise_action(batch.action)
        with torch.no_grad():
            slow = self.q_slow(obs, action).amin(0)
        descend(self.adam_value, expectile_loss(slow - self.value(obs), self.settings.expectile))
        with torch.no_grad():
            y = self.reward_scale * batch.reward + batch.discount * self.value(next_obs)
        q = self.q(obs, action)
        loss = twin_loss(q, y)
        descend(self.adam_q, loss)
        # the fits are too few for a slow copy to follow, and V and the choice go by it
        polyak(list(self.q_slow.parameters()), list(self.q.parameters()), 1.0 if critics_only else self.settings.tau)
        if not critics_only:
            cloning = self.chain.noise_loss(action, self.chain.times(noise["time"]), noise["clone"], obs)
            descend(self.adam_chain, cloning)
        return {
            "td_loss": loss.detach() / self.reward_scale.square(),
            "q_action": q.detach().mean() / self.reward_scale,
        }

    def policy_tensors(self) -> dict[str, Tensor]:
        """The trained network and the critics that choose."""
        named = {"net": self.chain.net, "q": self.q_slow}
        return {f"{name}.{key}": value for name, module in named.items() for key, value in copies(module).items()}

    @classmethod
    def open_policy(cls, decoder: Decoder, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CandidatePolicy:
        """Build the chain of a saved policy and the critics that choose."""
        c, spec = of_a_file(IDQLSettings, settings, cls.acting), decoder.spec
        q = _critic(spec.obs_size + spec.action_size, c, torch.Generator())
        q.load_state_dict(part(tensors, "q."))
        return CandidatePolicy(cls.open_chain(c, decoder, part(tensors, "net.")), q.requires_grad_(False), None, c)


def _critic(inputs: int, c: IDQLSettings, generator: torch.Generator) -> TwinQ:
    return TwinQ(inputs, c.width, c.depth, generator)
