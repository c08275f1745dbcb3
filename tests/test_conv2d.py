"""conv2d against the float64 oracle: every case, dtype and layout on every backend."""

from __future__ import annotations

import contextlib
import dataclasses
import re

import pytest
import torch
from conv_cases import DEPTHWISE, HOPPER, HOPPER_CASES, MANY_CHANNELS, PRODUCTS, SMALL_GROUPS, TALL_POSITIONS
from op_tester import (
    OpRecorder,
    assert_bounded,
    check_exact,
    check_format_kept,
    check_gradient_subsets,
    check_repeatable,
    check_second_derivatives,
    check_values_and_gradients,
    grid,
    make_inputs,
)

import fastnn
from fastnn.testing import bounds
from fastnn.testing.access_profile import access_profile
from fastnn.testing.cases import ALL_DTYPES, CONV2D, Conv2dCase, generator_for, lay_out
from fastnn.testing.emulation import emulated_cuda, played_device

BY_ID = {case.id: case for case in CONV2D}
# Channels and positions both more than one, or the two formats are the same strides.
DENSE = [c for c in CONV2D if len(c.shape) == 4 and min(c.shape) > 1 and c.values == "normal"]


@grid(CONV2D)
def test_values_and_gradients(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid([c for c in CONV2D if c.values == "integers"])
def test_integers_are_exact(case, dtype, layout, backend):
    check_exact(case, dtype, layout, backend.device)


@grid(DENSE, dtypes=[torch.float32, torch.bfloat16], layouts=["contiguous", "channels_last"])
def test_format_is_kept(case, dtype, layout, backend):
    check_format_kept(case, dtype, layout, backend.device)


@grid(
    [
        c
        for c in CONV2D
        if (c.crosses_tile and "of_66" not in c.id) or c.id in ("many_images", "stride_mixed", "first_layer")
    ],
    dtypes=[torch.float32, torch.bfloat16],
    layouts=["contiguous", "channels_last"],
)
def test_same_bits_on_repeat(case, dtype, layout, backend):
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=backend.name == "cpu")


@grid([BY_ID["3x3"], BY_ID["groups_3_uneven"], BY_ID["wide_everywhere"]], dtypes=[torch.float32], layouts=None)
def test_gradient_subsets(case, dtype, backend):
    check_gradient_subsets(case, dtype, backend.device)


@grid(
    [BY_ID[n] for n in ("3x3", "stride_mixed", "groups_2", "depthwise", "same_even", "unbatched", "batch_0")],
    layouts=["contiguous", "channels_last", "sliced"],
)
def test_second_derivatives(case, dtype, layout, backend):
    check_second_derivatives(case, dtype, layout, backend.device)


@pytest.mark.parametrize("wanted", ["input", "weight", "bias"])
def test_unneeded_gradients_are_not_computed(wanted, backend):
    inputs = make_inputs(BY_ID["3x3"], torch.float32, "contiguous", backend.device)
    for name, tensor in inputs.items():
        tensor.requires_grad_(name == wanted)
    (out,) = BY_ID["3x3"].apply(fastnn.functional, inputs)
    with OpRecorder() as recorder:
        out.sum().backward()
    called = {name for name, _ in recorder.calls}
    assert called == {f"convolution_grad_{wanted}"}


@pytest.mark.parametrize("which", ["input", "weight", "neither"])
def test_format_follows_input_or_weight(which, backend):
    x, w = torch.randn(2, 3, 6, 7, device=backend.device), torch.randn(5, 3, 3, 3, device=backend.device)
    if which == "input":
        x = x.contiguous(memory_format=torch.channels_last)
    if which == "weight":
        w = w.contiguous(memory_format=torch.channels_last)
    out = fastnn.functional.conv2d(x, w)
    expected = torch.contiguous_format if which == "neither" else torch.channels_last
    assert out.is_contiguous(memory_format=expected)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize(
    "layouts",
    [
        ("contiguous", "channels_last"),
        ("channels_last", "contiguous"),
        ("sliced", "channels_last"),
        ("channels_last", "transposed"),
        ("expanded", "contiguous"),
        ("transposed", "sliced"),
    ],
    ids="+".join,
)
def test_input_and_gradient_of_different_layouts(dtype, layouts, backend):
    case = BY_ID["groups_2"]
    inputs = make_inputs(case, dtype, layouts[0], backend.device)
    inputs["weight"] = lay_out(inputs["weight"].detach(), layouts[1]).requires_grad_()
    (out,) = case.apply(fastnn.functional, inputs)
    generator = generator_for("cotangent", layouts)
    cotangent = lay_out(torch.randn(out.shape, generator=generator).to(out), layouts[1])
    want = bounds.expected(case, inputs, [cotangent])
    assert_bounded(out, want.outputs[0], "output")
    for name, grad in zip(inputs, torch.autograd.grad(out, list(inputs.values()), cotangent), strict=True):
        assert_bounded(grad, want.gradients[name], f"gradient of {name}")


