"""DPPO, DQL and IDQL against that project's own numbers: chains, log-densities, losses, gradients, choices."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from lpds.decoders.diffusion import cosine_alphas_cumprod
from lpds.decoders.network import DenoisingMLP, shape_of
from lpds.methods.chain import DenoisingChain
from lpds.methods.critics import TwinQ, ValueMLP, twin_loss
from lpds.methods.dppo import DPPOSettings, policy_loss, value_loss
from lpds.methods.dql import actor_loss, q_term
from lpds.methods.idql import expectile_loss, explore
from lpds.nn import part, polyak


def close(found, expected, atol=0.0, rtol=0.0):
    torch.testing.assert_close(found.double(), expected.double(), atol=atol, rtol=rtol)


class Reference:
    """The folder, its networks, and a chain of them."""

    def __init__(self, folder, hopper):
        self.facts = json.loads((folder / "meta.json").read_text())
        self.critics = load_file(folder / "critics.safetensors")
        names = ("chain_io", "ppo_inputs", "ppo_outputs", "dql_inputs", "dql_outputs", "idql_inputs", "idql_outputs")
        for name in names:
            setattr(self, name, load_file(folder / f"{name}.safetensors"))
        self.weights = torch.load(hopper / "state_3000.pt", weights_only=True)

    def net(self, which):
        weights = part(self.weights[which], "network.")
        net = DenoisingMLP(shape_of(weights, "relu"))
        net.load_state_dict(weights)
        return net

    def chain(self, *, tuned):
        config = self.facts["config"]
        options = {"trained_steps": config["ft_denoising_steps"], "frozen": self.net("ema")} if tuned else {}
        return DenoisingChain(
            self.net("model" if tuned else "ema"),
            cosine_alphas_cumprod(config["K"]),
            config["denoised_clip_value"],
            min_std=config["min_sampling_denoising_std"],
            **options,
        )

    def value(self):
        net = ValueMLP(11, 256, 3, torch.Generator())
        net.load_state_dict(part(self.critics, "critic_v.Q1."))
        return net

    def twin(self, name):
        net = TwinQ(23, 256, 3, torch.Generator())
        wanted = {}
        for key, value in part(self.critics, f"{name}.").items():
            head, _, index, _, kind = key.split(".")  # Q1.moduleList.2.linear_1.weight -> heads.0.4.weight
            wanted[f"heads.{int(head[1]) - 1}.{2 * int(index)}.{kind}"] = value
        net.load_state_dict(wanted)
        return net


@pytest.fixture(scope="module")
def ref(golden):
    return Reference(golden("dppo_rl"), golden("dppo_hopper"))


def draws(start, steps):
    """[B, H, A] and [K, B, H, A] to [B, K + 1, C]."""
    return torch.cat([start[None], steps]).transpose(0, 1).flatten(2)


def norms(found, outputs, prefix):
    """Gradient norms of a module's named parameters against the stored ones."""
    wanted = part({key: value for key, value in outputs.items() if key.startswith(prefix)}, prefix)
    named = {name.replace("heads.0.", "Q1.").replace("heads.1.", "Q2."): p for name, p in found.named_parameters()}
    for name, value in wanted.items():
        short = name
        if ".moduleList." in name:
            head, _, index, _, kind = name.split(".")
            short = f"{head}.{2 * int(index)}.{kind}"
        short = short.removeprefix("Q1.") if short not in named else short
        close(named[short].grad.norm(), value, rtol=1e-3, atol=1e-7)
    assert len(wanted) == len(named)


# -- the chain -----------------------------------------------------------------------------------------------------------


def test_deviations(ref):
    chain = ref.chain(tuned=True)
    close(chain.sigma, ref.chain_io["ddpm_sigma"], 1e-6)
    close(chain.std, ref.chain_io["sampling_std"], 1e-6)


@pytest.mark.parametrize(("evaluation", "prefix"), [(False, ""), (True, "eval_")])
def test_chains(ref, evaluation, prefix):
    io, chain = ref.chain_io, ref.chain(tuned=True)
    with torch.no_grad():
        path = chain.sample(io["state"].flatten(1), draws(io["init_noise"], io["step_noise"]), evaluation=evaluation)
    close(path, io[f"{prefix}chains"].flatten(2), 1e-5)
    close(path[:, -1], io[f"{prefix}action"].flatten(1), 1e-5)


def test_the_first_mean(ref):
    """In float64: the prediction enters by a factor of 406 there, so float32's last bit would be more than the tolerance."""
    io, chain = ref.chain_io, ref.chain(tuned=True)
    net = chain.frozen.double()
    net.time_embedding.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    x, obs = (io[name].flatten(1).double() for name in ("init_noise", "state"))
    with torch.no_grad():
        mean = chain.mean(net, x, torch.full((16,), 19), obs)
    assert mean.dtype == torch.float64
    close(mean, io["mean_t19"].flatten(1), 1e-5)


