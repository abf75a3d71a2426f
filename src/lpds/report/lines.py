"""A comparison as lines of text: one table a task, as wide as there is room for, the notes, and who stands where."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lpds.digits import told, unsigned_zero
from lpds.report.sides import NAN3
from lpds.stats import FEWEST_PAIRS, Interval

if TYPE_CHECKING:
    from lpds.report.compare import CompareReport, Row

SPARED = ("what would decide it", "IQM", "area", "P(better)", "steps", "seeds")
"""What a narrow terminal goes without, the first first: all but the first are columns."""

VERDICT = "verdict (return)"


def lines_of(report: CompareReport, width: int | None = None) -> Iterator[str]:
    """The lines of a comparison.

    Args:
        report: what :func:`lpds.compare` returned.
        width: letters of a line; columns of :data:`SPARED` are left out, and notes broken, until they fit, which is said.
            ``None`` for everything, however wide.
    """
    spared: set[str] = set()
    for task, reference in report.references.items():
        table, left_out = _fitting(_columns([row for row in report.rows if row.task == task]), width)
        spared |= left_out
        yield f"{task}: against {reference}"
        yield from table
        yield ""
    notes = [*report.notes, *report.standings]
    if spared:
        notes.insert(0, f"left out of a terminal of {width} letters: {', '.join(n for n in SPARED if n in spared)} (--json)")
    for note in notes:
        yield from [note] if width is None else _wrapped(note, max(width, 40))


def _wrapped(note: str, width: int) -> list[str]:
    """The note in lines, its paths and commands whole."""
    return textwrap.wrap(note, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def hint(row: Row) -> str:
    """What would decide an undecided comparison."""
    if row.pairs < FEWEST_PAIRS:
        return f": fewer than {FEWEST_PAIRS} episodes cannot decide it"
    if row.differ < FEWEST_PAIRS:
        return f": fewer than {FEWEST_PAIRS} episodes that differ cannot decide it"
    if row.more:
        return f": about {row.more:,} more episodes{' a seed' if row.most_seeds > 1 else ''} would decide it"
    return ": only more seeds would decide it" if row.more is None and row.most_seeds > 1 else ""


def say(found: Interval, form: str = "", *, sign: bool = False) -> str:
    """An estimate and its bounds, where it has any, in as many digits as mean something."""
    if math.isnan(found[0]):
        return "-"
    mean, low, high = (unsigned_zero(format(value, form)) for value in found) if form else told(found, sign, least=0)
    return mean if math.isnan(found[1]) else f"{mean} [{low}, {high}]"


def points(found: Interval) -> str:
    """A difference of shares in percent, without a unit."""
    mean, low, high = (100.0 * value for value in found)
    return say((mean, low, high), "+.0f")


def _columns(rows: list[Row]) -> dict[str, list[str]]:
    """By head, the cells; of one that no row has a figure for nothing."""
    columns = {
        "": [row.label for row in rows],
        "seeds": [str(row.seeds) if row.steps else "-" for row in rows],  # the frozen policy has no seeds of its own
        "steps": [f"{row.steps:,}" if row.steps else "-" for row in rows],
        "return": [say(row.mean) for row in rows],
        "IQM": [say(row.iqm) for row in rows],
        "area": [say((row.area[0], *NAN3[1:])) for row in rows],
        "success": [say(row.success, ".0%") for row in rows],
        "points": [points(row.success_difference) for row in rows],
        "difference": [say(row.difference, sign=True) for row in rows],
        "P(better)": [say(row.improvement, ".2f") for row in rows],
    }
    if all(math.isnan(row.success[0]) for row in rows):
        del columns["success"], columns["points"]
    if all(math.isnan(row.improvement[0]) for row in rows):
        del columns["P(better)"]
    columns[VERDICT] = [row.verdict for row in rows]
    columns[SPARED[0]] = [hint(row) if row.verdict == "undecided" else "" for row in rows]
    return columns


def _fitting(columns: dict[str, list[str]], width: int | None) -> tuple[list[str], set[str]]:
    """The table without what it has to go without, and that."""
    spared: list[str] = []
    while True:
        table = _lines({head: cells for head, cells in columns.items() if head not in spared})
        rest = [head for head in SPARED if head in columns and head not in spared]
        if width is None or not rest or max(map(len, table)) <= width:
            return table, {head for head in spared if any(columns[head])}
        spared.append(rest[0])


def _lines(columns: dict[str, list[str]]) -> list[str]:
    """Cells flush right but for the first and the last column's; to a verdict its hint is put without a head of its own."""
    columns = dict(columns)
    hints = columns.pop(SPARED[0], None)
    if hints is not None:
        columns[VERDICT] = [word + more for word, more in zip(columns[VERDICT], hints, strict=True)]
    last = len(columns) - 1
    padded = []
    for at, (head, cells) in enumerate(columns.items()):
        wide = max(len(head), *map(len, cells))
        padded.append([cell.ljust(wide) if at in (0, last) else cell.rjust(wide) for cell in (head, *cells)])
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]
