"""Times every variant of the recurrent layers against the plain layer, and batches with lengths against their steps.

    python tools/recurrent_variants.py [--device cuda] [--threads N] [--rounds N] [--json FILE.json]

`fastnn bench lstm` compares with torch's layers, which have no variants. Here all layers of a family take turns in one
run; a variant's number is its time over the plain layer's, a batch's with lengths its time over what its share of the
steps of the padded batch would cost, and a second derivative's its time over the first's. Measure on an otherwise
idle machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.utils.benchmark import Timer

import fastnn.nn
from fastnn.bench.session import commit

SHAPES = {"B16 T100 H128": (16, 100, 128), "B64 T64 H512": (64, 64, 512)}
LSTMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "peepholes": {"peephole": True},
    "coupled gates": {"coupled": True},
    "hard sigmoid": {"gate_activation": "hard_sigmoid"},
    "zoneout": {"zoneout": 0.1},
    "recurrent DropConnect": {"weight_dropout": 0.1},
    "normalised gates": {"layer_norm": True},
}
GRUS: dict[str, dict[str, Any]] = {"plain": {}, "reset before the product": {"reset_after": False}}
MUTATED = {"MUT1": fastnn.nn.MUT1, "MUT2": fastnn.nn.MUT2, "MUT3": fastnn.nn.MUT3}


def layers(hidden: int) -> dict[str, dict[str, nn.Module]]:
    """The layers of each family; of each the first is what the others are compared with."""
    grus: dict[str, nn.Module] = {name: fastnn.nn.GRU(hidden, hidden, **options) for name, options in GRUS.items()}
    return {
        "LSTM": {name: fastnn.nn.LSTM(hidden, hidden, **options) for name, options in LSTMS.items()},
        "GRU": grus | {name: layer(hidden, hidden) for name, layer in MUTATED.items()},
    }


def step(layer: nn.Module, x: Tensor, **options: Any) -> Callable[[], None]:
    """A training step without an optimiser."""
    cotangent = torch.randn(*x.shape[:-1], layer.hidden_size, device=x.device)

    def run() -> None:
        layer(x, **options)[0].backward(cotangent)

    return run


def inference(layer: nn.Module, x: Tensor, **options: Any) -> Callable[[], None]:
    """Forward alone, in evaluation."""

    def run() -> None:
        layer.eval()
        with torch.no_grad():
            layer(x, **options)
        layer.train()

    return run


def second(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """Backward, differentiated again."""

    def run() -> None:
        (grad,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
        grad.sum().backward()

    return run


def medians(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Seconds of each, which take turns."""
    threads = torch.get_num_threads()
    timers = {name: Timer("run()", globals={"run": run}, num_threads=threads) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for timer in timers.values():
        timer.timeit(1)
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer.timeit(1).median)
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()}


def measure(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """A row for each ratio."""
    rows = []
    for case, (batch, time, hidden) in track(SHAPES.items(), description="recurrent layers"):
        x = torch.randn(time, batch, hidden, device=device, requires_grad=True)
        families = {name: {k: v.to(device) for k, v in of.items()} for name, of in layers(hidden).items()}
        for family, members in families.items():
            for what, make in (("inference", inference), ("training step", step)):
                times = medians({name: make(layer, x) for name, layer in members.items()}, rounds)
                rows += [
                    {
                        "case": case,
                        "what": what,
                        "layer": f"{family}, {name}",
                        "seconds": t,
                        "ratio": t / times["plain"],
                    }
                    for name, t in times.items()
                ]
            plain = members["plain"]
            lengths = torch.randint(1, time + 1, (batch,), generator=torch.Generator().manual_seed(0))
            share = float(lengths.sum()) / (time * batch)
            for what, make in (("inference", inference), ("training step", step)):
                times = medians({"padded": make(plain, x), "lengths": make(plain, x, lengths=lengths)}, rounds)
                rows.append(
                    {
                        "case": case,
                        "what": what,
                        "layer": f"{family}, lengths with {share:.0%} of the steps",
                        "seconds": times["lengths"],
                        "ratio": times["lengths"] / (times["padded"] * share),
                    }
                )
            times = medians({"first": step(plain, x), "second": second(plain, x)}, max(3, rounds // 3))
            rows.append(
                {
                    "case": case,
                    "what": "second derivative",
                    "layer": f"{family}, plain",
                    "seconds": times["second"],
                    "ratio": times["second"] / times["first"],
                }
            )
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The rows as a table."""
    table = Table("shape", "what", "layer", "time", "ratio")
    for row in rows:
        table.add_row(row["case"], row["what"], row["layer"], f"{row['seconds'] * 1e3:.2f} ms", f"{row['ratio']:.2f}")
    console.print(table)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # In a process that has freed a tensor of this size, as one with a network of some size has, glibc no longer returns
    # smaller ones to the system at once: else their pages, zeroed anew for each call, would be half of a small layer's
    # time, and more of it in a variant that keeps more for backward.
    torch.empty(31 << 20, dtype=torch.uint8)
    rows = measure(arguments.device, arguments.rounds)
    show(rows, Console())
    if arguments.json is not None:
        device = torch.cuda.get_device_name() if arguments.device.type == "cuda" else platform.processor()
        record = {
            "device": device,
            "threads": arguments.threads,
            "torch": torch.__version__,
            "commit": commit(),
            "date": datetime.date.today().isoformat(),
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
