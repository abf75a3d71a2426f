"""A decoder that another process serves, in another Python environment or on another machine: noise out, actions in.

It has the served decoder's name, specification and fingerprint and, for the same batch, its actions to the bit.
``docs/remote.md`` describes the messages.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from lpds.decoders.base import BaseDecoder
from lpds.errors import DecoderFault, LpdsError
from lpds.wire import MAX_BYTES, Array, Served, WireError, need, one_line, pack, read_description, silent, unpack

TOKEN_VARIABLE = "LPDS_TOKEN"
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the first retry, doubled at every further one, and where that ends."""
MESSAGE_TOO_BIG = 1009
"""Close code of a websocket."""


class Lost(Exception):
    """The server did not answer this time; the next attempt may be luckier."""


class Link:
    """One websocket connection; opened when it is needed, closed when anything is odd."""

    def __init__(self, address: str, token: str | None, timeout: float) -> None:
        self._address, self._token, self._timeout = address, token, timeout
        self._stack: ExitStack | None = None
        self._connection: Any = None
        self._pid = os.getpid()

    @property
    def open(self) -> bool:
        """Whether there is a connection, as far as known."""
        return self._stack is not None

    def connect(self) -> Served:
        """Connect and hear what the server says of its decoder.

        Raises:
            Lost: nobody answers.
            DecoderFault: somebody does, but not with a decoder for us.
        """
        client, exceptions = need("websockets.sync.client"), need("websockets.exceptions")
        stack = ExitStack()
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        try:
            self._connection = stack.enter_context(
                client.connect(
                    self._address,
                    additional_headers=headers,
                    compression=None,
                    proxy=None,  # the token is the server's affair alone
                    open_timeout=self._timeout,
                    close_timeout=1.0,
                    max_size=MAX_BYTES,
                    logger=silent(),
                )
            )
            self._stack, self._pid = stack, os.getpid()
        except exceptions.InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                given = "the token was refused" if self._token else f"a token is needed: set {TOKEN_VARIABLE}, or pass token="
                raise DecoderFault(f"{self._address}: {given}") from None
            if status < 500:
                raise DecoderFault(f"{self._address} is no decoder server (HTTP {status})") from None
            raise Lost(f"HTTP {status}") from None
        except (OSError, exceptions.InvalidHandshake) as error:
            raise Lost(_reason(error)) from None
        try:
            return read_description(self._receive())
        except WireError as error:
            self.close()
            raise DecoderFault(f"{self._address} is not understood: {error}") from None

    def ask(self, request: bytes) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            Lost: there was none.
            DecoderFault: the answer is not understood.
        """
        exceptions = need("websockets.exceptions")
        try:
            self._connection.send(request)
        except (OSError, exceptions.ConnectionClosed) as error:
            self.close()
            raise self._lost(error, exceptions) from None
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        exceptions = need("websockets.exceptions")
        try:
            return unpack(self._connection.recv(timeout=self._timeout))
        except TimeoutError:
            self.close()
            raise Lost(f"no answer in {self._timeout:g} s") from None
        except (OSError, exceptions.ConnectionClosed) as error:
            self.close()
            raise self._lost(error, exceptions) from None
        except WireError as error:
            self.close()
            raise DecoderFault(f"{self._address} gave an answer that is not understood: {error}") from None
        except BaseException:  # Ctrl-C: the answer that is still to come must not be taken for the next one
            self.close()
            raise

    def _lost(self, error: Exception, exceptions: Any) -> Exception:
        for end in (getattr(error, "rcvd", None), getattr(error, "sent", None)):
            if isinstance(error, exceptions.ConnectionClosed) and end is not None and end.code == MESSAGE_TOO_BIG:
                return DecoderFault(f"{self._address}: a message was too large for the other side")
        return Lost(_reason(error))

    def close(self) -> None:
        """Close the connection, if there is one of this process."""
        stack, self._stack, self._connection = self._stack, None, None
        if stack is not None and self._pid == os.getpid():
            stack.close()


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
        self._lock = threading.Lock()
        self._closer = weakref.finalize(self, self._link.close)
        try:
            self._served = self._link.connect()
        except Lost as error:
            raise DecoderFault(f"no decoder at {address}: {error} (is lpds serve-decoder running there?)") from None
        super().__init__(self._served.spec, self._served.name, f"remote:{address}")

    def decode(self, context: Any, w: Tensor) -> Tensor:
        """Have [B, H, L] noises decoded for observations ``context``; in one request unless ``rows_at_once`` says otherwise.

        Raises:
            DecoderFault: the server was lost and did not come back, or refused.
        """
        rows, count = self._rows or max(1, len(w)), len(w)
        parts = [self._decode(_rows(context, at, at + rows), w[at : at + rows]) for at in range(0, max(1, count), rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, obs: Any, w: Tensor) -> Tensor:
        if len(w) > self._served.max_batch:
            raise DecoderFault(
                f"decoder {self.name!r} at {self._address} takes at most {self._served.max_batch} rows at once, not {len(w)}: "
                "serve it with a larger --max-batch, or load it with rows_at_once="
            )
        request = pack({"observation": _arrays(obs), "noise": _array(w)})
        if len(request) > self._served.max_bytes:
            raise DecoderFault(
                f"decoder {self.name!r} at {self._address} takes messages of at most {self._served.max_bytes:,} bytes, "
                f"not {len(request):,}: serve it with a larger --max-mb, or load it with rows_at_once="
            )
        answer = self._ask(request)
        if "error" in answer:
            said = answer["error"] if isinstance(answer["error"], dict) else {}
            kind, message = (one_line(str(said.get(key, ""))) for key in ("kind", "message"))
            raise DecoderFault(f"decoder {self.name!r} at {self._address} refused ({kind}): {message}")
        actions = answer.get("actions")
        wanted = (len(w), *self.spec.action_shape)
        if not isinstance(actions, np.ndarray) or actions.dtype != np.float32 or actions.shape != wanted:
            raise DecoderFault(f"decoder {self.name!r} at {self._address} gave no float32 actions {list(wanted)}")
        return torch.from_numpy(actions).to(w.device)

    def _ask(self, request: bytes) -> dict[str, Any]:
        start, pause, reason = time.monotonic(), FIRST_PAUSE, ""
        with self._lock:
            for attempt in range(self._retries + 1):
                if attempt:
                    time.sleep(pause)
                    pause = min(2.0 * pause, LONGEST_PAUSE)
                try:
                    if not self._link.open:
                        self._reconnect()
                    return self._link.ask(request)
                except Lost as error:
                    reason = str(error)
        tries = f"{self._retries} retries in {time.monotonic() - start:.0f} s"
        raise DecoderFault(f"decoder {self.name!r} at {self._address} was lost ({reason}; {tries})")

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
        rows_at_once: cut larger batches into requests of so many rows; 0 never does, since a batch of another size may
            round differently.

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
    token = (given or os.environ.get(TOKEN_VARIABLE, "")).strip()
    if not all("!" <= letter <= "~" for letter in token):  # it goes into a header
        raise LpdsError(f"the token (token=, or {TOKEN_VARIABLE}) must be ASCII letters, digits and signs, without spaces")
    return token or None


def _reason(error: Exception) -> str:
    return one_line(error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)) or "no answer"


def _array(value: Tensor) -> Array:
    out: Array = value.detach().cpu().numpy()
    return out


def _arrays(obs: Any) -> Array | dict[str, Array]:
    return {key: _array(value) for key, value in obs.items()} if isinstance(obs, Mapping) else _array(obs)


def _rows(obs: Any, start: int, stop: int) -> Any:
    return {key: value[start:stop] for key, value in obs.items()} if isinstance(obs, Mapping) else obs[start:stop]
