"""What a fifth reading found: reports of pictures, decoders opened twice, code in a checkpoint's settings, forks."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import Spot, spot_decoder
from safetensors.torch import load_file
from scripted import TINY, identity_decoder
from serving import served

import lpds
from lpds.cli import main
from lpds.doctor import check
from lpds.pretrain import build
from lpds.pretrain.build import pretrain
from lpds.pretrain.experts import Demonstrations
from lpds.pretrain.fits import check_fits
from lpds.report import write_report
from lpds.report.acting import NUMBERS, shift_sizes
from lpds.report.figures import _draw
from lpds.report.panels import BEYOND, CROWD, FigureData, Level, Panel, Series, apart, extent, is_cut, to_csv
from lpds.report.read import read_runs

SHORT = TINY | {"steps": 360, "warmup_steps": 150, "num_envs": 2, "delta": 0.5}
MINE = """
from pathlib import Path
from pictures import spot_decoder

with Path(__file__).with_name("opened.txt").open("a") as stream:
    stream.write("opened\\n")
decoder = spot_decoder({given})
"""


def steer(tmp_path, given, **changes):
    """A run whose decoder is found by a reference; how often it was opened is in ``opened.txt``."""
    name = f"mine_{tmp_path.name}"  # a module's name is taken once
    (tmp_path / f"{name}.py").write_text(MINE.format(given=given))
    reference = f"python:{tmp_path}/{name}.py:decoder"
    return lpds.steer(decoder=reference, env=Spot, out=tmp_path / "run", **SHORT | changes)


@pytest.mark.parametrize("given", ["features=None, feature_size=None", ""])
def test_a_report_knows_deltas_size_without_opening_the_decoder(tmp_path, given):
    """Of pictures held whole, and of features: ``||Delta||^2`` at the replay's latest states, the decoder opened once."""
    run = steer(tmp_path, given)
    assert run.finished
    assert (tmp_path / "opened.txt").read_text().split() == ["opened"]
    assert "No quantiles" not in (run.folder / "report.html").read_text()
    (data,) = read_runs([run.folder])
    sizes = shift_sizes(data)
    policy = lpds.load_policy(run.folder, spot_decoder(**({} if not given else {"features": None, "feature_size": None})))
    segments = [load_file(path) for path in sorted((run.folder / "checkpoint").glob("replay-*"))]
    states = [torch.cat([part["obs"], *([part["frames"].float()] if "frames" in part else [])], 1) for part in segments]
    wanted = np.square(policy.shift_at(torch.cat(states)), dtype=np.float64).sum((1, 2))
    np.testing.assert_array_equal(sizes, wanted)
    assert sizes.any()
    assert NUMBERS // states[0].shape[1] > len(wanted)


def test_a_drawing_that_fails_does_not_cost_the_run(tmp_path, monkeypatch, capsys):
    def broken(*given):
        raise RuntimeError("no ink")

    monkeypatch.setattr("lpds.report.write_report", broken)
    run = steer(tmp_path, "", quiet=False)
    assert "frozen" in run.verdict()
    assert "no report: RuntimeError: no ink" in capsys.readouterr().err


def test_a_wrapped_decoders_modes_are_drawn_where_it_is_at_hand(tmp_path):
    """By the run that has it, and by whoever passes it; not by its folder alone."""
    run = lpds.steer(decoder=identity_decoder(), env="four-mode", out=tmp_path / "run", **TINY)
    page = (run.folder / "report.html").read_text()
    assert "<h3>Modes: actions before and after</h3>" in page
    assert "<h3>Modes" not in write_report([run.folder], tmp_path / "alone.html").read_text()
    assert write_report([run.folder], tmp_path / "passed.html", identity_decoder()).read_text() == page


# -- a decoder that is served ------------------------------------------------------------------------------------------


def large(shape, **given):
    """Sees one picture, whose brightness counts; the noise decides a little."""

    def brightness(picture):
        return picture.float().flatten(1).mean(1, keepdim=True) / (255.0 if picture.dtype == torch.uint8 else 1.0)

    def policy(obs, w):
        return 0.1 * w + 100.0 * brightness(obs["picture"])[:, None] + obs["state"][:, None, :1]

    shapes = {"picture": shape, "state": (2,)}
    return lpds.wrap_decoder(policy, obs_shape=shapes, latent_shape=(1, 1), action_shape=(1, 1), name="large", **given)


