"""``fastnn bench compare``: what got slower, faster, larger or wrong from one record to another, beyond the noise."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastnn.bench import record as records
from fastnn.bench import summary, units

SUCCESS, WORSE, USAGE_ERROR = 0, 1, 2
RULE = """\
A row got slower (or faster) when both hold:
  - the ranges from the 20th to the 80th percentile of fastnn's times in the two runs do not overlap;
  - its ratio to torch, measured in the same run and on the same machine in the same state, fell (or rose) by more than
    --threshold.
On different machines, or with different numbers of threads, times say nothing: there the ranges of the ratio take the
place of the ranges of the times (torch's 20th percentile over fastnn's 80th, to torch's 80th over fastnn's 20th), and
memory is not compared. Noisy rows are not judged, nor are rows whose bytes or FLOPs differ (another --batch). A row
without torch is judged by its times alone.

Exit status: 0; 1 when a row got slower, became wrong, or its peak memory grew by more than --memory-threshold; 2 when a
record cannot be read."""


@dataclass(frozen=True)
class Change:
    """A row of both records.

    Attributes:
        key: suite, op, case, layout, dtype and direction.
        before: the figure of A: times and ratio, or peak bytes, or why it is wrong.
        after: the figure of B.
        factor: what it changed by: the ratio of B over that of A (or time of A over that of B where torch is missing),
            or the peak of B over that of A; None of rows that are wrong.
    """

    key: tuple[str, ...]
    before: Any
    after: Any
    factor: float | None = None


@dataclass
class Comparison:
    """What differs between records A and B.

    Attributes:
        warnings: what makes the comparison weaker, in words.
        slower: rows that got slower, the worst first.
        faster: rows that got faster, the best first.
        larger: rows whose peak memory grew, the worst first.
        wrong: rows that are wrong in B and were not in A.
        right: rows that were wrong in A and are not in B.
        only_before: rows of A alone.
        only_after: rows of B alone.
        judged: how many rows were compared by time.
        noisy: how many were not, since one of the two is noisy.
        incomparable: how many were not, since the machines differ and torch is missing.
        resized: how many were not, since their bytes or FLOPs differ: measured with another ``--batch``.
        mean_before: geometric mean of the ratio to torch of A, over the rows that were judged.
        mean_after: the same of B.
    """

    warnings: list[str] = field(default_factory=list)
    slower: list[Change] = field(default_factory=list)
    faster: list[Change] = field(default_factory=list)
    larger: list[Change] = field(default_factory=list)
    wrong: list[Change] = field(default_factory=list)
    right: list[Change] = field(default_factory=list)
    only_before: list[tuple[str, ...]] = field(default_factory=list)
    only_after: list[tuple[str, ...]] = field(default_factory=list)
    judged: int = 0
    noisy: int = 0
    incomparable: int = 0
    resized: int = 0
    mean_before: float | None = None
    mean_after: float | None = None

    @property
    def worse(self) -> bool:
        """Whether B must not pass."""
        return bool(self.slower or self.larger or self.wrong)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``fastnn bench compare`` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Lists what changed from record A to record B beyond the noise.\n\n" + RULE
    parser.add_argument("before", metavar="A", type=Path, help="record to compare with")
    parser.add_argument("after", metavar="B", type=Path, help="record to judge")
    parser.add_argument(
        "--threshold",
        type=fraction,
        default=0.05,
        metavar="FRACTION",
        help="smallest change of the ratio to torch that counts (default: 0.05)",
    )
    parser.add_argument(
        "--memory-threshold",
        type=fraction,
        default=0.01,
        metavar="FRACTION",
        help="smallest growth of peak memory that counts (default: 0.01)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def fraction(text: str) -> float:
    """An argument that is a fraction; the name stands in argparse's message for what is no number."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0 and below 1")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Compares two records and prints what differs.

    Returns:
        The exit status: 0, 1 when B is worse, 2 when a record cannot be read.
    """
    try:
        before, after = records.load(arguments.before), records.load(arguments.after)
    except ValueError as error:
        print(f"fastnn bench compare: {error}", file=sys.stderr)
        return USAGE_ERROR
    found = compare(before, after, arguments.threshold, arguments.memory_threshold)
    if arguments.json:
        print(json.dumps({"worse": found.worse, **asdict(found)}, indent=1, ensure_ascii=False))
        return WORSE if found.worse else SUCCESS
    try:
        _show(found, before, after)
    except ImportError as error:
        print(f"fastnn bench compare: {error}: pip install 'fastnn[bench]'; or use --json", file=sys.stderr)
        return USAGE_ERROR
    return WORSE if found.worse else SUCCESS


def compare(
    before: dict[str, Any], after: dict[str, Any], threshold: float = 0.05, memory_threshold: float = 0.01
) -> Comparison:
    """Compares two records by the rule that the help text states.

    Args:
        before: record A.
        after: record B.
        threshold: smallest change of the ratio to torch that counts, as a fraction.
        memory_threshold: smallest growth of peak memory that counts, as a fraction.
    """
    found = Comparison(warnings=_warnings(before, after))
    same_machine = summary.machine_key(before) == summary.machine_key(after)
    old, new = ({records.key(row): row for row in record["rows"]} for record in (before, after))
    found.only_before = [key for key in old if key not in new]
    found.only_after = [key for key in new if key not in old]
    judged = []
    for key, row in new.items():
        past = old.get(key)
        if row["wrong"] is not None:
            # A new row that is wrong from its start is no better than one that became so.
            if past is None or past["wrong"] is None:
                found.wrong.append(Change(key, past and "right", row["wrong"]))
        elif past is not None and past["wrong"] is not None:
            found.right.append(Change(key, past["wrong"], "right"))
        elif past is not None and (past["bytes"], past["flops"]) != (row["bytes"], row["flops"]):
            found.resized += 1
        elif past is not None:
            if same_machine:
                _compare_memory(found, key, past, row, memory_threshold)
            if not (records.counts(past) and records.counts(row)):
                found.noisy += 1
            elif not same_machine and not _both_have_torch(past, row):
                found.incomparable += 1
            else:
                judged.append((past, row))
                _compare_times(found, key, past, row, threshold, same_machine)
    found.judged = len(judged)
    found.mean_before, found.mean_after = (
        records.geometric_mean(pair[side] for pair in judged if _both_have_torch(*pair)) for side in (0, 1)
    )
    found.slower.sort(key=lambda change: change.factor)
    found.faster.sort(key=lambda change: change.factor, reverse=True)
    found.larger.sort(key=lambda change: change.factor, reverse=True)
    return found


def _warnings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    words = []
    if summary.machine_key(before) != summary.machine_key(after):
        names = summary.machine_name(before), summary.machine_name(after)
        words.append(f"different machines or threads, so ratios alone are compared: A {names[0]}; B {names[1]}")
    versions = [record["machine"]["versions"].get("torch") for record in (before, after)]
    if versions[0] != versions[1]:
        words.append(f"different torch, which the ratios are to: A {versions[0]}, B {versions[1]}")
    hot = ["--hot" in record["arguments"] for record in (before, after)]
    if hot[0] != hot[1]:
        words.append(f"inputs stayed in the cache (--hot) in {'A' if hot[0] else 'B'} alone")
    words += [f"{name} was interrupted" for name, r in (("A", before), ("B", after)) if not r["complete"]]
    return words


def _both_have_torch(past: dict[str, Any], row: dict[str, Any]) -> bool:
    return "torch" in past["ratio"] and "torch" in row["ratio"]


def _compare_times(
    found: Comparison, key: tuple[str, ...], past: dict[str, Any], row: dict[str, Any], threshold: float, same: bool
) -> None:
    """Puts a row where it belongs."""
    if _both_have_torch(past, row):
        factor = row["ratio"]["torch"] / past["ratio"]["torch"]
    else:
        factor = past["seconds"]["fastnn"] / row["seconds"]["fastnn"]
    (low, high), (past_low, past_high) = (_range(side, by_time=same) for side in (row, past))
    if low <= past_high and past_low <= high:
        return
    # Larger is slower for times and faster for ratios.
    slower = low > past_high if same else high < past_low
    change = Change(key, _figures(past), _figures(row), factor)
    if slower and factor < 1 - threshold:
        found.slower.append(change)
    elif not slower and factor > 1 + threshold:
        found.faster.append(change)


def _range(row: dict[str, Any], by_time: bool) -> tuple[float, float]:
    """The 20th and 80th percentile of fastnn's time, or what they and torch's make of the ratio."""
    low, high = row["percentiles_20_80"]["fastnn"]
    if by_time:
        return low, high
    torch_low, torch_high = row["percentiles_20_80"]["torch"]
    return torch_low / high, torch_high / low


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    return {"seconds": row["seconds"]["fastnn"], "ratio": row["ratio"].get("torch")}


def _compare_memory(
    found: Comparison, key: tuple[str, ...], past: dict[str, Any], row: dict[str, Any], threshold: float
) -> None:
    peaks = [side["peak_bytes"].get("fastnn") for side in (past, row)]
    if None in peaks:
        return
    before, after = peaks
    if after > before * (1 + threshold):
        # From nothing to something has no factor; it is the worst.
        found.larger.append(Change(key, before, after, after / before if before else sys.float_info.max))


def _show(found: Comparison, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Prints the comparison as tables."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    # Names of cases must not be taken for markup, nor cut where the output is no terminal.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(f"A  {escape(summary.run_name(before))}: {escape(summary.machine_name(before))}")
    console.print(f"B  {escape(summary.run_name(after))}: {escape(summary.machine_name(after))}")
    for warning in found.warnings:
        console.print(f"[yellow]warning: {escape(warning)}[/yellow]", soft_wrap=True)

    def show(title: str, columns: tuple[str, ...], changes: list[Change], colour: str) -> None:
        if not changes:
            return
        table = Table(title=f"{title} ({len(changes)})", title_justify="left", title_style=colour, box=box.ROUNDED)
        for name in ("suite", "op", "case", "layout", "dtype", "direction"):
            table.add_column(name, overflow="fold")
        for name in columns:
            table.add_column(name, justify="left" if name == "why" else "right", overflow="fold")
        for change in changes:
            table.add_row(*map(escape, change.key), *map(escape, _cells(change)))
        console.print(table)

    times = ("A", "B", "× torch, A", "× torch, B", "change")
    show("wrong in B", ("why",), found.wrong, "bold red")
    show("slower", times, found.slower, "bold red")
    show("more memory", ("A", "B", "change"), found.larger, "bold red")
    show("faster", times, found.faster, "bold green")
    show("no longer wrong", ("why",), found.right, "bold green")
    for name, keys in (("A", found.only_before), ("B", found.only_after)):
        if keys:
            console.print(f"[bold]only in {name}[/bold] ({len(keys)})")
            for key in keys:
                console.print("  " + escape(", ".join(key)), soft_wrap=True)
    means = f"geometric mean × torch {units.ratio(found.mean_before)}, now {units.ratio(found.mean_after)}"
    left_out = f"{found.noisy} noisy"
    if found.incomparable:
        left_out += f", {found.incomparable} without torch"
    if found.resized:
        left_out += f", {found.resized} of another size"
    console.print(f"{found.judged} rows judged ({left_out} left out): {means}")
    verdict = (
        f"[red]worse: {len(found.slower)} slower, {len(found.larger)} with more memory, {len(found.wrong)} wrong[/red]"
        if found.worse
        else f"[green]nothing got worse[/green]; {len(found.faster)} faster"
    )
    console.print(verdict)


def _cells(change: Change) -> list[str]:
    """The cells of a change that follow its key."""
    if change.factor is None:
        return [change.after if change.after != "right" else change.before]
    factor = f"{change.factor - 1:+.1%}" if change.factor < sys.float_info.max else "from none"
    if isinstance(change.before, dict):
        sides = (change.before, change.after)
        return [
            *(units.duration(side["seconds"]) for side in sides),
            *(units.ratio(side["ratio"]) for side in sides),
            factor,
        ]
    return [units.size(change.before), units.size(change.after), factor]
