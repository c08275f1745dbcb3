"""Worker: small cases of every op, to be run under an instrument; alone it sees that they run.

Under compute-sanitizer a line ``@@ NAME`` before each item says whose the reports behind it are. With ``--kernels`` the
instrument is a profiler, and the journal gets the names of the kernels that ran: those of torch's profiler on a GPU,
the emulator's elsewhere.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch

from gpu_day.plan import Item, in_turn, one_of_each_kind, subjects
from gpu_day.sanitizer import MARK
from gpu_day.subjects import run, run_twice

# A kernel's arithmetic is another in each; float64 has the fewest kernels of its own.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
KERNEL = re.compile(r"(\w+_kernel)\b")
_ran: set[str] = set()  # that an item before has reached


def items(arguments: Any) -> list[Item]:
    """Every small subject in every type and layout; a dry run has one of each kind."""
    planned = in_turn([s for s in subjects(arguments.device) if s.small or s.large], DTYPES)
    return one_of_each_kind(planned) if arguments.device == "cpu" else planned


def examine(item: Item, arguments: Any) -> dict[str, Any]:
    """Runs one: forward, backward and second derivatives."""
    print(f"{MARK}{item.name}", flush=True)
    with kernels(arguments) as ran:
        run(item.subject, item.subject.inputs(item.dtype, item.layout, arguments.device))
        if item.subject.twice:
            run_twice(item.subject, item.subject.inputs(item.dtype, item.layout, arguments.device))
        if arguments.device == "cuda":
            torch.cuda.synchronize()
    new = sorted(ran - _ran)
    _ran.update(new)
    return {"kernels": new} if new else {}


@contextlib.contextmanager
def kernels(arguments: Any) -> Iterator[set[str]]:
    """The set fills with the names of fastnn's kernels that run within the context."""
    ran: set[str] = set()
    if not arguments.kernels:
        yield ran
    elif arguments.device == "cuda":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            yield ran
        names = [event.name for event in profile.events() if "fastnn" in event.name]
        ran.update(match[1] for match in map(KERNEL.search, names) if match)
    else:
        from fastnn.testing.access_profile import access_profile
        from fastnn.testing.emulation import emulated_cuda

        with emulated_cuda(), access_profile() as found:
            yield ran
        # By the names of launches: one kernel may have several.
        ran.update(kernel.name for kernel in found)
