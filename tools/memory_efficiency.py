"""Counts, in the emulator, how well every kernel accesses memory; needs no GPU.

    python tools/memory_efficiency.py [--only REGEX] [--dtypes float32 bfloat16] [--no-clusters] [--json FILE.json]

Each op runs forward and backward at sizes with whole tiles and borders, in both layouts. One row per kernel: its
efficiency of global memory (bytes asked for over bytes of the sectors that move; 100 % is coalesced), how often a
sector moves (what caches must make up for), and the wavefronts of shared memory over those that would do without bank
conflicts; then the lines that waste most. With --no-clusters the kernels are those of a device before sm_90. What is
counted and what is not: docs/emulator.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fastnn.nn
from fastnn.testing.access_profile import AccessSite, KernelAccesses, access_profile
from fastnn.testing.emulation import emulated_cuda, played_device

ROOT = Path(__file__).resolve().parent.parent
# Some dozens of blocks each, and seconds in the emulator.
CONVOLUTIONS = {
    "3x3, 32 to 64, 28²": ((2, 32, 28, 28), (32, 64, 3), {"padding": 1}),
    "3x3/2, 32 to 64, 28²": ((2, 32, 28, 28), (32, 64, 3), {"padding": 1, "stride": 2}),
    "1x1, 64 to 128, 28²": ((2, 64, 28, 28), (64, 128, 1), {}),
    "7x7/2, 3 to 32, 56²": ((1, 3, 56, 56), (3, 32, 7), {"padding": 3, "stride": 2}),
    "depthwise 3x3, 32, 28²": ((2, 32, 28, 28), (32, 32, 3), {"padding": 1, "groups": 32}),
    "depthwise 3x3, 128, 56²": ((1, 128, 56, 56), (128, 128, 3), {"padding": 1, "groups": 128}),
    "depthwise 5x5/2, 128, 28²": ((2, 128, 28, 28), (128, 128, 5), {"padding": 2, "stride": 2, "groups": 128}),
    "depthwise 7x7, 64, 28²": ((2, 64, 28, 28), (64, 64, 7), {"padding": 3, "groups": 64}),
    "groups of 4, 3x3, 64, 28²": ((2, 64, 28, 28), (64, 64, 3), {"padding": 1, "groups": 16}),
}
POOLS = {
    "3x3/2, 32, 56²": ((2, 32, 56, 56), (3,), {"stride": 2, "padding": 1}),
    "2x2, 32, 56²": ((2, 32, 56, 56), (2,), {}),
    "3x3/2, 32, 112²": ((2, 32, 112, 112), (3,), {"stride": 2, "padding": 1}),
    "3x3/1, 64, 14²": ((4, 64, 14, 14), (3,), {"stride": 1, "padding": 1}),
    "5x5/1, 30, 27²": ((2, 30, 27, 27), (5,), {"stride": 1, "padding": 2}),
    "2x2, 4, 3 rows of 9001": ((1, 4, 3, 9001), ((1, 2),), {}),
}
NORMS = {
    "64, 28²": (4, 64, 28, 28),
    "256, 28²": (4, 256, 28, 28),
    "128, 7²": (16, 128, 7, 7),
    "rows 512 x 256": (512, 256),
    "rows 4096 x 256": (4096, 256),
    "rows 10000 x 32": (10000, 32),
}
ENDS = {"64, 28²": (4, 64, 28, 28), "256, 28²": (4, 256, 28, 28)}
CELLS = {"N 64, H 128": (64, 128)}
SEQUENCES: dict[str, Callable[[int], torch.nn.Module]] = {
    "lstm": lambda h: fastnn.nn.LSTM(h, h),
    "gru": lambda h: fastnn.nn.GRU(h, h),
    "gru, reset before the product": lambda h: fastnn.nn.GRU(h, h, reset_after=False),
    "rnn": lambda h: fastnn.nn.RNN(h, h),
}


@dataclass(frozen=True)
class Row:
    """One layer at one shape: ``make()`` builds it."""

    op: str
    case: str
    layout: str
    make: Callable[[], torch.nn.Module]
    shapes: tuple[tuple[int, ...], ...]

    def title(self) -> str:
        """What ``--only`` is matched with."""
        return f"{self.op} {self.case}, {self.layout}"


def rows() -> Iterator[Row]:
    """Every row."""
    for layout in ("contiguous", "channels_last"):
        for case, (shape, arguments, options) in CONVOLUTIONS.items():
            yield Row("conv2d", case, layout, lambda a=arguments, o=options: fastnn.nn.Conv2d(*a, **o), (shape,))
        for case, (shape, arguments, options) in POOLS.items():
            yield Row("max_pool2d", case, layout, lambda a=arguments, o=options: fastnn.nn.MaxPool2d(*a, **o), (shape,))
        for case, shape in NORMS.items():
            if len(shape) == 2 and layout == "channels_last":
                continue
            layer = fastnn.nn.BatchNorm2d if len(shape) == 4 else fastnn.nn.BatchNorm1d
            for mode in ("training", "eval"):
                yield Row(
                    "batch_norm",
                    f"{case}, {mode}",
                    layout,
                    lambda new=layer, c=shape[1], training=mode == "training": new(c).train(training),
                    (shape,),
                )
        for case, shape in ENDS.items():
            yield Row("batch_norm_relu", case, layout, lambda c=shape[1]: fastnn.nn.BatchNormReLU2d(c), (shape,))
            yield Row(
                "batch_norm_add_relu", case, layout, lambda c=shape[1]: fastnn.nn.BatchNormAddReLU2d(c), (shape, shape)
            )
    for case, (n, h) in CELLS.items():
        yield Row("lstm_cell", case, "contiguous", lambda h=h: fastnn.nn.LSTMCell(h, h), ((n, h),) * 3)
    for op, make in SEQUENCES.items():
        yield Row(op, "N 16, T 6, H 64", "contiguous", lambda make=make: make(64), ((6, 16, 64),))


def call(layer: torch.nn.Module, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Runs a layer; a cell takes its state as a pair, and of a sequence the outputs of all steps are wanted."""
    if isinstance(layer, torch.nn.RNNBase):
        return (layer(inputs[0])[0],)
    out = layer(inputs[0], tuple(inputs[1:])) if isinstance(layer, torch.nn.LSTMCell) else layer(*inputs)
    return out if isinstance(out, tuple) else (out,)


