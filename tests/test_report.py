"""The report: its numbers are those of lpds.stats, its page stands alone, and a run that just began has one too."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi

from lpds.errors import LpdsError
from lpds.log import METRIC_KEYS
from lpds.report import write_figures, write_report
from lpds.report.compare import compare
from lpds.report.figures import _label, png
from lpds.report.glossary import GLOSSARY
from lpds.report.html import WORSE, interval, number
from lpds.report.lines import hint
from lpds.report.read import group_runs, read_runs
from lpds.report.series import figures_of
from lpds.stats import bootstrap_mean, crossed_difference, crossed_mean, paired_difference, wilson

FULL = {"delta": 0.5, "delta_unit": "sum", "noise_bound": 1.5}


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    gain: float = 10.0,
    rows: int = 24,
    success: bool = False,
    final: bool = True,
    method: str = "lpds",
    task: str = "hopper",
    settings: dict[str, object] | None = None,
    silent: bool = False,
) -> Path:
    """A run folder with known numbers: the steered policy gains ``gain`` by the end; ``silent`` has no learner's metrics."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, 5])
    decoder = {"name": "hopper", "reference": "hopper", "fingerprint": "ab" * 32}
    config = {
        "format_version": 1, "task": task, "method": method, "env": "Hopper-v5", "env_name": "Hopper-v5", "decoder": decoder,
        "run": {"steps": 24_000, "seed": seed, "warmup_steps": 4_000}, "settings": FULL if settings is None else settings,
    }  # fmt: skip
    passport = {"format_version": 1, "decoder": {**decoder, "latent_shape": [4, 3], "action_shape": [4, 3]}, "seed": seed}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "passport.json").write_text(json.dumps(passport))
    lines = []
    for i in range(rows):
        row = dict.fromkeys(METRIC_KEYS, None) | {"step": 1000 * i, "wall_s": 2.0 * i, "updates": 100 * i}
        row |= {"env_steps_per_s": 500.0 if i else 0.0, "updates_per_s": 50.0 if i else 0.0}
        if i > 4 and not silent:
            row |= {key: float(abs(rng.normal(3.0, 0.1))) for key in METRIC_KEYS if row[key] is None}
            row |= {"delta_sq_mean": 0.5, "kl_nats": 0.25, "action_entropy": 2.0 - 0.01 * i, "success": None}
            row["success_ema"] = 0.5 + 0.01 * i + 0.1 * seed if success else None
            row["action_entropy_frozen"] = 2.5
        lines.append(row)
    write_rows(folder / "metrics.jsonl", lines)
    shared = {"success": None, "length": 100}
    training = [{"step": 100 * i, "seed": i, "return": float(rng.normal(100, 5)), **shared} for i in range(rows)]
    write_rows(folder / "episodes.jsonl", training)
    evaluation = []
    points = [(step, "curve", 10_000, 0.0 if step == 0 else 1.0) for step in range(0, 1000 * rows + 1, 8000)]
    if final:
        points += [(24_000, "final", 0, 0.0), (24_000, "final", 0, 1.0)]
    for step, kind, eval_seed, scale in points:
        base = np.random.default_rng([eval_seed, 3]).normal(100.0, 8.0, 20)
        for episode in range(20):
            total = base[episode] + scale * (gain * step / 24_000 + float(rng.normal(0.0, 2.0)))
            won = float((episode + int(scale * 5)) % 4 > 0) if success else None
            where = {"step": step, "kind": kind, "seed": eval_seed, "episode": episode, "scale": scale}
            evaluation.append({**where, "return": total, "success": won, "success_at_end": won, "length": 100 + episode})
    write_rows(folder / "eval.jsonl", evaluation)
    return folder


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def finals(run: Path, scale: float, what: str = "return") -> np.ndarray:
    rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    return np.array([row[what] for row in rows if row["kind"] == "final" and row["scale"] == scale], np.float64)


def starts(run: Path) -> np.ndarray:
    """Returns of the frozen policy where the learning curve begins."""
    rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    return np.array([row["return"] for row in rows if row["kind"] == "curve" and row["step"] == 0], np.float64)


def table(path: Path, panel: str, kind: str, series: str = "") -> np.ndarray:
    with path.open() as stream:
        rows = [r for r in csv.DictReader(stream) if (r["panel"], r["kind"]) == (panel, kind) and series in r["series"]]
    return np.array([[float(r[k]) if r[k] else np.nan for k in ("x", "y", "low", "high")] for r in rows])


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing out, which takes nearly all of the time, where a test reads the page's words only."""
    monkeypatch.setattr("lpds.report.html.svg", lambda figure, prefix: "<svg></svg>")


