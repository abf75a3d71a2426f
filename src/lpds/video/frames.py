"""From pictures to frames: two halves with their captions, and the file that they are written into."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lpds.errors import LpdsError
from lpds.video.record import Image, Shot

FASTEST = {".mp4": 60.0, ".gif": 25.0}
"""Formats by suffix, and frames per second beyond which steps are left out of an environment's real-time rate."""
SMOOTHEST = {".mp4": 240.0, ".gif": 50.0}
"""Frames per second that may be asked for; many viewers take a GIF's shorter frames for mistakes and show them for 100 ms."""
DIM = 0.4
"""Brightness of a half whose episode is over."""
GAP = 4
"""Pixels between the halves."""
PAPER, INK, GOOD = (24, 26, 31), (236, 238, 242), (111, 207, 132)


def load_writers() -> None:
    """Import what draws captions and writes files.

    Raises:
        LpdsError: the extra is not installed.
    """
    try:
        for module in ("imageio.v2", "imageio_ffmpeg", "PIL.ImageFont"):
            importlib.import_module(module)
    except ImportError as error:
        raise LpdsError(f"films need imageio, imageio-ffmpeg and pillow ({error}): pip install 'lpds[video]'") from None


def half(shot: Shot, label: str, size: int, *, over: bool = False) -> Image:
    """One half of a frame: the picture ``size`` pixels high under a caption; dimmed if the episode is over."""
    from PIL import Image as Pictures
    from PIL import ImageDraw, ImageFont

    height, width = shot.image.shape[:2]
    wide = max(2, 2 * round(size * width / height / 2))
    scaled = Pictures.fromarray(shot.image).resize((wide, size), Pictures.Resampling.LANCZOS)
    text_size = max(9, round(size / 20))
    band = 2 * round(1.7 * text_size)  # two lines; even, as video wants it
    page = Pictures.new("RGB", (wide, size + band), PAPER)
    page.paste(scaled, (0, band))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(text_size)
    margin = text_size // 2
    first, second = margin // 2 + text_size // 2, band - margin // 2 - text_size // 2
    draw.text((margin, first), label, INK, font, anchor="lm")
    draw.text((wide - margin, first), f"step {shot.step}", INK, font, anchor="rm")
    draw.text((margin, second), f"return {shot.total:.1f}", INK, font, anchor="lm")
    if shot.success:
        draw.text((wide - margin, second), "success", GOOD, font, anchor="rm")
    frame = np.asarray(page)
    return (frame * DIM).astype(np.uint8) if over else frame


def beside(left: Image, right: Image) -> Image:
    """Two halves next to each other."""
    gap = np.zeros((len(left), GAP, 3), np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def pairs(frozen: Iterable[Shot], steered: Iterable[Shot], labels: tuple[str, str], size: int) -> Iterator[Image]:
    """Frames of one episode of both; the one that ends earlier stays, dimmed, until the other ends."""
    sides = [iter(frozen), iter(steered)]
    shown: list[Shot | None] = [None, None]
    while True:
        new = [next(side, None) for side in sides]
        if new == [None, None]:
            return
        halves = []
        for index, shot in enumerate(new):
            shown[index] = shot or shown[index]
            last = shown[index]
            if last is None:  # a generator without a single shot
                raise ValueError("an episode has no pictures")
            halves.append(half(last, labels[index], size, over=shot is None))
        yield beside(*halves)


def file_kind(out: Path) -> str:
    """The format by the suffix.

    Raises:
        LpdsError: it is none of those that can be written.
    """
    kind = out.suffix.lower()
    if kind not in FASTEST:
        raise LpdsError(f"a film's file ends in {' or '.join(FASTEST)}, not {out.name!r}")
    return kind


def playable(kind: str, fps: float) -> float:
    """The nearest rate that the format has: a GIF's frames last whole hundredths of a second."""
    return 100.0 / max(1, round(100.0 / fps)) if kind == ".gif" else fps


@contextmanager
def open_film(out: Path, fps: float) -> Iterator[Any]:
    """A writer whose ``append_data`` takes frames; the file is renamed into place when all are in.

    Raises:
        LpdsError: the file cannot be written.
    """
    import imageio.v2

    kind = file_kind(out)
    temporary = out.with_name(f".{out.stem}.{os.getpid()}{kind}")
    if kind == ".gif":
        options: dict[str, Any] = {"format": "GIF", "duration": round(1000.0 / fps), "loop": 0}
    else:
        options = {"format": "FFMPEG", "fps": fps, "codec": "libx264", "macro_block_size": 2, "ffmpeg_log_level": "error"}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with imageio.v2.get_writer(temporary, mode="I", **options) as writer:
            yield writer
        os.replace(temporary, out)
    except OSError as error:
        raise LpdsError(f"{out} cannot be written: {' '.join(str(error).split())}") from None
    finally:
        temporary.unlink(missing_ok=True)
