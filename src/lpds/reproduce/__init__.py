"""The paper's figures, and what came out here beside what the paper says."""

from __future__ import annotations

from lpds.reproduce.grids import REPRODUCTIONS, reproduce
from lpds.reproduce.toy import reproduce_toy

__all__ = ["REPRODUCTIONS", "reproduce", "reproduce_toy"]
