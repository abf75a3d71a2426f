"""Environments by name: the registry's own, and any Gymnasium id."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from lpds.checks import whole
from lpds.envs.chunk import ChunkedVectorEnv, EnvFactory
from lpds.errors import LpdsError, unknown_name
from lpds.observations import shapes_fit
from lpds.registry import ENVIRONMENTS, TASKS, resolve
from lpds.types import LatentSpec

EnvLike = str | Callable[[], Any]


def environment_factory(env: EnvLike, render_mode: str | None = None, *, keep_dict: bool = False) -> tuple[EnvFactory, str]:
    """Find how to make one single environment.

    Args:
        env: a name of the registry, a Gymnasium id, or a zero-argument factory.
        render_mode: Gymnasium's, for an environment made by name; a factory is left as it is.
        keep_dict: leave a dict of vectors as it is; it is put end to end otherwise.

    Returns:
        The factory and a name for messages.

    Raises:
        LpdsError: the id is unknown; the nearest are suggested.
    """
    wanted = "env must be a Gymnasium id or a function that makes an environment"
    if isinstance(env, gymnasium.Env):
        raise LpdsError(f"{wanted}, not an environment ({type(env).__name__}): each sub-environment is made anew")
    if callable(env):
        return _flattening(env, keep_dict), getattr(env, "__name__", type(env).__name__)
    if not isinstance(env, str):
        raise LpdsError(f"{wanted}, not {env!r}")
    if env in ENVIRONMENTS or env.partition(":")[0] in ENVIRONMENTS.families:
        make = resolve("environment", ENVIRONMENTS, env)
        return _flattening(functools.partial(make, render_mode=render_mode), keep_dict), env
    if ":" not in env and env not in gymnasium.registry:
        if env in TASKS:
            raise LpdsError(f"{env!r} is the name of a task; its environment is {resolve('task', TASKS, env).env}")
        told = ["an id that Gymnasium knows", "MODULE:ID of one that MODULE registers", *ENVIRONMENTS]
        raise unknown_name("environment", env, [*ENVIRONMENTS, *gymnasium.registry], told)
    # an environment of one's own may not know the word
    drawing: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    return _flattening(lambda: gymnasium.make(env, **drawing), keep_dict), env


def _flattening(factory: EnvFactory, keep_dict: bool) -> EnvFactory:
    """Put vectors in a dict end to end, in the order of the space's keys; anything else passes as it is."""
    if keep_dict:
        return factory

    def make() -> Any:
        env = factory()
        space = getattr(env, "observation_space", None)
        if not isinstance(space, gymnasium.spaces.Dict):
            return env
        vectors = all(isinstance(part, gymnasium.spaces.Box) and len(part.shape) == 1 for part in space.values())
        return gymnasium.wrappers.FlattenObservation(env) if vectors else env

    return make


def end_to_end(env: gymnasium.Env[Any, Any]) -> str | None:
    """In which order the vectors of a dict observation became one, as ``key [from:to], ...``; ``None`` where none was made."""
    places = vector_places(env)
    return None if places is None else ", ".join(f"{key} [{start}:{end}]" for key, (start, end) in places.items())


def vector_places(env: gymnasium.Env[Any, Any]) -> dict[str, tuple[int, int]] | None:
    """Where each vector of a dict observation is in the one that was made of them, in order; ``None`` where none was made."""
    seen = env.observation_space.shape
    while isinstance(env, gymnasium.Wrapper):
        inner = env.env.observation_space
        if isinstance(env, gymnasium.wrappers.FlattenObservation) and isinstance(inner, gymnasium.spaces.Dict):
            sizes = [gymnasium.spaces.flatdim(part) for part in inner.values()]
            if seen != (sum(sizes),):  # something else was made of it after
                return None
            ends = np.cumsum([0, *sizes])
            return {key: (int(ends[at]), int(ends[at + 1])) for at, key in enumerate(inner)}
        env = env.env
    return None


def make_env(
    env: EnvLike,
    num_envs: int = 4,
    chunk: int = 4,
    seed: int = 0,
    *,
    evaluation: bool = False,
    autoreset: AutoresetMode = AutoresetMode.SAME_STEP,
    end_at_success: bool = False,
    keep_dict: bool = False,
) -> ChunkedVectorEnv:
    """Make a Gymnasium vector environment over action chunks.

    Args:
        env: a Gymnasium id, a name of the registry, or a zero-argument factory of a single environment.
        num_envs: N.
        chunk: T, primitive steps of a decision.
        seed: every reset is seeded from (seed, sub-environment, episode).
        evaluation: take the resets from the evaluation stream, which never meets the training one.
        autoreset: Gymnasium's autoreset mode.
        end_at_success: end an episode for good at its first successful step.
        keep_dict: leave a dict of vectors as it is, for a decoder that takes one; it is put end to end otherwise.

    Returns:
        See :class:`ChunkedVectorEnv`.

    Raises:
        LpdsError: unknown id, or spaces that cannot be steered.
    """
    num_envs, chunk = whole("num_envs", num_envs), whole("chunk", chunk)
    factory, name = environment_factory(env, keep_dict=keep_dict)

    def build() -> gymnasium.Env[Any, Any]:
        made = factory()
        if not isinstance(made, gymnasium.Env):
            raise LpdsError(f"the factory {name} returned {type(made).__name__}, expected a single gymnasium.Env")
        return made

    options: dict[str, Any] = {"evaluation": evaluation, "autoreset": autoreset, "end_at_success": end_at_success}
    return ChunkedVectorEnv(build, num_envs, chunk, seed=seed, name=name, **options)


def make_eval_env(env: EnvLike, num_envs: int, chunk: int, *, keep_dict: bool = False) -> ChunkedVectorEnv:
    """The same with resets of the evaluation stream and autoreset disabled, as paired evaluation needs it."""
    return make_env(env, num_envs, chunk, evaluation=True, autoreset=AutoresetMode.DISABLED, keep_dict=keep_dict)


def check_fit(env: ChunkedVectorEnv, spec: LatentSpec, decoder: str) -> None:
    """Refuse an environment whose spaces do not fit the decoder.

    Raises:
        LpdsError: says both sizes.
    """
    space, action = env.single_observation_space, env.primitive_action_space.shape
    boxes = dict(space.items()) if isinstance(space, gymnasium.spaces.Dict) else {"": space}
    shapes = {key: tuple(box.shape or ()) for key, box in boxes.items()}
    obs = shapes if isinstance(space, gymnasium.spaces.Dict) else shapes[""]
    if not shapes_fit(obs, {key: box.dtype == np.uint8 for key, box in boxes.items()}, spec):
        hint = " (gymnasium.wrappers.FlattenObservation makes one vector of it)" if len(obs) > 1 else ""
        hint = "" if isinstance(spec.obs_shape, Mapping) else hint
        raise LpdsError(f"decoder {decoder!r} takes observations {spec.obs_shape}, but {env.name} gives {obs}{hint}")
    if action != (spec.action_shape[1],):
        raise LpdsError(f"decoder {decoder!r} gives actions of {spec.action_shape[1]} numbers, but {env.name} takes {action}")
