"""The networks whose layers are measured: those of :mod:`fastnn.models`, of torch's layers.

What the papers leave open, or what nobody does any more, is settled as their common implementations do: local response
normalisation is left out of AlexNet. GoogLeNet has no auxiliary heads: they exist in training alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from fastnn import models


@dataclass(frozen=True)
class Architecture:
    """A network: ``make`` builds it with random weights; ``image`` is an input's [C, H, W]."""

    make: Callable[[], nn.Module]
    image: tuple[int, int, int]
    classes: int = 1000


NETWORKS = {
    "resnet50": Architecture(partial(models.resnet50, nn), (3, 224, 224)),
    "vgg16": Architecture(partial(models.vgg16, nn), (3, 224, 224)),
    "alexnet": Architecture(partial(models.alexnet, nn, local_response_norm=False), (3, 224, 224)),
    "googlenet": Architecture(partial(models.GoogLeNet, nn, auxiliary=False), (3, 224, 224)),
    "lenet5": Architecture(partial(models.lenet5, nn), (1, 32, 32), classes=10),
    "digits": Architecture(partial(models.digits, nn), (1, 8, 8), classes=10),
    "mobilenet_v2": Architecture(partial(models.mobilenet_v2, nn), (3, 224, 224)),
}
