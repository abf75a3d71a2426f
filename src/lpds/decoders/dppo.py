"""Public DPPO / DSRL pre-training checkpoints (``state_N.pt`` with its ``normalization.npz``).

The file is a dict with ``model`` and ``ema``; weights are prefixed ``network.``. As DSRL does: a fine-tuned file holds its
frozen copy under ``actor.`` in ``model``; a pre-training file has none, and then ``ema`` is the policy.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpds.decoders.base import MinMaxNormaliser, refuse_non_finite
from lpds.decoders.diffusion import DiffusionDecoder, DiffusionSampler
from lpds.decoders.network import DenoisingMLP, shape_of
from lpds.errors import LpdsError
from lpds.types import LatentSpec

TUNED = "actor.*, the cloned policy, as DSRL steers it; actor_ft.*, which was fine-tuned since, is not used"


def load_dppo(
    path: str,
    *,
    normalization: str | Path | None = None,
    ddim_steps: int = 5,
    denoising_steps: int = 20,
    activation: str = "relu",
    eta: float = 0.0,
    execute: int | None = None,
    bf16: bool = False,
) -> DiffusionDecoder:
    """Open a DPPO state policy as a decoder from raw observations to environment actions.

    Args:
        path: the checkpoint file.
        normalization: npz with ``obs_min, obs_max, action_min, action_max``; required, since without it the actions
            would come out in the wrong units without a word.
        ddim_steps: n; DSRL uses 5 (gym) and 8 (RoboMimic).
        denoising_steps: K of the training schedule: 20, and 100 for Square and Transport.
        activation: ``"relu"`` (gym) or ``"mish"`` (RoboMimic); it cannot be read from the weights.
        eta: must be 0; anything else is a stochastic sampler.
        execute: steps of the chunk to execute; all of them by default.
        bf16: see :class:`DiffusionDecoder`.

    Returns:
        The decoder; its layer sizes are read from the weights.

    Raises:
        LpdsError: file missing or broken, no normaliser, stochastic sampler, weights of another network or NaN.
    """
    if eta != 0.0:
        raise LpdsError(
            f"eta {eta} makes the sampler stochastic, so that the initial noise no longer decides the action; use eta 0"
        )
    if normalization is None:
        raise LpdsError(f"dppo:{path} needs normalization=PATH (npz with obs_min, obs_max, action_min, action_max)")
    normaliser = load_normaliser(Path(normalization))
    weights, left_out = _policy_weights(_load_file(Path(path)), path)
    refuse_non_finite(weights, f"checkpoint {path}")
    shape = shape_of(weights, activation)
    actions = normaliser.action_min.numel()
    if shape.chunk_size % actions or shape.obs_size != normaliser.obs_min.numel():
        raise LpdsError(
            f"{normalization} is for {normaliser.obs_min.numel()} observations and {actions} actions, but {path} has "
            f"{shape.obs_size} observations and chunks of {shape.chunk_size} numbers"
        )
    horizon = shape.chunk_size // actions
    steps = horizon if execute is None else execute
    if not 1 <= steps <= horizon:
        raise LpdsError(f"execute must be in 1 .. {horizon} (the decoded chunk), not {steps}")
    net = DenoisingMLP(shape)
    try:
        net.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise LpdsError(f"{path}: {' '.join(str(error).split())}") from None
    spec = LatentSpec((shape.obs_size,), (horizon, actions), (steps, actions))
    sampler = DiffusionSampler(denoising_steps, ddim_steps)
    decoder = DiffusionDecoder(
        net, normaliser, sampler, spec, name=Path(path).stem, reference=f"dppo:{Path(path).resolve()}", bf16=bf16
    )
    decoder.left_out = left_out
    return decoder


def _load_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise LpdsError(f"checkpoint {path} does not exist")
    try:
        with warnings.catch_warnings(action="ignore"):  # on garbage, before it fails
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own words are a paragraph on how to allow code
        raise LpdsError(f"checkpoint {path} cannot be read: it is damaged, or holds more than plain weights") from None
    except Exception as error:  # on garbage the unpickler raises almost anything
        reason = " ".join(str(error).split())[:200] or "it is empty"
        raise LpdsError(f"checkpoint {path} cannot be read: {reason}") from None
    if not isinstance(content, dict) or not {"model", "ema"} & content.keys():
        raise LpdsError(f"checkpoint {path} has neither 'model' nor 'ema'; expected a file saved by DPPO")
    return content


def _policy_weights(content: dict[str, Any], path: str) -> tuple[dict[str, Tensor], str]:
    """The weights of the policy that was cloned, and in words what of a fine-tuned one is beside them."""
    for part in ("model", "ema"):
        weights = content.get(part, {})
        table = isinstance(weights, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items())
        if not table:
            raise LpdsError(f"checkpoint {path}: {part!r} is not a table of weights; expected a file saved by DPPO")
    model: dict[str, Tensor] = content.get("model", {})
    left_out = ""
    if any(key.startswith("actor.") for key in model):
        found = {key.removeprefix("actor."): value for key, value in model.items() if key.startswith("actor.")}
        tuned = {key.removeprefix("actor_ft."): value for key, value in model.items() if key.startswith("actor_ft.")}
        if any(key not in found or not torch.equal(value, found[key]) for key, value in tuned.items()):
            left_out = TUNED
    else:
        found = content.get("ema", model)
    if not found:
        raise LpdsError(f"checkpoint {path} holds no weights")
    return {key.removeprefix("network."): value.float() for key, value in found.items()}, left_out


def load_normaliser(path: Path) -> MinMaxNormaliser:
    """Read the four ranges of a DPPO ``normalization.npz``.

    Raises:
        LpdsError: the file is missing, broken, or lacks a range.
    """
    if not path.is_file():
        raise LpdsError(f"normaliser {path} does not exist")
    names = ("obs_min", "obs_max", "action_min", "action_max")
    try:
        with path.open("rb") as stream:  # np.load leaves a broken archive open
            arrays = np.load(stream, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise LpdsError(f"normaliser {path} cannot be read: it is a single array, not an npz of four")
            missing = [name for name in names if name not in arrays]
            if missing:
                raise LpdsError(f"normaliser {path} lacks {', '.join(missing)}; it has {', '.join(arrays.files)}")
            ranges = {name: torch.from_numpy(np.asarray(arrays[name], np.float32)) for name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise LpdsError(f"normaliser {path} cannot be read: {' '.join(str(error).split())}") from None
    refuse_non_finite(ranges, f"normaliser {path}")
    for low, high in (names[:2], names[2:]):
        if ranges[low].dim() != 1 or ranges[low].shape != ranges[high].shape:
            sizes = f"{list(ranges[low].shape)} and {list(ranges[high].shape)}"
            raise LpdsError(f"normaliser {path}: {low} and {high} must be two rows of the same length, not {sizes}")
        if bool((ranges[low] > ranges[high]).any()):
            raise LpdsError(f"normaliser {path}: {low} is above {high} in some columns (interchanged?)")
    return MinMaxNormaliser(**ranges)
