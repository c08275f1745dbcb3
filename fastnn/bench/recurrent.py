"""LSTMs: one step, and whole sequences."""

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
        return nn.LSTM(self.hidden, self.hidden, bidirectional=self.bidirectional)

    def make_inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the class."""
        sizes = ((self.time, self.batch, self.hidden), *[(1 + self.bidirectional, self.batch, self.hidden)] * 2)
        return tuple(torch.randn(size, device=device, dtype=dtype, requires_grad=True) for size in sizes)

    def call(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See the class."""
        x, h, c = inputs
        y, (h, c) = layer(x, (h, c))
        return y, h, c

    def cost(self, direction: str, size: int) -> Cost:
        """See the class."""
        directions = 1 + self.bidirectional
        step = self.batch * self.hidden
        x, y, states = self.time * step, directions * self.time * step, 2 * directions * step
        weights, biases = directions * 8 * self.hidden**2, directions * 8 * self.hidden
        # Of every step the gates, and the cell's state, which is no output.
        kept, flops = 5 * y, 2 * y * 8 * self.hidden
        if direction == "backward":
            read = y + states + x + states + y + kept + weights
            return Cost((read + x + states + weights + biases) * size, 2 * flops)
        kept = 0 if direction == "inference" else kept
        return Cost((x + states + weights + biases + y + states + kept) * size, flops)

    @property
    def terms(self) -> int:
        """See the class."""
        return max(4 * self.hidden, self.batch * self.time)

    def reduced(self) -> Layer:
        """See the class."""
        return replace(self, time=min(self.time, 48))
