"""Demonstrations from files: every layout gives the same numbers in environment units, and a broken one gets one line."""

from __future__ import annotations

import json
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from lpds.errors import LpdsError
from lpds.pretrain.datasets import open_data

LENGTHS = [3, 5]


@pytest.fixture
def raw():
    rng = np.random.default_rng(0)
    return rng.normal(2.0, 3.0, (8, 4)).astype(np.float32), rng.uniform(-0.5, 0.5, (8, 2)).astype(np.float32)


def test_own_layout(tmp_path, raw):
    obs, actions = raw
    np.savez(tmp_path / "d.npz", obs=obs, actions=actions, episode_lengths=LENGTHS)
    data = open_data(str(tmp_path / "d.npz"))
    np.testing.assert_array_equal(data.obs, obs)
    np.testing.assert_array_equal(data.episode_lengths, LENGTHS)
    np.savez(tmp_path / "c.npz", obs=obs + 1j, actions=actions, episode_lengths=LENGTHS)
    with pytest.raises(LpdsError, match="obs are complex64, not real numbers"):
        open_data(str(tmp_path / "c.npz"))


def test_dppo_layout_is_scaled_back_by_its_ranges(tmp_path, raw):
    obs, actions = raw
    low, high = obs.min(0), obs.max(0)
    a_low, a_high = actions.min(0), actions.max(0)
    np.savez(tmp_path / "n.npz", obs_min=low, obs_max=high, action_min=a_low, action_max=a_high)
    states = 2 * ((obs - low) / (high - low + 1e-6) - 0.5)
    scaled = 2 * (actions - a_low) / (a_high - a_low) - 1
    np.savez(tmp_path / "d.npz", states=states, actions=scaled, traj_lengths=LENGTHS)
    data = open_data(str(tmp_path / "d.npz"), tmp_path / "n.npz")
    np.testing.assert_allclose(data.obs, obs, atol=1e-5)
    np.testing.assert_allclose(data.actions, actions, atol=1e-6)
    with pytest.raises(LpdsError, match="pass --normalization"):
        open_data(str(tmp_path / "d.npz"))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # its own, about what it would like to know
def test_minari(tmp_path, raw, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    obs, actions = raw
    import gymnasium

    spaces = {
        "observation_space": gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32),
        "action_space": gymnasium.spaces.Box(-1, 1, (2,), np.float32),
    }
    episodes, first = [], 0
    for length in LENGTHS:
        rows = slice(first, first + length)
        episodes.append(
            minari.data_collector.EpisodeBuffer(
                observations=np.concatenate([obs[rows], obs[:1] + first]),  # one more: where the episode ended
                actions=actions[rows],
                rewards=np.ones(length),
                terminations=(np.arange(length) == length - 1) & (first == 0),  # the others were cut off
                truncations=(np.arange(length) == length - 1) & (first > 0),
            )
        )
        first += length
    minari.create_dataset_from_buffers("test/two-v0", episodes, eval_env=None, **spaces)
    in_two = {"b": spaces["observation_space"], "a": gymnasium.spaces.Box(-1, 1, (2,), np.float32)}
    for name, more in (("dict-v0", {}), ("counts-v0", {"c": gymnasium.spaces.Discrete(5)})):
        named = []
        for one in episodes:
            held = {"b": one.observations, "a": one.observations[:, :2]}
            counts = {key: np.zeros(len(one.observations), np.int64) for key in more}
            named.append(replace(one, observations=held | counts))
        space = gymnasium.spaces.Dict(in_two | more)
        minari.create_dataset_from_buffers(f"test/{name}", named, eval_env=None, **spaces | {"observation_space": space})
    both, rows = open_data("minari:test/dict-v0"), {"a": obs[:, :2], "b": obs}
    assert both.order == ", ".join(gymnasium.spaces.Dict(in_two))
    np.testing.assert_array_equal(both.obs, np.concatenate([rows[key] for key in both.order.split(", ")], axis=1))
    with pytest.raises(LpdsError, match=r"observation 'c' is an array \[\] of int64 at each step"):
        open_data("minari:test/counts-v0")
    (tmp_path / "test" / "counts-v0" / "data" / "metadata.json").write_text("{")
    with pytest.raises(LpdsError, match="'test/counts-v0' cannot be read"):  # it is there
        open_data("minari:test/counts-v0")
    data = open_data("minari:test/two-v0")
    np.testing.assert_array_equal(data.obs, obs)
    np.testing.assert_array_equal(data.actions, actions)
    np.testing.assert_array_equal(data.episode_returns, LENGTHS)
    begins = np.concatenate([[0], np.cumsum(LENGTHS)[:-1]])
    np.testing.assert_array_equal(data.final_obs, (obs[:1] + begins[:, None]).astype(np.float32))
    assert data.terminated.tolist() == (begins == 0).tolist()
    with pytest.raises(LpdsError, match="minari download"):
        open_data("minari:test/none-v0")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"x": np.zeros(3)}, "expected obs, actions, episode_lengths"),
        ({"obs": np.zeros((4, 2)), "actions": np.zeros((4, 1)), "episode_lengths": [3]}, "do not agree"),
        ({"obs": np.full((3, 2), np.nan), "actions": np.zeros((3, 1)), "episode_lengths": [3]}, "NaN"),
    ],
)
def test_bad_data_gets_one_line(tmp_path, fields, says):
    np.savez(tmp_path / "d.npz", **fields)
    with pytest.raises(LpdsError, match=says) as error:
        open_data(str(tmp_path / "d.npz"))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_archive_gets_one_line(tmp_path):
    (tmp_path / "d.npz").write_bytes(b"not an archive")
    with pytest.raises(LpdsError, match="cannot be read"):
        open_data(str(tmp_path / "d.npz"))


