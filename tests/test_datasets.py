"""Demonstrations from files: every layout gives the same numbers in environment units, and a broken one gets one line."""

from __future__ import annotations

import numpy as np
import pytest

from lpds.errors import LpdsError
from lpds.pretrain.datasets import open_data

LENGTHS = [3, 5]


@pytest.fixture
def raw():
    rng = np.random.default_rng(0)
    return rng.normal(2.0, 3.0, (8, 4)).astype(np.float32), rng.uniform(-0.5, 0.5, (8, 2)).astype(np.float32)


def test_own_layout(tmp_path, raw):
    obs, actions = raw
    np.savez(tmp_path / "d.npz", obs=obs, actions=actions, episode_lengths=LENGTHS)
    data = open_data(str(tmp_path / "d.npz"))
    np.testing.assert_array_equal(data.obs, obs)
    np.testing.assert_array_equal(data.episode_lengths, LENGTHS)


def test_dppo_layout_is_scaled_back_by_its_ranges(tmp_path, raw):
    obs, actions = raw
    low, high = obs.min(0), obs.max(0)
    a_low, a_high = actions.min(0), actions.max(0)
    np.savez(tmp_path / "n.npz", obs_min=low, obs_max=high, action_min=a_low, action_max=a_high)
    states = 2 * ((obs - low) / (high - low + 1e-6) - 0.5)
    scaled = 2 * (actions - a_low) / (a_high - a_low) - 1
    np.savez(tmp_path / "d.npz", states=states, actions=scaled, traj_lengths=LENGTHS)
    data = open_data(str(tmp_path / "d.npz"), tmp_path / "n.npz")
    np.testing.assert_allclose(data.obs, obs, atol=1e-5)
    np.testing.assert_allclose(data.actions, actions, atol=1e-6)
    with pytest.raises(LpdsError, match="pass --normalization"):
        open_data(str(tmp_path / "d.npz"))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # its own, about what it would like to know
def test_minari(tmp_path, raw, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    obs, actions = raw
    import gymnasium

    spaces = {
        "observation_space": gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32),
        "action_space": gymnasium.spaces.Box(-1, 1, (2,), np.float32),
    }
    episodes, first = [], 0
    for length in LENGTHS:
        rows = slice(first, first + length)
        episodes.append(
            minari.data_collector.EpisodeBuffer(
                observations=np.concatenate([obs[rows], obs[:1]]),  # one more: where the episode ended
                actions=actions[rows],
                rewards=np.ones(length),
                terminations=np.arange(length) == length - 1,
                truncations=np.zeros(length, bool),
            )
        )
        first += length
    minari.create_dataset_from_buffers("test/two-v0", episodes, eval_env=None, **spaces)
    data = open_data("minari:test/two-v0")
    np.testing.assert_array_equal(data.obs, obs)
    np.testing.assert_array_equal(data.actions, actions)
    np.testing.assert_array_equal(data.episode_returns, LENGTHS)
    with pytest.raises(LpdsError, match="minari download"):
        open_data("minari:test/none-v0")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"x": np.zeros(3)}, "expected obs, actions, episode_lengths"),
        ({"obs": np.zeros((4, 2)), "actions": np.zeros((4, 1)), "episode_lengths": [3]}, "do not agree"),
        ({"obs": np.full((3, 2), np.nan), "actions": np.zeros((3, 1)), "episode_lengths": [3]}, "NaN"),
    ],
)
def test_bad_data_gets_one_line(tmp_path, fields, says):
    np.savez(tmp_path / "d.npz", **fields)
    with pytest.raises(LpdsError, match=says) as error:
        open_data(str(tmp_path / "d.npz"))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_archive_gets_one_line(tmp_path):
    (tmp_path / "d.npz").write_bytes(b"not an archive")
    with pytest.raises(LpdsError, match="cannot be read"):
        open_data(str(tmp_path / "d.npz"))
