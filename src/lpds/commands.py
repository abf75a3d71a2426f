"""What every command does, once its arguments are read; slow imports happen in here, not above."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from lpds.bar import progress_bar
from lpds.decoder_flags import decoder_options, load_given, moved_files, shared_words


def do_list(arguments: argparse.Namespace) -> int:
    """Print tasks, methods and decoders."""
    import json

    from lpds.registry import DECODER_FORMS, METHODS, TASKS, resolve
    from lpds.stats import brackets, told
    from lpds.zoo import FOLDER, names

    print("tasks:")
    for name in TASKS:
        task = resolve("task", TASKS, name)
        print(f"  {name:<21}{task.env:<21}{'decoder shipped' if task.decoder in names() else 'decoder not shipped'}")
    for stem, (_, count) in TASKS.families.items():
        print(f"  {stem}:N, N from 0 to {count - 1}, are all tasks")
    print(f"methods:\n  {' '.join(METHODS)}")
    print("decoders:")
    for name in names():
        card = FOLDER / name / "card.json"
        facts = json.loads(card.read_text()) if card.is_file() else {}
        interval = facts.get("return")
        mean, *bounds = told(interval, least=0) if interval else ("",)
        level = f"return {mean}{brackets(*bounds)}" if mean else ""
        if facts.get("success"):
            level += ", success {:.0%} [{:.0%}, {:.0%}]".format(*facts["success"])
        print(f"  {name:<20}{facts.get('decoder', {}).get('kind', ''):<11}{level}")
    print(f"  {'  '.join(DECODER_FORMS)}")
    return 0


def do_steer(arguments: argparse.Namespace) -> int:
    """Improve a frozen policy."""
    from lpds.api import resolve_preset, steer
    from lpds.registry import TASKS, resolve

    reference = arguments.decoder
    if reference is None and decoder_options(arguments) and arguments.task is not None:  # options of the task's own decoder
        named = resolve_preset(arguments.preset, arguments.method, arguments.task).decoders
        reference = named.get(arguments.task, resolve("task", TASKS, arguments.task).decoder)
    decoder = None if reference is None else load_given(reference, arguments)
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
        **_settings(arguments),
    )
    return _finish(run)


def do_resume(arguments: argparse.Namespace) -> int:
    """Go on with a run."""
    from lpds.api import resume

    told: dict[str, Any] = {"quiet": arguments.quiet, "tensorboard": arguments.tensorboard}
    told["files"] = moved_files(arguments.run, arguments)
    return _finish(resume(arguments.run, steps=arguments.steps, decoder=arguments.decoder, env=arguments.env, **told))


def _finish(run: Any) -> int:
    from lpds.run_folder import read_config
    from lpds.tell import keeps_all_noise, table

    if run.frozen is not None and run.steered is not None:
        quiet = [(f"frozen, noise x{run.quiet.noise_scale:.3g}", run.quiet)] if run.quiet else []
        start = [("untrained start", run.start)] if run.start else []
        print(table([("frozen", run.frozen), *quiet, *start, ("steered", run.steered)]))
        report = run.folder / "report.html"
        if report.is_file():
            print(f"report: {report}")
    learned = run.steered is not None and not run.unlearned
    if learned and not run.worse and keeps_all_noise(read_config(run.folder)["settings"]):
        look = f"lpds eval {shlex.quote(str(run.folder))} --noise-scale 0.3"
        print(f"less noise may do better still, or far worse, and costs modes; look: {look}")
    print(run.verdict())
    return 0 if run.finished else 130


def do_eval(arguments: argparse.Namespace) -> int:
    """Evaluate a run or a decoder."""
    import json

    import numpy as np

    from lpds.api import evaluate
    from lpds.errors import LpdsError, unknown_name
    from lpds.evaluation import seed_ignored, silence_is_failure
    from lpds.files import how_to_resume
    from lpds.log import finite
    from lpds.policy import load_policy
    from lpds.registry import DECODER_FORMS
    from lpds.run_folder import read_config
    from lpds.stats import FEWEST_PAIRS
    from lpds.tell import differences, table, what_noise_decides
    from lpds.zoo import environment_of, is_unknown, names

    folder = Path(arguments.run)
    is_run = (folder / "policy").is_dir()
    if not is_run and (folder / "config.json").is_file():
        raise LpdsError(f"the run in {folder} has no policy yet, which its first checkpoint brings: {how_to_resume(folder)}")
    if not is_run and arguments.scale != 1.0:
        raise LpdsError(f"{arguments.run} is a frozen policy, which has no Delta that --scale could turn down")
    if not is_run and arguments.decoder is not None:
        raise LpdsError(f"{arguments.run} is a decoder: --decoder says where a run's is")
    if not is_run and is_unknown(arguments.run):
        if len(folder.parts) > 1:
            raise LpdsError(f"unknown run or decoder {arguments.run!r}: that folder does not exist")
        raise unknown_name("run or decoder", arguments.run, [*names(), *DECODER_FORMS])
    policy: Any = (
        load_policy(folder, arguments.decoder, files=moved_files(folder, arguments))
        if is_run
        else load_given(arguments.run, arguments)
    )
    env, task = arguments.env, arguments.task
    if env is None and task is None:
        env = read_config(folder)["env"] if is_run else environment_of(arguments.run)
        if env is None:
            raise LpdsError(f"nothing says where {arguments.run} acts: pass --task, or --env with a Gymnasium id")
    where: dict[str, Any] = {"env": env, "episodes": arguments.episodes, "seed": arguments.seed}
    factors = list(dict.fromkeys(arguments.noise_scale))
    shift: Any = getattr(policy, "policy", None)
    own = float(shift.quiet(arguments.scale)) if hasattr(shift, "quiet") else 1.0
    asked = {"frozen": (0.0, 1.0)}
    # less noise alone is worth something: what the shift adds is against the frozen policy with as little
    for factor in dict.fromkeys(own * k for k in factors):
        if factor != 1.0:
            asked[f"frozen, noise x{factor:g}"] = (0.0, factor)
    for k in factors if is_run else ():
        asked[f"scale {arguments.scale:g}" + (f", noise x{k:g}" if k != 1.0 else "")] = (arguments.scale, k)
    noises = arguments.noises
    if noises < 1:
        raise LpdsError(f"noises must be at least 1, not {noises}")
    played = silence_is_failure(
        [
            evaluate(policy, task, **where, scale=scale, noise_scale=noise, noise_seed=arguments.seed + index)
            for scale, noise in asked.values()
            for index in range(noises)
        ]
    )
    reports = played[::noises]
    if any(not np.array_equal(report.first_obs, played[0].first_obs) for report in played):
        print(seed_ignored(env or task), file=sys.stderr)
    if arguments.json:
        for index, report in enumerate(played):
            for row in report.rows():
                told = {"noise_seed": arguments.seed + index % noises} if noises > 1 else {}
                print(json.dumps(finite(row | told), allow_nan=False))
        return 0
    rows = list(zip(asked, reports, strict=True))
    lines = differences(rows) if is_run else [line for row in rows[1:] for line in differences([rows[0], row])]
    print("\n".join([table(rows), *lines]))
    for index, name in enumerate(asked if noises > 1 else ()):
        print(what_noise_decides(name, played[index * noises : (index + 1) * noises]))
    if arguments.episodes < FEWEST_PAIRS:
        print(f"fewer than {FEWEST_PAIRS} episodes: the intervals are too narrow to decide anything")
    return 0


def do_check(arguments: argparse.Namespace) -> int:
    """Ask the decoder doctor."""
    from lpds.doctor import check
    from lpds.zoo import environment_of

    decoder = load_given(arguments.decoder, arguments)
    env = arguments.env or environment_of(arguments.decoder)
    tell = (lambda name: print(f"\r  {name} ...".ljust(40), end="", file=sys.stderr)) if sys.stderr.isatty() else None
    report = check(decoder, env, samples=arguments.samples, progress=tell)
    print("\r".ljust(41) + "\r" if tell else "", end="", file=sys.stderr)
    print(report)
    return 0 if report.ok else 1


def do_demos(arguments: argparse.Namespace) -> int:
    """Roll out the data of a recipe."""
    import numpy as np

    from lpds.files import check_writable
    from lpds.pretrain.recipes import SCRIPTED, make_data
    from lpds.stats import told

    check_writable(arguments.out)
    with progress_bar("episodes" if arguments.name in SCRIPTED else "transitions") as advance:
        options = {"episodes": arguments.episodes, "seed": arguments.seed, "cameras": arguments.cameras, "say": print}
        data = make_data(arguments.name, arguments.experts, advance, **options)
    data.save(arguments.out)
    returns = data.episode_returns
    level = "" if np.isnan(returns).all() else ", return {} +- {}".format(*told([returns.mean(), returns.std()], least=0))
    print(f"{arguments.out}: {len(data.obs):,} transitions, {len(returns):,} episodes{level}")
    return 0


def do_pretrain(arguments: argparse.Namespace) -> int:
    """Train a decoder."""
    from lpds.files import check_writable
    from lpds.pretrain.build import pretrain
    from lpds.stats import brackets, told

    check_writable(arguments.out / "card.json" if arguments.out.is_dir() else arguments.out)
    with progress_bar("gradient steps") as advance:
        card = pretrain(
            arguments.name,
            arguments.data,
            arguments.out,
            normalization=arguments.normalization,
            task=arguments.task,
            env=arguments.env,
            episodes=arguments.episodes,
            instruction=arguments.instruction,
            changes=_settings(arguments),
            progress=lambda done, total, loss: advance(done, total),
            overwrite=arguments.overwrite,
        )
    mean, *bounds = told(card["return"], least=0) if card["return"] else ("",)
    level = f", return {mean}{brackets(*bounds)}" if mean else ""
    short = card["data"].get("episodes_shorter_than_chunk")
    if short:
        print(f"{short} of {card['data']['episodes']} episodes are shorter than a chunk, and taught nothing")
    print(f"{arguments.out}: fingerprint {card['fingerprint'][:12]}{level}")
    return 0


def do_report(arguments: argparse.Namespace) -> int:
    """Write the page."""
    from lpds.files import check_writable
    from lpds.report import write_figures, write_report

    out = arguments.out or arguments.runs[0] / "report.html"
    if arguments.out is not None:
        check_writable(out)
    print(write_report(arguments.runs, out))
    if arguments.figures is not None:
        write_figures(arguments.runs, arguments.figures)
        print(arguments.figures)
    return 0


def do_video(arguments: argparse.Namespace) -> int:
    """Film frozen and steered side by side."""
    from lpds.files import check_writable
    from lpds.stats import told
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


def do_bench(arguments: argparse.Namespace) -> int:
    """Measure speed, or run a grid and compare."""
    import json

    if arguments.what != "learner":
        return _grid(arguments)
    from lpds.errors import LpdsError

    if shared_words(arguments):
        raise LpdsError("bench learner measures decoders of its own: --decoder, --env and a decoder's options cannot be chosen")
    from lpds.bench import bench_learner, bench_table

    result = bench_learner(rounds=arguments.rounds)
    print(json.dumps(result) if arguments.json else bench_table(result))
    return 0


def _grid(arguments: argparse.Namespace) -> int:
    import json

    from lpds.grid import grid_cells, run_grid

    signal.signal(signal.SIGTERM, _as_interrupt)  # the runs are told to save, as after Ctrl-C
    cells = grid_cells(arguments.what, arguments.methods, arguments.seeds, arguments.steps, shared_words(arguments))
    out = arguments.out or Path("runs") / f"bench-{arguments.what}"
    finished = run_grid(cells, out, jobs=arguments.jobs, evidence=arguments.evidence, say=_say)
    if finished:
        from lpds.report.compare import compare

        report = compare(finished)
        print(json.dumps(report.to_json()) if arguments.json else report)
    return 0 if len(finished) == len(cells) else 1


def _as_interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def do_serve_decoder(arguments: argparse.Namespace) -> int:
    """Serve a decoder until Ctrl-C."""
    from lpds.deploy.decoder_server import DecoderServer

    token = _token(arguments.token_file)
    decoder = load_given(arguments.decoder, arguments)
    server = DecoderServer(
        decoder,
        host=arguments.host,
        port=arguments.port,
        token=token,
        device=arguments.device,
        threads=arguments.threads,
        max_bytes=arguments.max_mb * 2**20,
        max_batch=arguments.max_batch,
        max_kept=arguments.max_kept,
        say=_say,
    )
    for number in (signal.SIGINT, signal.SIGTERM):  # also where the parent had SIGINT ignored, as a shell's `&` does
        signal.signal(number, lambda signum, frame: server.stop())
    guard = ", token needed" if token else ""
    print(f"serving {decoder.name} ({decoder.fingerprint[:12]}) on {server.address}{guard}; Ctrl-C ends it", flush=True)
    try:
        server.run()
    finally:
        server.close()
    _say("stopped")
    return 0


def _token(path: Path | None) -> str | None:
    import os

    from lpds.errors import LpdsError

    if path is None:
        return os.environ.get("LPDS_TOKEN") or None
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LpdsError(f"token file {path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from None


def do_compare(arguments: argparse.Namespace) -> int:
    """Compare runs."""
    import json

    from lpds.report.compare import compare

    report = compare(arguments.runs, arguments.reference)
    print(json.dumps(report.to_json()) if arguments.json else report)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def do_reproduce(arguments: argparse.Namespace) -> int:
    """Make one of the paper's figures."""
    from lpds.errors import LpdsError
    from lpds.reproduce import reproduce, reproduce_toy

    signal.signal(signal.SIGTERM, _as_interrupt)
    out = arguments.out or Path("results") / f"reproduce-{arguments.figure}"
    if arguments.figure == "toy":
        given = [f"--{name}" for name in ("steps", "runs") if getattr(arguments, name) is not None]
        if given or arguments.jobs != 1:
            raise LpdsError(
                f"the toy's runs have their own budget and place: {', '.join(given or ['--jobs'])} cannot be chosen"
            )
        print(reproduce_toy(out, seeds=arguments.seeds, say=_say))
        return 0
    grid = {"seeds": arguments.seeds, "steps": arguments.steps, "jobs": arguments.jobs, "runs": arguments.runs}
    print(reproduce(arguments.figure, out, **grid, say=_say))
    return 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {key.removeprefix("set_"): value for key, value in vars(arguments).items() if key.startswith("set_")}