def robomimic_file(path, *, arms=1, lengths=(3, 5, 2), without=()):
    """The layout of RoboMimic's low_dim files: demo_10 comes after demo_2, keys in the file's own order."""
    h5py = pytest.importorskip("h5py", reason="RoboMimic files need h5py")
    rng = np.random.default_rng(0)
    sizes = {"object": 10}
    for arm in range(arms):
        sizes |= {f"robot{arm}_eef_pos": 3, f"robot{arm}_eef_quat": 4, f"robot{arm}_gripper_qpos": 2}
    held = {}
    with h5py.File(path, "w") as file:
        for number, length in zip((0, 2, 10), lengths, strict=True):
            group = file.create_group(f"data/demo_{number}")
            group.attrs["num_samples"] = length
            held[number] = {key: rng.normal(size=(length, size)) for key, size in sizes.items()}
            for key, value in held[number].items():
                group[f"obs/{key}"] = value
                group[f"next_obs/{key}"] = value + 1.0
            group["actions"] = rng.uniform(-1, 1, (length, 7 * arms))
            group["rewards"] = np.eye(length)[-1]
            group["dones"] = np.eye(length, dtype=np.int64)[-1]
            group["states"] = rng.normal(size=(length, 45))
            for key in without:
                del group[key]
        file.create_group("mask")["train"] = [b"demo_0"]
    return held


def test_a_raw_robomimic_file_is_told_what_makes_a_low_dim_one_of_it(tmp_path, refused):
    """RoboMimic's downloads are raw by default: states of the simulator, and no observations."""
    path = tmp_path / "demo.hdf5"
    robomimic_file(path, without=("obs", "next_obs"))
    with refused(str(path), "it is a raw file", "dataset_states_to_obs.py makes a low_dim one of it"):
        open_data(str(path))
    robomimic_file(path, without=("obs", "next_obs", "states"))
    with refused(str(path), "expected RoboMimic's low_dim layout"):
        open_data(str(path))


def test_robomimic_files_name_the_extra_that_reads_them(tmp_path, monkeypatch, refused):
    (tmp_path / "demo.hdf5").touch()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with refused("pip install 'lpds[hdf5]'"):
        open_data(str(tmp_path / "demo.hdf5"))
    known = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "lpds[hdf5]" in known["robosuite"]


def test_robomimic_keys_come_in_its_order_and_demos_by_number(tmp_path):
    held = robomimic_file(tmp_path / "lift.hdf5")
    data = open_data(str(tmp_path / "lift.hdf5"))
    assert data.episode_lengths.tolist() == [3, 5, 2]
    order = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
    wanted = np.concatenate([np.concatenate([held[n][key] for key in order], 1) for n in (0, 2, 10)])
    np.testing.assert_allclose(data.obs, wanted, rtol=1e-6)
    np.testing.assert_allclose(data.final_obs[1], wanted[7] + 1.0, rtol=1e-6)
    assert data.episode_returns.tolist() == [1.0, 1.0, 1.0]
    assert data.rewards.sum() == 3.0
    assert not data.terminated.any()


