"""A served decoder: its bits, what it refuses, who may ask, and a run that loses it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import msgpack
import numpy as np
import pytest
import torch
from scripted import TINY, comparable, toy_decoder
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import lpds
from lpds.decoders import remote as client
from lpds.deploy.decoder_server import DecoderServer, is_loopback
from lpds.errors import DecoderFault, LpdsError
from lpds.types import LatentSpec
from lpds.wire import WireError, describe_decoder, pack, read_description, silent, spec_from_wire, spec_to_wire, unpack

TOKEN = "correct-horse-battery"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses short enough to wait for, and no token from outside."""
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)
    monkeypatch.delenv("LPDS_TOKEN", raising=False)


@contextlib.contextmanager
def opened(address, **options):
    decoder = lpds.load_decoder(f"remote:{address}", **options)
    try:
        yield decoder
    finally:
        decoder.close()


@contextlib.contextmanager
def served(decoder, **options):
    with DecoderServer(decoder) as server, opened(server.address, **options) as remote:
        yield server, remote


def inputs(decoder, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randn(rows, *decoder.spec.obs_shape, generator=generator)
    return obs, torch.randn(rows, *decoder.spec.latent_shape, generator=generator)


# -- the same decoder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy", "toy-flow", "hopper"])
def test_actions_are_the_local_ones_to_the_bit_whatever_the_batch(name):
    local = lpds.load_decoder(name)
    with served(local) as (server, remote):
        assert remote.spec == local.spec
        assert remote.fingerprint == local.fingerprint
        assert remote.name == local.name
        assert remote.reference == f"remote:{server.address}"
        for mine, theirs in zip(local.action_range(), remote.action_range(), strict=True):
            assert torch.equal(mine, theirs)
        for rows in (0, 1, 3, 20, 256, 600):
            obs, w = inputs(local, rows)
            assert torch.equal(remote(obs, w), local(obs, w)), rows
            assert torch.equal(remote.decode(remote.prepare(obs), w), local(obs, w)), rows
        odd = torch.randn(4, 3, 2).transpose(1, 2)[:, : local.spec.latent_shape[0]]  # not contiguous
        if odd.shape[1:] == local.spec.latent_shape:
            assert torch.equal(remote(obs[:4], odd), local(obs[:4], odd))


def test_a_batch_is_cut_only_if_asked():
    sizes = []

    def watch(obs, w):
        sizes.append(len(w))
        return w

    decoder = lpds.wrap_decoder(watch, obs_shape=(2,), latent_shape=(1, 2), action_shape=(1, 2), name="watch")
    with served(decoder) as (server, remote), opened(server.address, rows_at_once=4) as cut:
        sizes.clear()
        obs, w = inputs(decoder, 10)
        assert torch.equal(remote(obs, w), w)
        assert torch.equal(cut(obs, w), w)
        assert sizes == [10, 4, 4, 2]
        assert cut.options == {"rows_at_once": 4}


def test_observations_of_many_parts_and_a_mask_travel_too():
    def look(obs, w):
        assert obs["image"].dtype == torch.uint8
        return w + obs["state"][:, None, :2] + obs["image"].float().mean((1, 2, 3))[:, None, None]

    shapes = {"image": (4, 4, 3), "state": (3,)}
    decoder = lpds.wrap_decoder(
        look, obs_shape=shapes, latent_shape=(2, 2), action_shape=(2, 2), name="look", free=(True, False)
    )
    decoder._cached_fingerprint = "f" * 64  # the probe's images are no bytes
    obs = {"image": torch.randint(0, 256, (5, 4, 4, 3), dtype=torch.uint8), "state": torch.randn(5, 3)}
    w = torch.randn(5, 2, 2)
    with served(decoder) as (_, remote):
        assert remote.spec == LatentSpec(shapes, (2, 2), (2, 2), (True, False))
        assert torch.equal(remote(obs, w), decoder(obs, w))
        for wrong in ({"state": obs["state"]}, {**obs, "state": obs["state"][:4]}, obs["state"]):
            with pytest.raises(DecoderFault, match=r"refused \(shape|refused \(message"):
                remote(wrong, w)


def test_the_doctor_examines_a_remote_decoder_and_methods_that_train_weights_refuse_it(refused, tmp_path):
    with served(lpds.load_decoder("toy")) as (server, remote):
        assert lpds.check(remote, "four-mode", samples=32).ok
        with refused("has none", "remote"):
            lpds.steer("toy", "dppo", decoder=f"remote:{server.address}", out=tmp_path / "run", **TINY)


# -- what the wire takes -------------------------------------------------------------------------------------------------


def array(**changes):
    """A [2, 3] array in openpi's form, with something changed."""
    whole = {"__ndarray__": True, "data": bytes(24), "dtype": "<f4", "shape": [2, 3]}
    return {key.encode(): value for key, value in {**whole, **changes}.items() if value is not None}


def test_arrays_have_the_form_of_openpi():
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    raw = msgpack.unpackb(pack({"x": value}))
    assert raw == {"x": {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": "<f4", b"shape": [2, 3]}}
    # as openpi's client writes it: a tuple for the shape
    sent = msgpack.packb({"x": {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": (2, 3)}})
    assert np.array_equal(unpack(sent)["x"], value)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "|i1", "<i2", "<i4", ">i8", "|u1", "|b1"])
def test_arrays_come_back_as_they_were(dtype):
    for shape in ((), (0, 4), (3,), (2, 1, 5)):
        value = np.asarray(np.random.default_rng(0).standard_normal(shape) * 50).astype(dtype)
        back = unpack(pack({"x": value}))["x"]
        assert back.dtype == np.dtype(dtype).newbyteorder("=")
        assert back.shape == shape
        assert np.array_equal(back, value)
        assert back.flags.writeable
    special = np.array([np.nan, np.inf, -0.0], np.float32)
    assert unpack(pack({"x": special}))["x"].tobytes() == special.tobytes()


@pytest.mark.parametrize("dtype", [object, "V8", "c8", "U3", "S3", "f2", "u4", "M8[s]", [("a", "f4")]])
def test_other_arrays_are_not_sent(dtype):
    with pytest.raises(WireError, match="cannot be sent"):
        pack({"x": np.zeros(2, dtype)})


BAD = [
    ("message", b""),
    ("message", b"\xc1garbage"),
    ("message", np.random.default_rng(0).bytes(300)),
    ("message", "text"),
    ("message", msgpack.packb([1, 2])),
    ("message", msgpack.packb(7)),
    ("message", msgpack.packb(array())),
    ("message", msgpack.packb({"noise": 1}) + b"\x01"),
    ("message", msgpack.packb({1: 2})),
    ("message", msgpack.packb({b"noise": 2})),
    ("message", msgpack.packb({"noise": b"bytes"})),
    ("message", msgpack.packb({"noise": msgpack.ExtType(5, b"x")})),
    ("message", msgpack.packb({"noise": msgpack.Timestamp(0)})),
    ("message", msgpack.packb({"noise": [[[[[[[[[[1]]]]]]]]]]})),
    ("message", b"\x81\xa5noise" + b"\x91" * 5000 + b"\x01"),
    ("message", b"\x81\xa5noise\xdd\xff\xff\xff\xff"),  # a list of four billion
    ("message", b"\xdf\xff\xff\xff\xff"),
    ("message", msgpack.packb({"noise": list(range(2000))})),
    ("size", msgpack.packb({str(n): [[] for _ in range(100)] for n in range(100)})),
    ("dtype", msgpack.packb({"noise": array(dtype="|O")})),
    ("dtype", msgpack.packb({"noise": array(dtype="|V4")})),
    ("dtype", msgpack.packb({"noise": array(dtype="f4,f4")})),
    ("dtype", msgpack.packb({"noise": array(dtype=">f4")})),
    ("dtype", msgpack.packb({"noise": array(dtype=[["a", "<f4"]])})),
    ("array", msgpack.packb({"noise": array(data=bytes(23))})),
    ("array", msgpack.packb({"noise": array(data=bytes(28))})),
    ("array", msgpack.packb({"noise": array(data="text")})),
    ("array", msgpack.packb({"noise": array(shape=[2, -3])})),
    ("array", msgpack.packb({"noise": array(shape=[2, 3.0])})),
    ("array", msgpack.packb({"noise": array(shape=[True, 6])})),
    ("array", msgpack.packb({"noise": array(shape=[2**40, 2**40])})),
    ("array", msgpack.packb({"noise": array(shape=[0, 2**40, 2**40], data=b"")})),
    ("array", msgpack.packb({"noise": array(shape=[1] * 40 + [6])})),
    ("array", msgpack.packb({"noise": array(shape=6)})),
    ("array", msgpack.packb({"noise": array(data=None)})),
    ("array", msgpack.packb({"noise": array(more=1)})),
    ("array", msgpack.packb({"noise": array(**{"__ndarray__": 1})})),
    ("array", msgpack.packb({"noise": array(dtype="|b1", data=b"\x00\x01\x02\x00\x00\x00")})),
]


def test_a_server_answers_whatever_it_is_sent_with_one_line_and_lives():
    decoder = lpds.load_decoder("toy")
    obs, w = (value.numpy() for value in inputs(decoder, 2))
    good = {"observation": obs, "noise": w}
    bad = [*BAD]
    bad += [(kind, pack({**good, **changes})) for kind, changes in (
        ("message", {"more": 1}),
        ("message", {"noise": 3.0}),
        ("message", {"observation": {"state": obs}}),
        ("dtype", {"noise": w.astype(np.float64)}),
        ("dtype", {"observation": obs.astype(np.int32)}),
        ("shape", {"noise": w[:, :1]}),
        ("shape", {"noise": w[0]}),
        ("shape", {"noise": np.zeros((), np.float32)}),
        ("shape", {"observation": obs[:1]}),
        ("shape", {"observation": obs[:, :1]}),
        ("size", {"noise": np.zeros((5000, *w.shape[1:]), np.float32)}),
    )]  # fmt: skip
    bad += [("message", pack({"noise": w})), ("message", pack({}))]
    with DecoderServer(decoder) as server, connect(server.address, compression=None) as link:
        assert read_description(unpack(link.recv())).fingerprint == decoder.fingerprint
        for kind, message in bad:
            link.send(message)
            answer = unpack(link.recv(timeout=10))
            assert set(answer) == {"error"}, message
            assert answer["error"]["kind"] == kind, (message, answer)
            assert "\n" not in answer["error"]["message"]
            assert "Traceback" not in answer["error"]["message"]
        link.send(pack(good))
        assert np.array_equal(unpack(link.recv())["actions"], decoder(torch.from_numpy(obs), torch.from_numpy(w)).numpy())


def test_a_message_too_large_closes_that_connection_only(refused):
    decoder = lpds.load_decoder("toy")
    obs, w = inputs(decoder, 600)
    with DecoderServer(decoder, max_bytes=10_000) as server, opened(server.address) as remote:
        with connect(server.address, compression=None) as link:
            link.recv()
            link.send(bytes(100_000))
            with pytest.raises(ConnectionClosed) as caught:
                link.recv()
            assert caught.value.rcvd.code == 1009
        with refused("at most 10,000 bytes", "--max-mb"):  # said by the client, before it is sent
            remote(obs, w)
        assert len(remote(obs[:5], w[:5])) == 5
    few = refused("at most 8 rows", "not 600", "rows_at_once=")
    with DecoderServer(decoder, max_batch=8) as server, opened(server.address) as remote, few:
        remote(obs, w)


def test_bytes_that_are_no_websocket_do_not_stop_a_server(capfd):
    decoder = lpds.load_decoder("toy")
    with served(decoder) as (server, remote):
        port = int(server.address.rsplit(":", 1)[1])
        for noise in (
            b"GET / HTTP/1.1\r\n\r\n",
            np.random.default_rng(1).bytes(5000),
            b"",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port)) as raw:
                raw.sendall(noise)
        obs, w = inputs(decoder, 3)
        assert torch.equal(remote(obs, w), decoder(obs, w))
    assert "Traceback" not in "".join(capfd.readouterr())


def test_what_the_decoder_raises_stays_on_the_servers_side():
    said, trouble = [], []

    def moody(obs, w):
        if trouble:
            raise trouble[0]
        return w

    decoder = lpds.wrap_decoder(moody, obs_shape=(2,), latent_shape=(1, 2), action_shape=(1, 2), name="moody")
    with DecoderServer(decoder, say=said.append) as server, opened(server.address) as remote:
        obs, w = inputs(decoder, 2)
        for error, words in (
            (RuntimeError("secret /path\nsecond line"), r"refused \(internal\): the decoder failed with RuntimeError; "),
            (LpdsError("too cold\nhere"), r"refused \(decoder\): too cold here$"),
        ):
            trouble[:] = [error]
            with pytest.raises(DecoderFault, match=words) as caught:
                remote(obs, w)
            assert "secret" not in str(caught.value)
            assert "\n" not in str(caught.value)
        assert any("secret /path" in line for line in said)
        trouble.clear()
        assert torch.equal(remote(obs, w), w)


# -- who may ask -----------------------------------------------------------------------------------------------------------


def test_other_machines_need_a_token(refused):
    decoder = toy_decoder()
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    for host in ("0.0.0.0", "::", "", "192.168.1.4", "example.org", "localhost.example.org"):
        assert not is_loopback(host)
        with refused("can be reached from other machines", "--token-file"):
            DecoderServer(decoder, host=host)
    for token in ("", "short", "with space in the middle", "naïve-naïve-naïve-naïve", "line\nline-line-line-line"):
        with refused("a token must be"):
            DecoderServer(decoder, token=token)


def test_a_token_opens_and_nothing_else_does(refused, monkeypatch, tmp_path, caplog):
    said = []
    caplog.set_level("DEBUG")
    obs, w = inputs(toy_decoder(), 2)
    with DecoderServer(toy_decoder(), host="0.0.0.0", token=TOKEN, say=said.append) as server:
        address = server.address.replace("0.0.0.0", "127.0.0.1")
        with refused("a token is needed", "LPDS_TOKEN"):
            lpds.load_decoder(f"remote:{address}")
        for wrong in (TOKEN[:-1], TOKEN + "x", "x", "ÿ" * 3):
            header = {"Authorization": f"Bearer {wrong}"}
            with pytest.raises(InvalidStatus, match="401"), connect(address, additional_headers=header, logger=silent()):
                pass
        with refused("the token was refused"):
            lpds.load_decoder(f"remote:{address}", token="wrong-horse-battery")
        with opened(address, token=TOKEN, retries=1) as remote:
            assert torch.equal(remote(obs, w), toy_decoder()(obs, w))
            assert remote.options == {"retries": 1}  # what a run writes down
            assert TOKEN not in json.dumps([remote.reference, remote.options, remote.describe()])
        monkeypatch.setenv("LPDS_TOKEN", TOKEN)
        with opened(address) as remote:
            assert len(remote(obs, w)) == 2
        for scheme, status in (("Api-Key", None), ("Basic", 401)):  # the first is openpi's
            header = {"Authorization": f"{scheme} {TOKEN}"}
            with contextlib.ExitStack() as stack:
                if status:
                    stack.enter_context(pytest.raises(InvalidStatus))
                stack.enter_context(connect(address, additional_headers=header, logger=silent())).recv()
    assert any("refused: wrong token" in line for line in said)
    assert TOKEN not in "".join(said)
    assert TOKEN not in caplog.text


def test_a_page_in_a_browser_is_refused():
    turned_away = pytest.raises(InvalidStatus, match="403")
    with DecoderServer(toy_decoder()) as server, turned_away, connect(server.address, origin="https://example.org"):
        pass


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("localhost:80", "is ws://HOST:PORT"),
        ("http://localhost:80", "is ws://HOST:PORT"),
        ("ws://", "is ws://HOST:PORT"),
        ("ws://host:port", "is ws://HOST:PORT"),
        ("ws://me:secret@host:1", "a token belongs in LPDS_TOKEN"),
        ("ws://host:1/?token=secret", "a token belongs in LPDS_TOKEN"),
        ("ws://127.0.0.1:9", "no decoder at ws://127.0.0.1:9: "),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(address, says, refused):
    with refused(says) as _:
        lpds.load_decoder(f"remote:{address}")
    with pytest.raises(LpdsError) as caught:
        lpds.load_decoder(f"remote:{address}")
    assert "secret" not in str(caught.value)


def test_options_that_mean_nothing_are_refused(refused):
    for options in ({"timeout": 0.0}, {"timeout": float("inf")}, {"retries": -1}, {"rows_at_once": -1}):
        with refused("must be positive and finite"):
            lpds.load_decoder("remote:ws://127.0.0.1:9", **options)
    with refused("unexpected keyword argument 'tocken'"):
        lpds.load_decoder("remote:ws://127.0.0.1:9", tocken="x")
    with DecoderServer(toy_decoder()) as server:
        port = int(server.address.rsplit(":", 1)[1])
        with refused(f"cannot listen on 127.0.0.1 port {port}: address already in use"):
            DecoderServer(toy_decoder(), port=port)
    with refused("cannot listen on 127.0.0.1 port 99999"):
        DecoderServer(toy_decoder(), port=99999)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"protocol": "other"}, "no decoder server"),
        ({"protocol_version": 2}, "version 2 of the decoder protocol, expected 1"),
        ({"name": 3}, "name and fingerprint"),
        ({"max_batch": 0}, "max_bytes and max_batch"),
        ({"action_low": np.zeros(3, np.float32)}, "action_low and action_high"),
        ({"spec": 3}, "spec must be a map"),
        ({"spec": {"obs_shape": [2], "latent_shape": [4, 2], "action_shape": [0, 2]}}, "action_shape must be a list of 2"),
        ({"spec": {"obs_shape": [2], "latent_shape": [4, 2], "action_shape": [4, 2], "free": [1, 0]}}, "free must be"),
        ({"spec": {"obs_shape": {}, "latent_shape": [4, 2], "action_shape": [4, 2]}}, "obs_shape must be"),
    ],
)
def test_a_server_of_something_else_is_told(changes, says, refused):
    decoder = toy_decoder()
    hello = {**describe_decoder(decoder, {}, 1, 1), **changes}
    with refused(says):
        read_description(unpack(pack(hello)))


