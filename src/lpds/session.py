"""One run from its runner to its last evaluation: what is built, driven, checked and told."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpds.compact import as_learned
from lpds.config import RunSettings
from lpds.decoders.base import BaseDecoder
from lpds.envs.build import EnvLike
from lpds.errors import LpdsError, RunFault, one_line
from lpds.evaluation import EvalReport, silence_is_failure
from lpds.files import FORMAT_VERSION, how_to_resume, write_json
from lpds.log import Display
from lpds.registry import METHODS, resolve
from lpds.runner import Runner
from lpds.stats import Interval, paired_difference, pairs_that_differ, told_apart
from lpds.types import Decoder, Method
from lpds.verdict import NOT_THE_SAME, UNTRAINED, against_line, verdict_line, with_noise


@dataclass(frozen=True)
class Run:
    """What :func:`steer` and :func:`resume` return."""

    folder: Path
    finished: bool
    """False if it was stopped (Ctrl-C, SIGTERM), which a loop over runs should look at; the verdict says what goes on."""
    frozen: EvalReport | None
    """The last evaluation at scale 0; ``None`` if the run was stopped."""
    steered: EvalReport | None
    """The last evaluation at scale 1, the same episodes and noise."""
    unlearned: str = ""
    """Why nothing was learned, so that both are the frozen policy's; empty where something was."""
    quiet: EvalReport | None = None
    """The last evaluation of the frozen policy with as little noise as the steered one has, where that is less than all."""
    ignores_seed: bool = False
    """Whether the environment was seen to begin an episode of one seed in two ways: then frozen and steered are no pairs."""
    start: EvalReport | None = None
    """The last evaluation of what the method started from, untrained, where that is not the frozen policy (a chain, say)."""
    method: str = ""
    """Its name in the registry."""

    def __repr__(self) -> str:
        """Folder, method and verdict: what a notebook shows of a cell's last line."""
        return f"Run({str(self.folder)!r}{f', {self.method}' if self.method else ''}): {self.verdict()}"

    @property
    def difference(self) -> Interval | None:
        """Paired difference of the return, steered minus frozen: (mean, low, high) at 95 %."""
        if self.frozen is None or self.steered is None:
            return None
        return paired_difference(self.frozen.returns, self.steered.returns)

    @property
    def _differ(self) -> int:
        if self.frozen is None or self.steered is None:
            return 0
        return pairs_that_differ(self.frozen.returns, self.steered.returns)

    @property
    def worse(self) -> bool:
        """Whether the steered policy is worse with confidence."""
        return self.difference is not None and told_apart(self.difference, self._differ) < 0

    def verdict(self) -> str:
        """One line: what came out, and whether the steered policy is worse with confidence."""
        if self.frozen is None or self.steered is None or self.difference is None:
            return f"stopped; everything is saved: {how_to_resume(self.folder)}"
        if self.unlearned:
            return f"NOTHING WAS LEARNED: {self.unlearned}; what was evaluated and saved is the frozen policy"
        returns = (float(self.frozen.returns.mean()), float(self.steered.returns.mean()))
        rates = (self.frozen.interval("success")[0], self.steered.interval("success")[0])
        success = None if np.isnan(self.frozen.successes).all() else rates
        line = verdict_line(returns, success, self.difference, len(self.frozen.returns), self._differ) + self._beside()
        return line + (NOT_THE_SAME if self.ignores_seed else "")

    def _beside(self) -> str:
        """What is left of the difference where the frozen policy, too, has less noise, or the method's own sampler."""
        line = ""
        if self.steered is not None and self.quiet is not None:
            line += against_line(self.quiet.returns, self.steered.returns, with_noise(self.quiet.noise_scale))
        if self.steered is not None and self.start is not None:
            line += against_line(self.start.returns, self.steered.returns, UNTRAINED)
        return line


