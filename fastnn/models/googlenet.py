"""GoogLeNet: Szegedy et al. 2015, "Going deeper with convolutions"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fastnn.nn
from fastnn.models.blocks import conv_norm_relu


class Inception(nn.Module):
    """Four branches over one input, their channels one after the other.

    Args:
        layers: namespace of layers.
        channels: of the input.
        ones: filters of the 1x1 branch.
        threes: filters before and of the 3x3 convolution.
        fives: filters before and of the 5x5 convolution.
        pooled: filters after the 3x3 pooling.
    """

    def __init__(
        self, layers: Any, channels: int, ones: int, threes: tuple[int, int], fives: tuple[int, int], pooled: int
    ) -> None:
        super().__init__()

        def convolution(channels: int, filters: int, size: int) -> nn.Module:
            return conv_norm_relu(layers, channels, filters, size)

        self.branches = layers.ModuleList(
            (
                convolution(channels, ones, 1),
                layers.Sequential(convolution(channels, threes[0], 1), convolution(*threes, 3)),
                layers.Sequential(convolution(channels, fives[0], 1), convolution(*fives, 5)),
                layers.Sequential(layers.MaxPool2d(3, 1, 1), convolution(channels, pooled, 1)),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to [N, sum of the branches' filters, H, W]."""
        return torch.cat([branch(x) for branch in self.branches], 1)


class GoogLeNet(nn.Module):
    """GoogLeNet with batch normalisation after every convolution, as is done now (Ioffe and Szegedy 2015).

    Args:
        layers: namespace of layers, ``fastnn.nn`` or ``torch.nn``.
        classes: number of classes.
        auxiliary: whether there are the two auxiliary classifiers, which exist in training alone and whose losses the
            paper adds with a weight of 0.3.
    """

    def __init__(self, layers: Any = fastnn.nn, classes: int = 1000, auxiliary: bool = True) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return layers.MaxPool2d(3, 2, ceil_mode=True)

        def inception(*arguments: Any) -> nn.Module:
            return Inception(layers, *arguments)

        def head(channels: int) -> nn.Module:
            return layers.Sequential(
                layers.AdaptiveAvgPool2d(4),
                conv_norm_relu(layers, channels, 128, 1),
                layers.Flatten(),
                layers.Linear(128 * 4 * 4, 1024),
                layers.ReLU(inplace=True),
                layers.Dropout(0.7),
                layers.Linear(1024, classes),
            )

        self.begin = layers.Sequential(
            conv_norm_relu(layers, 3, 64, 7, 2),
            pool(),
            conv_norm_relu(layers, 64, 64, 1),
            conv_norm_relu(layers, 64, 192, 3),
            pool(),
            inception(192, 64, (96, 128), (16, 32), 32),
            inception(256, 128, (128, 192), (32, 96), 64),
            pool(),
            inception(480, 192, (96, 208), (16, 48), 64),
        )
        self.middle = layers.Sequential(
            inception(512, 160, (112, 224), (24, 64), 64),
            inception(512, 128, (128, 256), (24, 64), 64),
            inception(512, 112, (144, 288), (32, 64), 64),
        )
        self.end = layers.Sequential(
            inception(528, 256, (160, 320), (32, 128), 128),
            pool(),
            inception(832, 256, (160, 320), (32, 128), 128),
            inception(832, 384, (192, 384), (48, 128), 128),
            layers.AdaptiveAvgPool2d(1),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Linear(1024, classes),
        )
        self.auxiliary = layers.ModuleList((head(512), head(528)) if auxiliary else ())

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """[N, 3, H, W] to logits [N, classes]; in training with auxiliary classifiers to theirs as well."""
        early = self.begin(x)
        late = self.middle(early)
        logits = self.end(late)
        if not (self.training and self.auxiliary):
            return logits
        first, second = self.auxiliary
        return logits, first(early), second(late)
