"""What a run says of a policy and an environment of one's own, and what it takes them for."""

from __future__ import annotations

import json
import math
import re

import gymnasium
import numpy as np
import pytest
import torch
from scripted import TINY, toy_decoder

import lpds
from lpds import remarks
from lpds.cli import main
from lpds.envs.build import end_to_end, make_env
from lpds.envs.four_mode import FourMode
from lpds.grid import grid_cells
from lpds.methods.lpds_a import shifted_action

SHORT = {**TINY, "steps": 400, "eval_every": 0, "quiet": False}
SHAPES = {"obs_shape": 2, "latent_shape": (1, 2), "action_shape": (1, 2)}


def toy():
    return gymnasium.wrappers.TimeLimit(FourMode(), 40)


# -- actions that the box cuts -----------------------------------------------------------------------------------------


def test_places_in_a_box_are_shares_of_its_width_and_only_of_what_is_bounded():
    low, high = torch.tensor([-1.0, 0.0, 2.0, -math.inf]), torch.tensor([1.0, 4.0, 2.0, math.inf])
    action = torch.tensor([[-1.0, 0.0, 2.0, 7.0], [1.0, 4.0, 2.0, 7.0], [0.0, 1.0, 2.0, 7.0], [2.0, -4.0, 3.0, 7.0]])
    places, columns = remarks.places_in_box(action, low, high)
    assert places.tolist() == [[0.0, 0.0], [1.0, 1.0], [0.5, 0.25], [1.5, -1.0]]
    assert columns.tolist() == [0, 1]
    assert remarks.shares_beyond(places).tolist() == [0.25, 0.25]
    assert remarks.shares_beyond(places, 0.75).tolist() == [0.0, 0.25]
    assert not len(remarks.places_in_box(action, torch.full((4,), -math.inf), high)[1])


def test_a_hundredth_of_the_width_is_a_margin():
    edge = torch.tensor([[-0.01], [1.01], [-0.0101], [1.0101]], dtype=torch.float64)
    assert remarks.shares_beyond(edge).tolist() == [0.5]


@pytest.mark.parametrize(("size", "warned"), [(1.0, False), (30.0, True)])
def test_a_run_warns_of_a_frozen_policy_whose_actions_the_box_cuts(tmp_path, capsys, size, warned):
    decoder = lpds.wrap_decoder(lambda obs, w: size * torch.tanh(0.2 * w), **SHAPES, name="sized")
    lpds.steer(decoder=decoder, env=toy, out=tmp_path / "run", **SHORT)
    assert ("lie beyond the environment's box" in capsys.readouterr().err) is warned


# -- rows that leak into each other ------------------------------------------------------------------------------------


def test_a_policy_that_decodes_a_row_otherwise_alone_is_warned_of(tmp_path, capsys):
    leaky = lpds.wrap_decoder(lambda obs, w: torch.tanh(w - w.mean(0)), **SHAPES, name="leaky")
    plain = lpds.wrap_decoder(lambda obs, w: torch.tanh(w), **SHAPES, name="plain")
    assert leaky.leaks
    assert not plain.leaks
    for name, decoder in (("leaky", leaky), ("plain", plain)):
        lpds.steer(decoder=decoder, env=toy, out=tmp_path / name, **SHORT)
        assert ("otherwise alone than in a batch" in capsys.readouterr().err) is (name == "leaky")


# -- a dict put end to end ---------------------------------------------------------------------------------------------


class InParts(gymnasium.ObservationWrapper):
    """The toy's position as two entries, and a third of two numbers."""

    def __init__(self):
        super().__init__(toy())
        one, two = (gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32) for size in (1, 2))
        self.observation_space = gymnasium.spaces.Dict({"y": one, "pair": two, "x": one})

    def observation(self, observation):
        return {"x": observation[:1], "y": observation[1:], "pair": 10.0 + observation}


