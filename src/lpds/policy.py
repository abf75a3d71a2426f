"""The part of a run that acts, with its decoder: numpy in, numpy out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lpds.checks import check_share
from lpds.compact import as_learned, look
from lpds.decoders.recorded import find_decoder
from lpds.errors import LpdsError, one_line
from lpds.files import FORMAT_VERSION, read_object, write_atomically, write_json
from lpds.observations import Arrays, as_arrays, parts, shapes_fit
from lpds.passport import decoder_facts
from lpds.registry import METHODS, resolve
from lpds.run_folder import RunFolder, folder_of, no_run
from lpds.threads import kept_defaults, kept_random
from lpds.types import Decoder, LatentSpec, Method
from lpds.wire import WireError, spec_from_wire, spec_to_wire

FROZEN = "base"
"""The method that is the frozen policy."""
FloatArray = npt.NDArray[np.float32]


class SteeredPolicy:
    """A frozen decoder and what was learned for it."""

    def __init__(self, decoder: Decoder, policy: Any, method: str, order: Sequence[str] | None = None) -> None:
        """Take a decoder and what acts with it.

        Args:
            decoder: the frozen policy.
            policy: of a method.
            method: its name.
            order: of :func:`save_policy`.
        """
        self.decoder, self.policy, self.method, self.order = decoder, policy, method, order
        self._rng = np.random.default_rng()

    def act(self, obs: Any, eps: npt.ArrayLike | None = None, scale: float = 1.0, noise_scale: float = 1.0) -> FloatArray:
        """Choose action chunks.

        Args:
            obs: [B, O] raw observations, or a dict of [B, ...], pictures as the environment gives them. Where the run's
                environment gave a dict of vectors, a decoder of one vector gets such a dict's parts end to end, as in the run.
            eps: [B, H, L] base noise; drawn from N(0, I) by default. What a method draws beside follows from it.
            scale: s in ``w = eps + s Delta(s)``, 0 to 1; 0 is the frozen policy to the bit. What was learned with less noise
                (``LPDSSettings.noise_scale`` k) acts with ``(1 - s (1 - k)) eps + s Delta(s)``.
            noise_scale: factor of eps, 0 to 1, beside the policy's own; below 1 the policy repeats itself more and ``w`` leaves
                the prior. Columns that only pad keep their noise.

        Returns:
            float32 [B, T, A] in environment units.

        Raises:
            LpdsError: a shape does not fit, or a scale is outside [0, 1].
        """
        check_share("scale", scale)
        check_share("noise_scale", noise_scale)
        seen = look(self.decoder, self._observed(obs))
        noise = self.decoder.spec.quietened(torch.from_numpy(self._noise(len(seen.state), eps)), noise_scale)
        with torch.no_grad():
            action: FloatArray = self.policy.act(seen.decoder, seen.state, noise, scale).action.numpy()
        return action

    def shift(self, obs: Any) -> FloatArray:
        """Delta(s), float32 [B, H, L]; zeros where the noise is not shifted (``lpds-a`` shifts the action).

        Args:
            obs: as in :meth:`act`; or, where those are no vectors, states [B, F] out of a replay.
        """
        shape = self.decoder.spec.obs_shape
        no_vector = isinstance(shape, Mapping) or len(shape) > 1
        if no_vector and getattr(obs, "shape", ())[1:] == as_learned(self.decoder).spec.obs_shape:
            return self.shift_at(obs)
        return self.shift_at(look(self.decoder, self._observed(obs)).state)

    def shift_at(self, states: Any) -> FloatArray:
        """Delta at states [B, F] as a replay holds them: features, where the decoder offers any, else observations.

        Raises:
            LpdsError: they are no numbers, or of another shape.
        """
        size = as_learned(self.decoder).spec.obs_size
        try:
            state = torch.as_tensor(np.asarray(states, np.float32))
        except (TypeError, ValueError) as error:
            raise LpdsError(f"states are no array of numbers ({one_line(error)})") from None
        if state.ndim != 2 or state.shape[1] != size:
            raise LpdsError(f"states must be [B, {size}], not {list(state.shape)}")
        shift = self.policy.shift(state)
        if shift is None:
            return np.zeros((len(state), *self.decoder.spec.latent_shape), np.float32)
        out: FloatArray = shift.numpy()
        return out

    @staticmethod
    def _end_to_end(obs: Mapping[str, Any], order: Sequence[str]) -> FloatArray:
        try:
            return np.concatenate([np.asarray(obs[key], np.float32) for key in order], -1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise LpdsError(f"the parts of obs, {', '.join(order)}, cannot be put end to end ({one_line(error)})") from None

    def _observed(self, obs: Any) -> Arrays:
        spec = self.decoder.spec
        if isinstance(spec.obs_shape, Mapping) and isinstance(obs, Mapping):  # what the decoder does not name is left out
            missing = [key for key in spec.obs_shape if key not in obs]
            if missing:
                raise LpdsError(f"obs must be a dict of {', '.join(spec.obs_shape)}; it lacks {', '.join(missing)}")
            obs = {key: obs[key] for key in spec.obs_shape}
        elif isinstance(obs, Mapping) and self.order and not isinstance(spec.obs_shape, Mapping):
            missing = [key for key in self.order if key not in obs]
            if missing:
                raise LpdsError(f"obs must be a dict of {', '.join(self.order)}; it lacks {', '.join(missing)}")
            obs = self._end_to_end(obs, self.order)
        try:
            arrays = as_arrays(obs)
        except (TypeError, ValueError, RuntimeError) as error:  # a tensor with a gradient, say
            raise LpdsError(f"obs is no array of numbers ({one_line(error)})") from None
        rows = {key: len(value) for key, value in parts(arrays).items() if value.ndim}
        if len(set(rows.values())) > 1 and min(value.ndim for value in parts(arrays).values()) > 1:
            told = ", ".join(f"{key} {count}" for key, count in rows.items())
            raise LpdsError(f"the parts of obs are batches of different sizes: {told}")
        found = {key: value.shape[1:] for key, value in parts(arrays).items()}
        pictures = {key: value.dtype == np.uint8 for key, value in parts(arrays).items()}
        single = min(value.ndim for value in parts(arrays).values()) < 2
        if single or not shapes_fit(found if isinstance(arrays, dict) else found[""], pictures, spec):
            several = isinstance(spec.obs_shape, Mapping) or len(spec.obs_shape) != 1
            wanted = f"[B, ...] of {spec.obs_shape}" if several else f"[B, {spec.obs_size}]"
            given = {key: list(value.shape) for key, value in parts(arrays).items()}
            raise LpdsError(f"obs must be {wanted}, not {given if isinstance(arrays, dict) else given['']}")
        for key, value in parts(arrays).items():
            if not np.isfinite(value).all():
                raise LpdsError(f"obs{f' {key!r}' if key else ''} holds NaN or infinity")
        return arrays

    def _noise(self, count: int, eps: npt.ArrayLike | None) -> FloatArray:
        """All draws of a decision [B, n, H, L]; those beyond a given eps follow from it."""
        draws, wanted = self.policy.draws, self.decoder.spec.latent_shape
        if eps is None:
            return self._rng.standard_normal((count, draws, *wanted), np.float32)
        try:
            first = np.asarray(eps, np.float32)
        except (TypeError, ValueError, RuntimeError) as error:  # a tensor with a gradient, say
            raise LpdsError(f"eps is no array of numbers ({one_line(error)})") from None
        if first.shape != (count, *wanted):
            raise LpdsError(f"eps must be [B, {wanted[0]}, {wanted[1]}], not {list(first.shape)}")
        if not np.isfinite(first).all():
            raise LpdsError("eps holds NaN or infinity")
        rest = np.empty((count, draws - 1, *wanted), np.float32)
        for row in range(count if draws > 1 else 0):  # each from its own eps, so that a row acts alone as it does in a batch
            further = np.random.default_rng(np.frombuffer(first[row].tobytes(), np.uint32))
            rest[row] = further.standard_normal(rest.shape[1:], np.float32)
        return np.concatenate([first[:, None], rest], axis=1)


POLICY_FILES = ("policy.json", "policy.safetensors")


def save_policy(
    folder: Path, method_name: str, method: Method | None, decoder: Decoder, order: Iterable[str] | None = None
) -> None:
    """Write the small part that acts, ``policy.safetensors`` and ``policy.json``.

    Args:
        folder: where to.
        method_name: of the registry.
        method: what was learned; without one the frozen policy.
        decoder: that it was learned for.
        order: keys of the environment's dict observation, as their vectors were put end to end for a decoder of one vector.

    Raises:
        LpdsError: the folder cannot be written; what was there is untouched.
    """
    tensors, chosen = ({}, {}) if method is None else (method.policy_tensors(), method.policy_settings())
    content = save({key: value.cpu().contiguous() for key, value in tensors.items()})
    settings = {key: "inf" if value == float("inf") else value for key, value in chosen.items()}
    facts = {
        "format_version": FORMAT_VERSION,
        "method": FROZEN if method is None else method_name,
        "settings": settings,
        "spec": spec_to_wire(decoder.spec),
        "decoder": decoder_facts(decoder),
        "obs_order": None if order is None else list(order),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "policy.safetensors", content)
        write_json(folder / "policy.json", facts)
        for path in folder.glob(".*.tmp"):  # of a kill
            path.unlink(missing_ok=True)
    except OSError as error:
        raise LpdsError(f"policy in {folder} not saved ({error}); the previous one is untouched") from None


def tell_policy(folder: Path, decoder: Mapping[str, Any]) -> None:
    """Write where its decoder is now, ``reference`` and ``options``, into a policy that is saved already."""
    try:
        facts = read_object(folder / "policy.json", "a policy", {"decoder": dict})
    except FileNotFoundError:
        return  # the first checkpoint will say it
    there = {key: decoder[key] for key in ("reference", "options")}
    write_json(folder / "policy.json", {**facts, "decoder": {**facts["decoder"], **there}})


@kept_defaults()  # and the default type: what acts is float32, whatever the caller's is
@kept_random()
def load_policy(
    run: str | Path | RunFolder, decoder: Decoder | str | None = None, *, files: Mapping[str, Any] | None = None
) -> SteeredPolicy:
    """Open the policy of a run folder, or of a folder of committed results.

    Args:
        run: a folder that holds ``policy/``.
        decoder: needed for a wrapped decoder, and for one that has moved, also as a reference; others are found by theirs.
        files: with a reference that has moved: where ``normalization`` or ``tokenizer`` is now, and where it runs (``device``).

    Returns:
        The policy.

    Raises:
        LpdsError: no policy there, a broken file, a decoder that must be passed, or one with another fingerprint.
    """
    run = folder_of(run)
    facts, tensors = _read_policy(run)
    recorded = {"spec": facts.get("spec"), **facts["decoder"]}
    decoder = find_decoder(recorded, decoder, f"the policy in {run}", run, files)
    return SteeredPolicy(decoder, _open(run, decoder, facts, tensors), facts["method"], facts.get("obs_order"))


@kept_defaults()
@kept_random()
def recorded_shift(run: Path, states: FloatArray) -> FloatArray | None:
    """Delta [N, H, L] at states [N, F] of a run's replay. Its decoder, which may fill a GPU, is not opened: the shapes do.

    Args:
        run: a folder that holds ``policy/``.
        states: as the replay holds them: features where the decoder offers any, else observations, pictures last.

    Returns:
        The shift; ``None`` of a method that learns none.

    Raises:
        LpdsError: no policy there, or a broken file.
    """
    facts, tensors = _read_policy(run)
    if not resolve("method", METHODS, facts["method"]).shifts:
        return None
    if facts.get("spec") is None:  # from before the shapes were recorded
        return load_policy(run).shift_at(states)
    try:
        spec = spec_from_wire(facts["spec"])
    except WireError as error:
        raise LpdsError(f"policy in {run / 'policy'} cannot be read: {error}") from None
    features = None if states.shape[1] == spec.obs_size else states.shape[1]
    absent: Any = _Absent(spec, features)
    return SteeredPolicy(absent, _open(run, absent, facts, tensors), facts["method"]).shift_at(states)


@dataclass(frozen=True)
class _Absent:
    """The shapes of a decoder that is not opened."""

    spec: LatentSpec
    feature_size: int | None
    name: str = "not opened"
    reference: str | None = None
    decodes_states: bool = True


def policy_is_whole(run: Path) -> bool:
    """Whether a run folder has a policy that can be read."""
    try:
        _read_policy(run)
    except LpdsError:
        return False
    return True


def _read_policy(run: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What :func:`save_policy` wrote."""
    folder = run / "policy"
    try:
        facts = read_object(folder / "policy.json", "a policy", {"method": str, "settings": dict, "decoder": dict})
        return facts, load_file(folder / "policy.safetensors")
    except (FileNotFoundError, NotADirectoryError):
        if not (run / "config.json").is_file() and not folder.is_dir():
            raise no_run(run, f"policy/{POLICY_FILES[0]}", "policy") from None
        missing = next((name for name in POLICY_FILES if not (folder / name).is_file()), POLICY_FILES[0])
        raise LpdsError(f"no policy in {run} (policy/{missing} is missing)") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise LpdsError(f"policy in {folder} cannot be read: {error}") from None


def _open(run: Path, decoder: Decoder, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """The acting part again."""
    settings = {key: float("inf") if value == "inf" else value for key, value in facts["settings"].items()}
    method = resolve("method", METHODS, facts["method"])
    try:
        return method.open_policy(as_learned(decoder), settings, tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        why = one_line(error)
        raise LpdsError(f"policy in {run / 'policy'}: settings and weights do not belong together ({why})") from None
