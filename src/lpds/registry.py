"""Names to ``"module:attribute"`` strings, so that nothing heavy is imported before it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from lpds.errors import LpdsError, unknown_name

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
    "dppo": "lpds.chain_config:DPPOSettings",
    "idql": "lpds.chain_config:IDQLSettings",
    "dql": "lpds.chain_config:DQLSettings",
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
DECODER_FILES: tuple[str, ...] = ("normalization", "tokenizer")
"""Options that are places of files, which may move as the decoder itself may."""
_ENVIRONMENTS: dict[str, str] = {
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
_TASKS: dict[str, str] = {
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
    "libero-90:57": "lpds.tasks:libero_90",
}


class Table(dict[str, str]):
    """Names, and families ``STEM:0`` to ``STEM:COUNT-1``, whose members need not be spelt out.

    Iterating gives what is spelt out; any member is ``in`` the table. A family's string is called with the number.
    """

    def __init__(self, names: dict[str, str], families: dict[str, tuple[str, int]]) -> None:
        """Hold the names, and the string and the count of every family by its stem."""
        super().__init__(names)
        self.families = families

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and self.number(name) is not None)

    def number(self, name: str) -> int | None:
        """Which member of its family a name is; None for any other name."""
        stem, _, number = name.partition(":")
        members = [str(member) for member in range(self.families[stem][1])] if stem in self.families else []
        return members.index(number) if number in members else None


ENVIRONMENTS = Table(
    _ENVIRONMENTS,
    {"libero-90": ("lpds.envs.libero:maker", 90), "libero-90-cameras": ("lpds.envs.libero:camera_maker", 90)},
)
TASKS = Table(_TASKS, {"libero-90": ("lpds.tasks:libero_90", 90)})
EXTRAS: dict[str, tuple[str, str]] = {
    "lpds.envs.adroit": ("gymnasium_robotics", "adroit"),
    "lpds.envs.robosuite": ("robosuite", "robosuite"),
    "lpds.envs.libero": ("libero", "libero"),
}
"""By an environment's module: the package that it needs, and the extra that brings it."""


def resolve(kind: str, table: dict[str, str], name: str) -> Any:
    """Import what a name stands for.

    Raises:
        LpdsError: the name is unknown; the nearest ones are suggested.
    """
    if not isinstance(name, str):
        raise LpdsError(f"{kind} is a {type(name).__name__}, not a name (choices: {', '.join(table)})")
    stem = name.partition(":")[0]
    if isinstance(table, Table) and stem in table.families:
        number, (place, count) = table.number(name), table.families[stem]
        if number is None:
            raise LpdsError(f"unknown {kind} {name!r}: {stem}:N has N from 0 to {count - 1}")
        return _imported(place)(number)
    if name not in table:
        raise unknown_name(kind, name, table)
    return _imported(table[name])


def _imported(place: str) -> Any:
    module, attribute = place.split(":")
    return getattr(importlib.import_module(module), attribute)
