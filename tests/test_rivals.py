"""The rivals that train no decoder: golden ticket, best of n, LP-DS on the action."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scripted import CPU, TINY, assert_same_run, identity_decoder, toy_decoder

import lpds
from lpds.cli import main
from lpds.config import BestOfNSettings, GoldenTicketSettings, LPDSASettings
from lpds.decoders.base import MinMaxNormaliser
from lpds.errors import LpdsError
from lpds.methods.best_of_n import BestOfN
from lpds.methods.golden_ticket import GoldenTicket
from lpds.methods.lpds_a import LPDSA
from lpds.types import Batch

OBS = torch.zeros(5, 2)


def build(kind, settings, decoder, seed=0):
    return kind(settings, decoder, generator=torch.Generator().manual_seed(seed), device=CPU)


def transitions(obs, action, reward, discount=0.0, next_obs=None):
    none = torch.empty(len(obs), 0, action.shape[1])
    return Batch(obs, action, reward, torch.full_like(reward, discount), obs if next_obs is None else next_obs, none, none)


def test_a_column_of_actions_that_never_moves_has_a_normalised_value():
    still = MinMaxNormaliser(torch.zeros(2), torch.ones(2), torch.tensor([-1.0, 0.25]), torch.tensor([3.0, 0.25]))
    chunk = torch.tensor([[3.0, 0.25], [1.0, 0.7]])
    assert torch.equal(still.normalise_action(chunk), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(still.action(still.normalise_action(chunk))[:, 1], torch.tensor([0.25, 0.25]))


# -- golden ticket -------------------------------------------------------------------------------------------------------


def test_more_lanes_than_the_search_counts_are_one_line(refused):
    search = build(GoldenTicket, GoldenTicketSettings(tickets=2), identity_decoder())
    with refused("at most 4096", "not 4097", "num_envs"):
        search.behaviour.latent(torch.zeros(4097, 2), torch.zeros(4097, 1, 2), 1.0)


def search(tickets, worth, rounds, lanes=3, total=None):
    """Play the search against a return that is a function of the ticket alone; an episode lasts two rounds."""
    method = build(GoldenTicket, GoldenTicketSettings(tickets=tickets), identity_decoder((1, 2)))
    method.block_rounds(total or rounds)
    obs, eps = torch.zeros(lanes, 2), torch.full((lanes, 1, 2), 9.0)
    alive = []
    for number in range(rounds):
        w = method.behaviour.latent(obs, eps, 1.0)
        if number % 2 == 1:
            method.observe(list(range(lanes)), [worth(w[lane]) for lane in range(lanes)])
        list(method.learn(None, 0))
        alive.append(int(method.alive.sum()))
    return method, alive


def test_the_search_ends_with_the_best_ticket_and_halves_on_the_way():
    method, alive = search(8, lambda w: float(-w.square().sum()), 240)
    best = method.tickets.square().sum((1, 2)).argmin()
    assert int(method.best) == int(best)
    assert torch.equal(method.policy.latent(OBS, torch.ones(5, 1, 2), 1.0), method.tickets[best].expand(5, 1, 2))
    assert [alive[79], alive[80 - 2], alive[159], alive[-1]] == [4, 8, 2, 1]  # three phases: 8, 4, 2, then one is left


def test_the_search_counts_on_the_cpu_wherever_its_tickets_are():
    """A device that takes part in no arithmetic with the CPU stands for a GPU."""
    generator, settings = torch.Generator().manual_seed(0), GoldenTicketSettings(tickets=4)
    method = GoldenTicket(settings, identity_decoder((1, 2)), generator=generator, device=torch.device("meta"))
    for _ in range(3):
        method.observe([0, 1], [1.0, 2.0])
    assert int(method.plays.sum()) == 4
    assert (
        method.tickets.device.type
        == method.behaviour.latent(OBS, torch.ones(5, 1, 2, device="meta"), 1.0).device.type
        == "meta"
    )


def test_within_a_phase_every_survivor_is_played_as_often_up_to_one_episode():
    method, alive = search(8, lambda w: 0.0, 48, total=144)  # the first of three phases
    assert alive[-2] == 8
    assert int(method.plays.sum()) == 3 * (48 // 2 - 1)  # the first episode of each lane is the frozen policy's
    assert int(method.plays.max()) - int(method.plays.min()) <= 1


def test_no_ticket_is_dropped_before_it_was_played():
    """Sixteen tickets, the best drawn last, and a first phase too short to play half of them."""
    method, alive = search(16, lambda w: 0.0, 12, total=24)
    assert alive[-1] == 16
    assert int((method.plays == 0).sum()) > 0
    tickets = method.tickets
    method, alive = search(16, lambda w: float(torch.equal(w, tickets[15])), 120, total=40)
    assert torch.equal(method.policy.ticket, tickets[15])
    assert alive[-1] == 1
    assert alive == sorted(alive, reverse=True)


def test_the_episode_under_way_when_the_search_begins_is_the_frozen_policy_and_is_not_booked():
    method = build(GoldenTicket, GoldenTicketSettings(tickets=4), identity_decoder((1, 2)))
    eps = torch.randn(2, 1, 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(method.behaviour.latent(OBS[:2], eps, 1.0), eps)
    method.observe([1], [1e9])
    assert int(method.plays.sum()) == 0
    w = method.behaviour.latent(OBS[:2], eps, 1.0)
    assert torch.equal(w[0], eps[0])
    assert torch.equal(w[1], method.tickets[0])


def test_a_ticket_at_half_scale_keeps_the_variance():
    policy = build(GoldenTicket, GoldenTicketSettings(), identity_decoder((1, 2))).policy
    eps = torch.randn(5, 1, 2)
    assert torch.equal(policy.latent(OBS, eps, 0.0), eps)
    torch.testing.assert_close(policy.latent(OBS, eps, 0.6), 0.8 * eps + 0.6 * policy.ticket)


# -- best of n -----------------------------------------------------------------------------------------------------------


def test_the_candidate_with_the_largest_value_is_chosen_and_scale_zero_takes_the_first():
    decoder = identity_decoder((1, 2))
    method = build(BestOfN, BestOfNSettings(candidates=6, width=16, depth=1), decoder)
    eps = torch.randn(5, 6, 1, 2, generator=torch.Generator().manual_seed(1))
    decision = method.policy.act(decoder, OBS, eps, 1.0)
    for row in range(5):
        values = torch.stack([method.policy.value(OBS[:1], eps[row, i].flatten()[None])[0] for i in range(6)])
        assert torch.equal(decision.action[row], eps[row, values.argmax()])
    assert torch.equal(method.policy.act(decoder, OBS, eps, 0.0).action, eps[:, 0])
    with pytest.raises(LpdsError, match=r"scale must be 0 or 1 for best-of-n, .*not 0.5"):
        method.policy.act(decoder, OBS, eps, 0.5)


def test_a_scale_that_a_method_has_not_is_refused_before_the_frozen_policy_has_played(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    lpds.steer("toy", "best-of-n", decoder="toy", out=run, **TINY)
    monkeypatch.setattr("lpds.commands.runs._played", lambda *given: pytest.fail("it played"))
    assert main(["eval", str(run), "--scale", "0.5", "--episodes", "2"]) == 2
    assert "scale must be 0 or 1 for best-of-n" in capsys.readouterr().err


def test_the_target_takes_the_best_candidate_and_the_fit_to_returns_their_mean():
    decoder = identity_decoder((1, 2))
    method = build(BestOfN, BestOfNSettings(target_candidates=3, width=16, depth=1), decoder)
    batch = transitions(torch.randn(4, 2), torch.randn(4, 2), torch.randn(4), 0.9, torch.randn(4, 2))
    noise = torch.randn(4, 3, 1, 2)
    q = method.policy.heads(batch.obs, batch.action).detach()
    following = torch.stack([method.slow.value(batch.next_obs, noise[:, i].flatten(1)) for i in range(3)], 1)
    for reduced, only in ((following.mean(1), True), (following.amax(1), False)):
        again = build(BestOfN, BestOfNSettings(target_candidates=3, width=16, depth=1), decoder)
        loss = (q - batch.reward - 0.9 * reduced).square().sum(0).mean()
        assert float(again.update(batch, {"next": noise}, critics_only=only)["td_loss"]) == pytest.approx(float(loss), rel=1e-5)


def test_best_of_n_on_a_bandit_gains_what_choosing_among_n_normals_gains():
    """r = a_0: the best of N standard normals has the mean of their largest, 1.4236 for N = 8."""
    decoder = identity_decoder((1, 2))
    method = build(BestOfN, BestOfNSettings(candidates=8, width=32, depth=1, lr=3e-3), decoder)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        action = torch.randn(64, 2, generator=generator)
        batch = transitions(torch.zeros(64, 2), action, action[:, 0])
        method.update(batch, {"next": torch.zeros(64, 4, 1, 2)})
    eps = torch.randn(4000, 8, 1, 2, generator=generator)
    mean = float(method.policy.act(decoder, torch.zeros(4000, 2), eps, 1.0).action[:, 0, 0].mean())
    assert mean == pytest.approx(1.4236, abs=0.06)


# -- LP-DS on the action -------------------------------------------------------------------------------------------------


def ranged_decoder(low=(-1.0, -3.0), high=(1.0, 5.0)):
    """Decodes to latents; its actions are known to lie in a box of half ranges 1 and 4."""
    decoder = identity_decoder((1, 2))
    zeros, ones = torch.zeros(2), torch.ones(2)
    decoder.normaliser = MinMaxNormaliser(zeros, ones, torch.tensor(low), torch.tensor(high))
    return decoder


def test_the_residual_is_in_normalised_action_units_and_clipped_after():
    decoder = ranged_decoder()
    method = build(LPDSA, LPDSASettings(width=8, depth=1), decoder)
    method.policy.net.biases[-1].data.copy_(torch.tensor([[[0.25, 0.5]]]))
    shift = method.policy(OBS)
    eps = torch.tensor([0.2, 1.0]).repeat(5, 1, 1, 1)
    action = method.policy.act(decoder, OBS, eps, 1.0).action
    torch.testing.assert_close(action[:, 0], torch.tensor([0.2, 1.0]) + torch.tensor([1.0, 4.0]) * shift)
    far = method.policy.act(decoder, OBS, 4.0 * eps, 1.0).action
    assert far[0, 0].tolist() == [1.0, 5.0]
    frozen = method.policy.act(decoder, OBS, 4.0 * eps, 0.0).action
    assert torch.equal(frozen, 4.0 * eps[:, 0])  # the frozen policy is not clipped
    half = method.policy.act(decoder, OBS, eps, 0.5).action
    torch.testing.assert_close(half[:, 0], torch.tensor([0.2, 1.0]) + 0.5 * torch.tensor([1.0, 4.0]) * shift)


def test_a_bandit_on_the_action_settles_on_delta():
    delta, goal = 0.36, torch.tensor([1.2, -0.9])
    decoder = identity_decoder((1, 2))
    method = build(LPDSA, LPDSASettings(width=24, depth=1, lr=5e-3, actor_lr=2e-3, delta=delta, dual_step=0.03), decoder)
    generator = torch.Generator().manual_seed(2)
    norms = []
    for index in range(700):
        obs = torch.randn(64, 2, generator=generator)
        action = torch.randn(64, 2, generator=generator) + method.policy(obs).detach()
        batch = transitions(obs, action, -(action - goal).square().sum(1))
        noise = {name: torch.randn(shape, generator=generator) for name, shape in method.noise_shapes(64).items()}
        out = method.update(batch, noise, critics_only=index < 140)
        norms.append(float(out.get("delta_sq_mean", 0.0)))
    assert np.mean(norms[-200:]) == pytest.approx(delta, rel=0.1)
    shift = method.policy(torch.randn(512, 2, generator=generator)).detach().mean(0)
    assert (shift - goal / 1.5 * math.sqrt(delta)).norm() < 0.12
    assert "kl_nats" not in out
    assert "q_latent" not in out


def test_there_is_no_latent_critic_to_save():
    method = build(LPDSA, LPDSASettings(width=8, depth=1), identity_decoder((1, 2)))
    assert not [name for name in method.tensors() if "latent" in name]


# -- whole runs ----------------------------------------------------------------------------------------------------------

RUNS = {
    "golden-ticket": {"tickets": 4, "warmup_steps": 1, "warmup_fits": 0},
    "best-of-n": {"candidates": 3, "target_candidates": 2},
    "lpds-a": {},
}


@pytest.mark.parametrize("method", RUNS)
def test_a_run_is_steered_saved_opened_and_resumed_to_the_bit(method, tmp_path, refused):
    kind = {"golden-ticket": GoldenTicketSettings, "best-of-n": BestOfNSettings, "lpds-a": LPDSASettings}[method]
    known = set(kind.__dataclass_fields__) | set(lpds.config.RunSettings.__dataclass_fields__) | {"quiet"}
    tiny = {key: value for key, value in TINY.items() if key in known} | RUNS[method]
    tiny |= {"steps": 4_000} if method == "golden-ticket" else {}  # some episodes of every ticket
    whole = lpds.steer("toy", method, decoder=toy_decoder(), out=tmp_path / "whole", **tiny)
    assert whole.finished
    opened = lpds.load_policy(tmp_path / "whole", toy_decoder())
    obs, eps = np.zeros((2, 2), np.float32), np.random.default_rng(0).normal(size=(2, 4, 2)).astype(np.float32)
    frozen = lpds.load_policy(tmp_path / "whole", toy_decoder()).act(obs, eps, scale=0.0)
    assert np.array_equal(frozen, toy_decoder()(torch.from_numpy(obs), torch.from_numpy(eps)).numpy())
    assert not np.array_equal(opened.act(obs, eps), frozen)
    again = lpds.evaluate(opened, "toy", episodes=3, seed=0)
    assert np.array_equal(again.returns, whole.steered.returns)
    # a row acts alone as it does in a batch, whatever else a method draws for it
    alone = np.concatenate([opened.act(obs[row : row + 1], eps[row : row + 1]) for row in (0, 1)])
    np.testing.assert_allclose(alone, opened.act(obs, eps), atol=1e-5)
    lpds.steer("toy", method, decoder=toy_decoder(), out=tmp_path / "short", **(tiny | {"steps": 350}))
    if method == "golden-ticket":
        with refused("golden-ticket divides its budget into phases, so 700 steps are another search than the 350"):
            lpds.resume(tmp_path / "short", steps=700, decoder=toy_decoder(), quiet=True)
        return
    lpds.resume(tmp_path / "short", steps=700, decoder=toy_decoder(), quiet=True)
    assert np.array_equal(lpds.load_policy(tmp_path / "short", toy_decoder()).act(obs, eps), opened.act(obs, eps))


def test_two_searches_are_the_same_to_the_bit(tmp_path):
    known = {key: value for key, value in TINY.items() if key not in ("width", "depth")} | RUNS["golden-ticket"]
    for name in ("a", "b"):
        run = lpds.steer("toy", "golden-ticket", decoder=toy_decoder(), out=tmp_path / name, **known | {"steps": 4_000})
        assert not run.unlearned
    assert_same_run(tmp_path / "a", tmp_path / "b")
