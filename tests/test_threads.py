"""How many threads the caller uses changes no bit of a decoder or an evaluation; nor does lpds change what the caller draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scripted import TINY

import lpds
from lpds.bench import matmul_rate
from lpds.policy import recorded_shift
from lpds.threads import one_thread


def test_threads_of_the_caller_change_nothing_and_are_restored():
    """A decoder opened by a caller of two threads, asked inside, is the one that a caller of one thread opens and asks."""
    before, generator = torch.get_num_threads(), torch.Generator().manual_seed(0)
    obs, w = torch.randn(64, 2, generator=generator), torch.randn(64, 2, 2, generator=generator)
    try:
        found = []
        for threads in (2, 1):
            torch.set_num_threads(threads)
            decoder = lpds.load_decoder("toy")
            returns = lpds.evaluate(decoder, "toy", episodes=6, seed=1).final_obs
            assert torch.get_num_threads() == threads
            with one_thread():
                assert torch.get_num_threads() == 1
                inside = decoder(obs, w).numpy()
            assert torch.get_num_threads() == threads
            found.append((inside if threads == 2 else decoder(obs, w).numpy(), returns))
        np.testing.assert_array_equal(found[0][0], found[1][0])
        np.testing.assert_array_equal(found[0][1], found[1][1])
    finally:
        torch.set_num_threads(before)


def test_an_evaluation_decodes_on_one_thread_whatever_the_caller_uses():
    """Whether two threads round otherwise is the machine's affair; that there are not two is ours."""
    seen, before = [], torch.get_num_threads()

    def watching(obs, w):
        seen.append(torch.get_num_threads())
        return w

    decoder = lpds.wrap_decoder(watching, obs_shape=(2,), latent_shape=(4, 2), action_shape=(4, 2), name="watching")
    try:
        torch.set_num_threads(2)
        lpds.evaluate(decoder, "toy", episodes=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_what_the_caller_draws_hangs_on_nothing_that_was_opened_or_learned(tmp_path):
    """Layers that are about to be overwritten drew their first weights from the global generator."""
    run = lpds.steer("toy", out=tmp_path / "run", **TINY).folder
    ways = {
        "decoder": lambda: lpds.load_decoder("hopper"),
        "policy": lambda: lpds.load_policy(run),
        "run": lambda: lpds.steer("toy", "dppo", out=tmp_path / "dppo", **TINY),
        "going on": lambda: lpds.resume(run, quiet=True),
        "speed": lambda: matmul_rate(8, 1),
    }
    for name, way in ways.items():
        torch.manual_seed(0)
        before = torch.get_rng_state()
        way()
        assert torch.equal(torch.get_rng_state(), before), name


def test_a_policy_acts_in_single_precision_whatever_the_callers_default_type_is():
    """Opened by a caller in double precision, its networks were of doubles, and acting ended in a traceback."""
    run = Path(__file__).parents[1] / "results" / "hopper" / "lpds" / "seed0"
    obs, eps = np.ones((2, 11), np.float32), np.ones((2, 4, 3), np.float32)
    wanted, shift = lpds.load_policy(run).act(obs, eps=eps), recorded_shift(run, obs)
    try:
        torch.set_default_dtype(torch.float64)
        found = lpds.load_policy(run).act(obs, eps=eps)
        np.testing.assert_array_equal(recorded_shift(run, obs), shift)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found, wanted)
