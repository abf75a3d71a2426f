"""The flow decoder: ODE solvers against closed forms with their observed order, and folding against the plain form.

Determinism, fingerprints and refusals are tested for all kinds of decoders together, in test_diffusion.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lpds.decoders.flow import TIME_SCALE, FlowSampler, integrate, solver_times

ORDERS = [("euler", 1), ("midpoint", 2), ("heun", 2)]
SOLVERS = [name for name, _ in ORDERS]


def flow_map(solver, steps, velocity, x: Tensor) -> Tensor:
    """Integrate a velocity that is a function of the time itself."""
    times = solver_times(solver, steps)
    return integrate(lambda index, y: velocity(times[index], y), x, solver, steps)


def observed_orders(solver, velocity, exact, x: Tensor) -> np.ndarray:
    errors = [float((flow_map(solver, n, velocity, x) - exact).abs().max()) for n in (16, 32, 64, 128)]
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_linear_ode_is_multiplied_by_the_solvers_own_polynomial(solver, steps):
    """dx/dt = k x: one step multiplies by 1 + z (Euler) or 1 + z + z^2/2 (midpoint, Heun), z = k/n."""
    k, x = -1.7, torch.linspace(-2, 2, 8, dtype=torch.float64).view(4, 2)
    z = k / steps
    factor = 1 + z if solver == "euler" else 1 + z + z * z / 2
    torch.testing.assert_close(flow_map(solver, steps, lambda t, y: k * y, x), factor**steps * x, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_order_on_a_linear_ode(solver, order):
    k, x = 1.3, torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    orders = observed_orders(solver, lambda t, y: k * y, math.exp(k) * x, x)
    np.testing.assert_allclose(orders, order, atol=0.15)


@pytest.mark.parametrize(("solver", "order"), ORDERS)
def test_order_on_an_ode_that_depends_on_time(solver, order):
    """dx/dt = x cos(t) has x(1) = x(0) exp(sin 1): the times at which the velocity is asked matter here."""
    x = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    orders = observed_orders(solver, lambda t, y: y * math.cos(t), math.exp(math.sin(1)) * x, x)
    np.testing.assert_allclose(orders, order, atol=0.15)


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_second_order_solvers_are_exact_for_a_velocity_linear_in_time(solver):
    x = torch.tensor([[0.4, -2.0]], dtype=torch.float64)
    out = flow_map(solver, 3, lambda t, y: torch.full_like(y, 2 * t), x)
    torch.testing.assert_close(out, x + 1, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("solver", "order"), ORDERS)
@pytest.mark.parametrize(("mean", "std"), [(0.4, 0.3), (-0.2, 1.5)])
def test_exact_rectified_flow_carries_the_noise_to_gaussian_data(solver, order, mean, std):
    """Data N(m, s^2) on x_t = (1 - t) eps + t a: E[a - eps | x_t] is linear in x and its flow is x_1 = m + s x_0."""

    def velocity(t: float, x: Tensor) -> Tensor:
        variance = (1 - t) ** 2 + (t * std) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)

    x = torch.linspace(-2, 2, 10, dtype=torch.float64).view(5, 2)
    exact = mean + std * x
    errors = [float((flow_map(solver, n, velocity, x) - exact).abs().max()) for n in (32, 64, 128, 256)]
    assert errors[-1] < (2e-2 if order == 1 else 3e-4)
    # for this flow the leading error of the midpoint rule cancels over [0, 1], so that it shows order 3
    observed = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(observed, 3 if solver == "midpoint" else order, atol=0.25)


@pytest.mark.parametrize("solver", SOLVERS)
def test_straight_flow_is_exact_in_one_step(solver):
    """Data in one point: v = (point - x) / (1 - t), straight paths; at t = 0 one step arrives."""
    x = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    if solver == "heun":  # asks at t = 1, where this velocity is 0/0; the constant velocity of the same path instead
        out = flow_map(solver, 1, lambda t, y: 0.25 - x, x)
    else:
        out = flow_map(solver, 1, lambda t, y: (0.25 - y) / (1 - t), x)
    torch.testing.assert_close(out, torch.full_like(x, 0.25), rtol=0, atol=1e-12)


def test_times_and_numbers_of_velocity_calls():
    assert solver_times("euler", 4) == [0.0, 0.25, 0.5, 0.75]
    assert solver_times("midpoint", 2) == [0.0, 0.25, 0.5, 0.75]
    assert solver_times("heun", 2) == [0.0, 0.5, 1.0]
    for solver, calls in (("euler", 5), ("midpoint", 10), ("heun", 10)):
        asked: list[int] = []

        def velocity(index: int, x: Tensor, asked: list[int] = asked) -> Tensor:
            asked.append(index)
            return x

        integrate(velocity, torch.zeros(1, 1), solver, 5)
        assert len(asked) == calls
        assert set(asked) == set(range(len(solver_times(solver, 5))))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("activation", ["relu", "mish"])
@pytest.mark.parametrize("cond", [(), (24, 8)])
def test_folded_decoding_equals_integrating_the_network(make_net, make_flow, batch, solver, blocks, activation, cond):
    decoder = make_flow(make_net(blocks=blocks, activation=activation, cond_sizes=cond), FlowSampler(solver, 4, clip=1e9))
    obs, w = batch
    state = decoder.normaliser.observation(obs)

    def velocity(t: float, x: Tensor) -> Tensor:
        return decoder.net(x, torch.full((x.shape[0],), t * TIME_SCALE), state)

    with torch.no_grad():
        chunk = flow_map(solver, 4, velocity, w.flatten(1)).view_as(w)
    torch.testing.assert_close(decoder(obs, w), decoder.normaliser.action(chunk), atol=5e-6, rtol=2e-6)


def test_final_chunk_is_clipped_to_the_action_ranges(make_flow, batch):
    decoder = make_flow()
    obs, w = batch
    action = decoder(obs, 100 * w)
    assert bool((action >= decoder.normaliser.action_min).all())
    assert bool((action <= decoder.normaliser.action_max).all())


def test_fingerprint_follows_the_solver(make_flow):
    samplers = [FlowSampler(), FlowSampler("heun"), FlowSampler("midpoint"), FlowSampler(steps=5), FlowSampler(clip=2.0)]
    assert len({make_flow(sampler=sampler).fingerprint for sampler in samplers}) == 5


def test_flow_and_diffusion_of_the_same_weights_have_different_fingerprints(make_flow, make_diffusion):
    assert make_flow().fingerprint != make_diffusion().fingerprint


def test_unknown_solver_is_refused_with_the_nearest(refused):
    with refused("'huen'", "did you mean 'heun'", "euler, heun, midpoint"):
        FlowSampler("huen")


@pytest.mark.parametrize("steps", [0, -3])
def test_impossible_numbers_of_steps_are_refused(refused, steps):
    with refused("steps", "at least 1", str(steps)):
        FlowSampler(steps=steps)
