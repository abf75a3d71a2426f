"""What `lpds check` finds of units, leaks, features and masks, and that it advises nothing wrong."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from scripted import TINY

import lpds
from lpds.envs.build import make_env
from lpds.pretrain.experts import Demonstrations
from lpds.pretrain.fits import check_fits

OBS, LATENT = 5, (4, 3)
MIX = torch.from_numpy(np.random.default_rng(0).standard_normal((OBS, 3)).astype(np.float32))
UNITS = torch.tensor([0.02, 0.02, 255.0])


class Box(gymnasium.Env):
    """Random observations whatever is done, in an action box of one's own."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)

    def __init__(self, low=(-1.0,) * 3, high=(1.0,) * 3):
        self.action_space = gymnasium.spaces.Box(np.float32(low), np.float32(high))

    def _draw(self):
        return self.np_random.standard_normal(OBS).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return self._draw(), {}

    def step(self, action):
        self.at += 1
        return self._draw(), 0.0, False, self.at >= 40, {}


def grips():
    """Two columns in metres, and a gripper from 0 to 255."""
    return Box((-0.02, -0.02, 0.0), (0.02, 0.02, 255.0))


def pure(obs, w):
    return torch.tanh(0.3 * (obs @ MIX)[:, None] + w)


def gripping(obs, w):
    return (pure(obs, w) + torch.tensor([0.0, 0.0, 1.0])) * torch.tensor([0.02, 0.02, 127.5])


def wrapped(fn=pure, **options):
    return lpds.wrap_decoder(fn, obs_shape=(OBS,), latent_shape=LATENT, action_shape=LATENT, name="own", **options)


def findings(decoder, env=Box):
    return {finding.name: finding for finding in lpds.check(decoder, env, samples=64).findings}


def centred(obs):
    return obs - obs.mean(0, keepdim=True)


def test_a_leak_in_what_is_prepared_is_found():
    """A dear context is shown to the probe one state at a time; a run shows whole batches."""
    decoder = wrapped(prepare=centred)
    found = findings(decoder)["batch consistency"]
    assert found.verdict == "fault"
    assert "leak" in found.remedy
    assert findings(wrapped(prepare=lambda obs: 1.0 * obs))["batch consistency"].verdict == "ok"


def test_a_leak_in_small_units_is_not_hidden_by_large_ones():
    def leaky(obs, w):
        action = gripping(obs, w)
        return torch.cat([gripping(centred(obs), w)[..., :2], action[..., 2:]], -1)

    decoder = wrapped(leaky)
    assert decoder.leaks
    assert findings(decoder, grips)["batch consistency"].verdict == "fault"
    assert not wrapped(gripping).leaks


def test_columns_in_other_units_are_all_alive():
    """Each moves its own action; none is to be masked."""
    found = findings(wrapped(gripping), grips)
    assert found["live latents"].verdict == "ok"
    assert found["live latents"].figure.startswith("3 of 3 columns")
    assert found["action range"].verdict == "ok"
    dead = findings(wrapped(lambda obs, w: gripping(obs, w * torch.tensor([1.0, 0.0, 1.0]))), grips)["live latents"]
    assert dead.verdict == "warning"
    assert "columns 1," in dead.remedy


def test_a_column_of_actions_in_another_unit_is_named():
    small = findings(wrapped(lambda obs, w: pure(obs, w) * torch.tensor([1e-3, 1.0, 1e-3])))["action range"]
    assert small.verdict == "warning"
    assert "columns 0, 2 use less than 2%" in small.figure
    large = findings(wrapped(lambda obs, w: pure(obs, w) * torch.tensor([1.0, 1.0, 255.0])))["action range"]
    assert large.verdict == "warning"
    assert "columns 2 far beyond it" in large.figure
    still = findings(wrapped(lambda obs, w: pure(obs, w) * torch.tensor([1.0, 0.0, 1.0])))["action range"]
    assert still.verdict == "ok"  # a column that never moves is in no other unit
    overshoots = findings(wrapped(lambda obs, w: 1.04 * torch.sign(pure(obs, w)) * torch.tensor([0.9, 0.9, 1.0])))
    assert "far" not in overshoots["action range"].figure


