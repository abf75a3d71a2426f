"""What a decoder is probed with: observations, addressed noises, and the decodes that several findings share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from lpds.compact import is_compact, is_held_whole, look, refuse_other_pictures
from lpds.envs.build import check_fit, environment_factory, make_env
from lpds.envs.chunk import ChunkedVectorEnv
from lpds.errors import LpdsError, one_line
from lpds.observations import conform
from lpds.random import normal
from lpds.types import Decoder, Shape

ROWS_AT_ONCE = 256
FEW_AT_ONCE = 20
"""Rows of a batch where every state holds pictures or a dear context; as many as an evaluation has."""
FULL_EFFORT = 256
"""Samples from which on every finding has all of its decodes; fewer samples take as much less of the dear ones."""
NOISES_PER_STATE = 32
SINGLE_BUDGET = 4096
"""Rows decoded to find single dead coordinates; a latent of pi0's size gets two states for each of its 1600, or none where
samples are few."""


@dataclass
class Probe:
    """A decoder, observations to show it, and the decodes that several findings share."""

    decoder: Decoder
    obs: Any
    """float32 [N, O], or a dict of [N, ...]."""
    seed: int
    states: int = field(init=False)
    """S, distinct states of the nested design."""
    effort: float = field(init=False)
    """Share of the decodes that a finding makes with :data:`FULL_EFFORT` samples."""
    at_once: int = field(init=False)
    """Rows of a batch."""

    def __post_init__(self) -> None:
        self.states = max(8, len(self) // 8)
        self.effort = min(1.0, len(self) / FULL_EFFORT)
        self._shares = is_compact(self.decoder) or bool(getattr(self.decoder, "shares_context", False))
        self.at_once = FEW_AT_ONCE if self._shares or is_held_whole(self.decoder) else ROWS_AT_ONCE

    def __len__(self) -> int:
        return len(next(iter(self.obs.values()))) if isinstance(self.obs, dict) else len(self.obs)

    def noise(self, address: int, count: int) -> Tensor:
        """Latents [count, H, L] from N(0, I), addressed."""
        return torch.from_numpy(normal("probe", self.seed, address, shape=(count, *self.decoder.spec.latent_shape)))

    def spread_rows(self, count: int) -> Tensor:
        """Indices [count] into the observations, evenly over all of them."""
        return torch.from_numpy(np.linspace(0, len(self) - 1, count).round().astype(np.int64))

    def decode(self, rows: Tensor, w: Tensor, backwards: bool = False) -> Tensor:
        """Actions [n, T * A] for observations ``rows`` [n] and noises [n, H, L], in batches; a dear context once a state.

        ``backwards`` decodes the same batches in the opposite order.
        """
        if self._shares:
            return self._decode_by_state(rows, w, backwards)
        order = range(0, len(rows), self.at_once)
        parts = {
            i: self.decoder(take(self.obs, rows[i : i + self.at_once]), w[i : i + self.at_once].clone()).flatten(1)
            for i in (reversed(order) if backwards else order)
        }
        return torch.cat([parts[i] for i in order])

    @torch.no_grad()
    def _decode_by_state(self, rows: Tensor, w: Tensor, backwards: bool) -> Tensor:
        out = torch.empty(len(rows), self.decoder.spec.action_size)
        states: list[int] = rows.unique().tolist()
        for state in reversed(states) if backwards else states:
            seen, places = look(self.decoder, take(self.obs, torch.tensor([state]))), torch.nonzero(rows == state).flatten()
            for some in places.split(self.at_once):
                context = seen.decoder.prepare(seen.state.repeat_interleave(len(some), 0))
                out[some] = seen.decoder.decode(context, w[some]).flatten(1)
        return out

    def share_of(self, count: int, least: int) -> int:
        """As many of ``count`` as the effort allows."""
        return max(least, round(count * self.effort))

    @cached_property
    def nested_rows(self) -> Tensor:
        """[S * M], every state with all of its noises."""
        return self.spread_rows(self.states).repeat_interleave(NOISES_PER_STATE)

    @cached_property
    def nested(self) -> Tensor:
        """Actions [S, M, T * A] for S states under M noises each."""
        action = self.decode(self.nested_rows, self.noise(0, len(self.nested_rows)))
        return action.view(self.states, NOISES_PER_STATE, -1)

    @cached_property
    def finite(self) -> Tensor:
        """The states of :attr:`nested` [S', M, T * A] whose actions are all finite."""
        return self.nested[torch.isfinite(self.nested).flatten(1).all(1)].double()

    @cached_property
    def effects(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shares of the variance due to w: of columns [L], rows [H] and coordinates [H, L], each redrawn alone.

        Single coordinates are infinite, not looked at, where they are too many for so few samples.
        """
        h, latent = self.decoder.spec.latent_shape
        single = torch.eye(h * latent, dtype=torch.bool).view(-1, h, latent)
        column = torch.eye(latent, dtype=torch.bool)[:, None, :].expand(-1, h, -1)
        row = torch.eye(h, dtype=torch.bool)[:, :, None].expand(-1, -1, latent)
        few = min(64, self.share_of(SINGLE_BUDGET, 1) // (h * latent))
        if few < 2 and self.effort == 1.0:
            few = 2
        states = self.share_of(64, 4)
        alone = self._share(single, few) if few >= 2 else torch.full((h * latent,), torch.inf)
        return self._share(column, states), self._share(row, states), alone.view(h, latent)

    def _share(self, masks: Tensor, count: int) -> Tensor:
        rows, old, new = self.spread_rows(count), self.noise(1, count), self.noise(2, count)
        base = self.decode(rows, old)
        moved = [self.decode(rows, new) - base]
        mixed = torch.where(masks[:, None], new, old)  # [masks, count, H, L]
        moved.append(self.decode(rows.repeat(len(masks)), mixed.flatten(0, 1)) - base.repeat(len(masks), 1))
        whole, parts = moved[0].double(), moved[1].double().view(len(masks), count, -1)
        keep = torch.isfinite(whole).all(1) & torch.isfinite(parts).all(2).all(0)
        # each coordinate of the action in its own unit, or one in large units would hide what moves the others
        moved_sq = whole[keep].square().mean(0)
        weight = torch.where(moved_sq > (1e-5 * base[keep].double()).square().mean(0), 1.0 / moved_sq, 0.0)
        return (parts[:, keep].square() * weight).sum((1, 2)) / (whole[keep].square() * weight).sum()


def largest_gap(a: Tensor, b: Tensor) -> float:
    """Largest difference of two batches [B, T, A], in the root mean square of each of the A columns, that of ``a``."""
    size = a.double().square().mean((0, 1)).sqrt()
    return float(((a - b).double().abs().amax((0, 1)) / size.clamp(min=1e-6 * float(size.max()) + 1e-12)).max())


def take(obs: Any, rows: Tensor) -> Any:
    """A copy of some rows of observations, a tensor or a dict of them."""
    return {key: value[rows] for key, value in obs.items()} if isinstance(obs, dict) else obs[rows]


def synthetic_observations(decoder: Decoder, samples: int, seed: int) -> Any:
    """Draw [samples, O], or a dict of them, as the decoder thinks plausible; from N(0, I) where it does not say."""
    shape = decoder.spec.obs_shape

    def draw(index: int, one: Shape) -> Tensor:
        return torch.from_numpy(normal("probe", seed, 100 + index, shape=(samples, *one)))

    draws: Any = draw(0, shape) if isinstance(shape, tuple) else {k: draw(i, shape[k]) for i, k in enumerate(sorted(shape))}
    plausible = getattr(decoder, "plausible", None)
    return draws if plausible is None else plausible(draws)


def first_observations(decoder: Decoder, env: ChunkedVectorEnv, rows: int) -> Any:
    """Observations [rows, ...] of a reset, again and again: what a policy is given that takes no others."""
    return take(conform(env.reset()[0], decoder.spec), torch.arange(rows) % env.num_envs)


def open_environment(decoder: Decoder, env: Any, seed: int) -> tuple[ChunkedVectorEnv | None, str | None, str | None]:
    """Make the environment where needed, and compare its spaces with the decoder's.

    Args:
        decoder: that is to act in it.
        env: as in :func:`lpds.check`.
        seed: of the resets of what is made here.

    Returns:
        The environment, its name (both ``None`` where there is none), and one line on what does not fit, or ``None``.

    Raises:
        LpdsError: the name is unknown, or ``env`` is of another kind.
    """
    if env is None:
        return None, None, None
    spec = decoder.spec
    single, chunked, steps = isinstance(env, gymnasium.Env), None, spec.action_shape[0]
    if isinstance(env, ChunkedVectorEnv):
        name, chunked = env.name, env
    elif single:
        name = type(env.unwrapped).__name__
    elif isinstance(env, str) or callable(env):
        name = environment_factory(env)[1]
    else:
        raise LpdsError(f"env is a {type(env).__name__}; give a name, a factory, a single environment or lpds.make_env(...)")
    try:
        if chunked is None:
            chunked = make_env((lambda: env) if single else env, 1 if single else 4, steps, seed, keep_dict=spec.takes_dict)
        check_fit(chunked, spec, decoder.name)
        refuse_other_pictures(chunked.single_observation_space, decoder)
        if chunked.chunk != steps:
            raise LpdsError(f"decoder {decoder.name!r} gives chunks of {steps} steps, but {name} was made for {chunked.chunk}")
    except Exception as error:  # a factory holds any code at all; the report names what it raised
        return chunked, name, one_line(error)
    return chunked, name, None


def meet(decoder: Decoder, env: ChunkedVectorEnv, samples: int, seed: int) -> tuple[Any, Exception | None]:
    """Roll the frozen decoder out, N decisions at a time.

    Args:
        decoder: acts with w ~ N(0, I).
        env: is reset first; its spaces fit the decoder.
        samples: observations wanted.
        seed: of the noise.

    Returns:
        The observations met, [<= samples, O] or a dict of them (``None`` if there are none), and what was raised on the way.
    """
    met: list[Any] = []
    rounds = -(-samples // env.num_envs)
    noise = normal("probe", seed, 99, shape=(rounds, env.num_envs, *decoder.spec.latent_shape))
    try:
        obs = env.reset()[0]
        for index in range(rounds):
            met.append(conform(obs, decoder.spec))
            action = decoder(take(met[-1], torch.arange(env.num_envs)), torch.from_numpy(noise[index]))
            if not bool(torch.isfinite(action).all()):
                break  # a finding of its own; an environment must not be fed with it
            obs, _, terminated, truncated, _ = env.step(action.cpu().numpy())
            over = terminated | truncated
            if over.any() and env.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
                obs = env.reset(options={"reset_mask": over})[0]
    except Exception as error:  # any code at all may be inside a decoder or an environment; the report names it
        return _joined(met, samples) if met else None, error
    return _joined(met, samples), None


def _joined(met: list[Any], samples: int) -> Any:
    if isinstance(met[0], dict):
        return {key: torch.cat([obs[key] for obs in met])[:samples] for key in met[0]}
    return torch.cat(met)[:samples]
