"""Verdicts on a computed tensor: is it within the bound of the oracle, how far off is it, are two runs alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bounds import Bounded


def same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    """Equal to the bit, NaN for NaN and -0.0 unlike 0.0."""
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    if not a.is_floating_point():
        return torch.equal(a, b)
    as_integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(as_integers), b.view(as_integers))


def find_fault(actual: Tensor | None, expected: Bounded, dtype: torch.dtype | None = None) -> str | None:
    """What is wrong with a result, in words.

    Every element must lie within its bound; NaN and infinities must stand where the oracle has them, the
    infinities with their signs. Where the oracle is beyond the type's range an infinity is the right rounding and
    passes, as does a finite value of that sign.

    Args:
        actual: the result, any dtype and device; None if there is none.
        expected: the oracle's value and bound, float64 on the CPU.
        dtype: the type that the result must have; None for any.

    Returns:
        None if nothing is.
    """
    if actual is None:
        return "there is none"
    want, bound = expected.value, expected.error
    if actual.shape != want.shape:
        return f"shape {tuple(actual.shape)}, expected {tuple(want.shape)}"
    if dtype is not None and actual.dtype != dtype:
        return f"{_name(actual.dtype)}, expected {_name(dtype)}"
    got = actual.detach().cpu().double()
    finite = _representable(want, actual.dtype)
    if not torch.equal(got.isnan(), want.isnan()):
        return f"NaN at {_places(got.isnan() != want.isnan())}, where oracle and result disagree"
    infinite = ~finite & ~want.isnan()
    if not torch.equal(got[infinite].sign(), want[infinite].sign()):
        return "sign of an infinity"
    if not bool(got[want.isinf()].isinf().all()):
        return f"finite at {_places(want.isinf() & ~got.isinf())}, not inf"
    if not bool(got[finite].isfinite().all()):
        return f"not finite at {_places(finite & ~got.isfinite())}"
    if bool(bound[finite].isnan().any()):
        return "the bound is NaN where the value is finite"
    error = (got - want).abs()
    bad = finite & (error > bound)
    if not bool(bad.any()):
        return None
    worst = torch.where(finite, error / bound.clamp_min(1e-300), torch.zeros_like(error)).argmax()
    return (
        f"{int(bad.sum())} of {bad.numel()} elements beyond the bound, first {_places(bad)}; worst: "
        f"got {got.flatten()[worst]:.9g}, expected {want.flatten()[worst]:.9g}, error "
        f"{error.flatten()[worst]:.3g}, bound {bound.flatten()[worst]:.3g}"
    )


@dataclass(frozen=True)
class Errors:
    """How far a result is from the oracle, over the elements that are finite in both.

    An ulp is the distance of neighbouring numbers of the result's type. ``scaled`` errors count in ulps of the
    tensor's largest expected value, ``own`` errors in ulps of each element's own. Of a value that is not above its
    own bound no digit is certain, and ulps of it say nothing: cancellation has left next to nothing. ``own`` leaves
    such elements out, ``scaled`` tensors that have no others. The bound judges all.

    Attributes:
        scaled_count: number of elements with a scaled error; 0 or all.
        scaled_max: the largest.
        scaled_sum: their sum.
        own_count: number of elements with an own error.
        own_max: the largest.
        own_sum: their sum.
        of_bound: largest error as a fraction of the element's bound; inf where the bound is 0 and the error not.
    """

    scaled_count: int = 0
    scaled_max: float = 0.0
    scaled_sum: float = 0.0
    own_count: int = 0
    own_max: float = 0.0
    own_sum: float = 0.0
    of_bound: float = 0.0


def measure(actual: Tensor, expected: Bounded) -> Errors:
    """Errors of a result of the expected shape; see :class:`Errors`."""
    got, want = actual.detach().cpu().double(), expected.value
    counted = _representable(want, actual.dtype) & got.isfinite() & ~expected.error.isnan()
    got, want, bound = got[counted], want[counted], expected.error[counted]
    if not got.numel():
        return Errors()
    error = (got - want).abs()
    of_bound = torch.where(error > 0, error / bound, 0.0).max().item()
    certain = want.abs() > bound
    if not bool(certain.any()):
        return Errors(of_bound=of_bound)
    scaled = error / ulp(want[certain].abs().max(), actual.dtype)
    own = error[certain] / ulp(want[certain], actual.dtype)
    return Errors(
        scaled.numel(),
        scaled.max().item(),
        scaled.sum().item(),
        own.numel(),
        own.max().item(),
        own.sum().item(),
        of_bound,
    )


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance between neighbouring numbers of a type around a value, never below its smallest subnormal.

    Args:
        value: float64, any shape, finite and within the range of ``dtype``.
        dtype: a floating type, or an integer type, whose numbers are 1 apart.
    """
    if not dtype.is_floating_point:
        return torch.ones_like(value)
    info = torch.finfo(dtype)
    rounded = value.to(dtype).double()
    # Below the smallest normal number the distance no longer shrinks.
    exponent = torch.frexp(rounded.abs().clamp_min(info.tiny)).exponent.double() - 1  # of the leading bit
    return torch.exp2(exponent) * info.eps


def _representable(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a value is a finite number of the type."""
    limit = torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max
    return value.isfinite() & (value.abs() <= limit)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _places(mask: Tensor) -> str:
    places = mask.nonzero().tolist()
    return ", ".join(map(str, places[:4])) + (f" and {len(places) - 4} more" if len(places) > 4 else "")
