"""Between commands and the shell: signals, lines beside the result, what was given."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lpds.errors import LpdsError

if TYPE_CHECKING:
    from lpds.report.compare import CompareReport


def where_it_acts(reference: str, arguments: argparse.Namespace) -> str | None:
    """The environment of a decoder, given or that of its card; ``None`` where a task says it.

    Raises:
        LpdsError: nothing does.
    """
    from lpds.zoo import environment_of

    if arguments.env is not None or arguments.task is not None:
        return arguments.env  # type: ignore[no-any-return]
    env = environment_of(reference)
    if env is None:
        raise LpdsError(f"nothing says where {reference} acts: pass --task, or --env with a Gymnasium id")
    return env


def show_comparison(report: CompareReport, *, as_json: bool) -> None:
    """Print a comparison: all of it into a file or a pipe, in a terminal as much as its lines hold."""
    from lpds.report.lines import lines_of

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(json.dumps(report.to_json()) if as_json else "\n".join(lines_of(report, width)).rstrip())


def as_interrupt(signum: int, frame: Any) -> None:
    """Take a signal for Ctrl-C."""
    raise KeyboardInterrupt


EPISODE = "stopping after this episode; what is there will be kept (Ctrl-C again to break off)"


@contextmanager
def asked_to_stop(told: str = EPISODE) -> Iterator[Callable[[], bool]]:
    """Take the first Ctrl-C or SIGTERM for a request to stop, what comes after it as ever; what is given says if one came."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def as_before() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(signum: int, frame: Any) -> None:
        came.append(signum)
        as_before()
        say(told)

    for number in before:
        signal.signal(number, request)
    try:
        yield lambda: bool(came)
    finally:
        as_before()


def say(line: str) -> None:
    """Print a line that is not the result."""
    print(line, file=sys.stderr, flush=True)


def settings_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, by their fields' names."""
    return {key.removeprefix("set_"): value for key, value in vars(arguments).items() if key.startswith("set_")}


def guarded(name: str, work: Callable[[], int | None]) -> int:
    """Do a program's work, and tell what goes wrong in one line.

    Args:
        name: the program's, before the line.
        work: gives its exit code, or nothing for 0.

    Returns:
        The exit code: the work's own, 2 for an input that does not fit, 130 after Ctrl-C, 141 where nobody reads on.
    """
    try:
        code = work()
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:  # `| head` has seen enough; what else Python would flush at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except LpdsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no space, no permission, no such place
        print(f"{name}: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        # torch's word for it; whatever else is a RuntimeError is a fault of ours, and its traceback wanted
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        print(f"{name}: not enough memory ({' '.join(str(error).split())[-120:]})", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"{name}: interrupted" + (f": {interrupt}" if str(interrupt) else ""), file=sys.stderr)
        return 130
