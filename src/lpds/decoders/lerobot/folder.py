"""A folder as LeRobot saves it: which policy it holds, its configuration, its weights."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lpds.decoders.base import refuse_non_finite
from lpds.decoders.lerobot.tiny import built_with, read_sizes
from lpds.errors import LpdsError, one_line

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PARTS = ("configuration", "modeling", "processor")
INSTALL = 'pip install "lerobot[diffusion,pi,smolvla]" (Python 3.12), or the recipe for Python 3.11 in docs/lerobot.md'


@dataclass(frozen=True)
class Family:
    """Where LeRobot keeps one kind of policy, and what decodes it here."""

    folder: str
    """Of ``lerobot.policies``."""
    policy: str
    """Its class."""
    decoder: str
    """``"module:attribute"``."""
    text: bool = True
    """Whether it reads an instruction, and needs transformers for it."""


FAMILIES: dict[str, Family] = {
    "diffusion": Family("diffusion", "DiffusionPolicy", "lpds.decoders.lerobot.diffusion:DiffusionPolicyDecoder", text=False),
    "pi0": Family("pi0", "PI0Policy", "lpds.decoders.lerobot.flow:Pi0Decoder"),
    "pi05": Family("pi05", "PI05Policy", "lpds.decoders.lerobot.flow:Pi05Decoder"),
    "smolvla": Family("smolvla", "SmolVLAPolicy", "lpds.decoders.lerobot.flow:SmolVLADecoder"),
}


def find_folder(path: str) -> Path:
    """The folder with ``config.json``: the given one, its ``pretrained_model``, or a snapshot of a repository."""
    given = Path(path).expanduser()
    for folder in (given, given / "pretrained_model"):
        if (folder / CONFIG).is_file():
            return folder.resolve()
    if given.exists():
        raise LpdsError(f"no LeRobot policy in {given}: {CONFIG} is missing")
    parts = path.split("/")
    if len(parts) != 2 or not all(parts) or path.startswith((".", "~")):
        raise LpdsError(f"LeRobot policy folder {given} does not exist")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise LpdsError(f"LeRobot policy folder {given} does not exist (to fetch a repository: {INSTALL})") from None
    try:
        return Path(hub.snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # offline, missing, gated: the library has a class for each
        reason = " ".join(str(error).split())[:200]
        raise LpdsError(f"{path!r} is neither a folder nor a repository that could be fetched: {reason}") from None


def policy_type(folder: Path) -> str:
    """The ``type`` in ``config.json``, one of :data:`FAMILIES`."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        kind = config["type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LpdsError(f"{folder / CONFIG} is not the configuration of a LeRobot policy ({one_line(error)})") from None
    if kind not in FAMILIES:
        raise LpdsError(
            f"{folder} holds a policy of type {kind!r}, which has no initial noise that could be steered here "
            f"(choices: {', '.join(sorted(FAMILIES))})"
        )
    if config.get("use_peft"):
        raise LpdsError(f"{folder} holds an adapter (use_peft); merge it into the policy and save that")
    return str(kind)


def import_lerobot(kind: str) -> None:
    """Import what a family needs.

    Raises:
        LpdsError: lerobot, or something that it needs for this policy, is not installed.
    """
    if importlib.util.find_spec("lerobot") is None:
        raise LpdsError(f"lerobot: policies need the package lerobot: {INSTALL}")
    admit_torchvision()
    try:
        probe: Any = importlib.import_module("lerobot.utils.import_utils")
        # It looks for the distribution "transformers" and overlooks a fork that provides the module.
        if importlib.util.find_spec("transformers") is not None:
            probe._transformers_available = True
        module = FAMILIES[kind].folder
        parts = [importlib.import_module(f"lerobot.policies.{module}.{part}_{module}") for part in PARTS]
        if FAMILIES[kind].text:
            parts.append(importlib.import_module("lerobot.processor.tokenizer_processor"))
    except (ImportError, RuntimeError) as error:  # the latter of compiled packages that do not fit each other
        raise LpdsError(f"lerobot's {kind} policy cannot be imported ({one_line(error)}): {INSTALL}") from None
    if probe._transformers_available and not all(getattr(part, "_transformers_available", True) for part in parts):
        raise LpdsError("lerobot was imported before this and overlooked transformers; load the decoder first")


def admit_torchvision() -> None:
    """Let a torchvision of another build than torch's be imported: PyPI's, made for CUDA, beside a torch for the CPU.

    Its compiled operators cannot be loaded then, and its import stops at the first two that it describes. LeRobot calls none
    of them, only transforms and networks; so these are declared, without an implementation, before it is imported again.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            return  # LeRobot's own import tells it
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def read_config(folder: Path, device: str) -> Any:
    """The policy's configuration, on a device."""
    configs = importlib.import_module("lerobot.configs.policies")
    try:
        return configs.PreTrainedConfig.from_pretrained(folder, cli_overrides=[f"--device={device}"])
    except Exception as error:  # the parser raises what it likes
        raise LpdsError(f"{folder / CONFIG} does not fit the installed lerobot: {one_line(error)}") from None


def build_policy(folder: Path, config: Any) -> Any:
    """The policy with its weights, all of them: LeRobot's own loading goes on with random ones where some are missing."""
    family = FAMILIES[config.type]
    cls = getattr(importlib.import_module(f"lerobot.policies.{family.folder}.modeling_{family.folder}"), family.policy)
    path = folder / WEIGHTS
    if not path.is_file():
        raise LpdsError(f"no weights in {folder}: {WEIGHTS} is missing")
    sizes = read_sizes(folder)
    with contextlib.redirect_stdout(io.StringIO()), built_with(config.type, sizes):  # it prints a greeting
        try:
            policy = cls(config)
        except Exception as error:
            raise LpdsError(f"{folder}: lerobot cannot build this policy: {one_line(error)}") from None
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise LpdsError(f"weights {path} cannot be read: {one_line(error)}") from None
    refuse_non_finite(weights, f"weights {path}")
    if hasattr(policy, "_fix_pytorch_state_dict_keys"):  # pi0 and pi05 know older names of their own layers
        weights = policy._fix_pytorch_state_dict_keys(weights, config)
        weights = {key if key.startswith("model.") else f"model.{key}": value for key, value in weights.items()}
    try:
        missing, unexpected = policy.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise LpdsError(f"weights {path} are of another policy: {one_line(error)}") from None
    missing = _not_tied(policy.state_dict(), set(missing))
    if missing or unexpected:
        raise LpdsError(
            f"weights {path} do not fit the policy: {len(missing)} missing (first: {sorted(missing)[:3]}), "
            f"{len(unexpected)} unknown (first: {sorted(unexpected)[:3]})"
        )
    policy.eval()
    policy.requires_grad_(False)
    return policy.to(config.device)


def _not_tied(state: dict[str, Tensor], missing: set[str]) -> set[str]:
    """Missing weights that share no storage with one that was loaded."""
    loaded = {value.data_ptr() for key, value in state.items() if key not in missing}
    return {key for key in missing if key not in state or state[key].data_ptr() not in loaded}