def test_gradient_expanded_from_a_sum(backend):
    """``out.sum().backward()`` gives a gradient with all strides 0."""
    case = BY_ID["stride_2"]
    inputs = make_inputs(case, torch.float32, "contiguous", backend.device)
    (out,) = case.apply(fastnn.functional, inputs)
    want = bounds.expected(case, inputs, [torch.ones_like(out)])
    for name, grad in zip(inputs, torch.autograd.grad(out.sum(), list(inputs.values())), strict=True):
        assert_bounded(grad, want.gradients[name], f"gradient of {name}")


def test_empty_batch_gives_zero_gradients(backend):
    inputs = make_inputs(BY_ID["batch_0"], torch.float32, "contiguous", backend.device)
    (out,) = BY_ID["batch_0"].apply(fastnn.functional, inputs)
    assert out.shape == (0, 4, 5, 5)
    out.sum().backward()
    assert inputs["input"].grad.shape == (0, 3, 5, 5)
    assert torch.equal(inputs["weight"].grad, torch.zeros_like(inputs["weight"]))
    assert torch.equal(inputs["bias"].grad, torch.zeros_like(inputs["bias"]))


@pytest.mark.parametrize("index", range(12))
def test_group_order_is_visible(index, backend):
    """Filter ``index`` alone is not zero: its own group's channels alone come through, at its own place."""
    groups, filters = 4, 12
    x = torch.randn(2, 8, 5, 5, device=backend.device)
    w = torch.zeros(filters, 2, 1, 1, device=backend.device)
    w[index] = torch.tensor([2.0, -3.0], device=backend.device)[:, None, None]
    out = fastnn.functional.conv2d(x, w, groups=groups)
    first = index // (filters // groups) * 2
    expected = torch.zeros_like(out)
    expected[:, index] = 2.0 * x[:, first] - 3.0 * x[:, first + 1]
    assert torch.allclose(out, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(out == 0, expected == 0)


@pytest.mark.parametrize("place", [(0, 0), (0, 9), (8, 0), (8, 9), (4, 5)], ids=str)
def test_an_impulse_gives_the_flipped_filter(place, backend):
    """Orientation, padding and the image's borders, each visible: distinct taps, one nonzero pixel."""
    w = torch.arange(1.0, 13.0, device=backend.device).view(1, 1, 3, 4)
    x = torch.zeros(1, 1, 9, 10, device=backend.device)
    x[0, 0, place[0], place[1]] = 1.0
    out = fastnn.functional.conv2d(x, w, padding=(1, 2))
    expected = torch.zeros_like(out)
    for r in range(3):
        for s in range(4):
            i, j = place[0] + 1 - r, place[1] + 2 - s
            if 0 <= i < out.shape[2] and 0 <= j < out.shape[3]:
                expected[0, 0, i, j] = w[0, 0, r, s]
    assert torch.equal(out, expected)


def test_case_ids_are_unique():
    assert len(BY_ID) == len(CONV2D)
    assert all(isinstance(case, Conv2dCase) for case in CONV2D)


@grid(DEPTHWISE, layouts=["contiguous", "channels_last", "sliced"])
def test_depthwise_variants(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_depthwise_skips_padding(kernel, stride, layout):
    """On CUDA a weight that is not finite meets the values of the tensor and no padding."""
    x = lay_out(torch.ones(1, 4, 9, 10), layout)
    w = torch.ones(4, 1, kernel, kernel)
    w[:, :, 0, 0] = float("inf")
    pad = kernel // 2
    with emulated_cuda():
        out = fastnn.functional.conv2d(x, w, stride=stride, padding=pad, groups=4)
    rows = torch.arange(out.shape[2]) * stride - pad >= 0
    columns = torch.arange(out.shape[3]) * stride - pad >= 0
    infinite = (rows[:, None] & columns).expand(out.shape)
    assert torch.equal(out.isinf(), infinite)
    assert not out.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", DEPTHWISE[::3], ids=str)
def test_depthwise_at_any_address_gives_the_same_bits(case, layout, dtype, backend):
    """One element past an aligned address: slower, and not a bit else."""

    def shifted(tensor):
        dense = tensor.detach()
        storage = torch.zeros(dense.numel() + 1, dtype=dtype, device=backend.device)
        return storage[1:].as_strided(dense.shape, dense.stride(), 1).copy_(dense)

    def run(inputs):
        leaves = [t.requires_grad_() for t in inputs.values()]
        (out,) = case.apply(fastnn.functional, dict(zip(inputs, leaves, strict=True)))
        return out, *torch.autograd.grad(out, leaves, torch.cos(out.detach() * 3))

    inputs = {name: t.detach() for name, t in make_inputs(case, dtype, layout, backend.device).items()}
    for got, want in zip(run({n: shifted(t) for n, t in inputs.items()}), run(inputs), strict=True):
        assert torch.equal(got, want)


@grid(SMALL_GROUPS, layouts=["contiguous", "channels_last", "sliced"])
def test_small_groups(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid(
    [*DEPTHWISE[::3], *SMALL_GROUPS[::3]],
    dtypes=[torch.float32, torch.bfloat16],
    layouts=["contiguous", "channels_last"],
)
def test_depthwise_and_small_groups_give_the_same_bits_in_any_order(case, dtype, layout, backend):
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=backend.name == "cpu")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_small_groups_keep_what_is_not_finite(layout, backend):
    """NaN in one group reaches no other; a weight that is not finite meets no padding."""
    x = torch.ones(1, 16, 6, 7)
    x[:, 5] = float("nan")
    w = torch.ones(16, 4, 3, 3)
    out = fastnn.functional.conv2d(lay_out(x, layout).to(backend.device), w.to(backend.device), padding=1, groups=4)
    nan = out.isnan().flatten(2).any(2)[0]
    assert nan.tolist() == [4 <= k < 8 for k in range(16)]


FEW_CHANNELS = [
    # shape, filters, kernel, options
    ((2, 3, 30, 50), 64, (7, 7), {"stride": 2, "padding": 3}),  # positions as columns where channels are planes
    ((2, 3, 31, 33), 32, (3, 3), {"stride": 2, "padding": 1}),
    ((2, 3, 40, 40), 64, (11, 11), {"stride": 4, "padding": 2}),  # a reduction of two blocks
    ((3, 1, 28, 28), 6, (5, 5), {}),
    ((3, 6, 14, 14), 16, (5, 5), {}),
    ((5, 1, 8, 8), 32, (5, 5), {"padding": 2}),
    ((2, 4, 9, 21), 37, (3, 5), {"stride": (1, 3), "padding": (2, 1), "dilation": (2, 1)}),
    ((2, 2, 6, 6), 3, (3, 3), {"padding": 4}),  # grad_input sees less than grad_output
    ((1, 3, 9, 1100), 20, (7, 5), {"padding": 2}),  # bands narrower than the image
    ((1, 16, 70, 70), 10, (3, 3), {"padding": 1}),
    ((1, 16, 5, 6), 9, (1, 1), {}),
    ((1, 2, 5, 730), 5, (1, 700), {}),  # more steps than a table has
]


@pytest.mark.parametrize(
    "layouts", ["contiguous contiguous", "channels_last channels_last", "contiguous channels_last"]
)
@pytest.mark.parametrize(("shape", "filters", "kernel", "options"), FEW_CHANNELS)
def test_few_channels(backend, shape, filters, kernel, options, layouts):
    """Each way in which a convolution of few channels is computed, on its edges, against float64."""
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(s, generator=generator) for s in (shape, (filters, shape[1], *kernel), (filters,)))
    exact = [t.double().requires_grad_() for t in (x, w, b)]
    expected = torch.nn.functional.conv2d(*exact, **options)
    cotangent = torch.randn(expected.shape, generator=generator)
    wanted = [expected, *torch.autograd.grad(expected, exact, cotangent.double())]
    forms = [torch.channels_last if name == "channels_last" else torch.contiguous_format for name in layouts.split()]
    mine = [x.to(backend.device, memory_format=forms[0]), w.to(backend.device, memory_format=forms[1])]
    mine = [t.requires_grad_() for t in (*mine, b.to(backend.device))]
    actual = fastnn.functional.conv2d(*mine, **options)
    grads = torch.autograd.grad(actual, mine, cotangent.to(backend.device, memory_format=forms[0]))
    for got, want in zip([actual, *grads], wanted, strict=True):
        torch.testing.assert_close(got.detach().cpu().double(), want.detach(), rtol=1e-4, atol=4e-4)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("shape", "filters", "kernel", "options"),
    [((8, 3, 64, 64), 64, (7, 7), {"stride": 2, "padding": 3}), ((40, 6, 14, 14), 16, (5, 5), {})],
)
def test_few_channels_give_the_same_bits(shape, filters, kernel, options, layout):
    """On the CPU, for 1, 2 and 4 threads; and, but for the weight's gradient, for a sample alone."""
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).contiguous(memory_format=form)
    w = torch.randn(filters, shape[1], *kernel, generator=generator)

    def run(images, cotangent=None):
        leaves = [images.detach().requires_grad_(), w.detach().requires_grad_()]
        out = fastnn.functional.conv2d(*leaves, **options)
        cotangent = torch.cos(out.detach() * 7) if cotangent is None else cotangent
        return out.detach(), *torch.autograd.grad(out, leaves, cotangent)

    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(run(x))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    out, grad_x, _ = run(x[3:4])
    assert torch.equal(out, results[0][0][3:4])
    assert torch.equal(grad_x, results[0][1][3:4])