def test_the_order_of_a_dict_is_told_as_the_vector_has_it(tmp_path, capsys):
    env = make_env(InParts, 1, 1)
    assert end_to_end(make_env(toy, 1, 1).first) is None
    told = end_to_end(env.first)
    seen, info = env.reset(seed=0)
    parts, _ = InParts().reset(seed=info["seed"].item())
    assert told.count("[") == len(parts)
    for key, low, high in re.findall(r"(\w+) \[(\d+):(\d+)\]", told):
        assert np.array_equal(seen[0, int(low) : int(high)], parts[key])
    decoder = lpds.wrap_decoder(lambda obs, w: w + obs[:, None, :2], **{**SHAPES, "obs_shape": 4}, name="four")
    lpds.steer(decoder=decoder, env=InParts, out=tmp_path / "run", **SHORT)
    assert f"put end to end: {told}" in capsys.readouterr().err
    assert f"put end to end: {told}" in str(lpds.check(decoder, InParts, samples=16))


def test_nothing_is_said_of_an_order_that_another_wrapper_undid():
    flat = gymnasium.wrappers.FlattenObservation(InParts())
    stacked = gymnasium.wrappers.FlattenObservation(gymnasium.wrappers.FrameStackObservation(flat, 2))
    assert end_to_end(flat) is not None
    assert end_to_end(stacked) is None


# -- learning where gradients are off ----------------------------------------------------------------------------------


def test_a_run_learns_the_same_inside_inference_mode(tmp_path):
    lpds.steer(decoder=toy_decoder(), env=toy, out=tmp_path / "plain", **SHORT)
    with torch.inference_mode():
        lpds.steer(decoder=toy_decoder(), env=toy, out=tmp_path / "inside", **SHORT)
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
    one, two = ((tmp_path / name / "policy" / "policy.safetensors").read_bytes() for name in ("plain", "inside"))
    assert one == two


# -- what is no decoder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [("act", "is a function of (obs, w)"), ("Policy", "is a function of (width)"), ("net", "is a network, Linear")],
)
def test_a_policy_in_a_decoders_place_is_told_what_makes_one_of_it(tmp_path, refused, name, told):
    (tmp_path / f"bare_{name}.py").write_text(
        "import torch\nnet = torch.nn.Linear(2, 2)\n"
        "def act(obs, w): return w\n"
        "class Policy:\n    def __init__(self, width): pass\n"
    )
    with refused(told, "lpds.wrap_decoder"):
        lpds.load_decoder(f"python:{tmp_path}/bare_{name}.py:{name}")


def test_a_run_in_a_decoders_place_and_a_misspelt_run_are_called_what_they_are(tmp_path, refused, monkeypatch, capsys):
    run = lpds.steer(decoder=toy_decoder(), env=toy, out=tmp_path / "run", **SHORT)
    with refused("is a run, not a decoder"):
        lpds.load_decoder(str(run.folder))
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "rum"]) == 2
    assert "unknown run or decoder 'rum'" in capsys.readouterr().err


# -- a range for a wrapped policy's actions ----------------------------------------------------------------------------


def test_a_wrapped_policys_residual_on_the_action_is_in_its_ranges_units():
    known = lpds.wrap_decoder(lambda obs, w: w, **SHAPES, name="known", action_range=([-2.0, 0.0], [2.0, 10.0]))
    moved = shifted_action(known, torch.tensor([[[1.0, 9.0]]]), torch.tensor([[[0.25, 0.5]]]))
    assert moved.tolist() == [[[1.0 + 2.0 * 0.25, 10.0]]]  # half of each range; the second is cut at its edge
    wide = lpds.wrap_decoder(lambda obs, w: w, **SHAPES, name="known", action_range=(-2, 2))
    bare = lpds.wrap_decoder(lambda obs, w: w, **SHAPES, name="known")
    assert len({known.fingerprint, wide.fingerprint, bare.fingerprint}) == 3


UNUSABLE = [3.0, (torch.zeros(2, requires_grad=True), 1.0), (1.0, -1.0), ([0.0] * 3, 1.0), (-math.inf, math.inf), ("a", "b")]


@pytest.mark.parametrize("wrong", UNUSABLE)
def test_what_is_no_range_is_refused(refused, wrong):
    with refused("action_range must be"):
        lpds.wrap_decoder(lambda obs, w: w, **SHAPES, name="x", action_range=wrong)


# -- a grid of one's own policy ----------------------------------------------------------------------------------------


