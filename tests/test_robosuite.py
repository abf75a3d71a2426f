"""RoboMimic's tasks in robosuite: spaces, seeds to the bit, success, horizons; and the scripted experts."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from contextlib import nullcontext

import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import lpds
from lpds.cli import main
from lpds.envs import robosuite
from lpds.envs.build import environment_factory
from lpds.envs.robosuite import rendering_backend
from lpds.presets import resolve_preset, resolve_settings
from lpds.pretrain.datasets import open_data
from lpds.pretrain.recipes import SCRIPTED
from lpds.pretrain.scripted import transport
from lpds.pretrain.scripted.collect import _attempt
from lpds.pretrain.scripted.waypoints import Manner, Plan, Script, Waypoint, fixed, reachable, rotation, wrapped, yaw
from lpds.registry import ENVIRONMENTS, TASKS, resolve

# observations, actions, horizon
SIZES = {"lift": (19, 7, 300), "can": (23, 7, 300), "square": (23, 7, 400), "transport": (59, 14, 800)}

installed = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="needs the extra robosuite")


@pytest.fixture(scope="module")
def make():
    """``make(task)``: one environment for all the tests, since compiling one takes seconds."""
    made = {}

    def get(task):
        if task not in made:
            made[task] = resolve_make(task)()
        return made[task]

    yield get
    for env in made.values():
        env.close()


def resolve_make(task):
    return resolve("environment", ENVIRONMENTS, f"robomimic-{task}")


@installed
def test_a_task_made_by_name_can_be_filmed():
    """The name's maker once dropped the render mode, and ``lpds video`` refused every RoboMimic task."""
    env = environment_factory("robomimic-lift", render_mode="rgb_array")[0]()
    assert env.render_mode == "rgb_array"
    env.close()


def episode(env, seed, steps=3):
    rng = np.random.default_rng(0)
    rows = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        rows.append(env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))[0])
    return np.stack(rows)


@installed
@pytest.mark.parametrize("task", SIZES)
def test_spaces_and_the_order_of_robomimics_keys(make, task):
    env = make(task)
    obs, actions, horizon = SIZES[task]
    assert env.observation_space.shape == (obs,)
    assert env.action_space.shape == (actions,)
    assert (env.action_space.low.tolist(), env.action_space.high.tolist()) == ([-1.0] * actions, [1.0] * actions)
    assert env.horizon == horizon
    first, info = env.reset(seed=3)
    assert first.dtype == np.float32
    assert not info["success"]
    arms = [f"robot{arm}_{what}" for arm in range(env.task.arms) for what in ("eef_pos", "eef_quat", "gripper_qpos")]
    expected = np.concatenate([env.parts[key] for key in (*arms, "object-state")])
    assert np.array_equal(first, expected.astype(np.float32))


@installed
@pytest.mark.parametrize("task", SIZES)
@pytest.mark.filterwarnings("ignore")  # the checker's own advice on a simulator that is not ours
def test_gymnasiums_contract(make, task):
    check_env(make(task), skip_render_check=True, skip_close_check=True)


@installed
def test_a_short_run_steers_an_arm(tmp_path):
    """Frozen policy, warm-up, fits, updates of Delta, evaluations that tell of success, and the policy that comes back."""
    short = {"steps": 440, "warmup_steps": 320, "warmup_fits": 5, "batch_size": 16, "width": 32, "eval_every": 0}
    run = lpds.steer("robomimic-lift", **short, final_episodes=1, out=tmp_path / "lift", device="cpu", quiet=True)
    assert not np.isnan(run.steered.successes).any()
    assert run.frozen.lengths.tolist() == [300]
    assert np.array_equal(run.frozen.first_obs, run.steered.first_obs)
    assert lpds.load_policy(run.folder).shift(run.frozen.first_obs).any()


