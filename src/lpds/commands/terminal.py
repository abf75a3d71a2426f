"""Between commands and the shell: signals, lines beside the result, what was given."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any


def where_it_acts(reference: str, arguments: argparse.Namespace) -> str | None:
    """The environment of a decoder, given or that of its card; ``None`` where a task says it.

    Raises:
        LpdsError: nothing does.
    """
    from lpds.errors import LpdsError
    from lpds.zoo import environment_of

    if arguments.env is not None or arguments.task is not None:
        return arguments.env  # type: ignore[no-any-return]
    env = environment_of(reference)
    if env is None:
        raise LpdsError(f"nothing says where {reference} acts: pass --task, or --env with a Gymnasium id")
    return env


def as_interrupt(signum: int, frame: Any) -> None:
    """Take a signal for Ctrl-C."""
    raise KeyboardInterrupt


EPISODE = "stopping after this episode; what is there will be kept (Ctrl-C again to break off)"


def asked_to_stop(told: str = EPISODE) -> Callable[[], bool]:
    """Take SIGTERM and the first Ctrl-C for a request to stop, the second Ctrl-C as ever; what is returned says if one came."""
    came: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def request(signum: int, frame: Any) -> None:
        came.append(signum)
        signal.signal(signal.SIGINT, before)
        say(told)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, request)
    return lambda: bool(came)


def say(line: str) -> None:
    """Print a line that is not the result."""
    print(line, file=sys.stderr, flush=True)


def settings_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, by their fields' names."""
    return {key.removeprefix("set_"): value for key, value in vars(arguments).items() if key.startswith("set_")}
