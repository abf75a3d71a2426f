"""How long an update takes, and what each of the learner's savings is worth.

Variants of one iteration (replay sampling and one update; at DSRL's Hopper shapes: decoder 3x512, 5 DDIM steps, batch 256):

- ``plain``: the sampler step by step from the network's modules, Adam parameter by parameter, fresh distillation noise;
- ``folded``: the shipped decoder (linear layers folded, state and step hoisted) and fused Adam;
- ``folded_kept_pairs``: and M = 4 base-noise pairs stored with a state, one drawn; their decoding is counted, for one
  decision inserted per update;
- ``folded_kept_targets``: and K = 2 chunks of the next state stored with it, chosen by Delta as it then was, so that no update
  decodes at all (``target_actions=kept``); their decoding is counted likewise;
- ``bf16``: the kept pairs, and the decoder's large product in bfloat16, where the hardware has it (float32 elsewhere: no
  difference).

In every variant the latent critic sees one noise a state and update.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lpds.config import LPDSSettings
from lpds.decoders.base import MinMaxNormaliser
from lpds.decoders.diffusion import DiffusionDecoder, DiffusionSampler
from lpds.decoders.network import DenoisingMLP, NetworkShape, bf16_in_hardware
from lpds.errors import LpdsError
from lpds.files import FORMAT_VERSION
from lpds.methods.lpds import LPDS
from lpds.replay import Replay
from lpds.types import LatentSpec

BATCH = 256
OBS, CHUNK, ACTION = 11, 4, 3
DECODER_WIDTH, DDIM_STEPS = 512, 5
ROWS = 4096
KEPT, KEPT_NEXT = 4, 2
NEXT = ("next_latent", "next_action")
VARIANTS = ("plain", "folded", "folded_kept_pairs", "folded_kept_targets", "bf16")


class _PlainDecoder(DiffusionDecoder):
    """The same function, computed as one would write it down."""

    def prepare(self, obs: Tensor) -> Any:
        return self.normaliser.observation(obs)

    def decode(self, context: Any, w: Tensor) -> Tensor:
        return self.normaliser.action(self.denoise_plain(context, w))


def make_decoder(kind: type[DiffusionDecoder] = DiffusionDecoder, *, bf16: bool = False) -> DiffusionDecoder:
    """A decoder of DSRL's Hopper shapes with random weights, the same for every kind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DenoisingMLP(NetworkShape(OBS, CHUNK * ACTION, DECODER_WIDTH))
    ones = torch.ones
    normaliser = MinMaxNormaliser(-ones(OBS), ones(OBS), -ones(ACTION), ones(ACTION))
    spec = LatentSpec((OBS,), (CHUNK, ACTION), (CHUNK, ACTION))
    return kind(net, normaliser, DiffusionSampler(20, DDIM_STEPS), spec, name="bench", bf16=bf16)


def _iteration(variant: str, width: int) -> Callable[[], None]:
    """Build one variant's iteration as a function without arguments."""
    kept = 0 if variant in ("plain", "folded") else KEPT
    following = KEPT_NEXT if variant == "folded_kept_targets" else 0
    decoder = make_decoder(_PlainDecoder if variant == "plain" else DiffusionDecoder, bf16=variant == "bf16")
    generator = torch.Generator().manual_seed(0)
    targets = "kept" if following else "decode"
    settings = LPDSSettings(width=width, kept_noises=kept, distill_noises=1, target_actions=targets, kept_next=KEPT_NEXT)
    method = LPDS(settings, decoder, generator=generator, device=torch.device("cpu"))
    if variant == "plain":
        for adam in (method.adam_action, method.adam_latent, method.adam_shift):
            adam.param_groups[0]["fused"] = False
    replay = Replay(decoder.spec, ROWS, kept, 1, torch.device("cpu"), kept_next=following)
    latent, action = decoder.spec.latent_size, decoder.spec.action_size
    row = {
        "obs": torch.rand(1, OBS, generator=generator) * 2 - 1,
        "action": torch.zeros(1, action),
        "reward": torch.ones(1),
        "discount": torch.full((1,), 0.99),
        "next_obs": torch.rand(1, OBS, generator=generator) * 2 - 1,
        "base_noise": torch.randn(1, kept, latent, generator=generator),
        "base_action": torch.zeros(1, kept, action),
        "over": torch.zeros(1),
    }
    if following:
        row |= {"next_action": torch.zeros(1, following, action), "next_latent": torch.zeros(1, following, latent)}
    for _ in range(ROWS):
        replay.insert(row)

    def run() -> None:
        if kept:  # what one inserted decision costs: M decodes, and K of the next state, then the row
            new = dict(row)
            for count, obs, w, a in ((kept, "obs", "base_noise", "base_action"), (following, "next_obs", *NEXT)):
                if count:
                    noise = torch.randn(count, CHUNK, ACTION, generator=generator)
                    with torch.no_grad():
                        noise = noise if w == "base_noise" else noise + method.online(row[obs]).view(1, CHUNK, ACTION)
                        decoded = decoder.decode(decoder.prepare(row[obs].expand(count, -1)), noise)
                    new |= {w: noise.view(1, count, -1), a: decoded.view(1, count, -1)}
            replay.insert(new)
        batch = replay.sample(BATCH, generator, 1)
        shapes = method.noise_shapes(BATCH)
        method.update(batch, {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})

    return run


