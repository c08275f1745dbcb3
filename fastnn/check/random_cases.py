"""Cases drawn from a seed, over every shape and option that an op takes.

Sizes are mixtures: mostly small ones, with all their remainders; some at the edges of the kernels' vectors and tiles
(16, 32, 64, 128 and their neighbours); and now and then nothing at all. A case that would cost too much, or that the
op refuses, is drawn again. The draw depends on op, seed and index alone, so a case can be made again by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from fastnn.testing.activation_cases import ALPHAS, NAMES
from fastnn.testing.cases import (
    PRECISE,
    WIDE_RANGE,
    ActivationCase,
    BatchNormCase,
    Case,
    Conv2dCase,
    ConvCase,
    GroupNormCase,
    InstanceNormCase,
    LocalResponseNormCase,
    LstmCellCase,
    MaxoutCase,
    MaxPool2dCase,
    PoolingCase,
    RecurrenceCase,
)
from fastnn.testing.convolution_cases import (
    Conv1dCase,
    Conv3dCase,
    ConvTranspose1dCase,
    ConvTranspose2dCase,
    ConvTranspose3dCase,
    ConvTransposeCase,
    LocallyConnected1dCase,
    LocallyConnected2dCase,
)
from fastnn.testing.pooling_cases import Pair
from fastnn.testing.recurrence_cases import GATES
from fastnn.testing.reference import conv_padding, of_each, pair, pool_out_size

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
    draw = _DRAW[op]
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


def _each(random: Random, low: int, high: int, rank: int) -> int | tuple[int, ...]:
    """A number for each dimension, or one for all."""
    if random.random() < 0.4:
        return random.randint(low, high)
    return tuple(random.randint(low, high) for _ in range(rank))


def _pair(random: Random, low: int, high: int) -> Pair:
    """Two numbers, or one for both."""
    return _each(random, low, high, 2)


def _values(random: Random, *others: str) -> dict[str, Any]:
    """The kind of the first input's values: normal ones half the time, and the dtypes that can hold them."""
    values = "normal" if random.random() < 0.5 else random.choice(others)
    dtypes = {"huge": WIDE_RANGE, "large_mean": PRECISE}
    return {"values": values} | ({"dtypes": dtypes[values]} if values in dtypes else {})


