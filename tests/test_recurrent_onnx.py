"""ONNX's LSTM, GRU and RNN operators, in numpy as their documentation defines them, against fastnn's functions.

A second oracle, with another order of gates, other layouts of weights and other words for the same options
(https://onnx.ai/onnx/operators/: LSTM, GRU, RNN). ``clip`` is not among them. Which gate follows which under
``input_forget`` the documentation does not say; here ``i = 1 - f``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastnn import functional as F

ACTIVATIONS = {
    "Relu": ("relu", lambda x: np.maximum(x, 0)),
    "Tanh": ("tanh", lambda x: (1 - np.exp(-2 * x)) / (1 + np.exp(-2 * x))),
    "Sigmoid": ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    "Softsign": ("softsign", lambda x: x / (1 + np.abs(x))),
    # With activation_alpha = 1 / 6 and activation_beta = 1 / 2, which are torch's numbers.
    "HardSigmoid": ("hard_sigmoid", lambda x: np.minimum(np.maximum(x / 6 + 0.5, 0), 1)),
    # Affine with alpha = 1, beta = 0.
    "Affine": ("identity", lambda x: x),
}


# ---- the operators ------------------------------------------------------------------------------------------


def steps_of(length: int, backwards: bool) -> list[int]:
    return list(range(length))[::-1] if backwards else list(range(length))


def run(step, X, states, sequence_lens, direction: str):
    """Y [seq_length, num_directions, batch_size, hidden_size], and each last state, of the directions."""
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    seq_length, batch_size, _ = X.shape
    Y = np.zeros((seq_length, len(backwards), batch_size, states[0].shape[-1]))
    last = [state.copy() for state in states]
    for d, back in enumerate(backwards):
        for n in range(batch_size):
            now = [state[d, n] for state in states]
            for t in steps_of(sequence_lens[n], back):
                now = step(d, X[t, n], *now)
                Y[t, d, n] = now[0]
            for k, state in enumerate(now):
                last[k][d, n] = state
    return Y, *last


def onnx_lstm(X, W, R, B, sequence_lens, initial_h, initial_c, P, activations, direction, input_forget):
    """W [num_directions, 4 * hidden_size, input_size] of i, o, f, c; R likewise; B of both; P of i, o, f."""
    f, g, h = (ACTIVATIONS[name][1] for name in activations)

    def step(d, Xt, Ht_1, Ct_1):
        Wi, Wo, Wf, Wc = np.split(W[d], 4)
        Ri, Ro, Rf, Rc = np.split(R[d], 4)
        Wbi, Wbo, Wbf, Wbc, Rbi, Rbo, Rbf, Rbc = np.split(B[d], 8)
        Pi, Po, Pf = np.split(P[d], 3)
        it = f(Xt @ Wi.T + Ht_1 @ Ri.T + Pi * Ct_1 + Wbi + Rbi)
        ft = f(Xt @ Wf.T + Ht_1 @ Rf.T + Pf * Ct_1 + Wbf + Rbf)
        if input_forget:
            it = 1 - ft
        ct = g(Xt @ Wc.T + Ht_1 @ Rc.T + Wbc + Rbc)
        Ct = ft * Ct_1 + it * ct
        ot = f(Xt @ Wo.T + Ht_1 @ Ro.T + Po * Ct + Wbo + Rbo)
        return ot * h(Ct), Ct

    return run(step, X, [initial_h, initial_c], sequence_lens, direction)


def onnx_gru(X, W, R, B, sequence_lens, initial_h, activations, direction, linear_before_reset):
    """W [num_directions, 3 * hidden_size, input_size] of z, r, h; R likewise; B of both."""
    f, g = (ACTIVATIONS[name][1] for name in activations)

    def step(d, Xt, Ht_1):
        Wz, Wr, Wh = np.split(W[d], 3)
        Rz, Rr, Rh = np.split(R[d], 3)
        Wbz, Wbr, Wbh, Rbz, Rbr, Rbh = np.split(B[d], 6)
        zt = f(Xt @ Wz.T + Ht_1 @ Rz.T + Wbz + Rbz)
        rt = f(Xt @ Wr.T + Ht_1 @ Rr.T + Wbr + Rbr)
        if linear_before_reset:
            ht = g(Xt @ Wh.T + rt * (Ht_1 @ Rh.T + Rbh) + Wbh)
        else:
            ht = g(Xt @ Wh.T + (rt * Ht_1) @ Rh.T + Rbh + Wbh)
        return ((1 - zt) * ht + zt * Ht_1,)

    return run(step, X, [initial_h], sequence_lens, direction)


def onnx_rnn(X, W, R, B, sequence_lens, initial_h, activation, direction):
    """W [num_directions, hidden_size, input_size]; R likewise; B of both."""
    f = ACTIVATIONS[activation][1]

    def step(d, Xt, Ht_1):
        Wbi, Rbi = np.split(B[d], 2)
        return (f(Xt @ W[d].T + Ht_1 @ R[d].T + Wbi + Rbi),)

    return run(step, X, [initial_h], sequence_lens, direction)


# ---- the comparison -----------------------------------------------------------------------------------------

T, N, INPUTS, H = 6, 4, 3, 5
LENS = {"whole": [T] * N, "ragged": [3, 6, 1, 4]}
DIRECTIONS = ["forward", "reverse", "bidirectional"]
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
every_length = pytest.mark.parametrize("lens", list(LENS))


def inputs(gates: int, states: int, direction: str) -> tuple[np.ndarray, ...]:
    """X, W, R, B and the initial states."""
    random, d = np.random.default_rng(7), 1 + (direction == "bidirectional")
    sizes = [(T, N, INPUTS), (d, gates * H, INPUTS), (d, gates * H, H), (d, 2 * gates * H), *[(d, N, H)] * states]
    return tuple(random.standard_normal(size) / (1 if size[0] == T else 2) for size in sizes)


def reordered(stacked: np.ndarray, order: list[int], gates: int) -> torch.Tensor:
    """Blocks of H rows in another order."""
    blocks = np.split(stacked, gates)
    return torch.from_numpy(np.concatenate([blocks[k] for k in order]))


def check(ours, want, lens, direction, backend):
    """``ours`` of a direction's number and whether it reads backwards: y and the last states."""
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    Y, *last = want
    lengths = None if lens == "whole" else torch.tensor(LENS[lens])
    for d, back in enumerate(backwards):
        y, *states = ours(d, {"reverse": back, "lengths": lengths})
        np.testing.assert_allclose(y.cpu().numpy(), Y[:, d], rtol=1e-10, atol=1e-12)
        for actual, expected in zip(states, last, strict=True):
            np.testing.assert_allclose(actual.cpu().numpy(), expected[d], rtol=1e-10, atol=1e-12)


