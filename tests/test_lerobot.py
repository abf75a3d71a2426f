"""LeRobot policies as decoders: LeRobot's own actions, the checks it does not do, what is refused."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys

import gymnasium
import lerobot_policies as tiny
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lpds import LpdsError, load_decoder, load_policy, steer
from lpds.doctor import check

HERE = importlib.util.find_spec("lerobot") is not None
needs_lerobot = pytest.mark.skipif(not HERE, reason="lerobot is not installed (docs/lerobot.md)")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


# --- without lerobot ------------------------------------------------------------------------------------------------


def write_config(folder, **facts):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def test_a_missing_package_is_one_line_with_the_way_to_install_it(tmp_path, monkeypatch):
    folder = write_config(tmp_path / "p", type="diffusion")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LpdsError, match=r"need the package lerobot: pip install .*docs/lerobot\.md") as caught:
        load_decoder(f"lerobot:{folder}")
    assert "\n" not in str(caught.value)


def test_bad_folders(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(LpdsError, match="does not exist"):
        load_decoder(f"lerobot:{tmp_path}/nothing")
    with pytest.raises(LpdsError, match="does not exist"):
        load_decoder("lerobot:someone/something")
    with pytest.raises(LpdsError, match=r"config\.json is missing"):
        load_decoder(f"lerobot:{tmp_path}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LpdsError, match="not the configuration of a LeRobot policy"):
        load_decoder(f"lerobot:{tmp_path}")


def test_another_type_of_policy_is_named_with_the_choices(tmp_path):
    with pytest.raises(LpdsError, match=r"type 'act'.*choices: .*diffusion"):
        load_decoder(f"lerobot:{write_config(tmp_path / 'p', type='act')}")
    with pytest.raises(LpdsError, match="adapter"):
        load_decoder(f"lerobot:{write_config(tmp_path / 'q', type='diffusion', use_peft=True)}")


def test_an_unknown_option_is_named(tmp_path):
    with pytest.raises(LpdsError, match="ddim_step"):
        load_decoder(f"lerobot:{tmp_path}", ddim_step=3)


# --- DiffusionPolicy ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state_policy(tmp_path_factory):
    if not HERE:
        pytest.skip("lerobot is not installed (docs/lerobot.md)")
    return tiny.diffusion(tmp_path_factory.mktemp("lerobot") / "state")


@pytest.fixture(scope="module")
def image_policy(tmp_path_factory):
    if not HERE:
        pytest.skip("lerobot is not installed (docs/lerobot.md)")
    return tiny.diffusion(tmp_path_factory.mktemp("lerobot") / "image", image=True)


def noise(decoder, rows=6, seed=2):
    return torch.randn(rows, *decoder.spec.latent_shape, generator=torch.Generator().manual_seed(seed))


def pipelines(folder, policy):
    from lerobot.policies.factory import make_pre_post_processors

    return make_pre_post_processors(policy.config, pretrained_path=str(folder))


def lerobots_own(policy, folder, obs, w):
    """Actions [B, T, A] by LeRobot's documented way: preprocessor, one select_action a step, postprocessor."""
    before, after = pipelines(folder, policy)
    history = policy.config.n_obs_steps
    policy.reset()
    actions = []
    for step in range(history - 1 + policy.config.n_action_steps):
        frame = {key: value[:, min(step, history - 1)] for key, value in obs.items()}
        if step == history - 1:
            policy._queues["action"].clear()  # decide here, with the history that was just filled
        batch = before(frame)
        action = policy.select_action({key: batch[key] for key in obs}, noise=w.clone())
        actions.append(after(action))
    return torch.stack(actions[history - 1 :], 1)


