"""Times fastnn's layers against torch's on one device, and both against the machine's limit.

    python benchmarks/run.py [--device cpu] [--only REGEX] [--out FILE.json] [--rounds 11]
    python benchmarks/run.py --table FILE.json      # the table of a recorded run, as Markdown

Each row is one layer at one shape, forward and backward apart. Both peers get the same inputs (random, never zeros)
and take turns in the same run; outputs are compared before anything is timed, and a wrong one gets no time. The
limit is measured in the same run: bandwidth of a large copy, counting bytes read and written, and rate of a large
matrix product. The floor of a layer is the larger of its bytes (each input read once, each output written once)
over the one and its FLOPs over the other; `fraction` is the floor over the measured time. A row above 100 % found
its data in the cache, or multiplies faster than the matrix product does.
"""

from __future__ import annotations

import argparse
import datetime
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

import fastnn.nn
from fastnn.testing.bench import describe_machine, median, spread, time_in_turn

PEERS = {"torch": torch.nn, "fastnn": fastnn.nn}
# As in the training of a network: everything but the first layer's input wants a gradient.
CONVOLUTIONS = {
    "resnet50 7x7/2, 3 to 64, 224²": ((8, 3, 224, 224), (3, 64, 7), {"stride": 2, "padding": 3}),
    "resnet50 3x3, 64, 56²": ((8, 64, 56, 56), (64, 64, 3), {"padding": 1}),
    "resnet50 3x3, 128, 28²": ((8, 128, 28, 28), (128, 128, 3), {"padding": 1}),
    "resnet50 3x3, 512, 7²": ((8, 512, 7, 7), (512, 512, 3), {"padding": 1}),
    "resnet50 1x1, 256 to 64, 56²": ((8, 256, 56, 56), (256, 64, 1), {}),
    "mobilenet depthwise 3x3, 144, 56²": ((8, 144, 56, 56), (144, 144, 3), {"padding": 1, "groups": 144}),
    "digits 3x3, 1 to 16, 8²": ((64, 1, 8, 8), (1, 16, 3), {"padding": 1}),
    "digits 3x3, 16 to 32, 8²": ((64, 16, 8, 8), (16, 32, 3), {"padding": 1}),
}
POOLS = {"resnet50 3x3/2, 64, 112²": (8, 64, 112, 112), "vgg16 2x2, 128, 112²": (8, 128, 112, 112)}
NORMS = {
    "resnet50 64, 112²": (8, 64, 112, 112),
    "resnet50 256, 14²": (8, 256, 14, 14),
    "rows 4096 x 512": (4096, 512),
}
CELLS = {"N 16, H 128": (16, 128), "N 64, H 512": (64, 512)}


@dataclass(frozen=True)
class Row:
    """One layer at one shape: ``make(nn)`` builds it from a namespace, ``inputs`` are its inputs."""

    op: str
    name: str
    layout: str
    make: Callable[[Any], torch.nn.Module]
    inputs: tuple[torch.Tensor, ...]
    flops: int
    """Of one forward pass; backward does twice as many where both gradients are wanted."""


