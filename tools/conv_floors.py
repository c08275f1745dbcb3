"""The two numbers of each convolution of the benchmark's networks, and the floor that follows, as a Markdown table.

    python tools/conv_floors.py [--batch 64] [--dtype bfloat16] [--rate 790e12] [--copy 4.3e12] [NETWORK ...]

Bytes: each operand read once, the result written once. The larger of bytes / copy rate and FLOPs / matrix rate is the
floor; the rates are those of the device in question, by default what has been seen of an H200. Needs no GPU.
"""

from __future__ import annotations

import argparse

import torch

from fastnn.bench.layers import Conv
from fastnn.bench.suites import traced


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet50", "vgg16", "googlenet"], metavar="NETWORK")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rate", type=float, default=790e12, help="FLOP/s of a large matrix product")
    parser.add_argument("--copy", type=float, default=4.3e12, help="bytes read and written a second by a large copy")
    arguments = parser.parse_args()
    size = getattr(torch, arguments.dtype).itemsize
    print("| network | layer | times | GFLOP | MB | floor, µs | bound by | backward: GFLOP | MB | floor, µs |")
    print("|---|---|--:|--:|--:|--:|---|--:|--:|--:|")
    for network in arguments.networks:
        total = {"forward": 0.0, "backward": 0.0}
        for layer, times in traced(network, arguments.batch):
            if not isinstance(layer, Conv):
                continue
            cells = []
            for direction in total:
                cost = layer.cost(direction, size)
                seconds = max(cost.bytes / arguments.copy, cost.flops / arguments.rate)
                total[direction] += times * seconds
                cells.append(f"{cost.flops / 1e9:.1f} | {cost.bytes / 1e6:.0f} | {seconds * 1e6:.0f}")
                if direction == "forward":
                    memory = cost.bytes / arguments.copy > cost.flops / arguments.rate
                    cells.append("memory" if memory else "matrix rate")
            print(f"| {network} | {layer.case} | {times} | {' | '.join(cells)} |")
        forward, backward = (f"{seconds * 1e6:.0f}" for seconds in total.values())
        print(f"| {network} | all | | | | {forward} | | | | {backward} |")


if __name__ == "__main__":
    main()
