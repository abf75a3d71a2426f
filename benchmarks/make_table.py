"""Make the tables of results/README.md and the README's picture from the committed runs.

    python benchmarks/make_table.py [--runs FOLDER]

With ``--runs`` it first copies what is evidence (no checkpoints) of every run folder FOLDER/TASK-sN into
``results/TASK/lpds/seedN``. Intervals of a difference are for other seeds and other episodes
(``lpds.stats.crossed_difference``).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lpds.commands.terminal import guarded
from lpds.evidence import copy_evidence
from lpds.files import write_json
from lpds.log import read_json_lines
from lpds.report import write_figures
from lpds.stats import crossed_difference, crossed_mean, wilson

RESULTS = Path(__file__).parents[1] / "results"
DOCS = RESULTS.parent / "docs"
MARKS = ("<!-- table -->", "<!-- end of table -->")
SUCCESS_MARKS = ("<!-- success -->", "<!-- end of success -->")


def take_over(runs: Path) -> None:
    """Take over finished runs."""
    for run in sorted(runs.glob("*-s[0-9]*")):
        if not (run / "summary.json").is_file():
            continue
        task, seed = run.name.rsplit("-s", 1)
        copy_evidence(run, RESULTS / task / "lpds" / f"seed{seed}")


def last_evaluation(run: Path, scale: float, what: str = "return") -> np.ndarray:
    """Returns, or successes, of the last evaluation, in the order of the episodes."""
    rows = [row for row in read_json_lines(run / "eval.jsonl") if row["kind"] == "final" and row["scale"] == scale]
    return np.asarray([row[what] for row in sorted(rows, key=lambda row: row["episode"])], np.float64)


def curve_dip(run: Path, what: str = "return") -> tuple[float, float]:
    """Lowest mean on the learning curve after the warm-up, and the frozen policy's on the same episodes."""
    rows = [row for row in read_json_lines(run / "eval.jsonl") if row["kind"] == "curve"]
    points: dict[tuple[int, float], list[float]] = {}
    for row in rows:
        points.setdefault((row["step"], row["scale"]), []).append(row[what])
    frozen = [np.mean(values) for (_, scale), values in points.items() if scale == 0.0]
    steered = [np.mean(values) for (_, scale), values in points.items() if scale == 1.0]
    return float(min(steered)), float(frozen[0])


def measure(runs: list[Path], what: str) -> dict[str, Any]:
    """Frozen against steered over seeds and episodes."""
    frozen, steered = ([last_evaluation(run, scale, what) for run in runs] for scale in (0.0, 1.0))
    count = len(frozen[0])
    return {
        "frozen": wilson(int(frozen[0].sum()), count) if what == "success" else crossed_mean(np.stack(frozen[:1])),
        "steered_by_seed": [float(values.mean()) for values in steered],
        "difference": crossed_difference(frozen[:1], steered),  # the frozen policy plays the same for every seed
        "lowest_point_and_frozen": min((curve_dip(run, what) for run in runs), key=lambda pair: pair[0] - pair[1]),
    }


def cells(found: dict[str, Any], unit: float = 1.0) -> str:
    """A measurement's four columns."""
    (base, low, high), (gain, least, most) = (np.multiply(found[name], unit) for name in ("frozen", "difference"))
    seeds, (point, there) = np.multiply(found["steered_by_seed"], unit), np.multiply(found["lowest_point_and_frozen"], unit)
    return (
        f"{base:.0f} [{low:.0f}, {high:.0f}] | {seeds.mean():.0f} ({', '.join(f'{value:.0f}' for value in seeds)}) "
        f"| {gain:+.0f} [{least:+.0f}, {most:+.0f}] | {point:.0f} ({there:.0f}) |"
    )


def put(page: str, marks: tuple[str, str], lines: list[str]) -> str:
    """The page with a table between its marks."""
    before, _, rest = page.partition(marks[0])
    return "\n".join([before + marks[0], "", *lines, "", marks[1] + rest.partition(marks[1])[2]])


def main() -> None:
    """Write the tables, their numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path)
    arguments = parser.parse_args()
    if arguments.runs is not None:
        take_over(arguments.runs)
    head = "frozen | steered | paired difference, 95 % | lowest point of a curve (frozen there) |"
    rule = "|---" * 7 + "|"
    returns = [f"| task | seeds | steps | {head}", rule]
    successes = [f"| task | seeds | steps | {head}", rule]
    table = []
    for folder in sorted(RESULTS.glob("*/lpds")):
        if folder.parent.name.startswith("libero"):
            continue  # a section and figures of its own
        runs = sorted(folder.glob("seed*"))
        tells = all(np.isfinite(last_evaluation(run, 0.0, "success")).all() for run in runs)
        steps = max(row["step"] for run in runs for row in read_json_lines(run / "metrics.jsonl"))
        row = {"task": folder.parent.name, "seeds": len(runs), "steps": steps} | measure(runs, "return")
        start = f"| {folder.parent.name} | {len(runs)} | {steps:,} | "
        returns.append(start + cells(row))
        if tells:
            row["success"] = measure(runs, "success")
            successes.append(start + cells(row["success"], 100.0))
        table.append(row)
        write_figures(runs, RESULTS / folder.parent.name / "figures")
    write_json(RESULTS / "table.json", {"format_version": 1, "command": "python benchmarks/make_table.py", "rows": table})
    page = RESULTS / "README.md"
    page.write_text(put(put(page.read_text(), MARKS, returns), SUCCESS_MARKS, successes))
    picture = RESULTS / "hopper" / "figures" / "hopper-learning.png"
    if picture.is_file():
        shutil.copy(picture, DOCS / "hopper.png")
    print("\n".join([*returns, "", *successes]))


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
