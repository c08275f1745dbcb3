"""Timing that can be believed on a noisy machine: peers take turns in one run, and the median round counts."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import benchmark


def time_in_turn(
    steps: Mapping[str, Callable[[], Any]], seconds_per_round: float = 0.02, rounds: int = 11
) -> dict[str, list[float]]:
    """Times functions against each other.

    They run alternately, round after round, in an order that turns around each time, so that another program's
    burst, a change of clock or a warmer cache cannot favour one of them.

    Args:
        steps: what to time, by name; each takes no arguments. All of torch's threads are used. On a GPU,
            ``torch.utils.benchmark`` waits for the device.
        seconds_per_round: about how long each function runs in a round.
        rounds: number of rounds.

    Returns:
        For each name the mean seconds a call of every round.
    """
    # One thread is the timer's default.
    timers = {
        name: benchmark.Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
        for name, step in steps.items()
    }
    for timer in timers.values():
        timer.timeit(3)
    slowest = max(timer.timeit(3).mean for timer in timers.values())
    number = max(1, round(seconds_per_round / slowest))
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    in_turn = list(timers.items())
    for _ in range(rounds):
        for name, timer in in_turn:
            seconds[name].append(timer.timeit(number).mean)
        in_turn.reverse()
    return seconds


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


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Returns the device, thread count and versions that belong to a measured time."""
    import fastnn

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "cpu_capability": fastnn.info()["cpu"]["capability"],
        "versions": {
            "fastnn": fastnn.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "platform": platform.platform(),
    }
