"""The paper's comparisons as grids: every one can be run, and its page says what the paper says beside what came out."""

from __future__ import annotations

import json

import pytest
from scripted import TINY

import lpds
from lpds.api import resolve_settings
from lpds.grid import grid_cells
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
        values = {key: value if key in ("dual", "sampler") else float(value) for key, value in words.items()}
        run, method = resolve_settings(resolve("task", TASKS, cell.task), cell.method, values)
        assert run.steps == what.steps
        for key, value in values.items():
            assert getattr(run, key, getattr(method, key, None)) == value


def test_a_page_says_what_the_paper_says_and_what_was_measured(tmp_path, monkeypatch, refused):
    small = ",".join(f"{key}={value}" for key, value in TINY.items() if key not in ("quiet", "steps", "width", "depth"))
    tiny = Reproduction("A toy", "toy", (f"base+t:{small}", f"lpds+t:{small},width=8,depth=1"), ("One goal.",), ("Small.",))
    monkeypatch.setitem(REPRODUCTIONS, "tiny", tiny)
    page = reproduce("tiny", tmp_path / "out", seeds=1, steps=400)
    assert "- One goal." in page
    assert "- Small." in page
    assert "toy: against frozen" in page
    assert "![toy-learning.png](toy-learning.png)" in page
    assert (tmp_path / "out" / "README.md").read_text() == page
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]
    assert sorted(path.name for path in (tmp_path / "out").glob("toy-*")) == ["toy-learning.csv", "toy-learning.png"]
    lines: list[str] = []
    again = reproduce("tiny", tmp_path / "other", seeds=1, steps=400, runs=tmp_path / "out" / "runs", say=lines.append)
    assert lines == ["2 runs, 2 finished before"]
    assert again == page
    with refused("unknown figure 'fig3'", "fig2"):
        reproduce("fig3", tmp_path)


def test_the_untrained_chain_is_another_policy_than_the_decoder_and_scale_zero_is_the_decoder(tmp_path):
    options = {"steps": 200, "eval_every": 0, "final_episodes": 4, "quiet": True}
    chain = lpds.steer("toy", "base", sampler="chain", out=tmp_path / "chain", **options)
    plain = lpds.steer("toy", "base", out=tmp_path / "plain", **options)
    assert (plain.steered.returns == plain.frozen.returns).all()
    assert (chain.frozen.returns == plain.frozen.returns).all()
    assert (chain.steered.returns != plain.frozen.returns).any()
    opened = lpds.evaluate(lpds.load_policy(tmp_path / "chain"), "toy", episodes=4)
    assert (opened.returns == chain.steered.returns).all()
