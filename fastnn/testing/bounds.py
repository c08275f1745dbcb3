"""How far a kernel may be from the float64 oracle: a bound for every element of every output and gradient.

Nothing is compared with a fixed tolerance. A value of the oracle carries with it the error that arithmetic in
the kernel's accumulation type may have made, element by element (running error analysis: Higham, *Accuracy and
Stability of Numerical Algorithms*, 2nd ed. 2002, section 3.3), with u the unit roundoff (half the epsilon) of
that type:

- one operation: u |result| (the standard model, Higham section 2.2);
- a sum or dot product of n terms in any order, fused or not: min(n, 2 sqrt(n)) u sum|terms|. The first is the
  classical gamma_n (Higham sections 3.1 and 4.2); the second replaces the worst case by six standard deviations
  of rounding errors that are independent, which holds for every order of summation (Higham and Mary 2019, "A new
  approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5)): the standard deviation of n
  sequential additions of like-signed terms is at most u sqrt(n) / 3 of their sum;
- exp, tanh, sigmoid: 4 u, absolute, since their values are at most 1 where they are used;
- storing in a half type: half a unit in the last place.

Where a tensor repeats one row (stride 0), a sum has the same term again and again, whose rounding errors are the same
again and again: they are not independent, and the classical bound alone holds. :func:`repeated_terms` chooses it.

The tensor cores of a GPU cut digits off where a sum is rounded to nearest elsewhere, some 16 terms at a time and never
more than 64 times in a row: that stays within these bounds. Under :func:`tf32_products` each product of a float32
convolution has errors of its factors too.

float64 is judged by an oracle in float64, which errs by as much as the kernel: its u is doubled. The bounds are
first-order, with the products of two errors kept where half types make them matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import pooling_reference, reference
from .cases import (
    BatchNormCase,
    Case,
    ConvCase,
    GroupNormCase,
    InstanceNormCase,
    LocalResponseNormCase,
    LstmCellCase,
    MaxoutCase,
    MaxPool2dCase,
    PoolingCase,
)
from .convolution_cases import ConvTransposeCase, LocallyConnectedCase

FUNCTION_ERROR = 4.0  # of exp, tanh and sigmoid, in units of u


@dataclass(frozen=True)
class Arithmetic:
    """Unit roundoffs of a dtype's kernels: of their accumulation, and of storing a result."""

    accumulate: float
    store: float
    smallest: float  # half the smallest subnormal of the stored type

    @staticmethod
    def of(dtype: torch.dtype) -> Arithmetic:
        """That of kernels for tensors of ``dtype``."""
        if dtype == torch.float64:
            return Arithmetic(torch.finfo(dtype).eps, 0.0, 0.0)
        single = torch.finfo(torch.float32)
        accumulate = single.eps / 2
        if dtype == torch.float32:
            return Arithmetic(accumulate, 0.0, single.tiny * single.eps)
        info = torch.finfo(dtype)
        return Arithmetic(accumulate, info.eps / 2, info.tiny * info.eps)


_independent = ContextVar("independent", default=True)


@contextmanager
def repeated_terms() -> Iterator[None]:
    """Within the context, the rounding errors of a sum's terms need not be independent."""
    token = _independent.set(False)
    try:
        yield
    finally:
        _independent.reset(token)


def growth(n: int) -> float:
    """Error of an n-term sum in units of u times the sum of the terms' absolute values."""
    return min(float(n), 2.0 * n**0.5) if _independent.get() else float(n)


_tf32 = ContextVar("tf32", default=False)
TF32_PRODUCT = 2 * 2.0**-11 + 2.0**-22  # of two factors rounded to 11 bits


@contextmanager
def tf32_products() -> Iterator[None]:
    """Within the context, products of float32 convolutions may be of operands rounded to tf32."""
    token = _tf32.set(True)
    try:
        yield
    finally:
        _tf32.reset(token)


