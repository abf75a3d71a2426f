"""``python:`` decoders, and the conformance tests that users run on their own: sound ones pass, each defect fails its test."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import lpds
from lpds.testing import test_decoder as conformance

MINE = """
import torch
import lpds

mix = torch.linspace(-1, 1, 12 * 12).view(12, 12).cos()

def make(gain=1.0):
    return lpds.wrap_decoder(
        lambda obs, w: gain * torch.tanh(0.3 * w.flatten(1) @ mix + obs.repeat(1, 4)).view(-1, 4, 3),
        obs_shape=(3,), latent_shape=(4, 3), action_shape=(4, 3), name="mine",
    )

decoder = make()
number = 3
def broken():
    raise RuntimeError("no weights\\nhere")
"""
SIZES = {"obs_shape": (3,), "latent_shape": (4, 3), "action_shape": (4, 3), "name": "mine"}


@pytest.fixture
def mine(tmp_path, request):
    """A user's file under a name that no other test has loaded."""
    path = tmp_path / f"mine_{abs(hash(request.node.nodeid))}.py"
    path.write_text(MINE)
    return path


def test_a_files_decoder_has_a_reference_and_a_run_finds_it_again(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = lpds.load_decoder(f"python:{mine.name}:make", gain=0.5)
    ready = lpds.load_decoder(f"python:{mine}:decoder")
    obs, w = torch.randn(5, 3), torch.randn(5, 4, 3)
    assert torch.equal(2.0 * made(obs, w), ready(obs, w))
    assert ready.reference == f"python:{mine}:decoder"
    assert made.reference == f"python:{mine}:make"  # absolute, though it was written relative
    assert made.options == {"gain": 0.5}
    settings = {"num_envs": 1, "batch_size": 4, "warmup_steps": 16, "warmup_fits": 1, "width": 8, "log_every": 16}
    env = lambda: conformance.RandomWalk(made)  # noqa: E731
    run = tmp_path / "run"
    lpds.steer(decoder=made, env=env, steps=48, out=run, delta=0.1, eval_every=0, final_episodes=2, **settings)
    monkeypatch.chdir("/")
    policy = lpds.load_policy(run)
    assert torch.equal(torch.from_numpy(policy.act(obs.numpy(), eps=w.numpy(), scale=0.0)), made(obs, w))


def test_a_modules_decoder(mine, monkeypatch):
    monkeypatch.syspath_prepend(mine.parent)
    assert (
        lpds.load_decoder(f"python:{mine.stem}:decoder").fingerprint
        == lpds.load_decoder(f"python:{mine.stem}:make").fingerprint
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "unknown name in it 'nothing'"),
        ("number", "is a int; make one with lpds.wrap_decoder"),
        ("broken", "RuntimeError: no weights here"),
    ],
)
def test_what_is_no_decoder_gets_one_line(mine, refused, name, says):
    with refused(f"python:{mine}:{name}", says):
        lpds.load_decoder(f"python:{mine}:{name}")


def test_other_mistakes_get_one_line(mine, tmp_path, refused):
    with refused("is made already and takes no options, got gain"):
        lpds.load_decoder(f"python:{mine}:decoder", gain=2)
    with refused("unexpected keyword argument 'gian'"):
        lpds.load_decoder(f"python:{mine}:make", gian=2)
    with refused("must be written python:FILE.py:NAME"):
        lpds.load_decoder("python:mine")
    with refused("No module named 'no_such_module'"):
        lpds.load_decoder("python:no_such_module:decoder")
    with refused("there is no file", "nowhere.py"):
        lpds.load_decoder(f"python:{tmp_path / 'nowhere.py'}:decoder")
    namesake = tmp_path / "other" / mine.name
    namesake.parent.mkdir()
    namesake.write_text(MINE)
    lpds.load_decoder(f"python:{mine}:decoder")
    with refused("is loaded already from elsewhere"):
        lpds.load_decoder(f"python:{namesake}:decoder")


# -- the conformance tests ---------------------------------------------------------------------------------------------


def test_a_users_decoder_passes_from_the_command_line(mine):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "lpds.testing"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = ["--decoder", f"python:{mine.name}:make", "--decoder-option", "gain=0.5"]
    done = subprocess.run([*command, *options], cwd=mine.parent, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout
    assert "19 passed, 6 skipped" in done.stdout


def test_an_unknown_environment_is_one_line_and_no_failures(mine):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "lpds.testing.test_decoder"]
    options = ["--lpds-decoder", f"python:{mine.name}:decoder", "--decoder-env=Hoper-v5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], cwd=mine.parent, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2, done.stdout
    assert "Hoper-v5" in done.stdout
    assert "ERROR" not in done.stdout


def test_another_project_may_call_its_option_decoder(tmp_path):
    """Pytest loads these options in every project where lpds is installed, and one of the same name ended all of its tests."""
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n"
        "    for name in ('--decoder', '--decoder-env', '--decoder-option', '--decoder-samples'):\n"
        "        parser.addoption(name)\n"
    )
    (tmp_path / "test_theirs.py").write_text(
        "def test_it(pytestconfig):\n    assert pytestconfig.getoption('decoder') == 'h264'\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "--decoder", "h264"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def leaks(obs, w):
    """The batch's mean in every row, as a forgotten model.train() would have it."""
    return torch.tanh(w + w.mean(0) * torch.arange(len(w)).view(-1, 1, 1))


def test_a_leak_between_rows_is_found():
    conformance.test_rows_may_come_in_any_order(lpds.wrap_decoder(lambda obs, w: torch.tanh(w), **SIZES))
    with pytest.raises(AssertionError):
        conformance.test_rows_may_come_in_any_order(lpds.wrap_decoder(leaks, **SIZES))
    # a mean over the whole batch is the same in any order: the doctor, who decodes rows alone, finds it
    report = lpds.check(lpds.wrap_decoder(lambda obs, w: torch.tanh(w + w.mean(0)), **SIZES))
    with pytest.raises(pytest.fail.Exception, match="rows leak into each other"):
        conformance.test_the_doctor_finds_no_fault("batch consistency", report, lambda name, figure: None)


def test_a_fault_of_the_doctor_fails_and_a_warning_warns():
    stochastic = lpds.wrap_decoder(lambda obs, w: torch.randn(len(w), 4, 3), **SIZES)
    report = lpds.check(stochastic)
    with pytest.raises(pytest.fail.Exception, match="deterministic sampler"):
        conformance.test_the_doctor_finds_no_fault("deterministic", report, lambda name, figure: None)
    dead = lpds.wrap_decoder(lambda obs, w: torch.tanh(w * torch.tensor([1.0, 1.0, 0.0])), **SIZES)
    with pytest.warns(UserWarning, match="free="):
        conformance.test_the_doctor_finds_no_fault("live latents", lpds.check(dead), lambda name, figure: None)


def test_every_finding_has_its_test():
    toy = lpds.check("toy", "four-mode")
    named = {finding.name for finding in toy.findings}
    assert named | {"roll-out"} == set(conformance.FINDINGS)
