"""Settings, and every bad input: one clear line that names the offender, the value and the choices."""

from __future__ import annotations

import json
import math

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import TINY, Scripted, toy_decoder

import lpds
from lpds.config import LPDSSettings, RunSettings
from lpds.envs.four_mode import make_four_mode
from lpds.errors import LpdsError
from lpds.fields import from_json, override, to_json
from lpds.log import read_json_lines
from lpds.methods.base import BaseMethod, BasePolicy
from lpds.policy import load_policy
from lpds.registry import METHOD_SETTINGS, METHODS, TASKS, resolve


def steer(tmp_path, *args, **changes):
    return lpds.steer(*(args or ("toy",)), **{"decoder": toy_decoder(), "out": tmp_path / "run", **TINY, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"delta": -0.1}, "delta must be a positive number (inf lifts the constraint), not -0.1"),
        ({"delta": 0.0}, "delta must be a positive number (inf lifts the constraint), not 0.0"),
        ({"delta": math.nan}, "delta must be a positive number (inf lifts the constraint), not nan"),
        ({"delta": "0.5"}, "delta must be of type float, not '0.5'"),
        ({"delta": None}, "delta must be of type float, not None"),
        ({"delta": True}, "delta must be of type float, not True"),
        ({"delta_unit": "sun"}, "unknown delta_unit 'sun'; did you mean 'sum'? (choices: mean, nats, rms, sum)"),
        ({"delt": 0.1}, "unknown setting 'delt'; did you mean 'delta'"),
        ({"dual": "adaptiv"}, "unknown dual 'adaptiv'; did you mean 'adaptive'? (choices: adaptive, fixed, off)"),
        ({"target_shift": "fast"}, "unknown target_shift 'fast'"),
        ({"pessimism": "max"}, "unknown pessimism 'max'"),
        ({"noise_bound": 0.0}, "noise_bound must be positive, not 0.0"),
        ({"state_cap": math.nan}, "state_cap must be positive, not nan"),
        ({"critics": 0}, "critics must be positive, not 0"),
        ({"critics": 2.5}, "critics must be of type int, not 2.5"),
        ({"distill_noises": 5}, "distill_noises 5 cannot be drawn from kept_noises 4"),
        ({"alpha_init": -1.0}, "alpha_init must be finite and not negative, not -1.0"),
        ({"gamma": 1.01}, "gamma must be in (0, 1], not 1.01"),
        ({"gamma": math.nan}, "gamma must be in (0, 1], not nan"),
        ({"steps": 0}, "steps must be positive, not 0"),
        ({"steps": "many"}, "steps must be of type int, not 'many'"),
        ({"seed": -1}, "seed must be in 0 .. 2^32 - 1, not -1"),
        ({"eval_seed": 2**60}, "eval_seed must be in 0 .. 2^32 - 1"),
        ({"warmup_fits": -1}, "must not be negative"),
        ({"alpha_init": math.inf}, "alpha_init must be finite"),
        ({"delta": 1e-300}, "delta must be at least 1e-09"),
        ({"reward_offset": math.inf}, "must be finite"),
        ({"discount": "exakt"}, "unknown discount 'exakt'; did you mean 'exact'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"method": "lpd"}, "unknown method 'lpd'; did you mean 'lpds'"),
        ({"decoder": "tou"}, "unknown decoder 'tou'; did you mean 'toy'"),
        ({"env": "for-mode"}, "unknown environment 'for-mode'; did you mean 'four-mode'"),
        ({"env": "Pendulum-v1"}, "decoder 'linear' takes observations (2,), but Pendulum-v1 gives (3,)"),
        ({"env": lambda: Scripted([])}, "decoder 'linear' gives actions of 2 numbers, but <lambda> takes (1,)"),
        ({"env": "CartPole-v1"}, "CartPole-v1 has action space Discrete(2); steering needs a Box with one axis"),
    ],
)
def test_bad_settings_are_one_line_and_nothing_is_written(tmp_path, changes, words):
    with pytest.raises(LpdsError) as caught:
        steer(tmp_path, **changes)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_names_and_their_nearest(tmp_path):
    with pytest.raises(LpdsError, match=r"unknown task 'hoper'; did you mean 'hopper'\? \(choices: .*toy"):
        steer(tmp_path, "hoper")
    with pytest.raises(LpdsError, match=r"steer needs a task .*, or both decoder= and env="):
        lpds.steer(decoder=toy_decoder(), **TINY)
    with pytest.raises(LpdsError, match="unknown task 'zzzz' \\(choices:"):  # nothing is near
        steer(tmp_path, "zzzz")
    with pytest.raises(LpdsError, match=r"no policy in .*nowhere \(that folder does not exist\)"):
        lpds.load_policy(tmp_path / "nowhere")


