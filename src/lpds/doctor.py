"""The decoder doctor: is this frozen policy fit to be steered by its initial noise, and if not, how to mend it.

Every check is a measurement from outside, so it holds for the own decoders, public checkpoints and wrapped functions alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import torch
from torch import Tensor

from lpds.checks import check_decoder, check_seed, whole
from lpds.compact import is_compact, look
from lpds.decoders.base import BaseDecoder
from lpds.decoders.callable import ROUNDED, SAME_SUMS
from lpds.envs.build import EnvLike, end_to_end
from lpds.envs.chunk import ChunkedVectorEnv
from lpds.errors import EnvironmentFault, LpdsError, one_line
from lpds.findings import Finding, episodes_end, latency, left_out, seeds, spaces, starts_at_noise
from lpds.probe import (
    FULL_EFFORT,
    NOISES_PER_STATE,
    Probe,
    first_observations,
    largest_gap,
    meet,
    open_environment,
    synthetic_observations,
    take,
)
from lpds.random import normal
from lpds.threads import kept_defaults
from lpds.types import Decoder
from lpds.units import action_range, observation_range, ranges

DEAD_SHARE = 0.01
"""A column, row or coordinate is dead below this part of an even share of the variance due to w."""


SLOW = 0.005
"""Seconds a row from which on a decode is slow: all of the findings would take more than a minute."""


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check` found out about a decoder."""

    decoder: str
    env: str | None
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether there is no fault; warnings are allowed."""
        return all(finding.verdict != "fault" for finding in self.findings)

    def lines(self) -> list[str]:
        """The report as a table, a remedy below its finding."""
        names = max(len(finding.name) for finding in self.findings)
        out = [f"decoder {self.decoder!r}" + (f" in {self.env}" if self.env else ", no environment given")]
        for finding in self.findings:
            out.append(f"  {finding.verdict:<7}  {finding.name:<{names}}  {finding.figure}")
            if finding.remedy:
                out.append(f"  {'':<7}  {'':<{names}}  -> {finding.remedy}")
        faults, warnings = (sum(f.verdict == kind for f in self.findings) for kind in ("fault", "warning"))
        word = "fit to be steered" if self.ok else "NOT fit to be steered"
        counts = f"{faults} fault{'s' * (faults != 1)}, {warnings} warning{'s' * (warnings != 1)}"
        return [*out, f"{word}: {counts} in {len(self.findings)} findings"]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        """The same: it is what a notebook shows of a cell's last line."""
        return str(self)


