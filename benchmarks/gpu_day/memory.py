"""Worker: out of memory in the middle of a training step, after which the process goes on.

A small network takes a step with less memory than it needs, and then with enough. The first must raise
``torch.OutOfMemoryError`` and nothing else, wherever in forward or backward it happens; the second must give, to the
bit, what a step gives that nothing went before; and what was allocated must be free again. On a GPU the allocator is
limited; elsewhere the error is raised in the place of an op.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastnn.nn
from fastnn.testing.case import generator_for

# Shares of the memory that a step needs beyond what lies there before it.
SHARES = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# At which of its ops a dry run's step fails.
PLACES = tuple(range(0, 21, 2))
# Images and their size. On a GPU megabytes a layer, so that the allocator's pieces are small beside them.
IMAGES = {"cuda": (64, 64), "cpu": (2, 16)}


@dataclass(frozen=True)
class Item:
    """A place at which a step fails.

    Attributes:
        name: as records have it.
        share: of the memory that it has; None in a dry run.
        place: number of the op that fails; None on a GPU.
    """

    name: str
    share: float | None = None
    place: int | None = None

    @property
    def fails(self) -> bool:
        """Whether the step cannot succeed: allocations may lie closer than before, but not in half of the memory."""
        return self.share is None or self.share <= 0.5


class Failing(TorchDispatchMode):
    """Raises ``torch.OutOfMemoryError`` in the place of one of fastnn's ops."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place, self.calls = place, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastnn":
            self.calls += 1
            if self.calls > self.place:
                raise torch.OutOfMemoryError("simulated")
        return func(*args, **(kwargs or {}))


class Network(nn.Module):
    """Images through convolutions, norms and pools, then their rows through an LSTM."""

    def __init__(self, size: int) -> None:
        super().__init__()
        layers = fastnn.nn
        self.features = nn.Sequential(
            *(layers.Conv2d(3, 32, 3, padding=1, bias=False), layers.BatchNorm2d(32), nn.ReLU(), layers.MaxPool2d(2)),
            *(layers.Conv2d(32, 32, 3, padding=1, groups=32), layers.GroupNorm(4, 32), layers.AvgPool2d(2)),
            *(layers.ConvTranspose2d(32, 16, 4, stride=2, padding=1), layers.BatchNormReLU2d(16), layers.Maxout(2)),
        )
        self.rows = layers.LSTM(8 * (size // 2), 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Loss of a batch."""
        y = self.features(x).permute(0, 2, 1, 3).flatten(2)
        return self.rows(y)[0].square().mean()


class Step:
    """A training step that can be taken again from the same state, and gives the same bits."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.device = device
        count, size = IMAGES[device]
        self.network = Network(size).to(device)
        self.state = {name: value.clone() for name, value in self.network.state_dict().items()}
        drawn = torch.randn(count, 3, size, size, generator=generator_for("memory"))
        self.images = drawn.to(device)

    def begin(self) -> None:
        """As if nothing had happened."""
        self.network.load_state_dict(self.state)
        self.network.zero_grad(set_to_none=True)
        gc.collect()

    def take(self) -> None:
        """Forward, backward, and plain gradient descent."""
        self.network(self.images).backward()
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter -= 0.1 * parameter.grad

    def result(self) -> dict[str, Tensor]:
        """The network's state, in memory of the host."""
        return {name: value.cpu().clone() for name, value in self.network.state_dict().items()}


_step: Step | None = None
_expected: dict[str, Tensor] = {}
_needed = 0


def prepare(device: str) -> Step:
    """The step, taken once undisturbed for what must come out of it, and for what it needs."""
    global _step, _needed
    if _step is None:
        _step = Step(device)
        for _ in range(2):  # the first loads kernels and tries algorithms
            _step.begin()
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_reserved()
            _step.take()
            if device == "cuda":
                torch.cuda.synchronize()
                _needed = torch.cuda.max_memory_reserved() - before
        _expected.update(_step.result())
    return _step


def items(arguments: Any) -> list[Item]:
    """The places."""
    if arguments.device == "cpu":
        return [Item(f"out of memory at op {place}", place=place) for place in PLACES]
    return [Item(f"{share:.0%} of the memory needed", share=share) for share in SHARES]


def examine(item: Item, arguments: Any) -> dict[str, Any]:
    """Fails one step, and takes the next.

    Raises:
        AssertionError: the next step is not what it would have been, or memory is lost.
    """
    device = arguments.device
    step = prepare(device)
    step.begin()
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    failed = False
    with _too_little(item):
        try:
            step.take()
        except torch.OutOfMemoryError:
            failed = True
    assert failed or not item.fails, "the step succeeded with too little memory"
    step.begin()
    if device == "cuda":
        torch.cuda.synchronize()
        left = torch.cuda.memory_allocated() - before
        assert left <= 0, f"{left} bytes were allocated before and are not free again"
    step.take()
    result = step.result()
    unlike = [name for name, want in _expected.items() if not torch.equal(result[name], want)]
    assert not unlike, f"the step after it gives other values of {', '.join(unlike)}"
    return {"raised": failed}


@contextlib.contextmanager
def _too_little(item: Item) -> Iterator[None]:
    if item.place is not None:
        with Failing(item.place):
            yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + item.share * _needed) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
