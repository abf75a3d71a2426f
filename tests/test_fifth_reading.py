"""What a fifth reading found: reports of pictures, decoders opened twice, code in a checkpoint's settings, forks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import Spot, spot_decoder
from safetensors.torch import load_file
from scripted import TINY, identity_decoder

import lpds
from lpds.report import write_report
from lpds.report.acting import NUMBERS, shift_sizes
from lpds.report.read import read_runs

SHORT = TINY | {"steps": 360, "warmup_steps": 150, "num_envs": 2, "delta": 0.5}
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
    return lpds.steer(decoder=reference, env=Spot, out=tmp_path / "run", **SHORT | changes)


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
