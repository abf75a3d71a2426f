"""Paired evaluation: an episode and its noise are functions of (seed, number), whoever acts and however many there are."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from scipy import stats
from scripted import CPU, TINY, Scripted, identity_decoder, toy_decoder

import lpds
from lpds import evaluation
from lpds.cli import main
from lpds.config import LPDSSettings
from lpds.envs.build import make_eval_env
from lpds.envs.four_mode import make_four_mode
from lpds.errors import LpdsError
from lpds.evaluation import EvalReport, evaluate_policy
from lpds.methods.base import BasePolicy
from lpds.methods.lpds import LPDS
from lpds.policy import SteeredPolicy
from lpds.random import normal
from lpds.stats import noise_share, paired_difference
from lpds.tell import differences, what_noise_decides
from lpds.types import Decision

FIELDS = ("returns", "successes", "successes_at_end", "lengths", "final_obs")


def equal(a, b, count=None):
    return all(np.array_equal(getattr(a, f)[:count], getattr(b, f)[:count], equal_nan=True) for f in FIELDS)


def steered(decoder, seed=0):
    """A policy whose Delta is far from zero."""
    method = LPDS(LPDSSettings(width=16, depth=1), decoder, generator=torch.Generator().manual_seed(seed), device=CPU)
    head = method.policy.net.weights[-1]
    head.data = torch.randn(head.shape, generator=torch.Generator().manual_seed(seed))
    return SteeredPolicy(decoder, method.policy, "lpds")


@pytest.fixture(scope="module", params=["toy", "linear"])
def decoder(request):
    return lpds.load_decoder("toy") if request.param == "toy" else toy_decoder()


def test_the_same_seed_gives_the_same_episodes_to_the_bit(decoder):
    a, b = (lpds.evaluate(decoder, "toy", episodes=12, seed=3) for _ in range(2))
    assert equal(a, b)
    assert not equal(a, lpds.evaluate(decoder, "toy", episodes=12, seed=4))


def test_the_first_ten_of_thirty_are_an_evaluation_of_ten(decoder):
    """To the bit: neither the number of lanes nor who is still running changes a row."""
    policy = steered(decoder)
    many, few, one = (lpds.evaluate(policy, "toy", episodes=count, seed=1) for count in (30, 10, 1))
    assert equal(many, few, 10)
    assert equal(few, one, 1)


def test_the_number_of_lanes_changes_nothing(decoder, monkeypatch):
    runs = []
    for lanes in (20, 7, 3):
        runs.append(
            evaluate_policy(
                BasePolicy(),
                decoder,
                lambda count, most=lanes: make_eval_env("four-mode", min(count, most), decoder.spec.action_shape[0]),
                episodes=22,
                seed=0,
            )
        )
    assert equal(runs[0], runs[1])
    assert equal(runs[0], runs[2])


def test_noise_is_addressed_by_seed_episode_decision():
    """An identity decoder shows its noise: the environment executes normal("evaluation", seed, e, decision)."""
    executed = {}

    class Recording(Scripted):
        def reset(self, *, seed=None, options=None):
            out = super().reset(seed=seed)
            self.log = executed.setdefault(seed, [])
            return out

        def step(self, action):
            self.log.append(float(action[0]))
            return super().step(action)

    lengths = [2, 7, 4, 5, 3, 6]
    made = iter(range(100))

    def factory():
        index = next(made)
        return Recording([([0.0] * lengths[(index + shift) % 6], "terminated") for shift in range(0, 6, 2)])

    decoder = identity_decoder((3, 1))
    report = evaluate_policy(BasePolicy(), decoder, lambda n: make_eval_env(factory, min(n, 2), 3), episodes=6, seed=5)
    lane = lpds.make_env(lambda: Scripted([([0.0], "terminated")]), 1, 1, 5, evaluation=True)
    lane.reset()
    for _ in range(5):
        lane.step(np.zeros((1, 1, 1)))
    seeds = lane._lanes[0].env.seeds[:6]
    assert sorted(executed) == sorted(seeds)
    for episode, seed in enumerate(seeds):
        actions = executed[seed]
        assert len(actions) == report.lengths[episode]
        noise = [normal("evaluation", 5, episode, d, shape=(3, 1)).clip(-1, 1).ravel() for d in range(3)]
        np.testing.assert_array_equal(np.float32(actions), np.concatenate(noise)[: len(actions)])


def test_scale_zero_is_the_decoder_itself_to_the_bit(decoder):
    policy = steered(decoder)
    frozen = lpds.evaluate(decoder, "toy", episodes=15, seed=2)
    assert equal(frozen, lpds.evaluate(policy, "toy", episodes=15, seed=2, scale=0.0))
    moved = lpds.evaluate(policy, "toy", episodes=15, seed=2, scale=1.0)
    assert not np.array_equal(frozen.final_obs, moved.final_obs)
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(9, 2)).astype(np.float32)
    eps = rng.normal(size=(9, *decoder.spec.latent_shape)).astype(np.float32)
    plain = decoder(torch.from_numpy(obs), torch.from_numpy(eps)).numpy()
    assert np.array_equal(policy.act(obs, eps, scale=0.0), plain)
    w = torch.from_numpy(eps + policy.shift(obs))
    assert np.array_equal(policy.act(obs, eps), decoder(torch.from_numpy(obs), w).numpy())


def test_pairing_shares_the_start_and_the_noise():
    """Two policies that differ in nothing but a name are equal episode by episode."""
    frozen, other = (lpds.evaluate(toy_decoder(name), "toy", episodes=8, seed=0) for name in ("a", "b"))
    assert equal(frozen, other)


def test_records_are_environment_returns_lengths_and_successes():
    script = [([1.0, 0.0, 2.0, 0.0], "terminated"), ([0.25] * 5, "truncated")]
    report = evaluate_policy(
        BasePolicy(), identity_decoder((3, 1)), lambda n: make_eval_env(lambda: Scripted(script), 1, 3), episodes=4, seed=0
    )
    assert report.returns.tolist() == [3.0, 1.25, 3.0, 1.25]
    assert report.lengths.tolist() == [4, 5, 4, 5]
    assert report.successes.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert report.successes_at_end.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert report.final_obs[:, 1].tolist() == [4.0, 5.0, 4.0, 5.0]
    rows = report.rows()
    assert [row["episode"] for row in rows] == [0, 1, 2, 3]
    assert rows[0] | {"seed": 0, "return": 3.0, "length": 4, "success": 1.0, "success_at_end": 0.0} == rows[0]


def test_an_environment_that_never_speaks_of_success_gives_nan():
    decoder = identity_decoder((2, 1), obs=3)
    env = lambda: gymnasium.make("Pendulum-v1", max_episode_steps=5)  # noqa: E731
    report = lpds.evaluate(decoder, env=env, episodes=3)
    assert np.isnan(report.successes).all()
    assert np.isnan(report.successes_at_end).all()
    assert all(math.isnan(value) for value in report.interval("success"))
    assert report.lengths.tolist() == [5, 5, 5]


def test_intervals_of_a_report():
    x = np.random.default_rng(0).normal(100.0, 20.0, 50)
    success = (np.arange(50) < 33).astype(float)
    report = EvalReport(x, success, 1.0 - success, np.arange(50), 0, 1.0, np.zeros((50, 2), np.float32))
    wilson = stats.binomtest(33, 50).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(report.interval("success"), (0.66, wilson.low, wilson.high))
    assert report.interval("success_at_end")[0] == pytest.approx(0.34)
    mean, low, high = report.interval("return")
    assert mean == pytest.approx(x.mean())
    assert (low, high) == pytest.approx((mean - 1.96 * x.std() / 50**0.5, mean + 1.96 * x.std() / 50**0.5), rel=0.01)
    assert report.interval("length")[0] == 24.5
    with pytest.raises(LpdsError, match="unknown figure 'returns'; did you mean 'return'"):
        report.interval("returns")


class Few:
    """Environments of which only so many may be open at once, as a licence or a port has it."""

    def __init__(self, most):
        self.most, self.open, self.seen = most, 0, 0

    def __call__(self):
        if self.open == self.most:
            raise RuntimeError("no licence left")
        self.open += 1
        self.seen = max(self.seen, self.open)
        env = make_four_mode()
        close = env.close

        def closed():
            self.open -= 1
            close()

        env.close = closed
        return env


@pytest.mark.parametrize("envs", [1, 3])
def test_an_evaluation_opens_as_many_environments_as_it_is_allowed_and_the_same_comes_out(envs):
    decoder = toy_decoder()
    few = Few(envs)
    assert equal(
        lpds.evaluate(steered(decoder), env=few, episodes=25, envs=envs),
        lpds.evaluate(steered(decoder), env=make_four_mode, episodes=25),
    )
    assert (few.seen, few.open) == (envs, 0)


def test_a_run_opens_so_many_beside_those_it_learns_in(tmp_path):
    few, given = Few(4 + 2), {"decoder": toy_decoder(), **TINY, "num_envs": 4}
    run = lpds.steer("toy", env=few, out=tmp_path / "few", eval_envs=2, **given)
    assert (few.seen, few.open) == (few.most, 0)
    whole = lpds.steer("toy", env=make_four_mode, out=tmp_path / "whole", **given)
    assert equal(run.steered, whole.steered)


@pytest.mark.parametrize("envs", [0, 21])
def test_more_rows_than_an_evaluation_has_are_refused(envs):
    with pytest.raises(LpdsError, match=f"^envs must be in 1 .. 20, not {envs}$"):
        lpds.evaluate(toy_decoder(), "toy", envs=envs)
    with pytest.raises(LpdsError, match=f"^eval_envs must be in 1 .. 20, not {envs}$"):
        lpds.steer("toy", eval_envs=envs)


def test_progress_counts_every_episode_once():
    seen = []
    lpds.evaluate(toy_decoder(), "toy", episodes=25, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (25, 25)


def test_what_cannot_be_evaluated():
    for call, words in (
        (lambda: lpds.evaluate(toy_decoder(), "toy", episodes=0), "episodes must be at least 1, not 0"),
        (lambda: lpds.evaluate(toy_decoder(), "toy", scale=1.5), r"scale must be in \[0, 1\], not 1.5"),
        (lambda: lpds.evaluate(toy_decoder(), "toy", scale=math.nan), r"scale must be in \[0, 1\], not nan"),
        (lambda: lpds.evaluate(toy_decoder()), "needs a task or env="),
        (lambda: lpds.evaluate("hoper", "toy"), "unknown decoder 'hoper'; did you mean 'hopper'"),
        (lambda: lpds.evaluate(toy_decoder(), "toi"), "unknown task 'toi'; did you mean 'toy'"),
        (lambda: lpds.evaluate(toy_decoder(), env="Pendulum-v1"), r"takes observations \(2,\), but Pendulum-v1 gives \(3,\)"),
        (lambda: steered(toy_decoder()).act(np.zeros((3, 5))), r"obs must be \[B, 2\], not \[3, 5\]"),
        (lambda: steered(toy_decoder()).act(np.zeros(2)), r"obs must be \[B, 2\], not \[2\]"),
        (lambda: steered(toy_decoder()).shift(np.zeros((3, 5))), r"obs must be \[B, 2\], not \[3, 5\]"),
        (
            lambda: steered(toy_decoder()).act(np.zeros((3, 2)), np.zeros((3, 2, 4))),
            r"eps must be \[B, 4, 2\], not \[3, 2, 4\]",
        ),
        (lambda: steered(toy_decoder()).act(np.zeros((3, 2)), scale=-0.1), r"scale must be in \[0, 1\], not -0.1"),
    ):
        with pytest.raises(LpdsError, match=words):
            call()
    assert evaluation.LANES == 20  # fixed: another number is another rounding


class TwoDraws(BasePolicy):
    """Acts on the second draw of a decision; the frozen policy is still the first."""

    draws = 2

    def act(self, decoder, obs, eps, scale):
        w = eps[:, int(scale > 0)]
        return Decision(decoder.decode(decoder.prepare(obs), w), w)


def test_a_method_that_draws_more_shares_the_first_draw_with_the_frozen_policy():
    assert np.array_equal(normal("evaluation", 3, 1, 4, shape=(5, 4, 3))[0], normal("evaluation", 3, 1, 4, shape=(4, 3)))
    reports = [
        evaluate_policy(policy, toy_decoder(), lambda n: make_eval_env("four-mode", n, 4), episodes=5, seed=1, scale=scale)
        for policy, scale in ((BasePolicy(), 1.0), (TwoDraws(), 0.0), (TwoDraws(), 1.0))
    ]
    assert equal(reports[0], reports[1])
    assert not equal(reports[0], reports[2])


def test_what_is_drawn_beside_a_given_eps_follows_from_it():
    policy = SteeredPolicy(toy_decoder(), TwoDraws(), "two")
    obs, eps = np.zeros((3, 2), np.float32), np.ones((3, 4, 2), np.float32)
    first, again, other = policy.act(obs, eps), policy.act(obs, eps), policy.act(obs, 0.5 * eps)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(policy.act(obs, eps, scale=0.0), SteeredPolicy(toy_decoder(), BasePolicy(), "base").act(obs, eps))


def test_without_noise_the_decoder_gets_delta_alone(decoder):
    """noise_scale k acts with w = k eps + Delta(s): act's own eps scaled by hand says the same to the bit."""
    policy = steered(decoder)
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((5, *decoder.spec.obs_shape)).astype(np.float32)
    eps = rng.standard_normal((5, *decoder.spec.latent_shape)).astype(np.float32)
    for share in (0.0, 0.5):
        by_hand = decoder(torch.from_numpy(obs), torch.from_numpy(np.float32(share) * eps + policy.shift(obs))).numpy()
        assert np.array_equal(policy.act(obs, eps, noise_scale=share), by_hand)
    assert np.array_equal(policy.act(obs, eps, noise_scale=1.0), policy.act(obs, eps))


