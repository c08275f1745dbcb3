"""A deconvolution network learns to segment discs, squares and triangles in noise.

Its encoder saves where each maximum was, its decoder puts values back there (unpooling) and fills the gaps by
transposed convolutions. Prints the share of pixels that are right and the mean intersection over union of the classes,
on images that it has not seen; draws some of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from common import draw_losses, parse, save, train
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from fastnn.models import DeconvNet

CLASSES = ("background", "disc", "square", "triangle")
SIDE = 48


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [count, 1, SIDE, SIDE] with one shape of each kind, and the class of each pixel [count, SIDE, SIDE]."""
    rows, columns = torch.meshgrid(*[torch.arange(float(SIDE))] * 2, indexing="ij")
    truth = torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    images = torch.zeros(count, SIDE, SIDE)
    # Every kind has the same grays, so that a pixel's own value tells nothing.
    for kind in range(1, len(CLASSES)):
        place = torch.rand(count, 2, 1, 1, generator=generator) * (SIDE - 16) + 8
        size = torch.rand(count, 1, 1, generator=generator) * 3 + 5
        gray = torch.rand(count, 1, 1, generator=generator) * 0.5 + 0.5
        y, x = rows - place[:, 0], columns - place[:, 1]
        inside = {
            1: y**2 + x**2 <= size**2,
            2: torch.maximum(y.abs(), x.abs()) <= 0.9 * size,
            3: (y <= 0.8 * size) & (x.abs() <= 0.6 * (y + size)),
        }[kind]
        truth[inside] = kind
        images = torch.where(inside, gray, images)
    return (images + 0.1 * torch.randn(images.shape, generator=generator)).unsqueeze(1), truth


def main() -> None:
    """See the module."""
    arguments = parse(__doc__, steps=200)
    generator = torch.Generator().manual_seed(arguments.seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            images, truth = draw(16, generator)
            yield images.to(arguments.device), truth.to(arguments.device)

    model = DeconvNet(classes=len(CLASSES)).to(arguments.device)
    losses = train(
        model,
        batches(),
        lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]),
        arguments.steps,
        rate=1e-2,
    )
    images, truth = draw(64, generator)
    with torch.no_grad():
        found = model(images.to(arguments.device)).argmax(1).cpu()
    union = [((found == k) | (truth == k)).sum() for k in range(len(CLASSES))]
    overlap = [((found == k) & (truth == k)).sum() / u for k, u in enumerate(union)]
    print(f"pixels that are right: {(found == truth).float().mean():.1%}")
    print(f"mean intersection over union: {torch.stack(overlap).mean():.1%}")

    figure = Figure(figsize=(12, 6))
    pictures, curve = figure.subfigures(1, 2, width_ratios=(3, 1))
    axes = pictures.subplots(3, 6)
    for column in range(6):
        axes[0, column].imshow(images[column, 0], cmap="gray")
        for row, classes in ((1, truth), (2, found)):
            axes[row, column].imshow(classes[column], vmin=0, vmax=len(CLASSES) - 1, cmap="viridis")
    for row, title in enumerate(("image", "truth", "network")):
        axes[row, 0].set_ylabel(title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    draw_losses(curve.subplots(), losses)
    save(figure, arguments.out, "segment_shapes.png")


if __name__ == "__main__":
    main()
