"""One table of cases per op, shared by the tests, ``fastnn check`` and the benchmarks.

A case is a frozen dataclass: shapes and options, nothing with memory. ``make_inputs`` draws fresh values from a
generator, rounds them to the dtype and lays them out in memory; ``apply`` calls the op in any namespace which
has torch's signatures, so the same case runs on fastnn and on ``torch.nn.functional``.

Values are never zero-filled: a kernel that forgets a term must not be saved by a zero.
"""

from __future__ import annotations

import abc
import math
import zlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastnn.testing import reference

ALL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WIDE_RANGE = (torch.float64, torch.float32, torch.bfloat16)  # can hold 1e30
PRECISE = (torch.float64, torch.float32)  # can tell 1e4 from 1e4 + 1e-3

LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded", "transposed")


def _torch_activated(*arguments: Any, activation: str, alpha: float, **options: Any) -> Tensor:
    z = torch.nn.functional.batch_norm(*arguments, **options)
    return _torch_activation(z, activation, alpha)


def _torch_activated_sum(input: Tensor, residual: Tensor, *arguments: Any, **options: Any) -> Tensor:
    activation, alpha = options.pop("activation"), options.pop("alpha")
    return _torch_activation(torch.nn.functional.batch_norm(input, *arguments, **options) + residual, activation, alpha)


def _torch_activation(z: Tensor, activation: str, alpha: float) -> Tensor:
    if activation == "leaky_relu":
        return torch.nn.functional.leaky_relu(z, alpha)
    if activation == "elu":
        return torch.nn.functional.elu(z, alpha)
    return z.relu() if activation == "relu" else z


def _torch_maxout(input: Tensor, pieces: int, pieces_first: bool) -> Tensor:
    channels = input.shape[1] // pieces
    sizes, dim = ((pieces, channels), 1) if pieces_first else ((channels, pieces), 2)
    return input.unflatten(1, sizes).max(dim)[0]


def _torch_response(input: Tensor, **options: Any) -> Tensor:
    # torch's own takes views of the input that strides other than these do not have.
    return torch.nn.functional.local_response_norm(input.contiguous(), **options)


# The namespace with which ``apply`` runs a case on torch's own kernels.
TORCH = SimpleNamespace(
    locally_connected1d=reference.locally_connected,  # torch has none
    locally_connected2d=reference.locally_connected,
    **{
        f"{kind}{rank}d": getattr(torch.nn.functional, f"{kind}{rank}d")
        for kind in ("conv", "conv_transpose")
        for rank in (1, 2, 3)
    },
    max_pool2d=torch.nn.functional.max_pool2d,
    maxout=_torch_maxout,
    batch_norm=torch.nn.functional.batch_norm,
    group_norm=torch.nn.functional.group_norm,
    instance_norm=torch.nn.functional.instance_norm,
    local_response_norm=_torch_response,
    batch_norm_relu=_torch_activated,
    batch_norm_add_relu=_torch_activated_sum,
    lstm_cell=torch.lstm_cell,
    **{
        name: getattr(torch.nn.functional, name)
        for stem in ("max_pool", "max_unpool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool")
        for name in (f"{stem}1d", f"{stem}2d", f"{stem}3d")
        if name != "max_pool2d"
    },
)


def generator_for(*key: object) -> torch.Generator:
    """A generator seeded from the key's text: the same on every machine and in every worker."""
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


def lay_out(tensor: Tensor, layout: str, channel_dim: int = 1, expand_dim: int = 0) -> Tensor:
    """The same values with other strides (``expanded``: the first row of ``expand_dim``, repeated).

    Args:
        tensor: dense tensor of any rank.
        layout: one of ``LAYOUTS``. ``sliced`` takes every second element of a storage that holds NaN between
            and around, so that a read beside the view is seen. Ranks 0 to 2 stay contiguous under
            ``channels_last``.
        channel_dim: the dimension that ``channels_last`` makes the densest.
        expand_dim: the dimension to which ``expanded`` gives stride 0.

    Returns:
        A tensor of the same shape and dtype; never one that shares storage with ``tensor``.
    """
    if layout == "contiguous":
        return tensor.contiguous().clone()
    if layout == "channels_last":
        if tensor.dim() < 3:
            return tensor.contiguous().clone()
        return tensor.movedim(channel_dim, -1).contiguous().clone().movedim(-1, channel_dim)
    if layout == "sliced":
        if tensor.dim() == 0:
            return tensor.clone()
        sizes = [*tensor.shape[:-1], 2 * tensor.shape[-1] + 1]
        storage = torch.full([sizes[0] + 1, *sizes[1:]] if tensor.dim() > 1 else sizes, float("nan")).to(tensor)
        view = storage[1:, ..., 1::2] if tensor.dim() > 1 else storage[1::2]
        return view.copy_(tensor)
    if layout == "expanded":
        if tensor.dim() < 2 or tensor.shape[expand_dim] == 0:
            return tensor.contiguous().clone()
        return tensor.narrow(expand_dim, 0, 1).clone().expand(tensor.shape)
    if layout == "transposed":
        return tensor.transpose(-1, -2).contiguous().clone().transpose(-1, -2) if tensor.dim() > 1 else tensor.clone()
    raise ValueError(f"layout {layout!r} is none of {LAYOUTS}")


