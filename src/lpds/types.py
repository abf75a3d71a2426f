"""The values that travel between the parts: specification, transitions, batches, and what a decoder and a method are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LatentSpec:
    """Shapes of a decoder ``a = Phi(s, w)``, without the batch axis."""

    obs_shape: Shape | Mapping[str, Shape]
    """``(O,)``, or one shape for each entry of a dict observation."""
    latent_shape: tuple[int, int]
    """``(H, L)`` of the initial noise ``w``; it need not be the action's shape."""
    action_shape: tuple[int, int]
    """``(T, A)``, the executed slice of the decoded chunk."""
    free: tuple[bool, ...] | None = None
    """For each of the L latent columns, whether it may be steered; ``None`` means all. Masked ones keep Delta = 0."""
    pictures: tuple[tuple[int, int, int], ...] = ()
    """``(C, H, W)`` of the pictures that the last columns of a state are, values 0 to 255; see :mod:`lpds.compact`."""

    @property
    def latent_size(self) -> int:
        """H * L, all latent coordinates."""
        return self.latent_shape[0] * self.latent_shape[1]

    @property
    def free_size(self) -> int:
        """D, the number of latent coordinates that Delta may move."""
        columns = self.latent_shape[1] if self.free is None else sum(self.free)
        return self.latent_shape[0] * columns

    @property
    def action_size(self) -> int:
        """T * A, all coordinates of an executed chunk."""
        return self.action_shape[0] * self.action_shape[1]

    @property
    def obs_size(self) -> int:
        """Length of the flattened observation."""
        if isinstance(self.obs_shape, Mapping):
            return sum(math.prod(shape) for shape in self.obs_shape.values())
        return math.prod(self.obs_shape)

    @property
    def picture_size(self) -> int:
        """P, columns of a state that are pictures."""
        return sum(math.prod(shape) for shape in self.pictures)

    @property
    def vector_size(self) -> int:
        """V, columns of a state that are numbers."""
        return self.obs_size - self.picture_size

    def free_mask(self) -> Tensor | None:
        """float32 [1, H * L] of zeros and ones, or ``None`` when every coordinate is free."""
        if self.free is None:
            return None
        return torch.tensor(self.free, dtype=torch.float32).repeat(self.latent_shape[0]).unsqueeze(0)

    @property
    def takes_dict(self) -> bool:
        """Whether an observation is a dict."""
        return isinstance(self.obs_shape, Mapping)

    def quietened(self, eps: Tensor, k: float) -> Tensor:
        """``k eps`` in the free coordinates of [..., H, L] or [..., H * L]; those that only pad keep the prior's noise."""
        if k == 1.0 or self.free is None:
            return eps if k == 1.0 else k * eps
        factor = _factor(tuple(self.free), self.latent_shape[0], k, eps.device)
        return eps * (factor.view(self.latent_shape) if eps.shape[-1] == self.latent_shape[1] else factor)


@lru_cache(maxsize=64)
def _factor(free: tuple[bool, ...], steps: int, k: float, device: torch.device) -> Tensor:
    """The factor [H * L]: k where a column is free, else 1. Kept: an update asks for it several times, on its device."""
    return torch.where(torch.tensor(free).repeat(steps), k, 1.0).to(device)


@dataclass(frozen=True)
class Batch:
    """Transitions of a semi-Markov decision process; B rows, everything float32 and flat."""

    obs: Tensor
    """[B, O]."""
    action: Tensor
    """[B, T * A], the executed chunk in environment units, as decoded."""
    reward: Tensor
    """[B], discounted inside the chunk (see :mod:`lpds.envs.chunk`)."""
    discount: Tensor
    """[B], what multiplies the value of ``next_obs``: 0 after termination, kept after truncation."""
    next_obs: Tensor
    """[B, O]."""
    base_noise: Tensor
    """[B, M, H * L], noises drawn from N(0, I) for ``obs``; M = 0 when none are kept."""
    base_action: Tensor
    """[B, M, T * A], their decoded chunks."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """[B, ...], what the method asked to keep with a decision (:attr:`Method.extras`)."""
    next_action: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))
    """[B, K, T * A], chunks decoded for ``next_obs`` when the row was made; K = 0 when none are kept."""
    next_latent: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))
    """[B, K, H * L], the latents they were decoded from, shifted as Delta then was."""


@dataclass(frozen=True)
class Decision:
    """What a policy did in B states."""

    action: Tensor
    """[B, T, A] in environment units."""
    latent: Tensor | None = None
    """[B, H, L], what the decoder was asked with; ``None`` where it is not one latent."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """[B, ...] to be kept with the transition; a name left out is kept as zeros."""


class Decoder(Protocol):
    """A frozen generative policy with a deterministic sampler."""

    name: str
    reference: str | None
    decodes_states: bool
    """Whether a state out of the replay can be decoded again; not where it is features of a larger observation."""

    @property
    def spec(self) -> LatentSpec:
        """Shapes of observation, latent and action."""
        ...

    @property
    def fingerprint(self) -> str:
        """sha256 over weights, sampler and normaliser."""
        ...

    def __call__(self, obs: Tensor, w: Tensor) -> Tensor:
        """Decode float32 [B, O] and [B, H, L] to [B, T, A] in environment units, without a gradient."""
        ...

    def prepare(self, obs: Tensor) -> Any:
        """Compute what depends on the state alone; batched over rows."""
        ...

    def decode(self, context: Any, w: Tensor) -> Tensor:
        """Decode noises against a prepared context, unchecked: the inner loop of learning."""
        ...

    def action_range(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest action [A] in environment units; minus and plus infinity where the decoder knows none."""
        ...

    def describe(self) -> dict[str, Any]:
        """Facts for the passport: kind, sampler, sizes."""
        ...


