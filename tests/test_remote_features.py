"""Pictures on the far side of a wire: shown once, kept there by number, their features here."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest
import torch
from pictures import SHAPES, Spot, spot_decoder, where
from scripted import TINY, comparable, toy_decoder
from serving import inputs, opened, quick, served  # noqa: F401 - quick is a fixture
from test_large_decoders import Seeing, observations
from websockets.sync.client import connect

import lpds
from lpds.deploy.contexts import Contexts
from lpds.deploy.decoder_server import DecoderServer
from lpds.errors import DecoderFault, LpdsError
from lpds.observations import conform
from lpds.wire import pack, unpack

SHORT = TINY | {"steps": 480, "warmup_steps": 150, "kept_noises": 3, "num_envs": 2}


def sharing(looked, name="spot"):
    """The picture policy with its look at the observation apart; ``looked`` counts the rows of each."""

    def see(obs):
        looked.append(len(obs["speed"]))
        return where(obs), {"speed": obs["speed"]}

    return lpds.wrap_decoder(
        lambda context, w: torch.tanh(w - 0.5 * context[0][:, None, :2]),
        obs_shape=SHAPES,
        latent_shape=(3, 2),
        action_shape=(3, 2),
        name=name,
        prepare=see,
        features=lambda context: context[0],
        feature_size=4,
    )


def seen(count=5):
    obs = observations(count)
    return {key: torch.from_numpy(obs[key]) for key in SHAPES}


def noises(rows, seed=0):
    return torch.randn(rows, 3, 2, generator=torch.Generator().manual_seed(seed))


# -- the same bits -------------------------------------------------------------------------------------------------------


def test_features_and_actions_are_the_local_ones_to_the_bit():
    local, obs = spot_decoder(), seen()
    with served(spot_decoder()) as (_, remote):
        assert (remote.feature_size, remote.decodes_states, remote.shares_context) == (4, False, False)
        context, mine = remote.prepare(obs), local.prepare(obs)
        assert torch.equal(remote.features(context), local.features(mine))
        for times in (1, 3):
            w = noises(5 * times, times)
            theirs = remote.decode(remote.repeat(context, times), w)
            assert torch.equal(theirs, local.decode(local.repeat(mine, times), w))
        twice = remote.repeat(remote.repeat(context, 2), 3)
        assert torch.equal(remote.decode(twice, noises(30)), local.decode(local.repeat(mine, 6), noises(30)))
        assert torch.equal(remote(obs, noises(5)), local(obs, noises(5)))
        with pytest.raises(LpdsError, match="cannot decode its features again"):
            remote.from_features(remote.features(context))


def test_what_is_shared_is_looked_at_once_however_many_noises():
    looked, obs = [], seen()
    with served(sharing(looked)) as (_, remote):
        looked.clear()
        context = remote.prepare(obs)
        remote.features(context)
        for times in (1, 4, 2):
            w = noises(5 * times)
            assert torch.equal(remote.decode(remote.repeat(context, times), w), spot_decoder()(repeated(obs, times), w))
        assert looked == [5]


def repeated(obs, times):
    return {key: value.repeat_interleave(times, 0) for key, value in obs.items()}


def test_pictures_are_cut_by_states_if_asked():
    looked, obs = [], seen(11)
    with served(sharing(looked), rows_at_once=2) as (_, remote):
        looked.clear()
        context = remote.prepare(obs)
        assert torch.equal(remote.features(context), where(obs))
        for times in (1, 3):
            w = noises(11 * times)
            assert torch.equal(remote.decode(remote.repeat(context, times), w), spot_decoder()(repeated(obs, times), w))
        assert looked == [2, 2, 2, 2, 2, 1]


def test_a_context_means_what_it_means_at_home():
    """As many noises as are a whole number for each state; features as often as the context has its states."""
    obs = seen()
    with served(sharing([])) as (_, remote):
        context = remote.prepare(obs)
        assert torch.equal(remote.decode(context, noises(15)), spot_decoder()(repeated(obs, 3), noises(15)))
        assert torch.equal(remote.features(remote.repeat(context, 2)), where(repeated(obs, 2)))
        for wrong in (noises(7), noises(5)):
            with pytest.raises(LpdsError, match=r"noises for 5 observations, each 2 times: not a whole number each"):
                remote.decode(remote.repeat(context, 2), wrong)
    plain = toy_decoder()
    obs, w = inputs(plain, 6)
    with served(Seeing(plain._fn, plain.spec, plain.name)) as (_, remote):
        again = remote.repeat(remote.from_features(obs), 2)
        wide = torch.cat([w, w])
        assert torch.equal(remote.decode(again, wide), plain(obs.repeat_interleave(2, 0), wide))


def test_pictures_that_came_in_bytes_travel_in_bytes():
    """LeRobot's and torchvision's form is float32 (C, H, W) in [0, 1]: four times the bytes, and the same bits."""
    met = []

    def act(obs, w):
        met.append(obs["picture"])
        return w + obs["picture"].mean((1, 2, 3))[:, None, None]

    decoder = lpds.wrap_decoder(
        act,
        obs_shape={"picture": (3, 40, 40), "state": (2,)},
        latent_shape=(1, 2),
        action_shape=(1, 2),
        name="pixels",
        features=lambda obs: obs["state"],
        feature_size=np.prod((2,)),
    )
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (6, 40, 40, 3), dtype=torch.uint8, generator=generator)
    state, w = torch.randn(6, 2, generator=generator), torch.randn(6, 1, 2, generator=generator)
    seen = conform({"picture": raw, "state": state}, decoder.spec)
    other = {"picture": torch.rand(6, 3, 40, 40, generator=generator), "state": state}
    with served(decoder) as (_, remote):
        for obs, sent in ((seen, "uint8"), (other, "float32")):
            met.clear()
            context = remote.prepare(obs)
            assert context.parts[0].request["observation"]["picture"].dtype == sent
            assert torch.equal(remote.decode(context, w), decoder(obs, w))
            assert torch.equal(remote(obs, w), decoder(obs, w))
            assert all(torch.equal(picture, obs["picture"]) for picture in met)


def test_features_that_can_be_decoded_travel_alone():
    plain = toy_decoder()
    seeing = Seeing(plain._fn, plain.spec, plain.name)
    obs, w = inputs(seeing, 6)
    with served(seeing) as (_, remote):
        assert (remote.feature_size, remote.decodes_states) == (2, True)
        assert torch.equal(remote.decode(remote.from_features(obs), w), plain(obs, w))
        with pytest.raises(DecoderFault, match=r"refused \(shape\): 5 observations but 6 noises"):
            remote.decode(remote.from_features(obs[:5]), w)


@pytest.mark.parametrize("form", ["plain", "sharing"])
def test_a_run_on_pictures_does_not_know_where_its_decoder_is(form, tmp_path, monkeypatch):
    monkeypatch.setattr("lpds.session._write_report", lambda *given: None)  # pictures are slow
    made = spot_decoder() if form == "plain" else sharing([])
    with served(made) as (_, remote):
        lpds.steer(decoder=remote, env=Spot, out=tmp_path / "remote", **SHORT)
    lpds.steer(decoder=spot_decoder(), env=Spot, out=tmp_path / "local", **SHORT)
    a, b = comparable(tmp_path / "remote"), comparable(tmp_path / "local")
    for part in ("weights", "replay", "metrics", "episodes", "eval", "facts"):
        assert a[part] == b[part], part


# -- what is forgotten ---------------------------------------------------------------------------------------------------


def test_a_context_that_is_forgotten_is_shown_again():
    looked, obs, w = [], seen(), noises(5)
    with served(sharing(looked), max_kept=12) as (_, remote):
        first = remote.prepare(obs)
        wanted = remote.decode(first, w)
        others = [remote.prepare(obs) for _ in range(2)]  # 5 rows each, of which 12 are kept
        for other in others:
            remote.features(other)
        looked.clear()
        assert torch.equal(remote.decode(first, w), wanted)
        assert torch.equal(remote.decode(first, w), wanted)
        assert looked == [5]  # once more, and then it is known again
        remote.close()  # another connection knows nothing of it
        assert torch.equal(remote.decode(first, w), wanted)
        assert looked == [5, 5]


def test_the_context_unused_for_longest_goes_first():
    looked, obs = [], seen()
    with served(sharing(looked), max_kept=12) as (_, remote):
        first, second, third = (remote.prepare(obs) for _ in range(3))
        remote.features(first)
        remote.features(second)
        remote.decode(first, noises(5))
        remote.features(third)
        looked.clear()
        remote.decode(first, noises(5))
        assert looked == []
        remote.decode(second, noises(5))
        assert looked == [5]


def test_a_server_keeps_what_its_clients_hold_and_no_more_than_it_may():
    obs, w = seen(), noises(5)
    with DecoderServer(sharing([]), max_kept=20) as server, opened(server.address) as remote:
        kept = server._contexts
        for _ in range(10):
            context = remote.prepare(obs)
            remote.decode(context, w)
            remote.decode(remote.repeat(context, 2), torch.cat([w, w]))
            assert kept.rows <= 10  # this one, and the last, of which the next request will say that it is not needed
            del context
        held = [remote.prepare(obs) for _ in range(10)]
        for one in held:
            remote.decode(one, w)
            assert kept.rows <= 20
        del held, one
        remote.decode(remote.prepare(obs), w)
        assert kept.rows == 5
        remote.close()
        for _ in range(100):
            if kept.rows == 0:
                break
            time.sleep(0.05)
        assert kept.rows == 0


def test_more_than_may_be_kept_is_kept_alone():
    looked, obs = [], seen()
    with DecoderServer(sharing(looked), max_kept=3) as server, opened(server.address) as remote:
        context = remote.prepare(obs)
        looked.clear()
        for times in (1, 2):
            remote.decode(remote.repeat(context, times), noises(5 * times))
        assert looked == [5]
        assert server._contexts.rows == 5


def test_nothing_is_kept_of_no_rows():
    with DecoderServer(sharing([]), max_kept=3) as server, opened(server.address) as remote:
        none = {key: value[:0] for key, value in seen().items()}
        for _ in range(3):
            with pytest.raises(DecoderFault, match="nothing to keep"):
                remote.decode(remote.prepare(none), noises(0))
        assert not server._contexts._kept


def test_a_context_holds_what_was_seen_though_the_callers_buffer_is_filled_anew():
    buffer = {key: value.numpy().copy() for key, value in seen().items()}
    w = noises(5)
    with served(sharing([])) as (_, remote):
        context = remote.prepare({key: torch.from_numpy(value) for key, value in buffer.items()})
        for value in buffer.values():
            value[:] = 0
        wanted = spot_decoder()(seen(), w)
        assert torch.equal(remote.decode(context, w), wanted)
        remote.close()
        assert torch.equal(remote.decode(context, w), wanted)  # shown again


def test_threads_that_share_a_connection_do_not_push_each_others_contexts_out():
    wanted, wrong = spot_decoder()(seen(), noises(5)), []
    with served(sharing([]), max_kept=5, retries=0) as (_, remote):

        def work():
            for _ in range(20):
                try:
                    if not torch.equal(remote.decode(remote.prepare(seen()), noises(5)), wanted):
                        wrong.append("another action")
                except DecoderFault as fault:
                    wrong.append(str(fault))

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_context_outlives_the_server_that_made_it():
    obs, w = seen(), noises(10)
    with contextlib.ExitStack() as stack:
        with DecoderServer(sharing([])) as first:
            remote = stack.enter_context(opened(first.address, retries=3))
            context = remote.repeat(remote.prepare(obs), 2)
            wanted = remote.decode(context, w)
            port = int(first.address.rsplit(":", 1)[1])
        with DecoderServer(sharing([]), port=port):
            assert torch.equal(remote.decode(context, w), wanted)


def test_a_server_that_forgets_at_once_is_shown_everything_each_time(monkeypatch):
    monkeypatch.setattr(Contexts, "add", lambda self, kept: 1)
    with served(sharing([]), retries=2) as (_, remote):
        context = remote.prepare(seen())
        for _ in range(2):
            assert torch.equal(remote.decode(context, noises(5)), spot_decoder()(seen(), noises(5)))


def test_an_answer_is_not_taken_for_that_of_another_question(monkeypatch):
    """Ctrl-C when a question has gone out and its answer has not come in."""
    local = toy_decoder()
    (first, w), (second, v) = inputs(local, 3, seed=1), inputs(local, 3, seed=2)
    with served(local) as (_, remote):
        remote(first, w)
        send = remote._link._connection.send

        def interrupted(request):
            send(request)
            raise KeyboardInterrupt

        monkeypatch.setattr(remote._link._connection, "send", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remote(first, w)
        assert torch.equal(remote(second, v), local(second, v))


def test_one_connection_does_not_see_anothers_contexts():
    with DecoderServer(sharing([])) as server, contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(connect(server.address, compression=None)) for _ in range(2))
        for link in (one, other):
            link.recv()
        one.send(pack({"observation": {key: value.numpy() for key, value in seen().items()}}))
        number = unpack(one.recv())["context"]
        other.send(pack({"context": number, "repeat": 1, "noise": noises(5).numpy()}))
        assert unpack(other.recv())["error"]["kind"] == "context"


# -- what is refused -----------------------------------------------------------------------------------------------------


def test_odd_requests_are_answered_in_one_line_and_nothing_is_lost():
    obs = {key: value.numpy() for key, value in seen().items()}
    w = noises(5).numpy()
    with DecoderServer(sharing([])) as server, connect(server.address, compression=None) as link:
        link.recv()
        link.send(pack({"observation": obs}))
        first = unpack(link.recv())
        assert np.array_equal(first["features"], where(seen()).numpy())
        good = {"context": first["context"], "repeat": 1, "noise": w}
        for kind, request in (
            ("message", {**good, "keep": 1}),
            ("message", {**good, "forget": 3}),
            ("message", {**good, "observation": obs}),
            ("message", {**good, "more": 1}),
            ("message", {"context": first["context"]}),
            ("message", {"observation": obs, "unit": ["nothing"]}),
            ("dtype", {"observation": obs, "unit": ["speed"]}),
            ("message", {**good, "repeat": 0}),
            ("message", {**good, "repeat": 1.0}),
            ("message", {**good, "repeat": True}),
            ("message", {**good, "context": "1"}),
            ("context", {**good, "context": first["context"] + 1}),
            ("shape", {**good, "repeat": 2}),
            ("shape", {**good, "noise": w[:4]}),
            ("shape", {**good, "repeat": 2**62}),
            ("shape", {"observation": {**obs, "speed": obs["speed"][:4]}}),
            ("shape", {"observation": None}),
            ("decoder", {"features": first["features"], "noise": w}),
        ):
            link.send(pack(request))
            answer = unpack(link.recv(timeout=10))
            assert set(answer) == {"error"}, request
            assert answer["error"]["kind"] == kind, answer
            assert "\n" not in answer["error"]["message"]
        link.send(pack(good))
        assert np.array_equal(unpack(link.recv())["actions"], spot_decoder()(seen(), noises(5)).numpy())
