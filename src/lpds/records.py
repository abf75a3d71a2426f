"""What a run writes of itself: its three files, and what is gathered between two rows of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from lpds.collect import EpisodeRecord
from lpds.errors import LpdsError
from lpds.evaluation import EvalReport
from lpds.files import write_atomically
from lpds.log import METRIC_KEYS, JsonLines, TensorBoard
from lpds.recent import Recent
from lpds.run_folder import STATES_FILE

FILES = ("metrics", "episodes", "eval")


class Records:
    """``metrics.jsonl``, ``episodes.jsonl`` and ``eval.jsonl`` of a run, and the clock."""

    def __init__(self, out: Path, *, device: torch.device, say: Callable[[str], None], tensorboard: bool = False) -> None:
        self._out, self._device, self._say = out, device, say
        self._board = TensorBoard(out / "tensorboard") if tensorboard else None
        self._recent = Recent()
        self._files: dict[str, JsonLines] = {}
        self.sums: dict[str, Tensor] = {}
        """Sum and count [2] of every metric of updates since the last row."""
        self._wall, self._started, self._last = 0.0, time.perf_counter(), (0.0, 0, 0)

    def open(self, sizes: Mapping[str, int] | None = None) -> None:
        """Start the clock, and the files or cut them back to the sizes of a checkpoint."""
        self._started = time.perf_counter()  # what it took to make environments is no part of a rate
        self._files = {name: JsonLines(self._out / f"{name}.jsonl", sizes[name] if sizes else None) for name in FILES}
        for name, stream in self._files.items():
            if stream.lost:
                self._say(f"WARNING: {name}.jsonl lacks {stream.lost:,} bytes that the checkpoint counts on: rows are missing")

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take what one update tells; it stays on the device."""
        for key, value in metrics.items():
            held = self.sums.setdefault(key, torch.zeros(2, dtype=torch.float64, device=value.device))
            held += torch.stack([value, torch.ones_like(value)])

    def episodes(self, step: int, ended: list[EpisodeRecord]) -> None:
        """Write the training episodes that ended."""
        for record in ended:
            success = self._recent.add(record.total, record.success)
            row = {"step": step, "seed": record.seed, "return": record.total, "success": success}
            self._files["episodes"].write({**row, "length": record.length})

    def metrics(self, step: int, updates: int, measured: Mapping[str, float]) -> dict[str, Any]:
        """Write one row: what was measured, the means of the updates since the last, and the rates."""
        row: dict[str, Any] = {**dict.fromkeys(METRIC_KEYS), **measured}
        row |= {key: float(value[0] / value[1]) for key, value in self.sums.items()}
        self.sums = {}
        wall = self.wall_s
        past_wall, past_step, past_updates = self._last
        span = max(wall - past_wall, 1e-9)
        # a finished run that goes on writes its last row again: no step was taken since, and that is no rate
        moved = step > past_step or not step
        row |= {
            "step": step,
            "wall_s": round(wall, 3),
            "updates": updates,
            **self._recent.row(),
            "env_steps_per_s": (step - past_step) / span if moved else None,
            "updates_per_s": (updates - past_updates) / span if moved else None,
        }
        self._last = (wall, step, updates)
        self._files["metrics"].write(row)
        if self._board is not None:
            self._board.write(row)
        return row

    def evaluation(self, step: int, kind: str, report: EvalReport) -> None:
        """Write one line for every episode of an evaluation."""
        for row in report.rows():
            self._files["eval"].write({"step": step, "kind": kind, **row})

    @property
    def wall_s(self) -> float:
        """Seconds of the run so far, over all its sessions."""
        return self._wall + time.perf_counter() - self._started

    # -- exact resume ----------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The sums."""
        return dict(self.sums)

    def facts(self) -> dict[str, Any]:
        """Everything else, as JSON; the files are on the disk as far as it counts on them."""
        sizes = {name: stream.size() for name, stream in self._files.items()}
        return {**self._recent.facts(), "wall_s": self.wall_s, "log_sizes": sizes}

    def restore(self, sums: Mapping[str, Tensor], facts: dict[str, Any], step: int, updates: int) -> None:
        """Go back to :meth:`tensors` and :meth:`facts`; :meth:`open` cuts the files back."""
        self.sums = {key: value.to(self._device) for key, value in sums.items()}
        self._recent.restore(facts)
        self._wall, self._started = facts["wall_s"], time.perf_counter()
        self._last = (self._wall, step, updates)

    def close(self) -> None:
        """Close the files."""
        for stream in self._files.values():
            stream.close()
        if self._board is not None:
            self._board.close()


def save_states(folder: Path, obs: Tensor) -> None:
    """Write ``states.safetensors``: a few states [N, O] at which a report shows what the policy does (``kept_states``).

    Raises:
        LpdsError: the folder cannot be written.
    """
    content = save({"obs": obs.cpu().contiguous()})
    try:
        write_atomically(folder / STATES_FILE, content)
    except OSError as error:
        raise LpdsError(f"states in {folder} not saved ({error})") from None
