"""What else the machine does: times that were measured beside other busy processes are marked."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping, Sequence

# Of one core: what a machine does by itself stays below.
BUSY_CORES = 0.2
LARGEST_SPREAD = 1.5
# An OpenMP barrier whose other thread was put aside waits for the scheduler's next turn.
SCHEDULER_SECONDS = 0.008


def _machine_seconds() -> float | None:
    """CPU time that all processes have used, and other machines on the same processor; None where nobody counts."""
    try:
        with open("/proc/stat", encoding="ascii") as lines:
            user, nice, system, _, _, interrupt, soft, steal = map(int, lines.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


class OtherProcesses:
    """Watches from its making on how many cores other processes keep busy."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forgets what was before."""
        self._start = (time.perf_counter(), _machine_seconds(), _own_seconds())

    def busy_cores(self) -> float | None:
        """Mean number of cores that others used since the start; None where the system does not say."""
        now, machine, own = time.perf_counter(), _machine_seconds(), _own_seconds()
        start, machine_before, own_before = self._start
        if machine is None or machine_before is None or now <= start:
            return None
        return max(0.0, (machine - machine_before - (own - own_before)) / (now - start))


def crowded(busy: float | None, threads: int, cores: int) -> str | None:
    """Says so when other processes leave too few cores for this one's threads.

    Args:
        busy: cores that others use, see :class:`OtherProcesses`.
        threads: of this process.
        cores: of the machine.
    """
    if busy is None or busy < BUSY_CORES or threads + busy <= cores:
        return None
    return f"other processes kept {busy:.1f} of {cores} cores busy"


def unsteady(
    percentiles: Mapping[str, Sequence[float]], seconds: Mapping[str, float], floor: float, cores: int | None
) -> str | None:
    """Why times cannot be believed by their own looks; None when they can.

    Args:
        percentiles: the 20th and 80th of each peer's rounds.
        seconds: each peer's median.
        floor: seconds below which no implementation can be.
        cores: of the machine; None on a GPU, which no scheduler interrupts.
    """
    for peer, (low, high) in percentiles.items():
        if high > LARGEST_SPREAD * low:
            return f"{peer}: the 80th percentile is {high / low:.1f} times the 20th"
    if cores is not None and cores <= 2:
        for peer, value in seconds.items():
            turns = round(value / SCHEDULER_SECONDS)
            close = turns > 0 and abs(value / SCHEDULER_SECONDS - turns) < 0.02
            if close and value > 10 * floor:
                return f"{peer}: {turns} scheduler's turns of 8 ms, over ten times the floor"
    return None
