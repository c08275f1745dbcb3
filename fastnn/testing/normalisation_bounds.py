"""Oracles and bounds of normalisation; see :mod:`fastnn.testing.bounded`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import reference
from .activation_bounds import activated
from .bounded import FUNCTION_ERROR, Arithmetic, Bounded, Expected, growth
from .normalisation_cases import BatchNormCase, GroupNormCase, InstanceNormCase, LocalResponseNormCase


def _moments(x: Bounded, axes: list[int], shape: list[int], count: int) -> tuple[Bounded, Bounded]:
    """Mean and variance over axes, of ``count`` values each; ``shape`` puts them beside x."""
    u = x.u
    mean = x.sum(axes, count) * (1 / count)
    deviation = (x.value - mean.value.view(shape)).abs().amax(axes)
    # Sums may be taken about any value of the channel, which is at most `deviation` from the mean: the terms
    # of the variance then grow from (x - mean)^2 by deviation^2 (Chan, Golub and LeVeque 1983, "Algorithms for
    # computing the sample variance", The American Statistician 37(3)). E[x^2] - E[x]^2 is far outside.
    mean = Bounded(mean.value, mean.error + 2 * growth(count) * u * deviation, u)
    centred = x - mean.value.view(shape)
    square = (centred * centred).sum(axes, count) * (1 / count)
    error = square.error + 2 * growth(count) * u * deviation**2 + mean.error**2
    return mean, Bounded(square.value, error, u)


def _inverse_deviation(var: Bounded, eps: float) -> Bounded:
    shifted = var + eps
    value = shifted.value.rsqrt()
    # d(v^-1/2) = -1/2 v^-3/2 dv, and two roundings for the root and the quotient.
    return Bounded(value, value * (0.5 * shifted.error / shifted.value + 3 * var.u), var.u)


def _affine(x: Bounded, mean: Bounded, invstd: Bounded, scale: Bounded, bias: Tensor | None) -> tuple[Bounded, Bounded]:
    """(x - mean) * scale + bias, and (x - mean) * invstd; all broadcast."""
    u = x.u
    difference = x - mean
    xhat, y = difference * invstd, difference * scale
    # x * scale + (bias - mean * scale) is the same in exact arithmetic, and its roundings are those of its parts.
    magnitude = x.value.abs() + mean.value.abs()
    parts = magnitude * scale.value.abs()
    if bias is not None:
        parts = parts + bias.abs()
    y = Bounded(y.value, y.error + 2 * u * parts, u)
    xhat = Bounded(xhat.value, xhat.error + 2 * u * magnitude * invstd.value, u)
    return (y if bias is None else y + bias), xhat


def expected_group_norm(case: GroupNormCase | InstanceNormCase, inputs, cotangents, originals) -> Expected:
    """Of group_norm and instance_norm; see :func:`fastnn.testing.bounds.expected`."""
    if isinstance(case, InstanceNormCase) and not case.use_input_stats:
        evaluated = BatchNormCase(id=case.id, shape=case.shape, training=False, affine=case.affine, eps=case.eps)
        return expected_batch_norm(evaluated, inputs, cotangents, originals)
    arithmetic = Arithmetic.of(originals["input"].dtype)
    x, grad, u = inputs["input"], cotangents[0], arithmetic.accumulate
    samples, channels = x.shape[:2]
    groups = case.groups if isinstance(case, GroupNormCase) else channels
    positions = math.prod(x.shape[2:])
    count = channels // groups * positions
    by_channel, by_group = (samples, channels, positions), (samples, groups, count)

    def of_channels(values: Bounded) -> Bounded:
        value, error = (t.repeat_interleave(channels // groups, 1)[..., None] for t in (values.value, values.error))
        return Bounded(value, error, u)

    exact_x, exact_grad = (Bounded.exact(t.reshape(by_channel), u) for t in (x, grad))
    if samples:
        mean, var = _moments(exact_x.view(*by_group), [2], [samples, groups, 1], count)
    else:
        mean = var = Bounded.exact(x.new_zeros(samples, groups), u)
    result = Expected()
    for name, batch in (("running_mean", mean), ("running_var", var)):
        if name not in inputs:
            continue
        old, unbiased = inputs[name], count / (count - 1) if name == "running_var" else 1.0
        if not samples:
            result.buffers[name] = Bounded.exact(old, u)
            continue
        average = batch.sum([0], samples) * (1 / samples)
        take = case.momentum * unbiased
        new = (1 - case.momentum) * old + take * average.value
        error = take * average.error + 4 * u * ((1 - case.momentum) * old.abs() + take * batch.value.abs().mean(0))
        result.buffers[name] = Bounded(new, error, u).stored(Arithmetic.of(originals[name].dtype))
    invstd = of_channels(_inverse_deviation(var, case.eps))
    weight = Bounded.exact(inputs.get("weight", x.new_ones(channels)).view(1, channels, 1), u)
    bias = inputs["bias"].view(1, channels, 1) if "bias" in inputs else None
    y, xhat = _affine(exact_x, of_channels(mean), invstd, weight * invstd, bias)
    result.outputs.append(y.view(*x.shape).stored(arithmetic))

    def mean_over_group(values: Bounded) -> Bounded:
        return of_channels(values.view(*by_group).sum([2], count) * (1 / count))

    weighted = exact_grad * weight
    if samples:
        inner = weighted - mean_over_group(weighted) - xhat * mean_over_group(weighted * xhat)
        result.gradients["input"] = (inner * invstd).view(*x.shape).stored(arithmetic)
    else:
        result.gradients["input"] = Bounded.exact(torch.zeros_like(x), u)
    if case.affine:
        terms = max(samples * positions, 1)
        for name, sums in (("weight", exact_grad * xhat), ("bias", exact_grad)):
            stored = Arithmetic.of(originals[name].dtype)
            result.gradients[name] = sums.sum([0, 2], terms).stored(stored)
    return result


def expected_batch_norm(case: BatchNormCase, inputs, cotangents, originals) -> Expected:
    """Of batch_norm, alone and with an activation; see :func:`fastnn.testing.bounds.expected`."""
    arithmetic = Arithmetic.of(originals["input"].dtype)
    x, grad = inputs["input"], cotangents[0]
    u, channels = arithmetic.accumulate, x.shape[1]
    axes, shape = [0, *range(2, x.dim())], [1, channels] + [1] * (x.dim() - 2)
    count = x.numel() // channels
    exact_x, exact_grad = Bounded.exact(x, u), Bounded.exact(grad, u)

    buffers = {}
    if case.training and count:
        mean, var = _moments(exact_x, axes, shape, count)
        _, new_mean, new_var = reference.batch_norm(
            x, inputs.get("running_mean"), inputs.get("running_var"), None, None, True, case.momentum, case.eps
        )
        for name, new, batch in (("running_mean", new_mean, mean), ("running_var", new_var, var)):
            if name in inputs:
                unbiased = count / (count - 1) if name == "running_var" else 1.0
                error = (1 - case.momentum) * inputs[name].abs() + case.momentum * unbiased * batch.value.abs()
                error = case.momentum * unbiased * batch.error + 4 * u * error
                buffers[name] = Bounded(new, error, u).stored(Arithmetic.of(originals[name].dtype))
    elif case.training:
        mean = var = Bounded.exact(x.new_zeros(channels), u)
        buffers = {n: Bounded.exact(inputs[n], u) for n in ("running_mean", "running_var") if n in inputs}
    else:
        mean, var = Bounded.exact(inputs["running_mean"], u), Bounded.exact(inputs["running_var"], u)
        buffers = {n: Bounded.exact(inputs[n], u) for n in ("running_mean", "running_var")}

    invstd = _inverse_deviation(var, case.eps)
    weight = Bounded.exact(inputs.get("weight", x.new_ones(channels)), u)
    scale = weight * invstd
    bias = inputs["bias"].view(shape) if "bias" in inputs else None
    y, xhat = _affine(exact_x, mean.view(*shape), invstd.view(*shape), scale.view(*shape), bias)
    result = Expected(buffers=buffers)
    if case.residual:
        y = y + inputs["residual"]
    if case.activation is not None:
        y, slope = activated(case.activation, case.alpha, y, arithmetic, from_output=False)
        exact_grad = exact_grad * slope
    result.outputs.append(y.stored(arithmetic))
    if case.residual:
        result.gradients["residual"] = exact_grad.stored(arithmetic)

    sum_grad = exact_grad.sum(axes, count)
    sum_grad_xhat = (exact_grad * xhat).sum(axes, count)
    if case.training and count:
        inner = exact_grad - (sum_grad * (1 / count)).view(*shape) - xhat * (sum_grad_xhat * (1 / count)).view(*shape)
    else:
        inner = exact_grad
    result.gradients["input"] = (inner * scale.view(*shape)).stored(arithmetic)
    if case.affine:
        result.gradients["weight"] = sum_grad_xhat.stored(Arithmetic.of(originals["weight"].dtype))
        result.gradients["bias"] = sum_grad.stored(Arithmetic.of(originals["bias"].dtype))
    return result


def expected_local_response_norm(case: LocalResponseNormCase, inputs, cotangents, originals) -> Expected:
    """Of local_response_norm; see :func:`fastnn.testing.bounds.expected`."""
    arithmetic = Arithmetic.of(originals["input"].dtype)
    u, beta = arithmetic.accumulate, case.beta
    x, grad = Bounded.exact(inputs["input"], u), Bounded.exact(cotangents[0], u)
    terms = min(case.size, case.shape[1]) + 1

    def windows(values: Bounded, mirrored: bool = False) -> Bounded:
        def sums(tensor: Tensor) -> Tensor:
            return (
                reference.channel_windows(tensor.flip(1), case.size).flip(1)
                if mirrored
                else (reference.channel_windows(tensor, case.size))
            )

        error = sums(values.error) + growth(terms) * u * sums(values.value.abs())
        return Bounded(sums(values.value), error, u)

    a = case.alpha / case.size
    s = windows(x * x) * a + case.k
    # s^-beta: an error of s grows beta times, and a power has one of its own.
    power, relative = s.value**-beta, s.error / s.value.abs()
    relative = torch.where(s.value.isinf(), 0.0, relative)  # infinite in the kernel too
    scale = Bounded(power, ((abs(beta) + 1) * relative + (FUNCTION_ERROR + 2) * u) * power.abs(), u)
    inverse = Bounded(1 / s.value, (relative + u) / s.value.abs(), u)
    result = Expected(outputs=[(x * scale).stored(arithmetic)])
    across = windows(grad * scale * x * inverse, mirrored=True)
    result.gradients["input"] = (grad * scale - x * across * (2 * a * beta)).stored(arithmetic)
    return result
