"""Everything mutable of a learning rule in one place, so that a checkpoint of it is exact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lpds.errors import LpdsError


def adam(module: nn.Module, lr: float, *, without: nn.Module | None = None) -> torch.optim.Adam:
    """Fused Adam over a module, or what of it is not in another one, with torch's default moments."""
    left_out = set() if without is None else {id(parameter) for parameter in without.parameters()}
    return torch.optim.Adam([p for p in module.parameters() if id(p) not in left_out], lr=lr, fused=True)


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One gradient step."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


class LearnerState:
    """Named modules, optimisers and scalars of a method, saved and restored together."""

    def __init__(self) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.optimisers: dict[str, torch.optim.Adam] = {}
        self.scalars: dict[str, Tensor] = {}
        """Updated in place."""

    def tensors(self) -> dict[str, Tensor]:
        """A flat dict of detached copies of every value."""
        return {name: value.detach().clone().contiguous() for name, value in self._named()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`tensors` gave, in place.

        Raises:
            LpdsError: a value is missing or of another shape.
        """
        for name, value in self._named():
            if name not in tensors or tensors[name].shape != value.shape:
                found = list(tensors[name].shape) if name in tensors else "nothing"
                raise LpdsError(f"the checkpoint has {found} for {name!r}, expected {list(value.shape)}")
            with torch.no_grad():
                value.copy_(tensors[name])

    def _named(self) -> Iterable[tuple[str, Tensor]]:
        for name, module in self.modules.items():
            yield from ((f"{name}.{key}", value) for key, value in module.state_dict(keep_vars=True).items())
        for name, optimiser in self.optimisers.items():
            for index, parameter in enumerate(optimiser.param_groups[0]["params"]):
                moments = optimiser.state[parameter]
                if not moments:  # as Adam itself would start them at its first step
                    moments["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    moments["exp_avg"] = torch.zeros_like(parameter)
                    moments["exp_avg_sq"] = torch.zeros_like(parameter)
                yield from ((f"adam.{name}.{index}.{key}", moments[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
        yield from self.scalars.items()
