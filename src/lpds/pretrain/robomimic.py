"""RoboMimic's HDF5 layout with low-dimensional observations (Mandlekar et al. 2021, arXiv 2108.03298)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lpds.errors import LpdsError
from lpds.pretrain.experts import Demonstrations

KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "robot1_eef_pos", "robot1_eef_quat", "robot1_gripper_qpos")
"""Of the arms, in RoboMimic's order; those that a file has are put end to end, and then ``object``."""


CONTROL_HZ = 20
"""Of RoboMimic's recordings, and of its tasks here (:mod:`lpds.envs.robosuite`)."""
PICTURES = ("_image", "_depth")
"""How the names of its pictures end."""


def open_robomimic(path: Path, keys: Sequence[str] | None = None, split: str = "") -> Demonstrations:
    """Open ``data/demo_N`` groups with ``obs/KEY``, ``actions`` and, where they are kept, ``rewards``, ``dones``, ``next_obs``.

    Args:
        path: the ``.hdf5`` file.
        keys: observations to put end to end; by default those of the arms that are there, then ``object``.
        split: of the file's own (``mask/SPLIT``: train, valid, 20_percent ...); all of its demonstrations by default.

    Returns:
        The demonstrations, in the order of their numbers. ``final_obs`` is taken from ``next_obs``; without it, and without
        rewards or dones, those fields stay empty.

    Raises:
        LpdsError: h5py is missing, the file is broken or of another layout, or a key is not there (the keys are listed).
    """
    try:
        import h5py
    except ImportError:
        raise LpdsError("RoboMimic files need h5py: pip install 'lpds[hdf5]'") from None
    try:
        with h5py.File(path, "r") as file:
            return _read(file, path, keys, split)
    except (OSError, KeyError) as error:  # a KeyError: a link to nowhere
        raise LpdsError(f"dataset {path} cannot be read: {' '.join(str(error).split())}") from None


def _read(file: Any, path: Path, keys: Sequence[str] | None, split: str) -> Demonstrations:
    data = file.get("data")
    every_name = list(data) if hasattr(data, "keys") else []
    names = [name for name in every_name if name.removeprefix("demo_").isdigit()]
    others = [name for name in every_name if name not in names and hasattr(data.get(name), "keys") and "actions" in data[name]]
    names.sort(key=lambda name: int(name.removeprefix("demo_")))
    names = _of_split(file, path, names, split) if split else names
    demos = [file["data"][name] for name in names]
    if not demos or not all(hasattr(demo, "keys") and hasattr(demo.get("obs"), "keys") and "actions" in demo for demo in demos):
        raise LpdsError(f"dataset {path} has no data/demo_N with obs and actions; {_wanted(demos)}")
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
    scene, recorded, version = _told(data, path)
    remarks = [
        _masks(file, path) if not split else "",
        _left_out(there, chosen, path) if keys is None else "",
        f"{path}: {', '.join(others)} left out, which are not named demo_N" if others else "",
        f"{path} was recorded with {recorded}, as no RoboMimic task here is driven" if recorded else "",
        f"{path} was recorded under robosuite {version}, the tasks here are of 1.4.1" if version[:3] not in ("", "1.4") else "",
    ]
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
        recorded=recorded,
        remark="; ".join(filter(None, remarks)),
        # its dones mark success, after which the recording stops; an episode of these tasks goes on to its horizon
        terminated=np.zeros(len(demos), np.bool_),
    )


def _wanted(demos: Sequence[Any]) -> str:
    """What a file without observations should be, and how a raw one, of the simulator's states, becomes that."""
    if demos and all(hasattr(demo, "keys") and "obs" not in demo and {"states", "actions"} <= set(demo) for demo in demos):
        return "it is a raw file, of the simulator's states: robomimic's dataset_states_to_obs.py makes a low_dim one of it"
    return "expected RoboMimic's low_dim layout"


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
    takes = f"all of them are used ({path.name}#{held[0]} takes those of one)" if held else ""
    return f"{path} splits its demonstrations ({', '.join(held)}): {takes}" if held else ""


