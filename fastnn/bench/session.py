"""A run: rows measured one after the other within a budget, and the record of them kept up to date."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

import fastnn
from fastnn.bench import record as records
from fastnn.bench import summary
from fastnn.bench.limits import DTYPES, measure_limit
from fastnn.bench.measure import Settings, measure
from fastnn.bench.suites import Row
from fastnn.bench.timing import describe_machine

# What a row costs however small its layer: checking, making inputs, warming up.
SECONDS_FOR_ANY_ROW = 0.1
# Floors that a row costs about: two peers, three rounds, warming up, the check, and kernels that miss the floor.
FLOORS_FOR_A_ROW = 40.0


class Budget:
    """Shares out the time that is left over the rows that are left.

    Args:
        seconds: for all rows.
        weights: what each row needs in relation to the others, in the order in which they come.
    """

    def __init__(self, seconds: float, weights: Sequence[float]) -> None:
        self._deadline = time.perf_counter() + seconds
        self._weights = list(weights)
        self._left = sum(weights)
        self._next = 0

    def take(self, count: int) -> float:
        """Seconds for the next ``count`` rows; 0 when none are left."""
        wanted = sum(self._weights[self._next : self._next + count])
        seconds = max(0.0, self._deadline - time.perf_counter()) * wanted / self._left
        self._next += count
        self._left = sum(self._weights[self._next :])
        return seconds


def weight(row: Row, limit: dict[str, float]) -> float:
    """About how many seconds a row takes at least."""
    floor, _ = row.layer.floor(row.direction, DTYPES[row.dtype].itemsize, limit)
    return SECONDS_FOR_ANY_ROW + FLOORS_FOR_A_ROW * floor


def checkout() -> Path | None:
    """The folder of the source tree that this fastnn is imported from; None when it is installed."""
    folder = Path(fastnn.__file__).resolve().parents[1]
    return folder if (folder / ".git").exists() and (folder / "benchmarks").is_dir() else None


def commit() -> str | None:
    """The checkout's commit, with ``-dirty`` where files differ from it; None without one."""
    folder = checkout()
    if folder is None:
        return None
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


def recorded_file(device: torch.device) -> Path | None:
    """Where ``--save`` keeps a record: by machine, date and commit in the checkout; None without one."""
    folder = checkout()
    if folder is None:
        return None
    return folder / "benchmarks" / "results" / place_of(describe_machine(device), datetime.date.today(), commit())


def place_of(machine: dict[str, Any], day: datetime.date, commit: str | None) -> Path:
    """Where a record belongs within the folder of results: by machine, day and commit."""
    words = machine["device_name"]
    if machine["device"] == "cpu":
        words += f" {summary.vectors(machine)} {machine['threads']} threads"
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    return Path(slug) / f"{day.isoformat()}-{commit or 'unknown'}.json"


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


@contextlib.contextmanager
def _on_a_stream(device: torch.device) -> Iterator[None]:
    """On a GPU, a stream of its own: the default one cannot be captured in a graph."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        yield


def run(
    rows: Sequence[Row],
    settings: Settings,
    seconds: float,
    arguments: Sequence[str],
    path: Path | None,
    step: Callable[[Row], None],
) -> tuple[dict[str, Any], bool]:
    """Measures the limits and the rows.

    Args:
        rows: those of one layer, dtype and layout stand together.
        settings: how to measure.
        seconds: the budget of the whole run.
        arguments: of the command, for the record.
        path: where the record is written after each row; None for nowhere.
        step: called after each row.

    Returns:
        The record, and whether the user interrupted the run: then it holds what was measured until then.

    Raises:
        OSError: when the record cannot be written.
    """
    started = time.perf_counter()
    record: dict[str, Any] = {
        "schema": records.SCHEMA,
        "machine": {**describe_machine(settings.device), "load_before": _load(), "load_after": None},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "arguments": list(arguments),
        "seconds": 0.0,
        "complete": False,
        "limits": {},
        "rows": [],
    }

    def keep() -> None:
        record["seconds"] = time.perf_counter() - started
        record["machine"]["load_after"] = _load()
        if path is not None:
            records.save(record, path)

    interrupted = False
    try:
        with _on_a_stream(settings.device):
            for dtype in dict.fromkeys(row.dtype for row in rows):
                record["limits"][dtype] = measure_limit(settings.device, dtype)
            weights = [weight(row, record["limits"][row.dtype]) for row in rows]
            budget = Budget(seconds - (time.perf_counter() - started), weights)
            for _, group in groupby(rows, key=lambda row: (row.suite, row.layer, row.dtype, row.layout)):
                together = list(group)
                share = budget.take(len(together))
                measured = measure(together, settings, record["limits"][together[0].dtype], share)
                for row, result in zip(together, measured, strict=True):
                    record["rows"].append(result)
                    keep()
                    step(row)
        record["complete"] = True
    except KeyboardInterrupt:
        interrupted = True
    keep()
    return record, interrupted
