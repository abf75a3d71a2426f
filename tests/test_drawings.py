"""Figures of a report: curves of fewer seeds, budgets that nothing holds, axes, crowds, bounds that dwarf the lines."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import Spot, spot_decoder
from safetensors.torch import load_file
from scripted import TINY, identity_decoder
from small_envs import Two

import lpds
from lpds.report import write_report
from lpds.report.acting import MODE_STATES, NUMBERS, shift_sizes
from lpds.report.curves import curves, metric
from lpds.report.figures import MARKERS, _draw, _legend_columns, matplotlib_figure, png
from lpds.report.panels import BEYOND, CROWD, FigureData, Level, Panel, Series, apart, extent, is_cut, to_csv
from lpds.report.read import group_runs, read_runs
from lpds.report.series import figures_of
from lpds.reproduce import reproduce_toy

SHORT = {**TINY, "steps": 400, "eval_every": 0}

BRIEF = TINY | {"steps": 360, "warmup_steps": 150, "num_envs": 2, "delta": 0.5}

MINE = """
from pathlib import Path
from pictures import spot_decoder

with Path(__file__).with_name("opened.txt").open("a") as stream:
    stream.write("opened\\n")
decoder = spot_decoder({given})
"""


def steer(tmp_path, given, **changes):
    """A run whose decoder is found by a reference; how often it was opened is in ``opened.txt``."""
    name = f"mine_{tmp_path.name}"  # a module's name is taken once
    (tmp_path / f"{name}.py").write_text(MINE.format(given=given))
    reference = f"python:{tmp_path}/{name}.py:decoder"
    return lpds.steer(decoder=reference, env=Spot, out=tmp_path / "run", **BRIEF | changes)


def lines(groups, wide=0.0):
    """One line from 0 to 10 for every group, with bounds as far beyond."""
    x, y = np.arange(2.0), np.array([0.0, 10.0])
    return [Series(f"m{group}", group, x, y, y - wide, y + wide) for group in range(groups)]


RESULTS = Path(__file__).parents[1] / "results"


def cut(run: Path, step: int) -> None:
    """Leave of a run what it was at a step."""
    for name in ("metrics.jsonl", "eval.jsonl", "episodes.jsonl"):
        rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
        rows = [row for row in rows if row["step"] <= step and not str(row.get("kind", "")).startswith("final")]
        (run / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "summary.json").unlink(missing_ok=True)


def test_a_residual_on_the_action_is_not_drawn_on_the_noises_scale(tmp_path):
    runs = [lpds.steer("toy", method, out=tmp_path / method / "seed0", **SHORT).folder for method in ("lpds", "lpds-a")]
    (trust,) = [figure for figure in figures_of(group_runs(read_runs(runs))) if figure.name == "trust-region"]
    panels = {panel.title: [series.label for series in panel.series] for panel in trust.panels}
    assert panels["mean of ‖Δ(s)‖² over states"] == ["lpds"]
    assert panels["mean of ‖Δ(s)‖², Δ on the action"] == ["lpds-a"]
    assert "Of lpds-a: Δ shifts the decoded action" in trust.caption
    assert "Delta is zero everywhere" not in trust.caption


def test_a_folder_that_the_toys_figure_cannot_use_is_told_before_anything_is_rolled_out(tmp_path, refused):
    small = {"width": 8, "warmup_fits": 2, "warmup_steps": 100, "final_episodes": 2}
    settings = {"updates_per_decision": 1.0, "input_scaling": False, "eval_every": 0, "quiet": True}
    lpds.steer("toy", "dsrl-na", out=tmp_path / "runs" / "dsrl-na" / "seed0", steps=200, **small, **settings)
    said: list[str] = []
    with refused("dsrl-na", "seed0 is a run with other settings"):
        reproduce_toy(tmp_path, 1, said.append, deltas=(0.5,), steps=200, rollouts=4, changes=small)
    assert said == []


@pytest.mark.parametrize("given", ["features=None, feature_size=None", ""])
def test_a_report_knows_deltas_size_without_opening_the_decoder(tmp_path, given):
    """Of pictures held whole, and of features: ``||Delta||^2`` at the replay's latest states, the decoder opened once."""
    run = steer(tmp_path, given)
    assert run.finished
    assert (tmp_path / "opened.txt").read_text().split() == ["opened"]
    assert "No quantiles" not in (run.folder / "report.html").read_text()
    (data,) = read_runs([run.folder])
    sizes = shift_sizes(data)
    policy = lpds.load_policy(run.folder, spot_decoder(**({} if not given else {"features": None, "feature_size": None})))
    segments = [load_file(path) for path in sorted((run.folder / "checkpoint").glob("replay-*"))]
    states = [torch.cat([part["obs"], *([part["frames"].float()] if "frames" in part else [])], 1) for part in segments]
    wanted = np.square(policy.shift_at(torch.cat(states)), dtype=np.float64).sum((1, 2))
    np.testing.assert_array_equal(sizes, wanted)
    assert sizes.any()
    assert NUMBERS // states[0].shape[1] > len(wanted)


