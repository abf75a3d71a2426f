"""A tiny pi0 cloned on demonstrations: LeRobot's own class, loss and saved format, at a size that a laptop trains.

It stands in for the published checkpoints where those cannot be had: the same observations, instruction, latent with its padded
columns, sampler and processors. It sees the state, not pictures: its one camera is an empty one, whose black picture LeRobot's
inference asks for.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpds.decoders.base import BaseDecoder
from lpds.decoders.lerobot.flow import blank_camera
from lpds.decoders.lerobot.folder import import_lerobot
from lpds.decoders.lerobot.statistics import FILES, TOKENIZER
from lpds.decoders.lerobot.tiny import TinySizes, built_with, write_sizes
from lpds.errors import LpdsError, unknown_name
from lpds.files import write_json
from lpds.pretrain.clone import ChunkWindows
from lpds.pretrain.descent import Descent, smoothed
from lpds.pretrain.experts import Demonstrations

STATE, ACTION, PICTURE = "observation.state", "action", 14
"""The last: pixels a side of the black picture, one patch."""
SMALLEST_DEVIATION = 1e-3
"""Of a normalised column; what hardly moves in the data is not blown up."""


@dataclass(frozen=True)
class Pi0Settings:
    """Training of a tiny pi0."""

    chunk: int = 20
    """Steps of a decoded chunk, all of which are executed."""
    sampler_steps: int = 5
    """Euler steps."""
    padding: int = 4
    """Columns of the latent beyond the arm's, as the published ones have 25."""
    steps: int = 10_000
    """Gradient steps."""
    batch_size: int = 64
    lr: float = 1e-3
    lr_final: float = 1e-5
    """Cosine decay from ``lr`` to this."""
    weight_decay: float = 1e-6
    ema: float = 0.998
    """Memory of the averaged weights, per step."""
    pad_end: bool = True
    """As :attr:`lpds.pretrain.clone.CloneSettings.pad_end`."""
    seed: int = 0
    sizes: TinySizes = field(default_factory=TinySizes)


