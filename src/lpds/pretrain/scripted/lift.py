"""Lift: come from the left or from the right, grasp either pair of the cube's faces, lift."""

from __future__ import annotations

import math

import numpy as np

from lpds.pretrain.scripted.waypoints import (
    CLOSED,
    OPEN,
    Parts,
    Plan,
    Waypoint,
    above,
    fingers,
    fixed,
    reachable,
    turn_with,
    wrapped,
    yaw,
)

MODES = (
    "from the left, nearer faces",
    "from the right, nearer faces",
    "from the left, other faces",
    "from the right, other faces",
)


def plan(parts: Parts, rng: np.random.Generator) -> Plan:
    """Draw a way of lifting the cube."""
    # fingers along the cube's faces, in any of the four quarters
    turns = [wrapped(yaw(parts["cube_quat"]) + quarter * math.pi / 2 - fingers(parts)) for quarter in range(4)]
    near = reachable(turns)
    right, other = int(rng.integers(2)), int(rng.random() < 0.3)
    turn = turn_with("cube_quat", parts, turns[near[other]])
    aside = (float(rng.uniform(-0.03, 0.03)), (-1 if right else 1) * float(rng.uniform(0.05, 0.10)))
    grip = float(rng.uniform(-0.005, 0.01))
    x, y, z = parts["cube_pos"]
    return Plan(
        [
            Waypoint(above("cube_pos", float(rng.uniform(0.05, 0.10)), aside), OPEN, turn, 0.03, most=50),
            Waypoint(above("cube_pos", 0.05), OPEN, turn, 0.015, most=60, pace=0.8),
            Waypoint(above("cube_pos", grip), OPEN, turn, 0.008, most=40, pace=0.6),
            Waypoint(above("cube_pos", grip), CLOSED, None, math.inf, least=int(rng.integers(6, 11)), pace=0.3),
            Waypoint(fixed(x, y, z + float(rng.uniform(0.08, 0.14))), CLOSED, None, 0.01),
        ],
        mode=2 * other + right,
    )
