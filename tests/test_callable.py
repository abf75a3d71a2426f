"""Any function as a decoder: what goes in and comes out, its fingerprint, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scripted import TINY, assert_same_run, toy_decoder

import lpds
from lpds import wrap_decoder

SHAPES = {"obs_shape": (11,), "latent_shape": (4, 3), "action_shape": (4, 3), "name": "mine"}


def linear(obs, w):
    return w + obs[:, :3].unsqueeze(1)


def wrap(fn=linear, **changes):
    return wrap_decoder(fn, **{**SHAPES, **changes})


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 11, generator=generator), torch.randn(6, 4, 3, generator=generator)


def test_the_function_itself_is_called(inputs):
    obs, w = inputs
    assert torch.equal(wrap()(obs, w), linear(obs, w))


def test_the_function_may_work_in_place_and_return_its_buffer_again(inputs):
    """It gets copies of what it is given, and what it returns is copied: nothing of a run changes behind its back."""
    obs, w = inputs
    buffer = torch.zeros(64, 4, 3)

    def untidy(o, noise):
        o.clamp_(-0.1, 0.1)
        noise.mul_(2.0)
        buffer[: len(noise)] = noise
        return buffer[: len(noise)]

    kept_obs, kept_w = obs.clone(), w.clone()
    first = wrap(untidy)(obs, w)
    wrap(untidy)(obs, -w)
    assert torch.equal(first, 2.0 * kept_w)
    assert torch.equal(obs, kept_obs)
    assert torch.equal(w, kept_w)
    assert torch.equal(wrap(lambda o, noise: noise.numpy()[:, ::-1])(obs, w), w.flip(1))


def test_a_stochastic_function_with_one_buffer_is_stochastic_all_the_same(inputs, refused):
    buffer = torch.zeros(64, 4, 3)

    def drawn(o, w):
        buffer[: len(w)] = torch.rand(w.shape)
        return buffer[: len(w)]

    with refused("is stochastic"):
        wrap(drawn).fingerprint  # noqa: B018


def test_inputs_of_another_float_type_are_taken_and_others_refused(inputs, refused):
    obs, w = inputs
    assert torch.equal(wrap()(obs.double(), w.double()), wrap()(obs, w))
    with refused("takes tensors, not a ndarray"):
        wrap()(obs.numpy(), w)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda w: 1 / 0, "decoder 'linear' raised ZeroDivisionError"),
        (lambda w: w * float("nan"), "decoder 'linear' returned NaN or infinite actions"),
        (lambda w: w[:, :1], "decoder 'linear' returned actions"),
    ],
)
def test_a_function_that_breaks_in_a_run_saves_it_and_the_run_goes_on_where_it_was(tmp_path, refused, broken, words):
    """As an environment's fault does; resumed with the function mended, the run is the one that never broke."""
    whole = toy_decoder()
    calls = [0]

    def sometimes(obs, w):
        calls[0] += 1
        return broken(w) if calls[0] == 150 else whole._fn(obs, w)

    shapes = {"obs_shape": (2,), "latent_shape": (4, 2), "action_shape": (4, 2), "name": "linear"}
    lpds.steer("toy", decoder=whole, out=tmp_path / "whole", **TINY)
    with refused(words, "the run is saved at step"):
        lpds.steer("toy", decoder=wrap_decoder(sometimes, **shapes), out=tmp_path / "run", **TINY)
    assert lpds.resume(tmp_path / "run", decoder=whole, quiet=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_arrays_and_other_float_types_come_back_as_float32(inputs):
    obs, w = inputs
    for fn in (lambda o, w: w.numpy().astype(np.float64), lambda o, w: w.double(), lambda o, w: w.tolist()):
        out = wrap(fn)(obs, w)
        assert out.dtype == torch.float32
        assert torch.equal(out, w)


def test_no_gradient_passes(inputs):
    weight = torch.ones(1, requires_grad=True)
    out = wrap(lambda obs, w: weight * w)(inputs[0], inputs[1].clone().requires_grad_())
    assert not out.requires_grad


def test_latent_and_action_may_have_different_shapes():
    decoder = wrap(lambda obs, w: w[:, :5, :7], latent_shape=(50, 32), action_shape=(5, 7), free=(True,) * 7 + (False,) * 25)
    assert decoder(torch.zeros(2, 11), torch.ones(2, 50, 32)).shape == (2, 5, 7)
    assert decoder.spec.latent_size == 1600
    assert decoder.spec.free_size == 350
    mask = decoder.spec.free_mask().view(50, 32)
    assert bool((mask[:, :7] == 1).all())
    assert bool((mask[:, 7:] == 0).all())


def test_dict_observations():
    shapes = {"pixels": (3, 8, 8), "state": (2,)}
    decoder = wrap(lambda obs, w: w + obs["state"].mean() + obs["pixels"].mean(), obs_shape=shapes)
    obs = {"pixels": torch.ones(5, 3, 8, 8), "state": torch.ones(5, 2)}
    torch.testing.assert_close(decoder(obs, torch.zeros(5, 4, 3)), torch.full((5, 4, 3), 2.0))
    assert decoder.spec.obs_size == 3 * 8 * 8 + 2
    assert (
        decoder.fingerprint == wrap(lambda obs, w: w + obs["state"].mean() + obs["pixels"].mean(), obs_shape=shapes).fingerprint
    )


# --- fingerprint ----------------------------------------------------------------------------------------------------


def test_fingerprint_is_of_name_shapes_and_behaviour():
    same = [wrap(), wrap(linear), wrap(lambda obs, w: linear(obs, w) * (1 + 1e-7))]
    assert len({decoder.fingerprint for decoder in same}) == 1
    others = [
        wrap(),
        wrap(name="other"),
        wrap(lambda obs, w: linear(obs, 1.1 * w)),
        wrap(lambda obs, w: linear(obs, w) + 0.1),
        wrap(lambda obs, w: linear(1.1 * obs, w)),
        wrap(free=(True, True, False)),
        wrap(lambda obs, w: linear(obs, w)[:, :2], action_shape=(2, 3)),
        wrap(lambda obs, w: linear(obs, w[:, :4]), latent_shape=(5, 3)),
    ]
    assert len({decoder.fingerprint for decoder in others}) == len(others)


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1.0, 1e3])
def test_fingerprint_sees_the_same_relative_change_in_every_unit(unit):
    """Actions in metres a step are small numbers: two such policies must not pass for one."""
    one, rounding, two = (
        wrap(lambda obs, w, f=factor: unit * f * linear(obs, w)).fingerprint for factor in (1.0, 1.0 + 1e-8, 1.2)
    )
    assert one == rounding
    assert one != two