def make_pi0(
    data: Demonstrations,
    changes: dict[str, Any],
    out: Path,
    instruction: str | None,
    progress: Callable[[int, int, float], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[BaseDecoder, dict[str, Any]]:
    """Train a tiny pi0 and write it as LeRobot saves one; ``lerobot:OUT`` opens it, with ``flat`` and its instruction.

    Args:
        data: whole episodes; their observations are the policy's state.
        changes: differences from :class:`Pi0Settings` and :class:`TinySizes`.
        out: folder to write.
        instruction: what the robot is told; its words are the tokenizer's.
        progress: called with (step, steps, running loss).
        stop: asked after every step; the weights as they are by then will do.

    Returns:
        The decoder, opened from the folder, and its training for the card.

    Raises:
        LpdsError: lerobot is missing, an unknown setting, no instruction, or episodes shorter than a chunk.
    """
    from lpds.zoo import load_decoder

    settings = _settings(changes)
    if instruction is None or not instruction.strip():
        raise LpdsError("a pi0 is told what to do: pass --instruction")
    import_lerobot("pi0")
    with tempfile.TemporaryDirectory() as made:
        train_pi0(data, settings, Path(made), instruction, progress, stop)
        load_decoder(f"lerobot:{made}", flat=True, task=instruction)  # what does not open replaces nothing
        (out / "card.json").unlink(missing_ok=True)  # of what was there
        shutil.copytree(made, out, dirs_exist_ok=True)
    decoder = load_decoder(f"lerobot:{out.resolve()}", flat=True, task=instruction)
    return decoder, {"kind": "pi0", **asdict(settings), "instruction": instruction}


def train_pi0(
    data: Demonstrations,
    settings: Pi0Settings,
    folder: Path,
    instruction: str,
    progress: Callable[[int, int, float], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Clone by flow matching and save the averaged weights with processors and tokenizer.

    The loss is that of LeRobot's own network, over the padded columns too (towards zero), as openpi trains the published
    weights: LeRobot's policy would leave those columns' velocities as random as they began.
    """
    sizes = settings.sizes
    tokenizer = words_of(instruction, sizes.vocabulary)
    tokens = torch.tensor(tokenizer(instruction)["input_ids"])
    config = _config(data, settings, len(tokens))
    stats = {STATE: statistics(data.obs), ACTION: statistics(data.cloned)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # of the weights, and of the noise and times that LeRobot's loss draws
        policy = _build(config, sizes)
        _fit(policy, data, stats, settings, tokens, progress, stop)
    folder.mkdir(parents=True, exist_ok=True)
    write_sizes(folder, sizes)
    save(policy, stats, tokenizer, folder)


def statistics(values: np.ndarray[Any, Any]) -> dict[str, Tensor]:
    """Mean and standard deviation [D] of rows [N, D]."""
    rows = torch.from_numpy(values)
    return {"mean": rows.mean(0), "std": rows.std(0).clamp(min=SMALLEST_DEVIATION)}


def _settings(changes: dict[str, Any]) -> Pi0Settings:
    base = Pi0Settings()
    own, tiny = set(asdict(base)) - {"sizes"}, set(asdict(base.sizes))
    for key in changes:
        if key not in own | tiny:
            raise unknown_name("setting", key, sorted(own | tiny))
    sizes = replace(base.sizes, **{key: value for key, value in changes.items() if key in tiny})
    settings = replace(base, **{key: value for key, value in changes.items() if key in own}, sizes=sizes)
    for key in ("chunk", "sampler_steps", "steps", "batch_size", "lr", "lr_final"):
        if not getattr(settings, key) > 0:
            raise LpdsError(f"{key} must be positive, not {getattr(settings, key)}")
    if not 0.0 <= settings.weight_decay < math.inf:
        raise LpdsError(f"weight_decay {settings.weight_decay} must be finite and not negative")
    if settings.padding < 0 or not 0.0 <= settings.ema < 1.0:
        raise LpdsError(f"padding {settings.padding} must not be negative, and ema {settings.ema} in [0, 1)")
    return settings


def _config(data: Demonstrations, settings: Pi0Settings, tokens: int) -> Any:
    types = importlib.import_module("lerobot.configs.types")
    module = importlib.import_module("lerobot.policies.pi0.configuration_pi0")
    state, arm = data.obs.shape[1], data.actions.shape[1]
    return module.PI0Config(
        input_features={STATE: types.PolicyFeature(types.FeatureType.STATE, (state,))},
        output_features={ACTION: types.PolicyFeature(types.FeatureType.ACTION, (arm,))},
        device="cpu",
        dtype="float32",
        chunk_size=settings.chunk,
        n_action_steps=settings.chunk,
        max_state_dim=state,
        max_action_dim=arm + settings.padding,
        num_inference_steps=settings.sampler_steps,
        image_resolution=(PICTURE, PICTURE),
        empty_cameras=1,
        tokenizer_max_length=tokens,
    )


def _build(config: Any, sizes: TinySizes) -> Any:
    module = importlib.import_module("lerobot.policies.pi0.modeling_pi0")
    with contextlib.redirect_stdout(io.StringIO()), built_with("pi0", sizes):
        return module.PI0Policy(config)


def words_of(instruction: str, vocabulary: int) -> Any:
    """One token for each word of the instruction, after one for padding and one for every other word."""
    tokenizers, transformers = importlib.import_module("tokenizers"), importlib.import_module("transformers")
    words = ["<pad>", "<unk>", *sorted(set(instruction.split()))]
    if len(words) >= vocabulary:
        raise LpdsError(f"the instruction has {len(words) - 2} words: vocabulary must be above {len(words)}, not {vocabulary}")
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")


def save(policy: Any, stats: dict[str, dict[str, Tensor]], tokenizer: Any, folder: Path) -> None:
    """Configuration, weights, both processors and the tokenizer, as LeRobot saves them."""
    module = importlib.import_module("lerobot.policies.pi0.processor_pi0")
    steps: Any = importlib.import_module("lerobot.processor.tokenizer_processor")
    published = steps.AutoTokenizer
    steps.AutoTokenizer = type("Own", (), {"from_pretrained": staticmethod(lambda name: tokenizer)})
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            policy.save_pretrained(folder)
            for pipeline in module.make_pi0_pre_post_processors(policy.config, stats):
                pipeline.save_pretrained(folder)
    finally:
        steps.AutoTokenizer = published
    tokenizer.save_pretrained(folder / TOKENIZER)
    path = folder / FILES[0]
    saved = json.loads(path.read_bytes())
    for step in saved["steps"]:
        if step.get("registry_name") == "tokenizer_processor":  # not the published one, whose tokens are others
            step["config"]["tokenizer_name"] = TOKENIZER
    write_json(path, saved)


def _fit(
    policy: Any,
    data: Demonstrations,
    stats: dict[str, dict[str, Tensor]],
    settings: Pi0Settings,
    tokens: Tensor,
    progress: Callable[[int, int, float], None] | None,
    stop: Callable[[], bool] | None,
) -> None:
    generator = torch.Generator().manual_seed(settings.seed)
    scaled = {
        key: (torch.from_numpy(rows) - stats[key]["mean"]) / stats[key]["std"]
        for key, rows in ((STATE, data.obs), (ACTION, data.cloned))
    }
    windows = ChunkWindows(data, settings.chunk, settings.pad_end)
    size = settings.batch_size
    # one task, one instruction: the same tokens in every row, as the tokenizer will give them
    pictures = policy._preprocess_images(blank_camera(policy.config, size))
    told = (tokens.expand(size, -1), torch.ones(size, len(tokens), dtype=torch.bool))
    padded = (0, policy.config.max_action_dim - data.actions.shape[1])
    policy.train()
    parameters = [p for p in policy.parameters() if p.requires_grad]
    descent, running = Descent(parameters, settings, clip=1.0), torch.full((), math.nan, dtype=torch.float64)
    for step in range(settings.steps):
        window = windows[torch.randint(len(windows), (size,), generator=generator)]
        first, chunks = window[:, 0], torch.nn.functional.pad(scaled[ACTION][window], padded)
        # 0.4 would draw both itself, in this order; 0.6 asks for them
        noise, time = policy.model.sample_noise(chunks.shape, chunks.device), policy.model.sample_time(size, chunks.device)
        loss = policy.model.forward(*pictures, *told, scaled[STATE][first], chunks, noise, time).mean()
        descent.step(step, loss)
        if progress is not None and (step + 1) % 100 == 0:
            smoothed(running, loss)
            progress(step + 1, settings.steps, float(running))
        if stop is not None and stop():
            break
    descent.keep_mean()
    policy.eval()
