"""Policies that LeRobot saved: DiffusionPolicy, pi0, pi05 and SmolVLA, from ``lerobot:PATH``.

One file per family says what depends on the state alone and how a noise becomes a chunk; ``folder.py`` opens the weights,
``statistics.py`` the normalisation, ``policy.py`` holds what the families share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lpds.checks import best_device
from lpds.decoders.lerobot.folder import FAMILIES, find_folder, import_lerobot, policy_type
from lpds.decoders.lerobot.policy import LeRobotDecoder, Options
from lpds.registry import resolve


def load_lerobot(
    path: str,
    *,
    ddim_steps: int | None = None,
    steps: int | None = None,
    execute: int | None = None,
    task: str | None = None,
    tokenizer: str | Path | None = None,
    flat: bool = False,
    flat_order: str | Sequence[str] | None = None,
    device: str = "cpu",
) -> LeRobotDecoder:
    """Open a policy from a folder in LeRobot's own saved format as a decoder.

    Args:
        path: the folder (``config.json``, ``model.safetensors``, both processors), one that holds it as
            ``pretrained_model/``, or the name of a repository.
        ddim_steps: DiffusionPolicy: number of DDIM steps with eta 0; needed where the policy was saved with DDPM.
        steps: pi0, pi05, SmolVLA: other than the saved number of Euler steps.
        execute: steps of the chunk to execute; the saved ``n_action_steps`` by default.
        task: pi0, pi05, SmolVLA: the instruction. Without it the observation must carry its tokens.
        tokenizer: folder or name of the tokenizer, other than the saved one.
        flat: take one vector [B, O] in place of a dict, frame after frame; for policies without images and language.
        flat_order: the policy's vectors in the order in which a frame of the flat observation has them, with commas between
            them or as a sequence; needed where there are several, since an environment's vector does not say.
        device: where the policy runs, ``"auto"`` on a GPU if there is one; the actions come back on the device of the noise.

    Returns:
        The decoder.

    Raises:
        LpdsError: lerobot is missing, the folder is broken, the policy is of another type, its sampler is stochastic, its
            weights are incomplete, or its statistics do not fit its features; the message names what it is.
    """
    device = best_device(device)
    order = flat_order.split(",") if isinstance(flat_order, str) else flat_order
    order = None if order is None else tuple(key.strip() for key in order)
    folder = find_folder(path)
    kind = policy_type(folder)
    import_lerobot(kind)
    family: type[LeRobotDecoder] = resolve("LeRobot policy", {name: entry.decoder for name, entry in FAMILIES.items()}, kind)
    return family(folder, Options(ddim_steps, steps, execute, task, tokenizer, flat, order, device))
