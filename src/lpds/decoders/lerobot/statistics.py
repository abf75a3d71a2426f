"""LeRobot's pre- and post-processors, and the check that they really normalise.

LeRobot passes a feature through as it is where its statistics are missing or keyed otherwise. Here that is an error.
"""

from __future__ import annotations

import importlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpds.decoders.base import uniform
from lpds.errors import LpdsError, one_line

NEEDED = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
FILES = ("policy_preprocessor.json", "policy_postprocessor.json")
TOKENIZER = "tokenizer"
"""Folder of a policy's own tokenizer, beside its configuration; else it is found by its saved name."""
AFTER = ("unnormalizer_processor", "device_processor")
"""Post-processing steps that are functions of the action alone."""
KNOWN = (
    "rename_observations_processor",
    "to_batch_processor",
    "observation_processor",
    "normalizer_processor",
    "unnormalizer_processor",
    "device_processor",
    "tokenizer_processor",
    "pi0_new_line_processor",
    "smolvla_new_line_processor",
    "pi05_prepare_state_tokenizer_processor_step",
    "relative_actions_processor",
    "absolute_actions_processor",
)
"""LeRobot's steps that are opened: functions of what passes through. (Its tokenizer step runs no code of a tokenizer's.)"""
LANGUAGE = (
    "tokenizer_processor",
    "pi0_new_line_processor",
    "smolvla_new_line_processor",
    "pi05_prepare_state_tokenizer_processor_step",
)
"""Pre-processing steps that need the instruction's text."""


