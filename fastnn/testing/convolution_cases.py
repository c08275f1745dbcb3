"""Cases of convolutions: of every rank, transposed, with filters of each position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fastnn.testing.case import WIDE_RANGE, Case, draw, lay_out
from fastnn.testing.reference import of_each


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
class Conv1dCase(ConvCase):
    """A convolution of one spatial dimension."""

    op: ClassVar[str] = "conv1d"


@dataclass(frozen=True, kw_only=True)
class Conv3dCase(ConvCase):
    """A convolution of three spatial dimensions."""

    op: ClassVar[str] = "conv3d"


@dataclass(frozen=True, kw_only=True)
class ConvTransposeCase(ConvCase):
    """A transposed convolution: weight [C, filters / groups, *kernel]."""

    output_padding: int | tuple[int, ...] = 0

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the function."""
        return super().options | {"output_padding": self.output_padding}

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the filters."""
        return (self.channels, self.filters // self.groups, *self.kernel)


@dataclass(frozen=True, kw_only=True)
class ConvTranspose1dCase(ConvTransposeCase):
    """A transposed convolution of one spatial dimension."""

    op: ClassVar[str] = "conv_transpose1d"


@dataclass(frozen=True, kw_only=True)
class ConvTranspose2dCase(ConvTransposeCase):
    """A transposed convolution of two spatial dimensions."""

    op: ClassVar[str] = "conv_transpose2d"


@dataclass(frozen=True, kw_only=True)
class ConvTranspose3dCase(ConvTransposeCase):
    """A transposed convolution of three spatial dimensions."""

    op: ClassVar[str] = "conv_transpose3d"


@dataclass(frozen=True, kw_only=True)
class LocallyConnectedCase(ConvCase):
    """Filters of each position's own: weight [positions..., filters, C, *kernel]; bias [filters, positions...]."""

    padding: int | tuple[int, ...] = 0

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the function."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    @property
    def positions(self) -> tuple[int, ...]:
        """Spatial size of the output."""
        rank = len(self.kernel)
        each = (of_each(v, rank) for v in (self.stride, self.padding, self.dilation))
        sizes = zip(self.shape[-rank:], self.kernel, *each, strict=True)
        return tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the filters."""
        return (*self.positions, self.filters, self.channels, *self.kernel)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Shape of the bias."""
        return (self.filters, *self.positions)


@dataclass(frozen=True, kw_only=True)
class LocallyConnected1dCase(LocallyConnectedCase):
    """Of one spatial dimension."""

    op: ClassVar[str] = "locally_connected1d"


@dataclass(frozen=True, kw_only=True)
class LocallyConnected2dCase(LocallyConnectedCase):
    """Of two spatial dimensions."""

    op: ClassVar[str] = "locally_connected2d"


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


def _cases(kind: type[ConvCase], *rows: tuple[Any, ...]) -> tuple[ConvCase, ...]:
    return tuple(
        kind(id=id, shape=shape, filters=filters, kernel=kernel, **{"small": True} | options)
        for id, shape, filters, kernel, options in rows
    )


LARGE = {"small": False, "crosses_tile": True}

