"""How many threads the caller uses changes no bit of a decoder or an evaluation."""

from __future__ import annotations

import numpy as np
import torch

import lpds
from lpds.threads import one_thread


def test_threads_of_the_caller_change_nothing_and_are_restored():
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (2, 1):
            torch.set_num_threads(threads)
            decoder = lpds.load_decoder("toy")
            returns = lpds.evaluate(decoder, "toy", episodes=6, seed=1).final_obs
            assert torch.get_num_threads() == threads
            with one_thread():
                obs, w = torch.ones(64, 2), torch.ones(64, *decoder.spec.latent_shape)
                found.append((decoder(obs, w).numpy(), returns))
        np.testing.assert_array_equal(found[0][0], found[1][0])
        np.testing.assert_array_equal(found[0][1], found[1][1])
    finally:
        torch.set_num_threads(before)
