"""Expert actors kept as plain arrays, and the roll-outs that make a demonstration dataset of them.

``docs/manipulation.md``, "Expert actors", says which arrays a file holds, and where such actors come from
(rl-trained-agents and hand_dapg).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from lpds.envs.build import environment_factory
from lpds.errors import LpdsError, one_line

FloatArray = npt.NDArray[np.float32]
Actor = Callable[[npt.NDArray[np.float64], np.random.Generator], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Source:
    """One component of a mixture: which expert acts, how noisily, and its share of the transitions."""

    expert: str
    """File stem, for instance ``gym_sac_hopper``."""
    share: float
    """Share of the dataset's transitions."""
    sampled: bool = True
    """Sample the actor's own Gaussian rather than take its mean."""
    noise: float = 0.0
    """Standard deviation of extra N(0, noise) on the (clipped) action."""


class _Arrays(dict[str, npt.NDArray[np.float64]]):
    """Arrays of a file, of which one that is not there is named."""

    path = Path()

    def __missing__(self, name: str) -> npt.NDArray[np.float64]:
        raise LpdsError(f"expert file {self.path} holds no {name!r}")


def load_actor(path: Path, *, sampled: bool) -> Actor:
    """Open an actor stored as plain arrays.

    Args:
        path: an ``.npz`` named ``gym_{algo}_{env}`` or ``adroit_{task}``.
        sampled: add the actor's own exploration noise; the mean action otherwise.

    Returns:
        ``actor(obs, rng) -> action``, before clipping to the action box.

    Raises:
        LpdsError: the file is missing or broken.
    """
    if not path.is_file():
        raise LpdsError(f"expert file {path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = _Arrays({name: np.asarray(loaded[name], np.float64) for name in loaded.files})
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise LpdsError(f"expert file {path} cannot be read: {one_line(error)}") from None
    arrays.path = path
    kind = path.stem.split("_")[1] if path.stem.startswith("gym_") else "adroit"
    builders: dict[str, Callable[[dict[str, npt.NDArray[np.float64]], bool, str], Actor]] = {
        "sac": _squashed_actor,
        "tqc": _squashed_actor,
        "ppo": _gaussian_actor,
        "trpo": _gaussian_actor,
        "a2c": _gaussian_actor,
        "ars": _linear_actor,
        "adroit": _adroit_actor,
    }
    return builders[kind](arrays, sampled, path.stem)


def _observation_filter(
    arrays: dict[str, npt.NDArray[np.float64]],
) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    if "obs_mean" not in arrays:
        return lambda obs: obs
    mean, clip = arrays["obs_mean"], float(arrays["obs_clip"])
    std = np.sqrt(arrays["obs_var"] + float(arrays["obs_eps"]))
    return lambda obs: np.clip((obs - mean) / std, -clip, clip)


def _squashed_actor(arrays: dict[str, npt.NDArray[np.float64]], sampled: bool, stem: str) -> Actor:
    del stem
    filtered = _observation_filter(arrays)

    def act(obs: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
        x = filtered(obs)
        for layer in ("actor.latent_pi.0", "actor.latent_pi.2"):
            x = np.maximum(arrays[f"{layer}.weight"] @ x + arrays[f"{layer}.bias"], 0.0)
        mean = arrays["actor.mu.weight"] @ x + arrays["actor.mu.bias"]
        if sampled:
            log_std = np.clip(arrays["actor.log_std.weight"] @ x + arrays["actor.log_std.bias"], -20.0, 2.0)
            mean = mean + np.exp(log_std) * rng.standard_normal(mean.shape)
        return np.tanh(mean)

    return act


def _gaussian_actor(arrays: dict[str, npt.NDArray[np.float64]], sampled: bool, stem: str) -> Actor:
    filtered = _observation_filter(arrays)
    relu = stem in {"gym_ppo_hopper", "gym_ppo_halfcheetah"}

    def act(obs: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
        x = filtered(obs)
        for layer in ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2"):
            x = arrays[f"{layer}.weight"] @ x + arrays[f"{layer}.bias"]
            x = np.maximum(x, 0.0) if relu else np.tanh(x)
        mean = arrays["action_net.weight"] @ x + arrays["action_net.bias"]
        if sampled:
            mean = mean + np.exp(arrays["log_std"]) * rng.standard_normal(mean.shape)
        return mean

    return act


def _linear_actor(arrays: dict[str, npt.NDArray[np.float64]], sampled: bool, stem: str) -> Actor:
    del sampled, stem  # ARS is deterministic
    filtered = _observation_filter(arrays)
    return lambda obs, rng: arrays["action_net.weight"] @ filtered(obs)


def _adroit_actor(arrays: dict[str, npt.NDArray[np.float64]], sampled: bool, stem: str) -> Actor:
    del stem
    shift = arrays["in_shift"] if arrays["in_shift"].size else np.zeros(1)
    scale = arrays["in_scale"] if arrays["in_scale"].size else np.ones(1)
    out_shift = arrays["out_shift"] if arrays["out_shift"].size else np.zeros(1)
    out_scale = arrays["out_scale"] if arrays["out_scale"].size else np.ones(1)

    def act(obs: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
        x = (obs - shift) / (scale + 1e-8)
        for layer in ("0", "1"):
            x = np.tanh(arrays[f"W{layer}"] @ x + arrays[f"b{layer}"])
        mean = (arrays["W2"] @ x + arrays["b2"]) * out_scale + out_shift
        if sampled:
            mean = mean + np.exp(arrays["log_std"]) * rng.standard_normal(mean.shape)
        return mean

    return act


@dataclass(frozen=True)
class Demonstrations:
    """Flat transitions of whole episodes, in the order they were made."""

    obs: FloatArray
    """[N, O], raw observations."""
    actions: FloatArray
    """[N, A], environment units, as executed."""
    episode_lengths: npt.NDArray[np.int64]
    """[E], primitive steps of every episode; sums to N."""
    episode_returns: npt.NDArray[np.float64]
    """[E]; NaN where the source does not say."""
    episode_source: npt.NDArray[np.int64]
    """[E], index of the mixture component that acted."""
    rewards: FloatArray = field(default_factory=lambda: np.empty(0, np.float32))
    """[N], or empty where the source does not say; only learning from demonstrations needs them."""
    final_obs: FloatArray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """[E, O], where every episode ended; empty where the source does not say, NaN in the rows of which it does not."""
    terminated: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    """[E], whether the episode ended for good rather than at a time limit; empty where the source does not say."""
    meant: FloatArray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """[N, A], what whoever acted meant before a hand shook; empty where nothing else was meant than done."""
    image: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    """[N, H, W, 3], what the first camera saw with each observation (LeRobot's ``observation.images.image``); mostly empty."""
    image2: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    """[N, H, W, 3], the same of the camera on the wrist (``observation.images.image2``)."""

    recipe: str = ""
    """Which of the project's own recipes made them; empty for everything else."""
    scene: str = ""
    """What the simulator they come from calls the task; empty where the source does not say."""
    recorded: str = ""
    """How its robot was driven, where that is not as in RoboMimic's tasks here: such data serve none of them."""
    order: str = ""
    """Names of the vectors that were put end to end, in their order with commas; empty of one, or where nothing says it."""
    remark: str = ""
    """What whoever learns from them should be told; mostly empty."""
    attempts: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """[T], modes of a scripted expert's attempts, of those that failed too; empty of everything else."""
    made: str = ""
    """What attempt i is a function of besides i (task, seed, policy); data with the same are the same work."""

    @property
    def cloned(self) -> FloatArray:
        """[N, A], what a clone learns: what was meant where that is told, else what was done."""
        return self.meant if self.meant.size else self.actions

    def save(self, path: Path) -> None:
        """Write the project's own npz layout (one array per field, no pickle; pictures and intentions where there are any)."""
        from lpds.files import write_atomically

        path.parent.mkdir(parents=True, exist_ok=True)
        fields: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in self.__dataclass_fields__}
        fields = {
            name: array for name, array in fields.items() if array.size or name not in ("image", "image2", "meant", "attempts")
        }
        write_atomically(path, lambda stream: np.savez_compressed(stream, **fields))


_NO_WORK: dict[str, Any] = {"attempts": np.empty(0, np.int64), "made": ""}
"""Of data that are a part, or several: nothing can go on with them."""


def of_sources(several: Sequence[Demonstrations], sources: Sequence[int]) -> list[Demonstrations]:
    """Of each of the data the episodes of some sources (``episode_source``), in their order; data without any are left out.

    Raises:
        LpdsError: a source that has no episode in any of them.
    """
    there = sorted({int(number) for data in several for number in data.episode_source})
    if missing := [number for number in sources if number not in there]:
        raise LpdsError(f"the data have no episode of source {missing[0]} (choices: {', '.join(map(str, there))})")
    found = []
    for data in several:
        kept = np.isin(data.episode_source, list(sources))
        steps = np.repeat(kept, data.episode_lengths)
        of = {"obs": steps, "actions": steps, "meant": steps, "rewards": steps, "image": steps, "image2": steps}
        of |= dict.fromkeys(("episode_lengths", "episode_returns", "episode_source", "final_obs", "terminated"), kept)
        if kept.any():
            found.append(
                replace(
                    data,
                    **_NO_WORK,
                    **{name: getattr(data, name)[rows] for name, rows in of.items() if getattr(data, name).size},
                )
            )
    return found


def joined(first: Demonstrations, second: Demonstrations) -> Demonstrations:
    """One dataset of two of the same robot; the second's sources are numbered after the first's.

    What only one of them tells (rewards, how episodes ended) is left out; where one tells what was meant, what was done stands
    for it in the other.

    Raises:
        LpdsError: they differ in widths, in the task, in the order of the observation or in having pictures.
    """
    for what in ("obs", "actions"):
        a, b = getattr(first, what).shape[1], getattr(second, what).shape[1]
        if a != b:
            raise LpdsError(f"these data do not belong together: {what} of {a} and of {b} values")
    for what, told in (("scene", "task"), ("order", "order of the observation")):
        a, b = getattr(first, what), getattr(second, what)
        if a and b and a != b:
            raise LpdsError(f"these data do not belong together: their {told} is {a} and {b}")
    for camera in ("image", "image2"):
        if getattr(first, camera).shape[1:] != getattr(second, camera).shape[1:]:
            raise LpdsError(f"these data do not belong together: their pictures ({camera}) differ in size, or one has none")
    second = replace(second, episode_source=second.episode_source + first.episode_source.max() + 1)
    whole = ("obs", "actions", "episode_lengths", "episode_returns", "episode_source")
    optional = ("rewards", "final_obs", "terminated", "image", "image2")
    names = [*whole, *(name for name in optional if getattr(first, name).size and getattr(second, name).size)]
    arrays: dict[str, Any] = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names}
    if first.meant.size or second.meant.size:
        arrays["meant"] = np.concatenate([first.cloned, second.cloned])
    return Demonstrations(
        **arrays,
        recipe=first.recipe if first.recipe == second.recipe else "",
        scene=first.scene or second.scene,
        recorded=first.recorded or second.recorded,
        order=first.order or second.order,
        remark=first.remark
        if first.remark == second.remark
        else "; ".join(f"{len(one.episode_lengths)} episodes: {one.remark}" for one in (first, second) if one.remark),
    )


def _acted(
    actor: Actor, obs: npt.NDArray[np.float64], rng: np.random.Generator, shape: tuple[int, ...], path: Path
) -> npt.NDArray[np.float64]:
    """An expert's action; arrays of another robot are named by their file, not by a product that failed."""
    try:
        action = actor(obs, rng)
    except ValueError as error:
        raise LpdsError(f"expert file {path} does not fit observations of {len(obs)} numbers: {one_line(error)}") from None
    if action.shape != shape:
        raise LpdsError(f"expert file {path} gives actions of shape {list(action.shape)}, the environment takes {list(shape)}")
    return action


def roll_out(
    env_id: str,
    sources: Sequence[Source],
    *,
    experts: Path,
    transitions: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Demonstrations:
    """Roll a mixture of experts out, episode by episode, until ``transitions`` steps are there.

    The next episode goes to the component furthest behind its share, so that the mixture holds at any length.

    Args:
        env_id: a name of the environment registry or a Gymnasium id.
        sources: the mixture; shares are normalised.
        experts: folder of the actors' ``.npz`` files.
        transitions: stop after the first episode that reaches this many primitive steps.
        seed: seeds the environment's resets and all action noise.
        progress: called with (done, wanted) after every episode.
        stop: asked after every episode; what is there by then is all that is wanted.

    Returns:
        The demonstrations, actions clipped to the environment's box.
    """
    actors = [load_actor(experts / f"{source.expert}.npz", sampled=source.sampled) for source in sources]
    shares = np.asarray([source.share for source in sources], np.float64)
    shares /= shares.sum()
    env = environment_factory(env_id)[0]()
    box = env.action_space
    assert isinstance(box, gymnasium.spaces.Box)
    rng = np.random.default_rng(seed)
    obs_rows: list[FloatArray] = []
    action_rows: list[FloatArray] = []
    lengths: list[int] = []
    returns: list[float] = []
    who: list[int] = []
    rewards: list[float] = []
    finals: list[FloatArray] = []
    for_good: list[bool] = []
    counts = np.zeros(len(sources))
    while len(obs_rows) < transitions:
        index = int(np.argmin(counts - shares * (counts.sum() + 1)))
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        total, length, over = 0.0, 0, False
        while not over:
            action = _acted(actors[index], obs, rng, box.shape, experts / f"{sources[index].expert}.npz")
            if sources[index].noise:
                action = np.clip(action, box.low, box.high)
                action = action + sources[index].noise * rng.standard_normal(action.shape)
            clipped = np.clip(action, box.low, box.high).astype(np.float32)
            obs_rows.append(np.asarray(obs, np.float32))
            action_rows.append(clipped)
            obs, reward, terminated, truncated, _ = env.step(clipped)
            rewards.append(float(reward))
            total += float(reward)
            length += 1
            over = terminated or truncated
        counts[index] += length
        lengths.append(length)
        returns.append(total)
        who.append(index)
        finals.append(np.asarray(obs, np.float32))
        for_good.append(bool(terminated))
        if progress is not None:
            progress(len(obs_rows), transitions)
        if stop is not None and stop():
            break
    env.close()
    return Demonstrations(
        obs=np.stack(obs_rows),
        actions=np.stack(action_rows),
        episode_lengths=np.asarray(lengths, np.int64),
        episode_returns=np.asarray(returns, np.float64),
        episode_source=np.asarray(who, np.int64),
        rewards=np.asarray(rewards, np.float32),
        final_obs=np.stack(finals),
        terminated=np.asarray(for_good, np.bool_),
    )