def build_learner(
    settings: RunSettings, method: str, method_settings: Any, decoder: Decoder, device: torch.device
) -> tuple[Method, torch.Generator]:
    """Make the method from a generator seeded by the run; a decoder that it cannot work with is refused here.

    Raises:
        LpdsError: it cannot work with this decoder.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    learned = as_learned(decoder)
    learner: Method = resolve("method", METHODS, method)(method_settings, learned, generator=generator, device=device)
    if learned.spec.pictures and not learner.sees_pictures:
        raise LpdsError(
            f"decoder {decoder.name!r} takes pictures and offers no features of them, and {method} has no encoder: use lpds, "
            "or give the decoder features (docs/large-decoders.md)"
        )
    if learner.decodes and not learned.decodes_states:
        raise LpdsError(
            f"the replay holds features of what decoder {decoder.name!r} saw, which it cannot decode, but {method} decodes at "
            "replayed states: use lpds with target_actions kept (or auto) and kept_noises of at least 1, or dsrl-sac"
        )
    return learner, generator


def read_demonstrations(
    settings: RunSettings, method: str, learner: Method, decoder: Decoder, env: EnvLike, say: Callable[[str], None]
) -> dict[str, Tensor] | None:
    """Rows of the demonstrations that the settings name; ``None`` if they name none, or the method makes no use of any.

    A relative path is one from the working folder; a run keeps it from the root (:func:`at_home`).

    Raises:
        LpdsError: the data cannot be read, are not of this environment, or cannot serve the method or the settings.
    """
    if not settings.demos or "demos" in learner.ignores:
        return None
    if learner.extras:
        raise LpdsError(f"demos cannot serve {method}, which learns from more than chunks: {', '.join(learner.extras)}")
    from lpds.envs.build import make_env
    from lpds.pretrain.datasets import open_data
    from lpds.pretrain.fits import check_fits
    from lpds.pretrain.rows import demonstration_rows, left_out, until_success

    data = open_data(settings.demos)
    going = int((~data.terminated).sum()) if len(data.terminated) else 0
    if settings.end_at_success and going:
        cut = until_success(data)
        if cut is None:
            raise LpdsError(
                f"end_at_success ends an episode for good at its first success, but {going} of the {len(data.terminated)} "
                "demonstrations are told to go on after their last step, and their rewards do not say when they succeed (0 "
                "until then, and 1): give one of the two up"
            )
        ended = int((cut.terminated & ~data.terminated).sum())
        say(f"demonstrations: {ended} of {going} that went on after it end at their first success, a reward of 1")
        data = cut
    for line in filter(None, (data.remark, left_out(data))):
        say(f"WARNING: {line}")
    rows = demonstration_rows(
        data,
        decoder.spec,
        gamma=settings.gamma,
        discount=settings.discount,
        reward_offset=settings.reward_offset,
        n_step=settings.n_step,
    )
    one = make_env(env, 1, 1)
    try:
        check_fits(data, one, "demonstrations of this very task are needed (demos)")
    finally:
        one.close()
    return rows


def at_home(settings: RunSettings) -> RunSettings:
    """The settings with the demonstrations' place written so that a run which is resumed elsewhere finds them."""
    if not settings.demos or ":" in settings.demos:
        return settings
    return replace(settings, demos=str(Path(settings.demos).resolve()))


