"""The warm-up: whose returns they are, and what they are scaled to."""

from __future__ import annotations

import json

import pytest
from scripted import TINY

import lpds
from lpds.learning import Learning
from lpds.methods.chain import ChainPolicy
from lpds.registry import METHODS, resolve


@pytest.mark.parametrize(("name", "std"), [("dppo", 1.0), ("dql", 10.0), ("idql", 10.0)])
def test_the_warm_ups_returns_deviate_by_what_is_asked(name, std, tmp_path, monkeypatch):
    seen = {}
    everything = Learning._end_warmup

    def noted(self, step, stopped):
        seen["returns"] = self.replay.returns_to_go()[0].clone()
        return everything(self, step, stopped)

    monkeypatch.setattr(Learning, "_end_warmup", noted)
    monkeypatch.setattr(
        resolve("method", METHODS, name), "calibrate", lambda self, obs, action, scale: seen.update(scale=scale)
    )
    given = {"warmup_steps": 64, "warmup_fits": 0, "eval_every": 0, "final_episodes": 1, "quiet": True}
    lpds.steer("toy", method=name, out=tmp_path / "run", steps=80, **given)
    assert float((seen["scale"] * seen["returns"]).std()) == pytest.approx(std, rel=1e-4)


@pytest.mark.parametrize("name", ["dppo", "dql", "idql"])
def test_what_trains_the_chain_is_warmed_up_by_the_chain(name, make_diffusion, tmp_path, monkeypatch):
    """As the released code; the frozen policy's own sampler is another policy, whose returns are not the chain's."""
    acted = []
    act = ChainPolicy.act

    def noted(self, decoder, obs, eps, scale):
        if not self.evaluation:
            acted.append(scale)
        return act(self, decoder, obs, eps, scale)

    monkeypatch.setattr(ChainPolicy, "act", noted)
    given = {"steps": 120, "warmup_steps": 64, "warmup_fits": 0, "eval_every": 0, "final_episodes": 1, "quiet": True}
    rounds = {}
    for warmup_policy in (None, "frozen"):
        acted.clear()
        chosen = {} if warmup_policy is None else {"warmup_policy": warmup_policy}
        run = lpds.steer("toy", method=name, out=tmp_path / str(warmup_policy), **given, **chosen)
        rounds[warmup_policy] = list(acted)
        assert not json.loads((run.folder / "summary.json").read_text()).get("warnings"), "the chain is noisier on purpose"
    assert set(rounds[None]) == {1.0}
    warm = rounds["frozen"].index(1.0)
    assert set(rounds["frozen"][:warm]) == {0.0}
    assert set(rounds["frozen"][warm:]) == {1.0}
    assert warm > 1


@pytest.mark.parametrize("name", ["lpds", "dsrl-na", "best-of-n"])
def test_fits_are_of_the_policy_that_collected_the_warm_up(name, tmp_path, refused):
    with refused(
        f"{name} fits its critics to the warm-up as the frozen policy's: warmup_policy own wants warmup_fits 0, not 50"
    ):
        lpds.steer("toy", method=name, out=tmp_path / "run", steps=400, warmup_policy="own", warmup_fits=50)


def test_a_factor_that_is_given_leaves_nothing_to_choose(tmp_path, capsys):
    for given, idle in (({"reward_scale": 1.0}, True), ({"reward_scale": 0.0}, False)):
        lpds.steer("toy", out=tmp_path / str(idle), return_std=5.0, **{**TINY, "quiet": False}, **given)
        assert ("lpds makes no use of return_std" in "".join(capsys.readouterr())) == idle
