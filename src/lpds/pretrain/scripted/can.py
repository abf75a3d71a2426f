"""Can: grasp it from above at one of two turns of the wrist, carry it over near or far from the arm, let go in its place."""

from __future__ import annotations

import math

import numpy as np

from lpds.pretrain.scripted.waypoints import CLOSED, OPEN, Parts, Plan, Waypoint, above, fixed, rise, turn_with

MODES = ("straight wrist, near route", "straight wrist, far route", "turned wrist, near route", "turned wrist, far route")
BIN = (0.1975, 0.4025, 0.8)
"""The can's place: middle of the last quarter of the second bin, world coordinates."""


def plan(parts: Parts, rng: np.random.Generator) -> Plan:
    """Draw a way of bringing the can over."""
    turned, far = int(rng.integers(2)), int(rng.integers(2))
    # the can is round: any turn will do
    turn = turn_with("Can_quat", parts, float(rng.uniform(0.9, 1.4)) if turned else float(rng.uniform(-0.2, 0.2)))
    x, y, z = parts["Can_pos"]
    grip = float(rng.uniform(-0.01, 0.015))
    carry = z + float(rng.uniform(0.18, 0.24))
    between = float(rng.uniform(0.24, 0.30) if far else rng.uniform(-0.06, 0.02))
    goal = np.asarray(BIN[:2]) + rng.uniform(-0.03, 0.03, 2)
    drop = z + float(rng.uniform(0.04, 0.08))
    return Plan(
        [
            Waypoint(above("Can_pos", float(rng.uniform(0.11, 0.15))), OPEN, turn, 0.02, most=80),
            Waypoint(above("Can_pos", grip), OPEN, turn, 0.01, most=50, pace=0.7),
            Waypoint(above("Can_pos", grip), CLOSED, None, math.inf, least=int(rng.integers(7, 12)), pace=0.3),
            Waypoint(fixed(x, y, carry), CLOSED, None, 0.03, most=50),
            Waypoint(fixed(between, (y + goal[1]) / 2, carry), CLOSED, None, 0.05, most=60),
            Waypoint(fixed(*goal, carry), CLOSED, None, 0.03, most=80),
            Waypoint(fixed(*goal, drop), CLOSED, None, 0.02, most=40),
            Waypoint(fixed(*goal, drop), OPEN, None, math.inf, least=int(rng.integers(5, 9)), pace=0.3),
            Waypoint(rise(carry + 0.05), OPEN, None, 0.02, most=40),
        ],
        mode=2 * turned + far,
    )
