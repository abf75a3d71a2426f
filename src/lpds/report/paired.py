"""Frozen and steered over the same episodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lpds.stats import Interval, bootstrap_mean, paired_difference, pairs_that_differ, share_bounds, told_apart, wilson
from lpds.verdict import verdict_line

Array = npt.NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Frozen and steered over the same episodes and the same noise, [E] each."""

    step: int
    final: bool
    """Whether it is the last evaluation of a finished run, or the latest point of the learning curve."""
    frozen: dict[str, Array]
    """By column: return, success, success_at_end, length; NaN where the environment does not say."""
    steered: dict[str, Array]

    @property
    def episodes(self) -> int:
        """E."""
        return len(self.frozen["return"])

    def has(self, what: str) -> bool:
        """Whether the environment says it at all."""
        return not (np.isnan(self.frozen[what]).all() or np.isnan(self.steered[what]).all())

    def difference(self, what: str = "return") -> Interval:
        """Paired difference, steered minus frozen, with a 95 % interval."""
        before, after = self.frozen[what], self.steered[what]
        said = ~(np.isnan(before) | np.isnan(after))
        found = paired_difference(before[said], after[said])
        if not what.startswith("success") or not said.any():
            return found
        return share_bounds(found, before[said], after[said], same=self.same)

    @property
    def same(self) -> bool:
        """Whether both are one policy, as far as returns and lengths tell: where the reward is success the returns do not."""
        return all(np.array_equal(self.frozen[what], self.steered[what], equal_nan=True) for what in ("return", "length"))

    @property
    def differ(self) -> int:
        """Of the E episodes those with another return."""
        return pairs_that_differ(self.frozen["return"], self.steered["return"])

    @property
    def worse(self) -> bool:
        """Whether the return is below the frozen policy's with confidence."""
        return told_apart(self.difference(), self.differ) < 0

    def verdict(self) -> str:
        """One line: what came out, in the words of the run itself."""
        returns = (float(self.frozen["return"].mean()), float(self.steered["return"].mean()))
        before, after = (column_interval("success", side["success"])[0] for side in (self.frozen, self.steered))
        success = (before, after) if self.has("success") else None
        return verdict_line(returns, success, self.difference(), self.episodes, self.differ)


def column_interval(what: str, values: Array) -> Interval:
    """(mean, low, high) at 95 %: Wilson for success, bootstrap for the rest."""
    if what.startswith("success"):
        said = values[~np.isnan(values)]
        return wilson(int(said.sum()), len(said))
    return bootstrap_mean(values)


def pair(frozen: list[Row], steered: list[Row], *, final: bool) -> Comparison | None:
    """Match episodes by (evaluation seed, number); the later record of an episode counts."""
    before, after = ({(row["seed"], row["episode"]): row for row in side} for side in (frozen, steered))
    shared = sorted(before.keys() & after.keys())
    if not shared:
        return None
    sides = [
        {what: numbers([side[key] for key in shared], what) for what in ("return", "success", "success_at_end", "length")}
        for side in (before, after)
    ]
    return Comparison(max(int(row["step"]) for row in steered), final, sides[0], sides[1])


def numbers(rows: Sequence[Row], key: str) -> Array:
    """One column [N]; NaN where it is not said."""
    return np.array([math.nan if row.get(key) is None else row[key] for row in rows], np.float64)
