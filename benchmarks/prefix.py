"""What one vision-language prefix for several noises of a state saves: processor time of eight of them, and of one.

    python benchmarks/prefix.py --out results/bench/prefix.json

Three pi0 of LeRobot's own class on one thread: the tiny clone of ``results/``, which sees no picture, and two of random weights
with one picture, of the same size and of a quarter of pi0's widths and half its depth.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lpds import load_decoder
from lpds.commands.terminal import guarded
from lpds.decoders.lerobot.folder import import_lerobot
from lpds.decoders.lerobot.tiny import TinySizes, built_with, write_sizes
from lpds.files import write_json
from lpds.pretrain import pi0

TINY = "lerobot:results/libero-90-57/tiny-pi0"
TOLD = "pick up the cream cheese and put it in the tray"
QUARTER = TinySizes(
    width=256, mlp_dim=1024, language_width=512, language_mlp_dim=4096, depth=9, head_dim=256, vision_width=288, vision_depth=6
)
TOKENS, NOISES = 60, 8


def random_pi0(folder: Path, sizes: TinySizes, pixels: int) -> int:
    """Save a pi0 of random weights that takes one picture, state and text; how many weights it has."""
    types = importlib.import_module("lerobot.configs.types")
    module = importlib.import_module("lerobot.policies.pi0.configuration_pi0")
    feature, kinds = types.PolicyFeature, types.FeatureType
    state, arm, camera = "observation.state", "action", "observation.images.cam"
    config = module.PI0Config(
        input_features={state: feature(kinds.STATE, (8,)), camera: feature(kinds.VISUAL, (3, pixels, pixels))},
        output_features={arm: feature(kinds.ACTION, (7,))},
        device="cpu",
        dtype="float32",
        image_resolution=(pixels, pixels),
        tokenizer_max_length=TOKENS,
    )
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()), built_with("pi0", sizes):
        policy = importlib.import_module("lerobot.policies.pi0.modeling_pi0").PI0Policy(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_sizes(folder, sizes)
    unit = {"mean": torch.zeros(8), "std": torch.ones(8)}
    stats = {state: unit, arm: {key: value[:7] for key, value in unit.items()}}
    pi0.save(policy, stats, pi0.words_of(TOLD, sizes.vocabulary), folder)
    return sum(parameter.numel() for parameter in policy.parameters())


def observation(spec: Any, rows: int) -> Any:
    """Random observations of a decoder's shapes."""
    shapes = spec.obs_shape if isinstance(spec.obs_shape, dict) else {"": spec.obs_shape}
    found = {key: torch.rand(rows, *shape) for key, shape in shapes.items()}
    return found if isinstance(spec.obs_shape, dict) else found[""]


def repeated(obs: Any, count: int) -> Any:
    """The rows ``count`` times each."""
    if isinstance(obs, dict):
        return {key: value.repeat_interleave(count, 0) for key, value in obs.items()}
    return obs.repeat_interleave(count, 0)


def processor_ms(call: Callable[[], Any], rounds: int) -> float:
    """Median processor time of a call, in milliseconds."""
    call()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        found.append(1e3 * (time.process_time() - start))
    return statistics.median(found)


@torch.no_grad()
def measure(decoder: Any, rounds: int) -> dict[str, float]:
    """Eight noises of one state: with a prefix each, with one; and the two parts of the latter."""
    torch.manual_seed(1)
    obs, w = observation(decoder.spec, 1), torch.randn(NOISES, *decoder.spec.latent_shape)
    eight, context = repeated(obs, NOISES), decoder.prepare(obs)
    apart = float((decoder.decode(decoder.prepare(eight), w) - decoder.decode(context, w)).abs().max())
    row = {
        "eight_prefixes_ms": processor_ms(lambda: decoder.decode(decoder.prepare(eight), w), rounds),
        "one_prefix_ms": processor_ms(lambda: decoder.decode(decoder.prepare(obs), w), rounds),
        "prefix_ms": processor_ms(lambda: decoder.prepare(obs), rounds),
        "chunk_ms": processor_ms(lambda: decoder.decode(context, w[:1]), rounds),
        "largest_difference": apart,
    }
    return row | {"saving": row["eight_prefixes_ms"] / row["one_prefix_ms"]}


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import_lerobot("pi0")
    rows = {"tiny, no picture": measure(load_decoder(TINY, flat=True, task=TOLD), 5 * arguments.rounds)}
    for name, sizes, pixels, rounds in (
        ("tiny, one picture", TinySizes(), 56, 5 * arguments.rounds),
        ("a quarter of the widths, one picture", QUARTER, 224, arguments.rounds),
    ):
        with tempfile.TemporaryDirectory() as place:
            weights = random_pi0(Path(place) / "pi0", sizes, pixels)
            rows[name] = measure(load_decoder(f"lerobot:{place}/pi0", task=TOLD), rounds) | {"weights": weights}
    for name, row in rows.items():
        print(name, {key: round(value, 6) for key, value in row.items()})
    write_json(arguments.out, {"format_version": 1, "unit": "processor time on one thread", "noises": NOISES, "policies": rows})


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
