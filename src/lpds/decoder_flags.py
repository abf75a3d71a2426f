"""A decoder's options on the command line: one table of how they are offered, what loaders call them, and loading by them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import Any

from lpds.errors import LpdsError
from lpds.registry import DECODER_FILES

FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "normalization": ("--normalization", {"help": "npz of ranges (dppo:)"}),
    "ddim_steps": ("--ddim-steps", {"type": int, "help": "DDIM steps (diffusion)"}),
    "steps": ("--ode-steps", {"type": int, "help": "steps of the ODE solver (flow; lerobot: pi0, pi05, SmolVLA)"}),
    "denoising_steps": ("--denoising-steps", {"type": int, "help": "steps of the training schedule (dppo:)"}),
    "activation": ("--decoder-activation", {"choices": ["relu", "mish"], "help": "of a dppo: network"}),
    "execute": ("--execute", {"type": int, "help": "steps of the decoded chunk to execute (dppo:, lerobot:)"}),
    "flat": (
        "--flat",
        {"action": "store_true", "default": None, "help": "one vector in place of a dict (lerobot: without images)"},
    ),
    "flat_order": (
        "--flat-order",
        {"metavar": "KEY,KEY", "help": "order of the vectors in --flat, where there are several (lerobot:)"},
    ),
    "task": ("--instruction", {"help": "what the robot is told (lerobot: pi0, pi05, SmolVLA)"}),
    "tokenizer": ("--tokenizer", {"help": "folder of the instruction's tokenizer (lerobot:)"}),
    "device": (
        "--decoder-device",
        {"help": "where the policy runs, cuda for instance (lerobot:; default cpu)"},
    ),
    "timeout": ("--timeout", {"type": float, "help": "seconds to wait for an answer (remote:)"}),
    "retries": ("--retries", {"type": int, "help": "attempts to reach a lost server again (remote:)"}),
    "rows_at_once": ("--rows-at-once", {"type": int, "help": "cut larger batches into several requests (remote:)"}),
}
"""By the loaders' name of an option: the flag, and how argparse offers it."""
ELSEWHERE = ("device", "timeout", "retries", "rows_at_once")
"""Options of where a decoder runs and how it is reached; it stays the same decoder."""
SWITCHES = ("flat",)
"""Words that take no value on the command line, and are ``flat=true`` in a grid."""


def word_of(name: str) -> str:
    """A loader's option as the command line and a grid write it."""
    return FLAGS[name][0].removeprefix("--").replace("-", "_")


CHOSEN_AGAIN = (*DECODER_FILES, *ELSEWHERE)
"""Options that a run leaves open: where files are now, and where the decoder runs now."""
MAKES_ANOTHER = {word_of(name): name for name in FLAGS if name not in ELSEWHERE}
"""Words that make another decoder of the same reference, and their loader's names for them."""


def add_decoder_options(parser: argparse.ArgumentParser, names: Iterable[str] = FLAGS) -> None:
    """Offer every option of every kind of decoder, or some."""
    group = parser.add_argument_group("decoder options")
    for flag, offered in (FLAGS[name] for name in names):
        group.add_argument(flag, **offered)


def decoder_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, by the loaders' names."""
    values = vars(arguments)
    options = {name: values.get(word_of(name)) for name in FLAGS}
    return {name: value for name, value in options.items() if value is not None}


def shared_words(arguments: argparse.Namespace) -> dict[str, str]:
    """The decoder, the environment and the decoder's options that were given, as a grid writes them."""
    words = {name: getattr(arguments, name) for name in ("decoder", "env")}
    words |= {word_of(name): value for name, value in decoder_options(arguments).items()}
    return {key: "true" if value is True else str(value) for key, value in words.items() if value is not None}


def chosen_again(run: object, arguments: argparse.Namespace) -> dict[str, Any]:
    """Where a run's decoder runs now, and where its files are, with where itself is.

    Raises:
        LpdsError: an option that makes another decoder, or files and no word of where the decoder is.
    """
    given = decoder_options(arguments)
    other = [FLAGS[name][0] for name in given if name not in CHOSEN_AGAIN]
    if other:
        raise LpdsError(f"{run} is a run, which knows its decoder: {', '.join(other)} cannot be chosen again")
    files = [FLAGS[name][0] for name in given if name in DECODER_FILES]
    if files and arguments.decoder is None:
        flags = ", ".join(files)
        raise LpdsError(f"{run} is a run, which knows its decoder: {flags} needs --decoder, which says where it is now")
    return given


def load_given(reference: str, arguments: argparse.Namespace) -> Any:
    """Load a decoder with the options that were given.

    Raises:
        LpdsError: as :func:`lpds.zoo.load_decoder`, with options by their flags: a loader knows them by other names.
    """
    from lpds.zoo import load_decoder

    options = decoder_options(arguments)
    try:
        return load_decoder(reference, **options)
    except LpdsError as error:
        told = str(error)
        for name in options:
            flag = FLAGS[name][0]
            told = told.replace(f"got an unexpected keyword argument '{name}'", f"takes no {flag}")
            told = re.sub(rf"(?<![\w-]){name} is not an option of", f"{flag} is not an option of", told)
        if told == str(error):
            raise
        raise type(error)(told) from None
