"""One film from one run: evaluate in pairs, repeat what was done where it can be drawn, write it down."""

from __future__ import annotations

import itertools
import math
import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from lpds.api import evaluate
from lpds.envs.build import EnvLike, environment_factory
from lpds.errors import LpdsError, one_line
from lpds.evaluation import EvalReport
from lpds.policy import SteeredPolicy, load_policy
from lpds.random import episode_seed
from lpds.registry import TASKS, resolve
from lpds.run_folder import RunFolder, folder_of, read_config
from lpds.types import Decoder
from lpds.video.backend import choose_backend, no_backend
from lpds.video.frames import FASTEST, SMOOTHEST, file_kind, load_writers, open_film, pairs, playable
from lpds.video.record import Episode, Shot, picture, recording, shots
from lpds.video.scene import prepare, release

OFF = 0.05
"""Share by which a film may miss real time: what a GIF's whole hundredths of a second leave."""
PAUSE = 0.7
"""Seconds that the last frame of an episode stands."""


@dataclass(frozen=True)
class Film:
    """What was written."""

    path: Path
    frames: int
    fps: float
    frozen: EvalReport
    """Of the episodes shown: what :func:`lpds.evaluate` gives for the same seed at scale 0."""
    steered: EvalReport


def write_video(
    run: str | Path | RunFolder | SteeredPolicy,
    task: str | None = None,
    *,
    env: EnvLike | None = None,
    decoder: Decoder | str | None = None,
    out: str | Path | None = None,
    episodes: int = 1,
    seed: int = 0,
    scale: float = 1.0,
    fps: float | None = None,
    size: int = 320,
    progress: Callable[[int, int], None] | None = None,
) -> Film:
    """Film the frozen policy (left) and the steered one (right) on the same episodes and the same noise.

    The episodes are those of :func:`lpds.evaluate` with the same seed and number of episodes: it plays them, and the
    actions are then repeated in an environment that draws.

    Args:
        run: a run folder, or a policy of :func:`lpds.load_policy`.
        task: whose environment; the run's own by default; or
        env: a Gymnasium id, or a zero-argument factory of an environment made with ``render_mode="rgb_array"``.
        decoder: needed for a run of a wrapped one, and for one that has moved; a decoder or a reference.
        out: an ``.mp4`` or ``.gif``; ``video.mp4`` in the run folder by default.
        episodes: E, one after another.
        seed: of the evaluation.
        scale: s in ``w = eps + s Delta(s)`` of the right half.
        fps: frames per second at the most, 60 for mp4 and 25 for GIF by default. The file has the environment's real-time
            rate, or the largest whole part of it within that (:attr:`Film.fps`): steps are left out, and it plays in real time,
            in a GIF within 5 %, since its frames last whole hundredths of a second.
        size: height of the pictures in pixels.
        progress: called with (episodes done, 3 E): frozen and steered ones played, then filmed.

    Returns:
        The film and the records of its episodes.

    Raises:
        LpdsError: nothing can be drawn here, an option that does not fit, or a file that cannot be written.
    """
    if isinstance(run, SteeredPolicy) and decoder is not None:
        raise LpdsError("a policy has its decoder: decoder= is for a run")
    policy = run if isinstance(run, SteeredPolicy) else load_policy(run, decoder)
    if out is None:
        if isinstance(run, SteeredPolicy):
            raise LpdsError("a policy has no folder to write into: pass out=")
        out = folder_of(run) / "video.mp4"
    out = Path(out)
    _check_options(episodes, fps, size)
    kind = file_kind(out)
    load_writers()
    env = _find_env(run, task, env)
    say = progress or (lambda done, total: None)
    backend = choose_backend()
    drawing, name = _drawing_env(env, backend)
    try:
        played: list[dict[int, Episode]] = [{}, {}]
        reports = []
        for side, used in enumerate((0.0, scale)):
            factory = recording(environment_factory(env, keep_dict=True)[0], name, played[side])
            ahead = side * episodes
            reports.append(
                evaluate(
                    policy,
                    env=factory,
                    episodes=episodes,
                    seed=seed,
                    scale=used,
                    progress=lambda done, total, ahead=ahead: say(ahead + done, 3 * total),  # type: ignore[misc]
                )
            )
        rate = _real_time(drawing)
        most = FASTEST[kind] if fps is None else min(fps, SMOOTHEST[kind])
        first = max(1, math.ceil(rate / most - 1e-9))
        stride = next(n for n in itertools.count(first) if abs(playable(kind, rate / n) * n / rate - 1.0) <= OFF)
        speed = playable(kind, rate / stride)
        labels = ("frozen", "steered" if scale == 1.0 else f"steered, scale {scale:g}")
        count = 0
        with open_film(out, speed) as film:
            for number in range(episodes):
                start = episode_seed(True, seed, 0, number)
                left = _kept(shots(drawing, name, start, played[0][start], stride))
                right = shots(drawing, name, start, played[1][start], stride)
                frame = None
                for frame in pairs(left, right, labels, size):
                    film.append_data(frame)
                    count += 1
                for _ in range(round(PAUSE * speed)):
                    film.append_data(frame)
                    count += 1
                say(2 * episodes + number + 1, 3 * episodes)
    finally:
        release(drawing)
    return Film(out, count, speed, *reports)


