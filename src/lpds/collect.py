"""The environment loop: decide with the policy, execute a chunk everywhere, give one row per sub-environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpds.compact import Sight, look
from lpds.envs.chunk import ChunkedVectorEnv, chunk_return
from lpds.observations import parts, select, write
from lpds.random import normal
from lpds.types import Decoder, Policy, Shape


@dataclass
class Episode:
    """The episode under way in one sub-environment."""

    number: int = 0
    decision: int = 0
    total: float = 0.0
    length: int = 0
    success: float = float("nan")
    chunks: list[npt.NDArray[np.float32]] = field(default_factory=list)
    """[T, A] each, everything executed since the reset: what an exact resume replays."""


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished training episode."""

    lane: int
    """Sub-environment."""
    seed: int
    total: float
    """Undiscounted environment return."""
    success: float
    """At any step; NaN if the environment does not say."""
    length: int
    """Primitive steps."""


class Collector:
    """Holds the environments and the episodes under way; owns no other randomness than addresses of draws."""

    def __init__(
        self,
        env: ChunkedVectorEnv,
        decoder: Decoder,
        *,
        seed: int,
        gamma: float,
        discount: str,
        reward_offset: float,
        kept_noises: int,
        device: torch.device,
        extras: Mapping[str, Shape] | None = None,
        kept_next: int = 0,
    ) -> None:
        """Reset every environment.

        Args:
            env: same-step autoreset.
            decoder: frozen.
            seed: of the run; the noise of a decision is addressed by (seed, sub-environment, episode, decision).
            gamma: per primitive step.
            discount: chunk arithmetic by name.
            reward_offset: added to every executed primitive reward in what the rows hold, never in what is reported.
            kept_noises: M base noises decoded and put into every row.
            device: of the rows.
            extras: what a row holds beside, by name and shape.
            kept_next: K chunks decoded for the observation after the decision and put into every row.
        """
        self.env, self.decoder, self.device = env, decoder, device
        self._seed, self._gamma, self._discount = seed, gamma, discount
        self._offset, self._kept, self._kept_next = reward_offset, kept_noises, kept_next
        self._extras = dict(extras or {})
        self.obs, _ = env.reset(seed=seed)
        self.episodes = [Episode() for _ in range(env.num_envs)]
        self._ahead: Sight | None = None  # what the next decision is made in, where it has been looked at already

    def step(
        self, policy: Policy, scale: float, target: Policy | None = None
    ) -> tuple[dict[str, Tensor], list[EpisodeRecord], int]:
        """Make one decision in every sub-environment.

        Args:
            policy: chooses the latent.
            scale: 0 for the frozen policy, 1 for the learned one.
            target: chooses the latents of the next chunks that are kept; ``policy`` by default.

        Returns:
            The rows for the replay, the episodes that ended in the order of their sub-environments, and the primitive
            steps executed.
        """
        spec = self.decoder.spec
        addresses = [(self._seed, lane, e.number, e.decision) for lane, e in enumerate(self.episodes)]
        shape = (policy.draws, *spec.latent_shape)
        eps = torch.from_numpy(np.stack([normal("train", *at, shape=shape) for at in addresses]))
        seen = self._ahead or look(self.decoder, self.obs, self.device)
        with torch.no_grad():
            decision = policy.act(seen.decoder, seen.state, eps.to(self.device), scale)
            kept, decoded = self._decode_kept(seen, addresses)
        action = decision.action
        chunks = action.cpu().numpy()
        next_obs, reward, terminated, truncated, info = self.env.step(chunks)
        rewards = info["rewards"] + self._offset * (np.arange(self.env.chunk) < info["k"][:, None])
        summed, discount = chunk_return(rewards, info["k"], terminated, self._gamma, self._discount, truncated)
        over = terminated | truncated
        ahead, following = self._look_ahead(next_obs, info["final_obs"], over, addresses, target or policy, scale)
        rows = {
            "obs": seen.state,
            "action": action.flatten(1),
            "reward": torch.from_numpy(summed),
            "discount": torch.from_numpy(discount),
            "base_noise": kept,
            "base_action": decoded,
            "over": torch.from_numpy(over.astype(np.float32)),
            **following,
        }
        for name, wanted in self._extras.items():
            rows[name] = decision.extra.get(name, torch.zeros(len(seen.state), *wanted))
        records = self._account(chunks, reward, over, info)
        self.obs, self._ahead = next_obs, ahead
        return rows, records, int(info["k"].sum())

    @torch.no_grad()
    def complete(self, rows: dict[str, Tensor], target: Policy) -> dict[str, Tensor]:
        """Give rows that were not collected, R of every field, what collected ones have of the frozen policy."""
        done = []
        for at in range(0, len(rows["obs"]), 256):
            part = {name: value[at : at + 256] for name, value in rows.items()}
            addresses = [(self._seed, at + row) for row in range(len(part["obs"]))]
            seen, ahead = (look(self.decoder, part[name], self.device) for name in ("obs", "next_obs"))
            kept, decoded = self._decode_kept(seen, addresses, "demonstrations")
            following = self._decode_next(ahead, addresses, target, 0.0, "demonstrations next")
            done.append({**part, "obs": seen.state, **following, "base_noise": kept, "base_action": decoded})
        return {name: torch.cat([part[name] for part in done]) for name in done[0]}

    @torch.no_grad()
    def _look_ahead(
        self,
        next_obs: Any,
        final_obs: Any,
        over: npt.NDArray[np.bool_],
        addresses: Sequence[tuple[int, ...]],
        target: Policy,
        scale: float,
    ) -> tuple[Sight, dict[str, Tensor]]:
        """Look at where the next decisions are made, and give the rows what follows them: the same, until an episode ends."""
        ahead = look(self.decoder, next_obs, self.device)
        following = self._decode_next(ahead, addresses, target, scale)
        ended = [int(lane) for lane in np.flatnonzero(over)]
        if ended:
            last = look(self.decoder, select(final_obs, ended), self.device)
            there = self._decode_next(last, [addresses[lane] for lane in ended], target, scale)
            index = torch.tensor(ended, device=self.device)
            following = {name: value.index_copy(0, index, there[name]) for name, value in following.items()}
        return ahead, following

    def _decode_next(
        self, ahead: Sight, addresses: Sequence[tuple[int, ...]], target: Policy, scale: float, stream: str = "next"
    ) -> dict[str, Tensor]:
        """The next state, and K chunks there with the latents they came from."""
        count, rows = self._kept_next, len(addresses)
        if not count:
            return {"next_obs": ahead.state}
        shape = (count, target.draws, *self.decoder.spec.latent_shape)
        eps = torch.from_numpy(np.stack([normal(stream, *at, shape=shape) for at in addresses])).to(self.device)
        states = ahead.state.repeat_interleave(count, 0)
        decision = target.act(ahead.decoder, states, eps.flatten(0, 1), scale)
        latent = eps[:, :, 0] if decision.latent is None else decision.latent
        return {
            "next_obs": ahead.state,
            "next_action": decision.action.reshape(rows, count, -1),
            "next_latent": latent.reshape(rows, count, -1),
        }

    def _decode_kept(self, seen: Sight, addresses: Sequence[tuple[int, ...]], stream: str = "kept") -> tuple[Tensor, Tensor]:
        """M base noises per state and their chunks, [N, M, H * L] and [N, M, T * A]."""
        spec, count, lanes = self.decoder.spec, self._kept, len(addresses)
        if not count:
            return torch.empty(lanes, 0, spec.latent_size), torch.empty(lanes, 0, spec.action_size)
        draws = [normal(stream, *at, shape=(count, *spec.latent_shape)) for at in addresses]
        noise = torch.from_numpy(np.stack(draws)).to(self.device)
        context = seen.decoder.prepare(seen.state.repeat_interleave(count, 0))
        action = seen.decoder.decode(context, noise.flatten(0, 1))
        return noise.flatten(2), action.flatten(1).unflatten(0, (lanes, count))

    def _account(
        self, chunks: npt.NDArray[np.float32], reward: npt.NDArray[Any], over: npt.NDArray[Any], info: dict[str, Any]
    ) -> list[EpisodeRecord]:
        records = []
        for lane, episode in enumerate(self.episodes):
            episode.decision += 1
            episode.total += float(reward[lane])
            episode.length += int(info["k"][lane])
            episode.success = float(np.fmax(episode.success, info["success"][lane]))
            episode.chunks.append(chunks[lane])
            if over[lane]:
                seed = int(info["seed"][lane])
                records.append(EpisodeRecord(lane, seed, episode.total, episode.success, episode.length))
                self.episodes[lane] = Episode(episode.number + 1)
        return records

    # -- exact resume ----------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The actions of the episodes under way and the observations they led to."""
        out = {_named(key): torch.from_numpy(value.copy()) for key, value in parts(self.obs).items()}
        for lane, episode in enumerate(self.episodes):
            shape = (0, *self.decoder.spec.action_shape)
            chunks = np.stack(episode.chunks) if episode.chunks else np.empty(shape, np.float32)
            out[f"chunks.{lane}"] = torch.from_numpy(chunks)
        return out

    def facts(self) -> list[dict[str, Any]]:
        """The counters of the episodes under way, as JSON."""
        return [
            {
                "number": episode.number,
                "total": episode.total,
                "length": episode.length,
                "success": None if np.isnan(episode.success) else episode.success,
            }
            for episode in self.episodes
        ]

    def restore(self, tensors: dict[str, Tensor], facts: list[dict[str, Any]]) -> dict[int, str]:
        """Reseed and replay the episodes under way.

        Returns:
            The sub-environments whose replay led elsewhere, each with a line that says so; its episode starts anew.
        """
        complaints = {}
        saved = {key: tensors[_named(key)].numpy() for key in parts(self.obs)}
        self._ahead = None
        for lane, fact in enumerate(facts):
            chunks = list(tensors[f"chunks.{lane}"].numpy())
            reached = self.env.replay(lane, fact["number"], chunks)
            success = float("nan") if fact["success"] is None else fact["success"]
            episode = Episode(fact["number"], len(chunks), fact["total"], fact["length"], success, chunks)
            pairs = [(value.astype(np.float32), saved[key][lane].astype(np.float32)) for key, value in parts(reached).items()]
            worst = max(float(np.abs(now - then).max()) for now, then in pairs)
            over = self.env.over[lane]  # what is under way had not ended; left ended, it would never act again
            if over or worst > 0.0:
                missed = "came to its end" if over else f"missed the saved observation by {worst:.3g}"
                complaints[lane] = (
                    f"WARNING: sub-environment {lane}: replaying {len(chunks)} decisions of episode {fact['number']} {missed}; "
                    "that episode starts anew"
                )
                reached, episode = self.env.replay(lane, fact["number"], []), Episode(fact["number"])
            write(self.obs, lane, reached)
            self.episodes[lane] = episode
        return complaints


def _named(part: str) -> str:
    """What a part of the observation is called in a checkpoint."""
    return f"obs.{part}" if part else "obs"
