"""Behaviour cloning of the project's own decoders: noise prediction (diffusion) and velocity matching (flow)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lpds.checks import check_seed, choose, positive
from lpds.decoders.base import BaseDecoder, MinMaxNormaliser, hash_tensors
from lpds.decoders.diffusion import DiffusionDecoder, DiffusionSampler, cosine_alphas_cumprod
from lpds.decoders.flow import TIME_SCALE, FlowDecoder, FlowSampler
from lpds.decoders.network import DenoisingMLP, NetworkShape
from lpds.errors import LpdsError
from lpds.methods.state import LearnerState
from lpds.pretrain.descent import Descent, smoothed
from lpds.pretrain.experts import Demonstrations
from lpds.pretrain.kept_training import KeptTraining
from lpds.types import LatentSpec

NARROWEST = 1e-6
"""Width of a column, beside its size, below which it is taken for constant: about what float32 rounds."""


@dataclass(frozen=True)
class CloneSettings:
    """How a decoder is trained; the defaults made the zoo."""

    kind: str = "diffusion"
    """``"diffusion"`` or ``"flow"``."""
    chunk: int = 4
    width: int = 256
    blocks: int = 1
    time_size: int = 16
    """Numbers that say the denoising time; even, at least 4."""
    pad_end: bool = True
    """Whether a chunk may reach beyond its episode, repeating the last action: else its last states teach nothing."""
    steps: int = 60_000
    """Gradient steps."""
    batch_size: int = 256
    lr: float = 1e-3
    lr_final: float = 1e-4
    """Cosine decay from ``lr`` to this."""
    weight_decay: float = 1e-6
    ema: float = 0.999
    """Decay, per step, of the weights' running mean, which is what is shipped."""
    seed: int = 0
    training_steps: int = 20
    """K of the diffusion schedule."""
    sampler_steps: int = 5
    """DDIM steps or ODE steps of the shipped sampler."""
    solver: str = "euler"

    def __post_init__(self) -> None:
        choose("decoder kind", self.kind, ("diffusion", "flow", "pi0"))
        choose("solver", self.solver, ("euler", "midpoint", "heun"))
        names = (
            "chunk",
            "width",
            "blocks",
            "time_size",
            "steps",
            "batch_size",
            "lr",
            "lr_final",
            "training_steps",
            "sampler_steps",
        )
        positive(self, *names)
        if self.time_size % 2 or self.time_size < 4:
            raise LpdsError(f"time_size must be even and at least 4, not {self.time_size}")
        if not (0.0 <= self.ema < 1.0 and 0.0 <= self.weight_decay < math.inf):
            raise LpdsError(f"ema {self.ema} must be in [0, 1), weight_decay {self.weight_decay} finite and not negative")
        if self.kind == "diffusion" and self.sampler_steps > self.training_steps:
            raise LpdsError(f"sampler_steps {self.sampler_steps} must be at most training_steps {self.training_steps}")
        check_seed("seed", self.seed)


def normaliser_of(data: Demonstrations) -> MinMaxNormaliser:
    """Ranges of the data.

    A constant column gets unit width: of actions, so that decoding can be undone, and of observations, since over a width of
    rounding anything that moves after all would be thousands to the network.
    """
    obs, actions = torch.from_numpy(data.obs), torch.from_numpy(data.cloned)
    return MinMaxNormaliser(*_range(obs), *_range(actions))


def _range(rows: Tensor) -> tuple[Tensor, Tensor]:
    low, high = rows.amin(0), rows.amax(0)
    flat = (high - low) < NARROWEST * torch.clamp(torch.maximum(low.abs(), high.abs()), min=1.0)
    return torch.where(flat, low - 0.5, low), torch.where(flat, high + 0.5, high)


class ChunkWindows:
    """Chunks of the steps of an episode, by number; computed when asked for, since all of them may not fit into memory.

    With ``pad_end`` every step begins one, and beyond the episode's end its last step is repeated; else as many steps have to
    follow, and the last ``chunk - 1`` of an episode begin none.
    """

    def __init__(self, data: Demonstrations, chunk: int, pad_end: bool = False) -> None:
        """Find where chunks begin.

        Raises:
            LpdsError: nowhere.
        """
        lengths = torch.from_numpy(data.episode_lengths)
        self._last = (lengths.cumsum(0) - 1).repeat_interleave(lengths)
        self._steps, starts = torch.arange(chunk), torch.arange(len(self._last))
        self._starts = starts if pad_end else starts[starts + chunk - 1 <= self._last]
        if not len(self._starts):
            raise LpdsError(f"no episode is as long as a chunk of {chunk} steps")

    def __len__(self) -> int:
        """How many there are, M."""
        return len(self._starts)

    def __getitem__(self, numbers: Tensor | slice) -> Tensor:
        """Indices [B, chunk] of the steps of B chunks."""
        first = self._starts[numbers]
        return torch.minimum(first.unsqueeze(1) + self._steps, self._last[first].unsqueeze(1))


