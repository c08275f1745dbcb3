"""The emulator's arithmetic where each result is the exact one rounded once."""

from __future__ import annotations

import ctypes
import functools
import math
import os
from collections.abc import Callable
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from emulator_calls import call, load, same_bits

if os.environ.get("FASTNN_TEST_EMULATOR") == "0" and os.environ.get("FASTNN_EMULATE", "0") == "0":
    pytest.skip("FASTNN_TEST_EMULATOR=0", allow_module_level=True)

MODES = ("rn", "rz", "rd", "ru")


# --- exact rounding ---


class Format:
    """An IEEE binary format, and rounding to it: of arrays of doubles, and of fractions."""

    def __init__(self, fraction_bits: int, min_exponent: int) -> None:
        self.fraction_bits = fraction_bits
        self.min_exponent = min_exponent
        self.max_exponent = 1 - min_exponent
        self.largest = 2.0**self.max_exponent * (2 - 2.0**-fraction_bits)

    def round(self, values: np.ndarray, mode: str = "rn") -> np.ndarray:
        """Of doubles: dividing by a power of two is exact, and NumPy's rint rounds to nearest even."""
        values = np.asarray(values, np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            exponent = np.maximum(np.frexp(values)[1] - 1, self.min_exponent)
            place = np.ldexp(1.0, exponent - self.fraction_bits)
            whole = {"rn": np.rint, "rz": np.trunc, "rd": np.floor, "ru": np.ceil}[mode](values / place)
            rounded = np.copysign(whole * place, values)
        return np.where(np.isfinite(values), self._limited(rounded, values, mode), values)

    def _limited(self, rounded: np.ndarray, values: np.ndarray, mode: str) -> np.ndarray:
        stays = {"rn": False, "rz": True, "rd": values > 0, "ru": values < 0}[mode]
        limit = np.where(stays, self.largest, np.inf)
        return np.where(np.abs(rounded) > self.largest, np.copysign(limit, values), rounded)

    def round_fraction(self, value: Fraction, mode: str = "rn") -> float:
        """Of an exact value other than zero."""
        magnitude, negative = abs(value), value < 0
        exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
        if Fraction(2) ** exponent > magnitude:
            exponent -= 1
        place = Fraction(2) ** (max(exponent, self.min_exponent) - self.fraction_bits)
        steps = magnitude / place
        whole = steps.numerator // steps.denominator
        rest = steps - whole
        away = {
            "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1),
            "rz": False,
            "rd": negative and rest > 0,
            "ru": not negative and rest > 0,
        }[mode]
        rounded = (whole + away) * place
        if rounded > Fraction(self.largest):
            stays = mode == "rz" or (mode == "rd" and not negative) or (mode == "ru" and negative)
            result = self.largest if stays else float("inf")
        else:
            result = float(rounded)
        return -result if negative else result


FLOAT32 = Format(23, -126)
FORMATS = {"half": Format(10, -14), "bfloat16": Format(7, -126)}
DTYPES = {"half": torch.float16, "bfloat16": torch.bfloat16}
HALVES = pytest.mark.parametrize("name", ["half", "bfloat16"])
ALL_BITS = np.arange(1 << 16, dtype=np.uint16)


def numbers(bits: np.ndarray, name: str) -> np.ndarray:
    """The doubles that the bits stand for, by torch."""
    return torch.from_numpy(bits.view(np.int16)).view(DTYPES[name]).double().numpy()


def bits_of(values: np.ndarray, name: str) -> np.ndarray:
    """Of doubles that the type holds exactly; the device's NaN."""
    bits = torch.from_numpy(np.array(values, np.float64)).to(DTYPES[name]).view(torch.int16).numpy().view(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), bits)


