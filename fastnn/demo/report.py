"""What is shown at the end: tables for the console and a picture per training."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from rich import box
from rich.table import Table

from fastnn.demo.training import CellComparison, Outcome

# torch's curve is drawn broad and pale, fastnn's thin and dark on top of it: both are seen where they agree.
STYLES: dict[str, dict[str, Any]] = {
    "torch": {"color": "#f0a35e", "linewidth": 4.0, "markersize": 7},
    "fastnn": {"color": "#1f4e9c", "linewidth": 1.3, "markersize": 3},
}
GREY = "0.4"
MAPS_SHOWN = 16
SMOOTHED_STEPS = 10
SAMPLE_LINES, SAMPLE_WIDTH = 16, 96


def table(outcomes: Sequence[Outcome], machine: dict[str, Any]) -> Table:
    """Returns the table of all trainings, to be printed by rich.

    Args:
        outcomes: the trainings' results.
        machine: what ``describe_machine`` returned.
    """
    names = [side.name for side in outcomes[0].sides]
    compared = len(names) > 1
    result = Table(title=f"fastnn demo on {_machine_line(machine)}", title_justify="left", box=box.ROUNDED)
    result.add_column("")
    for name in names:
        result.add_column(name, justify="right")
    if compared:
        result.add_column("fastnn vs torch", justify="right")
        result.caption = "Times as fastnn / torch: below 1, fastnn is the faster. Losses in nats."
        result.caption_justify = "left"
    for outcome in outcomes:
        _add_rows(result, outcome, compared)
    return result


def save_png(outcome: Outcome, machine: dict[str, Any], out: Path) -> Path:
    """Draws the report of a training.

    Args:
        outcome: the training's results.
        machine: what ``describe_machine`` returned.
        out: the directory to write to.

    Returns:
        The file written, ``images.png`` or ``text.png``.
    """
    figure = Figure(figsize=(14, 12), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(
        f"fastnn demo, {outcome.name}: {outcome.title}\n{_machine_line(machine)}", fontsize=12, parse_math=False
    )
    (_draw_images if outcome.name == "images" else _draw_text)(figure, outcome)
    path = out / f"{outcome.name}.png"
    with warnings.catch_warnings():
        # A text in a script that the font lacks is drawn with boxes; that is no reason to fill the console.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas.print_png(path, metadata={"Software": None})
    return path


def cells_table(comparison: CellComparison, machine: dict[str, Any]) -> Table:
    """Returns the table of a comparison of recurrent layers, to be printed by rich.

    Args:
        comparison: what each layer's network learnt.
        machine: what ``describe_machine`` returned.
    """
    result = Table(title=f"fastnn demo on {_machine_line(machine)}", title_justify="left", box=box.ROUNDED)
    result.add_column("cell")
    for title in ("parameters", "final bits per character", "held out", "held-out accuracy", "time of a step"):
        result.add_column(title, justify="right")
    measured = comparison.as_dict()["cells"]
    for cell, side in comparison.sides.items():
        result.add_row(
            cell,
            f"{measured[cell]['parameters']:,}",
            f"{side.final_loss / math.log(2):.3f}",
            f"{side.curves['held-out bits per character'][-1]:.3f}",
            f"{side.curves['held-out accuracy'][-1]:.2%}",
            _duration(side.median_step_seconds),
        )
    return result


def save_cells_png(comparison: CellComparison, machine: dict[str, Any], out: Path) -> Path:
    """Draws the losses of a comparison of recurrent layers side by side: over steps, and over time.

    Args:
        comparison: what each layer's network learnt.
        machine: what ``describe_machine`` returned.
        out: the directory to write to.

    Returns:
        The file written, ``cells.png``.
    """
    figure = Figure(figsize=(14, 6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(f"fastnn demo, cells: {comparison.title}\n{_machine_line(machine)}", fontsize=12, parse_math=False)
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for cell, side in comparison.sides.items():
        bits = [loss / math.log(2) for loss in _smoothed(side.losses)]
        label = f"{cell}, held out {side.curves['held-out bits per character'][-1]:.2f}"
        by_step.plot(range(len(bits)), bits, label=label, linewidth=1.3)
        by_time.plot(list(itertools.accumulate(side.seconds)), bits, label=cell, linewidth=1.3)
    for axes, unit in ((by_step, "step"), (by_time, "seconds of training")):
        axes.axhline(comparison.expected_initial_loss / math.log(2), color=GREY, linestyle="--", linewidth=1)
        axes.set(xlabel=unit, title=f"training loss by {unit.split()[0]}")
        axes.legend()
    by_step.set_ylabel(f"bits per character, mean of {SMOOTHED_STEPS} steps")
    path = out / "cells.png"
    canvas.print_png(path, metadata={"Software": None})
    return path


def _smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and those just before it."""
    windows = (values[max(0, end - SMOOTHED_STEPS) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]


def _add_rows(result: Table, outcome: Outcome, compared: bool) -> None:
    def add(label: str, values: Sequence[str], difference: str = "") -> None:
        result.add_row(label, *values, *([difference] if compared else []))

    def difference_of(values: Sequence[float], form: str) -> str:
        return format(values[-1] - values[0], form) if compared else ""

    def ratio_of(values: Sequence[float]) -> str:
        return f"{values[-1] / values[0]:.2f}" if compared else ""

    sides = outcome.sides
    result.add_section()
    result.add_row(f"[bold]{outcome.name}[/bold]")
    initial = [side.losses[0] for side in sides]
    add(
        f"initial loss (expect {outcome.expected_initial_loss:.3f})",
        [f"{value:.3f}" for value in initial],
        difference_of(initial, "+.1e"),
    )
    final = [side.final_loss for side in sides]
    add("final loss", [f"{value:.4f}" for value in final], difference_of(final, "+.1e"))
    if compared:
        early = outcome.loss_difference(outcome.drift_steps)
        add("largest loss difference", ["", ""], f"{outcome.loss_difference():.1e}")
        label = f"  in the first {outcome.drift_steps} steps"
        add(label, ["", ""], f"{early:.1e} (< {outcome.drift_bound:.0e})")
    accuracy = [side.curves["held-out accuracy"][-1] for side in sides]
    add(
        "held-out accuracy",
        [f"{value:.2%}" for value in accuracy],
        f"{100 * (accuracy[-1] - accuracy[0]):+.2f} points" if compared else "",
    )
    seconds = [sum(side.seconds) for side in sides]
    add("time of all steps", [f"{value:.1f} s" for value in seconds], ratio_of(seconds))
    steps = [side.median_step_seconds for side in sides]
    add("time of a step (median)", [_duration(value) for value in steps], ratio_of(steps))
    for layer in outcome.layers:
        times = [layer.seconds[side.name] for side in sides]
        add(f"{layer.name} {layer.description}", [_duration(value) for value in times], ratio_of(times))


def _draw_images(figure: Figure, outcome: Outcome) -> None:
    curves, pictures = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    loss, difference, accuracy, layers = curves.subplots(2, 2).flat
    epochs = [step / outcome.steps_per_epoch for step in range(len(outcome.sides[0].losses))]
    _draw_losses(loss, outcome, epochs, 1.0, "loss (nats)", "ln 10")
    loss.set_yscale("log")
    loss.set_xlabel("epoch")
    _draw_difference(difference, outcome, epochs)
    for side in outcome.sides:
        passed = range(1, len(side.curves["held-out accuracy"]) + 1)
        style = STYLES[side.name]
        accuracy.plot(passed, side.curves["held-out accuracy"], "o-", label=f"held out, {side.name}", **style)
        accuracy.plot(passed, side.curves["train accuracy"], "o:", label=f"train, {side.name}", **style)
    accuracy.set(title="accuracy after each epoch", xlabel="epoch")
    accuracy.yaxis.set_major_formatter("{x:.1%}")
    accuracy.legend()
    _draw_layers(layers, outcome)

    filters, maps = pictures.subfigures(1, 2, width_ratios=(1, 1.25))
    before, after = filters.subfigures(2, 1)
    _draw_tiles(before, outcome.pictures["first filters"][:, 0], 4, "first layer's filters: before training")
    _draw_tiles(after, outcome.pictures["filters"][:, 0], 4, "the same filters after training")
    sample, *rows = maps.subfigures(4, 1)
    _draw_sample(sample, outcome.pictures["sample"], outcome.pictures["sample probabilities"])
    for row, (name, tensor) in zip(rows, outcome.pictures["feature maps"].items(), strict=True):
        title = f"feature maps after {name} (the {MAPS_SHOWN} strongest of {len(tensor)})"
        _draw_tiles(row, tensor[:MAPS_SHOWN], 2, title, "magma")


def _draw_text(figure: Figure, outcome: Outcome) -> None:
    curves, samples = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    loss, difference, accuracy, layers = curves.subplots(2, 2).flat
    steps = range(len(outcome.sides[0].losses))
    _draw_losses(loss, outcome, steps, 1 / math.log(2), "bits per character", "log2 of the vocabulary")
    for side in outcome.sides:
        held_out = side.curves["held-out bits per character"]
        ends = [outcome.steps_per_epoch * (epoch + 1) for epoch in range(len(held_out))]
        loss.plot(ends, held_out, "D", label=f"held out, {side.name}", zorder=3, **STYLES[side.name])
        accuracy.plot(ends, side.curves["held-out accuracy"], "D-", label=side.name, **STYLES[side.name])
    loss.legend()
    loss.set_xlabel("step")
    _draw_difference(difference, outcome, steps)
    accuracy.set(title="held-out characters foretold rightly", xlabel="step", xlim=(0, None), ylim=(0, 1))
    accuracy.yaxis.set_major_formatter("{x:.0%}")
    accuracy.legend(loc="lower right")
    _draw_layers(layers, outcome)

    for axes, (done, written) in zip(samples.subplots(2, 2).flat, outcome.pictures["samples"], strict=True):
        axes.set_title(f"written after {done} steps", loc="left")
        axes.set(xticks=[], yticks=[])
        lines = [part for line in written.split("\n") for part in _broken(line)]
        axes.text(
            0.01,
            0.98,
            "\n".join(lines[:SAMPLE_LINES]),
            transform=axes.transAxes,
            family="monospace",
            fontsize=8,
            verticalalignment="top",
            parse_math=False,
            in_layout=False,
        )


def _draw_losses(
    axes: Axes, outcome: Outcome, positions: Sequence[float], scale: float, unit: str, expected: str
) -> None:
    for side in outcome.sides:
        axes.plot(positions, [loss * scale for loss in side.losses], label=side.name, **STYLES[side.name])
    axes.axhline(
        outcome.expected_initial_loss * scale,
        color=GREY,
        linestyle="--",
        linewidth=1,
        label=f"expected at first: {expected}",
    )
    axes.set(title="training loss, step by step", ylabel=unit)
    axes.legend()


def _draw_difference(axes: Axes, outcome: Outcome, positions: Sequence[float]) -> None:
    axes.set(title="|loss with fastnn - loss with torch|", ylabel="nats")
    if len(outcome.sides) < 2:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "trained with fastnn alone", transform=axes.transAxes, ha="center", color=GREY)
        return
    left, right = (side.losses for side in outcome.sides)
    # Equal losses have no logarithm: they are drawn at float32's resolution.
    axes.semilogy(
        positions,
        [max(abs(a - b), 1e-8) for a, b in zip(left, right, strict=True)],
        color="#1f4e9c",
        linewidth=1,
    )
    checked = positions[min(outcome.drift_steps, len(positions)) - 1]
    axes.plot([0, checked], [outcome.drift_bound] * 2, color="#c0392b", linewidth=2, label="bound that is checked")
    axes.set_xlabel("epoch" if outcome.name == "images" else "step")
    axes.legend()


