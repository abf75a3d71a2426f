"""The numbers behind every figure. A figure is drawn from these and its CSV is written from these, so they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import chi

from lpds.recent import MEMORY
from lpds.report.acting import MODE_STATES, action_samples, origin, shift_sizes
from lpds.report.curves import DOTS, curves, frozen_levels, metric, training
from lpds.report.paired import Array
from lpds.report.panels import FigureData, Level, Panel, Series, apart, extent, is_cut, on_logs_if_wide
from lpds.report.read import Group, RunData


def figures_of(groups: Sequence[Group]) -> list[FigureData]:
    """All figures of one task; panels without any data are left out, and figures but for what they say of it."""
    makers = (_learning, _success, _trust, _dual, _norm, _modes, _critics, _entropy, _throughput)
    made = []
    for make in makers:
        figure = make(groups)
        panels = [part for panel in figure.panels if panel.series for part in apart(panel)]
        caption = figure.caption
        if figure.name not in BANDS_TOLD and any(s.low is not None for panel in panels for s in panel.series):
            caption += " Bands: from the lowest seed to the highest."
        if any(is_cut(panel) for panel in panels):
            caption += " Bounds far beyond the lines are cut."
        if any(series.kind == "part" for panel in panels for series in panel.series):
            caption += " Where not all seeds have got so far a thin line goes on, of as many as the legend says."
        if panels or figure.missing:
            made.append(replace(figure, panels=panels, caption=caption))
    return made


TENTHS = 0.5
"""Nats that an axis of entropy spans at least on either side of nothing."""
BANDS_TOLD = ("learning", "success")
"""Figures whose captions say of themselves what their bands are."""


# -- learning ----------------------------------------------------------------------------------------------------------


def _learning(groups: Sequence[Group]) -> FigureData:
    panel = Panel("return of an episode", curves(groups, "return"), frozen_levels(groups, "return"), mark=_warmup(groups))
    many = any(len(group.runs) > 1 for group in groups)
    band = "its 95 % interval over seeds and their shared episodes" if many else "its 95 % bootstrap interval over episodes"
    if len(groups) <= 2:  # a third cloud of dots would hide the curves
        panel.series.extend(training(groups))
    caption = (
        f"Line: mean return of the evaluation episodes, steered with fresh noise; band: {band}. Horizontal band: the frozen "
        "policy on the curve's episodes and its 95 % interval."
    )
    caption += _last(panel)
    if panel.mark is not None:
        caption += " Until the warm-up ends (dotted) nothing is learned."
    if len(groups) <= 2:
        caption += f" Dots: training episodes (at most {DOTS} of each kind of run, evenly chosen)."
    return FigureData("learning", "Learning curve", caption, [panel])


def _success(groups: Sequence[Group]) -> FigureData:
    panel = Panel(
        "share of successful episodes",
        curves(groups, "success"),
        frozen_levels(groups, "success"),
        percent=True,
        mark=_warmup(groups),
    )
    caption = (
        "Line: share of evaluation episodes that succeed at any step; band: 95 % (Wilson for one seed, over seeds and their "
        "shared episodes for several). Horizontal band: the frozen policy. The running mean is of what collects, over training "
        f"episodes, with a memory of {MEMORY}; its band is from the lowest seed to the highest."
    ) + _last(panel)
    running = Panel("running mean of success, training", metric(groups, "success_ema"), percent=True, mark=_warmup(groups))
    return FigureData("success", "Success", caption, [panel, running])


def _last(panel: Panel) -> str:
    """What is said of the large points, where there are any."""
    ends = [series for series in panel.series if series.kind == "final"]
    beside = "; those of one step stand beside one another" if len(ends) > 1 else ""
    return f" Large point: the last evaluation, on episodes that the curve never used{beside}." if ends else ""


# -- what metrics.jsonl tells ------------------------------------------------------------------------------------------


def _trust(groups: Sequence[Group]) -> FigureData:
    # a residual on the action is in another unit, and its budget is no divergence
    moved = {index for index, group in enumerate(groups) if all(run.shifts_action for run in group.runs)}
    sums, others = (
        [Level(name, budget) for name, budget in _budgets([g for i, g in enumerate(groups) if (i in moved) == on_action])]
        for on_action in (False, True)
    )

    def shown(key: str, *, on_action: bool = False) -> list[Series]:
        return [series for series in metric(groups, key) if (series.group in moved) == on_action]

    at_the_time = ", as it is at the time" if any(run.budget_grows for group in groups for run in group.runs) else ""
    nats = _nats(groups)
    law = "N(Δ, I)" if all(run.noise_scale == 1.0 for group in groups for run in group.runs) else "N(Δ, k² I)"
    quantiles, why = _quantiles(groups)
    free = {index for index, group in enumerate(groups) if all(run.shifts and run.budget_sq is None for run in group.runs)}
    if free:
        why.append(f"No multiplier keeps {', '.join(groups[index].label for index in sorted(free))} to a budget.")
    caption = (
        "The budget δ bounds the mean over states, not each state: the tail (95th percentile, quantiles) may lie above it. "
        "All are sums over the free latent coordinates, over the states of update batches (the tail and the share of one batch "
        "a row); the quantiles are over other states, under the policy as last saved."
    )
    beyond = [series for series in shown("delta_sq_beyond") if series.group not in free]
    panels = [
        Panel("mean of ‖Δ(s)‖² over states", shown("delta_sq_mean"), sums, from_zero=True),
        Panel("95th percentile of ‖Δ(s)‖²", shown("delta_sq_p95"), sums, from_zero=True),
        Panel(f"share of states beyond δ{at_the_time}", beyond, percent=True),
        Panel(f"KL({law} ‖ N(0, I)), nats", metric(groups, "kl_nats"), nats, from_zero=True),
        Panel("quantiles of ‖Δ(s)‖² over states", quantiles, sums, "share of states below, %", from_zero=True),
        Panel("mean of ‖Δ(s)‖², Δ on the action", shown("delta_sq_mean", on_action=True), others, from_zero=True),
        Panel("95th percentile of ‖Δ(s)‖², Δ on the action", shown("delta_sq_p95", on_action=True), others, from_zero=True),
    ]
    if moved:
        named = ", ".join(group.label for i, group in enumerate(groups) if i in moved)
        why.append(f"Of {named}: Δ shifts the decoded action, in normalised action units, so its δ is no divergence.")
    return FigureData(
        "trust-region", "Trust region", " ".join([caption, *why]), [p if p.percent else on_logs_if_wide(p) for p in panels]
    )


def _quantiles(groups: Sequence[Group]) -> tuple[list[Series], list[str]]:
    levels = np.arange(1.0, 100.0)
    series, why = [], []
    for index, group in enumerate(groups):
        sizes = [shift_sizes(run) for run in group.runs if not run.shifts_action]
        told = [values for values in sizes if not isinstance(values, str)]
        reasons = dict.fromkeys(reason for reason in sizes if isinstance(reason, str))
        why += [f"No quantiles for {group.label}: {reason}." for reason in reasons]
        if not told:
            continue
        table = np.array([np.percentile(values, levels) for values in told])
        low, high = (table.min(0), table.max(0)) if len(told) > 1 else (None, None)
        series.append(Series(group.label, index, levels, table.mean(0), low, high))
        budget = group.runs[0].budget_sq
        if budget is not None:
            share = np.mean([np.mean(values > budget) for values in told])
            why.append(
                f"{group.label}: ‖Δ(s)‖² exceeds δ in {share:.0%} of {sum(map(len, told)):,} states of {origin(group.runs[0])}."
            )
    return series, why


def _dual(groups: Sequence[Group]) -> FigureData:
    caption = (
        "The multiplier α rises while the constraint is violated and falls towards 0 while it does not bind. It is in reward "
        "units per unit of ‖Δ‖²; beside it the scale of Q, the mean slope of Q^W in w, which α follows."
    )
    # a soft actor-critic's alpha is the price of entropy, another thing
    held = [index for index, group in enumerate(groups) if any(run.shifts for run in group.runs)]
    alphas, scales = ([series for series in metric(groups, key) if series.group in held] for key in ("alpha", "q_scale"))
    panels = [
        Panel("multiplier α, reward units", alphas, from_zero=True),
        Panel("scale of Q, reward units", scales, from_zero=True),
    ]
    return FigureData("dual", "Multiplier α", caption, panels)


def _norm(groups: Sequence[Group]) -> FigureData:
    levels = []
    runs = [run for group in groups for run in group.runs]
    for size in sorted({run.latent_size for run in runs if run.latent_size}):
        low, high = (float(chi.ppf(q, size)) for q in (0.05, 0.95))
        levels.append(Level(f"prior: chi, {size} degrees (mean, 5 to 95 %)", float(chi.mean(size)), low, high))
    # the noise is white and independent of the state: E ||k eps + Delta||^2 = k^2 D + E ||Delta||^2; what pads has k = 1
    sets = {
        (run.latent_size, run.free_size or run.latent_size, run.noise_scale, run.budget_sq)
        for run in runs
        if run.latent_size and run.budget_sq and not run.shifts_action
    }
    for size, free, k, budget in sorted(sets):
        spent = float(np.sqrt(size - (1.0 - k * k) * free + budget))
        name = f"√(D + δ) = √({size} + {budget:.4g})" if k == 1.0 else f"with k = {k:g} and δ = {budget:.4g} spent: {spent:.3g}"
        levels.append(Level(name, spent))
    caption = (
        "A latent drawn from the prior has a norm within the band nine times out of ten. A steered latent of norm far from it "
        "is one that the decoder has never seen; with the budget spent, the root mean square of ‖w‖ is √(D + δ). "
        "The line is a mean over states, so it moves far less than the band is wide."
    )
    caption += " The correlation along the chunk is 0 under the prior and 1 for a row that is repeated."
    norm, correlation = (metric(groups, key) for key in ("w_norm", "w_autocorrelation"))
    panels = [
        Panel("mean of ‖w‖", norm, levels),
        Panel("lag-1 correlation along the chunk", correlation, [Level("prior", 0.0)]),
    ]
    return FigureData("latent-norm", "Norm of the latent", caption, panels, missing=_unlogged(groups, panels))


def _modes(groups: Sequence[Group]) -> FigureData:
    """Of the first run of every group, at states of the first of all with its decoder: it over the frozen policy."""
    caption, why = "", list[str]()
    panels: list[Panel] = []
    states: list[str] = []
    places: dict[str, RunData] = {}
    for index, group in enumerate(groups):
        run = group.runs[0]
        decoder = str(run.config.get("decoder", {}).get("fingerprint"))
        found = action_samples(run, places.get(decoder, run))
        if isinstance(found, str):
            why.append(f"Not shown for {group.label}: {found}.")
            continue
        places.setdefault(decoder, run)
        caption = (
            f"First action of the chunk under {len(found.frozen[0])} noises, the same for all, at states of the warm-up "
            f"({found.coordinates}). Modes are separate clouds: one that empties has been lost."
        )
        for number, (before, after) in enumerate(zip(found.frozen, found.steered, strict=True), 1):
            clouds = [
                Series("frozen policy", len(groups), before[:, 0], before[:, 1], kind="cloud"),
                Series(group.label, index, after[:, 0], after[:, 1], kind="cloud"),
            ]
            # clouds of several methods over one another would hide which one is empty
            title = f"state {number}" if len(groups) == 1 else f"state {number}: {group.label}"
            panels.append(Panel(title, clouds, xlabel=found.axes[0], ylabel=found.axes[1]))
            states.append(f"{decoder}, {number}")
    columns = 2 if len(groups) == 1 else MODE_STATES
    panels = _named_at_the_edge(_of_one_extent(panels, states), columns)
    return FigureData("modes", "Modes: actions before and after", " ".join([caption, *why]), panels, columns)


def _of_one_extent(panels: Sequence[Panel], states: Sequence[str]) -> list[Panel]:
    """Clouds of one state, which several methods' panels share, on the same axes: else one frozen cloud has several sizes."""
    made = []
    for panel, state in zip(panels, states, strict=True):
        clouds = [s for other, its in zip(panels, states, strict=True) if its == state for s in other.series]
        (left, right), (low, high) = (
            (float(values.min()), float(values.max()))
            for values in (np.concatenate([getattr(s, axis) for s in clouds]) for axis in "xy")
        )
        made.append(replace(panel, xspan=(left, right), span=(low, high)))
    return made