class Processors:
    """Both pipelines of a folder, checked against the policy's features."""

    def __init__(self, folder: Path, config: Any, device: str, *, text: bool, tokenizer: str | Path | None) -> None:
        self._folder, self._config = folder, config
        before = _open(folder, FILES[0], device, text=text, tokenizer=tokenizer)
        after = _open(folder, FILES[1], device, text=text, tokenizer=tokenizer)
        steps = [step for step in before.steps if text or _name(step) not in LANGUAGE]
        before.steps = steps
        strange = [_name(step) for step in after.steps if _name(step) not in AFTER and getattr(step, "enabled", True)]
        if strange:
            raise LpdsError(f"{folder / FILES[1]}: step {strange[0]!r} is not known here (known: {', '.join(AFTER)})")
        self._before, self._after = before, after
        self.renamed: dict[str, str] = {}
        for step in before.steps:
            self.renamed.update({new: old for old, new in getattr(step, "rename_map", {}).items()})
        self._check(before, config.input_features, FILES[0])
        self._check(after, config.output_features, FILES[1])

    def unknown_words(self, text: str) -> list[str]:
        """Words of an instruction that the tokenizer has nothing but its "unknown" for."""
        found = (getattr(step, "input_tokenizer", None) or getattr(step, "tokenizer", None) for step in self._before.steps)
        tokenizer = next((one for one in found if getattr(one, "unk_token_id", None) is not None), None)
        if tokenizer is None:
            return []
        return [
            word for word in text.split() if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False)["input_ids"]
        ]

    def observation(self, obs: dict[str, Any]) -> dict[str, Any]:
        """Raw observations as LeRobot's batch for the policy: renamed, tokenised, normalised."""
        batch: dict[str, Any] = self._before(obs)
        return batch

    def action(self, action: Tensor) -> Tensor:
        """Normalised actions [B, T, A] to environment units."""
        out: Tensor = self._after(action)
        return out

    def tensors(self) -> dict[str, Tensor]:
        """Every statistic by pipeline, feature and name."""
        return {
            f"{side}.{key}": value
            for side, pipeline in (("pre", self._before), ("post", self._after))
            for step in _normalisers(pipeline)
            for key, value in step.state_dict().items()
        }

    def spread(self, key: str, draws: Tensor) -> Tensor:
        """Standard normal draws [..., n] of an entry, by its name outside, over what its statistics say was recorded."""
        inside = {old: new for new, old in self.renamed.items()}.get(key, key)
        stats = {name: value.cpu() for name, value in self.tensors().items() if name.startswith(f"pre.{inside}.")}
        mode = _mode(self._config.normalization_mapping, self._config.input_features[inside].type.value)
        if mode == "IDENTITY":
            return draws
        first, second = (stats[f"pre.{inside}.{name}"] for name in NEEDED[mode])
        if mode == "MEAN_STD":
            return first + second * draws
        return first + uniform(draws) * (second - first)

    def facts(self) -> dict[str, Any]:
        """What is not a tensor: the steps and their settings."""
        out: dict[str, Any] = {}
        for side, pipeline in (("pre", self._before), ("post", self._after)):
            # of a tokenizer what it makes of the instruction counts, not where it lies (LeRobotDecoder._instruction)
            elsewhere = ("device", "tokenizer_name")
            settings = [[_name(s), {k: v for k, v in s.get_config().items() if k not in elsewhere}] for s in pipeline.steps]
            out[side] = settings
        return out

    def action_bounds(self) -> tuple[Tensor, Tensor] | None:
        """Lowest and highest recorded action where actions are scaled by them."""
        if _mode(self._config.normalization_mapping, "ACTION") != "MIN_MAX":
            return None
        stats = self.tensors()
        return stats["post.action.min"], stats["post.action.max"]

    def _check(self, pipeline: Any, features: dict[str, Any], file: str) -> None:
        """Refuse what LeRobot would pass through without a word."""
        steps = _normalisers(pipeline)
        where = self._folder / file
        for key, feature in features.items():
            mode = _mode(self._config.normalization_mapping, feature.type.value)
            doing = [step for step in steps if key in step.features]
            for step in doing:
                known_as, found = step.features[key].type.value, _mode(step.norm_map, step.features[key].type.value)
                if known_as != feature.type.value:  # a step goes by what it has the feature for
                    raise LpdsError(f"{where}: {key!r} is {known_as} to its step, but {feature.type.value} to the policy")
                if found != mode:
                    raise LpdsError(f"{where}: {key!r} is normalised by {found}, but the policy was trained with {mode}")
            if mode == "IDENTITY":
                continue
            if len(doing) > 1:
                raise LpdsError(f"{where}: {key!r} is normalised {len(doing)} times over, by as many steps")
            if not doing:
                known = sorted({name for step in steps for name in step.features})
                raise LpdsError(f"{where}: {key!r} is to be normalised ({mode}) but no step does it (steps know: {known})")
            (step,) = doing
            chosen = getattr(step, "normalize_observation_keys", None)
            if chosen is not None and feature.type.value != "ACTION" and key not in chosen:
                raise LpdsError(f"{where}: {key!r} is to be normalised ({mode}) but its step does only {sorted(chosen)}")
            self._check_statistics(step.state_dict(), key, mode, tuple(feature.shape), where)

    def _check_statistics(self, stats: dict[str, Tensor], key: str, mode: str, shape: tuple[int, ...], where: Path) -> None:
        keys = sorted({name.rsplit(".", 1)[0] for name in stats})
        for name in NEEDED[mode]:
            value = stats.get(f"{key}.{name}")
            if value is None:
                raise LpdsError(f"{where}: no statistic {name!r} of {key!r} ({mode}); its statistics are keyed {keys}")
            try:
                fits = torch.broadcast_shapes(tuple(value.shape), shape) == shape
            except RuntimeError:
                fits = False
            if not fits:
                raise LpdsError(f"{where}: statistic {name!r} of {key!r} is {list(value.shape)}, the feature {list(shape)}")
            if not bool(torch.isfinite(value).all()):
                raise LpdsError(f"{where}: statistic {name!r} of {key!r} is NaN or infinite")


