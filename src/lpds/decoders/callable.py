"""Any function ``fn(obs, w) -> actions`` as a decoder."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpds.decoders.base import BaseDecoder, as_float32, each_part, hash_tensors
from lpds.errors import DecoderFault, LpdsError, one_line
from lpds.random import normal
from lpds.types import LatentSpec, Shape

PROBE_SCALES = (1.0, 0.1, 0.01)
"""Deviations of the observations that a fingerprint is taken at: a policy may saturate on those far from its own."""


class CallableDecoder(BaseDecoder):
    """A user's own policy, called as it is. Its fingerprint is made of its name, its shapes and what it decodes."""

    can_be_lost = True

    def __init__(
        self,
        fn: Callable[..., Any],
        spec: LatentSpec,
        name: str,
        features: Callable[[Any], Any] | None = None,
        feature_size: int | None = None,
        prepare: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(spec, name)
        self._prepare, self.shares_context = prepare, prepare is not None
        self._fn, self._features, self._feature_size = fn, features, feature_size
        self.decodes_states = features is None

    def prepare(self, obs: Any) -> Any:
        """What the user's functions share; the observations themselves by default."""
        if self._prepare is None:
            return obs
        rows = len(next(iter(obs.values())) if isinstance(obs, Mapping) else obs)
        return _shared(self._guarded("prepare", self._prepare, _copy(obs)), rows, self.name)

    @property
    def feature_size(self) -> int | None:
        """F, of the user's function."""
        return self._feature_size

    def features(self, context: Any) -> Tensor:
        """Call the user's function on the context; an array or a tensor of [B, F] must come back."""
        if self._features is None:
            return super().features(context)
        function, seen = self._features, _copy(context)
        found: Tensor = self._guarded("features", lambda x: torch.as_tensor(function(x)).detach().to(torch.float32), seen)
        if found.ndim != 2 or found.shape[1] != self.feature_size:
            raise LpdsError(f"the features of decoder {self.name!r} are {list(found.shape)}, expected [B, {self.feature_size}]")
        if not bool(torch.isfinite(found).all()):
            raise DecoderFault(f"the features of decoder {self.name!r} hold NaN or infinity")
        return found

    def _guarded(self, what: str, call: Callable[[Any], Any], value: Any) -> Any:
        try:
            with torch.no_grad():
                return call(value)
        except LpdsError:
            raise
        except Exception as error:
            raise DecoderFault(f"{what} of decoder {self.name!r} raised {one_line(error)}") from error

    def __call__(self, obs: Any, w: Tensor) -> Tensor:
        """Decode a batch; see :meth:`BaseDecoder.__call__`. NaN are handed back, for one to see where they are."""
        obs, w = as_float32(obs), as_float32(w)
        self._check_inputs(obs, w)
        return self._called(self.prepare(obs), w)

    def decode(self, context: Any, w: Tensor) -> Tensor:
        """What runs and evaluations call.

        Raises:
            DecoderFault: the function raised, or what came back is of another shape or not finite. In a run that saves and
                stops, with nothing learned from it.
            LpdsError: the latents are not finite themselves.
        """
        action = self._called(context, w)
        if not bool(torch.isfinite(action).all()):
            if not bool(torch.isfinite(w).all()):
                raise LpdsError(
                    f"learning diverged: decoder {self.name!r} was given a latent of NaN or infinity; try a lower lr, or "
                    "another reward_scale (what was saved last is from before)"
                )
            raise DecoderFault(f"decoder {self.name!r} returned NaN or infinite actions")
        return action

    def _called(self, context: Any, w: Tensor) -> Tensor:
        """Call the function on copies, so that it may work in place; an array or a tensor of [B, T, A] must come back."""
        try:
            with torch.no_grad():
                result = self._fn(_copy(context), w.clone())
        except LpdsError:
            raise
        except Exception as error:
            raise DecoderFault(f"decoder {self.name!r} raised {one_line(error)}") from error
        try:
            found = np.ascontiguousarray(result) if isinstance(result, np.ndarray) else result
            # a copy: a function may return the same buffer again
            action = torch.as_tensor(found).detach().to(w.device, torch.float32, copy=True)
        except (TypeError, ValueError, RuntimeError):
            kind = type(result).__name__
            raise DecoderFault(f"decoder {self.name!r} must return an array or a tensor of actions, not a {kind}") from None
        wanted = (w.shape[0], *self.spec.action_shape)
        if tuple(action.shape) != wanted:
            raise DecoderFault(f"decoder {self.name!r} returned actions {list(action.shape)}, expected {list(wanted)}")
        return action

    def describe(self) -> dict[str, Any]:
        """Facts for the passport."""
        return {"kind": "callable", "name": self.name}

    def _fingerprint(self) -> str:
        obs, w = self._probe()
        first, second = self(obs, w), self(obs, w)
        if not bool(torch.isfinite(first).all()):
            raise LpdsError(f"decoder {self.name!r} returned NaN or infinite actions on a probe")
        if not torch.equal(first, second):
            raise LpdsError(
                f"decoder {self.name!r} is stochastic: the same observation and latent gave two different actions. "
                "Use a deterministic sampler (DDIM with eta 0, or an ODE solver) and pass it the initial noise w"
            )
        # Two decimals, in the unit of each action coordinate (metres a step are small numbers), are far above rounding
        # noise and far below any change that matters. The 1.5 keeps the unit's own jumps away from 1, 0.1, ...
        largest = first.double().abs().amax((0, 1))
        exponent = torch.where(largest > 0, (1.5 * largest).log10().floor(), 0.0)
        probe = torch.round(first.double() / 10.0**exponent, decimals=2) + 0.0
        spec = self.spec
        facts = {"name": self.name, "latent": spec.latent_shape, "action": spec.action_shape, "free": spec.free}
        tensors = {"probe": probe, "exponent": exponent}
        if self._features is not None:  # a Delta that was learned on some features is nothing on others
            found, again = (self.features(self.prepare(obs)).double() for _ in range(2))
            if not torch.equal(found, again):
                raise LpdsError(f"the features of decoder {self.name!r} are stochastic: the same observation gave two vectors")
            tensors["features"] = torch.round(found / found.abs().max().clamp(min=1e-12), decimals=2) + 0.0
        return hash_tensors(tensors, facts)

    def _probe(self) -> tuple[Any, Tensor]:
        def draw(index: int, shape: Shape, scaled: bool = True) -> Tensor:
            rows = torch.from_numpy(normal("probe", index, shape=(2 * len(PROBE_SCALES), *shape)))
            scales = torch.tensor(PROBE_SCALES).repeat_interleave(2)
            return rows * scales.view(-1, *(1 for _ in shape)) if scaled else rows

        shape = self.spec.obs_shape
        obs: Any
        if isinstance(shape, Mapping):
            obs = {key: draw(index + 1, shape[key]) for index, key in enumerate(sorted(shape))}
        else:
            obs = draw(1, shape)
        # pictures as pictures: its functions may insist on it
        return self.plausible(obs), draw(0, self.spec.latent_shape, scaled=False)


def _copy(value: Any) -> Any:
    """Tensors, and tables and sequences of them, as copies, so that a function may work in place."""
    return each_part(value, lambda part: part.clone() if isinstance(part, Tensor) else part)


def _shared(context: Any, rows: int, name: str) -> Any:
    """A context as tensors [B, ...], arrays too, and constants; what has no rows could not be repeated for several noises."""

    def part(value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        if not isinstance(tensor, Tensor) or tensor.ndim == 0 or len(tensor) != rows:
            found = list(tensor.shape) if isinstance(tensor, Tensor) else type(value).__name__
            raise LpdsError(
                f"prepare of decoder {name!r} must return tensors [B, ...], or a dict, a tuple or a list of them, with one row "
                f"for each of the B observations: of {rows} it returned {found}"
            )
        return tensor

    return each_part(context, part)


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

    Returns:
        The decoder. A function that is not deterministic is refused when it is steered, and reported by
        :func:`lpds.check`.

    Raises:
        LpdsError: a shape is not made of positive integers, or ``free`` does not have L entries, or ``features`` and
            ``feature_size`` are not given together.
    """
    frozen: Shape | Mapping[str, Shape]
    if not callable(fn):
        raise LpdsError(f"wrap_decoder takes a function of (obs, w), not a {type(fn).__name__}")
    if isinstance(obs_shape, Mapping):
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
    if (features is None) != (feature_size is None) or (feature_size is not None and feature_size < 1):
        raise LpdsError(f"features= and feature_size= go together, and the size is a positive number, not {feature_size}")
    spec = LatentSpec(frozen, latent_shape, action_shape, free)
    return CallableDecoder(fn, spec, str(name), features, feature_size, prepare)
