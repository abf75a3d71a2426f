r"""Whether fitted critics know which of a state's chunks are good: their advantages against the returns of later episodes.

    lpds steer hopper --seed 10 --steps 40000 --warmup-steps 39900 --warmup-fits 0 --kept-noises 8 --eval-every 0 \
        --final-episodes 1 --out RUN
    python benchmarks/advantage.py RUN --rows 2000 --out results/advantage/hopper.json

As ``warmup_fits.py``, critics are fitted to the returns to go of a run's first rows, all of them the frozen policy's. The
advantage that they see in what was done, A = Q(s, chunk) - mean_j Q(s, chunk_j) over the state's kept chunks of the frozen
policy, is then set against what came of it in later episodes, G - V(s). A critic that knows has a slope of 1; one that tells
nothing has a slope of 0, and its advantages, which Delta would climb, are of its own making. The slope's deviation is by
episodes (a sandwich over clusters), since the rows of an episode share their return.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from warmup_fits import DEVIATION, episode_of

from lpds.checkpoint import CheckpointStore
from lpds.compact import as_learned
from lpds.files import write_json
from lpds.nn import EnsembleMLP, Scaling
from lpds.policy import load_policy
from lpds.replay import Replay

BATCH = 256


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


def fitted(inputs: Tensor, returns: Tensor, train: Tensor, fits: int, settings: dict[str, object], seed: int) -> EnsembleMLP:
    """Two critics of the run's size after so many steps of Adam."""
    generator = torch.Generator().manual_seed(seed)
    net = EnsembleMLP(2, inputs.shape[1], 1, int(str(settings["width"])), int(str(settings["depth"])), generator)
    adam = torch.optim.Adam(net.parameters(), lr=float(str(settings["lr"])))
    for _ in range(fits):
        rows = train[torch.randint(len(train), (BATCH,), generator=generator)]
        loss = (net(inputs[rows]).squeeze(-1) - returns[rows]).square().sum(0).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return net


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
    config = json.loads((arguments.run / "config.json").read_text())
    settings, lanes = config["settings"], config["run"]["num_envs"]
    spec = as_learned(load_policy(arguments.run).decoder).spec
    store = CheckpointStore(arguments.run / "checkpoint")
    _, facts = store.load()
    kept = settings["kept_next"] if settings["target_actions"] == "kept" else 0
    rows = config["run"]["steps"] + lanes
    replay = Replay(spec, rows, settings["kept_noises"], lanes, torch.device("cpu"), kept_next=kept, expected=lanes)
    store.load_replay(facts, replay)
    totals, discounts, _ = replay.returns_to_go()
    returns = totals + discounts * float(totals.mean()) / (1.0 - float(discounts.mean()))
    episode = episode_of(replay.everything("over"), lanes)
    early = torch.arange(len(replay)) < arguments.rows
    train = ((episode >= 0) & early).nonzero().squeeze(1)
    test = ((episode >= 0) & ~torch.isin(episode, episode[train])).nonzero().squeeze(1)
    returns = (returns - returns[train].mean()) * DEVIATION / returns[train].std()
    obs, action, base = (replay.everything(name) for name in ("obs", "action", "base_action"))
    scaled = []
    for values in (obs, action):
        scaling = Scaling(values.shape[1])
        scaling.calibrate(values[train])
        scaled.append(scaling)
    obs, action, base = scaled[0](obs), scaled[1](action), scaled[1](base)
    variance, found = returns[test].var(), []
    for seed in range(arguments.seeds):
        v_net = fitted(obs, returns, train, arguments.fits, settings, seed)
        q_net = fitted(torch.cat([obs, action], 1), returns, train, arguments.fits, settings, seed)
        with torch.no_grad():
            v = v_net(obs[test]).squeeze(-1).mean(0)
            q = q_net(torch.cat([obs[test], action[test]], 1)).squeeze(-1).mean(0)
            each = [q_net(torch.cat([obs[test], chunk], 1)).squeeze(-1).mean(0) for chunk in base[test].unbind(1)]
        mean = torch.stack(each).mean(0)
        explained = {
            name: round(1.0 - float((value - returns[test]).square().mean() / variance), 3)
            for name, value in (("v", v), ("q", q), ("q_mean_over_chunks", mean))
        }
        slope = clustered_slope(q - mean, returns[test] - v, episode[test])
        found.append({"advantage": slope | {"deviation": round(float((q - mean).std()), 2)}, "explained": explained})
    result = {
        "format_version": 1,
        "task": config["task"],
        "fits": arguments.fits,
        "fitted": len(train),
        "held_out": len(test),
        "chunks": base.shape[1],
        "deviation_of_returns": DEVIATION,
        "critics": found,
    }
    print(json.dumps(result))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
