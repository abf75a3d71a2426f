"""Serve a decoder over a websocket: noise in, actions out (``lpds serve-decoder``; ``docs/remote.md`` has the messages).

It listens on loopback unless a token guards it, refuses browsers (whatever sends an Origin), reads messages strictly
(:mod:`lpds.wire`), answers every mistake with one line and decodes one request at a time on one thread.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import secrets
import socket
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpds.errors import LpdsError
from lpds.types import Decoder, Shape
from lpds.wire import MAX_BATCH, MAX_BYTES, Array, WireError, describe_decoder, need, one_line, pack, silent, unpack

MAX_CONNECTIONS = 32
SHORTEST_TOKEN = 16
MAX_CONTEXTS = 4
"""Prepared observations that are kept for a connection; the one unused for longest goes first. A run holds up to three."""
Contexts = OrderedDict[int, tuple[Any, int]]
"""Prepared observations by number, and of how many rows."""
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
            say: called with a line when a client comes, goes or is refused.

        Raises:
            LpdsError: an address that cannot be had, a host that needs a token, or a token that cannot be one.
        """
        for module in ("msgpack", "websockets"):
            need(module)
        _check_token(token, host)
        if min(max_bytes, max_batch, threads) < 1:
            raise LpdsError(f"max_bytes {max_bytes}, max_batch {max_batch} and threads {threads} must be positive")
        if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
            raise LpdsError(f"device {device!r} is not to be had here (choices: auto, cpu, and cuda where there is one)")
        self.decoder, self._token, self._say = decoder, token, say or (lambda line: None)
        self._device = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        self._threads, self._max_bytes, self._max_batch = threads, max_bytes, max_batch
        self._hello = pack(describe_decoder(decoder, self._facts(), max_bytes, max_batch))
        self._socket = _bind(host, port)
        name, bound = self._socket.getsockname()[:2]
        self.address = f"ws://[{name}]:{bound}" if ":" in name else f"ws://{name}:{bound}"
        self._clients = 0
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def _facts(self) -> dict[str, Any]:
        import lpds

        versions = {"lpds": lpds.__version__, "torch": str(torch.__version__), "device": self._device.type}
        served: dict[str, Any] = json.loads(json.dumps(self.decoder.describe(), default=str))
        return {"served": served, "server": {**versions, "threads": self._threads}}

    # -- one request -------------------------------------------------------------------------------------------------

    def answer(self, message: bytes | str, contexts: Contexts | None = None) -> bytes:
        """Answer a message that may be anything, with what a connection's earlier messages have prepared."""
        contexts = OrderedDict() if contexts is None else contexts
        forms = {
            frozenset(("observation", "noise")): self._answer_observation,
            frozenset(("observation",)): self._answer_shown,
            frozenset(("context", "repeat", "noise")): self._answer_context,
            frozenset(("features", "noise")): self._answer_features,
        }
        try:
            request = unpack(message)
            form = forms.get(frozenset(request))
            if form is None:
                known = " or ".join(", ".join(sorted(keys)) for keys in forms)
                raise WireError("message", f"a request has the keys {known}, and no other")
            start = time.perf_counter()
            with torch.no_grad():
                found = form(request, contexts)
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

    def _answer_observation(self, request: dict[str, Any], contexts: Contexts) -> dict[str, Any]:
        w = self._noise(request)
        return self._decoded(self.decoder.prepare(self._observation(request["observation"], len(w))), w)

    def _answer_shown(self, request: dict[str, Any], contexts: Contexts) -> dict[str, Any]:
        """Prepare observations, keep that, and say by what number it is asked for."""
        decoder: Any = self.decoder
        obs = self._observation(request["observation"], None)
        context, number = decoder.prepare(obs), secrets.randbits(62)  # never another context's, in whatever server's life
        contexts[number] = (context, len(next(iter(obs.values())) if isinstance(obs, Mapping) else obs))
        while len(contexts) > MAX_CONTEXTS:
            contexts.popitem(last=False)
        if getattr(decoder, "feature_size", None) is None:
            return {"context": number}
        return {"context": number, "features": decoder.features(context).float().cpu().numpy()}

    def _answer_context(self, request: dict[str, Any], contexts: Contexts) -> dict[str, Any]:
        w, number, times = self._noise(request), request["context"], request["repeat"]
        if type(number) is not int or type(times) is not int or times < 1:
            raise WireError("message", "context must be a number that was given, and repeat a positive one")
        if number not in contexts:
            raise WireError("context", "that context is not kept any more: show the observation again")
        contexts.move_to_end(number)
        context, rows = contexts[number]
        if len(w) != rows * times:
            raise WireError("shape", f"{rows} observations {times} times but {len(w)} noises")
        decoder: Any = self.decoder
        return self._decoded(context if times == 1 else decoder.repeat(context, times), w)

    def _answer_features(self, request: dict[str, Any], contexts: Contexts) -> dict[str, Any]:
        decoder: Any = self.decoder
        size = getattr(decoder, "feature_size", None)
        if size is None or not decoder.decodes_states:
            raise WireError("decoder", "this decoder does not decode features: it needs the observation")
        w, features = self._noise(request), self._tensor("features", request["features"], (size,), "float32")
        if len(features) != len(w):
            raise WireError("shape", f"{len(features)} features but {len(w)} noises: the batch sizes must be equal")
        return self._decoded(decoder.from_features(features), w)

    def _decoded(self, context: Any, w: Tensor) -> dict[str, Any]:
        return {"actions": self.decoder.decode(context, w).float().cpu().numpy()}

    def _noise(self, request: dict[str, Any]) -> Tensor:
        return self._tensor("noise", request["noise"], self.decoder.spec.latent_shape, "float32")

    def _observation(self, value: Any, rows: int | None) -> Any:
        shape = self.decoder.spec.obs_shape
        if not isinstance(shape, Mapping):
            obs = self._tensor("observation", value, shape, "float32")
            if rows is not None and len(obs) != rows:
                raise WireError("shape", f"{len(obs)} observations but {rows} noises: the batch sizes must be equal")
            return obs
        if not isinstance(value, dict) or set(value) != set(shape):
            raise WireError("shape", f"observation must be a map of {', '.join(sorted(shape))}")
        out = {key: self._tensor(f"observation {key!r}", value[key], one) for key, one in shape.items()}
        rows = len(next(iter(out.values()))) if rows is None else rows
        if any(len(tensor) != rows for tensor in out.values()):
            raise WireError("shape", f"observations must all have {rows} rows, one for every noise")
        return out

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
                logger=silent(),
            ):
                await self._ending.wait()

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
        if self._clients >= MAX_CONNECTIONS:
            await connection.close(1013, "too many connections")
            return
        self._clients += 1
        self._say(f"{_peer(connection)} connected")
        contexts: Contexts = OrderedDict()
        try:
            await connection.send(self._hello)
            async for message in connection:
                reply = await asyncio.get_running_loop().run_in_executor(self._pool, self.answer, message, contexts)
                await connection.send(reply)
        except closed:
            pass
        finally:
            self._clients -= 1
            self._say(f"{_peer(connection)} gone")

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


def _refusal(kind: str, message: str) -> bytes:
    return pack({"error": {"kind": kind, "message": one_line(message)}})


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
        raise LpdsError(f"cannot listen on {host} port {port}: {one_line(reason).lower()}") from None
