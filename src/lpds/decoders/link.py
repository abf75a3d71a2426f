"""One websocket connection to a server of decoders: opened when it is needed, closed when anything is odd."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from contextlib import ExitStack
from typing import Any

from lpds.errors import DecoderFault
from lpds.wire import MAX_BYTES, Served, WireError, need, printable, read_description, silent, unpack

TOKEN_VARIABLE = "LPDS_TOKEN"
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
        """Whether this process has a connection, as far as known: a fork that used its parent's would take its answers."""
        return self._stack is not None and self._pid == os.getpid()

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
            _limit_sending(self._connection.socket, self._timeout)
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
        except (exceptions.WebSocketException, UnicodeError) as error:  # sent on to another place, or no name of a host
            raise DecoderFault(f"{self._address} cannot be reached: {_reason(error)}") from None
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
        except BlockingIOError:
            self.close()
            raise Lost(f"nothing taken in {self._timeout:g} s") from None
        except (OSError, exceptions.ConnectionClosed) as error:
            self.close()
            raise self._lost(error, exceptions) from None
        except BaseException:  # Ctrl-C, when the question may have gone out already
            self.close()
            raise
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


def _limit_sending(connection: socket.socket, seconds: float) -> None:
    """Have a send fail that makes no way for so long: a server that stopped reading would hold it for ever."""
    whole = max(1, int(1000.0 * seconds))
    limit = whole if sys.platform == "win32" else struct.pack("ll", whole // 1000, whole % 1000 * 1000)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    except OSError as error:
        if error.errno != errno.EBADF:  # closed by now: the first message, which does not come, says why
            raise


def _reason(error: Exception) -> str:
    return printable(error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)) or "no answer"
