"""Batch normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnn import functional


class _BatchNormForward(torch.nn.modules.batchnorm._BatchNorm):
    """The one method that the three layers replace.

    It differs from torch's in who counts: the op itself increments ``num_batches_tracked`` and, for
    ``momentum=None``, reads it on the device, so that nothing waits for the device, and a call that raises has
    changed no buffer.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        self._check_input_dim(input)
        momentum = self.momentum
        if self.training and not self.track_running_stats:
            running_mean = running_var = num_batches_tracked = None
        else:
            running_mean, running_var = self.running_mean, self.running_var
            num_batches_tracked = self.num_batches_tracked if self.training else None
        if momentum is None and num_batches_tracked is None:
            momentum = 0.0  # an average over batches that nobody counts: torch leaves the statistics as they are
        return functional.batch_norm(
            input,
            running_mean,
            running_var,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
            num_batches_tracked=num_batches_tracked,
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
