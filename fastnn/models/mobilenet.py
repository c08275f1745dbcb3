"""MobileNetV2: Sandler, Howard, Zhu, Zhmoginov and Chen 2018, "Inverted residuals and linear bottlenecks"."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import fastnn.nn
from fastnn.models.blocks import conv_norm_relu


class InvertedResidual(nn.Module):
    """Widens by a 1x1 convolution, filters each channel by itself, narrows by a 1x1 convolution.

    Args:
        layers: namespace of layers.
        channels: of the input.
        filters: of the output.
        stride: of the depthwise convolution.
        expansion: how much wider the middle is than the input.
    """

    def __init__(self, layers: Any, channels: int, filters: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = expansion * channels
        widen = [conv_norm_relu(layers, channels, width, 1, relu="ReLU6")] if expansion != 1 else []
        self.branch = layers.Sequential(
            *widen,
            conv_norm_relu(layers, width, width, 3, stride, groups=width, relu="ReLU6"),
            layers.Conv2d(width, filters, 1, bias=False),
            layers.BatchNorm2d(filters),
        )
        self.has_shortcut = stride == 1 and channels == filters

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to [N, filters, H / stride, W / stride]."""
        return x + self.branch(x) if self.has_shortcut else self.branch(x)


def mobilenet_v2(layers: Any = fastnn.nn, classes: int = 1000) -> nn.Sequential:
    """MobileNetV2. [N, 3, H, W] to logits [N, classes].

    Args:
        layers: namespace of layers, ``fastnn.nn`` or ``torch.nn``.
        classes: number of classes.
    """
    chain: list[nn.Module] = [conv_norm_relu(layers, 3, 32, 3, 2, relu="ReLU6")]
    channels = 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, filters, blocks, stride in table:
        for block in range(blocks):
            chain.append(InvertedResidual(layers, channels, filters, stride if block == 0 else 1, expansion))
            channels = filters
    chain += [conv_norm_relu(layers, channels, 1280, 1, relu="ReLU6"), layers.AdaptiveAvgPool2d(1), layers.Flatten()]
    return layers.Sequential(*chain, layers.Dropout(0.2), layers.Linear(1280, classes))
