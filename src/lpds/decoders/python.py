"""``python:FILE.py:NAME`` or ``python:MODULE:NAME``: a decoder that a user's own code makes.

So that a wrapped policy has a reference like any other: the command line takes it, and a run finds it again by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from lpds.decoders.base import BaseDecoder
from lpds.errors import LpdsError, one_line, unknown_name
from lpds.threads import use_default_device

WRITTEN = "__lpds_written__"
"""Where a module keeps when its file was last written."""
DEFAULT_DEVICE = "__lpds_default_device__"
"""Where a module keeps the default device that it set."""
FORM = "python:FILE.py:NAME or python:MODULE:NAME"


def load_python(place: str, **options: Any) -> BaseDecoder:
    """Import what the user's code calls a decoder.

    Args:
        place: ``FILE.py:NAME``, whose folder is then importable as it is for ``python FILE.py``, or ``MODULE:NAME``. NAME is a
            decoder (of :func:`lpds.wrap_decoder`, say), or a function that makes one.
        options: keyword arguments for that function.

    Returns:
        The decoder, with its reference set; a file's is its absolute path.

    Raises:
        LpdsError: the code cannot be found or raises, has no such name, or that is no decoder.
    """
    source, colon, name = place.rpartition(":")
    if not colon or not source or not name.isidentifier():
        raise LpdsError(f"decoder 'python:{place}' must be written {FORM}")
    is_file = source.endswith(".py")
    if is_file:
        source = str(Path(source).resolve())
    reference = f"python:{source}:{name}"
    try:
        if is_file and not Path(source).is_file():
            raise LpdsError(f"decoder {reference!r}: there is no file {source}")
        module = _run_file(Path(source)) if is_file else importlib.import_module(source)
        if not hasattr(module, DEFAULT_DEVICE):
            setattr(module, DEFAULT_DEVICE, torch.get_default_device())
        if not hasattr(module, name):
            named = [found for found in vars(module) if not found.startswith("_")]
            raise LpdsError(f"decoder {reference!r}: {unknown_name('name in it', name, named)}")
        made = getattr(module, name)
        if not isinstance(made, BaseDecoder) and callable(made):
            _check_maker(reference, made, options)
            use_default_device(getattr(module, DEFAULT_DEVICE))  # again, where it was set when the file was first run
            made = made(**options)
            options = {}
    except LpdsError:
        raise
    except SystemExit as error:
        told = f" ({error})" if isinstance(error.code, str) else ""
        raise LpdsError(
            f"decoder {reference!r} ended the program when it was imported{told}: put its main part behind "
            "if __name__ == '__main__'"
        ) from error
    except Exception as error:  # any code at all may be inside
        raise LpdsError(f"decoder {reference!r}: {one_line(error)}") from error
    if not isinstance(made, BaseDecoder):
        raise LpdsError(f"decoder {reference!r} is a {type(made).__name__}; make one with lpds.wrap_decoder")
    if options:
        raise LpdsError(f"decoder {reference!r} is made already and takes no options, got {', '.join(sorted(options))}")
    made.reference = reference
    return made


def _check_maker(reference: str, made: Any, options: Mapping[str, Any]) -> None:
    """Refuse the policy itself, a network or a function of (obs, w), where a decoder or what makes one is asked for."""
    way = "a decoder, or a function that makes one without further arguments, is needed (lpds.wrap_decoder)"
    if isinstance(made, torch.nn.Module):
        raise LpdsError(f"decoder {reference!r} is a network, {type(made).__name__}: {way}")
    try:
        wanted = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):  # a builtin tells nothing
        return
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    lacking = [p.name for p in wanted if p.kind in plain and p.default is p.empty and p.name not in options]
    if lacking:
        raise LpdsError(f"decoder {reference!r} is a function of ({', '.join(lacking)}), which nothing gives it: {way}")


def _run_file(path: Path) -> ModuleType:
    """Import a file under its own name; once, until it is written anew."""
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        if getattr(loaded, WRITTEN, None) == path.stat().st_mtime_ns:
            return loaded
        loaded = None
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if loaded is not None or spec is None or spec.loader is None:
        raise LpdsError(f"a module {path.stem!r} is loaded already from elsewhere: rename {path.name}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    setattr(module, WRITTEN, path.stat().st_mtime_ns)
    sys.modules[path.stem] = module
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)  # a cache of bytecode knows seconds, not edits
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
