"""The denoising network of DPPO's state policies, as a module to train and as folded tensors to sample from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpds.errors import LpdsError
from lpds.threads import one_thread

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "mish": nn.Mish}


def sinusoid(t: Tensor, size: int) -> Tensor:
    """Embed times [K] as [K, size]: all sines, then all cosines, of t * exp(-i ln(10000) / (size/2 - 1))."""
    half = size // 2
    frequency = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    angle = t.to(torch.float32)[:, None] * frequency.to(t.device)[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


@dataclass(frozen=True)
class NetworkShape:
    """Sizes of a :class:`DenoisingMLP`; all of them can be read from its weights but the activation."""

    obs_size: int
    chunk_size: int
    """H * L, flattened step-major."""
    width: int
    blocks: int = 1
    """Residual blocks of two linear layers; DPPO's three equal widths are one block."""
    time_size: int = 16
    activation: str = "relu"
    cond_sizes: tuple[int, ...] = ()
    """Widths of the observation encoder (DPPO's ``cond_mlp``), for instance (512, 64); empty for none."""

    @property
    def cond_size(self) -> int:
        """Length of what enters the network for the state."""
        return self.cond_sizes[-1] if self.cond_sizes else self.obs_size


class _Block(nn.Module):
    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.l1 = nn.Linear(width, width)
        self.l2 = nn.Linear(width, width)
        self.act = activation()

    def forward(self, h: Tensor) -> Tensor:
        """Pre-activation residual step h + l2(act(l1(act(h))))."""
        out: Tensor = h + self.l2(self.act(self.l1(self.act(h))))
        return out


class _Layers(nn.Module):
    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class _Linear1(nn.Module):
    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(fan_in, fan_out)


class _ModuleList(nn.Module):
    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.moduleList = nn.ModuleList([_Linear1(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)])

    def forward(self, x: Tensor) -> Tensor:
        """Linear layers with Mish between them and nothing at the end."""
        for index, layer in enumerate(self.moduleList):
            x = layer.get_submodule("linear_1")(x if index == 0 else F.mish(x))
        return x