def _named_at_the_edge(panels: Sequence[Panel], columns: int) -> list[Panel]:
    """Panels of the same two quantities with the names of their axes at the left and at the bottom of the figure alone."""
    return [
        replace(
            panel,
            ylabel="" if index % columns else panel.ylabel,
            xlabel="" if index + columns < len(panels) else panel.xlabel,
        )
        for index, panel in enumerate(panels)
    ]


def _critics(groups: Sequence[Group]) -> FigureData:
    zero = [Level("no gap", 0.0)]
    gaps = [metric(groups, f"distill_gap_{at}") for at in ("base", "steered")]
    caption = "The first point of each line averages over the fits of the warm-up, where there are any."
    if any(gaps):
        caption = (
            "Gap: mean of Q^W(s, w) - Q^A(s, Φ(s, w)), at the base noise, where the latent critic is trained, and at the "
            f"steered latent, where it is asked. A steered gap that grows above 0: Δ climbs an error of Q^W. {caption}"
        )
    panels = [
        Panel("distillation gap, base noise (reward units)", gaps[0], zero),
        Panel("distillation gap, steered (reward units)", gaps[1], zero),
        Panel("TD loss (reward units²)", metric(groups, "td_loss"), log=True),
        Panel("distillation loss (reward units²)", metric(groups, "distill_loss"), log=True),
    ]
    return FigureData("critics", "Critics", caption, panels)


