"""A tiny pi0: its sizes beside its configuration, its cloning, and that it is LeRobot's own policy in LeRobot's own folder."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
from dataclasses import asdict

import gymnasium
import numpy as np
import pytest
import torch

from lpds import LpdsError, load_decoder, load_policy, steer
from lpds.cli import main
from lpds.decoders.lerobot.tiny import FILE, TinySizes, built_with, read_sizes, write_sizes
from lpds.pretrain.build import pretrain
from lpds.pretrain.experts import Demonstrations
from lpds.zoo import environment_of

HERE = all(importlib.util.find_spec(name) is not None for name in ("lerobot", "transformers"))
needs_lerobot = pytest.mark.skipif(not HERE, reason="lerobot or transformers is not installed (docs/lerobot.md)")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
TOLD = "put the cube away"
SMALL = {"width": 32, "depth": 1, "mlp_dim": 32, "chunk": 4, "batch_size": 32, "sampler_steps": 3, "lr": 3e-3}


def demonstrations(episodes=8, length=20, seed=0):
    """Two columns of action that follow two of the five seen, slowly changing."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(episodes, 1, 5)) + 0.05 * rng.normal(size=(episodes, length, 5))
    obs = obs.reshape(-1, 5).astype(np.float32)
    return Demonstrations(
        obs=obs,
        actions=np.stack([np.sign(obs[:, 0]), 2 * np.sign(obs[:, 1]) + 3], 1).astype(np.float32),
        episode_lengths=np.full(episodes, length, np.int64),
        episode_returns=np.full(episodes, np.nan),
        episode_source=np.zeros(episodes, np.int64),
    )


# --- without lerobot ------------------------------------------------------------------------------------------------


def test_sizes_are_kept_beside_the_configuration(tmp_path):
    assert read_sizes(tmp_path) is None
    sizes = TinySizes(width=48, depth=2, vision_width=12, vision_heads=3)
    write_sizes(tmp_path, sizes)
    assert read_sizes(tmp_path) == sizes
    assert json.loads((tmp_path / FILE).read_text()) == {"format_version": 1, **asdict(sizes)}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format_version": 2}', '{"format_version": 1, "size": 3}'])
def test_a_file_without_sizes_is_one_line(tmp_path, text, refused):
    (tmp_path / FILE).write_text(text)
    with refused(FILE, "does not say sizes"):
        read_sizes(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"depth": 0}, "depth"),
        ({"width": 1.5}, "width"),
        ({"width": True}, "width"),
        ({"width": 33}, "even"),
        ({"head_dim": 5}, "even"),
        ({"vision_heads": 3}, "multiple"),
    ],
)
def test_sizes_that_cannot_be(changes, says, refused):
    with refused(says):
        TinySizes(**changes)


