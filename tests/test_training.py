"""Data and the training on them: what is refused before it, what an interrupt keeps, what a card says."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import h5py
import numpy as np
import pytest
from pictures import Spot
from scripted import TINY
from small_envs import Still, still_data

import lpds
from lpds.cli import main
from lpds.envs.chunk import ChunkedVectorEnv
from lpds.errors import DecoderFault, LpdsError
from lpds.pretrain import build, kept_training
from lpds.pretrain.build import data_card, pretrain
from lpds.pretrain.datasets import open_data
from lpds.pretrain.experts import Demonstrations, Source, roll_out
from lpds.pretrain.fits import check_fits
from lpds.pretrain.recipes import make_data
from lpds.pretrain.rows import demonstration_rows, until_success
from lpds.types import LatentSpec


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


def made_up(lengths=(5, 3), terminated=True):
    steps = sum(lengths)
    return Demonstrations(
        obs=np.arange(2 * steps, dtype=np.float32).reshape(steps, 2),
        actions=np.zeros((steps, 2), np.float32),
        episode_lengths=np.asarray(lengths, np.int64),
        episode_returns=np.zeros(len(lengths)),
        episode_source=np.zeros(len(lengths), np.int64),
        rewards=np.arange(1.0, steps + 1.0, dtype=np.float32),
        final_obs=np.full((len(lengths), 2), -1.0, np.float32),
        terminated=np.full(len(lengths), terminated),
    )


SHORT = {**TINY, "steps": 400, "eval_every": 0}


def plain_data(lengths=(6, 6, 3), actions=2):
    rng, count = np.random.default_rng(0), sum(lengths)
    return Demonstrations(
        obs=rng.normal(size=(count, 2)).astype(np.float32),
        actions=rng.uniform(-1.0, 1.0, (count, actions)).astype(np.float32),
        episode_lengths=np.asarray(lengths, np.int64),
        episode_returns=np.zeros(len(lengths)),
        episode_source=np.zeros(len(lengths), np.int64),
    )


SMALL = {"chunk": 4, "width": 16, "steps": 40, "batch_size": 8}


def test_a_card_outlives_an_environment_that_fails_in_its_evaluation(tmp_path):
    data = tmp_path / "data.npz"
    still_data().save(data)
    gymnasium.register("Lost-v0", lambda: Still(fails_at=3), max_episode_steps=5)
    changes = {"steps": 2, "chunk": 2, "width": 8, "batch_size": 4}
    with pytest.raises(LpdsError, match=r"simulator lost.*the decoder is saved in .*, its card without a return"):
        pretrain("own", str(data), tmp_path / "out", env="Lost-v0", episodes=1, changes=changes)
    assert json.loads((tmp_path / "out" / "card.json").read_text())["return"] is None
    assert lpds.load_decoder(f"folder:{tmp_path / 'out'}").spec.action_shape == (2, 1)


def test_an_interrupt_of_the_evaluation_says_where_the_decoder_is(tmp_path, monkeypatch, capsys):
    plain_data().save(tmp_path / "d.npz")

    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_level", interrupted)
    out = tmp_path / "out"
    words = ["pretrain", "mine", "--data", str(tmp_path / "d.npz"), "--out", str(out), "--env", "four-mode", "--width", "16"]
    assert main([*words, "--steps", "2", "--chunk", "4"]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"lpds: interrupted: the decoder is saved in {out}")
    assert said.endswith(f"lpds eval {out} --env four-mode measures it")
    assert json.loads((out / "card.json").read_text())["return"] is None


def test_a_card_of_a_part_of_a_recipes_data_knows_nothing_of_the_sources_that_are_not_there():
    data = replace(plain_data(), recipe="hopper", episode_source=np.array([2, 2, 2]), episode_returns=np.array([1.0, 2.0, 6.0]))
    assert data_card("mine", data)["return_by_source"] == [None, None, 3.0]
    untold = replace(data, episode_source=np.array([0, 1, 1]), episode_returns=np.array([1.0, np.nan, 2.0]))
    assert data_card("mine", untold)["return_by_source"] == [1.0, None]


def test_a_card_says_of_data_with_a_recipe_of_their_own_what_they_say():
    # of a scripted expert also what failed, by mode; -1 is an attempt in which there was nothing to take over
    scripted = replace(plain_data(), recipe="robomimic-can", attempts=np.asarray([0, 0, 2, -1, 1, 0]))
    assert data_card("mine", scripted)["attempts_by_mode"] == [3, 1, 1]
    assert "attempts_by_mode" not in data_card("mine", replace(scripted, attempts=np.empty(0, np.int64)))
    assert data_card("mine", replace(plain_data(), recipe="my teleoperation, March"))["recipe"] == "my teleoperation, March"
    assert data_card("mine", replace(plain_data(), recipe="toy"))["recipe"] == "lpds.pretrain.recipes:toy_data"


def test_demonstrations_of_another_scene_or_unit_are_refused_before_a_run(tmp_path):
    env = ChunkedVectorEnv(Still, 1, 1, name="still")
    check_fits(still_data(), env, "x")
    with pytest.raises(LpdsError, match=r"outside of the environment's box: number 0 .*: take others"):
        check_fits(still_data(scale=300.0), env, "take others")
    with pytest.raises(LpdsError, match="outside of the environment's box"):  # what would be cloned of them
        check_fits(replace(still_data(), meant=still_data(scale=300.0).actions), env, "x")
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


@pytest.mark.parametrize("terminated", [True, False])
def test_demonstrations_are_summed_over_n_steps_as_what_is_collected_is(terminated):
    """By hand: decisions of one step, gamma 0.5, three of them or as many as the episode has left."""
    data = made_up(terminated=terminated)
    spec = LatentSpec((2,), (1, 2), (1, 2))
    rows = demonstration_rows(data, spec, gamma=0.5, discount="exact", n_step=3)
    starts = {0: (0, 5), 5: (5, 8)}
    for row in range(8):
        first, end = starts[0] if row < 5 else starts[5]
        upto = min(row + 3, end)
        assert float(rows["reward"][row]) == pytest.approx(sum(0.5 ** (i - row) * (i + 1.0) for i in range(row, upto)))
        done = upto == end and terminated
        assert float(rows["discount"][row]) == pytest.approx(0.0 if done else 0.5 ** (upto - row))
        after = [-1.0, -1.0] if upto == end else data.obs[upto].tolist()
        assert rows["next_obs"][row].tolist() == after
        assert first <= row


def test_demonstrations_that_go_on_after_success_are_no_company_for_episodes_that_do_not(tmp_path, refused):
    for terminated in (False, True):
        path = tmp_path / f"{terminated}.npz"
        made_up(terminated=terminated).save(path)
        settings = {**SHORT, "demos": str(path), "end_at_success": True}
        if terminated:
            assert lpds.steer("toy", out=tmp_path / "run", **settings).finished
            continue
        with refused("end_at_success", "2 of the 2 demonstrations are told to go on", "their rewards do not say"):
            lpds.steer("toy", out=tmp_path / "run", **settings)


def test_sparse_demonstrations_end_at_their_first_success_where_training_episodes_do():
    """Of five and three steps, the first a success at its third and fourth, the second none."""
    data = replace(made_up(terminated=False), rewards=np.float32([0, 0, 1, 1, 0, 0, 0, 0]))
    cut = until_success(data)
    assert cut is not None
    assert cut.episode_lengths.tolist() == [3, 3]
    assert cut.terminated.tolist() == [True, False]
    assert np.array_equal(cut.obs, data.obs[[0, 1, 2, 5, 6, 7]])
    assert np.array_equal(cut.final_obs, [data.obs[3], data.final_obs[1]])
    rows = demonstration_rows(cut, LatentSpec((2,), (1, 2), (1, 2)), gamma=0.5, discount="exact")
    assert rows["reward"].tolist() == [0, 0, 1, 0, 0, 0]
    assert rows["discount"].tolist() == [0.5, 0.5, 0.0, 0.5, 0.5, 0.5]
    # dense, none that succeeds, none at all, one for every step that is survived
    for rewards in ([0, 0, 0.5, 1, 0, 0, 0, 0], [0] * 8, [], [1] * 8):
        assert until_success(replace(data, rewards=np.float32(rewards))) is None
    assert until_success(replace(data, final_obs=np.empty((0, 0), np.float32))) is None


def test_what_is_cut_at_success_is_steered_with(tmp_path, capsys):
    path = tmp_path / "sparse.npz"
    replace(made_up(terminated=False), rewards=np.float32([0, 0, 1, 1, 0, 0, 0, 1])).save(path)
    assert lpds.steer("toy", out=tmp_path / "run", **SHORT | {"quiet": False}, demos=str(path), end_at_success=True).finished
    assert "demonstrations: 2 of 2 that went on after it end at their first success" in capsys.readouterr().err


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


def test_an_expert_of_another_robot_is_one_line(tmp_path, refused):
    """The numbers of its product were a traceback."""
    path = tmp_path / "gym_ars_hopper.npz"
    source, until = [Source("gym_ars_hopper", 1.0)], {"transitions": 10, "seed": 0, "experts": tmp_path}
    np.savez(path, **{"action_net.weight": np.zeros((3, 17))})
    with refused(str(path), "does not fit observations of 11 numbers"):
        roll_out("Hopper-v5", source, **until)
    np.savez(path, **{"action_net.weight": np.zeros((6, 11))})
    with refused(str(path), "gives actions of shape [6], the environment takes [3]"):
        roll_out("Hopper-v5", source, **until)


def test_data_cut_short_are_not_the_recipes_own():
    """A card would say that they are."""
    for stopped in (False, True):
        assert make_data("toy", stop=lambda stopped=stopped: stopped).recipe == ("" if stopped else "toy")


def test_a_stopped_training_is_saved_and_its_card_says_so(tmp_path):
    plain_data().save(tmp_path / "d.npz")

    @contextmanager
    def after(count):
        asked = []
        yield lambda: asked.append(1) or len(asked) >= count

    given = {"env": "four-mode", "changes": SMALL}
    card = pretrain("mine", str(tmp_path / "d.npz"), tmp_path / "out", **given, stopping=lambda: after(15))
    assert card["training"]["stopped_at"] == 15
    assert card["return"] is None
    assert lpds.load_decoder(f"folder:{tmp_path / 'out'}").fingerprint == card["fingerprint"]
    whole = pretrain("mine", str(tmp_path / "d.npz"), tmp_path / "whole", episodes=0, changes=SMALL)
    assert "stopped_at" not in whole["training"]
    assert whole["fingerprint"] != card["fingerprint"]
    last = pretrain("mine", str(tmp_path / "d.npz"), tmp_path / "last", **given, stopping=lambda: after(40))
    assert (last["training"]["stopped_at"], last["return"]) == (40, None)  # asked at the last step: it does not go on to play


class Killed(BaseException):
    """What ends a training at once."""


def after_steps(count, killed=False):
    """A training that is asked to stop, or is killed, at a gradient step."""
    asked = []

    def stop():
        asked.append(1)
        if killed and len(asked) == count:
            raise Killed
        return len(asked) >= count

    return lambda: nullcontext(stop)


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_training_that_was_stopped_or_killed_goes_on_to_what_it_would_have_been(tmp_path, monkeypatch, kind, killed):
    """Twice, at 15 steps and 10 later: weights, their mean, moments, schedule and draws all go on."""
    monkeypatch.setattr(kept_training, "KEPT_EVERY", 0.0)
    plain_data().save(tmp_path / "d.npz")
    data, out = str(tmp_path / "d.npz"), tmp_path / "out"
    given = {"episodes": 0, "changes": SMALL | {"kind": kind}}
    whole = pretrain("mine", data, tmp_path / "whole", **given)
    for count in (15, 10):
        with pytest.raises(Killed) if killed else nullcontext():
            card = pretrain("mine", data, out, **given, resume=True, stopping=after_steps(count, killed))
    if killed:
        assert [path.name for path in out.iterdir()] == ["training.safetensors"]
    else:
        assert (card["training"]["stopped_at"], card["fingerprint"]) != (25, whole["fingerprint"])
        assert card["training"]["stopped_at"] == 25
    assert pretrain("mine", data, out, **given, resume=True) == whole
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole").iterdir())  # and nothing is left to go on with
    assert all((out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)


def test_a_disk_that_is_full_for_a_while_costs_no_training(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_training, "KEPT_EVERY", 0.0)
    asked = []

    def full(path, write):
        asked.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_training, "write_atomically", full)
    plain_data().save(tmp_path / "d.npz")
    given = {"episodes": 0, "changes": SMALL}
    card = pretrain("mine", str(tmp_path / "d.npz"), tmp_path / "out", **given)
    assert len(asked) == SMALL["steps"]
    assert lpds.load_decoder(f"folder:{tmp_path / 'out'}").fingerprint == card["fingerprint"]


def test_what_a_training_does_not_go_on_with(tmp_path, refused):
    plain_data().save(tmp_path / "d.npz")
    (replace(plain_data(), obs=plain_data().obs + 1)).save(tmp_path / "other.npz")
    data, out = str(tmp_path / "d.npz"), tmp_path / "out"
    given = {"episodes": 0, "changes": SMALL}
    pretrain("mine", data, out, **given, stopping=after_steps(15))
    with refused("card.json, training.safetensors already", "--resume", "--overwrite"):
        pretrain("mine", data, out, **given)
    with refused("other data or other settings"):
        pretrain("mine", str(tmp_path / "other.npz"), out, **given, resume=True)
    with refused("other data or other settings"):
        pretrain("mine", data, out, episodes=0, changes=SMALL | {"steps": 41}, resume=True)
    with refused("pass one of them"):
        pretrain("mine", data, out, **given, resume=True, overwrite=True)
    with refused("--resume is for diffusion and flow"):
        pretrain("mine", data, tmp_path / "pi0", episodes=0, changes={"kind": "pi0"}, resume=True)
    kept = out / "training.safetensors"
    content = kept.read_bytes()
    kept.write_bytes(content[:-9])
    with refused("training.safetensors cannot be read"):
        pretrain("mine", data, out, **given, resume=True)
    kept.write_bytes(content)
    whole = pretrain("mine", data, out, **given, overwrite=True)  # from the beginning, whatever is there
    assert whole["fingerprint"] == pretrain("mine", data, tmp_path / "whole", **given)["fingerprint"]
    with refused("of a training that is done", "nothing is left to go on with"):
        pretrain("mine", data, out, **given, resume=True)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_training_and_the_next_one_ends_as_ever(tmp_path, monkeypatch, capsys, number):
    """Only the training takes a signal for a request; before it and after it a signal is what it always was."""
    plain_data().save(tmp_path / "d.npz")
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    handlers = []

    def trained(data, settings, **given):
        handlers.append(signal.getsignal(number))
        os.kill(os.getpid(), number)
        return cloned(data, settings, **given)

    cloned = build.clone
    monkeypatch.setattr(build, "clone", trained)
    words = ["pretrain", "mine", "--data", str(tmp_path / "d.npz"), "--out", str(tmp_path / "again"), "--env", "four-mode"]
    assert main([*words, "--steps", "40", "--width", "16", "--chunk", "4"]) == 130
    assert "stopped at 1 of 40 gradient steps" in capsys.readouterr().out
    assert handlers[0] not in before
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_interrupt_leaves_no_empty_folder_and_bad_numbers_are_refused_before_the_training(tmp_path, refused):
    plain_data().save(tmp_path / "d.npz")
    data, out = str(tmp_path / "d.npz"), tmp_path / "out"

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain("mine", data, out, episodes=0, changes=SMALL, stopping=lambda: nullcontext(stop))
    assert not out.exists()
    with refused("episodes must be at least 0, not -3"):
        pretrain("mine", data, out, episodes=-3, changes=SMALL)
    with refused("steps must be of type int", "'9'"):
        pretrain("mine", data, out, episodes=0, changes=SMALL | {"steps": "9"})
    with refused("unknown setting 'widht'", "width"):
        pretrain("mine", data, out, episodes=0, changes={"widht": 8})
    assert not out.exists()


@pytest.mark.parametrize(("pad_end", "unlearned"), [(True, None), (False, 3 + 3 + 3)])
def test_a_card_counts_the_states_that_no_chunk_begins_in(tmp_path, pad_end, unlearned, capsys):
    plain_data().save(tmp_path / "d.npz")
    words = ["pretrain", "mine", "--data", str(tmp_path / "d.npz"), "--out", str(tmp_path / "out"), "--episodes", "0"]
    assert main([*words, "--steps", "5", "--width", "16", "--pad-end", str(pad_end).lower()]) == 0
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["data"].get("states_that_begin_no_chunk") == unlearned
    said = capsys.readouterr().out
    assert ("60.0% of the states are an episode's last, and begin no chunk" in said) == (not pad_end)
    assert ("1 of 3 episodes are shorter than a chunk" in said) == (not pad_end)


def test_data_of_vectors_are_no_data_of_an_environment_that_observes_a_dict(refused):
    env = lpds.make_env(Spot, 1, 1, keep_dict=True)
    with refused("3 actions", "a dict", "[2]", "name another"):
        check_fits(plain_data(actions=3), env, "name another")
    with refused("the data are vectors", "picture, speed, unused", "flatten it"):
        check_fits(plain_data(), env, "name another")
    env.close()


def test_an_expert_that_fails_too_often_gives_what_it_has(monkeypatch, refused):
    """Six wanted, a success in ten attempts: the successes are kept, and the data are not the recipe's."""
    from lpds.pretrain.recipes import SCRIPTED, make_data
    from lpds.pretrain.scripted import collect

    closed, tried, every = [], [], [10]
    monkeypatch.setattr(collect, "resolve", lambda *given: lambda **options: SimpleNamespace(close=lambda: closed.append(1)))

    def attempt(env, script, rng, tremor, policy, led):
        tried.append(1)
        episode = collect._Episode(0)
        episode.obs, episode.pictures = [np.zeros(2, np.float32)] * 2, [{}]
        episode.actions, episode.rewards = [np.zeros(1, np.float32)], [1.0]
        episode.succeeded = len(tried) % every[0] == 0
        return episode

    monkeypatch.setattr(collect, "_attempt", attempt)
    name = next(iter(SCRIPTED))
    data = make_data(name, None, episodes=6)
    assert len(tried) == collect.ATTEMPTS * 6
    assert len(data.episode_lengths) == len(tried) // 10 < 6
    assert data.recipe == ""
    assert closed == [1]
    every[0] = 10**6
    with refused("succeeded in none of 30 attempts", "--seed"):
        make_data(name, None, episodes=6)
    assert closed == [1, 1]
    with refused("stopped after 1 attempts, none of which had succeeded"):  # not after all thirty
        make_data(name, None, episodes=6, stop=lambda: True)
    every[0] = 1
    assert make_data(name, None, episodes=6).recipe == name
    fault = DecoderFault("the server is gone")  # of a policy that is taken over from
    outcomes = [None, None, fault]

    def failing(*given):
        if outcomes and (found := outcomes.pop(0)) is not None:
            raise found
        return attempt(*given)

    monkeypatch.setattr(collect, "_attempt", failing)
    said = []
    data = make_data(name, None, episodes=6, say=said.append)
    assert (len(data.episode_lengths), data.recipe) == (2, "")
    assert said[-1] == "the server is gone; what was there by then is kept"
    outcomes.append(fault)
    with pytest.raises(DecoderFault):
        make_data(name, None, episodes=6)
