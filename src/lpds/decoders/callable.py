"""Any function ``fn(obs, w) -> actions`` as a decoder."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpds.decoders.base import BaseDecoder, as_float32, each_part, hash_tensors
from lpds.errors import DecoderFault, LpdsError, one_line
from lpds.observations import conform, parts, select
from lpds.random import normal
from lpds.threads import full_precision
from lpds.types import LatentSpec, Shape

PROBE_SCALES = (1.0, 0.1, 0.01)
"""Deviations of the observations that a fingerprint is taken at: a policy may saturate on those far from its own."""

ROUNDING = 1e-3
"""What two processors' actions may differ by, of a coordinate's largest: a thousand times what float32 loses."""
ROUNDED = 1e-8
"""Share of the variance below which two calls differ by rounding alone."""
SAME_SUMS = "sum in one order, torch.use_deterministic_algorithms(True): atomic sums on a GPU come in any"
"""What to do about that."""
LEAK = 1e-2
"""What a row may differ by in another batch, of the largest action: half precision loses less."""
KEPT = 192
"""Numbers of a probe that are kept, about."""


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
        examples: Any = None,
        action_range: tuple[Tensor, Tensor] | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(spec, name)
        self._device = device or torch.device("cpu")
        self.runs_on = None if self._device.type == "cpu" else str(self._device)
        self._default_device = torch.get_default_device()
        """Of whoever wrapped the functions, which may count on it."""
        self._examples, self._action_range = examples, action_range
        self._prepare, self.shares_context = prepare, prepare is not None
        self._fn, self._features, self._feature_size = fn, features, feature_size
        self.decodes_states = features is None

    def prepare(self, obs: Any) -> Any:
        """What the user's functions share; the observations themselves by default."""
        if self._prepare is None:
            return obs
        rows = len(next(iter(obs.values())) if isinstance(obs, Mapping) else obs)
        return _shared(self._guarded("prepare", self._prepare, obs), rows, self.name)

    @property
    def feature_size(self) -> int | None:
        """F, of the user's function."""
        return self._feature_size

    def features(self, context: Any) -> Tensor:
        """Call the user's function on the context; an array or a tensor of [B, F] must come back."""
        if self._features is None:
            return super().features(context)
        function = self._features
        found: Tensor = self._guarded("features", lambda x: _own(torch.as_tensor(function(x))), context)
        if found.ndim != 2 or found.shape[1] != self.feature_size:
            raise LpdsError(f"the features of decoder {self.name!r} are {list(found.shape)}, expected [B, {self.feature_size}]")
        if not bool(torch.isfinite(found).all()):
            raise DecoderFault(f"the features of decoder {self.name!r} hold NaN or infinity")
        return found

    @contextmanager
    def _as_wrapped(self) -> Iterator[None]:
        """Without gradients, and with the default device that was set when the functions were given."""
        with torch.no_grad(), nullcontext() if self._default_device.type == "cpu" else self._default_device:
            yield

    def _guarded(self, what: str, call: Callable[[Any], Any], value: Any) -> Any:
        try:
            with self._as_wrapped():
                return call(_copy(value, self._device))
        except LpdsError:
            raise
        except (Exception, SystemExit) as error:
            raise DecoderFault(f"{what} of decoder {self.name!r} raised {_told(error)}") from error

    def __call__(self, obs: Any, w: Tensor) -> Tensor:
        """Decode a batch; see :meth:`BaseDecoder.__call__`. NaN are handed back, for one to see where they are."""
        obs, w = as_float32(obs, integers=True), as_float32(w, integers=True)
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
            with self._as_wrapped():
                result = self._fn(_copy(context, self._device), w.to(self._device, copy=True))
        except LpdsError:
            raise
        except (Exception, SystemExit) as error:
            raise DecoderFault(f"decoder {self.name!r} raised {_told(error)}") from error
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

    def action_range(self) -> tuple[Tensor, Tensor]:
        """What the user said, else none; see :meth:`BaseDecoder.action_range`."""
        return super().action_range() if self._action_range is None else self._action_range

    def plausible(self, draws: Any) -> Any:
        """The user's own examples in turn, where there are any; see :meth:`BaseDecoder.plausible`."""
        if self._examples is None:
            return super().plausible(draws)
        wanted = len(next(iter(draws.values())) if isinstance(draws, Mapping) else draws)
        rows = np.arange(wanted) % len(next(iter(parts(self._examples).values())))
        return conform(select(self._examples, rows), self.spec)

    @property
    def probe(self) -> str:
        """Some of the actions (and features) that the fingerprint is made of, unrounded: float32 in base64."""
        if self._cached_probe is None:
            with full_precision():
                obs, w = self._probe()
                told = _some(self(obs, w).flatten(0, 1).float())
                if self._features is not None:  # which stay where the user's function has them
                    told = torch.cat([told, _some(self.features(self.prepare(obs)).cpu().T)])
            self._cached_probe = base64.b64encode(told.numpy().astype("<f4").tobytes()).decode()
        return self._cached_probe

    def resembles(self, probe: str) -> bool:
        """Whether they are the same to rounding; see :func:`same_to_rounding`."""
        return same_to_rounding(self.probe, probe, self.spec.action_shape)

    @property
    def blind(self) -> bool:
        """Whether the probe's actions are the same for other noises: such a decoder cannot be steered."""
        with full_precision():
            obs, w = self._probe()
            return bool(torch.equal(self(obs, w), self(obs, w.flip(0))))

    @property
    def leaks(self) -> bool:
        """Whether a row's actions or features change with the rows beside it, by :data:`LEAK` of a column's largest."""
        with full_precision():
            obs, w = self._probe()
            few = {key: value[:2] for key, value in obs.items()} if isinstance(obs, Mapping) else obs[:2]
            pairs = [(self(obs, w), self(few, w[:2]))]
            if self._features is not None:
                pairs.append((self.features(self.prepare(obs))[:, None], self.features(self.prepare(few))[:, None]))
            return any(_leak(whole, alone) for whole, alone in pairs)

    def _fingerprint(self) -> str:
        with full_precision():  # a product that is split otherwise rounds otherwise
            return self._hash()

    def _hash(self) -> str:
        obs, w = self._probe()
        drawn = (
            ""
            if self._examples is not None
            else (
                " on observations drawn from N(0, I), which its fingerprint is made of: if it takes no such, give "
                "wrap_decoder(..., examples=) some of its own"
            )
        )
        try:
            first = self(obs, w)
            # other rows in between: a running normaliser, or an ensemble over time, is none on the same batch twice
            rows = torch.arange(len(w) - 2, -1, -1)
            self({key: value[rows] for key, value in obs.items()} if isinstance(obs, Mapping) else obs[rows], w[rows])
            second = self(obs, w)
        except DecoderFault as fault:
            if fault.__cause__ is None:  # a wrong shape or kind has nothing to do with what it was shown
                raise
            raise DecoderFault(f"{fault}{drawn}") from fault
        if not bool(torch.isfinite(first).all()):
            raise LpdsError(f"decoder {self.name!r} returned NaN or infinite actions{drawn or ' on its examples'}")
        if not torch.equal(first, second):
            if float((first - second).double().square().mean()) < ROUNDED * float(first.double().var()):
                raise LpdsError(f"decoder {self.name!r} rounds otherwise each time that it is called: {SAME_SUMS}")
            raise LpdsError(
                f"decoder {self.name!r} is stochastic or has a memory: the same observation and latent gave two different "
                "actions. Use a deterministic sampler (DDIM with eta 0, or an ODE solver), pass it the initial noise w, and "
                "freeze running means and ensembles over time"
            )
        # Two decimals, in the unit of each action coordinate (metres a step are small numbers), are far above rounding
        # noise and far below any change that matters. The 1.5 keeps the unit's own jumps away from 1, 0.1, ...
        largest = first.double().abs().amax((0, 1))
        exponent = torch.where(largest > 0, (1.5 * largest).log10().floor(), 0.0)
        probe = torch.round(first.double() / 10.0**exponent, decimals=2) + 0.0
        spec = self.spec
        facts = {"name": self.name, "latent": spec.latent_shape, "action": spec.action_shape, "free": spec.free}
        tensors = {"probe": probe, "exponent": exponent}
        if self._action_range is not None:  # the unit of a residual on the action
            tensors["low"], tensors["high"] = self._action_range
        if self._features is not None:  # a Delta that was learned on some features is nothing on others
            found, again = (self.features(self.prepare(obs)).cpu().double() for _ in range(2))
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


