"""One table of cases per op, shared by the tests, ``fastnn check`` and the benchmarks.

:mod:`fastnn.testing.case` says what a case is. The tables stand in the modules of their families, and are had here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastnn._fusable import activate
from fastnn.testing import reference
from fastnn.testing.activation_cases import ACTIVATION, ActivationCase
from fastnn.testing.case import ALL_DTYPES, LAYOUTS, PRECISE, WIDE_RANGE, Case, draw, generator_for, lay_out
from fastnn.testing.cell_cases import LSTM_CELL, LstmCellCase
from fastnn.testing.convolution_cases import CONV2D, CONVOLUTIONS, Conv2dCase, ConvCase
from fastnn.testing.normalisation_cases import (
    BATCH_NORM,
    BATCH_NORM_ACTIVATED,
    GROUP_NORM,
    INSTANCE_NORM,
    LOCAL_RESPONSE_NORM,
    BatchNormCase,
    GroupNormCase,
    InstanceNormCase,
    LocalResponseNormCase,
)
from fastnn.testing.pooling_cases import MAX_POOL2D, MAXOUT, POOLING, MaxoutCase, MaxPool2dCase, PoolingCase
from fastnn.testing.recurrence_cases import RECURRENCE, RecurrenceCase, torch_recurrence

__all__ = [
    "ACTIVATION",
    "ALL_DTYPES",
    "BATCH_NORM",
    "BATCH_NORM_ACTIVATED",
    "CASES",
    "CONV2D",
    "CONVOLUTIONS",
    "GROUP_NORM",
    "INSTANCE_NORM",
    "LAYOUTS",
    "LOCAL_RESPONSE_NORM",
    "LSTM_CELL",
    "MAXOUT",
    "MAX_POOL2D",
    "POOLING",
    "PRECISE",
    "RECURRENCE",
    "TORCH",
    "WIDE_RANGE",
    "ActivationCase",
    "BatchNormCase",
    "Case",
    "Conv2dCase",
    "ConvCase",
    "GroupNormCase",
    "InstanceNormCase",
    "LocalResponseNormCase",
    "LstmCellCase",
    "MaxPool2dCase",
    "MaxoutCase",
    "PoolingCase",
    "RecurrenceCase",
    "affordable_in_emulator",
    "draw",
    "generator_for",
    "lay_out",
]


def _torch_activated(*arguments: Any, activation: str, alpha: float, **options: Any) -> Tensor:
    z = torch.nn.functional.batch_norm(*arguments, **options)
    return _torch_activation(z, activation, alpha)


def _torch_activated_sum(input: Tensor, residual: Tensor, *arguments: Any, **options: Any) -> Tensor:
    activation, alpha = options.pop("activation"), options.pop("alpha")
    return _torch_activation(torch.nn.functional.batch_norm(input, *arguments, **options) + residual, activation, alpha)


def _torch_activation(z: Tensor, activation: str, alpha: float) -> Tensor:
    return z if activation == "identity" else activate(z, (activation, alpha))


def _torch_pointwise(input: Tensor, residual: Tensor | None, *, activation: str, alpha: float) -> Tensor:
    return _torch_activation(input if residual is None else input + residual, activation, alpha)


def _torch_maxout(input: Tensor, pieces: int, pieces_first: bool) -> Tensor:
    channels = input.shape[1] // pieces
    sizes, dim = ((pieces, channels), 1) if pieces_first else ((channels, pieces), 2)
    return input.unflatten(1, sizes).max(dim)[0]


def _torch_response(input: Tensor, **options: Any) -> Tensor:
    # torch's own takes views of the input that strides other than these do not have.
    return torch.nn.functional.local_response_norm(input.contiguous(), **options)


def _torch_lstm(
    input: Tensor, hx: tuple[Tensor, Tensor], *weights: Tensor | None, **options: Any
) -> tuple[Tensor, ...]:
    return torch_recurrence("lstm", input, hx, weights, **options)


def _torch_gru(
    input: Tensor, h0: Tensor, *weights: Tensor | None, reset_after: bool = True, **options: Any
) -> tuple[Tensor, ...]:
    if not reset_after and not input.is_meta:
        raise RuntimeError("torch has no GRU that resets before its product")
    return torch_recurrence("gru", input, (h0,), weights, **options)


def _torch_rnn(
    input: Tensor, h0: Tensor, *weights: Tensor | None, nonlinearity: str = "tanh", **options: Any
) -> tuple[Tensor, ...]:
    return torch_recurrence(f"rnn_{nonlinearity}", input, (h0,), weights, **options)


# The namespace with which ``apply`` runs a case on torch's own kernels.
TORCH = SimpleNamespace(
    locally_connected1d=reference.locally_connected,  # torch has none
    locally_connected2d=reference.locally_connected,
    **{
        f"{kind}{rank}d": getattr(torch.nn.functional, f"{kind}{rank}d")
        for kind in ("conv", "conv_transpose")
        for rank in (1, 2, 3)
    },
    activation=_torch_pointwise,
    max_pool2d=torch.nn.functional.max_pool2d,
    maxout=_torch_maxout,
    batch_norm=torch.nn.functional.batch_norm,
    group_norm=torch.nn.functional.group_norm,
    instance_norm=torch.nn.functional.instance_norm,
    local_response_norm=_torch_response,
    batch_norm_relu=_torch_activated,
    batch_norm_add_relu=_torch_activated_sum,
    lstm_cell=torch.lstm_cell,
    lstm=_torch_lstm,
    gru=_torch_gru,
    rnn=_torch_rnn,
    **{
        name: getattr(torch.nn.functional, name)
        for stem in ("max_pool", "max_unpool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool")
        for name in (f"{stem}1d", f"{stem}2d", f"{stem}3d")
        if name != "max_pool2d"
    },
)

CASES: dict[str, tuple[Case, ...]] = {
    "conv2d": CONV2D,
    **CONVOLUTIONS,
    "activation": ACTIVATION,
    "max_pool2d": MAX_POOL2D,
    "maxout": MAXOUT,
    "pooling": POOLING,
    "batch_norm": (*BATCH_NORM, *BATCH_NORM_ACTIVATED),
    "group_norm": GROUP_NORM,
    "instance_norm": INSTANCE_NORM,
    "local_response_norm": LOCAL_RESPONSE_NORM,
    "lstm_cell": LSTM_CELL,
    "recurrence": RECURRENCE,
}


def affordable_in_emulator(case: Case | None, dtype: torch.dtype | None, layout: str | None) -> bool:
    """Whether the emulator, which runs every thread on the CPU, is given a case.

    It gets small cases and those that cross a tile's edge; of the dtypes other than float32, and of what crosses an
    edge, the two native layouts alone.

    Args:
        case: None for one that is affordable.
        dtype: None for one that counts as float32.
        layout: None for a native one.
    """
    native = layout in (None, "contiguous", "channels_last")
    if case is None or case.small:
        return native or dtype in (None, torch.float32)
    # Of conv2d alone kernels go through any strides tile by tile; the others' see what has been made dense.
    return case.crosses_tile and (native or (case.op == "conv2d" and dtype in (None, torch.float32)))