def test_a_run_folder_that_exists_is_refused_or_overwritten_and_nothing_else_ever(tmp_path):
    short = {"steps": 40, "warmup_steps": 300, "final_episodes": 1, "eval_episodes": 1}
    steer(tmp_path, **short)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    words = (
        r"run folder .*run exists: choose another, pass --overwrite \(overwrite=True in Python\), or go on: "
        r"lpds\.resume\(.*, decoder=decoder\)"
    )
    with pytest.raises(LpdsError, match=words):
        steer(tmp_path, **short)
    with pytest.raises(LpdsError, match="delta must be"):  # a mistake does not cost the old run
        steer(tmp_path, **short, overwrite=True, delta=-1.0)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert steer(tmp_path, **short, overwrite=True, seed=1).finished
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["seed"] == 1

    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".config.json.123.tmp").write_text("{")  # a kill before there was a run
    assert steer(tmp_path, **short, out=tmp_path / "killed").finished

    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(LpdsError, match=r"is not empty and holds no run .*: it is not overwritten"):
        steer(tmp_path, **short, overwrite=True, out=precious)
    assert (precious / "thesis.tex").read_text() == "years of work"
    (precious / "config.json").write_text('{"type": "pi0"}')  # as a policy's folder has one
    with pytest.raises(LpdsError, match=r"holds no run .*config.json is not that of a run: task, .*: it is not overwritten"):
        steer(tmp_path, **short, overwrite=True, out=precious)
    assert (precious / "thesis.tex").read_text() == "years of work"
    with pytest.raises(LpdsError, match="is a file: choose another"):
        steer(tmp_path, **short, overwrite=True, out=precious / "thesis.tex")


def test_a_delta_is_refused_by_another_decoder(tmp_path):
    steer(tmp_path, steps=240, final_episodes=1, eval_episodes=1)
    mine = load_policy(tmp_path / "run", toy_decoder())
    assert mine.method == "lpds"
    words = r"the policy in .* was learned on a decoder with fingerprint \w{12}, but 'other' has \w{12}: weights, sampler or"
    with pytest.raises(LpdsError, match=words):
        load_policy(tmp_path / "run", toy_decoder("other"))
    with pytest.raises(LpdsError, match="belongs to the wrapped decoder 'linear': pass it as decoder="):
        load_policy(tmp_path / "run")
    weights = tmp_path / "run" / "policy" / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(LpdsError, match=r"policy in .* cannot be read"):
        load_policy(tmp_path / "run", toy_decoder())


def test_a_stochastic_decoder_is_refused(tmp_path):
    import torch

    fn = lambda s, w: w + torch.randn(w.shape)  # noqa: E731
    noisy = lpds.wrap_decoder(fn, obs_shape=(2,), latent_shape=(4, 2), action_shape=(4, 2), name="ddpm")
    with pytest.raises(LpdsError, match="decoder 'ddpm' is stochastic or has a memory: the same observation"):
        steer(tmp_path, decoder=noisy)
    assert not (tmp_path / "run").exists()


