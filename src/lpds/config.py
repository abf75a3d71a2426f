"""Settings as frozen dataclasses: what a run does, and what a method does. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lpds.checks import LANES, check_lanes, check_seed, check_share, choose, positive
from lpds.errors import LpdsError, unknown_name

DELTA_UNITS = ("sum", "mean", "rms", "nats")
SMALLEST_DELTA, LARGEST_DELTA = 1e-9, 1e9
"""Below the one ``||Delta||`` nears the rounding of eps, and 1 / sqrt(delta) float32's range; nothing reaches the other."""


def delta_to_sum(delta: float, unit: str, free: int) -> float:
    """Convert a trust-region budget to the squared norm ``||Delta||^2`` summed over the D free latent coordinates.

    Args:
        delta: the budget.
        unit: ``"sum"`` = D * ``"mean"`` = D * ``"rms"``^2 = 2 * ``"nats"`` (the KL of a pure mean shift, eq. 4).
        free: D.

    Raises:
        LpdsError: a negative, zero or NaN budget, or an unknown unit.
    """
    if not delta > 0.0:
        raise LpdsError(f"delta must be a positive number (inf lifts the constraint), not {delta}")
    if delta < SMALLEST_DELTA:
        raise LpdsError(f"delta must be at least {SMALLEST_DELTA:g}, not {delta}: the base policy itself is --method base")
    if unit not in DELTA_UNITS:
        raise unknown_name("delta_unit", unit, DELTA_UNITS)
    if LARGEST_DELTA < delta < math.inf:
        raise LpdsError(f"delta must be at most {LARGEST_DELTA:g}, or inf for no constraint, not {delta}")
    return {"sum": delta, "mean": delta * free, "rms": delta**2 * free, "nats": 2.0 * delta}[unit]


@dataclass(frozen=True)
class BaseSettings:
    """Settings of the frozen policy."""

    learns: ClassVar[bool] = False
    sampler: str = "decoder"
    """decoder (its own, deterministic), or chain (the DDPM chain that dppo, idql and dql act by, untrained)."""

    def __post_init__(self) -> None:
        choose("sampler", self.sampler, ("decoder", "chain"))


@dataclass(frozen=True)
class GoldenTicketSettings:
    """Settings of the golden ticket's search."""

    run_defaults: ClassVar[Mapping[str, Any]] = {"warmup_steps": 1, "warmup_fits": 0}
    tickets: int = 16
    """Noises that compete; the budget is cut into log2 of them phases."""

    def __post_init__(self) -> None:
        positive(self, "tickets")


@dataclass(frozen=True)
class CriticSettings:
    """Networks of a method that learns critics by TD."""

    critics: int = 2
    """Members of every ensemble of critics."""
    width: int = 256
    """Units of a layer, of actors too."""
    depth: int = 3
    """Layers of that width."""
    activation: str = "relu"
    """After each LayerNorm: relu, or tanh (DSRL's layout, an affine LayerNorm; slower on a CPU)."""
    lr: float = 3e-4
    """Adam's, of the critics."""
    tau: float = 0.005
    """Polyak rate of the target networks, and of the running scale of Q's slope in LP-DS."""

    def __post_init__(self) -> None:
        choose("activation", self.activation, ("relu", "tanh"))
        positive(self, "critics", "width", "depth", "lr", "tau")