def _open(folder: Path, file: str, device: str, *, text: bool, tokenizer: str | Path | None) -> Any:
    if not (folder / file).is_file():
        raise LpdsError(
            f"no {file} in {folder}, so that observations or actions would pass unscaled; a policy saved before "
            "LeRobot 0.4 is brought up to date by lerobot's migrate_policy_normalization.py"
        )
    pipeline: Any = importlib.import_module("lerobot.processor")
    convert: Any = importlib.import_module("lerobot.processor.converters")
    names = _step_names(folder / file)
    _refuse_foreign_code(folder / file, pipeline)
    gone = [state for state in _state_files(folder / file) if not (folder / state).is_file()]
    if gone:
        raise LpdsError(f"{folder / file} names {gone[0]}, which is not there: its statistics are missing")
    overrides: dict[str, dict[str, Any]] = {}
    if "device_processor" in names and file == FILES[0]:
        overrides["device_processor"] = {"device": device}
    if "tokenizer_processor" in names:
        if not text:  # an object in its place keeps the step from looking for its own; the step is taken out
            overrides["tokenizer_processor"] = {"tokenizer": object(), "tokenizer_name": None}
        elif tokenizer is not None:
            overrides["tokenizer_processor"] = {"tokenizer_name": str(tokenizer)}
        elif (folder / TOKENIZER).is_dir():  # as an object, so that no path enters the fingerprint
            overrides["tokenizer_processor"] = {"tokenizer": _own_tokenizer(folder / TOKENIZER), "tokenizer_name": None}
    sides = {
        FILES[0]: (convert.batch_to_transition, convert.transition_to_batch),
        FILES[1]: (convert.policy_action_to_transition, convert.transition_to_policy_action),
    }
    try:
        return pipeline.PolicyProcessorPipeline.from_pretrained(
            str(folder), config_filename=file, overrides=overrides, to_transition=sides[file][0], to_output=sides[file][1]
        )
    except Exception as error:  # missing state files, unknown steps, a tokenizer that cannot be fetched
        if text and "tokenizer_processor" in names and "tokenizer_processor" not in overrides:
            raise LpdsError(
                f"{folder / file} cannot be opened; if its tokenizer cannot be fetched here, pass a folder that holds it "
                f"(--tokenizer FOLDER, tokenizer=): {one_line(error)}"
            ) from None
        raise LpdsError(f"{folder / file} cannot be opened: {one_line(error)}") from None


def _own_tokenizer(folder: Path) -> Any:
    transformers: Any = importlib.import_module("transformers")
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library has a class for each way to be broken
        raise LpdsError(f"tokenizer {folder} cannot be opened: {one_line(error)}") from None


def _step_names(path: Path) -> list[str]:
    try:
        steps = json.loads(path.read_bytes())["steps"]
        return [step.get("registry_name", step.get("class", "")) for step in steps]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LpdsError(f"{path} is not a LeRobot processor ({one_line(error)})") from None


def _refuse_foreign_code(path: Path, pipeline: Any) -> None:
    """Refuse steps that could run what a checkpoint brings along, before LeRobot makes any.

    A checkpoint is data, and may be a stranger's. A step that is named by a class is imported and called with the file's
    words, whatever it is; and some of LeRobot's own load code or further models by a name or a place that the file gives. What
    the user's own code has registered is the user's affair.
    """
    registry = pipeline.ProcessorStepRegistry
    for number, step in enumerate(json.loads(path.read_bytes())["steps"]):
        if "registry_name" in step:
            name = step["registry_name"]
            own = name in registry.list() and registry.get(name).__module__.split(".")[0] != "lerobot"
            fine = own or name in KNOWN
        else:
            name = str(step.get("class", ""))
            found = _named_class(name)
            fine = found is pipeline.IdentityProcessorStep or getattr(found, "_registry_name", None) in KNOWN
        if not fine:
            raise LpdsError(
                f"{path}: step {number} is {name!r}, which no policy of these kinds needs (known: {', '.join(KNOWN)}): a "
                "checkpoint that may bring code is not opened. If it is your own step, register it "
                "(ProcessorStepRegistry.register), import it first and save the processor again"
            )


def _named_class(path: str) -> Any:
    """A class of LeRobot's by its full name; nothing of any other module is imported."""
    module, _, name = path.rpartition(".")
    if module.split(".")[0] != "lerobot":
        return None
    with suppress(ImportError):
        return getattr(importlib.import_module(module), name, None)
    return None


def _state_files(path: Path) -> list[str]:
    """Files of tensors that the steps of a processor's file name."""
    return [step["state_file"] for step in json.loads(path.read_bytes())["steps"] if step.get("state_file")]


def _normalisers(pipeline: Any) -> list[Any]:
    return [step for step in pipeline.steps if hasattr(step, "norm_map")]


def _name(step: Any) -> str:
    return getattr(type(step), "_registry_name", None) or type(step).__name__


def _mode(mapping: dict[Any, Any], kind: str) -> str:
    """Name of the normalisation of a feature type, whose key may be an enumeration or its text."""
    for key, mode in mapping.items():
        if getattr(key, "value", key) == kind:
            return str(getattr(mode, "value", mode))
    return "IDENTITY"
