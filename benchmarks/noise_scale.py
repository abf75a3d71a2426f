"""What the noise itself costs: frozen and steered policies evaluated with eps multiplied by a factor.

    python benchmarks/noise_scale.py results/*/lpds+300k --out results/noise-scale

Each folder holds the runs seed0, seed1 ... of one task. 50 episodes a cell on an evaluation seed of its own, the same
episodes for every cell of a task. ``lpds eval RUN --noise-scale K`` is one cell.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import lpds
from lpds.files import write_atomically, write_json
from lpds.stats import bootstrap_mean

EVALUATION_SEED = 2000
FACTORS = (1.0, 0.7, 0.3, 0.0)


def main() -> None:
    """Evaluate and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for folder in arguments.folders:
        runs = sorted(path.parent for path in folder.glob("seed*/config.json"))
        task = json.loads((runs[0] / "config.json").read_text())["task"]
        for scale in (0.0, 1.0):
            for factor in FACTORS:
                reports = [
                    lpds.evaluate(
                        lpds.load_policy(run),
                        task,
                        episodes=arguments.episodes,
                        seed=EVALUATION_SEED,
                        scale=scale,
                        noise_scale=factor,
                    )
                    for run in (runs if scale else runs[:1])
                ]
                row = {
                    "runs": str(folder),
                    "scale": scale,
                    "noise_scale": factor,
                    "return": bootstrap_mean(np.concatenate([report.returns for report in reports])),
                    "by_seed": [float(report.returns.mean()) for report in reports],
                    "length": float(np.mean([report.lengths.mean() for report in reports])),
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    write_json(arguments.out / "summary.json", {"format_version": 1, "episodes": arguments.episodes, "rows": rows})
    command = f"python benchmarks/noise_scale.py {' '.join(map(str, arguments.folders))} --out {arguments.out}"
    lines = [
        "# What the noise costs",
        "",
        f"`{command}`: `w = k eps + Delta(s)`, {arguments.episodes} episodes a seed on evaluation seed {EVALUATION_SEED}; "
        "95 % intervals over episodes.",
        "",
        "| runs | acts with | " + " | ".join(f"k = {factor:g}" for factor in FACTORS) + " |",
        "|---|---|" + "---|" * len(FACTORS),
    ]
    for folder in arguments.folders:
        for scale, name in ((0.0, "noise alone (frozen)"), (1.0, "noise and Delta")):
            cells = [
                "{:.0f} [{:.0f}, {:.0f}]".format(*row["return"])
                for row in rows
                if row["runs"] == str(folder) and row["scale"] == scale
            ]
            lines.append(f"| {folder} | {name} | " + " | ".join(cells) + " |")
    write_atomically(arguments.out / "README.md", lambda stream: stream.write(("\n".join(lines) + "\n").encode()))


if __name__ == "__main__":
    main()
