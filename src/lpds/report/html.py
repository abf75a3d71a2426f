"""The page: one file, no network, no script; it prints in black and white and follows a light or a dark screen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from lpds.digits import unsigned_zero
from lpds.errors import LpdsError, one_line
from lpds.files import write_atomically
from lpds.report.acting import damage
from lpds.report.compare import Row, compare
from lpds.report.figures import matplotlib_figure, png, svg
from lpds.report.glossary import GLOSSARY
from lpds.report.lines import hint
from lpds.report.paired import Comparison, column_interval
from lpds.report.panels import FigureData, to_csv
from lpds.report.read import Group, RunData, group_runs, read_runs
from lpds.report.series import figures_of
from lpds.report.sides import alike, frozen_of, side_of
from lpds.report.standing import against
from lpds.report.worlds import by_task
from lpds.stats import Interval, mean_over_seeds, share_over_seeds

CHAIN = (
    "steered acts by the decoder's whole chain, frozen by its sampler, which may make much of the difference by itself "
    "(--method base --sampler chain)"
)
WORSE = "WARNING: the steered policy is worse than the frozen one"
ONE_RUN = (
    "Rows of one run, and the frozen policy's: 95 % intervals for other episodes, by bootstrap (success: Wilson). Other tables "
    "here have Student's, which may differ by some percent."
)
SEEDS = (
    "Rows of all seeds: 95 % intervals for other seeds and other episodes, which the seeds share (Student's, degrees of "
    "freedom of Satterthwaite); the frozen policy's interval is over episodes where all seeds share them."
)
COMPARED = (
    "Reference: {}. Area: mean height of the learning curve. Intervals of mean "
    "and difference are for other seeds and other episodes, which all seeds play (Student's, degrees of freedom of "
    "Satterthwaite); those of the IQM resample seeds and shared episodes and are too narrow for few seeds{}."
)
BETTER = "; P(better) is the probability that a run of the method beats one of the reference, over seeds"
COLUMNS = {"return": "return", "success": "success", "success_at_end": "success at the end", "length": "length (steps)"}
CSS = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1.2rem;
  background: Canvas; color: CanvasText; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #8888; }
h3 { margin: 1.6rem 0 .3rem; } p { margin: .4rem 0; }
table { border-collapse: collapse; margin: .7rem 0; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #8885; }
thead th { border-bottom: 2px solid #888; } td.n, th.n { text-align: right; white-space: nowrap; }
figure { margin: 1.2rem 0 2rem; } figure svg { width: 100%; height: auto; display: block; }
figcaption, .quiet { font-size: .88rem; opacity: .8; }
sup { line-height: 0; }
.wide { overflow-x: auto; } .tight table { font-size: .78rem; } .tight td, .tight th { padding-right: .5rem; }
.verdict { font-size: 1.05rem; font-weight: 600; }
.warning { border: 3px solid #c00020; background: #c00020; color: #fff; font-weight: 700; padding: .6rem .9rem;
  margin: .8rem 0; }
pre { font-size: .82rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .6rem; }
details { margin: .5rem 0; } summary { cursor: pointer; }
dt { font-family: ui-monospace, monospace; font-size: .88rem; font-weight: 600; }
dd { margin: 0 0 .4rem 1.2rem; font-size: .92rem; }
@media screen { figure { overflow-x: auto; } figure svg { min-width: 38rem; } }
@media print { body { max-width: none; margin: 0; padding: 0; font-size: 11pt; } figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .wide { overflow: visible; } table { font-size: .74rem; } .tight table { font-size: .62rem; }
  th, td { padding-right: .4rem; } td.n, th.n { white-space: normal; }
  .card::details-content { content-visibility: visible; display: block; height: auto; } }
"""


def write_report(runs: Sequence[Path], out: Path, decoder: Any = None) -> Path:
    """Write one self-contained HTML page about one or more run folders, finished or not.

    Args:
        runs: run folders, or folders of committed results.
        out: the file; in a folder that exists, ``report.html``.
        decoder: of all runs, where it is at hand; else each is opened by its reference, which a wrapped one has not.

    Returns:
        The file.

    Raises:
        LpdsError: no run there, or matplotlib is not installed.
    """
    matplotlib_figure()
    out = Path(out)
    path = out / "report.html" if out.is_dir() else out
    content = _page([replace(run, decoder=decoder) for run in read_runs(runs)]).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise LpdsError(f"{path} cannot be written: {one_line(error)}") from None
    return path


