"""LeRobot's dataset folders without their images: ``meta/info.json`` and parquet, codebase versions 2.0, 2.1 and 3.0.

2.x keeps an episode a file (``data/chunk-000/episode_000000.parquet``) and lists them in ``meta/episodes.jsonl``; 3.0 keeps
many episodes a file (``data/chunk-000/file-000.parquet``) and lists them in ``meta/episodes/chunk-000/file-000.parquet``.
Both give the paths as templates in ``info.json``, and a feature of shape [1] is a plain column in either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lpds.errors import LpdsError
from lpds.pretrain.experts import Demonstrations

FIRST = ("observation.state", "observation.environment_state")
"""Put end to end in this order where they are there, then every further vector under ``observation.`` by name."""
UNREAD = ("image", "video", "string")
UNTOLD = (
    "the dataset does not say which of its episodes succeeded (next.success): every next.done is taken for an end after which "
    "nothing is to be had, time limits, too"
)
VERSIONS = ("v2.0", "v2.1", "v3.0")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Episode:
    """Where one episode is."""

    number: int
    length: int
    file: str


def open_lerobot(folder: Path, keys: Sequence[str] | None = None) -> Demonstrations:
    """Read the vectors of a LeRobotDataset.

    Neither version stores the observation after the last action: ``final_obs`` is NaN. An episode counts as terminated where
    its last frame says both ``next.done`` and ``next.success``, or the one that there is. Without ``next.success``,
    ``next.done`` may end a recording of any kind, a time limit among them: it counts as the end then, since a last reward,
    which may stand for a success, would be lost without it, and ``remark`` says so.

    Args:
        folder: the dataset's, which holds ``meta/info.json``.
        keys: observations to put end to end; by default all vectors, in the order of :data:`FIRST`.

    Returns:
        The demonstrations, in the order of their numbers; without ``next.reward`` that field stays empty.

    Raises:
        LpdsError: pyarrow is missing, or the folder is broken or has no vectors to learn from.
    """
    info = _read_info(folder)
    features: dict[str, Any] = info["features"]
    observations = _observations(folder, features, keys)
    if "action" not in features:
        raise LpdsError(f"dataset {folder} has no action column; it has {', '.join(sorted(features))}")
    if len(features["action"]["shape"]) != 1:
        raise LpdsError(f"dataset {folder}: action has shape {features['action']['shape']}, expected one axis")
    further = [name for name in ("next.reward", "next.done", "next.success") if name in features]
    episodes = _episodes(folder, info)
    wanted = {name: int(features[name]["shape"][0]) for name in (*observations, "action")} | dict.fromkeys(further, 1)
    parts: dict[str, list[Array]] = {name: [] for name in wanted}
    table = _Table(folder / episodes[0].file, list(wanted))
    for episode in episodes:
        if table.path != folder / episode.file:
            table = _Table(folder / episode.file, list(wanted))
        rows = table.rows(episode)
        for name, width in wanted.items():
            parts[name].append(table.column(name, width)[rows])
    rewards = [part[:, 0].astype(np.float32) for part in parts.get("next.reward", [])]
    obs = [np.concatenate(both, axis=1) for both in zip(*(parts[name] for name in observations), strict=True)]
    done, success = parts.get("next.done"), parts.get("next.success")
    told = [column for column in (done, success) if column is not None]
    ended = [all(bool(column[-1, 0]) for column in columns) for columns in zip(*told, strict=True)]
    remarks = [
        UNTOLD if done and success is None and any(ended) else "",
        _left_out(folder, features) if keys is None else "",
    ]
    return Demonstrations(
        obs=np.concatenate(obs).astype(np.float32),
        actions=np.concatenate(parts["action"]).astype(np.float32),
        episode_lengths=np.asarray([episode.length for episode in episodes], np.int64),
        episode_returns=np.asarray([one.sum() for one in rewards] or [np.nan] * len(episodes), np.float64),
        episode_source=np.zeros(len(episodes), np.int64),
        rewards=np.concatenate(rewards) if rewards else np.empty(0, np.float32),
        final_obs=np.full((len(obs), obs[0].shape[1]), np.nan, np.float32) if rewards else np.empty((0, 0), np.float32),
        terminated=np.asarray(ended or [False] * len(episodes), np.bool_),
        order=", ".join(observations) if len(observations) > 1 else "",
        remark="; ".join(filter(None, remarks)),
    )


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / "meta" / "info.json"
    if not path.is_file():
        raise LpdsError(f"{folder} is no LeRobot dataset (meta/info.json is missing)")
    try:
        info = json.loads(path.read_bytes())
        version, features = info["codebase_version"], info["features"]
        features = {name: {**facts, "shape": [int(size) for size in facts["shape"]]} for name, facts in features.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LpdsError(f"{path} cannot be read: {type(error).__name__} {' '.join(str(error).split())}") from None
    if version not in VERSIONS:
        raise LpdsError(f"dataset {folder} is of LeRobot's codebase version {version!r} (choices: {', '.join(VERSIONS)})")
    return {**info, "features": features}


def _observations(folder: Path, features: dict[str, Any], keys: Sequence[str] | None) -> list[str]:
    """Names of the vectors to observe, in their order."""
    images = [name for name, facts in features.items() if facts.get("dtype") in ("image", "video")]
    vectors = [
        name
        for name, facts in features.items()
        if name.startswith("observation.") and facts.get("dtype") not in UNREAD and len(facts["shape"]) == 1
    ]
    if not vectors:
        also = f"; of its images ({', '.join(images)}) none is read" if images else f"; it has {', '.join(sorted(features))}"
        raise LpdsError(f"dataset {folder} has no observation.state nor any other vector under observation.{also}")
    if keys is None:
        return [*(name for name in FIRST if name in vectors), *sorted(set(vectors) - set(FIRST))]
    missing = [name for name in keys if name not in vectors]
    if missing or not keys:
        raise LpdsError(f"dataset {folder} has no vector {missing}; it has {', '.join(sorted(vectors))}")
    return list(keys)


def _left_out(folder: Path, features: Mapping[str, Any]) -> str:
    """Observations of more than one axis that are no pictures: whoever recorded them may think that they are learned from."""
    own = [
        name
        for name, facts in features.items()
        if name.startswith("observation.") and facts.get("dtype") not in UNREAD and len(facts["shape"]) != 1
    ]
    return f"{folder}: {', '.join(own)} left out, of more than one axis" if own else ""


def _episodes(folder: Path, info: dict[str, Any]) -> list[_Episode]:
    """Every episode that the folder lists, by number."""
    path = folder / "meta" / ("episodes" if info["codebase_version"] == "v3.0" else "episodes.jsonl")
    try:
        if info["codebase_version"] == "v3.0":
            columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
            rows: list[dict[str, Any]] = []
            for listed in sorted(path.glob("*/*.parquet")):
                rows += _read_parquet(listed, columns).select(columns).to_pylist()
            found = [
                _Episode(
                    int(row["episode_index"]),
                    int(row["length"]),
                    _data_file(folder, info, chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]),
                )
                for row in rows
            ]
        else:
            rows = [json.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
            found = []
            for row in rows:
                number = int(row["episode_index"])
                chunk = number // int(info["chunks_size"])
                file = _data_file(folder, info, episode_chunk=chunk, episode_index=number)
                found.append(_Episode(number, int(row["length"]), file))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise LpdsError(f"{path} cannot be read: {type(error).__name__} {' '.join(str(error).split())}") from None
    empty = [episode.number for episode in found if episode.length < 1]
    if not found or empty:
        raise LpdsError(f"dataset {folder}: " + (f"episode {empty[0]} has no frames" if empty else f"{path} lists no episodes"))
    found.sort(key=lambda episode: episode.number)
    twice = [one.number for one, other in pairwise(found) if one.number == other.number]
    if twice:
        raise LpdsError(f"dataset {folder}: {path} lists episode {twice[0]} twice")
    listed_frames = sum(episode.length for episode in found)
    for what, listed_count in (("total_episodes", len(found)), ("total_frames", listed_frames)):
        if info.get(what, listed_count) != listed_count:
            raise LpdsError(
                f"dataset {folder}: {path} lists {len(found)} episodes of {listed_frames} frames, but info.json says "
                f"{what} {info[what]}: is it whole?"
            )
    return found


def _data_file(folder: Path, info: dict[str, Any], **numbers: int) -> str:
    """Path of a data file inside the folder, by the template in ``info.json``."""
    template: Any = info.get("data_path")
    try:
        return str(template.format(**numbers))
    except (AttributeError, KeyError, IndexError, ValueError):
        known = ", ".join(f"{{{name}}}" for name in numbers)
        raise LpdsError(
            f"{folder / 'meta' / 'info.json'}: data_path is {template!r}, which names no file (it may use {known})"
        ) from None


def _read_parquet(path: Path, columns: list[str]) -> Any:
    """The table of a file, with at least those of the columns that it has."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise LpdsError("LeRobot datasets need pyarrow: pip install 'lpds[lerobot-data]'") from None
    try:
        with ParquetFile(path) as file:
            return file.read(columns=columns)
    except FileNotFoundError:
        raise LpdsError(f"dataset file {path} does not exist") from None
    except (OSError, ArrowException) as error:
        raise LpdsError(f"dataset file {path} cannot be read: {' '.join(str(error).split())}") from None


