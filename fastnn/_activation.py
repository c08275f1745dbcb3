"""Activations of :mod:`fastnn.functional`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_unary, has_torch_function_variadic

from fastnn._backend import _C

ACTIVATIONS = {
    "relu": 0.0,
    "leaky_relu": 0.01,
    "elu": 1.0,
    "softplus": 1.0,
    "sigmoid": 0.0,
    "tanh": 0.0,
    "hard_sigmoid": 0.0,
    "gelu": 0.0,
    "gelu_tanh": 0.0,
    "silu": 0.0,
    "identity": 1.0,
}
"""The activations of :func:`activation`, and what ``alpha`` is where it is not given: torch's defaults."""


def alpha_of(activation: str, alpha: float | None) -> float:
    """``alpha``, or an activation's default; of one that there is not the op says so."""
    return ACTIVATIONS.get(activation, 0.0) if alpha is None else alpha


def activation(
    input: Tensor, residual: Tensor | None = None, *, activation: str = "relu", alpha: float | None = None
) -> Tensor:
    """An activation in one pass, ``y = act(z)``, with ``z = input`` or ``z = input + residual``.

    For its derivative y is kept, of ``gelu``, ``gelu_tanh`` and ``silu`` the input and the residual. It has
    derivatives of every order.

    Args:
        input: of any shape; dense ones are taken as they lie.
        residual: of the input's shape, type and device; None for none. The sum is not rounded.
        activation: ``"relu"``; ``"leaky_relu"``: ``z`` where positive, else ``alpha * z``; ``"elu"``: else
            ``alpha * (exp(z) - 1)``; ``"softplus"``: ``log(1 + exp(alpha * z)) / alpha``, and ``z`` where
            ``alpha * z > 20``; ``"sigmoid"``; ``"tanh"``; ``"hard_sigmoid"``: ``min(max(z + 3, 0), 6) / 6``;
            ``"gelu"``: ``z * Phi(z)`` with the normal distribution's Phi; ``"gelu_tanh"``: with torch's approximation
            of it; ``"silu"``: ``z * sigmoid(z)``; or ``"identity"``.
        alpha: see ``activation``; None for torch's defaults, 0.01 for ``leaky_relu`` and 1 for the other two.

    Returns:
        A tensor like the input.

    Raises:
        ValueError: for an unknown activation, a negative ``alpha``, with which y does not tell the sign of z, or one of
            ``softplus`` that is not positive.
        RuntimeError: for a residual that is not like the input, or a type that fastnn has no kernel for.

    Sources: Maas et al. 2013 (leaky ReLU), Clevert et al. 2016 (ELU), Dugas et al. 2001 (softplus), Howard et al. 2019
    (hard sigmoid), Hendrycks and Gimpel 2016 (GELU), Elfwing et al. 2018 (SiLU).
    """
    alpha = alpha_of(activation, alpha)
    if is_dynamo_compiling() or has_torch_function_variadic(input, residual):
        return torch.ops.fastnn.activation(input, residual, activation, alpha)
    return _C.activation(input, residual, activation, alpha)


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
