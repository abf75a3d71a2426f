"""What the doctor reports: one finding a measurement; those about an environment, about where a sampler starts, about time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from lpds import remarks
from lpds.envs.chunk import ChunkedVectorEnv
from lpds.observations import conform, parts
from lpds.probe import Probe, take
from lpds.random import normal
from lpds.types import Decoder

Verdict = Literal["ok", "warning", "fault"]

SIGNAL = 0.1
"""Share of signal at a sampler's start from which on it is a warning; 5 DDIM steps of 20 begin at 0.05, 8 of 20 at 0.14."""
PATIENCE = 1_000
"""Primitive steps that an episode without a known time limit is given to end in."""


@dataclass(frozen=True)
class Finding:
    """One measurement and what it means."""

    name: str
    figure: float | str
    """What was measured, with units."""
    verdict: Verdict
    remedy: str = ""
    """One sentence how to mend it; empty when ok."""


def starts_at_noise(decoder: Decoder) -> Finding | None:
    """Whether the sampler begins where the network was trained on noise alone, which is what it is given."""
    share = getattr(decoder, "signal_at_start", None)
    if share is None:
        return None
    figure = f"{share:.1%} of the variance that the first denoising step was trained on is signal"
    if share <= SIGNAL:
        return Finding("starts at noise", figure, "ok")
    remedy = "w has none of it, so actions are not as trained: take more DDIM steps, a divisor of the trained ones"
    return Finding("starts at noise", figure, "warning", remedy)


def left_out(decoder: Decoder) -> Finding | None:
    """Whether a checkpoint holds another policy beside the one that was opened."""
    what = getattr(decoder, "left_out", "")
    if not what:
        return None
    remedy = "if the other is the one you mean, save it as a checkpoint of its own"
    return Finding("weights", what, "warning", remedy)


def spaces(decoder: Decoder, misfit: str | None, order: str | None = None, *, made: bool = True) -> Finding:
    """Whether the environment could be made (``made``) and its spaces fit."""
    if misfit is not None:
        remedy = "give the decoder this environment's shapes, or the environment that the decoder was trained for"
        if not made:  # an extra that is not installed, say, which is nothing that the decoder could mend
            remedy = "mend that first: what else is said here was found without an environment"
        return Finding("spaces", misfit, "fault", remedy)
    spec = decoder.spec
    told = "" if order is None else f"; put end to end: {order}"
    return Finding("spaces", f"observations {spec.obs_shape}, actions ({spec.action_shape[1]},){told}", "ok")


def episodes_end(decoder: Decoder, env: ChunkedVectorEnv) -> Finding | None:
    """Whether episodes end, by a time limit that Gymnasium knows of, or under the frozen policy: an evaluation waits for it."""
    name, limit = "episodes end", env.time_limit
    if limit is not None:
        return Finding(name, f"after {limit:,} steps at the latest", "ok")
    obs, _ = env.reset()
    w = torch.from_numpy(normal("probe", 0, 97, shape=(env.num_envs, *decoder.spec.latent_shape)))
    for decision in range(-(-PATIENCE // env.chunk)):
        seen = take(conform(obs, decoder.spec), torch.arange(env.num_envs))
        action = decoder(seen, w)
        if not bool(torch.isfinite(action).all()):
            return None  # a finding of its own
        obs, _, terminated, truncated, info = env.step(action.cpu().numpy())
        over = terminated | truncated
        if over.any():
            return Finding(name, f"one did after {decision * env.chunk + int(info['k'][over].max()):,} steps", "ok")
    remedy = "an evaluation needs episodes that end: wrap the environment in gymnasium.wrappers.TimeLimit"
    return Finding(name, f"none did within {PATIENCE:,} steps, and no time limit is known", "warning", remedy)


def seeds(env: ChunkedVectorEnv) -> Finding:
    """Whether a seed decides the episode, its start and what the same actions do: frozen and steered are to play the same."""
    running = remarks.of_statistics(env.first)
    if running:
        return Finding("seeds", "; ".join(running), "warning", f"{remarks.FREEZE}, so that frozen and steered play the same")
    box = env.primitive_action_space
    narrow = box.high.astype(np.float64) - box.low < 1e6  # no bounds, or hardly any: around zero then
    low, high = np.where(narrow, box.low, -1.0), np.where(narrow, box.high, 1.0)
    draws = np.random.default_rng(0).uniform(low, high, (3, env.chunk, *box.shape)).astype(box.dtype)
    number = env.episodes[0]

    def same(chunks: Sequence[Any]) -> bool:
        # copies: an environment may hand out one buffer again and again
        first, second = ({key: part.copy() for key, part in parts(env.replay(0, number, chunks)).items()} for _ in range(2))
        return all(np.array_equal(one, second[key], equal_nan=True) for key, one in first.items())

    remedy = "let reset call super().reset(seed=seed) and draw from self.np_random, so that frozen and steered play the same"
    if not same([]):
        return Finding("seeds", "two resets from one seed give two observations", "warning", remedy)
    if not same(list(draws)):
        figure = "one seed and the same actions lead to two observations: steps draw from elsewhere"
        return Finding("seeds", figure, "warning", remedy.replace("reset call super().reset(seed=seed) and draw", "step draw"))
    return Finding("seeds", "two resets from one seed give one observation, and the same actions lead to one", "ok")


def latency(probe: Probe) -> Finding:
    """Median time of a decision at batch 1 and of a row in a large batch."""

    def milliseconds(count: int, repeats: int) -> float:
        obs, w = take(probe.obs, torch.arange(count) % len(probe)), probe.noise(9, count)
        taken: list[float] = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            probe.decoder(obs, w)
            taken.append(1e3 * (time.perf_counter() - start))
            if sum(taken) > 2e3:  # a slow decoder is known well enough after two seconds
                break
        return statistics.median(taken[1:] or taken)

    batch = probe.at_once
    figure = f"{milliseconds(1, 20):.2f} ms a decision, {milliseconds(batch, 10) / batch:.4f} ms a row in a batch of {batch}"
    return Finding("latency", figure, "ok")
