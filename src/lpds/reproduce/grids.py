"""The paper's comparisons as grids: which runs they need, what the paper says of them, and what came out here."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lpds.errors import LpdsError, unknown_name
from lpds.files import FORMAT_VERSION, write_atomically, write_json
from lpds.grid import budget_of, finished_cells, grid_cells, run_grid
from lpds.report.compare import compare
from lpds.report.read import RunData, group_runs, read_runs
from lpds.report.worlds import by_task

NAMES = {
    "success_ema": "running mean of success over training episodes",
    "w_norm": "mean norm of w",
    "delta_sq_mean": "mean squared norm of Delta",
    "action_entropy": "action entropy less the frozen policy's, nats",
}


@dataclass(frozen=True)
class Reproduction:
    """One figure or table of the paper."""

    title: str
    suite: str
    methods: tuple[str, ...]
    """As :func:`lpds.grid.grid_cells` takes them."""
    paper: tuple[str, ...]
    """What the paper says, a sentence each."""
    caveats: tuple[str, ...] = ()
    """In what this grid differs from the paper's, a sentence each."""
    steps: int = 100_000
    """Default budget in primitive steps."""
    figures: tuple[str, ...] = ("learning",)
    """Figures of the report that show it."""
    metrics: tuple[str, ...] = ()
    """Metrics whose first and last values stand in a table: what the paper speaks of beside returns."""
    tables: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Titles of the tables, and the methods that each has; one of all by default."""


_FLOOR = ("base+chain", "golden-ticket")  # the frozen policy itself is a row of every table
EQUAL = "updates_per_decision=1"
START = "warmup_fits=3000,reward_scale=0"
"""Critics fitted to the warm-up's returns and rewards scaled by them, as LP-DS has it by default."""
BUDGET = (
    "Budgets are far below the published 18 to 160 million steps of dppo, idql and dql: where those are flat, lay it to that."
)
REPRODUCTIONS: dict[str, Reproduction] = {
    "gym": Reproduction(
        "Locomotion: LP-DS against its rivals",
        "gym",
        (
            "base+chain:sampler=chain",
            "golden-ticket",
            "lpds",
            "lpds-a",
            "dsrl-na",
            "dsrl-na+alpha0.3:temperature=0.3",
            "dsrl-sac",
            f"dsrl-na+equal:{EQUAL}",
            f"dsrl-na+equal-alpha0.3:{EQUAL},temperature=0.3",
            f"dsrl-na+fits:{EQUAL},temperature=0.3,{START}",
            f"dsrl-sac+equal:{EQUAL}",
            "dppo",
            "idql",
            "dql",
            f"idql+equal:{EQUAL},batch_size=256,warmup_policy=frozen",
            f"dql+equal:{EQUAL},batch_size=256",
        ),
        (
            "Up to 25 % more return than earlier baselines, at higher action entropy.",
            "Walker2d: about 5000 against about 4000 for the best baseline.",
        ),
        (
            BUDGET,
            "Own frozen policies (see their cards), not the public checkpoints; chunk 4, networks 3x256 (Hopper 3x128).",
            "dppo, idql and dql act by the 20-step chain: compare them with base+chain, not with the frozen policy.",
            "Their warm-up is the chain's own, but that of idql+equal, which the frozen policy collected.",
            "dsrl-na+fits has what lpds starts from: critics fitted to the warm-up's returns, and rewards scaled by them.",
        ),
        figures=("learning", "entropy"),
        metrics=("action_entropy",),
        tables=(
            (
                "Every method at its released updates per step",
                (*_FLOOR, "lpds", "lpds-a", "dsrl-na", "dsrl-na+alpha0.3", "dsrl-sac", "dppo", "idql", "dql"),
            ),
            (
                "Off-policy methods at one update a decision",
                (
                    *(*_FLOOR, "lpds", "lpds-a"),
                    *("dsrl-na+equal", "dsrl-na+equal-alpha0.3", "dsrl-na+fits", "dsrl-sac+equal", "idql+equal", "dql+equal"),
                ),
            ),
        ),
    ),
    "fig2": Reproduction(
        "The norm of the latent over training",
        "halfcheetah",
        # raw inputs, as the committed runs have them: what a wide box does to the norm does not hang on them
        ("lpds", "dsrl-sac+box10:box=10,input_scaling=false", "dsrl-sac+box100:box=100,input_scaling=false"),
        ("Under DSRL the norm of w grows steadily until decoding breaks; under LP-DS it stays with the prior's.",),
        (
            "The paper does not give the box; 10 and 100 are wide ones, DSRL is SAC with raw inputs. A fresh actor draws all "
            "over its box, so the norm begins wide; with box 10 it narrows, and the return comes back after it broke.",
        ),
        60_000,
        ("latent-norm", "learning", "entropy"),
        ("w_norm", "action_entropy"),
    ),
    "ablation": Reproduction(
        "What the Lagrangian and the bound are for",
        "adroit-pen",
        (
            "lpds",
            "lpds+delta0.66:delta=0.66",
            "lpds+free:delta=0.66,dual=off",
            "lpds+unbounded:delta=0.66,dual=off,noise_bound=inf",
            "lpds+penalty:delta=0.66,dual=fixed",
            f"dsrl-na+equal:{EQUAL}",
            "lpds-a",
        ),
        (
            "Full method highest in success and high in entropy; without the Lagrangian medium, then unstable; without both "
            "lowest and oscillating; DSRL low with the lowest entropy; the residual on the action (LP-DS-A) an early plateau.",
        ),
        (
            "DSRL does as many updates a decision as LP-DS, not its released number.",
            "The paper's delta on Pen, 0.66, is 0.007 for each of 96 coordinates; lpds has twelve times that.",
        ),
        figures=("success", "learning", "entropy", "trust-region"),
        metrics=("success_ema", "delta_sq_mean", "action_entropy"),
    ),
    "delta": Reproduction(
        "Return against delta",
        "hopper,halfcheetah",
        tuple(f"lpds+delta{value}:delta={value}" for value in (0.05, 0.1, 0.35, 0.66, 2)),
        ("The result is insensitive to delta between 0.1 and 0.66.",),
        figures=("learning", "entropy", "trust-region"),
        metrics=("delta_sq_mean", "w_norm", "action_entropy"),
    ),
    "residual": Reproduction(
        "The residual on the noise against the residual on the action",
        "gym",
        ("lpds", "lpds-a"),
        ("LP-DS-A: an early plateau (on Pen).",),
        ("The paper's claim is of Pen, which `lpds reproduce ablation` has; these are the gym tasks.",),
        figures=("learning", "entropy"),
    ),
    "flow": Reproduction(
        "A flow decoder in place of diffusion",
        "hopper",
        ("lpds", "lpds+flow:decoder=hopper-flow"),
        (),
        ("What the paper shows of flow decoders is not known to us.",),
    ),
}


