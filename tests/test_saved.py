"""What is saved opens again: policies and decoders that moved, checkpoints, folders that are links, files that are not ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scripted import CPU, SPEC, TINY, identity_decoder, toy_decoder
from small_envs import Two

import lpds
from lpds.checkpoint import CheckpointStore
from lpds.cli import main
from lpds.envs.four_mode import make_four_mode
from lpds.evidence import copy_evidence
from lpds.replay import Replay

SHORT = {**TINY, "steps": 400, "eval_every": 0}

BRIEF = TINY | {"steps": 360, "warmup_steps": 150, "num_envs": 2, "delta": 0.5}


def test_a_policy_whose_files_have_moved_opens_by_its_reference_and_theirs(tmp_path, golden, monkeypatch, capsys):
    """Evidence names the ranges from where the grid was started, and the command line takes both places anew."""
    monkeypatch.chdir(tmp_path)
    checkpoint = golden("dppo_hopper")
    here = tmp_path / "here"
    here.mkdir()
    for name in ("state_3000.pt", "normalization.npz"):
        shutil.copy(checkpoint / name, here / name)
    decoder = lpds.load_decoder("dppo:here/state_3000.pt", normalization="here/normalization.npz")
    folder = lpds.steer("hopper", decoder=decoder, out="runs/one", **{**SHORT, "steps": 240}).folder
    copy_evidence(folder, Path("kept/one"))
    texts = [path.read_text() for path in Path("kept/one").rglob("*.json")]
    assert not any(str(tmp_path) in text for text in texts)
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")  # found from the folder of the evidence upwards
    assert lpds.load_policy(tmp_path / "kept" / "one").decoder.fingerprint == decoder.fingerprint
    monkeypatch.chdir(tmp_path)
    here.rename(tmp_path / "there")
    where = ["--decoder", "dppo:there/state_3000.pt", "--normalization", "there/normalization.npz"]
    for run in ("runs/one", "kept/one"):
        assert main(["eval", run, "--episodes", "2", *where]) == 0
    assert main(["resume", "runs/one", "--steps", "280", "--quiet", *where]) == 0
    capsys.readouterr()
    assert main(["eval", "runs/one", "--episodes", "2"]) == 0  # it knows now
    assert main(["eval", "kept/one", *where[2:]]) == 2
    assert "--normalization needs --decoder" in capsys.readouterr().err
    assert main(["eval", "kept/one", *where, "--ddim-steps", "7"]) == 2
    assert "--ddim-steps cannot be chosen again" in capsys.readouterr().err


def test_evidence_of_ones_own_code_opens_from_any_folder_below(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = (
        "import lpds, torch\n"
        "decoder = lpds.wrap_decoder(lambda s, w: torch.tanh(w), obs_shape=(2,), latent_shape=(4, 2), action_shape=(4, 2), "
        "name='own')\n"
    )
    Path("own_decoder.py").write_text(source)
    folder = lpds.steer("toy", decoder="python:own_decoder.py:decoder", out="runs/own", **SHORT).folder
    copy_evidence(folder, Path("kept/own"))
    monkeypatch.chdir(tmp_path / "kept")
    assert lpds.load_policy("own").decoder.name == "own"


def test_a_run_folder_may_be_a_link(tmp_path):
    real, link = tmp_path / "disk" / "run", tmp_path / "link"
    link.symlink_to(real)
    lpds.steer("toy", out=link, **SHORT)  # it leads nowhere yet
    lpds.steer("toy", out=link, overwrite=True, **SHORT)
    assert link.is_symlink()
    assert (real / "summary.json").is_file()


def test_what_steer_returned_opens_and_goes_on(tmp_path):
    run = lpds.steer("toy", out=tmp_path / "run", **SHORT)
    assert lpds.load_policy(run).decoder.name == "toy"
    assert lpds.resume(run, steps=500, quiet=True).finished


def test_what_a_deployed_policy_cannot_take_is_one_line(tmp_path, refused):
    policy = lpds.load_policy(lpds.steer("toy", out=tmp_path / "run", **SHORT))
    with refused("obs is no array of numbers"):
        policy.act(torch.zeros(2, 2, requires_grad=True))
    from lpds.deploy.decoder_server import DecoderServer

    with refused("wrap it with lpds.wrap_decoder"):
        DecoderServer(lambda s, w: w)


def test_a_policy_is_refused_on_a_decoder_of_other_shapes(tmp_path, refused):
    """The fingerprint is of weights and sampler: what of a chunk is executed need not be in it."""
    run = lpds.steer(decoder=toy_decoder(), env=make_four_mode, out=tmp_path / "run", **SHORT)
    path = tmp_path / "run" / "policy" / "policy.json"
    facts = json.loads(path.read_text())
    facts["spec"]["action_shape"] = [2, 2]
    path.write_text(json.dumps(facts))
    with refused("action_shape [2, 2]", "execute="):
        lpds.load_policy(run, decoder=toy_decoder())
    config = tmp_path / "run" / "config.json"
    facts = json.loads(config.read_text())
    facts["decoder"]["spec"]["latent_shape"] = [2, 2]
    config.write_text(json.dumps(facts))
    with refused("latent_shape [2, 2]"):
        lpds.resume(run, decoder=toy_decoder(), env=make_four_mode, quiet=True)


def test_what_act_is_given_is_refused_in_a_line(tmp_path, refused):
    run = lpds.steer(decoder=toy_decoder(), env=make_four_mode, out=tmp_path / "run", **SHORT)
    policy = lpds.load_policy(run, decoder=toy_decoder())
    obs = np.zeros((1, policy.decoder.spec.obs_size), np.float32)
    for eps in ("abc", torch.zeros(1, *policy.decoder.spec.latent_shape, requires_grad=True)):
        with refused("eps is no array of numbers"):
            policy.act(obs, eps)
    for scale in (np.asarray([0.5]), np.asarray([0.5, 0.2]), "1", None):
        with refused("scale must be in [0, 1]"):
            policy.act(obs, scale=scale)
    assert policy.act(obs, scale=np.float32(0.5)).shape == (1, *policy.decoder.spec.action_shape)


def test_a_checkpoint_leaves_alone_what_is_not_its_own(tmp_path):
    """And takes away what is: the state of the checkpoint before."""
    store = CheckpointStore(tmp_path)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    replay = Replay(SPEC, 8, 0, 2, CPU)
    for step in (1, 2):
        store.save({"x": torch.full((1,), float(step))}, {"step": step}, replay)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / ".ipynb_checkpoints").is_dir()
    assert [path.name.split("-")[1] for path in tmp_path.glob("state-*")] == ["000000002"]


def test_a_policy_that_was_lost_comes_back_with_going_on(tmp_path, capsys):
    """To the bit, from the checkpoint; until then what is missing is named."""
    run = tmp_path / "run"
    lpds.steer(decoder=(decoder := identity_decoder((1, 2), 3)), env=Two, out=run, **BRIEF)
    kept = {name: (run / "policy" / name).read_bytes() for name in ("policy.json", "policy.safetensors")}
    (run / "policy" / "policy.safetensors").unlink()
    with pytest.raises(lpds.errors.LpdsError, match=r"policy/policy\.safetensors is missing"):
        lpds.load_policy(run, decoder=decoder)
    shutil.rmtree(run / "policy")
    assert main(["eval", str(run)]) == 2
    assert "has lost its policy" in capsys.readouterr().err
    lpds.resume(run, decoder=decoder, env=Two, quiet=True)
    assert {name: (run / "policy" / name).read_bytes() for name in kept} == kept


def test_a_checkpoint_without_its_list_is_no_committed_result(tmp_path, refused):
    run = lpds.steer(decoder=(decoder := identity_decoder((1, 2), 3)), env=Two, out=tmp_path / "run", **BRIEF).folder
    (run / "checkpoint" / "checkpoint.json").unlink()
    with refused("checkpoint/checkpoint.json", "missing"):
        lpds.resume(run, decoder=decoder, env=Two, quiet=True)


def test_a_policy_of_one_vector_takes_the_environments_dict(tmp_path, refused):
    """Its parts go end to end in the order of the space, which is not the alphabet's, as they did in the run."""
    decoder = lpds.wrap_decoder(
        lambda s, w: w + s[:, None, :2], obs_shape=(3,), latent_shape=(1, 2), action_shape=(1, 2), name="two"
    )
    run = lpds.steer(decoder=decoder, env=Two, out=tmp_path / "run", **BRIEF)
    policy = lpds.load_policy(run, decoder=decoder)
    place, goal = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32), np.ones((4, 1), np.float32)
    eps = np.zeros((4, 1, 2), np.float32)
    found = policy.act({"goal": goal, "place": place}, eps)
    assert np.array_equal(found, policy.act(np.concatenate([place, goal], 1), eps))
    assert np.array_equal(policy.act({"goal": goal, "place": place}, eps, scale=0.0)[:, 0], place)
    assert np.array_equal(policy.shift({"goal": goal, "place": place}), policy.shift(np.concatenate([place, goal], 1)))
    with refused("lacks goal"):
        policy.act({"place": place}, eps)
    with refused("cannot be put end to end"):
        policy.act({"place": place, "goal": goal[:2]}, eps)


