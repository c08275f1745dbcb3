"""The recurrent functions of :mod:`fastnn.functional`: layers in one direction, and single steps.

All but the plain LSTM cell are the op ``fastnn::recurrence``; one step is a sequence of one. Where an input enters
otherwise than through a matrix (MUT1, MUT2), what stands for its products is made here, of all
steps at once, by torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_variadic

from fastnn._backend import _C

GATE_ACTIVATIONS = ("sigmoid", "hard_sigmoid", "tanh", "hard_tanh", "relu", "softsign", "identity")
"""The activations that gates, candidates and outputs of recurrent cells can have.

``hard_sigmoid(x) = clamp(x / 6 + 1 / 2, 0, 1)``, ``hard_tanh(x) = clamp(x, -1, 1)``, ``softsign(x) = x / (1 + |x|)``.
"""
_ACTIVATION_NUMBERS = {name: number for number, name in enumerate(GATE_ACTIVATIONS)}
_LSTM, _GRU, _RNN, _RESET = range(4)


def _number(argument: str, activation: str) -> int:
    if activation not in _ACTIVATION_NUMBERS:
        raise ValueError(f"{argument} must be one of {', '.join(GATE_ACTIVATIONS)}, got {activation!r}")
    return _ACTIVATION_NUMBERS[activation]


def _cell(
    kind: int,
    gate: str = "sigmoid",
    candidate: str = "tanh",
    output: str = "tanh",
    *,
    candidate_argument: str = "candidate_activation",
    coupled: bool = False,
    peephole_previous: bool = False,
    z_takes: bool = False,
    z_sees_h: bool = True,
    z_sees_tanh_h: bool = False,
) -> list[int]:
    """The op's list of numbers for a cell (csrc/ops/recurrent_cell.h says what each means)."""
    return [
        kind,
        _number("gate_activation", gate),
        _number(candidate_argument, candidate),
        _number("output_activation", output),
        int(coupled),
        int(peephole_previous),
        int(z_takes),
        int(z_sees_h),
        int(z_sees_tanh_h),
    ]


def _without_padding(input: Tensor, lengths: Tensor | None) -> Tensor:
    """A padded input with zeros beyond each sample's length: what lies there may be NaN, and 0 * NaN is NaN."""
    if lengths is None or input.dim() != 3 or lengths.shape != input.shape[1:2]:  # the op says what is wrong
        return input
    steps = torch.arange(input.size(0), device=input.device)
    beyond = steps[:, None] >= lengths.to(input.device)
    return input.masked_fill(beyond[..., None], 0)


def _one_step(zoneout: Tensor | None) -> Tensor | None:
    return zoneout if zoneout is None or zoneout.dim() == 1 else zoneout.unsqueeze(0)


