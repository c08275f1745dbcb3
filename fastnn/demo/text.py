"""A character model: an LSTM, or another recurrent layer, that learns to write like the text it reads.

The text is Python's standard library by default. The recurrence is unrolled over chunks; from one chunk to the next
the state is carried on and the gradient cut (truncated backpropagation through time, Williams and Peng 1990), with the
gradient's norm clipped.
"""

from __future__ import annotations

import collections
import math
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from fastnn.demo import CELLS, DemoError, training
from fastnn.demo.training import CellComparison, Outcome, Side

EMBEDDING, HIDDEN = 64, 256
# Streams read side by side, and characters in a chunk.
BATCH, CHUNK = 32, 64
EPOCHS = 2
SAMPLES, SAMPLE_CHARACTERS, TEMPERATURE = 4, 480, 0.7
LEARNING_RATE, MAX_NORM = 4e-3, 1.0
HELD_OUT = 0.05
CORPUS_CHARACTERS = 400_000
# Enough for a step between any two samples, even in a single epoch.
MINIMUM_CHARACTERS = SAMPLES * BATCH * (CHUNK + 1)
MAXIMUM_VOCABULARY = 256
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
# Rounding alone gives some 5e-7 in the steps that are checked, with the cell in float64 too.
DRIFT_BOUND = 1e-4
INITIAL_LOSS_TOLERANCE = 0.1
OVERFIT_CHARACTERS, OVERFIT_STEPS, OVERFIT_LOSS = 32, 60, 0.1


class Corpus(NamedTuple):
    """A text and a line about where it comes from."""

    text: str
    source: str


class Vocabulary:
    """The characters of a text, numbered by their frequency; number 0 stands for all others.

    Args:
        text: the text whose ``MAXIMUM_VOCABULARY - 1`` most frequent characters get a number of their own.
    """

    def __init__(self, text: str) -> None:
        # Ties are broken by the character, so the numbers do not depend on the order of reading.
        ranked = sorted(collections.Counter(text).items(), key=lambda item: (-item[1], item[0]))
        known = [character for character, _ in ranked if character != UNKNOWN]
        self.characters = [UNKNOWN, *known[: MAXIMUM_VOCABULARY - 1]]
        self._number = {character: number for number, character in enumerate(self.characters)}

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> torch.Tensor:
        """Returns the numbers of the characters, [len(text)] int64."""
        return torch.tensor([self._number.get(character, 0) for character in text], dtype=torch.int64)

    def decode(self, numbers: Sequence[int]) -> str:
        """Returns the text of these numbers."""
        return "".join(self.characters[number] for number in numbers)


class Cell(NamedTuple):
    """A recurrent layer: its class's name in a namespace, and its options, which torch's class has not."""

    layer: str
    options: Mapping[str, Any] = {}
    embeds_all: bool = False
    """Whether its inputs must be as many as its units."""

    @property
    def is_in_torch(self) -> bool:
        """Whether torch has such a layer."""
        return not self.options and hasattr(torch.nn, self.layer)


_CELLS = {
    "lstm": Cell("LSTM"),
    "gru": Cell("GRU"),
    "rnn": Cell("RNN"),
    "peephole": Cell("LSTM", {"peephole": True}),
    "coupled": Cell("LSTM", {"coupled": True}),
    "mut1": Cell("MUT1", embeds_all=True),
    "mut2": Cell("MUT2", embeds_all=True),
    "mut3": Cell("MUT3"),
}
assert set(_CELLS) == set(CELLS)


class Chunk(NamedTuple):
    """Characters read and the ones that follow them, both [T, B] int64."""

    inputs: torch.Tensor
    targets: torch.Tensor


