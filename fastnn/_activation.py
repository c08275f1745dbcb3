"""Activations of :mod:`fastnn.functional`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_unary

from fastnn._backend import _C


def maxout(input: Tensor, pieces: int, pieces_first: bool = False) -> Tensor:
    """Maximum over pieces of the channels: ``y[n, c] = max over j of x[n, c * pieces + j]``.

    A NaN wins over every number; among equal values the first has the gradient. Backward needs one byte for each
    output (two above 256 pieces). It is max pooling over channels, by the kernels of :func:`max_pool2d`.

    Args:
        input: ``[N, C * pieces, ...]``; contiguous and ``channels_last`` are both native.
        pieces: number of channels that an output is the maximum of, at least 1.
        pieces_first: the order of the channels: False for the pieces of an output one behind the other, True for all
            first pieces before all second ones, ``y[n, c] = max over j of x[n, j * C + c]``.

    Returns:
        ``[N, C, ...]``.

    Raises:
        ValueError: where ``pieces`` does not divide the channels.
        RuntimeError: for fewer than two dimensions, ``pieces`` below 1, or a type that fastnn has no kernel for.

    Formula: Goodfellow, Warde-Farley, Mirza, Courville and Bengio 2013, "Maxout Networks".
    """
    if is_dynamo_compiling() or has_torch_function_unary(input):
        return torch.ops.fastnn.maxout(input, pieces, pieces_first)
    return _C.maxout(input, pieces, pieces_first)
