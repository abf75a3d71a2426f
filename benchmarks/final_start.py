"""What a rival starts from, untrained, for runs that were made before a run looked at it by itself.

    python benchmarks/final_start.py results/*/{dsrl-*,dppo,idql,dql}/seed*

A method's own actor may do better than the frozen policy before it has learned anything: a chain of all denoising steps, or
a squashed Gaussian, which has less noise than N(0, I). A run of today plays it on the episodes of its last evaluation
(``kind`` "final start" in eval.jsonl). This plays it for runs that lack it, out of the seed that drew the first weights and
the input scaling that is saved with the policy, and adds the rows. The frozen policy has to return what it did in the run.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from lpds.commands.terminal import guarded
from lpds.config import RunSettings
from lpds.envs.build import make_eval_env
from lpds.evaluation import EvalReport, evaluate_policy
from lpds.fields import from_json
from lpds.files import write_atomically
from lpds.log import finite, read_json_lines
from lpds.methods.base import BasePolicy
from lpds.policy import find_decoder
from lpds.registry import METHOD_SETTINGS, resolve
from lpds.run_folder import read_config
from lpds.session import build_learner
from lpds.types import Decoder, Policy

CPU = torch.device("cpu")


@dataclass
class Stage:
    """Where policies are played, each combination of decoder, method and seed of weights once."""

    frozen: dict[Any, EvalReport] = field(default_factory=dict)

    def play(self, policy: Policy, decoder: Decoder, env: str, run: RunSettings, scale: float) -> EvalReport:
        """The episodes of a run's last evaluation."""
        chunk, keep = decoder.spec.action_shape[0], decoder.spec.takes_dict
        lanes = lambda count: make_eval_env(env, count, chunk, keep_dict=keep)  # noqa: E731
        return evaluate_policy(policy, decoder, lanes, episodes=run.final_episodes, seed=run.eval_seed, scale=scale)

    def check_world(self, decoder: Decoder, env: str, run: RunSettings, recorded: list[dict[str, Any]], folder: Path) -> None:
        """Refuse a run whose frozen policy plays otherwise here."""
        key = (decoder.fingerprint, env, run.eval_seed, run.final_episodes)
        if key not in self.frozen:
            self.frozen[key] = self.play(BasePolicy(), decoder, env, run, 0.0)
        was = np.array([row["return"] for row in sorted(recorded, key=lambda row: row["episode"])])
        off = np.abs(self.frozen[key].returns - was)
        if (off > 1e-3 * np.abs(was).max()).sum() > 1:
            raise SystemExit(f"{folder}: the frozen policy returns other than it did: {was.mean()}, now off by {off.max()}")


def add_start(folder: Path, stage: Stage) -> str:
    """Add the rows to one run; a line that says what was found."""
    rows = read_json_lines(folder / "eval.jsonl")
    if any(row["kind"] == "final start" for row in rows):
        return f"{folder}: has them"
    config = read_config(folder)
    run = from_json(RunSettings, config["run"])
    decoder = find_decoder(config["decoder"], None, str(folder), folder)
    settings = from_json(resolve("method", METHOD_SETTINGS, config["method"]), config["settings"])
    torch.set_num_threads(run.threads)
    learner, _ = build_learner(run, config["method"], settings, decoder, CPU)
    start = getattr(learner, "start", None)
    final = [row for row in rows if row["kind"] == "final"]
    if start is None or not final:
        return f"{folder}: {'not finished' if start is not None else 'starts from the frozen policy'}"
    scaling = {key: value for key, value in load_file(folder / "policy" / "policy.safetensors").items() if "scaling." in key}
    if scaling and isinstance(start, torch.nn.Module):
        start.load_state_dict(scaling, strict=False)
    stage.check_world(decoder, config["env"], run, [row for row in final if row["scale"] == 0.0], folder)
    report = stage.play(start, decoder, config["env"], run, 1.0)
    first = {"format_version": final[-1]["format_version"], "step": final[-1]["step"], "kind": "final start"}
    found = [{**first, **finite(row)} for row in report.rows()]
    text = (folder / "eval.jsonl").read_text() + "".join(json.dumps(row, allow_nan=False) + "\n" for row in found)
    write_atomically(folder / "eval.jsonl", text.encode())
    return f"{folder}: {report.returns.mean():.1f}" + (
        "" if np.isnan(report.successes).any() else f", {report.successes.mean():.0%}"
    )


def main() -> None:
    """Go through the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    stage = Stage()
    for folder in parser.parse_args().runs:
        print(add_start(folder, stage), flush=True)


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
