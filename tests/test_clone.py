"""Behaviour cloning: the losses against reference numbers and closed forms, both modes recovered, bit-equal runs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lpds.decoders.diffusion import DiffusionDecoder, cosine_alphas_cumprod
from lpds.decoders.flow import FlowDecoder
from lpds.decoders.network import DenoisingMLP, shape_of
from lpds.decoders.store import WEIGHTS, save_decoder
from lpds.errors import LpdsError
from lpds.pretrain.clone import ChunkWindows, CloneSettings, clone, diffusion_loss, flow_loss, normaliser_of
from lpds.pretrain.datasets import open_data
from lpds.pretrain.descent import Descent
from lpds.pretrain.experts import Demonstrations

# --- DPPO's pre-training loss ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loss_io(golden):
    folder = golden("dppo_pretrain_loss")
    return load_file(folder / "io.safetensors"), load_file(folder / "grads.safetensors")


def hopper_net(golden, part: str) -> DenoisingMLP:
    content = torch.load(golden("dppo_hopper") / "state_3000.pt", weights_only=True)[part]
    weights = {key.removeprefix("network."): value for key, value in content.items()}
    net = DenoisingMLP(shape_of(weights, "relu"))
    net.load_state_dict(weights)
    return net


def reference_loss(net, io):
    return diffusion_loss(net, io["action"].flatten(1), io["state"], io["t"], io["noise"].flatten(1), cosine_alphas_cumprod(20))


@pytest.mark.parametrize("part", ["model", "ema"])
def test_diffusion_loss_is_the_reference_loss(golden, loss_io, part):
    io, _ = loss_io
    net = hopper_net(golden, part)
    torch.testing.assert_close(reference_loss(net, io).detach(), io[f"loss_{part}"], rtol=1e-5, atol=0)
    with torch.no_grad():
        predicted = net(io["x_t"].flatten(1), io["t"], io["state"])
    torch.testing.assert_close(predicted, io[f"pred_{part}"].flatten(1), atol=1e-5, rtol=0)


def test_gradients_are_the_reference_gradients(golden, loss_io):
    io, grads = loss_io
    net = hopper_net(golden, "model")
    reference_loss(net, io).backward()
    compared = 0
    for name, parameter in net.named_parameters():
        norm = grads[f"network.{name}.grad_l2"]
        torch.testing.assert_close(parameter.grad.norm(), norm, rtol=1e-4, atol=1e-7)
        if f"network.{name}.grad" in grads:
            expected = grads[f"network.{name}.grad"]
            torch.testing.assert_close(parameter.grad, expected, atol=2e-6, rtol=1e-4)
            compared += 1
    assert compared == 2


def test_one_adamw_step_is_the_reference_step(golden, loss_io):
    """Compared where the gradient is not tiny: a first step moves a weight by lr times the gradient's sign."""
    io, grads = loss_io
    net = hopper_net(golden, "model")
    Descent(list(net.parameters()), CloneSettings(lr=1e-3, weight_decay=1e-6)).step(0, reference_loss(net, io))
    after = {key.removesuffix(".after_one_adamw_step"): value for key, value in grads.items() if "after_one" in key}
    assert len(after) == 3
    for name, parameter in net.named_parameters():
        if f"network.{name}" in after:
            clear = parameter.grad.abs() > 1e-5
            assert bool(clear.any())
            torch.testing.assert_close(parameter[clear], after[f"network.{name}"][clear], atol=2e-6, rtol=0)


def test_the_rate_falls_along_half_a_cosine_and_the_decay_shrinks_what_has_no_gradient_by_it():
    """l_n = l_N + (l_0 - l_N) (1 + cos(pi n / N)) / 2, and p <- (1 - l_n wd) p: read off the parameter, not the optimiser."""
    steps, start, end, decay = 8, 0.4, 0.05, 0.5
    still = torch.nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
    descent = Descent([still], CloneSettings(steps=steps, lr=start, lr_final=end, weight_decay=decay))
    rates = []
    for number in range(steps):
        before = still.detach().clone()
        descent.step(number, 0.0 * still.sum())
        factor = still.detach() / before
        assert float(factor[0]) == pytest.approx(float(factor[1]), rel=1e-12)
        rates.append((1.0 - float(factor[0])) / decay)
    wanted = [end + (start - end) * (1 + math.cos(math.pi * n / steps)) / 2 for n in range(steps)]
    assert rates == pytest.approx(wanted, rel=1e-9)
    assert rates[0] == pytest.approx(start)
    assert rates[steps // 2] == pytest.approx((start + end) / 2)
    assert end < rates[-1] < 1.3 * end


# --- closed forms ---------------------------------------------------------------------------------------------------


class Recorder(torch.nn.Module):
    """Keeps what it was asked and answers with a constant."""

    def __init__(self, answer: float) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x, t, obs):
        self.asked = (x, t, obs)
        return torch.full_like(x, self.answer)


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(4)
    x, noise = torch.randn(7, 6, generator=generator), torch.randn(7, 6, generator=generator)
    return x, noise, torch.randn(7, 5, generator=generator)


