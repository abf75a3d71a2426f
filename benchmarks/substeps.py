"""What one pass of MuJoCo's pipeline a substep saves: control steps per second of processor time, with it and without.

    python benchmarks/substeps.py --out results/bench/substeps.json

The same random actions for both, in turn; the states they end in are compared to the bit.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from lpds.commands.terminal import guarded
from lpds.envs import libero, robosuite
from lpds.files import write_json
from lpds.registry import ENVIRONMENTS, resolve

TASKS = ("robomimic-lift", "robomimic-can", "robomimic-square", "robomimic-transport", "libero-90:57")


def steps_a_second(env: Any, actions: np.ndarray) -> tuple[float, np.ndarray]:
    """Speed over the actions, and the positions that they end in."""
    env.reset(seed=0)
    start = time.process_time()
    for action in actions:
        env.step(action)
    return len(actions) / (time.process_time() - start), env.suite.sim.data.qpos.copy()


def main() -> None:
    """Measure every task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3, help="in turn; the fastest counts")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    shared, rows = libero.one_pass_a_substep, {}
    for task in TASKS:
        env = resolve("environment", ENVIRONMENTS, task)()
        actions = np.random.default_rng(0).uniform(-1, 1, (arguments.steps, *env.action_space.shape)).astype(np.float32)
        steps_a_second(env, actions[:10])  # compiles the controller
        speeds: dict[str, list[float]] = {"plain": [], "one_pass": []}
        ends = []
        for _ in range(arguments.rounds):
            for name, manner in (("plain", nullcontext), ("one_pass", shared)):
                libero.one_pass_a_substep = robosuite.one_pass_a_substep = manner  # type: ignore[assignment]
                speed, end = steps_a_second(env, actions)
                speeds[name].append(speed)
                ends.append(end)
        env.close()
        rows[task] = {name: max(found) for name, found in speeds.items()}
        rows[task]["same_to_the_bit"] = all(np.array_equal(end, ends[0]) for end in ends)
        print(task, rows[task], flush=True)
    write_json(arguments.out, {"format_version": 1, "unit": "control steps per second of processor time", "tasks": rows})


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
