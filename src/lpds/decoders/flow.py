"""Flow-matching decoder: a velocity MLP integrated from noise (t = 0) to data (t = 1) by a fixed-step ODE solver.

Rectified-flow paths x_t = (1 - t) eps + t a with target velocity a - eps (Lipman et al. 2022, arXiv 2210.02747).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lpds.checks import whole
from lpds.decoders.base import BaseDecoder, MinMaxNormaliser, hash_tensors, refuse_non_finite
from lpds.decoders.network import DenoisingMLP, FoldedNetwork
from lpds.errors import LpdsError, unknown_name
from lpds.types import LatentSpec

TIME_SCALE = 100.0
"""The network is told ``t * TIME_SCALE``: the sinusoid's frequencies are made for indices, not for [0, 1]."""

Velocity = Callable[[int, Tensor], Tensor]
"""Maps (index into the solver's evaluation times, x [B, C]) to the velocity [B, C]."""


def solver_times(solver: str, steps: int) -> list[float]:
    """Times at which a solver asks for the velocity, in order of first use.

    Euler and Heun ask at i/n; Heun also at the end of each step; midpoint at i/n and (i + 1/2)/n.
    """
    grid = [index / steps for index in range(steps)]
    if solver == "euler":
        return grid
    if solver == "heun":
        return [*grid, 1.0]
    if solver == "midpoint":
        return [time for start in grid for time in (start, start + 0.5 / steps)]
    raise unknown_name("solver", solver, ["euler", "midpoint", "heun"])


def integrate(velocity: Velocity, x: Tensor, solver: str, steps: int) -> Tensor:
    """Integrate dx/dt = v(t, x) over [0, 1] with ``steps`` equal steps.

    Args:
        velocity: takes indices into :func:`solver_times`.
        x: [B, C], the state at t = 0.
        solver: ``"euler"`` (order 1), ``"midpoint"`` or ``"heun"`` (order 2).
        steps: n.

    Returns:
        [B, C], the state at t = 1.
    """
    h = 1.0 / steps
    for index in range(steps):
        if solver == "euler":
            x = torch.add(x, velocity(index, x), alpha=h)
        elif solver == "midpoint":
            half = torch.add(x, velocity(2 * index, x), alpha=0.5 * h)
            x = torch.add(x, velocity(2 * index + 1, half), alpha=h)
        else:
            first = velocity(index, x)
            second = velocity(index + 1, torch.add(x, first, alpha=h))
            x = torch.add(x, first + second, alpha=0.5 * h)
    return x


@dataclass(frozen=True)
class FlowSampler:
    """The solver's settings."""

    solver: str = "euler"
    steps: int = 4
    clip: float = 1.0
    """Bound of the final chunk (normalised units)."""

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        if self.steps < 1:
            raise LpdsError(f"steps must be at least 1, not {self.steps}")
        solver_times(self.solver, self.steps)


class FlowDecoder(BaseDecoder):
    """``a = Phi(s, w)`` by integrating a learned velocity field from ``w``."""

    def __init__(
        self,
        net: DenoisingMLP,
        normaliser: MinMaxNormaliser,
        sampler: FlowSampler,
        spec: LatentSpec,
        *,
        name: str,
        reference: str | None = None,
        bf16: bool = False,
    ) -> None:
        """Fold a trained velocity network for sampling; arguments as for the diffusion decoder."""
        super().__init__(spec, name, reference)
        refuse_non_finite(net.state_dict(), f"decoder {name!r}")
        refuse_non_finite(normaliser.tensors(), f"normaliser of decoder {name!r}")
        self.net = net.requires_grad_(False).eval()
        self.normaliser = normaliser
        self.sampler = sampler
        self.times = solver_times(sampler.solver, sampler.steps)
        scaled = torch.tensor(self.times) * TIME_SCALE
        # Euler's x + h v is linear in the network's output and folds into it; the others need v itself
        self._euler = sampler.solver == "euler"
        x_factor, out_factor = (1.0, 1.0 / sampler.steps) if self._euler else (0.0, 1.0)
        count = len(self.times)
        self._folded = FoldedNetwork(net, scaled, [x_factor] * count, [out_factor] * count, bf16=bf16)
        self._device = torch.device("cpu")

    def prepare(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise and encode [B, O]; see :meth:`FoldedNetwork.prepare`."""
        self._move(obs.device)
        return self._folded.prepare(self.normaliser.observation(obs))

    def decode(self, context: tuple[Tensor, Tensor], w: Tensor) -> Tensor:
        """Integrate from [B, H, L] noises and return the executed slice [B, T, A] in environment units."""
        x = w.flatten(1)
        if self._euler:
            for index in range(self.sampler.steps):
                x = self._folded.step(index, context, x)
        else:
            x = integrate(lambda i, y: self._folded.step(i, context, y), x, self.sampler.solver, self.sampler.steps)
        chunk = x.clamp(-self.sampler.clip, self.sampler.clip).unflatten(1, w.shape[1:])
        return self.normaliser.action(chunk[:, : self.spec.action_shape[0]])

    @property
    def finer(self) -> tuple[tuple[str, int], ...]:
        """Twice the steps."""
        return (("steps", 2 * self.sampler.steps),)

    def describe(self) -> dict[str, Any]:
        """Facts for the passport."""
        return {"kind": "flow", "sampler": asdict(self.sampler), "network": asdict(self.net.shape)}

    def _fingerprint(self) -> str:
        return hash_tensors({**self.net.state_dict(), **self.normaliser.tensors()}, self.describe())

    def _move(self, device: torch.device) -> None:
        if device != self._device:
            self._folded.to(device)
            self.normaliser = self.normaliser.to(device)
            self._device = device
