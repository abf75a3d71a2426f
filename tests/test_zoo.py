"""The shipped decoders, how a reference becomes a decoder, and the project's own decoder file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lpds import load_decoder, zoo
from lpds.decoders.diffusion import DiffusionDecoder, DiffusionSampler
from lpds.decoders.flow import TIME_SCALE, FlowDecoder, FlowSampler, integrate, solver_times
from lpds.decoders.store import WEIGHTS, open_decoder, save_decoder
from lpds.types import LatentSpec

SAMPLES = 9
FOLDER = Path(zoo.__file__).parent


def inputs_for(decoder):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(SAMPLES, *decoder.spec.obs_shape, generator=generator),
        torch.randn(SAMPLES, *decoder.spec.latent_shape, generator=generator),
    )


# --- shipped --------------------------------------------------------------------------------------------------------


def test_the_zoo_is_not_empty():
    assert {"hopper", "toy", "toy-flow"} <= set(zoo.names())


@pytest.fixture(params=zoo.names())
def shipped(request):
    return load_decoder(request.param)


def test_shipped_decoder_maps_the_noise_to_its_action_ranges(shipped):
    obs, w = inputs_for(shipped)
    action = shipped(obs, w)
    assert action.shape == (SAMPLES, *shipped.spec.action_shape)
    low, high = shipped.normaliser.action_min, shipped.normaliser.action_max
    assert bool((low < high).all())
    assert bool(((action >= low - 1e-6) & (action <= high + 1e-6)).all())
    assert bool((shipped(obs, -w) != action).any()), "the noise must matter"


def test_shipped_decoder_is_the_same_whenever_it_is_opened(shipped):
    again = load_decoder(shipped.reference)
    assert again.fingerprint == shipped.fingerprint
    assert torch.equal(again(*inputs_for(again)), shipped(*inputs_for(shipped)))


def test_shipped_decoder_is_sampled_as_its_plain_form_would_be(shipped):
    obs, w = inputs_for(shipped)
    state = shipped.normaliser.observation(obs)
    with torch.no_grad():
        if isinstance(shipped, DiffusionDecoder):
            plain = shipped.denoise_plain(state, w)
        else:  # a flow is integrated by hand, with the network itself
            assert isinstance(shipped, FlowDecoder)
            c, x = shipped.sampler, w.flatten(1)
            times = solver_times(c.solver, c.steps)

            def velocity(index, x):
                return shipped.net(x, torch.full((len(x),), times[index] * TIME_SCALE), state)

            plain = integrate(velocity, x, c.solver, c.steps).clamp(-c.clip, c.clip).view_as(w)
    plain = shipped.normaliser.action(plain[:, : shipped.spec.action_shape[0]])
    torch.testing.assert_close(shipped(obs, w), plain, atol=1e-4, rtol=0)


def test_shipped_file_is_small_and_its_card_agrees(shipped):
    folder = zoo.FOLDER / shipped.name
    assert (folder / WEIGHTS).stat().st_size <= 3e6
    assert (folder / "card.json").is_file()
    assert json.loads((folder / "card.json").read_text())["fingerprint"] == shipped.fingerprint


def test_a_card_says_where_its_data_come_from_and_names_nothing_that_is_nowhere():
    """Transport's named a clone that no recipe makes, and neither its environment nor its expert."""
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for path in FOLDER.glob("*/card.json"):
        data = json.loads(path.read_text())["data"]
        assert "recipe" in data or {"env", "sources"} <= set(data) or {"env", "expert"} <= set(data), path.parent.name
        for clone in re.findall(r"where (\S+) \([0-9a-f]{12}\) had come to", data.get("remark", "")):
            assert clone in zoo.names() or f"--out data/{clone}" in makefile, path.parent.name


def test_the_notice_names_the_experts_of_every_shipped_decoder():
    notice = (Path(__file__).parents[1] / "NOTICE").read_text()
    for path in FOLDER.glob("*/card.json"):
        sources = json.loads(path.read_text())["data"].get("sources", [])
        experts = [source["expert"] for source in sources if isinstance(source, dict)]
        for line in notice.splitlines() if experts else ():
            if re.search(rf"(^|[ ,]){path.parent.name}([ ,]|$)", line) and line.startswith("     "):
                assert all(expert.split("_")[1].upper() in line.upper() for expert in experts), path.parent.name
                break
        else:
            assert not experts, path.parent.name


# --- references -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "near"), [("hoper", "hopper"), ("Hopper", "hopper"), ("toyflow", "toy-flow"), ("tyo", "toy")]
)
def test_unknown_names_suggest_the_nearest(refused, wrong, near):
    with refused(f"unknown decoder {wrong!r}", "did you mean", repr(near), "choices: "):
        load_decoder(wrong)


def test_a_name_like_no_other_lists_the_choices(refused):
    with refused("unknown decoder 'qqqqqq'", *zoo.names(), "dppo:PATH", "folder:PATH"):
        load_decoder("qqqqqq")


