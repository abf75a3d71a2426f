"""The options of the conformance tests. Pytest loads this file wherever lpds is installed, so it imports nothing else."""

from __future__ import annotations

import pytest

SHORT = ("--decoder", "--decoder-env", "--decoder-option", "--decoder-samples")
"""Other names of the options, where these tests are asked for."""


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(args: list[str]) -> None:
    """Take the short names beside ``lpds.testing`` and nowhere else: another project's tests may have a ``--decoder``."""
    if any(word.partition("::")[0].split(".")[:2] == ["lpds", "testing"] for word in args):
        args[:] = [f"--lpds-{word[2:]}" if word.partition("=")[0] in SHORT else word for word in args]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of ``pytest --pyargs lpds.testing``."""
    group = parser.getgroup("lpds", "conformance of a decoder (pytest --pyargs lpds.testing)")
    group.addoption("--lpds-decoder", metavar="REF", help="what lpds.load_decoder takes: a zoo name, python:FILE.py:NAME ...")
    group.addoption("--lpds-decoder-env", metavar="ID", help="environment in which it acts (default: what its card says)")
    group.addoption("--lpds-decoder-option", metavar="KEY=VALUE", action="append", default=[], help="an option of load_decoder")
    group.addoption("--lpds-decoder-samples", metavar="N", type=int, help="states to probe with (default: as lpds check)")