class DenoisingMLP(nn.Module):
    """Residual MLP over (noisy chunk, time embedding, state), with DPPO's parameter names."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        activation = ACTIVATIONS[shape.activation]
        time = shape.time_size
        self.time_embedding = nn.Sequential(nn.Identity(), nn.Linear(time, 2 * time), nn.Mish(), nn.Linear(2 * time, time))
        inputs = shape.chunk_size + time + shape.cond_size
        self.mlp_mean = _Layers(
            [
                nn.Linear(inputs, shape.width),
                *[_Block(shape.width, activation) for _ in range(shape.blocks)],
                nn.Linear(shape.width, shape.chunk_size),
            ]
        )
        self.cond_mlp = _ModuleList((shape.obs_size, *shape.cond_sizes)) if shape.cond_sizes else None

    def embed_time(self, t: Tensor) -> Tensor:
        """Times [K] to [K, time_size]."""
        out: Tensor = self.time_embedding(sinusoid(t, self.shape.time_size))
        return out

    def encode(self, obs: Tensor) -> Tensor:
        """Normalised observations [B, O] to what enters the network [B, cond_size]."""
        if self.cond_mlp is None:
            return obs
        out: Tensor = self.cond_mlp(obs)
        return out

    def forward(self, x: Tensor, t: Tensor, obs: Tensor) -> Tensor:
        """Predict for flat chunks [B, H * L] at times [B], or [1] for all of them, and normalised observations [B, O]."""
        h = torch.cat([x, self.embed_time(t).expand(len(x), -1), self.encode(obs)], dim=1)
        for layer in self.mlp_mean.layers:
            h = layer(h)
        return h


def shape_of(weights: Mapping[str, Tensor], activation: str) -> NetworkShape:
    """Read the sizes of a :class:`DenoisingMLP` from its weights.

    Raises:
        LpdsError: the weights are of another network; the message says what was found.
    """
    if activation not in ACTIVATIONS:
        raise LpdsError(f"unknown activation {activation!r} (choices: {', '.join(sorted(ACTIVATIONS))})")
    try:
        width, inputs = weights["mlp_mean.layers.0.weight"].shape
        blocks = sum(1 for key in weights if key.endswith(".l1.weight"))
        chunk = weights[f"mlp_mean.layers.{blocks + 1}.weight"].shape[0]
        time = weights["time_embedding.3.weight"].shape[0]
    except KeyError as missing:
        raise LpdsError(
            f"no weight {missing} among {len(weights)} (first: {sorted(weights)[:3]}); "
            "expected a residual MLP policy over a state, as DPPO saves it"
        ) from None
    cond: tuple[int, ...] = ()
    obs = inputs - chunk - time
    count = sum(1 for key in weights if key.startswith("cond_mlp.") and key.endswith(".weight"))
    if count:
        layers = [weights[f"cond_mlp.moduleList.{index}.linear_1.weight"] for index in range(count)]
        cond = tuple(int(layer.shape[0]) for layer in layers)
        obs = layers[0].shape[1]
    return NetworkShape(int(obs), int(chunk), int(width), blocks, int(time), activation, cond)


@dataclass(frozen=True)
class FoldedStep:
    """Tensors of one sampling step ``y = x_factor * x + out_factor * net(x, t, s)``, everything linear folded."""

    time_bias: Tensor
    """[W], what the time embedding and the input bias add to the first hidden layer."""
    x_out: Tensor
    """[C, C], x's direct way to y: its own factor plus the way through the linear skip path."""
    hidden_out: Tensor
    """[W, C], from the last block's inner activation to y; the block's second layer is folded in."""
    skip_out: Tensor
    """[W, C], from the residual stream to y where it is not linear in x (two blocks or more)."""
    bias_out: Tensor
    """[C]."""


def bf16_in_hardware(device: torch.device) -> bool:
    """Whether bfloat16 products are fast there: AVX-512 BF16, AMX, a GPU since Ampere. Else they take six times as long."""
    if device.type == "cuda":
        return bool(torch.cuda.get_device_capability(device) >= (8, 0))
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, probe, bool)() for probe in probes)


