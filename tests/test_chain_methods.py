"""DPPO, DQL and IDQL as methods: the frozen policy at scale 0, exact arithmetic, short runs, what they refuse, learning."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scripted import CPU, TINY, assert_same_run, identity_decoder, toy_decoder

import lpds
from lpds.errors import LpdsError
from lpds.log import METRIC_KEYS, read_json_lines
from lpds.methods.chain import DecoderChain
from lpds.methods.dppo import DPPO, DPPOSettings, advantages, clip_range, policy_loss, value_loss
from lpds.methods.dql import DQL, DQLSettings, q_term
from lpds.methods.idql import IDQL, IDQLSettings, expectile_loss, explore
from lpds.policy import save_policy
from lpds.runner import Runner
from lpds.types import Batch, LatentSpec

KINDS = {"dppo": (DPPO, DPPOSettings), "dql": (DQL, DQLSettings), "idql": (IDQL, IDQLSettings)}
NAMES = pytest.mark.parametrize("name", list(KINDS))


def learner(name, decoder, seed=0, **changes):
    kind, settings = KINDS[name]
    generator = torch.Generator().manual_seed(seed)
    return kind(settings(**{"width": 16, "depth": 1, **changes}), decoder, generator=generator, device=CPU)


class Rounds:
    """Experience whose last rounds are given."""

    def __init__(self, seed=0):
        self.generator, self.rows = torch.Generator().manual_seed(seed), {}

    def recent(self, rounds):
        assert rounds <= len(self.rows["obs"])
        return {name: value[-rounds:] for name, value in self.rows.items()}


def rollout(method, decoder, reward, *, rounds=16, lanes=4, seed=0, discount=0.0):
    """Decisions of what collects, in states that do not depend on them; each an episode where the discount is zero."""
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randn(rounds, lanes, decoder.spec.obs_size, generator=generator)
    shape = (rounds * lanes, method.behaviour.draws, *decoder.spec.latent_shape)
    decision = method.behaviour.act(decoder, obs.flatten(0, 1), torch.randn(shape, generator=generator), 1.0)
    flat = {
        "obs": obs.flatten(0, 1),
        "next_obs": torch.roll(obs, -1, 0).flatten(0, 1),
        "action": decision.action.flatten(1),
        "reward": reward(decision.action),
        "discount": torch.full((rounds * lanes,), discount),
        "over": torch.full((rounds * lanes,), float(discount == 0.0)),
        **{key: decision.extra[key] for key in method.extras},
    }
    return {key: value.unflatten(0, (rounds, lanes)) for key, value in flat.items()}


def update(name, method, decoder, seed=0, reward=None):
    """One learning step of whichever kind."""
    rows = rollout(method, decoder, reward or (lambda a: -a.square().sum((1, 2))), seed=seed, discount=0.9)
    if name == "dppo":
        experience = Rounds(seed)
        experience.rows = rows
        for _ in range(len(rows["obs"])):
            method.observe([], [])
        return list(method.learn(experience, 0))
    flat = {key: value.flatten(0, 1) for key, value in rows.items()}
    none = torch.empty(len(flat["obs"]), 0, 6)
    batch = Batch(*(flat[key] for key in ("obs", "action", "reward", "discount", "next_obs")), none, none)
    generator = torch.Generator().manual_seed(seed)
    shapes = method.noise_shapes(len(flat["obs"]))
    return [method.update(batch, {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()})]


def eps_of(method, size, seed=1):
    return torch.randn(size, method.policy.draws, 3, 2, generator=torch.Generator().manual_seed(seed))


# -- what acts -----------------------------------------------------------------------------------------------------------


@NAMES
def test_scale_zero_is_the_frozen_policy_to_the_bit_and_nothing_lies_between(name, make_diffusion, batch, refused):
    decoder = make_diffusion()
    method = learner(name, decoder, actor_lr=1e-2)
    update(name, method, decoder)
    obs, eps = batch[0], eps_of(method, 17)
    for policy in (method.policy, method.behaviour):
        decision = policy.act(decoder, obs, eps, 0.0)
        assert torch.equal(decision.action, decoder(obs, eps[:, 0]))
        assert torch.equal(decision.latent, eps[:, 0])
        steered = policy.act(decoder, obs, eps, 1.0)
        assert steered.action.shape == (17, 3, 2)
        assert not torch.equal(steered.action, decision.action)
        assert torch.equal(steered.action, policy.act(decoder, obs, eps, 1.0).action)
        assert policy.shift(obs) is None
    with refused("scale must be 0 or 1 for", name, "0.5"):
        method.policy.act(decoder, obs, eps, 0.5)


@NAMES
def test_updates_are_deterministic_and_leave_the_decoder_alone(name, make_diffusion):
    decoder = make_diffusion()
    before, runs = decoder.fingerprint, []
    for _ in range(2):
        method = learner(name, decoder, actor_lr=1e-2)
        start = method.tensors()
        for seed in range(2):
            metrics = update(name, method, decoder, seed)
        assert {key for row in metrics for key in row} <= set(METRIC_KEYS)
        assert all(math.isfinite(value) and not value.requires_grad for row in metrics for value in row.values())
        runs.append(method.tensors())
        moved = [key for key, value in runs[-1].items() if not torch.equal(value, start[key])]
        assert any(key.startswith("net.") for key in moved)
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(value, runs[1][key]) for key, value in runs[0].items())
    assert decoder._fingerprint() == before


@NAMES
def test_state_and_saved_policy_come_back_to_the_bit(name, make_diffusion, batch, tmp_path):
    decoder = make_diffusion()
    method, other = learner(name, decoder), learner(name, decoder, seed=1)
    update(name, method, decoder)
    other.load_tensors(method.tensors())
    eps = eps_of(method, 17)
    save_policy(tmp_path / "policy", name, method, decoder)
    opened = lpds.load_policy(tmp_path, decoder).policy
    wanted = method.policy.act(decoder, batch[0], eps, 1.0).action
    assert torch.equal(opened.act(decoder, batch[0], eps, 1.0).action, wanted)
    assert torch.equal(other.policy.act(decoder, batch[0], eps, 1.0).action, wanted)
    assert all(value.dtype == torch.float32 for value in method.policy_tensors().values())
    for seed in (5, 6):  # the moments of the optimisers too
        for each in (method, other):
            update(name, each, decoder, seed)
    assert all(torch.equal(value, other.tensors()[key]) for key, value in method.tensors().items())


def test_the_trained_steps_and_the_frozen_ones(make_diffusion):
    decoder = make_diffusion()
    chain = DecoderChain(decoder, "dppo", CPU, trained_steps=4)
    obs, noise = torch.zeros(7, 5), torch.randn(7, 21, 6, generator=torch.Generator().manual_seed(0))
    before = chain.sample(obs, noise)
    with torch.no_grad():
        for parameter in chain.net.parameters():
            parameter.mul_(1.1)
    after = chain.sample(obs, noise)
    assert before.shape == (7, 5, 6)
    assert torch.equal(before[:, 0], after[:, 0])  # what the frozen steps give
    assert (before[:, 1] != after[:, 1]).any()
    whole = DecoderChain(decoder, "dppo", CPU, trained_steps=50)
    assert whole.trained_steps == 20
    assert torch.equal(whole.sample(obs, noise)[:, 0], noise[:, 0])


def test_only_the_executed_head_of_a_chunk_counts(make_diffusion):
    spec = LatentSpec((5,), (3, 2), (2, 2))
    decoder = make_diffusion(spec=spec)
    method = learner("dppo", decoder)
    obs, eps = torch.zeros(4, 5), eps_of(method, 4)
    assert method.policy.act(decoder, obs, eps, 1.0).action.shape == (4, 2, 2)
    path = torch.randn(4, 11, 6)
    assert method._log_prob(obs, path, torch.arange(4)).shape == (4, 4)
    update("dql", learner("dql", decoder), decoder)


# -- DPPO ----------------------------------------------------------------------------------------------------------------


def test_advantages_against_a_loop():
    """Terminated, truncated and running rows in several lanes; each row's own discount."""
    rng = np.random.default_rng(0)
    rounds, lanes, lam = 40, 5, 0.95
    reward, value, next_value = (rng.standard_normal((rounds, lanes)) for _ in range(3))
    ends = rng.choice(["running", "terminated", "truncated"], p=[0.7, 0.15, 0.15], size=(rounds, lanes))
    discount = np.where(ends == "terminated", 0.0, 0.99 ** rng.integers(1, 5, (rounds, lanes)))
    over = (ends != "running").astype(float)
    wanted = np.zeros((rounds, lanes))
    for lane in range(lanes):
        for start in range(rounds):
            weight = 1.0
            for at in range(start, rounds):
                error = reward[at, lane] + discount[at, lane] * next_value[at, lane] - value[at, lane]
                wanted[start, lane] += weight * error
                if ends[at, lane] != "running":
                    break
                weight *= lam * discount[at, lane]
    given = [torch.from_numpy(x) for x in (reward, discount, over, value, next_value)]
    np.testing.assert_allclose(advantages(*given, lam).numpy(), wanted, atol=1e-12)
    found = advantages(*(x.float() for x in given), lam)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


