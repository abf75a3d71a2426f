"""What a run learns from and how much: the replay, the draws that belong to it, and the updates that are owed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpds.compact import as_learned
from lpds.config import RunSettings
from lpds.diagnose import SHOWN, probe_rows
from lpds.errors import LpdsError, RunFault
from lpds.nn import part
from lpds.records import Records, save_states
from lpds.replay import Replay
from lpds.reward_unit import reward_scale
from lpds.types import Batch, Decoder, Method, Metrics

FITS_TOLD = 30.0
"""Seconds between two lines about the fits of the warm-up."""


class Learning:
    """The side of a run that learns: it takes rounds of rows and has the method update; a :class:`lpds.types.Experience`."""

    def __init__(
        self,
        settings: RunSettings,
        method_name: str,
        method: Method,
        decoder: Decoder,
        out: Path,
        *,
        given: int,
        block: int | None = None,
        generator: torch.Generator,
        device: torch.device,
        records: Records,
        say: Callable[[str], None],
    ) -> None:
        """Make room for what is to come.

        Args:
            settings: of the run.
            method_name: told where it asks for too much.
            method: the learning rule.
            decoder: frozen.
            out: the run folder, for the states that a report decodes at.
            given: decisions of demonstrations that the replay begins with.
            block: rounds that are learned from at once, of a run that goes on: a larger budget does not change them.
            generator: source of every draw of learning.
            device: of everything that is drawn.
            records: take what the updates tell.
            say: takes a line for the user.

        Raises:
            LpdsError: the replay is too small for demonstrations and warm-up, or for what the method learns from at once; or
                its fits are of another policy's returns.
        """
        self.c, self.method_name, self.method = settings, method_name, method
        self.decoder, self.out, self.given = decoder, out, given
        self._generator, self._device, self._records, self._say = generator, device, records, say
        c, chunk = settings, decoder.spec.action_shape[0]
        self._ignored = method.ignores
        self._warmup = 1 if "warmup_steps" in self._ignored else c.warmup_steps
        self.fits = 0 if "warmup_fits" in self._ignored else c.warmup_fits
        """Of the critics, at the end of the warm-up."""
        if self.fits and c.warmup_policy == "own" and method.fits_frozen:
            raise LpdsError(
                f"{method_name} fits its critics to the warm-up as the frozen policy's: warmup_policy own wants warmup_fits 0, "
                f"not {self.fits:,}"
            )
        # a decision takes at least one step, so a run never inserts more rows than it has steps
        read = c.steps if method.reads_replay else self._warmup if method.learns else 0
        capacity = min(c.replay_size, read + c.num_envs + given)
        least = given + -(-c.warmup_steps // chunk)
        if given and c.replay_size < least:
            raise LpdsError(
                f"replay_size {c.replay_size:,} does not hold the {given:,} decisions of the demonstrations beside the "
                f"warm-up's: {least:,} would"
            )
        rounds = method.block_rounds(c.steps // (c.num_envs * chunk))  # asked in any case: it tells the method its budget
        self._block = block or rounds
        """Rounds that are learned from at once; those of the first budget for a run whose budget grew."""
        at_once = self._block * c.num_envs
        if method.recalls and at_once > capacity:
            raise LpdsError(
                f"replay_size {c.replay_size:,} does not hold the {at_once:,} decisions that {method_name} learns from at "
                "once: a larger --replay-size, or fewer --num-envs"
            )
        self.state_decoder = as_learned(decoder)
        """What decodes at the rows of the replay: the decoder, or what stands for it where the rows hold features."""
        kept = (method.kept_noises, c.num_envs, device, method.extras, method.kept_next)
        expected = min(capacity, given + c.steps // chunk + c.num_envs)
        self.replay = Replay(self.state_decoder.spec, capacity, *kept, expected=expected)
        self.updates = 0
        self.warm = False
        self.probe = torch.empty(0, self.state_decoder.spec.obs_size, device=device)
        """States of the warm-up at which what acts is looked at [S, O]; none before its end."""
        self._owed, self._rounds = 0.0, 0
        self.behind = False
        """Whether something came between a round and what is learned from it: a fault, or a stop."""

    def describe(self) -> list[str]:
        """What a user should know before it begins."""
        c, method = self.c, self.method
        lines = [self.replay.describe_memory()] if method.reads_replay else []
        if method.remark:
            lines.append(method.remark)
        if method.learns and self._warmup > c.steps:
            lines.append(
                f"WARNING: the warm-up of {c.warmup_steps:,} steps takes the whole budget of {c.steps:,}, so nothing will be "
                "learned: a smaller --warmup-steps, or more --steps"
            )
        first = -(-self._warmup // self.decoder.spec.action_shape[0])
        if method.learns and method.reads_replay and c.replay_size < first:
            lines.append(
                f"WARNING: replay_size {c.replay_size:,} does not hold the warm-up's {first:,} decisions: all but the last of "
                "them are lost before anything is learned"
            )
        if method.kept_next:
            lines.append(
                f"targets: {method.kept_next} chunks of the next state, decoded when a decision is made and kept with it"
            )
        return lines

    def begin_with(self, rows: dict[str, Tensor]) -> None:
        """Insert the rows of demonstrations [R, ...]; what R has beyond whole rounds is left out."""
        n = self.c.num_envs
        for start in range(0, self.given, n):
            self.replay.insert({name: value[start : start + n] for name, value in rows.items()})

    def due(self, step: int) -> bool:
        """Whether a round that ended at this step is to be learned from."""
        return self.method.learns and step >= self._warmup

    def catch_up(self, step: int, stopped: Callable[[], bool]) -> bool:
        """Learn from the round that was left behind, if there is one; see :meth:`learn`."""
        return not self.behind or self.learn(step, stopped)

    def learn(self, step: int, stopped: Callable[[], bool]) -> bool:
        """Learn from a round.

        Args:
            step: primitive steps so far.
            stopped: asked between the fits of the warm-up, which may take many minutes.

        Returns:
            Whether it did. Where it was stopped what is here is of no use any more, and the checkpoint from before is.

        Raises:
            RunFault: a decoder failed; one that can be lost leaves everything as if this had not begun.
        """
        asks = self.method.decodes and getattr(self.decoder, "can_be_lost", False)
        before = self._copies() if asks else None
        try:
            if not self.warm and not self._end_warmup(step, stopped):
                return False
            self._update()
        except RunFault:
            if before is not None:
                self._go_back(*before)
                self.behind = True
            raise
        self.behind = False
        return True

    def _end_warmup(self, step: int, stopped: Callable[[], bool]) -> bool:
        """Fix every scale by the rows so far, and fit the critics to their returns; demonstrations are among them."""
        c, fits = self.c, self.fits
        self.warm = True
        first, last = self.given, len(self.replay)
        self.probe = self.replay.states(probe_rows(first, last).to(self._device))
        if self.state_decoder is self.decoder:  # a report decodes at them; features are no observations
            save_states(self.out, self.replay.states(probe_rows(first, last, SHOWN).to(self._device)))
        returns = self.replay.returns_to_go()
        scale = 1.0
        if "reward_scale" not in self._ignored:
            scale = c.reward_scale or reward_scale(returns[0][first:], c.return_std, self._say)
        self.method.calibrate(self.replay.everything("obs"), self.replay.everything("action"), scale)
        if fits:
            self._say(f"{step:>8,}  warm-up collected; fitting the critics {fits:,} times to its returns")
        said = time.monotonic()
        for done in range(fits):
            if stopped():
                return False
            if time.monotonic() - said > FITS_TOLD:
                said = time.monotonic()
                self._say(f"{step:>8,}  fitted {done:,} of {fits:,} times")
            batch = self.replay.sample(c.batch_size, self._generator, self._noises, returns)
            self._records.add(self.method.update(batch, self._noise(self._generator), critics_only=True))
        self._say(f"{step:>8,}  warm-up done")
        return True

    def _update(self) -> None:
        """Do the updates that a round adds to what is owed, in whole blocks of rounds."""
        self._owed += self.c.updates_per_decision * self.c.num_envs
        self._rounds += 1
        if self._rounds % self._block == 0:
            updates = math.floor(self._owed + 1e-9)  # twenty times 1.2 are 24, whatever the rounding of the sum
            self._owed -= updates
            for metrics in self.method.learn(self, updates):
                self._records.add(metrics)
                self.updates += 1

    # -- what a method draws from ----------------------------------------------------------------------------------

    @property
    def generator(self) -> torch.Generator:
        """Source of every draw of learning."""
        return self._generator

    def draw(self) -> tuple[Batch, dict[str, Tensor]]:
        """A batch of the replay and the noise of one update."""
        batch = self.replay.sample(self.c.batch_size, self._generator, self._noises, n_step=self.c.n_step)
        return batch, self._noise(self._generator)

    def recent(self, rounds: int) -> dict[str, Tensor]:
        """The last rounds of rows; see :meth:`Replay.recent`."""
        return self.replay.recent(rounds)

    def diagnosis(self, seed: int) -> Metrics | None:
        """What the method tells of itself on a batch and noise of a seed; ``None`` while there is nothing to tell."""
        if not self.updates or len(self.replay) < 8:
            return None
        generator = torch.Generator().manual_seed(seed)
        batch = self.replay.sample(self.c.batch_size, generator, self._noises)
        return self.method.diagnose(batch, self._noise(generator))

    @property
    def _noises(self) -> int:
        return self.method.drawn_noises

    def _noise(self, generator: torch.Generator) -> dict[str, Tensor]:
        shapes = self.method.noise_shapes(self.c.batch_size)
        return {name: torch.randn(shape, generator=generator).to(self._device) for name, shape in shapes.items()}

    # -- what came of it -------------------------------------------------------------------------------------------

    @property
    def has_learned(self) -> bool:
        """Whether the method has anything to show yet; what learns nothing always has."""
        return not self.method.learns or (self.warm and self.method.has_learned(self.updates))

    @property
    def why_not(self) -> str:
        """Why nothing was learned."""
        if not self.warm:
            return f"the warm-up of {self.c.warmup_steps:,} steps took the whole budget"
        if self.method.unlearned:
            return self.method.unlearned
        after, block = f"the {self._rounds * self.c.num_envs:,} decisions after the warm-up", self._block * self.c.num_envs
        if self._rounds < self._block:
            return f"{after} are fewer than the {block:,} that {self.method_name} learns from at once"
        return f"updates_per_decision {self.c.updates_per_decision:g} came to no update in {after}"

    def check_finite(self, step: int) -> None:
        """Stop a learner that diverged, before it is written over a checkpoint that did not.

        Raises:
            LpdsError: what was learned holds NaN or infinity.
        """
        shift = self.method.policy.shift(self.probe) if len(self.probe) else None
        learned = [*self.method.policy_tensors().values(), *(() if shift is None else (shift,))]
        if all(bool(torch.isfinite(value).all()) for value in learned):
            return
        kept = (self.out / "checkpoint" / "checkpoint.json").is_file()
        raise LpdsError(
            f"learning diverged: at step {step} {self.method_name} holds or gives NaN or infinity, which is no fault of "
            "decoder or environment; try a lower lr, or another reward_scale"
            + (f" (the last checkpoint, and the policy in {self.out / 'policy'}, are from before)" if kept else "")
        )

    # -- exact resume ----------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The part of a checkpoint that is tensors; the replay is saved by itself."""
        method = {f"method.{key}": value for key, value in self.method.tensors().items()}
        return method | {"generator": self._generator.get_state(), "probe": self.probe}

    def facts(self) -> dict[str, Any]:
        """The part of a checkpoint that is JSON."""
        return {
            "updates": self.updates,
            "owed": self._owed,
            "warm": self.warm,
            "rounds": self._rounds,
            "block": self._block,
            "given": self.given,
            "behind": self.behind,
        }

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go back to :meth:`tensors` and :meth:`facts`, to the bit."""
        self.method.load_tensors(part(tensors, "method."))
        self._generator.set_state(tensors["generator"])
        self.probe = tensors["probe"].to(self._device)
        self.updates, self._owed, self.warm = (facts[key] for key in ("updates", "owed", "warm"))
        self._rounds, self.behind = facts.get("rounds", 0), facts.get("behind", False)

    def _copies(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
        """Copies of all that :meth:`learn` changes."""
        return self.tensors(), self.facts(), {key: value.clone() for key, value in self._records.sums.items()}

    def _go_back(self, tensors: dict[str, Tensor], facts: dict[str, Any], sums: dict[str, Tensor]) -> None:
        self.restore(tensors, facts)
        self._records.sums = sums
