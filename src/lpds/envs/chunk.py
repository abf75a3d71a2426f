"""THE chunk arithmetic: environments that take action chunks, and the exact semi-Markov return of a chunk.

A decision executes ``k <= T`` primitive steps and stops at once when the episode ends. What learning needs of it is
``R = sum_{i<k} gamma^i r_i``, the discount ``gamma^k`` (0 after termination, kept after truncation) and the observation
after the k-th step. Nothing else in the project multiplies by gamma inside a chunk or counts steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from lpds.checks import check_seed
from lpds.envs.answers import Step, observed_space, read_reset, read_step
from lpds.errors import DecoderFault, EnvironmentFault, LpdsError, one_line, unknown_name
from lpds.observations import Arrays, as_arrays, stack
from lpds.random import episode_seed

EnvFactory = Callable[[], gymnasium.Env[Any, Any]]
Array = npt.NDArray[Any]
T = TypeVar("T")

DISCOUNTS = ("exact", "dsrl")


def chunk_return(
    rewards: Array,
    k: Array,
    terminated: Array,
    gamma: float,
    convention: str = "exact",
    truncated: Array | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Turn the rewards of executed chunks into the reward and the discount of a semi-Markov transition.

    Args:
        rewards: [N, T], zero beyond the executed steps.
        k: [N], steps executed, 1 .. T.
        terminated: [N], whether the episode ended for good (a time limit is not an end).
        gamma: discount per primitive step.
        convention: ``"exact"`` (above), or ``"dsrl"``: the undiscounted sum, gamma^T per decision whatever k, and 0 at a
            time limit, too, which its released environments report as an end.
        truncated: [N], whether it was cut off; default: nowhere.

    Returns:
        Reward [N] and discount [N], float32.

    Raises:
        LpdsError: an unknown convention.
    """
    steps = rewards.shape[1]
    if convention == "exact":
        reward = rewards @ (gamma ** np.arange(steps))
        discount = gamma ** k.astype(np.float64)
    elif convention == "dsrl":
        reward = rewards.sum(1)
        discount = np.full(len(k), gamma**steps)
        terminated = terminated if truncated is None else terminated | truncated
    else:
        raise unknown_name("discount convention", convention, DISCOUNTS)
    return reward.astype(np.float32), np.where(terminated, 0.0, discount).astype(np.float32)


@dataclass
class _Lane:
    """One sub-environment and the episode under way in it."""

    env: gymnasium.Env[Any, Any]
    episode: int = -1
    seed: int = 0
    steps: int = 0
    over: bool = True
    obs: Any = None


def _lanes(factory: EnvFactory, count: int, name: str) -> list[_Lane]:
    """Make the sub-environments; those already made are closed where one cannot be."""
    lanes: list[_Lane] = []
    try:
        for _ in range(count):
            env = factory()
            if any(env.unwrapped is lane.env.unwrapped for lane in lanes):
                raise LpdsError(
                    f"the factory {name} returns the same environment every time, and {count} of its own are needed: make the "
                    "environment inside the function"
                )
            lanes.append(_Lane(env))
    except Exception as error:
        _close(lanes)
        if isinstance(error, LpdsError):
            raise
        there = f" ({len(lanes)} of {count} that are needed at once are made)" if lanes else ""
        raise LpdsError(f"environment {name} cannot be made: {one_line(error)}{there}") from error
    return lanes


def _close(lanes: Sequence[_Lane]) -> None:
    """Close them all; what one of them says against it costs nothing that was done before."""
    for lane in lanes:
        with suppress(Exception):
            lane.env.close()