def test_a_drawing_that_fails_does_not_cost_the_run(tmp_path, monkeypatch, capsys):
    def broken(*given):
        raise RuntimeError("no ink")

    monkeypatch.setattr("lpds.report.write_report", broken)
    run = steer(tmp_path, "", quiet=False)
    assert "frozen" in run.verdict()
    assert "no report: RuntimeError: no ink" in capsys.readouterr().err


def test_a_wrapped_decoders_modes_are_drawn_where_it_is_at_hand(tmp_path):
    """By the run that has it, and by whoever passes it; not by its folder alone."""
    run = lpds.steer(decoder=identity_decoder(), env="four-mode", out=tmp_path / "run", **TINY)
    page = (run.folder / "report.html").read_text()
    assert "<h3>Modes: actions before and after</h3>" in page
    assert "<h3>Modes" not in write_report([run.folder], tmp_path / "alone.html").read_text()
    assert write_report([run.folder], tmp_path / "passed.html", identity_decoder()).read_text() == page


def test_every_method_has_its_own_modes_beside_the_same_frozen_ones(tmp_path):
    """One cloud over another would hide that it has emptied."""
    runs = [lpds.steer("toy", method=m, out=tmp_path / m, **SHORT).folder for m in ("lpds", "dsrl-na")]
    groups = group_runs(read_runs(runs))
    (modes,) = [figure for figure in figures_of(groups) if figure.name == "modes"]
    assert modes.columns == MODE_STATES
    titles = [f"state {number}: {group.label}" for group in groups for number in range(1, MODE_STATES + 1)]
    assert [panel.title for panel in modes.panels] == titles
    assert all(panel.series[0].label == "frozen policy" and len(panel.series) == 2 for panel in modes.panels)
    for first, second in zip(modes.panels[:MODE_STATES], modes.panels[MODE_STATES:], strict=True):
        np.testing.assert_array_equal(first.series[0].x, second.series[0].x)
        assert (first.xspan, first.span) == (second.xspan, second.span)  # else one cloud has two sizes
        left, right = first.xspan
        assert all(left <= s.x.min() and s.x.max() <= right for panel in (first, second) for s in panel.series)
    (alone,) = [figure for figure in figures_of(groups[:1]) if figure.name == "modes"]
    assert [panel.title for panel in alone.panels] == [f"state {number}" for number in range(1, MODE_STATES + 1)]
    named = [(panel.xlabel, panel.ylabel) for panel in alone.panels]  # two by two: at the left and at the bottom
    assert named == [("", "action 2"), ("", ""), ("action 1", "action 2"), ("action 1", "")]


def test_many_groups_are_drawn_in_several_panels_of_one_span():
    """Each once, in their order, none alone in a crowd; the levels in all of them; few stay as they are."""
    level = Level("frozen", 4.0)
    few = Panel("return", lines(CROWD), [level])
    assert apart(few) == [few]
    many = Panel("return", lines(11, wide=1.0), [level])
    parts = apart(many)
    assert [series.label for part in parts for series in part.series] == [f"m{group}" for group in range(11)]
    assert [len(part.series) for part in parts] == [4, 4, 3]
    assert {part.span for part in parts} == {(-1.0, 11.0)}
    assert all(part.levels == [level] for part in parts)
    assert [part.title for part in parts] == [f"return ({number} of 3)" for number in (1, 2, 3)]
    text = to_csv(FigureData("learning", "", "", parts))
    assert text.count("\n") == 1 + 11 * 2 + 3


@pytest.mark.parametrize(("wide", "shown"), [(0.0, 0.0), (1.0, 1.0), (4.0, 4.0), (500.0, 500.0)])
def test_lines_within_each_others_bounds_are_seen_to_be(wide, shown):
    """The bounds that are shown are as wide as half of them are, or as four tenths of the lines' range."""
    assert extent(Panel("return", lines(2, wide))) == (-shown, 10.0 + shown)


