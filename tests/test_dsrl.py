"""DSRL against the released code's numbers, torch's distributions, closed forms and its own bits."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scripted import CPU, TINY, assert_same_run, identity_decoder, toy_decoder
from torch import distributions, nn
from torch.nn import functional as F

import lpds
from lpds.checkpoint import CheckpointStore
from lpds.config import DSRLNASettings, DSRLSACSettings
from lpds.decoders.wrap import wrap_decoder
from lpds.log import METRIC_KEYS, read_json_lines
from lpds.methods.dsrl import DSRLNA, DSRLSAC
from lpds.methods.gaussian import falling
from lpds.presets import resolve_settings
from lpds.tasks import TOY
from lpds.types import Batch

SMALL = {"width": 16, "depth": 1}
KINDS = {"dsrl-na": (DSRLNA, DSRLNASettings), "dsrl-sac": (DSRLSAC, DSRLSACSettings)}
both = pytest.mark.parametrize("kind", KINDS)


def learner(kind="dsrl-na", decoder=None, seed=0, **changes):
    method, settings = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)
    return method(settings(**(SMALL | changes)), decoder or identity_decoder(), generator=generator, device=CPU)


def noise(method, size, generator):
    return {name: torch.randn(shape, generator=generator) for name, shape in method.noise_shapes(size).items()}


def batch(method, size, generator, discount=0.9):
    spec = method.decoder.spec

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    o, d, a = spec.obs_size, spec.latent_size, spec.action_size
    none = torch.empty(size, 0, d), torch.empty(size, 0, a)
    extra = {name: draw(size, *shape) for name, shape in method.extras.items()}
    return Batch(draw(size, o), draw(size, a), draw(size), torch.full((size,), discount), draw(size, o), *none, extra)


class Drawn:
    """An experience that makes up its batches."""

    def __init__(self, method, size=16, seed=0, discount=0.9):
        self.method, self.size, self.discount = method, size, discount
        self.generator = torch.Generator().manual_seed(seed)
        self.draws = 0

    def draw(self):
        self.draws += 1
        data = batch(self.method, self.size, self.generator, self.discount)
        return data, noise(self.method, self.size, self.generator)


def weights(module):
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


# -- the released code's numbers -------------------------------------------------------------------------------------------


class Golden:
    """The stored update, in this package's layout."""

    def __init__(self, folder, box):
        self.tensors = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
        self.meta = json.loads((folder / "meta.json").read_text())
        inner = self.tensors["decoder"]

        def decode(obs, w):
            h = torch.cat([obs, w.flatten(1)], 1)
            for layer in (0, 2, 4):
                h = torch.tanh(F.linear(h, inner[f"net.{layer}.weight"], inner[f"net.{layer}.bias"]))
            return h.unflatten(1, (4, 3))

        decoder = wrap_decoder(decode, obs_shape=(11,), latent_shape=(4, 3), action_shape=(4, 3), name="golden")
        settings = DSRLNASettings(box=box, width=128)
        self.method = DSRLNA(settings, decoder, generator=torch.Generator(), device=CPU)
        m = self.method
        self.networks = {"actor": m.policy.net, "critic": m.critic, "critic_target": m.slow, "critic_noise": m.q_latent}
        with torch.no_grad():
            for network, values in self.stored("weights_before").items():
                for name, parameter in self.networks[network].named_parameters():
                    parameter.copy_(values[name])
            m.log_alpha.copy_(self.tensors["weights_before"]["log_ent_coef"])

    def stored(self, which):
        """Stacked as in an ensemble: {network: {parameter: [n, in, out] or [n, 1, out]}}."""
        t, out = self.tensors[which], {}
        for network in self.networks:
            if not any(key.startswith(network + ".") for key in t):
                continue
            trunks = ["actor.latent_pi"] if network == "actor" else [f"{network}.qf{i}" for i in range(2)]
            values = out[network] = {}
            for layer in range(3):
                linear, norm = 3 * layer, 3 * layer + 1
                for ours, theirs in (("biases", f"{linear}.bias"), ("gains", f"{norm}.weight"), ("offsets", f"{norm}.bias")):
                    values[f"{ours}.{layer}"] = torch.stack([t[f"{trunk}.{theirs}"] for trunk in trunks]).unsqueeze(1)
                values[f"weights.{layer}"] = torch.stack([t[f"{trunk}.{linear}.weight"].T for trunk in trunks])
            if network == "actor":
                heads = [tuple(t[f"actor.{head}.{part}"] for part in ("weight", "bias")) for head in ("mu", "log_std")]
                pairs = [tuple(torch.cat(parts) for parts in zip(*heads, strict=True))]
            else:
                pairs = [(t[f"{trunk}.9.weight"], t[f"{trunk}.9.bias"]) for trunk in trunks]
            values["weights.3"] = torch.stack([weight.T for weight, _ in pairs])
            values["biases.3"] = torch.stack([bias for _, bias in pairs]).unsqueeze(1)
        return out

    def step(self, suffix=""):
        """One gradient step; its metrics."""
        i = {name: self.tensors["inputs"][name + suffix] for name in ("obs", "action_chunk", "reward", "done", "next_obs")}
        none = torch.empty(32, 0, 12)
        discount = 0.99 * (1.0 - i["done"].squeeze(1))
        data = Batch(i["obs"], i["action_chunk"], i["reward"].squeeze(1), discount, i["next_obs"], none, none)
        draws = {name: self.tensors["inputs"][f"eps_{eps}{suffix}"] for name, eps in (("actor", "pi"), ("next", "next"))}
        return self.method.update(data, draws)

    def distill(self, suffix=""):
        """One distillation step; its metrics."""
        obs, eps = (self.tensors["inputs"][f"distill_{name}{suffix}"] for name in ("obs", "noise"))
        data = Batch(obs, *(torch.empty(0),) * 6)
        return self.method._distill(data, {"base": eps.reshape(32, 1, 12)})

    def gradients(self):
        """Of the last step of each optimiser."""
        return {
            name: {key: parameter.grad for key, parameter in network.named_parameters()}
            for name, network in self.networks.items()
            if name != "critic_target"
        }

    def compare_weights(self, which, atol, gradients):
        for network, values in self.stored(which).items():
            for name, parameter in self.networks[network].named_parameters():
                gap = (parameter.detach() - values[name]).abs()
                if network in gradients:
                    gap = gap[gradients[network][name].abs() > 1e-5]
                assert float(gap.max()) <= atol, (network, name, float(gap.max()))
        log_alpha = self.tensors[which]["log_ent_coef"]
        torch.testing.assert_close(self.method.log_alpha.detach(), log_alpha, atol=atol, rtol=0)


