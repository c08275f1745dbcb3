"""The ``fastnn`` command: ``fastnn info`` and ``fastnn demo``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from fastnn import demo
from fastnn._info import info
from fastnn._version import __version__


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
    lines = [
        ("fastnn", facts["version"]),
        ("torch", f"{facts['torch']} (fastnn was built for {facts['built_for_torch'] or 'an unknown one'})"),
        ("python", f"{facts['python']} on {facts['platform']}"),
        ("compiler", facts["compiler"] or "unknown"),
        (
            "cpu",
            f"{cpu['capability']} in use, compiled: {', '.join(cpu['compiled'])}; {cpu['threads']} threads",
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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the arguments after the program's name; None for those of the process.

    Returns:
        The exit status, 0 for success.
    """
    arguments = build_parser().parse_args(argv)
    return arguments.run(arguments)
