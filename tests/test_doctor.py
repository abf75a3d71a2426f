"""The decoder doctor: sound decoders pass, and each planted defect gets exactly its own finding."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

import lpds
from lpds.doctor import CheckReport, Finding
from lpds.types import LatentSpec

REPO = Path(__file__).resolve().parents[1]
OBS, H, L, T, A = 5, 4, 3, 4, 3
_MIX = torch.from_numpy(np.random.default_rng(0).normal(size=(OBS, T * A)).astype(np.float32))
_TURN = torch.from_numpy(np.random.default_rng(1).normal(size=(H * L, T * A)).astype(np.float32))


class Box(gymnasium.Env):
    """A random walk in observations with a given action box."""

    def __init__(self, bound=1.0, actions=A, broken_at=None):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
        self.action_space = gymnasium.spaces.Box(-bound, bound, (actions,), np.float32)
        self.broken_at, self.steps = broken_at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.normal(size=OBS).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == self.broken_at:
            raise RuntimeError("the simulator\nfell over")
        return self.np_random.normal(size=OBS).astype(np.float32), 0.0, self.steps >= 50, False, {}


def good(obs, w):
    """Every latent coordinate moves every action; smooth; inside [-1, 1]."""
    return torch.tanh(0.5 * obs @ _MIX + 0.2 * w.flatten(1) @ _TURN).view(-1, T, A)


def wrap(fn, **changes):
    shapes = {"obs_shape": (OBS,), "latent_shape": (H, L), "action_shape": (T, A), "name": "mine"}
    return lpds.wrap_decoder(fn, **(shapes | changes))


def verdicts(report: CheckReport) -> dict[str, str]:
    """Everything that is not ok; each has a remedy of one sentence, and the rest none."""
    for finding in report.findings:
        assert bool(finding.remedy) == (finding.verdict != "ok")
        assert "\n" not in f"{finding.figure}{finding.remedy}"
    return {finding.name: finding.verdict for finding in report.findings if finding.verdict != "ok"}


def find(report: CheckReport, name: str) -> Finding:
    return next(finding for finding in report.findings if finding.name == name)


@pytest.mark.parametrize(("name", "env"), [("hopper", "Hopper-v5"), ("toy", "four-mode"), ("toy-flow", "four-mode")])
def test_zoo_is_sound(name, env):
    start = time.monotonic()
    report = lpds.check(lpds.load_decoder(name), env)
    assert time.monotonic() - start < 20.0
    assert report.ok
    assert verdicts(report) == {}
    assert find(report, "observation range").figure == "0.0% outside [-1.5, 1.5] normalised"


def test_dppo_checkpoint_without_environment():
    for folder in (REPO / "tests" / "golden" / "dppo_hopper", REPO.parent / "shared" / "golden" / "dppo_hopper"):
        if (folder / "state_3000.pt").is_file():
            break
    else:
        pytest.skip("no DPPO checkpoint: neither tests/golden/dppo_hopper nor ../shared/golden/dppo_hopper is there")
    report = lpds.check(lpds.load_decoder(f"dppo:{folder}/state_3000.pt", normalization=folder / "normalization.npz"))
    assert verdicts(report) == {}


@pytest.mark.parametrize("env", [None, Box])
def test_good_callable(env):
    report = lpds.check(wrap(good), env)
    assert verdicts(report) == {}
    assert find(report, "live latents").figure == "3 of 3 columns, 4 of 4 rows"
    assert "white along the chunk" in find(report, "prior").figure


def _stochastic(obs, w):
    return (good(obs, w) + 0.3 * torch.randn(len(w), T, A)).clamp(-1, 1)


def _remembers():
    last = torch.zeros(())

    def fn(obs, w):
        nonlocal last
        action = good(obs, w) + 0.1 * last
        last = action.mean()
        return action.clamp(-1, 1)

    return fn


def _nan_at_times(obs, w):
    return torch.where(obs[:, 0, None, None] > 0, torch.nan, good(obs, w))


def _only_tanh_of_row_zero(obs, w):
    return good(obs, w[:, :1].expand(-1, H, -1))


def _dead_coordinate(obs, w):
    w = w.clone()
    w[:, 2, 1] = 0.0
    return good(obs, w)


def _in_place(obs, w):
    return good(obs, w.mul_(0.5))


def _batch_statistics(obs, w):
    return good(obs - obs.mean(0), w)


def _raises_on_large(obs, w):
    if len(w) == 256:
        raise RuntimeError("out of\nmemory")
    return good(obs, w)


DEFECTS = {
    "stochastic": (_stochastic, {"deterministic": "fault", "fingerprint": "warning"}),
    "remembers": (_remembers(), {"deterministic": "fault", "fingerprint": "warning"}),
    "ignores w": (lambda obs, w: good(obs, 0 * w), {"variance due to w": "fault"}),
    "hardly uses w": (lambda obs, w: good(obs, 0.05 * w), {"variance due to w": "warning"}),
    "dead column": (lambda obs, w: good(obs, w * torch.tensor([1.0, 0.0, 1.0])), {"live latents": "warning"}),
    "repeated row": (_only_tanh_of_row_zero, {"live latents": "warning"}),
    "dead coordinate": (_dead_coordinate, {"live latents": "warning"}),
    "NaN": (lambda obs, w: torch.full((len(w), T, A), torch.nan), {"finite actions": "fault", "fingerprint": "warning"}),
    "NaN at times": (_nan_at_times, {"finite actions": "fault"}),
    "jumps": (lambda obs, w: torch.sign(good(obs, w)), {"smooth in w": "warning"}),
    "in place": (_in_place, {}),  # a wrapped function gets copies
    "batch statistics": (_batch_statistics, {"batch consistency": "fault"}),
    "wrong shape": (lambda obs, w: good(obs, w)[:, :2], {"decodes": "fault"}),
    "raises": (lambda obs, w: obs.no_such_thing, {"decodes": "fault"}),
    "units far outside": (lambda obs, w: 400.0 * good(obs, w), {"action range": "fault"}),
    "units somewhat outside": (lambda obs, w: 1.2 * good(obs, w), {"action range": "warning"}),
    "units far inside": (lambda obs, w: 0.01 * good(obs, w), {"action range": "warning"}),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_planted_defect_gets_its_own_finding(defect):
    fn, expected = DEFECTS[defect]
    report = lpds.check(wrap(fn), Box)
    found = verdicts(report)
    if defect.startswith("NaN at"):  # the fingerprint's two probes may or may not meet it
        found.pop("fingerprint", None)
    assert found == expected, str(report)
    assert report.ok == ("fault" not in expected.values())


@pytest.mark.parametrize(("steps", "first", "verdict"), [(5, 16, "ok"), (8, 14, "warning"), (10, 18, "ok"), (20, 19, "ok")])
def test_a_sampler_that_starts_below_noise_is_told(steps, first, verdict):
    """8 DDIM steps of 20 begin at time 14: a seventh of the variance that the network was trained on is missing."""
    decoder = lpds.load_decoder("hopper", ddim_steps=steps)
    assert decoder.times[0] == first
    level = [np.cos((t / 20 + 0.008) / 1.008 * np.pi / 2) ** 2 for t in (0, first + 1)]
    assert decoder.signal_at_start == pytest.approx(level[1] / level[0], abs=1e-3)
    finding = find(lpds.check(decoder, samples=16), "starts at noise")
    assert finding.verdict == verdict
    assert finding.figure.startswith(f"{decoder.signal_at_start:.1%} ")


def test_flows_and_functions_say_nothing_of_where_they_start():
    for decoder in (lpds.load_decoder("hopper-flow"), wrap(good)):
        assert "starts at noise" not in [finding.name for finding in lpds.check(decoder, samples=16).findings]


def test_share_that_noise_explains():
    # within a state w gives the variance 1 and the sampler's own dice 1
    report = lpds.check(wrap(lambda obs, w: w + torch.randn(w.shape)))
    share = float(find(report, "deterministic").figure.split("explains ")[1].split("%")[0])
    assert share == pytest.approx(50.0, abs=5.0)


def test_share_due_to_noise():
    # the state gives the variance 3, w gives 1
    report = lpds.check(wrap(lambda obs, w: 3.0**0.5 * obs[:, :3, None].mT.expand(-1, T, -1) + w), samples=2048)
    share = float(find(report, "variance due to w").figure.split("%")[0])
    assert share == pytest.approx(25.0, abs=3.0)


def test_masked_dead_columns_are_in_order():
    fn = DEFECTS["dead column"][0]
    report = lpds.check(wrap(fn, free=(True, False, True)))
    assert verdicts(report) == {}
    assert find(report, "live latents").figure == "2 of 3 columns, 4 of 4 rows, 1 masked"


def test_dead_columns_of_a_wide_latent():
    # the proportions of pi0: 50 x 32 for a 7-dim arm
    fn = lambda obs, w: 0.3 * w[:, :20, :7]  # noqa: E731
    report = lpds.check(wrap(fn, latent_shape=(20, 32), action_shape=(20, 7)))
    assert verdicts(report) == {"live latents": "warning"}
    assert find(report, "live latents").figure == "7 of 32 columns, 20 of 20 rows"
    assert "columns 7-31," in find(report, "live latents").remedy


def test_repeated_rows_show_in_the_prior_only_where_they_matter():
    # the chunk mean of white rows has half the spread of a repeated one; a decoder of the first row alone cannot tell
    mean, first = (lambda obs, w: w.mean(1, keepdim=True).expand(-1, T, -1)), (lambda obs, w: w[:, :1].expand(-1, T, -1))
    moved = [float(find(lpds.check(wrap(fn)), "prior").figure.split("actions ")[1].split()[0]) for fn in (mean, first)]
    assert moved[0] > 0.6
    assert moved[1] < 0.3


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (partial(Box, actions=2), "decoder 'mine' gives actions of 3 numbers, but partial takes (2,)"),
        ("Hopper-v5", "decoder 'mine' takes observations (5,), but Hopper-v5 gives (11,)"),
    ],
)
def test_spaces_that_do_not_fit_say_which_sizes(env, message):
    report = lpds.check(wrap(good), env)
    assert verdicts(report) == {"spaces": "fault"}
    assert find(report, "spaces").figure == message


def test_a_decoder_that_differs_in_its_last_bit_is_told_to_sum_in_one_order(refused):
    """As atomic sums on a GPU do. It is refused all the same: frozen and steered would not be the same at scale 0."""
    calls = []

    def shaken(obs, w):
        calls.append(1)
        return good(obs, w) * (1.0 + 1e-6 * float(np.sin(len(calls))))

    found = find(lpds.check(wrap(shaken)), "deterministic")
    assert (found.verdict, found.figure) == ("fault", "equal to rounding, not to the bit")
    assert "use_deterministic_algorithms" in found.remedy
    with refused("rounds otherwise each time", "use_deterministic_algorithms"):
        _ = wrap(shaken).fingerprint


def test_environment_that_cannot_be_made_is_not_laid_on_the_decoders_shapes():
    def without_its_extra():
        raise lpds.LpdsError("Adroit needs gymnasium-robotics: pip install 'lpds[adroit]'")

    found = find(lpds.check(wrap(good), without_its_extra), "spaces")
    assert found.verdict == "fault"
    assert "pip install 'lpds[adroit]'" in found.figure
    assert found.remedy == "mend that first: what else is said here was found without an environment"


def test_chunk_that_does_not_fit():
    report = lpds.check(wrap(good), lpds.make_env(Box, 2, chunk=8))
    assert verdicts(report) == {"spaces": "fault"}
    assert find(report, "spaces").figure == "decoder 'mine' gives chunks of 4 steps, but Box was made for 8"


def test_discrete_environment_is_a_fault():
    assert "needs a Box" in find(lpds.check(wrap(good), "CartPole-v1"), "spaces").figure


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_environment_object_is_used_and_stays_open(mode):
    env = lpds.make_env(Box, 3, chunk=T, seed=1, autoreset=mode)
    assert verdicts(lpds.check(wrap(good), env, samples=64)) == {}
    env.reset()
    env.step(np.zeros((3, T, A), np.float32))
    env.close()


def test_single_environment():
    assert verdicts(lpds.check(wrap(good), Box(), samples=64)) == {}


def test_environment_that_raises_is_a_fault_and_the_rest_is_measured():
    report = lpds.check(wrap(good), lambda: Box(broken_at=30))
    assert verdicts(report) == {"roll-out": "fault"}
    assert "RuntimeError: the simulator fell over" in find(report, "roll-out").figure
    assert find(report, "variance due to w")


def test_wrong_observation_units():
    class Scaled(gymnasium.ObservationWrapper):
        def observation(self, observation):
            return 100.0 * observation

    report = lpds.check("hopper", lambda: Scaled(gymnasium.make("Hopper-v5")), samples=64)
    assert verdicts(report)["observation range"] == "fault"


def test_a_probe_that_raises_is_a_fault_in_one_line():
    report = lpds.check(wrap(_raises_on_large))
    assert not report.ok
    assert find(report, "latency").figure == "decoder 'mine' raised RuntimeError: out of memory"


def test_dict_observations():
    fn = lambda obs, w: good(torch.cat([obs["pose"], obs["speed"]], 1), w)  # noqa: E731
    assert verdicts(lpds.check(wrap(fn, obs_shape={"pose": (3,), "speed": (2,)}))) == {}


def test_pictures_and_tokens_are_drawn_as_such():
    shapes = {"bytes": (8, 8, 3), "floats": (3, 8, 8), "observation.language.tokens": (6,), "pose": (3,)}
    shapes["observation.language.attention_mask"] = (6,)
    embedding = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    seen = []

    def fn(obs, w):
        seen.append(obs)
        words = embedding[obs["observation.language.tokens"].long()].mean(1)  # a negative token has no row
        return good(words + obs["bytes"].float().mean((1, 2, 3))[:, None] / 255.0 + obs["floats"].mean((1, 2, 3))[:, None], w)

    assert verdicts(lpds.check(wrap(fn, obs_shape=shapes))) == {}
    first = seen[0]
    assert first["bytes"].dtype == torch.uint8
    assert first["bytes"].float().mean() == pytest.approx(127.5, abs=6.0)
    assert 0.0 <= first["floats"].min() < 0.1
    assert 0.9 < first["floats"].max() <= 1.0
    assert torch.equal(first["observation.language.tokens"], first["observation.language.tokens"].floor())
    assert bool((first["observation.language.attention_mask"] == 1).all())
    assert first["pose"].min() < 0.0  # a vector stays normal


def test_any_object_that_follows_the_protocol():
    class Own:
        name, reference, fingerprint = "own", None, "0" * 64
        spec = LatentSpec((OBS,), (H, L), (T, A))

        def __call__(self, obs, w):
            return good(obs, w).double()

    report = lpds.check(Own())
    assert verdicts(report) == {"decodes": "fault"}
    assert "torch.float64" in find(report, "decodes").figure


def test_same_seed_same_figures():
    reports = [lpds.check(wrap(good), Box, samples=32, seed=seed) for seed in (3, 3, 4)]
    first, second, other = ([f for f in report.findings if f.name != "latency"] for report in reports)
    assert first == second != other


def test_table():
    report = lpds.check(wrap(DEFECTS["ignores w"][0]))
    lines = report.lines()
    assert str(report) == "\n".join(lines)
    assert lines[0] == "decoder 'mine', no environment given"
    assert any(line.startswith("  fault    variance due to w  0 (the state: 100.0%)") for line in lines)
    assert any("-> nothing to steer" in line for line in lines)
    assert lines[-1].startswith("NOT fit to be steered: 1 fault, 0 warnings")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 3}, "samples must be at least 16"),
        ({"seed": -1}, "seed must be in 0"),
        ({"env": "Hoper-v5"}, "did you mean 'Hopper-v5'"),
        ({"env": 3}, "env is a int"),
    ],
)
def test_what_the_caller_gets_wrong(arguments, message):
    with pytest.raises(lpds.LpdsError, match=message):
        lpds.check(wrap(good), **arguments)


def test_a_slow_decoder_is_probed_less_and_a_dear_context_is_made_once_a_state():
    """Few samples take as much less of every finding's decodes; a context is made once for a state, not for every noise."""
    counts = {"rows": 0, "prepared": 0}

    def prepare(obs):
        counts["prepared"] += len(obs)
        return obs

    def act(context, w):
        counts["rows"] += len(w)
        return good(context, w)

    def run(samples):
        counts.update(rows=0, prepared=0)
        report = lpds.check(wrap(act, prepare=prepare), samples=samples)
        return report, dict(counts)

    few, less = run(16)
    many, all_of_it = run(256)
    plain = lpds.check(wrap(good), samples=256)
    assert less["rows"] < 0.4 * all_of_it["rows"]
    assert all_of_it["prepared"] < 0.2 * all_of_it["rows"]
    for name in ("variance due to w", "live latents", "prior", "smooth in w"):  # the same figures, to the rounding of a batch
        assert find(many, name).figure == find(plain, name).figure
    assert few.ok
    names = []
    lpds.check(wrap(good), samples=16, progress=names.append)
    assert names[:2] == ["decodes", "roll-out"]
    assert "live latents" in names


def test_a_decoder_that_takes_long_gets_sixteen_samples(monkeypatch):
    seen = []

    def act(obs, w):
        seen.append(len(w))
        return good(obs, w)

    quick = lpds.check(wrap(act))
    rows, seen[:] = sum(seen), []
    monkeypatch.setattr("lpds.doctor.SLOW", -1.0)
    slow = lpds.check(wrap(act))
    assert quick.ok == slow.ok
    assert sum(seen) < 0.4 * rows