def test_a_files_own_split_is_told_and_an_arm_without_one_of_its_keys_is_refused(tmp_path, refused):
    robomimic_file(tmp_path / "lift.hdf5")
    path = str(tmp_path / "lift.hdf5")
    assert open_data(path).remark.endswith(
        "splits its demonstrations (train): all of them are used (lift.hdf5#train takes those of one)"
    )
    train = open_data(f"{path}#train")
    assert (train.episode_lengths.tolist(), train.remark) == ([3], "")
    np.testing.assert_array_equal(train.obs, open_data(path).obs[:3])
    with refused("has no split 'valid' (choices: train)"):
        open_data(f"{path}#valid")
    with refused("the name of a split belongs behind the #"):
        open_data(f"{path}#")
    (tmp_path / "folder").mkdir()
    for nothing in (f"{tmp_path / 'folder'}#train", f"{tmp_path / 'no'}#5.hdf5"):
        with refused(f"dataset {nothing} does not exist"):
            open_data(nothing)
    h5py = pytest.importorskip("h5py", reason="RoboMimic files need h5py")
    for name, members, said in (
        ("none", np.empty(0, "S6"), "its split 'none' names none of its demonstrations"),
        ("gone", [b"demo_0", b"demo_7"], "its split 'gone' names demo_7, which is none of its demonstrations"),
    ):
        with h5py.File(path, "a") as file:
            file["mask"][name] = members
        with refused(said):
            open_data(f"{path}#{name}")
    np.savez(tmp_path / "own.npz", obs=np.zeros((1, 2)), actions=np.zeros((1, 2)), episode_lengths=[1])
    with refused("#train names a split of a RoboMimic file"):
        open_data(f"{tmp_path / 'own.npz'}#train")
    robomimic_file(tmp_path / "site.hdf5", without=("obs/robot0_eef_quat", "next_obs/robot0_eef_quat"))
    with refused("no observation ['robot0_eef_quat']", "robot0_eef_pos"):
        open_data(str(tmp_path / "site.hdf5"))


OURS = {"type": "OSC_POSE", "output_max": [0.05] * 3 + [0.5] * 3, "output_min": [-0.05] * 3 + [-0.5] * 3, "control_delta": True}
PART = {**OURS, "input_type": "delta", "input_ref_frame": "base"}
PART_OF_NO_FRAME = {"type": "BASIC", "body_parts": {"right": {**OURS, "input_type": "delta"}}}
JOINTS = {"type": "JOINT_POSITION", "output_max": 0.5, "output_min": -0.5}
OTHERS = {"torso": JOINTS, "head": JOINTS, "legs": JOINTS, "left": {**OURS, "output_max": [1.0] * 6}}
"""What robosuite 1.5's configurations list of robots that have none of it."""


