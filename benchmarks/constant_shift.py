"""What a golden ticket is worth as a start of Delta: frozen policies under one constant shift of their noise.

    python benchmarks/constant_shift.py results/{hopper,walker2d}/golden-ticket --deltas 0.5 2 --out results/constant-shift

Each folder holds the golden tickets seed0, seed1 ... of one task. Delta started from a ticket g would be sqrt(delta) g / ||g||:
that with all of the noise, for several delta, beside the frozen policy and the ticket alone, without noise. 50 episodes a
cell on an evaluation seed of its own, the same episodes and the same noise for every cell of a task.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import lpds
from lpds.commands.terminal import guarded
from lpds.envs.build import make_eval_env
from lpds.evaluation import EvalReport, evaluate_policy
from lpds.files import write_atomically, write_json
from lpds.methods.golden_ticket import TicketPolicy
from lpds.methods.learner import LatentPolicy
from lpds.stats import crossed_difference, crossed_mean, share_over_seeds

EVALUATION_SEED = 2000


class Constant(LatentPolicy):
    """``w = eps + shift`` in every state."""

    def __init__(self, shift: Tensor) -> None:
        self.move = shift

    def latent(self, obs: Tensor, eps: Tensor, scale: float) -> Tensor:
        """[B, H, L]."""
        return eps + self.move


def play(run: Path, delta: float, k: float, episodes: int) -> EvalReport:
    """One cell of one ticket; an infinite delta is the whole of it."""
    ticket = lpds.load_policy(run)
    if not isinstance(ticket.policy, TicketPolicy):
        raise SystemExit(f"{run} holds no golden ticket, but {ticket.method}")
    config = json.loads((run / "config.json").read_text())
    spec, noise = ticket.decoder.spec, ticket.policy.ticket
    mask = spec.free_mask()
    if mask is not None:
        noise = noise * mask.view(spec.latent_shape)
    size = 1.0 if math.isinf(delta) else math.sqrt(delta) / float(noise.norm())
    chunk = spec.action_shape[0]
    return evaluate_policy(
        Constant(size * noise),
        ticket.decoder,
        lambda lanes: make_eval_env(config["env"], lanes, chunk, keep_dict=spec.takes_dict),
        episodes=episodes,
        seed=EVALUATION_SEED,
        noise_scale=k,
    )


def main() -> None:
    """Evaluate and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--deltas", type=float, nargs="+", required=True, help="squared norms of the shift")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    cells = [("frozen", 0.0, 1.0), *((f"delta {d:g}", d, 1.0) for d in arguments.deltas), ("ticket, no noise", math.inf, 0.0)]
    rows: list[dict[str, Any]] = []
    for folder in arguments.folders:
        runs = sorted(path.parent for path in folder.glob("seed*/config.json"))
        frozen = np.zeros((1, arguments.episodes))
        for name, delta, k in cells:
            reports = [play(run, delta, k, arguments.episodes) for run in (runs if delta else runs[:1])]
            returns = np.stack([report.returns for report in reports])
            successes = np.stack([report.successes for report in reports])
            rows.append(
                {
                    "runs": str(folder),
                    "cell": name,
                    "return": crossed_mean(returns),
                    "over_frozen": crossed_difference(frozen, returns) if delta else None,
                    "by_seed": returns.mean(1).tolist(),
                    "success": None if np.isnan(successes).any() else share_over_seeds(list(successes)),
                }
            )
            frozen = frozen if delta else returns
            print(json.dumps(rows[-1]), flush=True)
        write_json(arguments.out / "summary.json", {"format_version": 1, "episodes": arguments.episodes, "rows": rows})
    written = page(rows, [name for name, *_ in cells], arguments)
    write_atomically(arguments.out / "README.md", written.encode())


def page(rows: list[dict[str, Any]], names: list[str], arguments: argparse.Namespace) -> str:
    """The table, with the command that made it."""
    deltas = " ".join(format(delta, "g") for delta in arguments.deltas)
    folders = " ".join(map(str, arguments.folders))
    lines = [
        "# A golden ticket as a constant shift",
        "",
        f"`python benchmarks/constant_shift.py {folders} --deltas {deltas} --out {arguments.out}`: {arguments.episodes} "
        f"episodes a ticket on evaluation seed {EVALUATION_SEED}; 95 % intervals over episodes and tickets; in brackets the "
        "tickets, then the paired gain over the frozen policy.",
        "",
        "| tickets | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for folder in arguments.folders:
        told = [cell(row) for row in rows if row["runs"] == str(folder)]
        lines.append(f"| {folder} | " + " | ".join(told) + " |")
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any]) -> str:
    """One cell of the table."""
    form = "{:.0f}" if abs(row["return"][0]) >= 10.0 else "{:.2f}"
    text = f"{form} [{form}, {form}]".format(*row["return"])
    if row["success"] is not None:
        text = "{:.0%} [{:.0%}, {:.0%}], return ".format(*row["success"]) + text
    if len(row["by_seed"]) > 1:
        text += f" ({', '.join(form.format(mean) for mean in row['by_seed'])})"
    if row["over_frozen"] is not None:
        form = form.replace(":", ":+")
        text += f"; {form} [{form}, {form}]".format(*row["over_frozen"])
    return text


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
