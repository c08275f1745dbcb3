"""Timing on a GPU: CUDA graphs replayed after the L2 cache was flushed, so that only the device's work is timed.

Everything that a graph is captured from must have run before on the stream that is current here: the forward pass too,
whose stream is the one that autograd runs the backward pass on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fastnn.bench.timing import affordable, cache_bytes, median

Step = Callable[[], Any]

# A replay must be long beside the microseconds between the event before it and its first kernel.
SECONDS_PER_REPLAY = 5e-4
MOST_CALLS = 512
# Writing these takes the device longer than the host needs to enqueue what is timed behind them.
FLUSH_BYTES = 512 << 20


class _Clock:
    """Times what is enqueued, with the caches flushed before it and without the host's part."""

    def __init__(self, device: torch.device) -> None:
        self.start, self.end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flush = torch.empty(max(FLUSH_BYTES, 4 * cache_bytes(device)), dtype=torch.int8, device=device)

    def seconds(self, enqueue: Step) -> float:
        self.flush.zero_()
        self.start.record()
        enqueue()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1e3


def replay_in_turn(
    steps: Mapping[str, Sequence[Step]], device: torch.device, rounds: int, seconds: float
) -> tuple[dict[str, list[float]], str]:
    """Times functions against each other on a GPU, alternately.

    Args:
        steps: what to time, by name: the same call on each of several copies of its inputs.
        device: the GPU.
        rounds: number of rounds at most.
        seconds: what all rounds together may take; at least three are made.

    Returns:
        For each name the mean seconds a call of every round, and ``graph`` or, where a call of one of them cannot be
        captured, ``events``: then all are timed as they are enqueued one by one.
    """
    clock = _Clock(device)
    for copies in steps.values():
        for step in copies:
            step()  # loads kernels, and lets cuDNN try its algorithms
    once = {name: median([clock.seconds(copies[0]) for _ in range(3)]) for name, copies in steps.items()}
    calls = {name: _calls(once[name], len(copies)) for name, copies in steps.items()}
    captured: dict[str, _Captured] = {}
    for name, copies in steps.items():
        graph = _capture([copies[index % len(copies)] for index in range(calls[name])], len(copies))
        if graph is None:
            captured.clear()
            break
        captured[name] = graph
    measures: list[tuple[str, Callable[[], float]]]
    if captured:
        measures = [(n, lambda n=n, g=g: clock.seconds(g.graph.replay) / calls[n]) for n, g in captured.items()]
        costs = sum(once[name] * calls[name] for name in steps)
    else:
        turns = {name: 0 for name in steps}

        def next_copy(name: str) -> float:
            turns[name] += 1
            return clock.seconds(steps[name][turns[name] % len(steps[name])])

        measures = [(name, lambda name=name: next_copy(name)) for name in steps]
        costs = sum(once.values())
    for _, measure in measures:
        measure()
    # Half a millisecond of each measurement is the flush and the wait.
    rounds = affordable(seconds, costs + 5e-4 * len(steps), rounds)
    measured: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, measure in measures:
            measured[name].append(measure())
        measures.reverse()
    return measured, "graph" if captured else "events"


def _calls(seconds: float, copies: int) -> int:
    """How many calls a replay has: every copy equally often, and long enough to be timed."""
    wanted = min(MOST_CALLS, SECONDS_PER_REPLAY / max(seconds, 1e-7))
    return copies * max(1, -(-int(wanted) // copies))


class _Captured:
    """A graph and what it writes to: memory that nothing else may have while the graph is replayed."""

    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: deque[Any]) -> None:
        self.graph, self.outputs = graph, outputs


def _capture(calls: Sequence[Step], copies: int) -> _Captured | None:
    """Captures calls one after the other; None where that cannot be done.

    The last ``copies`` calls' outputs stay, so that a call never finds its outputs' memory in the cache just because
    the call before it wrote there.
    """
    graph = torch.cuda.CUDAGraph()
    outputs: deque[Any] = deque(maxlen=copies)
    torch.cuda.synchronize()
    try:
        graph.capture_begin()
        try:
            for call in calls:
                outputs.append(call())
        finally:
            graph.capture_end()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return _Captured(graph, outputs)