class ChunkedVectorEnv(VectorEnv[Any, Array, Array]):
    """N environments that each take a chunk of T actions at a time and stop by themselves inside it.

    ``step`` returns observations [N, O] (or a dict of [N, ...], pictures as uint8) after the last executed step, the
    undiscounted sum of the executed rewards,
    ``terminated``, ``truncated``, and in ``info``:

    - ``rewards`` [N, T], zero where nothing was executed, and ``k`` [N], the steps executed;
    - ``final_obs`` [N, O], the observation after the k-th step (for an episode that went on, the current one), and
      ``_final_obs`` [N], where an episode ended;
    - ``seed`` [N] and ``episode_number`` [N], of the episode the chunk was executed in;
    - ``success`` [N], 1 if the environment reported success at any executed step, NaN if it never says; and
      ``success_last`` [N], the same at the last of them.

    Each reset is seeded from (seed, sub-environment, episode), training and evaluation from disjoint streams; in
    evaluation the j-th episode of sub-environment i is number j * N + i, and its seed that of (seed, number).
    """

    def __init__(
        self,
        factory: EnvFactory,
        num_envs: int,
        chunk: int,
        *,
        seed: int = 0,
        evaluation: bool = False,
        autoreset: AutoresetMode = AutoresetMode.SAME_STEP,
        name: str = "environment",
        end_at_success: bool = False,
    ) -> None:
        """Build the sub-environments.

        Args:
            factory: makes one single environment with a Box action space.
            num_envs: N.
            chunk: T, primitive steps of a decision.
            seed: base of every reset's seed.
            evaluation: draw the resets from the evaluation stream.
            autoreset: same-step (as learning uses it), next-step or disabled, as Gymnasium defines them.
            name: for messages.
            end_at_success: end an episode for good at the first step that the environment calls a success.

        Raises:
            LpdsError: the action space is not a Box of one axis, a count is not positive, or the factory fails, or returns one
                environment twice.
        """
        if num_envs < 1 or chunk < 1:
            raise LpdsError(f"num_envs and chunk must be at least 1, not {num_envs} and {chunk}")
        self._lanes = _lanes(factory, num_envs, name)
        first = self._lanes[0].env
        box, observation = (getattr(first, space, None) for space in ("action_space", "observation_space"))
        if not isinstance(box, gymnasium.spaces.Box) or len(box.shape) != 1:
            raise LpdsError(f"{name} has action space {box}; steering needs a Box with one axis")
        self.name, self.num_envs, self.chunk = name, num_envs, chunk
        self._end_at_success = end_at_success
        self.success_key: str | None = None
        """Where infos say success; None until a step was taken that does."""
        self._base_seed, self._evaluation, self._autoreset = check_seed("seed", seed), evaluation, autoreset
        self._low, self._high = box.low.astype(np.float64), box.high.astype(np.float64)
        self._act_dtype = box.dtype
        self.primitive_action_space = box
        self.first = first
        """The first sub-environment, with its wrappers."""
        self.metadata = {**(first.metadata or {}), "autoreset_mode": autoreset}
        self.render_mode = first.render_mode
        self.spec = first.spec
        self.single_observation_space = observed_space(observation, name)
        low, high = np.tile(box.low, (chunk, 1)), np.tile(box.high, (chunk, 1))
        self.single_action_space = gymnasium.spaces.Box(low, high, dtype=box.dtype.type)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    # -- the Gymnasium contract ------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """Start the next episode everywhere, or where ``options["reset_mask"]`` says.

        Args:
            seed: begin anew from this base seed, at episode 0.
            options: ``reset_mask`` [N] of bool.

        Returns:
            Observations [N, O] and an info with ``seed`` and ``episode_number`` [N].

        Raises:
            LpdsError: a mask of another shape, or a seed that is none or leaves a sub-environment out.
            EnvironmentFault: an environment raised, or gave an observation that does not fit.
        """
        given = (options or {}).get("reset_mask")
        mask = np.ones(self.num_envs, bool) if given is None else np.asarray(given, bool)
        if mask.shape != (self.num_envs,):
            raise LpdsError(f"reset_mask must be [{self.num_envs}], one entry a sub-environment, not {list(mask.shape)}")
        if seed is not None and not mask.all():
            raise LpdsError("a seed begins every sub-environment anew: give it without a reset_mask that leaves some out")
        if seed is not None:
            if isinstance(seed, list):
                raise LpdsError("seed must be one integer: every sub-environment's seed is derived from it")
            self._base_seed = check_seed("seed", seed)
            for lane in self._lanes:
                lane.episode = -1
        for index, lane in enumerate(self._lanes):
            if mask[index]:
                self._start(index, lane.episode + 1)
        return self._observations(), self._episode_info()

    def step(self, actions: Array) -> tuple[Arrays, Array, Array, Array, dict[str, Any]]:
        """Execute one chunk [N, T, A] in every sub-environment; actions are clipped to the box.

        Raises:
            LpdsError: actions of another shape, or no reset before the first step.
            DecoderFault: a chunk holds NaN or infinity.
            EnvironmentFault: an environment raised, or answered what Gymnasium does not define.
        """
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise LpdsError(f"{self.name} takes actions {list(self.action_space.shape or ())}, not {list(actions.shape)}")
        if any(lane.episode < 0 for lane in self._lanes):
            raise LpdsError(f"{self.name} must be reset before its first step")
        n = self.num_envs
        rewards = np.zeros((n, self.chunk))
        k = np.zeros(n, np.int64)
        terminated, truncated = np.zeros(n, bool), np.zeros(n, bool)
        success, success_last = np.full(n, np.nan), np.full(n, np.nan)
        info = self._episode_info()
        for index, lane in enumerate(self._lanes):
            if lane.over:
                # next-step: this call resets, the chunk is ignored and k stays 0; disabled: it idles until it is reset
                if self._autoreset is AutoresetMode.NEXT_STEP:
                    self._start(index, lane.episode + 1)
                    info["seed"][index], info["episode_number"][index] = lane.seed, lane.episode
                continue
            if not np.isfinite(actions[index]).all():
                raise DecoderFault(
                    f"the chunk for {self.name} holds NaN or infinity (sub-environment {index}, episode seed {lane.seed}, "
                    f"step {lane.steps})"
                )
            for position in range(self.chunk):
                answer = self._primitive_step(index, actions[index, position])
                rewards[index, position] = answer.reward
                k[index] += 1
                said = np.nan if answer.success is None else float(answer.success)
                success[index], success_last[index] = np.fmax(success[index], said), said
                if answer.terminated or answer.truncated:
                    terminated[index], lane.over = answer.terminated, True
                    truncated[index] = answer.truncated and not answer.terminated
                    break
        done = terminated | truncated
        final = self._observations()
        info |= {"rewards": rewards, "k": k, "final_obs": final, "_final_obs": done}
        info |= {"success": success, "success_last": success_last}
        if self._autoreset is AutoresetMode.SAME_STEP and done.any():
            for index in map(int, np.flatnonzero(done)):
                self._start(index, self._lanes[index].episode + 1)
        return self._observations(), rewards.sum(1), terminated, truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        """Close the sub-environments."""
        _close(self._lanes)

    # -- exact resume ----------------------------------------------------------------------------------------------

    def replay(self, index: int, episode: int, chunks: Sequence[Array]) -> Arrays:
        """Bring one sub-environment to where an episode was: reset it with that episode's seed, repeat its chunks.

        Args:
            index: sub-environment.
            episode: its episode number.
            chunks: the [T, A] chunks executed since the reset.

        Returns:
            The observation [O] reached. If the episode ends on the way the sub-environment is left ended.
        """
        self._start(index, episode)
        lane = self._lanes[index]
        for chunk in chunks:
            for position in range(self.chunk):
                if lane.over:
                    return as_arrays(lane.obs)
                answer = self._primitive_step(index, chunk[position])
                lane.over = answer.terminated or answer.truncated
        return as_arrays(lane.obs)

    @property
    def time_limit(self) -> int | None:
        """Primitive steps after which an episode is cut off, as far as Gymnasium knows of it."""
        env: Any = self.first
        while isinstance(env, gymnasium.Wrapper):
            if isinstance(env, gymnasium.wrappers.TimeLimit):  # one put on by hand is in no spec
                return int(env._max_episode_steps)
            env = env.env
        limit = getattr(self.spec, "max_episode_steps", None)
        return None if limit is None else int(limit)

    @property
    def episodes(self) -> list[int]:
        """Number of the episode under way in every sub-environment."""
        return [lane.episode for lane in self._lanes]

    @property
    def over(self) -> list[bool]:
        """Whether the episode of a sub-environment has ended, and no other has begun."""
        return [lane.over for lane in self._lanes]

    # -- one sub-environment ---------------------------------------------------------------------------------------

    def _start(self, index: int, episode: int) -> None:
        lane = self._lanes[index]
        lane.episode, lane.steps, lane.over = episode, 0, False
        if self._evaluation:  # numbered through, so that episode e has one seed however many lanes share the work
            lane.seed = episode_seed(True, self._base_seed, 0, episode * self.num_envs + index)
        else:
            lane.seed = episode_seed(False, self._base_seed, index, episode)
        given = self._guarded(index, lambda: lane.env.reset(seed=lane.seed))
        lane.obs = self._read(index, read_reset, given)

    def _primitive_step(self, index: int, action: Array) -> Step:
        lane = self._lanes[index]
        clipped = np.clip(action, self._low, self._high)
        if self._act_dtype.kind in "iu":  # a cast would cut towards zero
            clipped = np.rint(clipped)
        clipped = clipped.astype(self._act_dtype)
        lane.steps += 1  # a fault names the step that it happened in, whether the environment raised or returned NaN
        given = self._guarded(index, lambda: lane.env.step(clipped))
        step = self._read(index, read_step, given)
        lane.obs, self.success_key = step.obs, step.success_key or self.success_key
        return step._replace(terminated=step.terminated or (self._end_at_success and bool(step.success)))

    def _read(self, index: int, read: Callable[[Any, gymnasium.spaces.Space[Any]], T], given: Any) -> T:
        try:
            return read(given, self.single_observation_space)
        except ValueError as error:
            raise self._fault(index, str(error)) from None

    def _guarded(self, index: int, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (Exception, SystemExit) as error:
            raise self._fault(index, f"raised {type(error).__name__}: {' '.join(str(error).split())}") from error

    def _fault(self, index: int, what: str) -> EnvironmentFault:
        lane = self._lanes[index]
        return EnvironmentFault(f"{self.name} {what} (sub-environment {index}, episode seed {lane.seed}, step {lane.steps})")

    def _observations(self) -> Arrays:
        return stack([as_arrays(lane.obs) for lane in self._lanes])

    def _episode_info(self) -> dict[str, Any]:
        return {
            "seed": np.asarray([lane.seed for lane in self._lanes], np.int64),
            "episode_number": np.asarray([lane.episode for lane in self._lanes], np.int64),
        }
