"""Fake kernels of recurrent layers; see :mod:`fastnn._fake`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.library import register_fake

from fastnn._fake import _accumulation_type, _empty, _wanted

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
    norm_x: Tensor | None,
    norm_h: Tensor | None,
    norm_c_weight: Tensor | None,
    norm_c_bias: Tensor | None,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    cells: bool,
    save_for_backward: bool,
    cell: Sequence[int],
    memory_efficient: bool = False,
) -> tuple[Tensor, ...]:
    hidden, rows = h0.shape[1], math.prod(input.shape[:-1])
    is_lstm, is_rnn = cell[0] == _LSTM, cell[0] == _RNN
    return (
        _empty((*input.shape[:-1], hidden), input),
        _empty(h0.shape, input),
        _wanted(is_lstm, h0.shape, input),
        _wanted(save_for_backward, (rows, _gates(cell) * hidden), input),
        _wanted((save_for_backward and not is_rnn) or (cells and is_lstm), (rows, hidden), input),
        _wanted(save_for_backward and norm_h is not None, (rows, _gates(cell) * hidden), input),
        _wanted(save_for_backward and norm_x is not None, (rows, _gates(cell) * hidden), input),
        _statistics(save_for_backward and any(n is not None for n in (norm_x, norm_h, norm_c_weight)), rows, input),
    )


def _statistics(wanted: bool, rows: int, input: Tensor) -> Tensor:
    return _wanted(wanted, (rows, 4), input, dtype=_accumulation_type(input.dtype))


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
    norm_x: Tensor | None,
    norm_h: Tensor | None,
    norm_c_weight: Tensor | None,
    norm_c_bias: Tensor | None,
    y: Tensor,
    gates: Tensor,
    record: Tensor,
    normalised: Tensor,
    normalised_x: Tensor,
    statistics: Tensor,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    output_mask: Sequence[bool],
    cell: Sequence[int],
) -> tuple[Tensor, ...]:
    bias = (_gates(cell) * h0.shape[1],)
    shapes = [None if t is None else t.shape for t in (input, h0, c0, w_ih, w_hh)]
    shapes += [bias, bias, None if peephole is None else peephole.shape]
    of_c = None if norm_c_weight is None else (h0.shape[1],)
    shapes += [None if norm_x is None else bias, None if norm_h is None else bias, of_c, of_c]
    return tuple(
        _wanted(wanted and shape is not None, () if shape is None else shape, input)
        for wanted, shape in zip(output_mask, shapes, strict=True)
    )


# Blocks of H in each of a cell's tensors a, u, c, h and the peepholes, by stage (CellStage of
# csrc/ops/recurrent_cell.h); of an LSTM a and the peepholes have one fewer where its gates are coupled.
_BLOCKS = ((4, 0, 1, 1, 3), (3, 3, 0, 1, 0), (1, 0, 0, 1, 0), (2, 0, 0, 1, 0), (1, 0, 1, 1, 0))
_TWO_OUTPUTS = (0, 3)  # LSTM: h and c; reset: r * h and z


def _stage(a: Tensor, stage: int, cell: Sequence[int]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Shapes of a stage's outputs and of a, u, c, h and the peepholes; () for one that it has not."""
    coupled = stage == 0 and cell[4]
    blocks = [count - 1 if coupled and k in (0, 4) else count for k, count in enumerate(_BLOCKS[stage])]
    batch, hidden = a.shape[0], a.shape[1] // blocks[0]
    inputs = [(batch, count * hidden) if count else () for count in blocks]
    return (batch, hidden), [*inputs[:4], (blocks[4], hidden) if blocks[4] else ()]


@register_fake("fastnn::recurrent_cell_pointwise")
def _recurrent_cell_pointwise(
    a: Tensor,
    u: Tensor | None,
    c: Tensor | None,
    h: Tensor | None,
    peephole: Tensor | None,
    d_h: Tensor | None,
    d_c: Tensor | None,
    stage: int,
    cell: Sequence[int],
) -> tuple[Tensor, Tensor]:
    output, _ = _stage(a, stage, cell)
    return _empty(output, a), _wanted(stage in _TWO_OUTPUTS, output, a)


@register_fake("fastnn::recurrent_cell_pointwise_backward")
def _recurrent_cell_pointwise_backward(
    grad_first: Tensor | None,
    grad_second: Tensor | None,
    a: Tensor,
    u: Tensor | None,
    c: Tensor | None,
    h: Tensor | None,
    peephole: Tensor | None,
    d_h: Tensor | None,
    d_c: Tensor | None,
    stage: int,
    cell: Sequence[int],
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    _, inputs = _stage(a, stage, cell)
    return tuple(_wanted(m and shape != (), shape, a) for m, shape in zip(output_mask, inputs, strict=True))


@register_fake("fastnn::recurrent_cell_pointwise_double_backward")
def _recurrent_cell_pointwise_double_backward(
    gg_a: Tensor | None,
    gg_u: Tensor | None,
    gg_c: Tensor | None,
    gg_h: Tensor | None,
    gg_peephole: Tensor | None,
    grad_first: Tensor | None,
    grad_second: Tensor | None,
    a: Tensor,
    u: Tensor | None,
    c: Tensor | None,
    h: Tensor | None,
    peephole: Tensor | None,
    d_h: Tensor | None,
    d_c: Tensor | None,
    stage: int,
    cell: Sequence[int],
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    output, inputs = _stage(a, stage, cell)
    shapes = [output, output if stage in _TWO_OUTPUTS else (), *inputs]
    return tuple(_wanted(m and shape != (), shape, a) for m, shape in zip(output_mask, shapes, strict=True))
