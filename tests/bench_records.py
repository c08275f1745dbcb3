"""Records of `fastnn bench`, made up: what the presentation of records is tested with."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

LIMITS = {
    "float32": {"copy_bytes_per_second": 45e9, "flops_per_second": 186e9},
    "bfloat16": {"copy_bytes_per_second": 44e9, "flops_per_second": 420e9},
}
# Suite, op, case, multiplicity, bytes, FLOPs, seconds of torch.
LAYERS = [
    ("resnet50", "conv2d", "7x7/2, 3 to 64, 224²", 1, 30.5e6, 1.89e9, 27e-3),
    ("resnet50", "conv2d", "3x3, 64, 56²", 3, 13.0e6, 1.85e9, 8.9e-3),
    ("resnet50", "conv2d", "3x3, 512, 7²", 3, 12.6e6, 1.85e9, 9.7e-3),
    ("resnet50", "conv2d", "1x1, 256 to 64, 56²", 2, 32.2e6, 0.82e9, 6.2e-3),
    ("resnet50", "batch_norm", "64, 112²", 1, 51.4e6, 0, 3.1e-3),
    ("resnet50", "max_pool2d", "3x3/2, 64, 112²", 1, 33.7e6, 0, 4.4e-3),
    ("mobilenet_v2", "conv2d", "depthwise 3x3, 144, 56²", 2, 28.9e6, 65e6, 1.4e-3),
    ("lstm", "lstm", "B 16, T 1024, H 768", 1, 120e6, 155e9, 1.1),
]
NETWORKS = [
    ("models", "network", "resnet50, B 8", 1, 1.2e9, 66e9, 0.9),
    ("models", "network", "lenet5, B 64", 1, 9e6, 54e6, 2e-3),
]
DIRECTIONS = {True: ("inference", "training_step"), False: ("forward", "backward")}


def make_row(
    layer: tuple, layout: str, dtype: str, direction: str, ratio: float, spread: float = 0.02
) -> dict[str, Any]:
    """One row: fastnn is `ratio` times as fast as torch, and its times spread by `spread` to either side."""
    suite, op, case, multiplicity, moved, flops, seconds = layer
    times = {"fastnn": seconds / ratio, "torch": seconds}
    limit = LIMITS[dtype]
    by_memory, by_compute = moved / limit["copy_bytes_per_second"], flops / limit["flops_per_second"]
    floor = max(by_memory, by_compute)
    return {
        "suite": suite,
        "op": op,
        "case": case,
        "multiplicity": multiplicity,
        "shape": {"n": 8},
        "layout": layout,
        "dtype": dtype,
        "direction": direction,
        "bytes": moved,
        "flops": flops,
        "floor_seconds": floor,
        "bound": "memory" if by_memory > by_compute else "compute",
        "seconds": times,
        "percentiles_20_80": {peer: [t * (1 - spread), t * (1 + spread)] for peer, t in times.items()},
        "rounds": 11,
        "ratio": {"torch": ratio},
        "fraction": {peer: floor / t for peer, t in times.items()},
        "bytes_per_second": {peer: moved / t for peer, t in times.items()},
        "flops_per_second": {peer: flops / t for peer, t in times.items()},
        "peak_bytes": {"fastnn": int(moved * (0.8 if direction != "backward" else 1.1)), "torch": int(moved)},
        "noisy": None,
        "wrong": None,
    }


def make_wrong(row: dict[str, Any], why: str) -> dict[str, Any]:
    """A row whose kernel gave a wrong result."""
    fields = ("suite", "op", "case", "multiplicity", "shape", "layout", "dtype", "direction")
    return {field: row[field] for field in fields} | {"noisy": None, "wrong": why}


def _rows(seed: int, dtypes: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    random_ratio = random.Random(seed)
    for layer in LAYERS + NETWORKS:
        for dtype in dtypes:
            for layout in ("contiguous", "channels_last"):
                if layer[1] == "lstm" and layout == "channels_last":
                    continue
                for direction in DIRECTIONS[layer[1] == "network"]:
                    yield make_row(layer, layout, dtype, direction, random_ratio.lognormvariate(0.1, 0.5))


def make_record(
    seed: int = 0,
    date: str = "2026-11-20",
    commit: str = "abc1234",
    device: str = "cpu",
    name: str = "AMD EPYC",
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
) -> dict[str, Any]:
    """A whole record; the seed decides the ratios."""
    return {
        "schema": 1,
        "machine": {
            "device": device,
            "device_name": name,
            "threads": 2,
            "cpu_capability": "avx512",
            "cores": 2,
            "load_before": 0.1,
            "load_after": 1.9,
            "versions": {"fastnn": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
            "platform": "Linux-6.18",
        },
        "date": date,
        "commit": commit,
        "arguments": ["resnet50", "--json", "<record>.json"],
        "seconds": 412.0,
        "complete": True,
        "limits": {dtype: LIMITS[dtype] for dtype in dtypes},
        "rows": list(_rows(seed, dtypes)),
    }
