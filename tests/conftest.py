"""Shared fixtures: where the reference numbers are, small decoders, and what a good error looks like.

Reference numbers lie in ``tests/golden``; the larger ones are looked up in the folder that the environment variable
LPDS_GOLDEN names (by default ``../shared/golden`` beside the repository), and tests that need those skip without it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from lpds.decoders.base import MinMaxNormaliser
from lpds.decoders.diffusion import DiffusionDecoder, DiffusionSampler
from lpds.decoders.flow import FlowDecoder, FlowSampler
from lpds.decoders.network import DenoisingMLP, NetworkShape
from lpds.errors import LpdsError
from lpds.types import LatentSpec

COMMITTED = Path(__file__).parent / "golden"
BESIDE = Path(__file__).parents[2] / "shared" / "golden"

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """``golden(name)`` is the folder of some reference numbers; the test skips where they are not to be had."""

    def find(name: str) -> Path:
        outside = Path(os.environ.get("LPDS_GOLDEN") or BESIDE)
        for root in (COMMITTED, outside):
            if (root / name).is_dir():
                return root / name
        pytest.skip(f"reference numbers {name!r} are neither in tests/golden nor in {outside}; set LPDS_GOLDEN to their folder")

    return find


@pytest.fixture(scope="session")
def golden_outside() -> Path | None:
    """The folder with all reference numbers, or ``None``."""
    outside = Path(os.environ.get("LPDS_GOLDEN") or BESIDE)
    return outside if outside.is_dir() else None


@pytest.fixture
def refused() -> Callable[..., AbstractContextManager[None]]:
    """``with refused(*fragments)``: an error of one line, made for the user, that says every fragment."""

    @contextmanager
    def check(*fragments: str) -> Iterator[None]:
        with pytest.raises(LpdsError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        for fragment in fragments:
            assert fragment in message, f"{fragment!r} is not said in: {message}"

    return check


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as Python has it: a shell starts what it puts in the background with SIGINT ignored, and Python leaves that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


OBS, HORIZON, ACTIONS = 5, 3, 2


@pytest.fixture(scope="session")
def make_net() -> Callable[..., DenoisingMLP]:
    """A random network for 5 observations and 3 x 2 chunks whose output is about 0.8 x plus something nonlinear.

    (An untrained network predicts almost nothing, every clean estimate hits the clip, and a test would see constants.)
    """

    def make(*, seed: int = 0, **changes: object) -> DenoisingMLP:
        sizes: dict[str, object] = {"obs_size": OBS, "chunk_size": HORIZON * ACTIONS, "width": 32, **changes}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = DenoisingMLP(NetworkShape(**sizes))  # type: ignore[arg-type]
        with torch.no_grad():
            first, last = net.mlp_mean.layers[0].weight, net.mlp_mean.layers[-1].weight
            last += 0.8 * torch.linalg.pinv(first[:, : net.shape.chunk_size])
        return net

    return make


@pytest.fixture(scope="session")
def normaliser() -> MinMaxNormaliser:
    """Lopsided ranges, so that no axis can be mistaken for another."""
    return MinMaxNormaliser(
        obs_min=torch.linspace(-2.0, 0.5, OBS),
        obs_max=torch.linspace(1.0, 3.0, OBS),
        action_min=torch.tensor([-0.5, -3.0]),
        action_max=torch.tensor([1.5, 1.0]),
    )


@pytest.fixture(scope="session")
def make_diffusion(make_net: Callable[..., DenoisingMLP], normaliser: MinMaxNormaliser) -> Callable[..., DiffusionDecoder]:
    """A small DDIM decoder; ``sampler`` and ``net`` may be given."""

    def make(net: DenoisingMLP | None = None, sampler: DiffusionSampler | None = None, **options: object) -> DiffusionDecoder:
        chosen: dict[str, object] = {
            "normaliser": normaliser,
            "spec": LatentSpec((OBS,), (HORIZON, ACTIONS), (HORIZON, ACTIONS)),
            "name": "small",
            **options,
        }
        return DiffusionDecoder(net or make_net(), sampler=sampler or DiffusionSampler(), **chosen)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def make_flow(make_net: Callable[..., DenoisingMLP], normaliser: MinMaxNormaliser) -> Callable[..., FlowDecoder]:
    """A small flow decoder; ``sampler`` and ``net`` may be given."""

    def make(net: DenoisingMLP | None = None, sampler: FlowSampler | None = None, **options: object) -> FlowDecoder:
        chosen: dict[str, object] = {
            "normaliser": normaliser,
            "spec": LatentSpec((OBS,), (HORIZON, ACTIONS), (HORIZON, ACTIONS)),
            "name": "small",
            **options,
        }
        return FlowDecoder(net or make_net(), sampler=sampler or FlowSampler(), **chosen)  # type: ignore[arg-type]

    return make


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Raw observations [17, 5] and noises [17, 3, 2] for the small decoders."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(17, OBS, generator=generator), torch.randn(17, HORIZON, ACTIONS, generator=generator)
