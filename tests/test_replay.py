"""The ring of transitions: order, uniformity, returns to go, and segments that bring it back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from scripted import CPU

from lpds.errors import LpdsError
from lpds.replay import Replay
from lpds.types import LatentSpec

SPEC = LatentSpec((3,), (2, 2), (1, 2))


def fill(replay, rounds, *, first=0, over=None, discount=0.9):
    """Every field of the n-th row ever inserted says n."""
    for number in range(first, first + rounds):
        ids = torch.arange(number * replay.lanes, (number + 1) * replay.lanes, dtype=torch.float32)
        pairs = ids[:, None, None] + torch.arange(replay._rows["base_noise"].shape[1])[None, :, None] / 8
        replay.insert(
            {
                "obs": ids[:, None].expand(-1, 3),
                "action": -ids[:, None].expand(-1, 2),
                "reward": ids,
                "discount": torch.full_like(ids, discount),
                "next_obs": ids[:, None].expand(-1, 3) + 0.5,
                "base_noise": pairs.expand(-1, -1, 4),
                "base_action": -pairs.expand(-1, -1, 2),
                "over": torch.zeros_like(ids) if over is None else over[number],
            }
        )


def held(replay):
    return sorted(replay.everything("reward").tolist())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(capacity=st.integers(1, 30), lanes=st.integers(1, 4), rounds=st.integers(0, 40))
def test_the_ring_holds_the_newest_rows(capacity, lanes, rounds):
    replay = Replay(SPEC, capacity, 1, lanes, CPU)
    assert replay.capacity >= capacity
    assert replay.capacity - capacity < lanes
    fill(replay, rounds)
    total = rounds * lanes
    assert len(replay) == min(total, replay.capacity)
    assert held(replay) == list(range(total - len(replay), total))


def test_sampling_is_uniform_and_rows_stay_whole():
    replay = Replay(SPEC, 40, 4, 4, CPU)
    fill(replay, 17)  # wrapped: 68 rows went in, 40 are held
    counts, columns = np.zeros(68), np.zeros(4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        batch = replay.sample(400, generator)
        ids = batch.reward
        assert torch.equal(batch.obs, ids[:, None].expand(-1, 3))
        assert torch.equal(batch.action, -ids[:, None].expand(-1, 2))
        assert torch.equal(batch.next_obs, ids[:, None].expand(-1, 3) + 0.5)
        column = batch.base_noise[:, 0, 0] - ids
        assert torch.equal(batch.base_noise, (ids + column)[:, None, None].expand(-1, 1, 4))
        assert torch.equal(batch.base_action, -(ids + column)[:, None, None].expand(-1, 1, 2))
        counts += np.bincount(ids.long().numpy(), minlength=68)
        columns += np.bincount((column * 8).long().numpy(), minlength=4)
    assert not counts[:28].any()
    assert chisquare(counts[28:]).pvalue > 0.01
    assert chisquare(columns).pvalue > 0.01
    assert abs(np.corrcoef(batch.reward, (batch.base_noise[:, 0, 0] - batch.reward))[0, 1]) < 0.15


@pytest.mark.parametrize(("kept", "asked", "got"), [(4, 1, 1), (4, 2, 2), (4, 4, 4), (0, 1, 0)])
def test_kept_pairs_belong_to_their_row(kept, asked, got):
    replay = Replay(SPEC, 20, kept, 2, CPU)
    fill(replay, 10)
    batch = replay.sample(64, torch.Generator().manual_seed(1), asked)
    assert batch.base_noise.shape == (64, got, 4)
    assert batch.base_action.shape == (64, got, 2)
    assert torch.equal(batch.base_noise[..., :2], -batch.base_action)
    if got:
        assert torch.equal(batch.base_noise[..., 0].floor(), batch.reward[:, None].expand(-1, got))
    if got == kept and kept:  # all of them, each once
        assert torch.equal(batch.base_noise[0, :, 0] - batch.reward[0], torch.arange(4) / 8)


def test_equal_generators_draw_equal_batches():
    replay = Replay(SPEC, 20, 2, 2, CPU)
    fill(replay, 10)
    a, b = (replay.sample(32, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a.reward, b.reward)
    assert torch.equal(a.base_noise, b.base_noise)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lanes=st.integers(1, 3),
    rounds=st.integers(1, 14),
    capacity=st.sampled_from([9, 18, 60]),
    seed=st.integers(0, 10_000),
)
def test_returns_to_go_against_brute_force(lanes, rounds, capacity, seed):
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(rounds, lanes)).astype(np.float32)
    discount = (0.9 ** rng.integers(1, 5, (rounds, lanes))).astype(np.float32)
    over = rng.random((rounds, lanes)) < 0.3
    discount[over & (rng.random((rounds, lanes)) < 0.5)] = 0.0  # terminated; the other ends are time limits
    replay = Replay(SPEC, capacity, 1, lanes, CPU)
    for t in range(rounds):
        rows = {name: torch.zeros((lanes, *value.shape[1:])) for name, value in replay._rows.items()}
        rows |= {"reward": torch.from_numpy(reward[t]), "discount": torch.from_numpy(discount[t])}
        rows["over"] = torch.from_numpy(over[t].astype(np.float32))
        replay.insert(rows | {"next_obs": torch.full((lanes, 3), float(t))})
    total, factor, last = replay.returns_to_go()
    for t in range(max(0, rounds - replay.capacity // lanes), rounds):
        for lane in range(lanes):
            value, product, end = 0.0, 1.0, t
            for later in range(t, rounds):
                value, product, end = value + product * reward[later, lane], product * discount[later, lane], later
                if over[later, lane]:
                    break
            row = (t * lanes + lane) % replay.capacity
            assert total[row].item() == pytest.approx(value, abs=1e-4)
            assert factor[row].item() == pytest.approx(product, abs=1e-5)
            assert int(last[row]) == (end * lanes + lane) % replay.capacity
            assert replay._rows["next_obs"][last[row], 0] == end


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lanes=st.integers(1, 3),
    rounds=st.integers(1, 14),
    capacity=st.sampled_from([9, 18, 60]),
    n_step=st.integers(1, 6),
    seed=st.integers(0, 10_000),
)
def test_n_step_transitions_against_brute_force(lanes, rounds, capacity, n_step, seed):
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(rounds, lanes)).astype(np.float32)
    discount = (0.9 ** rng.integers(1, 5, (rounds, lanes))).astype(np.float32)
    over = rng.random((rounds, lanes)) < 0.3
    discount[over & (rng.random((rounds, lanes)) < 0.5)] = 0.0
    replay = Replay(SPEC, capacity, 1, lanes, CPU)
    for t in range(rounds):
        rows = {name: torch.zeros((lanes, *value.shape[1:])) for name, value in replay._rows.items()}
        rows |= {"reward": torch.from_numpy(reward[t]), "discount": torch.from_numpy(discount[t])}
        rows["over"] = torch.from_numpy(over[t].astype(np.float32))
        place = torch.arange(lanes, dtype=torch.float32)[:, None]
        replay.insert(
            rows
            | {
                "obs": torch.cat([torch.full((lanes, 1), float(t)), place, place], 1),
                "next_obs": torch.full((lanes, 3), float(t)),
            }
        )
    batch = replay.sample(64, torch.Generator().manual_seed(seed), n_step=n_step)
    for row in range(64):
        t, lane = int(batch.obs[row, 0]), int(batch.obs[row, 1])
        value, product, end = 0.0, 1.0, t
        for later in range(t, min(t + n_step, rounds)):
            value, product, end = value + product * reward[later, lane], product * discount[later, lane], later
            if over[later, lane]:
                break
        assert batch.reward[row].item() == pytest.approx(value, abs=1e-4)
        assert batch.discount[row].item() == pytest.approx(product, abs=1e-5)
        assert batch.next_obs[row, 0] == end


def test_sampled_returns_lengthen_the_transition():
    replay = Replay(SPEC, 20, 1, 1, CPU)
    over = [torch.tensor([float(t == 4)]) for t in range(6)]
    fill(replay, 6, over=over, discount=0.5)
    batch = replay.sample(200, torch.Generator().manual_seed(0), 1, replay.returns_to_go())
    by_row = {
        int(o): (r, d, n)
        for o, r, d, n in zip(batch.obs[:, 0], batch.reward, batch.discount, batch.next_obs[:, 0], strict=True)
    }
    assert [float(x) for x in by_row[3]] == [3 + 0.5 * 4, 0.25, 4.5]
    assert [float(x) for x in by_row[0]] == [0 + 0.5 + 2 / 4 + 3 / 8 + 4 / 16, 0.5**5, 4.5]
    assert [float(x) for x in by_row[5]] == [5.0, 0.5, 5.5]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(parts=st.lists(st.integers(0, 9), min_size=1, max_size=6), capacity=st.integers(1, 16), lanes=st.integers(1, 3))
def test_segments_bring_everything_back_even_after_rows_were_overwritten(parts, capacity, lanes):
    replay = Replay(SPEC, capacity, 2, lanes, CPU)
    copy = Replay(SPEC, capacity, 2, lanes, CPU)
    segments, rounds = [], 0
    for part in parts:
        before = replay.inserted
        fill(replay, part, first=rounds)
        rounds += part
        first = max(before, replay.inserted - replay.capacity)
        segment = replay.segment(before)
        assert len(segment["obs"]) == replay.inserted - first  # only what is new, only what is still there
        segments.append((first, segment))
    for first, segment in segments:
        copy.restore(first, segment)
    assert copy.inserted == replay.inserted
    for name in replay._rows:
        assert torch.equal(copy.everything(name), replay.everything(name)), name
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    if len(replay):
        a, b = (ring.sample(16, generator) for ring, generator in zip((replay, copy), generators, strict=True))
        assert torch.equal(a.reward, b.reward)


def test_recent_rounds_come_in_order_with_their_extras_and_a_batch_has_them_too():
    replay = Replay(SPEC, 6, 0, 2, CPU, {"mark": (3,)})  # holds three rounds of two
    for number in range(5):
        rows = {name: torch.full((2, *value.shape[1:]), float(number)) for name, value in replay._rows.items()}
        for value in rows.values():
            value[1] += 0.5
        replay.insert(rows)
    recent = replay.recent(3)
    assert recent["mark"].shape == (3, 2, 3)
    assert recent["reward"].tolist() == [[2.0, 2.5], [3.0, 3.5], [4.0, 4.5]]
    assert torch.equal(recent["mark"][..., 0], recent["reward"])
    batch = replay.sample(16, torch.Generator().manual_seed(0))
    assert torch.equal(batch.extra["mark"], batch.reward[:, None].expand(-1, 3))


@pytest.mark.parametrize(("capacity", "lanes", "reserved"), [(40, 4, 1), (37, 3, 5), (12, 2, 12)])
def test_a_ring_that_grows_is_the_one_that_was_there_at_once(capacity, lanes, reserved):
    whole, grown = (Replay(SPEC, capacity, 2, lanes, CPU, reserved=r) for r in (None, reserved))
    for number in range(2 * capacity // lanes):
        for ring in (whole, grown):
            fill(ring, 1, first=number)
        assert len(grown._rows["obs"]) <= max(lanes, reserved, 2 * len(grown))
        for name in ("obs", "action", "next_obs", "base_noise", "over"):
            assert torch.equal(whole.everything(name), grown.everything(name))
    assert len(grown._rows["obs"]) == grown.capacity
    again = Replay(SPEC, capacity, 2, lanes, CPU, reserved=reserved)
    again.restore(whole.inserted - whole.capacity, whole.segment(0))
    assert torch.equal(again.everything("obs"), whole.everything("obs"))


def test_a_cut_ends_an_episode_for_returns_and_spans_and_survives_a_save():
    ring, other = (Replay(SPEC, 40, 1, 2, CPU) for _ in range(2))
    fill(ring, 3, discount=1.0)
    ring.cut([1])
    saved = ring.segment(0)
    fill(ring, 2, first=3, discount=1.0)
    returns, discount, last = ring.returns_to_go()
    assert returns[[0, 1]].tolist() == [0 + 2 + 4 + 6 + 8, 1 + 3 + 5]  # sub-environment 0 goes on, 1 was cut
    assert (float(discount[1]), int(last[1])) == (1.0, 5)
    reward, _, last = ring._span(torch.tensor([4, 5]), 3)
    assert (reward.tolist(), last.tolist()) == ([4 + 6 + 8, 5], [8, 5])
    other.cuts = list(ring.cuts)
    saved["over"] = torch.zeros(6)  # as a segment that was written before the cut has it
    other.restore(0, saved)
    assert torch.equal(other.everything("over"), ring.everything("over")[:6])


def test_what_is_expected_is_told_and_only_that_is_refused(monkeypatch):
    row = sum(Replay(SPEC, 10, 1, 1, CPU).row_bytes.values())
    monkeypatch.setattr("lpds.replay.memory_of", lambda device: 100 * row)
    with pytest.raises(LpdsError, match="do not fit"):
        Replay(SPEC, 400, 1, 1, CPU)
    told = Replay(SPEC, 400, 1, 1, CPU, expected=100).describe_memory()
    assert f"{400 * row / 1e9:.3g} GB at most, {100 * row / 1e9:.3g} GB where no chunk is cut short" in told
    with pytest.raises(LpdsError, match="do not fit"):
        Replay(SPEC, 400, 1, 1, CPU, expected=101)


def test_a_machine_that_does_not_tell_its_memory_refuses_nothing(monkeypatch):
    """Windows: every run ended in an AttributeError there."""
    monkeypatch.delattr("os.sysconf")
    assert Replay(SPEC, 400, 1, 1, CPU).describe_memory()


def test_a_ring_beyond_the_machine_takes_what_is_expected_and_grows(monkeypatch):
    """Ten thousand million rows: a system promises no such array, and a run of whole chunks needs a hundred."""
    ring = Replay(SPEC, 10**10, 1, 2, CPU, expected=100)
    assert len(ring._rows["obs"]) == 100
    fill(ring, 60)
    assert held(ring) == list(range(120))
    monkeypatch.setattr("torch.empty", lambda *shape, **given: (_ for _ in ()).throw(RuntimeError("can't allocate memory")))
    with pytest.raises(LpdsError, match="do not fit into the"):
        fill(ring, 60, first=60)
