"""The chunk arithmetic against the unchunked process."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Scripted

import lpds
from lpds.envs.chunk import ChunkedVectorEnv, chunk_return
from lpds.errors import EnvironmentFault, LpdsError
from lpds.random import episode_seed, normal

MODES = (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED)
GAMMA = 0.9

episode = st.tuples(
    st.lists(st.floats(-5, 5, allow_nan=False, width=16), min_size=1, max_size=11),
    st.sampled_from(["terminated", "truncated", "both"]),
)
scripts = st.lists(st.lists(episode, min_size=1, max_size=4), min_size=1, max_size=3)


def unchunked(script, chunk):
    """The semi-Markov transitions of one scripted lane, written down from the definition."""
    out = []
    for rewards, end in script:
        for start in range(0, len(rewards), chunk):
            part = rewards[start : start + chunk]
            over = start + chunk >= len(rewards)
            terminated = over and end != "truncated"
            out.append(
                {
                    "rewards": [*part, *[0.0] * (chunk - len(part))],
                    "k": len(part),
                    "step": start + len(part),
                    "terminated": terminated,
                    "truncated": over and not terminated,
                    "R": sum(GAMMA**i * r for i, r in enumerate(part)),
                    "discount": 0.0 if terminated else GAMMA ** len(part),
                }
            )
    return out


def collect(script, chunk, mode, rounds=60):
    """Transitions of every lane in the wrapped process, until each has gone through its script once."""
    made = iter(script)
    env = ChunkedVectorEnv(lambda: Scripted(next(made)), len(script), chunk, seed=3, autoreset=mode)
    obs, _ = env.reset()
    lanes = [[] for _ in script]
    for number in range(rounds):
        actions = np.full(env.action_space.shape, number / 100.0, np.float32)
        after, total, terminated, truncated, info = env.step(actions)
        reward, discount = chunk_return(info["rewards"], info["k"], terminated, GAMMA)
        assert np.array_equal(total, info["rewards"].sum(1))
        for i, lane in enumerate(lanes):
            if info["k"][i] == 0:  # a reset of next-step autoreset, or a lane that waits
                assert total[i] == 0.0
                assert not terminated[i]
                assert not truncated[i]
                continue
            done = bool(terminated[i] or truncated[i])
            assert info["_final_obs"][i] == done
            lane.append(
                {
                    "rewards": info["rewards"][i].tolist(),
                    "k": int(info["k"][i]),
                    "step": int(info["final_obs"][i, 1]),
                    "terminated": bool(terminated[i]),
                    "truncated": bool(truncated[i]),
                    "R": float(reward[i]),
                    "discount": float(discount[i]),
                    "seed": int(info["seed"][i]),
                    "obs": obs[i].tolist(),
                    "final": info["final_obs"][i].tolist(),
                }
            )
            if not done:
                assert np.array_equal(after[i], info["final_obs"][i])
            elif mode is AutoresetMode.SAME_STEP:
                assert after[i, 1] == 0.0
        obs = after
        over = terminated | truncated
        if mode is AutoresetMode.DISABLED and over.any():
            obs, _ = env.reset(options={"reset_mask": over})
    env.close()
    return lanes


@settings(max_examples=60, deadline=None, derandomize=True)
@given(script=scripts, chunk=st.integers(1, 5))
def test_transitions_are_those_of_the_unchunked_process(script, chunk):
    lanes = collect(script, chunk, AutoresetMode.SAME_STEP)
    for lane, episodes in zip(lanes, script, strict=True):
        for got, wanted in zip(lane, unchunked(episodes, chunk), strict=False):
            for key in ("rewards", "k", "step", "terminated", "truncated"):
                assert got[key] == wanted[key], key
            assert got["R"] == pytest.approx(wanted["R"], abs=1e-5)
            assert got["discount"] == pytest.approx(wanted["discount"], abs=1e-6)
        assert len(lane) >= len(unchunked(episodes, chunk))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(script=scripts, chunk=st.integers(1, 4))
def test_the_three_autoreset_modes_give_the_same_transitions(script, chunk):
    runs = [collect(script, chunk, mode) for mode in MODES]
    for same, following, disabled in zip(*runs, strict=True):
        length = min(len(same), len(following), len(disabled))
        assert length >= sum(-(-len(rewards) // chunk) for rewards, _ in script[0][:1])
        assert same[:length] == following[:length] == disabled[:length]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rewards=st.lists(st.floats(-5, 5, allow_nan=False, width=16), min_size=1, max_size=17),
    chunk=st.integers(1, 6),
    gamma=st.floats(0.5, 1.0),
)
def test_chunk_returns_compose_to_the_discounted_return(rewards, chunk, gamma):
    """sum over chunks of (product of the discounts so far) * R is sum_t gamma^t r_t."""
    total, factor = 0.0, 1.0
    for start in range(0, len(rewards), chunk):
        part = rewards[start : start + chunk]
        row = np.zeros((1, chunk))
        row[0, : len(part)] = part
        reward, discount = chunk_return(row, np.asarray([len(part)]), np.asarray([False]), gamma)
        total, factor = total + factor * float(reward[0]), factor * float(discount[0])
    assert total == pytest.approx(sum(gamma**t * r for t, r in enumerate(rewards)), abs=1e-3)
    assert factor == pytest.approx(gamma ** len(rewards), rel=1e-5)


class KnowsNoRenderMode(gymnasium.Env):
    """Its constructor takes nothing at all."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}


