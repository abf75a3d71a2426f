"""An expert who takes over from a policy, and one clone of several data sets."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import torch
from scripted import toy_decoder

from lpds.cli import main
from lpds.decoders.wrap import wrap_decoder
from lpds.pretrain.build import pretrain
from lpds.pretrain.experts import Demonstrations, joined, of_sources
from lpds.pretrain.recipes import make_data
from lpds.pretrain.scripted import transport
from lpds.pretrain.scripted.collect import NOWHERE, _attempt
from lpds.pretrain.scripted.waypoints import Script, draw_manner
from lpds.registry import ENVIRONMENTS, resolve
from lpds.zoo import load_decoder

installed = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="needs the extra robosuite")
STAGES = (
    ("lid", "lid aside", "hammer", "hammer out", "meet", "leave"),
    ("trash", "trash away", "wait", "approach", "keep", "bring"),
)


@pytest.fixture(scope="module")
def env():
    made = resolve("environment", ENVIRONMENTS, "robomimic-transport")()
    yield made
    made.close()


def few(lengths=(3, 2), width=2, actions=1, **fields):
    n = sum(lengths)
    return Demonstrations(
        obs=np.arange(n * width, dtype=np.float32).reshape(n, width),
        actions=np.linspace(-1, 1, n * actions, dtype=np.float32).reshape(n, actions),
        episode_lengths=np.asarray(lengths, np.int64),
        episode_returns=np.arange(len(lengths), dtype=np.float64),
        episode_source=np.arange(len(lengths)),
        **fields,
    )


@installed
def test_of_the_experts_own_states_it_says_the_stage_that_the_expert_is_in(env, monkeypatch):
    """Every stage of each arm in its order, none of them twice: what is seen tells how far the task is."""
    monkeypatch.setattr(transport, "MISSED", 0.0)  # a grasp made twice goes back by a stage
    rng = np.random.default_rng([0, 0])
    env.reset(seed=int(rng.integers(2**31)))
    start = dict(env.parts)
    manner, plan = draw_manner(rng, 0.0), transport.plan(env.parts, rng)
    experts = [Script(plan, manner, rng, arm) for arm in range(2)]
    seen, over = [], False
    while not over:
        found = transport.take_over(start, env.parts, np.random.default_rng(0))
        released = experts[1].phase >= len(plan.arms[1]) - 2
        assert found is not None or released
        seen += [found.begin] if found is not None else []
        _, _, terminated, truncated, info = env.step(np.concatenate([expert.act(env.parts)[0] for expert in experts]))
        over = terminated or truncated or info["success"]
    assert info["success"]
    for arm, order in enumerate(STAGES):
        visited = [stage for stage, _ in groupby(begin[arm] for begin in seen)]
        assert visited == list(order), f"arm {arm}: {visited}"


@installed
def test_where_the_hammer_is_held_near_the_place_to_meet_they_meet_there_and_where_it_lies_elsewhere_nowhere(env):
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    start = dict(env.parts)
    eef = start["robot0_eef_pos"]
    offset = transport.axis(start) * -0.05
    # no part of the simulator: what would be observed if arm 0 held the hammer there
    for hammer, met in (((-0.09, -0.04, 1.05), (-0.09, -0.015, 1.05)), ((0.02, 0.0, 1.1), (0.06, 0.0, 1.07))):
        held = start | {
            "payload_pos": np.array(hammer),
            "robot0_eef_pos": np.array(hammer) + offset,
            "robot0_gripper_qpos": np.array([0.015, -0.015]),
        }
        plan = transport.take_over(start, held, rng)
        assert plan is not None
        assert plan.begin[0] == "meet"
        (meeting,) = (point for point in plan.waypoints if point.stage == "meet")
        np.testing.assert_allclose(meeting.place(held) - held["robot0_eef_pos"], np.array(met) - hammer, atol=1e-12)
    dropped = start | {"payload_pos": np.array([0.1, 0.0, 0.82]), "robot0_eef_pos": eef}
    assert transport.take_over(start, dropped, rng) is None


@installed
def test_the_expert_goes_on_from_a_policy_and_only_what_it_does_is_kept(env, monkeypatch):
    """A policy that only lets both arms sink: the expert begins elsewhere than at a reset, and succeeds from there."""
    calls = []

    def sink(obs, w):
        calls.append(len(obs))
        return torch.tensor([0.0, 0.0, -0.2, 0.0, 0.0, 0.0, -1.0] * 2).repeat(len(obs), 4, 1)

    policy = wrap_decoder(sink, latent_shape=(4, 14), action_shape=(4, 14), obs_shape=(59,), name="sink")
    reset, _ = env.reset(seed=int(np.random.default_rng([1, 0]).integers(2**31)))
    episode = _attempt(env, transport, np.random.default_rng([1, 0]), 0.1, policy, 200)
    assert episode.succeeded
    assert calls
    assert set(calls) == {1}
    assert len(episode.obs) == len(episode.actions) + 1
    assert episode.obs[0][2] < reset[2] - 0.02  # lower than at the reset
    monkeypatch.setattr(transport, "take_over", lambda *_: None)
    assert _attempt(env, transport, np.random.default_rng([1, 0]), 0.1, policy, 200).mode == NOWHERE


@installed
def test_who_cannot_take_over_says_who_can(tmp_path, capsys, refused):
    asked = ["demos", "robomimic-lift", "--take-over", "toy", "--out", str(tmp_path / "x.npz")]
    assert main(asked) != 0
    assert "lpds.pretrain.scripted.transport can" in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()
    with refused("--take-over", "scripted experts"):
        make_data("toy", policy=toy_decoder())


def test_two_data_sets_are_one_and_what_one_of_them_lacks_is_left_out():
    first = few(meant=np.zeros((5, 1), np.float32), rewards=np.ones(5, np.float32), recipe="a", scene="here")
    second = replace(few((4,)), remark="corrections", recipe="a")
    both = joined(first, second)
    assert both.episode_lengths.tolist() == [3, 2, 4]
    assert both.episode_source.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(both.obs, np.concatenate([first.obs, second.obs]))
    np.testing.assert_array_equal(both.cloned, np.concatenate([first.meant, second.actions]))
    assert both.rewards.size == 0
    assert (both.recipe, both.scene, both.remark) == ("a", "here", "1 episodes: corrections")
    assert joined(first, replace(second, recipe="b")).recipe == ""


def test_some_of_the_sources_are_their_episodes_whole(refused):
    data = few((3, 2, 4), rewards=np.arange(9, dtype=np.float32), final_obs=np.arange(6, dtype=np.float32).reshape(3, 2))
    (some,) = of_sources([data], (0, 2))
    at = [0, 1, 2, 5, 6, 7, 8]
    np.testing.assert_array_equal(some.obs, data.obs[at])
    np.testing.assert_array_equal(some.rewards, data.rewards[at])
    np.testing.assert_array_equal(some.final_obs, data.final_obs[[0, 2]])
    assert (some.episode_lengths.tolist(), some.episode_source.tolist(), some.meant.size) == ([3, 4], [0, 2], 0)
    (rest,) = of_sources([data, some], (1,))  # which has none of it, and is left out
    both = joined(rest, some)
    np.testing.assert_array_equal(np.sort(both.rewards), data.rewards)
    with refused("no episode of source 3", "choices: 0, 1, 2"):
        of_sources([data, some], (0, 3))


def test_data_of_two_robots_tasks_or_cameras_are_not_joined(refused):
    for other, said in (
        (few(width=3), "obs of 2 and of 3 values"),
        (few(actions=2), "actions of 1 and of 2 values"),
        (few(scene="there"), "their task is here and there"),
        (few(image=np.zeros((5, 2, 2, 3), np.uint8)), "pictures (image)"),
    ):
        with refused("do not belong together", said):
            joined(few(scene="here"), other)


def test_a_clone_of_two_files_learns_from_both(tmp_path, refused):
    """Its card counts both, and its normaliser spans what only the second reaches."""
    few((40,)).save(tmp_path / "a.npz")
    wide = few((30,))
    replace(wide, obs=wide.obs + 1000).save(tmp_path / "b.npz")
    files = [str(tmp_path / name) for name in ("a.npz", "b.npz")]
    settings = ["--chunk", "2", "--width", "16", "--steps", "20", "--episodes", "0"]
    assert main(["pretrain", "both", "--data", *files, "--out", str(tmp_path / "both"), *settings]) == 0
    card = json.loads((tmp_path / "both" / "card.json").read_text())
    assert (card["data"]["episodes"], card["data"]["transitions"]) == (2, 70)
    normaliser = load_decoder(str(tmp_path / "both")).normaliser
    assert (normaliser.obs_min.tolist(), normaliser.obs_max.tolist()) == ([0.0, 1.0], [1058.0, 1059.0])
    few(width=3).save(tmp_path / "c.npz")
    with refused("do not belong together"):
        pretrain("x", [files[0], str(tmp_path / "c.npz")], tmp_path / "x", episodes=0)
