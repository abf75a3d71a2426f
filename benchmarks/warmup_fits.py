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
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lpds.checkpoint import CheckpointStore
from lpds.commands.terminal import guarded
from lpds.compact import as_learned
from lpds.files import write_json
from lpds.nn import EnsembleMLP, Scaling
from lpds.policy import load_policy
from lpds.replay import Replay

ASKED = (100, 200, 300, 500, 1000, 2000, 3000)
"""Numbers of fits."""
BATCH = 256
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


def fitted(
    inputs: Tensor, returns: Tensor, train: Tensor, settings: dict[str, object], asked: Sequence[int], seed: int = 0
) -> Iterator[tuple[int, EnsembleMLP]]:
    """Two critics of the run's size, after every number of fits that is asked for."""
    generator = torch.Generator().manual_seed(seed)
    net = EnsembleMLP(2, inputs.shape[1], 1, int(str(settings["width"])), int(str(settings["depth"])), generator)
    adam = torch.optim.Adam(net.parameters(), lr=float(str(settings["lr"])))
    for fit in range(1, max(asked) + 1):
        rows = train[torch.randint(len(train), (BATCH,), generator=generator)]
        loss = (net(inputs[rows]).squeeze(-1) - returns[rows]).square().sum(0).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if fit in asked:
            yield fit, net


@torch.no_grad()
def value_of(net: EnsembleMLP, inputs: Tensor) -> Tensor:
    """[N], the mean of its members."""
    value: Tensor = net(inputs).squeeze(-1).mean(0)
    return value


def share_explained(value: Tensor, returns: Tensor, about: Tensor) -> float:
    """1 - MSE / the mean square of the returns [N] about a value."""
    return round(1.0 - float((value - returns).square().mean() / (returns - about).square().mean()), 3)


def explained(inputs: Tensor, returns: Tensor, train: Tensor, test: Tensor, settings: dict[str, object]) -> dict[int, float]:
    """Of the held-out rows, about the mean of those that are fitted, after so many fits."""
    return {
        fit: share_explained(value_of(net, inputs[test]), returns[test], returns[train].mean())
        for fit, net in fitted(inputs, returns, train, settings, ASKED)
    }


@dataclass(frozen=True)
class Warmup:
    """The rows of a run that is nearly all warm-up: scaled inputs, scaled returns, which are fitted and which asked for."""

    task: str
    settings: dict[str, object]
    obs: Tensor
    action: Tensor
    base: Tensor
    """[N, M, T * A]: the kept chunks, scaled as ``action``."""
    returns: Tensor
    """About the mean of those that are fitted, in units of which their deviation is :data:`DEVIATION`."""
    mean: float
    """What was taken off."""
    episode: Tensor
    train: Tensor
    test: Tensor


def opened(run: Path, rows: int) -> Warmup:
    """Read a run whose first rows are to be fitted."""
    config = json.loads((run / "config.json").read_text())
    settings, lanes = config["settings"], config["run"]["num_envs"]
    spec = as_learned(load_policy(run).decoder).spec
    store = CheckpointStore(run / "checkpoint")
    _, facts = store.load()
    kept = settings["kept_next"] if settings["target_actions"] == "kept" else 0
    capacity = config["run"]["steps"] + lanes
    replay = Replay(spec, capacity, settings["kept_noises"], lanes, torch.device("cpu"), kept_next=kept, expected=lanes)
    store.load_replay(facts, replay)
    totals, discounts, _ = replay.returns_to_go()
    returns = totals + discounts * float(totals.mean()) / (1.0 - float(discounts.mean()))
    episode = episode_of(replay.everything("over"), lanes)
    train = ((episode >= 0) & (torch.arange(len(replay)) < rows)).nonzero().squeeze(1)
    test = ((episode >= 0) & ~torch.isin(episode, episode[train])).nonzero().squeeze(1)
    returns = returns * DEVIATION / returns[train].std()
    mean = float(returns[train].mean())
    obs, action = (replay.everything(name) for name in ("obs", "action"))
    scale_obs, scale_action = Scaling(obs.shape[1]), Scaling(action.shape[1])
    scale_obs.calibrate(obs[train])
    scale_action.calibrate(action[train])
    base = scale_action(replay.everything("base_action"))
    return Warmup(
        config["task"], settings, scale_obs(obs), scale_action(action), base, returns - mean, mean, episode, train, test
    )


def main() -> None:
    """Fit and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=2000, help="decisions that are fitted: a run's warm-up")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = opened(arguments.run, arguments.rows)
    both, returns = torch.cat([run.obs, run.action], 1), run.returns + run.mean
    asked = (run.train, run.test, run.settings)
    result = {
        "format_version": 1,
        "task": run.task,
        "fitted": len(run.train),
        "held_out": len(run.test),
        "v": explained(run.obs, returns, *asked),
        "q": explained(both, returns, *asked),
        "q_from_the_mean": explained(both, run.returns, *asked),
    }
    print(json.dumps(result))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, result)


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