class _Table:
    """One data file, its columns turned into arrays once."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self.path = path
        self._table = _read_parquet(path, [*names, "episode_index", "frame_index"])
        self._arrays: dict[str, Array] = {}

    def rows(self, episode: _Episode) -> npt.NDArray[np.int64]:
        """Where an episode's frames are, in their order."""
        mine = np.flatnonzero(self.column("episode_index", 1)[:, 0] == episode.number)
        if len(mine) != episode.length:
            raise LpdsError(
                f"dataset file {self.path} has {len(mine)} frames of episode {episode.number}, its list says {episode.length}"
            )
        return mine[np.argsort(self.column("frame_index", 1)[mine, 0], kind="stable")]

    def column(self, name: str, width: int) -> Array:
        """A column as [N, width]."""
        if name not in self._arrays:
            self._arrays[name] = self._read(name, width)
        return self._arrays[name]

    def _read(self, name: str, width: int) -> Array:
        import pyarrow as pa
        import pyarrow.compute as pc

        if name not in self._table.column_names:
            raise LpdsError(f"dataset file {self.path} has no column {name}; it has {', '.join(self._table.column_names)}")
        column = self._table[name].combine_chunks()
        values = column
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
            sizes = set(pc.unique(pc.list_value_length(column)).to_pylist()) - {None}
            if sizes != {width}:
                seen = ", ".join(sorted(map(str, sizes)))
                raise LpdsError(f"dataset file {self.path}: {name} has rows of {seen} numbers, meta/info.json says {width}")
            values = column.flatten()
        elif width != 1:
            raise LpdsError(f"dataset file {self.path}: {name} has one number a row, meta/info.json says {width}")
        if column.null_count or values.null_count:
            raise LpdsError(f"dataset file {self.path}: {name} has empty cells")
        array: Array = values.to_numpy(zero_copy_only=False)
        if array.dtype.kind not in "biuf":
            raise LpdsError(f"dataset file {self.path}: {name} holds {column.type}, expected numbers")
        return array.reshape(-1, width)
