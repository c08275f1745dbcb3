"""What a row measures, of activations: behind a sum, and behind a convolution; see :mod:`fastnn.bench.layers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

import fastnn
from fastnn.bench.layers import Conv, Cost, Layer, extent

# FLOPs of an element: of the libraries' functions some twenty, of their derivatives half as many more.
FUNCTION_FLOPS = 20


def _module(activation: str) -> nn.Module:
    modules = {"relu": nn.ReLU, "elu": nn.ELU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}
    return modules[activation]()


class _Ours(nn.Module):
    """``fastnn.functional.activation`` as a layer."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """See the class."""
        return fastnn.functional.activation(input, residual, activation=self.activation)


class _Composed(nn.Module):
    """A sum and an activation of torch's, the second in place where it can be."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.act = _module(activation)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """See the class."""
        return self.act(input if residual is None else input + residual)


@dataclass(frozen=True)
class Activated(Layer):
    """``act(x)`` or ``act(x + residual)`` of [n, c, h, w]."""

    op: ClassVar[str] = "activation"
    # Where z is about 0 a rounding decides whether an element of a ReLU has a gradient.
    amplifies: ClassVar[bool] = True
    n: int
    c: int
    h: int
    w: int
    activation: str = "relu"
    residual: bool = False

    @property
    def case(self) -> str:
        """See the class."""
        return f"{'add ' if self.residual else ''}{self.activation}, {self.c}, {extent(self.h, self.w)}"

    @property
    def kind(self) -> str:
        """See the class."""
        return f"{self.op} {self.activation} {self.residual}"

    @property
    def layouts(self) -> tuple[str, ...]:
        """See the class. The kernels see no layout."""
        return ("contiguous",)

    def make(self) -> nn.Module:
        """See the class."""
        return _Composed(self.activation)

    def fastnn(self, layer: nn.Module) -> nn.Module:
        """See the class."""
        return _Ours(self.activation)

    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the class."""
        size = (self.n, self.c, self.h, self.w)
        return tuple(
            torch.randn(size, device=device, dtype=dtype, requires_grad=True) for _ in range(1 + self.residual)
        )

    def cost(self, direction: str, size: int) -> Cost:
        """See the class. Backward reads its gradient and what was kept, and writes one gradient for both."""
        values = self.n * self.c * self.h * self.w
        flops = values * (1 if self.activation == "relu" else FUNCTION_FLOPS)
        if direction == "backward":
            kept = 2 if self.residual and self.activation in ("gelu", "silu") else 1
            return Cost((2 + kept) * values * size, 3 * flops // 2)
        return Cost((2 + self.residual) * values * size, flops + self.residual * values)

    @property
    def terms(self) -> int:
        """See the class."""
        return 2


@dataclass(frozen=True)
class ConvActivated(Conv):
    """A 2-D convolution with an activation behind it, against the two layers, a ReLU in place."""

    op: ClassVar[str] = "conv2d_act"
    amplifies: ClassVar[bool] = True
    activation: str = "relu"

    @property
    def case(self) -> str:
        """See the class."""
        return f"{self.activation} of {super().case}"

    @property
    def kind(self) -> str:
        """See the class."""
        return f"{super().kind} {self.activation}"

    def make(self) -> nn.Module:
        """See the class."""
        act = nn.ReLU(inplace=True) if self.activation == "relu" else _module(self.activation)
        return nn.Sequential(super().make(), act)

    def fastnn(self, layer: nn.Module) -> nn.Module:
        """See the class."""
        return fastnn.fuse(super().fastnn(layer))
