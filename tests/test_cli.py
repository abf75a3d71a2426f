"""The command line: its words, its one-line refusals, its speed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lpds.cli import main
from lpds.commands.runs import _finish
from lpds.evaluation import EvalReport
from lpds.registry import METHODS, TASKS
from lpds.session import Run
from lpds.zoo import FOLDER


def test_help_answers_in_under_a_second_and_imports_no_torch():
    start = time.perf_counter()
    code = "import sys; from lpds.cli import main\ntry: main(['steer', 'hopper', '--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'gymnasium' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    assert "--delta" in done.stdout
    assert "default: 0.5" in done.stdout  # the preset's own value, not the class's
    assert seconds < 5.0  # a loaded machine; a free one takes a quarter of a second


@pytest.mark.parametrize("command", ["eval", "resume", "video"])
def test_a_folder_of_runs_is_told_for_what_it_is(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        (tmp_path / "grid" / "lpds" / f"seed{seed}").mkdir(parents=True)
        (tmp_path / "grid" / "lpds" / f"seed{seed}" / "config.json").write_text("{}")
    assert main([command, "grid"]) == 2
    place = Path("grid") / "lpds" / "seed0"
    assert capsys.readouterr().err == f"lpds: grid holds 2 runs: name one, such as {place}\n"


def test_a_shipped_name_is_the_decoders_though_a_folder_of_runs_is_called_so(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy" / "lpds" / "seed0").mkdir(parents=True)
    (tmp_path / "toy" / "lpds" / "seed0" / "config.json").write_text("{}")
    assert main(["eval", "toy", "--episodes", "1"]) == 0
    assert "return" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "what"), [("resume", "run"), ("video", "policy"), ("report", "run"), ("compare", "run")])
def test_a_file_is_no_run(command, what, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.file").write_text("")
    assert main([command, "a.file"]) == 2
    assert capsys.readouterr().err == f"lpds: no {what} in a.file (it is a file)\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["steer", "hoper"], "did you mean 'hopper'"),
        (["steer", "hopper", "--method", "lpsd"], "did you mean 'lpds'"),
        (["steer", "hopper", "--delta", "-1"], "delta must be a positive number"),
        (["steer", "hopper", "--delta", "nan"], "delta must be a positive number"),
        (["steer", "hopper", "--delta-unit", "nat"], "did you mean 'nats'"),
        (["steer"], "or both decoder= and env="),
        (["check", "hoppr"], "did you mean 'hopper'"),
        (["eval", "nowhere"], "unknown run or decoder 'nowhere'"),
        (["resume", "nowhere"], "no run in nowhere"),
        (["demos", "hopper", "--out", "x.npz"], "pass --experts FOLDER"),
        (["pretrain", "mine", "--data", "nowhere.npz", "--out", "x"], "dataset nowhere.npz does not exist"),
        (["report", "nowhere"], "nowhere"),
        (["video", "nowhere"], "no policy in nowhere (that folder does not exist)"),
        (["eval", "runs/nowhere"], "unknown run or decoder 'runs/nowhere': that folder does not exist"),
        (["eval", "p.py"], "unknown decoder 'p.py'; did you mean 'python:p.py:NAME'?"),
        (["eval", "."], "unknown decoder '.': that folder holds none (decoder.safetensors is missing)"),
        (["steer", "hopper", "--detla", "1"], "unknown option --detla; did you mean --delta"),
        (
            ["steer", "hopper", "--eval-seed", str(2**32 - 1)],
            "eval_seed + 10000, the learning curve's, must be in 0 ..",
        ),
        (["list", "tasks"], "too many arguments: tasks"),
        (["demos", "toy", "--out", "/dev/null/x.npz"], "/dev/null/x.npz cannot be written: "),
        (["pretrain", "toy", "--data", "x.npz", "--out", "/dev/null/x"], "/dev/null/x cannot be written: "),
        (["report", "nowhere", "--out", "/dev/null/x.html"], "/dev/null/x.html cannot be written: "),
        (["steer", "toy", "--out", "/dev/null/x"], "/dev/null/x cannot be written: "),
        (["sterr", "toy"], "unknown command 'sterr'; did you mean 'steer'"),
        (["steer", "toy", "--steps"], "argument --steps: expected one argument (lpds steer --help)"),
        (["steer", "toy", "--method"], "argument --method: expected one argument (lpds steer --help)"),
        (["steer", "toy", "--kept", "2"], "unknown option --kept; did you mean --kept-noises or --kept-next"),
        (["serve-decoder", "toy", "--port", "abc"], "argument --port: invalid int value: 'abc'"),
        (["eval", "toy", "--scale", "nan"], "scale must be"),
        (["eval", "toy", "--decoder", "hopper"], "toy is a decoder: --decoder says where a run's is"),
        (["bench", "toy", "--methods", "lpds+bad:delta=-1"], "delta must be a positive number"),
        (["bench", "toy", "--methods", "lpds", "--steps", "0"], "steps must be"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("lpds: ")
    assert error.count("\n") == 1
    assert says in error
    assert not any(tmp_path.iterdir())  # nothing was left behind


def test_a_run_killed_before_its_first_checkpoint_has_no_policy_and_says_so(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert main(["eval", str(tmp_path)]) == 2
    assert f"the run in {tmp_path} has no policy yet" in capsys.readouterr().err


MODULE = """
import gymnasium
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
gymnasium.register("Mine-v0", HopperEnv, max_episode_steps=3)
"""


def test_the_script_finds_an_environment_in_the_working_folder(tmp_path):
    (tmp_path / "mine_env.py").write_text(MODULE)
    words = ["eval", "hopper", "--env", "mine_env:Mine-v0", "--episodes", "2"]
    code = f"import sys; sys.path[0] = '/nowhere'; sys.argv[1:] = {words!r}; from lpds.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "fewer than 6 episodes" in done.stdout


def test_list_names_every_task_and_method(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*TASKS, *METHODS])


def test_list_says_what_a_task_needs_that_is_not_installed(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gymnasium_robotics" else find(name))
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    needy = [line.split()[0] for line in lines if line.endswith("needs pip install 'lpds[adroit]'")]
    assert needy == ["adroit-pen", "adroit-hammer", "adroit-door", "adroit-relocate"]


def test_steer_eval_report_and_resume_with_a_larger_budget(capsys, tmp_path):
    run = tmp_path / "run"
    small = ["--warmup-steps", "400", "--warmup-fits", "5", "--eval-every", "0", "--final-episodes", "4", "--width", "16"]
    assert main(["steer", "toy", "--steps", "800", "--out", str(run), "--quiet", *small]) == 0
    printed = capsys.readouterr().out
    assert "frozen" in printed
    assert "paired difference" in printed
    hint, verdict = printed.splitlines()[-2:]
    assert hint.endswith(f"lpds eval {run} --noise-scale 0.3")
    assert "paired difference" in verdict
    assert (run / "report.html").is_file()
    for other in (["--preset", "quiet"], ["--method", "base"]):  # less noise already, and no shift that could do without
        options = [word for word in small if other[0] == "--preset" or word not in ("--width", "16")]
        assert main(["steer", "toy", "--steps", "800", "--out", str(tmp_path / other[1]), "--quiet", *other, *options]) == 0
        assert "--noise-scale" not in capsys.readouterr().out
    assert main(["steer", "toy", "--steps", "800", "--out", str(run), "--quiet"]) == 2
    assert "exists" in capsys.readouterr().err

    assert main(["eval", str(run), "--episodes", "3", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["scale"] for row in rows] == [0.0] * 3 + [1.0] * 3
    assert [row["episode"] for row in rows] == [0, 1, 2] * 2
    assert main(["eval", str(run), "--episodes", "1", "--json", "--noise-scale", "0.5"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["scale"], row["noise_scale"]) for row in rows] == [(0.0, 1.0), (0.0, 0.5), (1.0, 0.5)]

    assert main(["eval", str(run), "--ddim-steps", "3"]) == 2
    assert "is a run, which knows its decoder: --ddim-steps" in capsys.readouterr().err

    assert main(["resume", str(run), "--steps", "1200", "--quiet"]) == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] >= 1200
    finals = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert {row["step"] >= 1200 for row in finals if row["kind"] == "final"} == {True}  # the old end was cut away
    assert main(["resume", str(run), "--steps", "900", "--quiet"]) == 2
    assert "not shrink" in capsys.readouterr().err


def test_demos_and_pretrain_make_a_decoder_that_the_card_describes(capsys, tmp_path):
    import lpds

    data, out = tmp_path / "toy.npz", tmp_path / "mine"
    assert main(["demos", "toy", "--out", str(data)]) == 0
    words = ["pretrain", "toy", "--data", str(data), "--out", str(out), "--steps", "50", "--width", "16"]
    assert main([*words, "--episodes", "4"]) == 0
    card = json.loads((out / "card.json").read_text())
    decoder = lpds.load_decoder(str(out))
    assert card["fingerprint"] == decoder.fingerprint
    report = lpds.evaluate(decoder, "toy", episodes=4, seed=card["evaluation_seed"])
    np.testing.assert_allclose(card["return"], report.interval("return"))
    capsys.readouterr()


def test_help_shows_defaults_where_there_are_any(capsys):
    for words in (["compare", "--help"], ["bench", "--help"], ["steer", "hopper", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        printed = capsys.readouterr().out
        assert "default: None" not in printed
        assert "default" in printed


def test_decoder_options_reach_the_tasks_own_decoder(capsys, tmp_path):
    run = tmp_path / "run"
    small = [
        "--steps",
        "120",
        "--warmup-steps",
        "60",
        "--warmup-fits",
        "1",
        "--final-episodes",
        "1",
        "--eval-every",
        "0",
        "--quiet",
    ]
    assert main(["steer", "toy", "--ddim-steps", "3", "--out", str(run), *small]) == 0
    assert json.loads((run / "config.json").read_text())["decoder"]["options"] == {"ddim_steps": 3}
    assert main(["steer", "toy", "--normalization", "x.npz", "--out", str(tmp_path / "no"), *small]) == 2
    assert "normalization" in capsys.readouterr().err


def test_a_seed_that_is_none_is_one_line(capsys):
    assert main(["eval", "toy", "--seed", "-1", "--episodes", "1"]) == 2
    assert "seed must be in 0 .. 2^32 - 1, not -1" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_gets_no_traceback():
    command = f"{sys.executable} -m lpds list | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stdout == "tasks:\n"
    assert done.stderr == ""


def test_a_frozen_policy_has_no_delta_to_scale(capsys):
    assert main(["eval", "toy", "--scale", "0.5", "--episodes", "2"]) == 2
    assert "no Delta" in capsys.readouterr().err


@pytest.mark.parametrize(("gain", "hints"), [(5.0, True), (-5.0, False)])
def test_a_worse_policy_ends_with_its_verdict_and_gets_no_advice(gain, hints, capsys, tmp_path):
    zeros, numbers = np.zeros(12), np.arange(12) / 100
    nothing = {"successes": zeros * np.nan, "successes_at_end": zeros * np.nan, "lengths": zeros.astype(np.int64)}
    frozen, steered = (
        EvalReport(returns, **nothing, seed=0, scale=scale, final_obs=np.zeros((12, 1), np.float32))
        for returns, scale in ((zeros, 0.0), (zeros + gain + numbers, 1.0))
    )
    run = Run(tmp_path, True, frozen, steered)
    known = {"task": "toy", "method": "lpds", "env": None, "env_name": "toy", "decoder": {}, "run": {}}
    noise = {"noise_scale": 1.0, "eval_noise_scale": 1.0}
    (tmp_path / "config.json").write_text(json.dumps({**known, "settings": noise}))
    assert _finish(run) == 0
    printed = capsys.readouterr().out
    assert ("--noise-scale" in printed) == hints
    assert printed.splitlines()[-1] == run.verdict()
    assert ("WORSE" in run.verdict()) != hints


def test_a_decoder_that_has_moved_is_named(capsys, tmp_path, monkeypatch):
    """A relative place holds from the run's folder, wherever one stands; --decoder says where it went."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    shutil.copytree(FOLDER / "toy", tmp_path / "kept" / "mine")
    small = ["--warmup-steps", "400", "--warmup-fits", "5", "--eval-every", "0", "--final-episodes", "6", "--width", "16"]
    run = tmp_path / "kept" / "run"
    where = ["--decoder", "folder:kept/mine", "--env", "four-mode", "--ddim-steps", "4"]
    assert main(["steer", "toy", *where, "--steps", "800", "--out", str(run), "--quiet", *small]) == 0
    for path in (run / "config.json", run / "policy" / "policy.json"):  # as committed evidence has it
        facts = json.loads(path.read_text())
        facts["decoder"]["reference"] = "folder:kept/mine"
        path.write_text(json.dumps(facts))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["eval", str(run), "--episodes", "2", "--json"]) == 0
    (tmp_path / "kept" / "mine").rename(tmp_path / "elsewhere" / "moved")
    capsys.readouterr()
    assert main(["eval", str(run), "--episodes", "2"]) == 2
    assert "kept/mine" in capsys.readouterr().err
    for spelt in ("folder:moved", "moved"):  # with the run's own options, however its place is written
        assert main(["eval", str(run), "--episodes", "2", "--decoder", spelt, "--json"]) == 0
    assert main(["resume", str(run), "--steps", "1200", "--decoder", "folder:moved", "--quiet"]) == 0
    assert main(["resume", str(run), "--steps", "1300", "--quiet"]) == 0  # the run knows where it is now
    assert main(["eval", str(run), "--episodes", "2", "--decoder", "hopper"]) == 2
    assert "was learned on a decoder with fingerprint" in capsys.readouterr().err