def iteration_flops(width: int, variant: str = "folded") -> float:
    """Floating-point operations of one iteration's matrix products (two per multiply-add)."""
    latent = CHUNK * ACTION
    hidden = 2 * width * width
    critic = 2 * ((OBS + latent) * width + hidden + width)  # two members, per row
    shift = OBS * width + hidden + width * latent
    # Q^A: target, forward and twice that backward, distillation target; Q^W: three, and forward and input gradient
    targets = KEPT_NEXT if variant == "folded_kept_targets" else 1
    learner = critic * (targets + 3 + 1 + 3 + 2) + shift * (1 + 3)
    inner = DECODER_WIDTH * (latent + DECODER_WIDTH + latent) + latent * latent
    if variant == "plain":
        inner = DECODER_WIDTH * (latent + 16 + OBS + 2 * DECODER_WIDTH + latent)
    decoded = {"plain": 2 * BATCH, "folded": 2 * BATCH, "folded_kept_targets": KEPT + KEPT_NEXT}
    rows = decoded.get(variant, BATCH + KEPT)
    return 2.0 * (BATCH * learner + rows * DDIM_STEPS * inner)


def matmul_rate(size: int = 512, repeats: int = 20) -> float:
    """The machine's float32 matrix-product rate on the current number of threads, in operations per second."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(BATCH, size, generator=generator), torch.rand(size, size, generator=generator)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        best = min(best, (time.perf_counter() - start) / 10)
    return 2.0 * BATCH * size * size / best


def bench_learner(rounds: int = 7, *, iterations: dict[int, int] | None = None) -> dict[str, Any]:
    """Time the variants, interleaved in one run, so that a busy neighbour slows all of them alike.

    Args:
        rounds: each variant is timed once a round; medians and ranges are over rounds.
        iterations: updates timed in a round, by critic width.

    Returns:
        Under ``"3x128"`` and ``"3x1024"``: ``plain_ms``, and of every other variant ``ratio_VARIANT`` (time against plain,
        median over rounds) and ``range_VARIANT``; ``fraction_of_matmul_rate`` of ``folded_kept_pairs``.

    Raises:
        LpdsError: no round at all.
    """
    if rounds < 1:
        raise LpdsError(f"rounds must be at least 1, not {rounds}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rate = matmul_rate()
        result: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "threads": 1,
            "bf16_in_hardware": bf16_in_hardware(torch.device("cpu")),
            "matmul_gflops": rate / 1e9,
            "rounds": rounds,
        }
        for width, count in (iterations or {128: 25, 1024: 3}).items():
            result[f"3x{width}"] = _bench_width(width, count, rounds, rate)
        return result
    finally:
        torch.set_num_threads(threads)


def _bench_width(width: int, count: int, rounds: int, rate: float) -> dict[str, Any]:
    runs = {variant: _iteration(variant, width) for variant in VARIANTS}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for run in runs.values():  # warm up
        run()
        run()
    for _ in range(rounds):
        for variant, run in runs.items():
            start = time.perf_counter()
            for _ in range(count):
                run()
            times[variant].append((time.perf_counter() - start) / count)
    median = {variant: statistics.median(values) for variant, values in times.items()}
    result: dict[str, Any] = {"plain_ms": 1e3 * median["plain"]}
    for variant in VARIANTS[1:]:
        ratios = [value / plain for value, plain in zip(times[variant], times["plain"], strict=True)]
        result[f"ratio_{variant}"] = statistics.median(ratios)
        result[f"range_{variant}"] = [min(ratios), max(ratios)]
    kept = "folded_kept_pairs"
    result["fraction_of_matmul_rate"] = iteration_flops(width, kept) / median[kept] / rate
    return result


def bench_table(result: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"float32 product rate of this machine, one thread: {result['matmul_gflops']:.0f} GFLOP/s"]
    if not result["bf16_in_hardware"]:
        lines.append("this processor has no bfloat16 products: the bf16 variant uses float32")
    for name, figures in result.items():
        if not isinstance(figures, dict):
            continue
        lines.append(f"critics {name}: plain {figures['plain_ms']:.1f} ms an update = 1.00")
        for variant in VARIANTS[1:]:
            low, high = figures[f"range_{variant}"]
            lines.append(f"  {variant.replace('_', ' '):<22}{figures[f'ratio_{variant}']:.2f}  [{low:.2f}, {high:.2f}]")
        lines.append(f"  share of the product rate reached (kept pairs): {figures['fraction_of_matmul_rate']:.0%}")
    return "\n".join(lines)
