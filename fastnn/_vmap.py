"""Batching rules: what an op is under ``torch.func.vmap``.

A mapped dimension of size B is folded into one that the op treats independently, so that one call of the same
op does the work: into the batch where nothing but activations is mapped; into the channels (for a convolution
with B times the groups) where parameters are, or where the result is a sum over the batch. The LSTM cell's
ops have no rule: torch loops over them, and says so in a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import register_vmap

_Dims = Sequence[Any]


def _front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Puts the mapped dimension first; where there is none, every entry is the same tensor."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _into_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """[B, X, ...] as [B * X, ...]: B goes into an activation's batch or a parameter's channels."""
    return _front(tensor, dim, size).flatten(0, 1)


def _into_channels(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """[B, N, C, ...] as [N, B * C, ...]."""
    return _front(tensor, dim, size).movedim(0, 1).flatten(1, 2)


def _optional(
    fold: Callable[[Tensor, int | None, int], Tensor], tensor: Tensor | None, dim: int | None, size: int
) -> Tensor | None:
    return None if tensor is None else fold(tensor, dim, size)


def _out_of(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Undoes a fold into ``dim``: the mapped dimension stands there, what it was folded into behind it."""
    return tensor.unflatten(dim, (size, tensor.shape[dim] // size))


def _registered_folding_first(name: str, *, sized: bool = False, tensors: int = 1) -> None:
    """Registers an op whose leading tensors have a batch first; ``sized`` where its next argument begins with that."""
    op = getattr(torch.ops.fastnn, name)

    def rule(info: Any, in_dims: _Dims, *arguments: Any) -> tuple[Tensor, int]:
        size = info.batch_size
        folded = [_into_first(t, d, size) for t, d in zip(arguments[:tensors], in_dims, strict=False)]
        options = list(arguments[tensors:])
        if sized:
            options[0] = [size * options[0][0], *options[0][1:]]
        return _out_of(op(*folded, *options), 0, size), 0

    register_vmap(f"fastnn::{name}", rule)


_library = torch.library.Library("fastnn", "IMPL")


def decompose_under_vmap(*names: str) -> None:
    """Says of ops that users call, and that are made of others, that vmap is to take them apart.

    Torch would run such an op whole, by its looping fallback.
    """
    for name in names:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.fastnn, packet), overload or "default")
        _library.impl(name, op.decompose, "FuncTorchBatchedDecomposition")


decompose_under_vmap(
    "conv1d",
    "conv1d.padding",
    "conv2d",
    "conv2d.padding",
    "conv3d",
    "conv3d.padding",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "locally_connected1d",
    "locally_connected2d",
    *(f"{name}{rank}d" for name in ("max_pool", "avg_pool", "lp_pool", "max_unpool") for rank in (1, 2, 3)),
    *(f"max_pool{rank}d_with_indices" for rank in (1, 2, 3)),
    *(f"adaptive_{kind}_pool{rank}d" for kind in ("avg", "max") for rank in (1, 2, 3)),
    *(f"fractional_max_pool{rank}d" for rank in (2, 3)),
    "maxout",
    "batch_norm",
    "batch_norm_act",
    "lstm_cell",
    "recurrence",
)


# ---- activations --------------------------------------------------------------------------------------------


def _registered_pointwise(name: str) -> None:
    """Registers an op of each element, which takes a mapped dimension wherever it stands; its tensors come first."""
    op = getattr(torch.ops.fastnn, name)

    def rule(info: Any, in_dims: _Dims, *arguments: Any) -> tuple[Tensor, int]:
        pairs = zip(arguments, in_dims, strict=True)
        return op(*(_front(a, d, info.batch_size) if isinstance(a, Tensor) else a for a, d in pairs)), 0

    register_vmap(f"fastnn::{name}", rule)


_registered_pointwise("activation")
_registered_pointwise("activation_backward")


# ---- convolution --------------------------------------------------------------------------------------------


@register_vmap("fastnn::convolution")
def _convolution(
    info: Any,
    in_dims: _Dims,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str = "identity",
    alpha: float = 0.0,
) -> tuple[Tensor, int]:
    x_dim, w_dim, b_dim = in_dims[:3]
    size, options = info.batch_size, (stride, padding, dilation)
    if w_dim is None and b_dim is None:
        x = _into_first(input, x_dim, size)
        return _out_of(torch.ops.fastnn.convolution(x, weight, bias, *options, groups, activation, alpha), 0, size), 0
    x = _into_channels(input, x_dim, size)
    w = _into_first(weight, w_dim, size)
    b = _optional(_into_first, bias, b_dim, size)
    return _out_of(torch.ops.fastnn.convolution(x, w, b, *options, size * groups, activation, alpha), 1, size), 1


