"""Transport: one arm takes the lid off and the hammer out, the other clears the trash away, and they meet between the tables.

The hammer changes hands in the air, its handle pointing from arm to arm and both hands pointing down: arm 0 holds the half
nearer to itself, arm 1 grasps the other half, and arm 0 lets go once the other's fingers have closed.

Some grasps close above the thing and are made again. A clone misses now and then, and of data in which every grasp succeeds it
learns that a closed hand has what it closed for, and goes on without it.

The expert can take over from a policy wherever that has come to (:func:`take_over`), and show how it goes on from there.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from lpds.pretrain.scripted.waypoints import (
    CLOSED,
    OPEN,
    Array,
    Condition,
    Parts,
    Place,
    Plan,
    Turn,
    Waypoint,
    above,
    fingers,
    fixed,
    reachable,
    rise,
    rotation,
    turn_with,
    wrapped,
    yaw,
)

MODES = (
    "lid beside the bin, met on the left",
    "lid beside the bin, met on the right",
    "lid at the table's end, met on the left",
    "lid at the table's end, met on the right",
)
LID = "lid_handle"
TABLE = 0.8
CLEAR = 1.0
"""Height at which a hand that holds little passes over the bins' walls."""
MISSED = 0.35
"""Share of the grasps from a table that close on nothing at first."""
HELD, LET_GO = 0.035, 0.06
"""Distances between the fingers: below the one they hold the handle, 3 cm thick, above the other they hold nothing."""
CUBE = 0.045
"""Distance between fingers below which they hold the trash, 4 cm wide."""
MEET = np.array([[0.06, -0.015, 1.03], [0.11, 0.005, 1.07]])
"""Where the arms may meet: lowest and highest |x|, y and z of the hammer."""
LIFTED, GONE = 0.05, 0.15
"""Metres: above where it was a thing has been lifted; farther from where it was, and not held, it is lost."""


def plan(parts: Parts, rng: np.random.Generator) -> Plan:
    """Draw a way of bringing the hammer over."""
    far, right = int(rng.integers(2)), int(rng.integers(2))
    meet = rng.uniform(MEET[0], MEET[1]) * np.array([1 if right else -1, 1, 1])
    return way(parts, rng, meet, far, right)


def way(parts: Parts, rng: np.random.Generator, meet: Array, far: int, right: int) -> Plan:
    """Draw the rest of a way that is known by where the arms meet and where the lid goes."""
    return Plan(
        fetch(parts, rng, meet, float(rng.uniform(-0.30, -0.26) if far else rng.uniform(-0.16, -0.13))),
        mode=2 * far + right,
        others=[receive(parts, rng, meet)],
    )


