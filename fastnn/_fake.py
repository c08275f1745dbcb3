"""Fake kernels: the shape, type and strides of what each op returns, without computing it.

They serve meta tensors, ``FakeTensor``, ``torch.compile`` and ``torch.export``. Sizes may be symbolic, so they
are computed by arithmetic that works on symbols and checked with ``torch._check``. Ops that torch decomposes by
itself (those of torch's signatures, as ``conv2d``, ``conv_transpose2d``, ``max_pool2d``, ``batch_norm``,
``batch_norm_act``, ``lstm_cell``, and ``recurrence``) need none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.library import register_fake


def _memory_format(channels_last: bool, dim: int) -> torch.memory_format:
    if channels_last and dim in (4, 5):
        return torch.channels_last if dim == 4 else torch.channels_last_3d
    return torch.contiguous_format


def _is_channels_last(tensor: Tensor) -> bool:
    return suggest_memory_format(tensor) != torch.contiguous_format


def _empty(size: Sequence[int], like: Tensor, channels_last: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(
        size,
        dtype=like.dtype if dtype is None else dtype,
        device=like.device,
        memory_format=_memory_format(channels_last, len(size)),
    )


def _wanted(mask: bool, size: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An output that a mask asks for, else the empty tensor that stands for "not asked for"."""
    return _empty(size if mask else (0,), like, dtype=dtype)


def _accumulation_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- activations --------------------------------------------------------------------------------------------


@register_fake("fastnn::activation")
def _activation(input: Tensor, residual: Tensor | None, activation: str, alpha: float) -> Tensor:
    return torch.empty_like(input)


@register_fake("fastnn::activation_backward")
def _activation_backward(
    grad_output: Tensor, kept: Tensor, residual: Tensor | None, activation: str, alpha: float
) -> Tensor:
    return torch.empty_like(kept)


# ---- convolution --------------------------------------------------------------------------------------------