@pytest.mark.parametrize(
    ("method", "younger", "acting"),
    [
        ("dsrl-na", "update_every", "box"),
        ("best-of-n", "lr", "candidates"),
        ("idql", "expectile", "candidates"),
        ("dql", "eta", "sampling_std"),
    ],
)
def test_a_policy_of_another_version_opens_where_what_acts_is_the_same(tmp_path, method, younger, acting):
    """Settings of learning come and go; weights that do not fit their networks are still refused."""
    run = lpds.steer("toy", method, out=tmp_path / "run", **SHORT)
    policy = lpds.load_policy(run)
    obs, eps = np.zeros((3, 2), np.float32), np.ones((3, *policy.decoder.spec.latent_shape), np.float32)
    actions = policy.act(obs, eps)
    path = run.folder / "policy" / "policy.json"
    facts = json.loads(path.read_text())
    settings = {key: value for key, value in facts["settings"].items() if key != younger}
    path.write_text(json.dumps({**facts, "settings": {**settings, "dropped_since": 3}}))
    np.testing.assert_array_equal(lpds.load_policy(run).act(obs, eps), actions)
    path.write_text(json.dumps({**facts, "settings": {key: value for key, value in settings.items() if key != acting}}))
    with pytest.raises(lpds.LpdsError, match=f"do not belong together .*{acting}"):  # nobody knows how it acted
        lpds.load_policy(run)
    path.write_text(json.dumps({**facts, "settings": {**settings, "width": 2 * settings["width"]}}))
    if method == "dql":  # its critics do not act
        return
    with pytest.raises(lpds.LpdsError, match="do not belong together"):
        lpds.load_policy(run)


def test_a_finished_run_whose_decoder_moved_says_it_to_its_policy(tmp_path, capsys, monkeypatch):
    """``resume --decoder`` wrote the new place into config.json alone, so that eval went on looking at the old one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(lpds.__file__).parent / "zoo" / "toy", tmp_path / "mine")
    run = lpds.steer("toy", decoder="folder:mine", out="run", **TINY)
    assert run.folder == tmp_path / "run"  # from the root: a notebook changes its folder
    (tmp_path / "mine").rename(tmp_path / "moved")
    with pytest.raises(lpds.LpdsError, match=r"the (run|policy) in .* was made with it: say where it is now \(--decoder"):
        lpds.load_policy("run")
    before = lpds.load_policy("run", "folder:moved").act(np.zeros((1, 2)), np.ones((1, 2, 2)))
    assert lpds.resume("run", decoder="folder:moved", quiet=True).finished
    assert np.array_equal(lpds.load_policy("run").act(np.zeros((1, 2)), np.ones((1, 2, 2))), before)
    assert main(["eval", "run", "--episodes", "2"]) == 0
    capsys.readouterr()
