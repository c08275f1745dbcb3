"""What several networks are built from."""

from __future__ import annotations

from typing import Any

from torch import nn


def conv_norm_relu(
    layers: Any, channels: int, filters: int, size: int, stride: int = 1, groups: int = 1, relu: str = "ReLU"
) -> nn.Sequential:
    """A convolution that keeps the size (divided by the stride), without bias; batch norm; the nonlinearity.

    Args:
        layers: namespace of layers, ``fastnn.nn`` or ``torch.nn``.
        channels: of the input.
        filters: of the convolution.
        size: of the filters, odd.
        stride: of the convolution.
        groups: of the convolution.
        relu: the nonlinearity's name in the namespace.
    """
    return layers.Sequential(
        layers.Conv2d(channels, filters, size, stride, size // 2, groups=groups, bias=False),
        layers.BatchNorm2d(filters),
        getattr(layers, relu)(inplace=True),
    )
