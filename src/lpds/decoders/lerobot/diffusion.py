"""LeRobot's DiffusionPolicy under DDIM with eta 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lpds.checks import whole
from lpds.decoders.lerobot.policy import LeRobotDecoder
from lpds.errors import LpdsError


class DiffusionPolicyDecoder(LeRobotDecoder):
    """A one-dimensional U-Net conditioned on the last n observations; the noise is the whole chunk [horizon, A]."""

    unused = ("steps", "task", "tokenizer")
    pooling = "the U-Net's conditioning"

    def _configure(self) -> None:
        config, chosen = self._config, self._options.ddim_steps
        if config.noise_scheduler_type != "DDIM" and chosen is None:
            raise LpdsError(
                f"{self._folder} samples with {config.noise_scheduler_type}, which draws fresh noise at every step, so that "
                "the initial noise does not decide the action; pass ddim_steps=10, say, for DDIM with eta 0 on the same weights"
            )
        if chosen is not None:
            if not 1 <= whole("ddim_steps", chosen) <= config.num_train_timesteps:
                raise LpdsError(f"ddim_steps must be in 1 .. {config.num_train_timesteps} (training's), not {chosen}")
            config.noise_scheduler_type, config.num_inference_steps = "DDIM", chosen
        saved = config.num_inference_steps
        if saved is not None and not 1 <= saved <= config.num_train_timesteps:
            raise LpdsError(
                f"{self._folder}: num_inference_steps must be in 1 .. {config.num_train_timesteps} (training's), not {saved}; "
                "ddim_steps= sets another"
            )
        config.compile_model = False
        config.pretrained_backbone_weights = None  # they are among the saved weights; this would download them

    @property
    def finer(self) -> tuple[tuple[str, int], ...]:
        """Twice the DDIM steps, where the schedule has as many."""
        trained = int(self._config.num_train_timesteps)
        steps = int(self._config.num_inference_steps or trained)
        return (("ddim_steps", 2 * steps),) if 2 * steps <= trained else ()

    def _layout(self) -> tuple[tuple[int, int], int, int]:
        config, start = self._config, self._history() - 1
        return (int(config.horizon), int(config.action_feature.shape[0])), start, int(config.horizon) - start

    def _history(self) -> int:
        return int(self._config.n_obs_steps)

    def _clips(self) -> bool:
        return bool(self._config.clip_sample) and self._config.clip_sample_range <= 1.0

    def _encode(self, batch: dict[str, Any]) -> Tensor:
        config = self._config
        frames = {key: batch[key] if self._history() > 1 else batch[key].unsqueeze(1) for key in config.input_features}
        if config.image_features:
            frames["observation.images"] = torch.stack([frames[key] for key in config.image_features], dim=-4)
        condition: Tensor = self._policy.diffusion._prepare_global_conditioning(frames)
        return condition

    def _sample(self, context: Tensor, w: Tensor) -> Tensor:
        # The scheduler's step has eta 0 and no clipped model output by default, as in LeRobot's own sampling.
        chunk: Tensor = self._policy.diffusion.conditional_sample(len(w), global_cond=context, noise=w)
        return chunk

    @property
    def signal_at_start(self) -> float:
        """Share of signal at the first of the scheduler's times."""
        diffusion = self._policy.diffusion
        diffusion.noise_scheduler.set_timesteps(diffusion.num_inference_steps)
        return float(diffusion.noise_scheduler.alphas_cumprod[diffusion.noise_scheduler.timesteps[0]])

    def _rows(self, context: Tensor) -> int:
        return len(context)

    def features(self, context: Tensor) -> Tensor:
        """What the U-Net is conditioned on: normalised states and encoded pictures of the last n observations."""
        return context.float()

    def from_features(self, features: Tensor) -> Tensor:
        """They are all that it knows of the observation."""
        return features.to(self._options.device)

    def _sampler(self) -> dict[str, Any]:
        config = self._config
        names = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
        clip = float(config.clip_sample_range) if config.clip_sample else None
        steps = int(self._policy.diffusion.num_inference_steps)
        return {"kind": "ddim", "eta": 0.0, "steps": steps, "clip": clip, **{name: getattr(config, name) for name in names}}