def test_the_first_step_of_an_iteration_has_ratio_one(make_diffusion):
    """Old densities are recomputed under the weights that collected; a value fit leaves the chain alone."""
    decoder = make_diffusion()
    method = learner("dppo", decoder)
    rows = rollout(method, decoder, lambda a: a.sum((1, 2)))
    path, obs = rows["chain"].flatten(0, 1).unflatten(1, (11, 6)), method.chain.observation(rows["obs"].flatten(0, 1))
    pairs = torch.arange(len(obs) * 10)
    log_prob = method._log_prob(obs, path, pairs)
    row, k = method._split(pairs)
    assert torch.equal(row * 10 + k, pairs)
    _, facts = policy_loss(log_prob, log_prob, torch.randn(len(pairs)), k, 10, method.settings)
    assert (float(facts["ratio"]), float(facts["kl"]), float(facts["clipped"])) == (1.0, 0.0, 0.0)
    before = method.policy_tensors()
    none = torch.empty(len(obs), 0, 6)
    flat = (rows[key].flatten(0, 1) for key in ("obs", "action", "reward", "discount", "next_obs"))
    method.update(Batch(*flat, none, none), {}, critics_only=True)
    assert all(torch.equal(value, before[key]) for key, value in method.policy_tensors().items())


def test_dql_without_its_q_term_clones_the_data_as_idql_does(make_diffusion):
    """``clone="data"`` is the paper's term: with eta 0 the same step to the bit, where the released one is another."""
    decoder = make_diffusion()
    rows = {
        key: value.flatten(0, 1) for key, value in rollout(learner("idql", decoder), decoder, lambda a: a.sum((1, 2))).items()
    }
    none = torch.empty(len(rows["obs"]), 0, 6)
    batch = Batch(*(rows[key] for key in ("obs", "action", "reward", "discount", "next_obs")), none, none)
    generator = torch.Generator().manual_seed(0)
    dql = {clone: learner("dql", decoder, eta=0.0, clone=clone) for clone in ("data", "samples")}
    idql = learner("idql", decoder)
    noise = {key: torch.randn(shape, generator=generator) for key, shape in dql["data"].noise_shapes(len(none)).items()}
    for method in (*dql.values(), idql):
        method.update(batch, noise)
    wanted = idql.chain.net.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in dql["data"].chain.net.state_dict().items())
    assert not all(torch.equal(value, wanted[key]) for key, value in dql["samples"].chain.net.state_dict().items())


