"""A served decoder: its bits, who may ask, the command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from scripted import TINY, toy_decoder
from serving import TOKEN, inputs, opened, quick, served  # noqa: F401 - quick is a fixture
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import lpds
from lpds.deploy import decoder_server
from lpds.deploy.decoder_server import DecoderServer, is_loopback
from lpds.errors import DecoderFault, LpdsError
from lpds.remarks import of_decoder
from lpds.types import LatentSpec
from lpds.wire import WireError, describe_decoder, pack, read_description, silent, unpack

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


def test_what_was_learned_on_a_served_function_opens_where_it_rounds_otherwise(tmp_path, refused):
    """A function's fingerprint is of what it decodes, so a GPU's may differ from this machine's in a rounded figure."""
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))

    def made(change=0.0):
        def act(obs, w):
            return torch.tanh((obs @ weight)[:, None, :2] + w) * (1.0 + change)

        return lpds.wrap_decoder(act, obs_shape=(2,), latent_shape=(4, 2), action_shape=(4, 2), name="mine")

    there = next(made(change) for change in np.geomspace(1e-6, 5e-4, 60) if made(change).fingerprint != made().fingerprint)
    with served(there) as (_, remote):
        run = lpds.steer("toy", decoder=remote, out=tmp_path / "run", **TINY)
        assert remote.probe == there.probe
        assert "probe" not in remote.describe()
    with served(made()) as (_, again):
        assert lpds.load_policy(run.folder, decoder=again).decoder is again
    here = made()
    assert lpds.load_policy(run.folder, decoder=here).decoder is here
    with refused("weights, sampler or normaliser differ"):
        lpds.load_policy(run.folder, decoder=made(0.02))


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
                remote.decode(remote.prepare(wrong), w)  # past the client's own check
            with pytest.raises(LpdsError, match=r"look|batch sizes"):
                remote(wrong, w)


def test_where_the_served_sampler_starts_is_told_on_this_side():
    for decoder in (lpds.load_decoder("hopper", ddim_steps=8), lpds.load_decoder("hopper-flow")):
        with served(decoder) as (_, remote):
            assert remote.signal_at_start == decoder.signal_at_start
            for lie in ("much", 2.0, True):
                remote._served.facts["signal_at_start"] = lie
                assert remote.signal_at_start is None


def test_what_is_wrong_with_the_served_decoder_is_told_on_this_side():
    """A run warns of it before it starts, as with the decoder in its own process."""
    sizes = {"obs_shape": (3,), "latent_shape": (2, 2), "action_shape": (2, 2), "name": "own"}
    for function, fault in (
        (lambda obs, w: torch.tanh(w), None),
        (lambda obs, w: torch.tanh(0.0 * w + obs[:, None, :2]), "same actions for different noises"),
        (lambda obs, w: torch.tanh(w - w.mean(0)), "otherwise alone than in a batch"),
    ):
        with served(lpds.wrap_decoder(function, **sizes)) as (_, remote):
            lines = of_decoder(remote)
            assert lines == of_decoder(lpds.wrap_decoder(function, **sizes))
            assert [fault in line for line in lines] == ([] if fault is None else [True])


def test_the_doctor_examines_a_remote_decoder_and_methods_that_train_weights_refuse_it(refused, tmp_path):
    with served(lpds.load_decoder("toy")) as (server, remote):
        assert lpds.check(remote, "four-mode", samples=32).ok
        with refused("has none", "remote"):
            lpds.steer("toy", "dppo", decoder=f"remote:{server.address}", out=tmp_path / "run", **TINY)


# -- who may ask -----------------------------------------------------------------------------------------------------------


def test_a_policy_that_takes_few_observations_is_probed_with_its_own_from_afar():
    """Drawn from N(0, I) they are below zero, where a logarithm is none."""

    def log_policy(obs, w):
        if bool((obs <= 0).any()):
            raise ValueError("a distance is positive")
        return w + obs.log()[:, :1, None]

    examples = np.random.default_rng(0).uniform(0.5, 2.0, (40, 3)).astype(np.float32)
    made = {"obs_shape": 3, "latent_shape": (2, 1), "action_shape": (2, 1), "name": "log"}
    with served(lpds.wrap_decoder(log_policy, **made, examples=examples)) as (_, remote):
        drawn = remote.plausible(torch.randn(34, 3))
        np.testing.assert_array_equal(drawn.numpy(), examples[np.arange(34) % 32])
        assert lpds.check(remote).ok
    boundless = lpds.wrap_decoder(lambda obs, w: w, **made, examples=np.full((2, 3), np.inf, np.float32))
    with served(boundless) as (_, remote):  # none are sent, and it is served all the same
        assert bool(torch.isfinite(remote.plausible(torch.randn(5, 3))).all())
    shapes = {"a": (2,), "b": (1, 4, 4)}
    policy = lpds.wrap_decoder(lambda obs, w: w, **{**made, "obs_shape": shapes})
    with served(policy) as (_, remote):
        drawn = remote.plausible({key: torch.randn(3, *shape) for key, shape in shapes.items()})
        assert {key: tuple(value.shape) for key, value in drawn.items()} == {"a": (3, 2), "b": (3, 1, 4, 4)}


