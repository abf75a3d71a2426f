"""Is a decoder what steering needs: a function of state and noise, row by row, that a run can rely on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

import lpds
from lpds.doctor import CheckReport
from lpds.errors import LpdsError
from lpds.observations import conform
from lpds.probe import largest_gap, synthetic_observations, take
from lpds.random import normal
from lpds.types import Decoder
from lpds.zoo import environment_of

FINDINGS = (
    "decodes",
    "starts at noise",
    "deterministic",
    "inputs untouched",
    "finite actions",
    "variance due to w",
    "live latents",
    "prior",
    "smooth in w",
    "batch consistency",
    "action range",
    "observation range",
    "episodes end",
    "seeds",
    "spaces",
    "roll-out",
    "fingerprint",
    "latency",
)
"""What :func:`lpds.check` measures; a fault fails, a warning warns."""


def open_reference(config: pytest.Config) -> Decoder:
    """Open what the command line names; other tests are not disturbed where it names nothing."""
    reference = config.getoption("--lpds-decoder")
    if reference is None:
        pytest.skip("no decoder given: pytest --pyargs lpds.testing --decoder REF")
    options = dict(option.partition("=")[::2] for option in config.getoption("--lpds-decoder-option"))
    values = {key: {"true": True, "false": False}.get(value.lower(), _number(value)) for key, value in options.items()}
    try:
        decoder: Decoder = lpds.load_decoder(reference, **values)
    except LpdsError as error:
        pytest.exit(str(error), returncode=2)
    return decoder


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


@pytest.fixture(scope="module")
def decoder(pytestconfig: pytest.Config) -> Decoder:
    """The decoder under test."""
    return open_reference(pytestconfig)


@pytest.fixture(scope="module")
def env(pytestconfig: pytest.Config) -> str | None:
    """Where it acts: as said, else as its card says."""
    return pytestconfig.getoption("--lpds-decoder-env") or environment_of(pytestconfig.getoption("--lpds-decoder"))


@pytest.fixture(scope="module")
def report(decoder: Decoder, env: str | None, pytestconfig: pytest.Config) -> CheckReport:
    """All measurements, made once."""
    try:
        return lpds.check(decoder, env, samples=pytestconfig.getoption("--lpds-decoder-samples"))
    except LpdsError as error:  # of the environment's name: one line, not one for every test
        pytest.exit(str(error), returncode=2)


def inputs(decoder: Decoder, rows: int, seed: int = 0) -> tuple[Any, Tensor]:
    """Observations [rows, ...] and noises [rows, H, L] from N(0, I)."""
    obs = take(synthetic_observations(decoder, max(rows, 1), seed), torch.arange(rows))
    return obs, torch.from_numpy(normal("probe", seed, 50, shape=(rows, *decoder.spec.latent_shape)))


@pytest.mark.parametrize("name", FINDINGS)
def test_the_doctor_finds_no_fault(name: str, report: CheckReport, record_property: Any) -> None:
    """Determinism, batch invariance, shapes, prior, units, share of the variance due to w, latency."""
    found = [finding for finding in report.findings if finding.name == name]
    if not found:
        pytest.skip("not measured: no environment or normaliser for it, no trouble with it, or another fault came first")
    for finding in found:
        record_property(name, finding.figure)
        if finding.verdict == "fault":
            pytest.fail(f"{finding.figure} -> {finding.remedy}", pytrace=False)
        if finding.verdict == "warning":
            warnings.warn(f"{name}: {finding.figure} -> {finding.remedy}", stacklevel=1)


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
def test_any_batch_gives_chunks_of_the_stated_shape(decoder: Decoder, rows: int) -> None:
    """float32 [B, T, A], on the device of the noise, without a gradient."""
    obs, w = inputs(decoder, rows)
    action = decoder(obs, w.requires_grad_())
    assert tuple(action.shape) == (rows, *decoder.spec.action_shape)
    assert action.dtype == torch.float32
    assert action.device == w.device
    assert not action.requires_grad


def test_rows_may_come_in_any_order(decoder: Decoder) -> None:
    """Phi of permuted rows is the permuted Phi, up to float32 rounding."""
    obs, w = inputs(decoder, 24)
    order = torch.from_numpy(np.random.default_rng(0).permutation(24))
    straight, mixed = decoder(obs, w), decoder(take(obs, order), w[order])
    assert largest_gap(straight[order], mixed) <= 1e-3


def test_a_reference_names_one_policy(decoder: Decoder, pytestconfig: pytest.Config) -> None:
    """Opened twice, the fingerprint is the same: a Delta must find its decoder again."""
    again = open_reference(pytestconfig)
    assert again.fingerprint == decoder.fingerprint
    assert again.spec == decoder.spec


class RandomWalk(gymnasium.Env[Any, Any]):
    """Observations within the decoder's range, whatever it does; for decoders without an environment here."""

    def __init__(self, decoder: Decoder) -> None:
        shape = decoder.spec.obs_shape
        assert isinstance(shape, tuple)
        self.states = synthetic_observations(decoder, 256, 1).numpy()
        if len(shape) >= 3 and self.states.dtype != np.uint8:  # steering holds pictures as bytes, as cameras give them
            self.states = (255.0 * self.states).round().astype(np.uint8)
        low, high = (0, 255) if self.states.dtype == np.uint8 else (-np.inf, np.inf)
        self.observation_space = gymnasium.spaces.Box(low, high, shape, self.states.dtype.type)
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, decoder.spec.action_shape[1:], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        self.count = 0
        return self._state(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Reward small actions; 40 steps."""
        self.count += 1
        return self._state(), -float(np.square(action).mean()), False, self.count >= 40, {}

    def _state(self) -> Any:
        return self.states[self.np_random.integers(len(self.states))]


@pytest.fixture(scope="module")
def run(decoder: Decoder, env: str | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few updates, in its environment or in a random walk."""
    if isinstance(decoder.spec.obs_shape, Mapping):
        pytest.skip("observations in several parts: steer it by hand")
    out = tmp_path_factory.mktemp("conformance") / "run"
    steps = 8 * decoder.spec.action_shape[0]
    settings: dict[str, Any] = {"num_envs": 1, "batch_size": 4, "warmup_steps": steps, "warmup_fits": 2, "width": 16}
    settings |= {"eval_every": 0, "final_episodes": 2, "log_every": steps, "delta": 0.1}
    lpds.steer(decoder=decoder, env=env or (lambda: RandomWalk(decoder)), steps=2 * steps, out=out, **settings)
    return out


def test_it_can_be_steered_and_scale_0_is_the_frozen_policy(decoder: Decoder, run: Path) -> None:
    """Equal to the bit, for the same noise, whatever Delta has learned; at scale 1 it is Phi(s, eps + Delta)."""
    policy = lpds.load_policy(run)
    obs, eps = inputs(decoder, 5, seed=7)
    given = obs.numpy()
    if given.ndim >= 4 and given.dtype != np.uint8:
        given = (255.0 * given).round().astype(np.uint8)
        obs = conform(given, decoder.spec)
    frozen = decoder(obs, eps)
    assert torch.equal(torch.from_numpy(policy.act(given, eps=eps.numpy(), scale=0.0)), frozen)
    shift = torch.from_numpy(np.asarray(policy.shift(given)))
    steered = torch.from_numpy(policy.act(given, eps=eps.numpy(), scale=1.0))
    assert torch.equal(steered, decoder(obs, eps + shift))
