"""A policy that only another Python can open is served from there: LeRobot's on Python 3.12 to a run on 3.11, for instance.

The other interpreter is the one that LPDS_OTHER_PYTHON names, else python3.12 of the PATH, else this one in a process apart; it
needs lpds (with the extra ``remote``) and lerobot.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from scripted import TINY
from serving import inputs, opened, quick  # noqa: F401 - quick is a fixture

import lpds

PI0 = Path(__file__).parents[1] / "results" / "libero-90-57" / "tiny-pi0"
TOLD = "pick up the cream cheese and put it in the tray"
NEEDS = "import lpds.wire, websockets, msgpack, lerobot.policies.pi0.modeling_pi0, sys; print(*sys.version_info[:2], sep='.')"


def answer_of(python):
    """The version of an interpreter that has what serving needs, or None."""
    done = subprocess.run([python, "-c", NEEDS], capture_output=True, text=True, timeout=300, check=False)
    return done.stdout.split()[-1] if done.returncode == 0 else None


@pytest.fixture(scope="module")
def other():
    for python in (os.environ.get("LPDS_OTHER_PYTHON"), shutil.which("python3.12"), sys.executable):
        if python and answer_of(python):
            return python
    pytest.skip("no Python has lpds and lerobot: LPDS_OTHER_PYTHON names one (docs/lerobot.md, docs/remote.md)")


@contextlib.contextmanager
def pi0_of(python):
    """The address of the tiny pi0, and its fingerprint's beginning."""
    words = [f"lerobot:{PI0}", "--flat", "--instruction", TOLD, "--port", "0"]
    command = [python, "-m", "lpds", "serve-decoder", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as process:
        try:
            line = next((line for line in process.stdout if line.startswith("serving ")), "")
            assert " on ws://127.0.0.1:" in line, "it did not start"
            yield re.search(r"ws://[0-9.:]+", line).group()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()


class Arm(gymnasium.Env):
    """Fifty numbers and seven motors, as the pi0 has them; a reward for moving the first."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (50,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        self.steps += 1
        return self._obs(), float(action[0]), False, self.steps >= 40, {}

    def _obs(self):
        return self.np_random.standard_normal(50).astype(np.float32)


@pytest.mark.timeout(600)
def test_a_pi0_of_another_python_is_steered(other, tmp_path):
    card = json.loads((PI0 / "card.json").read_text())
    settings = TINY | {"steps": 400, "warmup_steps": 200, "warmup_fits": 5, "final_episodes": 2, "eval_every": 10_000}
    with pi0_of(other) as address, opened(address) as remote:
        # cloned, and named by its weights, on Python 3.11 with lerobot 0.4.4
        assert remote.fingerprint == card["fingerprint"]
        obs, w = inputs(remote, 6)
        first = remote(obs, w)
        assert first.shape == (6, *remote.spec.action_shape)
        assert torch.equal(remote(obs, w), first)
        context = remote.prepare(obs)
        again = remote.decode(remote.repeat(context, 2), w.repeat_interleave(2, 0))
        assert torch.allclose(again[::2], first, atol=1e-5)  # a batch of another size
        run = lpds.steer(decoder=remote, env=Arm, out=tmp_path / "run", **settings)
        assert run.finished
        facts = json.loads((tmp_path / "run" / "passport.json").read_text())
        assert facts["decoder"]["fingerprint"] == card["fingerprint"]
        shift = lpds.load_policy(tmp_path / "run", remote).shift(obs.numpy())
        assert np.abs(shift[..., :7]).max() > 0
        assert not shift[..., 7:].any()  # columns that only pad
