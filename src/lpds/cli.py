"""The command line: thin, and slow imports only where a command needs them."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from lpds.commands import grids, policies, runs
from lpds.commands.terminal import guarded
from lpds.decoder_flags import CHOSEN_AGAIN, add_decoder_options
from lpds.errors import LpdsError, unknown_name
from lpds.registry import DECODER_FORMS

Handler = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 1 where the work is done and its answer is no (a blind decoder under ``lpds check``, a grid of which runs
        failed, demonstrations of which some lack), 2 for an input that does not fit, 130 after Ctrl-C, 141 where nobody reads
        on.
    """
    # Small products on many threads are several times slower than on one; a caller's own choice stands.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    words = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
    with suppress(FileNotFoundError):  # a working folder that is gone
        if os.getcwd() not in sys.path:  # as under `python -m lpds`: --env MODULE:ID and python: find what lies here
            sys.path.append(os.getcwd())
    return guarded("lpds", lambda: _run(words))


def _run(words: list[str]) -> int:
    parser = _parser(words)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        raise _unknown(unknown, arguments.options, getattr(arguments, "method", None))
    handler: Handler = arguments.handler
    return handler(arguments)


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    from lpds import __version__

    parser = _Parser(prog="lpds", description="Steer a frozen diffusion or flow policy by its noise.")
    parser.add_argument("--version", action="version", version=f"lpds {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    _command(commands, "list", "tasks, methods, decoders and what they are", policies.do_list)
    steer = _command(commands, "steer", "improve a frozen policy by online RL", runs.do_steer)
    _steer_options(steer, words)
    _run_commands(commands)
    _policy_commands(commands)
    _data_commands(commands)
    _page_commands(commands)
    _grid_commands(commands)
    _serve_command(commands)
    if words and not words[0].startswith("-") and words[0] not in commands.choices:
        raise unknown_name("command", words[0], list(commands.choices))
    return parser


def _run_commands(commands: Any) -> None:
    """Going on with a run, evaluating it."""
    resume = _command(commands, "resume", "go on with a run, to the bit", runs.do_resume)
    resume.add_argument("run", type=Path, help="a run folder")
    resume.add_argument("--steps", type=int, help="a larger budget, to go on with a finished run")
    resume.add_argument("--decoder", help="where the run's decoder is now, if it has moved (the fingerprint must be the same)")
    resume.add_argument("--env", help="a Gymnasium id, for a run whose environment a function made")
    resume.add_argument("--device", choices=["auto", "cpu", "cuda"], help="to learn on from now on (default: the run's own)")
    add_decoder_options(resume, CHOSEN_AGAIN)
    resume.add_argument("--tensorboard", action="store_true", help="write TensorBoard scalars into the run folder, too")
    resume.add_argument("--quiet", action="store_true", help="no progress, only warnings and what came out")

    evaluate = _command(commands, "eval", "evaluate a run, frozen and steered on the same episodes and noise", runs.do_eval)
    evaluate.add_argument("run", help="a run folder, or a decoder reference")
    evaluate.add_argument("--decoder", help="of a run: where its decoder is now, if it has moved")
    evaluate.add_argument("--task", help="whose environment (default: the run's own)")
    evaluate.add_argument("--env", help="a Gymnasium id in place of the task's")
    evaluate.add_argument("--episodes", type=int, default=100, help="of each evaluation")
    evaluate.add_argument("--seed", type=int, default=0, help="of the episodes and of the noise")
    evaluate.add_argument("--envs", type=int, default=20, help="environments open at once, at most 20; fewer take less memory")
    evaluate.add_argument("--scale", type=float, default=1.0, help="s of w = eps + s Delta(s)")
    evaluate.add_argument(
        "--noise-scale",
        type=_factors,
        default=[1.0],
        metavar="K,K",
        help="factor of eps, 0 to 1, or several with commas: how much of the noise does the policy want?",
    )
    evaluate.add_argument(
        "--noises", type=int, default=1, help="play the same episodes under so many noises: what does the noise decide?"
    )
    evaluate.add_argument("--json", action="store_true", help="one JSON line an episode")
    add_decoder_options(evaluate)


def _policy_commands(commands: Any) -> None:
    """Looking at a frozen policy before it is steered."""
    look = _command(commands, "look", "what the frozen policy does with less noise and more sampler steps", policies.do_look)
    look.add_argument("decoder", help=f"zoo name, {', '.join(DECODER_FORMS)}")
    look.add_argument("--task", help="whose environment (default: that of the task of the same name)")
    look.add_argument("--env", help="a Gymnasium id in place of the task's")
    look.add_argument("--episodes", type=int, default=50, help="of each way")
    look.add_argument("--seed", type=int, default=0, help="of the episodes and of the noise")
    look.add_argument("--envs", type=int, default=20, help="environments open at once, at most 20; fewer take less memory")
    look.add_argument("--noise-scale", type=_factors, metavar="K,K", help="factors of eps to try (default: 0.6,0.3,0)")
    look.add_argument("--json", action="store_true", help="one JSON line an episode")
    add_decoder_options(look)

    check = _command(commands, "check", "the decoder doctor: can this policy be steered?", policies.do_check)
    check.add_argument("decoder", help=f"zoo name, {', '.join(DECODER_FORMS)}")
    check.add_argument("--env", help="a Gymnasium id (default: that of the task of the same name)")
    check.add_argument(
        "--samples", type=int, help="observations to probe with, 16 or more (default: 256, or 16 for a slow decoder)"
    )
    add_decoder_options(check)


def _data_commands(commands: Any) -> None:
    """Making a frozen policy."""
    demos = _command(commands, "demos", "roll out the data of a zoo recipe", policies.do_demos)
    demos.add_argument("name", help="a task with an expert: an unknown one is answered with all of them")
    demos.add_argument("--experts", type=Path, help="folder of expert actors (.npz); scripted experts need none")
    demos.add_argument("--episodes", type=int, help="of a scripted expert: successes to keep (default: the recipe's)")
    demos.add_argument("--seed", type=int, help="of a scripted expert (default: the recipe's)")
    demos.add_argument(
        "--cameras", type=int, metavar="PIXELS", help="of LIBERO's tasks: keep both cameras' pictures too, so large"
    )
    demos.add_argument(
        "--take-over", metavar="POLICY", help="of a scripted expert: go on from where this policy gets to (corrections)"
    )
    demos.add_argument("--out", type=Path, required=True, help="FILE.npz")
    demos.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    demos.add_argument(
        "--resume", action="store_true", help="of a scripted expert: go on with FILE where it is there, and was cut short"
    )

    pretrain = _command(commands, "pretrain", "train a decoder by behaviour cloning", policies.do_pretrain)
    pretrain.add_argument("name", help="a zoo recipe, or a name of your own")
    pretrain.add_argument(
        "--data",
        required=True,
        nargs="+",
        help="one or several: own npz, DPPO npz, RoboMimic .hdf5, LeRobotDataset folder, or minari:DATASET-ID",
    )
    pretrain.add_argument(
        "--sources", type=int, nargs="+", help="learn from episodes of these alone (episode_source; a scripted expert's modes)"
    )
    pretrain.add_argument("--normalization", type=Path, help="npz of ranges, for DPPO data (stored scaled)")
    pretrain.add_argument("--out", type=Path, required=True, help="folder of the decoder and its card")
    pretrain.add_argument("--overwrite", action="store_true", help="replace a decoder that is there; its runs open no more")
    pretrain.add_argument("--resume", action="store_true", help="go on with a training that was stopped or killed in --out")
    pretrain.add_argument("--task", help="task to evaluate on for the card (default: the recipe's)")
    pretrain.add_argument("--env", help="a Gymnasium id to evaluate on for the card")
    pretrain.add_argument("--episodes", type=int, default=100, help="episodes behind the card's return; 0 for none")
    pretrain.add_argument("--instruction", help="what the robot is told (--kind pi0)")
    _clone_options(pretrain)


def _page_commands(commands: Any) -> None:
    """What is looked at of runs that are finished."""
    report = _command(commands, "report", "one HTML file with figures and tables from run folders", runs.do_report)
    report.add_argument("runs", nargs="+", type=Path, help="run folders, or those of a method, a task or a grid above them")
    report.add_argument(
        "--out", type=Path, help="FILE.html, or a folder that exists (default: report.html in the first run folder)"
    )
    report.add_argument("--figures", type=Path, help="also write every figure as PNG and its numbers as CSV here")

    compare = _command(commands, "compare", "which method is better, and how sure that is", runs.do_compare)
    compare.add_argument("runs", nargs="+", type=Path, help="run folders, or those of a method, a task or a grid above them")
    compare.add_argument("--reference", help="method that the others are compared with (default: the frozen policy)")
    compare.add_argument("--json", action="store_true", help="print one JSON object")

    video = _command(commands, "video", "film the frozen policy and the steered one side by side", runs.do_video)
    video.add_argument("run", type=Path, help="a run folder")
    video.add_argument("task", nargs="?", help="whose environment (default: the run's own)")
    video.add_argument("--env", help="a Gymnasium id in place of it")
    video.add_argument("--decoder", help="where the run's decoder is now, if it has moved")
    video.add_argument("--out", type=Path, help="FILE.mp4 or FILE.gif (default: video.mp4 in the run folder)")
    video.add_argument("--episodes", type=int, default=1, help="one after another")
    video.add_argument("--seed", type=int, default=0, help="of the episodes and the noise, as in lpds eval")
    video.add_argument("--scale", type=float, default=1.0, help="s of w = eps + s Delta(s) in the right half")
    video.add_argument(
        "--fps", type=float, help="frames per second at the most; it plays in real time (default: 60, in a GIF 25)"
    )
    video.add_argument("--size", type=int, default=320, help="height of the pictures in pixels")


def _grid_commands(commands: Any) -> None:
    """Many runs."""
    bench = _command(
        commands, "bench", "measure the learner's speed, or run a grid of tasks, methods and seeds", grids.do_bench
    )
    bench.add_argument(
        "what", help="learner; or a suite: gym, toy, a task, or several with commas; own with --decoder and --env"
    )
    bench.add_argument("--methods", nargs="+", default=["base", "lpds"], help="METHOD or METHOD+NAME:key=value,key=value")
    bench.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of every cell")
    bench.add_argument("--steps", type=int, help="primitive steps of a run (default: the preset's)")
    bench.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    bench.add_argument("--out", type=Path, help="run folders OUT/TASK/METHOD/seedN (default: runs/bench-SUITE)")
    bench.add_argument("--evidence", type=Path, help="copy finished runs without their checkpoints here")
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    bench.add_argument("--rounds", type=int, default=7, help="interleaved rounds; the median is printed")
    bench.add_argument("--decoder", help=f"of every run, in place of the task's: zoo name, {', '.join(DECODER_FORMS)}")
    bench.add_argument("--env", help="of every run: a Gymnasium id in place of the task's")
    bench.set_defaults(defaults={name: bench.get_default(name) for name in (*grids.OF_A_GRID, "rounds")})
    add_decoder_options(bench)

    reproduce = _command(commands, "reproduce", "the paper's figures", grids.do_reproduce)
    reproduce.add_argument("figure", help="toy, gym, fig2, ablation, delta, residual or flow")
    reproduce.add_argument("--out", type=Path, default=None, help="default: results/reproduce-FIGURE")
    reproduce.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of every cell")
    reproduce.add_argument("--steps", type=int, help="primitive steps of a run (default: the figure's)")
    reproduce.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    reproduce.add_argument("--runs", type=Path, help="root of the run folders (default: OUT/runs); finished ones are used")
    reproduce.add_argument("--no-run", action="store_true", help="draw what is finished, run nothing")


def _serve_command(commands: Any) -> None:
    """A decoder for other processes."""
    serve = _command(
        commands, "serve-decoder", "let a decoder be steered from another process or machine", policies.do_serve_decoder
    )
    serve.add_argument("decoder", help=f"zoo name, {', '.join(DECODER_FORMS)}")
    serve.add_argument("--port", type=int, default=8765, help="0 takes a free one; what it is, is printed")
    serve.add_argument("--host", default="127.0.0.1", help="any other than loopback needs a token")
    serve.add_argument("--token-file", type=Path, help="file with the token that clients must show (default: $LPDS_TOKEN)")
    serve.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="where to decode")
    serve.add_argument("--threads", type=int, default=1, help="of the tensor library")
    serve.add_argument("--max-mb", type=int, default=64, help="largest request")
    serve.add_argument("--max-batch", type=int, default=4096, help="most rows of a request")
    serve.add_argument("--max-kept", type=int, default=256, help="most rows of prepared observations that are kept")
    add_decoder_options(serve)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and guesses at no shortened option."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{**given, "allow_abbrev": False})
        # argparse takes -1 for a number and -1e-3 for an option
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Raise what ``main`` prints."""
        raise LpdsError(f"{message} ({self.prog} --help)")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one; an option whose default depends says so itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action.default, list):
            words = (f"{value:g}" if isinstance(value, float) else str(value) for value in action.default)
            return f"{action.help} (default: {' '.join(words)})"
        return action.help if action.default is None else super()._get_help_string(action)


def _command(commands: Any, name: str, help_text: str, handler: Handler) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text, formatter_class=_Formatter
    )
    parser.set_defaults(handler=handler, options=parser._option_string_actions)
    return parser


def _factors(word: str) -> list[float]:
    """Numbers with commas between them."""
    try:
        return [float(part) for part in word.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no number, and no numbers with commas between them") from None


def _owners(setting: str) -> list[str]:
    """The methods that have a setting of this name."""
    from dataclasses import fields

    from lpds.registry import METHOD_SETTINGS, METHODS, resolve

    kinds = {name: resolve("method", METHOD_SETTINGS, name) for name in METHODS}
    return [name for name, kind in kinds.items() if setting in {field.name for field in fields(kind)}]


def _unknown(words: Sequence[str], options: Iterable[str], method: str | None) -> LpdsError:
    """The error for what a command does not take; another method's setting is told whose it is."""
    first = next((word for word in words if word.startswith("--")), None)
    if first is None:
        return LpdsError(f"too many arguments: {' '.join(words)}")
    word = first.partition("=")[0]
    owners = [] if method is None else _owners(word.removeprefix("--").replace("-", "_"))
    if owners:
        return LpdsError(f"{method} has no setting {word} (of the methods {', '.join(owners)} have it)")
    near = [option for option in options if option.startswith(word)][:3]
    names = [option.removeprefix("--") for option in options if option.startswith("--")]
    found = difflib.get_close_matches(word.removeprefix("--"), names, n=3, cutoff=0.6)
    near = near or [f"--{name}" for name in found]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return LpdsError(f"unknown option {first}{hint} (--help lists them)")


