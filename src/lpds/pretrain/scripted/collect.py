"""Demonstrations of scripted experts: successes are kept, failures are counted.

RoboMimic's recordings stop soon after success, when it has held for ten steps (robosuite's
``collect_human_demonstrations.py``); so do these. An episode that has no success by the environment's horizon is a failure.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lpds.checks import check_seed
from lpds.errors import LpdsError, RunFault
from lpds.pretrain.experts import Demonstrations, FloatArray
from lpds.pretrain.scripted.waypoints import Script, draw_manner
from lpds.registry import ENVIRONMENTS, resolve
from lpds.types import Decoder

HELD = 10
"""Successful steps in a row after which a recording stops."""
ATTEMPTS = 5
"""Attempts for every episode wanted, before giving up."""
CORRECT = ("lpds.pretrain.scripted.transport",)
"""Experts with ``take_over(start, parts, rng)``, who go on from where a policy has come to."""
NOWHERE = -1
"""Mode of an attempt in which nothing was taken over."""
KEPT_EVERY = 60.0
"""Seconds after which what is there is kept again."""
KEPT_LESS = 20.0
"""Times as long as the keeping took, where that is more: large files are not written all the time."""


@dataclass
class _Episode:
    mode: int
    obs: list[FloatArray] = field(default_factory=list)
    actions: list[FloatArray] = field(default_factory=list)
    meant: list[FloatArray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    pictures: list[dict[str, npt.NDArray[np.uint8]]] = field(default_factory=list)
    succeeded: bool = False


def demonstrate(
    env_id: str,
    expert: str,
    *,
    episodes: int,
    seed: int,
    tremor: float,
    meant: bool = False,
    policy: Decoder | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
    begun: Demonstrations | None = None,
    keep: Callable[[Demonstrations], None] | None = None,
) -> Demonstrations:
    """Let a scripted expert act until it has succeeded often enough.

    Args:
        env_id: a robosuite or LIBERO task of the environment registry.
        expert: module with ``plan(parts, rng)`` and ``MODES``.
        episodes: successes wanted.
        seed: attempt i, its reset, plan and tremor, is a function of (seed, i).
        tremor: the largest standard deviation of the noise on the actions, of which every episode draws its own.
        meant: keep what was meant besides what the tremor made of it; then that is what a clone learns.
        policy: acts first, for a number of steps drawn anew for every attempt, up to three quarters of the horizon; the expert
            takes over then and has as long as from a reset. An episode is what it did: corrections of where this policy gets
            to (as a person gives them in HG-DAgger, arXiv 1810.02890).
        options: of the environment. One that observes a dict of vectors and pictures (uint8, LeRobot's names) gives
            observations of its vectors end to end, ``observation.state`` first, and the pictures beside them.
        progress: called with (episodes, wanted) after every attempt.
        say: called with a line of counts at the end.
        stop: asked after every attempt; what is there by then is all that is wanted.
        begun: go on after its last attempt; what comes out is what one call would have made. The other arguments have to be
            those that made it.
        keep: given what is there by then, every now and then.

    Returns:
        The successful episodes, fewer than wanted where it fails too often; ``episode_source`` is the number of the mode in
        ``MODES``.

    Raises:
        LpdsError: no episodes are wanted, it never succeeds, or it cannot take over from a policy.
        RunFault: the policy failed before anything was there to keep.
    """
    if episodes < 1:
        raise LpdsError(f"episodes must be at least 1, not {episodes}")
    check_seed("seed", seed)
    script = importlib.import_module(expert)
    if policy is not None and script.__name__ not in CORRECT:
        raise LpdsError(f"{script.__name__} begins at a reset and cannot take over from a policy; {', '.join(CORRECT)} can")
    env = resolve("environment", ENVIRONMENTS, env_id)(**options or {})
    led = 0
    if policy is not None:
        led = 3 * env.unwrapped.horizon // 4
        env.unwrapped.horizon += led  # the expert has as long as from a reset
    kept: list[_Episode] = [] if begun is None else _episodes(begun)
    modes: list[int] = [] if begun is None else begun.attempts.tolist()
    stopped, broken, due = False, "", time.monotonic() + KEPT_EVERY
    try:
        while not stopped and len(kept) < episodes and len(modes) < ATTEMPTS * episodes:
            try:
                episode = _attempt(env, script, np.random.default_rng([seed, len(modes)]), tremor, policy, led)
            except RunFault as fault:  # of a policy that lives elsewhere, say
                if not kept:
                    raise
                broken = f"{fault}; what was there by then is kept"
                break
            modes.append(episode.mode)
            if episode.succeeded:
                kept.append(episode)
            if progress is not None:
                progress(len(kept), episodes)
            stopped = stop is not None and stop()
            if keep is not None and episode.succeeded and (now := time.monotonic()) >= due:
                keep(_demonstrations(kept, modes, meant))
                spent = time.monotonic() - now
                due = now + spent + max(KEPT_EVERY, KEPT_LESS * spent)
    finally:
        env.close()
    if not kept and stopped:
        raise LpdsError(f"stopped after {len(modes)} attempts, none of which had succeeded: there is nothing to keep")
    if not kept:
        raise LpdsError(f"the expert of {env_id} succeeded in none of {len(modes)} attempts: try another --seed")
    data = _demonstrations(kept, modes, meant)
    if say is not None:
        at_work = [mode for mode in modes if mode != NOWHERE]
        tried = np.bincount(at_work, minlength=len(script.MODES))
        won = np.bincount(data.episode_source, minlength=len(tried))
        ways = "; ".join(f"{name} {a} of {b}" for name, a, b in zip(script.MODES, won, tried, strict=True))
        never = len(modes) - len(at_work)
        other = f", {never} in which there was nothing to take over" if never else ""
        say(f"{len(kept)} successes, {len(at_work) - len(kept)} failures ({ways}){other}")
        if broken:
            say(broken)
    return data


def _attempt(
    env: Any, script: Any, rng: np.random.Generator, tremor: float, policy: Decoder | None = None, led: int = 0
) -> _Episode:
    obs, _ = env.reset(seed=int(rng.integers(2**31)))
    manner, start = draw_manner(rng, tremor), dict(env.unwrapped.parts)
    if policy is None:
        plan = script.plan(start, rng)
    else:
        obs, over = _led(env, obs, policy, int(rng.integers(1, led)), rng)
        plan = None if over else script.take_over(start, env.unwrapped.parts, rng)
        if plan is None:
            return _Episode(NOWHERE)
    experts = [Script(plan, manner, rng, arm, start) for arm in range(len(plan.arms))]
    episode, held, over = _Episode(plan.mode), 0, False
    while not over and held < HELD:
        acts = [expert.act(env.unwrapped.parts) for expert in experts]
        action, meant = (np.concatenate(part).astype(np.float32) for part in zip(*acts, strict=True))
        vector, pictures = _split(obs)
        episode.obs.append(vector)
        episode.pictures.append(pictures)
        episode.actions.append(action)
        episode.meant.append(meant)
        obs, reward, terminated, truncated, info = env.step(action)
        episode.rewards.append(float(reward))
        held, over = held + 1 if info["success"] else 0, terminated or truncated
    episode.obs.append(_split(obs)[0])
    episode.succeeded = held >= HELD
    return episode


def _led(env: Any, obs: Any, policy: Decoder, steps: int, rng: np.random.Generator) -> tuple[Any, bool]:
    """Where a policy has come to after so many steps, and whether nothing is left to be shown."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    while True:
        w = torch.randn((1, *policy.spec.latent_shape), generator=generator)
        for action in policy(torch.from_numpy(obs)[None], w)[0].numpy():
            obs, _, terminated, truncated, info = env.step(action)
            steps -= 1
            if terminated or truncated or info["success"] or steps == 0:
                return obs, bool(steps > 0 or info["success"])


def _split(obs: Any) -> tuple[FloatArray, dict[str, npt.NDArray[np.uint8]]]:
    """The vectors of an observation, end to end, and its pictures by the last word of their names."""
    if not isinstance(obs, dict):
        return np.asarray(obs, np.float32), {}
    vectors = [obs[key] for key in sorted(obs, reverse=True) if obs[key].ndim == 1]
    return np.concatenate(vectors).astype(np.float32), {key.split(".")[-1]: obs[key] for key in obs if obs[key].ndim == 3}


def _episodes(data: Demonstrations) -> list[_Episode]:
    """What :func:`_demonstrations` put together."""
    ends = np.cumsum(data.episode_lengths)[:-1]
    filmed = {name: getattr(data, name) for name in ("image", "image2") if getattr(data, name).size}
    found = []
    for i, steps in enumerate(np.split(np.arange(len(data.obs)), ends)):
        found.append(
            _Episode(
                mode=int(data.episode_source[i]),
                obs=[*data.obs[steps], data.final_obs[i]],
                actions=list(data.actions[steps]),
                meant=list(data.cloned[steps]),
                rewards=data.rewards[steps].tolist(),
                pictures=[{name: rows[step] for name, rows in filmed.items()} for step in steps],
                succeeded=True,
            )
        )
    return found


def _demonstrations(kept: list[_Episode], modes: list[int], meant: bool) -> Demonstrations:
    pictures = [one for episode in kept for one in episode.pictures]
    filmed: dict[str, Any] = {name: np.stack([one[name] for one in pictures]) for name in pictures[0]}
    return Demonstrations(
        obs=np.concatenate([episode.obs[:-1] for episode in kept]),
        actions=np.concatenate([episode.actions for episode in kept]),
        episode_lengths=np.asarray([len(episode.actions) for episode in kept], np.int64),
        episode_returns=np.asarray([sum(episode.rewards) for episode in kept], np.float64),
        episode_source=np.asarray([episode.mode for episode in kept], np.int64),
        rewards=np.concatenate([episode.rewards for episode in kept]).astype(np.float32),
        final_obs=np.stack([episode.obs[-1] for episode in kept]),
        # the recording stops, the episode would go on to its horizon
        terminated=np.zeros(len(kept), np.bool_),
        meant=np.concatenate([episode.meant for episode in kept] if meant else [np.empty((0, 0), np.float32)]),
        attempts=np.asarray(modes, np.int64),
        **filmed,
    )
