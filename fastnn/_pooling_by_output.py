"""The functions of :mod:`fastnn.functional` that pool to an output of a given size: adaptive and fractional pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastnn._pooling import _run


def _output_size(input: Tensor, output_size: int | Sequence[int | None] | None, rank: int) -> list[int]:
    """Sizes with the input's where one is None, as torch takes them."""
    if isinstance(output_size, int | torch.SymInt):
        return [output_size] * rank
    sizes = [None] * rank if output_size is None else list(output_size)
    if rank == 1:
        return sizes
    if input.dim() <= len(sizes):
        raise ValueError(f"Input dimension should be at least {len(sizes) + 1}, got shape {tuple(input.shape)}")
    own = input.shape[input.dim() - len(sizes) :]
    return [own[d] if size is None else size for d, size in enumerate(sizes)]


def adaptive_avg_pool1d(input: Tensor, output_size: int | Sequence[int]) -> Tensor:
    """Mean over windows that divide each row into ``output_size`` parts.

    Window i of a dimension has the positions from ``floor(i * in / out)`` to ``ceil((i + 1) * in / out) - 1``; they
    overlap by one where ``out`` does not divide ``in``. A size of 1 is global pooling.

    Args:
        input: ``[N, C, L]``, or ``[C, L]`` unbatched.
        output_size: one number, or a list of one.

    Returns:
        ``[N, C, P]`` (without N where the input has none).

    Raises:
        RuntimeError: for an input of another rank or with no positions, a type that fastnn has no kernel for, or a
            negative size.
    """
    return _run("adaptive_avg_pool1d", (input,), _output_size(input, output_size, 1))


def adaptive_max_pool1d_with_indices(
    input: Tensor, output_size: int | Sequence[int], return_indices: bool = True
) -> tuple[Tensor, Tensor]:
    """:func:`adaptive_max_pool1d` with the place of each maximum.

    Args:
        input: ``[N, C, L]`` or ``[C, L]``.
        output_size: one number, or a list of one.
        return_indices: has no effect; it is here because torch's function has it.

    Returns:
        The maxima and, int64 of the same shape, the place of each in its flattened row.

    Raises:
        RuntimeError: as :func:`adaptive_max_pool1d`.
    """
    return _run("adaptive_max_pool1d", (input,), _output_size(input, output_size, 1), True)


