"""Convolution layers with an activation, and with a batch norm between the two."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fastnn import functional
from fastnn._fused import forget_folds, run_chain
from fastnn.nn.activation import Activated
from fastnn.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastnn.nn.conv import Conv1d, Conv2d, Conv3d, convolve


class _ConvAct(Activated):
    """The one method that the three layers replace."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(self, input, weight, bias, self.activation, self.alpha)


class ConvAct1d(_ConvAct, Conv1d):
    """:class:`Conv1d` and an activation in one pass: :func:`fastnn.functional.conv1d_relu`.

    Args: see :class:`Conv1d`; ``activation`` and ``alpha``, those of :func:`fastnn.functional.activation`, as keywords.

    Shape:
        ``[N, C, L]`` or ``[C, L]`` to ``[N, K, P]`` or ``[K, P]``.

    Raises:
        ValueError: for an activation that there is not.
    """


class ConvAct2d(_ConvAct, Conv2d):
    """:class:`Conv2d` and an activation in one pass: :func:`fastnn.functional.conv2d_relu`.

    Args: see :class:`Conv2d`; ``activation`` and ``alpha``, those of :func:`fastnn.functional.activation`, as keywords.

    Shape:
        ``[N, C, H, W]`` or ``[C, H, W]`` to ``[N, K, P, Q]`` or ``[K, P, Q]``.

    Raises:
        ValueError: for an activation that there is not.
    """


class ConvAct3d(_ConvAct, Conv3d):
    """:class:`Conv3d` and an activation in one pass: :func:`fastnn.functional.conv3d_relu`.

    Args: see :class:`Conv3d`; ``activation`` and ``alpha``, those of :func:`fastnn.functional.activation`, as keywords.

    Shape:
        ``[N, C, D, H, W]`` or ``[C, D, H, W]`` to ``[N, K, O, P, Q]`` or ``[K, O, P, Q]``.

    Raises:
        ValueError: for an activation that there is not.
    """


class _ConvBNAct(Activated):
    """What the layers of each rank share; :class:`ConvBNAct2d` has their arguments."""

    _conv: ClassVar[type[torch.nn.Module]]
    _bn: ClassVar[type[torch.nn.Module]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        *,
        activation: str = "relu",
        alpha: float | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(activation=activation, alpha=alpha)
        place = {"device": device, "dtype": dtype}
        options = (stride, padding, dilation, groups, bias, padding_mode)
        self.conv = self._conv(in_channels, out_channels, kernel_size, *options, **place)
        self.bn = self._bn(out_channels, eps, momentum, affine, track_running_stats, **place)

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        alpha = functional.alpha_of(self.activation, self.alpha)
        return run_chain(self.conv, self.bn, (self.activation, alpha), False, input)

    def train(self, mode: bool = True) -> _ConvBNAct:
        """As torch's; the folded weights are made anew, since torch does not count writes through ``.data``."""
        forget_folds(self)
        return super().train(mode)


class ConvBNAct1d(_ConvBNAct):
    """:class:`Conv1d`, :class:`BatchNorm1d` and an activation; arguments and errors as :class:`ConvBNAct2d`.

    Shape:
        ``[N, C, L]`` to ``[N, K, P]``.
    """

    _conv, _bn = Conv1d, BatchNorm1d


class ConvBNAct2d(_ConvBNAct):
    """:class:`Conv2d`, :class:`BatchNorm2d` and an activation: ``conv`` and ``bn`` in the ``state_dict``.

    In training the batch norm and the activation are one op. In evaluation without gradients of the parameters all
    three are: the batch norm becomes part of the convolution's weights, which are made again when they have changed
    (see :func:`fastnn.fuse`).

    Args:
        in_channels: C, and up to ``groups`` as the convolution takes them.
        out_channels: K.
        kernel_size: of the convolution.
        stride: of the convolution.
        padding: of the convolution.
        dilation: of the convolution.
        groups: of the convolution.
        bias: whether the convolution has one; the batch norm takes it away in training.
        padding_mode: of the convolution.
        activation: one of those of :func:`fastnn.functional.activation`.
        alpha: the activation's parameter; None for torch's default.
        eps: of the batch norm, as all that follow but device and dtype.
        momentum: share of the batch in the running statistics.
        affine: whether it has weight and bias.
        track_running_stats: whether it keeps statistics.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: for an activation that there is not, and as the layers.

    Shape:
        ``[N, C, H, W]`` to ``[N, K, P, Q]``.
    """

    _conv, _bn = Conv2d, BatchNorm2d


class ConvBNAct3d(_ConvBNAct):
    """:class:`Conv3d`, :class:`BatchNorm3d` and an activation; arguments and errors as :class:`ConvBNAct2d`.

    Shape:
        ``[N, C, D, H, W]`` to ``[N, K, O, P, Q]``.
    """

    _conv, _bn = Conv3d, BatchNorm3d
