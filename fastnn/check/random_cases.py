"""Cases drawn from a seed, over every shape and option that an op takes.

Sizes are mixtures: mostly small ones, with all their remainders; some at the edges of the kernels' vectors and tiles
(16, 32, 64, 128 and their neighbours); and now and then nothing at all. A case that would cost too much, or that the
op refuses, is drawn again. The draw depends on op, seed and index alone, so a case can be made again by itself.
"""

from __future__ import annotations

import math
from random import Random
from typing import Any

from fastnn.testing.cases import (
    PRECISE,
    WIDE_RANGE,
    BatchNormCase,
    Case,
    Conv2dCase,
    LstmCellCase,
    MaxPool2dCase,
    Pair,
    PoolingCase,
)
from fastnn.testing.reference import conv2d_padding, pair, pool_out_size

EDGES = (15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
LARGEST_WORK = 1_000_000  # multiplications, or elements read: some milliseconds of the oracle
LARGEST_TENSOR = 60_000  # elements
SMALL_WORK = 20_000  # as in the table: so small that the emulator runs it in every layout
PREFIX = "random-"


def random_case(op: str, seed: int, index: int) -> Case:
    """The case of that number; its id is ``random-SEED:INDEX``.

    Args:
        op: one of ``fastnn.testing.cases.CASES``.
        seed: of the series.
        index: place in the series, from 0.
    """
    random = Random(f"{op} {seed} {index}")
    draw = {
        "conv2d": _conv2d,
        "max_pool2d": _max_pool2d,
        "pooling": _pooling,
        "batch_norm": _batch_norm,
        "lstm_cell": _lstm_cell,
    }[op]
    while True:
        drawn = draw(random)
        if drawn is not None:
            make, work, options = drawn
            small = work <= SMALL_WORK
            return make(id=f"{PREFIX}{seed}:{index}", small=small, crosses_tile=not small, **options)


# What to make, its work, and its arguments; None if it has to be drawn again.
Drawn = tuple[type[Case], int, dict[str, Any]] | None


def _size(random: Random, largest: int) -> int:
    kind = random.random()
    if kind < 0.6:
        return random.randint(1, min(9, largest))
    if kind < 0.85:
        return random.randint(1, largest)
    return random.choice([edge for edge in EDGES if edge <= largest] or [largest])


def _batch(random: Random) -> int:
    return random.choice((0, 1, 1, 2, 2, 3, 5, 17))


def _pair(random: Random, low: int, high: int) -> Pair:
    """Two numbers, or one for both."""
    if random.random() < 0.4:
        return random.randint(low, high)
    return (random.randint(low, high), random.randint(low, high))


def _values(random: Random, *others: str) -> dict[str, Any]:
    """The kind of the first input's values: normal ones half the time, and the dtypes that can hold them."""
    values = "normal" if random.random() < 0.5 else random.choice(others)
    dtypes = {"huge": WIDE_RANGE, "large_mean": PRECISE}
    return {"values": values} | ({"dtypes": dtypes[values]} if values in dtypes else {})


def _conv2d(random: Random) -> Drawn:
    kind = random.choice(("plain", "plain", "grouped", "depthwise"))
    groups = {"plain": 1, "grouped": random.randint(2, 5), "depthwise": _size(random, 129)}[kind]
    channels = groups * (1 if kind == "depthwise" else _size(random, 129))
    filters = groups * (random.randint(1, 2) if kind == "depthwise" else _size(random, 129))
    largest = random.choice((1, 3, 3, 3, 5, 11))
    kernel = (random.randint(1, largest), random.randint(1, largest))
    stride, dilation = _pair(random, 1, 4), _pair(random, 1, 3)
    padding: Pair | str = random.choice(("valid", "same")) if random.random() < 0.2 else _pair(random, 0, 4)
    if padding == "same":
        stride = 1
    extent = (_size(random, 65), _size(random, 65))
    before = conv2d_padding(padding, kernel, pair(dilation))
    out = [
        (size + begin + end - d * (k - 1) - 1) // s + 1
        for size, begin, end, k, s, d in zip(
            extent, before[::2], before[1::2], kernel, pair(stride), pair(dilation), strict=True
        )
    ]
    batch = _batch(random)
    work = max(batch, 1) * math.prod(out) * filters * channels // groups * math.prod(kernel)
    if min(out) < 1 or work > LARGEST_WORK or max(batch, 1) * channels * math.prod(extent) > LARGEST_TENSOR:
        return None
    shape = (channels, *extent) if random.random() < 0.1 else (batch, channels, *extent)
    options = {
        "shape": shape,
        "filters": filters,
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": random.random() < 0.7,
    }
    return Conv2dCase, work, options | _values(random, "integers", "nonfinite", "huge")


def _max_pool2d(random: Random) -> Drawn:
    largest = random.choice((2, 3, 3, 5, 17))
    kernel = _pair(random, 1, largest)
    stride = None if random.random() < 0.3 else _pair(random, 1, 5)
    half = [size // 2 for size in pair(kernel)]
    padding = (random.randint(0, half[0]), random.randint(0, half[1]))
    dilation, ceil_mode = _pair(random, 1, 3), random.random() < 0.4
    extent = (_size(random, 129), _size(random, 129))
    out = []
    for size, k, s, p, d in zip(
        extent, pair(kernel), pair(kernel if stride is None else stride), padding, pair(dilation), strict=True
    ):
        count = pool_out_size(size, k, s, p, d, ceil_mode)
        # Dilation and padding may lead a window past the input on all sides, which is an error.
        if count < 1 or not all(any(0 <= o * s - p + tap * d < size for tap in range(k)) for o in range(count)):
            return None
        out.append(count)
    batch, channels = _batch(random), _size(random, 129)
    planes = max(batch, 1) * channels
    work = planes * math.prod(out) * math.prod(pair(kernel))
    if max(work, planes * math.prod(extent)) > LARGEST_TENSOR * 4 or planes * math.prod(extent) > LARGEST_TENSOR:
        return None
    options = {
        "shape": (channels, *extent) if random.random() < 0.1 else (batch, channels, *extent),
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "ceil_mode": ceil_mode,
        "return_indices": random.random() < 0.5,
    }
    return MaxPool2dCase, work, options | _values(random, "ties", "nonfinite", "minus_inf", "integers", "huge")


# Outputs that an oracle computes one by one.
LARGEST_POOLED = 4096


def _pooling(random: Random) -> Drawn:
    kind = random.choice(("max_pool", "avg_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool"))
    rank = random.choice((1, 3) if kind == "max_pool" else (1, 2, 2, 3))
    extent = [_size(random, 129 if rank < 3 else 17) for _ in range(rank)]
    options: dict[str, Any]
    if kind.startswith("adaptive"):
        out = [random.choice((1, random.randint(1, 9), size)) for size in extent]
        options = {"output_size": out[0] if rank == 1 else tuple(out)}
    else:
        kernel = [random.randint(1, random.choice((2, 3, 5, 17))) for _ in range(rank)]
        stride = [random.randint(1, 5) for _ in range(rank)]
        ceil_mode = random.random() < 0.4
        padding = [0 if kind == "lp_pool" else random.randint(0, k // 2) for k in kernel]
        sizes = zip(extent, kernel, stride, padding, strict=True)
        out = [pool_out_size(size, k, s, p, 1, ceil_mode) for size, k, s, p in sizes]
        # torch refuses volumes that are smaller than the window.
        if min(out) < 1 or any(k > size for k, size in zip(kernel, extent, strict=True)):
            return None
        # torch multiplies by the kernel of lp_pool1d, which must be a number.
        options = {
            "kernel_size": kernel[0] if rank == 1 else tuple(kernel),
            "stride": tuple(stride),
            "ceil_mode": ceil_mode,
        }
        if kind != "lp_pool":
            options["padding"] = tuple(padding)
        if kind == "avg_pool":
            options["count_include_pad"] = random.random() < 0.5
            if rank > 1 and random.random() < 0.2:
                options["divisor_override"] = random.choice((-3, 1, 7))
        if kind == "lp_pool":
            options["norm_type"] = random.choice((1, 2, 2, 3))
    batch, channels = _batch(random), _size(random, 129)
    planes = max(batch, 1) * channels
    if math.prod(out) > LARGEST_POOLED or planes * math.prod(extent) > LARGEST_TENSOR:
        return None
    fields: dict[str, Any] = {
        "kind": kind,
        "rank": rank,
        "shape": (channels, *extent) if random.random() < 0.1 else (batch, channels, *extent),
        "arguments": tuple(options.items()),
    }
    values = _values(random, "nonfinite", "huge") if kind != "lp_pool" else {"dtypes": WIDE_RANGE}
    return PoolingCase, planes * math.prod(extent) * 4, fields | values


def _batch_norm(random: Random) -> Drawn:
    rank = random.randint(2, 5)
    batch = random.choice((_batch(random), _size(random, 129), random.randint(1, 3000)))
    shape = (batch, _size(random, 129), *(_size(random, 65 if rank < 5 else 17) for _ in range(rank - 2)))
    training = random.random() < 0.7
    work = math.prod(shape)
    # torch refuses to take a variance of one value.
    if work > LARGEST_TENSOR or (training and work == shape[1]):
        return None
    options = {
        "shape": shape,
        "training": training,
        "affine": random.random() < 0.7,
        "track": random.random() < 0.7,
        "momentum": random.choice((0.0, 0.1, 1.0, random.random())),
        "eps": 10.0 ** random.uniform(-6, 0),
        "mixed": random.random() < 0.3,
    }
    return BatchNormCase, work, options | _values(random, "large_mean", "nonfinite")


def _lstm_cell(random: Random) -> Drawn:
    rows = random.choice((0, 1, _size(random, 129), random.randint(1, 300)))
    inputs, hidden = _size(random, 129), _size(random, 129)
    work = max(rows, 1) * 4 * hidden * (inputs + hidden)
    if work > LARGEST_WORK:
        return None
    options = {
        "rows": rows,
        "input_size": inputs,
        "hidden_size": hidden,
        "bias": random.random() < 0.7,
        "through": random.choice(("both", "both", "h", "c")),
    }
    return LstmCellCase, work, options | _values(random, "nonfinite", "huge")
