"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lpds.errors import LpdsError

FORMAT_VERSION = 1
"""Of every file that this package writes; a file without one is of the first."""


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file next to its place, flush it to the disk, then rename it over the old one.

    Args:
        path: the file to make or replace.
        content: what it is to hold, or what writes that into the open binary stream.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched and no rest is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            if isinstance(content, bytes):
                stream.write(content)
            else:
                content(stream)
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


def read_object(
    path: Path, what: str, keys: Mapping[str, type] | None = None, version: int | None = FORMAT_VERSION
) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file; a missing one raises what ``open`` does.
        what: its owner, for a message: "a run".
        keys: entries that it must have, each of a type.
        version: that it must be of, where it says one; None asks for none.

    Raises:
        FileNotFoundError: there is none; NotADirectoryError, where its folder is a file.
        LpdsError: broken, of another form or format.
    """
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:
        raise LpdsError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise LpdsError(f"{path} is not that of {what}: it holds no JSON object")
    if version is not None and found.get("format_version", version) != version:
        raise LpdsError(f"{path} is of format {found['format_version']}; this version of lpds reads format {version}")
    keys = keys or {}
    missing = [key for key in keys if key not in found]
    if missing:
        raise LpdsError(f"{path} is not that of {what}: {', '.join(missing)} missing")
    for key, kind in keys.items():
        if not isinstance(found[key], kind):
            raise LpdsError(f"{path} is not that of {what}: {key} is no {kind.__name__}")
    return found


def write_json(path: Path, value: Any) -> None:
    """Write JSON (sorted as given, NaN refused, newline at the end), atomically."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


def how_to_resume(folder: Path) -> str:
    """What goes on with a run: a command, or a call where its decoder or environment is the user's own object."""
    try:
        config = read_object(folder / "config.json", "run")
        own = {"decoder": config["decoder"]["reference"] is None, "env": config["env"] is None}
    except (OSError, LpdsError, KeyError, TypeError):  # what is said beside a fault must not become another
        own = {}
    given = "".join(f", {name}={name}" for name, needed in own.items() if needed)
    return f"lpds.resume({str(folder)!r}{given})" if given else f"lpds resume {shlex.quote(str(folder))}"
