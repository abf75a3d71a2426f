"""Figures and one self-contained HTML page from run folders. Reads files only and knows no method."""

from __future__ import annotations

from lpds.report.html import write_figures, write_report

__all__ = ["write_figures", "write_report"]
