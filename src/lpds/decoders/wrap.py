"""``wrap_decoder``: what a user says of a function of their own, checked, and the decoder made of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpds.checks import check_device, whole
from lpds.decoders.callable import CallableDecoder
from lpds.errors import LpdsError, one_line
from lpds.observations import Arrays, as_arrays, parts, shapes_fit
from lpds.types import LatentSpec, Shape


def _sizes(name: str, shape: Any) -> Shape:
    """A shape of whole positive numbers, NumPy's too; one number is a shape of one axis."""
    try:
        sizes = tuple(operator.index(size) for size in (shape if isinstance(shape, Sequence) else (shape,)))
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise LpdsError(f"{name} must be made of positive integers, not {shape}")
    return sizes


def _pair(name: str, shape: Any) -> tuple[int, int]:
    sizes = _sizes(name, shape)
    if len(sizes) != 2:
        raise LpdsError(f"{name} must have two entries, not {sizes}")
    return sizes[0], sizes[1]


def wrap_decoder(
    fn: Callable[..., Any],
    *,
    obs_shape: int | Shape | Mapping[str, Shape],
    latent_shape: tuple[int, int],
    action_shape: tuple[int, int],
    name: str,
    free: Sequence[bool] | npt.NDArray[np.bool_] | None = None,
    features: Callable[[Any], Any] | None = None,
    feature_size: int | None = None,
    prepare: Callable[[Any], Any] | None = None,
    examples: Any = None,
    action_range: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    device: str = "cpu",
) -> CallableDecoder:
    """Make any function a decoder that can be steered.

    Args:
        fn: ``fn(obs, w) -> actions``; float32 tensors [B, *obs_shape] (a dict of them) and [B, H, L] in, an array or
            tensor [B, T, A] in environment units out. It must be a function: the same input, the same output.
        obs_shape: without the batch axis; one number is a vector's.
        latent_shape: (H, L).
        action_shape: (T, A), the executed chunk.
        name: part of the fingerprint, by which a Delta knows its decoder.
        free: for each of the L latent columns whether it may be steered; all by default.
        features: ``features(obs) -> [B, feature_size]``, a short vector of what matters in an observation of pictures or
            several entries, for instance pooled features of the policy's own frozen encoder: all that Delta and the critics
            see, and all that is kept of the observation. Pictures come as the environment gives them (uint8).
        feature_size: its length.
        prepare: ``prepare(obs) -> context``, what is dear and the same for every noise: tensors [B, ...], or a dict, a tuple or
            a list of them. It is done once a state, and ``fn`` and ``features`` get the context in place of ``obs``.
        examples: observations [N, ...] as the environment gives them, for a policy that takes no others (an index into a
            table, a logarithm of a distance). They stand for drawn ones in its fingerprint and in probes without an
            environment, so give the same ones again; by default they are drawn from N(0, I), pictures uniformly.
        action_range: lowest and highest action [A] (or one number for all of them), the environment's box for instance: the
            unit of a residual on the action (``lpds-a``), which needs one to be a fair rival.
        device: where the functions want their tensors, wherever a run learns; what they return may be anywhere.

    Returns:
        The decoder. A function that is not deterministic is refused when it is steered, and reported by
        :func:`lpds.check`.

    Raises:
        LpdsError: a shape is not made of positive integers, or ``free`` does not have L entries, or ``features`` and
            ``feature_size`` are not given together, or ``examples`` do not fit ``obs_shape``, or ``action_range`` is none, or
            this machine has no such device.
    """
    frozen: Shape | Mapping[str, Shape]
    if not callable(fn):
        raise LpdsError(f"wrap_decoder takes a function of (obs, w), not a {type(fn).__name__}")
    if isinstance(obs_shape, Mapping):
        if not obs_shape:
            raise LpdsError("obs_shape is an empty dict: a policy sees at least one entry")
        frozen = {key: _sizes("obs_shape", value) for key, value in obs_shape.items()}
    else:
        frozen = _sizes("obs_shape", obs_shape)
    latent_shape, action_shape = _pair("latent_shape", latent_shape), _pair("action_shape", action_shape)
    if free is not None:
        try:
            free = tuple(bool(column) for column in free)
        except (TypeError, ValueError, RuntimeError):
            raise LpdsError(f"free must have {latent_shape[1]} truth values, not {free}") from None
    if free is not None and (len(free) != latent_shape[1] or not any(free)):
        raise LpdsError(f"free must have {latent_shape[1]} entries, at least one of them true, not {free}")
    feature_size = None if feature_size is None else whole("feature_size", feature_size)
    if (features is None) != (feature_size is None) or (feature_size is not None and feature_size < 1):
        raise LpdsError(f"features= and feature_size= go together, and the size is a positive number, not {feature_size}")
    check_device(device)
    spec = LatentSpec(frozen, latent_shape, action_shape, free)
    shown = None if examples is None else _examples(examples, spec)
    edges = None if action_range is None else _edges(action_range, action_shape[1])
    return CallableDecoder(fn, spec, str(name), features, feature_size, prepare, shown, edges, torch.device(device))


def _edges(given: Any, size: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest action [A] as float32; one clear line where they are none."""
    try:
        low, high = (torch.from_numpy(np.broadcast_to(np.asarray(edge, np.float32), (size,)).copy()) for edge in given)
    except (TypeError, ValueError, RuntimeError):
        raise LpdsError(f"action_range must be lowest and highest actions, [{size}] or one number each, not {given}") from None
    if not bool((torch.isfinite(low) & torch.isfinite(high) & (low < high)).all()):
        raise LpdsError(f"action_range must be finite, the lowest below the highest, not {given}")
    return low, high


def _examples(given: Any, spec: LatentSpec) -> Arrays:
    """Observations to probe with, as arrays; one clear line where they are none."""
    try:
        arrays = as_arrays(given)
    except (TypeError, ValueError) as error:
        raise LpdsError(f"examples= must be observations [N, ...], not {type(given).__name__} ({one_line(error)})") from None
    found = {key: part.shape[1:] for key, part in parts(arrays).items()}
    pictures = {key: part.dtype == np.uint8 for key, part in parts(arrays).items()}
    rows = {len(part) if part.ndim else 0 for part in parts(arrays).values()}
    if not shapes_fit(found if isinstance(arrays, dict) else found[""], pictures, spec) or len(rows) != 1 or rows == {0}:
        given_shapes = {key: list(part.shape) for key, part in parts(arrays).items()}
        raise LpdsError(f"examples= must be observations [N, ...] of {spec.obs_shape}, not {given_shapes}")
    return arrays
