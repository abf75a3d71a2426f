"""What a block needs of the tensor library's state, and gives back.

The number of threads is part of what makes a result the same twice: a product split in two rounds differently. The default
type is part of what a network is made of: a policy's own file may have set another for all of the process. And what a caller
draws after it has opened a policy is not to hang on that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kept_threads() -> Iterator[None]:
    """Restore the caller's number of threads after a block that sets its own, and its default type: float32 inside."""
    before, default = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_default_dtype(default)


@contextmanager
def kept_random() -> Iterator[None]:
    """Restore the caller's global generator: layers that are about to be overwritten draw first weights from it."""
    with torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def learning() -> Iterator[None]:
    """Let a block learn whatever the caller has turned off, and restore the caller's threads, global generator and modes."""
    with kept_threads(), kept_random(), torch.inference_mode(False):  # which turns gradients on as well
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block on one thread of the tensor library and restore the caller's number."""
    with kept_threads():
        torch.set_num_threads(1)
        yield