@pytest.mark.parametrize(
    ("robots", "driven", "version", "said"),
    [
        (["Panda"], {"controller_configs": OURS}, "1.4.1", ""),
        (["Panda"], {}, "", ""),
        (["Panda"], {"controller_configs": {"type": "BASIC", "body_parts": {"right": PART}}}, "1.4.1", ""),
        (["Panda"], {"controller_configs": {"type": "BASIC", "body_parts": {**OTHERS, "right": PART}}}, "1.5.1", ""),
        (["Panda"], {"controller_configs": {"type": "BASIC", "body_parts": {**OTHERS, "arms": {"right": PART}}}}, "1.5.1", ""),
        (["Panda"], {"control_freq": None, "controller_configs": {**OURS, "output_max": {}}}, "1.4.1", ""),
        (5, {"controller_configs": OURS}, None, ""),
        (["Panda"] * 2, {"controller_configs": [PART_OF_NO_FRAME] * 2}, "1.5.1", "actions in the frame of each arm's base"),
        (["Panda"] * 2, {"controller_configs": [OURS] * 2}, "1.4.1", ""),
        (["Panda"], {"controller_configs": {**OURS, "type": "IK_POSE"}, "control_freq": 10}, "1.4.1", "10 Hz, IK_POSE"),
        (["Sawyer"], {"controller_configs": OURS}, "1.4.1", "Sawyer"),
        (["Panda"], {"controller_configs": {**OURS, "output_max": [0.02] * 3 + [0.2] * 3}}, "1.4.1", "output_max [0.02, 0.02"),
        (
            ["Panda", "Panda"],
            {"controller_configs": [{"type": "BASIC", "body_parts": {"right": PART}}] * 2},
            "1.5.1",
            "actions in the frame of each arm's base",
        ),
    ],
)
def test_how_the_robot_was_driven_is_compared_with_the_tasks_here(tmp_path, refused, robots, driven, version, said):
    """Data of another controller, rate or frame trained a policy that fails, and nothing said so."""
    import json
    from types import SimpleNamespace

    import gymnasium

    from lpds.pretrain.fits import check_fits

    h5py = pytest.importorskip("h5py", reason="RoboMimic files need h5py")
    count = len(robots) if isinstance(robots, list) else 1
    robomimic_file(tmp_path / "lift.hdf5", arms=count)
    with h5py.File(tmp_path / "lift.hdf5", "a") as file:
        told = {"env_name": "Lift", "env_version": version, "env_kwargs": {"robots": robots, **driven}}
        file["data"].attrs["env_args"] = json.dumps(told)
    data = open_data(str(tmp_path / "lift.hdf5"))
    assert data.recorded.startswith(said)
    assert bool(data.recorded) == bool(said)
    assert (f"was recorded with {data.recorded}" in data.remark) == bool(said)
    assert ("was recorded under robosuite 1.5.1" in data.remark) == (version == "1.5.1")
    data.save(tmp_path / "kept.npz")
    assert open_data(str(tmp_path / "kept.npz")).recorded == data.recorded
    box = gymnasium.spaces.Box(-1.0, 1.0, (7 * count,), np.float32)
    task = SimpleNamespace(
        single_observation_space=gymnasium.spaces.Box(-np.inf, np.inf, data.obs.shape[1:], np.float32),
        primitive_action_space=box,
        name="robomimic-lift",
        first=SimpleNamespace(unwrapped=SimpleNamespace(task=SimpleNamespace(name="Lift")), observation_space=box),
    )
    if said:
        with refused("the data were recorded with", "robomimic-lift is not driven so"):
            check_fits(data, task, "other data are needed")
    else:
        check_fits(data, task, "other data are needed")


def test_demonstrations_of_another_name_are_told(tmp_path):
    h5py = pytest.importorskip("h5py", reason="RoboMimic files need h5py")
    robomimic_file(tmp_path / "lift.hdf5")
    with h5py.File(tmp_path / "lift.hdf5", "a") as file:
        file.move("data/demo_2", "data/demo_2_a")
        file["data/note"] = "of whoever recorded it"  # neither this nor a link to nowhere is a demonstration
        file["data/table"] = np.zeros((2, 2))
        file["data/link"] = h5py.SoftLink("/nowhere")
    data = open_data(str(tmp_path / "lift.hdf5"))
    assert data.episode_lengths.tolist() == [3, 2]
    assert "demo_2_a left out, which are not named demo_N" in data.remark


def test_a_file_is_known_by_what_it_begins_with(tmp_path, refused):
    robomimic_file(tmp_path / "lift.hdf")
    assert len(open_data(str(tmp_path / "lift.hdf")).obs) == 10
    (tmp_path / "data.pkl").write_bytes(b"\x80\x04 a pickle")
    with refused("data.pkl is none of npz", "LeRobotDataset", "minari:"):
        open_data(str(tmp_path / "data.pkl"))


def test_two_arms_both_come_before_the_object(tmp_path):
    held = robomimic_file(tmp_path / "transport.hdf5", arms=2)
    data = open_data(str(tmp_path / "transport.hdf5"))
    assert data.obs.shape == (10, 28)
    np.testing.assert_allclose(data.obs[:3, 9:12], held[0]["robot1_eef_pos"], rtol=1e-6)
    np.testing.assert_allclose(data.obs[:3, 18:], held[0]["object"], rtol=1e-6)


