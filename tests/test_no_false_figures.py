"""Figures that would have been false: nothing learned told as a gain, curves of other budgets averaged, silence left out."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from scripted import TINY, Scripted, toy_decoder
from test_compare import write_run
from test_demonstrations import made_up
from test_report import make_run

import lpds
from lpds.grid import Cell, grid_cells, run_grid
from lpds.report.read import group_runs, read_runs
from lpds.report.series import figures_of
from lpds.stats import bootstrap_mean
from lpds.video.record import Recorder

SEARCH = {"steps": "400", "eval_every": "0", "final_episodes": "2", "warmup_steps": "1"}


@pytest.mark.parametrize("method", ["dsrl-na", "dsrl-sac", "best-of-n", "lpds"])
def test_what_learned_nothing_is_the_frozen_policy_in_every_figure_and_in_what_is_saved(method, tmp_path):
    """A fresh actor draws at random: a warm-up that takes the whole budget must not tell its luck as what was learned."""
    tiny = {key: value for key, value in TINY.items() if key not in ("width", "depth")}
    run = lpds.steer("toy", method, decoder=toy_decoder(), out=tmp_path / "run", **tiny | {"warmup_steps": 10_000})
    assert np.array_equal(run.frozen.returns, run.steered.returns)
    assert run.verdict().startswith("NOTHING WAS LEARNED: the warm-up of 10,000 steps took the whole budget")
    assert json.loads((run.folder / "summary.json").read_text())["learned"] is False
    report = lpds.compare(run.folder)
    assert f"toy: nothing was learned in {run.folder}" in report.notes
    assert next(row for row in report.rows if row.label == method).verdict == "the same"
    opened = lpds.load_policy(run.folder, toy_decoder())
    obs, eps = np.ones((2, 2), np.float32), np.ones((2, 4, 2), np.float32)
    assert np.array_equal(opened.act(obs, eps), opened.act(obs, eps, scale=0.0))
    more = lpds.resume(run.folder, steps=10_100, decoder=toy_decoder(), quiet=True)  # and it goes on from there
    assert not more.unlearned
    assert lpds.load_policy(run.folder, toy_decoder()).method == method


def test_a_search_that_its_budget_did_not_finish_says_by_how_much(tmp_path, capsys):
    """The best of four single episodes passed for a search of sixteen tickets."""
    sizes = {key: value for key, value in TINY.items() if key not in ("width", "depth")} | {
        "warmup_steps": 1,
        "eval_every": 0,
        "quiet": False,
    }
    short = lpds.steer("toy", "golden-ticket", decoder=toy_decoder(), out=tmp_path / "short", **sizes | {"steps": 2_400})
    caveat = json.loads((short.folder / "summary.json").read_text())["caveat"]
    assert re.fullmatch(
        r"the budget was too small for the search: 0 of its 4 halvings, \d+ of 16 tickets never played; the best was chosen by "
        r"\d+ episodes? of its own",
        caveat,
    )
    assert f"golden-ticket: {caveat}" in capsys.readouterr().err
    assert f"toy: {short.folder}: {caveat}" in lpds.compare(short.folder).notes
    long = lpds.steer("toy", "golden-ticket", decoder=toy_decoder(), out=tmp_path / "long", **sizes | {"steps": 12_000})
    assert "caveat" not in json.loads((long.folder / "summary.json").read_text())
    settings = json.loads((long.folder / "policy" / "policy.json").read_text())["settings"]
    assert len(settings["plays"]) == settings["tickets"] == 16
    assert min(settings["plays"]) > 0


def test_a_seed_that_never_succeeds_counts_where_an_info_names_success_only_where_there_is_one(tmp_path):
    folders = [write_run(tmp_path / f"s{seed}", "lpds", seed, [float(seed)] * 6) for seed in (0, 1)]
    rows = [json.loads(line) for line in (folders[0] / "eval.jsonl").read_text().splitlines()]
    rows = [row | {"success": 1.0 if row["episode"] and row["scale"] else 0.0} for row in rows]
    (folders[0] / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = next(row for row in lpds.compare(folders).rows if row.label == "lpds")
    assert row.success[0] == pytest.approx((5 / 6 + 0.0) / 2)
    assert row.success_difference[0] == pytest.approx((5 / 6 + 0.0) / 2)


def test_curves_of_seeds_meet_at_the_same_steps_though_one_went_on_from_a_smaller_budget(tmp_path):
    """That one has a point, and rows, where its old end was, and was logged more often until then."""
    folders = [make_run(tmp_path / f"s{seed}", seed=seed, gain=10.0 * seed) for seed in (0, 1)]
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"run": config["run"] | {"eval_every": 8_000}}))
    path = folders[0] / "eval.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    old_end = [row | {"step": 12_000, "return": 9_999.0} for row in rows if row["kind"] == "curve" and row["step"] == 8_000]
    path.write_text("".join(json.dumps(row) + "\n" for row in sorted([*rows, *old_end], key=lambda row: row["step"])))
    path = folders[0] / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    finer = [
        row | {"step": row["step"] + 500, "alpha": 9.0} for row in rows if row["alpha"] is not None and row["step"] < 12_000
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in sorted([*rows, *finer], key=lambda row: row["step"])))
    groups = group_runs(read_runs(folders))
    assert len(groups) == 1
    figures = {figure.name: figure for figure in figures_of(groups)}
    curve = next(series for series in figures["learning"].panels[0].series if series.kind == "line")
    assert curve.x.tolist() == [0, 8_000, 16_000, 24_000]
    assert curve.y.max() < 200.0
    alpha = figures["dual"].panels[0].series[0]
    late = alpha.x >= 12_000
    both = [run.column("alpha") for run in read_runs(folders)]
    later = [dict(zip(x.tolist(), y.tolist(), strict=True)) for x, y in both]
    for step, value in zip(alpha.x[late].tolist(), alpha.y[late].tolist(), strict=True):
        assert value == pytest.approx(np.mean([found[step] for found in later]))


def test_two_seeds_with_one_row_each_are_drawn(tmp_path):
    """As they are in the first minute: there is no distance between rows yet."""
    folders = [make_run(tmp_path / f"s{seed}", seed=seed) for seed in (0, 1)]
    for folder in folders:
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        (folder / "metrics.jsonl").write_text(rows[10] + "\n")
    figures = {figure.name: figure for figure in figures_of(group_runs(read_runs(folders)))}
    alpha = figures["dual"].panels[0].series[0]
    assert alpha.x.tolist() == [10_000]
    assert alpha.y[0] == pytest.approx(np.mean([run.column("alpha")[1][0] for run in read_runs(folders)]))


def test_the_row_at_a_smaller_budgets_end_keeps_what_was_learned(tmp_path):
    run = make_run(tmp_path / "a")
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    again = {**dict.fromkeys(rows[12]), "step": rows[12]["step"], "wall_s": 99.0}  # what a run that goes on writes first
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:13], again, *rows[13:]]))
    steps, alpha = read_runs([run])[0].column("alpha")
    assert len(steps) == len(rows)
    assert alpha[12] == rows[12]["alpha"]
    assert read_runs([run])[0].metrics[12]["wall_s"] == 99.0


def test_a_grid_has_the_presets_budget_where_none_is_said_and_tells_of_a_larger_one(tmp_path, monkeypatch):
    from lpds import grid

    short = Cell("toy", "base", "", 0, {key: value for key, value in SEARCH.items() if key != "warmup_steps"})
    assert run_grid([short], tmp_path) == [tmp_path / short.path]
    started = []
    monkeypatch.setattr(grid, "_start", lambda cell, out: started.append(cell) or pytest.fail("begun"))
    unsaid = Cell("toy", "base", "", 0, {key: value for key, value in short.settings.items() if key != "steps"})
    with pytest.raises(pytest.fail.Exception, match="begun"):
        run_grid([unsaid], tmp_path)
    assert started[0].settings["steps"] == "20000"
    said: list[str] = []
    less = Cell("toy", "base", "", 0, {**short.settings, "steps": "100"})
    assert run_grid([less], tmp_path, say=said.append) == [tmp_path / less.path]
    assert "toy/base/seed0: has 400 steps, more than the 100 asked for" in said


def test_a_run_whose_last_evaluation_was_broken_off_is_not_finished(tmp_path, monkeypatch):
    from lpds import runner

    cell = Cell("toy", "base", "", 0, {key: value for key, value in SEARCH.items() if key != "warmup_steps"})
    run_grid([cell], tmp_path)

    def broken(*given, **named):
        raise RuntimeError("killed")

    with monkeypatch.context() as during:
        during.setattr(runner, "evaluate_policy", broken)
        with pytest.raises(RuntimeError, match="killed"):
            lpds.resume(tmp_path / cell.path, quiet=True)
    assert not (tmp_path / cell.path / "summary.json").exists()
    assert run_grid([cell], tmp_path) == [tmp_path / cell.path]
    assert lpds.compare(tmp_path / cell.path).rows


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("lpds+a:seed=3", "a grid's seeds are 0, 1"),
        ("base+a:out=elsewhere", "unknown setting of base 'out'"),
        ("lpds+a:detla=1", "did you mean 'delta'"),
    ],
)
def test_a_variant_changes_settings_and_nothing_else(word, says, refused):
    with refused(says):
        grid_cells("toy", [word], 1)


def test_demonstrations_that_the_replay_does_not_hold_are_refused_before_the_run(tmp_path, refused):
    made_up((40,) * 10, (True,) * 10).save(tmp_path / "d.npz")
    given = TINY | {"demos": str(tmp_path / "d.npz"), "replay_size": 120}
    with refused("replay_size 120 does not hold the 100 decisions of the demonstrations", "150 would"):
        lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_success_at_the_last_step_is_what_the_last_step_says():
    class Silent(Scripted):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, info if self.at == 2 else {}

    env = lpds.make_env(lambda: Silent([([0.0, 1.0, 0.0, 0.0], "terminated")]), 1, 4)
    env.reset(seed=0)
    info = env.step(np.zeros((1, 4, 1), np.float32))[-1]
    assert info["success"].tolist() == [1.0]
    assert np.isnan(info["success_last"][0])


def test_a_film_hears_of_success_what_an_evaluation_hears():
    class Says(Scripted):
        def step(self, action):
            *rest, _ = super().step(action)
            return *rest, {"success": None, "is_success": [float("nan"), 0.0, 1.0][self.at - 1]}

    episodes = {}
    env = Recorder(Says([([0.0] * 3, "terminated")]), episodes)
    env.reset(seed=4)
    for _ in range(3):
        env.step(np.zeros(1, np.float32))
    assert episodes[4].successes == [None, False, True]


def test_a_large_sample_is_resampled_in_pieces_of_the_same_stream():
    x = np.random.default_rng(0).normal(size=3_000)
    draws = np.random.default_rng(0).integers(x.size, size=(4_000, x.size))
    means = x[draws].mean(1)
    mean, low, high = bootstrap_mean(x, resamples=4_000)
    assert mean == x.mean()
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=2e-4)
    assert low == pytest.approx(np.quantile(means, 0.0249), abs=1e-3)


def test_an_edited_decoder_file_is_read_again(tmp_path):
    path = tmp_path / "mine_edited.py"
    shapes = "obs_shape=2, latent_shape=(1, 2), action_shape=(1, 2)"
    text = f"import lpds\nmade = lpds.wrap_decoder(lambda s, w: {{}} * w, {shapes}, name='m')\n"
    path.write_text(text.format(1))
    first = lpds.load_decoder(f"python:{path}:made")
    assert lpds.load_decoder(f"python:{path}:made") is first
    path.write_text(text.format(5))
    second = lpds.load_decoder(f"python:{path}:made")
    w = torch.ones(1, 1, 2)
    assert torch.equal(second(torch.zeros(1, 2), w), 5.0 * first(torch.zeros(1, 2), w))
    assert second.fingerprint != first.fingerprint


def test_a_run_leaves_the_callers_threads_as_they_were(tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        lpds.steer(
            "toy", "base", decoder=toy_decoder(), out=tmp_path / "run", steps=64, eval_every=0, final_episodes=1, quiet=True
        )
        assert torch.get_num_threads() == 2
        lpds.resume(tmp_path / "run", decoder=toy_decoder(), quiet=True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_policy_of_less_noise_is_set_against_a_frozen_policy_of_as_little(tmp_path, capsys):
    from lpds.cli import main

    quiet = {key: value for key, value in TINY.items() if key != "quiet"} | {"eval_noise_scale": 0.25, "quiet": True}
    run = lpds.steer("toy", out=tmp_path / "run", **quiet)
    capsys.readouterr()
    assert main(["eval", str(run.folder), "--episodes", "3", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["scale"], row["noise_scale"]) for row in rows[::3]] == [(0.0, 1.0), (0.0, 0.25), (1.0, 1.0)]
    wanted = lpds.evaluate("toy", "toy", episodes=3, noise_scale=0.25)
    assert [row["return"] for row in rows[3:6]] == wanted.returns.tolist()
    (note,) = [note for note in lpds.compare(run.folder).notes if "less than all of the noise" in note]
    assert note.startswith("toy: evaluated with less than all of the noise, which the frozen policy has: lpds")


@pytest.mark.parametrize(
    ("method", "unused", "used"),
    [
        ("base", {"warmup_steps": 9, "replay_size": 300, "keep": "best"}, {}),
        ("golden-ticket", {"replay_size": 300}, {}),
        ("dppo", {"batch_size": 7, "clip_rate": 9.0}, {"warmup_fits": 1, "clip": 0.1}),
    ],
)
def test_what_changes_nothing_is_told_and_what_changes_something_is_not(tmp_path, capsys, method, unused, used):
    given = {"steps": 400, "eval_every": 200, "eval_episodes": 2, "final_episodes": 2}
    given |= {"iteration_rounds": 10, "width": 16, "warmup_steps": 100} if method == "dppo" else {}
    runs = {}
    for name, more in (("plain", {}), ("unused", unused), ("used", unused | used)):
        folder = tmp_path / name
        lpds.steer("toy", method, out=folder, **given | more)
        said = "".join(capsys.readouterr())
        for key in unused:
            assert (f"{method} makes no use of {key}" in said) == (name == "unused" or (name == "used" and not used))
        runs[name] = (folder / "eval.jsonl").read_bytes()
    assert runs["plain"] == runs["unused"]
    assert (runs["used"] != runs["unused"]) == bool(used)


def test_a_setting_that_a_method_makes_no_use_of_is_told_where_it_is_given(tmp_path, capsys):
    given = {"steps": 64, "eval_every": 0, "final_episodes": 1, "tickets": 2, "warmup_steps": 1}
    unused = {"updates_per_decision": 3.0, "n_step": 2, "warmup_fits": 2, "demos": str(tmp_path / "none.npz")}
    for name, more in (("plain", {}), ("given", unused)):
        lpds.steer("toy", "golden-ticket", decoder=toy_decoder(), out=tmp_path / name, **given, **more)
        said = "".join(capsys.readouterr())
        assert ("golden-ticket makes no use of n_step" in said) == (name == "given")
        assert ("golden-ticket makes no use of updates_per_decision" in said) == (name == "given")
        assert ("golden-ticket makes no use of demos" in said) == (name == "given")
        assert "warm-up done" in said
        assert "critics" not in said  # it has none
        assert "rewards' size" not in said
