"""Which subjects there are, and in which order: every op, from the tables that the tests have.

``fastnn.testing.cases`` has a table of cases for each op, and ``tests/conv_cases.py`` convolutions that reach every
kernel; each is a subject. What those tables have not (recurrent layers and their variants, fractional pooling, the ops
of synchronised batch norm, sizes for a whole device) is added here. ``tests/test_gpu_day.py`` fails where no subject
reaches an op that the dispatcher knows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastnn.functional
import fastnn.nn
from fastnn.testing.case import Case
from fastnn.testing.cases import CASES, BatchNormCase, Conv2dCase, ConvCase
from gpu_day import machine
from gpu_day.subjects import LAYOUTS, OfActivatedConvolution, OfCase, OfFunction, OfLayer, Subject

# Convolutions that reach every kernel stand with the tests.
sys.path.insert(0, str(machine.ROOT / "tests"))
import conv_cases

_NOTHING = object()

# ---- what the table of cases has not --------------------------------------------------------------------------------

# The recurrent classes with the options that make them other computations. Zoneout and DropConnect draw at random in
# training, and are elementwise: they have tests.
RECURRENT: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "LSTM": {
        "plain": {},
        "peepholes": {"peephole": True},
        "coupled": {"coupled": True},
        "normalised": {"layer_norm": True},
        "projected": {"proj_size": 4},
        "memory efficient": {"memory_efficient": True},
    },
    "GRU": {"plain": {}, "reset before the product": {"reset_after": False}},
    "RNN": {"plain": {}},
    "MUT1": {"plain": {}},
    "MUT2": {"plain": {}},
    "MUT3": {"plain": {}},
}
CELL_OPTIONS = ("plain", "peepholes", "coupled", "normalised", "reset before the product")
# Time, samples and units: within a block's shared memory, and beyond it, so that blocks share the units: those of a
# cluster, then more.
SEQUENCES = ((5, 3, 8), (6, 16, 64), (4, 8, 512), (4, 64, 1024))


def _layers() -> Iterable[Subject]:
    for name, variants in RECURRENT.items():
        for variant, options in variants.items():
            for time, samples, units in SEQUENCES:
                yield OfLayer(
                    name.lower(),
                    f"{variant}, T{time} B{samples} H{units}",
                    (name, variant),
                    small=units <= 64,
                    large=units > 512,
                    make=_maker(name, units, options),
                    shapes=((time, samples, units),),
                    batch_dimension=1,
                )
            if variant in CELL_OPTIONS:
                states = 2 if name == "LSTM" else 1
                yield OfLayer(
                    f"{name.lower()}_cell",
                    f"{variant}, B7 H13",
                    (name, variant, "cell"),
                    make=_maker(f"{name}Cell", 13, options, states),
                    shapes=((7, 13),) * (1 + states),
                )


def _maker(name: str, units: int, options: Mapping[str, Any], states: int = 0) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = getattr(fastnn.nn, name)(units, units, **options)
        return _Stepped(layer) if states == 2 else layer

    return make


class _Stepped(nn.Module):
    """An LSTM's cell with its states as two arguments."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.cell(x, (h, c))


def _functions() -> Iterable[Subject]:
    for rank, shape in ((2, (2, 3, 9, 11)), (3, (2, 3, 6, 7, 8))):
        for indices in (False, True):
            yield OfFunction(
                f"fractional_max_pool{rank}d",
                "with indices" if indices else "plain",
                (rank, indices),
                function=_fractional(rank, indices),
                shapes=(("input", shape), ("samples", (1, 3, rank))),
            )
    channels = (("input", (3, 17, 5, 7)),)
    yield OfFunction("sync_batch_norm", "statistics and last pass", (), function=_synchronised, shapes=channels)
    # Under autocast an LSTM's cell multiplies with torch's matrix product, and has a kernel for what follows.
    weights = (("input", (6, 32)), ("w_ih", (64, 32)), ("w_hh", (64, 16)))
    yield OfFunction("lstm_cell", "autocast", ("autocast",), function=_autocast_cell, shapes=weights)


