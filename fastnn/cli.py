"""The ``fastnn`` command and its subcommands."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from fastnn import bench, check, demo
from fastnn._info import info
from fastnn._version import __version__
from fastnn.bench import compare, report, tables

BENCH_COMMANDS: dict[str, tuple[Any, str]] = {
    "report": (report, "draw records of bench as an HTML page"),
    "compare": (compare, "list what got slower between two records of bench"),
    "tables": (tables, "write the tables of the kept records of bench"),
}


def _describe_cuda(facts: dict[str, Any]) -> str:
    cuda = facts["cuda"]
    if not cuda["built"]:
        return "not built"
    return f"built with CUDA {cuda['toolkit']} for {', '.join(cuda['architectures'])}"


def _describe_device(device: dict[str, Any]) -> str:
    code = "supported" if device["supported"] else "NOT supported: this build has no code for it"
    return f"cuda:{device['index']} {device['name']}, compute capability {device['compute_capability']}, {code}"


def format_info(facts: dict[str, Any]) -> str:
    """What :func:`fastnn.info` returned, as lines for people."""
    cpu = facts["cpu"]
    in_use = cpu["capability"] + ("" if cpu["capability"] in cpu["optimised"] else " (NOT optimised in this build)")
    lines = [
        ("fastnn", facts["version"]),
        ("torch", f"{facts['torch']} (fastnn was built for {facts['built_for_torch'] or 'an unknown one'})"),
        ("python", f"{facts['python']} on {facts['platform']}"),
        ("compiler", facts["compiler"] or "unknown"),
        (
            "cpu",
            f"{in_use} in use, compiled: {', '.join(cpu['compiled'])}; {cpu['threads']} threads",
        ),
        ("cuda", _describe_cuda(facts)),
        ("emulator", "built" if facts["emulator"] else "not built"),
    ]
    lines += [("device", _describe_device(device)) for device in facts["devices"]] or [("device", "no GPU seen")]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _run_info(arguments: argparse.Namespace) -> int:
    facts = info()
    print(json.dumps(facts, indent=2) if arguments.json else format_info(facts))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command's parser; what it parses has ``run``, a function of it that returns the exit status."""
    parser = argparse.ArgumentParser(prog="fastnn", description="Hand-written kernels, drop-in for torch.nn.")
    parser.add_argument("--version", action="version", version=f"fastnn {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    show = commands.add_parser("info", help="how fastnn was built and what it finds on this machine")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=_run_info)

    train = commands.add_parser("demo", help="train two small networks with torch's layers and with fastnn's")
    demo.add_arguments(train)
    train.set_defaults(run=demo.run)

    judge = commands.add_parser(
        "check",
        help="hold every kernel against a float64 oracle on this machine",
        description="Computes outputs, gradients and second derivatives of many cases with fastnn and with torch, "
        "holds both against a float64 oracle and its error bounds, and repeats fastnn's to compare bits.",
        epilog="Exit status: 0 passed; 1 a bound is broken or bits differ; 2 wrong usage; 130 interrupted (what was "
        "found is printed). What the numbers mean: docs/checking.md.",
    )
    check.add_arguments(judge)
    judge.set_defaults(run=check.run)

    measure = commands.add_parser(
        "bench",
        help="time layers and networks against torch's and the machine's limits",
        description="Times fastnn's layers and networks against torch's on the same inputs in the same run, and both "
        "against the machine's own copy bandwidth and matrix rate. What is wrong gets no time.",
        epilog="Exit status: 0 measured; 1 a kernel is wrong; 2 wrong usage; 130 interrupted (what was measured is "
        "printed and kept). What the columns mean: docs/benchmarking.md. Records: `fastnn bench report FILE...`, "
        "`fastnn bench compare A B`, `fastnn bench tables`.",
    )
    bench.add_arguments(measure)
    measure.set_defaults(run=bench.run)
    for name, (module, what) in BENCH_COMMANDS.items():
        command = commands.add_parser(f"bench {name}", help=what)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the arguments after the program's name; None for those of the process.

    Returns:
        The exit status, 0 for success.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["bench"] and words[1:2] and words[1] in BENCH_COMMANDS:
        # Of `bench` suites may follow, which argparse could not tell from further subcommands.
        words[:2] = [" ".join(words[:2])]
    arguments = build_parser().parse_args(words)
    return arguments.run(arguments)
