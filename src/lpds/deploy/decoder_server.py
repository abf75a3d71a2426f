"""Serve a decoder over a websocket: noise in, actions out (``lpds serve-decoder``; ``docs/remote.md`` has the messages).

It listens on loopback unless a token guards it, refuses browsers (whatever sends an Origin), reads messages strictly
(:mod:`lpds.wire`), answers every mistake with one line and decodes one request at a time on one thread.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpds.checks import AT_MOST, best_device, check_decoder
from lpds.decoders.base import as_float32
from lpds.deploy.contexts import Contexts, Kept
from lpds.errors import DecoderFault, LpdsError
from lpds.probe import synthetic_observations
from lpds.types import Decoder, Shape
from lpds.wire import MAX_BATCH, MAX_BYTES, Array, WireError, describe_decoder, need, pack, printable, silent, unpack

MAX_CONNECTIONS = 32
MAX_PENDING = 32
"""Connections that have not shaken hands yet; beyond, the one that has waited longest is closed."""
HANDSHAKE_S = 5.0
SHORTEST_TOKEN = 16
EXAMPLES, EXAMPLE_BYTES = 32, 2**22
"""Most observations, and bytes of them, that a client gets to probe the decoder with."""
FEWEST_EXAMPLES = 8
"""Where fewer of them fit, pictures are left to the client to draw: from one or two states a probe learns nothing of states."""
MAX_KEPT = 256
"""Rows of prepared observations that are kept, for all connections together; a run needs its lanes' twice, an evaluation 20."""
SOURCES = ("observation", "context", "features")
OPTIONS = ("noise", "repeat", "keep", "forget", "unit")
"""Parts of a request: one source, and what may stand beside it."""
SCHEMES = ("Bearer", "Api-Key")
"""Of the Authorization header; the second is openpi's."""


