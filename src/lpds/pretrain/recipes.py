"""How the zoo was made: for every shipped decoder its data and its training, with their seeds.

``lpds demos NAME --experts FOLDER --out FILE`` makes the data (scripted experts need no folder), and
``lpds pretrain NAME --data FILE --out FOLDER`` the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lpds.errors import LpdsError, unknown_name
from lpds.pretrain.clone import CloneSettings
from lpds.pretrain.experts import Demonstrations, Source, joined, roll_out
from lpds.pretrain.human import human_demonstrations
from lpds.types import Decoder


@dataclass(frozen=True)
class Recipe:
    """One decoder of the zoo."""

    task: str
    """Whose environment it acts in."""
    data: str
    """Name of the dataset; decoders of one task share it."""
    clone: CloneSettings


@dataclass(frozen=True)
class DataRecipe:
    """One dataset: a mixture of experts, rolled out."""

    env: str
    sources: tuple[Source, ...]
    transitions: int = 500_000
    seed: int = 0
    human: str = ""
    """File of human demonstrations to be added, in the folder of the experts or in ``demos`` beside it."""


@dataclass(frozen=True)
class ScriptedRecipe:
    """One dataset: successful episodes of a scripted expert."""

    env: str
    expert: str
    """Module of :mod:`lpds.pretrain.scripted`."""
    episodes: int
    """Successes to keep."""
    seed: int = 0
    tremor: float = 0.15
    """Of the actions; every episode draws its own up to this."""
    meant: bool = False
    """Clone what the expert meant, not what its tremor made of it, which only spreads the states (DART, arXiv 1703.09327)."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the environment."""


# About the level of D4RL's "medium" data, and mixed of two or three gaits each, since modes are what LP-DS protects.
DATA: dict[str, DataRecipe] = {
    "hopper": DataRecipe(
        "Hopper-v5",
        (
            Source("gym_sac_hopper", 0.5),
            Source("gym_ppo_hopper", 0.25),
            Source("gym_tqc_hopper", 0.25, noise=0.3),
        ),
    ),
    "walker2d": DataRecipe(
        "Walker2d-v5",
        (Source("gym_sac_walker2d", 0.85, noise=0.15), Source("gym_tqc_walker2d", 0.15, noise=0.15)),
    ),
    "halfcheetah": DataRecipe(
        "HalfCheetah-v5",
        (Source("gym_ppo_halfcheetah", 0.5), Source("gym_ars_halfcheetah", 0.5)),
    ),
    # few and noisy episodes of an expert, so that the clone is worth improving
    "adroit-pen": DataRecipe("adroit-pen", (Source("adroit_pen", 1.0, noise=0.1),), transitions=5_000),
    "adroit-hammer": DataRecipe("adroit-hammer", (Source("adroit_hammer", 1.0, noise=0.05),), transitions=20_000),
    # 400 episodes, and twice the width: at 256 the clone of the same data never picked the ball up
    "adroit-relocate": DataRecipe("adroit-relocate", (Source("adroit_relocate", 1.0, noise=0.02),), transitions=80_000),
    "adroit-door": DataRecipe("adroit-door", (Source("adroit_door", 1.0, noise=0.05),), transitions=20_000),
    # the same and the 25 demonstrations that people gave; no shipped decoder is of these
    "adroit-door-human": DataRecipe(
        "adroit-door", (Source("adroit_door", 1.0, noise=0.05),), transitions=20_000, human="adroit_door_human.npz"
    ),
}

SCRIPTED: dict[str, ScriptedRecipe] = {
    f"robomimic-{task}": ScriptedRecipe(f"robomimic-{task}", f"lpds.pretrain.scripted.{task}", episodes)
    for task, episodes in (("lift", 4), ("can", 100), ("square", 400), ("transport", 200))
}
# two arms for 500 steps leave no room for a chunk that strays by what was no intention
SCRIPTED["robomimic-transport"] = replace(SCRIPTED["robomimic-transport"], meant=True)
# recorded on while success holds, as elsewhere
SCRIPTED["libero-90:57"] = ScriptedRecipe(
    "libero-90:57", "lpds.pretrain.scripted.cream_cheese", episodes=200, options={"end_at_success": False}
)

_whole_chunks = partial(CloneSettings, pad_end=False)
"""What the shipped decoders were trained on: chunks within their episodes."""

