"""LeRobot's pi0, pi05 and SmolVLA: a flow integrated by Euler steps against a vision-language prefix that no noise changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lpds.checks import whole
from lpds.decoders.lerobot.policy import LeRobotDecoder
from lpds.errors import LpdsError
from lpds.types import Shape

TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"
EMPTY = "observation.images.empty_camera_"


class Pi0Decoder(LeRobotDecoder):
    """pi0; the noise is [chunk_size, max_action_dim], of which only the arm's own columns are free."""

    unused = ("ddim_steps",)
    pooling = "last layer's values, mean and maximum over the prefix; state"
    steps_name = "num_inference_steps"

    @property
    def decodes_states(self) -> bool:  # type: ignore[override]
        """Only where the state is the observation: pooled features do not hold the prefix."""
        return self._options.flat

    def _configure(self) -> None:
        config, steps = self._config, self._options.steps
        if steps is not None:
            if whole("steps", steps) < 1:
                raise LpdsError(f"steps must be at least 1, not {steps}")
            setattr(config, self.steps_name, steps)
        real_time = getattr(config, "rtc_config", None)
        if real_time is not None and real_time.enabled:
            raise LpdsError(
                f"{self._folder} uses real-time chunking: a chunk depends on the one before; save it with rtc_config null"
            )
        wide = max((int(feature.shape[0]) for feature in config.output_features.values()), default=0)
        if wide > config.max_action_dim:
            raise LpdsError(f"{self._folder}: actions of {wide} numbers do not fit into max_action_dim {config.max_action_dim}")
        if not any(feature.type.value == "VISUAL" for feature in config.input_features.values()) and not config.empty_cameras:
            blank = "LeRobot's inference wants one, if only a blank one (empty_cameras 1)"
            raise LpdsError(f"{self._folder}: {config.type} without any camera; {blank}")
        config.compile_model = False
        config.gradient_checkpointing = False

    def _layout(self) -> tuple[tuple[int, int], int, int]:
        return (int(self._config.chunk_size), int(self._config.max_action_dim)), 0, int(self._config.chunk_size)

    def _observed(self) -> dict[str, Shape]:
        shapes = {key: shape for key, shape in super()._observed().items() if not key.startswith(EMPTY)}
        if self._options.task is None:
            length = (int(self._config.tokenizer_max_length),)
            shapes |= {TOKENS: length, MASK: length}
        return shapes

    def _encode(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Let LeRobot compute the prefix and keep what it hands to every denoising step.

        Its own inference runs with a denoising step that only takes notes, so that whatever a version does to images,
        masks and caches is done here too.
        """
        model, kept = self._policy.model, {}

        def note(*, x_t: Tensor, timestep: Tensor, **context: Any) -> Tensor:
            kept.update(context)
            return torch.zeros_like(x_t)

        batch = {key: value for key, value in batch.items() if key.startswith("observation.")}
        rows = len(batch[TOKENS])
        if f"{EMPTY}0" in self._config.input_features and not self._seen(batch):
            batch |= blank_camera(self._config, rows)
        noise = torch.zeros(rows, *self.spec.latent_shape, device=self._options.device)
        model.denoise_step = note
        try:
            self._policy.predict_action_chunk(batch, noise=noise)
        finally:
            del model.denoise_step
        return kept

    def _seen(self, batch: Mapping[str, Any]) -> bool:
        """Whether any real camera's picture is there; LeRobot pads the others by itself."""
        features = self._config.input_features
        return any(features[key].type.value == "VISUAL" for key in batch if key in features and not key.startswith(EMPTY))

    def _sample(self, context: dict[str, Any], w: Tensor) -> Tensor:
        steps = getattr(self._config, self.steps_name)
        x, dt = w, -1.0 / steps
        for step in range(steps):
            time = torch.tensor(1.0 + step * dt, dtype=torch.float32, device=w.device).expand(len(w))
            x = x + dt * self._policy.model.denoise_step(**context, x_t=x, timestep=time)
        return x

    def _rows(self, context: dict[str, Any]) -> int:
        return len(context["prefix_pad_masks"])

    def repeat(self, context: dict[str, Any], count: int) -> dict[str, Any]:
        """A context with every state ``count`` times in a row."""
        return {key: _repeated(value, count) for key, value in context.items()}

    def features(self, context: dict[str, Any]) -> Tensor:
        """The frozen prefix pooled over its tokens: mean and maximum of the last layer's values, then the state beside it."""
        values, there = _last_values(context["past_key_values"]), context["prefix_pad_masks"].bool().unsqueeze(-1)
        mean = (values * there).sum(1) / there.sum(1)
        highest = values.masked_fill(~there, -torch.inf).amax(1)
        return torch.cat([mean, highest, *([context["state"]] if "state" in context else [])], 1).float()

    def _instruction(self) -> dict[str, Tensor]:
        if self._options.task is None:
            return {}
        batch: dict[str, Any] = {
            key: torch.zeros(1, *shape, device=self._options.device)
            for key, shape in self._shapes.items()
            if key not in self._cameras
        }
        told = self._processors.observation({**batch, "task": [self._options.task]})
        return {key: told[key] for key in (TOKENS, MASK)}

    def _sampler(self) -> dict[str, Any]:
        return {"kind": "euler", "steps": int(getattr(self._config, self.steps_name))}


class Pi05Decoder(Pi0Decoder):
    """pi05: as pi0, but the state enters through the instruction's tokens."""

    def _observed(self) -> dict[str, Shape]:
        shapes = super()._observed()
        if self._options.task is None:
            shapes.pop("observation.state", None)
        return shapes


class SmolVLADecoder(Pi0Decoder):
    """SmolVLA."""

    steps_name = "num_steps"

    def _configure(self) -> None:
        super()._configure()
        if self._config.adapt_to_pi_aloha:
            raise LpdsError(
                f"{self._folder} converts its actions for an ALOHA arm (adapt_to_pi_aloha), which is not supported here"
            )
        if not self._config.use_cache:
            raise LpdsError(f"{self._folder} was saved with use_cache false; without the cache its prefix is lost")
        self._config.load_vlm_weights = False  # they are among the saved weights; this would download them


def _last_values(cache: Any) -> Tensor:
    """Values of the last layer [B, tokens, n] in a cache of transformers, or in SmolVLA's table of layers."""
    if isinstance(cache, Mapping):
        values: Tensor = cache[max(cache)]["value_states"]  # [B, tokens, heads, width]
    else:
        last = cache.layers[-1].values if hasattr(cache, "layers") else cache.value_cache[-1]  # [B, heads, tokens, width]
        values = last.transpose(1, 2)
    return values.flatten(2)


def blank_camera(config: Any, rows: int) -> dict[str, Tensor]:
    """A black picture for the first empty camera of a policy without any other, since LeRobot's inference wants one."""
    height, width = getattr(config, "image_resolution", None) or config.resize_imgs_with_padding or (224, 224)
    return {f"{EMPTY}0": torch.zeros(rows, 3, height, width, device=config.device)}


def _repeated(value: Any, count: int) -> Any:
    """Every row ``count`` times in a row, in tensors, tables of them, and transformers' caches."""
    if isinstance(value, Tensor):
        return value.repeat_interleave(count, 0)
    if isinstance(value, Mapping):
        return {key: _repeated(entry, count) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_repeated(entry, count) for entry in value)
    if hasattr(value, "batch_repeat_interleave"):
        cache = copy.deepcopy(value)
        cache.batch_repeat_interleave(count)
        return cache
    return value
