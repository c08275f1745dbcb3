"""Analytic first and second derivatives against finite differences, in float64; forward mode too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastnn.functional as F
from fastnn.testing.cases import generator_for, lay_out


@dataclass(frozen=True)
class Check:
    """A function of float64 tensors of the given sizes; ``quick`` ones run on the emulator too."""

    id: str
    function: Callable[..., Any]
    sizes: tuple[tuple[int, ...], ...]
    options: dict[str, Any] = field(default_factory=dict)
    quick: bool = False
    layout: str = "contiguous"

    def tensors(self, device: torch.device) -> list[Tensor]:
        generator = generator_for("gradcheck", self.id)
        values = [torch.randn(size, generator=generator, dtype=torch.float64) for size in self.sizes]
        return [lay_out(v.to(device), self.layout).requires_grad_() for v in values]

    def call(self, *tensors: Tensor) -> Any:
        return self.function(*tensors, **self.options)


def pool(x: Tensor, **options: Any) -> Tensor:
    return F.max_pool2d(x, **options)


def pool_values(x: Tensor, **options: Any) -> Tensor:
    return F.max_pool2d(x, return_indices=True, **options)[0]


class Named:
    """A function by name, of values alone where it returns places too."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: Tensor, **options: Any) -> Tensor:
        out = getattr(F, self.name)(x, **options)
        return out[0] if isinstance(out, tuple) else out


UNEQUAL = torch.tensor([[[0, 5, 3], [9, 14, 7]]]).repeat(1, 2, 1, 1)


def norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, **options: Any) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, training=True, **options)


