"""Steering what sees pictures: features in the observation's place, kept next chunks, one prefix a decision."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
import torch
from pictures import SHAPES, Spot, reopened, spot_decoder, where
from safetensors.torch import load_file
from scripted import CPU, TINY, assert_same_run, identity_decoder, toy_decoder
from test_lpds_method import batch, learner, noise

import lpds
from lpds.collect import Collector
from lpds.compact import as_learned, look
from lpds.decoders.callable import CallableDecoder
from lpds.envs.four_mode import make_four_mode
from lpds.errors import DecoderFault, LpdsError
from lpds.log import read_json_lines
from lpds.methods.base import BasePolicy
from lpds.methods.lpds import LPDS
from lpds.random import normal
from lpds.types import Batch

SHORT = TINY | {"steps": 480, "warmup_steps": 150, "kept_noises": 3, "num_envs": 2}


SHORT_OF = {"lpds": SHORT, "dsrl-na": {key: value for key, value in SHORT.items() if key != "kept_noises"}}


def steer(folder, **changes):
    return lpds.steer(**{"decoder": spot_decoder(), "env": Spot, "out": folder, **SHORT, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spot") / "run"
    steer(folder)
    return folder


def replay_of(folder):
    segments = [load_file(path) for path in sorted((folder / "checkpoint").glob("replay-*"))]
    return {name: torch.cat([segment[name] for segment in segments]) for name in segments[0]}


def observations(count=5, steps=2):
    env = lpds.make_env(Spot, count, 3)
    obs, _ = env.reset(seed=3)
    for _ in range(steps):
        obs = env.step(np.full((count, 3, 2), 0.1, np.float32))[0]
    env.close()
    return obs


# -- a whole run ---------------------------------------------------------------------------------------------------------


def test_a_run_on_pictures(whole):
    rows = read_json_lines(whole / "metrics.jsonl")
    assert rows[-1]["updates"] > 50
    assert all(rows[-1][key] is not None for key in ("td_loss", "distill_loss", "distill_gap_steered", "delta_sq_p95"))
    assert rows[-1]["action_entropy"] is None  # it would need the observation again
    assert (whole / "report.html").is_file()
    kept = replay_of(whole)
    assert kept["obs"].shape[1:] == kept["next_obs"].shape[1:] == (4,)
    assert (kept["base_action"].shape[1:], kept["next_action"].shape[1:]) == ((3, 6), (2, 6))


def test_its_policy_acts_on_pictures(whole, refused):
    policy = lpds.load_policy(whole, spot_decoder())
    obs, eps = observations(), np.random.default_rng(0).standard_normal((5, 3, 2)).astype(np.float32)
    plain = spot_decoder()({key: torch.from_numpy(obs[key]) for key in SHAPES}, torch.from_numpy(eps)).numpy()
    assert np.array_equal(policy.act(obs, eps, scale=0.0), plain)
    shift = policy.shift(obs)
    assert shift.any()
    moved = spot_decoder()({key: torch.from_numpy(obs[key]) for key in SHAPES}, torch.from_numpy(eps + shift)).numpy()
    assert np.array_equal(policy.act(obs, eps), moved)
    states = where({key: torch.from_numpy(obs[key]) for key in SHAPES}).numpy()
    assert np.array_equal(policy.shift(states), shift)  # states of a replay will do for Delta
    with refused("obs must be", "it lacks speed"):
        policy.act({"picture": obs["picture"]})
    with refused("obs must be", "(12, 12, 3)"):
        policy.act(states)
    report = lpds.evaluate(policy, env=Spot, episodes=3)
    assert report.final_obs.shape == (3, 3)  # speed and the unused number
    assert report.lengths.min() >= 1


def test_two_runs_are_equal_and_so_is_one_that_was_stopped(whole, tmp_path, monkeypatch):
    from lpds.runner import Runner

    save, count = Runner.save, []

    def stopping(runner):
        save(runner)
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        steer(tmp_path / "run")
    monkeypatch.setattr(Runner, "save", save)
    lpds.resume(tmp_path / "run", decoder=spot_decoder(), env=Spot, quiet=True)
    assert_same_run(whole, tmp_path / "run")


def test_dsrl_on_features(tmp_path):
    changes = {key: value for key, value in SHORT.items() if key not in ("kept_noises", "warmup_fits")}
    run = lpds.steer(method="dsrl-sac", decoder=spot_decoder(), env=Spot, out=tmp_path / "run", **changes | {"steps": 240})
    policy = reopened(run, spot_decoder(), observations())
    assert policy.act(observations()).shape == (5, 3, 2)


def test_the_doctor_looks_at_pictures():
    report = lpds.check(spot_decoder(), Spot, samples=32)
    assert {finding.name: finding.verdict for finding in report.findings}["spaces"] == "ok"
    assert {finding.name: finding.verdict for finding in report.findings}["deterministic"] == "ok"


# -- features ------------------------------------------------------------------------------------------------------------


class Seeing(CallableDecoder):
    """The toy's decoder, with the observation itself for features."""

    feature_size = 2  # type: ignore[assignment]

    def features(self, context):
        return context.clone()

    def from_features(self, features):
        return features


