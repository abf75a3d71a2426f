"""Shared bits of the tests: an environment that follows a script, a cheap decoder, a run small enough to repeat."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from safetensors.torch import load_file

from lpds.decoders.callable import CallableDecoder
from lpds.decoders.wrap import wrap_decoder
from lpds.log import read_json_lines
from lpds.types import LatentSpec

torch.set_num_threads(1)
CPU = torch.device("cpu")


class Scripted(gymnasium.Env[np.ndarray, np.ndarray]):
    """Episode e lasts as long as the script says; each observation is (seed mod 1000, step) and each reward is scripted.

    ``episodes`` holds (rewards, ends) with ends ``"terminated"``, ``"truncated"`` or ``"both"``. Stepping on after the
    end is an error of the caller and fails loudly.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, episodes: Sequence[tuple[Sequence[float], str]]) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.script = list(episodes)
        self.number, self.at, self.done = -1, 0, True
        self.seeds: list[int | None] = []
        self.actions: list[np.ndarray] = []

    def _obs(self) -> np.ndarray:
        return np.asarray([(self.seeds[-1] or 0) % 1000, self.at], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.number, self.at, self.done = self.number + 1, 0, False
        return self._obs(), {}

    def step(self, action: np.ndarray):
        if self.done:
            raise AssertionError("stepped on after the end of an episode")
        self.actions.append(action.copy())
        rewards, end = self.script[self.number % len(self.script)]
        reward = rewards[self.at]
        self.at += 1
        self.done = self.at == len(rewards)
        success = {"success": reward > 0.5}
        return self._obs(), reward, self.done and end != "truncated", self.done and end != "terminated", success


def identity_decoder(
    latent: tuple[int, int] = (1, 2), obs: int = 2, *, free: tuple[bool, ...] | None = None, name: str = "identity"
) -> CallableDecoder:
    """The action is the latent."""
    return wrap_decoder(lambda s, w: w, obs_shape=(obs,), latent_shape=latent, action_shape=latent, name=name, free=free)


def toy_decoder(name: str = "linear") -> CallableDecoder:
    """Walks outwards in the four-mode plane with the latent as its wish; chunk 4."""
    return wrap_decoder(
        lambda s, w: torch.tanh(3.0 * s.unsqueeze(1) + w + w.mean(1, keepdim=True)),
        obs_shape=(2,),
        latent_shape=(4, 2),
        action_shape=(4, 2),
        name=name,
    )


SPEC = LatentSpec((2,), (1, 2), (1, 2))

TINY: dict[str, Any] = {
    "steps": 700,
    "warmup_steps": 200,
    "warmup_fits": 5,
    "batch_size": 16,
    "width": 16,
    "depth": 1,
    "eval_every": 300,
    "eval_episodes": 3,
    "final_episodes": 3,
    "checkpoint_every": 150,
    "device": "cpu",
    "quiet": True,
}
"""``lpds.steer("toy", decoder=toy_decoder(), **TINY)``: some hundred updates, several checkpoints, one or two seconds."""


def comparable(folder: Path) -> dict[str, Any]:
    """Everything of a finished run that must be the same bits, whatever happened to it on the way."""

    def rows(name: str) -> list[dict[str, Any]]:
        timing = {"wall_s", "env_steps_per_s", "updates_per_s"}
        return [{k: v for k, v in row.items() if k not in timing} for row in read_json_lines(folder / name)]

    def digest(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    checkpoint = folder / "checkpoint"
    facts = json.loads((checkpoint / "checkpoint.json").read_text())
    segments = [load_file(checkpoint / segment["file"]) for segment in facts["replay"]]
    replay = {name: torch.cat([segment[name] for segment in segments]).numpy().tobytes() for name in segments[0]}
    passing = {"wall_s", "log_sizes", "replay"}  # sizes of the logs vary with the digits of a time
    return {
        "weights": digest((folder / "policy" / "policy.safetensors").read_bytes()),
        "policy": json.loads((folder / "policy" / "policy.json").read_text()),
        "config": json.loads((folder / "config.json").read_text()),
        "passport": json.loads((folder / "passport.json").read_text()),
        "summary": json.loads((folder / "summary.json").read_text()),
        "facts": {key: value for key, value in facts.items() if key not in passing},
        "replay": {name: digest(content) for name, content in replay.items()},
        **{name: rows(f"{name}.jsonl") for name in ("metrics", "episodes", "eval")},
    }


def assert_same_run(a: Path, b: Path) -> None:
    """Compare two finished runs and name the first part that differs."""
    first, second = comparable(a), comparable(b)
    for part, value in first.items():
        assert value == second[part], part
