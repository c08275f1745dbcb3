"""Backward of a recurrence that is large enough to be taken by parts of its steps.

The same samples, a few at a time, are no such batch: gradients must be those that they give.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fastnn import functional as F

T, H = 101, 32
ROWS_OF_A_PART = (24 << 20) // (4 * H * 8)  # of an LSTM in float64
NORMS = {"norm_ih": (4 * H,), "norm_hh": (4 * H,), "norm_c_weight": (H,), "norm_c_bias": (H,)}

# The function, how many blocks w_ih has and w_hh, its biases, other parameters, and whether d is one of every step.
LAYERS = {
    "lstm": (F.lstm, 4, 4, (4, 4), {}, False),
    "lstm_cells": (partial(F.lstm, return_cells=True), 4, 4, (4,), {}, False),
    "peephole": (F.lstm, 4, 4, (), {"peephole": (3, H)}, False),
    "zoneout": (F.lstm, 4, 4, (4, 4), {}, True),
    "normalised": (F.lstm, 4, 4, (4, 4), NORMS, False),
    "gru": (F.gru, 3, 3, (3, 3), {}, True),
    "gru_cho": (partial(F.gru, reset_after=False), 3, 3, (3, 3), {}, False),
    "rnn": (F.rnn, 1, 1, (1, 1), {}, False),
    "mut3": (partial(F.mut, 3), 3, 3, (3,), {}, True),
}


def gradients(function, leaves, samples, reverse):
    """Of some samples: of their own inputs and states, and their part of those of the parameters."""
    own = {name: leaf[..., samples, :] for name, leaf in leaves.items() if name in ("x", "h0", "c0")}
    states = (own["h0"], own["c0"]) if "c0" in own else own["h0"]
    parameters = {name: leaf for name, leaf in leaves.items() if name not in ("x", "h0", "c0", "share")}
    weights = [parameters.pop(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh") if name in parameters]
    options = {"zoneout_h": leaves["share"][:, samples]} if "share" in leaves else {}
    outputs = function(own["x"], states, *weights, **parameters, **options, reverse=reverse)
    total = sum((out * out.detach().cos()).sum() for out in outputs)
    asked = {name: leaf for name, leaf in leaves.items() if name != "share"}
    return dict(zip(asked, torch.autograd.grad(total, tuple(asked.values())), strict=True))


@pytest.mark.parametrize(
    ("layer", "reverse"), [(layer, False) for layer in LAYERS] + [(layer, True) for layer in ("lstm", "gru")]
)
def test_gradients_are_those_of_a_few_samples_at_a_time(layer, reverse):
    function, of_x, of_h, biases, more, has_share = LAYERS[layer]
    generator = torch.Generator().manual_seed(len(layer) + reverse)
    N = 1000 if of_x > 1 else 3200
    sizes = {"x": (T, N, H), "h0": (N, H)}
    if function is F.lstm or layer == "lstm_cells":
        sizes["c0"] = (N, H)
    sizes |= {"w_ih": (of_x * H, H), "w_hh": (of_h * H, H)}
    sizes |= {name: (blocks * H,) for name, blocks in zip(("b_ih", "b_hh"), biases, strict=False)} | more
    leaves = {
        name: (
            torch.randn(size, dtype=torch.float64, generator=generator) / (H**0.5 if name[0] == "w" else 1)
        ).requires_grad_()
        for name, size in sizes.items()
    }
    if has_share:
        leaves["share"] = torch.rand(T, N, H, dtype=torch.float64, generator=generator)
    assert T * N * (1 if of_x == 1 else 4) > 3 * 4 * ROWS_OF_A_PART
    whole = gradients(function, leaves, slice(None), reverse)
    few = ROWS_OF_A_PART // T
    expected = [gradients(function, leaves, slice(n, n + few), reverse) for n in range(0, N, few)]
    for name, grad in whole.items():
        total = sum(part[name] for part in expected)
        torch.testing.assert_close(grad, total, rtol=1e-10, atol=1e-10 * float(total.abs().max()), msg=name)
