"""Fake kernels of normalisation other than batch normalisation; see :mod:`fastnn._fake`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import register_fake

from fastnn._fake import _accumulation_type, _empty, _is_channels_last, _wanted


def _like(input: Tensor, wanted: bool = True) -> Tensor:
    return _empty(input.shape if wanted else (0,), input, _is_channels_last(input))


@register_fake("fastnn::local_response_norm")
def _local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    torch._check_value(
        input.dim() >= 3,
        lambda: f"local_response_norm: Expected 3D or higher dimensionality input, but got shape {input.shape}",
    )
    torch._check(size >= 1, lambda: f"local_response_norm: size should be greater than zero, but got size={size}")
    return _like(input)


@register_fake("fastnn::local_response_norm_backward")
def _local_response_norm_backward(grad_output: Tensor, input: Tensor, *options: object) -> Tensor:
    return _like(input)


@register_fake("fastnn::local_response_norm_double_backward")
def _local_response_norm_double_backward(
    gg_input: Tensor,
    grad_output: Tensor | None,
    input: Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    return _like(input, output_mask[0]), _like(input, output_mask[1])


@register_fake("fastnn::group_norm_forward")
def _group_norm_forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    groups: int,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    torch._check(
        input.shape[1] % groups == 0,
        lambda: f"group_norm: input {input.shape} does not have channels for {groups} groups",
    )
    size, statistics = (input.shape[0], groups), _accumulation_type(input.dtype)
    return _like(input), _empty(size, input, dtype=statistics), _empty(size, input, dtype=statistics)


@register_fake("fastnn::group_norm_backward")
def _group_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    parameter = input.dtype if weight is None else weight.dtype
    parameters = (_wanted(wanted, (input.shape[1],), input, parameter) for wanted in output_mask[1:])
    return (_like(input, output_mask[0]), *parameters)
