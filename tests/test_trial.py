"""The trial of less noise: who plays how, what is concluded from it, and that the policy follows."""

from __future__ import annotations

import signal

import pytest
import torch
from scripted import CPU, TINY, identity_decoder, toy_decoder
from test_resume import Counter, assert_same_but_for_names

import lpds
from lpds.checkpoint import CheckpointStore
from lpds.config import LPDSASettings, LPDSSettings
from lpds.envs.four_mode import make_four_mode
from lpds.log import read_json_lines
from lpds.methods.lpds import LPDS
from lpds.methods.lpds_a import LPDSA
from lpds.methods.trial import FEWEST, MEMORY, NoiseTrial

METHODS = [(LPDS, LPDSSettings), (LPDSA, LPDSASettings)]
QUIET = {"quiet_envs": 2, "eval_noise_scale": 0.25, "noise_scale": 0.5}


def learner(method, kind, **changes):
    made = method(
        kind(width=16, depth=1, kept_noises=0, **changes),
        identity_decoder((2, 3)),
        generator=torch.Generator().manual_seed(0),
        device=CPU,
    )
    for net in (made.policy.net, made.slow_policy.net):
        net.biases[-1].data.fill_(0.3)  # a Delta that is not zero
    return made


def win(made):
    """Enough episodes for a verdict, the quiet ones better."""
    for _ in range(FEWEST + 1):  # every lane's first one does not count
        made.observe([0, 1, 2, 3], [2.0, 2.0, 1.0, 1.0])


@pytest.mark.parametrize(("method", "kind"), METHODS)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_the_first_rows_collect_with_less_noise(method, kind, scale):
    """Row n acts with (1 - s (1 - k)) (1 - s (1 - e_n)) eps + s Delta, e_n = 1 but for the first two rows."""
    made = learner(method, kind, **QUIET)
    obs, eps = torch.randn(5, 2), torch.randn(5, 1, 2, 3)
    with torch.no_grad():
        action = made.behaviour.act(made.decoder, obs, eps, scale).action
        delta = made.policy(obs).unflatten(1, (2, 3))
    factor = torch.tensor([0.25, 0.25, 1.0, 1.0, 1.0]).view(5, 1, 1)
    want = (1.0 - scale * 0.5) * (1.0 - scale * (1.0 - factor)) * eps[:, 0] + scale * delta
    assert torch.allclose(action, want, atol=1e-6)
    if scale == 0.0:
        assert torch.equal(action, eps[:, 0])


def test_an_episode_under_way_at_the_start_counts_for_neither():
    trial = NoiseTrial(1)
    trial.observe([0, 1], [9.0, -9.0])
    assert trial.returns.isnan().all()
    trial.observe([1, 1, 0], [1.0, 2.0, 3.0])
    assert trial.counts[:3].tolist() == [1, 2, -1]
    assert trial.returns[1, :2].tolist() == [1.0, 2.0]
    assert trial.returns[0, 0] == 3.0


def test_the_verdict_is_of_the_last_episodes_and_of_enough_of_them():
    trial = NoiseTrial(1)
    trial.observe([0, 1], [0.0, 0.0])
    for _ in range(FEWEST):
        assert not trial.won
        trial.observe([0, 1], [2.0, 1.0])
    assert trial.won
    for _ in range(MEMORY):  # what was good is forgotten
        trial.observe([0, 1], [1.0, 1.0])
    assert not trial.won  # a tie keeps the noise
    few = NoiseTrial(1)
    few.observe([0, 1, 1, 1, 1, 1], [1.0] * 6)
    few.observe([0] * (FEWEST - 1), [5.0] * (FEWEST - 1))
    assert not few.won


def test_a_policy_that_improves_gives_nobody_an_edge():
    """Return t at time t for both kinds, one quiet lane beside three: neither mean is of older episodes than the other."""
    trial = NoiseTrial(1)
    for time in range(40):
        trial.observe([0, 1, 2, 3], [time + 0.5, time, time, time])
    assert trial.won
    for time in range(40, 80):
        trial.observe([0, 1, 2, 3], [time - 0.5, time, time, time])
    assert not trial.won


@pytest.mark.parametrize(("method", "kind"), METHODS)
def test_the_policy_and_what_is_saved_of_it_follow(method, kind):
    made = learner(method, kind, **QUIET)
    assert made.policy.noise_scale == 0.5
    win(made)
    assert made.policy.noise_scale == 0.125
    assert method.open_policy(made.decoder, made.policy_settings(), made.policy_tensors()).noise_scale == 0.125
    again = learner(method, kind, **QUIET)
    again.load_tensors(made.tensors())
    assert again.policy.noise_scale == 0.125
    for _ in range(MEMORY):
        made.observe([0, 1, 2, 3], [0.0, 0.0, 1.0, 1.0])
    assert made.policy.noise_scale == 0.5
    assert method.open_policy(made.decoder, made.policy_settings(), made.policy_tensors()).noise_scale == 0.5


def test_without_a_trial_nothing_is_booked():
    made = learner(LPDS, LPDSSettings, eval_noise_scale=0.25)
    before = set(made.tensors())
    made.observe([0, 1], [1.0, 2.0])
    assert made.policy.noise_scale == 0.25
    assert not any(name.startswith("trial") for name in before)


def test_what_is_refused(refused, tmp_path):
    with refused("quiet_envs 1 must not be negative, and needs an eval_noise_scale below 1"):
        LPDSSettings(quiet_envs=1)
    with refused("quiet_envs -1"):
        LPDSSettings(quiet_envs=-1, eval_noise_scale=0.0)
    with refused("quiet_envs 2 must leave some of num_envs 2 to compare with"):
        changes = {"num_envs": 2, "quiet_envs": 2, "eval_noise_scale": 0.0}
        lpds.steer("toy", **{"decoder": toy_decoder(), "env": make_four_mode, "out": tmp_path / "run", **TINY, **changes})


def test_a_run_goes_on_with_its_trial_to_the_bit(tmp_path):
    """Stopped in the middle and resumed: the same run, the trial's episodes and the saved noise included."""
    changes = {**TINY, "steps": 2000, "num_envs": 2, "quiet_envs": 1, "eval_noise_scale": 0.0}
    envs = {"whole": make_four_mode, "parts": Counter(1500, lambda: signal.raise_signal(signal.SIGINT))}
    for name, env in envs.items():
        lpds.steer("toy", decoder=toy_decoder(), env=env, out=tmp_path / name, **changes)
    assert lpds.resume(tmp_path / "parts", decoder=toy_decoder(), env=make_four_mode, quiet=True).finished
    assert_same_but_for_names(tmp_path / "whole", tmp_path / "parts")
    state, _ = CheckpointStore(tmp_path / "parts" / "checkpoint").load()
    assert state["method.trial.counts"][:2].min() > 0
    assert read_json_lines(tmp_path / "parts" / "metrics.jsonl")[-1]["eval_noise_scale"] in (0.0, 1.0)
