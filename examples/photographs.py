"""The large classifiers learn to tell two photographs apart, from crops of them: AlexNet, VGG-16, GoogLeNet, ResNets.

The photographs come with scikit-learn: a Chinese temple and a flower. Crops are turned over and differ in brightness;
those of the right-hand quarter are held out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from common import draw_losses, draw_tiles, parse, save, train
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional

from fastnn import models

SIDE, BATCH = 96, 8
NETWORKS = {
    "alexnet": partial(models.alexnet, classes=2, image=SIDE),
    "vgg16": partial(models.vgg16, classes=2, image=SIDE),
    "googlenet": partial(models.GoogLeNet, classes=2),
    "resnet18": partial(models.resnet18, classes=2),
    "resnet50": partial(models.resnet50, classes=2),
}
AUXILIARY = 0.3  # weight of GoogLeNet's auxiliary losses


def crops(photographs: list[Tensor], held_out: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """[BATCH, 3, SIDE, SIDE] and which photograph each is from."""
    images, labels = [], torch.arange(BATCH) % len(photographs)
    for label in labels:
        photograph = photographs[label]
        border = photograph.size(2) * 3 // 4
        begin, end = (border, photograph.size(2) - SIDE) if held_out else (0, border - SIDE)
        top = int(torch.randint(0, photograph.size(1) - SIDE, (), generator=generator))
        left = int(torch.randint(begin, end + 1, (), generator=generator))
        image = photograph[:, top : top + SIDE, left : left + SIDE]
        flip, bright = torch.rand(2, generator=generator)
        images.append((image.flip(2) if flip < 0.5 else image) * (0.7 + 0.6 * bright))
    return torch.stack(images), labels


def loss_of(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy, of all heads where there are several."""
    images, labels = batch
    outputs = model(images)
    first, *others = outputs if isinstance(outputs, tuple) else (outputs,)
    losses = [functional.cross_entropy(logits, labels) for logits in (first, *others)]
    return losses[0] + AUXILIARY * sum(losses[1:])


def main() -> None:
    """See the module."""
    arguments = parse(__doc__, steps=30, network="resnet18")
    if arguments.network not in NETWORKS:
        raise SystemExit(f"--network must be one of {', '.join(NETWORKS)}, got {arguments.network!r}")
    photographs = [torch.from_numpy(p.copy()).permute(2, 0, 1).float() / 128 - 1 for p in load_sample_images().images]
    generator = torch.Generator().manual_seed(arguments.seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            images, labels = crops(photographs, False, generator)
            yield images.to(arguments.device), labels.to(arguments.device)

    model = NETWORKS[arguments.network]().to(arguments.device)
    losses = train(model, batches(), loss_of, arguments.steps, rate=3e-4)
    with torch.no_grad():
        unseen = [crops(photographs, True, generator) for _ in range(4)]
        right = [(model(x.to(arguments.device)).argmax(1).cpu() == labels).float().mean() for x, labels in unseen]
    print(f"{arguments.network}: held-out crops named right: {torch.stack(right).mean():.1%}")

    figure = Figure(figsize=(12, 4))
    axes = figure.subplots(1, 3)
    axes[0].imshow(((unseen[0][0][0] + 1) / 2).clamp(0, 1).permute(1, 2, 0))
    axes[0].set_title("a held-out crop")
    axes[0].axis("off")
    filters = next(p for p in model.parameters() if p.dim() == 4)
    draw_tiles(axes[1], filters.mean(1), "filters of the first layer,\nmean of their colours")
    draw_losses(axes[2], losses)
    save(figure, arguments.out, f"photographs_{arguments.network}.png")


if __name__ == "__main__":
    main()
