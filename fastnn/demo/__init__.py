"""``fastnn demo``: two small networks trained on real data, once with torch's layers and once with fastnn's.

Both networks are written once and take their layers from a namespace, ``torch.nn`` or ``fastnn.nn``. The two
sides start from the same seed and see the same batches, one step of one and then one step of the other, so
that losses can be compared step by step and times are fair on a machine that does other work as well. With
``--compare-cells`` the sides are fastnn's recurrent layers instead, one trained after the other.

Nothing heavy is imported until :func:`run` is called, so the command line stays quick.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fastnn.demo.training import CellComparison, Outcome

__all__ = ["CELLS", "add_arguments", "run"]

CELLS = ("lstm", "gru", "rnn", "peephole", "coupled", "mut1", "mut2", "mut3")
"""The recurrent layers that the text training can have; torch has the first three."""

SUCCESS, FAILED, USAGE_ERROR, INTERRUPTED = 0, 1, 2, 130


class DemoError(Exception):
    """The demo cannot run as asked; the text is one line for the user."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``fastnn demo`` to a parser.

    Args:
        parser: the parser of the subcommand; :func:`run` takes what it returns.
    """
    parser.add_argument(
        "training",
        nargs="?",
        choices=("images", "text", "all"),
        default="all",
        help="what to train (default: all)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--epochs", type=int, help="passes over the data (default: 12 for images, 2 for text)")
    parser.add_argument(
        "--out", default="fastnn-demo", metavar="DIR", help="where the reports go (default: fastnn-demo)"
    )
    parser.add_argument("--no-compare", action="store_true", help="train with fastnn's layers alone")
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text to learn (default: Python's standard library)")
    cells = parser.add_mutually_exclusive_group()
    cells.add_argument("--cell", choices=CELLS, help="recurrent layer of the text training (default: lstm)")
    cells.add_argument(
        "--compare-cells", action="store_true", help="train the text on each of these layers and compare them instead"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and samples (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Runs the trainings, prints the table and writes the reports.

    Args:
        args: what a parser with :func:`add_arguments` returned.

    Returns:
        The exit status: 0 if every check passed, 1 if one failed (accuracy, drift between the two sides, or a
        habit's check), 2 if the demo cannot run as asked, 130 if interrupted.
    """
    try:
        failures = _run(args)
    except DemoError as error:
        print(f"fastnn demo: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("fastnn demo: interrupted; no results written", file=sys.stderr)
        return INTERRUPTED
    for failure in failures:
        print(f"fastnn demo: FAILED: {failure}", file=sys.stderr)
    return FAILED if failures else SUCCESS


def _run(args: argparse.Namespace) -> list[str]:
    _require("scikit-learn", "sklearn")
    _require("matplotlib", "matplotlib")
    _require("rich", "rich")
    if args.epochs is not None and args.epochs < 1:
        raise DemoError(f"--epochs must be at least 1, got {args.epochs}")
    if not 0 <= args.seed < 2**32:
        raise DemoError(f"--seed must lie between 0 and 2**32 - 1, got {args.seed}")
    if args.training == "images":
        given = {"--text": args.text, "--cell": args.cell, "--compare-cells": args.compare_cells}
        for option, value in given.items():
            if value:
                raise DemoError(f"{option} has no meaning for the images training")
    device = _device(args.device)
    corpus = None
    if args.training != "images":
        from fastnn.demo import text

        corpus = text.load_corpus(args.text)
    out = _output_directory(args.out)

    from rich.console import Console

    from fastnn.bench.timing import describe_machine
    from fastnn.demo import report

    console = Console(highlight=False)
    sides = ("fastnn",) if args.no_compare else ("torch", "fastnn")
    started = time.perf_counter()
    outcomes: list[Outcome] = []
    comparison: CellComparison | None = None
    with _full_float32(device):
        if args.training in ("images", "all"):
            from fastnn.demo import images

            outcomes.append(images.train(console, sides, device, args.seed, args.epochs))
        if corpus is not None and args.compare_cells:
            comparison = text.compare_cells(console, device, args.seed, args.epochs, corpus)
        elif corpus is not None:
            outcomes.append(text.train(console, sides, device, args.seed, args.epochs, corpus, args.cell or "lstm"))
    elapsed = time.perf_counter() - started

    machine = describe_machine(device)
    written = [report.save_png(outcome, machine, out) for outcome in outcomes]
    results = {
        "seconds": elapsed,
        "seed": args.seed,
        "machine": machine,
        "trainings": {outcome.name: outcome.as_dict() for outcome in outcomes},
    }
    if comparison is not None:
        results["cells"] = comparison.as_dict()
        written.append(report.save_cells_png(comparison, machine, out))
    written.append(out / "results.json")
    written[-1].write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if outcomes:
        console.print()
        console.print(report.table(outcomes, machine))
    if comparison is not None:
        console.print()
        console.print(report.cells_table(comparison, machine))
    console.print(f"{elapsed:.0f} s in all. Written: " + ", ".join(str(path) for path in written), soft_wrap=True)
    failures = [f"{outcome.name}: {failure}" for outcome in outcomes for failure in outcome.failures]
    return failures + ([] if comparison is None else comparison.failures)


def _require(distribution: str, module: str) -> None:
    """Imports a package of the demo extra, or says how to get it."""
    try:
        __import__(module)
    except ImportError as error:
        raise DemoError(f"{distribution} cannot be imported ({error}): pip install 'fastnn[demo]'") from None


def _device(name: str) -> torch.device:
    """Returns the device of that name after making sure that torch and fastnn can use it."""
    from fastnn.testing.devices import usable_device

    try:
        return usable_device(name)
    except ValueError as error:
        raise DemoError(str(error)) from None


def _output_directory(name: str) -> Path:
    """Makes the directory for the reports and proves it writable, before minutes are spent on training."""
    out = Path(name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise DemoError(f"--out {name}: cannot write there: {error.strerror or error}") from None
    return out


@contextlib.contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """Keeps cuDNN from rounding float32 products to TF32: both sides compute with the same precision."""
    if device.type != "cuda":
        yield
        return
    import torch

    with torch.cuda.device(device), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
