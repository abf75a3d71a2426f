"""Learning on a device that is not the CPU, simulated: nothing is mixed, nothing needed is left behind."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scripted import TINY
from second_device import FAR, FarTensor, second_device

import lpds

TINIER = {**TINY, "steps": 200, "warmup_steps": 160, "warmup_fits": 2, "updates_per_decision": 0.5, "eval_every": 0}


def test_what_is_simulated_refuses_what_a_gpu_refuses(monkeypatch):
    with second_device(monkeypatch):
        near = torch.ones(3)
        far = near.to(FAR)
        assert isinstance(far, FarTensor)
        assert (far + far).cpu().tolist() == [2.0, 2.0, 2.0]
        assert not isinstance(far.cpu(), FarTensor)
        for mixed in (lambda: far + near, lambda: torch.cat([near, far]), lambda: far[torch.tensor([0])] @ near):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError):
            far.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(2, generator=torch.Generator(), device=FAR)


@pytest.mark.parametrize("method", ["lpds", "lpds-a", "dsrl-na", "best-of-n"])
def test_a_run_learns_on_the_device_that_was_asked_for(monkeypatch, tmp_path, method):
    with second_device(monkeypatch):
        run = lpds.steer("toy", method, out=tmp_path / "run", **TINIER | {"device": "cuda", "final_episodes": 1})
        assert run.finished
        again = lpds.resume(tmp_path / "run", steps=220, quiet=True) if method == "lpds" else run
        assert again.finished
    acted = lpds.load_policy(tmp_path / "run").act(np.zeros((2, 2), np.float32))  # on the CPU again
    assert np.isfinite(acted).all()


def test_features_may_stay_where_the_policy_runs(monkeypatch):
    """The fingerprint beside them was made of a table of two devices."""
    with second_device(monkeypatch):
        weights = torch.ones(2, 3).to(FAR)
        decoder = lpds.wrap_decoder(
            lambda seen, w: torch.tanh(w + seen[:, None, :2]),
            obs_shape=(2,),
            latent_shape=(1, 2),
            action_shape=(1, 2),
            name="far",
            features=lambda seen: torch.tanh(seen.to(FAR) @ weights),
            feature_size=3,
        )
        assert isinstance(decoder.features(decoder.prepare(torch.zeros(2, 2))), FarTensor)
        assert decoder.resembles(decoder.probe)
        assert len(decoder.fingerprint) == 64


def test_a_default_device_that_a_file_sets_is_its_functions_own_at_every_opening(tmp_path):
    """The file is run once, and what makes the decoder may be called again and again."""
    (tmp_path / "sets_a_device.py").write_text(
        "import lpds\nimport torch\n\ntorch.set_default_device('meta')\nasked = []\n\n\n"
        "def act(obs, w):\n    asked.append(torch.get_default_device().type)\n    return torch.tanh(w)\n\n\n"
        "def make():\n    return lpds.wrap_decoder(act, obs_shape=2, latent_shape=(1, 2), action_shape=(1, 2), name='it')\n"
    )
    for _ in range(2):
        assert torch.get_default_device().type == "cpu"
        decoder = lpds.load_decoder(f"python:{tmp_path}/sets_a_device.py:make")
        assert len(decoder.fingerprint) == 64
    assert set(sys.modules["sets_a_device"].asked) == {"meta"}
    assert torch.get_default_device().type == "cpu"


def test_a_device_context_of_the_caller_does_not_reach_what_is_opened():
    with torch.device("meta"):
        shipped = lpds.load_decoder("toy")
        assert torch.get_default_device().type == "meta"
    assert shipped(torch.zeros(1, 2), torch.zeros(*(1, *shipped.spec.latent_shape))).device.type == "cpu"


def test_a_default_device_of_the_caller_is_given_back_and_is_the_policys_own():
    asked = []

    def act(obs, w):
        asked.append(torch.get_default_device().type)
        return torch.tanh(w)

    torch.set_default_device("meta")
    try:
        decoder = lpds.wrap_decoder(act, obs_shape=(2,), latent_shape=(1, 2), action_shape=(1, 2), name="mine")
        shipped = lpds.load_decoder("toy")
        assert torch.get_default_device().type == "meta"
        torch.set_default_device(None)
        assert shipped(torch.zeros(1, 2), torch.zeros(*(1, *shipped.spec.latent_shape))).device.type == "cpu"
        assert len(decoder.fingerprint) == 64
        torch.set_default_device("meta")
        assert lpds.check(shipped).ok
        assert set(asked) == {"meta"}
    finally:
        torch.set_default_device(None)