def test_an_environment_that_knows_no_render_mode_is_made():
    gymnasium.register("KnowsNoRenderMode-v0", entry_point=KnowsNoRenderMode, max_episode_steps=20)
    try:
        env = lpds.make_env("KnowsNoRenderMode-v0", num_envs=2, chunk=4, seed=0)
        assert env.reset()[0].shape == (2, 2)
        env.close()
    finally:
        del gymnasium.registry["KnowsNoRenderMode-v0"]


def test_discount_conventions():
    rewards, k = np.asarray([[1.0, 2.0, 4.0], [1.0, 2.0, 0.0], [1.0, 0.0, 0.0]]), np.asarray([3, 2, 1])
    ended = np.asarray([False, False, True])
    reward, discount = chunk_return(rewards, k, ended, 0.5, "exact")
    np.testing.assert_allclose(reward, [3.0, 2.0, 1.0])
    np.testing.assert_allclose(discount, [0.125, 0.25, 0.0])
    reward, discount = chunk_return(rewards, k, ended, 0.5, "dsrl")  # undiscounted sum, gamma per decision
    np.testing.assert_allclose(reward, [7.0, 3.0, 1.0])
    np.testing.assert_allclose(discount, [0.125, 0.125, 0.0])
    assert reward.dtype == discount.dtype == np.float32
    with pytest.raises(LpdsError, match="unknown discount convention 'exac'; did you mean 'exact'"):
        chunk_return(rewards, k, ended, 0.5, "exac")


def test_a_time_limit_inside_a_chunk_keeps_its_discount():
    env = lpds.make_env(lambda: gymnasium.wrappers.TimeLimit(Scripted([([1.0] * 50, "terminated")]), 6), 1, 4, seed=0)
    env.reset()
    action = np.zeros((1, 4, 1), np.float32)
    env.step(action)
    _, reward, terminated, truncated, info = env.step(action)
    assert (reward[0], terminated[0], truncated[0], info["k"][0]) == (2.0, False, True, 2)
    assert info["final_obs"][0, 1] == 6.0
    assert chunk_return(info["rewards"], info["k"], terminated, 0.9)[1][0] == pytest.approx(0.81)


