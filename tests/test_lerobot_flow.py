"""LeRobot's pi0, pi05 and SmolVLA as decoders: LeRobot's own actions, padding masked, one prefix for many noises."""

from __future__ import annotations

import importlib.util
import json
import shutil

import lerobot_policies as tiny
import pytest
import torch

from lpds import LpdsError, load_decoder

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
    pytest.mark.skipif(
        importlib.util.find_spec("lerobot") is None or importlib.util.find_spec("transformers") is None,
        reason="lerobot or transformers is not installed (docs/lerobot.md)",
    ),
]
KINDS = ("pi0", "pi05", "smolvla")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny.words_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory, tokenizer):
    """Kind, policy and folder; its constructors stay small for the tests of the module."""
    from lpds.decoders.lerobot.folder import import_lerobot

    import_lerobot(request.param)
    with pytest.MonkeyPatch.context() as patch:
        tiny.shrink(patch, request.param)
        folder = tmp_path_factory.mktemp("lerobot") / request.param
        yield (request.param, *tiny.flow(folder, patch, request.param, tokenizer))


def inputs(decoder, policy, rows=4):
    """Observation and noise of a decoder without a task."""
    obs = {**tiny.observation(policy, rows), **tiny.tokens(rows)}
    obs = {key: obs[key] for key in decoder.spec.obs_shape}
    return obs, torch.randn(rows, *decoder.spec.latent_shape, generator=torch.Generator().manual_seed(5))


def scaled(folder, policy, chunk):
    stats = tiny.statistics({**policy.config.input_features, **policy.config.output_features})["action"]
    if str(policy.config.normalization_mapping["ACTION"].value) == "QUANTILES":
        return (chunk + 1) / 2 * (stats["q99"] - stats["q01"]) + stats["q01"]
    return chunk * stats["std"] + stats["mean"]


def normalised(policy, obs):
    stats = tiny.statistics({**policy.config.input_features, **policy.config.output_features})
    out = dict(obs)
    if tiny.STATE in obs and str(policy.config.normalization_mapping["STATE"].value) == "MEAN_STD":
        out[tiny.STATE] = (obs[tiny.STATE] - stats[tiny.STATE]["mean"]) / (stats[tiny.STATE]["std"] + 1e-8)
    return out


def test_plausible_observations_can_be_decoded(made):
    decoder = load_decoder(f"lerobot:{made[2]}")
    generator = torch.Generator().manual_seed(4)
    obs = decoder.plausible({k: torch.randn(3, *s, generator=generator) for k, s in decoder.spec.obs_shape.items()})
    assert bool((obs[tiny.TOKENS] >= 0).all())
    assert torch.isfinite(decoder(obs, torch.randn(3, *decoder.spec.latent_shape, generator=generator))).all()


def test_actions_are_lerobots_own(made):
    _, policy, folder = made
    decoder = load_decoder(f"lerobot:{folder}")
    obs, w = inputs(decoder, policy)
    with torch.no_grad():
        chunk = policy.predict_action_chunk(normalised(policy, obs), noise=w.clone())
    action = decoder(obs, w)
    torch.testing.assert_close(action, scaled(folder, policy, chunk)[:, :6], rtol=1e-4, atol=1e-5)
    assert action.dtype == torch.float32
    assert not action.requires_grad
    assert not torch.allclose(action, decoder(obs, -w), atol=1e-4)


def test_a_camera_is_one_by_its_type_whatever_it_is_called(tmp_path, tokenizer):
    """LeRobot's singular key, beside an empty camera: that one is LeRobot's to pad, and not a black picture that is there."""
    from lpds.decoders.lerobot.folder import import_lerobot

    import_lerobot("pi0")
    with pytest.MonkeyPatch.context() as patch:
        tiny.shrink(patch, "pi0")
        policy, folder = tiny.flow(tmp_path / "pi0", patch, "pi0", tokenizer, camera="observation.image", empty_cameras=1)
        decoder = load_decoder(f"lerobot:{folder}")
        obs, w = inputs(decoder, policy)
        with torch.no_grad():
            chunk = policy.predict_action_chunk(normalised(policy, obs), noise=w.clone())
        torch.testing.assert_close(decoder(obs, w), scaled(folder, policy, chunk)[:, :6], rtol=1e-4, atol=1e-5)
        drawn = decoder.plausible({k: torch.randn(3, *s) for k, s in decoder.spec.obs_shape.items()})["observation.image"]
        assert float(drawn.min()) >= 0.0
        assert float(drawn.max()) <= 1.0


