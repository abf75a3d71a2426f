"""What a figure is made of: panels of series and levels, and the same numbers as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field

from lpds.report.paired import Array

STEPS = "primitive environment steps"


@dataclass(frozen=True)
class Series:
    """Points of one group in one panel."""

    label: str
    group: int
    """Chooses line style, marker and colour: the same group looks the same in every panel."""
    x: Array
    y: Array
    low: Array | None = None
    high: Array | None = None
    kind: str = "line"
    """line (with a band if there are bounds), dots (faint), cloud (of samples), or final (one point with an error bar)."""


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


@dataclass(frozen=True)
class FigureData:
    """One figure: what it shows, how to read it, and its panels."""

    name: str
    title: str
    caption: str
    panels: list[Panel]
    missing: str = ""
    """What cannot be drawn, and why; told where nothing else of the figure is, too."""


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
