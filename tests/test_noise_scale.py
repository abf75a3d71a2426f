"""w = k eps + Delta(s): what acts, what is learned, and what it costs in nats."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from scripted import CPU, TINY, identity_decoder
from test_lpds_method import batch, noise
from torch.distributions import MultivariateNormal, kl_divergence

import lpds
from lpds.cli import main
from lpds.config import LPDSASettings, LPDSSettings
from lpds.diagnose import entropies_lost
from lpds.methods.lpds import LPDS
from lpds.methods.lpds_a import LPDSA
from lpds.report import write_report
from lpds.report.acting import action_samples
from lpds.report.read import read_runs
from lpds.run_folder import STATES_FILE

METHODS = [(LPDS, LPDSSettings), (LPDSA, LPDSASettings)]


def learner(method, kind, k, seed=0):
    made = method(
        kind(width=16, depth=1, kept_noises=0, noise_scale=k),
        identity_decoder((2, 3)),
        generator=torch.Generator().manual_seed(seed),
        device=CPU,
    )
    for net in (made.policy.net, made.slow_policy.net):
        net.biases[-1].data.fill_(0.3)  # a Delta that is not zero
    return made


@pytest.mark.parametrize(("method", "kind"), METHODS)
@pytest.mark.parametrize("k", [0.0, 0.25, 1.0])
def test_what_acts(method, kind, k):
    """The identity decodes w itself, so the action is k eps + Delta; half the shift goes with half of the quiet."""
    made = learner(method, kind, k)
    obs, eps = torch.randn(5, 2), torch.randn(5, 1, 2, 3)
    delta = made.policy(obs).detach().unflatten(1, (2, 3))
    for scale in (0.0, 0.5, 1.0):
        with torch.no_grad():
            action = made.policy.act(made.decoder, obs, eps, scale).action
        want = (1.0 - scale * (1.0 - k)) * eps[:, 0] + scale * delta
        assert torch.allclose(action, want, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(made.policy.act(made.decoder, obs, eps, 0.0).action, eps[:, 0])


@pytest.mark.parametrize(("method", "kind"), METHODS)
def test_without_noise_the_targets_do_not_depend_on_it(method, kind):
    """k = 0: two updates with different noises in eqs. 2 and 6 are the same to the bit; k = 1: they are not."""
    for k, equal in ((0.0, True), (1.0, False)):
        ends = []
        for draw in (1, 2):
            made = learner(method, kind, k)
            b = batch(made.decoder.spec, 8, torch.Generator().manual_seed(0))
            noises = noise(made, 8, torch.Generator().manual_seed(3))
            other = torch.Generator().manual_seed(draw)
            noises |= {name: torch.randn(noises[name].shape, generator=other) for name in ("next", "actor")}
            made.update(b, noises)
            ends.append(made.tensors())
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0]) is equal


@pytest.mark.parametrize("k", [0.25, 0.5, 1.0])
def test_the_price_in_nats_is_the_gaussians(k):
    made = learner(LPDS, LPDSSettings, k)
    b = batch(made.decoder.spec, 8, torch.Generator().manual_seed(0))
    delta = made.policy(b.obs).detach()
    told = made.update(b, noise(made, 8, torch.Generator().manual_seed(1)))["kl_nats"]
    standard = MultivariateNormal(torch.zeros(6), torch.eye(6))
    want = torch.stack([kl_divergence(MultivariateNormal(row, k * k * torch.eye(6)), standard) for row in delta]).mean()
    assert float(told) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("k", [0.0, 0.5])
def test_columns_that_only_pad_keep_the_priors_noise(k):
    """They are no part of what acts, so quiet there would only take the decoder's network off its prior, and cost nats."""
    decoder = identity_decoder((2, 3), free=(True, False, True))
    made = LPDS(
        LPDSSettings(width=16, depth=1, kept_noises=0, noise_scale=k),
        decoder,
        generator=torch.Generator().manual_seed(0),
        device=CPU,
    )
    made.policy.net.biases[-1].data.fill_(0.3)
    obs, eps = torch.randn(5, 2), torch.randn(5, 1, 2, 3)
    with torch.no_grad():
        shift = made.policy(obs).unflatten(1, (2, 3))
        for acted in (made.policy.act(decoder, obs, eps, 1.0).action, made._decode(obs, made._quietened(eps[:, 0].flatten(1)))):
            assert torch.equal(acted.view(5, 2, 3)[..., 1], eps[:, 0, :, 1])
        assert torch.allclose(made.policy.act(decoder, obs, eps, 1.0).action[..., ::2], k * eps[:, 0, :, ::2] + shift[..., ::2])
    b = batch(decoder.spec, 8, torch.Generator().manual_seed(0))
    delta_sq = made.policy(b.obs).detach().square().sum(1).mean()
    told = float(made.update(b, noise(made, 8, torch.Generator().manual_seed(1)))["kl_nats"])
    price = 4 * (0.5 * (k * k - 1.0) - math.log(k)) if k else math.inf  # of four coordinates
    assert told == pytest.approx(0.5 * float(delta_sq) + price, rel=1e-5)


