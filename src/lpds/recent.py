"""The last training episodes, and the running mean of their success."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

MEMORY = 20
"""Episodes behind ``return_mean`` and ``success``; also the memory of ``success_ema``."""


class Recent:
    """What ``metrics.jsonl`` tells of training episodes.

    Some environments' infos name success only where there is one. From the first episode that says anything of it silence is
    failure, in the episodes before, too.
    """

    def __init__(self) -> None:
        self._episodes: deque[tuple[float, float]] = deque(maxlen=MEMORY)
        self._success_ema = math.nan

    def add(self, total: float, success: float) -> float:
        """Take one episode's return and success (NaN: nothing was said); the success as it counts."""
        if math.isnan(success) and not math.isnan(self._success_ema):
            success = 0.0
        if not math.isnan(success):
            if math.isnan(self._success_ema):
                self._episodes = deque(((before, 0.0) for before, _ in self._episodes), MEMORY)
                self._success_ema = 0.0 if self._episodes else success
            self._success_ema += (success - self._success_ema) / MEMORY
        self._episodes.append((total, success))
        return success

    def row(self) -> dict[str, Any]:
        """The columns of ``metrics.jsonl``."""
        recent = np.asarray(self._episodes, np.float64).reshape(-1, 2)
        said = recent[~np.isnan(recent[:, 1]), 1]
        return {
            "return_mean": float(recent[:, 0].mean()) if len(recent) else None,
            "success": float(said.mean()) if said.size else None,
            "success_ema": self._success_ema,
        }

    def facts(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "recent": [[total, None if math.isnan(success) else success] for total, success in self._episodes],
            "success_ema": None if math.isnan(self._success_ema) else self._success_ema,
        }

    def restore(self, facts: dict[str, Any]) -> None:
        """Go back to :meth:`facts`."""
        self._episodes.clear()
        self._episodes.extend((total, math.nan if success is None else success) for total, success in facts["recent"])
        self._success_ema = math.nan if facts["success_ema"] is None else facts["success_ema"]
