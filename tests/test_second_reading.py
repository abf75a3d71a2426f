"""What a reading with fresh eyes found: each of these failed once."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
import torch

import lpds
from lpds.compact import as_learned, look
from lpds.config import GoldenTicketSettings
from lpds.decoders.base import as_picture
from lpds.envs.chunk import ChunkedVectorEnv, chunk_return
from lpds.errors import LpdsError
from lpds.pretrain.build import data_card, pretrain
from lpds.pretrain.datasets import open_data
from lpds.pretrain.experts import Demonstrations
from lpds.pretrain.fits import check_fits
from lpds.stats import share_difference, wilson


class Still(gymnasium.Env):
    """Two numbers, one action, five steps; may fail where a test says."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, fails_at: int = 99, closes: bool = True) -> None:
        self.fails_at, self.closes, self.count, self.closed = fails_at, closes, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.count += 1
        if self.count == self.fails_at:
            raise RuntimeError("simulator lost")
        return np.zeros(2, np.float32), float(action[0]), False, self.count == 5, {}

    def close(self):
        self.closed += 1
        if not self.closes:
            raise RuntimeError("Not connected to physics server.")


def still_data(lengths=(5, 5), scale=1.0, **more):
    steps = sum(lengths)
    rng = np.random.default_rng(0)
    return Demonstrations(
        obs=rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        actions=(scale * rng.uniform(-1, 1, (steps, 1))).astype(np.float32),
        episode_lengths=np.asarray(lengths, np.int64),
        episode_returns=np.zeros(len(lengths)),
        episode_source=np.zeros(len(lengths), np.int64),
        rewards=np.zeros(steps, np.float32),
        final_obs=np.zeros((len(lengths), 2), np.float32),
        terminated=np.zeros(len(lengths), np.bool_),
        **more,
    )


def test_a_time_limit_is_an_end_under_dsrls_convention_and_none_under_the_exact_one():
    rewards, k = -np.ones((3, 4)), np.array([4, 4, 4])
    ended, cut = np.array([False, False, True]), np.array([False, True, False])
    assert chunk_return(rewards, k, ended, 0.5, "dsrl", cut)[1].tolist() == [0.0625, 0.0, 0.0]
    assert chunk_return(rewards, k, ended, 0.5, "exact", cut)[1].tolist() == [0.0625, 0.0625, 0.0]


def test_episodes_that_all_went_alike_leave_a_difference_of_success_its_chance():
    half = np.repeat([1.0, 0.0], 25)
    chance = wilson(0.0, 50)[2]
    assert share_difference(half, half) == pytest.approx((0.0, -chance, chance))
    assert share_difference(half, np.stack([half] * 3)) == pytest.approx((0.0, -chance, chance))
    assert share_difference(half, half, same=True) == (0.0, 0.0, 0.0)  # one policy beside itself
    other = half.copy()
    other[0] = 0.0
    assert share_difference(half, other)[0] == pytest.approx(-0.02)


def test_a_golden_tickets_search_ends_whatever_the_warm_up(tmp_path):
    """Its phases are shares of the whole budget, so none of that may go to a warm-up."""
    settings = {"steps": 1600, "num_envs": 1, "eval_every": 0, "final_episodes": 2, "quiet": True, "tickets": 4}
    left = []
    for warmup in (1, 800):
        run = lpds.steer("toy", "golden-ticket", out=tmp_path / str(warmup), warmup_steps=warmup, **settings)
        from lpds.checkpoint import CheckpointStore

        tensors, _ = CheckpointStore(run.folder / "checkpoint").load()
        left.append((int(tensors["method.alive"].sum()), int(tensors["method.halvings"])))
    assert left == [(1, 2), (1, 2)]
    assert GoldenTicketSettings().tickets == 16


def test_a_card_outlives_an_environment_that_fails_in_its_evaluation(tmp_path):
    data = tmp_path / "data.npz"
    still_data().save(data)
    gymnasium.register("Lost-v0", lambda: Still(fails_at=3), max_episode_steps=5)
    changes = {"steps": 2, "chunk": 2, "width": 8, "batch_size": 4}
    with pytest.raises(LpdsError, match=r"simulator lost.*the decoder is saved in .*, its card without a return"):
        pretrain("own", str(data), tmp_path / "out", env="Lost-v0", episodes=1, changes=changes)
    assert json.loads((tmp_path / "out" / "card.json").read_text())["return"] is None
    assert lpds.load_decoder(f"folder:{tmp_path / 'out'}").spec.action_shape == (2, 1)


def test_episodes_shorter_than_a_chunk_are_counted_apart():
    assert data_card("own", still_data((3, 5, 3)), 4)["episodes_shorter_than_chunk"] == 2
    assert "episodes_shorter_than_chunk" not in data_card("own", still_data((4, 5)), 4)


def test_all_environments_are_closed_and_none_of_them_can_spoil_what_was_done():
    made = []

    def factory():
        made.append(Still(closes=False))
        return made[-1]

    env = ChunkedVectorEnv(factory, 3, 2)
    env.close()
    assert [one.closed for one in made] == [1, 1, 1]


