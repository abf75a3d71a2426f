"""Paired evaluation: what is compared sees the same episodes and the same noise, addressed by counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lpds.checks import LANES, check_lanes, check_seed, check_share, whole
from lpds.compact import look
from lpds.envs.chunk import ChunkedVectorEnv
from lpds.errors import EnvironmentFault, LpdsError, unknown_name
from lpds.observations import select, vectors, write
from lpds.random import normal
from lpds.stats import Interval, bootstrap_mean, wilson
from lpds.threads import one_thread
from lpds.types import Decoder, Policy

LONGEST_EPISODE = 20_000
"""Primitive steps after which an episode is taken to be endless, unless its environment's own time limit is larger."""
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EvalReport:
    """Records of an evaluation, one entry an episode, in the order of the episodes' numbers."""

    returns: Array
    """[E], undiscounted environment returns."""
    successes: Array
    """[E], success at any step; NaN where the environment does not say."""
    successes_at_end: Array
    """[E], success at the last step; NaN where the environment does not say."""
    lengths: npt.NDArray[np.int64]
    """[E], primitive steps."""
    seed: int
    scale: float
    final_obs: npt.NDArray[np.float32]
    """[E, O], the last observation; of one with pictures, its vectors end to end."""
    noise_scale: float = 1.0
    """Factor of eps; 1 is the prior that the decoder was trained on."""
    first_obs: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """[E, O], the first observation, likewise: the same in every evaluation of one seed, or the environment ignores seeds."""
    success_key: str | None = None
    """What of the environment's info was taken for success; ``None`` where nothing is known of it."""

    def __repr__(self) -> str:
        """How many episodes, and their mean return: what a notebook shows of a cell's last line."""
        rates = self.successes[~np.isnan(self.successes)]
        success = f", success {rates.mean():.0%}" if len(rates) else ""
        return f"EvalReport({len(self.returns)} episodes of seed {self.seed}: return {self.returns.mean():.5g}{success})"

    def rows(self) -> list[dict[str, Any]]:
        """One JSON object an episode."""
        columns = (self.returns, self.successes, self.successes_at_end, self.lengths)
        return [
            {
                "seed": self.seed,
                "episode": episode,
                "scale": self.scale,
                "noise_scale": self.noise_scale,
                "return": float(total),
                "success": float(success),
                "success_at_end": float(at_end),
                "length": int(length),
            }
            for episode, (total, success, at_end, length) in enumerate(zip(*columns, strict=True))
        ]

    def interval(self, what: str = "return") -> Interval:
        """(mean, low, high) at 95 %: bootstrap for ``"return"`` and ``"length"``, Wilson for ``"success"``.

        Raises:
            LpdsError: another figure.
        """
        if what == "return":
            return bootstrap_mean(self.returns)
        if what == "length":
            return bootstrap_mean(self.lengths)
        if what in ("success", "success_at_end"):
            values = self.successes if what == "success" else self.successes_at_end
            said = values[~np.isnan(values)]
            return wilson(int(said.sum()), len(said))
        raise unknown_name("figure", what, ["return", "length", "success", "success_at_end"])


def silence_is_failure(reports: Sequence[EvalReport]) -> list[EvalReport]:
    """Evaluations in one environment with NaN in place of success as 0, if any of them tells of a success.

    There are environments whose info names success only where there is one; then silence is failure, and no missing value.
    """
    if all(np.isnan(report.successes).all() for report in reports):
        return list(reports)
    return [
        replace(report, successes=np.nan_to_num(report.successes), successes_at_end=np.nan_to_num(report.successes_at_end))
        for report in reports
    ]


def seed_ignored(name: str) -> str:
    """What is said of an environment whose episodes of one seed begin in two ways."""
    return (
        f"WARNING: {name} ignores the seed of a reset (an episode of one seed began in two ways): frozen and steered do not "
        "play the same episodes"
    )


