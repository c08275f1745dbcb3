"""Oracles and bounds of pooling and of maxout; see :mod:`fastnn.testing.bounded`."""

from __future__ import annotations

import torch
from torch import Tensor

from . import pooling_reference, reference
from .bounded import FUNCTION_ERROR, Arithmetic, Bounded, Expected, growth
from .pooling_cases import MaxoutCase, MaxPool2dCase, PoolingCase


def expected_max_pool2d(case: MaxPool2dCase, inputs, cotangents, originals) -> Expected:
    """Of max_pool2d; see :func:`fastnn.testing.bounds.expected`."""
    arithmetic = Arithmetic.of(originals["input"].dtype)
    x = inputs["input"].requires_grad_()
    value, indices = reference.max_pool2d(x, **case.options)
    (grad,) = torch.autograd.grad(value, x, cotangents[0], retain_graph=True)
    (magnitude,) = torch.autograd.grad(value, x, cotangents[0].abs())
    kernel = reference.pair(case.kernel)
    error = growth(kernel[0] * kernel[1]) * arithmetic.accumulate * magnitude
    return Expected(
        outputs=[Bounded.exact(value.detach(), 0.0)],  # a choice, not a computation: bit for bit
        gradients={"input": Bounded(grad, error, arithmetic.accumulate).stored(arithmetic)},
        indices=indices if case.return_indices else None,
    )


def expected_maxout(case: MaxoutCase, inputs, cotangents, originals) -> Expected:
    """Of maxout; see :func:`fastnn.testing.bounds.expected`."""
    x = inputs["input"].requires_grad_()
    value = reference.maxout(x, case.pieces, case.pieces_first)
    (grad,) = torch.autograd.grad(value, x, cotangents[0])
    # Choices, not computations: bit for bit.
    return Expected(
        outputs=[Bounded.exact(value.detach(), 0.0)], gradients={"input": Bounded.exact(grad.detach(), 0.0)}
    )


def _windows(case: PoolingCase, x: Tensor) -> pooling_reference.Windows:
    size, options = x.shape[x.dim() - case.rank :], case.options
    if case.kind.startswith("adaptive"):
        return pooling_reference.adaptive(size, options["output_size"])
    names = ("stride", "padding", "dilation", "ceil_mode")
    given = {name: options[name] for name in names if name in options}
    return pooling_reference.sliding(size, options["kernel_size"], **given)


def pooled(case: PoolingCase, inputs: dict[str, Tensor]) -> Tensor:
    """The differentiable float64 oracle of a pooling function's values."""
    x, options = inputs["input"], case.options
    if case.kind == "max_unpool":
        return pooling_reference.unpool(x, inputs["places"].long(), options["output_size"])
    windows = _windows(case, x)
    if case.kind == "lp_pool":
        norm = options["norm_type"]
        if norm == float("inf"):
            return pooling_reference.maximum(x.abs(), windows)[0]
        return pooling_reference.power_mean(x, windows, options["kernel_size"], norm)
    if case.kind in ("avg_pool", "adaptive_avg_pool"):
        return pooling_reference.window_sums(x, windows) / _divisors(case, x, windows)
    return pooling_reference.maximum(x, windows)[0]


def _divisors(case: PoolingCase, x: Tensor, windows: pooling_reference.Windows) -> Tensor:
    options = case.options
    if options.get("divisor_override") is not None:
        return x.new_tensor(float(options["divisor_override"]))
    if case.kind == "adaptive_avg_pool" or not options.get("count_include_pad", True):
        return pooling_reference.counts(windows, x)
    size = x.shape[x.dim() - case.rank :]
    arguments = (options["kernel_size"], options.get("stride"), options.get("padding", 0))
    return pooling_reference.counts_with_padding(size, *arguments, options.get("ceil_mode", False), x)


