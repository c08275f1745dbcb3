"""Handwritten digits: a small convolutional network on 1,797 real scans of 8 by 8 pixels.

The scans come with scikit-learn (E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI
Machine Learning Repository, 1998), so nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from rich.console import Console

from fastnn.demo import training
from fastnn.demo.training import Outcome, Side
from fastnn.models import digits

CLASSES = 10
BATCH = 64
EPOCHS = 12
HELD_OUT = 0.2
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.03, 0.9, 5e-3
# The rate rises over two epochs. At the full rate the first steps are unstable enough to turn rounding
# of 1e-7 into a loss difference of 4e-2 within the epoch that is checked, even for torch against itself.
WARM_UP_STEPS = 46
REQUIRED_ACCURACY = 0.97
# fastnn stays within 4e-4 of torch, but torch with oneDNN and torch without it part by up to 1e-3: a gradient
# jumps where rounding moves a maximum to the next pixel or a value across zero.
DRIFT_BOUND = 1e-2
# The head starts near zero, so a wrong scale anywhere shows in the first loss at once.
INITIAL_LOSS_TOLERANCE = 0.1
OVERFIT_IMAGES, OVERFIT_STEPS, OVERFIT_LOSS = 16, 25, 0.05


class Digits(NamedTuple):
    """A split of the scans: images [N, 1, 8, 8] float32 in [-1, 1] and labels [N] int64."""

    images: torch.Tensor
    labels: torch.Tensor


def build(nn: Any) -> torch.nn.Module:
    """Builds the network from a namespace of layers.

    Args:
        nn: ``torch.nn`` or anything that stands in for it, such as ``fastnn.nn``.

    Returns:
        A module from images [N, 1, 8, 8] to logits [N, 10].
    """
    model = digits(nn)
    # The scale of weights before a batch normalisation is free; from small ones, what is learnt soon outweighs
    # the random beginning, and the filters can be looked at.
    nn.init.normal_(model.conv1.weight, std=0.05)
    nn.init.normal_(model.head.weight, std=0.003)
    nn.init.zeros_(model.head.bias)
    return model


def load_data(seed: int) -> tuple[Digits, Digits]:
    """Returns the training and the held-out scans, every digit in the same proportion in both."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    split = train_test_split(scans.images, scans.target, test_size=HELD_OUT, stratify=scans.target, random_state=seed)
    train_images, held_out_images, train_labels, held_out_labels = map(torch.from_numpy, split)
    # Pixels count 0 to 16.
    return (
        Digits(train_images.float().unsqueeze(1) / 8 - 1, train_labels.long()),
        Digits(held_out_images.float().unsqueeze(1) / 8 - 1, held_out_labels.long()),
    )


def train(console: Console, side_names: Sequence[str], device: torch.device, seed: int, epochs: int | None) -> Outcome:
    """Trains each side on the digits and checks what came out.

    Args:
        console: where the lines and the progress bar go.
        side_names: ``("torch", "fastnn")``, or one of the two alone.
        device: where to train.
        seed: seed of the split, the weights and the order of the batches.
        epochs: passes over the training scans; None for ``EPOCHS``.

    Returns:
        The outcome, with everything that failed in ``failures``.
    """
    epochs = EPOCHS if epochs is None else epochs
    train_set, held_out = (Digits(*(part.to(device) for part in split)) for split in load_data(seed))
    steps_per_epoch = math.ceil(len(train_set.labels) / BATCH)
    outcome = Outcome(
        name="images",
        title=f"{len(train_set.labels)} handwritten digits, {len(held_out.labels)} held out",
        sides=make_sides(side_names, device, seed),
        steps_per_epoch=steps_per_epoch,
        expected_initial_loss=math.log(CLASSES),
        drift_bound=DRIFT_BOUND,
    )
    console.print(f"[bold]images[/bold]: {outcome.title}")
    _check_habits(outcome, console, train_set, device, seed)

    outcome.pictures["first filters"] = outcome.sides[-1].model.conv1.weight.detach().cpu().clone()
    order = torch.Generator().manual_seed(seed)
    with training.progress_bar(console) as progress:
        task = progress.add_task("images", total=epochs * steps_per_epoch, loss="")
        for epoch in range(epochs):
            shuffled = torch.randperm(len(train_set.labels), generator=order).to(device)
            for index, chosen in enumerate(shuffled.split(BATCH)):
                batch = Digits(train_set.images[chosen], train_set.labels[chosen])
                warm_up(outcome.sides, epoch * steps_per_epoch + index)
                training.step_all(outcome.sides, index, batch, loss_of)
                progress.update(task, advance=1, loss=f"{outcome.sides[-1].losses[-1]:.3f}")
            for side in outcome.sides:
                side.curves.setdefault("train accuracy", []).append(accuracy(side.model, train_set))
                side.curves.setdefault("held-out accuracy", []).append(accuracy(side.model, held_out))
    training.check_drift(outcome)
    for side in outcome.sides:
        reached = side.curves["held-out accuracy"][-1]
        if reached < REQUIRED_ACCURACY:
            outcome.failures.append(
                f"held-out accuracy with {side.name}'s layers is {reached:.1%} after {epochs} epoch(s),"
                f" below {REQUIRED_ACCURACY:.0%}"
            )
    outcome.layers = training.time_layers(outcome.sides, lambda model: model(train_set.images[:BATCH]))
    outcome.pictures.update(_pictures(outcome.sides[-1].model, held_out))
    return outcome


