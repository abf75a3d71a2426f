"""What settings are refused for: one line that names the offender and the choices."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

from lpds.errors import LpdsError, unknown_name

LARGEST_SEED = 2**32
"""Seeds are below it: they are words of the counters that noise and resets are drawn from."""

LANES = 20
"""Rows of every evaluation batch, so environments at most. Fixed, and never shrunk while episodes end, since a matrix product
may round a row differently in a batch of another size, and a contact-rich simulation makes another episode of the last bit."""


def check_lanes(name: str, value: Any) -> int:
    """A number of environments that an evaluation may open at once.

    Raises:
        LpdsError: it is none in 1 .. :data:`LANES`.
    """
    lanes = whole(name, value)
    if not 1 <= lanes <= LANES:
        raise LpdsError(f"{name} must be in 1 .. {LANES}, not {lanes}")
    return lanes


def check_seed(name: str, value: Any) -> int:
    """A seed as a plain integer in [0, 2^32).

    Raises:
        LpdsError: it is none.
    """
    seed = whole(name, value)
    if not 0 <= seed < LARGEST_SEED:
        raise LpdsError(f"{name} must be in 0 .. 2^32 - 1, not {seed}")
    return seed


def whole(name: str, value: Any) -> int:
    """A count as a plain integer.

    Raises:
        LpdsError: it is none.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise LpdsError(f"{name} must be a whole number, not {value!r}") from None


def choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices."""
    if value not in choices:
        raise unknown_name(name, value, choices)


def check_decoder(decoder: Any) -> None:
    """Refuse what is no decoder, a plain function or a network for instance, and name the way to make one of it."""
    if not hasattr(decoder, "spec"):
        raise LpdsError(f"decoder is a {type(decoder).__name__}, not a decoder: wrap it with lpds.wrap_decoder")


def check_device(name: str) -> None:
    """Refuse a device that torch does not know, or that this machine lacks.

    Raises:
        LpdsError: it is one of them.
    """
    import torch

    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise LpdsError(f"device is {name!r} (choices: cpu, cuda, cuda:0 ...)") from None
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there += ["mps", "mps:0"]
    if device.type in ("cuda", "mps") and str(device) not in there:  # what other kinds there are is not known here
        raise LpdsError(
            f"device {name} was asked for, but this machine has none that torch can use (choices: {', '.join(there)})"
        )


def best_device(name: str) -> str:
    """``name``, which must be here, or for ``"auto"`` a GPU that CUDA can use where there is one, else the CPU."""
    import torch

    found = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    check_device(found)
    return found


def check_share(name: str, value: Any) -> None:
    """Refuse a factor outside [0, 1]."""
    if not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
        raise LpdsError(f"{name} must be in [0, 1], not {value!r}")


MAY_BE_INFINITE = ("noise_bound", "state_cap", "value_clip")
"""Bounds that infinity lifts."""
AT_MOST = {
    **{"tau": 1, "depth": 1_000, "blocks": 1_000, "critics": 1_000, "threads": 1_024},
    **{"width": 2**16, "num_envs": 2**16, "batch_size": 2**24, "n_step": 2**20},
}
"""What ends in another library's traceback, or in a crash, beyond it."""


def positive(settings: Any, *names: str) -> None:
    """Refuse fields that are not positive numbers, infinite where that means nothing, or beyond :data:`AT_MOST`."""
    for name in names:
        value = getattr(settings, name)
        if not value > 0:
            raise LpdsError(f"{name} must be positive, not {value}")
        if math.isinf(value) and name not in MAY_BE_INFINITE:
            raise LpdsError(f"{name} must be finite, not {value}")
        if value > AT_MOST.get(name, math.inf):
            raise LpdsError(f"{name} must be at most {AT_MOST[name]}, not {value}")
