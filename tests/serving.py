"""Shared bits of the tests of remote decoders."""

from __future__ import annotations

import contextlib

import pytest
import torch

import lpds
from lpds.decoders import remote as client
from lpds.deploy.decoder_server import DecoderServer

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
def served(decoder, max_kept=256, **options):
    with DecoderServer(decoder, max_kept=max_kept) as server, opened(server.address, **options) as remote:
        yield server, remote


def inputs(decoder, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randn(rows, *decoder.spec.obs_shape, generator=generator)
    return obs, torch.randn(rows, *decoder.spec.latent_shape, generator=generator)
