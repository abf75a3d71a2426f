"""Fields of the settings' dataclasses: laid over each other, read, written and explained. Imports nothing heavy."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from lpds.checks import choose
from lpds.errors import LpdsError, unknown_name

S = TypeVar("S")


def override(kind: type[S], *layers: Mapping[str, Any]) -> S:
    """Build settings from layers of differences, the later ones over the earlier.

    Raises:
        LpdsError: a name is no field (the nearest are suggested), or a value is of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            if name not in fields:
                raise unknown_name("setting", name, fields)
            values[name] = _coerce(name, value, str(fields[name].type))
    return kind(**values)


def check_kinds(kind: type[Any], values: Mapping[str, Any]) -> None:
    """Refuse values that are of no kind of their field's; names that are no fields pass, and so does what is out of its range.

    Raises:
        LpdsError: names the first.
    """
    for field in dataclasses.fields(kind):
        if field.name in values:
            value = values[field.name]
            _coerce(field.name, math.inf if value == "inf" else value, str(field.type))


def _coerce(name: str, value: Any, kind: str) -> Any:
    if type(value).__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "shape", ()):
        value = value.item()  # a scalar out of an array is as good as Python's own
    accepted: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    if isinstance(value, bool) != (kind == "bool") or not isinstance(value, accepted[kind]):
        if kind == "int" and isinstance(value, float) and value.is_integer():
            return int(value)
        raise LpdsError(f"{name} must be of type {kind}, not {value!r}")
    return float(value) if kind == "float" else value  # type: ignore[arg-type]


def parse(kinds: Sequence[type[Any]], name: str, word: str) -> Any:
    """A value as the command line writes it, for the first of several kinds of settings that has the field.

    Raises:
        LpdsError: none has it, or the word is no value of its type.
    """
    types = {field.name: str(field.type) for kind in reversed(kinds) for field in dataclasses.fields(kind)}
    if name not in types:
        raise unknown_name("setting", name, types)
    if types[name] == "bool":
        choose(name, word.lower(), ("true", "false"))
        return word.lower() == "true"
    convert: dict[str, Any] = {"int": int, "float": float, "str": str}
    try:
        return convert[types[name]](word)
    except ValueError:
        raise LpdsError(f"{name} must be of type {types[name]}, not {word!r}") from None


def to_json(settings: Any) -> dict[str, Any]:
    """Settings as plain JSON values; infinities become the strings JSON lacks."""
    return {key: _encode(value) for key, value in dataclasses.asdict(settings).items()}


def from_json(kind: type[S], values: Mapping[str, Any]) -> S:
    """Inverse of :func:`to_json`."""
    return override(kind, {key: math.inf if value == "inf" else value for key, value in values.items()})


def of_a_file(kind: type[S], values: Mapping[str, Any], acting: Sequence[str]) -> S:
    """Settings of a policy that another version saved.

    Args:
        kind: what it had not keeps its default, and what ``kind`` has not is left.
        values: what the file says.
        acting: names without which nobody knows how it acted.

    Raises:
        KeyError: one of these is missing.
    """
    names = [*acting, *(field.name for field in dataclasses.fields(kind) if field.name in values)]  # type: ignore[arg-type]
    return kind(**{name: values[name] for name in names})


def _encode(value: Any) -> Any:
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def texts(kind: type[Any]) -> dict[str, str]:
    """What is written below each field in the source of a dataclass and of those it comes from, in one line without markup."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(one):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                line = re.sub(r":\w+:`~?([^`]*)`", r"\1", " ".join(str(text.value.value).split()))
                found[field.target.id] = line.replace("``", "").rstrip(".")
    return found
