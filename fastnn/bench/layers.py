"""What a row measures: a layer at one shape, with the least that it must move and compute.

The least is counted so, for a floor that no implementation beats unless data is in a cache already:

- forward: each input and parameter read once, each output written once; and, since what is timed is training's
  forward, what backward cannot do without is written (one byte an output for the place of a maximum, two numbers a
  channel for batch norm, the four gates of an LSTM);
- backward: cotangents, saved inputs, parameters and what forward kept read once, each gradient written once;
- FLOPs: a multiplication and an addition are two. Of matrix products and convolutions all are counted; of batch norm
  and pooling, which memory bounds anyway, those of the textbook formula; of an LSTM's pointwise part none.

Batch norm's statistics need x before x can be normalised, but the floor has x read once: it may be kept in a cache.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

import fastnn

PARAMETER_BYTES = 4  # of batch norm, whose parameters and statistics stay in float32 beside 16-bit activations


class Cost(NamedTuple):
    """The least that a call must do."""

    bytes: int
    flops: int

    def floor(self, limit: dict[str, float]) -> tuple[float, str]:
        """Seconds that a machine with these limits needs, and which of ``memory`` and ``compute`` takes them."""
        memory = self.bytes / limit["copy_bytes_per_second"]
        compute = self.flops / limit["flops_per_second"]
        return max(memory, compute), "memory" if memory >= compute else "compute"


def _numbers(*shapes: Sequence[int]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def extent(height: int, width: int) -> str:
    """A plane's size as people write it: 56² or 12x20."""
    return f"{height}²" if height == width else f"{height}x{width}"


