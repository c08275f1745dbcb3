"""Recurrent cells: one step of the layers of :mod:`fastnn.nn.rnn`."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from fastnn import functional
from fastnn.nn.recurrent import RecurrentCell
from fastnn.nn.recurrent_options import (
    TORCH_NONLINEARITIES,
    GRUOptions,
    LSTMOptions,
    MUTOptions,
    RNNOptions,
    check_activation,
)


class LSTMCell(RecurrentCell, torch.nn.LSTMCell):
    """``torch.nn.LSTMCell`` computed by :func:`fastnn.functional.lstm_cell`, with torch's arguments and errors.

    Args:
        *args: as of ``torch.nn.LSTMCell``.
        peephole: as of :class:`fastnn.nn.LSTM`, and so are all that follow. Parameters have the same names without
            ``_l0``.
        peephole_previous: whether o sees c before the step.
        coupled: whether ``1 - f`` stands for the input gate.
        layer_norm: whether products and c are normalised.
        zoneout: the share of units that keep their old state.
        weight_dropout: of ``weight_hh``, anew in every step, since each is a forward pass of its own.
        forget_bias: what the forget gate's biases add up to at first.
        gate_activation: of i, f and o.
        candidate_activation: of g.
        output_activation: of c.
        **kwargs: as of ``torch.nn.LSTMCell``.

    Raises:
        ValueError: for an option out of range.

    Shape:
        input ``[N, I]`` or ``[I]``, and a pair of ``[N, H]`` or ``[H]`` (None for zeros), to a pair of the
        same.
    """

    cell_options = LSTMOptions()
    _compute = staticmethod(functional.lstm_cell)

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
            )
        )

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See the class.

        Raises:
            ValueError: for an input or a state that is neither one- nor two-dimensional.
            RuntimeError: for sizes, types or devices that do not go together.
        """
        batch, states = self._batched_states(input, hx, ("hx[0]", "hx[1]"))
        h, c = self._call_compute(batch, states)
        return (h, c) if input.dim() == 2 else (h.squeeze(0), c.squeeze(0))


class _HiddenCell(RecurrentCell):
    """A cell whose state is h alone."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step.

        Args:
            input: ``[N, I]``, or ``[I]`` of one sample.
            hx: h, ``[N, H]`` or ``[H]``; None for zeros.

        Returns:
            The new h, ``[N, H]`` or ``[H]``.

        Raises:
            ValueError: for an input or a state that is neither one- nor two-dimensional.
            RuntimeError: for sizes, types or devices that do not go together.
        """
        batch, states = self._batched_states(input, None if hx is None else (hx,), ("hidden",))
        h = self._call_compute(batch, states)
        return h if input.dim() == 2 else h.squeeze(0)


class GRUCell(_HiddenCell, torch.nn.GRUCell):
    """``torch.nn.GRUCell`` computed by :func:`fastnn.functional.gru_cell`, with torch's arguments and errors.

    Args:
        *args: as of ``torch.nn.GRUCell``.
        reset_after: as of :class:`fastnn.nn.GRU`, and so are all that follow.
        zoneout: the share of units that keep their old state.
        weight_dropout: of ``weight_hh``, anew in every step.
        gate_activation: of r and z.
        candidate_activation: of n.
        **kwargs: as of ``torch.nn.GRUCell``.

    Raises:
        ValueError: for an option out of range.

    Shape:
        input ``[N, I]`` or ``[I]``, and ``[N, H]`` or ``[H]`` (None for zeros), to the same.
    """

    cell_options = GRUOptions()
    _compute = staticmethod(functional.gru_cell)

    def __init__(
        self,
        *args: Any,
        reset_after: bool = True,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        gate_activation: str = "sigmoid",
        candidate_activation: str = "tanh",
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
            )
        )


class RNNCell(_HiddenCell, torch.nn.RNNCell):
    """``torch.nn.RNNCell`` computed by :func:`fastnn.functional.rnn_cell`, with torch's arguments and errors.

    Args:
        input_size: as of ``torch.nn.RNNCell``.
        hidden_size: likewise.
        bias: likewise.
        nonlinearity: ``tanh`` or ``relu``, which torch has, or another of ``fastnn.functional.GATE_ACTIVATIONS``.
        *args: as of ``torch.nn.RNNCell``.
        zoneout: as of :class:`fastnn.nn.RNN`.
        weight_dropout: of ``weight_hh``, anew in every step.
        **kwargs: as of ``torch.nn.RNNCell``.

    Raises:
        ValueError: for an option out of range.

    Shape:
        input ``[N, I]`` or ``[I]``, and ``[N, H]`` or ``[H]`` (None for zeros), to the same.
    """

    cell_options = RNNOptions()
    _compute = staticmethod(functional.rnn_cell)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *args: Any,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_activation("nonlinearity", nonlinearity)
        super().__init__(input_size, hidden_size, bias, nonlinearity, *args, **kwargs)
        self._take_options(RNNOptions(zoneout=zoneout, weight_dropout=weight_dropout))

    @property
    def is_plain(self) -> bool:
        """Whether torch's cell of the same name computes the same."""
        return super().is_plain and self.nonlinearity in TORCH_NONLINEARITIES

    def _call_compute(self, *args: Any, **others: Any) -> Any:
        return super()._call_compute(*args, nonlinearity=self.nonlinearity, **others)


class _MUTCell(_HiddenCell):
    _compute = staticmethod(functional.mut_cell)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self._take_options(dataclasses.replace(self.cell_options, zoneout=zoneout, weight_dropout=weight_dropout))


class MUT1Cell(_MUTCell):
    """One step of :class:`fastnn.nn.MUT1`, by :func:`fastnn.functional.mut_cell`.

    Args:
        input_size: inputs; as many as ``hidden_size``.
        hidden_size: units, H.
        bias: whether there is ``bias_ih``.
        device: where the weights are made.
        dtype: their type.
        zoneout: as of :class:`fastnn.nn.MUT1`.
        weight_dropout: of ``weight_hh``, anew in every step.

    Raises:
        ValueError: for sizes that differ, or an option out of range.

    Shape:
        input ``[N, I]`` or ``[I]``, and ``[N, H]`` or ``[H]`` (None for zeros), to the same.
    """

    cell_options = MUTOptions(variant=1)


class MUT2Cell(_MUTCell):
    """One step of :class:`fastnn.nn.MUT2`; see :class:`MUT1Cell`, also for the arguments."""

    cell_options = MUTOptions(variant=2)


class MUT3Cell(_MUTCell):
    """One step of :class:`fastnn.nn.MUT3`; see :class:`MUT1Cell`, also for the arguments. Sizes may differ."""

    cell_options = MUTOptions(variant=3)
