"""Plain chains of convolutions and pooling: LeNet-5, AlexNet, VGG-16, and the digits' network of ``fastnn demo``."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

import fastnn.nn


def lenet5(layers: Any = fastnn.nn, classes: int = 10) -> nn.Sequential:
    """LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition".

    Pooling takes maxima, as is done now. [N, 1, 32, 32] to logits [N, classes].

    Args:
        layers: namespace of layers, ``fastnn.nn`` or ``torch.nn``.
        classes: number of classes.
    """
    return layers.Sequential(
        layers.Conv2d(1, 6, 5),
        layers.Tanh(),
        layers.MaxPool2d(2),
        layers.Conv2d(6, 16, 5),
        layers.Tanh(),
        layers.MaxPool2d(2),
        layers.Conv2d(16, 120, 5),
        layers.Tanh(),
        layers.Flatten(),
        layers.Linear(120, 84),
        layers.Tanh(),
        layers.Linear(84, classes),
    )


def alexnet(
    layers: Any = fastnn.nn,
    classes: int = 1000,
    image: int = 224,
    hidden: int = 4096,
    local_response_norm: bool = True,
) -> nn.Sequential:
    """Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural networks".

    One tower, as in Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks". [N, 3, image,
    image] to logits [N, classes].

    Args:
        layers: namespace of layers, ``fastnn.nn`` or ``torch.nn``.
        classes: number of classes.
        image: height and width of the images, at least 63.
        hidden: units of the two fully connected layers before the last.
        local_response_norm: whether responses are normalised among neighbouring channels after the first two layers.
    """

    def stage(channels: int, filters: int, size: int, stride: int = 1) -> list[nn.Module]:
        norm = [layers.LocalResponseNorm(5, k=2.0)] if local_response_norm else []
        padding = size // 2 if stride == 1 else 2
        convolution = layers.Conv2d(channels, filters, size, stride=stride, padding=padding)
        return [convolution, layers.ReLU(inplace=True), *norm, layers.MaxPool2d(3, 2)]

    side = (image - 7) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return layers.Sequential(
        *stage(3, 64, 11, stride=4),
        *stage(64, 192, 5),
        layers.Conv2d(192, 384, 3, padding=1),
        layers.ReLU(inplace=True),
        layers.Conv2d(384, 256, 3, padding=1),
        layers.ReLU(inplace=True),
        layers.Conv2d(256, 256, 3, padding=1),
        layers.ReLU(inplace=True),
        layers.MaxPool2d(3, 2),
        layers.Flatten(),
        *_classifier(layers, 256 * side**2, hidden, classes),
    )


def vgg16(layers: Any = fastnn.nn, classes: int = 1000, image: int = 224, hidden: int = 4096) -> nn.Sequential:
    """Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition".

    [N, 3, image, image] to logits [N, classes].

    Args:
        layers: namespace of layers, ``fastnn.nn`` or ``torch.nn``.
        classes: number of classes.
        image: height and width of the images, at least 32.
        hidden: units of the two fully connected layers before the last.
    """
    features: list[nn.Module] = []
    channels = 3
    for filters, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            features += [layers.Conv2d(channels, filters, 3, padding=1), layers.ReLU(inplace=True)]
            channels = filters
        features.append(layers.MaxPool2d(2))
    return layers.Sequential(
        *features, layers.Flatten(), *_classifier(layers, channels * (image // 32) ** 2, hidden, classes)
    )


def _classifier(layers: Any, features: int, hidden: int, classes: int) -> list[nn.Module]:
    chain: list[nn.Module] = []
    for inputs in (features, hidden):
        chain += [layers.Linear(inputs, hidden), layers.ReLU(inplace=True), layers.Dropout()]
    return [*chain, layers.Linear(hidden, classes)]


def digits(layers: Any = fastnn.nn) -> nn.Sequential:
    """The network of ``fastnn demo``: [N, 1, 8, 8] to [N, 10].

    Args:
        layers: namespace of layers, ``fastnn.nn`` or ``torch.nn``.
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
