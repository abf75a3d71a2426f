"""The picture of the four-mode toy: paths at every delta, and directness and coverage against delta."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lpds.envs.four_mode import GOAL_RADIUS, GOALS
from lpds.errors import LpdsError
from lpds.files import write_atomically
from lpds.metrics import mode_coverage
from lpds.reproduce.paths import COVERED, Rollouts

if TYPE_CHECKING:
    from lpds.reproduce.toy import Point

SHOWN = 60
"""Paths drawn in a panel; the shares beside the goals are of all roll-outs."""
TONES = ("#0b3c5d", "#b8481e", "#2e7d4f", "#8a5a9e")
"""One for each goal; what they say is also written beside the goals, so nothing is lost in black and white."""
INK, MUTED = "#1a1a1a", "#8c8c8c"
PAPER_TONE = "#b8481e"
REACH = 1.36
PAPER_MODES = {0.01: (4, 4), 0.05: (2, 4), 0.1: (1, 1)}
"""Lowest and highest number of modes that the paper's words allow."""


def write_figure(out: Path, points: Sequence[Point], rows: Sequence[dict[str, Any]]) -> None:
    """Write ``toy.png`` and ``toy.svg``.

    Args:
        out: folder.
        points: the frozen policy first, then delta upwards.
        rows: their figures, in the same order.

    Raises:
        LpdsError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise LpdsError("figures need matplotlib: pip install 'lpds[report]'") from None
    columns = -(-len(points) // 2)
    # a fixed salt and no date: the same numbers give the same file
    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "lpds", "axes.edgecolor": INK, "svg.fonttype": "none"}):
        # panels of fixed aspect overflow what the layout would keep free for a headline
        engine = ConstrainedLayoutEngine(rect=(0.0, 0.0, 1.0, 0.94))
        figure = Figure(figsize=(2.6 * columns + 3.7, 6.6), dpi=150, layout=engine)
        grid = figure.add_gridspec(2, columns + 1, width_ratios=[1.0] * columns + [1.35])
        for index, point in enumerate(points):
            _paths(figure.add_subplot(grid[index // columns, index % columns]), point)
        top = figure.add_subplot(grid[0, columns])
        _against_delta(top, rows, "path_ratio", "mean path length / straight line")
        bottom = figure.add_subplot(grid[1, columns], sharex=top)
        _against_delta(bottom, rows, "modes_covered", f"modes with at least {COVERED:.0%} of roll-outs")
        top.set_ylim(bottom=1.0)
        _paper(bottom)
        bottom.set_ylim(0.0, 4.4)
        bottom.set_yticks([0, 1, 2, 3, 4])
        bottom.set_xlabel("trust region δ   (● all seeds, × each seed)")
        headline = "Four goals and nothing to choose between them: paths and modes as the trust region δ grows"
        figure.text(0.5, 0.985, headline, ha="center", va="top", fontsize=12, color=INK)
        for suffix in ("png", "svg"):
            content = io.BytesIO()
            figure.savefig(content, format=suffix, metadata={"Date": None} if suffix == "svg" else None)
            write_atomically(out / f"toy.{suffix}", content.getvalue())


def _paths(axes: Any, point: Point) -> None:
    """Paths of the first seed, with the goals and the share of roll-outs that each of them got."""
    from matplotlib.patches import Circle

    one: Rollouts = point.rollouts[0]
    for path, mode in zip(one.paths[:SHOWN], one.modes[:SHOWN], strict=True):
        axes.plot(*path.T, color=TONES[mode] if mode >= 0 else MUTED, linewidth=0.6, alpha=0.55, solid_joinstyle="round")
    for goal, share, tone in zip(GOALS, one.shares, TONES, strict=True):
        counts = share >= COVERED
        style = {"facecolor": tone if counts else "none", "alpha": 0.85} if counts else {"facecolor": "white"}
        axes.add_patch(Circle(tuple(goal), GOAL_RADIUS, edgecolor=INK if counts else MUTED, linewidth=0.9, zorder=3, **style))
        away = goal * (1.0 + GOAL_RADIUS + 0.04)
        axes.annotate(
            f"{share:.0%}",
            away,
            ha="center" if abs(goal[0]) < 0.5 else "left" if goal[0] > 0 else "right",
            va="center" if abs(goal[1]) < 0.5 else "bottom" if goal[1] > 0 else "top",
            color=INK if counts else MUTED,
            fontsize=8,
            rotation=0,
        )
    axes.plot(0.0, 0.0, marker="+", color=INK, markersize=7, markeredgewidth=1.2, zorder=4)
    # the panel is one seed's; how many modes the others kept stands beside it, for they need not agree
    modes, *others = [mode_coverage(each.shares, COVERED) for each in point.rollouts]
    beside = f" (other seeds: {', '.join(map(str, others))})" if others else ""
    axes.set_title(
        f"{_name(point)}\n{modes} mode{'' if modes == 1 else 's'}{beside}\nmean path {np.mean(one.ratios):.2f} × straight",
        fontsize=9,
        color=INK,
    )
    axes.set_xlim(-REACH - 0.14, REACH + 0.14)
    axes.set_ylim(-REACH, REACH)
    axes.set_aspect("equal")
    axes.set_axis_off()


def _name(point: Point) -> str:
    if point.delta:
        return f"δ = {point.delta:g}, seed {point.seeds[0]}"
    return "frozen policy" if len(point.seeds) == 1 and point.label == "frozen" else f"{point.label}, seed {point.seeds[0]}"


def _against_delta(axes: Any, rows: Sequence[dict[str, Any]], key: str, label: str) -> None:
    """A figure against delta on a log axis: the line is over all seeds, the small dots are the seeds."""

    def value(row: dict[str, Any]) -> float:
        held = row[key]
        return float(held[0] if isinstance(held, list) else held)

    steered = [row for row in rows if row["delta"]]
    delta = [row["delta"] for row in steered]
    axes.axhline(value(rows[0]), color=MUTED, linestyle="--", linewidth=1.0)
    axes.annotate("frozen", (1.0, value(rows[0])), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=MUTED)
    axes.plot(delta, [value(row) for row in steered], color=INK, linewidth=1.4, marker="o", markersize=4.5, zorder=3)
    for row in steered:
        seeds = [value(seed) for seed in row["seeds"]]
        axes.plot([row["delta"]] * len(seeds), seeds, color=INK, linestyle="none", marker="x", markersize=4, alpha=0.6)
    axes.set_xscale("log")
    axes.set_xticks(delta, [f"{one:g}" for one in delta])
    axes.set_xticks([], minor=True)
    axes.set_title(label, fontsize=9, color=INK, loc="left")
    axes.grid(visible=True, axis="y", linewidth=0.4, alpha=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _paper(axes: Any) -> None:
    """What the paper says of its own toy, beside what was measured in this one; "several" is drawn as two to four."""
    for delta, (low, high) in PAPER_MODES.items():
        axes.plot([delta] * 2, [low, high], color=PAPER_TONE, linewidth=1.2, marker="D", markersize=5, markerfacecolor="white")
    delta, (low, _) = max(PAPER_MODES.items())
    axes.annotate("paper's toy", (delta, low), (-8, 0), textcoords="offset points", ha="right", va="center", color=PAPER_TONE)