@register_vmap("fastnn::convolution_grad_input")
def _convolution_grad_input(
    info: Any,
    in_dims: _Dims,
    grad_output: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    bias: Tensor | None = None,
) -> tuple[Tensor, int]:
    # Of an argument at its default torch gives no dimension.
    g_dim, w_dim, b_dim = *in_dims[:2], in_dims[8] if len(in_dims) > 8 else None
    size, options = info.batch_size, (stride, padding, dilation)
    batch, channels, *spatial = input_size
    if w_dim is None and b_dim is None:
        g, w, b, groups_folded, dim = _into_first(grad_output, g_dim, size), weight, bias, groups, 0
        folded = [size * batch, channels, *spatial]
    else:
        g, w = _into_channels(grad_output, g_dim, size), _into_first(weight, w_dim, size)
        b = _optional(_into_first, bias, b_dim, size)
        groups_folded, dim = size * groups, 1
        folded = [batch, size * channels, *spatial]
    x = torch.ops.fastnn.convolution_grad_input(g, w, folded, *options, groups_folded, channels_last, b)
    return _out_of(x, dim, size), dim


@register_vmap("fastnn::convolution_grad_weight")
def _convolution_grad_weight(
    info: Any,
    in_dims: _Dims,
    input: Tensor,
    grad_output: Tensor,
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
) -> tuple[Tensor, int]:
    size, options = info.batch_size, (stride, padding, dilation)
    x, g = _into_channels(input, in_dims[0], size), _into_channels(grad_output, in_dims[1], size)
    folded = [size * weight_size[0], *weight_size[1:]]
    w = torch.ops.fastnn.convolution_grad_weight(x, g, folded, *options, size * groups, channels_last)
    return _out_of(w, 0, size), 0


@register_vmap("fastnn::convolution_grad_bias")
def _convolution_grad_bias(info: Any, in_dims: _Dims, grad_output: Tensor) -> tuple[Tensor, int]:
    g = _into_channels(grad_output, in_dims[0], info.batch_size)
    return _out_of(torch.ops.fastnn.convolution_grad_bias(g), 0, info.batch_size), 0


# ---- locally connected layers -------------------------------------------------------------------------------


def _one_by_one(op: Any, info: Any, in_dims: _Dims, tensors: Sequence[Tensor | None], *options: Any) -> Any:
    """Without groups a mapped dimension of filters, or of a sum over images, has nothing to be folded into."""
    entries = []
    for index in range(info.batch_size):
        chosen = (t if d is None or t is None else t.select(d, index) for t, d in zip(tensors, in_dims, strict=False))
        entries.append(op(*chosen, *options))
    return torch.stack(entries), 0


