"""Recurrent networks: one step, and whole sequences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastnn.bench.layers import Cost, Layer


@dataclass(frozen=True)
class Cell(Layer):
    """One step of an LSTM: input and state of ``hidden`` numbers each."""

    op: ClassVar[str] = "lstm_cell"
    batch: int
    hidden: int

    @property
    def case(self) -> str:
        """See the class."""
        return f"cell B{self.batch} H{self.hidden}"

    @property
    def layouts(self) -> tuple[str, ...]:
        """See the class."""
        return ("contiguous",)

    def make(self) -> nn.Module:
        """See the class."""
        return nn.LSTMCell(self.hidden, self.hidden)

    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the class."""
        shape = (self.batch, self.hidden)
        return tuple(torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))

    def call(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See the class."""
        x, h, c = inputs
        return layer(x, (h, c))

    def cost(self, direction: str, size: int) -> Cost:
        """See the class."""
        state, weights, biases = self.batch * self.hidden, 8 * self.hidden**2, 8 * self.hidden
        gates, flops = 4 * state, 2 * self.batch * 8 * self.hidden**2
        if direction == "backward":
            # Two cotangents, three inputs, gates; three gradients of inputs.
            return Cost((2 * state + 3 * state + gates + weights + 3 * state + weights + biases) * size, 2 * flops)
        kept = 0 if direction == "inference" else gates
        return Cost((3 * state + weights + biases + 2 * state + kept) * size, flops)

    @property
    def terms(self) -> int:
        """See the class."""
        return max(4 * self.hidden, self.batch)


@dataclass(frozen=True)
class Recurrence(Layer):
    """A one-layer LSTM over a sequence."""

    op: ClassVar[str] = "lstm"
    amplifies: ClassVar[bool] = True
    layer: ClassVar[type[nn.RNNBase]] = nn.LSTM
    gates: ClassVar[int] = 4
    # Numbers of a step and unit that backward cannot do without, and states.
    kept: ClassVar[int] = 5
    states: ClassVar[int] = 2
    batch: int
    time: int
    hidden: int
    bidirectional: bool = False

    @property
    def case(self) -> str:
        """See the class."""
        both = " bidirectional" if self.bidirectional else ""
        return f"B{self.batch} T{self.time} H{self.hidden}{both}"

    @property
    def layouts(self) -> tuple[str, ...]:
        """See the class."""
        return ("contiguous",)

    def make(self) -> nn.Module:
        """See the class."""
        return self.layer(self.hidden, self.hidden, bidirectional=self.bidirectional)

    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the class."""
        state = (1 + self.bidirectional, self.batch, self.hidden)
        sizes = ((self.time, self.batch, self.hidden), *[state] * self.states)
        return tuple(torch.randn(size, device=device, dtype=dtype, requires_grad=True) for size in sizes)

    def call(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See the class."""
        x, *states = inputs
        y, last = layer(x, tuple(states) if self.states > 1 else states[0])
        return (y, *last) if self.states > 1 else (y, last)

    def cost(self, direction: str, size: int) -> Cost:
        """See the class."""
        directions = 1 + self.bidirectional
        step = self.batch * self.hidden
        x, y, states = self.time * step, directions * self.time * step, self.states * directions * step
        weights = directions * 2 * self.gates * self.hidden**2
        biases = directions * 2 * self.gates * self.hidden
        kept, flops = self.kept * y, 2 * y * 2 * self.gates * self.hidden
        if direction == "backward":
            read = y + states + x + states + y + kept + weights
            return Cost((read + x + states + weights + biases) * size, 2 * flops)
        kept = 0 if direction == "inference" else kept
        return Cost((x + states + weights + biases + y + states + kept) * size, flops)

    @property
    def terms(self) -> int:
        """See the class."""
        return max(self.gates * self.hidden, self.batch * self.time)

    def reduced(self) -> Layer:
        """See the class."""
        return replace(self, time=min(self.time, 48))


@dataclass(frozen=True)
class GruRecurrence(Recurrence):
    """A one-layer GRU over a sequence."""

    op: ClassVar[str] = "gru"
    layer: ClassVar[type[nn.RNNBase]] = nn.GRU
    gates: ClassVar[int] = 3
    kept: ClassVar[int] = 4
    states: ClassVar[int] = 1


@dataclass(frozen=True)
class RnnRecurrence(Recurrence):
    """A one-layer network of tanh over a sequence."""

    op: ClassVar[str] = "rnn"
    layer: ClassVar[type[nn.RNNBase]] = nn.RNN
    gates: ClassVar[int] = 1
    kept: ClassVar[int] = 0
    states: ClassVar[int] = 1