def _draw_layers(axes: Axes, outcome: Outcome) -> None:
    height = 0.8 / len(outcome.sides)
    for index, side in enumerate(outcome.sides):
        places = [row + index * height for row in range(len(outcome.layers))]
        times = [layer.seconds[side.name] * 1e3 for layer in outcome.layers]
        axes.barh(places, times, height, label=side.name, color=STYLES[side.name]["color"])
    middle = 0.4 - height / 2
    labels = [f"{layer.name} {layer.description}" for layer in outcome.layers]
    axes.set_yticks([row + middle for row in range(len(labels))], labels, fontsize=8)
    longest = max(max(layer.seconds.values()) for layer in outcome.layers) * 1e3
    if len(outcome.sides) > 1:
        for row, layer in enumerate(outcome.layers):
            ratio = f"{layer.seconds['fastnn'] / layer.seconds['torch']:.2f}"
            place = max(layer.seconds.values()) * 1e3 + 0.01 * longest
            axes.text(place, row + middle, ratio, fontsize=8, verticalalignment="center")
        axes.set_title("forward and backward of each layer (number: fastnn / torch)")
    else:
        axes.set_title("forward and backward of each layer")
    axes.invert_yaxis()
    axes.set(xlabel="ms", xlim=(0, 1.3 * longest))
    axes.legend(loc="lower right")


