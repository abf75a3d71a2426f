"""Drawing. Groups differ by line style and marker as well as by colour, so that a black-and-white print can be read."""

from __future__ import annotations

import io
import math
import re
import textwrap
from typing import Any

import numpy as np

from lpds.errors import LpdsError
from lpds.report.panels import STEPS, FigureData, Panel, Series, extent

INK = "#1b1b1b"
"""Text and axes. In the page it becomes the page's own text colour, so that a dark page is readable too."""
QUIET = "#8a8a8a"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5539c", "#c08a00", "#3f9fd8", "#7a7a7a", "#8c564b")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">")
LONGEST_LABEL = 60
TITLE = 2 * LONGEST_LABEL
"""Letters of the titles beside one another."""
LEGEND = 125
"""Letters of the names beside one another, their marks counted as eight."""
LEVEL_DASHES: tuple[Any, ...] = (
    *((0, (7, 3)), (0, (1, 1.8)), (0, (7, 2, 1, 2)), (0, (2, 3))),
    *((0, (12, 3)), (0, (7, 2, 1, 2, 1, 2))),
)
FEW = 5
"""Samples of a cloud that are not one another's, at most, of which each is drawn so that it is seen."""
APART = 0.012
"""Share of the axis by which the last evaluations of two groups, which fall on one step, are set apart; of one panel a row."""
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.7,
    "svg.fonttype": "path",
}