@dataclass(frozen=True)
class BestOfNSettings(CriticSettings):
    """Settings of best-of-n."""

    candidates: int = 8
    """N, chunks decoded for a decision."""
    target_candidates: int = 4
    """Chunks decoded at the next state for the TD target."""
    pessimism: str = "min"
    """How several critics become one value: min or mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("pessimism", self.pessimism, ("min", "mean"))
        positive(self, "candidates", "target_candidates")


@dataclass(frozen=True)
class LPDSSettings(CriticSettings):
    """Settings of LP-DS; equation numbers are those of ``docs/method.md``."""

    delta: float = 0.35
    """Budget of the trust region (eq. 5), in ``delta_unit``."""
    delta_unit: str = "sum"
    """sum = D * mean = D * rms^2 = 2 * nats, D the free latent coordinates."""
    delta_updates: int = 0
    """Updates over which the budget grows to ``delta``, linearly: early critics see little; 0 gives all of it at once."""
    noise_bound: float = 1.5
    """b of Delta = b tanh(u / b), per coordinate; inf for none."""
    state_cap: float = math.inf
    """Largest ``||Delta(s)||^2`` of a single state, as a multiple of delta; inf for none."""
    noise_scale: float = 1.0
    """k of w = k eps + Delta(s), in what acts and in eqs. 2 and 6: 1 is the paper's and keeps all of the prior's noise."""
    eval_noise_scale: float = 1.0
    """Factor of k in evaluations and in the saved policy alone; what collects and learns does not see it."""
    eval_noise_updates: int = 0
    """Updates over which that factor goes from 1 to ``eval_noise_scale``, linearly: less noise pays once Delta is learned."""
    eval_average_updates: int = 0
    """N of a running mean of Delta's weights over about the last N updates, in evaluations and in the saved policy alone; 0
    for the weights as they are."""
    shift_form: str = "full"
    """Delta over the chunk: full (every coordinate), tied (one shift for all steps) or lowrank; eps is white in all of them."""
    shift_rank: int = 2
    """r of ``shift_form=lowrank``, at most the latent's H steps."""
    dual: str = "adaptive"
    """adaptive (eq. 7), fixed (a penalty of weight ``alpha_init``) or off (no Lagrangian)."""
    dual_step: float = 0.01
    """eta_alpha, relative (see methods/trust_region.py): alpha moves by this share of its natural size per unit of relative
    violation."""
    alpha_init: float = 1.0
    """First alpha, as a multiple of its natural size; with ``dual=fixed`` the penalty's weight."""
    target_shift: str = "slow"
    """Whose Delta chooses the next action in the target (eq. 2): slow (a Polyak copy) or current."""
    pessimism: str = "min"
    """How several critics become one value: min or mean."""
    actor_lr: float = 3e-4
    """Adam's, of Delta."""
    kept_noises: int = 4
    """M decoded base noises stored with every state; 0 draws and decodes fresh ones at every update."""
    distill_noises: int = 2
    """Noises per state that one distillation update (eq. 3) sees."""
    target_actions: str = "auto"
    """Where the target's chunks of the next state (eq. 2) come from: decode (at every update), kept (decoded when the row is
    made, with Delta as it then is), or auto: decode, but kept where the replay holds a large decoder's features only."""
    kept_next: int = 2
    """K chunks per next state where they are kept; the target is the mean of their values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        delta_to_sum(self.delta, self.delta_unit, 1)
        choose("dual", self.dual, ("adaptive", "fixed", "off"))
        choose("target_shift", self.target_shift, ("slow", "current"))
        choose("target_actions", self.target_actions, ("auto", "decode", "kept"))
        choose("shift_form", self.shift_form, ("full", "tied", "lowrank"))
        choose("pessimism", self.pessimism, ("min", "mean"))
        positive(self, "noise_bound", "state_cap", "dual_step", "actor_lr", "distill_noises", "shift_rank", "kept_next")
        check_share("noise_scale", self.noise_scale)
        check_share("eval_noise_scale", self.eval_noise_scale)
        for name in ("eval_noise_updates", "eval_average_updates", "delta_updates"):
            if getattr(self, name) < 0:
                raise LpdsError(f"{name} must not be negative, not {getattr(self, name)}")
        if not self.kept_noises >= 0 or (self.kept_noises and self.distill_noises > self.kept_noises):
            raise LpdsError(
                f"distill_noises {self.distill_noises} cannot be drawn from kept_noises {self.kept_noises} "
                "(0 keeps none and draws fresh ones)"
            )
        if not 0.0 <= self.alpha_init < math.inf:
            raise LpdsError(f"alpha_init must be finite and not negative, not {self.alpha_init}")


@dataclass(frozen=True)
class LPDSASettings(LPDSSettings):
    """Settings of LP-DS-A: those of LP-DS; ``delta`` and ``noise_bound`` are in normalised action units there."""

    kept_noises: int = 0
    """There is nothing to distil, so nothing is kept."""


@dataclass(frozen=True)
class DSRLSACSettings(CriticSettings):
    """Settings of DSRL-SAC, soft actor-critic over scaled latents."""

    run_defaults: ClassVar[Mapping[str, Any]] = {"updates_per_decision": 2.5, "warmup_fits": 0, "reward_scale": 1.0}
    box: float = 1.5
    """b of w = b a, a in (-1, 1): the largest latent coordinate, at most 100."""
    temperature: float = 0.0
    """Weight of the entropy, in units of the scaled reward: 0 learns it from 1.0, a positive number fixes it (0.3)."""
    target_entropy: float = 0.0
    """Of the scaled latent in nats, where the temperature is learned."""
    update_every: int = 2
    """Rounds of decisions between two blocks of updates."""
    deterministic_eval: bool = False
    """Evaluate and save tanh of the mean in place of a sample; what collects always samples."""
    input_scaling: bool = True
    """Scale observations and chunks by the warm-up's mean and deviation; the released code's environments scale theirs by the
    data's range, and False feeds them raw."""
    activation: str = "tanh"
    """The released layout; relu is cheaper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "box", "update_every")
        if self.box > 100.0 or not 0.0 <= self.temperature < math.inf or not math.isfinite(self.target_entropy):
            raise LpdsError(
                f"box {self.box} must be at most 100, temperature {self.temperature} finite and not negative, "
                f"target_entropy {self.target_entropy} finite"
            )


@dataclass(frozen=True)
class DSRLNASettings(DSRLSACSettings):
    """Settings of DSRL-NA, whose actor climbs a critic distilled from one on decoded chunks."""

    box: float = 1.0
    """b of w = b a, a in (-1, 1), at most 100. The released NA code draws in [-1, 1] whatever its yaml's 1.5 says."""
    distill_share: float = 0.5
    """Distillation steps that follow a block, as a share of its gradient steps, rounded up."""
    distill_noises: int = 1
    """Noises per state that one distillation step sees."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "distill_share", "distill_noises")


LARGEST_REWARD = 1e9
"""Beyond it sums of rewards leave float32's exact range by far."""
CURVE_SEED = 10_000
"""Added to the evaluation seed on the learning curve, so that the last evaluation's episodes were never looked at."""


