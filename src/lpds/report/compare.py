"""Which of several methods is better, and how sure that is: a table from run folders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lpds.digits import told
from lpds.errors import LpdsError
from lpds.files import FORMAT_VERSION
from lpds.registry import METHOD_SETTINGS, resolve
from lpds.report.lines import lines_of, points, say
from lpds.report.paired import Comparison
from lpds.report.read import Group, RunData, evaluation_points, group_runs, read_runs
from lpds.report.sides import BESIDE, Over, Side, frozen_of, frozen_sides, over, side_of
from lpds.report.standing import against, standing
from lpds.report.worlds import APART, by_task, untold
from lpds.run_folder import RunFolder, folder_of
from lpds.stats import (
    Interval,
    area_under_curve,
    crossed_bootstrap,
    crossed_mean,
    iqm,
    mean_over_seeds,
    share_over_seeds,
    told_apart,
)


@dataclass(frozen=True)
class Row:
    """One method on one task; intervals are (estimate, low, high) at 95 %."""

    task: str
    label: str
    seeds: int
    steps: int
    """Primitive steps of the shortest run."""
    mean: Interval
    """Over seeds and the last evaluation's episodes, which are crossed (:func:`lpds.stats.crossed_difference`)."""
    iqm: Interval
    """Interquartile mean of the same; a bootstrap over seeds and over the episodes that they share, too narrow where seeds are
    few."""
    success: Interval
    """Share at any step (:func:`lpds.stats.share_over_seeds`); NaN where the environment does not say."""
    success_difference: Interval
    """Paired with the reference's episodes, as ``difference``."""
    area: Interval
    """Mean height of the learning curve up to the shortest budget compared; over seeds, without bounds for one."""
    difference: Interval
    """Paired with the reference's episodes: this minus the reference."""
    improvement: Interval
    """Probability that a run of this is better than one of the reference; over seeds' means, of which each has several, with
    bounds from :data:`lpds.report.standing.FEWEST_SEEDS` a side."""
    more: int | None
    """Episodes that would decide the difference's sign: 0 if it is decided, ``None`` if none would."""
    most_seeds: int
    """Of this and of the reference, whichever has more: so many would have to play each of those episodes."""
    pairs: int
    """Episodes that both played."""
    differ: int
    """Of these those that did not return the same in all seeds."""
    same: bool
    """Whether all of them went alike, by return and by length: one policy, as far as they tell."""
    over: Mapping[str, Over] = field(default_factory=dict)
    """By the words of :data:`lpds.report.sides.BESIDE`, where all of its runs played that."""

    @property
    def verdict(self) -> str:
        """better, worse, undecided or the same, against the reference; nothing for the reference itself."""
        if math.isnan(self.difference[0]):
            return ""
        if self.same:
            return "the same"
        return {1: "better", -1: "worse", 0: "undecided"}[told_apart(self.difference, self.differ)]


@dataclass(frozen=True)
class CompareReport:
    """What :func:`compare` returns; ``str`` of it is the table."""

    rows: tuple[Row, ...]
    references: dict[str, str]
    """By task, the method that the others are compared with."""
    notes: tuple[str, ...]
    standings: tuple[str, ...] = ()
    """Of every task with several methods: which is the highest, and which may be as high."""

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values; NaN becomes null."""

        def plain(value: Any) -> Any:
            if isinstance(value, tuple | list):
                return [plain(v) for v in value]
            if isinstance(value, dict):
                return {key: plain(v) for key, v in value.items()}
            return None if isinstance(value, float) and math.isnan(value) else value

        rows = [{key: plain(value) for key, value in asdict(row).items()} | {"verdict": row.verdict} for row in self.rows]
        said = {"notes": list(self.notes), "standings": list(self.standings)}
        return {"format_version": FORMAT_VERSION, "references": self.references, "rows": rows, **said}

    def __str__(self) -> str:
        """One table a task, then the notes, then who stands where."""
        return "\n".join(lines_of(self)).rstrip()

    def __repr__(self) -> str:
        """The same: it is what a notebook shows of a cell's last line."""
        return str(self)


