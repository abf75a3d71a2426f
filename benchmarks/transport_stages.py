"""How far a policy's episodes of Transport get, where success alone says 0: python benchmarks/transport_stages.py DECODER..."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lpds.commands.terminal import guarded
from lpds.envs.robosuite import make_transport
from lpds.files import FORMAT_VERSION, write_json
from lpds.stats import wilson
from lpds.zoo import load_decoder

STAGES = ("lid off", "trash binned", "hammer lifted", "hammer handed over", "success")
SEED = 5000
AWAY, LIFTED, BINNED = 0.1, 0.1, 0.1
"""Metres: of the lid from where it was, of the hammer above it, of the trash from the middle of its bin."""


def reached(parts: Any, start: Any, success: bool) -> npt.NDArray[np.bool_]:
    """Which stages a state shows [5]; ``start`` is what was observed at the reset."""
    lid = np.linalg.norm(parts["lid_handle_pos"][:2] - start["lid_handle_pos"][:2]) > AWAY
    trash = np.linalg.norm(parts["trash_pos"][:2] - parts["trash_bin_pos"][:2]) < BINNED
    up = parts["payload_pos"][2] - start["payload_pos"][2] > LIFTED
    over = up and parts["payload_pos"][1] > 0.05  # arm 1's side
    return np.array([lid, trash, up, over, success])


def play(decoder: Any, episodes: int, noise_scale: float) -> npt.NDArray[np.bool_]:
    """Stages that each episode reached at any step [E, 5]."""
    env = make_transport()
    generator = torch.Generator().manual_seed(SEED)
    found = np.zeros((episodes, len(STAGES)), np.bool_)
    for episode in range(episodes):
        obs, _ = env.reset(seed=SEED + episode)
        start, over = {key: value.copy() for key, value in env.parts.items()}, False
        while not over:
            w = noise_scale * torch.randn((1, *decoder.spec.latent_shape), generator=generator)
            for action in decoder(torch.from_numpy(obs)[None], w)[0].numpy():
                obs, _, _, over, info = env.step(action)
                found[episode] |= reached(env.parts, start, info["success"])
                if over or info["success"]:
                    over = True
                    break
    env.close()
    return found


def main() -> None:
    """Play each decoder and write how many episodes reached what."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("decoders", nargs="+", help="folders or references")
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--noise-scale", type=float, default=1.0)
    parser.add_argument("--ddim-steps", type=int, help="of its sampler; as it was saved by default")
    parser.add_argument("--out", type=Path, required=True, help="folder for NAME.json of each")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for reference in arguments.decoders:
        options = {} if arguments.ddim_steps is None else {"ddim_steps": arguments.ddim_steps}
        decoder = load_decoder(reference, **options)
        found = play(decoder, arguments.episodes, arguments.noise_scale)
        shares = {name: list(wilson(float(found[:, at].sum()), arguments.episodes)) for at, name in enumerate(STAGES)}
        facts = {
            "format_version": FORMAT_VERSION,
            "fingerprint": decoder.fingerprint,
            "episodes": arguments.episodes,
            "noise_scale": arguments.noise_scale,
            "seed": SEED,
        } | options
        write_json(arguments.out / f"{Path(reference).name}.json", {**facts, "reached": shares})
        print(Path(reference).name, json.dumps({name: round(share[0], 3) for name, share in shares.items()}))


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
