"""A user's own policy and environment, with what users' have: a buffer, a global switch, one simulator, odd observations."""

from __future__ import annotations

import base64

import gymnasium
import numpy as np
import pytest
import torch
from scripted import TINY

import lpds
from lpds.errors import LpdsError

SHAPES = {"obs_shape": (3,), "latent_shape": (2, 2), "action_shape": (2, 2), "name": "mine"}


class Walk(gymnasium.Env):
    """Pushed about in a plane; the third number is a sensor's. Ten steps."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.steps = self.np_random.normal(size=2), 0
        self.sensor = float(self.np_random.integers(1, 40))
        return self.seen(), {}

    def step(self, action):
        self.at, self.steps = self.at + 0.1 * action, self.steps + 1
        return self.seen(), -float(np.square(self.at).sum()), False, self.steps >= 10, {}

    def seen(self):
        return np.array([*self.at, self.sensor], np.float32)


def plain(obs, w):
    return torch.tanh(0.3 * obs[:, None, :2] + w)


def wrap(fn=plain, **changes):
    return lpds.wrap_decoder(fn, **{**SHAPES, **changes})


def findings(decoder, env=Walk):
    return {finding.name: finding for finding in lpds.check(decoder, env).findings}


# -- environments --------------------------------------------------------------------------------------------------------


def test_a_factory_that_returns_one_environment_is_refused(refused, tmp_path):
    """All sub-environments were one object, with their episodes mixed up, and a verdict came out of it."""
    one = Walk()
    with refused("returns the same environment every time", "inside the function"):
        lpds.evaluate(wrap(), env=lambda: one, episodes=3)
    with refused("returns the same environment every time"):
        lpds.steer(decoder=wrap(), env=lambda: gymnasium.wrappers.TimeLimit(one, 10), out=tmp_path / "run", **TINY)
    assert findings(wrap(), lambda: one)["spaces"].verdict == "fault"


def test_an_environment_that_exists_once_is_one_line_and_nothing_stays_open(refused):
    live = []

    class Once(Walk):
        def __init__(self):
            if live:
                raise OSError(98, "Address already in use")
            live.append(self)
            super().__init__()

        def close(self):
            live.remove(self)

    with refused("cannot be made: OSError: [Errno 98] Address already in use", "1 of 3"):
        lpds.evaluate(wrap(), env=Once, episodes=3)
    assert not live
    assert len(lpds.evaluate(wrap(), env=Once, episodes=1).returns) == 1


def test_the_doctor_looks_at_what_a_seed_decides_of_the_steps():
    class Elsewhere(Walk):
        def step(self, action):
            return super().step(action + 0.3 * np.random.randn(2))

    found = findings(wrap(), Elsewhere)["seeds"]
    assert found.verdict == "warning"
    assert "the same actions lead to two" in str(found.figure)
    assert findings(wrap())["seeds"].verdict == "ok"


def test_the_doctor_is_not_taken_in_by_one_buffer():
    class Pixels(Walk):
        def __init__(self):
            super().__init__()
            self.observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
            self.buffer = np.zeros((8, 8, 3), np.uint8)

        def seen(self):
            self.buffer[:] = np.random.randint(0, 255, self.buffer.shape)
            return self.buffer

    decoder = wrap(lambda obs, w: torch.tanh(w + obs.float().mean((1, 2, 3))[:, None, None]), obs_shape=(8, 8, 3))
    assert findings(decoder, Pixels)["seeds"].verdict == "warning"


@pytest.mark.parametrize("limit", [20, 25_000])
def test_a_time_limit_put_on_by_hand_is_known(limit):
    env = lpds.make_env(lambda: gymnasium.wrappers.TimeLimit(Walk(), limit), 1, 2)
    assert env.time_limit == limit
    assert lpds.make_env("Hopper-v5", 1, 2).time_limit == 1000
    assert lpds.make_env(Walk, 1, 2).time_limit is None


# -- policies ------------------------------------------------------------------------------------------------------------


def test_gradients_turned_off_by_a_policys_file_do_not_stop_the_learning(tmp_path):
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    try:
        run = lpds.steer(decoder=wrap(), env=Walk, out=tmp_path / "run", **TINY)
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(before)
    assert run.finished


@pytest.mark.parametrize("episodes", [1, 5, 20])
def test_what_fills_a_batch_up_is_as_real_as_the_rest(episodes):
    """Rows of zeros and latents of zeros made a policy return NaN that divides by their norms."""

    def turned(obs, w):
        return torch.tanh((obs / obs.norm(dim=1, keepdim=True))[:, None, :2] + w / w.flatten(1).norm(dim=1)[:, None, None])

    few = lpds.evaluate(wrap(turned), env=Walk, episodes=episodes)
    assert np.array_equal(few.returns, lpds.evaluate(wrap(turned), env=Walk, episodes=20).returns[:episodes])


def test_a_decoder_that_was_mended_after_the_check_is_steered(tmp_path, refused):
    """The fingerprint was kept from the check, and a finished run was refused for it."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    decoder = wrap(lambda obs, w: torch.tanh(net(obs)[:, None] + w))
    lpds.check(decoder, Walk)
    net.eval()
    run = lpds.steer(decoder=decoder, env=Walk, out=tmp_path / "run", **TINY)
    assert run.finished
    assert lpds.load_policy(run.folder, decoder=decoder).decoder is decoder
    with torch.no_grad():
        net[0].weight.mul_(-1.0)
    with refused("weights, sampler or normaliser differ"):
        lpds.load_policy(run.folder, decoder=decoder)


