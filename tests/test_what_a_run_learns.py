"""That a run learns: from which numbers, how often, and that the return it ends with is most of what there was to gain."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from safetensors.torch import load_file
from scripted import TINY, Scripted, toy_decoder
from test_demonstrations import made_up

import lpds
from lpds.decoders.wrap import wrap_decoder
from lpds.methods.lpds import LPDS


def one_action(name="one"):
    """One number in, one action out, tanh of it: with all of its noise as often up as down."""
    return wrap_decoder(lambda s, w: w.tanh(), obs_shape=(2,), latent_shape=(1, 1), action_shape=(1, 1), name=name)


class TwoSteps(gymnasium.Env):
    """The first action is worth nothing until the second step, which returns the sum of both: at most 2, 0 in the mean."""

    observation_space = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.first = None
        return np.zeros(2, np.float32), {}

    def step(self, action):
        now = float(action[0])
        if self.first is None:
            self.first = now
            return np.asarray([1.0, now], np.float32), 0.0, False, False, {}
        return np.zeros(2, np.float32), self.first + now, True, False, {}


BUDGET = {key: TINY[key] for key in ("device", "quiet")} | {
    "steps": 1000,
    "eval_every": 0,
    "final_episodes": 100,
    "checkpoint_every": 10_000,
    "gamma": 0.99,
}
LEARNER = {"warmup_steps": 200, "warmup_fits": 100, "batch_size": 64, "width": 32, "depth": 1, "lr": 3e-3, "reward_scale": 1.0}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lpds", LEARNER | {"delta": 3.0, "actor_lr": 3e-3}),
        ("lpds-a", LEARNER | {"delta": 3.0, "actor_lr": 3e-3}),
        ("dsrl-na", LEARNER | {"temperature": 0.02, "updates_per_decision": 1.0, "box": 2.0}),
        ("dsrl-sac", LEARNER | {"temperature": 0.02, "updates_per_decision": 1.0, "box": 2.0}),
        ("best-of-n", LEARNER),
        ("golden-ticket", {}),
    ],
)
def test_most_of_what_there_is_to_gain_is_gained(tmp_path, method, settings):
    """Half of the way from the frozen policy to 2, and more than the 1 that comes of the second action alone."""
    run = lpds.steer(method=method, decoder=one_action(), env=TwoSteps, out=tmp_path / "run", **BUDGET, **settings)
    frozen, steered = float(run.frozen.returns.mean()), float(run.steered.returns.mean())
    assert abs(frozen) < 0.2
    assert steered > max(1.2, frozen + 0.5 * (2.0 - frozen))


class Seen:
    """Batches of the fits and of the updates after them."""

    def __init__(self, monkeypatch):
        self.fits, self.updates, whole = [], [], LPDS.update

        def update(method, batch, noise, *, critics_only=False):
            (self.fits if critics_only else self.updates).append(batch)
            return whole(method, batch, noise, critics_only=critics_only)

        monkeypatch.setattr(LPDS, "update", update)


@pytest.mark.parametrize(
    ("n_step", "told"),
    [
        (1, {(0.0, 1.0, 0.5), (1.0, 10.0, 0.5), (2.0, 100.0, 0.0)}),
        (2, {(0.0, 6.0, 0.25), (1.0, 60.0, 0.0), (2.0, 100.0, 0.0)}),
    ],
)
def test_fits_see_returns_to_go_and_updates_n_rewards_and_what_follows(tmp_path, monkeypatch, n_step, told):
    """Rewards 1, 10, 100 of three steps at gamma 0.5, in the state's second number the step: returns 31, 60, 100."""
    seen = Seen(monkeypatch)
    settings = TINY | {"steps": 240, "warmup_steps": 96, "n_step": n_step, "reward_scale": 1.0, "eval_every": 0}
    lpds.steer(
        decoder=one_action(), env=lambda: Scripted([((1.0, 10.0, 100.0), "terminated")]), out=tmp_path, gamma=0.5, **settings
    )

    def rows(batches):
        return {(float(b.obs[i, 1]), float(b.reward[i]), float(b.discount[i])) for b in batches for i in range(len(b.obs))}

    assert rows(seen.fits) == {(0.0, 31.0, 0.0), (1.0, 60.0, 0.0), (2.0, 100.0, 0.0)}
    recorded = rows(seen.updates)
    assert told <= recorded
    # but for the newest rows of episodes that are under way, whose sums end with what is recorded
    assert {row for row in recorded - told if row != (0.0, 1.0, 0.5)} <= {(1.0, 10.0, 0.5)}


@pytest.mark.parametrize(("rate", "lanes"), [(0.3, 4), (1.0, 2), (2.5, 3)])
def test_updates_are_owed_by_the_decision(tmp_path, monkeypatch, rate, lanes):
    """floor(u N R) after R rounds of N decisions, whatever the remainder of a round was."""
    seen = Seen(monkeypatch)
    settings = TINY | {"updates_per_decision": rate, "num_envs": lanes, "eval_every": 0, "steps": 500, "warmup_steps": 200}
    run = lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "run", **settings)
    facts = json.loads((run.folder / "checkpoint" / "checkpoint.json").read_text())
    assert facts["rounds"] > 10
    assert len(seen.updates) == facts["updates"] == int(rate * lanes * facts["rounds"] + 1e-9)


def test_the_unit_of_rewards_is_the_warm_ups_whatever_demonstrations_were_paid(tmp_path):
    """Someone else's data may count its rewards otherwise; the returns to go of the frozen policy set the scale."""
    found = []
    for factor in (1.0, 1000.0):
        path = tmp_path / f"{factor:g}.npz"
        data = made_up(lengths=(16, 12), terminated=(True, False))
        replace(data, rewards=np.float32(factor) * data.rewards).save(path)
        settings = TINY | {"steps": 300, "demos": str(path), "eval_every": 0}
        run = lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / f"run{factor:g}", **settings)
        (state,) = (run.folder / "checkpoint").glob("state-*.safetensors")
        found += [float(value) for name, value in load_file(state).items() if name.endswith("reward_scale")]
    assert len(found) == 2
    assert found[0] == found[1] != 1.0
