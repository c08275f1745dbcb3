"""max_pool2d against the float64 oracle; values and places are choices and must agree bit for bit."""

from __future__ import annotations

import pytest
import torch
from op_tester import (
    OpRecorder,
    check_exact,
    check_format_kept,
    check_gradient_subsets,
    check_repeatable,
    check_second_derivatives,
    check_values_and_gradients,
    grid,
    make_inputs,
    same_bits,
)
from torch.nn import functional as torch_functional

import fastnn
from fastnn.testing import reference
from fastnn.testing.cases import MAX_POOL2D

BY_ID = {case.id: case for case in MAX_POOL2D}
DENSE = [c for c in MAX_POOL2D if len(c.shape) == 4 and min(c.shape) > 1 and c.id != "whole_plane"]
NAN, INF = float("nan"), float("inf")


@grid(MAX_POOL2D)
def test_values_and_gradients(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid(MAX_POOL2D, layouts=["contiguous", "channels_last"])
def test_output_has_the_input_s_bits(case, dtype, layout, backend):
    """Sign of zero and NaN included."""
    inputs = make_inputs(case, dtype, layout, backend.device)
    out = case.apply(fastnn.functional, inputs)[0]
    want, _ = reference.max_pool2d(inputs["input"].detach().cpu().double(), **case.options)
    want = want.to(dtype)
    out = out.detach().cpu()
    assert torch.equal(out.isnan(), want.isnan())
    assert same_bits(out.nan_to_num(1.0), want.nan_to_num(1.0))


@grid([c for c in MAX_POOL2D if c.values == "integers"])
def test_integers_are_exact(case, dtype, layout, backend):
    check_exact(case, dtype, layout, backend.device)


@grid(DENSE, dtypes=[torch.float32, torch.bfloat16], layouts=["contiguous", "channels_last"])
def test_format_is_kept(case, dtype, layout, backend):
    check_format_kept(case, dtype, layout, backend.device)


@grid(
    [c for c in MAX_POOL2D if c.crosses_tile or c.id in ("overlapping", "resnet_stem")],
    dtypes=[torch.float32, torch.bfloat16],
    layouts=["contiguous", "channels_last"],
)
def test_same_bits_on_repeat(case, dtype, layout, backend):
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=backend.name == "cpu")


@grid([BY_ID["overlapping"]], dtypes=[torch.float32], layouts=None)
def test_gradient_subsets(case, dtype, backend):
    check_gradient_subsets(case, dtype, backend.device)


@grid(
    [BY_ID[n] for n in ("2x2", "overlapping", "ceil_padded", "dilation_padded", "ties", "unbatched", "batch_0")],
    layouts=["contiguous", "channels_last", "sliced"],
)
def test_second_derivatives(case, dtype, layout, backend):
    check_second_derivatives(case, dtype, layout, backend.device)


def test_nothing_is_saved_without_a_gradient(backend):
    """Without a gradient neither offsets nor indices are asked of the kernel."""
    x = torch.randn(2, 3, 6, 6, device=backend.device)
    with OpRecorder() as recorder:
        fastnn.functional.max_pool2d(x, 2)
        fastnn.functional.max_pool2d(x.requires_grad_(), 2)
        with torch.no_grad():
            fastnn.functional.max_pool2d(x, 2)
        fastnn.functional.max_pool2d(x, 2, return_indices=True)
    saved = [(call["save_offsets"], call["return_indices"]) for call in recorder.named("max_pool")]
    assert saved == [(False, False), (True, False), (False, False), (True, True)]


@pytest.mark.parametrize(
    "kernel, dtype", [((16, 16), torch.uint8), ((16, 17), torch.uint16), ((257, 256), torch.int32)], ids=str
)
def test_offsets_are_as_small_as_the_window_allows(kernel, dtype, backend):
    x = torch.randn(1, 2, kernel[0] + 1, kernel[1] + 1, device=backend.device)
    _, offsets, _ = torch.ops.fastnn.max_pool(x, kernel, [1, 1], [0, 0], [1, 1], False, True, False)
    assert offsets.dtype == dtype