def _entropy(groups: Sequence[Group]) -> FigureData:
    caption = (
        "k-nearest-neighbour entropy (k = 3) of the first action of the chunk at fixed states, less that of the frozen policy "
        "at the same states under the same noises (of more than four action dimensions the four leading principal components "
        "of the frozen policy's samples). The estimate is biased in many dimensions, so only the difference means anything: "
        "tenths of a nat are nothing, a fall of nats says that actions are less spread, perhaps that modes are lost. Actions "
        "that coincide are floored at a distance of 1e-6."
    )
    series = metric(groups, "action_entropy", less="action_entropy_frozen")

    def tells(group: Group, key: str) -> bool:
        return any(np.isfinite(run.column(key)[1]).any() for run in group.runs)

    told = [group for group in groups if tells(group, "action_entropy")]
    old = [group.label for group in told if not tells(group, "action_entropy_frozen")]
    missing = f"Not shown, for their records lack the frozen policy's entropy: {', '.join(old)}." if old else ""
    panel = Panel("action entropy less the frozen policy's, nats", series, [Level("as the frozen policy", 0.0)])
    if series:
        low, high = extent(panel)
        panel = replace(panel, span=(min(low, -TENTHS), max(high, TENTHS)))  # what is nothing is not to look like a collapse
    missing = " ".join(filter(None, [missing, _unlogged(groups, [panel], but=old)]))
    return FigureData("entropy", "Action entropy", caption, [panel], missing=missing)


