"""One change at a time: the learning curves of short runs that differ from a base run in a setting or two.

    lpds steer hopper --seed 10 --eval-seed 1000 --steps 60000 --out runs/screen/hopper/base
    lpds steer hopper --seed 10 --eval-seed 1000 --steps 60000 --out runs/screen/hopper/tau02 --tau 0.02
    python benchmarks/screen.py runs/screen/hopper results/screen/hopper

Takes the folder of such runs, of which one is called base, copies their settings and evaluations into the second folder,
and writes the table README.md there. Seed and evaluation seed are none of those that ``results/`` reports, so nothing is
tuned on what is reported. One seed tells large effects from none, and no more: what helps is confirmed on three.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
from resets import register

from lpds.commands.terminal import guarded
from lpds.config import RunSettings
from lpds.fields import to_json
from lpds.files import write_atomically
from lpds.log import read_json_lines
from lpds.presets import resolve_preset, resolve_settings, resolve_task
from lpds.registry import METHOD_SETTINGS, TASKS, resolve
from lpds.stats import area_under_curve, bootstrap_mean

KEPT = ("config.json", "eval.jsonl")


def settings(run: Path) -> dict[str, object]:
    """Settings of a run that a user can change, by name."""
    config = json.loads((run / "config.json").read_text())
    # a run from before a setting existed had its default
    defaults = {**to_json(RunSettings()), **to_json(resolve("method", METHOD_SETTINGS, config["method"])())}
    found = {**defaults, **config["run"], **config["settings"], "method": config["method"]}
    found["decoder"] = config["decoder"]["reference"]
    return {key: value for key, value in found.items() if key not in ("steps",)}


def preset(run: Path) -> dict[str, object]:
    """The same of a run with nothing chosen but its task, its method and its named preset."""
    config = json.loads((run / "config.json").read_text())
    known = config["task"] if config["task"] in TASKS else None  # a policy of one's own has no preset
    task = resolve_task(known, config["decoder"], config["env_name"])
    named = resolve_preset(config["preset"], config["method"], known)
    both = resolve_settings(task, config["method"], {}, named)
    decoder = named.decoders.get(task.name, task.decoder)
    return {**to_json(both[0]), **to_json(both[1]), "method": config["method"], "decoder": decoder}


def words(found: dict[str, object], less: dict[str, object]) -> str:
    """What is chosen in one and not in the other, as flags."""
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in found.items() if less.get(key, value) != value)


def curve(run: Path) -> dict[int, float]:
    """Mean return of the steered policy at every evaluation on the curve; the frozen one at step 0."""
    points: dict[int, list[float]] = {}
    for row in read_json_lines(run / "eval.jsonl"):
        if row["kind"] == "curve":
            points.setdefault(row["step"], []).append(row["return"])
    return {step: float(np.mean(values)) for step, values in sorted(points.items())}


def last(run: Path, scale: float) -> list[float]:
    """Returns of the last evaluation."""
    return [row["return"] for row in read_json_lines(run / "eval.jsonl") if row["kind"] == "final" and row["scale"] == scale]


def main() -> None:
    """Copy and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of run folders; one is called base")
    parser.add_argument("out", type=Path, help="where the table and what it was made from go")
    arguments = parser.parse_args()
    register()
    finished = {run.parent.name: run.parent for run in sorted(arguments.runs.glob("*/config.json"))}
    base = settings(finished["base"])
    # the order of the table: base first, then by area; a run that was stopped has none, and comes last
    areas = {name: area_under_curve(*map(list, zip(*curve(run).items(), strict=True))) for name, run in finished.items()}
    areas |= {name: math.nan for name, run in finished.items() if not last(run, 1.0)}
    order = sorted(finished, key=lambda name: (name != "base", math.isnan(areas[name]), -areas[name]))
    steps = list(curve(finished["base"]))
    config = json.loads((finished["base"] / "config.json").read_text())
    task, named = config["task"], f"--preset {config['preset']} " if config["preset"] else ""
    seeds = {key: base[key] for key in ("seed", "eval_seed")}
    before = preset(finished["base"])
    chosen = words(base, before | seeds)
    header = ["changed", *(f"{step // 1000}k" for step in steps), "area", "end, 95 % interval of its episodes"]
    lines = [
        f"# {task}: one change at a time",
        "",
        f"`python benchmarks/screen.py RUNS {arguments.out}`, runs by `lpds steer {task} {named}--seed {base['seed']} "
        f"--eval-seed {base['eval_seed']} --steps {steps[-1] // 1000 * 1000} {chosen}".rstrip()
        + "` and what the first column says. Mean return of "
        "the evaluations (20 episodes a point); area: mean height of the curve. ONE seed: a few hundred are chance.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
    ]
    for name in order:
        run = finished[name]
        # another method's defaults are no change, but what the base chose is chosen for it, too
        expected = {**preset(run), **{key: value for key, value in base.items() if before.get(key) != value}}
        own = json.loads((run / "config.json").read_text())["preset"]
        changed = "" if own == config["preset"] else f"--preset {own} " if own else "(no --preset) "
        changed = (changed + words(settings(run), {**expected, **seeds, "method": base["method"]})).strip()
        mean, low, high = bootstrap_mean(last(run, 1.0))
        end = ["stopped", "-"] if math.isnan(mean) else [f"{areas[name]:.0f}", f"{mean:.0f} [{low:.0f}, {high:.0f}]"]
        points = curve(run)
        cells = [f"`{changed}`" if changed else "nothing"]
        cells += [f"{value:.0f}" for value in points.values()] + ["-"] * (len(steps) - len(points))
        lines.append("| " + " | ".join([*cells, *end]) + " |")
        target = arguments.out / name
        target.mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            shutil.copy(run / file, target / file)
    text = "\n".join(lines) + "\n"
    write_atomically(arguments.out / "README.md", text.encode())


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
