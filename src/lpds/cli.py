"""The command line: thin, and slow imports only where a command needs them."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lpds.errors import LpdsError

Handler = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 2 for an input that does not fit, 130 after Ctrl-C.
    """
    # Small products on many threads are several times slower than on one; a caller's own choice stands.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _parser(words).parse_args(words)
        handler: Handler = arguments.handler
        return handler(arguments)
    except LpdsError as error:
        print(f"lpds: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lpds: interrupted", file=sys.stderr)
        return 130


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    from lpds import __version__

    parser = argparse.ArgumentParser(prog="lpds", description="Steer a frozen diffusion or flow policy by its noise.")
    parser.add_argument("--version", action="version", version=f"lpds {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    _command(commands, "list", "tasks, methods, decoders and what they are", _list)
    steer = _command(commands, "steer", "improve a frozen policy by online RL", _steer)
    _steer_options(steer, words)

    resume = _command(commands, "resume", "go on with a run, to the bit", _resume)
    resume.add_argument("run", type=Path)
    resume.add_argument("--steps", type=int, help="a larger budget, to go on with a finished run")
    resume.add_argument("--tensorboard", action="store_true")
    resume.add_argument("--quiet", action="store_true")

    evaluate = _command(commands, "eval", "evaluate a run, frozen and steered on the same episodes and noise", _eval)
    evaluate.add_argument("run", help="a run folder, or a decoder reference")
    evaluate.add_argument("--task", help="whose environment (default: the run's own)")
    evaluate.add_argument("--env", help="a Gymnasium id in place of the task's")
    evaluate.add_argument("--episodes", type=int, default=100)
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--scale", type=float, default=1.0, help="s of w = eps + s Delta(s); default 1")
    evaluate.add_argument("--json", action="store_true", help="one JSON line an episode")

    check = _command(commands, "check", "the decoder doctor: can this policy be steered?", _check)
    check.add_argument("decoder", help="zoo name, dppo:PATH, folder:PATH")
    check.add_argument("--env", help="a Gymnasium id (default: that of the task of the same name)")
    _decoder_options(check)

    demos = _command(commands, "demos", "roll out the data of a zoo recipe", _demos)
    demos.add_argument("name")
    demos.add_argument("--experts", type=Path, help="folder of expert actors (.npz)")
    demos.add_argument("--out", type=Path, required=True)

    pretrain = _command(commands, "pretrain", "train a decoder by behaviour cloning", _pretrain)
    pretrain.add_argument("name", help="a zoo recipe, or a name of your own")
    pretrain.add_argument("--data", required=True, help="own npz, DPPO npz, or minari:DATASET-ID")
    pretrain.add_argument("--normalization", type=Path, help="npz of ranges, for DPPO data (stored scaled)")
    pretrain.add_argument("--out", type=Path, required=True)
    pretrain.add_argument("--task", help="task to evaluate on for the card (default: the recipe's)")
    pretrain.add_argument("--env", help="a Gymnasium id to evaluate on for the card")
    pretrain.add_argument("--episodes", type=int, default=100, help="episodes behind the card's return; 0 for none")
    _clone_options(pretrain)

    report = _command(commands, "report", "one HTML file with figures and tables from run folders", _report)
    report.add_argument("runs", nargs="+", type=Path)
    report.add_argument("--out", type=Path, help="default: report.html in the first run folder")
    report.add_argument("--figures", type=Path, help="also write every figure as PNG and its numbers as CSV here")

    bench = _command(commands, "bench", "measure the learner's speed", _bench)
    bench.add_argument("what", choices=["learner"])
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    bench.add_argument("--rounds", type=int, default=7, help="interleaved rounds; the median is printed")

    reproduce = _command(commands, "reproduce", "the paper's figures", _reproduce)
    reproduce.add_argument("figure", choices=["toy"])
    reproduce.add_argument("--out", type=Path, default=None, help="default: results/reproduce-FIGURE")
    reproduce.add_argument("--seeds", type=int, default=3)
    return parser


def _command(commands: Any, name: str, help_text: str, handler: Handler) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(handler=handler)
    return parser


# -- options that come from dataclasses ------------------------------------------------------------------------------


def _steer_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Offer every setting of the run and of the chosen method, with the preset's value as the default shown."""
    from lpds.config import RunSettings, Task
    from lpds.registry import METHOD_SETTINGS, METHODS, TASKS, resolve

    peek = argparse.ArgumentParser(add_help=False)
    peek.add_argument("command", nargs="?")
    peek.add_argument("task", nargs="?")
    peek.add_argument("--method", default="lpds")
    seen, _ = peek.parse_known_args([word for word in words if word not in ("-h", "--help")])
    parser.add_argument("task", nargs="?", help=f"a preset: {', '.join(TASKS)}; may be left out with --decoder and --env")
    parser.add_argument("--method", default="lpds", help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--decoder", help="zoo name, dppo:PATH or folder:PATH in place of the task's")
    parser.add_argument("--env", help="a Gymnasium id in place of the task's")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/TASK-METHOD-seedN)")
    parser.add_argument("--overwrite", action="store_true", help="replace a run folder that exists")
    parser.add_argument("--tensorboard", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    _decoder_options(parser)
    if seen.command != "steer":
        return
    preset: Task = resolve("task", TASKS, seen.task) if seen.task in TASKS else Task("own", "", "")
    shared = preset.method.get("*", {})
    run = parser.add_argument_group("run settings (defaults are the preset's)")
    _fields(run, RunSettings, preset.run)
    if seen.method in METHOD_SETTINGS:
        own = preset.method.get(seen.method, {})
        group = parser.add_argument_group(f"settings of {seen.method}")
        _fields(group, resolve("method", METHOD_SETTINGS, seen.method), {**shared, **own})


def _fields(group: Any, kind: type[Any], changes: Any) -> None:
    for field in dataclasses.fields(kind):
        default = changes.get(field.name, field.default)
        convert = {"int": int, "float": float, "str": str}[str(field.type)]
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=f"set_{field.name}",
            type=convert,
            default=argparse.SUPPRESS,
            metavar=str(field.type).upper(),
            help=f"default {default:g}" if isinstance(default, float) else f"default {default}",
        )


def _decoder_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoder options")
    group.add_argument("--normalization", help="npz of ranges (dppo:)")
    group.add_argument("--ddim-steps", type=int, help="DDIM steps")
    group.add_argument("--denoising-steps", type=int, help="steps of the training schedule (dppo:)")
    group.add_argument("--decoder-activation", choices=["relu", "mish"], help="of a dppo: network")


def _clone_options(parser: argparse.ArgumentParser) -> None:
    names = ("kind", "chunk", "width", "blocks", "steps", "batch_size", "lr", "seed", "training_steps", "sampler_steps")
    group = parser.add_argument_group("training (defaults are the recipe's)")
    types = {"kind": str, "lr": float}
    for name in (*names, "solver"):
        kind = types.get(name, str if name == "solver" else int)
        group.add_argument(f"--{name.replace('_', '-')}", dest=f"set_{name}", type=kind, default=argparse.SUPPRESS)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {key.removeprefix("set_"): value for key, value in vars(arguments).items() if key.startswith("set_")}


def _load(reference: str, arguments: argparse.Namespace) -> Any:
    from lpds.zoo import load_decoder

    options = {
        "normalization": arguments.normalization,
        "ddim_steps": arguments.ddim_steps,
        "denoising_steps": arguments.denoising_steps,
        "activation": arguments.decoder_activation,
    }
    return load_decoder(reference, **{key: value for key, value in options.items() if value is not None})


# -- commands --------------------------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace) -> int:
    import json

    from lpds.registry import DECODER_SCHEMES, METHODS, TASKS, resolve
    from lpds.zoo import FOLDER, names

    print("tasks:")
    for name in TASKS:
        task = resolve("task", TASKS, name)
        print(f"  {name:<14}{task.env:<18}{'decoder shipped' if task.decoder in names() else 'decoder not shipped'}")
    print(f"methods:\n  {' '.join(METHODS)}")
    print("decoders:")
    for name in names():
        card = FOLDER / name / "card.json"
        facts = json.loads(card.read_text()) if card.is_file() else {}
        interval = facts.get("return")
        level = f"return {interval[0]:.0f} [{interval[1]:.0f}, {interval[2]:.0f}]" if interval else ""
        print(f"  {name:<14}{facts.get('decoder', {}).get('kind', ''):<11}{level}")
    print(f"  {'  '.join(f'{scheme}:PATH' for scheme in DECODER_SCHEMES)}")
    return 0


def _steer(arguments: argparse.Namespace) -> int:
    from lpds.api import steer

    decoder = None if arguments.decoder is None else _load(arguments.decoder, arguments)
    run = steer(
        arguments.task,
        arguments.method,
        decoder=decoder,
        env=arguments.env,
        out=arguments.out,
        overwrite=arguments.overwrite,
        quiet=arguments.quiet,
        tensorboard=arguments.tensorboard,
        **_settings(arguments),
    )
    return _finish(run)


def _resume(arguments: argparse.Namespace) -> int:
    from lpds.api import resume

    return _finish(resume(arguments.run, steps=arguments.steps, quiet=arguments.quiet, tensorboard=arguments.tensorboard))


def _finish(run: Any) -> int:
    if run.frozen is not None and run.steered is not None:
        print(_table([("frozen", run.frozen), ("steered", run.steered)]))
        report = run.folder / "report.html"
        if report.is_file():
            print(f"report: {report}")
    print(run.verdict())
    return 0 if run.finished else 130


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    import math

    lines = [f"{'':<10}{'episodes':>9}{'return':>10}{'95 % interval':>22}{'success':>10}{'95 % interval':>18}"]
    for name, report in rows:
        mean, low, high = report.interval("return")
        line = f"{name:<10}{len(report.returns):>9}{mean:>10.1f}{f'[{low:.1f}, {high:.1f}]':>22}"
        share, share_low, share_high = report.interval("success")
        if not math.isnan(share):
            line += f"{share:>10.1%}{f'[{share_low:.1%}, {share_high:.1%}]':>18}"
        lines.append(line)
    return "\n".join(lines)


def _eval(arguments: argparse.Namespace) -> int:
    import json

    from lpds.api import evaluate, read_config
    from lpds.log import finite
    from lpds.policy import load_policy
    from lpds.stats import paired_difference
    from lpds.zoo import load_decoder

    folder = Path(arguments.run)
    is_run = (folder / "policy").is_dir()
    policy: Any = load_policy(folder) if is_run else load_decoder(arguments.run)
    env, task = arguments.env, arguments.task
    if env is None and task is None:
        if is_run:
            env = read_config(folder)["env"]
        else:
            task = arguments.run.split("-")[0]
    scales = [0.0, arguments.scale] if is_run else [0.0]
    reports = [
        evaluate(policy, task, env=env, episodes=arguments.episodes, seed=arguments.seed, scale=scale) for scale in scales
    ]
    if arguments.json:
        for report in reports:
            for row in report.rows():
                print(json.dumps(finite(row), allow_nan=False))
        return 0
    print(_table(list(zip(["frozen", f"scale {arguments.scale:g}"], reports, strict=False))))
    if is_run:
        mean, low, high = paired_difference(reports[0].returns, reports[1].returns)
        print(f"paired difference {mean:+.1f} [{low:+.1f}, {high:+.1f}]")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from lpds.doctor import check
    from lpds.registry import TASKS, resolve

    decoder = _load(arguments.decoder, arguments)
    env = arguments.env
    task = arguments.decoder.split("-")[0]
    if env is None and task in TASKS:
        env = resolve("task", TASKS, task).env
    report = check(decoder, env)
    print(report)
    return 0 if report.ok else 1


def _demos(arguments: argparse.Namespace) -> int:
    import numpy as np

    from lpds.pretrain.recipes import make_data

    with _bar("transitions") as advance:
        data = make_data(arguments.name, arguments.experts, advance)
    data.save(arguments.out)
    returns = data.episode_returns
    level = "" if np.isnan(returns).all() else f", return {returns.mean():.0f} +- {returns.std():.0f}"
    print(f"{arguments.out}: {len(data.obs):,} transitions, {len(returns):,} episodes{level}")
    return 0


def _pretrain(arguments: argparse.Namespace) -> int:
    from lpds.pretrain.build import pretrain

    with _bar("gradient steps") as advance:
        card = pretrain(
            arguments.name,
            arguments.data,
            arguments.out,
            normalization=arguments.normalization,
            task=arguments.task,
            env=arguments.env,
            episodes=arguments.episodes,
            changes=_settings(arguments),
            progress=lambda done, total, loss: advance(done, total),
        )
    level = f", return {card['return'][0]:.0f} [{card['return'][1]:.0f}, {card['return'][2]:.0f}]" if card["return"] else ""
    print(f"{arguments.out}: fingerprint {card['fingerprint'][:12]}{level}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from lpds.report import write_figures, write_report

    out = arguments.out or arguments.runs[0] / "report.html"
    print(write_report(arguments.runs, out))
    if arguments.figures is not None:
        write_figures(arguments.runs, arguments.figures)
        print(arguments.figures)
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    import json

    from lpds.bench import bench_learner, bench_table

    result = bench_learner(rounds=arguments.rounds)
    print(json.dumps(result) if arguments.json else bench_table(result))
    return 0


def _reproduce(arguments: argparse.Namespace) -> int:
    from lpds.reproduce import reproduce_toy

    out = arguments.out or Path("results") / f"reproduce-{arguments.figure}"
    print(reproduce_toy(out, seeds=arguments.seeds, say=lambda line: print(line, file=sys.stderr, flush=True)))
    return 0


class _bar:  # noqa: N801 - reads as a function
    """A progress bar on a terminal, nothing elsewhere, as a context manager that gives ``advance(done, total)``."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._progress: Any = None

    def __enter__(self) -> Callable[[int, int], None]:
        if not sys.stderr.isatty():
            return lambda done, total: None
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (MofNCompleteColumn(), TextColumn(self._unit), BarColumn(), TimeRemainingColumn())
        progress = Progress(*columns, console=Console(stderr=True))
        self._progress = progress
        task = progress.add_task(self._unit)
        progress.start()
        return lambda done, total: progress.update(task, completed=min(done, total), total=total)

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()