@installed
@pytest.mark.parametrize("task", SIZES)
def test_a_seed_gives_the_same_episode_to_the_bit_whatever_came_before(make, task):
    env = make(task)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = episode(env, 5)
    assert np.array_equal(np.random.get_state()[1], before)  # nobody else's draws are touched
    other = episode(env, 6, steps=7)
    np.random.seed(2)
    assert np.array_equal(episode(env, 5), first)
    assert not np.array_equal(other[0], first[0])


@installed
def test_a_fresh_environment_gives_the_same_episode(make):
    fresh = resolve_make("lift")()
    assert np.array_equal(episode(fresh, 5), episode(make("lift"), 5))
    assert fresh.render() is None
    fresh.close()


@installed
def test_without_a_seed_every_reset_differs(make):
    env = make("lift")
    assert not np.array_equal(env.reset()[0], env.reset()[0])


@installed
def test_observations_are_those_of_robosuite_with_nothing_turned_off(make):
    """The robot's other sensors are off for speed; the rest must not notice."""
    env = make("square")
    lean = episode(env, 4)
    unneeded = [name for name, one in env.suite._observables.items() if not one.is_enabled()]
    for name in unneeded:
        env.suite._observables[name].set_enabled(True)
    assert np.array_equal(episode(env, 4), lean)
    for name in unneeded:
        env.suite._observables[name].set_enabled(False)


@installed
@pytest.mark.parametrize("task", ["lift", "transport"])
def test_one_pass_a_substep_is_robosuites_own_step_to_the_bit(make, task, monkeypatch):
    """With grasps and contacts: the scripted expert reads every state, so the first bit that differs would change the rest."""
    env = make(task)
    expert, passes = importlib.import_module(SCRIPTED[f"robomimic-{task}"].expert), []
    monkeypatch.setattr(env, "horizon", 150)

    def attempt():
        done = _attempt(env, expert, np.random.default_rng(5), tremor=0.15)
        return np.stack(done.obs), np.stack(done.actions), np.stack(done.rewards), env.suite.sim.data.qpos.copy()

    ours = attempt()
    with monkeypatch.context() as plain:
        plain.setattr(robosuite, "one_pass_a_substep", nullcontext)
        theirs = attempt()
    assert all(np.array_equal(mine, robosuites) for mine, robosuites in zip(ours, theirs, strict=True))
    assert "forward" not in vars(env.suite.sim)  # put back after every step
    # and it is one pass where robosuite has three
    for name in ("mj_forward", "mj_step", "mj_step1", "mj_step2"):
        counted = getattr(mujoco, name)
        monkeypatch.setattr(mujoco, name, lambda *args, name=name, counted=counted: (passes.append(name), counted(*args)))
    env.step(np.zeros(env.action_space.shape, np.float32))
    assert passes == ["mj_step1", "mj_step2"] * 25


@installed
def test_chunks_over_two_lanes_stop_at_the_horizon():
    env = lpds.make_env(lambda: resolve_make("lift")(horizon=6), 2, 4, 0)
    obs, info = env.reset(seed=0)
    assert obs.shape == (2, 19)
    assert not np.array_equal(obs[0], obs[1])
    still = np.zeros((2, 4, 7), np.float32)
    *_, truncated, info = env.step(still)
    assert info["k"].tolist() == [4, 4]
    assert info["success"].tolist() == [0.0, 0.0]
    assert not truncated.any()
    *_, terminated, truncated, info = env.step(still)
    assert info["k"].tolist() == [2, 2]
    assert truncated.all()
    assert not terminated.any()
    env.close()


@installed
def test_success_is_the_tasks_own_and_ends_the_episode_only_where_asked(make):
    env = make("lift")
    env.reset(seed=0)
    still = np.zeros(7, np.float32)
    cube = env.suite.cube.joints[0]
    try:
        for ends in (False, True):
            env.end_at_success = ends
            pose = env.suite.sim.data.get_joint_qpos(cube).copy()
            pose[2] += 0.2
            env.suite.sim.data.set_joint_qpos(cube, pose)
            _, reward, terminated, truncated, info = env.step(still)
            assert (reward, terminated, truncated, info["success"]) == (1.0, ends, False, True)
    finally:
        env.end_at_success = False
    for _ in range(12):  # it falls
        _, reward, _, _, info = env.step(still)
    assert (reward, info["success"]) == (0.0, False)


