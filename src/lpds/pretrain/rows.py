"""Demonstrations as rows of the replay: the same semi-Markov transitions that a collector would have made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpds.envs.chunk import chunk_return
from lpds.errors import LpdsError
from lpds.pretrain.experts import Demonstrations
from lpds.types import LatentSpec

Array = npt.NDArray[np.float32]


def demonstration_rows(
    data: Demonstrations, spec: LatentSpec, *, gamma: float, discount: str, reward_offset: float = 0.0, n_step: int = 1
) -> dict[str, Tensor]:
    """Cut every episode into decisions, one after another from its start.

    The last chunk of an episode may be short: its rewards end with it, and the steps that were never executed repeat the
    last action, as the decoder's own chunk would have gone on somewhere.

    Where an episode went on, but what was seen after its last step is not recorded (``final_obs`` is NaN), the last
    observation there is becomes the final one, and the step that was done in it is left out (:func:`left_out`): a row whose
    next state is its own would bootstrap from itself.

    Args:
        data: with rewards, final observations and ends.
        spec: of the decoder; its executed slice is the length of a decision.
        gamma: per primitive step.
        discount: chunk arithmetic by name.
        reward_offset: added to every executed primitive reward.
        n_step: decisions of one episode that a row's reward and discount reach over, fewer before its end.

    Returns:
        obs, action, reward, discount, next_obs and over, [R, ...]; ``over`` is 1 everywhere, since these rows are no
        recording whose returns to go could be added up across them.

    Raises:
        LpdsError: no rewards in the data, or sizes that are not the decoder's.
    """
    wanted = {"rewards": len(data.obs), "final_obs": len(data.episode_lengths), "terminated": len(data.episode_lengths)}
    missing = [name for name, count in wanted.items() if len(getattr(data, name)) != count]
    if missing:
        raise LpdsError(
            f"the demonstrations have no {', '.join(missing)} (learning needs every transition's reward, and where and how "
            "every episode ended); a RoboMimic file has them with next_obs, data of lpds demos do"
        )
    if isinstance(spec.obs_shape, Mapping):
        raise LpdsError("demonstrations of vectors cannot serve a decoder that observes a dict")
    sizes = (data.obs.shape[1], data.actions.shape[1])
    if sizes != (spec.obs_size, spec.action_shape[1]):
        raise LpdsError(
            f"the demonstrations have {sizes[0]} observations and {sizes[1]} actions, the decoder {spec.obs_size} and "
            f"{spec.action_shape[1]}"
        )
    steps = spec.action_shape[0]
    ends = np.cumsum(data.episode_lengths)
    starts = ends - data.episode_lengths
    unseen = ~np.isfinite(data.final_obs).all(1) & ~data.terminated
    final_obs = np.where(unseen[:, None], data.obs[ends - 1], data.final_obs)
    ends = ends - unseen
    first = np.concatenate([np.arange(a, b, steps) for a, b in zip(starts, ends, strict=True)])
    if not len(first):
        raise LpdsError("the demonstrations have no step after which it is known what was seen")
    episode = np.searchsorted(ends, first, side="right")
    k = np.minimum(steps, ends[episode] - first)
    index = first[:, None] + np.minimum(np.arange(steps), k[:, None] - 1)
    executed = np.arange(steps) < k[:, None]
    rewards = np.where(executed, data.rewards[index] + reward_offset, 0.0)
    last = first + k == ends[episode]
    ended = data.terminated[episode]
    reward, factor = chunk_return(rewards, k, last & ended, gamma, discount, last & ~ended)
    following = data.obs[np.minimum(first + k, len(data.obs) - 1)]
    next_obs = np.where(last[:, None], np.nan_to_num(final_obs[episode]), following)  # NaN where nothing follows
    reward, factor, next_obs = _over_steps(n_step, reward, factor, next_obs, last)
    return {
        "obs": torch.from_numpy(data.obs[first]),
        "action": torch.from_numpy(data.actions[index].reshape(len(first), -1)),
        "reward": torch.from_numpy(reward),
        "discount": torch.from_numpy(factor),
        "next_obs": torch.from_numpy(next_obs.astype(np.float32)),
        "over": torch.ones(len(first)),
    }


def until_success(data: Demonstrations) -> Demonstrations | None:
    """The demonstrations cut at their first success, where each ends for good; those without one stay as they are.

    Returns:
        ``None`` where the rewards do not say when that is. They do if they are 0 and 1, as robosuite's sparse ones, and 0 at
        every start: a reward for each step is none for success.
    """
    if len(data.rewards) != len(data.obs) or not np.isin(data.rewards, (0.0, 1.0)).all() or not data.rewards.any():
        return None
    ends = np.cumsum(data.episode_lengths)
    starts = ends - data.episode_lengths
    if data.rewards[starts].any() or len(data.final_obs) != len(starts):
        return None
    kept, final_obs, terminated = np.zeros(len(data.obs), np.bool_), data.final_obs.copy(), data.terminated.copy()
    for e, (start, end) in enumerate(zip(starts, ends, strict=True)):
        won = np.flatnonzero(data.rewards[start:end])
        stop = int(start + won[0] + 1) if len(won) else int(end)
        kept[start:stop] = True
        terminated[e] |= bool(len(won))
        if stop < end:
            final_obs[e] = data.obs[stop]
    steps = {name: getattr(data, name)[kept] for name in ("obs", "actions", "rewards")}
    lengths = np.add.reduceat(kept, starts).astype(np.int64)
    unused: dict[str, Any] = {
        "meant": np.empty((0, 0), np.float32),
        "attempts": np.empty(0, np.int64),
        "image": np.empty(0, np.uint8),
    }
    unused["image2"] = unused["image"]
    return replace(data, **steps, **unused, episode_lengths=lengths, final_obs=final_obs, terminated=terminated)


def left_out(data: Demonstrations) -> str:
    """What :func:`demonstration_rows` leaves out, in words; empty for nothing that was rewarded."""
    if len(data.final_obs) != len(data.episode_lengths) or len(data.terminated) != len(data.episode_lengths):
        return ""
    unseen = ~np.isfinite(data.final_obs).all(1) & ~data.terminated
    lost = float(np.abs(data.rewards[np.cumsum(data.episode_lengths) - 1][unseen]).sum()) if len(data.rewards) else 0.0
    if not lost:
        return ""
    share = lost / float(np.abs(data.rewards).sum())
    return (
        f"{share:.0%} of the demonstrations' rewards are not learned from: they are of the last steps of {unseen.sum()} "
        "episodes that are not told to have ended, and what was seen after those is not recorded"
    )


def _over_steps(
    n_step: int, reward: Array, factor: Array, next_obs: Array, last: npt.NDArray[np.bool_]
) -> tuple[Array, Array, Array]:
    """What up to ``n_step`` rows of one episode come to from each of them, as the replay has it for what was collected."""
    at, going = np.arange(len(reward)), ~last
    total, discount = reward, factor
    for _ in range(n_step - 1):
        at = np.where(going, at + 1, at)
        total = np.where(going, total + discount * reward[at], total)
        discount = np.where(going, discount * factor[at], discount)
        going = going & ~last[at]
    return total, discount, next_obs[at]