def _of_split(file: Any, path: Path, names: Sequence[str], split: str) -> list[str]:
    """Those of the demonstrations that one of the file's splits names."""
    masks = file.get("mask")
    held = sorted(masks) if hasattr(masks, "keys") else []
    if split not in held:
        raise LpdsError(f"dataset {path} has no split {split!r} (choices: {', '.join(held) or 'none'})")
    rows = np.ravel(masks[split][()]).tolist() if hasattr(masks[split], "shape") else []
    members = [name.decode() if isinstance(name, bytes) else str(name) for name in rows]
    if missing := [name for name in members if name not in names]:
        raise LpdsError(f"dataset {path}: its split {split!r} names {missing[0]}, which is none of its demonstrations")
    if not members:
        raise LpdsError(f"dataset {path}: its split {split!r} names none of its demonstrations")
    return [name for name in names if name in members]


def _shape(values: Any) -> tuple[int, ...]:
    """Of a dataset; a group or a single number has no rows."""
    return tuple(getattr(values, "shape", ())) or (0,)


OSC_OUTPUT = (0.05, 0.05, 0.05, 0.5, 0.5, 0.5)
"""Metres and radians a step that an action of 1 asks of robosuite's OSC_POSE."""


def _told(data: Any, path: Path) -> tuple[str, str, str]:
    """What ``env_args`` say: the task's name, in which way it was driven otherwise than here, and robosuite's version.

    Absolute actions, which no task here takes, are refused.
    """
    try:
        told = json.loads(data.attrs.get("env_args", "{}"))
        driven = dict(told.get("env_kwargs", {}))
        scene, version = str(told.get("env_name") or ""), str(told.get("env_version") or "")
        robots = driven.get("robots") or ["Panda"]
        robots = [robots] if isinstance(robots, str) else list(map(str, robots))
        arms = _arms(driven.get("controller_configs", {}))
        otherwise = list(_otherwise(driven, robots, arms, version))
    except (ValueError, TypeError, AttributeError):
        return "", "", ""  # what cannot be read says nothing
    if any(one.get("control_delta") is False or one.get("input_type") == "absolute" for one in arms):
        raise LpdsError(f"dataset {path} has absolute actions (by its env_args); RoboMimic's tasks here take relative ones")
    return scene, ", ".join(otherwise), version


def _otherwise(driven: Mapping[str, Any], robots: Sequence[str], arms: Sequence[dict[str, Any]], version: str) -> Iterator[str]:
    """In which of the things that decide what an action does a recording differs from RoboMimic's tasks here."""
    if set(robots) != {"Panda"}:
        yield " and ".join(robots)
    hertz = driven.get("control_freq")
    if hertz is not None and float(hertz) != CONTROL_HZ:
        yield f"{float(hertz):g} Hz"
    if kinds := sorted({str(one["type"]) for one in arms if one.get("type", "OSC_POSE") != "OSC_POSE"}):
        yield " and ".join(kinds)
    for edge, sign in (("output_max", 1.0), ("output_min", -1.0)):
        wide = [one[edge] for one in arms if edge in one and not _same(one[edge], sign)]
        if wide:
            yield f"{edge} {wide[0]}"
    # of one arm, whose base is not turned, both frames are the same; the base's is robosuite 1.5's own choice
    usual = "base" if version.startswith("1.5") else "world"
    if len(robots) > 1 and any(one.get("input_ref_frame", usual) != "world" for one in arms):
        yield "actions in the frame of each arm's base"


def _same(output: Any, sign: float) -> bool:
    found = np.asarray(output, np.float64)
    return bool(found.shape in ((), (6,)) and np.allclose(found, sign * np.asarray(OSC_OUTPUT)))


def _arms(configs: Any) -> list[dict[str, Any]]:
    """The controllers of the arms: one for each robot, or (robosuite 1.5) of a part of each, ``right`` where it has one arm.

    Its configurations list legs, a torso and a left arm, too, of robots that have none.
    """
    if isinstance(configs, list):
        return [one for each in configs for one in _arms(each)]
    if not isinstance(configs, dict):
        return []
    parts = configs.get("body_parts", {})
    parts = {**parts, **parts["arms"]} if isinstance(parts.get("arms"), dict) else parts
    return [parts["right"]] if isinstance(parts.get("right"), dict) else [configs]
