"""The gradient of a convolution's bias: a sum per channel, in any layout and cut in any way."""

from __future__ import annotations

import pytest
import torch

from fastnn.testing.access_profile import access_profile
from fastnn.testing.cases import ALL_DTYPES, lay_out
from fastnn.testing.emulation import emulated_cuda

SHAPES = [
    (4, 64, 40, 40),  # several blocks a channel where channels lie side by side
    (2, 3, 150, 150),  # and where they are planes
    (3, 7, 5, 9),
    (1, 1, 30, 31),
    (5, 130, 1, 1),
    (1, 12, 8, 8),
    (2, 6, 3, 4, 5),
    (3, 10, 13),
]
LAYOUTS = ["contiguous", "channels_last", "sliced", "transposed", "expanded"]


def bias_gradient(grad):
    return torch.ops.fastnn.convolution_grad_bias(grad)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integers_are_summed_exactly(shape, dtype, layout, backend):
    grad = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    grad = lay_out(grad.to(backend.device), layout)
    want = grad.double().transpose(0, 1).flatten(1).sum(1).to(dtype)
    assert torch.equal(bias_gradient(grad), want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_within_their_bound(shape, dtype, layout, backend):
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    grad = lay_out(grad.to(backend.device), layout)
    exact = grad.double().transpose(0, 1).flatten(1)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    # Chains of a few hundred, then trees.
    bound = 300 * torch.finfo(accumulated).eps * exact.abs().sum(1) + torch.finfo(dtype).eps * exact.sum(1).abs()
    assert (bias_gradient(grad).double() - exact.sum(1)).abs().le(bound).all()


@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (0, 4, 5)], ids=str)
def test_an_empty_batch_gives_zeros(shape, backend):
    assert torch.equal(bias_gradient(torch.empty(shape, device=backend.device)), torch.zeros(4, device=backend.device))


def test_what_is_not_finite_stays_in_its_channel(backend):
    for layout in ("contiguous", "channels_last"):
        grad = torch.ones(2, 20, 9, 9, device=backend.device)
        grad[1, 3, 4, 5], grad[0, 17, 0, 0] = float("nan"), float("inf")
        result = bias_gradient(lay_out(grad, layout))
        assert result.isnan().nonzero().flatten().tolist() == [3]
        assert result.isinf().nonzero().flatten().tolist() == [17]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_the_same_bits_in_any_order(shape, layout, dtype, backend):
    grad = lay_out(torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype), layout)
    grad = grad.to(backend.device)
    first = bias_gradient(grad)
    for repetition in backend.repetitions():
        with repetition:
            assert torch.equal(bias_gradient(grad), first)


@pytest.mark.parametrize(("shape", "layout"), [(SHAPES[0], "channels_last"), (SHAPES[1], "contiguous")])
def test_few_channels_are_spread_over_blocks(shape, layout):
    """Each value is read once, and a second launch adds what the blocks leave."""
    grad = lay_out(torch.randn(shape).bfloat16(), layout)
    with emulated_cuda(), access_profile() as kernels:
        bias_gradient(grad)
    (kernel,) = kernels
    assert kernel.name == "conv_grad_bias_kernel"
    assert kernel.launches == 2
    read = sum(site.asked_bytes for site in kernel.sites if (site.space, site.kind) == ("global", "read"))
    assert 1.0 <= read / (2 * grad.numel()) <= 1.1