def test_pictures_and_numbers_in_other_types_are_the_same_or_refused(made):
    _, policy, folder = made
    decoder = load_decoder(f"lerobot:{folder}")
    obs, w = inputs(decoder, policy)
    if tiny.STATE in obs:
        counts = torch.arange(8).expand(4, -1)
        actions = [decoder({**obs, tiny.STATE: counts.to(kind)}, w) for kind in (torch.float32, torch.uint8, torch.int64)]
        assert torch.equal(actions[0], actions[1])
        assert torch.equal(actions[0], actions[2])
    with pytest.raises(LpdsError, match=r"comes as float32 from .* to .*: a picture is bytes \(uint8\), or floats from 0 to 1"):
        decoder({**obs, tiny.CAMERA: 255.0 * obs[tiny.CAMERA]}, w)
    for wrong in (2.0 * obs[tiny.CAMERA] - 1.0, torch.full_like(obs[tiny.CAMERA], torch.nan)):  # of another scale, or of none
        with pytest.raises(LpdsError, match=f"'{tiny.CAMERA}' comes as float32 from "):
            decoder({**obs, tiny.CAMERA: wrong}, w)


def test_an_instruction_goes_through_lerobots_own_tokenizer_step(made, tokenizer):
    from lerobot.policies.factory import make_pre_post_processors

    kind, policy, folder = made
    decoder = load_decoder(f"lerobot:{folder}", task="lift the cube", tokenizer=tokenizer)
    assert set(decoder.spec.obs_shape) == {tiny.STATE, tiny.CAMERA}
    obs, w = inputs(decoder, policy)
    before, after = make_pre_post_processors(
        policy.config,
        pretrained_path=str(folder),
        preprocessor_overrides={"tokenizer_processor": {"tokenizer_name": str(tokenizer)}},
    )
    batch = before({**obs, "task": ["lift the cube"] * 4})
    assert int(batch[tiny.MASK].sum()) > 0
    with torch.no_grad():
        chunk = policy.predict_action_chunk({key: batch[key] for key in (*obs, tiny.TOKENS, tiny.MASK)}, noise=w.clone())
    torch.testing.assert_close(decoder(obs, w), after(chunk)[:, :6], rtol=1e-4, atol=1e-5)
    other = load_decoder(f"lerobot:{folder}", task="drop the cube", tokenizer=tokenizer)
    assert not torch.equal(other(obs, w), decoder(obs, w))
    assert len({other.fingerprint, decoder.fingerprint, load_decoder(f"lerobot:{folder}").fingerprint}) == 3
    if kind == "pi05":  # there the state is part of the instruction
        assert not torch.equal(decoder({**obs, tiny.STATE: obs[tiny.STATE] + 0.5}, w), decoder(obs, w))


def test_the_fingerprint_knows_what_the_tokenizer_makes_of_the_instruction_and_not_where_it_lies(made, tokenizer, tmp_path):
    _, policy, folder = made

    def opened(place):
        return load_decoder(f"lerobot:{folder}", task="lift the cube", tokenizer=place)

    shutil.copytree(tokenizer, tmp_path / "moved")
    assert opened(tmp_path / "moved").fingerprint == opened(tokenizer).fingerprint
    words = json.loads((tmp_path / "moved" / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["lift"], vocabulary["cube"] = vocabulary["cube"], vocabulary["lift"]
    shutil.copytree(tokenizer, tmp_path / "swapped")
    (tmp_path / "swapped" / "tokenizer.json").write_text(json.dumps(words))
    swapped = opened(tmp_path / "swapped")
    obs, w = inputs(swapped, policy)
    assert not torch.equal(swapped(obs, w), opened(tokenizer)(obs, w))
    assert swapped.fingerprint != opened(tokenizer).fingerprint


def test_pictures_in_bytes_are_those_of_0_to_1(made):
    _, policy, folder = made
    decoder = load_decoder(f"lerobot:{folder}")
    obs, w = inputs(decoder, policy)
    picture = (255 * obs[tiny.CAMERA]).round().to(torch.uint8)
    wanted = decoder({**obs, tiny.CAMERA: picture.float() / 255.0}, w)
    assert torch.equal(decoder({**obs, tiny.CAMERA: picture}, w), wanted)


def test_configurations_that_lerobot_breaks_on_are_refused_when_they_are_opened(made, tmp_path):
    kind, _, folder = made

    def changed(name, change):
        shutil.copytree(folder, tmp_path / name)
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))
        return f"lerobot:{tmp_path / name}"

    with pytest.raises(LpdsError, match=f"{kind} without any camera; LeRobot's inference wants one"):
        load_decoder(changed("blind", lambda config: config["input_features"].pop(tiny.CAMERA)))
    with pytest.raises(LpdsError, match=r"actions of 7 numbers do not fit into max_action_dim 4"):
        load_decoder(changed("narrow", lambda config: config.update(max_action_dim=4)))


