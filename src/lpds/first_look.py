"""Look before you steer: what a frozen policy does by itself with less of its noise, and with more steps of its sampler.

Both cost no learning, and on many policies they are worth as much (docs/manipulation.md, "Before you steer"): what a learned
method is to be set against is the best of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lpds.api import evaluate
from lpds.checks import LANES, check_decoder, check_share
from lpds.decoders.base import BaseDecoder
from lpds.envs.build import EnvLike
from lpds.errors import LpdsError
from lpds.evaluation import EvalReport, silence_is_failure
from lpds.stats import FEWEST_PAIRS, Interval, paired_difference, pairs_that_differ, told_apart
from lpds.tell import difference_lines, share_gap, table
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
        """The one with the largest success, where there is any, then return; the first of equals."""
        return max(self.ways, key=self._height)

    @property
    def better(self) -> tuple[Way, ...]:
        """Those told apart above the policy as it is, by success, or by return where success does not fall."""
        return tuple(way for way in self.ways[1:] if any(told_apart(gap, differ) > 0 for gap, differ in self._gaps(way)))

    def verdict(self) -> str:
        """One line: which way is best, and what to make of it."""
        first = self.ways[0].report
        if len(self.ways) == 1:
            return "no other way was tried"
        if all(_alike(first, way.report) for way in self.ways):
            return "every way does the same"
        if self._pairs < FEWEST_PAIRS:
            return f"fewer than {FEWEST_PAIRS} episodes cannot decide which way is best"
        if not self.better:
            mean = "its own" if self.best is self.ways[0] else self.best.name
            return f"no way is told apart above the policy as it is (the largest mean: {mean})"
        best = max(self.better, key=self._height)
        (line,) = difference_lines([((best.name, best.report), (AS_IT_IS, first))])
        chosen = f"{line}: steer from there ({best.flags})"
        return f"{chosen}. The best of {len(self.ways)} flatters itself: confirm it with another --seed"

    @property
    def _pairs(self) -> int:
        return len(self.ways[0].report.returns)

    @property
    def _tells_success(self) -> bool:
        return not any(np.isnan(way.report.successes).any() for way in self.ways)

    def _height(self, way: Way) -> tuple[float, float]:
        return float(way.report.successes.mean()) if self._tells_success else 0.0, float(way.report.returns.mean())

    def _gaps(self, way: Way) -> list[tuple[Interval, int]]:
        """Differences, and how many pairs differ in each."""
        first, other, gaps = self.ways[0].report, way.report, list[tuple[Interval, int]]()
        if self._tells_success:
            gaps.append((share_gap(first, other), pairs_that_differ(first.successes, other.successes)))
        if not gaps or gaps[0][0][0] >= 0.0:
            gaps.append((paired_difference(first.returns, other.returns), pairs_that_differ(first.returns, other.returns)))
        return gaps

    def __str__(self) -> str:
        """The table, the differences from the first way, and the verdict."""
        rows = [(way.name, way.report) for way in self.ways]
        return "\n".join([table(rows), *difference_lines([(row, rows[0]) for row in rows[1:]]), self.verdict()])

    def __repr__(self) -> str:
        """The same: it is what a notebook shows of a cell's last line."""
        return str(self)


def _alike(one: EvalReport, other: EvalReport) -> bool:
    return np.array_equal(one.returns, other.returns) and np.array_equal(one.lengths, other.lengths)


def look(
    decoder: Decoder | str,
    task: str | None = None,
    *,
    env: EnvLike | None = None,
    episodes: int = 50,
    seed: int = 0,
    noise_scales: Sequence[float] = NOISE_SCALES,
    envs: int = LANES,
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
        envs: environments that are open at once, at most 20.
        progress: called with (episodes done, episodes of all ways).

    Returns:
        The report. A sampler of more steps is tried where the decoder knows of one and can be opened again by its reference,
        which what a user's own code made cannot.

    Raises:
        LpdsError: as :func:`lpds.evaluate`.
    """
    from lpds.zoo import load_decoder

    frozen = load_decoder(decoder) if isinstance(decoder, str) else decoder
    played: dict[str, Any] = {"episodes": episodes, "seed": seed, "noise_scales": noise_scales, "envs": envs}
    return report_ways(frozen, list(play_ways(frozen, task, env=env, **played, progress=progress)))


def play_ways(
    frozen: Decoder,
    task: str | None = None,
    *,
    env: EnvLike | None = None,
    episodes: int = 50,
    seed: int = 0,
    noise_scales: Sequence[float] = NOISE_SCALES,
    envs: int = LANES,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Way]:
    """The ways of :func:`look`, each as it was played, so that who stops in between has those before.

    Raises:
        LpdsError: as :func:`look`.
    """
    from lpds.zoo import load_decoder

    try:
        noise_scales = tuple(noise_scales)
    except TypeError:
        raise LpdsError(f"noise_scales are several factors, as in (0.6, 0), not {noise_scales!r}") from None
    for scale in noise_scales:
        check_share("noise_scale", scale)
    check_decoder(frozen)
    plans = _plans(frozen, noise_scales)
    for index, plan in enumerate(plans):
        acting = frozen
        if plan.sampler:
            acting = load_decoder(str(frozen.reference), **{**getattr(frozen, "options", {}), **plan.sampler})

        def advance(done: int, _: int, before: int = index * episodes) -> None:
            if progress is not None:
                progress(before + done, len(plans) * episodes)

        played: dict[str, Any] = {"episodes": episodes, "seed": seed, "noise_scale": plan.noise_scale, "envs": envs}
        yield Way(plan.name, evaluate(acting, task, env=env, **played, progress=advance), plan.flags)


def report_ways(frozen: Decoder, ways: Sequence[Way]) -> LookReport:
    """What :func:`look` returns, of ways that were played; at least the first."""
    reports = [way.report for way in ways]
    ignored = any(not np.array_equal(report.first_obs, reports[0].first_obs) for report in reports)
    pairs = zip(ways, silence_is_failure(reports), strict=True)
    return LookReport(frozen.name, tuple(replace(way, report=report) for way, report in pairs), ignored)


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
        flags = f"of lpds, --eval-noise-scale {scale:g} acts so in the end"
        if scale:  # what learns needs some noise to learn from
            flags += f", --noise-scale {scale:g} learns so, too"
        plans.append(_Plan(f"noise x{scale:g}", scale, flags=flags))
    # what a user's code made cannot be made again with another option
    again = isinstance(frozen, BaseDecoder) and frozen.reference is not None and not frozen.reference.startswith("python:")
    finer = frozen.finer if isinstance(frozen, BaseDecoder) and again else ()
    for option, count in finer:
        word = SAMPLER_WORDS[option]
        plans.append(_Plan(f"{count} {word} steps", sampler={option: count}, flags=f"--{word.lower()}-steps {count}"))
    return plans