CONV1D = _cases(
    Conv1dCase,
    ("3", (2, 3, 9), 5, (3,), {"padding": 1}),
    ("1", (2, 4, 7), 6, (1,), {"bias": False}),
    ("unbatched", (3, 11), 4, (4,), {"padding": 2}),
    ("batch_0", (0, 3, 5), 4, (3,), {"padding": 1}),
    ("stride_dilation", (2, 3, 24), 4, (3,), {"stride": 2, "dilation": 3, "padding": 2}),
    ("stride_uncovered", (2, 3, 14), 4, (2,), {"stride": 5}),
    ("same_even_dilated", (2, 3, 13), 4, (4,), {"padding": "same", "dilation": 3}),
    ("valid", (2, 3, 9), 4, (3,), {"padding": "valid", "stride": 2}),
    ("groups_3_uneven", (2, 9, 11), 15, (3,), {"groups": 3, "stride": 2}),
    ("depthwise", (2, 19, 40), 19, (3,), {"groups": 19, "padding": 1}),
    ("depthwise_long_filter", (2, 8, 70), 8, (31,), {"groups": 8, "padding": 15}),
    ("depthwise_causal", (2, 16, 37), 16, (4,), {"groups": 16, "padding": 3}),
    ("depthwise_stride_2", (2, 7, 33), 7, (5,), {"groups": 7, "stride": 2, "padding": 2}),
    ("integers", (2, 5, 17), 6, (3,), {"padding": 1, "values": "integers"}),
    ("nonfinite", (2, 5, 19), 6, (3,), {"padding": 1, "values": "nonfinite"}),
    ("wide", (2, 33, 150), 70, (3,), {"padding": 1, **LARGE}),
    ("long_filter", (1, 3, 400), 20, (80,), {"stride": 4, "padding": 38, **LARGE}),
)

CONV3D = _cases(
    Conv3dCase,
    ("3x3x3", (2, 3, 4, 5, 6), 5, (3, 3, 3), {"padding": 1}),
    ("1x1x1", (2, 4, 3, 2, 5), 6, (1, 1, 1), {"bias": False}),
    ("unbatched", (3, 4, 6, 5), 4, (2, 3, 2), {"padding": (1, 0, 1)}),
    ("batch_0", (0, 3, 3, 4, 5), 4, (3, 3, 3), {"padding": 1}),
    ("stride_mixed", (1, 3, 5, 6, 7), 4, (2, 3, 1), {"stride": (2, 1, 3), "padding": (1, 1, 0)}),
    ("stride_uncovered", (1, 2, 6, 6, 6), 3, (1, 2, 1), {"stride": 4}),
    ("dilation_mixed", (1, 2, 6, 7, 8), 3, (2, 2, 3), {"dilation": (3, 1, 2), "padding": (0, 2, 1)}),
    ("same_even", (1, 3, 4, 5, 6), 4, (2, 3, 4), {"padding": "same"}),
    ("groups_2", (2, 6, 3, 4, 5), 4, (2, 2, 3), {"groups": 2, "padding": 1}),
    ("depthwise", (2, 18, 4, 6, 7), 18, (3, 3, 3), {"groups": 18, "padding": 1}),
    ("depthwise_stride_2", (1, 9, 5, 8, 9), 9, (3, 3, 3), {"groups": 9, "stride": 2, "padding": 1}),
    ("depthwise_double", (1, 4, 3, 5, 4), 8, (2, 3, 2), {"groups": 4, "dilation": (1, 2, 1)}),
    ("integers", (2, 5, 3, 4, 5), 6, (3, 3, 3), {"padding": 1, "values": "integers"}),
    ("nonfinite", (2, 3, 4, 5, 5), 4, (2, 2, 2), {"padding": 1, "values": "nonfinite"}),
    ("wide", (2, 32, 4, 7, 9), 40, (3, 3, 3), {"padding": 1, **LARGE}),
    ("first_layer", (1, 3, 5, 18, 20), 24, (3, 7, 7), {"stride": (1, 2, 2), "padding": (1, 3, 3), **LARGE}),
)

CONV_TRANSPOSE1D = _cases(
    ConvTranspose1dCase,
    ("3", (2, 3, 9), 5, (3,), {"padding": 1}),
    ("stride_2", (2, 4, 7), 6, (4,), {"stride": 2, "padding": 1, "bias": False}),
    ("output_padding", (2, 3, 6), 4, (3,), {"stride": 3, "output_padding": 2}),
    ("dilated_output_padding", (2, 3, 6), 4, (2,), {"dilation": 3, "output_padding": 2}),
    ("unbatched", (3, 8), 4, (3,), {"stride": 2, "output_padding": 1}),
    ("batch_0", (0, 3, 5), 4, (3,), {"stride": 2}),
    ("depthwise", (2, 17, 21), 17, (3,), {"groups": 17, "stride": 2, "padding": 1, "output_padding": 1}),
    ("uncovered", (2, 3, 5), 4, (2,), {"stride": 4, "output_padding": 3}),
)

