"""Cases of pooling and of maxout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fastnn.testing.case import WIDE_RANGE, Case, draw, lay_out

Pair = int | tuple[int, int]


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
    _pool("disjoint_columns", (2, 3, 11, 21), (3, 1), stride=(3, 1), small=True),
    _pool("disjoint_row", (2, 3, 4, 64), (1, 4), small=True),
    _pool("disjoint_row_and_rest", (2, 3, 4, 101), (1, 3), small=True),
    _pool("disjoint_nonfinite", (2, 3, 2, 70), (1, 5), values="nonfinite", small=True),
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