def fetch(parts: Parts, rng: np.random.Generator, meet: Array, aside: float) -> list[Waypoint]:
    """Way-points of arm 0: the lid to one side, the hammer to where the arms meet."""
    along = -float(rng.uniform(0.045, 0.057))
    lid, grip = float(rng.uniform(-0.004, 0.004)), float(rng.uniform(-0.006, 0.004))
    carry, hover = CLEAR + float(rng.uniform(0.06, 0.12)), float(rng.uniform(0.07, 0.11))
    start = parts[f"{LID}_pos"][:2]
    rest = (aside, float(start[1] + rng.uniform(-0.02, 0.02)))
    out = np.array([*parts["payload_pos"][:2], CLEAR + float(rng.uniform(0.06, 0.1))])
    over_lid = Waypoint(above(f"{LID}_pos", hover), OPEN, across_lid, 0.02, most=80, stage="lid")
    over_handle = Waypoint(handle(along, 0.16), OPEN, across_handle(0), 0.03, most=80, stage="hammer")
    return [
        over_lid,
        *missed(parts, rng, above(f"{LID}_pos", lid), over_lid, 0),
        Waypoint(above(f"{LID}_pos", lid), OPEN, across_lid, 0.008, most=50, pace=0.7),
        Waypoint(above(f"{LID}_pos", lid), CLOSED, None, math.inf, least=int(rng.integers(7, 12)), pace=0.6, insist=True),
        Waypoint(fixed(*start, carry), CLOSED, None, 0.03, most=50),
        Waypoint(fixed(*rest, carry), CLOSED, across_lid, 0.03, most=80, stage="lid aside"),
        Waypoint(fixed(*rest, TABLE + 0.035), CLOSED, across_lid, 0.01, most=60, pace=0.8),
        Waypoint(fixed(*rest, TABLE + 0.035), OPEN, None, math.inf, least=int(rng.integers(5, 9)), pace=0.3),
        Waypoint(rise(CLEAR + 0.05), OPEN, None, 0.04, most=50),
        over_handle,
        *missed(parts, rng, handle(along, grip), over_handle, 0),
        Waypoint(handle(along, grip), OPEN, across_handle(0), 0.01, most=60, pace=0.7),
        Waypoint(handle(along, grip), CLOSED, None, math.inf, least=int(rng.integers(8, 13)), pace=0.6, insist=True),
        Waypoint(hammer_at(0, out), CLOSED, None, 0.03, most=60, pace=0.8, stage="hammer out"),
        Waypoint(hammer_at(0, meet), CLOSED, point_handle, 0.015, most=120, stage="meet"),
        Waypoint(hammer_at(0, meet), CLOSED, point_handle, math.inf, least=int(rng.integers(3, 7)), pace=0.3, until=holds(1)),
        Waypoint(hammer_at(0, meet), OPEN, None, math.inf, least=int(rng.integers(5, 9)), pace=0.3),
        Waypoint(rise(meet[2] + 0.12), OPEN, None, 0.02, most=40, pace=0.8, stage="leave"),
        Waypoint(fixed(0.0, -0.35, meet[2] + 0.12), OPEN, None, 0.02),
    ]


def receive(parts: Parts, rng: np.random.Generator, meet: Array) -> list[Waypoint]:
    """Way-points of arm 1: the trash into its bin, then the hammer into the other."""
    along, grip = float(rng.uniform(0.06, 0.072)), float(rng.uniform(-0.006, 0.004))
    cube, hover = float(rng.uniform(-0.004, 0.008)), float(rng.uniform(0.17, 0.21))
    # fingers along the cube's faces, in any of the four quarters
    turns = [wrapped(yaw(parts["trash_quat"]) + quarter * math.pi / 2 - fingers(parts, 1)) for quarter in range(4)]
    turn = turn_with("trash_quat", parts, turns[reachable(turns)[int(rng.random() < 0.3)]])
    carry = CLEAR + float(rng.uniform(0.03, 0.1))
    # not near the arm's own base, where its elbow and wrist come to their limits
    dump = parts["trash_bin_pos"][:2] + np.array([rng.uniform(-0.05, 0.05), rng.uniform(-0.07, 0.0)])
    goal = parts["target_bin_pos"] + np.array([float(rng.uniform(-0.02, 0.02)), float(rng.uniform(-0.02, 0.0)), 0.0])
    over, low = goal + np.array([0.0, 0.0, carry - TABLE]), goal + np.array([0.0, 0.0, float(rng.uniform(0.06, 0.09))])
    drop = float(rng.uniform(0.86, 0.95))
    beside = fixed(meet[0], 0.24, meet[2] + 0.1)
    over_trash = Waypoint(above("trash_pos", hover), OPEN, turn, 0.02, most=80, stage="trash")
    return [
        over_trash,
        *missed(parts, rng, above("trash_pos", cube), over_trash, 1),
        Waypoint(above("trash_pos", cube), OPEN, turn, 0.008, most=60, pace=0.7),
        Waypoint(above("trash_pos", cube), CLOSED, None, math.inf, least=int(rng.integers(7, 12)), pace=0.6, insist=True),
        Waypoint(fixed(*parts["trash_pos"][:2], carry), CLOSED, None, 0.03, most=60),
        Waypoint(fixed(*dump, carry), CLOSED, None, 0.03, most=80, stage="trash away"),
        Waypoint(fixed(*dump, drop), CLOSED, None, 0.02, most=40),
        Waypoint(fixed(*dump, drop), OPEN, None, math.inf, least=int(rng.integers(5, 9)), pace=0.3),
        Waypoint(rise(carry + 0.05, 1), OPEN, None, 0.03, most=40),
        Waypoint(beside, OPEN, across_handle(1), 0.03, most=80, until=offered(meet), stage="wait"),
        Waypoint(handle(along, 0.09), OPEN, across_handle(1), 0.02, most=80, stage="approach"),
        Waypoint(handle(along, grip), OPEN, across_handle(1), 0.01, most=80, pace=0.6),
        Waypoint(handle(along, grip), CLOSED, None, math.inf, least=int(rng.integers(8, 13)), pace=0.6, insist=True),
        Waypoint(hammer_at(1, meet), CLOSED, None, math.inf, pace=0.3, until=left(0), stage="keep"),
        Waypoint(hammer_at(1, over), CLOSED, point_handle, 0.03, most=120, stage="bring"),
        Waypoint(hammer_at(1, low), CLOSED, point_handle, 0.02, most=50, pace=0.8),
        Waypoint(hammer_at(1, low), OPEN, None, math.inf, least=int(rng.integers(5, 9)), pace=0.3),
        Waypoint(rise(carry + 0.05, 1), OPEN, None, 0.02, most=40),
    ]


