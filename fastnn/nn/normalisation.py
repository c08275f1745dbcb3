"""Normalisation layers other than batch normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnn import functional


class LocalResponseNorm(torch.nn.LocalResponseNorm):
    """``torch.nn.LocalResponseNorm``, computed by :func:`fastnn.functional.local_response_norm`, else unchanged.

    Shape:
        ``[N, C, ...]`` with one spatial size or more, to the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return functional.local_response_norm(input, self.size, self.alpha, self.beta, self.k)


class GroupNorm(torch.nn.GroupNorm):
    """``torch.nn.GroupNorm``, computed by :func:`fastnn.functional.group_norm`, else unchanged.

    Shape:
        ``[N, C, ...]`` to the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return functional.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class _InstanceNormForward(torch.nn.modules.instancenorm._InstanceNorm):
    """The one method that the three layers replace."""

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return functional.instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0,
            self.eps,
        )


class InstanceNorm1d(_InstanceNormForward, torch.nn.InstanceNorm1d):
    """``torch.nn.InstanceNorm1d``, computed by :func:`fastnn.functional.instance_norm`, else unchanged.

    Shape:
        ``[N, C, L]`` or ``[C, L]``, to the same.
    """


class InstanceNorm2d(_InstanceNormForward, torch.nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d``, computed by :func:`fastnn.functional.instance_norm`, else unchanged.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]``, to the same.
    """


class InstanceNorm3d(_InstanceNormForward, torch.nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d``, computed by :func:`fastnn.functional.instance_norm`, else unchanged.

    Shape:
        ``[N, C, D, H, W]`` or ``[C, D, H, W]``, to the same.
    """


class LazyInstanceNorm1d(torch.nn.LazyInstanceNorm1d, InstanceNorm1d):
    """``torch.nn.LazyInstanceNorm1d`` that becomes fastnn's :class:`InstanceNorm1d` at its first input."""

    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(torch.nn.LazyInstanceNorm2d, InstanceNorm2d):
    """``torch.nn.LazyInstanceNorm2d`` that becomes fastnn's :class:`InstanceNorm2d` at its first input."""

    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(torch.nn.LazyInstanceNorm3d, InstanceNorm3d):
    """``torch.nn.LazyInstanceNorm3d`` that becomes fastnn's :class:`InstanceNorm3d` at its first input."""

    cls_to_become = InstanceNorm3d