@pytest.mark.parametrize("size", [256, 257, 65536, 65537])
def test_windows_at_the_edge_of_an_offset_type(size, backend):
    """Windows of 256 and 65536 places and of one more; the maximum in the last place, then in the first."""
    for place in (size - 1, 0, size // 2):
        x = torch.randn(1, 1, 1, size, device=backend.device)
        x[..., place] = 100.0
        x.requires_grad_()
        out, index = fastnn.functional.max_pool2d(x, (1, size), return_indices=True)
        assert (out.item(), index.item()) == (100.0, place)
        (grad,) = torch.autograd.grad(out, x, torch.full_like(out, 3.0))
        expected = torch.zeros_like(x)
        expected[..., place] = 3.0
        assert torch.equal(grad, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    "window, place",
    [
        ([1.0, 1.0, 1.0, 1.0], 0),
        ([0.0, 1.0, 1.0, 0.0], 1),
        ([0.0, -0.0, 0.0, -0.0], 0),
        ([-0.0, 0.0, -0.0, 0.0], 0),
        ([-INF, -INF, -INF, -INF], 0),
        ([-INF, -INF, -1e30, -INF], 2),
        ([NAN, 1.0, 2.0, 3.0], 0),
        ([3.0, NAN, 1.0, INF], 1),
        ([NAN, 1.0, NAN, 2.0], 2),
        ([NAN, NAN, NAN, NAN], 3),
        ([INF, NAN, INF, INF], 1),
        ([INF, 1.0, INF, 2.0], 0),
    ],
    ids=str,
)
def test_which_position_wins(window, place, layout, backend):
    """First of equals, last NaN; one window in each of 19 channels so that vector paths take it too."""
    x = torch.tensor(window, device=backend.device).view(1, 1, 2, 2).repeat(2, 19, 1, 1)
    x = x.contiguous(memory_format=layout).requires_grad_()
    out, index = fastnn.functional.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(index, torch.full_like(index, place))
    assert same_bits(out.nan_to_num(7.0), torch.full_like(out, window[place]).nan_to_num(7.0))
    (grad,) = torch.autograd.grad(out, x, torch.full_like(out, 5.0))
    expected = torch.zeros(4)
    expected[place] = 5.0
    assert torch.equal(grad.cpu(), expected.view(1, 1, 2, 2).expand_as(x))


@pytest.mark.parametrize("options", [{}, {"ceil_mode": True}, {"padding": 1}, {"dilation": 2, "padding": 1}], ids=str)
def test_places_are_torch_s(options, backend):
    """Ties, NaN and -inf together, against torch's own CPU kernel."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.tensor([NAN, -INF, -INF, -INF, INF, 0.0, -0.0, 1.0])
    for shape in [(2, 3, 9, 10), (1, 33, 7, 6)]:
        x = pool[torch.randint(0, len(pool), shape, generator=generator)]
        want, want_index = torch_functional.max_pool2d(x, 3, 2, return_indices=True, **options)
        for layout in (torch.contiguous_format, torch.channels_last):
            y = x.contiguous(memory_format=layout).to(backend.device)
            out, index = fastnn.functional.max_pool2d(y, 3, 2, return_indices=True, **options)
            assert torch.equal(index.cpu(), want_index)
            assert torch.equal(out.cpu().isnan(), want.isnan())
            assert torch.equal(out.cpu().nan_to_num(), want.nan_to_num())


# (kernel, stride, padding, ceil_mode) times planes: every CPU kernel, with partial vectors and borders on each side.
WINDOWS = [
    (2, 2, 0, False),
    (2, 2, 1, False),
    (3, 2, 0, True),
    (3, 2, 1, False),
    (3, 1, 1, False),
    (3, 1, 0, False),
    (3, 3, 1, False),
    (5, 1, 2, False),
    (5, 4, 2, True),
]
PLANES = [(4, 4), (7, 7), (5, 16), (16, 17), (9, 33), (6, 71), (3, 2200)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", PLANES, ids=str)
@pytest.mark.parametrize("kernel, stride, padding, ceil_mode", WINDOWS, ids=str)
def test_every_variant_agrees_with_torch(kernel, stride, padding, ceil_mode, size, layout, backend):
    """Values, places and gradients, with ties, NaN and -inf; 21 planes, so that the last group is not full."""
    generator = torch.Generator().manual_seed(kernel * 100 + size[1])
    values = torch.tensor([NAN, -INF, -INF, 0.0, -0.0, 1.0, 2.0, 3.0])
    x = values[torch.randint(0, len(values), (3, 7, *size), generator=generator)]
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    want_x = x.clone().requires_grad_()
    want, want_index = torch_functional.max_pool2d(want_x, return_indices=True, **options)
    grad = torch.randint(-8, 9, want.shape, generator=generator).float()  # sums are exact in any order
    (want_grad,) = torch.autograd.grad(want, want_x, grad)
    y = x.contiguous(memory_format=layout).to(backend.device).requires_grad_()
    out, index = fastnn.functional.max_pool2d(y, return_indices=True, **options)
    (grad_x,) = torch.autograd.grad(out, y, grad.contiguous(memory_format=layout).to(backend.device))
    assert torch.equal(index.cpu(), want_index)
    assert torch.equal(out.detach().cpu().isnan(), want.isnan())
    assert torch.equal(out.detach().cpu().nan_to_num(), want.detach().nan_to_num())
    assert torch.equal(grad_x.cpu(), want_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", PLANES, ids=str)
@pytest.mark.parametrize("kernel, stride, padding", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (5, 1, 2)], ids=str)
def test_a_sample_alone_has_the_bits_it_has_in_a_batch(kernel, stride, padding, size, dtype, backend):
    """The variants add in one order, whichever of them the number of planes chooses."""
    x = torch.randn(9, 5, *size, device=backend.device).to(dtype)

    def run(x: torch.Tensor, grad: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = x.detach().requires_grad_()
        out = fastnn.functional.max_pool2d(x, kernel, stride, padding)
        grad = torch.linspace(-1, 1, out.numel(), device=x.device).view_as(out).to(dtype) if grad is None else grad
        return out.detach(), grad, torch.autograd.grad(out, x, grad)[0]

    out, grad, grad_x = run(x)
    for n in (0, 8):
        out_n, _, grad_n = run(x[n : n + 1], grad[n : n + 1])
        assert same_bits(out_n, out[n : n + 1]) and same_bits(grad_n, grad_x[n : n + 1])


def test_indices_feed_max_unpool(backend):
    x = torch.randn(2, 3, 8, 8, device=backend.device)
    out, index = fastnn.functional.max_pool2d(x, 2, return_indices=True)
    back = torch_functional.max_unpool2d(out, index, 2)
    assert torch.equal(back.flatten(2).gather(2, index.flatten(2)).view_as(out), out)


def test_indices_carry_no_gradient(backend):
    x = torch.randn(1, 2, 4, 4, device=backend.device, requires_grad=True)
    out, index = fastnn.functional.max_pool2d(x, 2, return_indices=True)
    assert out.requires_grad and not index.requires_grad


def test_case_ids_are_unique():
    assert len(BY_ID) == len(MAX_POOL2D)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "kernel", "stride"), [((1, 3, 61, 67), 3, 2), ((2, 9, 7, 8), 2, 2), ((1, 2, 9, 90), 3, 1)]
)
def test_a_pointer_between_vectors_changes_no_bit(shape, kernel, stride, dtype, backend):
    """The tensor begins one element after a multiple of 16 bytes, as a part of a larger one may."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator).to(dtype)

    def run(x):
        x = x.requires_grad_()
        out = fastnn.functional.max_pool2d(x, kernel, stride)
        return out, torch.autograd.grad(out, x, torch.cos(7 * out.detach()))[0]

    shifted = torch.empty(values.numel() + 1, dtype=dtype, device=backend.device)[1:].view(shape).copy_(values)
    for got, want in zip(run(shifted), run(values.to(backend.device)), strict=True):
        assert torch.equal(got, want)
