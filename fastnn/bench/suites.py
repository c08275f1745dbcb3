"""The suites: named lists of layers. Those of a network are the layers that it has, found by running it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fastnn.bench.activations import Activated, ConvActivated
from fastnn.bench.convolutions import convolutions
from fastnn.bench.layers import Average, Conv, Cost, Layer, Linear, Norm, NormReLU, Pool
from fastnn.bench.networks import NETWORKS
from fastnn.bench.recurrent import Cell, GruRecurrence, Recurrence, RnnRecurrence
from fastnn.bench.sample_norms import Maxout, ResponseNorm, SampleNorm

SUITES = {
    **{name: f"the distinct layers of {name}: convolution, max pooling, batch norm" for name in NETWORKS},
    "conv": "convolutions of one and three dimensions, depthwise, transposed; locally connected layers",
    "lstm": "LSTM cells; LSTM, GRU and RNN sequences",
    "pool": "max pooling: overlapping and not, large and small planes",
    "average": "average, L2 and adaptive pooling: overlapping and not, global",
    "norm": "batch norm: large and small planes, rows without planes, evaluation",
    "sample_norm": "group, instance and local response norm; maxout",
    "activation": "activations behind a sum and behind a convolution, against torch's operations one after the other",
    "fused": "batch norm with a ReLU, and with a residual before it, against torch's layers one after the other",
    "models": "whole networks: inference and a training step",
}
DEFAULT = (
    *("resnet50", "mobilenet_v2", "lenet5", "digits"),
    *("conv", "lstm", "pool", "average", "norm", "sample_norm", "activation", "fused", "models"),
)
QUICK = ("resnet50", "mobilenet_v2", "lenet5", "lstm", "norm", "models")
# tf32 is a way to multiply matrices: the others have none.
TF32_OPS = ("conv1d", "conv2d", "conv2d_act", "conv3d", "conv_transpose", "lstm_cell", "lstm", "gru", "rnn", "network")


class Row(NamedTuple):
    """What one row of the record is about."""

    suite: str
    layer: Layer
    multiplicity: int
    layout: str
    dtype: str
    direction: str

    def __str__(self) -> str:
        return " ".join((self.suite, self.layer.op, self.layer.case, self.layout, self.dtype, self.direction))


@functools.cache
def traced(name: str, batch: int) -> tuple[tuple[Layer, int], ...]:
    """The distinct layers of a network and how often each occurs, in the order in which they first run.

    The network runs once on torch's ``meta`` device, where nothing is computed and nothing takes memory.

    Args:
        name: one of ``NETWORKS``.
        batch: number of images.
    """
    found: Counter[Layer] = Counter()
    with torch.device("meta"):
        network = NETWORKS[name].make()
        images = torch.empty(batch, *NETWORKS[name].image)

    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layer = _seen(module, inputs[0], first=inputs[0] is images)
        if layer is not None:
            found[layer] += 1

    for module in network.modules():
        module.register_forward_pre_hook(see)
    network(images)
    return tuple(found.items())


def _seen(module: nn.Module, x: Tensor, first: bool) -> Layer | None:
    """The layer that a module is when it gets this input; None for one that no row is about."""
    if isinstance(module, nn.Conv2d):
        (stride,), (padding,) = set(module.stride), set(module.padding)
        bias = module.bias is not None
        return Conv(
            *x.shape, module.out_channels, *module.kernel_size, stride, int(padding), module.groups, bias, first
        )
    if isinstance(module, nn.MaxPool2d):
        return Pool(*x.shape, module.kernel_size, module.stride, module.padding, module.ceil_mode)
    if isinstance(module, nn.BatchNorm2d):
        return Norm(*x.shape)
    if isinstance(module, nn.Linear):
        return Linear(*x.shape, module.out_features)
    return None


@dataclass(frozen=True)
class WholeNetwork(Layer):
    """A network: inference, and a training step (forward, cross entropy, backward; no optimiser)."""

    op: ClassVar[str] = "network"
    directions: ClassVar[tuple[str, ...]] = ("inference", "training_step")
    amplifies: ClassVar[bool] = True
    name: str
    batch: int

    @property
    def case(self) -> str:
        """See the class."""
        return f"{self.name}, B{self.batch}"

    def make(self) -> nn.Module:
        """See the class."""
        return NETWORKS[self.name].make()

    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the class."""
        return (torch.randn(self.batch, *NETWORKS[self.name].image, device=device, dtype=dtype),)

    def cost(self, direction: str, size: int) -> Cost:
        """The sum over the layers; activations and additions could be fused into those, and count nothing."""
        costs = [(part.cost(each, size), times) for part, times, each in self._passes(direction)]
        return Cost(sum(c.bytes * times for c, times in costs), sum(c.flops * times for c, times in costs))

    def floor(self, direction: str, size: int, limit: dict[str, float]) -> tuple[float, str]:
        """The sum of the layers' floors; bound by what bounds the greater part of it."""
        seconds = {"memory": 0.0, "compute": 0.0}
        for part, times, each in self._passes(direction):
            floor, bound = part.floor(each, size, limit)
            seconds[bound] += times * floor
        return sum(seconds.values()), max(seconds, key=seconds.__getitem__)

    def _passes(self, direction: str) -> Iterator[tuple[Layer, int, str]]:
        passes = ("forward", "backward") if direction == "training_step" else (direction,)
        for part, times in traced(self.name, self.batch):
            for each in passes:
                yield part, times, each

    @property
    def terms(self) -> int:
        """See the class."""
        return max(part.terms for part, _ in traced(self.name, self.batch))

    def reduced(self) -> Layer:
        """See the class. Batch norm needs more images than one; torch's float64 convolutions are slow."""
        has_norm = any(isinstance(part, Norm) for part, _ in traced(self.name, self.batch))
        return replace(self, batch=min(self.batch, 2 if has_norm else 1))


