"""Recurrent layers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnn import functional


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
