"""The unit that values are learned in: a factor of the rewards, from the returns of the frozen policy."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def reward_scale(returns: Tensor, std: float, say: Callable[[str], None]) -> float:
    """What makes the warm-up's returns [N] deviate by ``std``; 1 where they do not vary, which is said."""
    spread = float(returns.std()) if len(returns) > 1 else 0.0
    if spread > 1e-6 * float(returns.abs().max()):
        return std / spread
    say(
        "the warm-up's returns do not vary, so they say nothing of the rewards' size: rewards are left as they are "
        "(--reward-scale sets a factor, a longer --warmup-steps may meet a reward)"
    )
    return 1.0
