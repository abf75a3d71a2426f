"""Demonstrations in the replay: the rows a collector would have made, and a run that learns from them and resumes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from scripted import SPEC, TINY, assert_same_run, toy_decoder

import lpds
from lpds.errors import LpdsError
from lpds.pretrain.datasets import open_data
from lpds.pretrain.experts import Demonstrations, joined, of_sources
from lpds.pretrain.recipes import SCRIPTED, make_data
from lpds.pretrain.rows import demonstration_rows, left_out
from lpds.pretrain.scripted import collect
from lpds.types import LatentSpec


def made_up(lengths=(5, 4, 2), terminated=(True, False, False), size=2, actions=2):
    rng, count = np.random.default_rng(0), sum(lengths)
    return Demonstrations(
        obs=rng.normal(size=(count, size)).astype(np.float32),
        actions=rng.uniform(-1.0, 1.0, (count, actions)).astype(np.float32),
        episode_lengths=np.asarray(lengths, np.int64),
        episode_returns=np.full(len(lengths), np.nan),
        episode_source=np.zeros(len(lengths), np.int64),
        rewards=np.arange(1, count + 1, dtype=np.float32),
        final_obs=rng.normal(size=(len(lengths), size)).astype(np.float32),
        terminated=np.asarray(terminated),
    )


def test_rows_are_the_semi_markov_transitions_of_every_episode():
    data, gamma = made_up(), 0.5
    rows = demonstration_rows(data, LatentSpec((2,), (2, 2), (2, 2)), gamma=gamma, discount="exact")
    # episodes of 5, 4 and 2 steps in chunks of 2: 2 2 1 | 2 2 | 2
    assert torch.equal(rows["obs"], torch.from_numpy(data.obs[[0, 2, 4, 5, 7, 9]]))
    assert rows["reward"].tolist() == [1 + 1.0, 3 + 2.0, 5.0, 6 + 3.5, 8 + 4.5, 10 + 5.5]
    assert rows["discount"].tolist() == [0.25, 0.25, 0.0, 0.25, 0.25, 0.25]  # ended for good only once, after one step
    assert torch.equal(rows["next_obs"][[0, 1, 3]], torch.from_numpy(data.obs[[2, 4, 7]]))
    assert torch.equal(rows["next_obs"][[2, 4, 5]], torch.from_numpy(data.final_obs))
    assert torch.equal(rows["action"][0], torch.from_numpy(data.actions[:2]).flatten())
    assert torch.equal(rows["action"][2], torch.from_numpy(data.actions[[4, 4]]).flatten())
    assert bool(rows["over"].all())
    offset = demonstration_rows(data, LatentSpec((2,), (2, 2), (2, 2)), gamma=gamma, discount="exact", reward_offset=-1.0)
    assert offset["reward"].tolist() == [0 + 0.5, 2 + 1.5, 4.0, 5 + 3.0, 7 + 4.0, 9 + 5.0]


@pytest.mark.parametrize(("chunk", "n_step"), [(1, 1), (2, 1), (3, 1), (2, 3)])
def test_no_row_bootstraps_from_itself_where_the_end_was_not_recorded(chunk, n_step):
    """An episode that went on, unseen, is one step shorter: its last observation is where the row before it led."""
    data = made_up(lengths=(5, 4, 2, 1), terminated=(True, False, False, False))
    unseen = replace(data, final_obs=np.full_like(data.final_obs, np.nan))
    spec, asked = LatentSpec((2,), (chunk, 2), (chunk, 2)), {"gamma": 0.5, "discount": "exact", "n_step": n_step}
    rows = demonstration_rows(unseen, spec, **asked)
    kept = [0, 1, 2, 3, 4, 5, 6, 7, 9]  # without the last steps of all but the first, which is all of the fourth
    shorter = replace(
        made_up(lengths=(5, 3, 1), terminated=(True, False, False)),
        obs=data.obs[kept],
        actions=data.actions[kept],
        rewards=data.rewards[kept],
        final_obs=np.stack([np.zeros(2, np.float32), data.obs[8], data.obs[10]]),
    )
    wanted = demonstration_rows(shorter, spec, **asked)
    for name in ("obs", "action", "reward", "discount"):
        assert torch.equal(rows[name], wanted[name])
    goes_on = rows["discount"] > 0
    assert torch.equal(rows["next_obs"][goes_on], wanted["next_obs"][goes_on])
    assert bool(torch.isfinite(rows["next_obs"]).all())
    assert not bool((rows["next_obs"] == rows["obs"]).all(1)[goes_on].any())
    lost, whole = 9.0 + 11.0 + 12.0, float(data.rewards.sum())
    assert left_out(unseen).startswith(f"{lost / whole:.0%} of the demonstrations' rewards are not learned from")
    assert "of 3 episodes" in left_out(unseen)
    assert left_out(data) == left_out(replace(unseen, terminated=np.ones(4, bool))) == ""


def test_what_cannot_be_rows(refused):
    with refused("have no rewards"):
        demonstration_rows(replace(made_up(), rewards=np.empty(0, np.float32)), SPEC, gamma=0.9, discount="exact")
    with refused("have no terminated"):
        demonstration_rows(replace(made_up(), terminated=np.empty(0, bool)), SPEC, gamma=0.9, discount="exact")
    with refused("3 observations and 2 actions", "2 and 2"):
        demonstration_rows(made_up(size=3), SPEC, gamma=0.9, discount="exact")


def test_every_field_survives_the_file(tmp_path):
    data = made_up()
    data.save(tmp_path / "d.npz")
    again = open_data(str(tmp_path / "d.npz"))
    for name in data.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(data, name))


@pytest.mark.parametrize("kept", [0, 2])
def test_a_run_with_demonstrations_holds_them_and_resumes_to_the_bit(tmp_path, kept):
    made_up((40,) * 10, (True,) * 10).save(tmp_path / "d.npz")
    options = TINY | {"demos": str(tmp_path / "d.npz"), "kept_noises": kept, "distill_noises": 1}
    for name, steps in (("whole", 500), ("short", 300)):
        lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / name, **(options | {"steps": steps}))
    lpds.resume(tmp_path / "short", steps=500, decoder=toy_decoder(), quiet=True)
    whole, short = (lpds.load_policy(tmp_path / name, toy_decoder()) for name in ("whole", "short"))
    obs = np.ones((3, 2), np.float32)
    assert np.array_equal(whole.shift(obs), short.shift(obs))
    lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "again", **(options | {"steps": 500}))
    assert_same_run(tmp_path / "whole", tmp_path / "again")
    lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "without", **(options | {"steps": 500, "demos": ""}))
    without = lpds.load_policy(tmp_path / "without", toy_decoder())
    assert not np.array_equal(whole.shift(obs), without.shift(obs))


def test_a_resumed_run_has_its_demonstrations_whatever_became_of_the_file(tmp_path):
    """They are in its checkpoint; a file that was replaced would have been learned from in their place."""
    options = TINY | {"demos": str(tmp_path / "d.npz"), "steps": 300, "warmup_steps": 200}
    for name in ("kept", "gone"):
        made_up((40,) * 10, (True,) * 10).save(tmp_path / "d.npz")
        lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / name, **options)
        if name == "gone":
            (tmp_path / "d.npz").unlink()
        lpds.resume(tmp_path / name, steps=500, decoder=toy_decoder(), quiet=True)
    assert_same_run(tmp_path / "kept", tmp_path / "gone")


def test_a_method_that_needs_more_than_chunks_and_a_missing_file_leave_no_folder(tmp_path):
    made_up().save(tmp_path / "d.npz")
    for method, demos, words in (
        ("dsrl-sac", "d.npz", "demos cannot serve dsrl-sac"),
        ("lpds", "none.npz", "does not exist"),
    ):
        with pytest.raises(LpdsError, match=words):
            lpds.steer("toy", method, decoder=toy_decoder(), out=tmp_path / "run", demos=str(tmp_path / demos), quiet=True)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["obs", "actions", "rewards", "final_obs"])
def test_a_number_that_is_none_is_refused_wherever_it_stands(tmp_path, field, refused):
    data = made_up()
    getattr(data, field).flat[3] = np.nan  # a whole row of final_obs says that it was not recorded
    data.save(tmp_path / "d.npz")
    with refused("holds NaN or infinity"):
        open_data(str(tmp_path / "d.npz"))


class Killed(Exception):
    """What ends the making of demonstrations at once."""


def shown(tmp_path, monkeypatch, meant):
    """``make_data`` of a scripted expert whose attempts are numbers drawn, of which half fail; each asks for what it drew."""
    drawn = []

    def attempt(env, script, rng, *_):
        drawn.append(first := rng.integers(2**31))
        if first % 5 == 0:
            return collect._Episode(collect.NOWHERE)
        steps = int(rng.integers(10, 20))
        episode = collect._Episode(mode=int(rng.integers(len(script.MODES))), succeeded=bool(first % 2))
        episode.obs = list(rng.normal(size=(steps + 1, 3)).astype(np.float32))
        episode.actions = list(rng.normal(size=(steps, 2)).astype(np.float32))
        episode.meant = list(rng.normal(size=(steps, 2)).astype(np.float32))
        episode.rewards = rng.integers(0, 2, steps).astype(float).tolist()
        episode.pictures = [{} for _ in range(steps)]
        return episode

    monkeypatch.setattr(collect, "_attempt", attempt)
    monkeypatch.setattr(collect, "KEPT_EVERY", 0.0)
    monkeypatch.setattr(collect, "KEPT_LESS", 0.0)
    monkeypatch.setattr(collect, "resolve", lambda *_: nullcontext)
    monkeypatch.setattr(nullcontext, "close", lambda self: None, raising=False)
    monkeypatch.setitem(SCRIPTED, "robomimic-lift", replace(SCRIPTED["robomimic-lift"], meant=meant))
    return drawn


@pytest.mark.parametrize("meant", [False, True])
def test_demonstrations_that_were_killed_go_on_to_what_one_call_would_have_made(tmp_path, monkeypatch, meant):
    drawn = shown(tmp_path, monkeypatch, meant)
    whole = make_data("robomimic-lift", episodes=9, seed=3)
    wanted = list(drawn)
    assert len(whole.attempts) == len(wanted) > len(whole.episode_lengths) == 9
    assert (whole.attempts == collect.NOWHERE).sum() == sum(first % 5 == 0 for first in wanted) > 0
    assert whole.meant.size == meant * whole.actions.size
    drawn.clear()

    def keep(data):
        data.save(tmp_path / "d.npz")
        if len(data.episode_lengths) == 4:
            raise Killed

    with pytest.raises(Killed):
        make_data("robomimic-lift", episodes=9, seed=3, keep=keep)
    begun = open_data(str(tmp_path / "d.npz"))
    assert not begun.recipe
    assert begun.remark.startswith("cut short at 4 of 9 episodes")  # which whoever trains on them is told
    assert not whole.remark
    assert len(begun.attempts) == len(drawn) < len(wanted)
    again = make_data("robomimic-lift", episodes=9, seed=3, begun=begun)
    assert drawn == wanted  # no attempt was made twice, none left out
    for name in whole.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert again.recipe == "robomimic-lift"


def test_demonstrations_made_otherwise_are_not_gone_on_with(tmp_path, monkeypatch, refused):
    shown(tmp_path, monkeypatch, False)
    begun = make_data("robomimic-lift", episodes=2, seed=3)
    with refused("cannot be gone on with", "seed 3", "seed 4"):
        make_data("robomimic-lift", episodes=3, seed=4, begun=begun)
    with refused("do not say how they were made"):
        make_data("robomimic-lift", episodes=3, seed=3, begun=made_up())
    with refused("--resume", "scripted experts"):
        make_data("toy", begun=begun)
    for part in (*of_sources([begun], begun.episode_source.tolist()), joined(begun, begun)):
        with refused("do not say how they were made"):  # a part of them, or two, are no work that could go on
            make_data("robomimic-lift", episodes=3, seed=3, begun=part)
