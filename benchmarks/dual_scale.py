"""Does the dual behave the same whether Q is of the order of 1 or of 1000?

    python benchmarks/dual_scale.py --out results/dual-scale

Steers the toy with its rewards multiplied by 2^-6, 1 and 2^10, so that Q runs from below 1 to thousands, with everything
else equal, and compares alpha's trace in units of the reward. The factors are powers of two, which a float multiplies
without rounding: if the learner is free of scale, the runs are the same to the bit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import gymnasium

import lpds
from lpds.commands.terminal import guarded
from lpds.envs.four_mode import make_four_mode
from lpds.files import write_atomically, write_json
from lpds.log import read_json_lines
from lpds.report.figures import matplotlib_figure

FACTORS = (2.0**-6, 1.0, 2.0**10)


def main() -> None:
    """Run the three and write summary.json and alpha.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()
    traces = {}
    for factor in FACTORS:
        with tempfile.TemporaryDirectory() as folder:

            def scaled(factor: float = factor) -> gymnasium.Env:
                return gymnasium.wrappers.TransformReward(make_four_mode(), lambda reward: factor * reward)

            lpds.steer("toy", env=scaled, steps=arguments.steps, eval_every=0, final_episodes=20, out=folder, quiet=True)
            traces[factor] = [row for row in read_json_lines(Path(folder) / "metrics.jsonl") if row["alpha"] is not None]
    one = traces[1.0]
    summary = {
        "format_version": 1,
        "command": "python benchmarks/dual_scale.py --out results/dual-scale",
        "steps": arguments.steps,
        "runs": [],
    }
    for factor, rows in traces.items():
        keys = ("step", "q_action", "alpha", "q_scale", "delta_sq_mean")
        pairs = zip(rows, one, strict=True)
        same = all(a["alpha"] == factor * b["alpha"] and a["delta_sq_mean"] == b["delta_sq_mean"] for a, b in pairs)
        trace = [[row[key] for key in keys] for row in rows]
        summary["runs"].append({"reward_factor": factor, "equal_to_the_bit": same, "columns": keys, "rows": trace})
        last = rows[-1]
        print(f"rewards x {factor:<9g} Q {last['q_action']:>10.4g}  alpha {last['alpha']:>10.4g}  same to the bit: {same}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "summary.json", summary)
    figure = matplotlib_figure()(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for (factor, rows), style in zip(traces.items(), ("-", "--", ":"), strict=True):
        steps = [row["step"] for row in rows]
        label = f"rewards x {factor:g} (|Q| about {abs(rows[-1]['q_action']):.2g})"
        axes.plot(steps, [row["alpha"] / factor for row in rows], style, lw=2.5, label=label)
    axes.set_xlabel("primitive environment steps")
    axes.set_ylabel("alpha / reward factor")
    axes.legend()
    write_atomically(arguments.out / "alpha.png", lambda stream: figure.savefig(stream, format="png", dpi=110))


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
