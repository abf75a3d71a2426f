"""From data to a decoder folder with its card."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from lpds.decoders.base import BaseDecoder
from lpds.decoders.store import save_decoder
from lpds.errors import LpdsError, one_line
from lpds.fields import override
from lpds.files import FORMAT_VERSION, write_json
from lpds.pretrain.clone import CloneSettings, clone
from lpds.pretrain.datasets import open_data
from lpds.pretrain.experts import Demonstrations, joined, of_sources
from lpds.pretrain.fits import check_fits
from lpds.pretrain.kept_training import KeptTraining
from lpds.pretrain.recipes import DATA, SCRIPTED, ZOO
from lpds.registry import resolve

WEIGHTS = ("model.safetensors", "decoder.safetensors")
"""Files of a decoder by one of :data:`MAKERS`, and of the project's own."""
MAKERS: dict[str, str] = {"pi0": "lpds.pretrain.pi0:make_pi0"}
"""Kinds that ``clone`` does not train: what makes (decoder, training) of (data, changes, out, instruction, progress)."""
CARD_SEED = 1_000_000
"""Evaluation seed of the cards; apart from every seed that learning or its evaluation uses."""


@contextmanager
def _unstopped() -> Iterator[Callable[[], bool]]:
    yield lambda: False


def pretrain(
    name: str,
    data: str | Sequence[str],
    out: Path,
    *,
    normalization: Path | None = None,
    sources: Sequence[int] = (),
    task: str | None = None,
    env: str | None = None,
    episodes: int = 100,
    instruction: str | None = None,
    changes: dict[str, Any] | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    stopping: Callable[[], AbstractContextManager[Callable[[], bool]]] = _unstopped,
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Train a decoder and write it with its ``card.json``.

    Args:
        name: a zoo recipe, whose settings are then the defaults, or any name.
        data: see :func:`lpds.pretrain.datasets.open_data`; several are learned from as one.
        out: folder to write.
        normalization: ranges of DPPO data.
        sources: learn from the episodes of these alone (``episode_source``, a scripted expert's modes), of each of the data.
        task: whose environment the card's return is measured in; the recipe's by default.
        env: a Gymnasium id instead.
        episodes: behind the card's return; 0 for none.
        instruction: what a pi0 is told.
        changes: differences from the recipe's :class:`CloneSettings`; with ``kind`` one of :data:`MAKERS`, from that kind's.
        progress: called with (step, steps, running loss).
        stopping: entered for the training alone; what it gives is asked after every step, and where it says so what was
            trained by then is saved, with a card that says so and has no return.
        overwrite: replace a decoder that is there; runs that were made on it no longer open then.
        resume: go on with a training that was stopped or killed in ``out``, to what it would have been; begin where none is.

    Returns:
        The card.

    Raises:
        LpdsError: there is a decoder in ``out``, or what the data, the settings or the environment refuse.
    """
    if episodes < 0:
        raise LpdsError(f"episodes must be at least 0, not {episodes}")
    recipe, changes = ZOO.get(name), dict(changes or {})
    kept = _place_of(out, changes, overwrite=overwrite, resume=resume)
    opened = [open_data(reference, normalization) for reference in ([data] if isinstance(data, str) else data)]
    demonstrations = reduce(joined, of_sources(opened, sources) if sources else opened)
    task = task or (recipe.task if recipe is not None and env is None else None)
    measured = bool(episodes and (task or env))
    if measured:  # before the training, not after it
        _check_env(demonstrations, task, env)
    data_card(name, demonstrations)  # what it cannot describe is refused before the training
    done, asked = 0, False
    with _place(out), stopping() as stop:

        def stopped() -> bool:
            nonlocal done, asked
            done, asked = done + 1, stop()
            return asked

        if changes.get("kind") in MAKERS:
            make = resolve("kind", MAKERS, changes.pop("kind"))
            decoder, training = make(demonstrations, changes, out, instruction, progress, stopped)
        else:
            base = recipe.clone if recipe is not None else CloneSettings()
            decoder, training = _clone(name, demonstrations, base, changes, out, instruction, progress, stopped, kept)
    card = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "data": data_card(name, demonstrations, decoder.spec.latent_shape[0], training["pad_end"])
        | ({"sources": list(sources)} if sources else {}),
        "training": {**training, "stopped_at": done + (kept.begun if kept is not None else 0)} if asked else training,
        "decoder": decoder.describe(),
        "latent_shape": list(decoder.spec.latent_shape),
        "action_shape": list(decoder.spec.action_shape),
        "fingerprint": decoder.fingerprint,
        "return": None,
    }
    write_json(out / "card.json", card)  # before the evaluation: what was trained is not lost with an environment
    if kept is not None and not asked:
        kept.remove()
    if measured and not asked:
        try:
            card |= _level(decoder, task, env, episodes)
        except LpdsError as error:
            raise type(error)(f"{error}; the decoder is saved in {out}, its card without a return") from error
        except KeyboardInterrupt:
            where = f"--env {env}" if env else f"--task {task}"
            saved = f"the decoder is saved in {out}, its card without a return; lpds eval {out} {where} measures it"
            raise KeyboardInterrupt(saved) from None
        write_json(out / "card.json", card)
    return card


def _place_of(out: Path, changes: dict[str, Any], *, overwrite: bool, resume: bool) -> KeptTraining | None:
    """Where a training is kept, of the kinds that can go on; what is there must be neither another's nor in the way."""
    if (out / "config.json").is_file() and (out / "metrics.jsonl").is_file():
        raise LpdsError(f"{out} is a run folder: choose another --out")
    theirs = changes.get("kind") in MAKERS
    there = [name for name in (*WEIGHTS, "card.json") if (out / name).exists()]
    ours, other = WEIGHTS if theirs else WEIGHTS[::-1]
    if other in there:  # both would be in one folder, and another policy than the card's would open
        raise LpdsError(f"{out} holds a decoder of another kind ({other}; this one's is {ours}): choose another --out")
    if resume and overwrite:
        raise LpdsError("--resume goes on with what is there, --overwrite replaces it: pass one of them")
    if resume and theirs:
        raise LpdsError(f"--resume is for diffusion and flow; a {changes['kind']} is trained in one go")
    kept = KeptTraining(out, resume=resume)
    begun = [kept.path.name] if kept.path.exists() else []
    if resume and there and not begun:
        raise LpdsError(f"{out} holds {', '.join(there)} of a training that is done: nothing is left to go on with")
    if (there or begun) and not (overwrite or resume):
        go_on = ", pass --resume to go on with that training" if begun else ""
        raise LpdsError(f"{out} holds {', '.join([*there, *begun])} already: choose another --out{go_on}, or pass --overwrite")
    return None if theirs else kept


OF_THE_OTHER = {"diffusion": {"solver"}, "flow": {"training_steps"}}
"""Settings that one kind of decoder has and the other makes nothing of."""


@contextmanager
def _place(out: Path) -> Iterator[None]:
    """The folder, made before the work and not after it; what is refused leaves none."""
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LpdsError(f"{out} cannot be written: {one_line(error)}") from None
    try:
        yield
    except BaseException:  # an interrupt, too
        if new and not any(out.iterdir()):
            out.rmdir()
        raise


def _clone(
    name: str,
    data: Demonstrations,
    base: CloneSettings,
    changes: dict[str, Any],
    out: Path,
    instruction: str | None,
    progress: Callable[[int, int, float], None] | None,
    stop: Callable[[], bool],
    kept: KeptTraining | None,
) -> tuple[BaseDecoder, dict[str, Any]]:
    """One of the project's own decoders, and its training for the card."""
    settings = override(CloneSettings, asdict(base), changes)
    begun = kept is not None and kept.path.exists()  # before such were refused: it goes on as it was
    if (given := sorted(changes.keys() & OF_THE_OTHER[settings.kind])) and not begun:
        raise LpdsError(f"{', '.join(given)} is not of a {settings.kind} decoder")
    if instruction is not None:
        raise LpdsError(f"an instruction is for the kinds {', '.join(MAKERS)}; {settings.kind!r} reads none")
    decoder = clone(data, settings, name=name, progress=progress, stop=stop, kept=kept)
    save_decoder(decoder, out)
    return decoder, asdict(settings)


def _check_env(data: Demonstrations, task: str | None, env: str | None) -> None:
    """Refuse an environment that is not there, or that is not the data's by shape, by name or by the actions' range."""
    from lpds.envs.build import make_env
    from lpds.presets import resolve_task

    found = make_env(env or resolve_task(task, None, None).env, 1, 1)
    try:
        check_fits(data, found, "name another --task or --env, or --episodes 0 for none")
    finally:
        found.close()


def data_card(name: str, data: Demonstrations, chunk: int = 1, pad_end: bool = False) -> dict[str, Any]:
    """What the data were, and how they came out; where they came from only if they say so themselves.

    Where chunks end with their episode, those that are shorter teach nothing, nor does anything from an episode's last
    states: they are counted apart.
    """
    facts: dict[str, Any] = {"transitions": len(data.obs), "episodes": len(data.episode_lengths)}
    short = int((data.episode_lengths < chunk).sum())
    if short and not pad_end:
        facts["episodes_shorter_than_chunk"] = short
    if unlearned := int(np.minimum(data.episode_lengths, chunk - 1).sum()) * (not pad_end):
        facts["states_that_begin_no_chunk"] = unlearned
    if data.meant.size:
        facts["cloned"] = "what was meant, not what a tremor made of it"
    if data.remark:
        facts["remark"] = data.remark
    if data.made:
        facts["made"] = data.made
    if data.recorded:
        facts["recorded"] = data.recorded
    returns = data.episode_returns
    if np.isfinite(returns).all():
        facts |= {"return_mean": float(returns.mean()), "return_std": float(returns.std())}
    if data.recipe in DATA:
        recipe = DATA[data.recipe]
        facts |= {"env": recipe.env, "seed": recipe.seed, "sources": [asdict(source) for source in recipe.sources]}
        facts |= {"human": recipe.human} if recipe.human else {}
        of_source = [returns[data.episode_source == index] for index in range(int(data.episode_source.max()) + 1)]
        # null where nothing is known: of a part of the data a source may have no episode
        facts |= {"return_by_source": [float(r.mean()) if len(r) and np.isfinite(r).all() else None for r in of_source]}
    elif data.recipe in SCRIPTED:
        script = SCRIPTED[data.recipe]
        facts |= {"env": script.env, "expert": script.expert, "episodes_by_mode": np.bincount(data.episode_source).tolist()}
        tried = data.attempts[data.attempts >= 0]  # below: there was nothing to take over
        facts |= {"attempts_by_mode": np.bincount(tried).tolist()} if len(tried) else {}
    elif data.recipe == "toy":
        facts |= {"recipe": "lpds.pretrain.recipes:toy_data", "seed": 0}
    elif data.recipe:
        facts |= {"recipe": data.recipe}
    return facts


def _level(decoder: Any, task: str | None, env: str | None, episodes: int) -> dict[str, Any]:
    from lpds.api import evaluate

    report = evaluate(decoder, task, env=env, episodes=episodes, seed=CARD_SEED)
    success = report.interval("success")
    return {
        "return": [None if math.isnan(value) else value for value in report.interval("return")],
        "success": None if math.isnan(success[0]) else list(success),
        "episodes": episodes,
        "evaluation_seed": CARD_SEED,
        "env": env or task,
    }