def test_bounds_that_dwarf_the_others_are_cut_and_lines_and_levels_never():
    wild = [*lines(3, 1.0), replace(lines(1, 500.0)[0], group=3)]
    level = Level("frozen", 9.0, -20.0, 9.5)
    panel = Panel("return", wild, [])
    assert extent(panel) == (-10.0 * BEYOND, 10.0 + 10.0 * BEYOND)
    assert is_cut(panel)
    held = Panel("return", wild, [level])
    assert extent(held)[0] == -20.0 - 30.0 * BEYOND  # what a line is read against is whole
    for whole in (replace(panel, percent=True), replace(panel, log=True)):
        assert not is_cut(whole)
    assert extent(replace(panel, percent=True)) == (-500.0, 510.0)
    flat = Panel("return", [Series("m", 0, np.arange(2.0), np.ones(2), np.zeros(2), np.full(2, 5.0))])
    assert extent(flat) == (0.0, 5.0)
    assert not is_cut(flat)
    nothing = np.full(2, np.nan)  # the bounds of a single episode
    alone = Panel("return", [Series("m", 0, np.arange(2.0), np.array([1.0, 3.0]), nothing, nothing)])
    assert extent(alone) == (1.0, 3.0)
    assert not is_cut(alone)


@pytest.mark.parametrize("log", [False, True])
def test_panels_of_one_span_have_the_same_axis(log):
    """As drawn: eight lines a decade apart, in two panels."""
    from matplotlib.figure import Figure

    x = np.arange(2.0)
    series = [Series(f"m{group}", group, x, np.array([10.0**group, 2.0 * 10.0**group])) for group in range(8)]
    axes = Figure().subplots(1, 2)
    for ax, part in zip(axes, apart(Panel("td", series, log=log)), strict=True):
        _draw(ax, part)
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert axes[0].get_ylim()[1] >= 2.0 * 10.0**7


def test_a_last_evaluation_looks_as_its_group_does_and_is_named_where_no_line_is():
    point = np.array([2.0]), np.array([1.0]), np.array([0.5]), np.array([1.5])
    ends = [Series(f"m{group}: last evaluation", group, *point, kind="final") for group in range(3)]
    ax = matplotlib_figure()().subplots()
    _draw(ax, Panel("return", [*lines(2), *ends]))
    assert ax.get_legend_handles_labels()[1].count("m2: last evaluation") == 1
    assert set(ax.get_legend_handles_labels()[1]) == {"m0", "m1", "last evaluation", "m2: last evaluation"}
    drawn = [bar.lines[0] for bar in ax.containers]
    at = [float(line.get_xdata()[0]) for line in drawn]
    assert at[0] == 2.0
    assert len(set(at)) == 3, "one would hide the other"
    assert max(at) < ax.get_xlim()[1]
    late = Series("m1: last evaluation", 1, np.array([9.0]), *point[1:], kind="final")
    ax = matplotlib_figure()().subplots()
    _draw(ax, Panel("return", [*lines(2), ends[0], late]))
    assert [float(bar.lines[0].get_xdata()[0]) for bar in ax.containers] == [2.0, 9.0], "nothing hides these"
    assert ax.get_xlim()[1] > 9.0
    ax = matplotlib_figure()().subplots()
    _draw(ax, Panel("return", [*lines(2), *ends]))
    assert [line.get_marker() for line in drawn] == list(MARKERS[:3])
    assert len({line.get_color() for line in drawn}) == 3


def test_one_long_name_leaves_the_legend_its_columns_and_names_never_cost_the_panels_height():
    """Two frozen policies' names once made one column of eighteen, which took the room of the curves."""
    short = [f"method {number}" for number in range(15)]
    assert _legend_columns(short) == 4
    long = "frozen policy of one and ten more (20 episodes)"
    assert _legend_columns([*short, long]) == 4
    assert _legend_columns([*(f"dsrl-na+equal-alpha{number:>5}" for number in range(15)), long]) == 3
    assert _legend_columns(["a" * 120, "b" * 120]) == 1
    assert _legend_columns(["alone"]) == 1

    def height(names):
        series = [Series(name, group, np.arange(3.0), np.arange(3.0)) for group, name in enumerate(names)]
        content = png(FigureData("learning", "", "", [Panel("return", series[:3]), Panel("more", series[3:])]))
        return int.from_bytes(content[20:24], "big")

    assert height(["x" * 60] * 2 + [f"{n}" * 60 for n in "abcdefgh"]) > height(list("abcdefghij")) + 150


