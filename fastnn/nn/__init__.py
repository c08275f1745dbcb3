"""Layers of ``torch.nn`` that fastnn implements; every other name falls through to ``torch.nn``.

So ``import fastnn.nn as nn`` works in an existing script, and so do ``import fastnn.nn.functional as F``,
``from fastnn.nn import *`` and imports of submodules, as ``from fastnn.nn.utils import clip_grad_norm_``.
Submodules other than ``functional`` are torch's own module objects, so their classes are torch's classes.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch.nn

from fastnn import functional
from fastnn.nn.activation import Maxout
from fastnn.nn.batchnorm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormAddReLU1d,
    BatchNormAddReLU2d,
    BatchNormAddReLU3d,
    BatchNormReLU1d,
    BatchNormReLU2d,
    BatchNormReLU3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)
from fastnn.nn.conv import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    LazyConv1d,
    LazyConv2d,
    LazyConv3d,
    LazyConvTranspose1d,
    LazyConvTranspose2d,
    LazyConvTranspose3d,
)
from fastnn.nn.conv_act import ConvAct1d, ConvAct2d, ConvAct3d, ConvBNAct1d, ConvBNAct2d, ConvBNAct3d
from fastnn.nn.locally_connected import LocallyConnected1d, LocallyConnected2d
from fastnn.nn.normalisation import (
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
    LocalResponseNorm,
)
from fastnn.nn.pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    FractionalMaxPool2d,
    FractionalMaxPool3d,
    LPPool1d,
    LPPool2d,
    LPPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    MaxUnpool1d,
    MaxUnpool2d,
    MaxUnpool3d,
)
from fastnn.nn.rnn import GRU, LSTM, MUT1, MUT2, MUT3, RNN
from fastnn.nn.rnn_cell import GRUCell, LSTMCell, MUT1Cell, MUT2Cell, MUT3Cell, RNNCell
from fastnn.nn.sync_batchnorm import SyncBatchNorm

if TYPE_CHECKING:
    from torch.nn import *  # noqa: F403 - what falls through, for type checkers

IMPLEMENTED: tuple[type[torch.nn.Module], ...] = (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    FractionalMaxPool2d,
    FractionalMaxPool3d,
    GRU,
    GRUCell,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LPPool1d,
    LPPool2d,
    LPPool3d,
    LSTM,
    LSTMCell,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
    LazyConv1d,
    LazyConv2d,
    LazyConv3d,
    LazyConvTranspose1d,
    LazyConvTranspose2d,
    LazyConvTranspose3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
    LocalResponseNorm,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    MaxUnpool1d,
    MaxUnpool2d,
    MaxUnpool3d,
    RNN,
    RNNCell,
    SyncBatchNorm,
)
"""The layers that are fastnn's own; each has the name of the torch layer that it stands in for."""

ADDED: tuple[type[torch.nn.Module], ...] = (
    BatchNormAddReLU1d,
    BatchNormAddReLU2d,
    BatchNormAddReLU3d,
    BatchNormReLU1d,
    BatchNormReLU2d,
    BatchNormReLU3d,
    ConvAct1d,
    ConvAct2d,
    ConvAct3d,
    ConvBNAct1d,
    ConvBNAct2d,
    ConvBNAct3d,
    LocallyConnected1d,
    LocallyConnected2d,
    MUT1,
    MUT1Cell,
    MUT2,
    MUT2Cell,
    MUT3,
    MUT3Cell,
    Maxout,
)
"""Layers that torch has not."""

__all__ = sorted(  # torch.nn's public names, so that a star import here brings what it brings there
    {name for name in dir(torch.nn) if not name.startswith("_")} | {cls.__name__ for cls in IMPLEMENTED + ADDED}
)


class _TorchSubmodules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports ``fastnn.nn.X`` as ``torch.nn.X`` itself where fastnn has no X.

    It stands before the path finder, which would run torch's source a second time under the other name for
    ``fastnn.nn.utils.rnn`` (``fastnn.nn.utils`` is torch's and has a path), giving classes unlike torch's.
    """

    _prefix = __name__ + "."
    _own = frozenset(
        {
            "activation",
            "batchnorm",
            "conv",
            "conv_act",
            "locally_connected",
            "normalisation",
            "pooling",
            "recurrent",
            "recurrent_options",
            "rnn",
            "rnn_cell",
            "sync_batchnorm",
        }
    )

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(self._prefix) or fullname.removeprefix(self._prefix) in self._own:
            return None
        try:
            found = importlib.util.find_spec(self._in_torch(fullname))
        except ModuleNotFoundError:
            found = None
        return None if found is None else importlib.machinery.ModuleSpec(fullname, self)

    def _in_torch(self, fullname: str) -> str:
        return "torch.nn." + fullname.removeprefix(self._prefix)

    def exec_module(self, module: ModuleType) -> None:
        # The import system hands out whatever stands in sys.modules after this.
        sys.modules[module.__name__] = importlib.import_module(self._in_torch(module.__name__))


sys.modules[f"{__name__}.functional"] = functional
sys.meta_path.insert(0, _TorchSubmodules())


def __getattr__(name: str) -> Any:
    if not name.startswith("__"):
        try:
            return getattr(torch.nn, name)
        except AttributeError:
            pass
    raise AttributeError(f"neither fastnn.nn nor torch.nn has an attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(torch.nn)})
