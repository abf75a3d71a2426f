"""What every decoder shares: input checks, the normaliser, the fingerprint."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lpds.errors import LpdsError
from lpds.observations import has_channels_first, has_channels_last
from lpds.types import LatentSpec, Shape


class BaseDecoder(ABC):
    """A deterministic map ``a = Phi(s, w)`` from state and initial noise to an action chunk.

    Subclasses implement :meth:`decode` (and :meth:`prepare` where something depends on the state alone) and
    :meth:`_fingerprint`. Nothing here is trained and no gradient passes through.
    """

    secrets: tuple[str, ...] = ()
    """Options of its loader that no run folder may hold."""
    decodes_states = True
    """Whether what is learned from and kept, the observation or its features (:meth:`from_features`), can be decoded again."""
    shares_context = False
    """Whether :meth:`prepare` is so dear that it is done once for all noises of a state; see :meth:`repeat`."""
    runs_on: str | None = None
    """Device of a policy that stays on one of its own, whatever device its inputs come from."""
    can_be_lost = False
    """Whether a decode may raise :class:`DecoderFault`, so that a run must be able to take back a half-done update."""

    def __init__(self, spec: LatentSpec, name: str, reference: str | None = None) -> None:
        self._spec = spec
        self.name = name
        self.reference = reference
        self.options: dict[str, Any] = {}
        self._cached_fingerprint: str | None = None
        self._cached_probe: str | None = None

    @property
    def spec(self) -> LatentSpec:
        """Shapes of observation, latent and action."""
        return self._spec

    @property
    def fingerprint(self) -> str:
        """sha256 over weights, sampler and normaliser, as a hexadecimal string."""
        if self._cached_fingerprint is None:
            self._cached_fingerprint = self._fingerprint()
        return self._cached_fingerprint

    @property
    def probe(self) -> str | None:
        """What it decodes at a few inputs, as a text to be kept beside the fingerprint; ``None`` where weights are hashed."""
        return None

    def resembles(self, probe: str) -> bool:
        """Whether :attr:`probe` is another one's up to rounding, so that another machine's is the same decoder."""
        return False

    def forget(self) -> None:
        """Take the fingerprint anew when it is asked for next: what is inside may have changed since."""
        self._cached_fingerprint = self._cached_probe = None

    def is_as_it_was(self) -> bool:
        """Whether it has the fingerprint that was taken first; where that is of what it decodes, to rounding.

        Raises:
            LpdsError: it is no decoder any more: it draws, remembers, or decodes what is not finite.
        """
        before, probe = self.fingerprint, self._cached_probe
        self.forget()
        try:
            return self.fingerprint == before or (probe is not None and self.resembles(probe))
        finally:
            self._cached_fingerprint, self._cached_probe = before, probe

    def __call__(self, obs: Tensor, w: Tensor) -> Tensor:
        """Decode a batch.

        Args:
            obs: float32 [B, O], raw observations, or a dict of tensors [B, ...].
            w: float32 [B, H, L], the latent noise.

        Returns:
            float32 [B, T, A] in environment units, on the device of the inputs.

        Raises:
            LpdsError: a shape does not fit; the message says which.
        """
        obs, w = as_float32(obs, integers=True), as_float32(w, integers=True)
        self._check_inputs(obs, w)
        with torch.no_grad():
            return self.decode(self.prepare(obs), w)

    def action_range(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest action [A] in environment units; minus and plus infinity where the decoder knows none."""
        normaliser = getattr(self, "normaliser", None)
        if normaliser is None:
            edge = torch.full((self.spec.action_shape[1],), torch.inf)
            return -edge, edge
        return normaliser.action_min, normaliser.action_max

    def plausible(self, draws: Any) -> Any:
        """Turn standard normal draws, shaped as observations, into observations such as the decoder might meet.

        Pictures are uniform: uint8 where the channels come last, in [0, 1] where they come first. Tokens (by LeRobot's names)
        are small whole numbers. Vectors are uniform over the normaliser's range where there is one, else left as they are.

        Args:
            draws: float32 [B, O], or a dict of tensors [B, ...], from N(0, I).
        """
        if isinstance(draws, Mapping):
            return {key: as_entry(key, value) for key, value in draws.items()}
        normaliser = getattr(self, "normaliser", None)
        if normaliser is None:
            return as_picture(draws)
        low, high = normaliser.obs_min.cpu(), normaliser.obs_max.cpu()
        return low + uniform(draws) * (high - low)

    def prepare(self, obs: Tensor) -> Any:
        """Compute what depends on the state alone; the identity unless a subclass knows better."""
        return obs

    @property
    def signal_at_start(self) -> float | None:
        """Share of signal in the variance of what the network was trained to see at the sampler's first step, abar.

        The latent, N(0, I), has none. ``None`` where there is nothing to say: a flow starts at noise, a wrapped function does
        not tell.
        """
        return None

    @property
    def blind(self) -> bool:
        """Whether it is known to give the same actions for different noises: such a decoder cannot be steered."""
        return False

    @property
    def leaks(self) -> bool:
        """Whether a row is known to decode otherwise among others than among fewer."""
        return False

    @property
    def finer(self) -> tuple[tuple[str, int], ...]:
        """Samplers of more steps, as an option of the loader and its value; none where nothing is known of one.

        A decoder too large to be opened twice knows of none.
        """
        return ()

    @property
    def feature_size(self) -> int | None:
        """F, where :meth:`features` stand in the place of observations too large to learn from; else ``None``."""
        return None

    def repeat(self, context: Any, count: int) -> Any:
        """A context with every state ``count`` times in a row; a tensor, or a table or sequence of such."""
        return repeat_rows(context, count)

    def features(self, context: Any) -> Tensor:
        """Features float32 [B, F] of the observations behind a context, for Delta and the critics; of nothing else.

        Raises:
            LpdsError: it offers none.
        """
        raise LpdsError(f"decoder {self.name!r} offers no features")

    def from_features(self, features: Tensor) -> Any:
        """The context behind features [B, F], where ``decodes_states`` says that they hold all of it.

        Raises:
            LpdsError: they do not.
        """
        raise LpdsError(f"decoder {self.name!r} cannot decode its features again: it needs the observation")

    @abstractmethod
    def decode(self, context: Any, w: Tensor) -> Tensor:
        """Decode [B, H, L] noises against a prepared context to [B, T, A]; unchecked."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts for the passport: kind, sampler, sizes."""

    @abstractmethod
    def _fingerprint(self) -> str: ...

    def _check_inputs(self, obs: Any, w: Tensor) -> None:
        shape = self.spec.obs_shape
        if isinstance(shape, Mapping):
            rows = self._check_entries(obs, shape)
        elif tuple(obs.shape[1:]) != tuple(shape):
            raise LpdsError(
                f"decoder {self.name!r} takes observations [B, {', '.join(map(str, shape))}], not {list(obs.shape)}"
            )
        else:
            rows = {int(obs.shape[0])}
        if tuple(w.shape[1:]) != self.spec.latent_shape or w.dim() != 3:
            h, latent = self.spec.latent_shape
            raise LpdsError(f"decoder {self.name!r} takes latents [B, {h}, {latent}], not {list(w.shape)}")
        if rows != {w.shape[0]}:
            counts = " and ".join(map(str, sorted(rows)))
            raise LpdsError(f"{counts} observations but {w.shape[0]} latents: the batch sizes must be equal")

    def _check_entries(self, obs: Any, shapes: Mapping[str, Shape]) -> set[int]:
        """Compare a dict observation with its shapes; the batch sizes met."""
        if not isinstance(obs, Mapping):
            raise LpdsError(f"decoder {self.name!r} takes a dict of {', '.join(shapes)}, not a {type(obs).__name__}")
        for key, shape in shapes.items():
            if key not in obs:
                raise LpdsError(f"decoder {self.name!r} lacks the observation {key!r} (given: {', '.join(map(str, obs))})")
            if tuple(obs[key].shape[1:]) != tuple(shape):
                wanted = ", ".join(map(str, shape))
                raise LpdsError(f"decoder {self.name!r} takes {key!r} as [B, {wanted}], not {list(obs[key].shape)}")
        return {int(obs[key].shape[0]) for key in shapes}


