"""The four-mode toy: symmetry, modes, the straight way, the demonstrations."""

import math

import numpy as np
import pytest

from lpds.envs.four_mode import CORE, GOAL_RADIUS, GOALS, STEP, TIME_LIMIT, FourMode, demonstrate, make_four_mode, mode_of

QUARTER = np.array([[0.0, -1.0], [1.0, 0.0]])


def turn(points: np.ndarray, quarters: int) -> np.ndarray:
    return points @ np.linalg.matrix_power(QUARTER, quarters).T


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_maps_the_goals_onto_each_other_in_order(quarters: int) -> None:
    np.testing.assert_allclose(turn(GOALS, quarters), np.roll(GOALS, -quarters, axis=0), atol=1e-12)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_of_start_and_actions_turns_the_path_and_leaves_the_rewards(quarters: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        start, actions = rng.normal(0, 0.3, 2), rng.uniform(-1, 1, (60, 2))
        records = []
        for way in (0, quarters):
            env = FourMode()
            env.reset(seed=0)
            env._position = turn(start, way)
            records.append([env.step(turn(action, way).astype(np.float32)) for action in actions])
        for (obs, reward, ended, *_), (turned, turned_reward, turned_ended, *_) in zip(*records, strict=True):
            np.testing.assert_allclose(turn(obs, quarters), turned, atol=1e-5)
            assert (reward, ended) == (turned_reward, turned_ended)


def test_mode_of_names_the_goal_a_position_lies_in_or_none() -> None:
    inside = GOALS + np.array([0.9 * GOAL_RADIUS, 0.0])
    assert mode_of(inside).tolist() == [0, 1, 2, 3]
    assert mode_of(GOALS + np.array([0.0, 1.1 * GOAL_RADIUS])).tolist() == [-1, -1, -1, -1]
    assert mode_of(np.zeros((1, 2))).tolist() == [-1]


@pytest.mark.parametrize("goal", range(4))
def test_full_speed_along_the_straight_line_reaches_the_rim_in_the_steps_that_the_distance_takes(goal: int) -> None:
    env = make_four_mode()
    env.reset(seed=0)
    env.unwrapped._position = -0.4 * STEP * GOALS[goal]
    expected = math.ceil((1.0 + 0.4 * STEP - GOAL_RADIUS) / STEP)
    total, steps, ended = 0.0, 0, False
    while not ended:
        obs, reward, ended, truncated, info = env.step(GOALS[goal].astype(np.float32))
        total, steps = total + reward, steps + 1
        assert not truncated
    assert steps == expected
    assert total == -(expected - 1)  # the step that reaches it is free
    assert info["success"]
    assert mode_of(obs[None]).tolist() == [goal]


def test_standing_still_costs_a_point_a_step_until_the_time_limit() -> None:
    env = make_four_mode()
    env.reset(seed=1)
    total, steps, over = 0.0, 0, False
    while not over:
        _, reward, ended, over, info = env.step(np.zeros(2, np.float32))
        total, steps = total + reward, steps + 1
        assert not ended
    assert (steps, total, info["success"]) == (TIME_LIMIT, -TIME_LIMIT, False)


def test_starts_lie_about_the_centre_and_follow_the_seed() -> None:
    env = make_four_mode()
    starts = np.stack([env.reset(seed=seed)[0] for seed in range(500)])
    assert np.abs(starts.mean(0)).max() < 4 * 0.02 / math.sqrt(500)
    assert np.abs(starts.std(0) - 0.02).max() < 0.003
    np.testing.assert_array_equal(env.reset(seed=7)[0], starts[7])


def headings(states: np.ndarray, actions: np.ndarray, chunk: int) -> np.ndarray:
    """The goal that the first step of every chunk heads for."""
    way = GOALS[None] - states[::chunk, None]
    return (way / np.linalg.norm(way, axis=2, keepdims=True) * actions[::chunk, None]).sum(2).argmax(1)


def test_demonstrations_head_for_every_goal_equally_near_the_centre_and_turn_with_the_state() -> None:
    states, actions = demonstrate(80_000, 1, np.random.default_rng(0))
    heading = headings(states, actions, 1)
    radius = np.linalg.norm(states, axis=1)
    near = radius < 0.1
    shares = np.bincount(heading[near], minlength=4) / near.sum()
    assert near.sum() > 1000
    # the data come with their quarter turns, so that the shares over a disc about the centre are not only near 1/4
    np.testing.assert_allclose(shares, 0.25, atol=1e-3)
    # seen from its own side, every goal gets the same share
    far = radius > 0.7
    side = (GOALS[None] * states[far][:, None]).sum(2).argmax(1)
    own = [(heading[far][side == goal] == goal).mean() for goal in range(4)]
    assert max(own) - min(own) < 1e-3
    assert min(own) > 0.5


def test_demonstrators_turn_back_inside_the_core_and_go_on_outside() -> None:
    states, actions = demonstrate(80_000, 1, np.random.default_rng(0))
    radius = np.linalg.norm(states, axis=1)
    outward = (states * actions).sum(1) / radius
    inside, outside = (radius > 0.3 * CORE) & (radius < 0.7 * CORE), (radius > 0.6) & (radius < 0.8)
    assert outward[inside].mean() < -0.05
    assert outward[outside].mean() > 0.1


def test_demonstrations_come_in_fours() -> None:
    with pytest.raises(ValueError, match="10 is not a multiple of 4"):
        demonstrate(10, 2, np.random.default_rng(0))


def test_demonstrated_chunks_hold_together() -> None:
    chunk = 4
    states, actions = demonstrate(500, chunk, np.random.default_rng(1))
    assert states.shape == actions.shape == (500 * chunk, 2)
    assert states.dtype == actions.dtype == np.float32
    assert np.abs(actions).max() <= 1.0
    s, a = states.reshape(500, chunk, 2), actions.reshape(500, chunk, 2)
    np.testing.assert_allclose(s[:, :-1] + STEP * a[:, :-1], s[:, 1:], atol=1e-6)
