"""Small environments that several tests share, and data of one of them."""

from __future__ import annotations

import gymnasium
import numpy as np

from lpds.pretrain.experts import Demonstrations


class Two(gymnasium.Env):
    """Two vectors in a dict, whose keys' order is not the alphabet's, and actions in a box of any edges."""

    def __init__(self, low=-1.0, high=1.0):
        self.observation_space = gymnasium.spaces.Dict(
            [(name, gymnasium.spaces.Box(-9.0, 9.0, (size,), np.float32)) for name, size in (("place", 2), ("goal", 1))]
        )
        self.action_space = gymnasium.spaces.Box(np.full(2, low, np.float32), np.full(2, high, np.float32))

    def _obs(self):
        return {"place": self.place.astype(np.float32), "goal": np.ones(1, np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = self.np_random.normal(size=2), 0
        return self._obs(), {}

    def step(self, action):
        self.time += 1
        self.place = np.clip(self.place + 0.1 * action, -5.0, 5.0)
        return self._obs(), -float(np.abs(self.place).sum()), False, self.time >= 12, {}


class Still(gymnasium.Env):
    """Two numbers, one action, five steps; may fail where a test says."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, fails_at: int = 99, closes: bool = True) -> None:
        self.fails_at, self.closes, self.count, self.closed = fails_at, closes, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.count += 1
        if self.count == self.fails_at:
            raise RuntimeError("simulator lost")
        return np.zeros(2, np.float32), float(action[0]), False, self.count == 5, {}

    def close(self):
        self.closed += 1
        if not self.closes:
            raise RuntimeError("Not connected to physics server.")


def still_data(lengths=(5, 5), scale=1.0, **more):
    steps = sum(lengths)
    rng = np.random.default_rng(0)
    return Demonstrations(
        obs=rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        actions=(scale * rng.uniform(-1, 1, (steps, 1))).astype(np.float32),
        episode_lengths=np.asarray(lengths, np.int64),
        episode_returns=np.zeros(len(lengths)),
        episode_source=np.zeros(len(lengths), np.int64),
        rewards=np.zeros(steps, np.float32),
        final_obs=np.zeros((len(lengths), 2), np.float32),
        terminated=np.zeros(len(lengths), np.bool_),
        **more,
    )
