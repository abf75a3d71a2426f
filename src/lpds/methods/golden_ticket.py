"""Golden ticket: one constant initial noise for every state, found by search (arXiv 2603.15757).

    maximise over w   E[ return of the frozen policy that always decodes from w ]

No networks. ``tickets`` noises are drawn from N(0, I); every training episode plays one of them from start to end. The
search is sequential halving: the budget is cut into equal phases, in each the surviving ticket with the fewest episodes
plays next, and at a phase's end the better half by mean return survives, until one is left. What acts is the best
survivor so far.

Where this differs from the paper, which evaluates every ticket on the same number of episodes: halving spends the same
budget on the tickets that are still in question.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lpds.config import GoldenTicketSettings
from lpds.errors import LpdsError
from lpds.methods.learner import LatentPolicy, Learner
from lpds.types import Batch, Decoder, Experience, Metrics

MAX_LANES = 4096
"""Sub-environments that can play at once."""


class TicketPolicy(LatentPolicy):
    """``w`` is the ticket [H, L] in every state; ``free`` [L] of bool are the columns that it may move, all for ``None``."""

    def __init__(self, ticket: Tensor, free: Tensor | None = None) -> None:
        self.ticket, self.free = ticket, free

    def latent(self, obs: Tensor, eps: Tensor, scale: float) -> Tensor:
        """``sqrt(1 - scale^2) eps + scale ticket`` [B, H, L], whose mean square norm stays where the ticket has the prior's."""
        if scale == 0.0:
            return eps
        return _where(self.free, math.sqrt(1.0 - scale**2) * eps + scale * self.ticket, eps)


class SearchPolicy(LatentPolicy):
    """Sub-environment n plays ticket ``playing[n]`` from reset to reset; on eps while that is -1."""

    def __init__(self, tickets: Tensor, playing: Tensor, free: Tensor | None = None) -> None:
        self.tickets, self.playing, self.free = tickets, playing, free

    def latent(self, obs: Tensor, eps: Tensor, scale: float) -> Tensor:
        """The tickets' rows [B, H, L]; ``scale`` 0 gives eps.

        Raises:
            LpdsError: more than :data:`MAX_LANES` sub-environments.
        """
        if len(eps) > MAX_LANES:
            raise LpdsError(
                f"golden-ticket searches in at most {MAX_LANES} sub-environments at once, not {len(eps)} (num_envs)"
            )
        playing = self.playing[: len(eps), None, None].to(eps.device)
        if scale == 0.0:
            return eps
        return _where(self.free, torch.where(playing < 0, eps, self.tickets[playing[:, 0, 0]]), eps)


