"""What a figure is made of: panels of series and levels, and the same numbers as CSV."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, field, replace

import numpy as np

from lpds.report.paired import Array

STEPS = "primitive environment steps"


@dataclass(frozen=True)
class Series:
    """Points of one group in one panel."""

    label: str
    group: int
    """Chooses line style, marker and colour: the same group looks the same in every panel."""
    x: Array
    """[P]."""
    y: Array
    """[P], as the bounds."""
    low: Array | None = None
    high: Array | None = None
    kind: str = "line"
    """line (with a band if there are bounds), part (thin, of some of the seeds only), dots (faint), cloud (of samples), or
    final (one point with an error bar)."""


@dataclass(frozen=True)
class Level:
    """A horizontal line that a panel is read against."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes, with one quantity."""

    title: str
    series: list[Series]
    levels: list[Level] = field(default_factory=list)
    xlabel: str = STEPS
    ylabel: str = ""
    log: bool = False
    from_zero: bool = False
    percent: bool = False
    mark: float | None = None
    """Step at which the warm-up ends."""
    span: tuple[float, float] | None = None
    """Lowest and highest value to be shown, where several panels are to have the same; else :func:`extent`."""
    xspan: tuple[float, float] | None = None
    """Likewise along x, of a panel that has no steps there."""


@dataclass(frozen=True)
class FigureData:
    """One figure: what it shows, how to read it, and its panels."""

    name: str
    title: str
    caption: str
    panels: list[Panel]
    columns: int = 2
    """Panels beside one another."""
    missing: str = ""
    """What cannot be drawn, and why; told where nothing else of the figure is, too."""


CROWD = 6
"""More groups than these are drawn in several panels: the eye follows no more lines."""
BEYOND = 0.4
"""Share of the lines' own range by which bounds may widen a panel on either side: those of three seeds may dwarf the lines."""


def extent(panel: Panel) -> tuple[float, float]:
    """Lowest and highest value that a panel shows: lines and levels whole, the bounds of lines where they do not dwarf them.

    That is :data:`BEYOND` of the lines' range, or the bounds' own half width in the middle, so that lines that lie within each
    other's bounds are seen to. Where the axis is logarithmic, or a share's, everything is shown.
    """
    levels = [y for level in panel.levels for y in (level.value, level.low, level.high) if y is not None]
    lines = [*(series.y for series in panel.series), np.array(levels)]
    low, high = _ends(lines, panel.log)
    least, most = _ends([*lines, *_bounds(panel)], panel.log)
    if panel.log or panel.percent or low == high:
        return least, most
    halves = [(s.high - s.low) / 2.0 for s in panel.series if s.low is not None and s.high is not None]
    halves = [half[np.isfinite(half)] for half in halves]
    middle = float(np.median(np.concatenate(halves))) if sum(map(len, halves)) else 0.0
    room = max(BEYOND * (high - low), middle)
    return max(least, low - room), min(most, high + room)


WIDE = 100.0
"""Ratio of two lines' medians from which on the smaller one lies on an axis that begins at zero."""


def on_logs_if_wide(panel: Panel) -> Panel:
    """The panel, with a logarithmic axis where its lines are so far apart that a linear one shows the largest only."""
    positive = [series.y[series.y > 0.0] for series in panel.series]
    medians = [float(np.median(y)) for y in positive if len(y)]
    wide = bool(medians) and max(medians) > WIDE * min(medians)
    return replace(panel, log=True, from_zero=False) if wide and not panel.percent else panel


def is_cut(panel: Panel) -> bool:
    """Whether some bound of a line is beyond what the panel shows."""
    bounds = _bounds(panel)
    if not bounds or panel.log or panel.percent:
        return False
    (least, most), (low, high) = _ends(bounds), panel.span or extent(panel)
    return least < (min(low, 0.0) if panel.from_zero and low >= 0.0 else low) or most > high


def _bounds(panel: Panel) -> list[Array]:
    """Those there are: of a single pair of episodes they are NaN."""
    bounds = [y for series in panel.series for y in (series.low, series.high) if y is not None]
    return [y for y in bounds if not np.isnan(y).all()]


def _ends(values: list[Array], positive: bool = False) -> tuple[float, float]:
    together = np.concatenate(values)
    if positive and bool((together > 0.0).any()):
        together = together[together > 0.0]
    return float(np.nanmin(together)), float(np.nanmax(together))


def apart(panel: Panel) -> list[Panel]:
    """The panel, or where too many groups are in it several with some of the groups each, and the same levels and span."""
    groups = sorted({series.group for series in panel.series if series.kind in ("line", "part", "final")})
    if len(groups) <= CROWD:
        return [panel]
    count = math.ceil(len(groups) / (CROWD - 1))
    span = panel.span or extent(panel)
    parts = [set(part.tolist()) for part in np.array_split(groups, count)]
    return [
        replace(
            panel,
            title=f"{panel.title} ({number} of {count})",
            series=[series for series in panel.series if series.group in part],
            span=span,
        )
        for number, part in enumerate(parts, 1)
    ]


def to_csv(figure: FigureData) -> str:
    """The numbers of a figure, one line a point; levels have no x."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["panel", "series", "kind", "x", "y", "low", "high"])
    for panel in figure.panels:
        for s in panel.series:
            bounds = [[None] * len(s.x) if b is None else b.tolist() for b in (s.low, s.high)]
            for x, y, low, high in zip(s.x.tolist(), s.y.tolist(), *bounds, strict=True):
                writer.writerow([panel.title, s.label, s.kind, x, y, low, high])
        for level in panel.levels:
            writer.writerow([panel.title, level.label, "level", None, level.value, level.low, level.high])
    return stream.getvalue()
