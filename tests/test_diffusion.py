"""The diffusion decoder: DDIM with eta 0 against closed forms, against diffusers, and against its own plain form."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lpds.decoders.base import MinMaxNormaliser
from lpds.decoders.diffusion import DiffusionSampler, cosine_alphas_cumprod, ddim_times
from lpds.decoders.network import DenoisingMLP, FoldedNetwork, NetworkShape, bf16_in_hardware, shape_of, sinusoid
from lpds.types import LatentSpec

SHAPES = [
    pytest.param({"blocks": blocks, "activation": activation, "cond_sizes": cond}, id=f"{blocks}-{activation}-cond{len(cond)}")
    for blocks in (1, 2, 3)
    for activation in ("relu", "mish")
    for cond in ((), (24, 8))
]


def scale_net(factor: float, chunk: int = 6) -> DenoisingMLP:
    """The network eps(x, t, s) = factor * x, exactly: the input is copied through the residual stream."""
    net = DenoisingMLP(NetworkShape(obs_size=5, chunk_size=chunk, width=8))
    with torch.no_grad():
        for parameter in net.mlp_mean.parameters():
            parameter.zero_()
        net.mlp_mean.layers[0].weight[:chunk, :chunk] = torch.eye(chunk)
        net.mlp_mean.layers[-1].weight[:, :chunk] = factor * torch.eye(chunk)
    return net


class GaussianPredictor(DenoisingMLP):
    """The exact noise predictor for data N(mean, std^2): E[eps | x_t = x] = sqrt(1 - a) (x - sqrt(a) mean) / v."""

    def __init__(self, abar: Tensor, mean: float, std: float) -> None:
        super().__init__(NetworkShape(obs_size=5, chunk_size=6, width=4))
        self.abar, self.mean, self.std = abar, mean, std

    def forward(self, x: Tensor, t: Tensor, obs: Tensor) -> Tensor:
        a = self.abar[t].unsqueeze(1)
        return (1 - a).sqrt() * (x - a.sqrt() * self.mean) / (a * self.std**2 + 1 - a)


# --- schedule and times ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [5, 20, 100, 1000])
def test_schedule_is_the_squared_cosine_wherever_the_beta_clip_does_not_act(steps):
    abar = cosine_alphas_cumprod(steps).double().numpy()
    t = np.arange(1, steps + 1)
    exact = np.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 / np.cos(0.008 / 1.008 * math.pi / 2) ** 2
    np.testing.assert_allclose(abar[:-1], exact[:-1], rtol=2e-4)
    # at the last index the cosine is 0 and beta would be 1; it is clipped to 0.999
    np.testing.assert_allclose(abar[-1] / abar[-2], 1e-3, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 20, 100])
def test_schedule_decreases_from_below_one_and_stays_positive(steps):
    abar = cosine_alphas_cumprod(steps)
    assert abar.dtype == torch.float32
    assert abar.shape == (steps,)
    assert float(abar[-1]) > 0
    assert float(abar[0]) < 1
    assert bool((abar.diff() < 0).all())


@pytest.mark.parametrize(
    ("training", "ddim", "times"),
    [
        (20, 5, [16, 12, 8, 4, 0]),
        (20, 8, [14, 12, 10, 8, 6, 4, 2, 0]),
        (100, 8, [84, 72, 60, 48, 36, 24, 12, 0]),
        (20, 20, list(range(19, -1, -1))),
        (20, 1, [0]),
        (20, 11, list(range(10, -1, -1))),
    ],
)
def test_ddim_times_are_leading(training, ddim, times):
    assert ddim_times(training, ddim) == times


# --- the network's pieces -------------------------------------------------------------------------------------------


def test_sinusoid_is_all_sines_then_all_cosines_of_geometric_frequencies():
    t, size = np.array([0, 1, 7, 19]), 16
    frequency = 10000.0 ** (-np.arange(8) / 7)
    expected = np.concatenate([np.sin(t[:, None] * frequency), np.cos(t[:, None] * frequency)], axis=1)
    np.testing.assert_allclose(sinusoid(torch.from_numpy(t), size).numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("changes", SHAPES)
def test_sizes_are_read_back_from_the_weights(make_net, changes):
    net = make_net(time_size=32, **changes)
    assert shape_of(net.state_dict(), changes["activation"]) == net.shape


@pytest.mark.parametrize("changes", SHAPES)
def test_folded_step_is_the_affine_combination_it_stands_for(make_net, changes):
    """y = c x + d net(x, t, s) for arbitrary c and d, to rounding."""
    net = make_net(**changes)
    generator = torch.Generator().manual_seed(1)
    x, obs = torch.randn(9, 6, generator=generator), torch.randn(9, 5, generator=generator)
    times, c, d = torch.tensor([7.0, 0.0, 3.5]), [1.0, 0.0, -2.5], [0.25, 1.0, 1.5]
    folded = FoldedNetwork(net, times, c, d)
    with torch.no_grad():
        context = folded.prepare(obs)
        for index in range(3):
            plain = c[index] * x + d[index] * net(x, times[index].expand(9), obs)
            torch.testing.assert_close(folded.step(index, context, x), plain, atol=3e-6, rtol=0)


@pytest.mark.parametrize("changes", SHAPES)
def test_one_time_stands_for_a_batch_of_equal_times(make_net, changes):
    """Which spares a chain that is not folded the embedding of every row; the gradients of what is learned stay the same."""
    net = make_net(**changes)
    generator = torch.Generator().manual_seed(1)
    x, obs = torch.randn(9, 6, generator=generator), torch.randn(9, 5, generator=generator)
    for time in (0, 3, 19):
        out = [net(x, torch.tensor([time]), obs), net(x, torch.full((9,), time), obs)]
        torch.testing.assert_close(*out, atol=1e-6, rtol=0)
        one, each = (torch.autograd.grad(y.square().sum(), list(net.parameters())) for y in out)
        torch.testing.assert_close(one, each, atol=1e-5, rtol=1e-4)


# --- folded against plain -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("ddim_steps", [1, 5])
def test_folded_sampling_equals_plain_sampling(make_net, make_diffusion, batch, changes, ddim_steps):
    decoder = make_diffusion(make_net(**changes), DiffusionSampler(20, ddim_steps))
    obs, w = batch
    with torch.no_grad():
        folded = decoder.denoise(decoder.prepare(obs), w)
        plain = decoder.denoise_plain(decoder.normaliser.observation(obs), w)
    assert float((plain.abs() < 1).float().mean()) > 0.3, "everything is clipped, so nothing is compared"
    torch.testing.assert_close(folded, plain, atol=3e-6, rtol=0)


def test_bf16_is_off_by_default_and_near_when_asked_for(make_diffusion, batch):
    plain, rough = make_diffusion(), make_diffusion(bf16=True)
    error = (plain(*batch) - rough(*batch)).abs().max()
    assert (float(error) > 0) == bf16_in_hardware(torch.device("cpu"))  # float32 serves where the hardware has none
    assert float(error) < 0.05


# --- against diffusers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("training", "ddim"), [(20, 1), (20, 5), (20, 8), (20, 20), (100, 8), (100, 10)])
def test_sampler_agrees_with_diffusers(make_net, make_diffusion, batch, training, ddim):
    schedulers = pytest.importorskip("diffusers.schedulers.scheduling_ddim", reason="diffusers is not installed")
    abar = cosine_alphas_cumprod(training).double()
    betas = 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    scheduler = schedulers.DDIMScheduler(
        num_train_timesteps=training,
        trained_betas=betas.numpy(),
        clip_sample=True,
        clip_sample_range=1.0,
        set_alpha_to_one=True,
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=0,
    )
    scheduler.set_timesteps(ddim)
    decoder = make_diffusion(make_net(blocks=2, activation="mish"), DiffusionSampler(training, ddim))
    assert scheduler.timesteps.tolist() == decoder.times
    obs, w = batch
    state, x = decoder.normaliser.observation(obs), w.flatten(1)
    with torch.no_grad():
        for t in scheduler.timesteps:
            eps = decoder.net(x, t.expand(x.shape[0]), state)
            x = scheduler.step(eps, t, x, eta=0.0, use_clipped_model_output=True).prev_sample
        chunk = decoder.denoise(decoder.prepare(obs), w)
    torch.testing.assert_close(chunk.flatten(1), x, atol=2e-5, rtol=0)
    assert float((x.abs() < 1).float().mean()) > 0.1


# --- closed forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("clip", [1e9, 1.0])
def test_proportional_predictor_in_closed_form(make_diffusion, batch, factor, clip):
    """With eps = f x every step multiplies by a number known in advance; with the clip, coordinate by coordinate."""
    obs, w = batch
    decoder = make_diffusion(scale_net(factor), DiffusionSampler(20, 5, clip))
    abar = np.append(cosine_alphas_cumprod(20).double().numpy()[[16, 12, 8, 4, 0]], 1.0)
    x = w.double().numpy()
    for a, following in zip(abar[:-1], abar[1:], strict=True):
        x0 = np.clip(x * (1 - np.sqrt(1 - a) * factor) / np.sqrt(a), -clip, clip)
        x = np.sqrt(following) * x0 + np.sqrt(1 - following) * (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
    with torch.no_grad():
        out = decoder.denoise(decoder.prepare(obs), w)
        plain = decoder.denoise_plain(obs, w)
    np.testing.assert_allclose(out.numpy(), x, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(plain.numpy(), x, rtol=1e-5, atol=2e-6)
    if clip == 1.0:
        assert float(out.abs().max()) <= 1.0


@pytest.mark.parametrize("ddim_steps", [1, 5, 10, 20])
@pytest.mark.parametrize("std", [0.1, 0.5, 1.0, 2.0])
def test_exact_predictor_for_gaussian_data_maps_noise_linearly(make_diffusion, batch, ddim_steps, std):
    """x_0 = mean + (x_T - sqrt(a_T) mean) * prod [sqrt(a a') std^2 + sqrt((1 - a)(1 - a'))] / v, v = a std^2 + 1 - a."""
    obs, w = batch
    mean = 0.3
    abar = cosine_alphas_cumprod(20)
    decoder = make_diffusion(GaussianPredictor(abar, mean, std), DiffusionSampler(20, ddim_steps, clip=1e9))
    a = np.append(abar.double().numpy()[decoder.times], 1.0)
    v = a * std**2 + 1 - a
    slope = np.prod((np.sqrt(a[:-1] * a[1:]) * std**2 + np.sqrt((1 - a[:-1]) * (1 - a[1:]))) / v[:-1])
    expected = mean + slope * (w.double().numpy() - np.sqrt(a[0]) * mean)
    with torch.no_grad():
        out = decoder.denoise_plain(obs, w).numpy()
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5 * max(1.0, slope) * 400 ** (ddim_steps == 20))


def test_many_steps_carry_noise_to_gaussian_data_at_first_order(make_diffusion):
    """As the steps grow, DDIM becomes the probability-flow ODE, whose map is std / sqrt(v_T) times the noise."""
    std, training = 0.5, 1024
    abar = cosine_alphas_cumprod(training)
    w = torch.ones(1, 3, 2)
    errors = []
    for steps in (64, 128, 256):
        decoder = make_diffusion(GaussianPredictor(abar, 0.0, std), DiffusionSampler(training, steps, clip=1e9))
        a = float(abar[decoder.times[0]])
        exact = std / math.sqrt(a * std**2 + 1 - a)
        with torch.no_grad():
            errors.append(abs(float(decoder.denoise_plain(torch.zeros(1, 5), w).mean()) - exact))
    assert errors[-1] < 5e-3
    order = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(order, 1.0, atol=0.15)


@pytest.mark.parametrize("point", [-0.7, 0.0, 0.9])
def test_data_in_one_point_are_hit_from_any_noise(make_diffusion, batch, point):
    obs, w = batch
    abar = cosine_alphas_cumprod(20)
    decoder = make_diffusion(GaussianPredictor(abar, point, 0.0), DiffusionSampler(20, 5))
    with torch.no_grad():
        out = decoder.denoise_plain(obs, 3 * w)
    torch.testing.assert_close(out, torch.full_like(out, point), atol=2e-6, rtol=0)


def test_final_chunk_lies_in_the_action_ranges_for_any_noise(make_diffusion, batch):
    """The last x is the clipped clean estimate, so min-max units hold exactly, however wide the noise."""
    decoder = make_diffusion()
    obs, w = batch
    action = decoder(obs, 100 * w)
    low, high = decoder.normaliser.action_min, decoder.normaliser.action_max
    assert bool((action >= low).all())
    assert bool((action <= high).all())
    assert bool((action == high).any())


# --- normaliser and units -------------------------------------------------------------------------------------------


def test_normaliser_maps_the_ranges_to_the_unit_box_and_back(normaliser):
    torch.testing.assert_close(normaliser.observation(normaliser.obs_min), -torch.ones(5))
    torch.testing.assert_close(normaliser.observation(normaliser.obs_max), torch.ones(5), atol=2e-6, rtol=0)
    torch.testing.assert_close(normaliser.action(-torch.ones(2)), normaliser.action_min)
    torch.testing.assert_close(normaliser.action(torch.ones(2)), normaliser.action_max)
    x = torch.linspace(-3, 3, 14).view(7, 2)
    torch.testing.assert_close(normaliser.normalise_action(normaliser.action(x)), x, atol=1e-6, rtol=1e-6)


def test_observations_outside_the_ranges_are_not_clipped(normaliser):
    assert bool((normaliser.observation(normaliser.obs_max + 10) > 3).all())


def test_executed_slice_is_the_head_of_the_whole_chunk(make_net, make_diffusion, batch):
    net = make_net()
    whole = make_diffusion(net)
    part = make_diffusion(net, spec=LatentSpec((5,), (3, 2), (2, 2)))
    assert torch.equal(part(*batch), whole(*batch)[:, :2])


# --- a function, and a frozen one -----------------------------------------------------------------------------------

KINDS = ["diffusion", "flow-euler", "flow-midpoint", "flow-heun"]


@pytest.fixture(params=KINDS)
def build(request, make_diffusion, make_flow):
    """Factory of a small decoder of each kind."""
    if request.param == "diffusion":
        return make_diffusion
    from lpds.decoders.flow import FlowSampler

    solver = request.param.removeprefix("flow-")
    return lambda *args, **options: make_flow(*args, **{"sampler": FlowSampler(solver, 4), **options})


@pytest.mark.parametrize("changes", SHAPES[::3])
def test_decoding_is_deterministic_to_the_bit(make_net, build, batch, changes):
    first, second = build(make_net(**changes)), build(make_net(**changes))
    expected = first(*batch)
    assert torch.equal(first(*batch), expected)
    assert torch.equal(second(*batch), expected)
    context = first.prepare(batch[0])
    assert torch.equal(first.decode(context, batch[1]), expected)
    assert torch.equal(first.decode(context, batch[1]), expected), "decoding must not use up its context"


@pytest.mark.parametrize("changes", SHAPES[::3])
def test_a_row_does_not_depend_on_the_content_of_other_rows(make_net, build, batch, changes):
    decoder = build(make_net(**changes))
    obs, w = batch
    expected = decoder(obs, w)
    for row in (0, 8, 16):
        other = torch.arange(17) != row
        strange_obs, strange_w = obs.clone(), w.clone()
        strange_obs[other], strange_w[other] = 7.0, float("nan")
        assert torch.equal(decoder(strange_obs, strange_w)[row], expected[row])
        torch.testing.assert_close(decoder(obs[row : row + 1], w[row : row + 1])[0], expected[row], atol=5e-6, rtol=0)


def test_the_noise_and_the_state_both_decide_the_action(build, batch):
    decoder = build()
    obs, w = batch
    action = decoder(obs, w)
    assert bool((decoder(obs, w.roll(1, 0)) != action).flatten(1).any(1).all())
    assert float((decoder(obs.roll(1, 0), w) != action).flatten(1).any(1).float().mean()) > 0.8


def test_nothing_is_learned_and_nothing_is_overwritten(build, batch):
    decoder = build()
    weights = {key: value.clone() for key, value in decoder.net.state_dict().items()}
    obs, w = (value.clone().requires_grad_() for value in batch)
    action = decoder(obs, w)
    assert not action.requires_grad
    assert action.dtype == torch.float32
    assert action.shape == (17, 3, 2)
    assert torch.equal(obs, batch[0])
    assert torch.equal(w, batch[1])
    assert not any(parameter.requires_grad for parameter in decoder.net.parameters())
    assert all(torch.equal(value, weights[key]) for key, value in decoder.net.state_dict().items())


def test_empty_batch_decodes_to_an_empty_batch(build):
    assert build()(torch.zeros(0, 5), torch.zeros(0, 3, 2)).shape == (0, 3, 2)


# --- fingerprint ----------------------------------------------------------------------------------------------------


def test_fingerprint_follows_every_weight(make_net, build):
    def net() -> DenoisingMLP:
        return make_net(blocks=2, cond_sizes=(8, 4))

    seen = {build(net()).fingerprint}
    names = list(net().state_dict())
    for name in names:
        changed = net()
        flat = changed.state_dict()[name].view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(9e9))  # by the smallest amount there is
        seen.add(build(changed).fingerprint)
    assert len(seen) == 1 + len(names)
    assert all(len(one) == 64 and set(one) <= set("0123456789abcdef") for one in seen)


def test_fingerprint_follows_the_normaliser(build, normaliser):
    seen = {build().fingerprint}
    for name, value in normaliser.tensors().items():
        nudged = value.clone()
        nudged[0] = torch.nextafter(nudged[0], torch.tensor(9e9))
        seen.add(build(normaliser=dataclasses.replace(normaliser, **{name: nudged})).fingerprint)
    assert len(seen) == 5


def test_fingerprint_follows_the_sampler_and_the_activation(make_net, make_diffusion):
    samplers = [DiffusionSampler(), DiffusionSampler(20, 4), DiffusionSampler(40, 5), DiffusionSampler(20, 5, 2.0)]
    seen = {make_diffusion(make_net(), sampler).fingerprint for sampler in samplers}
    seen.add(make_diffusion(make_net(activation="mish")).fingerprint)
    assert len(seen) == 5


def test_fingerprint_follows_nothing_else(make_net, build, batch):
    decoder = build(make_net())
    before = decoder.fingerprint
    decoder(*batch)
    assert decoder.fingerprint == before
    assert build(make_net(), name="another", reference="folder:elsewhere").fingerprint == before


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w_shape", [(4, 2, 3), (4, 6), (4, 3, 3), (3, 2), (4, 1, 3, 2), (4, 4, 2)])
def test_wrong_latent_shape_is_refused(build, refused, w_shape):
    with refused("'small'", "latents [B, 3, 2]", str(list(w_shape))):
        build()(torch.zeros(4, 5), torch.zeros(w_shape))


@pytest.mark.parametrize("obs_shape", [(4, 6), (4, 1, 5), (5,), (4, 5, 1)])
def test_wrong_observation_shape_is_refused(build, refused, obs_shape):
    with refused("'small'", "observations [B, 5]", str(list(obs_shape))):
        build()(torch.zeros(obs_shape), torch.zeros(4, 3, 2))


def test_batches_of_different_size_are_refused(build, refused):
    with refused("4 observations", "3 latents"):
        build()(torch.zeros(4, 5), torch.zeros(3, 3, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(make_net, build, refused, bad):
    net = make_net()
    net.mlp_mean.layers[1].l1.bias.data[3] = bad
    with refused("'small'", "1 of 32", "'mlp_mean.layers.1.l1.bias'", "NaN"):
        build(net)


def test_a_normaliser_that_is_not_finite_is_refused(build, refused, normaliser):
    broken = MinMaxNormaliser(**{**normaliser.tensors(), "obs_max": torch.full((5,), math.nan)})
    with refused("normaliser", "'obs_max'", "NaN"):
        build(normaliser=broken)


@pytest.mark.parametrize("ddim_steps", [0, -1, 21])
def test_impossible_numbers_of_ddim_steps_are_refused(refused, ddim_steps):
    with refused("ddim_steps", "1 .. 20", str(ddim_steps)):
        DiffusionSampler(20, ddim_steps)


def test_unknown_activation_is_refused(make_net, refused):
    with refused("'gelu'", "mish, relu"):
        shape_of(make_net().state_dict(), "gelu")
