"""Prepared observations that a server keeps for its clients, by number."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lpds.wire import WireError


@dataclass(frozen=True)
class Kept:
    """What a decoder made of some observations."""

    context: Any
    rows: int
    owner: object
    """Who may ask for it."""


class Contexts:
    """All connections' contexts; beyond so many rows together, those unused for longest go. For one thread only."""

    def __init__(self, most_rows: int) -> None:
        self._most, self._kept = most_rows, OrderedDict[int, Kept]()

    @property
    def rows(self) -> int:
        """Rows that are kept now."""
        return sum(kept.rows for kept in self._kept.values())

    def make_room(self, rows: int) -> None:
        """Let go of what would be too much beside so many new rows, which may be more than all that is kept."""
        while self._kept and self.rows + rows > self._most:
            self._kept.popitem(last=False)

    def add(self, kept: Kept) -> int:
        """Keep a context; its number is no other's, in whatever server's life."""
        number = secrets.randbits(62)
        self._kept[number] = kept
        return number

    def find(self, number: Any, owner: object) -> Kept:
        """The context of a number.

        Raises:
            WireError: it is not kept, or not this owner's.
        """
        if type(number) is not int:
            raise WireError("message", "context must be a number that was given")
        kept = self._kept.get(number)
        if kept is None or kept.owner is not owner:
            raise WireError("context", "that context is not kept any more: show the observation again")
        self._kept.move_to_end(number)
        return kept

    def forget(self, numbers: Iterable[Any], owner: object) -> None:
        """Let go of contexts that are not needed any more; unknown numbers are nothing."""
        for number in numbers:
            if type(number) is int and number in self._kept and self._kept[number].owner is owner:
                del self._kept[number]

    def leave(self, owner: object) -> None:
        """Let go of everything of one owner."""
        self.forget([number for number, kept in self._kept.items() if kept.owner is owner], owner)