@one_thread()
def evaluate_policy(
    policy: Policy,
    decoder: Decoder,
    make_lanes: Callable[[int], ChunkedVectorEnv],
    *,
    episodes: int,
    seed: int,
    scale: float = 1.0,
    noise_scale: float = 1.0,
    noise_seed: int | None = None,
    envs: int = LANES,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvalReport:
    """Run ``episodes`` episodes; episode e and its noise depend on (seed, e) alone.

    Args:
        policy: chooses latents.
        decoder: frozen.
        make_lanes: builds N evaluation environments with autoreset disabled.
        episodes: E.
        seed: of the evaluation.
        scale: s of ``w = eps + s Delta``; 0 is the frozen policy.
        noise_scale: factor of eps; below 1 the policy repeats itself more and leaves the prior (0 decodes Delta alone).
        noise_seed: in place of ``seed`` for the noise alone: the same episodes under other noises.
        envs: environments that are open at once; what comes out does not hang on it.
        device: of policy and decoder.
        progress: called with (episodes done, E).

    Returns:
        The records.

    Raises:
        LpdsError: not at least one episode, more environments than an evaluation takes, or a scale outside [0, 1].
        EnvironmentFault: the environment failed, or an episode does not end.
    """
    episodes = whole("episodes", episodes)
    if episodes < 1:
        raise LpdsError(f"episodes must be at least 1, not {episodes}")
    check_seed("seed", seed)
    check_lanes("envs", envs)
    check_share("scale", scale)
    check_share("noise_scale", noise_scale)
    if noise_seed is not None:
        check_seed("noise_seed", noise_seed)
    device = device or torch.device("cpu")
    env = make_lanes(min(envs, episodes))
    try:
        return _run(
            env,
            policy,
            decoder,
            episodes=episodes,
            seed=seed,
            noise_seed=seed if noise_seed is None else noise_seed,
            scale=scale,
            noise_scale=noise_scale,
            device=device,
            progress=progress,
        )
    finally:
        env.close()


def _run(
    env: ChunkedVectorEnv,
    policy: Policy,
    decoder: Decoder,
    *,
    episodes: int,
    seed: int,
    noise_seed: int,
    scale: float,
    noise_scale: float,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> EvalReport:
    lanes = env.num_envs
    returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
    success, at_end = np.full(episodes, np.nan), np.full(episodes, np.nan)
    number = np.arange(lanes)  # the episode under way in every lane; beyond E the lane idles
    decision = np.zeros(lanes, np.int64)
    obs, _ = env.reset(seed=seed)
    final = np.zeros((episodes, vectors(obs).shape[1]), np.float32)
    first = np.zeros_like(final)
    first[number[number < episodes]] = vectors(obs)[number < episodes]
    longest = max(LONGEST_EPISODE, env.time_limit or 0)
    # what fills the batch up is as real as the rest: a state of zeros, or no noise, may be what a policy cannot take
    rows = select(obs, np.zeros(LANES, np.int64))
    filling = normal("evaluation", noise_seed, 0, 0, shape=(policy.draws, *decoder.spec.latent_shape))
    eps = np.repeat(filling[None], LANES, 0)
    live, finished = number < episodes, 0
    while live.any():
        write(rows, slice(lanes), obs)
        for lane in np.flatnonzero(live):
            eps[lane] = normal("evaluation", noise_seed, int(number[lane]), int(decision[lane]), shape=eps.shape[1:])
        with torch.no_grad():
            seen = look(decoder, rows, device)
            noise = decoder.spec.quietened(torch.from_numpy(eps).to(device), noise_scale)
            acted = policy.act(seen.decoder, seen.state, noise, scale)
            action = acted.action[:lanes].cpu().numpy()
        obs, reward, terminated, truncated, info = env.step(action)
        decision += 1
        e = number[live]
        returns[e] += reward[live]
        lengths[e] += info["k"][live]
        success[e] = np.fmax(success[e], info["success"][live])
        at_end[e] = info["success_last"][live]
        ended = live & (terminated | truncated)
        if (lengths[number[live & ~ended]] >= longest).any():
            raise EnvironmentFault(
                f"{env.name} has an episode of {longest:,} steps without an end, and an evaluation needs one: give it a time "
                "limit (gymnasium.wrappers.TimeLimit)"
            )
        if ended.any():
            final[number[ended]] = vectors(info["final_obs"])[ended]
            finished += int(ended.sum())
            number[ended] += lanes
            decision[ended] = 0
            live = number < episodes
            if (ended & live).any():
                again = ended & live
                obs, _ = env.reset(options={"reset_mask": again})
                first[number[again]] = vectors(obs)[again]
            if progress is not None:
                progress(finished, episodes)
    report = EvalReport(returns, success, at_end, lengths, seed, scale, final, noise_scale, first, env.success_key)
    return silence_is_failure([report])[0]