@grid(
    MANY_CHANNELS,
    dtypes=[torch.float32, torch.bfloat16],
    layouts=["contiguous", "channels_last", "transposed", "sliced"],
)
def test_many_channels(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)
    check_repeatable(case, dtype, layout, backend.device, [], threads=backend.name == "cpu")


@grid(
    PRODUCTS,
    dtypes=[torch.float32, torch.float16, torch.bfloat16],
    layouts=["contiguous", "channels_last", "transposed", "sliced", "expanded"],
)
def test_products(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@pytest.mark.parametrize("strides", ["sliced", "transposed"])
@pytest.mark.parametrize("case", [c for c in PRODUCTS if "large" not in c.id], ids=str)
def test_products_of_halves_with_any_strides(case, strides, backend):
    check_values_and_gradients(case, torch.bfloat16, strides, backend.device)


@grid(PRODUCTS, dtypes=[torch.float32], layouts=["contiguous", "channels_last", "sliced"])
def test_tf32_where_it_is_allowed(case, dtype, layout, backend):
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True), bounds.tf32_products():
        check_values_and_gradients(case, dtype, layout, backend.device)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("dtype", "shape", "filters"),
    [(torch.float32, (17, 528, 32, 32), 16), (torch.bfloat16, (13, 1040, 32, 32), 64)],
    ids=["float32", "bfloat16"],
)
def test_a_sample_whose_k_is_split_has_the_bits_of_a_batch_whose_k_is_not(dtype, shape, filters, layout, backend):
    """On devices before Hopper; test_hopper_samples_whose_k_is_split has the others."""
    generator = torch.Generator().manual_seed(0)
    x = lay_out(torch.randn(shape, generator=generator).to(dtype), layout).to(backend.device)
    w = torch.randn(filters, shape[1], 1, 1, generator=generator).to(dtype).to(backend.device)
    emulated = backend.name == "emulated"
    with played_device(compute_capability=80) if emulated else contextlib.nullcontext():
        whole = fastnn.functional.conv2d(x, w)
        with access_profile() if emulated else contextlib.nullcontext([]) as kernels:
            alone = fastnn.functional.conv2d(lay_out(x[3:4].clone(), layout), w)
    assert any(k.name == "conv_sum_splits_kernel" for k in kernels) == emulated
    assert torch.equal(alone, whole[3:4])


