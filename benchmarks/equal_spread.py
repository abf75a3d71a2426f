"""Which of two methods returns more when both leave as much spread in the actions.

    python benchmarks/equal_spread.py results/hopper/{lpds+quiet-100k,dsrl-na+fits} --out results/equal-spread

Folders come in pairs, each with the runs seed0, seed1 ... of one method on one task; the first of a pair is an LP-DS, whose
noise may be turned: ``w = K eps + Delta(s)``. K is the one at which its k-NN entropy (as in ``action_entropy.py``, mean over
states and seeds) is the second's, found on states of the warm-up, where no return is looked at. Both then play the same
episodes of an evaluation seed of their own. The difference is the first's from the second's, with the interval of
``lpds compare``; tasks that tell success have it in a second table.
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
import torch

import lpds
from lpds.commands.terminal import guarded
from lpds.diagnose import SHOWN, action_entropy, frozen_entropy
from lpds.errors import LpdsError
from lpds.files import write_atomically, write_json
from lpds.policy import SteeredPolicy
from lpds.run_folder import kept_states
from lpds.stats import crossed_difference, crossed_mean, share_difference, share_over_seeds

EVALUATION_SEED, EPISODES = 2000, 50
GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def factor_of(entropies: npt.ArrayLike, wanted: float) -> float:
    """The K of ``GRID``'s range at which rising ``entropies`` reach what is wanted, linear between logarithms of K."""
    found = np.asarray(entropies, np.float64)
    return float(np.exp(np.interp(wanted, np.maximum.accumulate(found), np.log(GRID))))


def with_noise(run: Path, factor: float) -> SteeredPolicy:
    """The run's policy with so much of the noise."""
    learned = lpds.load_policy(run)
    return SteeredPolicy(learned.decoder, learned.policy.with_noise(factor), learned.method, learned.order)


def measure(first: Path, second: Path) -> dict[str, Any]:
    """One pair: entropies, the factor and the returns."""
    ours, theirs = (sorted(path.parent for path in folder.glob("seed*/config.json")) for folder in (first, second))
    if not ours or not theirs:
        raise LpdsError(f"{second if ours else first} holds no runs")
    task = str(json.loads((ours[0] / "config.json").read_text())["task"])
    kept = kept_states(ours[0])
    if kept is None or len(kept) != SHOWN:
        raise LpdsError(f"{ours[0]} keeps {0 if kept is None else len(kept)} states of the warm-up, not {SHOWN}")
    states = torch.from_numpy(kept)
    learned = lpds.load_policy(ours[0])
    reference = frozen_entropy(learned.policy, learned.decoder, states)

    def entropy(policy: Any) -> float:
        if policy.decoder.fingerprint != learned.decoder.fingerprint:
            raise LpdsError(f"{first} and {second} steer two decoders")
        return action_entropy(policy.policy, policy.decoder, states, reference) - reference.entropy

    wanted = float(np.mean([entropy(lpds.load_policy(run)) for run in theirs]))
    factor = factor_of([np.mean([entropy(with_noise(run, k)) for run in ours]) for k in GRID], wanted)
    policies = [[with_noise(run, factor) for run in ours], [lpds.load_policy(run) for run in theirs]]
    reports = [[lpds.evaluate(policy, task, episodes=EPISODES, seed=EVALUATION_SEED) for policy in side] for side in policies]
    returns = [np.stack([report.returns for report in side]) for side in reports]
    successes = [np.stack([report.successes for report in side]) for side in reports]
    frozen = lpds.evaluate(learned, task, episodes=EPISODES, seed=EVALUATION_SEED, scale=0.0, noise_scale=factor)
    return {
        "task": task,
        "first": str(first),
        "second": str(second),
        "noise_scale": factor,
        "entropy": [float(np.mean([entropy(policy) for policy in side])) for side in policies],
        "return": [crossed_mean(side) for side in returns],
        "by_seed": [side.mean(1).tolist() for side in returns],
        "frozen_with_as_little": float(frozen.returns.mean()),
        "difference": crossed_difference(returns[1], returns[0]),
        "success": None if np.isnan(successes).any() else success_of(successes, frozen.successes),
    }


def success_of(successes: list[npt.NDArray[np.float64]], frozen: npt.NDArray[np.float64]) -> dict[str, Any]:
    """The shares of both sides, their difference and the frozen policy's, of successes [seeds, episodes]."""
    return {
        "share": [share_over_seeds(list(side)) for side in successes],
        "by_seed": [side.mean(1).tolist() for side in successes],
        "frozen_with_as_little": float(frozen.mean()),
        "difference": share_difference(successes[1], successes[0]),
    }


def page(rows: list[dict[str, Any]], folders: list[Path], out: Path) -> str:
    """The table, with the command that made it."""
    lines = [
        "# At equal spread",
        "",
        f"`python benchmarks/equal_spread.py {' '.join(map(str, folders))} --out {out}`",
        "",
        f"{EPISODES} episodes on evaluation seed {EVALUATION_SEED}. K is chosen by the entropy alone (nats less the frozen "
        "policy's), so that both leave as much.",
        "",
        "| task | first | K | entropy | return | frozen, as little noise | second | entropy | return | difference |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        sides = [
            f"{mean:.0f} [{low:.0f}, {high:.0f}] ({', '.join(f'{value:.0f}' for value in seeds)})"
            for (mean, low, high), seeds in zip(row["return"], row["by_seed"], strict=True)
        ]
        gain, least, most = row["difference"]
        lines.append(
            f"| {row['task']} | {Path(row['first']).name} | {row['noise_scale']:.2f} | {row['entropy'][0]:+.2f} | {sides[0]} "
            f"| {row['frozen_with_as_little']:.0f} | {Path(row['second']).name} | {row['entropy'][1]:+.2f} | {sides[1]} "
            f"| {gain:+.0f} [{least:+.0f}, {most:+.0f}] |"
        )
    told = [row for row in rows if row["success"]]
    if told:
        lines += [
            "",
            "Success, in per cent of the same episodes:",
            "",
            "| task | first | frozen, as little noise | second | difference |",
        ]
        lines.append("|---" * 5 + "|")
    for row in told:
        found = row["success"]
        sides = [
            f"{Path(row[side]).name} {mean:.0%} [{low:.0%}, {high:.0%}] ({', '.join(f'{value:.0%}' for value in seeds)})"
            for side, (mean, low, high), seeds in zip(("first", "second"), found["share"], found["by_seed"], strict=True)
        ]
        gain, least, most = (100 * value for value in found["difference"])
        lines.append(
            f"| {row['task']} | {sides[0]} | {found['frozen_with_as_little']:.0%} | {sides[1]} "
            f"| {gain:+.0f} points [{least:+.0f}, {most:+.0f}] |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure each pair and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if len(arguments.folders) % 2:
        raise LpdsError(f"folders come in pairs, not {len(arguments.folders)} of them")
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for first, second in zip(arguments.folders[::2], arguments.folders[1::2], strict=True):
        rows.append(measure(first, second))
        print(
            json.dumps({key: value for key, value in rows[-1].items() if not isinstance(value, float) or math.isfinite(value)})
        )
        write_json(arguments.out / "summary.json", {"format_version": 1, "episodes": EPISODES, "rows": rows})
    written = page(rows, arguments.folders, arguments.out)
    write_atomically(arguments.out / "README.md", written.encode())


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