@pytest.fixture
def recorded(golden):
    return Golden(golden("dsrl_na"), 1.5)


def close(ours, theirs, rtol=1e-5, atol=1e-5):
    torch.testing.assert_close(ours.detach(), theirs.reshape(ours.shape), rtol=rtol, atol=atol)


def test_forward_of_the_released_code(recorded):
    m, i, o = recorded.method, recorded.tensors["inputs"], recorded.tensors["outputs"]
    with torch.no_grad():
        mean, log_std = m.policy(i["obs"])
        a, log_prob = m.policy.sample(i["obs"], i["eps_pi"])
        next_a, next_log_prob = m.policy.sample(i["next_obs"], i["eps_next"])
        decoded = m._asked(i["next_obs"], next_a)
        q = m._value(m.critic, i["obs"], i["action_chunk"])
        next_q = m._value(m.slow, i["next_obs"], decoded).amin(0)
    close(mean, o["mean"])
    close(log_std, o["log_std"])
    close(a, o["actions_pi"])
    close(log_prob, o["log_prob"], atol=2e-5)
    close(log_prob.double(), o["log_prob_f64"], atol=2e-5)
    close(next_a, o["next_latent_scaled"])
    close(1.5 * next_a, o["next_latent_unscaled"])
    close(next_log_prob, o["next_log_prob"], atol=2e-5)
    close(decoded, o["next_decoded_action"].flatten(1))
    close(q, o["current_q"].T)
    alpha = float(o["ent_coef"])
    target = i["reward"][:, 0] + (1 - i["done"][:, 0]) * 0.99 * (next_q - alpha * next_log_prob)
    close(target, o["target_q"])
    m.policy.deterministic = True
    eps = i["eps_pi"].unflatten(1, (4, 3))
    close(m.policy.latent(i["obs"], eps, 1.0).flatten(1), o["deterministic_latent_unscaled"])


