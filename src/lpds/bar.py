"""A progress bar for work that is counted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

SECONDS = 30.0
"""Between two lines."""


class progress_bar:  # noqa: N801 - reads as a function
    """A progress bar on a terminal, a line now and then elsewhere: a context manager that gives ``advance(done, total)``."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._progress: Any = None
        self._said = time.monotonic()

    def __enter__(self) -> Callable[[int, int], None]:
        """Draw it, on a terminal."""
        if not sys.stderr.isatty():
            return self._line
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (MofNCompleteColumn(), TextColumn(self._unit), BarColumn(), TimeRemainingColumn())
        progress = Progress(*columns, console=Console(stderr=True))
        self._progress = progress
        task = progress.add_task(self._unit)
        progress.start()
        return lambda done, total: progress.update(task, completed=min(done, total), total=total)

    def _line(self, done: int, total: int) -> None:
        """Say where the work is, now and then: what runs in the background has a log that someone looks at."""
        now = time.monotonic()
        if now - self._said >= SECONDS:
            self._said = now
            sys.stderr.write(f"{min(done, total):,}/{total:,} {self._unit}\n")
            sys.stderr.flush()

    def __exit__(self, *exception: object) -> None:
        """Take it away."""
        if self._progress is not None:
            self._progress.stop()