@pytest.mark.parametrize("k", [0.25, 1.0])
def test_the_norm_and_the_gap_that_are_told_are_those_of_what_is_decoded(k):
    made = learner(LPDS, LPDSSettings, k)
    b = batch(made.decoder.spec, 64, torch.Generator().manual_seed(0))
    drawn = noise(made, 64, torch.Generator().manual_seed(1))
    told = made.diagnose(b, drawn)
    with torch.no_grad():
        w = k * drawn["actor"] + made.policy(b.obs)
        obs = made.policy.scaling(b.obs)
        gap = made._latent_value(obs, w) - made._value(made.q_action, obs, w)  # the identity decodes w itself
    assert float(told["w_norm"]) == pytest.approx(float(w.norm(dim=1).mean()), rel=1e-5)
    assert float(told["distill_gap_steered"]) == pytest.approx(float(gap.mean()), rel=1e-4)


def test_no_noise_has_no_density():
    made = learner(LPDS, LPDSSettings, 0.0)
    b = batch(made.decoder.spec, 8, torch.Generator().manual_seed(0))
    assert float(made.update(b, noise(made, 8, torch.Generator().manual_seed(1)))["kl_nats"]) == math.inf


@pytest.mark.parametrize(("method", "kind"), METHODS)
def test_a_saved_policy_keeps_it_and_an_older_one_has_all_noise(method, kind):
    made = learner(method, kind, 0.5)
    saved = made.policy_settings()
    opened = method.open_policy(made.decoder, saved, made.policy_tensors())
    assert opened.noise_scale == 0.5
    del saved["noise_scale"]
    assert method.open_policy(made.decoder, saved, made.policy_tensors()).noise_scale == 1.0


@pytest.mark.parametrize(("method", "kind"), METHODS)
@pytest.mark.parametrize("target_shift", ["slow", "current"])
def test_evaluations_and_the_saved_policy_alone_may_have_less_noise(method, kind, target_shift):
    """What collects, what chooses kept chunks and every weight that is learned are those of a run without it, to the bit."""
    shape = {"width": 16, "depth": 1, "noise_scale": 0.5, "target_shift": target_shift}
    ends, acts = [], []
    obs, eps = torch.randn(5, 2), torch.randn(5, 1, 2, 3)
    for quiet in (1.0, 0.25):
        made = method(
            kind(**shape, kept_noises=0, eval_noise_scale=quiet),
            identity_decoder((2, 3)),
            generator=torch.Generator().manual_seed(0),
            device=CPU,
        )
        made.policy.net.biases[-1].data.fill_(0.3)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            made.update(batch(made.decoder.spec, 8, generator), noise(made, 8, generator))
        ends.append(made.tensors())
        opened = method.open_policy(made.decoder, made.policy_settings(), made.policy_tensors())
        with torch.no_grad():
            acts.append([p.act(made.decoder, obs, eps, 1.0).action for p in (made.behaviour, made.target, made.policy, opened)])
            moved = made.policy(obs).view(5, 2, 3)
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    (collects, chooses, evaluated, _), (collects_too, chooses_too, quietly, saved) = acts
    assert torch.equal(collects, collects_too)
    assert torch.equal(chooses, chooses_too)
    assert torch.equal(evaluated, collects)
    assert torch.equal(quietly, saved)
    assert torch.allclose(quietly, 0.125 * eps[:, 0] + moved, atol=1e-6)


