"""Two methods on a second evaluation seed, and on both seeds together: does a difference of the last evaluation hold?

    python benchmarks/second_evaluation.py results/adroit-pen/{lpds,lpds+delta0.66} --out results/second-evaluation

Folders come in pairs, each with the runs seed0, seed1 ... of one method on one task. 50 further episodes a seed on
evaluation seed 2000, the same for both; together with the 50 of the runs' own last evaluation. The difference is the
first folder's from the second's, with the interval of ``lpds compare`` (other seeds, other episodes).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import lpds
from lpds.commands.terminal import guarded
from lpds.files import write_atomically, write_json
from lpds.log import read_json_lines
from lpds.stats import crossed_difference

EVALUATION_SEED, EPISODES = 2000, 50
WHAT = ("return", "success")


def last_evaluation(run: Path) -> dict[str, npt.NDArray[np.float64]]:
    """The last evaluation of a run, steered, in the order of its episodes."""
    rows = [row for row in read_json_lines(run / "eval.jsonl") if row["kind"] == "final" and row["scale"] == 1.0]
    return {
        what: np.array([math.nan if row[what] is None else row[what] for row in sorted(rows, key=lambda row: row["episode"])])
        for what in WHAT
    }


def evaluations(folder: Path) -> tuple[str, dict[str, npt.NDArray[np.float64]], dict[str, npt.NDArray[np.float64]]]:
    """The task, and [S, E] of the runs' own last evaluation and of a second one."""
    runs = sorted(folder.glob("seed*"))
    if not runs:
        raise SystemExit(f"{folder} holds no runs")
    task = str(json.loads((runs[0] / "config.json").read_text())["task"])
    own = [last_evaluation(run) for run in runs]
    again = []
    for run in runs:
        report = lpds.evaluate(lpds.load_policy(run), task, episodes=EPISODES, seed=EVALUATION_SEED)
        again.append({"return": report.returns, "success": report.successes})
    return task, *({what: np.stack([one[what] for one in found]) for what in WHAT} for found in (own, again))


def main() -> None:
    """Evaluate and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="pairs: a method, then what it is set against")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if len(arguments.folders) % 2:
        parser.error("folders come in pairs")
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    lines = [
        "# A second evaluation",
        "",
        f"`python benchmarks/second_evaluation.py {' '.join(map(str, arguments.folders))} --out {arguments.out}`",
        "",
        f"{EPISODES} episodes a seed on evaluation seed {EVALUATION_SEED}, beside those of the runs' own last evaluation.",
        "Success in per cent, means over seeds; differences in points with 95 % intervals for other seeds and other episodes.",
        "",
        "| runs | against | last evaluation | second evaluation | both | both, return |",
        "|---|---|---|---|---|---|",
    ]
    for ours, other in zip(arguments.folders[::2], arguments.folders[1::2], strict=True):
        task, *b = evaluations(ours)
        _, *a = evaluations(other)
        cells, row = [], {"task": task, "runs": str(ours), "against": str(other)}
        both = [{what: np.concatenate([part[what] for part in side], 1) for what in WHAT} for side in (a, b)]
        for name, x, y in (("last", a[0], b[0]), ("second", a[1], b[1]), ("both", *both)):
            told = [what for what in WHAT if not np.isnan(x[what]).any()]
            row[name] = {what: [x[what].mean(), y[what].mean(), *crossed_difference(x[what], y[what])] for what in told}
            cells.append("-")
            if "success" in told:
                before, after, *points = (100.0 * value for value in row[name]["success"])
                cells[-1] = f"{before:.0f} -> {after:.0f}, {points[0]:+.0f} [{points[1]:+.0f}, {points[2]:+.0f}]"
        rows.append(row)
        before, after, *points = row["both"]["return"]
        cells.append(f"{before:.0f} -> {after:.0f}, {points[0]:+.0f} [{points[1]:+.0f}, {points[2]:+.0f}]")
        lines.append(f"| {ours} | {other.name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    write_json(arguments.out / "summary.json", {"format_version": 1, "rows": rows})
    write_atomically(arguments.out / "README.md", ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
