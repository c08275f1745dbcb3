"""group_norm and instance_norm against the float64 oracle: values, gradients, statistics; what torch's do."""

from __future__ import annotations

import pytest
import torch
from op_tester import (
    OpRecorder,
    check_format_kept,
    check_gradient_subsets,
    check_repeatable,
    check_second_derivatives,
    check_values_and_gradients,
    grid,
    same_bits,
)

import fastnn
from fastnn.testing.cases import GROUP_NORM, INSTANCE_NORM, generator_for, lay_out

GROUP, INSTANCE = ({case.id: case for case in table} for table in (GROUP_NORM, INSTANCE_NORM))
NATIVE = ["contiguous", "channels_last"]


@grid(GROUP_NORM)
def test_values_and_gradients(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid(INSTANCE_NORM)
def test_values_and_gradients_of_instances(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid(
    [GROUP[n] for n in ("4d", "5d", "channels_64", "channels_131", "large_plane")] + [INSTANCE["track"]],
    dtypes=[torch.float32, torch.bfloat16],
    layouts=NATIVE,
)
def test_format_and_bits_are_kept(case, dtype, layout, backend):
    check_format_kept(case, dtype, layout, backend.device)
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=backend.name == "cpu")


@pytest.mark.parametrize("shape, groups", [((1, 48, 40, 41), 1), ((1, 48, 40, 41), 48), ((9, 16, 30, 31), 4)], ids=str)
@pytest.mark.parametrize("layout", NATIVE)
def test_threads_share_what_is_large(shape, groups, layout):
    """Chunks of one group, and whole tasks, by one thread and by two."""
    x = lay_out(torch.randn(shape, generator=generator_for("threads", shape)), layout).requires_grad_()
    weight, bias = (torch.randn(shape[1]).requires_grad_() for _ in "wb")
    cotangent = torch.randn(shape, generator=generator_for("cotangent", shape))

    def results():
        y = fastnn.functional.group_norm(x, groups, weight, bias)
        return y.detach(), *torch.autograd.grad(y, (x, weight, bias), cotangent)

    one = results()
    torch.set_num_threads(2)
    assert all(same_bits(a, b) for a, b in zip(one, results(), strict=True))
    reference = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    want = torch.nn.functional.group_norm(reference[0], groups, *reference[1:])
    torch.testing.assert_close(one[0].double(), want, rtol=1e-4, atol=1e-5)
    for got, gradient in zip(one[1:], torch.autograd.grad(want, reference, cotangent.double()), strict=True):
        torch.testing.assert_close(got.double(), gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


@grid([GROUP["4d"], GROUP["channels_64"], INSTANCE["4d"]], dtypes=[torch.float32], layouts=None)
def test_gradient_subsets(case, dtype, backend):
    check_gradient_subsets(case, dtype, backend.device)


@grid(
    [GROUP[n] for n in ("4d", "2d", "3d", "one_group", "no_affine", "batch_0")]
    + [INSTANCE[n] for n in ("4d", "3d", "no_affine", "eval")],
    dtypes=[torch.float64, torch.float32, torch.bfloat16],
    layouts=[*NATIVE, "sliced"],
)
def test_second_derivatives(case, dtype, layout, backend):
    check_second_derivatives(case, dtype, layout, backend.device)


@pytest.mark.parametrize("wanted", ["input", "weight", "bias"])
def test_unneeded_gradients_are_not_computed(wanted, backend):
    inputs = GROUP["4d"].make_inputs(torch.float32, backend.device, "contiguous", generator_for("wanted"))
    for name, tensor in inputs.items():
        tensor.requires_grad_(name == wanted)
    (out,) = GROUP["4d"].apply(fastnn.functional, inputs)
    with OpRecorder() as recorder:
        out.sum().backward()
    (call,) = recorder.named("group_norm_backward")
    assert list(call["output_mask"]) == [wanted == name for name in ("input", "weight", "bias")]


@pytest.mark.parametrize("layout", NATIVE)
@pytest.mark.parametrize("centre", [1e4, -1e5])
def test_variance_at_a_large_mean(centre, layout, backend):
    """E[x^2] - E[x]^2 in float32 would be wrong by about centre^2 * 6e-8; means that differ by channel are no error."""
    generator = generator_for("large mean")
    x = centre + torch.arange(8.0).view(8, 1, 1) + torch.randn(2, 8, 9, 11, generator=generator)
    y = fastnn.functional.group_norm(lay_out(x, layout).to(backend.device), 2).cpu().double()
    want = torch.nn.functional.group_norm(x.double(), 2)
    torch.testing.assert_close(y, want, rtol=0, atol=abs(centre) * 2**-22)


@pytest.mark.parametrize("layout", NATIVE)
def test_running_statistics_are_the_samples_average(layout, backend):
    x = torch.randn(4, 3, 5, 6, generator=generator_for("average"))
    mean, var = torch.zeros(6, device=backend.device)[::2], torch.ones(6, device=backend.device)[::2]
    fastnn.functional.instance_norm(lay_out(x, layout).to(backend.device), mean, var, momentum=0.25)
    each = x.double().flatten(2)
    torch.testing.assert_close(mean.cpu().double(), 0.25 * each.mean(2).mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var.cpu().double(), 0.75 + 0.25 * each.var(2).mean(0), rtol=1e-5, atol=1e-6)


def test_tangents_and_transforms(backend):
    generator = generator_for("group transforms")
    x, t, g = (torch.randn(3, 6, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    w, b, dw = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(3))

    def both(function):
        def on(namespace, device):
            def norm(x, w, b):
                return namespace.group_norm(x, 3, w, b)

            return function(norm, *(v.to(device) for v in (x, t, g, w, b, dw)))

        got, want = on(fastnn.functional, backend.device), on(torch.nn.functional, "cpu")
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one.cpu(), other)

    def gradients(f, g):
        return torch.func.grad(lambda x, w, b: (f(x, w, b) * g).sum(), argnums=(0, 1, 2))

    jvp, vmap = torch.func.jvp, torch.func.vmap
    both(lambda f, x, t, g, w, b, dw: jvp(f, (x, w, b), (t, dw, b)))
    both(lambda f, x, t, g, w, b, dw: jvp(gradients(f, g), (x, w, b), (t, dw, b))[1])
    both(lambda f, x, t, g, w, b, dw: (vmap(f, (0, None, None))(torch.stack([x, t, g]), w, b),))
    both(
        lambda f, x, t, g, w, b, dw: vmap(gradients(f, g), (2, None, 0))(
            torch.stack([x, t], 2), w, torch.stack([b, dw])
        )
    )
    both(lambda f, x, t, g, w, b, dw: (vmap(lambda v: jvp(f, (x, w, b), (v, dw, b))[1])(torch.stack([t, g])),))


def test_instance_norm_under_vmap(backend):
    x = torch.randn(3, 2, 4, 5, generator=generator_for("vmap")).to(backend.device)
    mean, var = torch.zeros(3, 4, device=backend.device), torch.ones(3, 4, device=backend.device)

    def norm(x, mean, var):
        return fastnn.functional.instance_norm(x, mean, var)

    y = torch.func.vmap(norm)(x, mean, var)
    for i in range(3):
        m, v = torch.zeros(4), torch.ones(4)
        torch.testing.assert_close(y[i].cpu(), torch.nn.functional.instance_norm(x[i].cpu(), m, v))
        torch.testing.assert_close((mean[i].cpu(), var[i].cpu()), (m, v))
    with pytest.raises(RuntimeError, match="running statistics, which training updates in place, are not"):
        torch.func.vmap(norm, (0, None, None))(x, mean[0], var[0])


def test_an_empty_batch_of_instances_moves_nothing(backend):
    mean, var = torch.randn(3, device=backend.device), torch.rand(3, device=backend.device)
    before = mean.clone(), var.clone()
    x = torch.randn(0, 3, 4, device=backend.device, requires_grad=True)
    y = fastnn.functional.instance_norm(x, mean, var)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y.shape == grad.shape == x.shape and torch.equal(mean, before[0]) and torch.equal(var, before[1])


def test_bad_arguments():
    group, instance = fastnn.functional.group_norm, fastnn.functional.instance_norm
    x = torch.randn(2, 6, 4)
    with pytest.raises(RuntimeError, match=r"divisible by num_groups.*\[2, 6, 4\].*num_groups=4"):
        group(x, 4)
    with pytest.raises(RuntimeError, match="num_groups=0"):
        group(x, 0)
    with pytest.raises(RuntimeError, match="at least 2 dimensions"):
        group(torch.randn(6), 2)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        group(torch.randn(1, 6), 6)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        instance(torch.randn(2, 6, 1))
    with pytest.raises(RuntimeError, match="weight should contain 6 elements"):
        group(x, 2, torch.randn(5))
    with pytest.raises(RuntimeError, match="when use_input_stats is false"):
        instance(x, use_input_stats=False)
    with pytest.raises(RuntimeError, match="running_var should contain 6 elements"):
        instance(x, torch.zeros(6), torch.zeros(4))
    with pytest.raises(NotImplementedError, match="input has dtype Long"):
        group(torch.ones(4, 3, 2, dtype=torch.int64), 3)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(group(x, 2).pow(2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        second.sum().backward()