def adaptive_max_pool1d(
    input: Tensor, output_size: int | Sequence[int], return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum over windows that divide each row into ``output_size`` parts.

    The windows are :func:`adaptive_avg_pool1d`'s, the rules for NaN and equal values :func:`max_pool1d`'s.

    Args:
        input: ``[N, C, L]``, or ``[C, L]`` unbatched.
        output_size: one number, or a list of one.
        return_indices: return the places of the maxima too.

    Returns:
        ``[N, C, P]`` (without N where the input has none); with ``return_indices`` a pair of that and, int64, the
        places in the flattened row.

    Raises:
        RuntimeError: as :func:`adaptive_avg_pool1d`.
    """
    pair = _run("adaptive_max_pool1d", (input,), _output_size(input, output_size, 1), return_indices)
    return pair if return_indices else pair[0]


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """Mean over windows that divide each plane into ``output_size`` parts.

    Window i of a dimension has the positions from ``floor(i * in / out)`` to ``ceil((i + 1) * in / out) - 1``; they
    overlap by one where ``out`` does not divide ``in``. A size of 1 is global pooling.

    Args:
        input: ``[N, C, H, W]``, or ``[C, H, W]`` unbatched.
        output_size: one number or (height, width); None for a size of the input.

    Returns:
        ``[N, C, P, Q]`` (without N where the input has none).

    Raises:
        RuntimeError: for an input of another rank or with no positions, a type that fastnn has no kernel for, or a
            negative size.
        ValueError: for an input with fewer dimensions than ``output_size`` and one.
    """
    return _run("adaptive_avg_pool2d", (input,), _output_size(input, output_size, 2))


def adaptive_max_pool2d_with_indices(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = True
) -> tuple[Tensor, Tensor]:
    """:func:`adaptive_max_pool2d` with the place of each maximum.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``.
        output_size: one number or (height, width); None for a size of the input.
        return_indices: has no effect; it is here because torch's function has it.

    Returns:
        The maxima and, int64 of the same shape, the place of each in its flattened plane.

    Raises:
        RuntimeError: as :func:`adaptive_max_pool2d`.
        ValueError: for an input with fewer dimensions than ``output_size`` and one.
    """
    return _run("adaptive_max_pool2d", (input,), _output_size(input, output_size, 2), True)


def adaptive_max_pool2d(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum over windows that divide each plane into ``output_size`` parts.

    The windows are :func:`adaptive_avg_pool2d`'s, the rules for NaN and equal values :func:`max_pool2d`'s.

    Args:
        input: ``[N, C, H, W]``, or ``[C, H, W]`` unbatched.
        output_size: one number or (height, width); None for a size of the input.
        return_indices: return the places of the maxima too.

    Returns:
        ``[N, C, P, Q]`` (without N where the input has none); with ``return_indices`` a pair of that and, int64, the
        places in the flattened plane.

    Raises:
        RuntimeError: as :func:`adaptive_avg_pool2d`.
        ValueError: for an input with fewer dimensions than ``output_size`` and one.
    """
    pair = _run("adaptive_max_pool2d", (input,), _output_size(input, output_size, 2), return_indices)
    return pair if return_indices else pair[0]


def adaptive_avg_pool3d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """Mean over windows that divide each volume into ``output_size`` parts.

    Window i of a dimension has the positions from ``floor(i * in / out)`` to ``ceil((i + 1) * in / out) - 1``; they
    overlap by one where ``out`` does not divide ``in``. A size of 1 is global pooling.

    Args:
        input: ``[N, C, D, H, W]``, or ``[C, D, H, W]`` unbatched.
        output_size: one number or (depth, height, width); None for a size of the input.

    Returns:
        ``[N, C, O, P, Q]`` (without N where the input has none).

    Raises:
        RuntimeError: for an input of another rank or with no positions, a type that fastnn has no kernel for, or a
            negative size.
        ValueError: for an input with fewer dimensions than ``output_size`` and one.
    """
    return _run("adaptive_avg_pool3d", (input,), _output_size(input, output_size, 3))


def adaptive_max_pool3d_with_indices(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = True
) -> tuple[Tensor, Tensor]:
    """:func:`adaptive_max_pool3d` with the place of each maximum.

    Args:
        input: ``[N, C, D, H, W]`` or ``[C, D, H, W]``.
        output_size: one number or (depth, height, width); None for a size of the input.
        return_indices: has no effect; it is here because torch's function has it.

    Returns:
        The maxima and, int64 of the same shape, the place of each in its flattened volume.

    Raises:
        RuntimeError: as :func:`adaptive_max_pool3d`.
        ValueError: for an input with fewer dimensions than ``output_size`` and one.
    """
    return _run("adaptive_max_pool3d", (input,), _output_size(input, output_size, 3), True)


def adaptive_max_pool3d(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum over windows that divide each volume into ``output_size`` parts.

    The windows are :func:`adaptive_avg_pool3d`'s, the rules for NaN and equal values :func:`max_pool3d`'s.

    Args:
        input: ``[N, C, D, H, W]``, or ``[C, D, H, W]`` unbatched.
        output_size: one number or (depth, height, width); None for a size of the input.
        return_indices: return the places of the maxima too.

    Returns:
        ``[N, C, O, P, Q]`` (without N where the input has none); with ``return_indices`` a pair of that and, int64,
        the places in the flattened volume.

    Raises:
        RuntimeError: as :func:`adaptive_avg_pool3d`.
        ValueError: for an input with fewer dimensions than ``output_size`` and one.
    """
    pair = _run("adaptive_max_pool3d", (input,), _output_size(input, output_size, 3), return_indices)
    return pair if return_indices else pair[0]


def _fractional(
    rank: int,
    input: Tensor,
    kernel_size: int | Sequence[int],
    output_size: int | Sequence[int] | None,
    output_ratio: float | Sequence[float] | None,
    samples: Tensor | None,
) -> tuple[Tensor, Tensor]:
    name = f"fractional_max_pool{rank}d"
    if output_size is None:
        if output_ratio is None:
            raise ValueError(f"{name} requires specifying either an output_size or an output_ratio, got neither")
        ratios = (output_ratio,) * rank if isinstance(output_ratio, int | float) else tuple(output_ratio)
        if len(ratios) != rank:
            raise ValueError(f"{name} requires output_ratio to be one number or {rank}, got {output_ratio}")
        output_size = [int(input.size(d - rank) * ratio) for d, ratio in enumerate(ratios)]
    elif isinstance(output_size, int | torch.SymInt):
        output_size = [output_size] * rank
    if samples is None:
        batch = 1 if input.dim() == rank + 1 else input.size(0)
        samples = torch.rand(batch, input.size(-rank - 1), rank, dtype=input.dtype, device=input.device)
    arguments: tuple[Any, ...] = (kernel_size, output_size, samples)
    return _run(name, (input,), *arguments)


def fractional_max_pool2d_with_indices(
    input: Tensor,
    kernel_size: int | Sequence[int],
    output_size: int | Sequence[int] | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = True,
    _random_samples: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`fractional_max_pool2d` with the place of each maximum.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``.
        kernel_size: see :func:`fractional_max_pool2d`, also for the two that follow.
        output_size: sizes of the output.
        output_ratio: or their ratios to the input's.
        return_indices: has no effect; it is here because torch's function has it.
        _random_samples: ``[N, C, 2]`` in [0, 1); None to draw them.

    Returns:
        The maxima and, int64 of the same shape, the place of each in its flattened plane.

    Raises:
        ValueError: as :func:`fractional_max_pool2d`.
        RuntimeError: likewise.
    """
    return _fractional(2, input, kernel_size, output_size, output_ratio, _random_samples)


def fractional_max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    output_size: int | Sequence[int] | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum over windows of one size whose places are drawn anew for each plane.

    In each dimension window i of ``out`` begins at ``int((i + u) * a) - int(u * a)`` with
    ``a = (in - kernel) / (out - 1)`` and u of [0, 1), the last one at ``in - kernel``. The numbers are drawn as torch
    draws them: the same seed gives the same windows. In half types they are placed in float32, as torch does on a GPU.

    Args:
        input: ``[N, C, H, W]``, or ``[C, H, W]`` unbatched.
        kernel_size: size of the windows, one number or (height, width).
        output_size: one number or (height, width).
        output_ratio: or the ratios of the output's sizes to the input's, in (0, 1).
        return_indices: return the places of the maxima too.
        _random_samples: ``[N, C, 2]`` of the input's type in [0, 1), a number for each dimension (width first); None to
            draw them.

    Returns:
        ``[N, C, P, Q]`` (without N where the input has none), contiguous; with ``return_indices`` a pair of that and,
        int64, the places in the flattened plane.

    Raises:
        ValueError: where neither size nor ratio is given.
        RuntimeError: for an input of another rank, a type that fastnn has no kernel for, windows that are too large for
            the output, or samples of another shape or type.

    Source: Graham 2014, "Fractional Max-Pooling".
    """
    pair = _fractional(2, input, kernel_size, output_size, output_ratio, _random_samples)
    return pair if return_indices else pair[0]


def fractional_max_pool3d_with_indices(
    input: Tensor,
    kernel_size: int | Sequence[int],
    output_size: int | Sequence[int] | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = True,
    _random_samples: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`fractional_max_pool3d` with the place of each maximum.

    Args:
        input: ``[N, C, D, H, W]`` or ``[C, D, H, W]``.
        kernel_size: see :func:`fractional_max_pool3d`, also for the two that follow.
        output_size: sizes of the output.
        output_ratio: or their ratios to the input's.
        return_indices: has no effect; it is here because torch's function has it.
        _random_samples: ``[N, C, 3]`` in [0, 1); None to draw them.

    Returns:
        The maxima and, int64 of the same shape, the place of each in its flattened volume.

    Raises:
        ValueError: as :func:`fractional_max_pool3d`.
        RuntimeError: likewise.
    """
    return _fractional(3, input, kernel_size, output_size, output_ratio, _random_samples)


def fractional_max_pool3d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    output_size: int | Sequence[int] | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum over windows of one size whose places are drawn anew for each volume.

    In each dimension window i of ``out`` begins at ``int((i + u) * a) - int(u * a)`` with
    ``a = (in - kernel) / (out - 1)`` and u of [0, 1), the last one at ``in - kernel``. The numbers are drawn as torch
    draws them: the same seed gives the same windows. In half types they are placed in float32, as torch does on a GPU.

    Args:
        input: ``[N, C, D, H, W]``, or ``[C, D, H, W]`` unbatched.
        kernel_size: size of the windows, one number or (depth, height, width).
        output_size: one number or (depth, height, width).
        output_ratio: or the ratios of the output's sizes to the input's, in (0, 1).
        return_indices: return the places of the maxima too.
        _random_samples: ``[N, C, 3]`` of the input's type in [0, 1), a number for each dimension (depth first); None to
            draw them.

    Returns:
        ``[N, C, O, P, Q]`` (without N where the input has none), contiguous; with ``return_indices`` a pair of that
        and, int64, the places in the flattened volume.

    Raises:
        ValueError: where neither size nor ratio is given.
        RuntimeError: for an input of another rank, a type that fastnn has no kernel for, windows that are too large for
            the output, or samples of another shape or type.

    Source: Graham 2014, "Fractional Max-Pooling".
    """
    pair = _fractional(3, input, kernel_size, output_size, output_ratio, _random_samples)
    return pair if return_indices else pair[0]
