"""A run's folder: what it holds, whether a run may go there, and what its config.json says."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lpds.errors import LpdsError, one_line
from lpds.files import check_writable, how_to_resume, locked, read_object

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CONFIG_KEYS = {"task": str, "method": str, "env": object, "env_name": str, "decoder": dict, "run": dict, "settings": dict}

STATES_FILE = "states.safetensors"
POLICY_SET_ASIDE = "policy-of-a-changed-decoder"
"""Where the policy of a run that changed its decoder is put: nothing acts by it."""

RUN_CONTENTS = (
    *("config.json", "passport.json", "summary.json", "metrics.jsonl", "episodes.jsonl", "eval.jsonl", STATES_FILE),
    *("checkpoint", "policy", POLICY_SET_ASIDE, "tensorboard", "report.html", "figures", "*.mp4", "*.gif", ".*.tmp"),
)
"""What a run folder holds of its own, and what is made from it; ``overwrite`` takes a folder of nothing else."""


class RunFolder(Protocol):
    """What has a run folder, :class:`lpds.Run` above all."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        ...


def folder_of(run: str | Path | RunFolder) -> Path:
    """The folder of a run: what is given, or what ``lpds.steer`` returned.

    Raises:
        LpdsError: it is something else.
    """
    if isinstance(run, str | Path):
        if run == "":
            raise LpdsError("a run is its folder, not an empty name")
        return Path(run)
    if not hasattr(run, "folder"):
        raise LpdsError(f"a run is its folder, or what lpds.steer returned, not a {type(run).__name__}")
    return run.folder


def kept_states(folder: Path) -> npt.NDArray[np.float32] | None:
    """States [N, O] of the warm-up that a run folder keeps; ``None`` where it keeps none.

    Raises:
        LpdsError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / STATES_FILE
    if not path.is_file():
        return None
    try:
        states: npt.NDArray[np.float32] = load_file(path)["obs"]
    except (OSError, SafetensorError, KeyError) as error:
        raise LpdsError(f"{path} cannot be read ({one_line(error)})") from None
    return states


def runs_in(folder: Path) -> list[Path]:
    """The folder, or where it is that of a method, of a task or of a whole grid, the runs ``seedN`` in it."""
    if (folder / "config.json").is_file():
        return [folder]
    for pattern in ("seed*", "*/seed*", "*/*/seed*"):
        if inside := [path.parent for path in folder.glob(f"{pattern}/config.json")]:
            return sorted(inside, key=lambda path: (path.parent.name, len(path.name), path.name))
    return [folder]


def no_run(folder: Path, missing: str = "config.json", what: str = "run") -> LpdsError:
    """What is wrong with a folder that should be a run and lacks a file of one, in one line."""
    inside = runs_in(folder) if folder.is_dir() else []
    if inside and inside != [folder]:
        return LpdsError(f"{folder} holds {len(inside)} run{'s' if len(inside) > 1 else ''}: name one, such as {inside[0]}")
    why = f"{missing} is missing" if folder.is_dir() else "it is a file" if folder.exists() else "that folder does not exist"
    return LpdsError(f"no {what} in {folder} ({why})")


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run folder.

    Raises:
        LpdsError: there is none, or it is broken.
    """
    try:
        return read_object(folder / "config.json", "a run", CONFIG_KEYS)
    except (FileNotFoundError, NotADirectoryError):
        raise no_run(folder) from None


def check_room(folder: Path, overwrite: bool) -> bool:
    """Whether a folder has a run that is to go; one that may not is refused."""
    if folder.is_file():
        raise LpdsError(f"run folder {folder} is a file: choose another")
    # a kill while config.json was written leaves its temporary file, and nothing that could be lost
    if not folder.exists():
        check_writable(folder)
        return False
    if all(path.match(".config.json.*.tmp") for path in folder.iterdir()):
        return False
    if not overwrite:
        begun = (folder / "config.json").is_file()
        rest = f", pass --overwrite (overwrite=True in Python), or go on: {how_to_resume(folder)}" if begun else ""
        raise LpdsError(f"run folder {folder} exists{'' if begun else ' and holds no run'}: choose another{rest}")
    try:
        read_config(folder)
    except LpdsError as error:  # a policy's folder has a config.json, too
        raise LpdsError(f"{folder} is not empty and holds no run ({error}): it is not overwritten") from None
    others = sorted(path.name for path in folder.iterdir() if not _of_a_run(path.name))
    if others:
        named = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        raise LpdsError(f"{folder} holds {named} beside its run: move that away, or choose another --out; nothing was deleted")
    return True


def _of_a_run(name: str) -> bool:
    """Whether a run, or what is made of it, has a file or folder of this name."""
    return any(fnmatch(name, pattern) for pattern in RUN_CONTENTS)


def make_room(folder: Path, overwrite: bool) -> None:
    """Make an empty folder; only what is a run folder is ever cleared for it."""
    clear, place = check_room(folder, overwrite), folder.resolve()  # a link to another disk stays one
    if clear:
        check_writable(place / "config.json")
        with locked(place):
            shutil.rmtree(place)
    place.mkdir(parents=True, exist_ok=True)
