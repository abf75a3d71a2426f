"""Where episodes and chunks end, and what an environment is handed."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from scripted import TINY, identity_decoder, toy_decoder
from small_envs import Still, Two, still_data
from test_collect import collector

import lpds
from lpds import remarks
from lpds.checks import check_share
from lpds.envs.build import make_env
from lpds.envs.chunk import ChunkedVectorEnv, chunk_return
from lpds.envs.four_mode import FourMode
from lpds.methods.base import BasePolicy
from lpds.pretrain.build import data_card


class Ending(gymnasium.Env):
    """Counts, and ends after so many steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, last: int) -> None:
        self.last, self.at = last, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.at += 1
        return np.full(2, self.at, np.float32), 0.0, self.at >= self.last, False, {}


class Counter(gymnasium.Env):
    """Takes whole numbers and keeps what it was given."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    action_space = gymnasium.spaces.Box(0, 255, (2,), np.int64)

    def __init__(self):
        self.given = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.given.append(action)
        return np.zeros(2, np.float32), 0.0, False, len(self.given) >= 9, {}


def chunked(lanes, made):
    return ChunkedVectorEnv(lambda: made.append(Counter()) or made[-1], lanes, 1, name="counter", seed=0)


BRIEF = TINY | {"steps": 360, "warmup_steps": 150, "num_envs": 2, "delta": 0.5}


def test_a_time_limit_is_an_end_under_dsrls_convention_and_none_under_the_exact_one():
    rewards, k = -np.ones((3, 4)), np.array([4, 4, 4])
    ended, cut = np.array([False, False, True]), np.array([False, True, False])
    assert chunk_return(rewards, k, ended, 0.5, "dsrl", cut)[1].tolist() == [0.0625, 0.0, 0.0]
    assert chunk_return(rewards, k, ended, 0.5, "exact", cut)[1].tolist() == [0.0625, 0.0625, 0.0]


def test_episodes_shorter_than_a_chunk_are_counted_apart():
    assert data_card("own", still_data((3, 5, 3)), 4)["episodes_shorter_than_chunk"] == 2
    assert "episodes_shorter_than_chunk" not in data_card("own", still_data((4, 5)), 4)


def test_all_environments_are_closed_and_none_of_them_can_spoil_what_was_done():
    made = []

    def factory():
        made.append(Still(closes=False))
        return made[-1]

    env = ChunkedVectorEnv(factory, 3, 2)
    env.close()
    assert [one.closed for one in made] == [1, 1, 1]


def test_a_replay_that_ends_the_episode_under_way_begins_another():
    """Left ended, its sub-environment would never act again."""

    def counting(last):
        return collector(make_env(lambda: Ending(last), 1, 1), identity_decoder((1, 2)))

    first = counting(100)
    for _ in range(10):
        first.step(BasePolicy(), 0.0)
    other = counting(10)
    ((lane, line),) = other.restore(first.tensors(), first.facts()).items()
    assert (lane, other.env.over) == (0, [False])
    assert "came to its end; that episode starts anew" in line


def test_a_number_that_float32_does_not_hold_is_the_environments(refused):
    space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)

    class Huge(Ending):
        observation_space = space

        def step(self, action):
            return np.array([0.0, np.finfo(np.float64).max]), 0.0, False, False, {}

    env = make_env(lambda: Huge(5), 1, 1)
    env.reset(seed=0)
    with refused("infinite as float32"):
        env.step(np.zeros((1, 1, 2), np.float32))


def test_a_count_that_is_no_whole_number_is_not_the_environments_fault(refused):
    with refused("episodes must be a whole number, not 3.0"):
        lpds.evaluate(toy_decoder(), env=FourMode, episodes=3.0)
    with refused("num_envs must be a whole number, not 2.0"):
        make_env(FourMode, num_envs=2.0)
    with refused("scale must be in [0, 1], not '1'"):
        check_share("scale", "1")


def test_whole_actions_are_rounded_not_cut():
    made = []
    env = chunked(1, made)
    env.reset()
    env.step(np.asarray([[[0.9, 1.9]]]))
    env.step(np.asarray([[[254.6, -3.0]]]))
    assert [list(action) for action in made[-1].given] == [[1, 2], [255, 0]]
    assert made[-1].given[0].dtype == np.int64


def test_a_reset_mask_has_an_entry_for_each(refused):
    env = chunked(3, [])
    env.reset()
    with refused("reset_mask must be [3]"):
        env.reset(options={"reset_mask": [True]})
    with refused("without a reset_mask"):
        env.reset(seed=1, options={"reset_mask": [True, False, True]})
    env.reset(options={"reset_mask": np.asarray([True, False, True])})
    env.step(np.zeros((3, 1, 2)))


def test_actions_beyond_a_boxs_one_edge_are_told(tmp_path, capsys):
    """Half of a normal lies below an edge at 0; nothing is said of one that keeps to its side."""
    action = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    low, high = torch.tensor([-torch.inf, 0.0]), torch.tensor([torch.inf, torch.inf])
    shares, columns = remarks.beyond_single_edges(action, low, high)
    assert columns.tolist() == [1]
    assert shares[0] == pytest.approx(float((action[:, 1] < 0).double().mean()), abs=0.02)
    assert remarks.beyond_single_edges(action.abs(), low, high)[0].tolist() == [0.0]
    assert remarks.beyond_single_edges(-action.abs(), -high, -low)[0].tolist() == [0.0]
    decoder = identity_decoder((1, 2), 3)
    lpds.steer(decoder=decoder, env=lambda: Two(0.0, np.inf), out=tmp_path / "run", **BRIEF | {"quiet": False})
    assert "beyond the environment's box" in capsys.readouterr().err
    found = {finding.name: finding for finding in lpds.check(decoder, lambda: Two(0.0, np.inf)).findings}["action range"]
    assert found.verdict != "ok"
    assert "columns 0-1 beyond their one edge" in found.figure
