"""The pooling functions but max_pool2d against the float64 oracle: every rank of max, average, L_p, adaptive and
fractional pooling, and unpooling."""

from __future__ import annotations

import pytest
import torch
from op_tester import (
    check_exact,
    check_format_kept,
    check_repeatable,
    check_second_derivatives,
    check_values_and_gradients,
    grid,
    same_bits,
)
from torch.nn import functional as torch_functional

import fastnn
from fastnn.testing.cases import POOLING

BY_ID = {case.id: case for case in POOLING}
F = fastnn.functional
ops = torch.ops.fastnn
NATIVE = ["contiguous", "channels_last"]
# One layout each is enough where only strides differ; those that test the copies are a few.
STRIDED = [BY_ID[n] for n in ("max3", "unpool2", "avg2_overlapping", "lp2", "adaptive_avg2", "adaptive_max2")]


@grid(POOLING, dtypes=[torch.float32, torch.bfloat16], layouts=NATIVE)
def test_values_and_gradients(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid(POOLING[::3], dtypes=[torch.float64, torch.float16], layouts=NATIVE)
def test_values_and_gradients_of_the_other_types(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid(STRIDED, dtypes=[torch.float32, torch.bfloat16], layouts=["sliced", "expanded", "transposed"])
def test_other_layouts(case, dtype, layout, backend):
    if layout == "expanded" and case.kind == "max_unpool":
        layout = "sliced"  # one image's values at every image's indices
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid([c for c in POOLING if c.values == "integers"], layouts=NATIVE)
def test_integers_are_exact(case, dtype, layout, backend):
    check_exact(case, dtype, layout, backend.device)


@grid(
    [c for c in POOLING if len(c.shape) >= 4 and min(c.shape) > 1 and c.small and "global" not in c.id][::2],
    dtypes=[torch.float32],
    layouts=NATIVE,
)
def test_format_is_kept(case, dtype, layout, backend):
    if len(case.shape) == case.rank + 2:
        check_format_kept(case, dtype, layout, backend.device)


@grid([c for c in POOLING if c.crosses_tile], dtypes=[torch.float32, torch.bfloat16], layouts=["contiguous"])
def test_same_bits_on_repeat(case, dtype, layout, backend):
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=backend.name == "cpu")


SECOND = (
    *("max1", "max3", "unpool1", "unpool2", "unpool3", "avg1", "avg2_ceil", "avg2_divisor", "avg3"),
    *("adaptive_avg2", "adaptive_avg2_global", "adaptive_avg3", "adaptive_max1", "adaptive_max2", "adaptive_max3"),
    *("lp1", "lp2", "lp2_ceil", "lp3"),
)


@grid([BY_ID[n] for n in SECOND], dtypes=[torch.float64, torch.float32], layouts=NATIVE)
def test_second_derivatives(case, dtype, layout, backend):
    check_second_derivatives(case, dtype, layout, backend.device)


# ---- L_p pooling --------------------------------------------------------------------------------------------


def test_lp_pool_of_zeros_has_no_gradient(backend):
    """Where every value of a window is 0 the root has no derivative; torch takes 0."""
    x = torch.randn(2, 3, 6, 6, device=backend.device)
    x[:, :, :2, :2] = 0.0
    for norm in (1, 2, 3.0):
        for layout in (torch.contiguous_format, torch.channels_last):
            y = x.abs().contiguous(memory_format=layout).requires_grad_()
            theirs = x.abs().requires_grad_()
            out = F.lp_pool2d(y, norm, 2)
            want = torch_functional.lp_pool2d(theirs, norm, 2)
            torch.testing.assert_close(out, want)
            (grad,) = torch.autograd.grad(out.sum(), y)
            (want_grad,) = torch.autograd.grad(want.sum(), theirs)
            torch.testing.assert_close(grad, want_grad)
            assert not grad[:, :, :2, :2].any()


@pytest.mark.parametrize("norm", [1, 2, 3, 0.5, 2.5, -1.0, -2.0, float("inf"), float("-inf")])
def test_lp_pool_of_signed_values_is_torch_s(norm, backend):
    """NaN from roots of negative sums and powers of negative numbers, and infinities, where torch has them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 9, generator=generator)
    x[0, 0, :2, :2] = torch.tensor([[0.0, 1.0], [-0.0, float("inf")]])
    for y in (x, x.contiguous(memory_format=torch.channels_last)):
        want = torch_functional.lp_pool2d(y, norm, (2, 3), 2, ceil_mode=True)
        out = F.lp_pool2d(y.to(backend.device), norm, (2, 3), 2, ceil_mode=True)
        torch.testing.assert_close(out.cpu(), want, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_lp_pool_keeps_input_and_output_alone():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        F.lp_pool2d(x, 2, 2)
    assert sorted(t.numel() for t in saved) == [x.numel() // 4, x.numel()]


# ---- unpooling ----------------------------------------------------------------------------------------------


def test_the_last_of_equal_indices_wins(backend):
    """On every run, within 32 switches and beyond; each value has the place's gradient, as torch has it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 40, 5, generator=generator, dtype=torch.float64)
    indices = torch.randint(0, 17, x.shape, generator=generator)
    y = x.to(backend.device).requires_grad_()
    out = F.max_unpool2d(y, indices.to(backend.device), 2, output_size=(80, 9))
    want = torch.zeros(2, 3, 80 * 9, dtype=x.dtype)
    for at, index in enumerate(indices.flatten(2).unbind(-1)):
        want.scatter_(2, index[..., None], x.flatten(2)[..., at, None])
    assert torch.equal(out.detach().cpu().flatten(2), want)
    weight = torch.randn(out.shape, generator=generator, dtype=x.dtype)
    (grad,) = torch.autograd.grad(out, y, weight.to(backend.device))
    assert torch.equal(grad.cpu(), weight.flatten(2).gather(2, indices.flatten(2)).view_as(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sums_over_equal_switches(dtype, backend):
    """The transpose of gather, with one rounding to the element type; 5000 positions are more than one tile."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-8, 9, (2, 3, 700), generator=generator).to(dtype)
    indices = torch.randint(0, 90, x.shape, generator=generator) * 55
    out = ops.switch_sum(x.to(backend.device), indices.to(backend.device), [5000])
    want = torch.zeros(2, 3, 5000, dtype=torch.float64).scatter_add_(2, indices, x.double())
    assert same_bits(out, want.to(dtype))


def test_pooling_and_unpooling_go_together(backend):
    for rank, shape in ((1, (2, 3, 9)), (2, (2, 3, 9, 8)), (3, (2, 3, 5, 4, 7))):
        x = torch.randn(shape, device=backend.device)
        out, indices = getattr(F, f"max_pool{rank}d")(x, 2, return_indices=True)
        back = getattr(F, f"max_unpool{rank}d")(out, indices, 2, output_size=x.shape)
        assert back.shape == x.shape
        assert torch.equal(back.flatten(2).gather(2, indices.flatten(2)).view_as(out), out)
        assert int((back != 0).sum()) == out.numel()


@pytest.mark.parametrize("index", [-1, 36, 1 << 40])
def test_an_index_outside_is_refused_on_the_cpu(index):
    x, indices = torch.randn(2, 3, 3, 3), torch.arange(9).view(1, 1, 3, 3).repeat(2, 3, 1, 1)
    indices[1, 2, 0, 1] = index
    with pytest.raises(RuntimeError, match=rf"invalid max index: {index} .*\[0, 36\)"):
        F.max_unpool2d(x, indices, 2)


# ---- adaptive and fractional pooling ------------------------------------------------------------------------


def test_even_adaptive_windows_are_sliding_ones(backend):
    """They take max pooling's kernels, which save a byte and not an index."""
    x = torch.randn(2, 3, 8, 12, device=backend.device, requires_grad=True)
    out = F.adaptive_max_pool2d(x, (4, 3))
    assert out.grad_fn.name() == "FastnnMaxPoolBackward"
    assert F.adaptive_max_pool2d(x, (3, 3)).grad_fn.name() == "FastnnSwitchGatherBackward"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 3, 17, 19), 3, {"output_size": (7, 5)}),
        ((1, 2, 9, 40), (2, 4), {"output_ratio": (0.5, 0.7)}),
        ((3, 6, 6), 2, {"output_size": 1}),
        ((2, 3, 9, 7, 8), (2, 3, 2), {"output_size": (4, 3, 5)}),
        ((0, 3, 5, 6), 2, {"output_size": 3}),
        ((1, 1, 5, 2300), (2, 3), {"output_size": (3, 900)}),
    ],
    ids=str,
)
def test_fractional_pooling_is_torch_s(shape, kernel, options, dtype, backend):
    """Windows, values, places, gradients and second derivatives, with ties, NaN and -inf, from the same seed."""
    rank = 3 if len(shape) == 5 else 2
    values = torch.tensor([float("nan"), float("-inf"), float("-inf"), 0.0, -0.0, 1.0, 2.0, 3.0], dtype=dtype)
    x = values[torch.randint(0, 8, shape, generator=torch.Generator().manual_seed(3))]
    results = []
    for namespace, device in ((torch_functional, "cpu"), (F, backend.device)):
        torch.manual_seed(5)
        leaf = x.clone().to(device).requires_grad_()
        function = getattr(namespace, f"fractional_max_pool{rank}d")
        samples = torch.rand(*(shape[:2] if len(shape) == rank + 2 else (1, shape[0])), rank, dtype=dtype)
        out, indices = function(leaf, kernel, return_indices=True, _random_samples=samples.to(device), **options)
        weight = torch.arange(1.0, out.numel() + 1, dtype=dtype, device=device).view(out.shape).requires_grad_()
        (grad,) = torch.autograd.grad(out, leaf, weight, create_graph=True)
        (second,) = torch.autograd.grad(grad, weight, torch.ones_like(grad))
        results.append([t.detach().cpu() for t in (out, indices, grad, second)])
    for got, want in zip(results[1], results[0], strict=True):
        assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.nan_to_num(9.0), want.nan_to_num(9.0))
    if device == "cpu" or torch.device(device).type == "cpu":  # torch draws other numbers on other devices
        torch.manual_seed(7)
        want = getattr(torch_functional, f"fractional_max_pool{rank}d")(x, kernel, **options)
        torch.manual_seed(7)
        got = getattr(F, f"fractional_max_pool{rank}d")(x, kernel, **options)
        assert torch.equal(got.nan_to_num(9.0), want.nan_to_num(9.0))


