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
from fastnn.testing.cases import ALL_DTYPES, BATCH_NORM, BATCH_NORM_ACTIVATED, generator_for, lay_out

BY_ID = {case.id: case for case in BATCH_NORM}
DENSE = [c for c in BATCH_NORM if len(c.shape) > 3 and min(c.shape[:2]) > 1 and c.id != "4d_one_pixel"]


@grid(BATCH_NORM)
def test_values_and_gradients(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid(BATCH_NORM_ACTIVATED)
def test_values_and_gradients_with_an_activation(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


ACTIVATED = {case.id: case for case in BATCH_NORM_ACTIVATED}
DENSE_ACTIVATED = [
    ACTIVATED[n] for n in ("relu", "relu_wide", "elu", "add_relu_wide", "add_relu_7x7", "add_elu", "add")
]


@grid(DENSE_ACTIVATED, dtypes=[torch.float32, torch.bfloat16], layouts=["contiguous", "channels_last"])
def test_an_activation_keeps_format_and_bits(case, dtype, layout, backend):
    check_format_kept(case, dtype, layout, backend.device)
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=backend.name == "cpu")


@grid([c for c in BATCH_NORM_ACTIVATED if c.small], dtypes=[torch.float32], layouts=None)
def test_gradient_subsets_with_an_activation(case, dtype, backend):
    check_gradient_subsets(case, dtype, backend.device)


@grid(
    [c for c in BATCH_NORM_ACTIVATED if c.small and c.values == "normal"],
    dtypes=[torch.float64],
    layouts=["contiguous"],
)
def test_second_derivatives_with_an_activation(case, dtype, layout, backend):
    check_second_derivatives(case, dtype, layout, backend.device)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(3, 20, 7, 7), (2, 64, 5, 8), (5, 3, 4, 6)], ids=str)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "identity"])
def test_the_output_is_found_again_to_the_bit(name, dtype, shape, layout, backend):
    """What recomputes an activation in backward gets what forward gave."""
    generator = generator_for("again", shape)
    x, residual = (lay_out(torch.randn(shape, generator=generator).to(dtype), layout).to(backend.device) for _ in "xr")
    weight, bias = (torch.randn(shape[1], generator=generator).to(x) for _ in "wb")
    for r in (None, residual):
        y, mean, _, scale, shift, mask = torch.ops.fastnn.batch_norm_act_forward(
            x, r, weight, bias, None, None, None, True, 0.1, 1e-5, name, 0.3, True
        )
        assert (mask.numel() > 0) == (r is not None and name in ("relu", "leaky_relu"))
        assert same_bits(torch.ops.fastnn.batch_norm_act_apply(x, r, mean, scale, shift, name, 0.3), y)


