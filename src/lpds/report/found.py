"""Files of a run folder as they are found, edited or damaged as they may be: which rows can be read, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lpds.config import BaseSettings, RunSettings
from lpds.errors import LpdsError
from lpds.fields import check_kinds
from lpds.log import read_json_lines
from lpds.registry import METHOD_SETTINGS, resolve
from lpds.report.paired import Row

NAMES = ("kind",)
"""What a row has as text; all else is a figure."""


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse what an edit has broken; a setting that is not known here, or out of its range by now, is another version's."""
    for key in ("run", "settings", "decoder"):
        if not isinstance(config.get(key, {}), dict):
            raise LpdsError(f"{path} is not that of a run: {key} is no dict")
    kinds = {"run": RunSettings, "settings": BaseSettings}
    if config["method"] in METHOD_SETTINGS:
        kinds["settings"] = resolve("method", METHOD_SETTINGS, config["method"])
    for key, kind in kinds.items():
        try:
            check_kinds(kind, config.get(key, {}))
        except LpdsError as error:
            raise LpdsError(f"{path}: {error}") from None


def read_rows(path: Path, whole: Sequence[str], finished: bool) -> tuple[list[Row], int]:
    """Rows of a log that have whole numbers where they must and no text for a figure, and how many lines are none.

    The last line of a run that goes on, or was killed, may be half written, which is no damage.
    """
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.strip()] if path.is_file() else []
    rows = [
        row
        for row in read_json_lines(path)
        if all(type(row.get(key)) is int for key in whole)
        and all(_is_figure(value) for key, value in row.items() if key not in NAMES)
    ]
    half = bool(lines) and not lines[-1].endswith(b"\n") and not finished
    return rows, max(0, len(lines) - len(rows) - half)  # a whole row may lack its line's end, too


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def once(rows: list[Row]) -> list[Row]:
    """One row a step: a run whose budget was enlarged has written the old end's twice, the second without what it learned."""
    merged: dict[Any, Row] = {}
    for row in rows:
        told = {key: value for key, value in row.items() if value is not None}
        merged[row.get("step")] = {**row, **merged.get(row.get("step"), {}), **told}
    return list(merged.values())