@pytest.mark.parametrize("form", [{}, {"kept_noises": 0}, {"target_actions": "kept"}])
def test_features_that_are_the_observation_change_nothing_to_the_bit(tmp_path, form):
    plain = toy_decoder()
    seeing = Seeing(plain._fn, plain.spec, plain.name)
    for name, decoder in (("plain", plain), ("seeing", seeing)):
        lpds.steer("toy", decoder=decoder, env=make_four_mode, out=tmp_path / name, **TINY | {"steps": 400} | form)
    assert_same_run(tmp_path / "plain", tmp_path / "seeing")


def test_what_a_method_meets():
    decoder = spot_decoder()
    learned = as_learned(decoder)
    assert (learned.spec.obs_shape, learned.spec.latent_shape) == ((4,), (3, 2))
    assert (learned.fingerprint, learned.name) == (decoder.fingerprint, "spot")
    assert not learned.decodes_states
    with pytest.raises(LpdsError, match="needs the observation"):
        learned.prepare(torch.zeros(1, 4))
    plain = toy_decoder()
    assert as_learned(plain) is plain


def test_a_sight_answers_for_each_state_as_often_as_it_is_asked():
    decoder, obs = spot_decoder(), observations()
    seen = look(decoder, obs)
    tensors = {key: torch.from_numpy(obs[key]) for key in SHAPES}
    assert torch.equal(seen.state, where(tensors))
    w = torch.randn(10, 3, 2)
    wanted = decoder({key: value.repeat_interleave(2, 0) for key, value in tensors.items()}, w)
    assert torch.equal(seen.decoder(seen.state.repeat_interleave(2, 0), w), wanted)
    with pytest.raises(LpdsError, match="7 states for 5 observations"):
        seen.decoder.prepare(torch.zeros(7, 4))


def test_features_are_part_of_the_fingerprint(refused):
    assert spot_decoder().fingerprint == spot_decoder().fingerprint
    other = spot_decoder(features=lambda obs: where(obs)[:, :3], feature_size=3)
    plain = spot_decoder(features=None, feature_size=None)
    assert len({spot_decoder().fingerprint, other.fingerprint, plain.fingerprint}) == 3
    with refused("features", "stochastic"):
        _ = spot_decoder(features=lambda obs: torch.rand(len(obs["speed"]), 4)).fingerprint


def test_what_is_refused(tmp_path, refused):
    with refused("'spot' takes pictures and offers no features", "dsrl-na has no encoder"):
        lpds.steer(
            decoder=spot_decoder(features=None, feature_size=None), env=Spot, method="dsrl-na", out=tmp_path / "a", quiet=True
        )
    for changes in (
        {"target_actions": "decode"},
        {"kept_noises": 0, "distill_noises": 1},
        {"method": "lpds-a", "kept_noises": 0},
        {"method": "lpds-a", "kept_noises": 2},  # what is kept serves its actor nothing
    ):
        with refused("'spot'", "lpds", "decodes at replayed states", "target_actions kept"):
            steer(tmp_path / "a", **{"kept_noises": 3, **changes})
    with refused("features= and feature_size= go together"):
        spot_decoder(feature_size=None)
    with refused("the features of decoder 'spot' are [6, 4], expected [B, 5]"):
        steer(tmp_path / "a", decoder=spot_decoder(feature_size=5))
    with refused("takes observations {'picture'", "gives (2,)"):
        steer(tmp_path / "a", env=make_four_mode)
    assert not (tmp_path / "a").exists()


# -- one prefix a decision -----------------------------------------------------------------------------------------------


class Counting(CallableDecoder):
    """Counts what it is asked."""

    def __init__(self):
        made = spot_decoder()
        super().__init__(made._fn, made.spec, made.name, made._features, made.feature_size)
        self.rows, self.decoded = [], 0

    def prepare(self, obs):
        self.rows.append(len(obs["speed"]))
        return super().prepare(obs)

    def decode(self, context, w):
        self.decoded += len(w)
        return super().decode(context, w)


