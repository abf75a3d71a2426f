"""The best point of a learning curve, which a run may keep in place of its end (``keep=best``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from lpds.evaluation import EvalReport


class BestPoint:
    """The first point that no other is above: in success where the environment tells it, and then in return."""

    def __init__(self) -> None:
        self.step = 0
        """Primitive steps at that point."""
        self.score: tuple[float, float] | None = None
        """Success rate and mean return there; ``None`` before the first point."""
        self.tensors: dict[str, Tensor] | None = None
        """The method as it was there; ``None`` where the frozen policy acted."""

    def offer(self, report: EvalReport, step: int, tensors: Callable[[], dict[str, Tensor]] | None) -> None:
        """Take a point if it is above the best so far.

        Args:
            report: the point's evaluation; success that is not told counts as none, which is all the same where it never is.
            step: primitive steps so far.
            tensors: copies what the method has learned; ``None`` where the frozen policy acted.
        """
        score = (float(np.nan_to_num(report.successes).mean()), float(report.returns.mean()))
        if self.score is None or score > self.score:
            self.step, self.score, self.tensors = step, score, None if tensors is None else tensors()

    def facts(self) -> dict[str, Any]:
        """The part of a checkpoint that is JSON."""
        return {"step": self.step, "score": self.score, "learned": self.tensors is not None}

    def restore(self, facts: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`facts` and the tensors of a checkpoint say."""
        self.step, self.score = facts["step"], None if facts["score"] is None else (facts["score"][0], facts["score"][1])
        self.tensors = tensors if facts["learned"] else None
