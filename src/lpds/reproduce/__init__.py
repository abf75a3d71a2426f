"""The paper's figures, made again: runs, measurements, a table and a picture each."""

from __future__ import annotations

from lpds.reproduce.toy import reproduce_toy

__all__ = ["reproduce_toy"]
