"""Commands about frozen policies: list, look, check, demos, pretrain, serve-decoder."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lpds.bar import progress_bar
from lpds.commands.terminal import asked_to_stop, say, settings_given, where_it_acts
from lpds.decoder_flags import load_given
from lpds.errors import LpdsError


def do_list(arguments: argparse.Namespace) -> int:
    """Print tasks, methods and decoders."""
    import json

    from lpds.digits import brackets, told
    from lpds.registry import DECODER_FORMS, ENVIRONMENTS, METHODS, TASKS, resolve
    from lpds.zoo import FOLDER, names

    print("tasks:")
    for name in TASKS:
        task = resolve("task", TASKS, name)
        shipped = "decoder shipped" if task.decoder in names() else "decoder not shipped"
        print(f"  {name:<21}{task.env:<21}{shipped}{_lacks(ENVIRONMENTS.get(task.env, ''))}")
    for stem, (_, count) in TASKS.families.items():
        print(f"  {stem}:N, N from 0 to {count - 1}, are all tasks{_lacks(ENVIRONMENTS.families[stem][0])}")
    print("methods:")
    for name, line in _first_lines(METHODS).items():
        print(f"  {name:<21}{line}")
    print("decoders:")
    for name in names():
        card = FOLDER / name / "card.json"
        facts = json.loads(card.read_bytes()) if card.is_file() else {}
        interval = facts.get("return")
        mean, *bounds = told(interval, least=0) if interval else ("",)
        level = f"return {mean}{brackets(*bounds)}" if mean else ""
        if facts.get("success"):
            level += ", success {:.0%} [{:.0%}, {:.0%}]".format(*facts["success"])
        print(f"  {name:<20}{facts.get('decoder', {}).get('kind', ''):<11}{level}")
    print(f"  {'  '.join(DECODER_FORMS)}")
    return 0


def _lacks(place: str) -> str:
    """What an environment needs that is not installed."""
    from importlib.util import find_spec

    from lpds.registry import EXTRAS

    package, extra = EXTRAS.get(place.partition(":")[0], ("", ""))
    return f", needs pip install 'lpds[{extra}]'" if package and find_spec(package) is None else ""


def _first_lines(places: Mapping[str, str]) -> dict[str, str]:
    """What modules say that they are, and their class where it is one of several; read, since an import would take seconds."""
    import ast
    from importlib.util import find_spec

    told = {}
    for name, place in places.items():
        module, _, wanted = place.partition(":")
        found = find_spec(module)
        tree = ast.parse(Path(found.origin).read_text(encoding="utf-8") if found is not None and found.origin else "")
        docs = [tree] if sum(other.startswith(f"{module}:") for other in places.values()) == 1 else [tree, *tree.body]
        named = [node for node in docs if node is tree or (isinstance(node, ast.ClassDef) and node.name == wanted)]
        lines = [(ast.get_docstring(node) or "").partition("\n")[0].removesuffix(".") for node in named]
        told[name] = ". ".join(lines).replace("``", "")
    return told


def do_look(arguments: argparse.Namespace) -> int:
    """Play a frozen policy in every way that costs no learning."""
    import json

    from lpds.evaluation import seed_ignored
    from lpds.first_look import NOISE_SCALES, Way, play_ways, report_ways
    from lpds.log import finite

    decoder, env = load_given(arguments.decoder, arguments), where_it_acts(arguments.decoder, arguments)
    factors = NOISE_SCALES if arguments.noise_scale is None else arguments.noise_scale
    ways: list[Way] = []
    interrupted = True
    with progress_bar("episodes") as advance, suppress(KeyboardInterrupt):
        played = {"episodes": arguments.episodes, "seed": arguments.seed, "noise_scales": factors, "envs": arguments.envs}
        for way in play_ways(decoder, arguments.task, env=env, **played, progress=advance):
            ways.append(way)
        interrupted = False
    if not ways:
        raise KeyboardInterrupt
    report = report_ways(decoder, ways)  # what was played to its end is told
    if report.ignores_seed:
        print(seed_ignored(env or arguments.task), file=sys.stderr)
    if arguments.json:
        for way in report.ways:
            for row in way.report.rows():
                print(json.dumps({"way": way.name} | finite(row), allow_nan=False))
        return 130 if interrupted else 0
    print(report)
    if interrupted:
        print(f"interrupted: the {len(ways)} ways that were played to their end are told", file=sys.stderr)
    return 130 if interrupted else 0


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

    from lpds.digits import told
    from lpds.files import check_writable
    from lpds.pretrain.datasets import open_data
    from lpds.pretrain.experts import Demonstrations
    from lpds.pretrain.recipes import SCRIPTED, make_data

    check_writable(arguments.out)
    if arguments.resume and arguments.overwrite:
        raise LpdsError("--resume goes on with the file that is there, --overwrite replaces it: pass one of them")
    if arguments.out.exists() and not (arguments.overwrite or arguments.resume):
        go_on = "pass --resume to go on with it, or --overwrite" if arguments.name in SCRIPTED else "pass --overwrite"
        raise LpdsError(f"{arguments.out} exists already: choose another --out, or {go_on}")
    begun = open_data(str(arguments.out)) if arguments.resume and arguments.out.exists() else None
    policy = load_given(arguments.take_over, arguments) if arguments.take_over else None

    def keep(data: Demonstrations) -> None:
        with suppress(OSError):  # a full disk may have room again when all are there
            data.save(arguments.out)

    bar = progress_bar("episodes" if arguments.name in SCRIPTED else "transitions")
    with bar as advance, asked_to_stop() as stopped:
        data = make_data(
            arguments.name,
            arguments.experts,
            advance,
            episodes=arguments.episodes,
            seed=arguments.seed,
            cameras=arguments.cameras,
            policy=policy,
            say=print,
            stop=stopped,
            begun=begun,
            keep=keep,
        )
        cut_short = stopped() and not data.recipe
        data.save(arguments.out)  # a signal that comes now is too late to stop anything, and must not lose the file
    returns = data.episode_returns
    level = "" if np.isnan(returns).all() else ", return {} +- {}".format(*told([returns.mean(), returns.std()], least=0))
    print(f"{arguments.out}: {len(data.obs):,} transitions, {len(returns):,} episodes{level}")
    if cut_short:
        more = "; the same command with --resume goes on" if data.made else ""
        print(f"stopped: {arguments.out} holds what was there by then, and not all that was asked for{more}")
        return 130
    if not data.recipe:  # cut short by the expert's failures, or by a policy's, which has been told
        print(f"{arguments.out} holds fewer episodes than asked for; where the expert failed too often, try another --seed")
        return 1
    return 0


def do_pretrain(arguments: argparse.Namespace) -> int:
    """Train a decoder."""
    from lpds.digits import brackets, told
    from lpds.files import check_writable
    from lpds.pretrain.build import pretrain
    from lpds.pretrain.kept_training import NAME as TRAINING

    check_writable(arguments.out / "card.json" if arguments.out.is_dir() else arguments.out)
    told_of = "stopping after this step; what is trained by then will be kept (Ctrl-C again to break off)"
    with progress_bar("gradient steps") as advance:
        card = pretrain(
            arguments.name,
            arguments.data,
            arguments.out,
            normalization=arguments.normalization,
            sources=arguments.sources or (),
            task=arguments.task,
            env=arguments.env,
            episodes=arguments.episodes,
            instruction=arguments.instruction,
            changes=settings_given(arguments),
            progress=lambda done, total, loss: advance(done, total),
            stopping=lambda: asked_to_stop(told_of),
            overwrite=arguments.overwrite,
            resume=arguments.resume,
        )
    mean, *bounds = told(card["return"], least=0) if card["return"] else ("",)
    level = f", return {mean}{brackets(*bounds)}" if mean else ""
    if "remark" in card["data"]:
        print(card["data"]["remark"])
    short = card["data"].get("episodes_shorter_than_chunk")
    if short:
        print(f"{short} of {card['data']['episodes']} episodes are shorter than a chunk, and taught nothing")
    unlearned = card["data"].get("states_that_begin_no_chunk")
    if unlearned:
        share = unlearned / card["data"]["transitions"]
        print(f"{share:.1%} of the states are an episode's last, and begin no chunk (--pad-end true repeats its last action)")
    print(f"{arguments.out}: fingerprint {card['fingerprint'][:12]}{level}")
    if card["return"] is None and arguments.episodes and "stopped_at" not in card["training"]:
        print("no return was measured: neither the name nor --task nor --env says where it acts")
    at = card["training"].get("stopped_at")
    if at is not None:
        print(f"stopped at {at:,} of {card['training']['steps']:,} gradient steps: that is what was saved, without a return")
        if (arguments.out / TRAINING).is_file():
            print("the same command with --resume in place of --overwrite goes on")
        return 130
    return 0


def do_serve_decoder(arguments: argparse.Namespace) -> int:
    """Serve a decoder until Ctrl-C."""
    from lpds.deploy.decoder_server import DecoderServer

    token = _token(arguments.token_file)
    if arguments.max_mb < 1:
        raise LpdsError(f"--max-mb must be positive, not {arguments.max_mb}")
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
        say=say,
    )
    for number in (signal.SIGINT, signal.SIGTERM):  # also where the parent had SIGINT ignored, as a shell's `&` does
        signal.signal(number, lambda signum, frame: server.stop())
    guard = ", token needed" if token else ""
    print(f"serving {decoder.name} ({decoder.fingerprint[:12]}) on {server.address}{guard}; Ctrl-C ends it", flush=True)
    try:
        server.run()
    finally:
        server.close()
    say("stopped")
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
