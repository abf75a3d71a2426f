"""``lpds reproduce toy``: what the trust region does to the modes and to the paths of the four-mode toy.

The frozen policy and LP-DS over a grid of delta, some seeds each, then the same roll-outs of every policy (the same starts
and the same noise): which goals they end in, how straight their paths are, what entropy is left. Coverage should fall
and directness rise as delta grows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lpds.api import resume, steer
from lpds.errors import LpdsError
from lpds.fields import from_json, to_json
from lpds.files import FORMAT_VERSION, write_atomically, write_json
from lpds.methods.base import BasePolicy
from lpds.metrics import mode_coverage
from lpds.policy import load_policy
from lpds.presets import resolve_settings
from lpds.registry import TASKS, resolve
from lpds.reproduce.paths import COVERED, Rollouts, mode_entropy, roll_out
from lpds.reproduce.toy_figure import write_figure
from lpds.run_folder import read_config
from lpds.stats import Interval, bootstrap_mean, mean_over_seeds
from lpds.zoo import load_decoder

DELTAS = (0.01, 0.05, 0.1, 0.5, 2.0, 4.0, 8.0)
STEPS = 6_000
"""Primitive steps of a run, warm-up included."""
ROLLOUTS = 400
ROLLOUT_SEED = 1_000
"""Of the evaluation stream; no run looks at these episodes."""
PAPER = {0.01: "all four modes kept", 0.05: "straighter paths, still several modes", 0.1: "one goal"}
"""What the paper says of its own toy."""
RIVALS = ("dsrl-na",)
EQUAL = {"updates_per_decision": 1.0}
"""Of the rivals: as many updates as LP-DS does."""
GRID = {"eval_every": 0, "final_episodes": 20}
"""Run settings of this grid beside the preset's: the roll-outs here are the evaluation."""


@dataclass(frozen=True)
class _Cell:
    """Runs of the grid that differ in nothing but the seed."""

    method: str
    name: str
    delta: float
    own: Mapping[str, Any]
    """Settings beside the grid's."""


@dataclass(frozen=True)
class Point:
    """One delta of LP-DS, or what it is compared with: the frozen policy and the rivals (delta 0)."""

    delta: float
    seeds: list[int]
    rollouts: list[Rollouts]
    """One a seed."""
    label: str = ""
    """What it is where it has no delta."""

    @property
    def name(self) -> str:
        """For tables."""
        return self.label or f"delta {self.delta:g}"

    def figures(self, frozen: Rollouts) -> dict[str, Any]:
        """Every number of the point: of all its roll-outs together, and of each seed."""
        pooled = _figures(self.rollouts, frozen)
        rows = zip(self.seeds, self.rollouts, strict=True)
        return {
            "delta": self.delta,
            "name": self.name,
            **pooled,
            "seeds": [{"seed": seed, **_figures([one], frozen)} for seed, one in rows],
        }