def test_actions_are_executed_in_order_and_clipped_to_the_box():
    env = lpds.make_env(lambda: Scripted([([0.0] * 9, "terminated")]), 1, 3)
    env.reset()
    env.step(np.asarray([[[0.5], [7.0], [-7.0]]]))
    executed = env._lanes[0].env.actions
    np.testing.assert_array_equal(np.concatenate(executed), np.asarray([0.5, 1.0, -1.0], np.float32))
    assert all(a.dtype == np.float32 for a in executed)


def test_success_at_any_step_and_at_the_last():
    env = lpds.make_env(lambda: Scripted([([0.0, 1.0, 0.0], "terminated"), ([0.0, 1.0], "truncated")]), 1, 4)
    env.reset()
    action = np.zeros((1, 4, 1), np.float32)
    info = env.step(action)[4]
    assert (info["success"][0], info["success_last"][0]) == (1.0, 0.0)
    info = env.step(action)[4]
    assert (info["success"][0], info["success_last"][0]) == (1.0, 1.0)
    silent = lpds.make_env("Pendulum-v1", 1, 2)
    silent.reset()
    assert np.isnan(silent.step(np.zeros((1, 2, 1)))[4]["success"]).all()
    silent.close()


@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        ({"success": float("nan")}, None),
        ({"success": None, "is_success": True}, 1.0),
        ({"success": np.array([False])}, 0.0),
        ({"success": np.float32(1.0)}, 1.0),
        ({"is_success": 0}, 0.0),
        ({"goal": True}, None),
    ],
)
def test_what_an_info_says_of_success(info, wanted):
    """NaN and None say nothing; the next key is asked."""

    class Says(Scripted):
        def step(self, action):
            return (*super().step(action)[:4], info)

    env = lpds.make_env(lambda: Says([([0.0], "terminated")]), 1, 1)
    env.reset()
    said = env.step(np.zeros((1, 1, 1), np.float32))[4]["success"][0]
    assert np.isnan(said) if wanted is None else said == wanted


def test_an_episode_may_end_at_its_first_success():
    """Rewards above a half are successes; what comes after is not executed, and nothing is bootstrapped."""
    script = [([0.0, 0.2, 1.0, 0.0, 0.0], "truncated"), ([0.0, 0.1], "truncated")]
    env = lpds.make_env(lambda: Scripted(script), 1, 4, end_at_success=True)
    env.reset()
    _, _, terminated, truncated, info = env.step(np.zeros((1, 4, 1), np.float32))
    assert (info["k"][0], bool(terminated[0]), bool(truncated[0]), info["success_last"][0]) == (3, True, False, 1.0)
    _, _, terminated, truncated, info = env.step(np.zeros((1, 4, 1), np.float32))
    assert (info["k"][0], bool(terminated[0]), bool(truncated[0])) == (2, False, True)
    assert env.success_key == "success"


@pytest.mark.parametrize("word", ["False", [True, False], 0.1, -1.0, 2])
def test_what_is_neither_yes_nor_no_is_a_fault(word, refused):
    class Says(Scripted):
        def step(self, action):
            return (*super().step(action)[:4], {"success": word})

    env = lpds.make_env(lambda: Says([([0.0], "terminated")]), 1, 1)
    env.reset()
    with refused("says success =", "neither yes nor no (0 or 1)"):
        env.step(np.zeros((1, 1, 1), np.float32))


# -- seeds ---------------------------------------------------------------------------------------------------------------


def reset_seeds(seed, lanes, episodes, evaluation=False):
    env = lpds.make_env(lambda: Scripted([([0.0], "terminated")]), lanes, 1, seed, evaluation=evaluation)
    env.reset()
    for _ in range(episodes - 1):
        env.step(np.zeros((lanes, 1, 1)))
    seen = [lane.env.seeds for lane in env._lanes]
    assert all(len(seeds) == episodes for seeds in seen)
    return np.asarray(seen)


