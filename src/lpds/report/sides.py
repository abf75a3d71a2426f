"""What is compared: one method's last evaluations, of all its seeds, and the frozen policies that they started from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lpds.errors import LpdsError
from lpds.report.paired import Array
from lpds.report.read import Group, RunData
from lpds.report.worlds import same_world
from lpds.stats import Interval, paired_gain, paired_share_gain

NAN3: Interval = (math.nan, math.nan, math.nan)
BESIDE = {"start": "what it starts from, untrained", "quiet": "the frozen policy with as little noise"}
"""What a run's further last evaluations are of: their kind is "final" and this word."""


@dataclass(frozen=True)
class Over:
    """What is left of a method's difference over other episodes that its own runs played."""

    difference: Interval
    success_difference: Interval
    """NaN where the environment does not say."""


@dataclass(frozen=True)
class Side:
    """One method's last evaluations: episode keys, and by column [S, E]."""

    label: str
    method: str
    runs: tuple[RunData, ...]
    decoder: str
    """Which frozen policy it started from."""
    keys: list[tuple[int, int]]
    columns: dict[str, Array]


def frozen_sides(task: str, groups: list[Group], notes: list[str]) -> list[Side]:
    """The frozen policies, one a decoder: the first run that evaluated it stands for all, if they played the same.

    Its difference from a method is told from that method's own runs (:func:`frozen_of`).
    """
    sides: dict[str, Side] = {}
    first: dict[str, RunData] = {}
    everyone = [run for group in groups for run in group.runs]
    for run in everyone:
        name = _decoder(run)
        keys, columns = episodes_of([run], "final", _of_frozen)
        if name not in sides or len(keys) > len(sides[name].keys):
            sides[name], first[name] = Side("frozen", "frozen", (), name, keys, columns), run
    for name in sides:
        runs = [run for run in everyone if _decoder(run) == name and not same_world(run, first[name])]
        if not runs:
            continue
        several = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        notes.append(
            f"{task}: the frozen policy of {runs[0].folder}{several} did not return what it did in {first[name].folder}, on "
            "the same episodes: does the environment ignore its seed, or were they made on another machine or version? "
            "Differences from it are each run's own"
        )
    if len(sides) == 1:
        return list(sides.values())
    return [replace(side, label=f"frozen {name[:6]}") for name, side in sides.items()]


def _decoder(run: RunData) -> str:
    decoder = run.config.get("decoder", {})
    return str(decoder.get("fingerprint") or decoder.get("name"))


def frozen_of(side: Side) -> Side:
    """The frozen policy in a method's own runs, [S, E]: played beside them, by the same version on the same machine."""
    keys, columns = episodes_of(list(side.runs), "final", _of_frozen)
    return Side("frozen", "frozen", (), side.decoder, keys, columns)


def side_of(group: Group) -> Side:
    """The last evaluations of a method's runs."""
    keys, columns = episodes_of(list(group.runs), "final", lambda row: not _of_frozen(row))
    return Side(group.label, group.runs[0].method, group.runs, _decoder(group.runs[0]), keys, columns)


def episodes_of(
    runs: list[RunData], kind: str, chosen: Callable[[Mapping[str, Any]], bool]
) -> tuple[list[tuple[int, int]], dict[str, Array]]:
    """Episodes of a kind that all the runs' last evaluations share, and their columns [S, E].

    Raises:
        LpdsError: they share none.
    """
    tables = []
    for run in runs:
        rows = [row for row in run.evaluations if row.get("kind") == kind and chosen(row)]
        tables.append({(int(row["seed"]), int(row["episode"])): row for row in rows})
    keys = sorted(set.intersection(*(set(table) for table in tables)))
    if not keys:
        named = ", ".join(str(run.folder) for run in runs)
        raise LpdsError(f"the last evaluations of {named} share no episode: they need the same eval_seed to be compared")
    columns = {
        what: np.array([[math.nan if t[k].get(what) is None else t[k][what] for k in keys] for t in tables], np.float64)
        for what in ("return", "success", "length")
    }
    return keys, columns


def _of_frozen(row: Mapping[str, Any]) -> bool:
    return bool(row.get("scale") == 0.0)


def alike(sides: Sequence[Array]) -> bool:
    """Whether every row of all of them is the same."""
    return all(np.array_equal(row, sides[0][0], equal_nan=True) for side in sides for row in side)


def over(side: Side, word: str) -> Over | None:
    """This method's return and success over those of :data:`BESIDE`; ``None`` unless all of its runs played them."""
    runs, kind = list(side.runs), f"final {word}"
    if not runs or not all(any(row.get("kind") == kind for row in run.evaluations) for run in runs):
        return None
    keys, before = episodes_of(runs, kind, lambda row: True)
    shared = [side.keys.index(key) for key in keys if key in side.keys]
    mine = [at for at, key in enumerate(keys) if key in side.keys]
    if not shared:
        return None

    def both(what: str) -> tuple[Array, Array]:
        return before[what][:, mine], side.columns[what][:, shared]

    gain, successes = paired_gain(*both("return")), both("success")
    if any(np.isnan(column).any() for column in successes):
        return Over(gain, NAN3)
    same = all(np.array_equal(*both(what), equal_nan=True) for what in ("return", "length"))
    return Over(gain, paired_share_gain(*successes, same=same))
