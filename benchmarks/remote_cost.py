"""What a decoder behind a socket costs: milliseconds of a call here and remote, by rows.

    python benchmarks/remote_cost.py --out results/bench/remote.json

The shipped Hopper decoder, its server in a second process of the same machine, one thread each.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lpds import load_decoder
from lpds.commands.terminal import guarded
from lpds.files import write_json

ROWS = (1, 4, 256, 1024)


def median_ms(decoder: Any, obs: torch.Tensor, w: torch.Tensor, rounds: int) -> float:
    """Median time of a call by the clock, in milliseconds."""
    decoder(obs, w)
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        decoder(obs, w)
        found.append(1e3 * (time.perf_counter() - start))
    return statistics.median(found)


def main() -> None:
    """Serve, measure and compare to the bit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    words = [sys.executable, "-m", "lpds", "serve-decoder", "hopper", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"ws://\S+:\d+", server.stdout.readline())
            assert address is not None, "the server did not say where it is"
            here, there = load_decoder("hopper"), load_decoder(f"remote:{address.group()}")
            table = []
            for rows in ROWS:
                torch.manual_seed(rows)
                obs, w = torch.randn(rows, *here.spec.obs_shape), torch.randn(rows, *here.spec.latent_shape)
                row: dict[str, Any] = {"rows": rows, "same_to_the_bit": bool(torch.equal(here(obs, w), there(obs, w)))}
                row |= {
                    name: median_ms(one, obs, w, arguments.rounds) for name, one in (("here_ms", here), ("remote_ms", there))
                }
                table.append(row)
                print(row)
            there.close()
        finally:
            server.terminate()
    write_json(
        arguments.out, {"format_version": 1, "unit": "median milliseconds of a call", "decoder": "hopper", "rows": table}
    )


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