@register_fake("fastnn::convolution")
def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str = "identity",
    alpha: float = 0.0,
) -> Tensor:
    torch._check(
        input.dim() == weight.dim(),
        lambda: f"convolution: input and weight must have as many dimensions, got {input.shape} and {weight.shape}",
    )
    torch._check(
        input.shape[1] == weight.shape[1] * groups,
        lambda: f"convolution: input {input.shape} and weight {weight.shape} do not go together in {groups} groups",
    )
    size = [input.shape[0], weight.shape[0]]
    for d in range(input.dim() - 2):
        span = input.shape[2 + d] + padding[2 * d] + padding[2 * d + 1] - dilation[d] * (weight.shape[2 + d] - 1) - 1
        torch._check(span >= 0, lambda: f"convolution: the window of {weight.shape} exceeds the input {input.shape}")
        size.append(span // stride[d] + 1)
    return _empty(size, input, _is_channels_last(input) or _is_channels_last(weight))


@register_fake("fastnn::convolution_grad_input")
def _convolution_grad_input(
    grad_output: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    bias: Tensor | None = None,
) -> Tensor:
    return _empty(input_size, grad_output, channels_last)


@register_fake("fastnn::convolution_grad_weight")
def _convolution_grad_weight(
    input: Tensor,
    grad_output: Tensor,
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
) -> Tensor:
    return _empty(weight_size, input, channels_last)


@register_fake("fastnn::convolution_grad_bias")
def _convolution_grad_bias(grad_output: Tensor) -> Tensor:
    return _empty((grad_output.shape[1],), grad_output)


@register_fake("fastnn::locally_connected")
def _locally_connected(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    rank = input.dim() - 2
    torch._check(
        weight.dim() == 2 * rank + 2 and weight.shape[rank + 1] == input.shape[1],
        lambda: f"locally_connected: input {input.shape} and weight {weight.shape} do not go together",
    )
    for d in range(rank):
        span = input.shape[2 + d] + 2 * padding[d] - dilation[d] * (weight.shape[rank + 2 + d] - 1) - 1
        torch._check(
            weight.shape[d] == span // stride[d] + 1,
            lambda: f"locally_connected: weight {weight.shape} has filters for other positions than {input.shape}",
        )
    return _empty([input.shape[0], weight.shape[rank], *weight.shape[:rank]], input, _is_channels_last(input))


@register_fake("fastnn::locally_connected_grad_input")
def _locally_connected_grad_input(
    grad_output: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    channels_last: bool,
) -> Tensor:
    return _empty(input_size, grad_output, channels_last)


@register_fake("fastnn::locally_connected_grad_weight")
def _locally_connected_grad_weight(
    input: Tensor,
    grad_output: Tensor,
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    return _empty(weight_size, input)


# ---- batch normalisation ------------------------------------------------------------------------------------


@register_fake("fastnn::batch_norm_forward")
def _batch_norm_forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    skip_nonfinite_stats: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = (input.shape[1],)
    statistics = _accumulation_type(input.dtype)
    return (
        _empty(input.shape, input, _is_channels_last(input)),
        _empty(channels, input, dtype=statistics),
        _empty(channels, input, dtype=statistics),
    )


@register_fake("fastnn::batch_norm_statistics")
def _batch_norm_statistics(input: Tensor) -> tuple[Tensor, Tensor]:
    channels, dtype = (input.shape[1],), _accumulation_type(input.dtype)
    return _empty(channels, input, dtype=dtype), _empty(channels, input, dtype=dtype)


@register_fake("fastnn::batch_norm_backward")
def _batch_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    training: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    channels = (input.shape[1],)
    parameter = input.dtype if weight is None else weight.dtype
    return (
        _empty(input.shape if output_mask[0] else (0,), input, _is_channels_last(input)),
        _wanted(output_mask[1], channels, input, parameter),
        _wanted(output_mask[2], channels, input, parameter),
    )


@register_fake("fastnn::batch_norm_act_forward")
def _batch_norm_act_forward(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    activation: str,
    alpha: float,
    save_mask: bool,
    skip_nonfinite_stats: bool = False,
) -> tuple[Tensor, ...]:
    channels_last, channels = _is_channels_last(input), input.shape[1]
    by_channel = [_empty((channels,), input, dtype=_accumulation_type(input.dtype)) for _ in range(4)]
    # batch_norm_mask_bytes() of csrc/ops/batch_norm.h.
    spatial = math.prod(input.shape[2:])
    rows = channels_last or input.dim() == 2
    run, runs = (channels, input.shape[0] * spatial) if rows else (spatial, input.shape[0] * channels)
    rectifies = activation == "relu" or (activation == "leaky_relu" and alpha != 1)  # of relu alpha says nothing
    masked = save_mask and residual is not None and rectifies
    mask_bytes = (runs * ((run + 7) // 8) + 31) // 32 * 32
    mask = _empty((mask_bytes if masked else 0,), input, dtype=torch.uint8)
    return (_empty(input.shape, input, channels_last), *by_channel, mask)


@register_fake("fastnn::batch_norm_act_backward")
def _batch_norm_act_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor,
    residual: Tensor | None,
    training: bool,
    activation: str,
    alpha: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    like_input = [_empty(input.shape if m else (0,), input, _is_channels_last(input)) for m in output_mask[::3]]
    parameter = input.dtype if weight is None else weight.dtype
    parameters = (_wanted(m, (input.shape[1],), input, parameter) for m in output_mask[1:3])
    return (like_input[0], *parameters, like_input[1])


@register_fake("fastnn::batch_norm_act_gradient")
def _batch_norm_act_gradient(grad_output: Tensor, input: Tensor, *saved: object) -> Tensor:
    return _empty(input.shape, input, _is_channels_last(input))


@register_fake("fastnn::batch_norm_act_apply")
def _batch_norm_act_apply(input: Tensor, *others: object) -> Tensor:
    return _empty(input.shape, input, _is_channels_last(input))


@register_fake("fastnn::batch_norm_double_backward")
def _batch_norm_double_backward(
    gg_input: Tensor | None,
    gg_weight: Tensor | None,
    gg_bias: Tensor | None,
    grad_output: Tensor | None,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    training: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    channels_last = _is_channels_last(input)
    return (
        _empty(input.shape if output_mask[0] else (0,), input, channels_last),
        _empty(input.shape if output_mask[1] else (0,), input, channels_last),
        _wanted(output_mask[2], (input.shape[1],), input, input.dtype if weight is None else weight.dtype),
    )


# ---- LSTM cell ----------------------------------------------------------------------------------------------


@register_fake("fastnn::lstm_cell_pointwise")
def _lstm_cell_pointwise(
    gates: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None, cx: Tensor
) -> tuple[Tensor, Tensor]:
    return _empty(cx.shape, cx), _empty(cx.shape, cx)


@register_fake("fastnn::lstm_cell_pointwise_backward")
def _lstm_cell_pointwise_backward(
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    gates: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    cx: Tensor,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _empty(gates.shape, gates),  # computed in any case: the biases' gradient is a sum over it
        _wanted(output_mask[1], cx.shape, cx),
        _wanted(output_mask[2], (gates.shape[1],), gates),
    )


@register_fake("fastnn::lstm_cell_pointwise_double_backward")
def _lstm_cell_pointwise_double_backward(
    gg_gates: Tensor | None,
    gg_cx: Tensor | None,
    gg_bias: Tensor | None,
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    gates: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    cx: Tensor,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        _wanted(output_mask[0], cx.shape, cx),
        _wanted(output_mask[1], cx.shape, cx),
        _wanted(output_mask[2] or output_mask[4], gates.shape, gates),  # d_bias is a sum over d_gates
        _wanted(output_mask[3], cx.shape, cx),
        _wanted(output_mask[4], (gates.shape[1],), gates),
    )


@register_fake("fastnn::lstm_cell_step")
def _lstm_cell_step(
    input: Tensor,
    hx: Tensor,
    cx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    save_gates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(cx.shape, cx), _empty(cx.shape, cx), _wanted(save_gates, (cx.shape[0], 4 * cx.shape[1]), cx)


@register_fake("fastnn::lstm_cell_step_backward")
def _lstm_cell_step_backward(
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    input: Tensor,
    hx: Tensor,
    cx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    gates: Tensor,
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    shapes = [t.shape for t in (input, hx, cx, w_ih, w_hh)]
    return tuple(
        _wanted(wanted, shape, cx) for wanted, shape in zip(output_mask, [*shapes, (4 * cx.shape[1],)], strict=True)
    )


@register_fake("fastnn::lstm_cell_products")
def _lstm_cell_products(input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor) -> Tensor:
    return _empty((hx.shape[0], 4 * hx.shape[1]), hx)


@register_fake("fastnn::lstm_cell_products_backward")
def _lstm_cell_products_backward(
    grad_gates: Tensor, input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, output_mask: Sequence[bool]
) -> tuple[Tensor, ...]:
    shapes = [t.shape for t in (input, hx, w_ih, w_hh)]
    return tuple(_wanted(wanted, shape, hx) for wanted, shape in zip(output_mask, shapes, strict=True))
