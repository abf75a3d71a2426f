"""The unit that values are learned in: a factor of the rewards, from the returns of the frozen policy."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

RETURN_STD = 10.0
"""Deviation that the warm-up's returns to go are scaled to where ``reward_scale`` is left open: a value network started
near zero gets there in some thousand steps of Adam at 3e-4, and its noise floor is far below."""


def reward_scale(returns: Tensor, say: Callable[[str], None]) -> float:
    """What makes the warm-up's returns [N] deviate by :data:`RETURN_STD`; 1 where they do not vary, which is said."""
    spread = float(returns.std()) if len(returns) > 1 else 0.0
    if spread > 1e-6 * float(returns.abs().max()):
        return RETURN_STD / spread
    say(
        "the warm-up's returns do not vary, so they say nothing of the rewards' size: rewards are left as they are "
        "(--reward-scale sets a factor, a longer --warmup-steps may meet a reward)"
    )
    return 1.0