def _check_options(episodes: int, fps: float | None, size: int) -> None:
    if episodes < 1:
        raise LpdsError(f"episodes must be at least 1, not {episodes}")
    if fps is not None and not 0.5 <= fps <= 240:
        raise LpdsError(f"fps must be from 0.5 to 240, not {fps:g}")
    if size < 64 or size > 2160 or size % 2:
        raise LpdsError(f"size must be an even number of pixels from 64 to 2160, not {size}")


def _find_env(run: str | Path | RunFolder | SteeredPolicy, task: str | None, env: EnvLike | None) -> EnvLike:
    """The environment asked for, or the run's own."""
    if env is not None:
        return env
    if task is not None:
        named: EnvLike = resolve("task", TASKS, task).env
        return named
    if isinstance(run, SteeredPolicy):
        raise LpdsError("a policy does not say its environment: pass a task or env=")
    folder = folder_of(run)
    config = read_config(folder)
    if config["env"] is None:
        raise LpdsError(f"the run in {folder} used the environment factory {config['env_name']!r}: pass it as env=")
    own: EnvLike = config["env"]
    return own


def _drawing_env(env: EnvLike, backend: str | None) -> tuple[gymnasium.Env[Any, Any], str]:
    """An environment that has drawn its first picture, and its name."""
    factory, name = environment_factory(env, render_mode="rgb_array")
    try:
        with warnings.catch_warnings():  # Gymnasium's, of a render mode that is not named; what comes of it is said below
            warnings.filterwarnings("ignore", message=".*render_mode.*", category=UserWarning)
            drawing = factory()
    except LpdsError:
        raise
    except Exception as error:
        if backend is None and os.environ.get("MUJOCO_GL"):  # MuJoCo cannot be imported with a backend that it does not know
            raise LpdsError(no_backend()) from error
        words = f"made with render_mode='rgb_array', as a film needs, it raised {type(error).__name__}: {one_line(error)}"
        raise LpdsError(f"{name} cannot be filmed: {words}") from error
    try:
        if drawing.render_mode != "rgb_array":
            raise LpdsError(f"{name} cannot be filmed: made with render_mode {drawing.render_mode!r}, 'rgb_array' is needed")
        if backend is None and hasattr(drawing.unwrapped, "model"):
            raise LpdsError(no_backend())
        prepare(drawing)
        drawing.reset(seed=0)
        try:
            picture(drawing, name)
        except LpdsError:
            raise
        except Exception as error:
            modes = list(map(str, drawing.metadata.get("render_modes") or []))
            words = f"its render() raised {type(error).__name__}: {one_line(error)}"
            if "rgb_array" not in modes:
                words = f"its metadata names no render mode 'rgb_array' (render_modes: {', '.join(modes) or 'none'})"
            raise LpdsError(f"{name} cannot be filmed: {words}") from error
    except BaseException:
        release(drawing)
        raise
    return drawing, name


def _real_time(env: gymnasium.Env[Any, Any]) -> float:
    """Primitive steps per second of the world's own time."""
    step = getattr(env.unwrapped, "dt", None)
    if isinstance(step, float) and step > 0.0:
        return 1.0 / step
    return float(env.metadata.get("render_fps") or 30.0)


def _kept(source: Iterator[Shot]) -> Iterator[Shot]:
    """Draw a whole episode first and keep it packed: one environment draws both sides, one after the other."""
    packed: list[tuple[bytes, tuple[int, ...], Shot]] = []
    for shot in source:
        light = Shot(np.empty((0, 0, 3), np.uint8), shot.step, shot.total, shot.success)
        packed.append((zlib.compress(shot.image.tobytes(), 1), shot.image.shape, light))
    for data, shape, shot in packed:
        image = np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape)
        yield Shot(image, shot.step, shot.total, shot.success)
