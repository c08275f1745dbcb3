"""Oracle and bounds of the LSTM cell; see :mod:`fastnn.testing.bounded`."""

from __future__ import annotations

import torch

from .bounded import Arithmetic, Bounded, Expected
from .cell_cases import LstmCellCase


def expected_lstm_cell(case: LstmCellCase, inputs, cotangents, originals) -> Expected:
    """Of lstm_cell; see :func:`fastnn.testing.bounds.expected`."""
    arithmetic = Arithmetic.of(originals["input"].dtype)
    u, hidden = arithmetic.accumulate, case.hidden_size
    t = {name: Bounded.exact(tensor, u) for name, tensor in inputs.items()}
    # Each of the two products is stored; the second may be added to the first before or after.
    from_input = t["input"].matmul(t["w_ih"].transposed()).stored(arithmetic)
    from_hidden = t["hx"].matmul(t["w_hh"].transposed()).stored(arithmetic)
    gates = (from_input + from_hidden).stored(arithmetic)
    # On the CPU they are one sum over both.
    together = t["input"].beside(t["hx"]).matmul(t["w_ih"].beside(t["w_hh"]).transposed()).stored(arithmetic)
    gates = Bounded(gates.value, torch.maximum(gates.error, together.error), u)
    if case.bias:
        gates = gates + (t["b_ih"] + t["b_hh"])

    def block(index: int) -> Bounded:
        columns = slice(index * hidden, (index + 1) * hidden)
        return Bounded(gates.value[:, columns], gates.error[:, columns], u)

    i, f, g, o = block(0).sigmoid(), block(1).sigmoid(), block(2).tanh(), block(3).sigmoid()
    cell = f * t["cx"] + i * g
    squashed = cell.tanh()
    result = Expected(outputs=[(o * squashed).stored(arithmetic), cell.stored(arithmetic)])

    zero = torch.zeros_like(inputs["cx"])
    grad_h, grad_c = (Bounded.exact(zero if c is None else c, u) for c in cotangents)
    grad_cell = grad_c + grad_h * o * (1.0 - squashed * squashed)
    parts = [
        grad_cell * g * i * (1.0 - i),
        grad_cell * t["cx"] * f * (1.0 - f),
        grad_cell * i * (1.0 - g * g),
        grad_h * squashed * o * (1.0 - o),
    ]
    grad_gates = Bounded(torch.cat([p.value for p in parts], 1), torch.cat([p.error for p in parts], 1), u)
    grad_gates = grad_gates.stored(arithmetic)
    result.gradients = {
        "input": grad_gates.matmul(t["w_ih"]),
        "hx": grad_gates.matmul(t["w_hh"]),
        "cx": grad_cell * f,
        "w_ih": grad_gates.transposed().matmul(t["input"]),
        "w_hh": grad_gates.transposed().matmul(t["hx"]),
    }
    if case.bias:
        result.gradients["b_ih"] = result.gradients["b_hh"] = grad_gates.sum([0], case.rows)
    result.gradients = {name: grad.stored(arithmetic) for name, grad in result.gradients.items()}
    return result