def reproduce_toy(
    out: Path,
    seeds: int,
    say: Callable[[str], None],
    *,
    deltas: Sequence[float] = DELTAS,
    rivals: Sequence[str] = RIVALS,
    steps: int = STEPS,
    rollouts: int = ROLLOUTS,
    changes: Mapping[str, Any] | None = None,
    may_run: bool = True,
) -> str:
    """Run the grid, or what is left of it, measure, and write ``summary.json``, ``toy.csv``, ``toy.png`` and ``toy.svg``.

    A run of the grid that is finished under ``out/runs`` with the same settings is not run again; one that was stopped
    goes on.

    Args:
        out: folder of the results.
        seeds: runs of every delta.
        say: takes one line of progress at a time.
        deltas: the grid.
        rivals: methods beside LP-DS, at its updates per decision.
        steps: primitive steps of a run.
        rollouts: of every policy.
        changes: of the run's or the method's settings, beside the preset's.
        may_run: make the runs that are not there; else they are an error.

    Returns:
        The table and the findings, as text.

    Raises:
        LpdsError: a count that is not positive, or settings that are refused.
    """
    for name, value in (("seeds", seeds), ("rollouts", rollouts)):
        if value < 1:
            raise LpdsError(f"{name} must be at least 1, not {value}")
    if not deltas:
        raise LpdsError("deltas must name at least one budget")
    settings = {**GRID, "steps": steps, **(changes or {})}
    decoder = load_decoder(resolve("task", TASKS, "toy").decoder)
    cells = [_Cell("lpds", f"delta{delta:g}", float(delta), {"delta": float(delta)}) for delta in sorted(deltas)]
    cells += [_Cell(rival, rival, 0.0, EQUAL) for rival in rivals]

    def run_of(cell: _Cell, seed: int) -> tuple[Path, dict[str, Any], str]:
        return out / "runs" / cell.name / f"seed{seed}", {**settings, **cell.own, "seed": seed}, cell.method

    missing = []
    for run in (run_of(cell, seed) for cell in cells for seed in range(seeds)):
        if not _finished(run[0], _found(*run)):  # a folder that cannot be used is told before hours of roll-outs
            if not may_run:
                raise LpdsError(f"{run[0]} is no finished run: leave --no-run out, and it is made")
            missing.append(run)
    if missing:
        whole = len(cells) * seeds
        say(f"{len(missing)} of {whole} runs of {steps:,} steps are missing in {out / 'runs'} and are made now")
    say(f"frozen policy: {rollouts} roll-outs")
    frozen = roll_out(BasePolicy(), decoder, episodes=rollouts, seed=ROLLOUT_SEED, scale=0.0)
    points = [Point(0.0, [0], [frozen], "frozen")]
    for cell in cells:
        rolled, label = [], "" if cell.delta else cell.name
        for seed in range(seeds):
            run = run_of(cell, seed)
            name = f"{label or f'delta {cell.delta:g}'}, seed {seed}"
            say(f"{name}: {_ensure_run(*run)}")
            policy = load_policy(run[0])
            rolled.append(roll_out(policy.policy, policy.decoder, episodes=rollouts, seed=ROLLOUT_SEED))
            say(f"{name}: {_sentence(rolled[-1])}")
        points.append(Point(cell.delta, list(range(seeds)), rolled, label))
    rows = [point.figures(frozen) for point in points]
    findings = _findings(rows)
    summary = {
        "format_version": FORMAT_VERSION,
        "figure": "toy",
        "command": f"lpds reproduce toy --seeds {seeds}",
        "protocol": {
            "steps": steps,
            "changes": {key: value for key, value in settings.items() if key != "steps"},
            "rollouts": rollouts,
            "rollout_seed": ROLLOUT_SEED,
            "covered_from_share": COVERED,
            "decoder": {"name": decoder.name, "fingerprint": decoder.fingerprint},
            "intervals": "95 %: of one seed a bootstrap over roll-outs; of several for other seeds and their shared roll-outs",
        },
        "points": rows,
        "paper": [{"delta": delta, "says": says} for delta, says in PAPER.items()],
        "findings": findings,
    }
    write_json(out / "summary.json", summary)
    _write_csv(out / "toy.csv", rows)
    write_figure(out, points, rows)
    return "\n".join([_table(rows), "", *findings])


# -- runs ------------------------------------------------------------------------------------------------------------


def _found(folder: Path, settings: dict[str, Any], method: str) -> bool:
    """Whether the folder holds a run with these settings; another run there is an error."""
    preset = resolve("task", TASKS, "toy")
    run, chosen = resolve_settings(preset, method, settings)
    wanted = (to_json(run), to_json(chosen), load_decoder(preset.decoder).fingerprint)
    try:
        config = read_config(folder)
        # what an older run does not name, it did as by default
        run_then, chosen_then = (from_json(type(now), config[key]) for now, key in ((run, "run"), (chosen, "settings")))
        same = (to_json(run_then), to_json(chosen_then), config["decoder"]["fingerprint"]) == wanted
    except LpdsError:
        same = False
    if not same and (folder / "config.json").is_file():
        raise LpdsError(f"{folder} is a run with other settings or another decoder: choose another --out, or remove it")
    return same


def _finished(folder: Path, same: bool) -> bool:
    return same and (folder / "summary.json").is_file() and (folder / "policy").is_dir()


def _ensure_run(folder: Path, settings: dict[str, Any], method: str) -> str:
    """Have a finished run with these settings in the folder; say how it came about."""
    same = _found(folder, settings, method)
    if _finished(folder, same):
        return "finished before"
    done = resume(folder, quiet=True) if same else steer("toy", method, out=folder, quiet=True, **settings)
    if not done.finished:
        raise KeyboardInterrupt  # Ctrl-C ends the run in a checkpoint; the grid ends with it
    return "resumed and finished" if same else "run"


# -- figures ---------------------------------------------------------------------------------------------------------


