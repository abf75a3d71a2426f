r"""Which ways of doing a task a policy keeps: the scripted experts' grasps and routes, counted in what it does.

    python benchmarks/ways.py results/robomimic-can/{lpds+c8,dsrl-na+c8-equal,lpds+c8-noise0.6} --episodes 8 --noises 4 \
        --out results/ways/can-c8
    lpds demos robomimic-can --episodes 16 --out can.npz     # and the same rule on the experts' own episodes:
    python benchmarks/ways.py results/robomimic-can/lpds+c8 --check can.npz

Each folder holds the runs seed0, seed1 ... of one task, Can or Square. Every state is played under several noises, and the
same ones by every policy; a training's evaluations go on after success, these end at it. A way has two parts: how the
thing was grasped, known once it is lifted, and how it was carried, known once it is half way over, or above the peg. Of
two noises at one state: do they go different ways?
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

import lpds
from lpds.api import read_config
from lpds.commands.terminal import guarded
from lpds.files import write_atomically, write_json
from lpds.pretrain.datasets import open_data
from lpds.pretrain.scripted import can, square
from lpds.pretrain.scripted.waypoints import fingers, reachable, wrapped, yaw
from lpds.registry import ENVIRONMENTS, resolve

EVALUATION_SEED, EPISODES, NOISES = 2000, 12, 5
LIFTED = 0.04
"""Metres above its first place from which on a thing is held."""
Array = npt.NDArray[np.float64]
Way = tuple[int | None, int | None]


def headings(quaternions: Array) -> Array:
    """Heading of the hand [T] from its orientations [T, 4], unwrapped, 0 at the reset."""
    angles = np.array([fingers({"robot0_eef_quat": one}) for one in quaternions])
    return np.concatenate([[0.0], np.cumsum(wrapped(np.diff(angles)))])


def way_of_can(obs: Array) -> Way:
    """Wrist straight (0) or turned (1); route near (0) or far (1), of observations [T, 23]."""
    x, y, z = obs[:, 9:12].T
    up = z > z[0] + LIFTED
    if not up.any():
        return None, None
    turned = int(abs(headings(obs[:, 3:7])[up.argmax()]) > 0.55)
    over = up & (y > (y[0] + can.BIN[1]) / 2)
    return turned, int(x[over.argmax()] > 0.13) if over.any() else None


def way_of_square(obs: Array) -> Way:
    """Nearer (0) or turned (1) grasp; carried straight (0) or round (1), of observations [T, 23]."""
    position, quaternion = obs[:, 9:12], obs[0, 12:16]
    up = position[:, 2] > position[0, 2] + LIFTED
    if not up.any():
        return None, None
    start = {"robot0_eef_quat": obs[0, 3:7]}
    turns = [wrapped(yaw(quaternion) + math.pi / 2 + half * math.pi - fingers(start)) for half in range(2)]
    ways = reachable(turns)
    heading = headings(obs[:, 3:7])[up.argmax()]
    grasp = int(np.argmin([abs(heading - turns[way]) for way in ways]))
    over = up & (position[:, 0] > square.PEG[0] - 0.05)
    return grasp, int(obs[up.argmax() : over.argmax() + 1, 1].min() < 0.02) if over.any() else None  # of the hand


RULES: dict[str, tuple[tuple[str, ...], Callable[[Array], Way]]] = {
    "robomimic-can": (can.MODES, way_of_can),
    "robomimic-square": (square.MODES, way_of_square),
}


class Recorded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps what was seen, episode by episode."""

    def __init__(self, env: gymnasium.Env[Any, Any], into: list[list[Array]]) -> None:
        super().__init__(env)
        self._into = into

    def reset(self, **told: Any) -> Any:
        """Begin an episode."""
        obs, info = self.env.reset(**told)
        self._into.append([obs])
        return obs, info

    def step(self, action: Any) -> Any:
        """Keep what follows."""
        found = self.env.step(action)
        self._into[-1].append(found[0])
        return found


def played(policy: Any, task: str, scale: float, noise: int, episodes: int) -> list[tuple[Way, bool]]:
    """Way and success of every episode under one noise; the factor of a run's own settings is in its policy."""
    seen: list[list[Array]] = []

    def make() -> gymnasium.Env[Any, Any]:
        return Recorded(resolve("environment", ENVIRONMENTS, task)(end_at_success=True), seen)

    told = {"episodes": episodes, "seed": EVALUATION_SEED, "noise_seed": EVALUATION_SEED + noise, "envs": 1}
    report = lpds.evaluate(policy, env=make, scale=scale, **told)
    rule = RULES[task][1]
    whole = [np.asarray(one, np.float64) for one in seen if len(one) > 1]
    return [(rule(obs), bool(won)) for obs, won in zip(whole, report.successes, strict=True)]