def build(nn: Any, vocabulary_size: int, cell: str = "lstm") -> torch.nn.Module:
    """Builds the network from a namespace of layers.

    Args:
        nn: ``torch.nn`` or anything that stands in for it, such as ``fastnn.nn``.
        vocabulary_size: V, the number of different characters.
        cell: which recurrent layer, one of ``fastnn.demo.CELLS``.

    Returns:
        A module from numbers [T, B] and a state, as the layer takes it, or None for zeros, to logits [T, B, V] and
        the state after the last character.
    """
    kind = _CELLS[cell]

    class CharacterModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inputs = HIDDEN if kind.embeds_all else EMBEDDING
            self.embedding = nn.Embedding(vocabulary_size, inputs)
            self.recurrent = getattr(nn, kind.layer)(inputs, HIDDEN, **kind.options)
            self.head = nn.Linear(HIDDEN, vocabulary_size)
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

        def forward(self, numbers: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
            hidden, state = self.recurrent(self.embedding(numbers), state)
            return self.head(hidden), state

    return CharacterModel()


def load_corpus(file: str | None = None) -> Corpus:
    """Reads the text to learn.

    Args:
        file: a UTF-8 file; None for sources of Python's standard library on this machine: the public top-level
            modules that are plain ASCII, by name, until ``CORPUS_CHARACTERS`` are together. That choice
            depends on nothing but the Python version.

    Raises:
        DemoError: the file cannot be read, is not UTF-8 or is too short to train on.
    """
    if file is None:
        corpus = _standard_library(Path(sysconfig.get_path("stdlib")))
    else:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except OSError as error:
            raise DemoError(f"--text {file}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise DemoError(f"--text {file}: not UTF-8 text (byte {error.start})") from None
        corpus = Corpus(text, file)
    if len(corpus.text) < MINIMUM_CHARACTERS:
        state = "is empty" if not corpus.text else f"has only {len(corpus.text)} characters"
        raise DemoError(f"{corpus.source} {state}; the text training needs at least {MINIMUM_CHARACTERS}")
    return corpus


def _standard_library(directory: Path) -> Corpus:
    parts: list[str] = []
    total = 0
    for path in sorted(directory.glob("[a-z]*.py")):
        try:
            source = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            continue
        parts.append(source)
        total += len(source)
        if total >= CORPUS_CHARACTERS:
            break
    return Corpus("".join(parts)[:CORPUS_CHARACTERS], f"{len(parts)} modules of {directory}")


def train(
    console: Console,
    side_names: Sequence[str],
    device: torch.device,
    seed: int,
    epochs: int | None,
    corpus: Corpus,
    cell: str = "lstm",
) -> Outcome:
    """Trains each side on the text, prints samples on the way and checks what came out.

    Args:
        console: where the lines, the samples and the progress bar go.
        side_names: ``("torch", "fastnn")``, or one of the two alone; of a cell that torch has not, fastnn alone is
            trained.
        device: where to train.
        seed: seed of the weights and the samples.
        epochs: passes over the text; None for ``EPOCHS``.
        corpus: the text; its last twentieth is held out.
        cell: which recurrent layer, one of ``fastnn.demo.CELLS``.

    Returns:
        The outcome, with everything that failed in ``failures``.
    """
    epochs = EPOCHS if epochs is None else epochs
    vocabulary, train_text, held_out = _split(corpus, device)
    steps_per_epoch = sum(1 for _ in chunks(train_text))
    if not _CELLS[cell].is_in_torch:
        side_names = [name for name in side_names if name == "fastnn"]
    outcome = Outcome(
        name="text",
        title=f"{cell}, {_title(corpus, vocabulary)}",
        sides=make_sides(side_names, len(vocabulary), device, seed, cell),
        steps_per_epoch=steps_per_epoch,
        expected_initial_loss=math.log(len(vocabulary)),
        drift_bound=DRIFT_BOUND,
    )
    console.print("[bold]text[/bold]: ", end="")
    console.print(outcome.title, markup=False)
    _check_habits(outcome, console, vocabulary, train_text, device, seed, cell)

    total = epochs * steps_per_epoch
    sample_at = {round(total * index / (SAMPLES - 1)) for index in range(1, SAMPLES)}
    outcome.pictures["samples"] = []
    _show_sample(outcome, console, vocabulary, 0, seed)
    with training.progress_bar(console) as progress:
        task = progress.add_task("text", total=total, loss="")
        done = 0
        for _ in range(epochs):
            for side in outcome.sides:
                side.state = None
            for chunk in chunks(train_text):
                training.step_all(outcome.sides, done, chunk, loss_of, MAX_NORM)
                done += 1
                progress.update(task, advance=1, loss=f"{outcome.sides[-1].losses[-1]:.3f}")
                if done in sample_at:
                    _show_sample(outcome, console, vocabulary, done, seed)
            for side in outcome.sides:
                _record_held_out(side, held_out)
    training.check_drift(outcome)
    first_chunk = next(chunks(train_text))
    outcome.layers = training.time_layers(outcome.sides, lambda model: model(first_chunk.inputs))
    return outcome


def compare_cells(
    console: Console, device: torch.device, seed: int, epochs: int | None, corpus: Corpus
) -> CellComparison:
    """Trains one network after another on the same text, each with another of fastnn's recurrent layers.

    Args:
        console: where the progress bar goes.
        device: where to train.
        seed: seed of the weights.
        epochs: passes over the text of each; None for ``EPOCHS``.
        corpus: the text; its last twentieth is held out.

    Returns:
        What each learnt; a cell that learnt nothing is in ``failures``.
    """
    epochs = EPOCHS if epochs is None else epochs
    vocabulary, train_text, held_out = _split(corpus, device)
    steps_per_epoch = sum(1 for _ in chunks(train_text))
    comparison = CellComparison(_title(corpus, vocabulary), math.log(len(vocabulary)))
    console.print("[bold]cells[/bold]: ", end="")
    console.print(comparison.title, markup=False)
    with training.progress_bar(console) as progress:
        for cell in CELLS:
            (side,) = make_sides(["fastnn"], len(vocabulary), device, seed, cell)
            task = progress.add_task(cell, total=epochs * steps_per_epoch, loss="")
            for _ in range(epochs):
                side.state = None
                for chunk in chunks(train_text):
                    training.step(side, chunk, loss_of, MAX_NORM)
                    progress.update(task, advance=1, loss=f"{side.losses[-1]:.3f}")
                _record_held_out(side, held_out)
            comparison.sides[cell] = side
            if not side.final_loss < side.losses[0]:
                comparison.failures.append(f"{cell}: the loss went from {side.losses[0]:.3f} to {side.final_loss:.3f}")
    return comparison


def _title(corpus: Corpus, vocabulary: Vocabulary) -> str:
    return f"{len(corpus.text):,} characters, {len(vocabulary)} different, of {corpus.source}"


def _split(corpus: Corpus, device: torch.device) -> tuple[Vocabulary, torch.Tensor, torch.Tensor]:
    """The vocabulary, and the numbers of what is trained on and of what is held out."""
    cut = len(corpus.text) - max(2 * BATCH, int(len(corpus.text) * HELD_OUT))
    vocabulary = Vocabulary(corpus.text[:cut])
    return vocabulary, *(vocabulary.encode(part).to(device) for part in (corpus.text[:cut], corpus.text[cut:]))


def _record_held_out(side: Side, held_out: torch.Tensor) -> None:
    loss, accuracy = evaluate(side.model, held_out)
    side.curves.setdefault("held-out bits per character", []).append(loss / math.log(2))
    side.curves.setdefault("held-out accuracy", []).append(accuracy)


def make_sides(
    names: Sequence[str], vocabulary_size: int, device: torch.device, seed: int, cell: str = "lstm"
) -> list[Side]:
    """Builds the sides with the optimizer of this training."""
    return training.make_sides(
        names,
        lambda nn: build(nn, vocabulary_size, cell),
        lambda parameters: torch.optim.Adam(parameters, lr=LEARNING_RATE),
        device,
        seed,
    )


def chunks(text: torch.Tensor, batch: int = BATCH, chunk: int = CHUNK) -> Iterator[Chunk]:
    """Cuts a text into streams that are read side by side, chunk after chunk.

    Args:
        text: numbers [N] int64, N > batch.
        batch: B, the number of streams, each of N // B characters.
        chunk: T, the greatest length of a chunk; only the last one of a text is shorter.

    Yields:
        Chunks [T, B] in which each stream goes on where it stopped in the chunk before.
    """
    length = len(text) // batch
    streams = text[: length * batch].view(batch, length).t().contiguous()
    for start in range(0, length - 1, chunk):
        stop = min(start + chunk, length - 1)
        yield Chunk(streams[start:stop], streams[start + 1 : stop + 1])


def loss_of(side: Side, chunk: Chunk) -> torch.Tensor:
    """Mean cross-entropy per character of the chunk, in nats; the side keeps the state for the next chunk."""
    logits, state = side.model(chunk.inputs, side.state)
    side.state = state.detach() if isinstance(state, torch.Tensor) else tuple(part.detach() for part in state)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), chunk.targets.flatten())


