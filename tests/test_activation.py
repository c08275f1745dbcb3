"""The activations by themselves, against the float64 oracle and torch's own; the layers that have one behind them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from op_tester import (
    check_format_kept,
    check_repeatable,
    check_second_derivatives,
    check_values_and_gradients,
    grid,
)
from torch.autograd import gradcheck, gradgradcheck

import fastnn
from fastnn import _fusable
from fastnn import functional as F
from fastnn.testing.activation_cases import ALPHAS, NAMES
from fastnn.testing.cases import ACTIVATION, generator_for

BY_ID = {case.id: case for case in ACTIVATION}
NATIVE = ["contiguous", "channels_last"]
PAIRS = [(name, alpha) for name in NAMES for alpha in ALPHAS.get(name, (0.0,))]
FROM_INPUT = ("gelu", "gelu_tanh", "silu")


def numbers(*shape: int, dtype=torch.float64, device="cpu", seed: object = 0) -> torch.Tensor:
    return (2 * torch.randn(shape, generator=generator_for("activation", seed), dtype=torch.float64)).to(device, dtype)


@grid(ACTIVATION)
def test_values_and_gradients(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid([BY_ID[f"{name}_4d"] for name in NAMES], dtypes=[torch.float64], layouts=[*NATIVE, "sliced"])
def test_second_derivatives(case, dtype, layout, backend):
    check_second_derivatives(case, dtype, layout, backend.device)


@grid([BY_ID[n] for n in ("silu_4d", "relu_blocks")], dtypes=[torch.float32, torch.bfloat16], layouts=NATIVE)
def test_format_and_bits_are_kept(case, dtype, layout, backend):
    check_format_kept(case, dtype, layout, backend.device)
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=backend.name == "cpu")


@pytest.mark.parametrize(("name", "alpha"), PAIRS)
def test_torch_s_numbers(name, alpha):
    """Another oracle: torch's own functions, and their derivatives."""
    x, g = numbers(300).requires_grad_(), numbers(300, seed="g")
    ours = F.activation(x, activation=name, alpha=alpha)
    theirs = x if name == "identity" else _fusable.activate(x, (name, alpha))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, x, g), torch.autograd.grad(theirs, x, g))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("name", "alpha"), PAIRS)
def test_derivatives(name, alpha, residual, backend):
    leaves = [numbers(3, 5, device=backend.device, seed=i).requires_grad_() for i in range(1 + residual)]

    def call(*tensors):
        return F.activation(*tensors, activation=name, alpha=alpha)

    assert gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True, nondet_tol=0.0)
    assert gradgradcheck(call, leaves, check_fwd_over_rev=True, nondet_tol=0.0)


@pytest.mark.parametrize("name", ["softplus", "silu"])
def test_third_derivatives(name):
    x = numbers(6).requires_grad_()

    def second(x):
        (g,) = torch.autograd.grad(F.activation(x, activation=name).sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x, create_graph=True)[0]

    assert gradcheck(second, (x,))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept(name):
    x, r = numbers(4, 6).requires_grad_(), numbers(4, 6, seed=1).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        y = F.activation(x, r, activation=name)
    expected = [x.data_ptr(), r.data_ptr()] if name in FROM_INPUT else [y.data_ptr()]
    assert sorted(kept) == sorted(expected)


def test_the_sum_is_not_rounded(backend):
    """-20 - 1/16 would be -20 in bfloat16, and the sigmoid 6 % larger."""
    x, r = (torch.full((40,), v, dtype=torch.bfloat16, device=backend.device) for v in (-20.0, -1 / 16))
    got, want = F.activation(x, r, activation="sigmoid"), torch.sigmoid(x.double() + r.double())
    torch.testing.assert_close(got.double(), want, rtol=2**-8, atol=0)


def test_strides_are_those_of_torch():
    base = torch.randn(6, 7, 8, 5)
    inputs = (base, base.transpose(1, 3), base[:, 1:4], base[..., :1].expand(6, 7, 8, 4), base.permute(2, 0, 3, 1)[::2])
    for x in inputs:
        y, want = F.activation(x, activation="tanh"), torch.tanh(x)
        assert y.stride() == want.stride()
        torch.testing.assert_close(y, want)
        other = F.activation(x, torch.ones(x.shape), activation="tanh")
        assert other.stride() == want.stride()
        torch.testing.assert_close(other, torch.tanh(x + 1))


