"""Commands about runs: steer, resume, eval, report, compare, video."""

from __future__ import annotations

import argparse
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lpds.bar import progress_bar
from lpds.commands.terminal import settings_given, show_comparison, where_it_acts
from lpds.decoder_flags import chosen_again, decoder_options, load_given


def do_steer(arguments: argparse.Namespace) -> int:
    """Improve a frozen policy."""
    from lpds.api import steer
    from lpds.presets import resolve_preset
    from lpds.registry import TASKS, resolve

    reference = arguments.decoder
    if reference is None and decoder_options(arguments) and arguments.task is not None:  # options of the task's own decoder
        named = resolve_preset(arguments.preset, arguments.method, arguments.task).decoders
        reference = named.get(arguments.task, resolve("task", TASKS, arguments.task).decoder)
    decoder = None if reference is None else load_given(reference, arguments)
    config = None if arguments.out is None else Path(arguments.out) / "config.json"
    before = _written(config)
    try:
        run = steer(
            arguments.task,
            arguments.method,
            decoder=decoder,
            env=arguments.env,
            out=arguments.out,
            overwrite=arguments.overwrite,
            quiet=arguments.quiet,
            tensorboard=arguments.tensorboard,
            preset=arguments.preset,
            **settings_given(arguments),
        )
    except KeyboardInterrupt:
        if config is not None and _written(config) == before:
            print("lpds: interrupted before the first step: nothing was begun", file=sys.stderr)
            return 130
        raise
    return _finish(run)


def _written(path: Path | None) -> int | None:
    """When a file was written, in nanoseconds; ``None`` where there is none."""
    return path.stat().st_mtime_ns if path is not None and path.is_file() else None


def do_resume(arguments: argparse.Namespace) -> int:
    """Go on with a run."""
    from lpds.api import resume

    told: dict[str, Any] = {"quiet": arguments.quiet, "tensorboard": arguments.tensorboard}
    told |= {"files": chosen_again(arguments.run, arguments), "device": arguments.device}
    return _finish(resume(arguments.run, steps=arguments.steps, decoder=arguments.decoder, env=arguments.env, **told))


def _finish(run: Any) -> int:
    from lpds.run_folder import read_config
    from lpds.tell import keeps_all_noise, table

    if run.frozen is not None and run.steered is not None:
        quiet = [(f"frozen, noise x{run.quiet.noise_scale:.3g}", run.quiet)] if run.quiet else []
        start = [("untrained start", run.start)] if run.start else []
        print(table([("frozen", run.frozen), *quiet, *start, ("steered", run.steered)]))
        report = _from_here(run.folder) / "report.html"
        if report.is_file():
            print(f"report: {report}")
    learned = run.steered is not None and not run.unlearned
    if learned and not run.worse and keeps_all_noise(read_config(run.folder)["settings"]):
        look = f"lpds eval {shlex.quote(str(_from_here(run.folder)))} --noise-scale 0.3"
        print(f"less noise may do better still, or far worse, and costs modes; look: {look}")
    print(run.verdict())
    return 0 if run.finished else 130


