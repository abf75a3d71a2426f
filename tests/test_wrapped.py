"""Wrapped decoders: types, devices, prefixes, pictures, forks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import served

import lpds
from lpds.compact import as_learned, look
from lpds.decoders.base import as_float32, as_picture
from lpds.doctor import check
from lpds.errors import LpdsError


def wrapped(**more):
    made = {"obs_shape": {"a": (2,), "b": (3,)}, "latent_shape": (2, 1), "action_shape": (2, 1), "name": "own"}
    return lpds.wrap_decoder(**{"fn": lambda seen, w: w + seen[:, :1, None], **made, **more})


def acting(act):
    return lpds.wrap_decoder(act, obs_shape=(2,), latent_shape=(4, 2), action_shape=(4, 2), name="own")


def large(shape, **given):
    """Sees one picture, whose brightness counts; the noise decides a little."""

    def brightness(picture):
        return picture.float().flatten(1).mean(1, keepdim=True) / (255.0 if picture.dtype == torch.uint8 else 1.0)

    def policy(obs, w):
        return 0.1 * w + 100.0 * brightness(obs["picture"])[:, None] + obs["state"][:, None, :1]

    shapes = {"picture": shape, "state": (2,)}
    return lpds.wrap_decoder(policy, obs_shape=shapes, latent_shape=(1, 1), action_shape=(1, 1), name="large", **given)


def test_a_prefix_is_computed_once_a_state_without_features_too():
    rows = []

    def prefix(obs):
        rows.append(len(obs["a"]))
        return obs["a"] + obs["b"][:, :2]

    decoder = wrapped(prepare=prefix)
    sight = look(decoder, {"a": np.ones((5, 2), np.float32), "b": np.ones((5, 3), np.float32)})
    rows.clear()
    w = torch.randn(20, 2, 1)
    chunks = sight.decoder.decode(sight.decoder.prepare(sight.state.repeat_interleave(4, 0)), w)
    assert rows == []
    torch.testing.assert_close(chunks, w + 2.0)
    again = as_learned(decoder)
    torch.testing.assert_close(again.decode(again.prepare(sight.state.repeat_interleave(4, 0)), w), chunks)


def test_a_function_gets_its_tensors_where_it_wants_them_whoever_calls():
    """The fingerprint, a probe and a run on another device alike; ``meta`` stands for a GPU."""
    seen = set()

    def note(*values):
        seen.update(value.device.type for value in values)

    def act(context, w):
        note(context, w)
        return np.zeros((len(w), 2, 1), np.float32)

    def prefix(obs):
        note(*obs.values())
        return obs["a"]

    def features(context):
        note(context)
        return np.ones((len(context), 3), np.float32)

    given = {"fn": act, "prepare": prefix, "features": features, "feature_size": 3}
    there = wrapped(**given, device="meta")
    assert there.fingerprint == wrapped(**given).fingerprint
    assert seen == {"meta", "cpu"}
    seen.clear()
    obs = {"a": torch.ones(4, 2), "b": torch.ones(4, 3)}
    assert there(obs, torch.zeros(4, 2, 1)).device.type == "cpu"
    assert look(there, obs).state.device.type == "cpu"
    assert seen == {"meta"}

    def elsewhere(obs, w):
        raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!")

    with pytest.raises(LpdsError, match=r"wrap_decoder\(\.\.\., device=\) says where"):
        _ = wrapped(fn=elsewhere).fingerprint
    with pytest.raises(LpdsError, match="device is 'gpu'"):
        wrapped(device="gpu")


def test_options_that_a_run_could_not_note_down_are_refused_before_it(tmp_path):
    (tmp_path / "own.py").write_text(
        "import lpds\n"
        "def make(model=None):\n"
        "    return lpds.wrap_decoder(lambda s, w: w, obs_shape=2, latent_shape=(2, 1), action_shape=(2, 1), name=str(model))\n"
    )
    reference = f"python:{tmp_path / 'own.py'}:make"
    decoder = lpds.load_decoder(reference, model=Path("x.pt"))
    assert decoder.options == {"model": str(Path("x.pt").resolve())}
    assert lpds.load_decoder(reference, model=np.float32(0.5)).options == {"model": 0.5}
    with pytest.raises(LpdsError, match="option model is a object, which a run could not note down"):
        lpds.load_decoder(reference, model=object())
    with pytest.raises(LpdsError, match=r"feature_size must be a whole number, not 3\.5"):
        wrapped(features=lambda seen: seen, feature_size=3.5)


def test_drawn_pictures_have_shades_that_a_byte_can_have():
    drawn = as_picture(torch.randn(4, 3, 8, 8))
    torch.testing.assert_close(255.0 * drawn, (255.0 * drawn).round(), rtol=0.0, atol=1e-4)
    assert bool(((drawn >= 0.0) & (drawn <= 1.0)).all())


def test_a_stochastic_policy_is_not_evaluated_either(refused):
    with refused("stochastic or has a memory"):
        lpds.evaluate(acting(lambda s, w: torch.randn_like(w)), "toy", episodes=2)


def test_a_wrong_shape_is_not_put_down_to_what_the_policy_was_shown():
    for act, shown in ((lambda s, w: w.flatten(1), False), (lambda s, w: {"a": w}, False), (lambda s, w: w / [], True)):
        with pytest.raises(lpds.LpdsError) as caught:
            _ = acting(act).fingerprint
        assert ("examples=" in str(caught.value)) is shown


def test_numbers_of_any_type_decode_alike():
    """A vector of whole numbers is one of numbers; in a dict they may be tokens, and bytes are a picture's."""
    decoder = lpds.load_decoder("toy")
    obs, w = torch.ones(3, decoder.spec.obs_size), torch.ones(3, *decoder.spec.latent_shape)
    assert torch.equal(decoder(obs.long(), w.int()), decoder(obs, w))
    assert as_float32({"tokens": torch.ones(2, dtype=torch.int64)})["tokens"].dtype == torch.int64
    assert as_float32(torch.ones(2, dtype=torch.uint8), integers=True).dtype == torch.uint8