@dataclass(frozen=True)
class Layer(abc.ABC):
    """A layer at one shape.

    Attributes:
        op: the name in records.
        directions: what is timed.
        amplifies: whether roundings grow in it, so that it is judged as a whole and not by the element.
    """

    op: ClassVar[str]
    directions: ClassVar[tuple[str, ...]] = ("forward", "backward")
    amplifies: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def case(self) -> str:
        """A name for people, unique within a suite."""

    @property
    def kind(self) -> str:
        """Layers of one kind differ in size alone; ``--quick`` takes one of each."""
        return self.op

    @property
    def layouts(self) -> tuple[str, ...]:
        """In which memory formats the input can lie."""
        return ("contiguous", "channels_last")

    @property
    def shape(self) -> dict[str, int]:
        """The numbers that define the layer."""
        return {name: int(value) for name, value in asdict(self).items() if isinstance(value, int)}

    @abc.abstractmethod
    def make(self) -> nn.Module:
        """A layer of torch's, with random weights from torch's generator."""

    def fastnn(self, layer: nn.Module) -> nn.Module:
        """The layer that fastnn has for a layer of torch's, with a copy of its weights.

        Raises:
            RuntimeError: when fastnn does not replace everything that it implements.
        """
        converted = fastnn.convert(copy.deepcopy(layer))
        report = fastnn.conversion_report(converted)
        left = [row for row in report if not row.replaced and row.class_name in _IMPLEMENTED]
        if left:
            raise RuntimeError(f"fastnn does not compute {left[0].name or left[0].class_name}: {left[0].reason}")
        return converted

    @abc.abstractmethod
    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Random inputs from torch's generator, contiguous; those that training wants gradients of ask for them."""

    def call(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Runs the layer; returns what a loss sees of its outputs."""
        return (layer(*inputs),)

    @abc.abstractmethod
    def cost(self, direction: str, size: int) -> Cost:
        """The least to do in one call, for elements of ``size`` bytes."""

    def floor(self, direction: str, size: int, limit: dict[str, float]) -> tuple[float, str]:
        """As :meth:`Cost.floor`."""
        return self.cost(direction, size).floor(limit)

    @property
    @abc.abstractmethod
    def terms(self) -> int:
        """Length of the longest sum in an output or gradient, which says how much rounding to expect."""

    def reduced(self) -> Layer:
        """The layer at a size at which checking against float64 is affordable."""
        return self


_IMPLEMENTED = {cls.__name__ for cls in fastnn.nn.IMPLEMENTED}


@dataclass(frozen=True)
class Conv(Layer):
    """A 2-D convolution; ``first`` means that its input wants no gradient."""

    op: ClassVar[str] = "conv2d"
    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: int
    padding: int
    groups: int
    bias: bool
    first: bool

    @property
    def case(self) -> str:
        """See the class."""
        group = "depthwise " if self.groups == self.c > 1 else f"{self.groups} groups " if self.groups > 1 else ""
        step = f"/{self.stride}" if self.stride > 1 else ""
        channels = f"{self.c}" if self.c == self.k else f"{self.c} to {self.k}"
        return f"{group}{self.r}x{self.s}{step}, {channels}, {extent(self.h, self.w)}"

    @property
    def kind(self) -> str:
        """See the class."""
        return f"{self.op} {self.r}x{self.s}/{self.stride} {self.first} {self.groups > 1}"

    @property
    def _out(self) -> tuple[int, int, int, int]:
        p, q = (
            (size + 2 * self.padding - taps) // self.stride + 1 for size, taps in ((self.h, self.r), (self.w, self.s))
        )
        return (self.n, self.k, p, q)

    def make(self) -> nn.Module:
        """See the class."""
        return nn.Conv2d(
            self.c, self.k, (self.r, self.s), self.stride, self.padding, groups=self.groups, bias=self.bias
        )

    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the class."""
        x = torch.randn(self.n, self.c, self.h, self.w, device=device, dtype=dtype)
        return (x.requires_grad_(not self.first),)

    def cost(self, direction: str, size: int) -> Cost:
        """See the class."""
        x, y = _numbers((self.n, self.c, self.h, self.w)), _numbers(self._out)
        weight, bias = self.k * self.c // self.groups * self.r * self.s, self.k * self.bias
        flops = 2 * y * (self.c // self.groups) * self.r * self.s
        if direction != "backward":
            return Cost((x + weight + bias + y) * size, flops)
        if self.first:
            return Cost((y + x + weight + bias) * size, flops)
        return Cost((y + x + weight + x + weight + bias) * size, 2 * flops)

    @property
    def terms(self) -> int:
        """See the class."""
        n, k, p, q = self._out
        return max(max(self.c, k) // self.groups * self.r * self.s, n * p * q)


@dataclass(frozen=True)
class Pool(Layer):
    """2-D max pooling over square windows."""

    op: ClassVar[str] = "max_pool2d"
    n: int
    c: int
    h: int
    w: int
    window: int
    stride: int
    padding: int
    ceil_mode: bool = False

    @property
    def case(self) -> str:
        """See the class."""
        step = f"/{self.stride}" if self.stride != self.window else ""
        return f"{self.window}x{self.window}{step}, {self.c}, {extent(self.h, self.w)}"

    @property
    def kind(self) -> str:
        """See the class."""
        return f"{self.op} {self.window}/{self.stride}"

    @property
    def _outputs(self) -> int:
        def out(size: int) -> int:
            span = size + 2 * self.padding - self.window
            count = (-(-span // self.stride) if self.ceil_mode else span // self.stride) + 1
            # A window that would begin beyond the input is left out.
            return count - (self.ceil_mode and (count - 1) * self.stride >= size + self.padding)

        return self.n * self.c * out(self.h) * out(self.w)

    def make(self) -> nn.Module:
        """See the class."""
        return nn.MaxPool2d(self.window, self.stride, self.padding, ceil_mode=self.ceil_mode)

    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the class."""
        return (torch.randn(self.n, self.c, self.h, self.w, device=device, dtype=dtype, requires_grad=True),)

    def cost(self, direction: str, size: int) -> Cost:
        """See the class."""
        x, y = _numbers((self.n, self.c, self.h, self.w)), self._outputs
        if direction == "backward":
            return Cost((y + x) * size + y, y)
        places = 0 if direction == "inference" else y
        return Cost((x + y) * size + places, y * (self.window**2 - 1))

    @property
    def terms(self) -> int:
        """See the class."""
        return self.window**2


@dataclass(frozen=True)
class Average(Layer):
    """2-D average or L2 pooling over square windows, or adaptive average pooling where ``window`` is 0."""

    op: ClassVar[str] = "avg_pool2d"
    n: int
    c: int
    h: int
    w: int
    window: int
    stride: int = 0
    padding: int = 0
    l2: bool = False
    size: int = 1

    @property
    def case(self) -> str:
        """See the class."""
        step = f"/{self.stride}" if self.stride != self.window else ""
        shape = f"{self.c}, {extent(self.h, self.w)}"
        if not self.window:
            return f"adaptive to {extent(self.size, self.size)}, {shape}"
        return f"{'L2 ' if self.l2 else ''}{self.window}x{self.window}{step}, {shape}"

    @property
    def kind(self) -> str:
        """See the class."""
        return f"{self.op} {self.window}/{self.stride} {self.l2}"

    @property
    def _outputs(self) -> int:
        def out(size: int) -> int:
            return (size + 2 * self.padding - self.window) // self.stride + 1 if self.window else self.size

        return self.n * self.c * out(self.h) * out(self.w)

    def make(self) -> nn.Module:
        """See the class."""
        if not self.window:
            return nn.AdaptiveAvgPool2d(self.size)
        if self.l2:
            return nn.LPPool2d(2, self.window, self.stride)
        return nn.AvgPool2d(self.window, self.stride, self.padding)

    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the class."""
        return (torch.randn(self.n, self.c, self.h, self.w, device=device, dtype=dtype, requires_grad=True),)

    def cost(self, direction: str, size: int) -> Cost:
        """See the class. L2's backward reads input and output too."""
        x, y = _numbers((self.n, self.c, self.h, self.w)), self._outputs
        taps = self.window**2 if self.window else -(-self.h * self.w // self.size**2)
        read = x + y if self.l2 and direction == "backward" else 0
        return Cost((x + y + read) * size, y * taps * (2 if self.l2 else 1))

    @property
    def terms(self) -> int:
        """See the class."""
        return max(self.window**2, self.h * self.w // self.size**2)


@dataclass(frozen=True)
class Norm(Layer):
    """Batch norm over [n, c, h, w], or over [n, c] where h is 0."""

    op: ClassVar[str] = "batch_norm"
    n: int
    c: int
    h: int
    w: int
    training: bool = True

    @property
    def case(self) -> str:
        """See the class."""
        size = f"{self.c}, {extent(self.h, self.w)}" if self.h else f"{self.n} rows of {self.c}"
        return size if self.training else f"eval {size}"

    @property
    def kind(self) -> str:
        """See the class."""
        return f"{self.op} {self.training} {self.h > 0}"

    @property
    def layouts(self) -> tuple[str, ...]:
        """See the class."""
        return super().layouts if self.h else ("contiguous",)

    @property
    def _size(self) -> tuple[int, ...]:
        return (self.n, self.c, self.h, self.w) if self.h else (self.n, self.c)

    def make(self) -> nn.Module:
        """See the class. Weight, bias and running statistics are random too."""
        layer = nn.BatchNorm2d(self.c) if self.h else nn.BatchNorm1d(self.c)
        with torch.no_grad():
            for scale in (layer.weight, layer.running_var):
                scale.uniform_(0.5, 1.5)
            for shift in (layer.bias, layer.running_mean):
                shift.normal_()
        return layer.train(self.training)

    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the class."""
        return (torch.randn(self._size, device=device, dtype=dtype, requires_grad=True),)

    def cost(self, direction: str, size: int) -> Cost:
        """See the class.

        Of an element, FLOPs: statistics 4 (a sum; a difference, squared, in a sum), normalising 2; backward 3 for the
        normalised value in a product's sum and 1 for the other sum, then gradient 4 in training and 1 in evaluation.
        """
        x = _numbers(self._size)
        training = self.training and direction != "inference"
        if direction == "backward":
            # Weight, and the two numbers of each channel that normalise; gradients of weight and bias.
            return Cost(2 * x * size + x * size + 5 * self.c * PARAMETER_BYTES, x * (4 + 1 + (4 if training else 1)))
        # Weight, bias, two statistics read; in training those are written, and mean and deviation kept.
        numbers = (4 + (4 if training else 0)) * self.c
        return Cost(2 * x * size + numbers * PARAMETER_BYTES, x * (6 if training else 2))

    @property
    def terms(self) -> int:
        """See the class."""
        return _numbers(self._size) // self.c


class _BlockEnd(nn.Module):
    """A batch norm, a sum with a residual and a ReLU, apart; in place, as networks have them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """See the class."""
        z = self.norm(input)
        return torch.relu_(z if residual is None else z.add_(residual))


@dataclass(frozen=True)
class NormReLU(Norm):
    """The same with a ReLU after it, and a sum before that where there is a residual."""

    op: ClassVar[str] = "batch_norm_relu"
    # Where z is about 0 a rounding decides whether an element has a gradient.
    amplifies: ClassVar[bool] = True
    residual: bool = False

    @property
    def case(self) -> str:
        """See the class."""
        return f"{'add ' if self.residual else ''}relu {super().case}"

    @property
    def kind(self) -> str:
        """See the class."""
        return f"{super().kind} {self.residual}"

    def make(self) -> nn.Module:
        """See the class."""
        return _BlockEnd(super().make()).train(self.training)

    def fastnn(self, layer: nn.Module) -> nn.Module:
        """See the class."""
        kind = fastnn.nn.BatchNormAddReLU2d if self.residual else fastnn.nn.BatchNormReLU2d
        fused = kind(self.c).to(layer.norm.weight)
        fused.load_state_dict(layer.norm.state_dict())
        return fused.train(self.training)

    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the class."""
        return tuple(
            image for _ in range(1 + self.residual) for image in super(NormReLU, self).make_inputs(device, dtype)
        )

    def cost(self, direction: str, size: int) -> Cost:
        """See the class. A residual is read, and a bit an element kept; backward reads that and writes its gradient."""
        plain, x = super().cost(direction, size), _numbers(self._size)
        bits = x // 8 if direction != "inference" else 0
        more = x * size + bits if self.residual else 0
        return Cost(plain.bytes + more, plain.flops + x * (1 + self.residual))

    def reduced(self) -> Layer:
        """See the class. Among millions of elements there is one on whose sign z two right kernels do not agree."""
        return replace(self, n=min(self.n, 2), h=min(self.h, 14), w=min(self.w, 14))


@dataclass(frozen=True)
class Linear(Layer):
    """A fully connected layer: torch's on both sides, so a part of whole networks alone."""

    op: ClassVar[str] = "linear"
    n: int
    inputs: int
    outputs: int

    @property
    def case(self) -> str:
        """See the class."""
        return f"{self.inputs} to {self.outputs}"

    def make(self) -> nn.Module:
        """See the class."""
        return nn.Linear(self.inputs, self.outputs)

    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the class."""
        return (torch.randn(self.n, self.inputs, device=device, dtype=dtype, requires_grad=True),)

    def cost(self, direction: str, size: int) -> Cost:
        """See the class."""
        x, y, weight = self.n * self.inputs, self.n * self.outputs, self.inputs * self.outputs
        flops = 2 * self.n * weight
        if direction == "backward":
            return Cost((y + x + weight + x + weight + self.outputs) * size, 2 * flops)
        return Cost((x + weight + self.outputs + y) * size, flops)

    @property
    def terms(self) -> int:
        """See the class."""
        return max(self.n, self.inputs, self.outputs)
