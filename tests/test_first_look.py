"""What a frozen policy does by itself: the same episodes in several ways, and which of them is best."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
from scripted import toy_decoder

import lpds
from lpds.cli import main
from lpds.decoders.store import save_decoder
from lpds.envs.four_mode import FourMode
from lpds.first_look import AS_IT_IS, LookReport, Way


def report(returns, successes=None):
    from dataclasses import replace

    found = lpds.evaluate(toy_decoder(), env=lambda: gymnasium.wrappers.TimeLimit(FourMode(), 4), episodes=len(returns))
    said = np.full(len(returns), np.nan) if successes is None else np.asarray(successes, float)
    return replace(found, returns=np.asarray(returns, float), successes=said)


def test_every_way_is_what_an_evaluation_of_it_says():
    """The same episodes and the same eps; all of the noise is the first way and no second one."""
    env = lambda: gymnasium.wrappers.TimeLimit(FourMode(), 40)  # noqa: E731
    seen = lpds.look("toy", env=env, episodes=4, seed=3, noise_scales=(1.0, 0.5, 0.5))
    assert [way.name for way in seen.ways] == [AS_IT_IS, "noise x0.5", "10 DDIM steps", "20 DDIM steps"]
    plain = {"env": env, "episodes": 4, "seed": 3}
    wanted = [
        lpds.evaluate("toy", **plain),
        lpds.evaluate("toy", **plain, noise_scale=0.5),
        lpds.evaluate(lpds.load_decoder("toy", ddim_steps=10), **plain),
        lpds.evaluate(lpds.load_decoder("toy", ddim_steps=20), **plain),
    ]
    for way, alone in zip(seen.ways, wanted, strict=True):
        np.testing.assert_array_equal(way.report.returns, alone.returns)
    assert not seen.ignores_seed


def test_a_finer_sampler_divides_the_trained_steps(tmp_path):
    for steps, finer in ((5, [10, 20]), (8, [10, 20]), (10, [20]), (20, [])):
        assert lpds.load_decoder("hopper", ddim_steps=steps).finer == tuple(("ddim_steps", count) for count in finer)
    assert lpds.load_decoder("hopper-flow").finer == (("steps", 2 * lpds.load_decoder("hopper-flow").sampler.steps),)
    save_decoder(lpds.load_decoder("toy", ddim_steps=10), tmp_path / "own")
    env = lambda: gymnasium.wrappers.TimeLimit(FourMode(), 8)  # noqa: E731
    kept = lpds.look(f"folder:{tmp_path}/own", env=env, episodes=2, noise_scales=())
    assert [way.name for way in kept.ways] == [AS_IT_IS, "20 DDIM steps"]
    bare = lpds.look(toy_decoder(), env=env, episodes=2, noise_scales=(0.3,))  # a function has no other sampler
    assert [way.name for way in bare.ways] == [AS_IT_IS, "noise x0.3"]


def seen(*ways):
    return LookReport("d", tuple(Way(name, found, f"--{name}") for name, found in ways), False)


def test_the_best_is_by_success_where_there_is_any_and_among_those_told_apart():
    low, high = report([9.0] * 20, [0.0] * 20), report([1.0] * 20, [1.0] * 16 + [0.0] * 4)
    found = seen((AS_IT_IS, low), ("quiet", high))
    assert found.best.name == "quiet"
    assert "success +80 points [" in found.verdict()
    assert "steer from there (--quiet)" in found.verdict()
    rises = report([9.5] * 20, [0.0] * 20)  # no success either way, but more return
    assert [way.name for way in seen((AS_IT_IS, low), ("quiet", rises)).better] == ["quiet"]
    worse = seen((AS_IT_IS, high), ("worse", low))
    assert worse.verdict() == "no way is told apart above the policy as it is (the largest mean: its own)"


def test_the_largest_mean_is_not_recommended_over_what_is_told_apart():
    wide, sure = report(np.linspace(-50, 90, 20)), report([5.0] * 20)
    found = seen((AS_IT_IS, report([0.0] * 20)), ("wide", wide), ("sure", sure))
    assert found.best.name == "wide"
    assert "steer from there (--sure)" in found.verdict()
    unsure = seen((AS_IT_IS, report([0.0] * 20)), ("wide", report(np.linspace(-50, 60, 20))))
    assert unsure.verdict() == "no way is told apart above the policy as it is (the largest mean: wide)"


def test_what_cannot_be_decided_says_so():
    one = report([1.0] * 8)
    assert seen((AS_IT_IS, one), ("same", one)).verdict() == "every way does the same"
    assert seen((AS_IT_IS, one)).verdict() == "no other way was tried"
    assert "cannot decide" in seen((AS_IT_IS, report([1.0] * 3)), ("b", report([2.0] * 3))).verdict()


def test_its_flags_are_options_of_steer_that_do_what_was_tried():
    """Noise: of lpds, in the end or all along; samplers: the decoder's."""
    env = lambda: gymnasium.wrappers.TimeLimit(FourMode(), 4)  # noqa: E731
    flags = [way.flags for way in lpds.look("toy", env=env, episodes=1, noise_scales=(0.5, 0.0)).ways]
    assert flags == [
        "",
        "of lpds, --eval-noise-scale 0.5 acts so in the end, --noise-scale 0.5 learns so, too",
        "of lpds, --eval-noise-scale 0 acts so in the end",
        "--ddim-steps 10",
        "--ddim-steps 20",
    ]


