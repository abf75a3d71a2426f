"""Learning curves side by side, as far as the shortest goes.

    python benchmarks/curves.py results/hopper/lpds results/hopper/lpds+nofits > results/hopper/no-fits.md

Each folder holds the runs seed0, seed1 ... of one method. A cell is the mean over seeds of the mean return of an evaluation
(20 episodes each, the same for all), with the seeds' own in brackets.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from lpds.commands.terminal import guarded
from lpds.log import read_json_lines


def curve(run: Path) -> dict[int, float]:
    """Mean return by step of evaluation, rounded to whole evaluation intervals; step 0 is the frozen policy."""
    every = json.loads((run / "config.json").read_text())["run"]["eval_every"]
    points: dict[int, list[float]] = {}
    for row in read_json_lines(run / "eval.jsonl"):
        if row["kind"] == "curve":
            points.setdefault(round(row["step"] / every) * every // 1000, []).append(row["return"])
    return {step: float(np.mean(values)) for step, values in points.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    arguments = parser.parse_args()
    names = [folder.name for folder in arguments.folders]
    if len(set(names)) < len(names):  # of several tasks
        names = [f"{folder.parent.name}/{folder.name}" for folder in arguments.folders]
    curves = {
        name: [curve(path.parent) for path in sorted(folder.glob("seed*/eval.jsonl"))]
        for name, folder in zip(names, arguments.folders, strict=True)
    }
    steps = sorted(set.intersection(*(set(points) for lines in curves.values() for points in lines)))
    print("`python benchmarks/curves.py " + " ".join(str(folder) for folder in arguments.folders) + "`\n")
    print("| steps | " + " | ".join(curves) + " |\n|" + "---|" * (len(curves) + 1))
    for step in steps:
        cells = []
        for lines in curves.values():
            values = [points[step] for points in lines]
            cells.append(f"{np.mean(values):.0f} ({', '.join(f'{value:.0f}' for value in values)})")
        print(f"| {step}k | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