def test_losses_and_gradients_of_the_released_code(recorded):
    o = recorded.tensors["outputs"]
    out = recorded.step() | recorded.distill()
    assert float(out["alpha"]) == pytest.approx(float(o["ent_coef"]), rel=1e-6)  # as it was before its own step
    assert float(out["td_loss"]) / 2 == pytest.approx(float(o["critic_loss"]), rel=1e-5)
    assert float(out["distill_loss"]) / 2 == pytest.approx(float(o["distill_loss"]), rel=1e-5)
    actor_loss = float(out["alpha"]) * float(o["log_prob"].mean()) - float(out["q_latent"])
    assert actor_loss == pytest.approx(float(o["actor_loss"]), rel=2e-5)
    ours, theirs = recorded.gradients(), recorded.stored("grads_1")
    assert theirs.keys() == {"actor", "critic", "critic_noise"}
    for network, values in theirs.items():
        for name, value in values.items():
            torch.testing.assert_close(ours[network][name], value, rtol=1e-3, atol=2e-6)
    close(recorded.method.log_alpha.grad, recorded.tensors["grads_1"]["log_ent_coef"])


def test_weights_after_one_update(recorded):
    recorded.step()
    recorded.distill()
    recorded.compare_weights("weights_after_1", 2e-6, recorded.stored("grads_1"))


def test_weights_after_two_gradient_and_two_distillation_steps(recorded):
    outs = [recorded.step(), recorded.step("_2")]
    outs = [a | b for a, b in zip(outs, [recorded.distill(), recorded.distill("_2")], strict=True)]
    values = recorded.meta["values_after_2x2"]
    for ours, theirs in (("td_loss", "critic_loss"), ("distill_loss", "noise_critic_loss")):
        assert sum(float(out[ours]) / 2 for out in outs) / 2 == pytest.approx(values[f"train/{theirs}"], rel=2e-5)
    recorded.compare_weights("weights_after_2x2", 4e-6, recorded.stored("grads_1"))


def test_the_box_of_the_released_launcher(golden):
    """The same inputs with b = 1, the default of DSRL-NA."""
    recorded = Golden(golden("dsrl_na"), DSRLNASettings().box)
    i, o = recorded.tensors["inputs"], recorded.tensors["outputs_box1"]
    with torch.no_grad():
        decoded = recorded.method._asked(i["next_obs"], recorded.method.policy.sample(i["next_obs"], i["eps_next"])[0])
    close(decoded, o["next_decoded_action"].flatten(1))
    out = recorded.step() | recorded.distill()
    assert float(out["td_loss"]) / 2 == pytest.approx(float(o["critic_loss"]), rel=1e-5)
    assert float(out["distill_loss"]) / 2 == pytest.approx(float(o["distill_loss"]), rel=1e-5)


# -- the policy ------------------------------------------------------------------------------------------------------------


def spread(policy, gain=1.0, seed=5):
    """Give the heads something to say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (policy.net.weights[-1], policy.net.biases[-1]):
            parameter.copy_(gain * torch.randn(parameter.shape, generator=generator))
    return policy


def states(spec, count=64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *spec.latent_shape)
    return torch.randn(count, spec.obs_size, generator=generator), torch.randn(shape, generator=generator)


def test_the_log_density_is_that_of_torch():
    """In float64, but for the released code's 1e-6 in log(1 - a^2)."""
    policy = spread(learner().policy, 0.1).double()
    obs, eps = states(policy.spec)
    obs, eps = obs.double(), eps.double()
    a, log_prob = policy.sample(obs, eps.flatten(1))
    mean, log_std = policy(obs)
    normal = distributions.Normal(mean, log_std.exp())
    squashed = distributions.TransformedDistribution(normal, [distributions.TanhTransform(cache_size=1)])
    apart = torch.log1p(1e-6 / (1.0 - a.square())).sum(1)
    torch.testing.assert_close(log_prob, squashed.log_prob(a).sum(1) - apart, rtol=1e-8, atol=1e-8)


