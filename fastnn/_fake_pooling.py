"""Fake kernels of the pooling ops; see ``fastnn/_fake.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import register_fake

from fastnn._fake import _empty, _is_channels_last

# ---- max pooling --------------------------------------------------------------------------------------------


def _pool_out_size(size: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool) -> int:
    span = size + 2 * pad - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return span // stride + 1
    out = (span + stride - 1) // stride + 1
    # The last window begins inside the input or its leading padding.
    return out - 1 if (out - 1) * stride >= size + pad else out


def _offset_type(kernel_size: Sequence[int]) -> torch.dtype:
    window = 1
    for k in kernel_size:
        window *= k
    return torch.uint8 if window <= 256 else torch.uint16 if window <= 65536 else torch.int32


@register_fake("fastnn::max_pool")
def _max_pool(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    save_offsets: bool,
    return_indices: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    size = [input.shape[0], input.shape[1]]
    for d, options in enumerate(zip(kernel_size, stride, padding, dilation, strict=True)):
        out = _pool_out_size(input.shape[2 + d], *options, ceil_mode)
        torch._check(out >= 1, lambda: f"max_pool: the output of input {input.shape} is too small")
        size.append(out)
    channels_last = _is_channels_last(input)
    offset_type = _offset_type(kernel_size)
    return (
        _empty(size, input, channels_last),
        _empty(size if save_offsets else (0,), input, channels_last, offset_type),
        _empty(size if return_indices else (0,), input, channels_last, torch.int64),
    )


@register_fake("fastnn::max_pool_backward")
def _max_pool_backward(
    grad_output: Tensor,
    offsets: Tensor,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    return _empty(input_size, grad_output, _is_channels_last(offsets))


@register_fake("fastnn::max_pool_gather")
def _max_pool_gather(
    input: Tensor,
    offsets: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    return _empty(offsets.shape, input, _is_channels_last(offsets))


# ---- average and L_p pooling --------------------------------------------------------------------------------


@register_fake("fastnn::average_pool")
def _average_pool(input: Tensor, output_size: Sequence[int], *options: Any) -> Tensor:
    return _empty([*input.shape[:2], *output_size], input, _is_channels_last(input))


@register_fake("fastnn::average_pool_backward")
def _average_pool_backward(grad_output: Tensor, input_size: Sequence[int], *options: Any) -> Tensor:
    return _empty(input_size, grad_output, _is_channels_last(grad_output))


@register_fake("fastnn::lp_pool")
def _lp_pool(input: Tensor, output_size: Sequence[int], *options: Any) -> Tensor:
    return _empty([*input.shape[:2], *output_size], input, _is_channels_last(input))


@register_fake("fastnn::lp_pool_backward")
def _lp_pool_backward(grad_output: Tensor, input: Tensor, output: Tensor, *options: Any) -> Tensor:
    return _empty(input.shape, input, _is_channels_last(input))


# ---- pooling with switches ----------------------------------------------------------------------------------


@register_fake("fastnn::switch_gather")
def _switch_gather(input: Tensor, indices: Tensor) -> Tensor:
    return _empty(indices.shape, input, _is_channels_last(input))


@register_fake("fastnn::switch_sum")
def _switch_sum(input: Tensor, indices: Tensor, size: Sequence[int]) -> Tensor:
    return _empty([*input.shape[:2], *size], input, _is_channels_last(input))


@register_fake("fastnn::switch_place")
def _switch_place(input: Tensor, indices: Tensor, size: Sequence[int]) -> Tensor:
    return _empty([*input.shape[:2], *size], input, _is_channels_last(input))


@register_fake("fastnn::switch_pool")
def _switch_pool(
    input: Tensor, output_size: Sequence[int], kernel_size: Sequence[int], samples: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = [*input.shape[:2], *output_size]
    channels_last = samples is None and _is_channels_last(input)
    return _empty(shape, input, channels_last), _empty(shape, input, channels_last, torch.int64)
