"""What a server and a client take from the wire, and what they do not."""

from __future__ import annotations

import socket

import msgpack
import numpy as np
import pytest
import torch
from scripted import toy_decoder
from serving import TOKEN, inputs, opened, quick, served  # noqa: F401 - quick is a fixture
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import lpds
from lpds.deploy.decoder_server import DecoderServer
from lpds.errors import DecoderFault, LpdsError
from lpds.types import LatentSpec
from lpds.wire import WireError, describe_decoder, pack, read_description, spec_from_wire, spec_to_wire, unpack


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


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"protocol": "other"}, "no decoder server"),
        ({"protocol_version": 1}, "version 1 of the decoder protocol, expected 2"),
        ({"feature_size": 0}, "feature_size must be a positive number or nil"),
        ({"feature_size": "many"}, "feature_size must be a positive number or nil"),
        ({"decodes_states": 1}, "decodes_states and shares_context truth values"),
        ({"probe": 3}, "probe must be a text of at most"),
        ({"probe": "A" * 70_000}, "probe must be a text of at most"),
        ({"shares_context": None}, "decodes_states and shares_context truth values"),
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


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # openpi's own way
def test_openpis_own_client_is_understood():
    client = pytest.importorskip("openpi_client.websocket_client_policy", reason="openpi-client is not installed")
    decoder = lpds.load_decoder("toy")
    obs, w = inputs(decoder, 3)
    with DecoderServer(decoder, token=TOKEN) as server:
        policy = client.WebsocketClientPolicy(server.address, api_key=TOKEN)
        try:
            said = policy.get_server_metadata()
            assert said["fingerprint"] == decoder.fingerprint
            assert np.array_equal(said["action_low"], decoder.action_range()[0].numpy())
            answer = policy.infer({"observation": obs.numpy(), "noise": w.numpy()})
            assert np.array_equal(answer["actions"], decoder(obs, w).numpy())
            assert policy.infer({"observation": obs.numpy()[:, :1], "noise": w.numpy()})["error"]["kind"] == "shape"
            assert answer["server_timing"]["infer_ms"] > 0
        finally:
            policy._ws.close()
