"""The frozen policy itself, as a method: it acts on the base noise and learns nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lpds.config import BaseSettings
from lpds.methods.learner import LatentPolicy, Learner
from lpds.types import Batch, Decoder, Metrics


class BasePolicy(LatentPolicy):
    """``w = eps``."""

    def latent(self, obs: Tensor, eps: Tensor, scale: float) -> Tensor:
        """Return the base noise."""
        return eps


class BaseMethod(Learner[BasePolicy]):
    """The floor of every comparison."""

    learns = False

    def __init__(
        self,
        settings: BaseSettings,
        decoder: Decoder,
        *,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.settings, self.policy = settings, BasePolicy()

    @staticmethod
    def open_policy(decoder: Decoder, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> BasePolicy:
        """Nothing to open."""
        return BasePolicy()

    def update(self, batch: Batch, noise: dict[str, Tensor], *, critics_only: bool = False) -> Metrics:
        """Learns nothing."""
        return {}

    def policy_tensors(self) -> dict[str, Tensor]:
        """Has no weights."""
        return {}

    def policy_settings(self) -> dict[str, Any]:
        """Has no settings."""
        return {}