def _from_here(folder: Path) -> Path:
    """A folder as it is written from the working folder, where it is in it."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def do_eval(arguments: argparse.Namespace) -> int:
    """Evaluate a run or a decoder."""
    import json

    import numpy as np

    from lpds.checks import check_seed, check_share
    from lpds.diagnose import entropies_lost
    from lpds.evaluation import seed_ignored, silence_is_failure
    from lpds.log import finite
    from lpds.stats import FEWEST_PAIRS
    from lpds.tell import difference_lines, table, what_noise_decides, what_spread_costs

    check_share("scale", arguments.scale)
    policy, is_run = _opened(arguments)
    shift: Any = getattr(policy, "policy", None)
    own = float(shift.quiet(arguments.scale)) if hasattr(shift, "quiet") else 1.0
    if hasattr(shift, "check_scale"):  # before the frozen policy has played for nothing
        shift.check_scale(arguments.scale)
    asked = _asked(arguments, own, is_run)
    noises: int = arguments.noises
    for factor in arguments.noise_scale:
        check_share("noise_scale", factor)
    check_seed("--seed", arguments.seed)
    check_seed("--seed and --noises: the last of them", arguments.seed + noises - 1)
    whole = len(asked) * noises
    played, interrupted = _played(arguments, policy, is_run, list(asked.values()))
    if not played:
        raise KeyboardInterrupt
    asked = dict(list(asked.items())[: len(played) // noises])  # what was played to its end is told
    played = silence_is_failure(played)
    if any(not np.array_equal(report.first_obs, played[0].first_obs) for report in played):
        print(seed_ignored(_where(arguments, is_run)["env"] or arguments.task), file=sys.stderr)
    if arguments.json:
        for index, report in enumerate(played):
            for row in report.rows():
                under = {"noise_seed": arguments.seed + index % noises} if noises > 1 else {}
                print(json.dumps(finite(row | under), allow_nan=False))
        return 130 if interrupted else 0
    rows = list(zip(asked, played[::noises], strict=True))
    pairs = [(row, rows[0]) for row in rows[1:]]
    at = {name: number for number, name in enumerate(asked)}
    for (scale, k), steered in zip(asked.values(), rows, strict=True):
        quiet = at.get(f"frozen, noise x{own * k:g}")
        if is_run and scale != 0.0 and quiet is not None:
            pairs.append((steered, rows[quiet]))
    print("\n".join([table(rows), *difference_lines(pairs)]))
    states = _states(Path(arguments.run), policy) if is_run else None
    if states is not None and len(asked) > 1:
        lost = entropies_lost(policy.policy, policy.decoder, states, list(asked.values())[1:])
        print(what_spread_costs(dict(zip(list(asked)[1:], lost, strict=True)), len(states)))
    for index, name in enumerate(asked if noises > 1 else ()):
        print(what_noise_decides(name, played[index * noises : (index + 1) * noises]))
    if arguments.episodes < FEWEST_PAIRS:
        print(f"fewer than {FEWEST_PAIRS} episodes: the intervals are too narrow to decide anything")
    if interrupted:
        print(f"interrupted: {len(played)} of {whole} evaluations are told", file=sys.stderr)
    return 130 if interrupted else 0


def _opened(arguments: argparse.Namespace) -> tuple[Any, bool]:
    """What is to be evaluated, and whether it is a run's policy."""
    from lpds.decoders.store import WEIGHTS
    from lpds.errors import LpdsError, unknown_name
    from lpds.files import how_to_resume
    from lpds.policy import load_policy
    from lpds.registry import DECODER_FORMS
    from lpds.run_folder import no_run, runs_in
    from lpds.zoo import is_unknown, names

    folder = Path(arguments.run)
    finished = (folder / "summary.json").is_file()
    if (folder / "policy").is_dir():
        policy = load_policy(folder, arguments.decoder, files=chosen_again(folder, arguments))
        if not finished:
            print(f"{folder} is not finished: this is its last checkpoint's policy", file=sys.stderr)
        return policy, True
    opens = arguments.run in names() or (folder / WEIGHTS).is_file()
    if folder.is_dir() and not opens and runs_in(folder) != [folder]:
        raise no_run(folder)
    if (folder / "config.json").is_file():
        lost = "has lost its policy, which going on brings back"
        why = lost if finished else "has no policy yet, which its first checkpoint brings"
        raise LpdsError(f"the run in {folder} {why}: {how_to_resume(folder)}")
    if arguments.scale != 1.0:
        raise LpdsError(f"{arguments.run} is a frozen policy, which has no Delta that --scale could turn down")
    if arguments.decoder is not None:
        raise LpdsError(f"{arguments.run} is a decoder: --decoder says where a run's is")
    if is_unknown(arguments.run):
        if len(folder.parts) > 1:
            raise LpdsError(f"unknown run or decoder {arguments.run!r}: that folder does not exist")
        raise unknown_name("run or decoder", arguments.run, [*names(), *DECODER_FORMS])
    return load_given(arguments.run, arguments), False


def _states(folder: Path, policy: Any) -> Any:
    """States [N, O] of the warm-up that a run folder keeps, where its decoder takes one vector; ``None`` where it has none."""
    import torch

    from lpds.errors import LpdsError
    from lpds.run_folder import kept_states

    try:
        states = kept_states(folder)
    except LpdsError:  # an evaluation goes without them
        return None
    return torch.from_numpy(states) if states is not None and states.shape[1:] == policy.decoder.spec.obs_shape else None