@pytest.mark.parametrize("reference", ["", "dpo:x.pt", "hopper:", "missing/folder"])
def test_odd_references_are_refused(refused, reference):
    with refused(f"unknown decoder {reference!r}"):
        load_decoder(reference)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("my_policy.py:decoder", "python:my_policy.py:decoder"),
        ("code/my_policy.py", "python:code/my_policy.py:NAME"),
        ("ws://127.0.0.1:8000", "remote:ws://127.0.0.1:8000"),
        ("logs/state_200.pt", "dppo:logs/state_200.pt"),
    ],
)
def test_a_reference_without_its_scheme_is_told_the_scheme(refused, written, meant):
    with refused(f"unknown decoder {written!r}; did you mean {meant!r}?"):
        load_decoder(written)


def test_a_task_whose_decoder_is_not_shipped_says_so(refused, monkeypatch):
    monkeypatch.setitem(zoo.TASKS, "some-task", "nowhere:NOTHING")
    with refused("'some-task'", "not shipped", "hopper"):
        load_decoder("some-task")


def test_sampler_options_of_shipped_decoders(refused):
    decoder = load_decoder("hopper", ddim_steps=10)
    assert decoder.times == list(range(18, -1, -2))
    assert decoder.options == {"ddim_steps": 10}
    assert decoder.fingerprint != load_decoder("hopper").fingerprint
    assert load_decoder("hopper", ddim_steps=load_decoder("hopper").sampler.ddim_steps).fingerprint == (
        load_decoder("hopper").fingerprint
    )
    flow = load_decoder("toy-flow", steps=3, solver="heun")
    assert (flow.sampler.steps, flow.sampler.solver) == (3, "heun")
    with refused("steps", "not an option of the diffusion decoder 'hopper'"):
        load_decoder("hopper", steps=3)
    with refused("solver", "not an option of the diffusion decoder 'hopper'"):
        load_decoder("hopper", solver="euler")
    with refused("ddim_steps", "not an option of the flow decoder 'toy-flow'"):
        load_decoder("toy-flow", ddim_steps=3)
    with refused("'hopper'", "unexpected keyword argument 'nonsense'"):
        load_decoder("hopper", nonsense=1)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("hopper", {"ddim_steps": 0}, ("ddim_steps", "1 .. 20", "0")),
        ("hopper", {"ddim_steps": 21}, ("ddim_steps", "1 .. 20", "21")),
        ("toy-flow", {"steps": 0}, ("steps", "at least 1", "0")),
        ("toy-flow", {"solver": "rk4"}, ("solver", "'rk4'", "euler, heun, midpoint")),
        ("toy-flow", {"solver": ""}, ("solver", "''", "euler, heun, midpoint")),
    ],
)
def test_impossible_sampler_options_are_refused(refused, name, options, words):
    with refused(*words):
        load_decoder(name, **options)


# --- the file -------------------------------------------------------------------------------------------------------


def every_kind(make_net, make_diffusion, make_flow):
    """Decoders of every kind, sampler and shape that a file can hold."""
    cond = make_net(blocks=2, activation="mish", cond_sizes=(24, 8), time_size=32)
    part = LatentSpec((5,), (3, 2), (2, 2))
    return {
        "diffusion": make_diffusion(),
        "cond": make_diffusion(cond, DiffusionSampler(100, 8, 1.5), spec=part),
        "euler": make_flow(),
        "heun": make_flow(cond, FlowSampler("heun", 3, 1.2), spec=part),
    }


@pytest.fixture(params=["diffusion", "cond", "euler", "heun"])
def own(request, make_net, make_diffusion, make_flow):
    return every_kind(make_net, make_diffusion, make_flow)[request.param]


def test_saving_and_opening_changes_no_bit(own, tmp_path):
    save_decoder(own, tmp_path / "mine")
    for reference in (f"folder:{tmp_path / 'mine'}", str(tmp_path / "mine")):
        again = load_decoder(reference)
        assert type(again) is type(own)
        assert again.name == "mine"
        assert again.spec == own.spec
        assert again.describe() == own.describe()
        assert again.fingerprint == own.fingerprint
        assert torch.equal(again(*inputs_for(own)), own(*inputs_for(own)))
        assert load_decoder(again.reference, **again.options).fingerprint == own.fingerprint