def test_another_default_type_changes_nothing():
    """A policy's own file may set it for all of the process."""
    before = lpds.evaluate("toy", "toy", episodes=3).returns
    torch.set_default_dtype(torch.float64)
    try:
        again = lpds.evaluate("toy", "toy", episodes=3).returns
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(before, again)


@pytest.mark.parametrize("shape", [(96, 96, 3), (3, 224, 224), (720, 1280, 3)])
def test_a_decoder_of_large_pictures_is_probed_from_afar_as_it_is_here(shape):
    """What fits is sent; where a few pictures do not, they are drawn on this side, and the vectors are the server's."""
    numbers = np.random.default_rng(0).normal(5.0, 1.0, (32, 2)).astype(np.float32)
    kind = np.uint8 if shape[-1] == 3 else np.float32
    pictures = np.random.default_rng(1).integers(0, 256, (32, *shape)).astype(np.uint8)
    examples = {"picture": pictures if kind == np.uint8 else pictures.astype(np.float32) / 255.0, "state": numbers}
    decoder = large(shape, examples=examples)
    with served(decoder) as (_, remote):
        draws = {"picture": torch.zeros(40, *shape), "state": torch.zeros(40, 2)}
        draws["picture"].copy_(torch.linspace(-1.0, 1.0, 40).view(40, 1, 1, 1))
        seen = remote.plausible(draws)
        np.testing.assert_array_equal(seen["state"].numpy(), numbers[np.arange(40) % len(remote._served.examples["state"])])
        assert seen["picture"].shape == (40, *shape)
        assert seen["picture"].dtype == (torch.uint8 if kind == np.uint8 else torch.float32)
        assert len(torch.unique(seen["picture"].flatten(1).float().mean(1))) >= 8  # states that differ
        if shape == (96, 96, 3):
            assert torch.equal(seen["picture"][:32], torch.from_numpy(pictures))
            here, there = (check(one, samples=32) for one in (decoder, remote))
            assert [(one.name, one.verdict) for one in there.findings] == [(one.name, one.verdict) for one in here.findings]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_opens_a_connection_of_its_own():
    """A child that asks on its parent's connection leaves its answer there, for the parent's next question."""
    decoder = lpds.wrap_decoder(lambda obs, w: w + 0.0, obs_shape=1, latent_shape=(1, 1), action_shape=(1, 1), name="echo")
    with served(decoder, timeout=5.0, retries=0) as (_, remote):
        obs = torch.zeros(1, 1)

        def ask(value):
            return float(remote(obs, torch.full((1, 1, 1), value)))

        assert ask(1.0) == 1.0
        remote._lock.acquire()  # as another thread may hold it at the fork
        child = os.fork()
        if child == 0:
            try:
                answered = ask(100.0) == 100.0
            finally:
                os._exit(0 if answered else 1)
        remote._lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ask(5.0) == 5.0
        assert ask(6.0) == 6.0