def test_an_evaluation_without_noise_knows_no_noise():
    """The frozen policy of an identity decoder at noise_scale 0 executes zeros."""
    decoder, made = identity_decoder((1, 1)), []

    def make():
        made.append(Scripted([([0.0] * 4, "terminated")]))
        return made[-1]

    report = lpds.evaluate(decoder, env=make, episodes=2, seed=0, noise_scale=0.0)
    executed = np.concatenate([action for env in made for action in env.actions])
    assert len(executed) == 8
    assert not executed.any()
    assert {row["noise_scale"] for row in report.rows()} == {0.0}
    with pytest.raises(LpdsError, match=r"noise_scale must be in \[0, 1\], not 2"):
        lpds.evaluate(decoder, env=make, episodes=2, noise_scale=2.0)


def test_the_share_of_the_noise_is_that_of_a_one_way_layout():
    """Outcomes m_e + z_ne with variances 1 and 3: the noise decides three quarters; all or nothing at the ends."""
    rng = np.random.default_rng(0)
    outcomes = rng.normal(size=20_000) + np.sqrt(3.0) * rng.normal(size=(4, 20_000))
    assert noise_share(outcomes) == pytest.approx(0.75, abs=0.01)
    assert noise_share(np.tile(rng.normal(size=50), (3, 1))) == pytest.approx(0.0, abs=1e-12)
    assert noise_share(np.array([[0.0, 1.0], [1.0, 0.0]])) == 1.0
    assert np.isnan(noise_share(np.ones((3, 5))))


