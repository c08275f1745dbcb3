"""Pooling layers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnn import functional


class MaxPool2d(torch.nn.MaxPool2d):
    """``torch.nn.MaxPool2d``, computed by :func:`fastnn.functional.max_pool2d`, else unchanged.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, C, P, Q]`` or ``[C, P, Q]``; with ``return_indices`` a pair
        of that and the int64 places of the maxima.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See the class."""
        return functional.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )
