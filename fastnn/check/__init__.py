"""``fastnn check``: how right the kernels are on this machine, by the float64 oracle, with torch's beside them.

What the numbers mean stands in ``docs/checking.md``. Nothing heavy is imported until :func:`run` is called, so the
command line stays quick.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from fastnn.check.errors import CheckError

__all__ = ["add_arguments", "run"]

PASSED, FAILED, USAGE_ERROR, INTERRUPTED = 0, 1, 2, 130
STANDARD_OUTPUT = "-"


def _random_case(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected SEED:INDEX, as 0:17, got {text!r}")
    return int(found[1]), int(found[2])


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def _at_least(low: int) -> Any:
    def number(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {low}, got {text!r}")
        return int(text)

    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``fastnn check`` to a parser.

    Args:
        parser: the parser of the subcommand; :func:`run` takes what it returns.
    """
    from fastnn.testing.cases import ALL_DTYPES, CASES, LAYOUTS

    dtypes = [str(dtype).removeprefix("torch.") for dtype in ALL_DTYPES]
    what = parser.add_argument_group("what is checked (each may be given more than once; default: all)")
    what.add_argument("--op", action="append", metavar="OP", help=", ".join(CASES))
    what.add_argument("--dtype", action="append", metavar="DTYPE", help=", ".join(dtypes))
    what.add_argument(
        "--layout",
        action="append",
        metavar="LAYOUT",
        help=f"of inputs and gradients: {', '.join(LAYOUTS)}",
    )
    what.add_argument(
        "--device",
        action="append",
        metavar="DEVICE",
        help="cpu, cuda, cuda:N, or emulated: the CUDA kernels on the CPU, small cases only (default: cpu, and cuda "
        "where it can be used)",
    )
    cases = parser.add_argument_group("which cases")
    cases.add_argument("--case", metavar="REGEX", type=_pattern, help="cases whose whole name matches")
    cases.add_argument(
        "--random",
        metavar="N",
        type=_at_least(0),
        default=0,
        help="besides the table, N random cases of each op; --case 'random.*' leaves these alone",
    )
    cases.add_argument("--seed", type=_at_least(0), default=0, help="seed of the random cases (default: 0)")
    cases.add_argument(
        "--random-case", metavar="SEED:INDEX", type=_random_case, help="one random case alone, as failures name it"
    )
    cases.add_argument("--quick", action="store_true", help="small cases, two dtypes, two layouts: some seconds")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--repeat",
        metavar="K",
        type=_at_least(1),
        default=2,
        help="compute each result K times; all must have the same bits (default: 2)",
    )
    how.add_argument("--verbose", action="store_true", help="a row for each layout, and errors in ulps of each value")
    how.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const=STANDARD_OUTPUT,
        help="write everything as JSON; without FILE to standard output, tables then go to standard error",
    )
    how.add_argument("--plant", metavar="KIND", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Runs the check, prints the tables and writes the record.

    Args:
        arguments: what a parser with :func:`add_arguments` returned.

    Returns:
        The exit status: 0 if every result is within its bound and the same on every run, 1 if not, 2 if the check
        cannot run as asked, 130 if interrupted; what was found until then is printed and written.
    """
    try:
        return _run(arguments)
    except CheckError as error:
        print(f"fastnn check: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("fastnn check: interrupted before the first result", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise CheckError(f"rich cannot be imported ({error}): pip install 'fastnn[bench]'") from None

    import fastnn
    from fastnn.check import report, runner
    from fastnn.check.plants import PLANTS
    from fastnn.check.selection import select
    from fastnn.check.tally import Tally

    if arguments.plant is not None and arguments.plant not in PLANTS:
        raise CheckError(f"unknown plant {arguments.plant!r}: choose from {', '.join(PLANTS)}")
    if arguments.plant == "bits" and arguments.repeat < 2:
        raise CheckError("--plant bits needs --repeat 2 or more")
    if arguments.random_case is not None and (arguments.case is not None or arguments.random):
        raise CheckError("--random-case runs one case alone: leave out --case and --random")
    plan = select(arguments)
    if arguments.json not in (None, STANDARD_OUTPUT):
        _prove_writable(arguments.json)

    console = report.make_console(to_stderr=arguments.json == STANDARD_OUTPUT)
    tally, interrupted = Tally(), False
    date, started = datetime.datetime.now().astimezone().isoformat(timespec="seconds"), time.perf_counter()
    with report.progress_bar(console) as progress:
        task = progress.add_task("checking", total=plan.runs, failures=0)
        try:
            runner.check(
                plan,
                arguments.repeat,
                arguments.plant,
                tally,
                lambda: progress.update(task, advance=1, failures=len(tally.failures)),
            )
        except KeyboardInterrupt:
            interrupted = True
    seconds = time.perf_counter() - started

    report.print_tables(console, tally, arguments.verbose)
    report.print_verdict(console, tally, arguments.repeat, plan.runs, seconds)
    if arguments.json is not None:
        record = report.record(tally, fastnn.info(), _as_json(arguments), plan.runs, seconds, date)
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        if arguments.json == STANDARD_OUTPUT:
            sys.stdout.write(text)
        else:
            Path(arguments.json).write_text(text, encoding="utf-8")
    if interrupted:
        return INTERRUPTED
    return FAILED if tally.failures else PASSED


def _prove_writable(name: str) -> None:
    """Opens the file as it will be at the end, before minutes are spent."""
    try:
        with open(name, "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise CheckError(f"--json {name}: cannot write there: {error.strerror or error}") from None


def _as_json(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that say what was checked and how."""
    names = ("op", "dtype", "layout", "device", "random", "seed", "quick", "repeat", "plant")
    chosen = {name: getattr(arguments, name) for name in names}
    chosen["case"] = None if arguments.case is None else arguments.case.pattern
    chosen["random_case"] = None if arguments.random_case is None else "{}:{}".format(*arguments.random_case)
    return chosen