def take_over(start: Parts, parts: Parts, rng: np.random.Generator) -> Plan | None:
    """Draw a way of going on from where somebody else has brought the task.

    Args:
        start: what was observed at the reset.
        parts: what is observed now.
        rng: draws what is still open; the arms meet where the hammer is, if it is near there.

    Returns:
        A plan that begins at the stages that were come to; None where the hammer or the trash is out of reach.
    """
    hammer, trash = parts["payload_pos"], parts["trash_pos"]
    up = hammer[2] > start["payload_pos"][2] + LIFTED
    astray = np.linalg.norm(hammer[:2] - start["payload_pos"][:2]) > GONE
    held = [bool(up or astray) and grasps(parts, arm) for arm in range(2)]
    if (astray and not any(held)) or min(hammer[2], trash[2]) < TABLE - 0.1:
        return None
    far, right = int(rng.integers(2)), int(rng.integers(2))
    mirror = np.array([1 if right else -1, 1, 1])
    meet = rng.uniform(MEET[0], MEET[1]) * mirror
    mirror = np.array([math.copysign(1, hammer[0]), 1, 1])
    near = np.clip(hammer * mirror, MEET[0], MEET[1]) * mirror
    if any(held) and np.linalg.norm(near - hammer) < 0.1:
        meet, right = near, int(hammer[0] > 0)
    begin = (fetched(start, parts, held), received(parts, held, meet))
    return replace(way(start, rng, meet, far, right), begin=begin)


def fetched(start: Parts, parts: Parts, held: list[bool]) -> str:
    """How far arm 0 is."""
    lid = parts[f"{LID}_pos"] - start[f"{LID}_pos"]
    if held[1] and not held[0]:
        return "leave"
    if held[0]:
        return "meet" if parts["payload_pos"][2] > CLEAR else "hammer out"
    if lid[2] > LIFTED and np.linalg.norm(parts["robot0_eef_pos"] - parts[f"{LID}_pos"]) < 0.03:
        return "lid aside"
    return "hammer" if np.linalg.norm(lid[:2]) > 0.1 else "lid"


def received(parts: Parts, held: list[bool], meet: Array) -> str:
    """How far arm 1 is."""
    hand, trash = parts["robot1_eef_pos"], parts["trash_pos"]
    if held[1]:
        return "keep" if held[0] else "bring"
    binned = np.linalg.norm((trash - parts["trash_bin_pos"])[:2]) < 0.1  # or falls there
    if np.linalg.norm(hand - trash) < 0.03 and width(parts, 1) < CUBE and (binned or trash[2] > TABLE + 2 * LIFTED):
        return "trash away"
    if not binned:
        return "trash"
    ready = offered(meet)(parts) and np.linalg.norm(hand - handle(0.06, 0.09)(parts)) < 0.15
    return "approach" if ready else "wait"


