"""LP-DS against the frozen policy on the seven manipulation tasks: the runs' own evaluation, the second one, and both.

    python benchmarks/manipulation_gains.py --out results/manipulation-gains

Nothing is played: success of the last evaluations comes from the runs' ``eval.jsonl``, that of the second ones from the
``summary.json`` of ``benchmarks/noise_scale.py``, where it has the episodes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lpds.commands.terminal import guarded
from lpds.files import write_atomically, write_json
from lpds.log import read_json_lines
from lpds.stats import paired_share_gain

SECOND = {
    "adroit-pen": "hands-delta8",
    "adroit-hammer": "hands-delta8",
    "adroit-door": "hands-delta8",
    "adroit-relocate": "hands-delta8",
    "robomimic-can": "can-c8-80",
}
"""Folders of ``results/noise-scale``; one of which the episodes were not kept tells no interval."""
RUNS = dict.fromkeys((*SECOND, "robomimic-lift", "robomimic-square"), "lpds") | {"robomimic-can": "lpds+c8"}
Array = npt.NDArray[np.float64]


def last_evaluation(folder: Path, scale: float) -> Array:
    """Successes [S, E] of the runs' last evaluations at a scale of Delta, all of the noise."""
    found = []
    for run in sorted(folder.glob("seed*")):
        rows = [row for row in read_json_lines(run / "eval.jsonl") if row["kind"] == "final"]
        rows = [row for row in rows if row["scale"] == scale and row.get("noise_scale", 1.0) == 1.0]
        found.append([row["success"] for row in sorted(rows, key=lambda row: row["episode"])])
    return np.asarray(found, np.float64)


def second_evaluation(results: Path, task: str, method: str) -> tuple[Array, Array] | None:
    """Successes [1, E] frozen and [S, E] steered of the second evaluation; ``None`` where its episodes are not kept."""
    if task not in SECOND:
        return None
    rows = json.loads((results / "noise-scale" / SECOND[task] / "summary.json").read_text())["rows"]
    own = [row for row in rows if row["runs"] == f"results/{task}/{method}" and row["noise_scale"] == 1.0]
    told = {row["scale"]: row.get("successes") for row in own}
    if not told.get(0.0) or not told.get(1.0):
        return None
    return np.asarray(told[0.0], np.float64), np.asarray(told[1.0], np.float64)


def gain(frozen: Array, steered: Array) -> dict[str, Any]:
    """Means and the paired gain with its interval."""
    return {
        "frozen": float(frozen.mean()),
        "steered": float(steered.mean()),
        "gain": list(paired_share_gain(frozen, steered)),
        "seeds": len(steered),
        "episodes": int(steered.shape[1]),
    }


def told(found: dict[str, Any] | None) -> str:
    """A cell."""
    if found is None:
        return "-"
    mean, low, high = (100.0 * value for value in found["gain"])
    return f"{100 * found['frozen']:.0f} -> {100 * found['steered']:.0f}, {mean:+.0f} [{low:+.0f}, {high:+.0f}]"


def main() -> None:
    """Read, tabulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    for task, method in RUNS.items():
        folder = arguments.results / task / method
        first = last_evaluation(folder, 0.0), last_evaluation(folder, 1.0)
        again = second_evaluation(arguments.results, task, method)
        row: dict[str, Any] = {"task": task, "runs": f"{task}/{method}", "first": gain(*first), "second": None, "both": None}
        if again is not None:
            frozen = np.broadcast_to(again[0], again[1].shape)
            row["second"] = gain(*again)
            row["both"] = gain(np.concatenate([first[0], frozen], 1), np.concatenate([first[1], again[1]], 1))
        rows.append(row)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "summary.json", {"format_version": 1, "rows": rows})
    text = "\n".join(page(rows)) + "\n"
    write_atomically(arguments.out / "README.md", text.encode())
    print(text)


def page(rows: list[dict[str, Any]]) -> list[str]:
    """The table; above the frozen policy is a gain whose interval excludes zero."""
    counts = [sum(bool(row[name]) and row[name]["gain"][1] > 0.0 for row in rows) for name in ("first", "second", "both")]
    kept = sum(row["second"] is not None for row in rows)
    above = (
        "{} of {all} on the first evaluation; of the {kept} whose second one kept its episodes {} on it, {} on both together"
    )
    lines = [
        "# LP-DS over the frozen policy on seven manipulation tasks",
        "",
        "`python benchmarks/manipulation_gains.py --out results/manipulation-gains`: success in per cent, frozen -> steered,",
        "and the gain in points with its 95 % interval over seeds and episodes. The first evaluation is the runs' own, on",
        "whose episodes the hands' `delta` was chosen, so both together have them too; by the second nothing was. A dash: no",
        "second evaluation of all seeds whose episodes are kept. Can is its policy with chunks of 8, which succeeds less often",
        "than that of 4; Transport's single run is in hands-and-arms.md.",
        "",
        "Above the frozen policy, the interval without zero: " + above.format(*counts, all=len(rows), kept=kept) + ".",
        "",
        "| task | runs | seeds | first evaluation | second | both |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = " | ".join(told(row[name]) for name in ("first", "second", "both"))
        lines.append(f"| {row['task']} | `{row['runs']}` | {row['first']['seeds']} | {cells} |")
    return lines


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
