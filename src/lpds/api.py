"""The public functions: steer, resume, evaluate."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lpds import remarks
from lpds.checkpoint import SET_ASIDE, CheckpointStore
from lpds.checks import LANES, best_device, check_decoder
from lpds.compact import refuse_other_pictures
from lpds.config import RunSettings
from lpds.decoders.base import BaseDecoder
from lpds.decoders.callable import CallableDecoder
from lpds.decoders.recorded import find_decoder
from lpds.envs.build import EnvLike, check_fit, environment_factory, make_env, make_eval_env
from lpds.errors import LpdsError, one_line
from lpds.evaluation import EvalReport, evaluate_policy
from lpds.fields import from_json, override, to_json
from lpds.files import FORMAT_VERSION, check_writable, locked, read_object, write_json
from lpds.log import Display, read_json_lines
from lpds.methods.base import BasePolicy
from lpds.passport import decoder_facts, make_passport
from lpds.policy import SteeredPolicy, load_policy, tell_policy
from lpds.presets import resolve_preset, resolve_settings, resolve_task
from lpds.registry import METHOD_SETTINGS, METHODS, TASKS, resolve
from lpds.run_folder import RunFolder, check_room, folder_of, make_room, read_config
from lpds.runner import Runner
from lpds.session import Run, at_home, build_learner, drive, read_demonstrations
from lpds.threads import learning
from lpds.types import Decoder
from lpds.wire import spec_to_wire
from lpds.zoo import load_decoder


@learning()
def steer(
    task: str | None = None,
    method: str = "lpds",
    *,
    decoder: Decoder | str | None = None,
    env: EnvLike | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    tensorboard: bool = False,
    preset: str | None = None,
    **settings: Any,
) -> Run:
    """Improve a frozen policy by online RL and write a run folder.

    Args:
        task: a preset's name; may be left out if ``decoder`` and ``env`` are given.
        method: a method's name.
        decoder: in place of the task's: a decoder, or a reference for :func:`load_decoder`.
        env: in place of the task's: a Gymnasium id, or a zero-argument factory of a single environment.
        out: the run folder; ``runs/TASK-METHOD-seedN`` by default.
        overwrite: replace a run folder that exists.
        quiet: print nothing but warnings.
        tensorboard: write TensorBoard scalars too.
        preset: named settings of the method in place of its defaults: ``"paper"`` and ``"quiet"`` for lpds, ``"released"`` for
            dsrl-na and dsrl-sac, ``"fits"`` (LP-DS's start and updates) for dsrl-na. A decoder that the preset names is used
            unless ``decoder`` is given.
        settings: any field of :class:`RunSettings` or of the method's settings, for instance ``steps=100_000``,
            ``seed=0``, ``delta=0.5``.

    Returns:
        The run, with its last evaluations.

    Raises:
        LpdsError: an input that does not fit, or a run folder that exists.
        RunFault: an environment failed, or a remote decoder was lost; the run is saved.
    """
    chosen = resolve_task(task, decoder, env)
    named = resolve_preset(preset, method, task)
    run_settings, method_settings = resolve_settings(chosen, method, settings, named)
    run_settings = at_home(run_settings)
    frozen = _as_decoder(decoder if decoder is not None else named.decoders.get(chosen.name, chosen.decoder))
    chosen_env: EnvLike = env if env is not None else chosen.env
    name = chosen.name.replace(":", "-")
    if not isinstance(out, str | os.PathLike | None):
        raise LpdsError(f"out is a {type(out).__name__}, not a folder")
    folder = Path(out) if out is not None else Path("runs") / f"{name}-{method}-seed{run_settings.seed}"
    check_env(chosen_env, frozen)
    check_room(folder, overwrite)
    device = _device(run_settings.device)
    torch.set_num_threads(run_settings.threads)
    learner, generator = build_learner(run_settings, method, method_settings, frozen, device)
    told: list[str] = []
    rows = read_demonstrations(run_settings, method, learner, frozen, chosen_env, told.append)
    passport = make_passport(frozen, env=_env_name(chosen_env), seed=run_settings.seed, device=str(device))
    with ExitStack() as closing:  # whatever is refused from here on leaves no bar on the terminal and no environment open
        display = Display(run_settings.steps, quiet=quiet)
        closing.callback(display.close)
        runner = Runner(
            run_settings,
            method,
            learner,
            frozen,
            chosen_env,
            folder,
            generator=generator,
            device=device,
            display=display,
            tensorboard=tensorboard,
            demonstrations=rows,
        )
        closing.callback(runner.close)
        # batches of the replay are for the fits alone where a method learns from whole rounds
        idle = {*learner.ignores, *(["batch_size"] if learner.recalls and not run_settings.warmup_fits else [])}
        idle |= {"return_std"} if run_settings.reward_scale else set()  # a factor that is given leaves nothing to choose
        idle |= {"eval_episodes"} if not run_settings.eval_every else set()
        for name in sorted(settings.keys() & idle):
            display.say(f"{method} makes no use of {name}")
        for line in [*remarks.of_decoder(frozen), *told]:
            display.say(line)
        config = {
            "format_version": FORMAT_VERSION,
            "task": chosen.name,
            "method": method,
            "preset": preset,
            "env": chosen_env if isinstance(chosen_env, str) else None,
            "env_name": _env_name(chosen_env),
            "decoder": {**decoder_facts(frozen), "spec": spec_to_wire(frozen.spec)},
            "run": to_json(run_settings),
            "settings": to_json(method_settings),
            "shifts": learner.shifts or None,
        }
        make_room(folder, overwrite)  # only now that nothing else stands against the run
        with locked(folder):
            write_json(folder / "config.json", config)
            write_json(folder / "passport.json", passport)
            runner.records.open()
            return drive(runner, display)


@learning()
def resume(
    run: str | Path | RunFolder,
    *,
    steps: int | None = None,
    decoder: Decoder | str | None = None,
    env: EnvLike | None = None,
    files: Mapping[str, Any] | None = None,
    device: str | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
) -> Run:
    """Go on with a run where its last checkpoint is, to the bit.

    Args:
        run: the run folder.
        steps: a larger budget, to go on with a run that had reached its own.
        decoder: needed again for a wrapped one, and for one that has moved; a decoder or a reference.
        env: needed again for a factory.
        files: with a decoder that has moved: where its ``normalization`` or ``tokenizer`` is now; also where it runs, and
            how it is reached (``device``, ``timeout``, ``retries``, ``rows_at_once``).
        device: to learn on from now on; the run's own by default. Another one rounds otherwise.
        quiet: print nothing but warnings.
        tensorboard: write TensorBoard scalars too.

    Returns:
        The run, with its last evaluations.

    Raises:
        LpdsError: no run there, a broken checkpoint, or a decoder that differs.
        RunFault: an environment failed, or a remote decoder was lost; the run is saved.
    """
    folder = folder_of(run)
    config = read_config(folder)
    check_writable(folder / "config.json")
    with locked(folder), ExitStack() as closing:
        frozen = find_decoder(config["decoder"], decoder, f"the run in {folder}", folder, files)
        chosen_env = _environment_of(folder, config, env)
        before = from_json(RunSettings, config["run"])
        begun = _has_checkpoint(folder)
        settings = before if steps is None else _grown(folder, config["method"], before, steps)
        settings = settings if device is None else replace(settings, device=device)
        method_settings = from_json(resolve("method", METHOD_SETTINGS, config["method"]), config["settings"])
        check_env(chosen_env, frozen)
        display = Display(settings.steps, quiet=quiet)
        closing.callback(display.close)
        place = _device(settings.device)
        torch.set_num_threads(settings.threads)
        learner, generator = build_learner(settings, config["method"], method_settings, frozen, place)
        # once there is a checkpoint they are in its replay, and their file may be gone or another one
        facts = CheckpointStore(folder / "checkpoint").facts() if begun else {}
        held = facts.get("given")
        named = (settings, config["method"], learner, frozen, chosen_env)
        rows = None if held is not None else read_demonstrations(*named, display.say)
        if not _can_be_read(folder / "passport.json"):  # a kill came before it, or a disk lost it
            passport = make_passport(frozen, env=_env_name(chosen_env), seed=settings.seed, device=str(place))
            write_json(folder / "passport.json", passport)
        if (name := _env_name(chosen_env)) != config["env_name"]:
            display.say(f"WARNING: the run was in {config['env_name']!r} and goes on in {name!r}, with what it learned there")
        runner = Runner(
            settings,
            config["method"],
            learner,
            frozen,
            chosen_env,
            folder,
            generator=generator,
            device=place,
            display=display,
            tensorboard=tensorboard,
            demonstrations=rows,
            held=held or 0,
            block=facts.get("block"),
        )
        closing.callback(runner.close)
        if begun:
            _restore(runner)
        else:  # killed before the first checkpoint: the whole run is one deterministic function of its settings
            (folder / "summary.json").unlink(missing_ok=True)
            display.say(f"no checkpoint in {folder} yet: the run begins anew")
            runner.records.open({"metrics": 0, "episodes": 0, "eval": 0})
        # written only now that nothing stands against going on; the summary, whose last evaluation is made again, is gone first
        known = config["decoder"]
        if frozen.reference is not None:  # where it is now
            known = {**known, "reference": frozen.reference, "options": getattr(frozen, "options", {})}
        if settings != before or known != config["decoder"]:
            write_json(folder / "config.json", {**config, "decoder": known, "run": to_json(settings)})
        if known != config["decoder"]:
            tell_policy(folder / "policy", known)
        return drive(runner, display)


def _environment_of(folder: Path, config: Mapping[str, Any], env: EnvLike | None) -> EnvLike:
    """The environment of a run, or what was passed in its place."""
    chosen: EnvLike | None = env if env is not None else config["env"]
    if chosen is None:
        raise LpdsError(
            f"the run in {folder} used the environment factory {config['env_name']!r}: pass it as env= (--env takes an id)"
        )
    if isinstance(chosen, str) and chosen != (config["env"] or chosen):
        raise LpdsError(f"the run in {folder} ran in {config['env']!r}, not in {chosen!r}: what it learned is of that one")
    return chosen


def _has_checkpoint(folder: Path) -> bool:
    """Whether a run has a checkpoint to go on from; refuse one that cannot go on at all."""
    if (folder / "checkpoint" / "checkpoint.json").is_file():
        return True
    if (folder / "checkpoint" / SET_ASIDE).is_file():
        raise LpdsError(
            f"the run in {folder} cannot go on: it changed its own decoder, and what it learned is of none that is there"
        )
    # a kill in the very first save leaves one state without its checkpoint.json, and nothing that could not be made again
    left = [len(list((folder / "checkpoint").glob(pattern))) for pattern in ("state-*", "replay-*")]
    if any(left) and ((folder / "summary.json").is_file() or max(left) > 1):
        raise LpdsError(f"the run in {folder} cannot go on: checkpoint/checkpoint.json is missing")
    if (folder / "summary.json").is_file():
        raise LpdsError(f"the run in {folder} is finished and keeps no checkpoint, as committed results do: it cannot go on")
    return False


def _can_be_read(path: Path) -> bool:
    """Whether a file of the run is there and whole."""
    try:
        return bool(read_object(path, "a run"))
    except (LpdsError, OSError):
        return False


def _grown(folder: Path, method: str, before: RunSettings, steps: int) -> RunSettings:
    """Settings of a run with another budget, which can only grow."""
    settings = override(RunSettings, to_json(before), {"steps": steps})
    if settings.steps > before.steps and resolve("method", METHODS, method).divides_budget:
        raise LpdsError(
            f"{method} divides its budget into phases, so {settings.steps} steps are another search than the "
            f"{before.steps} of {folder}: begin anew"
        )
    if settings.steps < before.steps:
        raise LpdsError(f"the run in {folder} has a budget of {before.steps} steps; it can grow, not shrink to {steps}")
    return settings


def _restore(runner: Runner) -> None:
    """Go back to the checkpoint, or say in a line that it is of another run."""
    try:
        runner.restore()
    except (torch.cuda.OutOfMemoryError, LpdsError):
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        fit = f"the checkpoint in {runner.out} and the run's config.json do not fit together"
        raise LpdsError(f"{fit} ({one_line(error)})") from error


def evaluate(
    policy: SteeredPolicy | Decoder | str,
    task: str | None = None,
    *,
    env: EnvLike | None = None,
    episodes: int = 100,
    seed: int = 0,
    scale: float = 1.0,
    noise_scale: float = 1.0,
    noise_seed: int | None = None,
    envs: int = LANES,
    progress: Callable[[int, int], None] | None = None,
) -> EvalReport:
    """Evaluate a policy or a frozen decoder; equal seeds give equal episodes and noise.

    Args:
        policy: of :func:`load_policy`, a decoder, or a reference for :func:`load_decoder`.
        task: whose environment to use; or
        env: a Gymnasium id or a zero-argument factory.
        episodes: E.
        seed: of the evaluation.
        scale: s in ``w = eps + s Delta(s)``; 0 is the frozen policy.
        noise_scale: factor of eps, 0 to 1, beside the policy's own; 1 is the prior.
        noise_seed: in place of ``seed`` for the noise alone: the same episodes under other noises, which tells what the noise
            decides (:func:`lpds.stats.noise_share`).
        envs: environments that are open at once, at most 20; fewer take less memory, and the same comes out.
        progress: called with (episodes done, E).

    Returns:
        Per-episode records and intervals.

    Raises:
        LpdsError: no environment, one that does not fit the decoder, or a number that is out of its range.
        EnvironmentFault: the environment raised, or returned what is not finite.
        DecoderFault: the decoder did, or was lost.
    """
    if isinstance(policy, str | os.PathLike):
        policy = load_decoder(policy)
    if not isinstance(policy, SteeredPolicy | BaseDecoder) and not hasattr(policy, "decode"):
        raise LpdsError(f"evaluate takes a policy of load_policy, a decoder or its reference, not a {type(policy).__name__}")
    decoder = policy.decoder if isinstance(policy, SteeredPolicy) else policy
    acting = policy.policy if isinstance(policy, SteeredPolicy) else BasePolicy()
    if env is None:
        if task is None:
            raise LpdsError("evaluate needs a task or env=")
        env = resolve("task", TASKS, task).env
    check_env(env, decoder)
    if isinstance(decoder, CallableDecoder):
        _ = decoder.fingerprint  # what is stochastic is refused where it is taken, here as by steer
    chunk = decoder.spec.action_shape[0]
    lanes = lambda count: make_eval_env(env, count, chunk, keep_dict=decoder.spec.takes_dict)  # noqa: E731
    options: dict[str, Any] = {"scale": scale, "noise_scale": noise_scale, "noise_seed": noise_seed, "progress": progress}
    return evaluate_policy(acting, decoder, lanes, episodes=episodes, seed=seed, envs=envs, **options)


def _as_decoder(decoder: Decoder | str) -> Decoder:
    if isinstance(decoder, str | os.PathLike):
        return load_decoder(decoder)
    check_decoder(decoder)
    if isinstance(decoder, BaseDecoder):
        decoder.forget()  # it may have been mended since it was looked at last
    return decoder


def _env_name(env: EnvLike) -> str:
    return environment_factory(env)[1]


def check_env(env: EnvLike, decoder: Decoder) -> None:
    """Refuse an environment that cannot be made or does not fit the decoder."""
    probe = make_env(env, 1, decoder.spec.action_shape[0], keep_dict=decoder.spec.takes_dict)
    try:
        check_fit(probe, decoder.spec, decoder.name)
        refuse_other_pictures(probe.single_observation_space, decoder)
    finally:
        probe.close()


def _device(name: str) -> torch.device:
    return torch.device(best_device(name))


__all__ = ["BaseDecoder", "Run", "evaluate", "load_policy", "read_config", "read_json_lines", "resume", "steer"]
