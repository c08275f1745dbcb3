"""Recurrent layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastnn import functional
from fastnn.nn.recurrent import RecurrentLayer
from fastnn.nn.recurrent_options import (
    TORCH_NONLINEARITIES,
    GRUOptions,
    LSTMOptions,
    MUTOptions,
    RNNOptions,
    check_activation,
)

_State = tuple[Tensor, Tensor]


class LSTM(RecurrentLayer, torch.nn.LSTM):
    """``torch.nn.LSTM`` computed by :func:`fastnn.functional.lstm`, with torch's arguments, parameters and errors.

    Beside torch's arguments ``forward`` takes ``lengths``, for padded batches of sequences that differ in length; they
    need not be sorted. Outputs beyond a sequence's length are 0, its last state is that after its own last step, and
    the reverse direction begins there. Gradients are differentiable twice.

    Options make it a variant, alone or together; a layer without any has torch's parameters and computes the same. The
    parameters that an option brings follow torch's names, as ``weight_ch_l0_reverse``.

    Args:
        *args: as of ``torch.nn.LSTM``.
        peephole: whether gates see the cell's state by diagonal weights (Gers and Schmidhuber 2000), the parameter
            ``weight_ch`` ``[3, H]`` of i, f and o: i and f the state before the step, o the one after it.
        peephole_previous: whether o sees the one before, too.
        coupled: whether ``1 - f`` stands for the input gate, so that ``c' = f * c + (1 - f) * g`` (Greff et al. 2017,
            who write it as ``f = 1 - i``). Weights then have three blocks, of f, g and o.
        layer_norm: whether ``x W_ih^T`` and ``h W_hh^T`` are normalised, over the gates of a sample together, with
            gains ``weight_norm_ih`` and ``weight_norm_hh``, and c where h sees it, with ``weight_norm_ch`` and
            ``bias_norm_ch`` (Ba et al. 2016).
        zoneout: the share of units that keep their old state in a step, from 0 to 1; a pair for h and for c (Krueger
            et al. 2017). In training at random, by torch's generator; in evaluation every unit keeps that share of
            its old state.
        weight_dropout: the probability with which an element of ``weight_hh`` is 0 for a whole forward pass, the
            others being scaled by ``1 / (1 - weight_dropout)``; in training alone (DropConnect, Merity et al. 2017).
        forget_bias: what the forget gate's biases add up to at first; None for torch's random ones.
        gate_activation: of i, f and o: one of ``fastnn.functional.GATE_ACTIVATIONS``.
        candidate_activation: of g, likewise.
        output_activation: of c, likewise.
        memory_efficient: whether backward makes the gates again and forward keeps none of them: what is kept of a step
            and unit is h, for one more forward pass. The bits are the same.
        **kwargs: as of ``torch.nn.LSTM``.

    Raises:
        ValueError: for an option out of range.

    Shape:
        As torch's: ``[T, N, I]``, ``[N, T, I]`` with ``batch_first``, ``[T, I]`` for one sequence, or a
        ``PackedSequence``.
    """

    cell_options = LSTMOptions()
    _compute = staticmethod(functional.lstm)
    _state_names = ("hx", "cx")

    def __init__(
        self,
        *args: Any,
        peephole: bool = False,
        peephole_previous: bool = False,
        coupled: bool = False,
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        weight_dropout: float = 0.0,
        forget_bias: float | None = None,
        gate_activation: str = "sigmoid",
        candidate_activation: str = "tanh",
        output_activation: str = "tanh",
        memory_efficient: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._take_options(
            LSTMOptions(
                peephole=peephole,
                peephole_previous=peephole_previous,
                coupled=coupled,
                layer_norm=layer_norm,
                zoneout=zoneout,
                weight_dropout=weight_dropout,
                forget_bias=forget_bias,
                gate_activation=gate_activation,
                candidate_activation=candidate_activation,
                output_activation=output_activation,
            ),
            memory_efficient,
        )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: _State | None = None,
        lengths: Tensor | None = None,
        return_cells: bool = False,
    ) -> tuple[Any, ...]:
        """See the class.

        Args:
            input: the sequences.
            hx: ``(h_0, c_0)``, each ``[layers * directions, N, H]`` (``h_0`` of ``proj_size`` where there is one),
                without N for one sequence; None for zeros.
            lengths: ``[N]``, integers from 0 to T; None where all sequences have T steps. Not with a
                ``PackedSequence`` or a single sequence.
            return_cells: whether the last layer's c of every step is returned too.

        Returns:
            The outputs of the last layer, as the input, and ``(h_n, c_n)``, as ``hx``; with ``return_cells`` also c of
            every step, like the outputs.

        Raises:
            ValueError: for an input that is neither two- nor three-dimensional, of another type than the weights, or
                for lengths out of range or beside a ``PackedSequence``.
            RuntimeError: for sizes that do not go together.
        """
        outputs, hidden = self._run_sequences(input, hx, lengths, return_cells=return_cells)
        return (outputs[0], hidden, *outputs[1:])

    def _zero_states(self, like: Tensor, batch: int) -> _State:
        c = super()._zero_states(like, batch)
        return c if not self.proj_size else like.new_zeros(c.size(0), batch, self.proj_size), c

    def _split_states(self, hx: _State) -> _State:
        return hx[0], hx[1]

    def _join_states(self, states: tuple[Tensor, ...]) -> Any:
        return states


class _HiddenLayer(RecurrentLayer):
    """A layer whose state is h alone."""

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """See the class.

        Args:
            input: the sequences.
            hx: h_0, ``[layers * directions, N, H]``, without N for one sequence; None for zeros.
            lengths: ``[N]``, integers from 0 to T; None where all sequences have T steps. Not with a
                ``PackedSequence`` or a single sequence.

        Returns:
            The outputs of the last layer, as the input, and h_n, as ``hx``.

        Raises:
            ValueError: for an input that is neither two- nor three-dimensional, of another type than the weights, or
                for lengths out of range or beside a ``PackedSequence``.
            RuntimeError: for sizes that do not go together.
        """
        outputs, hidden = self._run_sequences(input, hx, lengths)
        return outputs[0], hidden


class GRU(_HiddenLayer, torch.nn.GRU):
    """``torch.nn.GRU`` computed by :func:`fastnn.functional.gru`, with torch's arguments, parameters and errors.

    ``forward`` takes ``lengths`` beside torch's arguments, as :class:`LSTM`'s. Gradients are differentiable twice.

    Args:
        *args: as of ``torch.nn.GRU``.
        reset_after: whether the reset gate is applied after the product with ``weight_hh``, as torch does, or to h
            before it (Cho et al. 2014).
        zoneout: as of :class:`LSTM`, of h, and so are all that follow.
        weight_dropout: of ``weight_hh``.
        gate_activation: of r and z.
        candidate_activation: of n.
        memory_efficient: as of :class:`LSTM`.
        **kwargs: as of ``torch.nn.GRU``.

    Raises:
        ValueError: for an option out of range.

    Shape:
        As torch's: ``[T, N, I]``, ``[N, T, I]`` with ``batch_first``, ``[T, I]`` for one sequence, or a
        ``PackedSequence``.
    """

    cell_options = GRUOptions()
    _compute = staticmethod(functional.gru)

    def __init__(
        self,
        *args: Any,
        reset_after: bool = True,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        gate_activation: str = "sigmoid",
        candidate_activation: str = "tanh",
        memory_efficient: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._take_options(
            GRUOptions(
                reset_after=reset_after,
                zoneout=zoneout,
                weight_dropout=weight_dropout,
                gate_activation=gate_activation,
                candidate_activation=candidate_activation,
            ),
            memory_efficient,
        )


class RNN(_HiddenLayer, torch.nn.RNN):
    """``torch.nn.RNN`` computed by :func:`fastnn.functional.rnn`, with torch's arguments, parameters and errors.

    ``forward`` takes ``lengths`` beside torch's arguments, as :class:`LSTM`'s. Gradients are differentiable twice.

    Args:
        input_size: as of ``torch.nn.RNN``.
        hidden_size: likewise.
        num_layers: likewise.
        nonlinearity: ``tanh`` or ``relu``, which torch has, or another of ``fastnn.functional.GATE_ACTIVATIONS``.
        *args: as of ``torch.nn.RNN``.
        zoneout: as of :class:`LSTM`, of h.
        weight_dropout: likewise, of ``weight_hh``.
        memory_efficient: as of :class:`LSTM`.
        **kwargs: as of ``torch.nn.RNN``.

    Raises:
        ValueError: for an option out of range.

    Shape:
        As torch's: ``[T, N, I]``, ``[N, T, I]`` with ``batch_first``, ``[T, I]`` for one sequence, or a
        ``PackedSequence``.
    """

    cell_options = RNNOptions()
    _compute = staticmethod(functional.rnn)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        *args: Any,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        memory_efficient: bool = False,
        **kwargs: Any,
    ) -> None:
        check_activation("nonlinearity", nonlinearity)
        known = nonlinearity if nonlinearity in TORCH_NONLINEARITIES else "tanh"
        super().__init__(input_size, hidden_size, num_layers, known, *args, **kwargs)
        self.nonlinearity = nonlinearity
        self._take_options(RNNOptions(zoneout=zoneout, weight_dropout=weight_dropout), memory_efficient)

    @property
    def is_plain(self) -> bool:
        """Whether torch's layer of the same name computes the same."""
        return super().is_plain and self.nonlinearity in TORCH_NONLINEARITIES

    def extra_repr(self) -> str:
        """As torch's, which does not say the nonlinearity, and the options that are given."""
        other = self.nonlinearity not in TORCH_NONLINEARITIES
        return super().extra_repr() + (f", nonlinearity={self.nonlinearity}" if other else "")

    def _call_compute(self, *args: Any, **steps: Any) -> tuple[Tensor, ...]:
        return super()._call_compute(*args, nonlinearity=self.nonlinearity, **steps)