def test_one_observation_in_another_unit_is_named():
    """One of thirty entries is lost in a mean over them."""

    class Normaliser:
        def observation(self, obs):
            return obs * torch.tensor([1.0] * 29 + [57.3])

    class Many(Box):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (30,), np.float32)

        def _draw(self):
            return (0.3 * self.np_random.standard_normal(30)).astype(np.float32)

    decoder = lpds.wrap_decoder(
        lambda obs, w: torch.tanh(w + obs[:, None, :3]), obs_shape=(30,), latent_shape=LATENT, action_shape=LATENT, name="many"
    )
    decoder.normaliser = Normaliser()
    decoder.plausible = lambda draws: draws
    decoder.action_range = lambda: (-torch.ones(3), torch.ones(3))
    found = findings(decoder, Many)["observation range"]
    assert found.verdict == "warning"
    assert "entries 29" in found.remedy


def test_features_are_examined():
    assert findings(wrapped(features=lambda obs: 2.0 * obs, feature_size=OBS))["features"].verdict == "ok"
    leaky = wrapped(features=centred, feature_size=OBS)
    assert findings(leaky)["features"].verdict == "fault"
    assert leaky.leaks
    blind = findings(wrapped(features=lambda obs: 0.0 * obs, feature_size=OBS))["features"]
    assert blind.verdict == "fault"
    assert "could not depend on the state" in blind.remedy


def test_a_mask_the_wrong_way_round_is_a_fault():
    """True is for what may be steered, and many a mask says True of padding."""
    found = findings(wrapped(lambda obs, w: pure(obs, w * torch.tensor([1.0, 0.0, 0.0])), free=[False, True, True]))[
        "live latents"
    ]
    assert found.verdict == "fault"
    assert "wrong way round" in found.remedy


def test_an_environment_that_fails_at_its_first_reset_is_a_finding():
    class NoDisplay(Box):
        def reset(self, *, seed=None, options=None):
            raise RuntimeError("no display")

    report = lpds.check(wrapped(), NoDisplay, samples=16)
    assert not report.ok
    found = {finding.name: finding for finding in report.findings}
    assert "no display" in found["roll-out"].figure
    assert found["deterministic"].verdict == "ok"  # what needs no environment is examined


def test_delta_at_observations_is_what_acts(tmp_path):
    """Also where the features are as many as the observation's entries."""
    decoder = wrapped(features=lambda obs: (obs - 5.0) * 10.0, feature_size=OBS)
    run = lpds.steer(decoder=decoder, env=Box, out=tmp_path / "run", **{**TINY, "steps": 400, "kept_noises": 2})
    policy = lpds.load_policy(run, decoder)
    obs = np.random.default_rng(0).standard_normal((6, OBS)).astype(np.float32)
    eps = np.random.default_rng(1).standard_normal((6, *LATENT)).astype(np.float32)
    shift = policy.shift(obs)
    assert shift.any()
    by_hand = decoder(torch.from_numpy(obs), torch.from_numpy(eps + shift)).numpy()
    np.testing.assert_allclose(policy.act(obs, eps), by_hand, atol=1e-6)
    np.testing.assert_array_equal(policy.shift_at((obs - 5.0) * 10.0), shift)


def test_vectors_in_another_order_are_refused(refused):
    """A dict space is sorted by name, LeRobot's state comes first."""

    class Push(Box):
        observation_space = gymnasium.spaces.Dict(
            {
                key: gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
                for key in ("observation.state", "observation.environment_state")
            }
        )

        def _draw(self):
            return {key: np.zeros(2, np.float32) for key in self.observation_space}

    def data(order):
        return Demonstrations(
            obs=np.zeros((4, 4), np.float32),
            actions=np.zeros((4, 3), np.float32),
            episode_lengths=np.array([4]),
            episode_returns=np.array([0.0]),
            episode_source=np.array([0]),
            order=order,
        )

    env = make_env(Push, 1, 1)
    for order in ("", "observation.environment_state, observation.state", "a, b"):
        check_fits(data(order), env, "another way")
    with refused("observation.state, observation.environment_state", "sorted by name"):
        check_fits(data("observation.state, observation.environment_state"), env, "another way")


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_shares_of_the_variance_do_not_depend_on_units(shift):
    """Column l of w moves action column l alone, so each has a third of it, whatever the unit."""
    from lpds.probe import Probe, synthetic_observations

    decoder = wrapped(lambda obs, w: (w + shift) * UNITS)
    columns, rows, _ = Probe(decoder, synthetic_observations(decoder, 256, 0), 0).effects
    torch.testing.assert_close(columns, torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.03, rtol=0.0)
    torch.testing.assert_close(rows, torch.full((4,), 1 / 4, dtype=torch.float64), atol=0.03, rtol=0.0)
