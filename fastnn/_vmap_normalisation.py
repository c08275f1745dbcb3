"""Batching rules of normalisation other than batch normalisation; see :mod:`fastnn._vmap`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import register_vmap

from fastnn._vmap import (
    _Dims,
    _Folded,
    _into_first,
    _optional,
    _out_of,
    _registered_folding_first,
    _statistics_in_place,
    decompose_under_vmap,
)

decompose_under_vmap("group_norm", "instance_norm")


_registered_folding_first("local_response_norm")
_registered_folding_first("local_response_norm_backward", tensors=2)


@register_vmap("fastnn::local_response_norm_double_backward")
def _local_response_norm_double_backward(
    info: Any, in_dims: _Dims, gg_input: Tensor, grad_output: Tensor | None, input: Tensor, *options: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    tensors = (gg_input, grad_output, input)
    folded = (_optional(_into_first, t, d, info.batch_size) for t, d in zip(tensors, in_dims, strict=False))
    results = torch.ops.fastnn.local_response_norm_double_backward(*folded, *options)
    # One that was not asked for is an empty 1-D tensor, the same for every entry.
    dims = tuple(None if r.dim() == 1 else 0 for r in results)
    return tuple(r if d is None else _out_of(r, 0, info.batch_size) for r, d in zip(results, dims, strict=True)), dims


@register_vmap("fastnn::group_norm_forward")
def _group_norm_forward(
    info: Any,
    in_dims: _Dims,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    groups: int,
    momentum: float,
    eps: float,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    fold = _Folded(info.batch_size)
    statistics, put_back = _statistics_in_place(
        "instance_norm",
        fold,
        (running_mean, running_var, None),
        (*in_dims[3:5], None),
        in_dims[0] is not None,
        (True, momentum),
    )
    results = torch.ops.fastnn.group_norm_forward(
        fold.activation(input, in_dims[0]),
        fold.channels(weight, in_dims[1]),
        fold.channels(bias, in_dims[2]),
        *statistics[:2],
        groups * fold.size,
        momentum,
        eps,
    )
    put_back()
    return fold.unfold(results)


@register_vmap("fastnn::group_norm_backward")
def _group_norm_backward(
    info: Any,
    in_dims: _Dims,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    groups: int,
    output_mask: Any,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    fold = _Folded(info.batch_size)
    results = torch.ops.fastnn.group_norm_backward(
        fold.activation(grad_output, in_dims[0]),
        fold.activation(input, in_dims[1]),
        fold.channels(weight, in_dims[2]),
        *(fold.activation(t, d).contiguous() for t, d in zip((mean, invstd), in_dims[3:5], strict=True)),
        groups * fold.size,
        output_mask,
    )
    return fold.unfold(results)