def norm_tracking(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean, var = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    return F.batch_norm(x, mean, var, weight, bias, training=True)


def norm_eval(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    mean = torch.linspace(-1, 1, x.shape[1]).to(x)
    return F.batch_norm(x, mean, mean + 1.5, weight, bias, training=False)


def norm_silu(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm_add_relu(x, residual, None, None, weight, bias, training=True, activation="silu")


def norm_softplus_eval(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = torch.linspace(-1, 1, x.shape[1]).to(x)
    return F.batch_norm_relu(x, mean, mean + 1.5, weight, bias, activation="softplus")


def group_affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, 2, weight, bias)


def cell(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    return F.lstm_cell(x, (h, c), *weights)


def cell_h(*tensors: Tensor) -> Tensor:
    return cell(*tensors)[0]


def cell_c(*tensors: Tensor) -> Tensor:
    return cell(*tensors)[1]


def conv(
    id: str,
    *sizes: tuple[int, ...],
    quick: bool = False,
    layout: str = "contiguous",
    function: Callable[..., Tensor] = F.conv2d,
    **options: Any,
) -> Check:
    return Check("conv-" + id, function, sizes, options, quick, layout)


IMAGE = (2, 2, 5, 4)
CELL = ((2, 3), (2, 2), (2, 2), (8, 3), (8, 2))
CHECKS = [
    conv("plain", IMAGE, (3, 2, 3, 2), (3,), quick=True),
    conv("no_bias", IMAGE, (3, 2, 3, 2)),
    conv("stride", IMAGE, (3, 2, 2, 2), (3,), stride=(2, 3), padding=1),
    conv("dilation", (1, 2, 6, 6), (2, 2, 2, 3), (2,), dilation=(3, 2), padding=(1, 2)),
    conv("same", IMAGE, (3, 2, 2, 4), (3,), padding="same"),
    conv("groups", (1, 4, 4, 4), (6, 2, 2, 2), (6,), groups=2, padding=1, quick=True),
    conv("depthwise", (1, 3, 4, 4), (6, 1, 2, 3), (6,), groups=3),
    conv("unbatched", (2, 4, 4), (3, 2, 2, 2), (3,)),
    conv("channels_last", IMAGE, (3, 2, 3, 2), (3,), layout="channels_last"),
    conv("uncovered", (1, 2, 6, 6), (2, 2, 2, 2), (2,), stride=4),
    conv("1d", (2, 4, 6), (6, 2, 3), (6,), function=F.conv1d, groups=2, stride=2, padding=1),
    conv("3d", (1, 2, 3, 3, 4), (3, 2, 2, 2, 3), (3,), function=F.conv3d, padding=(1, 0, 1)),
    conv(
        "transposed",
        (2, 2, 3, 2),
        (2, 3, 3, 2),
        (3,),
        quick=True,
        function=F.conv_transpose2d,
        stride=(2, 3),
        padding=1,
        output_padding=(1, 2),
    ),
    conv(
        "transposed-1d",
        (2, 4, 3),
        (4, 1, 2),
        (2,),
        function=F.conv_transpose1d,
        groups=2,
        dilation=3,
        output_padding=2,
    ),
    conv("transposed-3d", (1, 2, 2, 2, 3), (2, 2, 2, 1, 2), function=F.conv_transpose3d, stride=2),
    conv(
        "local",
        (2, 2, 4, 3),
        (2, 2, 3, 2, 2, 2),
        (3, 2, 2),
        quick=True,
        function=F.locally_connected2d,
        stride=2,
        padding=(0, 1),
    ),
    conv("local-1d", (2, 5), (3, 2, 2, 2), function=F.locally_connected1d, dilation=2),
    Check("pool-plain", pool, (IMAGE,), {"kernel_size": 2}, quick=True),
    Check("pool-overlapping", pool, (IMAGE,), {"kernel_size": 3, "stride": 1, "padding": 1}),
    Check("pool-ceil", pool, (IMAGE,), {"kernel_size": 2, "stride": 2, "ceil_mode": True}),
    Check("pool-dilation", pool, ((1, 2, 6, 6),), {"kernel_size": 2, "stride": 1, "dilation": 3, "padding": 1}),
    Check("pool-indices", pool_values, (IMAGE,), {"kernel_size": 2}),
    Check("pool-unbatched", pool, ((2, 5, 4),), {"kernel_size": (2, 3)}),
    Check(
        "pool-channels_last",
        pool,
        (IMAGE,),
        {"kernel_size": 3, "stride": 2, "padding": 1},
        layout="channels_last",
    ),
    Check("max1", Named("max_pool1d"), ((2, 3, 9),), {"kernel_size": 3, "stride": 2, "padding": 1}),
    Check("max3", Named("max_pool3d"), ((1, 2, 3, 4, 3),), {"kernel_size": 2, "stride": 1}),
    Check("unpool", Named("max_unpool2d"), ((1, 2, 2, 3),), {"indices": UNEQUAL, "kernel_size": 2}),
    Check("avg1", Named("avg_pool1d"), ((2, 3, 9),), {"kernel_size": 3, "stride": 2, "padding": 1}, quick=True),
    Check("avg2", Named("avg_pool2d"), (IMAGE,), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    Check("avg2-channels_last", Named("avg_pool2d"), (IMAGE,), {"kernel_size": 2}, layout="channels_last"),
    Check("avg3", Named("avg_pool3d"), ((1, 2, 3, 4, 3),), {"kernel_size": 2, "divisor_override": 3}),
    Check("lp1", Named("lp_pool1d"), ((2, 3, 7),), {"norm_type": 2, "kernel_size": 3, "stride": 2}),
    Check("lp2", Named("lp_pool2d"), (IMAGE,), {"norm_type": 2, "kernel_size": 2, "ceil_mode": True}, quick=True),
    Check("lp2-of_4", Named("lp_pool2d"), (IMAGE,), {"norm_type": 4, "kernel_size": 3, "stride": 1}),
    Check("lp3", Named("lp_pool3d"), ((1, 2, 2, 4, 3),), {"norm_type": 2, "kernel_size": 2}),
    Check("adaptive_avg2", Named("adaptive_avg_pool2d"), (IMAGE,), {"output_size": (3, 2)}),
    Check("adaptive_avg3", Named("adaptive_avg_pool3d"), ((1, 2, 3, 4, 3),), {"output_size": (2, None, 1)}),
    Check("adaptive_max2", Named("adaptive_max_pool2d"), (IMAGE,), {"output_size": (3, 2)}, quick=True),
    Check(
        "fractional2",
        Named("fractional_max_pool2d"),
        ((1, 2, 5, 6),),
        {"kernel_size": 2, "output_size": 3, "_random_samples": torch.full((1, 2, 2), 0.3, dtype=torch.float64)},
    ),
    Check("norm-2d", norm, ((5, 3), (3,), (3,)), quick=True),
    Check("norm-3d", norm, ((2, 3, 4), (3,), (3,))),
    Check("norm-4d", norm, ((2, 2, 2, 3), (2,), (2,))),
    Check("norm-5d", norm, ((2, 2, 2, 1, 2), (2,), (2,))),
    Check("norm-no_affine", norm, ((4, 2, 3),)),
    Check("norm-eps", norm, ((4, 2), (2,), (2,)), {"eps": 0.5}),
    Check("norm-channels_last", norm, ((2, 2, 2, 3), (2,), (2,)), layout="channels_last"),
    Check("norm-tracking", norm_tracking, ((3, 2, 3), (2,), (2,))),
    Check("norm-eval", norm_eval, ((2, 3, 2, 2), (3,), (3,)), quick=True),
    Check("norm-eval-2d", norm_eval, ((4, 3), (3,), (3,))),
    Check("norm-eval-no_affine", norm_eval, ((2, 3, 4),)),
    Check("group-4d", F.group_norm, ((2, 4, 2, 3),), {"num_groups": 2}, quick=True),
    Check("group-affine", group_affine, ((2, 4, 3), (4,), (4,))),
    Check("group-channels_last", group_affine, ((2, 4, 2, 2), (4,), (4,)), layout="channels_last"),
    Check("instance-3d", F.instance_norm, ((2, 3, 4),)),
    Check("response-4d", F.local_response_norm, ((2, 5, 2, 2),), {"size": 3, "alpha": 0.5}, quick=True),
    Check("response-even", F.local_response_norm, ((1, 5, 3),), {"size": 4, "alpha": 0.5, "beta": 0.6}),
    Check("activation", F.activation, ((3, 4), (3, 4)), {"activation": "gelu"}, quick=True),
    Check("norm-silu", norm_silu, ((2, 3, 4), (2, 3, 4), (3,), (3,))),
    Check("norm-softplus-eval", norm_softplus_eval, ((2, 3, 4), (3,), (3,))),
    Check("maxout", F.maxout, ((2, 6, 3),), {"pieces": 3}, quick=True),
    Check("cell-no_bias", cell, CELL),
    Check("cell-bias", cell, (*CELL, (8,), (8,)), quick=True),
    Check("cell-through_h", cell_h, (*CELL, (8,), (8,))),
    Check("cell-through_c", cell_c, (*CELL, (8,), (8,))),
    Check("cell-one_row", cell, ((1, 2), (1, 3), (1, 3), (12, 2), (12, 3), (12,), (12,))),
]
every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)


@every_check
def test_first_derivative(check, backend):
    # No tolerance for differences between two runs of backward: kernels are deterministic.
    assert gradcheck(check.call, check.tensors(backend.device), check_forward_ad=True, nondet_tol=0.0)


@every_check
def test_second_derivative(check, backend):
    assert gradgradcheck(check.call, check.tensors(backend.device), nondet_tol=0.0)


@every_check
def test_forward_over_reverse(check):
    """The tangent of the gradient equals the gradient of the directional derivative."""
    tensors = check.tensors(torch.device("cpu"))
    generator = generator_for("directions", check.id)
    directions = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]

    def loss(*inputs: Tensor) -> Tensor:
        out = check.call(*inputs)
        return sum(o.pow(3).sum() for o in (out if isinstance(out, tuple) else (out,)))

    grads = torch.autograd.grad(loss(*tensors), tensors, create_graph=True)
    product = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
    reverse = torch.autograd.grad(product, tensors, allow_unused=True)
    with torch.autograd.forward_ad.dual_level():
        duals = [
            torch.autograd.forward_ad.make_dual(t.detach().requires_grad_(), d)
            for t, d in zip(tensors, directions, strict=True)
        ]
        dual_grads = torch.autograd.grad(loss(*duals), duals)
        forward = [torch.autograd.forward_ad.unpack_dual(g).tangent for g in dual_grads]
    for a, b in zip(forward, reverse, strict=True):
        a = torch.zeros_like(b) if a is None else a
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-9, atol=1e-9)


def test_batched_gradients_of_convolution():
    """``torch.autograd.grad(is_grads_batched=True)`` vectorises backward with vmap."""
    x, w = torch.randn(2, 3, 5, 5).double().requires_grad_(), torch.randn(4, 3, 3, 3).double().requires_grad_()
    out = F.conv2d(x, w)
    directions = torch.randn(3, *out.shape, dtype=torch.float64)
    batched = torch.autograd.grad(out, [x, w], directions, is_grads_batched=True, retain_graph=True)
    for index, direction in enumerate(directions):
        for whole, one in zip(batched, torch.autograd.grad(out, [x, w], direction, retain_graph=True), strict=True):
            torch.testing.assert_close(whole[index], one)