@pytest.mark.parametrize(
    "examples", [[1.0], np.zeros((2, 4), np.float32), np.full((2, 3), np.nan, np.float32), np.float32(1.0)]
)
def test_examples_that_are_none_are_refused(examples):
    decoder = lpds.wrap_decoder(lambda obs, w: w, obs_shape=3, latent_shape=(2, 1), action_shape=(2, 1), name="own")
    with pytest.raises(WireError, match="examples must be observations"):
        read_description(describe_decoder(decoder, {}, 1, 1, examples))


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


def test_who_connects_and_says_nothing_locks_nobody_out(monkeypatch):
    monkeypatch.setattr(decoder_server, "MAX_PENDING", 4)
    with DecoderServer(toy_decoder(), token=TOKEN) as server, contextlib.ExitStack() as stack:
        place = ("127.0.0.1", int(server.address.rsplit(":", 1)[1]))
        idle = [stack.enter_context(socket.create_connection(place, timeout=10.0)) for _ in range(12)]
        with opened(server.address, token=TOKEN, timeout=5.0, retries=0) as remote:
            assert remote.name == "linear"
        for early in idle[:8]:  # closed by the server, the longest waiting first
            with contextlib.suppress(ConnectionResetError):
                assert early.recv(1) == b""
        idle[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            idle[-1].recv(1)
        assert len(server._pending) <= 4


def test_one_connection_too_many_is_told_so_and_the_place_of_one_that_left_is_free(monkeypatch, refused):
    """1013, try again later, as often as clients come and go. Our own client was told of a bad file descriptor."""
    monkeypatch.setattr(decoder_server, "MAX_CONNECTIONS", 2)
    said, gone = [], threading.Semaphore(0)

    def say(line):
        said.append(line)
        if line.endswith("gone"):
            gone.release()

    with DecoderServer(toy_decoder(), say=say) as server, contextlib.ExitStack() as stack:

        def client():
            one = stack.enter_context(connect(server.address, logger=silent()))
            assert unpack(one.recv(10.0))["name"] == "linear"
            return one

        clients = [client(), client()]
        for _ in range(3):
            with connect(server.address, logger=silent()) as third, pytest.raises(ConnectionClosed) as caught:
                third.recv(10.0)
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1013, "too many connections")
            with refused("no decoder at", "too many connections"):
                lpds.load_decoder(f"remote:{server.address}")
            clients.pop(0).close()
            assert gone.acquire(timeout=10.0)
            clients.append(client())
    assert sum(line.endswith("connected") for line in said) == 5


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
        with refused("must be ASCII letters"):
            lpds.load_decoder(f"remote:{address}", token=f"{TOKEN}\r\nX-Other: 1")
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


# -- the command -------------------------------------------------------------------------------------------------------


def serve(*words, env=None):
    command = [sys.executable, "-W", "error", "-m", "lpds", "serve-decoder", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    # a shell starts what it puts in the background with SIGINT ignored; Ctrl-C's signal must end the server there too
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)


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
            try:
                assert process.wait(30) == 0
            finally:
                process.kill()
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


def test_who_answers_something_else_than_a_websocket_is_one_line(refused):
    """A proxy that sends elsewhere, a name that is none, and a token that a command line took for a number."""

    def redirect(door):
        near, _ = door.accept()
        near.recv(4096)
        near.sendall(b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.invalid/\r\nContent-Length: 0\r\n\r\n")
        near.close()

    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=redirect, args=(door,), daemon=True).start()
        with refused("cannot be reached"):
            lpds.load_decoder(f"remote:ws://127.0.0.1:{door.getsockname()[1]}")
    for host in ("a" * 64, ".."):
        with refused("cannot be reached", "label"):
            lpds.load_decoder(f"remote:ws://{host}:80")
    with (
        DecoderServer(toy_decoder(), token="1234567890123456") as server,
        opened(server.address, token=1234567890123456) as remote,
    ):
        assert remote.name == "linear"


def test_facts_that_no_passport_can_hold_are_refused():
    hello = unpack(pack(describe_decoder(toy_decoder(), {}, 1000, 10)))
    read_description(hello)
    for fact in (np.zeros(2, np.float32), float("nan")):
        with pytest.raises(WireError, match="facts must be plain"):
            read_description({**hello, "facts": {"served": fact}})


def test_entries_of_another_floating_type_are_taken_as_a_local_call_takes_them():
    decoder = lpds.wrap_decoder(
        lambda obs, w: w + obs["state"][:, None],
        obs_shape={"state": (2,)},
        latent_shape=(1, 2),
        action_shape=(1, 2),
        name="dict",
    )
    obs, w = {"state": torch.randn(3, 2, dtype=torch.float64)}, torch.randn(3, 1, 2)
    with served(decoder) as (_, remote):
        assert torch.equal(remote.decode(remote.prepare(obs), w), decoder(obs, w))
