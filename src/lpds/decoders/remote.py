"""A decoder that another process serves, in another Python environment or on another machine: noise out, actions in.

It has the served decoder's name, specification and fingerprint and, for the same batch, its actions to the bit.
``docs/remote.md`` describes the messages.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from lpds.decoders.base import BaseDecoder, as_entry
from lpds.decoders.callable import same_to_rounding
from lpds.decoders.link import TOKEN_VARIABLE, Link, Lost
from lpds.errors import DecoderFault, LpdsError
from lpds.wire import Array, pack, printable

_LOG = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the first retry, doubled at every further one, and where that ends."""
FORGET_AT_ONCE = 100
"""Contexts that a request says are not needed any more."""


class _Forgotten(DecoderFault):
    """The server keeps that context no longer."""


class Shown:
    """Observations that the server is shown once and keeps what it made of, until this is gone; a copy of them stays here."""

    def __init__(self, obs: Any, gone: list[int]) -> None:
        held = {key: _array(value).copy() for key, value in obs.items()} if isinstance(obs, Mapping) else _array(obs).copy()
        self.request = _observation(held)
        self.rows = len(_first(obs))
        self.number: int | None = None
        """By which the server knows them, if it does."""
        self.features: Tensor | None = None
        self._gone = gone

    def __del__(self) -> None:
        number: int | None = getattr(self, "number", None)
        if number is not None:
            self._gone.append(number)  # told to the server with the next request


@dataclass(frozen=True)
class RemoteContext:
    """Observations for the server, each ``times`` in a row; in parts if ``rows_at_once`` says so."""

    parts: list[Shown]
    times: int = 1


@dataclass(frozen=True)
class FeatureContext:
    """Features [B, F] that the server decodes again."""

    features: Tensor


