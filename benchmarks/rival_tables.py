"""Make the tables of LP-DS and its rivals: two in results/README.md, the comparisons in results/gym.md, of the committed runs.

    python benchmarks/rival_tables.py

One table has every method at its released updates a decision, the other the off-policy ones at LP-DS's. A method's return is
over its seeds and the episodes of their last evaluation; beside it, its difference from LP-DS's (``lpds compare --reference
lpds``).
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from lpds.commands.terminal import guarded
from lpds.files import write_json
from lpds.report.compare import CompareReport, Row, compare

RESULTS = Path(__file__).parents[1] / "results"
TASKS = ("hopper", "walker2d", "halfcheetah")
FLOOR = {"golden-ticket": "none", "base+chain": "none"}
SAME = {"lpds": "1", "lpds+quiet-100k": "1", "lpds-a": "1", "best-of-n": "1"}
RELEASED = {
    "dsrl-na": "2.5",
    "dsrl-na+alpha0.3": "2.5",
    "dsrl-sac": "2.5",
    "dppo": "PPO",
    "idql": "0.128, batch 1,000",
    "dql": "0.016, batch 1,000",
    "idql+frozen-warmup": "0.128, batch 1,000",
    "dql+frozen-warmup": "0.016, batch 1,000",
    "dql+data-slow": "0.016, batch 1,000",
}
EQUAL = {
    "dsrl-na+equal": "1",
    "dsrl-na+equal-distill": "1",
    "dsrl-na+equal-alpha0.3": "1",
    "dsrl-na+fits": "1",
    "dsrl-sac+equal": "1",
    "idql+equal": "1",
    "dql+equal": "1",
}
ORDER = {"lpds": "1"} | FLOOR | SAME  # the frozen row is the first runs'
TABLES = {"released": ORDER | RELEASED, "equal": ORDER | EQUAL}
"""Methods by the names of their folders, and their updates a decision."""
WARMED_BY_FROZEN = (("idql", "frozen-warmup"), ("dql", "frozen-warmup"), ("idql", "equal"))
SAID = {
    "frozen": "frozen policy",
    "lpds": "LP-DS, all of its noise",
    "lpds+quiet-100k": "LP-DS, `--preset quiet`",
    "golden-ticket": "golden ticket",
    "base+chain": "the whole chain, untrained",
    "lpds-a": "LP-DS-A",
    "best-of-n": "best of 8",
    **{f"dsrl-na{end}": "DSRL-NA" for end in ("", "+equal")},
    **{f"dsrl-na{end}alpha0.3": "DSRL-NA, temperature 0.3" for end in ("+", "+equal-")},
    "dsrl-na+equal-distill": "DSRL-NA, distilled as often as LP-DS",
    "dsrl-na+fits": "DSRL-NA, temperature 0.3, LP-DS's start",
    **{f"dsrl-sac{end}": "DSRL-SAC" for end in ("", "+equal")},
    **{name: name.upper() for name in ("dppo", "idql", "dql")},
    "dql+equal": "DQL",
    "dql+data-slow": "DQL, clones the data, at 1e-5, warmed up by the frozen policy",
    **{f"{name}+{end}": f"{name.upper()}, warmed up by the frozen policy" for name, end in WARMED_BY_FROZEN},
}
"""What a row is called."""
HIGHEST = "The highest in the mean, and those whose 95 % difference from it includes zero (each pair by itself, uncorrected):"
BLOCKS = ("+noiseless", "+raw", "+equal-raw", "+equal-alpha0.3-raw", "+fits-raw")
"""Further variants that the comparisons have and the tables have not."""


def runs_of(task: str, methods: list[str]) -> list[Path]:
    """Finished runs of the methods, in their order, as seen from the repository's root."""
    found = [run for method in methods for run in sorted((RESULTS / task / method).glob("seed?"))]
    return [run.relative_to(RESULTS.parent) for run in found]


def cell(row: Row | None) -> str:
    """Return with its interval, seeds, and the difference from LP-DS."""
    if row is None:
        return "- | - |"
    mean, low, high = row.mean
    gain, least, most = row.difference
    beside = "" if math.isnan(gain) else f"{gain:+.0f} [{least:+.0f}, {most:+.0f}]"
    return f"{mean:.0f} [{low:.0f}, {high:.0f}], {row.seeds} | {beside} |"


def table(methods: dict[str, str], reports: dict[str, CompareReport]) -> list[str]:
    """One table, as lines of Markdown."""
    heads = " | ".join(f"{task}: return, seeds | minus LP-DS's" for task in reports)
    lines = [f"| | folder | updates a decision | {heads} |", "|---" * (3 + 2 * len(reports)) + "|"]
    for name, updates in ({"frozen": ""} | methods).items():
        rows = [next((row for row in report.rows if row.label == name), None) for task, report in reports.items()]
        if not any(rows):
            continue
        folder = "" if name == "frozen" else f"`{name}`"
        lines.append(f"| {SAID.get(name, name)} | {folder} | {updates} | " + " ".join(map(cell, rows)))
    return lines


def put(page: str, name: str, lines: list[str]) -> str:
    """The page with something else between its marks."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = page.partition(start)
    if not found or end not in rest:
        raise SystemExit(f"a page of results/ has no marks {start} and {end}")
    return "\n".join([before + start, "", *lines, "", end + rest.partition(end)[2]])


def main() -> None:
    """Write tables, comparisons and their numbers."""
    os.chdir(RESULTS.parent)  # the notes name runs, and a machine's paths are nobody's affair
    path, notes = RESULTS / "README.md", RESULTS / "gym.md"
    page, under, kept = path.read_text(), notes.read_text(), {}
    for name, methods in TABLES.items():
        reports = {task: compare(runs_of(task, list(methods)), "lpds") for task in TASKS}
        kept[name] = {task: report.to_json() for task, report in reports.items()}
        stands = [f"- {line}." for report in reports.values() for line in report.standings]
        page = put(page, f"rivals, {name}", [*table(methods, reports), "", HIGHEST, "", *stands])
    for task in TASKS:
        names = [
            "lpds",
            "lpds+quiet-100k",
            *(name for name in ("lpds+150k",) if (RESULTS / task / name).is_dir()),
            *(f"lpds{end}" for end in BLOCKS),
            *FLOOR,
            "lpds-a",
            "best-of-n",
            *RELEASED,
            *EQUAL,
        ]
        names += [f"{method}{end}" for method in ("dsrl-na", "dsrl-sac") for end in BLOCKS] + ["dppo+frozen-warmup"]
        under = put(under, f"comparison, {task}", ["```", str(compare(runs_of(task, names))), "```"])
    write_json(RESULTS / "rivals.json", {"format_version": 1, "command": "python benchmarks/rival_tables.py", "tables": kept})
    path.write_text(page)
    notes.write_text(under)


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
