"""Which runs are of one task: its name, its environment's name, and where a name may stand for several, what happened in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lpds.report.read import RunData, silent_failed

APART = ", environment "
"""Between a task's name and the number of an environment that it does not share with the first."""


def by_task(runs: Sequence[RunData]) -> dict[str, list[RunData]]:
    """Runs of one task, by its name; one task in two environments is two.

    Factories of environments share names (``<lambda>``, ``partial``). So runs in factories of one name are of one task only
    where the same frozen policy got the same returns in the episodes that both played, or where a run saw that its
    environment ignores seeds, so that no two evaluations are alike. Where no episode is shared, as with two decoders, the name
    is believed (:func:`untold`).
    """
    worlds: dict[str, set[str]] = {}
    for run in runs:
        worlds.setdefault(run.task, set()).add(run.env_name)
    tasks: dict[str, list[RunData]] = {}
    for run in runs:
        name = run.task if len(worlds[run.task]) == 1 else f"{run.task} in {run.env_name}"
        tasks.setdefault(name, []).append(run)
    apart: dict[str, list[RunData]] = {}
    for name, members in tasks.items():
        for number, world in enumerate(_worlds(members), 1):
            apart[name if number == 1 else f"{name}{APART}{number}"] = silent_failed(world)
    return apart


def same_world(one: RunData, other: RunData) -> bool:
    """Whether nothing says that two runs were made in different environments: the frozen policy's episodes agree."""
    a, b = _frozen_returns(one), _frozen_returns(other)
    shared = sorted(a.keys() & b.keys())
    return np.allclose([a[key] for key in shared], [b[key] for key in shared], rtol=1e-3, equal_nan=True)


def alike_frozen(runs: Sequence[RunData]) -> list[list[RunData]]:
    """The runs in as many lists as their frozen policies had outcomes; in one where an environment ignores seeds anyway."""
    ignores = any(run.summary.get("ignores_seed") for run in runs)
    return _parted(runs, lambda run: ignores)


def untold(runs: Sequence[RunData]) -> list[RunData]:
    """Runs of a factory of the first one's name, of which no shared episode tells that its environment is the same."""
    if not runs or runs[0].config.get("env") is not None:
        return []
    first = _frozen_returns(runs[0])
    return [run for run in runs[1:] if first and (other := _frozen_returns(run)) and not first.keys() & other.keys()]


def _worlds(runs: Sequence[RunData]) -> list[list[RunData]]:
    """The runs in as many lists as there are environments among them; one where the environment is known by an id."""
    return _parted(runs, lambda run: run.config.get("env") is not None or run.summary.get("ignores_seed", False))


def _parted(runs: Sequence[RunData], believed: Callable[[RunData], bool]) -> list[list[RunData]]:
    """The runs in lists whose frozen episodes agree throughout; one that is believed is of the first list anyway."""
    lists: list[list[RunData]] = []
    for run in runs:
        known = [made for made in lists if believed(run) or all(same_world(run, other) for other in made)]
        if known:
            known[0].append(run)
        else:
            lists.append([run])
    return lists


def _frozen_returns(run: RunData) -> dict[tuple[str, int, int], float]:
    """By the frozen policy, the evaluation's seed and the episode: what it returned, with all of the noise."""
    decoder = run.config.get("decoder", {})
    name = str(decoder.get("fingerprint") or decoder.get("name"))
    whole = [row for row in run.evaluations if row.get("scale") == 0.0 and row.get("noise_scale", 1.0) == 1.0]
    rows = [row for row in whole if row.get("return") is not None]
    return {(name, int(row["seed"]), int(row["episode"])): float(row["return"]) for row in rows}