@pytest.mark.usefixtures("undrawn")
def test_the_running_mean_of_success_is_the_runs_own_and_spans_its_seeds(tmp_path):
    runs = [make_run(tmp_path / f"seed{seed}", seed=seed, success=True) for seed in (0, 1)]
    (figure,) = [one for one in figures_of(group_runs(read_runs(runs))) if one.name == "success"]
    (line,) = figure.panels[1].series
    assert line.x.tolist() == [1000.0 * i for i in range(5, 24)]
    assert np.allclose(line.low, 0.5 + line.x / 1e5)
    assert np.allclose(line.high - line.low, 0.1)
    silent = group_runs(read_runs([make_run(tmp_path / "silent")]))
    assert "success" not in [one.name for one in figures_of(silent)]


def test_numbers_in_the_page_are_those_of_stats(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", success=True)
    page = write_report([run], tmp_path / "report.html").read_text()
    frozen, steered = finals(run, 0.0), finals(run, 1.0)
    assert f'<td class="n">{interval("return", bootstrap_mean(frozen))}</td>' in page
    assert f'<td class="n">{interval("return", bootstrap_mean(steered))}</td>' in page
    assert f'<td class="n">{interval("return", paired_difference(frozen, steered), sign=True)}</td>' in page
    won = int(finals(run, 1.0, "success").sum())
    assert interval("success", wilson(won, 20)) in page
    assert "BETTER than the frozen policy" in page
    assert "hopper · lpds · seed 0" in page


def test_the_verdict_is_worded_as_the_run_words_it(tmp_path: Path) -> None:
    import lpds
    from lpds.evaluation import EvalReport

    run = make_run(tmp_path / "a", success=True)
    reports = [
        EvalReport(finals(run, s), finals(run, s, "success"), finals(run, s, "success_at_end"),
                   finals(run, s, "length").astype(np.int64), 0, s, np.zeros((20, 1), np.float32))
        for s in (0.0, 1.0)
    ]  # fmt: skip
    line = lpds.Run(run, True, *reports).verdict()
    assert read_runs([run])[0].verdict() == line
    (run / "summary.json").write_text(json.dumps({"verdict": "what the run said", "learned": False}))
    assert read_runs([run])[0].verdict() == "what the run said"  # its records do not tell why nothing was learned


def test_figures_have_the_numbers_they_claim(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    files = write_figures([run], tmp_path / "figures")
    assert {path.suffix for path in files} == {".png", ".csv"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files if path.suffix == ".png")

    learning = tmp_path / "figures" / "hopper-learning.csv"
    rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    steps = sorted({row["step"] for row in rows if row["kind"] == "curve"})
    curve = table(learning, "return of an episode", "line")
    expected = [[r["return"] for r in rows if r["kind"] == "curve" and r["step"] == step] for step in steps]
    np.testing.assert_allclose(curve, [[s, *bootstrap_mean(v)] for s, v in zip(steps, expected, strict=True)])
    np.testing.assert_allclose(table(learning, "return of an episode", "level")[0, 1:], bootstrap_mean(starts(run)))
    np.testing.assert_allclose(table(learning, "return of an episode", "final")[0, 1:], bootstrap_mean(finals(run, 1.0)))
    assert len(table(learning, "return of an episode", "dots")) == 24

    trust = tmp_path / "figures" / "hopper-trust-region.csv"
    assert table(trust, "mean of ‖Δ(s)‖² over states", "line")[0, :2].tolist() == [5000, 0.5]
    assert table(trust, "mean of ‖Δ(s)‖² over states", "level")[0, 1] == 0.5
    assert table(trust, "KL(N(Δ, I) ‖ N(0, I)), nats", "level")[0, 1] == 0.25

    norm = table(tmp_path / "figures" / "hopper-latent-norm.csv", "mean of ‖w‖", "level")
    np.testing.assert_allclose(norm[0, 1:], [chi.mean(12), chi.ppf(0.05, 12), chi.ppf(0.95, 12)])
    np.testing.assert_allclose(norm[1, 1], np.sqrt(12.5))
    entropy = table(tmp_path / "figures" / "hopper-entropy.csv", "action entropy less the frozen policy's, nats", "line")
    np.testing.assert_allclose(entropy[:, 1], -0.5 - 0.01 * np.arange(5, 24), atol=1e-12)


@pytest.mark.parametrize(("unit", "delta", "expected"), [("mean", 0.1, 1.2), ("rms", 0.5, 3.0), ("nats", 0.25, 0.5)])
def test_the_budget_is_told_as_a_sum(tmp_path: Path, unit: str, delta: float, expected: float) -> None:
    run = make_run(tmp_path / "a", settings={"delta": delta, "delta_unit": unit})
    assert read_runs([run])[0].budget_sq == pytest.approx(expected)


def test_no_budget_where_there_is_none(tmp_path: Path) -> None:
    lifted = make_run(tmp_path / "a", settings={"delta": "inf", "delta_unit": "sum"})
    rival = make_run(tmp_path / "b", method="base", settings={}, silent=True)
    assert [run.budget_sq for run in read_runs([lifted, rival])] == [None, None]
    trust = next(figure for figure in figures_of(group_runs(read_runs([lifted]))) if figure.name == "trust-region")
    assert not any(panel.levels for panel in trust.panels)


def test_a_budget_that_grows_is_named_so(tmp_path: Path) -> None:
    """Its level is where the constraint ends, not where it was while it grew."""
    grown = make_run(tmp_path / "grown", settings={"delta": 0.5, "delta_unit": "sum", "delta_updates": 100})
    constant = make_run(tmp_path / "constant", settings={"delta": 0.5, "delta_unit": "sum"})
    for run, name in ((grown, "budget δ = 0.5, once it has grown"), (constant, "budget δ = 0.5")):
        trust = next(figure for figure in figures_of(group_runs(read_runs([run]))) if figure.name == "trust-region")
        assert [level.label for level in trust.panels[0].levels] == [name]


def test_masked_coordinates_are_not_free(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", settings={"delta": 0.1, "delta_unit": "mean"})
    passport = json.loads((run / "passport.json").read_text())
    passport["decoder"]["free"] = [True, False, True]
    (run / "passport.json").write_text(json.dumps(passport))
    data = read_runs([run])[0]
    assert (data.free_size, data.latent_size) == (8, 12)
    assert data.budget_sq == pytest.approx(0.8)


@pytest.mark.usefixtures("undrawn")
def test_less_noise_has_its_own_levels(tmp_path: Path) -> None:
    """N(Delta, k^2 I) with the budget spent: delta / 2 + D (k^2 / 2 - 1 / 2 - ln k) nats, and a norm of sqrt(k^2 D + delta)."""
    run = make_run(tmp_path / "run", settings={**FULL, "noise_scale": 0.5})
    data = {figure.name: figure for figure in figures_of(group_runs(read_runs([run])))}
    (nats,) = next(panel for panel in data["trust-region"].panels if "KL" in panel.title).levels
    assert nats.value == pytest.approx(0.25 + 12 * (0.5 * (0.25 - 1.0) - np.log(0.5)))
    spent = data["latent-norm"].panels[0].levels[-1]
    assert spent.value == pytest.approx(np.sqrt(0.25 * 12 + 0.5))
    silent = make_run(tmp_path / "silent", settings={**FULL, "noise_scale": 0.0})
    data = {figure.name: figure for figure in figures_of(group_runs(read_runs([silent])))}
    assert not next(panel for panel in data["trust-region"].panels if "KL" in panel.title).levels  # infinite


@pytest.mark.usefixtures("undrawn")
def test_rows_of_one_multiple_are_one_point_whatever_steps_their_rounds_ended_at(tmp_path):
    """Rows at 4001, 8010, ... fell into the bins of others, since 4001 was taken for the interval of 4000."""
    late = {0: (1, 10, 6, 12, 3), 1: (1, 11, 7, 2, 4), 2: (1, 1, 2, 3, 9)}
    runs = []
    for seed, offsets in late.items():
        run = make_run(tmp_path / f"seed{seed}", seed=seed, rows=25)
        config = json.loads((run / "config.json").read_text())
        config["run"] |= {"steps": 100_000, "log_every": 4000}
        (run / "config.json").write_text(json.dumps(config))
        where = [4000 * (i + 1) + offset for i, offset in enumerate(offsets)]
        told = [{"step": step, "distill_gap_base": 10.0 * i + seed} for i, step in enumerate(where)]
        write_rows(run / "metrics.jsonl", [dict.fromkeys(METRIC_KEYS) | row for row in told])
        runs.append(run)
    panels = [panel for figure in figures_of(group_runs(read_runs(runs))) for panel in figure.panels]
    line = next(series for panel in panels for series in panel.series if "base noise" in panel.title)
    assert line.y.tolist() == [10.0 * i + 1.0 for i in range(5)]
    assert line.low.tolist() == [10.0 * i for i in range(5)]
    assert line.high.tolist() == [10.0 * i + 2.0 for i in range(5)]


@pytest.mark.usefixtures("undrawn")
def test_the_frozen_band_is_of_the_curves_own_episodes(tmp_path):
    """The frozen policy's own run has no start of a curve, and its last evaluation is of other episodes."""
    run, frozen = make_run(tmp_path / "lpds"), make_run(tmp_path / "base", method="base", settings={}, silent=True)
    rows = [json.loads(line) for line in (frozen / "eval.jsonl").read_text().splitlines()]
    write_rows(frozen / "eval.jsonl", [row for row in rows if row["kind"] == "final"])
    level = figures_of(group_runs(read_runs([frozen, run])))[0].panels[0].levels
    assert [one.label for one in level] == ["frozen policy (20 episodes)"]
    assert level[0].value == pytest.approx(starts(run).mean())
    (alone,) = figures_of(group_runs(read_runs([frozen])))[0].panels[0].levels
    assert alone.label == "frozen policy (20 episodes, last evaluation)"


@pytest.mark.parametrize("order", [("here", "there"), ("there", "here")])
def test_a_frozen_policy_that_returned_something_else_elsewhere_has_a_line_of_its_own(tmp_path, order):
    """One line for both would be of the runs that were named last."""
    runs = {"here": make_run(tmp_path / "lpds" / "seed0"), "there": make_run(tmp_path / "idql" / "seed0", method="idql")}
    rows = [json.loads(line) for line in (runs["there"] / "eval.jsonl").read_text().splitlines()]
    write_rows(runs["there"] / "eval.jsonl", [{**row, "return": row["return"] + 30.0} for row in rows])
    figure = figures_of(group_runs(read_runs([runs[name] for name in order])))[0]
    levels = {level.label: level.value for level in figure.panels[0].levels}
    assert levels == {
        "frozen policy of lpds (20 episodes)": pytest.approx(starts(runs["here"]).mean()),
        "frozen policy of idql (20 episodes)": pytest.approx(starts(runs["there"]).mean()),
    }


def test_seeds_of_one_method_on_two_machines_have_two_names(tmp_path):
    """A legend keeps one entry of a name."""
    runs = [make_run(tmp_path / "lpds" / f"seed{seed}", seed=seed) for seed in range(2)]
    rows = [json.loads(line) for line in (runs[1] / "eval.jsonl").read_text().splitlines()]
    write_rows(runs[1] / "eval.jsonl", [{**row, "return": row["return"] + 30.0} for row in rows])
    levels = figures_of(group_runs(read_runs(runs)))[0].panels[0].levels
    assert [level.label for level in levels] == [
        "frozen policy of lpds (20 episodes)",
        "frozen policy of lpds, seed 1 (20 episodes)",
    ]
    for run in runs[:1]:  # one run has seen it, and it is so in all of them
        (run / "summary.json").write_text(json.dumps({"ignores_seed": True}))
    assert len(figures_of(group_runs(read_runs(runs)))[0].panels[0].levels) == 1


def test_a_speed_that_is_nothing_most_of_the_time_is_no_reason_for_logarithms(tmp_path):
    """DPPO's updates come in one row of many; the warm-up's steps are the fast ones."""
    run = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        row |= {"updates_per_s": 50.0 if index % 5 == 4 else 0.0, "env_steps_per_s": 9000.0 if index == 1 else 300.0}
    write_rows(run / "metrics.jsonl", rows)
    (figure,) = [f for f in figures_of(group_runs(read_runs([run]))) if f.name == "throughput"]
    assert [panel.log for panel in figure.panels] == [True, False]


def test_an_entropy_that_hardly_moves_does_not_fill_its_axis(tmp_path):
    run = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [row | ({"action_entropy": 2.49} if row["action_entropy"] is not None else {}) for row in rows]
    write_rows(run / "metrics.jsonl", told)
    (figure,) = [f for f in figures_of(group_runs(read_runs([run]))) if f.name == "entropy"]
    assert figure.panels[0].span == (-0.5, 0.5)


def test_who_is_not_in_a_figure_is_named(tmp_path):
    """A method that logs no entropy has not kept it."""
    told, silent = make_run(tmp_path / "lpds"), make_run(tmp_path / "ticket", method="golden-ticket", settings={}, silent=True)
    figures = {figure.name: figure for figure in figures_of(group_runs(read_runs([told, silent])))}
    assert figures["entropy"].missing == figures["latent-norm"].missing == "Not logged by golden-ticket."
    assert not {f.name: f for f in figures_of(group_runs(read_runs([told])))}["entropy"].missing


def test_what_a_band_is_of_is_said_of_every_figure_that_has_one(tmp_path):
    one, other = (make_run(tmp_path / f"seed{seed}", seed=seed) for seed in range(2))
    said = "Bands: from the lowest seed to the highest."
    for figure in figures_of(group_runs(read_runs([one, other]))):
        banded = any(series.low is not None for panel in figure.panels for series in panel.series)
        assert (said in figure.caption) == (banded and figure.name not in ("learning", "success"))
    assert not any(said in figure.caption for figure in figures_of(group_runs(read_runs([one]))))


def test_a_run_and_its_copy_are_one_seed(tmp_path):
    run = make_run(tmp_path / "run")
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for runs, name in (([run], "one"), ([run, copy], "two")):
        write_report(runs, tmp_path / f"{name}.html")
        write_figures(runs, tmp_path / name)
    assert (tmp_path / "one" / "hopper-learning.csv").read_text() == (tmp_path / "two" / "hopper-learning.csv").read_text()
    assert "all 2" not in (tmp_path / "two.html").read_text()


@pytest.mark.parametrize("name", ["a$x_$", "$\\frac{$", "x" * 400])
def test_a_name_is_drawn_as_it_is_and_never_longer_than_a_legend(tmp_path, name):
    run = make_run(tmp_path / "run", method=name)
    (tmp_path / "figures").mkdir()
    write_report([run], tmp_path / "page.html")
    write_figures([run], tmp_path / "figures")
    assert name in (tmp_path / "figures" / "hopper-learning.csv").read_text()
    assert len(_label(name)) <= 63


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_of_few_pairs_what_the_command_says(tmp_path):
    run = make_run(tmp_path / "run", gain=0.0)
    rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    write_rows(run / "eval.jsonl", [row for row in rows if row["kind"] == "curve" or row["episode"] < 3])
    other = make_run(tmp_path / "other", seed=1)
    write_report([run, other], tmp_path / "page.html")
    report = compare([run, other])
    undecided = [row for row in report.rows if row.verdict == "undecided"]
    assert undecided
    page = (tmp_path / "page.html").read_text()
    for row in undecided:
        assert f"undecided{hint(row)}" in page


def test_a_row_or_an_episode_written_twice_counts_once(tmp_path: Path) -> None:
    """A run whose budget was enlarged has its old last row, and its old last evaluation, twice."""
    once, twice = make_run(tmp_path / "once"), make_run(tmp_path / "twice")
    for name in ("metrics.jsonl", "eval.jsonl"):
        lines = (twice / name).read_text().splitlines()
        again = [line for line in lines if json.loads(line)["step"] in (8000, 23_000)]
        at = max(i for i, line in enumerate(lines) if line in again) + 1
        (twice / name).write_text("\n".join([*lines[:at], *again, *lines[at:]]) + "\n")
    tables = []
    for run in (once, twice):
        write_figures([run], tmp_path / f"figures-{run.name}")
        tables.append((tmp_path / f"figures-{run.name}" / "hopper-learning.csv").read_text())
        tables.append((tmp_path / f"figures-{run.name}" / "hopper-trust-region.csv").read_text())
    assert tables[:2] == tables[2:]


def test_alpha_of_a_method_without_a_budget_is_no_multiplier(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", method="dsrl-na", settings={"box": 1.0})]
    write_figures(runs, tmp_path / "figures")
    with (tmp_path / "figures" / "hopper-dual.csv").open() as stream:
        assert {row["series"] for row in csv.DictReader(stream)} == {"lpds"}


def test_a_residual_on_the_action_has_no_level_in_nats(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", method="lpds-a")
    rows = [json.loads(line) | {"kl_nats": None, "w_norm": None} for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_rows(run / "metrics.jsonl", rows)
    other = make_run(tmp_path / "b", settings={**FULL, "delta": 2.0})
    write_figures([run, other], tmp_path / "figures")
    assert table(tmp_path / "figures" / "hopper-trust-region.csv", "KL(N(Δ, I) ‖ N(0, I)), nats", "level")[:, 1].tolist() == [
        1.0
    ]
    assert len(table(tmp_path / "figures" / "hopper-latent-norm.csv", "mean of ‖w‖", "level")) == 2  # the prior, and delta 2


def test_one_task_in_two_environments_has_two_parts(tmp_path: Path, undrawn: None) -> None:
    runs = [make_run(tmp_path / name) for name in "ab"]
    config = json.loads((runs[1] / "config.json").read_text()) | {"env_name": "Other-v0"}
    (runs[1] / "config.json").write_text(json.dumps(config))
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert "hopper in Hopper-v5: what happened" in page
    assert "hopper in Other-v0: what happened" in page
    for name in ("Hopper-v5", "Other-v0"):
        assert page.count(f"<h3>hopper in {name} · lpds · seed 0</h3>") == 1


def test_the_warm_up_is_explained_only_where_it_is_drawn(tmp_path: Path) -> None:
    """Methods with warm-ups of their own have no common line."""
    one, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", method="golden-ticket")
    config = json.loads((other / "config.json").read_text())
    config["run"]["warmup_steps"] = 1
    (other / "config.json").write_text(json.dumps(config))
    said = "Until the warm-up ends (dotted) nothing is learned."
    assert said in write_report([one], tmp_path / "one.html").read_text()
    assert said not in write_report([one, other], tmp_path / "both.html").read_text()


def test_seeds_are_pooled_over_seeds(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"s{seed}", seed=seed, gain=10.0 + 5 * seed) for seed in range(3)]
    page = write_report(runs, tmp_path / "report.html").read_text()
    steered = np.stack([finals(run, 1.0) for run in runs])
    assert interval("return", crossed_difference(finals(runs[0], 0.0), steered), sign=True) in page
    assert "all 3" in page
    assert page.count(interval("return", bootstrap_mean(finals(runs[0], 0.0)))) >= 4  # of each run and of all
    write_figures(runs, tmp_path / "figures")
    final = table(tmp_path / "figures" / "hopper-learning.csv", "return of an episode", "final")
    np.testing.assert_allclose(final[0, 1:], crossed_mean(steered))
    # all seeds see the same frozen episodes, which count once
    level = table(tmp_path / "figures" / "hopper-learning.csv", "return of an episode", "level")
    np.testing.assert_allclose(level[0, 1:], bootstrap_mean(starts(runs[0])))


def test_other_settings_are_another_group(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", seed=1),
        make_run(tmp_path / "c", settings={**FULL, "delta": 0.1}),
        make_run(tmp_path / "d", method="dsrl-na", settings={}),
    ]
    groups = group_runs(read_runs(runs))
    assert [(group.label, len(group.runs)) for group in groups] == [
        ("lpds (delta 0.5)", 2),
        ("lpds (delta 0.1)", 1),
        ("dsrl-na", 1),
    ]


def test_a_folder_given_twice_counts_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert len(read_runs([run, run / ".." / "a"])) == 1


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("gain", "worse"), [(-10.0, True), (0.0, False), (10.0, False)])
@pytest.mark.parametrize("final", [True, False])
def test_the_warning_appears_exactly_when_due(tmp_path: Path, gain: float, worse: bool, final: bool) -> None:
    run = make_run(tmp_path / "a", gain=gain, final=final)
    page = write_report([run], tmp_path / "report.html").read_text()
    assert (WORSE in page) == worse
    assert ('class="warning"' in page) == worse
    assert ("WORSE than the frozen policy" in page) == worse


@pytest.mark.usefixtures("undrawn")
def test_only_the_run_that_is_worse_is_warned_of(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", gain=-10.0, method="dsrl-na")]
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert page.count(WORSE) == 1
    assert "dsrl-na" in page[page.index(WORSE) :].split("</p>")[0]


def test_the_page_stands_alone(tmp_path: Path) -> None:
    page = write_report([make_run(tmp_path / "a")], tmp_path / "report.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r'(?:src|href)="([^"]*)"', page))
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in re.findall(r'href="([^"]*)"', page)} <= set(ids)
    assert str(tmp_path) not in page


@pytest.mark.usefixtures("undrawn")
def test_names_are_escaped(tmp_path: Path) -> None:
    page = write_report([make_run(tmp_path / "a", task="<b>&")], tmp_path / "report.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    first, second = (write_report([run], tmp_path / name).read_bytes() for name in ("1.html", "2.html"))
    assert first == second
    figure = figures_of(group_runs(read_runs([run])))[0]
    assert png(figure) == png(figure)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_run_that_just_began(tmp_path: Path, rows: int) -> None:
    run = make_run(tmp_path / "a", rows=rows, final=False)
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "nothing to compare yet" in page
    assert WORSE not in page


@pytest.mark.parametrize("name", ["passport.json", "metrics.jsonl", "episodes.jsonl", "eval.jsonl"])
def test_a_file_that_is_missing_or_cut_off(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "a")
    whole = (run / name).read_text()
    (run / name).write_text(whole[: len(whole) // 2])
    assert figures_of(group_runs(read_runs([run])))
    (run / name).unlink()
    write_report([run], tmp_path / "report.html")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("tail", [b"null\n", b'{"step": 1, "seed": "\xc3', b"[1]\n"])
def test_lines_that_are_no_rows_end_a_file(tmp_path: Path, tail: bytes) -> None:
    run = make_run(tmp_path / "a")
    whole = (run / "eval.jsonl").read_bytes()
    (run / "eval.jsonl").write_bytes(whole + tail)
    assert len(read_runs([run])[0].evaluations) == len(whole.splitlines())


def test_what_cannot_be_written_or_is_no_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(LpdsError, match="file cannot be written"):
        write_figures([run], tmp_path / "file")
    with pytest.raises(LpdsError, match="cannot be written"):
        write_report([run], tmp_path / "file" / "report.html")
    (run / "config.json").write_text("[]")
    with pytest.raises(LpdsError, match="is not that of a run"):
        write_report([run], tmp_path / "report.html")


def test_nothing_but_a_config(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    for path in run.iterdir():
        if path.name != "config.json":
            path.unlink()
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "Nothing to draw yet" in page
    assert "eval.jsonl is missing or empty" in page


def test_a_method_without_metrics_gets_no_empty_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", method="base", settings={}, silent=True)
    names = [figure.name for figure in figures_of(group_runs(read_runs([run])))]
    assert names == ["learning", "throughput"]


def test_an_entropy_that_cannot_be_set_against_the_frozen_policys_is_said_and_drawn_nowhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key != "action_entropy_frozen"} for row in rows]
    assert any(row.get("action_entropy") is not None for row in rows)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "their records lack the frozen policy&#x27;s entropy: lpds." in page
    assert not [path for path in write_figures([run], tmp_path / "figures") if "entropy" in path.name]


def test_a_comparison_needs_both_sides_of_an_episode(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    write_rows(run / "eval.jsonl", rows[:-5])
    comparison = read_runs([run])[0].comparison()
    assert comparison is not None
    assert (comparison.episodes, comparison.final) == (15, True)
    write_rows(run / "eval.jsonl", rows[:-20])  # killed before the steered half: back to the curve
    comparison = read_runs([run])[0].comparison()
    assert comparison is not None
    assert (comparison.episodes, comparison.final, comparison.step) == (20, False, 24_000)


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(LpdsError, match=r"config\.json is missing"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(LpdsError, match="at least one run"):
        write_report([], tmp_path / "report.html")


def test_without_matplotlib_the_pip_line_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(LpdsError, match=r"pip install 'lpds\[report\]'"):
        write_report([run], tmp_path / "report.html")


def test_neither_pyplot_nor_methods_are_imported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    code = (
        "import sys; from pathlib import Path; from lpds.report import write_report;"
        "assert 'matplotlib' not in sys.modules;"
        f"write_report([Path({str(run)!r})], Path({str(tmp_path / 'report.html')!r}));"
        "assert 'matplotlib.pyplot' not in sys.modules;"
        "assert not [name for name in sys.modules if name.startswith('lpds.methods')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_quantiles_of_the_shift_from_a_saved_policy(tmp_path: Path) -> None:
    """A real policy on the shipped toy decoder: Delta is constant, so every quantile is its squared norm."""
    import torch
    from safetensors.torch import save_file

    from lpds import load_decoder
    from lpds.config import LPDSSettings
    from lpds.methods.lpds import LPDS
    from lpds.policy import save_policy

    run = make_run(tmp_path / "a")
    decoder = load_decoder("toy")
    learner = LPDS(LPDSSettings(width=8), decoder, generator=torch.Generator().manual_seed(0), device=torch.device("cpu"))
    with torch.no_grad():
        learner.policy.net.biases[-1].fill_(0.2)
    save_policy(run / "policy", "lpds", learner, decoder)
    (run / "checkpoint").mkdir()
    save_file({"obs": torch.randn(50, 2)}, run / "checkpoint" / "replay-0.safetensors")
    (run / "checkpoint" / "checkpoint.json").write_text(json.dumps({"replay": [{"file": "replay-0.safetensors", "first": 0}]}))
    write_figures([run], tmp_path / "figures")
    found = table(tmp_path / "figures" / "hopper-trust-region.csv", "quantiles of ‖Δ(s)‖² over states", "line")
    bounded = 1.5 * np.tanh(0.2 / 1.5)
    np.testing.assert_allclose(found[:, 1], decoder.spec.latent_size * bounded**2, rtol=1e-5)
    policy = json.loads((run / "policy" / "policy.json").read_text())
    policy["decoder"]["reference"] = None  # as a wrapped decoder is recorded
    (run / "policy" / "policy.json").write_text(json.dumps(policy))
    write_figures([run], tmp_path / "again")  # the decoder is not asked
    again = table(tmp_path / "again" / "hopper-trust-region.csv", "quantiles of ‖Δ(s)‖² over states", "line")
    np.testing.assert_array_equal(again, found)
    (run / "policy" / "policy.safetensors").unlink()
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "No quantiles for lpds: no policy in" in page
    assert str(tmp_path) not in page


def test_every_metric_is_explained() -> None:
    assert set(GLOSSARY) == set(METRIC_KEYS)


NUMBERS = [(1530.08, "1,530"), (0.49453, "0.4945"), (-20.6, "-20.60"), (0.0, "0"), (float("nan"), "-"), (2e-7, "2.000e-07")]


@pytest.mark.parametrize(("value", "text"), NUMBERS)
def test_numbers_are_formatted_sensibly(value: float, text: str) -> None:
    assert number(value) == text


GAINS = {"lpds": 10.0, "dsrl-na": 0.3, "golden-ticket": 0.2, "best-of-n": -0.3}
"""By how much each method of a wide table is above the frozen policy; most cannot be told apart from it."""

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


def photograph(page: str, shot: Path, size: tuple[int, int]) -> None:
    """What a real browser draws of a page."""
    words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    words += [
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    words += [f"--user-data-dir={shot.parent / 'profile'}", f"--window-size={size[0]},{size[1]}", f"--screenshot={shot}", page]
    subprocess.run(words, check=True, capture_output=True, timeout=240)


@pytest.fixture
def browser(tmp_path: Path) -> None:
    """Skip where there is none that draws anything at all."""
    if CHROMIUM is None:
        pytest.skip("no Chromium to look at the page with")
    try:
        photograph("data:text/html,<p>drawn</p>", tmp_path / "trial.png", (200, 100))
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"{CHROMIUM} does not draw here: {type(error).__name__}")


@pytest.mark.usefixtures("browser")
def test_no_table_of_a_comparison_is_wider_than_the_page(tmp_path: Path) -> None:
    """The verdict in words is its last column, which paper cannot scroll to."""
    runs = [make_run(tmp_path / f"{m}-{s}", seed=s, method=m, gain=g) for m, g in GAINS.items() for s in (0, 1)]
    page = write_report(runs, tmp_path / "page.html")
    assert "undecided: " in page.read_text()
    measure = "document.title = [...document.querySelectorAll('.wide')].map(e => e.scrollWidth - e.clientWidth).join()"
    page.write_text(page.read_text().replace("</body>", f"<script>{measure}</script></body>"))
    words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,900", page.as_uri()]
    told = subprocess.run(words, check=True, capture_output=True, timeout=240, text=True).stdout
    title = re.search(r"<title>([\d,]+)</title>", told)
    assert title is not None
    assert set(title[1].split(",")) == {"0"}


@pytest.mark.usefixtures("browser")
def test_the_page_shows_in_a_browser_and_stays_readable_in_grey(tmp_path: Path) -> None:
    """A real browser draws the page: no sideways scrolling, ink on every screenful, and curves that differ without colour."""
    from PIL import Image

    runs = [make_run(tmp_path / f"{m}{s}", seed=s, method=m) for m in ("lpds", "dsrl-na") for s in (0, 1)]
    page = write_report(runs, tmp_path / "page.html")
    shot = tmp_path / "page.png"
    photograph(page.as_uri(), shot, (1100, 4200))
    grey = np.asarray(Image.open(shot).convert("L"), np.float64)
    assert grey.shape[1] == 1100
    for top in range(0, 3600, 600):
        part = grey[top : top + 600]
        assert part.std() > 8.0, f"nothing is drawn from row {top} on"
        assert part.min() < 100.0 < 240.0 < part.max()
    margin = grey[:, -20:]
    assert margin.std() < 1.0, "something runs over the right edge"