@torch.no_grad()
def evaluate(model: torch.nn.Module, text: torch.Tensor) -> tuple[float, float]:
    """Returns the mean loss in nats and the share of characters that the model foretells rightly."""
    model.eval()
    state, loss, right, count = None, 0.0, 0, 0
    for chunk in chunks(text):
        logits, state = model(chunk.inputs, state)
        targets = chunk.targets.flatten()
        loss += torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum").item()
        right += (logits.flatten(0, 1).argmax(1) == targets).sum().item()
        count += targets.numel()
    return loss / count, right / count


@torch.no_grad()
def sample(
    model: torch.nn.Module, vocabulary: Vocabulary, characters: int, seed: int, temperature: float = TEMPERATURE
) -> str:
    """Lets the model write.

    Args:
        model: what :func:`build` made.
        vocabulary: the characters of its numbers.
        characters: how many to write.
        seed: seed of the drawing; the same model and seed write the same text.
        temperature: divides the logits; below 1 the likely characters become likelier.

    Returns:
        The text, which begins after an invented line end (or the commonest character of a text without any).
    """
    model.eval()
    device = next(model.parameters()).device
    draw = torch.Generator().manual_seed(seed)
    start = "\n" if "\n" in vocabulary.characters else vocabulary.characters[1]
    number, state, written = int(vocabulary.encode(start)), None, []
    for _ in range(characters):
        logits, state = model(torch.tensor([[number]], device=device), state)
        logits = logits.flatten().cpu() / temperature
        logits[0] = -math.inf  # The unknown character has no form to write.
        number = int(torch.multinomial(logits.softmax(0), 1, generator=draw))
        written.append(number)
    return vocabulary.decode(written)


