"""The loop that joins collector, replay and method. It owns the budget, the order of things and what is written when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
from lpds.config import CURVE_SEED, RunSettings
from lpds.diagnose import FrozenEntropy, action_entropy, frozen_entropy
from lpds.envs.build import EnvLike, end_to_end, make_env, make_eval_env, vector_places
from lpds.errors import LpdsError, RunFault
from lpds.evaluation import EvalReport, evaluate_policy, seed_ignored
from lpds.fields import to_json
from lpds.files import how_to_resume
from lpds.learning import Learning
from lpds.log import Display
from lpds.nn import part
from lpds.policy import policy_is_whole, save_policy
from lpds.records import Records
from lpds.run_folder import POLICY_SET_ASIDE
from lpds.schedule import Schedule
from lpds.types import Decoder, Method, Policy

MAY_CHANGE = ("steps", "demos", "device", "threads", "checkpoint_every", "eval_envs")
"""Settings of a run that a checkpoint does not hang on: demonstrations are in its replay, wherever their file is now."""


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
        block: int | None = None,
    ) -> None:
        """Make everything; nothing is written yet.

        Args:
            settings: of the run.
            method_name: its name in the registry.
            method: the learning rule.
            decoder: the frozen policy.
            env: its environments, which this opens and closes.
            out: the run folder.
            generator: source of every draw of learning.
            device: of what learns.
            display: where a user is told.
            tensorboard: write its scalars, too.
            demonstrations: rows for the replay [N, ...], or
            held: how many of them a checkpoint's replay has.
            block: rounds that a checkpoint's run learns from at once.

        Raises:
            LpdsError: settings that do not go together, or an environment that does not fit.
            RunFault: an environment or a decoder that fails at the first reset; no environment stays open.
        """
        self.c, self.method_name, self.method, self.decoder, self.out = settings, method_name, method, decoder, out
        self._env, self._device, self._display = env, device, display
        c, chunk = settings, decoder.spec.action_shape[0]
        self.records = Records(out, device=device, say=display.say, tensorboard=tensorboard)
        self.learning = Learning(
            c,
            method_name,
            method,
            decoder,
            out,
            given=held if demonstrations is None else len(demonstrations["obs"]) // c.num_envs * c.num_envs,
            block=block,
            generator=generator,
            device=device,
            records=self.records,
            say=display.say,
        )
        lanes = make_env(env, c.num_envs, chunk, c.seed, end_at_success=c.end_at_success, keep_dict=decoder.spec.takes_dict)
        try:
            self.collector = Collector(
                lanes,
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
            running = [f"WARNING: {line}; {remarks.FREEZE}" for line in remarks.of_statistics(lanes.first)]
            for line in (*remarks.of_order(end_to_end(lanes.first)), *running, *self.learning.describe()):
                display.say(line)
            if demonstrations is not None:
                self.learning.begin_with(self.collector.complete(demonstrations, method.target))
        except BaseException:
            lanes.close()
            raise
        self._best = BestPoint() if c.keep == "best" else None
        self._none_better = False
        """Whether what is looked at is the frozen policy, which no point of the curve is above."""
        self.store = CheckpointStore(out / "checkpoint")
        self.step = 0
        self._frozen_entropy: FrozenEntropy | None = None
        self._begun: dict[int, npt.NDArray[np.float32]] = {}  # first observations of an evaluation, by its seed
        self.ignores_seed = False
        """Whether an episode of one seed was seen to begin in two ways."""
        every = {"log": min(c.log_every, max(1, c.steps // 25)), "eval": c.eval_every, "checkpoint": c.checkpoint_every}
        self._schedule = Schedule(every, {"log": 0, "eval": 0, "checkpoint": c.checkpoint_every})
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
        c, learning, env = self.c, self.learning, self.collector.env
        try:
            if not learning.catch_up(self.step, self._asked_to_stop):
                return False  # what was saved before it stands
            began = self.step
            while self.step < c.steps:
                self._due()
                if self.stop_requested:
                    self.save()
                    return False
                rows, ended, taken = self.collector.step(self.method.behaviour, self._scale, self.method.target)
                if self.step == began:  # of a run, and again where it goes on
                    self._display.say(remarks.of_success(env.success_key, c.end_at_success))
                learning.replay.insert(rows)
                self.step += taken
                self.records.episodes(self.step, ended)
                if learning.warm:
                    self.method.observe([record.lane for record in ended], [record.total for record in ended])
                if learning.due(self.step):
                    if not learning.warm:
                        for line in remarks.of_endless([e["length"] for e in self.collector.facts()], env.time_limit):
                            self._display.say(line)
                        decoded = learning.replay.everything("action")[learning.given :]
                        if self._scale == 0.0:  # of the decoder's own chunks; a chain that learns is noisier on purpose
                            for line in remarks.of_actions(decoded, env.primitive_action_space):
                                self._display.say(line)
                        if c.end_at_success and env.success_key is not None:
                            made = (learning.replay.everything(key)[learning.given :] for key in ("reward", "discount"))
                            for line in remarks.of_early_ends(*made):
                                self._display.say(line)
                    if learning.fits and not learning.warm:  # they take long, and what stops them, or kills, is to cost no more
                        learning.behind = True
                        self.save()
                    if not learning.learn(self.step, self._asked_to_stop):
                        return False
            if not self.learned:
                self._display.say(f"NOTHING WAS LEARNED: {self.why_not}")
            elif self.method.caveat:
                self._display.say(f"{self.method_name}: {self.method.caveat}")
            self._due(last=True)
        except RunFault as fault:
            self.save()
            raise type(fault)(f"{fault}; the run is saved at step {self.step}: {how_to_resume(self.out)}") from fault
        return True

    def _asked_to_stop(self) -> bool:
        return self.stop_requested

    @property
    def why_not(self) -> str:
        """Why nothing was learned."""
        if self._none_better:
            return "no point of the learning curve is above the frozen policy's (keep best)"
        return self.learning.why_not

    @property
    def learned(self) -> bool:
        """Whether there is anything to show yet; what learns nothing always has."""
        return not self._none_better and self.learning.has_learned

    @property
    def _scale(self) -> float:
        """What acts: until the warm-up is over the frozen policy, or what the method begins with, where that is asked for."""
        own = self.c.warmup_policy == "own" or not self.method.learns  # what learns nothing has no warm-up
        return 1.0 if self.learning.warm or own else 0.0

    def _due(self, last: bool = False) -> None:
        """Write what is due at this step: a row, a point of the learning curve, a checkpoint - in this order."""
        acts = {"log": self._log, "eval": self._evaluate_curve, "checkpoint": self.save}
        self._schedule.do(self.step, acts, last=last)

    # -- records ---------------------------------------------------------------------------------------------------

    def _log(self) -> None:
        self.learning.check_finite(self.step)
        measured: dict[str, float] = {}
        told = self.learning.diagnosis(self.c.seed)
        if told is not None:
            measured |= {key: float(value) for key, value in told.items()}
            decoder, probe = self.learning.state_decoder, self.learning.probe
            if decoder.decodes_states:
                if self._frozen_entropy is None:  # a function of the probe's states, so a resumed run finds the same
                    self._frozen_entropy = frozen_entropy(self.method.policy, decoder, probe)
                measured["action_entropy"] = action_entropy(self.method.policy, decoder, probe, self._frozen_entropy)
                measured["action_entropy_frozen"] = self._frozen_entropy.entropy
        row = self.records.metrics(self.step, self.learning.updates, measured)
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
            envs=self.c.eval_envs,
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
        self.learning.check_finite(self.step)
        tensors = self.learning.tensors()
        tensors |= {f"collector.{key}": value for key, value in self.collector.tensors().items()}
        tensors |= {f"sums.{key}": value for key, value in self.records.tensors().items()}
        if self._best is not None:
            tensors |= {f"best.{key}": value for key, value in (self._best.tensors or {}).items()}
        facts = {
            "step": self.step,
            "made_with": self._made_with(),
            **self.learning.facts(),
            "ignores_seed": self.ignores_seed,
            "warnings": self._display.warnings,
            "best": None if self._best is None else self._best.facts(),
            **self.records.facts(),
            "next": self._schedule.next,
            "episodes": self.collector.facts(),
        }
        # the checkpoint last: with it in place there is nothing left to write at this step
        # a fresh actor may act at random: until there is something to show, what is saved is the frozen policy
        self._save_policy()
        self.store.save(tensors, facts, self.learning.replay)

    def _save_policy(self) -> None:
        with self.kept():
            learned = self.method if self.learned else None
            save_policy(self.out / "policy", self.method_name, learned, self.decoder, vector_places(self.collector.env.first))

    def _made_with(self) -> dict[str, Any]:
        """What a checkpoint hangs on: the method and all settings but those with which a run may be resumed."""
        run = {key: value for key, value in to_json(self.c).items() if key not in MAY_CHANGE}
        return {"method": self.method_name, **run, **to_json(self.method.settings)}

    def _check_same(self, before: Mapping[str, Any]) -> None:
        for key, value in self._made_with().items():
            if before.get(key, value) != value:
                raise LpdsError(
                    f"the checkpoint in {self.out} is of another run: it was made with {key} {before[key]}, "
                    f"config.json has {value}"
                )

    def restore(self) -> None:
        """Go back to the last checkpoint, to the bit.

        Raises:
            LpdsError: it was made with other settings.
        """
        tensors, facts = self.store.load()
        self._check_same(facts.get("made_with", {}))
        self.learning.restore(tensors, facts)
        self.store.load_replay(facts, self.learning.replay)
        self.step = facts["step"]
        self.ignores_seed = facts.get("ignores_seed", False)
        self._display.warnings[:] = dict.fromkeys([*facts.get("warnings", []), *self._display.warnings])
        self.records.restore(part(tensors, "sums."), facts, self.step, self.learning.updates)
        if self._best is not None:
            self._best.restore(facts["best"], part(tensors, "best."))
        # a finished run that was given a larger budget goes on; what its end wrote is written
        self._schedule.restore(facts["next"], self.step, ended=self.step >= self.c.steps)
        broken = self.collector.restore(part(tensors, "collector."), facts["episodes"])
        self.learning.replay.cut([lane for lane in broken if facts["episodes"][lane]["length"]])
        # only now that nothing can fail any more: rows behind the checkpoint go, among them the last evaluation's
        (self.out / "summary.json").unlink(missing_ok=True)
        if not policy_is_whole(self.out):  # somebody lost it
            self._save_policy()
        self.records.open(facts["log_sizes"])
        for complaint in broken.values():
            self._display.say(complaint)

    def set_aside(self) -> None:
        """Put what was saved of what was learned where nothing acts by it and no run goes on from it."""
        self.store.set_aside()
        with suppress(OSError):
            (self.out / "policy").rename(self.out / POLICY_SET_ASIDE)

    def close(self) -> None:
        """Close environments and files."""
        self.collector.env.close()
        self.records.close()
