"""Learning curves side by side, as far as the shortest goes.

    python benchmarks/curves.py results/hopper/lpds results/hopper/lpds+nofits > results/hopper/no-fits.md
    python benchmarks/curves.py results/hopper/lpds results/hopper/lpds+nofits --metric distill_gap_steered

Each folder holds the runs seed0, seed1 ... of one method. A cell is the mean over seeds of the mean return of an evaluation
(20 episodes each, the same for all), with the seeds' own in brackets; or of a figure of ``metrics.jsonl``, its mean over the
rows since the evaluation before.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from lpds.commands.terminal import guarded
from lpds.errors import LpdsError, unknown_name
from lpds.log import METRIC_KEYS, read_json_lines

PATTERN = "seed*/eval.jsonl"


def curve(run: Path) -> dict[int, float]:
    """Mean return by step of evaluation, rounded to whole evaluation intervals; step 0 is the frozen policy."""
    every = json.loads((run / "config.json").read_text())["run"]["eval_every"]
    points: dict[int, list[float]] = {}
    for row in read_json_lines(run / "eval.jsonl"):
        if row["kind"] == "curve":
            points.setdefault(round(row["step"] / every) * every // 1000, []).append(row["return"])
    return {step: float(np.mean(values)) for step, values in points.items()}


def figure(run: Path, name: str) -> dict[int, float]:
    """Mean of a metric by the evaluation interval that ends at a step; rows without it are left out.

    Raises:
        LpdsError: the metric is none.
    """
    if name not in METRIC_KEYS:
        raise unknown_name("metric", name, METRIC_KEYS)
    every = json.loads((run / "config.json").read_text())["run"]["eval_every"]
    points: dict[int, list[float]] = {}
    for row in read_json_lines(run / "metrics.jsonl"):
        if row.get(name) is not None:
            # a round of decisions ends some steps behind the evaluation it belongs to
            points.setdefault(max(1, -(-(row["step"] - every // 50) // every)) * every // 1000, []).append(row[name])
    return {step: float(np.mean(values)) for step, values in points.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--metric", help="of metrics.jsonl, in place of the returns")
    arguments = parser.parse_args()
    metric = arguments.metric
    names = [folder.name for folder in arguments.folders]
    if len(set(names)) < len(names):  # of several tasks
        names = [f"{folder.parent.name}/{folder.name}" for folder in arguments.folders]
    curves = {
        name: [
            figure(path.parent, metric) if metric else curve(path.parent) for path in sorted(folder.glob("seed*/eval.jsonl"))
        ]
        for name, folder in zip(names, arguments.folders, strict=True)
    }
    if empty := [str(folder) for folder, lines in zip(arguments.folders, curves.values(), strict=True) if not lines]:
        raise LpdsError(f"no runs seed0, seed1 ... in {', '.join(empty)}")
    steps = sorted(set.intersection(*(set(points) for lines in curves.values() for points in lines)))
    form = "{:.3g}" if metric else "{:.0f}"
    words = [*map(str, arguments.folders), *(["--metric", metric] if metric else [])]
    print("`python benchmarks/curves.py " + " ".join(words) + "`\n")
    print("| steps | " + " | ".join(curves) + " |\n|" + "---|" * (len(curves) + 1))
    for step in steps:
        cells = []
        for lines in curves.values():
            values = [points[step] for points in lines]
            cells.append(f"{form.format(np.mean(values))} ({', '.join(map(form.format, values))})")
        print(f"| {step}k | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
