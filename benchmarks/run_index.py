"""Write results/INDEX.md: every committed run, what came of it, and the command that makes it.

    python benchmarks/run_index.py

A row's command is read back from the runs' own ``config.json`` and checked: a grid that is given its words must know the runs.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from lpds.command import changed_words, steer_command
from lpds.commands.terminal import guarded
from lpds.errors import LpdsError
from lpds.grid import Cell, finished_cells, grid_cells
from lpds.report.compare import Row, compare
from lpds.run_folder import read_config

RESULTS = Path("results")
HEAD = """# Every run

Written by `python benchmarks/run_index.py` from the folders beside this page: a row is `results/TASK/RUN/seedN` for the seeds
that it names. The command is read back from the runs' own `config.json` and checked against it. (Several seeds at once, and
whatever is finished left alone: `lpds bench`.) Return and success are the last evaluation's, frozen -> steered, over seeds and
50 episodes (Transport's 20); the difference is from the frozen policy on the same episodes with the same noise, 95 % (of one
seed: for other episodes of that run only). What the runs say is in [README.md](README.md).
"""


def groups(task: Path) -> Iterator[tuple[str, list[Path]]]:
    """Folders of runs below a task's, by name."""
    for folder in sorted(task.iterdir()):
        runs = sorted(folder.glob("seed*"))
        if runs and (runs[0] / "config.json").is_file():
            yield folder.name, runs


def command_of(run: Path) -> str:
    """The command that makes a group's runs, for any seed."""
    config = read_config(run)
    line = steer_command({**config, "run": {**config["run"], "seed": "N"}})
    if line is None:
        raise LpdsError(f"{run}: its decoder or environment was an object, which no command names")
    return line


def cells_of(name: str, runs: list[Path]) -> list[Cell]:
    """A group's cells as its own command has them, under the group's name.

    Raises:
        LpdsError: the folder's name is of another method.
    """
    config = read_config(runs[0])
    method, _, variant = name.partition("+")
    if method != config["method"]:
        raise LpdsError(f"{runs[0]}: {method} is the folder's name, {config['method']} the run's")
    changes = ",".join(f"{key}={value}" for key, value in changed_words(config).items())
    seeds = [int(run.name.removeprefix("seed")) for run in runs]
    cells = grid_cells(
        config["task"], [f"{method}+any:{changes}" if changes else method], 1 + max(seeds), config["run"]["steps"]
    )
    return [Cell(cell.task, cell.method, variant, cell.seed, cell.settings) for cell in cells if cell.seed in seeds]


def row_of(name: str, runs: list[Path]) -> str:
    """One line of a task's table."""
    cells = cells_of(name, runs)
    finished = len(finished_cells(cells, RESULTS)) == len(runs)
    seeds = ", ".join(run.name.removeprefix("seed") for run in runs)
    start = f"| `{name}` | {seeds} | {int(cells[0].settings['steps']):,}{'' if finished else ', stopped'} |"
    end = f"`{command_of(runs[0])}` |"
    if not finished:
        return f"{start} | | | {end}"
    frozen, row = compare(runs).rows
    return f"{start} {returns(frozen, row)} | {gain(row)} | {success(frozen, row)} | {end}"


def returns(frozen: Row, row: Row) -> str:
    """Frozen, then steered: the frozen policy's of these very runs, some of which may be another processor's."""
    before = frozen.mean[0] if row.same or math.isnan(row.difference[0]) else row.mean[0] - row.difference[0]
    digits = 0 if max(abs(before), abs(row.mean[0])) >= 10 else 2
    return f"{before:.{digits}f} -> {row.mean[0]:.{digits}f}"


def gain(row: Row) -> str:
    """The paired difference in return."""
    if row.same:
        return "the same"
    digits = 0 if abs(row.mean[0]) >= 10 else 2
    value, low, high = row.difference
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def success(frozen: Row, row: Row) -> str:
    """Success in per cent and the difference in points, where the task tells it."""
    if math.isnan(row.success[0]):
        return ""
    value, low, high = (100.0 * part for part in row.success_difference)
    return f"{100 * frozen.success[0]:.0f} -> {100 * row.success[0]:.0f} %, {value:+.0f} [{low:+.0f}, {high:+.0f}]"


def page() -> str:
    """All tables."""
    parts = [HEAD]
    for task in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        rows = [row_of(name, runs) for name, runs in groups(task)]
        if rows:
            parts += [f"## {task.name}\n", "| run | seeds | steps | return | difference | success | command |"]
            parts += ["|---" * 7 + "|", *rows, ""]
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    os.chdir(Path(__file__).parents[1])
    (RESULTS / "INDEX.md").write_text(page())


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