# -- settings as values --------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    delta=st.floats(1e-6, 1e6) | st.just(math.inf),
    bound=st.floats(1e-3, 10.0) | st.just(math.inf),
    unit=st.sampled_from(["sum", "mean", "rms", "nats"]),
    steps=st.integers(1, 10**9),
    gamma=st.floats(0.5, 1.0),
)
def test_settings_survive_json(delta, bound, unit, steps, gamma):
    for made in (LPDSSettings(delta=delta, noise_bound=bound, delta_unit=unit), RunSettings(steps=steps, gamma=gamma)):
        text = json.dumps(to_json(made), allow_nan=False)
        assert from_json(type(made), json.loads(text)) == made


def test_later_layers_win_and_whole_numbers_pass_as_either():
    made = override(RunSettings, {"steps": 10, "gamma": 1}, {"steps": 5e3})
    assert made.steps == 5000
    assert isinstance(made.steps, int)
    assert isinstance(made.gamma, float)


@pytest.mark.parametrize("name", TASKS)
def test_presets_resolve_for_every_method(name):
    from lpds.presets import resolve_settings

    task = resolve("task", TASKS, name)
    for method in METHODS:
        run, own = resolve_settings(task, method, {"seed": 7})
        assert run.seed == 7
        assert isinstance(own, resolve("method", METHOD_SETTINGS, method))
    assert resolve_settings(task, "lpds", {"delta": 0.77})[1].delta == 0.77


def test_preset_and_saved_configuration_agree(tmp_path):
    steer(tmp_path, steps=40, final_episodes=1, eval_episodes=1, delta=0.123)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["task"] == "toy"
    assert saved["settings"]["delta"] == 0.123
    assert saved["run"]["gamma"] == 0.99  # the preset's
    assert saved["run"]["steps"] == 40
    assert saved["decoder"]["fingerprint"] == toy_decoder().fingerprint


def test_a_task_of_ones_own(tmp_path):
    """decoder= and env= without a task; the method that learns nothing stays the frozen policy."""
    for out, env in (("a", make_four_mode), ("b", "four-mode")):
        run = lpds.steer(
            None, "base", decoder=toy_decoder(), env=env, out=tmp_path / out, quiet=True, steps=60, final_episodes=4
        )
        assert np.array_equal(run.frozen.returns, run.steered.returns)
        assert run.difference == (0.0, 0.0, 0.0)
        assert "not told apart" in run.verdict()
    assert isinstance(BaseMethod.open_policy(toy_decoder(), {}, {}), BasePolicy)


def test_the_verdict_says_so_when_it_got_worse():
    from lpds.stats import paired_difference
    from lpds.verdict import verdict_line

    rng = np.random.default_rng(0)
    frozen = rng.normal(100.0, 50.0, 50)
    for shift, word in ((-20.0, "WORSE"), (20.0, "BETTER"), (0.0, "not told apart")):
        steered = frozen + shift + rng.normal(0.0, 5.0, 50)
        line = verdict_line((frozen.mean(), steered.mean()), None, paired_difference(frozen, steered), 50)
        assert word in line
        assert "\n" not in line


@pytest.mark.parametrize("size", [3e-9, 0.02, 0.7, 4.0, 30.0, 2757.06])
def test_figures_tell_three_digits_whatever_the_size_of_the_rewards(size):
    from lpds.digits import told
    from lpds.verdict import verdict_line

    assert [float(word) for word in told([size, size / 3.0])] == pytest.approx([size, size / 3.0], rel=0.03)
    assert told([-size], sign=True)[0].startswith("-")
    assert told([size], sign=True)[0].startswith("+")
    line = verdict_line((size, 2.0 * size), None, (size, 0.9 * size, 1.1 * size), 50)
    assert not any(f" {zero}" in line or f"[{zero}" in line for zero in ("0.0,", "+0.0 ", "+0.0,"))
    assert told([2757.06, 0.123]) == ["2757.1", "0.1"]  # one quantity, one unit
    assert told([2757.06, 0.43], least=0) == ["2757", "0"]
    assert told([0.43], least=0) == ["0.430"]  # once "return 0" in the line of a run's progress


