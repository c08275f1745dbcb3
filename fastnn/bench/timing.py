"""Timing that can be believed on a noisy machine: peers take turns in one run, and the median round counts."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils import benchmark

LEAST_ROUNDS = 3
UNKNOWN_CACHE = 32 << 20
# Virtual machines name the caches of the whole processor, of which a few cores reach a part.
LARGEST_CPU_CACHE = 128 << 20


def time_in_turn(
    steps: Mapping[str, Callable[[], Any]],
    seconds_per_round: float = 0.02,
    rounds: int = 11,
    seconds: float | None = None,
) -> dict[str, list[float]]:
    """Times functions against each other.

    They run alternately, round after round, in an order that turns around each time, so that another program's
    burst, a change of clock or a warmer cache cannot favour one of them.

    Args:
        steps: what to time, by name; each takes no arguments. All of torch's threads are used. On a GPU,
            ``torch.utils.benchmark`` waits for the device.
        seconds_per_round: about how long each function runs in a round.
        rounds: number of rounds, at most where ``seconds`` is given.
        seconds: what all rounds together may take; as many are made as fit, but at least three.

    Returns:
        For each name the mean seconds a call of every round.
    """
    # One thread is the timer's default.
    timers = {
        name: benchmark.Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
        for name, step in steps.items()
    }
    for step in steps.values():
        step()
    once = {name: _time_one(step) for name, step in steps.items()}
    if max(once.values()) > seconds_per_round:
        # The timer would warm up by two calls in every round.
        number, in_turn = 1, [(name, lambda step=step: _time_one(step)) for name, step in steps.items()]
    else:
        # One call that was warmed up by one other says little about a fast function.
        once = {name: timer.timeit(3).mean for name, timer in timers.items()}
        number = max(1, round(seconds_per_round / max(once.values())))
        in_turn = [(name, lambda timer=timer: timer.timeit(number).mean) for name, timer in timers.items()]
    if seconds is not None:
        rounds = affordable(seconds, number * sum(once.values()), rounds)
    measured: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, measure in in_turn:
            measured[name].append(measure())
        in_turn.reverse()
    return measured


def _time_one(step: Callable[[], Any]) -> float:
    start = benchmark.timer()  # waits for a GPU
    step()
    return benchmark.timer() - start


def affordable(seconds: float, seconds_a_round: float, most: int) -> int:
    """How many rounds to make: as many as fit into the time, at least three and at most ``most``."""
    return min(max(LEAST_ROUNDS, most), max(LEAST_ROUNDS, int(seconds / seconds_a_round)))


def median(seconds: list[float]) -> float:
    """Median of the rounds."""
    return statistics.median(seconds)


def spread(seconds: list[float]) -> tuple[float, float]:
    """The 20th and 80th percentile of the rounds."""
    fifths = statistics.quantiles(seconds, n=5, method="inclusive")
    return fifths[0], fifths[-1]


def processor_name() -> str:
    """Model of the CPU, as the operating system names it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_bytes(device: torch.device) -> int:
    """Size of the last-level cache: a GPU's L2, a CPU's largest (at most 128 MiB; 32 MiB where nothing is said)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = []
    for entry in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = entry.read_text(encoding="utf-8").strip()
            sizes.append(int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0))
        except (OSError, ValueError):
            continue
    return min(max(sizes, default=UNKNOWN_CACHE), LARGEST_CPU_CACHE)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Returns the device, thread count and versions that belong to a measured time."""
    import fastnn

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": str(device),
        "device_name": name,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "cpu_capability": fastnn.info()["cpu"]["capability"],
        "versions": {
            "fastnn": fastnn.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "platform": platform.platform(),
    }