def test_specifications_travel():
    for spec in (LatentSpec((2,), (4, 3), (2, 1)), LatentSpec({"a": (2, 3), "b": (1,)}, (1, 2), (1, 2), (False, True))):
        assert spec_from_wire(unpack(pack({"spec": spec_to_wire(spec)}))["spec"]) == spec


# -- losing the server -------------------------------------------------------------------------------------------------


def test_a_server_that_comes_back_is_found_again_and_another_decoder_is_not_taken_for_it():
    decoder = toy_decoder()
    obs, w = inputs(decoder, 3)
    with contextlib.ExitStack() as stack:
        with DecoderServer(decoder) as first:
            port = int(first.address.rsplit(":", 1)[1])
            remote = stack.enter_context(opened(first.address, retries=5))
            assert torch.equal(remote(obs, w), decoder(obs, w))
        client.FIRST_PAUSE = 0.1
        came = threading.Event()

        def later():
            time.sleep(0.2)
            with DecoderServer(decoder, port=port):
                came.set()
                gone.wait(10)

        gone = threading.Event()
        thread = threading.Thread(target=later)
        thread.start()
        assert torch.equal(remote(obs, w), decoder(obs, w))  # waits for it
        assert came.is_set()
        gone.set()
        thread.join()
        another = pytest.raises(DecoderFault, match=r"now serves another decoder: fingerprint [0-9a-f]{12}, expected")
        with DecoderServer(toy_decoder("another"), port=port), another:
            remote(obs, w)
        client.FIRST_PAUSE = 0.01
        with pytest.raises(DecoderFault, match=rf"at ws://127.0.0.1:{port} was lost \(connection refused; 5 retries in 0 s\)"):
            remote(obs, w)


