"""The denoising chain of a diffusion decoder as a stochastic policy whose weights can be trained (DDPM, arXiv 2006.11239).

One step, from x_t to x_{t-1}, for t = K-1 down to 0:

    x0 = clip((x_t - sqrt(1 - abar_t) eps(x_t, t, s)) / sqrt(abar_t))
    x_{t-1} ~ N( a_t x0 + b_t x_t, std_t^2 ),   the posterior mean, its noise clipped at three deviations

While learning std_t = max(sigma_t, ``min_std``) at every step, the last one too, so that each has a density; in evaluation
std_t = max(sigma_t, 1e-3), and the last step has no noise. The last F steps use the trained network, those before it the
frozen one. Every noise is an argument. Conventions are those of DPPO (arXiv 2409.00588), whose numbers this reproduces.

The network is a copy: the decoder is read, never changed. Its own sampler (DDIM, few steps) is another one, so already the
untrained chain acts a little differently from the frozen policy.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lpds.errors import LpdsError
from lpds.types import Decision, Decoder, LatentSpec

NOISE_CLIP = 3.0
"""Deviations at which the noise of a step is cut off."""
EVALUATION_STD = 1e-3
"""Smallest deviation of a step in evaluation."""


class Normaliser(Protocol):
    """The decoder's units."""

    def observation(self, obs: Tensor) -> Tensor:
        """Raw to normalised."""
        ...

    def action(self, action: Tensor) -> Tensor:
        """Normalised to environment units."""
        ...

    def normalise_action(self, action: Tensor) -> Tensor:
        """Environment units to normalised."""
        ...

    def to(self, device: torch.device) -> Normaliser:
        """The same on another device."""
        ...


@runtime_checkable
class DiffusionLike(Protocol):
    """What a decoder must show of itself to be fine-tuned: network, noise schedule, units."""

    name: str
    net: nn.Module
    """eps(x [B, C], t [B], normalised obs [B, O])."""
    alphas_cumprod: Tensor
    normaliser: Any
    sampler: Any

    @property
    def spec(self) -> LatentSpec:
        """Shapes."""
        ...


class DenoisingChain:
    """The DDPM chain over normalised flat chunks [B, C], C = H * A."""

    def __init__(
        self,
        net: nn.Module,
        alphas_cumprod: Tensor,
        clip: float,
        *,
        trained_steps: int | None = None,
        frozen: nn.Module | None = None,
        min_std: float = 0.1,
    ) -> None:
        """Set up the coefficients.

        Args:
            net: the trained network.
            alphas_cumprod: abar [K].
            clip: bound of the clean estimate.
            trained_steps: F, the last steps that ``net`` does; all K by default.
            frozen: does the steps before them.
            min_std: smallest deviation of a step while learning.
        """
        self.net, self.frozen, self.clip = net, frozen or net, clip
        self.steps = len(alphas_cumprod)
        self.trained_steps = self.steps if trained_steps is None else min(trained_steps, self.steps)
        abar = alphas_cumprod.double()
        before = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
        beta = 1.0 - abar / before
        sigma = (beta * (1.0 - before) / (1.0 - abar)).clamp(min=1e-20).sqrt()
        self.abar = alphas_cumprod
        self._x_factor, self._eps_factor = (1.0 / abar).sqrt().float(), (1.0 / abar - 1.0).sqrt().float()
        self._clean_share = (beta * before.sqrt() / (1.0 - abar)).float()
        self._noisy_share = ((1.0 - before) * (1.0 - beta).sqrt() / (1.0 - abar)).float()
        self.sigma = sigma.float()
        self.std = self.sigma.clamp(min=min_std)
        self.evaluation_std = self.sigma.clamp(min=EVALUATION_STD)
        self.evaluation_std[0] = 0.0

    def mean(self, net: nn.Module, x: Tensor, t: Tensor, obs: Tensor) -> Tensor:
        """Posterior mean of x_{t-1} for x [B, C], t [B] or [1] and normalised obs [B, O]."""
        clean = self._x_factor[t, None] * x - self._eps_factor[t, None] * net(x, t, obs)
        out: Tensor = self._clean_share[t, None] * clean.clamp(-self.clip, self.clip) + self._noisy_share[t, None] * x
        return out

    def sample(self, obs: Tensor, noise: Tensor, *, evaluation: bool = False) -> Tensor:
        """Run the chain; gradients pass if they are enabled.

        Args:
            obs: normalised [B, O].
            noise: [B, K + 1, C]; the first is x_{K-1} itself, the others belong to the steps in order.
            evaluation: use the deviations of evaluation.

        Returns:
            [B, F + 1, C]: x before the first trained step, and after every one; the last is the chunk.
        """
        std = self.evaluation_std if evaluation else self.std
        x, path = noise[:, 0], [noise[:, 0]]
        for index, t in enumerate(reversed(range(self.steps))):
            net = self.net if t < self.trained_steps else self.frozen
            # one time for the whole batch: the network embeds it once, not once a row
            mean = self.mean(net, x, torch.tensor([t], device=x.device), obs)
            x = mean + std[t] * noise[:, 1 + index].clamp(-NOISE_CLIP, NOISE_CLIP)
            path.append(x)
        return torch.stack(path[-(self.trained_steps + 1) :], dim=1)

    def log_prob(self, x: Tensor, following: Tensor, index: Tensor, obs: Tensor) -> Tensor:
        """Log-density [B, C] of each scalar of ``following``, given x, at the trained step ``index`` [B] (0 .. F-1)."""
        t = self.trained_steps - 1 - index
        std = self.std[t, None]
        z = (following - self.mean(self.net, x, t, obs)) / std
        return -0.5 * z.square() - std.log() - 0.5 * math.log(2.0 * math.pi)

    def noise_loss(self, clean: Tensor, t: Tensor, noise: Tensor, obs: Tensor) -> Tensor:
        """The pre-training loss E (eps(x_t, t, s) - noise)^2 on clean chunks [B, C]."""
        abar = self.abar[t, None]
        x = abar.sqrt() * clean + (1.0 - abar).sqrt() * noise
        out: Tensor = (self.net(x, t, obs) - noise).square().mean()
        return out

    def times(self, normal: Tensor) -> Tensor:
        """Standard normal draws [B] as times, uniform over 0 .. K-1."""
        uniform: Tensor = torch.special.ndtr(normal)
        return (uniform * self.steps).long().clamp(max=self.steps - 1)


