"""Worker: thousands of repeats of every op, whose bits must all be those of the first.

A race that is lost once in a thousand launches shows nowhere else. On a GPU a repeat is the replay of a graph that
computes forward and backward and counts on the device how many elements are other ones, so that the host is not waited
for; where an op cannot be captured, it is enqueued again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpu_day.plan import Item, elements, in_turn, one_of_each_kind, subjects
from gpu_day.subjects import bits, cotangents, run

DTYPES = (torch.float32, torch.bfloat16)
# The host looks at the count so often, so that an interruption does not wait for thousands of repeats.
CHUNK = 1000
REPEATS = {"cuda": 10_000, "cpu": 5}


def items(arguments: Any) -> list[Item]:
    """Of each kind the largest subjects first: their blocks meet, and those of a small one do not."""
    found = [subject for subject in subjects(arguments.device) if subject.ordinary]
    planned = in_turn(found, DTYPES, wanted=lambda subject: -elements(subject))
    return one_of_each_kind(planned) if arguments.device == "cpu" else planned


def examine(item: Item, arguments: Any) -> dict[str, Any]:
    """Repeats one.

    Raises:
        AssertionError: other bits than the first time.
    """
    subject = item.subject
    inputs = subject.inputs(item.dtype, item.layout, arguments.device)
    given = cotangents(subject, subject.outputs(inputs))
    # Running statistics are written and change; they are no result of this comparison.
    first = {name: value.clone() for name, value in run(subject, inputs, given).items()}
    counts = {name: torch.zeros((), dtype=torch.int64, device=arguments.device) for name in first}

    def repeat() -> None:
        for name, value in run(subject, inputs, given).items():
            counts[name].add_((bits(value) != bits(first[name])).sum())

    how, again = "eager", repeat
    if arguments.device == "cuda":
        how, again = _captured(repeat)
        for count in counts.values():
            count.zero_()  # what warming up has found is found again
    wanted = arguments.repeats or REPEATS[arguments.device]
    done = 0
    while done < wanted and not any(_differing(counts).values()):
        for _ in range(min(CHUNK, wanted - done)):
            again()
            done += 1
    differing = _differing(counts)
    wrong = ", ".join(f"{count} elements of {name}" for name, count in differing.items() if count)
    assert not wrong, f"other bits within {done} repeats: {wrong}"
    return {"repeats": done, "how": how}


def _differing(counts: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(count) for name, count in counts.items()}


def _captured(repeat: Callable[[], None]) -> tuple[str, Callable[[], None]]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        repeat()
        repeat()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            repeat()
    except RuntimeError:  # the graphs' stage says what is wrong
        torch.cuda.synchronize()
        return "eager", repeat
    return "graph", graph.replay