@grid(HOPPER_CASES, dtypes=[torch.float16, torch.bfloat16], layouts=["channels_last"])
def test_hopper(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid(HOPPER_CASES, dtypes=[torch.float32], layouts=["channels_last"])
def test_hopper_tf32(case, dtype, layout, backend):
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True), bounds.tf32_products():
        check_values_and_gradients(case, dtype, layout, backend.device)


@grid(
    [dataclasses.replace(case, values="integers") for case in HOPPER_CASES],
    dtypes=[torch.bfloat16],
    layouts=["channels_last"],
)
def test_hopper_is_exact_with_integers(case, dtype, layout, backend):
    check_exact(case, dtype, layout, backend.device)


@grid(HOPPER_CASES, dtypes=[torch.bfloat16], layouts=["channels_last"])
def test_hopper_gives_the_same_bits_in_any_order(case, dtype, layout, backend):
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=False)


@grid(
    [c for c in [*MANY_CHANNELS, *PRODUCTS, *HOPPER_CASES, *DEPTHWISE, *SMALL_GROUPS] if c.shape[0] > 1],
    dtypes=[torch.float32, torch.bfloat16],
    layouts=["contiguous", "channels_last"],
)
def test_a_sample_alone_has_the_bits_of_its_batch(case, dtype, layout, backend):
    inputs = make_inputs(case, dtype, layout, backend.device)
    (out,) = case.apply(fastnn.functional, inputs)
    cotangent = lay_out(torch.randn(out.shape, generator=generator_for("cotangent", case.id)).to(out), layout)
    (grad,) = torch.autograd.grad(out, inputs["input"], cotangent)
    alone = {**inputs, "input": lay_out(inputs["input"].detach()[1:2].clone(), layout).requires_grad_()}
    (out_alone,) = case.apply(fastnn.functional, alone)
    (grad_alone,) = torch.autograd.grad(out_alone, alone["input"], lay_out(cotangent[1:2].clone(), layout))
    assert torch.equal(out_alone, out[1:2])
    assert torch.equal(grad_alone, grad[1:2])