@functools.cache
def sample(name: str) -> np.ndarray:
    """Bits of every sign and exponent with fractions at the ends, near the middle and at random; infinities; NaN."""
    fraction_bits = FORMATS[name].fraction_bits
    random = np.random.default_rng(0)
    count = 1 << fraction_bits
    fractions = {0, 1, 2, count // 2 - 1, count // 2, count // 2 + 1, count - 2, count - 1}
    exponents = np.arange(1 << (15 - fraction_bits))
    if name == "bfloat16":  # neighbours of the ends and of 1, and of each other
        exponents = np.unique([*range(18), *range(119, 137), *range(238, 256), *random.integers(0, 255, 20)])
        fractions = {0, 1, count // 2, count - 1}
    rows = [[*fractions, *random.integers(0, count, 4 if name == "half" else 3)] for _ in exponents]
    bits = (exponents[:, None] << fraction_bits | np.array(rows)).ravel()
    return np.unique(np.concatenate([bits, bits | 0x8000])).astype(np.uint16)


@functools.cache
def pairs(name: str) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.meshgrid(sample(name), sample(name))
    return first.ravel(), second.ravel()


# --- the 16-bit types: conversions ---


def to_half(values: np.ndarray, name: str, from_float: bool) -> np.ndarray:
    values = np.ascontiguousarray(values, dtype=np.float64)
    bits = np.empty(values.shape, np.uint16)
    pointer = ctypes.c_void_p
    load().fastnn_emulator_to_half(
        pointer(values.ctypes.data),
        ctypes.c_bool(from_float),
        ctypes.c_bool(name == "bfloat16"),
        pointer(bits.ctypes.data),
        ctypes.c_int64(values.size),
    )
    return bits


def from_half(bits: np.ndarray, name: str) -> np.ndarray:
    values = np.empty(bits.shape, np.float32)
    pointer = ctypes.c_void_p
    load().fastnn_emulator_from_half(
        pointer(bits.ctypes.data),
        ctypes.c_bool(name == "bfloat16"),
        pointer(values.ctypes.data),
        ctypes.c_int64(bits.size),
    )
    return values


def floats_around_ties(name: str) -> np.ndarray:
    """Random floats, and those around every tie of a normal number of the type and around the limits."""
    half_place = 12 if name == "half" else 15
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    ties = (np.arange(1 << 17, dtype=np.uint32) << half_place)[:, None] + np.array([-1, 0, 1]).astype(np.uint32)
    ties = ties.ravel() + (0 if name == "bfloat16" else np.uint32(0x33000000 - (1 << 23)))
    return np.concatenate([random, ties, ties | np.uint32(1 << 31)]).view(np.float32)


@HALVES
def test_every_half_is_read_as_torch_reads_it(name: str) -> None:
    theirs = numbers(ALL_BITS, name).astype(np.float32)
    same_bits(from_half(ALL_BITS, name), theirs)
    same_bits(call(f"__{name}2float", np.float32, ALL_BITS), theirs)


@HALVES
def test_floats_are_rounded_as_torch_rounds_them(name: str) -> None:
    values = floats_around_ties(name)
    theirs = torch.from_numpy(values).to(DTYPES[name]).view(torch.int16).numpy().view(np.uint16).copy()
    theirs[np.isnan(values)] = 0x7FFF
    with np.errstate(invalid="ignore"):
        ours = to_half(values.astype(np.float64), name, from_float=True)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(call(f"__float2{name}", np.uint16, values), theirs)


@HALVES
def test_doubles_are_rounded_once(name: str) -> None:
    finite = torch.arange(1 << 15, dtype=torch.int32).to(torch.int16).view(DTYPES[name])
    exact = finite[torch.isfinite(finite)].double().numpy()
    below, above = exact[:-1], exact[1:]
    middle = (below + above) / 2
    bits = np.arange(len(exact), dtype=np.uint16)
    nudge = middle * 2.0**-45  # less than a float can tell
    np.testing.assert_array_equal(to_half(exact, name, False), bits)
    np.testing.assert_array_equal(to_half(middle - nudge, name, False), bits[:-1])
    np.testing.assert_array_equal(to_half(middle + nudge, name, False), bits[1:])
    np.testing.assert_array_equal(to_half(middle, name, False), (bits[:-1] + 1) // 2 * 2)
    top = exact[-1] + (exact[-1] - exact[-2]) / 2  # the tie between the largest number and infinity
    largest, infinity = bits[-1], bits[-1] + 1
    special = np.array([top * (1 - 2.0**-45), top, 1e300, -1e300, np.nan, -0.0, 5e-324, -5e-324])
    expected = np.array([largest, infinity, infinity, infinity | 0x8000, 0x7FFF, 0x8000, 0, 0x8000], np.uint16)
    np.testing.assert_array_equal(to_half(special, name, False), expected)
    np.testing.assert_array_equal(call(f"__double2{name}", np.uint16, special), expected)


@HALVES
@pytest.mark.parametrize("mode", MODES)
def test_floats_become_halves_in_every_direction(name: str, mode: str) -> None:
    values = floats_around_ties(name)
    with np.errstate(invalid="ignore"):
        expected = bits_of(FORMATS[name].round(values.astype(np.float64), mode), name)
    np.testing.assert_array_equal(call(f"__float2{name}_{mode}", np.uint16, values), expected)


INTEGERS = {
    "int": np.int32,
    "uint": np.uint32,
    "short": np.int16,
    "ushort": np.uint16,
    "ll": np.int64,
    "ull": np.uint64,
    "char": np.int8,
    "uchar": np.uint8,
}


def integers_around_ties(dtype: type) -> np.ndarray:
    """Integers of every length, next to those of which a half or a float stands in the middle or at the end."""
    info = np.iinfo(dtype)
    random = np.random.default_rng(1)
    bits = info.bits
    shifted = random.integers(0, 1 << 63, 1000, dtype=np.uint64) >> random.integers(0, 63, 1000, dtype=np.uint64)
    values = {int(value) % (info.max + 1) for value in shifted}
    for exponent in range(bits):
        for kept in (8, 9, 11, 12, 24, 25):
            step = 1 << max(exponent - kept, 0)
            odd = (1 << exponent) + 3 * step
            values |= {base + nudge for base in (1 << exponent, odd) for nudge in (-1, 0, 1)}
    values |= {-value for value in values} | {info.min, info.max}
    return np.array([value for value in values if info.min <= value <= info.max], dtype)


@pytest.mark.parametrize("kind", ["int", "uint", "short", "ushort", "ll", "ull"])
@pytest.mark.parametrize("mode", MODES)
def test_integers_are_rounded_once(kind: str, mode: str) -> None:
    values = integers_around_ties(INTEGERS[kind])
    for name, form in FORMATS.items():
        expected = [form.round_fraction(Fraction(int(v)), mode) if v else 0.0 for v in values]
        ours = call(f"__{kind}2{name}_{mode}", np.uint16, values)
        np.testing.assert_array_equal(ours, bits_of(np.array(expected), name))
    if kind not in ("short", "ushort"):
        expected = [FLOAT32.round_fraction(Fraction(int(v)), mode) if v else 0.0 for v in values]
        same_bits(call(f"__{kind}2float_{mode}", np.float32, values), np.array(expected))


def to_integer(values: np.ndarray, mode: str, dtype: type, nan: int) -> np.ndarray:
    """Saturating; Python's integers, for 2^63 - 1 is no double."""
    info = np.iinfo(dtype)
    rounded = {"rn": np.rint, "rz": np.trunc, "rd": np.floor, "ru": np.ceil}[mode](values)
    limits = {np.inf: info.max, -np.inf: info.min}
    whole = [nan if v != v else limits[v] if v in limits else min(max(int(v), info.min), info.max) for v in rounded]
    return np.array(whole, dtype)


@HALVES
@pytest.mark.parametrize("kind", INTEGERS)
def test_halves_become_integers(name: str, kind: str) -> None:
    dtype = INTEGERS[kind]
    nan = {"ll": -(1 << 63), "ull": 1 << 63}.get(kind, 0)
    for mode in ("rz",) if "char" in kind else MODES:
        ours = call(f"__{name}2{kind}_{mode}", dtype, ALL_BITS)
        np.testing.assert_array_equal(ours, to_integer(numbers(ALL_BITS, name), mode, dtype, nan))


@pytest.mark.parametrize("kind", ["int", "uint", "ll", "ull"])
@pytest.mark.parametrize("source", ["float", "double"])
def test_floats_become_integers(kind: str, source: str) -> None:
    dtype = INTEGERS[kind]
    random = np.random.default_rng(2)
    values = np.ldexp(random.uniform(-1, 1, 4000), random.integers(-2, 70, 4000))
    special = [0.5, 1.5, 2.5, -0.5, -0.25, -1.5, 2.0**31, 2.0**32, 2.0**63, 2.0**64, 1e30, np.inf, np.nan, -0.0]
    values = np.concatenate([values, special, np.negative(special)])
    values = values.astype(np.float32 if source == "float" else np.float64)
    info = np.iinfo(dtype)
    wide = source == "double" or info.bits == 64  # PTX ISA, cvt: what becomes of NaN
    nan = 0 if not wide else info.min if info.min < 0 else 1 << (info.bits - 1)
    for mode in MODES:
        ours = call(f"__{source}2{kind}_{mode}", dtype, values)
        np.testing.assert_array_equal(ours, to_integer(values, mode, dtype, nan))


@HALVES
def test_halves_are_reinterpreted_and_paired(name: str) -> None:
    np.testing.assert_array_equal(call(f"__{name}_as_ushort", np.uint16, ALL_BITS), ALL_BITS)
    np.testing.assert_array_equal(call(f"__{name}_as_short", np.int16, ALL_BITS), ALL_BITS.view(np.int16))
    np.testing.assert_array_equal(call(f"__ushort_as_{name}", np.uint16, ALL_BITS), ALL_BITS)
    np.testing.assert_array_equal(call(f"__short_as_{name}", np.uint16, ALL_BITS.view(np.int16)), ALL_BITS)
    a, b = sample(name), sample(name)[::-1].copy()
    pair, other = paired(a, b), paired(b, a[::-1].copy())
    both = {
        f"__halves2{name}2": (paired(a, b), (a, b)),
        f"__{name}2{name}2": (paired(a, a), (a,)),
        f"__low2{name}2": (paired(a, a), (pair,)),
        f"__high2{name}2": (paired(b, b), (pair,)),
        f"__lows2{name}2": (paired(a, b), (pair, other)),
        f"__highs2{name}2": (paired(b, a[::-1]), (pair, other)),
        f"__lowhigh2highlow({name})": (paired(b, a), (pair,)),
    }
    for function, (expected, operands) in both.items():
        np.testing.assert_array_equal(call(function, np.uint32, *operands), expected, err_msg=function)
    np.testing.assert_array_equal(call(f"__low2{name}", np.uint16, pair), a)
    np.testing.assert_array_equal(call(f"__high2{name}", np.uint16, pair), b)
    same_bits(call(f"__low2float({name})", np.float32, pair), numbers(a, name))
    same_bits(call(f"__high2float({name})", np.float32, pair), numbers(b, name))
    float2 = np.dtype((np.float32, 2))
    same_bits(call(f"__{name}22float2", float2, pair), np.stack([numbers(a, name), numbers(b, name)], axis=1))
    values = floats_around_ties(name)[:10000]
    rounded = call(f"__float2{name}_rn", np.uint16, values)
    swapped = rounded[::-1].copy()
    np.testing.assert_array_equal(call(f"__float2{name}2_rn", np.uint32, values), paired(rounded, rounded))
    np.testing.assert_array_equal(
        call(f"__floats2{name}2_rn", np.uint32, values, values[::-1].copy()), paired(rounded, swapped)
    )
    np.testing.assert_array_equal(
        call(f"__float22{name}2_rn", np.uint32, np.stack([values, values[::-1]], axis=1).view(np.uint64).ravel()),
        paired(rounded, swapped),
    )


# --- the 16-bit types: arithmetic ---


def paired(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)


def check_binary(function: str, name: str, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(call(f"{function}({name})", np.uint16, *pairs(name)), bits_of(expected, name))


def exact_pairs(name: str) -> tuple[np.ndarray, np.ndarray]:
    first, second = pairs(name)
    return numbers(first, name), numbers(second, name)


def sums(a: np.ndarray, b: np.ndarray, name: str) -> np.ndarray:
    """a + b rounded once. A double holds the exact sum unless the exponents differ by more than 53 - 11; then the
    larger operand is the result: the smaller one is less than a half of its last place, and a zero of neither."""
    with np.errstate(invalid="ignore"):
        return FORMATS[name].round(a + b)


def saturated(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, np.minimum(values, 1.0), 0.0)


@HALVES
def test_sums_are_rounded_once(name: str) -> None:
    a, b = exact_pairs(name)
    total, difference = sums(a, b, name), sums(a, -b, name)
    check_binary("__hadd", name, total)
    check_binary("__hadd_rn", name, total)
    check_binary("__hadd_sat", name, saturated(total))
    check_binary("__hsub", name, difference)
    check_binary("__hsub_rn", name, difference)
    check_binary("__hsub_sat", name, saturated(difference))


@HALVES
def test_products_are_rounded_once(name: str) -> None:
    a, b = exact_pairs(name)
    with np.errstate(invalid="ignore"):
        product = FORMATS[name].round(a * b)  # exact: 22 bits, and exponents far from a double's ends
    check_binary("__hmul", name, product)
    check_binary("__hmul_rn", name, product)
    check_binary("__hmul_sat", name, saturated(product))


@HALVES
def test_quotients_are_rounded_once(name: str) -> None:
    a, b = exact_pairs(name)
    with np.errstate(invalid="ignore", divide="ignore"):
        # A quotient of 11-bit numbers that is no tie is further from one than 2^-24 of it: the double is on its side.
        check_binary("__hdiv", name, FORMATS[name].round(a / b))


def near_ties(name: str, count: int) -> list[np.ndarray]:
    """Operands of fma whose product lies half way between two numbers, and whose sum with c is next to that, or
    cancels. A part of them at random."""
    form, random = FORMATS[name], np.random.default_rng(3)
    bits = form.fraction_bits
    a, b, c = (numbers(random.integers(0, 1 << 16, count).astype(np.uint16), name) for _ in range(3))
    # (2^k + 1) * (2^(bits + 1 - k) + ...) has bits + 2 bits of which the last is one: a tie.
    split = random.integers(1, bits, count)
    x = 2.0**split + 1
    y = 2.0 ** (bits + 1 - split) + np.where(split > 1, 0.0, 1.0)
    scale = random.integers(-8 if name == "half" else -60, 4 if name == "half" else 60, count)
    tie_a, tie_b = np.ldexp(x, scale), y * np.where(random.integers(0, 2, count) == 0, 1.0, -1.0)
    smallest = 2.0 ** (form.min_exponent - bits)
    tiny = smallest * random.integers(-2, 3, count)
    cancelling = -form.round(tie_a * tie_b) * np.where(random.integers(0, 2, count) == 0, 1.0, 1 + 2.0**-bits)
    third = np.arange(count) % 3
    return [
        np.where(third == 0, a, form.round(tie_a)),
        np.where(third == 0, b, form.round(tie_b)),
        form.round(np.where(third == 0, c, np.where(third == 1, tiny, cancelling))),
    ]


def exact_fma(a: float, b: float, c: float, form: Format) -> float:
    if not (np.isfinite(a) and np.isfinite(b) and np.isfinite(c)):
        with np.errstate(invalid="ignore"):
            return float(np.float64(a) * np.float64(b) + np.float64(c))
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    return form.round_fraction(exact) if exact else float(np.float64(a) * np.float64(b) + np.float64(c))


@HALVES
def test_fma_is_rounded_once(name: str) -> None:
    form = FORMATS[name]
    special = numbers(np.array([0, 0x8000, 1, 0x8001, 0x7C00, 0xFC00, 0x7F80, 0xFF80, 0x7FFF, 0x3C00], np.uint16), name)
    corners = [grid.ravel() for grid in np.meshgrid(special, special, special)]
    operands = [np.concatenate(both) for both in zip(near_ties(name, 24000), corners, strict=True)]
    expected = np.array([exact_fma(a, b, c, form) for a, b, c in zip(*(o.tolist() for o in operands), strict=True)])
    with np.errstate(invalid="ignore"):
        twice = form.round(form.round(operands[0] * operands[1]) + operands[2])
    assert np.count_nonzero(twice != expected) > 1000, "the sample does not tell one rounding from two"
    bits = [bits_of(operand, name) for operand in operands]
    ours = call(f"__hfma({name})", np.uint16, *bits)
    np.testing.assert_array_equal(ours, bits_of(expected, name))
    rectified = np.where(expected <= 0, 0.0, expected)
    np.testing.assert_array_equal(call(f"__hfma_relu({name})", np.uint16, *bits), bits_of(rectified, name))
    np.testing.assert_array_equal(call(f"__hfma_sat({name})", np.uint16, *bits), bits_of(saturated(expected), name))


@HALVES
def test_signs_and_kinds(name: str) -> None:
    values = numbers(ALL_BITS, name)
    np.testing.assert_array_equal(call(f"__hneg({name})", np.uint16, ALL_BITS), bits_of(-values, name))
    np.testing.assert_array_equal(call(f"__habs({name})", np.uint16, ALL_BITS), bits_of(np.abs(values), name))
    np.testing.assert_array_equal(call(f"__hisnan({name})", np.bool_, ALL_BITS), np.isnan(values))
    infinite = np.where(np.isinf(values), np.sign(values), 0)
    np.testing.assert_array_equal(call(f"__hisinf({name})", np.int32, ALL_BITS), infinite)


@HALVES
def test_minimum_and_maximum(name: str) -> None:
    a, b = exact_pairs(name)
    least, most = np.fmin(a, b), np.fmax(a, b)
    zeros = (a == 0) & (b == 0)  # NumPy leaves their order open
    negative, positive = np.signbit(a) | np.signbit(b), ~(np.signbit(a) & np.signbit(b))
    least = np.where(zeros, np.where(negative, -0.0, 0.0), least)
    most = np.where(zeros, np.where(positive, 0.0, -0.0), most)
    check_binary("__hmin", name, least)
    check_binary("__hmax", name, most)
    check_binary("__hmin_nan", name, np.where(np.isnan(a) | np.isnan(b), np.nan, least))
    check_binary("__hmax_nan", name, np.where(np.isnan(a) | np.isnan(b), np.nan, most))


@HALVES
def test_comparisons(name: str) -> None:
    a, b = exact_pairs(name)
    ordered = ~(np.isnan(a) | np.isnan(b))
    holds = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    for function, expected in holds.items():
        bits = pairs(name)
        np.testing.assert_array_equal(call(f"__h{function}({name})", np.bool_, *bits), expected & ordered)
        np.testing.assert_array_equal(call(f"__h{function}u({name})", np.bool_, *bits), expected | ~ordered)


PAIRED = {
    1: {"__hneg": "__hneg2", "__habs": "__habs2"},
    2: {"__hdiv": "__h2div"}
    | {f"__h{f}": f"__h{f}2" for f in ("add", "sub", "mul", "min", "max")}
    | {f"__h{f}_{kind}": f"__h{f}2_{kind}" for f in ("add", "sub", "mul") for kind in ("rn", "sat")}
    | {f"__h{f}_nan": f"__h{f}2_nan" for f in ("min", "max")},
    3: {"__hfma": "__hfma2", "__hfma_sat": "__hfma2_sat", "__hfma_relu": "__hfma2_relu"},
}


@HALVES
def test_pairs_are_two_halves(name: str) -> None:
    random = np.random.default_rng(4)
    low, high = ([random.choice(sample(name), 20000) for _ in range(3)] for _ in range(2))
    both = [paired(x, y) for x, y in zip(low, high, strict=True)]
    for count, functions in PAIRED.items():
        for single, double in functions.items():
            ours = call(f"{double}({name})", np.uint32, *both[:count])
            apart = [call(f"{single}({name})", np.uint16, *operands[:count]) for operands in (low, high)]
            np.testing.assert_array_equal(ours, paired(*apart), err_msg=double)
    one = bits_of(np.array(1.0), name)
    for function in [f + u for f in ("eq", "ne", "lt", "le", "gt", "ge") for u in ("", "u")]:
        apart = [call(f"__h{function}({name})", np.bool_, *operands[:2]) for operands in (low, high)]
        ours = call(f"__h{function}2({name})", np.uint32, *both[:2])
        np.testing.assert_array_equal(ours, paired(apart[0] * one, apart[1] * one), err_msg=function)
        np.testing.assert_array_equal(call(f"__hb{function}2({name})", np.bool_, *both[:2]), apart[0] & apart[1])
    nan = [np.isnan(numbers(operands[0], name)) for operands in (low, high)]
    np.testing.assert_array_equal(call(f"__hisnan2({name})", np.uint32, both[0]), paired(nan[0] * one, nan[1] * one))


# --- tf32 ---


def test_tf32_is_rounded_with_ties_away_or_cut_off() -> None:
    random = np.random.default_rng(5).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    ties = (np.arange(1 << 19, dtype=np.uint32) << np.uint32(13)) + np.uint32(0x1000)
    bits = np.concatenate([random, ties, ties - np.uint32(1), ties + np.uint32(1), np.arange(1 << 14, dtype=np.uint32)])
    values = bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        exact = values.astype(np.float64)
        place = np.ldexp(1.0, np.maximum(np.frexp(exact)[1] - 1, -126) - 10)
        nearest = np.copysign(np.floor(np.abs(exact) / place + 0.5) * place, exact)
        nearest = np.where(np.abs(nearest) >= 2.0**128, np.copysign(np.inf, exact), nearest)
        cut = np.copysign(np.floor(np.abs(exact) / place) * place, exact)
    numbers_ = np.isfinite(values)
    nearest, cut = (np.where(numbers_, result, exact) for result in (nearest, cut))
    rounded = call("round_to_tf32", np.float32, values)
    same_bits(rounded, nearest)
    assert not np.any(rounded.view(np.uint32)[numbers_] & 0x1FFF)
    same_bits(call("truncate_to_tf32", np.float32, values[numbers_]), cut[numbers_])


# --- single precision, rounded in a direction ---


def float_operands(count: int) -> list[np.ndarray]:
    """Of all sizes, close to each other, and special."""
    random = np.random.default_rng(6)
    spread = [random.integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32) for _ in range(3)]
    close = [
        np.ldexp(random.integers(-(1 << 24), 1 << 24, count), random.integers(-26, -20, count)).astype(np.float32)
        for _ in range(3)
    ]
    special = np.array(
        [0, -0.0, 1, -1, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, np.inf, -np.inf, np.nan], np.float32
    )
    corners = [grid.ravel() for grid in np.meshgrid(special, special, special)]
    return [np.concatenate(part) for part in zip(spread, close, corners, strict=True)]


def doubled(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaNs among random bits
        return values.astype(np.float64)


def zero_sum(a: float, b: float, mode: str) -> float:
    """a + b where that is zero: of opposites comes -0 where results are rounded down, otherwise +0."""
    same_signs = np.signbit(a) == np.signbit(b)
    return np.copysign(0.0, a) if a == 0 and same_signs else -0.0 if mode == "rd" else 0.0


# What the exact result is, of fractions; what it is where an operand or the result is zero, infinite or NaN.
SINGLE = {
    "add": (lambda a, b: a + b, lambda a, b, mode: a + b or zero_sum(a, b, mode)),
    "sub": (lambda a, b: a - b, lambda a, b, mode: a - b or zero_sum(a, -b, mode)),
    "mul": (lambda a, b: a * b, lambda a, b, mode: a * b),
    "div": (lambda a, b: a / b, lambda a, b, mode: a / b),
    "rcp": (lambda a: 1 / a, lambda a, mode: 1 / a),
    "maf": (lambda a, b, c: a * b + c, lambda a, b, c, mode: a * b + c or zero_sum(a * b, c, mode)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("function", SINGLE)
def test_single_precision_is_rounded_in_every_direction(function: str, mode: str) -> None:
    exact, at_limits = SINGLE[function]
    operands = float_operands(1500)[: {"rcp": 1, "maf": 3}.get(function, 2)]
    expected = []
    for values in zip(*(np.nditer(doubled(operand)) for operand in operands), strict=True):
        divides_by_zero = function in ("div", "rcp") and values[-1] == 0
        result = Fraction(0)
        if np.all(np.isfinite(values)) and not divides_by_zero:
            result = exact(*(Fraction(float(v)) for v in values))
        with np.errstate(invalid="ignore", divide="ignore"):
            expected.append(FLOAT32.round_fraction(result, mode) if result else float(at_limits(*values, mode)))
    same_bits(call(f"__f{function}_{mode}", np.float32, *operands), np.array(expected))


@pytest.mark.parametrize("mode", MODES)
def test_roots_and_doubles_are_rounded_in_every_direction(mode: str) -> None:
    values = np.abs(float_operands(3000)[0])
    expected = [rounded_root(float(v), mode) if np.isfinite(v) and v > 0 else float(v) for v in values]
    same_bits(call(f"__fsqrt_{mode}", np.float32, values), np.array(expected))
    special = np.array([-1.0, -0.0], np.float32)
    same_bits(call(f"__fsqrt_{mode}", np.float32, special), np.array([np.nan, -0.0]))
    doubles = np.concatenate([doubled(operand) for operand in float_operands(3000)])
    doubles = np.concatenate([doubles * (1 + 2.0**-40), doubles, doubles * (1 + 2.0**-24), [1e300, 5e-324]])
    same_bits(call(f"__double2float_{mode}", np.float32, doubles), FLOAT32.round(doubles, mode))


def rounded_root(v: float, mode: str) -> float:
    """The square root to 24 bits, by whole numbers."""
    exact = Fraction(v)
    shift = 400  # more places than any single-precision root has before it is cut off
    whole = math.isqrt(exact.numerator * 2 ** (2 * shift) // exact.denominator)
    square = Fraction(whole, 2**shift) ** 2
    root = Fraction(whole, 2**shift) + (Fraction(1, 2 ** (shift + 1)) if square != exact else 0)
    return FLOAT32.round_fraction(root, mode)


def test_reciprocal_root_is_rounded_once() -> None:
    random = np.random.default_rng(7)
    values = random.integers(1, 0x7F800000, 3000).astype(np.uint32).view(np.float32)
    with mpmath.workprec(200):
        expected = [float(mpmath.mpf(1) / mpmath.sqrt(mpmath.mpf(float(v)))) for v in values]
    same_bits(call("__frsqrt_rn", np.float32, values), np.array(expected))


def test_float_minimum_orders_zeros_and_drops_nan() -> None:
    special = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan], np.float32)
    a, b = (grid.ravel() for grid in np.meshgrid(special, special))
    least, most = np.fmin(a, b), np.fmax(a, b)
    zeros = (a == 0) & (b == 0)
    least = np.where(zeros, np.where(np.signbit(a) | np.signbit(b), np.float32(-0.0), np.float32(0)), least)
    most = np.where(zeros, np.where(np.signbit(a) & np.signbit(b), np.float32(-0.0), np.float32(0)), most)
    for name in ("min(float)", "fminf"):
        same_bits(call(name, np.float32, a, b), least)
    for name in ("max(float)", "fmaxf", "std_fmax"):
        same_bits(call(name, np.float32, a, b), most)
    same_bits(call("fmin", np.float64, a.astype(np.float64), b.astype(np.float64)), least.astype(np.float64))
    same_bits(call("fmax", np.float64, a.astype(np.float64), b.astype(np.float64)), most.astype(np.float64))


def test_product_is_not_contracted() -> None:
    a = np.array([1 + 2.0**-12], np.float32)
    same_bits(call("product_and_sum", np.float32, a, a, np.array([-1 - 2.0**-11], np.float32)), np.array([0.0]))


def test_saturate() -> None:
    values = np.array([0.0, -0.0, 0.5, 1.0, 1.5, -1.0, np.inf, -np.inf, np.nan, 1e-45], np.float32)
    same_bits(call("__saturatef", np.float32, values), np.array([0, 0, 0.5, 1, 1, 0, 1, 0, 0, 1e-45], np.float32))


def test_integer_functions() -> None:
    random = np.random.default_rng(8)
    edges = np.array([0, 1, 2, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x80808080, 0x7F7F7F7F], np.uint32)
    edge_a, edge_b = (grid.ravel() for grid in np.meshgrid(edges, edges))
    a = np.concatenate([edge_a, random.integers(0, 1 << 32, 3000, dtype=np.uint32)])
    b = np.concatenate([edge_b, random.integers(0, 1 << 32, 3000, dtype=np.uint32)])
    c = random.integers(0, 1 << 32, a.size, dtype=np.uint32)
    unsigned = [[int(v) for v in operand] for operand in (a, b, c)]
    signed = [[int(v) for v in operand.view(np.int32)] for operand in (a, b, c)]

    def check(name: str, dtype: type, function: Callable[..., int], count: int) -> None:
        is_signed = dtype is np.int32
        operands = (signed if is_signed else unsigned)[:count]
        expected = [function(*values) & 0xFFFFFFFF for values in zip(*operands, strict=True)]
        arrays = [v.view(dtype) for v in (a, b, c)[:count]]
        np.testing.assert_array_equal(call(name, np.uint32, *arrays), np.array(expected, np.uint32), err_msg=name)

    def dot(x: int, y: int, z: int, is_signed: bool) -> int:
        def lanes(v: int) -> list[int]:
            return list((v & 0xFFFFFFFF).to_bytes(4, "little"))

        def value(byte: int) -> int:
            return byte - 256 if is_signed and byte > 127 else byte

        return z + sum(value(p) * value(q) for p, q in zip(lanes(x), lanes(y), strict=True))

    def low24(v: int) -> int:
        return ((v & 0xFFFFFF) ^ 0x800000) - 0x800000

    check("dp4a(int)", np.int32, lambda x, y, z: dot(x, y, z, True), 3)
    check("dp4a(unsigned)", np.uint32, lambda x, y, z: dot(x, y, z, False), 3)
    check("hadd(int)", np.int32, lambda x, y: (x + y) >> 1, 2)
    check("__rhadd", np.int32, lambda x, y: (x + y + 1) >> 1, 2)
    check("__uhadd", np.uint32, lambda x, y: (x + y) >> 1, 2)
    check("__urhadd", np.uint32, lambda x, y: (x + y + 1) >> 1, 2)
    check("__sad", np.int32, lambda x, y, z: abs(x - y) + z, 3)
    check("__usad", np.uint32, lambda x, y, z: abs(x - y) + z, 3)
    check("__mulhi", np.int32, lambda x, y: x * y >> 32, 2)
    check("__umulhi", np.uint32, lambda x, y: x * y >> 32, 2)
    check("__mul24", np.int32, lambda x, y: low24(x) * low24(y), 2)
    check("__funnelshift_l", np.uint32, lambda low, high, s: (high << 32 | low) << (s & 31) >> 32, 3)
    check("__funnelshift_r", np.uint32, lambda low, high, s: (high << 32 | low) >> (s & 31), 3)
    check("__funnelshift_lc", np.uint32, lambda low, high, s: (high << 32 | low) << min(s, 32) >> 32, 3)
    check("__funnelshift_rc", np.uint32, lambda low, high, s: (high << 32 | low) >> min(s, 32), 3)