@register_vmap("fastnn::locally_connected")
def _locally_connected(
    info: Any, in_dims: _Dims, input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> tuple[Tensor, int]:
    op, (x_dim, w_dim, b_dim) = torch.ops.fastnn.locally_connected, in_dims[:3]
    if w_dim is not None or b_dim is not None:
        return _one_by_one(op, info, in_dims, (input, weight, bias), *options)
    return _out_of(op(_into_first(input, x_dim, info.batch_size), weight, bias, *options), 0, info.batch_size), 0


@register_vmap("fastnn::locally_connected_grad_input")
def _locally_connected_grad_input(
    info: Any, in_dims: _Dims, grad_output: Tensor, weight: Tensor, input_size: Sequence[int], *options: Any
) -> tuple[Tensor, int]:
    op, size = torch.ops.fastnn.locally_connected_grad_input, info.batch_size
    if in_dims[1] is not None:
        return _one_by_one(op, info, in_dims, (grad_output, weight), input_size, *options)
    folded = [size * input_size[0], *input_size[1:]]
    return _out_of(op(_into_first(grad_output, in_dims[0], size), weight, folded, *options), 0, size), 0


@register_vmap("fastnn::locally_connected_grad_weight")
def _locally_connected_grad_weight(
    info: Any, in_dims: _Dims, input: Tensor, grad_output: Tensor, *options: Any
) -> tuple[Tensor, int]:
    return _one_by_one(torch.ops.fastnn.locally_connected_grad_weight, info, in_dims, (input, grad_output), *options)


# ---- max pooling --------------------------------------------------------------------------------------------


@register_vmap("fastnn::max_pool")
def _max_pool(
    info: Any, in_dims: _Dims, input: Tensor, *options: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    results = torch.ops.fastnn.max_pool(_into_first(input, in_dims[0], info.batch_size), *options)
    # One that was not asked for is an empty 1-D tensor, the same for every entry.
    dims = tuple(None if result.dim() == 1 else 0 for result in results)
    return tuple(r if d is None else _out_of(r, 0, info.batch_size) for r, d in zip(results, dims, strict=True)), dims


_registered_folding_first("max_pool_backward", sized=True, tensors=2)
_registered_folding_first("max_pool_gather", tensors=2)


# ---- average pooling, L_p pooling, pooling with switches ---------------------------------------------------

_registered_folding_first("average_pool")
_registered_folding_first("average_pool_backward", sized=True)
_registered_folding_first("lp_pool")
_registered_folding_first("lp_pool_backward", tensors=3)
_registered_folding_first("switch_gather", tensors=2)
_registered_folding_first("switch_sum", tensors=2)
_registered_folding_first("switch_place", tensors=2)


@register_vmap("fastnn::switch_pool")
def _switch_pool(
    info: Any,
    in_dims: _Dims,
    input: Tensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    samples: Tensor | None,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    if samples is not None and in_dims[3] is None:
        samples = samples[: input.shape[0] if in_dims[0] is None else input.select(in_dims[0], 0).shape[0]]
    folded = (
        _into_first(input, in_dims[0], size),
        output_size,
        kernel_size,
        _optional(_into_first, samples, in_dims[3], size),
    )
    return tuple(_out_of(result, 0, size) for result in torch.ops.fastnn.switch_pool(*folded)), (0, 0)


# ---- batch normalisation ------------------------------------------------------------------------------------


class _Folded:
    """Folds the mapped dimension into the channels, which batch normalisation treats one by one."""

    def __init__(self, size: int) -> None:
        self.size = size

    def activation(self, tensor: Tensor | None, dim: int | None) -> Tensor | None:
        return _optional(_into_channels, tensor, dim, self.size)

    def channels(self, tensor: Tensor | None, dim: int | None) -> Tensor | None:
        return _optional(_into_first, tensor, dim, self.size)

    def unfold(self, results: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        """Activations have the channels at 1, per-channel results at 0, and one not asked for has no values."""
        dims = tuple(None if r.numel() == 0 and r.dim() == 1 else min(r.dim() - 1, 1) for r in results)
        unfolded = (r if d is None else _out_of(r, d, self.size) for r, d in zip(results, dims, strict=True))
        return tuple(unfolded), dims


def _statistics_in_place(
    op: str, fold: _Folded, statistics: Sequence[Tensor | None], in_dims: _Dims, mapped: bool, options: Sequence[Any]
) -> tuple[tuple[Tensor | None, ...], Callable[[], None]]:
    """running_mean, running_var and num_batches_tracked for the folded call, and what puts them back behind it.

    ``options`` begin with training and momentum.
    """
    running_mean, running_var, num_batches_tracked = statistics
    mean_dim, var_dim, count_dim = in_dims
    training, momentum = options[:2]
    if training and mapped and running_mean is not None and (mean_dim is None or var_dim is None):
        raise RuntimeError(
            f"{op} under vmap: the input is mapped, but the running statistics, which training updates in "
            "place, are not. Map them too, or set track_running_stats=False."
        )
    if training and count_dim is not None and momentum is None:
        raise RuntimeError(f"{op} under vmap: momentum=None needs a num_batches_tracked that is not mapped")
    mean, var = fold.channels(running_mean, mean_dim), fold.channels(running_var, var_dim)

    def put_back() -> None:
        if not training:
            return
        # Folding may have copied: what was updated in place goes back to where the caller keeps it. Unmapped
        # statistics go with an unmapped input, so every entry's are the same.
        for folded, kept, dim in ((mean, running_mean, mean_dim), (var, running_var, var_dim)):
            if folded is not None and kept is not None:
                entries = _out_of(folded, 0, fold.size)
                kept.copy_(entries[0] if dim is None else entries.movedim(0, dim))
        if num_batches_tracked is not None and count_dim is not None:
            num_batches_tracked.add_(1)

    return (mean, var, None if count_dim is not None else num_batches_tracked), put_back


@register_vmap("fastnn::batch_norm_forward")
def _batch_norm_forward(
    info: Any,
    in_dims: _Dims,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    *options: Any,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    fold = _Folded(info.batch_size)
    statistics, put_back = _statistics_in_place(
        "batch_norm",
        fold,
        (running_mean, running_var, num_batches_tracked),
        in_dims[3:6],
        in_dims[0] is not None,
        options,
    )
    results = torch.ops.fastnn.batch_norm_forward(
        fold.activation(input, in_dims[0]),
        fold.channels(weight, in_dims[1]),
        fold.channels(bias, in_dims[2]),
        *statistics,
        *options,
    )
    put_back()
    return fold.unfold(results)


@register_vmap("fastnn::batch_norm_act_forward")
def _batch_norm_act_forward(
    info: Any,
    in_dims: _Dims,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    *options: Any,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    fold = _Folded(info.batch_size)
    statistics, put_back = _statistics_in_place(
        "batch_norm_act",
        fold,
        (running_mean, running_var, num_batches_tracked),
        in_dims[4:7],
        in_dims[0] is not None or in_dims[1] is not None,
        options,
    )
    *results, mask = torch.ops.fastnn.batch_norm_act_forward(
        fold.activation(input, in_dims[0]),
        fold.activation(residual, in_dims[1]),
        fold.channels(weight, in_dims[2]),
        fold.channels(bias, in_dims[3]),
        *statistics,
        *options,
    )
    put_back()
    unfolded, dims = fold.unfold(results)
    # The mask's order is the kernels' own: it stays folded, as backward will have everything else.
    return (*unfolded, mask), (*dims, None)


def _folds_or_loops(op: Any, info: Any, in_dims: _Dims, arguments: Sequence[Any], roles: str) -> tuple[Any, Any]:
    """An op of what a forward returned, in the form in which that forward was called.

    ``roles`` says of each leading argument whether it is an activation (a), by channel (c), the mean (s) or the
    mask (m). Where the mean is not mapped the forward was not folded, nor is its mask: then each entry is a call.
    """
    fold = _Folded(info.batch_size)
    mask = arguments[roles.index("m")]
    if mask.numel() > 0 and in_dims[roles.index("s")] is None:
        entries = [
            op(*(a.select(d, i) if isinstance(d, int) else a for a, d in zip(arguments, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(entries[0], Tensor):
            return torch.stack(entries), 0
        return tuple(torch.stack(of_each) for of_each in zip(*entries, strict=True)), (0,) * len(entries[0])
    fold_as = {"a": fold.activation, "c": fold.channels, "s": fold.channels, "m": lambda tensor, dim: tensor}
    folded = [fold_as[role](a, d) for role, a, d in zip(roles, arguments, in_dims, strict=False)]
    results = op(*folded, *arguments[len(roles) :])
    if not isinstance(results, Tensor):
        return fold.unfold(results)
    unfolded, dims = fold.unfold([results])
    return unfolded[0], dims[0]


@register_vmap("fastnn::batch_norm_act_backward")
def _batch_norm_act_backward(info: Any, in_dims: _Dims, *arguments: Any) -> tuple[Any, Any]:
    roles = "aac" + "sccc" + "ma"  # grad_output, input, weight; mean, invstd, scale, shift; mask, output
    return _folds_or_loops(torch.ops.fastnn.batch_norm_act_backward, info, in_dims, arguments, roles)


@register_vmap("fastnn::batch_norm_act_gradient")
def _batch_norm_act_gradient(info: Any, in_dims: _Dims, *arguments: Any) -> tuple[Any, Any]:
    roles = "aa" + "scc" + "ma"  # grad_output, input; mean, scale, shift; mask, output
    return _folds_or_loops(torch.ops.fastnn.batch_norm_act_gradient, info, in_dims, arguments, roles)


@register_vmap("fastnn::batch_norm_act_apply")
def _batch_norm_act_apply(
    info: Any, in_dims: _Dims, input: Tensor, residual: Tensor | None, *arguments: Any
) -> tuple[Tensor, int | None]:
    fold = _Folded(info.batch_size)
    by_channel = [fold.channels(a, d) for a, d in zip(arguments[:3], in_dims[2:5], strict=True)]
    result = torch.ops.fastnn.batch_norm_act_apply(
        fold.activation(input, in_dims[0]), fold.activation(residual, in_dims[1]), *by_channel, *arguments[3:]
    )
    unfolded, dims = fold.unfold([result])
    return unfolded[0], dims[0]


@register_vmap("fastnn::batch_norm_backward")
def _batch_norm_backward(
    info: Any,
    in_dims: _Dims,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    *options: Any,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    fold = _Folded(info.batch_size)
    results = torch.ops.fastnn.batch_norm_backward(
        fold.activation(grad_output, in_dims[0]),
        fold.activation(input, in_dims[1]),
        fold.channels(weight, in_dims[2]),
        fold.channels(mean, in_dims[3]),
        fold.channels(invstd, in_dims[4]),
        *options,
    )
    return fold.unfold(results)


@register_vmap("fastnn::batch_norm_double_backward")
def _batch_norm_double_backward(
    info: Any,
    in_dims: _Dims,
    gg_input: Tensor | None,
    gg_weight: Tensor | None,
    gg_bias: Tensor | None,
    grad_output: Tensor | None,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    *options: Any,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    fold = _Folded(info.batch_size)
    results = torch.ops.fastnn.batch_norm_double_backward(
        fold.activation(gg_input, in_dims[0]),
        fold.channels(gg_weight, in_dims[1]),
        fold.channels(gg_bias, in_dims[2]),
        fold.activation(grad_output, in_dims[3]),
        fold.activation(input, in_dims[4]),
        fold.channels(weight, in_dims[5]),
        fold.channels(mean, in_dims[6]),
        fold.channels(invstd, in_dims[7]),
        *options,
    )
    return fold.unfold(results)
