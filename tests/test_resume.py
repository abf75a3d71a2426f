"""Two runs are equal to the bit, and so is a run that was stopped in any way and resumed."""

from __future__ import annotations

import errno
import json
import os
import random
import shlex
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from scripted import CPU, TINY, assert_same_run, comparable, toy_decoder

import lpds
from lpds.checkpoint import CheckpointStore
from lpds.collect import Collector
from lpds.config import RunSettings
from lpds.envs.four_mode import make_four_mode
from lpds.errors import DecoderFault, EnvironmentFault, LpdsError
from lpds.files import how_to_resume
from lpds.log import read_json_lines
from lpds.methods.dppo import DPPO
from lpds.methods.lpds import LPDS
from lpds.registry import METHOD_SETTINGS, METHODS, resolve
from lpds.replay import Replay
from lpds.types import LatentSpec


def steer(folder, **changes):
    return lpds.steer("toy", **{"decoder": toy_decoder(), "out": folder, **TINY, **changes})


def resume(folder, **changes):
    return lpds.resume(folder, **{"decoder": toy_decoder(), "quiet": True, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    steer(folder, env=make_four_mode)
    return folder


def test_two_runs_are_equal_to_the_bit(whole, tmp_path):
    steer(tmp_path / "again", env=make_four_mode)
    assert_same_run(whole, tmp_path / "again")
    steer(tmp_path / "other", env=make_four_mode, seed=1)
    assert comparable(whole)["weights"] != comparable(tmp_path / "other")["weights"]


def test_the_shipped_decoder_too(tmp_path):
    """The diffusion decoder, fresh distillation noise and several noises a state, interrupted by a change of process."""
    short = TINY | {"steps": 330, "distill_noises": 2, "kept_noises": 0, "updates_per_decision": 0.3}
    for name in ("a", "b"):
        lpds.steer("toy", out=tmp_path / name, **short)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_run_is_what_the_folder_says(whole):
    rows = read_json_lines(whole / "metrics.jsonl")
    steps = [row["step"] for row in rows]
    assert len(rows) >= 20
    assert steps == sorted(set(steps))  # one row a step, in order
    assert rows[0]["step"] == rows[0]["updates"] == 0
    assert steps[-1] >= TINY["steps"]
    episodes = read_json_lines(whole / "episodes.jsonl")
    assert all(row["seed"] % 2 == 0 for row in episodes)
    assert len({row["seed"] for row in episodes}) == len(episodes)
    evaluations = read_json_lines(whole / "eval.jsonl")
    assert [row["episode"] for row in evaluations if row["kind"] == "final"] == [0, 1, 2, 0, 1, 2]
    shift = lpds.load_policy(whole, toy_decoder()).shift(np.zeros((1, 2)))
    assert shift.any()


def test_sigkill_at_random_moments(tmp_path):
    """At random times, and around the renamings that make a save: before the first, inside one, after the last."""
    rng = random.Random(0)
    moments = [f"time:{rng.uniform(0.1, 0.95):.3f}"]
    # 1 config, 2 passport, then five files a save: weights and facts of the policy, replay segment, state, checkpoint
    moments += ["after:1", "before:7", f"before:{rng.randrange(8, 20)}", f"after:{rng.randrange(8, 20)}", "after:27"]
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("killed.py")), str(tmp_path), *moments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    for moment in moments:
        assert_same_run(tmp_path / "whole", tmp_path / moment.replace(":", "-"))


def test_resuming_a_finished_run_changes_nothing(whole, tmp_path):
    steer(tmp_path / "run", env=make_four_mode)
    again = resume(tmp_path / "run", env=make_four_mode)
    assert again.finished
    assert_same_run(whole, tmp_path / "run")


def test_a_finished_run_that_cannot_be_opened_again_is_still_finished(tmp_path, monkeypatch):
    """Its last evaluation was cut off before the episodes under way were replayed, which may fail or be broken off."""
    steer(tmp_path / "run", env=make_four_mode)
    names = ("summary.json", "eval.jsonl", "metrics.jsonl", "config.json")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    with monkeypatch.context() as patch:
        patch.setattr(Collector, "restore", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "run", env=make_four_mode, steps=TINY["steps"] + 200)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in names} == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a killed process closes no file
