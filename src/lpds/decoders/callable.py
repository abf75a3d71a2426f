"""Any function ``fn(obs, w) -> actions`` as a decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lpds.decoders.base import BaseDecoder, hash_tensors
from lpds.errors import LpdsError
from lpds.random import normal
from lpds.types import LatentSpec, Shape


class CallableDecoder(BaseDecoder):
    """A user's own policy, called as it is. Its fingerprint is made of its name, its shapes and what it decodes."""

    def __init__(self, fn: Callable[..., Any], spec: LatentSpec, name: str) -> None:
        super().__init__(spec, name)
        self._fn = fn

    def decode(self, context: Any, w: Tensor) -> Tensor:
        """Call the function; an array or a tensor of [B, T, A] must come back."""
        with torch.no_grad():
            result = self._fn(context, w)
        try:
            action = torch.as_tensor(result)
        except (TypeError, ValueError, RuntimeError):
            kind = type(result).__name__
            raise LpdsError(f"decoder {self.name!r} must return an array or a tensor of actions, not a {kind}") from None
        action = action.detach().to(w.device, torch.float32)
        wanted = (w.shape[0], *self.spec.action_shape)
        if tuple(action.shape) != wanted:
            raise LpdsError(f"decoder {self.name!r} returned actions {list(action.shape)}, expected {list(wanted)}")
        return action

    def describe(self) -> dict[str, Any]:
        """Facts for the passport."""
        return {"kind": "callable", "name": self.name}

    def _fingerprint(self) -> str:
        obs, w = self._probe()
        first, second = self(obs, w), self(obs, w)
        if not bool(torch.isfinite(first).all()):
            raise LpdsError(f"decoder {self.name!r} returned NaN or infinite actions on a probe")
        if not torch.equal(first, second):
            raise LpdsError(
                f"decoder {self.name!r} is stochastic: the same observation and latent gave two different actions. "
                "Use a deterministic sampler (DDIM with eta 0, or an ODE solver) and pass it the initial noise w"
            )
        # Two decimals, in the unit of each action coordinate (metres a step are small numbers), are far above rounding
        # noise and far below any change that matters. The 1.5 keeps the unit's own jumps away from 1, 0.1, ...
        largest = first.double().abs().amax((0, 1))
        exponent = torch.where(largest > 0, (1.5 * largest).log10().floor(), 0.0)
        probe = torch.round(first.double() / 10.0**exponent, decimals=2) + 0.0
        spec = self.spec
        facts = {"name": self.name, "latent": spec.latent_shape, "action": spec.action_shape, "free": spec.free}
        return hash_tensors({"probe": probe, "exponent": exponent}, facts)

    def _probe(self) -> tuple[Any, Tensor]:
        def draw(index: int, shape: Shape) -> Tensor:
            return torch.from_numpy(normal("probe", index, shape=(2, *shape)))

        shape = self.spec.obs_shape
        obs: Any
        if isinstance(shape, Mapping):
            obs = {key: draw(index + 1, shape[key]) for index, key in enumerate(sorted(shape))}
        else:
            obs = draw(1, shape)
        return obs, draw(0, self.spec.latent_shape)


def wrap_decoder(
    fn: Callable[..., Any],
    *,
    obs_shape: Shape | Mapping[str, Shape],
    latent_shape: tuple[int, int],
    action_shape: tuple[int, int],
    name: str,
    free: tuple[bool, ...] | None = None,
) -> CallableDecoder:
    """Make any function a decoder that can be steered.

    Args:
        fn: ``fn(obs, w) -> actions``; float32 tensors [B, *obs_shape] (a dict of them) and [B, H, L] in, an array or
            tensor [B, T, A] in environment units out. It must be a function: the same input, the same output.
        obs_shape: without the batch axis.
        latent_shape: (H, L).
        action_shape: (T, A), the executed chunk.
        name: part of the fingerprint, by which a Delta knows its decoder.
        free: for each of the L latent columns whether it may be steered; all by default.

    Returns:
        The decoder. A function that is not deterministic is refused when it is steered, and reported by
        :func:`lpds.check`.

    Raises:
        LpdsError: a shape is not made of positive integers, or ``free`` does not have L entries.
    """
    shapes = list(obs_shape.values()) if isinstance(obs_shape, Mapping) else [obs_shape]
    for what, shape in [*(("obs_shape", s) for s in shapes), ("latent_shape", latent_shape), ("action_shape", action_shape)]:
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise LpdsError(f"{what} must be made of positive integers, not {tuple(shape)}")
    for what, shape in (("latent_shape", latent_shape), ("action_shape", action_shape)):
        if len(shape) != 2:
            raise LpdsError(f"{what} must have two entries, not {tuple(shape)}")
    if free is not None and (len(free) != latent_shape[1] or not any(free)):
        raise LpdsError(f"free must have {latent_shape[1]} entries, at least one of them true, not {free}")
    if isinstance(obs_shape, Mapping):
        frozen: Shape | Mapping[str, Shape] = {key: tuple(value) for key, value in obs_shape.items()}
    else:
        frozen = tuple(obs_shape)
    spec = LatentSpec(frozen, (latent_shape[0], latent_shape[1]), (action_shape[0], action_shape[1]), free)
    return CallableDecoder(fn, spec, name)
