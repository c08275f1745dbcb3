"""Measures rows: first whether the kernels are right, then time, memory, and what the machine did besides."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastnn.bench import noise
from fastnn.bench.correctness import fault, laid_out, prepared, problem
from fastnn.bench.graphs import replay_in_turn
from fastnn.bench.layers import Layer
from fastnn.bench.limits import DTYPES, precision
from fastnn.bench.memory import peak_bytes
from fastnn.bench.suites import Row
from fastnn.bench.timing import cache_bytes, cores, median, spread, time_in_turn

MOST_COPIES = {"cpu": 32, "cuda": 64}


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: where.
        compile: whether torch.compile of torch's layer is a third peer.
        hot: keep one copy of the inputs, which then stay in the cache where they fit.
        rounds: at most so many a row.
        seconds_per_round: of each peer, on a CPU.
    """

    device: torch.device
    compile: bool = False
    hot: bool = False
    rounds: int = 21
    seconds_per_round: float = 0.02

    @property
    def peers(self) -> dict[str, Callable[[Layer, nn.Module], Callable]]:
        """What makes each peer's layer out of torch's."""
        peers: dict[str, Callable[[Layer, nn.Module], Callable]] = {
            "torch": lambda layer, module: module,
            "fastnn": lambda layer, module: layer.fastnn(module),
        }
        if self.compile:
            peers["torch.compile"] = lambda layer, module: torch.compile(module)
        return peers


@dataclass(frozen=True)
class Instance:
    """One copy of a problem: the inputs that all peers get, and each peer's layer."""

    inputs: tuple[Tensor, ...]
    layers: dict[str, Callable]


def measure(
    rows: Sequence[Row], settings: Settings, limit: dict[str, float], seconds: float
) -> Iterator[dict[str, Any]]:
    """Measures rows of one layer, dtype and layout.

    Args:
        rows: they differ in direction alone.
        settings: how.
        limit: of the machine for this dtype.
        seconds: what all of them may take, checks included; three rounds of each are made in any case.

    Yields:
        Each row as the record has it, as soon as it is done.
    """
    started = time.perf_counter()
    row = rows[0]
    if settings.compile:
        torch._dynamo.reset()  # what other rows compiled counts against a limit
    with precision(row.dtype):
        reason = _fault(row, settings)
        if reason is not None:
            for each in rows:
                yield {**_identity(each), "noisy": None, "wrong": reason}
            return
        instances = _instances(row, settings)
        for index, each in enumerate(rows):
            left = seconds - (time.perf_counter() - started)
            yield _timed(each, settings, limit, instances, left / (len(rows) - index))


def _identity(row: Row) -> dict[str, Any]:
    return {
        "suite": row.suite,
        "op": row.layer.op,
        "case": row.layer.case,
        "multiplicity": row.multiplicity,
        "shape": row.layer.shape,
        "layout": row.layout,
        "dtype": row.dtype,
        "direction": row.direction,
    }


def _fault(row: Row, settings: Settings) -> str | None:
    given = problem(row.layer.reduced(), row.dtype, settings.device)
    for name, make in settings.peers.items():
        if name == "torch":
            continue
        reason = fault(given, lambda module, make=make: make(given.layer, module), row.layout, name)
        if reason is not None:
            return reason
    return None


