"""Convolution layers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnn import functional


class Conv2d(torch.nn.Conv2d):
    """``torch.nn.Conv2d`` computed by :func:`fastnn.functional.conv2d`.

    Arguments, parameters, ``state_dict`` and errors are torch's. Every ``padding_mode`` is taken; those other
    than ``'zeros'`` pad with ``torch.nn.functional.pad`` first, as torch's layer does.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, K, P, Q]`` or ``[K, P, Q]``.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return functional.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):
    """``torch.nn.LazyConv2d`` that becomes a :class:`fastnn.nn.Conv2d` when it sees its first input."""

    cls_to_become = Conv2d
