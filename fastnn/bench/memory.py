"""Peak memory of one call, beyond what was in use before it: its outputs, what it keeps, what it needs meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.autograd import profiler


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Runs a call and returns the most memory that was in use at a time beyond what was in use before.

    On a GPU the caching allocator counts. On the CPU torch's profiler reports every allocation and release of torch's
    CPU allocator, whoever asks for it; what a library takes from the system by itself is not seen (oneDNN does so for a
    part of its scratch memory; nothing in fastnn does).

    Args:
        call: what to run; what it returns counts, since it is kept until the end. It should have run once before.
        device: where it runs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del kept
        return peak
    return live_and_peak_bytes(call)[1]


def live_and_peak_bytes(call: Callable[[], Any]) -> tuple[int, int]:
    """Bytes of torch's CPU allocator that a call leaves in use while its result is held, and the most meanwhile."""
    # Read when the profiler starts for the first time; without it each use prints two lines.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profiler.profile(profile_memory=True) as profile:
        kept = call()
    del kept
    allocations = []
    events = list(profile.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        if event.tag == _EventType.Allocation and event.extra_fields.device.type == "cpu":
            allocations.append((event.start_time_ns, event.extra_fields.alloc_size))
    # Stable: of equal times the order of the events counts.
    live = peak = 0
    for _, size in sorted(allocations, key=lambda allocation: allocation[0]):
        live += size
        peak = max(peak, live)
    return live, peak
