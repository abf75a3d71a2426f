"""Grids of runs: tasks, methods and seeds, several processes, restartable."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lpds.config import Preset, RunSettings, Task
from lpds.decoder_flags import ELSEWHERE, MAKES_ANOTHER, SWITCHES, word_of
from lpds.errors import LpdsError, unknown_name
from lpds.evidence import copy_evidence, demos_as_kept
from lpds.fields import parse
from lpds.files import locked
from lpds.presets import NOT_COMPARED, OWN, kept_settings, resolve_preset, resolve_settings, resolve_task
from lpds.registry import DECODER_FILES, METHOD_SETTINGS, METHODS, TASKS, resolve

SUITES: dict[str, tuple[str, ...]] = {"gym": ("hopper", "walker2d", "halfcheetah")}
NO_SETTINGS = ("preset", "decoder", "env", *map(word_of, ELSEWHERE), *MAKES_ANOTHER)
"""Words of the command line that are no fields of the settings."""
PR_SET_PDEATHSIG = 1
PATIENCE = 20.0
"""Seconds until a run that another process has under way is looked at again."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    task: str
    method: str
    variant: str
    """Name of a set of changed settings; empty for the default."""
    seed: int
    settings: Mapping[str, str] = field(default_factory=dict)
    """Changes as words of the command line."""

    @property
    def path(self) -> Path:
        """Its folder inside the grid's: TASK/METHOD[+VARIANT]/seedN."""
        name = self.method + (f"+{self.variant}" if self.variant else "")
        return Path(self.task.replace(":", "-")) / name / f"seed{self.seed}"


def grid_cells(
    suite: str, methods: Sequence[str], seeds: int, steps: int | None = None, shared: Mapping[str, str] | None = None
) -> list[Cell]:
    """Every combination, seed by seed, so that a grid that is stopped early has all methods of the first seed.

    Args:
        suite: a suite, a task, or tasks with commas between them; ``own`` for a policy of one's own, which ``shared`` names.
        methods: ``METHOD`` or ``METHOD+NAME:key=value,key=value``.
        seeds: 0, 1, ... of every cell.
        steps: primitive steps of a run; the preset's by default.
        shared: settings of every cell as words of the command line (decoder, env and the decoder's options); a method's own
            go before them, and its own decoder does not have the shared one's options.

    Returns:
        The cells.

    Raises:
        LpdsError: a name that nobody knows, a variant without a name or with another's, or no seed.
    """
    if seeds < 1:
        raise LpdsError(f"seeds must be at least 1, not {seeds}")
    tasks = [task for word in suite.split(",") for task in SUITES.get(word, (word,))]
    for task in tasks:
        if task not in TASKS and task != OWN:
            raise unknown_name("suite or task", task, [*SUITES, *TASKS, OWN])
    given = {**({} if steps is None else {"steps": str(steps)}), **(shared or {})}
    if OWN in tasks and not {"decoder", "env"} <= given.keys():
        raise LpdsError(f"{OWN} is a policy of your own: say which, and where it acts (--decoder REF --env ID)")
    parsed = [_parse(word) for word in methods]
    cells = [
        Cell(task, method, variant, seed, {**_fitting(given, changes), **changes})
        for seed in range(seeds)
        for task in tasks
        for method, variant, changes in parsed
    ]
    for path, count in Counter(cell.path for cell in cells).items():
        if count > 1:
            raise LpdsError(f"{path} is asked for {count} times: every variant of a method needs a name of its own")
    for cell in cells:
        _resolved(cell)  # what does not fit is refused before the first run
    return cells


def check_methods(cells: Sequence[Cell], reference: str, decoder: Any) -> None:
    """Refuse a grid of which a method cannot work with the decoder that its cells share, opened from ``reference``.

    Raises:
        LpdsError: what :func:`lpds.session.build_learner` refuses, with the cell's name.
    """
    import torch

    from lpds.session import build_learner

    first = min((cell.seed for cell in cells), default=0)
    for cell in cells:
        *_, run, settings = _resolved(cell)
        if cell.seed == first and cell.settings.get("decoder") == reference:
            try:
                build_learner(run, cell.method, settings, decoder, torch.device("cpu"))
            except LpdsError as error:
                raise LpdsError(f"{cell.path.parent}: {error}") from None


