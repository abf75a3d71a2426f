"""The project's own decoder folder: ``decoder.safetensors`` with its facts in the header, and ``card.json`` beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lpds.checks import choose
from lpds.decoders.base import BaseDecoder, MinMaxNormaliser
from lpds.decoders.diffusion import DiffusionDecoder, DiffusionSampler
from lpds.decoders.flow import FlowDecoder, FlowSampler
from lpds.decoders.network import DenoisingMLP, NetworkShape
from lpds.errors import LpdsError
from lpds.files import FORMAT_VERSION, write_atomically
from lpds.types import LatentSpec

WEIGHTS = "decoder.safetensors"


def save_decoder(decoder: BaseDecoder, folder: Path) -> None:
    """Write a diffusion or flow decoder into a folder, weights, sampler and normaliser in one file.

    Raises:
        LpdsError: it is of another kind, which has no file form.
        OSError: the folder cannot be written.
    """
    if not isinstance(decoder, DiffusionDecoder | FlowDecoder):
        raise LpdsError(f"decoder {decoder.name!r} is a {decoder.describe()['kind']}; only own decoders have a file form")
    spec = decoder.spec
    facts = {
        **decoder.describe(),
        "format_version": FORMAT_VERSION,
        "latent_shape": spec.latent_shape,
        "action_shape": spec.action_shape,
    }
    tensors = {**decoder.net.state_dict(), **decoder.normaliser.tensors()}
    folder.mkdir(parents=True, exist_ok=True)
    content = save({key: value.contiguous() for key, value in tensors.items()}, {"lpds": json.dumps(facts)})
    write_atomically(folder / WEIGHTS, content)


def open_decoder(
    folder: Path,
    *,
    name: str,
    reference: str,
    ddim_steps: int | None = None,
    steps: int | None = None,
    solver: str | None = None,
    bf16: bool = False,
) -> BaseDecoder:
    """Open what :func:`save_decoder` wrote.

    Args:
        folder: holds ``decoder.safetensors``.
        name: of the decoder.
        reference: what a later session must pass to :func:`lpds.load_decoder` to get it again.
        ddim_steps: other than the stored number of DDIM steps (diffusion).
        steps: other than the stored number of ODE steps (flow).
        solver: other than the stored ODE solver (flow).
        bf16: see :class:`DiffusionDecoder`.

    Raises:
        LpdsError: the file is missing or broken, or an option is of the other kind of decoder.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise LpdsError(f"no decoder in {folder}: {WEIGHTS} is missing")
    facts, tensors = _read(path)
    try:
        normaliser = MinMaxNormaliser(**{key: tensors.pop(key) for key in MinMaxNormaliser.__dataclass_fields__})
        network: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in facts["network"].items()
        }
        net = DenoisingMLP(NetworkShape(**network))
        net.load_state_dict(tensors)
        spec = LatentSpec((net.shape.obs_size,), tuple(facts["latent_shape"]), tuple(facts["action_shape"]))
        sampler, diffusion = facts["sampler"], facts["kind"] == "diffusion"
        choose("decoder kind", facts["kind"], ("diffusion", "flow"))
        for key in ("training_steps", "ddim_steps", "clip") if diffusion else ("solver", "steps", "clip"):
            sampler[key]  # missing is told below
    except KeyError as missing:
        raise LpdsError(f"decoder file {path} lacks {missing}") from None
    except (TypeError, RuntimeError) as error:
        raise LpdsError(f"decoder file {path} contradicts itself: {' '.join(str(error).split())}") from None
    strange = {"steps": steps, "solver": solver} if diffusion else {"ddim_steps": ddim_steps}
    for option, value in strange.items():
        if value is not None:
            raise LpdsError(f"{option} is not an option of the {facts['kind']} decoder {name!r}")
    if diffusion:
        count = sampler["ddim_steps"] if ddim_steps is None else ddim_steps
        chosen = DiffusionSampler(sampler["training_steps"], count, sampler["clip"])
        return DiffusionDecoder(net, normaliser, chosen, spec, name=name, reference=reference, bf16=bf16)
    flow = FlowSampler(
        sampler["solver"] if solver is None else solver, sampler["steps"] if steps is None else steps, sampler["clip"]
    )
    return FlowDecoder(net, normaliser, flow, spec, name=name, reference=reference, bf16=bf16)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors of a decoder file."""
    try:
        with safe_open(path, framework="pt") as stream:
            header = (stream.metadata() or {}).get("lpds")
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a dict
        facts: dict[str, Any] = json.loads(header or "{}")
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise LpdsError(f"decoder file {path} cannot be read: {' '.join(str(error).split())}") from None
    if header is None:
        raise LpdsError(f"{path} is not a decoder of this project: its header has no entry 'lpds'")
    if not isinstance(facts, dict):
        raise LpdsError(f"{path} is not a decoder of this project: its header is no record")
    found = facts.get("format_version")
    if found != FORMAT_VERSION:
        raise LpdsError(f"decoder file {path} is of format {found}; this version reads format {FORMAT_VERSION}")
    return facts, tensors
