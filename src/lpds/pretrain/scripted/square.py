"""Square: grasp the nut's handle either way round, carry it over straight or round, put it on the peg at one of four turns."""

from __future__ import annotations

import math

import numpy as np

from lpds.pretrain.scripted.waypoints import (
    CLOSED,
    OPEN,
    Array,
    Parts,
    Place,
    Plan,
    Turn,
    Waypoint,
    fingers,
    reachable,
    rise,
    rotation,
    turn_with,
    wrapped,
    yaw,
)

MODES = ("nearer grasp, straight", "nearer grasp, round", "turned grasp, straight", "turned grasp, round")
PEG = (0.23, 0.1)
TABLE = 0.82
HANDLE = np.array([0.054, 0.0, 0.0])
"""Where the handle is, seen from the nut."""


def plan(parts: Parts, rng: np.random.Generator) -> Plan:
    """Draw a way of putting the nut on its peg."""
    nut = yaw(parts["SquareNut_quat"])
    # the fingers close across the handle, along the nut's y
    turns = [wrapped(nut + math.pi / 2 + half * math.pi - fingers(parts)) for half in range(2)]
    ways = reachable(turns)
    other = int(len(ways) > 1 and rng.random() < 0.5)
    grasp = turns[ways[other]]
    # the hole is square too: of the quarters that the wrist reaches from there, the nearest or the next
    quarters = [wrapped(quarter * math.pi / 2 - nut) for quarter in range(4)]
    goal = quarters[reachable(quarters, grasp)[0]]
    about = int(rng.integers(2))
    turn = turn_with("SquareNut_quat", parts, grasp)
    grip = float(rng.uniform(-0.004, 0.006))
    high = TABLE + float(rng.uniform(0.20, 0.27))
    between = np.array([float(rng.uniform(-0.02, 0.06)), float(rng.uniform(-0.12, -0.05)), high])
    carry = [Waypoint(lambda parts: between, CLOSED, None, 0.05, most=60)] if about else []
    to_peg = turn_nut(nut + goal)
    over = TABLE + 0.13
    return Plan(
        [
            Waypoint(handle(float(rng.uniform(0.08, 0.13))), OPEN, turn, 0.02, most=90),
            Waypoint(handle(grip), OPEN, turn, 0.008, most=60, pace=0.7),
            Waypoint(handle(grip), CLOSED, None, math.inf, least=int(rng.integers(7, 12)), pace=0.3),
            Waypoint(rise(high), CLOSED, None, 0.03, most=60),
            *carry,
            Waypoint(nut_at(TABLE + 0.18), CLOSED, to_peg, 0.006, most=120, pace=0.8, insist=True),
            Waypoint(nut_at(over), CLOSED, to_peg, 0.006, most=40, pace=0.5, insist=True),
            Waypoint(nut_at(TABLE + 0.02), CLOSED, to_peg, 0.012, most=40, pace=0.6, insist=True),
            Waypoint(nut_at(TABLE + 0.02), OPEN, None, math.inf, least=int(rng.integers(5, 9)), pace=0.3),
            Waypoint(rise(TABLE + 0.3), OPEN, None, 0.02, most=40),
        ],
        mode=2 * other + about,
    )


def handle(height: float) -> Place:
    """Above the nut's handle."""
    up = np.array([0.0, 0.0, height])
    return lambda parts: np.asarray(parts["SquareNut_pos"] + rotation(parts["SquareNut_quat"]) @ HANDLE + up)


def nut_at(height: float) -> Place:
    """Where the gripper must be for the nut it holds to be over the peg, at a height."""

    def place(parts: Parts) -> Array:
        goal = np.array([*PEG, height])
        return np.asarray(parts["robot0_eef_pos"] + goal - parts["SquareNut_pos"])

    return place


def turn_nut(goal: float) -> Turn:
    """Turn the nut that the gripper holds to an angle about the vertical."""
    return lambda parts, heading: wrapped(goal - yaw(parts["SquareNut_quat"]))
