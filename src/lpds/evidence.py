"""A finished run as evidence: its records and policy without the checkpoint, named so that it means the same elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lpds.errors import LpdsError
from lpds.files import write_json
from lpds.registry import DECODER_FILES
from lpds.run_folder import STATES_FILE

EVIDENCE = ("config.json", "passport.json", "metrics.jsonl", "episodes.jsonl", "eval.jsonl", "summary.json")
"""What is kept of a run beside its policy."""


def copy_evidence(run: Path, target: Path) -> None:
    """Replace ``target`` by a finished run's records and policy, without its checkpoint.

    A decoder in a folder below the working one is named from there, so that the copy means the same on another machine.
    What was there before goes when the copy is complete.

    Raises:
        LpdsError: the run has not finished.
    """
    if missing := [name for name in (*EVIDENCE, "policy") if not (run / name).exists()]:
        raise LpdsError(f"{run} has not finished ({missing[0]} is missing): it is no evidence yet")
    made, old = (target.with_name(f".{target.name}.{end}") for end in ("new", "old"))
    for rest in (made, old):
        shutil.rmtree(rest, ignore_errors=True)
    try:
        _copy(run, made)
        if target.exists():
            target.rename(old)
        made.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _copy(run: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in EVIDENCE:
        shutil.copy(run / name, target / name)
    if (run / STATES_FILE).is_file():
        shutil.copy(run / STATES_FILE, target)
    shutil.copytree(run / "policy", target / "policy")
    for path in (target / "config.json", target / "passport.json", target / "policy" / "policy.json"):
        facts = json.loads(path.read_bytes())
        scheme, colon, place = str(facts["decoder"].get("reference")).partition(":")
        if colon and Path(place).is_relative_to(Path.cwd()):
            facts["decoder"]["reference"] = f"{scheme}:{_from_here(place)}"
        options = facts["decoder"].get("options") or {}
        for name in DECODER_FILES:
            if Path(str(options.get(name, "?"))).is_relative_to(Path.cwd()):
                options[name] = _from_here(options[name])
        write_json(path, facts)
    config = json.loads((target / "config.json").read_bytes())
    demos = config["run"].get("demos", "")
    if demos != demos_as_kept(demos):
        config["run"]["demos"] = demos_as_kept(demos)
        write_json(target / "config.json", config)


def demos_as_kept(demos: str) -> str:
    """A place of demonstrations as evidence has it; a place elsewhere means nothing on another machine, its name may."""
    if ":" in demos:
        return demos
    below = Path(demos).is_relative_to(Path.cwd())
    return Path(demos).relative_to(Path.cwd()).as_posix() if below else Path(demos).name


def _from_here(place: str) -> str:
    """A place below the working folder as seen from there."""
    return Path(place).relative_to(Path.cwd()).as_posix()
