"""The functions of :mod:`fastnn.functional` that pool over sliding windows, and what undoes max pooling.

Every rank is the same op with other lists: ``fastnn::max_pool``, ``average_pool``, ``lp_pool`` and, of unpooling,
``switch_place``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_variadic

from fastnn._backend import _C


def _run(name: str, tensors: tuple[Tensor, ...], *options: Any) -> Any:
    """The op of a name, through pybind11, or where the call must be seen as an op through ``torch.ops``."""
    if is_dynamo_compiling() or has_torch_function_variadic(*tensors):
        return getattr(torch.ops.fastnn, name)(*tensors, *options)
    return getattr(_C, name)(*tensors, *options)


def _norm(norm_type: float) -> float:
    if norm_type == 0:
        raise ZeroDivisionError("norm_type must not be 0, got 0")
    return float(norm_type)


def _list(value: int | Sequence[int] | None) -> int | Sequence[int]:
    return [] if value is None else value


def max_pool1d_with_indices(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = True,
) -> tuple[Tensor, Tensor]:
    """:func:`max_pool1d` with the place of each maximum.

    Args:
        input: ``[N, C, L]`` or ``[C, L]``.
        kernel_size: see :func:`max_pool1d`, also for the four that follow.
        stride: None for ``kernel_size``.
        padding: at most half of ``kernel_size``.
        dilation: at least 1.
        ceil_mode: whether the last window may hang over the end.
        return_indices: has no effect; it is here because torch's function has it.

    Returns:
        The maxima and, int64 of the same shape, the place of each in its flattened row of the input, as
        :func:`max_unpool1d` takes them.

    Raises:
        RuntimeError: as :func:`max_pool1d`.
    """
    return _run("max_pool1d_with_indices", (input,), kernel_size, _list(stride), padding, dilation, ceil_mode)


def max_pool1d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum over windows of each row.

    ``y[n, c, o] = max over r of x[n, c, o * stride - padding + r * dilation]`` over positions in x.

    A NaN wins over every number; among equal values the first in row-major order has the gradient. Backward
    needs one byte for each output (windows of up to 256 places), not torch's eight.

    Args:
        input: ``[N, C, L]``, or ``[C, L]`` unbatched.
        kernel_size: size of the window, one number or a list of one.
        stride: step of the window, in input positions; None for ``kernel_size``.
        padding: positions of -inf on each side, at most half of ``kernel_size``.
        dilation: distance between the window's elements, in input positions.
        ceil_mode: round the output size up, so that the last window may hang over the end; it still begins
            inside the input or its leading padding.
        return_indices: return the places of the maxima too, see :func:`max_pool1d_with_indices`.

    Returns:
        ``[N, C, P]`` (without N where the input has none), each size
        ``floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1``; with ``return_indices`` a pair of
        that and the int64 places.

    Raises:
        RuntimeError: for an input of another rank, a type that fastnn has no kernel for, a stride, kernel or
            dilation below 1, a padding above half of the kernel, or an empty output.
    """
    name = "max_pool1d_with_indices" if return_indices else "max_pool1d"
    return _run(name, (input,), kernel_size, _list(stride), padding, dilation, ceil_mode)


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = True,
) -> tuple[Tensor, Tensor]:
    """:func:`max_pool2d` with the place of each maximum.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``.
        kernel_size: see :func:`max_pool2d`, also for the four that follow.
        stride: None for ``kernel_size``.
        padding: at most half of ``kernel_size``.
        dilation: at least 1.
        ceil_mode: whether the last window may hang over the end.
        return_indices: has no effect; it is here because torch's function has it.

    Returns:
        The maxima and, int64 of the same shape, the place of each in its flattened plane of the input, as
        :func:`max_unpool2d` takes them.

    Raises:
        RuntimeError: as :func:`max_pool2d`.
    """
    return _run("max_pool2d_with_indices", (input,), kernel_size, _list(stride), padding, dilation, ceil_mode)