@pytest.mark.parametrize(("method", "kind"), METHODS)
def test_it_may_be_turned_down_as_delta_is_learned(method, kind):
    """After n of N updates of Delta the factor is 1 - n / N (1 - e), then e; critics alone do not count; checkpoints keep n."""

    def make():
        settings = kind(
            width=16,
            depth=1,
            kept_noises=0,
            noise_scale=0.5,
            eval_noise_scale=0.2,
            eval_noise_updates=4,
            target_shift="current",
        )
        return method(settings, identity_decoder((2, 3)), generator=torch.Generator().manual_seed(0), device=CPU)

    made = make()
    generator = torch.Generator().manual_seed(1)
    made.update(batch(made.decoder.spec, 8, generator), noise(made, 8, generator), critics_only=True)
    for factor in (1.0, 0.8, 0.6, 0.4, 0.2, 0.2):
        again = make()
        again.load_tensors(made.tensors())
        opened = method.open_policy(made.decoder, made.policy_settings(), made.policy_tensors())
        assert [p.noise_scale for p in (made.policy, again.policy, opened)] == pytest.approx([0.5 * factor] * 3)
        assert made.behaviour.noise_scale == made.target.noise_scale == 0.5
        made.update(batch(made.decoder.spec, 8, generator), noise(made, 8, generator))


def test_a_checkpoint_from_before_updates_were_counted_opens():
    made, again = learner(LPDS, LPDSSettings, 0.5), learner(LPDS, LPDSSettings, 0.5, seed=1)
    old = {name: value for name, value in made.tensors().items() if name != "ascents"}
    again.load_tensors(old)
    assert all(torch.equal(value, again.tensors()[name]) for name, value in old.items())
    assert (int(again.region.ascents), again.policy.noise_scale) == (0, 0.5)


def test_what_is_refused(refused):
    with refused("eval_noise_updates must not be negative, not -1"):
        LPDSSettings(eval_noise_updates=-1)
    with refused("delta_updates must not be negative, not -1"):
        LPDSSettings(delta_updates=-1)
    for wrong in (-0.1, 1.5, math.nan):
        with refused("noise_scale must be in [0, 1]"):
            LPDSSettings(noise_scale=wrong)
        with refused("eval_noise_scale must be in [0, 1]"):
            LPDSSettings(eval_noise_scale=wrong)


def test_eval_compares_with_the_frozen_policy_at_the_noise_that_acts(tmp_path, capsys):
    """Between 0 and 1 a policy's own factor k is 1 - s (1 - k), so that is what the frozen policy is given, too."""
    lpds.steer("toy", out=tmp_path / "run", **TINY, eval_noise_scale=0.2)
    for arguments, told in (
        (["--scale", "0.5"], "0.6"),
        ([], "0.2"),
        (["--noise-scale", "0.5"], "0.1"),
        (["--scale", "0"], None),
    ):
        main(["eval", str(tmp_path / "run"), "--episodes", "6", *arguments])
        found = set(re.findall(r"frozen, noise x([0-9.]+)", capsys.readouterr().out))
        assert found == ({told} if told else set())


