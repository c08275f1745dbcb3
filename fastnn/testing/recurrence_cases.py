"""Cases of recurrences: one layer in one direction, over whole sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastnn.testing.case import PRECISE, WIDE_RANGE, Case, draw, lay_out

GATES = {"lstm": 4, "gru": 3, "gru_cho": 3, "rnn": 1, "rnn_relu": 1}


@dataclass(frozen=True, kw_only=True)
class RecurrenceCase(Case):
    """input [T, N, I]; h0, c0 [N, H]; w_ih [G * H, I]; w_hh [G * H, H]; b_ih, b_hh [G * H], of G gates.

    ``kind`` is one of ``GATES``: ``gru_cho`` resets h before its product. ``lengths`` are those of the samples, None
    for T; what lies beyond one is NaN.
    """

    op: ClassVar[str] = "recurrence"
    outputs: ClassVar[tuple[str, ...]] = ("output", "h_n", "c_n")
    differentiable: ClassVar[tuple[str, ...]] = ("input", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh")
    framework_products: ClassVar[bool] = True  # of the weights' and x's gradients
    kind: str
    steps: int
    rows: int
    input_size: int
    hidden_size: int
    bias: bool = True
    lengths: tuple[int, ...] | None = None
    reverse: bool = False
    memory_efficient: bool = False

    def make_inputs(self, dtype, device, layout, generator):
        """See ``Case.make_inputs``."""
        n, i, h, gates = self.rows, self.input_size, self.hidden_size, GATES[self.kind]
        inputs = {"input": draw((self.steps, n, i), self.values, generator), "h0": draw((n, h), "normal", generator)}
        if self.kind == "lstm":
            inputs["c0"] = draw((n, h), "normal", generator)
        inputs["w_ih"] = draw((gates * h, i), "normal", generator) / max(i, 1) ** 0.5
        inputs["w_hh"] = draw((gates * h, h), "normal", generator) / max(h, 1) ** 0.5
        if self.bias:
            inputs |= {name: draw((gates * h,), "normal", generator) for name in ("b_ih", "b_hh")}
        for sample, length in enumerate(self.lengths or ()):
            inputs["input"][length:, sample] = float("nan")
        return {name: lay_out(tensor.to(dtype).to(device), layout) for name, tensor in inputs.items()}

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        input, h0 = inputs["input"], inputs["h0"]
        weights = [inputs.get(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
        options: dict[str, Any] = {"reverse": self.reverse}
        if self.lengths is not None:
            options["lengths"] = torch.tensor(self.lengths, device=input.device)
        if self.memory_efficient:
            options["memory_efficient"] = True
        if self.kind == "lstm":
            return tuple(functional.lstm(input, (h0, inputs["c0"]), *weights, **options))
        if self.kind.startswith("gru"):
            return tuple(functional.gru(input, h0, *weights, reset_after=self.kind == "gru", **options))
        nonlinearity = "relu" if self.kind == "rnn_relu" else "tanh"
        return tuple(functional.rnn(input, h0, *weights, nonlinearity=nonlinearity, **options))


def torch_recurrence(
    kind: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: tuple[Tensor | None, ...],
    *,
    reverse: bool = False,
    lengths: Tensor | None = None,
    memory_efficient: bool = False,
) -> tuple[Tensor, ...]:
    """What torch's own layer gives with the arguments of ours; it refuses lengths of 0.

    Args:
        kind: ``lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``.
        input: [T, N, I].
        states: h0, and c0 of an LSTM, [N, H] each.
        weights: w_ih, w_hh, b_ih, b_hh; the last two may be None.
        reverse: whether each sample begins with its own last step.
        lengths: [N] or None.
        memory_efficient: nothing that torch has.
    """
    steps, samples = input.shape[:2]
    if input.is_meta:  # no packing there
        return input.new_empty(steps, samples, states[0].shape[-1]), *(s.clone() for s in states)
    own = torch.full((samples,), steps) if lengths is None else lengths.cpu()
    at = torch.arange(steps)[:, None].expand(steps, samples)
    inside = (at < own).to(input.device)
    order = torch.where(at < own, own - 1 - at if reverse else at, at).to(input.device)[..., None]
    ordered = input.gather(0, order.expand(input.shape))
    parameters = [w for w in weights if w is not None]
    hx = [state[None] for state in states] if kind == "lstm" else states[0][None]
    run = getattr(torch, kind)
    # Without dropout training differs in nothing but that cuDNN has gradients.
    if lengths is None:
        y, *last = run(ordered, hx, parameters, len(parameters) == 4, 1, 0.0, True, False, False)
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(ordered, own, enforce_sorted=False)
        hx = [s[:, packed.sorted_indices] for s in hx] if kind == "lstm" else hx[:, packed.sorted_indices]
        data, *last = run(packed.data, packed.batch_sizes, hx, parameters, len(parameters) == 4, 1, 0.0, True, False)
        last = [state[:, packed.unsorted_indices] for state in last]
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(packed._replace(data=data), total_length=steps)
    y = y.gather(0, order.expand(y.shape)) * inside[..., None]
    return y, *(state[0] for state in last)


def _layer(kind: str, name: str, sizes: tuple[int, int, int, int], **options: Any) -> RecurrenceCase:
    steps, rows, inputs, hidden = sizes
    return RecurrenceCase(
        id=f"{kind}_{name}", kind=kind, steps=steps, rows=rows, input_size=inputs, hidden_size=hidden, **options
    )


def _of_kind(kind: str) -> tuple[RecurrenceCase, ...]:
    return (
        _layer(kind, "5x2x3x4", (5, 2, 3, 4), small=True),
        _layer(kind, "few_steps", (3, 2, 3, 4), small=True),
        _layer(kind, "no_bias", (4, 2, 3, 5), bias=False, small=True),
        _layer(kind, "reverse", (4, 3, 2, 7), reverse=True, small=True),
        _layer(kind, "lengths", (4, 4, 3, 5), lengths=(2, 4, 1, 3), small=True),
        _layer(kind, "lengths_reverse", (4, 3, 3, 6), lengths=(3, 0, 4), reverse=True, small=True),
        _layer(kind, "memory_efficient", (4, 3, 4, 9), memory_efficient=True, small=True),
        _layer(kind, "one_step", (1, 3, 5, 17), small=True),
        _layer(kind, "hidden_33", (4, 5, 7, 33), crosses_tile=True),
        _layer(kind, "many_rows", (4, 70, 3, 20), crosses_tile=True),
    )


RECURRENCE = (
    *(case for kind in GATES for case in _of_kind(kind)),
    _layer("lstm", "batch_0", (3, 0, 4, 5), small=True),
    _layer("lstm", "16_steps", (16, 3, 5, 16), dtypes=PRECISE),
    _layer("lstm", "nonfinite", (4, 3, 4, 5), values="nonfinite", dtypes=PRECISE, small=True),
    _layer("gru", "nonfinite", (4, 3, 4, 5), values="nonfinite", dtypes=PRECISE, small=True),
    _layer("lstm", "characters", (5, 16, 65, 128)),
    _layer("lstm", "huge", (4, 3, 4, 5), values="huge", dtypes=WIDE_RANGE, small=True),
    _layer("gru", "wide", (4, 9, 40, 65)),
)
