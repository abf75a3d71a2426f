"""One line for what cannot be: names, settings, units, arguments of the command line and of the public face."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from scripted import TINY, toy_decoder

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

SHORT = {**TINY, "steps": 400, "eval_every": 0}


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