def test_a_budget_that_grew_is_never_taken_for_one_that_was_spent(tmp_path, monkeypatch):
    """Killed between the two files: with the larger budget written there must be no summary of the smaller one."""
    steer(tmp_path / "run", env=make_four_mode)

    def killed(path, value):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lpds.api.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "run", env=make_four_mode, steps=TINY["steps"] + 200)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert resume(tmp_path / "run", env=make_four_mode, steps=TINY["steps"] + 200).finished


def test_iterations_of_a_run_whose_budget_grew_are_as_long_as_they_were(tmp_path, monkeypatch):
    seen = []
    learn = DPPO.learn

    def counted(self, experience, updates):
        seen.append(int(self.fresh_rounds))
        yield from learn(self, experience, updates)

    monkeypatch.setattr(DPPO, "learn", counted)
    options = {"warmup_steps": 40, "eval_every": 0, "final_episodes": 2, "quiet": True, "min_iterations": 4, "epochs": 1}
    lpds.steer("toy", "dppo", out=tmp_path / "run", steps=640, **options)
    assert len(seen) > 1
    before, usual = len(seen), max(set(seen), key=seen.count)
    lpds.resume(tmp_path / "run", steps=1280, quiet=True)
    assert len(seen) > before + 1
    assert set(seen[before:]) == {usual}


def test_a_larger_budget_asks_for_no_larger_replay_than_its_iterations_had(tmp_path):
    """It was refused for the iterations that a run of the larger budget would have, which this one has not."""
    options = {"warmup_steps": 40, "eval_every": 0, "final_episodes": 2, "quiet": True, "min_iterations": 4, "epochs": 1}
    lpds.steer("toy", "dppo", out=tmp_path / "run", steps=640, replay_size=120, **options)
    with pytest.raises(LpdsError, match="does not hold"):
        lpds.steer("toy", "dppo", out=tmp_path / "anew", steps=6400, replay_size=120, **options)
    grown = lpds.resume(tmp_path / "run", steps=6400, quiet=True)
    assert grown.finished


def test_a_reader_that_is_gone_costs_the_words_and_not_the_run(tmp_path):
    """``lpds steer ... 2>&1 | head -1``: the run ended in silence, unsaved."""
    words = ["steer", "toy", "--steps", "600", "--warmup-steps", "200", "--warmup-fits", "2", "--eval-every", "0"]
    words += ["--final-episodes", "2", "--width", "8", "--depth", "1", "--out", str(tmp_path / "run")]
    process = subprocess.Popen([sys.executable, "-m", "lpds", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.readline()
    process.stderr.close()
    assert process.wait(120) == 0
    assert (tmp_path / "run" / "summary.json").is_file()


def test_a_command_that_is_printed_can_be_pasted(tmp_path):
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"decoder": {"reference": "toy"}, "env": "four-mode"}))
    assert shlex.split(how_to_resume(folder)) == ["lpds", "resume", str(folder)]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(LpdsError, match=r"exists and holds no run: choose another$"):
        lpds.steer("toy", out=tmp_path / "notes", quiet=True)


class Counter:
    """Makes environments that do something at the n-th primitive step of all of them together."""

    def __init__(self, number, act, evaluation=False):
        self.number, self.act, self.evaluation, self.steps = number, act, evaluation, 0

    def __call__(self):
        env, outer = make_four_mode(), self
        reset, step = env.reset, env.step

        def seeded(*, seed=None, options=None):
            env.odd = seed % 2 == 1
            return reset(seed=seed, options=options)

        def counted(action):
            if env.odd == outer.evaluation:  # evaluation seeds are odd
                outer.steps += 1
                if outer.steps == outer.number:
                    outer.act()
            return step(action)

        env.reset, env.step = seeded, counted
        return env


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "word"), [(90, signal.SIGINT), (380, signal.SIGINT), (380, signal.SIGTERM)])
def test_ctrl_c_ends_in_a_checkpoint_and_resume_goes_on(whole, tmp_path, number, word):
    """In the warm-up before any checkpoint, and while learning; and what a scheduler sends before it kills."""
    handler = signal.getsignal(word)
    run = steer(tmp_path / "run", env=Counter(number, lambda: signal.raise_signal(word)))
    assert not run.finished
    assert run.verdict().startswith("stopped; everything is saved: lpds.resume(")
    assert run.verdict().endswith(", decoder=decoder, env=env)")  # what only the caller has
    assert signal.getsignal(word) is handler
    step = json.loads((tmp_path / "run" / "checkpoint" / "checkpoint.json").read_text())["step"]
    assert number <= step < number + 16  # the end of that round, not the last due checkpoint
    assert lpds.load_policy(tmp_path / "run", toy_decoder()).shift(np.zeros((1, 2))).any() == (number > 200)
    assert resume(tmp_path / "run", env=make_four_mode).finished
    assert_same_but_for_names(whole, tmp_path / "run")


