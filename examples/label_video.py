"""A convolutional network and an LSTM label each frame of a video: where the blob in it is moving to.

A single frame does not tell. The blob turns now and then, and the picture is noisy. Prints the share of frames that are
labelled right, on videos that were not seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from common import draw_losses, parse, save, train
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from fastnn.models import FrameLabeller

DIRECTIONS = ("up", "right", "down", "left")
STEP = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
SIDE, FRAMES, TURN = 20, 12, 0.15
UNKNOWN = -100  # of the first frame; torch's losses leave it out


def film(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Videos [FRAMES, count, 1, SIDE, SIDE], and how the blob came to each frame [FRAMES, count]."""
    rows, columns = torch.meshgrid(*[torch.arange(float(SIDE))] * 2, indexing="ij")
    place = torch.rand(count, 2, generator=generator) * SIDE
    direction = torch.randint(0, 4, (count,), generator=generator)
    frames, labels = [], []
    for time in range(FRAMES):
        if time > 0:
            turns = torch.rand(count, generator=generator) < TURN
            direction = torch.where(turns, torch.randint(0, 4, (count,), generator=generator), direction)
            place = (place + 1.5 * STEP[direction]) % SIDE
        # The world is a torus.
        y, x = ((axis - place[:, i, None, None] + SIDE / 2) % SIDE - SIDE / 2 for i, axis in enumerate((rows, columns)))
        frames.append(torch.exp(-(y**2 + x**2) / 6) + 0.1 * torch.randn(count, SIDE, SIDE, generator=generator))
        labels.append(direction if time > 0 else torch.full_like(direction, UNKNOWN))
    return torch.stack(frames).unsqueeze(2), torch.stack(labels)


def main() -> None:
    """See the module."""
    arguments = parse(__doc__, steps=300)
    generator = torch.Generator().manual_seed(arguments.seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            video, labels = film(32, generator)
            yield video.to(arguments.device), labels.to(arguments.device)

    model = FrameLabeller(classes=len(DIRECTIONS)).to(arguments.device)
    losses = train(
        model,
        batches(),
        lambda model, batch: functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten()),
        arguments.steps,
    )
    video, labels = film(128, generator)
    with torch.no_grad():
        found = model(video.to(arguments.device)).argmax(-1).cpu()
    print(f"frames labelled right: {(found == labels)[1:].float().mean():.1%}")

    figure = Figure(figsize=(14, 5))
    pictures, curve = figure.subfigures(1, 2, width_ratios=(4, 1))
    axes = pictures.subplots(3, FRAMES)
    for row in range(3):
        for time in range(FRAMES):
            axes[row, time].imshow(video[time, row, 0], cmap="gray")
            right = found[time, row] == labels[time, row]
            title = DIRECTIONS[found[time, row]] if time > 0 else ""
            axes[row, time].set_title(title, fontsize=8, color="black" if right else "red")
            axes[row, time].axis("off")
    draw_losses(curve.subplots(), losses)
    save(figure, arguments.out, "label_video.png")


if __name__ == "__main__":
    main()
