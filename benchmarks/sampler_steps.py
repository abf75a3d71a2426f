"""What the number of DDIM steps costs a frozen policy, before anything is steered.

    python benchmarks/sampler_steps.py adroit-door adroit-hammer --steps 8 10 20 --out results/sampler-steps

50 episodes a cell on an evaluation seed of its own, the same episodes and the same w for every number of steps. ``lpds eval
NAME --ddim-steps N`` is one cell.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import lpds
from lpds.checks import choose
from lpds.commands.terminal import guarded
from lpds.evaluation import EvalReport
from lpds.files import write_atomically, write_json
from lpds.stats import bootstrap_mean
from lpds.zoo import environment_of, names

EVALUATION_SEED = 2000


def measure(name: str, steps: int, episodes: int) -> tuple[EvalReport, dict[str, Any]]:
    """One decoder of the zoo with a number of DDIM steps."""
    decoder = lpds.load_decoder(name, ddim_steps=steps)
    report = lpds.evaluate(decoder, env=environment_of(name), episodes=episodes, seed=EVALUATION_SEED)
    share = report.interval("success")
    return report, {
        "decoder": name,
        "ddim_steps": steps,
        "signal_at_start": getattr(decoder, "signal_at_start", None),
        "return": report.interval("return"),
        "success": None if share[0] != share[0] else share,
    }


def main() -> None:
    """Evaluate and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("decoders", nargs="+", help=f"of the zoo: {', '.join(names())}")
    parser.add_argument("--steps", type=int, nargs="+", default=(8, 10, 20), help="the first is what the others are against")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    for name in arguments.decoders:
        choose("decoder", name, names())
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = [
        "# What the number of DDIM steps costs",
        "",
        f"`python benchmarks/sampler_steps.py {' '.join(arguments.decoders)} --steps {' '.join(map(str, arguments.steps))} "
        f"--out {arguments.out}`: frozen policies, {arguments.episodes} episodes on evaluation seed "
        f"{EVALUATION_SEED}; success, return with its 95 % interval, and the paired gain over the first column. At the head "
        "of a cell the share of the variance that the first denoising step was trained on as signal, of which `w` has none.",
        "",
        "| decoder | " + " | ".join(f"{steps} steps" for steps in arguments.steps) + " |",
        "|---|" + "---|" * len(arguments.steps),
    ]
    rows = []
    for name in arguments.decoders:
        cells, first = [], None
        for steps in arguments.steps:
            report, row = measure(name, steps, arguments.episodes)
            first = report if first is None else first
            row["difference"] = None if report is first else bootstrap_mean(report.returns - first.returns)
            rows.append(row)
            print(json.dumps(row), flush=True)
            cells.append(cell(row))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        write_json(arguments.out / "summary.json", {"format_version": 1, "episodes": arguments.episodes, "rows": rows})
    write_atomically(arguments.out / "README.md", ("\n".join(lines) + "\n").encode())


def cell(row: dict[str, Any]) -> str:
    """One cell of the table."""
    text = "signal {:.1%}: ".format(row["signal_at_start"])
    text += "" if row["success"] is None else "**{:.0%}** [{:.0%}, {:.0%}], ".format(*row["success"])
    text += "{:.0f} [{:.0f}, {:.0f}]".format(*row["return"])
    return text if row["difference"] is None else text + "; {:+.0f} [{:+.0f}, {:+.0f}]".format(*row["difference"])


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
