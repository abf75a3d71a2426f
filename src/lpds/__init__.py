"""LP-DS: steer a frozen diffusion or flow policy by a learned, trust-region-bounded shift of its initial noise."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lpds import metrics as metrics
    from lpds.api import Run as Run
    from lpds.api import evaluate as evaluate
    from lpds.api import resume as resume
    from lpds.api import steer as steer
    from lpds.decoders.wrap import wrap_decoder as wrap_decoder
    from lpds.doctor import CheckReport as CheckReport
    from lpds.doctor import check as check
    from lpds.envs.build import make_env as make_env
    from lpds.envs.chunk import ChunkedVectorEnv as ChunkedVectorEnv
    from lpds.errors import DecoderFault as DecoderFault
    from lpds.errors import EnvironmentFault as EnvironmentFault
    from lpds.errors import LpdsError as LpdsError
    from lpds.errors import RunFault as RunFault
    from lpds.evaluation import EvalReport as EvalReport
    from lpds.first_look import LookReport as LookReport
    from lpds.first_look import look as look
    from lpds.policy import SteeredPolicy as SteeredPolicy
    from lpds.policy import load_policy as load_policy
    from lpds.report.compare import CompareReport as CompareReport
    from lpds.report.compare import compare as compare
    from lpds.types import Decoder as Decoder
    from lpds.types import LatentSpec as LatentSpec
    from lpds.zoo import load_decoder as load_decoder

_LAZY = {
    "CheckReport": "lpds.doctor",
    "ChunkedVectorEnv": "lpds.envs.chunk",
    "CompareReport": "lpds.report.compare",
    "Decoder": "lpds.types",
    "DecoderFault": "lpds.errors",
    "EnvironmentFault": "lpds.errors",
    "EvalReport": "lpds.evaluation",
    "LatentSpec": "lpds.types",
    "LookReport": "lpds.first_look",
    "LpdsError": "lpds.errors",
    "Run": "lpds.api",
    "RunFault": "lpds.errors",
    "SteeredPolicy": "lpds.policy",
    "check": "lpds.doctor",
    "compare": "lpds.report.compare",
    "evaluate": "lpds.api",
    "load_decoder": "lpds.zoo",
    "load_policy": "lpds.policy",
    "look": "lpds.first_look",
    "make_env": "lpds.envs.build",
    "resume": "lpds.api",
    "steer": "lpds.api",
    "wrap_decoder": "lpds.decoders.wrap",
}

__all__ = [*sorted(_LAZY), "__version__", "metrics"]

if not TYPE_CHECKING:  # a checker that saw this function would take any name for one of the package's

    def __getattr__(name: str) -> Any:
        if name == "metrics":
            return importlib.import_module("lpds.metrics")
        if name in _LAZY:
            return getattr(importlib.import_module(_LAZY[name]), name)
        raise AttributeError(f"module 'lpds' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
