"""What is printed, and the record for ``--json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fastnn.check.tally import SIDES, Failure, Group, Side, Tally
from fastnn.testing.cases import CASES
from fastnn.testing.trial import SECOND

SCHEMA = 1
SHOWN_FAILURES = 10  # cases in one dtype on one device
WIDTH, WIDTH_VERBOSE = 120, 160  # of tables with the worst cases, which a terminal of less does without

CAPTION = """\
bound: largest error as a fraction of its bound; 1 is allowed, inf is NaN or infinity where a number belongs.
ulp: largest and mean error in units in the last place of the tensor's largest value.
--verbose shows the layouts apart; --op, --case, --dtype, --layout and --device run one case alone."""
CAPTION_VERBOSE = """\
bound: largest error as a fraction of its bound; 1 is allowed, inf is NaN or infinity where a number belongs.
ulp: largest and mean error in units in the last place of the tensor's largest value; own: of each value itself.
--op, --case, --dtype, --layout and --device run one case alone."""


def make_console(to_stderr: bool) -> Console:
    """A console for tables; one that is no terminal is as wide as they are.

    Args:
        to_stderr: whether standard output is taken by JSON.
    """
    console = Console(stderr=to_stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=to_stderr, highlight=False, width=WIDTH_VERBOSE)


def progress_bar(console: Console) -> Progress:
    """A progress bar with runs, failures and time left; where the output is no terminal, printed once at the end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failures]} wrong"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        expand=True,
    )


def print_tables(console: Console, tally: Tally, verbose: bool) -> None:
    """One table for each device.

    Args:
        console: where to.
        tally: what has been found.
        verbose: whether layouts get rows of their own, and values near zero columns of theirs.
    """
    groups = list(tally.groups.values()) if verbose else tally.merged_layouts()
    for device in dict.fromkeys(group.device for group in groups):
        chosen = [group for group in groups if group.device == device]
        console.print(_table(device, chosen, verbose, console.width >= (WIDTH_VERBOSE if verbose else WIDTH)))
    console.print(CAPTION_VERBOSE if verbose else CAPTION, soft_wrap=True)


def _table(device: str, groups: Sequence[Group], verbose: bool, names_worst: bool) -> Table:
    table = Table(
        title=f"{device}: errors against the float64 oracle",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
    )
    for name in ["direction", "dtype"] + (["layout"] if verbose else []):
        table.add_column(name, no_wrap=True)
    table.add_column("cases", justify="right", no_wrap=True)
    for side in SIDES:
        for name in [f"{side}\nbound", "\nulp max", "\nmean"] + (["\nown max", "\nmean"] if verbose else []):
            table.add_column(name, justify="right", no_wrap=True)
    table.add_column("same\nbits", no_wrap=True)
    if names_worst:
        table.add_column("fastnn's\nworst case", no_wrap=True)
    shown: tuple[str, str] | None = None
    for group in _ordered(groups):
        if shown is None or shown[0] != group.op:
            table.add_section()
            table.add_row(f"[bold]{group.op}[/bold]")
        place = (group.op, group.direction)
        labels = ["" if shown == place else f" {group.direction}", group.dtype]
        labels += ([group.layout] if verbose else []) + [str(len(group.cases))]
        shown = place
        cells = [cell for side in SIDES for cell in _cells(getattr(group, side), side, verbose)]
        cells.append(f"[red]{group.bits_differ} differ[/red]" if group.bits_differ else "yes")
        worst = group.fastnn.worst
        if names_worst and worst is not None:
            cells.append(escape(worst.case if verbose else f"{worst.case}, {worst.layout}"))
        table.add_row(*labels, *cells)
    return table


