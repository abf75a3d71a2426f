"""What a run's saved policy does at states that the run met: the only place in the reports that opens a policy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpds.errors import LpdsError
from lpds.random import normal
from lpds.report.paired import Array
from lpds.report.read import RunData
from lpds.run_folder import kept_states

STATES = 2_000
"""States of the replay at which Delta is taken for the quantiles of ``||Delta(s)||^2``."""
NUMBERS = 2**25
"""Fewer states where they are large: of pictures, no more than make so many numbers."""
MODE_STATES, MODE_NOISES = 4, 300
"""Of the page that shows the modes."""


def shift_sizes(run: RunData) -> Array | str:
    """``||Delta(s)||^2`` [N] at the latest states of the replay, or in words why there is none.

    Committed results keep no replay, but some states of the warm-up.
    """
    from safetensors import SafetensorError

    from lpds.policy import recorded_shift

    try:
        states: list[Any] = []
        for segment in reversed(_segments(run)):
            states.insert(0, _latest_states(run.folder / "checkpoint" / segment["file"], STATES - sum(map(len, states))))
            if sum(map(len, states)) >= min(STATES, NUMBERS // states[0].shape[1]):
                break
        if not states and (kept := kept_states(run.folder)) is not None:
            states.append(kept)
        if not states:
            return "the run folder keeps no replay"
        shift = recorded_shift(run.folder, np.concatenate(states))
    except (LpdsError, SafetensorError, OSError, KeyError) as error:
        return str(error).replace(str(run.folder), run.folder.name)
    if shift is None:
        return f"{run.method} does not shift the noise"
    sizes = np.square(shift, dtype=np.float64).sum(axis=(1, 2))
    return sizes if sizes.any() else "Delta is zero everywhere: nothing was learned yet"


def damage(run: RunData) -> list[str]:
    """A note of states that are there and cannot be read: a page without its modes looks as if it had none."""
    try:
        kept_states(run.folder)
    except LpdsError as error:
        return [f"its modes are not drawn: {str(error).replace(str(run.folder), run.folder.name)}"]
    return []


def origin(run: RunData) -> str:
    """Where :func:`shift_sizes` takes its states, in words."""
    return "the replay, the latest" if _segments(run) else "the warm-up"


def _segments(run: RunData) -> list[Any]:
    """What the checkpoint says of the files of the replay; nothing where there is none."""
    try:
        return list(json.loads((run.folder / "checkpoint" / "checkpoint.json").read_bytes())["replay"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _latest_states(segment: Path, count: int) -> Array:
    """States [N, F], N at most ``count``, that a file of the replay ends with: their numbers, and pictures after them."""
    from safetensors import safe_open

    with safe_open(segment, framework="np") as stream:
        parts = [stream.get_slice(name) for name in ("obs", "frames") if name in stream.keys()]  # noqa: SIM118 - no mapping
        width = sum(part.get_shape()[1] for part in parts)
        first = max(0, parts[0].get_shape()[0] - max(1, min(count, NUMBERS // width)))
        return np.concatenate([part[first:].astype(np.float32) for part in parts], axis=1)


@dataclass(frozen=True)
class ActionSamples:
    """First actions of the chunk at a few states, under the same noises, in two coordinates."""

    frozen: list[Array]
    """[N, 2] for every state."""
    steered: list[Array]
    coordinates: str
    """What the two coordinates are, in words."""
    axes: tuple[str, str]
    """Their names."""


def action_samples(run: RunData, place: RunData | None = None) -> ActionSamples | str:
    """Decode MODE_NOISES noises at MODE_STATES of the states that ``place``, by default the run itself, kept.

    In words why, where that cannot be. Runs that are shown together are to have one place.

    With more than two action dimensions the coordinates are the two leading principal components of the frozen policy's
    samples at each state; with one, the action against itself would say nothing, so the second coordinate is the noise's
    first component.
    """
    from lpds.policy import load_policy

    try:
        obs = kept_states((place or run).folder)
        if obs is None:
            return "the run folder keeps no states"
        policy = load_policy(run.folder, run.decoder)
    except LpdsError as error:
        return str(error).replace(str(run.folder), run.folder.name)
    chosen = obs[np.linspace(0, len(obs) - 1, min(MODE_STATES, len(obs))).round().astype(int)]
    eps = normal("probe", 13, shape=(MODE_NOISES, *policy.decoder.spec.latent_shape))
    frozen, steered = [], []
    actions = policy.decoder.spec.action_shape[1]
    for state in chosen:
        rows = np.repeat(state[None], MODE_NOISES, 0)
        before, after = (policy.act(rows, eps, scale=scale)[:, 0].astype(np.float64) for scale in (0.0, 1.0))
        if actions == 1:
            side = eps.reshape(MODE_NOISES, -1)[:, :1]
            before, after = (np.concatenate([x, side], 1) for x in (before, after))
        elif actions > 2:
            centre = before.mean(0)
            axes = np.linalg.svd(before - centre, full_matrices=False)[2][:2]
            before, after = ((x - centre) @ axes.T for x in (before, after))
        frozen.append(before)
        steered.append(after)
    names = {
        1: ("the action, and the noise's first component", ("action", "noise")),
        2: ("the two action dimensions", ("action 1", "action 2")),
    }
    leading = ("two leading principal components of the frozen actions", ("component 1", "component 2"))
    return ActionSamples(frozen, steered, *names.get(actions, leading))