def differing(table: list[list[Way]], parts: slice) -> tuple[int, int]:
    """Of pairs of noises at one state, [noises][states]: how many go different ways, of how many whose ways are known."""
    pairs = [pair for ways in zip(*table, strict=True) for pair in itertools.combinations([way[parts] for way in ways], 2)]
    known = [(one, other) for one, other in pairs if None not in one + other]
    return sum(one != other for one, other in known), len(known)


def main() -> None:
    """Play, count, tabulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="states")
    parser.add_argument("--noises", type=int, default=NOISES, help="at each state")
    parser.add_argument("--check", type=Path, help="demonstrations whose ways are known")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs = [sorted(path.parent for path in folder.glob("seed*/config.json")) for folder in arguments.folders]
    if empty := [folder for folder, found in zip(arguments.folders, runs, strict=True) if not found]:
        parser.error(f"{empty[0]} holds no runs")
    configs = [read_config(group[0]) for group in runs]
    if len({(config["task"], config["decoder"]["fingerprint"]) for config in configs}) > 1:
        parser.error("the folders are of several tasks or decoders, and one frozen policy stands beside all of them")
    task = configs[0]["task"]
    modes, rule = RULES[task]
    if arguments.check is not None:
        data = open_data(str(arguments.check))
        ends = np.cumsum(data.episode_lengths)
        found = [
            rule(data.obs[end - length : end].astype(np.float64))
            for end, length in zip(ends, data.episode_lengths, strict=True)
        ]
        right = [way == divmod(int(mode), 2) for way, mode in zip(found, data.episode_source, strict=True)]
        print(f"{sum(right)} of {len(right)} ways are told as the expert drew them")
        return
    rows = []
    cells = [("frozen", runs[0][0], 0.0), *((f"{run.parent.name}/{run.name}", run, 1.0) for group in runs for run in group)]
    for name, run, scale in cells:
        policy = lpds.load_policy(run)
        outcome = [played(policy, task, scale, noise, arguments.episodes) for noise in range(arguments.noises)]
        ways = [[way for way, _ in episodes] for episodes in outcome]
        flat = [pair for episodes in outcome for pair in episodes]
        counts = [sum(way == divmod(mode, 2) for way, _ in flat) for mode in range(len(modes))]
        won = [sum(way == divmod(mode, 2) and success for way, success in flat) for mode in range(len(modes))]
        grasps, differ = (differing(ways, parts) for parts in (slice(1), slice(2)))
        rows.append(
            {
                "policy": name,
                "rollouts": len(flat),
                "successes": sum(success for _, success in flat),
                "ways": dict(zip(modes, counts, strict=True)),
                "successes_by_way": dict(zip(modes, won, strict=True)),
                "pairs_that_differ_in_grasp": grasps,
                "pairs_that_differ": differ,
                "episodes": [[[*way, success] for way, success in episodes] for episodes in outcome],
            }
        )
        print(name, counts, won, f"{differ[0]} of {differ[1]} pairs differ", flush=True)
        if arguments.out is not None:
            write_pages(arguments.out, task, modes, rows, arguments.episodes, arguments.noises)


def write_pages(out: Path, task: str, modes: tuple[str, ...], rows: list[dict[str, Any]], episodes: int, noises: int) -> None:
    """A table and its numbers."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "summary.json", {"format_version": 1, "task": task, "episodes": episodes, "noises": noises, "rows": rows})
    lines = [
        f"# Ways of doing `{task}`",
        "",
        f"{episodes} states under {noises} noises each, evaluation seed {EVALUATION_SEED}; episodes end at success. Made by",
        "`benchmarks/ways.py`, whose docstring has the command. In brackets: so many of them succeeded.",
        "Pairs of noises at one state share their rollouts: counts, not independent draws.",
        "",
        "| policy | successes | " + " | ".join(modes) + " | two noises at one state grasp differently | go different ways |",
        "|---" * (len(modes) + 4) + "|",
    ]
    for row in rows:
        cells = [f"{row['ways'][mode]} ({row['successes_by_way'][mode]})" for mode in modes]
        for differ, known in (row["pairs_that_differ_in_grasp"], row["pairs_that_differ"]):
            cells.append(f"{differ / known:.0%} of {known}" if known else "none known")
        lines.append(f"| {row['policy']} | {row['successes']} of {row['rollouts']} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    write_atomically(out / "README.md", lambda stream: stream.write(text.encode()))


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
