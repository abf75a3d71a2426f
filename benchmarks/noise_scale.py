"""What the noise itself costs: frozen and steered policies evaluated with eps multiplied by a factor.

    python benchmarks/noise_scale.py results/{hopper/lpds,walker2d/lpds+150k,halfcheetah/lpds} --out results/noise-scale

Each folder holds the runs seed0, seed1 ... of one task. 50 episodes a cell on an evaluation seed of its own, the same
episodes for every cell of a task. ``lpds eval RUN --noise-scale K`` is one cell.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import lpds
from lpds.commands.terminal import guarded
from lpds.files import write_atomically, write_json
from lpds.stats import crossed_mean, paired_gain, paired_share_gain, share_over_seeds

EVALUATION_SEED, EPISODES = 2000, 50
FACTORS = (1.0, 0.7, 0.3, 0.0)


def cell(row: dict[str, Any]) -> str:
    """One cell of the table."""
    form = "{:.0f}" if abs(row["return"][0]) >= 10.0 else "{:.2f}"
    signed = form.replace(":", ":+")
    text = f"{form} [{form}, {form}]".format(*row["return"])
    if len(row["by_seed"]) > 1:
        text += f" ({', '.join(form.format(mean) for mean in row['by_seed'])})"
    if row["success"] is not None:
        text = "{:.0%} [{:.0%}, {:.0%}], return ".format(*row["success"]) + text
    if row["over_whole_noise"] is not None:
        text += f"; {signed} [{signed}, {signed}]".format(*row["over_whole_noise"])
    if row["over_frozen"] is not None:
        text += f"; over the frozen policy {signed} [{signed}, {signed}]".format(*row["over_frozen"])
    if row["success_over_frozen"] is not None:
        points = [100.0 * value for value in row["success_over_frozen"]]
        text += ", {:+.0f} points [{:+.0f}, {:+.0f}]".format(*points)
    return text


def main() -> None:
    """Evaluate and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--factors", type=float, nargs="+", default=FACTORS, help="the first is 1")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for folder in arguments.folders:
        runs = sorted(path.parent for path in folder.glob("seed*/config.json"))
        task = json.loads((runs[0] / "config.json").read_text())["task"]
        frozen: dict[float, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]] = {}
        for scale in (0.0, 1.0):
            whole = np.zeros((1, arguments.episodes))
            for factor in arguments.factors:
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
                returns = np.stack([report.returns for report in reports])
                successes = np.stack([report.successes for report in reports])
                row = {
                    "runs": str(folder),
                    "scale": scale,
                    "noise_scale": factor,
                    "return": crossed_mean(returns),
                    # the same policies with more and less noise: a seed's own gain is what is sampled
                    "over_whole_noise": None if factor == 1.0 else crossed_mean(returns - whole),
                    # what steering adds where both have as much noise
                    "over_frozen": paired_gain(frozen[factor][0], returns) if scale else None,
                    "success_over_frozen": (
                        paired_share_gain(frozen[factor][1], successes) if scale and not np.isnan(successes).any() else None
                    ),
                    "by_seed": returns.mean(1).tolist(),
                    "success": None if np.isnan(successes).any() else share_over_seeds(list(successes)),
                    "length": float(np.mean([report.lengths.mean() for report in reports])),
                }
                whole = returns if factor == 1.0 else whole
                if not scale:
                    frozen[factor] = returns, successes
                print(json.dumps(row), flush=True)
                told = None if row["success"] is None else successes.astype(int).tolist()
                rows.append(row | {"returns": returns.round(6).tolist(), "successes": told})
        write_json(arguments.out / "summary.json", {"format_version": 1, "episodes": arguments.episodes, "rows": rows})
    written = page(rows, arguments)
    write_atomically(arguments.out / "README.md", written.encode())


def page(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """The table, with the command that made it."""
    chosen = "" if arguments.factors == FACTORS else f" --factors {' '.join(format(k, 'g') for k in arguments.factors)}"
    chosen += "" if arguments.episodes == EPISODES else f" --episodes {arguments.episodes}"
    command = f"python benchmarks/noise_scale.py {' '.join(map(str, arguments.folders))}{chosen} --out {arguments.out}"
    lines = [
        "# What the noise costs",
        "",
        f"`{command}`: `w = k eps + Delta(s)`, {arguments.episodes} episodes a seed on evaluation seed {EVALUATION_SEED}; "
        "95 % intervals over episodes and, where something was learned, seeds; in brackets the seeds, then the paired gain "
        "over k = 1, and over the frozen policy with as much noise. Every episode is in `summary.json`.",
        "",
        "| runs | acts with | " + " | ".join(f"k = {factor:g}" for factor in arguments.factors) + " |",
        "|---|---|" + "---|" * len(arguments.factors),
    ]
    for folder in arguments.folders:
        for scale, name in ((0.0, "frozen"), (1.0, "as learned")):
            cells = [cell(row) for row in rows if row["runs"] == str(folder) and row["scale"] == scale]
            lines.append(f"| {folder} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
