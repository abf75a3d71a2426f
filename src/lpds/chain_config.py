"""Settings of the methods that train the denoising chain of a diffusion decoder: dppo, idql and dql. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lpds.checks import choose, positive
from lpds.errors import LpdsError

OWN_WARMUP: Mapping[str, Any] = {"warmup_policy": "own", "reward_offset": 0.0}
"""Run settings of every method that trains the chain: as in the released code it collects from the first step, so critics that
are fitted to the warm-up's returns know the chain and not the decoder's other sampler, and rewards are as they are."""


@dataclass(frozen=True)
class ChainSettings:
    """What every method that trains the chain has: its own networks and rates."""

    sampling_std: float = 0.1
    """Smallest deviation of a denoising step while learning or collecting."""
    width: int = 256
    """Of the value networks."""
    depth: int = 3
    """Layers of the value networks before their outputs; V's are one and max(1, depth // 2) residual blocks of two."""
    lr: float = 1e-3
    """Of the value networks."""
    actor_lr: float = 1e-4
    """Adam's, of the chain."""

    def __post_init__(self) -> None:
        positive(self, "sampling_std", "width", "depth", "lr", "actor_lr")


@dataclass(frozen=True)
class DPPOSettings(ChainSettings):
    """Settings of DPPO."""

    recalls: ClassVar[bool] = True
    # the warm-up only calibrates, and on-policy learning needs no long memory
    run_defaults: ClassVar[Mapping[str, Any]] = {
        **OWN_WARMUP,
        "warmup_steps": 1_000,
        "warmup_fits": 0,
        "return_std": 1.0,
        "replay_size": 50_000,
    }
    finetuned_steps: int = 10
    """F, the last denoising steps that are trained (at most all K)."""
    iteration_rounds: int = 500
    """Rounds of decisions between updates, at most."""
    min_iterations: int = 20
    """The budget, warm-up included, is cut into at least so many; what the warm-up takes of it may cost the last."""
    critic_iterations: int = 0
    """First iterations, in which the value network learns alone."""
    epochs: int = 5
    """Passes over an iteration's samples."""
    minibatches: int = 4
    """Gradient steps of an epoch."""
    gae_lambda: float = 0.95
    """lambda of the generalised advantage, per decision."""
    clip: float = 0.01
    """c of the last denoising step."""
    clip_base: float = 0.01
    """c of the first trained denoising step."""
    clip_rate: float = 3.0
    """How late between the two c grows: exponentially at this rate."""
    denoising_discount: float = 0.99
    """Factor of the advantage for every denoising step before the last."""
    normalise_advantage: bool = True
    """Subtract the minibatch's mean advantage and divide by its deviation."""
    advantage_low: float = 0.0
    """Quantile of the minibatch below which advantages are clipped."""
    advantage_high: float = 1.0
    """Quantile of the minibatch above which advantages are clipped."""
    value_clip: float = math.inf
    """How far the value may move in an iteration before its loss is clipped; inf for never."""
    target_kl: float = 1.0
    """KL estimate that ends an iteration's updates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "finetuned_steps", "iteration_rounds", "min_iterations", "epochs", "minibatches", "clip", "clip_base")
        positive(self, "clip_rate", "denoising_discount", "value_clip", "target_kl")
        if self.critic_iterations < 0:
            raise LpdsError(f"critic_iterations must not be negative, not {self.critic_iterations}")
        if not 0.0 <= self.gae_lambda <= 1.0:
            raise LpdsError(f"gae_lambda must be in [0, 1], not {self.gae_lambda}")
        if not 0.0 <= self.advantage_low < self.advantage_high <= 1.0:
            raise LpdsError(
                f"advantage_low {self.advantage_low} and advantage_high {self.advantage_high} must be quantiles, "
                "0 <= low < high <= 1"
            )


@dataclass(frozen=True)
class IDQLSettings(ChainSettings):
    """Settings of IDQL."""

    # 128 samples of the replay for every decision, in batches of 1000; the released runs of gym let the critics alone learn
    # for some 10,000 updates, by TD: here on the warm-up's returns, as often as LP-DS's; a row of metrics decodes N chunks
    run_defaults: ClassVar[Mapping[str, Any]] = {
        **OWN_WARMUP,
        "updates_per_decision": 0.128,
        "batch_size": 1_000,
        "log_every": 10_000,
    }
    candidates: int = 10
    """N, chunks among which the values choose."""
    expectile: float = 0.8
    """tau of V."""
    explore_weight: float = 0.7
    """Weight of a chunk better than V when collecting; the others have one minus it."""
    tau: float = 0.001
    """Polyak rate of the target critics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "candidates", "tau")
        for name in ("expectile", "explore_weight"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise LpdsError(f"{name} must be in (0, 1), not {getattr(self, name)}")


@dataclass(frozen=True)
class DQLSettings(ChainSettings):
    """Settings of DQL."""

    # 16 samples of the replay for every decision, in batches of 1000; as in the released runs of gym the critics learn alone
    # for 1,280 updates, without which the actor climbs random ones: there by TD, here on the warm-up's returns
    run_defaults: ClassVar[Mapping[str, Any]] = {
        **OWN_WARMUP,
        "updates_per_decision": 0.016,
        "batch_size": 1_000,
        "warmup_fits": 1_280,
    }
    eta: float = 1.0
    """Weight of the Q term."""
    tau: float = 0.005
    """Polyak rate of the target critics."""
    clone: str = "samples"
    """Which chunks L_noise clones: samples (the actor's own, as released) or data (the replayed ones, the paper's)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "tau")
        choose("clone", self.clone, ("samples", "data"))
        if not self.eta >= 0.0:
            raise LpdsError(f"eta must not be negative, not {self.eta}")
