"""The emulator's mathematical functions: disturbed, and within the errors that are documented for the device."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import numpy as np
import pytest
import torch
from emulator_calls import call, same_bits

if os.environ.get("FASTNN_TEST_EMULATOR") == "0" and os.environ.get("FASTNN_EMULATE", "0") == "0":
    pytest.skip("FASTNN_TEST_EMULATOR=0", allow_module_level=True)

PI = np.longdouble("3.14159265358979323846264338327950288")


def sin_pi(values: np.ndarray) -> np.ndarray:
    whole = np.rint(values)
    return (np.sin(PI * (values - whole)) * np.where(whole % 2 == 0, 1, -1)).astype(np.float64)


def cos_pi(values: np.ndarray) -> np.ndarray:
    whole = np.rint(values)
    rest = np.abs(values - whole)
    inner = np.where(rest < 0.25, np.cos(PI * rest), np.sin(PI * (0.5 - rest)))
    return (inner * np.where(whole % 2 == 0, 1, -1)).astype(np.float64)


def by_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: function(torch.from_numpy(values)).numpy()


@dataclass(frozen=True)
class Function:
    """A function with its largest errors in ulp (CUDA C++ Programming Guide, "Mathematical Functions"), in single and
    in double precision; where to try it; and what it should be, of arrays of doubles and of one mpmath number."""

    single: float
    double: float
    ranges: tuple[tuple[float, float], ...]
    of_doubles: Callable[..., np.ndarray]
    of_mpmath: Callable[..., mpmath.mpf]


EVERYWHERE = (-np.inf, np.inf)
POSITIVE = (0.0, np.inf)
FUNCTIONS = {
    "exp": Function(2, 1, ((-103, 88),), np.exp, mpmath.exp),
    "exp2": Function(2, 1, ((-149, 127),), np.exp2, lambda v: mpmath.power(2, v)),
    "exp10": Function(2, 1, ((-44, 38),), lambda v: np.power(10.0, v), lambda v: mpmath.power(10, v)),
    "expm1": Function(1, 1, ((-20, 88), (-1e-3, 1e-3)), np.expm1, mpmath.expm1),
    "log": Function(1, 1, (POSITIVE, (0.5, 2)), np.log, mpmath.log),
    "log2": Function(1, 1, (POSITIVE, (0.5, 2)), np.log2, lambda v: mpmath.log(v) / mpmath.log(2)),
    "log10": Function(2, 1, (POSITIVE, (0.5, 2)), np.log10, mpmath.log10),
    "log1p": Function(1, 1, (POSITIVE, (-1, 1)), np.log1p, mpmath.log1p),
    "sin": Function(2, 2, ((-10, 10), (-1e5, 1e5), EVERYWHERE), np.sin, mpmath.sin),
    "cos": Function(2, 2, ((-10, 10), (-1e5, 1e5), EVERYWHERE), np.cos, mpmath.cos),
    "tan": Function(4, 2, ((-10, 10), (-1e5, 1e5), EVERYWHERE), np.tan, mpmath.tan),
    "sinpi": Function(1, 2, ((-10, 10), (-1e5, 1e5)), sin_pi, mpmath.sinpi),
    "cospi": Function(1, 2, ((-10, 10), (-1e5, 1e5)), cos_pi, mpmath.cospi),
    "asin": Function(2, 2, ((-1, 1),), np.arcsin, mpmath.asin),
    "acos": Function(2, 2, ((-1, 1),), np.arccos, mpmath.acos),
    "atan": Function(2, 2, ((-10, 10), EVERYWHERE), np.arctan, mpmath.atan),
    "sinh": Function(3, 2, ((-89, 89), (-1, 1)), np.sinh, mpmath.sinh),
    "cosh": Function(2, 1, ((-89, 89), (-1, 1)), np.cosh, mpmath.cosh),
    "tanh": Function(2, 1, ((-9, 9), (-1, 1)), np.tanh, mpmath.tanh),
    "asinh": Function(3, 3, ((-10, 10), EVERYWHERE), np.arcsinh, mpmath.asinh),
    "acosh": Function(4, 3, ((1, 10), (1, np.inf)), np.arccosh, mpmath.acosh),
    "atanh": Function(3, 2, ((-1, 1),), np.arctanh, mpmath.atanh),
    "erf": Function(2, 2, ((-4, 4),), by_torch(torch.special.erf), mpmath.erf),
    "erfc": Function(4, 5, ((-4, 10),), by_torch(torch.special.erfc), mpmath.erfc),
    "cbrt": Function(1, 1, (EVERYWHERE,), np.cbrt, lambda v: mpmath.sign(v) * mpmath.cbrt(abs(v))),
    "rcbrt": Function(1, 1, (EVERYWHERE,), lambda v: 1 / np.cbrt(v), lambda v: mpmath.sign(v) / mpmath.cbrt(abs(v))),
    "rsqrt": Function(2, 1, (POSITIVE,), lambda v: 1 / np.sqrt(v), lambda v: 1 / mpmath.sqrt(v)),
    "pow": Function(4, 2, ((0.01, 20), (-20, 20)), np.power, mpmath.power),
    "atan2": Function(3, 2, ((-10, 10), (-10, 10)), np.arctan2, mpmath.atan2),
    "hypot": Function(3, 2, ((-10, 10), (-10, 10)), np.hypot, mpmath.hypot),
    "rhypot": Function(
        2, 1, ((-10, 10), (-10, 10)), lambda a, b: 1 / np.hypot(a, b), lambda a, b: 1 / mpmath.hypot(a, b)
    ),
}
BINARY = ("pow", "atan2", "hypot", "rhypot")


def within(low: float, high: float, count: int, dtype: type, random: np.random.Generator) -> np.ndarray:
    """Three quarters of them uniform, a quarter of every size; of an unbounded range numbers of every size alone."""
    info = np.finfo(dtype)
    unbounded = not (np.isfinite(low) and np.isfinite(high))
    even = np.empty(0) if unbounded else random.uniform(low, high, 3 * count // 4)
    count -= even.size
    top = info.maxexp if unbounded else math.ceil(math.log2(max(-low, high)))
    sizes = np.ldexp(random.uniform(1, 2, count), random.integers(info.minexp, top, count))
    sizes *= np.where((low < 0) & (random.integers(0, 2, count) == 0), -1, 1)
    values = np.concatenate([even, sizes]).astype(dtype)
    return values[(values >= low) & (values <= high) & np.isfinite(values) & (values != 0)]


def arguments(name: str, count: int, dtype: type) -> list[np.ndarray]:
    random = np.random.default_rng(9)
    ranges = FUNCTIONS[name].ranges
    if name not in BINARY:
        return [np.concatenate([within(*limits, count // len(ranges), dtype, random) for limits in ranges])]
    drawn = [within(*limits, count, dtype, random) for limits in ranges]
    size = min(values.size for values in drawn)
    return [random.permutation(values)[:size] for values in drawn]


def last_place(values: np.ndarray, dtype: type) -> np.ndarray:
    info = np.finfo(dtype)
    exponent = np.maximum(np.frexp(values)[1] - 1, info.minexp)
    return np.ldexp(values.dtype.type(1), exponent - info.nmant)


def check_errors(ours: np.ndarray, exact: np.ndarray, bound: np.ndarray | float, name: str) -> None:
    """Bounds are absolute. Where the nearest number is zero or infinite it must come; otherwise the results must be
    within the bound and, for more than a few arguments, be another number than the nearest, above and below it."""
    with np.errstate(over="ignore", under="ignore"):
        nearest = exact.astype(ours.dtype)
    ordinary = np.isfinite(nearest) & (nearest != 0)
    np.testing.assert_array_equal(ours[~ordinary], nearest[~ordinary])
    bound = np.broadcast_to(bound, exact.shape)[ordinary]
    ours, nearest, exact = ours[ordinary], nearest[ordinary], exact[ordinary]
    room = last_place(exact, ours.dtype.type) * 2.0**-9  # the oracle's own error
    for other in (exact, nearest.astype(exact.dtype)):
        errors = np.abs(ours.astype(exact.dtype) - other) / (bound + room)
        worst = np.argmax(errors)
        assert errors[worst] <= 1, f"{name}: {ours[worst]} instead of {exact[worst]}, {errors[worst]} of the bound"
    assert np.mean(ours > nearest) > 0.1 and np.mean(ours < nearest) > 0.1, f"{name} is not disturbed"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_single_precision_errors_are_documented_ones(name: str) -> None:
    operands = arguments(name, 10**6, np.float32)
    exact = FUNCTIONS[name].of_doubles(*(operand.astype(np.float64) for operand in operands))
    bound = FUNCTIONS[name].single * last_place(exact, np.float32)
    ours = call(f"{name}f", np.float32, *operands)
    check_errors(ours, exact, bound, name)
    same_bits(call(f"{name}f", np.float32, *(operand[::-1] for operand in operands)), ours[::-1])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_double_precision_errors_are_documented_ones(name: str) -> None:
    operands = arguments(name, 1500, np.float64)
    with mpmath.workprec(160):
        exact = [
            FUNCTIONS[name].of_mpmath(*(mpmath.mpf(v) for v in values))
            for values in zip(*(operand.tolist() for operand in operands), strict=True)
        ]
        high = [float(value) for value in exact]
        low = [float(value - whole) if np.isfinite(whole) else 0.0 for value, whole in zip(exact, high, strict=True)]
    values = np.array(high, np.longdouble) + np.array(low, np.longdouble)
    bound = FUNCTIONS[name].double * last_place(values, np.float64)
    check_errors(call(name, np.float64, *operands), values, bound, name)


def near_one(values: np.ndarray, absolute: float, otherwise: np.ndarray) -> np.ndarray:
    return np.where((values >= 0.5) & (values <= 2), absolute, otherwise)


def ulps(exact: np.ndarray) -> np.ndarray:
    return last_place(exact, np.float32)


# Where to try, what it should be, and the largest error (Programming Guide, "Intrinsic Functions").
FAST = {
    "__expf": (((-87, 88),), np.exp, lambda v, exact: (2 + np.floor(np.abs(1.173 * v))) * ulps(exact)),
    "__exp10f": (((-37, 38),), FUNCTIONS["exp10"].of_doubles, lambda v, e: (2 + np.floor(np.abs(2.97 * v))) * ulps(e)),
    "__logf": ((POSITIVE, (0.5, 2)), np.log, lambda v, exact: near_one(v, 2**-21.41, 3 * ulps(exact))),
    "__log2f": ((POSITIVE, (0.5, 2)), np.log2, lambda v, exact: near_one(v, 2.0**-22, 2 * ulps(exact))),
    "__log10f": ((POSITIVE, (0.5, 2)), np.log10, lambda v, exact: near_one(v, 2.0**-24, 3 * ulps(exact))),
    "__sinf": (((-np.pi, np.pi),), np.sin, lambda v, exact: 2**-21.41),
    "__cosf": (((-np.pi, np.pi),), np.cos, lambda v, exact: 2**-21.19),
    "__tanhf": (((-9, 9), (-1, 1)), np.tanh, lambda v, exact: np.abs(exact) * 2.0**-11),
}


@pytest.mark.parametrize("name", FAST)
def test_errors_of_fast_functions_are_documented_ones(name: str) -> None:
    ranges, function, bound = FAST[name]
    random = np.random.default_rng(10)
    values = np.concatenate([within(*limits, 10**6 // len(ranges), np.float32, random) for limits in ranges])
    exact = function(values.astype(np.float64))
    ours = call(name, np.float32, values)
    if name == "__sinf":  # subnormal results are flushed
        assert not np.any((ours != 0) & (np.abs(ours) < 2.0**-126))
    check_errors(ours, exact, bound(values.astype(np.float64), exact), name)
    same_bits(call(name, np.float32, values[::-1]), ours[::-1])


def test_fast_sine_and_cosine_get_worse_with_the_argument() -> None:
    random = np.random.default_rng(11)
    for name, function in (("__sinf", np.sin), ("__cosf", np.cos)):
        for limit, bound in ((2 * np.pi, 2**-20.5), (100 * np.pi, 2**-14.7)):  # PTX ISA, sin and cos
            values = within(-limit, limit, 1 << 20, np.float32, random)
            check_errors(call(name, np.float32, values), function(values.astype(np.float64)), bound, name)
        far = within(1e6, 1e30, 1 << 16, np.float32, random)
        results = call(name, np.float32, far)
        assert np.all(np.abs(results) <= 1) and np.mean(np.abs(results - function(far.astype(np.float64)))) > 0.1


def test_errors_of_fast_functions_of_two_steps() -> None:
    random = np.random.default_rng(12)
    values = within(-np.pi, np.pi, 1 << 20, np.float32, random)
    sine, cosine = np.sin(values.astype(np.float64)), np.cos(values.astype(np.float64))
    clear = np.abs(cosine) > 1e-3
    lowest, highest = np.abs(cosine) - 2**-21.19, np.abs(sine) + 2**-21.41
    tangent = sine / cosine
    bound = highest / lowest - np.abs(tangent) + 3 * ulps(tangent)
    ours = call("__tanf", np.float32, values)
    flushed = np.abs(ours) < 2.0**-126
    assert np.all(ours[flushed] == 0)
    check_errors(ours[clear], tangent[clear], bound[clear], "__tanf")

    base, power = (
        random.permutation(within(*limits, 1 << 20, np.float32, random))[: 1 << 19]
        for limits in ((0.01, 20), (-20, 20))
    )
    power = power[: base.size]
    base, power = base[: power.size].astype(np.float64), power.astype(np.float64)
    exponent = power * np.log2(base)
    of_logarithm = np.abs(power) * near_one(base, 2.0**-22, 2 * ulps(np.log2(base)))
    bound = (np.exp2(of_logarithm + ulps(exponent)) - 1) * np.exp2(exponent) + 3 * ulps(np.exp2(exponent))
    ours = call("__powf", np.float32, base.astype(np.float32), power.astype(np.float32))
    check_errors(ours, np.exp2(exponent), bound, "__powf")


def test_fast_division() -> None:
    random = np.random.default_rng(13)
    a = random.integers(0, 1 << 32, 1 << 20, dtype=np.uint32).view(np.float32)
    b = np.ldexp(random.uniform(1, 2, 1 << 20), random.integers(-126, 126, 1 << 20)).astype(np.float32)
    a, b = a[np.isfinite(a)], b[np.isfinite(a)]
    exact = a.astype(np.float64) / b
    check_errors(call("__fdividef", np.float32, a, b), exact, 2 * ulps(exact), "__fdividef")
    large = np.array([2.0**126, 2.0**126 * 1.5, -(2.0**127), 3e38], np.float32)
    same_bits(call("__fdividef", np.float32, np.full(3, 1e38, np.float32), large[1:]), np.array([0.0, -0.0, 0.0]))
    assert np.all(np.isnan(call("__fdividef", np.float32, np.full(3, np.inf, np.float32), large[1:])))
    assert call("__fdividef", np.float32, large[:1], large[:1])[0] == pytest.approx(1, abs=2**-22)
    special = np.array([0.0, 1.0, np.inf, np.nan, -0.0, -np.inf], np.float32)
    x, y = (grid.ravel() for grid in np.meshgrid(special, special))
    x, y = x[(x != 1) | (y != 1)], y[(x != 1) | (y != 1)]
    with np.errstate(invalid="ignore", divide="ignore"):
        same_bits(call("__fdividef", np.float32, x, y), x / y)


# Documented in CUDA's math API reference, function by function: arguments and results.
SPECIAL = {
    "exp": "0:1 -0:1 inf:inf -inf:0 nan:nan 1000:inf -2000:0",
    "exp2": "0:1 -0:1 inf:inf -inf:0 nan:nan 1025:inf -2000:0",
    "exp10": "0:1 -0:1 inf:inf -inf:0 nan:nan 400:inf -400:0",
    "expm1": "0:0 -0:-0 inf:inf -inf:-1 nan:nan",
    "log": "1:0 0:-inf -0:-inf -1:nan inf:inf nan:nan",
    "log2": "1:0 0:-inf -0:-inf -1:nan inf:inf nan:nan",
    "log10": "1:0 0:-inf -0:-inf -1:nan inf:inf nan:nan",
    "log1p": "0:0 -0:-0 -1:-inf -2:nan inf:inf nan:nan",
    "sin": "0:0 -0:-0 inf:nan -inf:nan nan:nan",
    "cos": "0:1 -0:1 inf:nan -inf:nan nan:nan",
    "tan": "0:0 -0:-0 inf:nan nan:nan",
    "sinpi": "0:0 -0:-0 7:0 inf:nan nan:nan",
    "cospi": "0:1 -0:1 0.5:0 inf:nan nan:nan",
    "asin": "0:0 -0:-0 2:nan -2:nan nan:nan",
    "acos": "1:0 2:nan nan:nan",
    "atan": "0:0 -0:-0 inf:1.5707963267948966 -inf:-1.5707963267948966 nan:nan",
    "sinh": "0:0 -0:-0 inf:inf -inf:-inf nan:nan",
    "cosh": "0:1 inf:inf -inf:inf nan:nan",
    "tanh": "0:0 -0:-0 inf:1 -inf:-1 nan:nan",
    "asinh": "0:0 -0:-0 inf:inf -inf:-inf nan:nan",
    "acosh": "1:0 0.5:nan inf:inf nan:nan",
    "atanh": "0:0 -0:-0 1:inf -1:-inf 2:nan nan:nan",
    "erf": "0:0 -0:-0 inf:1 -inf:-1 nan:nan",
    "erfc": "inf:0 -inf:2 nan:nan",
    "cbrt": "0:0 -0:-0 inf:inf -inf:-inf nan:nan",
    "rcbrt": "0:inf -0:-inf inf:0 -inf:-0 nan:nan",
    "rsqrt": "0:inf -0:-inf inf:0 -1:nan nan:nan",
}
ALIKE = {
    "__expf": "exp",
    "__exp10f": "exp10",
    "__logf": "log",
    "__log2f": "log2",
    "__log10f": "log10",
    "__sinf": "sin",
    "__cosf": "cos",
    "__tanf": "tan",
    "__tanhf": "tanh",
}


@pytest.mark.parametrize("name", [*SPECIAL, *ALIKE])
def test_special_arguments(name: str) -> None:
    special = [pair.split(":") for pair in SPECIAL[ALIKE.get(name, name)].split()]
    alike = ((f"{name}f", np.float32), (name, np.float64)) if name in SPECIAL else ((name, np.float32),)
    for function, dtype in alike:
        operands, results = (np.array([float(v) for v in column], dtype) for column in zip(*special, strict=True))
        same_bits(call(function, dtype, operands), results)


def test_special_arguments_of_two() -> None:
    special = np.array([0.0, -0.0, 1, -1, 0.5, 2, 3, -2, -3, -2.5, np.inf, -np.inf, np.nan])
    a, b = (grid.ravel() for grid in np.meshgrid(special, special))
    with np.errstate(all="ignore"):
        functions = {
            "atan2": np.arctan2(a, b),
            "hypot": np.hypot(a, b),
            "rhypot": 1 / np.hypot(a, b),
            "pow": np.power(a, b),
        }
    for name, expected in functions.items():
        exact = (a == 0) | (b == 0) | ~np.isfinite(a) | ~np.isfinite(b) | np.isnan(expected)
        exact |= (name == "pow") & (a == 1)
        for function, dtype in ((f"{name}f", np.float32), (name, np.float64)):
            ours = call(function, dtype, a.astype(dtype), b.astype(dtype))
            same_bits(ours[exact], expected[exact])
            np.testing.assert_allclose(ours[~exact], expected[~exact], rtol=4 * np.finfo(dtype).eps)
            np.testing.assert_array_equal(np.signbit(ours[~exact]), np.signbit(expected[~exact]))


def test_symmetric_functions_are_so_to_the_last_bit() -> None:
    odd = ("sin", "tan", "sinpi", "asin", "atan", "sinh", "tanh", "asinh", "atanh", "erf", "cbrt", "rcbrt")
    for name in odd:
        values = arguments(name, 10000, np.float32)[0]
        same_bits(call(f"{name}f", np.float32, -values), -call(f"{name}f", np.float32, values))
    for name in ("cos", "cosh", "cospi"):
        values = arguments(name, 10000, np.float32)[0]
        same_bits(call(f"{name}f", np.float32, -values), call(f"{name}f", np.float32, values))
    for name in ("hypot", "rhypot"):
        a, b = arguments(name, 10000, np.float32)
        ours = call(f"{name}f", np.float32, a, b)
        same_bits(call(f"{name}f", np.float32, b, a), ours)
        same_bits(call(f"{name}f", np.float32, a, -b), ours)


def test_results_stay_where_devices_keep_them() -> None:
    large = np.linspace(4, 100, 10000).astype(np.float32)
    for name, saturated_at in (("tanhf", 12), ("erff", 5), ("__tanhf", 12)):
        results = call(name, np.float32, large)
        assert np.all(results <= 1) and np.all(results[large > saturated_at] == 1)
    near_peak = (np.pi / 2 + np.linspace(-1e-3, 1e-3, 10000)).astype(np.float32)
    for name in ("sinf", "__sinf"):
        assert call(name, np.float32, near_peak).max() <= 1
    assert np.all(call("erfcf", np.float32, -large) <= 2)
    small = np.linspace(-104, -87, 10000).astype(np.float32)
    assert np.all(call("expf", np.float32, small) >= 0)
    assert np.all(np.isfinite(call("expf", np.float32, np.linspace(88, 88.72, 10000).astype(np.float32))))


def test_every_way_to_a_function_ends_at_the_same() -> None:
    values = np.random.default_rng(14).uniform(-5, 5, 10000).astype(np.float32)
    doubles = values.astype(np.float64)
    same_bits(call("std::exp(float)", np.float32, values), call("expf", np.float32, values))
    same_bits(call("std::exp(double)", np.float64, doubles), call("exp", np.float64, doubles))
    same_bits(call("overloaded_tanh", np.float32, values), call("tanhf", np.float32, values))
    positive = np.abs(values)
    same_bits(call("std_pow", np.float32, positive, values), call("powf", np.float32, positive, values))
    for name, sine, cosine in (
        ("sine_and_cosine(float)", "sinf", "cosf"),
        ("by_sincosf", "sinf", "cosf"),
        ("by_fast_sincosf", "__sinf", "__cosf"),
    ):
        both = call(name, np.dtype((np.float32, 2)), values)
        same_bits(both[:, 0], call(sine, np.float32, values))
        same_bits(both[:, 1], call(cosine, np.float32, values))
    both = call("sine_and_cosine(double)", np.dtype((np.float64, 2)), doubles)
    same_bits(both[:, 0], call("sin", np.float64, doubles))
    same_bits(both[:, 1], call("cos", np.float64, doubles))
