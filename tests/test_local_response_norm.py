"""local_response_norm against the float64 oracle: values, gradients, second derivatives; what torch's layer does."""

from __future__ import annotations

import pytest
import torch
from op_tester import (
    check_format_kept,
    check_repeatable,
    check_second_derivatives,
    check_values_and_gradients,
    grid,
)

import fastnn
from fastnn.testing.cases import LOCAL_RESPONSE_NORM, generator_for, lay_out

BY_ID = {case.id: case for case in LOCAL_RESPONSE_NORM}
NATIVE = ["contiguous", "channels_last"]


@grid(LOCAL_RESPONSE_NORM)
def test_values_and_gradients(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid([BY_ID[n] for n in ("4d", "5d", "even", "wide_channels")], dtypes=[torch.float32, torch.bfloat16], layouts=NATIVE)
def test_format_and_bits_are_kept(case, dtype, layout, backend):
    check_format_kept(case, dtype, layout, backend.device)
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=backend.name == "cpu")


@grid(
    [c for c in LOCAL_RESPONSE_NORM if c.values == "normal" and c.small and c.id != "no_k"],
    dtypes=[torch.float64, torch.float32],
    layouts=[*NATIVE, "sliced"],
)
def test_second_derivatives(case, dtype, layout, backend):
    check_second_derivatives(case, dtype, layout, backend.device)


@grid([BY_ID["wide_channels"], BY_ID["window_over_tile"]], dtypes=[torch.float64], layouts=NATIVE)
def test_second_derivatives_across_tiles(case, dtype, layout, backend):
    check_second_derivatives(case, dtype, layout, backend.device)


@pytest.mark.parametrize("layout", NATIVE)
@pytest.mark.parametrize("shape", [(2, 300, 37, 41), (1, 96, 5, 7), (64, 40, 3, 3)], ids=str)
def test_threads_share_what_is_large(shape, layout):
    """Strips of planes, channels of one strip, and positions, each by two threads."""
    x = lay_out(torch.randn(shape, generator=generator_for("threads", shape)), layout).requires_grad_()
    reference = x.detach().double().requires_grad_()
    expected = torch.nn.functional.local_response_norm(reference, 5, 0.5)
    (want,) = torch.autograd.grad(expected.square().sum(), reference)
    torch.set_num_threads(2)
    y = fastnn.functional.local_response_norm(x, 5, 0.5)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", NATIVE)
def test_powers_of_two_are_exact(layout, backend):
    """alpha / size = 1, k = 12 and four ones in the window: x / 16^(3/4) = x / 8, without any rounding."""
    x = lay_out(torch.ones(2, 19, 3, 5), layout).to(backend.device)
    y = fastnn.functional.local_response_norm(x, 4, alpha=4.0, k=12.0)
    assert torch.equal(y[:, 2:-1], torch.full_like(y[:, 2:-1], 0.125))


def test_what_is_infinite_stays_in_its_windows(backend):
    """A sum that slides would be NaN from there on."""
    x = torch.randn(1, 40, 1, 3, generator=generator_for("infinite"))
    x[0, 7, 0, 1] = float("inf")
    y = fastnn.functional.local_response_norm(x.to(backend.device), 5).cpu()
    assert y[0, 7, 0, 1].isnan() and (y[0, [5, 6, 8, 9], 0, 1] == 0).all()
    clean = fastnn.functional.local_response_norm(x.nan_to_num(posinf=0.5).to(backend.device), 5).cpu()
    assert torch.equal(y[0, 10:], clean[0, 10:]) and torch.equal(y[0, :5], clean[0, :5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_torch_s(dtype):
    x = torch.randn(2, 5, 3, 4).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = fastnn.functional.local_response_norm(x, 3)
        torch_s = torch.nn.functional.local_response_norm(x, 3)
    assert ours.dtype == torch_s.dtype
    torch.testing.assert_close(ours, torch_s)


def test_tangents_and_transforms(backend):
    generator = generator_for("lrn transforms")
    x, t, g = (torch.randn(3, 7, 4, generator=generator, dtype=torch.float64) for _ in range(3))

    def both(function):
        def ours(x):
            return fastnn.functional.local_response_norm(x, 4, 0.5)

        def torch_s(x):
            return torch.nn.functional.local_response_norm(x, 4, 0.5)

        got = function(ours, *(v.to(backend.device) for v in (x, t, g)))
        torch.testing.assert_close(got.cpu(), function(torch_s, x, t, g))

    both(lambda f, x, t, g: torch.func.jvp(f, (x,), (t,))[1])
    both(lambda f, x, t, g: torch.func.jvp(torch.func.grad(lambda x: (f(x) * g).sum()), (x,), (t,))[1])
    both(lambda f, x, t, g: torch.func.vmap(f)(torch.stack([x, t, g])))
    both(
        lambda f, x, t, g: torch.func.vmap(torch.func.grad(lambda x: f(x).pow(3).sum()), in_dims=2)(
            torch.stack([x, t, g], 2)
        )
    )
    both(lambda f, x, t, g: torch.func.vmap(lambda v: torch.func.jvp(f, (x,), (v,))[1])(torch.stack([t, g])))


def test_bad_arguments():
    function = fastnn.functional.local_response_norm
    with pytest.raises(ValueError, match=r"3D or higher.*\[4, 3\]"):
        function(torch.randn(4, 3), 3)
    with pytest.raises(RuntimeError, match="size=0"):
        function(torch.randn(4, 3, 2), 0)
    with pytest.raises(TypeError):
        function(torch.randn(4, 3, 2), 2.5)
    with pytest.raises(NotImplementedError, match="input has dtype Long"):
        function(torch.ones(4, 3, 2, dtype=torch.int64), 3)
    x = torch.randn(2, 3, 4)
    with pytest.raises(RuntimeError, match="grad_output must be like input"):
        torch.ops.fastnn.local_response_norm_backward(x[:1], x, 3, 1.0, 0.75, 1.0)
    y = function(x.requires_grad_(), 3)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        second.sum().backward()
