"""LP-DS against closed forms: the constrained optimum, scale invariance, bounds, hand-computed targets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import CPU, identity_decoder
from torch import nn

from lpds.config import LPDSSettings, delta_to_sum
from lpds.decoders.wrap import wrap_decoder
from lpds.methods.lpds import LPDS
from lpds.methods.shift import ShiftPolicy
from lpds.types import Batch, LatentSpec

SMALL = {"width": 24, "depth": 1, "kept_noises": 0}


def learner(decoder=None, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    return LPDS(LPDSSettings(**(SMALL | changes)), decoder or identity_decoder(), generator=generator, device=CPU)


def noise(method, size, generator):
    return {name: torch.randn(shape, generator=generator) for name, shape in method.noise_shapes(size).items()}


def batch(spec, size, generator, *, kept=0, discount=0.9):
    def draw(*shape):
        return torch.randn(shape, generator=generator)

    o, d, a = spec.obs_size, spec.latent_size, spec.action_size
    return Batch(
        draw(size, o),
        draw(size, a),
        draw(size),
        torch.full((size,), discount),
        draw(size, o),
        draw(size, kept, d),
        draw(size, kept, a),
    )


def weights(module):
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def same(a, b):
    return all(torch.equal(value, b[key]) for key, value in a.items())


# -- the constrained optimum (eqs. 5 to 7) -------------------------------------------------------------------------------


def steer_towards(goal, latent_value, rounds, *, size=64, **changes):
    """Run the actor and the dual alone on a given Q^W; returns the learner and the traces of ||Delta||^2 and a."""
    method = learner(identity_decoder((1, len(goal))), **changes)
    method._latent_value = latent_value
    generator = torch.Generator().manual_seed(1)
    norms, alphas = [], []
    for _ in range(rounds):
        obs = torch.randn(size, 2, generator=generator)
        b = Batch(*(torch.empty(0),) * 7)
        object.__setattr__(b, "obs", obs)
        out = method._ascend(b, obs, torch.randn(size, len(goal), generator=generator))
        method.region.ascents += 1
        norms.append(float(out["delta_sq_mean"]))
        alphas.append(float(method.region.alpha))
    return method, np.asarray(norms), np.asarray(alphas)


def linear(goal, scale=1.0):
    g = torch.tensor(goal)
    return lambda obs, w: (scale * (w @ g)).unsqueeze(0)


@pytest.mark.parametrize("delta", [0.05, 0.35, 1.2])
def test_a_linear_value_pins_delta_to_the_boundary(delta):
    """max g.Delta subject to E||Delta||^2 <= delta: Delta = sqrt(delta) g / |g|, alpha = |g| / (2 sqrt(delta)), so a = 1."""
    goal = [3.0, -4.0]
    method, norms, alphas = steer_towards(
        goal, linear(goal), 600, delta=delta, actor_lr=2e-3, noise_bound=math.inf, dual_step=0.03
    )
    assert norms[-150:].mean() == pytest.approx(delta, rel=0.05)
    assert alphas[-150:].mean() == pytest.approx(1.0, rel=0.05)
    shift = method.policy.shift(torch.zeros(1, 2))[0, 0]
    assert torch.nn.functional.cosine_similarity(shift, torch.tensor(goal), dim=0) > 0.99
    out = method._ascend(batch(method.decoder.spec, 8, torch.Generator()), torch.zeros(8, 2), torch.zeros(8, 2))
    assert float(out["alpha"]) == pytest.approx(5.0 / (2 * math.sqrt(delta)), rel=0.1)  # told in reward units
    told = float(out["alpha"])
    method.reward_scale.fill_(0.25)  # as if Q were of rewards a quarter of the environment's
    out = method._ascend(batch(method.decoder.spec, 8, torch.Generator()), torch.zeros(8, 2), torch.zeros(8, 2))
    assert float(out["alpha"]) == pytest.approx(4.0 * told, rel=0.05)
    method.reward_scale.fill_(1.0)
    out = method._ascend(batch(method.decoder.spec, 8, torch.Generator()), torch.zeros(8, 2), torch.zeros(8, 2))
    assert float(out["q_scale"]) == pytest.approx(5.0, rel=1e-4)
    assert float(out["kl_nats"]) == pytest.approx(float(out["delta_sq_mean"]) / 2)


def test_the_budget_may_grow_and_delta_goes_with_it():
    """delta (n + 1) / N at the n-th update of Delta, the boundary of a linear value all the way, and constant from N on."""
    grown = learner(delta=2.0, delta_updates=10)
    budgets = []
    for count in (0, 4, 9, 500):
        grown.region.ascents.fill_(count)
        budgets.append(grown.region.budget)
    assert budgets == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert learner(delta=2.0).region.budget == 2.0
    common = {"actor_lr": 3e-3, "noise_bound": math.inf, "dual_step": 0.03}
    _, norms, alphas = steer_towards([3.0, -4.0], linear([3.0, -4.0]), 1600, delta=1.2, delta_updates=1000, **common)
    for at in (400, 700, 1300):
        assert norms[at - 60 : at + 60].mean() == pytest.approx(1.2 * min(1.0, at / 1000), rel=0.1)
    assert alphas[-100:].mean() == pytest.approx(1.0, rel=0.05)


def test_a_small_budget_is_told_for_a_coordinate():
    """In whatever unit it is given: 0.35 over four free coordinates is plenty, over four hundred it is not."""
    small = "if that is too little, --delta 0.08 --delta-unit mean"
    assert learner(identity_decoder((2, 2)), delta=0.35).remark.endswith("0.09 for each of 4 free coordinates")
    assert small in learner(identity_decoder((20, 20)), delta=0.35).remark
    assert small not in learner(identity_decoder((20, 20)), delta=0.08, delta_unit="mean").remark
    assert learner(identity_decoder((20, 20)), dual="off").remark == "no trust region holds Delta: dual off"
    assert "a penalty of fixed weight" in learner(identity_decoder((2, 2)), dual="fixed").remark
    assert "growing to that over 500 updates" in learner(identity_decoder((2, 2)), delta_updates=500).remark
    masked = learner(identity_decoder((2, 3), free=(True, False, True)), delta=1.0).remark
    assert "0.2 for each of 4 free" in masked


def test_a_slope_where_delta_cannot_go_is_no_scale():
    method = learner(identity_decoder((1, 3), free=(True, False, True)))
    method._latent_value = linear([3.0, 100.0, -4.0])
    out = method._ascend(batch(method.decoder.spec, 8, torch.Generator()), torch.zeros(8, 2), torch.zeros(8, 3))
    assert float(out["q_scale"]) == pytest.approx(5.0)


def test_the_budget_is_spent_where_it_pays():
    """Q^W = s_0 g.w with s_0 of both signs: the mean is bound, single states are not, and Delta points with the sign."""
    g = torch.tensor([1.0, 0.0])
    method, norms, _ = steer_towards(
        [1.0, 0.0], lambda obs, w: (obs[:, 0] * (w @ g)).unsqueeze(0), 700, actor_lr=2e-3, dual_step=0.03
    )
    assert norms[-150:].mean() == pytest.approx(0.35, rel=0.08)
    shift = method.policy.shift(torch.tensor([[-2.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]))[:, 0, 0]
    assert shift[0] < shift[1] < -0.2
    assert shift[3] > shift[2] > 0.2
    assert float(shift[3]) ** 2 > 0.35


@pytest.mark.parametrize("power", [-7, 10])
def test_the_scale_of_rewards_changes_nothing_to_the_bit(power):
    """Q^W times 2^n: theta and the relative a are the same bits; alpha and s in reward units carry the factor."""
    goal = [1.0, -2.0]
    runs = [steer_towards(goal, linear(goal, scale), 60, actor_lr=1e-3) for scale in (1.0, 2.0**power)]
    assert np.array_equal(runs[0][1], runs[1][1])
    assert np.array_equal(runs[0][2], runs[1][2])
    assert same(weights(runs[0][0].policy), weights(runs[1][0].policy))
    assert float(runs[1][0].region.q_scale) == float(runs[0][0].region.q_scale) * 2.0**power


def test_a_thousandfold_reward_gives_the_same_trace_to_rounding():
    goal = [1.0, -2.0]
    runs = [steer_towards(goal, linear(goal, scale), 150, actor_lr=1e-3) for scale in (1.0, 1000.0)]
    np.testing.assert_allclose(runs[0][1], runs[1][1], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(runs[0][2], runs[1][2], rtol=1e-3)
    assert float(runs[1][0].region.q_scale / runs[0][0].region.q_scale) == pytest.approx(1000.0, rel=1e-5)


def bandit(goal, rounds, **changes):
    """The whole update on r = -|a - g|^2, discount 0; the best mean shift is g cut to the ball of radius sqrt(delta)."""
    decoder = identity_decoder((1, 2))
    method = learner(decoder, lr=5e-3, actor_lr=2e-3, **changes)
    generator = torch.Generator().manual_seed(2)
    g, norms = torch.tensor(goal), []
    out = {}
    for index in range(rounds):
        obs = torch.randn(64, 2, generator=generator)
        action = torch.randn(64, 2, generator=generator) + method.policy(obs).detach()
        reward = -(action - g).square().sum(1)
        pairs = torch.empty(64, 0, 2)
        data = Batch(obs, action, reward, torch.zeros(64), obs, pairs, pairs)
        out = method.update(data, noise(method, 64, generator), critics_only=index < rounds // 5)
        norms.append(float(out.get("delta_sq_mean", 0.0)))
    obs = torch.randn(512, 2, generator=generator)
    return method, np.asarray(norms), method.policy(obs).detach(), out


def test_bandit_with_a_binding_constraint_settles_on_delta():
    goal, delta = [1.2, -0.9], 0.36
    method, norms, shift, out = bandit(goal, 700, delta=delta, dual_step=0.03)
    assert norms[-200:].mean() == pytest.approx(delta, rel=0.1)
    wanted = torch.tensor(goal) / 1.5 * math.sqrt(delta)
    assert (shift.mean(0) - wanted).norm() < 0.12
    assert float(method.region.alpha) > 0.2
    assert float(out["q_action"]) == pytest.approx(-(2.0 + (1.5 - 0.6) ** 2), rel=0.3)  # E r at the optimum


def test_bandit_with_a_slack_constraint_reaches_the_optimum_with_alpha_zero():
    goal = [0.6, -0.3]
    method, _, shift, out = bandit(goal, 700, delta=5.0, dual_step=0.03)
    assert float(method.region.alpha) == 0.0
    assert float(out["alpha"]) == 0.0
    assert (shift.mean(0) - torch.tensor(goal)).norm() < 0.15


def test_no_lagrangian_and_a_fixed_penalty():
    free, _, alphas = steer_towards([1.0, 0.0], linear([1.0, 0.0]), 200, dual="off", actor_lr=5e-3, noise_bound=math.inf)
    assert not alphas.any()
    assert float(free.policy.shift(torch.zeros(1, 2)).norm()) > 1.5  # nothing holds it
    _, norms, alphas = steer_towards([1.0, 0.0], linear([1.0, 0.0]), 400, dual="fixed", alpha_init=2.0, actor_lr=2e-3)
    assert set(alphas) == {2.0}
    assert norms[-1] == pytest.approx(0.35 / 4, rel=0.05)  # a Delta / sqrt(delta) = g / |g|


# -- the shift -----------------------------------------------------------------------------------------------------------


def random_policy(spec, bound, cap, seed, gain=30.0):
    sizes = {"width": 16, "depth": 2, "activation": "relu", "generator": torch.Generator().manual_seed(seed)}
    policy = ShiftPolicy(spec, noise_bound=bound, cap_sq=cap, **sizes)
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in (policy.net.weights[-1], policy.net.biases[-1]):
        parameter.data = gain * torch.randn(parameter.shape, generator=generator)
    return policy


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    bound=st.sampled_from([0.1, 1.5, math.inf]),
    cap=st.sampled_from([0.01, 0.7, math.inf]),
    free=st.sampled_from([None, (True, False, True), (False, False, True)]),
    seed=st.integers(0, 99),
)
def test_bounds_hold_at_every_state_and_masked_coordinates_are_zero(bound, cap, free, seed):
    spec = LatentSpec((3,), (4, 3), (4, 2), free)
    policy = random_policy(spec, bound, cap, seed)
    obs = 100.0 * torch.randn(64, 3, generator=torch.Generator().manual_seed(seed))
    shift = policy.shift(obs)
    assert shift.shape == (64, 4, 3)
    assert float(shift.abs().max()) <= bound * (1 + 1e-6)
    assert float(shift.square().sum((1, 2)).max()) <= cap * (1 + 1e-5)
    for column, may in enumerate(free or ()):
        assert may or not shift[:, :, column].any()
    eps = torch.randn(64, 4, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(policy.latent(obs, eps, 0.0), eps)
    assert torch.equal(policy.latent(obs, eps, 1.0), eps + shift)
    torch.testing.assert_close(policy.latent(obs, eps, 0.5), eps + 0.5 * shift)
    if free:
        masked = [i for i, may in enumerate(free) if not may]
        assert torch.equal(policy.latent(obs, eps, 1.0)[..., masked], eps[..., masked])


def test_the_bound_is_a_smooth_squash_of_delta_not_a_box_on_w():
    spec = LatentSpec((2,), (1, 2), (1, 2))
    free, bound = (random_policy(spec, b, math.inf, 3, gain=1.0) for b in (math.inf, 1.5))
    obs = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bound(obs), 1.5 * torch.tanh(free(obs) / 1.5))
    eps = torch.full((32, 1, 2), 9.0)  # far outside any box
    torch.testing.assert_close(bound.latent(obs, eps, 1.0) - eps, bound.shift(obs), atol=2e-6, rtol=0)


def test_the_cap_only_shortens():
    spec = LatentSpec((2,), (1, 3), (1, 2))
    free, capped = (random_policy(spec, math.inf, cap, 5, gain=0.07) for cap in (math.inf, 0.2))
    obs = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    a, b = free(obs), capped(obs)
    inside = a.square().sum(1) <= 0.2
    assert inside.any()
    assert not inside.all()
    assert torch.equal(a[inside], b[inside])
    torch.testing.assert_close(b[~inside], a[~inside] * (math.sqrt(0.2) / a[~inside].norm(dim=1, keepdim=True)))


def test_the_first_step_is_the_frozen_policy():
    method = learner()
    obs, eps = torch.randn(9, 2), torch.randn(9, 1, 2)
    assert not method.policy(obs).any()
    assert torch.equal(method.policy.latent(obs, eps, 1.0), eps)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(delta=st.floats(1e-4, 100.0), d=st.integers(1, 240))
def test_units_of_delta(delta, d):
    """sum = D mean = D rms^2 = 2 nats."""
    assert delta_to_sum(delta, "sum", d) == delta
    assert delta_to_sum(delta, "mean", d) == pytest.approx(d * delta)
    assert delta_to_sum(delta, "rms", d) == pytest.approx(d * delta**2)
    assert delta_to_sum(delta, "nats", d) == pytest.approx(2 * delta)


def test_units_count_free_coordinates_only():
    decoder = identity_decoder((4, 3), free=(True, False, True))
    assert decoder.spec.free_size == 8
    assert learner(decoder, delta=0.5, delta_unit="mean").region.delta == 4.0
    assert learner(decoder, delta=0.5, delta_unit="rms").region.delta == 2.0
    assert learner(decoder, delta=0.5, delta_unit="nats").region.delta == 1.0
    assert learner(decoder, delta=0.5, delta_unit="nats", state_cap=3.0).policy.cap_sq == 3.0


def test_masked_coordinates_never_move():
    decoder = identity_decoder((2, 2), free=(True, False))
    method = learner(decoder, actor_lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        method.update(batch(decoder.spec, 16, generator), noise(method, 16, generator))
    shift = method.policy.shift(torch.randn(50, 2, generator=generator))
    assert shift[..., 0].abs().min() > 0
    assert not shift[..., 1].any()


# -- targets (eqs. 2 and 3) ----------------------------------------------------------------------------------------------


class Table(nn.Module):
    """Critics in closed form: head i is c_i * (sum of the inputs) + i."""

    def __init__(self, gains):
        super().__init__()
        self.gains = nn.Parameter(torch.tensor(gains))

    def forward(self, x):
        heads = torch.arange(len(self.gains), dtype=torch.float32)
        return (self.gains[:, None] * x.sum(1)[None] + heads[:, None]).unsqueeze(-1)


def shift_of(value):
    class Constant(nn.Module):
        scaling = nn.Identity()

        def forward(self, obs):
            return torch.full((len(obs), 2), value)

    return Constant()


@pytest.mark.parametrize("target_shift", ["slow", "current"])
@pytest.mark.parametrize("pessimism", ["min", "mean"])
@pytest.mark.parametrize("reward_scale", [1.0, 0.1])
@pytest.mark.parametrize("k", [1.0, 0.5])
@pytest.mark.parametrize("frozen", [False, True])
def test_td_targets_by_hand(target_shift, pessimism, reward_scale, k, frozen):
    """y = c r + discount * reduce_i Qbar_i(s', Phi(s', k eps' + Delta'(s'))), the loss summed over heads.

    The warm-up's returns are of the frozen policy, which is Phi(s', eps') whatever k is.
    """
    decoder = wrap_decoder(
        lambda s, w: 2.0 * w + s.unsqueeze(1), obs_shape=(2,), latent_shape=(1, 2), action_shape=(1, 2), name="affine"
    )
    method = learner(decoder, target_shift=target_shift, pessimism=pessimism, noise_scale=k)
    method.reward_scale.fill_(reward_scale)
    method.online, method.slow_policy = shift_of(0.5), shift_of(-0.25)
    method.q_slow, method.q_action = Table([1.0, -0.5]), Table([0.3, 0.7])
    method.adam_action = torch.optim.SGD(method.q_action.parameters(), lr=0.0)
    reward, discount = torch.tensor([1.0, -2.0]), torch.tensor([0.9, 0.0])
    obs, action = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    next_obs, next_eps = torch.tensor([[0.5, -1.0], [2.0, 2.0]]), torch.tensor([[0.2, -0.4], [1.0, 1.0]])
    none = torch.empty(2, 0, 2)
    out = method._td(Batch(obs, action, reward, discount, next_obs, none, none), obs, next_eps, frozen=frozen)

    delta, k = (0.0, 1.0) if frozen else (-0.25 if target_shift == "slow" else 0.5, k)
    loss = 0.0
    for b in range(2):
        next_action = [2.0 * (k * float(next_eps[b, j]) + delta) + float(next_obs[b, j]) for j in range(2)]
        x = float(next_obs[b].sum()) + sum(next_action)
        heads = [1.0 * x, -0.5 * x + 1.0]
        value = min(heads) if pessimism == "min" else sum(heads) / 2
        y = reward_scale * float(reward[b]) + float(discount[b]) * value
        x = float(obs[b].sum() + action[b].sum())
        loss += sum((q - y) ** 2 for q in (0.3 * x, 0.7 * x + 1.0)) / 2
    assert float(out["td_loss"]) == pytest.approx(loss / reward_scale**2, rel=1e-5)


@pytest.mark.parametrize("kept", [0, 2])
def test_distillation_is_at_the_base_noise_head_by_head(kept):
    """(Q^W_i(s, eps) - Q^A_i(s, Phi(s, eps)))^2 whatever Delta is; fresh noise or kept pairs."""
    decoder = wrap_decoder(lambda s, w: 3.0 * w, obs_shape=(2,), latent_shape=(1, 2), action_shape=(1, 2), name="triple")
    method = learner(decoder, kept_noises=kept, distill_noises=2)
    method.policy = shift_of(100.0)
    method.q_action, method.q_latent = Table([1.0, -2.0]), Table([0.5, 4.0])
    method.adam_latent = torch.optim.SGD(method.q_latent.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(0)
    data, drawn = batch(decoder.spec, 5, generator, kept=kept), noise(method, 5, generator)
    assert ("base" in drawn) == (kept == 0)
    eps = data.base_noise if kept else drawn["base"]
    action = data.base_action if kept else 3.0 * eps
    out = method._distill(data, data.obs, drawn)
    s = data.obs.sum(1, keepdim=True)
    latent, acted = s + eps.sum(2), s + action.sum(2)
    wanted = ((0.5 * latent - 1.0 * acted) ** 2 + (4.0 * latent + 2.0 * acted) ** 2).mean()
    assert float(out["distill_loss"]) == pytest.approx(float(wanted), rel=1e-5)
    assert float(out["distill_gap_base"]) == pytest.approx(
        float((0.5 * latent - acted + 4 * latent + 2 * acted).mean() / 2), rel=1e-4
    )


def test_pessimism_of_the_actor():
    """With heads g.w and -g.w the minimum has no direction to climb near zero, the mean none at all."""
    g = torch.tensor([2.0, 0.0])
    heads = lambda obs, w: torch.stack([w @ g, 3.0 * (w @ g)])  # noqa: E731
    low = steer_towards([2.0, 0.0], heads, 1, pessimism="mean")[0]
    assert float(low.region.q_scale) == pytest.approx(4.0)  # mean slope (1 + 3) / 2 * |g|
    mixed = steer_towards([2.0, 0.0], heads, 1, pessimism="min", size=4000)[0]
    assert float(mixed.region.q_scale) == pytest.approx(4.0, rel=0.05)  # 3 |g| below zero, |g| above, equally often


# -- what must not be touched --------------------------------------------------------------------------------------------


def torch_decoder():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    fn = lambda s, w: net(torch.cat([s, w.squeeze(1)], 1)).unsqueeze(1)  # noqa: E731
    return net, wrap_decoder(fn, obs_shape=(2,), latent_shape=(1, 2), action_shape=(1, 2), name="net")


@pytest.mark.parametrize("kept", [0, 2])
def test_no_gradient_and_no_step_reaches_the_decoder(kept):
    net, decoder = torch_decoder()
    before, fingerprint = weights(net), decoder.fingerprint
    method = learner(decoder, kept_noises=kept)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        method.update(batch(decoder.spec, 8, generator, kept=min(kept, 1)), noise(method, 8, generator))
    method.diagnose(batch(decoder.spec, 8, generator, kept=min(kept, 1)), noise(method, 8, generator))
    assert same(before, weights(net))
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    decoder._cached_fingerprint = None
    assert decoder.fingerprint == fingerprint


def test_each_loss_moves_its_own_network_only():
    method = learner()
    generator = torch.Generator().manual_seed(0)
    data, drawn = batch(method.decoder.spec, 8, generator), noise(method, 8, generator)
    networks = {name: method.state.modules[name] for name in ("policy", "slow_policy", "q_action", "q_slow", "q_latent")}
    obs = method.policy.scaling(data.obs)
    for call, mover in (
        (lambda: method._td(data, obs, drawn["next"]), "q_action"),
        (lambda: method._distill(data, obs, drawn), "q_latent"),
        (lambda: method._ascend(data, obs, drawn["actor"]), "policy"),
    ):
        before = {name: weights(network) for name, network in networks.items()}
        call()
        moved = {name for name, network in networks.items() if not same(before[name], weights(network))}
        assert moved == {mover}


def test_critics_only_leaves_what_acts_to_the_bit():
    method = learner()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        method.update(batch(method.decoder.spec, 8, generator), noise(method, 8, generator))
    # the slow copy moves on towards Delta: that is not what acts
    before, alpha, critic = weights(method.policy), float(method.region.alpha), weights(method.q_action)
    out = method.update(batch(method.decoder.spec, 8, generator), noise(method, 8, generator), critics_only=True)
    assert same(before, weights(method.policy))
    assert float(method.region.alpha) == alpha
    assert not same(critic, weights(method.q_action))
    assert "delta_sq_mean" not in out


def test_slow_copies_follow_at_rate_tau():
    """Both of equation 2: Q^A's and Delta's."""
    method = learner(tau=0.25)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):  # at the second, Delta and its slow copy differ
        pairs = {method.q_slow: method.q_action, method.slow_policy: method.online}
        old = {slow: dict(slow.named_parameters()) for slow in pairs}
        old = {slow: {key: value.detach().clone() for key, value in found.items()} for slow, found in old.items()}
        method.update(batch(method.decoder.spec, 8, generator), noise(method, 8, generator))
        for slow, fast in pairs.items():
            for (key, value), (_, other) in zip(slow.named_parameters(), fast.named_parameters(), strict=True):
                torch.testing.assert_close(value, 0.75 * old[slow][key] + 0.25 * other)
    assert not same(weights(method.slow_policy), weights(method.online))


def test_an_infinite_budget_has_no_multiplier_from_the_first_update_on():
    _, _, alphas = steer_towards([3.0, -4.0], linear([3.0, -4.0]), 20, delta=math.inf)
    assert (alphas == 0.0).all()


def test_state_round_trip_goes_on_to_the_bit():
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    a, b = learner(seed=0), learner(seed=1)
    a.calibrate(torch.randn(50, 2), torch.randn(50, 2), 0.3)
    warm = torch.Generator().manual_seed(0)
    for _ in range(5):
        a.update(batch(a.decoder.spec, 8, warm), noise(a, 8, warm))
    b.load_tensors(a.tensors())
    for method, generator in zip((a, b), generators, strict=True):
        for _ in range(5):
            out = method.update(batch(method.decoder.spec, 8, generator), noise(method, 8, generator))
            assert all(value.ndim == 0 and not value.requires_grad for value in out.values())
    assert same(a.tensors(), b.tensors())
    opened = LPDS.open_policy(a.decoder, a.policy_settings(), a.policy_tensors())
    obs = torch.randn(20, 2)
    assert torch.equal(opened(obs), a.policy(obs).detach())


def test_metrics_are_in_reward_units():
    """Rewards and Q times c, with reward_scale c told: every figure but the losses' noise floor is the same."""
    method, other = learner(), learner()
    other.q_action.weights[-1].data *= 4.0
    other.q_action.biases[-1].data *= 4.0
    other.q_latent.weights[-1].data *= 4.0
    other.q_latent.biases[-1].data *= 4.0
    other.q_slow.load_state_dict(other.q_action.state_dict())
    other.reward_scale.fill_(4.0)
    outs = []
    for m in (method, other):
        generator = torch.Generator().manual_seed(0)
        data, drawn = batch(m.decoder.spec, 16, generator), noise(m, 16, generator)
        obs = m.policy.scaling(data.obs)
        outs.append(m.diagnose(data, drawn) | m._td(data, obs, drawn["next"]))
    for key, value in outs[0].items():
        assert float(outs[1][key]) == pytest.approx(float(value), rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({}, {"shift_rank", "kept_next", "eval_noise_updates"}),
        ({"shift_form": "lowrank", "shift_rank": 1, "target_actions": "kept", "eval_noise_scale": 0.5}, set()),
        ({"dual": "fixed"}, {"shift_rank", "kept_next", "eval_noise_updates", "dual_step"}),
        (
            {"dual": "off"},
            {
                "shift_rank",
                "kept_next",
                "eval_noise_updates",
                "dual_step",
                "alpha_init",
                "delta",
                "delta_unit",
                "delta_updates",
            },
        ),
        (
            {"dual": "off", "state_cap": 2.0},
            {"shift_rank", "kept_next", "eval_noise_updates", "dual_step", "alpha_init", "delta_updates"},
        ),
        (
            {"delta": math.inf, "state_cap": 2.0},
            {
                "shift_rank",
                "kept_next",
                "eval_noise_updates",
                "dual_step",
                "alpha_init",
                "delta_unit",
                "delta_updates",
                "state_cap",
            },
        ),
    ],
)
def test_settings_that_others_leave_idle_are_named(changes, idle):
    """A grid over delta with dual=off would be one run under several names."""
    assert set(learner(**changes).ignores) == idle
