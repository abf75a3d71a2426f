"""RoboMimic's HDF5 layout with low-dimensional observations (Mandlekar et al. 2021, arXiv 2108.03298)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lpds.errors import LpdsError
from lpds.pretrain.experts import Demonstrations

KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "robot1_eef_pos", "robot1_eef_quat", "robot1_gripper_qpos")
"""Of the arms, in RoboMimic's order; those that a file has are put end to end, and then ``object``."""


PICTURES = ("_image", "_depth")
"""How the names of its pictures end."""


def open_robomimic(path: Path, keys: Sequence[str] | None = None) -> Demonstrations:
    """Open ``data/demo_N`` groups with ``obs/KEY``, ``actions`` and, where they are kept, ``rewards``, ``dones``, ``next_obs``.

    Args:
        path: the ``.hdf5`` file.
        keys: observations to put end to end; by default those of the arms that are there, then ``object``.

    Returns:
        The demonstrations, in the order of their numbers. ``final_obs`` is taken from ``next_obs``; without it, and without
        rewards or dones, those fields stay empty.

    Raises:
        LpdsError: h5py is missing, the file is broken or of another layout, or a key is not there (the keys are listed).
    """
    try:
        import h5py
    except ImportError:
        raise LpdsError("RoboMimic files need h5py: pip install 'lpds[minari]'") from None
    try:
        with h5py.File(path, "r") as file:
            return _read(file, path, keys)
    except (OSError, KeyError) as error:  # a KeyError: a link to nowhere
        raise LpdsError(f"dataset {path} cannot be read: {' '.join(str(error).split())}") from None


def _read(file: Any, path: Path, keys: Sequence[str] | None) -> Demonstrations:
    data = file.get("data")
    names = [name for name in (data if hasattr(data, "keys") else ()) if name.removeprefix("demo_").isdigit()]
    names.sort(key=lambda name: int(name.removeprefix("demo_")))
    demos = [file["data"][name] for name in names]
    if not demos or not all(hasattr(demo, "keys") and hasattr(demo.get("obs"), "keys") and "actions" in demo for demo in demos):
        raise LpdsError(f"dataset {path} has no data/demo_N with obs and actions; expected RoboMimic's low_dim layout")
    there = list(demos[0]["obs"])
    chosen = [*keys] if keys is not None else [key for key in (*KEYS, "object") if key in there]
    missing = [key for key in chosen if key not in there]
    if keys is None:  # of an arm all three or none: two of them would do for a policy without an orientation, say
        arms = {key.split("_")[0] for key in chosen if key in KEYS}
        missing = [key for key in KEYS if key.split("_")[0] in arms and key not in there]
    if missing or not chosen:
        raise LpdsError(f"dataset {path} has no observation {missing or KEYS}; it has {', '.join(there)}")
    if keys is None and "object" not in there:
        raise LpdsError(
            f"dataset {path} has no observation 'object': without it a policy does not see what it handles (low_dim?)"
        )
    scene = _scene(data, path)
    widths: dict[str, tuple[int, ...]] = {}
    for name, demo in zip(names, demos, strict=True):
        for where in ("obs", "next_obs"):
            held = list(demo[where]) if where in demo and hasattr(demo[where], "keys") else []
            lost = [key for key in chosen if key not in held] if where in demo else []
            if lost or (where not in demo and where == "obs"):
                raise LpdsError(f"dataset {path}: {name} has no {where}/{(lost or chosen)[0]}")
        fields = {key: demo["obs"][key] for key in chosen} | {w: demo[w] for w in ("actions", "rewards") if w in demo}
        later = {f"next_obs/{key}": demo["next_obs"][key] for key in chosen} if "next_obs" in demo else {}
        rows = {key: _shape(value)[0] for key, value in (fields | later).items()}
        if not any(rows.values()):
            raise LpdsError(f"dataset {path}: {name} has no steps")
        if len(set(rows.values())) > 1:
            said = ", ".join(f"{key} {count}" for key, count in rows.items())
            raise LpdsError(f"dataset {path}: the rows of {name} do not agree ({said})")
        for key, value in (fields | later).items():
            found, own = _shape(value)[1:], key.removeprefix("next_obs/")
            if widths.setdefault(own, found) != found:
                raise LpdsError(
                    f"dataset {path}: {key} of {name} has rows of {list(found)}, that of {names[0]} of {list(widths[own])}"
                )

    def observation(group: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        parts = [np.asarray(group[key], np.float32) for key in chosen]
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)

    def every(what: str) -> bool:
        return all(what in demo and len(demo[what]) for demo in demos)

    rewards = [np.asarray(demo["rewards"], np.float32) for demo in demos] if every("rewards") else []
    return Demonstrations(
        obs=np.concatenate([observation(demo["obs"]) for demo in demos]),
        actions=np.concatenate([np.asarray(demo["actions"], np.float32) for demo in demos]),
        episode_lengths=np.asarray([len(demo["actions"]) for demo in demos], np.int64),
        episode_returns=np.asarray([one.sum() for one in rewards] or [np.nan] * len(demos), np.float64),
        episode_source=np.zeros(len(demos), np.int64),
        rewards=np.concatenate(rewards) if rewards else np.empty(0, np.float32),
        final_obs=np.stack([observation(demo["next_obs"])[-1] for demo in demos])
        if every("next_obs")
        else np.empty((0, 0), np.float32),
        scene=scene,
        remark="; ".join(filter(None, (_masks(file, path), _left_out(there, chosen, path) if keys is None else ""))),
        # its dones mark success, after which the recording stops; an episode of these tasks goes on to its horizon
        terminated=np.zeros(len(demos), np.bool_),
    )


def _left_out(there: Sequence[str], chosen: Sequence[str], path: Path) -> str:
    """Observations of a name that is not RoboMimic's: whoever recorded them may think that they are learned from."""
    own = [
        key for key in there if key not in chosen and not key.startswith(("robot0_", "robot1_")) and not key.endswith(PICTURES)
    ]
    return f"{path}: of its observations {', '.join(chosen)} are used, {', '.join(own)} not" if own else ""


def _masks(file: Any, path: Path) -> str:
    """The file's own split of its demonstrations, which is not made use of."""
    masks = file.get("mask")
    held = sorted(masks) if hasattr(masks, "keys") else []
    return f"{path} splits its demonstrations ({', '.join(held)}): all of them are used" if held else ""


def _shape(values: Any) -> tuple[int, ...]:
    """Of a dataset; a group or a single number has no rows."""
    return tuple(getattr(values, "shape", ())) or (0,)


def _scene(data: Any, path: Path) -> str:
    """The task's name in robosuite, where the file says it; absolute actions, which no task here takes, are refused."""
    try:
        told = json.loads(data.attrs.get("env_args", "{}"))
        absolute = _absolute(told.get("env_kwargs", {}).get("controller_configs", {}))
        scene = str(told.get("env_name", ""))
    except (ValueError, TypeError, AttributeError):
        return ""  # what cannot be read says nothing
    if absolute:
        raise LpdsError(f"dataset {path} has absolute actions (by its env_args); RoboMimic's tasks here take relative ones")
    return scene


def _absolute(controllers: Any) -> bool:
    """Whether a controller takes poses: ``control_delta`` false, or (robosuite 1.5) ``input_type`` absolute of a part."""
    if isinstance(controllers, list):
        return any(map(_absolute, controllers))
    if not isinstance(controllers, dict):
        return False
    own = controllers.get("control_delta") is False or controllers.get("input_type") == "absolute"
    return own or any(map(_absolute, controllers.values()))