def test_a_server_that_never_answers_is_given_up():
    hold = threading.Event()
    slow = []

    def stuck(obs, w):
        if slow:
            hold.wait(10)
        return w

    decoder = lpds.wrap_decoder(stuck, obs_shape=(2,), latent_shape=(1, 2), action_shape=(1, 2), name="stuck")
    with served(decoder, timeout=0.3, retries=1) as (_, remote):
        slow.append(1)
        with pytest.raises(DecoderFault, match=r"was lost \(no answer in 0\.3 s; 1 retries"):
            remote(*inputs(decoder, 1))
        hold.set()
        slow.clear()
        obs, w = inputs(decoder, 1, seed=5)
        assert torch.equal(remote(obs, w), w)  # and not the late answer to the question before


class Mortal:
    """The toy's decoder on a fixed port, whose server dies when it first sees certain noises."""

    def __init__(self):
        self.seen, self.dies_of, self.server = [], set(), None
        inner = toy_decoder()

        def decode(obs, w):
            self.seen.append((len(w), w.numpy().tobytes()))
            if self.seen[-1] in self.dies_of:
                self.dies_of.remove(self.seen[-1])
                self.server.stop()
                raise RuntimeError("the power failed")
            return inner.decode(obs, w)

        self.decoder = lpds.wrap_decoder(decode, obs_shape=(2,), latent_shape=(4, 2), action_shape=(4, 2), name="linear")
        assert self.decoder.fingerprint == inner.fingerprint
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.reference = f"remote:ws://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def alive(self):
        with DecoderServer(self.decoder, port=self.port) as self.server:
            yield