@dataclass(frozen=True)
class RunSettings:
    """Settings of the loop, the same for every method."""

    steps: int = 100_000
    """Budget in primitive environment steps, warm-up included."""
    seed: int = 0
    """Of every draw and of the training episodes' resets."""
    num_envs: int = 4
    """Sub-environments that act at once."""
    warmup_steps: int = 8_000
    """Primitive steps before the first update."""
    warmup_policy: str = "frozen"
    """What collects the warm-up: frozen, the decoder as it samples, or own, what the method begins with."""
    warmup_fits: int = 3_000
    """Critic updates on the warm-up's Monte-Carlo returns before Delta moves; 0 for none."""
    updates_per_decision: float = 1.0
    """Updates per decision (a chunk in one sub-environment), after the warm-up."""
    batch_size: int = 256
    """Decisions of the replay that an update sees."""
    gamma: float = 0.99**0.25
    """Discount per primitive step."""
    n_step: int = 1
    """Decisions that a TD target of the off-policy methods sums rewards over before it bootstraps; no correction is made for
    the behaviour of those decisions."""
    discount: str = "exact"
    """Chunk arithmetic: exact, or dsrl (undiscounted sum in a chunk, gamma^T per decision)."""
    reward_scale: float = 0.0
    """Multiplies rewards in the losses only, no reported figure is in these units; 0 chooses it from the warm-up, so
    that the returns to go deviate by ``return_std``."""
    # a value network started near zero gets to ten in some thousand steps of Adam at 3e-4, and its noise floor is far below
    return_std: float = 10.0
    """Deviation of the warm-up's scaled returns to go where ``reward_scale`` is 0."""
    reward_offset: float = 0.0
    """Added to every primitive reward in the losses only."""
    end_at_success: bool = False
    """Training episodes end for good at the first success; evaluations go on as the environment does."""
    replay_size: int = 1_000_000
    """Decisions kept."""
    demos: str = ""
    """Demonstrations (see ``lpds pretrain --data``) that are put into the replay before the run; empty for none."""
    log_every: int = 1_000
    """Primitive steps between rows of metrics.jsonl (at least 20 rows are written)."""
    eval_every: int = 10_000
    """Primitive steps between evaluations on the learning curve; 0 for none but the last."""
    eval_episodes: int = 20
    """Episodes of an evaluation on the curve."""
    final_episodes: int = 50
    """Episodes of the last evaluation, frozen and steered."""
    eval_envs: int = LANES
    """Environments that an evaluation opens at once beside those of the training, at most 20; the figures do not hang on it."""
    eval_seed: int = 0
    """Of the last evaluation's episodes and noise; the curve's are others."""
    keep: str = "last"
    """What is evaluated at the end and saved: last, or best, the point of the learning curve with the highest success (where
    told), then return, the frozen policy's among them."""
    checkpoint_every: int = 10_000
    """Primitive steps between checkpoints."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 1
    """Threads of the tensor library; one is fastest for small networks."""

    def __post_init__(self) -> None:
        choose("discount", self.discount, ("exact", "dsrl"))
        choose("device", self.device, ("auto", "cpu", "cuda"))
        positive(self, "steps", "num_envs", "batch_size", "replay_size", "log_every", "checkpoint_every", "threads")
        positive(self, "eval_episodes", "final_episodes", "updates_per_decision", "warmup_steps", "n_step", "return_std")
        if not 0.0 < self.gamma <= 1.0:
            raise LpdsError(f"gamma must be in (0, 1], not {self.gamma}")
        check_lanes("eval_envs", self.eval_envs)
        check_seed("seed", self.seed)
        check_seed("eval_seed", self.eval_seed)
        check_seed(f"eval_seed + {CURVE_SEED}, the learning curve's,", self.eval_seed + CURVE_SEED)
        choose("keep", self.keep, ("last", "best"))
        choose("warmup_policy", self.warmup_policy, ("frozen", "own"))
        for name in ("warmup_fits", "eval_every"):
            if getattr(self, name) < 0:
                raise LpdsError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.keep == "best" and not self.eval_every:
            raise LpdsError("keep best takes the best point of the learning curve, of which eval_every 0 leaves none")
        if not (abs(self.reward_offset) <= LARGEST_REWARD and 0.0 <= self.reward_scale <= LARGEST_REWARD):
            raise LpdsError(
                f"reward_offset {self.reward_offset} and reward_scale {self.reward_scale} must be finite, at most "
                f"{LARGEST_REWARD:g} in size, and reward_scale not negative"
            )


@dataclass(frozen=True)
class Task:
    """One preset: a decoder, the environment it acts in, and what is set differently there."""

    name: str
    env: str
    """A name of the environment registry or a Gymnasium id."""
    decoder: str
    """What :func:`lpds.load_decoder` takes."""
    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Differences from :class:`RunSettings`."""
    method: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Differences from a method's settings, by method; ``"*"`` for every method that has the field."""


@dataclass(frozen=True)
class Preset:
    """A named set of settings of one method, over the task's own."""

    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Differences of :class:`RunSettings`."""
    method: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Differences of the method's settings."""
    by_task: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Further differences of the method's settings, by task."""
    run_by_task: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Further differences of :class:`RunSettings`, by task."""
    tasks: tuple[str, ...] = ()
    """The only tasks that it is known for; empty for any."""

    decoders: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """In place of the task's decoder, by task."""

    def run_of(self, task: str) -> dict[str, Any]:
        """Differences of :class:`RunSettings` on a task."""
        return {**self.run, **self.run_by_task.get(task, {})}

    def method_of(self, task: str) -> dict[str, Any]:
        """Differences of the method's settings on a task."""
        return {**self.method, **self.by_task.get(task, {})}
