r"""Whether fitted critics know which of a state's chunks are good: their advantages against the returns of later episodes.

    lpds steer hopper --seed 10 --steps 40000 --warmup-steps 39900 --warmup-fits 0 --kept-noises 8 --eval-every 0 \
        --final-episodes 1 --out RUN
    python benchmarks/advantage.py RUN --rows 2000 --out results/advantage/hopper.json

As ``warmup_fits.py``, critics are fitted to the returns to go of a run's first rows, all of them the frozen policy's. The
advantage that they see in what was done, A = Q(s, chunk) - mean_j Q(s, chunk_j) over that chunk and the state's kept ones, all
of them the frozen policy's, is then set against what came of it in later episodes, G - V(s). A critic that knows has a slope of
1; one that tells nothing has a slope of 0, and its advantages, which Delta would climb, are of its own making. The slope's
deviation is by episodes (a sandwich over clusters), since the rows of an episode share their return.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from warmup_fits import DEVIATION, fitted, opened, share_explained, value_of

from lpds.commands.terminal import guarded
from lpds.files import write_json


def clustered_slope(x: Tensor, y: Tensor, cluster: Tensor) -> dict[str, float]:
    """Least squares of y [N] on x [N], with a deviation that lets the rows of a cluster depend on each other."""
    x, y = x - x.mean(), y - y.mean()
    slope = (x * y).sum() / x.square().sum()
    score = torch.zeros(int(cluster.max()) + 1).index_add(0, cluster, x * (y - slope * x))
    deviation = score.square().sum().sqrt() / x.square().sum()
    return {
        "slope": round(float(slope), 3),
        "t": round(float(slope / deviation), 2),
        "correlation": round(float((x * y).mean() / (x.std() * y.std())), 3),
    }


def main() -> None:
    """Fit and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=2000, help="decisions that are fitted: a run's warm-up")
    parser.add_argument("--fits", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=2, help="initialisations of the critics")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = opened(arguments.run, arguments.rows)
    train, test, returns = run.train, run.test, run.returns
    both = torch.cat([run.obs, run.action], 1)
    others = [torch.cat([run.obs[test], chunk], 1) for chunk in run.base[test].unbind(1)]
    found = []
    for seed in range(arguments.seeds):
        ((_, v_net),) = fitted(run.obs, returns, train, run.settings, (arguments.fits,), seed)
        ((_, q_net),) = fitted(both, returns, train, run.settings, (arguments.fits,), seed)
        v, q = value_of(v_net, run.obs[test]), value_of(q_net, both[test])
        mean = torch.stack([q, *(value_of(q_net, inputs) for inputs in others)]).mean(0)
        sides = {"v": v, "q": q, "q_mean_over_chunks": mean}
        shares = {name: share_explained(value, returns[test], returns[train].mean()) for name, value in sides.items()}
        slope = clustered_slope(q - mean, returns[test] - v, run.episode[test])
        found.append({"advantage": slope | {"deviation": round(float((q - mean).std()), 2)}, "explained": shares})
    result = {
        "format_version": 1,
        "task": run.task,
        "fits": arguments.fits,
        "fitted": len(train),
        "held_out": len(test),
        "chunks": 1 + run.base.shape[1],
        "deviation_of_returns": DEVIATION,
        "critics": found,
    }
    print(json.dumps(result))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, result)


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