def profile(row: Row, dtype: torch.dtype) -> dict[str, list[KernelAccesses]]:
    """The kernels that each direction of a row runs."""
    torch.manual_seed(0)
    layer = row.make().to(dtype)
    inputs = [torch.randn(shape, dtype=dtype) for shape in row.shapes]
    if row.layout == "channels_last":
        layer = layer.to(memory_format=torch.channels_last)
        inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    inputs = [x.requires_grad_() for x in inputs]
    with emulated_cuda():
        with access_profile() as forward:
            outputs = call(layer, inputs)
        cotangents = [torch.randn_like(y) for y in outputs]
        with access_profile() as backward:
            torch.autograd.grad(outputs, [*inputs, *layer.parameters()], cotangents)
    return {"forward": forward, "backward": backward}


def record_of(kernel: KernelAccesses) -> dict[str, Any]:
    """A kernel as the record has it: the sums, and the sites that a reader would look at first."""
    sums = ("launches", "blocks", "profiled_blocks", "asked_bytes", "moved_bytes", "distinct_bytes")
    return {
        "name": kernel.name,
        **{key: getattr(kernel, key) for key in sums},
        "efficiency": round(kernel.efficiency, 4),
        "ideal_wavefronts": kernel.ideal_wavefronts,
        "wavefronts": kernel.wavefronts,
        "worst_sites": [dataclasses.asdict(site) for site in kernel.worst()],
    }


def describe(site: AccessSite) -> str:
    """One line of the last column."""
    cost = f"{site.conflicts} conflicts" if site.space == "shared" else f"{site.wasted_bytes / 1024:.0f} KB wasted"
    return f"{site.place}: {site.kind} of {site.bytes}, {site.efficiency:.0%}, {cost}"


def show(console: Console, results: list[tuple[Row, str, str, list[KernelAccesses]]]) -> None:
    """The table."""
    table = Table(title="Memory accesses, counted by the emulator")
    table.add_column("op, case", max_width=30)
    table.add_column("kernel", overflow="fold", max_width=44)
    for heading in ("asked KB", "efficiency", "moves of a sector", "wavefronts / ideal"):
        table.add_column(heading, justify="right", max_width=10)
    table.add_column("most wasteful lines", overflow="fold")
    for row, dtype, direction, kernels in results:
        for kernel in kernels:
            sampled = "~" if kernel.profiled_blocks < kernel.blocks else ""
            table.add_row(
                f"{row.title()}, {dtype}, {direction}",
                kernel.name,
                f"{sampled}{kernel.asked_bytes / 1024:.0f}",
                f"{kernel.efficiency:.0%}",
                "" if kernel.rereads is None else f"{kernel.rereads:.1f}",
                f"{kernel.conflict_ratio:.2f}" if kernel.ideal_wavefronts else "",
                "\n".join(map(describe, kernel.worst(2))),
            )
    console.print(table)


def main() -> int:
    """Runs, prints the table and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose op, case or layout matches this regular expression")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--no-clusters", action="store_true", help="play a device before sm_90")
    parser.add_argument("--json", type=Path, help="write the record here")
    arguments = parser.parse_args()
    chosen = [row for row in rows() if re.search(arguments.only, row.title())]
    todo = [(row, dtype) for dtype in arguments.dtypes for row in chosen]
    results: list[tuple[Row, str, str, list[KernelAccesses]]] = []
    with played_device(compute_capability=80 if arguments.no_clusters else 90):
        for row, dtype in track(todo, description="running", console=Console(stderr=True)):
            for direction, kernels in profile(row, getattr(torch, dtype)).items():
                results.append((row, dtype, direction, kernels))
    show(Console(width=None if sys.stdout.isatty() else 200), results)
    if arguments.json:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        record = {
            "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
            "rows": [
                {
                    "op": row.op,
                    "case": row.case,
                    "layout": row.layout,
                    "dtype": dtype,
                    "direction": direction,
                    "kernels": [record_of(kernel) for kernel in kernels],
                }
                for row, dtype, direction, kernels in results
            ],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main())