def same_to_rounding(one: str, other: str, action_shape: tuple[int, int]) -> bool:
    """Whether two probes differ by at most :data:`ROUNDING` of an action coordinate's largest, and of the features' largest.

    Args:
        one: of :attr:`CallableDecoder.probe`.
        other: likewise, of the same shapes; a text that is none is not the same.
        action_shape: (T, A).
    """
    try:
        x, y = (np.frombuffer(base64.b64decode(text, validate=True), "<f4") for text in (one, other))
    except ValueError:
        return False
    steps, columns = action_shape
    actions = len(_rows_kept(2 * len(PROBE_SCALES) * steps, columns)) * columns
    if x.shape != y.shape or len(x) < actions:
        return False
    pairs = (x[:actions].reshape(-1, columns), y[:actions].reshape(-1, columns)), (x[actions:, None], y[actions:, None])
    return all(bool(np.all(np.abs(a - b) <= ROUNDING * np.abs(a).max(0, initial=0.0))) for a, b in pairs)


def _rows_kept(rows: int, columns: int) -> list[int]:
    """Which rows of a table a probe keeps, from the first to the last."""
    return [int(i) for i in np.linspace(0, rows - 1, min(rows, max(6, KEPT // columns)))]


def _some(table: Tensor) -> Tensor:
    """Those rows, end to end."""
    return table[_rows_kept(*table.shape)].flatten()


def _told(error: BaseException) -> str:
    """What a user's function raised, in a line."""
    elsewhere = isinstance(error, RuntimeError) and any(words in str(error) for words in ("same device", "should be the same"))
    return one_line(error) + (" (wrap_decoder(..., device=) says where it gets its tensors)" if elsewhere else "")


def _own(found: Tensor) -> Tensor:
    """As float32 of its own: a function may return the same buffer again."""
    return found.detach().to(torch.float32, copy=True)


def _copy(value: Any, device: torch.device) -> Any:
    """Tensors, and tables and sequences of them, as copies on a device, so that a function may work in place."""
    return each_part(value, lambda part: part.to(device, copy=True) if isinstance(part, Tensor) else part)


def _shared(context: Any, rows: int, name: str) -> Any:
    """A context as tensors [B, ...], arrays too, and constants; what has no rows could not be repeated for several noises."""

    def part(value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        tensor = torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
        if not isinstance(tensor, Tensor) or tensor.ndim == 0 or len(tensor) != rows:
            found = list(tensor.shape) if isinstance(tensor, Tensor) else type(value).__name__
            raise LpdsError(
                f"prepare of decoder {name!r} must return tensors [B, ...], or a dict, a tuple or a list of them, with one row "
                f"for each of the B observations: of {rows} it returned {found}"
            )
        return tensor.clone()  # a function may return the same buffer again

    return each_part(context, part)


def _leak(whole: Tensor, alone: Tensor) -> bool:
    """Whether the first rows of [B, T, A] differ from [few, T, A], in the size of a column."""
    size = whole.abs().amax((0, 1))
    gap = (whole[: len(alone)] - alone).abs().amax((0, 1))
    return bool((gap > LEAK * size.clamp(min=1e-6 * float(size.max()))).any())
