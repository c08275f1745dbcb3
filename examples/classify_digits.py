"""LeNet-5 learns handwritten digits: the 1,797 scans that come with scikit-learn, enlarged to 32 by 32 pixels.

Prints the accuracy on scans that were held out; draws the filters that were learnt, what they answer to one scan, and
the loss.
"""

from __future__ import annotations

import torch
from common import batches_of, draw_losses, draw_tiles, parse, save, train
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional

from fastnn.models import lenet5


def main() -> None:
    """See the module."""
    arguments = parse(__doc__, steps=400)
    scans = load_digits()
    images = torch.from_numpy(scans.images).float()[:, None] / 8 - 1
    images = functional.interpolate(images, size=32, mode="bilinear").to(arguments.device)
    labels = torch.from_numpy(scans.target).long().to(arguments.device)
    known, held_out = train_test_split(
        torch.arange(len(labels)), test_size=0.2, stratify=scans.target, random_state=arguments.seed
    )
    model = lenet5().to(arguments.device)
    generator = torch.Generator().manual_seed(arguments.seed)
    losses = train(
        model,
        batches_of(64, generator, images[known], labels[known]),
        lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]),
        arguments.steps,
    )
    with torch.no_grad():
        right = (model(images[held_out]).argmax(1) == labels[held_out]).float().mean().item()
        sample = images[held_out[:1]]
        maps = [model[:2](sample)[0], model[:5](sample)[0]]
    print(f"held-out accuracy: {right:.1%}")

    figure = Figure(figsize=(11, 7))
    axes = figure.subplots(2, 2)
    draw_tiles(axes[0, 0], model[0].weight[:, 0], "filters of the first layer", columns=6)
    draw_losses(axes[0, 1], losses)
    draw_tiles(axes[1, 0], torch.cat([sample[0, :, 2:-2, 2:-2], maps[0]]), "a scan and what they answer", columns=7)
    draw_tiles(axes[1, 1], maps[1], "feature maps of the second layer")
    save(figure, arguments.out, "classify_digits.png")


if __name__ == "__main__":
    main()
