"""Activation layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnn import functional


class Activated(torch.nn.Module):
    """What layers with an activation add: which one, kept in attributes and not in the ``state_dict``.

    Args:
        args: of the layer without an activation, as ``kwargs``.
        activation: one of those of :func:`fastnn.functional.activation`.
        alpha: the activation's parameter; None for torch's default.
        kwargs: see ``args``.

    Raises:
        ValueError: for an activation that there is not.
    """

    def __init__(self, *args: Any, activation: str = "relu", alpha: float | None = None, **kwargs: Any) -> None:
        if activation not in functional.ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(functional.ACTIVATIONS)}, but got {activation!r}")
        super().__init__(*args, **kwargs)
        self.activation = activation
        self.alpha = alpha

    def extra_repr(self) -> str:
        """The arguments, as torch prints them."""
        alpha = "" if self.alpha is None else f", alpha={self.alpha}"
        return ", ".join(filter(None, (super().extra_repr(), f"activation={self.activation}{alpha}")))


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
