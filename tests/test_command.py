"""The command that makes a run again is an inverse: what it is read to mean are the settings that the run has."""

from __future__ import annotations

import json
import shlex
from html import escape
from pathlib import Path

import numpy as np
import pytest
from scripted import TINY, toy_decoder

import lpds
from lpds.cli import main
from lpds.command import changed_words, steer_command
from lpds.config import RunSettings
from lpds.fields import parse, to_json
from lpds.grid import NO_SETTINGS, finished_cells, grid_cells
from lpds.log import read_json_lines
from lpds.presets import kept_settings, resolve_preset, resolve_settings, resolve_task
from lpds.registry import METHOD_SETTINGS, TASKS, resolve
from lpds.report.html import write_report

RESULTS = Path(__file__).parents[1] / "results"
COMMITTED = sorted(path.parent for path in RESULTS.glob("*/*/seed*/config.json"))
CHANGED = [
    "--delta-unit=nats --delta=0.5 --reward-offset=-0.05",
    "--preset=quiet --eval-average-updates=0 --gamma=0.9974905699336811",
    "--method=dsrl-na --temperature=0.3 --input-scaling=false",
    "--method=dppo",
    "--preset=paper --noise-bound=inf --decoder=toy",
]


def config_of(run):
    return json.loads((run / "config.json").read_text())


@pytest.mark.parametrize("run", COMMITTED, ids=lambda run: "/".join(run.parts[-3:]))
def test_a_committed_runs_words_mean_its_settings(run):
    config = config_of(run)
    words, method = changed_words(config), config["method"]
    kinds = (RunSettings, resolve("method", METHOD_SETTINGS, method))
    changes = {key: parse(kinds, key, word) for key, word in words.items() if key not in NO_SETTINGS}
    changes |= {"seed": config["run"]["seed"], "steps": config["run"]["steps"]}
    task = resolve_task(config["task"], None, None)
    found = resolve_settings(task, method, changes, resolve_preset(words.get("preset"), method, config["task"]))
    assert {**to_json(found[0]), **to_json(found[1])} == kept_settings(config)


def test_committed_runs_are_under_their_methods_names():
    for run in COMMITTED:
        config = config_of(run)
        method, _, variant = run.parent.name.partition("+")
        assert method == config["method"], run
        assert run.parents[1].name == config["task"].replace(":", "-"), run
        assert run.name == f"seed{config['run']['seed']}", run
        if not variant:  # a name without a variant is the preset's own, where the task has a policy of its own
            assert not changed_words(config).keys() - {"decoder", "flat", "instruction", "eval_every"}, run


def test_the_index_has_every_committed_run():
    page = (RESULTS / "INDEX.md").read_text()
    for run in COMMITTED:
        config = config_of(run)
        line = steer_command({**config, "run": {**config["run"], "seed": "N"}})
        rows = [row for row in page.splitlines() if row.startswith(f"| `{run.parent.name}` |") and f"`{line}`" in row]
        assert any(str(config["run"]["seed"]) in row.split("|")[2].replace(",", " ").split() for row in rows), (
            f"{run}: python benchmarks/run_index.py"
        )


def steered_returns(folder: Path) -> list[float]:
    """Of each seed's last evaluation, the mean."""
    kept = []
    for run in sorted(folder.glob("seed*")):
        rows = read_json_lines(run / "eval.jsonl")
        kept.append(np.mean([row["return"] for row in rows if row["kind"] == "final" and row["scale"] == 1.0]))
    return kept


def test_the_tables_are_of_the_committed_runs():
    """A second seed lay beside a table that told of one."""
    for row in json.loads((RESULTS / "table.json").read_text())["rows"]:
        wanted = steered_returns(RESULTS / row["task"] / "lpds")
        assert row["steered_by_seed"] == pytest.approx(wanted), f"{row['task']}: make tables"
    tables = json.loads((RESULTS / "rivals.json").read_text())["tables"].values()
    made_by = {
        "python benchmarks/rival_tables.py": [row for table in tables for found in table.values() for row in found["rows"]]
    }
    for figure in ("gym", "residual"):
        rows = json.loads((RESULTS / f"reproduce-{figure}" / "summary.json").read_text())["rows"]
        made_by[f"lpds reproduce {figure} --runs results --seeds 3 --steps 100000 --no-run"] = rows
    for command, rows in made_by.items():
        for row in rows:
            folder = RESULTS / row["task"] / row["label"]
            if folder.is_dir():
                wanted = steered_returns(folder)
                said = f"{row['task']}/{row['label']}: {command}"
                assert (row["seeds"], row["mean"][0]) == (len(wanted), pytest.approx(np.mean(wanted))), said