def printable(text: str) -> str:
    """Replaces what would upset a terminal or a picture: control characters other than line ends."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "\N{MIDDLE DOT}" for c in text)


def _show_sample(outcome: Outcome, console: Console, vocabulary: Vocabulary, steps: int, seed: int) -> None:
    written = printable(sample(outcome.sides[-1].model, vocabulary, SAMPLE_CHARACTERS, seed))
    outcome.pictures["samples"].append((steps, written))
    console.print(Panel(Text(written), title=f"written after {steps} steps", title_align="left"))


def _check_habits(
    outcome: Outcome,
    console: Console,
    vocabulary: Vocabulary,
    data: torch.Tensor,
    device: torch.device,
    seed: int,
    cell: str,
) -> None:
    """Checks the loss before any training, and that a line can be learnt by heart."""
    scratch = make_sides(["fastnn"], len(vocabulary), device, seed, cell)[0]
    with torch.no_grad():
        initial = loss_of(scratch, next(chunks(data))).item()
    training.check(
        outcome,
        console,
        abs(initial - outcome.expected_initial_loss) <= INITIAL_LOSS_TOLERANCE,
        f"initial loss {initial:.3f}, expected ln {len(vocabulary)} = {outcome.expected_initial_loss:.3f}",
    )
    line = next(chunks(data[: OVERFIT_CHARACTERS + 1], batch=1))
    last = training.overfit(scratch, line, loss_of, OVERFIT_STEPS, MAX_NORM)
    training.check(
        outcome,
        console,
        last <= OVERFIT_LOSS,
        f"{OVERFIT_CHARACTERS} characters learnt by heart: loss {last:.4f} after {OVERFIT_STEPS} steps"
        f" (at most {OVERFIT_LOSS})",
    )