@pytest.mark.parametrize("shape", [(96, 96, 3), (3, 224, 224), (720, 1280, 3)])
def test_a_decoder_of_large_pictures_is_probed_from_afar_as_it_is_here(shape):
    """What fits is sent; where a few pictures do not, they are drawn on this side, and the vectors are the server's."""
    numbers = np.random.default_rng(0).normal(5.0, 1.0, (32, 2)).astype(np.float32)
    kind = np.uint8 if shape[-1] == 3 else np.float32
    pictures = np.random.default_rng(1).integers(0, 256, (32, *shape)).astype(np.uint8)
    examples = {"picture": pictures if kind == np.uint8 else pictures.astype(np.float32) / 255.0, "state": numbers}
    decoder = large(shape, examples=examples)
    with served(decoder) as (_, remote):
        draws = {"picture": torch.zeros(40, *shape), "state": torch.zeros(40, 2)}
        draws["picture"].copy_(torch.linspace(-1.0, 1.0, 40).view(40, 1, 1, 1))
        seen = remote.plausible(draws)
        np.testing.assert_array_equal(seen["state"].numpy(), numbers[np.arange(40) % len(remote._served.examples["state"])])
        assert seen["picture"].shape == (40, *shape)
        assert seen["picture"].dtype == (torch.uint8 if kind == np.uint8 else torch.float32)
        assert len(torch.unique(seen["picture"].flatten(1).float().mean(1))) >= 8  # states that differ
        if shape == (96, 96, 3):
            assert torch.equal(seen["picture"][:32], torch.from_numpy(pictures))
            here, there = (check(one, samples=32) for one in (decoder, remote))
            assert [(one.name, one.verdict) for one in there.findings] == [(one.name, one.verdict) for one in here.findings]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_opens_a_connection_of_its_own():
    """A child that asks on its parent's connection leaves its answer there, for the parent's next question."""
    decoder = lpds.wrap_decoder(lambda obs, w: w + 0.0, obs_shape=1, latent_shape=(1, 1), action_shape=(1, 1), name="echo")
    with served(decoder, timeout=5.0, retries=0) as (_, remote):
        obs = torch.zeros(1, 1)

        def ask(value):
            return float(remote(obs, torch.full((1, 1, 1), value)))

        assert ask(1.0) == 1.0
        remote._lock.acquire()  # as another thread may hold it at the fork
        child = os.fork()
        if child == 0:
            try:
                answered = ask(100.0) == 100.0
            finally:
                os._exit(0 if answered else 1)
        remote._lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ask(5.0) == 5.0
        assert ask(6.0) == 6.0


# -- pictures of many methods ------------------------------------------------------------------------------------------


def lines(groups, wide=0.0):
    """One line from 0 to 10 for every group, with bounds as far beyond."""
    x, y = np.arange(2.0), np.array([0.0, 10.0])
    return [Series(f"m{group}", group, x, y, y - wide, y + wide) for group in range(groups)]


def test_many_groups_are_drawn_in_several_panels_of_one_span():
    """Each once, in their order, none alone in a crowd; the levels in all of them; few stay as they are."""
    level = Level("frozen", 4.0)
    few = Panel("return", lines(CROWD), [level])
    assert apart(few) == [few]
    many = Panel("return", lines(11, wide=1.0), [level])
    parts = apart(many)
    assert [series.label for part in parts for series in part.series] == [f"m{group}" for group in range(11)]
    assert [len(part.series) for part in parts] == [4, 4, 3]
    assert {part.span for part in parts} == {(-1.0, 11.0)}
    assert all(part.levels == [level] for part in parts)
    assert [part.title for part in parts] == [f"return ({number} of 3)" for number in (1, 2, 3)]
    text = to_csv(FigureData("learning", "", "", parts))
    assert text.count("\n") == 1 + 11 * 2 + 3