def _fractional(rank: int, indices: bool) -> Callable[..., tuple[Tensor, ...]]:
    def run(input: Tensor, samples: Tensor) -> tuple[Tensor, ...]:
        function = getattr(fastnn.functional, f"fractional_max_pool{rank}d")
        # The same windows for every sample of the batch, so that what it gives does not depend on its place.
        samples = samples.expand(input.shape[0], -1, -1)
        out = function(input, 2, output_size=3, return_indices=indices, _random_samples=samples)
        return out if indices else (out,)

    return run


def _synchronised(input: Tensor) -> tuple[Tensor, ...]:
    """The ops that only ``sync_batch_norm`` has, without the exchange of numbers between them."""
    ops = torch.ops.fastnn
    mean, invstd = ops.batch_norm_statistics(input.detach())
    # (x - mean) * scale + shift; it is the function around them that is differentiable.
    return (ops.batch_norm_act_apply(input.detach(), None, mean, invstd, mean, "identity", 1.0),)


def _autocast_cell(input: Tensor, w_ih: Tensor, w_hh: Tensor) -> tuple[Tensor, ...]:
    units = w_hh.shape[1]
    with torch.autocast(input.device.type, torch.bfloat16):
        return tuple(fastnn.functional.lstm_cell(input, (input[:, :units], input[:, units:]), w_ih / 4, w_hh / 4))


# Of a size at which a device's multiprocessors share the work otherwise than the emulator's four: tiles and splits of
# products; channels that several blocks hold, of a cluster, of the grid, or not all of them.
DEVICE_SIZED = (
    Conv2dCase(id="3x3, 64, 56²", shape=(16, 64, 56, 56), filters=64, kernel=(3, 3), padding=1),
    Conv2dCase(id="3x3, 256, 14²", shape=(16, 256, 14, 14), filters=256, kernel=(3, 3), padding=1),
    Conv2dCase(id="1x1, 512 to 128, 28²", shape=(16, 512, 28, 28), filters=128, kernel=(1, 1)),
    Conv2dCase(id="7x7/2, 3 to 64, 112²", shape=(16, 3, 112, 112), filters=64, kernel=(7, 7), stride=2, padding=3),
    Conv2dCase(id="depthwise, 144, 56²", shape=(16, 144, 56, 56), filters=144, kernel=(3, 3), padding=1, groups=144),
    BatchNormCase(id="16 x 112², 4 channels", shape=(16, 4, 112, 112)),
    BatchNormCase(id="64 x 112², 2 channels", shape=(64, 2, 112, 112)),
    BatchNormCase(id="128 x 224², 2 channels", shape=(128, 2, 224, 224)),
    BatchNormCase(id="add_relu, 16 x 112²", shape=(16, 4, 112, 112), activation="relu", residual=True),
    BatchNormCase(id="add_relu, 64 x 112²", shape=(64, 2, 112, 112), activation="relu", residual=True),
)


# ---- all of them, in order ------------------------------------------------------------------------------------------


def _tables() -> Iterable[tuple[Case, str, tuple[Any, ...]]]:
    """Every case with its name, and what sets it apart from its op's others beside its own fields."""
    # Each of these is for other kernels of its own.
    yield from ((case, case.id, (case.id,)) for case in DEVICE_SIZED)
    yield from ((case, f"{case.id} of HOPPER", (case.id,)) for case, _ in conv_cases.HOPPER)
    # Of recurrences the layers are the subjects.
    for cases in (table for op, table in CASES.items() if op != "recurrence"):
        # What crosses a tile's edge may have other kernels than what is smaller than one.
        yield from ((case, case.id, (case.crosses_tile,)) for case in cases)
    for name in ("DEPTHWISE", "SMALL_GROUPS", "MANY_CHANNELS", "PRODUCTS"):
        yield from ((case, f"{case.id} of {name}", (name,)) for case in getattr(conv_cases, name))


def _of_cases() -> Iterable[OfCase]:
    words = ("kind", "rank", "training", "activation", "residual", "use_input_stats", "pieces_first", "norm_type")
    for case, name, kind in _tables():
        kind = (*kind, *(getattr(case, word, None) for word in words))
        groups = getattr(case, "groups", 1)
        if hasattr(case, "channels"):
            kind += ("dense" if groups == 1 else "depthwise" if groups == case.channels else "grouped",)
        options = {"small": case.small or case.crosses_tile, "twice": case.small and case.values == "normal"}
        yield OfCase(case.op, name, kind, large=case in DEVICE_SIZED, **options, case=case)


