"""Names to ``"module:attribute"`` strings, so that nothing heavy is imported before it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from lpds.errors import unknown_name

METHODS: dict[str, str] = {
    "base": "lpds.methods.base:BaseMethod",
    "golden-ticket": "lpds.methods.golden_ticket:GoldenTicket",
    "best-of-n": "lpds.methods.best_of_n:BestOfN",
    "lpds": "lpds.methods.lpds:LPDS",
    "lpds-a": "lpds.methods.lpds_a:LPDSA",
    "dsrl-na": "lpds.methods.dsrl:DSRLNA",
    "dsrl-sac": "lpds.methods.dsrl:DSRLSAC",
    "dppo": "lpds.methods.dppo:DPPO",
    "idql": "lpds.methods.idql:IDQL",
    "dql": "lpds.methods.dql:DQL",
}
METHOD_SETTINGS: dict[str, str] = {
    "base": "lpds.config:BaseSettings",
    "golden-ticket": "lpds.config:GoldenTicketSettings",
    "best-of-n": "lpds.config:BestOfNSettings",
    "lpds": "lpds.config:LPDSSettings",
    "lpds-a": "lpds.config:LPDSASettings",
    "dsrl-na": "lpds.config:DSRLNASettings",
    "dsrl-sac": "lpds.config:DSRLSACSettings",
    "dppo": "lpds.methods.dppo:DPPOSettings",
    "idql": "lpds.methods.idql:IDQLSettings",
    "dql": "lpds.methods.dql:DQLSettings",
}
DECODER_SCHEMES: dict[str, str] = {
    "dppo": "lpds.decoders.dppo:load_dppo",
    "folder": "lpds.zoo:open_folder",
    "lerobot": "lpds.decoders.lerobot:load_lerobot",
    "python": "lpds.decoders.python:load_python",
    "remote": "lpds.decoders.remote:load_remote",
}
DECODER_FORMS: tuple[str, ...] = ("dppo:PATH", "folder:PATH", "lerobot:PATH", "python:FILE.py:NAME", "remote:ws://HOST:PORT")
"""How references of the schemes are written."""
ENVIRONMENTS: dict[str, str] = {
    "four-mode": "lpds.envs.four_mode:make_four_mode",
    "adroit-pen": "lpds.envs.adroit:make_pen",
    "adroit-hammer": "lpds.envs.adroit:make_hammer",
    "adroit-door": "lpds.envs.adroit:make_door",
    "adroit-relocate": "lpds.envs.adroit:make_relocate",
    "robomimic-lift": "lpds.envs.robosuite:make_lift",
    "robomimic-can": "lpds.envs.robosuite:make_can",
    "robomimic-square": "lpds.envs.robosuite:make_square",
    "robomimic-transport": "lpds.envs.robosuite:make_transport",
}
TASKS: dict[str, str] = {
    "toy": "lpds.tasks:TOY",
    "hopper": "lpds.tasks:HOPPER",
    "walker2d": "lpds.tasks:WALKER2D",
    "halfcheetah": "lpds.tasks:HALFCHEETAH",
    "adroit-pen": "lpds.tasks:ADROIT_PEN",
    "adroit-hammer": "lpds.tasks:ADROIT_HAMMER",
    "adroit-door": "lpds.tasks:ADROIT_DOOR",
    "adroit-relocate": "lpds.tasks:ADROIT_RELOCATE",
    "robomimic-lift": "lpds.tasks:ROBOMIMIC_LIFT",
    "robomimic-can": "lpds.tasks:ROBOMIMIC_CAN",
    "robomimic-square": "lpds.tasks:ROBOMIMIC_SQUARE",
    "robomimic-transport": "lpds.tasks:ROBOMIMIC_TRANSPORT",
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
