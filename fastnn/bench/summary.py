"""What a record comes to: its machine in a line, and a few figures for each group of rows."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastnn.bench import record as records

GROUP_FIELDS = ("suite", "op", "dtype", "layout", "direction")


@dataclass(frozen=True)
class Group:
    """Rows of one suite, op, dtype, layout and direction.

    Attributes:
        rows: how many count: neither wrong nor noisy.
        noisy: how many were left out as noisy.
        wrong: how many were left out as wrong.
        mean: geometric mean of the ratios to torch, each as often as its layer occurs; None where no row counts.
        smallest: the smallest ratio to torch.
        fraction: median over the rows of the fraction of the machine's limit that fastnn reaches.
    """

    suite: str
    op: str
    dtype: str
    layout: str
    direction: str
    rows: int
    noisy: int
    wrong: int
    mean: float | None
    smallest: float | None
    fraction: float | None


def groups(rows: Iterable[dict[str, Any]]) -> list[Group]:
    """The groups of a record's rows, in the order in which they were measured."""
    members: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        members.setdefault(tuple(row[field] for field in GROUP_FIELDS), []).append(row)
    return [_group(key, found) for key, found in members.items()]


def _group(key: tuple[str, ...], rows: Sequence[dict[str, Any]]) -> Group:
    counting = [row for row in rows if records.counts(row)]
    ratios = [row["ratio"]["torch"] for row in counting if "torch" in row["ratio"]]
    fractions = [row["fraction"]["fastnn"] for row in counting if "fastnn" in row["fraction"]]
    wrong = sum(row["wrong"] is not None for row in rows)
    return Group(
        *key,
        rows=len(counting),
        noisy=len(rows) - len(counting) - wrong,
        wrong=wrong,
        mean=records.geometric_mean(rows),
        smallest=min(ratios, default=None),
        fraction=statistics.median(fractions) if fractions else None,
    )


def vectors(machine: dict[str, Any]) -> str:
    """The vectors that a CPU computes with: the capability without what is of use to one dtype alone, as ``_bf16``."""
    return str(machine.get("cpu_capability") or "").partition("_")[0]


def machine_key(record: dict[str, Any]) -> tuple[Any, ...]:
    """What must agree for two records' times to be comparable: the device, and on a CPU what it computes with."""
    machine = record["machine"]
    if machine["device"].startswith("cuda"):
        return "cuda", machine["device_name"]
    return machine["device"], machine["device_name"], machine["threads"], vectors(machine)


def machine_name(record: dict[str, Any]) -> str:
    """The machine in some words: a heading."""
    machine = record["machine"]
    if machine["device"].startswith("cuda"):
        return machine["device_name"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return ", ".join(str(word) for word in (machine["device_name"], threads, vectors(machine)) if word)


def day(record: dict[str, Any]) -> str:
    """When a record was made, without the time of day, which older ones lack."""
    return str(record["date"])[:10]


def run_name(record: dict[str, Any]) -> str:
    """Date and commit of a record."""
    return f"{day(record)}, {record['commit'] or 'no commit'}"


def by_machine(items: Iterable[tuple[Any, dict[str, Any]]]) -> list[list[tuple[Any, dict[str, Any]]]]:
    """Sorts records, each with whatever belongs to it, by machine; the newest of each machine first."""
    found: dict[tuple[Any, ...], list[tuple[Any, dict[str, Any]]]] = {}
    for item in items:
        found.setdefault(machine_key(item[1]), []).append(item)
    # Dates are ISO 8601, with the time in UTC, which sort as text; of equal ones the later argument counts as newer.
    return [sorted(runs, key=lambda item: item[1]["date"])[::-1] for runs in found.values()]


def current(runs: Sequence[tuple[Any, dict[str, Any]]]) -> list[tuple[Any, dict[str, Any]]]:
    """A machine's records, newest first, without the rows of suites and dtypes that a newer one has."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for what, record in runs:
        rows = [row for row in record["rows"] if (row["suite"], row["dtype"]) not in seen]
        if rows:
            kept.append((what, {**record, "rows": rows}))
        seen.update((row["suite"], row["dtype"]) for row in rows)
    return kept
