"""Oracle and bounds of the LSTM cell, and of what it shares with layers; see :mod:`fastnn.testing.bounded`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .bounded import Arithmetic, Bounded, Expected
from .cell_cases import LstmCellCase


@dataclass(frozen=True)
class LstmStep:
    """One step's gates, the c it began with, the c it made and tanh of that."""

    i: Bounded
    f: Bounded
    g: Bounded
    o: Bounded
    old_c: Bounded
    c: Bounded
    squashed: Bounded

    @staticmethod
    def of(gates: Sequence[Bounded], old_c: Bounded) -> LstmStep:
        """From the pre-activations of i, f, g and o."""
        i, f, g, o = gates[0].sigmoid(), gates[1].sigmoid(), gates[2].tanh(), gates[3].sigmoid()
        c = f * old_c + i * g
        return LstmStep(i, f, g, o, old_c, c, c.tanh())

    def stored(self, arithmetic: Arithmetic) -> LstmStep:
        """As backward finds it where what it needs was stored in the tensors' type."""
        i, f, g, o, old_c, c = (x.stored(arithmetic) for x in (self.i, self.f, self.g, self.o, self.old_c, self.c))
        return LstmStep(i, f, g, o, old_c, c, c.tanh())

    @property
    def h(self) -> Bounded:
        """The new hidden state."""
        return self.o * self.squashed

    def gradients(self, grad_h: Bounded, grad_c: Bounded) -> tuple[list[Bounded], Bounded]:
        """Of the pre-activations of i, f, g and o, and of the c that the step began with."""
        grad_made = grad_c + grad_h * self.o * (1.0 - self.squashed * self.squashed)
        of_gates = [
            grad_made * self.g * self.i * (1.0 - self.i),
            grad_made * self.old_c * self.f * (1.0 - self.f),
            grad_made * self.i * (1.0 - self.g * self.g),
            grad_h * self.squashed * self.o * (1.0 - self.o),
        ]
        return of_gates, grad_made * self.f


def expected_lstm_cell(case: LstmCellCase, inputs, cotangents, originals) -> Expected:
    """Of lstm_cell; see :func:`fastnn.testing.bounds.expected`."""
    arithmetic = Arithmetic.of(originals["input"].dtype)
    u = arithmetic.accumulate
    t = {name: Bounded.exact(tensor, u) for name, tensor in inputs.items()}
    # Each of the two products is stored; the second may be added to the first before or after.
    from_input = t["input"].matmul(t["w_ih"].transposed()).stored(arithmetic)
    from_hidden = t["hx"].matmul(t["w_hh"].transposed()).stored(arithmetic)
    gates = (from_input + from_hidden).stored(arithmetic)
    # On the CPU they are one sum over both.
    together = t["input"].beside(t["hx"]).matmul(t["w_ih"].beside(t["w_hh"]).transposed()).stored(arithmetic)
    gates = gates.either(together)
    if case.bias:
        gates = gates + (t["b_ih"] + t["b_hh"])
    step = LstmStep.of(gates.columns(4), t["cx"])
    result = Expected(outputs=[step.h.stored(arithmetic), step.c.stored(arithmetic)])

    zero = torch.zeros_like(inputs["cx"])
    grad_h, grad_c = (Bounded.exact(zero if c is None else c, u) for c in cotangents)
    of_gates, grad_cx = step.gradients(grad_h, grad_c)
    grad_gates = Bounded.together(of_gates, 1).stored(arithmetic)
    result.gradients = {
        "input": grad_gates.matmul(t["w_ih"]),
        "hx": grad_gates.matmul(t["w_hh"]),
        "cx": grad_cx,
        "w_ih": grad_gates.transposed().matmul(t["input"]),
        "w_hh": grad_gates.transposed().matmul(t["hx"]),
    }
    if case.bias:
        result.gradients["b_ih"] = result.gradients["b_hh"] = grad_gates.sum([0], case.rows)
    result.gradients = {name: grad.stored(arithmetic) for name, grad in result.gradients.items()}
    return result