# ---- variants of the kernels --------------------------------------------------------------------------------

WINDOWS = [(1, 1, 0), (2, 2, 0), (2, 1, 1), (3, 1, 1), (3, 2, 1), (4, 2, 0), (5, 2, 2), (3, 3, 1), (5, 4, 2), (7, 1, 3)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(7, 7), (5, 16), (6, 71)], ids=str)
@pytest.mark.parametrize("kernel, stride, padding", WINDOWS, ids=str)
def test_every_window_agrees_with_torch(kernel, stride, padding, size, layout, backend):
    """Averages and their gradients, with partial vectors, borders and divisors of every kind; integers, so that sums
    are exact."""
    generator = torch.Generator().manual_seed(kernel * 100 + size[1])
    x = torch.randint(-8, 9, (3, 7, *size), generator=generator).float()
    for ceil_mode, count_pad, divisor in (
        (False, True, None),
        (True, True, None),
        (True, False, None),
        (True, True, 3),
    ):
        arguments = (kernel, stride, padding, ceil_mode, count_pad, divisor)
        theirs = x.clone().requires_grad_()
        want = torch_functional.avg_pool2d(theirs, *arguments)
        grad = torch.randn(want.shape, generator=generator)
        (want_grad,) = torch.autograd.grad(want, theirs, grad)
        mine = x.contiguous(memory_format=layout).to(backend.device).requires_grad_()
        out = F.avg_pool2d(mine, *arguments)
        (grad_x,) = torch.autograd.grad(out, mine, grad.contiguous(memory_format=layout).to(backend.device))
        torch.testing.assert_close(out.cpu(), want)
        torch.testing.assert_close(grad_x.cpu(), want_grad)


