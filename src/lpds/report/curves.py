"""Several runs of one kind as one line: points that fell due together, their intervals, and where only some seeds have any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from lpds.report.paired import Array, column_interval
from lpds.report.panels import Level, Series
from lpds.report.read import Group, RunData, evaluation_points
from lpds.report.worlds import alike_frozen
from lpds.stats import Interval, mean_over_seeds, share_over_seeds

DOTS = 400
"""Training episodes drawn for a group; more would only make the page heavy."""


def curves(groups: Sequence[Group], what: str) -> list[Series]:
    """Of every group the curve of its evaluations, and its last evaluation.

    A point is of all seeds that got so far, and where those become fewer another line begins (:func:`_stretches`).
    """
    series = []
    for index, group in enumerate(groups):
        seeds = [found for run in group.runs if (found := _due(run, evaluation_points(run, what)))]
        keys = sorted({key for seed in seeds for key in seed})
        for part, count in _stretches(keys, [max(seed) for seed in seeds]):
            due = [points for key in part if len(points := [seed[key] for seed in seeds if key in seed]) == count]
            if due:
                x = np.array([np.mean([step for step, _ in point]) for point in due], np.float64)
                bounds = np.array([_over_seeds(what, [values for _, values in point]) for point in due])
                series.append(_part(group.label, index, count, len(seeds), x, *bounds.T))
        ends = [c for run in group.runs if (c := run.comparison()) is not None and c.final and c.has(what)]
        if ends:
            mean, low, high = _over_seeds(what, [c.steered[what] for c in ends])
            at = float(np.mean([c.step for c in ends]))
            x, y, lows, highs = (np.array([value], np.float64) for value in (at, mean, low, high))
            name = f"{group.label}: last evaluation{_of(len(ends), len(group.runs))}"
            series.append(Series(name, index, x, y, lows, highs, kind="final"))
    return series


def _stretches(keys: Sequence[Any], ends: Sequence[Any]) -> list[tuple[list[Any], int]]:
    """Sorted keys cut where another seed ends, each part with the number of seeds that reach it.

    Of fewer seeds a mean is another quantity.
    """
    return [(list(part), count) for count, part in groupby(keys, lambda key: sum(key <= end for end in ends))]


def _part(label: str, index: int, count: int, seeds: int, x: Array, y: Array, low: Array | None, high: Array | None) -> Series:
    """One stretch of a group's line: thin, and with its number of seeds in its name, where that is not all of them."""
    return Series(f"{label}{_of(count, seeds, ': ')}", index, x, y, low, high, kind="line" if count == seeds else "part")


def _of(count: int, whole: int, before: str = " of ") -> str:
    return "" if count == whole else f"{before}{count} of {whole} seeds"


