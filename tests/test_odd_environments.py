"""Environments that are not quite what Gymnasium defines: one clear line, or the right figure all the same."""

from __future__ import annotations

import json
import re
import sys

import gymnasium
import numpy as np
import pytest
import torch
from scripted import TINY, toy_decoder

import lpds
from lpds import cli, evaluation
from lpds.checkpoint import CheckpointStore
from lpds.errors import EnvironmentFault, LpdsError
from lpds.evaluation import silence_is_failure
from lpds.findings import PATIENCE
from lpds.replay import Replay
from lpds.report import write_report
from lpds.report.read import read_runs
from lpds.runner import Runner


class Odd(gymnasium.Env):
    """Reaches 1 in steps of its action; five steps an episode."""

    metadata = {"render_modes": []}

    def __init__(self, **odd):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.odd = odd

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        where = np.random.default_rng() if self.odd.get("ignores_seed") else self.np_random
        self.place = where.normal(size=2).astype(np.float32) + np.float32(self.odd.get("moved", 0.0))
        return self.place if self.odd.get("no_info") else (self.place, {})

    def step(self, action):
        self.at += 1
        self.place = self.place + 0.1 * action.astype(np.float32)
        reached = bool(self.place[0] > self.odd.get("goal", 0.0))
        info = {"success": True} if reached and self.odd.get("names_success_only") else {}
        over = not self.odd.get("endless") and self.at == 5
        return self.odd.get("step", lambda *given: given)(self.place, float(self.place[0]), False, over, info)


