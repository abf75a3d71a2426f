"""Frozen generative policies as functions a = Phi(s, w)."""
