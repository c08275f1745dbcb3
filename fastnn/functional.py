"""Functions of ``torch.nn.functional`` that fastnn implements; its other names fall through to it.

Nothing is computed here. Each function calls the op of the same name: through pybind11, which costs 2.6 us a
call on tiny tensors where ``torch.ops`` costs 3.5 us; or through ``torch.ops`` where the call must be seen as
an op: while Dynamo traces, and for arguments or modes that override torch functions (an FX proxy, a tensor
subclass). Either way the dispatcher is next, with autograd, autocast, fake tensors and transforms. Convolutions stand
in ``fastnn/_convolution.py``, pooling in ``fastnn/_pooling.py`` and ``fastnn/_pooling_by_output.py``, recurrent
functions in ``fastnn/_recurrent.py``, norms other than batch norm in ``fastnn/_normalisation.py``, activations in
``fastnn/_activation.py``.

Types: float64, float32, bfloat16 and float16; the last two accumulate in float32. Layouts: contiguous and
``channels_last`` are both native, and the output keeps the input's; other strides work. Devices: CPU, and CUDA
where fastnn was built with it. Forward is differentiable twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as _torch_functional
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_variadic

from fastnn._activation import ACTIVATIONS as ACTIVATIONS
from fastnn._activation import activation, maxout
from fastnn._activation import alpha_of as alpha_of
from fastnn._backend import _C
from fastnn._convolution import (
    conv1d,
    conv1d_relu,
    conv2d,
    conv2d_relu,
    conv3d,
    conv3d_relu,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    locally_connected1d,
    locally_connected2d,
)
from fastnn._normalisation import group_norm, instance_norm, local_response_norm
from fastnn._pooling import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool1d_with_indices,
    max_pool2d,
    max_pool2d_with_indices,
    max_pool3d,
    max_pool3d_with_indices,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
)
from fastnn._pooling_by_output import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool1d_with_indices,
    adaptive_max_pool2d,
    adaptive_max_pool2d_with_indices,
    adaptive_max_pool3d,
    adaptive_max_pool3d_with_indices,
    fractional_max_pool2d,
    fractional_max_pool2d_with_indices,
    fractional_max_pool3d,
    fractional_max_pool3d_with_indices,
)
from fastnn._recurrent import GATE_ACTIVATIONS as GATE_ACTIVATIONS
from fastnn._recurrent import gru, gru_cell, lstm, lstm_cell, mut, mut_cell, rnn, rnn_cell
from fastnn._sync_batch_norm import sync_batch_norm

if TYPE_CHECKING:
    from torch.nn.functional import *  # noqa: F403 - what falls through, for type checkers

__all__ = [
    "activation",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_with_indices",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "batch_norm_add_relu",
    "batch_norm_relu",
    "conv1d",
    "conv1d_relu",
    "conv2d",
    "conv2d_relu",
    "conv3d",
    "conv3d_relu",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "fractional_max_pool2d",
    "fractional_max_pool2d_with_indices",
    "fractional_max_pool3d",
    "fractional_max_pool3d_with_indices",
    "group_norm",
    "gru",
    "gru_cell",
    "instance_norm",
    "local_response_norm",
    "locally_connected1d",
    "locally_connected2d",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "lstm",
    "lstm_cell",
    "max_pool1d",
    "max_pool1d_with_indices",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool3d",
    "max_pool3d_with_indices",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "maxout",
    "mut",
    "mut_cell",
    "rnn",
    "rnn_cell",
    "sync_batch_norm",
]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    num_batches_tracked: Tensor | None = None,
    skip_nonfinite_stats: bool = False,
) -> Tensor:
    """Batch normalisation: ``y = weight * (x - mean) / sqrt(var + eps) + bias``, per channel.

    Training takes mean and (biased) variance over the batch and all positions, by a method that is safe at
    large means, and moves the running statistics in place; evaluation takes mean and variance from the running
    ones.

    Args:
        input: ``[N, C]`` or ``[N, C, ...]`` with one to three spatial sizes.
        running_mean: ``[C]``, updated in training; None to keep none. Evaluation needs it.
        running_var: ``[C]``, unbiased variance (over M - 1, for M values a channel), likewise.
        weight: ``[C]``; None for 1.
        bias: ``[C]``; None for 0. These four may be float32 beside an input of a 16-bit type.
        training: whether the statistics come from this batch.
        momentum: share of the batch in the new running statistics, ``running = (1 - momentum) * running +
            momentum * batch``. None for the average over all batches, ``1 / (num_batches_tracked + 1)``, which
            is read on the device: nobody waits for it.
        eps: added to the variance; above 0 in training.
        num_batches_tracked: a one-element int64 tensor, incremented in training; None for none. Together with
            ``momentum=None``, it is what torch's layer does outside of its function.
        skip_nonfinite_stats: whether a batch in which a channel has no finite mean and variance moves no running
            statistic and is not counted, as users of mixed precision want of a step that they will skip.

    Returns:
        A tensor like the input. When the call raises, no statistic has been touched.

    Raises:
        ValueError: for one value a channel in training, or an ``eps`` that is not positive.
        RuntimeError: for shapes, types or devices that do not go together, or evaluation without statistics.

    Formula: Ioffe and Szegedy 2015, "Batch Normalization", algorithm 1.
    """
    if is_dynamo_compiling() or has_torch_function_variadic(input, running_mean, running_var, weight, bias):
        return torch.ops.fastnn.batch_norm(
            input,
            weight,
            bias,
            running_mean,
            running_var,
            num_batches_tracked,
            training,
            momentum,
            eps,
            skip_nonfinite_stats,
        )
    return _C.batch_norm(
        input,
        weight,
        bias,
        running_mean,
        running_var,
        num_batches_tracked,
        training,
        momentum,
        eps,
        skip_nonfinite_stats,
    )


def _batch_norm_act(
    input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, *options: Any
) -> Tensor:
    *others, activation, alpha, skip_nonfinite_stats = options
    alpha = alpha_of(activation, alpha)
    arguments = (input, residual, weight, bias, *others, activation, alpha, skip_nonfinite_stats)
    if is_dynamo_compiling() or has_torch_function_variadic(input, residual, weight, bias, *others[:2]):
        return torch.ops.fastnn.batch_norm_act(*arguments)
    return _C.batch_norm_act(*arguments)


def batch_norm_relu(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "relu",
    alpha: float | None = None,
    num_batches_tracked: Tensor | None = None,
    skip_nonfinite_stats: bool = False,
) -> Tensor:
    """:func:`batch_norm` and an activation in the same passes: ``y = act(batch_norm(x))``.

    Nothing is kept for the activation's derivative: backward finds what went into it again from x, which it
    reads anyway.

    Args:
        input: see :func:`batch_norm`, also for the seven that follow.
        running_mean: ``[C]`` or None.
        running_var: ``[C]`` or None.
        weight: ``[C]`` or None.
        bias: ``[C]`` or None.
        training: whether the statistics come from this batch.
        momentum: share of the batch in the new running statistics.
        eps: added to the variance.
        activation: one of those of :func:`activation`.
        alpha: the activation's parameter, of ``leaky_relu`` any number; None for torch's default.
        num_batches_tracked: see :func:`batch_norm`.
        skip_nonfinite_stats: see :func:`batch_norm`.

    Returns:
        A tensor like the input.

    Raises:
        ValueError: for an unknown activation, one value a channel in training, or an ``eps`` not positive.
        RuntimeError: as :func:`batch_norm`.

    Formulas: Ioffe and Szegedy 2015, and those of :func:`activation`.
    """
    return _batch_norm_act(
        input,
        None,
        weight,
        bias,
        running_mean,
        running_var,
        num_batches_tracked,
        training,
        momentum,
        eps,
        activation,
        alpha,
        skip_nonfinite_stats,
    )


def batch_norm_add_relu(
    input: Tensor,
    residual: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "relu",
    alpha: float | None = None,
    num_batches_tracked: Tensor | None = None,
    skip_nonfinite_stats: bool = False,
) -> Tensor:
    """The end of a residual block in the passes of :func:`batch_norm`: ``y = act(batch_norm(x) + residual)``.

    For the derivative of ``relu`` and ``leaky_relu`` one bit a value is kept, for that of others the residual.

    Args:
        input: see :func:`batch_norm_relu`, also for what follows ``residual``.
        residual: of the input's shape, type and device.
        running_mean: ``[C]`` or None.
        running_var: ``[C]`` or None.
        weight: ``[C]`` or None.
        bias: ``[C]`` or None.
        training: whether the statistics come from this batch.
        momentum: share of the batch in the new running statistics.
        eps: added to the variance.
        activation: one of those of :func:`activation`.
        alpha: the activation's parameter.
        num_batches_tracked: see :func:`batch_norm`.
        skip_nonfinite_stats: see :func:`batch_norm`.

    Returns:
        A tensor like the input.

    Raises:
        ValueError: as :func:`batch_norm_relu`.
        RuntimeError: as :func:`batch_norm`, and for a residual that is not like the input.

    Formula: He et al. 2016, "Deep Residual Learning for Image Recognition", figure 2.
    """
    return _batch_norm_act(
        input,
        residual,
        weight,
        bias,
        running_mean,
        running_var,
        num_batches_tracked,
        training,
        momentum,
        eps,
        activation,
        alpha,
        skip_nonfinite_stats,
    )


def __getattr__(name: str) -> Any:
    try:
        return getattr(_torch_functional, name)
    except AttributeError:
        raise AttributeError(f"neither fastnn.functional nor torch.nn.functional has an attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_functional)})
