"""The environment loop: what a row holds, where its noise comes from, what is counted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scripted import CPU, Scripted, identity_decoder, toy_decoder

import lpds
from lpds.collect import Collector
from lpds.errors import EnvironmentFault
from lpds.methods.base import BasePolicy
from lpds.random import _STREAMS, normal


class Shifted(BasePolicy):
    """Delta(s) = s + 1 in every coordinate."""

    def latent(self, obs, eps, scale):
        return eps + scale * (obs.sum(1) + 1.0)[:, None, None]


def collector(env, decoder, **changes):
    given = {"seed": 0, "gamma": 0.9, "discount": "exact", "reward_offset": 0.0, "kept_noises": 0, "device": CPU}
    return Collector(env, decoder, **(given | changes))


def scripted_collector(script, *, lanes=1, chunk=3, **changes):
    decoder = identity_decoder((chunk, 1))
    return collector(lpds.make_env(lambda: Scripted(script), lanes, chunk), decoder, **changes)


def test_rows_of_a_scripted_episode():
    work = scripted_collector([([1.0, 2.0, 3.0, 4.0, 5.0], "terminated"), ([1.0, 1.0], "truncated")])
    rows, records, taken = work.step(BasePolicy(), 0.0)
    assert (taken, records) == (3, [])
    assert rows["reward"].item() == pytest.approx(1 + 0.9 * 2 + 0.81 * 3)
    assert rows["discount"].item() == pytest.approx(0.9**3)
    rows, records, taken = work.step(BasePolicy(), 0.0)
    assert taken == 2
    assert rows["reward"].item() == pytest.approx(4 + 0.9 * 5)
    assert (rows["discount"].item(), rows["over"].item()) == (0.0, 1.0)
    assert rows["next_obs"][0, 1] == 5.0  # the last observation of the episode, not the first of the next
    assert work.obs[0, 1] == 0.0
    (record,) = records
    assert (record.total, record.length, record.success) == (15.0, 5, 1.0)
    rows, records, taken = work.step(BasePolicy(), 0.0)
    assert (taken, rows["over"].item()) == (2, 1.0)
    assert rows["discount"].item() == pytest.approx(0.81)  # a time limit is not an end
    assert records[0].seed != record.seed


def test_offset_reaches_executed_steps_of_the_rows_only():
    plain = scripted_collector([([1.0, 2.0], "terminated")])
    moved = scripted_collector([([1.0, 2.0], "terminated")], reward_offset=-10.0)
    a, b = (work.step(BasePolicy(), 0.0) for work in (plain, moved))
    assert b[0]["reward"].item() == pytest.approx(a[0]["reward"].item() - 10.0 * (1 + 0.9), rel=1e-6)
    assert a[1][0].total == b[1][0].total == 3.0


def test_noise_is_addressed_by_seed_lane_episode_decision():
    work = scripted_collector([([0.0] * 4, "terminated")], lanes=2, seed=9)
    seen = [work.step(BasePolicy(), 0.0)[0]["action"] for _ in range(5)]  # two decisions an episode
    for at, action in enumerate(seen):
        for lane in range(2):
            wanted = normal("train", 9, lane, at // 2, at % 2, shape=(3, 1)).ravel()
            assert np.array_equal(action[lane].numpy(), wanted)


def test_scale_reaches_the_policy_and_zero_is_the_base_noise():
    base, zero, one = (scripted_collector([([0.0] * 9, "terminated")], lanes=2) for _ in range(3))
    a = base.step(BasePolicy(), 1.0)[0]["action"]
    obs = torch.from_numpy(one.obs)
    assert torch.equal(a, zero.step(Shifted(), 0.0)[0]["action"])
    torch.testing.assert_close(one.step(Shifted(), 1.0)[0]["action"], a + obs.sum(1, keepdim=True) + 1.0)


def test_kept_pairs_are_base_noise_and_what_it_decodes_to():
    decoder = toy_decoder()
    work = collector(lpds.make_env("four-mode", 3, 4), decoder, kept_noises=4)
    for decision in range(3):
        rows = work.step(Shifted(), 1.0)[0]
        assert rows["base_noise"].shape == (3, 4, 8)
        for lane in range(3):
            noise = normal("kept", 0, lane, 0, decision, shape=(4, 4, 2))
            assert np.array_equal(rows["base_noise"][lane].numpy(), noise.reshape(4, 8))
            obs = rows["obs"][lane].expand(4, -1)
            torch.testing.assert_close(decoder(obs, torch.from_numpy(noise)).flatten(1), rows["base_action"][lane])


def test_rows_that_were_not_collected_are_numbered_through_whatever_is_decoded_at_once():
    """256 rows are decoded at once: numbered from nought in each of these, later rows would have the noise of earlier ones."""
    decoder = toy_decoder()
    work = collector(lpds.make_env("four-mode", 2, 4), decoder, seed=5, kept_noises=1)
    rows = {name: torch.randn(600, 2, generator=torch.Generator().manual_seed(0)) for name in ("obs", "next_obs")}
    done = work.complete(rows, BasePolicy())
    noise = np.stack([normal("demonstrations", 5, row, shape=(1, 4, 2)) for row in range(600)])
    assert np.array_equal(done["base_noise"].numpy(), noise.reshape(600, 1, 8))
    assert len(np.unique(noise.reshape(600, 8), axis=0)) == 600
    wanted = decoder(rows["obs"], torch.from_numpy(noise[:, 0]))
    torch.testing.assert_close(done["base_action"][:, 0], wanted.flatten(1))


def test_streams_share_no_draw_at_one_address():
    """What a decision meets, keeps and is evaluated by must be independent of each other, at the same seed and numbers too."""
    for address in ((0,), (3, 1), (7, 2, 5, 4)):
        draws = {stream: normal(stream, *address, shape=(64,)) for stream in _STREAMS}
        for one, other in itertools.combinations(draws, 2):
            assert not np.isin(draws[one], draws[other]).any(), (address, one, other)


def test_two_collectors_are_equal_to_the_bit_and_a_restored_one_goes_on():
    works = [collector(lpds.make_env("four-mode", 3, 4, 2), toy_decoder(), seed=2, kept_noises=1) for _ in range(3)]
    a, b, late = works
    for _ in range(30):
        first, second = (work.step(BasePolicy(), 0.0) for work in (a, b))
        assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
        assert first[1:] == second[1:]
    assert late.restore(a.tensors(), a.facts()) == {}
    assert late.episodes[0].number > 0
    for _ in range(30):
        first, second = (work.step(BasePolicy(), 0.0) for work in (a, late))
        assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
        assert first[1:] == second[1:]


def test_a_replay_that_misses_gets_one_line_and_that_episode_starts_anew():
    script = [([0.0] * 30, "terminated")]
    work = scripted_collector(script, lanes=2)
    for _ in range(3):
        work.step(BasePolicy(), 0.0)
    tensors = work.tensors()
    tensors["obs"][1, 1] += 2.0  # as if this environment had gone elsewhere
    other = scripted_collector(script, lanes=2)
    ((lane, line),) = other.restore(tensors, work.facts()).items()
    assert lane == 1
    assert line.startswith("WARNING: sub-environment 1: replaying 3 decisions of episode 0 missed the saved observation by 2;")
    assert other.obs[:, 1].tolist() == [9.0, 0.0]
    assert [(e.decision, e.length, len(e.chunks)) for e in other.episodes] == [(3, 9, 3), (0, 0, 0)]


def test_a_fault_leaves_the_collector_where_the_round_began():
    class Faulty(Scripted):
        def step(self, action):
            if self.at == 4:
                raise RuntimeError("no")
            return super().step(action)

    decoder = identity_decoder((3, 1))
    work = collector(lpds.make_env(lambda: Faulty([([1.0] * 30, "terminated")]), 1, 3), decoder)
    work.step(BasePolicy(), 0.0)
    before = (work.facts(), work.tensors())
    with pytest.raises(EnvironmentFault):
        work.step(BasePolicy(), 0.0)
    assert work.facts() == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in work.tensors().items())
