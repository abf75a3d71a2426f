"""The same code on a GPU where there is one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scripted import TINY

import lpds
from lpds.cli import main


def test_where_a_run_and_its_decoder_go_on_may_be_chosen_again(tmp_path, capsys):
    """A run of a machine with a GPU was stuck there."""
    out = tmp_path / "run"
    lpds.steer("toy", out=out, **TINY)
    config = json.loads((out / "config.json").read_text())
    config["run"]["device"] = "cuda"
    (out / "config.json").write_text(json.dumps(config))
    words = ["resume", str(out), "--steps", "720", "--quiet"]
    if not torch.cuda.is_available():
        assert main(words) == 2
        assert "device cuda was asked for" in capsys.readouterr().err
    assert main([*words, "--device", "cpu"]) == 0
    assert json.loads((out / "config.json").read_text())["run"]["device"] == "cpu"
    capsys.readouterr()
    assert main(["eval", str(out), "--decoder-device", "cpu"]) == 2
    assert capsys.readouterr().err.endswith("has a decoder that takes no --decoder-device\n")


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device that torch can use")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_asking_for_a_device_that_is_not_there_gets_one_line(tmp_path):
    with pytest.raises(lpds.LpdsError, match="device cuda was asked for") as error:
        lpds.steer("toy", steps=1200, device="cuda", out=tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@CUDA
@pytest.mark.parametrize("name", ["hopper", "toy-flow"])
def test_a_decoder_gives_the_same_actions_on_both_devices(name):
    decoder = lpds.load_decoder(name)
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(32, *decoder.spec.obs_shape, generator=generator)
    w = torch.randn(32, *decoder.spec.latent_shape, generator=generator)
    there = decoder(obs.cuda(), w.cuda())
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), decoder(obs, w), atol=1e-4, rtol=1e-4)


@CUDA
def test_a_run_on_the_gpu_is_deterministic_and_its_policy_loads_on_the_cpu(tmp_path):
    small = {"steps": 1500, "warmup_fits": 20, "eval_every": 0, "final_episodes": 4, "device": "cuda", "quiet": True}
    for name in ("a", "b"):
        lpds.steer("toy", out=tmp_path / name, **small)
    first, second = (lpds.load_policy(tmp_path / name) for name in ("a", "b"))
    obs = np.zeros((3, 2), np.float32)
    np.testing.assert_array_equal(first.shift(obs), second.shift(obs))
