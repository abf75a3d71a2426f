"""The loop that joins collector, replay and method. It owns the budget, the order of things and what is written when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpds import remarks
from lpds.best import BestPoint
from lpds.checkpoint import CheckpointStore
from lpds.collect import Collector
from lpds.compact import as_learned
from lpds.config import CURVE_SEED, RunSettings
from lpds.diagnose import SHOWN, FrozenEntropy, action_entropy, frozen_entropy, probe_rows
from lpds.envs.build import EnvLike, end_to_end, make_env, make_eval_env, vector_places
from lpds.errors import LpdsError, RunFault
from lpds.evaluation import EvalReport, evaluate_policy, seed_ignored
from lpds.files import how_to_resume
from lpds.log import Display
from lpds.policy import POLICY_FILES, save_policy, save_states
from lpds.records import Records
from lpds.replay import Replay
from lpds.scale import reward_scale
from lpds.types import Batch, Decoder, Method, Policy

NEVER = 2**62
"""Step of what will not be due again: written for the last time at the end of the budget."""


class Runner:
    """One run: everything it has is here or in what it holds, and a checkpoint keeps all of it."""

    def __init__(
        self,
        settings: RunSettings,
        method_name: str,
        method: Method,
        decoder: Decoder,
        env: EnvLike,
        out: Path,
        *,
        generator: torch.Generator,
        device: torch.device,
        display: Display,
        tensorboard: bool = False,
        demonstrations: dict[str, Tensor] | None = None,
        held: int = 0,
    ) -> None:
        # held: decisions of demonstrations that a checkpoint's replay has, in place of the demonstrations themselves
        self.c, self.method_name, self.method, self.decoder, self.out = settings, method_name, method, decoder, out
        self._env, self._generator, self._device, self._display = env, generator, device, display
        c, chunk = settings, decoder.spec.action_shape[0]
        self.collector = Collector(
            make_env(env, c.num_envs, chunk, c.seed, end_at_success=c.end_at_success, keep_dict=decoder.spec.takes_dict),
            decoder,
            seed=c.seed,
            gamma=c.gamma,
            discount=c.discount,
            reward_offset=c.reward_offset,
            kept_noises=method.kept_noises,
            device=device,
            extras=method.extras,
            kept_next=method.kept_next,
        )
        # a decision takes at least one step, so a run never inserts more rows than it has steps
        self._given = held if demonstrations is None else len(demonstrations["obs"]) // c.num_envs * c.num_envs
        capacity = min(c.replay_size, c.steps + c.num_envs + self._given)
        least = self._given + -(-c.warmup_steps // chunk)
        if self._given and c.replay_size < least:
            raise LpdsError(
                f"replay_size {c.replay_size:,} does not hold the {self._given:,} decisions of the demonstrations beside the "
                f"warm-up's: {least:,} would"
            )
        self._block = method.block_rounds(c.steps // (c.num_envs * chunk))
        """Rounds that are learned from at once; those of the first budget for a run whose budget grew."""
        block = self._block * c.num_envs
        if getattr(method, "recalls", False) and block > capacity:
            raise LpdsError(
                f"replay_size {c.replay_size:,} does not hold the {block:,} decisions that {method_name} learns from at once: "
                "a larger --replay-size, or fewer --num-envs"
            )
        self._learned = as_learned(decoder)
        kept = (method.kept_noises, c.num_envs, device, method.extras, method.kept_next)
        expected = self._given + c.steps // chunk + c.num_envs
        self.replay = Replay(self._learned.spec, capacity, *kept, expected=expected)
        for line in (*remarks.of_order(end_to_end(self.collector.env.first)), self.replay.describe_memory()):
            display.say(line)
        if method.remark:
            display.say(method.remark)
        self._warmup = 1 if "warmup_steps" in getattr(method, "ignores", ()) else c.warmup_steps
        if method.learns and self._warmup > c.steps:
            display.say(
                f"WARNING: the warm-up of {c.warmup_steps:,} steps takes the whole budget of {c.steps:,}, so nothing will be "
                "learned: a smaller --warmup-steps, or more --steps"
            )
        if method.kept_next:
            display.say(
                f"targets: {method.kept_next} chunks of the next state, decoded when a decision is made and kept with it"
            )
        if demonstrations is not None:
            rows = self.collector.complete(demonstrations, method.target)
            for start in range(0, self._given, c.num_envs):
                self.replay.insert({name: value[start : start + c.num_envs] for name, value in rows.items()})
        self._best = BestPoint() if c.keep == "best" else None
        self._none_better = False
        """Whether what is looked at is the frozen policy, which no point of the curve is above."""
        self.store = CheckpointStore(out / "checkpoint")
        self.records = Records(out, device=device, say=display.say, tensorboard=tensorboard)
        self.step = self.updates = 0
        self._owed, self._warm, self._rounds = 0.0, False, 0
        self._behind = False  # a fault came between a round and what is learned from it
        self._probe = torch.empty(0, self._learned.spec.obs_size, device=device)  # states of the entropy, from the warm-up
        self._frozen_entropy: FrozenEntropy | None = None
        self._begun: dict[int, npt.NDArray[np.float32]] = {}  # first observations of an evaluation, by its seed
        self.ignores_seed = False
        """Whether an episode of one seed was seen to begin in two ways."""
        self._next = {"log": 0, "eval": 0, "checkpoint": c.checkpoint_every}
        self.stop_requested = False

    def train(self) -> bool:
        """Run to the end of the budget.

        Returns:
            Whether the end was reached; False after a request to stop, with everything saved.

        Raises:
            RunFault: an environment failed, or a remote decoder; the state before that round, or before what it would
                have learned from the round, is saved.
        """
        with torch.enable_grad():  # a user's file may have turned gradients off for all of the process
            return self._train()

    def _train(self) -> bool:
        c = self.c
        try:
            if self._behind:
                self._learn()
            while self.step < c.steps:
                self._due()
                if self.stop_requested:
                    self.save()
                    return False
                rows, ended, taken = self.collector.step(self.method.behaviour, self._scale, self.method.target)
                if not self.step:
                    self._display.say(remarks.of_success(self.collector.env.success_key, c.end_at_success))
                self.replay.insert(rows)
                self.step += taken
                self.records.episodes(self.step, ended)
                if self._warm:
                    self.method.observe([record.lane for record in ended], [record.total for record in ended])
                if self.step >= self._warmup and self.method.learns:
                    self._learn()
            if not self.learned:
                self._display.say(f"NOTHING WAS LEARNED: {self.why_not}")
            self._due(last=True)
        except RunFault as fault:
            self.save()
            raise type(fault)(f"{fault}; the run is saved at step {self.step}: {how_to_resume(self.out)}") from fault
        return True

    def _learn(self) -> None:
        """Learn from a round; a decoder that is lost on the way leaves everything as if that had not begun."""
        before = self._learner_state() if getattr(self.decoder, "can_be_lost", False) else None
        try:
            self._learn_from_round()
        except RunFault:
            if before is not None:
                self._set_learner_state(*before)
                self._behind = True
            raise
        self._behind = False

    def _learn_from_round(self) -> None:
        c = self.c
        if not self._warm:
            self._warm = True
            first, last = self._given, len(self.replay)
            self._probe = self.replay.states(probe_rows(first, last).to(self._device))
            if self._learned is self.decoder:  # a report decodes at them; features are no observations
                save_states(self.out, self.replay.states(probe_rows(first, last, SHOWN).to(self._device)))
            returns = self.replay.returns_to_go()
            unused = getattr(self.method, "ignores", ())
            scale = (
                1.0
                if "reward_scale" in unused
                else c.reward_scale or reward_scale(returns[0][self._given :], self._display.say)
            )
            actions = self.replay.everything("action")
            self.method.calibrate(self.replay.everything("obs"), actions, scale)
            for line in remarks.of_actions(actions[self._given :], self.collector.env.primitive_action_space):
                self._display.say(line)
            fits = 0 if "warmup_fits" in unused else c.warmup_fits
            for _ in range(fits):
                batch = self.replay.sample(c.batch_size, self._generator, self._noises, returns)
                self.records.add(self.method.update(batch, self._noise(), critics_only=True))
            fitted = f": critics fitted {fits} times to its returns" if fits else ""
            self._display.say(f"{self.step:>8,}  warm-up done{fitted}")
        self._owed += c.updates_per_decision * c.num_envs
        self._rounds += 1
        if self._rounds % self._block == 0:
            updates = int(self._owed)
            self._owed -= updates
            for metrics in self.method.learn(self, updates):
                self.records.add(metrics)
                self.updates += 1

    @property
    def why_not(self) -> str:
        """Why nothing was learned."""
        if self._none_better:
            return "no point of the learning curve is above the frozen policy's (keep best)"
        if self._warm and hasattr(self.method, "found"):
            return "no episode ended after the warm-up"
        if self._warm:
            after, block = f"the {self._rounds * self.c.num_envs:,} decisions after the warm-up", self._block * self.c.num_envs
            if self._rounds < self._block:
                return f"{after} are fewer than the {block:,} that {self.method_name} learns from at once"
            return f"updates_per_decision {self.c.updates_per_decision:g} came to no update in {after}"
        return f"the warm-up of {self.c.warmup_steps:,} steps took the whole budget"

    @property
    def learned(self) -> bool:
        """Whether the method has anything to show yet; what learns nothing always has."""
        if self._none_better:
            return False
        return not self.method.learns or (self._warm and getattr(self.method, "found", self.updates > 0))

    @property
    def _scale(self) -> float:
        """What acts: the frozen policy until the warm-up is over; what learns nothing has no warm-up."""
        return 1.0 if self._warm or not self.method.learns else 0.0

    @property
    def generator(self) -> torch.Generator:
        """Source of every draw of learning."""
        return self._generator

    def draw(self) -> tuple[Batch, dict[str, Tensor]]:
        """A batch of the replay and the noise of one update."""
        batch = self.replay.sample(self.c.batch_size, self._generator, self._noises, n_step=self.c.n_step)
        return batch, self._noise()

    def recent(self, rounds: int) -> dict[str, Tensor]:
        """The last rounds of rows; see :meth:`Replay.recent`."""
        return self.replay.recent(rounds)

    def _due(self, last: bool = False) -> None:
        """Write what is due at this step: a row, a point of the learning curve, a checkpoint - in this order."""
        every = self._every
        for what, act in (("log", self._log), ("eval", self._evaluate_curve), ("checkpoint", self.save)):
            if every[what] and self._next[what] != NEVER and (last or self.step >= self._next[what]):
                before = self._next[what]
                # set before acting, since a checkpoint holds it; what failed is due again after a resume
                self._next[what] = NEVER if last else (self.step // every[what] + 1) * every[what]
                try:
                    act()
                except Exception:
                    self._next[what] = before
                    raise

    @property
    def _every(self) -> dict[str, int]:
        """Primitive steps between two rows, points of the curve and checkpoints."""
        c = self.c
        return {"log": min(c.log_every, max(1, c.steps // 25)), "eval": c.eval_every, "checkpoint": c.checkpoint_every}

    # -- records ---------------------------------------------------------------------------------------------------

    def _log(self) -> None:
        self._check_learned()
        measured: dict[str, float] = {}
        if self.updates and len(self.replay) >= 8:
            probe = torch.Generator().manual_seed(self.c.seed)
            batch = self.replay.sample(self.c.batch_size, probe, self._noises)
            measured |= {key: float(value) for key, value in self.method.diagnose(batch, self._noise(probe)).items()}
            if self._learned.decodes_states:
                if self._frozen_entropy is None:  # a function of the probe's states, so a resumed run finds the same
                    self._frozen_entropy = frozen_entropy(self.method.policy, self._learned, self._probe)
                measured["action_entropy"] = action_entropy(
                    self.method.policy, self._learned, self._probe, self._frozen_entropy
                )
                measured["action_entropy_frozen"] = self._frozen_entropy.entropy
        row = self.records.metrics(self.step, self.updates, measured)
        self._display.show(row, last=self.step >= self.c.steps)

    def _evaluate_curve(self) -> None:
        report = self.evaluate(self.c.eval_episodes, self.c.eval_seed + CURVE_SEED, float(self.learned), "curve")
        if self._best is not None:
            self._best.offer(report, self.step, self.method.tensors if self.learned else None)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """For a while, the method as the run keeps it: as it is, or as it was at the best point of its curve."""
        if self._best is None:
            yield
            return
        now = self.method.tensors()
        self._none_better = self._best.tensors is None and self.learned and self.method.learns
        try:
            if self._best.tensors is not None:
                self.method.load_tensors(self._best.tensors)
            yield
        finally:
            self.method.load_tensors(now)
            self._none_better = False

    @property
    def kept_step(self) -> int | None:
        """Primitive steps at the point that is kept; ``None`` where it is the end."""
        return None if self._best is None else self._best.step

    def evaluate(
        self, episodes: int, seed: int, scale: float, kind: str, noise_scale: float = 1.0, policy: Policy | None = None
    ) -> EvalReport:
        """Evaluate what acts now, or another policy, and write one line an episode.

        Before anything is learned the frozen policy acts.
        """
        chunk = self.decoder.spec.action_shape[0]
        report = evaluate_policy(
            policy or self.method.policy,
            self.decoder,
            lambda lanes: make_eval_env(self._env, lanes, chunk, keep_dict=self.decoder.spec.takes_dict),
            episodes=episodes,
            seed=seed,
            scale=scale if self.learned else 0.0,
            noise_scale=noise_scale,
            device=self._device,
        )
        report = replace(report, scale=scale)
        if not self.ignores_seed and not np.array_equal(self._begun.setdefault(seed, report.first_obs), report.first_obs):
            self.ignores_seed = True
            self._display.say(f"{seed_ignored(self.collector.env.name)}, and a resumed run is another one")
        self.records.evaluation(self.step, kind, report)
        return report

    # -- exact resume ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint and the policy as it is now.

        Raises:
            LpdsError: what is learned holds NaN; the checkpoint before stays.
        """
        self._check_learned()
        tensors = {f"method.{key}": value for key, value in self.method.tensors().items()}
        tensors |= {f"collector.{key}": value for key, value in self.collector.tensors().items()}
        tensors |= {f"sums.{key}": value for key, value in self.records.tensors().items()}
        if self._best is not None:
            tensors |= {f"best.{key}": value for key, value in (self._best.tensors or {}).items()}
        tensors |= {"generator": self._generator.get_state(), "probe": self._probe}
        facts = {
            "step": self.step,
            "updates": self.updates,
            "owed": self._owed,
            "warm": self._warm,
            "rounds": self._rounds,
            "block": self._block,
            "given": self._given,
            "behind": self._behind,
            "ignores_seed": self.ignores_seed,
            "best": None if self._best is None else self._best.facts(),
            **self.records.facts(),
            "next": self._next,
            "episodes": self.collector.facts(),
        }
        # the checkpoint last: with it in place there is nothing left to write at this step
        # a fresh actor may act at random: until there is something to show, what is saved is the frozen policy
        self._save_policy()
        self.store.save(tensors, facts, self.replay)

    def _save_policy(self) -> None:
        with self.kept():
            learned = self.method if self.learned else None
            save_policy(self.out / "policy", self.method_name, learned, self.decoder, vector_places(self.collector.env.first))

    def _check_learned(self) -> None:
        """Stop a learner that diverged, before it is written over a checkpoint that did not."""
        shift = self.method.policy.shift(self._probe) if len(self._probe) else None
        learned = [*self.method.policy_tensors().values(), *(() if shift is None else (shift,))]
        if all(bool(torch.isfinite(value).all()) for value in learned):
            return
        kept = (self.out / "checkpoint" / "checkpoint.json").is_file()
        raise LpdsError(
            f"learning diverged: at step {self.step} {self.method_name} holds or gives NaN or infinity, which is no fault of "
            "decoder or environment; try a lower lr, or another reward_scale"
            + (f" (the last checkpoint, and the policy in {self.out / 'policy'}, are from before)" if kept else "")
        )

    def _learner_state(self) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor], Tensor, tuple[Any, ...]]:
        """Copies of all that :meth:`_learn` changes."""
        sums = {key: value.clone() for key, value in self.records.sums.items()}
        counters = (self._warm, self._owed, self._rounds, self.updates)
        return self.method.tensors(), self._generator.get_state(), sums, self._probe, counters

    def _set_learner_state(
        self, method: dict[str, Tensor], generator: Tensor, sums: dict[str, Tensor], probe: Tensor, counters: tuple[Any, ...]
    ) -> None:
        self.method.load_tensors(method)
        self._generator.set_state(generator)
        self.records.sums, self._probe = sums, probe
        self._warm, self._owed, self._rounds, self.updates = counters

    def restore(self) -> None:
        """Go back to the last checkpoint, to the bit."""
        tensors, facts = self.store.load()

        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        self.method.load_tensors(part("method."))
        self._generator.set_state(tensors["generator"])
        self._probe = tensors["probe"].to(self._device)
        self.store.load_replay(facts, self.replay)
        self.step, self.updates, self._owed, self._warm = (facts[key] for key in ("step", "updates", "owed", "warm"))
        self._rounds, self._behind = facts.get("rounds", 0), facts.get("behind", False)
        self._block = facts.get("block", self._block)
        self.ignores_seed = facts.get("ignores_seed", False)
        self.records.restore(part("sums."), facts, self.step, self.updates)
        if self._best is not None:
            self._best.restore(facts["best"], part("best."))
        self._next = facts["next"]
        if self.step < self.c.steps:  # a finished run was given a larger budget: what its end wrote is written
            every = self._every
            self._next = {
                what: (self.step // max(1, every[what]) + 1) * every[what] if at == NEVER else at
                for what, at in self._next.items()
            }
        broken = self.collector.restore(part("collector."), facts["episodes"])
        self.replay.cut([lane for lane in broken if facts["episodes"][lane]["length"]])
        # only now that nothing can fail any more: rows behind the checkpoint go, among them the last evaluation's
        (self.out / "summary.json").unlink(missing_ok=True)
        if not all((self.out / "policy" / name).is_file() for name in POLICY_FILES):  # somebody lost it
            self._save_policy()
        self.records.open(facts["log_sizes"])
        for complaint in broken.values():
            self._display.say(complaint)

    def close(self) -> None:
        """Close environments and files."""
        self.collector.env.close()
        self.records.close()

    # -- small parts -----------------------------------------------------------------------------------------------

    @property
    def _noises(self) -> int:
        return getattr(getattr(self.method, "settings", None), "distill_noises", 1)

    def _noise(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        source = generator or self._generator
        shapes = self.method.noise_shapes(self.c.batch_size)
        return {name: torch.randn(shape, generator=source).to(self._device) for name, shape in shapes.items()}
