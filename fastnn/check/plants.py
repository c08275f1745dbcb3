"""Faults that are put into fastnn's results on purpose, to see that the check finds them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnn.testing.bounds import Bounded
from fastnn.testing.judge import ulp

PLANTS = ("element", "nan", "column", "bits")


def plant(kind: str, actual: Tensor | None, expected: Bounded, repetition: int) -> Tensor | None:
    """A copy of a result with a fault in it.

    Args:
        kind: ``element``: one value off by a few bounds; ``nan``: one NaN; ``column``: zeros in the last place of
            the last dimension; ``bits``: the lowest bit of one value is another one in every second run.
        actual: the result; without elements, or of integers, it stays as it is.
        expected: what the oracle says of it.
        repetition: number of the run, from 0.
    """
    if actual is None or not actual.numel() or not actual.is_floating_point():
        return actual
    damaged = actual.detach().clone(memory_format=torch.contiguous_format)
    flat = damaged.view(-1)
    if kind == "column":
        damaged[..., -1:] = 0
    elif kind == "nan":
        flat[-1] = torch.nan
    elif kind == "element":
        finite = expected.value.flatten().isfinite() & flat.cpu().isfinite()
        if bool(finite.any()):
            place = int(finite.nonzero()[-1])
            want, bound = expected.value.flatten()[place], expected.error.flatten()[place]
            flat[place] = (want + 4 * (bound + ulp(want, flat.dtype))).to(flat)
    elif repetition % 2:
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
        flat.view(integers)[0] ^= 1
    return damaged