def too_short(cells: Sequence[Cell]) -> list[str]:
    """Warnings about runs whose warm-up takes all of their budget, one a method, ahead of the first run."""
    words = "WARNING: {}: the warm-up of {:,} steps takes the whole budget of {:,}, so nothing will be learned"
    waits = [cell for cell in cells if "warmup_steps" not in resolve("method", METHODS, cell.method).ignores]
    runs = {cell.path.parent: _resolved(cell)[2] for cell in waits}
    return [words.format(path, run.warmup_steps, run.steps) for path, run in runs.items() if run.warmup_steps > run.steps]


def _fitting(given: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    """The shared words less those of the shared decoder's options, where a variant has a decoder of its own."""
    own = "decoder" in changes
    return {key: value for key, value in given.items() if not (own and key in MAKES_ANOTHER)}


def _parse(word: str) -> tuple[str, str, dict[str, str]]:
    name, _, settings = word.partition(":")
    method, _, variant = name.partition("+")
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    changes = dict(pair.partition("=")[::2] for pair in re.split(r",(?=\w+=)", settings) if pair)  # a value may hold commas
    if bool(changes) != bool(variant):
        raise LpdsError(f"{word!r}: changed settings need a name and a name needs settings, as in lpds+free:dual=off")
    if variant and not re.fullmatch(r"[\w.+-]+", variant):
        raise LpdsError(f"{word!r}: {variant!r} is a folder's name, of letters, digits, '.', '_', '-' and '+'")
    if "" in changes or "" in changes.values():
        raise LpdsError(f"{word!r}: settings are key=value with commas between them")
    known = {field.name for kind in (RunSettings, resolve("method", METHOD_SETTINGS, method)) for field in fields(kind)}
    for key in changes:
        if key == "seed":
            raise LpdsError(f"{word!r}: a grid's seeds are 0, 1 ... of every cell (--seeds)")
        if key not in known and key not in NO_SETTINGS:
            raise unknown_name(f"setting of {method}", key, known | set(NO_SETTINGS))
    for switch in SWITCHES:
        if changes.get(switch, "true") != "true":
            raise LpdsError(f"{word!r}: {switch} is either left out or true")
    return method, variant, changes


def run_grid(
    cells: Sequence[Cell],
    out: Path,
    *,
    jobs: int = 1,
    evidence: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Run what is not finished yet; what was begun is resumed, and nothing is run twice.

    Args:
        cells: the grid.
        out: root of the run folders.
        jobs: processes at a time, of one thread each.
        evidence: where finished runs are copied to without their checkpoints.
        say: takes one line of progress at a time.

    Returns:
        The finished run folders, in the order of the cells.

    Raises:
        LpdsError: not at least one job, a run folder with other settings than its cell, or evidence that would be copied
            onto the runs themselves. A run that fails is told and left; the others go on.
    """
    if jobs < 1:
        raise LpdsError(f"jobs must be at least 1, not {jobs}")
    if evidence is not None and evidence.resolve() == out.resolve():
        raise LpdsError(f"the evidence of {out} cannot be copied onto the runs themselves: choose another folder")
    cells = [_with_budget(cell) for cell in cells]
    for cell in cells:
        _check_settings(cell, out)
        _check_growth(cell, out)
        if evidence is not None:
            _check_settings(cell, evidence)
            if (kept := budget_of(evidence / cell.path)) > max(int(cell.settings["steps"]), budget_of(out / cell.path)):
                raise LpdsError(
                    f"{evidence / cell.path} holds a run of {kept:,} steps, which one of {int(cell.settings['steps']):,} would "
                    "replace: choose another --evidence, or as many --steps"
                )
        if (had := budget_of(out / cell.path)) > int(cell.settings["steps"]):
            say(f"{cell.path}: has {had:,} steps, more than the {int(cell.settings['steps']):,} asked for")
    waiting = [cell for cell in cells if not _done(cell, out)]
    say(f"{len(cells)} runs, {len(cells) - len(waiting)} finished before")
    running: list[tuple[Cell, subprocess.Popen[bytes], float]] = []
    warned: set[str] = set()
    not_before: dict[Path, float] = {}
    """When to look again at a run that another grid on the same folder has under way."""
    try:
        while waiting or running:
            waiting = [cell for cell in waiting if not _done(cell, out)]  # another grid was there first
            ready = [cell for cell in waiting if time.monotonic() >= not_before.get(cell.path, 0.0)]
            for cell in ready[: jobs - len(running)]:
                waiting.remove(cell)
                running.append((cell, _start(cell, out), time.monotonic()))
            time.sleep(0.1)
            for entry in [entry for entry in running if entry[1].poll() is not None]:
                running.remove(entry)
                cell, process, began = entry
                minutes, path = (time.monotonic() - began) / 60, cell.path
                if not _done(cell, out) and _in_use(out / path):
                    if path not in not_before:
                        say(f"{path}: under way in another process; waiting for it")
                    not_before[path] = time.monotonic() + PATIENCE
                    waiting.append(cell)
                    continue
                word = "finished" if _done(cell, out) else f"FAILED with code {process.returncode} ({_last_words(out / path)})"
                say(f"{path}: {word} after {minutes:.1f} min; {len(waiting) + len(running)} to go")
                for line in dict.fromkeys(_lines(out / path)):  # the same decoder warns in every run: once is enough
                    if line.startswith("WARNING") and line not in warned:
                        warned.add(line)
                        say(f"{path}: {line}")
    finally:
        told = hasattr(signal, "CTRL_C_EVENT") and sys.exc_info()[0] is KeyboardInterrupt  # Windows has told them by itself
        for _, process, _ in running if not told else ():  # each saves its state, as after Ctrl-C
            process.terminate() if hasattr(signal, "CTRL_C_EVENT") else process.send_signal(signal.SIGINT)
        for _, process, _ in running:
            process.wait()
    finished = [cell for cell in cells if _done(cell, out)]
    if evidence is not None:
        for cell in finished:
            copy_evidence(out / cell.path, evidence / cell.path)
    return [out / cell.path for cell in finished]


def finished_cells(cells: Sequence[Cell], out: Path) -> list[Cell]:
    """Which of a grid's cells are finished in a folder; nothing is run.

    Raises:
        LpdsError: a run folder with other settings than its cell.
    """
    for cell in cells:
        _check_settings(cell, out)
    return [cell for cell in map(_with_budget, cells) if _done(cell, out)]


def budget_of(folder: Path) -> int:
    """Primitive steps asked for of the run in a folder; 0 where there is none."""
    if not (folder / "config.json").is_file():
        return 0
    return int(json.loads((folder / "config.json").read_bytes())["run"]["steps"])


def _check_settings(cell: Cell, out: Path) -> None:
    """Refuse a run folder that was made with other settings: its figures would be told under this cell's name."""
    from lpds.fields import to_json
    from lpds.run_folder import read_config
    from lpds.session import at_home

    folder = out / cell.path
    if not (folder / "config.json").is_file():
        return
    config = read_config(folder)
    task, named, run, method = _resolved(cell)
    run = at_home(run)
    decoder = cell.settings.get("decoder", named.decoders.get(task.name, task.decoder))
    asked = {"task": cell.task, "method": cell.method, "decoder": decoder, **to_json(run), **to_json(method)}
    asked |= {"seed": cell.seed, "env": cell.settings.get("env", task.env)}
    found = {**config, **kept_settings(config), "decoder": config["decoder"].get("reference")}
    options = {key: str(value) for key, value in config["decoder"].get("options", {}).items()}
    for word, name in MAKES_ANOTHER.items():
        if word in cell.settings or name in options:
            asked[word], found[word] = _option(word, cell.settings.get(word)), options.get(name)
    passing = {"steps", *NOT_COMPARED} - {"seed"}  # a larger budget is gone on to
    if _place(decoder) == _place(found["decoder"]):  # a path may be written in several ways
        passing.add("decoder")
    if run.demos and str(found["demos"]) == demos_as_kept(run.demos):  # evidence
        passing.add("demos")
    wrong = [key for key, value in asked.items() if key not in passing and found[key] != value]
    if wrong:
        said = ", ".join(f"{key} {found[key]} in place of {asked[key]}" for key in wrong[:3])
        raise LpdsError(
            f"{folder} is a run with other settings ({said}): choose another --out, or another name for the variant"
        )


def _check_growth(cell: Cell, out: Path) -> None:
    """Refuse a larger budget of a method that divided the smaller one, before it is refused after hours of other runs."""
    had, steps = budget_of(out / cell.path), int(cell.settings["steps"])
    if resolve("method", METHODS, cell.method).divides_budget and 0 < had < steps:
        raise LpdsError(
            f"{out / cell.path} has {had:,} steps, which {cell.method} divided into phases, so {steps:,} are another search: "
            "choose another --out, or another name for the variant"
        )


def _place(reference: str | None) -> str | None:
    """A reference to a decoder with the path in it written from the root, where there is one."""
    from lpds.decoders.store import WEIGHTS
    from lpds.zoo import names

    if reference is not None and ":" not in reference and reference not in names() and (Path(reference) / WEIGHTS).is_file():
        return f"folder:{Path(reference).resolve()}"
    scheme, colon, place = str(reference).partition(":")
    path, further, name = place.partition(":")  # python:FILE:NAME
    return f"{scheme}:{Path(path).resolve()}{further}{name}" if colon and Path(path).exists() else reference


def _resolved(cell: Cell) -> tuple[Task, Preset, RunSettings, Any]:
    """A cell's task, its named preset, and the settings of its loop and its method."""
    place = None if cell.task == OWN else cell.task
    named = resolve_preset(cell.settings.get("preset"), cell.method, place)
    task = resolve_task(place, cell.settings.get("decoder"), cell.settings.get("env"))
    kinds = (RunSettings, resolve("method", METHOD_SETTINGS, cell.method))
    changes = {key: parse(kinds, key, word) for key, word in cell.settings.items() if key not in NO_SETTINGS}
    return task, named, *resolve_settings(task, cell.method, changes, named)


def _option(word: str, value: str | None) -> str | None:
    """A decoder option as a run folder has it."""
    if value is None:
        return None
    return (
        "True" if word in SWITCHES else str(Path(value).resolve()) if word in DECODER_FILES and Path(value).exists() else value
    )


def _done(cell: Cell, out: Path) -> bool:
    folder = out / cell.path
    if not (folder / "summary.json").is_file():
        return False
    return budget_of(folder) >= int(cell.settings["steps"])


def _in_use(folder: Path) -> bool:
    """Whether another process holds a run."""
    if not folder.is_dir():
        return False
    try:
        with locked(folder):
            return False
    except LpdsError:
        return True


def _with_budget(cell: Cell) -> Cell:
    """The cell with its budget said, which the preset may have left unsaid."""
    if "steps" in cell.settings:
        return cell
    _, _, run, _ = _resolved(cell)
    return replace(cell, settings={**cell.settings, "steps": str(run.steps)})


def _last_words(folder: Path) -> str:
    return f"{(_lines(folder) or ['it said nothing'])[-1]}; see {folder}.log"


def _lines(folder: Path) -> list[str]:
    """What a run said."""
    return Path(f"{folder}.log").read_text(errors="replace").strip().splitlines()


def _start(cell: Cell, out: Path) -> subprocess.Popen[bytes]:
    folder = out / cell.path
    if (folder / "config.json").is_file():
        words = ["resume", str(folder), "--steps", str(max(int(cell.settings["steps"]), budget_of(folder)))]
    else:
        words = [
            "steer",
            *([] if cell.task == OWN else [cell.task]),
            "--method",
            cell.method,
            "--seed",
            str(cell.seed),
            "--out",
            str(folder),
        ]
        for key, value in cell.settings.items():
            word = f"--{key.replace('_', '-')}"
            words.append(word if key in SWITCHES else f"{word}={value}")  # as one word: a value may begin with a minus
    folder.parent.mkdir(parents=True, exist_ok=True)
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(f"{folder}.log", "ab") as log:
        # in a session of its own, so that a Ctrl-C reaches it once, from here; and told to save when this process is killed
        return subprocess.Popen(
            [sys.executable, "-m", "lpds", *words],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - no threads here
        )


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