@installed
def test_a_frame_or_one_line_that_says_what_is_missing(refused):
    env = resolve_make("lift")(render_mode="rgb_array")
    env.reset(seed=0)
    with rendering_backend() as backend:
        there = backend in ("egl", "osmesa")
    if there:
        frame = env.render()
        assert frame.shape == (256, 256, 3)
        assert frame.dtype == np.uint8
        assert frame.std() > 10
    else:
        with refused("libegl1"):
            env.render()
    env.close()
    with refused("render_mode", "human"):
        resolve_make("lift")(render_mode="human")


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch, refused):
    for name in [name for name in sys.modules if name.split(".")[0] == "robosuite"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused("pip install 'lpds[robosuite]'", "1.4.1"):
        environment_factory("robomimic-can")[0]()


def test_another_version_is_refused(monkeypatch, refused):
    for name in [name for name in sys.modules if name.split(".")[0] == "robosuite"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.5.2")
    with refused("1.4.1", "1.5.2"):
        environment_factory("robomimic-can")[0]()


def test_presets_have_dsrls_rewards_and_discounts_and_a_budget_for_a_coordinate():
    tasks = {task: resolve("task", TASKS, f"robomimic-{task}") for task in SIZES}
    assert {task.run["reward_offset"] for task in tasks.values()} == {-1.0}
    assert tasks["can"].run["gamma"] ** 4 == pytest.approx(0.99)
    assert tasks["square"].run["gamma"] ** 4 == pytest.approx(0.999)
    for name in ("lift", "can", "square"):
        assert tasks[name].method["lpds"]["delta"] / 28 == pytest.approx(0.07, abs=0.005)
        assert tasks[name].run["warmup_steps"] == 16_000


@pytest.mark.parametrize(("name", "delta"), [("lift", 0.10), ("can", 0.35), ("square", 0.35)])
def test_the_paper_preset_has_the_papers_budget(name, delta):
    task = resolve("task", TASKS, f"robomimic-{name}")
    run, method = resolve_settings(task, "lpds", {}, resolve_preset("paper", "lpds", task.name))
    assert (method.delta, method.delta_unit, run.updates_per_decision) == (delta, "sum", 1.0)


@pytest.mark.parametrize("method", ["dppo", "idql", "dql"])
@pytest.mark.parametrize(("name", "rate"), [*((f"robomimic-{task}", 1e-5) for task in SIZES), ("hopper", 1e-4)])
def test_what_trains_the_chain_learns_at_the_released_rate(name, rate, method):
    _, settings = resolve_settings(resolve("task", TASKS, name), method, {}, resolve_preset(None, method, name))
    assert settings.actor_lr == rate


def test_angles():
    assert wrapped(3 * np.pi / 2) == pytest.approx(-np.pi / 2)
    assert wrapped(0.3 + np.pi, np.pi) == pytest.approx(0.3)
    half = np.array([0.0, 0.0, np.sin(0.35), np.cos(0.35)])
    assert yaw(half) == pytest.approx(0.7)
    assert rotation(half) @ rotation(half).T == pytest.approx(np.eye(3))
    assert reachable([-2.0, 0.5, 2.0, -0.1]) == [3, 1, 2]
    assert reachable([0.5, -0.1], heading=2.0) == [1]


def test_an_arm_waits_for_its_condition_beyond_its_steps_and_follows_its_own_waypoints():
    plan = Plan(
        [Waypoint(fixed(9.0, 0.0, 0.0), gripper=-1.0)],
        mode=0,
        others=[
            [Waypoint(fixed(0.0, 0.0, 0.0), 0.5, most=2, until=lambda parts: parts["ready"][0] > 0), Waypoint(fixed(), 1.0)]
        ],
    )
    arm = Script(plan, Manner(), np.random.default_rng(0), arm=1)
    parts = {"robot1_eef_pos": np.array([0.3, 0.0, 0.0]), "robot1_eef_quat": np.array([1.0, 0.0, 0.0, 0.0])}
    for _ in range(5):
        for action in arm.act({**parts, "ready": np.zeros(1)}):  # done and meant: no tremor here
            assert action[[0, 6]].tolist() == [-1.0, 0.5]
    assert arm.phase == 0
    arm.act({**parts, "ready": np.ones(1)})
    assert arm.phase == 1


def test_what_is_meant_is_the_action_without_its_tremor_whatever_that_is():
    """The tremor moves the arm, and the expert answers to where it is: what it meant there hangs on the state alone."""
    plan = Plan([Waypoint(fixed(0.0, 0.0, 0.0), 1.0, pace=0.5, least=99, most=99)], mode=0)
    parts = {"robot0_eef_pos": np.array([0.004, -0.003, 0.0]), "robot0_eef_quat": np.array([1.0, 0.0, 0.0, 0.0])}
    calm, shaking = (Script(plan, Manner(tremor=t), np.random.default_rng(0)) for t in (0.0, 0.1))
    done, meant = (np.stack(part) for part in zip(*(shaking.act(parts) for _ in range(40)), strict=True))
    wanted = np.stack([calm.act(parts)[0] for _ in range(40)])
    np.testing.assert_array_equal(meant, wanted)
    assert 0.02 < (done - meant)[:, :6].std() < 0.08  # half of it, at half of the pace
    np.testing.assert_array_equal(done[:, 6], meant[:, 6])


def resting():
    """Transport's things at rest."""
    lying = np.array([0.0, np.sqrt(0.5), -np.sqrt(0.5), 0.0])
    return {
        "robot1_eef_quat": np.array([1.0, 0.0, 0.0, 0.0]),
        "lid_handle_pos": np.array([0.2, -0.45, 0.974]),
        "payload_pos": np.array([0.2, -0.45, 0.824]),
        "payload_quat": lying,
        "trash_pos": np.array([-0.2, 0.45, 0.83]),
        "trash_quat": np.array([0.0, 0.0, 0.0, 1.0]),
        "target_bin_pos": np.array([-0.2, 0.45, 0.804]),
        "trash_bin_pos": np.array([0.2, 0.45, 0.804]),
    }


def test_transport_draws_each_of_its_ways(monkeypatch):
    monkeypatch.setattr(transport, "MISSED", 0.0)
    parts = resting()
    plans = [transport.plan(parts, np.random.default_rng(seed)) for seed in range(40)]
    assert {plan.mode for plan in plans} == set(range(len(transport.MODES)))
    for plan in plans:
        far, right = divmod(plan.mode, 2)
        fetch, receive = plan.arms
        assert (fetch[4].place(parts)[0] < -0.2) == far
        assert (receive[8].place(parts)[0] > 0) == right
        # the hands leave room for each other on the handle, 20 cm long
        mine, yours = fetch[9].place(parts)[1] + 0.45, receive[10].place(parts)[1] + 0.45
        assert -0.1 < mine < 0 < yours < 0.1
        assert yours - mine > 0.1


def test_a_grasp_that_misses_closes_above_the_thing_is_raised_empty_and_begins_again(monkeypatch):
    parts, plans = resting(), []
    for share in (0.0, 1.0):  # the same draws but for that
        monkeypatch.setattr(transport, "MISSED", share)
        plans.append(transport.plan(parts, np.random.default_rng(0)))
    sure, missing = plans
    for arm, grasps in enumerate([[0, 8], [0]]):  # lid and hammer; trash
        one, other = sure.arms[arm], missing.arms[arm]
        assert len(other) == len(one) + 4 * len(grasps)
        for number, begin in enumerate(grasps):
            at = begin + 4 * number
            down, close, up, again = other[at + 1 : at + 5]
            grasp = one[begin + 1].place(parts)
            assert again is other[at]
            assert 0.03 <= down.place(parts)[2] - grasp[2] <= 0.06
            assert np.array_equal(down.place(parts), close.place(parts))
            assert (down.gripper, close.gripper, up.gripper, again.gripper) == (-1.0, 1.0, 1.0, -1.0)
            here = parts | {f"robot{arm}_eef_pos": down.place(parts)}
            assert 0.05 <= up.place(here)[2] - down.place(parts)[2] <= 0.3
            assert other[at + 5].gripper == -1.0
            np.testing.assert_array_equal(other[at + 5].place(parts), grasp)


@installed
def test_both_arms_of_the_expert_act_the_same_for_the_same_draws(make, monkeypatch):
    env = make("transport")
    monkeypatch.setattr(env, "horizon", 20)
    first, again, other = (_attempt(env, transport, np.random.default_rng([0, draw]), tremor=0.15) for draw in (3, 3, 4))
    actions = np.stack(first.actions)
    assert actions.shape == (20, 14)
    assert np.abs(actions[:, :6]).max() > 0.1 < np.abs(actions[:, 7:13]).max()
    assert np.array_equal(actions, again.actions)
    assert np.array_equal(first.obs, again.obs)
    assert not np.array_equal(actions, other.actions)


@installed
@pytest.mark.parametrize("task", SIZES)
def test_the_scripted_expert_succeeds_and_the_recording_stops_soon_after(task, tmp_path, capsys):
    out = tmp_path / "demos.npz"
    assert main(["demos", f"robomimic-{task}", "--episodes", "1", "--seed", "0", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "1 successes, 0 failures" in printed
    data = open_data(str(out))
    (length,) = data.episode_lengths
    assert data.obs.shape == (length, SIZES[task][0])
    assert data.actions.shape == (length, SIZES[task][1])
    assert np.abs(data.actions).max() <= 1.0
    assert length < SIZES[task][2]
    assert data.meant.shape == (data.actions.shape if task == "transport" else (0, 0))
    assert data.rewards[-10:].tolist() == [1.0] * 10
    assert data.final_obs.shape == (1, SIZES[task][0])
    assert not data.terminated.any()


@installed
def test_demonstrations_of_one_and_then_one_more_are_those_of_two(tmp_path, capsys):
    asked = ["demos", "robomimic-lift", "--seed", "0", "--out"]
    assert main([*asked, str(tmp_path / "two.npz"), "--episodes", "2"]) == 0
    for episodes in ("1", "2", "2"):  # the last has nothing to do
        assert main([*asked, str(tmp_path / "d.npz"), "--episodes", episodes, "--resume"]) == 0
    two, again = (open_data(str(tmp_path / name)) for name in ("two.npz", "d.npz"))
    for name in two.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(two, name))
    assert main([*asked, str(tmp_path / "d.npz"), "--episodes", "3"]) != 0
    assert "pass --resume to go on with it" in capsys.readouterr().err
    assert main([*asked, str(tmp_path / "d.npz"), "--resume", "--overwrite"]) != 0
    assert "pass one of them" in capsys.readouterr().err


def test_episodes_and_seeds_are_for_scripted_experts_only(capsys, tmp_path):
    assert set(SCRIPTED) == {*(f"robomimic-{task}" for task in SIZES), "libero-90:57"}
    assert main(["demos", "toy", "--episodes", "3", "--out", str(tmp_path / "x.npz")]) != 0
    assert "for scripted experts" in capsys.readouterr().err


def test_a_mujoco_that_is_too_new_is_told_before_the_first_step(refused):
    from lpds.envs.robosuite import check_mujoco

    check_mujoco("3.9.4", "1.4.1")
    for version in ("3.10.0", "3.11.0", "4.0.1"):
        with refused(f"robosuite 1.4.1 does not work with MuJoCo {version}", "pip install 'mujoco<3.10'"):
            check_mujoco(version, "1.4.1")