@dataclass
class Bounded:
    """A float64 value and a bound on the absolute error of whoever computes it, elementwise."""

    value: Tensor
    error: Tensor
    u: float

    @staticmethod
    def exact(value: Tensor, u: float) -> Bounded:
        """An input: nothing has gone wrong with it yet."""
        return Bounded(value, torch.zeros_like(value), u)

    def _lift(self, other: Bounded | Tensor | float) -> Bounded:
        if isinstance(other, Bounded):
            return other
        return Bounded.exact(torch.as_tensor(other, dtype=torch.float64), self.u)

    def _rounded(self, value: Tensor, error: Tensor) -> Bounded:
        return Bounded(value, error + self.u * value.abs(), self.u)

    def __add__(self, other: Bounded | Tensor | float) -> Bounded:
        other = self._lift(other)
        return self._rounded(self.value + other.value, self.error + other.error)

    def __sub__(self, other: Bounded | Tensor | float) -> Bounded:
        other = self._lift(other)
        return self._rounded(self.value - other.value, self.error + other.error)

    def __rsub__(self, other: Tensor | float) -> Bounded:
        return self._lift(other) - self

    def __mul__(self, other: Bounded | Tensor | float) -> Bounded:
        other = self._lift(other)
        error = self.value.abs() * other.error + other.value.abs() * self.error + self.error * other.error
        return self._rounded(self.value * other.value, error)

    __radd__, __rmul__ = __add__, __mul__

    def sum(self, axes: list[int], terms: int) -> Bounded:
        """Sum over axes, dropped, of ``terms`` values each."""
        error = self.error.sum(axes) + growth(terms) * self.u * self.value.abs().sum(axes)
        return Bounded(self.value.sum(axes), error, self.u)

    def matmul(self, other: Bounded) -> Bounded:
        """[m, k] times [k, n]."""
        value, k = self.value @ other.value, self.value.shape[1]
        left, right = self.value.abs(), other.value.abs()
        error = left @ other.error + self.error @ right + self.error @ other.error
        return Bounded(value, error + growth(k) * self.u * (left @ right), self.u)

    def sigmoid(self) -> Bounded:
        """Logistic function."""
        # The logistic function's slope is at most 1/4 and its range (0, 1).
        error = (self.error / 4).nan_to_num(1.0).clamp(max=1.0)
        return Bounded(self.value.sigmoid(), error + FUNCTION_ERROR * self.u, self.u)

    def tanh(self) -> Bounded:
        """Hyperbolic tangent."""
        error = self.error.nan_to_num(2.0).clamp(max=2.0)
        return Bounded(self.value.tanh(), error + FUNCTION_ERROR * self.u, self.u)

    def stored(self, arithmetic: Arithmetic) -> Bounded:
        """Rounded to the stored type."""
        error = self.error + arithmetic.store * (self.value.abs() + self.error) + arithmetic.smallest
        return Bounded(self.value, error, self.u)

    def beside(self, other: Bounded) -> Bounded:
        """[m, k] and [m, l] as [m, k + l]."""
        return Bounded(torch.cat([self.value, other.value], 1), torch.cat([self.error, other.error], 1), self.u)

    def view(self, *shape: int) -> Bounded:
        """The same values in another shape."""
        return Bounded(self.value.reshape(*shape), self.error.reshape(*shape), self.u)

    def transposed(self) -> Bounded:
        """[m, n] as [n, m]."""
        return Bounded(self.value.T, self.error.T, self.u)


@dataclass
class Expected:
    """What a case must give: outputs, gradients by input name, buffers by input name, integer outputs."""

    outputs: list[Bounded] = field(default_factory=list)
    gradients: dict[str, Bounded] = field(default_factory=dict)
    buffers: dict[str, Bounded] = field(default_factory=dict)
    indices: Tensor | None = None


def expected(case: Case, inputs: dict[str, Tensor], cotangents: list[Tensor | None]) -> Expected:
    """Oracle and bounds of a case.

    Args:
        case: the case; its type chooses the oracle.
        inputs: what ``case.make_inputs`` gave, any floating dtype, layout and device.
        cotangents: gradient of the loss with respect to each floating output; None for an output that the loss
            does not use.

    Returns:
        values in float64 on the CPU with their bounds.
    """
    oracles = {
        ConvTransposeCase: _expected_conv_transpose,
        LocallyConnectedCase: _expected_locally_connected,
        ConvCase: _expected_convolution,
        MaxoutCase: _expected_maxout,
        MaxPool2dCase: _expected_max_pool2d,
        PoolingCase: _expected_pooling,
        BatchNormCase: _expected_batch_norm,
        GroupNormCase: _expected_group_norm,
        InstanceNormCase: _expected_group_norm,
        LocalResponseNormCase: _expected_local_response_norm,
        LstmCellCase: _expected_lstm_cell,
    }
    compute = next(oracle for kind, oracle in oracles.items() if isinstance(case, kind))
    exact = {name: tensor.detach().cpu().double().contiguous() for name, tensor in inputs.items()}
    grads = [None if c is None else c.detach().cpu().double().contiguous() for c in cotangents]
    return compute(case, exact, grads, inputs)


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
    """Of a convolution: ``terms`` gives, for a positions' number of the output, the lengths of the sums by name."""
    arithmetic = Arithmetic.of(dtype)
    (value, grads), (magnitude, grad_magnitudes) = _linear(function, inputs, names, cotangent)
    product = TF32_PRODUCT if _tf32.get() and dtype == torch.float32 else 0.0
    lengths = terms(value)

    def bounded(name: str, v: Tensor, m: Tensor) -> Bounded:
        # One more rounding than terms: partial sums may be kept apart and added at the end.
        error = ((growth(lengths[name]) + 1) * arithmetic.accumulate + product) * m
        return Bounded(v, error, arithmetic.accumulate).stored(arithmetic)

    return Expected(
        outputs=[bounded("output", value, magnitude)],
        gradients={n: bounded(n, g, m) for n, g, m in zip(names, grads, grad_magnitudes, strict=True)},
    )


def _expected_convolution(case: ConvCase, inputs, cotangents, originals) -> Expected:
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


def _expected_conv_transpose(case: ConvTransposeCase, inputs, cotangents, originals) -> Expected:
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


def _expected_locally_connected(case: LocallyConnectedCase, inputs, cotangents, originals) -> Expected:
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