def _draw_tiles(figure: SubFigure, tiles: torch.Tensor, rows: int, title: str, colours: str = "gray") -> None:
    """Draws tiles [count, height, width], each with its own scale, in a grid."""
    figure.suptitle(title, fontsize=10)
    for axes, tile in zip(figure.subplots(rows, math.ceil(len(tiles) / rows)).flat, tiles, strict=True):
        axes.imshow(tile.numpy(), cmap=colours)
        axes.set_axis_off()


def _draw_sample(figure: SubFigure, sample: torch.Tensor, probabilities: torch.Tensor) -> None:
    scan, bars = figure.subplots(1, 2, width_ratios=(1, 3))
    scan.imshow(sample.numpy(), cmap="gray_r")
    scan.set_axis_off()
    bars.bar(range(len(probabilities)), probabilities.tolist(), color="#1f4e9c")
    bars.set(ylim=(0, 1), xticks=range(len(probabilities)))
    bars.set_title("a held-out scan and the probability of each digit", fontsize=10)


def _broken(line: str) -> list[str]:
    """Breaks a line of a sample where it would run out of its frame; an empty line stays one line."""
    return [line[start : start + SAMPLE_WIDTH] for start in range(0, len(line) or 1, SAMPLE_WIDTH)]


def _machine_line(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    threads = f", {machine['threads']} threads" if machine["device"] == "cpu" else ""
    return f"{machine['device_name']} ({machine['device']}{threads}); {versions}"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.1f} s"
