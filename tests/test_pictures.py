"""Pictures without features: kept as bytes and once each, shifted, encoded by what the critic's loss trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import SHAPES, SIZE, Spot, reopened, spot_decoder, where
from safetensors.torch import load_file
from scripted import CPU, TINY, assert_same_run
from test_lpds_method import noise

import lpds
from lpds.collect import Collector
from lpds.compact import WholeDecoder, as_learned, look
from lpds.config import LPDSSettings
from lpds.frames import Frames
from lpds.methods.base import BasePolicy
from lpds.methods.encoder import PAD, Encoder, shifted_pictures, split_pictures
from lpds.methods.lpds import LPDS
from lpds.replay import Replay
from lpds.types import Batch, LatentSpec

PIXELS = 3 * SIZE * SIZE
SHORT = TINY | {"steps": 360, "warmup_steps": 150, "num_envs": 2, "delta": 0.5}


def blind_decoder(**changes):
    """Offers no features."""
    return spot_decoder(features=None, feature_size=None, **changes)


def observations(count=5, steps=2):
    env = lpds.make_env(Spot, count, 3)
    obs, _ = env.reset(seed=3)
    for _ in range(steps):
        obs = env.step(np.full((count, 3, 2), 0.1, np.float32))[0]
    env.close()
    return obs


def steer(folder, **changes):
    return lpds.steer(**{"decoder": blind_decoder(), "env": Spot, "out": folder, **SHORT, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blind") / "run"
    steer(folder)
    return folder


# -- states ----------------------------------------------------------------------------------------------------------


def test_a_state_is_the_observation_to_the_bit():
    decoder, obs = blind_decoder(), observations()
    learned = as_learned(decoder)
    assert isinstance(learned, WholeDecoder)
    assert (learned.spec.obs_shape, learned.spec.pictures) == ((2 + PIXELS,), ((3, SIZE, SIZE),))
    assert (learned.spec.vector_size, learned.decodes_states) == (2, True)
    seen = look(decoder, obs)
    assert torch.equal(seen.state[:, :2], torch.from_numpy(obs["speed"]))
    again = learned.prepare(seen.state)
    assert again["picture"].dtype == torch.uint8
    assert all(np.array_equal(again[key].numpy(), obs[key]) for key in SHAPES)
    w = torch.randn(5, 3, 2)
    assert torch.equal(learned(seen.state, w), decoder({key: torch.from_numpy(obs[key]) for key in SHAPES}, w))


def test_pictures_with_channels_first_are_floats_for_the_decoder_and_bytes_in_the_state():
    decoder = lpds.wrap_decoder(
        lambda obs, w: w + obs.mean((1, 2, 3))[:, None, None],
        obs_shape=(3, 8, 9),
        latent_shape=(2, 1),
        action_shape=(2, 1),
        name="first",
    )
    last = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), dtype=np.uint8)
    first = np.ascontiguousarray(np.moveaxis(last, -1, 1))
    wanted = torch.from_numpy(first).float() / 255
    for given in (last, first):
        seen = look(decoder, given)
        assert torch.equal(seen.state, torch.from_numpy(first).flatten(1).float())
        assert torch.equal(seen.decoder.prepare(seen.state), wanted)


# -- the ring ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_step", [1, 3])
def test_frames_are_kept_once_and_found_again(n_step):
    """Against the rows themselves, in a ring that wraps; and out of its segments."""
    decoder = blind_decoder()
    spec = as_learned(decoder).spec
    env = lpds.make_env(Spot, 3, 3)
    given = {"seed": 0, "gamma": 0.9, "discount": "exact", "reward_offset": 0.0, "kept_noises": 0, "device": CPU}
    work = Collector(env, decoder, **given)
    ring, other = Replay(spec, 18, 0, 3, CPU, reserved=3), Replay(spec, 18, 0, 3, CPU)
    plain = Replay(LatentSpec(spec.obs_shape, spec.latent_shape, spec.action_shape), 18, 0, 3, CPU)
    saved, first = [], 0
    for count in range(17):
        rows, _, _ = work.step(BasePolicy(), 0.0)
        ring.insert(rows)
        plain.insert(rows)
        if count % 4 == 3:
            saved.append((first, ring.segment(first)))
            first = ring.inserted
        samples = [r.sample(64, torch.Generator().manual_seed(count), n_step=n_step) for r in (ring, plain)]
        assert torch.equal(samples[0].obs, samples[1].obs)
        assert torch.equal(samples[0].next_obs, samples[1].next_obs)
        assert samples[0].obs.dtype == torch.float32
    saved.append((first, ring.segment(first)))
    for start, segment in saved:
        other.restore(start, segment)
    again = other.sample(64, torch.Generator().manual_seed(5), n_step=n_step)
    wanted = ring.sample(64, torch.Generator().manual_seed(5), n_step=n_step)
    assert torch.equal(again.obs, wanted.obs)
    assert torch.equal(again.next_obs, wanted.next_obs)
    assert ring.row_bytes["pictures"] == PIXELS
    assert isinstance(ring._frames, Frames)
    assert len(ring._frames._after) == int(ring.everything("over").sum())


def test_what_follows_a_cut_row_is_the_picture_that_did():
    spec = as_learned(blind_decoder()).spec
    numbers = spec.vector_size
    work = Collector(
        lpds.make_env(Spot, 2, 3),
        blind_decoder(),
        seed=0,
        gamma=0.9,
        discount="exact",
        reward_offset=0.0,
        kept_noises=0,
        device=CPU,
    )
    ring, again = (Replay(spec, 40, 0, 2, CPU) for _ in range(2))
    before, _, _ = work.step(BasePolicy(), 0.0)
    ring.insert(before)
    saved = ring.segment(0)
    ring.cut([1])
    elsewhere, _, _ = work.step(BasePolicy(), 0.0)
    elsewhere["obs"] = elsewhere["obs"].clone()
    elsewhere["obs"][:, numbers:] = 255.0 - elsewhere["obs"][:, numbers:]
    ring.insert(elsewhere)
    follows = ring._frames.after(torch.tensor([0, 1]))
    assert torch.equal(follows[0], elsewhere["obs"][0, numbers:])
    assert torch.equal(follows[1], before["next_obs"][1, numbers:])
    again.cuts = list(ring.cuts)
    again.restore(0, saved)
    again.restore(2, ring.segment(2))
    assert torch.equal(again._frames.after(torch.tensor([0, 1])), follows)


# -- the encoder -------------------------------------------------------------------------------------------------------


def state(count=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [torch.randn(count, 2, generator=generator), torch.randint(0, 256, (count, PIXELS), generator=generator)], 1
    )


def test_shifts_are_whole_pixels_of_every_size_and_touch_nothing_else():
    spec = as_learned(blind_decoder()).spec
    obs, moves = state(4000), torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
    (numbers, pictures), (same, moved) = (split_pictures(o, spec) for o in (obs, shifted_pictures(obs, spec, moves)))
    assert torch.equal(numbers, same)
    inside = slice(PAD, SIZE - PAD)
    found = np.zeros((2 * PAD + 1, 2 * PAD + 1), int)
    for down in range(-PAD, PAD + 1):
        for across in range(-PAD, PAD + 1):
            rolled = torch.roll(pictures, (-down, -across), (2, 3))
            found[down + PAD, across + PAD] = int((rolled == moved)[:, :, inside, inside].flatten(1).all(1).sum())
    assert found.sum() == 4000
    assert found.min() > 0.4 * 4000 / 81
    assert found.max() < 1.8 * 4000 / 81
    still = shifted_pictures(obs, spec, torch.zeros(4000, 2))  # the middle of the distribution
    assert torch.equal(still, obs)


def made(seed=0, **changes):
    settings = LPDSSettings(width=32, depth=1, **{"kept_noises": 0, **changes})
    return LPDS(settings, as_learned(blind_decoder()), generator=torch.Generator().manual_seed(seed), device=CPU)


def data_of(method, states, reward, discount=0.0):
    d, a, count = method.decoder.spec.latent_size, method.decoder.spec.action_size, len(states)
    generator = torch.Generator().manual_seed(9)
    action = torch.randn(count, a, generator=generator)
    empty = torch.empty(count, 0, d), torch.empty(count, 0, a)
    return Batch(states, action, reward, torch.full((count,), discount), states, *empty)


def test_only_the_action_critics_loss_trains_the_encoder():
    method = made()
    encoder = method.policy.scaling
    assert isinstance(encoder, Encoder)
    generator = torch.Generator().manual_seed(2)
    data = data_of(method, state(16), torch.randn(16, generator=generator))
    before = {key: value.clone() for key, value in encoder.state_dict().items()}

    def changed():
        return [key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])]

    obs = encoder(data.obs)
    drawn = noise(method, 16, generator)
    method._distill(data, obs.detach(), drawn)
    method._ascend(data, obs.detach(), drawn["actor"])
    assert changed() == []
    method._td(data, encoder(data.obs), drawn["next"])
    assert {key.rsplit(".", 1)[-1] for key in changed()} == {"weight", "bias"}
    parameters = {id(p) for p in encoder.parameters()}
    assert not parameters & {id(p) for p in method.adam_shift.param_groups[0]["params"]}


def test_the_critic_learns_what_only_the_picture_shows():
    method = made(lr=3e-3)
    decoder, learned = blind_decoder(), method.decoder
    env = lpds.make_env(Spot, 64, 3)
    obs, _ = env.reset(seed=1)
    env.close()
    seen = look(decoder, obs).state
    place = where(learned.prepare(seen))[:, 0]
    data = data_of(method, seen, (place - place.mean()) / place.std())
    generator = torch.Generator().manual_seed(3)
    errors = []
    for _ in range(120):
        drawn = noise(method, 64, generator)
        drawn["moves"] = torch.zeros(64, 4)  # unshifted: the place is what is asked for
        errors.append(float(method.update(data, drawn, critics_only=True)["td_loss"]))
    assert np.mean(errors[-10:]) < 0.1 * np.mean(errors[:5])


# -- a whole run -------------------------------------------------------------------------------------------------------


def test_a_run_and_its_policy(whole):
    segments = [load_file(path) for path in sorted((whole / "checkpoint").glob("replay-*"))]
    assert {segment["frames"].dtype for segment in segments} == {torch.uint8}
    assert segments[0]["obs"].shape[1:] == segments[0]["next_obs"].shape[1:] == (2,)
    policy = lpds.load_policy(whole, blind_decoder())
    obs, eps = observations(), np.random.default_rng(0).standard_normal((5, 3, 2)).astype(np.float32)
    tensors = {key: torch.from_numpy(obs[key]) for key in SHAPES}
    assert np.array_equal(policy.act(obs, eps, scale=0.0), blind_decoder()(tensors, torch.from_numpy(eps)).numpy())
    shift = policy.shift(obs)
    assert shift.any()
    other = {**obs, "picture": 255 - obs["picture"]}
    assert not np.array_equal(policy.shift(other), shift)
    assert np.array_equal(policy.act(obs, eps), blind_decoder()(tensors, torch.from_numpy(eps + shift)).numpy())


def test_a_run_that_was_stopped_goes_on_to_the_bit(whole, tmp_path, monkeypatch):
    from lpds.runner import Runner

    save, count = Runner.save, []

    def stopping(runner):
        save(runner)
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        steer(tmp_path / "run")
    monkeypatch.setattr(Runner, "save", save)
    lpds.resume(tmp_path / "run", decoder=blind_decoder(), env=Spot, quiet=True)
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("method", ["lpds-a", "golden-ticket", "base"])
def test_other_methods(method, tmp_path):
    names = ("width", "depth", "batch_size", "delta") if method != "lpds-a" else ()
    settings = {key: value for key, value in SHORT.items() if key not in names}
    run = lpds.steer(decoder=blind_decoder(), env=Spot, method=method, out=tmp_path / "run", **settings | {"steps": 240})
    policy = reopened(run, blind_decoder(), observations(), learns=method != "base")
    assert policy.act(observations()).shape == (5, 3, 2)


def test_kept_chunks_and_a_small_ring(tmp_path):
    run = steer(tmp_path / "run", target_actions="kept", replay_size=40, kept_noises=2)
    policy = reopened(run, blind_decoder(), observations())
    assert policy.shift(observations()).shape == (5, 3, 2)
