"""Diffusion decoder: residual MLP, cosine schedule, eps prediction, DDIM with eta 0 and x0 clipped at every step.

Conventions are DPPO's, so that a public checkpoint decodes to the same numbers. DDIM: Song et al. 2020, arXiv 2010.02502.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lpds.checks import whole
from lpds.decoders.base import BaseDecoder, MinMaxNormaliser, hash_tensors, refuse_non_finite
from lpds.decoders.network import DenoisingMLP, FoldedNetwork
from lpds.errors import LpdsError
from lpds.types import LatentSpec


@dataclass(frozen=True)
class DiffusionSampler:
    """The sampler's settings; eta is always 0, since only then is the action a function of the initial noise."""

    training_steps: int = 20
    """K, steps of the training schedule."""
    ddim_steps: int = 5
    """n, network calls of one decode."""
    clip: float = 1.0
    """Bound of the clean estimate x0 at every step (normalised units)."""

    def __post_init__(self) -> None:
        whole("ddim_steps", self.ddim_steps)
        if self.training_steps < 1:
            raise LpdsError(f"a denoising schedule has at least 1 step, not {self.training_steps}")
        if not 1 <= self.ddim_steps <= self.training_steps:
            raise LpdsError(f"ddim_steps must be in 1 .. {self.training_steps} (the trained steps), not {self.ddim_steps}")


def cosine_alphas_cumprod(steps: int) -> Tensor:
    """Cumulative products abar [K] of the cosine schedule, offset 0.008, betas clipped to 0.999, in float32."""
    t = torch.linspace(0, steps, steps + 1, dtype=torch.float64)
    f = torch.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    abar = f / f[0]
    betas = (1.0 - abar[1:] / abar[:-1]).clamp(0.0, 0.999).float()
    return torch.cumprod(1.0 - betas, dim=0)


def ddim_times(training_steps: int, ddim_steps: int) -> list[int]:
    """Training indices visited, "leading" spacing: floor(K/n) * (n-1), ..., 0."""
    stride = training_steps // ddim_steps
    return [stride * index for index in reversed(range(ddim_steps))]


class DiffusionDecoder(BaseDecoder):
    """``a = Phi(s, w)`` by DDIM from the initial noise ``w``."""

    def __init__(
        self,
        net: DenoisingMLP,
        normaliser: MinMaxNormaliser,
        sampler: DiffusionSampler,
        spec: LatentSpec,
        *,
        name: str,
        reference: str | None = None,
        bf16: bool = False,
    ) -> None:
        """Fold a trained network for sampling.

        Args:
            net: the noise predictor; its weights are read, never changed.
            normaliser: ranges of observation and action.
            sampler: DDIM settings.
            spec: shapes; ``latent_shape`` is the whole decoded chunk, ``action_shape`` its executed slice.
            name: for messages and cards.
            reference: what :func:`lpds.load_decoder` was given.
            bf16: do the large products in bfloat16 (error about 2e-3) where the hardware has them; nothing elsewhere.

        Raises:
            LpdsError: weights that are not finite.
        """
        super().__init__(spec, name, reference)
        refuse_non_finite(net.state_dict(), f"decoder {name!r}")
        refuse_non_finite(normaliser.tensors(), f"normaliser of decoder {name!r}")
        self.net = net.requires_grad_(False).eval()
        self.normaliser = normaliser
        self.sampler = sampler
        self.alphas_cumprod = cosine_alphas_cumprod(sampler.training_steps)
        self.times = ddim_times(sampler.training_steps, sampler.ddim_steps)
        abar = [float(self.alphas_cumprod[t]) for t in self.times]
        # x0 = (x - sqrt(1 - abar) eps) / sqrt(abar), which is linear in x and eps: folded into the network's output
        self._folded = FoldedNetwork(
            net,
            torch.tensor(self.times),
            [1.0 / math.sqrt(a) for a in abar],
            [-math.sqrt(1.0 - a) / math.sqrt(a) for a in abar],
            bf16=bf16,
        )
        # after the clip: eps' = (x - sqrt(abar) x0) / sqrt(1 - abar); x_next = sqrt(abar') x0 + sqrt(1 - abar') eps'
        following = [*abar[1:], 1.0]
        self._keep = [math.sqrt((1.0 - b) / (1.0 - a)) for a, b in zip(abar, following, strict=True)]
        self._add = [math.sqrt(b) - keep * math.sqrt(a) for a, b, keep in zip(abar, following, self._keep, strict=True)]
        self._device = torch.device("cpu")
        self.left_out = ""
        """What of the file that it comes from is not in it, in words."""

    @property
    def signal_at_start(self) -> float:
        """Share of signal at the first of the visited times, which "leading" spacing leaves below the last trained one."""
        return float(self.alphas_cumprod[self.times[0]])

    @property
    def finer(self) -> tuple[tuple[str, int], ...]:
        """The next number of steps that divides the trained ones, and all of them."""
        trained, steps = self.sampler.training_steps, self.sampler.ddim_steps
        following = [count for count in range(steps + 1, trained + 1) if trained % count == 0]
        return tuple(("ddim_steps", count) for count in dict.fromkeys(following[:1] + following[-1:]))

    def prepare(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise and encode [B, O]; see :meth:`FoldedNetwork.prepare`."""
        self._move(obs.device)
        return self._folded.prepare(self.normaliser.observation(obs))

    def decode(self, context: tuple[Tensor, Tensor], w: Tensor) -> Tensor:
        """Run DDIM on [B, H, L] noises and return the executed slice [B, T, A] in environment units."""
        return self.normaliser.action(self.denoise(context, w)[:, : self.spec.action_shape[0]])

    def denoise(self, context: tuple[Tensor, Tensor], w: Tensor) -> Tensor:
        """Run DDIM on [B, H, L] noises and return the whole normalised chunk [B, H, L]."""
        x = w.flatten(1)
        last = len(self.times) - 1
        for index in range(last + 1):
            x0 = self._folded.step(index, context, x).clamp_(-self.sampler.clip, self.sampler.clip)
            # the step after the last has abar = 1, so the final x is the clipped x0 itself
            x = x0 if index == last else torch.add(x * self._keep[index], x0, alpha=self._add[index])
        return x.view_as(w)

    def denoise_plain(self, obs: Tensor, w: Tensor) -> Tensor:
        """The same as :meth:`denoise` from normalised observations, step by step and unfolded: the reference."""
        x = w.flatten(1)
        abar = self.alphas_cumprod.to(x.device)
        for index, t in enumerate(self.times):
            eps = self.net(x, torch.full((x.shape[0],), t, device=x.device), obs)
            a = abar[t]
            a_next = abar[self.times[index + 1]] if index + 1 < len(self.times) else torch.ones_like(a)
            x0 = ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-self.sampler.clip, self.sampler.clip)
            eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
            x = a_next.sqrt() * x0 + (1 - a_next).sqrt() * eps
        return x.view_as(w)

    def describe(self) -> dict[str, Any]:
        """Facts for the passport."""
        return {"kind": "diffusion", "sampler": asdict(self.sampler), "network": asdict(self.net.shape)}

    def _fingerprint(self) -> str:
        return hash_tensors({**self.net.state_dict(), **self.normaliser.tensors()}, self.describe())

    def _move(self, device: torch.device) -> None:
        if device != self._device:
            self._folded.to(device)
            self.normaliser = self.normaliser.to(device)
            self._device = device