@pytest.mark.parametrize("name", ["dql", "idql"])
def test_after_the_warm_up_fits_the_slow_critics_are_the_fitted_ones(name, make_diffusion):
    """V of IDQL and both targets go by the slow copy; at its own rate some hundred fits would leave it where it began."""
    decoder = make_diffusion()
    method = learner(name, decoder)
    rows = {key: value.flatten(0, 1) for key, value in rollout(method, decoder, lambda a: a.sum((1, 2)) + 50.0).items()}
    none = torch.empty(len(rows["obs"]), 0, 6)
    batch = Batch(*(rows[key] for key in ("obs", "action", "reward", "discount", "next_obs")), none, none)
    generator = torch.Generator().manual_seed(0)

    def step(**how):
        drawn = {key: torch.randn(shape, generator=generator) for key, shape in method.noise_shapes(len(none)).items()}
        method.update(batch, drawn, **how)

    for _ in range(5):
        step(critics_only=True)
    fast, slow = method.q.state_dict(), method.q_slow.state_dict()
    assert all(torch.equal(slow[key], value) for key, value in fast.items())
    step()
    assert not all(torch.equal(method.q_slow.state_dict()[key], value) for key, value in method.q.state_dict().items())


def test_clip_range_and_value_clip():
    c = DPPOSettings(clip=0.1, clip_base=0.01)
    found = clip_range(torch.arange(10), 10, c)
    assert float(found[0]) == pytest.approx(0.01)
    assert float(found[-1]) == pytest.approx(0.1)
    assert (found.diff() > 0).all()
    assert float(clip_range(torch.zeros(1, dtype=torch.long), 1, c)[0]) == pytest.approx(0.1)
    value, target, old = torch.tensor([3.0]), torch.tensor([3.5]), torch.tensor([0.0])
    assert float(value_loss(value, target, old, math.inf)) == pytest.approx(0.125)
    assert float(value_loss(value, target, old, 1.0)) == pytest.approx(0.5 * 2.5**2)


