"""The command line that makes a run again, read back from its ``config.json``. Imports nothing heavy."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from lpds.decoder_flags import FLAGS, SWITCHES, word_of
from lpds.fields import to_json
from lpds.presets import OWN, kept_settings, resolve_preset, resolve_settings, resolve_task

USUAL_METHOD = "lpds"
"""What steers where no method is named."""


def changed_words(config: Mapping[str, Any]) -> dict[str, str]:
    """What a run has other than its task's preset, as words of the command line (a variant of a grid).

    Args:
        config: what its ``config.json`` holds.

    Returns:
        By word, its value; ``seed`` and ``steps`` are left out.

    Raises:
        LpdsError: task, method, preset or a setting are not known here.
    """
    task = None if config["task"] == OWN else config["task"]
    kept = config["decoder"]
    chosen = resolve_task(task, kept.get("reference"), config["env"])
    named = resolve_preset(config.get("preset"), config["method"], task)
    words: dict[str, Any] = {"preset": config["preset"]} if config.get("preset") else {}
    if kept.get("reference") != named.decoders.get(chosen.name, chosen.decoder):
        words["decoder"] = kept.get("reference")
    if config["env"] != chosen.env:
        words["env"] = config["env"]
    # a switch that is off is left out, as it was when the decoder was first named
    words |= {word_of(name): value for name, value in kept.get("options", {}).items() if value is not False}
    run, method = resolve_settings(chosen, config["method"], {}, named)
    usual, found = {**to_json(run), **to_json(method)}, kept_settings(config)
    changed = {key: found[key] for key in usual if found[key] != usual[key]}
    if "delta_unit" in changed:
        changed["delta"] = found["delta"]  # a number means nothing in another unit
    words |= {key: value for key, value in changed.items() if key not in ("seed", "steps")}
    return {key: _spelled(value) for key, value in words.items()}


def steer_command(config: Mapping[str, Any]) -> str | None:
    """The command that makes a run again, without the place of its folder.

    Args:
        config: what its ``config.json`` holds.

    Returns:
        The line for a shell; ``None`` where decoder or environment were objects, or the decoder has an option without a flag,
        which only Python can give again.

    Raises:
        LpdsError: as :func:`changed_words`.
    """
    kept = config["decoder"]
    if config["env"] is None or kept.get("reference") is None or kept.get("options", {}).keys() - FLAGS.keys():
        return None
    words = ["lpds", "steer", *([] if config["task"] == OWN else [config["task"]])]
    words += [] if config["method"] == USUAL_METHOD else ["--method", config["method"]]
    words += ["--seed", str(config["run"]["seed"]), "--steps", str(config["run"]["steps"])]
    for key, value in changed_words(config).items():
        flag = f"--{key.replace('_', '-')}"
        # as one word where the value begins with a minus, which would be taken for a flag
        words += [flag] if key in SWITCHES else [f"{flag}={value}"] if value.startswith("-") else [flag, value]
    return shlex.join(words)


def _spelled(value: Any) -> str:
    """A value as the command line reads it, to the bit."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
