"""The doctor's findings about units: of the actions against the environment's box, of observations against the training's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpds.envs.chunk import ChunkedVectorEnv
from lpds.findings import Finding
from lpds.probe import Probe
from lpds.remarks import FAR, MUCH_BEYOND, beyond_single_edges, places_in_box, shares_beyond

HARDLY_USED = 0.02
"""Share of the box's width below which a column that moves is told: metres in a box of +-1, say."""


def action_range(probe: Probe, env: ChunkedVectorEnv | None) -> Finding | None:
    """Actions at w ~ N(0, I) against the environment's box."""
    steps, size = probe.decoder.spec.action_shape
    action = probe.finite.reshape(-1, steps, size).flatten(0, 1)
    if not len(action):
        return None
    name, extent = "action range", f"[{float(action.min()):.3g}, {float(action.max()):.3g}]"
    if env is None:
        return Finding(name, f"{extent}, not compared with a box", "ok")
    box = env.primitive_action_space
    edges = torch.from_numpy(box.low), torch.from_numpy(box.high)
    place, columns = places_in_box(action, *edges)
    single, singles = beyond_single_edges(action, *edges)
    if not len(columns):
        return _beside_one_edge(name, extent, single, singles, size)
    beyond, far = float(torch.cat([shares_beyond(place), single]).mean()), shares_beyond(place, FAR) > MUCH_BEYOND
    used = torch.from_numpy(np.diff(np.quantile(place.numpy(), [0.01, 0.99], axis=0), axis=0)[0])
    figure = f"{beyond:.1%} beyond the box, uses {float(used.max()):.0%} of it"
    little = (used > 0.0) & (used < HARDLY_USED)  # a column that never moves is not in other units
    if bool(far.any()):
        figure += f"; columns {ranges(_spread(far, columns, size))} far beyond it"
    over = single > MUCH_BEYOND
    if bool(over.any()):
        figure += f"; columns {ranges(_spread(over, singles, size))} beyond their one edge"
    if bool(little.any()):
        figure += f"; columns {ranges(_spread(little, columns, size))} use less than {HARDLY_USED:.0%}"
    remedy = "return actions in environment units: apply the normaliser's inverse, and compare its range with the box"
    if beyond <= MUCH_BEYOND and not bool(far.any() | little.any() | over.any()) and float(used.max()) >= 0.05:
        return Finding(name, figure, "ok")
    return Finding(name, figure, "fault" if beyond > 0.5 else "warning", remedy)


def _beside_one_edge(name: str, extent: str, shares: Tensor, columns: Tensor, size: int) -> Finding:
    """Of a box whose columns have one edge at most."""
    over = shares > MUCH_BEYOND
    if not bool(over.any()):
        told = "no column of the environment's box has two edges" if len(columns) else "the environment's box is unbounded"
        return Finding(name, f"{extent}, {told}", "ok")
    figure = f"{extent}, columns {ranges(_spread(over, columns, size))} beyond their one edge in {float(shares.max()):.0%}"
    remedy = "return actions in environment units: such actions are cut at the box's edge"
    return Finding(name, figure, "fault" if float(shares.max()) > 0.5 else "warning", remedy)


def observation_range(probe: Probe) -> Finding | None:
    """Met observations against the normaliser's range; ``None`` without a normaliser."""
    normaliser: Any = getattr(probe.decoder, "normaliser", None)
    if not hasattr(normaliser, "observation"):
        return None
    outside = (normaliser.observation(probe.obs).abs() > 1.5).double().mean(0)
    share = float(outside.mean())
    name, figure = "observation range", f"{share:.1%} outside [-1.5, 1.5] normalised"
    if share <= 0.05 and float(outside.max()) <= 0.5:  # one entry in another unit is lost in a mean
        return Finding(name, figure, "ok")
    remedy = f"check units and order of the observations, worst in entries {ranges(outside > outside.max() / 2)}"
    return Finding(name, figure, "fault" if share > 0.5 else "warning", remedy)


def _spread(mask: Tensor, columns: Tensor, size: int) -> Tensor:
    """A mask over some columns as one over all of them."""
    return torch.zeros(size, dtype=torch.bool).index_put((columns,), mask)


def ranges(mask: Tensor) -> str:
    """True entries as "0, 7-31"."""
    runs: list[list[int]] = []
    for index in torch.nonzero(mask).flatten().tolist():
        if runs and runs[-1][-1] == index - 1:
            runs[-1] = [runs[-1][0], index]
        else:
            runs.append([index, index])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