@every_direction
@every_length
@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("input_forget", [False, True])
@pytest.mark.parametrize(
    "activations", [("Sigmoid", "Tanh", "Tanh"), ("HardSigmoid", "Softsign", "Affine"), ("Sigmoid", "Relu", "Softsign")]
)
def test_lstm(activations, input_forget, peepholes, lens, direction, backend):
    X, W, R, B, h0, c0 = inputs(4, 2, direction)
    P = np.random.default_rng(8).standard_normal((len(W), 3 * H)) * peepholes
    want = onnx_lstm(X, W, R, B, LENS[lens], h0, c0, P, activations, direction, input_forget)
    i, o, f, c = range(4)
    order = [f, c, o] if input_forget else [i, f, c, o]
    gate, candidate, output = (ACTIVATIONS[name][0] for name in activations)

    def to(t):
        return (torch.from_numpy(t) if isinstance(t, np.ndarray) else t).to(backend.device)

    def ours(d, options):
        Wb, Rb = np.split(B[d], 2)
        weights = [to(reordered(w, order, 4)) for w in (W[d], R[d], Wb, Rb)]
        p_i, p_o, p_f = np.split(P[d], 3)
        peephole = to(np.stack([p_f, p_o] if input_forget else [p_i, p_f, p_o])) if peepholes else None
        return F.lstm(
            to(X),
            (to(h0[d]), to(c0[d])),
            *weights,
            coupled=input_forget,
            peephole=peephole,
            gate_activation=gate,
            candidate_activation=candidate,
            output_activation=output,
            **options,
        )

    check(ours, want, lens, direction, backend)


@every_direction
@every_length
@pytest.mark.parametrize("linear_before_reset", [False, True])
@pytest.mark.parametrize("activations", [("Sigmoid", "Tanh"), ("HardSigmoid", "Softsign"), ("Sigmoid", "Relu")])
def test_gru(activations, linear_before_reset, lens, direction, backend):
    X, W, R, B, h0 = inputs(3, 1, direction)
    want = onnx_gru(X, W, R, B, LENS[lens], h0, activations, direction, linear_before_reset)
    z, r, h = range(3)
    gate, candidate = (ACTIVATIONS[name][0] for name in activations)

    def ours(d, options):
        Wb, Rb = np.split(B[d], 2)
        weights = [reordered(w, [r, z, h], 3).to(backend.device) for w in (W[d], R[d], Wb, Rb)]
        return F.gru(
            *(torch.from_numpy(t).to(backend.device) for t in (X, h0[d])),
            *weights,
            reset_after=linear_before_reset,
            gate_activation=gate,
            candidate_activation=candidate,
            **options,
        )

    check(ours, want, lens, direction, backend)


@every_direction
@every_length
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_rnn(activation, lens, direction, backend):
    X, W, R, B, h0 = inputs(1, 1, direction)
    want = onnx_rnn(X, W, R, B, LENS[lens], h0, activation, direction)

    def ours(d, options):
        tensors = [torch.from_numpy(t).to(backend.device) for t in (X, h0[d], W[d], R[d], *np.split(B[d], 2))]
        return F.rnn(*tensors, nonlinearity=ACTIVATIONS[activation][0], **options)

    check(ours, want, lens, direction, backend)