def test_a_handful_of_episodes_decides_nothing():
    """Two pairs of one sign once gave an interval without zero, and "BETTER"."""
    from lpds.stats import FEWEST_PAIRS, paired_difference, told_apart
    from lpds.verdict import verdict_line

    frozen = np.arange(10.0)
    for pairs in range(2, 10):
        difference = paired_difference(frozen[:pairs], frozen[:pairs] + 5.0)
        # pairs of no difference but chance are all positive, or all negative, as often as this
        sure = 2 * 0.5**pairs < 0.05
        assert (told_apart(difference, pairs) == 1) == sure == (pairs >= FEWEST_PAIRS)
        line = verdict_line((4.5, 9.5), None, difference, pairs)
        assert ("BETTER" in line) == sure
        assert ("fewer than 6 episodes" in line) != sure


def test_environments_that_cannot_be_made():
    with pytest.raises(LpdsError, match=r"environment no_such_module:Foo-v0 cannot be made: .*no_such_module"):
        lpds.make_env("no_such_module:Foo-v0")
    with pytest.raises(LpdsError, match=r"environment Hopper-v0 cannot be made|unknown environment 'Hopper-v0'"):
        lpds.make_env("Hopper-v0")


def test_a_named_preset_lies_between_the_task_and_the_caller(tmp_path, refused):
    from lpds.presets import resolve_preset, resolve_settings
    from lpds.tasks import HALFCHEETAH, HOPPER, WALKER2D

    run, method = resolve_settings(HOPPER, "lpds", {"distill_noises": 3}, resolve_preset("paper", "lpds"))
    assert (run.warmup_fits, method.kept_noises, method.activation, method.width) == (0, 0, "tanh", 128)
    assert (method.distill_noises, method.delta) == (3, 0.5)
    assert run.gamma**8 == pytest.approx(0.99)  # chunks of 8 there: as much a decision as with chunks of 4
    assert resolve_settings(HALFCHEETAH, "lpds", {}, resolve_preset("paper", "lpds"))[0].gamma ** 4 == pytest.approx(0.99)
    run, method = resolve_settings(HALFCHEETAH, "dsrl-na", {}, resolve_preset("released", "dsrl-na", "halfcheetah"))
    assert (run.warmup_steps, run.discount, run.reward_scale, method.width, method.box) == (32_016, "dsrl", 1.0, 1024, 1.0)
    _, method = resolve_settings(WALKER2D, "lpds", {}, resolve_preset("quiet", "lpds"))
    assert (method.delta, method.noise_scale, method.eval_noise_scale, method.eval_noise_updates) == (2.0, 1.0, 0.3, 5000)
    assert method.eval_average_updates == 2000
    with refused("unknown preset of lpds 'papr'", "paper"):
        resolve_preset("papr", "lpds")
    with refused("unknown preset of best-of-n 'paper'"):
        lpds.steer("toy", "best-of-n", preset="paper", out=tmp_path / "run")