# ---- LSTM ---------------------------------------------------------------------------------------------------


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    return_cells: bool = False,
    memory_efficient: bool = False,
    peephole: Tensor | None = None,
    peephole_previous: bool = False,
    coupled: bool = False,
    norm_ih: Tensor | None = None,
    norm_hh: Tensor | None = None,
    norm_c_weight: Tensor | None = None,
    norm_c_bias: Tensor | None = None,
    zoneout_h: Tensor | None = None,
    zoneout_c: Tensor | None = None,
    gate_activation: str = "sigmoid",
    candidate_activation: str = "tanh",
    output_activation: str = "tanh",
) -> tuple[Tensor, ...]:
    """One layer of an LSTM in one direction, over whole sequences.

    :func:`lstm_cell` for ``t = 0, 1, ...``, with the products of all steps with ``w_ih`` as one::

        i, f, g, o = split(x_t w_ih^T + b_ih + h w_hh^T + b_hh)
        c' = gate(f) * c + gate(i) * candidate(g)
        h' = gate(o) * output(c')                          (with w_hr: its product with that)

    Gradients are differentiable twice; the second time they are those of the cell stepped over time.

    Args:
        input: ``[T, N, I]``; or, with ``batch_sizes``, the rows ``[sum of batch_sizes, I]`` of a ``PackedSequence``.
        hx: ``(h_0, c_0)``, ``[N, H]`` each; ``h_0`` is ``[N, P]`` with ``w_hr``.
        w_ih: ``[4 * H, I]``, blocks for the input, forget, cell and output gate; ``[3 * H, I]`` of f, g and o where
            ``coupled``.
        w_hh: ``[4 * H, H]``, or ``[4 * H, P]`` with ``w_hr``; likewise.
        b_ih: ``[4 * H]``, likewise; None for 0.
        b_hh: ``[4 * H]``, likewise; None for 0.
        w_hr: ``[P, H]``, the projection of h (Sak et al. 2014); None for none.
        batch_sizes: ``[T]``, as in a ``PackedSequence``; None for padded input.
        lengths: ``[N]``, the steps of each sample, from 0 to T, in any order; None for T. Outputs beyond are 0.
        reverse: whether each sample begins with its own last step.
        return_cells: whether c of every step is returned too.
        memory_efficient: whether backward makes the gates again and forward keeps none: five numbers fewer for each
            step and unit, and one more forward pass.
        peephole: ``[3, H]``, the diagonals p by which i and f see c and o sees c': ``i += p_0 * c``, ``f += p_1 * c``,
            ``o += p_2 * c'``, before their activations (Gers and Schmidhuber 2000); ``[2, H]`` of f and o where
            ``coupled``; None for none.
        peephole_previous: whether o sees c instead, as i and f do.
        coupled: whether ``1 - f`` stands for the input gate, ``c' = f * c + (1 - f) * g`` (Greff et al. 2017, who write
            it as ``f = 1 - i``).
        norm_ih: ``[4 * H]``, the gain of a layer normalisation of ``x_t w_ih^T``, over all gates together; biases are
            added behind it (Ba et al. 2016). None for none.
        norm_hh: ``[4 * H]``, likewise of ``h w_hh^T``.
        norm_c_weight: ``[H]``, the gain of a layer normalisation of c' where h' sees it: ``h' = o * output(LN(c'))``.
        norm_c_bias: ``[H]``, its bias; None for 0.
        zoneout_h: d, the share of the old h kept, from 0 to 1: ``h'' = d * h + (1 - d) * h'`` (Krueger et al. 2017);
            of every step, ``[T, N, H]`` or ``[sum of batch_sizes, H]``, or of all alike, ``[H]``. None for 0.
        zoneout_c: likewise of c. h' is of the c' before it.
        gate_activation: of i, f and o, one of :data:`GATE_ACTIVATIONS`.
        candidate_activation: of g, likewise.
        output_activation: of c', likewise.

    Returns:
        The outputs, ``[T, N, H]`` or ``[sum of batch_sizes, H]`` (P for H with ``w_hr``), and the states after the last
        steps, as ``hx``; with ``return_cells`` also c of every step, like the outputs but of H always.

    Raises:
        ValueError: for lengths below 0 or above T, or an unknown activation.
        RuntimeError: for shapes, types or devices that do not go together.

    Formula: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    """
    cell = _cell(
        _LSTM,
        gate_activation,
        candidate_activation,
        output_activation,
        coupled=coupled,
        peephole_previous=peephole_previous,
    )
    h0, c0 = hx
    y, h_n, c_n, c = torch.ops.fastnn.recurrence(
        input,
        h0,
        c0,
        w_ih,
        w_hh,
        b_ih,
        b_hh,
        w_hr,
        peephole,
        zoneout_h,
        zoneout_c,
        norm_ih,
        norm_hh,
        norm_c_weight,
        norm_c_bias,
        batch_sizes,
        lengths,
        reverse,
        return_cells,
        cell,
        memory_efficient,
    )
    return (y, h_n, c_n, c) if return_cells else (y, h_n, c_n)


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    peephole: Tensor | None = None,
    peephole_previous: bool = False,
    coupled: bool = False,
    norm_ih: Tensor | None = None,
    norm_hh: Tensor | None = None,
    norm_c_weight: Tensor | None = None,
    norm_c_bias: Tensor | None = None,
    zoneout_h: Tensor | None = None,
    zoneout_c: Tensor | None = None,
    gate_activation: str = "sigmoid",
    candidate_activation: str = "tanh",
    output_activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """One step of a long short-term memory: ``torch.lstm_cell``.

    ``i, f, g, o = split(x w_ih^T + b_ih + h w_hh^T + b_hh)``; ``c' = sigmoid(f) * c + sigmoid(i) * tanh(g)``;
    ``h' = sigmoid(o) * tanh(c')``. Without options this is, on the CPU, one kernel forward and one backward. On
    CUDA, and where types differ or autocast is on, the two matrix products are torch's, and everything after them is
    one kernel each. With options it is :func:`lstm` of one step.

    Args:
        input: x, ``[N, I]``.
        hx: h and c, ``[N, H]`` each.
        w_ih: ``[4H, I]``, the blocks of the gates i, f, g, o in this order; ``[3H, I]`` of f, g, o where ``coupled``.
        w_hh: ``[4H, H]``, likewise.
        b_ih: ``[4H]``, likewise; None for none.
        b_hh: ``[4H]``, likewise; None for none.
        peephole: as of :func:`lstm`, and so are all that follow.
        peephole_previous: whether o sees c instead of c'.
        coupled: whether ``1 - f`` stands for the input gate.
        norm_ih: ``[4H]`` or None.
        norm_hh: ``[4H]`` or None.
        norm_c_weight: ``[H]`` or None.
        norm_c_bias: ``[H]`` or None.
        zoneout_h: ``[N, H]``, ``[H]`` or None.
        zoneout_c: ``[N, H]``, ``[H]`` or None.
        gate_activation: of i, f and o.
        candidate_activation: of g.
        output_activation: of c'.

    Returns:
        h' and c', ``[N, H]`` each.

    Raises:
        ValueError: for an unknown activation.
        RuntimeError: for shapes, types or devices that do not go together.

    Formula: Hochreiter and Schmidhuber 1997, with the forget gate of Gers, Schmidhuber and Cummins 2000.
    """
    if len(hx) != 2:
        raise RuntimeError(f"lstm_cell expects two hidden states, got {len(hx)}")
    h, c = hx
    tensors = (peephole, norm_ih, norm_hh, norm_c_weight, norm_c_bias, zoneout_h, zoneout_c)
    activations = (gate_activation, candidate_activation, output_activation)
    if coupled or activations != ("sigmoid", "tanh", "tanh") or any(t is not None for t in tensors):
        _, h, c = lstm(
            input.unsqueeze(0),
            hx,
            w_ih,
            w_hh,
            b_ih,
            b_hh,
            peephole=peephole,
            peephole_previous=peephole_previous,
            coupled=coupled,
            norm_ih=norm_ih,
            norm_hh=norm_hh,
            norm_c_weight=norm_c_weight,
            norm_c_bias=norm_c_bias,
            zoneout_h=_one_step(zoneout_h),
            zoneout_c=_one_step(zoneout_c),
            gate_activation=gate_activation,
            candidate_activation=candidate_activation,
            output_activation=output_activation,
        )
        return h, c
    if is_dynamo_compiling() or has_torch_function_variadic(input, h, c, w_ih, w_hh, b_ih, b_hh):
        return torch.ops.fastnn.lstm_cell(input, h, c, w_ih, w_hh, b_ih, b_hh)
    return _C.lstm_cell(input, h, c, w_ih, w_hh, b_ih, b_hh)


