"""What evaluations and resumed runs assume of every registered environment: a seed is an episode, wherever it is played."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys

import numpy as np
import pytest

import lpds
from lpds.envs.build import environment_factory
from lpds.registry import ENVIRONMENTS

NEEDS = {"adroit": "gymnasium_robotics", "robomimic": "robosuite", "four": "lpds"}
"""The module that the environments of a family need, by the first word of their names."""

PLAYED = """
import hashlib, sys, numpy as np
from lpds.envs.build import environment_factory
for name in sys.argv[1:]:
    env = environment_factory(name)[0]()
    rng, rows = np.random.default_rng(0), [env.reset(seed=7)[0]]
    rows += [env.step(rng.uniform(-0.5, 0.5, env.action_space.shape).astype(np.float32))[0] for _ in range(8)]
    print(hashlib.sha256(np.stack(rows).tobytes()).hexdigest())
    env.close()
"""


def there(name: str) -> bool:
    return importlib.util.find_spec(NEEDS[name.split("-", maxsplit=1)[0]]) is not None


every = pytest.mark.parametrize("name", list(ENVIRONMENTS))


def episode(env, seed):
    rng = np.random.default_rng(0)
    rows = [env.reset(seed=seed)[0]]
    rows += [env.step(rng.uniform(-0.5, 0.5, env.action_space.shape).astype(np.float32))[0] for _ in range(8)]
    return np.stack(rows)


@every
def test_a_seed_is_an_episode_whatever_was_played_before(name):
    if not there(name):
        pytest.skip(f"{name} needs {NEEDS[name.split('-')[0]]}")
    env = environment_factory(name)[0]()
    fresh = episode(env, 7)
    other = episode(env, 8)
    assert np.array_equal(episode(env, 7), fresh)
    assert not np.array_equal(other[1:], fresh[1:])
    assert fresh.dtype == env.observation_space.dtype
    assert env.observation_space.contains(fresh[0])
    env.close()


@every
def test_an_episode_that_a_run_was_in_the_middle_of_is_reached_again_to_the_bit(name):
    """How a resumed run goes on: the episode's seed, then its chunks."""
    if not there(name):
        pytest.skip(f"{name} needs {NEEDS[name.split('-')[0]]}")
    env = lpds.make_env(name, 1, 4, 3)
    actions = env.primitive_action_space.shape[0]
    chunks = np.random.default_rng(1).uniform(-0.5, 0.5, (3, 1, 4, actions)).astype(np.float32)
    env.reset(seed=3)
    for chunk in chunks:
        reached = env.step(chunk)[0]
    env.step(np.zeros((1, 4, actions), np.float32))  # on, so that there is something to go back from
    assert np.array_equal(env.replay(0, 0, [chunk[0] for chunk in chunks]), reached[0])
    env.close()


def test_another_process_plays_the_same_episodes():
    names = [name for name in ENVIRONMENTS if there(name)]
    done = subprocess.run([sys.executable, "-c", PLAYED, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, theirs in zip(names, done.stdout.split()[-len(names) :], strict=True):
        env = environment_factory(name)[0]()
        assert hashlib.sha256(episode(env, 7).tobytes()).hexdigest() == theirs, name
        env.close()
