"""Pictures of a ring of transitions, as bytes and once each: the next state's are the following row's own."""

from __future__ import annotations

import torch
from torch import Tensor


class Frames:
    """P bytes for every row of a ring that is written in rounds of ``lanes``, or of the part of it that there is yet.

    What follows a row is kept apart only where an episode ended there, and for the newest round, whose next states have no
    row yet.
    """

    def __init__(self, size: int, capacity: int, lanes: int, device: torch.device) -> None:
        self.size, self.lanes, self.device = size, lanes, device
        self._own = torch.empty((capacity, size), dtype=torch.uint8, device=device)
        self._after: dict[int, Tensor] = {}
        self._newest = torch.empty((lanes, size), dtype=torch.uint8, device=device)
        self._start = 0

    def insert(self, start: int, pictures: Tensor, following: Tensor, over: Tensor) -> None:
        """Write the round that begins at row ``start``: values 0 to 255 [lanes, P], before and after, and where it ended."""
        self._own[start : start + self.lanes] = pictures.to(torch.uint8)
        self._newest.copy_(following.to(torch.uint8))
        self._start = start
        for lane, ended in enumerate(over.tolist()):
            self._after.pop(start + lane, None)
            if ended:
                self._after[start + lane] = self._newest[lane].clone()

    def grow(self, capacity: int) -> None:
        """Have room for so many rows."""
        grown = torch.empty((capacity, self.size), dtype=torch.uint8, device=self.device)
        grown[: len(self._own)] = self._own
        self._own = grown

    def cut(self, row: int) -> None:
        """Keep what follows a row of the newest round: the following row's picture will be another episode's."""
        self._after[row] = self._newest[row - self._start].clone()

    def at(self, rows: Tensor) -> Tensor:
        """float32 [B, P] of rows [B]."""
        return self._own[rows].float()

    def after(self, rows: Tensor) -> Tensor:
        """float32 [B, P] of the next states of rows [B]."""
        out = self._own[(rows + self.lanes) % len(self._own)]
        for place, row in enumerate(rows.tolist()):
            if row in self._after:
                out[place] = self._after[row]
            elif self._start <= row < self._start + self.lanes:
                out[place] = self._newest[row - self._start]
        return out.float()

    # -- exact resume ----------------------------------------------------------------------------------------------

    def segment(self, rows: Tensor) -> dict[str, Tensor]:
        """What :meth:`restore` needs of these rows, for an append-only file."""
        ended = [place for place, row in enumerate(rows.tolist()) if row in self._after]
        kept = [self._after[int(rows[place])] for place in ended]
        return {
            "frames": self._own[rows].cpu(),
            "frames_ended": torch.tensor(ended, dtype=torch.int64),
            "frames_after": torch.stack(kept).cpu() if kept else torch.empty((0, self.size), dtype=torch.uint8),
            "frames_newest": self._newest.cpu().clone(),
        }

    def restore(self, rows: Tensor, values: dict[str, Tensor]) -> None:
        """Put a segment back; segments come in the order they were taken."""
        self._own[rows] = values["frames"].to(self.device)
        for row in rows.tolist():
            self._after.pop(row, None)
        for place, picture in zip(values["frames_ended"].tolist(), values["frames_after"], strict=True):
            self._after[int(rows[place])] = picture.to(self.device)
        self._newest.copy_(values["frames_newest"].to(self.device))
        self._start = int(rows[-1]) - self.lanes + 1
