"""What an environment answers at a reset or a step, checked against Gymnasium's contract before anything is made of it.

Pure functions: what does not fit is a ``ValueError`` that goes on after the environment's name ("gives ...", "returned ...").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from lpds.errors import LpdsError
from lpds.observations import is_picture, parts

SUCCESS_KEYS = ("success", "is_success")
"""Where a step's info says whether the task is done; the first that says anything counts."""


class Step(NamedTuple):
    """A primitive step's answer."""

    obs: Any
    reward: float
    terminated: bool
    truncated: bool
    success_key: str | None
    """Which key of the info said something of success."""
    success: bool | None


def observed_space(space: Any, name: str) -> gymnasium.spaces.Space[Any]:
    """What the observations are here: vectors and pictures, one or several.

    Raises:
        LpdsError: anything else.
    """

    def part(box: Any) -> gymnasium.spaces.Space[Any] | None:
        if not isinstance(box, gymnasium.spaces.Box) or not box.shape:
            return None
        return box if is_picture(box.dtype, box.shape) else gymnasium.spaces.Box(-np.inf, np.inf, box.shape, np.float32)

    if isinstance(space, gymnasium.spaces.Dict):
        boxes = {key: box for key, entry in space.items() if (box := part(entry)) is not None}
        if boxes and len(boxes) == len(space.spaces):
            return gymnasium.spaces.Dict(boxes)
    one = part(space)
    if one is None:
        raise LpdsError(
            f"{name} has observation space {space}; a Box, or a Dict of them, is needed "
            "(gymnasium.wrappers.FlattenObservation makes one of most others)"
        )
    return one


def read_reset(answer: Any, space: gymnasium.spaces.Space[Any]) -> Any:
    """The observation of a reset's answer.

    Raises:
        ValueError: it is no pair, or the observation does not fit.
    """
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise ValueError(f"gives {_named(answer)} at reset, not (observation, info) as Gymnasium defines it")
    return read_observation(answer[0], space)


def read_step(answer: Any, space: gymnasium.spaces.Space[Any]) -> Step:
    """A step's answer.

    Raises:
        ValueError: it is not the five that Gymnasium defines, or one of them does not fit.
    """
    if not isinstance(answer, tuple) or len(answer) != 5 or not isinstance(answer[4], Mapping):
        wanted = "(observation, reward, terminated, truncated, info), info a dict, as Gymnasium defines it"
        raise ValueError(f"gives {_named(answer)} at a step, not {wanted}")
    obs, reward, terminated, truncated, info = answer
    obs = read_observation(obs, space)
    if _kind(reward) not in "biuf":
        raise ValueError(f"gives {_named(reward)} as reward, not a real number")
    if np.ndim(reward):
        raise ValueError(f"gives a reward of shape {list(np.shape(reward))}, not one number")
    _check_finite(reward, "the reward")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if _kind(flag) not in "biu" or np.ndim(flag):
            raise ValueError(f"gives {_named(flag)} as {name}, not True or False")
    return Step(obs, float(reward), bool(terminated), bool(truncated), *told_success(info))


def read_observation(obs: Any, space: gymnasium.spaces.Space[Any]) -> Any:
    """An observation without what the space does not declare.

    Raises:
        ValueError: it is not what the space declares, or not finite.
    """
    declared = dict(space.items()) if isinstance(space, gymnasium.spaces.Dict) else {"": space}
    if isinstance(obs, Mapping) != isinstance(space, gymnasium.spaces.Dict) or not set(declared) <= set(parts(obs)):
        raise ValueError(f"gives {_named(obs)} as observation, not what its space declares: {space}")
    for key, box in declared.items():
        named = f" {key!r}" if key else ""
        if _kind(parts(obs)[key]) not in "biuf":
            raise ValueError(f"gives no real numbers in the observation{named}")
        if (shape := np.shape(parts(obs)[key])) != box.shape:
            declares = f"not {list(box.shape or ())} as its space declares"
            raise ValueError(f"gives an observation{named} of shape {list(shape)}, {declares}")
    if isinstance(obs, Mapping):  # what is not declared may be anything
        obs = {key: obs[key] for key in declared}
    _check_finite(obs, "the observation")
    return obs


def told_success(info: Mapping[str, Any]) -> tuple[str | None, bool | None]:
    """The key under which an info says something of success, and what; NaN says nothing.

    Raises:
        ValueError: what it says is neither yes nor no (0 and 1 are).
    """
    for key in SUCCESS_KEYS:
        says = info.get(key)
        if says is None:
            continue
        found = np.asarray(says)
        value = float(found.item()) if found.size == 1 and found.dtype.kind in "biuf" else np.inf
        if np.isnan(value):
            continue
        if value not in (0.0, 1.0):  # a share of the way, or -1 for a failure, would count as a success
            raise ValueError(f"says {key} = {says!r}, which is neither yes nor no (0 or 1)")
        return key, bool(value)
    return None, None


def _kind(value: Any) -> str:
    """The letter of numpy for what a value is: b, i, u and f are real numbers."""
    try:
        return np.asarray(value).dtype.kind
    except (TypeError, ValueError, RuntimeError):  # a tensor with a gradient, say
        return "O"


def _named(value: Any) -> str:
    """What an environment returned, for a message."""
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value))}"
    return f"a {type(value).__name__}"


def _check_finite(value: Any, what: str) -> None:
    with np.errstate(over="ignore"):  # what a decoder is given is float32, in which 1e300 is infinite
        whole = all(np.isfinite(np.asarray(part, np.float32)).all() for part in parts(value).values())
    if not whole:
        raise ValueError(f"returned NaN or infinity in {what}, or what is infinite as float32")
