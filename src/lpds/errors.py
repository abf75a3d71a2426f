"""The errors a user can cause, each one line long."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class LpdsError(Exception):
    """A mistake in the input: the message names the offender and the choices. The CLI prints it without a traceback."""


class RunFault(LpdsError):
    """What a run cannot go on after and is not to blame for: it saves what it has and stops."""


class EnvironmentFault(RunFault):
    """An environment raised or returned a number that is not finite."""


class DecoderFault(RunFault):
    """A decoder that lives elsewhere was lost or refused, or a user's own raised or returned what is no action."""


def one_line(error: BaseException) -> str:
    """An error's message on one line, with its type unless it is the project's own."""
    text = " ".join(str(error).split())[:240]
    return text if isinstance(error, LpdsError) else f"{type(error).__name__}: {text}"


MANY = 40
"""Choices above which the nearest ones alone are told, where one is near enough to be meant."""
SURE = 0.8
"""Likeness from which on that is so: ``Hoper-v5`` means Hopper-v5, ``MyRobot-v0`` nothing that is there."""


def unknown_name(kind: str, name: Any, choices: Iterable[str], told: Iterable[str] = ()) -> LpdsError:
    """Build the error for a name that is not known, with the nearest ones.

    Args:
        kind: what was asked for (``"task"``, ``"method"`` ...).
        name: what the user wrote, whatever it is.
        choices: every valid name.
        told: what is said in their place where they are too many to read; the nearest are of all.

    Returns:
        The error, to be raised by the caller.
    """
    names = sorted(choices)
    said = ", ".join(told) or ", ".join(names)
    if not isinstance(name, str):
        return LpdsError(f"{kind} is a {type(name).__name__}, not a name (choices: {said})")
    if not names:
        return LpdsError(f"unknown {kind} {name!r} (there is none)")
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    sure = difflib.get_close_matches(name, names, n=1, cutoff=SURE)
    hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    if sure and len(names) > MANY:
        return LpdsError(f"unknown {kind} {name!r}{hint}")
    return LpdsError(f"unknown {kind} {name!r}{hint} (choices: {said})")
