"""torch's recurrent layers in float64 and fastnn's with the same weights, and how the two are compared."""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import PackedSequence

import fastnn

ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}
LENGTHS = [[5, 3, 1], [2, 5, 4, 5], [1], [3, 3], [7, 1, 1, 6, 2, 7, 3, 4, 5]]
# Hidden sizes on both sides of a vector of units, batches on both sides of a tile of samples.
SIZES = [(7, 3, 5, 4), (1, 1, 1, 1), (4, 9, 6, 16), (5, 17, 3, 33), (4, 2, 40, 130), (2, 64, 8, 24), (4, 71, 3, 17)]


def pair(options, inputs=5, hidden=4, dtype=torch.float64, device="cpu", layer="LSTM"):
    """torch's layer in float64 and fastnn's with the same weights, rounded."""
    torch.manual_seed(1)
    stock = getattr(torch.nn, layer)(inputs, hidden, **options).to(device)
    ours = getattr(fastnn.nn, layer)(inputs, hidden, **options).to(device, dtype)
    ours.load_state_dict(stock.state_dict())
    stock = stock.double()
    stock.load_state_dict(ours.state_dict())
    return stock, ours


def batch_of(time, samples, inputs, batch_first=False, dtype=torch.float64, device="cpu"):
    x = torch.randn(time, samples, inputs, generator=torch.Generator().manual_seed(2)).to(device, dtype)
    return x.transpose(0, 1).contiguous() if batch_first else x


def states_of(layer, samples, dtype, device="cpu"):
    """One state, or of an LSTM two."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    generator = torch.Generator().manual_seed(3)
    sizes = (layer.proj_size or layer.hidden_size, layer.hidden_size)
    states = tuple(torch.randn(count, samples, size, generator=generator).to(device, dtype) for size in sizes)
    return states if isinstance(layer, torch.nn.LSTM) else states[1:]


def hidden_of(layer, states):
    """The states as the layer takes them."""
    return states if isinstance(layer, torch.nn.LSTM) else states[0]


def flat(result):
    """All tensors that a layer returned."""
    output, hidden, *cells = result
    states = [hidden] if isinstance(hidden, torch.Tensor) else [*hidden]
    return [t.data if isinstance(t, PackedSequence) else t for t in (output, *states, *cells)]


def compare(got, want, dtype, leaves, exact_leaves, ours, stock):
    """Outputs and gradients of everything, with random cotangents."""
    generator = torch.Generator().manual_seed(4)
    cotangents = [torch.randn(t.shape, generator=generator).to(t) for t in got]
    grads = torch.autograd.grad(got, [*leaves, *ours.parameters()], cotangents)
    exact = torch.autograd.grad(
        want, [*exact_leaves, *stock.parameters()], [t.to(w) for t, w in zip(cotangents, want, strict=True)]
    )
    close([*got, *grads], [*want, *exact], dtype)


def close(got, want, dtype, rounding=None):
    """Each within rounding of its tensor's greatest value."""
    for actual, expected in zip(got, want, strict=True):
        assert actual.dtype == dtype
        assert actual.shape == expected.shape
        scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
        torch.testing.assert_close(
            actual.double().cpu(), expected.cpu(), rtol=0, atol=(rounding or ROUNDING[dtype]) * scale
        )


def check(stock, ours, x, states=None, **options):
    """Outputs and gradients of a layer against torch's."""
    exact_x = x.detach().double()
    exact_states = None if states is None else tuple(t.detach().double() for t in states)
    leaves, exact_leaves = (
        [t.requires_grad_() for t in (a, *(b or ()))] for a, b in ((x, states), (exact_x, exact_states))
    )
    got = flat(ours(x, None if states is None else hidden_of(ours, states), **options))
    want = flat(stock(exact_x, None if states is None else hidden_of(stock, exact_states)))
    compare(got, want, x.dtype, leaves, exact_leaves, ours, stock)
