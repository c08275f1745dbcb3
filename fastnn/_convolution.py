"""Convolutions, of ``fastnn.functional``: its docstring says how a call reaches the kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_variadic

from fastnn._activation import alpha_of
from fastnn._backend import _C


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """One-dimensional convolution: :func:`conv2d` of images of height 1, computed by the same kernels.

    Args:
        input: ``[N, C, L]``, or ``[C, L]`` for one sequence.
        weight: ``[K, C / groups, R]``, of the input's type.
        bias: ``[K]``, of the input's type; None for none.
        stride: step of the window, at least 1.
        padding: zeros on each side, ``'valid'`` or ``'same'``.
        dilation: distance between the filter's elements, at least 1.
        groups: divides C and K.

    Returns:
        ``[N, K, P]`` (``[K, P]`` for one sequence), where
        ``P = floor((L + 2 * padding - dilation * (R - 1) - 1) / stride) + 1``.

    Raises:
        RuntimeError: as :func:`conv2d`.
    """
    if is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias):
        return torch.ops.fastnn.conv1d(input, weight, bias, stride, padding, dilation, groups)
    return _C.conv1d(input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Two-dimensional convolution (as the field has it: cross-correlation).

    ``y[n, k, p, q] = bias[k] + sum over c in k's group, r, s of
    x[n, c, p * stride - padding + r * dilation, q * stride - padding + s * dilation] * w[k, c, r, s]``, where
    positions outside x count as zero.

    Args:
        input: ``[N, C, H, W]``, or ``[C, H, W]`` for one image.
        weight: ``[K, C / groups, R, S]``, of the input's type.
        bias: ``[K]``, of the input's type; None for none.
        stride: step of the window, in input positions; one number or (height, width). At least 1.
        padding: rows and columns of zeros on each side, one number or (height, width); or ``'valid'`` for none,
            or ``'same'`` for an output of the input's size (stride 1 only; an odd total puts the extra one at
            the end).
        dilation: distance between the filter's elements, in input positions; one number or (height, width).
        groups: number of groups that the channels and filters are divided into; group g of the filters sees
            only group g of the channels. C and K are multiples of it.

    Returns:
        ``[N, K, P, Q]`` (``[K, P, Q]`` for one image), where
        ``P = floor((H + 2 * padding - dilation * (R - 1) - 1) / stride) + 1``, likewise Q. In ``channels_last``
        when input or weight is.

    Raises:
        RuntimeError: for shapes, types or devices that do not go together, a window larger than the padded
            input, a stride or dilation below 1, a negative padding, or ``'same'`` with a stride.

    Formula: Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning".
    """
    if is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias):
        return torch.ops.fastnn.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _C.conv2d(input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Three-dimensional convolution: the formula of :func:`conv2d` with a depth beside height and width.

    Args:
        input: ``[N, C, D, H, W]``, or ``[C, D, H, W]`` for one volume.
        weight: ``[K, C / groups, T, R, S]``, of the input's type.
        bias: ``[K]``, of the input's type; None for none.
        stride: step of the window, one number or (depth, height, width). At least 1.
        padding: zeros on each side, one number or three; ``'valid'`` or ``'same'``.
        dilation: distance between the filter's elements, one number or three. At least 1.
        groups: divides C and K.

    Returns:
        ``[N, K, O, P, Q]`` (``[K, O, P, Q]`` for one volume), where
        ``O = floor((D + 2 * padding - dilation * (T - 1) - 1) / stride) + 1``, likewise P and Q. In
        ``channels_last_3d`` when input or weight is.

    Raises:
        RuntimeError: as :func:`conv2d`.
    """
    if is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias):
        return torch.ops.fastnn.conv3d(input, weight, bias, stride, padding, dilation, groups)
    return _C.conv3d(input, weight, bias, stride, padding, dilation, groups)


def conv1d_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str = "relu",
    alpha: float | None = None,
) -> Tensor:
    """:func:`conv1d` and an activation in one pass; see :func:`conv2d_relu`.

    Args:
        input: see :func:`conv1d`, also for the six that follow.
        weight: ``[K, C / groups, R]``.
        bias: ``[K]`` or None.
        stride: at least 1.
        padding: numbers, ``'valid'`` or ``'same'``.
        dilation: at least 1.
        groups: divides C and K.
        activation: see :func:`conv2d_relu`.
        alpha: the activation's parameter.

    Returns:
        What :func:`conv1d` returns, activated.

    Raises:
        ValueError: as :func:`conv2d_relu`.
        RuntimeError: as :func:`conv1d`.
    """
    arguments = (input, weight, bias, stride, padding, dilation, groups, activation, alpha_of(activation, alpha))
    if is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias):
        return torch.ops.fastnn.conv1d(*arguments)
    return _C.conv1d(*arguments)


def conv2d_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str = "relu",
    alpha: float | None = None,
) -> Tensor:
    """:func:`conv2d` and an activation in one pass: ``y = act(conv2d(x))``, to the bit.

    Backward finds the activation's derivative from y, so nothing else is kept for it. That of ``gelu``, ``gelu_tanh``
    and ``silu`` is no function of y: where a gradient is wanted they are a pass of their own behind the convolution.

    Args:
        input: see :func:`conv2d`, also for the six that follow.
        weight: ``[K, C / groups, R, S]``.
        bias: ``[K]`` or None.
        stride: at least 1.
        padding: numbers, ``'valid'`` or ``'same'``.
        dilation: at least 1.
        groups: divides C and K.
        activation: one of those of :func:`activation`.
        alpha: the activation's parameter; None for torch's default.

    Returns:
        What :func:`conv2d` returns, activated.

    Raises:
        ValueError: for an unknown activation, or an ``alpha`` that :func:`activation` does not take.
        RuntimeError: as :func:`conv2d`.
    """
    arguments = (input, weight, bias, stride, padding, dilation, groups, activation, alpha_of(activation, alpha))
    if is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias):
        return torch.ops.fastnn.conv2d(*arguments)
    return _C.conv2d(*arguments)


def conv3d_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str = "relu",
    alpha: float | None = None,
) -> Tensor:
    """:func:`conv3d` and an activation in one pass; see :func:`conv2d_relu`.

    Args:
        input: see :func:`conv3d`, also for the six that follow.
        weight: ``[K, C / groups, T, R, S]``.
        bias: ``[K]`` or None.
        stride: at least 1.
        padding: numbers, ``'valid'`` or ``'same'``.
        dilation: at least 1.
        groups: divides C and K.
        activation: see :func:`conv2d_relu`.
        alpha: the activation's parameter.

    Returns:
        What :func:`conv3d` returns, activated.

    Raises:
        ValueError: as :func:`conv2d_relu`.
        RuntimeError: as :func:`conv3d`.
    """
    arguments = (input, weight, bias, stride, padding, dilation, groups, activation, alpha_of(activation, alpha))
    if is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias):
        return torch.ops.fastnn.conv3d(*arguments)
    return _C.conv3d(*arguments)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """One-dimensional transposed convolution: the data gradient of a :func:`conv1d` with these filters.

    Args:
        input: ``[N, C, L]``, or ``[C, L]`` for one sequence.
        weight: ``[C, K / groups, R]``, of the input's type.
        bias: ``[K]`` or None.
        stride: see :func:`conv_transpose2d`, as are the four that follow.
        padding: at least 0.
        output_padding: below the larger of stride and dilation.
        groups: divides C and K.
        dilation: at least 1.

    Returns:
        ``[N, K, I]`` (``[K, I]`` for one sequence), with the size that :func:`conv_transpose2d` gives.

    Raises:
        RuntimeError: as :func:`conv_transpose2d`.
    """
    if is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias):
        return torch.ops.fastnn.conv_transpose1d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _C.conv_transpose1d(input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Two-dimensional transposed convolution: the data gradient of a :func:`conv2d` with these filters.

    ``y[n, k, i, j] = bias[k] + sum over c in k's group and the places (p, q), (r, s) with
    p * stride - padding + r * dilation = i and q * stride - padding + s * dilation = j of
    x[n, c, p, q] * w[c, k, r, s]``. It is computed as that gradient, the bias with it: no zeros are put between the
    positions of x.

    Args:
        input: ``[N, C, H, W]``, or ``[C, H, W]`` for one image.
        weight: ``[C, K / groups, R, S]``, of the input's type.
        bias: ``[K]``, of the input's type; None for none.
        stride: step of the window in y, one number or (height, width). At least 1.
        padding: rows and columns taken off each side of y, one number or two. At least 0.
        output_padding: rows and columns that y has more at its end, of the sizes that a strided convolution maps to
            the size of x; below the larger of stride and dilation.
        groups: number of groups that the channels and filters are divided into.
        dilation: distance between the filter's elements, in positions of y. At least 1.

    Returns:
        ``[N, K, I, J]`` (``[K, I, J]`` for one image), where
        ``I = (H - 1) * stride - 2 * padding + dilation * (R - 1) + output_padding + 1``, likewise J. In
        ``channels_last`` when input or weight is.

    Raises:
        RuntimeError: for shapes, types or devices that do not go together, a padding that takes off more than there
            is, a stride or dilation below 1, a negative padding, or an ``output_padding`` out of its range.

    Formula: Dumoulin and Visin 2016, section 4.
    """
    if is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias):
        return torch.ops.fastnn.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _C.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Three-dimensional transposed convolution: the data gradient of a :func:`conv3d` with these filters.

    Args:
        input: ``[N, C, D, H, W]``, or ``[C, D, H, W]`` for one volume.
        weight: ``[C, K / groups, T, R, S]``, of the input's type.
        bias: ``[K]`` or None.
        stride: see :func:`conv_transpose2d`, as are the four that follow.
        padding: at least 0.
        output_padding: below the larger of stride and dilation.
        groups: divides C and K.
        dilation: at least 1.

    Returns:
        ``[N, K, O, I, J]`` (``[K, O, I, J]`` for one volume), with the sizes that
        :func:`conv_transpose2d` gives; in ``channels_last_3d`` when input or weight is.

    Raises:
        RuntimeError: as :func:`conv_transpose2d`.
    """
    if is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias):
        return torch.ops.fastnn.conv_transpose3d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _C.conv_transpose3d(input, weight, bias, stride, padding, output_padding, groups, dilation)


def locally_connected1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """One-dimensional convolution without weight sharing: each position has filters of its own.

    Args:
        input: ``[N, C, L]``, or ``[C, L]`` for one sequence.
        weight: ``[P, K, C, R]``, of the input's type; P is the number of positions that :func:`conv1d` has.
        bias: ``[K, P]``, of the input's type; None for none.
        stride: see :func:`locally_connected2d`, as are the two that follow.
        padding: at least 0.
        dilation: at least 1.

    Returns:
        ``[N, K, P]`` (``[K, P]`` for one sequence).

    Raises:
        RuntimeError: as :func:`locally_connected2d`.
    """
    if is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias):
        return torch.ops.fastnn.locally_connected1d(input, weight, bias, stride, padding, dilation)
    return _C.locally_connected1d(input, weight, bias, stride, padding, dilation)


def locally_connected2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Two-dimensional convolution without weight sharing: each position has filters of its own.

    ``y[n, k, p, q] = bias[k, p, q] + sum over c, r, s of
    x[n, c, p * stride - padding + r * dilation, q * stride - padding + s * dilation] * w[p, q, k, c, r, s]``, where
    positions outside x count as zero. A weight is used once for each image, so small batches are bound by reading
    the weights, which happens once for all images.

    Args:
        input: ``[N, C, H, W]``, or ``[C, H, W]`` for one image.
        weight: ``[P, Q, K, C, R, S]``, of the input's type; P and Q are the sizes of :func:`conv2d`'s output.
        bias: ``[K, P, Q]``, of the input's type; None for none.
        stride: step of the window, one number or (height, width). At least 1.
        padding: rows and columns of zeros on each side, one number or two. At least 0.
        dilation: distance between the filter's elements, one number or two. At least 1.

    Returns:
        ``[N, K, P, Q]`` (``[K, P, Q]`` for one image), in ``channels_last`` when the input is.

    Raises:
        RuntimeError: for shapes, types or devices that do not go together, filters for another number of positions, a
            window larger than the padded input, a stride or dilation below 1, or a negative padding.

    Source: LeCun 1989, "Generalization and network design strategies"; Taigman et al. 2014, "DeepFace".
    """
    if is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias):
        return torch.ops.fastnn.locally_connected2d(input, weight, bias, stride, padding, dilation)
    return _C.locally_connected2d(input, weight, bias, stride, padding, dilation)
