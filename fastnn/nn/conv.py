"""Convolution layers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnn import functional


def convolve(
    layer: torch.nn.Conv2d,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str = "identity",
    alpha: float | None = None,
) -> Tensor:
    """:func:`fastnn.functional.conv2d_relu` with a layer's options, and weights that need not be its own."""
    padding = layer.padding
    if layer.padding_mode != "zeros":
        input = torch.nn.functional.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    options = (layer.stride, padding, layer.dilation, layer.groups)
    if activation == "identity":
        return functional.conv2d(input, weight, bias, *options)
    return functional.conv2d_relu(input, weight, bias, *options, activation=activation, alpha=alpha)


class Conv2d(torch.nn.Conv2d):
    """``torch.nn.Conv2d`` computed by :func:`fastnn.functional.conv2d`.

    Arguments, parameters, ``state_dict`` and errors are torch's. Every ``padding_mode`` is taken; those other
    than ``'zeros'`` pad with ``torch.nn.functional.pad`` first, as torch's layer does.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, K, P, Q]`` or ``[K, P, Q]``.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(self, input, weight, bias)


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):
    """``torch.nn.LazyConv2d`` that becomes a :class:`fastnn.nn.Conv2d` when it sees its first input."""

    cls_to_become = Conv2d
