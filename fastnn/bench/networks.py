"""The networks whose layers are measured, written from their papers with torch's layers and random weights.

What the papers leave open, or what nobody does any more, is settled as their common implementations do: local response
normalisation is left out (AlexNet) or batch normalisation stands in its place (GoogLeNet), ResNet-50 strides in its
3x3 convolutions, LeNet-5 takes maxima. GoogLeNet has no auxiliary heads: they exist in training alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def conv_norm_relu(
    channels: int, filters: int, size: int, stride: int = 1, groups: int = 1, relu: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """A convolution that keeps the size (divided by the stride), without bias; batch norm; the nonlinearity."""
    return nn.Sequential(
        nn.Conv2d(channels, filters, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(filters),
        relu(inplace=True),
    )


class Bottleneck(nn.Module):
    """ResNet's block of three convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        filters = 4 * width
        self.branch = nn.Sequential(
            conv_norm_relu(channels, width, 1),
            conv_norm_relu(width, width, 3, stride),
            nn.Conv2d(width, filters, 1, bias=False),
            nn.BatchNorm2d(filters),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != filters:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to [N, 4 width, H / stride, W / stride]."""
        return self.relu(self.branch(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """He, Zhang, Ren and Sun 2016, "Deep residual learning for image recognition"."""
    layers: list[nn.Module] = [conv_norm_relu(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, stride=2 if block == 0 and width > 64 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def vgg16() -> nn.Module:
    """Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition"."""
    layers: list[nn.Module] = []
    channels = 3
    for filters, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(inplace=True)]
            channels = filters
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), *_classifier(512 * 7 * 7))


def alexnet() -> nn.Module:
    """Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks": one tower."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Flatten(),
        *_classifier(256 * 6 * 6),
    )


def _classifier(features: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in ((features, 4096), (4096, 4096)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True), nn.Dropout()]
    return [*layers, nn.Linear(4096, 1000)]


class Inception(nn.Module):
    """GoogLeNet's block: four branches over one input, their channels one after the other.

    Attributes:
        ones: filters of the 1x1 branch.
        threes: filters before and of the 3x3 convolution.
        fives: filters before and of the 5x5 convolution.
        pooled: filters after the 3x3 pooling.
    """

    def __init__(self, channels: int, ones: int, threes: tuple[int, int], fives: tuple[int, int], pooled: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            (
                conv_norm_relu(channels, ones, 1),
                nn.Sequential(conv_norm_relu(channels, threes[0], 1), conv_norm_relu(*threes, 3)),
                nn.Sequential(conv_norm_relu(channels, fives[0], 1), conv_norm_relu(*fives, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_norm_relu(channels, pooled, 1)),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to [N, sum of the branches' filters, H, W]."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def googlenet() -> nn.Module:
    """Szegedy et al. 2015, "Going deeper with convolutions"."""
    return nn.Sequential(
        conv_norm_relu(3, 64, 7, 2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        conv_norm_relu(64, 64, 1),
        conv_norm_relu(64, 192, 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Inception(192, 64, (96, 128), (16, 32), 32),
        Inception(256, 128, (128, 192), (32, 96), 64),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Inception(480, 192, (96, 208), (16, 48), 64),
        Inception(512, 160, (112, 224), (24, 64), 64),
        Inception(512, 128, (128, 256), (24, 64), 64),
        Inception(512, 112, (144, 288), (32, 64), 64),
        Inception(528, 256, (160, 320), (32, 128), 128),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Inception(832, 256, (160, 320), (32, 128), 128),
        Inception(832, 384, (192, 384), (48, 128), 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(1024, 1000),
    )


def lenet5() -> nn.Module:
    """LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition"."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 120, 5),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, 10),
    )


def digits(layers: Any = nn) -> nn.Module:
    """The network of ``fastnn demo``: [N, 1, 8, 8] to [N, 10].

    Args:
        layers: ``torch.nn`` or anything that stands in for it, such as ``fastnn.nn``.
    """
    return layers.Sequential(
        OrderedDict(
            # Batch normalisation subtracts the mean, so a bias before it would do nothing.
            conv1=layers.Conv2d(1, 32, kernel_size=5, padding=2, bias=False),
            norm1=layers.BatchNorm2d(32),
            relu1=layers.ReLU(),
            conv2=layers.Conv2d(32, 64, kernel_size=3, padding=1, bias=False),
            norm2=layers.BatchNorm2d(64),
            relu2=layers.ReLU(),
            pool2=layers.MaxPool2d(2),
            conv3=layers.Conv2d(64, 64, kernel_size=3, padding=1, bias=False),
            norm3=layers.BatchNorm2d(64),
            relu3=layers.ReLU(),
            pool3=layers.MaxPool2d(2),
            flatten=layers.Flatten(),
            head=layers.Linear(64 * 2 * 2, 10),
        )
    )


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen by a 1x1 convolution, filter each channel by itself, narrow by a 1x1 convolution."""

    def __init__(self, channels: int, filters: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = expansion * channels
        widen = [conv_norm_relu(channels, width, 1, relu=nn.ReLU6)] if expansion != 1 else []
        self.branch = nn.Sequential(
            *widen,
            conv_norm_relu(width, width, 3, stride, groups=width, relu=nn.ReLU6),
            nn.Conv2d(width, filters, 1, bias=False),
            nn.BatchNorm2d(filters),
        )
        self.has_shortcut = stride == 1 and channels == filters

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to [N, filters, H / stride, W / stride]."""
        return x + self.branch(x) if self.has_shortcut else self.branch(x)


def mobilenet_v2() -> nn.Module:
    """Sandler, Howard, Zhu, Zhmoginov and Chen 2018, "MobileNetV2: Inverted residuals and linear bottlenecks"."""
    layers: list[nn.Module] = [conv_norm_relu(3, 32, 3, 2, relu=nn.ReLU6)]
    channels = 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, filters, blocks, stride in table:
        for block in range(blocks):
            layers.append(InvertedResidual(channels, filters, stride if block == 0 else 1, expansion))
            channels = filters
    head = [conv_norm_relu(channels, 1280, 1, relu=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Dropout(0.2), nn.Linear(1280, 1000))


@dataclass(frozen=True)
class Architecture:
    """A network: ``make`` builds it with random weights; ``image`` is an input's [C, H, W]."""

    make: Callable[[], nn.Module]
    image: tuple[int, int, int]
    classes: int = 1000


NETWORKS = {
    "resnet50": Architecture(resnet50, (3, 224, 224)),
    "vgg16": Architecture(vgg16, (3, 224, 224)),
    "alexnet": Architecture(alexnet, (3, 224, 224)),
    "googlenet": Architecture(googlenet, (3, 224, 224)),
    "lenet5": Architecture(lenet5, (1, 32, 32), classes=10),
    "digits": Architecture(digits, (1, 8, 8), classes=10),
    "mobilenet_v2": Architecture(mobilenet_v2, (3, 224, 224)),
}
