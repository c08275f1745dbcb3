"""A sequence-to-sequence model learns to say what an HTML entity is: "eacute" is "latin small letter e with acute".

The pairs come with Python: the names of HTML 5 in `html.entities`, and of their characters in `unicodedata`. It reads
letters and writes words. Prints the share of held-out words that are right, given those before them, and some of what
it writes by itself; draws where it looked meanwhile.
"""

from __future__ import annotations

import html.entities
import unicodedata
from collections import Counter

import torch
from common import batches_of, draw_losses, parse, save, train
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from fastnn.models import SequenceToSequence

PADDING, BEGIN, END, RARE = range(4)
MARKS = ["<padding>", "<begin>", "<end>", "<rare>"]


def pairs() -> list[tuple[str, list[str]]]:
    """Entities of one character, and the words of its name."""
    found = {}
    for name, character in html.entities.html5.items():
        if name.endswith(";") and len(character) == 1 and unicodedata.name(character, ""):
            found[name[:-1]] = unicodedata.name(character).lower().replace("-", " ").split()
    return sorted(found.items())


def numbered(items: list[list[str]], vocabulary: list[str]) -> Tensor:
    """Numbers of the items' parts, with both marks, padded: [items, length]."""
    number = {part: index for index, part in enumerate(vocabulary)}
    rows = [torch.tensor([BEGIN, *(number.get(part, RARE) for part in item), END]) for item in items]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)


def main() -> None:
    """See the module."""
    arguments = parse(__doc__, steps=900)
    data = pairs()
    letters = [*MARKS, *sorted({letter for name, _ in data for letter in name})]
    words = [*MARKS, *sorted(w for w, n in Counter(w for _, ws in data for w in ws).items() if n > 1)]
    source = numbered([list(name) for name, _ in data], letters).to(arguments.device)
    target = numbered([ws for _, ws in data], words).to(arguments.device)
    generator = torch.Generator().manual_seed(arguments.seed)
    shuffled = torch.randperm(len(data), generator=generator)
    held_out, known = shuffled[: len(data) // 10], shuffled[len(data) // 10 :]
    model = SequenceToSequence(source_words=len(letters), target_words=len(words), hidden=128).to(arguments.device)

    def logits(model: torch.nn.Module, read: Tensor, written: Tensor) -> Tensor:
        return model(read.T, (read != PADDING).sum(1), written.T[:-1])

    def loss_of(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        wanted = batch[1].T[1:].flatten()
        return functional.cross_entropy(logits(model, *batch).flatten(0, 1), wanted, ignore_index=PADDING)

    losses = train(model, batches_of(64, generator, source[known], target[known]), loss_of, arguments.steps)
    with torch.no_grad():
        wanted = target[held_out].T[1:]
        right = logits(model, source[held_out], target[held_out]).argmax(-1) == wanted
        print(f"held-out words right, of {len(words)}: {right[wanted != PADDING].float().mean():.1%}")
        read = source[held_out[:6]].T
        lengths = (read != PADDING).sum(0)
        known_of_source, state = model.encode(read, lengths)
        word, written, looks = torch.full((1, 6), BEGIN, device=arguments.device), [], []
        for _ in range(target.size(1) - 1):
            scores, attention, state = model.decode(known_of_source, lengths, word, state)
            word = scores.argmax(-1)
            written.append(word[0].cpu())
            looks.append(attention[0].cpu())
    sentences = []
    for sample, number in enumerate(held_out[:6]):
        spoken = [words[w[sample]] for w in written]
        sentences.append(spoken[: spoken.index("<end>")] if "<end>" in spoken else spoken)
        print(f"{data[number][0]}: {' '.join(sentences[-1])}   ({' '.join(data[number][1])})")

    figure = Figure(figsize=(13, 4))
    axes = figure.subplots(1, 3)
    for sample in range(2):
        name = ["<begin>", *data[held_out[sample]][0], "<end>"]
        spoken = sentences[sample] or ["<end>"]
        grid = torch.stack(looks)[: len(spoken), sample, : len(name)]
        axes[sample].imshow(grid, cmap="gray")
        axes[sample].set_xticks(range(len(name)), name, rotation=90, fontsize=7)
        axes[sample].set_yticks(range(len(spoken)), spoken, fontsize=7)
        axes[sample].set_title("attention", fontsize=9)
    draw_losses(axes[2], losses)
    save(figure, arguments.out, "name_entities.png")


if __name__ == "__main__":
    main()