def test_the_same_episodes_under_other_noises(capsys):
    first, again, other = (lpds.evaluate("toy", "toy", episodes=6, seed=3, noise_seed=n) for n in (None, 3, 4))
    assert np.array_equal(first.final_obs, again.final_obs)
    assert np.array_equal(first.first_obs, other.first_obs)
    assert not np.array_equal(first.final_obs, other.final_obs)
    assert main(["eval", "toy", "--episodes", "6", "--seed", "3", "--noises", "2"]) == 0
    table = np.stack([first.successes, other.successes])
    always, never = int(table.min(0).sum()), int((1 - table.max(0)).sum())
    assert f"frozen: of 6 episodes {always} succeed under each of 2 noises and {never} under none" in capsys.readouterr().out


def test_what_less_noise_and_what_the_shift_bring_are_told_apart():
    """Steered without noise beats the frozen policy by 40 points, and the frozen policy without noise by none."""

    def report(won):
        won = np.asarray(won, np.float64)
        return EvalReport(10.0 * won, won, won, np.ones(10, np.int64), 0, 1.0, np.zeros((10, 1), np.float32))

    frozen, quiet = [1, 0, 0, 0, 0] * 2, [1, 1, 1, 0, 0] * 2
    lines = differences([("frozen", report(frozen)), ("noise x0", report(quiet)), ("scale 1, noise x0", report(quiet))])
    assert [line.split(":")[0] for line in lines] == [
        "noise x0 against frozen",
        "scale 1, noise x0 against frozen",
        "scale 1, noise x0 against noise x0",
    ]
    mean, low, high = paired_difference(frozen, quiet)
    wanted = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(10.0 * bound for bound in (mean, low, high)))
    points = "{:+.0f} points [{:+.0f}, {:+.0f}]".format(*(100.0 * bound for bound in (mean, low, high)))
    assert lines[0].endswith(f"paired difference {wanted}, success {points}")
    assert lines[2].endswith("paired difference +0.0 [+0.0, +0.0], success +0 points [+0, +0]")
    unsaid = np.full(10, np.nan)
    silent = EvalReport(np.ones(10), unsaid, unsaid, np.ones(10, np.int64), 0, 1.0, np.zeros((10, 1), np.float32))
    assert "success" not in differences([("frozen", silent), ("scale 1", silent)])[0]


def test_what_the_noise_decides_of_what_does_not_vary():
    def played(successes):
        values = np.asarray(successes, float)
        zeros = np.zeros(len(values))
        return EvalReport(zeros, values, values, zeros.astype(np.int64), 0, 0.0, np.zeros((len(values), 1), np.float32))

    always = what_noise_decides("frozen", [played([1, 1, 1])] * 2)
    assert always.endswith("of 3 episodes 3 succeed under each of 2 noises and 0 under none; success does not vary")
    mixed = what_noise_decides("frozen", [played([1, 0, 1]), played([0, 1, 1])])
    assert "the noise decides" in mixed
    assert "nan" not in mixed