def kernels_of(call):
    """The names of the Hopper kernels that the emulator runs, without what all begin with, and the call's result."""
    with access_profile() as kernels:
        result = call()
    prefix = "conv_wgmma_"
    names = [k.name.removeprefix(prefix) for k in kernels if k.name.startswith(prefix) and k.name[-6:] != "kernel"]
    return names, result


@pytest.mark.parametrize(("case", "kernels"), HOPPER, ids=[case.id for case in HOPPER_CASES])
def test_each_hopper_kernel_has_a_case(case, kernels):
    inputs = make_inputs(case, torch.bfloat16, "channels_last", "cpu")
    with emulated_cuda():
        forward, (out,) = kernels_of(lambda: case.apply(fastnn.functional, inputs))
        cotangent = lay_out(torch.ones_like(out), "channels_last")
        used = [forward]
        for name in ("input", "weight"):
            names, _ = kernels_of(lambda n=name: torch.autograd.grad(out, inputs[n], cotangent, retain_graph=True))
            used.append(names)
    assert used == [[kernel] for kernel in kernels]


@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_hopper_samples_whose_k_is_split(direction, backend):
    """They have the bits that they have in a batch so large that k is not split."""
    generator = torch.Generator().manual_seed(0)
    filters, channels = (72, 2048) if direction == "forward" else (2048, 72)
    batch = torch.randn(24, 2048, 4, 3, generator=generator).bfloat16().to(backend.device)
    w = lay_out(
        torch.randn(filters, channels, 1, 1, generator=generator).bfloat16().to(backend.device), "channels_last"
    )

    def run(x):
        x = lay_out(x, "channels_last")
        if direction == "forward":
            return fastnn.functional.conv2d(x, w)
        size = (x.shape[0], channels, 4, 3)
        return torch.ops.fastnn.convolution_grad_input(x, w, size, (1, 1), (0, 0, 0, 0), (1, 1), 1, True)

    if backend.name == "emulated":
        for images, splits in ((1, True), (24, False)):
            with access_profile() as kernels:
                run(batch[:images])
            assert any(k.name == "conv_sum_splits_kernel" for k in kernels) == splits
    assert torch.equal(run(batch[3:4]), run(batch)[3:4])