def max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum over windows of each plane.

    ``y[n, c, o] = max over r of x[n, c, o * stride - padding + r * dilation]`` in each dimension, over positions in x.

    A NaN wins over every number; among equal values the first in row-major order has the gradient. Backward
    needs one byte for each output (windows of up to 256 places), not torch's eight.

    Args:
        input: ``[N, C, H, W]``, or ``[C, H, W]`` unbatched.
        kernel_size: size of the window, one number or (height, width).
        stride: step of the window, in input positions; None for ``kernel_size``.
        padding: positions of -inf on each side, at most half of ``kernel_size``.
        dilation: distance between the window's elements, in input positions.
        ceil_mode: round the output size up, so that the last window may hang over the end; it still begins
            inside the input or its leading padding.
        return_indices: return the places of the maxima too, see :func:`max_pool2d_with_indices`.

    Returns:
        ``[N, C, P, Q]`` (without N where the input has none), each size
        ``floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1``; with ``return_indices`` a pair of
        that and the int64 places.

    Raises:
        RuntimeError: for an input of another rank, a type that fastnn has no kernel for, a stride, kernel or
            dilation below 1, a padding above half of the kernel, or an empty output.
    """
    name = "max_pool2d_with_indices" if return_indices else "max_pool2d"
    return _run(name, (input,), kernel_size, _list(stride), padding, dilation, ceil_mode)


def max_pool3d_with_indices(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = True,
) -> tuple[Tensor, Tensor]:
    """:func:`max_pool3d` with the place of each maximum.

    Args:
        input: ``[N, C, D, H, W]`` or ``[C, D, H, W]``.
        kernel_size: see :func:`max_pool3d`, also for the four that follow.
        stride: None for ``kernel_size``.
        padding: at most half of ``kernel_size``.
        dilation: at least 1.
        ceil_mode: whether the last window may hang over the end.
        return_indices: has no effect; it is here because torch's function has it.

    Returns:
        The maxima and, int64 of the same shape, the place of each in its flattened volume of the input, as
        :func:`max_unpool3d` takes them.

    Raises:
        RuntimeError: as :func:`max_pool3d`.
    """
    return _run("max_pool3d_with_indices", (input,), kernel_size, _list(stride), padding, dilation, ceil_mode)


def max_pool3d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum over windows of each volume.

    ``y[n, c, o] = max over r of x[n, c, o * stride - padding + r * dilation]`` in each dimension, over positions in x.

    A NaN wins over every number; among equal values the first in row-major order has the gradient. Backward
    needs one byte for each output (windows of up to 256 places), not torch's eight.

    Args:
        input: ``[N, C, D, H, W]``, or ``[C, D, H, W]`` unbatched.
        kernel_size: size of the window, one number or (depth, height, width).
        stride: step of the window, in input positions; None for ``kernel_size``.
        padding: positions of -inf on each side, at most half of ``kernel_size``.
        dilation: distance between the window's elements, in input positions.
        ceil_mode: round the output size up, so that the last window may hang over the end; it still begins
            inside the input or its leading padding.
        return_indices: return the places of the maxima too, see :func:`max_pool3d_with_indices`.

    Returns:
        ``[N, C, O, P, Q]`` (without N where the input has none), each size
        ``floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1``; with ``return_indices`` a pair of
        that and the int64 places.

    Raises:
        RuntimeError: for an input of another rank, a type that fastnn has no kernel for, a stride, kernel or
            dilation below 1, a padding above half of the kernel, or an empty output.
    """
    name = "max_pool3d_with_indices" if return_indices else "max_pool3d"
    return _run(name, (input,), kernel_size, _list(stride), padding, dilation, ceil_mode)


