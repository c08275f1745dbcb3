"""Shapes and options drawn by hypothesis, against the oracle in float64 within the stated bounds."""

from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from op_tester import check_values_and_gradients

from fastnn.testing.activation_cases import ALPHAS, NAMES
from fastnn.testing.cases import (
    ActivationCase,
    BatchNormCase,
    Conv2dCase,
    GroupNormCase,
    LocalResponseNormCase,
    LstmCellCase,
    MaxoutCase,
    MaxPool2dCase,
)
from fastnn.testing.reference import pool_out_size

CPU = torch.device("cpu")
DTYPES = st.sampled_from([torch.float64, torch.float32])
LAYOUTS = st.sampled_from(["contiguous", "channels_last", "sliced", "transposed"])


def small(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(small(low, high), small(low, high))


@st.composite
def conv_cases(draw: st.DrawFn) -> Conv2dCase:
    groups = draw(small(1, 4))
    kernel, dilation = draw(pairs(1, 5)), draw(pairs(1, 3))
    stride = draw(pairs(1, 4))
    padding = draw(st.one_of(pairs(0, 4), st.sampled_from(["valid", "same"])))
    if padding == "same":
        stride = (1, 1)
    extent = draw(pairs(1, 20))
    before = padding if isinstance(padding, tuple) else (0, 0)
    if padding != "same":
        assume(all(e + 2 * p >= d * (k - 1) + 1 for e, p, d, k in zip(extent, before, dilation, kernel, strict=True)))
    shape = (draw(small(0, 3)), groups * draw(small(1, 9)), *extent)
    return Conv2dCase(
        id="drawn",
        shape=shape if shape[0] and draw(st.booleans()) else (shape if not shape[0] else shape[1:]),
        filters=groups * draw(small(1, 9)),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        values=draw(st.sampled_from(["normal", "integers"])),
    )


@st.composite
def pool_cases(draw: st.DrawFn) -> MaxPool2dCase:
    kernel, dilation = draw(pairs(1, 5)), draw(pairs(1, 3))
    stride = draw(st.one_of(st.none(), pairs(1, 5)))
    padding = (draw(small(0, kernel[0] // 2)), draw(small(0, kernel[1] // 2)))
    extent, ceil_mode = draw(pairs(1, 17)), draw(st.booleans())
    sizes = zip(extent, kernel, stride or kernel, padding, dilation, strict=True)
    assume(all(pool_out_size(*size, ceil_mode) >= 1 for size in sizes))
    # A window that dilation and padding lead past the input on all sides is an error, see test_errors.py.
    for size, k, s, p, d in zip(extent, kernel, stride or kernel, padding, dilation, strict=True):
        starts = [o * s - p for o in range(pool_out_size(size, k, s, p, d, ceil_mode))]
        assume(all(any(0 <= start + tap * d < size for tap in range(k)) for start in starts))
    return MaxPool2dCase(
        id="drawn",
        shape=(draw(small(0, 3)), draw(small(1, 20)), *extent),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        return_indices=draw(st.booleans()),
        values=draw(st.sampled_from(["normal", "ties", "nonfinite", "minus_inf"])),
    )


@st.composite
def norm_cases(draw: st.DrawFn) -> BatchNormCase:
    shape = (draw(small(0, 9)), draw(small(1, 40)), *draw(st.lists(small(1, 9), max_size=3)))
    training = draw(st.booleans())
    values = 1
    for size in (shape[0], *shape[2:]):
        values *= size
    assume(not training or values != 1)
    return BatchNormCase(
        id="drawn",
        shape=shape,
        training=training,
        affine=draw(st.booleans()),
        track=draw(st.booleans()),
        momentum=draw(st.floats(0.0, 1.0)),
        eps=draw(st.floats(1e-6, 1.0)),
        values=draw(st.sampled_from(["normal", "large_mean"])),
    )


@st.composite
def group_cases(draw: st.DrawFn) -> GroupNormCase:
    groups = draw(small(1, 9))
    shape = (draw(small(0, 5)), groups * draw(small(1, 9)), *draw(st.lists(small(1, 9), max_size=3)))
    values = shape[1] // groups
    for size in shape[2:]:
        values *= size
    assume(values * max(shape[0], 1) != 1)
    return GroupNormCase(
        id="drawn",
        shape=shape,
        groups=groups,
        affine=draw(st.booleans()),
        eps=draw(st.floats(1e-6, 1.0)),
        values=draw(st.sampled_from(["normal", "large_mean"])),
    )


@st.composite
def response_cases(draw: st.DrawFn) -> LocalResponseNormCase:
    return LocalResponseNormCase(
        id="drawn",
        shape=(draw(small(0, 5)), draw(small(1, 40)), *draw(st.lists(small(1, 9), min_size=1, max_size=3))),
        size=draw(small(1, 50)),
        alpha=draw(st.floats(1e-4, 2.0)),
        beta=draw(st.floats(-1.0, 2.0)),
        k=draw(st.floats(0.5, 2.0)),
    )


@st.composite
def maxout_cases(draw: st.DrawFn) -> MaxoutCase:
    pieces = draw(small(1, 9))
    return MaxoutCase(
        id="drawn",
        shape=(draw(small(0, 5)), pieces * draw(small(1, 9)), *draw(st.lists(small(1, 9), max_size=3))),
        pieces=pieces,
        pieces_first=draw(st.booleans()),
        values=draw(st.sampled_from(["normal", "ties", "nonfinite"])),
    )


@st.composite
def activation_cases(draw: st.DrawFn) -> ActivationCase:
    name = draw(st.sampled_from(NAMES))
    return ActivationCase(
        id="drawn",
        shape=tuple(draw(st.lists(small(0, 20), max_size=4))),
        activation=name,
        alpha=draw(st.floats(0.1, 4.0)) if name in ALPHAS else 0.0,
        residual=draw(st.booleans()),
        scale=draw(st.sampled_from([0.01, 1.0, 10.0])),
    )


@st.composite
def cell_cases(draw: st.DrawFn) -> LstmCellCase:
    return LstmCellCase(
        id="drawn",
        rows=draw(small(0, 40)),
        input_size=draw(small(1, 20)),
        hidden_size=draw(small(1, 40)),
        bias=draw(st.booleans()),
        through=draw(st.sampled_from(["both", "h", "c"])),
    )


@given(conv_cases(), DTYPES, LAYOUTS)
def test_conv2d(case, dtype, layout):
    check_values_and_gradients(case, dtype, layout, CPU)


@given(pool_cases(), DTYPES, LAYOUTS)
def test_max_pool2d(case, dtype, layout):
    check_values_and_gradients(case, dtype, layout, CPU)


@given(norm_cases(), DTYPES, LAYOUTS)
def test_batch_norm(case, dtype, layout):
    check_values_and_gradients(case, dtype, layout, CPU)


@given(cell_cases(), DTYPES, LAYOUTS)
def test_lstm_cell(case, dtype, layout):
    check_values_and_gradients(case, dtype, layout, CPU)


@given(group_cases(), DTYPES, LAYOUTS)
def test_group_norm(case, dtype, layout):
    check_values_and_gradients(case, dtype, layout, CPU)


@given(response_cases(), DTYPES, LAYOUTS)
def test_local_response_norm(case, dtype, layout):
    check_values_and_gradients(case, dtype, layout, CPU)


@given(activation_cases(), DTYPES, LAYOUTS)
def test_activation(case, dtype, layout):
    check_values_and_gradients(case, dtype, layout, CPU)


@given(maxout_cases(), DTYPES, LAYOUTS)
def test_maxout(case, dtype, layout):
    check_values_and_gradients(case, dtype, layout, CPU)