@both
def test_the_box_is_respected_and_scale_zero_is_the_frozen_policy_to_the_bit(kind):
    decoder = toy_decoder()
    policy = spread(learner(kind, decoder, box=0.7).policy, gain=5.0)
    obs, eps = states(decoder.spec)
    w = policy.latent(obs, eps, 1.0).detach()
    assert float(w.abs().max()) <= 0.7
    assert float(w.abs().max()) > 0.6
    frozen = policy.act(decoder, obs, eps.unsqueeze(1), 0.0)
    assert torch.equal(frozen.latent, eps)
    assert torch.equal(frozen.action, decoder(obs, eps))
    torch.testing.assert_close(policy.latent(obs, eps, 0.6).detach(), 0.8 * eps + 0.6 * w)
    assert policy.shift(obs) is None


def test_the_latent_is_the_sample_that_the_losses_see():
    policy = spread(learner(box=2.0).policy)
    obs, eps = states(policy.spec)
    a, _ = policy.sample(obs, eps.flatten(1))
    assert torch.equal(policy.latent(obs, eps, 1.0).flatten(1), 2.0 * a)


def test_masked_columns_keep_the_base_noise():
    decoder = identity_decoder((2, 2), free=(True, False))
    policy = spread(learner(decoder=decoder, box=0.5).policy)
    obs, eps = states(decoder.spec)
    for scale in (1.0, 0.5):
        w = policy.latent(obs, eps, scale)
        assert torch.equal(w[..., 1], eps[..., 1])
        assert not torch.isclose(w[..., 0], eps[..., 0]).all()
    a, log_prob = policy.sample(obs, eps.flatten(1))
    assert torch.equal(a.unflatten(1, (2, 2))[..., 1], eps[..., 1] / 0.5)
    mean, log_std = (value.unflatten(1, (2, 2))[..., 0] for value in policy(obs))
    free = a.unflatten(1, (2, 2))[..., 0]
    gauss = distributions.Normal(mean, log_std.exp()).log_prob(mean + log_std.exp() * eps[..., 0])
    torch.testing.assert_close(log_prob, (gauss - torch.log(1 - free**2 + 1e-6)).sum(1), rtol=1e-4, atol=1e-4)


@both
def test_deterministic_evaluation_and_sampled_behaviour_share_their_weights(kind):
    method = learner(kind, deterministic_eval=True)
    obs, eps = states(method.decoder.spec)
    for _ in method.learn(Drawn(method), 2):
        pass
    mean, _ = method.policy(obs)
    w = method.policy.latent(obs, eps, 1.0)
    assert torch.equal(w.flatten(1), method.settings.box * torch.tanh(mean))
    assert torch.equal(w, method.policy.latent(obs, -eps, 1.0))
    sampled = method.behaviour.latent(obs, eps, 1.0)
    assert torch.equal(sampled.flatten(1), method.settings.box * method.policy.sample(obs, eps.flatten(1))[0])
    assert torch.equal(method.policy.latent(obs, eps, 0.0), eps)


