"""Messages of a decoder over a network: msgpack maps whose arrays have openpi's form, read strictly.

    {"observation": array or {name: array}, "noise": array}   ->   {"actions": array}  or  {"error": {"kind", "message"}}
    {"observation": ...}                                      ->   {"context": number}, with "features" where there are any
    {"context": number, "repeat": count, "noise": array}      ->   {"actions": array}
    {"features": array, "noise": array}                       ->   {"actions": array}

An array is ``{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [B, ...]}``. What comes in may be hostile:
nothing is evaluated, the types are a short list, and neither counts nor sizes are believed before they are compared.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpds.errors import LpdsError
from lpds.types import Decoder, LatentSpec, Shape

PROTOCOL = "lpds-decoder"
VERSION = 2
LONGEST_PROBE = 65_536
MAX_BYTES = 64 * 2**20
"""Of one message."""
MAX_BATCH = 4096
"""Rows of one request."""
MAX_PARTS = 2048
"""Maps and lists of one message, so that a small message cannot become millions of objects."""
MAX_LENGTH = 1024
"""Entries of one map or list."""
MAX_DEPTH = 8
MAX_AXES = 8
MAX_LINE = 500
"""Characters of an error's message."""
DTYPES = ("<f4", "<f8", "|i1", "<i2", "<i4", "<i8", "|u1", "|b1")
"""What an array may hold; no objects, no records, no strings."""

Array = npt.NDArray[Any]
_ARRAY_KEYS = {b"__ndarray__", b"data", b"dtype", b"shape"}


class WireError(LpdsError):
    """A message that is not understood, with the word that the answer is marked with."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def need(module: str) -> Any:
    """Import a part of websockets or msgpack.

    Raises:
        LpdsError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise LpdsError("remote decoders need websockets and msgpack: pip install 'lpds[remote]'") from None


def silent() -> logging.Logger:
    """A logger that says nothing, for websockets: at its finest level it would write the token's header."""
    logger = logging.getLogger("lpds.wire")
    logger.disabled = True
    return logger


def pack(message: Mapping[str, Any]) -> bytes:
    """Write a message; arrays may be anywhere in it.

    Raises:
        WireError: an array of a type that is not on the list.
    """
    packed: bytes = need("msgpack").packb(message, default=_pack_array)
    return packed


def _pack_array(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise WireError("message", f"a {type(value).__name__} cannot be sent")
    little = np.asarray(value, value.dtype.newbyteorder("<"))
    if little.dtype.str not in DTYPES:
        raise WireError("dtype", f"arrays of {value.dtype} cannot be sent (choices: {', '.join(_names())})")
    return {b"__ndarray__": True, b"data": little.tobytes(), b"dtype": little.dtype.str, b"shape": list(little.shape)}


def unpack(data: bytes | str) -> dict[str, Any]:
    """Read a message that may be anything.

    Raises:
        WireError: what it is instead.
    """
    if isinstance(data, str):
        raise WireError("message", "expected a binary frame with a msgpack map, not a text frame")
    parts = 0

    def count(value: Any) -> Any:
        nonlocal parts
        parts += 1
        if parts > MAX_PARTS:
            raise WireError("size", f"a message of more than {MAX_PARTS} maps and lists")
        return value

    def refuse(code: int, content: bytes) -> Any:
        raise WireError("message", f"msgpack extension type {code} is not understood")

    try:
        message = need("msgpack").unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_hook=count,
            list_hook=count,
            ext_hook=refuse,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
            max_ext_len=0,
        )
    except LpdsError:
        raise
    except Exception as error:  # by its own documentation it raises almost anything on garbage
        raise WireError("message", f"not a msgpack map ({printable(str(error)) or type(error).__name__})") from None
    if not isinstance(message, dict) or b"__ndarray__" in message:
        raise WireError("message", f"expected a msgpack map, not {'an array' if message else 'a value'}")
    read: dict[str, Any] = _read(message, 0)
    return read