def test_diffusion_loss_by_hand(draw):
    x, noise, obs = draw
    net, abar, t = Recorder(0.25), cosine_alphas_cumprod(20), torch.tensor([0, 3, 7, 11, 15, 18, 19])
    loss = diffusion_loss(net, x, obs, t, noise, abar)
    np.testing.assert_allclose(float(loss), np.mean((0.25 - noise.double().numpy()) ** 2), rtol=1e-6)
    a = abar.double().numpy()[t.numpy()][:, None]
    np.testing.assert_allclose(net.asked[0].numpy(), np.sqrt(a) * x.numpy() + np.sqrt(1 - a) * noise.numpy(), atol=1e-6)
    assert torch.equal(net.asked[1], t)
    assert net.asked[2] is obs


def test_flow_loss_by_hand(draw):
    x, noise, obs = draw
    net, t = Recorder(-0.5), torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
    loss = flow_loss(net, x, obs, t, noise)
    np.testing.assert_allclose(float(loss), np.mean((-0.5 - (x - noise).double().numpy()) ** 2), rtol=1e-6)
    path = (1 - t[:, None]) * noise + t[:, None] * x
    torch.testing.assert_close(net.asked[0], path)
    assert torch.equal(net.asked[0][0], noise[0]), "t = 0 is the noise"
    torch.testing.assert_close(net.asked[0][-1], x[-1])
    torch.testing.assert_close(net.asked[1], 100 * t)


def still(lengths):
    """Episodes of which only the lengths matter."""
    zeros = np.zeros((sum(lengths), 1), np.float32)
    return Demonstrations(zeros, zeros, np.array(lengths), np.zeros(len(lengths)), np.zeros(len(lengths), np.int64))


def test_chunks_never_cross_an_episode():
    lengths = [5, 2, 3, 4]
    data = still(lengths)
    episode = np.repeat(np.arange(4), lengths)
    expected = [start for start in range(12) if episode[start] == episode[min(start + 2, 13)] and start + 2 < 14]
    assert ChunkWindows(data, 3)[:][:, 0].tolist() == expected == [0, 1, 2, 7, 10, 11]
    assert len(ChunkWindows(data, 1)) == 14


@pytest.mark.parametrize("chunk", [1, 2, 3, 6])
def test_padded_chunks_begin_everywhere_and_repeat_the_episodes_last_step(chunk):
    lengths = [5, 2, 3, 4]
    data = still(lengths)
    last = np.repeat(np.cumsum(lengths) - 1, lengths)
    wanted = [[min(start + step, last[start]) for step in range(chunk)] for start in range(14)]
    assert ChunkWindows(data, chunk, pad_end=True)[:].tolist() == wanted
    if chunk <= 5:  # the whole ones are among them, as they are
        whole = [row for row in wanted if row == list(range(row[0], row[0] + chunk))]
        assert ChunkWindows(data, chunk)[:].tolist() == whole


@pytest.mark.parametrize(("pad_end", "at_the_end"), [(True, 1.0), (False, -1.0)])
def test_what_an_episode_ends_with_is_learned_only_where_chunks_are_padded(pad_end, at_the_end):
    """Twelve steps, -1 and from the tenth on +1: without padding no chunk of 8 begins where the data do +1."""
    steps, episodes = 12, 60
    data = Demonstrations(
        obs=np.tile(np.arange(steps, dtype=np.float32), episodes)[:, None],
        actions=np.tile(np.where(np.arange(steps) < 9, -1.0, 1.0).astype(np.float32), episodes)[:, None],
        episode_lengths=np.full(episodes, steps),
        episode_returns=np.zeros(episodes),
        episode_source=np.zeros(episodes, np.int64),
    )
    settings = CloneSettings(chunk=8, width=64, steps=1500, batch_size=128, ema=0.98, sampler_steps=5, pad_end=pad_end)
    decoder = clone(data, settings, name="tail")
    w = torch.randn(16, 8, 1, generator=torch.Generator().manual_seed(0))
    first = decoder(torch.full((16, 1), 11.0), w)[:, 0]
    assert float(first.mean()) == pytest.approx(at_the_end, abs=0.3)