def _ordered(groups: Sequence[Group]) -> list[Group]:
    """By op, then outputs, gradients, running statistics and second derivatives."""
    ops = list(CASES)

    def rank(group: Group) -> tuple[int, int, str]:
        case = CASES[group.op][0]
        names = [*case.outputs, *(f"gradient of {name}" for name in case.differentiable)]
        if group.direction in names:
            return ops.index(group.op), names.index(group.direction), ""
        return ops.index(group.op), len(names) + (group.direction == SECOND), group.direction

    return sorted(groups, key=rank)


def _cells(side: Side, name: str, verbose: bool) -> list[str]:
    if not side.results:
        return ["refused"] + [""] * (4 if verbose else 2)
    values = [side.scaled_max, side.scaled_mean] + ([side.own_max, side.own_mean] if verbose else [])
    share = _number(side.of_bound)
    if side.broken:
        colour = "red" if name == "fastnn" else "yellow"
        share = f"[{colour}]{share}[/{colour}]"
    return [share] + [_number(value) for value in values]


def _number(value: float) -> str:
    """Two or three digits, at most six characters wide."""
    if value == 0 or math.isinf(value):
        return f"{value:.0f}"
    if value >= 99_999 or value < 0.001:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{digits}f}"


def print_verdict(console: Console, tally: Tally, repeat: int, planned: int, seconds: float) -> None:
    """The failures with the commands that show them alone, and the last line.

    Args:
        console: where to.
        tally: what has been found.
        repeat: how often each result was computed.
        planned: number of runs that there would have been.
        seconds: wall time.
    """
    by_case: dict[tuple[str, ...], list[Failure]] = {}
    for failure in tally.failures:
        run = failure.run
        by_case.setdefault((run.op, run.case, run.dtype, run.device), []).append(failure)
    for first, *others in list(by_case.values())[:SHOWN_FAILURES]:
        also = f" (and {len(others)} more of this case in {first.run.dtype})" if others else ""
        console.print(f"[red]wrong:[/red] {escape(f'{first.run}: {first.result}: {first.what}{also}')}", soft_wrap=True)
        console.print(f"    {escape(first.command)}", soft_wrap=True)
    if len(by_case) > SHOWN_FAILURES:
        console.print(f"and {len(by_case) - SHOWN_FAILURES} more cases with wrong results; --json FILE has them all")
    groups = list(tally.groups.values())
    results = sum(group.fastnn.results for group in groups)
    state = "passed" if not tally.failures else f"FAILED: {len(tally.failures)} wrong"
    if tally.runs < planned:
        state = f"INCOMPLETE, {tally.runs} of {planned} runs were done" + (
            f"; {len(tally.failures)} wrong" if tally.failures else "; nothing wrong so far"
        )
    bits = f", each computed {repeat} times" if repeat > 1 else ""
    shares = {side: _number(max((getattr(g, side).of_bound for g in groups), default=0.0)) for side in SIDES}
    console.print(
        f"[bold]{state}[/bold]: {results} results of {tally.runs} runs{bits}, in {seconds:.0f} s. Largest error as a "
        f"fraction of its bound: fastnn {shares['fastnn']}, torch {shares['torch']}.",
        soft_wrap=True,
    )


def record(
    tally: Tally, machine: dict[str, Any], arguments: dict[str, Any], planned: int, seconds: float, date: str
) -> dict[str, Any]:
    """What ``--json`` writes.

    Args:
        tally: what has been found.
        machine: what ``fastnn.info`` returned.
        arguments: the options by name.
        planned: number of runs that there would have been.
        seconds: wall time.
        date: of the start, ISO 8601.
    """
    complete = tally.runs == planned
    return {
        "schema": SCHEMA,
        "machine": machine,
        "date": date,
        "arguments": arguments,
        "seconds": seconds,
        "complete": complete,
        "passed": complete and not tally.failures,
        "runs": tally.runs,
        "groups": [group.as_dict() for group in tally.groups.values()],
        "failures": [
            {
                **vars(failure.run),
                "result": failure.result,
                "what": failure.what,
                "command": failure.command,
            }
            for failure in tally.failures
        ],
    }