def test_an_environment_that_ignores_its_seed_is_told():
    class Drawn(FourMode):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=int(np.random.default_rng().integers(2**31)), options=options)

    env = lambda: gymnasium.wrappers.TimeLimit(Drawn(), 4)  # noqa: E731
    found = lpds.look(toy_decoder(), env=env, episodes=2, noise_scales=(0.5,))
    assert found.ignores_seed
    assert not lpds.look(toy_decoder(), env=lambda: gymnasium.wrappers.TimeLimit(FourMode(), 4), episodes=2).ignores_seed


def test_what_ones_own_code_made_is_not_made_again_with_another_option(tmp_path, capsys):
    (tmp_path / "looked_at.py").write_text("import lpds\ndecoder = lpds.load_decoder('toy', ddim_steps=5)\n")
    words = ["look", f"python:{tmp_path}/looked_at.py:decoder", "--env", "four-mode", "--episodes", "1", "--noise-scale", "0.5"]
    assert main(words) == 0
    assert "DDIM" not in capsys.readouterr().out


def test_the_command_says_as_much_and_refuses_what_is_no_factor(capsys, refused):
    words = ["look", "toy", "--task", "toy", "--episodes", "3", "--noise-scale", "0.5"]
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "noise x0.5 against as it is: paired difference" in table
    assert main([*words, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["way"] for row in rows[::3]] == [AS_IT_IS, "noise x0.5", "10 DDIM steps", "20 DDIM steps"]
    with refused("noise_scale must be in [0, 1]"):
        lpds.look("toy", "toy", noise_scales=(1.5,))
    assert main(["look", "hopper-c8", "--episodes", "1", "--noise-scale", "2"]) == 2


@pytest.mark.parametrize("asked", [{}, {"task": "nowhere"}])
def test_where_it_acts_must_be_known(asked, refused):
    with refused("task"):
        lpds.look("toy", **asked)


def test_one_factor_in_place_of_several_is_refused(refused):
    with refused("noise_scales are several factors, as in (0.6, 0), not 0.5"):
        lpds.look("hopper", "hopper", noise_scales=0.5)


def test_factors_may_come_one_by_one():
    seen = lpds.look(toy_decoder(), env="four-mode", episodes=2, noise_scales=(factor for factor in (0.6, 0.0)))
    assert [way.name for way in seen.ways] == [AS_IT_IS, "noise x0.6", "noise x0"]


def test_what_was_played_before_ctrl_c_is_told(monkeypatch, capsys):
    """Of three ways two were played; stopped within the first there is nothing to tell."""
    from lpds import first_look

    words = ["look", "toy", "--task", "toy", "--episodes", "3", "--noise-scale", "0.5,0"]
    assert main(words) == 0
    whole = capsys.readouterr().out.splitlines()

    def stopped_after(count):
        played = []

        def evaluate(*given, **asked):
            if len(played) == count:
                raise KeyboardInterrupt
            played.append(lpds.evaluate(*given, **asked))
            return played[-1]

        return evaluate

    monkeypatch.setattr(first_look, "evaluate", stopped_after(2))
    assert main(words) == 130
    said = capsys.readouterr()
    assert [line.split() for line in said.out.splitlines()[1:3]] == [line.split() for line in whole[1:3]]
    assert "noise x0 " not in said.out
    assert "the 2 ways that were played to their end are told" in said.err
    monkeypatch.setattr(first_look, "evaluate", stopped_after(2))
    assert main([*words, "--json"]) == 130
    assert len(capsys.readouterr().out.splitlines()) == 6
    monkeypatch.setattr(first_look, "evaluate", stopped_after(0))
    assert main(words) == 130
    assert capsys.readouterr().out == ""
