"""Activation layers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnn import functional


def check_activation(activation: str) -> None:
    """Raises ValueError for what is none of ``functional.ACTIVATIONS``."""
    if activation not in functional.ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(functional.ACTIVATIONS)}, but got {activation!r}")


def activation_repr(activation: str, alpha: float | None) -> str:
    """Both as a layer prints them behind its own arguments."""
    return f", activation={activation}{'' if alpha is None else f', alpha={alpha}'}"


class Maxout(torch.nn.Module):
    """Maximum over pieces of the channels, :func:`fastnn.functional.maxout`; torch has no such layer.

    Behind a layer with ``C * pieces`` outputs it is a maxout layer (Goodfellow et al. 2013).

    Args:
        pieces: number of channels that an output is the maximum of.
        pieces_first: the order of the channels, see the function.

    Shape:
        ``[N, C * pieces, ...]`` to ``[N, C, ...]``.

    Raises:
        ValueError: for ``pieces`` below 1.
    """

    def __init__(self, pieces: int, pieces_first: bool = False) -> None:
        super().__init__()
        if pieces < 1:
            raise ValueError(f"pieces must be at least 1, but got {pieces}")
        self.pieces = pieces
        self.pieces_first = pieces_first

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return functional.maxout(input, self.pieces, self.pieces_first)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.pieces}{', pieces_first=True' if self.pieces_first else ''}"