CONV_TRANSPOSE2D = _cases(
    ConvTranspose2dCase,
    ("1x1", (2, 3, 4, 5), 4, (1, 1), {}),
    ("padding_1", (2, 3, 5, 6), 5, (3, 3), {"padding": 1}),
    ("no_bias", (2, 3, 5, 6), 5, (3, 3), {"bias": False, "stride": 2}),
    ("stride_2", (2, 5, 5, 6), 4, (4, 4), {"stride": 2, "padding": 1}),
    ("stride_2_3x3", (2, 6, 5, 4), 5, (3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    ("stride_mixed", (2, 3, 4, 5), 4, (3, 2), {"stride": (3, 2), "padding": (1, 0), "output_padding": (2, 1)}),
    ("dilated", (2, 3, 6, 5), 4, (3, 2), {"dilation": (2, 3), "padding": 1}),
    ("dilated_output_padding", (1, 3, 4, 5), 4, (2, 2), {"dilation": 3, "stride": 2, "output_padding": 2}),
    ("output_padding_beyond_padding", (1, 2, 4, 5), 3, (2, 2), {"dilation": 4, "output_padding": 3}),
    ("uncovered", (2, 3, 4, 3), 4, (1, 2), {"stride": 3, "output_padding": 2}),
    ("uncovered_no_bias", (2, 3, 4, 3), 4, (1, 2), {"stride": 3, "bias": False}),
    ("padding_wide", (1, 3, 6, 5), 4, (3, 3), {"stride": 2, "padding": 2}),
    ("unbatched", (3, 5, 4), 4, (3, 2), {"stride": 2}),
    ("batch_0", (0, 3, 5, 5), 4, (3, 3), {"stride": 2}),
    ("one_of_everything", (1, 1, 1, 1), 1, (1, 1), {}),
    ("groups_2", (2, 6, 5, 4), 8, (3, 3), {"groups": 2, "stride": 2, "padding": 1}),
    ("groups_3_uneven", (2, 9, 4, 5), 6, (2, 3), {"groups": 3}),
    ("small_groups", (2, 16, 6, 5), 24, (3, 3), {"groups": 4, "padding": 1, "stride": 2}),
    ("depthwise", (2, 19, 7, 8), 19, (3, 3), {"groups": 19, "padding": 1}),
    ("depthwise_stride_2", (2, 16, 7, 6), 16, (4, 4), {"groups": 16, "stride": 2, "padding": 1}),
    ("depthwise_3x3_stride_2", (2, 17, 7, 8), 17, (3, 3), {"groups": 17, "stride": 2, "padding": 1}),
    ("depthwise_uncovered", (2, 12, 5, 6), 12, (2, 2), {"groups": 12, "stride": 3, "output_padding": 1}),
    ("depthwise_output_padding", (2, 8, 5, 6), 8, (3, 3), {"groups": 8, "dilation": 2, "output_padding": 1}),
    ("from_depthwise_double", (2, 8, 5, 6), 4, (3, 3), {"groups": 4, "padding": 1}),
    ("integers", (2, 5, 7, 6), 6, (3, 3), {"stride": 2, "values": "integers"}),
    ("nonfinite", (2, 5, 7, 6), 6, (3, 3), {"stride": 2, "padding": 1, "values": "nonfinite"}),
    ("huge", (2, 3, 6, 6), 4, (3, 3), {"values": "huge", "dtypes": WIDE_RANGE}),
    ("wide", (2, 64, 7, 9), 40, (4, 4), {"stride": 2, "padding": 1, **LARGE}),
    ("wide_3x3", (1, 72, 9, 8), 32, (3, 3), {"stride": 2, "padding": 1, "output_padding": 1, **LARGE}),
    ("to_image", (1, 16, 20, 21), 3, (4, 4), {"stride": 2, "padding": 1, **LARGE}),
    ("to_image_uncovered", (2, 17, 5, 18), 2, (3, 5), {"stride": (4, 6), "output_padding": (3, 2)}),
    ("to_image_nonfinite", (2, 16, 3, 19), 3, (4, 4), {"stride": 2, "padding": 1, "values": "nonfinite"}),
)

CONV_TRANSPOSE3D = _cases(
    ConvTranspose3dCase,
    ("3x3x3", (2, 3, 3, 4, 5), 5, (3, 3, 3), {"padding": 1}),
    ("stride_2", (1, 4, 3, 2, 4), 3, (4, 2, 4), {"stride": 2, "padding": (1, 0, 1), "bias": False}),
    ("output_padding", (1, 3, 2, 3, 4), 4, (2, 3, 1), {"stride": (3, 2, 2), "output_padding": (2, 1, 1)}),
    ("unbatched", (3, 3, 4, 2), 4, (2, 3, 2), {"stride": (1, 2, 1)}),
    ("groups_2", (1, 4, 3, 3, 4), 6, (2, 2, 3), {"groups": 2, "dilation": (1, 2, 1), "padding": 1}),
    ("depthwise", (2, 8, 3, 4, 5), 8, (3, 3, 3), {"groups": 8, "stride": 2, "padding": 1, "output_padding": 1}),
)

LOCALLY_CONNECTED1D = _cases(
    LocallyConnected1dCase,
    ("3", (2, 3, 9), 5, (3,), {"padding": 1}),
    ("stride_dilation", (3, 2, 24), 4, (3,), {"stride": 2, "dilation": 3, "padding": 2, "bias": False}),
    ("unbatched", (3, 11), 4, (4,), {"padding": 2}),
    ("wide", (2, 20, 40), 21, (5,), LARGE),
)

LOCALLY_CONNECTED2D = _cases(
    LocallyConnected2dCase,
    ("padding_1", (2, 3, 5, 6), 5, (3, 3), {"padding": 1}),
    ("no_bias", (3, 2, 5, 4), 3, (2, 3), {"bias": False}),
    ("one_of_everything", (1, 1, 1, 1), 1, (1, 1), {}),
    ("unbatched", (3, 6, 5), 4, (3, 2), {"padding": 1}),
    ("batch_0", (0, 3, 5, 5), 4, (3, 3), {"padding": 1}),
    ("batch_9", (9, 2, 4, 5), 6, (3, 3), {"padding": 1}),
    ("stride_mixed", (2, 3, 9, 11), 4, (3, 4), {"stride": (2, 3), "padding": (1, 2)}),
    ("stride_uncovered", (2, 3, 10, 11), 4, (2, 1), {"stride": (4, 3)}),
    ("dilation_mixed", (1, 2, 10, 9), 3, (3, 2), {"dilation": (3, 4), "padding": (2, 0)}),
    ("padding_over_kernel", (1, 2, 4, 4), 3, (2, 2), {"padding": (3, 5)}),
    ("1x1", (2, 7, 4, 5), 9, (1, 1), {}),
    ("one_channel", (5, 1, 7, 6), 8, (3, 3), {}),
    ("integers", (2, 5, 5, 4), 6, (3, 3), {"padding": 1, "values": "integers"}),
    ("nonfinite", (2, 5, 6, 7), 6, (3, 3), {"padding": 1, "values": "nonfinite"}),
    ("wide", (2, 35, 5, 4), 39, (3, 3), {"padding": 1, **LARGE}),
    ("many_images", (37, 8, 4, 5), 33, (3, 3), LARGE),
)

CONVOLUTIONS: dict[str, tuple[Case, ...]] = {
    "conv1d": CONV1D,
    "conv3d": CONV3D,
    "conv_transpose1d": CONV_TRANSPOSE1D,
    "conv_transpose2d": CONV_TRANSPOSE2D,
    "conv_transpose3d": CONV_TRANSPOSE3D,
    "locally_connected1d": LOCALLY_CONNECTED1D,
    "locally_connected2d": LOCALLY_CONNECTED2D,
}