def rows(device: torch.device) -> Iterator[Row]:
    """Every row, with fresh inputs."""

    def images(shape: tuple[int, ...], layout: str, grad: bool = True) -> torch.Tensor:
        x = torch.randn(shape, device=device)
        if layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        return x.requires_grad_(grad)

    for layout in ("contiguous", "channels_last"):
        for name, (shape, (c, k, size), options) in CONVOLUTIONS.items():
            out = ((shape[2] + 2 * options.get("padding", 0) - size) // options.get("stride", 1)) + 1
            flops = 2 * shape[0] * out * out * k * (c // options.get("groups", 1)) * size * size
            x = images(shape, layout, grad=c > 3)

            def conv(nn: Any, arguments: tuple = (c, k, size), options: dict = options) -> torch.nn.Module:
                return nn.Conv2d(*arguments, bias=False, **options)

            yield Row("conv2d", name, layout, conv, (x,), flops)
        for name, shape in POOLS.items():
            size, options = (3, {"stride": 2, "padding": 1}) if "3x3" in name else (2, {})
            yield Row(
                "max_pool2d",
                name,
                layout,
                lambda nn, size=size, options=options: nn.MaxPool2d(size, **options),
                (images(shape, layout),),
                0,
            )
        for name, shape in NORMS.items():
            if len(shape) == 2 and layout == "channels_last":
                continue
            x = images(shape, layout if len(shape) == 4 else "contiguous")
            layer = "BatchNorm2d" if len(shape) == 4 else "BatchNorm1d"
            yield Row("batch_norm", name, layout, lambda nn, n=layer, c=shape[1]: getattr(nn, n)(c), (x,), 0)
    for name, (n, h) in CELLS.items():
        tensors = tuple(torch.randn(n, h, device=device, requires_grad=True) for _ in range(3))
        yield Row("lstm_cell", name, "contiguous", lambda nn, h=h: nn.LSTMCell(h, h), tensors, 2 * n * 8 * h * h)


def call(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Runs a layer; a cell takes its state as a pair."""
    out = layer(inputs[0], inputs[1:]) if len(inputs) > 1 else layer(inputs[0])
    return out if isinstance(out, tuple) else (out,)


def nbytes(tensors: Any) -> int:
    """Bytes that tensors hold."""
    return sum(t.numel() * t.element_size() for t in tensors)


def measure(row: Row, device: torch.device, limit: dict[str, float], rounds: int) -> list[dict[str, Any]]:
    """Forward and backward of one row, both peers.

    Raises:
        AssertionError: when the peers' outputs or gradients differ.
    """
    torch.manual_seed(0)
    layers = {name: row.make(nn).to(device) for name, nn in PEERS.items()}
    layers["fastnn"].load_state_dict(layers["torch"].state_dict())
    if row.layout == "channels_last":
        layers = {name: layer.to(memory_format=torch.channels_last) for name, layer in layers.items()}
    outputs = {name: call(layer, row.inputs) for name, layer in layers.items()}
    cotangents = tuple(torch.randn_like(o) for o in outputs["torch"])
    wanted = {
        name: [t for t in (*row.inputs, *layer.parameters()) if t.requires_grad] for name, layer in layers.items()
    }

    def backward(name: str) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(outputs[name], wanted[name], cotangents, retain_graph=True)

    gradients = {name: backward(name) for name in PEERS}
    for mine, theirs in ((outputs["fastnn"], outputs["torch"]), (gradients["fastnn"], gradients["torch"])):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.detach().abs().max()))

    parameters = list(layers["torch"].parameters())
    moved = {
        "forward": nbytes((*row.inputs, *parameters, *outputs["torch"])),
        "backward": nbytes((*cotangents, *row.inputs, *parameters, *gradients["torch"])),
    }
    gradients_of_products = 2 if row.inputs[0].requires_grad else 1
    flops = {"forward": row.flops, "backward": gradients_of_products * row.flops}
    steps = {
        "forward": {name: (lambda layer=layer: call(layer, row.inputs)) for name, layer in layers.items()},
        "backward": {name: (lambda name=name: backward(name)) for name in PEERS},
    }
    results = []
    for direction, peers in steps.items():
        seconds = time_in_turn(peers, rounds=rounds)
        medians = {name: median(values) for name, values in seconds.items()}
        floor = max(moved[direction] / limit["copy_bytes_per_second"], flops[direction] / limit["flops_per_second"])
        results.append(
            {
                "op": row.op,
                "case": row.name,
                "layout": row.layout,
                "dtype": "float32",
                "direction": direction,
                "bytes": moved[direction],
                "flops": flops[direction],
                "seconds": medians,
                "percentiles_20_80": {name: spread(values) for name, values in seconds.items()},
                "ratio_to_torch": medians["torch"] / medians["fastnn"],
                "fraction_of_limit": {name: floor / value for name, value in medians.items()},
            }
        )
    return results


def measure_limit(device: torch.device) -> dict[str, float]:
    """Copy bandwidth (bytes read and written) and float32 matrix rate of this machine, now."""
    source = torch.randn(64 << 20, device=device)
    target = torch.empty_like(source)
    n = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    copy = median(time_in_turn({"copy": lambda: target.copy_(source)}, 0.1, 5)["copy"])
    product = median(time_in_turn({"product": lambda: a @ b}, 0.2, 5)["product"])
    return {"copy_bytes_per_second": 2 * nbytes([source]) / copy, "flops_per_second": 2 * n**3 / product}


def markdown(record: dict[str, Any]) -> str:
    """A recorded run as a Markdown table."""
    machine, limit = record["machine"], record["limit"]
    lines = [
        f"{machine['device_name']}, {machine['threads']} threads, {machine['cpu_capability']}, torch "
        f"{machine['versions']['torch']}, {record['date']}, commit {record['commit']}; measured limits: "
        f"copy {limit['copy_bytes_per_second'] / 1e9:.0f} GB/s, float32 product "
        f"{limit['flops_per_second'] / 1e9:.0f} GFLOP/s.",
        "",
        "| op | case | layout | forward: × torch | of limit | backward: × torch | of limit |",
        "|---|---|---|---|---|---|---|",
    ]
    by_case: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in record["rows"]:
        by_case.setdefault((row["op"], row["case"], row["layout"]), {})[row["direction"]] = row
    for (op, case, layout), both in by_case.items():
        cells = [
            f"{both[d]['ratio_to_torch']:.2f} | {both[d]['fraction_of_limit']['fastnn']:.0%}"
            for d in ("forward", "backward")
        ]
        lines.append(f"| {op} | {case} | {layout} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Runs, prints the table and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--only", default="", help="rows whose op or case matches this regular expression")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="write the record here as JSON")
    parser.add_argument("--table", type=Path, help="print the table of this record, and measure nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(markdown(json.loads(arguments.table.read_text())))
        return 0
    # TF32 off in the peer: these are float32 rows.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    record: dict[str, Any] = {
        "machine": describe_machine(arguments.device),
        "date": datetime.date.today().isoformat(),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "limit": measure_limit(arguments.device),
        "rows": [],
    }
    chosen = [r for r in rows(arguments.device) if re.search(arguments.only, f"{r.op} {r.name} {r.layout}")]
    for row in track(chosen, description="measuring", console=Console(stderr=True)):
        record["rows"] += measure(row, arguments.device, record["limit"], arguments.rounds)
    print(markdown(record))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