@pytest.mark.parametrize("which", ["state_policy", "image_policy"])
def test_actions_are_lerobots_own(which, request):
    policy, folder = request.getfixturevalue(which)
    decoder = load_decoder(f"lerobot:{folder}")
    obs, w = tiny.observation(policy), noise(decoder)
    action = decoder(obs, w)
    assert action.dtype == torch.float32
    assert not action.requires_grad
    torch.testing.assert_close(action, lerobots_own(policy, folder, obs, w), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(action, decoder(obs, -w))


def test_specification(state_policy, image_policy):
    decoder = load_decoder(f"lerobot:{state_policy[1]}")
    assert decoder.spec.obs_shape == {tiny.STATE: (2, 4), tiny.ENVIRONMENT: (2, 5)}
    assert decoder.spec.latent_shape == (8, 3)
    assert decoder.spec.action_shape == (4, 3)
    assert decoder.spec.free is None
    assert load_decoder(f"lerobot:{image_policy[1]}").spec.obs_shape[tiny.CAMERA] == (2, 3, 32, 32)
    assert load_decoder(f"lerobot:{state_policy[1]}", execute=7).spec.action_shape == (7, 3)
    with pytest.raises(LpdsError, match=r"1 \.\. 7"):
        load_decoder(f"lerobot:{state_policy[1]}", execute=8)


def test_actions_are_in_environment_units_and_in_the_recorded_range(state_policy):
    decoder = load_decoder(f"lerobot:{state_policy[1]}")
    low, high = decoder.action_range()
    stats = tiny.statistics({**state_policy[0].config.input_features, **state_policy[0].config.output_features})["action"]
    assert torch.equal(low, stats["min"])
    assert torch.equal(high, stats["max"])
    action = decoder(tiny.observation(state_policy[0]), noise(decoder))
    assert bool(((action >= low - 1e-5) & (action <= high + 1e-5)).all())


@pytest.mark.parametrize("which", ["state_policy", "image_policy"])
def test_deterministic_without_memory_and_row_by_row(which, request):
    policy, folder = request.getfixturevalue(which)
    decoder = load_decoder(f"lerobot:{folder}")
    obs, w = tiny.observation(policy), noise(decoder)
    first = decoder(obs, w)
    state = torch.get_rng_state()
    decoder(tiny.observation(policy, rows=3, seed=9), noise(decoder, rows=3))
    assert torch.equal(decoder(obs, w), first)
    assert torch.equal(torch.get_rng_state(), state)
    alone = torch.cat([decoder({key: value[i : i + 1] for key, value in obs.items()}, w[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["state_policy", "image_policy"])
def test_several_noises_of_a_state_share_what_was_prepared(which, request):
    policy, folder = request.getfixturevalue(which)
    decoder = load_decoder(f"lerobot:{folder}")
    obs, w = tiny.observation(policy, rows=2), noise(decoder)
    again = {key: value.repeat_interleave(3, 0) for key, value in obs.items()}
    context = decoder.prepare(obs)
    torch.testing.assert_close(decoder.decode(context, w), decoder(again, w), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decoder.decode(context, w[:2]), decoder(obs, w[:2]), rtol=1e-5, atol=1e-5)
    with pytest.raises(LpdsError, match="5 latents for 2 states"):
        decoder.decode(context, w[:5])


def test_flat_vectors_are_the_frames_one_after_another(state_policy):
    policy, folder = state_policy
    decoder, prints = load_decoder(f"lerobot:{folder}"), []
    obs, w = tiny.observation(policy), noise(decoder)
    for order in ((tiny.STATE, tiny.ENVIRONMENT), (tiny.ENVIRONMENT, tiny.STATE)):
        flat = load_decoder(f"lerobot:{folder}", flat=True, flat_order=",".join(order))
        vector = torch.cat([obs[key] for key in order], dim=-1).flatten(1)
        assert flat.spec.obs_shape == (18,)
        assert torch.equal(flat(vector, w), decoder(obs, w))
        prints.append(flat.fingerprint)
    assert len({decoder.fingerprint, *prints}) == 3


def test_an_order_that_a_vector_does_not_say_is_asked_for(state_policy):
    """Gymnasium sorts a dict's keys and LeRobot names them anew: a vector of the right size in the wrong order is silent."""
    folder = state_policy[1]
    for order in (None, tiny.STATE, f"{tiny.STATE},{tiny.STATE}"):
        with pytest.raises(
            LpdsError, match=f"{tiny.ENVIRONMENT}, {tiny.STATE} end to end, in an order that a vector does not say"
        ):
            load_decoder(f"lerobot:{folder}", flat=True, flat_order=order)
    with pytest.raises(LpdsError, match="flat_order says how flat=True lies"):
        load_decoder(f"lerobot:{folder}", flat_order=f"{tiny.STATE},{tiny.ENVIRONMENT}")


def test_one_observation_needs_no_history_axis(tmp_path):
    if not HERE:
        pytest.skip("lerobot is not installed (docs/lerobot.md)")
    policy, folder = tiny.diffusion(tmp_path / "one", n_obs_steps=1)
    decoder = load_decoder(f"lerobot:{folder}")
    assert decoder.spec.obs_shape == {tiny.STATE: (4,), tiny.ENVIRONMENT: (5,)}
    assert decoder(tiny.observation(policy), noise(decoder)).shape == (6, 4, 3)


def test_a_training_run_s_folder_opens(state_policy, tmp_path):
    shutil.copytree(state_policy[1], tmp_path / "000100" / "pretrained_model")
    decoder = load_decoder(f"lerobot:{tmp_path / '000100'}")
    assert decoder.name == "000100"
    assert load_decoder(decoder.reference).fingerprint == decoder.fingerprint


@needs_lerobot
def test_ddpm_is_refused_with_the_remedy(tmp_path):
    policy, folder = tiny.diffusion(tmp_path / "p", noise_scheduler_type="DDPM", num_inference_steps=None)
    with pytest.raises(LpdsError, match=r"DDPM.*initial noise does not decide.*ddim_steps="):
        load_decoder(f"lerobot:{folder}")
    decoder = load_decoder(f"lerobot:{folder}", ddim_steps=10)
    assert decoder.describe()["sampler"]["steps"] == 10
    obs, w = tiny.observation(policy), noise(decoder)
    assert torch.equal(decoder(obs, w), decoder(obs, w))
    assert load_decoder(f"lerobot:{folder}", ddim_steps=5).fingerprint != decoder.fingerprint
    with pytest.raises(LpdsError, match=r"1 \.\. 100"):
        load_decoder(f"lerobot:{folder}", ddim_steps=101)


def test_ddim_is_the_textbook_s(state_policy):
    """One step from the first time: x0 clipped, then the noise is put back without a correction for the clip."""
    policy, folder = state_policy
    decoder = load_decoder(f"lerobot:{folder}", ddim_steps=1, execute=7)
    obs, w = tiny.observation(policy), noise(decoder)
    condition, unet = decoder.prepare(obs), decoder._policy.diffusion.unet
    with torch.no_grad():
        predicted = unet(w, torch.zeros(6, dtype=torch.long), global_cond=condition)
    bar = decoder._policy.diffusion.noise_scheduler.alphas_cumprod[0]
    chunk = ((w - (1 - bar).sqrt() * predicted) / bar.sqrt()).clamp(-1, 1)
    low, high = decoder.action_range()
    torch.testing.assert_close(decoder(obs, w), ((chunk + 1) / 2 * (high - low) + low)[:, 1:8], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("steps", "first"), [(1, 0), (8, 84), (10, 90)])
def test_the_share_of_signal_is_that_of_the_first_time(state_policy, steps, first):
    """Of 100 trained steps ("leading" spacing); the squared cosine schedule in closed form."""
    policy, folder = state_policy
    decoder = load_decoder(f"lerobot:{folder}", ddim_steps=steps)
    assert policy.config.beta_schedule == "squaredcos_cap_v2"
    bar = [math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, first + 1)]
    assert decoder.signal_at_start == pytest.approx(bar[1] / bar[0], abs=1e-4)


def test_options_of_other_policies_are_refused(state_policy):
    for option in ({"steps": 3}, {"task": "lift"}, {"tokenizer": "x"}):
        with pytest.raises(LpdsError, match=f"{next(iter(option))} is not an option"):
            load_decoder(f"lerobot:{state_policy[1]}", **option)


def test_observations_are_checked(state_policy):
    policy, folder = state_policy
    decoder = load_decoder(f"lerobot:{folder}")
    obs, w = tiny.observation(policy), noise(decoder)
    with pytest.raises(LpdsError, match=r"environment_state.*given: observation\.state"):
        decoder({tiny.STATE: obs[tiny.STATE]}, w)
    with pytest.raises(LpdsError, match=r"\[B, 2, 4\], not \[6, 4\]"):
        decoder({**obs, tiny.STATE: obs[tiny.STATE][:, 0]}, w)
    with pytest.raises(LpdsError, match="batch sizes"):
        decoder(obs, w[:3])
    with pytest.raises(LpdsError, match="takes a dict"):
        decoder(obs[tiny.STATE], w)


def test_plausible_observations_have_the_statistics_range_flat_or_not(state_policy):
    policy, folder = state_policy
    shapes = load_decoder(f"lerobot:{folder}").spec.obs_shape
    order = (tiny.ENVIRONMENT, tiny.STATE)  # not that of the names
    flat = load_decoder(f"lerobot:{folder}", flat=True, flat_order=order)
    draws = torch.randn(50, *flat.spec.obs_shape, generator=torch.Generator().manual_seed(3))
    frames = draws.unflatten(1, (policy.config.n_obs_steps, -1))
    split = dict(zip(order, frames.split([shapes[key][-1] for key in order], -1), strict=True))
    named = load_decoder(f"lerobot:{folder}").plausible(split)
    assert torch.equal(flat.plausible(draws), torch.cat([named[key] for key in order], -1).flatten(1))
    stats = tiny.statistics({**policy.config.input_features, **policy.config.output_features})[tiny.STATE]
    share = (named[tiny.STATE] - stats["min"]) / (stats["max"] - stats["min"])
    assert torch.allclose(share, torch.special.ndtr(split[tiny.STATE]), atol=1e-5)
    assert torch.equal(named[tiny.ENVIRONMENT], split[tiny.ENVIRONMENT])  # LeRobot does not scale it


def test_a_device_that_is_not_there_is_one_line(state_policy):
    with pytest.raises(LpdsError, match="device is 'gpu'"):
        load_decoder(f"lerobot:{state_policy[1]}", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(LpdsError, match="device cuda:0 was asked for"):
            load_decoder(f"lerobot:{state_policy[1]}", device="cuda:0")


def test_the_doctor_takes_it(state_policy):
    report = check(load_decoder(f"lerobot:{state_policy[1]}"))
    assert report.ok, str(report)


# --- weights and statistics -----------------------------------------------------------------------------------------


def edited(folder, target, edit, pattern="model.safetensors"):
    """A copy of a policy folder in which ``edit`` changed one file's tensors."""
    shutil.copytree(folder, target)
    (path,) = target.glob(pattern)
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    return target


BEFORE, AFTER = "policy_preprocessor_step_*", "policy_postprocessor_step_*"


def test_the_fingerprint_knows_weights_sampler_and_statistics(state_policy, tmp_path):
    folder = state_policy[1]

    def bump(tensors, key):
        tensors[key] = tensors[key] + 0.01

    weight = next(key for key in load_file(folder / "model.safetensors") if key.endswith("weight"))
    found = [load_decoder(f"lerobot:{folder}"), load_decoder(f"lerobot:{folder}", ddim_steps=4)]
    found.append(load_decoder(f"lerobot:{edited(folder, tmp_path / 'w', lambda t: bump(t, weight))}"))
    for index, (pattern, key) in enumerate([(BEFORE, "observation.state.min"), (AFTER, "action.max")]):
        copy = edited(folder, tmp_path / f"s{index}", lambda t, key=key: bump(t, key), pattern)
        found.append(load_decoder(f"lerobot:{copy}"))
    assert len({decoder.fingerprint for decoder in found}) == len(found)
    shutil.copytree(folder, tmp_path / "same")
    assert load_decoder(f"lerobot:{tmp_path / 'same'}").fingerprint == found[0].fingerprint


def rename(old, new):
    def edit(tensors):
        for key in [key for key in tensors if key.startswith(old + ".")]:
            tensors[new + key.removeprefix(old)] = tensors.pop(key)

    return edit


@pytest.mark.parametrize(
    ("pattern", "old", "new"),
    [(AFTER, "action", "actions"), (BEFORE, "observation.state", "state"), (AFTER, "action.max", "action.highest")],
)
def test_statistics_under_other_keys_are_an_error_that_names_them(state_policy, tmp_path, pattern, old, new):
    folder = state_policy[1]

    def edit(tensors):
        if old in tensors:
            tensors[new] = tensors.pop(old)
        rename(old, new)(tensors)

    copy = edited(folder, tmp_path / "p", edit, pattern)
    with pytest.raises(LpdsError, match=r"no statistic .*keyed \[") as caught:
        load_decoder(f"lerobot:{copy}")
    assert old.removesuffix(".max") in str(caught.value)
    if old == "action":
        assert "'actions'" in str(caught.value)


@needs_lerobot
def test_absent_statistics_are_an_error(tmp_path):
    _, folder = tiny.diffusion(tmp_path / "p", stats={})
    with pytest.raises(LpdsError, match=r"no statistic 'min' of 'observation\.state'.*keyed \[\]"):
        load_decoder(f"lerobot:{folder}")


def test_statistics_of_another_shape_or_not_finite(state_policy, tmp_path):
    def longer(tensors):
        tensors["action.max"] = torch.ones(7)

    def broken(tensors):
        tensors["action.max"] = torch.tensor([1.0, torch.nan, 1.0])

    with pytest.raises(LpdsError, match=r"'action' is \[7\], the feature \[3\]"):
        load_decoder(f"lerobot:{edited(state_policy[1], tmp_path / 'a', longer, AFTER)}")
    with pytest.raises(LpdsError, match="NaN"):
        load_decoder(f"lerobot:{edited(state_policy[1], tmp_path / 'b', broken, AFTER)}")


def test_a_file_of_statistics_that_is_not_there_is_named(state_policy, tmp_path):
    shutil.copytree(state_policy[1], tmp_path / "a")
    (file,) = tmp_path.glob("a/policy_preprocessor_*.safetensors")
    file.unlink()
    with pytest.raises(LpdsError, match=rf"policy_preprocessor\.json names {file.name}, which is not there"):
        load_decoder(f"lerobot:{tmp_path / 'a'}")


def test_a_processor_that_scales_what_the_policy_takes_as_it_is(state_policy, tmp_path):
    shutil.copytree(state_policy[1], tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    config["normalization_mapping"]["ACTION"] = "IDENTITY"
    path.write_text(json.dumps(config))
    with pytest.raises(LpdsError, match="'action' is normalised by MIN_MAX, but the policy was trained with IDENTITY"):
        load_decoder(f"lerobot:{tmp_path / 'a'}")


def test_missing_processors_and_another_normalisation(state_policy, tmp_path):
    shutil.copytree(state_policy[1], tmp_path / "a")
    (tmp_path / "a" / "policy_postprocessor.json").unlink()
    with pytest.raises(LpdsError, match=r"no policy_postprocessor\.json"):
        load_decoder(f"lerobot:{tmp_path / 'a'}")
    for name, edit, words in (
        ("b", lambda step: step["config"]["norm_map"].update(ACTION="IDENTITY"), "normalised by IDENTITY"),
        (
            "c",
            lambda step: step["config"]["features"].update(action=None) or step["config"]["features"].pop("action"),
            "no step",
        ),
    ):
        shutil.copytree(state_policy[1], tmp_path / name)
        path = tmp_path / name / "policy_postprocessor.json"
        content = json.loads(path.read_text())
        edit(next(step for step in content["steps"] if "unnormalizer" in step["registry_name"]))
        path.write_text(json.dumps(content))
        with pytest.raises(LpdsError, match=words):
            load_decoder(f"lerobot:{tmp_path / name}")


def reworked(folder, target, edit, file="policy_preprocessor.json"):
    """A copy of a policy folder in which ``edit`` changed the steps of a processor."""
    shutil.copytree(folder, target)
    content = json.loads((target / file).read_text())
    edit(content["steps"])
    (target / file).write_text(json.dumps(content))
    return f"lerobot:{target}"


@pytest.mark.parametrize(
    "named",
    [
        "subprocess.Popen",  # any function of any module
        "lerobot.policies.pretrained.Path",  # what LeRobot's own modules import
        "lerobot.nowhere.Step",
        "tests.mine.Step",
        "",
    ],
)
@pytest.mark.parametrize("file", ["policy_preprocessor.json", "policy_postprocessor.json"])
def test_a_checkpoint_that_brings_code_is_refused_before_it_runs(state_policy, tmp_path, named, file):
    """LeRobot imports a step's class and calls it with the file's own words before it looks at what it is."""
    ran = tmp_path / "ran"
    step = {"class": named, "config": {"args": ["touch", str(ran)]}}
    reference = reworked(state_policy[1], tmp_path / "a", lambda steps: steps.insert(0, step), file)
    with pytest.raises(LpdsError, match=rf"{file}: step 0 is .*a checkpoint that may bring code is not opened") as caught:
        load_decoder(reference)
    assert repr(named) in str(caught.value)
    assert not ran.exists()


@pytest.mark.parametrize("by_class", [False, True])
def test_a_step_of_lerobots_that_runs_a_tokenizers_code_is_refused_before_it_does(state_policy, tmp_path, by_class):
    """Its tokenizer of actions trusts code of wherever the file says that it lies, the checkpoint's own folder too."""
    brought = tmp_path / "a" / "tok"
    target = tmp_path / "a"
    config = {"action_tokenizer_name": str(brought)}
    named = {"registry_name": "action_tokenizer_processor"}
    if by_class:
        named = {"class": "lerobot.processor.tokenizer_processor.ActionTokenizerProcessorStep"}
    reference = reworked(state_policy[1], target, lambda steps: steps.insert(0, {**named, "config": config}))
    brought.mkdir()
    (brought / "processor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "processing_x.X"}}))
    (brought / "processing_x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass X: pass\n")
    with pytest.raises(LpdsError, match=r"step 0 is .*[Aa]ction_?[Tt]okenizer.*not opened"):
        load_decoder(reference)
    assert not (tmp_path / "ran").exists()


def test_a_users_own_step_is_opened_once_it_is_registered(state_policy, tmp_path):
    from lerobot.processor import IdentityProcessorStep, ProcessorStepRegistry

    class Own(IdentityProcessorStep):
        pass

    step = {"registry_name": "own_step_of_a_test", "config": {}}
    reference = reworked(state_policy[1], tmp_path / "a", lambda steps: steps.append(step))
    with pytest.raises(LpdsError, match=r"step \d+ is 'own_step_of_a_test'"):
        load_decoder(reference)
    ProcessorStepRegistry.register("own_step_of_a_test")(Own)
    try:
        load_decoder(reference)
    finally:
        ProcessorStepRegistry.unregister("own_step_of_a_test")


def test_lerobots_own_step_may_be_named_by_its_class(state_policy, tmp_path):
    step = {"class": "lerobot.processor.IdentityProcessorStep", "config": {}}
    plain = load_decoder(f"lerobot:{state_policy[1]}")
    named = load_decoder(reworked(state_policy[1], tmp_path / "a", lambda steps: steps.append(step)))
    obs = {key: torch.zeros(2, *shape) for key, shape in plain.spec.obs_shape.items()}
    w = torch.ones(2, *plain.spec.latent_shape)
    assert torch.equal(plain(obs, w), named(obs, w))


def test_a_step_that_has_a_feature_for_another_kind_or_a_second_step_is_no_normalisation(state_policy, tmp_path):
    """LeRobot's step goes by the kind that it has itself, and every step that knows a key scales it once more."""

    def normaliser(steps):
        return next(step for step in steps if step["registry_name"] == "normalizer_processor")

    def other_kind(steps):
        step = normaliser(steps)
        step["config"]["features"]["observation.state"]["type"] = "VISUAL"
        step["config"]["norm_map"]["VISUAL"] = "IDENTITY"

    with pytest.raises(LpdsError, match=r"'observation\.state' is VISUAL to its step, but STATE to the policy"):
        load_decoder(reworked(state_policy[1], tmp_path / "a", other_kind))
    with pytest.raises(LpdsError, match=r"'observation\.state' is normalised 2 times over"):
        load_decoder(reworked(state_policy[1], tmp_path / "b", lambda steps: steps.append(normaliser(steps))))


def test_weights_that_are_missing_unknown_or_broken(state_policy, tmp_path):
    folder = state_policy[1]
    key = "diffusion.unet.final_conv.1.weight"

    def nan(tensors):
        tensors[key] = tensors[key] * torch.nan

    with pytest.raises(LpdsError, match=r"1 missing.*final_conv"):
        load_decoder(f"lerobot:{edited(folder, tmp_path / 'a', lambda t: t.pop(key))}")
    with pytest.raises(LpdsError, match=r"1 unknown.*strange"):
        load_decoder(f"lerobot:{edited(folder, tmp_path / 'b', lambda t: t.update(strange=torch.ones(1)))}")
    with pytest.raises(LpdsError, match="NaN"):
        load_decoder(f"lerobot:{edited(folder, tmp_path / 'c', nan)}")
    with pytest.raises(LpdsError, match="another policy"):
        load_decoder(f"lerobot:{edited(folder, tmp_path / 'd', lambda t: t.update({key: torch.ones(2, 2)}))}")
    shutil.copytree(folder, tmp_path / "e")
    (tmp_path / "e" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(LpdsError, match="cannot be read"):
        load_decoder(f"lerobot:{tmp_path / 'e'}")


# --- steering -------------------------------------------------------------------------------------------------------


class Reach(gymnasium.Env):
    """A point of three coordinates that is to come near the origin; nine numbers are seen."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (9,), np.float32)
    action_space = gymnasium.spaces.Box(-5.0, 5.0, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=3)
        self.count = 0
        return self._seen(), {}

    def step(self, action):
        self.place = self.place + 0.1 * np.asarray(action)
        self.count += 1
        return self._seen(), -float(np.square(self.place).sum()), False, self.count == 20, {}

    def _seen(self):
        return np.tile(self.place, 3).astype(np.float32)


def stacked():
    """The last two observations as one vector, the first repeated at the start: what ``flat=True`` takes."""
    return gymnasium.wrappers.FlattenObservation(gymnasium.wrappers.FrameStackObservation(Reach(), 2))


def test_a_flat_policy_is_steered_and_found_again(state_policy, tmp_path):
    decoder = load_decoder(f"lerobot:{state_policy[1]}", flat=True, flat_order=(tiny.STATE, tiny.ENVIRONMENT))
    out = tmp_path / "run"
    small = {"width": 16, "depth": 1, "batch_size": 8, "warmup_fits": 5, "warmup_steps": 160, "updates_per_decision": 0.5}
    steer(decoder=decoder, env=stacked, steps=320, out=str(out), eval_episodes=2, final_episodes=2, **small)
    policy = load_policy(str(out))
    assert policy.decoder.fingerprint == decoder.fingerprint
    obs, eps = np.zeros((2, 18), np.float32), np.zeros((2, 8, 3), np.float32)
    frozen = decoder(torch.from_numpy(obs), torch.from_numpy(eps)).numpy()
    assert np.array_equal(policy.act(obs, eps, scale=0.0), frozen)


def test_dict_observations_are_not_steered_yet_and_that_is_one_line(state_policy, tmp_path):
    decoder = load_decoder(f"lerobot:{state_policy[1]}")
    with pytest.raises(LpdsError, match=r"takes observations .*observation\.state.* but .*gives \(18,\)"):
        steer(decoder=decoder, env=stacked, steps=480, out=str(tmp_path / "run"))