# -- the updates -----------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("reward_scale", [1.0, 0.25])
def test_td_target_by_hand(kind, reward_scale):
    """y = c r + discount (min_i Qslow_i(s', x') - alpha log pi), x' the decoded chunk (NA) or the scaled latent (SAC)."""
    decoder = wrap_decoder(
        lambda s, w: 2.0 * w + s.unsqueeze(1), obs_shape=(2,), latent_shape=(1, 2), action_shape=(1, 2), name="affine"
    )
    method = learner(kind, decoder, box=3.0, temperature=0.3)
    method.calibrate(torch.zeros(2, 2), torch.zeros(2, 2), reward_scale)
    generator = torch.Generator().manual_seed(3)
    data = replace(batch(method, 5, generator), discount=torch.tensor([0.9, 0.0, 0.5, 0.9, 1.0]))
    drawn = noise(method, 5, generator)
    with torch.no_grad():
        for parameter in method.critic.parameters():  # at the start the slow one is its copy
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    before = weights(method.critic)
    with torch.no_grad():
        a, log_prob = method.policy.sample(data.next_obs, drawn["next"])
        asked = 2.0 * (3.0 * a) + data.next_obs if kind == "dsrl-na" else a
        done = data.action if kind == "dsrl-na" else data.extra["latent"]
        next_q = method.slow(torch.cat([data.next_obs, asked], 1)).squeeze(-1).amin(0)
        y = reward_scale * data.reward + data.discount * (next_q - 0.3 * log_prob)
        q = method.critic(torch.cat([data.obs, done], 1)).squeeze(-1)
    out = method.update(data, drawn)
    assert float(out["td_loss"]) == pytest.approx(float((q - y).square().sum(0).mean()) / reward_scale**2, rel=1e-5)
    assert float(out["q_action"]) == pytest.approx(float(q.mean()) / reward_scale, rel=1e-5)
    assert float(out["alpha"]) == pytest.approx(0.3 / reward_scale)
    assert not same(before, weights(method.critic))


@both
def test_a_fixed_temperature_never_moves_and_a_free_one_follows_the_entropy(kind):
    method = learner(kind, temperature=0.3)
    start = method.log_alpha.detach().clone()
    outs = list(method.learn(Drawn(method), 10))
    assert torch.equal(method.log_alpha.detach(), start)
    assert all(float(out["alpha"]) == pytest.approx(0.3) for out in outs)
    for target, sign in ((-50.0, -1.0), (50.0, 1.0)):  # the entropy is above the one, below the other
        method = learner(kind, target_entropy=target)
        assert float(next(iter(method.learn(Drawn(method), 1)))["alpha"]) == 1.0
        assert math.copysign(1.0, float(method.log_alpha.detach())) == sign


@pytest.mark.parametrize(("final", "said"), [(0.0, False), (-0.7, False), (-0.8, True)])
def test_a_temperature_that_only_fell_is_told(final, said):
    """Entropy decided until then: on Door DSRL stood still for 80,000 of 100,000 steps, and nothing said why."""
    log_alpha = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.Adam([log_alpha], lr=0.01)
    assert falling(log_alpha, optimiser) == ""
    for _ in range(100):  # a gradient of one sign: Adam goes its rate at each step, whatever the size
        log_alpha.grad = torch.full((1,), 7.0)
        optimiser.step()
    assert float(log_alpha.detach()) == pytest.approx(-1.0, abs=1e-3)
    with torch.no_grad():
        log_alpha.fill_(final)
    line = falling(log_alpha, optimiser)
    assert bool(line) == said
    assert (f"from 1 to {math.exp(final):.2g}" in line) == said


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_a_run_of_which_the_temperature_decided_says_so(tmp_path, temperature):
    given = TINY | {"temperature": temperature}
    run = lpds.steer("toy", "dsrl-na", decoder=toy_decoder(), out=tmp_path / "run", **given)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert ("caveat" in summary) == (temperature == 0.0)


@both
def test_critics_only_leaves_actor_and_temperature_to_the_bit(kind):
    method = learner(kind)
    draws = Drawn(method)
    list(method.learn(draws, 2))
    parts = {name: weights(module) for name, module in method.state.modules.items()}
    alpha = method.log_alpha.detach().clone()
    out = method.update(*draws.draw(), critics_only=True)
    assert torch.equal(method.log_alpha.detach(), alpha)
    moved = {name for name, module in method.state.modules.items() if not same(parts[name], weights(module))}
    assert moved == {"critic", "slow"} | ({"q_latent"} if kind == "dsrl-na" else set())
    assert ("distill_loss" in out) == (kind == "dsrl-na")


