"""A convolutional network over frames and an LSTM over time.

Donahue et al. 2015, "Long-term recurrent convolutional networks for visual recognition and description".
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import fastnn.nn
from fastnn.models.blocks import conv_norm_relu


class FrameLabeller(nn.Module):
    """Labels every frame of a video by what has been seen until then.

    Args:
        layers: namespace of layers, ``fastnn.nn`` or ``torch.nn``.
        channels: of a frame.
        classes: number of labels.
        width: filters of the first convolution; the second has twice as many.
        hidden: units of the LSTM.
    """

    def __init__(
        self, layers: Any = fastnn.nn, channels: int = 1, classes: int = 4, width: int = 16, hidden: int = 64
    ) -> None:
        super().__init__()
        self.frames = layers.Sequential(
            conv_norm_relu(layers, channels, width, 3),
            layers.MaxPool2d(2),
            conv_norm_relu(layers, width, 2 * width, 3),
            layers.MaxPool2d(2),
            layers.AdaptiveAvgPool2d(4),
            layers.Flatten(),
        )
        self.time = layers.LSTM(2 * width * 16, hidden)
        self.head = layers.Linear(hidden, classes)

    def forward(self, video: Tensor) -> Tensor:
        """[T, N, channels, H, W] to logits [T, N, classes]; H and W at least 4."""
        features = self.frames(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        return self.head(self.time(features)[0])
