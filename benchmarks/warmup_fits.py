"""What critics know after their fits to the warm-up's returns: the share of held-out returns' variance that they explain.

    lpds steer hopper --seed 10 --steps 40000 --warmup-steps 39900 --warmup-fits 0 --eval-every 0 --final-episodes 1 --out RUN
    python benchmarks/warmup_fits.py RUN --rows 2000 --out results/warmup-fits/hopper.json

The run is nearly all warm-up. Critics of the run's size are fitted to the returns to go of its first rows, as a run's own
fits do it, and asked for those of the episodes that came later: Q(s, chunk), a V(s) that does not see the chunk, and a Q
whose output starts at the mean return. Where Q explains no more than V, the fits have told it nothing of actions. Returns of
episodes that were cut off are bootstrapped with the mean.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from lpds.checkpoint import CheckpointStore
from lpds.compact import as_learned
from lpds.files import write_json
from lpds.nn import EnsembleMLP, Scaling
from lpds.policy import load_policy
from lpds.replay import Replay

ASKED = (100, 200, 300, 500, 1000, 2000, 3000)
"""Numbers of fits."""
DEVIATION = 10.0
"""Of the scaled returns, as in a run."""


def episode_of(over: Tensor, lanes: int) -> Tensor:
    """[N] a number for every row's episode; -1 where the recording ends in it."""
    episode = torch.full((len(over),), -1)
    current, found = [-1] * lanes, 0
    for row in range(len(over) - 1, -1, -1):
        if over[row] > 0:
            current[row % lanes], found = found, found + 1
        episode[row] = current[row % lanes]
    return episode


def explained(inputs: Tensor, returns: Tensor, train: Tensor, test: Tensor, settings: dict[str, object]) -> dict[int, float]:
    """1 - MSE / variance on the held-out rows after so many fits."""
    generator = torch.Generator().manual_seed(0)
    net = EnsembleMLP(2, inputs.shape[1], 1, int(str(settings["width"])), int(str(settings["depth"])), generator)
    adam = torch.optim.Adam(net.parameters(), lr=float(str(settings["lr"])))
    spread = (returns[test] - returns[train].mean()).square().mean()
    found = {}
    for fit in range(1, max(ASKED) + 1):
        rows = train[torch.randint(len(train), (256,), generator=generator)]
        loss = (net(inputs[rows]).squeeze(-1) - returns[rows]).square().sum(0).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if fit in ASKED:
            with torch.no_grad():
                value = net(inputs[test]).squeeze(-1).mean(0)
            found[fit] = round(1.0 - float((value - returns[test]).square().mean() / spread), 3)
    return found


def main() -> None:
    """Fit and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=2000, help="decisions that are fitted: a run's warm-up")
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
    mean = float(totals.mean()) / (1.0 - float(discounts.mean()))
    returns = totals + discounts * mean
    episode = episode_of(replay.everything("over"), lanes)
    early = torch.arange(len(replay)) < arguments.rows
    train = ((episode >= 0) & early).nonzero().squeeze(1)
    test = ((episode >= 0) & ~torch.isin(episode, episode[train])).nonzero().squeeze(1)
    returns = returns * DEVIATION / returns[train].std()
    parts = []
    for name in ("obs", "action"):
        scaling, values = Scaling(replay.everything(name).shape[1]), replay.everything(name)
        scaling.calibrate(values[train])
        parts.append(scaling(values))
    result = {
        "format_version": 1,
        "task": config["task"],
        "fitted": len(train),
        "held_out": len(test),
        "v": explained(parts[0], returns, train, test, settings),
        "q": explained(torch.cat(parts, 1), returns, train, test, settings),
        "q_from_the_mean": explained(torch.cat(parts, 1), returns - returns[train].mean(), train, test, settings),
    }
    print(json.dumps(result))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
