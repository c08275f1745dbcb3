"""Batch normalisation layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnn import functional
from fastnn.nn.activation import Activated


class _BatchNormForward(torch.nn.modules.batchnorm._BatchNorm):
    """The one method that the three layers replace.

    It differs from torch's in who counts: the op itself increments ``num_batches_tracked`` and, for
    ``momentum=None``, reads it on the device, so that nothing waits for the device, and a call that raises has
    changed no buffer.

    ``skip_nonfinite_stats``, an attribute to be set, is that of :func:`fastnn.functional.batch_norm`.
    """

    skip_nonfinite_stats: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return normalise(self, functional.batch_norm, input)


def normalise(
    layer: torch.nn.Module,
    function: Callable[..., Tensor],
    input: Tensor,
    *others: Tensor | None,
    **options: Any,
) -> Tensor:
    """One of the functions with a layer's arguments, torch's layer or fastnn's; ``others`` follow the input."""
    layer._check_input_dim(input)
    momentum = layer.momentum
    if layer.training and not layer.track_running_stats:
        running_mean = running_var = num_batches_tracked = None
    else:
        running_mean, running_var = layer.running_mean, layer.running_var
        num_batches_tracked = layer.num_batches_tracked if layer.training else None
    if momentum is None and num_batches_tracked is None:
        momentum = 0.0  # an average over batches that nobody counts: torch leaves the statistics as they are
    return function(
        input,
        *others,
        running_mean,
        running_var,
        layer.weight,
        layer.bias,
        layer.training or (layer.running_mean is None and layer.running_var is None),
        momentum,
        layer.eps,
        num_batches_tracked=num_batches_tracked,
        skip_nonfinite_stats=getattr(layer, "skip_nonfinite_stats", False),
        **options,
    )


class BatchNorm1d(_BatchNormForward, torch.nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d``, computed by :func:`fastnn.functional.batch_norm`, else unchanged.

    Shape:
        ``[N, C]`` or ``[N, C, L]`` to the same.
    """


class BatchNorm2d(_BatchNormForward, torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d``, computed by :func:`fastnn.functional.batch_norm`, else unchanged.

    Shape:
        ``[N, C, H, W]`` to the same.
    """


class BatchNorm3d(_BatchNormForward, torch.nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d``, computed by :func:`fastnn.functional.batch_norm`, else unchanged.

    Shape:
        ``[N, C, D, H, W]`` to the same.
    """


class LazyBatchNorm1d(torch.nn.LazyBatchNorm1d, BatchNorm1d):
    """``torch.nn.LazyBatchNorm1d`` that becomes fastnn's :class:`BatchNorm1d` at its first input."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(torch.nn.LazyBatchNorm2d, BatchNorm2d):
    """``torch.nn.LazyBatchNorm2d`` that becomes fastnn's :class:`BatchNorm2d` at its first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(torch.nn.LazyBatchNorm3d, BatchNorm3d):
    """``torch.nn.LazyBatchNorm3d`` that becomes fastnn's :class:`BatchNorm3d` at its first input."""

    cls_to_become = BatchNorm3d


class _WithActivation(Activated):
    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return normalise(self, functional.batch_norm_relu, input, activation=self.activation, alpha=self.alpha)


class _WithResidual(Activated):
    def forward(self, input: Tensor, residual: Tensor) -> Tensor:
        """See the class."""
        return normalise(
            self, functional.batch_norm_add_relu, input, residual, activation=self.activation, alpha=self.alpha
        )


class BatchNormReLU1d(_WithActivation, BatchNorm1d):
    """:class:`BatchNorm1d` and an activation in one: :func:`fastnn.functional.batch_norm_relu`.

    Args: see the layer without an activation; ``activation`` and ``alpha`` as keywords.

    Shape:
        ``[N, C]`` or ``[N, C, L]`` to the same.
    """


class BatchNormAddReLU1d(_WithResidual, BatchNorm1d):
    """The end of a residual block: :func:`fastnn.functional.batch_norm_add_relu` of an input and a residual.

    Args: see the layer without an activation; ``activation`` and ``alpha`` as keywords.

    Shape:
        ``[N, C]`` or ``[N, C, L]``, twice, to the same.
    """


class BatchNormReLU2d(_WithActivation, BatchNorm2d):
    """:class:`BatchNorm2d` and an activation in one: :func:`fastnn.functional.batch_norm_relu`.

    Args: see the layer without an activation; ``activation`` and ``alpha`` as keywords.

    Shape:
        ``[N, C, H, W]`` to the same.
    """


class BatchNormAddReLU2d(_WithResidual, BatchNorm2d):
    """The end of a residual block: :func:`fastnn.functional.batch_norm_add_relu` of an input and a residual.

    Args: see the layer without an activation; ``activation`` and ``alpha`` as keywords.

    Shape:
        ``[N, C, H, W]``, twice, to the same.
    """


class BatchNormReLU3d(_WithActivation, BatchNorm3d):
    """:class:`BatchNorm3d` and an activation in one: :func:`fastnn.functional.batch_norm_relu`.

    Args: see the layer without an activation; ``activation`` and ``alpha`` as keywords.

    Shape:
        ``[N, C, D, H, W]`` to the same.
    """


class BatchNormAddReLU3d(_WithResidual, BatchNorm3d):
    """The end of a residual block: :func:`fastnn.functional.batch_norm_add_relu` of an input and a residual.

    Args: see the layer without an activation; ``activation`` and ``alpha`` as keywords.

    Shape:
        ``[N, C, D, H, W]``, twice, to the same.
    """
