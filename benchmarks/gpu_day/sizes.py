"""Worker: every op on more elements than a 32-bit number counts.

A small block of samples is computed, and then the same block thousands of times over as one batch. What belongs to a
sample must be the block's in every copy, and what belongs to the layer, the gradients of its weights, the block's times
the number of copies: an index that wraps around reads or writes another copy's place, outside of the memory, or loses
the greater part of a sum. That the block itself is right is the business of the tests.

A sum over millions of equal copies makes the same rounding error millions of times, so no useful bound is known of it.
``OF_LARGEST`` is a judgement: well above what a sum by parts loses, well below the fifth of all copies that lies past
2^31. A sum that fails by a little is a sum that loses digits, and no wrong index.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpu_day.plan import Item, elements, in_turn, one_of_each_kind, subjects
from gpu_day.subjects import LAYOUTS, cotangents, run

# Two bytes an element, so that most fits; and with float32's range, so that sums over all copies do.
DTYPE = torch.bfloat16
OF_LARGEST = 1 / 32
# Elements that are compared at a time: what the comparison takes of memory is four times that in float32.
CHUNK = 1 << 26
# Of the largest tensor: a quarter more than 2^31, so that what lies beyond is no rounding error of a sum. On the CPU it
# makes several copies of the smallest blocks.
ELEMENTS = {"cuda": 5 * 2**29, "cpu": 512}


class SkippedError(Exception):
    """The item cannot be examined here; the text says why."""


def items(arguments: Any) -> list[Item]:
    """Of each kind the largest, since tiny ones are no layers that anybody has: in one layout, then in the other."""
    found = []
    for subject in subjects():
        block = subject.inputs(DTYPE, "contiguous", "cpu")
        dimensions = subject.sample_dimension(block)
        if subject.ordinary and DTYPE in subject.dtypes and dimensions and all(block[n].numel() for n in dimensions):
            found.append(subject)
    planned = in_turn(found, (DTYPE,), wanted=lambda subject: -elements(subject))
    first = one_of_each_kind(planned)
    if arguments.device == "cpu":
        return first
    by_layout = (one_of_each_kind(item for item in planned if item.layout == layout) for layout in LAYOUTS)
    return list(dict.fromkeys(itertools.chain(first, *by_layout)))


def examine(item: Item, arguments: Any) -> dict[str, Any]:
    """Compares one.

    Raises:
        AssertionError: a copy is unlike the block, or a sum unlike the copies'.
        SkippedError: the device's memory does not suffice.
    """
    subject, device = item.subject, arguments.device
    inputs = subject.inputs(DTYPE, item.layout, device)
    dimensions = subject.sample_dimension(inputs)
    outputs = subject.outputs(inputs)
    given = cotangents(subject, outputs)
    want = run(subject, inputs, given)
    largest = max(x.numel() for x in [*(inputs[name] for name in dimensions), *outputs])
    copies = max(2, math.ceil((arguments.elements or ELEMENTS[device]) / largest))
    dimension = next(iter(dimensions.values()))
    names = {f"output {i}" for i in range(len(outputs))} | {f"gradient of {name}" for name in dimensions}
    del outputs
    try:
        got = _run_copies(item, inputs, given, dimensions, copies, dimension)
        differing = _compare(want, got, names, copies, dimension)
    except torch.OutOfMemoryError as error:
        raise SkippedError(f"the memory does not suffice: {str(error).splitlines()[0][:200]}") from None
    finally:
        if device == "cuda":
            got = None
            torch.cuda.empty_cache()
    return {"elements": copies * largest, "copies": copies, "other bits": differing}


def _run_copies(
    item: Item,
    inputs: Mapping[str, Tensor],
    given: list[Tensor],
    dimensions: Mapping[str, int],
    copies: int,
    dimension: int,
) -> dict[str, Tensor]:
    many = {}
    for name, x in inputs.items():
        if name in dimensions:
            many[name] = repeated(x.detach(), copies, dimensions[name]).requires_grad_(x.requires_grad)
        else:
            many[name] = x.detach().clone().requires_grad_(x.requires_grad)
    return run(item.subject, many, [repeated(g, copies, dimension) for g in given])


def repeated(block: Tensor, copies: int, dimension: int) -> Tensor:
    """The block again and again along a dimension, in the block's layout."""
    shape = list(block.shape)
    shape[dimension] *= copies
    last = block.dim() > 3 and not block.is_contiguous() and block.stride(1) == 1
    memory = torch.contiguous_format
    if last:
        memory = torch.channels_last if block.dim() == 4 else torch.channels_last_3d
    many = torch.empty(shape, dtype=block.dtype, device=block.device, memory_format=memory)
    many.unflatten(dimension, (copies, block.shape[dimension])).copy_(block.unsqueeze(dimension))
    return many


def _compare(
    want: Mapping[str, Tensor], got: Mapping[str, Tensor], by_sample: set[str], copies: int, dimension: int
) -> int:
    """Number of elements with other bits than the block's, all of them near enough."""
    assert got.keys() == want.keys(), f"{sorted(got)}, expected {sorted(want)}"
    differing = 0
    for name, block in want.items():
        tensor = got[name]
        if name not in by_sample:
            ratio = tensor.double() / copies
            error = float((ratio - block.double()).abs().max()) if block.numel() else 0.0
            assert error <= OF_LARGEST * _largest(block), (
                f"{name} over the number of copies is off by {error:.3g} of at most {_largest(block):.3g}"
            )
            continue
        differing += _compare_copies(
            name, block, tensor.unflatten(dimension, (copies, block.shape[dimension])), dimension
        )
    return differing


def _compare_copies(name: str, block: Tensor, stacked: Tensor, dimension: int) -> int:
    differing, limit = 0, OF_LARGEST * _largest(block)
    reference = block.unsqueeze(dimension)
    copies = stacked.shape[dimension]
    at_a_time = max(1, CHUNK // max(1, block.numel()))
    for start in range(0, copies, at_a_time):
        part = stacked.narrow(dimension, start, min(at_a_time, copies - start))
        unlike = int((part != reference).sum())
        if not unlike:
            continue
        differing += unlike
        error = (part.float() - reference.float()).abs()
        bad = ~(error <= limit)  # NaN too
        if bool(bad.any()):
            others = [d for d in range(bad.dim()) if d != dimension]
            place = start + int(bad.any(others).nonzero()[0])
            raise AssertionError(
                f"{name}: copy {place} of {copies} is off by {float(error.max()):.3g} of at most {_largest(block):.3g}"
            )
    return differing


def _largest(block: Tensor) -> float:
    return float(block.double().abs().max()) if block.numel() else 0.0
