"""Do resets let LP-DS use more updates a decision? Both critics begin anew every so many updates, the replay stays.

    python benchmarks/resets.py hopper --out runs/screen/hopper-resets/every5000 --reset-every 5000 --updates-per-decision 2.5
    python benchmarks/screen.py runs/screen/hopper-resets results/screen/hopper-resets

The remedy against critics that too many updates have spoilt (Nikishin et al., ICML 2022; D'Oro et al., ICLR 2023). Delta stays,
and waits for ``--reset-hold`` updates after each reset, in which the new critics fit it; so do the scale s, alpha and the
slow Delta.
A study, no method of the package: its runs can not be resumed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lpds
from lpds import tasks
from lpds.commands.terminal import guarded
from lpds.config import LPDSSettings, Task
from lpds.methods.lpds import LPDS
from lpds.methods.state import adam
from lpds.nn import EnsembleMLP, polyak
from lpds.registry import METHOD_SETTINGS, METHODS
from lpds.types import Batch, Metrics

NAME = "lpds-resets"


@dataclass(frozen=True)
class ResetSettings(LPDSSettings):
    """Those of LP-DS, and when its critics begin anew."""

    reset_every: int = 0
    """Updates of Delta between two resets; 0: never."""
    reset_hold: int = 1_000
    """Updates of the critics alone after each."""


class ResettingLPDS(LPDS):
    """LP-DS whose critics begin anew."""

    def __init__(self, settings: ResetSettings, decoder: Any, *, generator: torch.Generator, device: torch.device) -> None:
        super().__init__(settings, decoder, generator=generator, device=device)
        self.resets, self._hold, self._fresh = settings, 0, generator

    def update(self, batch: Batch, noise: dict[str, Tensor], *, critics_only: bool = False) -> Metrics:
        """As LP-DS's; while Delta waits, equations 2 and 3 at Delta as it is."""
        every = self.resets.reset_every
        if self._hold:
            self._hold -= 1
            obs = self.online.scaling(batch.obs)
            metrics = self._td(batch, obs, noise.get("next")) | self._distill(batch, obs.detach(), noise)
            polyak(self.slow, self.fast, self.settings.tau)
            return metrics
        metrics = super().update(batch, noise, critics_only=critics_only)
        if every and not critics_only and int(self.region.ascents) % every == 0:
            self._begin_anew()
        return metrics

    def _begin_anew(self) -> None:
        c = self.settings
        for critic in (self.q_action, self.q_latent):
            new = EnsembleMLP(c.critics, critic.inputs, 1, c.width, c.depth, self._fresh, c.activation)
            critic.load_state_dict(new.state_dict())
        self.q_slow.load_state_dict(self.q_action.state_dict())
        self.adam_action = adam(torch.nn.ModuleList([self.q_action, self.online.scaling]), c.lr)
        self.adam_latent = adam(self.q_latent, c.lr)
        self._hold = self.resets.reset_hold


def register() -> None:
    """Let ``lpds.steer`` know the study's method, with LP-DS's settings of every task."""
    METHODS[NAME], METHOD_SETTINGS[NAME] = f"{Path(__file__).stem}:ResettingLPDS", f"{Path(__file__).stem}:ResetSettings"
    for task in vars(tasks).values():
        if isinstance(task, Task) and "lpds" in task.method:
            task.method[NAME] = task.method["lpds"]


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=10, help="none that results/ reports")
    parser.add_argument("--eval-seed", type=int, default=1_000)
    parser.add_argument("--updates-per-decision", type=float, default=1.0)
    parser.add_argument("--reset-every", type=int, default=0)
    parser.add_argument("--reset-hold", type=int, default=1_000)
    chosen = vars(parser.parse_args())
    register()
    lpds.steer(chosen.pop("task"), method=NAME, **chosen)


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