def test_columns_that_only_pad_are_masked(made):
    decoder = load_decoder(f"lerobot:{made[2]}")
    assert decoder.spec.latent_shape == (10, 32)
    assert decoder.spec.action_shape == (6, 7)
    assert decoder.spec.free == (True,) * 7 + (False,) * 25
    assert decoder.spec.free_size == 70
    assert float(decoder.spec.free_mask().sum()) == 70


def test_one_prefix_serves_several_noises_and_is_not_used_up(made):
    _, policy, folder = made
    decoder = load_decoder(f"lerobot:{folder}")
    obs, w = inputs(decoder, policy, rows=6)
    two = {key: value[:2] for key, value in obs.items()}
    again = {key: value.repeat_interleave(3, 0) for key, value in two.items()}
    context = decoder.prepare(two)
    first = decoder.decode(context, w)
    assert torch.equal(decoder.decode(context, w), first)
    torch.testing.assert_close(first, decoder(again, w), rtol=1e-4, atol=1e-5)
    single = torch.stack([decoder.decode(context, w[i::3]) for i in range(3)], 1).flatten(0, 1)
    torch.testing.assert_close(single, first, rtol=1e-4, atol=1e-5)


def test_the_prefix_is_computed_once(made, monkeypatch):
    _, policy, folder = made
    decoder = load_decoder(f"lerobot:{folder}")
    obs, w = inputs(decoder, policy, rows=6)
    counted = []
    model = decoder._policy.model
    original = model.embed_prefix
    monkeypatch.setattr(model, "embed_prefix", lambda *a, **k: counted.append(1) or original(*a, **k))
    context = decoder.prepare({key: value[:2] for key, value in obs.items()})
    for _ in range(3):
        decoder.decode(context, w)
    assert len(counted) == 1


def test_deterministic_and_row_by_row(made):
    _, policy, folder = made
    decoder = load_decoder(f"lerobot:{folder}")
    obs, w = inputs(decoder, policy)
    first = decoder(obs, w)
    assert torch.equal(decoder(obs, w), first)
    alone = torch.cat([decoder({key: value[i : i + 1] for key, value in obs.items()}, w[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, first, rtol=1e-3, atol=1e-4)


def test_options(made):
    _, policy, folder = made
    decoder = load_decoder(f"lerobot:{folder}")
    assert decoder.describe()["sampler"] == {"kind": "euler", "steps": 4}
    more = load_decoder(f"lerobot:{folder}", steps=8, execute=10)
    assert more.spec.action_shape == (10, 7)
    assert more.fingerprint != decoder.fingerprint
    obs, w = inputs(decoder, policy)
    assert not torch.equal(more(obs, w)[:, :6], decoder(obs, w))
    for words, option in (
        ("ddim_steps is not an option", {"ddim_steps": 3}),
        ("at least 1", {"steps": 0}),
        (r"1 \.\. 10", {"execute": 11}),
        ("vectors only", {"flat": True}),
    ):
        with pytest.raises(LpdsError, match=words):
            load_decoder(f"lerobot:{folder}", **option)


def test_a_tokenizer_that_is_not_there_is_one_line(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LpdsError, match=r"policy_preprocessor\.json cannot be opened") as caught:
        load_decoder(f"lerobot:{made[2]}", task="lift", tokenizer=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_cannot_be_fetched_names_the_remedy(made, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when it was imported; else it tries for long
    with pytest.raises(LpdsError, match=r"pass a folder that holds it \(--tokenizer FOLDER, tokenizer=\): ") as caught:
        load_decoder(f"lerobot:{made[2]}", task="lift the cube")
    assert "\n" not in str(caught.value)


def test_words_that_the_tokenizer_does_not_know_are_refused(made, tokenizer):
    """They would all be one token, and the policy would do something else without a word."""
    with pytest.raises(LpdsError, match=r"does not know 'grab', 'things': the instruction 'grab the things' is none"):
        load_decoder(f"lerobot:{made[2]}", task="grab the things", tokenizer=tokenizer)
