"""Convolutions of any rank, transposed and locally connected ones: rows by the layers that people use them in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import fastnn
from fastnn.bench.layers import Cost, Layer


def _size(size: tuple[int, ...]) -> str:
    if len(size) > 1 and len(set(size)) == 1:
        return f"{size[0]}{'²' if len(size) == 2 else '³'}"
    return "x".join(map(str, size))


@dataclass(frozen=True)
class ConvOfRank(Layer):
    """A convolution of any rank with a bias; ``depthwise``: a filter a channel; ``transposed``: the other way round."""

    n: int
    c: int
    k: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    depthwise: bool = False
    transposed: bool = False

    @property
    def op(self) -> str:  # type: ignore[override]
        """Layers of one target: those of one rank, all depthwise ones, all transposed ones."""
        return "conv_transpose" if self.transposed else "depthwise" if self.depthwise else f"conv{len(self.size)}d"

    @property
    def case(self) -> str:
        """See the class."""
        group = "depthwise " if self.depthwise else ""
        step = f"/{self.stride}" if self.stride > 1 else ""
        wide = f" dilated {self.dilation}" if self.dilation > 1 else ""
        channels = f"{self.c}" if self.c == self.k else f"{self.c} to {self.k}"
        return f"{group}{'x'.join(map(str, self.kernel))}{step}{wide}, {channels}, {_size(self.size)}"

    @property
    def shape(self) -> dict[str, int]:
        """See the class."""
        axes = dict(zip("dhw"[-len(self.size) :], self.size, strict=True))
        taps = dict(zip("trs"[-len(self.size) :], self.kernel, strict=True))
        return {name: value for name, value in super().shape.items() if name not in ("depthwise", "transposed")} | {
            **axes,
            **taps,
            "groups": self._groups,
        }

    @property
    def layouts(self) -> tuple[str, ...]:
        """See the class. The bench lays out images alone."""
        return super().layouts if len(self.size) == 2 else ("contiguous",)

    @property
    def _groups(self) -> int:
        return self.c if self.depthwise else 1

    @property
    def _out(self) -> tuple[int, ...]:
        reach = [self.dilation * (taps - 1) + 1 for taps in self.kernel]
        if self.transposed:
            return tuple(
                (size - 1) * self.stride - 2 * self.padding + r for size, r in zip(self.size, reach, strict=True)
            )
        return tuple((size + 2 * self.padding - r) // self.stride + 1 for size, r in zip(self.size, reach, strict=True))

    def make(self) -> nn.Module:
        """See the class."""
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self._groups}
        kind = getattr(nn, f"Conv{'Transpose' if self.transposed else ''}{len(self.size)}d")
        return kind(self.c, self.k, self.kernel, **options)

    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the class."""
        return (torch.randn(self.n, self.c, *self.size, device=device, dtype=dtype, requires_grad=True),)

    def cost(self, direction: str, size: int) -> Cost:
        """See the class."""
        x, y = self.n * self.c * math.prod(self.size), self.n * self.k * math.prod(self._out)
        weight = self.c * self.k // self._groups * math.prod(self.kernel)
        windows = math.prod(self.size if self.transposed else self._out)
        flops = 2 * self.n * windows * weight
        if direction == "backward":
            return Cost((y + 2 * x + 2 * weight + self.k) * size, 2 * flops)
        return Cost((x + weight + self.k + y) * size, flops)

    @property
    def terms(self) -> int:
        """See the class."""
        taps = math.prod(self.kernel)
        positions = max(math.prod(self.size), math.prod(self._out))
        return max(max(self.c, self.k) // self._groups * taps, self.n * positions)


class _Unfolded(nn.Module):
    """A locally connected layer of torch's functions: patches by ``unfold``, then a matrix product a position."""

    def __init__(self, layer: fastnn.nn.LocallyConnected2d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(layer.weight.detach()), nn.Parameter(layer.bias.detach())
        self.window: dict[str, Any] = {
            name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")
        }

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        patches = nn.functional.unfold(input, **self.window).permute(2, 1, 0)  # [positions, J, N]
        filters = self.weight.flatten(4).squeeze(-1).flatten(3).flatten(0, 1)  # [positions, K, J]
        y = torch.bmm(filters, patches).permute(2, 1, 0)
        return y.unflatten(2, self.bias.shape[1:]) + self.bias


@dataclass(frozen=True)
class LocallyConnected(Layer):
    """A locally connected layer of two dimensions, beside what torch's users write for it."""

    op: ClassVar[str] = "locally_connected"
    n: int
    c: int
    k: int
    h: int
    r: int
    stride: int = 1
    padding: int = 0

    @property
    def case(self) -> str:
        """See the class."""
        step = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.r}x{self.r}{step}, {self.c} to {self.k}, {self.h}², B{self.n}"

    def _layer(self) -> fastnn.nn.LocallyConnected2d:
        return fastnn.nn.LocallyConnected2d(self.c, self.k, self.h, self.r, self.stride, self.padding)

    def make(self) -> nn.Module:
        """See the class."""
        return _Unfolded(self._layer())

    def fastnn(self, layer: nn.Module) -> nn.Module:
        """See the class."""
        ours = self._layer().to(layer.weight)
        ours.load_state_dict(layer.state_dict())
        return ours

    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the class."""
        return (torch.randn(self.n, self.c, self.h, self.h, device=device, dtype=dtype, requires_grad=True),)

    @property
    def _positions(self) -> int:
        return ((self.h + 2 * self.padding - self.r) // self.stride + 1) ** 2

    def cost(self, direction: str, size: int) -> Cost:
        """See the class."""
        x, y = self.n * self.c * self.h**2, self.n * self.k * self._positions
        weight, bias = self._positions * self.k * self.c * self.r**2, self.k * self._positions
        if direction == "backward":
            return Cost((y + 2 * x + 2 * weight + bias) * size, 4 * self.n * weight)
        return Cost((x + weight + bias + y) * size, 2 * self.n * weight)

    @property
    def terms(self) -> int:
        """See the class."""
        return max(max(self.c, self.k) * self.r**2, self.n)


def convolutions(batch: int) -> list[Layer]:
    """Rows of the ``conv`` suite.

    Args:
        batch: of images; sequences and volumes have batches in proportion.
    """
    few = max(1, batch // 8)

    def transposed(n: int, c: int, k: int, size: tuple[int, ...], kernel: tuple[int, ...], **options: Any) -> Layer:
        return ConvOfRank(n, c, k, size, kernel, transposed=True, **options)

    def depthwise(n: int, c: int, size: tuple[int, ...], kernel: tuple[int, ...], **options: Any) -> Layer:
        return ConvOfRank(n, c, c, size, kernel, depthwise=True, **options)

    return [
        ConvOfRank(batch, 64, 64, (1024,), (3,), padding=1),
        ConvOfRank(batch, 128, 256, (512,), (3,), stride=2, padding=1),
        ConvOfRank(batch, 256, 256, (256,), (1,)),
        ConvOfRank(batch, 64, 64, (1024,), (3,), padding=4, dilation=4),  # of a WaveNet
        ConvOfRank(batch, 1, 128, (4000,), (80,), stride=4),  # first layer over raw audio (Dai et al. 2017)
        ConvOfRank(few, 3, 64, (8, 56, 56), (3, 7, 7), padding=3, stride=2),
        ConvOfRank(few, 64, 64, (8, 28, 28), (3, 3, 3), padding=1),  # of an R3D-18 (Tran et al. 2018)
        ConvOfRank(few, 64, 128, (8, 28, 28), (3, 3, 3), padding=1, stride=2),
        ConvOfRank(few, 128, 128, (4, 14, 14), (3, 3, 3), padding=1),
        ConvOfRank(few, 64, 256, (4, 14, 14), (1, 1, 1)),
        depthwise(batch, 256, (1024,), (3,), padding=1),
        depthwise(batch, 512, (256,), (31,), padding=15),  # of a Conformer (Gulati et al. 2020)
        depthwise(batch, 768, (512,), (4,), padding=3),  # of a Mamba, before its last three are cut off
        depthwise(batch, 96, (56, 56), (3, 3), padding=1),
        depthwise(batch, 192, (28, 28), (3, 3), padding=1, stride=2),
        depthwise(batch, 96, (28, 28), (7, 7), padding=3),  # of a ConvNeXt
        depthwise(few, 64, (8, 28, 28), (3, 3, 3), padding=1),
        depthwise(few, 128, (8, 14, 14), (3, 3, 3), padding=1, stride=2),
        transposed(batch, 64, 32, (512,), (4,), stride=2, padding=1),
        transposed(batch, 512, 256, (4, 4), (4, 4), stride=2, padding=1),  # of a DCGAN (Radford et al. 2016)
        transposed(batch, 256, 128, (8, 8), (4, 4), stride=2, padding=1),
        transposed(batch, 128, 64, (16, 16), (4, 4), stride=2, padding=1),
        transposed(batch, 64, 3, (32, 32), (4, 4), stride=2, padding=1),
        transposed(few, 128, 64, (28, 28), (2, 2), stride=2),  # of a U-Net
        transposed(few, 64, 64, (28, 28), (3, 3), padding=1),  # of a deconvolution network (Noh et al. 2015)
        transposed(few, 32, 16, (4, 14, 14), (2, 2, 2), stride=2),  # of a V-Net
        LocallyConnected(1, 16, 16, 25, 9),  # of DeepFace (Taigman et al. 2014)
        LocallyConnected(batch, 16, 16, 25, 9),
        LocallyConnected(batch, 32, 32, 14, 3, padding=1),
        LocallyConnected(few, 64, 64, 14, 3, stride=2, padding=1),
    ]
