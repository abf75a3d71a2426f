"""When something is due: every so many primitive steps, and once more at the end of the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping

NEVER = 2**62
"""Step of what will not be due again: done for the last time at the end of the budget."""


class Schedule:
    """The next step at which each of some things is due; one whose period is 0 never is."""

    def __init__(self, every: Mapping[str, int], first: Mapping[str, int]) -> None:
        """Start at ``first``; ``every`` has the primitive steps between two times."""
        self.every, self.next = dict(every), dict(first)

    def do(self, step: int, acts: Mapping[str, Callable[[], None]], *, last: bool = False) -> None:
        """Do what is due at this step, in the order of ``acts``; at the end of the budget, all of it."""
        for what, act in acts.items():
            if self.every[what] and self.next[what] != NEVER and (last or step >= self.next[what]):
                before = self.next[what]
                # set before acting, since a checkpoint holds it; what failed is due again after a resume
                self.next[what] = NEVER if last else self._after(what, step)
                try:
                    act()
                except Exception:
                    self.next[what] = before
                    raise

    def restore(self, at: Mapping[str, int], step: int, *, ended: bool) -> None:
        """Go back to a checkpoint's; where the budget has grown since (not ``ended``), what had ended goes on."""
        self.next = {what: self._after(what, step) if n == NEVER and not ended else n for what, n in at.items()}

    def _after(self, what: str, step: int) -> int:
        every = self.every[what]
        return (step // max(1, every) + 1) * every
