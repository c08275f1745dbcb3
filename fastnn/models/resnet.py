"""Residual networks: He, Zhang, Ren and Sun 2016, "Deep residual learning for image recognition"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import fastnn.nn
from fastnn.models.blocks import conv_norm_relu


class Residual(nn.Module):
    """A branch beside a shortcut, which is a 1x1 convolution where the shape changes.

    Args:
        layers: namespace of layers.
        branch: from the input to what is added to it, before the nonlinearity.
        channels: of the input.
        filters: of the branch.
        stride: of the branch.
    """

    def __init__(self, layers: Any, branch: nn.Module, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut: nn.Module = layers.Identity()
        if stride != 1 or channels != filters:
            self.shortcut = layers.Sequential(
                layers.Conv2d(channels, filters, 1, stride, bias=False), layers.BatchNorm2d(filters)
            )
        self.relu = layers.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to [N, filters, H / stride, W / stride]."""
        return self.relu(self.branch(x) + self.shortcut(x))


def basic(layers: Any, channels: int, width: int, stride: int) -> Residual:
    """Two 3x3 convolutions."""
    branch = layers.Sequential(
        conv_norm_relu(layers, channels, width, 3, stride),
        layers.Conv2d(width, width, 3, padding=1, bias=False),
        layers.BatchNorm2d(width),
    )
    return Residual(layers, branch, channels, width, stride)


def bottleneck(layers: Any, channels: int, width: int, stride: int) -> Residual:
    """1x1, 3x3 (which strides, as is done now), and 1x1 to four times the width."""
    branch = layers.Sequential(
        conv_norm_relu(layers, channels, width, 1),
        conv_norm_relu(layers, width, width, 3, stride),
        layers.Conv2d(width, 4 * width, 1, bias=False),
        layers.BatchNorm2d(4 * width),
    )
    return Residual(layers, branch, channels, 4 * width, stride)


def _resnet(layers: Any, block: Any, expansion: int, blocks: Sequence[int], classes: int) -> nn.Sequential:
    chain: list[nn.Module] = [conv_norm_relu(layers, 3, 64, 7, 2), layers.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, count in zip((64, 128, 256, 512), blocks, strict=True):
        for index in range(count):
            chain.append(block(layers, channels, width, stride=2 if index == 0 and width > 64 else 1))
            channels = expansion * width
    return layers.Sequential(*chain, layers.AdaptiveAvgPool2d(1), layers.Flatten(), layers.Linear(channels, classes))


def resnet18(layers: Any = fastnn.nn, classes: int = 1000) -> nn.Sequential:
    """ResNet-18. [N, 3, H, W] to logits [N, classes].

    Args:
        layers: namespace of layers, ``fastnn.nn`` or ``torch.nn``.
        classes: number of classes.
    """
    return _resnet(layers, basic, 1, (2, 2, 2, 2), classes)


def resnet50(layers: Any = fastnn.nn, classes: int = 1000) -> nn.Sequential:
    """ResNet-50. [N, 3, H, W] to logits [N, classes].

    Args:
        layers: namespace of layers, ``fastnn.nn`` or ``torch.nn``.
        classes: number of classes.
    """
    return _resnet(layers, bottleneck, 4, (3, 4, 6, 3), classes)