def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Puts each value back where :func:`max_pool1d` found it, between zeros.

    Args:
        input: ``[N, C, L]`` or ``[C, L]``, the pooled values.
        indices: int64, of the input's shape: places in a flattened row of the output. Where several are equal the
            last value in row-major order stays, on every run; as in torch each of them has the gradient of that place.
        kernel_size: of the pooling, as are the two that follow.
        stride: None for ``kernel_size``.
        padding: zero or more.
        output_size: sizes of the output where pooling rounded: 1 numbers, or those of the whole shape. None for
            ``(size - 1) * stride - 2 * padding + kernel_size``.

    Returns:
        A tensor of that size, of the input's type.

    Raises:
        ValueError: for an ``output_size`` of another length, or ``stride`` or more away from the one of None.
        RuntimeError: for shapes and types that do not go together, or an index outside of the row. On a GPU, where
            reading it back would wait, such a value is left out instead.

    Source: the switches of Noh et al. 2015, "Learning Deconvolution Network for Semantic Segmentation".
    """
    size = None if output_size is None else list(output_size)
    return _run("max_unpool1d", (input, indices), kernel_size, _list(stride), padding, size)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Puts each value back where :func:`max_pool2d` found it, between zeros.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``, the pooled values.
        indices: int64, of the input's shape: places in a flattened plane of the output. Where several are equal the
            last value in row-major order stays, on every run; as in torch each of them has the gradient of that place.
        kernel_size: of the pooling, as are the two that follow.
        stride: None for ``kernel_size``.
        padding: zero or more.
        output_size: sizes of the output where pooling rounded: 2 numbers, or those of the whole shape. None for
            ``(size - 1) * stride - 2 * padding + kernel_size``.

    Returns:
        A tensor of that size, of the input's type.

    Raises:
        ValueError: for an ``output_size`` of another length, or ``stride`` or more away from the one of None.
        RuntimeError: for shapes and types that do not go together, or an index outside of the plane. On a GPU, where
            reading it back would wait, such a value is left out instead.

    Source: the switches of Noh et al. 2015, "Learning Deconvolution Network for Semantic Segmentation".
    """
    size = None if output_size is None else list(output_size)
    return _run("max_unpool2d", (input, indices), kernel_size, _list(stride), padding, size)


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Puts each value back where :func:`max_pool3d` found it, between zeros.

    Args:
        input: ``[N, C, D, H, W]`` or ``[C, D, H, W]``, the pooled values.
        indices: int64, of the input's shape: places in a flattened volume of the output. Where several are equal the
            last value in row-major order stays, on every run; as in torch each of them has the gradient of that place.
        kernel_size: of the pooling, as are the two that follow.
        stride: None for ``kernel_size``.
        padding: zero or more.
        output_size: sizes of the output where pooling rounded: 3 numbers, or those of the whole shape. None for
            ``(size - 1) * stride - 2 * padding + kernel_size``.

    Returns:
        A tensor of that size, of the input's type.

    Raises:
        ValueError: for an ``output_size`` of another length, or ``stride`` or more away from the one of None.
        RuntimeError: for shapes and types that do not go together, or an index outside of the volume. On a GPU, where
            reading it back would wait, such a value is left out instead.

    Source: the switches of Noh et al. 2015, "Learning Deconvolution Network for Semantic Segmentation".
    """
    size = None if output_size is None else list(output_size)
    return _run("max_unpool3d", (input, indices), kernel_size, _list(stride), padding, size)


def avg_pool1d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Mean over windows of each row.

    Args:
        input: ``[N, C, L]``, or ``[C, L]`` unbatched.
        kernel_size: size of the window, one number or a list of one.
        stride: step of the window, in input positions; None for ``kernel_size``.
        padding: positions of 0 on each side, at most half of ``kernel_size``.
        ceil_mode: round the output size up, so that the last window may hang over the end; it still begins
            inside the input or its leading padding, and what hangs over does not count.
        count_include_pad: whether positions of the padding count in the mean.

    Returns:
        ``[N, C, P]`` (without N where the input has none), each size
        ``floor((size + 2 * padding - kernel) / stride) + 1``.

    Raises:
        RuntimeError: for an input of another rank, a type that fastnn has no kernel for, a stride or kernel below 1, a
            padding above half of the kernel, or an empty output.
    """
    options = (ceil_mode, count_include_pad)
    return _run("avg_pool1d", (input,), kernel_size, _list(stride), padding, *options)


def avg_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean over windows of each plane.

    Args:
        input: ``[N, C, H, W]``, or ``[C, H, W]`` unbatched.
        kernel_size: size of the window, one number or (height, width).
        stride: step of the window, in input positions; None for ``kernel_size``.
        padding: positions of 0 on each side, at most half of ``kernel_size``.
        ceil_mode: round the output size up, so that the last window may hang over the end; it still begins
            inside the input or its leading padding, and what hangs over does not count.
        count_include_pad: whether positions of the padding count in the mean.
        divisor_override: what sums are divided by, instead of the number of positions; not 0.

    Returns:
        ``[N, C, P, Q]`` (without N where the input has none), each size
        ``floor((size + 2 * padding - kernel) / stride) + 1``.

    Raises:
        RuntimeError: for an input of another rank, a type that fastnn has no kernel for, a stride or kernel below 1, a
            padding above half of the kernel, a divisor of 0, or an empty output.
    """
    options = (ceil_mode, count_include_pad, divisor_override)
    return _run("avg_pool2d", (input,), kernel_size, _list(stride), padding, *options)


def avg_pool3d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean over windows of each volume.

    Args:
        input: ``[N, C, D, H, W]``, or ``[C, D, H, W]`` unbatched.
        kernel_size: size of the window, one number or (depth, height, width).
        stride: step of the window, in input positions; None for ``kernel_size``.
        padding: positions of 0 on each side, at most half of ``kernel_size``.
        ceil_mode: round the output size up, so that the last window may hang over the end; it still begins
            inside the input or its leading padding, and what hangs over does not count.
        count_include_pad: whether positions of the padding count in the mean.
        divisor_override: what sums are divided by, instead of the number of positions; not 0.

    Returns:
        ``[N, C, O, P, Q]`` (without N where the input has none), each size
        ``floor((size + 2 * padding - kernel) / stride) + 1``.

    Raises:
        RuntimeError: for an input of another rank, a type that fastnn has no kernel for, a stride or kernel below 1, a
            padding above half of the kernel, a divisor of 0, a window larger than the input, or an empty output.
    """
    options = (ceil_mode, count_include_pad, divisor_override)
    return _run("avg_pool3d", (input,), kernel_size, _list(stride), padding, *options)


