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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

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


def product_error(dtype: torch.dtype) -> float:
    """Relative error of a product of a convolution's operands, beside that of adding it up."""
    return TF32_PRODUCT if _tf32.get() and dtype == torch.float32 else 0.0


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

    @staticmethod
    def together(parts: Sequence[Bounded], axis: int) -> Bounded:
        """Concatenated."""
        values, errors = torch.cat([p.value for p in parts], axis), torch.cat([p.error for p in parts], axis)
        return Bounded(values, errors, parts[0].u)

    def beside(self, other: Bounded) -> Bounded:
        """[m, k] and [m, l] as [m, k + l]."""
        return Bounded.together([self, other], 1)

    def columns(self, blocks: int) -> list[Bounded]:
        """[m, k] as so many of [m, k / blocks]."""
        pairs = zip(self.value.chunk(blocks, 1), self.error.chunk(blocks, 1), strict=True)
        return [Bounded(value, error, self.u) for value, error in pairs]

    def where(self, mask: Tensor, other: Bounded) -> Bounded:
        """These values where the mask is true, the other's elsewhere; an error counts where its value does."""
        value, error = torch.where(mask, self.value, other.value), torch.where(mask, self.error, other.error)
        return Bounded(value, error, self.u)

    def either(self, other: Bounded) -> Bounded:
        """The same values computed in two ways, of which either may be taken."""
        return Bounded(self.value, torch.maximum(self.error, other.error), self.u)

    def view(self, *shape: int) -> Bounded:
        """The same values in another shape."""
        return Bounded(self.value.reshape(*shape), self.error.reshape(*shape), self.u)

    def relu(self) -> Bounded:
        """Rectified."""
        # Of -inf nothing is left, whatever its error.
        error = torch.where(self.value == -torch.inf, 0.0, self.error)
        return Bounded(self.value.clamp(min=0), error, self.u)

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
