"""What a sixth reading found: curves of fewer seeds, budgets that nothing holds, verdicts on ties, files that are not ours."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from scripted import CPU, SPEC, TINY, identity_decoder
from test_compare import write_run

import lpds
from lpds import remarks
from lpds.checkpoint import CheckpointStore
from lpds.cli import main
from lpds.grid import grid_cells
from lpds.replay import Replay
from lpds.report.compare import compare
from lpds.report.curves import curves, metric
from lpds.report.html import _pooled
from lpds.report.paired import Comparison
from lpds.report.read import group_runs, read_runs
from lpds.report.series import figures_of
from lpds.reproduce.grids import _cell_of
from lpds.stats import crossed_bootstrap, iqm, paired_share_gain, pairs_that_differ, told_apart
from lpds.verdict import against_line, verdict_line

RESULTS = Path(__file__).parents[1] / "results"
SHORT = TINY | {"steps": 360, "warmup_steps": 150, "num_envs": 2, "delta": 0.5}


class Two(gymnasium.Env):
    """Two vectors in a dict, whose keys' order is not the alphabet's, and actions in a box of any edges."""

    def __init__(self, low=-1.0, high=1.0):
        self.observation_space = gymnasium.spaces.Dict(
            [(name, gymnasium.spaces.Box(-9.0, 9.0, (size,), np.float32)) for name, size in (("place", 2), ("goal", 1))]
        )
        self.action_space = gymnasium.spaces.Box(np.full(2, low, np.float32), np.full(2, high, np.float32))

    def _obs(self):
        return {"place": self.place.astype(np.float32), "goal": np.ones(1, np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = self.np_random.normal(size=2), 0
        return self._obs(), {}

    def step(self, action):
        self.time += 1
        self.place = np.clip(self.place + 0.1 * action, -5.0, 5.0)
        return self._obs(), -float(np.abs(self.place).sum()), False, self.time >= 12, {}


def cut(run: Path, step: int) -> None:
    """Leave of a run what it was at a step."""
    for name in ("metrics.jsonl", "eval.jsonl", "episodes.jsonl"):
        rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
        rows = [row for row in rows if row["step"] <= step and not str(row.get("kind", "")).startswith("final")]
        (run / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "summary.json").unlink(missing_ok=True)


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


def test_cells_of_a_reproduction_keep_their_rows_whatever_tells_them_apart():
    names = ["lpds+delta0.1 (fingerprint ab, ...)", "lpds #2", "frozen 12ab34", "frozen", "lpds-a", "dsrl-na+equal"]
    assert [_cell_of(name) for name in names] == ["lpds+delta0.1", "lpds", "frozen", "frozen", "lpds-a", "dsrl-na+equal"]


def test_a_second_group_of_one_variant_keeps_its_name(tmp_path):
    for number, fingerprint in enumerate("ab"):
        run = tmp_path / "toy" / "lpds+small" / f"seed{number}"
        write_run(run, "lpds", number, [1.0] * 8)
        config = json.loads((run / "config.json").read_text())
        config["decoder"]["fingerprint"] = fingerprint * 64
        (run / "config.json").write_text(json.dumps(config))
    first, second = group_runs(read_runs([tmp_path / "toy" / "lpds+small" / f"seed{number}" for number in range(2)]))
    assert first.label == "lpds+small"
    assert second.label.startswith("lpds+small (")


def test_environments_that_only_a_factorys_name_makes_one_are_told(tmp_path):
    folders = []
    for name in ("one", "two"):
        decoder = identity_decoder((1, 2), 3, name=name)
        folders.append(lpds.steer(decoder=decoder, env=Two, out=tmp_path / name, **SHORT).folder)
    assert "shares no frozen episode" in "\n".join(compare(folders).notes)
    assert "shares no frozen episode" not in "\n".join(compare(folders[:1]).notes)


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
    changes = SHORT | {"delta": 0.1, "delta_unit": "mean"}
    for method, size in (("lpds-a", 4), ("lpds", 24)):
        run = lpds.steer(method=method, decoder=decoder, env=Two, out=tmp_path / method, **changes)
        (data,) = read_runs([run.folder])
        assert data.shifts_action == (method == "lpds-a")
        assert data.budget_sq == pytest.approx(0.1 * size)


def test_seeds_of_other_frozen_episodes_are_no_more_episodes_in_the_overview():
    """Three seeds of ten shared episodes, all of which the steered policies pass: the bounds that ``lpds compare`` has."""
    rng = np.random.default_rng(0)
    frozen = [(rng.random(50) < 0.9).astype(float) for _ in range(3)]
    steered = [np.ones(50)] * 3

    def side(successes):
        return dict.fromkeys(("return", "success", "success_at_end", "length"), successes)

    row = _pooled([Comparison(1, True, side(f), side(s)) for f, s in zip(frozen, steered, strict=True)], "success")
    mean, low, high = (100.0 * value for value in paired_share_gain(np.stack(frozen), np.stack(steered)))
    assert row[2] == f"{mean:+.0f} points [{low:+.0f}, {high:+.0f}]"


def test_ties_are_no_pairs_that_tell_a_sign():
    """Four episodes of fifty went another way, all up: by chance in one case of eight (exact McNemar p = 0.125)."""
    frozen, steered = np.zeros(50), np.r_[np.ones(4), np.zeros(46)]
    assert pairs_that_differ(frozen, steered) == 4
    difference = lpds.stats.paired_difference(frozen, steered)
    assert difference[1] > 0.0
    assert told_apart(difference, 4) == 0
    line = verdict_line((0.0, 0.08), None, difference, 50, 4)
    assert "not told apart" in line
    assert "4 do" in line
    assert "over 50 episodes" in line
    assert "not told apart" in against_line(frozen, steered, "x")
    assert "BETTER" in verdict_line((0.0, 0.2), None, (0.2, 0.1, 0.3), 50, 10)
    seeds = np.stack([steered, frozen, np.r_[np.zeros(4), np.ones(2), np.zeros(44)]])
    assert pairs_that_differ(frozen, seeds) == 6
    assert pairs_that_differ([math.nan, 1.0], [math.nan, 1.0]) == 0


def test_a_comparison_of_ties_is_undecided(tmp_path):
    write_run(tmp_path / "run", "lpds", 0, [1.0] * 4 + [0.0] * 46)
    report = compare(tmp_path / "run")
    row = report.rows[-1]
    assert (row.pairs, row.differ, row.verdict) == (50, 4, "undecided")
    assert "fewer than 6 episodes that differ cannot decide it" in str(report)
    assert "P(better)" not in str(report)  # a column of nothing


def test_the_interquartile_mean_of_one_episode_has_no_bounds():
    found = crossed_bootstrap([5.0], iqm)
    assert found[0] == 5.0
    assert all(map(math.isnan, found[1:]))


def test_a_checkpoint_leaves_alone_what_is_not_its_own(tmp_path):
    """And takes away what is: the state of the checkpoint before."""
    store = CheckpointStore(tmp_path)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    replay = Replay(SPEC, 8, 0, 2, CPU)
    for step in (1, 2):
        store.save({"x": torch.full((1,), float(step))}, {"step": step}, replay)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / ".ipynb_checkpoints").is_dir()
    assert [path.name.split("-")[1] for path in tmp_path.glob("state-*")] == ["000000002"]


@pytest.mark.parametrize("name", ["../../x", "a/b", "a b", "/x"])
def test_a_variants_name_is_a_folders(refused, name):
    with refused("a folder's name", name):
        grid_cells("toy", [f"lpds+{name}:width=32"], 1, 2000)


def test_actions_beyond_a_boxs_one_edge_are_told(tmp_path, capsys):
    """Half of a normal lies below an edge at 0; nothing is said of one that keeps to its side."""
    action = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    low, high = torch.tensor([-torch.inf, 0.0]), torch.tensor([torch.inf, torch.inf])
    shares, columns = remarks.beyond_single_edges(action, low, high)
    assert columns.tolist() == [1]
    assert shares[0] == pytest.approx(float((action[:, 1] < 0).double().mean()), abs=0.02)
    assert remarks.beyond_single_edges(action.abs(), low, high)[0].tolist() == [0.0]
    assert remarks.beyond_single_edges(-action.abs(), -high, -low)[0].tolist() == [0.0]
    decoder = identity_decoder((1, 2), 3)
    lpds.steer(decoder=decoder, env=lambda: Two(0.0, np.inf), out=tmp_path / "run", **SHORT | {"quiet": False})
    assert "beyond the environment's box" in capsys.readouterr().err
    found = {finding.name: finding for finding in lpds.check(decoder, lambda: Two(0.0, np.inf)).findings}["action range"]
    assert found.verdict != "ok"
    assert "columns 0-1 beyond their one edge" in found.figure


def test_a_policy_that_was_lost_comes_back_with_going_on(tmp_path, capsys):
    """To the bit, from the checkpoint; until then what is missing is named."""
    run = tmp_path / "run"
    lpds.steer(decoder=(decoder := identity_decoder((1, 2), 3)), env=Two, out=run, **SHORT)
    kept = {name: (run / "policy" / name).read_bytes() for name in ("policy.json", "policy.safetensors")}
    (run / "policy" / "policy.safetensors").unlink()
    with pytest.raises(lpds.errors.LpdsError, match=r"policy/policy\.safetensors is missing"):
        lpds.load_policy(run, decoder=decoder)
    shutil.rmtree(run / "policy")
    assert main(["eval", str(run)]) == 2
    assert "has lost its policy" in capsys.readouterr().err
    lpds.resume(run, decoder=decoder, env=Two, quiet=True)
    assert {name: (run / "policy" / name).read_bytes() for name in kept} == kept


def test_a_checkpoint_without_its_list_is_no_committed_result(tmp_path, refused):
    run = lpds.steer(decoder=(decoder := identity_decoder((1, 2), 3)), env=Two, out=tmp_path / "run", **SHORT).folder
    (run / "checkpoint" / "checkpoint.json").unlink()
    with refused("checkpoint/checkpoint.json", "missing"):
        lpds.resume(run, decoder=decoder, env=Two, quiet=True)


def test_another_methods_setting_is_told_whose_it_is(capsys, tmp_path):
    assert main(["steer", "toy", "--method", "golden-ticket", "--delta", "1", "--out", str(tmp_path / "x")]) == 2
    told = capsys.readouterr().err
    assert "golden-ticket has no setting --delta" in told
    assert "lpds" in told
    assert main(["steer", "toy", "--detla", "1", "--out", str(tmp_path / "x")]) == 2
    assert "did you mean --delta" in capsys.readouterr().err


def test_a_policy_of_one_vector_takes_the_environments_dict(tmp_path, refused):
    """Its parts go end to end in the order of the space, which is not the alphabet's, as they did in the run."""
    decoder = lpds.wrap_decoder(
        lambda s, w: w + s[:, None, :2], obs_shape=(3,), latent_shape=(1, 2), action_shape=(1, 2), name="two"
    )
    run = lpds.steer(decoder=decoder, env=Two, out=tmp_path / "run", **SHORT)
    policy = lpds.load_policy(run, decoder=decoder)
    place, goal = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32), np.ones((4, 1), np.float32)
    eps = np.zeros((4, 1, 2), np.float32)
    found = policy.act({"goal": goal, "place": place}, eps)
    assert np.array_equal(found, policy.act(np.concatenate([place, goal], 1), eps))
    assert np.array_equal(policy.act({"goal": goal, "place": place}, eps, scale=0.0)[:, 0], place)
    assert np.array_equal(policy.shift({"goal": goal, "place": place}), policy.shift(np.concatenate([place, goal], 1)))
    with refused("lacks goal"):
        policy.act({"place": place}, eps)
    with refused("cannot be put end to end"):
        policy.act({"place": place, "goal": goal[:2]}, eps)


def test_a_decoders_file_and_name_that_are_not_there_are_named(tmp_path, refused):
    with refused("there is no file", "none.py"):
        lpds.load_decoder(f"python:{tmp_path}/none.py:decoder")
    (tmp_path / "mine_sixth.py").write_text("decoder = None\n")
    with refused("decodr", "did you mean 'decoder'"):
        lpds.load_decoder(f"python:{tmp_path}/mine_sixth.py:decodr")