# ---- cells whose state is h alone ---------------------------------------------------------------------------


def _without_c(
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor | None,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    zoneout_h: Tensor | None,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    memory_efficient: bool,
    cell: list[int],
) -> tuple[Tensor, Tensor]:
    y, h_n, _, _ = torch.ops.fastnn.recurrence(
        input,
        h0,
        None,
        w_ih,
        w_hh,
        b_ih,
        b_hh,
        None,
        None,
        zoneout_h,
        None,
        None,
        None,
        None,
        None,
        batch_sizes,
        lengths,
        reverse,
        False,
        cell,
        memory_efficient,
    )
    return y, h_n


def gru(
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    memory_efficient: bool = False,
    reset_after: bool = True,
    zoneout_h: Tensor | None = None,
    gate_activation: str = "sigmoid",
    candidate_activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """One layer of gated recurrent units in one direction, over whole sequences.

    With W and b the blocks of ``w_ih`` and ``b_ih`` and U and d those of ``w_hh`` and ``b_hh``::

        r, z = gate(W_r x + b_r + U_r h + d_r), gate(W_z x + b_z + U_z h + d_z)
        n = candidate(W_n x + b_n + r * (U_n h + d_n))     (reset_after: as torch, cuDNN)
        n = candidate(W_n x + b_n + U_n (r * h) + d_n)     (else: Cho et al. 2014)
        h' = (1 - z) * n + z * h

    Gradients are differentiable twice.

    Args:
        input: ``[T, N, I]``; or, with ``batch_sizes``, the rows ``[sum of batch_sizes, I]`` of a ``PackedSequence``.
        h0: ``[N, H]``.
        w_ih: ``[3 * H, I]``, blocks for r, z and n.
        w_hh: ``[3 * H, H]``, likewise.
        b_ih: ``[3 * H]``, likewise; None for 0.
        b_hh: ``[3 * H]``, likewise; None for 0.
        batch_sizes: ``[T]``, as in a ``PackedSequence``; None for padded input.
        lengths: ``[N]``, the steps of each sample, from 0 to T, in any order; None for T. Outputs beyond are 0.
        reverse: whether each sample begins with its own last step.
        memory_efficient: as of :func:`lstm`.
        reset_after: whether r is applied after the product with ``w_hh``, or to h before it.
        zoneout_h: d, the share of the old h kept: ``h'' = d * h + (1 - d) * h'``; of every step, ``[T, N, H]`` or
            ``[sum of batch_sizes, H]``, or of all alike, ``[H]``. None for 0.
        gate_activation: of r and z, one of :data:`GATE_ACTIVATIONS`.
        candidate_activation: of n, likewise.

    Returns:
        The outputs, ``[T, N, H]`` or ``[sum of batch_sizes, H]``, and h after the last steps, ``[N, H]``.

    Raises:
        ValueError: for lengths below 0 or above T, or an unknown activation.
        RuntimeError: for shapes, types or devices that do not go together.

    Formula: Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder".
    """
    cell = _cell(_GRU if reset_after else _RESET, gate_activation, candidate_activation)
    return _without_c(
        input, h0, w_ih, w_hh, b_ih, b_hh, zoneout_h, batch_sizes, lengths, reverse, memory_efficient, cell
    )


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    reset_after: bool = True,
    zoneout_h: Tensor | None = None,
    gate_activation: str = "sigmoid",
    candidate_activation: str = "tanh",
) -> Tensor:
    """One step of gated recurrent units, as ``torch.gru_cell``; :func:`gru` of one step.

    Args:
        input: x, ``[N, I]``.
        hx: h, ``[N, H]``.
        w_ih: ``[3H, I]``, the blocks of r, z, n in this order.
        w_hh: ``[3H, H]``, likewise.
        b_ih: ``[3H]``, likewise; None for none.
        b_hh: ``[3H]``, likewise; None for none.
        reset_after: as of :func:`gru`, and so are all that follow.
        zoneout_h: ``[N, H]``, ``[H]`` or None.
        gate_activation: of r and z.
        candidate_activation: of n.

    Returns:
        h', ``[N, H]``.

    Raises:
        ValueError: for an unknown activation.
        RuntimeError: for shapes, types or devices that do not go together.
    """
    _, h = gru(
        input.unsqueeze(0),
        hx,
        w_ih,
        w_hh,
        b_ih,
        b_hh,
        reset_after=reset_after,
        zoneout_h=_one_step(zoneout_h),
        gate_activation=gate_activation,
        candidate_activation=candidate_activation,
    )
    return h


