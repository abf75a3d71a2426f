"""What a fourth reading with fresh eyes found: each of these failed once."""

from __future__ import annotations

import dataclasses
import json

import gymnasium
import numpy as np
import pytest
import torch
from scripted import TINY, identity_decoder, toy_decoder

import lpds
from lpds.api import resolve_settings, resolve_task
from lpds.cli import main
from lpds.config import RunSettings
from lpds.decoders.base import as_float32
from lpds.decoders.diffusion import DiffusionSampler
from lpds.decoders.flow import FlowSampler
from lpds.envs.chunk import ChunkedVectorEnv
from lpds.envs.four_mode import make_four_mode
from lpds.fields import texts
from lpds.log import read_json_lines
from lpds.pretrain.datasets import open_data
from lpds.pretrain.experts import Source, roll_out
from lpds.pretrain.recipes import make_data
from lpds.registry import METHOD_SETTINGS, resolve
from lpds.report import write_report
from lpds.report.compare import compare
from lpds.stats import told, unsigned_zero

SHORT = {**TINY, "steps": 400, "eval_every": 0}


# -- what is learned and saved -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dsrl-na", "dsrl-sac", "dppo", "dql", "lpds"])
def test_an_actor_that_saw_no_update_is_neither_saved_nor_praised(tmp_path, method):
    """Until there is something to show, what is saved and evaluated is the frozen policy."""
    few = {} if method == "dppo" else {"updates_per_decision": 1e-6}
    run = lpds.steer("toy", method=method, out=tmp_path / "run", **{**SHORT, "warmup_steps": 395, **few})
    rows = list(read_json_lines(tmp_path / "run" / "metrics.jsonl"))
    assert rows[-1]["updates"] == 0
    assert run.verdict().startswith("NOTHING WAS LEARNED: ")
    assert ("learns from at once" if method in ("dppo", "dsrl-na", "dsrl-sac") else "came to no update") in run.verdict()
    assert json.loads((tmp_path / "run" / "policy" / "policy.json").read_text())["method"] == "base"
    assert np.array_equal(run.frozen.returns, run.steered.returns)


def test_a_grown_budget_writes_nothing_twice(tmp_path):
    run = lpds.steer(decoder=toy_decoder(), env=make_four_mode, out=tmp_path / "run", **{**SHORT, "eval_every": 200})
    lpds.resume(run, steps=800, decoder=toy_decoder(), env=make_four_mode, quiet=True)
    curve = [(r["step"], r["scale"], r["episode"]) for r in read_json_lines(run.folder / "eval.jsonl") if r["kind"] == "curve"]
    assert len(curve) == len(set(curve))
    steps = [row["step"] for row in read_json_lines(run.folder / "metrics.jsonl")]
    assert len(steps) == len(set(steps))
    assert steps[-1] >= 800
    assert len({step for step, _, _ in curve}) == 5  # 0, about 200, 400, about 600, 800


def test_a_ticket_leaves_masked_columns_to_the_noise(tmp_path, refused):
    """As Delta does: ``free`` says what may be steered."""
    free = [True, False]
    decoder = identity_decoder((1, 2), free=free)
    plain = {key: value for key, value in SHORT.items() if key not in ("width", "depth", "steps")}
    run = lpds.steer(
        decoder=decoder, env=make_four_mode, method="golden-ticket", tickets=2, steps=1500, out=tmp_path / "run", **plain
    )
    policy = lpds.load_policy(run, decoder=identity_decoder((1, 2), free=free))
    eps = torch.randn(5, 1, 1, 2)
    for scale in (0.5, 1.0):
        w = policy.policy.act(policy.decoder, torch.zeros(5, 2), eps, scale).latent.view(5, 1, 2)
        assert torch.equal(w[..., 1], eps[:, 0, :, 1])
        assert not torch.equal(w[..., 0], eps[:, 0, :, 0])


def test_a_policy_is_refused_on_a_decoder_of_other_shapes(tmp_path, refused):
    """The fingerprint is of weights and sampler: what of a chunk is executed need not be in it."""
    run = lpds.steer(decoder=toy_decoder(), env=make_four_mode, out=tmp_path / "run", **SHORT)
    path = tmp_path / "run" / "policy" / "policy.json"
    facts = json.loads(path.read_text())
    facts["spec"]["action_shape"] = [2, 2]
    path.write_text(json.dumps(facts))
    with refused("action_shape [2, 2]", "execute="):
        lpds.load_policy(run, decoder=toy_decoder())
    config = tmp_path / "run" / "config.json"
    facts = json.loads(config.read_text())
    facts["decoder"]["spec"]["latent_shape"] = [2, 2]
    config.write_text(json.dumps(facts))
    with refused("latent_shape [2, 2]"):
        lpds.resume(run, decoder=toy_decoder(), env=make_four_mode, quiet=True)