@both
def test_fits_bootstrap_with_the_frozen_policy_whose_returns_they_are_fitted_to(kind):
    """Base noise, not the untrained actor's, and no entropy."""
    method = learner(kind, temperature=0.3, box=2.0)
    generator = torch.Generator().manual_seed(3)
    data, drawn = batch(method, 5, generator), noise(method, 5, generator)
    with torch.no_grad():
        eps = drawn["next"]
        asked = method._decode(data.next_obs, eps) if kind == "dsrl-na" else eps / 2.0
        done = data.action if kind == "dsrl-na" else data.extra["latent"]
        y = data.reward + data.discount * method.slow(torch.cat([data.next_obs, asked], 1)).squeeze(-1).amin(0)
        q = method.critic(torch.cat([data.obs, done], 1)).squeeze(-1)
    out = method.update(data, drawn, critics_only=True)
    assert float(out["td_loss"]) == pytest.approx(float((q - y).square().sum(0).mean()), rel=1e-5)


def test_critics_only_regresses_on_the_returns_of_the_warm_up():
    """Monte-Carlo batches, discount 0: Q^A learns r(s, a), and Q^W the same at the noises behind it."""
    method = learner(lr=3e-3, width=64)
    generator = torch.Generator().manual_seed(0)
    g = torch.tensor([1.0, -0.5])
    for _ in range(600):
        data = batch(method, 64, generator, discount=0.0)
        data = replace(data, reward=data.action @ g)
        out = method.update(data, noise(method, 64, generator), critics_only=True)
    assert float(out["td_loss"]) < 0.1
    assert float(out["distill_loss"]) < 0.1
    obs, eps = states(method.decoder.spec)
    q = method._latent_value(obs, eps.flatten(1)).detach().mean(0)
    assert float(torch.corrcoef(torch.stack([q, eps.flatten(1) @ g]))[0, 1]) > 0.98


def test_distillation_is_at_the_base_noise_in_the_decoders_units_and_not_clipped():
    seen = []
    decoder = wrap_decoder(
        lambda s, w: (seen.append(w.clone()), 3.0 * w)[1], obs_shape=(2,), latent_shape=(1, 2), action_shape=(1, 2), name="t"
    )
    method = learner(decoder=decoder, box=0.5, distill_noises=3)
    generator = torch.Generator().manual_seed(0)
    data, drawn = batch(method, 6, generator), noise(method, 6, generator)
    eps = drawn["base"].flatten(0, 1)
    obs = data.obs.repeat_interleave(3, 0)
    with torch.no_grad():
        target = method.critic(torch.cat([obs, 3.0 * eps], 1)).squeeze(-1)
        q = method.q_latent(torch.cat([obs, eps / 0.5], 1)).squeeze(-1)
    seen.clear()
    out = method._distill(data, drawn)
    assert torch.equal(seen[0].flatten(1), eps)
    assert float(out["distill_loss"]) == pytest.approx(float((q - target).square().sum(0).mean()), rel=1e-5)
    assert float(out["distill_gap_base"]) == pytest.approx(float((q - target).mean()), rel=1e-4)


@both
def test_a_block_is_gradient_steps_then_distillation_steps(kind):
    method = learner(kind)
    assert method.block_rounds(1000) == 2
    draws, order = Drawn(method), []
    inner = {name: getattr(method, name, None) for name in ("_td", "_distill")}
    for name, call in inner.items():
        if call is not None:
            setattr(method, name, lambda *args, name=name, call=call, **more: (order.append(name), call(*args, **more))[1])
    outs = list(method.learn(draws, 20))
    wanted = ["_td"] * 20 + (["_distill"] * 10 if kind == "dsrl-na" else [])
    assert order == wanted
    assert draws.draws == len(wanted)  # each has a batch of its own
    assert len(outs) == 20  # what a run counts as updates
    assert {key for out in outs for key in out} <= set(METRIC_KEYS)
    assert set(method.diagnose(*draws.draw())) <= set(METRIC_KEYS)
    assert [index for index, out in enumerate(outs) if "distill_loss" in out] == ([19] if kind == "dsrl-na" else [])


