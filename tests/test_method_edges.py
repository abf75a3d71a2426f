"""Methods at their edges: no update, no budget, masked columns, several draws for a decision."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scripted import TINY, identity_decoder, toy_decoder

import lpds
from lpds.config import GoldenTicketSettings
from lpds.diagnose import frozen_entropy
from lpds.envs.four_mode import make_four_mode
from lpds.log import read_json_lines
from lpds.methods.base import BasePolicy
from lpds.presets import resolve_settings
from lpds.registry import TASKS, resolve
from lpds.tasks import PRESETS


def presets():
    named = ((method, name, preset) for method, found in PRESETS.items() for name, preset in found.items())
    return [
        (method, name, task) for method, name, preset in named for task in (preset.tasks or ("toy", "hopper", "adroit-pen"))
    ]


SHORT = {**TINY, "steps": 400, "eval_every": 0}


def test_a_golden_tickets_search_ends_whatever_the_warm_up(tmp_path):
    """Its phases are shares of the whole budget, so none of that may go to a warm-up."""
    settings = {"steps": 1600, "num_envs": 1, "eval_every": 0, "final_episodes": 2, "quiet": True, "tickets": 4}
    left = []
    for warmup in (1, 800):
        run = lpds.steer("toy", "golden-ticket", out=tmp_path / str(warmup), warmup_steps=warmup, **settings)
        from lpds.checkpoint import CheckpointStore

        tensors, _ = CheckpointStore(run.folder / "checkpoint").load()
        left.append((int(tensors["method.alive"].sum()), int(tensors["method.halvings"])))
    assert left == [(1, 2), (1, 2)]
    assert GoldenTicketSettings().tickets == 16


def test_a_method_that_acts_by_the_chain_is_set_against_the_untrained_chain(tmp_path):
    """The sampler alone may be worth more than what was learned; on 2 episodes both are played on the same noise."""
    settings = {"steps": 64, "num_envs": 1, "eval_every": 0, "final_episodes": 6, "warmup_steps": 8, "quiet": True}
    run = lpds.steer("toy", "dppo", out=tmp_path / "dppo", **settings)
    chain = lpds.steer(
        "toy", "base", out=tmp_path / "chain", sampler="chain", steps=8, eval_every=0, final_episodes=6, quiet=True
    )
    assert run.start is not None
    assert chain.steered is not None
    np.testing.assert_array_equal(run.start.returns, chain.steered.returns)
    assert "against what it starts from, untrained" in run.verdict()
    notes = lpds.compare([run.folder]).notes
    assert any("acts by the decoder's whole chain" in note and "dppo" in note for note in notes)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("method", "name", "task"), presets())
def test_every_preset_fits_its_method_on_every_task_that_it_is_for(method, name, task):
    resolve_settings(resolve("task", TASKS, task), method, {}, PRESETS[method][name])


def test_what_draws_more_noise_for_a_decision_meets_the_same_eps():
    """So the frozen policy's entropy is one number, whose decisions draw one latent or several."""
    met = []

    class Draws(BasePolicy):
        def __init__(self, draws):
            self.draws = draws

        def act(self, decoder, obs, eps, scale):
            met.append(eps[:, 0])
            return super().act(decoder, obs, eps[:, :1], scale)

    states = torch.randn(3, 2)
    entropies = {frozen_entropy(Draws(draws), toy_decoder(), states).entropy for draws in (1, 2, 21)}
    assert len(entropies) == 1
    assert all(torch.equal(eps, met[0]) for eps in met)


@pytest.mark.parametrize("method", ["base", "golden-ticket"])
def test_what_reads_no_rows_keeps_none(tmp_path, method):
    """A budget of pictures would fill the memory, and the checkpoint, with what nobody looks at."""
    plain = {"steps": 1_000, "eval_every": 0, "final_episodes": 2, "num_envs": 3, "quiet": True}
    run = lpds.steer("toy", method, out=tmp_path / "run", **plain)
    rows = [load_file(path)["reward"].numel() for path in (run.folder / "checkpoint").glob("replay-*.safetensors")]
    assert 0 < sum(rows) <= 2 * 3
    assert run.finished


@pytest.mark.parametrize("method", ["dsrl-na", "dsrl-sac", "dppo", "dql", "lpds"])
def test_an_actor_that_saw_no_update_is_neither_saved_nor_praised(tmp_path, method):
    """Until there is something to show, what is saved and evaluated is the frozen policy."""
    few = {} if method == "dppo" else {"updates_per_decision": 1e-6}
    run = lpds.steer("toy", method=method, out=tmp_path / "run", **{**SHORT, "warmup_steps": 395, **few})
    rows = list(read_json_lines(tmp_path / "run" / "metrics.jsonl"))
    assert rows[-1]["updates"] == 0
    assert run.verdict().startswith("NOTHING WAS LEARNED: ")
    assert ("learns from at once" if method in ("dppo", "dsrl-na", "dsrl-sac") else "came to no update") in run.verdict()
    assert json.loads((tmp_path / "run" / "policy" / "policy.json").read_text())["method"] == "base"
    assert np.array_equal(run.frozen.returns, run.steered.returns)


def test_a_grown_budget_writes_nothing_twice(tmp_path):
    run = lpds.steer(decoder=toy_decoder(), env=make_four_mode, out=tmp_path / "run", **{**SHORT, "eval_every": 200})
    lpds.resume(run, steps=800, decoder=toy_decoder(), env=make_four_mode, quiet=True)
    curve = [(r["step"], r["scale"], r["episode"]) for r in read_json_lines(run.folder / "eval.jsonl") if r["kind"] == "curve"]
    assert len(curve) == len(set(curve))
    steps = [row["step"] for row in read_json_lines(run.folder / "metrics.jsonl")]
    assert len(steps) == len(set(steps))
    assert steps[-1] >= 800
    assert len({step for step, _, _ in curve}) == 5  # 0, about 200, 400, about 600, 800


def test_a_ticket_leaves_masked_columns_to_the_noise(tmp_path, refused):
    """As Delta does: ``free`` says what may be steered."""
    free = [True, False]
    decoder = identity_decoder((1, 2), free=free)
    plain = {key: value for key, value in SHORT.items() if key not in ("width", "depth", "steps")}
    run = lpds.steer(
        decoder=decoder, env=make_four_mode, method="golden-ticket", tickets=2, steps=1500, out=tmp_path / "run", **plain
    )
    policy = lpds.load_policy(run, decoder=identity_decoder((1, 2), free=free))
    eps = torch.randn(5, 1, 1, 2)
    for scale in (0.5, 1.0):
        w = policy.policy.act(policy.decoder, torch.zeros(5, 2), eps, scale).latent.view(5, 1, 2)
        assert torch.equal(w[..., 1], eps[:, 0, :, 1])
        assert not torch.equal(w[..., 0], eps[:, 0, :, 0])