def layers(suite: str, batch: int) -> list[tuple[Layer, int]]:
    """The layers of a suite, each with its multiplicity.

    Args:
        suite: a key of ``SUITES``.
        batch: of images; sequences have their own.
    """
    if suite in NETWORKS:
        return [(layer, times) for layer, times in traced(suite, batch) if not isinstance(layer, Linear)]
    return [(layer, 1) for layer in _BY_HAND[suite](batch)]


def _lstm(batch: int) -> list[Layer]:
    return [
        Cell(16, 128),
        Cell(64, 512),
        Cell(16, 768),
        Cell(32, 320),
        Cell(1, 128),
        Recurrence(64, 128, 512),
        Recurrence(16, 1024, 768),
        Recurrence(32, 500, 320, bidirectional=True),
        Recurrence(1, 100, 128),
        GruRecurrence(64, 128, 512),
        GruRecurrence(16, 100, 128),
        GruRecurrence(1, 100, 128),
        RnnRecurrence(64, 128, 512),
        RnnRecurrence(1, 100, 128),
    ]


def _pool(batch: int) -> list[Layer]:
    return [
        Pool(batch, 64, 112, 112, 3, 2, 1),
        Pool(batch, 64, 55, 55, 3, 2, 0),
        Pool(batch, 192, 56, 56, 3, 2, 0, ceil_mode=True),
        Pool(batch, 256, 28, 28, 3, 1, 1),
        Pool(batch, 832, 7, 7, 3, 1, 1),
        Pool(batch, 64, 224, 224, 2, 2, 0),
        Pool(batch, 128, 112, 112, 2, 2, 0),
        Pool(batch, 512, 14, 14, 2, 2, 0),
        Pool(batch, 16, 8, 8, 2, 2, 0),
    ]


def _average(batch: int) -> list[Layer]:
    return [
        Average(batch, 64, 112, 112, 3, 2, 1),
        Average(batch, 192, 28, 28, 3, 1, 1),
        Average(batch, 64, 112, 112, 2, 2),
        Average(batch, 256, 14, 14, 2, 2),
        Average(batch, 64, 112, 112, 2, 2, l2=True),
        Average(batch, 192, 28, 28, 3, 1, l2=True),
        Average(batch, 2048, 7, 7, 0),
        Average(batch, 256, 56, 56, 0),
        Average(batch, 256, 13, 13, 0, size=6),
        Average(batch, 512, 14, 14, 0, size=7),
    ]