def _figures(rollouts: Sequence[Rollouts], frozen: Rollouts) -> dict[str, Any]:
    """Numbers of one seed, or of several together; coverage is the mean over seeds, for each may keep another goal."""
    ratios = [one.ratios for one in rollouts]
    shares = [one.shares for one in rollouts]
    returns = [one.report.returns for one in rollouts]
    gains = [one.report.returns - frozen.report.returns for one in rollouts]
    lengths = [one.report.lengths for one in rollouts]
    chunk_ends = [-(-one.report.lengths // one.chunk) for one in rollouts]
    return {
        "modes_covered": float(np.mean([mode_coverage(share, COVERED) for share in shares])),
        "mode_shares": np.mean(shares, axis=0).tolist(),
        "reached": float(np.mean([share.sum() for share in shares])),
        "mode_entropy": float(np.mean([mode_entropy(share) for share in shares])),
        "path_ratio": list(_interval(ratios)),
        "path_ratio_median": float(np.median(np.concatenate(ratios))),
        "steps": list(_interval(lengths)),
        "decisions": list(_interval(chunk_ends)),
        "return": list(_interval(returns)),
        "return_gain": list(_interval(gains)),
        "action_entropy": float(np.mean([one.entropy for one in rollouts])),
        "action_entropy_change": float(np.mean([one.entropy - frozen.entropy for one in rollouts])),
    }


def _interval(seeds: Sequence[npt.ArrayLike]) -> Interval:
    """Of one seed over its roll-outs; of several over the seeds and the roll-outs, which they share."""
    return bootstrap_mean(seeds[0]) if len(seeds) == 1 else mean_over_seeds(seeds)


def _sentence(one: Rollouts) -> str:
    shares = " ".join(f"{share:.0%}" for share in one.shares)
    modes = mode_coverage(one.shares, COVERED)
    return f"{modes} modes ({shares}), path {one.ratios.mean():.2f}, return {one.report.returns.mean():.1f}"


def _findings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What was measured beside what the paper says, and where the transitions lie."""
    frozen, steered = rows[0], [row for row in rows if row["delta"]]
    lines = ["The paper's toy, and this one:"]
    for delta, says in PAPER.items():
        for row in steered:
            if row["delta"] == delta:
                path = row["path_ratio"][0]
                measured = f"{_counts(row)} modes covered, path {path:.2f} (frozen {frozen['path_ratio'][0]:.2f})"
                lines.append(f"  delta {delta:g}: paper: {says}; here: {measured}")
    least = frozen["path_ratio"][1]
    straighter = _run_of(steered[::-1], lambda seed: seed["path_ratio"][2] < least)
    if straighter:
        apart = "straighter than the frozen policy's (95 % intervals apart)"
        lines.append(f"  From delta {straighter[-1]:g} on every seed's paths are {apart}.")
    whole = _run_of(steered, lambda seed: seed["modes_covered"] == 4)
    if whole:
        lines.append(f"  Every seed keeps all four modes up to delta {whole[-1]:g}.")
    lost = [row["delta"] for row in steered if any(seed["modes_covered"] < 4 for seed in row["seeds"])]
    if lost:
        lines.append(f"  The smallest delta at which any seed loses a mode is {lost[0]:g}.")
    single = _run_of(steered[::-1], lambda seed: seed["modes_covered"] <= 1)
    lines.append(
        f"  Every seed is left with one goal from delta {single[-1]:g} on."
        if single
        else f"  Not every seed is left with one goal, not even at delta {steered[-1]['delta']:g}, the largest of this grid."
    )
    for row in rows[1:]:
        if not row["delta"]:
            path = row["path_ratio"][0]
            lines.append(
                f"  {row['name']}: paper (DSRL): one mode at once; here: {_counts(row)} modes covered, path {path:.2f}"
            )
    return lines


def _run_of(rows: Sequence[dict[str, Any]], holds: Callable[[dict[str, Any]], bool]) -> list[float]:
    """The deltas from the first row on for as long as something holds of every seed."""
    return [row["delta"] for row in takewhile(lambda row: all(map(holds, row["seeds"])), rows)]


def _counts(row: dict[str, Any]) -> str:
    return "/".join(f"{seed['modes_covered']:.0f}" for seed in row["seeds"])


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = f"{'':<12}{'modes':>7}{'a seed':>9}{'H(modes)':>10}{'H(action)':>11}{'path/line':>11}{'95 % interval':>16}"
    lines = [f"{head}{'decisions':>11}{'return':>9}{'95 % interval':>18}"]
    for row in rows:
        ratio, low, high = row["path_ratio"]
        mean, least, most = row["return"]
        lines.append(
            f"{row['name']:<12}{row['modes_covered']:>7.2f}{_counts(row):>9}{row['mode_entropy']:>10.2f}{row['action_entropy']:>11.2f}"
            f"{ratio:>11.2f}{f'[{low:.2f}, {high:.2f}]':>16}{row['decisions'][0]:>11.1f}"
            f"{mean:>9.1f}{f'[{least:.1f}, {most:.1f}]':>18}"
        )
    return "\n".join(lines)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line for every seed and one (seed ``all``) for all of them together; intervals as three columns."""
    flat = []
    for row in rows:
        for seed in ({**row, "seed": "all"}, *row["seeds"]):
            line: dict[str, Any] = {"name": row["name"], "delta": row["delta"], "seed": seed["seed"]}
            for key, value in seed.items():
                if key == "mode_shares":
                    line |= {f"share_{index}": share for index, share in enumerate(value)}
                elif isinstance(value, list) and key != "seeds":
                    line |= {f"{key}{end}": part for end, part in zip(("", "_low", "_high"), value, strict=True)}
                elif key not in ("name", "delta", "seed", "seeds"):
                    line[key] = value
            flat.append({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in line.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    content = text.getvalue().encode()
    write_atomically(path, content)