class RemoteDecoder(BaseDecoder):
    """What ``lpds serve-decoder`` serves, as if it were here."""

    secrets = ("token",)
    can_be_lost = True

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        timeout: float = 60.0,
        retries: int = 6,
        rows_at_once: int = 0,
    ) -> None:
        """Connect and ask for name, shapes and fingerprint; see :func:`load_remote`."""
        if not 0.0 < timeout < float("inf") or retries < 0 or rows_at_once < 0:
            raise LpdsError(
                f"timeout {timeout} must be positive and finite, retries {retries} and rows_at_once {rows_at_once} not negative"
            )
        self._address = _checked(address)
        self._retries, self._rows = retries, rows_at_once
        self._link = Link(address, _token(token), timeout)
        self._lock, self._pid = threading.RLock(), os.getpid()
        self._gone: list[int] = []
        self._closer = weakref.finalize(self, self._link.close)
        try:
            self._served = self._link.connect()
        except Lost as error:
            raise DecoderFault(f"no decoder at {address}: {error} (is lpds serve-decoder running there?)") from None
        super().__init__(self._served.spec, self._served.name, f"remote:{address}")
        self.decodes_states, self.shares_context = self._served.decodes_states, self._served.shares_context

    @property
    def signal_at_start(self) -> float | None:
        """Of the served decoder; ``None`` where its server does not say."""
        told = self._served.facts.get("signal_at_start")
        return told if isinstance(told, float) and 0.0 <= told <= 1.0 else None

    @property
    def blind(self) -> bool:
        """Whether its server says so of the served decoder."""
        return self._served.facts.get("blind") is True

    @property
    def leaks(self) -> bool:
        """Whether its server says so of the served decoder."""
        return self._served.facts.get("leaks") is True

    @property
    def probe(self) -> str | None:
        """Of the served decoder."""
        return self._served.probe

    def resembles(self, probe: str) -> bool:
        """Whether the served decoder's is the same up to rounding."""
        return self.probe is not None and same_to_rounding(self.probe, probe, self.spec.action_shape)

    @property
    def feature_size(self) -> int | None:
        """F, of the served decoder."""
        return self._served.feature_size

    def plausible(self, draws: Any) -> Any:
        """The served decoder's examples in turn; what its server sends none of as :meth:`BaseDecoder.plausible` has it."""
        examples = self._served.examples
        if examples is None:
            return super().plausible(draws)
        rows = torch.arange(len(_first(draws))) % len(_first(examples))
        if not isinstance(examples, dict):
            return examples[rows]
        return {key: examples[key][rows] if key in examples else as_entry(key, value) for key, value in draws.items()}

    def prepare(self, obs: Any) -> Any:
        """Observations that are sent with the first question about them, and kept on the server for the next."""
        if not self.shares_context and self.feature_size is None:
            return obs
        count = len(_first(obs))
        rows = self._rows or max(1, count)
        return RemoteContext([Shown(_rows(obs, at, at + rows), self._gone) for at in range(0, max(1, count), rows)])

    def repeat(self, context: Any, count: int) -> Any:
        """The server repeats what it has been shown; see :meth:`BaseDecoder.repeat`."""
        if isinstance(context, RemoteContext):
            return replace(context, times=context.times * count)
        if isinstance(context, FeatureContext):
            return FeatureContext(context.features.repeat_interleave(count, 0))
        return super().repeat(context, count)

    def features(self, context: Any) -> Tensor:
        """Those that the server has of the observations, each as often as the context has it."""
        if not isinstance(context, RemoteContext) or self.feature_size is None:
            return super().features(context)
        found = torch.cat([self._features_of(part) for part in context.parts])
        return found if context.times == 1 else found.repeat_interleave(context.times, 0)

    def from_features(self, features: Tensor) -> Any:
        """The server decodes features where the decoder there does."""
        if self.feature_size is None or not self.decodes_states:
            return super().from_features(features)
        return FeatureContext(features)

    def decode(self, context: Any, w: Tensor) -> Tensor:
        """Have [B, H, L] noises decoded for a context; in one request unless ``rows_at_once`` says otherwise.

        Raises:
            LpdsError: the noises are no whole number for each observation.
            DecoderFault: the server was lost and did not come back, or refused.
        """
        if isinstance(context, RemoteContext):
            states = sum(part.rows for part in context.parts)
            times, rest = divmod(len(w), max(1, states))
            if rest or times % context.times:
                raise LpdsError(
                    f"{len(w)} noises for {states} observations, each {context.times} times: not a whole number each"
                )
            noises = w.split([part.rows * times for part in context.parts])
            done = [self._decode_shown(part, max(1, times), n) for part, n in zip(context.parts, noises, strict=True)]
        else:
            rows, count = self._rows or max(1, len(w)), len(w)
            cuts = [slice(at, at + rows) for at in range(0, max(1, count), rows)]
            if isinstance(context, FeatureContext):
                done = [self._actions({"features": _array(context.features[cut])}, w[cut]) for cut in cuts]
            else:
                done = [self._actions(_observation(_arrays(_rows(context, cut.start, cut.stop))), w[cut]) for cut in cuts]
        return done[0] if len(done) == 1 else torch.cat(done)

    def _features_of(self, shown: Shown) -> Tensor:
        if shown.features is None:
            self._keep(shown, self._asked(shown.request, shown.rows))
        assert shown.features is not None
        return shown.features

    def _decode_shown(self, shown: Shown, times: int, w: Tensor) -> Tensor:
        with self._alone():  # what another thread shows must not push it out in between
            for _ in range(self._retries + 1):
                if shown.number is None:
                    request = {**shown.request, "repeat": times, "keep": True}
                    return self._actions(request, w, shown)
                try:
                    return self._actions({"context": shown.number, "repeat": times}, w)
                except _Forgotten:  # another connection, or too long ago
                    shown.number = None
            return self._actions({**shown.request, "repeat": times}, w)

    def _keep(self, shown: Shown, answer: dict[str, Any]) -> None:
        number = answer.get("context")
        if type(number) is not int:
            raise DecoderFault(f"decoder {self.name!r} at {self._address} gave no number of a context")
        shown.number = number
        if self.feature_size is not None:
            shown.features = self._float32("features", answer.get("features"), (shown.rows, self.feature_size))

    def _actions(self, request: dict[str, Any], w: Tensor, shown: Shown | None = None) -> Tensor:
        answer = self._asked({**request, "noise": _array(w)}, len(w))
        if shown is not None:
            self._keep(shown, answer)
        return self._float32("actions", answer.get("actions"), (len(w), *self.spec.action_shape)).to(w.device)

    def _float32(self, what: str, found: Any, wanted: tuple[int, ...]) -> Tensor:
        if not isinstance(found, np.ndarray) or found.dtype != np.float32 or found.shape != wanted:
            raise DecoderFault(f"decoder {self.name!r} at {self._address} gave no float32 {what} {list(wanted)}")
        return torch.from_numpy(found)

    def _asked(self, message: dict[str, Any], rows: int) -> dict[str, Any]:
        over = [self._gone.pop() for _ in range(min(len(self._gone), FORGET_AT_ONCE))]
        message = {**message, "forget": over} if over else message
        if rows > self._served.max_batch:
            raise DecoderFault(
                f"decoder {self.name!r} at {self._address} takes at most {self._served.max_batch} rows at once, not {rows}: "
                "serve it with a larger --max-batch, or load it with rows_at_once="
            )
        request = pack(message)
        if len(request) > self._served.max_bytes:
            raise DecoderFault(
                f"decoder {self.name!r} at {self._address} takes messages of at most {self._served.max_bytes:,} bytes, "
                f"not {len(request):,}: serve it with a larger --max-mb, or load it with rows_at_once="
            )
        answer = self._ask(request)
        if "error" in answer:
            said = answer["error"] if isinstance(answer["error"], dict) else {}
            kind, text = (printable(str(said.get(key, ""))) for key in ("kind", "message"))
            fault = _Forgotten if kind == "context" else DecoderFault
            raise fault(f"decoder {self.name!r} at {self._address} refused ({kind}): {text}")
        return answer

    def _ask(self, request: bytes) -> dict[str, Any]:
        start, pause, reason = time.monotonic(), FIRST_PAUSE, ""
        with self._alone():
            for attempt in range(self._retries + 1):
                if attempt:
                    time.sleep(pause)
                    pause = min(2.0 * pause, LONGEST_PAUSE)
                try:
                    if not self._link.open:
                        self._reconnect()
                    answer = self._link.ask(request)
                except Lost as error:
                    reason = str(error)
                    if attempt == 1:  # a first retry mostly helps; what takes longer looks like a run that hangs
                        left = self._retries - attempt
                        _LOG.warning("decoder %r at %s is away (%s): %d more tries", self.name, self._address, reason, left)
                    continue
                if attempt > 1:
                    _LOG.warning("decoder %r at %s is back after %.0f s", self.name, self._address, time.monotonic() - start)
                return answer
        tries = f"{self._retries} retries in {time.monotonic() - start:.0f} s"
        raise DecoderFault(f"decoder {self.name!r} at {self._address} was lost ({reason}; {tries})")

    def _alone(self) -> threading.RLock:
        """The lock of this process: one that was taken while another thread held it would never be free in a fork."""
        if self._pid != os.getpid():
            self._lock, self._pid = threading.RLock(), os.getpid()
        return self._lock

    def _reconnect(self) -> None:
        now, expected = self._link.connect().fingerprint, self._served.fingerprint
        if now != expected:
            self._link.close()
            raise DecoderFault(
                f"{self._address} now serves another decoder: fingerprint {now[:12]}, expected {expected[:12]} ({self.name!r})"
            )

    def action_range(self) -> tuple[Tensor, Tensor]:
        """The served decoder's."""
        low, high = self._served.action_range
        return low.clone(), high.clone()

    def describe(self) -> dict[str, Any]:
        """Facts for the passport: where it is served, by which versions, and what it is there."""
        return {"kind": "remote", "address": self._address, **self._served.facts}

    def close(self) -> None:
        """Close the connection; the next decode opens another."""
        self._link.close()

    def _fingerprint(self) -> str:
        return self._served.fingerprint


