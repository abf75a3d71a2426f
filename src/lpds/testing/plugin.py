"""The options of the conformance tests. Pytest loads this file wherever lpds is installed, so it imports nothing else."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of ``pytest --pyargs lpds.testing``."""
    group = parser.getgroup("lpds", "conformance of a decoder (pytest --pyargs lpds.testing)")
    group.addoption("--lpds-decoder", metavar="REF", help="what lpds.load_decoder takes: a zoo name, python:FILE.py:NAME ...")
    group.addoption("--lpds-decoder-env", metavar="ID", help="environment in which it acts (default: what its card says)")
    group.addoption("--lpds-decoder-option", metavar="KEY=VALUE", action="append", default=[], help="an option of load_decoder")
    group.addoption("--lpds-decoder-samples", metavar="N", type=int, help="states to probe with (default: as lpds check)")
