"""A server that is lost: found again, given up, or the end of a run that can be resumed to the bit."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import numpy as np
import pytest
import torch
from scripted import TINY, comparable, toy_decoder
from serving import inputs, opened, quick, served  # noqa: F401 - quick is a fixture

import lpds
from lpds.decoders import remote as client
from lpds.deploy.decoder_server import DecoderServer
from lpds.errors import DecoderFault


def test_a_server_that_comes_back_is_found_again_and_another_decoder_is_not_taken_for_it(caplog):
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
        away, back = (record.getMessage() for record in caplog.records)  # who waits is told once, and once when it is over
        assert "is away (connection refused): 4 more tries" in away
        assert "is back after" in back
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


class Stalling:
    """Stands between: hands bytes on both ways until it is told to take no more of the client's."""

    def __init__(self, address):
        self.stalled, self._server = threading.Event(), int(address.rsplit(":", 1)[1])
        self._door = socket.create_server(("127.0.0.1", 0))
        self._ends = [self._door]
        self.address = f"ws://127.0.0.1:{self._door.getsockname()[1]}"
        threading.Thread(target=self._welcome, daemon=True).start()

    def _welcome(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._door.accept()
                near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                far = socket.create_connection(("127.0.0.1", self._server))
                self._ends += [near, far]
                for source, sink, stops in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._carry, args=(source, sink, stops), daemon=True).start()

    def _carry(self, source, sink, stops):
        with contextlib.suppress(OSError):
            while True:
                while stops and self.stalled.is_set():
                    time.sleep(0.01)
                part = source.recv(1 << 16)
                if not part:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(part)

    def close(self):
        for end in self._ends:
            end.close()


def test_a_server_that_takes_no_more_bytes_in_the_middle_of_a_request_is_given_up():
    """A send without a deadline once held a run for ever, and neither timeout nor retries applied."""
    decoder = lpds.wrap_decoder(lambda obs, w: w, obs_shape=(200_000,), latent_shape=(1, 2), action_shape=(1, 2), name="large")
    obs, w = inputs(decoder, 20)  # 16 MB
    with DecoderServer(decoder) as server:
        between = Stalling(server.address)
        with contextlib.closing(between), opened(between.address, timeout=0.5, retries=1) as remote:
            assert torch.equal(remote(obs, w), w)
            between.stalled.set()
            faults: list[BaseException] = []

            def ask():
                try:
                    remote(obs, w)
                except BaseException as error:  # told to the thread that waits
                    faults.append(error)

            asking = threading.Thread(target=ask, daemon=True)  # one that hangs must not hang the test
            asking.start()
            asking.join(20.0)
            stuck = asking.is_alive()
            if stuck:
                between.close()  # or nothing could close the connection
            assert not stuck
            with pytest.raises(DecoderFault, match="was lost"):
                raise faults[0]
            between.stalled.clear()
            assert torch.equal(remote(obs, w), w)


def test_a_request_that_was_given_up_is_not_decoded_for_those_who_wait_behind_it():
    hold, entered, decoded = threading.Event(), threading.Event(), []

    def slow(obs, w):
        decoded.append(len(w))
        entered.set()
        hold.wait(10)
        return w

    hold.set()
    decoder = lpds.wrap_decoder(slow, obs_shape=(2,), latent_shape=(1, 2), action_shape=(1, 2), name="slow")
    with served(decoder, timeout=0.2, retries=3) as (server, remote), opened(server.address) as patient:
        hold.clear()
        decoded.clear()
        with pytest.raises(DecoderFault, match="was lost"):
            remote(*inputs(decoder, 3))
        waiting = threading.Thread(target=lambda: patient(*inputs(decoder, 5)))
        waiting.start()
        time.sleep(0.2)
        hold.set()
        waiting.join(10)
    assert decoded == [3, 5]


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
    monkeypatch.setattr("lpds.session._write_report", lambda *given: None)  # pictures are slow
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
    # lanes collect, 16 rows are a TD update, 32 its distillation (the first few fit critics), 20 an evaluation, more a metric
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