def compare(runs: str | Path | RunFolder | Iterable[str | Path | RunFolder], reference: str | None = None) -> CompareReport:
    """Compare run folders by their last evaluations.

    Runs that differ in nothing but the seed are one method. The frozen policy of every run is a method, too, and its
    reference unless another is named.

    Args:
        runs: finished run folders, or folders of committed results, or what :func:`lpds.steer` returned; one by itself will
            do.
        reference: label or method name that the others are compared with.

    Returns:
        The table.

    Raises:
        LpdsError: no run there, none finished, or no such reference.
    """
    given = runs if isinstance(runs, Iterable) and not isinstance(runs, str) else [runs]
    found_runs = read_runs([folder_of(run) for run in given])
    tasks = by_task(found_runs)
    rows: list[Row] = []
    references: dict[str, str] = {}
    notes: list[str] = []
    standings: list[str] = []
    for task, members in tasks.items():
        if APART in task:
            notes.append(
                f"{task}: apart, since the frozen policy did not return what it did in the other runs, on the same episodes; a "
                "factory's name says nothing of its environment"
            )
        if told := untold(members):
            several = f" and {len(told) - 1} more" if len(told) > 1 else ""
            notes.append(
                f"{task}: {told[0].folder}{several} shares no frozen episode with {members[0].folder}, so that both acted in "
                f"one environment is known by the factory's name alone, {members[0].env_name!r}"
            )
        notes += [f"{task}: nothing was learned in {run.folder}" for run in members if run.summary.get("learned") is False]
        notes += [f"{task}: {run.folder}: {run.summary['caveat']}" for run in members if run.summary.get("caveat")]
        said: dict[str, list[Path]] = {}  # what is said of one policy is said by every run of it
        for run in members:
            for line in run.summary.get("warnings", ()):
                said.setdefault(line, []).append(run.folder)
        for line, folders in said.items():
            several = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
            notes.append(f"{task}: {folders[0]}{several}: {line}")
        torn = [(run, note) for run in members for note in run.notes if note.startswith("eval.jsonl is damaged")]
        notes += [f"{task}: {run.folder}: {note}" for run, note in torn]
        left_out = [_left_out(run) for run in members if not _finished(run)]
        if left_out:
            notes.append(f"{task}: left out: {', '.join(left_out)}")
        groups = [_each_seed_once(task, group, notes) for group in group_runs([run for run in members if _finished(run)])]
        found, name, stands = _compare_task(task, groups, reference, notes)
        standings += stands
        rows += found
        if found:
            references[task] = name
    if any(not math.isnan(row.iqm[0]) for row in rows):
        notes.append(
            "IQM: mean of the middle half of a method's episodes, those of all its seeds together (rliable trims runs)"
        )
    if not rows:
        raise LpdsError(f"nothing to compare: {', '.join(_left_out(run) for run in found_runs)}")
    return CompareReport(tuple(rows), references, tuple(notes), tuple(standings))


