"""An image captioner: Vinyals, Toshev, Bengio and Erhan 2015, "Show and tell: a neural image caption generator"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fastnn.nn
from fastnn.models.blocks import conv_norm_relu


class Captioner(nn.Module):
    """A convolutional network whose features are the first input of an LSTM that writes words.

    Args:
        layers: namespace of layers, ``fastnn.nn`` or ``torch.nn``.
        words: size of the vocabulary.
        channels: of the images.
        width: filters of the first convolution; the second has twice as many.
        hidden: numbers of a word's embedding and units of the LSTM.
    """

    def __init__(
        self, layers: Any = fastnn.nn, words: int = 32, channels: int = 1, width: int = 16, hidden: int = 64
    ) -> None:
        super().__init__()
        self.image = layers.Sequential(
            conv_norm_relu(layers, channels, width, 3),
            conv_norm_relu(layers, width, 2 * width, 3),
            layers.MaxPool2d(2),
            layers.AdaptiveAvgPool2d(4),
            layers.Flatten(),
            layers.Linear(2 * width * 16, hidden),
        )
        self.embedding = layers.Embedding(words, hidden)
        self.language = layers.LSTM(hidden, hidden)
        self.head = layers.Linear(hidden, words)

    def forward(self, images: Tensor, captions: Tensor) -> Tensor:
        """Logits of each next word.

        Args:
            images: [N, channels, H, W], H and W at least 2.
            captions: [T, N], words of the captions, of which the first is a mark.

        Returns:
            [T, N, words]: at t what follows the first t + 1 words.
        """
        seen = self.image(images).unsqueeze(0)
        return self.head(self.language(torch.cat([seen, self.embedding(captions)]))[0][1:])

    @torch.no_grad()
    def caption(self, images: Tensor, begin: int, length: int) -> Tensor:
        """The likeliest word after word: [length, N].

        Args:
            images: [N, channels, H, W].
            begin: the mark that captions begin with.
            length: number of words.
        """
        _, state = self.language(self.image(images).unsqueeze(0))
        word = torch.full((1, len(images)), begin, device=images.device)
        written = []
        for _ in range(length):
            output, state = self.language(self.embedding(word), state)
            word = self.head(output).argmax(-1)
            written.append(word)
        return torch.cat(written)
