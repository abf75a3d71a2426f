"""Do the modes last: k-NN entropy of the actions of learned policies, less the frozen policy's, at the same states.

    python benchmarks/action_entropy.py results/hopper/{lpds,golden-ticket,dsrl-na,dppo} --out results/action-entropy

Each folder holds the runs seed0, seed1 ... of one method on one task. At 64 states of the warm-up, those of the task's
first run that kept so many (a golden ticket keeps four resets), and 128 noises each, the same for all: the mean over states
of the entropy (nats, k = 3) of the first action of the chunk. Intervals are Student's over seeds. What acts by the decoder's
whole chain is set against the untrained chain, too, where a task's ``base+chain`` is among the folders.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lpds
from lpds.commands.terminal import guarded
from lpds.diagnose import SAMPLES, SHOWN, action_entropy, frozen_entropy
from lpds.files import write_atomically, write_json
from lpds.report.read import read_runs
from lpds.run_folder import kept_states
from lpds.stats import crossed_mean


def main() -> None:
    """Estimate and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = {folder: sorted(folder.glob("seed*")) for folder in arguments.folders}
    places: dict[str, tuple[str, torch.Tensor]] = {}
    for run in (run for several in runs.values() for run in several):
        config = json.loads((run / "config.json").read_text())
        states = kept_states(run)
        if config["task"] not in places and states is not None and len(states) == SHOWN:
            places[config["task"]] = (config["decoder"]["fingerprint"], torch.from_numpy(states))
    rows: list[dict[str, Any]] = []
    for folder, several in runs.items():
        found, frozen = [], []
        for run in several:
            learned = lpds.load_policy(run)
            decoder, task = learned.decoder, json.loads((run / "config.json").read_text())["task"]
            if task not in places:
                raise SystemExit(f"no run of {task} that is given keeps {SHOWN} states of the warm-up")
            fingerprint, states = places[task]
            if decoder.fingerprint != fingerprint:
                raise SystemExit(f"{run} steers another decoder than the first run of {task}")
            reference = frozen_entropy(learned.policy, decoder, states)
            frozen.append(reference.entropy)
            found.append(action_entropy(learned.policy, decoder, states, reference) - reference.entropy)
        if not found:
            raise SystemExit(f"{folder} holds no runs")
        mean, *bounds = crossed_mean(np.array(found)[:, None]) if len(found) > 1 else (found[0], None, None)
        row = {"task": task, "method": folder.name, "frozen": frozen[0], "by_seed": found, "difference": [mean, *bounds]}
        chain = "base+chain" if read_runs([several[0]])[0].acts_by_chain else None
        rows.append(row | {"states": len(states), "from": chain})
        print(f"{task} {folder.name}: {mean:+.2f} nats", flush=True)
    write_json(arguments.out / "summary.json", {"format_version": 1, "rows": rows})
    lines = [
        "# Entropy of the actions",
        "",
        f"`python benchmarks/action_entropy.py {' '.join(map(str, arguments.folders))} --out {arguments.out}`",
        "",
        f"k-NN entropy (k = 3, nats) of the first action of the chunk at {SHOWN} states of the warm-up, less that of the",
        f"frozen policy at the same states under the same {SAMPLES} noises; of more than four action dimensions in the frozen",
        "policy's four leading components. Each seed's own in brackets; the interval is Student's over seeds.",
        "",
        "What acts by the decoder's whole chain is set against its untrained chain, too.",
        "",
        "| task | method | frozen | learned less frozen | less the untrained chain |",
        "|---|---|---|---|---|",
    ]
    untrained = {row["task"]: row["difference"][0] for row in rows if row["method"] == "base+chain"}
    for row in rows:
        mean, low, high = row["difference"]
        text = f"{mean:+.2f}" + ("" if low is None else f" [{low:+.2f}, {high:+.2f}]")
        each = ", ".join(f"{value:+.2f}" for value in row["by_seed"])
        own = row["from"] is not None and row["method"] != "base+chain" and row["task"] in untrained
        left = f"{mean - untrained[row['task']]:+.2f}" if own else ""
        lines.append(f"| {row['task']} | {row['method']} | {row['frozen']:.2f} | {text} ({each}) | {left} |")
    write_atomically(arguments.out / "README.md", ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