def test_a_fault_among_the_fits_of_the_warm_up_is_saved_as_it_was_before_them(whole, tmp_path, monkeypatch):
    """Critics that were fitted three times of five, taken for fitted ones, would be another run."""
    update, fits = LPDS.update, []

    def broken(self, batch, noise, *, critics_only=False):
        fits.append(critics_only)
        if len(fits) == 3:
            raise DecoderFault("decoder 'toy' failed")
        return update(self, batch, noise, critics_only=critics_only)

    monkeypatch.setattr(LPDS, "update", broken)
    with pytest.raises(DecoderFault, match="the run is saved at step 208"):
        steer(tmp_path / "run", env=make_four_mode)
    facts = json.loads((tmp_path / "run" / "checkpoint" / "checkpoint.json").read_text())
    assert (facts["behind"], facts["warm"]) == (True, False)
    monkeypatch.undo()
    assert resume(tmp_path / "run", env=make_four_mode).finished
    assert_same_but_for_names(whole, tmp_path / "run")


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("broken_off", [False, True])
def test_a_stop_among_the_fits_of_the_warm_up_is_obeyed_and_costs_nothing(whole, tmp_path, monkeypatch, broken_off):
    """They may take an hour with wide networks: neither is that waited for, nor is what was collected lost."""
    update, fits = LPDS.update, []

    def counted(self, batch, noise, *, critics_only=False):
        fits.append(critics_only)
        if len(fits) == 3:
            signal.raise_signal(signal.SIGINT)
            if broken_off:  # impatience: Ctrl-C again
                signal.raise_signal(signal.SIGINT)
        return update(self, batch, noise, critics_only=critics_only)

    monkeypatch.setattr(LPDS, "update", counted)
    if broken_off:
        with pytest.raises(KeyboardInterrupt):
            steer(tmp_path / "run", env=make_four_mode)
    else:
        assert not steer(tmp_path / "run", env=make_four_mode).finished
    assert fits == [True] * 3
    facts = json.loads((tmp_path / "run" / "checkpoint" / "checkpoint.json").read_text())
    assert (facts["behind"], facts["warm"], facts["step"] >= TINY["warmup_steps"]) == (True, False, True)
    monkeypatch.undo()
    assert resume(tmp_path / "run", env=make_four_mode).finished
    assert_same_but_for_names(whole, tmp_path / "run")


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("method", METHODS)
def test_whatever_learns_goes_on_where_it_was(tmp_path, method):
    """Every method, stopped while it learns: a search that is told its budget at the start, iterations that are half-full."""
    known = {field.name for kind in (RunSettings, resolve("method", METHOD_SETTINGS, method)) for field in fields(kind)}
    short = {key: value for key, value in TINY.items() if key in known or key == "quiet"}
    plain = {"method": method, **short, "steps": 1_500}
    lpds.steer("toy", out=tmp_path / "whole", env=make_four_mode, **plain)
    run = lpds.steer("toy", out=tmp_path / "run", env=Counter(420, lambda: signal.raise_signal(signal.SIGINT)), **plain)
    assert not run.finished
    assert lpds.resume(tmp_path / "run", env=make_four_mode, quiet=True).finished
    assert_same_but_for_names(tmp_path / "whole", tmp_path / "run")


def fail():
    raise RuntimeError("the arm fell off")


@pytest.mark.parametrize(("number", "evaluation"), [(60, False), (431, False), (40, True), (400, True)])
def test_a_fault_saves_says_where_and_resume_reaches_the_same_place(whole, tmp_path, number, evaluation):
    with pytest.raises(EnvironmentFault) as caught:
        steer(tmp_path / "run", env=Counter(number, fail, evaluation))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("RuntimeError: the arm fell off", "sub-environment ", "episode seed ", "step "):
        assert part in message
    assert "the run is saved at step" in message
    assert message.endswith(f"lpds.resume({str(tmp_path / 'run')!r}, decoder=decoder, env=env)")
    assert resume(tmp_path / "run", env=make_four_mode).finished
    assert_same_but_for_names(whole, tmp_path / "run")


