"""Episodes written down by the paired evaluation itself, and repeated in one environment that draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from lpds.envs.answers import told_success
from lpds.envs.chunk import EnvFactory
from lpds.errors import LpdsError

Array = npt.NDArray[Any]
Image = npt.NDArray[np.uint8]


@dataclass
class Episode:
    """What was done in one episode and what came of it, one entry a primitive step."""

    actions: list[Array] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    successes: list[bool | None] = field(default_factory=list)
    """Success so far; ``None`` while the environment has not said."""


@dataclass(frozen=True)
class Shot:
    """One picture of an episode."""

    image: Image
    step: int
    total: float
    """Return so far."""
    success: bool | None
    """Success so far; ``None`` while the environment has not said."""


class Recorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Writes down every episode under the seed of its reset."""

    def __init__(self, env: gymnasium.Env[Any, Any], episodes: dict[int, Episode]) -> None:
        super().__init__(env)
        self._episodes = episodes
        self._current = Episode()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        self._current = Episode()
        if seed is not None:
            self._episodes[seed] = self._current
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Write down one step."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        current = self._current
        _, says = told_success(info)
        before = current.successes[-1] if current.successes else None
        current.actions.append(np.array(action))
        current.rewards.append(float(reward))
        current.successes.append(before if says is None else bool(before) or says)
        return obs, reward, terminated, truncated, info


def recording(factory: EnvFactory, name: str, episodes: dict[int, Episode]) -> EnvFactory:
    """The same factory, whose environments write their episodes into ``episodes``."""

    def make() -> gymnasium.Env[Any, Any]:
        return Recorder(factory(), episodes)

    make.__name__ = name
    return make


def picture(env: gymnasium.Env[Any, Any], name: str) -> Image:
    """What the environment draws now, [height, width, 3].

    Raises:
        LpdsError: it draws nothing, or no picture.
    """
    drawn: Any = env.render()
    if not isinstance(drawn, np.ndarray) or drawn.ndim != 3 or drawn.shape[2] != 3:
        seen = f"an array {list(drawn.shape)}" if isinstance(drawn, np.ndarray) else type(drawn).__name__
        raise LpdsError(f"{name} cannot be filmed: its render() gives {seen}, expected [height, width, 3]")
    if drawn.dtype != np.uint8:  # floats in 0 to 1 would all be black
        raise LpdsError(f"{name} cannot be filmed: its render() gives {drawn.dtype}, expected uint8 from 0 to 255")
    return drawn


def shots(env: gymnasium.Env[Any, Any], name: str, seed: int, episode: Episode, stride: int) -> Iterator[Shot]:
    """Repeat an episode and draw its start, every ``stride``-th step and its end.

    Args:
        env: of the kind that the episode was recorded in; draws.
        name: for messages.
        seed: of the episode's reset.
        episode: the record.
        stride: primitive steps between pictures.

    Raises:
        LpdsError: the repeated episode is another one: the environment does not follow from its seed.
    """
    env.reset(seed=seed)
    yield Shot(picture(env, name), 0, 0.0, None)
    total, last = 0.0, len(episode.actions)
    for step, (action, expected) in enumerate(zip(episode.actions, episode.rewards, strict=True), 1):
        _, reward, terminated, truncated, _ = env.step(action)
        if float(reward) != expected or (terminated or truncated) != (step == last):
            raise LpdsError(
                f"{name} cannot be filmed: repeated from seed {seed} with the same actions, step {step} was another "
                f"(reward {float(reward):g}, was {expected:g})"
            )
        total += expected
        if step % stride == 0 or step == last:
            yield Shot(picture(env, name), step, total, episode.successes[step - 1])
