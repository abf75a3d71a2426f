"""Checkpoints: safetensors and JSON, atomic as a whole, with the replay in append-only segments.

``checkpoint.json`` is the commit point: it names the tensor file and the replay segments that belong to it, with their
sizes and hashes, and is renamed into place last. Whatever stops a save before that leaves the previous checkpoint whole.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lpds.errors import LpdsError
from lpds.files import FORMAT_VERSION, read_object, write_atomically, write_json
from lpds.replay import Replay

SET_ASIDE = "of-a-changed-decoder.json"
"""The commit point of a run that changed its decoder: nothing goes on from it."""


class CheckpointStore:
    """The ``checkpoint/`` folder of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._segments: list[dict[str, Any]] = []
        self._saved_rows = 0

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any], replay: Replay) -> None:
        """Write a checkpoint; its cost grows with what is new in the replay, not with the run.

        Args:
            tensors: everything mutable.
            facts: counters, as JSON.
            replay: rows inserted since the last save are appended as one segment.

        Raises:
            LpdsError: the disk is full or not writable; the previous checkpoint is untouched.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            segments = list(self._segments)
            if replay.inserted > self._saved_rows:
                first = max(self._saved_rows, replay.inserted - replay.capacity)
                name = f"replay-{first:09d}.safetensors"
                segments.append({"first": first, **self._write(name, replay.segment(first))})
            oldest = replay.inserted - replay.capacity
            following = [segment["first"] for segment in segments[1:]] + [replay.inserted]
            segments = [s for s, end in zip(segments, following, strict=False) if end > oldest]  # there may be none yet
            state = self._write(f"state-{facts['step']:09d}-{{sha256:.8}}.safetensors", tensors)
            cuts = [number for number in replay.cuts if number >= oldest]
            content = {"format_version": FORMAT_VERSION, "state": state, "replay": segments, "cuts": cuts, **facts}
            write_json(self.folder / "checkpoint.json", content)
        except OSError as error:
            raise LpdsError(f"checkpoint in {self.folder} not saved ({error}); the previous one is untouched") from None
        self._segments, self._saved_rows = segments, replay.inserted
        keep = {"checkpoint.json", state["file"], *(segment["file"] for segment in segments)}
        for pattern in ("state-*.safetensors", "replay-*.safetensors", ".*.tmp"):  # what is not ours stays
            for path in self.folder.glob(pattern):
                if path.name not in keep:
                    with suppress(OSError):  # the checkpoint is whole without that
                        path.unlink(missing_ok=True)

    def set_aside(self) -> None:
        """Rename the commit point to :data:`SET_ASIDE`, by which a run that is to go on is told why it cannot."""
        with suppress(OSError):  # there may be none yet
            (self.folder / "checkpoint.json").rename(self.folder / SET_ASIDE)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the tensors and facts of the last checkpoint.

        Raises:
            LpdsError: there is none, or a file of it is broken.
        """
        facts = self.facts()
        return self._read(facts["state"]), facts

    def facts(self) -> dict[str, Any]:
        """Its counters alone; errors as in :meth:`load`."""
        try:
            return read_object(self.folder / "checkpoint.json", "a checkpoint", {"state": dict, "replay": list})
        except FileNotFoundError:
            raise LpdsError(f"no checkpoint in {self.folder}") from None

    def load_replay(self, facts: dict[str, Any], replay: Replay) -> None:
        """Fill a replay from the segments that a checkpoint names."""
        replay.cuts = list(facts.get("cuts", ()))
        for segment in facts["replay"]:
            replay.restore(segment["first"], self._read(segment))
        self._segments, self._saved_rows = list(facts["replay"]), replay.inserted

    def _write(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
        content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        sha256 = hashlib.sha256(content).hexdigest()
        name = name.format(sha256=sha256)  # by content, and of rows by the first: no file in use is written over
        write_atomically(self.folder / name, content)
        return {"file": name, "sha256": sha256}

    def _read(self, entry: dict[str, Any]) -> dict[str, Tensor]:
        path = self.folder / entry["file"]
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise LpdsError(f"checkpoint file {path} is broken: its content is not what was saved")
            return load(content)
        except (OSError, SafetensorError) as error:
            raise LpdsError(f"checkpoint file {path} cannot be read: {error}") from None