def _expected_max_pool2d(case: MaxPool2dCase, inputs, cotangents, originals) -> Expected:
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


def _expected_maxout(case: MaxoutCase, inputs, cotangents, originals) -> Expected:
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


def _expected_pooling(case: PoolingCase, inputs, cotangents, originals) -> Expected:
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


def _activated(case: BatchNormCase, z: Bounded, arithmetic: Arithmetic) -> tuple[Bounded, Bounded]:
    """What an activation gives, and its slope. Both its branches are 0 at 0, and steeper than their bound nowhere."""
    u, steepest = z.u, max(1.0, abs(case.alpha))
    value = reference.activation(z.value, case.activation, case.alpha)
    y = Bounded(value, steepest * z.error + FUNCTION_ERROR * u * value.abs(), u)
    if case.activation == "identity":
        return y, Bounded.exact(torch.ones_like(value), u)
    below = {"relu": torch.zeros_like(value), "leaky_relu": torch.full_like(value, case.alpha)}
    slope_below = below.get(case.activation, value + case.alpha)
    slope = torch.where(z.value <= 0, slope_below, 1.0)
    error = torch.where(z.value <= 0, u * slope_below.abs(), 0.0)  # alpha is rounded
    if case.activation == "elu":
        # alpha exp(z), or the output as it is stored and alpha.
        error = torch.where(z.value <= 0, y.stored(arithmetic).error + (FUNCTION_ERROR + 2) * u * steepest, 0.0)
    # Which branch it is, is not known nearer to 0 than z is.
    jump = (1 - slope_below).abs().clamp(min=abs(1 - case.alpha))
    return y, Bounded(slope, torch.where(z.value.abs() <= z.error, jump, error), u)


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


def _expected_group_norm(case: GroupNormCase | InstanceNormCase, inputs, cotangents, originals) -> Expected:
    if isinstance(case, InstanceNormCase) and not case.use_input_stats:
        evaluated = BatchNormCase(id=case.id, shape=case.shape, training=False, affine=case.affine, eps=case.eps)
        return _expected_batch_norm(evaluated, inputs, cotangents, originals)
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


def _expected_batch_norm(case: BatchNormCase, inputs, cotangents, originals) -> Expected:
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
        y, slope = _activated(case, y, arithmetic)
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


def _expected_local_response_norm(case: LocalResponseNormCase, inputs, cotangents, originals) -> Expected:
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


def _expected_lstm_cell(case: LstmCellCase, inputs, cotangents, originals) -> Expected:
    arithmetic = Arithmetic.of(originals["input"].dtype)
    u, hidden = arithmetic.accumulate, case.hidden_size
    t = {name: Bounded.exact(tensor, u) for name, tensor in inputs.items()}
    # Each of the two products is stored; the second may be added to the first before or after.
    from_input = t["input"].matmul(t["w_ih"].transposed()).stored(arithmetic)
    from_hidden = t["hx"].matmul(t["w_hh"].transposed()).stored(arithmetic)
    gates = (from_input + from_hidden).stored(arithmetic)
    # On the CPU they are one sum over both.
    together = t["input"].beside(t["hx"]).matmul(t["w_ih"].beside(t["w_hh"]).transposed()).stored(arithmetic)
    gates = Bounded(gates.value, torch.maximum(gates.error, together.error), u)
    if case.bias:
        gates = gates + (t["b_ih"] + t["b_hh"])

    def block(index: int) -> Bounded:
        columns = slice(index * hidden, (index + 1) * hidden)
        return Bounded(gates.value[:, columns], gates.error[:, columns], u)

    i, f, g, o = block(0).sigmoid(), block(1).sigmoid(), block(2).tanh(), block(3).sigmoid()
    cell = f * t["cx"] + i * g
    squashed = cell.tanh()
    result = Expected(outputs=[(o * squashed).stored(arithmetic), cell.stored(arithmetic)])

    zero = torch.zeros_like(inputs["cx"])
    grad_h, grad_c = (Bounded.exact(zero if c is None else c, u) for c in cotangents)
    grad_cell = grad_c + grad_h * o * (1.0 - squashed * squashed)
    parts = [
        grad_cell * g * i * (1.0 - i),
        grad_cell * t["cx"] * f * (1.0 - f),
        grad_cell * i * (1.0 - g * g),
        grad_h * squashed * o * (1.0 - o),
    ]
    grad_gates = Bounded(torch.cat([p.value for p in parts], 1), torch.cat([p.error for p in parts], 1), u)
    grad_gates = grad_gates.stored(arithmetic)
    result.gradients = {
        "input": grad_gates.matmul(t["w_ih"]),
        "hx": grad_gates.matmul(t["w_hh"]),
        "cx": grad_cell * f,
        "w_ih": grad_gates.transposed().matmul(t["input"]),
        "w_hh": grad_gates.transposed().matmul(t["hx"]),
    }
    if case.bias:
        result.gradients["b_ih"] = result.gradients["b_hh"] = grad_gates.sum([0], case.rows)
    result.gradients = {name: grad.stored(arithmetic) for name, grad in result.gradients.items()}
    return result