def uniform(draws: Tensor) -> Tensor:
    """Standard normal draws as draws from U(0, 1): their distribution function."""
    share: Tensor = torch.special.ndtr(draws)
    return share


def as_entry(key: str, draws: Tensor) -> Tensor:
    """Standard normal draws [B, ...] as an entry of a dict observation, by its name and shape."""
    if key.endswith(".language.attention_mask"):
        return torch.ones_like(draws)
    if key.endswith(".language.tokens"):  # no vocabulary is smaller, and its special tokens lie at the end
        return (64.0 * uniform(draws)).floor()
    return as_picture(draws)


def as_picture(draws: Tensor) -> Tensor:
    """Standard normal draws [B, ...] as a uniform picture where they have a picture's shape; else as they are."""
    shape = tuple(draws.shape[1:])
    if len(shape) >= 3 and has_channels_last(shape):
        return (256.0 * uniform(draws)).clamp(max=255.0).to(torch.uint8)
    if len(shape) >= 3 and has_channels_first(shape):
        return (256.0 * uniform(draws)).floor().clamp(max=255.0) / 255.0  # shades that a byte can have, as a camera's are
    return draws


def as_float32(value: Any, *, integers: bool = False) -> Any:
    """Tensors of another floating type as float32, with ``integers`` those, too, but a picture's; all else as it is.

    Raises:
        LpdsError: something else than a tensor, or a table of them.
    """
    if isinstance(value, Mapping):
        return {key: as_float32(part) for key, part in value.items()}  # its integers may be tokens
    if not isinstance(value, Tensor):
        raise LpdsError(f"a decoder takes tensors, not a {type(value).__name__} (torch.as_tensor makes one)")
    other = value.is_floating_point() or (integers and value.dtype != torch.uint8)
    return value.float() if other and value.dtype != torch.float32 else value


