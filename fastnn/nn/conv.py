"""Convolution layers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fastnn import functional


def _padded(layer: torch.nn.modules.conv._ConvNd, input: Tensor) -> tuple[Tensor, str | int | tuple[int, ...]]:
    """The input of a layer and the padding that is left to do, which modes other than ``'zeros'`` do beforehand."""
    if layer.padding_mode == "zeros":
        return input, layer.padding
    return torch.nn.functional.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0


_FUNCTIONS = ("conv1d", "conv2d", "conv3d")


def convolve(
    layer: torch.nn.modules.conv._ConvNd,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str = "identity",
    alpha: float | None = None,
) -> Tensor:
    """The function of a layer's rank with its options, weights that need not be its own, and an activation."""
    input, padding = _padded(layer, input)
    function = _FUNCTIONS[len(layer.kernel_size) - 1]
    options = (layer.stride, padding, layer.dilation, layer.groups)
    if activation == "identity":
        return getattr(functional, function)(input, weight, bias, *options)
    activated = getattr(functional, f"{function}_relu")
    return activated(input, weight, bias, *options, activation=activation, alpha=alpha)


class _Convolution(torch.nn.modules.conv._ConvNd):
    """The one method that the three layers replace."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(self, input, weight, bias)


class Conv1d(_Convolution, torch.nn.Conv1d):
    """``torch.nn.Conv1d`` computed by :func:`fastnn.functional.conv1d`; see :class:`Conv2d`.

    Shape:
        ``[N, C, L]`` or ``[C, L]`` to ``[N, K, P]`` or ``[K, P]``.
    """


class Conv2d(_Convolution, torch.nn.Conv2d):
    """``torch.nn.Conv2d`` computed by :func:`fastnn.functional.conv2d`.

    Arguments, parameters, ``state_dict`` and errors are torch's. Every ``padding_mode`` is taken; those other
    than ``'zeros'`` pad with ``torch.nn.functional.pad`` first, as torch's layer does.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, K, P, Q]`` or ``[K, P, Q]``.
    """


class Conv3d(_Convolution, torch.nn.Conv3d):
    """``torch.nn.Conv3d`` computed by :func:`fastnn.functional.conv3d`; see :class:`Conv2d`.

    Shape:
        ``[N, C, D, H, W]`` or ``[C, D, H, W]`` to ``[N, K, O, P, Q]`` or ``[K, O, P, Q]``.
    """


class _Transposed(torch.nn.modules.conv._ConvTransposeNd):
    """The one method that the three layers replace: torch's finds ``output_padding`` from ``output_size``."""

    _function: ClassVar[str]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """See the class."""
        if self.padding_mode != "zeros":
            name = self._function.replace("conv_transpose", "ConvTranspose")
            raise ValueError(f"Only `zeros` padding mode is supported for {name}, but got {self.padding_mode!r}")
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,
            self.padding,
            self.kernel_size,
            len(self.kernel_size),
            self.dilation,
        )
        return getattr(functional, self._function)(
            input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation
        )


class ConvTranspose1d(_Transposed, torch.nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` computed by :func:`fastnn.functional.conv_transpose1d`, else unchanged.

    Shape:
        ``[N, C, L]`` or ``[C, L]`` to ``[N, K, I]`` or ``[K, I]``; ``output_size``, a second argument, chooses I
        among the sizes that the convolution maps to L.
    """

    _function = "conv_transpose1d"


class ConvTranspose2d(_Transposed, torch.nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` computed by :func:`fastnn.functional.conv_transpose2d`, else unchanged.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, K, I, J]`` or ``[K, I, J]``; ``output_size``, a second argument,
        chooses I and J among the sizes that the convolution maps to H and W.
    """

    _function = "conv_transpose2d"


class ConvTranspose3d(_Transposed, torch.nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d`` computed by :func:`fastnn.functional.conv_transpose3d`, else unchanged.

    Shape:
        ``[N, C, D, H, W]`` or ``[C, D, H, W]`` to ``[N, K, O, I, J]`` or ``[K, O, I, J]``; ``output_size``, a second
        argument, chooses O, I and J among the sizes that the convolution maps to D, H and W.
    """

    _function = "conv_transpose3d"


class LazyConv1d(torch.nn.LazyConv1d, Conv1d):
    """``torch.nn.LazyConv1d`` that becomes fastnn's :class:`Conv1d` at its first input."""

    cls_to_become = Conv1d


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):
    """``torch.nn.LazyConv2d`` that becomes fastnn's :class:`Conv2d` at its first input."""

    cls_to_become = Conv2d


class LazyConv3d(torch.nn.LazyConv3d, Conv3d):
    """``torch.nn.LazyConv3d`` that becomes fastnn's :class:`Conv3d` at its first input."""

    cls_to_become = Conv3d


class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d, ConvTranspose1d):
    """``torch.nn.LazyConvTranspose1d`` that becomes fastnn's :class:`ConvTranspose1d` at its first input."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):
    """``torch.nn.LazyConvTranspose2d`` that becomes fastnn's :class:`ConvTranspose2d` at its first input."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(torch.nn.LazyConvTranspose3d, ConvTranspose3d):
    """``torch.nn.LazyConvTranspose3d`` that becomes fastnn's :class:`ConvTranspose3d` at its first input."""

    cls_to_become = ConvTranspose3d
