"""The four-mode toy: a point in the plane, four goals, nothing to choose between them.

The data head for any of the four goals, the nearer the likelier, so near the centre a frozen policy draws a new goal with
every decision and dithers; each crossing out of the centre commits it. Every step costs the same, so what pays is to
commit early and to walk straight, to any goal. The optimal policy is therefore free to keep all four modes, and a
method that drops some does it without need.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

GOALS = np.asarray([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
"""[4, 2], the goals' centres."""
GOAL_RADIUS = 0.15
STEP = 0.08
"""Longest step of one primitive action along an axis."""
TIME_LIMIT = 100
COMMITMENT = 3.0
"""How strongly the data prefer near goals: probability of a goal is proportional to exp(-COMMITMENT * distance)."""
WIND = 0.02
"""Standard deviation of the demonstrator's noise per primitive step, in action units."""


class FourMode(gymnasium.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """Position [2] in, velocity [2] in [-1, 1] out; -1 a step until a goal is reached, which ends the episode."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own contract

    def __init__(self, start_spread: float = 0.02) -> None:
        """Build the plane.

        Args:
            start_spread: standard deviation of the start around the centre.
        """
        self.observation_space = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._spread = start_spread
        self._position = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start near the centre."""
        super().reset(seed=seed)
        self._position = self._spread * self.np_random.standard_normal(2)
        return self._position.astype(np.float32), {}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move; -1, and 0 with success on reaching a goal."""
        self._position = np.clip(self._position + STEP * np.asarray(action, np.float64), -2.0, 2.0)
        reached = bool((np.linalg.norm(GOALS - self._position, axis=1) < GOAL_RADIUS).any())
        reward = 0.0 if reached else -1.0
        return self._position.astype(np.float32), reward, reached, False, {"success": reached}


def make_four_mode() -> gymnasium.Env[Any, Any]:
    """The toy with its time limit."""
    return gymnasium.wrappers.TimeLimit(FourMode(), TIME_LIMIT)


def mode_of(position: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Index [N] of the goal that final positions [N, 2] lie in, -1 for none."""
    distance = np.linalg.norm(position[:, None] - GOALS[None], axis=2)
    nearest = distance.argmin(1)
    return np.where(distance[np.arange(len(position)), nearest] < GOAL_RADIUS, nearest, -1)


def demonstrate(
    decisions: int, chunk: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Draw independent demonstrated chunks: a state anywhere in reach, a goal by nearness, straight steps towards it.

    Args:
        decisions: number of chunks M.
        chunk: T.
        rng: source of all draws.

    Returns:
        States [M * T, 2] and actions [M * T, 2], the steps of each chunk in order.
    """
    radius = 1.15 * np.sqrt(rng.uniform(size=decisions))
    angle = rng.uniform(0.0, 2.0 * np.pi, size=decisions)
    position = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    distance = np.linalg.norm(position[:, None] - GOALS[None], axis=2)
    logits = -COMMITMENT * distance
    goal = GOALS[(logits + rng.gumbel(size=logits.shape)).argmax(1)]
    states, actions = np.empty((decisions, chunk, 2)), np.empty((decisions, chunk, 2))
    for step in range(chunk):
        way = goal - position
        # full speed along the straight line until the goal is within one step
        action = way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), STEP)
        action = np.clip(action + WIND / STEP * rng.standard_normal(action.shape), -1.0, 1.0)
        states[:, step], actions[:, step] = position, action
        position = position + STEP * action
    return states.reshape(-1, 2).astype(np.float32), actions.reshape(-1, 2).astype(np.float32)