@pytest.mark.parametrize(("net", "name"), [("model", "logprobs"), ("ema", "logprobs_base")])
def test_log_densities(ref, net, name):
    io, chain = ref.chain_io, ref.chain(tuned=True)
    chain.net = ref.net(net)
    path, obs = io["chains"].flatten(2), io["state"].flatten(1)
    with torch.no_grad():
        for k in range(10):
            found = chain.log_prob(path[:, k], path[:, k + 1], torch.full((16,), k), obs)
            close(found, io[name][:, k].flatten(1), 1e-3)


def test_values(ref):
    with torch.no_grad():
        close(ref.value()(ref.chain_io["state"].flatten(1)), ref.chain_io["value"], 1e-5)


# -- DPPO ----------------------------------------------------------------------------------------------------------------


def settings(ref, case):
    """The settings that a case of the reference names in that project's words."""
    yaml = ref.facts["config"]["ppo_cases"][case]
    value_clip = {} if yaml["clip_vloss_coef"] is None else {"value_clip": yaml["clip_vloss_coef"]}
    return DPPOSettings(
        denoising_discount=yaml["gamma_denoising"],
        clip=yaml["clip_ploss_coef"],
        clip_base=yaml["clip_ploss_coef_base"],
        clip_rate=yaml["clip_ploss_coef_rate"],
        normalise_advantage=yaml["norm_adv"],
        advantage_low=yaml["clip_advantage_lower_quantile"],
        advantage_high=yaml["clip_advantage_upper_quantile"],
        **value_clip,
    )


@pytest.mark.parametrize(("case", "horizon"), [("hopper_yaml", 4), ("schedule", 4), ("schedule", 2), ("no_norm_adv", 4)])
def test_ppo(ref, case, horizon):
    data, outputs, c, name = ref.ppo_inputs, ref.ppo_outputs, settings(ref, case), f"{case}_h{horizon}"
    chain, critic = ref.chain(tuned=True), ref.value()
    obs, k = data["state"].flatten(1), data["denoising_index"]
    new = chain.log_prob(data["chains_prev"].flatten(1), data["chains_next"].flatten(1), k, obs)
    close(new, outputs["newlogprobs"].flatten(1), 1e-3)
    n = horizon * 3
    loss, facts = policy_loss(new[:, :n], data["oldlogprobs"].flatten(1)[:, :n], data["advantages"], k, 10, c)
    error = value_loss(critic(obs), data["returns"], data["oldvalues"], c.value_clip)
    close(loss.detach(), outputs[f"{name}.pg_loss"], rtol=1e-4)
    close(error.detach(), outputs[f"{name}.v_loss"], rtol=1e-4)
    told = ref.facts["values"][name]
    assert float(facts["kl"]) == pytest.approx(told["approx_kl"], rel=1e-3)
    assert float(facts["ratio"]) == pytest.approx(told["ratio_mean"], rel=1e-4)
    assert float(facts["clipped"]) == told["clipfrac"]
    (loss + 0.5 * error).backward()
    norms(chain.net, outputs, f"{name}.grad_l2.actor_ft.")
    norms(critic, outputs, f"{name}.grad_l2.critic.")


# -- DQL -----------------------------------------------------------------------------------------------------------------


def test_dql_critics(ref):
    data, outputs, chain = ref.dql_inputs, ref.dql_outputs, ref.chain(tuned=False)
    q, slow = ref.twin("critic_q"), ref.twin("target_q")
    obs, next_obs = data["state"].flatten(1), data["next_state"].flatten(1)
    with torch.no_grad():
        next_action = chain.sample(next_obs, draws(data["next_init_noise"], data["next_step_noise"]))[:, -1]
        close(next_action, outputs["next_action"].flatten(1), 1e-5)
        next_q = slow(next_obs, next_action)
        close(next_q, outputs["next_q_target"], 2e-5)
        y = data["reward"] + ref.facts["config"]["gamma"] * (1 - data["terminated"]) * next_q.amin(0)
        close(y, outputs["target_q"], 2e-5)
    now = q(obs, data["action"].flatten(1))
    close(now.detach(), outputs["current_q"], 1e-5)
    loss = twin_loss(now, y)
    close(loss.detach(), outputs["critic_loss"], rtol=1e-4)
    loss.backward()
    norms(q, outputs, "critic_grad_l2.")


def test_dql_target_average(ref):
    q, slow = ref.twin("critic_q"), ref.twin("target_q")
    polyak(list(slow.parameters()), list(q.parameters()), ref.facts["config"]["dql_target_ema"])
    close(slow.heads[0][0].weight, ref.dql_outputs["target_after_ema.Q1.moduleList.0.linear_1.weight"], 1e-7)