def load_remote(
    address: str,
    *,
    token: str | None = None,
    timeout: float = 60.0,
    retries: int = 6,
    rows_at_once: int = 0,
) -> RemoteDecoder:
    """Open a decoder that ``lpds serve-decoder`` serves.

    Args:
        address: ``ws://HOST:PORT``, or ``wss://`` behind a proxy that does TLS.
        token: the server's, if it has one; the environment variable LPDS_TOKEN by default. It is never saved.
        timeout: seconds to wait for a connection, and for an answer.
        retries: attempts to reach a server that was lost, before a run is saved and stopped; with pauses of 0.5, 1,
            2 ... 30 s before them.
        rows_at_once: cut larger batches into requests of so many rows (of states, where the server prepares a state once for
            several noises); 0 never does, since a batch of another size may round differently.

    Returns:
        The decoder, with the served one's name, specification and fingerprint.

    Raises:
        LpdsError: an address of another form, nobody there, a token refused, or something else than a decoder.
    """
    return RemoteDecoder(address, token=token, timeout=timeout, retries=retries, rows_at_once=rows_at_once)


def _checked(address: str) -> str:
    form = "the address of a remote decoder is ws://HOST:PORT or wss://HOST:PORT"
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        raise LpdsError(f"{form}, not {address!r}") from None
    if "@" in parts.netloc or parts.query or parts.fragment:  # it may hold a secret, and runs store it
        raise LpdsError(f"{form}, without a user, a query or a fragment: a token belongs in {TOKEN_VARIABLE}")
    if parts.scheme not in ("ws", "wss") or not parts.hostname or port == 0:
        raise LpdsError(f"{form}, not {address!r}")
    return address


