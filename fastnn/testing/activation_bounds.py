"""Oracles and bounds of the activations; see :mod:`fastnn.testing.bounded`.

The largest slope and the largest bend of each, max |act'| and max |act''|, are upper bounds of their maxima.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import reference
from .activation_cases import ActivationCase
from .bounded import FUNCTION_ERROR, Arithmetic, Bounded, Expected


@dataclass(frozen=True)
class _Curve:
    """How an activation passes errors on."""

    slope: float
    """max |act'|"""
    bend: float
    """max |act''|"""
    by_output: float
    """max |d act' / dy|, of those whose derivative is found from y."""


def _curve(name: str, alpha: float) -> _Curve:
    return {
        "softplus": _Curve(1.0, alpha / 4, alpha),
        "sigmoid": _Curve(0.25, 0.1, 1.0),
        "tanh": _Curve(1.0, 0.77, 2.0),
        "hard_sigmoid": _Curve(1 / 6, 0.0, 0.0),
        "gelu": _Curve(1.13, 0.8, 0.0),
        "gelu_tanh": _Curve(1.13, 0.8, 0.0),
        "silu": _Curve(1.1, 0.5, 0.0),
    }[name]


def activated(
    name: str, alpha: float, z: Bounded, arithmetic: Arithmetic, from_output: bool
) -> tuple[Bounded, Bounded]:
    """What an activation gives, and its slope.

    Args:
        name: the activation.
        alpha: its parameter.
        z: its argument.
        arithmetic: the kernel's.
        from_output: whether the slope is found from y as it is stored, where it is a function of y.

    Returns:
        y before it is stored, and y'.
    """
    if name in ("relu", "leaky_relu", "elu", "identity"):
        return _rectified(name, 0.0 if name == "relu" else alpha, z, arithmetic, from_output)
    u, curve = z.u, _curve(name, alpha)
    value = reference.activation(z.value, name, alpha)
    # Of which numbers of size `terms` are added and multiplied; 1 + erf(z) loses the digits of a small sum.
    terms = torch.ones_like(value)
    if name in ("gelu", "gelu_tanh", "silu"):
        terms = z.value.abs().clamp(min=1.0)
    elif name == "softplus":
        terms = value + 1 / alpha
    y = Bounded(value, curve.slope * z.error + 2 * FUNCTION_ERROR * u * terms, u)
    with torch.enable_grad():
        at = z.value.detach().requires_grad_()
        (slope,) = torch.autograd.grad(reference.activation(at, name, alpha).sum(), at)
    error = curve.bend * z.error + 4 * FUNCTION_ERROR * u
    if name == "gelu_tanh":
        # 1 - t^2 has the rounding errors of t, and is multiplied by this until t is 1 to the last digit.
        inner = z.value * (1 + 3 * 0.044715 * z.value**2)
        error = error + FUNCTION_ERROR * u * inner.abs().clamp(max=90.0)
    stored = torch.where(value.isfinite() & from_output, y.stored(arithmetic).error, 0.0)
    error = error + curve.by_output * stored
    if name == "hard_sigmoid":
        near = torch.minimum(value, 1 - value) <= torch.maximum(y.error, stored)
        error = torch.where(near, 1 / 6, 0.0) + u
    return y, Bounded(slope, error, u)


def _rectified(
    name: str, alpha: float, z: Bounded, arithmetic: Arithmetic, from_output: bool
) -> tuple[Bounded, Bounded]:
    """Both branches are 0 at 0, and steeper than their bound nowhere."""
    u, steepest = z.u, max(1.0, abs(alpha))
    value = reference.activation(z.value, name, alpha)
    y = Bounded(value, steepest * z.error + FUNCTION_ERROR * u * value.abs(), u)
    if name == "identity":
        return y, Bounded.exact(torch.ones_like(value), u)
    below = {"relu": torch.zeros_like(value), "leaky_relu": torch.full_like(value, alpha)}
    slope_below = below.get(name, value + alpha)
    slope = torch.where(z.value <= 0, slope_below, 1.0)
    error = torch.where(z.value <= 0, u * slope_below.abs(), 0.0)  # alpha is rounded
    if name == "elu":
        # alpha exp(z), or the output as it is stored and alpha.
        found = y.stored(arithmetic).error if from_output else y.error
        error = torch.where(z.value <= 0, found + (FUNCTION_ERROR + 2) * u * steepest, 0.0)
    # Which branch it is, is not known nearer to 0 than z is.
    jump = (1 - slope_below).abs().clamp(min=abs(1 - alpha))
    return y, Bounded(slope, torch.where(z.value.abs() <= z.error, jump, error), u)


def expected_activation(
    case: ActivationCase, exact: dict[str, Tensor], grads: list[Tensor | None], inputs: dict[str, Tensor]
) -> Expected:
    """Of activation; see :func:`fastnn.testing.bounds.expected`."""
    arithmetic = Arithmetic.of(inputs["input"].dtype)
    z = Bounded.exact(exact["input"], arithmetic.accumulate)
    if case.residual:
        z = z + exact["residual"]
    y, slope = activated(case.activation, case.alpha, z, arithmetic, from_output=True)
    result = Expected(outputs=[y.stored(arithmetic)])
    if grads[0] is not None:
        gradient = (Bounded.exact(grads[0], z.u) * slope).stored(arithmetic)
        result.gradients = {name: gradient for name in case.differentiable if name in exact}
    return result
