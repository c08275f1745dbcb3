"""Worker: every op in a CUDA graph. Forward and backward are captured, replayed on other values, and compared.

The capture shows that nothing of an op waits for the device, reads a value back or takes memory from anywhere but
torch's allocator; the replay on other values, that no value has been baked into the graph. Without a GPU the items are
run twice and compared, which is what the replay is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpu_day.plan import Item, in_turn, one_of_each_kind, subjects
from gpu_day.subjects import bits, cotangents, run

DTYPES = (torch.float32, torch.bfloat16)
RECURRENT = ("lstm", "gru", "rnn")


def items(arguments: Any) -> list[Item]:
    """Small subjects, since values do not matter, and those whose blocks meet, which are launched in other ways."""
    planned = in_turn([s for s in subjects(arguments.device) if s.small or s.large or s.op in RECURRENT], DTYPES)
    return one_of_each_kind(planned) if arguments.device == "cpu" else planned


def examine(item: Item, arguments: Any) -> dict[str, Any]:
    """Captures and replays one.

    Raises:
        AssertionError: the replay's bits are not those of eager mode.
    """
    subject = item.subject
    inputs = subject.inputs(item.dtype, item.layout, arguments.device)
    given = cotangents(subject, subject.outputs(inputs))
    if arguments.device == "cpu":
        change(inputs)
        before = copies(inputs)
        compare(run(subject, inputs, given), run(subject, before, given))
        return {}
    # What a graph is captured from must have run before, on a stream that is not the default one.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run(subject, inputs, given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(subject, inputs, given)
    change(inputs)
    # Statistics that are written belong to each run: the copy is of before the replay.
    before = copies(inputs)
    graph.replay()
    torch.cuda.synchronize()
    compare(captured, run(subject, before, given))
    return {}


def change(inputs: Mapping[str, Tensor]) -> None:
    """Other values in place: ``x`` becomes ``0.75 x + 0.1``; indices, which must be in range, stay."""
    with torch.no_grad():
        for tensor in inputs.values():
            if tensor.is_floating_point():
                tensor.mul_(0.75).add_(0.1)


def copies(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values in memory of their own, with the same strides."""
    return {name: torch.empty_like(x).copy_(x.detach()).requires_grad_(x.requires_grad) for name, x in inputs.items()}


def compare(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises AssertionError unless all have the same bits."""
    assert actual.keys() == expected.keys(), f"{sorted(actual)}, expected {sorted(expected)}"
    for name, want in expected.items():
        differing = int((bits(actual[name]) != bits(want)).sum())
        assert not differing, f"{name}: {differing} of {want.numel()} elements differ from eager mode's"
