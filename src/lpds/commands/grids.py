"""Commands about many runs: bench, reproduce."""

from __future__ import annotations

import argparse
import gc
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lpds.commands.terminal import as_interrupt, say, show_comparison
from lpds.decoder_flags import load_given, shared_words
from lpds.errors import LpdsError

if TYPE_CHECKING:
    from lpds.grid import Cell

OF_A_GRID = ("methods", "seeds", "steps", "jobs", "out", "evidence")
"""Options of ``lpds bench`` that its measurement of the learner has no use for."""


def do_bench(arguments: argparse.Namespace) -> int:
    """Measure speed, or run a grid and compare."""
    import json

    if arguments.what != "learner":
        return _grid(arguments)
    if shared_words(arguments):
        raise LpdsError("bench learner measures decoders of its own: --decoder, --env and a decoder's options cannot be chosen")
    if given := _chosen(arguments, OF_A_GRID):
        raise LpdsError(f"bench learner runs no grid: {', '.join(given)} cannot be chosen")
    from lpds.bench import bench_learner, bench_table

    result = bench_learner(rounds=arguments.rounds)
    print(json.dumps(result) if arguments.json else bench_table(result))
    return 0


def _chosen(arguments: argparse.Namespace, names: Iterable[str]) -> list[str]:
    return [f"--{name}" for name in names if getattr(arguments, name) != arguments.defaults[name]]


def _grid(arguments: argparse.Namespace) -> int:

    from lpds import remarks
    from lpds.api import check_env
    from lpds.grid import check_methods, grid_cells, run_grid, too_short
    from lpds.presets import resolve_task
    from lpds.registry import TASKS

    if _chosen(arguments, ["rounds"]):
        raise LpdsError("--rounds is for bench learner: a grid measures no speed")
    signal.signal(signal.SIGTERM, as_interrupt)  # the runs are told to save, as after Ctrl-C
    decoder = None
    env = arguments.env or (resolve_task(arguments.what, None, None).env if arguments.what in TASKS else None)
    if arguments.decoder is not None and env is not None:  # told once, and not by every run of the grid
        decoder = load_given(arguments.decoder, arguments)
        check_env(env, decoder)
        for line in remarks.of_decoder(decoder):
            say(line)
    cells = grid_cells(arguments.what, arguments.methods, arguments.seeds, arguments.steps, shared_words(arguments))
    if decoder is not None:
        check_methods(cells, str(arguments.decoder), decoder)
        del decoder  # every run opens its own, and a GPU may not hold two
        _free_gpu()
    out = arguments.out or Path("runs") / f"bench-{arguments.what}"
    _check_environments(cells, out)
    for line in too_short(cells):
        say(line)
    finished = run_grid(cells, out, jobs=arguments.jobs, evidence=arguments.evidence, say=say)
    if finished:
        from lpds.report.compare import compare

        show_comparison(compare(finished), as_json=arguments.json)
        _write_page(finished, out)
    return 0 if len(finished) == len(cells) else 1


def _check_environments(cells: Sequence[Cell], out: Path) -> None:
    """Make the environment of every task that has a run left, once: a missing extra would be told by each of the runs.

    Raises:
        LpdsError: one that cannot be made, with its task's name.
    """
    from lpds.envs.build import make_env
    from lpds.grid import finished_cells
    from lpds.presets import resolve_task

    finished = {cell.path for cell in finished_cells(cells, out)}
    left = [cell for cell in cells if cell.path not in finished]
    # where env is chosen all tasks have that one; of a policy of one's own it is
    needed = {cell.settings.get("env") or resolve_task(cell.task, None, None).env: cell.task for cell in left}
    for env, task in needed.items():
        try:
            make_env(env, 1, 1).close()
        except LpdsError as error:
            raise LpdsError(f"no run of {task} is begun: {error}") from None


def _free_gpu() -> None:
    """Hand back what nothing refers to any more."""
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _write_page(runs: list[Path], out: Path) -> None:
    """One page of all runs. A grid without one is as good, so what went wrong is said and no more."""
    from lpds.errors import one_line
    from lpds.report import write_report

    try:
        say(f"report: {write_report(runs, out / 'report.html')}")
    except Exception as error:  # a drawing must not cost a grid its comparison
        say(f"no report: {one_line(error)}")


def do_reproduce(arguments: argparse.Namespace) -> int:
    """Make one of the paper's figures."""
    from lpds.errors import LpdsError
    from lpds.reproduce import reproduce, reproduce_toy

    signal.signal(signal.SIGTERM, as_interrupt)
    out = arguments.out or Path("results") / f"reproduce-{arguments.figure}"
    if arguments.figure == "toy":
        given = [f"--{name}" for name in ("steps", "runs") if getattr(arguments, name) is not None]
        if given or arguments.jobs != 1:
            raise LpdsError(
                f"the toy's runs have their own budget and place: {', '.join(given or ['--jobs'])} cannot be chosen"
            )
        print(reproduce_toy(out, seeds=arguments.seeds, may_run=not arguments.no_run, say=say))
        return 0
    grid = {"seeds": arguments.seeds, "steps": arguments.steps, "jobs": arguments.jobs, "runs": arguments.runs}
    grid["run"] = not arguments.no_run
    print(reproduce(arguments.figure, out, **grid, say=say))
    return 0
