"""Locally connected layers, which torch has not."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from fastnn import functional


def _of_each(name: str, value: int | tuple[int, ...], rank: int, least: int) -> tuple[int, ...]:
    each = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(each) != rank or min(each) < least:
        raise ValueError(f"{name} must be one number or {rank}, each at least {least}, but got {value}")
    return each


class _LocallyConnected(torch.nn.Module):
    _rank: ClassVar[int]
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: int | tuple[int, ...],
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1:
                raise ValueError(f"{name} must be at least 1, but got {channels}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.input_size = _of_each("input_size", input_size, self._rank, 1)
        self.kernel_size = _of_each("kernel_size", kernel_size, self._rank, 1)
        self.stride = _of_each("stride", stride, self._rank, 1)
        self.padding = _of_each("padding", padding, self._rank, 0)
        self.dilation = _of_each("dilation", dilation, self._rank, 1)
        sizes = zip(self.input_size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        self.output_size = tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes)
        if min(self.output_size) < 1:
            raise ValueError(
                f"kernel_size {self.kernel_size} does not fit input_size {self.input_size} with padding {self.padding} "
                f"and dilation {self.dilation}"
            )
        options = {"device": device, "dtype": dtype}
        shape = (*self.output_size, out_channels, in_channels, *self.kernel_size)
        self.weight = Parameter(torch.empty(shape, **options))
        if bias:
            self.bias = Parameter(torch.empty((out_channels, *self.output_size), **options))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform values in +- 1 / sqrt(fan-in), the fan-in being C times the kernel's size, as convolutions have."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                torch.nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        function = getattr(functional, f"locally_connected{self._rank}d")
        return function(input, self.weight, self.bias, self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        """The arguments, as torch prints a convolution's."""
        text = f"{self.in_channels}, {self.out_channels}, input_size={self.input_size}, kernel_size={self.kernel_size}"
        for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1)):
            value = getattr(self, name)
            if value != (usual,) * self._rank:
                text += f", {name}={value}"
        return text if self.bias is not None else f"{text}, bias=False"


class LocallyConnected1d(_LocallyConnected):
    """:func:`fastnn.functional.locally_connected1d` as a layer: filters and biases of each position's own.

    Args:
        in_channels: C.
        out_channels: K.
        input_size: L: the number of positions, and so that of weights, follows from it.
        kernel_size: R.
        stride: at least 1.
        padding: zeros on each side, at least 0.
        dilation: at least 1.
        bias: whether there is one.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        ``[N, C, L]`` or ``[C, L]`` to ``[N, K, P]`` or ``[K, P]``; weight ``[P, K, C, R]``, bias ``[K, P]``, both at
        first uniform in +- 1 / sqrt(C R).

    Raises:
        ValueError: for sizes below 1, a stride or dilation below 1, a negative padding, or a kernel that does not fit.
    """

    _rank = 1


class LocallyConnected2d(_LocallyConnected):
    """:func:`fastnn.functional.locally_connected2d` as a layer: filters and biases of each position's own.

    Args: as :class:`LocallyConnected1d`, with one number or (height, width) for the sizes.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, K, P, Q]`` or ``[K, P, Q]``; weight ``[P, Q, K, C, R, S]``, bias
        ``[K, P, Q]``, both at first uniform in +- 1 / sqrt(C R S).

    Raises:
        ValueError: as :class:`LocallyConnected1d`.
    """

    _rank = 2
