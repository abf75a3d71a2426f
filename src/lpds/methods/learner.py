"""What methods share: how a latent becomes a decision, and what a method does unless it says otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lpds.methods.state import LearnerState
from lpds.types import Batch, Decision, Decoder, Experience, LatentSpec, Metrics, Policy, Shape


class LatentPolicy(ABC):
    """A policy that acts through one latent query of the decoder."""

    draws: int = 1

    @abstractmethod
    def latent(self, obs: Tensor, eps: Tensor, scale: float) -> Tensor:
        """The latent query w [B, H, L] for float32 [B, O] and [B, H, L]; ``scale`` 0 gives ``eps`` itself."""

    def shift(self, obs: Tensor, scale: float = 1.0) -> Tensor | None:
        """Nothing is shifted unless a subclass does."""
        return None

    def act(self, decoder: Decoder, obs: Tensor, eps: Tensor, scale: float) -> Decision:
        """Decode w; see :class:`lpds.types.Policy`."""
        w = self.latent(obs, eps[:, 0], scale)
        return Decision(decoder.decode(decoder.prepare(obs), w), w)


def typicality_of(w: Tensor, spec: LatentSpec) -> Metrics:
    """What tells decoded latents [B, H * L] from draws of the prior, as :func:`lpds.metrics.typicality` has it.

    Their mean norm, and the lag-1 correlation about zero along the chunk, mean over latent columns: 0 for white noise, 1 for a
    repeated row, left out for chunks of one row.
    """
    told = {"w_norm": w.norm(dim=1).mean()}
    steps = w.unflatten(1, spec.latent_shape)
    if spec.latent_shape[0] > 1:
        power = steps.square().mean((0, 1)).clamp(min=1e-12)
        told["w_autocorrelation"] = ((steps[:, 1:] * steps[:, :-1]).mean((0, 1)) / power).mean()
    return told


P = TypeVar("P", bound=Policy)


class Learner(ABC, Generic[P]):
    """The defaults of a :class:`lpds.types.Method`: off-policy, one update at a time, everything mutable in ``state``."""

    learns = True
    kept_noises = 0
    drawn_noises = 1
    kept_next = 0
    decodes = True
    sees_pictures = False
    shifts = ""
    extras: Mapping[str, Shape] = {}
    reads_replay = True
    recalls = False
    fits_frozen = True
    divides_budget = False
    ignores: tuple[str, ...] = ()
    remark = ""
    unlearned = ""
    policy: P
    settings: Any

    def __init__(self) -> None:
        self.state = LearnerState()

    @property
    def behaviour(self) -> P:
        """What collects."""
        return self.policy

    @property
    def start(self) -> Policy | None:
        """Starts from the frozen policy."""
        return None

    @property
    def caveat(self) -> str:
        """Nothing is to be said."""
        return ""

    @property
    def target(self) -> Policy:
        """What chooses the next chunks that are kept, where any are."""
        return self.policy

    def block_rounds(self, total_rounds: int) -> int:
        """Learn after every round of decisions."""
        return 1

    def observe(self, lanes: list[int], returns: list[float]) -> None:
        """Episodes' ends are nothing to it."""

    def learn(self, experience: Experience, updates: int) -> Iterator[Metrics]:
        """Do so many updates, each on a batch of its own."""
        for _ in range(updates):
            yield self.update(*experience.draw())

    def has_learned(self, updates: int) -> bool:
        """Any update is something learned."""
        return updates > 0

    def noise_shapes(self, batch_size: int) -> dict[str, Shape]:
        """Needs no noise."""
        return {}

    def calibrate(self, obs: Tensor, action: Tensor, reward_scale: float) -> None:
        """Has nothing to calibrate."""

    @abstractmethod
    def update(self, batch: Batch, noise: dict[str, Tensor], *, critics_only: bool = False) -> Metrics:
        """Do one update; see :class:`lpds.types.Method`."""

    @torch.no_grad()
    def diagnose(self, batch: Batch, noise: dict[str, Tensor]) -> Metrics:
        """Has nothing to diagnose."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Everything mutable."""
        return self.state.tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore :meth:`tensors`."""
        self.state.load_tensors(tensors)

    @abstractmethod
    def policy_tensors(self) -> dict[str, Tensor]:
        """The weights of the part that acts."""

    @abstractmethod
    def policy_settings(self) -> dict[str, Any]:
        """What is needed beside the weights to build the acting part again."""

    @classmethod
    @abstractmethod
    def open_policy(cls, decoder: Decoder, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Policy:
        """Build the acting part again."""