def collector(decoder, **changes):
    given = {"seed": 0, "gamma": 0.9, "discount": "exact", "reward_offset": 0.0, "kept_noises": 4, "device": CPU}
    return Collector(lpds.make_env(Spot, 3, 3), decoder, **(given | {"kept_next": 2} | changes))


class Shifted(BasePolicy):
    """Delta is 0.3 in every coordinate."""

    def latent(self, obs, eps, scale):
        return eps + 0.3 * scale


def test_one_prefix_a_decision_and_one_more_where_an_episode_ends():
    decoder = Counting()
    work = collector(decoder)
    ended = 0
    for _ in range(12):
        rows, _, _ = work.step(BasePolicy(), 0.0, Shifted())
        ended += int(rows["over"].sum())
    assert ended > 3
    assert sum(decoder.rows) == 3 * 13 + ended  # the first look, one after each decision, and the ends
    assert decoder.decoded == 12 * 3 * (1 + 4 + 2) + 2 * ended


def test_a_wrapped_function_may_share_what_it_prepares():
    counted = []

    def prepare(obs):
        counted.append(len(obs["speed"]))
        return where(obs), {"speed": obs["speed"]}

    decoder = lpds.wrap_decoder(
        lambda context, w: torch.tanh(w - 0.5 * context[0][:, None, :2]),
        obs_shape=SHAPES,
        latent_shape=(3, 2),
        action_shape=(3, 2),
        name="spot",
        prepare=prepare,
        features=lambda context: context[0],
        feature_size=4,
    )
    assert decoder.fingerprint == spot_decoder().fingerprint
    counted.clear()
    works = [collector(made, seed=2) for made in (decoder, spot_decoder())]
    ended = 0
    for _ in range(8):
        rows, other = (work.step(Shifted(), 1.0)[0] for work in works)
        assert all(torch.equal(value, other[name]) for name, value in rows.items())
        ended += int(rows["over"].sum())
    assert sum(counted) == 3 * 9 + ended


def test_an_update_asks_nothing_of_the_decoder():
    decoder = Counting()
    method = LPDS(
        lpds.config.LPDSSettings(width=8, depth=1),
        as_learned(decoder),
        generator=torch.Generator().manual_seed(0),
        device=CPU,
    )
    assert (method.kept_next, method.decodes) == (2, False)
    generator = torch.Generator().manual_seed(1)
    data = batch(method.decoder.spec, 8, generator, kept=4)
    data = Batch(**vars(data) | {"next_action": torch.randn(8, 2, 6), "next_latent": torch.randn(8, 2, 6)})
    before = (len(decoder.rows), decoder.decoded)
    out = method.update(data, noise(method, 8, generator)) | method.diagnose(data, noise(method, 8, generator))
    assert (len(decoder.rows), decoder.decoded) == before
    assert all(bool(torch.isfinite(value)) for value in out.values())


def test_kept_chunks_are_what_the_target_does_in_the_state_after_the_decision():
    decoder = spot_decoder()
    work = collector(decoder, seed=6)
    for scale in (0.0, 1.0):
        for _ in range(6):
            before = [(episode.number, episode.decision) for episode in work.episodes]
            states = []
            step = work.env.step

            def watching(actions, step=step, states=states):
                out = step(actions)
                states.append(out[-1]["final_obs"])
                return out

            work.env.step = watching
            rows, _, _ = work.step(BasePolicy(), scale, Shifted())
            work.env.step = step
            final = {key: torch.from_numpy(states[0][key]) for key in SHAPES}
            torch.testing.assert_close(rows["next_obs"], where(final))
            for lane, at in enumerate(before):
                w = normal("next", 6, lane, *at, shape=(2, 1, 3, 2))[:, 0] + np.float32(0.3 * scale)
                assert np.array_equal(rows["next_latent"][lane].numpy(), w.reshape(2, 6))
                again = {key: value[lane].expand(2, *value.shape[1:]) for key, value in final.items()}
                torch.testing.assert_close(rows["next_action"][lane], decoder(again, torch.from_numpy(w)).flatten(1))


def test_rows_that_were_not_collected_get_the_frozen_policys_chunks():
    decoder = toy_decoder()
    env = lpds.make_env(make_four_mode, 2, 4)
    given = {"gamma": 0.9, "discount": "exact", "reward_offset": 0.0, "kept_noises": 1, "kept_next": 2, "device": CPU}
    work = Collector(env, decoder, seed=4, **given)
    rows = {name: torch.randn(300, 2) for name in ("obs", "next_obs")}
    done = work.complete(rows, Shifted())
    assert torch.equal(done["next_obs"], rows["next_obs"])
    for row in (0, 255, 256, 299):
        w = torch.from_numpy(normal("demonstrations next", 4, row, shape=(2, 1, 4, 2))[:, 0])
        assert torch.equal(done["next_latent"][row], w.flatten(1))
        wanted = decoder(rows["next_obs"][row].expand(2, -1), w).flatten(1)
        torch.testing.assert_close(done["next_action"][row], wanted)