def reproduce(
    name: str,
    out: Path,
    *,
    seeds: int = 3,
    steps: int | None = None,
    jobs: int = 1,
    runs: Path | None = None,
    run: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Run what is missing of a grid, and write its table, figures and page into a folder.

    Args:
        name: of a reproduction.
        out: folder of ``README.md``, ``summary.json`` and the figures.
        seeds: runs of every cell.
        steps: budget of a run in place of the reproduction's.
        jobs: processes at a time.
        runs: root of the run folders; ``out/runs`` by default. With committed results nothing that is there is run again.
        run: whether to run what is missing; else the page has what is finished, and names the rest.
        say: takes one line of progress at a time.

    Returns:
        The page, as text.

    Raises:
        LpdsError: an unknown name, or no run finished.
    """
    if name not in REPRODUCTIONS:
        raise unknown_name("figure", name, ["toy", *REPRODUCTIONS])
    what = REPRODUCTIONS[name]
    budget = what.steps if steps is None else steps
    cells = grid_cells(what.suite, what.methods, seeds, budget)
    root = runs or out / "runs"
    if run:
        if missing := len(cells) - len(finished_cells(cells, root)):
            say(
                f"{missing} of {len(cells)} runs of {budget:,} steps are missing in {root} and are made now: "
                "--runs FOLDER uses runs that exist, --no-run only draws"
            )
        run_grid(cells, root, jobs=jobs, say=say)
    finished = [root / cell.path for cell in finished_cells(cells, root)]
    if not finished:
        why = "what each said last is above" if run else f"{root} has none of them"
        raise LpdsError(f"none of the {len(cells)} runs is finished, so there is nothing to draw: {why}")
    equal = [folder for folder in finished if budget_of(folder) == budget]
    report = compare(equal or finished)
    pictures = _pictures(what, finished, out)
    command = f"lpds reproduce {name} --seeds {seeds} --steps {budget}"
    command += "" if runs is None else f" --runs {shlex.quote(str(runs))}"
    command += "" if run else " --no-run"
    unfinished = [cell.path for cell in cells if root / cell.path not in finished]
    page = _page(command, what, budget, unfinished, pictures, finished)
    write_json(out / "summary.json", {"format_version": FORMAT_VERSION, "figure": name, **report.to_json()})
    write_atomically(out / "README.md", page.encode())
    return page


def _pictures(what: Reproduction, finished: Sequence[Path], out: Path) -> list[str]:
    from lpds.report import write_figures

    written = write_figures(finished, out)
    kept = []
    for path in written:
        if any(path.stem.endswith(f"-{figure}") for figure in what.figures):
            kept += [path.name] if path.suffix == ".png" else []
        else:
            path.unlink()
    return kept


def _page(
    command: str,
    what: Reproduction,
    budget: int,
    missing: Sequence[Path],
    pictures: Sequence[str],
    runs: Sequence[Path],
) -> str:
    lines = [f"# {what.title}", "", f"`{command}`", ""]
    if missing:
        left = _by_method((path, "") for path in missing)
        whole = len(runs) + len(missing)
        lines += [f"**{len(runs)} of {whole} runs are finished.** Not in the tables, by method and seed: {left}.", ""]
    equal = [run for run in runs if budget_of(run) == budget]
    if len(equal) < len(runs):
        longer = _by_method((Path(*run.parts[-3:]), f", {budget_of(run):,} steps,") for run in runs if run not in equal)
        lines += [f"Drawn, but longer than {budget:,} steps, and so not in a table of returns: {longer}.", ""]
    if what.paper:
        lines += ["The paper says:", "", *(f"- {sentence}" for sentence in what.paper), ""]
    lines += ["Measured here (95 % intervals; difference from the frozen policy):", ""]
    for title, methods in what.tables or (("", ()),):
        # what is said under a table is of its own rows
        members = [run for run in equal if not methods or run.parent.name in methods]
        lines += [f"{title}:", ""] if title else []
        lines += ["```", str(compare(members)) if members else f"no run of {budget:,} steps", "```", ""]
    if what.metrics:
        lines += [*_quantities(what.metrics, runs, budget), ""]
    if what.caveats:
        lines += ["What differs from the paper:", "", *(f"- {sentence}" for sentence in what.caveats), ""]
    lines += [f"![{picture}]({picture})" for picture in pictures]
    return "\n".join(lines).rstrip() + "\n"


def _by_method(runs: Iterable[tuple[Path, str]]) -> str:
    """Seeds TASK/METHOD/seedN by task and method, and what is said of them."""
    seeds: dict[str, list[str]] = {}
    for path, said in runs:
        seeds.setdefault(f"{path.parent}{said}", []).append(path.name.removeprefix("seed"))
    return "; ".join(f"{path} {', '.join(numbers)}" for path, numbers in seeds.items())


def _quantities(metrics: Sequence[str], runs: Sequence[Path], budget: int) -> list[str]:
    """A table of first and last values up to a budget, means over seeds; entropy less the frozen policy's."""
    lines = ["| | " + " | ".join(f"{NAMES.get(key, key)}, first and last" for key in metrics) + " |"]
    lines.append("|---|" + "---|" * len(metrics))
    for task, members in by_task(read_runs(runs)).items():
        for group in group_runs(members):
            cells = [f"{task}, {group.label}"]
            for key in metrics:
                ends = [found for run in group.runs if (found := _ends(run, key, budget)) is not None]
                cells.append(" to ".join(f"{value:.3g}" for value in np.mean(ends, 0)) if ends else "-")
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", "`-`: not logged, by the method or by runs older than the figure."]


def _ends(run: RunData, key: str, budget: int) -> tuple[float, float] | None:
    steps, values = run.column(key)
    if key == "action_entropy":
        values = values - run.column("action_entropy_frozen")[1]
    end = steps[steps >= budget].min(initial=np.inf)  # of the round that reaches the budget
    values = values[np.isfinite(values) & (steps <= end)]
    return (float(values[0]), float(values[-1])) if len(values) else None
