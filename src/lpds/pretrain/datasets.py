"""Demonstrations from files: the project's own npz, DPPO's npz, RoboMimic's HDF5, LeRobot's folders, and Minari."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lpds.decoders.dppo import load_normaliser
from lpds.errors import LpdsError, one_line
from lpds.pretrain.experts import Demonstrations
from lpds.pretrain.lerobot_dataset import open_lerobot
from lpds.pretrain.robomimic import open_robomimic

HDF5 = b"\x89HDF\r\n\x1a\n"
"""What such a file begins with."""
KINDS = "npz (own, or DPPO's), RoboMimic's HDF5, a LeRobotDataset's folder, minari:DATASET-ID"


def open_data(reference: str, normalization: Path | None = None) -> Demonstrations:
    """Read demonstrations.

    Args:
        reference: path of an own npz (``obs, actions, episode_lengths``), of a DPPO npz (``states, actions, traj_lengths``)
            or of a RoboMimic ``.hdf5``, where ``FILE.hdf5#SPLIT`` takes those of one of its splits (train, valid ...); a
            LeRobotDataset's folder; or ``minari:DATASET-ID``.
        normalization: ranges by which DPPO scaled its arrays to [-1, 1]; they are scaled back to environment units.

    Raises:
        LpdsError: the file is missing, broken or of no known layout, or lengths do not add up.
    """
    if normalization is not None and (reference.startswith("minari:") or Path(reference).suffix != ".npz"):
        raise LpdsError(f"--normalization is for DPPO's npz; {reference} is in environment units")
    if reference.startswith("minari:"):
        return _from_minari(reference.removeprefix("minari:"))
    path, split = Path(reference), ""
    if "#" in reference and not path.exists():
        before, _, split = reference.rpartition("#")
        path = Path(before)
        if not path.is_file():
            raise LpdsError(f"dataset {reference} does not exist")
        if not split:
            raise LpdsError(f"dataset {reference}: the name of a split belongs behind the #")
    if path.is_dir():
        return _checked(open_lerobot(path), str(path))
    if not path.is_file():
        raise LpdsError(f"dataset {path} does not exist")
    with path.open("rb") as stream:
        is_hdf5 = stream.read(len(HDF5)) == HDF5
    if is_hdf5 or path.suffix in (".hdf5", ".h5"):
        return _checked(open_robomimic(path, split=split), str(path))
    if split:
        raise LpdsError(f"#{split} names a split of a RoboMimic file; {path} is none")
    try:
        if path.suffix != ".npz" and not zipfile.is_zipfile(path):
            raise LpdsError(f"dataset {path} is none of {KINDS}")
        with np.load(path, allow_pickle=False) as arrays:
            fields = {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise LpdsError(f"dataset {path} cannot be read: {one_line(error)}") from None
    own = {"obs", "actions", "episode_lengths"} <= fields.keys()
    if own and normalization is not None:
        raise LpdsError(f"--normalization is for DPPO's npz; {path} is in environment units")
    if own:
        obs, actions, lengths = fields["obs"], fields["actions"], fields["episode_lengths"]
    elif {"states", "actions", "traj_lengths"} <= fields.keys():
        obs, actions, lengths = fields["states"], fields["actions"], fields["traj_lengths"]
        if normalization is None:
            raise LpdsError(f"{path} is DPPO data, scaled to [-1, 1]: pass --normalization with its ranges")
        ranges = {name: value.numpy() for name, value in load_normaliser(normalization).tensors().items()}
        for what, array, low in (("states", obs, "obs_min"), ("actions", actions, "action_min")):
            if array.ndim != 2 or array.shape[1] != len(ranges[low]):
                raise LpdsError(
                    f"{normalization} has ranges of {len(ranges[low])} {what}, {path} has them as {list(array.shape)}"
                )
        obs = (obs + 1) / 2 * (ranges["obs_max"] - ranges["obs_min"] + 1e-6) + ranges["obs_min"]
        actions = (actions + 1) / 2 * (ranges["action_max"] - ranges["action_min"]) + ranges["action_min"]
    else:
        few = sorted(fields)[:6]
        more = f" and {len(fields) - len(few)} more" if len(fields) > len(few) else ""
        raise LpdsError(
            f"dataset {path} has {', '.join(few)}{more}; expected obs, actions, episode_lengths (own) or "
            "states, actions, traj_lengths (DPPO)"
        )
    try:
        data = _own(fields, obs, actions, lengths)
    except (ValueError, TypeError) as error:
        raise LpdsError(f"dataset {path} cannot be read: {one_line(error)}") from None
    return _checked(data, str(path))


def _real(what: str, values: Any) -> npt.NDArray[np.float32]:
    found = np.asarray(values)
    if found.dtype.kind not in "biuf":
        raise TypeError(f"{what} are {found.dtype}, not real numbers")
    return found.astype(np.float32)


def _flags(what: str, values: Any) -> npt.NDArray[np.bool_]:
    found = np.asarray(values).ravel()
    odd = found[~np.isin(found, (0, 1))] if found.dtype.kind in "biuf" else found
    if odd.size or found.dtype.kind not in "biuf":
        said = repr(odd[0].item()) if odd.size else f"of {found.dtype}"
        raise TypeError(f"{what} must be true or false, or 0 and 1, not {said}")
    return np.asarray(values).astype(np.bool_)


def _pictures(what: str, values: Any) -> npt.NDArray[np.uint8]:
    found = np.asarray(values)
    if found.size and found.dtype != np.uint8:
        raise TypeError(f"{what} is {found.dtype}, not uint8 of 0 to 255")
    return found.astype(np.uint8)


def _own(fields: dict[str, Any], obs: Any, actions: Any, lengths: Any) -> Demonstrations:
    episodes = len(lengths)
    return Demonstrations(
        obs=_real("obs", obs),
        actions=_real("actions", actions),
        episode_lengths=_whole(lengths),
        episode_returns=np.asarray(fields.get("episode_returns", np.full(episodes, np.nan)), np.float64),
        episode_source=np.asarray(fields.get("episode_source", np.zeros(episodes)), np.int64),
        rewards=_real("rewards", fields.get("rewards", np.empty(0))),
        final_obs=np.asarray(fields.get("final_obs", np.empty((0, 0))), np.float32),
        terminated=_flags("terminated", fields.get("terminated", np.empty(0))),
        meant=_real("meant", fields.get("meant", np.empty((0, 0)))),
        image=_pictures("image", fields.get("image", np.empty(0))),
        image2=_pictures("image2", fields.get("image2", np.empty(0))),
        recipe=str(fields.get("recipe", "")),
        scene=str(fields.get("scene", "")),
        recorded=str(fields.get("recorded", "")),
        order=str(fields.get("order", "")),
        remark=str(fields.get("remark", "")),
        attempts=np.asarray(fields.get("attempts", np.empty(0)), np.int64),
        made=str(fields.get("made", "")),
    )


def _whole(lengths: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    found = np.asarray(lengths)
    counted = found.astype(np.int64)
    if not (counted == found).all():
        raise LpdsError("episode_lengths must be whole numbers of steps")
    return counted


def _from_minari(name: str) -> Demonstrations:
    try:
        import minari
    except ImportError:
        raise LpdsError("Minari is not installed: pip install 'lpds[minari]'") from None
    try:
        dataset = minari.load_dataset(name)
        episodes = list(dataset.iterate_episodes())
    except FileNotFoundError as error:
        raise LpdsError(f"Minari dataset {name!r} is not on this machine ({error}); fetch it: minari download {name}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LpdsError(f"Minari dataset {name!r} cannot be read: {one_line(error)}") from None
    if not episodes:
        raise LpdsError(f"Minari dataset {name!r} has no episodes")
    order = list(getattr(dataset.observation_space, "spaces", {}))  # in which an environment's are put end to end
    seen = [_vectors(name, episode.observations, order) for episode in episodes]
    for episode in episodes:
        if not (isinstance(episode.actions, np.ndarray) and episode.actions.ndim == 2):
            raise LpdsError(
                f"Minari dataset {name!r}: its actions are {_kind(episode.actions)}, expected a vector at each step"
            )
    data = Demonstrations(
        # one observation more than actions: the last one is where the episode ended
        obs=np.concatenate([rows[:-1] for rows in seen]),
        actions=np.concatenate([episode.actions for episode in episodes]).astype(np.float32),
        episode_lengths=np.asarray([len(episode.actions) for episode in episodes], np.int64),
        episode_returns=np.asarray([float(episode.rewards.sum()) for episode in episodes]),
        episode_source=np.zeros(len(episodes), np.int64),
        rewards=np.concatenate([episode.rewards for episode in episodes]).astype(np.float32),
        final_obs=np.stack([rows[-1] for rows in seen]),
        terminated=np.asarray([bool(episode.terminations[-1]) for episode in episodes]),
        order=", ".join(order) if len(order) > 1 else "",
    )
    return _checked(data, f"minari:{name}")


def _vectors(name: str, observations: Any, order: list[str]) -> npt.NDArray[np.float32]:
    """Observations of an episode [n + 1, O]; those of a dict end to end."""
    parts = {key: observations[key] for key in order} if isinstance(observations, dict) else {"": observations}
    for key, part in parts.items():
        if not (isinstance(part, np.ndarray) and part.ndim == 2 and part.dtype.kind in "biuf"):
            which = f"observation {key!r} is" if key else "its observations are"
            raise LpdsError(f"Minari dataset {name!r}: {which} {_kind(part)}, expected a vector at each step")
    return np.concatenate(list(parts.values()), axis=1).astype(np.float32)


def _kind(part: Any) -> str:
    """What stands where a vector was expected."""
    if isinstance(part, np.ndarray):
        return f"an array {list(part.shape[1:])} of {part.dtype} at each step"
    return f"a {type(part).__name__}" + (f" of {', '.join(map(str, part))}" if isinstance(part, dict) else "")


def _checked(data: Demonstrations, name: str) -> Demonstrations:
    """Refuse what does not add up: later it would shift rows against each other without a word."""
    steps, episodes = len(data.obs), len(data.episode_lengths)
    if data.obs.ndim != 2 or data.actions.ndim != 2:
        shapes = f"observations {list(data.obs.shape)} and actions {list(data.actions.shape)}"
        raise LpdsError(f"dataset {name}: {shapes} must be rows of vectors")
    if data.episode_lengths.ndim != 1:
        raise LpdsError(
            f"dataset {name}: episode_lengths is {list(data.episode_lengths.shape)}, expected one number an episode"
        )
    if not steps == len(data.actions) == int(data.episode_lengths.sum()):
        raise LpdsError(
            f"dataset {name}: {steps} observations, {len(data.actions)} actions and episodes of "
            f"{int(data.episode_lengths.sum())} steps do not agree"
        )
    if data.episode_source.size and data.episode_source.min() < 0:
        raise LpdsError(f"dataset {name}: episode_source holds {data.episode_source.min()}, expected numbers from 0 up")
    if not episodes or data.episode_lengths.min() < 1:
        raise LpdsError(f"dataset {name} needs episodes of at least one step each")
    # each is there in full, or not at all
    sizes: dict[str, tuple[tuple[int, ...], list[tuple[int, ...]]]] = {
        "rewards": (data.rewards.shape, [(steps,), (0,)]),
        "terminated": (data.terminated.shape, [(episodes,), (0,)]),
        "episode_returns": (data.episode_returns.shape, [(episodes,)]),
        "episode_source": (data.episode_source.shape, [(episodes,)]),
        "final_obs": (data.final_obs.shape, [(episodes, data.obs.shape[1]), (0, 0), (0,)]),
        "meant": (data.meant.shape, [data.actions.shape, (0, 0), (0,)]),
        "image": (data.image.shape, [(steps, *data.image.shape[1:]), (0,)]),
        "image2": (data.image2.shape, [(steps, *data.image2.shape[1:]), (0,)]),
    }
    for field, (shape, choices) in sizes.items():
        if shape not in choices:
            raise LpdsError(f"dataset {name}: {field} is {list(shape)}, expected {list(choices[0])}")
    recorded = data.final_obs[~np.isnan(data.final_obs).all(1)] if data.final_obs.ndim == 2 else data.final_obs
    if not all(np.isfinite(part).all() for part in (data.obs, data.actions, data.meant, data.rewards, recorded)):
        raise LpdsError(f"dataset {name} holds NaN or infinity")
    return data