def _conv(kind_of_case: type[ConvCase], rank: int, random: Random) -> Drawn:
    kind = random.choice(("plain", "plain", "grouped", "depthwise"))
    groups = {"plain": 1, "grouped": random.randint(2, 5), "depthwise": _size(random, 129)}[kind]
    channels = groups * (1 if kind == "depthwise" else _size(random, 129))
    filters = groups * (random.randint(1, 2) if kind == "depthwise" else _size(random, 129))
    largest = random.choice((1, 3, 3, 3, 5, 11))
    kernel = tuple(random.randint(1, largest) for _ in range(rank))
    stride, dilation = _each(random, 1, 4, rank), _each(random, 1, 3, rank)
    transposed = issubclass(kind_of_case, ConvTransposeCase)
    named = random.random() < 0.2 and not transposed
    padding = random.choice(("valid", "same")) if named else _each(random, 0, 4, rank)
    if padding == "same":
        stride = 1
    extent = tuple(_size(random, 65 if rank < 3 else 17) for _ in range(rank))
    strides, dilations = of_each(stride, rank), of_each(dilation, rank)
    pads = conv_padding(padding, kernel, dilations)
    sizes = zip(extent, pads[::2], pads[1::2], kernel, strides, dilations, strict=True)
    options: dict[str, Any] = {}
    if transposed:
        # Positions of the input, each of which meets every tap, are what there is to do.
        more = tuple(random.randint(0, max(s, d) - 1) for s, d in zip(strides, dilations, strict=True))
        options["output_padding"] = more
        out = [(size - 1) * s - 2 * p + d * (k - 1) + 1 for size, p, _, k, s, d in sizes]
        windows = math.prod(extent)
    else:
        out = [(size + begin + end - d * (k - 1) - 1) // s + 1 for size, begin, end, k, s, d in sizes]
        windows = math.prod(out)
    batch = _batch(random)
    work = max(batch, 1) * windows * filters * channels // groups * math.prod(kernel)
    largest_tensor = max(batch, 1) * max(channels * math.prod(extent), filters * math.prod(out) if transposed else 0)
    if min(out) < 1 or work > LARGEST_WORK or largest_tensor > LARGEST_TENSOR:
        return None
    shape = (channels, *extent) if random.random() < 0.1 else (batch, channels, *extent)
    options |= {
        "shape": shape,
        "filters": filters,
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": random.random() < 0.7,
    }
    return kind_of_case, work, options | _values(random, "integers", "nonfinite", "huge")


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


def _activation(random: Random) -> Drawn:
    shape = tuple(
        random.choice((0, _size(random, 129))) if random.random() < 0.05 else _size(random, 129)
        for _ in range(random.randint(0, 3))
    )
    if math.prod(shape) > LARGEST_TENSOR:
        return None
    name = random.choice(NAMES)
    options = {
        "shape": shape,
        "activation": name,
        "alpha": 10.0 ** random.uniform(-1, 1) if name in ALPHAS else 0.0,
        "residual": random.random() < 0.4,
        "scale": random.choice((0.1, 1.0, 2.0, 8.0)),
    }
    # Infinite sums are what no one defines.
    return ActivationCase, math.prod(shape), options | ({} if options["residual"] else _values(random, "nonfinite"))


def _maxout(random: Random) -> Drawn:
    rank, pieces = random.randint(2, 5), random.choice((1, 2, 2, 3, 4, 5, 16, 17))
    shape = (
        _batch(random),
        pieces * _size(random, 33),
        *(_size(random, 65 if rank < 5 else 9) for _ in range(rank - 2)),
    )
    if math.prod(shape) > LARGEST_TENSOR:
        return None
    options = {"shape": shape, "pieces": pieces, "pieces_first": random.random() < 0.3}
    return MaxoutCase, math.prod(shape), options | _values(random, "ties", "nonfinite", "minus_inf", "huge")


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


def _group_norm(random: Random) -> Drawn:
    rank, groups = random.randint(2, 5), _size(random, 33)
    shape = (
        _batch(random),
        groups * _size(random, 33),
        *(_size(random, 33 if rank < 5 else 9) for _ in range(rank - 2)),
    )
    work = math.prod(shape)
    if work > LARGEST_TENSOR or work == groups:  # one value a group in the whole batch: torch refuses that
        return None
    return GroupNormCase, work, {"shape": shape, "groups": groups} | _sample_norm(random)


def _instance_norm(random: Random) -> Drawn:
    rank = random.randint(3, 5)
    shape = (_batch(random), _size(random, 129), *(_size(random, 65 if rank < 5 else 17) for _ in range(rank - 2)))
    use_input_stats = random.random() < 0.8
    # torch takes no empty batch, and no statistics of one value.
    one_value = use_input_stats and math.prod(shape[2:]) == 1
    if math.prod(shape) > LARGEST_TENSOR or not shape[0] or one_value:
        return None
    options = {
        "shape": shape,
        "use_input_stats": use_input_stats,
        "track": not use_input_stats or random.random() < 0.5,
        "momentum": random.random(),
    }
    return InstanceNormCase, math.prod(shape), options | _sample_norm(random)


def _sample_norm(random: Random) -> dict[str, Any]:
    options = {
        "affine": random.random() < 0.7,
        "eps": 10.0 ** random.uniform(-6, 0),
        "mixed": random.random() < 0.3,
    }
    return options | _values(random, "large_mean", "nonfinite")


def _local_response_norm(random: Random) -> Drawn:
    rank = random.randint(3, 5)
    shape = (_batch(random), _size(random, 129), *(_size(random, 65 if rank < 5 else 17) for _ in range(rank - 2)))
    size = _size(random, 2 * shape[1] + 1)
    work = math.prod(shape)
    if work > LARGEST_TENSOR or work * min(size, shape[1]) > LARGEST_WORK:
        return None
    options = {
        "shape": shape,
        "size": size,
        "alpha": 10.0 ** random.uniform(-4, 0),
        "beta": random.choice((0.5, 0.75, 1.0, random.uniform(-1, 2))),
        "k": random.uniform(0.5, 2),
    }
    # What an infinite sum to a negative power should give is defined by no one.
    return LocalResponseNormCase, work, options | (_values(random, "nonfinite") if options["beta"] > 0 else {})


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


def _recurrence(random: Random) -> Drawn:
    # Errors grow from step to step, as does their bound.
    steps, rows = random.randint(1, 6), _batch(random)
    inputs, hidden = _size(random, 65), _size(random, 65)
    kind = random.choice(list(GATES))
    work = max(rows, 1) * steps * GATES[kind] * hidden * (inputs + hidden)
    if work > LARGEST_WORK:
        return None
    options = {
        "kind": kind,
        "steps": steps,
        "rows": rows,
        "input_size": inputs,
        "hidden_size": hidden,
        "bias": random.random() < 0.7,
        "reverse": random.random() < 0.3,
        "memory_efficient": random.random() < 0.3,
    }
    if rows and random.random() < 0.4:
        options["lengths"] = tuple(random.randint(0, steps) for _ in range(rows))
    # Gates that half types round to 0 or 1 turn an infinite gradient into NaN.
    values = _values(random, "nonfinite")
    return RecurrenceCase, work, options | values | ({"dtypes": PRECISE} if values["values"] == "nonfinite" else {})


def _locally_connected(kind_of_case: type[ConvCase], rank: int, random: Random) -> Drawn:
    """A convolution without groups and with few positions, whose filters are as many times more."""
    drawn = _conv(kind_of_case, rank, random)
    if drawn is None or drawn[2]["groups"] > 1 or isinstance(drawn[2]["padding"], str):
        return None
    kind, work, options = drawn
    del options["groups"]
    if math.prod(kind(id="", **options).weight_shape) > LARGEST_TENSOR:
        return None
    return kind, work, options


_DRAW: dict[str, Callable[[Random], Drawn]] = {
    "conv1d": partial(_conv, Conv1dCase, 1),
    "conv2d": partial(_conv, Conv2dCase, 2),
    "conv3d": partial(_conv, Conv3dCase, 3),
    "conv_transpose1d": partial(_conv, ConvTranspose1dCase, 1),
    "conv_transpose2d": partial(_conv, ConvTranspose2dCase, 2),
    "conv_transpose3d": partial(_conv, ConvTranspose3dCase, 3),
    "locally_connected1d": partial(_locally_connected, LocallyConnected1dCase, 1),
    "locally_connected2d": partial(_locally_connected, LocallyConnected2dCase, 2),
    "activation": _activation,
    "max_pool2d": _max_pool2d,
    "pooling": _pooling,
    "maxout": _maxout,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "local_response_norm": _local_response_norm,
    "lstm_cell": _lstm_cell,
    "recurrence": _recurrence,
}
