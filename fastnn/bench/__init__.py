"""``fastnn bench``: fastnn's layers and networks timed against torch's and against the machine's limits.

Nothing heavy is imported until :func:`run` is called, so the command line stays quick.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["add_arguments", "run"]

SUCCESS, WRONG, USAGE_ERROR, INTERRUPTED = 0, 1, 2, 130

DEFAULT_BATCH = {"cpu": 8, "cuda": 64}
DEFAULT_DTYPES = {"cpu": ("float32",), "cuda": ("float32", "tf32", "bfloat16", "float16")}
POSSIBLE_DTYPES = {"cpu": ("float32", "bfloat16", "float16"), "cuda": DEFAULT_DTYPES["cuda"]}
DEFAULT_BUDGET = {"cpu": 900.0, "cuda": 420.0}
QUICK_BUDGET, QUICK_ROUNDS, QUICK_SECONDS_PER_ROUND = 45.0, 7, 0.01
# What `--quick` lets a layer have, in FLOPs forward: a fraction of a second's work.
QUICK_FLOPS = {"cpu": 4e9, "cuda": 4e12}


class BenchError(Exception):
    """The benchmark cannot run as asked; the text is one line for the user."""


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return value


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``fastnn bench`` to a parser.

    Args:
        parser: the parser of the subcommand; :func:`run` takes what it returns.
    """
    what = parser.add_argument_group("what is measured")
    what.add_argument("suites", nargs="*", metavar="SUITE", help="see --list (default: a selection; all: every suite)")
    what.add_argument("--list", action="store_true", help="list the suites and measure nothing")
    what.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: cuda where fastnn can use one)")
    what.add_argument(
        "--dtype",
        metavar="NAMES",
        help="float32, tf32, bfloat16, float16, with commas between (default: float32 on the CPU, all four on a GPU)",
    )
    what.add_argument("--batch", type=_count, metavar="N", help="images at a time (default: 8 on the CPU, 64 on a GPU)")
    what.add_argument(
        "--only", type=_pattern, metavar="REGEX", help="rows whose 'suite op case layout dtype direction' matches"
    )
    what.add_argument("--quick", action="store_true", help="one layer of each kind; under a minute")
    what.add_argument("--compile", action="store_true", help="torch.compile as one more peer")

    how = parser.add_argument_group("how")
    how.add_argument(
        "--budget",
        type=_positive,
        metavar="SECONDS",
        help="time for the whole run, shared out in rounds of each row, at least three "
        "(default: 900 on the CPU, 420 on a GPU, 45 with --quick)",
    )
    how.add_argument("--threads", type=_count, metavar="N", help="of torch and fastnn on the CPU (default: torch's)")
    how.add_argument("--hot", action="store_true", help="one copy of the inputs: small ones then stay in the cache")
    how.add_argument("--strict", action="store_true", help="refuse to start while other processes are busy")

    out = parser.add_argument_group("what is kept")
    out.add_argument("--json", metavar="FILE", type=Path, help="keep a record, written after every row")
    out.add_argument("--save", action="store_true", help="keep the record in benchmarks/results of this checkout")
    out.add_argument("--verbose", "-v", action="store_true", help="print every row, not only the summary")


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints the tables and keeps the record.

    Args:
        arguments: what a parser with :func:`add_arguments` returned.

    Returns:
        The exit status: 0, 1 if a kernel computed something wrong, 2 if the benchmark cannot run as asked, 130 if
        interrupted; what was measured until then is printed and kept.
    """
    try:
        return _run(arguments)
    except BenchError as error:
        print(f"fastnn bench: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("fastnn bench: interrupted before the first row", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise BenchError(f"rich cannot be imported ({error}): pip install 'fastnn[bench]'") from None
    import torch

    threads = torch.get_num_threads()
    try:
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        return _measure(arguments)
    finally:
        torch.set_num_threads(threads)


def _measure(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from fastnn.bench import session, suites, table
    from fastnn.bench.measure import Settings

    console = table.make_console(arguments.verbose)
    if arguments.list:
        for name, what in suites.SUITES.items():
            console.print(f"{name:14}{what}", soft_wrap=True)
        return SUCCESS
    names = _suites(arguments, suites)
    device = _device(arguments.device)
    dtypes = _dtypes(arguments.dtype, device.type)
    batch = arguments.batch or DEFAULT_BATCH[device.type]
    path = _record_path(arguments, device)
    errors = Console(stderr=True, highlight=False)
    _look_around(errors, arguments.strict, device.type == "cpu")

    quick_flops = QUICK_FLOPS[device.type] if arguments.quick else None
    rows = suites.rows(names, batch, dtypes, quick_flops)
    if arguments.only is not None:
        rows = [row for row in rows if arguments.only.search(str(row))]
        if not rows:
            raise BenchError(f"--only {arguments.only.pattern}: matches no row of {', '.join(names)}")
    settings = Settings(device, arguments.compile, arguments.hot)
    if arguments.quick:
        settings = Settings(device, arguments.compile, arguments.hot, QUICK_ROUNDS, QUICK_SECONDS_PER_ROUND)
    budget = arguments.budget or (QUICK_BUDGET if arguments.quick else DEFAULT_BUDGET[device.type])
    with table.progress_bar(errors) as progress:
        task = progress.add_task("limits of the machine", total=len(rows))

        def step(row: suites.Row) -> None:
            progress.update(task, advance=1, description=f"{row.suite} {row.layer.op} {row.direction}")

        try:
            record, interrupted = session.run(rows, settings, budget, _as_given(arguments), path, step)
        except OSError as error:
            raise BenchError(f"cannot write {path}: {error.strerror or error}") from None

    if arguments.verbose and record["rows"]:
        console.print(table.every_row(record["rows"]))
    if record["rows"]:
        console.print(table.summary(record["rows"]))
    for line in table.verdict(record, len(rows), budget):
        console.print(line, soft_wrap=True)
    if path is not None:
        console.print(f"record: {path}", soft_wrap=True)
    if interrupted:
        found = "the rows above are what was measured" if record["rows"] else "no row was measured"
        print(f"fastnn bench: interrupted; {found}", file=sys.stderr)
        return INTERRUPTED
    return WRONG if any(row["wrong"] is not None for row in record["rows"]) else SUCCESS


def _as_given(arguments: argparse.Namespace) -> list[str]:
    """The arguments that shape the figures, as a command line."""
    words = list(arguments.suites)
    for name in ("device", "dtype", "batch", "only", "budget", "threads"):
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name}", value.pattern if isinstance(value, re.Pattern) else f"{value}"]
    return words + [f"--{name}" for name in ("quick", "compile", "hot", "strict") if getattr(arguments, name)]


def _suites(arguments: argparse.Namespace, known: Any) -> Sequence[str]:
    if not arguments.suites:
        return known.QUICK if arguments.quick else known.DEFAULT
    if "all" in arguments.suites:
        return list(known.SUITES)
    for name in arguments.suites:
        if name not in known.SUITES:
            raise BenchError(f"unknown suite {name!r}: choose from {', '.join(known.SUITES)}, all")
    return list(dict.fromkeys(arguments.suites))


def _device(name: str | None) -> Any:
    from fastnn.testing.devices import usable_device

    if name is None:
        try:
            return usable_device("cuda")
        except ValueError:
            return usable_device("cpu")
    try:
        return usable_device(name)
    except ValueError as error:
        raise BenchError(str(error)) from None


def _dtypes(names: str | None, device_type: str) -> Sequence[str]:
    if names is None:
        return DEFAULT_DTYPES[device_type]
    possible = POSSIBLE_DTYPES[device_type]
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in chosen:
        if name not in possible:
            raise BenchError(f"--dtype {name}: choose from {', '.join(possible)} on {device_type}")
    return chosen


def _record_path(arguments: argparse.Namespace, device: Any) -> Path | None:
    """Where the record goes, proved writable before minutes are spent; None for nowhere."""
    from fastnn.bench import session

    path: Path | None = arguments.json
    if path is None and arguments.save:
        path = session.recorded_file(device)
        if path is None:
            raise BenchError("--save: this fastnn does not run from a checkout; name a file with --json")
    if path is None:
        return None
    if path.is_dir():
        raise BenchError(f"cannot write {path}: it is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _look_around(console: Any, strict: bool, on_cpu: bool) -> None:
    """Warns of, or with ``strict`` refuses to start with, kernels that are not optimised or other busy processes."""
    import time

    import fastnn
    from fastnn.bench import noise

    cpu = fastnn.info()["cpu"]
    if on_cpu and cpu["capability"] not in cpu["optimised"]:
        what = f"this build has the CPU kernels for {cpu['capability']} unoptimised (FASTNN_CPU)"
        if strict:
            raise BenchError(f"--strict: {what}")
        console.print(f"[yellow]{what}: times will not mean anything[/yellow]")
    others = noise.OtherProcesses()
    time.sleep(0.5)
    busy = others.busy_cores()
    if busy is None or busy < noise.BUSY_CORES:
        return
    what = f"other processes keep {busy:.1f} cores busy"
    if strict:
        raise BenchError(f"--strict: {what}")
    console.print(f"[yellow]{what}: times will not mean much[/yellow]; --strict refuses to start then")