def test_a_decoder_that_fails_when_it_is_hashed_again_at_the_end_leaves_a_saved_run_that_says_so(tmp_path, monkeypatch):
    from lpds.errors import DecoderFault

    def gone(decoder):
        raise DecoderFault("the server is gone")

    monkeypatch.setattr("lpds.session._check_untouched", gone)
    with pytest.raises(DecoderFault, match=r"gone; the run is saved at step \d+, only its last evaluation is missing: lpds"):
        steer(tmp_path / "run")
    monkeypatch.undo()
    assert resume(tmp_path / "run").finished


def test_a_fault_at_the_first_reset_leaves_nothing_and_costs_no_run_that_was_to_be_overwritten(whole, tmp_path):
    def broken():
        env = make_four_mode()
        env.reset = lambda **kwargs: fail()
        return env

    with pytest.raises(EnvironmentFault, match="the arm fell off"):
        steer(tmp_path / "run", env=broken)
    assert not (tmp_path / "run").exists()
    assert steer(tmp_path / "run", env=make_four_mode).finished
    assert_same_but_for_names(whole, tmp_path / "run")
    for refusal in ({"env": broken}, {"env": make_four_mode, "replay_size": 10**12, "steps": 10**12}):
        with pytest.raises(LpdsError):
            steer(tmp_path / "run", overwrite=True, **refusal)
        assert_same_but_for_names(whole, tmp_path / "run")


def assert_same_but_for_names(a, b):
    """As two runs whose environment factories have different names."""
    first, second = comparable(a), comparable(b)
    for run in (first, second):
        run["config"].pop("env_name")
        run["passport"].pop("env")
        run["summary"].setdefault("warnings", [])
        for part in ("summary", "facts"):
            run[part]["warnings"] = [line for line in run[part]["warnings"] if "and goes on in" not in line]
    for part, value in first.items():
        assert value == second[part], part


# -- the disk ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path, ctrl_c):
    """A run stopped in the middle, with a checkpoint."""
    steer(tmp_path / "run", env=Counter(300, lambda: signal.raise_signal(signal.SIGINT)))
    return tmp_path / "run"


def full_disk(monkeypatch, name, after):
    """The calls of os.NAME beyond the first ``after`` find the disk full."""
    real, seen = getattr(os, name), [0]

    def full(*args, **kwargs):
        seen[0] += 1
        if seen[0] > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, full)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_leaves_the_previous_checkpoint_whole_at_every_file_of_a_save(tmp_path, monkeypatch, name):
    spec = LatentSpec((2,), (1, 2), (1, 2))
    replay = Replay(spec, 8, 1, 2, CPU)
    store = CheckpointStore(tmp_path)

    def insert(value):
        replay.insert({key: torch.full((2, *rows.shape[1:]), value) for key, rows in replay._rows.items()})

    insert(1.0)
    store.save({"x": torch.ones(3)}, {"step": 1, "updates": 1}, replay)
    insert(2.0)
    for after in range(3):  # replay segment, state, checkpoint.json
        with monkeypatch.context() as patch:
            full_disk(patch, name, after)
            with pytest.raises(LpdsError, match=r"not saved \(.*No space left on device.*\); the previous one is untouched"):
                # the same step on purpose: a save never writes over a file of the checkpoint before it
                store.save({"x": torch.zeros(3)}, {"step": 1, "updates": 1}, replay)
        assert not list(tmp_path.glob(".*.tmp"))
        fresh, ring = CheckpointStore(tmp_path), Replay(spec, 8, 1, 2, CPU)
        tensors, facts = fresh.load()
        fresh.load_replay(facts, ring)
        assert torch.equal(tensors["x"], torch.ones(3))
        assert ring.everything("reward").tolist() == [1.0, 1.0]
    store.save({"x": torch.zeros(3)}, {"step": 1, "updates": 1}, replay)
    tensors, facts = CheckpointStore(tmp_path).load()
    assert torch.equal(tensors["x"], torch.zeros(3))
    assert len(list(tmp_path.iterdir())) == 4  # two segments, the state, checkpoint.json: failed saves leave nothing


def test_a_full_disk_in_a_run_is_one_line_and_loses_nothing(stopped, whole, monkeypatch):
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            full_disk(patch, name, 2)
            with pytest.raises(LpdsError, match=r"not saved \(.*No space left on device\); the previous one is untouched"):
                resume(stopped, env=make_four_mode)
    assert resume(stopped, env=make_four_mode).finished
    assert_same_but_for_names(whole, stopped)