def diffusion_loss(net: DenoisingMLP, x: Tensor, obs: Tensor, t: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """Mean squared error of the predicted noise (Ho et al. 2020): x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise.

    Args:
        net: predicts the noise.
        x: clean normalised chunks [B, C].
        obs: normalised observations [B, O].
        t: training indices [B].
        noise: N(0, I) [B, C].
        abar: cumulative products [K].

    Returns:
        Scalar, the plain mean over batch and chunk.
    """
    a = abar[t].unsqueeze(1)
    error: Tensor = (net(a.sqrt() * x + (1 - a).sqrt() * noise, t, obs) - noise).square().mean()
    return error


def flow_loss(net: DenoisingMLP, x: Tensor, obs: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted velocity x - noise at (1 - t) noise + t x, t [B] in [0, 1]."""
    time = t.unsqueeze(1)
    error: Tensor = (net((1 - time) * noise + time * x, t * TIME_SCALE, obs) - (x - noise)).square().mean()
    return error


@torch.enable_grad()  # a user's file may have turned gradients off for all of the process
def clone(
    data: Demonstrations,
    settings: CloneSettings,
    *,
    name: str,
    progress: Callable[[int, int, float], None] | None = None,
    stop: Callable[[], bool] | None = None,
    kept: KeptTraining | None = None,
) -> BaseDecoder:
    """Train a decoder on demonstrations.

    Args:
        data: whole episodes.
        settings: see :class:`CloneSettings`.
        name: of the decoder.
        progress: called with (step, steps, running loss) every 200 steps.
        stop: asked after every step; the weights as they are by then will do.
        kept: saves the training now and then, and where it stops; one that it has goes on, to the bit.

    Returns:
        The frozen decoder, with the averaged weights.

    Raises:
        LpdsError: an unknown kind, episodes shorter than a chunk, or a kept training of other data or settings.
    """
    choose("decoder kind", settings.kind, ("diffusion", "flow"))
    generator = torch.Generator().manual_seed(settings.seed)
    normaliser = normaliser_of(data)
    obs = normaliser.observation(torch.from_numpy(data.obs))
    actions = normaliser.normalise_action(torch.from_numpy(data.cloned))
    windows = ChunkWindows(data, settings.chunk, settings.pad_end)
    shape = NetworkShape(obs.shape[1], settings.chunk * actions.shape[1], settings.width, settings.blocks, settings.time_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = DenoisingMLP(shape)
    descent = Descent(list(net.parameters()), settings)
    abar = cosine_alphas_cumprod(settings.training_steps)
    size = settings.batch_size
    done, running = torch.zeros((), dtype=torch.long), torch.full((), math.nan, dtype=torch.float64)
    state = LearnerState()
    state.modules["net"], state.optimisers["net"] = net, descent.optimiser
    state.scalars = {"done": done, "running": running, "generator": generator.get_state()}
    state.scalars |= {f"averaged.{index}": mean for index, mean in enumerate(descent.averaged)}
    of = hash_tensors({"obs": obs, "actions": actions, "lengths": torch.from_numpy(data.episode_lengths)}, asdict(settings))
    if kept is not None and kept.load(state, of):
        generator.set_state(state.scalars["generator"])
    for step in range(int(done), settings.steps):
        window = windows[torch.randint(len(windows), (size,), generator=generator)]
        first, x = window[:, 0], actions[window].flatten(1)
        noise = torch.randn(x.shape, generator=generator)
        if settings.kind == "diffusion":
            t = torch.randint(settings.training_steps, (size,), generator=generator)
            loss = diffusion_loss(net, x, obs[first], t, noise, abar)
        else:
            loss = flow_loss(net, x, obs[first], torch.rand(size, generator=generator), noise)
        descent.step(step, loss)
        if progress is not None and (step + 1) % 200 == 0:
            smoothed(running, loss)
            progress(step + 1, settings.steps, float(running))
        done += 1
        stopped = stop is not None and stop()
        if kept is not None and (stopped or kept.due):
            state.scalars["generator"].copy_(generator.get_state())
            kept.save(state, of)
        if stopped:
            break
    descent.keep_mean()
    spec = LatentSpec((obs.shape[1],), *(((settings.chunk, actions.shape[1]),) * 2))
    if settings.kind == "diffusion":
        diffusion = DiffusionSampler(settings.training_steps, settings.sampler_steps)
        return DiffusionDecoder(net, normaliser, diffusion, spec, name=name)
    return FlowDecoder(net, normaliser, FlowSampler(settings.solver, settings.sampler_steps), spec, name=name)
