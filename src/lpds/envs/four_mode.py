"""The four-mode toy: a point in the plane, four goals, nothing to choose between them.

The data are undecided: within a core about the centre they turn back towards the goals on the other side, outside it they
head for the near ones, the more firmly the farther out. A frozen policy that draws a goal anew with every decision
therefore dithers in the core until chance carries it out, and only then commits. Every step costs the same, so what pays
is to commit at once and to walk straight, to any goal: a policy may keep all four modes and be as good as one that keeps
one. What it takes to leave the core is a push of a certain size, and that is what the trust region rations.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

GOALS = np.asarray([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
"""[4, 2], the goals' centres."""
GOAL_RADIUS = 0.15
STEP = 0.05
"""Longest step of one primitive action along an axis."""
TIME_LIMIT = 400
CORE = 0.35
"""Radius within which the data prefer the goals on the other side."""
COMMITMENT = 6.0
"""How firmly the data choose: at distance r of the centre, the probability of a goal at distance d is proportional to
exp(-COMMITMENT * (r - CORE) * d)."""
REACH = 1.15
"""The data start within this distance of the centre."""
WIND = 0.2
"""Standard deviation of the demonstrator's noise, in action units."""


class FourMode(gymnasium.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """Position [2] in, velocity [2] in [-1, 1] out; -1 a step until a goal is reached, which ends the episode."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - Gymnasium's own contract

    def __init__(self, start_spread: float = 0.02, render_mode: str | None = None) -> None:
        """Build the plane.

        Args:
            start_spread: standard deviation of the start around the centre.
            render_mode: ``"rgb_array"`` to draw the goals and the way since the reset, or nothing.
        """
        self.render_mode = render_mode
        self._way: list[npt.NDArray[np.float64]] = []
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
        self._way = [self._position]
        return self._position.astype(np.float32), {}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move; -1, and 0 with success on reaching a goal."""
        self._position = np.clip(self._position + STEP * np.asarray(action, np.float64), -2.0, 2.0)
        if self.render_mode is not None:
            self._way.append(self._position)
        reached = bool((np.linalg.norm(GOALS - self._position, axis=1) < GOAL_RADIUS).any())
        reward = 0.0 if reached else -1.0
        return self._position.astype(np.float32), reward, reached, False, {"success": reached}

    def render(self) -> npt.NDArray[np.uint8] | None:
        """The plane from above: the goals, the core, the way walked, and the point."""
        return None if self.render_mode is None else _draw(np.asarray(self._way))


def make_four_mode(render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """The toy with its time limit."""
    return gymnasium.wrappers.TimeLimit(FourMode(render_mode=render_mode), TIME_LIMIT)


def _draw(way: npt.NDArray[np.float64], pixels: int = 320, reach: float = 1.3) -> npt.NDArray[np.uint8]:
    """Draw a way [K, 2] seen from above, as [pixels, pixels, 3]."""
    image = np.full((pixels, pixels, 3), 250, np.uint8)
    axis = np.linspace(-reach, reach, pixels)
    plane = np.stack(np.meshgrid(axis, -axis), axis=-1)
    image[np.abs(np.linalg.norm(plane, axis=-1) - CORE) < reach / pixels] = (200, 200, 205)
    for goal in GOALS:
        image[np.linalg.norm(plane - goal, axis=-1) < GOAL_RADIUS] = (168, 216, 178)
    dense = np.linspace(way[:-1], way[1:], 12).reshape(-1, 2)
    for point, radius, colour in [*((point, 0.008, (52, 101, 184)) for point in dense), (way[-1], 0.035, (190, 40, 40))]:
        at = np.clip((point * (1, -1) / reach + 1.0) / 2.0 * (pixels - 1), 0, pixels - 1)
        size = max(1, round(radius / reach * pixels / 2.0))
        x, y = np.round(at).astype(int)
        image[max(0, y - size) : y + size + 1, max(0, x - size) : x + size + 1] = colour
    return image


def mode_of(position: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Index [N] of the goal that final positions [N, 2] lie in, -1 for none."""
    distance = np.linalg.norm(position[:, None] - GOALS[None], axis=2)
    nearest = distance.argmin(1)
    return np.where(distance[np.arange(len(position)), nearest] < GOAL_RADIUS, nearest, -1)


def demonstrate(
    decisions: int, chunk: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Draw demonstrated chunks: a state within reach, a goal, straight steps towards it; and their three quarter turns.

    The turns make the data as symmetric as the plane, so that no goal is preferred by the chance of the draw.

    Args:
        decisions: number of chunks M, a multiple of four.
        chunk: T.
        rng: source of all draws.

    Returns:
        States [M * T, 2] and actions [M * T, 2], the steps of each chunk in order.

    Raises:
        ValueError: M is not a multiple of four.
    """
    if decisions % 4:
        raise ValueError(f"demonstrations come in fours, one for each quarter turn: {decisions} is not a multiple of 4")
    count = decisions // 4
    radius = REACH * rng.uniform(size=(count, 1))
    angle = rng.uniform(0.0, 2.0 * np.pi, size=count)
    position = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    distance = np.linalg.norm(position[:, None] - GOALS[None], axis=2)
    logits = -COMMITMENT * (radius - CORE) * distance
    goal = GOALS[(logits + rng.gumbel(size=logits.shape)).argmax(1)]
    states, actions = np.empty((count, chunk, 2)), np.empty((count, chunk, 2))
    for step in range(chunk):
        way = goal - position
        # full speed along the straight line until the goal is within one step
        action = way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), STEP)
        action = np.clip(action + WIND * rng.standard_normal(action.shape), -1.0, 1.0)
        states[:, step], actions[:, step] = position, action
        position = position + STEP * action
    return _quarter_turns(states), _quarter_turns(actions)


def _quarter_turns(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """[n, T, 2] and its turns by 90, 180 and 270 degrees, as [4 n T, 2]."""
    x, y = vectors[..., 0], vectors[..., 1]
    turns = [vectors, np.stack([-y, x], -1), -vectors, np.stack([y, -x], -1)]
    return np.concatenate(turns).reshape(-1, 2).astype(np.float32)
