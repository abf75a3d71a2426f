"""A tiny world that is seen in a picture, and a frozen policy that looks at it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

import lpds
from lpds.decoders.callable import CallableDecoder
from lpds.decoders.wrap import wrap_decoder
from lpds.policy import SteeredPolicy
from lpds.session import Run

SIZE = 12
SHAPES = {"picture": (SIZE, SIZE, 3), "speed": (2,)}
SEEN = {"observation.images.top": (3, SIZE, SIZE), "observation.state": (2,)}


class Spot(gymnasium.Env[Any, Any]):
    """A spot in the plane, to be brought to the right edge of the picture; it is lost beyond the others."""

    observation_space = gymnasium.spaces.Dict(
        {
            "picture": gymnasium.spaces.Box(0, 255, SHAPES["picture"], np.uint8),
            "speed": gymnasium.spaces.Box(-np.inf, np.inf, SHAPES["speed"], np.float32),
            "unused": gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32),
        }
    )
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.moved, self.steps = self.np_random.uniform(-0.3, 0.3, 2), np.zeros(2), 0
        return self._obs(), {}

    def step(self, action):
        self.moved = 0.2 * np.asarray(action, np.float64)
        self.at, self.steps = self.at + self.moved, self.steps + 1
        won, lost = bool(self.at[0] > 1.0), bool(np.abs(self.at).max() > 1.0)
        return self._obs(), float(self.moved[0]) + won, lost, self.steps >= 15, {"success": won}

    def _obs(self):
        middle = (np.clip(self.at, -1, 1) + 1) / 2 * (SIZE - 1)
        rows, columns = np.mgrid[:SIZE, :SIZE]
        light = np.exp(-0.5 * ((rows - middle[1]) ** 2 + (columns - middle[0]) ** 2))
        picture = np.repeat((255 * light).astype(np.uint8)[..., None], 3, 2)
        return {"picture": picture, "speed": self.moved.astype(np.float32), "unused": np.zeros(1, np.float32)}


def where(obs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The spot's place and speed, [B, 4]."""
    light = obs["picture"].float().mean(-1)
    light = light / light.sum((1, 2), keepdim=True).clamp(min=1e-6)
    line = torch.linspace(-1.0, 1.0, SIZE)
    return torch.stack([(light.sum(1) * line).sum(1), (light.sum(2) * line).sum(1), *obs["speed"].unbind(1)], 1)


def spot_decoder(name: str = "spot", **changes: Any) -> CallableDecoder:
    """Wanders, and keeps to the middle a little; chunk 3."""
    given: dict[str, Any] = {"features": where, "feature_size": 4, **changes}
    return wrap_decoder(
        lambda obs, w: torch.tanh(w - 0.5 * where(obs)[:, None, :2]),
        obs_shape=SHAPES,
        latent_shape=(3, 2),
        action_shape=(3, 2),
        name=name,
        **given,
    )


def reopened(run: Run, decoder: CallableDecoder, obs: Any, *, learns: bool = True) -> SteeredPolicy:
    """The saved policy, which is the run's: frozen to the bit at scale 0, another at 1, and it plays what the run did last."""
    policy = lpds.load_policy(run.folder, decoder)
    eps = np.random.default_rng(0).standard_normal((len(obs["speed"]), 3, 2)).astype(np.float32)
    frozen, steered = (policy.act(obs, eps, scale=scale) for scale in (0.0, 1.0))
    plain = decoder({key: torch.from_numpy(obs[key]) for key in SHAPES}, torch.from_numpy(eps)).numpy()
    assert np.array_equal(frozen, plain), "scale 0 is not the frozen policy"
    moved = np.abs(steered - frozen).max((1, 2)) > 0.0
    assert steered.shape == plain.shape
    assert bool(moved.all()) if learns else not moved.any(), f"moved in states: {moved}"
    for scale, report in ((0.0, run.frozen), (1.0, run.steered)):
        again = lpds.evaluate(policy, env=Spot, episodes=len(report.returns), scale=scale)
        assert np.array_equal(again.returns, report.returns), f"scale {scale}: {again.returns} in place of {report.returns}"
    assert np.array_equal(run.frozen.returns, run.steered.returns) != learns, "frozen and steered in the run"
    return policy
