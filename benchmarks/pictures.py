"""What LIBERO's pictures cost: control steps per second of processor time by cameras and size, and an environment's memory.

    python benchmarks/pictures.py --out results/bench/pictures.json

Software OpenGL (EGL) where there is no other; every environment in a process of its own, so that memory is its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lpds.commands.terminal import guarded
from lpds.files import write_json

CELLS = ((0, 0), (1, 64), (2, 64), (2, 128), (1, 256), (2, 256))
CAMERAS = ("agentview", "wrist")


def measure(cameras: int, size: int, steps: int) -> dict[str, Any]:
    """Speed over random actions, the seconds of a reset, and megabytes of one environment and of a second beside it."""
    from lpds.envs.libero import LiberoEnv

    def made() -> Any:
        return LiberoEnv(57, cameras=CAMERAS[:cameras], size=size) if cameras else LiberoEnv(57)

    before = peak_mb()
    env = made()
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, *env.action_space.shape)).astype(np.float32)
    env.step(actions[0])
    one = peak_mb()
    start = time.process_time()
    for action in actions:
        env.step(action)
    speed = steps / (time.process_time() - start)
    start = time.process_time()
    env.reset(seed=1)
    again = time.process_time() - start
    other = made()
    other.reset(seed=0)
    other.step(actions[0])
    row = {"steps_per_s": speed, "reset_s": again, "first_mb": one - before, "second_mb": peak_mb() - one}
    env.close()
    other.close()
    return row


def peak_mb() -> float:
    """The process's largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def main() -> None:
    """Measure every cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    for cameras, size in CELLS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (cameras, size, arguments.steps))
        rows.append({"cameras": cameras, "size": size, **found})
        print(rows[-1], flush=True)
    write_json(
        arguments.out, {"format_version": 1, "unit": "per second of processor time", "task": "libero-90:57", "rows": rows}
    )


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