def test_a_large_divergence_ends_the_iteration(make_diffusion):
    decoder = make_diffusion()
    assert len(update("dppo", learner("dppo", decoder, epochs=3), decoder)) == 12
    assert len(update("dppo", learner("dppo", decoder, actor_lr=0.3, target_kl=1e-4), decoder)) < 12


@pytest.mark.parametrize(("total", "rounds"), [(100_000, 500), (10_000, 500), (2_000, 100), (250, 12), (19, 1), (0, 1)])
def test_iterations_shrink_with_the_budget(make_diffusion, total, rounds):
    assert learner("dppo", make_diffusion()).block_rounds(total) == rounds


def test_rounds_of_the_warm_up_are_never_learned_from(make_diffusion):
    method = learner("dppo", make_diffusion())
    assert list(method.learn(Rounds(), 3)) == []
    method.observe([], [])
    method.observe([0], [1.0])
    assert int(method.tensors()["fresh_rounds"]) == 2


def test_the_value_learns_alone_in_the_first_iterations(make_diffusion):
    decoder = make_diffusion()
    method, changed = learner("dppo", decoder, critic_iterations=2), []
    for iteration in range(3):
        before = method.tensors()
        update("dppo", method, decoder, seed=iteration)
        after = method.tensors()
        changed.append(
            tuple(
                any(not torch.equal(before[key], after[key]) for key in before if key.startswith(name))
                for name in ("net.", "value.")
            )
        )
    assert changed == [(False, True), (False, True), (True, True)]


def test_while_the_value_learns_alone_nothing_is_learned(tmp_path):
    given = {"steps": 400, "eval_every": 0, "final_episodes": 6, "quiet": True, "warmup_steps": 32}
    run = lpds.steer("toy", method="dppo", out=tmp_path / "run", critic_iterations=1_000, **given)
    assert run.verdict().startswith("NOTHING WAS LEARNED: the value learns alone in the first 1,000 iterations")


# -- DQL and IDQL --------------------------------------------------------------------------------------------------------


def test_the_coin_chooses_the_head():
    q = torch.tensor([[1.0, 3.0], [-2.0, -2.0]], requires_grad=True)
    assert float(q_term(q.detach(), torch.tensor([0.4]))) == pytest.approx(-1.0)
    assert float(q_term(q.detach(), torch.tensor([-0.4]))) == pytest.approx(1.0)
    q_term(q, torch.tensor([0.4])).backward()
    assert torch.equal(q.grad, torch.tensor([[-0.25, -0.25], [0.0, 0.0]]))  # none through the denominator


def test_expectile_and_exploration():
    advantage = torch.tensor([2.0, -1.0])
    assert float(expectile_loss(advantage, 0.8)) == pytest.approx((0.8 * 4 + 0.2 * 1) / 2)
    q, value = torch.tensor([[1.0, -1.0, -1.0]]).expand(40_000, 3), torch.zeros(40_000)
    draws = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(explore(q, value, 0.7, draws), minlength=3) / 40_000
    torch.testing.assert_close(share, torch.tensor([0.7, 0.3, 0.3]) / 1.3, atol=0.01, rtol=0)
    edges = torch.tensor([-math.inf, -40.0, 40.0, math.inf])
    assert explore(q[:4], value[:4], 0.7, edges).tolist() == [0, 0, 2, 2]


