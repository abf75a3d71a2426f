"""What every method regresses on, written out here again, with slow networks that are not the fast ones and rewards of a unit.

A target that takes the fast critic for the slow one, the larger head for the smaller, s for s', or forgets the unit or the
discount of a row, is the same number right after the start, where the two are copies and the unit is 1.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from scripted import CPU, identity_decoder
from test_chain_methods import Rounds, rollout
from test_chain_methods import learner as chain_learner

from lpds.config import BestOfNSettings, LPDSSettings
from lpds.decoders.wrap import wrap_decoder
from lpds.methods.best_of_n import BestOfN
from lpds.methods.dppo import DPPOSettings, policy_loss
from lpds.methods.idql import expectile_loss
from lpds.methods.lpds import LPDS
from lpds.methods.lpds_a import LPDSA
from lpds.methods.trust_region import TrustRegion
from lpds.metrics import share_beyond
from lpds.nn import Scaling
from lpds.registry import METHOD_SETTINGS, METHODS, resolve
from lpds.types import Batch

DISCOUNT = torch.tensor([0.9, 0.0, 0.5, 1.0, 0.7, 0.0])
UNIT = 0.25


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def set_apart(*modules, seed=7):
    """Move the weights, so that a copy is one no longer."""
    generator = torch.Generator().manual_seed(seed)
    for module in modules:
        for parameter in module.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


def transitions(spec, kept=0):
    o, d, a = spec.obs_size, spec.latent_size, spec.action_size
    rows = len(DISCOUNT)
    none = torch.empty(rows, kept, d), torch.empty(rows, kept, a)
    return Batch(draw(1, rows, o), draw(2, rows, a).clamp(-1, 1), draw(3, rows), DISCOUNT, draw(4, rows, o), *none)


def noises(method, seed=5):
    return {name: draw(seed + i, *shape) for i, (name, shape) in enumerate(sorted(method.noise_shapes(len(DISCOUNT)).items()))}


# -- the chain's methods -------------------------------------------------------------------------------------------------


def chain_case(name, decoder):
    """A learner whose slow critics are not its fast ones, with a unit of rewards, transitions, and the noise of an update."""
    method = chain_learner(name, decoder)
    set_apart(method.q)
    method.reward_scale.fill_(UNIT)
    return method, transitions(decoder.spec), noises(method)


def test_dql_regresses_on_the_smaller_slow_critic_of_the_next_state(make_diffusion):
    """sum_i E (Q_i(s, a) - c r - gamma min_j Qbar_j(s', a'))^2, told in units of rewards."""
    decoder = make_diffusion()
    method, data, noise = chain_case("dql", decoder)
    normal = decoder.normaliser
    with torch.no_grad():
        obs, following = normal.observation(data.obs), normal.observation(data.next_obs)
        chunk = method.chain.sample(following, noise["next"])[:, -1]
        done = normal.normalise_action(data.action.unflatten(1, (3, 2))).flatten(1)
        q, slow = method.q(obs, done), method.q_slow(following, chunk)
        y = UNIT * data.reward + DISCOUNT * torch.minimum(slow[0], slow[1])
        loss = sum(((head - y) ** 2).mean() for head in q)
    assert float(method.update(data, noise)["td_loss"]) == pytest.approx(float(loss) / UNIT**2, rel=1e-5)


def test_idql_fits_v_to_the_smaller_slow_critic_and_q_to_v_of_the_next_state(make_diffusion):
    """V by expectile regression on min Qbar(s, a), first; then Q on c r + gamma V(s'), with the V that just moved."""
    decoder = make_diffusion()
    method, data, noise = chain_case("idql", decoder)
    normal, value = decoder.normaliser, copy.deepcopy(method.value)
    obs, following = normal.observation(data.obs), normal.observation(data.next_obs)
    done = normal.normalise_action(data.action.unflatten(1, (3, 2))).flatten(1)
    with torch.no_grad():
        slow, q = method.q_slow(obs, done), method.q(obs, done)
    expectile_loss(torch.minimum(slow[0], slow[1]) - value(obs), method.settings.expectile).backward()
    torch.optim.Adam(value.parameters(), lr=method.settings.lr).step()
    out = method.update(data, noise)
    for ours, theirs in zip(value.parameters(), method.value.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        y = UNIT * data.reward + DISCOUNT * value(following)
        loss = sum(((head - y) ** 2).mean() for head in q)
    assert float(out["td_loss"]) == pytest.approx(float(loss) / UNIT**2, rel=1e-4)


def test_dppo_fits_its_value_to_the_advantage_and_the_value_that_it_was_taken_from(make_diffusion):
    """One pass over one part: V learns GAE + V, GAE of c r with V(s'), by a loop of its own."""
    decoder = make_diffusion()
    method = chain_learner("dppo", decoder, epochs=1, minibatches=1, gae_lambda=0.8)
    method.reward_scale.fill_(UNIT)
    rows = rollout(method, decoder, lambda a: a.sum((1, 2)), rounds=5, lanes=3, discount=0.9)
    rows["over"][2, 1] = 1.0
    experience = Rounds()
    experience.rows = rows
    with torch.no_grad():
        v, following = (method.value(decoder.normaliser.observation(rows[name])) for name in ("obs", "next_obs"))
    gain = torch.zeros(5, 3)
    for lane in range(3):
        running = 0.0
        for i in reversed(range(5)):
            error = UNIT * rows["reward"][i, lane] + 0.9 * following[i, lane] - v[i, lane]
            running = error + 0.9 * 0.8 * (1.0 - rows["over"][i, lane]) * running
            gain[i, lane] = running
    for _ in range(5):
        method.observe([], [])
    (out,) = method.learn(experience, 0)
    assert float(out["td_loss"]) == pytest.approx(float(gain.square().mean()) / UNIT**2, rel=1e-4)


def test_the_noisier_a_denoising_step_the_less_it_counts():
    """With equal weights and an advantage of 1 the loss is -E g^(F - 1 - k): the last step, k = F - 1, counts whole."""
    index = torch.tensor([0, 1, 2, 2])
    same = torch.zeros(4, 6)
    c = DPPOSettings(normalise_advantage=False, denoising_discount=0.5)
    loss, _ = policy_loss(same, same, torch.ones(4), index, 3, c)
    assert float(loss) == pytest.approx(-(0.25 + 0.5 + 1.0 + 1.0) / 4)


# -- best of N -----------------------------------------------------------------------------------------------------------


def test_best_of_n_takes_the_best_candidate_of_the_slow_critics_smaller_head():
    """y = c r + gamma max_i min_j Qbar_j(s', a_i), and then Qbar <- Qbar + tau (Q - Qbar)."""
    decoder = identity_decoder((1, 2))
    settings = BestOfNSettings(target_candidates=3, width=16, depth=1, tau=0.1)
    method = BestOfN(settings, decoder, generator=torch.Generator().manual_seed(0), device=CPU)
    set_apart(method.policy.critic)
    data = transitions(decoder.spec)
    method.calibrate(3.0 + data.obs, data.action - 1.0, UNIT)
    noise = draw(9, len(DISCOUNT), 3, 1, 2)

    def heads(critic, obs, action):
        at = (obs - (3.0 + data.obs).mean(0)) / data.obs.std(0, unbiased=False)
        what = (action - (data.action - 1.0).mean(0)) / data.action.std(0, unbiased=False)
        return critic(torch.cat([at, what], 1)).squeeze(-1)

    with torch.no_grad():
        q = heads(method.policy.critic, data.obs, data.action)
        each = [heads(method.slow.critic, data.next_obs, noise[:, i].flatten(1)) for i in range(3)]
        y = UNIT * data.reward + DISCOUNT * torch.stack([torch.minimum(a, b) for a, b in each]).amax(0)
        loss = ((q[0] - y) ** 2 + (q[1] - y) ** 2).mean()
    before = [parameter.detach().clone() for parameter in method.slow.critic.parameters()]
    assert float(method.update(data, {"next": noise})["td_loss"]) == pytest.approx(float(loss) / UNIT**2, rel=1e-5)
    for old, new, fast in zip(before, method.slow.critic.parameters(), method.policy.critic.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * fast, rtol=1e-5, atol=1e-7)


def test_what_chooses_among_candidates_is_the_smaller_head():
    method = BestOfN(
        BestOfNSettings(width=16, depth=1), identity_decoder((1, 2)), generator=torch.Generator().manual_seed(0), device=CPU
    )
    obs, action = draw(1, 40, 2), draw(2, 40, 2)
    heads = method.policy.critic(torch.cat([obs, action], 1)).squeeze(-1)
    assert torch.equal(method.policy.value(obs, action), torch.minimum(heads[0], heads[1]))


# -- LP-DS ---------------------------------------------------------------------------------------------------------------


def lpds_learner(kind=LPDS, **changes):
    decoder = wrap_decoder(
        lambda s, w: torch.tanh(w + 0.5 * s.unsqueeze(1)), obs_shape=(2,), latent_shape=(1, 2), action_shape=(1, 2), name="bent"
    )
    settings = LPDSSettings(**({"width": 12, "depth": 2, "kept_noises": 0, "distill_noises": 2} | changes))
    return kind(settings, decoder, generator=torch.Generator().manual_seed(0), device=CPU)


def ensemble(net, x):
    """An ensemble's output [n, B, out] of its stacked weights, member by member."""
    out = []
    for member in range(net.members):
        h = x if x.dim() == 2 else x[member]
        for layer in range(net.depth):
            h = h @ net.weights[layer][member] + net.biases[layer][member]
            h = torch.relu((h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt())
        out.append(h @ net.weights[net.depth][member] + net.biases[net.depth][member])
    return torch.stack(out)


def test_one_whole_update_is_equations_2_3_6_and_7_in_their_order():
    """In double precision, by autograd through losses written as in the paper, each step seeing what the one before left."""
    delta, eta, tau, rate, bound = 0.7, 0.2, 0.1, 3e-3, 1.5
    method = lpds_learner(delta=delta, dual_step=eta, tau=tau, actor_lr=rate, lr=rate, noise_bound=bound)
    data, noise = transitions(method.decoder.spec), noises(method)
    method.calibrate(2.0 + 3.0 * data.obs, data.action, UNIT)
    with torch.no_grad():  # a Delta that is not zero, and slow copies that are not the fast ones
        set_apart(method.online.net, method.q_action, method.q_latent)
    ours = {name: module.double() for name, module in copy.deepcopy(method.state.modules).items()}
    before = {name: [p.detach().clone() for p in ours[name].parameters()] for name in ("q_slow", "slow_policy")}
    d = replace(data, **{name: getattr(data, name).double() for name in ("obs", "action", "reward", "discount", "next_obs")})
    z = {name: value.double() for name, value in noise.items()}
    mean, std = 2.0 + 3.0 * d.obs.mean(0), 3.0 * d.obs.std(0, unbiased=False)
    low, wide = d.action.mean(0), d.action.std(0, unbiased=False)

    def decode(obs, w):
        return torch.tanh(w + 0.5 * obs)

    def q(net, obs, what):
        return ensemble(net, torch.cat([(obs - mean) / std, what], 1)).squeeze(-1)

    def shift(net, obs):
        return bound * torch.tanh(ensemble(net.net, (obs - mean) / std)[0] / bound)

    def adam(net, loss):
        for parameter in net.parameters():
            parameter.requires_grad_(True)
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():  # Adam's first step is its rate along the gradient over its own size
            for parameter, g in zip(net.parameters(), gradients, strict=True):
                parameter.copy_(parameter - rate * g / (g.abs() + 1e-8))

    with torch.no_grad():  # (2)
        w = z["next"] + shift(ours["slow_policy"], d.next_obs)
        slow = q(ours["q_slow"], d.next_obs, (decode(d.next_obs, w) - low) / wide)
        y = UNIT * d.reward + d.discount * torch.minimum(slow[0], slow[1])
    done = q(ours["q_action"], d.obs, (d.action - low) / wide)
    td = ((done - y) ** 2).sum(0).mean()
    adam(ours["q_action"], td)
    eps, each = z["base"].flatten(0, 1), d.obs.repeat_interleave(2, 0)  # (3)
    with torch.no_grad():
        goal = q(ours["q_action"], each, (decode(each, eps) - low) / wide)
    distilled = ((q(ours["q_latent"], each, eps) - goal) ** 2).sum(0).mean()
    adam(ours["q_latent"], distilled)
    at = (z["actor"] + shift(ours["policy"], d.obs)).detach().requires_grad_()  # (6), over s, alpha = 1 of its natural size
    heads = q(ours["q_latent"], d.obs, at)
    (slope,) = torch.autograd.grad(torch.minimum(heads[0], heads[1]).sum(), at)
    s = slope.norm(dim=1).mean()
    moved = shift(ours["policy"], d.obs)
    held = (slope / s * moved).sum(1).mean() - (moved.square().sum(1).mean() / (2.0 * math.sqrt(delta)))
    mean_sq = moved.detach().square().sum(1).mean()
    adam(ours["policy"].net, -held)
    alpha = max(0.0, 1.0 + eta * (float(mean_sq) / delta - 1.0))  # (7)

    out = method.update(data, noise)
    assert float(out["td_loss"]) == pytest.approx(float(td.detach()) / UNIT**2, rel=1e-4)
    assert float(out["distill_loss"]) == pytest.approx(float(distilled.detach()) / UNIT**2, rel=1e-4)
    assert float(method.region.q_scale) == pytest.approx(float(s), rel=1e-4)
    assert float(method.region.alpha) == pytest.approx(alpha, rel=1e-5)
    for name in ("q_action", "q_latent", "policy"):
        for (key, theirs), mine in zip(method.state.modules[name].named_parameters(), ours[name].parameters(), strict=True):
            torch.testing.assert_close(theirs.double(), mine, rtol=0, atol=2e-5, msg=f"{name}.{key}")
    for name, fast in (("q_slow", "q_action"), ("slow_policy", "policy")):
        for old, new, now in zip(before[name], method.state.modules[name].parameters(), ours[fast].parameters(), strict=True):
            torch.testing.assert_close(new.double(), (1.0 - tau) * old + tau * now, rtol=0, atol=2e-5, msg=name)


def test_a_fit_bootstraps_with_the_frozen_policy_and_all_of_its_noise():
    """The warm-up's returns are of Phi(s', eps'), whatever Delta and k are by then."""
    method = lpds_learner(noise_scale=0.5)
    set_apart(method.online.net, method.slow_policy.net, method.q_action)
    data, noise = transitions(method.decoder.spec), noises(method)
    with torch.no_grad():
        chunk = torch.tanh(noise["next"] + 0.5 * data.next_obs)
        following = ensemble(method.q_slow, torch.cat([data.next_obs, chunk], 1)).squeeze(-1)
        y = data.reward + DISCOUNT * torch.minimum(following[0], following[1])
        done = ensemble(method.q_action, torch.cat([data.obs, data.action], 1)).squeeze(-1)
    out = method.update(data, noise, critics_only=True)
    assert float(out["td_loss"]) == pytest.approx(float(((done - y) ** 2).sum(0).mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["lpds", "lpds-a", "best-of-n", "dsrl-na", "dsrl-sac"])
def test_slow_copies_read_their_inputs_as_the_fast_ones_do(name):
    """A slow copy that was never calibrated would read raw numbers where its weights came from scaled ones."""
    decoder = identity_decoder((1, 2))
    settings = resolve("method", METHOD_SETTINGS, name)(width=8, depth=1)
    method = resolve("method", METHODS, name)(settings, decoder, generator=torch.Generator().manual_seed(0), device=CPU)
    obs, action = 100.0 + 5.0 * draw(1, 64, 2), -30.0 + 0.1 * draw(2, 64, 2)
    method.calibrate(obs, action, UNIT)
    scalings = [m for part in method.state.modules.values() for m in part.modules() if isinstance(m, Scaling)]
    assert scalings
    for scaling in scalings:
        rows = obs if float(scaling.mean[0]) > 0.0 else action
        torch.testing.assert_close(scaling.mean, rows.mean(0))
        torch.testing.assert_close(scaling.std, rows.std(0, unbiased=False))


def test_s_is_a_running_mean():
    """Slopes of norm 5, then 15: 5, then 5 + tau (15 - 5)."""
    region = TrustRegion(LPDSSettings(tau=0.25), 2, CPU)
    for factor, s in ((1.0, 5.0), (3.0, 7.5), (3.0, 9.375)):
        gradient = region.gradient(factor * torch.tensor([[3.0, -4.0]]), torch.zeros(1, 2))
        assert float(region.q_scale) == pytest.approx(s)
        torch.testing.assert_close(gradient, factor * torch.tensor([[3.0, -4.0]]) / s)


@pytest.mark.parametrize("kind", [LPDS, LPDSA])
def test_the_tail_of_delta_over_states(kind):
    """Squared norms of 0.1, 0.2, ... 2.0: the 95th percentile, and the share beyond a budget of 1.45."""
    method = lpds_learner(kind, delta=1.45)
    sizes = torch.linspace(0.1, 2.0, 20)
    shift = sizes.sqrt()[:, None] * torch.nn.functional.normalize(draw(1, 20, 2), dim=1)
    method.online.forward = lambda obs: shift
    data = Batch(draw(1, 20, 2), draw(2, 20, 2), draw(3, 20), torch.ones(20), draw(4, 20, 2), *[torch.empty(20, 0, 2)] * 2)
    out = method.diagnose(data, {"actor": draw(5, 20, 2)})
    assert float(out["delta_sq_p95"]) == pytest.approx(float(torch.quantile(sizes, 0.95)), rel=1e-5)
    assert float(out["delta_sq_beyond"]) == pytest.approx(share_beyond(sizes.numpy(), 1.45)) == pytest.approx(0.3)


def test_a_scaling_clips_far_outliers_and_leaves_a_constant_column_its_unit():
    scaling = Scaling(3)
    scaling.calibrate(torch.stack([1e-5 * draw(1, 500), torch.full((500,), 7.0), draw(2, 500)], 1))
    told = scaling(torch.tensor([[1.0, 8.0, 0.0], [-1.0, 6.5, 0.0]]))
    assert told[:, 0].tolist() == [10.0, -10.0]
    assert told[:, 1].tolist() == [1.0, -0.5]