def test_fingerprint_does_not_depend_on_what_was_drawn_before():
    torch.manual_seed(1)
    first = wrap().fingerprint
    torch.manual_seed(2)
    np.random.seed(3)
    assert wrap().fingerprint == first


def test_fingerprint_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert wrap().fingerprint
    assert torch.equal(torch.get_rng_state(), before)


def test_wrapping_itself_calls_nothing():
    def never(obs, w):
        raise AssertionError("called")

    assert wrap(never).spec.latent_shape == (4, 3)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn",
    [lambda obs, w: torch.randn(w.shape), lambda obs, w: w + 0.3 * torch.rand(1), lambda obs, w: w * np.random.normal()],
    ids=["noise ignored", "noise added", "numpy noise"],
)
def test_a_stochastic_function_is_refused_at_its_fingerprint(refused, fn):
    decoder = wrap(fn)
    with refused("'mine'", "stochastic", "deterministic sampler", "eta 0"):
        _ = decoder.fingerprint


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_actions_that_are_not_finite_are_refused_at_the_fingerprint(refused, bad):
    def fn(obs, w):
        return torch.full_like(w, bad)

    with refused("'mine'", "NaN or infinite"):
        _ = wrap(fn).fingerprint


@pytest.mark.parametrize(
    ("fn", "found"),
    [
        (lambda obs, w: w[:, :3], "[6, 3, 3]"),
        (lambda obs, w: w.flatten(1), "[6, 12]"),
        (lambda obs, w: w[:1], "[1, 4, 3]"),
        (lambda obs, w: w.transpose(1, 2), "[6, 3, 4]"),
        (lambda obs, w: w.sum(), "[]"),
    ],
)
def test_a_function_that_returns_another_shape_is_refused(refused, inputs, fn, found):
    with refused("'mine'", f"returned actions {found}", "expected [6, 4, 3]"):
        wrap(fn)(*inputs)