ZOO: dict[str, Recipe] = {
    "toy": Recipe("toy", "toy", _whole_chunks(chunk=2, width=64, steps=20_000)),
    "toy-flow": Recipe("toy", "toy", _whole_chunks("flow", chunk=2, width=64, steps=20_000, sampler_steps=8)),
    "hopper": Recipe("hopper", "hopper", _whole_chunks(steps=40_000)),
    "hopper-flow": Recipe("hopper", "hopper", _whole_chunks("flow", steps=40_000, sampler_steps=4)),
    "hopper-c8": Recipe("hopper", "hopper", _whole_chunks(chunk=8, steps=40_000)),
    "walker2d": Recipe("walker2d", "walker2d", _whole_chunks(steps=60_000, sampler_steps=10)),
    "adroit-pen": Recipe("adroit-pen", "adroit-pen", _whole_chunks(steps=10_000, sampler_steps=8)),
    "adroit-pen-flow": Recipe("adroit-pen", "adroit-pen", _whole_chunks("flow", steps=10_000, sampler_steps=4)),
    "adroit-pen-c8": Recipe("adroit-pen", "adroit-pen", _whole_chunks(chunk=8, width=384, steps=10_000, sampler_steps=8)),
    "adroit-hammer": Recipe("adroit-hammer", "adroit-hammer", _whole_chunks(steps=15_000, sampler_steps=8)),
    "adroit-door": Recipe("adroit-door", "adroit-door", _whole_chunks(steps=15_000, sampler_steps=8)),
    "adroit-relocate": Recipe("adroit-relocate", "adroit-relocate", _whole_chunks(width=512, steps=30_000, sampler_steps=8)),
    # four episodes: with eight the clone lifts the cube nearly always
    "robomimic-lift": Recipe("robomimic-lift", "robomimic-lift", _whole_chunks(steps=6_000, sampler_steps=8)),
    "robomimic-can": Recipe("robomimic-can", "robomimic-can", _whole_chunks(steps=15_000, sampler_steps=8)),
    "robomimic-can-flow": Recipe("robomimic-can", "robomimic-can", _whole_chunks("flow", steps=15_000, sampler_steps=4)),
    "robomimic-can-c8": Recipe("robomimic-can", "robomimic-can", _whole_chunks(chunk=8, steps=15_000, sampler_steps=8)),
    # precise work: 400 episodes and twice the width
    "robomimic-square": Recipe("robomimic-square", "robomimic-square", _whole_chunks(width=512, steps=30_000, sampler_steps=8)),
    # two arms that meet on one side, with corrections (docs/manipulation.md); 8 of 20 DDIM steps would begin at noise
    "robomimic-transport": Recipe(
        "robomimic-transport", "robomimic-transport", _whole_chunks(width=512, steps=45_000, sampler_steps=10)
    ),
    "halfcheetah": Recipe("halfcheetah", "halfcheetah", _whole_chunks(steps=60_000)),
}