def grasps(parts: Parts, arm: int) -> bool:
    """The arm's fingers are closed about the hammer's handle."""
    away = parts[f"robot{arm}_eef_pos"] - parts["payload_pos"]
    beside = away - axis(parts) * float(away @ axis(parts))
    return width(parts, arm) < HELD and float(np.linalg.norm(away)) < 0.12 and float(np.linalg.norm(beside)) < 0.03


def missed(parts: Parts, rng: np.random.Generator, place: Place, begin: Waypoint, arm: int) -> list[Waypoint]:
    """Now and then: a grasp that closes above the thing, the empty hand raised, and the way back to where it began."""
    wrong = rng.random() < MISSED
    beside = np.array([*rng.uniform(-0.015, 0.015, 2), rng.uniform(0.03, 0.06)])
    raised, wait = place(parts)[2] + beside[2] + float(rng.uniform(0.05, 0.3)), int(rng.integers(7, 12))

    def near(now: Parts) -> Array:
        return np.asarray(place(now) + beside)

    attempt = [
        Waypoint(near, OPEN, begin.turn, 0.015, most=50, pace=0.7),
        Waypoint(near, CLOSED, None, math.inf, least=wait, pace=0.4),
        Waypoint(rise(raised, arm), CLOSED, None, 0.04, most=40),
        begin,
    ]
    return attempt if wrong else []


def axis(parts: Parts) -> Array:
    """Along the hammer's handle, towards arm 1."""
    ahead = rotation(parts["payload_quat"])[:, 2]
    return np.asarray(ahead * math.copysign(1.0, ahead[1]))


def handle(along: float, height: float) -> Place:
    """Above a spot on the hammer's handle, counted from its middle towards arm 1."""
    return lambda parts: np.asarray(parts["payload_pos"] + along * axis(parts) + np.array([0.0, 0.0, height]))


def hammer_at(arm: int, goal: Array) -> Place:
    """Where a gripper must be for the hammer it holds to be at a place."""
    return lambda parts: np.asarray(parts[f"robot{arm}_eef_pos"] + goal - parts["payload_pos"])


def across_lid(parts: Parts, heading: float) -> float:
    """Turn arm 0's fingers to close along the lid's x, across its handle; either way round."""
    return wrapped(yaw(parts[f"{LID}_quat"]) - fingers(parts), math.pi)


def across_handle(arm: int) -> Turn:
    """Turn an arm's fingers to close across the hammer's handle, either way round."""

    def turn(parts: Parts, heading: float) -> float:
        ahead = axis(parts)
        return wrapped(math.atan2(ahead[1], ahead[0]) + math.pi / 2 - fingers(parts, arm), math.pi)

    return turn


def point_handle(parts: Parts, heading: float) -> float:
    """Turn the hammer that a gripper holds to point from arm to arm."""
    ahead = axis(parts)
    return math.pi / 2 - math.atan2(ahead[1], ahead[0])


def width(parts: Parts, arm: int) -> float:
    """Distance between the fingers."""
    return float(np.ptp(parts[f"robot{arm}_gripper_qpos"]))


def offered(meet: Array) -> Condition:
    """The hammer is where the arms meet."""
    return lambda parts: float(np.linalg.norm(parts["payload_pos"] - meet)) < 0.03


def holds(arm: int) -> Condition:
    """The arm's fingers have closed at the hammer."""
    return lambda parts: width(parts, arm) < HELD and float(np.linalg.norm(parts[f"gripper{arm}_to_payload"])) < 0.12


def left(arm: int) -> Condition:
    """The arm has let go of the hammer and is off it."""
    return lambda parts: width(parts, arm) > LET_GO and parts[f"robot{arm}_eef_pos"][2] > parts["payload_pos"][2] + 0.07