Metrics = dict[str, Tensor]


class Policy(Protocol):
    """The part of a method that acts, and the only part that a deployed run needs."""

    @property
    def draws(self) -> int:
        """n, the standard normal latents that one decision consumes; the first is eps, the frozen policy's own."""
        ...

    def act(self, decoder: Decoder, obs: Tensor, eps: Tensor, scale: float) -> Decision:
        """Choose chunks for float32 [B, O] and [B, n, H, L]; ``scale`` 0 is the frozen policy on eps, to the bit."""
        ...

    def shift(self, obs: Tensor, scale: float = 1.0) -> Tensor | None:
        """``scale`` * Delta(s) [B, H, L]; ``None`` where the method does not shift the noise."""
        ...


class Experience(Protocol):
    """What a method may learn from: the replay and the draws that belong to it."""

    @property
    def generator(self) -> torch.Generator:
        """Source of every draw of learning."""
        ...

    def draw(self) -> tuple[Batch, dict[str, Tensor]]:
        """A batch and the noise of one update."""
        ...

    def recent(self, rounds: int) -> dict[str, Tensor]:
        """The last rounds in order: every field of the rows and every extra as [rounds, N, ...], N sub-environments."""
        ...


class Method(Protocol):
    """What the runner asks of a learning rule. It never sees environments, files, loggers or processes."""

    settings: Any
    """The frozen dataclass that it was made from."""
    kept_noises: int
    """M base noises per state that the collector shall decode and store with a transition."""
    drawn_noises: int
    """How many of them a batch has."""
    kept_next: int
    """K chunks per next state that the collector shall decode, with :attr:`target`, and store with a transition."""
    decodes: bool
    """Whether learning decodes at replayed states."""
    extras: Mapping[str, Shape]
    """Names and shapes of what :attr:`Decision.extra` holds for this method."""
    learns: bool
    """Whether there is anything to update."""
    sees_pictures: bool
    """Whether a state may hold pictures (:attr:`LatentSpec.pictures`)."""
    shifts: str
    """What it learns a Delta(s) of, ``noise`` or ``action``, opened from its weights and the shapes alone; empty for none."""
    reads_replay: bool
    """Whether it learns from rows of the replay; else that holds those of the warm-up alone."""
    recalls: bool
    """Whether it learns from all rounds since it learned last, which the replay then has to hold."""
    fits_frozen: bool
    """Whether its fits take the warm-up's returns for the frozen policy's, which bootstraps them where an episode was cut."""
    divides_budget: bool
    """Whether its phases are shares of the budget, so that a larger budget is another run."""
    ignores: tuple[str, ...]
    """Settings that it makes no use of, which is said where they are given."""
    remark: str
    """What a run says of it before it starts; empty for nothing."""
    unlearned: str
    """Why there may be nothing to show, where that is not that too few updates came; empty for nothing else."""

    @property
    def caveat(self) -> str:
        """What is to be said of that which was learned, at the end of the budget; empty for nothing."""
        ...

    @property
    def start(self) -> Policy | None:
        """What acts before anything is learned, where that is not the frozen policy as its decoder samples it."""
        ...

    @property
    def policy(self) -> Policy:
        """What is evaluated and saved."""
        ...

    @property
    def behaviour(self) -> Policy:
        """What collects; the same as ``policy`` for most methods."""
        ...

    @property
    def target(self) -> Policy:
        """What chooses the chunks of next states that are kept."""
        ...

    def block_rounds(self, total_rounds: int) -> int:
        """Rounds of decisions between two calls of :meth:`learn`, for a budget of about ``total_rounds``."""
        ...

    def observe(self, lanes: list[int], returns: list[float]) -> None:
        """Hear of the training episodes that ended in this round, by sub-environment."""
        ...

    def learn(self, experience: Experience, updates: int) -> Iterator[Metrics]:
        """Do the updates that are owed, one dict of metrics each."""
        ...

    def has_learned(self, updates: int) -> bool:
        """Whether there is anything to show after so many updates."""
        ...

    def noise_shapes(self, batch_size: int) -> dict[str, Shape]:
        """Names and shapes of the standard normal tensors that one :meth:`update` consumes."""
        ...

    def calibrate(self, obs: Tensor, action: Tensor, reward_scale: float) -> None:
        """Fix what is fixed by the warm-up: input scaling from [N, O] and [N, T * A] rows, the rewards' multiplier."""
        ...

    def update(self, batch: Batch, noise: dict[str, Tensor], *, critics_only: bool = False) -> Metrics:
        """Do one update, or one of the critics alone (which choose in best-of-n and IDQL); returns scalars on the device."""
        ...

    def diagnose(self, batch: Batch, noise: dict[str, Tensor]) -> Metrics:
        """Figures too dear for every update; once a row of metrics."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything mutable, for an exact checkpoint."""
        ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`tensors` gave."""
        ...

    def policy_tensors(self) -> dict[str, Tensor]:
        """The weights of the part that acts."""
        ...

    def policy_settings(self) -> dict[str, Any]:
        """What is needed beside the weights to build the acting part again."""
        ...

    @classmethod
    def open_policy(cls, decoder: Decoder, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Policy:
        """Build the acting part of :meth:`policy_tensors` and :meth:`policy_settings` again."""
        ...