def test_episodes_shorter_than_a_chunk_are_refused(refused):
    with refused("no episode", "6 steps"):
        clone(two_modes(20), CloneSettings(chunk=6, steps=1, pad_end=False), name="small")


def test_a_stopped_training_keeps_what_it_has():
    data, calls = two_modes(50), []
    settings = CloneSettings(**{**QUICK, "steps": 400})

    def stop():
        calls.append(1)
        return len(calls) == 40

    stopped = clone(data, settings, name="mine", stop=stop)
    assert len(calls) == 40
    assert stopped.fingerprint != clone(data, settings, name="mine").fingerprint


@pytest.mark.parametrize("size", [1, 2, 15])
def test_a_time_size_that_no_network_has_is_refused(size, refused):
    with refused("time_size", str(size)):
        CloneSettings(time_size=size)


def test_recipes_of_the_zoo_cut_their_chunks_as_ever():
    from lpds.pretrain.recipes import ZOO

    assert not any(recipe.clone.pad_end for recipe in ZOO.values())
    assert CloneSettings().pad_end


def test_unknown_kind_is_refused(refused):
    with refused("'gan'", "diffusion, flow"):
        clone(two_modes(20), CloneSettings("gan", chunk=2, steps=1), name="small")


def test_ranges_of_the_data_and_constant_columns():
    data = two_modes(500)
    data.actions[:, 1] = 0.75
    normaliser = normaliser_of(data)
    unit = normaliser.normalise_action(torch.from_numpy(data.actions))
    assert float(unit[:, 0].min()) == -1
    assert float(unit[:, 0].max()) == 1
    torch.testing.assert_close(unit[:, 1], torch.zeros(1000))
    torch.testing.assert_close(normaliser.action(unit), torch.from_numpy(data.actions))
    state = normaliser.observation(torch.from_numpy(data.obs))
    assert float(state.abs().max()) <= 1 + 1e-5


def test_a_constant_observation_that_moves_after_all_does_not_explode():
    """0.82 in all of the data and 0.83 once it acts: 0.02 of a unit width, not ten thousand."""
    data = two_modes(500)
    data.obs[:, 0] = 0.82
    data.obs[::7, 0] += np.float32(6e-8)  # what float32 rounds
    normaliser = normaliser_of(data)
    moved = torch.from_numpy(data.obs[:1].copy())
    moved[0, 0] = 0.83
    assert float(normaliser.observation(moved)[0, 0]) == pytest.approx(0.02, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunk": 0}, "chunk must be positive"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"steps": -3}, "steps must be positive"),
        ({"blocks": 0}, "blocks must be positive"),
        ({"sampler_steps": 21}, "sampler_steps 21 must be at most training_steps 20"),
        ({"kind": "flow", "solver": "rk4"}, "unknown solver 'rk4'"),
        ({"ema": 1.0}, "ema 1.0 must be in [0, 1)"),
        ({"seed": -1}, "seed must be in"),
    ],
)
def test_settings_that_cannot_train_are_refused(changes, words, refused):
    with refused(words):
        CloneSettings(**changes)


# --- training -------------------------------------------------------------------------------------------------------


def two_modes(episodes: int) -> Demonstrations:
    """Episodes of two steps that go all the way one side or the other, whatever the state: +-(0.6, 0.3) and small noise."""
    rng = np.random.default_rng(0)
    side = rng.choice([-1.0, 1.0], episodes).repeat(2)[:, None]
    actions = side * np.array([0.6, 0.3]) + 0.03 * rng.standard_normal((2 * episodes, 2))
    return Demonstrations(
        obs=rng.uniform(-1, 1, (2 * episodes, 3)).astype(np.float32),
        actions=actions.astype(np.float32),
        episode_lengths=np.full(episodes, 2),
        episode_returns=np.full(episodes, np.nan),
        episode_source=np.zeros(episodes, np.int64),
    )


QUICK = {"pad_end": False, "chunk": 2, "width": 64, "steps": 500, "batch_size": 128, "lr": 3e-3, "lr_final": 3e-4, "ema": 0.98}