def test_where_fewer_seeds_got_so_far_a_line_of_its_own_goes_on(tmp_path):
    """And the means of all of them are, point for point, what they are without the cut."""
    for seed in range(3):
        shutil.copytree(RESULTS / "hopper" / "lpds" / f"seed{seed}", tmp_path / "lpds" / f"seed{seed}")
    folders = [tmp_path / "lpds" / f"seed{seed}" for seed in range(3)]
    (whole,) = group_runs(read_runs(folders))
    line, star = curves([whole], "return")
    assert (line.kind, star.kind) == ("line", "final")
    cut(folders[1], 52_000)
    cut(folders[2], 52_000)
    (group,) = group_runs(read_runs(folders))
    first, rest, last = curves([group], "return")
    assert (first.label, first.kind, rest.label, rest.kind) == ("lpds", "line", "lpds: 1 of 3 seeds", "part")
    assert last.label == "lpds: last evaluation of 1 of 3 seeds"
    assert len(first.x) + len(rest.x) == len(line.x)
    assert np.array_equal(first.y, line.y[: len(first.y)])
    assert float(first.x.max()) < 52_000 < float(rest.x.min())
    sizes = metric([group], "delta_sq_mean")
    assert [series.kind for series in sizes] == ["line", "part"]
    assert sizes[1].low is None  # of one seed there is no range
    figure = next(figure for figure in figures_of([group]) if figure.name == "learning")
    assert "not all seeds" in figure.caption


@pytest.mark.parametrize(("run", "budget"), [("lpds+free", None), ("lpds+penalty", None), ("lpds+delta0.66", 0.66)])
def test_a_budget_is_drawn_where_a_multiplier_holds_it(run, budget):
    (data,) = read_runs([RESULTS / "adroit-pen" / run / "seed0"])
    assert data.budget_sq == budget
    figures = {figure.name: figure for figure in figures_of(group_runs([data]))}
    levels = [level.label for panel in figures["trust-region"].panels for level in panel.levels]
    assert any(label.startswith("budget") for label in levels) == (budget is not None)
    assert ("No multiplier keeps" in figures["trust-region"].caption) == (budget is None)
    assert any("beyond" in panel.title for panel in figures["trust-region"].panels) == (budget is not None)
    assert any("δ" in level.label for panel in figures["latent-norm"].panels for level in panel.levels) == (budget is not None)


def test_lines_that_are_decades_apart_are_drawn_on_logarithms():
    """Of a Delta that nothing bounds, beside one of budget 8; two of nearly one size keep an axis from zero."""
    folders = [RESULTS / "adroit-pen" / name / "seed0" for name in ("lpds", "lpds+unbounded", "lpds+penalty")]

    def logs(runs):
        figure = next(figure for figure in figures_of(group_runs(read_runs(runs))) if figure.name == "trust-region")
        return {panel.title: (panel.log, panel.from_zero) for panel in figure.panels if "mean of" in panel.title}

    assert logs(folders) == {"mean of ‖Δ(s)‖² over states": (True, False)}
    assert logs([folders[0], folders[2]]) == {"mean of ‖Δ(s)‖² over states": (False, True)}


def test_the_budget_of_a_residual_on_the_action_counts_the_actions_coordinates(tmp_path):
    """Latent [4, 6], chunk [2, 2]: a mean of 0.1 over 4 coordinates."""
    decoder = lpds.wrap_decoder(
        lambda s, w: torch.tanh(w[:, :2, :2]), obs_shape=(3,), latent_shape=(4, 6), action_shape=(2, 2), name="cut"
    )
    changes = BRIEF | {"delta": 0.1, "delta_unit": "mean"}
    for method, size in (("lpds-a", 4), ("lpds", 24)):
        run = lpds.steer(method=method, decoder=decoder, env=Two, out=tmp_path / method, **changes)
        (data,) = read_runs([run.folder])
        assert data.shifts_action == (method == "lpds-a")
        young = replace(data, metrics=data.metrics[:1])  # in its warm-up, when no nats are logged of either
        assert (young.shifts_action, young.budget_sq) == (data.shifts_action, data.budget_sq)
        old = replace(data, config={key: value for key, value in data.config.items() if key != "shifts"})
        assert old.shifts_action == data.shifts_action
        assert data.budget_sq == pytest.approx(0.1 * size)
