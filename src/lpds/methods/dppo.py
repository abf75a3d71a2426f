"""DPPO: diffusion policy policy optimisation (Ren et al. 2024, arXiv 2409.00588).

The denoising chain is a second decision process inside every decision: its last F steps are Gaussian policies with one set
of weights theta, and PPO trains them on the advantage of the decision.

    maximise over theta   E[ min(A_k rho_k, A_k clip(rho_k, 1 - c_k, 1 + c_k)) ],   A_k = A(s, a) discount^(F - 1 - k)

with rho_k the ratio of the densities of step k (the mean over the chunk's scalars, not their sum, in the exponent).

One iteration: some rounds of decisions under fixed weights; values and GAE; then epochs of shuffled (decision, step) pairs
in minibatches, policy and value together, broken off where the KL passes ``target_kl``. No row serves two iterations.

Deviations from the released code:

- *Iteration.* 500 rounds of 40 environments there; here the rounds shrink with the budget, so that any run has about
  ``min_iterations`` iterations, and a minibatch is a share of them (a quarter, as released) instead of 50,000 pairs.
- *Time.* Discounts are those of the rows, exact inside a chunk; a truncated episode bootstraps from its last observation.
- *Rewards* are multiplied by a factor fixed by the warm-up, which the chain collects, instead of one over the running
  deviation of the discounted sums of rewards: the returns to go deviate by 1.
- Constant learning rates (released: a cosine whose two ends are equal), no weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lpds.chain_config import DPPOSettings
from lpds.methods.chain import ChainPolicy, DecoderChain
from lpds.methods.chain_learner import ChainLearner
from lpds.methods.critics import ValueMLP
from lpds.methods.state import adam
from lpds.types import Batch, Decoder, Experience, Metrics


def advantages(reward: Tensor, discount: Tensor, over: Tensor, value: Tensor, next_value: Tensor, lam: float) -> Tensor:
    """Generalised advantage of a semi-Markov process, all arguments and the result [rounds, lanes].

    A_i = d_i + lam discount_i A_{i+1}, d_i = r_i + discount_i V(s'_i) - V(s_i); the sum is cut where an episode is ``over``,
    while the value beyond it counts as far as its discount says: 0 after termination, kept after truncation.
    """
    delta = reward + discount * next_value - value
    carry = lam * discount * (1.0 - over)
    out, following = torch.empty_like(delta), torch.zeros_like(delta[0])
    for index in reversed(range(len(delta))):
        following = delta[index] + carry[index] * following
        out[index] = following
    return out


def clip_range(index: Tensor, steps: int, c: DPPOSettings) -> Tensor:
    """c_k [B] of the denoising steps k: from ``clip_base`` at 0 to ``clip`` at F - 1, growing exponentially."""
    if steps == 1:
        return torch.full(index.shape, c.clip, device=index.device)
    growth = torch.exp(c.clip_rate * index / (steps - 1)) - 1.0
    return c.clip_base + (c.clip - c.clip_base) * growth / (math.exp(c.clip_rate) - 1.0)


def policy_loss(
    new: Tensor, old: Tensor, advantage: Tensor, index: Tensor, steps: int, c: DPPOSettings
) -> tuple[Tensor, Metrics]:
    """PPO's clipped loss over (decision, denoising step) pairs.

    Args:
        new: [B, n], log-densities of the n executed scalars of a step under theta.
        old: [B, n], the same under the weights that collected.
        advantage: [B], of the decision.
        index: [B], k = 0 .. F-1, the last being the least noisy.
        steps: F.
        c: settings.

    Returns:
        The loss, and ``kl``, ``ratio``, ``clipped`` (the share of clipped ratios), detached.
    """
    log_ratio = new.clamp(-5.0, 2.0).mean(1) - old.clamp(-5.0, 2.0).mean(1)
    ratio = log_ratio.exp()
    if c.normalise_advantage and len(advantage) > 1:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    low, high = (torch.quantile(advantage, q) for q in (c.advantage_low, c.advantage_high))
    advantage = advantage.clamp(low, high) * c.denoising_discount ** (steps - 1 - index)
    bound = clip_range(index, steps, c)
    clipped = torch.minimum(torch.maximum(ratio, 1.0 - bound), 1.0 + bound)
    loss = torch.maximum(-advantage * ratio, -advantage * clipped).mean()
    with torch.no_grad():
        facts = {
            "kl": (ratio - 1.0 - log_ratio).mean(),
            "ratio": ratio.mean(),
            "clipped": ((ratio - 1.0).abs() > bound).float().mean(),
        }
    return loss, facts


def value_loss(value: Tensor, target: Tensor, old: Tensor, clip: float) -> Tensor:
    """0.5 E (V - target)^2, or the larger of it and the same with V clipped to ``old`` +- ``clip``; all of them [B]."""
    error = (value - target).square()
    if math.isfinite(clip):
        error = torch.maximum(error, (old + (value - old).clamp(-clip, clip) - target).square())
    return 0.5 * error.mean()


class DPPO(ChainLearner[ChainPolicy]):
    """The learner: the chain's weights and a value network."""

    name = "dppo"
    settings_kind = DPPOSettings
    acting = ("sampling_std", "finetuned_steps")
    ignores: tuple[str, ...] = ("updates_per_decision", "n_step")
    recalls = DPPOSettings.recalls
    settings: DPPOSettings

    def __init__(self, settings: DPPOSettings, decoder: Decoder, *, generator: torch.Generator, device: torch.device) -> None:
        """Copy the decoder's network.

        Args:
            settings: see :class:`DPPOSettings`.
            decoder: of diffusion; frozen, its network is copied.
            generator: draws the value network's initial weights.
            device: of everything.

        Raises:
            LpdsError: a decoder without a denoising chain.
        """
        super().__init__(settings, decoder, device)
        c = settings
        self.ignores = (*type(self).ignores, *(["clip_rate"] if c.clip == c.clip_base else []))
        self.policy, self.sampling = (ChainPolicy(self.chain, self.name, evaluation=last) for last in (True, False))
        self.extras = {"chain": ((self.chain.trained_steps + 1) * decoder.spec.latent_size,)}
        self.value = ValueMLP(decoder.spec.obs_size, c.width, c.depth, generator).to(device)
        self.adam_policy, self.adam_value = adam(self.chain.net, c.actor_lr), adam(self.value, c.lr)
        self.fresh_rounds = torch.zeros((), dtype=torch.long)  # collected under the present weights, not yet used
        self.iterations = torch.zeros((), dtype=torch.long)
        self.state.modules |= {"value": self.value}
        self.state.optimisers = {"net": self.adam_policy, "value": self.adam_value}
        self.state.scalars |= {"fresh_rounds": self.fresh_rounds, "iterations": self.iterations}
        if c.critic_iterations:
            self.unlearned = f"the value learns alone in the first {c.critic_iterations:,} iterations, after which none came"

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore everything; an older checkpoint did not count ``iterations`` where nothing hung on them."""
        super().load_tensors({"iterations": torch.zeros_like(self.iterations), **tensors})

    @classmethod
    def make_chain(cls, settings: DPPOSettings, decoder: Decoder, device: torch.device) -> DecoderChain:
        """The decoder's chain, whose last F steps are trained."""
        trained = settings.finetuned_steps
        return DecoderChain(decoder, cls.name, device, trained_steps=trained, min_std=settings.sampling_std)

    def block_rounds(self, total_rounds: int) -> int:
        """Rounds of an iteration: the released number, or less where the budget is short."""
        c: DPPOSettings = self.settings
        return min(c.iteration_rounds, max(1, total_rounds // c.min_iterations))

    def has_learned(self, updates: int) -> bool:
        """Not while the value learns alone: what acts is the untrained chain until then."""
        alone = self.settings.critic_iterations
        return updates > 0 and (not alone or int(self.iterations) > alone)

    def observe(self, lanes: list[int], returns: list[float]) -> None:
        """Count the rounds that the chain has collected; the one that ended the warm-up is not among them."""
        self.fresh_rounds += 1

    def learn(self, experience: Experience, updates: int) -> Iterator[Metrics]:
        """One iteration on the rounds since the last; ``updates`` is for methods with a replay."""
        c, rounds = self.settings, int(self.fresh_rounds)
        if rounds == 0:
            return
        self.fresh_rounds.zero_()
        value_alone = int(self.iterations) < c.critic_iterations
        self.iterations += 1
        rows = experience.recent(rounds)
        obs, next_obs = (self.chain.observation(rows[name].flatten(0, 1)) for name in ("obs", "next_obs"))
        with torch.no_grad():
            old_value, next_value = (self.value(x).view_as(rows["reward"]) for x in (obs, next_obs))
            reward = self.reward_scale * rows["reward"]
            advantage = advantages(reward, rows["discount"], rows["over"], old_value, next_value, c.gae_lambda).flatten()
        old_value = old_value.flatten()
        target = advantage + old_value
        path = rows["chain"].flatten(0, 1).unflatten(1, (self.chain.trained_steps + 1, -1))
        pairs = len(obs) * self.chain.trained_steps
        parts = max(1, min(c.minibatches, pairs // 2))
        with torch.no_grad():
            every = torch.arange(pairs, device=obs.device)
            old = torch.cat([self._log_prob(obs, path, chosen) for chosen in every.tensor_split(parts)])
        for _ in range(c.epochs):
            order = torch.randperm(pairs, generator=experience.generator).to(obs.device)
            for chosen in order.tensor_split(parts):
                row, k = self._split(chosen)
                new = self._log_prob(obs, path, chosen)
                loss, facts = policy_loss(new, old[chosen], advantage[row], k, self.chain.trained_steps, c)
                value = self.value(obs[row])
                error = value_loss(value, target[row], old_value[row], c.value_clip)
                self._descend(0.5 * error if value_alone else loss + 0.5 * error)
                yield self._metrics(value.detach(), error.detach())
                if float(facts["kl"]) > c.target_kl:
                    return

    def update(self, batch: Batch, noise: dict[str, Tensor], *, critics_only: bool = False) -> Metrics:
        """What can be done off-policy: one step of the value network (``warmup_fits``)."""
        with torch.no_grad():
            next_value = self.value(self.chain.observation(batch.next_obs))
            target = self.reward_scale * batch.reward + batch.discount * next_value
        value = self.value(self.chain.observation(batch.obs))
        error = value_loss(value, target, target, math.inf)
        self._descend(error)
        return self._metrics(value.detach(), error.detach())

    def _split(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs as (decision, denoising step)."""
        return pair // self.chain.trained_steps, pair % self.chain.trained_steps

    def _log_prob(self, obs: Tensor, path: Tensor, pair: Tensor) -> Tensor:
        """Log-densities [B, T * A] of the executed scalars."""
        row, k = self._split(pair)
        return self.chain.executed(self.chain.log_prob(path[row, k], path[row, k + 1], k, obs[row]))

    def _descend(self, loss: Tensor) -> None:
        for optimiser in (self.adam_policy, self.adam_value):
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in (self.adam_policy, self.adam_value):
            optimiser.step()

    def _metrics(self, value: Tensor, error: Tensor) -> Metrics:
        return {"td_loss": 2.0 * error / self.reward_scale.square(), "q_action": value.mean() / self.reward_scale}