def test_a_run_that_loses_its_server_is_saved_and_resumed_to_the_bit(tmp_path, monkeypatch):
    """At every kind of moment: collecting, fitting the critics, updating, a row of metrics, evaluations."""
    monkeypatch.setattr("lpds.session._write_report", lambda folder, display: None)  # pictures are slow
    mortal = Mortal()
    small = TINY | {"steps": 310, "kept_noises": 0, "distill_noises": 2, "eval_every": 10_000, "final_episodes": 2}
    with mortal.alive():
        decoder = lpds.load_decoder(mortal.reference, retries=1)
        mortal.seen.clear()
        whole = lpds.steer("toy", decoder=decoder, out=tmp_path / "whole", **small)
        decoder.close()
    lpds.steer("toy", decoder=toy_decoder(), out=tmp_path / "local", **small)
    a, b = comparable(tmp_path / "whole"), comparable(tmp_path / "local")
    for part in ("weights", "replay", "metrics", "episodes", "eval", "summary", "facts"):
        assert a[part] == b[part], part  # where the decoder is changes nothing

    assert whole.finished
    # lanes collect, 16 rows are a TD update, 32 its distillation (the first few fit critics), 20 an evaluation, the rest a metric
    by_rows = {}
    for number, (rows, _) in enumerate(mortal.seen):
        by_rows.setdefault(rows, []).append(number)
    assert {16, 20, 32} < set(by_rows)
    moments = {at for numbers in by_rows.values() for at in (numbers[0], numbers[2 * len(numbers) // 3], numbers[-1])}
    mortal.dies_of = {mortal.seen[at] for at in moments}
    deaths = len(mortal.dies_of)
    run, steps, behind, done = tmp_path / "run", [], [], False
    while not done:
        with mortal.alive():
            try:
                if (run / "config.json").is_file():
                    done = lpds.resume(run, quiet=True).finished
                else:
                    decoder = lpds.load_decoder(mortal.reference, retries=1)
                    done = lpds.steer("toy", decoder=decoder, out=run, **small).finished
            except DecoderFault as fault:
                line = str(fault)
        if not done:
            assert "\n" not in line
            assert f"at ws://127.0.0.1:{mortal.port} " in line
            assert f": lpds resume {run}" in line
            facts = json.loads((run / "checkpoint" / "checkpoint.json").read_text())
            assert f"the run is saved at step {facts['step']}" in line
            steps.append(facts["step"])
            behind.append(facts["behind"])
    assert not mortal.dies_of
    assert len(steps) == deaths
    assert steps == sorted(steps)
    assert set(behind) == {False, True}
    first, second = comparable(tmp_path / "whole"), comparable(run)
    for part, value in first.items():
        assert value == second[part], part
    config = json.loads((run / "config.json").read_text())
    assert config["decoder"]["reference"] == mortal.reference
    assert config["decoder"]["options"] == {"retries": 1}
    with mortal.alive():
        policy = lpds.load_policy(run)
        assert np.array_equal(policy.shift(np.ones((2, 2))), lpds.load_policy(run, toy_decoder()).shift(np.ones((2, 2))))
        policy.decoder.close()


# -- the command -------------------------------------------------------------------------------------------------------


def serve(*words, env=None):
    command = [sys.executable, "-W", "error", "-m", "lpds", "serve-decoder", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_serve_decoder_in_another_process_until_ctrl_c(tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    local = lpds.load_decoder("hopper", ddim_steps=3)
    with serve("hopper", "--ddim-steps", "3", "--port", "0", "--token-file", str(tmp_path / "token")) as process:
        line = process.stdout.readline()
        assert line.startswith(f"serving hopper ({local.fingerprint[:12]}) on ws://127.0.0.1:")
        assert "token needed" in line
        address = line.split(" on ")[1].split(",")[0]
        with opened(address, token=TOKEN) as remote:
            assert remote.fingerprint == local.fingerprint
            obs, w = inputs(local, 20)
            assert torch.equal(remote(obs, w), local(obs, w))
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        out, error = process.stdout.read(), process.stderr.read()
    assert out == ""
    assert error.splitlines()[-1] == "stopped"
    assert "Traceback" not in error
    assert TOKEN not in line + error


def test_the_command_refuses_in_one_line(capsys, monkeypatch, tmp_path):
    from lpds.cli import main

    for words, says in (
        (["hopper", "--host", "0.0.0.0"], "--token-file"),
        (["hopper", "--token-file", str(tmp_path / "no")], "cannot be read: No such file"),
        (["hoper"], "did you mean 'hopper'"),
        (["remote:ws://127.0.0.1:9"], "no decoder at ws://127.0.0.1:9"),
    ):
        assert main(["serve-decoder", *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert says in error
    monkeypatch.setitem(sys.modules, "websockets.sync.client", None)
    assert main(["check", "remote:ws://127.0.0.1:9"]) == 2
    assert capsys.readouterr().err == "lpds: remote decoders need websockets and msgpack: pip install 'lpds[remote]'\n"