@kept_defaults()
def check(
    decoder: Decoder | str,
    env: EnvLike | ChunkedVectorEnv | gymnasium.Env[Any, Any] | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> CheckReport:
    """Examine a frozen policy ``a = Phi(s, w)``, and how it fits an environment.

    Args:
        decoder: a decoder, or a reference for :func:`lpds.load_decoder`.
        env: a Gymnasium id, a name of the registry, a zero-argument factory, a single environment, or what
            :func:`lpds.make_env` made (it is reset and left inside an episode). The probes then use observations that the
            frozen decoder meets in it; without one they are drawn from the normaliser's range, else from N(0, I).
        samples: observations [samples, O] to probe with, at least 16: that many decisions are executed in the environment. By
            default 256, or 16 where a decode is slow, with which findings decode less than half of the rows.
        seed: of every draw, and of the resets of an environment that is made here.
        progress: called with the name of every finding before it is looked for.

    Returns:
        The report; ``report.ok`` says whether there is no fault. A decoder that raises is a fault in it.

    Raises:
        LpdsError: the environment's name or a decoder's reference is unknown, or an argument out of range.
    """
    check_seed("seed", seed)
    if samples is not None and whole("samples", samples) < 16:
        raise LpdsError(f"samples must be at least 16, not {samples}")
    if isinstance(decoder, str):
        from lpds.zoo import load_decoder

        decoder = load_decoder(decoder)
    check_decoder(decoder)
    if isinstance(decoder, BaseDecoder):
        decoder.forget()  # it may have been mended since it was looked at last
    chunked, name, misfit = open_environment(decoder, env, seed)
    order = None if chunked is None else end_to_end(chunked.first)
    findings = [] if name is None else [spaces(decoder, misfit, order, made=chunked is not None)]
    fitting = chunked if misfit is None else None
    tell = progress or (lambda name: None)
    try:
        tell("decodes")
        few = synthetic_observations(decoder, 8, seed)
        if fitting is not None:
            try:
                few = first_observations(decoder, fitting, 8)
            except EnvironmentFault as fault:  # its first reset; what needs no environment is examined all the same
                findings, fitting = [*findings, _raised("roll-out", fault)], None
        findings += _guarded("decodes", partial(decodes, decoder, few))
        started = time.perf_counter()
        if samples is None and findings[-1].verdict == "ok":
            _guarded("decodes", partial(decodes, decoder, few))  # again: a first call may have more to do
        samples = samples or (16 if time.perf_counter() - started > 8 * SLOW else FULL_EFFORT)
        obs = None
        tell("roll-out")
        if findings[-1].verdict == "ok":
            if fitting is not None:
                obs, trouble = meet(decoder, fitting, samples, seed)
                findings += [] if trouble is None else [_raised("roll-out", trouble)]
                if trouble is None:
                    findings += _guarded("episodes end", partial(episodes_end, decoder, fitting))
                    findings += _guarded("seeds", partial(seeds, fitting))
            findings += _guarded("weights", partial(left_out, decoder))
            findings += _guarded("starts at noise", partial(starts_at_noise, decoder))
            obs = synthetic_observations(decoder, samples, seed) if obs is None else obs
            findings += _examine(Probe(decoder, obs, seed), fitting, tell)
    finally:
        if chunked is not None and chunked is not env and not isinstance(env, gymnasium.Env):
            chunked.close()  # what was made here; the caller's own stays open
    return CheckReport(decoder.name, name, findings)


def _examine(probe: Probe, env: ChunkedVectorEnv | None, tell: Callable[[str], None]) -> list[Finding]:
    tell("deterministic")
    findings = _guarded("deterministic", partial(deterministic, probe))
    findings += _guarded("inputs untouched", partial(inputs_untouched, probe))
    findings += _guarded("finite actions", partial(finite_actions, probe))
    checks: list[tuple[str, Callable[[Probe], Finding | None]]] = []
    if findings[0].verdict == "ok":  # otherwise every later figure would measure the sampler's own dice
        checks = [
            ("variance due to w", variance_due_to_noise),
            ("live latents", live_latents),
            ("prior", prior),
            ("smooth in w", smoothness),
            ("batch consistency", batch_consistency),
        ]
    checks += [("features", features), ("action range", partial(action_range, env=env))]
    if env is not None:
        checks.append(("observation range", observation_range))
    for name, measure in checks:
        tell(name)
        findings += _guarded(name, partial(measure, probe))
    spoilt = any(finding.verdict == "fault" for finding in findings)
    return (
        findings + _guarded("fingerprint", partial(fingerprint, probe, spoilt)) + _guarded("latency", partial(latency, probe))
    )


# -- the findings -------------------------------------------------------------------------------------------------------


def decodes(decoder: Decoder, obs: Any) -> Finding:
    """Whether one plain call works and gives the right shape and type; without it nothing else can be measured."""
    spec = decoder.spec
    action = decoder(take(obs, torch.arange(8)), torch.from_numpy(normal("probe", 0, 98, shape=(8, *spec.latent_shape))))
    wanted = (8, *spec.action_shape)
    if tuple(action.shape) != wanted or action.dtype != torch.float32:
        figure = f"returned {action.dtype} {list(action.shape)}, expected torch.float32 {list(wanted)}"
        return Finding("decodes", figure, "fault", "return float32 actions [B, T, A], as action_shape says")
    return Finding("decodes", f"latents {list(spec.latent_shape)} to actions {list(spec.action_shape)}", "ok")


def inputs_untouched(probe: Probe) -> Finding:
    """Whether observations and latents are left as they were; a collector stores them after the call."""
    rows, w = probe.spread_rows(8), probe.noise(10, 8)
    obs, kept = take(probe.obs, rows), w.clone()
    given = take(probe.obs, rows)
    probe.decoder(given, w)
    pairs = [(given[key], obs[key]) for key in obs] if isinstance(obs, dict) else [(given, obs)]
    if all(torch.equal(x, y) for x, y in [*pairs, (w, kept)]):
        return Finding("inputs untouched", "obs and w unchanged by a call", "ok")
    return Finding("inputs untouched", "a call changes obs or w in place", "fault", "work on copies: obs.clone(), w.clone()")


def deterministic(probe: Probe) -> Finding:
    """Whether equal (s, w) give equal bits, after other calls than the first time; else what the noise still explains."""
    first = probe.nested
    # the same batches in the opposite order: a decoder with a memory gives itself away here
    second = probe.decode(probe.nested_rows, probe.noise(0, len(probe.nested_rows)), backwards=True).view_as(first)
    if first.view(torch.int32).equal(second.view(torch.int32)):  # as integers, so that NaN equals itself
        return Finding("deterministic", f"{len(probe.nested_rows)} decodes twice, equal to the bit", "ok")
    own = (first - second).double().square().nanmean() / 2
    within = first.double().var(1).nanmean()
    figure = f"the initial noise explains {float((1 - own / within).clamp(0, 1)):.1%} of the variance within a state"
    if float(own) < ROUNDED * float(within):
        return Finding("deterministic", "equal to rounding, not to the bit", "fault", SAME_SUMS)
    remedy = "use a deterministic sampler (DDIM with eta 0 or an ODE solver, dropout off), started from the w it is given"
    return Finding("deterministic", figure, "fault", remedy)


def finite_actions(probe: Probe) -> Finding:
    """Whether N(0, I) noise always gives finite actions."""
    bad, total = int((~torch.isfinite(probe.nested)).sum()), probe.nested.numel()
    if not bad:
        return Finding("finite actions", f"all of {total}", "ok")
    remedy = "look for NaN weights, a division by a constant observation's range, or overflow in half precision"
    return Finding("finite actions", f"{bad / total:.1%} NaN or infinite", "fault", remedy)


def variance_due_to_noise(probe: Probe) -> Finding | None:
    """Share of the action's variance due to w against the state, mean over coordinates so that units do not matter."""
    if not len(probe.finite):
        return None
    within = probe.finite.var(1).mean(0)
    between = (probe.finite.mean(1).var(0) - within / NOISES_PER_STATE).clamp(min=0.0)
    moving = within + between > 1e-12
    share = float((within / (within + between))[moving].mean()) if bool(moving.any()) else 0.0
    name, digits = "variance due to w", ".1%" if share > 0.001 else ".2g"
    figure = f"{share:{digits}} (the state: {1 - share:.1%})"
    if share < 1e-4:
        return Finding(name, figure, "fault", "nothing to steer: start the sampler from the w that it is given")
    if share < 0.01:
        return Finding(name, figure, "warning", "little to steer: the policy is nearly a function of the state alone")
    return Finding(name, figure, "ok")


def live_latents(probe: Probe) -> Finding | None:
    """Columns (L), rows (H) and single coordinates whose redraw leaves the action where it was."""
    columns, rows, single = probe.effects
    if not bool(torch.isfinite(columns).all()):  # redrawing all of w leaves the action where it was
        if not len(probe.finite) or not bool((probe.finite.var(1) > 0.0).any()):
            return None  # another finding says so
        remedy = "start the sampler from the w that it is given: it may draw its own noise from a fixed seed"
        return Finding("live latents", "w moves no action", "fault", remedy)
    free = torch.tensor(probe.decoder.spec.free or (True,) * len(columns))
    h, latent = single.shape
    dead_columns, dead_rows = columns < DEAD_SHARE / latent, rows < DEAD_SHARE / h
    rest = (single < DEAD_SHARE / single.numel()) & ~dead_columns[None] & ~dead_rows[:, None] & free[None]
    steered = dead_columns & free
    figure = f"{int((~dead_columns).sum())} of {latent} columns, {int((~dead_rows).sum())} of {h} rows"
    if not bool(free.all()):
        figure += f", {int((~free).sum())} masked"
    if bool(torch.isinf(single).any()):
        figure += "; single coordinates not looked at (more samples would)"
    if not bool((~dead_columns & free).any()):
        remedy = "only masked columns move an action: is free= the wrong way round? True is for what may be steered"
        return Finding("live latents", figure, "fault", remedy)
    if bool(steered.any()):
        remedy = f"pass free= to wrap_decoder, False for columns {ranges(steered)}, so that D counts only live ones"
    elif bool(dead_rows.any()):
        remedy = f"rows {ranges(dead_rows)} move no executed action: use all of w, or leave them out of latent_shape"
    elif bool(rest.any()):
        figure += f", {int(rest.sum())} dead coordinates elsewhere"
        remedy = "D counts dead coordinates too: read delta as spent on the live ones, or leave them out of latent_shape"
    else:
        return Finding("live latents", figure, "ok")
    return Finding("live latents", figure, "warning", remedy)


def prior(probe: Probe) -> Finding | None:
    """How far one row repeated along the chunk would move the actions, in standard deviations within a state.

    From outside nobody can tell which noise a decoder was trained with; this says what leaving white noise would cost. The
    distance is Wasserstein-1 per action coordinate and per chunk mean, beside that of two white draws (the floor).
    """
    h, rows = probe.decoder.spec.latent_shape[0], probe.effects[1]
    if not bool(torch.isfinite(rows).all()):
        return None
    if h == 1:
        return Finding("prior", "N(0, I), one row", "ok")
    states, draws = probe.share_of(16, 4), probe.share_of(64, 16)
    at = probe.spread_rows(states).repeat_interleave(draws)
    white, again = probe.noise(4, len(at)), probe.noise(5, len(at))

    def sorted_features(w: Tensor) -> Tensor:
        action = probe.decode(at, w).double().unflatten(1, probe.decoder.spec.action_shape)
        features = torch.cat([action.flatten(1), action.mean(1)], dim=1).view(states, draws, -1)
        return features.sort(1).values

    a, b, c = (sorted_features(w) for w in (white, again, again[:, :1].expand(-1, h, -1)))
    spread = a.std(1)
    keep = (spread > 1e-9) & torch.isfinite(b + c).all(1)
    floor, moved = (float(((x - a).abs().mean(1) / spread)[keep].mean()) for x in (b, c))
    low, high = float(rows.min() * h), float(rows.max() * h)
    figure = f"N(0, I), white along the chunk; one row repeated moves actions {moved:.2f} std (floor {floor:.2f}); "
    return Finding("prior", figure + f"rows weigh {low:.2f} to {high:.2f} of an even share", "ok")


def smoothness(probe: Probe) -> Finding | None:
    """Gain |da|/|dw| at small steps. A jump shows as a gain that grows as the step shrinks."""
    count = probe.share_of(1024, 32)
    rows, w, way = probe.spread_rows(count), probe.noise(6, count), probe.noise(7, count)
    base, length = probe.decode(rows, w), way.flatten(1).norm(dim=1).double()
    moved = [(probe.decode(rows, w + step * way) - base).double().norm(dim=1) for step in (0.1, 0.01)]
    gains = [moved[0] / (0.1 * length), moved[1] / (0.01 * length)]
    coarse, fine = (float(gain[torch.isfinite(gains[0] + gains[1])].square().mean().sqrt()) for gain in gains)
    if not coarse > 0.0:
        return None
    figure = f"|da|/|dw| {fine:.3g} action units; x {fine / coarse:.2f} when |dw| shrinks from 10% to 1% of |w|"
    if fine / coarse > 2.0:
        return Finding(
            "smooth in w", figure, "warning", "look for rounding, bins, an argmax or half precision inside: it jumps"
        )
    return Finding("smooth in w", figure, "ok")


def batch_consistency(probe: Probe) -> Finding | None:
    """Whether a row decodes alone to what it decodes in a batch, relative to the size of each action's coordinates."""
    rows, w = probe.spread_rows(16), probe.noise(8, 16)
    # called as a run calls it, not through the probe, which may show a dear decoder one state at a time
    batch = probe.decoder(take(probe.obs, rows), w.clone())
    alone = torch.cat([probe.decoder(take(probe.obs, rows[i : i + 1]), w[i : i + 1].clone()) for i in range(16)])
    keep = torch.isfinite(batch).flatten(1).all(1) & torch.isfinite(alone).flatten(1).all(1)
    if not bool(keep.any()):
        return None
    gap = largest_gap(batch[keep], alone[keep])
    figure = f"alone against in a batch: {gap:.1e} of the actions' size"
    name, leak = "batch consistency", "rows leak into each other: call model.eval(), take no statistics over a batch"
    if gap > 1e-4:
        coarse = "this is more than float32 rounding: decode in float32 if it can be"
        return Finding(name, figure, "fault", leak) if gap > 1e-2 else Finding(name, figure, "warning", coarse)
    return Finding(name, figure, "ok")


def features(probe: Probe) -> Finding | None:
    """What Delta and the critics see in place of dear observations: alone as in a batch, and other in other states?"""
    if not is_compact(probe.decoder):
        return None
    rows = probe.spread_rows(16)
    batch = look(probe.decoder, take(probe.obs, rows)).state
    alone = torch.cat([look(probe.decoder, take(probe.obs, rows[i : i + 1])).state for i in range(16)])
    gap, still = largest_gap(batch[:, None], alone[:, None]), batch.std(0) <= 1e-6 * batch.abs().amax(0)
    figure = f"{batch.shape[1]} entries, {int(still.sum())} the same in every state; alone against in a batch: {gap:.1e}"
    if gap > 1e-2:
        leak = "rows leak into each other: call model.eval(), take no statistics over a batch"
        return Finding("features", figure, "fault", leak)
    if bool(still.all()):
        blind = "Delta could not depend on the state: return what tells states apart"
        return Finding("features", figure, "fault", blind)
    return Finding("features", figure, "ok")


def fingerprint(probe: Probe, spoilt: bool) -> Finding:
    """Whether the decoder can be told from another; after another fault its failing is a consequence, not a fault."""
    try:
        return Finding("fingerprint", probe.decoder.fingerprint[:12], "ok")
    except LpdsError as error:
        if not spoilt:
            raise
        return Finding("fingerprint", f"none: {str(error).split(':', 1)[0]}", "warning", "mend the faults above first")


def _guarded(name: str, measure: Callable[[], Finding | None]) -> list[Finding]:
    """Run a probe; whatever the decoder raises becomes a fault, since any code at all may be inside it."""
    try:
        finding = measure()
    except Exception as error:
        return [_raised(name, error)]
    return [] if finding is None else [finding]


def _raised(name: str, error: Exception) -> Finding:
    remedy = "mend what raised: the decoder must take any batch, and the frozen policy must run in its environment"
    return Finding(name, one_line(error), "fault", remedy)
