"""A ring of transitions: O(1) insertion and sampling, returns to go of what was recorded, append-only segments."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lpds.errors import LpdsError
from lpds.frames import Frames
from lpds.types import Batch, LatentSpec, Shape


class Replay:
    """Rows are written in rounds of ``lanes`` (one per sub-environment, always in the same order)."""

    def __init__(
        self,
        spec: LatentSpec,
        capacity: int,
        kept_noises: int,
        lanes: int,
        device: torch.device,
        extras: Mapping[str, Shape] | None = None,
        kept_next: int = 0,
        expected: int | None = None,
        reserved: int | None = None,
    ) -> None:
        """Reserve the ring.

        Args:
            spec: sizes of a row.
            capacity: rows; rounded up to whole rounds.
            kept_noises: M base-noise pairs stored with a row.
            lanes: rows of one insertion.
            device: where the rows live.
            extras: further fields of a row, by name and shape.
            kept_next: K chunks of the next state stored with a row, with their latents.
            expected: rows that will be written where no chunk is cut short; all of them by default.
            reserved: rows to reserve at once; by default all of them on the CPU, where pages that are never written are
                never taken from the system (what is expected, if all are more than it has), and what is expected elsewhere.

        Raises:
            LpdsError: what is expected would not fit into the machine's memory.
        """
        self.lanes, self.device = lanes, device
        self.capacity = -(-capacity // lanes) * lanes
        self.expected = self.capacity if expected is None else min(self.capacity, expected)
        self.inserted = 0
        self.cuts: list[int] = []
        """Rows, counted from the first insertion, whose episode was broken off after them (:meth:`cut`)."""
        self._extras = dict(extras or {})
        sizes: dict[str, Shape] = {
            "obs": (spec.vector_size,),
            "action": (spec.action_size,),
            "reward": (),
            "discount": (),
            "next_obs": (spec.vector_size,),
            "base_noise": (kept_noises, spec.latent_size),
            "base_action": (kept_noises, spec.action_size),
            "over": (),
            **self._extras,
        }
        if kept_next:
            sizes |= {"next_action": (kept_next, spec.action_size), "next_latent": (kept_next, spec.latent_size)}
        self._next = tuple(name for name in ("next_action", "next_latent") if name in sizes)
        self.row_bytes = {name: 4 * math.prod(size) for name, size in sizes.items()}
        if spec.pictures:
            self.row_bytes["pictures"] = spec.picture_size
        self._room = memory_of(device)
        """Before anything is held."""
        self._check_memory()
        # at once: a GPU that cannot hold it is to say so before the run, and rows that grow are held twice
        usual = self.expected
        if device.type == "cpu":  # a system refuses to promise more than it has
            usual = self.capacity if self.memory <= self._room else self.expected
        self._held = min(self.capacity, max(lanes, usual if reserved is None else reserved))
        with self._told_if_it_does_not_fit():
            self._frames = Frames(spec.picture_size, self._held, lanes, device) if spec.pictures else None
            # empty, not zeros: pages that are never written are never taken from the system
            self._rows = {name: torch.empty((self._held, *size), device=device) for name, size in sizes.items()}

    @property
    def memory(self) -> int:
        """Bytes of a full ring."""
        return self.capacity * sum(self.row_bytes.values())

    def describe_memory(self) -> str:
        """One line: what a full ring takes, and what of a row takes how much of it."""
        row = sum(self.row_bytes.values())
        largest = sorted(self.row_bytes.items(), key=lambda entry: -entry[1])[:4]
        shares = ", ".join(f"{name} {size / row:.0%}" for name, size in largest if size)
        usual = self.expected * row / 1e9
        less = f", {usual:.3g} GB where no chunk is cut short" if self.expected < self.capacity else ""
        ends = "; the pictures after an episode's last decision beside it" if "pictures" in self.row_bytes else ""
        return (
            f"replay: {self.capacity:,} decisions of {row:,} bytes, {self.memory / 1e9:.3g} GB at most{less} ({shares}){ends}"
        )

    def _check_memory(self) -> None:
        if self.expected * sum(self.row_bytes.values()) > self._room:
            raise self._too_large()

    def _too_large(self) -> LpdsError:
        total = self._room
        fits = int(0.8 * total / sum(self.row_bytes.values()))
        if fits < 1:
            largest = max(self.row_bytes, key=lambda name: self.row_bytes[name])
            return LpdsError(
                f"{self.describe_memory()}: not one decision fits into the {total / 1e9:.3g} GB there are, most of which its "
                f"{largest} would take"
            )
        return LpdsError(
            f"{self.describe_memory()} do not fit into the {total / 1e9:.3g} GB of this "
            f"{'machine' if self.device.type == 'cpu' else 'device'}: set replay_size to {fits:,} or less"
        )

    @contextmanager
    def _told_if_it_does_not_fit(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:  # torch's own is a RuntimeError on the CPU and on a GPU
            raise self._too_large() from error

    def __len__(self) -> int:
        return min(self.inserted, self.capacity)

    def insert(self, rows: dict[str, Tensor]) -> None:
        """Write one round: ``lanes`` rows of every field; ``over`` [lanes] is 1 where an episode ended."""
        start = self.inserted % self.capacity
        self._hold(start + self.lanes)
        if self._frames is not None:
            numbers = self._rows["obs"].shape[1]
            pictures, following = (rows[name][:, numbers:] for name in ("obs", "next_obs"))
            self._frames.insert(start, pictures, following, rows["over"])
            rows = {**rows, "obs": rows["obs"][:, :numbers], "next_obs": rows["next_obs"][:, :numbers]}
        for name, value in rows.items():
            self._rows[name][start : start + self.lanes] = value
        self.inserted += self.lanes

    def _hold(self, rows: int) -> None:
        """Have room for so many rows; what is written stays where it is, since nothing is overwritten before all are there."""
        if rows <= self._held:
            return
        doubled = 2 * self._held if self._held >= self.expected else min(2 * self._held, self.expected)
        self._held = min(self.capacity, max(rows, doubled))
        with self._told_if_it_does_not_fit():
            for name, value in self._rows.items():
                grown = torch.empty((self._held, *value.shape[1:]), device=self.device)
                grown[: len(value)] = value
                self._rows[name] = grown
            if self._frames is not None:
                self._frames.grow(self._held)

    def cut(self, lanes: Sequence[int]) -> None:
        """End the episodes under way in some sub-environments at their newest rows: what comes next does not follow them."""
        self.cuts += [self.inserted - self.lanes + lane for lane in lanes if self.inserted]
        self._apply_cuts(self.inserted - self.lanes)

    def _apply_cuts(self, first: int) -> None:
        for row in (number % self.capacity for number in self.cuts if first <= number < self.inserted):
            self._rows["over"][row] = 1.0
            if self._frames is not None:
                self._frames.cut(row)

    def sample(
        self,
        batch_size: int,
        generator: torch.Generator,
        noises: int = 1,
        returns: tuple[Tensor, Tensor, Tensor] | None = None,
        n_step: int = 1,
    ) -> Batch:
        """Draw rows uniformly with replacement, and ``noises`` of each row's M kept pairs.

        Args:
            batch_size: B.
            generator: source of the draw (CPU).
            noises: m kept pairs per row, independent draws unless all M are asked for.
            returns: of :meth:`returns_to_go`: lengthens every transition to the end of what was recorded.
            n_step: rows that a transition spans, fewer where its episode or what was recorded ends sooner.

        Returns:
            A batch whose ``base_noise`` is [B, m, H * L] (m = 0 if nothing is kept).
        """
        rows = self._rows
        index = torch.randint(len(self), (batch_size,), generator=generator).to(self.device)
        kept = rows["base_noise"].shape[1]
        pair: tuple[Tensor, Tensor] | Tensor = index
        if noises < kept:
            column = torch.randint(kept, (batch_size, noises), generator=generator).to(self.device)
            pair = (index.unsqueeze(1), column)
        if returns is not None:
            reward, discount, last = (value[index] for value in returns)
        else:
            reward, discount, last = self._span(index, n_step)
        next_obs = rows["next_obs"][last]
        return Batch(
            self.states(index),
            rows["action"][index],
            reward,
            discount,
            next_obs if self._frames is None else torch.cat([next_obs, self._frames.after(last)], 1),
            rows["base_noise"][pair],
            rows["base_action"][pair],
            {name: rows[name][index] for name in self._extras},
            **{name: rows[name][last] for name in self._next},
        )

    def _span(self, index: Tensor, n_step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Up to ``n_step`` rows of one sub-environment from each of the rows [B]: reward, discount, the last row."""
        rows, last = self._rows, index
        reward, discount = rows["reward"][index], rows["discount"][index]
        if n_step == 1:
            return reward, discount, last
        oldest = self.inserted % self.capacity if self.inserted > self.capacity else 0
        age = (index - oldest) % self.capacity  # 0 is the oldest row held
        going = rows["over"][index] == 0
        for _ in range(n_step - 1):
            if not bool(going.any()):
                break
            age = age + self.lanes
            going = going & (age < len(self))
            following = torch.where(going, (last + self.lanes) % self.capacity, last)
            reward = torch.where(going, reward + discount * rows["reward"][following], reward)
            discount = torch.where(going, discount * rows["discount"][following], discount)
            last = following
            going = going & (rows["over"][last] == 0)
        return reward, discount, last

    def recent(self, rounds: int) -> dict[str, Tensor]:
        """The last rounds in order.

        Args:
            rounds: not more than are held.

        Returns:
            Every field as [rounds, lanes, ...].

        Raises:
            LpdsError: so many are not held.
        """
        count = rounds * self.lanes
        if count > len(self):
            raise LpdsError(
                f"{rounds} rounds are asked of a replay that holds {len(self) // self.lanes}: a larger --replay-size is needed"
            )
        index = (torch.arange(self.inserted - count, self.inserted) % self.capacity).to(self.device)
        return {name: value[index].unflatten(0, (rounds, self.lanes)) for name, value in self._rows.items()}

    def returns_to_go(self) -> tuple[Tensor, Tensor, Tensor]:
        """Monte-Carlo returns of everything that is still held.

        Returns:
            Per row [N]: the discounted reward to the end of its episode or of the recording, the discount of what
            follows that end (0 if it terminated), and the row whose ``next_obs`` follows.
        """
        count, lanes = len(self), self.lanes
        reward, discount, over = (self._rows[name][:count].cpu() for name in ("reward", "discount", "over"))
        total, factor = torch.zeros(lanes), torch.zeros(lanes)
        last = torch.zeros(lanes, dtype=torch.long)
        totals, factors = torch.empty(count), torch.empty(count)
        lasts = torch.empty(count, dtype=torch.long)
        for first in range(self.inserted - lanes, self.inserted - count - 1, -lanes):  # newest round first
            start = first % self.capacity
            rows = slice(start, start + lanes)
            ends = over[rows] > 0 if first + lanes < self.inserted else torch.ones(lanes, dtype=torch.bool)
            total = reward[rows] + torch.where(ends, torch.zeros(lanes), discount[rows] * total)
            factor = torch.where(ends, discount[rows], discount[rows] * factor)
            last = torch.where(ends, torch.arange(start, start + lanes), last)
            totals[rows], factors[rows], lasts[rows] = total, factor, last
        return totals.to(self.device), factors.to(self.device), lasts.to(self.device)

    def states(self, index: Tensor) -> Tensor:
        """Whole states [B, O] of rows [B], pictures and all."""
        obs = self._rows["obs"][index]
        return obs if self._frames is None else torch.cat([obs, self._frames.at(index)], 1)

    def everything(self, name: str) -> Tensor:
        """All rows of one field, of states their numbers; oldest first only while nothing has been overwritten."""
        return self._rows[name][: len(self)]

    def segment(self, first: int) -> dict[str, Tensor]:
        """Rows inserted since count ``first``, for an append-only file; those already overwritten are left out."""
        first = max(first, self.inserted - self.capacity)
        index = torch.arange(first, self.inserted) % self.capacity
        rows = {name: value[index.to(self.device)].cpu().contiguous() for name, value in self._rows.items()}
        return rows if self._frames is None else rows | self._frames.segment(index.to(self.device))

    def restore(self, first: int, rows: dict[str, Tensor]) -> None:
        """Put a segment back; segments come in the order they were taken, and ``cuts`` before them."""
        count = len(rows["obs"])
        self._hold(min(first + count, self.capacity))
        index = (torch.arange(first, first + count) % self.capacity).to(self.device)
        for name in self._rows.keys() & rows.keys():
            self._rows[name][index] = rows[name].to(self.device)
        if self._frames is not None:
            self._frames.restore(index, rows)
        self.inserted = first + count
        self._apply_cuts(first)


def memory_of(device: torch.device) -> int:
    """Bytes that a machine has in all, or a GPU has left."""
    if device.type == "cuda":
        own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # held by torch, and free
        return int(torch.cuda.mem_get_info(device)[0]) + own
    if not hasattr(os, "sysconf"):  # Windows does not tell without further libraries
        return sys.maxsize
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
