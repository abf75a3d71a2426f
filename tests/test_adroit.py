"""The Adroit tasks: spaces, horizons, success, seeds; and the human demonstrations."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import lpds
from lpds.envs.build import environment_factory
from lpds.presets import resolve_preset, resolve_settings
from lpds.pretrain.datasets import open_data
from lpds.pretrain.experts import Source, joined, roll_out
from lpds.pretrain.human import human_demonstrations
from lpds.registry import TASKS, resolve

pytest.importorskip("gymnasium_robotics", reason="Adroit needs the extra adroit")

SIZES = {"pen": (45, 24, 100), "hammer": (46, 26, 200), "door": (39, 28, 200), "relocate": (39, 30, 200)}


@pytest.mark.parametrize("task", SIZES)
@pytest.mark.filterwarnings("ignore")  # the checker's own advice on a simulator that is not ours
def test_environment(task):
    env = environment_factory(f"adroit-{task}")[0]()
    obs, actions, horizon = SIZES[task]
    assert env.observation_space.shape == (obs,)
    assert env.action_space.shape == (actions,)
    assert env.spec.max_episode_steps == horizon
    check_env(env.unwrapped, skip_render_check=True)
    gymnasium.make(env.spec).close()  # its wrappers can be made again, which Gymnasium's checks of a wrapped one do
    env.reset(seed=3)
    *_, info = env.step(np.zeros(actions, np.float32))
    assert "success" in info
    env.close()


def test_a_short_run_steers_a_hand(tmp_path):
    """Frozen policy, warm-up, fits, updates of Delta, evaluations that tell of success, and the policy that comes back."""
    short = {"steps": 900, "warmup_steps": 400, "warmup_fits": 10, "batch_size": 32, "width": 32, "eval_every": 0}
    run = lpds.steer("adroit-pen", **short, final_episodes=2, out=tmp_path / "pen", device="cpu", quiet=True)
    assert not np.isnan(run.steered.successes).any()
    assert run.frozen.lengths.tolist() == [100, 100]
    assert np.array_equal(run.frozen.first_obs, run.steered.first_obs)
    assert lpds.load_policy(run.folder).shift(run.frozen.first_obs).any()


@pytest.mark.parametrize("task", SIZES)
def test_the_same_seed_gives_the_same_episode_and_another_another(task):
    rows = []
    for seed in (0, 0, 1):
        env = lpds.make_env(f"adroit-{task}", 2, 4, seed)
        obs, _ = env.reset(seed=seed)
        steps = [obs]
        rng = np.random.default_rng(0)
        for _ in range(3):
            obs, *_ = env.step(rng.uniform(-0.5, 0.5, (2, 4, SIZES[task][1])).astype(np.float32))
            steps.append(obs)
        env.close()
        rows.append(np.stack(steps))
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    assert not np.array_equal(rows[0][0, 0], rows[0][0, 1])


@pytest.mark.parametrize("task", SIZES)
def test_a_short_episode_says_success_or_not_and_ends_at_its_horizon(task):
    decoder = lpds.wrap_decoder(
        lambda obs, w: 0.1 * w,
        obs_shape=(SIZES[task][0],),
        latent_shape=(4, SIZES[task][1]),
        action_shape=(4, SIZES[task][1]),
        name="w",
    )
    report = lpds.evaluate(decoder, f"adroit-{task}", episodes=2)
    assert report.lengths.tolist() == [SIZES[task][2]] * 2
    assert set(report.successes) <= {0.0, 1.0}


def test_an_adroit_release_that_says_no_success_is_an_error(refused):
    from lpds.envs.adroit import _SaysSuccess

    env = _SaysSuccess(gymnasium.make("Pendulum-v1"))
    env.reset(seed=0)
    with refused("info has no 'success'"):
        env.step(env.action_space.sample())


@pytest.mark.parametrize(("name", "delta"), [("pen", 0.66), ("hammer", 0.35), ("door", 0.35), ("relocate", 0.35)])
def test_the_papers_delta_is_in_its_preset_and_the_default_is_a_budget_for_long_latents(name, delta):
    task = resolve("task", TASKS, f"adroit-{name}")
    _, own = resolve_settings(task, "lpds", {})
    _, papers = resolve_settings(task, "lpds", {}, resolve_preset("paper", "lpds", task.name))
    assert (own.delta, papers.delta, papers.delta_unit) == (8.0, delta, "sum")


def human_file(path, lengths=(5, 3)):
    arrays = {}
    for number, length in enumerate(lengths):
        arrays[f"{number:02}/observations"] = np.full((length, 39), number, np.float32)
        arrays[f"{number:02}/actions"] = np.full((length, 28), 1.5, np.float32)
        arrays[f"{number:02}/rewards"] = np.ones(length, np.float32)
    np.savez(path, **arrays)


def test_the_human_door_demonstrations_are_a_recipes_last_source(tmp_path, monkeypatch):
    from lpds.pretrain import recipes
    from lpds.pretrain.build import data_card

    (tmp_path / "demos").mkdir()
    human_file(tmp_path / "demos" / "adroit_door_human.npz")
    rolled = human_demonstrations(tmp_path / "demos" / "adroit_door_human.npz")
    monkeypatch.setattr(recipes, "roll_out", lambda *args, **options: rolled)
    made = recipes.make_data("adroit-door-human", tmp_path / "experts")
    assert made.recipe == "adroit-door-human"
    assert made.episode_source.tolist() == [0, 0, 1, 1]
    made.save(tmp_path / "door.npz")
    card = data_card("mine", open_data(str(tmp_path / "door.npz")))
    assert (card["env"], card["human"], card["return_by_source"]) == ("adroit-door", "adroit_door_human.npz", [4.0, 4.0])
    assert "sources" not in data_card("adroit-door", replace(made, recipe=""))


def test_broken_files_of_experts_and_people_are_one_line(tmp_path, refused):
    from lpds.pretrain.experts import load_actor

    for name in ("adroit_pen", "gym_sac_hopper"):
        path = tmp_path / f"{name}.npz"
        np.savez(path, weights=np.zeros(3))
        with refused(path.name, "holds no"):
            load_actor(path, sampled=False)(np.zeros(11), np.random.default_rng(0))
        with path.open("wb") as stream:
            np.save(stream, np.zeros(3))
        with refused(path.name, "cannot be read"):
            load_actor(path, sampled=False)
        with refused(path.name, "cannot be read"):
            human_demonstrations(path)
    human = tmp_path / "human.npz"
    np.savez(human, **{"0/observations": np.zeros((5, 39)), "0/actions": np.zeros((6, 28)), "0/rewards": np.zeros(6)})
    with refused("episode 0", "5 observations, 6 actions and 6 rewards"):
        human_demonstrations(human)


def test_human_demonstrations_and_their_place_beside_rolled_out_ones(tmp_path, refused):
    human_file(tmp_path / "door.npz")
    data = human_demonstrations(tmp_path / "door.npz")
    assert data.episode_lengths.tolist() == [5, 3]
    assert data.episode_returns.tolist() == [5.0, 3.0]
    assert data.actions.max() == 1.0  # the environment's own clip
    both = joined(data, data)
    assert both.episode_source.tolist() == [0, 0, 1, 1]
    assert len(both.obs) == 16
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with refused("holds no NN/observations"):
        human_demonstrations(tmp_path / "other.npz")
    with refused("do not exist"):
        human_demonstrations(tmp_path / "none.npz")


def test_a_dataset_of_a_registered_environment_keeps_rewards_and_ends(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(0, 0.1, shape) for name, shape in (("W0", (32, 45)), ("W1", (32, 32)), ("W2", (24, 32)))}
    arrays |= {"b0": np.zeros(32), "b1": np.zeros(32), "b2": np.zeros(24), "log_std": np.full(24, -1.0)}
    arrays |= {name: np.empty(0) for name in ("in_shift", "in_scale", "out_shift", "out_scale")}
    np.savez(tmp_path / "adroit_pen.npz", **arrays)
    data = roll_out("adroit-pen", [Source("adroit_pen", 1.0)], experts=tmp_path, transitions=150, seed=0)
    assert data.episode_lengths.tolist() == [100, 100]
    assert data.rewards.sum() == pytest.approx(data.episode_returns.sum(), rel=1e-4)
    assert data.final_obs.shape == (2, 45)
    assert not data.terminated.any()