def rnn(
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    memory_efficient: bool = False,
    nonlinearity: str = "tanh",
    zoneout_h: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One layer of a simple recurrent network in one direction, over whole sequences.

    ``h' = nonlinearity(x w_ih^T + b_ih + h w_hh^T + b_hh)``. Gradients are differentiable twice.

    Args:
        input: ``[T, N, I]``; or, with ``batch_sizes``, the rows ``[sum of batch_sizes, I]`` of a ``PackedSequence``.
        h0: ``[N, H]``.
        w_ih: ``[H, I]``.
        w_hh: ``[H, H]``.
        b_ih: ``[H]``; None for 0.
        b_hh: ``[H]``; None for 0.
        batch_sizes: ``[T]``, as in a ``PackedSequence``; None for padded input.
        lengths: ``[N]``, the steps of each sample, from 0 to T, in any order; None for T. Outputs beyond are 0.
        reverse: whether each sample begins with its own last step.
        memory_efficient: as of :func:`lstm`.
        nonlinearity: one of :data:`GATE_ACTIVATIONS`; torch's are ``tanh`` and ``relu``.
        zoneout_h: d, the share of the old h kept: ``h'' = d * h + (1 - d) * h'``; of every step, ``[T, N, H]`` or
            ``[sum of batch_sizes, H]``, or of all alike, ``[H]``. None for 0.

    Returns:
        The outputs, ``[T, N, H]`` or ``[sum of batch_sizes, H]``, and h after the last steps, ``[N, H]``.

    Raises:
        ValueError: for lengths below 0 or above T, or an unknown nonlinearity.
        RuntimeError: for shapes, types or devices that do not go together.

    Formula: Elman 1990, "Finding structure in time".
    """
    cell = _cell(_RNN, candidate=nonlinearity, candidate_argument="nonlinearity")
    return _without_c(
        input, h0, w_ih, w_hh, b_ih, b_hh, zoneout_h, batch_sizes, lengths, reverse, memory_efficient, cell
    )


def rnn_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    zoneout_h: Tensor | None = None,
) -> Tensor:
    """One step of a simple recurrent network, as ``torch.rnn_tanh_cell``; :func:`rnn` of one step.

    Args:
        input: x, ``[N, I]``.
        hx: h, ``[N, H]``.
        w_ih: ``[H, I]``.
        w_hh: ``[H, H]``.
        b_ih: ``[H]``; None for none.
        b_hh: ``[H]``; None for none.
        nonlinearity: as of :func:`rnn`, and so is what follows.
        zoneout_h: ``[N, H]``, ``[H]`` or None.

    Returns:
        h', ``[N, H]``.

    Raises:
        ValueError: for an unknown nonlinearity.
        RuntimeError: for shapes, types or devices that do not go together.
    """
    zoneout = _one_step(zoneout_h)
    return rnn(input.unsqueeze(0), hx, w_ih, w_hh, b_ih, b_hh, nonlinearity=nonlinearity, zoneout_h=zoneout)[1]


def mut(
    variant: int,
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None = None,
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    memory_efficient: bool = False,
    zoneout_h: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One layer of MUT1, MUT2 or MUT3 in one direction, over whole sequences.

    With W the blocks of ``w_ih``, U those of ``w_hh`` and b those of ``bias``::

        MUT1  r = sigmoid(W_r x + U_r h + b_r)    z = sigmoid(W_z x + b_z)
              n = tanh(tanh(x) + U_n (r * h) + b_n)
        MUT2  r = sigmoid(x + U_r h + b_r)        z = sigmoid(W_z x + U_z h + b_z)
              n = tanh(W_n x + U_n (r * h) + b_n)
        MUT3  r = sigmoid(W_r x + U_r h + b_r)    z = sigmoid(W_z x + U_z tanh(h) + b_z)
              n = tanh(W_n x + U_n (r * h) + b_n)
        h' = z * n + (1 - z) * h

    Gradients are differentiable twice.

    Args:
        variant: 1, 2 or 3.
        input: ``[T, N, I]``; or, with ``batch_sizes``, the rows ``[sum of batch_sizes, I]`` of a ``PackedSequence``.
            I is H for MUT1 and MUT2, where x enters as it is.
        h0: ``[N, H]``.
        w_ih: of MUT1 ``[2 * H, I]``, blocks for r and z; of MUT2 ``[2 * H, I]``, for z and n; of MUT3 ``[3 * H, I]``,
            for r, z and n.
        w_hh: of MUT1 ``[2 * H, H]``, blocks for r and n; of the others ``[3 * H, H]``, for r, z and n.
        bias: ``[3 * H]``, blocks for r, z and n; None for 0.
        batch_sizes: ``[T]``, as in a ``PackedSequence``; None for padded input.
        lengths: ``[N]``, the steps of each sample, from 0 to T, in any order; None for T. Outputs beyond are 0.
        reverse: whether each sample begins with its own last step.
        memory_efficient: as of :func:`lstm`.
        zoneout_h: d, the share of the old h kept: ``h'' = d * h + (1 - d) * h'``; of every step, ``[T, N, H]`` or
            ``[sum of batch_sizes, H]``, or of all alike, ``[H]``. None for 0.

    Returns:
        The outputs, ``[T, N, H]`` or ``[sum of batch_sizes, H]``, and h after the last steps, ``[N, H]``.

    Raises:
        ValueError: for another variant, or lengths below 0 or above T.
        RuntimeError: for shapes, types or devices that do not go together.

    Formulas: Jozefowicz et al. 2015, "An Empirical Exploration of Recurrent Network Architectures".
    """
    if variant not in (1, 2, 3):
        raise ValueError(f"variant must be 1, 2 or 3, got {variant!r}")
    cell = _cell(_RESET, z_takes=True, z_sees_h=variant != 1, z_sees_tanh_h=variant == 3)
    if variant == 3:
        return _without_c(
            input, h0, w_ih, w_hh, bias, None, zoneout_h, batch_sizes, lengths, reverse, memory_efficient, cell
        )
    hidden = w_hh.size(1)
    if input.size(-1) != hidden:
        raise RuntimeError(f"mut: MUT{variant} takes inputs of w_hh's {hidden} units, got {input.size(-1)}")
    x = _without_padding(input, lengths)
    first = 2 * hidden if variant == 1 else hidden
    of_projected, of_alone = (None, None) if bias is None else (bias[:first], bias[first:])
    if variant == 2:
        of_projected, of_alone = of_alone, of_projected
    projected, alone = F.linear(x, w_ih, of_projected), torch.tanh(x) if variant == 1 else x
    alone = alone if of_alone is None else alone + of_alone
    made = torch.cat([projected, alone] if variant == 1 else [alone, projected], -1)
    return _without_c(
        made, h0, None, w_hh, None, None, zoneout_h, batch_sizes, lengths, reverse, memory_efficient, cell
    )


def mut_cell(
    variant: int,
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None = None,
    *,
    zoneout_h: Tensor | None = None,
) -> Tensor:
    """One step of MUT1, MUT2 or MUT3; :func:`mut` of one step.

    Args:
        variant: 1, 2 or 3.
        input: x, ``[N, I]``.
        hx: h, ``[N, H]``.
        w_ih: as of :func:`mut`, and so are the two that follow.
        w_hh: ``[2H, H]`` or ``[3H, H]``.
        bias: ``[3H]`` or None.
        zoneout_h: ``[N, H]``, ``[H]`` or None.

    Returns:
        h', ``[N, H]``.

    Raises:
        ValueError: for another variant.
        RuntimeError: for shapes, types or devices that do not go together.
    """
    return mut(variant, input.unsqueeze(0), hx, w_ih, w_hh, bias, zoneout_h=_one_step(zoneout_h))[1]