@pytest.mark.parametrize("size", [(7, 7), (3, 40), (2, 2300)], ids=str)
@pytest.mark.parametrize("kernel, stride, padding", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0)], ids=str)
def test_a_sample_alone_has_the_bits_it_has_in_a_batch(kernel, stride, padding, size, backend):
    x = torch.randn(5, 4, *size, device=backend.device)

    def run(x: torch.Tensor, grad: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = x.detach().requires_grad_()
        out = F.avg_pool2d(x, kernel, stride, padding)
        grad = torch.linspace(-1, 1, out.numel(), device=x.device).view_as(out) if grad is None else grad
        return out.detach(), grad, torch.autograd.grad(out, x, grad)[0]

    out, grad, grad_x = run(x)
    out_n, _, grad_n = run(x[4:], grad[4:])
    assert same_bits(out_n, out[4:]) and same_bits(grad_n, grad_x[4:])


def test_case_ids_are_unique():
    assert len(BY_ID) == len(POOLING)


# ---- bad input ----------------------------------------------------------------------------------------------

X = (2, 3, 6, 6)
PLACES = torch.zeros(X, dtype=torch.int64)
BAD = [
    ("max_pool1d", (2, 3, 6, 6), (2,), {}, "input"),
    ("max_pool1d", (2, 3, 6), (2,), {"padding": 2}, "pad"),
    ("max_pool1d", (2, 3, 6), (2,), {"stride": 0}, "stride"),
    ("max_pool3d", (2, 3, 6), (2,), {}, "input"),
    ("max_pool3d", (2, 3, 4, 4, 4), (5,), {}, "output"),
    ("avg_pool1d", (2, 3, 6), (2,), {"padding": -1}, "pad"),
    ("avg_pool2d", X, (0,), {}, "kernel|stride"),
    ("avg_pool2d", X, (2,), {"stride": -1}, "stride"),
    ("avg_pool2d", X, (2,), {"padding": 2}, "pad"),
    ("avg_pool2d", X, ((2, 2, 2),), {}, "kernel"),
    ("avg_pool2d", X, (2,), {"divisor_override": 0}, "divisor"),
    ("avg_pool2d", X, (7,), {}, "output size"),
    ("avg_pool2d", (2, 2, 3, 6, 6), (2,), {}, "input"),
    ("avg_pool2d", (2, 0, 6, 6), (2,), {}, "size"),
    ("avg_pool3d", (2, 3, 2, 6, 6), (3,), {"padding": 1}, "kernel"),
    ("lp_pool2d", X, (2, 7), {}, "output size"),
    ("lp_pool2d", X, (0, 2), {}, "norm_type"),
    ("adaptive_avg_pool1d", (2, 3, 6), ((),), {}, "output_size"),
    ("adaptive_avg_pool2d", X, ((-1, 2),), {}, "output_size"),
    ("adaptive_avg_pool2d", (6, 6), ((2, 2),), {}, "dimension"),
    ("adaptive_avg_pool3d", (2, 3, 0, 6, 6), (2,), {}, "size"),
    ("adaptive_max_pool2d", X, ((2, 2, 2),), {}, "output_size|internal"),
    ("adaptive_max_pool3d", (6, 6, 6), ((2, 2, 2),), {}, "dimension"),
    ("fractional_max_pool2d", X, (2,), {}, "output_ratio"),
    ("fractional_max_pool2d", X, (4,), {"output_size": 4}, "too large"),
    ("fractional_max_pool2d", X, (2,), {"output_size": 3, "_random_samples": torch.rand(2, 4, 2)}, "_random_samples"),
    ("max_unpool2d", X, (PLACES[..., :5], 2), {}, "indices"),
    ("max_unpool2d", X, (PLACES.int(), 2), {}, "int64"),
    ("max_unpool2d", X, (PLACES, 2), {"output_size": (12, 14)}, "output_size"),
    ("max_unpool2d", X, (PLACES, 2), {"output_size": (12,)}, "output_size"),
]


@pytest.mark.parametrize("name, shape, arguments, options, says", BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_bad_input_raises_what_torch_raises(name, shape, arguments, options, says, backend):
    x = torch.randn(shape)
    try:
        getattr(torch_functional, name)(x, *arguments, **options)
    except Exception as error:
        expected = type(error)
    else:
        pytest.fail("torch accepts it")

    def moved(value):
        return value.to(backend.device) if isinstance(value, torch.Tensor) else value

    with pytest.raises(expected, match=f"(?i){says}"):
        getattr(F, name)(
            x.to(backend.device), *map(moved, arguments), **{key: moved(value) for key, value in options.items()}
        )


@pytest.mark.parametrize(
    "name, arguments", [("avg_pool2d", (2,)), ("lp_pool2d", (2, 2)), ("adaptive_max_pool2d", (4,))]
)
def test_types_without_kernels_are_refused(name, arguments, backend):
    with pytest.raises(RuntimeError, match="expected float64, float32, bfloat16 or float16"):
        getattr(F, name)(torch.ones(X, dtype=torch.complex64, device=backend.device), *arguments)


def test_ops_refuse_tensors_that_do_not_go_together(backend):
    x, y = torch.randn(2, 3, 6, 6, device=backend.device), torch.randn(2, 3, 3, 3, device=backend.device)
    two, none = [2, 2], [0, 0]
    switches = torch.zeros(2, 3, 3, 3, dtype=torch.int64, device=backend.device)
    ops.average_pool_backward(y, x.shape, two, two, none, True, None)
    for call in (
        lambda: ops.average_pool(x, [4, 3], two, two, none, True, None),
        lambda: ops.average_pool_backward(y, [2, 3, 9, 6], two, two, none, True, None),
        lambda: ops.average_pool_backward(y, [2, 4, 6, 6], two, two, none, True, None),
        lambda: ops.lp_pool_backward(y, x, y[:, :2], two, two, 2.0),
        lambda: ops.lp_pool_backward(y, x.double(), y, two, two, 2.0),
        lambda: ops.lp_pool_backward(y, x[:, :2], y, two, two, 2.0),
        lambda: ops.switch_gather(x[:1], switches),
        lambda: ops.switch_gather(x, switches.int()),
        lambda: ops.switch_sum(x, switches, [6, 6]),
        lambda: ops.switch_pool(x, [4, 4], two, None),
    ):
        with pytest.raises(RuntimeError):
            call()


# ---- autocast -----------------------------------------------------------------------------------------------


def test_autocast_gives_torch_s_types():
    shapes = {1: (1, 2, 8), 2: (1, 2, 8, 8), 3: (1, 2, 6, 6, 6)}
    calls = {
        "max_pool": (2,),
        "avg_pool": (2,),
        "lp_pool": (2, 2),
        "adaptive_avg_pool": (3,),
        "adaptive_max_pool": (4,),
        "fractional_max_pool": (2, 2),
        "max_unpool": (2,),
    }
    for rank, shape in shapes.items():
        x = torch.rand(shape, dtype=torch.bfloat16)
        for name, arguments in calls.items():
            if name == "fractional_max_pool" and rank == 1:
                continue
            if name == "max_unpool":
                arguments = (torch.zeros(shape, dtype=torch.int64), *arguments)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                got, want = (getattr(f, f"{name}{rank}d")(x, *arguments) for f in (F, torch_functional))
            assert got.dtype == want.dtype, (name, rank)
