"""batch_norm against the float64 oracle: values, gradients and running statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_tester import (
    OpRecorder,
    assert_bounded,
    check_format_kept,
    check_gradient_subsets,
    check_repeatable,
    check_second_derivatives,
    check_values_and_gradients,
    grid,
    make_inputs,
    same_bits,
)

import fastnn
from fastnn.testing import bounds, reference
from fastnn.testing.cases import ALL_DTYPES, BATCH_NORM, generator_for, lay_out

BY_ID = {case.id: case for case in BATCH_NORM}
DENSE = [c for c in BATCH_NORM if len(c.shape) > 3 and min(c.shape[:2]) > 1 and c.id != "4d_one_pixel"]


@grid(BATCH_NORM)
def test_values_and_gradients(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid(
    [c for c in DENSE if c.values == "normal"],
    dtypes=[torch.float32, torch.bfloat16],
    layouts=["contiguous", "channels_last"],
)
def test_format_is_kept(case, dtype, layout, backend):
    check_format_kept(case, dtype, layout, backend.device)


@grid(
    [c for c in BATCH_NORM if c.crosses_tile or c.id in ("3d", "4d_many_values", "4d_resnet")],
    dtypes=[torch.float32, torch.bfloat16],
    layouts=["contiguous", "channels_last"],
)
def test_same_bits_on_repeat(case, dtype, layout, backend):
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=backend.name == "cpu")


@grid([BY_ID["4d"], BY_ID["eval_4d"], BY_ID["2d_wide"]], dtypes=[torch.float32], layouts=None)
def test_gradient_subsets(case, dtype, backend):
    check_gradient_subsets(case, dtype, backend.device)


@grid(
    [BY_ID[n] for n in ("2d", "3d", "4d", "5d", "no_affine", "no_track", "4d_batch_0", "eval_4d", "eval_no_affine")],
    layouts=["contiguous", "channels_last", "sliced"],
)
def test_second_derivatives(case, dtype, layout, backend):
    check_second_derivatives(case, dtype, layout, backend.device)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("wanted", ["input", "weight", "bias"])
def test_unneeded_gradients_are_not_computed(wanted, training, backend):
    case = BY_ID["4d" if training else "eval_4d"]
    inputs = make_inputs(case, torch.float32, "contiguous", backend.device)
    for name, tensor in inputs.items():
        tensor.requires_grad_(name == wanted)
    (out,) = case.apply(fastnn.functional, inputs)
    with OpRecorder() as recorder:
        out.sum().backward()
    (call,) = recorder.named("batch_norm_backward")
    assert list(call["output_mask"]) == [wanted == name for name in ("input", "weight", "bias")]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_powers_of_two_are_exact(dtype, layout, backend):
    """Evaluation with 1 / sqrt(3.5 + 0.5) = 1 / 2: y = weight * (x - mean) / 2 + bias, without any rounding."""
    generator = generator_for("exact")
    x = lay_out(torch.randint(-8, 9, (3, 19, 5, 7), generator=generator).to(dtype), layout).to(backend.device)
    mean, weight, bias = (torch.randint(-4, 5, (19,), generator=generator).to(x) for _ in range(3))
    out = fastnn.functional.batch_norm(x, mean, torch.full_like(mean, 3.5), weight, bias, False, 0.1, 0.5)
    expected = weight.view(-1, 1, 1) * (x - mean.view(-1, 1, 1)) / 2 + bias.view(-1, 1, 1)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(64, 5), (4, 3, 40, 41), (33, 70, 3, 3)], ids=str)
@pytest.mark.parametrize("centre, tolerance", [(1e4, 1e-3), (-1e5, 3e-2)])
def test_variance_at_a_large_mean(shape, layout, centre, tolerance, backend):
    """E[x^2] - E[x]^2 in float32 would be wrong by about centre^2 * 6e-8: 6 at 1e4, where the variance is 1. What
    is left to a sound method is the square of the mean's own error, a few units of centre * 6e-8."""
    x = centre + torch.randn(shape, generator=generator_for("large mean", shape), dtype=torch.float64)
    x = lay_out(x.float(), layout).to(backend.device)
    mean, var = torch.zeros(shape[1], device=backend.device), torch.zeros(shape[1], device=backend.device)
    fastnn.functional.batch_norm(x, mean, var, training=True, momentum=1.0)
    axes = [0, *range(2, len(shape))]
    exact = x.cpu().double()
    torch.testing.assert_close(var.cpu().double(), exact.var(axes), rtol=tolerance, atol=0)
    torch.testing.assert_close(mean.cpu().double(), exact.mean(axes), rtol=1e-5, atol=0)