@pytest.mark.parametrize("shape", [(4, 3), (3, 5, 6), (2, 70, 3, 4)], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38])
@pytest.mark.parametrize("momentum", [0.25, None])
def test_a_nonfinite_batch_moves_nothing_where_it_is_to_be_skipped(shape, bad, momentum, backend):
    """One value of one channel; 3e38 is finite, its variance is not."""
    generator = generator_for("skip", shape)
    x = torch.randn(shape, generator=generator)
    mean, var = torch.randn(shape[1], generator=generator), torch.rand(shape[1], generator=generator)
    spoilt = x.clone()
    spoilt[1, 1] = bad
    results = []
    for batch in (x, spoilt):
        for skip in (False, True):
            m, v = mean.clone().to(backend.device), var.clone().to(backend.device)
            count = torch.tensor(3, device=backend.device)
            y = fastnn.functional.batch_norm(
                batch.to(backend.device),
                m,
                v,
                training=True,
                momentum=momentum,
                num_batches_tracked=count,
                skip_nonfinite_stats=skip,
            )
            results.append((y, m, v, int(count)))
    (y, *moved), (y_skip, *moved_skip), (bad_y, *_), (bad_y_skip, *kept) = results
    assert same_bits(y, y_skip) and same_bits(bad_y, bad_y_skip)
    assert all(same_bits(a, b) for a, b in zip(moved[:2], moved_skip[:2], strict=True))
    assert moved[2] == moved_skip[2] == 4 and not torch.equal(moved[0].cpu(), mean)
    assert torch.equal(kept[0].cpu(), mean) and torch.equal(kept[1].cpu(), var) and kept[2] == 3


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "identity"])
def test_tangents_and_transforms_with_an_activation(name, residual, backend):
    """Forward mode, forward over reverse, and vmap agree with the composition of torch's own functions."""
    generator = generator_for("transforms", name)
    x, r, t, u = (torch.randn(4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(4))
    w, b = (torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(2))
    device = backend.device

    def ours(x, r, w, b):
        options = {"training": True, "activation": name, "alpha": 0.3}
        if residual:
            return fastnn.functional.batch_norm_add_relu(x, r, None, None, w, b, **options)
        return fastnn.functional.batch_norm_relu(x, None, None, w, b, **options)

    def theirs(x, r, w, b):
        z = torch.nn.functional.batch_norm(x, None, None, w, b, True) + (r if residual else 0)
        return reference.activation(z, name, 0.3)

    def jvp(f, *at):
        return torch.func.jvp(lambda x, r: f(x, r, w.to(at[0]), b.to(at[0])), at[:2], at[2:])[1]

    on = [v.to(device) for v in (x, r, t, u)]
    torch.testing.assert_close(jvp(ours, *on).cpu(), jvp(theirs, x, r, t, u))

    def tangent_of_gradient(f, *at):
        gradient = torch.func.grad(lambda x: (f(x, at[1], w.to(x), b.to(x)) * at[3]).square().sum())
        return torch.func.jvp(gradient, at[:1], at[2:3])[1]

    torch.testing.assert_close(tangent_of_gradient(ours, *on).cpu(), tangent_of_gradient(theirs, x, r, t, u))
    batched = [torch.stack([v, v.flip(0)]) for v in on[:2]]
    for f_dims in ((0, 0), (0, None), (None, 0)):
        args = [v if d == 0 else v[0] for v, d in zip(batched, f_dims, strict=True)]

        def gradients_of(f, g, x, r):
            return torch.func.vjp(lambda x, r: f(x, r, w.to(x), b.to(x)), x, r)[1](g)

        got = torch.func.vmap(lambda *a: gradients_of(ours, on[2], *a), f_dims)(*args)
        want = torch.func.vmap(lambda *a: gradients_of(theirs, t, *a), f_dims)(*[v.cpu() for v in args])
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one.cpu(), other)
    # One forward, whose gradient is mapped.
    back = torch.func.vjp(lambda x: ours(x, on[1], w.to(x), b.to(x)), on[0])[1]
    want_back = torch.func.vjp(lambda x: theirs(x, r, w, b), x)[1]
    cotangents = torch.stack([on[2], on[3]])
    torch.testing.assert_close(
        torch.func.vmap(back)(cotangents)[0].cpu(), torch.func.vmap(want_back)(cotangents.cpu())[0]
    )


def test_an_activation_that_there_is_not(backend):
    x = torch.randn(4, 3, device=backend.device)
    with pytest.raises(
        ValueError, match=r"activation must be 'relu', 'leaky_relu', 'elu', .* or 'identity', but got 'swish'"
    ):
        fastnn.functional.batch_norm_relu(x, None, None, training=True, activation="swish")
    with pytest.raises(RuntimeError, match=r"residual must be like input.*\[4, 3\].*got.*\[4, 1\]"):
        fastnn.functional.batch_norm_add_relu(x, x[:, :1], None, None, training=True)
    with pytest.raises(ValueError, match="activation must be one of relu"):
        fastnn.nn.BatchNormReLU2d(3, activation="swish")


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
        names = [name for name in case.differentiable if name in inputs]
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