def test_a_policy_is_known_again_on_a_machine_that_rounds_otherwise(tmp_path, refused):
    """A figure of a hundred thousand that falls on the other side of a rounding must not lose a run; a change must."""
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))

    def made(change=0.0, **more):
        def act(obs, w):
            return torch.tanh((obs @ weight)[:, None, :2] + w) * (1.0 + change)

        return wrap(act, **more)

    run = lpds.steer(decoder=made(), env=Walk, out=tmp_path / "run", **TINY)
    there = next(made(change) for change in np.geomspace(1e-6, 5e-4, 40) if made(change).fingerprint != made().fingerprint)
    assert lpds.load_policy(run.folder, decoder=there).decoder is there
    resumed = lpds.resume(run.folder, decoder=there, env=Walk, steps=TINY["steps"] + 100, quiet=True)
    assert resumed.finished
    for other in (made(0.02), made(name="another"), wrap(lambda obs, w: torch.tanh(w))):
        with refused("weights, sampler or normaliser differ"):
            lpds.load_policy(run.folder, decoder=other)


def test_a_probe_that_is_none_resembles_nothing():
    decoder = wrap()
    assert decoder.resembles(decoder.probe)
    values = np.frombuffer(base64.b64decode(decoder.probe), "<f4")
    assert len(values) == 2 * 3 * 2 * 2  # six rows of two steps and two actions
    for odd in ("", "no base64!", base64.b64encode(values[:-1].tobytes()).decode(), base64.b64encode(values + 0.01).decode()):
        assert not decoder.resembles(odd)
    nan = base64.b64encode(np.full_like(values, np.nan)).decode()
    assert not decoder.resembles(nan)


@pytest.mark.parametrize("kind", ["a table", "a logarithm"])
def test_a_policy_that_takes_only_its_own_observations_brings_examples(tmp_path, kind, refused):
    table = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    read = {
        "a table": lambda x: torch.nn.functional.embedding((x[:, 2] - 1).long(), table),
        "a logarithm": lambda x: x[:, 2:].log(),
    }[kind]

    def act(obs, w):
        return torch.tanh(w + read(obs)[:, None])

    found = findings(wrap(act))
    assert found["decodes"].verdict == "ok"  # on what the environment gives
    with refused("drawn from N(0, I)", "examples="):
        lpds.steer(decoder=wrap(act), env=Walk, out=tmp_path / "refused", **TINY)
    examples = np.array([[0.1, 0.2, 1.0], [0.3, -0.2, 39.0]], np.float32)
    decoder = wrap(act, examples=examples)
    assert lpds.check(decoder, Walk).ok
    assert lpds.check(decoder).ok
    run = lpds.steer(decoder=decoder, env=Walk, out=tmp_path / "run", **TINY)
    assert lpds.load_policy(run.folder, decoder=wrap(act, examples=examples)).decoder.fingerprint == decoder.fingerprint


