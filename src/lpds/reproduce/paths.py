"""Roll-outs of the four-mode toy with every position kept, and what is measured on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch

from lpds.envs.build import make_eval_env
from lpds.envs.chunk import ChunkedVectorEnv
from lpds.envs.four_mode import GOAL_RADIUS, GOALS, make_four_mode, mode_of
from lpds.evaluation import EvalReport, evaluate_policy
from lpds.metrics import knn_entropy
from lpds.random import normal
from lpds.types import Decoder, Policy

Array = npt.NDArray[np.float64]

COVERED = 0.05
"""Share of the roll-outs from which a mode counts as covered."""
PROBE_RADIUS = 0.05
"""Distance from the centre of the states at which the entropy of the first action is taken."""
PROBE_STATES = 8
PROBE_NOISES = 512


class PathRecorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps the positions of every episode, from the reset on, one a primitive step."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.paths: list[list[Array]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a path."""
        obs, info = self.env.reset(seed=seed, options=options)
        self.paths.append([np.asarray(obs, np.float64)])
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Add a position."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.paths[-1].append(np.asarray(obs, np.float64))
        return obs, reward, terminated, truncated, info


@dataclass(frozen=True)
class Rollouts:
    """E episodes of one policy in the toy."""

    report: EvalReport
    paths: list[Array]
    """E of [k + 1, 2], the positions from the start on."""
    modes: npt.NDArray[np.int64]
    """[E], the goal reached, -1 for none."""
    entropy: float
    """Of the first action near the centre, in nats."""
    chunk: int
    """T, primitive steps of a whole decision."""

    @property
    def ratios(self) -> Array:
        """[E], length of the path over the straight line."""
        return np.asarray([path_ratio(path) for path in self.paths])

    @property
    def shares(self) -> Array:
        """[4], share of the roll-outs that ended in each goal."""
        return np.asarray([(self.modes == goal).mean() for goal in range(len(GOALS))])


def roll_out(policy: Policy, decoder: Decoder, *, episodes: int, seed: int, scale: float = 1.0) -> Rollouts:
    """Run the toy; episode e and its noise depend on (seed, e) alone, whatever the policy.

    Args:
        policy: chooses latents.
        decoder: frozen.
        episodes: E.
        seed: of the evaluation stream.
        scale: s of ``w = eps + s Delta``; 0 is the frozen policy.

    Returns:
        The episodes, in the order of their numbers.
    """
    lanes: list[PathRecorder] = []

    def recorded() -> PathRecorder:
        lanes.append(PathRecorder(make_four_mode()))
        return lanes[-1]

    chunk = decoder.spec.action_shape[0]

    def make_lanes(count: int) -> ChunkedVectorEnv:
        return make_eval_env(recorded, count, chunk)

    report = evaluate_policy(policy, decoder, make_lanes, episodes=episodes, seed=seed, scale=scale)
    # episode j * N + i is the j-th of lane i
    paths = [np.stack(lanes[episode % len(lanes)].paths[episode // len(lanes)]) for episode in range(episodes)]
    return Rollouts(report, paths, mode_of(report.final_obs), centre_entropy(policy, decoder, scale), chunk)


def path_ratio(path: Array) -> float:
    """Length of a path over the straight line.

    The straight line is the one from the start to the end of the path, and not less than the way from the start to the
    rim of the nearest goal, so that one who dithers and comes back to where he began is not divided by nothing.

    Args:
        path: [k + 1, 2] positions.

    Returns:
        1 for a straight way to a goal, more for any other.
    """
    length = float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
    rim = float(np.linalg.norm(GOALS - path[0], axis=1).min()) - GOAL_RADIUS
    return length / max(float(np.linalg.norm(path[-1] - path[0])), rim)


def mode_entropy(shares: Array) -> float:
    """Entropy of the modes among the roll-outs that reached one, in nats: log 4 for all alike, 0 for one."""
    p = np.asarray(shares, np.float64)
    if p.sum() == 0.0:
        return 0.0
    p = p[p > 0.0] / p.sum()
    return abs(float((p * np.log(p)).sum()))


def centre_entropy(policy: Policy, decoder: Decoder, scale: float = 1.0) -> float:
    """k-NN entropy of the first action of the chunk, in nats, the mean over states on a small circle about the centre.

    States and noises are the same for every policy.
    """
    angle = torch.arange(PROBE_STATES) * (2.0 * math.pi / PROBE_STATES)
    states = PROBE_RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    eps = torch.from_numpy(normal("probe", 11, shape=(PROBE_NOISES, policy.draws, *decoder.spec.latent_shape)))
    rows = states.repeat_interleave(PROBE_NOISES, 0)
    with torch.no_grad():
        action = policy.act(decoder, rows, eps.repeat(PROBE_STATES, 1, 1, 1), scale).action
        first = action[:, 0].unflatten(0, (PROBE_STATES, PROBE_NOISES))
    return float(np.mean([knn_entropy(samples) for samples in first.numpy()]))
