"""Oracles and bounds of convolutions; see :mod:`fastnn.testing.bounded`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import reference
from .bounded import Arithmetic, Bounded, Expected, growth, product_error
from .convolution_cases import ConvCase, ConvTransposeCase, LocallyConnectedCase


def _linear(function, inputs: dict[str, Tensor], names: list[str], cotangent: Tensor):
    """Value and gradients of ``function``, then the same of absolute values: the sums of |terms|."""
    results = []
    for absolute in (False, True):
        leaves = {
            name: (tensor.abs() if absolute else tensor).clone().requires_grad_(name in names)
            for name, tensor in inputs.items()
        }
        value = function(leaves)
        grads = torch.autograd.grad(value, [leaves[n] for n in names], cotangent.abs() if absolute else cotangent)
        results.append((value.detach(), grads))
    return results


def _multilinear(function, inputs, cotangent: Tensor, names: list[str], dtype: torch.dtype, terms) -> Expected:
    """Of a convolution: ``terms``, given its output, says how many terms the sums of each result have."""
    arithmetic = Arithmetic.of(dtype)
    (value, grads), (magnitude, grad_magnitudes) = _linear(function, inputs, names, cotangent)
    product, lengths = product_error(dtype), terms(value)

    def bounded(name: str, v: Tensor, m: Tensor) -> Bounded:
        # One more rounding than terms: partial sums may be kept apart and added at the end.
        error = ((growth(lengths[name]) + 1) * arithmetic.accumulate + product) * m
        return Bounded(v, error, arithmetic.accumulate).stored(arithmetic)

    return Expected(
        outputs=[bounded("output", value, magnitude)],
        gradients={n: bounded(n, g, m) for n, g, m in zip(names, grads, grad_magnitudes, strict=True)},
    )


def expected_convolution(case: ConvCase, inputs, cotangents, originals) -> Expected:
    """Of conv1d, conv2d and conv3d; see :func:`fastnn.testing.bounds.expected`."""
    filters, channels, *kernel = inputs["weight"].shape
    taps = math.prod(kernel)

    def terms(output: Tensor) -> dict[str, int]:
        positions = output.numel() // filters
        sums = {"output": channels * taps + 1, "input": filters // case.groups * taps}
        return sums | {"weight": positions, "bias": positions}

    return _multilinear(
        lambda t: reference.convolution(t["input"], t["weight"], t.get("bias"), **case.options),
        inputs,
        cotangents[0],
        [name for name in case.differentiable if name in inputs],
        originals["input"].dtype,
        terms,
    )


def expected_conv_transpose(case: ConvTransposeCase, inputs, cotangents, originals) -> Expected:
    """Of conv_transpose1d, conv_transpose2d and conv_transpose3d; see :func:`fastnn.testing.bounds.expected`."""
    channels, filters, *kernel = inputs["weight"].shape
    taps = math.prod(kernel)

    def terms(output: Tensor) -> dict[str, int]:
        sums = {"output": channels // case.groups * taps + 1, "input": filters * taps}
        return sums | {"weight": inputs["input"].numel() // channels, "bias": output.numel() // case.filters}

    return _multilinear(
        lambda t: reference.conv_transpose(t["input"], t["weight"], t.get("bias"), **case.options),
        inputs,
        cotangents[0],
        [name for name in case.differentiable if name in inputs],
        originals["input"].dtype,
        terms,
    )


def expected_locally_connected(case: LocallyConnectedCase, inputs, cotangents, originals) -> Expected:
    """Of locally_connected1d and locally_connected2d; see :func:`fastnn.testing.bounds.expected`."""
    taps = math.prod(case.kernel)

    def terms(output: Tensor) -> dict[str, int]:
        images = 1 if len(case.shape) == len(case.kernel) + 1 else case.shape[0]
        sums = {"output": case.channels * taps + 1, "input": case.filters * taps}
        return sums | {"weight": images, "bias": images}

    return _multilinear(
        lambda t: reference.locally_connected(t["input"], t["weight"], t.get("bias"), **case.options),
        inputs,
        cotangents[0],
        [name for name in case.differentiable if name in inputs],
        originals["input"].dtype,
        terms,
    )
