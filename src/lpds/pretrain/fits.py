"""Whether demonstrations are of the environment that they are to serve: by shape, by scene and by the actions' range."""

from __future__ import annotations

from typing import Any

import numpy as np

from lpds.envs.build import vector_places
from lpds.envs.chunk import ChunkedVectorEnv
from lpds.errors import LpdsError
from lpds.pretrain.experts import Demonstrations, FloatArray

MOSTLY = 0.5
"""Share of the steps whose actions an environment may clip before the data are taken to be in another unit."""


def check_fits(data: Demonstrations, env: ChunkedVectorEnv, instead: str) -> None:
    """Refuse an environment that is not the data's.

    Args:
        data: demonstrations.
        env: where they are to serve.
        instead: what a user may do, for the message.

    Raises:
        LpdsError: other shapes, another scene of robosuite's, the same vectors in another order, or actions most of which the
            environment would clip.
    """
    space, action = env.single_observation_space, env.primitive_action_space.shape
    if (space.shape or data.obs.shape[1:], action) != (data.obs.shape[1:], data.actions.shape[1:]):
        raise LpdsError(
            f"the data have {data.obs.shape[1]} observations and {data.actions.shape[1]} actions, but {env.name} has "
            f"{list(space.shape) if space.shape else 'a dict'} and {list(action or ())}: {instead}"
        )
    if space.shape is None:
        entries = ", ".join(getattr(space, "spaces", {}))
        raise LpdsError(f"the data are vectors, but {env.name} observes more than one ({entries}): flatten it, or {instead}")
    own = getattr(getattr(env.first.unwrapped, "task", None), "name", None)  # robosuite's
    if data.scene and isinstance(own, str) and own != data.scene:
        raise LpdsError(f"the data were recorded in {data.scene}, but {env.name} is {own}: {instead}")
    if data.recorded and isinstance(own, str):
        raise LpdsError(f"the data were recorded with {data.recorded}, but {env.name} is not driven so: {instead}")
    _check_order(data, env, instead)
    for actions in (data.actions, data.cloned):  # what was meant may be in another unit
        _check_range(actions, env.primitive_action_space, instead)


def _check_order(data: Demonstrations, env: ChunkedVectorEnv, instead: str) -> None:
    """Refuse an environment whose dict has the data's vectors in another order, which their sizes need not tell."""
    theirs = list(vector_places(env.first) or ())
    ours = data.order.split(", ") if data.order else []
    plain = [[name.removeprefix("observation.") for name in names] for names in (ours, theirs)]
    if plain[0] != plain[1] and sorted(plain[0]) == sorted(plain[1]):
        raise LpdsError(
            f"the data have their vectors in the order {', '.join(ours)}, but {env.name} puts them end to end as "
            f"{', '.join(theirs)} (a dict space is sorted by name): let it observe one vector in the data's order; or {instead}"
        )


def _check_range(actions: FloatArray, box: Any, instead: str) -> None:
    """Refuse actions most of which the environment would clip: absolute ones, or others in another unit."""
    slack = 1e-3 * (1.0 + np.abs(actions))
    outside = (actions < box.low - slack) | (actions > box.high + slack)
    share = float(outside.any(1).mean())
    if share > MOSTLY:
        at = int(outside.mean(0).argmax())
        least, most, low, high = actions[:, at].min(), actions[:, at].max(), box.low[at], box.high[at]
        raise LpdsError(
            f"in {share:.0%} of the data's steps the action is outside of the environment's box: number {at} goes from "
            f"{least:.3g} to {most:.3g}, the box from {low:.3g} to {high:.3g} (absolute actions, or another unit?): {instead}"
        )