@pytest.mark.parametrize(("coin", "name"), [(1.3, "actor_loss_q1"), (-0.2, "actor_loss_q2")])
def test_dql_actor(ref, coin, name):
    data, outputs, chain = ref.dql_inputs, ref.dql_outputs, ref.chain(tuned=False)
    obs, q = data["state"].flatten(1), ref.twin("critic_q")
    noise, coin = draws(data["actor_init_noise"], data["actor_step_noise"]), torch.tensor([coin])
    with torch.no_grad():
        chunk = chain.sample(obs, noise)[:, -1]
        close(chunk, outputs["actor_action"].flatten(1), 1e-5)
        cloning = chain.noise_loss(chunk, data["bc_t"], data["bc_noise"].flatten(1), obs)
        close(cloning, outputs["bc_loss"], rtol=1e-4)
        close(cloning + q_term(q(obs, chunk), coin), outputs[name], rtol=1e-4)
    loss = actor_loss(chain, lambda x: q(obs, x), obs, noise, data["bc_t"], data["bc_noise"].flatten(1), coin, 1.0)
    close(loss.detach(), outputs[name], rtol=1e-4)
    loss.backward()
    norms(chain.net, outputs, f"{name}.grad_l2.")


def test_dql_evaluation(ref):
    data, chain = ref.dql_inputs, ref.chain(tuned=False)
    noise = draws(data["actor_init_noise"], data["actor_step_noise"])
    with torch.no_grad():
        path = chain.sample(data["state"].flatten(1), noise, evaluation=True)
    close(path[:, -1], ref.dql_outputs["eval_action"].flatten(1), 1e-5)


# -- IDQL ----------------------------------------------------------------------------------------------------------------


def test_idql_losses(ref):
    data, outputs, config = ref.dql_inputs, ref.idql_outputs, ref.facts["config"]
    q, slow, value, chain = ref.twin("critic_q"), ref.twin("target_q"), ref.value(), ref.chain(tuned=False)
    obs, next_obs, action = data["state"].flatten(1), data["next_state"].flatten(1), data["action"].flatten(1)
    with torch.no_grad():
        best = slow(obs, action).amin(0)
        y = data["reward"] + config["gamma"] * (1 - data["terminated"]) * value(next_obs)
        cloning = chain.noise_loss(action, data["bc_t"], data["bc_noise"].flatten(1), obs)
    advantage = best - value(obs)
    close(advantage.detach(), outputs["adv"], 1e-5)
    v_loss, q_loss = expectile_loss(advantage, config["idql_value_expectile"]), twin_loss(q(obs, action), y)
    for found, name in ((v_loss, "v_loss"), (q_loss, "q_loss"), (cloning, "actor_loss")):
        close(found.detach(), outputs[name], rtol=1e-4)
    v_loss.backward()
    norms(value, outputs, "v_grad_l2.Q1.")
    q_loss.backward()
    norms(q, outputs, "q_grad_l2.")


@pytest.mark.parametrize("kind", ["explore", "eval"])
def test_idql_choice(ref, kind):
    data, outputs, chain = ref.idql_inputs, ref.idql_outputs, ref.chain(tuned=False)
    slow, value = ref.twin("target_q"), ref.value()
    obs = data["sample_state"].flatten(1)
    rows = obs.repeat(10, 1)  # there the sample is the slow axis
    noise = draws(data["sample_init_noise"], data["sample_step_noise"])
    with torch.no_grad():
        chunks = chain.sample(rows, noise, evaluation=kind == "eval")[:, -1]
        close(chunks, outputs[f"{kind}_samples"].flatten(2).flatten(0, 1), 1e-5)
        q, v = slow(rows, chunks).amin(0).view(10, 6).T, value(obs)
    close(q.T, outputs[f"{kind}_q"], 1e-5)
    if kind == "eval":
        index = q.argmax(1)
    else:
        close(v.expand(10, 6), outputs["sample_v"], 1e-5)
        share = torch.where(q > v[:, None], 0.7, 0.3)
        share = share / share.sum(1, keepdim=True)
        close(share.T, outputs["explore_weights"], 1e-6)
        picked = data["picked_index"].flatten()
        # the uniform number in the middle of the picked candidate's interval, as a normal draw
        middle = (share.cumsum(1) - 0.5 * share)[torch.arange(6), picked]
        index = explore(q, v, 0.7, torch.special.ndtri(middle))
        assert torch.equal(index, picked)
    chosen = chunks.view(10, 6, 12)[index, torch.arange(6)]
    close(chosen, outputs[f"{kind}_action"].flatten(1), 1e-5)
