"""What both trainings share: two sides stepped in turn, their checks, and the time of each layer."""

from __future__ import annotations

import copy
import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fastnn.bench.timing import time_in_turn

# Types by torch's names: fastnn's layers are subclasses of them, so one list finds both sides' layers.
TIMED_LAYERS = (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.MaxPool2d, torch.nn.RNNBase)

# Rounds about as short as a scheduler's time slice, and so many that some escape other programs on both sides;
# nine layers of two sides are done in three seconds.
ROUNDS, SECONDS_PER_ROUND = 21, 0.006

# Training amplifies rounding: the text model's difference stays at some 5e-7 for a hundred steps and then grows
# tenfold every fifty, so a bound means something for the first steps of a long epoch alone.
DRIFT_STEPS = 100

NAMESPACES = {"torch": "torch.nn", "fastnn": "fastnn.nn"}


@dataclass
class Side:
    """One of the two trainings that are compared.

    Attributes:
        name: ``"torch"`` or ``"fastnn"``: whose layers the model uses.
        model: the network, on its device.
        optimizer: torch's optimizer of the model's parameters; the same kind on both sides.
        state: what a step leaves for the next one (the recurrent state of the text model).
        losses: the loss of every step, in nats.
        seconds: the time of every step: forward, loss, backward and optimizer.
        curves: values measured now and then, such as the held-out accuracy after every epoch.
    """

    name: str
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    state: Any = None
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)

    @property
    def final_loss(self) -> float:
        """Mean loss of the last tenth of the steps, in nats."""
        return statistics.fmean(self.losses[-max(1, len(self.losses) // 10) :])

    @property
    def median_step_seconds(self) -> float:
        """Time of the median step, which other programs' bursts and the first step's set-up leave alone."""
        return statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Returns what was measured, in types that JSON knows."""
        return {
            "losses": self.losses,
            "final_loss": self.final_loss,
            "seconds": sum(self.seconds),
            "median_step_seconds": self.median_step_seconds,
            **self.curves,
        }


@dataclass
class LayerTiming:
    """Forward and backward time of one layer at the shape the network gives it, in seconds per side."""

    name: str
    description: str
    seconds: dict[str, float]


@dataclass
class Outcome:
    """All that a training found out.

    Attributes:
        name: ``"images"`` or ``"text"``.
        title: one line about the data and the network.
        sides: what was trained, torch first where both were.
        steps_per_epoch: how many losses make one epoch.
        expected_initial_loss: loss of a network that has learnt nothing, in nats.
        drift_bound: greatest difference of the two losses allowed in the first ``drift_steps`` steps, in nats.
        layers: time per layer.
        checks: lines about the habits' checks, for the report.
        failures: what went wrong, a line each; empty if all is well.
        pictures: tensors and texts for the report alone.
    """

    name: str
    title: str
    sides: list[Side]
    steps_per_epoch: int
    expected_initial_loss: float
    drift_bound: float
    layers: list[LayerTiming] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    pictures: dict[str, Any] = field(default_factory=dict)

    @property
    def drift_steps(self) -> int:
        """For how many steps the losses must agree: the first epoch, or the beginning of a long one."""
        return min(self.steps_per_epoch, DRIFT_STEPS)

    def loss_difference(self, steps: int | None = None) -> float | None:
        """Largest difference of both sides' losses over the first ``steps`` steps; None for one side alone."""
        if len(self.sides) < 2:
            return None
        return largest_difference(self.sides[0].losses[:steps], self.sides[1].losses[:steps])

    def as_dict(self) -> dict[str, Any]:
        """Returns everything but the pictures, in types that JSON knows."""
        return {
            "title": self.title,
            "steps_per_epoch": self.steps_per_epoch,
            "expected_initial_loss": self.expected_initial_loss,
            "largest_loss_difference": self.loss_difference(),
            "drift": {
                "steps": self.drift_steps,
                "largest_loss_difference": self.loss_difference(self.drift_steps),
                "bound": self.drift_bound,
            },
            "checks": self.checks,
            "failures": self.failures,
            "sides": {side.name: side.as_dict() for side in self.sides},
            "layers": {
                layer.name: {"description": layer.description, "seconds": layer.seconds} for layer in self.layers
            },
        }


@dataclass
class CellComparison:
    """What networks learnt that differ in their recurrent layer alone.

    Attributes:
        title: one line about the data.
        expected_initial_loss: loss of a network that has learnt nothing, in nats.
        sides: the trained networks, by the name of their cell.
        failures: what went wrong, a line each; empty if all is well.
    """

    title: str
    expected_initial_loss: float
    sides: dict[str, Side] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Returns everything in types that JSON knows."""
        return {
            "title": self.title,
            "expected_initial_loss": self.expected_initial_loss,
            "failures": self.failures,
            "cells": {
                cell: {**side.as_dict(), "parameters": sum(p.numel() for p in side.model.parameters())}
                for cell, side in self.sides.items()
            },
        }


def make_sides(
    names: Sequence[str],
    build: Callable[[Any], torch.nn.Module],
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    device: torch.device,
    seed: int,
) -> list[Side]:
    """Builds the same model once for each side, with the same initial weights.

    Args:
        names: keys of ``NAMESPACES``.
        build: makes the model from the layers of the namespace it is given.
        make_optimizer: makes the optimizer from the model's parameters.
        device: where the models go.
        seed: the seed from which every side draws its weights.

    Returns:
        One side per name, in that order.

    Raises:
        RuntimeError: the same seed did not give the same parameters on all sides.
    """
    sides = []
    for name in names:
        # On the CPU and from a generator of its own: the same weights on every device, whatever ran before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(importlib.import_module(NAMESPACES[name]))
        model.to(device)
        sides.append(Side(name, model, make_optimizer(model.parameters())))
    first = sides[0].model.state_dict()
    for side in sides[1:]:
        other = side.model.state_dict()
        if list(first) != list(other) or not all(torch.equal(first[key], other[key]) for key in first):
            raise RuntimeError(f"{side.name} and {sides[0].name} draw different weights from the same seed")
    return sides


def step(side: Side, batch: Any, loss_of: Callable[[Side, Any], torch.Tensor], max_norm: float | None = None) -> None:
    """Does one timed optimisation step.

    Args:
        side: what is trained; its losses and seconds grow by one.
        batch: what ``loss_of`` understands.
        loss_of: gives the loss of the side's model on the batch, a scalar.
        max_norm: where given, gradients are scaled down to this norm: g <- min(1, max_norm / |g|) g (Pascanu et
            al. 2013).
    """
    device = next(side.model.parameters()).device
    side.model.train()
    synchronize(device)
    start = time.perf_counter()
    side.optimizer.zero_grad()
    loss = loss_of(side, batch)
    loss.backward()
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(side.model.parameters(), max_norm)
    side.optimizer.step()
    synchronize(device)
    side.seconds.append(time.perf_counter() - start)
    side.losses.append(loss.item())


def step_all(
    sides: Sequence[Side],
    index: int,
    batch: Any,
    loss_of: Callable[[Side, Any], torch.Tensor],
    max_norm: float | None = None,
) -> None:
    """Steps every side on the same batch.

    Who goes first changes with every step, since the second finds the batch in the cache.
    """
    for side in sides if index % 2 == 0 else reversed(sides):
        step(side, batch, loss_of, max_norm)


def overfit(
    side: Side,
    batch: Any,
    loss_of: Callable[[Side, Any], torch.Tensor],
    steps: int,
    max_norm: float | None = None,
) -> float:
    """Trains on one small batch only and returns the last loss.

    A network that cannot learn a handful of examples by heart has a mistake in it.
    """
    for _ in range(steps):
        side.state = None
        step(side, batch, loss_of, max_norm)
    return side.losses[-1]


def largest_difference(left: Sequence[float], right: Sequence[float]) -> float:
    """Largest absolute difference of two curves; NaN if any value is NaN."""
    differences = [abs(a - b) for a, b in zip(left, right, strict=True)]
    return max(differences, key=lambda value: (value != value, value))


def check_drift(outcome: Outcome) -> None:
    """Adds a failure to the outcome if the two sides' losses part within the first ``drift_steps`` steps.

    Both sides do the same arithmetic in another order, so their losses differ by rounding, which training
    amplifies step by step. The bound leaves room for that and for nothing more.
    """
    difference = outcome.loss_difference(outcome.drift_steps)
    if difference is not None and not difference <= outcome.drift_bound:
        outcome.failures.append(
            f"the losses of torch and fastnn differ by {difference:.2g} within the first"
            f" {outcome.drift_steps} steps (bound: {outcome.drift_bound:.0e})"
        )


def check(outcome: Outcome, console: Console, passed: bool, line: str) -> None:
    """Prints the line of one of the habits' checks and keeps it; a failed one also becomes a failure."""
    mark = "ok" if passed else "FAILED"
    console.print(f"  {mark}: {line}", markup=False)
    outcome.checks.append(f"{mark}: {line}")
    if not passed:
        outcome.failures.append(line)


def progress_bar(console: Console) -> Progress:
    """A progress bar with the steps, the loss and the time.

    Where the output is no terminal it is printed once, when it is full.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        expand=True,
    )


def time_layers(sides: Sequence[Side], run_once: Callable[[torch.nn.Module], Any]) -> list[LayerTiming]:
    """Times forward and backward of every layer that fastnn implements, at the shapes it meets in the network.

    The sides take turns, round after round, and the fastest round of each counts: other programs only ever make
    a round slower.

    Args:
        sides: the models; copies of them are timed, so that running statistics stay as they are.
        run_once: runs such a copy forward on a typical batch; it is in training mode.

    Returns:
        One entry per layer, in the network's order.
    """
    models = {side.name: copy.deepcopy(side.model).train() for side in sides}
    inputs = {name: _record_inputs(model, run_once) for name, model in models.items()}
    timings = []
    for name, layer in _timed_layers(sides[0].model):
        steps = {
            side.name: _layer_step(models[side.name].get_submodule(name), inputs[side.name][name]) for side in sides
        }
        rounds = time_in_turn(steps, SECONDS_PER_ROUND, ROUNDS)
        shape = "x".join(map(str, inputs[sides[0].name][name].shape))
        fastest = {side_name: min(values) for side_name, values in rounds.items()}
        timings.append(LayerTiming(name, f"{type(layer).__name__} {shape}", fastest))
    return timings


def synchronize(device: torch.device) -> None:
    """Waits until the device has done its work; the CPU has done it already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed_layers(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, TIMED_LAYERS)]


def _record_inputs(model: torch.nn.Module, run_once: Callable[[torch.nn.Module], Any]) -> dict[str, torch.Tensor]:
    """Returns each layer's input, detached, requiring gradients where it did in the network."""
    recorded: dict[str, torch.Tensor] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            recorded[name] = args[0].detach().requires_grad_(args[0].requires_grad)

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in _timed_layers(model)]
    run_once(model)
    for handle in handles:
        handle.remove()
    return recorded


def _layer_step(layer: torch.nn.Module, input: torch.Tensor) -> Callable[[], None]:
    """Returns a function that runs the layer forward and backward once; a recurrent one from a state of zeros."""
    wanted = [tensor for tensor in (input, *layer.parameters()) if tensor.requires_grad]

    def forward() -> torch.Tensor:
        output = layer(input)
        return output[0] if isinstance(output, tuple) else output

    grad_output = torch.ones_like(forward())

    def one_step() -> None:
        torch.autograd.grad(forward(), wanted, grad_output)

    return one_step
