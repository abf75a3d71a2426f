"""What every LeRobot decoder shares: features to specification, processing, the executed slice, the fingerprint."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpds.checks import whole
from lpds.decoders.base import BaseDecoder, hash_tensors
from lpds.decoders.lerobot.folder import build_policy, read_config
from lpds.decoders.lerobot.statistics import Processors
from lpds.errors import LpdsError
from lpds.types import LatentSpec, Shape

DARKEST, BRIGHTEST = -0.5, 2.0
"""Floats of a picture beyond are no shares of white, whatever resampling overshoots."""


@dataclass(frozen=True)
class Options:
    """What :func:`lpds.decoders.lerobot.load_lerobot` was given beside the folder."""

    ddim_steps: int | None = None
    steps: int | None = None
    execute: int | None = None
    task: str | None = None
    tokenizer: str | Path | None = None
    flat: bool = False
    flat_order: tuple[str, ...] | None = None
    device: str = "cpu"


class LeRobotDecoder(BaseDecoder):
    """A LeRobot policy as a function of an observation and its initial noise, called around its observation queues.

    A family implements :meth:`_configure`, :meth:`_layout`, :meth:`_encode` and :meth:`_sample`.
    """

    unused: tuple[str, ...] = ()
    """Options that mean nothing to a family."""
    pooling: str
    """What :meth:`features` are made of, in words that go into the fingerprint: a Delta is nothing on others."""
    shares_context = True

    def __init__(self, folder: Path, options: Options) -> None:
        self._options, self.runs_on = options, options.device
        for option in self.unused:
            if getattr(options, option) is not None:
                raise LpdsError(f"{option} is not an option of the policy in {folder}")
        config = read_config(folder, options.device)
        self._folder, self._config = folder, config
        self._configure()
        self._processors = Processors(
            folder, config, options.device, text=options.task is not None, tokenizer=options.tokenizer
        )
        unknown = self._processors.unknown_words(options.task or "")
        if unknown:
            raise LpdsError(
                f"the tokenizer of {folder} does not know {', '.join(map(repr, unknown))}: the instruction {options.task!r} is "
                "none that the policy was trained on"
            )
        self._policy = build_policy(folder, config)
        shapes = {self._processors.renamed.get(key, key): shape for key, shape in self._observed().items()}
        cameras = [key for key, feature in config.input_features.items() if feature.type.value == "VISUAL"]
        self._cameras = {self._processors.renamed.get(key, key) for key in cameras}  # by type: a key may be called anything
        obs_shape: Shape | Mapping[str, Shape] = shapes
        self._vectors = list(shapes if options.flat_order is None else options.flat_order)
        if options.flat_order is not None and not options.flat:
            raise LpdsError("flat_order says how flat=True lies, which was not asked for")
        if options.flat:
            wide = sorted(key for key, shape in shapes.items() if len(shape) > 1 + (self._history() > 1))
            if wide or any(".language." in key for key in shapes):
                raise LpdsError(
                    f"flat=True takes vectors only; {folder} also needs {wide or 'an instruction (--instruction, task=)'}"
                )
            if len(shapes) > 1 and (options.flat_order is None or sorted(self._vectors) != sorted(shapes)):
                raise LpdsError(
                    f"flat=True puts {', '.join(sorted(shapes))} end to end, in an order that a vector does not say: pass "
                    "flat_order with all of them, as they lie in a frame of the environment's observation"
                )
            obs_shape = (sum(math.prod(shape) for shape in shapes.values()),)
        self._shapes = shapes
        self._feature_size: int | None = None
        latent, start, most = self._layout()
        self._start, actions = start, int(config.action_feature.shape[0])
        count = int(config.n_action_steps) if options.execute is None else whole("execute", options.execute)
        if not 1 <= count <= most:
            raise LpdsError(f"execute must be in 1 .. {most} (what the policy decodes), not {count}")
        # columns beyond the arm's are padding: the network reads them, no action is read from them
        free = None if latent[1] == actions else tuple(column < actions for column in range(latent[1]))
        name = folder.parent.name if folder.name == "pretrained_model" else folder.name
        super().__init__(LatentSpec(obs_shape, latent, (count, actions), free), name, f"lerobot:{folder}")

    @property
    def feature_size(self) -> int | None:
        """F of the frozen network's features; ``None`` for a policy opened ``flat``, whose vector says it all."""
        if self._options.flat:
            return None
        if self._feature_size is None:
            with torch.no_grad():
                self._feature_size = self.features(
                    self.prepare({k: torch.zeros(1, *s) for k, s in self._shapes.items()})
                ).shape[1]
        return self._feature_size

    def plausible(self, draws: Any) -> Any:
        """Observations by the policy's own statistics; pictures and tokens as :meth:`BaseDecoder.plausible` has them."""
        if self._options.flat:
            parts = {key: self._processors.spread(key, value) for key, value in self._unflatten(draws).items()}
            return torch.cat([parts[key] for key in self._vectors], -1).flatten(1)
        entries = super().plausible(draws)
        own = {key for key in self._shapes if key not in self._cameras and ".language." not in key}
        return {key: self._processors.spread(key, draws[key]) if key in own else value for key, value in entries.items()}

    def prepare(self, obs: Any) -> Any:
        """What does not depend on the noise: observations normalised and encoded, with the prefix's key-value cache."""
        batch: dict[str, Any] = self._unflatten(obs) if self._options.flat else {key: obs[key] for key in self._shapes}
        batch = {key: value.to(self._options.device) for key, value in batch.items()}
        for key, value in batch.items():
            if ".language." in key:
                batch[key] = value.bool() if key.endswith("mask") else value.long()
            elif key in self._cameras:
                batch[key] = self._picture(key, value)
            else:  # integers, too: LeRobot casts its statistics to what it is given
                batch[key] = value.float()
        if self._options.task is not None:
            batch["task"] = [self._options.task] * len(next(iter(batch.values())))
        with torch.no_grad():
            return self._encode(self._processors.observation(batch))

    def _picture(self, key: str, value: Tensor) -> Tensor:
        """A picture in [0, 1]; bytes, as openpi's clients send them, are divided by 255.

        Raises:
            LpdsError: floats beyond, which would pass for a picture hundreds of times too bright, or for one of another scale.
        """
        if value.dtype == torch.uint8:
            return value.float() / 255.0
        low, high = (float(value.min()), float(value.max())) if len(value) else (0.0, 1.0)
        if not (low >= DARKEST and high <= BRIGHTEST):  # NaN is in no range
            raise LpdsError(
                f"{key!r} comes as {str(value.dtype).removeprefix('torch.')} from {low:.4g} to {high:.4g}: a picture is "
                "bytes (uint8), or floats from 0 to 1"
            )
        return value.float()

    def decode(self, context: Any, w: Tensor) -> Tensor:
        """Decode [B * M, H, L] noises, M for each of the B states of a context in their order, to [B * M, T, A]."""
        rows = self._rows(context)
        if rows != len(w):
            if rows == 0 or len(w) % rows:
                raise LpdsError(f"{len(w)} latents for {rows} states: not a whole number each")
            context = self.repeat(context, len(w) // rows)
        with torch.no_grad():
            chunk = self._sample(context, w.to(self._options.device, torch.float32))
            steps, actions = self.spec.action_shape
            chunk = chunk[:, self._start : self._start + steps, :actions].float()
            return self._processors.action(chunk).to(w.device, torch.float32)

    def action_range(self) -> tuple[Tensor, Tensor]:
        """The recorded range where the sampler clips to it; unbounded otherwise."""
        bounds = self._processors.action_bounds() if self._clips() else None
        return super().action_range() if bounds is None else bounds

    def describe(self) -> dict[str, Any]:
        """Facts for the passport."""
        from lerobot import __version__

        return {
            "kind": "lerobot",
            "policy": self._config.type,
            "lerobot": __version__,
            "sampler": self._sampler(),
            "task": self._options.task,
            "parameters": sum(value.numel() for value in self._policy.parameters()),
        }

    @abstractmethod
    def _configure(self) -> None:
        """Set the sampler in the configuration before the policy is built, and refuse what is stochastic."""

    @abstractmethod
    def _layout(self) -> tuple[tuple[int, int], int, int]:
        """The latent's shape, the chunk's first executed step, and how many can be executed."""

    @abstractmethod
    def _encode(self, batch: dict[str, Any]) -> Any:
        """From LeRobot's batch to what all noises of a state share."""

    @abstractmethod
    def _sample(self, context: Any, w: Tensor) -> Tensor:
        """From noises [B, H, L] to normalised chunks [B, H, >= A]."""

    @abstractmethod
    def _rows(self, context: Any) -> int:
        """B of a context."""

    @abstractmethod
    def _sampler(self) -> dict[str, Any]:
        """Facts that decide what a noise becomes."""

    def _clips(self) -> bool:
        return False

    def _history(self) -> int:
        return 1

    def _observed(self) -> dict[str, Shape]:
        """Shapes of what the policy reads, with the history axis where it has one."""
        history = (self._history(),) if self._history() > 1 else ()
        return {key: (*history, *map(int, feature.shape)) for key, feature in self._config.input_features.items()}

    def _unflatten(self, obs: Tensor) -> dict[str, Tensor]:
        """A vector [B, n * (D1 + D2 + ...)], oldest observation first, as named vectors."""
        frames = obs.unflatten(1, (self._history(), -1)) if self._history() > 1 else obs
        parts = frames.split([self._shapes[key][-1] for key in self._vectors], dim=-1)
        return dict(zip(self._vectors, parts, strict=True))

    def _fingerprint(self) -> str:
        spec = self.spec
        facts = {
            "policy": self._config.type,
            "sampler": self._sampler(),
            "processors": self._processors.facts(),
            "task": self._options.task,
            "obs": self._shapes,
            "flat": self._options.flat,
            **({"flat_order": self._vectors} if self._options.flat and len(self._vectors) > 1 else {}),
            "latent": spec.latent_shape,
            "action": spec.action_shape,
            "start": self._start,
            **({} if self._options.flat else {"features": self.pooling}),
        }
        return hash_tensors({**self._policy.state_dict(), **self._processors.tensors(), **self._instruction()}, facts)

    def _instruction(self) -> dict[str, Tensor]:
        """What the instruction is to the network, which is the tokenizer's doing; nothing where there is none."""
        return {}
