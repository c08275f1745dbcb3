"""conv2d with an activation in the same pass: what every kernel stores is the activation of its own result."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conv_cases import DEPTHWISE, HOPPER_CASES, MANY_CHANNELS, PRODUCTS, SMALL_GROUPS
from op_tester import grid, make_inputs
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from fastnn import functional as F
from fastnn._fusable import activate
from fastnn.testing import reference
from fastnn.testing.cases import CONV2D, Conv2dCase, generator_for, lay_out
from fastnn.testing.emulation import emulated_cuda, played_device

ACTIVATIONS = [("relu", None), ("leaky_relu", 0.25), ("leaky_relu", None), ("elu", 0.75), ("identity", None)]
CURVES = [
    ("softplus", 1.5),
    *((name, None) for name in ("sigmoid", "tanh", "hard_sigmoid", "gelu", "gelu_tanh", "silu")),
]
BY_ID = {case.id: case for case in CONV2D}
# Staged rows, depthwise rows past the caches and in pairs, sums by pairs of bfloat16, k split: by each backend's plan.
FEW_CHANNELS = [
    Conv2dCase(id="few_channels_" + name, shape=shape, filters=filters, kernel=kernel, small=True, **options)
    for name, shape, filters, kernel, options in (
        ("first_layer", (2, 3, 30, 50), 64, (7, 7), {"stride": 2, "padding": 3}),
        ("digits", (5, 1, 8, 8), 32, (5, 5), {"padding": 2}),
        ("odd", (2, 4, 9, 21), 37, (3, 5), {"stride": (1, 3), "padding": (2, 1), "dilation": (2, 1)}),
        ("bands", (1, 16, 70, 70), 10, (3, 3), {"padding": 1}),
        ("many_steps", (1, 2, 3, 300), 5, (1, 130), {}),
    )
]
EVERY_KERNEL = [
    *[c for c in CONV2D if c.groups < 10 and not c.crosses_tile and "large" not in c.id][::2],
    *FEW_CHANNELS,
    *MANY_CHANNELS[::2],
    *PRODUCTS[::3],
    *HOPPER_CASES[::3],
    *DEPTHWISE[::2],
    *SMALL_GROUPS[::3],
]


def activated(z, name, alpha):
    """By torch, of the stored value."""
    return z if name == "identity" else activate(z, (name, F.ACTIVATIONS[name] if alpha is None else alpha))


def convolve(case, inputs, **activation):
    call = F.conv2d_relu if activation else F.conv2d
    return call(inputs["input"], inputs["weight"], inputs.get("bias"), **case.options, **activation)


def check_activation(case, dtype, layout, device, name, alpha):
    inputs = {key: t.detach() for key, t in make_inputs(case, dtype, layout, device).items()}
    z = convolve(case, inputs)
    y = convolve(case, inputs, activation=name, alpha=alpha)
    assert y.stride() == z.stride()
    want = activated(z, name, alpha)
    if name == "elu":  # the exponential is not torch's
        torch.testing.assert_close(y, want, equal_nan=True)
        assert torch.equal(y[z > 0], z[z > 0])
    elif name not in ("relu", "leaky_relu", "identity"):
        torch.testing.assert_close(y, want, equal_nan=True)
    else:
        torch.testing.assert_close(y, want, rtol=0, atol=0, equal_nan=True)


@grid(EVERY_KERNEL, dtypes=[torch.float32, torch.bfloat16], layouts=["contiguous", "channels_last"])
def test_the_activation_of_the_same_bits(case, dtype, layout, backend):
    check_activation(case, dtype, layout, backend.device, "leaky_relu", 0.25)


@pytest.mark.parametrize(("name", "alpha"), CURVES)
@grid(
    [BY_ID["3x3"], *HOPPER_CASES[:1], *DEPTHWISE[:1]], dtypes=[torch.float32, torch.bfloat16], layouts=["channels_last"]
)
def test_each_curve(case, dtype, layout, name, alpha, backend):
    check_activation(case, dtype, layout, backend.device, name, alpha)


@pytest.mark.parametrize(("name", "alpha"), ACTIVATIONS)
@grid(
    [BY_ID["3x3"], BY_ID["groups_2"], *FEW_CHANNELS[1:2], *HOPPER_CASES[:1], *DEPTHWISE[::9]],
    layouts=["contiguous", "channels_last", "sliced"],
)
def test_each_activation(case, dtype, layout, name, alpha, backend):
    check_activation(case, dtype, layout, backend.device, name, alpha)


@grid(PRODUCTS[::3], dtypes=[torch.float16], layouts=["channels_last"])
def test_tensor_cores_before_hopper(case, dtype, layout):
    with emulated_cuda(), played_device(compute_capability=80):
        check_activation(case, dtype, layout, torch.device("cpu"), "leaky_relu", 0.25)


@pytest.mark.parametrize("shape", [(2, 6, 40, 40, 3), (40, 512, 14, 14, 3)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_depthwise_results_beyond_the_caches(shape, layout):
    """Without an activation the CPU stores the larger ones past the caches."""
    *shape, kernel = shape
    case = Conv2dCase(
        id="large_depthwise",
        shape=tuple(shape),
        filters=shape[1],
        kernel=(kernel, kernel),
        groups=shape[1],
        padding=kernel // 2,
    )
    check_activation(case, torch.float32, layout, torch.device("cpu"), "relu", None)


@pytest.mark.parametrize(("name", "alpha"), ACTIVATIONS + CURVES)
@pytest.mark.parametrize("case", [BY_ID["3x3"], BY_ID["stride_2"], BY_ID["depthwise"]], ids=str)
def test_derivatives(case, name, alpha, backend):
    inputs = make_inputs(case, torch.float64, "contiguous", backend.device)

    def call(*tensors):
        return convolve(case, dict(zip(inputs, tensors, strict=True)), activation=name, alpha=alpha)

    # Away from the kinks, where differences would straddle them.
    bias = inputs["bias"].detach() + 0.013
    leaves = [*list(inputs.values())[:2], bias.requires_grad_()]
    assert gradcheck(call, leaves, fast_mode=True, check_forward_ad=True, eps=1e-7, atol=1e-4)
    assert gradgradcheck(call, leaves, fast_mode=True, eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "alpha"), ACTIVATIONS[:2])
def test_gradients_are_those_of_the_two_calls(name, alpha, dtype, backend):
    case = BY_ID["groups_2"]
    inputs = make_inputs(case, dtype, "channels_last", backend.device)
    fused = convolve(case, inputs, activation=name, alpha=alpha)
    apart = activated(convolve(case, inputs), name, alpha)
    cotangent = lay_out(torch.randn(fused.shape, generator=generator_for("cotangent")).to(fused), "channels_last")
    leaves = list(inputs.values())
    for got, want in zip(
        torch.autograd.grad(fused, leaves, cotangent), torch.autograd.grad(apart, leaves, cotangent), strict=True
    ):
        assert torch.equal(got, want)


def test_what_is_kept_is_the_output_and_the_operands(backend):
    kept = []
    inputs = make_inputs(BY_ID["3x3"], torch.float32, "contiguous", backend.device)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        y = convolve(BY_ID["3x3"], inputs, activation="relu")
    assert sorted(kept) == sorted([inputs["input"].data_ptr(), inputs["weight"].data_ptr(), y.data_ptr()])


def test_an_output_changed_in_place_is_an_error(backend):
    inputs = make_inputs(BY_ID["3x3"], torch.float32, "contiguous", backend.device)
    y = convolve(BY_ID["3x3"], inputs, activation="relu")
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(("name", "alpha"), ACTIVATIONS + CURVES)
def test_nan_and_infinities_go_through(name, alpha, backend):
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.0, -1.0, 0.0, -0.0], device=backend.device)
    x = x.view(-1, 1, 1, 1)
    y = F.conv2d_relu(x, torch.ones(1, 1, 1, 1, device=backend.device), activation=name, alpha=alpha)
    # Not torch's: its vectors make NaN of GELU at inf, its single numbers inf.
    want = reference.activation(x.double(), name, F.ACTIVATIONS[name] if alpha is None else alpha).float()
    torch.testing.assert_close(y, want, rtol=1e-6, atol=0, equal_nan=True)


def test_other_arguments_are_those_of_conv2d(backend):
    x, w = torch.randn(3, 8, 9, device=backend.device), torch.randn(4, 3, 3, 3, device=backend.device)
    for options in ({"padding": "same"}, {"padding": "valid", "stride": 2}, {"padding": (1, 2), "dilation": 2}):
        assert torch.equal(F.conv2d_relu(x, w, **options), torch.relu(F.conv2d(x, w, **options)))


def test_under_vmap_and_jvp(backend):
    x, w = torch.randn(3, 2, 4, 6, 6, device=backend.device), torch.randn(3, 5, 4, 3, 3, device=backend.device)
    for dims, args in (((0, None), (x, w[0])), ((0, 0), (x, w))):
        out = torch.func.vmap(F.conv2d_relu, dims)(*args)
        single = torch.stack([F.conv2d_relu(args[0][i], w[i] if dims[1] == 0 else w[0]) for i in range(3)])
        torch.testing.assert_close(out, single)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x[0], torch.ones_like(x[0]))
        _, tangent = forward_ad.unpack_dual(F.conv2d_relu(dual, w[0]))
    torch.testing.assert_close(tangent, F.conv2d(torch.ones_like(x[0]), w[0]) * (F.conv2d(x[0], w[0]) > 0))


def test_opcheck_and_compile():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    w, b = torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    options = ([1, 1], [1, 1, 1, 1], [1, 1], 1)
    for name, alpha in (("relu", 0.0), ("leaky_relu", 0.25), ("elu", 1.0), ("gelu", 0.0)):
        torch.library.opcheck(torch.ops.fastnn.convolution.default, (x, w, b, *options, name, alpha))
    compiled = torch.compile(lambda x, w, b: F.conv2d_relu(x, w, b, padding=1, activation="elu"), fullgraph=True)
    torch.testing.assert_close(compiled(x, w, b), F.conv2d_relu(x, w, b, padding=1, activation="elu"))


def test_autocast_computes_in_the_lower_type(backend):
    x, w = torch.randn(2, 3, 8, 8, device=backend.device), torch.randn(4, 3, 3, 3, device=backend.device)
    with torch.autocast(backend.device.type, torch.bfloat16):
        y = F.conv2d_relu(x, w)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, torch.relu(F.conv2d(x, w)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"activation": "swish"},
            "conv2d: activation must be 'relu', 'leaky_relu', 'elu', .* 'silu' or 'identity', but got 'swish'",
        ),
        ({"activation": "leaky_relu", "alpha": -0.5}, "conv2d: alpha must be at least 0.*alpha=-0.5"),
        ({"activation": "elu", "alpha": float("nan")}, "conv2d: alpha must be at least 0.*alpha=nan"),
    ],
)
def test_errors(options, message, backend):
    x, w = torch.randn(2, 3, 8, 8, device=backend.device), torch.randn(4, 3, 3, 3, device=backend.device)
    with pytest.raises(ValueError, match=message):
        F.conv2d_relu(x, w, **options)
    with pytest.raises(ValueError, match=message):
        F.conv2d_relu(x.to("meta"), w.to("meta"), **options)


def test_one_kernel_serves_a_case_with_and_without():
    """No second pass in the emulated kernels: as many launches as without the activation."""
    from fastnn.testing.access_profile import access_profile

    for case in (BY_ID["3x3"], *MANY_CHANNELS[:2], *DEPTHWISE[:2], *HOPPER_CASES[:1]):
        inputs = make_inputs(dataclasses.replace(case), torch.bfloat16, "channels_last", torch.device("cpu"))
        names = []
        with emulated_cuda():
            for activation in ({}, {"activation": "relu"}, {"activation": "gelu"}):
                with access_profile() as kernels:
                    convolve(case, {k: t.detach() for k, t in inputs.items()}, **activation)
                names.append([(k.name, k.launches) for k in kernels])
        assert names[0] == names[1] == names[2]
