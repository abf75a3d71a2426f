"""A second device where there is none: tensors that are told to be on ``meta`` and hold their numbers on the CPU.

What mixes them with others raises as a GPU would, and so do turning them into arrays and drawing with a generator of the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FAR = torch.device("meta")
CROSSES = {"aten::copy_", "aten::_to_copy", "aten::_index_put_impl_"}
"""Operations that may have their tensors on two devices."""


class FarTensor(torch.Tensor):
    """A tensor of the second device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=FAR
        )
        made.held = held
        return made

    def __repr__(self):
        return f"FarTensor({self.held!r})"

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert a tensor of the second device to numpy")

    def __array__(self, *args, **kwargs):
        raise TypeError("can't convert a tensor of the second device to numpy")

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = FarTensor(self.held.detach().clone())
            if isinstance(self, torch.nn.Parameter):
                copied = torch.nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Simulated(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, device = func._schema.name, kwargs.get("device")
    asked_far = device is not None and torch.device(device).type == FAR.type
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    any_far = any(isinstance(value, FarTensor) for value in tensors)
    if asked_far and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"{name}: a generator of the CPU draws for the second device")
    if any_far and name not in CROSSES:
        near = [value for value in tensors if not isinstance(value, FarTensor) and value.dim()]
        if name.startswith("aten::index") and isinstance(args[0], FarTensor):
            near = [value for value in near if value.is_floating_point()]  # indices may be on the CPU
        if near:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    plain_args, plain = tree_map(_held, args), tree_map(_held, kwargs)
    if device is not None:
        plain["device"] = torch.device("cpu")
    out = func(*plain_args, **plain)
    if func._schema.is_mutable and not name.endswith("_out"):  # in place: the very argument comes back
        written = [
            arg for arg, told in zip(args, func._schema.arguments, strict=False) if told.alias_info and told.alias_info.is_write
        ]
        if not func._schema.returns:
            return None
        if len(func._schema.returns) == 1 and written:
            return written[0]
    far = asked_far if device is not None else isinstance(args[0], FarTensor) if name == "aten::_to_copy" else any_far
    if not far or name == "aten::_local_scalar_dense":
        return out
    return tree_map(lambda value: FarTensor(value) if type(value) is torch.Tensor else value, out)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, FarTensor) else value


@contextmanager
def second_device(patch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Have ``device="cuda"`` of a run mean the second device inside of the block."""
    from torch.optim import adam, optimizer

    import lpds.api
    import lpds.methods.critics

    kinds = [*optimizer._get_fused_kernels_supported_devices(), FAR.type]
    for module in (adam, optimizer):
        if hasattr(module, "_get_fused_kernels_supported_devices"):
            patch.setattr(module, "_get_fused_kernels_supported_devices", lambda: kinds)
    patch.setattr(lpds.api, "best_device", lambda name: FAR.type if name == "cuda" else "cpu")
    made = torch.tensor

    def tensor(data, *args, device=None, **kwargs):  # torch's own makes one of meta without asking the mode
        found = made(data, *args, **kwargs)
        return found if device is None else found.to(device)

    def linear(fan_in, fan_out, generator):  # torch's own first weights are drawn in place, by a kernel that meta has not
        layer, bound = torch.nn.Linear(fan_in, fan_out), 1.0 / math.sqrt(fan_in)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2.0 - 1.0) * bound)
        return layer

    patch.setattr(torch, "tensor", tensor)
    patch.setattr(lpds.methods.critics, "linear", linear)
    with _Simulated():
        yield FAR
