"""Counter-based randomness: a draw is a function of its address, not of what was drawn before.

The noise of one decision depends on (stream, seed, episode, decision) alone in evaluation, so it does not change with the
number of environments nor with which of them are still running; in training, where a lane counts its own episodes, on (stream,
seed, lane, episode, decision). A resumed run needs no generator state for either.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_STREAMS = {"train": 0, "evaluation": 1, "kept": 2, "probe": 3, "demonstrations": 4, "next": 5, "demonstrations next": 6}


def normal(stream: str, *address: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Draw N(0, I) at an address.

    Args:
        stream: a named family of draws; different families are independent.
        address: up to five non-negative integers, for instance (seed, sub-environment, episode, decision).
        shape: shape of the draw.

    Returns:
        float32 array of the shape; equal addresses give equal bits.
    """
    words = [_STREAMS[stream], *address]
    padded = words + [0] * (6 - len(words))
    # Philox: two words of key, four of counter. The first counter word is left to the generator itself.
    generator = np.random.Generator(np.random.Philox(key=[padded[0] + (padded[1] << 8), padded[2]], counter=[0, *padded[3:]]))
    return generator.standard_normal(shape, dtype=np.float32)


def episode_seed(evaluation: bool, seed: int, lane: int, episode: int) -> int:
    """Seed of one reset, a hash of (seed, sub-environment, episode).

    Training seeds are even and evaluation seeds odd, so that the two can never meet.

    Returns:
        An integer in [0, 2**31).
    """
    word = int(np.random.SeedSequence([seed, lane, episode]).generate_state(1, np.uint32)[0])
    return (word >> 2 << 1) | int(evaluation)
