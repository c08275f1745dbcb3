"""Bad input of every argument: the exception type torch raises for the same call, and a message that says what.

Where torch accepts a call, or fails in another way than by a clean exception, the table says what fastnn does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as torch_functional

import fastnn
import fastnn.functional as F

X = (2, 4, 6, 6)
W = (8, 4, 3, 3)


def t(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype)
    return torch.ones(shape, dtype=dtype)


@dataclass(frozen=True)
class Bad:
    """A call that must fail.

    Attributes:
        id: name of the test.
        arguments: makes the positional arguments.
        options: keyword arguments.
        says: one of these stands in the message (lower case): the argument's name or value.
        raises: the exception type, where torch has none to compare with: it accepts the call, or crashes.
    """

    id: str
    arguments: Callable[[], tuple[Any, ...]]
    says: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    raises: type[Exception] | None = None


def conv(id: str, says: str | tuple[str, ...], x: Any = X, w: Any = W, b: Any = None, **rest: Any) -> Bad:
    raises = rest.pop("raises", None)

    def make() -> tuple[Any, ...]:
        made = [t(*a) if isinstance(a, tuple) else a() if callable(a) else a for a in (x, w, b)]
        return tuple(made)

    return Bad(id, make, (says,) if isinstance(says, str) else says, rest, raises)


CONV = [
    conv("input_1d", ("dimension", "3d"), x=(6,)),
    conv("input_2d", ("dimension", "3d"), x=(6, 6)),
    conv("input_5d", ("dimension", "3d"), x=(2, 4, 6, 6, 6)),
    conv("weight_3d", ("dimension", "weight"), w=(8, 4, 3)),
    conv("weight_5d", ("dimension", "weight"), w=(8, 4, 3, 3, 3)),
    conv("channels", "channels", w=(8, 3, 3, 3)),
    conv("channels_of_groups", "channels", groups=2),
    conv("groups_do_not_divide_filters", "divisible", w=(7, 2, 3, 3), groups=2),
    conv("groups_0", "groups", groups=0),
    conv("groups_negative", "groups", groups=-1),
    conv("groups_over_filters", ("divisible", "groups"), x=(2, 8, 6, 6), w=(4, 1, 3, 3), groups=8),
    conv("stride_0", "stride", stride=0),
    conv("stride_negative", "stride", stride=(1, -2)),
    conv("dilation_0", "dilation", dilation=0),
    conv("dilation_negative", "dilation", dilation=(-1, 1)),
    conv("padding_negative", "padding", padding=-1),
    conv("padding_negative_in_part", "padding", padding=(0, -3)),
    conv("kernel_too_large", "kernel size", w=(8, 4, 7, 3)),
    conv("kernel_too_large_dilated", "kernel size", dilation=3),
    conv("kernel_0", "kernel", w=(8, 4, 0, 3)),
    conv("stride_of_three", "stride", stride=(1, 1, 1)),
    conv("padding_of_three", "padding", padding=(1, 1, 1)),
    conv("dilation_of_three", "dilation", dilation=(1, 1, 1)),
    conv("same_with_stride", "same", padding="same", stride=2),
    conv("padding_unknown", ("padding", "circular"), padding="circular"),
    conv("bias_size", "bias", b=(7,)),
    conv("bias_2d", "bias", b=(8, 1)),
    conv("weight_dtype", ("dtype", "type"), w=lambda: t(*W, dtype=torch.float64)),
    conv("bias_dtype", ("dtype", "type"), b=lambda: t(8, dtype=torch.float64)),
    conv("half_and_float", ("dtype", "type"), x=lambda: t(*X, dtype=torch.bfloat16)),
    # torch convolves integers and complex numbers on the CPU; fastnn has no kernels for them.
    conv(
        "int",
        ("int", "long"),
        x=lambda: t(*X, dtype=torch.int64),
        w=lambda: t(*W, dtype=torch.int64),
        raises=RuntimeError,
    ),
    conv(
        "complex",
        "complex",
        x=lambda: t(*X, dtype=torch.complex64),
        w=lambda: t(*W, dtype=torch.complex64),
        raises=RuntimeError,
    ),
    conv("input_no_tensor", ("input", "argument", "tensor"), x=lambda: 3.0),
    conv("weight_none", ("weight", "argument", "tensor"), w=lambda: None),
    conv("stride_float", ("stride", "int", "argument"), stride=1.5),
]


SEQUENCE, VOLUME = {"x": (2, 4, 6), "w": (8, 4, 3)}, {"x": (2, 4, 5, 6, 6), "w": (8, 4, 2, 3, 3)}
CONV_OF_RANK = {
    "conv1d": [
        conv("input_1d", "2d", **SEQUENCE | {"x": (6,)}),
        conv("input_4d", "2d", **SEQUENCE | {"x": X}),
        conv("weight_4d", "weight", **SEQUENCE | {"w": W}),
        conv("channels", "channels", **SEQUENCE | {"w": (8, 3, 3)}),
        conv("kernel_too_large", "kernel size", **SEQUENCE, dilation=4),
        conv("padding_negative", "padding", **SEQUENCE, padding=-1),
        conv("stride_of_two", "stride", **SEQUENCE, stride=(1, 1)),
        conv("same_with_stride", "same", **SEQUENCE, padding="same", stride=2),
        conv("bias_size", "bias", **SEQUENCE, b=(7,)),
    ],
    "conv3d": [
        conv("input_3d", "4d", **VOLUME | {"x": (2, 4, 6)}),
        conv("weight_4d", "weight", **VOLUME | {"w": W}),
        conv("groups_0", "groups", **VOLUME, groups=0),
        conv("padding_of_two", "padding", **VOLUME, padding=(1, 1)),
        conv("stride_0", "stride", **VOLUME, stride=(1, 0, 1)),
        conv("kernel_too_large", "kernel size", **VOLUME | {"w": (8, 4, 6, 3, 3)}),
        conv("padding_unknown", ("padding", "circular"), **VOLUME, padding="circular"),
    ],
    "conv_transpose1d": [
        conv("output_padding_of_stride", "output padding", **SEQUENCE | {"w": (4, 8, 3)}, stride=2, output_padding=2),
        conv("input_4d", "2d", **SEQUENCE | {"x": X}),
    ],
    "conv_transpose2d": [
        conv("input_2d", "3d", x=(6, 6), w=(4, 8, 3, 3)),
        conv("weight_3d", "weight", w=(4, 8, 3)),
        conv("channels", "channels", w=(3, 8, 3, 3)),
        conv("groups_0", "groups", w=(4, 8, 3, 3), groups=0),
        conv("groups_do_not_divide_channels", ("divisible", "groups"), w=(4, 8, 3, 3), groups=3),
        conv("stride_0", "stride", w=(4, 8, 3, 3), stride=(0, 1)),
        conv("dilation_negative", "dilation", w=(4, 8, 3, 3), dilation=-1),
        conv("padding_negative", "padding", w=(4, 8, 3, 3), padding=(0, -1)),
        conv("output_padding_negative", "output_padding", w=(4, 8, 3, 3), output_padding=-1),
        conv("output_padding_at_stride_1", "output padding", w=(4, 8, 3, 3), output_padding=1),
        conv("output_padding_of_three", "output_padding", w=(4, 8, 3, 3), output_padding=(0, 0, 0)),
        conv("output_too_small", "too small", w=(4, 8, 3, 3), padding=5),
        conv("input_without_positions", "position", x=(2, 4, 0, 6), w=(4, 8, 3, 3), raises=RuntimeError),
        conv("kernel_0", "kernel", w=(4, 8, 0, 3), raises=RuntimeError),
        conv("bias_size", "bias", w=(4, 8, 3, 3), b=(4,)),
        conv("bias_dtype", ("dtype", "type"), w=(4, 8, 3, 3), b=lambda: t(8, dtype=torch.float64)),
        conv("weight_dtype", ("dtype", "type"), w=lambda: t(4, 8, 3, 3, dtype=torch.float64)),
        conv("padding_same", ("padding", "argument"), w=(4, 8, 3, 3), padding="same"),
        conv("weight_none", ("weight", "argument", "tensor"), w=lambda: None),
    ],
    "conv_transpose3d": [
        conv("input_3d", "4d", **VOLUME | {"x": (2, 4, 6)}),
        conv("stride_of_two", "stride", **VOLUME | {"w": (4, 8, 2, 3, 3)}, stride=(1, 1)),
    ],
}


def pool(id: str, says: str | tuple[str, ...], x: Any = X, kernel: Any = 2, **rest: Any) -> Bad:
    raises = rest.pop("raises", None)
    make = lambda: ((t(*x) if isinstance(x, tuple) else x()), kernel)  # noqa: E731
    return Bad(id, make, (says,) if isinstance(says, str) else says, rest, raises)


POOL = [
    pool("input_1d", "input", x=(6,)),
    pool("input_2d", "input", x=(6, 6)),
    pool("input_5d", "input", x=(1, 2, 4, 6, 6)),
    pool("kernel_0", ("kernel", "stride"), kernel=0),
    pool("kernel_negative", "kernel", kernel=(2, -1)),
    pool("kernel_of_three", "kernel", kernel=(2, 2, 2)),
    pool("stride_0", "stride", stride=0),
    pool("stride_negative", "stride", stride=(-1, 1)),
    pool("stride_of_three", "stride", stride=(1, 1, 1)),
    pool("dilation_0", "dilation", dilation=0),
    pool("dilation_of_three", "dilation", dilation=(1, 1, 1)),
    pool("padding_negative", "pad", padding=-1),
    pool("padding_over_half", "pad", padding=2),
    pool("padding_over_half_odd", "pad", kernel=3, padding=2),
    pool("padding_of_three", "padding", padding=(1, 1, 1)),
    pool("output_too_small", "output", kernel=7),
    pool("output_too_small_dilated", "output", kernel=3, dilation=3),
    # Positions -1 and 3 of 0 to 2: torch yields -inf, and an index outside the plane that its backward writes to.
    pool("window_outside", "no position inside", x=(2, 3, 3, 3), dilation=4, padding=1, raises=RuntimeError),
    pool("no_channels", ("input", "non-zero", "non zero"), x=(2, 0, 6, 6)),
    pool("empty_plane", ("input", "non-zero", "output"), x=(2, 3, 0, 6)),
    pool("bool", ("bool",), x=lambda: torch.ones(X, dtype=torch.bool)),
    # torch pools integers on the CPU; fastnn has no kernels for them.
    pool("int", ("int", "long"), x=lambda: t(*X, dtype=torch.int64), raises=RuntimeError),
    pool("complex", "complex", x=lambda: t(*X, dtype=torch.complex64)),
    pool("input_no_tensor", ("input", "argument", "tensor"), x=lambda: 3.0),
    pool("kernel_float", ("kernel", "int", "argument"), kernel=2.5),
]


def norm(id: str, says: str | tuple[str, ...], x: Any = (4, 3, 5), **rest: Any) -> Bad:
    raises = rest.pop("raises", None)
    mean, var = rest.pop("mean", (3,)), rest.pop("var", (3,))
    weight, bias = rest.pop("weight", (3,)), rest.pop("bias", (3,))

    def make() -> tuple[Any, ...]:
        return tuple(t(*a) if isinstance(a, tuple) else a() if callable(a) else a for a in (x, mean, var, weight, bias))

    return Bad(id, make, (says,) if isinstance(says, str) else says, {"training": True} | rest, raises)


NORM = [
    norm("input_1d", "dimension", x=(3,), mean=None, var=None, weight=None, bias=None),
    norm("one_value", "more than 1 value", x=(1, 3)),
    norm("one_value_4d", "more than 1 value", x=(1, 3, 1, 1)),
    norm("weight_size", "weight", weight=(4,)),
    norm("bias_size", "bias", bias=(4,)),
    norm("mean_size", "running_mean", mean=(4,)),
    norm("var_size", "running_var", var=(2,)),
    norm("mean_size_eval", "running_mean", mean=(4,), training=False),
    norm("var_size_eval", "running_var", var=(2,), training=False),
    norm("mean_alone", "running_var", var=None),
    norm("var_alone", "running_mean", mean=None),
    norm("eval_without_statistics", "running_mean", mean=None, var=None, training=False),
    norm("eps_0", "eps", eps=0.0),
    norm("eps_negative", "eps", eps=-1.0),
    # torch takes weight and bias of any shape that has C elements.
    norm("weight_2d", "weight", weight=(3, 2)),
    norm("weight_dtype", ("dtype", "type"), weight=lambda: t(3, dtype=torch.float64), raises=RuntimeError),
    norm("int", ("int", "long"), x=lambda: t(4, 3, 5, dtype=torch.int64)),
    norm("complex", "complex", x=lambda: t(4, 3, 5, dtype=torch.complex64), raises=RuntimeError),
    norm("momentum_text", ("momentum", "argument", "float"), momentum="half"),
    norm("input_no_tensor", ("input", "argument", "tensor", "size", "attribute"), x=lambda: 3.0, raises=TypeError),
]


def cell(id: str, says: str | tuple[str, ...], change: dict[str, Any], raises: type[Exception] | None = None) -> Bad:
    good = {
        "x": (2, 3),
        "h": (2, 4),
        "c": (2, 4),
        "w_ih": (16, 3),
        "w_hh": (16, 4),
        "b_ih": (16,),
        "b_hh": (16,),
    }

    def make() -> tuple[Any, ...]:
        made = {
            name: t(*shape) if isinstance(shape, tuple) else shape() if callable(shape) else shape
            for name, shape in (good | change).items()
        }
        return made["x"], (made["h"], made["c"]), made["w_ih"], made["w_hh"], made["b_ih"], made["b_hh"]

    return Bad(id, make, (says,) if isinstance(says, str) else says, {}, raises)


CELL = [
    cell("input_size", ("input", "shape", "w_ih"), {"x": (2, 5)}),
    cell("hidden_size", ("hx", "hidden", "shape"), {"h": (2, 5)}),
    cell("cell_size", ("cx", "cell", "hx", "shape", "size"), {"c": (2, 5)}),
    cell("rows_of_hidden", ("hx", "hidden", "batch", "shape", "size"), {"h": (3, 4)}),
    cell("rows_of_cell", ("cx", "cell", "batch", "shape", "size"), {"c": (3, 4)}),
    cell("input_3d", ("input", "2d", "dimension"), {"x": (1, 2, 3)}),
    cell("hidden_1d", ("hx", "2d", "dimension", "shape"), {"h": (4,)}),
    cell("weight_ih_rows", ("w_ih", "shape", "size"), {"w_ih": (12, 3)}),
    cell("weight_hh_rows", ("w_hh", "shape", "size"), {"w_hh": (12, 4)}),
    cell(
        "weight_rows_not_of_four",
        ("w_ih", "w_hh", "4"),
        {"w_ih": (15, 3), "w_hh": (15, 4), "b_ih": (15,), "b_hh": (15,)},
    ),
    cell("bias_ih_size", ("b_ih", "bias"), {"b_ih": (12,)}),
    cell("bias_hh_size", ("b_hh", "bias"), {"b_hh": (4,)}),
    cell("input_dtype", ("dtype", "type"), {"x": lambda: t(2, 3, dtype=torch.float64)}),
    cell("hidden_dtype", ("dtype", "type"), {"h": lambda: t(2, 4, dtype=torch.float64)}),
    cell("bias_dtype", ("dtype", "type"), {"b_ih": lambda: t(16, dtype=torch.float64)}),
    cell(
        "biases_dtype",
        ("dtype", "type"),
        {"b_ih": lambda: t(16, dtype=torch.float64), "b_hh": lambda: t(16, dtype=torch.float64)},
    ),
    cell("weight_dtype", ("dtype", "type"), {"w_ih": lambda: t(16, 3, dtype=torch.float64)}),
    cell(
        "int",
        ("int", "long"),
        {
            name: (lambda s=s: t(*s, dtype=torch.int64))
            for name, s in {
                "x": (2, 3),
                "h": (2, 4),
                "c": (2, 4),
                "w_ih": (16, 3),
                "w_hh": (16, 4),
                "b_ih": (16,),
                "b_hh": (16,),
            }.items()
        },
    ),
    cell("hidden_none", ("hx", "argument", "tensor", "none"), {"h": lambda: None}, TypeError),
]


def judge(bad: Bad, ours: Callable[..., Any], torch_s: Callable[..., Any]) -> None:
    expected = bad.raises
    if expected is None:
        with pytest.raises(Exception) as info:  # noqa: PT011 - torch says which
            torch_s(*bad.arguments(), **bad.options)
        expected = info.type
    # NotImplementedError, which torch raises for a dtype it has no kernel for, is a RuntimeError.
    allowed = (RuntimeError, NotImplementedError) if expected is NotImplementedError else expected
    with pytest.raises(allowed) as info:
        ours(*bad.arguments(), **bad.options)
    message = str(info.value).lower()
    assert any(word in message for word in bad.says), f"none of {bad.says} is in: {info.value}"


def ids(bad: Bad) -> str:
    return bad.id


@pytest.mark.parametrize("bad", CONV, ids=ids)
def test_conv2d(bad, backend):
    judge(bad, F.conv2d, torch_functional.conv2d)


@pytest.mark.parametrize(
    ("name", "bad"),
    [pytest.param(name, bad, id=f"{name}-{bad.id}") for name, all_bad in CONV_OF_RANK.items() for bad in all_bad],
)
def test_convolutions_of_other_ranks_and_transposed(name, bad):
    judge(bad, getattr(F, name), getattr(torch_functional, name))


LOCAL = [
    ("weight_4d", "weight", {"w": (8, 4, 3, 3)}),
    ("input_5d", "3d", {"x": (1, 2, 4, 6, 6)}),
    ("positions", "positions", {"w": (4, 5, 8, 4, 3, 3)}),
    ("positions_of_stride", "positions", {"stride": 2}),
    ("channels", "channels", {"w": (4, 4, 8, 3, 3, 3)}),
    ("bias_size", "bias", {"b": (8,)}),
    ("bias_dtype", "dtype", {"b": lambda: t(8, 4, 4, dtype=torch.float64)}),
    ("stride_0", "stride", {"stride": 0}),
    ("padding_negative", "padding", {"padding": -1}),
    ("dilation_of_three", "dilation", {"dilation": (1, 1, 1)}),
    ("kernel_too_large", "kernel size", {"w": (4, 4, 8, 4, 7, 3)}),
    ("half_and_float", "dtype", {"x": lambda: t(*X, dtype=torch.bfloat16)}),
    (
        "int",
        ("int", "long"),
        {"x": lambda: t(*X, dtype=torch.int64), "w": lambda: t(4, 4, 8, 4, 3, 3, dtype=torch.int64)},
    ),
]


@pytest.mark.parametrize(("says", "arguments"), [pytest.param(*row[1:], id=row[0]) for row in LOCAL])
def test_locally_connected2d(says, arguments):
    """torch has none; everything here is a RuntimeError, as it is of a convolution."""
    bad = conv("", says, raises=RuntimeError, **{"w": (4, 4, 8, 4, 3, 3)} | arguments)
    judge(bad, F.locally_connected2d, F.locally_connected2d)


@pytest.mark.parametrize("bad", POOL, ids=ids)
@pytest.mark.parametrize("return_indices", [False, True], ids=["values", "indices"])
def test_max_pool2d(bad, return_indices, backend):
    def with_indices(function):
        return lambda *args, **options: function(*args, return_indices=return_indices, **options)

    judge(bad, with_indices(F.max_pool2d), with_indices(torch_functional.max_pool2d))


@pytest.mark.parametrize("bad", NORM, ids=ids)
def test_batch_norm(bad, backend):
    judge(bad, F.batch_norm, torch_functional.batch_norm)


@pytest.mark.parametrize("bad", CELL, ids=ids)
def test_lstm_cell(bad, backend):
    judge(bad, F.lstm_cell, torch.lstm_cell)


@pytest.mark.parametrize("bad", [b for b in NORM if b.id not in ("int", "complex", "input_no_tensor")], ids=ids)
def test_failed_batch_norm_leaves_the_statistics(bad, backend):
    x, mean, var, weight, bias = bad.arguments()
    count = torch.tensor(7)
    before = [None if s is None else s.clone() for s in (mean, var)]
    options = {"training": True, "momentum": 0.1, "eps": 1e-5} | bad.options
    with pytest.raises((RuntimeError, ValueError, TypeError, IndexError)):
        torch.ops.fastnn.batch_norm(
            x, weight, bias, mean, var, count, options["training"], options["momentum"], options["eps"]
        )
    assert int(count) == 7
    for now, then in zip((mean, var), before, strict=True):
        assert (now is None and then is None) or torch.equal(now, then)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d"])
def test_failed_layer_counts_no_batch(name, backend):
    """One value a channel, then a wrong rank: neither moves the statistics nor the count."""
    layer = getattr(fastnn.nn, name)(3)
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    for shape in [(1, 3), (3,)] if name == "BatchNorm1d" else [(1, 3, 1, 1), (2, 3)]:
        with pytest.raises((ValueError, IndexError)):
            layer(torch.randn(shape))
    assert torch.equal(layer.running_mean, mean) and torch.equal(layer.running_var, var)


class TestBackwardOps:
    """The ops beneath autograd are public too: tensors that do not belong together must not reach a kernel."""

    def raises(self, op: Callable[..., Any], *args: Any) -> None:
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            op(*args)

    def test_convolution(self, backend):
        ops, x, w, g = torch.ops.fastnn, t(*X), t(*W), t(2, 8, 4, 4)
        one, none = [1, 1], [0, 0, 0, 0]
        ops.convolution_grad_input(g, w, X, one, none, one, 1, False)
        self.raises(ops.convolution_grad_input, t(2, 8, 5, 4), w, X, one, none, one, 1, False)
        self.raises(ops.convolution_grad_input, g, w, (2, 4, 6), one, none, one, 1, False)
        self.raises(ops.convolution_grad_input, g, t(7, 4, 3, 3), X, one, none, one, 1, False)
        self.raises(ops.convolution_grad_input, g.double(), w, X, one, none, one, 1, False)
        ops.convolution_grad_weight(x, g, W, one, none, one, 1, False)
        self.raises(ops.convolution_grad_weight, x, t(3, 8, 4, 4), W, one, none, one, 1, False)
        self.raises(ops.convolution_grad_weight, x, g, (8, 3, 3, 3), one, none, one, 1, False)
        self.raises(ops.convolution_grad_weight, x, g, (8, 4, 3), one, none, one, 1, False)
        self.raises(ops.convolution, x, w, None, one, [0, 0], one, 1)
        self.raises(ops.convolution, x, w, None, [1], none, one, 1)
        ops.convolution_grad_input(g, w, X, one, none, one, 1, False, t(4))
        self.raises(ops.convolution_grad_input, g, w, X, one, none, one, 1, False, t(8))
        self.raises(ops.convolution_grad_input, g, w, X, one, none, one, 1, False, t(4).double())
        # An end that is cut off so far that no window is left.
        self.raises(ops.convolution, x, w, None, one, [0, -4, 0, 0], one, 1)

    def test_max_pool(self, backend):
        ops, x = torch.ops.fastnn, t(*X)
        two, none, one = [2, 2], [0, 0], [1, 1]
        out, offsets, _ = ops.max_pool(x, two, two, none, one, False, True, False)
        ops.max_pool_backward(out, offsets, X, two, two, none, one)
        self.raises(ops.max_pool_backward, t(2, 4, 3, 2), offsets, X, two, two, none, one)
        self.raises(ops.max_pool_backward, out, offsets.int(), X, two, two, none, one)
        self.raises(ops.max_pool_backward, out, offsets, (2, 4, 9, 9), two, two, none, one)
        self.raises(ops.max_pool_backward, out, offsets, (2, 5, 6, 6), two, two, none, one)
        self.raises(ops.max_pool_gather, t(2, 4, 9, 6), offsets, two, two, none, one)
        self.raises(ops.max_pool_gather, t(2, 3, 6, 6), offsets, two, two, none, one)

    def test_batch_norm(self, backend):
        ops, x, m = torch.ops.fastnn, t(4, 3, 5), t(3)
        all_three = [True, True, True]
        ops.batch_norm_backward(x, x, None, m, m, True, all_three)
        self.raises(ops.batch_norm_backward, t(4, 3, 4), x, None, m, m, True, all_three)
        self.raises(ops.batch_norm_backward, x.double(), x, None, m, m, True, all_three)
        self.raises(ops.batch_norm_backward, x, x, t(4), m, m, True, all_three)
        self.raises(ops.batch_norm_backward, x, x, None, t(4), m, True, all_three)
        self.raises(ops.batch_norm_backward, x, x, None, m, m.double(), True, all_three)
        self.raises(ops.batch_norm_double_backward, t(4, 3, 4), None, None, x, x, None, m, m, True, all_three)
        self.raises(ops.batch_norm_double_backward, x, t(4), None, x, x, None, m, m, True, all_three)

    def test_group_norm(self, backend):
        ops, x, m = torch.ops.fastnn, t(2, 6, 5), t(2, 3)
        all_three = [True, True, True]
        ops.group_norm_backward(x, x, None, m, m, 3, all_three)
        self.raises(ops.group_norm_backward, t(2, 6, 4), x, None, m, m, 3, all_three)
        self.raises(ops.group_norm_backward, x.double(), x, None, m, m, 3, all_three)
        self.raises(ops.group_norm_backward, x, x, t(4), m, m, 3, all_three)
        self.raises(ops.group_norm_backward, x, x, None, t(2, 6), m, 3, all_three)
        self.raises(ops.group_norm_backward, x, x, None, m, m.double(), 3, all_three)
        self.raises(ops.group_norm_backward, x, x, None, m, m, 4, all_three)
        self.raises(ops.group_norm_forward, x, None, None, t(6), None, 3, 0.1, 1e-5)

    def test_lstm_cell(self, backend):
        ops, gates, c, b = torch.ops.fastnn, t(2, 16), t(2, 4), t(16)
        ops.lstm_cell_pointwise(gates, b, b, c)
        self.raises(ops.lstm_cell_pointwise, t(2, 12), b, b, c)
        self.raises(ops.lstm_cell_pointwise, gates, t(12), b, c)
        self.raises(ops.lstm_cell_pointwise, gates, b, b, t(3, 4))
        self.raises(ops.lstm_cell_pointwise, gates, b, b, c.double())
        self.raises(ops.lstm_cell_pointwise, gates, b, b, t(4))
        all_three = [True, True, True]
        ops.lstm_cell_pointwise_backward(c, c, gates, b, b, c, all_three)
        self.raises(ops.lstm_cell_pointwise_backward, t(2, 5), c, gates, b, b, c, all_three)
        self.raises(ops.lstm_cell_pointwise_backward, c, t(3, 4), gates, b, b, c, all_three)
        if backend.name != "cpu":
            return  # only there are the products fastnn's
        x, w_ih, w_hh, every = t(2, 3), t(16, 3), t(16, 4), [True] * 6
        ops.lstm_cell_step(x, c, c, w_ih, w_hh, b, None, True)
        self.raises(ops.lstm_cell_step, t(2, 4), c, c, w_ih, w_hh, b, None, True)
        self.raises(ops.lstm_cell_step, t(3), c, c, w_ih, w_hh, b, None, True)
        self.raises(ops.lstm_cell_step, x, t(3, 4), c, w_ih, w_hh, b, None, True)
        self.raises(ops.lstm_cell_step, x, c, c, w_ih, t(16, 3), b, None, True)
        self.raises(ops.lstm_cell_step, x, c, c, w_ih.double(), w_hh, b, None, True)
        self.raises(ops.lstm_cell_step, x, c, c, w_ih, w_hh, t(4), None, True)
        ops.lstm_cell_step_backward(c, None, x, c, c, w_ih, w_hh, b, None, gates, every)
        self.raises(ops.lstm_cell_step_backward, t(2, 3), None, x, c, c, w_ih, w_hh, b, None, gates, every)
        self.raises(ops.lstm_cell_step_backward, c, None, x, c, c, w_ih, w_hh, b, None, t(2, 4), every)


def test_a_cell_state_of_another_dtype_promotes_as_in_torch(backend):
    x, h, c = t(2, 3), t(2, 4), t(2, 4, dtype=torch.float64)
    weights = t(16, 3), t(16, 4), t(16), t(16)
    for ours, torch_s in zip(F.lstm_cell(x, (h, c), *weights), torch.lstm_cell(x, (h, c), *weights), strict=True):
        assert ours.dtype == torch_s.dtype
        torch.testing.assert_close(ours, torch_s, rtol=1e-5, atol=1e-6)


# Arguments by shape; those of the first device, then the others.
ON_TWO_DEVICES: dict[str, Callable[..., Any]] = {
    "conv1d": lambda a, b: F.conv1d(a(2, 4, 6), b(8, 4, 3)),
    "conv2d": lambda a, b: F.conv2d(a(*X), b(*W)),
    "conv2d_padding": lambda a, b: F.conv2d(a(*X), b(*W), padding="same"),
    "conv_transpose2d": lambda a, b: F.conv_transpose2d(a(*X), b(4, 8, 3, 3)),
    "locally_connected1d": lambda a, b: F.locally_connected1d(a(2, 4, 6), b(4, 8, 4, 3)),
    "max_unpool2d": lambda a, b: F.max_unpool2d(a(*X), b(*X).long(), 2),
    "group_norm": lambda a, b: F.group_norm(a(*X), 2, b(4)),
    "lstm_cell": lambda a, b: F.lstm_cell(a(2, 3), (b(2, 5), b(2, 5)), b(20, 3), b(20, 5)),
    "lstm": lambda a, b: F.lstm(a(7, 2, 3), (b(2, 5), b(2, 5)), b(20, 3), b(20, 5)),
}


@pytest.mark.parametrize("devices", [("cpu", "cuda"), ("cuda", "cpu")], ids="-".join)
@pytest.mark.parametrize("name", ON_TWO_DEVICES)
def test_autocast_with_tensors_of_two_devices(name, devices):
    """An input on another device than the one whose autocast is on: an exception, and no call of itself for ever.

    Tensors without data, some of which fastnn takes to be of one device: that is for the kernels to see.
    """
    enabled = {device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")}
    try:
        for device in enabled:
            torch.set_autocast_enabled(device, device == devices[1])
        with FakeTensorMode(), suppress(RuntimeError):
            ON_TWO_DEVICES[name](*(partial(torch.randn, device=device) for device in devices))
    finally:
        for device, before in enabled.items():
            torch.set_autocast_enabled(device, before)