def test_a_grid_compares_methods_on_a_policy_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_policy.py").write_text(
        "import torch, lpds\n"
        "decoder = lpds.wrap_decoder(lambda obs, w: torch.tanh(obs[:, None, :3] + w), obs_shape=11,\n"
        "    latent_shape=(4, 3), action_shape=(4, 3), name='own', action_range=(-1, 1))\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["bench", "own", "--decoder", "python:own_policy.py:decoder", "--env", "Hopper-v5", "--seeds", "1", "--json"]
    methods = ["--methods", "base", "lpds+short:warmup_steps=100,warmup_fits=2,eval_episodes=2,final_episodes=2"]
    assert main([*words, *methods, "--steps", "200"]) == 0
    assert "own: highest return over the 2 episodes that all played: " in json.loads(capsys.readouterr().out)["standings"][0]
    page = (tmp_path / "runs/bench-own/report.html").read_text()
    assert '<p class="verdict">own: highest return over the 2 episodes that all played: ' in page
    assert all(f"own · {label}" in page for label in ("base · seed 0", "lpds"))
    config = json.loads((tmp_path / "runs/bench-own/own/lpds+short/seed0/config.json").read_text())
    assert (config["task"], config["env"]) == ("own", "Hopper-v5")
    assert config["decoder"]["reference"] == f"python:{tmp_path}/own_policy.py:decoder"


def test_a_grids_shared_words_are_every_cells_unless_it_has_its_own(refused):
    shared = {"decoder": "hopper-flow", "ode_steps": "2"}
    one, two = grid_cells("hopper", ["lpds", "lpds+b:decoder=hopper"], 1, 100, shared)
    assert one.settings == {"steps": "100", "decoder": "hopper-flow", "ode_steps": "2"}
    assert two.settings == {"steps": "100", "decoder": "hopper"}  # whose sampler has no ODE steps
    with refused("say which, and where it acts"):
        grid_cells("own", ["lpds"], 1, 100, {"decoder": "hopper"})


# -- running statistics ------------------------------------------------------------------------------------------------


def test_wrappers_with_running_statistics_are_named_and_frozen_ones_are_not(tmp_path, capsys):
    """The environment draws from its own generator as it should: what breaks the seed is around it."""
    inside = lambda: gymnasium.wrappers.NormalizeReward(gymnasium.wrappers.NormalizeObservation(toy()))  # noqa: E731
    outside = lambda: gymnasium.wrappers.TimeLimit(inside(), 40)  # noqa: E731
    told = remarks.of_statistics(outside())
    assert [line.split()[0] for line in told] == ["NormalizeReward", "NormalizeObservation"]
    frozen = gymnasium.wrappers.NormalizeObservation(toy())
    frozen.update_running_mean = False
    assert remarks.of_statistics(frozen) == remarks.of_statistics(toy()) == []
    found = next(f for f in lpds.check(toy_decoder(), outside, samples=16).findings if f.name == "seeds")
    assert found.verdict == "warning"
    assert found.figure == "; ".join(told)
    assert "self.np_random" not in found.remedy
    lpds.steer("toy", decoder=toy_decoder(), env=outside, out=tmp_path / "run", **SHORT)
    said = capsys.readouterr().err
    assert all(f"WARNING: {line}; {remarks.FREEZE}" in said for line in told)


def test_ending_at_success_where_going_on_is_paid_is_warned_of(tmp_path, capsys):
    """A dense reward of a step near success makes an episode that ends there the worse one."""
    rewards, goes_on = torch.tensor([1.0, -0.5, 40.0]), torch.tensor([0.9, 0.9, 0.0])
    (told,) = remarks.of_early_ends(rewards, goes_on)
    assert "earn 0.25 in the mean" in told
    assert remarks.of_early_ends(rewards - 1.0, goes_on) == remarks.of_early_ends(rewards[2:], goes_on[2:]) == []
    sizes = {**SHORT, "warmup_steps": 64, "reward_offset": 100.0}
    lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "dense", end_at_success=True, **sizes)
    assert "what stays short of success may earn more" in capsys.readouterr().err
    lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "plain", **sizes)
    lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "sparse", end_at_success=True, **sizes | {"reward_offset": -100.0})
    assert "stays short" not in capsys.readouterr().err


def test_where_training_episodes_end_at_success_that_is_said_of_them_alone():
    plain, ends = (remarks.of_success("success", end) for end in (False, True))
    assert ends == f"{plain}, at the first of which a training episode ends; an evaluation's goes on"
