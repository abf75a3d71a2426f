"""What a method meets in place of a large decoder's observations: a short vector, and contexts computed once.

Pictures, instruction and state are what the decoder sees. Delta and the critics see one vector [B, O], the *state*: the
observation itself where it is one, else the decoder's own frozen features of it. :func:`look` computes the state and, where
that is dear, the context that all noises of the state share; :func:`as_learned` is the same decoder for a method, which
meets states only, and in the replay long after their contexts are gone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpds.errors import LpdsError
from lpds.observations import channels_first, conform, has_channels_last
from lpds.types import Decoder, LatentSpec, Shape


@dataclass(frozen=True)
class Sight:
    """B observations as a policy meets them."""

    decoder: Decoder
    """To be asked with ``state``, each row as often as there are noises for it."""
    state: Tensor
    """float32 [B, O]."""


class CompactDecoder:
    """A decoder whose observations are its features; the spec says so, all else is the decoder's own."""

    def __init__(self, decoder: Any) -> None:
        self._inner = decoder
        self.name, self.reference, self.decodes_states = decoder.name, decoder.reference, bool(decoder.decodes_states)
        size = decoder.feature_size
        self.spec: LatentSpec = decoder.spec if size is None else replace(decoder.spec, obs_shape=(size,))

    @property
    def fingerprint(self) -> str:
        """That of the decoder."""
        return str(self._inner.fingerprint)

    def __call__(self, obs: Tensor, w: Tensor) -> Tensor:
        """Decode [B, H, L] at states [B, O]; see :class:`lpds.types.Decoder`."""
        return self.decode(self.prepare(obs), w)

    def prepare(self, obs: Tensor) -> Any:
        """The context of features [B, F] alone, where they are enough for it."""
        return self._inner.from_features(obs)

    def decode(self, context: Any, w: Tensor) -> Tensor:
        """Decode noises [B, H, L] against a context to actions [B, T, A], environment units."""
        out: Tensor = self._inner.decode(context, w)
        return out

    def action_range(self) -> tuple[Tensor, Tensor]:
        """The decoder's lowest and highest action [A]."""
        low, high = self._inner.action_range()
        return low, high

    def describe(self) -> dict[str, Any]:
        """The decoder's facts for a passport."""
        return dict(self._inner.describe())


class _Shown(CompactDecoder):
    """A decoder that has been shown B observations: their contexts are at hand, whoever asks."""

    def __init__(self, decoder: Any, context: Any, rows: int) -> None:
        super().__init__(decoder)
        self._context, self._rows = context, rows

    def prepare(self, obs: Tensor) -> Any:
        """The context of those B observations, each as often in a row as in ``obs``."""
        return _repeated(self._inner, self._context, self._rows, len(obs))


def _repeated(decoder: Any, context: Any, rows: int, wanted: int) -> Any:
    times, rest = divmod(wanted, max(1, rows))
    if rest:
        raise LpdsError(f"{wanted} states for {rows} observations: not a whole number each")
    return context if times == 1 else decoder.repeat(context, times)


