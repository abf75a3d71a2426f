"""What a user's functions get is what the environment gave: bytes as bytes, other arrays untouched, nothing overwritten."""

from __future__ import annotations

from collections import namedtuple

import gymnasium
import numpy as np
import pytest
import torch
from scripted import TINY

import lpds
from lpds.random import normal

Two = namedtuple("Two", ["place", "again"])


class Shown(gymnasium.Env):
    """Whatever array it is told to show, for ten steps."""

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    low, high, shape, dtype = 0.0, 1.0, (16, 16, 3), np.float32

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(self.low, self.high, self.shape, self.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        self.steps += 1
        return self._obs(), float(action[0]), False, self.steps >= 10, {}

    def _obs(self):
        return self.np_random.uniform(self.low, self.high, self.shape).astype(self.dtype)


def shown(shape, low, high, dtype):
    return type("Shown", (Shown,), {"shape": shape, "low": low, "high": high, "dtype": dtype})


def linear(shape, **given):
    def fn(obs, w):
        return torch.tanh(obs.float().flatten(1).mean(1)[:, None, None] + w)

    return lpds.wrap_decoder(fn, obs_shape=shape, latent_shape=(1, 2), action_shape=(1, 2), name="linear", **given)


@pytest.mark.parametrize(
    ("shape", "low", "high", "dtype"),
    [
        ((1, 16, 16), 0.0, 10.0, np.float32),
        ((3, 16, 16), -1.0, 1.0, np.float32),
        ((16, 16, 3), 0.0, 1.0, np.float32),
        ((16, 16, 1), 0, 5000, np.uint16),
    ],
)
def test_pictures_that_are_no_bytes_are_refused_and_never_cut_to_bytes(tmp_path, refused, shape, low, high, dtype):
    world, decoder = shown(shape, low, high, dtype), linear(shape)
    words = ("'linear' takes observations of 3 axes, which come as", "uint8", "features")
    with refused(*words):
        lpds.steer(decoder=decoder, env=world, out=tmp_path / "run", **TINY)
    assert not (tmp_path / "run").exists()
    report = lpds.check(decoder, world, samples=16)
    assert not report.ok
    assert any("3 axes" in f"{one.figure} {one.remedy}" for one in report.findings if one.verdict == "fault")
    with refused(*words):
        lpds.evaluate(decoder, env=world, episodes=1)
    lpds.steer(
        decoder=linear(shape, features=lambda x: x.flatten(1)[:, :3], feature_size=3), env=world, out=tmp_path / "run", **TINY
    )


def test_a_matrix_is_numbers_end_to_end(tmp_path):
    world, decoder = shown((2, 3), -2.0, 2.0, np.float32), linear((2, 3))
    assert lpds.check(decoder, world, samples=16).ok
    assert lpds.steer(decoder=decoder, env=world, out=tmp_path / "run", **TINY).finished
    policy = lpds.load_policy(tmp_path / "run", decoder)
    obs, eps = normal("probe", 1, shape=(5, 2, 3)), normal("probe", 2, shape=(5, 1, 2))
    wanted = decoder(torch.from_numpy(obs), torch.from_numpy(eps)).numpy()
    assert np.array_equal(policy.act(obs, eps, scale=0.0), wanted)
    assert not np.array_equal(policy.act(obs, eps), wanted)


@pytest.mark.parametrize("shape", [(16, 16, 6), (16, 16, 9), (16, 16, 3), (12, 16, 16), (3, 16, 16)])
def test_channels_last_stay_bytes_however_many_there_are(tmp_path, shape):
    got = []

    def fn(obs, w):
        got.append((obs.dtype, float(obs.max())))
        return torch.tanh(w)

    decoder = lpds.wrap_decoder(fn, obs_shape=shape, latent_shape=(1, 2), action_shape=(1, 2), name="many")
    world = shown(shape, 0, 255, np.uint8)
    options = {key: value for key, value in TINY.items() if key not in ("width", "depth")}
    lpds.steer(None, "base", decoder=decoder, env=world, out=tmp_path / "run", **options)
    got.clear()
    lpds.load_policy(tmp_path / "run", decoder).act(np.full((2, *shape), 200, np.uint8))
    last = shape[-1] != 16
    assert got[-1] == ((torch.uint8, 200.0) if last else (torch.float32, pytest.approx(200 / 255)))


def test_no_more_whole_pictures_are_decoded_at_once_than_an_evaluation_plays(tmp_path):
    """A row of metrics once decoded a thousand of them in one call: gigabytes, and too much for a server."""
    largest = [0]

    def fn(obs, w):
        largest[0] = max(largest[0], len(w))
        return torch.tanh(obs.float().flatten(1).mean(1)[:, None, None] / 255.0 + w)

    decoder = lpds.wrap_decoder(fn, obs_shape=(16, 16, 3), latent_shape=(1, 2), action_shape=(1, 2), name="large")
    run = lpds.steer(
        decoder=decoder, env=shown((16, 16, 3), 0, 255, np.uint8), out=tmp_path / "run", **TINY | {"batch_size": 8}
    )
    assert run.finished
    assert 8 <= largest[0] <= 20
    rows = (run.folder / "metrics.jsonl").read_text()
    assert '"action_entropy": null' in rows  # of the warm-up
    assert '"action_entropy": -' in rows or '"action_entropy": 0' in rows or '"action_entropy": 1' in rows


def steered(path, decoder):
    run = lpds.steer(decoder=decoder, env=shown((3,), -2.0, 2.0, np.float32), out=path, **TINY)
    return (run.folder / "episodes.jsonl").read_text(), (run.folder / "policy" / "policy.safetensors").read_bytes()


def test_prepare_may_work_in_place_and_return_any_table_of_arrays(tmp_path):
    """What it did to its argument once went into the replay, and into the environment's own arrays."""

    def fn(context, w):
        place = context.place if isinstance(context, Two) else context
        return torch.tanh(torch.as_tensor(place).flatten(1).mean(1)[:, None, None] + w)

    def prepared(make):
        return lpds.wrap_decoder(fn, obs_shape=(3,), latent_shape=(1, 2), action_shape=(1, 2), name="same", prepare=make)

    plain = steered(tmp_path / "plain", prepared(lambda obs: obs - 100.0))
    assert steered(tmp_path / "in-place", prepared(lambda obs: obs.sub_(100.0))) == plain
    assert steered(tmp_path / "named", prepared(lambda obs: Two(obs - 100.0, obs))) == plain
    assert steered(tmp_path / "numpy", prepared(lambda obs: (obs - 100.0).numpy())) == plain
    assert (
        steered(tmp_path / "constant", prepared(lambda obs: Two(obs - 100.0, {"mode": "fast", "scale": 0.5, "mask": None})))
        == plain
    )


def test_what_cannot_be_repeated_for_several_noises_is_refused_where_it_comes_from(refused):
    class Own:
        pass

    for made, found in (((lambda obs: Own()), "Own"), ((lambda obs: obs.mean()), "[]"), ((lambda obs: obs[:1]), "[1, 3]")):
        decoder = linear((3,), prepare=made)
        with refused("prepare of decoder 'linear' must return tensors [B, ...]", found):
            decoder.prepare(torch.zeros(4, 3))
        assert not lpds.check(decoder, samples=16).ok


@pytest.mark.parametrize(
    "free", [np.array([True, False]), (np.True_, np.False_), torch.tensor([True, False]), (1, 0), [True, False]]
)
def test_free_columns_in_any_form_are_the_same_two_truth_values(tmp_path, free):
    decoder = linear((3,), free=free)
    assert decoder.spec.free == (True, False)
    assert all(type(column) is bool for column in decoder.spec.free)
    run = lpds.steer(decoder=decoder, env=shown((3,), -1.0, 1.0, np.float32), out=tmp_path / "run", **TINY | {"steps": 240})
    assert run.finished


def test_free_that_is_no_row_of_truth_values(refused):
    with refused("free must have 2"):
        linear((3,), free=3)