def _norm(batch: int) -> list[Layer]:
    training = [
        Norm(batch, 64, 112, 112),
        Norm(batch, 256, 56, 56),
        Norm(batch, 256, 14, 14),
        Norm(batch, 2048, 7, 7),
        Norm(batch, 512, 4, 4),
        Norm(4096, 512, 0, 0),
        Norm(100_000, 32, 0, 0),
    ]
    return training + [replace(layer, training=False) for layer in training if layer.c in (64, 256, 2048, 32)]


def _sample_norm(batch: int) -> list[Layer]:
    return [
        SampleNorm(batch, 256, 56, 56),
        SampleNorm(batch, 512, 14, 14),
        SampleNorm(batch, 2048, 7, 7),
        SampleNorm(batch, 64, 112, 112, groups=0),
        SampleNorm(batch, 128, 56, 56, groups=0),
        ResponseNorm(batch, 96, 55, 55),
        ResponseNorm(batch, 256, 27, 27),
        ResponseNorm(batch, 192, 56, 56),
        Maxout(batch, 128, 28, 28),
        Maxout(batch, 192, 14, 14, pieces=4),
    ]


def _activation(batch: int) -> list[Layer]:
    pointwise = [
        Activated(batch, *size, activation=activation, residual=residual)
        for size in ((64, 56, 56), (256, 14, 14))
        for activation, residual in (
            ("relu", True),
            ("elu", False),
            ("sigmoid", False),
            ("gelu", False),
            ("silu", True),
        )
    ]
    convolved = [
        ConvActivated(batch, c, h, h, k, r, r, 1, r // 2, 1, True, False, activation)
        for c, h, k, r in ((64, 56, 64, 3), (256, 14, 64, 1))
        for activation in ("relu", "tanh", "silu")
    ]
    return pointwise + convolved


def _fused(batch: int) -> list[Layer]:
    sizes = ((64, 112, 112), (256, 56, 56), (256, 14, 14), (2048, 7, 7))
    return [NormReLU(batch, *size, residual=residual) for residual in (False, True) for size in sizes]


def _models(batch: int) -> list[Layer]:
    return [WholeNetwork(name, batch) for name in NETWORKS]


_BY_HAND = {
    "conv": convolutions,
    "lstm": _lstm,
    "pool": _pool,
    "average": _average,
    "norm": _norm,
    "sample_norm": _sample_norm,
    "activation": _activation,
    "fused": _fused,
    "models": _models,
}


def rows(suites: Iterable[str], batch: int, dtypes: Iterable[str], quick_flops: float | None = None) -> list[Row]:
    """Every row of some suites; those of one layer and dtype stand together.

    Args:
        suites: keys of ``SUITES``.
        batch: of images.
        dtypes: ``float32``, ``tf32``, ``bfloat16``, ``float16``.
        quick_flops: None for all rows; a number for one layer of each kind, the one that has the most to do (times its
            multiplicity), of those with at most so many FLOPs forward.
    """
    dtypes = list(dtypes)
    found = []
    for suite in suites:
        chosen = layers(suite, batch)
        if quick_flops is not None:
            chosen = _representative(chosen, quick_flops)
        for layer, multiplicity in chosen:
            for dtype in dtypes:
                if dtype == "tf32" and layer.op not in TF32_OPS:
                    continue
                found += [
                    Row(suite, layer, multiplicity, layout, dtype, direction)
                    for layout in layer.layouts
                    for direction in layer.directions
                ]
    return found


def _representative(chosen: list[tuple[Layer, int]], most_flops: float) -> list[tuple[Layer, int]]:
    best: dict[str, tuple[Layer, int]] = {}

    def work(layer: Layer, times: int) -> tuple[int, int]:
        cost = layer.cost(layer.directions[0], 4)
        return cost.flops * times, cost.bytes * times

    for layer, times in chosen:
        small = layer.cost(layer.directions[0], 4).flops <= most_flops
        if small and (layer.kind not in best or work(layer, times) > work(*best[layer.kind])):
            best[layer.kind] = (layer, times)
    return list(best.values())