class DecoderChain(DenoisingChain):
    """The chain of a decoder, with its units."""

    def __init__(
        self, decoder: Decoder, method: str, device: torch.device, *, trained_steps: int | None = None, min_std: float = 0.1
    ) -> None:
        """Copy the decoder's network.

        Args:
            decoder: of diffusion.
            method: who asks, for the message.
            device: of the copy.
            trained_steps: F; see :class:`DenoisingChain`.
            min_std: see :class:`DenoisingChain`.

        Raises:
            LpdsError: the decoder has no denoising chain.
        """
        if not isinstance(decoder, DiffusionLike):
            raise LpdsError(
                f"{method} trains a denoising chain and decoder {decoder.name!r} ({decoder.describe().get('kind')}) has none: "
                "use a diffusion decoder of this project or a DPPO checkpoint (dppo:PATH), not a flow or a wrapped function"
            )
        if decoder.spec.free is not None:
            raise LpdsError(f"{method} trains every column of a chunk, but decoder {decoder.name!r} has masked ones")
        net, frozen = (copy.deepcopy(decoder.net).to(device) for _ in range(2))
        super().__init__(
            net.requires_grad_(True),
            decoder.alphas_cumprod.to(device),
            float(decoder.sampler.clip),
            trained_steps=trained_steps,
            frozen=frozen.requires_grad_(False),
            min_std=min_std,
        )
        self.spec = decoder.spec
        self.normaliser: Normaliser = decoder.normaliser.to(device)

    def observation(self, obs: Tensor) -> Tensor:
        """Raw [B, O] to normalised."""
        return self.normaliser.observation(obs)

    def executed(self, chunk: Tensor) -> Tensor:
        """The executed slice [B, T * A] of normalised flat chunks [B, H * A]."""
        return chunk[:, : self.spec.action_size]

    def action(self, chunk: Tensor) -> Tensor:
        """Normalised flat chunks [B, H * A] to the executed slice [B, T, A] in environment units."""
        return self.normaliser.action(self.executed(chunk).unflatten(1, self.spec.action_shape))

    def normalise_action(self, action: Tensor) -> Tensor:
        """Executed chunks [B, T * A] in environment units to normalised."""
        return self.normaliser.normalise_action(action.unflatten(1, self.spec.action_shape)).flatten(1)


def check_whole(decoder: Decoder, method: str) -> None:
    """Refuse to clone executed chunks with a decoder that decodes further than it executes."""
    spec = decoder.spec
    if spec.action_shape != spec.latent_shape:
        raise LpdsError(
            f"{method} trains on executed chunks, but decoder {decoder.name!r} decodes {spec.latent_shape[0]} steps and "
            f"executes {spec.action_shape[0]}: open it so that it executes all of them"
        )


class ChainPolicy:
    """Acts by the chain: eps is its start, the further draws are the noises of its steps."""

    def __init__(self, chain: DecoderChain, method: str, *, evaluation: bool) -> None:
        self.chain, self.method, self.evaluation = chain, method, evaluation

    @property
    def draws(self) -> int:
        """The start and one noise a step."""
        return self.chain.steps + 1

    def shift(self, obs: Tensor, scale: float = 1.0) -> Tensor | None:
        """The noise is not shifted."""
        return None

    @torch.no_grad()
    def act(self, decoder: Decoder, obs: Tensor, eps: Tensor, scale: float) -> Decision:
        """The frozen policy on the first draw at scale 0, the trained chain at scale 1.

        Raises:
            LpdsError: another scale.
        """
        self.check_scale(scale)
        if scale == 0.0:
            return Decision(decoder.decode(decoder.prepare(obs), eps[:, 0]), eps[:, 0])
        return self._act(self.chain.observation(obs), eps.flatten(2))

    def check_scale(self, scale: float) -> None:
        """Refuse what lies between the frozen policy and the trained chain."""
        if scale not in (0.0, 1.0):
            raise LpdsError(f"scale must be 0 or 1 for {self.method}, which has nothing in between, not {scale}")

    def _act(self, obs: Tensor, noise: Tensor) -> Decision:
        path = self.chain.sample(obs, noise, evaluation=self.evaluation)
        return Decision(self.chain.action(path[:, -1]), extra={"chain": path.flatten(1)})


def untrained(chain: DecoderChain, method: str) -> ChainPolicy:
    """The chain that a method starts from: what it gains over the frozen policy holds what this gains without learning."""
    start = copy.copy(chain)
    start.net = chain.frozen
    return ChainPolicy(start, method, evaluation=True)
