"""Files as those who publish them write them: RoboMimic's low_dim layout filled by the environment, LeRobot's own writer."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from lpds.decoders.lerobot.folder import admit_torchvision
from lpds.pretrain.datasets import open_data
from lpds.registry import ENVIRONMENTS, resolve

RELEASED_ENV_ARGS = {
    "env_name": "PickPlaceCan",
    "env_version": "1.4.1",
    "type": 1,
    "env_kwargs": {
        "control_freq": 20,
        "robots": ["Panda"],
        "reward_shaping": False,
        "controller_configs": {
            "type": "OSC_POSE",
            "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
            "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
            "control_delta": True,
        },
    },
}
"""What of a released file's description says how the robot is driven."""
ARM = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
OTHERS = {
    "robot0_eef_vel_lin": 3,
    "robot0_eef_vel_ang": 3,
    "robot0_gripper_qvel": 2,
    "robot0_joint_pos": 7,
    "robot0_joint_vel": 7,
}
"""Observations of a low_dim file that no policy here sees."""


def test_a_robomimic_file_gives_the_environments_own_observations_to_the_bit(tmp_path):
    """The order of the keys is written in two places: where the environment puts them end to end, and in the loader."""
    pytest.importorskip("robosuite", reason="needs the extra robosuite")
    rng, path = np.random.default_rng(0), tmp_path / "low_dim_v141.hdf5"
    env = resolve("environment", ENVIRONMENTS, "robomimic-can")()
    seen, last = [], []
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(RELEASED_ENV_ARGS)
        for number in range(2):
            obs, _ = env.reset(seed=number)
            parts, steps = [dict(env.unwrapped.parts)], [obs]
            actions = rng.uniform(-1.0, 1.0, (5, 7)).astype(np.float32)
            for action in actions:
                steps.append(env.step(action)[0])
                parts.append(dict(env.unwrapped.parts))
            demo = data.create_group(f"demo_{number}")
            demo["actions"], demo["rewards"], demo["dones"] = actions.astype(np.float64), np.zeros(5), np.eye(5)[4]
            demo["states"] = np.zeros((5, 71))
            for where, rows in (("obs", parts[:-1]), ("next_obs", parts[1:])):
                for key in ARM:
                    demo[f"{where}/{key}"] = np.array([row[key] for row in rows])
                demo[f"{where}/object"] = np.array([row["object-state"] for row in rows])
                for key, size in OTHERS.items():
                    demo[f"{where}/{key}"] = rng.normal(size=(5, size))
            seen += steps[:-1]
            last.append(steps[-1])
    env.close()
    found = open_data(str(path))
    np.testing.assert_array_equal(found.obs, np.stack(seen))
    np.testing.assert_array_equal(found.final_obs, np.stack(last))
    assert found.scene == "PickPlaceCan"
    assert (found.recorded, found.remark) == ("", "")  # driven as the tasks here are, nothing left out that a policy could see
    assert not found.terminated.any()


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_lerobots_own_writer_is_read_as_it_was_written(tmp_path):
    pytest.importorskip("lerobot", reason="needs lerobot")
    admit_torchvision()
    writer = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="needs lerobot").LeRobotDataset
    sizes = {"observation.state": 4, "observation.environment_state": 3, "action": 2}
    features = {name: {"dtype": "float32", "shape": (size,), "names": None} for name, size in sizes.items()}
    written = writer.create("me/pushes", fps=10, features=features, root=tmp_path / "pushes", use_videos=False)
    rng, rows = np.random.default_rng(0), []
    for steps in (3, 5, 4):
        for _ in range(steps):
            rows.append({name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()})
            written.add_frame({**rows[-1], "task": "push"})
        written.save_episode()
    if hasattr(written, "finalize"):
        written.finalize()
    found = open_data(str(tmp_path / "pushes"))
    assert found.episode_lengths.tolist() == [3, 5, 4]
    np.testing.assert_array_equal(found.actions, np.stack([row["action"] for row in rows]))
    whole = [np.concatenate([row["observation.state"], row["observation.environment_state"]]) for row in rows]
    np.testing.assert_array_equal(found.obs, np.stack(whole))
