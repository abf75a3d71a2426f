"""What a run says of itself in a line."""

from __future__ import annotations

import numpy.typing as npt

from lpds.digits import brackets, told
from lpds.stats import FEWEST_PAIRS, Interval, paired_difference, pairs_that_differ, told_apart

UNTRAINED = "what it starts from, untrained"
"""A method's own actor before it learned anything, where that is not the frozen policy: a chain, a squashed Gaussian."""

NOT_THE_SAME = "; NOT THE SAME EPISODES: the environment ignores the seed of a reset"
"""The end of a verdict where the pairs are none."""


def verdict_line(
    returns: tuple[float, float],
    success: tuple[float, float] | None,
    difference: Interval,
    pairs: int,
    differ: int | None = None,
) -> str:
    """Say in one line how the steered policy compares with the frozen one.

    Args:
        returns: mean return of the frozen and of the steered policy.
        success: their success rates, if the environment has any.
        difference: paired, of the return: (mean, low, high).
        pairs: E, episodes that both played.
        differ: of these those that went differently (:func:`lpds.stats.pairs_that_differ`); all by default.
    """
    differ = pairs if differ is None else differ
    words = {
        1: "BETTER than the frozen policy",
        -1: "WORSE than the frozen policy: do not use it",
        0: "not told apart from the frozen policy",
    }
    word = words[told_apart(difference, differ)]
    if pairs < FEWEST_PAIRS:
        word += f" (fewer than {FEWEST_PAIRS} episodes cannot)"
    elif differ < FEWEST_PAIRS and differ:
        word += f" (fewer than {FEWEST_PAIRS} that differ cannot; {differ} do)"
    frozen, steered = told(returns)
    parts = [f"frozen {frozen}, steered {steered} over {pairs} episodes"]
    if success is not None:
        parts.append(f"success {success[0]:.0%} -> {success[1]:.0%}")
    mean, low, high = told(difference, sign=True)
    return f"{'; '.join(parts)}; paired difference {mean}{brackets(low, high)}: {word}"


def with_noise(noise_scale: float) -> str:
    """The frozen policy with as little noise as the steered one."""
    return f"the frozen policy with {noise_scale:.3g} of its noise, too"


def against_line(other: npt.ArrayLike, steered: npt.ArrayLike, name: str) -> str:
    """What is left of a difference where the frozen policy has what the steered one has: the end of a verdict."""
    found = paired_difference(other, steered)
    mean, low, high = told(found, sign=True)
    word = {1: "better", -1: "WORSE", 0: "not told apart"}[told_apart(found, pairs_that_differ(other, steered))]
    return f"; against {name}, {mean}{brackets(low, high)}: {word}"