# -- what is given -------------------------------------------------------------------------------------------------------


def test_a_unit_alone_does_not_read_the_presets_delta_anew(refused):
    for task, number in (("adroit-door", "8"), ("hopper", "0.5")):
        with refused("delta_unit mean without a delta", number):
            resolve_settings(resolve_task(task, None, None), "lpds", {"delta_unit": "mean"})
        assert resolve_settings(resolve_task(task, None, None), "lpds", {"delta_unit": "sum"})[1].delta_unit == "sum"
    both = {"delta": 0.08, "delta_unit": "mean"}
    assert resolve_settings(resolve_task("hopper", None, None), "lpds", both)[1].delta == 0.08


class Counter(gymnasium.Env):
    """Takes whole numbers and keeps what it was given."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    action_space = gymnasium.spaces.Box(0, 255, (2,), np.int64)

    def __init__(self):
        self.given = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.given.append(action)
        return np.zeros(2, np.float32), 0.0, False, len(self.given) >= 9, {}


def chunked(lanes, made):
    return ChunkedVectorEnv(lambda: made.append(Counter()) or made[-1], lanes, 1, name="counter", seed=0)


def test_whole_actions_are_rounded_not_cut():
    made = []
    env = chunked(1, made)
    env.reset()
    env.step(np.asarray([[[0.9, 1.9]]]))
    env.step(np.asarray([[[254.6, -3.0]]]))
    assert [list(action) for action in made[-1].given] == [[1, 2], [255, 0]]
    assert made[-1].given[0].dtype == np.int64


def test_a_reset_mask_has_an_entry_for_each(refused):
    env = chunked(3, [])
    env.reset()
    with refused("reset_mask must be [3]"):
        env.reset(options={"reset_mask": [True]})
    with refused("without a reset_mask"):
        env.reset(seed=1, options={"reset_mask": [True, False, True]})
    env.reset(options={"reset_mask": np.asarray([True, False, True])})
    env.step(np.zeros((3, 1, 2)))


def test_what_act_is_given_is_refused_in_a_line(tmp_path, refused):
    run = lpds.steer(decoder=toy_decoder(), env=make_four_mode, out=tmp_path / "run", **SHORT)
    policy = lpds.load_policy(run, decoder=toy_decoder())
    obs = np.zeros((1, policy.decoder.spec.obs_size), np.float32)
    for eps in ("abc", torch.zeros(1, *policy.decoder.spec.latent_shape, requires_grad=True)):
        with refused("eps is no array of numbers"):
            policy.act(obs, eps)
    for scale in (np.asarray([0.5]), np.asarray([0.5, 0.2]), "1", None):
        with refused("scale must be in [0, 1]"):
            policy.act(obs, scale=scale)
    assert policy.act(obs, scale=np.float32(0.5)).shape == (1, *policy.decoder.spec.action_shape)


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


def test_numbers_of_any_type_decode_alike():
    """A vector of whole numbers is one of numbers; in a dict they may be tokens, and bytes are a picture's."""
    decoder = lpds.load_decoder("toy")
    obs, w = torch.ones(3, decoder.spec.obs_size), torch.ones(3, *decoder.spec.latent_shape)
    assert torch.equal(decoder(obs.long(), w.int()), decoder(obs, w))
    assert as_float32({"tokens": torch.ones(2, dtype=torch.int64)})["tokens"].dtype == torch.int64
    assert as_float32(torch.ones(2, dtype=torch.uint8), integers=True).dtype == torch.uint8


def test_another_default_type_changes_nothing():
    """A policy's own file may set it for all of the process."""
    before = lpds.evaluate("toy", "toy", episodes=3).returns
    torch.set_default_dtype(torch.float64)
    try:
        again = lpds.evaluate("toy", "toy", episodes=3).returns
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(before, again)


# -- what is told --------------------------------------------------------------------------------------------------------


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


