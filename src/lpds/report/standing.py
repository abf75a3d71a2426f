"""One method beside another on the episodes that both played, and which of several methods are the highest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lpds.report.paired import Array
from lpds.report.sides import NAN3, Side, alike, frozen_of
from lpds.stats import (
    Interval,
    crossed_difference,
    episodes_to_decide,
    paired_gain,
    paired_share_gain,
    pairs_that_differ,
    probability_of_improvement,
    share_difference,
    told_apart,
)

FEWEST_SEEDS = 5
"""Below so many runs a side a bootstrap's interval of P(better) says nothing."""


@dataclass(frozen=True)
class Against:
    """A method less another; fields as those of :class:`lpds.report.compare.Row`."""

    difference: Interval = NAN3
    success: Interval = NAN3
    improvement: Interval = NAN3
    more: int | None = None
    pairs: int = 0
    differ: int = 0
    """Pairs in whose return they differ."""
    turned: int = 0
    """Pairs in whose success they differ."""
    same: bool = False


def against(side: Side, reference: Side) -> Against:
    """The differences over the episodes that both played; of a method from itself there are none."""
    if side is reference:
        return Against()
    # a run and the frozen policy that it played are a pair; seeds of two methods are draws of their own
    own = side.decoder == reference.decoder and (side.method == "frozen") != (reference.method == "frozen")
    mine, other = side, reference
    if own and reference.runs:
        mine = frozen_of(reference)
    elif own:
        other = frozen_of(side)
    shared = sorted(set(mine.keys) & set(other.keys))
    if not shared:
        return Against()

    def both(what: str) -> list[Array]:
        return [s.columns[what][:, [s.keys.index(key) for key in shared]] for s in (other, mine)]

    (a, b), pairs = both("return"), len(shared)
    ends, nothing = (both("return"), both("length")), np.zeros((1, pairs))
    same = all(np.array_equal(x, y, equal_nan=True) if own else alike([x, y]) for x, y in ends)
    success, improvement, turned = NAN3, NAN3, 0
    c, d = both("success")
    if not (np.isnan(c).any() or np.isnan(d).any()):
        success = (paired_share_gain if own else share_difference)(c, d, same=same)
        turned = pairs_that_differ(nothing, d - c) if own else pairs_that_differ(c, d)
    if len(a) > 1 and len(b) > 1 and not own:  # a run against a single one is no probability
        improvement = probability_of_improvement(a.mean(1), b.mean(1))
        if min(len(a), len(b)) < FEWEST_SEEDS:  # resampling three runs that are all better finds no other world
            improvement = (improvement[0], *NAN3[1:])
    return Against(
        paired_gain(a, b) if own else crossed_difference(a, b),
        success,
        improvement,
        episodes_to_decide(nothing, b - a) if own else episodes_to_decide(a, b),
        pairs,
        pairs_that_differ(nothing, b - a) if own else pairs_that_differ(a, b),
        turned,
        same,
    )


def standing(task: str, sides: Sequence[Side]) -> list[str]:
    """One line that says which method is the highest, by success where all tell it, and which may be as high; for two and more.

    Heights are those on the episodes that all of them played; a method that played others, or has returns that are not known,
    is counted, not ranked. One is below the highest where the interval of their difference excludes zero, each pair by itself:
    among many, one in forty is put there by chance.
    """
    if _methods(sides) < 2:
        return []
    whole_returns = [side for side in sides if not np.isnan(side.columns["return"]).any()]
    unknown, sides = len(sides) - len(whole_returns), whole_returns
    if _methods(sides) < 2:
        return [f"{task}: which method is the highest is not told: of fewer than two are all returns known"]
    ranked = max(([side for side in sides if set(side.keys) & set(one.keys)] for one in sides), key=_methods)
    shared = sorted(set.intersection(*(set(side.keys) for side in ranked)))
    if _methods(ranked) < 2 or not shared:
        return [f"{task}: which method is the highest is not told: no two played the same episodes (another eval_seed?)"]
    whole = all(len(side.keys) == len(shared) for side in ranked)
    apart = len(sides) - len(ranked)
    ranked = [_on(side, shared) for side in ranked]
    told = not any(np.isnan(side.columns["success"]).any() for side in ranked)
    what = "success" if told else "return"

    def height(side: Side) -> tuple[float, float]:
        return float(side.columns[what].mean()), float(side.columns["return"].mean())

    best = max(ranked, key=height)
    level, below = list[str](), 0
    for side in sorted(ranked, key=height, reverse=True):
        if side is best:
            continue
        found = against(side, best)
        lower = told_apart(found.difference, found.differ) < 0
        if told_apart(found.success, found.turned) < 0 if told else lower:
            below += 1
        else:
            # with its height: one may be level only because its seeds end far apart
            level.append(_named(side, _height(height(side)[0], told), "its return is below" if told and lower else ""))
    said = _height(height(best)[0], told)
    over = "" if whole else f" over the {len(shared)} episodes that all played"
    rest = [f"{below} below it"] if below and (level or apart or unknown) else []
    rest += [f"{apart} on other episodes"] if apart else []
    rest += [f"{unknown} with returns that are not known"] if unknown else []
    beside = f"not told apart from it: {', '.join(level)}" if level else "all others are below it"
    if apart and not level:
        beside = "none of those that played the same is as high"
    return [f"{task}: highest {what}{over}: {_named(best)}, {said}; {beside}" + (f" ({', '.join(rest)})" if rest else "")]


def _methods(sides: Sequence[Side]) -> int:
    return sum(side.method != "frozen" for side in sides)


def _on(side: Side, keys: Sequence[tuple[int, int]]) -> Side:
    """The side on some of its episodes."""
    chosen = [side.keys.index(key) for key in keys]
    return replace(side, keys=list(keys), columns={what: column[:, chosen] for what, column in side.columns.items()})


def _height(value: float, is_share: bool) -> str:
    if is_share:
        return f"{100.0 * value:.0f} %"
    return f"{value:.4g}" if math.fabs(value) < 1000.0 else f"{value:,.0f}"


def _named(side: Side, *remarks: str) -> str:
    alone = "one seed" if side.method != "frozen" and len(side.runs) == 1 else ""
    said = "; ".join(filter(None, (*remarks[:1], alone, *remarks[1:])))
    return f"{side.label} ({said})" if said else side.label
