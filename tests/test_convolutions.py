"""Convolutions of other ranks than two, transposed and locally connected ones, against the float64 oracle."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from op_tester import (
    OpRecorder,
    check_exact,
    check_format_kept,
    check_repeatable,
    check_second_derivatives,
    check_values_and_gradients,
    grid,
    make_inputs,
)

import fastnn
from fastnn.testing.convolution_cases import CONVOLUTIONS
from fastnn.testing.trial import gradients

ALL = [case for cases in CONVOLUTIONS.values() for case in cases]
BY_ID = {(case.op, case.id): case for case in ALL}
LAYOUTS = ["contiguous", "channels_last", "sliced"]


@grid(ALL, layouts=LAYOUTS)
def test_values_and_gradients(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid([c for c in ALL if c.values == "normal"][::4], dtypes=[torch.float32], layouts=["expanded", "transposed"])
def test_other_strides(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid([c for c in ALL if c.values == "integers"], layouts=["contiguous", "channels_last"])
def test_integers_are_exact(case, dtype, layout, backend):
    check_exact(case, dtype, layout, backend.device)


@grid(
    [c for c in ALL if len(c.shape) == len(c.kernel) + 2 and min(c.shape) > 1 and c.values == "normal"],
    dtypes=[torch.float32],
    layouts=["contiguous", "channels_last"],
)
def test_format_is_kept(case, dtype, layout, backend):
    check_format_kept(case, dtype, layout, backend.device)


@grid([c for c in ALL if c.crosses_tile], dtypes=[torch.float32, torch.bfloat16], layouts=["contiguous"])
def test_same_bits_on_repeat(case, dtype, layout, backend):
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=backend.name == "cpu")


@grid(
    [
        BY_ID[key]
        for key in (
            ("conv1d", "groups_3_uneven"),
            ("conv3d", "stride_mixed"),
            ("conv_transpose1d", "dilated_output_padding"),
            ("conv_transpose2d", "stride_mixed"),
            ("conv_transpose2d", "batch_0"),
            ("conv_transpose3d", "depthwise"),
            ("locally_connected1d", "stride_dilation"),
            ("locally_connected2d", "stride_mixed"),
        )
    ],
    dtypes=[torch.float64, torch.float32, torch.bfloat16],
    layouts=["contiguous", "channels_last"],
)
def test_second_derivatives(case, dtype, layout, backend):
    check_second_derivatives(case, dtype, layout, backend.device)


@pytest.mark.parametrize("wanted", ["input", "weight", "bias"])
def test_unneeded_gradients_of_a_transposed_one_are_not_computed(wanted):
    case = BY_ID["conv_transpose2d", "stride_2"]
    inputs = make_inputs(case, torch.float32, "contiguous", "cpu")
    for name, tensor in inputs.items():
        tensor.requires_grad_(name == wanted)
    (out,) = case.apply(fastnn.functional, inputs)
    with OpRecorder() as recorder:
        out.sum().backward()
    computed_by = {"input": "convolution", "weight": "convolution_grad_weight", "bias": "convolution_grad_bias"}
    assert {name for name, _ in recorder.calls} == {computed_by[wanted]}


def test_a_transposed_convolution_is_the_gradient_of_a_convolution(backend):
    """The same kernel on the same tensors: the same bits."""
    x = torch.randn(2, 6, 9, 8, device=backend.device, requires_grad=True)
    w = torch.randn(4, 3, 3, 3, device=backend.device)
    y = fastnn.functional.conv2d(x, w, stride=2, padding=1, groups=2)
    g = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, g)
    transposed = fastnn.functional.conv_transpose2d(g, w, stride=2, padding=1, output_padding=(0, 1), groups=2)
    assert torch.equal(transposed, expected)


def test_a_1d_convolution_is_a_2d_one_of_height_1(backend):
    x, w = torch.randn(2, 6, 40, device=backend.device), torch.randn(8, 3, 5, device=backend.device)
    flat = fastnn.functional.conv1d(x, w, padding=2, stride=2, groups=2)
    image = fastnn.functional.conv2d(x[:, :, None], w[:, :, None], padding=(0, 2), stride=(1, 2), groups=2)
    assert torch.equal(flat, image[:, :, 0])


@pytest.mark.parametrize("out_size", [7, 8])
def test_output_size_chooses_among_the_sizes(out_size):
    """Both sizes are mapped to 4 by a convolution of stride 2."""
    torch.manual_seed(0)
    stock = torch.nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1)
    ours = fastnn.convert(stock, copy=True)
    x = torch.randn(2, 3, 4, 4)
    expected = stock(x, output_size=[out_size, out_size])
    actual = ours(x, output_size=[out_size, out_size])
    assert actual.shape == (2, 5, out_size, out_size)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="requested an output size"):
        ours(x, output_size=[out_size + 2, out_size])


def test_a_transposed_convolution_may_give_nothing():
    """As in torch, where padding cuts everything off: no positions, and gradients of zeros."""
    leaves = [torch.randn(size, requires_grad=True) for size in ((2, 4, 6, 6), (4, 8, 3, 3), (8,))]
    out = fastnn.functional.conv_transpose2d(*leaves, padding=4)
    assert out.shape == (2, 8, 0, 0)
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("name", ["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"])
def test_transposed_layers_pad_with_zeros_alone(name):
    for namespace in (torch.nn, fastnn.nn):
        with pytest.raises(ValueError, match="zeros"):
            getattr(namespace, name)(2, 3, 3, padding_mode="reflect")


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if name != "conv_transpose2d"])
def test_autocast_casts_to_the_lower_precision(name):
    case = CONVOLUTIONS[name][0]
    inputs = make_inputs(case, torch.float32, "contiguous", "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (out,) = case.apply(fastnn.functional, inputs)
    assert out.dtype == torch.bfloat16
    grads = gradients([out], [torch.ones_like(out)], list(inputs.values()))
    assert {grad.dtype for grad in grads} == {torch.float32}


@pytest.mark.parametrize("rank", [1, 2])
def test_locally_connected_with_equal_filters_is_a_convolution(rank, backend):
    generator = torch.Generator().manual_seed(0)
    size, kernel = (9, 8)[:rank], (3, 2)[:rank]
    x = torch.randn(3, 4, *size, generator=generator).double().to(backend.device)
    w = torch.randn(5, 4, *kernel, generator=generator).double().to(backend.device)
    options = {"stride": 2, "padding": 1}
    expected = getattr(torch.nn.functional, f"conv{rank}d")(x, w, **options)
    weight = w.expand(*expected.shape[2:], *w.shape)
    actual = getattr(fastnn.functional, f"locally_connected{rank}d")(x, weight, **options)
    torch.testing.assert_close(actual, expected)


def test_locally_connected_filters_are_of_their_position(backend):
    """A position whose filters are zero gives its bias, and no other does."""
    layer = fastnn.nn.LocallyConnected2d(3, 4, (5, 6), 3, padding=1).to(backend.device)
    with torch.no_grad():
        layer.weight[2, 4] = 0
    out = layer(torch.randn(2, 3, 5, 6, device=backend.device))
    same = (out == layer.bias).all(0).all(0)
    assert same.nonzero().tolist() == [[2, 4]]


@pytest.mark.parametrize("name", ["LocallyConnected1d", "LocallyConnected2d"])
def test_locally_connected_layers(name):
    torch.manual_seed(0)
    rank = int(name[-2])
    make = getattr(fastnn.nn, name)
    layer = make(8, 6, (9, 7)[:rank], 3, stride=2, padding=1, dtype=torch.float64)
    bound = 1 / (8 * 3**rank) ** 0.5
    assert layer.weight.shape == ((5, 4)[:rank] + (6, 8) + (3,) * rank)
    assert layer.bias.shape == (6, *(5, 4)[:rank])
    for parameter in layer.parameters():  # uniform: the largest is near the bound, the deviation bound / sqrt(3)
        assert 0.9 * bound < parameter.abs().max() <= bound
        assert abs(parameter.std().item() - bound / 3**0.5) < 0.2 * bound
    x = torch.randn(2, 8, *(9, 7)[:rank], dtype=torch.float64)
    y = layer(x)
    assert y.shape == (2, *layer.bias.shape)
    assert torch.equal(layer(x[0]), y[0])
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), make(8, 6, (9, 7)[:rank], 3, 2, 1).double()]
    twins[2].load_state_dict(layer.state_dict())
    assert all(torch.equal(twin(x), y) for twin in twins)
    assert repr(twins[1]) == repr(layer)
    assert "stride" in repr(layer) and "dilation" not in repr(layer)
    assert make(2, 3, 5, 3, bias=False).bias is None
    assert fastnn.convert(layer) is layer and fastnn.conversion_report(layer).replaced == 1
    for options in ({"stride": 0}, {"padding": -1}, {"dilation": (1, 1, 1)}, {"dilation": 9}):
        with pytest.raises(ValueError, match=next(iter(options))):
            make(2, 3, 5, 3, **options)
    with pytest.raises(ValueError, match="in_channels"):
        make(0, 3, 5, 3)


def test_locally_connected_under_vmap():
    generator = torch.Generator().manual_seed(0)
    x, w, b = (
        torch.randn(s, generator=generator).double() for s in ((3, 2, 4, 5, 5), (3, 3, 3, 6, 4, 3, 3), (3, 6, 3, 3))
    )
    function = fastnn.functional.locally_connected2d
    for dims in [(0, None, None), (0, 0, 0), (None, 0, None), (None, None, 0)]:
        arguments = [t if d == 0 else t[0] for t, d in zip((x, w, b), dims, strict=True)]
        mapped = torch.vmap(function, in_dims=dims)(*arguments)
        each = [function(*(t[i] if d == 0 else t[0] for t, d in zip((x, w, b), dims, strict=True))) for i in range(3)]
        torch.testing.assert_close(mapped, torch.stack(each))
    jacobians = torch.func.jacrev(function, argnums=(0, 1))(x[0], w[0])
    expected = torch.func.jacfwd(function, argnums=(0, 1))(x[0], w[0])
    for reverse, forward in zip(jacobians, expected, strict=True):
        torch.testing.assert_close(reverse, forward)


def test_vmap_over_input_weight_and_bias():
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(s, generator=generator).double() for s in ((3, 2, 4, 5, 5), (3, 4, 2, 3, 3), (3, 4)))

    def transposed(x, w, b):
        return fastnn.functional.conv_transpose2d(x, w, b, stride=2, groups=2)

    for dims in [(0, None, None), (0, 0, 0), (None, 0, None), (None, None, 0), (0, None, 0)]:
        arguments = [t if d == 0 else t[0] for t, d in zip((x, w, b), dims, strict=True)]
        mapped = torch.vmap(transposed, in_dims=dims)(*arguments)
        each = [transposed(*(t[i] if d == 0 else t[0] for t, d in zip((x, w, b), dims, strict=True))) for i in range(3)]
        torch.testing.assert_close(mapped, torch.stack(each))