@pytest.mark.parametrize(
    "examples", [np.zeros((4, 5)), np.zeros(3), np.zeros((0, 3)), {"state": np.zeros((4, 3))}, "words", [[1], [2, 3]]]
)
def test_examples_that_do_not_fit_are_refused(refused, examples):
    with refused("examples= must be observations [N, ...]"):
        wrap(examples=examples)


def test_a_matrix_of_bytes_is_numbers_to_the_doctor_as_to_a_run():
    class Grid(Walk):
        def __init__(self):
            super().__init__()
            self.observation_space = gymnasium.spaces.Box(0, 255, (4, 4), np.uint8)

        def seen(self):
            return np.full((4, 4), int(self.sensor), np.uint8)

    def act(obs, w):
        assert obs.dtype == torch.float32
        return torch.tanh(w + obs.flatten(1).mean(1)[:, None, None] / 100.0)

    assert findings(wrap(act, obs_shape=(4, 4)), Grid)["decodes"].verdict == "ok"
    assert lpds.evaluate(wrap(act, obs_shape=(4, 4)), env=Grid, episodes=2).returns.shape == (2,)


def test_the_doctor_sees_a_memory_of_the_last_call():
    class Smoothed:
        last = None

        def __call__(self, obs, w):
            action = plain(obs, w)
            if self.last is not None and self.last.shape == action.shape:
                action = 0.5 * action + 0.5 * self.last
            self.last = action.clone()
            return action

    assert findings(wrap(Smoothed()))["deterministic"].verdict == "fault"


def test_the_doctor_sees_a_sampler_that_draws_its_own_noise_from_a_seed():
    def own(obs, w):
        return torch.tanh(obs[:, None, :2] + torch.randn(w.shape, generator=torch.Generator().manual_seed(0)))

    found = findings(wrap(own))["live latents"]
    assert (found.verdict, found.figure) == ("fault", "w moves no action")
    assert "fixed seed" in found.remedy


def test_features_and_contexts_of_one_buffer_are_copied():
    obs = torch.randn(4, 3)
    buffer = np.zeros((8, 3), np.float32)

    def again(x):
        buffer[: len(x)] = x.numpy()
        return buffer[: len(x)]

    decoder = wrap(lambda context, w: torch.tanh(w + context[:, None, :2]), features=lambda c: c, feature_size=3, prepare=again)
    context = decoder.prepare(obs)
    features = decoder.features(context)
    decoder.features(decoder.prepare(-obs))
    assert torch.equal(context, obs)
    assert torch.equal(features, obs)


def test_an_entry_that_the_decoder_does_not_name_is_left_out(tmp_path, refused):
    class Dicts(Walk):
        def __init__(self):
            super().__init__()
            self.observation_space = gymnasium.spaces.Dict(state=self.observation_space)

        def seen(self):
            return {"state": super().seen()}

    decoder = wrap(lambda obs, w: plain(obs["state"], w), obs_shape={"state": (3,)})
    run = lpds.steer(decoder=decoder, env=Dicts, out=tmp_path / "run", **TINY)
    policy, state, eps = lpds.load_policy(run.folder, decoder=decoder), np.zeros((2, 3)), np.zeros((2, 2, 2), np.float32)
    alone = policy.act({"state": state}, eps=eps)
    for more in ({"task": ["lift", "lift"]}, {"t": np.zeros(2)}, {"unused": np.full((2, 1), np.nan)}):
        assert np.array_equal(policy.act({"state": state, **more}, eps=eps), alone)
    with refused("obs must be a dict of state; it lacks state"):
        policy.act({"pose": state})


@pytest.mark.parametrize("obs", ["x", [[1.0, 2.0, 3.0], [1.0]]])
def test_an_observation_that_is_no_array_is_one_line(tmp_path, obs):
    run = lpds.steer(decoder=wrap(), env=Walk, out=tmp_path / "run", **TINY)
    policy = lpds.load_policy(run.folder, decoder=wrap())
    with pytest.raises(LpdsError, match=r"^obs is no array of numbers"):
        policy.act(obs)
    assert policy.shift(np.zeros((2, 3))).shape == (2, 2, 2)