def _due(run: RunData, points: list[tuple[int, Array]]) -> dict[tuple[int, int], tuple[int, Array]]:
    """Points of a curve by the multiple of ``eval_every`` that they fell due at, and the end of the run beside the last.

    The end of a smaller budget, which a run went on from, is left out: other seeds have no such point.
    """
    every, found = _interval(run, points), {}
    for step, values in points:
        key = (int(step // every), 0)
        if key not in found:
            found[key] = (step, values)
        elif step == points[-1][0]:
            found[key[0], 1] = (step, values)
    return found


def _interval(run: RunData, points: list[tuple[int, Array]]) -> float:
    """Steps between points: what the settings say, unless no two points are so far apart."""
    told, apart = float(run.run_settings["eval_every"]), np.diff([step for step, _ in points])
    agrees = len(apart) == 0 or bool((abs(apart - told) < 0.1 * told).any())
    return max(1.0, told if agrees else float(np.median(apart)))


def _over_seeds(what: str, seeds: list[Array]) -> Interval:
    """Over episodes while there is one seed; with several, over the seeds and the episodes that they share."""
    if len(seeds) == 1:
        return column_interval(what, seeds[0])
    return share_over_seeds(seeds) if what.startswith("success") else mean_over_seeds(seeds)


def training(groups: Sequence[Group]) -> Iterable[Series]:
    """Returns of training episodes, at most :data:`DOTS` of every group, evenly chosen."""
    for index, group in enumerate(groups):
        rows = [row for run in group.runs for row in run.episodes if row.get("return") is not None]
        if rows:
            rows.sort(key=lambda row: int(row["step"]))
            chosen = np.unique(np.linspace(0, len(rows) - 1, min(DOTS, len(rows))).round().astype(int))
            x, y = (np.array([rows[i][key] for i in chosen], np.float64) for key in ("step", "return"))
            yield Series(f"{group.label}: training episodes", index, x, y, kind="dots")


def frozen_levels(groups: Sequence[Group], what: str) -> list[Level]:
    """One level for every decoder, of the episodes that its curves start with; one that several runs share counts once.

    Where a decoder did not return the same in all runs, as on another machine, every part of them has its own. Where no run
    has such a start, as the frozen policy's own has none, the level is the last evaluation's.
    """
    runs: dict[str, list[RunData]] = {}
    labels: dict[Path, str] = {}
    for group in groups:
        for run in group.runs:
            decoder = run.config.get("decoder", {})
            runs.setdefault(decoder.get("fingerprint") or decoder.get("name") or "?", []).append(run)
            labels[run.folder] = group.label
    levels: list[Level] = []
    worlds = [(decoder, alike_frozen(members)) for decoder, members in runs.items()]
    for fingerprint, members, several in [(name, world, len(parts) > 1) for name, parts in worlds for world in parts]:
        starts = [row for run in members for row in run.curve_start()]
        rows = starts or [row for run in members for row in run.frozen_rows()]
        episodes = {(row["seed"], row["episode"]): row[what] for row in rows if row.get(what) is not None}
        if not episodes:
            continue
        values = np.array(list(episodes.values()), np.float64)
        name = f"frozen policy {fingerprint[:6]}" if len(runs) > 1 else "frozen policy"
        if several:
            own, *others = dict.fromkeys(labels[run.folder] for run in members)
            name += f" of {own}{f' and {len(others)} more' if others else ''}"
            if any(level.label.startswith(f"{name} (") for level in levels):  # seeds of one method, on two machines
                name += f", seed {members[0].seed}"
        levels.append(
            Level(f"{name} ({len(values)} episodes{'' if starts else ', last evaluation'})", *column_interval(what, values))
        )
    return levels


def metric(
    groups: Sequence[Group], key: str, change: Callable[[Array], Array] = lambda y: y, less: str | None = None
) -> list[Series]:
    """One metric of every group, or what it is above another: the run's values, or the mean over seeds with their range."""
    series = []
    for index, group in enumerate(groups):
        seeds, apart = [], 1.0
        for run in group.runs:
            x, y = run.column(key)
            apart = max(apart, _rows_apart(run, x))
            y = y if less is None else y - run.column(less)[1]
            y = y if np.isnan(y).all() else change(y)
            if not np.isnan(y).all():
                seeds.append((x, y))
        if not seeds:
            continue
        keys, table = _by_step(seeds, apart)
        said = ~np.isnan(table[1]).all(0)
        for part, count in _stretches(keys.tolist(), [keys[~np.isnan(row)].max() for row in table[1]]):
            here = said & np.isin(keys, part)
            if here.any():
                x, y = np.nanmean(table[0][:, here], 0), np.nanmean(table[1][:, here], 0)
                low, high = (np.nanmin(table[1][:, here], 0), np.nanmax(table[1][:, here], 0)) if count > 1 else (None, None)
                series.append(_part(group.label, index, count, len(seeds), x, y, low, high))
    return series


def _rows_apart(run: RunData, x: Array) -> float:
    """Steps between a run's rows: what its settings say, unless its rounds are longer."""
    c = run.run_settings
    told = float(min(c["log_every"], max(1, c["steps"] // 25)))
    seen = float(np.median(np.diff(x))) if len(x) > 1 else told
    return told if seen < 1.5 * told else seen


def _by_step(seeds: Sequence[tuple[Array, Array]], interval: float) -> tuple[Array, Array]:
    """Multiples [N], and at them steps and values [2, S, N] of several seeds' rows, all due at multiples of one interval.

    A row comes at the end of the round in which it falls due, so a few steps after its multiple, and not the same few in
    every seed: it is the multiple before it that they share.
    Where one seed was logged more often, as at first in a run whose budget grew, its rows of one multiple are averaged.
    """
    if len(seeds) == 1:
        return np.arange(len(seeds[0][0]), dtype=np.float64), np.stack(seeds[0])[:, None]
    bins = [np.floor(x / interval) for x, _ in seeds]
    keys = np.unique(np.concatenate(bins))
    table = np.full((2, len(seeds), len(keys)), np.nan)
    for i, (x, y) in enumerate(seeds):
        for k, key in enumerate(keys):
            here = (bins[i] == key) & ~np.isnan(y)
            if here.any():
                table[:, i, k] = x[here].mean(), y[here].mean()
    return keys, table