def matplotlib_figure() -> Any:
    """The ``Figure`` class; the object interface only, so that no global state of a caller's plots is touched.

    Raises:
        LpdsError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise LpdsError("matplotlib is not installed: pip install 'lpds[report]'") from None
    return Figure


def png(data: FigureData) -> bytes:
    """The figure as a PNG on white."""
    return _render(data, "png")


def svg(data: FigureData, prefix: str) -> str:
    """The figure as an ``<svg>`` element to be put into a page; ``prefix`` keeps its ids apart from other figures'."""
    text = _render(data, "svg").decode()
    text = text[text.index("<svg") :]  # neither the XML declaration nor the DTD's address
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<svg ([^>]*?)\bheight="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)\bwidth="[^"]*"', rf'<svg \1role="img" aria-label="{data.title}"', text, count=1)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = text.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    return text.replace(INK, "currentColor")


def _render(data: FigureData, form: str) -> bytes:
    figure_class = matplotlib_figure()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    columns = 1 if len(data.panels) == 1 else data.columns
    rows = math.ceil(len(data.panels) / columns)
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": data.name}):
        figure = figure_class(figsize=(8.6, 3.7 if columns == 1 else 5.1 / columns * rows + 0.5), layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(h_pad=0.08, w_pad=0.06)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        entries: dict[str, Any] = {}
        for ax, panel in zip(axes, data.panels, strict=False):
            _draw(ax, panel, columns)
            entries |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        named = {_label(series.label) for panel in data.panels for series in panel.series}
        entries = {name: entries[name] for name in sorted(entries, key=lambda name: name not in named)}  # groups first
        for ax in axes[len(data.panels) :]:
            ax.set_axis_off()
        per_row = _legend_columns(list(entries))
        # the panels keep their height, however many names stand above them
        figure.set_figheight(figure.get_figheight() + 0.19 * max(0, math.ceil(len(entries) / per_row) - 2))
        figure.legend(list(entries.values()), list(entries), loc="outside upper center", ncols=per_row, frameon=False)
        stream = io.BytesIO()
        if form == "svg":  # a date would make two equal reports differ
            figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        else:
            figure.savefig(stream, format="png", dpi=150, facecolor="white")
    return stream.getvalue()


def _legend_columns(names: list[str]) -> int:
    """How many columns of names, filled one after the other, the figure is wide enough for; at most four."""
    for count in (4, 3, 2):
        rows = math.ceil(len(names) / count)
        columns = [names[at : at + rows] for at in range(0, len(names), rows)]
        if count <= len(names) and sum(max(map(len, column)) + 8 for column in columns) <= LEGEND:
            return count
    return 1


def _label(text: str) -> str:
    """A name as it is drawn: no mathematics in it, and no longer than a legend can hold; the CSV has the whole."""
    text = text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL // 2]}…{text[-LONGEST_LABEL // 2 :]}"
    return text.replace("$", r"\$")


def _draw(ax: Any, panel: Panel, columns: int = 1) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    lined = {series.group for series in panel.series if series.kind in ("line", "part")}
    x = np.concatenate([series.x for series in panel.series])
    left, right = (float(x.min()), float(x.max())) if panel.xspan is None else panel.xspan
    if panel.xlabel == STEPS:
        left = 0.0
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _thousands(value)))
    beside, ends = APART * columns * (right - left), list[float]()
    for series in panel.series:
        if series.kind == "final":
            at = float(series.x[0])
            rank = sum(abs(at - other) < beside for other in ends)
            ends.append(at)
            right = max(right, at + beside * rank)
            _final(ax, series, beside * rank, named=series.group in lined)
        else:
            {"line": _line, "part": _line, "dots": _dots, "cloud": _cloud}[series.kind](ax, series, panel.log)
    for index, level in enumerate(panel.levels):
        dash = LEVEL_DASHES[index % len(LEVEL_DASHES)]
        ax.axhline(level.value, color=INK, lw=1.1, ls=dash, label=_label(level.label), zorder=2.5)
        if level.low is not None and level.high is not None:
            ax.axhspan(level.low, level.high, color=QUIET, alpha=0.22, lw=0, zorder=1)
            for edge in (level.low, level.high):  # in grey the bands of curves look the same but for these
                ax.axhline(edge, color=INK, lw=0.6, ls=dash, zorder=2.2)
    room = 0.02 * (right - left) or 1.0
    ax.set_xlim(left - room, right + room)
    ax.xaxis.set_major_locator(
        MaxNLocator(6 if columns < 4 else 3, integer=panel.series[0].kind != "cloud", steps=[1, 2, 2.5, 5, 10])
    )
    if panel.mark is not None:
        ax.axvline(panel.mark, color=INK, lw=1.0, ls=(0, (1, 2.5)), label="warm-up ends", zorder=1.5)
    _scale_y(ax, panel)
    ax.set_title(textwrap.fill(_label(panel.title), TITLE // columns), loc="left")
    ax.set_xlabel(_label(panel.xlabel))
    ax.set_ylabel(_label(panel.ylabel))
    ax.grid(visible=True, color=QUIET, alpha=0.25, lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _scale_y(ax: Any, panel: Panel) -> None:
    """Choose limits and ticks that show every line and level whole; bounds far beyond them are cut."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = panel.span or extent(panel)
    if panel.log and high > 0.0:
        ax.set_yscale("log")
        decades = math.log10(high / low) if low > 0.0 else 0.0
        if panel.span is not None and low > 0.0:
            ax.set_ylim(low / 1.2, high * 1.2)
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.0 else (1.0,)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1.0 else f"{value:.6g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        return
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if panel.percent:
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    elif panel.from_zero and low >= 0.0:
        ax.set_ylim(0.0, 1.08 * high or 1.0)
    else:
        room = 0.06 * (high - low) or max(0.1, 0.1 * abs(high))
        ax.set_ylim(low - room, high + room)


def _line(ax: Any, series: Series, log: bool) -> None:
    colour, dash, marker = _look(series.group)
    y = np.where(series.y > 0.0, series.y, np.nan) if log else series.y
    every, whole = max(1, math.ceil(len(series.x) / 12)), series.kind == "line"
    ax.plot(
        series.x,
        y,
        color=colour,
        ls=dash,
        lw=1.7 if whole else 0.8,
        marker=marker,
        ms=4.2,
        mfc=colour if whole else "none",
        markevery=every,
        label=_label(series.label),
        zorder=4,
    )
    if series.low is not None and series.high is not None:
        low, high = (np.where(y > 0.0, y, np.nan) if log else y for y in (series.low, series.high))
        ax.fill_between(series.x, low, high, color=colour, alpha=0.18 if whole else 0.08, lw=0, zorder=2)
        for edge in (low, high):  # in grey one band is like the other but for these
            ax.plot(series.x, edge, color=colour, ls=dash, lw=0.5, alpha=0.8, zorder=2.1)


def _dots(ax: Any, series: Series, log: bool) -> None:
    colour, _, marker = _look(series.group)
    ax.plot(series.x, series.y, color=colour, ls="", marker=marker, ms=3, mew=0, alpha=0.32, zorder=1.8)
    ax.plot([], [], color=INK, ls="", marker="o", ms=3, mew=0, alpha=0.5, label="training episodes")  # of all groups


def _cloud(ax: Any, series: Series, log: bool) -> None:
    colour, _, marker = _look(series.group)
    frozen = series.label == "frozen policy"
    few = len(np.unique(np.round(np.stack([series.x, series.y], 1), 6), axis=0)) <= FEW  # points that coincide look like one
    ax.plot(
        series.x,
        series.y,
        color=INK if frozen else colour,
        ls="",
        marker="o" if frozen else marker,
        mfc="none" if frozen else colour,
        ms=6.0 if few else 4.0 if frozen else 3.0,
        mew=0.6 if frozen else 0.0,
        alpha=1.0 if few and not frozen else 0.55,
        label=_label(series.label),
        zorder=2 if frozen else 3,
    )


def _final(ax: Any, series: Series, beside: float, *, named: bool) -> None:
    """A large edged point with the group's own marker; its name is told where the group has no line to tell it."""
    if series.low is None or series.high is None:
        return
    colour, _, marker = _look(series.group)
    ax.errorbar(
        series.x + beside,
        series.y,
        yerr=[series.y - series.low, series.high - series.y],
        color=colour,
        marker=marker,
        ms=9,
        mec=INK,
        mew=1.1,
        ls="",
        capsize=4,
        elinewidth=1.4,
        label="_" if named else _label(series.label),
        zorder=5,
    )
    if named:  # one entry for all groups, of no group's colour
        which = series.label.rpartition(": last evaluation")[2]
        ax.plot([], [], color=INK, marker="o", ms=9, mfc="none", mew=1.1, ls="", label=f"last evaluation{which}")


def _look(group: int) -> tuple[str, Any, str]:
    return COLOURS[group % len(COLOURS)], DASHES[group % len(DASHES)], MARKERS[group % len(MARKERS)]


def _thousands(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
