"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lpds.errors import LpdsError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file next to its place, flush it to the disk, then rename it over the old one.

    Args:
        path: the file to make or replace.
        write: writes the content into the open binary stream.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched and no rest is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: Path) -> None:
    """Make a file's folder and refuse a place that nothing can be written to, before the work that would be lost there.

    Raises:
        LpdsError: it is a folder, or there is no writing.
    """
    if path.is_dir():
        raise LpdsError(f"{path} is a folder: name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise LpdsError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder that exists for this process alone; a process that dies lets go of it.

    Raises:
        LpdsError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise LpdsError(f"run folder {folder} is in use by another process: wait for it, or choose another") from None
    try:
        yield
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write JSON (sorted as given, NaN refused, newline at the end), atomically."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda stream: stream.write(text.encode()))