def test_a_log_that_cannot_grow_is_one_line(stopped, whole):
    """A limit of the file size, as a full quota has it; in a process of its own, since the limit cannot be lifted."""
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_resume import resume, make_four_mode, LpdsError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = __import__("os").path.getsize({str(stopped / "metrics.jsonl")!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))
try:
    resume({str(stopped)!r}, env=make_four_mode)
except LpdsError as error:
    assert "metrics.jsonl cannot be written" in str(error), error
    assert chr(10) not in str(error)
else:
    raise AssertionError("nothing was refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert resume(stopped, env=make_four_mode).finished
    assert_same_but_for_names(whole, stopped)


def test_the_cost_of_a_checkpoint_does_not_grow_with_the_run(whole):
    facts = json.loads((whole / "checkpoint" / "checkpoint.json").read_text())
    sizes = [(whole / "checkpoint" / segment["file"]).stat().st_size for segment in facts["replay"]]
    assert len(sizes) >= 4
    assert max(sizes[1:]) < 1.5 * sizes[0]  # equal budgets of steps, however late
    firsts = [segment["first"] for segment in facts["replay"]]
    assert firsts == sorted(set(firsts))
    wanted = {"checkpoint.json", facts["state"]["file"], *(segment["file"] for segment in facts["replay"])}
    assert {path.name for path in (whole / "checkpoint").iterdir()} == wanted


def test_segments_whose_rows_are_all_overwritten_are_dropped(tmp_path):
    store = CheckpointStore(tmp_path)
    replay = Replay(LatentSpec((1,), (1, 1), (1, 1)), 10, 1, 2, CPU)
    for number in range(12):
        replay.insert({key: torch.full((2, *rows.shape[1:]), float(number)) for key, rows in replay._rows.items()})
        store.save({}, {"step": number, "updates": 0}, replay)
    assert len(list(tmp_path.glob("replay-*"))) == 5
    other = CheckpointStore(tmp_path)
    ring = Replay(LatentSpec((1,), (1, 1), (1, 1)), 10, 1, 2, CPU)
    other.load_replay(other.load()[1], ring)
    assert ring.inserted == 24
    assert torch.equal(ring.everything("reward"), replay.everything("reward"))


@pytest.mark.usefixtures("ctrl_c")
def test_a_small_ring_that_wraps_resumes_to_the_bit(tmp_path):
    for name, act in (("a", lambda: None), ("b", lambda: signal.raise_signal(signal.SIGINT))):
        steer(tmp_path / name, env=Counter(450, act), replay_size=40)
    resume(tmp_path / "b", env=make_four_mode)
    a, b = (comparable(tmp_path / name) for name in ("a", "b"))
    assert a["weights"] == b["weights"]
    assert a["metrics"] == b["metrics"]


# -- broken files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "damage", "words"),
    [
        ("checkpoint.json", lambda b: b[: len(b) // 2], r"checkpoint\.json cannot be read"),
        ("checkpoint.json", lambda b: b"", r"checkpoint\.json cannot be read"),
        ("checkpoint.json", lambda b: b"[]", r"checkpoint\.json is not that of a checkpoint"),
        (
            "checkpoint.json",
            lambda b: b.replace(b'"format_version": 1', b'"format_version": 99'),
            "is of format 99; this version of lpds reads format 1",
        ),
        ("state-*", lambda b: b[:-100], r"state-.* is broken: its content is not what was saved"),
        ("state-*", lambda b: b[:500] + bytes([b[500] ^ 1]) + b[501:], r"state-.* is broken"),
        ("replay-*", lambda b: b[:-1], r"replay-.* is broken"),
        ("replay-*", None, r"replay-.* cannot be read"),
    ],
)
def test_a_broken_checkpoint_is_one_clear_line(whole, tmp_path, pattern, damage, words):
    import shutil

    shutil.copytree(whole, tmp_path / "run")
    path = next(iter(sorted((tmp_path / "run" / "checkpoint").glob(pattern))))
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    logs = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(LpdsError, match=words) as caught:
        resume(tmp_path / "run", env=make_four_mode)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == logs  # nothing was cut back


def test_what_cannot_be_resumed(whole, tmp_path):
    with pytest.raises(LpdsError, match=r"no run in .*nowhere"):
        resume(tmp_path / "nowhere")
    with pytest.raises(LpdsError, match=r"used the environment factory 'make_four_mode': pass it as env="):
        resume(whole)
    with pytest.raises(LpdsError, match=r"belongs to the wrapped decoder 'linear': pass it as decoder="):
        lpds.resume(whole, env=make_four_mode)
    with pytest.raises(LpdsError, match=r"was learned on a decoder with fingerprint [0-9a-f]{12}, but 'other' has"):
        resume(whole, env=make_four_mode, decoder=toy_decoder("other"))
    with pytest.raises(LpdsError, match=r"takes observations \(2,\), but Pendulum-v1 gives \(3,\)"):
        resume(whole, env="Pendulum-v1")


def test_a_folder_in_use_is_neither_resumed_nor_overwritten(tmp_path, refused):
    lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "run", **(TINY | {"steps": 250}))
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    code = "import sys, time; from pathlib import Path; from lpds.files import locked\n"
    code += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    words = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        for act in (
            lambda: lpds.resume(tmp_path / "run", steps=400, decoder=toy_decoder(), quiet=True),
            lambda: lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "run", overwrite=True, **TINY),
        ):
            with refused("is in use by another process"):
                act()
        assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before
        other.kill()
    assert lpds.resume(tmp_path / "run", steps=400, decoder=toy_decoder(), quiet=True).finished


