"""The shipped frozen policies, and how a reference becomes a decoder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lpds.decoders.base import BaseDecoder
from lpds.decoders.store import WEIGHTS, open_decoder
from lpds.errors import LpdsError, one_line, unknown_name
from lpds.registry import DECODER_FILES, DECODER_FORMS, DECODER_SCHEMES, TASKS, resolve
from lpds.threads import kept_defaults, kept_random

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the shipped decoders."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{WEIGHTS}"))


def load_decoder(reference: str | os.PathLike[str], **options: Any) -> BaseDecoder:
    """Open a frozen policy.

    Args:
        reference: a zoo name (``"hopper"``); ``"dppo:PATH"``, a public DPPO checkpoint; ``"lerobot:PATH"``, a policy that
            LeRobot saved; ``"python:FILE.py:NAME"``, one that your own code makes; ``"folder:PATH"`` or the path of a
            folder that ``lpds pretrain`` made; ``"remote:ws://HOST:PORT"``, what ``lpds serve-decoder`` serves.
        options: of the kind: ``ddim_steps`` (zoo diffusion), ``steps`` and ``solver`` (zoo flow), or those of
            :func:`lpds.decoders.dppo.load_dppo`, :func:`lpds.decoders.lerobot.load_lerobot` and
            :func:`lpds.decoders.remote.load_remote`.

    Returns:
        The decoder. It remembers its reference and options, so that a run can find it again.

    Raises:
        LpdsError: unknown name (the nearest are suggested), or what the kind refuses.
    """
    if not isinstance(reference, str | os.PathLike):
        raise LpdsError(f"a decoder's reference is text or a path, not a {type(reference).__name__}")
    reference = os.fspath(reference)
    options = {key: _plain(key, value) for key, value in options.items()}
    try:
        with kept_defaults(), kept_random():  # and the default type, which a policy's own file may set
            decoder = _open(reference, options)
    except TypeError as error:
        raise LpdsError(f"decoder {reference!r}: {str(error).split('() ')[-1]}") from None
    # a run must find the files again from wherever it is resumed
    kept = {key: value for key, value in options.items() if key not in decoder.secrets}
    files = {key for key, value in kept.items() if key in DECODER_FILES and Path(str(value)).exists()}
    decoder.options = {key: str(Path(value).resolve()) if key in files else value for key, value in kept.items()}
    return decoder


def _plain(name: str, value: Any) -> Any:
    """An option as a run's JSON holds it, so that a resumed run opens the same: paths are text, from the root.

    Raises:
        LpdsError: JSON has no such value.
    """
    if isinstance(value, os.PathLike):
        return str(Path(value).resolve())
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        raise LpdsError(
            f"option {name} is a {type(value).__name__}, which a run could not note down to find its decoder again: numbers, "
            "text, paths, or lists and dicts of them"
        ) from None
    return value


def _open(reference: str, options: dict[str, Any]) -> BaseDecoder:
    if reference in names():
        return open_decoder(FOLDER / reference, name=reference, reference=reference, **options)
    scheme, colon, rest = reference.partition(":")
    if colon and scheme in DECODER_SCHEMES:
        decoder: BaseDecoder = resolve("decoder scheme", DECODER_SCHEMES, scheme)(rest, **options)
        return decoder
    if (Path(reference) / WEIGHTS).is_file():
        return open_folder(reference, **options)
    if (Path(reference) / "config.json").is_file() and (Path(reference) / "passport.json").is_file():
        raise LpdsError(f"{reference!r} is a run, not a decoder: lpds eval, resume and video take it as it is")
    if not _meant(reference) and reference and not colon and (Path(reference).is_dir() or len(Path(reference).parts) > 1):
        what = f"holds none ({WEIGHTS} is missing)" if Path(reference).is_dir() else "does not exist"
        raise LpdsError(f"unknown decoder {reference!r}: that folder {what}")
    if meant := _meant(reference):
        raise LpdsError(f"unknown decoder {reference!r}; did you mean {meant!r}?")
    if reference in TASKS:
        raise LpdsError(f"the decoder of task {reference!r} is not shipped here (shipped: {', '.join(names())})")
    raise unknown_name("decoder", reference, [*names(), *DECODER_FORMS])


def _meant(reference: str) -> str | None:
    """The scheme that a reference lacks, where what is written of it tells (``policy.py:decoder``, ``ws://...``, ``x.pt``)."""
    if reference.partition(":")[0].endswith(".py"):
        return f"python:{reference}" + ("" if ":" in reference else ":NAME")
    if reference.startswith(("ws://", "wss://")):
        return f"remote:{reference}"
    return f"dppo:{reference}" if reference.endswith((".pt", ".pth")) and ":" not in reference else None


def is_unknown(reference: str) -> bool:
    """Whether a word is no decoder's name and no place of one, nor a task's, so that it may have been meant for anything."""
    named = reference in names() or reference in TASKS or Path(reference).exists()
    return not named and ":" not in reference and _meant(reference) is None


def environment_of(reference: str) -> str | None:
    """Where a decoder acts: the environment that its card was measured in, or a task's; None where nothing says so.

    Raises:
        LpdsError: the card cannot be read.
    """
    name = reference.removeprefix("folder:").removeprefix("lerobot:")
    card = (FOLDER / name if name in names() else Path(name)) / "card.json"
    try:
        measured: str | None = json.loads(card.read_bytes()).get("env") if card.is_file() else None
    except (ValueError, AttributeError) as error:
        raise LpdsError(f"{card} cannot be read: {one_line(error)}") from None
    env: str | None = resolve("task", TASKS, measured).env if measured is not None and measured in TASKS else measured
    return env


def open_folder(path: str, **options: Any) -> BaseDecoder:
    """Open a decoder that ``lpds pretrain`` made."""
    folder = Path(path)
    return open_decoder(folder, name=folder.name, reference=f"folder:{folder.resolve()}", **options)
