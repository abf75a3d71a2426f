"""The frozen policy itself, as a method: it acts on the base noise and learns nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lpds.config import BaseSettings
from lpds.methods.chain import ChainPolicy, DecoderChain
from lpds.methods.learner import LatentPolicy, Learner
from lpds.types import Batch, Decoder, Metrics, Policy


class BasePolicy(LatentPolicy):
    """``w = eps``."""

    def latent(self, obs: Tensor, eps: Tensor, scale: float) -> Tensor:
        """Return the base noise."""
        return eps


class BaseMethod(Learner[Policy]):
    """The floor of every comparison."""

    learns = BaseSettings.learns
    reads_replay = False
    ignores = (
        *("updates_per_decision", "batch_size", "n_step", "warmup_fits", "demos"),
        *(
            "gamma",
            "discount",
            "reward_scale",
            "return_std",
            "reward_offset",
            "warmup_steps",
            "warmup_policy",
            "replay_size",
            "keep",
        ),
    )
    decodes = False
    sees_pictures = True

    def __init__(
        self,
        settings: BaseSettings,
        decoder: Decoder,
        *,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.settings, self.policy = settings, _policy(decoder, settings.sampler, device)

    @staticmethod
    def open_policy(decoder: Decoder, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Policy:
        """There are no weights, only a sampler to choose."""
        return _policy(decoder, str(settings.get("sampler", "decoder")), torch.device("cpu"))

    def update(self, batch: Batch, noise: dict[str, Tensor], *, critics_only: bool = False) -> Metrics:
        """Learns nothing."""
        return {}

    def policy_tensors(self) -> dict[str, Tensor]:
        """Has no weights."""
        return {}

    def policy_settings(self) -> dict[str, Any]:
        """Which sampler acts."""
        return {"sampler": self.settings.sampler}


def _policy(decoder: Decoder, sampler: str, device: torch.device) -> Policy:
    return BasePolicy() if sampler == "decoder" else ChainPolicy(DecoderChain(decoder, "base", device), "base", evaluation=True)