def test_what_less_noise_alone_brings_is_not_put_down_to_the_shift(tmp_path):
    """With hardly any Delta all that is left of a quiet run's difference is the quiet, and its verdict says so."""
    run = lpds.steer("toy", out=tmp_path / "run", **TINY, delta=1e-9, eval_noise_scale=0.25)
    assert run.quiet is not None
    assert run.quiet.noise_scale == 0.25
    np.testing.assert_allclose(run.quiet.returns, run.steered.returns, atol=1e-2)
    assert not np.allclose(run.quiet.returns, run.frozen.returns, atol=1e-2)
    assert "against the frozen policy with 0.25 of its noise, too" in run.verdict()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["verdict"] == run.verdict()
    whole = lpds.steer("toy", out=tmp_path / "whole", **TINY)
    assert whole.quiet is None
    assert "too" not in whole.verdict()


def test_several_factors_are_one_table_on_the_same_episodes(capsys):
    """Each row is what the command says of that factor alone."""

    def played(factors):
        words = ["eval", "--noise-scale", factors, "toy", "--task", "toy", "--episodes", "8", "--json"]
        assert main(words) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return {k: [row["return"] for row in rows if row["noise_scale"] == k] for k in {row["noise_scale"] for row in rows}}

    several = played("1,0.5,0,0.5")
    assert set(several) == {1.0, 0.5, 0.0}
    assert all(len(returns) == 8 for returns in several.values())
    assert {**played("0.5"), **played("0")} == several


def test_of_a_run_every_factor_is_set_against_the_frozen_policy_with_as_little(tmp_path, capsys):
    lpds.steer("toy", out=tmp_path / "run", **TINY)
    assert main(["eval", str(tmp_path / "run"), "--episodes", "6", "--noise-scale", "1,0.5,0"]) == 0
    told = capsys.readouterr().out
    for k in ("0.5", "0"):
        assert f"scale 1, noise x{k} against frozen, noise x{k}: paired difference" in told
    assert "noise x0 against frozen, noise x0.5" not in told
    assert main(["eval", str(tmp_path / "run"), "--noise-scale", "1;2"]) == 2
    assert "no numbers with commas" in capsys.readouterr().err


def test_what_a_way_of_acting_costs_in_spread_is_told_beside_what_it_brings(tmp_path, capsys):
    """Of a decoder that is the identity it is known: k of the noise costs ln k nats for each of the action's dimensions."""

    decoder, states = identity_decoder((2, 3)), torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    acts = LPDS(LPDSSettings(width=8), decoder, generator=torch.Generator(), device=CPU).policy
    whole, half, frozen_half, nothing = entropies_lost(acts, decoder, states, [(1.0, 1.0), (1.0, 0.5), (0.0, 0.5), (1.0, 0.0)])
    assert whole == pytest.approx(0.0, abs=1e-4)  # Delta is zero: nothing was learned
    assert half == pytest.approx(3 * math.log(0.5), abs=1e-3)
    assert frozen_half == pytest.approx(half, abs=1e-4)
    assert nothing == -math.inf

    lpds.steer("toy", out=tmp_path / "run", **TINY)
    assert main(["eval", str(tmp_path / "run"), "--episodes", "6", "--noise-scale", "1,0"]) == 0
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("spread of the actions")]
    assert re.search(r"at \d+ states of the warm-up; frozen, noise x0: one action a state; scale 1: [+-]\d", told)
    assert told.endswith("scale 1, noise x0: one action a state")
    states_file = tmp_path / "run" / STATES_FILE
    states_file.write_bytes(states_file.read_bytes()[:-1])  # an evaluation goes without them, a report says why
    assert main(["eval", str(tmp_path / "run"), "--episodes", "6"]) == 0
    assert "spread" not in capsys.readouterr().out
    (run,) = read_runs([tmp_path / "run"])
    assert f"run/{STATES_FILE} cannot be read" in str(action_samples(run))
    page = write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert f"Note: its modes are not drawn: run/{STATES_FILE} cannot be read" in page
    states_file.unlink()
    assert main(["eval", str(tmp_path / "run"), "--episodes", "6"]) == 0
    assert "spread" not in capsys.readouterr().out
    assert action_samples(run) == "the run folder keeps no states"