def expected_pooling(case: PoolingCase, inputs, cotangents, originals) -> Expected:
    """Of the other pooling functions; see :func:`fastnn.testing.bounds.expected`."""
    arithmetic = Arithmetic.of(originals["input"].dtype)
    u, grad = arithmetic.accumulate, cotangents[0]
    x = inputs["input"].requires_grad_()
    value = pooled(case, inputs)
    (gradient,) = torch.autograd.grad(value, x, grad, retain_graph=True)

    if case.kind in ("avg_pool", "adaptive_avg_pool", "lp_pool") and case.options.get("norm_type") != float("inf"):
        windows = _windows(case, x)
        most = max(1, int(pooling_reference.counts(windows, x).max()))
        # Windows over a position: the transpose of their sums.
        ones = torch.ones_like(x).requires_grad_()
        sums = pooling_reference.window_sums(ones, windows)
        (cover,) = torch.autograd.grad(sums, ones, torch.ones_like(sums), retain_graph=True)
        cover = int(cover.max()) if cover.numel() else 1

        def spread(per_output: Tensor) -> Tensor:
            return torch.autograd.grad(sums, ones, per_output, retain_graph=True)[0]

        if case.kind == "lp_pool":
            return _expected_lp_pool(
                case, x.detach(), value.detach(), gradient, grad, windows, most, cover, spread, arithmetic
            )
        divisors = _divisors(case, x, windows).abs().expand(value.shape)
        total = pooling_reference.window_sums(x.detach().abs(), windows) / divisors
        output = Bounded(value.detach(), (growth(most) + 2) * u * total, u)
        # A gradient is divided by the divisor's factors.
        error = (growth(cover) + 6) * u * spread(grad.abs() / divisors)
        return Expected([output.stored(arithmetic)], {"input": Bounded(gradient, error, u).stored(arithmetic)})

    # Choices: values are exact, and gradients sums.
    if case.kind == "max_unpool":
        # Each value has one position's gradient, unchanged.
        places = {"places": Bounded.exact(inputs["places"], 0.0)}
        return Expected([Bounded.exact(value.detach(), 0.0)], {"input": Bounded.exact(gradient, 0.0)}, places)
    magnitude = x.abs().detach().requires_grad_() if case.kind == "lp_pool" else x
    best, indices = pooling_reference.maximum(magnitude, _windows(case, x))
    (total,) = torch.autograd.grad(best, magnitude, grad.abs())
    terms = max(1, int(pooling_reference.counts(_windows(case, x), x.detach()).max()))
    return Expected(
        outputs=[Bounded.exact(value.detach(), 0.0)],
        gradients={"input": Bounded(gradient, growth(terms) * u * total, u).stored(arithmetic)},
        indices=indices if case.options.get("return_indices") else None,
    )


def _expected_lp_pool(case, x, y, gradient, grad, windows, most, cover, spread, arithmetic) -> Expected:
    u, norm, kernel = arithmetic.accumulate, float(case.options["norm_type"]), case.options["kernel_size"]
    absolute = pooling_reference.power_sums(x.abs(), windows, kernel, norm)
    under = y.abs() ** norm
    # Of x^p, of its sum, and of the root; a power function's error grows with the exponent.
    power = FUNCTION_ERROR * (1 + norm) if norm not in (1, 2) else 3.0
    relative = ((growth(most) + power) * u * absolute / under / norm + (power + 2) * u).nan_to_num(0.0)
    output = Bounded(y, relative * y.abs(), u).stored(arithmetic)
    # y^(1 - p), from y as it is stored.
    scale = pooling_reference.counts(windows, x)
    volume = pooling_reference.every(kernel, case.rank)
    factor = grad.abs() * y.abs() ** (1 - norm) * float(torch.tensor(volume).prod()) / scale
    factor = torch.where(y == 0, 0.0, factor)
    off = abs(norm - 1) * (relative + arithmetic.store) * 1.5 + (power + 8) * u
    slope = x.abs() ** (norm - 1)
    error = slope * (spread(factor * off) + (growth(cover) + power + 4) * u * spread(factor))
    return Expected([output], {"input": Bounded(gradient, error, u).stored(arithmetic)})