def test_the_tall_tile_of_hopper_weight_gradients(backend):
    """It pays for long sums, which the emulator takes seconds for: the weight's gradient alone."""
    generator = torch.Generator().manual_seed(0)
    shape, filters = (3, 64, 66, 76), 136
    x = lay_out(torch.randint(-4, 5, shape, generator=generator).bfloat16(), "channels_last").to(backend.device)
    grad = lay_out(torch.randint(-4, 5, (3, filters, 66, 74), generator=generator).bfloat16(), "channels_last")
    grad = grad.to(backend.device)

    def call():
        return torch.ops.fastnn.convolution_grad_weight(
            x, grad, (filters, 64, 1, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1, True
        )

    names, result = kernels_of(call) if backend.name == "emulated" else ([TALL_POSITIONS], call())
    assert names == [TALL_POSITIONS]
    expected = torch.nn.grad.conv2d_weight(x.float(), (filters, 64, 1, 3), grad.float())
    assert torch.equal(result, expected.bfloat16())


@pytest.mark.parametrize("stride", [1, 2])
def test_hopper_in_three_dimensions(stride, backend):
    generator = torch.Generator().manual_seed(0)
    form = torch.channels_last_3d
    x = torch.randint(-4, 5, (2, 24, 5, 6, 7), generator=generator).to(backend.device, torch.bfloat16)
    w = torch.randint(-4, 5, (80, 24, 3, 2, 3), generator=generator).to(backend.device, torch.bfloat16)
    leaves = [t.contiguous(memory_format=form).requires_grad_() for t in (x, w)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    want = torch.nn.functional.conv3d(*exact, stride=stride, padding=(1, 0, 1))
    out = torch.ops.fastnn.convolution(*leaves, None, [stride] * 3, [1, 1, 0, 0, 1, 1], [1, 1, 1], 1)
    cotangent = torch.randint(-4, 5, out.shape, generator=generator).to(out).contiguous(memory_format=form)
    grads = torch.autograd.grad(out, leaves, cotangent)
    for got, exact_value in zip(
        (out, *grads), (want, *torch.autograd.grad(want, exact, cotangent.double())), strict=True
    ):
        assert torch.equal(got, exact_value.to(got.dtype))


# What Hopper's kernels take in the tests above, by the kernels of devices before it.
@grid(
    [case for case in (*PRODUCTS, *HOPPER_CASES) if "large" not in case.id],
    dtypes=[torch.bfloat16],
    layouts=["channels_last"],
)
def test_tensor_cores_before_hopper(case, dtype, layout):
    with emulated_cuda(), played_device(compute_capability=80):
        check_values_and_gradients(case, dtype, layout, torch.device("cpu"))


CHANNELS_LAST_MMA = "mma_channels mma_channels_filter_rows mma_position_vectors"
DEPTHWISE_CHANNELS = "depthwise_channels depthwise_channels depthwise_weight_channels"
DEPTHWISE_CHANNELS_ANY = "depthwise_channels_any depthwise_channels_any channel_sum"
DEPTHWISE_PLANES = "depthwise_planes depthwise_planes depthwise_weight_planes"
DEPTHWISE_PLANES_ANY = "depthwise_planes depthwise_planes channel_sum"
DEPTHWISE_GENERAL = "depthwise_forward depthwise_grad_input channel_sum"
SMALL_GROUPS_OF_16 = "small_groups small_groups fma_position_elements"
ELEMENTS_MMA = "mma_elements mma_elements mma_position_elements"
FIRST_LAYER_MMA = "mma_elements gemm mma_position_elements"


@pytest.mark.parametrize(
    ("dtype", "tf32", "layout", "shape", "filters", "kernel", "options", "kernels"),
    [
        # Forward, data gradient, weight gradient.
        (
            "bfloat16",
            False,
            "channels_last",
            (2, 64, 8, 8),
            64,
            3,
            {},
            CHANNELS_LAST_MMA,
        ),
        ("float16", False, "contiguous", (2, 64, 8, 8), 64, 3, {}, "mma_planes mma_planes mma_position_elements"),
        (
            "float32",
            True,
            "channels_last",
            (2, 64, 8, 8),
            64,
            3,
            {},
            CHANNELS_LAST_MMA,
        ),
        ("float32", False, "channels_last", (2, 64, 8, 8), 64, 3, {}, "fma_channels fma_channels fma_position_vectors"),
        ("float32", False, "contiguous", (2, 64, 8, 8), 64, 3, {}, "fma_planes fma_planes fma_position_elements"),
        (
            "bfloat16",
            False,
            "channels_last",
            (2, 3, 20, 20),
            64,
            7,
            {"stride": 2},
            FIRST_LAYER_MMA,
        ),
        ("bfloat16", False, "channels_last", (2, 30, 8, 8), 32, 3, {}, "mma_planes mma_channels mma_position_elements"),
        ("float32", False, "contiguous", (2, 64, 8, 8), 4, 1, {}, "gemm gemm gemm"),
        ("bfloat16", False, "channels_last", (2, 8, 8, 8), 8, 3, {"groups": 8}, DEPTHWISE_CHANNELS),
        ("float32", False, "channels_last", (2, 8, 8, 8), 8, 5, {"groups": 8, "stride": 2}, DEPTHWISE_CHANNELS),
        ("float16", False, "channels_last", (2, 8, 8, 8), 8, 7, {"groups": 8}, DEPTHWISE_CHANNELS_ANY),
        ("float64", False, "channels_last", (2, 8, 8, 8), 8, 3, {"groups": 8}, DEPTHWISE_CHANNELS_ANY),
        ("bfloat16", False, "contiguous", (2, 8, 8, 8), 8, 3, {"groups": 8}, DEPTHWISE_PLANES),
        ("float32", False, "contiguous", (2, 8, 8, 8), 8, 4, {"groups": 8}, DEPTHWISE_PLANES_ANY),
        ("float32", False, "contiguous", (2, 8, 8, 8), 16, 3, {"groups": 8}, DEPTHWISE_GENERAL),
        ("bfloat16", False, "channels_last", (2, 16, 8, 8), 16, 3, {"groups": 4}, "small_groups small_groups gemm"),
        ("float32", False, "contiguous", (2, 32, 8, 8), 32, 3, {"groups": 2}, SMALL_GROUPS_OF_16),
        ("bfloat16", False, "contiguous", (2, 32, 8, 8), 32, 3, {"groups": 2}, ELEMENTS_MMA),
        ("float64", True, "contiguous", (2, 64, 8, 8), 64, 3, {}, "gemm gemm gemm"),
    ],
)
def test_which_kernel(dtype, tf32, layout, shape, filters, kernel, options, kernels):
    """The choice of kernel by dtype, layout, shape and torch's flag for tf32, on a device before Hopper."""
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.randn(shape).to(getattr(torch, dtype), memory_format=form)
    w_shape = (filters, shape[1] // options.get("groups", 1), kernel, kernel)
    w = torch.randn(w_shape).to(getattr(torch, dtype), memory_format=form)
    seen = []
    with (
        emulated_cuda(),
        played_device(compute_capability=80),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32),
    ):
        for wanted in ("output", "input", "weight"):
            leaves = {"input": x.detach().requires_grad_(), "weight": w.detach().requires_grad_()}
            with access_profile() as launched:
                out = fastnn.functional.conv2d(*leaves.values(), **options)
            cotangent = torch.ones_like(out)
            if wanted != "output":
                with access_profile() as launched:
                    torch.autograd.grad(out, leaves[wanted], cotangent)
            names = [k.name for k in launched if re.search("mma|fma|gemm|depthwise|groups|channel_sum", k.name)]
            names = [name for name in names if not name.endswith("_combine")]
            assert len(names) == 1
            seen.append(re.sub("^conv_|_small$|_large$|_kernel$|implicit_", "", names[0]))
    assert " ".join(seen) == kernels
