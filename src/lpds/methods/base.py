"""The frozen policy itself, as a method: it acts on the base noise and learns nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lpds.config import BaseSettings
from lpds.types import Batch, Decoder, LatentSpec, Metrics, Shape


class BasePolicy:
    """``w = eps``."""

    def latent(self, obs: Tensor, eps: Tensor, scale: float) -> Tensor:
        """Return the base noise."""
        return eps

    def shift(self, obs: Tensor, scale: float = 1.0) -> Tensor | None:
        """There is no shift."""
        return None


class BaseMethod:
    """The floor of every comparison."""

    kept_noises = 0
    learns = False

    def __init__(
        self,
        settings: BaseSettings,
        decoder: Decoder,
        *,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.policy = BasePolicy()

    @staticmethod
    def open_policy(spec: LatentSpec, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> BasePolicy:
        """Nothing to open."""
        return BasePolicy()

    def noise_shapes(self, batch_size: int) -> dict[str, Shape]:
        """Needs no noise."""
        return {}

    def calibrate(self, obs: Tensor, action: Tensor, reward_scale: float) -> None:
        """Has nothing to calibrate."""

    def update(self, batch: Batch, noise: dict[str, Tensor], *, critics_only: bool = False) -> Metrics:
        """Learns nothing."""
        return {}

    def diagnose(self, batch: Batch, noise: dict[str, Tensor]) -> Metrics:
        """Has nothing to diagnose."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Has no state."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Has no state."""

    def policy_tensors(self) -> dict[str, Tensor]:
        """Has no weights."""
        return {}

    def policy_settings(self) -> dict[str, Any]:
        """Has no settings."""
        return {}
