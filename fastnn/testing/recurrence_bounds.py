"""Oracle and bounds of recurrences, step by step; see :mod:`fastnn.testing.bounded`.

Where kernels may store a number in the tensors' type or keep it, it counts as stored: the products with x, what a step
leaves for backward, the gradients of the gates. States go on as they were computed, but for h, which is what the caller
sees. An error of one step is carried through the next as its weights carry it, at its worst: of sequences much longer
than those of the cases the bound would say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import recurrent_reference
from .bounded import Arithmetic, Bounded, Expected
from .cell_bounds import LstmStep
from .recurrence_cases import RecurrenceCase

# From the gradients of a step's h and c to those of the products with x; of each product with h, with its operand; and
# of the h and the c before.
Backward = Callable[[Bounded, Bounded], tuple[Bounded, list[tuple[Bounded, Bounded]], Bounded, Bounded]]


class _Layer:
    """The formulas of one case's cell, with its weights."""

    def __init__(self, case: RecurrenceCase, weights: dict[str, Bounded], arithmetic: Arithmetic) -> None:
        self.case, self.weights, self.arithmetic = case, weights, arithmetic
        self.w_hh = weights["w_hh"]

    def of_x(self, x: Bounded) -> Bounded:
        """The product with x, and its bias."""
        product = x.matmul(self.weights["w_ih"].transposed()).stored(self.arithmetic)
        return (product + self.weights["b_ih"]).stored(self.arithmetic) if self.case.bias else product

    def of_h(self, h: Bounded, block: int | None = None) -> Bounded:
        """The product with h, and its bias: of all gates, or of one."""
        product = h.matmul(self._rows("w_hh", block).transposed()).stored(self.arithmetic)
        return product + self._rows("b_hh", block) if self.case.bias else product

    def _rows(self, name: str, block: int | None) -> Bounded:
        w, size = self.weights[name], self.case.hidden_size
        if block is None:
            return w
        rows = slice(block * size, (block + 1) * size)
        return Bounded(w.value[rows], w.error[rows], w.u)

    def step(self, x: Bounded, h: Bounded, c: Bounded) -> tuple[Bounded, Bounded, Backward]:
        """The new h and c, and what leads back from their gradients."""
        kinds = {"lstm": self._lstm, "gru": self._gru, "gru_cho": self._gru_cho}
        return kinds.get(self.case.kind, self._rnn)(x, h, c)

    def _lstm(self, x: Bounded, h: Bounded, c: Bounded) -> tuple[Bounded, Bounded, Backward]:
        step = LstmStep.of((self.of_x(x) + self.of_h(h)).stored(self.arithmetic).columns(4), c)
        saved = step.stored(self.arithmetic)

        def backward(grad_h: Bounded, grad_c: Bounded):
            of_gates, of_c = saved.gradients(grad_h, grad_c)
            grads = Bounded.together(of_gates, 1).stored(self.arithmetic)
            return grads, [(grads, h)], grads.matmul(self.w_hh), of_c

        return step.h.stored(self.arithmetic), step.c, backward

    def _blended(self, n: Bounded, z: Bounded, h: Bounded) -> Bounded:
        # Kernels have one or the other.
        return ((1.0 - z) * n + z * h).either(n + z * (h - n)).stored(self.arithmetic)

    def _gru(self, x: Bounded, h: Bounded, c: Bounded) -> tuple[Bounded, Bounded, Backward]:
        (x_r, x_z, x_n), (h_r, h_z, h_n) = self.of_x(x).columns(3), self.of_h(h).columns(3)
        r, z = ((a + b).stored(self.arithmetic).sigmoid() for a, b in ((x_r, h_r), (x_z, h_z)))
        n = (x_n + r * h_n).tanh()
        new = self._blended(n, z, h)
        r, z, n, h_n = (value.stored(self.arithmetic) for value in (r, z, n, h_n))

        def backward(grad_h: Bounded, grad_c: Bounded):
            of_n = grad_h * (1.0 - z) * (1.0 - n * n)
            of_r, of_z = of_n * h_n * r * (1.0 - r), grad_h * (h - n) * z * (1.0 - z)
            of_x = Bounded.together([of_r, of_z, of_n], 1).stored(self.arithmetic)
            of_h = Bounded.together([of_r, of_z, of_n * r], 1).stored(self.arithmetic)
            return of_x, [(of_h, h)], grad_h * z + of_h.matmul(self.w_hh), grad_c

        return new, c, backward

    def _gru_cho(self, x: Bounded, h: Bounded, c: Bounded) -> tuple[Bounded, Bounded, Backward]:
        x_r, x_z, x_n = self.of_x(x).columns(3)
        r, z = ((a + self.of_h(h, k)).stored(self.arithmetic).sigmoid() for k, a in enumerate((x_r, x_z)))
        reset = (r * h).stored(self.arithmetic)
        n = (x_n + self.of_h(reset, 2)).stored(self.arithmetic).tanh()
        new = self._blended(n, z, h)
        r, z, n = (value.stored(self.arithmetic) for value in (r, z, n))

        def backward(grad_h: Bounded, grad_c: Bounded):
            of_n = (grad_h * (1.0 - z) * (1.0 - n * n)).stored(self.arithmetic)
            of_reset = of_n.matmul(self._rows("w_hh", 2))
            of_r = (of_reset * h * r * (1.0 - r)).stored(self.arithmetic)
            of_z = (grad_h * (h - n) * z * (1.0 - z)).stored(self.arithmetic)
            back = of_r.matmul(self._rows("w_hh", 0)) + of_z.matmul(self._rows("w_hh", 1))
            of_x = Bounded.together([of_r, of_z, of_n], 1)
            return of_x, [(of_r, h), (of_z, h), (of_n, reset)], grad_h * z + of_reset * r + back, grad_c

        return new, c, backward

    def _rnn(self, x: Bounded, h: Bounded, c: Bounded) -> tuple[Bounded, Bounded, Backward]:
        a = (self.of_x(x) + self.of_h(h)).stored(self.arithmetic)
        rectifies = self.case.kind == "rnn_relu"
        made = (a.relu() if rectifies else a.tanh()).stored(self.arithmetic)

        def backward(grad_h: Bounded, grad_c: Bounded):
            if rectifies:
                # Nearer to the kink than the error the slope may be either.
                unsure = torch.where(a.value.abs() <= a.error, grad_h.value.abs(), 0.0)
                slope = (~(a.value <= 0)).double()  # as torch, of NaN too
                grads = Bounded(grad_h.value * slope, grad_h.error + unsure, grad_h.u)
            else:
                grads = grad_h * (1.0 - made * made)
            grads = grads.stored(self.arithmetic)
            return grads, [(grads, h)], grads.matmul(self.w_hh), grad_c

        return made, c, backward