@dataclass(frozen=True)
class MinMaxNormaliser:
    """Min-max scaling to [-1, 1], as DPPO does it: 1e-6 in the observation's denominator, no clip."""

    obs_min: Tensor
    """[O]."""
    obs_max: Tensor
    """[O]."""
    action_min: Tensor
    """[A]."""
    action_max: Tensor
    """[A]."""

    def observation(self, obs: Tensor) -> Tensor:
        """Raw [..., O] to normalised."""
        return 2.0 * ((obs - self.obs_min) / (self.obs_max - self.obs_min + 1e-6) - 0.5)

    def action(self, action: Tensor) -> Tensor:
        """Normalised [..., A] to environment units."""
        return (action + 1.0) / 2.0 * (self.action_max - self.action_min) + self.action_min

    def normalise_action(self, action: Tensor) -> Tensor:
        """Environment units [..., A] to normalised; the inverse of :meth:`action`, and 0 where the range has no width."""
        width = self.action_max - self.action_min
        return torch.where(width == 0, 0.0, 2.0 * (action - self.action_min) / width - 1.0)

    def tensors(self) -> dict[str, Tensor]:
        """The four ranges by name."""
        return {name: getattr(self, name) for name in ("obs_min", "obs_max", "action_min", "action_max")}

    def to(self, device: torch.device) -> MinMaxNormaliser:
        """The same on another device."""
        return MinMaxNormaliser(**{name: value.to(device) for name, value in self.tensors().items()})


def repeat_rows(value: Any, count: int) -> Any:
    """Every row ``count`` times in a row, in tensors and in tables and sequences of them; anything else as it is."""
    return each_part(value, lambda part: part.repeat_interleave(count, 0) if isinstance(part, Tensor) else part)


def each_part(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same table, sequence or named tuple with every part that is none of these changed."""
    if isinstance(value, Mapping):
        return {key: each_part(entry, change) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(each_part(entry, change) for entry in value))
    if isinstance(value, list | tuple):
        return type(value)(each_part(entry, change) for entry in value)
    return change(value)


def hash_tensors(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """sha256 over named tensors (name, shape, float32 bytes) and JSON facts."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def refuse_non_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise one clear line if any weight is NaN or infinite."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise LpdsError(f"{what}: {bad} of {value.numel()} weights in {name!r} are NaN or infinite")
