"""One line for what cannot be: names, settings, units, arguments of the command line and of the public face."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scripted import CPU, SPEC, TINY, toy_decoder

import lpds
from lpds.cli import main
from lpds.config import LPDSASettings, RunSettings
from lpds.decoders.diffusion import DiffusionSampler
from lpds.decoders.flow import FlowSampler
from lpds.decoders.store import save_decoder
from lpds.envs.four_mode import FourMode, make_four_mode
from lpds.fields import texts
from lpds.grid import Cell, _check_settings, grid_cells
from lpds.methods.lpds_a import LPDSA
from lpds.presets import resolve_settings, resolve_task
from lpds.registry import METHOD_SETTINGS, resolve
from lpds.replay import Replay

SHORT = {**TINY, "steps": 400, "eval_every": 0}
ROW = {"obs": (2,), "action": (2,), "reward": (), "discount": (), "next_obs": (2,), "base_noise": (0, 2), "base_action": (0, 2)}
"""Shapes of a row of ``SPEC`` that keeps no noises, but for its end."""


def test_a_grid_with_a_decoders_plain_path_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_decoder(lpds.load_decoder("toy"), tmp_path / "mine")
    lpds.steer("toy", decoder="./mine", out="runs/toy/lpds+mine/seed0", **{**SHORT, "quiet": True})
    words = {key: str(value) for key, value in SHORT.items() if key != "quiet"}
    _check_settings(Cell("toy", "lpds", "mine", 0, {**words, "decoder": "./mine"}), Path("runs"))


def test_a_grids_values_may_hold_commas():
    (cell,) = grid_cells("toy", ["lpds+x:flat=true,flat_order=a,b,delta=0.5"], 1)
    assert cell.settings == {"flat": "true", "flat_order": "a,b", "delta": "0.5"}


def test_what_is_no_name_is_told_so(refused, tmp_path):
    decoder = toy_decoder()
    with refused("task is a CallableDecoder, not a name"):
        lpds.steer(decoder, env=FourMode)
    with refused("task is a", "not a name"):
        lpds.evaluate(decoder, FourMode)
    with refused("method is a NoneType, not a name"):
        lpds.steer("toy", None)


def test_a_misspelt_method_is_named_and_no_option_of_it(capsys):
    assert main(["steer", "toy", "--method", "lpsd", "--delta", "0.5"]) == 2
    told = capsys.readouterr().err
    assert "unknown method 'lpsd'" in told
    assert "lpds" in told


def test_a_negative_number_may_have_an_exponent(tmp_path):
    words = [f"--{key.replace('_', '-')}={value}" for key, value in SHORT.items() if key != "quiet"]
    assert main(["steer", "toy", "--quiet", *words, "--out", str(tmp_path / "run"), "--reward-offset", "-1e-3"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["reward_offset"] == -0.001


def test_a_residual_on_actions_without_a_range_says_so():
    def learner(decoder):
        return LPDSA(LPDSASettings(width=8), decoder, generator=torch.Generator().manual_seed(0), device=torch.device("cpu"))

    assert "knows no range" in learner(toy_decoder()).remark
    assert learner(lpds.load_decoder("toy")).remark == ""


def test_a_unit_alone_does_not_read_the_presets_delta_anew(refused):
    for task, number in (("adroit-door", "8"), ("hopper", "0.5")):
        with refused("delta_unit mean without a delta", number):
            resolve_settings(resolve_task(task, None, None), "lpds", {"delta_unit": "mean"})
        assert resolve_settings(resolve_task(task, None, None), "lpds", {"delta_unit": "sum"})[1].delta_unit == "sum"
    both = {"delta": 0.08, "delta_unit": "mean"}
    assert resolve_settings(resolve_task("hopper", None, None), "lpds", both)[1].delta == 0.08


def test_the_public_face_refuses_in_a_line(refused):
    with refused("a run is its folder", "NoneType"):
        lpds.load_policy(None)
    with refused("reference is text or a path, not a int"):
        lpds.load_decoder(5)
    with refused("ddim_steps must be a whole number, not '5'"):
        lpds.load_decoder("toy", ddim_steps="5")
    with refused("steps must be a whole number, not 2.5"):
        FlowSampler(steps=2.5)
    with refused("ddim_steps must be in 1 .. 20"):
        DiffusionSampler(ddim_steps=0)
    with refused("seed must be in 0 .. 2^32 - 1"):
        lpds.check("toy", seed=2**57)
    with refused("samples must be at least 16, not -1"):
        lpds.check("toy", samples=-1)


def test_every_setting_is_explained_where_the_help_is_asked_for(capsys):
    """From the text below the field, so that there is one place for it."""
    for name in METHOD_SETTINGS:
        for kind in (RunSettings, resolve("method", METHOD_SETTINGS, name)):
            told = texts(kind)
            assert not {field.name for field in dataclasses.fields(kind)} - set(told), kind
            assert not any("``" in line or "\n" in line or ":class:" in line for line in told.values())
    with pytest.raises(SystemExit):
        main(["steer", "hopper", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--dual STR adaptive (eq. 7), fixed (a penalty of weight alpha_init) or off" in said
    assert "empty for none (default: none)" in said
    for command in ("eval", "bench"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "[" not in " ".join(capsys.readouterr().out.split()).partition("default: ")[2][:12]


def test_a_report_goes_where_it_is_told(tmp_path, capsys):
    run = lpds.steer(decoder=toy_decoder(), env=make_four_mode, out=tmp_path / "run", **SHORT).folder
    for out, expected in (("site", "site/report.html"), ("run", "run/report.html"), ("a.htm", "a.htm")):
        assert main(["report", str(run), "--out", str(tmp_path / out)]) == 0
        assert (tmp_path / expected).is_file()
    assert "Run folder ..." in (tmp_path / "a.htm").read_text()


@pytest.mark.parametrize("name", ["../../x", "a/b", "a b", "/x"])
def test_a_variants_name_is_a_folders(refused, name):
    with refused("a folder's name", name):
        grid_cells("toy", [f"lpds+{name}:width=32"], 1, 2000)


def test_another_methods_setting_is_told_whose_it_is(capsys, tmp_path):
    assert main(["steer", "toy", "--method", "golden-ticket", "--delta", "1", "--out", str(tmp_path / "x")]) == 2
    told = capsys.readouterr().err
    assert "golden-ticket has no setting --delta" in told
    assert "lpds" in told
    assert main(["steer", "toy", "--detla", "1", "--out", str(tmp_path / "x")]) == 2
    assert "did you mean --delta" in capsys.readouterr().err


def test_a_decoders_file_and_name_that_are_not_there_are_named(tmp_path, refused):
    with refused("there is no file", "none.py"):
        lpds.load_decoder(f"python:{tmp_path}/none.py:decoder")
    (tmp_path / "mine_sixth.py").write_text("decoder = None\n")
    with refused("decodr", "did you mean 'decoder'"):
        lpds.load_decoder(f"python:{tmp_path}/mine_sixth.py:decodr")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"threads": 100_000}, "threads must be at most 1024, not 100000"),
        ({"width": 10**12}, "width must be at most 65536"),
        ({"batch_size": 10**15}, "batch_size must be at most"),
        ({"n_step": 10**9}, "n_step must be at most"),
        ({"delta": 1e300}, "delta must be at most 1e+09, or inf for no constraint, not 1e+300"),
        ({"reward_scale": 1e308}, "must be finite, at most 1e+09 in size"),
        ({"reward_offset": 1e39}, "must be finite, at most 1e+09 in size"),
        ({"eval_every": -5}, "eval_every must not be negative, not -5"),
        ({"out": 5}, "out is a int, not a folder"),
        ({"preset": 5}, "preset of lpds is a int, not a name (choices: "),
        ({"method": "base", "preset": "quiet"}, "unknown preset of base 'quiet' (there is none)"),
    ],
)
def test_what_ended_in_another_librarys_traceback_or_a_crash(tmp_path, refused, given, said):
    words = {key: value for key, value in TINY.items() if key not in ("width", "depth") or given.get("method") is None}
    with refused(said):
        lpds.steer("toy", **{**words, "out": tmp_path / "run", **given})
    assert not (tmp_path / "run").exists()


def test_n_steps_beyond_every_episode_are_the_returns_to_go_and_come_to_an_end(tmp_path, monkeypatch):
    """A million was a loop of a million rounds an update; and one step is neither of the two."""
    ring, generator = Replay(SPEC, 60, 0, 2, CPU), torch.Generator().manual_seed(0)
    for _ in range(30):
        rows = {name: torch.rand((2, *shape), generator=generator) for name, shape in ROW.items()}
        ring.insert({**rows, "over": (torch.rand(2, generator=generator) < 0.2).float()})
    far = ring.sample(64, torch.Generator().manual_seed(1), n_step=2**20)  # a loop of so many rounds would not end
    to_go, one = (ring.sample(64, torch.Generator().manual_seed(1), returns=r) for r in (ring.returns_to_go(), None))
    torch.testing.assert_close(far.reward, to_go.reward)
    torch.testing.assert_close(far.discount, to_go.discount)
    assert torch.equal(far.next_obs, to_go.next_obs)
    assert bool((far.reward != one.reward).any())
    monkeypatch.setattr("lpds.session._write_report", lambda *given: None)
    weights = {}
    for n in (1, 200, 2**20):
        run = lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / str(n), n_step=n, **SHORT)
        weights[n] = (run.folder / "policy" / "policy.safetensors").read_bytes()
    assert weights[1] != weights[200] == weights[2**20]


def test_a_wrapped_policy_of_odd_parts_is_one_line(refused):
    shapes = {"obs_shape": 2, "latent_shape": (1, 2), "action_shape": (1, 2), "name": "odd"}
    with refused("device is None (choices: cpu, cuda"):
        lpds.wrap_decoder(lambda obs, w: w, **{**shapes, "device": None})
    with refused("obs_shape is an empty dict"):
        lpds.wrap_decoder(lambda obs, w: w, **{**shapes, "obs_shape": {}})

    def leaves(obs, w):
        raise SystemExit(1)

    with refused("SystemExit: 1"):
        lpds.wrap_decoder(leaves, **shapes)(torch.zeros(1, 2), torch.zeros(1, 1, 2))


def test_states_of_another_shape_are_one_line(tmp_path, refused):
    policy = lpds.load_policy(lpds.steer("toy", out=tmp_path / "run", **TINY))
    for states, said in (("x", "states are no array of numbers"), (torch.zeros(1, 5), "states must be [B, 2], not [1, 5]")):
        with refused(said):
            policy.shift_at(states)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "RUN", "--noise-scale", "1,2"], "noise_scale must be in [0, 1], not 2.0"),
        (["eval", "RUN", "--noises", "2", "--seed", "4294967295"], "--seed and --noises: the last of them must be in 0"),
        (["pretrain", "toy", "--data", "any.npz", "--out", "RUN"], "is a run folder: choose another --out"),
        (
            ["bench", "learner", "--jobs", "2", "--methods", "lpds"],
            "bench learner runs no grid: --methods, --jobs cannot be chosen",
        ),
        (["bench", "toy", "--rounds", "2"], "--rounds is for bench learner"),
        (["serve-decoder", "toy", "--max-mb", "0"], "--max-mb must be positive, not 0"),
        (["serve-decoder", "toy", "--threads", "100000"], "threads must be at most 1024, not 100000"),
        (["demos", "toy", "--out", "new.npz", "--experts", "RUN"], "--experts is for those of hands and gym tasks"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_played_or_written(tmp_path, capsys, monkeypatch, words, said):
    run = lpds.steer("toy", out=tmp_path / "run", **TINY).folder
    monkeypatch.setattr("lpds.evaluation.evaluate_policy", lambda *args, **words: pytest.fail("played for nothing"))
    before = sorted(path.name for path in run.iterdir())
    assert main([str(run) if word == "RUN" else word for word in words]) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == before


def test_closed_streams_and_a_folder_that_is_gone_cost_no_command(tmp_path):
    import subprocess
    import sys

    lpds_list = f"{sys.executable} -m lpds list"
    for shell in (
        f"{lpds_list} >&-",
        f"{lpds_list} 2>&-",
        f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir ../gone; {sys.executable} -m lpds --help",
    ):
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), shell


def test_settings_that_others_leave_without_effect_are_told(tmp_path, capsys):
    words = {**TINY, "quiet": False}
    lpds.steer("toy", out=tmp_path / "a", **{**words, "eval_every": 0, "critics": 1, "pessimism": "mean"})
    said = capsys.readouterr().err
    assert "lpds makes no use of eval_episodes" in said
    assert "lpds makes no use of pessimism" in said
    lpds.steer("toy", out=tmp_path / "b", noise_scale=0.0, eval_noise_scale=0.3, **words)
    assert "lpds makes no use of eval_noise_scale" in capsys.readouterr().err


def test_of_endless_choices_the_kinds_are_told_and_the_nearest_of_all():
    """All of Gymnasium's ids were a wall of text."""
    with pytest.raises(lpds.LpdsError) as caught:
        lpds.evaluate("toy", env="Hoppre-v9")
    message = str(caught.value)
    assert "did you mean 'Hopper-v" in message
    assert "choices: an id that Gymnasium knows, MODULE:ID of one that MODULE registers, four-mode, adroit-pen" in message
    assert "Acrobot" not in message


def test_an_unknown_setting_is_told_all_there_are_in_one_order(refused):
    with pytest.raises(lpds.LpdsError) as caught:
        lpds.steer("toy", nonsense=1)
    told = str(caught.value).partition("choices: ")[2].rstrip(")").split(", ")
    assert told == sorted(told)
    assert {"steps", "delta", "actor_lr"} <= set(told)


def test_a_setting_of_the_other_kind_of_decoder_is_refused(tmp_path, refused):
    from lpds.pretrain.build import pretrain

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", obs=rng.normal(size=(20, 2)), actions=rng.uniform(-1, 1, (20, 2)), episode_lengths=[20])
    for changes, said in (
        ({"kind": "flow", "training_steps": 7}, "training_steps is not of a flow decoder"),
        ({"solver": "heun"}, "solver is not of a diffusion decoder"),
    ):
        with refused(said):
            pretrain("mine", str(tmp_path / "d.npz"), tmp_path / "out", changes=changes)