class DecoderServer:
    """A decoder behind a socket. ``run`` blocks; as a context manager it serves from a thread of its own."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        device: str = "auto",
        threads: int = 1,
        max_bytes: int = MAX_BYTES,
        max_batch: int = MAX_BATCH,
        max_kept: int = MAX_KEPT,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Bind the address.

        Args:
            decoder: frozen.
            host: a name or number of this machine; loopback by default.
            port: 0 takes a free one, see :attr:`address`.
            token: what clients must show; needed for any host but loopback.
            device: auto, cpu or cuda: where to decode.
            threads: of the tensor library; part of what makes actions equal to the bit.
            max_bytes: of one request.
            max_batch: rows of one request.
            max_kept: rows of prepared observations that are kept, for all clients together; of pi0 a row is tens of megabytes.
            say: called with a line when a client comes, goes or is refused.

        Raises:
            LpdsError: an address that cannot be had, a host that needs a token, or a token that cannot be one.
        """
        for module in ("msgpack", "websockets"):
            need(module)
        _check_token(token, host)
        counts = {"max_bytes": max_bytes, "max_batch": max_batch, "max_kept": max_kept, "threads": threads}
        for name, value in counts.items():
            if value < 1:
                raise LpdsError(f"{name} must be positive, not {value}")
        if threads > AT_MOST["threads"]:
            raise LpdsError(f"threads must be at most {AT_MOST['threads']}, not {threads}")
        check_decoder(decoder)
        self.decoder, self._token, self._say = decoder, token, say or (lambda line: None)
        self._device = torch.device(best_device(device))
        self._threads, self._max_bytes, self._max_batch = threads, max_bytes, max_batch
        self._contexts = Contexts(max_kept)
        self._hello = pack(describe_decoder(decoder, self._facts(), max_bytes, max_batch, _examples(decoder)))
        self._socket = _bind(host, port)
        name, bound = self._socket.getsockname()[:2]
        self.address = f"ws://[{name}]:{bound}" if ":" in name else f"ws://{name}:{bound}"
        self._clients = 0
        self._pending: dict[Any, Any] = {}  # connection to transport, the longest waiting first
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def _facts(self) -> dict[str, Any]:
        import lpds

        where = getattr(self.decoder, "runs_on", None) or self._device.type
        versions = {"lpds": lpds.__version__, "torch": str(torch.__version__), "device": where}
        served: dict[str, Any] = json.loads(json.dumps(self.decoder.describe(), default=str))
        start = getattr(self.decoder, "signal_at_start", None)
        faults = {name: self._has(name) for name in ("blind", "leaks")}
        return {"served": served, "server": {**versions, "threads": self._threads}, "signal_at_start": start, **faults}

    def _has(self, fault: str) -> bool:
        try:
            return bool(getattr(self.decoder, fault, False))
        except DecoderFault:  # it takes none of the inputs that it would be tried with
            return False

    # -- one request -------------------------------------------------------------------------------------------------

    def answer(self, message: bytes | str, owner: object = None) -> bytes:
        """Answer a message that may be anything; ``owner`` is whose contexts it may speak of."""
        try:
            request = unpack(message)
            start = time.perf_counter()
            with torch.no_grad():
                found = self._answer(request, owner)
            took = 1e3 * (time.perf_counter() - start)
            return pack({**found, "server_timing": {"infer_ms": took}})
        except WireError as error:
            return _refusal(error.kind, str(error))
        except Exception as error:
            if isinstance(error, LpdsError) and error.__cause__ is None:
                return _refusal("decoder", str(error))
            # any code may be inside a decoder; its words, and what quotes them, are for this side only
            self._say(traceback.format_exc().rstrip())
            kind = type(error.__cause__ or error).__name__
            return _refusal("internal", f"the decoder failed with {kind}; the server's output says more")

    def _answer_open(self, message: bytes | str, connection: Any) -> bytes:
        """Answer when its turn has come, unless who asked has given up by then: others wait behind it."""
        return self.answer(message, connection) if connection.state.name == "OPEN" else b""

    def _answer(self, request: dict[str, Any], owner: object) -> dict[str, Any]:
        """One of a context's three sources, then noises for it, a number to keep it by, or both."""
        sources = [key for key in SOURCES if key in request]
        if len(sources) != 1 or not set(request) <= {*SOURCES, *OPTIONS}:
            raise WireError(
                "message", f"a request has one of {', '.join(SOURCES)}, may have {', '.join(OPTIONS)}, and no other"
            )
        times, keep, over = request.get("repeat", 1), request.get("keep", False), request.get("forget", [])
        if type(times) is not int or times < 1 or type(keep) is not bool or not isinstance(over, list):
            raise WireError("message", "repeat must be a positive number, keep a truth value and forget a list of numbers")
        self._contexts.forget(over, owner)
        w = self._tensor("noise", request["noise"], self.decoder.spec.latent_shape, "float32") if "noise" in request else None
        known = self._source(sources[0], request, owner, None if w is None else len(w), times, keep or w is None)
        answer: dict[str, Any] = {}
        decoder: Any = self.decoder
        if w is not None:
            context = known.context if times == 1 else decoder.repeat(known.context, times)
            answer["actions"] = decoder.decode(context, w).float().cpu().numpy()
        if sources[0] == "observation" and (keep or w is None):
            answer["context"] = self._contexts.add(known)
            if getattr(decoder, "feature_size", None) is not None:
                answer["features"] = decoder.features(known.context).float().cpu().numpy()
        return answer

    def _source(self, source: str, request: dict[str, Any], owner: object, noises: int | None, times: int, keep: bool) -> Kept:
        """What is decoded for, with as many rows as the noises ask for."""
        decoder: Any = self.decoder
        if source == "context":
            known = self._contexts.find(request["context"], owner)
            if noises is None:
                raise WireError("message", "a context is asked for with noise")
            self._fit(known.rows, noises, times)
            return known
        if source == "features":
            size = getattr(decoder, "feature_size", None)
            if size is None or not decoder.decodes_states:
                raise WireError("decoder", "this decoder does not decode features: it needs the observation")
            features = self._tensor("features", request["features"], (size,), "float32")
            if noises is None:
                raise WireError("message", "features are asked for with noise")
            self._fit(len(features), noises, times)
            return Kept(decoder.from_features(features), len(features), owner)
        obs, rows = self._observation(request["observation"], request.get("unit", []))
        if noises is not None:
            self._fit(rows, noises, times)
        if keep and not rows:
            raise WireError("shape", "no rows of observations, so nothing to keep")
        if keep:
            self._contexts.make_room(rows)
        return Kept(decoder.prepare(obs), rows, owner)

    def _fit(self, rows: int, noises: int, times: int) -> None:
        if rows * times != noises:
            said = f"{rows} observations" if times == 1 else f"{rows} observations {times} times"
            raise WireError("shape", f"{said} but {noises} noises: the batch sizes must be equal")

    def _observation(self, value: Any, unit: Any) -> tuple[Any, int]:
        """Observations as the decoder takes them, and of how many rows; pictures named in ``unit`` came as bytes of [0, 1]."""
        shape = self.decoder.spec.obs_shape
        shapes: Mapping[str, Shape] = shape if isinstance(shape, Mapping) else {"": shape}
        given = value if isinstance(shape, Mapping) else {"": value}
        if not isinstance(given, dict) or set(given) != set(shapes):
            raise WireError("shape", f"observation must be a map of {', '.join(sorted(shapes))}")
        if not isinstance(unit, list) or not all(isinstance(key, str) and key in shapes for key in unit):
            raise WireError("message", "unit must be a list of names of the observation's pictures")
        out: dict[str, Tensor] = {}
        for key, one in shapes.items():
            what = f"observation {key!r}" if key else "observation"
            dtype = "uint8" if key in unit else None if isinstance(shape, Mapping) or len(one) > 1 else "float32"
            tensor = self._tensor(what, given[key], one, dtype)
            out[key] = tensor.float() / 255.0 if key in unit else as_float32(tensor)
        rows = {len(tensor) for tensor in out.values()}
        if len(rows) != 1:
            raise WireError("shape", f"observations must all have the same rows, not {sorted(rows)}")
        return out if isinstance(shape, Mapping) else out[""], rows.pop()

    def _tensor(self, what: str, value: Any, shape: Shape, dtype: str | None = None) -> Tensor:
        if not isinstance(value, np.ndarray):
            raise WireError("message", f"{what} must be an array, not a {type(value).__name__}")
        array: Array = value
        if dtype is not None and array.dtype.name != dtype:
            raise WireError("dtype", f"{what} must be {dtype}, not {array.dtype.name}")
        if array.shape[1:] != shape or array.ndim == 0:
            raise WireError("shape", f"{what} must be [B, {', '.join(map(str, shape))}], not {list(array.shape)}")
        if len(array) > self._max_batch:
            raise WireError("size", f"{what} has {len(array)} rows, more than {self._max_batch}")
        return torch.from_numpy(array).to(self._device)

    # -- connections -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until :meth:`stop`, or Ctrl-C."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        server = need("websockets.asyncio.server")
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        if self._stop.is_set():
            self._ending.set()
        # one thread, so that requests are decoded in turn and the loop goes on answering pings
        with ThreadPoolExecutor(1, "decode", torch.set_num_threads, (self._threads,)) as self._pool:
            async with server.serve(
                self._converse,
                sock=self._socket,
                process_request=self._admit,
                origins=[None],
                compression=None,
                server_header=None,
                max_size=self._max_bytes,
                max_queue=1,
                close_timeout=2.0,
                open_timeout=HANDSHAKE_S,
                create_connection=self._waiting(server.ServerConnection),
                logger=silent(),
            ):
                await self._ending.wait()

    def _waiting(self, base: Any) -> Any:
        """Connections that count as pending until they have shaken hands: who says nothing must not lock out who does."""
        pending = self._pending

        def connection_made(connection: Any, transport: Any) -> None:
            base.connection_made(connection, transport)
            pending[connection] = transport
            if len(pending) > MAX_PENDING:
                pending.pop(next(iter(pending))).abort()

        def connection_lost(connection: Any, error: Exception | None) -> None:
            pending.pop(connection, None)
            base.connection_lost(connection, error)

        return type("Waiting", (base,), {"connection_made": connection_made, "connection_lost": connection_lost})

    def _admit(self, connection: Any, request: Any) -> Any:
        """Answer the health check, as openpi does, and turn away who shows no token."""
        if request.path == "/healthz":
            return connection.respond(200, "OK\n")
        if self._token is None:
            return None
        shown = request.headers.get_all("Authorization")
        scheme, _, word = (shown[0] if len(shown) == 1 else "").partition(" ")
        word_bytes = word.strip().encode("utf-8", "surrogateescape")
        if scheme in SCHEMES and hmac.compare_digest(word_bytes, self._token.encode()):
            return None
        self._say(f"{_peer(connection)} refused: {'wrong token' if shown else 'no token'}")
        return connection.respond(401, "a token is needed\n")

    async def _converse(self, connection: Any) -> None:
        closed = need("websockets.exceptions").ConnectionClosed
        self._pending.pop(connection, None)
        if self._clients >= MAX_CONNECTIONS:
            await connection.close(1013, "too many connections")
            return
        self._clients += 1
        self._say(f"{_peer(connection)} connected")
        loop = asyncio.get_running_loop()
        try:
            await connection.send(self._hello)
            async for message in connection:
                await connection.send(await loop.run_in_executor(self._pool, self._answer_open, message, connection))
        except closed:
            pass
        finally:
            self._clients -= 1
            self._say(f"{_peer(connection)} gone")
            await loop.run_in_executor(self._pool, self._contexts.leave, connection)

    def stop(self) -> None:
        """Close every connection and let :meth:`run` return; from any thread."""
        self._stop.set()
        if self._loop is not None and self._ending is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ending.set)

    def close(self) -> None:
        """Stop and wait for it."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._socket.close()

    def __enter__(self) -> DecoderServer:
        self._thread = threading.Thread(target=self.run, name="decoder server", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _examples(decoder: Decoder) -> Any:
    """Observations such as the decoder might meet, as arrays, so that it is probed from afar as it is here."""
    drawn = synthetic_observations(decoder, EXAMPLES, 0)
    several = isinstance(drawn, dict)
    entries = {key: value.cpu().numpy() for key, value in (drawn if isinstance(drawn, dict) else {"": drawn}).items()}

    def that_fit() -> int:
        size = sum(value[:1].nbytes for value in entries.values())
        return min(EXAMPLES, EXAMPLE_BYTES // size) if size else 0

    if that_fit() < FEWEST_EXAMPLES:
        entries = {key: value for key, value in entries.items() if value.ndim < 4}
    count = that_fit()
    if not count or not all(np.isfinite(value).all() for value in entries.values()):
        return None  # statistics without a range: no client would take them
    sent = {key: value[:count] for key, value in entries.items()}
    return sent if several else sent[""]


def _refusal(kind: str, message: str) -> bytes:
    return pack({"error": {"kind": kind, "message": printable(message)}})


def _peer(connection: Any) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if address else "a client"


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine can reach an address; a name counts only if it is localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_token(token: str | None, host: str) -> None:
    if token is None:
        if not is_loopback(host):
            raise LpdsError(
                f"host {host!r} can be reached from other machines, so clients must show a token: "
                "pass --token-file FILE, or set LPDS_TOKEN"
            )
    elif len(token) < SHORTEST_TOKEN or not all("!" <= letter <= "~" for letter in token):
        raise LpdsError(f"a token must be at least {SHORTEST_TOKEN} ASCII letters, digits and signs, without spaces")


def _bind(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise LpdsError(f"cannot listen on {host} port {port}: ports are 0 to {2**16 - 1}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # a name may stand for several addresses; the first is what a client will try first
        family, _, _, _, place = found[0]
        return socket.create_server(place[:2], family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LpdsError(f"cannot listen on {host} port {port}: {printable(reason).lower()}") from None
