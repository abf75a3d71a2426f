"""How long a mean of Delta's weights should be: several in one run, each evaluated at every point of its curve.

    python benchmarks/averages.py walker2d --seed 10 --eval-seed 1000 --steps 60000 --out results/screen/walker2d-average.jsonl

A mean that is only evaluated changes nothing that is learned, so one run under ``--preset quiet`` serves all lengths. A line of
the output is a point of the curve: mean return of the policy as it is with all of the noise (``1``) and, with 0.3 of it, as it
is (``0``) and of the means over N updates. Unlike the setting's (``eval_average_updates``) these begin with the first update,
theta_0 left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import lpds
from lpds.commands.terminal import guarded
from lpds.config import CURVE_SEED
from lpds.methods.lpds import LPDS
from lpds.methods.shift import ShiftPolicy
from lpds.nn import polyak
from lpds.runner import Runner
from lpds.types import Batch, Metrics

LENGTHS = (500, 1_000, 2_000, 4_000)
NOISE = 0.3


def follow(means: dict[int, ShiftPolicy]) -> None:
    """Have every update of a learner move the means."""
    update = LPDS.update

    def moved(self: LPDS, batch: Batch, noise: dict[str, Any], *, critics_only: bool = False) -> Metrics:
        told = update(self, batch, noise, critics_only=critics_only)
        if not critics_only:
            for length in LENGTHS:
                mean = means.setdefault(length, copy.deepcopy(self.online))
                rate = 1.0 / min(length, 1.0 + (int(self.region.ascents) - 1) / 2.0)
                polyak(list(mean.parameters()), list(self.online.parameters()), rate)
        return told

    LPDS.update = moved  # type: ignore[method-assign]


def tell(means: Mapping[int, ShiftPolicy], out: Path) -> None:
    """Have every point of the curve evaluate the means, too."""
    point = Runner._evaluate_curve

    def evaluated(self: Runner) -> None:
        point(self)
        if not means:
            return
        row: dict[str, float] = {"step": self.step}
        online: ShiftPolicy = self.method.online  # type: ignore[attr-defined]
        for name, policy, noise in (("1", online, 1.0), ("0", online, NOISE), *((str(n), p, NOISE) for n, p in means.items())):
            quiet = copy.copy(policy)
            quiet.noise_scale = noise
            report = self.evaluate(self.c.eval_episodes, self.c.eval_seed + CURVE_SEED, 1.0, "mean", policy=quiet)
            row[name] = round(float(np.mean(report.returns)))
        with out.open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    Runner._evaluate_curve = evaluated  # type: ignore[method-assign]


def main() -> None:
    """Steer once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task")
    for name, default in (("seed", 10), ("eval-seed", 1000), ("steps", 60_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.unlink(missing_ok=True)
    means: dict[int, ShiftPolicy] = {}
    follow(means)
    tell(means, given.out)
    budget = {"seed": given.seed, "eval_seed": given.eval_seed, "steps": given.steps}
    with tempfile.TemporaryDirectory() as folder:
        lpds.steer(given.task, out=Path(folder) / "run", preset="quiet", **budget)


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
