"""What a block needs of the tensor library's state, and gives back.

The number of threads is part of what makes a result the same twice: a product split in two rounds differently. The default
type and the default device are part of what a network is made of: a policy's own file, or a caller, may have set others for
all of the process. And what a caller draws after it has opened a policy is not to hang on that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress

import torch
from torch.backends import cudnn


@contextmanager
def kept_defaults() -> Iterator[None]:
    """Restore the caller's number of threads, default type and default device: float32 on the CPU inside of the block.

    On a GPU convolutions are done by kernels that give the same numbers twice.
    """
    before, default, device = torch.get_num_threads(), torch.get_default_dtype(), torch.get_default_device()
    chosen = cudnn.deterministic, cudnn.benchmark
    torch.set_default_dtype(torch.float32)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with torch.device("cpu") if device.type != "cpu" else nullcontext():  # which slows every call down
            yield
    finally:
        torch.set_num_threads(before)
        torch.set_default_dtype(default)
        cudnn.deterministic, cudnn.benchmark = chosen
        use_default_device(device)


def use_default_device(device: torch.device) -> None:
    """Like torch's own, which would slow every call down for a device that is the default anyhow."""
    if torch.get_default_device() != device:
        torch.set_default_device(None if device.type == "cpu" else device)


@contextmanager
def kept_random() -> Iterator[None]:
    """Restore the caller's global generator: layers that are about to be overwritten draw first weights from it."""
    with torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def learning() -> Iterator[None]:
    """Let a block learn whatever the caller has turned off, and restore the caller's threads, global generator and modes."""
    with kept_defaults(), kept_random(), torch.inference_mode(False):  # which turns gradients on as well
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block on one thread of the tensor library and restore the caller's number."""
    with kept_defaults():
        torch.set_num_threads(1)
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """The same, and convolutions of a GPU in float32: TF32, torch's default, is no rounding that another device shares."""
    with one_thread(), ExitStack() as switches:
        with suppress(RuntimeError):  # a caller who mixes torch's old switches of TF32 with its new ones is left alone
            switches.enter_context(cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False))
        yield