def test_a_resume_that_is_refused_changes_nothing(tmp_path, refused):
    """Whatever stands against a larger budget is found before a file is touched."""
    run = tmp_path / "run"
    steer(run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix == ".json"}
    for changes, words in (
        ({"steps": TINY["steps"] + 0.5}, "steps must be of type int"),
        ({"steps": TINY["steps"] - 1}, "it can grow, not shrink"),
        ({"steps": TINY["steps"] + 100, "env": "Pendulum-v1"}, "ran in 'four-mode', not in 'Pendulum-v1'"),
        ({"steps": TINY["steps"] + 100, "env": lambda: gymnasium.make("Pendulum-v1")}, "takes observations"),
    ):
        with refused(words):
            resume(run, **changes)
        assert {path.name: path.read_bytes() for path in run.iterdir() if path.suffix == ".json"} == before
    (run / "config.json").write_text('["x"]')
    with refused("config.json is not that of a run"):
        resume(run)


@pytest.mark.usefixtures("ctrl_c")
def test_a_run_that_goes_on_in_another_environment_says_so(tmp_path, capsys):
    """A factory has no name that one could be sure of, so it is not refused."""
    stop = Counter(380, lambda: signal.raise_signal(signal.SIGINT))
    steer(tmp_path / "run", env=stop)
    resume(tmp_path / "run", env=stop, quiet=False)
    assert "WARNING" not in capsys.readouterr().err
    resume(tmp_path / "run", env=make_four_mode, quiet=False, steps=TINY["steps"] + 100)
    assert "WARNING: the run was in '" in capsys.readouterr().err


def test_a_log_that_lost_its_end_keeps_its_whole_rows_and_says_so(tmp_path, capsys):
    steer(tmp_path / "run")
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    content = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    (tmp_path / "run" / "metrics.jsonl").write_bytes(content[:-20])
    (tmp_path / "run" / "eval.jsonl").unlink()
    capsys.readouterr()
    resume(tmp_path / "run", steps=TINY["steps"] + 200, quiet=False)
    said = capsys.readouterr().err
    assert "WARNING: metrics.jsonl lacks" in said
    assert "WARNING: eval.jsonl lacks" in said
    now = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in now[: len(rows) - 1]] == [row["step"] for row in rows[:-1]]
    assert now[-1]["step"] >= TINY["steps"] + 200
    assert b"\0" not in (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert read_json_lines(tmp_path / "run" / "eval.jsonl")


def test_a_checkpoint_that_lacks_something_is_one_line(tmp_path, refused):
    steer(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint" / "checkpoint.json"
    facts = json.loads(path.read_text())
    for lacking, words in (
        ("state", "checkpoint.json is not that of a checkpoint: state missing"),
        ("owed", "KeyError: 'owed'"),
    ):
        path.write_text(json.dumps({key: value for key, value in facts.items() if key != lacking}))
        with refused(words):
            resume(tmp_path / "run", steps=TINY["steps"] + 100)
        assert (tmp_path / "run" / "summary.json").is_file()
        assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["steps"] == TINY["steps"]