class GoldenTicket(Learner[LatentPolicy]):
    """The search; its state is the tickets, what they earned, and who plays which."""

    ignores = (
        *("updates_per_decision", "batch_size", "n_step", "warmup_fits", "demos"),
        *("gamma", "discount", "reward_scale", "return_std", "reward_offset"),
        *("warmup_steps", "warmup_policy", "replay_size"),
    )
    reads_replay = False
    divides_budget = True
    unlearned = "no episode ended after the warm-up"

    def __init__(
        self, settings: GoldenTicketSettings, decoder: Decoder, *, generator: torch.Generator, device: torch.device
    ) -> None:
        """Draw the tickets.

        Args:
            settings: see :class:`GoldenTicketSettings`.
            decoder: frozen; only its shapes are used.
            generator: draws the tickets.
            device: of the tickets.
        """
        super().__init__()
        self.decodes, self.sees_pictures = False, True
        count = settings.tickets
        self.settings = settings
        self.free = _free(decoder)
        self.tickets = torch.randn((count, *decoder.spec.latent_shape), generator=generator).to(device)
        self.totals, self.plays = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.long)
        self.alive = torch.ones(count, dtype=torch.bool)
        self.round, self.halvings = torch.zeros((), dtype=torch.long), torch.zeros((), dtype=torch.long)
        self.best = torch.zeros((), dtype=torch.long)
        # the ticket under way in every sub-environment; -1 until the episode that began before the search is over. Counts
        # and choices stay on the CPU, whatever the device.
        self.playing = torch.full((MAX_LANES,), -1)
        self._total_rounds = 1
        self.state.scalars = {
            name: getattr(self, name)
            for name in ("tickets", "totals", "plays", "alive", "round", "halvings", "best", "playing")
        }

    @property
    def policy(self) -> LatentPolicy:  # type: ignore[override]
        """The best survivor."""
        return TicketPolicy(self.tickets[self.best], self.free)

    def has_learned(self, updates: int) -> bool:
        """Whether any ticket was played to the end of an episode; there are no updates."""
        return bool((self.plays > 0).any())

    @property
    def caveat(self) -> str:
        """A search that its budget did not finish."""
        halvings, unplayed, played = int(self.halvings), int((self.plays == 0).sum()), int(self.plays[self.best])
        if halvings >= self._phases - 1 and not unplayed:  # the last one comes with the budget's last round
            return ""
        return (
            f"the budget was too small for the search: {halvings} of its {self._phases} halvings, {unplayed} of "
            f"{len(self.plays)} tickets never played; the best was chosen by {played} episode{'s' * (played != 1)} of its own"
        )

    @property
    def _phases(self) -> int:
        return max(1, math.ceil(math.log2(self.settings.tickets)))

    @property
    def behaviour(self) -> LatentPolicy:
        """The search."""
        return SearchPolicy(self.tickets, self.playing, self.free)

    def block_rounds(self, total_rounds: int) -> int:
        """Count every round; the phases are shares of the budget."""
        self._total_rounds = max(1, total_rounds)
        return 1

    def observe(self, lanes: list[int], returns: list[float]) -> None:
        """Book the returns of finished episodes and hand out the next tickets."""
        for lane, total in zip(lanes, returns, strict=True):
            ticket = self.playing[lane]
            if ticket >= 0:
                self.totals[ticket] += total
                self.plays[ticket] += 1
        self.playing[lanes] = -1
        for lane in lanes:
            self.playing[lane] = self._next()
        self.best.copy_(self._ranked()[0])

    def learn(self, experience: Experience, updates: int) -> Iterator[Metrics]:
        """Halve the survivors at the end of a phase, or as soon after it as each of them has been played."""
        self.round += 1
        over = int(self._phases * min(1.0, float(self.round) / self._total_rounds))
        while self.halvings < over and bool((self.plays[self.alive] > 0).all()):
            keep = self._ranked()[: math.ceil(int(self.alive.sum()) / 2)]
            self.alive.zero_()
            self.alive[keep] = True
            self.halvings += 1
        return iter(())

    def update(self, batch: Batch, noise: dict[str, Tensor], *, critics_only: bool = False) -> Metrics:
        """There are no networks to update."""
        return {}

    def _means(self) -> Tensor:
        """Mean return of every ticket; minus infinity where it was not played."""
        return torch.where(self.plays > 0, self.totals / self.plays.clamp(min=1), -math.inf)

    def _ranked(self) -> Tensor:
        """The survivors, best first; the first drawn leads a tie."""
        means = torch.where(self.alive, self._means(), -math.inf)
        order = torch.argsort(means, descending=True, stable=True)
        return order[self.alive[order]]

    def _next(self) -> Tensor:
        """The survivor with the fewest episodes, those under way included."""
        under_way = torch.bincount(self.playing[self.playing >= 0], minlength=len(self.plays))
        asked = torch.where(self.alive, self.plays + under_way, torch.iinfo(torch.long).max)
        return asked.argmin()

    def policy_tensors(self) -> dict[str, Tensor]:
        """The ticket."""
        return {"ticket": self.tickets[self.best].detach().clone()}

    def policy_settings(self) -> dict[str, Any]:
        """What :meth:`open_policy` needs beside the ticket."""
        return {"tickets": self.settings.tickets, "keeps_masked": True, "plays": self.plays.tolist()}

    @staticmethod
    def open_policy(decoder: Decoder, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TicketPolicy:
        """Build the policy of a saved ticket; one from before masked columns were kept had moved them in its search, too."""
        return TicketPolicy(tensors["ticket"], _free(decoder) if settings.get("keeps_masked") else None)


def _free(decoder: Decoder) -> Tensor | None:
    """[L] of bool, the columns of the latent that may be steered; ``None``: all."""
    free = decoder.spec.free
    return None if free is None else torch.tensor(free)


def _where(free: Tensor | None, moved: Tensor, eps: Tensor) -> Tensor:
    """``moved`` [B, H, L] in the free columns, ``eps`` in the others."""
    return moved if free is None else torch.where(free.to(eps.device), moved, eps)