class _MUT(_HiddenLayer):
    _compute = staticmethod(functional.mut)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        memory_efficient: bool = False,
    ) -> None:
        sizes = (input_size, hidden_size, num_layers)
        others = {"dropout": dropout, "bidirectional": bidirectional, "device": device, "dtype": dtype}
        # torch's constructor checks the arguments, and knows torch's modes alone.
        super().__init__("GRU", *sizes, bias, batch_first, **others)
        self.mode = type(self).__name__
        options = dataclasses.replace(self.cell_options, zoneout=zoneout, weight_dropout=weight_dropout)
        self._take_options(options, memory_efficient)


class MUT1(_MUT):
    """The first of the cells that a search over thousands found (Jozefowicz et al. 2015), as a layer.

    ``z = sigmoid(W_z x + b_z)``, ``r = sigmoid(W_r x + U_r h + b_r)``, ``n = tanh(tanh(x) + U_n (r * h) + b_n)`` and
    ``h' = z * n + (1 - z) * h``, by :func:`fastnn.functional.mut`. Arguments, layers, directions, packed sequences and
    ``lengths`` are those of :class:`GRU`; there is one bias. Gradients are differentiable twice.

    Args:
        input_size: inputs of a step; as many as ``hidden_size``, since x enters as it is, and in each further layer,
            which therefore cannot follow two directions.
        hidden_size: units, H.
        num_layers: layers, each on the outputs of the one before.
        bias: whether there is ``bias_ih``.
        batch_first: whether sequences are ``[N, T, I]``.
        dropout: probability of dropout between layers, in training.
        bidirectional: whether each layer reads its sequences in both directions.
        device: where the weights are made.
        dtype: their type.
        zoneout: as of :class:`LSTM`, of h.
        weight_dropout: likewise, of ``weight_hh``.
        memory_efficient: as of :class:`LSTM`.

    Attributes:
        weight_ih_l0: ``[2 * H, I]``, blocks for r and z; ``weight_ih_l1_reverse`` and the like of the others.
        weight_hh_l0: ``[2 * H, H]``, blocks for r and n.
        bias_ih_l0: ``[3 * H]``, blocks for r, z and n.

    Raises:
        ValueError: for sizes that differ, or an option out of range.
    """

    cell_options = MUTOptions(variant=1)


class MUT2(_MUT):
    """The second of those cells, as a layer; see :class:`MUT1`, also for the arguments.

    ``z = sigmoid(W_z x + U_z h + b_z)``, ``r = sigmoid(x + U_r h + b_r)``, ``n = tanh(W_n x + U_n (r * h) + b_n)``.

    Attributes:
        weight_ih_l0: ``[2 * H, I]``, blocks for z and n.
        weight_hh_l0: ``[3 * H, H]``, blocks for r, z and n.
        bias_ih_l0: ``[3 * H]``, likewise.
    """

    cell_options = MUTOptions(variant=2)


class MUT3(_MUT):
    """The third of those cells, as a layer; see :class:`MUT1`, also for the arguments. Sizes may differ.

    ``z = sigmoid(W_z x + U_z tanh(h) + b_z)``, ``r = sigmoid(W_r x + U_r h + b_r)``,
    ``n = tanh(W_n x + U_n (r * h) + b_n)``.

    Attributes:
        weight_ih_l0: ``[3 * H, I]``, blocks for r, z and n.
        weight_hh_l0: ``[3 * H, H]``, likewise.
        bias_ih_l0: ``[3 * H]``, likewise.
    """

    cell_options = MUTOptions(variant=3)