def test_times_are_uniform(make_diffusion):
    chain = DecoderChain(make_diffusion(), "dql", CPU)
    times = chain.times(torch.randn(40_000, generator=torch.Generator().manual_seed(0)))
    share = torch.bincount(times, minlength=20) / 40_000
    assert len(share) == 20
    assert (share - 0.05).abs().max() < 0.006
    assert chain.times(torch.tensor([-40.0, 40.0])).tolist() == [0, 19]


def test_idql_evaluates_with_the_best_candidate_and_its_first_noise_is_the_first_draw(make_diffusion, batch):
    decoder = make_diffusion()
    method = learner("idql", decoder, candidates=4)
    obs, eps = method.chain.observation(batch[0]), eps_of(method, 17)
    assert method.policy.draws == 4 * 21 + 1
    chunks, values = [], []
    for j in range(4):
        with torch.no_grad():
            chunks.append(method.chain.sample(obs, eps[:, 21 * j : 21 * (j + 1)].flatten(2), evaluation=True)[:, -1])
            values.append(method.q_slow(obs, chunks[-1]).amin(0))
    best = torch.stack(chunks, 1)[torch.arange(17), torch.stack(values, 1).argmax(1)]
    torch.testing.assert_close(method.policy.act(decoder, batch[0], eps, 1.0).action, method.chain.action(best))


# -- runs ----------------------------------------------------------------------------------------------------------------

SHORT = {key: value for key, value in TINY.items() if key != "warmup_fits"} | {
    "steps": 320, "warmup_steps": 100, "updates_per_decision": 0.1, "eval_every": 0, "final_episodes": 2,
}  # fmt: skip
FEW = {"dppo": {"epochs": 2}, "dql": {}, "idql": {"candidates": 3}}


@NAMES
def test_a_short_run(name, tmp_path):
    run = lpds.steer("toy", name, out=tmp_path / "run", **SHORT, **FEW[name])
    assert run.finished
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["updates"] > 5
    assert set(rows[-1]) - {"format_version"} <= set(METRIC_KEYS)
    assert any(row["td_loss"] is not None for row in rows)
    again = lpds.evaluate(lpds.load_policy(tmp_path / "run"), "toy", episodes=2, seed=0)
    assert np.array_equal(again.returns, run.steered.returns)
    frozen = lpds.evaluate("toy", "toy", episodes=2, seed=0)
    assert np.array_equal(frozen.returns, run.frozen.returns)


def stop_at(monkeypatch, step):
    """Ask for a stop once, after the round that reaches a step."""
    due = Runner._due

    def patched(self, last=False):
        due(self, last)
        self.stop_requested = self.step >= step

    monkeypatch.setattr(Runner, "_due", patched)