def _where(arguments: argparse.Namespace, is_run: bool) -> dict[str, Any]:
    """Environment, number and seed of the episodes, and how many are played at once."""
    from lpds.run_folder import read_config

    env = arguments.env
    if env is None and arguments.task is None and is_run:
        env = read_config(Path(arguments.run))["env"]
    env = env or where_it_acts(arguments.run, arguments)
    return {"env": env, "episodes": arguments.episodes, "seed": arguments.seed, "envs": arguments.envs}


def _asked(arguments: argparse.Namespace, own: float, is_run: bool) -> dict[str, tuple[float, float]]:
    """Scale and factor of the noise of every evaluation, by name; ``own`` is the factor that the policy itself has."""
    factors = list(dict.fromkeys(arguments.noise_scale))
    asked = {"frozen": (0.0, 1.0)}
    # less noise alone is worth something: what the shift adds is against the frozen policy with as little
    for factor in dict.fromkeys(own * k for k in factors):
        if factor != 1.0:
            asked[f"frozen, noise x{factor:g}"] = (0.0, factor)
    for k in factors if is_run else ():
        asked[f"scale {arguments.scale:g}" + (f", noise x{k:g}" if k != 1.0 else "")] = (arguments.scale, k)
    return asked


def _played(
    arguments: argparse.Namespace, policy: Any, is_run: bool, asked: list[tuple[float, float]]
) -> tuple[list[Any], bool]:
    """Reports of all noises of every way that was played to its end, and whether some were not."""
    from lpds.api import evaluate
    from lpds.errors import LpdsError

    where, noises, played = _where(arguments, is_run), arguments.noises, list[Any]()
    if noises < 1:
        raise LpdsError(f"noises must be at least 1, not {noises}")
    ways = [(*how, arguments.seed + index) for how in asked for index in range(noises)]
    with progress_bar("episodes") as advance, suppress(KeyboardInterrupt):
        for scale, noise, noise_seed in ways:
            before, whole = len(played) * arguments.episodes, len(ways) * arguments.episodes
            told: dict[str, Any] = {"progress": lambda done, _, before=before, whole=whole: advance(before + done, whole)}
            how = {"scale": scale, "noise_scale": noise, "noise_seed": noise_seed}
            played.append(evaluate(policy, arguments.task, **where, **how, **told))
    interrupted = len(played) < len(ways)
    return played[: len(played) // noises * noises], interrupted


def do_report(arguments: argparse.Namespace) -> int:
    """Write the page."""
    from lpds.files import check_writable
    from lpds.report import write_figures, write_report

    if arguments.figures is not None:  # before a page is drawn for nothing
        check_writable(arguments.figures / "figure.png")

    out = arguments.out or arguments.runs[0]
    out = out / "report.html" if out.is_dir() or not out.suffix else out
    if arguments.out is not None:
        check_writable(out)
    print(write_report(arguments.runs, out))
    if arguments.figures is not None:
        write_figures(arguments.runs, arguments.figures)
        print(arguments.figures)
    return 0


def do_compare(arguments: argparse.Namespace) -> int:
    """Compare runs."""
    from lpds.report.compare import compare

    show_comparison(compare(arguments.runs, arguments.reference), as_json=arguments.json)
    return 0


def do_video(arguments: argparse.Namespace) -> int:
    """Film frozen and steered side by side."""
    from lpds.digits import told
    from lpds.files import check_writable
    from lpds.video import write_video

    if arguments.out is not None:
        check_writable(arguments.out)
    options = {name: getattr(arguments, name) for name in ("env", "decoder", "out", "episodes", "seed", "scale", "fps", "size")}
    with progress_bar("episodes played and filmed") as advance:
        film = write_video(arguments.run, arguments.task, **options, progress=advance)
    for name, report in (("frozen", film.frozen), ("steered", film.steered)):
        print(f"{name:<8} return {', '.join(told(report.returns))}")
    print(f"{film.path}: {film.frames} frames, {film.fps:g} a second")
    return 0
