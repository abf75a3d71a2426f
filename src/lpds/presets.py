"""A task, a method's named preset, and the settings that come of laying them over the defaults. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lpds.config import DELTA_UNITS, Preset, RunSettings, Task
from lpds.errors import LpdsError, unknown_name
from lpds.fields import override, to_json
from lpds.registry import METHOD_SETTINGS, TASKS, resolve

OWN = "own"
"""In a task's place: a policy of one's own, of which decoder and environment are both given."""

NOT_COMPARED = ("seed", "device", "threads", "checkpoint_every", "log_every", "eval_envs")
"""Run settings on which no figure hangs but by the draw: in them runs of one group may differ."""


def resolve_task(task: str | None, decoder: Any, env: Any) -> Task:
    """Find the preset, or make a nameless one for an own decoder and environment.

    Raises:
        LpdsError: an unknown task, or neither a task nor both of the others.
    """
    if task is not None:
        preset: Task = resolve("task", TASKS, task)
        return preset
    if decoder is None or env is None:
        raise LpdsError(f"steer needs a task ({', '.join(TASKS)}), or both decoder= and env=")
    return Task(OWN, env="", decoder="")


def resolve_preset(name: str | None, method: str, task: str | None = None) -> Preset:
    """Find a method's named settings for a task; nothing for ``None``.

    Raises:
        LpdsError: the method has no such preset, or it is not known for the task.
    """
    if name is None:
        return Preset()
    from lpds.tasks import PRESETS

    if name not in PRESETS.get(method, {}):
        raise unknown_name(f"preset of {method}", name, PRESETS.get(method, {}))
    named = PRESETS[method][name]
    if named.tasks and task not in named.tasks:
        raise LpdsError(
            f"preset {name} of {method} is not known for {task or 'an own policy'}, only for: {', '.join(named.tasks)}"
        )
    return named


def resolve_settings(
    preset: Task, method: str, changes: dict[str, Any], named: Preset | None = None
) -> tuple[RunSettings, Any]:
    """Lay the caller's changes over a named preset's over the task's over the defaults, for the run and for the method.

    What a method asks of the loop (``run_defaults``: its released updates and batches) stands over the task's, which are of
    LP-DS.

    Raises:
        LpdsError: a name that neither knows, or a value that is refused.
    """
    kind = resolve("method", METHOD_SETTINGS, method)
    run_names = {field.name for field in fields(RunSettings)}
    method_names = {field.name for field in fields(kind)}
    for_run = {key: value for key, value in changes.items() if key in run_names}
    for_method = {key: value for key, value in changes.items() if key not in run_names}
    unknown = set(for_method) - method_names
    if unknown:
        raise unknown_name("setting", min(unknown), run_names | method_names)
    shared = {key: value for key, value in preset.method.get("*", {}).items() if key in method_names}
    named = named or Preset()
    own = {**preset.method.get(method, {}), **named.method_of(preset.name)}
    before = override(kind, shared, own)
    unit = for_method.get("delta_unit")
    if unit in DELTA_UNITS and "delta" not in for_method and unit != before.delta_unit:
        raise LpdsError(
            f"delta_unit {unit} without a delta would read the {before.delta:g} ({before.delta_unit}) of "
            f"{preset.name or 'the defaults'} in another unit: give both"
        )
    return override(RunSettings, preset.run, getattr(kind, "run_defaults", {}), named.run_of(preset.name), for_run), override(
        kind, shared, own, for_method
    )


def kept_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a run's ``config.json``, of loop and method; one that is younger than the run had its default."""
    kind = resolve("method", METHOD_SETTINGS, config["method"])
    return {**to_json(RunSettings()), **to_json(kind()), **config["run"], **config["settings"]}
