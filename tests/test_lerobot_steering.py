"""LeRobot's policies of pictures under steering: their frozen features, one prefix a decision, a whole run."""

from __future__ import annotations

import importlib.util

import gymnasium
import lerobot_policies as tiny
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lpds
from lpds.compact import as_learned, look

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
    pytest.mark.skipif(
        importlib.util.find_spec("lerobot") is None or importlib.util.find_spec("transformers") is None,
        reason="lerobot or transformers is not installed (docs/lerobot.md)",
    ),
]
ROWS = 3


@pytest.fixture(scope="module", params=["diffusion", "pi0", "pi05", "smolvla"])
def decoder(request, tmp_path_factory):
    """A policy of one camera and a state, with its instruction where it takes one."""
    from lpds.decoders.lerobot.folder import import_lerobot

    import_lerobot(request.param)
    folder = tmp_path_factory.mktemp("lerobot") / request.param
    if request.param == "diffusion":
        tiny.diffusion(folder, image=True, size=68, n_obs_steps=1)
        yield lpds.load_decoder(f"lerobot:{folder}")
        return
    tokenizer = tiny.words_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    with pytest.MonkeyPatch.context() as patch:
        tiny.shrink(patch, request.param)
        tiny.flow(folder, patch, request.param, tokenizer)
        yield lpds.load_decoder(f"lerobot:{folder}", task="lift the cube", tokenizer=tokenizer)


def pictures(decoder, rows=ROWS, seed=0):
    """As cameras give them: uint8, channels last."""
    rng = np.random.default_rng(seed)
    shapes = decoder.spec.obs_shape
    _, height, width = shapes[tiny.CAMERA]
    return {
        tiny.CAMERA: rng.integers(0, 256, (rows, height, width, 3), dtype=np.uint8),
        tiny.STATE: rng.normal(size=(rows, *shapes[tiny.STATE])).astype(np.float32),
    }


def world(decoder):
    """Pictures of noise; ends after 24 steps."""
    first = {key: value[0] for key, value in pictures(decoder).items()}

    class Noise(gymnasium.Env):
        observation_space = gymnasium.spaces.Dict(
            {
                tiny.CAMERA: gymnasium.spaces.Box(0, 255, first[tiny.CAMERA].shape, np.uint8),
                tiny.STATE: gymnasium.spaces.Box(-np.inf, np.inf, first[tiny.STATE].shape, np.float32),
            }
        )
        action_space = gymnasium.spaces.Box(-5.0, 5.0, decoder.spec.action_shape[1:], np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.steps = 0
            return self.observation(), {}

        def step(self, action):
            self.steps += 1
            return self.observation(), -float(np.abs(action).mean()), False, self.steps >= 24, {}

        def observation(self):
            seed = int(self.np_random.integers(1000))
            return {key: value[0] for key, value in pictures(decoder, 1, seed).items()}

    return Noise


def test_features_are_of_the_observation_alone(decoder):
    obs = pictures(decoder)
    seen = look(decoder, obs)
    assert seen.state.shape == (ROWS, decoder.feature_size)
    assert seen.state.dtype == torch.float32
    assert bool(torch.isfinite(seen.state).all())
    assert torch.equal(look(decoder, obs).state, seen.state)
    for key in obs:  # every entry is seen, in its own row only
        changed = {name: value.copy() for name, value in obs.items()}
        changed[key][1] = 255 - changed[key][1] if key == tiny.CAMERA else changed[key][1] + 0.5
        moved = (look(decoder, changed).state - seen.state).abs().amax(1)
        assert float(moved[1]) > 1e-6
        assert float(moved[[0, 2]].max()) < 1e-5


def test_pictures_of_bytes_are_those_of_floats(decoder):
    obs = pictures(decoder)
    floats = {
        tiny.CAMERA: torch.from_numpy(obs[tiny.CAMERA]).permute(0, 3, 1, 2).float() / 255,
        tiny.STATE: torch.from_numpy(obs[tiny.STATE]),
    }
    w = torch.randn(ROWS, *decoder.spec.latent_shape, generator=torch.Generator().manual_seed(0))
    seen = look(decoder, obs)
    assert torch.equal(seen.decoder(seen.state, w), decoder(floats, w))


def test_one_look_serves_every_noise(decoder, monkeypatch):
    obs = pictures(decoder)
    seen = look(decoder, obs)
    monkeypatch.setattr(decoder, "_encode", lambda batch: pytest.fail("another prefix"))
    w = torch.randn(2 * ROWS, *decoder.spec.latent_shape, generator=torch.Generator().manual_seed(0))
    many = seen.decoder(seen.state.repeat_interleave(2, 0), w)
    assert torch.equal(seen.decoder(seen.state.repeat_interleave(2, 0), w), many)
    torch.testing.assert_close(seen.decoder(seen.state, w[::2]), many[::2], rtol=1e-4, atol=1e-5)


def test_what_the_replay_keeps_can_be_decoded_where_it_is_all_the_policy_knows(decoder):
    learned = as_learned(decoder)
    assert learned.decodes_states == (decoder.describe()["policy"] == "diffusion")
    seen = look(decoder, pictures(decoder))
    w = torch.randn(ROWS, *decoder.spec.latent_shape, generator=torch.Generator().manual_seed(0))
    if learned.decodes_states:
        assert torch.equal(learned(seen.state, w), seen.decoder(seen.state, w))
    else:
        with pytest.raises(lpds.LpdsError, match="cannot decode its features again"):
            learned(seen.state, w)


def test_a_run(decoder, tmp_path):
    steps = decoder.spec.action_shape[0]
    settings = {"num_envs": 2, "batch_size": 4, "warmup_steps": 16 * steps, "warmup_fits": 2, "width": 16, "delta": 0.1}
    settings |= {"eval_every": 0, "final_episodes": 2, "kept_noises": 2, "shift_form": "tied", "quiet": True}
    lpds.steer(decoder=decoder, env=world(decoder), steps=32 * steps, out=tmp_path / "run", **settings)
    segments = [load_file(path) for path in sorted((tmp_path / "run" / "checkpoint").glob("replay-*"))]
    assert len(segments) == 2  # before the fits at the warm-up's end, and at the end
    for rows in segments:
        assert rows["obs"].shape[1:] == (decoder.feature_size,)
        assert ("next_action" in rows) == (not decoder.decodes_states)
    policy = lpds.load_policy(tmp_path / "run", decoder)
    obs, eps = pictures(decoder), np.random.default_rng(0).normal(size=(ROWS, *decoder.spec.latent_shape)).astype(np.float32)
    shift = policy.shift(obs)
    assert shift.any()
    assert np.array_equal(shift, np.broadcast_to(shift[:, :1], shift.shape))
    seen = look(decoder, obs)
    assert np.array_equal(policy.act(obs, eps, scale=0.0), seen.decoder(seen.state, torch.from_numpy(eps)).numpy())
