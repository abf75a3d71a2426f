"""A training that is kept while it goes on, so that a kill does not lose it."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lpds.errors import LpdsError, one_line
from lpds.files import write_atomically
from lpds.methods.state import LearnerState

NAME = "training.safetensors"
"""Beside the decoder; gone when that is trained to its end."""
KEPT_EVERY = 60.0
"""Seconds."""


class KeptTraining:
    """The file of one training: its state, and of what data and settings it is."""

    def __init__(self, folder: Path, *, resume: bool) -> None:
        """Look at what is there.

        Args:
            folder: of the decoder.
            resume: go on with a training that is there; what it says by then is replaced otherwise.
        """
        self.path, self._resume = folder / NAME, resume
        self.begun = 0
        """Gradient steps that were done before."""
        self._due = time.monotonic() + KEPT_EVERY

    def load(self, state: LearnerState, of: str) -> int:
        """Fill ``state`` from the file; nothing where there is none to go on with.

        Args:
            state: as it is before the first step.
            of: hash of the data and settings.

        Returns:
            Gradient steps that it is of.

        Raises:
            LpdsError: the file is broken, or of other data or settings.
        """
        if not self._resume or not self.path.is_file():
            return 0
        try:
            with safe_open(self.path, "pt") as opened:
                found = (opened.metadata() or {}).get("of")
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise LpdsError(f"{self.path} cannot be read: {one_line(error)}") from None
        if found != of:
            raise LpdsError(f"{self.path} is a training of other data or other settings: pass --overwrite to begin anew")
        state.load_tensors(tensors)
        self.begun = int(state.scalars["done"])
        return self.begun

    def save(self, state: LearnerState, of: str) -> None:
        """Write it, atomically; where that fails the one before it stays, and the training goes on."""
        content = save(state.tensors(), {"of": of})
        with suppress(OSError):  # a full disk may have room again when the decoder is saved
            write_atomically(self.path, content)
        self._due = time.monotonic() + KEPT_EVERY

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() >= self._due

    def remove(self) -> None:
        """Nothing is left to go on with."""
        self.path.unlink(missing_ok=True)
