"""What a run folder says, as values: nothing here draws or writes.

A report is asked for at any time, so files may be missing, short or cut off in the middle of a line; only
``config.json`` must be there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lpds.command import steer_command
from lpds.config import RunSettings, delta_to_sum
from lpds.errors import LpdsError
from lpds.fields import to_json
from lpds.files import read_object
from lpds.metrics import quiet_nats
from lpds.presets import NOT_COMPARED
from lpds.registry import METHOD_SETTINGS, resolve
from lpds.report.found import check_config, once, read_rows
from lpds.report.paired import Array, Comparison, Row, numbers, pair
from lpds.run_folder import no_run, runs_in
from lpds.verdict import NOT_THE_SAME, UNTRAINED, against_line, with_noise


@dataclass(frozen=True)
class RunData:
    """One run folder."""

    folder: Path
    config: dict[str, Any]
    passport: dict[str, Any]
    metrics: list[Row]
    episodes: list[Row]
    evaluations: list[Row]
    summary: dict[str, Any]
    notes: tuple[str, ...]
    """What could not be read, in words."""
    decoder: Any = None
    """The run's decoder, where it is at hand; else it is opened by its reference when it is needed."""

    @property
    def task(self) -> str:
        """The preset's name."""
        return str(self.config.get("task", "own"))

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.config.get("method", "?"))

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        return self._setting("seed")

    @property
    def budget(self) -> int | None:
        """Primitive steps asked for."""
        return self._setting("steps")

    @property
    def env_name(self) -> str:
        """What it ran in."""
        return str(self.config.get("env_name"))

    @property
    def steps(self) -> int:
        """Primitive steps done, as far as the files tell."""
        return max((int(row["step"]) for rows in (self.metrics, self.evaluations) for row in rows), default=0)

    @property
    def warmup(self) -> int | None:
        """Primitive steps before the first update."""
        return self._setting("warmup_steps")

    @property
    def latent_size(self) -> int | None:
        """H * L, all latent coordinates."""
        shape = self.passport.get("decoder", {}).get("latent_shape")
        return None if not shape else int(math.prod(shape))

    @property
    def free_size(self) -> int | None:
        """D, the latent coordinates that may be steered; all of them unless the passport lists fewer."""
        decoder = self.passport.get("decoder", {})
        if not decoder.get("latent_shape"):
            return None
        columns = sum(decoder["free"]) if decoder.get("free") else decoder["latent_shape"][1]
        return int(decoder["latent_shape"][0] * columns)

    @property
    def action_size(self) -> int | None:
        """T * A, the coordinates of an executed chunk."""
        shape = self.passport.get("decoder", {}).get("action_shape")
        return None if not shape else int(math.prod(shape))

    @property
    def shifts(self) -> bool:
        """Whether the method has a Delta at all."""
        return self.config.get("settings", {}).get("delta") is not None

    @property
    def shifts_action(self) -> bool:
        """Whether that Delta is on the decoded action, where its size is no divergence."""
        if "shifts" in self.config:
            return bool(self.config["shifts"] == "action")
        # a run from before that was written: of a shifted action no nats are logged, and of one without any noise neither
        sizes, nats = (np.isfinite(self.column(name)[1]).any() for name in ("delta_sq_mean", "kl_nats"))
        return self.shifts and bool(sizes and not nats) and self.config["settings"].get("noise_scale", 1.0) > 0.0

    @property
    def budget_sq(self) -> float | None:
        """The budget delta as a sum over the coordinates that are shifted; ``None`` if nothing holds it, or it is infinite."""
        settings = self.config.get("settings", {})
        unit = settings.get("delta_unit", "sum")
        free = 1 if unit in ("sum", "nats") else self.action_size if self.shifts_action else self.free_size
        if not self.shifts or free is None or settings.get("dual", "adaptive") != "adaptive":
            return None
        budget = delta_to_sum(float(settings["delta"]), unit, free)
        return budget if math.isfinite(budget) else None

    @property
    def budget_grows(self) -> bool:
        """Whether the budget reaches its size only after some updates."""
        return int(self.config.get("settings", {}).get("delta_updates", 0)) > 0

    @property
    def noise_scale(self) -> float:
        """The k of ``w = k eps + Delta(s)`` in what collects and learns; 1 for a method without it."""
        return float(self.config.get("settings", {}).get("noise_scale", 1.0))

    @property
    def evaluated_noise(self) -> float:
        """That in what is evaluated and saved."""
        return self.noise_scale * float(self.config.get("settings", {}).get("eval_noise_scale", 1.0))

    @property
    def acts_by_chain(self) -> bool:
        """Whether the steered policy runs the decoder's whole chain in place of its sampler."""
        settings = self.config.get("settings", {})
        return settings.get("sampler") == "chain" or "sampling_std" in settings

    @property
    def quiet_nats(self) -> float:
        """What k alone costs, D (k^2 / 2 - 1 / 2 - ln k); infinite without any noise."""
        return 0.0 if self.free_size is None else quiet_nats(self.noise_scale, self.free_size)

    def column(self, key: str) -> tuple[Array, Array]:
        """Steps [N] and one metric [N] over all rows; NaN where it is null."""
        return numbers(self.metrics, "step"), numbers(self.metrics, key)

    def comparison(self) -> Comparison | None:
        """The last evaluation, or while a run is under way the latest point of its curve against the first."""
        final = [row for row in self.evaluations if row.get("kind") == "final"]
        found = pair(_at(final, 0.0), _at(final, 1.0), final=True)
        if found is not None:
            return found
        curve = self.curve()
        frozen, steered = _at(curve, 0.0), _at(curve, 1.0)
        if not frozen or not steered:
            return None
        first, last = min(r["step"] for r in frozen), max(r["step"] for r in steered)
        before, after = ([r for r in rows if r["step"] == at] for rows, at in ((frozen, first), (steered, last)))
        return pair(before, after, final=False)

    def curve(self) -> list[Row]:
        """Evaluation episodes of the learning curve."""
        return [row for row in self.evaluations if row.get("kind", "curve") == "curve"]

    def curve_start(self) -> list[Row]:
        """The frozen policy's episodes that the learning curve starts with."""
        frozen = _at(self.curve(), 0.0)
        first = min((row["step"] for row in frozen), default=0)
        return [row for row in frozen if row["step"] == first]

    def frozen_rows(self) -> list[Row]:
        """Evaluation episodes that tell the frozen policy's level: of the last evaluation, else the first of the curve."""
        final = _at([row for row in self.evaluations if row.get("kind") == "final"], 0.0)
        first = min((row["step"] for row in final), default=0)
        return [row for row in final if row["step"] == first] or self.curve_start()

    def verdict(self) -> str:
        """What the records of a finished run say, else what the run said itself, or what its records say so far."""
        said, comparison = self.summary.get("verdict"), self.comparison()
        if comparison is not None and comparison.final and self.summary.get("learned") is not False:
            return comparison.verdict() + self._beside() + (NOT_THE_SAME if self.summary.get("ignores_seed") else "")
        if said:
            return str(said)
        progress = f"{self.steps:,} of {self.budget:,} steps" if self.budget else f"{self.steps:,} steps"
        if comparison is None:
            return f"{progress}: nothing to compare yet"
        return f"not finished ({progress}); on the curve at step {comparison.step:,}: {comparison.verdict()}"

    def command(self) -> str | None:
        """The line that makes the run again; none where only Python can, or where its method or task is not known here."""
        try:
            return steer_command(self.config)
        except (LpdsError, KeyError):  # a page shows what is there, however old or odd
            return None

    def _beside(self) -> str:
        """What the run itself adds: what is left of the difference with as little noise, or over its untrained start."""
        steered, line = _at([row for row in self.evaluations if row.get("kind") == "final"], 1.0), ""
        for kind in ("final quiet", "final start"):
            rows = [row for row in self.evaluations if row.get("kind") == kind]
            found = pair(rows, steered, final=True)
            if found is not None:
                name = UNTRAINED if kind == "final start" else with_noise(float(rows[-1]["noise_scale"]))
                line += against_line(found.frozen["return"], found.steered["return"], name)
        return line

    @property
    def run_settings(self) -> dict[str, Any]:
        """The loop's settings; one from before a setting existed had its default."""
        return {**to_json(RunSettings()), **self.config.get("run", {})}

    @property
    def settings(self) -> dict[str, Any]:
        """The method's settings, likewise."""
        known = resolve("method", METHOD_SETTINGS, self.method) if self.method in METHOD_SETTINGS else None
        return {**(to_json(known()) if known else {}), **self.config.get("settings", {})}

    def group_key(self) -> str:
        """Equal for runs that differ in nothing but their seed."""
        run = {key: value for key, value in self.run_settings.items() if key not in NOT_COMPARED}
        decoder = self.config.get("decoder", {}).get("fingerprint")
        facts = [self.task, self.env_name, self.method, decoder, run, self.settings]
        return json.dumps(facts, sort_keys=True)

    def _setting(self, name: str) -> int | None:
        value = self.config.get("run", {}).get(name)
        return None if value is None else int(value)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed."""

    label: str
    runs: tuple[RunData, ...]


def read_runs(folders: Sequence[Path]) -> list[RunData]:
    """Read run folders, each once, in the order given.

    Raises:
        LpdsError: no folder, or one that holds no run.
    """
    # a grid writes seedN.log beside seedN, which `seed*` matches as well
    named = [Path(folder) for folder in folders if not (Path(folder).suffix == ".log" and Path(folder).is_file())]
    named = [run for folder in named for run in runs_in(folder)]
    distinct = list({folder.resolve(): folder for folder in named}.values())
    if not distinct:
        raise LpdsError("a report needs at least one run folder")
    return [_read_run(folder) for folder in distinct]


def group_runs(runs: Sequence[RunData]) -> list[Group]:
    """Put seeds together; groups of one method are told apart by the settings in which they differ."""
    keyed: dict[str, list[RunData]] = {}
    for run in runs:
        keyed.setdefault(run.group_key(), []).append(run)
    firsts = [members[0] for members in keyed.values()]
    groups: list[Group] = []
    for members in keyed.values():
        run = members[0]
        like = [_flat(other) for other in firsts if (other.task, other.method) == (run.task, run.method)]
        own = _flat(run)
        differing = [key for key in own if any(other.get(key) != own[key] for other in like)]
        # the few that explain it; the rest is in the table of settings
        shown = ", ".join(f"{key} {own[key]}" for key in differing[:3]) + (", ..." if len(differing) > 3 else "")
        # committed evidence and grids keep a run under TASK/METHOD+VARIANT/seedN, where the variant has a name
        variants = {other.folder.resolve().parent.name for other in members}
        named = variants.pop() if len(variants) == 1 else ""
        taken = {group.label for group in groups}
        told = named == run.method or named.startswith(f"{run.method}+")
        begin = named if told else run.method
        label = f"{begin} ({shown})" if shown and not told else begin
        if label in taken:  # say more, and if that is not enough, number them
            every = ", ".join(f"{key} {own[key]}" for key in differing)
            label = f"{begin} ({every})" if every else label
            first = label
            label = next(name for name in (first, *(f"{first} #{n}" for n in range(2, len(keyed) + 2))) if name not in taken)
        groups.append(Group(label, tuple(members)))
    return groups


def evaluation_points(run: RunData, what: str) -> list[tuple[int, Array]]:
    """Points of the learning curve: (step, [E] values), in the order of steps; points without a value are left out."""
    points: dict[int, dict[Any, Row]] = {}
    for row in run.curve():  # a run whose budget was enlarged has played the old end's episodes twice
        points.setdefault(int(row["step"]), {})[row.get("seed"), row.get("episode")] = row
    found = [(step, numbers(list(points[step].values()), what)) for step in sorted(points)]
    return [(step, values) for step, values in found if not np.isnan(values).all()]


def _read_run(folder: Path) -> RunData:
    try:
        config = read_object(folder / "config.json", "a run", {"method": str})
    except (FileNotFoundError, NotADirectoryError):
        raise no_run(folder) from None
    check_config(folder / "config.json", config)
    notes = []
    extra: dict[str, dict[str, Any]] = {}
    for name in ("passport.json", "summary.json"):
        extra[name] = {}
        if (folder / name).is_file():
            try:
                extra[name] = read_object(folder / name, "a run")
                if not isinstance(extra[name].get("decoder", {}), dict):
                    raise LpdsError("decoder is no dict")
            except LpdsError:
                extra[name] = {}
                notes.append(f"{name} cannot be read")
    rows: dict[str, list[Row]] = {}
    for name, whole in (("metrics", ("step",)), ("episodes", ("step",)), ("eval", ("step", "seed", "episode"))):
        rows[name], left_out = read_rows(folder / f"{name}.jsonl", whole, bool(extra["summary.json"]))
        if not rows[name] and not left_out:
            notes.append(f"{name}.jsonl is missing or empty")
        if left_out:
            notes.append(f"{name}.jsonl is damaged: {left_out:,} of its {len(rows[name]) + left_out:,} lines cannot be read")
    run = RunData(
        folder,
        config,
        extra["passport.json"],
        once(rows["metrics"]),
        rows["episodes"],
        rows["eval"],
        extra["summary.json"],
        tuple(notes),
    )
    return silent_failed([run])[0]


def silent_failed(runs: Sequence[RunData]) -> list[RunData]:
    """Runs of one task, whose evaluation episodes without a word of success failed if any episode of any of them names one.

    There are environments whose info names success only where there is one (:func:`lpds.evaluation.silence_is_failure`).
    """
    if all(row.get("success") is None for run in runs for row in [*run.evaluations, *run.episodes]):
        return list(runs)

    def told(row: Row) -> Row:
        return {**row, **{key: 0.0 for key in ("success", "success_at_end") if row.get(key) is None}}

    return [replace(run, evaluations=[told(row) for row in run.evaluations]) for run in runs]


def _at(rows: list[Row], scale: float) -> list[Row]:
    return [row for row in rows if row.get("scale") == scale]


def _flat(run: RunData) -> dict[str, Any]:
    """Everything in which two runs of one task and method may differ but their seed."""
    settings = {**run.settings, **run.run_settings}
    decoder = run.config.get("decoder", {})
    named = {"decoder": decoder.get("name"), "fingerprint": str(decoder.get("fingerprint"))[:8]}
    return {key: value for key, value in {**named, **settings}.items() if key not in NOT_COMPARED}