def write_figures(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Write every figure as ``TASK-FIGURE.png`` and its numbers as ``TASK-FIGURE.csv``.

    Args:
        runs: run folders.
        folder: where to; made if it is not there.

    Returns:
        The files, in the order of the report.

    Raises:
        LpdsError: no run there, or matplotlib is not installed.
    """
    matplotlib_figure()
    written = []
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LpdsError(f"{folder} cannot be written: {one_line(error)}") from None
    for task, groups in _groups(by_task(read_runs(runs))).items():
        for figure in (figure for figure in figures_of(groups) if figure.panels):
            name = f"{task.replace(':', '-').replace('/', '-')}-{figure.name}"
            for suffix, content in ((".png", png(figure)), (".csv", to_csv(figure).encode())):
                path = folder / (name + suffix)
                try:
                    write_atomically(path, content)
                except OSError as error:
                    raise LpdsError(f"{path} cannot be written: {one_line(error)}") from None
                written.append(path)
    return written


def number(value: float, like: Iterable[float] = ()) -> str:
    """A figure with four significant digits, and no more decimals than the largest of its companions deserves."""
    if not math.isfinite(value):
        return "-"
    largest = max((abs(v) for v in (value, *like) if math.isfinite(v)), default=0.0)
    if largest and (largest < 1e-4 or largest >= 1e9):
        return f"{value:.3e}"
    digits = 3 - math.floor(math.log10(largest)) if largest else 0
    return f"{value:,.{min(max(digits, 0), 7)}f}"


def interval(what: str, found: Interval, sign: bool = False) -> str:
    """``mean [low, high]``; shares in percent."""
    if not math.isfinite(found[0]):
        return "-"
    if not all(map(math.isfinite, found)):  # a single value has no interval
        return f"{100 * found[0]:.0f} %" if what.startswith("success") else number(found[0])
    if what.startswith("success"):
        mean, low, high = (unsigned_zero(f"{100 * v:+.0f}") if sign else f"{100 * v:.0f}" for v in found)
        return f"{mean} {'points' if sign else '%'} [{low}, {high}]"
    mean, low, high = (("+" if sign and v > 0 else "") + number(v, found) for v in found)
    return f"{mean} [{low}, {high}]"


def _groups(tasks: Mapping[str, Sequence[RunData]]) -> dict[str, list[Group]]:
    return {task: [_each_seed_once(g) for g in group_runs(members)] for task, members in tasks.items()}


def _each_seed_once(group: Group) -> Group:
    """A run and its copy are one draw, not two that agree; what is finished stands for the seed."""
    kept: dict[Any, RunData] = {}
    for run in sorted(group.runs, key=lambda run: (c := run.comparison()) is None or not c.final):  # stable
        kept.setdefault(run.seed, run)
    return replace(group, runs=tuple(run for run in group.runs if kept[run.seed] is run))


def _page(runs: Sequence[RunData]) -> str:
    apart = by_task(runs)
    own = {run.folder: run for members in apart.values() for run in members}  # one's silence may be another's failure
    runs, tasks = [own[run.folder] for run in runs], _groups(apart)
    title = f"Steering report: {', '.join(tasks)}"
    names = _names(runs, tasks)
    parts = [f"<h1>{escape(title)}</h1>", _lede(runs), *(_warning(run, names[run.folder]) for run in runs)]
    if len(runs) > 1:
        parts += ["<h2>Overview</h2>", _overview(tasks)]
    if len(runs) > 1:
        parts += _comparison([run.folder for run in runs])
    parts.append("<h2>Frozen against steered</h2>")
    parts += [_card(run, names[run.folder], wide_open=len(runs) <= 3) for run in runs]
    for number_, (task, groups) in enumerate(tasks.items()):
        figures = figures_of(groups)
        parts.append(f"<h2>{escape(task)}: what happened while learning</h2>")
        if not figures:
            parts.append("<p>Nothing to draw yet.</p>")
        parts += [_figure(figure, f"t{number_}-{figure.name}") for figure in figures]
    parts += ["<h2>What the metrics mean</h2>", _glossary(), "<h2>Settings and passports</h2>"]
    parts += [_details(run, names[run.folder]) for run in runs]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join(part for part in parts if part)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{CSS}</style></head>\n<body>\n{body}\n</body></html>\n'


def _lede(runs: Sequence[RunData]) -> str:
    less = any(run.evaluated_noise < 1.0 for run in runs)
    noise = "the same noise, of which the steered one keeps a part where eval_noise_scale says so" if less else "the same noise"
    count = "One run" if len(runs) == 1 else f"{len(runs)} runs"
    return (
        f'<p class="quiet">{count}. Frozen is the policy as it was; steered is what the run made of it. '
        f"Both play the same episodes with {noise}, so differences are paired; brackets are 95 % "
        "intervals; steps are primitive environment steps, warm-up included.</p>"
    )


def _names(runs: Sequence[RunData], tasks: Mapping[str, Sequence[Group]]) -> dict[Path, str]:
    """What every run is called, by its folder: as in the tables, which tell apart environments and variants of one name."""
    named = {run.folder: f"{task} · {group.label}" for task, groups in tasks.items() for group in groups for run in group.runs}
    seeds = {run.folder: "?" if run.seed is None else run.seed for run in runs}
    return {run.folder: f"{named.get(run.folder, f'{run.task} · {run.method}')} · seed {seeds[run.folder]}" for run in runs}


def _warning(run: RunData, name: str) -> str:
    comparison = run.comparison()
    if comparison is None or not comparison.worse:
        return ""
    when = "" if comparison.final else f" at step {comparison.step:,}, on the learning curve of a run that is not finished"
    said = interval("return", comparison.difference(), sign=True)
    return (
        f'<p class="warning" role="alert">{WORSE}{when}: {escape(name)}, paired difference of the return {said}. '
        "Do not use it.</p>"
    )


def _comparison(folders: Sequence[Path]) -> list[str]:
    """The table of ``lpds compare``; nothing while no run is finished."""
    try:
        report = compare(folders)
    except LpdsError:
        return []
    better = any(math.isfinite(row.improvement[0]) for row in report.rows)
    heads = ["task", "method", "seeds", "mean return", "IQM", "area under curve", "difference", "P(better)", ""]
    rows, shares = [], []
    for row in report.rows:
        word = row.verdict + (hint(row) if row.verdict == "undecided" else "")
        named = [row.task, row.label, str(row.seeds) if row.steps else "-"]  # the frozen policy has no seeds of its own
        rows.append([*named, *(interval("return", found, sign=signed) for found, signed in _shown(row)), word])
        if math.isfinite(row.success[0]):
            told = interval("success", row.success), interval("success", row.success_difference, sign=True)
            shares.append([*named, *told])
    if not better:  # a column of nothing
        del heads[7]
        for line in rows:
            del line[7]
    said = "; ".join(f"on {task}, {label}" for task, label in report.references.items())
    lines = [COMPARED.format(said, BETTER if better else ""), *report.notes]
    return [
        "<h2>Comparison</h2>",
        *(f'<p class="verdict">{escape(line)}.</p>' for line in report.standings),
        f'<div class="wide tight">{_table(heads, rows, numbers=2, words=1)}</div>',
        f'<div class="wide tight">{_table([*heads[:3], "success", "difference"], shares, numbers=2)}</div>' if shares else "",
        *(f'<p class="quiet">{escape(line)}</p>' for line in lines),
    ]


def _shown(row: Row) -> list[tuple[Interval, bool]]:
    figures = (row.mean, row.iqm, row.area, row.difference, row.improvement)
    return [(found, found is row.difference) for found in figures]


def _overview(tasks: Mapping[str, Sequence[Group]]) -> str:
    comparisons = [run.comparison() for groups in tasks.values() for group in groups for run in group.runs]
    parts = []
    for what in ("return", "success"):
        if what == "return" or any(c is not None and c.has(what) for c in comparisons):
            rows = [row for task, groups in tasks.items() for group in groups for row in _overview_rows(task, group, what)]
            heads = ["task", "method", "seed", "steps", f"{what}, frozen", f"{what}, steered", "paired difference"]
            parts.append(f'<div class="wide">{_table(heads, rows, numbers=3)}</div>')
    parts.append(f'<p class="quiet">{ONE_RUN}</p>')
    if any(len(group.runs) > 1 for groups in tasks.values() for group in groups):
        parts.append(f'<p class="quiet">{SEEDS}</p>')
    return "\n".join(parts)


def _overview_rows(task: str, group: Group, what: str) -> Iterable[list[str]]:
    done = []
    for run in group.runs:
        comparison = run.comparison()
        final = comparison is not None and comparison.final
        facts = [task, group.label, str(run.seed), f"{run.steps:,}" + ("" if final else " so far")]
        yield facts + _cells(comparison, what)
        if comparison is not None and final and comparison.has(what):
            done.append(run)
    if len(done) > 1:
        with suppress(LpdsError):  # of seeds that share no episode there is nothing to say
            yield [task, group.label, f"all {len(done)}", "", *_pooled(replace(group, runs=tuple(done)), what)]


def _cells(comparison: Comparison | None, what: str) -> list[str]:
    if comparison is None or not comparison.has(what):
        return ["-"] * 3
    sides = [interval(what, column_interval(what, side[what])) for side in (comparison.frozen, comparison.steered)]
    return [*sides, interval(what, comparison.difference(what), sign=True)]


def _pooled(group: Group, what: str) -> list[str]:
    """Frozen, steered and their difference over several seeds, as a comparison has them."""
    side = side_of(group)
    before = frozen_of(side)
    found, frozen = against(side, before), before.columns[what]
    over = share_over_seeds if what == "success" else mean_over_seeds
    # seeds that share one frozen policy and its episodes have one sample of it, not several that happen to agree
    start = column_interval(what, frozen[0]) if alike([frozen]) else over(list(frozen))
    difference = found.success if what == "success" else found.difference
    cells = [interval(what, start), interval(what, over(list(side.columns[what])))]
    return [*cells, interval(what, difference, sign=True)]


def _card(run: RunData, name: str, wide_open: bool) -> str:
    comparison = run.comparison()
    wall = max((row.get("wall_s") or 0.0 for row in run.metrics), default=0.0)
    facts = f"{run.steps:,} steps" + (f" of {run.budget:,}" if run.budget and run.steps < run.budget else "")
    if wall:
        facts += f" in {wall / 60:.1f} min" if wall >= 60 else f" in {wall:.0f} s"
    parts = [f"<h3>{escape(name)}</h3>" if wide_open else ""]
    parts.append(f'<p class="verdict">{escape(run.verdict())}</p>')
    if comparison is not None:
        rows = [[label, *_cells(comparison, w)] for w, label in COLUMNS.items() if comparison.has(w)]
        parts.append(
            f'<div class="wide">{_table(["per episode", "frozen", "steered", "paired difference"], rows, numbers=1)}</div>'
        )
    env, decoder = run.config.get("env_name"), run.config.get("decoder", {}).get("name")
    place = run.folder
    # a page is handed on: of a path from the root, TASK/METHOD/seedN of a grid will do
    folder = f".../{'/'.join(place.parts[-3:])}" if place.is_absolute() else str(place)
    kept = run.summary.get("kept_step")
    best = "" if kept is None else f" Steered is the best point of the learning curve: step {kept:,}."
    facts = f"Run folder {folder}; {facts}; environment {env}; decoder {decoder}.{best}"
    parts.append(f'<p class="quiet">{escape(facts)}</p>')
    notes = [*run.notes, *damage(run), *([CHAIN] if run.acts_by_chain else [])]
    parts += [f'<p class="quiet">Note: {escape(note)}.</p>' for note in notes]
    body = "\n".join(part for part in parts if part)
    return body if wide_open else f'<details class="card"><summary>{escape(name)}</summary>{body}</details>'


def _figure(figure: FigureData, prefix: str) -> str:
    title, missing = f"<h3>{escape(figure.title)}</h3>\n", _prose(figure.missing)
    if not figure.panels:
        return f'{title}<p class="quiet">{missing}</p>'
    caption = f"<figcaption>{' '.join([_prose(figure.caption), missing]).strip()}</figcaption>"
    return f"{title}<figure>{svg(figure, prefix)}{caption}</figure>"


def _prose(text: str) -> str:
    """Escaped text with the critics' superscripts set as such."""
    return re.sub(r"Q\^([AW])", r"Q<sup>\1</sup>", escape(text))


def _glossary() -> str:
    lines = "".join(f"<dt>{key}</dt><dd>{_prose(text)}</dd>" for key, text in GLOSSARY.items())
    return f"<dl>{lines}</dl>"


def _details(run: RunData, name: str) -> str:
    parts = [f"<p>{escape(name)} is made again by</p>\n<pre>{escape(line)}</pre>" for line in [run.command()] if line]
    for title, facts in (("settings", run.config), ("passport", run.passport)):
        rows = [[key, value] for key, value in _flatten(facts)]
        body = f'<div class="wide">{_table(["name", "value"], rows)}</div>' if rows else "<p>Not there.</p>"
        parts.append(f"<details><summary>{escape(name)}: {title}</summary>{body}</details>")
    return "\n".join(parts)


def _flatten(facts: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", "-" if value is None else str(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: int | None = None, words: int = 0) -> str:
    """A table; columns from ``numbers`` on are flush right and never broken, but for the last few, which are of ``words``."""

    def cells(tag: str, values: Sequence[str]) -> str:
        right = [numbers is not None and numbers <= i < len(values) - words for i in range(len(values))]
        return "".join(
            f'<{tag} class="n">{escape(v)}</{tag}>' if r else f"<{tag}>{escape(v)}</{tag}>"
            for v, r in zip(values, right, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', heads)}</tr></thead><tbody>{body}</tbody></table>"
