"""Recurrent layers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastnn import functional

_State = tuple[Tensor, Tensor]


class LSTM(torch.nn.LSTM):
    """``torch.nn.LSTM`` computed by :func:`fastnn.functional.lstm`, with torch's arguments, parameters and errors.

    Beside torch's arguments ``forward`` takes ``lengths``, for padded batches of sequences that differ in length; they
    need not be sorted. Outputs beyond a sequence's length are 0, its last state is that after its own last step, and
    the reverse direction begins there. Gradients are differentiable twice.

    Shape:
        As torch's: ``[T, N, I]``, ``[N, T, I]`` with ``batch_first``, ``[T, I]`` for one sequence, or a
        ``PackedSequence``.
    """

    def forward(
        self, input: Tensor | PackedSequence, hx: _State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, _State]:
        """See the class.

        Args:
            input: the sequences.
            hx: ``(h_0, c_0)``, each ``[layers * directions, N, H]`` (``h_0`` of ``proj_size`` where there is one),
                without N for one sequence; None for zeros.
            lengths: ``[N]``, integers from 0 to T; None where all sequences have T steps. Not with a
                ``PackedSequence`` or a single sequence.

        Returns:
            The outputs of the last layer, as the input, and ``(h_n, c_n)``, as ``hx``.

        Raises:
            ValueError: for an input that is neither two- nor three-dimensional, of another type than the weights, or
                for lengths out of range or beside a ``PackedSequence``.
            RuntimeError: for sizes that do not go together.
        """
        self._update_flat_weights()
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("LSTM: got lengths beside a PackedSequence, which has its own")
            data, batch_sizes, sorted_indices, unsorted_indices = input
            hx = self._zeros(data, int(batch_sizes[0])) if hx is None else self.permute_hidden(hx, sorted_indices)
            self.check_forward_args(data, hx, batch_sizes)
            output, hidden = self._run(data, hx, batch_sizes, None)
            packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
            return packed, self.permute_hidden(hidden, unsorted_indices)
        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        if not batched:
            if lengths is not None:
                raise ValueError("LSTM: got lengths for a single sequence; it has its own")
            input = input.unsqueeze(0 if self.batch_first else 1)
        if hx is None:
            hx = self._zeros(input, input.size(0 if self.batch_first else 1))
        else:
            dim, said = (3, "batched 3-D") if batched else (2, "unbatched 2-D")
            if hx[0].dim() != dim or hx[1].dim() != dim:
                raise RuntimeError(
                    f"For {said} input, hx and cx should also be {dim}-D but got ({hx[0].dim()}-D, {hx[1].dim()}-D) "
                    "tensors"
                )
            if not batched:
                hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        self.check_forward_args(input, hx, None)
        output, hidden = self._run(input.transpose(0, 1) if self.batch_first else input, hx, None, lengths)
        if self.batch_first:
            output = output.transpose(0, 1)
        if not batched:
            return output.squeeze(0 if self.batch_first else 1), (hidden[0].squeeze(1), hidden[1].squeeze(1))
        return output, hidden

    def _zeros(self, like: Tensor, batch: int) -> _State:
        states = self.num_layers * (2 if self.bidirectional else 1)
        h = like.new_zeros(states, batch, self.proj_size or self.hidden_size)
        return h, h if not self.proj_size else like.new_zeros(states, batch, self.hidden_size)

    def _run(
        self, input: Tensor, hx: _State, batch_sizes: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, _State]:
        """All layers, of ``[T, N, I]`` or packed rows."""
        directions = 2 if self.bidirectional else 1
        last: list[_State] = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                input = torch.nn.functional.dropout(input, self.dropout, self.training)
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                names = self._all_weights[index]
                weights = {name.rsplit("_l", 1)[0]: getattr(self, name) for name in names}
                output, h, c = functional.lstm(
                    input,
                    (hx[0][index], hx[1][index]),
                    weights["weight_ih"],
                    weights["weight_hh"],
                    weights.get("bias_ih"),
                    weights.get("bias_hh"),
                    weights.get("weight_hr"),
                    batch_sizes=batch_sizes,
                    lengths=lengths,
                    reverse=direction == 1,
                )
                outputs.append(output)
                last.append((h, c))
            input = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        return input, (torch.stack([h for h, _ in last]), torch.stack([c for _, c in last]))


class LSTMCell(torch.nn.LSTMCell):
    """``torch.nn.LSTMCell`` computed by :func:`fastnn.functional.lstm_cell`, with torch's arguments and errors.

    Shape:
        input ``[N, I]`` or ``[I]``, and a pair of ``[N, H]`` or ``[H]`` (None for zeros), to a pair of the
        same.
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See the class.

        Raises:
            ValueError: for an input or a state that is neither one- nor two-dimensional.
            RuntimeError: for sizes, types or devices that do not go together.
        """
        if input.dim() not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        for index, state in enumerate(() if hx is None else hx):
            if state.dim() not in (1, 2):
                raise ValueError(f"LSTMCell: Expected hx[{index}] to be 1D or 2D, got {state.dim()}D instead")
        batched = input.dim() == 2
        if not batched:
            input = input.unsqueeze(0)
        if hx is None:
            zeros = torch.zeros(input.size(0), self.hidden_size, dtype=input.dtype, device=input.device)
            hx = (zeros, zeros)
        elif not batched:
            hx = (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        h, c = functional.lstm_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return (h, c) if batched else (h.squeeze(0), c.squeeze(0))