@pytest.mark.parametrize("outlier", [False, True], ids=["", "first_row_outlies"])
@pytest.mark.parametrize("centre", [1e4, 1e6, 1e8])
@pytest.mark.parametrize("shape", [(8, 5, 7, 9), (512, 5), (3, 5, 40, 40)], ids=str)
def test_variance_in_float64_at_a_large_mean(shape, centre, outlier, backend):
    """Sums about zero would lose (mean / deviation)^2 of float64's accuracy: 5e6 units at a mean of 1e8."""
    x = torch.randn(shape, generator=generator_for(f"{shape} {centre}"), dtype=torch.float64) + centre
    if outlier:
        x.view(shape[0], -1)[0] -= centre
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    mean, variance = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    mean, variance = mean.to(backend.device), variance.to(backend.device)
    fastnn.functional.batch_norm(x.to(backend.device), mean, variance, training=True, momentum=1.0)
    exact = np.var(x.transpose(0, 1).reshape(5, -1).numpy().astype(np.longdouble), axis=1, ddof=1)
    worst = np.max(np.abs(variance.cpu().numpy() - exact) / exact)
    assert worst < 512 * np.finfo(np.float64).eps


def test_running_variance_is_unbiased_and_the_output_s_is_not(backend):
    x = torch.tensor([[1.0], [3.0]], device=backend.device)
    mean, var = torch.zeros(1, device=backend.device), torch.zeros(1, device=backend.device)
    out = fastnn.functional.batch_norm(x, mean, var, training=True, momentum=1.0, eps=1e-12)
    assert (mean.item(), var.item()) == (2.0, 2.0)
    torch.testing.assert_close(out.cpu(), torch.tensor([[-1.0], [1.0]]))


def test_a_constant_channel_is_its_bias(backend):
    """Variance 0: all that 1 / sqrt(eps) can magnify is the rounding of the mean, at most 4 units of 2^-24."""
    x = torch.full((4, 3, 5, 5), 1234.5, device=backend.device, requires_grad=True)
    bias = torch.tensor([1.0, -2.0, 3.0], device=backend.device)
    out = fastnn.functional.batch_norm(x, None, None, None, bias, training=True)
    assert float((out.detach() - bias.view(-1, 1, 1)).abs().max()) <= 4 * 2**-24 * 1234.5 / 1e-5**0.5
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert float(grad.abs().max()) < 1e-3


def test_statistics_with_strides(backend):
    """Running statistics and parameters that are every second element of a larger tensor."""
    storage = torch.full((2, 10), 7.0, device=backend.device)
    mean, var = storage[0, ::2], storage[1, ::2]
    mean.copy_(torch.arange(5.0))
    var.copy_(1 + torch.arange(5.0))
    want_mean, want_var = mean.cpu().double(), var.cpu().double()
    x = torch.randn(6, 5, 3, device=backend.device)
    fastnn.functional.batch_norm(x, mean, var, training=True, momentum=0.25)
    _, want_mean, want_var = reference.batch_norm(x.cpu().double(), want_mean, want_var, None, None, True, 0.25)
    torch.testing.assert_close(mean.cpu().double(), want_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var.cpu().double(), want_var, rtol=1e-5, atol=1e-6)
    assert torch.equal(storage[:, 1::2], torch.full((2, 5), 7.0, device=backend.device))


