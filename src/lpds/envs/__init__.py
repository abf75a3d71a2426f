"""Environments, and the one place that knows chunk arithmetic."""