def make_data(
    name: str,
    experts: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    episodes: int | None = None,
    seed: int | None = None,
    cameras: int | None = None,
    policy: Decoder | None = None,
    say: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
    begun: Demonstrations | None = None,
    keep: Callable[[Demonstrations], None] | None = None,
) -> Demonstrations:
    """Roll out the data of a recipe.

    Args:
        name: of a dataset (``hopper``) or of a decoder of the zoo (``hopper-flow``).
        experts: folder of the expert actors; the toy and scripted experts need none.
        progress: called with (transitions, wanted), or (episodes, wanted) where the expert is scripted.
        episodes: of a scripted expert, in place of the recipe's.
        seed: of a scripted expert, in place of the recipe's.
        cameras: keep what LIBERO's two cameras see too, in pictures of so many pixels square.
        policy: that a scripted expert takes over from, in place of beginning at a reset; what it then does are corrections.
        say: called with lines of counts.
        stop: asked after every episode; what is there by then is all that is wanted.
        begun: of a scripted expert: go on with these, which were cut short; what comes out is what one call would have made.
        keep: of a scripted expert: given what is there by then, every now and then, so that a kill does not lose all.

    Raises:
        LpdsError: unknown name, no experts given, episodes asked of data that are no scripted expert's, pictures of an
            environment that has no cameras to observe, or data to go on with that were made otherwise.
    """
    name = ZOO[name].data if name in ZOO else name
    _check_asked(name, episodes, seed, cameras, policy, begun)
    if name not in SCRIPTED:
        return replace(_rolled_out(name, experts, progress, stop), recipe="" if stop is not None and stop() else name)
    from lpds.pretrain.scripted.collect import demonstrate

    script = SCRIPTED[name]
    wanted = script.episodes if episodes is None else episodes
    seed = script.seed if seed is None else seed
    filmed = {"cameras": ("agentview", "wrist"), "size": cameras, "objects": True} if cameras is not None else {}
    work: dict[str, Any] = {
        "made": f"{name}, seed {seed}, {f'pictures of {cameras}' if filmed else 'no pictures'}, "
        + (f"after {policy.fingerprint[:12]}" if policy is not None else "from a reset"),
        "remark": f"they begin where {policy.name} ({policy.fingerprint[:12]}) had come to" if policy is not None else "",
    }
    if begun is not None and begun.made != work["made"]:
        of = f"they were made as {begun.made!r}" if begun.made else "they do not say how they were made"
        raise LpdsError(
            f"these demonstrations cannot be gone on with: {of}, asked is {work['made']!r}; --overwrite makes them anew"
        )
    data = demonstrate(
        script.env,
        script.expert,
        episodes=wanted,
        seed=seed,
        tremor=script.tremor,
        meant=script.meant,
        policy=policy,
        options={**script.options, **filmed},
        progress=progress,
        say=say,
        stop=stop,
        begun=begun,
        keep=None if keep is None else lambda data: keep(_told(data, work, wanted, name)),
    )
    return _told(data, work, wanted, name)


def _told(data: Demonstrations, work: dict[str, Any], wanted: int, name: str) -> Demonstrations:
    """With what says how they were made; what was cut short is not the recipe's, and whoever learns from it is told."""
    if len(data.episode_lengths) >= wanted:
        return replace(data, **work, recipe=name)
    short = f"cut short at {len(data.episode_lengths)} of {wanted} episodes (lpds demos --resume goes on)"
    return replace(data, **work | {"remark": "; ".join(filter(None, (work["remark"], short)))})


def _check_asked(
    name: str, episodes: int | None, seed: int | None, cameras: int | None, policy: Decoder | None, begun: Demonstrations | None
) -> None:
    if cameras is not None and not name.startswith("libero-90:"):
        raise LpdsError(f"--cameras is for LIBERO's tasks; the observations of {name!r} have no pictures")
    if name in SCRIPTED:
        return
    if name != "toy" and name not in DATA:
        raise unknown_name("dataset", name, ["toy", *DATA, *SCRIPTED])
    if any(given is not None for given in (episodes, seed, policy, begun)):
        raise LpdsError(
            "--episodes, --seed, --take-over and --resume are for scripted experts "
            f"({', '.join(SCRIPTED)}); {name!r} has its recipe's"
        )


def _rolled_out(
    name: str,
    experts: Path | None,
    progress: Callable[[int, int], None] | None,
    stop: Callable[[], bool] | None,
) -> Demonstrations:
    if name == "toy":
        if experts is not None:
            raise LpdsError("the toy's data are drawn, not rolled out: --experts is for those of hands and gym tasks")
        return toy_data()
    if experts is None:
        raise LpdsError(
            f"the data of {name!r} are rolled out with expert actors: pass --experts FOLDER "
            '(docs/manipulation.md, "Expert actors", says what it holds)'
        )
    data = DATA[name]
    places = (experts / data.human, experts.parent / "demos" / data.human)
    # opened before the roll-out, so that what is missing or broken costs no time
    human = human_demonstrations(next((place for place in places if place.is_file()), places[0])) if data.human else None
    made = roll_out(
        data.env,
        data.sources,
        experts=experts,
        transitions=data.transitions,
        seed=data.seed,
        progress=progress,
        stop=stop,
    )
    return made if human is None else joined(made, human)


def toy_data(decisions: int = 80_000, chunk: int = 2, seed: int = 0) -> Demonstrations:
    """Demonstrated chunks of the four-mode toy, each its own little episode."""
    from lpds.envs.four_mode import demonstrate

    states, actions = demonstrate(decisions, chunk, np.random.default_rng(seed))
    return Demonstrations(
        obs=states,
        actions=actions,
        episode_lengths=np.full(decisions, chunk, np.int64),
        episode_returns=np.full(decisions, np.nan),
        episode_source=np.zeros(decisions, np.int64),
    )
