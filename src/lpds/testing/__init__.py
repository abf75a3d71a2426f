"""Conformance tests for a decoder of one's own: ``pytest --pyargs lpds.testing --lpds-decoder REF``.

REF is what :func:`lpds.load_decoder` takes; ``python:my_policy.py:decoder`` is a wrapped function. More options:
``--lpds-decoder-env ID`` (where it acts), ``--lpds-decoder-option KEY=VALUE`` (any number) and ``--lpds-decoder-samples N``.
"""