# -- options that come from dataclasses ------------------------------------------------------------------------------


def _steer_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Offer every setting of the run and of the chosen method, with the preset's value as the default shown."""
    from lpds.config import Preset, RunSettings, Task
    from lpds.fields import texts
    from lpds.presets import OWN
    from lpds.registry import METHOD_SETTINGS, METHODS, TASKS, resolve
    from lpds.tasks import PRESETS

    parser.add_argument("task", nargs="?", help=f"a preset: {', '.join(TASKS)}; may be left out with --decoder and --env")
    parser.add_argument("--method", default="lpds", help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--decoder", help=f"in place of the task's: zoo name, {', '.join(DECODER_FORMS)}")
    parser.add_argument("--env", help="a Gymnasium id in place of the task's")
    presets = "; ".join(f"{method}: {', '.join(its)}" for method, its in PRESETS.items())
    parser.add_argument("--preset", help=f"named settings of the method ({presets})")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/TASK-METHOD-seedN)")
    parser.add_argument("--overwrite", action="store_true", help="replace a run folder that exists")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard scalars into the run folder, too")
    parser.add_argument("--quiet", action="store_true", help="no progress, only warnings and what came out")
    add_decoder_options(parser)
    if list(words[:1]) != ["steer"]:
        return
    peek = _Parser(prog="lpds steer", add_help=False)
    peek.add_argument("command", nargs="?")
    peek.add_argument("task", nargs="?")
    peek.add_argument("--method", default="lpds")
    peek.add_argument("--preset")
    seen, _ = peek.parse_known_args([word for word in words if word not in ("-h", "--help")])
    if seen.method not in METHODS:
        raise unknown_name("method", seen.method, METHODS)
    preset: Task = resolve("task", TASKS, seen.task) if seen.task in TASKS else Task(OWN, "", "")
    shared = preset.method.get("*", {})
    group = parser.add_argument_group("run settings (defaults are the preset's)")
    kind = resolve("method", METHOD_SETTINGS, seen.method)
    named = PRESETS.get(seen.method, {}).get(seen.preset, Preset())
    # reading the source takes a while, and only a reader wants it
    told = {one: texts(one) if {"-h", "--help"} & set(words) else {} for one in (RunSettings, kind)}
    run = {**preset.run, **getattr(kind, "run_defaults", {}), **named.run_of(preset.name)}
    _fields(group, RunSettings, run, told[RunSettings])
    own = {**preset.method.get(seen.method, {}), **named.method_of(preset.name)}
    group = parser.add_argument_group(f"settings of {seen.method}")
    _fields(group, kind, {**shared, **own}, told[kind])