def make_sides(names: Sequence[str], device: torch.device, seed: int) -> list[Side]:
    """Builds the sides with the optimizer of this training."""
    return training.make_sides(
        names,
        build,
        lambda parameters: torch.optim.SGD(parameters, LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY),
        device,
        seed,
    )


def warm_up(sides: Sequence[Side], steps_done: int) -> None:
    """Sets the learning rate of the next step."""
    for side in sides:
        for group in side.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (steps_done + 1) / WARM_UP_STEPS)


def loss_of(side: Side, batch: Digits) -> torch.Tensor:
    """Mean cross-entropy of the batch, in nats."""
    return torch.nn.functional.cross_entropy(side.model(batch.images), batch.labels)


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: Digits) -> float:
    """Share of the scans that the model, in eval mode, names rightly."""
    model.eval()
    return (model(data.images).argmax(1) == data.labels).float().mean().item()


def _check_habits(outcome: Outcome, console: Console, data: Digits, device: torch.device, seed: int) -> None:
    """Checks the loss before any training, and that a few scans can be learnt by heart."""
    scratch = make_sides(["fastnn"], device, seed)[0]
    with torch.no_grad():
        initial = loss_of(scratch, Digits(data.images[:BATCH], data.labels[:BATCH])).item()
    training.check(
        outcome,
        console,
        abs(initial - outcome.expected_initial_loss) <= INITIAL_LOSS_TOLERANCE,
        f"initial loss {initial:.3f}, expected ln 10 = {outcome.expected_initial_loss:.3f}",
    )
    few = Digits(data.images[:OVERFIT_IMAGES], data.labels[:OVERFIT_IMAGES])
    last = training.overfit(scratch, few, loss_of, OVERFIT_STEPS)
    training.check(
        outcome,
        console,
        last <= OVERFIT_LOSS,
        f"{OVERFIT_IMAGES} scans learnt by heart: loss {last:.4f} after {OVERFIT_STEPS} steps (at most {OVERFIT_LOSS})",
    )


@torch.no_grad()
def _pictures(model: torch.nn.Module, held_out: Digits) -> dict[str, Any]:
    """Returns the learnt filters of the first layer and the feature maps of one held-out scan."""
    model.eval()
    # A two has strokes in every direction, which makes the maps easy to read.
    sample = held_out.images[held_out.labels == 2][:1]
    maps = {}
    activations = sample
    for name, layer in model.named_children():
        activations = layer(activations)
        if name in ("relu1", "relu2", "relu3"):
            strongest_first = activations[0].sum((1, 2)).argsort(descending=True)
            maps[name] = activations[0][strongest_first].cpu()
    return {
        "filters": model.conv1.weight.detach().cpu().clone(),
        "sample": sample[0, 0].cpu(),
        "sample probabilities": activations.softmax(1)[0].cpu(),
        "feature maps": maps,
    }