def _compare_task(task: str, groups: list[Group], reference: str | None, notes: list[str]) -> tuple[list[Row], str, list[str]]:
    sides = [*frozen_sides(task, groups, notes), *(side_of(group) for group in groups)]
    if not sides:
        return [], "", []
    # each against the frozen policy that it was made from, unless one is named for all
    own = {side.decoder: side for side in sides[::-1] if side.method == "frozen"}
    chosen = None
    if reference is not None:
        # a label is one group, a method may be several
        match = [side for side in sides if side.label == reference] or [side for side in sides if side.method == reference]
        if len(match) != 1:
            word = "ambiguous" if match else "unknown"
            raise LpdsError(f"{word} reference {reference!r} on {task} (choices: {', '.join(s.label for s in match or sides)})")
        chosen = match[0]
    # what learns nothing is as high anywhere, so its budget cuts nobody's area
    taught = [side for side in sides if side.runs and _fact(side, "learns", True)]
    end = min((run.steps for side in taught for run in side.runs), default=math.inf)
    steps = {side.label: min((run.steps for run in side.runs), default=0) for side in sides}
    budgets = {steps[side.label] for side in taught}
    if budgets and max(budgets) > 1.05 * min(budgets):
        notes.append(f"{task}: budgets differ, {min(budgets):,} to {max(budgets):,} steps; areas stop at {end:,}")
    rows = [_row(task, side, chosen or own[side.decoder], steps[side.label], end) for side in sides]
    by_label = {row.label: row for row in rows}
    quiet = [side.label for side in sides if any(run.evaluated_noise < 1.0 for run in side.runs)]
    if quiet:
        played = all("quiet" in by_label[label].over for label in quiet)  # then the answer is below
        hint_of = "" if played else " (lpds eval RUN plays the frozen policy with as little)"
        notes.append(
            f"{task}: evaluated with less than all of the noise, which the frozen policy has: {', '.join(quiet)}{hint_of}"
        )
    best = [
        side.label for side in sides if side.method != "frozen" and any(run.run_settings["keep"] == "best" for run in side.runs)
    ]
    if best:
        notes.append(
            f"{task}: kept at the best point of the learning curve, not at its end; that point's own height, the highest of "
            f"several, flatters: {', '.join(best)}"
        )
    chain = [side.label for side in sides if any(run.acts_by_chain for run in side.runs)]
    if chain:
        played = any("start" in by_label[label].over for label in chain)  # the same chain for all of them
        hint_of = "" if played else " (the untrained chain is --method base --sampler chain)"
        notes.append(
            f"{task}: acts by the decoder's whole chain, where the frozen policy has its sampler, which by itself may be worth "
            f"much: {', '.join(chain)}{hint_of}"
        )
    for word, beside in BESIDE.items():
        told_over = [f"{row.label} {_say_over(row.over[word])}" for row in rows if word in row.over]
        if told_over:
            notes.append(f"{task}: return over {beside}: {'; '.join(told_over)}")
    notes += _efforts(task, sides)
    alone = [side.label for side in sides if side.method != "frozen" and len(side.runs) == 1]
    if alone:
        notes.append(
            f"{task}: one seed only, so intervals are for other episodes of that run, not for other runs: {', '.join(alone)}"
        )
    two = [side.label for side in sides if side.method != "frozen" and len(side.runs) == 2]
    if two:
        notes.append(f"{task}: two seeds only, whose intervals may be too narrow (they cover 89 to 95 %): {', '.join(two)}")
    for side, row in zip(sides, rows, strict=True):
        notes += _of_episodes(task, side, row, chosen or own[side.decoder])
    name = chosen.label if chosen else "frozen" if len(own) == 1 else "each one's own frozen policy"
    return rows, name, standing(task, sides)


def _of_episodes(task: str, side: Side, row: Row, other: Side) -> list[str]:
    """What to know of the episodes that a row and its reference are of."""
    notes: list[str] = []
    lost = int(np.isnan(side.columns["return"]).sum())
    if lost:
        notes.append(f"{task}: {side.label} lacks the returns of {lost} of {side.columns['return'].size} episodes")
    most = max((len(side_of(Group("", (run,))).keys) for run in side.runs), default=0)
    if len(side.keys) < most:
        notes.append(f"{task}: {side.label} by the {len(side.keys)} episodes that all of its seeds played, of {most}")
    if side.runs and 0 < row.pairs < max(len(side.keys), len(other.keys)):
        notes.append(
            f"{task}: the difference of {side.label} is over {row.pairs} shared episodes, its return over "
            f"{len(side.keys)}, that of {other.label} over {len(other.keys)}"
        )
    if side.runs and other.method == "frozen" and other.decoder == side.decoder and row.pairs:
        before, others = crossed_mean(frozen_of(side).columns["return"]), not set(side.keys) <= set(other.keys)
        elsewhere = False
        if not others and not math.isnan(before[0]):
            there = other.columns["return"][:, [other.keys.index(key) for key in side.keys]]
            elsewhere = not np.isclose(before[0], crossed_mean(there)[0], rtol=1e-3, equal_nan=True)
        if others or elsewhere:
            how = "played other episodes than" if others else "did not begin at"
            notes.append(
                f"{task}: {side.label} {how} the row {other.label!r}: its difference is from its own "
                f"frozen policy, {told(before, sign=False)[0]} there"
            )
    if side is not other and not row.pairs:
        notes.append(f"{task}: {side.label} shares no episode with {other.label}: another eval_seed?")
    return notes