@both
def test_no_gradient_and_no_step_reaches_the_decoder(kind):
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    fn = lambda s, w: net(torch.cat([s, w.squeeze(1)], 1)).unsqueeze(1)  # noqa: E731
    decoder = wrap_decoder(fn, obs_shape=(2,), latent_shape=(1, 2), action_shape=(1, 2), name="net")
    method, before = learner(kind, decoder), weights(net)
    list(method.learn(Drawn(method), 3))
    assert same(before, weights(net))
    assert all(parameter.grad is None for parameter in net.parameters())


@both
def test_equal_to_the_bit_and_exactly_resumable(kind):
    a, b, c = (learner(kind, seed=seed) for seed in (0, 0, 1))
    list(a.learn(Drawn(a), 3))
    list(b.learn(Drawn(b), 3))
    assert same(a.tensors(), b.tensors())
    c.load_tensors(a.tensors())
    for method in (a, c):
        list(method.learn(Drawn(method, seed=7), 4))
    assert same(a.tensors(), c.tensors())


@both
def test_the_bandit_is_learned(kind):
    """Discount 0, r = -|w - g|^2 through the identity decoder: the policy's mean goes to g, within the box."""
    method = learner(kind, lr=3e-3, width=32, depth=2, temperature=0.05, box=1.5)
    generator = torch.Generator().manual_seed(0)
    g = torch.tensor([0.9, -0.6])
    for _ in range(600):
        data = batch(method, 64, generator, discount=0.0)
        extra = {"latent": data.action / method.settings.box} if kind == "dsrl-sac" else {}
        data = replace(data, reward=-(data.action - g).square().sum(1), extra=extra)
        method.update(data, noise(method, 64, generator))
        if kind == "dsrl-na":
            method._distill(data, noise(method, 64, generator))
    obs, eps = states(method.decoder.spec, 256)
    w = method.policy.latent(obs, eps, 1.0).detach().flatten(1)
    assert float((w.mean(0) - g).norm()) < 0.25
    assert float(w.std(0).max()) < 0.4


@both
def test_inputs_are_scaled_unless_they_are_asked_for_raw(kind):
    obs = 100.0 + 20.0 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    raw, scaled = learner(kind, input_scaling=False), learner(kind)
    for method in (raw, scaled):
        method.calibrate(obs, obs, 1.0)
    assert torch.equal(raw.policy.scaling(obs), obs)
    assert float(scaled.policy.scaling(obs).std()) == pytest.approx(1.0, rel=1e-2)
    if kind == "dsrl-na":
        assert torch.equal(raw.action_scaling(obs), obs)
        assert float(scaled.action_scaling(obs).mean()) == pytest.approx(0.0, abs=1e-4)


