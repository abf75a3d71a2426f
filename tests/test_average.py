"""A running mean of Delta's weights, in what is evaluated and saved."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from scripted import CPU, TINY, identity_decoder
from test_lpds_method import batch, noise

import lpds
from lpds.config import LPDSASettings, LPDSSettings
from lpds.methods.lpds import LPDS
from lpds.methods.lpds_a import LPDSA

METHODS = [(LPDS, LPDSSettings), (LPDSA, LPDSASettings)]


def learner(method, kind, **settings):
    shape = {"width": 16, "depth": 1, "kept_noises": 0, "noise_scale": 0.5}
    return method(kind(**shape, **settings), identity_decoder((2, 3)), generator=torch.Generator().manual_seed(0), device=CPU)


def weights(policy):
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def updates(made, count, *, seed=1):
    """Do so many updates, and yield theta after each."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        made.update(batch(made.decoder.spec, 8, generator), noise(made, 8, generator))
        yield weights(made.online)


@pytest.mark.parametrize(("method", "kind"), METHODS)
def test_it_is_the_mean_that_it_says(method, kind):
    """While 2 / (t + 2) > 1 / N theta_i of t + 1 weighs i + 1; then the mean moves by 1 / N."""
    made = learner(method, kind, eval_average_updates=4)
    start = weights(made.online)
    mean, path = start, [start]
    for t, theta in enumerate(updates(made, 12), 1):
        path.append(theta)
        if t <= 6:
            shares = torch.arange(t + 1, dtype=torch.float32) + 1.0
            mean = (torch.stack(path) * (shares / shares.sum()).unsqueeze(1)).sum(0)
        else:
            mean = mean + (theta - mean) / 4
        torch.testing.assert_close(weights(made.policy), mean)
    assert not torch.allclose(mean, theta)


@pytest.mark.parametrize(("method", "kind"), METHODS)
@pytest.mark.parametrize("target_shift", ["slow", "current"])
def test_nothing_that_learns_or_collects_sees_it(method, kind, target_shift):
    """Every tensor of a run without it is there to the bit; what collects and what chooses kept chunks act alike."""
    plain, averaged = (
        learner(method, kind, target_shift=target_shift, eval_average_updates=n, eval_noise_scale=0.5) for n in (0, 4)
    )
    for made in (plain, averaged):
        for _ in updates(made, 5):
            pass
    assert plain.policy is plain.online
    assert all(torch.equal(value, averaged.tensors()[name]) for name, value in plain.tensors().items())
    obs, eps = torch.randn(5, 2), torch.randn(5, 1, 2, 3)
    with torch.no_grad():
        for ours, theirs in ((plain.behaviour, averaged.behaviour), (plain.target, averaged.target)):
            assert torch.equal(ours.act(plain.decoder, obs, eps, 1.0).action, theirs.act(plain.decoder, obs, eps, 1.0).action)
        assert not torch.equal(plain.policy(obs), averaged.policy(obs))
    assert (averaged.behaviour.noise_scale, averaged.policy.noise_scale) == (0.5, 0.25)


@pytest.mark.parametrize(("method", "kind"), METHODS)
def test_it_is_what_is_saved_and_goes_on_from_a_checkpoint(method, kind):
    made, again = (learner(method, kind, eval_average_updates=4) for _ in range(2))
    obs = 3.0 + torch.randn(5, 2)
    made.calibrate(obs, torch.randn(5, 6), 1.0)  # the warm-up's scaling reaches the mean as well
    for _ in updates(made, 5):
        pass
    again.load_tensors(made.tensors())
    opened = method.open_policy(made.decoder, made.policy_settings(), made.policy_tensors())
    with torch.no_grad():
        assert torch.equal(opened(obs), made.policy(obs))
    for one, other in zip(updates(made, 3, seed=2), updates(again, 3, seed=2), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(weights(made.policy), weights(again.policy))


def test_a_run_learns_the_same_and_saves_the_mean(tmp_path):
    """The same episodes are collected; the saved policy is the mean of the same thetas, and an interrupted run ends alike."""
    steps = TINY["steps"]
    for name, settings in (("plain", {}), ("mean", {"eval_average_updates": 50})):
        lpds.steer("toy", out=tmp_path / name, **TINY, **settings)
    lpds.steer("toy", out=tmp_path / "halves", **{**TINY, "steps": steps // 2}, eval_average_updates=50)
    lpds.resume(tmp_path / "halves", steps=steps, quiet=True)

    def collected(name):
        lines = (tmp_path / name / "episodes.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if not key.startswith("wall")} for line in lines]

    saved = {name: load_file(tmp_path / name / "policy" / "policy.safetensors") for name in ("plain", "mean", "halves")}
    assert collected("plain") == collected("mean") == collected("halves")
    assert any(not torch.equal(saved["plain"][key], value) for key, value in saved["mean"].items())
    assert all(torch.equal(saved["halves"][key], value) for key, value in saved["mean"].items())


def test_a_negative_length_is_refused(refused):
    with refused("eval_average_updates must not be negative, not -1"):
        LPDSSettings(eval_average_updates=-1)