@pytest.mark.parametrize("words", CHANGED)
def test_a_command_read_back_from_its_run_makes_the_same_run(words, tmp_path):
    short = "--steps 64 --warmup-steps 32 --eval-every 0 --final-episodes 2 --seed 3 --num-envs 2"
    main(["steer", "toy", *words.split(), *short.split(), "--out", str(tmp_path / "first")])
    first = config_of(tmp_path / "first")
    line = steer_command(first)
    assert line.startswith("lpds steer toy ")
    main([*shlex.split(line)[1:], "--out", str(tmp_path / "second")])
    assert config_of(tmp_path / "second") == first
    write_report([tmp_path / "first"], tmp_path / "page.html")
    assert escape(line) in (tmp_path / "page.html").read_text()


FITS = sorted(path.parent for name in ("fits", "fits-t0.03") for path in RESULTS.glob(f"*/dsrl-na+{name}/seed*/config.json"))


@pytest.mark.parametrize("run", FITS, ids=lambda run: "/".join(run.parts[-3:]))
def test_the_preset_fits_is_what_was_run(run):
    """What the pages say of DSRL with LP-DS's start is of the settings that ``--preset fits`` gives, on each of its tasks."""
    config = config_of(run)
    named = resolve_preset("fits", "dsrl-na", config["task"])
    both = resolve_settings(resolve_task(config["task"], None, None), "dsrl-na", {"seed": config["run"]["seed"]}, named)
    assert {**to_json(both[0]), **to_json(both[1])} == kept_settings(config)


@pytest.mark.parametrize("name", TASKS)
def test_the_preset_fits_has_the_start_and_the_updates_of_lpds_on_every_task(name):
    task = resolve_task(name, None, None)
    ours = resolve_settings(task, "lpds", {})[0]
    theirs = resolve_settings(task, "dsrl-na", {}, resolve_preset("fits", "dsrl-na", name))[0]
    for setting in (
        "warmup_steps",
        "warmup_fits",
        "warmup_policy",
        "reward_scale",
        "updates_per_decision",
        "batch_size",
        "gamma",
    ):
        assert getattr(theirs, setting) == getattr(ours, setting), setting


def test_a_plain_run_has_a_plain_command():
    config = config_of(RESULTS / "hopper" / "lpds" / "seed0")
    assert steer_command(config) == "lpds steer hopper --seed 0 --steps 100000"


def test_a_value_that_begins_with_a_minus_is_no_flag():
    config = config_of(RESULTS / "hopper" / "lpds" / "seed0")
    config["run"]["reward_offset"] = -0.05
    assert "--reward-offset=-0.05" in shlex.split(steer_command(config))


def test_a_setting_younger_than_the_run_had_its_default_and_not_the_presets():
    """Today's preset takes a mean of the weights; a run from before there was one did not."""
    config = config_of(RESULTS / "hopper" / "lpds+quiet-100k" / "seed0")
    assert "eval_average_updates" not in changed_words(config)
    del config["settings"]["eval_average_updates"]
    assert changed_words(config)["eval_average_updates"] == "0"


@pytest.mark.parametrize(("options", "end"), [({"flat": True}, " --flat"), ({"flat": False}, ""), ({"mine": 1}, None)])
def test_a_switch_that_is_off_is_no_flag_and_an_option_without_one_has_no_command(options, end):
    config = config_of(RESULTS / "hopper" / "lpds" / "seed0")
    config["decoder"]["options"] = options
    assert steer_command(config) == (None if end is None else f"lpds steer hopper --seed 0 --steps 100000{end}")


def test_objects_have_no_command(tmp_path):
    run = lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "run", **TINY)
    assert steer_command(config_of(run.folder)) is None


def test_a_grid_does_not_take_an_older_run_for_todays_preset(tmp_path, refused):
    """The older run lacks the preset's newest setting, so it is another run."""
    cells = grid_cells("toy", ["lpds+quiet:preset=quiet"], 1, 64)
    folder = tmp_path / cells[0].path
    main(f"steer toy --preset quiet --steps 64 --warmup-steps 32 --eval-every 0 --final-episodes 2 --out {folder}".split())
    config = config_of(folder)
    quick = {key: str(config["run"][key]) for key in ("warmup_steps", "eval_every", "final_episodes")}
    cells = grid_cells("toy", ["lpds+quiet:preset=quiet"], 1, 64, quick)
    assert len(finished_cells(cells, tmp_path)) == 1
    del config["settings"]["eval_average_updates"]
    (folder / "config.json").write_text(json.dumps(config))
    with refused("eval_average_updates 0 in place of"):
        finished_cells(cells, tmp_path)
