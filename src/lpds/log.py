"""What a run writes while it goes: JSON lines always, TensorBoard if asked, and something to look at."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TextIO

from lpds.digits import told
from lpds.errors import LpdsError
from lpds.files import FORMAT_VERSION

METRIC_KEYS = (
    "step", "wall_s", "updates", "return_mean", "success", "delta_sq_mean", "delta_sq_p95", "delta_sq_beyond", "kl_nats",
    "w_norm", "w_autocorrelation", "alpha", "q_action", "q_latent", "td_loss", "distill_loss", "distill_gap_base",
    "distill_gap_steered", "action_entropy", "action_entropy_frozen", "success_ema", "q_scale", "env_steps_per_s",
    "updates_per_s",
)  # fmt: skip
"""Keys of every row of ``metrics.jsonl``; null where a method has none."""


class JsonLines:
    """An append-only file of JSON objects that can be cut back to where a checkpoint saw it."""

    def __init__(self, path: Path, size: int | None = None) -> None:
        """Open a new file, or one cut back to ``size`` bytes; one that holds less is kept as far as its rows are whole."""
        self.path, self.lost = path, 0
        mode = "xb" if size is None else "r+b" if path.exists() else "w+b"
        # unbuffered: what failed to be written must not be tried again when the file is closed
        self._stream: IO[bytes] = open(path, mode, buffering=0)  # noqa: SIM115 - lives as long as the run
        if size is not None:
            kept = path.read_bytes()[:size].rfind(b"\n") + 1
            self.lost = size - kept
            self._stream.truncate(kept)
            self._stream.seek(kept)

    def write(self, row: dict[str, Any]) -> None:
        """Append one object; NaN and infinity become null.

        Raises:
            LpdsError: the disk is full, or the file cannot be written.
        """
        line = (json.dumps({"format_version": FORMAT_VERSION, **finite(row)}, allow_nan=False) + "\n").encode()
        try:
            short = self._stream.write(line) != len(line)
        except OSError as error:
            raise LpdsError(f"{self.path} cannot be written ({error}); the last checkpoint is untouched") from None
        if short:
            raise LpdsError(f"{self.path} cannot be written (no space left); the last checkpoint is untouched")

    def size(self) -> int:
        """Bytes written so far, and on the disk: a checkpoint that counts on them must not outlive them.

        Raises:
            LpdsError: they could not be put on the disk.
        """
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise LpdsError(f"{self.path}, and so the checkpoint, not saved ({error}); the previous one is untouched") from None
        return self._stream.tell()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row with NaN and infinity, which JSON lacks, as null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All complete rows of a JSONL file; a last line cut short by a crash, and all behind what is no row, is left out."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # torn in the middle of a letter, too
                break
            if not isinstance(row, dict):
                break
            rows.append(row)
    return rows


WARNS = "WARNING"
"""How a line begins that says that a run's figures may mean little."""


class Display:
    """Progress: a live bar on a terminal, plain lines elsewhere, nothing but warnings when quiet."""

    def __init__(self, total: int, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._total, self._quiet, self._stream = total, quiet, stream or sys.stderr
        self._bar: Any = None
        self._next_line = 0.0
        self._unread = False
        self.warnings: list[str] = []
        """Lines of warning so far, each once; a run keeps them."""
        if not quiet and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.completed:>7,.0f}/{task.total:,.0f} steps"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(file=self._stream), transient=False)
            self._task = self._bar.add_task("steer", total=total, figures="")
            self._bar.start()

    def show(self, row: dict[str, Any], *, last: bool = False) -> None:
        """Show one row of metrics."""
        if self._quiet:
            return
        with self._quiet_when_nobody_reads():
            self._show(row, last)

    def _show(self, row: dict[str, Any], last: bool) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=row["step"], figures=figures(row))
        elif last or row["step"] >= self._next_line:
            self._next_line = row["step"] + self._total / 20  # plain lines: twenty for a run
            rate = row.get("env_steps_per_s") or 0.0
            left = max(0.0, self._total - row["step"]) / rate if rate else math.nan
            time_left = "" if math.isnan(left) else f"  {left / 60:.1f} min left"
            self.say(f"{row['step']:>8,}/{self._total:,}  {figures(row)}{time_left}")

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one; a warning when quiet, too."""
        warns = line.startswith(WARNS)
        if warns and line not in self.warnings:
            self.warnings.append(line)
        if self._unread or (self._quiet and not warns):
            return
        with self._quiet_when_nobody_reads():
            self._say(line)

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=self._stream, flush=True)

    @contextmanager
    def _quiet_when_nobody_reads(self) -> Iterator[None]:
        """A reader that is gone (``| head``, a terminal that was closed) costs the words, not the run."""
        try:
            yield
        except OSError:
            self._quiet = self._unread = True
            with suppress(OSError, ValueError):  # what is still held back would raise again when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            with self._quiet_when_nobody_reads():
                self._bar.stop()
            self._bar = None


def figures(row: dict[str, Any]) -> str:
    """The figures of one row that people watch, on one line."""
    parts = []
    for key, label, form in (
        ("return_mean", "return", ""),
        ("success", "success", "{:.0%}"),
        ("delta_sq_mean", "|Δ|²", "{:.3f}"),
        ("alpha", "alpha", "{:.3g}"),
        ("env_steps_per_s", "steps/s", "{:.0f}"),
    ):
        value = row.get(key)
        if value is not None and not (isinstance(value, float) and math.isnan(value)):
            parts.append(f"{label} {form.format(value) if form else told([value], least=0)[0]}")
    return "  ".join(parts)


class TensorBoard:
    """Metrics as TensorBoard scalars (extra ``tensorboard``)."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise LpdsError("TensorBoard is not installed: pip install 'lpds[tensorboard]'") from None
        self._folder, self._make = folder, SummaryWriter
        self._writer: SummaryWriter | None = None

    def write(self, row: dict[str, Any]) -> None:
        """Add one row; of a run that goes on, the first takes the place of what was cut back."""
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=row["step"])
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(key, value, row["step"])

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