def _fact(side: Side, name: str, default: bool) -> bool:
    """What the settings of a side's method say of every method of that kind; the methods themselves are slow to import."""
    known = side.method in METHOD_SETTINGS
    return bool(getattr(resolve("method", METHOD_SETTINGS, side.method), name, default)) if known else default


def _efforts(task: str, sides: Sequence[Side]) -> list[str]:
    """What was learned with, where methods differ in it by more than the few updates that a last episode is worth."""
    found: dict[str, tuple[int, int, int]] = {}
    rounds: dict[str, int] = {}
    for side in sides:
        counts = [run.column("updates")[1] for run in side.runs]
        made = [int(count[-1]) for count in counts if len(count) and count[-1] > 0]
        if made and side.method != "frozen":
            settings = side.runs[0].run_settings
            if _fact(side, "recalls", False):  # of no batch of the replay
                rounds[side.label] = max(made)
                continue
            found[side.label] = (max(made), int(settings["batch_size"]), int(settings["warmup_fits"]))
    worked = [updates * batch for updates, batch, _ in found.values()]
    alike = all(max(made) <= 1.2 * min(made) for made in (worked, list(rounds.values())) if made)
    if alike and not (found and rounds) and len({fits for *_, fits in found.values()}) < 2:
        return []
    told_of = [
        f"{label} {updates:,} of {batch:,} transitions{f' after {fits:,} fits to the first returns' if fits else ''}"
        for label, (updates, batch, fits) in found.items()
    ]
    told_of += [f"{label} {updates:,} of what it had just collected" for label, updates in rounds.items()]
    return [f"{task}: learned with unequal updates: {'; '.join(told_of)}"]


def _say_over(found: Over) -> str:
    line = say(found.difference, sign=True)
    return line if math.isnan(found.success_difference[0]) else f"{line}, success {points(found.success_difference)} points"


def _each_seed_once(task: str, group: Group, notes: list[str]) -> Group:
    """The first run of every seed: the same seed twice is the same draw twice."""
    kept: dict[Any, RunData] = {}
    for run in group.runs:
        if run.seed in kept:
            first = kept[run.seed].folder
            notes.append(f"{task}: {run.folder} left out: {group.label} has seed {run.seed} already, from {first}")
        else:
            kept[run.seed] = run
    return replace(group, runs=tuple(kept.values()))


def _row(task: str, side: Side, reference: Side, steps: int, end: float) -> Row:
    returns, found = side.columns["return"], against(side, reference)
    points = [evaluation_points(run, "return") for run in side.runs]
    areas = [area_under_curve([s for s, _ in p], [np.nanmean(v) for _, v in p], end) for p in points if p]
    return Row(
        task,
        side.label,
        len(returns),
        steps,
        crossed_mean(returns),
        crossed_bootstrap(returns, iqm),
        share_over_seeds(list(side.columns["success"])),
        found.success,
        mean_over_seeds([[area] for area in areas]),
        found.difference,
        found.improvement,
        found.more,
        max(len(returns), len(reference.columns["return"])),
        found.pairs,
        found.differ,
        found.same,
        {word: left for word in BESIDE if (left := over(side, word)) is not None},
    )


def _finished(run: RunData) -> bool:
    comparison: Comparison | None = run.comparison()
    return comparison is not None and comparison.final


def _left_out(run: RunData) -> str:
    if not run.summary:
        return f"{run.folder} is not finished"
    return f"{run.folder} is finished, but its last evaluation cannot be read ({'; '.join(run.notes) or 'it is not there'})"
