"""Make the table of results/README.md and the README's picture from the committed runs.

    python benchmarks/make_table.py [--runs FOLDER]

With ``--runs`` it first copies what is evidence (no checkpoints) of every run folder FOLDER/TASK-sN into
``results/TASK/lpds/seedN``. Intervals of a difference are for other seeds and other episodes
(``lpds.stats.crossed_difference``).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

from lpds.files import write_json
from lpds.grid import copy_evidence
from lpds.log import read_json_lines
from lpds.report import write_figures
from lpds.stats import bootstrap_mean, crossed_difference

RESULTS = Path(__file__).parents[1] / "results"
DOCS = RESULTS.parent / "docs"
MARKS = ("<!-- table -->", "<!-- end of table -->")


def take_over(runs: Path) -> None:
    """Take over finished runs."""
    for run in sorted(runs.glob("*-s[0-9]*")):
        if not (run / "summary.json").is_file():
            continue
        task, seed = run.name.rsplit("-s", 1)
        copy_evidence(run, RESULTS / task / "lpds" / f"seed{seed}")


def final_returns(run: Path, scale: float) -> np.ndarray:
    """Returns of the last evaluation, in the order of the episodes."""
    rows = [row for row in read_json_lines(run / "eval.jsonl") if row["kind"] == "final" and row["scale"] == scale]
    return np.asarray([row["return"] for row in sorted(rows, key=lambda row: row["episode"])])


def curve_dip(run: Path) -> tuple[float, float]:
    """Lowest mean on the learning curve after the warm-up, and the frozen policy's on the same episodes."""
    rows = [row for row in read_json_lines(run / "eval.jsonl") if row["kind"] == "curve"]
    points: dict[tuple[int, float], list[float]] = {}
    for row in rows:
        points.setdefault((row["step"], row["scale"]), []).append(row["return"])
    frozen = [np.mean(values) for (_, scale), values in points.items() if scale == 0.0]
    steered = [np.mean(values) for (_, scale), values in points.items() if scale == 1.0]
    return float(min(steered)), float(frozen[0])


def main() -> None:
    """Write the table, its numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path)
    arguments = parser.parse_args()
    if arguments.runs is not None:
        take_over(arguments.runs)
    lines = [
        "| task | seeds | steps | frozen | steered | paired difference, 95 % | lowest point of a curve (frozen there) |",
        "|---|---|---|---|---|---|---|",
    ]
    table = []
    for folder in sorted(RESULTS.glob("*/lpds")):
        runs = sorted(folder.glob("seed*"))
        frozen, steered = ([final_returns(run, scale) for run in runs] for scale in (0.0, 1.0))
        pooled = crossed_difference(frozen[:1], steered)  # the frozen policy plays the same for every seed
        steps = max(row["step"] for run in runs for row in read_json_lines(run / "metrics.jsonl"))
        dips = [curve_dip(run) for run in runs]
        lowest = min(dips, key=lambda pair: pair[0] - pair[1])
        per_seed = [float(values.mean()) for values in steered]
        base = bootstrap_mean(frozen[0])
        table.append(
            {
                "task": folder.parent.name,
                "seeds": len(runs),
                "steps": steps,
                "frozen": base,
                "steered_by_seed": per_seed,
                "difference": pooled,
                "lowest_point_and_frozen": lowest,
            }
        )
        seeds = ", ".join(f"{value:.0f}" for value in per_seed)
        lines.append(
            f"| {folder.parent.name} | {len(runs)} | {steps:,} | {base[0]:.0f} [{base[1]:.0f}, {base[2]:.0f}] "
            f"| {np.mean(per_seed):.0f} ({seeds}) | {pooled[0]:+.0f} [{pooled[1]:+.0f}, {pooled[2]:+.0f}] "
            f"| {lowest[0]:.0f} ({lowest[1]:.0f}) |"
        )
        figures = RESULTS / folder.parent.name / "figures"
        write_figures(runs, figures)
    write_json(RESULTS / "table.json", {"format_version": 1, "command": "python benchmarks/make_table.py", "rows": table})
    page = RESULTS / "README.md"
    before, _, rest = page.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    page.write_text("\n".join([before + MARKS[0], "", *lines, "", MARKS[1] + after]))
    picture = RESULTS / "hopper" / "figures" / "hopper-learning.png"
    if picture.is_file():
        shutil.copy(picture, DOCS / "hopper.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
