"""Arms under OSC_POSE that go from way-point to way-point, their tools pointing down."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Parts = Mapping[str, npt.NDArray[np.float64]]
"""What robosuite observes, by its names."""
Place = Callable[[Parts], Array]
"""Where the gripper shall be, world coordinates [3]."""
Turn = Callable[[Parts, float], float]
"""By how much the tool shall turn about the vertical, given its heading (unwrapped, 0 at the reset)."""
Condition = Callable[[Parts], bool]
"""What an arm waits for: where a thing is, what the other arm does."""

OPEN, CLOSED = -1.0, 1.0
STEP, TWIST = 0.05, 0.5
"""What an action of 1 asks for: metres and radians (``output_max`` of OSC_POSE)."""
TREMOR_MEMORY = 0.8
"""Correlation of the tremor from one step to the next."""
TURNED = 0.08
"""Radians within which a turn is done."""
TURN_LIMITS = (-1.9, 2.4)
"""Headings that the Panda's last joint reaches from where it starts."""


@dataclass(frozen=True)
class Waypoint:
    """One phase: go there, turn so, hold the gripper so, until near enough for long enough."""

    place: Place
    gripper: float
    turn: Turn | None = None
    """None keeps the heading."""
    tolerance: float = 0.02
    """Metres; infinite for a phase that only takes time."""
    least: int = 1
    most: int = 60
    """Steps after which the next phase begins anyway."""
    pace: float = 1.0
    """Share of the expert's own speed; below 1 where care is needed, for tremor as well."""
    insist: bool = False
    """Add an integral term, for phases that need the last millimetres."""
    until: Condition | None = None
    """The phase lasts until this holds too, beyond ``most`` if need be: how one arm waits for another."""
    stage: str = ""
    """What begins here, for an expert that takes over in the middle; mostly empty."""


@dataclass(frozen=True)
class Manner:
    """How an episode is moved, drawn once for each."""

    speed: float = 1.0
    """Largest component of a translation, in actions."""
    tremor: float = 0.0
    """Standard deviation of the correlated noise on translation and rotation, in actions."""


@dataclass(frozen=True)
class Plan:
    """The way-points of an episode and which of the task's ways they follow."""

    waypoints: Sequence[Waypoint]
    mode: int
    others: Sequence[Sequence[Waypoint]] = ()
    """Way-points of the other arms."""
    begin: Sequence[str] = ()
    """The stage at which each arm begins; empty from the first way-point."""

    @property
    def arms(self) -> list[Sequence[Waypoint]]:
        """The way-points of every arm."""
        return [self.waypoints, *self.others]