@pytest.mark.parametrize("name", ["dppo", "idql"])
def test_resume_to_the_bit(name, tmp_path, monkeypatch):
    """Stopped, for DPPO, with rounds of an iteration collected but not learned from."""
    short = SHORT | FEW[name] | ({"min_iterations": 5} if name == "dppo" else {})
    lpds.steer("toy", name, out=tmp_path / "whole", **short)
    with monkeypatch.context() as patch:
        stop_at(patch, 215)
        assert not lpds.steer("toy", name, out=tmp_path / "stopped", **short).finished
    if name == "dppo":
        (state,) = (tmp_path / "stopped" / "checkpoint").glob("state-*.safetensors")
        assert int(load_file(state)["method.fresh_rounds"]) > 0
    assert lpds.resume(tmp_path / "stopped", quiet=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_short_budget_still_has_its_iterations(tmp_path):
    run = lpds.steer("toy", "dppo", out=tmp_path / "run", **SHORT | {"steps": 2_000, "epochs": 1})
    assert run.finished
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["updates"] >= 4 * 19  # of 20 iterations the warm-up takes its share


# -- refusals ------------------------------------------------------------------------------------------------------------


def test_a_replay_too_small_for_an_iteration_is_refused_before_the_first_step(tmp_path, refused):
    """It stopped when the first iteration had been collected, and nothing was saved."""
    options = {"num_envs": 120, "replay_size": 1000, "steps": 3000, "min_iterations": 1, "quiet": True}
    with refused("replay_size 1,000 does not hold the 1,440 decisions that dppo learns from at once"):
        lpds.steer("toy", "dppo", out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@NAMES
def test_decoders_without_a_chain_are_refused(name, make_flow, refused):
    with refused(name, "'small'", "flow", "diffusion decoder", "dppo:PATH"):
        learner(name, make_flow())
    with refused(name, "'identity'", "callable", "diffusion decoder"):
        learner(name, identity_decoder())


@pytest.mark.parametrize(("name", "settings"), [("idql", {}), ("dql", {"clone": "data"})])
def test_who_clones_the_data_needs_the_whole_chunk_executed(name, settings, make_diffusion, refused):
    with refused(name, "'small'", "decodes 3 steps", "executes 2"):
        learner(name, make_diffusion(spec=LatentSpec((5,), (3, 2), (2, 2))), **settings)


@pytest.mark.parametrize(
    ("settings", "changes", "words"),
    [
        (DPPOSettings(), {"sampling_std": 0.0}, ("sampling_std", "positive")),
        (DPPOSettings(), {"epochs": 0}, ("epochs", "positive")),
        (DPPOSettings(), {"gae_lambda": 1.5}, ("gae_lambda", "[0, 1]")),
        (DPPOSettings(), {"advantage_low": 0.9, "advantage_high": 0.1}, ("quantiles",)),
        (DQLSettings(), {"eta": -1.0}, ("eta",)),
        (DQLSettings(), {"tau": 2.0}, ("tau", "at most 1")),
        (DQLSettings(), {"clone": "date"}, ("clone", "'date'", "data")),
        (IDQLSettings(), {"expectile": 1.0}, ("expectile", "(0, 1)")),
        (IDQLSettings(), {"candidates": 0}, ("candidates",)),
    ],
)
def test_bad_settings_are_refused(settings, changes, words):
    with pytest.raises(LpdsError) as caught:
        replace(settings, **changes)
    assert all(word in str(caught.value) for word in words)


# -- learning ------------------------------------------------------------------------------------------------------------


def mean_reward(method, decoder, reward):
    generator = torch.Generator().manual_seed(99)
    obs = torch.randn(256, 5, generator=generator)
    eps = torch.randn(256, method.policy.draws, 3, 2, generator=generator)
    return float(reward(method.policy.act(decoder, obs, eps, 1.0).action).mean())


def test_dppo_learns_a_bandit(make_diffusion):
    decoder = make_diffusion()
    low, high = decoder.normaliser.action_min, decoder.normaliser.action_max

    def reward(action):
        return -((action - (0.3 * low + 0.7 * high)) / (high - low)).square().sum((1, 2))

    method = learner("dppo", decoder, actor_lr=1e-3, clip=0.1, clip_base=0.1)
    before = mean_reward(method, decoder, reward)
    experience = Rounds()
    for seed in range(15):
        experience.rows = rollout(method, decoder, reward, rounds=32, lanes=8, seed=seed)
        for _ in range(32):
            method.observe([], [])
        list(method.learn(experience, 0))
    after = mean_reward(method, decoder, reward)
    assert after > 0.2 * before, (before, after)


@pytest.mark.parametrize("name", ["dql", "idql"])
def test_the_values_learn_a_bandit_and_what_acts_follows(name, make_diffusion):
    decoder = make_diffusion()
    low, high = decoder.normaliser.action_min, decoder.normaliser.action_max

    def reward(action):
        return -((action - (0.3 * low + 0.7 * high)) / (high - low)).square().sum((1, 2))

    method = learner(name, decoder, actor_lr=1e-3, lr=3e-3, width=64, depth=2, tau=0.05)
    before = mean_reward(method, decoder, reward)
    for seed in range(60):
        update_bandit(method, decoder, reward, seed)
    after = mean_reward(method, decoder, reward)
    assert after > 0.6 * before, (before, after)


def update_bandit(method, decoder, reward, seed):
    rows = {key: value.flatten(0, 1) for key, value in rollout(method, decoder, reward, seed=seed).items()}
    none = torch.empty(len(rows["obs"]), 0, 6)
    batch = Batch(*(rows[key] for key in ("obs", "action", "reward", "discount", "next_obs")), none, none)
    generator = torch.Generator().manual_seed(seed)
    noise = {key: torch.randn(shape, generator=generator) for key, shape in method.noise_shapes(64).items()}
    method.update(batch, noise)


def test_a_decoder_that_is_refused_leaves_no_run_folder(tmp_path, refused):
    with refused("dppo"):
        lpds.steer("toy", "dppo", decoder=toy_decoder(), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