def _fields(group: Any, kind: type[Any], changes: Any, told: Mapping[str, str]) -> None:
    from lpds.fields import parse

    for field in dataclasses.fields(kind):
        default = changes.get(field.name, field.default)
        said = f"{default:g}" if isinstance(default, float) else "none" if default == "" else str(default)
        text = f"{told[field.name]} (default: {said})" if field.name in told else f"default: {said}"
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=f"set_{field.name}",
            type=functools.partial(parse, (kind,), field.name),
            default=argparse.SUPPRESS,
            metavar=str(field.type).upper(),
            help=text.replace("%", "%%"),
        )


def _truth(word: str) -> bool:
    """What true and false stand for."""
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return word.lower() == "true"


def _clone_options(parser: argparse.ArgumentParser) -> None:
    names = ("kind", "chunk", "width", "blocks", "steps", "batch_size", "lr", "seed", "training_steps", "sampler_steps")
    group = parser.add_argument_group("training (defaults are the recipe's)")
    types = {"kind": str, "lr": float}
    told = {"kind": "diffusion, flow, or pi0: a tiny one of LeRobot's", "depth": "of a pi0", "mlp_dim": "of a pi0"}
    repeat = "true: chunks may reach beyond an episode's end and repeat its last action; false: its last states teach nothing"
    group.add_argument(
        "--pad-end", dest="set_pad_end", metavar="true|false", type=_truth, default=argparse.SUPPRESS, help=repeat
    )
    for name in (*names, "solver", "depth", "mlp_dim"):
        kind = types.get(name, str if name == "solver" else int)
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, dest=f"set_{name}", type=kind, default=argparse.SUPPRESS, help=told.get(name))