def _token(given: str | None) -> str | None:
    token = str(given or os.environ.get(TOKEN_VARIABLE, "")).strip()  # a number, from a command line
    if not all("!" <= letter <= "~" for letter in token):  # it goes into a header
        raise LpdsError(f"the token (token=, or {TOKEN_VARIABLE}) must be ASCII letters, digits and signs, without spaces")
    return token or None


def _array(value: Tensor) -> Array:
    out: Array = value.detach().cpu().numpy()
    return out


def _observation(obs: Array | dict[str, Array]) -> dict[str, Any]:
    """The part of a request that holds them; pictures of [0, 1] that came of bytes go as bytes, a quarter of the size."""
    parts = obs if isinstance(obs, dict) else {"": obs}
    sent = {key: _bytes_of(value) for key, value in parts.items()}
    unit = [key for key, value in sent.items() if value is not parts[key]]
    message: dict[str, Any] = {"observation": sent if isinstance(obs, dict) else sent[""]}
    return {**message, "unit": unit} if unit else message


def _bytes_of(value: Array) -> Array:
    """A float32 picture as the bytes that ``/ 255`` makes it of again, to the bit; anything else as it is."""
    if value.dtype != np.float32 or value.ndim < 4 or not value.size:
        return value
    with np.errstate(invalid="ignore"):
        packed = np.rint(value * np.float32(255.0)).astype(np.uint8)
    return packed if np.array_equal(packed.astype(np.float32) / np.float32(255.0), value) else value


def _arrays(obs: Any) -> Array | dict[str, Array]:
    return {key: _array(value) for key, value in obs.items()} if isinstance(obs, Mapping) else _array(obs)


def _first(obs: Any) -> Tensor:
    first: Tensor = next(iter(obs.values())) if isinstance(obs, Mapping) else obs
    return first


def _rows(obs: Any, start: int, stop: int) -> Any:
    return {key: value[start:stop] for key, value in obs.items()} if isinstance(obs, Mapping) else obs[start:stop]
