"""The environment loop: decide with the policy, execute a chunk everywhere, give one row per sub-environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpds.envs.chunk import ChunkedVectorEnv, chunk_return
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
        """
        self.env, self.decoder, self.device = env, decoder, device
        self._seed, self._gamma, self._discount = seed, gamma, discount
        self._offset, self._kept = reward_offset, kept_noises
        self._extras = dict(extras or {})
        self.obs, _ = env.reset(seed=seed)
        self.episodes = [Episode() for _ in range(env.num_envs)]

    def step(self, policy: Policy, scale: float) -> tuple[dict[str, Tensor], list[EpisodeRecord], int]:
        """Make one decision in every sub-environment.

        Args:
            policy: chooses the latent.
            scale: 0 for the frozen policy, 1 for the learned one.

        Returns:
            The rows for the replay, the episodes that ended in the order of their sub-environments, and the primitive
            steps executed.
        """
        spec = self.decoder.spec
        addresses = [(self._seed, lane, e.number, e.decision) for lane, e in enumerate(self.episodes)]
        shape = (policy.draws, *spec.latent_shape)
        eps = torch.from_numpy(np.stack([normal("train", *at, shape=shape) for at in addresses]))
        obs = torch.from_numpy(self.obs).to(self.device)
        with torch.no_grad():
            decision = policy.act(self.decoder, obs, eps.to(self.device), scale)
            kept, decoded = self._decode_kept(obs, addresses)
        action = decision.action
        chunks = action.cpu().numpy()
        next_obs, reward, terminated, truncated, info = self.env.step(chunks)
        rewards = info["rewards"] + self._offset * (np.arange(self.env.chunk) < info["k"][:, None])
        target, discount = chunk_return(rewards, info["k"], terminated, self._gamma, self._discount)
        over = terminated | truncated
        rows = {
            "obs": obs,
            "action": action.flatten(1),
            "reward": torch.from_numpy(target),
            "discount": torch.from_numpy(discount),
            "next_obs": torch.from_numpy(info["final_obs"]),
            "base_noise": kept,
            "base_action": decoded,
            "over": torch.from_numpy(over.astype(np.float32)),
        }
        for name, wanted in self._extras.items():
            rows[name] = decision.extra.get(name, torch.zeros(len(obs), *wanted))
        records = self._account(chunks, reward, over, info)
        self.obs = next_obs
        return rows, records, int(info["k"].sum())

    @torch.no_grad()
    def complete(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give rows that were not collected, R of every field, the base noises that collected ones have."""
        addresses = [(self._seed, row) for row in range(len(rows["obs"]))]
        parts = [
            self._decode_kept(rows["obs"][at : at + 256].to(self.device), addresses[at : at + 256], "demonstrations")
            for at in range(0, len(addresses), 256)
        ]
        kept, decoded = (torch.cat(values) for values in zip(*parts, strict=True))
        return {**rows, "base_noise": kept, "base_action": decoded}

    def _decode_kept(self, obs: Tensor, addresses: Sequence[tuple[int, ...]], stream: str = "kept") -> tuple[Tensor, Tensor]:
        """M base noises per state and their chunks, [N, M, H * L] and [N, M, T * A]."""
        spec, count, lanes = self.decoder.spec, self._kept, len(addresses)
        if not count:
            return torch.empty(lanes, 0, spec.latent_size), torch.empty(lanes, 0, spec.action_size)
        draws = [normal(stream, *at, shape=(count, *spec.latent_shape)) for at in addresses]
        noise = torch.from_numpy(np.stack(draws)).to(self.device)
        context = self.decoder.prepare(obs.repeat_interleave(count, 0))
        action = self.decoder.decode(context, noise.flatten(0, 1))
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
        out = {"obs": torch.from_numpy(self.obs.copy())}
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

    def restore(self, tensors: dict[str, Tensor], facts: list[dict[str, Any]]) -> list[str]:
        """Reseed and replay the episodes under way.

        Returns:
            One line for every sub-environment whose replay led elsewhere; its episode starts anew.
        """
        complaints = []
        saved = tensors["obs"].numpy()
        for lane, fact in enumerate(facts):
            chunks = list(tensors[f"chunks.{lane}"].numpy())
            reached = self.env.replay(lane, fact["number"], chunks)
            success = float("nan") if fact["success"] is None else fact["success"]
            episode = Episode(fact["number"], len(chunks), fact["total"], fact["length"], success, chunks)
            if not np.array_equal(reached, saved[lane]):
                worst = float(np.abs(reached - saved[lane]).max())
                complaints.append(
                    f"sub-environment {lane}: replaying {len(chunks)} decisions of episode {fact['number']} missed the "
                    f"saved observation by {worst:.3g}; that episode starts anew"
                )
                reached, episode = self.env.replay(lane, fact["number"], []), Episode(fact["number"])
            self.obs[lane] = reached
            self.episodes[lane] = episode
        return complaints