def _instances(row: Row, settings: Settings) -> list[Instance]:
    """As many copies of inputs and weights as go beyond the last-level cache twice, or one."""
    layer, device, dtype = row.layer, settings.device, DTYPES[row.dtype]
    count = 1
    if not settings.hot:
        size = layer.cost(row.direction, dtype.itemsize).bytes
        count = min(MOST_COPIES[device.type], max(1, -(-2 * cache_bytes(device) // size)))
    module = prepared(layer.make(), device, dtype, row.layout)
    values = layer.make_inputs(device, dtype)
    instances: list[Instance] = []
    for _ in range(count):
        inputs = tuple(laid_out(t, row.layout) for t in values)
        layers = {}
        for name, make in settings.peers.items():
            if name == "torch.compile" and instances:
                # Compiled once: another module would be compiled anew.
                layers[name] = instances[0].layers[name]
            else:
                layers[name] = make(layer, prepared(copy.deepcopy(module), device, dtype, row.layout))
        instances.append(Instance(inputs, layers))
    return instances


def _timed(
    row: Row, settings: Settings, limit: dict[str, float], instances: list[Instance], seconds: float
) -> dict[str, Any]:
    others = noise.OtherProcesses()
    steps = _steps(row, instances)
    device = settings.device
    if device.type == "cuda":
        measured, timer = replay_in_turn(steps, device, settings.rounds, seconds)
    else:
        turning = {name: _turning(copies) for name, copies in steps.items()}
        measured = time_in_turn(turning, settings.seconds_per_round, settings.rounds, seconds)
        timer = "torch.utils.benchmark"
    busy = others.busy_cores()
    peaks = {name: peak_bytes(call, device) for name, call in _for_memory(row, instances[0], steps).items()}

    size = DTYPES[row.dtype].itemsize
    cost, (floor, bound) = row.layer.cost(row.direction, size), row.layer.floor(row.direction, size, limit)
    medians = {name: median(values) for name, values in measured.items()}
    percentiles = {name: list(spread(values)) for name, values in measured.items()}
    on_cpu = device.type == "cpu"
    crowded = noise.crowded(busy, torch.get_num_threads(), cores()) if on_cpu else None
    return {
        **_identity(row),
        "bytes": cost.bytes,
        "flops": cost.flops,
        "floor_seconds": floor,
        "bound": bound,
        "seconds": medians,
        "percentiles_20_80": percentiles,
        "rounds": len(measured["fastnn"]),
        "timer": timer,
        "rotated": len(instances),
        "ratio": {name: value / medians["fastnn"] for name, value in medians.items() if name != "fastnn"},
        "fraction": {name: floor / value for name, value in medians.items()},
        "bytes_per_second": {name: cost.bytes / value for name, value in medians.items()},
        "flops_per_second": {name: cost.flops / value for name, value in medians.items()},
        "peak_bytes": peaks,
        "noisy": crowded or noise.unsteady(percentiles, medians, floor, cores() if on_cpu else None),
        "wrong": None,
    }


def _turning(copies: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """A function that calls one copy after the other, and the first one again after the last."""
    if len(copies) == 1:
        return copies[0]
    turn = itertools.cycle(copies)
    return lambda: next(turn)()


def _steps(row: Row, instances: Sequence[Instance]) -> dict[str, list[Callable[[], Any]]]:
    """For each peer what is timed, on each copy."""
    make = {
        "forward": _forward,
        "backward": _backward,
        "inference": _inference,
        "training_step": _training_step,
    }[row.direction]
    return {
        name: [make(row.layer, instance.layers[name], instance.inputs) for instance in instances]
        for name in instances[0].layers
    }


def _forward(layer: Layer, module: Any, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    return lambda: layer.call(module, inputs)


def _backward(layer: Layer, module: Any, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    outputs = layer.call(module, inputs)
    cotangents = tuple(torch.randn_like(out) for out in outputs)
    wanted = [t for t in (*inputs, *module.parameters()) if t.requires_grad]
    return lambda: torch.autograd.grad(outputs, wanted, cotangents, retain_graph=True)


def _inference(layer: Layer, module: Any, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    def step() -> Any:
        with torch.no_grad():
            return layer.call(module, inputs)

    module.eval()
    return step


def _training_step(layer: Layer, module: Any, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    module.train()
    parameters = list(module.parameters())
    loss = _loss(layer, module, inputs)
    return lambda: torch.autograd.grad(loss(), parameters)


def _loss(layer: Layer, module: Any, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    target = torch.zeros(len(inputs[0]), dtype=torch.int64, device=inputs[0].device)
    return lambda: nn.functional.cross_entropy(layer.call(module, inputs)[0], target)


def _for_memory(row: Row, instance: Instance, steps: dict[str, list[Callable]]) -> dict[str, Callable[[], Any]]:
    """What memory is measured of: what is timed, but of a training step the activations alone.

    A step whose gradients are dropped as soon as they are there, as if the optimiser had taken them, holds nothing
    else of size.
    """
    if row.direction != "training_step":
        return {name: copies[0] for name, copies in steps.items()}

    def training(module: Any) -> Callable[[], None]:
        loss = _loss(row.layer, module, instance.inputs)

        def step() -> None:
            def drop(parameter: Tensor) -> None:
                parameter.grad = None

            hooks = [parameter.register_post_accumulate_grad_hook(drop) for parameter in module.parameters()]
            try:
                loss().backward()
            finally:
                for hook in hooks:
                    hook.remove()

        return step

    return {name: training(module) for name, module in instance.layers.items()}