class Script:
    """An arm's state machine."""

    def __init__(self, plan: Plan, manner: Manner, rng: np.random.Generator, arm: int = 0, start: Parts | None = None) -> None:
        """Stand before the first way-point, or that of the stage at which the plan begins.

        Args:
            plan: where to go.
            manner: and how.
            rng: draws the tremor.
            arm: whose way-points to follow and observations to read.
            start: what was observed at the reset, where the script begins later; headings count from there.
        """
        self.mode = plan.mode
        self._waypoints, self._manner, self._rng, self._arm = plan.arms[arm], manner, rng, arm
        self._phase, self._steps = 0, 0
        if plan.begin:
            self._phase = [point.stage for point in self._waypoints].index(plan.begin[arm])
        self._heading = 0.0  # of less than half a turn, as the joint's limits are
        self._angle = math.nan if start is None else fingers(start, arm)
        self._tremor, self._integral = np.zeros(6), np.zeros(3)

    @property
    def phase(self) -> int:
        """Number of the way-point under way."""
        return self._phase

    def act(self, parts: Parts) -> tuple[Array, Array]:
        """Move on to the next phase where this one is done.

        Returns:
            An action [7] in [-1, 1], and what was meant by it, without the tremor.
        """
        now = self._waypoints[self._phase]
        hand = rotation(parts[f"robot{self._arm}_eef_quat"])
        self._follow_heading(hand)
        away = now.place(parts) - parts[f"robot{self._arm}_eef_pos"]
        turn = 0.0 if now.turn is None else now.turn(parts, self._heading)
        self._integral = np.clip(self._integral + 0.1 * away, -0.04, 0.04) if now.insist else np.zeros(3)
        # the tool's axis back to straight down, and the turn about the vertical
        twist = np.cross(hand[:, 2], [0.0, 0.0, -1.0]) + np.array([0.0, 0.0, turn])
        speed = self._manner.speed * now.pace
        pose = np.concatenate([(away + self._integral) / STEP, twist / TWIST])
        fresh = self._rng.standard_normal(6) * self._manner.tremor
        self._tremor = TREMOR_MEMORY * self._tremor + math.sqrt(1 - TREMOR_MEMORY**2) * fresh
        meant = np.append(np.clip(pose, -speed, speed), now.gripper)
        action = meant + np.append(now.pace * self._tremor, 0.0)
        self._steps += 1
        near = float(np.linalg.norm(away)) < now.tolerance and abs(turn) < TURNED and self._steps >= now.least
        done = (near or self._steps >= now.most) and (now.until is None or now.until(parts))
        if done and self._phase + 1 < len(self._waypoints):
            self._phase, self._steps, self._integral = self._phase + 1, 0, np.zeros(3)
        return np.clip(action, -1.0, 1.0), np.clip(meant, -1.0, 1.0)

    def _follow_heading(self, hand: Array) -> None:
        angle = math.atan2(hand[1, 1], hand[0, 1])  # the fingers close along the hand's y
        if not math.isnan(self._angle):
            self._heading += wrapped(angle - self._angle)
        self._angle = angle


def draw_manner(rng: np.random.Generator, tremor: float) -> Manner:
    """Draw how an episode is moved: speed 0.7 to 1, tremor up to a largest one."""
    return Manner(speed=float(rng.uniform(0.7, 1.0)), tremor=float(rng.uniform(0.0, tremor)))


def rotation(quaternion: Array) -> Array:
    """Matrix [3, 3] of a quaternion (x, y, z, w)."""
    x, y, z, w = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def yaw(quaternion: Array) -> float:
    """Heading of a body's x axis about the vertical."""
    matrix = rotation(quaternion)
    return math.atan2(matrix[1, 0], matrix[0, 0])


def fingers(parts: Parts, arm: int = 0) -> float:
    """Angle about the vertical along which the fingers close."""
    matrix = rotation(parts[f"robot{arm}_eef_quat"])
    return math.atan2(matrix[1, 1], matrix[0, 1])


def wrapped(angle: float, period: float = 2 * math.pi) -> float:
    """The angle in [-period/2, period/2)."""
    return (angle + period / 2) % period - period / 2


def above(name: str, height: float, aside: tuple[float, float] = (0.0, 0.0)) -> Place:
    """A place relative to where a thing is now."""
    offset = np.array([*aside, height])
    return lambda parts: np.asarray(parts[name] + offset)


def fixed(*place: float) -> Place:
    """A place in the world."""
    point = np.asarray(place, np.float64)
    return lambda parts: point


def rise(height: float, arm: int = 0) -> Place:
    """Straight up or down from where the gripper is, to a height."""

    def place(parts: Parts) -> Array:
        here = parts[f"robot{arm}_eef_pos"]
        return np.array([here[0], here[1], height])

    return place


def reachable(turns: Sequence[float], heading: float = 0.0) -> list[int]:
    """Which of several turns, wrapped, end within the last joint's limits; in order of their size."""
    low, high = TURN_LIMITS
    fit = [index for index, turn in enumerate(turns) if low <= heading + turn <= high]
    return sorted(fit, key=lambda index: abs(turns[index]))


def turn_with(name: str, parts: Parts, start: float) -> Turn:
    """Turn to a heading that was chosen at the start of an episode, and go with the thing when it turns.

    Args:
        name: the thing's quaternion.
        parts: the observations the heading was chosen from.
        start: the heading.
    """
    then = yaw(parts[name])
    return lambda now, heading: start + wrapped(yaw(now[name]) - then) - heading
