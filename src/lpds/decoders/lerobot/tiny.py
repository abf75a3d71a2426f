"""pi0 and pi05 of sizes that LeRobot has no name for.

LeRobot knows the published sizes only; they are written into constructors. A folder with ``lpds_tiny.json`` beside its
``config.json`` is built with the sizes in that file. Everything else about it is LeRobot's own class and format.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lpds.errors import LpdsError, one_line
from lpds.files import FORMAT_VERSION, write_json

FILE = "lpds_tiny.json"
KINDS = ("pi0", "pi05")
HEADS = {"num_heads": 8, "num_kv_heads": 1}
"""Of attention, as in the published sizes: LeRobot's training has the eight written into it."""
LANGUAGE = "gemma_2b"
"""LeRobot's name of the language model's sizes; the other is the action expert's."""


@dataclass(frozen=True)
class TinySizes:
    """Sizes of the action expert, of the language model whose layers it attends to, and of the vision tower."""

    width: int = 96
    """Of the action expert."""
    mlp_dim: int = 192
    """Of the action expert."""
    language_width: int = 32
    language_mlp_dim: int = 64
    depth: int = 3
    """Layers of both: each of the expert's attends to one of the language model's."""
    head_dim: int = 16
    vision_width: int = 32
    vision_depth: int = 2
    vision_heads: int = 2
    vocabulary: int = 256
    """Tokens of the language model; the last one stands for pictures."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise LpdsError(f"{name} must be a positive whole number, not {value!r}")
        if self.vision_width % self.vision_heads:
            raise LpdsError(f"vision_width {self.vision_width} must be a multiple of vision_heads {self.vision_heads}")
        if self.head_dim % 2 or self.width % 2:
            raise LpdsError(f"head_dim {self.head_dim} and width {self.width} must be even")


def write_sizes(folder: Path, sizes: TinySizes) -> None:
    """Put the sizes beside a policy's configuration."""
    write_json(folder / FILE, {"format_version": FORMAT_VERSION, **asdict(sizes)})


def read_sizes(folder: Path) -> TinySizes | None:
    """Sizes of a folder's policy, or ``None`` where they are the published ones.

    Raises:
        LpdsError: the file is there but does not say sizes.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        if found.pop("format_version") != FORMAT_VERSION:
            raise LpdsError("of another version")
        return TinySizes(**found)
    except (ValueError, KeyError, TypeError, AttributeError, LpdsError) as error:
        raise LpdsError(f"{path} does not say sizes ({one_line(error)})") from None


@contextlib.contextmanager
def built_with(kind: str, sizes: TinySizes | None) -> Iterator[None]:
    """Within, LeRobot builds policies of these sizes; ``None`` leaves it alone.

    Raises:
        LpdsError: sizes for a kind of policy that is not built so.
    """
    if sizes is None:
        yield
        return
    if kind not in KINDS:
        raise LpdsError(f"{FILE} is for {' and '.join(KINDS)}, not for {kind!r}")
    module = importlib.import_module(f"lerobot.policies.{kind}.modeling_{kind}")
    whole_name, expert_name = "PaliGemmaForConditionalGeneration", "GemmaForCausalLM"
    if not hasattr(module, expert_name):  # from lerobot 0.6 on
        whole_name, expert_name = "PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM"
    whole, expert = getattr(module, whole_name), getattr(module, expert_name)
    shared = {"depth": sizes.depth, "head_dim": sizes.head_dim, **HEADS}
    language = module.GemmaConfig(width=sizes.language_width, mlp_dim=sizes.language_mlp_dim, **shared)
    action = module.GemmaConfig(width=sizes.width, mlp_dim=sizes.mlp_dim, **shared)

    def make_whole(config: Any) -> Any:
        seen = config.vision_config
        seen.hidden_size, seen.num_hidden_layers = sizes.vision_width, sizes.vision_depth
        seen.num_attention_heads, seen.intermediate_size = sizes.vision_heads, 2 * sizes.vision_width
        seen.projection_dim = config.projection_dim = config.text_config.hidden_size
        config.text_config.vocab_size = config.vocab_size = config._vocab_size = sizes.vocabulary
        config.image_token_index = config.image_token_id = sizes.vocabulary - 1
        return whole(config)

    def make_expert(config: Any) -> Any:
        config.vocab_size, config.pad_token_id = 16, 0  # its embedding is thrown away
        return expert(config)

    def find_sizes(variant: str) -> Any:
        return language if variant == LANGUAGE else action

    replaced = {"get_gemma_config": find_sizes, whole_name: make_whole, expert_name: make_expert}
    before = {name: getattr(module, name) for name in replaced}
    try:
        for name, value in replaced.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