def _at(sequence: Bounded, times: Tensor, samples: Tensor) -> Bounded:
    return Bounded(sequence.value[times, samples], sequence.error[times, samples], sequence.u)


def _zeros(shape: Sequence[int], u: float) -> Bounded:
    return Bounded.exact(torch.zeros(shape, dtype=torch.float64), u)


@dataclass(frozen=True)
class _Taken:
    """One step: which samples took it, at which times, from which x, and what leads back."""

    active: Tensor
    at: Tensor
    x: Bounded
    backward: Backward

    @property
    def mask(self) -> Tensor:
        """[N, 1]."""
        return self.active[:, None]

    def scatter(self, values: Bounded, to: Bounded) -> None:
        """The values of the samples that took the step to their places in a sequence."""
        places = self.at[self.active], self.active.nonzero()[:, 0]
        to.value[places], to.error[places] = values.value[self.active], values.error[self.active]

    def only(self, values: Bounded) -> Bounded:
        """The values of the samples that took the step, 0 for the others."""
        return values.where(self.mask, _zeros(values.value.shape, values.u))


def expected_recurrence(case: RecurrenceCase, inputs, cotangents, originals) -> Expected:
    """Of recurrence; see :func:`fastnn.testing.bounds.expected`."""
    arithmetic = Arithmetic.of(originals["input"].dtype)
    u, has_c, states = arithmetic.accumulate, "c0" in inputs, (case.rows, case.hidden_size)
    t = {name: Bounded.exact(tensor, u) for name, tensor in inputs.items()}
    lengths = torch.tensor(case.lengths or (case.steps,) * case.rows, dtype=torch.long)
    samples = torch.arange(case.rows)
    layer = _Layer(case, t, arithmetic)

    h, c = t["h0"], t["c0"] if has_c else _zeros(states, u)
    output = _zeros((case.steps, *states), u)
    taken: list[_Taken] = []
    for step in range(case.steps):
        active = lengths > step
        at = torch.where(active, lengths - 1 - step if case.reverse else step, 0)
        # What lies beyond a sample's length is never looked at.
        x = _at(t["input"], at, samples)
        x = x.where(active[:, None], _zeros(x.value.shape, u))
        new_h, new_c, backward = layer.step(x, h, c)
        taken.append(_Taken(active, at, x, backward))
        h, c = new_h.where(active[:, None], h), new_c.where(active[:, None], c)
        taken[-1].scatter(h, output)
    result = Expected(outputs=[output, h, c.stored(arithmetic)] if has_c else [output, h])

    used = zip(result.outputs, cotangents, strict=True)
    grads = [_zeros(out.value.shape, u) if grad is None else Bounded.exact(grad, u) for out, grad in used]
    of_y, grad_h, grad_c = grads[0], grads[1], grads[2] if has_c else _zeros(states, u)
    of_input = _zeros(inputs["input"].shape, u)
    # Of each step, and of each product with h of each step: the gradient, and what was multiplied.
    of_x: list[tuple[Bounded, Bounded]] = []
    of_h: list[list[tuple[Bounded, Bounded]]] = []
    for step in reversed(taken):
        gates, products, back_h, back_c = step.backward(grad_h + _at(of_y, step.at, samples), grad_c)
        grad_h, grad_c = back_h.where(step.mask, grad_h), back_c.where(step.mask, grad_c)
        of_x.append((step.only(gates), step.x))
        of_h.append([(step.only(grad), step.only(operand)) for grad, operand in products])
        step.scatter(gates.matmul(t["w_ih"]), of_input)

    def over_steps(pairs: Sequence[tuple[Bounded, Bounded]]) -> tuple[Bounded, Bounded]:
        """A weight's gradient and its bias's: one product, or sum, of all steps' rows."""
        grad, operand = (Bounded.together([pair[k] for pair in pairs], 0) for k in (0, 1))
        return grad.transposed().matmul(operand), grad.sum([0], case.steps * case.rows)

    w_ih, b_ih = over_steps(of_x)
    w_hh, b_hh = (
        Bounded.together(list(parts), 0) for parts in zip(*map(over_steps, zip(*of_h, strict=True)), strict=True)
    )
    gradients = {"input": of_input, "h0": grad_h, "c0": grad_c, "w_ih": w_ih, "w_hh": w_hh, "b_ih": b_ih, "b_hh": b_hh}
    result.gradients = {name: grad.stored(arithmetic) for name, grad in gradients.items() if name in inputs}
    return result


def recurrence(case: RecurrenceCase, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The differentiable float64 oracle, of other code than the bounds: :mod:`fastnn.testing.recurrent_reference`."""
    names = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    weights = {theirs: inputs[ours] for ours, theirs in names.items() if ours in inputs}

    def step(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        if case.kind == "lstm":
            return recurrent_reference.lstm_step(x, *states, weights)
        if case.kind.startswith("gru"):
            return recurrent_reference.gru_step(x, *states, weights, reset_after=case.kind == "gru")
        nonlinearity = "relu" if case.kind == "rnn_relu" else "tanh"
        return recurrent_reference.rnn_step(x, *states, weights, nonlinearity=nonlinearity)

    states = [inputs[name] for name in ("h0", "c0") if name in inputs]
    lengths = case.lengths or (case.steps,) * case.rows
    if not any(lengths):  # derivatives of everything, by nothing
        nothing = sum(tensor[:0].sum() for tensor in inputs.values())
        return inputs["input"].new_zeros(case.steps, *states[0].shape) + nothing, *(s + nothing for s in states)
    output, last, _ = recurrent_reference.direction(step, inputs["input"], states, lengths, case.reverse)
    return output, *last
