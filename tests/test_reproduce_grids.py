"""The paper's comparisons as grids: every one can be run, and its page says what the paper says beside what came out."""

from __future__ import annotations

import json

import pytest
from scripted import TINY

import lpds
from lpds.grid import grid_cells
from lpds.presets import resolve_settings
from lpds.registry import TASKS, resolve
from lpds.reproduce import REPRODUCTIONS, reproduce
from lpds.reproduce.grids import Reproduction


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_every_cell_of_every_figure_has_settings_that_resolve(name):
    what = REPRODUCTIONS[name]
    cells = grid_cells(what.suite, what.methods, 1, what.steps)
    assert len({cell.path for cell in cells}) == len(cells)
    for cell in cells:
        words = {key: value for key, value in cell.settings.items() if key != "decoder"}
        said = {"true": True, "false": False}
        values = {
            key: said[value] if value in said else value if key in ("dual", "sampler", "warmup_policy") else float(value)
            for key, value in words.items()
        }
        run, method = resolve_settings(resolve("task", TASKS, cell.task), cell.method, values)
        assert run.steps == what.steps
        for key, value in values.items():
            assert getattr(run, key, getattr(method, key, None)) == value


def test_a_page_says_what_the_paper_says_and_what_was_measured(tmp_path, monkeypatch, refused):
    small = ",".join(f"{key}={value}" for key, value in TINY.items() if key not in ("quiet", "steps", "width", "depth"))
    tiny = Reproduction(
        "A toy",
        "toy",
        (f"base+t:{small}", f"lpds+t:{small},width=8,depth=1"),
        ("One goal.",),
        ("Small.",),
        metrics=("w_norm", "action_entropy"),
        tables=(("The floor", ("base+t",)), ("Both", ("base+t", "lpds+t"))),
    )
    monkeypatch.setitem(REPRODUCTIONS, "tiny", tiny)
    lines: list[str] = []
    page = reproduce("tiny", tmp_path / "out", seeds=1, steps=400, say=lines.append)
    place = tmp_path / "out" / "runs"
    words = "are made now: --runs FOLDER uses runs that exist, --no-run only draws"  # hours began without a word
    assert lines[0] == f"2 of 2 runs of 400 steps are missing in {place} and {words}"
    assert "- One goal." in page
    assert "- Small." in page
    assert page.count("toy: against frozen") == 2
    floor, both = page.split("Both:")
    assert "base+t" in floor
    assert "lpds+t" not in floor  # nor in what is said of the floor
    assert "\nlpds+t" in both
    rows = [json.loads(line) for line in (tmp_path / "out/runs/toy/lpds+t/seed0/metrics.jsonl").read_text().splitlines()]
    norms = [row["w_norm"] for row in rows if row["w_norm"] is not None]
    change = [row["action_entropy"] - row["action_entropy_frozen"] for row in rows if row["action_entropy"] is not None]
    wanted = " | ".join(f"{values[0]:.3g} to {values[-1]:.3g}" for values in (norms, change))
    assert f"| toy, lpds+t | {wanted} |" in both
    assert "| toy, base+t | - | - |" in both
    assert "![toy-learning.png](toy-learning.png)" in page
    assert (tmp_path / "out" / "README.md").read_text() == page
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]
    assert sorted(path.name for path in (tmp_path / "out").glob("toy-*")) == ["toy-learning.csv", "toy-learning.png"]
    lines.clear()
    again = reproduce("tiny", tmp_path / "other", seeds=1, steps=400, runs=tmp_path / "out" / "runs", say=lines.append)
    assert lines == ["2 runs, 2 finished before"]
    given = f"`lpds reproduce tiny --seeds 1 --steps 400 --runs {tmp_path / 'out' / 'runs'}`"  # what made it is what it says
    assert again == page.replace("`lpds reproduce tiny --seeds 1 --steps 400`", given)
    with refused("unknown figure 'fig3'", "fig2"):
        reproduce("fig3", tmp_path)

    # two of three seeds are missing: the page is drawn of what is there, names the rest and runs nothing
    lines.clear()
    part = reproduce("tiny", tmp_path / "part", seeds=3, steps=400, runs=tmp_path / "out" / "runs", run=False, say=lines.append)
    assert lines == []
    assert "**2 of 6 runs are finished.** Not in the tables, by method and seed: toy/base+t 1, 2; toy/lpds+t 1, 2." in part
    assert f"| toy, lpds+t | {wanted} |" in part
    assert "--no-run`" in part
    with refused("none of the 6 runs is finished", "nowhere"):
        reproduce("tiny", tmp_path / "none", seeds=3, steps=400, runs=tmp_path / "nowhere", run=False)
    assert not (tmp_path / "none").exists()

    # a longer run is no run of an equal budget: it is drawn, up to that, and in no table of returns
    lpds.resume(tmp_path / "out/runs/toy/lpds+t/seed0", steps=600, quiet=True)
    part = reproduce("tiny", tmp_path / "longer", seeds=1, steps=400, runs=tmp_path / "out" / "runs", run=False)
    assert "Drawn, but longer than 400 steps, and so not in a table of returns: toy/lpds+t, 600 steps, 0." in part
    assert "\nlpds+t" not in part
    assert f"| toy, lpds+t | {wanted} |" in part
    part = reproduce("tiny", tmp_path / "shorter", seeds=1, steps=300, runs=tmp_path / "out" / "runs", run=False)
    assert part.count("no run of 300 steps") == 2


def test_the_curve_of_the_chain_is_the_chains(tmp_path):
    """What learns nothing has no warm-up: its curve, its training episodes and its last evaluation are of one policy."""
    options = {"steps": 200, "eval_every": 100, "eval_episodes": 4, "final_episodes": 4, "quiet": True}
    lpds.steer("toy", "base", sampler="chain", out=tmp_path / "chain", **options)
    rows = [json.loads(line) for line in (tmp_path / "chain" / "eval.jsonl").read_text().splitlines()]
    curve = [row for row in rows if row["kind"] == "curve"]
    assert {row["scale"] for row in curve} == {1.0}
    first = [row["return"] for row in curve if row["step"] == 0]
    opened = lpds.evaluate(lpds.load_policy(tmp_path / "chain"), "toy", episodes=4, seed=curve[0]["seed"])
    assert opened.returns.tolist() == first


def test_the_untrained_chain_is_another_policy_than_the_decoder_and_scale_zero_is_the_decoder(tmp_path):
    options = {"steps": 200, "eval_every": 0, "final_episodes": 4, "quiet": True}
    chain = lpds.steer("toy", "base", sampler="chain", out=tmp_path / "chain", **options)
    plain = lpds.steer("toy", "base", out=tmp_path / "plain", **options)
    assert (plain.steered.returns == plain.frozen.returns).all()
    assert (chain.frozen.returns == plain.frozen.returns).all()
    assert (chain.steered.returns != plain.frozen.returns).any()
    opened = lpds.evaluate(lpds.load_policy(tmp_path / "chain"), "toy", episodes=4)
    assert (opened.returns == chain.steered.returns).all()
