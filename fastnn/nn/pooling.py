"""Pooling layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnn import functional


class MaxPool1d(torch.nn.MaxPool1d):
    """``torch.nn.MaxPool1d``, computed by :func:`fastnn.functional.max_pool1d`, else unchanged.

    Shape:
        ``[N, C, L]`` or ``[C, L]`` to ``[N, C, P]`` or ``[C, P]``; with
        ``return_indices`` a pair of that and the int64 places of the maxima.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See the class."""
        return functional.max_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class MaxPool2d(torch.nn.MaxPool2d):
    """``torch.nn.MaxPool2d``, computed by :func:`fastnn.functional.max_pool2d`, else unchanged.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, C, P, Q]`` or ``[C, P, Q]``; with
        ``return_indices`` a pair of that and the int64 places of the maxima.
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


class MaxPool3d(torch.nn.MaxPool3d):
    """``torch.nn.MaxPool3d``, computed by :func:`fastnn.functional.max_pool3d`, else unchanged.

    Shape:
        ``[N, C, D, H, W]`` or ``[C, D, H, W]`` to ``[N, C, O, P, Q]`` or ``[C, O, P, Q]``; with
        ``return_indices`` a pair of that and the int64 places of the maxima.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See the class."""
        return functional.max_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class MaxUnpool1d(torch.nn.MaxUnpool1d):
    """``torch.nn.MaxUnpool1d``, computed by :func:`fastnn.functional.max_unpool1d`, else unchanged.

    Shape:
        ``[N, C, L]`` or ``[C, L]`` to ``[N, C, P]`` or ``[C, P]``, as long as the
        pooling's input was or as ``output_size`` says.
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """See the class."""
        return functional.max_unpool1d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool2d(torch.nn.MaxUnpool2d):
    """``torch.nn.MaxUnpool2d``, computed by :func:`fastnn.functional.max_unpool2d`, else unchanged.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, C, P, Q]`` or ``[C, P, Q]``, as long as the
        pooling's input was or as ``output_size`` says.
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """See the class."""
        return functional.max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool3d(torch.nn.MaxUnpool3d):
    """``torch.nn.MaxUnpool3d``, computed by :func:`fastnn.functional.max_unpool3d`, else unchanged.

    Shape:
        ``[N, C, D, H, W]`` or ``[C, D, H, W]`` to ``[N, C, O, P, Q]`` or ``[C, O, P, Q]``, as long as the
        pooling's input was or as ``output_size`` says.
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """See the class."""
        return functional.max_unpool3d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class AvgPool1d(torch.nn.AvgPool1d):
    """``torch.nn.AvgPool1d``, computed by :func:`fastnn.functional.avg_pool1d`, else unchanged.

    Shape:
        ``[N, C, L]`` or ``[C, L]`` to ``[N, C, P]`` or ``[C, P]``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return functional.avg_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """``torch.nn.AvgPool2d``, computed by :func:`fastnn.functional.avg_pool2d`, else unchanged.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, C, P, Q]`` or ``[C, P, Q]``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AvgPool3d(torch.nn.AvgPool3d):
    """``torch.nn.AvgPool3d``, computed by :func:`fastnn.functional.avg_pool3d`, else unchanged.

    Shape:
        ``[N, C, D, H, W]`` or ``[C, D, H, W]`` to ``[N, C, O, P, Q]`` or ``[C, O, P, Q]``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return functional.avg_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class LPPool1d(torch.nn.LPPool1d):
    """``torch.nn.LPPool1d``, computed by :func:`fastnn.functional.lp_pool1d`, else unchanged.

    Shape:
        ``[N, C, L]`` or ``[C, L]`` to ``[N, C, P]`` or ``[C, P]``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return functional.lp_pool1d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool2d(torch.nn.LPPool2d):
    """``torch.nn.LPPool2d``, computed by :func:`fastnn.functional.lp_pool2d`, else unchanged.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, C, P, Q]`` or ``[C, P, Q]``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return functional.lp_pool2d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool3d(torch.nn.LPPool3d):
    """``torch.nn.LPPool3d``, computed by :func:`fastnn.functional.lp_pool3d`, else unchanged.

    Shape:
        ``[N, C, D, H, W]`` or ``[C, D, H, W]`` to ``[N, C, O, P, Q]`` or ``[C, O, P, Q]``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return functional.lp_pool3d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    """``torch.nn.AdaptiveAvgPool1d``, computed by :func:`fastnn.functional.adaptive_avg_pool1d`, else unchanged.

    Shape:
        ``[N, C, L]`` or ``[C, L]`` to ``[N, C, P]`` or ``[C, P]``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return functional.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """``torch.nn.AdaptiveAvgPool2d``, computed by :func:`fastnn.functional.adaptive_avg_pool2d`, else unchanged.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, C, P, Q]`` or ``[C, P, Q]``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return functional.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool3d(torch.nn.AdaptiveAvgPool3d):
    """``torch.nn.AdaptiveAvgPool3d``, computed by :func:`fastnn.functional.adaptive_avg_pool3d`, else unchanged.

    Shape:
        ``[N, C, D, H, W]`` or ``[C, D, H, W]`` to ``[N, C, O, P, Q]`` or ``[C, O, P, Q]``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return functional.adaptive_avg_pool3d(input, self.output_size)


class AdaptiveMaxPool1d(torch.nn.AdaptiveMaxPool1d):
    """``torch.nn.AdaptiveMaxPool1d``, computed by :func:`fastnn.functional.adaptive_max_pool1d`, else unchanged.

    Shape:
        ``[N, C, L]`` or ``[C, L]`` to ``[N, C, P]`` or ``[C, P]``; with
        ``return_indices`` a pair of that and the int64 places of the maxima.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See the class."""
        return functional.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """``torch.nn.AdaptiveMaxPool2d``, computed by :func:`fastnn.functional.adaptive_max_pool2d`, else unchanged.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, C, P, Q]`` or ``[C, P, Q]``; with
        ``return_indices`` a pair of that and the int64 places of the maxima.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See the class."""
        return functional.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(torch.nn.AdaptiveMaxPool3d):
    """``torch.nn.AdaptiveMaxPool3d``, computed by :func:`fastnn.functional.adaptive_max_pool3d`, else unchanged.

    Shape:
        ``[N, C, D, H, W]`` or ``[C, D, H, W]`` to ``[N, C, O, P, Q]`` or ``[C, O, P, Q]``; with
        ``return_indices`` a pair of that and the int64 places of the maxima.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See the class."""
        return functional.adaptive_max_pool3d(input, self.output_size, self.return_indices)


class FractionalMaxPool2d(torch.nn.FractionalMaxPool2d):
    """``torch.nn.FractionalMaxPool2d``, computed by :func:`fastnn.functional.fractional_max_pool2d`, else unchanged.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, C, P, Q]`` or ``[C, P, Q]``; with
        ``return_indices`` a pair of that and the int64 places of the maxima.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See the class."""
        return functional.fractional_max_pool2d(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            _random_samples=self._random_samples,
        )


class FractionalMaxPool3d(torch.nn.FractionalMaxPool3d):
    """``torch.nn.FractionalMaxPool3d``, computed by :func:`fastnn.functional.fractional_max_pool3d`, else unchanged.

    Shape:
        ``[N, C, D, H, W]`` or ``[C, D, H, W]`` to ``[N, C, O, P, Q]`` or ``[C, O, P, Q]``; with
        ``return_indices`` a pair of that and the int64 places of the maxima.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See the class."""
        return functional.fractional_max_pool3d(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            _random_samples=self._random_samples,
        )