@pytest.mark.parametrize(("wide", "shown"), [(0.0, 0.0), (1.0, 1.0), (4.0, 4.0), (500.0, 500.0)])
def test_lines_within_each_others_bounds_are_seen_to_be(wide, shown):
    """The bounds that are shown are as wide as half of them are, or as four tenths of the lines' range."""
    assert extent(Panel("return", lines(2, wide))) == (-shown, 10.0 + shown)


def test_bounds_that_dwarf_the_others_are_cut_and_lines_and_levels_never():
    wild = [*lines(3, 1.0), replace(lines(1, 500.0)[0], group=3)]
    level = Level("frozen", 9.0, -20.0, 9.5)
    panel = Panel("return", wild, [])
    assert extent(panel) == (-10.0 * BEYOND, 10.0 + 10.0 * BEYOND)
    assert is_cut(panel)
    held = Panel("return", wild, [level])
    assert extent(held)[0] == -20.0 - 30.0 * BEYOND  # what a line is read against is whole
    for whole in (replace(panel, percent=True), replace(panel, log=True)):
        assert not is_cut(whole)
    assert extent(replace(panel, percent=True)) == (-500.0, 510.0)
    flat = Panel("return", [Series("m", 0, np.arange(2.0), np.ones(2), np.zeros(2), np.full(2, 5.0))])
    assert extent(flat) == (0.0, 5.0)
    assert not is_cut(flat)
    nothing = np.full(2, np.nan)  # the bounds of a single episode
    alone = Panel("return", [Series("m", 0, np.arange(2.0), np.array([1.0, 3.0]), nothing, nothing)])
    assert extent(alone) == (1.0, 3.0)
    assert not is_cut(alone)


@pytest.mark.parametrize("log", [False, True])
def test_panels_of_one_span_have_the_same_axis(log):
    """As drawn: eight lines a decade apart, in two panels."""
    from matplotlib.figure import Figure

    x = np.arange(2.0)
    series = [Series(f"m{group}", group, x, np.array([10.0**group, 2.0 * 10.0**group])) for group in range(8)]
    axes = Figure().subplots(1, 2)
    for ax, part in zip(axes, apart(Panel("td", series, log=log)), strict=True):
        _draw(ax, part)
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert axes[0].get_ylim()[1] >= 2.0 * 10.0**7


# -- data and training of one's own ------------------------------------------------------------------------------------


def plain_data(lengths=(6, 6, 3), actions=2):
    rng, count = np.random.default_rng(0), sum(lengths)
    return Demonstrations(
        obs=rng.normal(size=(count, 2)).astype(np.float32),
        actions=rng.uniform(-1.0, 1.0, (count, actions)).astype(np.float32),
        episode_lengths=np.asarray(lengths, np.int64),
        episode_returns=np.zeros(len(lengths)),
        episode_source=np.zeros(len(lengths), np.int64),
    )


SMALL = {"chunk": 4, "width": 16, "steps": 40, "batch_size": 8}


def test_a_stopped_training_is_saved_and_its_card_says_so(tmp_path):
    plain_data().save(tmp_path / "d.npz")

    @contextmanager
    def after(count):
        asked = []
        yield lambda: asked.append(1) or len(asked) >= count

    given = {"env": "four-mode", "changes": SMALL}
    card = pretrain("mine", str(tmp_path / "d.npz"), tmp_path / "out", **given, stopping=lambda: after(15))
    assert card["training"]["stopped_at"] == 15
    assert card["return"] is None
    assert lpds.load_decoder(f"folder:{tmp_path / 'out'}").fingerprint == card["fingerprint"]
    whole = pretrain("mine", str(tmp_path / "d.npz"), tmp_path / "whole", episodes=0, changes=SMALL)
    assert "stopped_at" not in whole["training"]
    assert whole["fingerprint"] != card["fingerprint"]
    last = pretrain("mine", str(tmp_path / "d.npz"), tmp_path / "last", **given, stopping=lambda: after(40))
    assert (last["training"]["stopped_at"], last["return"]) == (40, None)  # asked at the last step: it does not go on to play


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_training_and_the_next_one_ends_as_ever(tmp_path, monkeypatch, capsys, number):
    """Only the training takes a signal for a request; before it and after it a signal is what it always was."""
    plain_data().save(tmp_path / "d.npz")
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    handlers = []

    def trained(data, settings, **given):
        handlers.append(signal.getsignal(number))
        os.kill(os.getpid(), number)
        return cloned(data, settings, **given)

    cloned = build.clone
    monkeypatch.setattr(build, "clone", trained)
    words = ["pretrain", "mine", "--data", str(tmp_path / "d.npz"), "--out", str(tmp_path / "again"), "--env", "four-mode"]
    assert main([*words, "--steps", "40", "--width", "16", "--chunk", "4"]) == 130
    assert "stopped at 1 of 40 gradient steps" in capsys.readouterr().out
    assert handlers[0] not in before
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_interrupt_leaves_no_empty_folder_and_bad_numbers_are_refused_before_the_training(tmp_path, refused):
    plain_data().save(tmp_path / "d.npz")
    data, out = str(tmp_path / "d.npz"), tmp_path / "out"

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain("mine", data, out, episodes=0, changes=SMALL, stopping=lambda: nullcontext(stop))
    assert not out.exists()
    with refused("episodes must be at least 0, not -3"):
        pretrain("mine", data, out, episodes=-3, changes=SMALL)
    with refused("steps must be of type int", "'9'"):
        pretrain("mine", data, out, episodes=0, changes=SMALL | {"steps": "9"})
    with refused("unknown setting 'widht'", "width"):
        pretrain("mine", data, out, episodes=0, changes={"widht": 8})
    assert not out.exists()


@pytest.mark.parametrize(("pad_end", "unlearned"), [(True, None), (False, 3 + 3 + 3)])
def test_a_card_counts_the_states_that_no_chunk_begins_in(tmp_path, pad_end, unlearned, capsys):
    plain_data().save(tmp_path / "d.npz")
    words = ["pretrain", "mine", "--data", str(tmp_path / "d.npz"), "--out", str(tmp_path / "out"), "--episodes", "0"]
    assert main([*words, "--steps", "5", "--width", "16", "--pad-end", str(pad_end).lower()]) == 0
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["data"].get("states_that_begin_no_chunk") == unlearned
    said = capsys.readouterr().out
    assert ("60.0% of the states are an episode's last, and begin no chunk" in said) == (not pad_end)
    assert ("1 of 3 episodes are shorter than a chunk" in said) == (not pad_end)


def test_data_of_vectors_are_no_data_of_an_environment_that_observes_a_dict(refused):
    env = lpds.make_env(Spot, 1, 1, keep_dict=True)
    with refused("3 actions", "a dict", "[2]", "name another"):
        check_fits(plain_data(actions=3), env, "name another")
    with refused("the data are vectors", "picture, speed, unused", "flatten it"):
        check_fits(plain_data(), env, "name another")
    env.close()


def test_an_expert_that_fails_too_often_gives_what_it_has(monkeypatch, refused):
    """Six wanted, a success in ten attempts: the successes are kept, and the data are not the recipe's."""
    from lpds.pretrain.recipes import SCRIPTED, make_data
    from lpds.pretrain.scripted import collect

    closed, tried, every = [], [], [10]
    monkeypatch.setattr(collect, "resolve", lambda *given: lambda **options: SimpleNamespace(close=lambda: closed.append(1)))

    def attempt(env, script, rng, tremor):
        tried.append(1)
        episode = collect._Episode(0)
        episode.obs, episode.pictures = [np.zeros(2, np.float32)] * 2, [{}]
        episode.actions, episode.rewards = [np.zeros(1, np.float32)], [1.0]
        episode.succeeded = len(tried) % every[0] == 0
        return episode

    monkeypatch.setattr(collect, "_attempt", attempt)
    name = next(iter(SCRIPTED))
    data = make_data(name, None, episodes=6)
    assert len(tried) == collect.ATTEMPTS * 6
    assert len(data.episode_lengths) == len(tried) // 10 < 6
    assert data.recipe == ""
    assert closed == [1]
    every[0] = 10**6
    with refused("succeeded in none of 30 attempts", "--seed"):
        make_data(name, None, episodes=6)
    assert closed == [1, 1]
    every[0] = 1
    assert make_data(name, None, episodes=6).recipe == name