def _activated(of_cases: Iterable[OfCase]) -> Iterable[Subject]:
    """Every kind of convolution with an activation in the same pass, where there is such a function."""
    kinds: set[Any] = set()
    for subject in of_cases:
        op = f"{subject.op}_relu"
        if not isinstance(subject.case, ConvCase) or op not in fastnn.functional.__all__:
            continue
        if subject.ordinary and (op, subject.kind) not in kinds:
            # A ReLU's derivative is found from the sign of what is stored, ELU's from its value.
            name = ("relu", "elu")[len(kinds) % 2]
            kinds.add((op, subject.kind))
            fields = {field.name: getattr(subject, field.name) for field in dataclasses.fields(subject)}
            yield OfActivatedConvolution(**(fields | {"op": op, "id": f"{subject.id}, {name}"}), activation=name)


def subjects(device: str = "cpu") -> list[Subject]:
    """All of them that a device is for."""
    of_cases = list(_of_cases())
    found = (*of_cases, *_activated(of_cases), *_layers(), *_functions())
    return [subject for subject in found if device == "cuda" or not subject.large]


@dataclass(frozen=True)
class Item:
    """A subject in one type and layout."""

    subject: Subject
    dtype: torch.dtype
    layout: str

    @property
    def tf32(self) -> bool:
        """Whether float32 products may be of tf32: in one layout, so that the kernels of both ways have their turn."""
        return self.layout == "channels_last"

    @property
    def name(self) -> str:
        """As records have it."""
        return f"{self.subject.op} {self.subject.id}, {str(self.dtype).removeprefix('torch.')} {self.layout}"


def in_turn(
    found: Iterable[Subject], dtypes: Sequence[torch.dtype], wanted: Callable[[Subject], Any] | None = None
) -> list[Item]:
    """Items so ordered that whenever the time is up, it was spent on as many kinds of op as possible.

    The first kind of each op, the second kind of each, and so on; when every kind was met, all kinds a second time.
    Types and layouts change from one kind of an op to the next, and within a kind from one subject to the next, until
    each has been in all of them.

    Args:
        found: the subjects.
        dtypes: the types, the most wanted first.
        wanted: of a kind's subjects the one for which it is least comes first; None for the order of ``found``.
    """
    ops: dict[str, dict[Any, list[Subject]]] = {}
    for subject in found:
        ops.setdefault(subject.op, {}).setdefault(subject.kind, []).append(subject)
    pairs = [(dtype, layout) for dtype in dtypes for layout in LAYOUTS]
    queues = []
    numbered = (enumerate(kinds.values()) for kinds in ops.values())
    for number, members in _alternating(numbered):
        queue = []
        for turn in range(len(pairs)):
            for place, subject in enumerate(sorted(members, key=wanted) if wanted else members):
                dtype, layout = pairs[(number + place + turn) % len(pairs)]
                if dtype in subject.dtypes and layout in subject.layouts:
                    queue.append(Item(subject, dtype, layout))
        queues.append(queue)
    return list(_alternating(queues))


def _alternating(rows: Iterable[Iterable[Any]]) -> Iterator[Any]:
    """The first of each row, the second of each, and so on."""
    for column in itertools.zip_longest(*rows, fillvalue=_NOTHING):
        yield from (entry for entry in column if entry is not _NOTHING)


def one_of_each_kind(planned: Iterable[Item]) -> list[Item]:
    """The first of each kind."""
    first: dict[Any, Item] = {}
    for item in planned:
        first.setdefault((item.subject.op, item.subject.kind), item)
    return list(first.values())


@functools.cache
def elements(subject: Subject) -> int:
    """How many its samples have, weights left out."""
    inputs = subject.inputs(subject.dtypes[-1], "contiguous", "cpu")
    return sum(inputs[name].numel() for name in subject.sample_dimension(inputs) or inputs)
