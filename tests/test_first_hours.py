"""What a user meets in the first hours: folders that are not to be emptied, decoders that cannot be steered, words in time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scripted import TINY, toy_decoder

import lpds
from lpds.errors import LpdsError
from lpds.log import read_json_lines

LOUD = {key: value for key, value in TINY.items() if key not in ("quiet", "steps", "warmup_steps")}


def test_overwrite_takes_no_more_than_the_run(tmp_path):
    out = tmp_path / "run"
    lpds.steer("toy", decoder=toy_decoder(), out=out, **{**TINY, "steps": 64})
    lpds.steer("toy", decoder=toy_decoder(), out=out, overwrite=True, **{**TINY, "steps": 64})
    (out / "notes.txt").write_text("three weeks")
    (out / "seed1").mkdir()
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(LpdsError, match=r"holds notes.txt, seed1 beside its run: .* nothing was deleted"):
        lpds.steer("toy", decoder=toy_decoder(), out=out, overwrite=True, **{**TINY, "steps": 64})
    assert sorted(path.name for path in out.iterdir()) == before


class RunningMean:
    """Subtracts the mean of all that it has seen, as policies that were trained online do."""

    def __init__(self):
        self.total, self.count = torch.zeros(2), 0

    def __call__(self, obs, w):
        self.total, self.count = self.total + obs.sum(0), self.count + len(obs)
        return torch.tanh(w[..., :2] + (obs - self.total / self.count)[:, None])


def wrapped(function):
    return lpds.wrap_decoder(function, obs_shape=(2,), latent_shape=(4, 2), action_shape=(4, 2), name="own")


def test_a_running_mean_is_refused_at_the_start():
    """The same batch twice in a row has the same mean; other rows in between have not."""
    with pytest.raises(LpdsError, match="stochastic or has a memory"):
        wrapped(RunningMean()).fingerprint  # noqa: B018
    assert wrapped(lambda obs, w: torch.tanh(w + obs[:, None])).fingerprint


def test_a_decoder_that_does_not_see_its_noise_is_named_at_the_start(tmp_path, capsys):
    for name, function in (
        ("blind", lambda obs, w: torch.tanh(0.0 * w + obs[:, None])),
        ("sees", lambda obs, w: torch.tanh(w)),
    ):
        lpds.steer(decoder=wrapped(function), env="four-mode", out=tmp_path / name, **LOUD, steps=64, warmup_steps=32)
        assert ("gives the same actions for different noises" in "".join(capsys.readouterr())) == (name == "blind")


def test_a_warm_up_that_takes_the_whole_budget_is_told_at_the_start(tmp_path, capsys):
    lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "run", **LOUD, steps=64, warmup_steps=200)
    said = "".join(capsys.readouterr())
    assert said.index("takes the whole budget of 64") < said.index("NOTHING WAS LEARNED")


def test_a_decoder_is_not_replaced_unasked(tmp_path):
    from lpds.pretrain.build import pretrain

    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(LpdsError, match=r"holds card.json already: .*--overwrite"):
        pretrain("mine", str(tmp_path / "data.npz"), tmp_path)
    with pytest.raises(LpdsError, match=r"data.npz"):  # it is the data then that is asked for
        pretrain("mine", str(tmp_path / "data.npz"), tmp_path, overwrite=True)


def test_a_path_is_a_reference(tmp_path):
    folder = Path(lpds.__file__).parent / "zoo" / "toy"
    assert lpds.load_decoder(folder).fingerprint == lpds.load_decoder("toy").fingerprint
    assert len(lpds.evaluate(folder, "toy", episodes=1).returns) == 1


@pytest.mark.parametrize(
    "ends", ["import sys; sys.exit('set DATA_ROOT first')", "import argparse; argparse.ArgumentParser().parse_args(['--x'])"]
)
def test_a_file_that_ends_the_program_is_named(tmp_path, ends, capsys):
    (tmp_path / "own_main.py").write_text(ends)
    with pytest.raises(LpdsError, match=r"own_main.py:d' ended the program .*__name__ == '__main__'"):
        lpds.load_decoder(f"python:{tmp_path / 'own_main.py'}:d")


def test_no_rate_is_written_where_no_step_was_taken(tmp_path):
    settings = {**TINY, "steps": 128, "log_every": 64}
    run = lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "run", **settings)
    lpds.resume(run.folder, steps=192, decoder=toy_decoder(), quiet=True)
    rows = read_json_lines(run.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})  # the seam is one row
    assert all(row["env_steps_per_s"] > 0 for row in rows[1:])
    assert rows[-1]["step"] >= 192


def test_replayed_states_of_a_dict_are_states(tmp_path):
    """What a report asks Delta for: the replay's vectors, where the decoder takes a dict of them."""
    spec = {"a": (1,), "b": (1,)}
    decoder = lpds.wrap_decoder(
        lambda obs, w: torch.tanh(w + torch.cat([obs["a"], obs["b"]], 1)[:, None]),
        obs_shape=spec,
        latent_shape=(4, 2),
        action_shape=(4, 2),
        name="own",
    )
    policy = lpds.policy.SteeredPolicy(decoder, _Sum(), "lpds")
    by_name = policy.shift({"a": np.full((3, 1), 2.0, np.float32), "b": np.full((3, 1), 3.0, np.float32)})
    np.testing.assert_array_equal(policy.shift(np.array([[2.0, 3.0]] * 3, np.float32)), by_name)
    assert json.dumps(by_name.shape) == "[3, 4, 2]"


class _Sum:
    """A shift that is the sum of the state."""

    draws = 1

    def shift(self, obs, scale=1.0):
        return scale * obs.sum(1)[:, None, None].expand(-1, 4, 2)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--instruction", "hi"], "takes no --instruction"),
        (["--decoder-device", "cpu"], "takes no --decoder-device"),
        (["--decoder-activation", "mish"], "takes no --decoder-activation"),
        (["--ode-steps", "10"], "--ode-steps is not an option of the diffusion decoder"),
        (["--rows-at-once", "3"], "takes no --rows-at-once"),
    ],
)
def test_an_option_of_another_kind_of_decoder_has_its_flags_name(given, told, capsys):
    from lpds.cli import main

    assert main(["check", "toy", *given]) != 0
    assert told in capsys.readouterr().err


def test_an_interrupted_last_evaluation_says_what_is_saved(tmp_path, monkeypatch):
    from lpds.runner import Runner

    evaluate = Runner.evaluate

    def interrupted(self, episodes, seed, scale, kind, **more):
        if kind == "final":
            raise KeyboardInterrupt
        return evaluate(self, episodes, seed, scale, kind, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Runner, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt, match="only its last evaluation is missing: lpds resume"):
            lpds.steer("toy", out=tmp_path / "run", **LOUD, steps=400)
    assert lpds.resume(tmp_path / "run", quiet=True).steered is not None


def test_two_options_of_other_kinds_keep_their_own_flags(capsys):
    from lpds.cli import main

    assert main(["check", "toy-flow", "--ddim-steps", "5", "--ode-steps", "4"]) != 0
    said = capsys.readouterr().err
    assert "--ddim-steps is not an option of" in said
    assert "ode-steps" not in said