def test_a_robomimic_file_without_rewards_and_one_of_another_layout(tmp_path, refused):
    from lpds.pretrain.robomimic import open_robomimic

    robomimic_file(tmp_path / "bare.hdf5", without=("rewards", "next_obs"))
    data = open_data(str(tmp_path / "bare.hdf5"))
    assert data.rewards.size == 0
    assert np.isnan(data.episode_returns).all()
    with refused("no observation ['images']", "robot0_eef_pos"):
        open_robomimic(tmp_path / "bare.hdf5", ["images"])
    robomimic_file(tmp_path / "none.hdf5", without=("obs",))
    with refused("no data/demo_N with obs and actions"):
        open_data(str(tmp_path / "none.hdf5"))
    (tmp_path / "torn.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n broken")
    with refused("cannot be read"):
        open_data(str(tmp_path / "torn.hdf5"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"episode_lengths": [15, -7]}, "episodes of at least one step"),
        ({"rewards": np.zeros(5)}, "rewards is [5], expected [8]"),
        ({"final_obs": np.zeros((2, 3))}, "final_obs is [2, 3], expected [2, 4]"),
        ({"terminated": np.zeros(3, bool)}, "terminated is [3], expected [2]"),
        ({"image": np.zeros((3, 4, 4, 3), np.uint8)}, "image is [3, 4, 4, 3], expected [8, 4, 4, 3]"),
        ({"actions": np.zeros(8)}, "must be rows of vectors"),
        ({"episode_lengths": "three"}, "cannot be read"),
        ({"terminated": np.array(["yes", "no"])}, "terminated must be true or false, or 0 and 1, not 'yes'"),
        ({"terminated": np.array([0.0, 0.5])}, "terminated must be true or false, or 0 and 1, not 0.5"),
        ({"terminated": np.array([], "<U3")}, "terminated must be true or false, or 0 and 1, not of <U3"),
        ({"rewards": np.zeros(8, complex)}, "rewards are complex128, not real numbers"),
        ({"image": np.full((8, 4, 4, 3), 0.7)}, "image is float64, not uint8 of 0 to 255"),
        ({"image2": np.full((8, 4, 4, 3), 300)}, "image2 is int64, not uint8 of 0 to 255"),
        ({"episode_source": [0, -1]}, "episode_source holds -1"),
    ],
)
def test_parts_that_do_not_add_up_are_told(tmp_path, raw, refused, fields, says):
    obs, actions = raw
    np.savez(tmp_path / "d.npz", **{"obs": obs, "actions": actions, "episode_lengths": LENGTHS, **fields})
    with refused(str(tmp_path / "d.npz"), says):
        open_data(str(tmp_path / "d.npz"))


def test_ranges_of_another_size_or_for_data_that_need_none(tmp_path, raw, refused):
    obs, actions = raw
    np.savez(tmp_path / "n.npz", obs_min=[0.0], obs_max=[1.0], action_min=[0.0], action_max=[1.0])
    np.savez(tmp_path / "d.npz", states=obs, actions=actions, traj_lengths=LENGTHS)
    with refused("ranges of 1 states", "[8, 4]"):
        open_data(str(tmp_path / "d.npz"), tmp_path / "n.npz")
    np.savez(tmp_path / "own.npz", obs=obs, actions=actions, episode_lengths=LENGTHS)
    with refused("--normalization is for DPPO's npz"):
        open_data(str(tmp_path / "own.npz"), tmp_path / "n.npz")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY"])
def test_an_empty_or_torn_file(tmp_path, refused, content):
    (tmp_path / "d.npz").write_bytes(content)
    with refused("cannot be read"):
        open_data(str(tmp_path / "d.npz"))