def draw(shape: tuple[int, ...], values: str, generator: torch.Generator) -> Tensor:
    """Random float64 values of one kind.

    Args:
        shape: any shape.
        values: ``normal``; ``integers`` (-4 to 4 without 0); ``ties`` (a few values, 0.0 and -0.0 among them);
            ``nonfinite`` (normal, about one in forty NaN, inf or -inf, at least one of each);
            ``minus_inf`` (normal, seven of ten -inf); ``large_mean`` (1e4 +- 1); ``huge`` (1e30 times normal).
        generator: source of randomness, on the CPU.
    """
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    if values == "normal":
        return normal
    if values == "integers":
        magnitude = torch.randint(1, 5, shape, generator=generator)
        sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        return (magnitude * sign).double()
    if values == "ties":
        pool = torch.tensor([-1.0, -0.0, 0.0, 0.5, 0.5, 0.5], dtype=torch.float64)
        return pool[torch.randint(0, len(pool), shape, generator=generator)]
    if values == "nonfinite":
        flat = normal.flatten()
        count = max(3, flat.numel() // 40)
        places = torch.randperm(flat.numel(), generator=generator)[:count]
        kinds = torch.tensor([float("nan"), float("inf"), float("-inf")], dtype=torch.float64)
        flat[places] = kinds[torch.arange(len(places)) % 3]
        return flat.view(shape)
    if values == "minus_inf":
        return normal.masked_fill(torch.rand(shape, generator=generator) < 0.7, float("-inf"))
    if values == "large_mean":
        return 1e4 + normal
    if values == "huge":
        return 1e30 * normal
    raise ValueError(f"unknown kind of values: {values!r}")


@dataclass(frozen=True, kw_only=True)
class Case(abc.ABC):
    """What every op's case has.

    Attributes:
        op: the op's name.
        outputs: names of its outputs, in order; the last ones may be missing.
        differentiable: names of the inputs that have gradients.
        id: name in test ids, unique within the op.
        small: cheap enough for the emulator in every dtype and layout.
        crosses_tile: larger than a kernel's tile; the emulator runs it too.
        values: kind of values of the first input, see ``draw``.
        dtypes: the dtypes in which these values mean something.
    """

    op: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    differentiable: ClassVar[tuple[str, ...]]
    id: str
    small: bool = False
    crosses_tile: bool = False
    values: str = "normal"
    dtypes: tuple[torch.dtype, ...] = ALL_DTYPES

    @abc.abstractmethod
    def make_inputs(
        self, dtype: torch.dtype, device: torch.device | str, layout: str, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Fresh tensors by argument name, rounded to ``dtype``, laid out, none requiring a gradient."""

    @abc.abstractmethod
    def apply(self, functional: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Calls the op of ``functional``, a namespace with torch's signatures; returns all its outputs."""

    def __str__(self) -> str:
        return self.id


Pair = int | tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ConvCase(Case):
    """input [N, C, spatial...] or [C, spatial...]; weight [filters, C / groups, *kernel]; bias [filters]."""

    outputs: ClassVar[tuple[str, ...]] = ("output",)
    differentiable: ClassVar[tuple[str, ...]] = ("input", "weight", "bias")
    shape: tuple[int, ...]
    filters: int
    kernel: tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] | str = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    bias: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the function."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def channels(self) -> int:
        """C."""
        return self.shape[-1 - len(self.kernel)]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the filters."""
        return (self.filters, self.channels // self.groups, *self.kernel)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Shape of the bias."""
        return (self.filters,)

    def make_inputs(self, dtype, device, layout, generator):
        """See ``Case.make_inputs``."""
        # Finite weights: what 0 * inf in the padding should be is defined by no one.
        weight_values = self.values if self.values == "integers" else "normal"
        inputs = {
            "input": draw(self.shape, self.values, generator),
            "weight": draw(self.weight_shape, weight_values, generator),
        }
        if self.bias:
            inputs["bias"] = draw(self.bias_shape, weight_values, generator)
        unbatched = len(self.kernel) + 1
        return {
            name: lay_out(tensor.to(dtype).to(device), layout, channel_dim=0 if tensor.dim() == unbatched else 1)
            for name, tensor in inputs.items()
        }

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        function = getattr(functional, self.op)
        return (function(inputs["input"], inputs["weight"], inputs.get("bias"), **self.options),)


@dataclass(frozen=True, kw_only=True)
class Conv2dCase(ConvCase):
    """A convolution of two spatial dimensions."""

    op: ClassVar[str] = "conv2d"


@dataclass(frozen=True, kw_only=True)
class MaxPool2dCase(Case):
    """input [N, C, H, W] or [C, H, W]; ``stride`` None is the kernel's size."""

    op: ClassVar[str] = "max_pool2d"
    outputs: ClassVar[tuple[str, ...]] = ("output", "indices")
    differentiable: ClassVar[tuple[str, ...]] = ("input",)
    shape: tuple[int, ...]
    kernel: Pair
    stride: Pair | None = None
    padding: Pair = 0
    dilation: Pair = 1
    ceil_mode: bool = False
    return_indices: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the function."""
        return {
            "kernel_size": self.kernel,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
        }

    def make_inputs(self, dtype, device, layout, generator):
        """See ``Case.make_inputs``."""
        values = draw(self.shape, self.values, generator).to(dtype).to(device)
        return {"input": lay_out(values, layout, channel_dim=len(self.shape) - 3)}

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        out = functional.max_pool2d(inputs["input"], return_indices=self.return_indices, **self.options)
        return tuple(out) if self.return_indices else (out,)


@dataclass(frozen=True, kw_only=True)
class MaxoutCase(Case):
    """input [N, C * pieces, ...] of rank 2 or more."""

    op: ClassVar[str] = "maxout"
    outputs: ClassVar[tuple[str, ...]] = ("output",)
    differentiable: ClassVar[tuple[str, ...]] = ("input",)
    shape: tuple[int, ...]
    pieces: int
    pieces_first: bool = False

    def make_inputs(self, dtype, device, layout, generator):
        """See ``Case.make_inputs``."""
        return {"input": lay_out(draw(self.shape, self.values, generator).to(dtype).to(device), layout)}

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        return (functional.maxout(inputs["input"], self.pieces, self.pieces_first),)


@dataclass(frozen=True, kw_only=True)
class PoolingCase(Case):
    """A pooling function of any rank but ``max_pool2d``: input [N, C, ...] or [C, ...].

    ``kind`` is the function's name without its rank, ``arguments`` its options by torch's names. ``max_unpool`` has
    ``places`` for its indices, drawn from a plane of ``output_size``, so that some are equal.
    """

    op: ClassVar[str] = "pooling"
    outputs: ClassVar[tuple[str, ...]] = ("output", "indices")
    differentiable: ClassVar[tuple[str, ...]] = ("input",)
    kind: str
    rank: int
    shape: tuple[int, ...]
    arguments: tuple[tuple[str, Any], ...]

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the function."""
        return dict(self.arguments)

    def make_inputs(self, dtype, device, layout, generator):
        """See ``Case.make_inputs``."""
        values = draw(self.shape, self.values, generator)
        if self.kind == "lp_pool" and self.options["norm_type"] % 2:
            values = values.abs()  # torch's roots of negative sums are NaN
        channel_dim = len(self.shape) - self.rank - 1
        inputs = {"input": lay_out(values.to(dtype).to(device), layout, channel_dim)}
        if self.kind == "max_unpool":
            places = math.prod(self.options["output_size"])
            indices = torch.randint(0, places, self.shape, generator=generator).to(device)
            inputs["places"] = lay_out(
                indices, "channels_last" if layout == "channels_last" else "contiguous", channel_dim
            )
        return inputs

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        out = getattr(functional, f"{self.kind}{self.rank}d")(*inputs.values(), **self.options)
        return tuple(out) if isinstance(out, tuple) else (out,)


@dataclass(frozen=True, kw_only=True)
class BatchNormCase(Case):
    """input [N, C, ...] of rank 2 to 5, residual likewise; weight, bias and running statistics [C].

    ``mixed`` keeps the parameters and the running statistics in float32 beside an input of a half dtype. With an
    ``activation`` it is ``batch_norm_relu``, and with a ``residual`` too ``batch_norm_add_relu``.
    """

    op: ClassVar[str] = "batch_norm"
    outputs: ClassVar[tuple[str, ...]] = ("output",)
    differentiable: ClassVar[tuple[str, ...]] = ("input", "residual", "weight", "bias")
    shape: tuple[int, ...]
    training: bool = True
    affine: bool = True
    track: bool = True
    momentum: float = 0.1
    eps: float = 1e-5
    mixed: bool = False
    activation: str | None = None
    alpha: float = 0.0
    residual: bool = False

    def make_inputs(self, dtype, device, layout, generator):
        """See ``Case.make_inputs``."""
        channels = self.shape[1]
        param_dtype = torch.float32 if self.mixed and dtype in (torch.bfloat16, torch.float16) else dtype
        inputs = {"input": draw(self.shape, self.values, generator).to(dtype)}
        if self.residual:
            inputs["residual"] = draw(self.shape, "normal", generator).to(dtype)
        if self.affine:
            inputs["weight"] = draw((channels,), "normal", generator).to(param_dtype)
            inputs["bias"] = draw((channels,), "normal", generator).to(param_dtype)
        if self.track or not self.training:
            mean = draw((channels,), "normal", generator)
            inputs["running_mean"] = (mean + 1e4 if self.values == "large_mean" else mean).to(param_dtype)
            variance = 0.5 + torch.rand((channels,), generator=generator, dtype=torch.float64)
            inputs["running_var"] = variance.to(param_dtype)
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        # Repeating a channel keeps its variance; repeating a sample would not for inputs of rank 2.
        return {
            name: lay_out(tensor, layout, expand_dim=0 if tensor.dim() == 1 else 1) for name, tensor in inputs.items()
        }

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        options: dict[str, Any] = {"training": self.training, "momentum": self.momentum, "eps": self.eps}
        function, images = functional.batch_norm, [inputs["input"]]
        if self.activation is not None:
            function = functional.batch_norm_add_relu if self.residual else functional.batch_norm_relu
            options |= {"activation": self.activation, "alpha": self.alpha}
        if self.residual:
            images.append(inputs["residual"])
        by_channel = (inputs.get(name) for name in ("running_mean", "running_var", "weight", "bias"))
        return (function(*images, *by_channel, **options),)


@dataclass(frozen=True, kw_only=True)
class _SampleNormCase(Case):
    """What group and instance normalisation have in common; ``mixed`` as in :class:`BatchNormCase`."""

    outputs: ClassVar[tuple[str, ...]] = ("output",)
    differentiable: ClassVar[tuple[str, ...]] = ("input", "weight", "bias")
    shape: tuple[int, ...]
    affine: bool = True
    eps: float = 1e-5
    mixed: bool = False

    def make_inputs(self, dtype, device, layout, generator):
        """See ``Case.make_inputs``."""
        channels = self.shape[1]
        param_dtype = torch.float32 if self.mixed and dtype in (torch.bfloat16, torch.float16) else dtype
        inputs = {"input": draw(self.shape, self.values, generator).to(dtype)}
        for name in ("weight", "bias") if self.affine else ():
            inputs[name] = draw((channels,), "normal", generator).to(param_dtype)
        if getattr(self, "track", False):
            mean = draw((channels,), "normal", generator)
            inputs["running_mean"] = (mean + 1e4 if self.values == "large_mean" else mean).to(param_dtype)
            variance = 0.5 + torch.rand((channels,), generator=generator, dtype=torch.float64)
            inputs["running_var"] = variance.to(param_dtype)
        # Repeating a sample keeps its variance.
        return {name: lay_out(tensor.to(device), layout) for name, tensor in inputs.items()}


@dataclass(frozen=True, kw_only=True)
class GroupNormCase(_SampleNormCase):
    """input [N, C, ...] of rank 2 or more; weight and bias [C]."""

    op: ClassVar[str] = "group_norm"
    groups: int

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        return (
            functional.group_norm(inputs["input"], self.groups, inputs.get("weight"), inputs.get("bias"), self.eps),
        )


@dataclass(frozen=True, kw_only=True)
class InstanceNormCase(_SampleNormCase):
    """input [N, C, ...] of rank 3 or more; weight, bias and running statistics [C]."""

    op: ClassVar[str] = "instance_norm"
    track: bool = False
    use_input_stats: bool = True
    momentum: float = 0.1

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        by_channel = (inputs.get(name) for name in ("running_mean", "running_var", "weight", "bias"))
        options = {"use_input_stats": self.use_input_stats, "momentum": self.momentum, "eps": self.eps}
        return (functional.instance_norm(inputs["input"], *by_channel, **options),)


@dataclass(frozen=True, kw_only=True)
class LocalResponseNormCase(Case):
    """input [N, C, ...] of rank 3 or more; a window of ``size`` channels."""

    op: ClassVar[str] = "local_response_norm"
    outputs: ClassVar[tuple[str, ...]] = ("output",)
    differentiable: ClassVar[tuple[str, ...]] = ("input",)
    shape: tuple[int, ...]
    size: int
    alpha: float = 0.7  # torch's 1e-4 would hide the sum behind k
    beta: float = 0.75
    k: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the function."""
        return {"size": self.size, "alpha": self.alpha, "beta": self.beta, "k": self.k}

    def make_inputs(self, dtype, device, layout, generator):
        """See ``Case.make_inputs``."""
        return {"input": lay_out(draw(self.shape, self.values, generator).to(dtype).to(device), layout)}

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        return (functional.local_response_norm(inputs["input"], **self.options),)


@dataclass(frozen=True, kw_only=True)
class LstmCellCase(Case):
    """input [N, I]; hx, cx [N, H]; w_ih [4H, I]; w_hh [4H, H]; b_ih, b_hh [4H].

    ``through`` names the outputs through which the gradient comes: ``both``, ``h`` or ``c``.
    """

    op: ClassVar[str] = "lstm_cell"
    outputs: ClassVar[tuple[str, ...]] = ("h", "c")
    differentiable: ClassVar[tuple[str, ...]] = ("input", "hx", "cx", "w_ih", "w_hh", "b_ih", "b_hh")
    rows: int
    input_size: int
    hidden_size: int
    bias: bool = True
    through: str = "both"

    def make_inputs(self, dtype, device, layout, generator):
        """See ``Case.make_inputs``."""
        n, i, h = self.rows, self.input_size, self.hidden_size
        inputs = {
            "input": draw((n, i), self.values, generator),
            "hx": draw((n, h), "normal", generator),
            # Only the cell state may be huge: huge gates would saturate every unit and hide the rest.
            "cx": draw((n, h), self.values, generator),
            "w_ih": draw((4 * h, i), "normal", generator) / max(i, 1) ** 0.5,
            "w_hh": draw((4 * h, h), "normal", generator) / max(h, 1) ** 0.5,
        }
        if self.values == "huge":
            inputs["input"] = draw((n, i), "normal", generator)
        if self.bias:
            inputs["b_ih"] = draw((4 * h,), "normal", generator)
            inputs["b_hh"] = draw((4 * h,), "normal", generator)
        return {name: lay_out(tensor.to(dtype).to(device), layout) for name, tensor in inputs.items()}

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        return tuple(
            functional.lstm_cell(
                inputs["input"],
                (inputs["hx"], inputs["cx"]),
                inputs["w_ih"],
                inputs["w_hh"],
                inputs.get("b_ih"),
                inputs.get("b_hh"),
            )
        )


def _conv(id: str, shape: tuple[int, ...], filters: int, kernel: tuple[int, int], **options: Any) -> Conv2dCase:
    return Conv2dCase(id=id, shape=shape, filters=filters, kernel=kernel, **options)


CONV2D = (
    # The smallest ones.
    _conv("1x1", (2, 3, 4, 5), 4, (1, 1), small=True),
    _conv("3x3", (2, 3, 6, 7), 5, (3, 3), padding=1, small=True),
    _conv("no_bias", (2, 3, 6, 7), 5, (3, 3), bias=False, small=True),
    _conv("one_of_everything", (1, 1, 1, 1), 1, (1, 1), small=True),
    _conv("one_output", (2, 40, 3, 3), 3, (3, 3), small=True),  # two GEMM rows
    _conv("single_row", (1, 5, 1, 9), 7, (1, 3), small=True),
    _conv("unbatched", (3, 6, 5), 4, (3, 2), padding=1, small=True),
    _conv("batch_0", (0, 3, 5, 5), 4, (3, 3), padding=1, small=True),
    _conv("batch_0_many_channels", (0, 32, 5, 5), 40, (3, 3), padding=1, small=True),
    _conv("batch_1", (1, 2, 5, 5), 3, (2, 2), small=True),
    # Wider than 64 and than 128 in each dimension of the three matrix products, and dividing neither.
    _conv("wide_everywhere", (2, 15, 12, 13), 131, (3, 3), padding=1, crosses_tile=True),
    _conv("wide_rows", (3, 2, 17, 19), 3, (3, 3), crosses_tile=True),
    _conv("wide_filters", (1, 3, 3, 5), 197, (2, 2), crosses_tile=True),
    _conv("wide_channels", (1, 133, 4, 5), 6, (3, 3), padding=1, crosses_tile=True),
    _conv("wide_1x1", (2, 70, 9, 9), 67, (1, 1), crosses_tile=True),
    _conv("tile_65", (1, 65, 5, 13), 65, (1, 1), crosses_tile=True),
    _conv("tile_exact", (1, 16, 8, 16), 64, (2, 2), padding=0, crosses_tile=True),
    _conv("wide_image", (1, 3, 5, 300), 4, (3, 5), padding=(1, 2)),
    _conv("tall_image", (1, 3, 300, 5), 4, (5, 3), padding=(2, 1)),
    _conv("many_images", (37, 3, 8, 8), 10, (3, 3), padding=1),
    _conv("first_layer", (2, 3, 32, 32), 16, (7, 7), stride=2, padding=3),
    # Channels that no vector width divides.
    _conv("channels_7_to_9", (2, 7, 6, 6), 9, (3, 3), padding=1, small=True),
    _conv("channels_17_to_33", (2, 17, 7, 7), 33, (3, 3), padding=1),
    # Channels that they do divide.
    _conv("channels_16_to_32", (1, 16, 5, 6), 32, (3, 3), padding=1, crosses_tile=True),
    _conv("depthwise_16", (2, 16, 6, 7), 16, (3, 3), groups=16, padding=1, small=True),
    # Long sums: 540 terms forward, 1152 in the gradient of the input, which kernels may split and add up again.
    _conv("deep", (1, 60, 4, 5), 128, (3, 3), padding=1, crosses_tile=True),
    # The fewest groups of 66 x 66 x 66 for which the largest tiles are the faster ones, by CUDA cores and by tensor
    # cores (csrc/cuda/conv_mma_plan.cuh).
    _conv(
        "groups_34_of_66",
        (1, 34 * 66, 1, 66),
        34 * 66,
        (1, 1),
        groups=34,
        crosses_tile=True,
        dtypes=(torch.float32,),
    ),
    _conv(
        "groups_67_of_66",
        (1, 67 * 66, 1, 66),
        67 * 66,
        (1, 1),
        groups=67,
        crosses_tile=True,
        dtypes=(torch.bfloat16,),
    ),
    # Stride, padding, dilation.
    _conv("stride_2", (2, 3, 9, 10), 4, (3, 3), stride=2, padding=1, small=True),
    _conv("stride_uncovered", (2, 3, 12, 11), 4, (3, 3), stride=(4, 5), small=True),
    _conv("stride_over_kernel", (2, 3, 10, 11), 4, (1, 1), stride=3, small=True),
    _conv("stride_mixed", (2, 3, 11, 12), 4, (3, 4), stride=(2, 3), padding=(1, 2), small=True),
    _conv("dilation_2", (2, 3, 9, 9), 4, (3, 3), dilation=2, padding=2, small=True),
    _conv("dilation_mixed", (1, 2, 13, 12), 3, (3, 2), dilation=(3, 4), stride=(2, 1), padding=(2, 0), small=True),
    _conv("padding_over_kernel", (1, 2, 4, 4), 3, (2, 2), padding=(3, 5), small=True),
    _conv("kernel_1x5", (2, 3, 5, 8), 4, (1, 5), padding=(0, 2), small=True),
    _conv("kernel_7x1", (2, 3, 9, 4), 4, (7, 1), padding=(3, 0), small=True),
    _conv("kernel_2x3", (2, 3, 6, 7), 4, (2, 3), small=True),
    _conv("kernel_11x11", (1, 2, 15, 14), 3, (11, 11), padding=5),
    _conv("kernel_whole", (2, 3, 6, 5), 4, (6, 5)),
    _conv("same_even", (2, 3, 6, 7), 4, (2, 4), padding="same", small=True),
    _conv("same_even_dilated", (2, 3, 9, 8), 4, (4, 2), padding="same", dilation=(1, 3), small=True),
    _conv("same_odd", (2, 3, 6, 7), 4, (3, 5), padding="same", small=True),
    _conv("valid", (2, 3, 6, 7), 4, (3, 3), padding="valid", stride=2, small=True),
    # Groups.
    _conv("groups_2", (2, 6, 6, 5), 4, (3, 3), groups=2, padding=1, small=True),
    _conv("groups_3_uneven", (2, 9, 5, 6), 15, (2, 3), groups=3, stride=2, small=True),
    _conv("groups_wide", (1, 140, 5, 5), 138, (3, 3), groups=2, padding=1, crosses_tile=True),
    _conv("depthwise", (2, 7, 8, 9), 7, (3, 3), groups=7, padding=1, small=True),
    _conv("depthwise_double", (2, 5, 8, 7), 10, (3, 3), groups=5, stride=2, padding=1, small=True),
    _conv("depthwise_dilated", (1, 6, 9, 9), 6, (3, 3), groups=6, dilation=2, padding=2, small=True),
    _conv("depthwise_wide", (1, 67, 9, 17), 67, (5, 5), groups=67, padding=2, crosses_tile=True),
    # Values.
    _conv("integers", (2, 5, 7, 6), 6, (3, 3), padding=1, values="integers", small=True),
    _conv("integers_wide", (2, 15, 9, 11), 70, (3, 3), stride=2, values="integers", crosses_tile=True),
    _conv("integers_grouped", (2, 8, 7, 7), 12, (3, 3), groups=4, padding=1, values="integers", small=True),
    _conv("nonfinite", (2, 5, 8, 9), 6, (3, 3), padding=1, values="nonfinite", small=True),
    _conv("nonfinite_strided", (2, 3, 10, 9), 5, (2, 2), stride=3, values="nonfinite", small=True),
    _conv("huge", (2, 3, 6, 6), 4, (3, 3), values="huge", dtypes=WIDE_RANGE, small=True),
)


def _pool(id: str, shape: tuple[int, ...], kernel: Pair, **options: Any) -> MaxPool2dCase:
    return MaxPool2dCase(id=id, shape=shape, kernel=kernel, **options)


MAX_POOL2D = (
    _pool("2x2", (2, 3, 6, 8), 2, small=True),
    _pool("2x2_odd", (2, 3, 7, 9), 2, small=True),
    _pool("3x3_stride_2", (2, 5, 9, 11), 3, stride=2, padding=1, small=True),
    _pool("overlapping", (2, 3, 8, 9), 3, stride=1, padding=1, small=True),
    _pool("ceil", (2, 3, 8, 9), 3, stride=2, ceil_mode=True, small=True),
    _pool("ceil_padded", (1, 2, 6, 7), (3, 4), stride=(2, 3), padding=(1, 2), ceil_mode=True, small=True),
    _pool("ceil_last_dropped", (1, 2, 5, 5), 2, stride=4, padding=1, ceil_mode=True, small=True),
    _pool("dilation", (2, 3, 9, 10), 2, stride=1, dilation=(2, 3), small=True),
    _pool("dilation_padded", (2, 3, 11, 10), 3, stride=2, padding=1, dilation=2, small=True),
    _pool("stride_uncovered", (2, 3, 11, 12), 2, stride=(4, 5), small=True),
    _pool("stride_mixed", (2, 3, 9, 10), (2, 3), stride=(1, 2), padding=(0, 1), small=True),
    _pool("kernel_1", (2, 3, 4, 5), 1, small=True),
    _pool("kernel_1x3", (2, 3, 4, 7), (1, 3), stride=(1, 2), small=True),
    _pool("whole_plane", (2, 3, 5, 6), (5, 6), small=True),
    _pool("one_of_everything", (1, 1, 1, 1), 1, small=True),
    _pool("unbatched", (3, 7, 6), 2, small=True),
    _pool("batch_0", (0, 3, 6, 6), 2, small=True),
    _pool("one_row", (1, 3, 1, 40), (1, 2), small=True),
    _pool("offsets_of_two_bytes", (1, 2, 20, 19), (17, 16), stride=1, crosses_tile=True),
    _pool("wide_row", (1, 3, 5, 301), (2, 3), stride=2, padding=(0, 1), crosses_tile=True),
    _pool("wide_channels", (1, 131, 6, 5), 3, stride=2, padding=1, crosses_tile=True),
    _pool("many_planes", (5, 67, 6, 6), 2, crosses_tile=True),
    _pool("channels_16", (2, 16, 7, 6), 3, stride=2, padding=1, small=True),
    _pool("channels_16_ties", (1, 16, 7, 6), 2, stride=1, values="ties", small=True),
    _pool("channels_16_nonfinite", (2, 16, 5, 6), 2, values="nonfinite", return_indices=True, small=True),
    _pool("channels_17", (2, 17, 9, 9), 3, stride=2, small=True),
    _pool("resnet_stem", (1, 64, 28, 28), 3, stride=2, padding=1),
    _pool("ties", (2, 3, 8, 9), 3, stride=2, padding=1, values="ties", small=True),
    _pool("ties_overlapping", (2, 9, 8, 9), 3, stride=1, values="ties", small=True),
    _pool("ties_wide", (1, 70, 12, 13), 2, values="ties", crosses_tile=True),
    _pool("nonfinite", (2, 5, 9, 9), 2, values="nonfinite", small=True),
    _pool("nonfinite_overlapping", (2, 3, 8, 9), 3, stride=1, padding=1, values="nonfinite", small=True),
    _pool("minus_inf", (2, 5, 8, 9), 2, padding=1, values="minus_inf", small=True),
    _pool("minus_inf_dilated", (2, 3, 9, 9), 2, stride=2, padding=1, dilation=2, values="minus_inf", small=True),
    _pool("huge", (2, 3, 6, 7), 2, values="huge", dtypes=WIDE_RANGE, small=True),
    _pool("integers", (2, 3, 9, 8), 3, stride=1, values="integers", small=True),
    _pool("indices", (2, 3, 8, 7), 3, stride=2, padding=1, return_indices=True, small=True),
    _pool("indices_ties", (2, 3, 8, 7), 3, stride=2, return_indices=True, values="ties", small=True),
    _pool("indices_nonfinite", (2, 3, 8, 7), 2, return_indices=True, values="nonfinite", small=True),
    _pool("indices_minus_inf", (1, 3, 8, 7), 2, padding=1, return_indices=True, values="minus_inf", small=True),
    _pool("indices_unbatched", (3, 8, 7), 2, return_indices=True, ceil_mode=True, small=True),
    # Tiles of CUDA's planes (csrc/cuda/max_pool_tiles.cuh): rows of a plane, pieces of rows, many planes.
    _pool("tiles_of_rows", (1, 3, 61, 67), 3, stride=2, padding=1, crosses_tile=True),
    _pool("tiles_of_rows_2x2", (1, 2, 64, 66), 2, crosses_tile=True),
    _pool("tiles_of_rows_ties", (2, 2, 70, 45), 3, stride=1, padding=1, values="ties", crosses_tile=True),
    _pool("tiles_any_window", (1, 2, 67, 40), (5, 4), stride=(2, 3), padding=1, dilation=(1, 2), crosses_tile=True),
    _pool("tiles_nonfinite", (1, 2, 50, 61), 3, stride=2, values="nonfinite", return_indices=True, crosses_tile=True),
    _pool("pieces_of_rows", (1, 2, 9, 2301), 3, stride=2, padding=1, crosses_tile=True),
    _pool("pieces_of_rows_any_window", (1, 1, 7, 1501), (3, 5), stride=(1, 2), padding=(1, 2), crosses_tile=True),
    _pool("planes_of_49", (3, 150, 7, 7), 2, return_indices=True, crosses_tile=True),
    _pool("indices_wide", (1, 33, 9, 140), 3, stride=2, padding=1, return_indices=True, crosses_tile=True),
)


def _maxout(id: str, shape: tuple[int, ...], pieces: int, **options: Any) -> MaxoutCase:
    return MaxoutCase(id=id, shape=shape, pieces=pieces, **options)


MAXOUT = (
    _maxout("4d", (2, 6, 4, 5), 2, small=True),
    _maxout("3", (2, 9, 5, 7), 3, small=True),
    _maxout("first_2", (2, 6, 4, 5), 2, pieces_first=True, small=True),
    _maxout("first_5", (2, 15, 3, 5), 5, pieces_first=True, small=True),
    _maxout("1", (2, 3, 4, 5), 1, small=True),
    _maxout("all_channels", (2, 7, 3, 4), 7, small=True),
    _maxout("rows", (5, 12), 4, small=True),
    _maxout("rows_first", (5, 12), 4, pieces_first=True, small=True),
    _maxout("3d", (2, 8, 9), 2, small=True),
    _maxout("5d", (2, 6, 2, 3, 4), 3, small=True),
    _maxout("6d", (1, 4, 2, 3, 2, 2), 2, small=True),
    _maxout("batch_0", (0, 6, 4, 5), 2, small=True),
    _maxout("wide", (3, 130, 9, 11), 5, crosses_tile=True),
    _maxout("wide_first", (2, 130, 9, 11), 2, pieces_first=True, crosses_tile=True),
    _maxout("many_rows", (301, 30), 5, crosses_tile=True),
    _maxout("two_bytes", (1, 600, 3), 300, crosses_tile=True),
    _maxout("ties", (2, 12, 5, 6), 4, values="ties", small=True),
    _maxout("ties_first", (2, 12, 5, 6), 4, pieces_first=True, values="ties", small=True),
    _maxout("nonfinite", (2, 12, 5, 6), 3, values="nonfinite", small=True),
    _maxout("minus_inf", (2, 12, 5, 6), 2, values="minus_inf", small=True),
)


_CASE_FIELDS = ("small", "crosses_tile", "values", "dtypes")


def _pooling(id: str, kind: str, rank: int, shape: tuple[int, ...], **options: Any) -> PoolingCase:
    fields = {name: options.pop(name) for name in _CASE_FIELDS if name in options}
    return PoolingCase(id=id, kind=kind, rank=rank, shape=shape, arguments=tuple(options.items()), **fields)


# Powers that a half type holds.
_LP = {"dtypes": (torch.float64, torch.float32, torch.bfloat16)}

POOLING = (
    _pooling("max1", "max_pool", 1, (2, 3, 17), kernel_size=3, stride=2, padding=1, return_indices=True, small=True),
    _pooling("max1_dilated", "max_pool", 1, (5, 40), kernel_size=4, stride=1, dilation=3, ceil_mode=True, small=True),
    _pooling(
        "max1_nonfinite", "max_pool", 1, (2, 17, 33), kernel_size=2, values="nonfinite", return_indices=True, small=True
    ),
    _pooling("max1_wide", "max_pool", 1, (1, 3, 2301), kernel_size=5, stride=3, crosses_tile=True),
    _pooling(
        "max3", "max_pool", 3, (2, 3, 5, 6, 7), kernel_size=3, stride=2, padding=1, return_indices=True, small=True
    ),
    _pooling(
        "max3_mixed",
        "max_pool",
        3,
        (3, 6, 5, 9),
        kernel_size=(2, 1, 3),
        stride=(1, 2, 2),
        dilation=(2, 1, 1),
        small=True,
    ),
    _pooling(
        "max3_ties",
        "max_pool",
        3,
        (1, 16, 4, 5, 6),
        kernel_size=2,
        ceil_mode=True,
        values="ties",
        return_indices=True,
        small=True,
    ),
    _pooling("max3_batch_0", "max_pool", 3, (0, 2, 4, 4, 4), kernel_size=2, small=True),
    _pooling("max3_wide", "max_pool", 3, (1, 5, 7, 19, 23), kernel_size=(3, 3, 2), padding=1, crosses_tile=True),
    _pooling("unpool1", "max_unpool", 1, (2, 3, 7), kernel_size=3, stride=2, output_size=(15,), small=True),
    _pooling("unpool2", "max_unpool", 2, (2, 5, 4, 6), kernel_size=2, output_size=(8, 12), small=True),
    _pooling(
        "unpool2_unbatched",
        "max_unpool",
        2,
        (3, 3, 4),
        kernel_size=3,
        stride=2,
        padding=1,
        output_size=(6, 7),
        small=True,
    ),
    _pooling(
        "unpool2_nonfinite",
        "max_unpool",
        2,
        (1, 16, 5, 4),
        kernel_size=2,
        output_size=(10, 8),
        values="nonfinite",
        small=True,
    ),
    _pooling("unpool2_tiles", "max_unpool", 2, (1, 2, 33, 35), kernel_size=2, output_size=(66, 70), crosses_tile=True),
    _pooling("unpool2_batch_0", "max_unpool", 2, (0, 3, 2, 2), kernel_size=2, output_size=(4, 4), small=True),
    _pooling("unpool3", "max_unpool", 3, (1, 3, 2, 3, 2), kernel_size=2, output_size=(4, 6, 4), small=True),
    _pooling("avg1", "avg_pool", 1, (2, 3, 17), kernel_size=3, stride=2, padding=1, small=True),
    _pooling(
        "avg1_ceil",
        "avg_pool",
        1,
        (3, 18),
        kernel_size=4,
        stride=3,
        padding=2,
        ceil_mode=True,
        count_include_pad=False,
        small=True,
    ),
    _pooling("avg1_wide", "avg_pool", 1, (1, 2, 4601), kernel_size=3, stride=1, padding=1, crosses_tile=True),
    _pooling("avg1_long_windows", "avg_pool", 1, (1, 2, 5003), kernel_size=2100, stride=900, crosses_tile=True),
    _pooling("avg2", "avg_pool", 2, (2, 3, 7, 9), kernel_size=2, small=True),
    _pooling("avg2_overlapping", "avg_pool", 2, (2, 5, 9, 20), kernel_size=3, stride=1, padding=1, small=True),
    _pooling(
        "avg2_3x3_stride_2",
        "avg_pool",
        2,
        (2, 3, 11, 37),
        kernel_size=3,
        stride=2,
        padding=1,
        count_include_pad=False,
        small=True,
    ),
    _pooling(
        "avg2_ceil",
        "avg_pool",
        2,
        (1, 3, 8, 9),
        kernel_size=(3, 4),
        stride=(2, 3),
        padding=(1, 2),
        ceil_mode=True,
        small=True,
    ),
    _pooling(
        "avg2_ceil_no_pad",
        "avg_pool",
        2,
        (1, 3, 8, 9),
        kernel_size=3,
        stride=2,
        padding=1,
        ceil_mode=True,
        count_include_pad=False,
        small=True,
    ),
    _pooling(
        "avg2_divisor", "avg_pool", 2, (2, 3, 6, 8), kernel_size=3, stride=2, padding=1, divisor_override=-5, small=True
    ),
    _pooling("avg2_uncovered", "avg_pool", 2, (2, 3, 11, 12), kernel_size=2, stride=(4, 5), small=True),
    _pooling("avg2_kernel_1", "avg_pool", 2, (2, 3, 4, 5), kernel_size=1, small=True),
    _pooling("avg2_whole", "avg_pool", 2, (3, 17, 7, 7), kernel_size=7, small=True),
    _pooling("avg2_whole_rows", "avg_pool", 2, (2, 3, 9, 6), kernel_size=(2, 6), stride=(3, 1), small=True),
    _pooling("avg2_unbatched", "avg_pool", 2, (3, 7, 6), kernel_size=2, small=True),
    _pooling("avg2_batch_0", "avg_pool", 2, (0, 3, 6, 6), kernel_size=2, small=True),
    _pooling("avg2_channels_16", "avg_pool", 2, (2, 16, 7, 6), kernel_size=3, stride=2, padding=1, small=True),
    _pooling("avg2_channels_131", "avg_pool", 2, (1, 131, 6, 5), kernel_size=2, stride=1, crosses_tile=True),
    _pooling("avg2_channels_261", "avg_pool", 2, (1, 261, 4, 5), kernel_size=3, padding=1, crosses_tile=True),
    _pooling("avg2_vectors", "avg_pool", 2, (2, 5, 16, 64), kernel_size=2, crosses_tile=True),
    _pooling("avg2_nonfinite", "avg_pool", 2, (2, 5, 9, 9), kernel_size=2, values="nonfinite", small=True),
    _pooling("avg2_integers", "avg_pool", 2, (2, 3, 8, 16), kernel_size=2, values="integers", small=True),
    _pooling(
        "avg2_integers_overlapping",
        "avg_pool",
        2,
        (2, 3, 8, 17),
        kernel_size=(4, 2),
        stride=(2, 1),
        values="integers",
        small=True,
    ),
    _pooling("avg2_huge", "avg_pool", 2, (2, 3, 6, 7), kernel_size=2, values="huge", dtypes=WIDE_RANGE, small=True),
    _pooling(
        "avg3", "avg_pool", 3, (2, 3, 5, 6, 7), kernel_size=2, stride=1, padding=1, count_include_pad=False, small=True
    ),
    _pooling(
        "avg3_mixed",
        "avg_pool",
        3,
        (4, 5, 6, 9),
        kernel_size=(2, 3, 4),
        stride=(1, 2, 2),
        padding=(0, 1, 2),
        ceil_mode=True,
        small=True,
    ),
    _pooling("avg3_wide", "avg_pool", 3, (1, 3, 9, 19, 23), kernel_size=3, stride=2, crosses_tile=True),
    _pooling("lp1", "lp_pool", 1, (2, 3, 17), norm_type=2, kernel_size=3, stride=2, small=True, **_LP),
    _pooling("lp1_wide", "lp_pool", 1, (1, 3, 400), norm_type=2, kernel_size=100, crosses_tile=True, **_LP),
    _pooling("lp2", "lp_pool", 2, (2, 3, 7, 10), norm_type=2, kernel_size=2, small=True, **_LP),
    _pooling("lp2_overlapping", "lp_pool", 2, (2, 5, 9, 20), norm_type=2, kernel_size=3, stride=1, small=True, **_LP),
    _pooling(
        "lp2_ceil", "lp_pool", 2, (3, 8, 9), norm_type=2, kernel_size=3, stride=2, ceil_mode=True, small=True, **_LP
    ),
    _pooling("lp2_of_1", "lp_pool", 2, (2, 3, 6, 9), norm_type=1, kernel_size=(2, 3), small=True, **_LP),
    _pooling("lp2_of_1.5", "lp_pool", 2, (2, 3, 6, 9), norm_type=1.5, kernel_size=2, small=True, **_LP),
    _pooling("lp2_of_3", "lp_pool", 2, (2, 17, 6, 9), norm_type=3.0, kernel_size=3, stride=2, small=True, **_LP),
    _pooling("lp2_of_inf", "lp_pool", 2, (2, 3, 6, 9), norm_type=float("inf"), kernel_size=2, small=True),
    _pooling("lp2_whole", "lp_pool", 2, (3, 33, 7, 7), norm_type=2, kernel_size=7, crosses_tile=True, **_LP),
    _pooling("lp3", "lp_pool", 3, (1, 3, 5, 6, 4), norm_type=2, kernel_size=2, small=True, **_LP),
    _pooling("adaptive_avg1", "adaptive_avg_pool", 1, (2, 3, 17), output_size=5, small=True),
    _pooling("adaptive_avg1_wide", "adaptive_avg_pool", 1, (1, 2, 5003), output_size=7, crosses_tile=True),
    _pooling("adaptive_avg2", "adaptive_avg_pool", 2, (2, 3, 8, 9), output_size=(5, 7), small=True),
    _pooling("adaptive_avg2_none", "adaptive_avg_pool", 2, (2, 16, 7, 9), output_size=(None, 4), small=True),
    _pooling("adaptive_avg2_even", "adaptive_avg_pool", 2, (2, 3, 8, 12), output_size=4, small=True),
    _pooling("adaptive_avg2_global", "adaptive_avg_pool", 2, (3, 33, 7, 7), output_size=1, small=True),
    _pooling("adaptive_avg2_global_large", "adaptive_avg_pool", 2, (1, 5, 24, 32), output_size=1, crosses_tile=True),
    _pooling("adaptive_avg2_larger", "adaptive_avg_pool", 2, (2, 3, 4, 5), output_size=(7, 6), small=True),
    _pooling("adaptive_avg2_unbatched", "adaptive_avg_pool", 2, (3, 7, 6), output_size=(2, 4), small=True),
    _pooling("adaptive_avg2_wide", "adaptive_avg_pool", 2, (1, 5, 13, 131), output_size=(6, 30), crosses_tile=True),
    _pooling(
        "adaptive_avg2_nonfinite", "adaptive_avg_pool", 2, (2, 5, 9, 9), output_size=4, values="nonfinite", small=True
    ),
    _pooling("adaptive_avg3", "adaptive_avg_pool", 3, (1, 3, 5, 6, 7), output_size=(2, None, 4), small=True),
    _pooling("adaptive_max1", "adaptive_max_pool", 1, (2, 3, 17), output_size=5, return_indices=True, small=True),
    _pooling("adaptive_max1_wide", "adaptive_max_pool", 1, (1, 2, 4703), output_size=2, crosses_tile=True),
    _pooling(
        "adaptive_max2", "adaptive_max_pool", 2, (2, 3, 8, 9), output_size=(5, 7), return_indices=True, small=True
    ),
    _pooling(
        "adaptive_max2_even", "adaptive_max_pool", 2, (2, 3, 8, 12), output_size=4, return_indices=True, small=True
    ),
    _pooling("adaptive_max2_global", "adaptive_max_pool", 2, (3, 17, 7, 7), output_size=1, small=True),
    _pooling(
        "adaptive_max2_ties",
        "adaptive_max_pool",
        2,
        (2, 16, 9, 40),
        output_size=(4, 9),
        values="ties",
        return_indices=True,
        small=True,
    ),
    _pooling(
        "adaptive_max2_nonfinite",
        "adaptive_max_pool",
        2,
        (2, 5, 9, 9),
        output_size=4,
        values="nonfinite",
        return_indices=True,
        small=True,
    ),
    _pooling(
        "adaptive_max2_minus_inf",
        "adaptive_max_pool",
        2,
        (2, 5, 9, 19),
        output_size=(4, 6),
        values="minus_inf",
        return_indices=True,
        small=True,
    ),
    _pooling(
        "adaptive_max2_integers", "adaptive_max_pool", 2, (2, 3, 7, 9), output_size=4, values="integers", small=True
    ),
    _pooling(
        "adaptive_max3", "adaptive_max_pool", 3, (3, 5, 6, 7), output_size=(2, None, 4), return_indices=True, small=True
    ),
)


def _norm(id: str, shape: tuple[int, ...], **options: Any) -> BatchNormCase:
    return BatchNormCase(id=id, shape=shape, **options)


BATCH_NORM = (
    _norm("2d", (6, 5), small=True),
    _norm("2d_two_rows", (2, 3), small=True),
    _norm("2d_wide", (9, 261), crosses_tile=True),
    _norm("2d_tall", (700, 3), crosses_tile=True),
    _norm("3d", (4, 7, 9), small=True),
    _norm("3d_two_values", (1, 5, 2), small=True),
    _norm("4d", (3, 5, 4, 6), small=True),
    _norm("4d_batch_1", (1, 4, 5, 7), small=True),
    _norm("4d_batch_0", (0, 4, 5, 7), small=True),
    _norm("4d_one_channel", (3, 1, 5, 5), small=True),
    _norm("4d_one_pixel", (5, 67, 1, 1), crosses_tile=True),
    _norm("2d_channels_64", (33, 64), small=True),
    _norm("4d_channels_16", (3, 16, 5, 4), small=True),
    _norm("4d_channels_17", (3, 17, 5, 7), small=True),
    _norm("4d_channels_131", (2, 131, 3, 5), crosses_tile=True),
    _norm("4d_large_plane", (2, 2, 41, 43), crosses_tile=True),
    _norm("4d_many_values", (3, 3, 67, 71)),
    _norm("4d_resnet", (4, 64, 14, 14)),
    _norm("5d", (2, 3, 4, 5, 3), small=True),
    _norm("no_affine", (3, 5, 4, 6), affine=False, small=True),
    _norm("no_track", (3, 5, 4, 6), track=False, small=True),
    _norm("momentum_1", (3, 5, 4), momentum=1.0, small=True),
    _norm("momentum_0", (3, 5, 4), momentum=0.0, small=True),
    _norm("eps_0.1", (3, 5, 4), eps=0.1, small=True),
    _norm("mixed", (3, 5, 4, 6), mixed=True, small=True),
    _norm("mixed_wide", (3, 130, 7, 5), mixed=True, crosses_tile=True),
    _norm("large_mean", (4, 3, 8, 9), values="large_mean", dtypes=PRECISE, small=True),
    _norm("large_mean_2d", (64, 5), values="large_mean", dtypes=PRECISE, small=True),
    _norm("large_mean_many", (3, 2, 51, 53), values="large_mean", dtypes=PRECISE, crosses_tile=True),
    _norm("nonfinite", (2, 9, 5, 4), values="nonfinite", small=True),
    _norm("eval_2d", (6, 5), training=False, small=True),
    _norm("eval_4d", (3, 5, 4, 6), training=False, small=True),
    _norm("eval_5d", (2, 3, 4, 5, 3), training=False, small=True),
    _norm("eval_one_value", (1, 3, 1, 1), training=False, small=True),
    _norm("eval_batch_0", (0, 3, 4, 4), training=False, small=True),
    _norm("eval_no_affine", (3, 5, 4, 6), training=False, affine=False, small=True),
    _norm("eval_mixed", (3, 5, 4, 6), training=False, mixed=True, small=True),
    _norm("eval_wide", (2, 131, 9, 7), training=False, crosses_tile=True),
    _norm("eval_nonfinite", (2, 9, 5, 4), training=False, values="nonfinite", small=True),
    _norm("eval_huge", (3, 5, 4, 6), training=False, values="huge", dtypes=WIDE_RANGE, small=True),
    _norm("eval_large_mean", (3, 5, 4, 6), training=False, values="large_mean", dtypes=PRECISE, small=True),
)

BATCH_NORM_ACTIVATED = (
    _norm("relu", (3, 5, 4, 6), activation="relu", small=True),
    _norm("relu_2d", (6, 5), activation="relu", small=True),
    _norm("relu_5d", (2, 3, 4, 5, 3), activation="relu", small=True),
    _norm("relu_wide", (3, 130, 7, 5), activation="relu", crosses_tile=True),
    _norm("relu_channels_16", (3, 16, 5, 4), activation="relu", small=True),
    _norm("relu_large_plane", (2, 2, 41, 43), activation="relu", crosses_tile=True),
    _norm("relu_no_affine", (3, 5, 4, 6), activation="relu", affine=False, small=True),
    _norm("relu_mixed", (3, 5, 4, 6), activation="relu", mixed=True, small=True),
    _norm("relu_eval", (3, 5, 4, 6), activation="relu", training=False, small=True),
    _norm("relu_batch_0", (0, 4, 5, 7), activation="relu", small=True),
    _norm("relu_nonfinite", (2, 9, 5, 4), activation="relu", values="nonfinite", small=True),
    _norm("leaky", (3, 5, 4, 6), activation="leaky_relu", alpha=0.1, small=True),
    _norm("leaky_eval", (3, 5, 4, 7), activation="leaky_relu", alpha=-0.5, training=False, small=True),
    _norm("elu", (3, 5, 4, 6), activation="elu", alpha=1.0, small=True),
    _norm("elu_eval", (3, 5, 7, 6), activation="elu", alpha=1.5, training=False, small=True),
    _norm("add_relu", (3, 5, 4, 6), activation="relu", residual=True, small=True),
    _norm("add_relu_2d", (6, 5), activation="relu", residual=True, small=True),
    _norm("add_relu_5d", (2, 3, 4, 5, 3), activation="relu", residual=True, small=True),
    _norm("add_relu_7x7", (3, 20, 7, 7), activation="relu", residual=True, small=True),
    _norm("add_relu_wide", (3, 130, 7, 5), activation="relu", residual=True, crosses_tile=True),
    _norm("add_relu_channels_64", (2, 64, 5, 8), activation="relu", residual=True, crosses_tile=True),
    _norm("add_relu_large_plane", (2, 2, 41, 43), activation="relu", residual=True, crosses_tile=True),
    _norm("add_relu_many_values", (3, 3, 67, 71), activation="relu", residual=True),
    _norm("add_relu_one_channel", (3, 1, 5, 5), activation="relu", residual=True, small=True),
    _norm("add_relu_mixed", (3, 5, 4, 6), activation="relu", residual=True, mixed=True, small=True),
    _norm("add_relu_eval", (3, 5, 4, 6), activation="relu", residual=True, training=False, small=True),
    _norm("add_relu_batch_0", (0, 4, 5, 7), activation="relu", residual=True, small=True),
    _norm("add_leaky", (3, 17, 4, 6), activation="leaky_relu", alpha=0.1, residual=True, small=True),
    _norm("add_elu", (3, 5, 4, 6), activation="elu", alpha=1.0, residual=True, small=True),
    _norm("add_elu_eval", (3, 5, 4, 6), activation="elu", alpha=0.7, residual=True, training=False, small=True),
    _norm("add", (3, 5, 4, 6), activation="identity", alpha=1.0, residual=True, small=True),
    _norm("add_eval", (3, 5, 4, 6), activation="identity", alpha=1.0, residual=True, training=False, small=True),
)


def _group(id: str, shape: tuple[int, ...], groups: int, **options: Any) -> GroupNormCase:
    return GroupNormCase(id=id, shape=shape, groups=groups, **options)


GROUP_NORM = (
    _group("4d", (3, 6, 4, 5), 2, small=True),
    _group("2d", (5, 12), 3, small=True),
    _group("3d", (2, 10, 9), 5, small=True),
    _group("5d", (2, 4, 2, 3, 4), 2, small=True),
    _group("one_group", (2, 7, 3, 5), 1, small=True),
    _group("group_of_one_channel", (2, 7, 3, 5), 7, small=True),
    _group("one_channel", (3, 1, 4, 5), 1, small=True),
    _group("one_position", (3, 12, 1, 1), 4, small=True),
    _group("batch_0", (0, 6, 4, 5), 2, small=True),
    _group("no_affine", (3, 6, 4, 5), 3, affine=False, small=True),
    _group("eps_0.1", (2, 6, 3, 5), 2, eps=0.1, small=True),
    _group("mixed", (3, 6, 4, 5), 2, mixed=True, small=True),
    _group("channels_64", (2, 64, 3, 5), 32, small=True),
    _group("channels_128", (2, 128, 5, 7), 4, crosses_tile=True),
    _group("channels_131", (2, 131, 3, 5), 1, crosses_tile=True),
    _group("wide_2d", (3, 1030), 2, crosses_tile=True),
    _group("large_plane", (1, 4, 41, 43), 2, crosses_tile=True),
    _group("many_values", (2, 6, 67, 71), 3),
    _group("one_large_group", (1, 40, 60, 61), 1),
    _group("large_mean", (3, 6, 8, 9), 2, values="large_mean", dtypes=PRECISE, small=True),
    _group("large_mean_2d", (3, 60), 2, values="large_mean", dtypes=PRECISE, small=True),
    _group("nonfinite", (4, 12, 2, 3), 6, values="nonfinite", small=True),
)


def _instance(id: str, shape: tuple[int, ...], **options: Any) -> InstanceNormCase:
    return InstanceNormCase(id=id, shape=shape, **options)


INSTANCE_NORM = (
    _instance("4d", (3, 5, 4, 6), small=True),
    _instance("3d", (2, 7, 9), small=True),
    _instance("5d", (2, 3, 4, 5, 3), small=True),
    _instance("no_affine", (3, 5, 4, 6), affine=False, small=True),
    _instance("track", (3, 5, 4, 6), track=True, small=True),
    _instance("track_mixed", (3, 5, 4, 6), track=True, mixed=True, small=True),
    _instance("track_momentum", (2, 17, 5), track=True, momentum=0.7, affine=False, small=True),
    _instance("track_large_mean", (2, 3, 8, 9), track=True, values="large_mean", dtypes=PRECISE, small=True),
    _instance("eval", (3, 5, 4, 6), track=True, use_input_stats=False, small=True),
    _instance("channels_130", (2, 130, 5, 7), track=True, crosses_tile=True),
    _instance("large_plane", (1, 2, 41, 43), crosses_tile=True),
    _instance("nonfinite", (2, 9, 5, 4), values="nonfinite", small=True),
)


def _response(id: str, shape: tuple[int, ...], size: int, **options: Any) -> LocalResponseNormCase:
    return LocalResponseNormCase(id=id, shape=shape, size=size, **options)


LOCAL_RESPONSE_NORM = (
    _response("4d", (2, 9, 4, 6), 5, small=True),
    _response("3d", (2, 7, 11), 3, small=True),
    _response("5d", (2, 6, 2, 3, 4), 4, small=True),
    _response("6d", (1, 5, 2, 3, 2, 2), 3, small=True),
    _response("1", (2, 5, 3, 4), 1, small=True),
    _response("2", (2, 6, 3, 4), 2, small=True),
    _response("even", (2, 17, 3, 5), 6, small=True),
    _response("of_all_channels", (2, 5, 3, 4), 9, small=True),
    _response("beyond_all_channels", (2, 3, 3, 4), 20, small=True),
    _response("one_channel", (3, 1, 4, 5), 5, small=True),
    _response("batch_0", (0, 5, 4, 4), 5, small=True),
    _response("beta_half", (2, 7, 3, 4), 5, beta=0.5, small=True),
    _response("beta_1", (2, 7, 3, 4), 5, beta=1.0, small=True),
    _response("beta_any", (2, 7, 3, 4), 5, beta=0.6, k=2.0, small=True),
    _response("beta_negative", (1, 7, 3, 4), 3, beta=-1.3, small=True),
    _response("alexnet", (2, 20, 5, 7), 5, alpha=1e-4, k=2.0, small=True),
    _response("no_k", (2, 6, 3, 4), 3, k=0.0, small=True),
    # Wider than a tile of channels and of positions, dividing neither; few positions; windows wider than a tile.
    _response("wide_channels", (2, 131, 3, 5), 5, crosses_tile=True),
    _response("large_plane", (1, 6, 17, 31), 5, crosses_tile=True),
    _response("window_over_tile", (1, 90, 2, 3), 45, beta=0.4, crosses_tile=True),
    _response("even_over_tile", (1, 70, 2, 3), 6, crosses_tile=True),
    _response("many_positions", (3, 40, 9, 11), 3, crosses_tile=True),
    _response("plane_of_strips", (2, 33, 24, 25), 7),
    # Terms that shared memory does not hold.
    _response("thousands_of_channels", (1, 6400, 2), 6301, crosses_tile=True, dtypes=(torch.float32,)),
    _response("nonfinite", (2, 13, 4, 5), 5, values="nonfinite", small=True),
)


def _lstm(id: str, rows: int, input_size: int, hidden_size: int, **options: Any) -> LstmCellCase:
    return LstmCellCase(id=id, rows=rows, input_size=input_size, hidden_size=hidden_size, **options)


LSTM_CELL = (
    _lstm("2x3x4", 2, 3, 4, small=True),
    _lstm("no_bias", 2, 3, 4, bias=False, small=True),
    _lstm("through_h", 3, 5, 6, through="h", small=True),
    _lstm("through_c", 3, 5, 6, through="c", small=True),
    _lstm("through_c_no_bias", 3, 5, 7, through="c", bias=False, small=True),
    _lstm("hidden_odd", 5, 7, 13, small=True),
    _lstm("hidden_32", 3, 8, 32, small=True),
    _lstm("hidden_1", 3, 2, 1, small=True),
    _lstm("one_of_everything", 1, 1, 1, small=True),
    _lstm("batch_0", 0, 4, 5, small=True),
    _lstm("batch_0_no_bias", 0, 4, 5, bias=False, small=True),
    _lstm("batch_1", 1, 6, 9, small=True),
    _lstm("many_rows", 301, 3, 5, crosses_tile=True),
    _lstm("wide_hidden", 6, 9, 261, crosses_tile=True),
    _lstm("wide_both", 70, 33, 67, crosses_tile=True),
    _lstm("wide_input", 4, 300, 17),
    _lstm("characters", 64, 65, 128),
    _lstm("nonfinite", 6, 5, 7, values="nonfinite", small=True),
    _lstm("huge_cell", 4, 5, 7, values="huge", dtypes=WIDE_RANGE, small=True),
)

from fastnn.testing.convolution_cases import CONVOLUTIONS  # noqa: E402 - its cases are subclasses of those here

CASES: dict[str, tuple[Case, ...]] = {
    "conv2d": CONV2D,
    **CONVOLUTIONS,
    "max_pool2d": MAX_POOL2D,
    "maxout": MAXOUT,
    "pooling": POOLING,
    "batch_norm": (*BATCH_NORM, *BATCH_NORM_ACTIVATED),
    "group_norm": GROUP_NORM,
    "instance_norm": INSTANCE_NORM,
    "local_response_norm": LOCAL_RESPONSE_NORM,
    "lstm_cell": LSTM_CELL,
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