def _throughput(groups: Sequence[Group]) -> FigureData:
    def after_first(y: Array) -> Array:
        return np.where(np.arange(len(y)) > 0, y, np.nan)  # nothing has happened before the first row

    caption = "Between rows of the log, evaluations included; no updates during the warm-up."
    panels = [
        Panel("primitive steps per second", metric(groups, "env_steps_per_s", after_first), from_zero=True),
        Panel("updates per second", metric(groups, "updates_per_s", after_first), from_zero=True),
    ]
    # a warm-up without updates is so fast that beside it the rest would lie on the axis
    going = [s.y[s.y > 0.0] for s in panels[0].series]
    if any(len(y) and float(y.max()) > 5.0 * float(np.median(y)) for y in going):
        panels[0] = replace(panels[0], log=True, from_zero=False)
    return FigureData("throughput", "Throughput", caption, panels)


def _unlogged(groups: Sequence[Group], panels: Sequence[Panel], but: Sequence[str] = ()) -> str:
    """Which groups are nowhere in a figure that others are in, in words: what is not seen would be taken for nothing lost."""
    seen = {series.group for panel in panels for series in panel.series}
    left = [group.label for index, group in enumerate(groups) if index not in seen and group.label not in but]
    return f"Not logged by {', '.join(left)}." if left and seen else ""


def _nats(groups: Sequence[Group]) -> list[Level]:
    """The budget's own nats, and beside it what less noise costs."""
    pairs = {
        (b, run.quiet_nats)
        for group in groups
        for run in group.runs
        if (b := run.budget_sq) is not None and not run.shifts_action
    }
    return [
        Level(f"budget δ/2{f' + {quiet:.4g} for k < 1' if quiet else ''} = {b / 2 + quiet:.4g} nats", b / 2 + quiet)
        for b, quiet in sorted(pairs)
        if quiet < np.inf
    ]


def _budgets(groups: Sequence[Group]) -> list[tuple[str, float]]:
    """Every budget once, by size: its name in a legend, which says where it holds only after a while, and its value."""
    found = {(b, run.budget_grows) for group in groups for run in group.runs if (b := run.budget_sq) is not None}
    return [(f"budget δ = {b:.4g}{', once it has grown' if grows else ''}", b) for b, grows in sorted(found)]


def _warmup(groups: Sequence[Group]) -> float | None:
    """Where the warm-up ends, if it is the same for all and anybody got that far."""
    runs: list[RunData] = [run for group in groups for run in group.runs]
    ends = {run.warmup for run in runs}
    end = ends.pop() if len(ends) == 1 else None
    return float(end) if end and any(run.steps >= end for run in runs) else None
