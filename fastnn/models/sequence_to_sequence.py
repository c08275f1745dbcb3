"""Sequence to sequence: Sutskever, Vinyals and Le 2014, with the attention of Luong, Pham and Manning 2015."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastnn.nn


class SequenceToSequence(nn.Module):
    """An LSTM that reads, and one that writes and looks at what was read ("dot" attention, after the LSTM).

    Args:
        layers: namespace of layers, ``fastnn.nn`` or ``torch.nn``.
        source_words: size of the vocabulary that is read.
        target_words: size of the vocabulary that is written.
        hidden: numbers of a word's embedding and units of each LSTM.
    """

    def __init__(
        self, layers: Any = fastnn.nn, source_words: int = 64, target_words: int = 64, hidden: int = 64
    ) -> None:
        super().__init__()
        self.source_embedding = layers.Embedding(source_words, hidden)
        self.target_embedding = layers.Embedding(target_words, hidden)
        self.encoder = layers.LSTM(hidden, hidden)
        self.decoder = layers.LSTM(hidden, hidden)
        self.combine = layers.Linear(2 * hidden, hidden)
        self.head = layers.Linear(hidden, target_words)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What is known of a padded source [S, N] of these lengths [N]: of each word [S, N, hidden], and the state."""
        packed = pack_padded_sequence(self.source_embedding(source), lengths.cpu(), enforce_sorted=False)
        output, state = self.encoder(packed)
        return pad_packed_sequence(output, total_length=len(source))[0], state

    def decode(
        self, read: Tensor, lengths: Tensor, target: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Goes on writing.

        Args:
            read: [S, N, hidden], from :meth:`encode`.
            lengths: [N], of the sources.
            target: [T, N], the words before those to come.
            state: of the decoder.

        Returns:
            logits [T, N, target_words]; the attention [T, N, S]; the state afterwards.
        """
        written, state = self.decoder(self.target_embedding(target), state)
        scores = torch.einsum("tnh,snh->tns", written, read)
        beyond = torch.arange(len(read), device=read.device) >= lengths.to(read.device).unsqueeze(1)
        attention = scores.masked_fill(beyond, float("-inf")).softmax(-1)
        context = torch.einsum("tns,snh->tnh", attention, read)
        return self.head(torch.tanh(self.combine(torch.cat([context, written], -1)))), attention, state

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Logits of each next word.

        Args:
            source: [S, N], padded.
            lengths: [N], of the sources, from 1 to S.
            target: [T, N], words of the targets, of which the first is a mark.

        Returns:
            [T, N, target_words]: at t what follows the first t + 1 words.
        """
        read, state = self.encode(source, lengths)
        return self.decode(read, lengths, target, state)[0]