def cut(run, keep):
    """Keep so many of the last evaluation's episodes a side."""
    rows = [row for row in read_json_lines(run / "eval.jsonl") if row["kind"] != "final" or row["episode"] < keep]
    (run / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def two_runs(tmp_path):
    for seed in (0, 1):
        settings = {**SHORT, "final_episodes": 40, "seed": seed}
        lpds.steer(decoder=toy_decoder(), env=make_four_mode, out=tmp_path / f"s{seed}", **settings)
    return [tmp_path / "s0", tmp_path / "s1"]


def test_fewer_shared_episodes_than_were_played_are_told(tmp_path):
    runs = two_runs(tmp_path)
    assert "episodes that all" not in str(compare(runs))
    cut(runs[1], 8)
    said = str(compare(runs))
    assert "lpds by the 8 episodes that all of its seeds played, of 40" in said
    assert "the difference of lpds is over 8 shared episodes, its return over 8, that of frozen over 40" in said


def test_a_damaged_evaluation_is_told_and_never_a_traceback(tmp_path, refused):
    runs = two_runs(tmp_path)
    path = runs[1] / "eval.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    torn = lines[0][:20] + "\n"
    path.write_text("".join([lines[0], torn, *lines[2:]]))
    said = str(compare(runs))
    assert f"{runs[1]}: eval.jsonl is damaged: {len(lines) - 1} of its {len(lines)} lines cannot be read" in said
    assert "is finished, but its last evaluation cannot be read" in said
    with refused("nothing to compare", "is finished, but its last evaluation cannot be read"):
        compare([runs[1]])
    assert "eval.jsonl is damaged" in write_report([runs[1]], tmp_path / "page.html").read_text()
    path.write_text("".join(lines)[:-30])  # a finished run's last line, half written
    assert "eval.jsonl is damaged: 1 of its" in str(compare(runs))
    for key, value in (("return", "high"), ("episode", None), ("seed", "0")):
        rows = [{**json.loads(line), key: value} if n == len(lines) - 1 else json.loads(line) for n, line in enumerate(lines)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert "eval.jsonl is damaged: 1 of its" in str(compare(runs))
        write_report(runs, tmp_path / "page.html")


def test_a_run_that_goes_on_may_have_half_a_line(tmp_path):
    run = lpds.steer(decoder=toy_decoder(), env=make_four_mode, out=tmp_path / "run", **SHORT).folder
    (run / "summary.json").unlink()
    for name in ("metrics", "eval"):  # and a whole row may be there without its line's end
        path = run / f"{name}.jsonl"
        path.write_text(path.read_text()[:-1])
    assert "damaged" not in write_report([run], tmp_path / "page.html").read_text()
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('\n{"format_version": 1, "st')
    assert "damaged" not in write_report([run], tmp_path / "page.html").read_text()


def test_an_interrupted_evaluation_tells_what_it_played(tmp_path, monkeypatch, capsys):
    calls = []
    played = lpds.api.evaluate

    def evaluate(*args, **given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        given["progress"](1, 2)
        return played(*args, **given)

    monkeypatch.setattr("lpds.api.evaluate", evaluate)
    words = ["eval", "toy", "--env", "four-mode", "--episodes", "2", "--noise-scale", "1,0.5,0"]
    assert main([*words, "--json"]) == 130
    assert len(capsys.readouterr().out.splitlines()) == 4
    calls.clear()
    assert main(words) == 130
    said = capsys.readouterr()
    assert "frozen, noise x0.5" in said.out
    assert "2 of 3 evaluations" in said.err


def test_demonstrations_are_not_replaced_unasked(tmp_path, capsys):
    path = tmp_path / "toy.npz"
    path.write_bytes(b"important")
    assert main(["demos", "toy", "--out", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_bytes() == b"important"
    assert main(["demos", "toy", "--out", str(path), "--overwrite"]) == 0
    assert len(open_data(str(path)).obs) > 1000


def test_stopped_demonstrations_keep_what_is_there(tmp_path, monkeypatch):
    """Every episode that had ended by then."""
    monkeypatch.setattr("lpds.pretrain.experts.load_actor", lambda path, sampled: lambda obs, rng: rng.uniform(-1, 1, 3))
    asked = iter([False, False, True])
    until = {"transitions": 10**6, "stop": lambda: next(asked)}
    data = roll_out("Hopper-v5", [Source("gym_sac_hopper", 1.0)], experts=tmp_path, seed=0, **until)
    assert len(data.episode_lengths) == 3
    assert data.episode_lengths.sum() == len(data.obs)


def test_data_cut_short_are_not_the_recipes_own():
    """A card would say that they are."""
    for stopped in (False, True):
        assert make_data("toy", stop=lambda stopped=stopped: stopped).recipe == ("" if stopped else "toy")


def test_a_report_goes_where_it_is_told(tmp_path, capsys):
    run = lpds.steer(decoder=toy_decoder(), env=make_four_mode, out=tmp_path / "run", **SHORT).folder
    for out, expected in (("site", "site/report.html"), ("run", "run/report.html"), ("a.htm", "a.htm")):
        assert main(["report", str(run), "--out", str(tmp_path / out)]) == 0
        assert (tmp_path / expected).is_file()
    assert "Run folder ..." in (tmp_path / "a.htm").read_text()


def test_nothing_has_no_sign():
    assert told([-0.001, 20.0, 42.0], sign=True) == ["0.0", "+20.0", "+42.0"]
    assert unsigned_zero("-0") == "0"
    assert unsigned_zero("-0.1") == "-0.1"
