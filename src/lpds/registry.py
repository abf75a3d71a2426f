"""Names to ``"module:attribute"`` strings, so that nothing heavy is imported before it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from lpds.errors import unknown_name

METHODS: dict[str, str] = {
    "base": "lpds.methods.base:BaseMethod",
    "lpds": "lpds.methods.lpds:LPDS",
}
METHOD_SETTINGS: dict[str, str] = {
    "base": "lpds.config:BaseSettings",
    "lpds": "lpds.config:LPDSSettings",
}
DECODER_SCHEMES: dict[str, str] = {
    "dppo": "lpds.decoders.dppo:load_dppo",
    "folder": "lpds.zoo:open_folder",
}
ENVIRONMENTS: dict[str, str] = {
    "four-mode": "lpds.envs.four_mode:make_four_mode",
}
TASKS: dict[str, str] = {
    "toy": "lpds.tasks:TOY",
    "hopper": "lpds.tasks:HOPPER",
    "walker2d": "lpds.tasks:WALKER2D",
    "halfcheetah": "lpds.tasks:HALFCHEETAH",
}


def resolve(kind: str, table: dict[str, str], name: str) -> Any:
    """Import what a name stands for.

    Raises:
        LpdsError: the name is unknown; the nearest ones are suggested.
    """
    if name not in table:
        raise unknown_name(kind, name, table)
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)