def test_demonstrations_of_another_scene_or_unit_are_refused_before_a_run(tmp_path):
    env = ChunkedVectorEnv(Still, 1, 1, name="still")
    check_fits(still_data(), env, "x")
    with pytest.raises(LpdsError, match=r"outside of the environment's box: number 0 .*: take others"):
        check_fits(still_data(scale=300.0), env, "take others")
    env.first.unwrapped.task = type("Task", (), {"name": "Can"})()
    with pytest.raises(LpdsError, match="recorded in Square, but still is Can"):
        check_fits(still_data(scene="Square"), env, "x")

    def decode(obs, noise):
        return noise

    data = tmp_path / "far.npz"
    still_data(scale=300.0).save(data)
    decoder = lpds.wrap_decoder(decode, obs_shape=2, latent_shape=(2, 1), action_shape=(2, 1), name="own")
    with pytest.raises(LpdsError, match="outside of the environment's box"):
        lpds.steer(decoder=decoder, env=Still, demos=str(data), steps=8, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def robomimic(path, change):
    with h5py.File(path, "w") as file:
        for name in ("demo_0", "demo_1"):
            demo = file.create_group(f"data/{name}")
            for where in ("obs", "next_obs"):
                demo[f"{where}/object"] = np.zeros((4, 3))
            demo["actions"], demo["rewards"] = np.zeros((4, 2)), np.zeros(4)
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Lift"})
        change(file)
    return str(path)


def test_robomimic_files_with_a_link_to_nowhere_or_a_narrow_next_observation_are_one_line(tmp_path):
    def dangle(file):
        file["data/demo_7"] = h5py.SoftLink("/nope")

    def narrow(file):
        del file["data/demo_1/next_obs/object"]
        file["data/demo_1/next_obs/object"] = np.zeros((4, 1))

    with pytest.raises(LpdsError, match="cannot be read"):
        open_data(robomimic(tmp_path / "a.hdf5", dangle))
    with pytest.raises(LpdsError, match=r"next_obs/object of demo_1 has rows of \[1\]"):
        open_data(robomimic(tmp_path / "b.hdf5", narrow))


@pytest.mark.parametrize(
    ("lengths", "match"), [([[5, 5]], r"episode_lengths is \[1, 2\]"), ([3.4, 6.6], "whole numbers of steps")]
)
def test_lengths_that_are_no_row_of_whole_numbers_are_one_line(tmp_path, lengths, match):
    path = tmp_path / "own.npz"
    np.savez(path, obs=np.zeros((10, 2)), actions=np.zeros((10, 1)), episode_lengths=np.asarray(lengths))
    with pytest.raises(LpdsError, match=match):
        open_data(str(path))


def test_a_method_that_acts_by_the_chain_is_set_against_the_untrained_chain(tmp_path):
    """The sampler alone may be worth more than what was learned; on 2 episodes both are played on the same noise."""
    settings = {"steps": 64, "num_envs": 1, "eval_every": 0, "final_episodes": 6, "warmup_steps": 8, "quiet": True}
    run = lpds.steer("toy", "dppo", out=tmp_path / "dppo", **settings)
    chain = lpds.steer(
        "toy", "base", out=tmp_path / "chain", sampler="chain", steps=8, eval_every=0, final_episodes=6, quiet=True
    )
    assert run.start is not None
    assert chain.steered is not None
    np.testing.assert_array_equal(run.start.returns, chain.steered.returns)
    assert "against what it starts from, untrained" in run.verdict()
    notes = lpds.compare([run.folder]).notes
    assert any("acts by the decoder's whole chain" in note and "dppo" in note for note in notes)
    assert torch.is_grad_enabled()


def wrapped(**more):
    made = {"obs_shape": {"a": (2,), "b": (3,)}, "latent_shape": (2, 1), "action_shape": (2, 1), "name": "own"}
    return lpds.wrap_decoder(**{"fn": lambda seen, w: w + seen[:, :1, None], **made, **more})


def test_a_prefix_is_computed_once_a_state_without_features_too():
    rows = []

    def prefix(obs):
        rows.append(len(obs["a"]))
        return obs["a"] + obs["b"][:, :2]

    decoder = wrapped(prepare=prefix)
    sight = look(decoder, {"a": np.ones((5, 2), np.float32), "b": np.ones((5, 3), np.float32)})
    rows.clear()
    w = torch.randn(20, 2, 1)
    chunks = sight.decoder.decode(sight.decoder.prepare(sight.state.repeat_interleave(4, 0)), w)
    assert rows == []
    torch.testing.assert_close(chunks, w + 2.0)
    again = as_learned(decoder)
    torch.testing.assert_close(again.decode(again.prepare(sight.state.repeat_interleave(4, 0)), w), chunks)


def test_options_that_a_run_could_not_note_down_are_refused_before_it(tmp_path):
    (tmp_path / "own.py").write_text(
        "import lpds\n"
        "def make(model=None):\n"
        "    return lpds.wrap_decoder(lambda s, w: w, obs_shape=2, latent_shape=(2, 1), action_shape=(2, 1), name=str(model))\n"
    )
    reference = f"python:{tmp_path / 'own.py'}:make"
    decoder = lpds.load_decoder(reference, model=Path("x.pt"))
    assert decoder.options == {"model": str(Path("x.pt").resolve())}
    assert lpds.load_decoder(reference, model=np.float32(0.5)).options == {"model": 0.5}
    with pytest.raises(LpdsError, match="option model is a object, which a run could not note down"):
        lpds.load_decoder(reference, model=object())
    with pytest.raises(LpdsError, match=r"feature_size must be a whole number, not 3\.5"):
        wrapped(features=lambda seen: seen, feature_size=3.5)


def test_drawn_pictures_have_shades_that_a_byte_can_have():
    drawn = as_picture(torch.randn(4, 3, 8, 8))
    torch.testing.assert_close(255.0 * drawn, (255.0 * drawn).round(), rtol=0.0, atol=1e-4)
    assert bool(((drawn >= 0.0) & (drawn <= 1.0)).all())