# -- targets of kept chunks ----------------------------------------------------------------------------------------------


def test_kept_targets_equal_decoded_ones_while_delta_has_not_moved():
    decoder = toy_decoder()
    fresh = learner(decoder, kept_noises=2, target_actions="decode")
    kept = learner(decoder, kept_noises=2, target_actions="kept", kept_next=1)
    generator = torch.Generator().manual_seed(3)
    data, drawn = batch(decoder.spec, 16, generator, kept=2), noise(fresh, 16, generator)
    chunk = decoder(data.next_obs, drawn["next"].unflatten(1, (4, 2))).flatten(1).unsqueeze(1)
    stored = Batch(**vars(data) | {"next_action": chunk, "next_latent": drawn["next"].unsqueeze(1)})
    assert set(kept.noise_shapes(16)) == {"actor"}
    outs = [fresh.update(data, drawn), kept.update(stored, {"actor": drawn["actor"]})]
    assert outs[0].keys() == outs[1].keys()
    for key, value in outs[0].items():
        assert torch.equal(value, outs[1][key]), key


def test_the_target_is_the_mean_over_the_kept_chunks():
    decoder = identity_decoder()
    method = learner(decoder, target_actions="kept", kept_next=3, pessimism="min")
    generator = torch.Generator().manual_seed(0)
    data = batch(decoder.spec, 8, generator)
    chunks = torch.randn(8, 3, 2, generator=generator)
    data = Batch(**vars(data) | {"next_action": chunks, "next_latent": chunks})
    values = []
    for index in range(3):
        inputs = torch.cat([method.policy.scaling(data.next_obs), chunks[:, index]], 1)
        values.append(method.q_slow(inputs).squeeze(-1).amin(0))
    y = data.reward + data.discount * torch.stack(values).mean(0)
    q = method.q_action(torch.cat([data.obs, data.action], 1)).squeeze(-1)
    wanted = (q - y).square().sum(0).mean()
    torch.testing.assert_close(method._td(data, method.policy.scaling(data.obs), None)["td_loss"], wanted.detach())


class Lost(CallableDecoder):
    """Gone after so many calls."""

    left = 10**9
    can_be_lost = True

    def decode(self, context, w):
        self.left -= 1
        if self.left < 0:
            raise DecoderFault("the decoder was lost")
        return super().decode(context, w)


def test_kept_targets_learn_on_plain_vectors_and_resume_to_the_bit(tmp_path):
    """The decoder is lost right after the environment has moved, and elsewhere; nothing of the round is kept twice."""
    settings = TINY | {"steps": 400, "kept_noises": 2, "target_actions": "kept", "kept_next": 2}
    assert not any(check_lost(tmp_path, "lpds", settings, (61, 62, 63)))  # no update decodes


@pytest.mark.parametrize("method", ["lpds", "lpds-a", "dsrl-na", "best-of-n"])
def test_a_decoder_lost_in_the_middle_of_an_update_leaves_nothing_of_it(method, tmp_path):
    """Whatever the method: critics may have moved already when the decoder goes."""
    settings = {key: value for key, value in TINY.items() if key not in ("kept_noises", "distill_noises")} | {"steps": 400}
    assert any(check_lost(tmp_path, method, settings, (150, 151, 152, 153)))


def check_lost(tmp_path, method, settings, numbers):
    """A run that loses its decoder after so many calls, and goes on, is the run that never lost it.

    Returns whether it was lost in a round's updates, for each number.
    """
    plain = toy_decoder()
    lpds.steer("toy", method, decoder=plain, env=make_four_mode, out=tmp_path / "whole", **settings)
    behind = []
    for number in numbers:
        lost = Lost(plain._fn, plain.spec, plain.name)
        assert lost.fingerprint == plain.fingerprint
        lost.left, folder = number, tmp_path / str(number)
        with pytest.raises(DecoderFault, match="the run is saved"):
            lpds.steer("toy", method, decoder=lost, env=make_four_mode, out=folder, **settings)
        behind.append(json.loads((folder / "checkpoint" / "checkpoint.json").read_text())["behind"])
        lpds.resume(folder, decoder=toy_decoder(), env=make_four_mode, quiet=True)
        assert_same_run(tmp_path / "whole", folder)
    return behind