@pytest.mark.parametrize("track", [True, False], ids=["counted", "uncounted"])
def test_cumulative_average(track, backend):
    """momentum None: the running statistics are plain averages over the batches so far."""
    generator = generator_for("cumulative")
    batches = [torch.randn(6, 4, 3, generator=generator).to(backend.device) for _ in range(4)]
    mean, var = torch.zeros(4, device=backend.device), torch.ones(4, device=backend.device)
    count = torch.zeros((), dtype=torch.int64, device=backend.device)
    for step, batch in enumerate(batches):
        if track:
            torch.ops.fastnn.batch_norm(batch, None, None, mean, var, count, True, None, 1e-5)
            assert int(count) == step + 1
        else:
            torch.ops.fastnn.batch_norm(batch, None, None, mean, var, None, True, 1.0 / (step + 1), 1e-5)
    want = torch.stack([b.mean([0, 2]) for b in batches]).mean(0)
    want_var = torch.stack([b.var([0, 2]) for b in batches]).mean(0)
    torch.testing.assert_close(mean, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var, want_var, rtol=1e-5, atol=1e-6)


def test_evaluation_counts_nothing(backend):
    mean, var = torch.zeros(4, device=backend.device), torch.ones(4, device=backend.device)
    count = torch.full((), 5, dtype=torch.int64, device=backend.device)
    x = torch.randn(6, 4, device=backend.device)
    torch.ops.fastnn.batch_norm(x, None, None, mean, var, count, False, 0.1, 1e-5)
    assert int(count) == 5
    assert torch.equal(mean, torch.zeros_like(mean)) and torch.equal(var, torch.ones_like(var))


def test_evaluation_between_training_and_backward(backend):
    """Backward of training uses what its own forward saved, whatever happened to the running statistics since."""
    case = BY_ID["4d"]
    inputs = make_inputs(case, torch.float32, "contiguous", backend.device)
    before = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    (out,) = case.apply(fastnn.functional, inputs)
    with torch.no_grad():
        for _ in range(3):
            case.apply(fastnn.functional, inputs)
    cotangent = torch.randn(out.shape, device=backend.device)
    want = bounds.expected(case, before, [cotangent])
    for name in ("input", "weight", "bias"):
        (grad,) = torch.autograd.grad(out, inputs[name], cotangent, retain_graph=True)
        assert_bounded(grad, want.gradients[name], f"gradient of {name}")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradient_of_another_layout(training, backend):
    case = BY_ID["4d" if training else "eval_4d"]
    for input_layout, grad_layout in [
        ("contiguous", "channels_last"),
        ("channels_last", "contiguous"),
        ("channels_last", "sliced"),
        ("contiguous", "expanded"),
    ]:
        inputs = make_inputs(case, torch.float32, input_layout, backend.device)
        before = {name: tensor.detach().clone() for name, tensor in inputs.items()}
        (out,) = case.apply(fastnn.functional, inputs)
        cotangent = lay_out(torch.randn(out.shape, generator=generator_for("g")), grad_layout).to(backend.device)
        want = bounds.expected(case, before, [cotangent])
        names = list(case.differentiable)
        for name, grad in zip(names, torch.autograd.grad(out, [inputs[n] for n in names], cotangent), strict=True):
            assert_bounded(grad, want.gradients[name], f"gradient of {name}")


def test_a_nan_stays_in_its_channel(backend):
    x = torch.randn(3, 7, 4, 5, device=backend.device)
    x[1, 2, 3, 4] = float("nan")
    clean = x.clone()
    clean[1, 2, 3, 4] = 0.0
    out = fastnn.functional.batch_norm(x, None, None, training=True)
    assert bool(out[:, 2].isnan().all())
    others = [0, 1, 3, 4, 5, 6]
    assert same_bits(out[:, others], fastnn.functional.batch_norm(clean, None, None, training=True)[:, others])


def test_case_ids_are_unique():
    assert len(BY_ID) == len(BATCH_NORM)