def test_sizes_are_for_pi0_and_pi05(refused):
    with refused(FILE, "not for 'smolvla'"), built_with("smolvla", TinySizes()):
        pass


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--kind", "pi0"], "pass --instruction"),
        (["--kind", "pi0", "--instruction", " "], "pass --instruction"),
        (["--kind", "pi0", "--instruction", TOLD, "--blocks", "2"], "unknown setting 'blocks'"),
        (["--kind", "pi0", "--instruction", TOLD, "--chunk", "0"], "chunk must be positive"),
        (["--kind", "flow", "--instruction", TOLD], "an instruction is for the kinds pi0; 'flow' reads none"),
        (["--kind", "pi"], "unknown decoder kind 'pi'; did you mean 'pi0'? (choices: diffusion, flow, pi0)"),
    ],
)
def test_bad_words_are_one_line_and_leave_nothing(words, says, tmp_path, capsys):
    demonstrations().save(tmp_path / "data.npz")
    assert main(["pretrain", "mine", "--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- with lerobot ---------------------------------------------------------------------------------------------------


def pretrained(folder, *words):
    data = folder.parent / "data.npz"
    demonstrations().save(data)
    small = [word for key, value in SMALL.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    words = ["--kind", "pi0", "--instruction", TOLD, *small, "--episodes", "0", *words]
    assert main(["pretrain", "cube", "--data", str(data), "--out", str(folder), *words]) == 0
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    if not HERE:
        pytest.skip("lerobot or transformers is not installed (docs/lerobot.md)")
    return pretrained(tmp_path_factory.mktemp("tiny") / "cube", "--steps", "300")


def opened(folder, **options):
    return load_decoder(f"lerobot:{folder}", **{"flat": True, "task": TOLD, **options})


def inputs(decoder, rows=6):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(rows, 5, generator=generator), torch.randn(rows, *decoder.spec.latent_shape, generator=generator)


def test_the_folder_opens_anywhere_and_is_what_the_card_says(made, tmp_path):
    decoder, card = opened(made), json.loads((made / "card.json").read_text())
    assert decoder.spec.obs_shape == (5,)
    assert decoder.spec.latent_shape == (4, 6)
    assert decoder.spec.action_shape == (4, 2)
    assert decoder.spec.free_size == 8  # the four columns beyond the arm's are padding
    assert card["fingerprint"] == decoder.fingerprint
    assert card["training"]["kind"] == "pi0"
    assert card["training"]["instruction"] == TOLD
    assert card["training"]["sizes"]["width"] == 32
    shutil.copytree(made, tmp_path / "elsewhere")
    assert opened(tmp_path / "elsewhere").fingerprint == decoder.fingerprint
    assert environment_of(f"lerobot:{made}") is None  # its card measured nothing


def test_actions_are_lerobots_own(made):
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.pi0.modeling_pi0 import PI0Policy
    from transformers import AutoTokenizer

    decoder = opened(made)
    obs, w = inputs(decoder)
    with built_with("pi0", read_sizes(made)):
        policy = PI0Policy.from_pretrained(made)
    tokenizer = AutoTokenizer.from_pretrained(str(made / "tokenizer"))
    before, after = make_pre_post_processors(
        policy.config,
        pretrained_path=str(made),
        preprocessor_overrides={"tokenizer_processor": {"tokenizer": tokenizer, "tokenizer_name": None}},
    )
    batch = before({"observation.state": obs, "task": [TOLD] * 6})
    seen = {key: value for key, value in batch.items() if key.startswith("observation.")}
    assert seen["observation.language.attention_mask"].all()
    seen["observation.images.empty_camera_0"] = torch.zeros(6, 3, 14, 14)
    chunk = policy.predict_action_chunk(seen, noise=w.clone())
    torch.testing.assert_close(decoder(obs, w), after(chunk), rtol=1e-5, atol=1e-5)


def test_it_learns_what_is_demonstrated_and_the_instruction_reaches_it(made):
    decoder, data = opened(made), demonstrations()
    obs = torch.from_numpy(data.obs[::5])
    w = torch.randn(len(obs), *decoder.spec.latent_shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.from_numpy(data.actions[::5]).unsqueeze(1)
    error = (decoder(obs, w) - wanted).abs().mean((0, 1))
    assert error[0] < 0.3  # of 1
    assert error[1] < 0.6  # of 2
    other = opened(made, task=" ".join(reversed(TOLD.split())))
    assert other.fingerprint != decoder.fingerprint
    assert not torch.equal(other(obs, w), decoder(obs, w))
    with pytest.raises(LpdsError, match="does not know 'throw'"):
        opened(made, task="throw the cube away")


def test_training_is_a_function_of_its_seed(tmp_path):
    if not HERE:
        pytest.skip("lerobot or transformers is not installed (docs/lerobot.md)")
    prints = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        torch.rand(3)  # the state of the global generator does not matter
        prints.append(opened(pretrained(tmp_path / name, "--steps", "3", "--seed", seed)).fingerprint)
    assert prints[0] == prints[1] != prints[2]


@needs_lerobot
def test_what_diverges_replaces_nothing_and_leaves_nothing(tmp_path, capsys):
    folder, data = pretrained(tmp_path / "cube", "--steps", "3"), str(tmp_path / "data.npz")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    small = [word for key, value in (SMALL | {"lr": 1e30}).items() for word in (f"--{key.replace('_', '-')}", str(value))]
    words = [
        "pretrain",
        "cube",
        "--data",
        data,
        "--kind",
        "pi0",
        "--instruction",
        TOLD,
        *small,
        "--steps",
        "3",
        "--episodes",
        "0",
    ]
    assert main([*words, "--out", str(folder), "--overwrite"]) == 2
    assert "NaN or infinite" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert main([*words, "--out", str(tmp_path / "new")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cube", "data.npz"]


@pytest.mark.parametrize(("there", "kind"), [("decoder.safetensors", "pi0"), ("model.safetensors", "diffusion")])
def test_a_decoder_of_another_kind_is_not_overwritten(tmp_path, refused, there, kind):
    (tmp_path / "cube").mkdir()
    (tmp_path / "cube" / there).write_bytes(b"theirs")
    demonstrations().save(tmp_path / "data.npz")
    for overwrite in (False, True):  # what is refused with it is not advised without
        with refused("another kind", there, "choose another --out"):
            pretrain("cube", str(tmp_path / "data.npz"), tmp_path / "cube", changes={"kind": kind}, overwrite=overwrite)
    assert (tmp_path / "cube" / there).read_bytes() == b"theirs"


def test_lerobot_is_left_as_it_was(made):
    module = importlib.import_module("lerobot.policies.pi0.modeling_pi0")
    before = dict(vars(module))
    opened(made)
    assert vars(module) == before
    with pytest.raises(RuntimeError, match="on purpose"), built_with("pi0", TinySizes()):
        raise RuntimeError("on purpose")
    assert vars(module) == before


@needs_lerobot
def test_more_words_than_the_vocabulary_holds(refused, tmp_path):
    from lpds.pretrain.pi0 import make_pi0

    with refused("the instruction has 4 words", "vocabulary must be above 6, not 6"):
        make_pi0(demonstrations(), {"vocabulary": 6}, tmp_path / "out", TOLD)
    assert not (tmp_path / "out").exists()


class Reach(gymnasium.Env):
    """Two of five numbers are to come near the origin."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (5,), np.float32)
    action_space = gymnasium.spaces.Box(-5.0, 5.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.count = self.np_random.normal(size=5).astype(np.float32), 0
        return self.place.copy(), {}

    def step(self, action):
        self.place[:2] += 0.1 * np.asarray(action)
        self.count += 1
        return self.place.copy(), -float(np.square(self.place[:2]).sum()), False, self.count == 12, {}


def test_it_is_steered_and_found_again(made, tmp_path):
    decoder = opened(made)
    small = {"width": 16, "depth": 1, "batch_size": 8, "warmup_fits": 5, "warmup_steps": 96, "updates_per_decision": 0.5}
    steer(decoder=decoder, env=Reach, steps=200, out=tmp_path / "run", eval_episodes=2, final_episodes=2, **small)
    policy = load_policy(tmp_path / "run")  # by its reference and its options: nothing else was kept
    assert policy.decoder.fingerprint == decoder.fingerprint
    obs, eps = np.zeros((2, 5), np.float32), np.zeros((2, 4, 6), np.float32)
    shifted = policy.act(obs, eps, scale=1.0)
    assert shifted.shape == (2, 4, 2)
    assert np.array_equal(policy.act(obs, eps, scale=0.0), decoder(torch.from_numpy(obs), torch.from_numpy(eps)).numpy())


def test_the_doctor_and_eval_take_it(made, capsys):
    words = [f"lerobot:{made}", "--flat", "--instruction", TOLD, "--decoder-device", "cpu"]
    assert main(["check", *words]) == 0
    assert "fit to be steered: 0 faults" in capsys.readouterr().out
    assert main(["eval", *words, "--env", "no-such-thing-v0", "--episodes", "2"]) == 2
    assert "no-such-thing" in capsys.readouterr().err


def test_a_broken_tokenizer_is_one_line(made, tmp_path, refused):
    shutil.copytree(made, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer" / "tokenizer.json").write_text("{")
    with refused("tokenizer", "cannot be opened"):
        opened(tmp_path / "broken")


def test_a_loader_without_the_instruction_says_so(made):
    with pytest.raises(LpdsError, match="an instruction"):
        load_decoder(f"lerobot:{made}", flat=True)