def _read(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise WireError("message", f"a message nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        if b"__ndarray__" in value:
            return _read_array(value)
        if not all(isinstance(key, str) for key in value):
            raise WireError("message", "keys of a map must be text")
        return {key: _read(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, list):
        return [_read(entry, depth + 1) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise WireError("message", f"a {type(value).__name__} outside an array is not understood")


def _read_array(value: dict[Any, Any]) -> Array:
    if set(value) != _ARRAY_KEYS or value[b"__ndarray__"] is not True:
        raise WireError("array", "an array has the keys __ndarray__ (true), data, dtype and shape, as bytes, and no other")
    data, name, shape = value[b"data"], value[b"dtype"], value[b"shape"]
    if not isinstance(name, str) or name not in DTYPES:
        said = printable(name)[:20] if isinstance(name, str) else type(name).__name__
        raise WireError("dtype", f"arrays of dtype {said!r} are not accepted (choices: {', '.join(DTYPES)})")
    sizes = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not sizes or len(shape) > MAX_AXES:
        raise WireError("array", f"an array's shape is a list of at most {MAX_AXES} sizes")
    dtype = np.dtype(name)
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        held = f"{len(data)} bytes" if isinstance(data, bytes) else f"a {type(data).__name__}"
        raise WireError("array", f"an array of dtype {name} and shape {_clip(shape)} does not fit in {held}")
    if name == "|b1" and data.strip(b"\x00\x01"):
        raise WireError("array", "a bool array holds bytes other than 0 and 1")
    try:  # a copy, since the bytes cannot be written to; in the machine's own order
        return np.ndarray(shape, dtype, data).astype(dtype.newbyteorder("="))
    except (ValueError, OverflowError):  # no bytes and sizes beyond all bounds
        raise WireError("array", f"an array of shape {_clip(shape)} is too large") from None


def _clip(shape: list[int]) -> str:
    text = str(shape)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _names() -> list[str]:
    return [np.dtype(name).name for name in DTYPES]


def printable(text: str) -> str:
    """A stranger's text as something to print: one line, nothing invisible, not endless."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))[:MAX_LINE]


# -- what a server says of its decoder ---------------------------------------------------------------------------------


def spec_to_wire(spec: LatentSpec) -> dict[str, Any]:
    """The shapes as plain values."""
    shape = spec.obs_shape
    obs = {key: list(value) for key, value in shape.items()} if isinstance(shape, Mapping) else list(shape)
    return {
        "obs_shape": obs,
        "latent_shape": list(spec.latent_shape),
        "action_shape": list(spec.action_shape),
        "free": None if spec.free is None else list(spec.free),
    }


def spec_from_wire(value: Any) -> LatentSpec:
    """Inverse of :func:`spec_to_wire`.

    Raises:
        WireError: the values are no shapes.
    """

    def shape(name: str, sizes: Any, count: int | None = None) -> Shape:
        fits = isinstance(sizes, list) and 0 < len(sizes) <= MAX_AXES and (count is None or len(sizes) == count)
        if not fits or not all(type(size) is int and 0 < size < sys.maxsize for size in sizes):
            raise WireError("message", f"{name} must be a list of {count or 'some'} positive sizes")
        return tuple(sizes)

    if not isinstance(value, dict):
        raise WireError("message", "spec must be a map")
    obs, free = value.get("obs_shape"), value.get("free")
    (h, latent), (t, a) = (shape(name, value.get(name), 2) for name in ("latent_shape", "action_shape"))
    if free is not None and not (
        isinstance(free, list) and len(free) == latent and all(isinstance(one, bool) for one in free) and any(free)
    ):
        raise WireError("message", f"free must be a list of {latent} truth values, at least one of them true")
    if isinstance(obs, dict) and obs:
        shapes: Shape | dict[str, Shape] = {key: shape("obs_shape", sizes) for key, sizes in obs.items()}
    else:
        shapes = shape("obs_shape", obs)
    return LatentSpec(shapes, (h, latent), (t, a), None if free is None else tuple(free))


@dataclass(frozen=True)
class Served:
    """What a server says of its decoder to everybody who connects."""

    name: str
    fingerprint: str
    spec: LatentSpec
    action_range: tuple[Tensor, Tensor]
    """Lowest and highest action [A]."""
    facts: dict[str, Any]
    """The decoder's own, and below ``"server"`` the versions that compute."""
    max_bytes: int
    """Of a request."""
    max_batch: int
    """Rows of a request."""
    feature_size: int | None
    """F of the features that stand in the place of observations; ``None`` where there are none."""
    decodes_states: bool
    """Whether observations, or their features, can be decoded again."""
    shares_context: bool
    """Whether what depends on the observation alone is dear, and kept by the server."""
    probe: str | None = None
    """Of a function, what it decodes at a few inputs, by which it is known again on another machine."""
    examples: Any = None
    """Observations [N, ...], or a dict of them, such as the decoder might meet; ``None`` where its server sends none."""


def describe_decoder(
    decoder: Decoder, facts: dict[str, Any], max_bytes: int, max_batch: int, examples: Any = None
) -> dict[str, Any]:
    """The first message of a connection."""
    size, probe = getattr(decoder, "feature_size", None), getattr(decoder, "probe", None)
    low, high = (bound.detach().cpu().numpy().astype(np.float32) for bound in decoder.action_range())
    return {
        "protocol": PROTOCOL,
        "protocol_version": VERSION,
        "name": decoder.name,
        "fingerprint": decoder.fingerprint,
        "spec": spec_to_wire(decoder.spec),
        "action_low": low,
        "action_high": high,
        "facts": facts,
        "max_bytes": max_bytes,
        "max_batch": max_batch,
        "feature_size": None if size is None else int(size),
        "decodes_states": bool(decoder.decodes_states),
        "shares_context": bool(getattr(decoder, "shares_context", False)),
        "probe": probe if probe is None or len(probe) <= LONGEST_PROBE else None,
        "examples": examples,
    }


def read_description(message: dict[str, Any]) -> Served:
    """Inverse of :func:`describe_decoder`.

    Raises:
        WireError: it is none.
    """
    if message.get("protocol") != PROTOCOL:
        raise WireError("message", f"no decoder server: it does not say {PROTOCOL!r}")
    if message.get("protocol_version") != VERSION:
        theirs = printable(str(message.get("protocol_version")))[:20]
        raise WireError("message", f"version {theirs} of the decoder protocol, expected {VERSION}: update one side")
    name, fingerprint, facts = message.get("name"), message.get("fingerprint"), message.get("facts")
    limits: list[Any] = [message.get("max_bytes"), message.get("max_batch")]
    ranges = [message.get("action_low"), message.get("action_high")]
    spec = spec_from_wire(message.get("spec"))
    if not (isinstance(name, str) and isinstance(fingerprint, str) and isinstance(facts, dict)):
        raise WireError("message", "name and fingerprint must be texts, and facts a map")
    try:
        json.dumps(facts, allow_nan=False)  # it goes into passports
    except (TypeError, ValueError, RecursionError):
        raise WireError("message", "facts must be plain finite JSON") from None
    if not all(
        isinstance(row, np.ndarray) and row.dtype == np.float32 and row.shape == spec.action_shape[1:] for row in ranges
    ):
        raise WireError("message", f"action_low and action_high must be float32 [{spec.action_shape[1]}]")
    if not all(type(limit) is int and limit > 0 for limit in limits):
        raise WireError("message", "max_bytes and max_batch must be positive")
    size, again, shares = (message.get(key) for key in ("feature_size", "decodes_states", "shares_context"))
    if not (size is None or (type(size) is int and 0 < size < sys.maxsize)) or not (type(again) is type(shares) is bool):
        raise WireError(
            "message", "feature_size must be a positive number or nil, decodes_states and shares_context truth values"
        )
    probe = message.get("probe")  # a server of before has none
    if not (probe is None or (isinstance(probe, str) and len(probe) <= LONGEST_PROBE)):
        raise WireError("message", f"probe must be a text of at most {LONGEST_PROBE:,} characters, or nil")
    examples = _examples(message.get("examples"), spec)
    low, high = (torch.from_numpy(row) for row in ranges)
    said = (printable(name)[:100], printable(fingerprint)[:100])
    return Served(*said, spec, (low, high), facts, limits[0], limits[1], size, again is True, shares is True, probe, examples)


def _examples(given: Any, spec: LatentSpec) -> Any:
    """The served decoder's examples as tensors; a server of before has none, and pictures may be left out.

    Raises:
        WireError: they are no observations of the decoder's.
    """
    if given is None:
        return None
    several = isinstance(spec.obs_shape, Mapping)
    shapes: Mapping[str, Shape] = spec.obs_shape if isinstance(spec.obs_shape, Mapping) else {"": spec.obs_shape}
    entries = given if several else {"": given}
    if not isinstance(entries, dict) or not entries or not set(entries) <= set(shapes):
        raise WireError("message", "examples must be observations of the decoder's")
    rows = {len(value) if isinstance(value, np.ndarray) and value.ndim else 0 for value in entries.values()}
    fit = len(rows) == 1 and rows != {0}
    if not fit or not all(value.shape[1:] == shapes[key] and np.isfinite(value).all() for key, value in entries.items()):
        raise WireError("message", "examples must be observations of the decoder's, as many of every part")
    tensors = {key: torch.from_numpy(value) for key, value in entries.items()}
    return tensors if several else tensors[""]
