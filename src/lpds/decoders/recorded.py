"""A decoder that a run or a policy recorded, found again: by its reference, from where it was then or is now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpds.checks import best_device, check_decoder
from lpds.decoder_flags import FLAGS
from lpds.errors import LpdsError
from lpds.passport import check_fingerprint
from lpds.registry import DECODER_FILES, DECODER_SCHEMES
from lpds.types import Decoder
from lpds.wire import spec_to_wire
from lpds.zoo import load_decoder


def find_decoder(
    facts: dict[str, Any],
    given: Decoder | str | None,
    what: str,
    folder: Path,
    files: Mapping[str, Any] | None = None,
) -> Decoder:
    """Use the decoder given, or open the one that was recorded; either must have the recorded fingerprint.

    Args:
        facts: what was recorded: name, reference, options, fingerprint.
        given: a decoder, or a reference in place of the recorded one, which has its options if it is of the same kind.
        what: who asks, for a message.
        folder: of who asks; a recorded reference to a relative place holds from there, or from a folder above it.
        files: where what the decoder needs beside its reference is now, by the option's name
            (:data:`lpds.registry.DECODER_FILES`), and where it runs now.

    Raises:
        LpdsError: nothing tells which decoder it was, it is not where it was, or another one is.
    """
    lacking = [key for key in ("name", "reference", "options", "fingerprint") if key not in facts]
    if lacking:
        raise LpdsError(f"{what} does not say the {', '.join(lacking)} of its decoder")
    for key, kind in (("name", str), ("reference", str | None), ("options", dict), ("fingerprint", str)):
        if not isinstance(facts[key], kind):
            raise LpdsError(f"{what} has a {type(facts[key]).__name__} as the {key} of its decoder")
    recorded_place = given is None
    if given is None:
        if facts["reference"] is None:
            raise LpdsError(
                f"{what} belongs to the wrapped decoder {facts['name']!r}: pass it as decoder= "
                "(on the command line --decoder python:FILE.py:NAME)"
            )
        given = _place_from(facts["reference"], folder)
    if isinstance(given, str):
        same_kind = _kind(given) == _kind(str(facts["reference"]))
        recorded = {key: _file_from(key, value, folder) for key, value in facts["options"].items()} if same_kind else {}
        if _kind(given) == "lerobot" and "device" in recorded and not _is_here(str(recorded["device"])):
            del recorded["device"]  # a machine with a GPU made the run, and this has none
        try:
            given = load_decoder(given, **{**recorded, **(files or {})})
        except LpdsError as error:
            if "unexpected keyword argument" in str(error) and (
                chosen := [FLAGS.get(name, (name,))[0] for name in files or {}]
            ):
                raise LpdsError(f"{what} has a decoder that takes no {', '.join(chosen)}") from None
            if not recorded_place:
                raise
            error.args = (f"{error}; {what} was made with it: say where it is now (--decoder, decoder= in Python)",)
            raise
    check_decoder(given)
    check_fingerprint(given, facts, what)
    _check_shapes(given, facts.get("spec"), what)
    return given


def _check_shapes(decoder: Decoder, recorded: Mapping[str, Any] | None, what: str) -> None:
    """Refuse other shapes than were recorded, which the fingerprint need not know: of weights whose chunk is cut, say."""
    for name, value in spec_to_wire(decoder.spec).items():
        wanted = value if recorded is None else recorded.get(name, value)
        if wanted != value:
            raise LpdsError(
                f"{what} was learned with {name} {wanted}, but decoder {decoder.name!r} has {value}: pass it as it was then "
                "(execute= of the loader says how many steps of a chunk are executed)"
            )


def _kind(reference: str) -> str:
    """Whose loader a reference asks for: a zoo name and a path are folders of this project's own decoders, too."""
    scheme, colon, _ = reference.partition(":")
    return scheme if colon and scheme in DECODER_SCHEMES else "folder"


def _is_here(device: str) -> bool:
    try:
        best_device(device)
    except LpdsError:
        return False
    return True


def _place_from(reference: str, folder: Path) -> str:
    """A reference whose relative place is none from the working folder, as seen from a folder or those above it."""
    scheme, colon, place = reference.partition(":")
    path, further, name = place.partition(":")  # python:FILE:NAME
    return f"{scheme}:{_found_from(path, folder)}{further}{name}" if colon else reference


def _file_from(option: str, value: Any, folder: Path) -> Any:
    """A recorded option, with the place of a file likewise."""
    return _found_from(value, folder) if option in DECODER_FILES and isinstance(value, str) else value


def _found_from(place: str, folder: Path) -> str:
    if not place or Path(place).is_absolute() or Path(place).exists():
        return place
    above = [folder.resolve(), *folder.resolve().parents]
    return next((str(start / place) for start in above if (start / place).exists()), place)
