"""Delta's forms over the chunk: what the [H, L] matrix can be, its bounds, and that learning reaches all of it."""

from __future__ import annotations

import math

import pytest
import torch
from scripted import CPU, identity_decoder
from test_lpds_method import batch, noise

from lpds.config import LPDSASettings, LPDSSettings
from lpds.methods.lpds import LPDS
from lpds.methods.lpds_a import LPDSA
from lpds.methods.shift import ShiftPolicy, cosines
from lpds.types import LatentSpec

H, L = 6, 5
FORMS = [("full", 1), ("tied", 1), ("lowrank", 1), ("lowrank", 3), ("lowrank", H)]


def fresh(form, rank, *, bound=1.5, cap=math.inf, free=None, seed=0):
    spec = LatentSpec((3,), (H, L), (H, 2), free)
    sizes = {"width": 16, "depth": 2, "activation": "relu", "generator": torch.Generator().manual_seed(seed)}
    return ShiftPolicy(spec, noise_bound=bound, cap_sq=cap, shift_form=form, shift_rank=rank, **sizes)


def random(form, rank, *, gain=1.0, **changes):
    policy = fresh(form, rank, **changes)
    generator = torch.Generator().manual_seed(7)
    for parameter in [policy.net.weights[-1], policy.net.biases[-1], *([policy.basis] if form == "lowrank" else [])]:
        parameter.data = gain * torch.randn(parameter.shape, generator=generator)
    return policy.requires_grad_(False)


def states(count=32, scale=1.0):
    return scale * torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("form", "rank"), FORMS)
def test_the_start_is_the_frozen_policy(form, rank):
    policy = fresh(form, rank)
    assert not policy(states()).any()
    eps = torch.randn(32, H, L)
    assert torch.equal(policy.latent(states(), eps, 1.0), eps)


@pytest.mark.parametrize(("form", "rank"), FORMS)
def test_rank_of_the_matrix(form, rank):
    shift = random(form, rank).shift(states()).double()
    wanted = {"full": min(H, L), "tied": 1, "lowrank": min(rank, L)}[form]
    assert set(torch.linalg.matrix_rank(shift, rtol=1e-5).tolist()) == {wanted}


def test_tied_rows_are_equal_and_the_noise_is_not_tied():
    policy = random("tied", 1)
    shift = policy.shift(states())
    assert torch.equal(shift, shift[:, :1].expand_as(shift))
    eps = torch.randn(32, H, L)
    assert torch.equal(policy.latent(states(), eps, 1.0), eps + shift)


def test_the_first_cosine_is_tied():
    assert torch.equal(cosines(3, H)[0], torch.ones(H))
    gram = cosines(H, H) @ cosines(H, H).T
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-5, rtol=0)  # orthogonal
    lowrank, tied = random("lowrank", 1), random("tied", 1)
    lowrank.basis.data = cosines(1, H)
    assert torch.equal(lowrank(states()), tied(states()))


@pytest.mark.parametrize(("form", "rank"), FORMS)
@pytest.mark.parametrize("bound", [0.2, 1.5])
@pytest.mark.parametrize("cap", [0.05, math.inf])
def test_bound_cap_and_mask_hold(form, rank, bound, cap):
    free = (True, False, True, True, False)
    policy = random(form, rank, gain=30.0, bound=bound, cap=cap, free=free)
    shift = policy.shift(states(scale=100.0))
    assert shift.any()
    assert float(shift.abs().max()) <= bound * (1 + 1e-5)
    assert float(shift.square().sum((1, 2)).max()) <= cap * (1 + 1e-5)
    assert not shift[..., [1, 4]].any()


@pytest.mark.parametrize(("form", "rank"), FORMS)
def test_learning_reaches_every_part_and_the_budget_is_a_sum_over_the_whole_chunk(form, rank):
    decoder = identity_decoder((H, L))
    settings = LPDSSettings(width=16, depth=1, kept_noises=0, shift_form=form, shift_rank=rank, delta=0.1)
    method = LPDS(settings, decoder, generator=torch.Generator().manual_seed(0), device=CPU)
    before = {key: value.clone() for key, value in method.policy.state_dict().items() if not key.startswith("scaling")}
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        data = batch(decoder.spec, 16, generator)
        shift = method.policy(data.obs).detach()
        out = method.update(data, noise(method, 16, generator))
        assert float(out["delta_sq_mean"]) == pytest.approx(float(shift.square().sum(1).mean()))
    after = method.policy.state_dict()
    assert not [key for key, value in before.items() if torch.equal(value, after[key])]
    opened = LPDS.open_policy(decoder, method.policy_settings(), method.policy_tensors())
    obs = torch.randn(5, 2)
    assert torch.equal(opened(obs), method.policy(obs).detach())
    assert opened(obs).any()


@pytest.mark.parametrize(("method", "kind"), [(LPDS, LPDSSettings), (LPDSA, LPDSASettings)])
def test_a_policy_saved_before_there_were_forms_is_full(method, kind):
    decoder = identity_decoder((H, L))
    made = method(kind(width=16, depth=1), decoder, generator=torch.Generator().manual_seed(0), device=CPU)
    old = {key: value for key, value in made.policy_settings().items() if key not in ("shift_form", "shift_rank")}
    opened = method.open_policy(decoder, old, made.policy_tensors())
    assert (opened.form, opened.rows) == ("full", H)


def test_what_is_refused(refused):
    with refused("unknown shift_form 'tide'", "'tied'"):
        LPDSSettings(shift_form="tide")
    with refused("shift_rank must be positive, not 0"):
        LPDSSettings(shift_rank=0)
    with refused(f"shift_rank must be at most {H}", "not 7"):
        fresh("lowrank", 7)
