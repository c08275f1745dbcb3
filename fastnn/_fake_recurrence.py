"""Fake kernels of recurrent layers; see :mod:`fastnn._fake`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.library import register_fake

from fastnn._fake import _empty, _wanted

_LSTM, _GRU, _RNN, _RESET = range(4)


def _gates(cell: Sequence[int]) -> int:
    """RecurrentCell::gates() of csrc/ops/recurrent_cell.h."""
    kind, coupled = cell[0], cell[4]
    return {_LSTM: 3 if coupled else 4, _GRU: 3, _RNN: 1, _RESET: 3}[kind]


@register_fake("fastnn::recurrence_layer")
def _recurrence_layer(
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor | None,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    peephole: Tensor | None,
    zoneout_h: Tensor | None,
    zoneout_c: Tensor | None,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    cells: bool,
    save_for_backward: bool,
    cell: Sequence[int],
) -> tuple[Tensor, ...]:
    hidden, rows = h0.shape[1], math.prod(input.shape[:-1])
    is_lstm, is_rnn = cell[0] == _LSTM, cell[0] == _RNN
    return (
        _empty((*input.shape[:-1], hidden), input),
        _empty(h0.shape, input),
        _wanted(is_lstm, h0.shape, input),
        _wanted(save_for_backward, (rows, _gates(cell) * hidden), input),
        _wanted((save_for_backward and not is_rnn) or (cells and is_lstm), (rows, hidden), input),
    )


@register_fake("fastnn::recurrence_layer_backward")
def _recurrence_layer_backward(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_record: Tensor | None,
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor | None,
    w_hh: Tensor,
    peephole: Tensor | None,
    zoneout_h: Tensor | None,
    zoneout_c: Tensor | None,
    y: Tensor,
    gates: Tensor,
    record: Tensor,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    output_mask: Sequence[bool],
    cell: Sequence[int],
) -> tuple[Tensor, ...]:
    bias = (_gates(cell) * h0.shape[1],)
    shapes = [None if t is None else t.shape for t in (input, h0, c0, w_ih, w_hh)]
    shapes += [bias, bias, None if peephole is None else peephole.shape]
    return tuple(
        _wanted(wanted and shape is not None, () if shape is None else shape, input)
        for wanted, shape in zip(output_mask, shapes, strict=True)
    )
