"""What a run says of the policy and the environment that it was given, before anything is learned from them; one line each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor

from lpds.envs.answers import SUCCESS_KEYS
from lpds.types import Decoder

BEYOND = 0.01
"""Part of the box's width that an action may lie beyond its edge: rounding, or a normaliser's margin."""
FAR = 0.25
"""Part of the width that no sampler overshoots by."""
MUCH_BEYOND = 0.05
"""Share of the actions beyond the box from which on something is wrong with their units."""


def places_in_box(action: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Where actions [N, A] lie in a box of edges [A], as float64 [N, B]: 0 at its low edge, 1 at its high one.

    Only the B columns that are bounded on both sides are kept, which may be none: their numbers [B] come second.
    """
    low, high = low.double(), high.double()
    bounded = torch.isfinite(low) & torch.isfinite(high) & (high > low)
    places = (action.double()[..., bounded] - low[bounded]) / (high - low)[bounded]
    return places, torch.nonzero(bounded).flatten()


def shares_beyond(places: Tensor, margin: float = BEYOND) -> Tensor:
    """Shares [B] of :func:`places_in_box` outside the box by more than a margin of its width, of every column."""
    return ((places < -margin) | (places > 1.0 + margin)).double().mean(0)


def beyond_single_edges(action: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Shares [B] of actions [N, A] beyond the edge of the B columns that have one edge only, and the columns' numbers [B].

    Such a column has no width: an action counts from :data:`BEYOND` of the middle 98 % of its own range on.
    """
    single = torch.isfinite(low) != torch.isfinite(high)
    kept, low, high = action.double()[..., single], low.double()[single], high.double()[single]
    if not len(low):
        return low, torch.nonzero(single).flatten()
    margin = BEYOND * (kept.quantile(0.99, 0) - kept.quantile(0.01, 0))
    return ((kept < low - margin) | (kept > high + margin)).double().mean(0), torch.nonzero(single).flatten()


def of_decoder(decoder: Decoder) -> list[str]:
    """Warnings about a policy that a run could make nothing of, or that would act otherwise alone than in a batch."""
    lines = []
    if getattr(decoder, "blind", False):
        lines.append(
            f"WARNING: decoder {decoder.name!r} gives the same actions for different noises, so there is nothing to steer: "
            "start its sampler from the w that it is given"
        )
    if getattr(decoder, "leaks", False):
        lines.append(
            f"WARNING: decoder {decoder.name!r} decodes a row otherwise alone than in a batch, so what is learned in batches "
            "is of another policy than the one that acts: call model.eval(), take no statistics over a batch (lpds check)"
        )
    if getattr(decoder, "runs_on", None) == "cpu" and torch.cuda.is_available():
        lines.append(f"WARNING: decoder {decoder.name!r} runs on the CPU, and there is a GPU: --decoder-device cuda")
    left_out = getattr(decoder, "left_out", "")
    if left_out:
        lines.append(f"WARNING: decoder {decoder.name!r} has of its checkpoint {left_out}")
    return lines


def of_actions(action: Tensor, box: gymnasium.spaces.Box) -> list[str]:
    """A warning where the frozen policy's actions [N, T * A] are cut by a box of A entries."""
    low, high = torch.from_numpy(box.low), torch.from_numpy(box.high)
    rows = action.cpu().unflatten(1, (-1, len(low))).flatten(0, 1)
    places, columns = places_in_box(rows, low, high)
    single, singles = beyond_single_edges(rows, low, high)
    shares, far = torch.cat([shares_beyond(places), single]), torch.cat([shares_beyond(places, FAR), single])
    columns = torch.cat([columns, singles])
    if not len(columns):
        return []
    share = float(shares.mean())
    if share <= MUCH_BEYOND and float(far.max()) <= MUCH_BEYOND:
        return []
    worst = f", of number {int(columns[far.argmax()])} {float(far.max()):.0%} far" if float(far.max()) > MUCH_BEYOND else ""
    return [
        f"WARNING: {share:.0%} of the frozen policy's actions lie beyond the environment's box{worst}, which cuts them: are "
        "they in environment units? (lpds check)"
    ]


def of_success(key: str | None, end_at_success: bool) -> str:
    """What is taken for success, or that nothing is."""
    if key is not None:
        return f"success: what the environment's info calls {key!r}, at any step of an episode" + (
            ", at the first of which a training episode ends; an evaluation's goes on" if end_at_success else ""
        )
    line = f"success: the environment's first steps say nothing of it (looked for in info: {', '.join(SUCCESS_KEYS)})"
    return line + (", so no episode ends at it (end_at_success) before an info names it" if end_at_success else "")


def of_early_ends(reward: Tensor, discount: Tensor) -> list[str]:
    """Whether a policy that ends its episodes at success earns more without it: rewards [N] and discounts [N] of a warm-up."""
    going = reward[discount > 0.0]
    if not len(going) or float(going.mean()) <= 0.0:
        return []
    return [
        f"WARNING: end_at_success ends episodes in which decisions before success earn {float(going.mean()):.3g} in the mean; "
        "what stays short of success may earn more than it; leave it out, or make those rewards negative (reward_offset)"
    ]


ENDLESS = 1_000
"""Steps without an end, where no limit of an episode is known, from which on a run says so."""


def of_endless(lengths: Sequence[int], time_limit: int | None) -> list[str]:
    """A warning where episodes go on: steps so far of the one that each sub-environment is in, none of which has ended."""
    if time_limit is not None or min(lengths) < ENDLESS:
        return []
    return [
        f"WARNING: no sub-environment has ended an episode in its last {min(lengths):,} steps and no time limit is known: an "
        "evaluation waits for that end; give it one (gymnasium.wrappers.TimeLimit, or max_episode_steps where it is registered)"
    ]


RUNNING = {
    "NormalizeObservation": "one state is observed in several ways, in every sub-environment by statistics of its own",
    "NormalizeReward": "returns are in units of its own, which move",
}
"""Wrappers that keep running statistics, which no seed fixes and no checkpoint holds; and what comes of them."""
FREEZE = "freeze the statistics (update_running_mean = False on all of them alike), or put them into the policy"


def of_statistics(env: gymnasium.Env[Any, Any]) -> list[str]:
    """Wrappers around an environment that keep running statistics, and that nobody froze."""
    found = []
    while isinstance(env, gymnasium.Wrapper):
        name = type(env).__name__
        if name in RUNNING and getattr(env, "update_running_mean", True):
            found.append(f"{name} keeps running statistics: {RUNNING[name]}")
        env = env.env
    return found


def of_order(order: str | None) -> list[str]:
    """How an observation's entries were put end to end, if they were; a policy may have them in another order."""
    return [] if order is None else [f"observations, put end to end: {order}"]