def test_the_stored_latent_leads_through_the_decoder_to_the_executed_chunk():
    decoder = toy_decoder()
    method = learner("dsrl-sac", decoder, box=1.7)
    assert method.extras == {"latent": (8,)}
    obs, eps = states(decoder.spec)
    for scale in (0.0, 0.5, 1.0):
        made = method.behaviour.act(decoder, obs, eps.unsqueeze(1), scale)
        again = decoder(obs, 1.7 * made.extra["latent"].unflatten(1, (4, 2)))
        torch.testing.assert_close(again, made.action, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(method.behaviour.act(decoder, obs, eps[:, None], 0.0).extra["latent"], eps.flatten(1) / 1.7)


@both
@pytest.mark.parametrize("options", [{}, {"deterministic_eval": True, "input_scaling": False, "box": 2.5}])
def test_a_saved_policy_opens_to_the_bit(kind, options):
    method = learner(kind, toy_decoder(), **options)
    obs, eps = states(method.decoder.spec)
    method.calibrate(3.0 * obs + 1.0, torch.zeros(64, 8), 1.0)
    list(method.learn(Drawn(method), 2))
    settings = json.loads(json.dumps(method.policy_settings()))
    opened = type(method).open_policy(method.decoder, settings, method.policy_tensors())
    for scale in (0.0, 0.3, 1.0):
        assert torch.equal(opened.latent(obs, eps, scale), method.policy.latent(obs, eps, scale).detach())
    assert not any(parameter.requires_grad for parameter in opened.parameters())


# -- settings and whole runs -----------------------------------------------------------------------------------------------


def test_defaults_and_refusals(refused):
    for kind, box in (("dsrl-na", 1.0), ("dsrl-sac", 1.5)):
        run, own = resolve_settings(TOY, kind, {})
        assert (run.updates_per_decision, run.warmup_fits, run.reward_scale, own.box) == (2.5, 0, 1.0, box)
        assert resolve_settings(TOY, kind, {"warmup_fits": 7})[0].warmup_fits == 7
    for changes in ({"box": 101.0}, {"temperature": -0.1}, {"target_entropy": math.inf}):
        with refused(next(iter(changes)), str(next(iter(changes.values())))):
            DSRLSACSettings(**changes)
    for changes in ({"box": 0.0}, {"distill_share": 0.0}, {"update_every": 0}, {"activation": "selu"}):
        with refused(next(iter(changes))):
            DSRLNASettings(**changes)


RUN = TINY | {"steps": 400, "warmup_fits": 3, "width": 8}


@both
def test_a_run_and_its_resume_to_the_bit(kind, tmp_path, monkeypatch):
    decoder = toy_decoder()
    run = lpds.steer("toy", kind, decoder=decoder, out=tmp_path / "whole", **RUN)
    assert run.finished
    rows = read_json_lines(tmp_path / "whole" / "metrics.jsonl")
    last = rows[-1]
    keys = ["q_action", "q_latent", "td_loss", "alpha", "w_norm"]
    keys += ["distill_loss", "distill_gap_base", "distill_gap_steered"] if kind == "dsrl-na" else []
    assert all(any(row[key] is not None for row in rows) for key in keys)
    assert last["updates"] > 100
    frozen = lpds.evaluate(decoder, task="toy", episodes=3, seed=0)
    assert np.array_equal(run.frozen.returns, frozen.returns)

    save, count = CheckpointStore.save, 0

    def save_and_fall(self, *args):
        nonlocal count
        save(self, *args)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointStore, "save", save_and_fall)
        with pytest.raises(KeyboardInterrupt):
            lpds.steer("toy", kind, decoder=toy_decoder(), out=tmp_path / "cut", **RUN)
    assert lpds.resume(tmp_path / "cut", decoder=toy_decoder(), quiet=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@both
def test_the_untrained_actor_is_what_a_run_would_have_acted_by_before_its_first_update(kind, tmp_path):
    """A run is set against it: a squashed Gaussian alone has less than all of the noise, which by itself may be worth much."""
    method = learner(kind)
    generator = torch.Generator().manual_seed(1)
    obs, eps = torch.randn(5, method.decoder.spec.obs_size, generator=generator), torch.randn(5, 1, 2, generator=generator)
    method.calibrate(3.0 + obs, torch.randn(5, method.decoder.spec.action_size), 1.0)
    before = method.policy.latent(obs, eps, 1.0)
    assert torch.equal(method.start.latent(obs, eps, 1.0), before)
    list(method.learn(Drawn(method), 4))
    assert torch.equal(method.start.latent(obs, eps, 1.0), before)
    assert not torch.equal(method.policy.latent(obs, eps, 1.0), before)
    run = lpds.steer("toy", kind, decoder=toy_decoder(), out=tmp_path / "run", **RUN)
    cut = lpds.steer("toy", kind, decoder=toy_decoder(), out=tmp_path / "cut", **RUN | {"steps": 200})
    longer = lpds.resume(cut.folder, steps=400, decoder=toy_decoder(), quiet=True)
    assert "against what it starts from, untrained" in run.verdict()
    np.testing.assert_array_equal(run.start.returns, longer.start.returns)