def test_the_released_settings_are_those_of_the_task(refused):
    """``rivals.md``'s table: gradient steps over chunks of a block, box, width, warm-up, discount of a chunk."""
    from lpds.presets import resolve_preset, resolve_settings
    from lpds.registry import resolve

    known = {
        ("dsrl-sac", "walker2d"): (2.5, 2.5, 2048, 2, 0.99, 4),
        ("dsrl-sac", "hopper"): (2.5, 1.5, 128, 2, 0.99, 4),
        ("dsrl-na", "robomimic-lift"): (7.5, 1.0, 2048, 1, 0.99, 4),
        ("dsrl-na", "robomimic-can"): (5.0, 1.0, 2048, 1, 0.99, 4),
        ("dsrl-na", "robomimic-square"): (5.0, 1.0, 2048, 1, 0.999, 4),
        ("dsrl-sac", "robomimic-transport"): (5.0, 1.0, 128, 1, 0.99, 8),
    }
    for (name, task), (updates, box, width, every, gamma, chunk) in known.items():
        run, method = resolve_settings(resolve("task", TASKS, task), name, {}, resolve_preset("released", name, task))
        assert (run.updates_per_decision, method.box, method.width, method.update_every) == (updates, box, width, every)
        assert run.gamma**chunk == pytest.approx(gamma)
        if name == "dsrl-na":  # in a block, of so many gradient steps
            assert math.ceil(method.distill_share * run.num_envs * updates * every) == 10
    for task in ("adroit-pen", None):
        with refused("preset released of dsrl-na is not known for", task or "an own policy", "robomimic-can"):
            resolve_preset("released", "dsrl-na", task)


def test_the_residual_on_the_action_has_the_same_settings_and_on_hands_and_arms_the_papers_delta():
    from lpds.presets import resolve_settings
    from lpds.registry import resolve

    for name in TASKS:
        task = resolve("task", TASKS, name)
        on_noise, on_action = (resolve_settings(task, method, {})[1] for method in ("lpds", "lpds-a"))
        usual = 0.35 if name.startswith(("adroit-", "robomimic-")) else on_noise.delta
        papers = {"adroit-pen": 0.66, "robomimic-lift": 0.10}.get(name, usual)
        assert (papers, on_noise.actor_lr) == (on_action.delta, on_action.actor_lr)


def test_the_paper_preset_of_hopper_uses_the_chunk_of_eight(tmp_path):
    options = {"steps": 200, "warmup_steps": 100, "eval_every": 0, "final_episodes": 1, "quiet": True, "width": 8}
    lpds.steer("hopper", preset="paper", out=tmp_path / "run", **options)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["preset"], config["decoder"]["name"]) == ("paper", "hopper-c8")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"tau": 1.5}, "tau must be at most 1, not 1.5"),
        ({"lr": math.inf}, "lr must be finite, not inf"),
        ({"dual_step": math.inf}, "dual_step must be finite"),
    ],
)
def test_rates_are_finite_and_shares_at_most_one(setting, words, refused):
    with refused(words):
        LPDSSettings(**setting)
    assert LPDSSettings(noise_bound=math.inf, state_cap=math.inf, tau=1.0).tau == 1.0


class Goals(Scripted):
    """Scripted, with its observation in two named parts."""

    def __init__(self):
        super().__init__([([0.0, 1.0], "terminated")])
        flat = self.observation_space
        self.observation_space = gymnasium.spaces.Dict({"b": flat, "a": gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)})

    def _obs(self):
        return {"a": np.full(1, 0.5, np.float32), "b": super()._obs()}


def test_vectors_in_a_dict_are_put_end_to_end_in_the_order_of_the_keys():
    env = lpds.make_env(Goals, 2, 2)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (2, 3)
    assert obs[:, 0].tolist() == [0.5, 0.5]  # "a" before "b"
    env.close()


def test_numbers_out_of_an_array_are_numbers():
    settings = override(RunSettings, {"seed": np.int64(3), "gamma": np.float32(0.5)})
    assert (settings.seed, settings.gamma) == (3, 0.5)
    assert type(settings.seed) is int


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (Scripted([]), "not an environment (Scripted)"),
        (3, "env must be a Gymnasium id or a function that makes an environment, not 3"),
        (lambda: 1 / 0, "environment <lambda> cannot be made: ZeroDivisionError"),
    ],
)
def test_what_is_no_environment(tmp_path, refused, env, words):
    with refused(words):
        steer(tmp_path, env=env)
    with refused(words):
        lpds.evaluate(toy_decoder(), env=env, episodes=1)
    assert not list(tmp_path.iterdir())


