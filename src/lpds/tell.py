"""What the command line prints of evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lpds.digits import brackets, told, unsigned_zero
from lpds.evaluation import EvalReport
from lpds.stats import Interval, noise_share, paired_difference, share_bounds


def table(rows: Sequence[tuple[str, EvalReport]]) -> str:
    """Evaluations by name, with intervals."""
    width = max(10, *(len(name) + 2 for name, _ in rows))
    found = [told(report.interval("return")) for _, report in rows]
    means, spans = [mean for mean, *_ in found], [brackets(low, high) for _, low, high in found]
    wide, wider = (max(least, *(len(word) + 2 for word in words)) for least, words in ((10, means), (22, spans)))
    lines = [f"{'':<{width}}{'episodes':>9}{'return':>{wide}}{'95 % interval':>{wider}}{'success':>10}{'95 % interval':>18}"]
    for (name, report), mean, span in zip(rows, means, spans, strict=True):
        line = f"{name:<{width}}{len(report.returns):>9}{mean:>{wide}}{span:>{wider}}"
        share, share_low, share_high = report.interval("success")
        if not math.isnan(share):
            line += f"{share:>10.1%}{f'[{share_low:.1%}, {share_high:.1%}]':>18}"
        lines.append(line)
    return "\n".join([*lines, *_of_success(rows)])


def _of_success(rows: Sequence[tuple[str, EvalReport]]) -> list[str]:
    """What success means here, and the rates at the last step where those are others; nothing of an environment without."""
    if any(math.isnan(report.interval("success")[0]) for _, report in rows):
        return []
    line = "success: at any step of an episode"
    if key := next((report.success_key for _, report in rows if report.success_key), ""):
        line += f", by what the environment's info calls {key!r}"
    if not all(np.array_equal(report.successes, report.successes_at_end, equal_nan=True) for _, report in rows):
        line += "; at its last: " + ", ".join(f"{name} {report.interval('success_at_end')[0]:.1%}" for name, report in rows)
    return [line]


def differences(rows: Sequence[tuple[str, EvalReport]]) -> list[str]:
    """One line for each evaluation against the first, and for the last against every one between."""
    return difference_lines([(later, rows[0]) for later in rows[1:]] + [(rows[-1], middle) for middle in rows[1:-1]])


def difference_lines(pairs: Sequence[tuple[tuple[str, EvalReport], tuple[str, EvalReport]]]) -> list[str]:
    """One line a pair, the first against the second."""
    lines = []
    for (name, report), (other, reference) in pairs:
        mean, *bounds = told(paired_difference(reference.returns, report.returns), sign=True)
        line = mean + brackets(*bounds)
        if not np.isnan([reference.successes, report.successes]).any():
            points = 100.0 * np.asarray(share_gap(reference, report))
            share, *bounds = (unsigned_zero(format(value, "+.0f")) for value in points)
            line += f", success {share} points{brackets(*bounds)}"
        lines.append(f"{name} against {other}: paired difference {line}")
    return lines


def share_gap(reference: EvalReport, report: EvalReport) -> Interval:
    """What the second has of success over the first, paired, as a share with its bounds."""
    a, b = reference.successes, report.successes
    same = np.array_equal(reference.returns, report.returns) and np.array_equal(reference.lengths, report.lengths)
    return share_bounds(paired_difference(a, b), a, b, same=same)


def keeps_all_noise(settings: Mapping[str, Any]) -> bool:
    """Whether a method of these settings shifts the noise and acts on all of it."""
    return bool(settings.get("noise_scale") == settings.get("eval_noise_scale") == 1.0)


def what_spread_costs(lost: Mapping[str, float], states: int) -> str:
    """One line on the entropy that ways of acting, by name, have less of than the frozen policy, in nats."""
    told = [f"{name}: {'one action a state' if nats == -math.inf else f'{nats:+.2f}'}" for name, nats in lost.items()]
    return f"spread of the actions, nats less the frozen policy's at {states} states of the warm-up; {'; '.join(told)}"


def what_noise_decides(name: str, reports: Sequence[EvalReport]) -> str:
    """One line on the same episodes under several noises."""
    count, outcome = len(reports), np.stack([report.successes for report in reports])
    if np.isnan(outcome).any():
        outcome = np.stack([report.returns for report in reports])
        best, mean = told([float(outcome.max(0).mean()), float(outcome.mean())])
        words = f"the best of {count} noises in every episode returns {best} in the mean, one {mean}"
        return f"{name}: {words}; {_decided(outcome, 'the return')}"
    always, never = int(outcome.min(0).sum()), int((1.0 - outcome.max(0)).sum())
    words = f"of {outcome.shape[1]} episodes {always} succeed under each of {count} noises and {never} under none"
    return f"{name}: {words}; {_decided(outcome, 'success')}"


def _decided(outcome: npt.NDArray[np.float64], what: str) -> str:
    share = noise_share(outcome)
    return f"{what} does not vary" if np.isnan(share) else f"the noise decides {share:.0%} of the variance of {what}"