MALFORMED = {
    "four values": (
        {"step": lambda o, r, e, c, i: (o, r, e, i)},
        "gives (ndarray, float, bool, dict) at a step, not",
    ),
    "no info": ({"step": lambda o, r, e, c, i: (o, r, e, c, None)}, "bool, NoneType) at a step"),
    "reward as an array": (
        {"step": lambda o, r, e, c, i: (o, np.ones(1), e, c, i)},
        "a reward of shape [1], not one",
    ),
    "no reward": ({"step": lambda o, r, e, c, i: (o, None, e, c, i)}, "gives a NoneType as reward, not a real number"),
    "complex reward": ({"step": lambda o, r, e, c, i: (o, 1j, e, c, i)}, "gives a complex as reward, not a real number"),
    "a word for an end": ({"step": lambda o, r, e, c, i: (o, r, "False", c, i)}, "gives a str as terminated, not True or"),
    "two ends": ({"step": lambda o, r, e, c, i: (o, r, e, np.zeros(2, bool), i)}, "gives a ndarray as truncated, not True"),
    "observation of words": (
        {"step": lambda o, r, e, c, i: (np.array(["a", "b"]), r, e, c, i)},
        "gives no real numbers in the observation",
    ),
    "ragged observation": ({"step": lambda o, r, e, c, i: ([[1.0], [1.0, 2.0]], r, e, c, i)}, "gives no real numbers in the"),
    "ragged reward": ({"step": lambda o, r, e, c, i: (o, [[1.0], [1.0, 2.0]], e, c, i)}, "gives a list as reward, not a real"),
    "observation with a gradient": (
        {"step": lambda o, r, e, c, i: (torch.ones(2, requires_grad=True), r, e, c, i)},
        "gives no real numbers in the observation",
    ),
    "the program's end": ({"step": lambda *given: sys.exit("no licence")}, "raised SystemExit: no licence"),
    "longer observation": (
        {"step": lambda o, r, e, c, i: (np.ones(3, np.float32), r, e, c, i)},
        "an observation of shape [3], not [2] as its space declares",
    ),
    "dict observation": ({"step": lambda o, r, e, c, i: ({"x": o}, r, e, c, i)}, "gives a dict of x as observation"),
    "reset without info": ({"no_info": True}, "gives a ndarray at reset, not (observation, info)"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_gymnasium_does_not_define_is_one_line_with_its_place(case):
    odd, words = MALFORMED[case]
    env = lpds.make_env(lambda: Odd(**odd), 2, 2)

    def play():
        env.reset(seed=1)
        env.step(np.zeros((2, 2, 1), np.float32))

    with pytest.raises(EnvironmentFault, match=r"\(sub-environment 0, episode seed \d+, step \d\)$") as caught:
        play()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def decoder():
    """Pushes by its noise."""
    return lpds.wrap_decoder(
        lambda obs, w: w[:, :2, :1].clamp(-1.0, 1.0), obs_shape=(2,), latent_shape=(2, 1), action_shape=(2, 1), name="push"
    )


def test_an_info_that_names_success_only_where_there_is_one_makes_silence_a_failure():
    report = lpds.evaluate(decoder(), env=lambda: Odd(names_success_only=True), episodes=40)
    silent = lpds.evaluate(decoder(), env=Odd, episodes=40)
    assert np.isnan(silent.successes).all()
    places = report.final_obs[:, 0]
    assert np.array_equal(report.successes_at_end, (places > 0.0).astype(float))
    assert 0.0 < report.successes.mean() < 1.0
    assert report.interval("success")[0] == report.successes.mean()
    # one that never names it beside one that does: the environment has successes, this policy none
    never = lpds.evaluate(decoder(), env=lambda: Odd(names_success_only=True, goal=99.0), episodes=40)
    filled, same = silence_is_failure([never, report])
    assert np.array_equal(filled.successes, np.zeros(40))
    assert np.array_equal(same.successes, report.successes)
    assert np.isnan(silence_is_failure([silent, never])[0].successes).all()


def test_a_run_counts_silent_episodes_in_its_records_its_comparison_and_its_curve(tmp_path):
    def env():
        return Odd(names_success_only=True)

    run = lpds.steer(decoder=decoder(), env=env, out=tmp_path / "run", end_at_success=True, **{**TINY, "steps": 600})
    rows = [json.loads(line) for line in (run.folder / "episodes.jsonl").read_text().splitlines()]
    first = next(index for index, row in enumerate(rows) if row["success"])
    said = [0.0 if row["success"] is None else row["success"] for row in rows]
    assert all(row["success"] is None for row in rows[:first])
    assert None not in [row["success"] for row in rows[first:]]
    ema = said[0]
    for value in said[1:]:
        ema += (value - ema) / 20
    last = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["success_ema"] == pytest.approx(ema, rel=1e-9)
    assert last["success"] == pytest.approx(np.mean(said[-20:]))
    row = next(row for row in lpds.compare(run.folder).rows if row.label == "lpds")
    assert row.success[0] == run.steered.successes.mean()
    assert not np.isnan(run.frozen.successes).any()


def test_an_episode_without_an_end_is_told_and_its_remedy(monkeypatch):
    monkeypatch.setattr(evaluation, "LONGEST_EPISODE", 50)
    with pytest.raises(EnvironmentFault, match=r"episode of 50 steps without an end.*gymnasium.wrappers.TimeLimit"):
        lpds.evaluate(decoder(), env=lambda: Odd(endless=True), episodes=3)
    limited = lpds.evaluate(decoder(), env=lambda: gymnasium.wrappers.TimeLimit(Odd(endless=True), 20), episodes=3)
    assert list(limited.lengths) == [20, 20, 20]


def test_the_doctor_sees_an_episode_without_an_end_and_a_seed_that_is_ignored():
    def found(**odd):
        return {f.name: (f.verdict, f.figure) for f in lpds.check(decoder(), lambda: Odd(**odd)).findings}

    fine = found()
    assert fine["episodes end"] == ("ok", "one did after 5 steps")
    assert fine["seeds"] == ("ok", "two resets from one seed give one observation, and the same actions lead to one")
    endless = found(endless=True)
    assert endless["episodes end"] == ("warning", f"none did within {PATIENCE:,} steps, and no time limit is known")
    assert found(ignores_seed=True)["seeds"] == ("warning", "two resets from one seed give two observations")
    limited = lpds.check("hopper", "Hopper-v5", samples=16)
    assert next(f.figure for f in limited.findings if f.name == "episodes end") == "after 1,000 steps at the latest"


def test_a_run_tells_once_that_its_environment_ignores_seeds(tmp_path, capsys):
    tiny = {**TINY, "quiet": False, "steps": 300}
    odd = lpds.steer(decoder=decoder(), env=lambda: Odd(ignores_seed=True), out=tmp_path / "odd", **tiny)
    assert len(re.findall("ignores the seed of a reset", "".join(capsys.readouterr()))) == 1
    assert json.loads((odd.folder / "summary.json").read_text())["ignores_seed"] is True
    assert odd.verdict().endswith("; NOT THE SAME EPISODES: the environment ignores the seed of a reset")
    assert read_runs([odd.folder])[0].verdict() == odd.verdict()
    fine = lpds.steer(decoder=decoder(), env=Odd, out=tmp_path / "fine", **tiny)
    assert "ignores the seed" not in "".join(capsys.readouterr())
    assert "ignores_seed" not in json.loads((fine.folder / "summary.json").read_text())


def test_an_ignored_seed_is_told_without_a_curve_by_eval_and_after_a_resume(tmp_path, capsys):
    tiny = {**TINY, "steps": 300, "quiet": False, "eval_every": 0}
    run = lpds.steer(decoder=decoder(), env=lambda: Odd(ignores_seed=True), out=tmp_path / "run", **tiny)
    assert "ignores the seed of a reset" in "".join(capsys.readouterr())
    assert json.loads((run.folder / "summary.json").read_text())["ignores_seed"] is True

    (tmp_path / "push.py").write_text(
        "import lpds\nshapes = dict(obs_shape=(2,), latent_shape=(2, 1), action_shape=(2, 1))\n"
        "decoder = lpds.wrap_decoder(lambda obs, w: w, name='push', **shapes)\n"
    )
    found = []
    for kind in ({"ignores_seed": True}, {}):
        gymnasium.register("Seedless-v0", entry_point=lambda kind=kind: Odd(**kind))
        cli.main(
            [
                "eval",
                f"python:{tmp_path / 'push.py'}:decoder",
                "--noise-scale",
                "0.5",
                "--env",
                "Seedless-v0",
                "--episodes",
                "6",
            ]
        )
        found.append("Seedless-v0 ignores the seed of a reset" in "".join(capsys.readouterr()))
        del gymnasium.registry["Seedless-v0"]
    assert found == [True, False]

    curve = lpds.steer(
        decoder=decoder(), env=lambda: Odd(ignores_seed=True), out=tmp_path / "curve", **tiny | {"eval_every": 90}
    )
    facts = json.loads((curve.folder / "checkpoint" / "checkpoint.json").read_text())
    assert facts["ignores_seed"] is True


class Talking(Odd):
    """Says more in its observation than its space declares."""

    def __init__(self):
        super().__init__()
        self.observation_space = gymnasium.spaces.Dict({"x": self.observation_space})

    def reset(self, **given):
        obs, info = super().reset(**given)
        return {"x": obs, "prompt": "pick it up"}, info

    def step(self, action):
        obs, *others = super().step(action)
        return {"x": obs, "prompt": "pick it up"}, *others


def test_what_an_observation_says_beyond_its_space_is_left_alone():
    env, plain = lpds.make_env(Talking, 2, 2, 0, keep_dict=True), lpds.make_env(Odd, 2, 2, 0)
    (said, _), (known, _) = env.reset(seed=3), plain.reset(seed=3)
    assert set(said) == {"x"}
    assert np.array_equal(said["x"], known)
    action = np.zeros((2, 2, 1), np.float32)
    assert np.array_equal(env.step(action)[0]["x"], plain.step(action)[0])


class Drifting(Odd):
    """Begins where its seed says and goes on by chance, so that no episode can be repeated; every step is worth 1."""

    def step(self, action):
        obs, _, *others = super().step(action + np.random.default_rng().normal(size=1))
        return obs, 1.0, *others


def test_an_episode_that_cannot_be_repeated_ends_where_the_run_was_stopped(tmp_path, monkeypatch):
    """Rows from before and after a resume are of two episodes; a second resume knows it as well."""
    save, count = Runner.save, []

    def stopping(runner):
        save(runner)
        count.append(runner.step)
        if len(count) in (1, 3):
            raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "save", stopping)
    own = {"decoder": decoder(), "env": Drifting}
    tiny = {**TINY, "num_envs": 2, "warmup_fits": 0, "eval_every": 0, "checkpoint_every": 28}
    with pytest.raises(KeyboardInterrupt):
        lpds.steer(**own, out=tmp_path / "run", **tiny | {"steps": 200})
    with pytest.raises(KeyboardInterrupt):
        lpds.resume(tmp_path / "run", **own, quiet=True)
    lpds.resume(tmp_path / "run", **own, quiet=True)

    store, replay = CheckpointStore(tmp_path / "run" / "checkpoint"), Replay(decoder().spec, 300, 4, 2, torch.device("cpu"))
    _, facts = store.load()
    store.load_replay(facts, replay)
    assert len(facts["cuts"]) == 4  # both of them, twice
    returns, _, _ = replay.returns_to_go()
    assert 3.0 < float(returns.max()) <= 5.0  # an episode has five steps; joined ones would have more


def test_factories_of_one_name_are_compared_only_where_the_frozen_policy_played_the_same(tmp_path):
    tiny = {**TINY, "steps": 200, "warmup_fits": 2}
    one, two, other = (
        lpds.steer(decoder=decoder(), env=lambda moved=moved: Odd(moved=moved), out=tmp_path / name, **tiny, seed=seed)
        for name, seed, moved in (("one", 0, 0.0), ("two", 1, 0.0), ("other", 0, 5.0))
    )
    together = lpds.compare([one.folder, two.folder])
    assert together.references == {"own": "frozen"}
    assert next(row for row in together.rows if row.label == "lpds").seeds == 2
    apart = lpds.compare([one.folder, two.folder, other.folder])
    assert apart.references == {"own": "frozen", "own, environment 2": "frozen"}
    assert [(row.task, row.seeds) for row in apart.rows if row.label == "lpds"] == [("own", 2), ("own, environment 2", 1)]
    assert any("a factory's name says nothing of its environment" in note for note in apart.notes)
    write_report([one.folder, two.folder, other.folder], tmp_path / "page.html")
    assert "own, environment 2: what happened while learning" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("own", [True, False])
def test_a_learner_that_diverges_is_told_as_that_and_keeps_what_was_saved_before(own, tmp_path):
    tiny = {**TINY, "warmup_fits": 0, "checkpoint_every": 40, "log_every": 10_000, "eval_every": 0, "steps": 2_000}
    given = {"decoder": toy_decoder()} if own else {}
    with pytest.raises(LpdsError, match=r"^learning diverged: .*from before"):
        lpds.steer("toy", out=tmp_path / "run", lr=1e30, actor_lr=1e30, **tiny, **given)
    policy = lpds.load_policy(tmp_path / "run", **given)
    assert np.isfinite(policy.act(np.zeros((1, 2), np.float32))).all()


def test_environments_that_fail_at_the_first_reset_are_closed(tmp_path):
    """The refusal came before anything was there that would have closed them."""
    made = []

    class Unready(Odd):
        closed = 0

        def reset(self, *, seed=None, options=None):
            if len(made) > 1:  # the first was only asked whether it fits
                raise RuntimeError("no licence")
            return super().reset(seed=seed)

        def close(self):
            self.closed += 1

    def factory():
        made.append(Unready())
        return made[-1]

    with pytest.raises(EnvironmentFault, match="no licence"):
        lpds.steer(decoder=decoder(), env=factory, out=tmp_path / "run", **TINY)
    assert len(made) > 1
    assert [env.closed for env in made] == [1] * len(made)
    assert not (tmp_path / "run").exists()


def test_an_environment_without_metadata_is_one():
    class Bare(Odd):
        metadata = None

    env = lpds.make_env(Bare, num_envs=2, chunk=1, seed=0)
    assert set(env.metadata) == {"autoreset_mode"}
    env.close()