def lp_pool1d(
    input: Tensor,
    norm_type: float,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The p-norm of each window: ``y = (sum over the window of x^p)^(1/p)``, p = ``norm_type``.

    Not of absolute values, as in torch: an odd or broken p takes negative sums or numbers as they are. With p = 2 this
    is
    L2 pooling. Windows that ``ceil_mode`` lets hang over the end count as if they were whole: their sum is scaled up.
    Forward and backward are one kernel each, and keep input and output alone.

    Args:
        input: ``[N, C, L]``, or ``[C, L]`` unbatched.
        norm_type: p, not 0; infinity for the largest magnitude, and minus infinity for the smallest.
        kernel_size: size of the window, one number or a list of one.
        stride: step of the window; None for ``kernel_size``.
        ceil_mode: round the output size up.

    Returns:
        ``[N, C, P]`` (without N where the input has none), each size ``floor((size - kernel) / stride) + 1``. Where y
        is 0 the gradient is 0.

    Raises:
        ZeroDivisionError: for a ``norm_type`` of 0.
        RuntimeError: as :func:`avg_pool1d`.

    Source: Sermanet et al. 2012, "Convolutional neural networks applied to house numbers digit classification".
    """
    return _run("lp_pool1d", (input,), _norm(norm_type), kernel_size, _list(stride), ceil_mode)


def lp_pool2d(
    input: Tensor,
    norm_type: float,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The p-norm of each window: ``y = (sum over the window of x^p)^(1/p)``, p = ``norm_type``.

    Not of absolute values, as in torch: an odd or broken p takes negative sums or numbers as they are. With p = 2 this
    is
    L2 pooling. Windows that ``ceil_mode`` lets hang over the end count as if they were whole: their sum is scaled up.
    Forward and backward are one kernel each, and keep input and output alone.

    Args:
        input: ``[N, C, H, W]``, or ``[C, H, W]`` unbatched.
        norm_type: p, not 0; infinity for the largest magnitude, and minus infinity for the smallest.
        kernel_size: size of the window, one number or (height, width).
        stride: step of the window; None for ``kernel_size``.
        ceil_mode: round the output size up.

    Returns:
        ``[N, C, P, Q]`` (without N where the input has none), each size ``floor((size - kernel) / stride) + 1``. Where
        y is 0 the gradient is 0.

    Raises:
        ZeroDivisionError: for a ``norm_type`` of 0.
        RuntimeError: as :func:`avg_pool2d`.

    Source: Sermanet et al. 2012, "Convolutional neural networks applied to house numbers digit classification".
    """
    return _run("lp_pool2d", (input,), _norm(norm_type), kernel_size, _list(stride), ceil_mode)


def lp_pool3d(
    input: Tensor,
    norm_type: float,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The p-norm of each window: ``y = (sum over the window of x^p)^(1/p)``, p = ``norm_type``.

    Not of absolute values, as in torch: an odd or broken p takes negative sums or numbers as they are. With p = 2 this
    is
    L2 pooling. Windows that ``ceil_mode`` lets hang over the end count as if they were whole: their sum is scaled up.
    Forward and backward are one kernel each, and keep input and output alone.

    Args:
        input: ``[N, C, D, H, W]``, or ``[C, D, H, W]`` unbatched.
        norm_type: p, not 0; infinity for the largest magnitude, and minus infinity for the smallest.
        kernel_size: size of the window, one number or (depth, height, width).
        stride: step of the window; None for ``kernel_size``.
        ceil_mode: round the output size up.

    Returns:
        ``[N, C, O, P, Q]`` (without N where the input has none), each size ``floor((size - kernel) / stride) + 1``.
        Where y is 0 the gradient is 0.

    Raises:
        ZeroDivisionError: for a ``norm_type`` of 0.
        RuntimeError: as :func:`avg_pool3d`.

    Source: Sermanet et al. 2012, "Convolutional neural networks applied to house numbers digit classification".
    """
    return _run("lp_pool3d", (input,), _norm(norm_type), kernel_size, _list(stride), ceil_mode)