class WholeDecoder(CompactDecoder):
    """A decoder whose states are the observations: numbers end to end, then the pictures, values 0 to 255.

    Of a dict, numbers and pictures come in the order of its keys.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__(decoder)
        shapes = decoder.spec.obs_shape
        self._shapes: dict[str, Shape] = dict(sorted(shapes.items())) if isinstance(shapes, Mapping) else {"": tuple(shapes)}
        numbers = [key for key, shape in self._shapes.items() if len(shape) < 3]
        self._order = numbers + [key for key in self._shapes if key not in numbers]
        self._pictures = {key: self._channels_first(key) for key in self._order[len(numbers) :]}
        merged = tuple((math.prod(shape[:-2]), *shape[-2:]) for shape in self._pictures.values())
        size = decoder.spec.obs_size
        self.spec = replace(decoder.spec, obs_shape=(size,), pictures=merged)

    def state(self, obs: Any) -> Tensor:
        """float32 [B, O] of observations as the decoder takes them."""
        entries = obs if isinstance(obs, Mapping) else {"": obs}
        flat = []
        for key in self._order:
            value = entries[key]
            if key in self._pictures:
                value = value if value.dtype == torch.uint8 else (255.0 * value).round().clamp(0.0, 255.0)
                value = value.movedim(-1, -3) if has_channels_last(self._shapes[key]) else value
            flat.append(value.flatten(1).float())
        return torch.cat(flat, 1)

    def prepare(self, obs: Tensor) -> Any:
        """The context of the observations behind states [B, O]."""
        entries: dict[str, Tensor] = {}
        flat = obs.split([math.prod(self._shapes[key]) for key in self._order], 1)
        for key, value in zip(self._order, flat, strict=True):
            if key not in self._pictures:
                entries[key] = value.unflatten(1, self._shapes[key])
            elif has_channels_last(self._shapes[key]):
                entries[key] = value.unflatten(1, self._pictures[key]).movedim(-3, -1).to(torch.uint8)
            else:
                entries[key] = value.unflatten(1, self._pictures[key]) / 255.0
        return self._inner.prepare(entries if isinstance(self._inner.spec.obs_shape, Mapping) else entries[""])

    def _channels_first(self, key: str) -> Shape:
        shape = self._shapes[key]
        return channels_first(shape) if has_channels_last(shape) else shape


class _ShownWhole(WholeDecoder):
    """As :class:`_Shown`, of a decoder whose states are the observations."""

    def __init__(self, decoder: Any, obs: Any) -> None:
        super().__init__(decoder)
        self.seen = self.state(obs)
        with torch.no_grad():
            self._context = super().prepare(self.seen)

    def prepare(self, obs: Tensor) -> Any:
        """The context of those B observations, each as often in a row as in ``obs``."""
        return _repeated(self._inner, self._context, len(self.seen), len(obs))


def is_held_whole(decoder: Decoder) -> bool:
    """Whether observations are more than one vector, a dict, a matrix or pictures, and nothing stands in their place."""
    shape = decoder.spec.obs_shape
    return not is_compact(decoder) and (isinstance(shape, Mapping) or len(shape) >= 2)


def refuse_other_pictures(obs: Any, decoder: Decoder) -> None:
    """What the replay would hold as bytes has to be bytes: depth or scaled pictures would be cut to 0 to 255.

    Args:
        obs: as an environment gives them, arrays or a mapping of them, or its space; tensors are a decoder's own and pass.
        decoder: where it holds no observations whole, nothing is refused.

    Raises:
        LpdsError: an array of three axes or more that is not uint8.
    """
    if not is_held_whole(decoder):
        return
    shapes = decoder.spec.obs_shape
    entries = obs if isinstance(obs, Mapping) else {"": obs}
    for key, shape in (shapes if isinstance(shapes, Mapping) else {"": shapes}).items():
        kind = entries[key].dtype
        if len(shape) >= 3 and kind != np.uint8 and not isinstance(entries[key], Tensor):
            what = f"{key!r}" if key else "observations"
            raise LpdsError(
                f"decoder {decoder.name!r} takes {what} of {len(shape)} axes, which come as {kind}: "
                "steering holds pictures as bytes, so let the environment give uint8, flatten what is no picture, or give the "
                "decoder features (docs/large-decoders.md)"
            )


def is_compact(decoder: Decoder) -> bool:
    """Whether features stand in the place of observations."""
    return getattr(decoder, "feature_size", None) is not None


def as_learned(decoder: Decoder) -> Decoder:
    """The decoder for a method, which asks it with states [B, O]."""
    if is_compact(decoder):
        return CompactDecoder(decoder)
    return WholeDecoder(decoder) if is_held_whole(decoder) else decoder


def look(decoder: Decoder, obs: Any, device: torch.device | None = None) -> Sight:
    """Show observations, arrays or tensors [B, ...] or a dict of them, to a decoder.

    The context is computed here, and once, where features come of it or where the decoder says that it is dear.
    """
    seen = conform(obs, decoder.spec, device)
    known: Any = decoder
    compact, shares = is_compact(decoder), getattr(decoder, "shares_context", False)
    if is_held_whole(decoder):
        refuse_other_pictures(obs, decoder)
        if shares:
            shown = _ShownWhole(decoder, seen)
            return Sight(shown, shown.seen)
        whole = WholeDecoder(decoder)
        return Sight(whole, whole.state(seen))
    if not compact and not shares:
        return Sight(decoder, seen)
    with torch.no_grad():
        context = known.prepare(seen)
        there = next(iter(seen.values())) if isinstance(seen, Mapping) else seen
        state = known.features(context).to(there.device) if compact else seen
    return Sight(_Shown(decoder, context, len(state)), state)