def test_every_reset_has_its_own_seed_and_equal_base_seeds_give_equal_ones():
    seeds = reset_seeds(5, 4, 50)
    assert np.array_equal(seeds, reset_seeds(5, 4, 50))
    assert len(np.unique(seeds)) == seeds.size  # over sub-environments and episodes
    assert not np.intersect1d(seeds, reset_seeds(6, 4, 50)).size
    # the first lanes do not notice that there are more
    assert np.array_equal(seeds[:2], reset_seeds(5, 2, 50))


def test_training_and_evaluation_streams_are_disjoint():
    train, evaluation = reset_seeds(0, 3, 40), reset_seeds(0, 3, 40, evaluation=True)
    assert (train % 2 == 0).all()
    assert (evaluation % 2 == 1).all()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**40), lane=st.integers(0, 100), number=st.integers(0, 10**6))
def test_seed_parity_and_range(seed, lane, number):
    for evaluation in (False, True):
        value = episode_seed(evaluation, seed, lane, number)
        assert 0 <= value < 2**31
        assert value % 2 == evaluation


def test_evaluation_episode_e_has_one_seed_for_any_number_of_lanes():
    numbered = {}
    for lanes in (1, 2, 3, 8):
        seeds = reset_seeds(7, lanes, 24 // lanes, evaluation=True)
        numbered[lanes] = seeds.T.ravel().tolist()  # the j-th episode of lane i is number j * N + i
    assert all(seeds == numbered[1] for seeds in numbered.values())


def test_reset_seed_begins_anew_and_same_seed_gives_same_observations():
    env = lpds.make_env("four-mode", 3, 4, seed=1)
    first, info = env.reset()
    env.step(np.ones((3, 4, 2)))
    second, _ = env.reset()
    assert not np.array_equal(first, second)
    again, info2 = env.reset(seed=1)
    assert np.array_equal(first, again)
    assert np.array_equal(info["seed"], info2["seed"])
    assert np.array_equal(env.reset(seed=1, options={})[0], first)
    with pytest.raises(LpdsError, match="seed must be one integer"):
        env.reset(seed=[1, 2, 3])


def test_counter_based_noise_is_a_function_of_its_address():
    a = normal("train", 1, 2, 3, 4, shape=(4, 3))
    normal("train", 9, 9, 9, 9, shape=(100,))
    assert np.array_equal(a, normal("train", 1, 2, 3, 4, shape=(4, 3)))
    others = [("train", 2, 2, 3, 4), ("train", 1, 3, 3, 4), ("train", 1, 2, 4, 4), ("train", 1, 2, 3, 5), ("kept", 1, 2, 3, 4)]
    for stream, *address in [*others, ("evaluation", 1, 2, 3, 4), ("train", 2, 1, 3, 4), ("train", 1, 2, 4, 3)]:
        assert not np.intersect1d(a, normal(stream, *address, shape=(4, 3))).size
    big = np.concatenate([normal("evaluation", 0, e, d, shape=(8,)) for e in range(100) for d in range(20)])
    assert abs(big.mean()) < 4 / np.sqrt(big.size)
    assert abs(big.var() - 1.0) < 4 * np.sqrt(2 / big.size)
    rows = big.reshape(100, 20, 8)
    for shifted in (rows[1:].ravel() * rows[:-1].ravel(), rows[:, 1:].ravel() * rows[:, :-1].ravel()):
        assert abs(shifted.mean()) < 4 / np.sqrt(shifted.size)  # neighbours are uncorrelated


# -- faults and refusals -------------------------------------------------------------------------------------------------


class Faulty(Scripted):
    """Goes wrong at one primitive step of one sub-environment."""

    def __init__(self, kind, at):
        super().__init__([([0.0] * 20, "terminated")])
        self.kind, self.when = kind, at

    def step(self, action):
        obs, reward, ended, cut, info = super().step(action)
        if self.at == self.when:
            if self.kind == "raise":
                raise RuntimeError("the simulation\n  diverged")
            if self.kind == "reward":
                reward = np.nan
            if self.kind == "obs":
                obs = np.asarray([np.inf, 0.0], np.float32)
        return obs, reward, ended, cut, info


@pytest.mark.parametrize("kind", ["raise", "reward", "obs"])
def test_a_fault_is_one_line_with_sub_environment_seed_and_step(kind):
    made = iter(["no", kind])
    env = ChunkedVectorEnv(lambda: Faulty(next(made), 6), 2, 4, seed=0, name="mine")
    env.reset()
    env.step(np.zeros((2, 4, 1)))
    with pytest.raises(EnvironmentFault) as caught:
        env.step(np.zeros((2, 4, 1)))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("mine ")
    assert f"(sub-environment 1, episode seed {episode_seed(False, 0, 1, 0)}, step 6)" in message
    assert ("RuntimeError: the simulation diverged" in message) == (kind == "raise")


def test_a_reset_that_raises_is_a_fault_too():
    class Broken(Scripted):
        def reset(self, **kwargs):
            raise OSError("no such model")

    env = lpds.make_env(lambda: Broken([]), 1, 2)
    with pytest.raises(EnvironmentFault, match=r"OSError: no such model \(sub-environment 0, episode seed \d+, step 0\)"):
        env.reset()


def test_what_cannot_be_steered_is_refused():
    with pytest.raises(LpdsError, match=r"CartPole-v1 has action space Discrete\(2\); steering needs a Box"):
        lpds.make_env("CartPole-v1")
    with pytest.raises(LpdsError, match="unknown environment 'Hoper-v5'; did you mean 'Hopper-v5'") as told:
        lpds.make_env("Hoper-v5")
    assert "CartPole" not in str(told.value)  # a hundred choices say less than the nearest three
    with pytest.raises(LpdsError, match=r"^unknown environment 'MyRobot-v0'.*MODULE:ID of one that MODULE registers"):
        lpds.make_env("MyRobot-v0")
    with pytest.raises(LpdsError, match=r"^'hopper' is the name of a task; its environment is Hopper-v5$"):
        lpds.make_env("hopper")
    with pytest.raises(LpdsError, match=r"returned int, expected a single gymnasium\.Env"):
        lpds.make_env(lambda: 3)
    with pytest.raises(LpdsError, match="at least 1, not 0 and 4"):
        lpds.make_env("four-mode", 0)
    env = lpds.make_env("four-mode", 2, 4)
    with pytest.raises(LpdsError, match="must be reset before its first step"):
        env.step(np.zeros((2, 4, 2)))
    env.reset()
    with pytest.raises(LpdsError, match=r"four-mode takes actions \[2, 4, 2\], not \[2, 3, 2\]"):
        env.step(np.zeros((2, 3, 2)))


def test_replaying_an_episode_leads_to_the_same_place():
    rng = np.random.default_rng(0)
    env = lpds.make_env("Pendulum-v1", 2, 3, seed=4)
    env.reset()
    chunks = [rng.uniform(-2, 2, (2, 3, 1)).astype(np.float32) for _ in range(5)]
    for chunk in chunks:
        obs = env.step(chunk)[0]
    other = lpds.make_env("Pendulum-v1", 2, 3, seed=4)
    for lane in range(2):
        assert np.array_equal(other.replay(lane, 0, [chunk[lane] for chunk in chunks]), obs[lane])
    a, b = env.step(chunks[0]), other.step(chunks[0])
    assert all(np.array_equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
    env.close()
    other.close()


def test_gymnasiums_own_statistics_fit_around_it():
    from gymnasium.wrappers.vector import RecordEpisodeStatistics

    env = RecordEpisodeStatistics(lpds.make_env("four-mode", 2, 4, 0))
    env.reset(seed=0)
    told = None
    for _ in range(200):
        _, _, over, cut, info = env.step(np.zeros((2, 4, 2), np.float32))
        if (over | cut).any():
            told = info["episode"]
            break
    assert told is not None
    assert set(info) >= {"episode_number", "episode"}
