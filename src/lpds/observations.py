"""Observations of one part or of several: arrays [N, ...] or a dict of them, pictures kept as uint8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpds.types import LatentSpec, Shape

Array = npt.NDArray[Any]
Arrays = Array | dict[str, Array]


def as_arrays(obs: Any) -> Arrays:
    """An observation as an environment gives it: pictures (uint8 of several axes) as they are, the rest float32."""
    if isinstance(obs, Mapping):
        return {key: _array(value) for key, value in obs.items()}
    return _array(obs)


def _array(value: Any) -> Array:
    array = np.asarray(value)
    return array if is_picture(array.dtype, array.shape) else array.astype(np.float32)


def is_picture(dtype: Any, shape: Sequence[int]) -> bool:
    """Whether something without a batch axis is kept as bytes."""
    return dtype == np.uint8 and len(shape) >= 2


def stack(rows: Sequence[Arrays]) -> Arrays:
    """Put observations together, [N, ...]."""
    first = rows[0]
    if isinstance(first, dict):
        return {key: np.stack([row[key] for row in rows]) for key in first}
    return np.stack(rows)  # type: ignore[arg-type]


def parts(obs: Arrays) -> dict[str, Array]:
    """The parts by name; the one part of an observation without names has the empty one."""
    return obs if isinstance(obs, dict) else {"": obs}


def select(obs: Any, rows: Any) -> Any:
    """Some rows of observations, arrays or tensors."""
    return {key: value[rows] for key, value in obs.items()} if isinstance(obs, Mapping) else obs[rows]


def write(into: Arrays, rows: Any, obs: Arrays) -> None:
    """Overwrite some rows of observations in place."""
    there = parts(into)
    for key, value in parts(obs).items():
        there[key][rows] = value


def vectors(obs: Arrays) -> npt.NDArray[np.float32]:
    """What is no picture, end to end, float32 [N, O]."""
    flat = [value.reshape(len(value), -1) for value in parts(obs).values() if not is_picture(value.dtype, value.shape[1:])]
    if not flat:
        return np.zeros((len(next(iter(parts(obs).values()))), 0), np.float32)
    return flat[0] if len(flat) == 1 else np.concatenate(flat, 1)


def conform(obs: Any, spec: LatentSpec, device: torch.device | None = None) -> Any:
    """Hand arrays or tensors over as a decoder takes them.

    Entries that it does not name are left out. Where it takes a picture as (C, H, W), with a history axis or without, one
    that comes in bytes, (H, W, C) or (C, H, W), becomes float32 [B, C, H, W] in [0, 1], as LeRobot and torchvision have it.
    Nothing else is changed.

    Args:
        obs: [B, ...] or a dict of them, of shapes that :func:`shapes_fit` accepts.
        spec: of the decoder.
        device: where the tensors shall be; the CPU, or where they are, by default.

    Returns:
        A tensor or a dict of tensors.
    """
    if isinstance(spec.obs_shape, Mapping):
        return {key: _handed_over(obs[key], shape, device) for key, shape in spec.obs_shape.items()}
    return _handed_over(obs, spec.obs_shape, device)


def _handed_over(value: Any, shape: Shape, device: torch.device | None) -> Tensor:
    tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    tensor = tensor if device is None else tensor.to(device)
    found = tuple(tensor.shape[1:])
    if tensor.dtype == torch.uint8 and len(shape) < 3:  # vectors and matrices are numbers, whatever they come in
        tensor = tensor.float()
    if tensor.dtype == torch.uint8 and len(shape) >= 3 and not has_channels_last(shape):
        # in one order in memory: sums over pixels depend on it, and a picture that comes over a wire has that one
        tensor = (tensor if found == shape else tensor.movedim(-1, -3)).contiguous().float() / 255.0
    out: Tensor = tensor
    return out


def has_channels_last(shape: Shape) -> bool:
    """Whether a picture's shape ends with its channels: 1, 3 or 4, or where none is that many, fewer than rows and columns."""
    return shape[-1] in (1, 3, 4) or (shape[-3] not in (1, 3, 4) and shape[-1] < min(shape[-3:-1]))


def has_channels_first(shape: Shape) -> bool:
    """Whether a picture's shape has its channels, 1, 3 or 4 of them, before its rows and columns."""
    return shape[-3] in (1, 3, 4)


def channels_first(shape: Shape) -> Shape:
    """(..., H, W, C) as (..., C, H, W)."""
    return (*shape[:-3], *shape[-1:], *shape[-3:-1])


def shapes_fit(given: Shape | Mapping[str, Shape], pictures: Mapping[str, bool], spec: LatentSpec) -> bool:
    """Whether :func:`conform` makes what the decoder takes of observations of these shapes.

    Args:
        given: without the batch axis.
        pictures: by part (the empty name for an observation without names), whether it is uint8.
        spec: of the decoder.
    """
    wanted = spec.obs_shape
    if isinstance(wanted, Mapping) != isinstance(given, Mapping):
        return False
    want: Mapping[str, Shape] = wanted if isinstance(wanted, Mapping) else {"": wanted}
    have: Mapping[str, Shape] = given if isinstance(given, Mapping) else {"": given}
    return all(
        key in have and (have[key] == shape or (pictures[key] and len(shape) >= 3 and channels_first(have[key]) == shape))
        for key, shape in want.items()
    )
