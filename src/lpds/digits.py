"""How many digits of a figure are told, and how."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def told(found: npt.ArrayLike, sign: bool = False, least: int = 1) -> list[str]:
    """Figures of one quantity to ``least`` decimals, or to more where the largest would not have three digits then."""
    values = np.asarray(found, np.float64)
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    decimals = least if largest == 0.0 else max(least, 2 - math.floor(math.log10(largest)))
    form = f"{'+' if sign else ''}.{decimals}f" if decimals <= 6 else f"{'+' if sign else ''}.2e"
    return [unsigned_zero(format(float(value), form)) for value in values]


def unsigned_zero(word: str) -> str:
    """A figure in words; one that was rounded to nothing is not negative."""
    return word.removeprefix("-") if float(word.rstrip("%")) == 0.0 else word


def brackets(low: str, high: str) -> str:
    """Bounds of an interval in words, to follow its estimate; nothing where there are none."""
    return "" if "nan" in low else f" [{low}, {high}]"
