"""Conformance tests for a decoder of one's own: ``pytest --pyargs lpds.testing --decoder REF``.

REF is what :func:`lpds.load_decoder` takes; ``python:my_policy.py:decoder`` is a wrapped function. More options:
``--decoder-env ID`` (where it acts), ``--decoder-option KEY=VALUE`` (any number) and ``--decoder-samples N``.
"""
