"""LIBERO-90's task 57: grasp the packet by its near or far half, carry it round one side or the other, let go in the tray.

The packet lies flat, 8 by 4 by 2 cm, always the same way round: the gripper fits across its width only, a little askew.
"""

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
    Waypoint,
    fingers,
    rise,
    rotation,
    turn_with,
    wrapped,
    yaw,
)

MODES = ("near half, inner route", "near half, outer route", "far half, inner route", "far half, outer route")
PACKET, TRAY = "cream_cheese_1", "wooden_tray_1"


def plan(parts: Parts, rng: np.random.Generator) -> Plan:
    """Draw a way of bringing the packet over."""
    far, outer = int(rng.integers(2)), int(rng.integers(2))
    askew = float(rng.uniform(-0.25, 0.25))
    # the fingers close along the packet's y, either way round
    turn = turn_with(
        f"{PACKET}_quat", parts, wrapped(yaw(parts[f"{PACKET}_quat"]) + math.pi / 2 - fingers(parts), math.pi) + askew
    )
    along = (1 if far else -1) * float(rng.uniform(0.008, 0.022))
    aside = (float(rng.uniform(-0.03, 0.03)), float(rng.uniform(-0.06, 0.06)))
    grip = float(rng.uniform(-0.002, 0.004))
    tray = parts[f"{TRAY}_pos"]
    carry = float(parts[f"{PACKET}_pos"][2]) + float(rng.uniform(0.17, 0.23))
    between = (float(rng.uniform(0.16, 0.24) if outer else rng.uniform(-0.12, -0.04)), float(rng.uniform(-0.05, 0.08)))
    goal = (float(tray[0] + rng.uniform(-0.07, 0.07)), float(tray[1] + rng.uniform(-0.02, 0.02)))
    drop = float(tray[2]) + float(rng.uniform(0.07, 0.10))
    hover = float(rng.uniform(0.09, 0.13))
    return Plan(
        [
            Waypoint(packet(hover, along, aside), OPEN, turn, 0.03, most=80),
            Waypoint(packet(0.05, along), OPEN, turn, 0.015, most=60, pace=0.8),
            Waypoint(packet(grip, along), OPEN, turn, 0.008, most=40, pace=0.5, insist=True),
            Waypoint(packet(grip, along), CLOSED, None, math.inf, least=int(rng.integers(8, 13)), pace=0.3),
            Waypoint(rise(carry), CLOSED, None, 0.03, most=50, pace=0.8),
            Waypoint(over(*between, carry), CLOSED, None, 0.06, most=60),
            Waypoint(over(*goal, carry), CLOSED, None, 0.03, most=80),
            Waypoint(over(*goal, drop), CLOSED, None, 0.02, most=40, pace=0.8),
            Waypoint(over(*goal, drop), OPEN, None, math.inf, least=int(rng.integers(5, 9)), pace=0.3),
            Waypoint(rise(carry + 0.05), OPEN, None, 0.02, most=40),
        ],
        mode=2 * far + outer,
    )


def packet(height: float, along: float, aside: tuple[float, float] = (0.0, 0.0)) -> Place:
    """Above a spot on the packet's long axis, counted away from the arm."""

    def place(parts: Parts) -> Array:
        axis = rotation(parts[f"{PACKET}_quat"])[:, 0]
        away = along * axis * math.copysign(1.0, axis[0])
        return np.asarray(parts[f"{PACKET}_pos"] + away + [*aside, height])

    return place


def over(x: float, y: float, height: float) -> Place:
    """Where the gripper must be for the packet it holds to be at a place in the plane, at a height of its own."""

    def place(parts: Parts) -> Array:
        here, held = parts["robot0_eef_pos"], parts[f"{PACKET}_pos"]
        return np.array([here[0] + x - held[0], here[1] + y - held[1], height])

    return place
