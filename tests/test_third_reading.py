"""What a third reading with fresh eyes found: each of these failed once."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from scripted import TINY, identity_decoder, toy_decoder
from test_collect import collector
from test_report import make_run, write_rows

import lpds
from lpds.api import resolve_settings
from lpds.checks import check_share
from lpds.cli import main
from lpds.config import LPDSASettings
from lpds.decoders.store import save_decoder
from lpds.diagnose import frozen_entropy
from lpds.envs.build import make_env
from lpds.envs.four_mode import FourMode
from lpds.evaluation import EvalReport
from lpds.grid import Cell, _check_settings, copy_evidence, grid_cells
from lpds.methods.base import BasePolicy
from lpds.methods.lpds_a import LPDSA
from lpds.pretrain.experts import Demonstrations
from lpds.pretrain.rows import demonstration_rows
from lpds.registry import TASKS, resolve
from lpds.report import write_report
from lpds.report.compare import compare
from lpds.report.read import group_runs, read_runs
from lpds.report.series import figures_of
from lpds.reproduce import reproduce_toy
from lpds.stats import share_difference
from lpds.tasks import PRESETS
from lpds.tell import differences
from lpds.types import LatentSpec

SHORT = {**TINY, "steps": 400, "eval_every": 0}


# -- what is compared and reported -------------------------------------------------------------------------------------


def test_a_quiet_run_is_in_the_same_environment_as_a_loud_one(tmp_path):
    """It plays the frozen policy with less noise besides, which is no other environment."""

    def make():
        return gymnasium.wrappers.TimeLimit(FourMode(), 40)

    for name, settings in (("loud", {}), ("quiet", {"eval_noise_scale": 0.3})):
        lpds.steer(decoder=toy_decoder(), env=make, out=tmp_path / name, **SHORT, **settings)
    report = compare([tmp_path / "loud", tmp_path / "quiet"])
    assert len(report.references) == 1
    assert not any("did not return what it did" in note for note in report.notes)


def test_episodes_that_return_alike_and_last_differently_are_not_the_same_policy(tmp_path):
    """Where the reward is success, equal returns say no more than that."""
    run = make_run(tmp_path / "a", success=True)
    rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    for row in rows:
        won = float(row["episode"] % 4 > 0)
        row |= {"return": won, "success": won, "success_at_end": won}
    for shift, same in ((1, False), (0, True)):
        for row in rows:
            row["length"] = 100 + row["episode"] + int(row["scale"]) * shift
        write_rows(run / "eval.jsonl", rows)
        steered = compare([run]).rows[-1]
        assert (steered.verdict == "the same") is same
        assert (steered.success_difference[1] < 0.0 < steered.success_difference[2]) is not same
        (comparison,) = (data.comparison() for data in read_runs([run]))
        assert comparison.same is same
        assert comparison.difference("success") == pytest.approx(steered.success_difference)


def test_a_policy_beside_itself_leaves_nothing_to_chance_even_where_all_succeed():
    ones = np.ones(6)
    assert share_difference(ones, ones, same=True) == (0.0, 0.0, 0.0)
    low, high = share_difference(ones, ones)[1:]
    assert low < 0.0 < high

    def report(lengths):
        return EvalReport(ones, ones, ones, np.asarray(lengths, np.int64), 0, 0.0, np.zeros((6, 1), np.float32))

    ((same,), (other,)) = (differences([("a", report([5] * 6)), ("b", report(lengths))]) for lengths in ([5] * 6, [6] * 6))
    assert "success +0 points [+0, +0]" in same
    assert "success +0 points [+0, +0]" not in other


def test_the_banner_and_every_card_name_the_variant_that_they_are_of(tmp_path):
    """Five variants of one method and one seed are five runs, of which one is bad."""
    good = make_run(tmp_path / "lpds" / "seed0")
    bad = make_run(tmp_path / "lpds+unbounded" / "seed0", gain=-30.0, settings={"delta": 0.5, "noise_bound": "inf"})
    page = write_report([good, bad], tmp_path / "report.html").read_text()
    (banner,) = [line for line in page.splitlines() if 'class="warning"' in line]
    assert "hopper · lpds+unbounded · seed 0" in banner
    for name in ("lpds", "lpds+unbounded"):
        assert page.count(f"<h3>hopper · {name} · seed 0</h3>") == 1
        assert page.count(f"<summary>hopper · {name} · seed 0: settings</summary>") == 1
        assert f"Run folder .../{tmp_path.name}/{name}/seed0;" in page


def test_a_finished_runs_verdict_is_in_the_tables_intervals(tmp_path):
    """Its summary may be from before an interval was mended; what else the run said is in its records, too."""
    run = lpds.steer("toy", out=tmp_path / "run", **SHORT, eval_noise_scale=0.25)
    said = json.loads((run.folder / "summary.json").read_text())
    assert "against the frozen policy with 0.25 of its noise, too" in said["verdict"]
    (run.folder / "summary.json").write_text(json.dumps({**said, "verdict": "in intervals of long ago"}))
    (data,) = read_runs([run.folder])
    assert data.verdict() == said["verdict"] == run.verdict()


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


# -- where things are --------------------------------------------------------------------------------------------------


def test_a_policy_whose_files_have_moved_opens_by_its_reference_and_theirs(tmp_path, golden, monkeypatch, capsys):
    """Evidence names the ranges from where the grid was started, and the command line takes both places anew."""
    monkeypatch.chdir(tmp_path)
    checkpoint = golden("dppo_hopper")
    here = tmp_path / "here"
    here.mkdir()
    for name in ("state_3000.pt", "normalization.npz"):
        shutil.copy(checkpoint / name, here / name)
    decoder = lpds.load_decoder("dppo:here/state_3000.pt", normalization="here/normalization.npz")
    folder = lpds.steer("hopper", decoder=decoder, out="runs/one", **{**SHORT, "steps": 240}).folder
    copy_evidence(folder, Path("kept/one"))
    texts = [path.read_text() for path in Path("kept/one").rglob("*.json")]
    assert not any(str(tmp_path) in text for text in texts)
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")  # found from the folder of the evidence upwards
    assert lpds.load_policy(tmp_path / "kept" / "one").decoder.fingerprint == decoder.fingerprint
    monkeypatch.chdir(tmp_path)
    here.rename(tmp_path / "there")
    where = ["--decoder", "dppo:there/state_3000.pt", "--normalization", "there/normalization.npz"]
    for run in ("runs/one", "kept/one"):
        assert main(["eval", run, "--episodes", "2", *where]) == 0
    assert main(["resume", "runs/one", "--steps", "280", "--quiet", *where]) == 0
    capsys.readouterr()
    assert main(["eval", "runs/one", "--episodes", "2"]) == 0  # it knows now
    assert main(["eval", "kept/one", *where[2:]]) == 2
    assert "--normalization needs --decoder" in capsys.readouterr().err
    assert main(["eval", "kept/one", *where, "--ddim-steps", "7"]) == 2
    assert "--ddim-steps cannot be chosen again" in capsys.readouterr().err


def test_evidence_of_ones_own_code_opens_from_any_folder_below(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = (
        "import lpds, torch\n"
        "decoder = lpds.wrap_decoder(lambda s, w: torch.tanh(w), obs_shape=(2,), latent_shape=(4, 2), action_shape=(4, 2), "
        "name='own')\n"
    )
    Path("reading_own.py").write_text(source)
    folder = lpds.steer("toy", decoder="python:reading_own.py:decoder", out="runs/own", **SHORT).folder
    copy_evidence(folder, Path("kept/own"))
    monkeypatch.chdir(tmp_path / "kept")
    assert lpds.load_policy("own").decoder.name == "own"


def test_a_grid_with_a_decoders_plain_path_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_decoder(lpds.load_decoder("toy"), tmp_path / "mine")
    lpds.steer("toy", decoder="./mine", out="runs/toy/lpds+mine/seed0", **{**SHORT, "quiet": True})
    words = {key: str(value) for key, value in SHORT.items() if key != "quiet"}
    _check_settings(Cell("toy", "lpds", "mine", 0, {**words, "decoder": "./mine"}), Path("runs"))


def test_a_grids_values_may_hold_commas():
    (cell,) = grid_cells("toy", ["lpds+x:flat=true,flat_order=a,b,delta=0.5"], 1)
    assert cell.settings == {"flat": "true", "flat_order": "a,b", "delta": "0.5"}


def test_a_run_folder_may_be_a_link(tmp_path):
    real, link = tmp_path / "disk" / "run", tmp_path / "link"
    link.symlink_to(real)
    lpds.steer("toy", out=link, **SHORT)  # it leads nowhere yet
    lpds.steer("toy", out=link, overwrite=True, **SHORT)
    assert link.is_symlink()
    assert (real / "summary.json").is_file()


# -- what is refused, and how ------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_refusal_after_the_bar_is_up_leaves_the_streams_as_they_were(monkeypatch, tmp_path):
    """Dppo's replay is looked at once the runner is built."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Terminal())
    before = (sys.stdout, sys.stderr)
    with pytest.raises(lpds.LpdsError, match="replay_size 5"):
        lpds.steer("toy", "dppo", out=tmp_path / "run", replay_size=5, **{**SHORT, "quiet": False})
    assert (sys.stdout, sys.stderr) == before


