"""What a row measures, of layers that normalise a sample by itself, and of maxout; see :mod:`fastnn.bench.layers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

import fastnn
from fastnn.bench.layers import PARAMETER_BYTES, Cost, Layer, extent


@dataclass(frozen=True)
class _Image(Layer):
    """A layer from [n, c, h, w] to the same."""

    n: int
    c: int
    h: int
    w: int

    @property
    def _size(self) -> tuple[int, ...]:
        return (self.n, self.c, self.h, self.w)

    @property
    def _values(self) -> int:
        return torch.Size(self._size).numel()

    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the class."""
        return (torch.randn(self._size, device=device, dtype=dtype, requires_grad=True),)


@dataclass(frozen=True)
class SampleNorm(_Image):
    """Group norm; with ``groups`` 0 instance norm, with weight and bias as those of style transfer have."""

    op: ClassVar[str] = "group_norm"
    groups: int = 32

    @property
    def case(self) -> str:
        """See the class."""
        kind = f"{self.groups} groups" if self.groups else "instances"
        return f"{kind}, {self.c}, {extent(self.h, self.w)}"

    @property
    def kind(self) -> str:
        """See the class."""
        return f"{self.op} {self.groups > 0}"

    def make(self) -> nn.Module:
        """See the class. Weight and bias are random too."""
        layer = nn.GroupNorm(self.groups, self.c) if self.groups else nn.InstanceNorm2d(self.c, affine=True)
        with torch.no_grad():
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_()
        return layer

    def cost(self, direction: str, size: int) -> Cost:
        """See the class. FLOPs as of batch norm in training; two numbers a group of a sample are kept."""
        statistics = 2 * self.n * (self.groups or self.c)
        if direction == "backward":
            numbers = 3 * self.c + statistics
            return Cost(3 * self._values * size + numbers * PARAMETER_BYTES, 9 * self._values)
        numbers = 2 * self.c + (0 if direction == "inference" else statistics)
        return Cost(2 * self._values * size + numbers * PARAMETER_BYTES, 6 * self._values)

    @property
    def terms(self) -> int:
        """See the class."""
        return self._values // min(self.c, self.n * (self.groups or self.c))


@dataclass(frozen=True)
class ResponseNorm(_Image):
    """Local response norm with the constants of AlexNet."""

    op: ClassVar[str] = "local_response_norm"
    size: int = 5

    @property
    def case(self) -> str:
        """See the class."""
        return f"{self.size} of {self.c}, {extent(self.h, self.w)}"

    def make(self) -> nn.Module:
        """See the class."""
        return nn.LocalResponseNorm(self.size, alpha=1e-4, beta=0.75, k=2.0)

    def cost(self, direction: str, size: int) -> Cost:
        """See the class. A sum of squares, and in backward one more over the window; roots and quotients count one."""
        if direction == "backward":
            return Cost(3 * self._values * size, (3 * self.size + 11) * self._values)
        return Cost(2 * self._values * size, (2 * self.size + 6) * self._values)

    @property
    def terms(self) -> int:
        """See the class."""
        return self.size


class _Composed(nn.Module):
    """Maxout of torch's functions."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return input.unflatten(1, (-1, self.pieces)).max(2)[0]


@dataclass(frozen=True)
class Maxout(_Image):
    """Maxout, against a view and a maximum; ``c`` channels come in."""

    op: ClassVar[str] = "maxout"
    pieces: int = 2

    @property
    def case(self) -> str:
        """See the class."""
        return f"maxout of {self.pieces}, {self.c}, {extent(self.h, self.w)}"

    def make(self) -> nn.Module:
        """See the class."""
        return _Composed(self.pieces)

    def fastnn(self, layer: nn.Module) -> nn.Module:
        """See the class."""
        return fastnn.nn.Maxout(self.pieces)

    def cost(self, direction: str, size: int) -> Cost:
        """See the class. The place of a maximum is a byte."""
        outputs = self._values // self.pieces
        if direction == "backward":
            return Cost((outputs + self._values) * size + outputs, outputs)
        places = 0 if direction == "inference" else outputs
        return Cost((self._values + outputs) * size + places, outputs * (self.pieces - 1))

    @property
    def terms(self) -> int:
        """See the class."""
        return self.pieces