def test_transforms(backend):
    x, r = (numbers(3, 4, 2, device=backend.device, seed=i) for i in range(2))

    def loss(x, r):
        return F.activation(x, r, activation="gelu").square().sum()

    def torch_s(x, r):
        return torch.nn.functional.gelu(x + r).square().sum()

    for dims, a, b in (((0, 0), x, r), ((1, None), x, r[:, 0]), ((None, 2), x[..., 0], r)):
        for f in (lambda g: g, torch.func.grad):
            torch.testing.assert_close(torch.func.vmap(f(loss), dims)(a, b), torch.func.vmap(f(torch_s), dims)(a, b))
    torch.testing.assert_close(torch.func.hessian(loss)(x[0], r[0]), torch.func.hessian(torch_s)(x[0], r[0]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"activation": "swish"}, ValueError, "activation: activation must be 'relu', .* but got 'swish'"),
        ({"activation": "elu", "alpha": -0.5}, ValueError, "activation: alpha must be at least 0.*alpha=-0.5"),
        ({"activation": "leaky_relu", "alpha": -1.0}, ValueError, "activation: alpha must be at least 0.*alpha=-1"),
        ({"activation": "softplus", "alpha": 0.0}, ValueError, "alpha of 'softplus' must be positive.*alpha=0"),
        (
            {"residual": torch.ones(3, 1)},
            RuntimeError,
            r"residual must be like input, Float \[3, 4\].*got Float \[3, 1\]",
        ),
        ({"residual": torch.ones(3, 4).double()}, RuntimeError, r"residual must be like input, Float .*got Double"),
    ],
    ids=str,
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        F.activation(torch.randn(3, 4), **options)


def test_integers_are_refused():
    with pytest.raises(NotImplementedError, match=r"activation: .*input"):
        F.activation(torch.arange(4))


# ---- layers ---------------------------------------------------------------------------------------------------

OPTIONS = {1: (torch.nn.Conv1d, (2, 4, 9)), 2: (torch.nn.Conv2d, (2, 4, 7, 6)), 3: (torch.nn.Conv3d, (2, 4, 5, 4, 3))}


@pytest.mark.parametrize(("name", "alpha"), PAIRS)
@pytest.mark.parametrize("rank", OPTIONS)
def test_conv_act(rank, name, alpha):
    kind, shape = OPTIONS[rank]
    torch.manual_seed(rank)
    stock = kind(4, 6, 3, padding=1, groups=2).double()
    layer = getattr(fastnn.nn, f"ConvAct{rank}d")(4, 6, 3, padding=1, groups=2, activation=name, alpha=alpha).double()
    assert list(layer.state_dict()) == list(stock.state_dict())
    layer.load_state_dict(stock.state_dict())
    x = numbers(*shape)
    for run in (x, x[0]):
        z = stock(run)
        want = z if name == "identity" else _fusable.activate(z, (name, alpha))
        torch.testing.assert_close(layer(run), want)
        g = torch.randn_like(want)
        torch.testing.assert_close(
            torch.autograd.grad(layer(run), list(layer.parameters()), g),
            torch.autograd.grad(want, list(stock.parameters()), g),
        )
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer(x.requires_grad_()).detach())
    again = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    assert torch.equal(again(x), layer(x))
    assert repr(again) == repr(layer) and f"activation={name}" in repr(layer)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ["relu", "silu", "tanh", "identity"])
@pytest.mark.parametrize("rank", OPTIONS)
def test_conv_bn_act(rank, name, mode):
    kind, shape = OPTIONS[rank]
    torch.manual_seed(rank)
    layer = getattr(fastnn.nn, f"ConvBNAct{rank}d")(4, 6, 3, padding=1, activation=name).double().train(mode)
    layer.bn.running_mean.normal_()
    layer.bn.running_var.uniform_(0.5, 2.0)
    norm = getattr(torch.nn, f"BatchNorm{rank}d")(6)
    stock = torch.nn.Sequential(kind(4, 6, 3, padding=1, bias=False), norm).double().train(mode)
    state = dict(zip(stock.state_dict(), layer.state_dict().values(), strict=True))
    stock.load_state_dict(state)
    assert "conv.weight" in layer.state_dict() and "bn.running_mean" in layer.state_dict()
    x = numbers(*shape)

    def torch_s(x):
        z = stock(x)
        return z if name == "identity" else _fusable.activate(z, (name, 0.0))

    with torch.no_grad():
        torch.testing.assert_close(layer(x), torch_s(x))
    got, want = layer(x), torch_s(x)
    torch.testing.assert_close(got, want)
    g = torch.randn_like(want)
    torch.testing.assert_close(
        torch.autograd.grad(got, list(layer.parameters()), g), torch.autograd.grad(want, list(stock.parameters()), g)
    )
    torch.testing.assert_close(list(layer.state_dict().values()), list(stock.state_dict().values()))
    again = pickle.loads(pickle.dumps(copy.deepcopy(layer.eval())))
    with torch.no_grad():
        assert torch.equal(again(x), layer(x))


def test_layers_refuse_an_unknown_activation():
    for layer in (fastnn.nn.ConvAct1d, fastnn.nn.ConvBNAct2d):
        with pytest.raises(ValueError, match=r"activation must be one of relu, .* but got 'swish'"):
            layer(3, 4, 3, activation="swish")


@pytest.mark.parametrize("layer", ["ConvAct2d", "ConvBNAct2d"])
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_layers_compile(layer, name):
    torch.manual_seed(0)
    module = getattr(fastnn.nn, layer)(3, 4, 3, activation=name)
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))
    grads = (torch.autograd.grad(m(x).square().sum(), list(m.parameters())) for m in (compiled, module))
    torch.testing.assert_close(*grads)
