"""What ``fastnn bench`` prints: progress, a summary of the rows, on demand every row, and a verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fastnn.bench import record as records
from fastnn.bench import units

NARROWEST, NARROWEST_WITH_ROWS = 100, 190


def make_console(every_row: bool) -> Console:
    """A console on which the tables keep their columns; what is narrower wraps the lines."""
    console = Console(highlight=False)
    console.width = max(console.width, NARROWEST_WITH_ROWS if every_row else NARROWEST)
    return console


def progress_bar(console: Console) -> Progress:
    """A bar with the row that comes next, the rows done, the time gone and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def limits_line(record: dict[str, Any]) -> str:
    """The machine's measured limits, in a line."""
    parts = [
        f"{dtype} copy {units.with_unit(limit['copy_bytes_per_second'], 'B/s')}, "
        f"product {units.with_unit(limit['flops_per_second'], 'FLOP/s')}"
        for dtype, limit in record["limits"].items()
    ]
    return "measured limits: " + "; ".join(parts)


def memory_ratio(rows: Sequence[dict[str, Any]]) -> float | None:
    """Geometric mean of fastnn's peak memory over torch's; None where no row has both."""
    logarithms = [
        math.log(row["peak_bytes"]["fastnn"] / row["peak_bytes"]["torch"])
        for row in rows
        if row["wrong"] is None and row["peak_bytes"]["torch"] > 0 and row["peak_bytes"]["fastnn"] > 0
    ]
    return math.exp(statistics.fmean(logarithms)) if logarithms else None


def summary(rows: Sequence[dict[str, Any]]) -> Table:
    """A line for each suite, dtype, op, direction and layout."""
    peers = _peers(rows)
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="× peer: its time over fastnn's; above 1 fastnn is faster"
    )
    table.add_column("")
    table.add_column("layout")
    for title in ("rows", *(f"× {peer}" for peer in peers), "of limit", "memory"):
        table.add_column(title, justify="right")
    table.add_column("smallest × torch", overflow="fold")
    suite = None
    for (*head, op, direction, layout), members in _grouped(rows, ("suite", "dtype", "op", "direction", "layout")):
        suite = _heading(table, suite, ", ".join(head))
        counted = [row for row in members if records.counts(row) and "torch" in row["ratio"]]
        worst = min(counted, key=lambda row: row["ratio"]["torch"], default=None)
        fractions = [row["fraction"]["fastnn"] for row in counted]
        table.add_row(
            f"{op} {direction}",
            layout,
            str(len(counted)) + (f" of {len(members)}" if len(counted) < len(members) else ""),
            *(_ratio(records.geometric_mean(members, peer)) for peer in peers),
            units.share(statistics.median(fractions) if fractions else None),
            units.share(memory_ratio(members)),
            f"{_ratio(worst['ratio']['torch'])} {escape(worst['case'])}" if worst and len(counted) > 1 else "",
        )
    return table


def every_row(rows: Sequence[dict[str, Any]]) -> Table:
    """A line for each row."""
    peers = _peers(rows)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("", "direction", "layout"):
        table.add_column(title, no_wrap=True)
    figures = ("time", "20 to 80 %", *(f"× {peer}" for peer in peers), "of limit", "rate", "bytes", "FLOPs", "memory")
    for title in (*figures, "of torch's"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("remark", overflow="fold")
    suite = None
    for (*head,), members in _grouped(rows, ("suite", "dtype")):
        suite = _heading(table, suite, ", ".join(head))
        for row in members:
            name = f"{row['op']} {escape(row['case'])}"
            name += f" ({row['multiplicity']}×)" if row["multiplicity"] > 1 else ""
            table.add_row(name, row["direction"], row["layout"], *_figures(row, peers))
    return table


def _figures(row: dict[str, Any], peers: Sequence[str]) -> list[str]:
    if row["wrong"] is not None:
        return [units.MISSING] * (8 + len(peers)) + [f"[red]wrong: {escape(row['wrong'])}[/red]"]
    low, high = row["percentiles_20_80"]["fastnn"]
    by_memory = row["bound"] == "memory"
    rate = row["bytes_per_second" if by_memory else "flops_per_second"]["fastnn"]
    mine, theirs = (row["peak_bytes"][peer] for peer in ("fastnn", "torch"))
    return [
        units.duration(row["seconds"]["fastnn"]),
        f"{units.duration(low)}, {units.duration(high)}",
        *(_ratio(row["ratio"].get(peer)) for peer in peers),
        units.share(row["fraction"]["fastnn"]),
        units.with_unit(rate, "B/s" if by_memory else "FLOP/s"),
        units.size(row["bytes"]),
        units.with_unit(row["flops"], "FLOP"),
        units.size(mine),
        units.share(mine / theirs if theirs else None),
        f"[yellow]noisy: {escape(row['noisy'])}[/yellow]" if row["noisy"] else "",
    ]


def _grouped(
    rows: Sequence[dict[str, Any]], names: Sequence[str]
) -> Iterable[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    # What is headed the same stands together, in the order of the first rows.
    heads = list(dict.fromkeys(key[:2] for key in groups))
    return sorted(groups.items(), key=lambda item: heads.index(item[0][:2]))


def _heading(table: Table, before: str | None, now: str) -> str:
    if now != before:
        table.add_section()
        table.add_row(f"[bold]{now}[/bold]")
    return now


def verdict(record: dict[str, Any], planned: int, budget: float) -> list[str]:
    """Lines for the end: how many rows, which are wrong, how many are noisy, how long it took."""
    rows = record["rows"]
    wrong = [row for row in rows if row["wrong"] is not None]
    noisy = sum(row["noisy"] is not None for row in rows)
    lines = [f"{len(rows)} of {planned} rows in {units.duration(record['seconds'])}"]
    if record["limits"]:
        lines[0] += f"; {limits_line(record)}"
    if record["seconds"] > 1.1 * budget:
        lines.append(
            f"longer than the budget of {units.duration(budget)}: three rounds of each row take that long; "
            "choose fewer suites, dtypes or rows"
        )
    if noisy:
        lines.append(
            f"[yellow]{noisy} rows are noisy and left out of the means[/yellow]; measure on a quiet machine "
            "(docs/benchmarking.md)"
        )
    for row in wrong:
        what = " ".join(row[name] for name in ("suite", "op", "case", "layout", "dtype", "direction"))
        lines.append(f"[red]WRONG, not timed:[/red] {escape(what)}: {escape(row['wrong'])}")
    return lines


def _peers(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(peer for row in rows if row["wrong"] is None for peer in row["ratio"]))


def _ratio(value: float | None) -> str:
    if value is None:
        return units.MISSING
    colour = "green" if value >= 1.05 else "red" if value < 0.95 else "default"
    return f"[{colour}]{units.ratio(value)}[/{colour}]"
