"""Normalisation functions of :mod:`fastnn.functional` other than batch normalisation's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_unary, has_torch_function_variadic

from fastnn._backend import _C


def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Local response normalisation: each channel is divided by a power of the squares of the channels around it.

    ``y[c] = x[c] / (k + alpha / size * sum of x[j]^2)^beta``, over the ``size`` channels j from ``c - size // 2`` to
    ``c + (size - 1) // 2`` that there are. One pass forward and one backward, which finds the sums again from x.

    Args:
        input: ``[N, C, ...]`` with one spatial size or more.
        size: number of channels in a window, at least 1.
        alpha: factor of the mean square. (The paper has no mean: its alpha is this one over ``size``.)
        beta: exponent.
        k: what is added to the mean square.

    Returns:
        A tensor like the input; under autocast float32, as torch's.

    Raises:
        ValueError: for an input of fewer than three dimensions.
        RuntimeError: for a ``size`` below 1, or a type that fastnn has no kernel for.

    Formula: Krizhevsky, Sutskever and Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks",
    section 3.3.
    """
    if is_dynamo_compiling() or has_torch_function_unary(input):
        return torch.ops.fastnn.local_response_norm(input, size, alpha, beta, k)
    return _C.local_response_norm(input, size, alpha, beta, k)


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Group normalisation: ``y = weight * (x - mean) / sqrt(var + eps) + bias``, statistics by group of a sample.

    Mean and (biased) variance are taken over the channels of a group and all positions, by a method that is safe at
    large means. ``channels_last`` is native too.

    Args:
        input: ``[N, C, ...]``.
        num_groups: number of groups that the channels are divided into; it divides C.
        weight: ``[C]``; None for 1.
        bias: ``[C]``; None for 0. Both may be float32 beside an input of a 16-bit type.
        eps: added to the variance.

    Returns:
        A tensor like the input; under CUDA's autocast float32, as torch's.

    Raises:
        ValueError: where the whole batch has one value for each group.
        RuntimeError: for shapes, types or devices that do not go together.

    Formula: Wu and He 2018, "Group Normalization".
    """
    if is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias):
        return torch.ops.fastnn.group_norm(input, num_groups, weight, bias, eps)
    return _C.group_norm(input, num_groups, weight, bias, eps)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Instance normalisation: :func:`group_norm` with a group for each channel.

    Args:
        input: ``[N, C, ...]`` with one spatial size or more.
        running_mean: ``[C]``, moved in place by the samples' average: ``running = (1 - momentum) * running +
            momentum * average``; None to keep none.
        running_var: ``[C]``, of unbiased variances, likewise.
        weight: ``[C]``; None for 1.
        bias: ``[C]``; None for 0. These four may be float32 beside an input of a 16-bit type.
        use_input_stats: whether the statistics are each sample's; otherwise they are the running ones, as in
            evaluation of batch normalisation.
        momentum: share of the batch in the new running statistics.
        eps: added to the variance.

    Returns:
        A tensor like the input.

    Raises:
        ValueError: for one position, where ``use_input_stats``.
        RuntimeError: for shapes, types or devices that do not go together, or neither statistics.

    Formula: Ulyanov, Vedaldi and Lempitsky 2016, "Instance Normalization: The Missing Ingredient for Fast Stylization".
    """
    arguments = (input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    if is_dynamo_compiling() or has_torch_function_variadic(*arguments[:5]):
        return torch.ops.fastnn.instance_norm(*arguments)
    return _C.instance_norm(*arguments)