def test_a_robomimic_file_that_would_be_misread(tmp_path, refused):
    """Demonstrations of 3, 5 and 2 steps, with one thing wrong in the second."""
    h5py = pytest.importorskip("h5py", reason="RoboMimic files need h5py")

    def spoilt(name, spoil):
        robomimic_file(tmp_path / name)
        with h5py.File(tmp_path / name, "a") as file:
            spoil(file)
        return str(tmp_path / name)

    def shorter(file):
        rows = file["data/demo_2/obs/object"][:4]
        del file["data/demo_2/obs/object"]
        file["data/demo_2/obs/object"] = rows

    def emptied(file):
        demo = file["data/demo_2"]
        places: list[str] = []
        demo.visit(places.append)
        for place in places:
            if isinstance(demo[place], h5py.Dataset):
                none = demo[place][:0]
                del demo[place]
                demo[place] = none

    with refused("rows of demo_2 do not agree", "object 4", "actions 5"):
        open_data(spoilt("short.hdf5", shorter))
    with refused("demo_2 has no steps"):
        open_data(spoilt("none.hdf5", emptied))
    with refused("demo_2 has no obs/robot0_eef_pos"):
        open_data(spoilt("key.hdf5", lambda file: file.pop("data/demo_2/obs/robot0_eef_pos")))
    with refused("demo_2 has no next_obs/object"):
        open_data(spoilt("next.hdf5", lambda file: file.pop("data/demo_2/next_obs/object")))

    def blind(file):
        for number in (0, 2, 10):
            del file[f"data/demo_{number}/obs/object"]

    with refused("no observation 'object'"):
        open_data(spoilt("blind.hdf5", blind))
    assert len(open_data(spoilt("other.hdf5", lambda file: file.create_group("data/demo_x"))).episode_lengths) == 3

    def instead(where, value):
        def spoil(file):
            del file[where]
            file[where] = value

        return spoil

    with refused("has no data/demo_N with obs and actions"):
        open_data(spoilt("flat.hdf5", instead("data/demo_2/obs", np.zeros((5, 19)))))
    with refused("demo_2 has no next_obs/robot0_eef_pos"):
        open_data(spoilt("flat_next.hdf5", instead("data/demo_2/next_obs", np.zeros((5, 19)))))
    with refused("object of demo_2 has rows of [7], that of demo_0 of [10]"):
        open_data(spoilt("wide.hdf5", instead("data/demo_2/obs/object", np.zeros((5, 7)))))
    with refused("rows of demo_2 do not agree", "next_obs/object 0"):
        open_data(spoilt("empty.hdf5", instead("data/demo_2/next_obs/object", np.zeros(0))))
    with refused("rows of demo_2 do not agree", "rewards 0"):
        open_data(spoilt("scalar.hdf5", instead("data/demo_2/rewards", 1.0)))


def env_args(path, name, **controller):
    h5py = pytest.importorskip("h5py", reason="RoboMimic files need h5py")
    with h5py.File(path, "a") as file:
        kwargs = {"controller_configs": {"type": "OSC_POSE", **controller}}
        file["data"].attrs["env_args"] = json.dumps({"env_name": name, "type": 1, "env_kwargs": kwargs})


def test_absolute_actions_and_demonstrations_of_another_task_are_refused(tmp_path, refused):
    """They trained to a policy that never succeeds, without a word."""
    from lpds.pretrain.build import _check_env
    from lpds.pretrain.fits import _check_range

    pytest.importorskip("robosuite", reason="RoboMimic's tasks need robosuite")
    robomimic_file(tmp_path / "can.hdf5")
    env_args(tmp_path / "can.hdf5", "Lift", control_delta=True)
    data = open_data(str(tmp_path / "can.hdf5"))
    assert data.scene == "Lift"
    data.save(tmp_path / "can.npz")
    assert open_data(str(tmp_path / "can.npz")).scene == "Lift"
    wide = replace(data, obs=np.zeros((10, 23), np.float32))
    with refused("recorded in Lift, but robomimic-can is PickPlaceCan"):
        _check_env(wide, "robomimic-can", None)
    _check_env(replace(wide, scene=""), "robomimic-can", None)
    parts = {"right": {"type": "OSC_POSE", "input_type": "delta"}}  # as robosuite writes it from 1.5 on
    env_args(tmp_path / "can.hdf5", "Lift", body_parts=parts)
    assert open_data(str(tmp_path / "can.hdf5")).scene == "Lift"
    for absolute in ({"control_delta": False}, {"body_parts": {"right": {"input_type": "absolute"}}}):
        env_args(tmp_path / "can.hdf5", "Lift", **absolute)
        with refused("absolute actions"):
            open_data(str(tmp_path / "can.hdf5"))
    box = gymnasium.spaces.Box(-1.0, 1.0, (7,))
    _check_range(data.actions, box, "else")
    half = np.arange(10)[:, None] < 5
    _check_range(np.where(half, 3.0, data.actions), box, "else")  # a clipped step is no other unit
    with refused("in 100% of the data's steps", "number 6 goes from", "the box from -1 to 1"):
        _check_range(data.actions + np.eye(7, dtype=np.float32)[6] * 3.0, box, "else")


def test_observations_of_ones_own_that_are_left_out_are_told(tmp_path):
    """A policy was trained on the object alone, and not a word said that the position beside it was not seen."""
    h5py = pytest.importorskip("h5py", reason="RoboMimic files need h5py")
    path = tmp_path / "own.hdf5"
    robomimic_file(path)
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            rows = len(demo["actions"])
            for name in ("pos", "robot0_joint_pos", "agentview_image"):
                demo["obs"][name] = np.zeros((rows, 2), np.float32)
    assert open_data(str(path)).remark.endswith("object are used, pos not")
