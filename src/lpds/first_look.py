"""Look before you steer: what a frozen policy does by itself with less of its noise, and with more steps of its sampler.

Both cost no learning, and on many policies they are worth as much (docs/manipulation.md, "Before you steer"): what a learned
method is to be set against is the best of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lpds.api import evaluate
from lpds.checks import check_decoder, check_share
from lpds.decoders.base import BaseDecoder
from lpds.envs.build import EnvLike
from lpds.evaluation import EvalReport, silence_is_failure
from lpds.stats import brackets, paired_difference, told, told_apart
from lpds.tell import differences, share_gap, table
from lpds.types import Decoder

AS_IT_IS = "as it is"
NOISE_SCALES = (0.6, 0.3, 0.0)
SAMPLER_WORDS = {"ddim_steps": "DDIM", "steps": "ODE"}
"""By the loaders' options: what their steps are called, and their flags."""


@dataclass(frozen=True)
class Way:
    """One way of letting the same frozen policy act."""

    name: str
    report: EvalReport
    flags: str
    """How ``lpds steer`` starts from it."""


@dataclass(frozen=True)
class LookReport:
    """What :func:`look` found; the first way is the policy as it is."""

    decoder: str
    ways: tuple[Way, ...]
    ignores_seed: bool
    """Whether an episode of one seed was seen to begin in two ways."""

    @property
    def best(self) -> Way:
        """The one with the largest success, where there is any, else return; the first of equals."""
        says = self._tells_success
        return max(self.ways, key=lambda way: float((way.report.successes if says else way.report.returns).mean()))

    @property
    def _tells_success(self) -> bool:
        return not any(np.isnan(way.report.successes).any() for way in self.ways)

    def verdict(self) -> str:
        """One line: which way is best, and what to make of it."""
        first, best = self.ways[0].report, self.best
        if best is self.ways[0]:
            return "best as it is"
        if self._tells_success:
            found = share_gap(first, best.report)
            mean, *bounds = (f"{100 * value:+.0f}" for value in found)
            what = f"success {mean} points{brackets(*bounds)}"
        else:
            found = paired_difference(first.returns, best.report.returns)
            mean, *bounds = told(found, sign=True)
            what = mean + brackets(*bounds)
        apart = told_apart(found, len(first.returns)) > 0
        if not apart:
            return f"no way is told apart from the policy as it is; the best, {best.name}: {what}"
        chosen = f"best with {best.name}, {what}: steer from there ({best.flags})"
        return f"{chosen}. The best of {len(self.ways)} flatters itself: confirm it with another --seed"

    def __str__(self) -> str:
        """The table, the differences from the first way, and the verdict."""
        rows = [(way.name, way.report) for way in self.ways]
        lines = [line for row in rows[1:] for line in differences([rows[0], row])]
        return "\n".join([table(rows), *lines, self.verdict()])


def look(
    decoder: Decoder | str,
    task: str | None = None,
    *,
    env: EnvLike | None = None,
    episodes: int = 50,
    seed: int = 0,
    noise_scales: Sequence[float] = NOISE_SCALES,
    progress: Callable[[int, int], None] | None = None,
) -> LookReport:
    """Play the same episodes in every way that costs no learning.

    Args:
        decoder: a decoder, or a reference for :func:`lpds.load_decoder`.
        task: whose environment to use; or
        env: a Gymnasium id or a zero-argument factory.
        episodes: E, of each way.
        seed: of the episodes and of the noise, the same for all.
        noise_scales: factors of eps to try, 0 to 1, beside all of it.
        progress: called with (ways done, ways).

    Returns:
        The report. A sampler of more steps is tried where the decoder knows of one and can be opened again by its reference.

    Raises:
        LpdsError: as :func:`lpds.evaluate`.
    """
    from lpds.zoo import load_decoder

    for scale in noise_scales:
        check_share("noise_scale", scale)
    frozen = load_decoder(decoder) if isinstance(decoder, str) else decoder
    check_decoder(frozen)
    plans = _plans(frozen, noise_scales)
    reports = []
    for done, plan in enumerate(plans):
        if progress is not None:
            progress(done, len(plans))
        acting = frozen
        if plan.sampler:
            acting = load_decoder(str(frozen.reference), **{**getattr(frozen, "options", {}), **plan.sampler})
        reports.append(evaluate(acting, task, env=env, episodes=episodes, seed=seed, noise_scale=plan.noise_scale))
    if progress is not None:
        progress(len(plans), len(plans))
    ignored = any(not np.array_equal(report.first_obs, reports[0].first_obs) for report in reports)
    pairs = zip(plans, silence_is_failure(reports), strict=True)
    return LookReport(frozen.name, tuple(Way(plan.name, report, plan.flags) for plan, report in pairs), ignored)


@dataclass(frozen=True)
class _Plan:
    name: str
    noise_scale: float = 1.0
    sampler: dict[str, int] = field(default_factory=dict)
    """Options of the loader."""
    flags: str = ""


def _plans(frozen: Decoder, noise_scales: Sequence[float]) -> list[_Plan]:
    plans = [_Plan(AS_IT_IS)]
    for scale in dict.fromkeys(float(scale) for scale in noise_scales if scale != 1.0):
        # what learns needs some noise to learn from
        flags = f"--noise-scale {scale:g}" if scale else "--eval-noise-scale 0"
        plans.append(_Plan(f"noise x{scale:g}", scale, flags=flags))
    finer = frozen.finer if isinstance(frozen, BaseDecoder) and frozen.reference is not None else ()
    for option, count in finer:
        word = SAMPLER_WORDS[option]
        plans.append(_Plan(f"{count} {word} steps", sampler={option: count}, flags=f"--{word.lower()}-steps {count}"))
    return plans