def test_saving_twice_gives_the_same_bytes(own, tmp_path):
    save_decoder(own, tmp_path / "a")
    save_decoder(load_decoder(str(tmp_path / "a")), tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == [WEIGHTS]


def test_a_reference_survives_a_change_of_directory(own, tmp_path, monkeypatch):
    save_decoder(own, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    opened = load_decoder("folder:mine")
    monkeypatch.chdir(Path(__file__).parent)
    assert load_decoder(opened.reference).fingerprint == own.fingerprint


def test_a_missing_folder_is_refused(refused, tmp_path):
    with refused(str(tmp_path), WEIGHTS, "missing"):
        load_decoder(f"folder:{tmp_path}")


@pytest.fixture
def saved(make_diffusion, tmp_path):
    """Folder of a small decoder."""
    save_decoder(make_diffusion(), tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 2000, -1])
def test_a_truncated_file_is_refused(refused, saved, keep):
    path = saved / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with refused(str(path), "cannot be read"):
        load_decoder(str(saved))


@pytest.mark.parametrize("garbage", [b"garbage\n" * 99, bytes(5000), b"\xff" * 64], ids=["text", "zeros", "ones"])
def test_garbage_is_refused(refused, saved, garbage):
    (saved / WEIGHTS).write_bytes(garbage)
    with refused(str(saved / WEIGHTS), "cannot be read"):
        load_decoder(str(saved))


def rewrite(folder: Path, change_facts=lambda facts: None, change_tensors=lambda tensors: None, header="lpds") -> None:
    """Write a decoder file again with other contents."""
    tensors = load_file(folder / WEIGHTS)
    with safe_open(folder / WEIGHTS, framework="pt") as stream:
        facts = json.loads(stream.metadata()["lpds"])
    change_facts(facts)
    change_tensors(tensors)
    save_file(tensors, folder / WEIGHTS, {header: json.dumps(facts)})


def test_a_safetensors_file_of_someone_else_is_refused(refused, saved):
    rewrite(saved, header="other")
    with refused(str(saved / WEIGHTS), "not a decoder of this project"):
        load_decoder(str(saved))


@pytest.mark.parametrize("name", ["mlp_mean.layers.0.weight", "obs_min", "action_max"])
def test_a_file_that_lacks_a_tensor_is_refused(refused, saved, name):
    rewrite(saved, change_tensors=lambda tensors: tensors.pop(name))
    with refused(str(saved / WEIGHTS), name):
        load_decoder(str(saved))


@pytest.mark.parametrize("fact", ["network", "sampler", "kind", "latent_shape", "action_shape"])
def test_a_file_that_lacks_a_fact_is_refused(refused, saved, fact):
    rewrite(saved, change_facts=lambda facts: facts.pop(fact))
    with refused(str(saved / WEIGHTS), fact):
        load_decoder(str(saved))


def test_a_file_whose_sizes_contradict_each_other_is_refused(refused, saved):
    rewrite(saved, change_facts=lambda facts: facts["network"].update(width=33))
    with refused(str(saved / WEIGHTS), "mlp_mean.layers.0.weight"):
        load_decoder(str(saved))


def test_a_file_of_a_later_format_is_refused(refused, saved):
    rewrite(saved, change_facts=lambda facts: facts.update(format_version=2))
    with refused(str(saved / WEIGHTS), "format 2", "1"):
        load_decoder(str(saved))


def test_weights_that_are_not_finite_are_refused(refused, saved):
    rewrite(saved, change_tensors=lambda tensors: tensors["mlp_mean.layers.2.bias"].fill_(float("nan")))
    with refused("'mine'", "6 of 6", "mlp_mean.layers.2.bias"):
        load_decoder(str(saved))


def test_a_failed_save_keeps_the_previous_file(saved, make_flow, monkeypatch):
    before = (saved / WEIGHTS).read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_decoder(make_flow(), saved)
    assert (saved / WEIGHTS).read_bytes() == before
    assert [path.name for path in saved.iterdir()] == [WEIGHTS]


def test_a_file_opened_under_other_options_is_another_policy(saved):
    plain = open_decoder(saved, name="mine", reference="folder:mine")
    other = open_decoder(saved, name="mine", reference="folder:mine", ddim_steps=4)
    assert plain.fingerprint != other.fingerprint


@pytest.mark.parametrize(("name", "env"), [("hopper-c8", "Hopper-v5"), ("adroit-pen", "adroit-pen"), ("toy-flow", "four-mode")])
def test_a_decoder_knows_where_it_acts(name, env):
    """The task of "adroit-pen" was once looked up as "adroit"."""
    assert zoo.environment_of(name) == env
    assert zoo.environment_of(f"folder:{zoo.FOLDER / name}") == env
    assert zoo.environment_of("dppo:state_0.pt") is None


def test_the_page_of_hands_and_arms_says_what_the_cards_say():
    page = (Path(__file__).parents[1] / "docs" / "manipulation.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    told = {row[0].strip("`"): row[3] for row in rows if len(row) == 5 and "%" in row[3]}
    names = {path.name for path in FOLDER.iterdir() if path.name.startswith(("adroit-", "robomimic-"))}
    assert set(told) == {name for name in names if not name.endswith(("-flow", "-c8"))}
    for name, cell in told.items():
        mean, low, high = (round(100 * share) for share in json.loads((FOLDER / name / "card.json").read_text())["success"])
        assert cell == f"{mean} % [{low}, {high}]", name
    for name in sorted(names - set(told)):
        share = json.loads((FOLDER / name / "card.json").read_text())["success"][0]
        assert re.search(rf"{name}`[^,]*\({'chunks of 8, ' * name.endswith('-c8')}{100 * share:.0f} %\)", page), name