def test_what_is_no_name_is_told_so(refused, tmp_path):
    decoder = toy_decoder()
    with refused("task is a CallableDecoder, not a name"):
        lpds.steer(decoder, env=FourMode)
    with refused("task is a", "not a name"):
        lpds.evaluate(decoder, FourMode)
    with refused("method is a NoneType, not a name"):
        lpds.steer("toy", None)


def test_what_steer_returned_opens_and_goes_on(tmp_path):
    run = lpds.steer("toy", out=tmp_path / "run", **SHORT)
    assert lpds.load_policy(run).decoder.name == "toy"
    assert lpds.resume(run, steps=500, quiet=True).finished


def test_a_misspelt_method_is_named_and_no_option_of_it(capsys):
    assert main(["steer", "toy", "--method", "lpsd", "--delta", "0.5"]) == 2
    told = capsys.readouterr().err
    assert "unknown method 'lpsd'" in told
    assert "lpds" in told


def test_a_negative_number_may_have_an_exponent(tmp_path):
    words = [f"--{key.replace('_', '-')}={value}" for key, value in SHORT.items() if key != "quiet"]
    assert main(["steer", "toy", "--quiet", *words, "--out", str(tmp_path / "run"), "--reward-offset", "-1e-3"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["reward_offset"] == -0.001


class Ending(gymnasium.Env):
    """Counts, and ends after so many steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, last: int) -> None:
        self.last, self.at = last, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.at += 1
        return np.full(2, self.at, np.float32), 0.0, self.at >= self.last, False, {}


def test_a_replay_that_ends_the_episode_under_way_begins_another():
    """Left ended, its sub-environment would never act again."""

    def counting(last):
        return collector(make_env(lambda: Ending(last), 1, 1), identity_decoder((1, 2)))

    first = counting(100)
    for _ in range(10):
        first.step(BasePolicy(), 0.0)
    other = counting(10)
    ((lane, line),) = other.restore(first.tensors(), first.facts()).items()
    assert (lane, other.env.over) == (0, [False])
    assert "came to its end; that episode starts anew" in line


def test_a_number_that_float32_does_not_hold_is_the_environments(refused):
    space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)

    class Huge(Ending):
        observation_space = space

        def step(self, action):
            return np.array([0.0, np.finfo(np.float64).max]), 0.0, False, False, {}

    env = make_env(lambda: Huge(5), 1, 1)
    env.reset(seed=0)
    with refused("infinite as float32"):
        env.step(np.zeros((1, 1, 2), np.float32))


def test_a_count_that_is_no_whole_number_is_not_the_environments_fault(refused):
    with refused("episodes must be a whole number, not 3.0"):
        lpds.evaluate(toy_decoder(), env=FourMode, episodes=3.0)
    with refused("num_envs must be a whole number, not 2.0"):
        make_env(FourMode, num_envs=2.0)
    with refused("scale must be in [0, 1], not '1'"):
        check_share("scale", "1")


# -- rivals and presets ------------------------------------------------------------------------------------------------


def presets():
    named = ((method, name, preset) for method, found in PRESETS.items() for name, preset in found.items())
    return [
        (method, name, task) for method, name, preset in named for task in (preset.tasks or ("toy", "hopper", "adroit-pen"))
    ]


@pytest.mark.parametrize(("method", "name", "task"), presets())
def test_every_preset_fits_its_method_on_every_task_that_it_is_for(method, name, task):
    resolve_settings(resolve("task", TASKS, task), method, {}, PRESETS[method][name])


def test_what_draws_more_noise_for_a_decision_meets_the_same_eps():
    """So the frozen policy's entropy is one number, whose decisions draw one latent or several."""
    met = []

    class Draws(BasePolicy):
        def __init__(self, draws):
            self.draws = draws

        def act(self, decoder, obs, eps, scale):
            met.append(eps[:, 0])
            return super().act(decoder, obs, eps[:, :1], scale)

    states = torch.randn(3, 2)
    entropies = {frozen_entropy(Draws(draws), toy_decoder(), states).entropy for draws in (1, 2, 21)}
    assert len(entropies) == 1
    assert all(torch.equal(eps, met[0]) for eps in met)


def made_up(lengths=(5, 3), terminated=True):
    steps = sum(lengths)
    return Demonstrations(
        obs=np.arange(2 * steps, dtype=np.float32).reshape(steps, 2),
        actions=np.zeros((steps, 2), np.float32),
        episode_lengths=np.asarray(lengths, np.int64),
        episode_returns=np.zeros(len(lengths)),
        episode_source=np.zeros(len(lengths), np.int64),
        rewards=np.arange(1.0, steps + 1.0, dtype=np.float32),
        final_obs=np.full((len(lengths), 2), -1.0, np.float32),
        terminated=np.full(len(lengths), terminated),
    )


@pytest.mark.parametrize("terminated", [True, False])
def test_demonstrations_are_summed_over_n_steps_as_what_is_collected_is(terminated):
    """By hand: decisions of one step, gamma 0.5, three of them or as many as the episode has left."""
    data = made_up(terminated=terminated)
    spec = LatentSpec((2,), (1, 2), (1, 2))
    rows = demonstration_rows(data, spec, gamma=0.5, discount="exact", n_step=3)
    starts = {0: (0, 5), 5: (5, 8)}
    for row in range(8):
        first, end = starts[0] if row < 5 else starts[5]
        upto = min(row + 3, end)
        assert float(rows["reward"][row]) == pytest.approx(sum(0.5 ** (i - row) * (i + 1.0) for i in range(row, upto)))
        done = upto == end and terminated
        assert float(rows["discount"][row]) == pytest.approx(0.0 if done else 0.5 ** (upto - row))
        after = [-1.0, -1.0] if upto == end else data.obs[upto].tolist()
        assert rows["next_obs"][row].tolist() == after
        assert first <= row


def test_demonstrations_that_go_on_after_success_are_no_company_for_episodes_that_do_not(tmp_path, refused):
    for terminated in (False, True):
        path = tmp_path / f"{terminated}.npz"
        made_up(terminated=terminated).save(path)
        settings = {**SHORT, "demos": str(path), "end_at_success": True}
        if terminated:
            assert lpds.steer("toy", out=tmp_path / "run", **settings).finished
            continue
        with refused("end_at_success", "2 of the 2 demonstrations are told to go on"):
            lpds.steer("toy", out=tmp_path / "run", **settings)


# -- a policy of one's own ---------------------------------------------------------------------------------------------


def wrapped(act):
    return lpds.wrap_decoder(act, obs_shape=(2,), latent_shape=(4, 2), action_shape=(4, 2), name="own")


def test_a_stochastic_policy_is_not_evaluated_either(refused):
    with refused("stochastic or has a memory"):
        lpds.evaluate(wrapped(lambda s, w: torch.randn_like(w)), "toy", episodes=2)


def test_a_residual_on_actions_without_a_range_says_so():
    def learner(decoder):
        return LPDSA(LPDSASettings(width=8), decoder, generator=torch.Generator().manual_seed(0), device=torch.device("cpu"))

    assert "knows no range" in learner(toy_decoder()).remark
    assert learner(lpds.load_decoder("toy")).remark == ""


def test_a_wrong_shape_is_not_put_down_to_what_the_policy_was_shown():
    for act, shown in ((lambda s, w: w.flatten(1), False), (lambda s, w: {"a": w}, False), (lambda s, w: w / [], True)):
        with pytest.raises(lpds.LpdsError) as caught:
            _ = wrapped(act).fingerprint
        assert ("examples=" in str(caught.value)) is shown


def test_what_a_deployed_policy_cannot_take_is_one_line(tmp_path, refused):
    policy = lpds.load_policy(lpds.steer("toy", out=tmp_path / "run", **SHORT))
    with refused("obs is no array of numbers"):
        policy.act(torch.zeros(2, 2, requires_grad=True))
    from lpds.deploy.decoder_server import DecoderServer

    with refused("wrap it with lpds.wrap_decoder"):
        DecoderServer(lambda s, w: w)