# -- memory --------------------------------------------------------------------------------------------------------------


def test_memory_is_told_before_the_run_starts(tmp_path, capsys):
    steer(tmp_path / "run", quiet=False)
    first = capsys.readouterr().err.splitlines()[0]
    # 482 rows: state 2 x 4, action 6, reward, discount, over 3, base pairs 3 x 12, next chunks 2 x 12
    assert first.startswith(f"replay: 482 decisions of {4 * (8 + 6 + 3 + 36 + 24)} bytes, 0.000148 GB at most, ")
    assert "4.99e-05 GB where no chunk is cut short (" in first  # 160 decisions of 3 steps and one for each of two environments
    assert "base_noise 23%" in first


def test_a_replay_that_does_not_fit_is_refused(tmp_path, monkeypatch, refused):
    monkeypatch.setattr("lpds.replay.memory_of", lambda device: 40_000)
    with refused("replay: 482 decisions", "do not fit into the 4e-05 GB of this machine", "set replay_size to 103 or less"):
        steer(tmp_path / "run")
    steer(tmp_path / "small", replay_size=100)


def test_a_fault_in_features_saves_the_run_and_stops_it(tmp_path):
    """Raised or NaN, in the middle of a run: one line, everything saved, nothing of it in the replay, and it goes on mended."""
    whole = tmp_path / "whole"
    steer(whole)
    for name, spoil in (("raises", "raise"), ("nan", "nan")):
        calls = [0]

        def features(context, spoil=spoil, calls=calls):
            calls[0] += 1
            if calls[0] == 120:
                if spoil == "raise":
                    raise ValueError("the camera is gone")
                return torch.full((len(next(iter(context.values()))), 4), float("nan"))
            return where(context)

        broken = spot_decoder(features=features)
        words = r"features of decoder .* (raised ValueError: the camera is gone|hold NaN or infinity).*lpds\.resume\("
        with pytest.raises(DecoderFault, match=words):
            steer(tmp_path / name, decoder=broken)
        assert lpds.resume(tmp_path / name, decoder=spot_decoder(), env=Spot, quiet=True).finished
        assert_same_run(whole, tmp_path / name)


class TwoVectors(gymnasium.Env):
    """The spot's world in two named vectors, of which Gymnasium sorts "here" before "speed"."""

    observation_space = gymnasium.spaces.Dict(
        {name: gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32) for name in ("speed", "here")}
    )
    action_space = Spot.action_space

    def __init__(self):
        self.inner = Spot()

    def reset(self, *, seed=None, options=None):
        self.inner.reset(seed=seed)
        return self._obs(), {}

    def step(self, action):
        return (self._obs(), *self.inner.step(action)[1:])

    def _obs(self):
        return {"speed": self.inner.moved.astype(np.float32), "here": self.inner.at.astype(np.float32)}


def test_a_dict_of_vectors_is_steered_by_its_names_and_is_the_flat_one_to_the_bit(tmp_path):
    """Every method meets the same numbers; only who names them differs, and so the decoder's name and fingerprint do."""
    shape = {"latent_shape": (3, 2), "action_shape": (3, 2)}
    named = lpds.wrap_decoder(
        lambda obs, w: torch.tanh(w - 0.5 * obs["here"][:, None] + obs["speed"][:, None]),
        obs_shape={"speed": (2,), "here": (2,)},
        name="named",
        **shape,
    )
    flat = lpds.wrap_decoder(
        lambda obs, w: torch.tanh(w - 0.5 * obs[:, None, :2] + obs[:, None, 2:]), obs_shape=(4,), name="flat", **shape
    )
    for method in ("lpds", "dsrl-na"):
        runs = [
            lpds.steer(decoder=d, env=TwoVectors, method=method, out=tmp_path / f"{method}-{d.name}", **SHORT_OF[method])
            for d in (named, flat)
        ]
        assert runs[0].steered.returns.tolist() == runs[1].steered.returns.tolist()
        weights = [(run.folder / "policy" / "policy.safetensors").read_bytes() for run in runs]
        assert weights[0] == weights[1]
    policy = lpds.load_policy(tmp_path / "lpds-named", named)
    obs = {"here": np.full((1, 2), 0.1, np.float32), "speed": np.zeros((1, 2), np.float32)}
    eps = np.zeros((1, 3, 2), np.float32)
    there = lpds.load_policy(tmp_path / "lpds-flat", flat).act(np.concatenate([obs["here"], obs["speed"]], 1), eps)
    assert np.array_equal(policy.act(obs, eps), there)
