"""Float64 oracles of the pooling functions, from lists of each window's positions; see ``fastnn/testing/reference.py``.

A window is a product of one list of positions a dimension. Sums over windows are products with matrices of 0 and 1, a
maximum is a scan of the window in row-major order.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .reference import pool_out_size

Windows = list[list[list[int]]]  # for each dimension and each output: the positions


def every(value: int | Sequence[int], rank: int) -> list[int]:
    """One number for each dimension."""
    return [value] * rank if isinstance(value, int) else list(value)


def sliding(
    size: Sequence[int],
    kernel: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> Windows:
    """Windows that move by a stride; positions of the padding are left out.

    Args:
        size: of the input, as are the others torch's.
        kernel: one number or one for each dimension.
        stride: None for the kernel.
        padding: zero or more.
        dilation: one or more.
        ceil_mode: whether the last window may hang over the end.
    """
    rank = len(size)
    options = [every(kernel if o is None else o, rank) for o in (kernel, stride, padding, dilation)]
    return [
        [
            [i for i in range(o * s - p, o * s - p + k * d, d) if 0 <= i < n]
            for o in range(pool_out_size(n, k, s, p, d, ceil_mode))
        ]
        for n, k, s, p, d in zip(size, *options, strict=True)
    ]


def adaptive(size: Sequence[int], out: int | Sequence[int | None]) -> Windows:
    """Windows from floor(o * in / out) to ceil((o + 1) * in / out); None for the input's size."""
    sizes = [n if o is None else o for n, o in zip(size, every(out, len(size)), strict=True)]
    return [[list(range(o * n // m, -(-(o + 1) * n // m))) for o in range(m)] for n, m in zip(size, sizes, strict=True)]


def window_sums(x: Tensor, windows: Windows) -> Tensor:
    """Sums over windows of the trailing dimensions."""
    for d, outputs in enumerate(windows):
        dim = x.dim() - len(windows) + d
        if not bool(x.isfinite().all()):  # 0 times those is not 0
            x = torch.stack([x.index_select(dim, torch.tensor(positions)).sum(dim) for positions in outputs], dim)
            continue
        member = x.new_zeros(len(outputs), x.shape[dim])
        for o, positions in enumerate(outputs):
            member[o, positions] = 1
        x = torch.tensordot(x, member, ([dim], [1])).movedim(-1, dim)
    return x


def counts(windows: Windows, like: Tensor) -> Tensor:
    """Number of positions of each window."""
    return window_sums(torch.ones([1 + max(map(max, outputs)) for outputs in windows]).to(like), windows)


def counts_with_padding(
    size: Sequence[int],
    kernel: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
    ceil_mode: bool,
    like: Tensor,
) -> Tensor:
    """The same, where positions of the padding count but those that hang over it do not."""
    pads = every(padding, len(size))
    padded = [n + 2 * p for n, p in zip(size, pads, strict=True)]
    windows = sliding(padded, kernel, stride, 0, 1, True)
    kept = sliding(size, kernel, stride, padding, 1, ceil_mode)
    return counts([w[: len(k)] for w, k in zip(windows, kept, strict=True)], like)


def maximum(x: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Maximum of each window and its place in the flattened trailing dimensions; ties and NaN as in ``max_pool2d``."""
    rank = len(windows)
    lead, size = x.shape[: x.dim() - rank], x.shape[x.dim() - rank :]
    flat = x.flatten(-rank)
    best, places = [], []
    for window in itertools.product(*windows):
        value = torch.full(lead, float("-inf"), dtype=x.dtype)
        place = torch.full(lead, -1, dtype=torch.int64)
        for position in itertools.product(*window):
            index = 0
            for n, i in zip(size, position, strict=True):
                index = index * n + i
            candidate = flat[..., index].detach()
            take = (place < 0) | (candidate > value) | candidate.isnan()
            value = torch.where(take, candidate, value)
            place = torch.where(take, index, place)
        places.append(place)
        best.append(flat.gather(-1, place[..., None])[..., 0])
    shape = (*lead, *(len(outputs) for outputs in windows))
    return torch.stack(best, -1).reshape(shape), torch.stack(places, -1).reshape(shape)


def power_sums(x: Tensor, windows: Windows, kernel: int | Sequence[int], norm: float) -> Tensor:
    """What stands under the root of L_p pooling: sums of x^p, scaled up to the kernel's volume."""
    volume = 1.0
    for k in every(kernel, len(windows)):
        volume *= k
    return window_sums(x**norm, windows) * (volume / counts(windows, x))


def power_mean(x: Tensor, windows: Windows, kernel: int | Sequence[int], norm: float) -> Tensor:
    """L_p pooling; where the sum is 0 so is the gradient."""
    under = power_sums(x, windows, kernel, norm)
    zero = under == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, under) ** (1 / norm))


def unpool(x: Tensor, indices: Tensor, size: Sequence[int]) -> Tensor:
    """Values at their indices, between zeros; of equal indices the last one. Every value has its place's gradient."""
    count = 1
    for n in size:
        count *= n
    lead = x.shape[: x.dim() - len(size)]
    flat, places = x.flatten(-len(size)), indices.flatten(-len(size))
    order = torch.arange(places.shape[-1]).expand(places.shape)
    owner = torch.full((*lead, count), -1, dtype=torch.int64).scatter_reduce(-1, places, order, "amax")
    return _Unpool.apply(flat, places, owner).reshape(*lead, *size)


class _Unpool(torch.autograd.Function):
    """Places the owners, and differentiates as if every value had been added."""

    @staticmethod
    def forward(ctx, flat: Tensor, places: Tensor, owner: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return torch.where(owner >= 0, flat.gather(-1, owner.clamp(min=0)), 0.0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grad.gather(-1, places), None, None