def test_a_policy_file_that_is_none(tmp_path, refused):
    steer(tmp_path)
    path = tmp_path / "run" / "policy" / "policy.json"
    facts = json.loads(path.read_text())
    path.write_text("{}")
    with refused("policy.json is not that of a policy: method, settings, decoder missing"):
        load_policy(tmp_path / "run", toy_decoder())
    assert facts["spec"] == {"obs_shape": [2], "latent_shape": [4, 2], "action_shape": [4, 2], "free": None}
    for broken, words in (
        ({"format_version": 99}, "is of format 99; this version of lpds reads format 1"),
        ({"settings": []}, "policy.json is not that of a policy: settings is no dict"),
        ({"decoder": {"name": "x"}}, "does not say the reference, options, fingerprint of its decoder"),
    ):
        path.write_text(json.dumps({**facts, **broken}))
        with refused(words):
            load_policy(tmp_path / "run", toy_decoder())
    path.write_text(json.dumps({**facts, "settings": {**facts["settings"], "width": 7}}))
    with refused("settings and weights do not belong together"):
        load_policy(tmp_path / "run", toy_decoder())


def test_a_warm_up_that_says_nothing_of_the_rewards_leaves_them_as_they_are(tmp_path, capsys):
    """No reward before the first update: a factor made of rounding would blow up what comes later."""
    silent = lambda: Scripted([([0.0] * 5, "terminated")])  # noqa: E731
    decoder = lpds.wrap_decoder(lambda s, w: w, obs_shape=(2,), latent_shape=(2, 1), action_shape=(2, 1), name="w")
    lpds.steer(decoder=decoder, env=silent, out=tmp_path / "run", **(TINY | {"quiet": False}))
    assert "the warm-up's returns do not vary" in capsys.readouterr().err
    assert not any(math.isnan(row["td_loss"]) for row in read_json_lines(tmp_path / "run" / "metrics.jsonl") if row["td_loss"])
    one = {"num_envs": 1, "warmup_steps": 1, "warmup_fits": 0, "steps": 60}
    assert lpds.steer(decoder=decoder, env=silent, out=tmp_path / "one", **(TINY | one)).finished


def test_a_budget_that_is_all_warm_up_says_so(tmp_path, capsys):
    steer(tmp_path, steps=100, warmup_steps=8000, quiet=False)
    assert "NOTHING WAS LEARNED: the warm-up of 8,000 steps took the whole budget" in capsys.readouterr().err


def test_actions_that_are_not_finite_are_the_callers(refused):
    env = lpds.make_env("Pendulum-v1", num_envs=1, chunk=2)
    env.reset()
    with refused("the chunk for Pendulum-v1 holds NaN"):
        env.step(np.full((1, 2, 1), np.nan, np.float32))
    env.close()


def test_what_is_no_number_is_not_acted_on(tmp_path, refused):
    steer(tmp_path)
    policy = load_policy(tmp_path / "run", toy_decoder())
    with refused("obs holds NaN or infinity"):
        policy.act(np.full((1, 2), math.nan))
    with refused("eps holds NaN or infinity"):
        policy.act(np.zeros((1, 2)), eps=np.full((1, 4, 2), math.inf))
    with refused("wrap_decoder takes a function of (obs, w), not a int"):
        lpds.wrap_decoder(3, obs_shape=(2,), latent_shape=(1, 2), action_shape=(1, 2), name="three")


def test_a_config_of_another_format_or_form(tmp_path, refused):
    steer(tmp_path)
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    for broken, words in (
        ({"format_version": 99}, "is of format 99; this version of lpds reads format 1"),
        ({"run": []}, "config.json is not that of a run: run is no dict"),
    ):
        path.write_text(json.dumps({**config, **broken}))
        for act in (lambda: lpds.resume(tmp_path / "run", decoder=toy_decoder()), lambda: lpds.compare([tmp_path / "run"])):
            with refused(words):
                act()