def drive(runner: Runner, display: Display) -> Run:
    """Train to the end of the budget, or to a request to stop, and evaluate, frozen and steered.

    Raises:
        LpdsError: the decoder was changed, or learning diverged.
        RunFault: an environment failed, or a decoder was lost; the run is saved.
        KeyboardInterrupt: in the last evaluation; the run is saved.
    """
    folder = runner.out
    try:
        with _stop_on_interrupt(runner, display):
            finished = runner.train()
        c = runner.c
        try:
            _check_untouched(runner)
            if not finished:
                return Run(folder.absolute(), False, None, None, method=runner.method_name)
            with _interrupted_by_a_scheduler(), runner.kept():
                unlearned = "" if runner.learned else runner.why_not
                reports = _last_evaluations(runner)
            frozen, steered, *others = silence_is_failure(reports)
        except KeyboardInterrupt:
            told = f"the run is saved at step {runner.step}, only its last evaluation is missing: {how_to_resume(folder)}"
            raise KeyboardInterrupt(told if finished else "") from None
        except RunFault as fault:
            rest = ", only its last evaluation is missing" if finished else ""
            where = f"the run is saved at step {runner.step}{rest}: {how_to_resume(folder)}"
            raise type(fault)(f"{fault}; {where}") from fault
        run = Run(folder.absolute(), True, frozen, steered, unlearned, method=runner.method_name)
        run = replace(run, ignores_seed=runner.ignores_seed)
        for other in others:
            run = replace(run, quiet=other) if other.noise_scale < 1.0 else replace(run, start=other)
        found = run.difference or (0.0, 0.0, 0.0)
        difference = [None if math.isnan(value) else value for value in found]  # a single pair has no bounds
        summary = {"format_version": FORMAT_VERSION, "difference": difference, "verdict": run.verdict()}
        summary |= {"ignores_seed": True} if runner.ignores_seed else {}
        summary |= {"learned": False} if unlearned else {}
        summary |= {"caveat": runner.method.caveat} if runner.method.caveat and not unlearned else {}
        summary |= {"warnings": display.warnings} if display.warnings else {}
        summary |= {} if runner.kept_step is None else {"kept_step": runner.kept_step}
        write_json(folder / "summary.json", summary)
        if runner.kept_step is not None:
            display.say(f"kept the best point of the learning curve: step {runner.kept_step:,}")
        elif run.worse and c.eval_every:
            display.say("a run with --keep best has the best point of its learning curve, the frozen policy's among them")
        _write_report(folder, runner.decoder, display)
        return run
    finally:
        display.close()
        runner.close()


def _last_evaluations(runner: Runner) -> list[EvalReport]:
    """Frozen and steered; the frozen policy with as little noise, and the method's own start, where there are such."""
    c = runner.c
    reports = [runner.evaluate(c.final_episodes, c.eval_seed, scale, "final") for scale in (0.0, 1.0)]
    k = getattr(runner.method.policy, "noise_scale", 1.0)
    if runner.learned and k < 1.0:  # less noise alone may do as well
        reports.append(runner.evaluate(c.final_episodes, c.eval_seed, 0.0, "final quiet", noise_scale=k))
    start = runner.method.start
    if runner.learned and start is not None:  # so may another sampler of the same network
        reports.append(runner.evaluate(c.final_episodes, c.eval_seed, 1.0, "final start", policy=start))
    return reports


def _check_untouched(runner: Runner) -> None:
    """Hash the decoder again: whatever a method learned, it learned on a copy, or it is set aside."""
    decoder, why = runner.decoder, ""
    if not isinstance(decoder, BaseDecoder):
        return
    try:
        if decoder.is_as_it_was():
            return
    except RunFault:  # lost, which is no change
        raise
    except LpdsError as error:
        why = f" ({one_line(error)})"
    runner.set_aside()
    raise LpdsError(
        f"decoder {decoder.name!r} was changed by the run{why}: its fingerprint was {decoder.fingerprint}; what was learned "
        f"is of a decoder that is no longer there, and the run in {runner.out} cannot go on"
    )


def _write_report(folder: Path, decoder: Decoder, display: Display) -> None:
    """Draw the run's page. A run without one is as good, so what went wrong is said and no more."""
    from lpds.report import write_report

    try:
        write_report([folder], folder / "report.html", decoder)
    except Exception as error:  # a drawing must not cost a finished run its result
        display.say(f"no report: {one_line(error)}")


@contextmanager
def _interrupted_by_a_scheduler() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C where there is no round at whose end one could stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _stop_on_interrupt(runner: Runner, display: Display) -> Iterator[None]:
    """Make SIGTERM and the first Ctrl-C a request to stop at the end of the round, and the second Ctrl-C the usual one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request(signum: int, frame: Any) -> None:
        runner.stop_requested = True
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        display.say("stopping after this round; everything will be saved (Ctrl-C again to break off)")

    # SIGTERM, too: what a scheduler sends some seconds before it kills
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