@pytest.mark.parametrize("result", [None, "left", {"action": 1}, [[1, 2], [3]]])
def test_a_function_that_returns_no_numbers_is_refused(refused, inputs, result):
    with refused("'mine'", "array or a tensor", type(result).__name__):
        wrap(lambda obs, w: result)(*inputs)


def test_wrong_inputs_are_refused(refused, inputs):
    obs, w = inputs
    with refused("'mine'", "observations [B, 11]", "[6, 10]"):
        wrap()(obs[:, :10], w)
    with refused("'mine'", "latents [B, 4, 3]", "[6, 3, 3]"):
        wrap()(obs, w[:, :3])
    with refused("5 observations", "6 latents"):
        wrap()(obs[:5], w)


def test_sizes_may_be_numpys_and_a_vectors_is_one_number():
    assert wrap(obs_shape=11).spec.obs_shape == wrap(obs_shape=(np.int64(11),)).spec.obs_shape == (11,)
    assert wrap(latent_shape=np.zeros((4, 3)).shape).fingerprint == wrap(obs_shape=11).fingerprint


def test_the_probe_behind_a_fingerprint_shows_pictures_as_pictures():
    """A preparation that insists on bytes, or on [0, 1], as PIL and torchvision do, meets them there too."""
    seen = {}

    def act(obs, w):
        seen.update(obs)
        return w

    wrap(act, obs_shape={"top": (8, 8, 3), "side": (3, 8, 8), "state": (2,)}).fingerprint  # noqa: B018
    assert seen["top"].dtype == torch.uint8
    assert 0.0 <= float(seen["side"].min()) < float(seen["side"].max()) <= 1.0
    assert float(seen["state"].min()) < 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"obs_shape": (0,)}, ("obs_shape", "(0,)")),
        ({"obs_shape": (11.0,)}, ("obs_shape", "(11.0,)")),
        ({"obs_shape": {"state": (-1,)}}, ("obs_shape", "(-1,)")),
        ({"latent_shape": (12,)}, ("latent_shape", "two entries", "(12,)")),
        ({"latent_shape": (4, 0)}, ("latent_shape", "positive")),
        ({"action_shape": (4, 3, 1)}, ("action_shape", "two entries")),
        ({"free": (True, False)}, ("free", "3 entries")),
        ({"free": (False, False, False)}, ("free", "at least one")),
    ],
)
def test_impossible_shapes_are_refused(refused, changes, words):
    with refused(*words):
        wrap(**changes)


def test_wrapped_functions_have_no_file_form(refused, tmp_path):
    from lpds.decoders.store import save_decoder

    with refused("'mine'", "callable"):
        save_decoder(wrap(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_policies_that_saturate_far_from_their_own_observations_are_told_apart(refused):
    """Metres and clipped actions: at N(0, 1) all of them push to the end, wherever they differ and whether they roll dice."""

    def made(gain, dice=False):
        def act(obs, w):
            noise = torch.randn(w.shape) if dice else w
            return (50.0 * (obs[:, None, :3] - obs[:, None, 3:]) + gain * noise).clamp(-1.0, 1.0)

        return lpds.wrap_decoder(act, obs_shape=(6,), latent_shape=(4, 3), action_shape=(4, 3), name="mine")

    assert made(0.3).fingerprint == made(0.3).fingerprint
    assert made(0.3).fingerprint != made(-0.6).fingerprint
    with refused("is stochastic"):
        made(0.3, dice=True).fingerprint  # noqa: B018


def test_a_policy_that_divides_by_its_observations_length_has_a_fingerprint():
    def act(obs, w):
        return w * (obs / obs.norm(dim=1, keepdim=True))[:, None, :3]

    decoder = lpds.wrap_decoder(act, obs_shape=(3,), latent_shape=(4, 3), action_shape=(4, 3), name="turned")
    assert len(decoder.fingerprint) == 64
