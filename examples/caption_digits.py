"""A captioner learns to describe handwritten digits, such as "a bold seven leaning right".

The scans come with scikit-learn. Their captions name the digit and say what can be measured of the writing: how much
ink there is, and how far the strokes lean. Prints the share of held-out scans whose caption is right to the last word.
"""

from __future__ import annotations

import torch
from common import batches_of, draw_losses, parse, save, train
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from fastnn.models import Captioner

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INK = ("thin", "plain", "bold")
LEAN = ("leaning left", "upright", "leaning right")
WORDS = ["<begin>", "<end>", "a", *NAMES, *INK, "upright", "leaning", "left", "right"]
LENGTH = 6  # words after the first mark, the last one with it


def thirds(values: Tensor) -> Tensor:
    """0, 1 or 2: in which third of all a value is."""
    return torch.bucketize(values, torch.quantile(values, torch.tensor([1 / 3, 2 / 3], dtype=values.dtype)))


def describe(images: Tensor, digits: Tensor) -> Tensor:
    """Captions as numbers of words [N, 1 + LENGTH], filled up with end marks."""
    rows, columns = torch.meshgrid(*[torch.arange(8.0)] * 2, indexing="ij")
    total = images.sum((1, 2))
    y, x = (
        (rows - ((images * rows).sum((1, 2)) / total)[:, None, None]),
        (columns - ((images * columns).sum((1, 2)) / total)[:, None, None]),
    )
    # How far the columns move to the right from a row to the one above, in the second moments.
    slope = -(images * x * y).sum((1, 2)) / (images * y * y).sum((1, 2))
    captions = []
    for digit, ink, lean in zip(digits, thirds(total), thirds(slope), strict=True):
        words = f"<begin> a {INK[ink]} {NAMES[digit]} {LEAN[lean]} <end>".split()
        numbers = [WORDS.index(word) for word in words]
        captions.append(numbers + [WORDS.index("<end>")] * (1 + LENGTH - len(numbers)))
    return torch.tensor(captions)


def sentence(numbers: Tensor) -> str:
    """The words before the end mark."""
    words = [WORDS[number] for number in numbers]
    return " ".join(words[: words.index("<end>")] if "<end>" in words else words)


def main() -> None:
    """See the module."""
    arguments = parse(__doc__, steps=1500)
    scans = load_digits()
    images = torch.from_numpy(scans.images).float()
    captions = describe(images, torch.from_numpy(scans.target)).to(arguments.device)
    images = (images / 8 - 1).unsqueeze(1).to(arguments.device)
    known, held_out = train_test_split(torch.arange(len(images)), test_size=0.2, random_state=arguments.seed)
    model = Captioner(words=len(WORDS)).to(arguments.device)

    def loss_of(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen, words = batch[0], batch[1].T
        return functional.cross_entropy(model(seen, words[:-1]).flatten(0, 1), words[1:].flatten())

    generator = torch.Generator().manual_seed(arguments.seed)
    losses = train(model, batches_of(64, generator, images[known], captions[known]), loss_of, arguments.steps)
    written = model.caption(images[held_out], WORDS.index("<begin>"), LENGTH).T.cpu()
    found, wanted = ([sentence(caption) for caption in c] for c in (written, captions[held_out, 1:].cpu()))
    right = sum(a == b for a, b in zip(found, wanted, strict=True)) / len(found)
    names = sum(a.split()[2:3] == b.split()[2:3] for a, b in zip(found, wanted, strict=True)) / len(found)
    print(f"held-out captions right to the last word: {right:.1%}; digits named right: {names:.1%}")

    figure = Figure(figsize=(13, 5))
    pictures, curve = figure.subfigures(1, 2, width_ratios=(3, 1))
    for axes, number, caption, truth in zip(pictures.subplots(2, 5).flat, held_out, found, wanted, strict=False):
        axes.imshow(images[number, 0].cpu(), cmap="gray")
        axes.set_title(caption, fontsize=7, color="black" if caption == truth else "red")
        axes.axis("off")
    draw_losses(curve.subplots(), losses)
    save(figure, arguments.out, "caption_digits.png")


if __name__ == "__main__":
    main()