class FoldedNetwork:
    """A :class:`DenoisingMLP` prepared for sampling at fixed times.

    Three savings, none of which changes the function beyond rounding (folded in float64):

    - the last block's second layer and the output layer are both linear, so their product is one [W, C] matrix and
      one of the two [W, W] products of a block vanishes;
    - what depends on the state alone, and on the step alone, is computed once (:meth:`prepare`);
    - the sampler's own linear step is folded into the last product.
    """

    @one_thread()
    def __init__(
        self,
        net: DenoisingMLP,
        times: Tensor,
        x_factors: Sequence[float],
        out_factors: Sequence[float],
        *,
        bf16: bool = False,
    ) -> None:
        shape = net.shape
        self.shape, self._net = shape, net
        self._relu = shape.activation == "relu"
        weights = {key: value.detach().double() for key, value in net.state_dict().items()}
        self._inner: list[tuple[Tensor, ...]] = []
        for block in range(1, shape.blocks + 1):
            l1, l2 = (weights[f"mlp_mean.layers.{block}.{layer}.weight"] for layer in ("l1", "l2"))
            b1, b2 = (weights[f"mlp_mean.layers.{block}.{layer}.bias"] for layer in ("l1", "l2"))
            self._inner.append(tuple(v.t().contiguous().float() if v.dim() == 2 else v.float() for v in (l1, b1, l2, b2)))
        w_in, b_in = weights["mlp_mean.layers.0.weight"], weights["mlp_mean.layers.0.bias"]
        w_x, w_t, w_s = w_in.split([shape.chunk_size, shape.time_size, shape.cond_size], dim=1)
        w_out = weights[f"mlp_mean.layers.{shape.blocks + 1}.weight"]
        b_out = weights[f"mlp_mean.layers.{shape.blocks + 1}.bias"]
        w_last = weights[f"mlp_mean.layers.{shape.blocks}.l2.weight"]
        b_last = weights[f"mlp_mean.layers.{shape.blocks}.l2.bias"]
        self._single = shape.blocks == 1
        self._x_in = w_x.t().contiguous().float()
        self._state_in = w_s.t().contiguous().float()
        self._state_out = (w_out @ w_s).t().contiguous().float()
        with torch.no_grad():
            embedded = net.embed_time(times).double()
        identity = torch.eye(shape.chunk_size, dtype=torch.float64)
        self.out_factors = [float(factor) for factor in out_factors]
        self.steps: list[FoldedStep] = []
        for index, (a, b) in enumerate(zip(x_factors, out_factors, strict=True)):
            time_bias = w_t @ embedded[index] + b_in
            bias = w_out @ b_last + b_out
            x_out = a * identity
            if self._single:  # the residual stream is linear in x, the step and the state
                bias = bias + w_out @ time_bias
                x_out = x_out + b * (w_out @ w_x).t()
            self.steps.append(
                FoldedStep(
                    time_bias.float(),
                    x_out.contiguous().float(),
                    (b * (w_out @ w_last).t()).contiguous().float(),
                    (b * w_out.t()).contiguous().float(),
                    (b * bias).float(),
                )
            )
        self._wants_bf16 = bf16
        self._widen(torch.device("cpu"))

    def _widen(self, device: torch.device) -> None:
        """Have the large products in bfloat16 where that is wanted and fast."""
        self._bf16 = self._wants_bf16 and bf16_in_hardware(device)
        self._wide = [inner[0].bfloat16() if self._bf16 else inner[0] for inner in self._inner]

    def to(self, device: torch.device) -> None:
        """Move every tensor to a device, in place."""
        self._net.to(device)
        self._inner = [tuple(value.to(device) for value in inner) for inner in self._inner]
        self._widen(device)
        self._x_in, self._state_in = self._x_in.to(device), self._state_in.to(device)
        self._state_out = self._state_out.to(device)
        self.steps = [
            FoldedStep(*(getattr(step, name).to(device) for name in FoldedStep.__dataclass_fields__)) for step in self.steps
        ]

    def prepare(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Hoist the state's part: normalised [B, O] to ([B, W] for the first layer, [B, C] for the output)."""
        cond = self._net.encode(obs)
        return cond @ self._state_in, cond @ self._state_out

    def step(self, index: int, context: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        """``x_factor * x + out_factor * net(x, t, s)`` for flat chunks [B, C] at step ``index``."""
        step = self.steps[index]
        h = torch.addmm(context[0] + step.time_bias, x, self._x_in)
        y = torch.addmm(step.bias_out, x, step.x_out)
        if self._single:
            y = y.add_(context[1], alpha=self.out_factors[index])
            # h is needed no more: the activation may overwrite it
            inner = self._product(0, F.relu_(h) if self._relu else F.mish(h))
        else:
            for block in range(self.shape.blocks - 1):
                hidden = self._activate(self._product(block, self._activate(h)))
                h = h + torch.addmm(self._inner[block][3], hidden, self._inner[block][2])
            y = torch.addmm(y, h, step.skip_out)
            inner = self._product(self.shape.blocks - 1, self._activate(h))
        inner = F.relu_(inner) if self._relu else F.mish(inner)
        return torch.addmm(y, inner, step.hidden_out)

    def _activate(self, h: Tensor) -> Tensor:
        return F.relu(h) if self._relu else F.mish(h)

    def _product(self, block: int, h: Tensor) -> Tensor:
        if self._bf16:
            return (h.bfloat16() @ self._wide[block]).float() + self._inner[block][1]
        return torch.addmm(self._inner[block][1], h, self._wide[block])
