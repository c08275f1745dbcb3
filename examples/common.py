"""What the examples share: their arguments, the training loop with its progress bar, and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.progress import track

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def parse(description: str, steps: int, **defaults: str) -> argparse.Namespace:
    """The arguments of an example.

    Args:
        description: the example's docstring.
        steps: of training, unless told otherwise.
        **defaults: further options and their default values.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps, help=f"training steps (default: {steps})")
    parser.add_argument("--seed", type=int, default=0, help="of data and weights (default: 0)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: cpu")
    parser.add_argument("--out", type=Path, default=Path("fastnn-examples"), help="folder for pictures")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", default=value, help=f"default: {value}")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error(f"argument --steps: must be at least 1, got {arguments.steps}")
    torch.manual_seed(arguments.seed)
    return arguments


def train(
    model: torch.nn.Module,
    batches: Iterator[Any],
    loss_of: Callable[[torch.nn.Module, Any], torch.Tensor],
    steps: int,
    rate: float = 3e-3,
) -> list[float]:
    """Trains with Adam (Kingma and Ba 2015) and gradients of norm 1 at most; the loss of each step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    losses = []
    model.train()
    for _ in track(range(steps), description=type(model).__name__):
        loss = loss_of(model, next(batches))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def batches_of(size: int, generator: torch.Generator, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches of tensors with the same first dimension, shuffled anew in every pass, without end."""
    while True:
        for chosen in torch.randperm(len(tensors[0]), generator=generator).split(size):
            if len(chosen) > 1:  # batch norm needs two
                yield tuple(tensor[chosen.to(tensor.device)] for tensor in tensors)


def draw_losses(axes: Axes, losses: list[float]) -> None:
    """The loss over the steps, logarithmic."""
    axes.semilogy(range(1, len(losses) + 1), losses, linewidth=0.8)
    axes.set(title="loss", xlabel="step")
    axes.grid(alpha=0.3)


def draw_tiles(axes: Axes, tiles: torch.Tensor, title: str, columns: int = 8) -> None:
    """Pictures [K, H, W] side by side, each in its own range of grays."""
    lines = []
    for row in tiles.detach().cpu().float().split(columns):
        low, high = row.amin((1, 2), keepdim=True), row.amax((1, 2), keepdim=True)
        shown = (row - low) / (high - low).clamp(min=1e-12)
        shown = torch.nn.functional.pad(shown, (1, 1, 1, 1), value=1.0)
        blank = shown.new_ones(columns - len(shown), *shown.shape[1:])
        lines.append(torch.cat([*shown, *blank], 1))
    axes.imshow(torch.cat(lines), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title)
    axes.axis("off")


def save(figure: Figure, out: Path, name: str) -> None:
    """Writes a picture and says where."""
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / name, dpi=120, bbox_inches="tight")
    print(f"picture: {out / name}")