@pytest.mark.parametrize(("kind", "sampler_steps"), [("diffusion", 5), ("flow", 8)])
def test_both_modes_are_recovered(kind, sampler_steps):
    settings = CloneSettings(kind, sampler_steps=sampler_steps, **{**QUICK, "steps": 700})
    decoder = clone(two_modes(1000), settings, name="two-modes")
    assert isinstance(decoder, DiffusionDecoder if kind == "diffusion" else FlowDecoder)
    assert decoder.spec.latent_shape == decoder.spec.action_shape == (2, 2)
    generator = torch.Generator().manual_seed(1)
    obs = 2 * torch.rand(1000, 3, generator=generator) - 1
    chunk = decoder(obs, torch.randn(1000, 2, 2, generator=generator)).numpy()
    mode = np.array([[0.6, 0.3], [0.6, 0.3]])
    distance = np.stack([np.abs(chunk - side * mode).max((1, 2)) for side in (-1, 1)])
    share = (distance < 0.2).mean(1)
    assert share.min() > 0.35, f"shares of the modes: {share}"
    assert share.sum() > 0.9, f"on the modes: {share}"
    # which mode is a matter of the noise alone: other noise at the same state gives the other mode too
    fixed = decoder(obs[:1].expand(1000, 3), torch.randn(1000, 2, 2, generator=generator)).numpy()
    assert 0.3 < (fixed[:, 0, 0] > 0).mean() < 0.7


def test_what_was_meant_is_cloned_where_it_is_told_and_survives_a_file(tmp_path):
    """A clone of shaken actions with the intentions beside them is the clone of the intentions, to the bit."""
    meant = two_modes(50)
    shaken = meant.actions + np.random.default_rng(1).normal(0.0, 0.3, meant.actions.shape).astype(np.float32)
    both, settings = replace(meant, actions=shaken, meant=meant.actions), CloneSettings(**{**QUICK, "steps": 20})
    both.save(tmp_path / "both.npz")
    read = open_data(str(tmp_path / "both.npz"))
    np.testing.assert_array_equal(read.actions, shaken)  # what a replay of demonstrations takes
    prints = [clone(data, settings, name="x").fingerprint for data in (meant, both, read, replace(both, meant=both.meant[:0]))]
    assert prints[0] == prints[1] == prints[2] != prints[3]
    replace(both, meant=both.meant[:-1]).save(tmp_path / "short.npz")
    with pytest.raises(LpdsError, match=r"meant is \[99, 2\], expected \[100, 2\]"):
        open_data(str(tmp_path / "short.npz"))


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before(kind, tmp_path):
    data = two_modes(200)
    settings = CloneSettings(kind, **{**QUICK, "steps": 40})
    seen = []
    for before in (1, 2):
        torch.manual_seed(before)
        state = torch.get_rng_state()
        decoder = clone(data, settings, name="mine")
        assert torch.equal(torch.get_rng_state(), state), "training must leave the global generator alone"
        save_decoder(decoder, tmp_path / str(before))
        seen.append((decoder.fingerprint, (tmp_path / str(before) / WEIGHTS).read_bytes()))
    assert seen[0] == seen[1]
    other = clone(data, CloneSettings(kind, seed=1, **{**QUICK, "steps": 40}), name="mine")
    assert other.fingerprint != seen[0][0]


def test_watching_the_progress_changes_nothing():
    data, rows = two_modes(200), []
    settings = CloneSettings(**{**QUICK, "steps": 400})
    watched = clone(data, settings, name="mine", progress=lambda *row: rows.append(row))
    assert watched.fingerprint == clone(data, settings, name="mine").fingerprint
    assert [row[:2] for row in rows] == [(200, 400), (400, 400)]
    assert 0 < rows[1][2] < rows[0][2] < 1, "the loss starts near 1, the noise's variance, and falls"


def test_the_shipped_weights_are_the_running_mean():
    """With decay d and a start that forgets: m_0 = p_0, then m <- m + max(1 - d, 1 / (1 + step)) (p - m)."""
    data = two_modes(200)

    def weights(steps: int, ema: float) -> torch.Tensor:
        # no decay of the learning rate, so that a shorter run is the beginning of a longer one
        settings = CloneSettings(**{**QUICK, "steps": steps, "lr_final": QUICK["lr"], "ema": ema})
        return torch.cat([p.flatten() for p in clone(data, settings, name="mine").net.parameters()]).double()

    raw = [weights(steps, 0.0) for steps in range(1, 7)]
    mean = raw[0]
    for step, value in enumerate(raw[1:], start=1):
        mean = mean + max(1 - 0.7, 1 / (1 + step)) * (value - mean)
    torch.testing.assert_close(weights(6, 0.7), mean, atol=1e-6, rtol=0)
