"""A deconvolution network: Noh, Hong and Han 2015, "Learning deconvolution network for semantic segmentation"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import fastnn.nn
from fastnn.models.blocks import conv_norm_relu


class DeconvNet(nn.Module):
    """Segments images: convolutions and pooling down, unpooling to the saved places and transposed convolutions up.

    Args:
        layers: namespace of layers, ``fastnn.nn`` or ``torch.nn``.
        channels: of the images.
        classes: number of classes of a pixel.
        widths: filters of each level, from the image's to the deepest.
    """

    def __init__(
        self, layers: Any = fastnn.nn, channels: int = 1, classes: int = 2, widths: Sequence[int] = (16, 32, 64)
    ) -> None:
        super().__init__()

        def up(channels: int, filters: int) -> nn.Module:
            return layers.Sequential(
                layers.ConvTranspose2d(channels, filters, 3, padding=1, bias=False),
                layers.BatchNorm2d(filters),
                layers.ReLU(inplace=True),
            )

        inputs = (channels, *widths[:-1])
        self.down = layers.ModuleList(
            layers.Sequential(conv_norm_relu(layers, before, width, 3), conv_norm_relu(layers, width, width, 3))
            for before, width in zip(inputs, widths, strict=True)
        )
        self.pool = layers.MaxPool2d(2, return_indices=True)
        self.unpool = layers.MaxUnpool2d(2)
        self.up = layers.ModuleList(
            layers.Sequential(up(width, width), up(width, before))
            for before, width in zip((widths[0], *widths[:-1]), widths, strict=True)
        )
        self.head = layers.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to logits of each pixel [N, classes, H, W]; H and W at least 2 ** levels."""
        places = []
        for stage in self.down:
            x = stage(x)
            size = x.shape
            x, indices = self.pool(x)
            places.append((indices, size))
        for stage, (indices, size) in zip(reversed(self.up), reversed(places), strict=True):
            x = stage(self.unpool(x, indices, output_size=size))
        return self.head(x)
