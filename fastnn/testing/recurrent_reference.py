"""Float64 oracles of recurrent cells and layers: one sample, one step after another, by the papers' formulas.

Every gate has its own small product; nothing is batched, stacked or stepped in reverse memory order as in what is
judged. Autograd through them gives first and second derivatives. Speed is of no account.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Step = Callable[..., tuple[Tensor, ...]]


def activation(name: str, x: Tensor) -> Tensor:
    """The activations of gates, candidates and outputs, by name."""
    below, above = x.new_tensor(0.0), x.new_tensor(1.0)
    return {
        "sigmoid": lambda: 1 / (1 + torch.exp(-x)),
        "hard_sigmoid": lambda: torch.maximum(torch.minimum(x / 6 + 0.5, above), below),
        "tanh": lambda: 1 - 2 / (torch.exp(2 * x) + 1),
        "hard_tanh": lambda: torch.maximum(torch.minimum(x, above), -above),
        "relu": lambda: torch.where(x <= 0, below, x),
        "softsign": lambda: x / (1 + x.abs()),
        "identity": lambda: x,
    }[name]()


def layer_norm(a: Tensor, gain: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """``LN(a) = gain * (a - mean) / sqrt(var + eps) + bias`` over the last dimension (Ba et al. 2016)."""
    centred = a - a.mean()
    normed = gain * centred / torch.sqrt((centred * centred).mean() + eps)
    return normed if bias is None else normed + bias


def _blocks(weights: Weights, name: str, order: str) -> dict[str, Tensor]:
    """The blocks of a stacked weight, by the letters of ``order``; zeros where there is none."""
    if weights.get(name) is None:
        return dict.fromkeys(order, torch.zeros((), dtype=torch.float64))
    return dict(zip(order, weights[name].chunk(len(order)), strict=True))


def lstm_step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Weights,
    *,
    coupled: bool = False,
    peephole_previous: bool = False,
    gate: str = "sigmoid",
    candidate: str = "tanh",
    output: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM of one sample.

    Args:
        x: [I].
        h: [H], or [P] where there is a projection.
        c: [H].
        weights: ``weight_ih`` and ``weight_hh`` with rows of i, f, g, o (f, g, o where coupled), and where there are,
            ``bias_ih``, ``bias_hh``, ``weight_hr`` [P, H], ``weight_ch`` (peepholes, rows i, f, o or f, o),
            ``weight_norm_ih``, ``weight_norm_hh``, ``weight_norm_ch`` and ``bias_norm_ch``.
        coupled: 1 - f for i.
        peephole_previous: the output gate sees c, not the new one.
        gate: activation of i, f and o.
        candidate: of g.
        output: of c.

    Returns:
        the new h and c.
    """
    order = "fgo" if coupled else "ifgo"
    of_x, of_h = weights["weight_ih"] @ x, weights["weight_hh"] @ h
    if "weight_norm_ih" in weights:
        of_x = layer_norm(of_x, weights["weight_norm_ih"])
        of_h = layer_norm(of_h, weights["weight_norm_hh"])
    b, d = _blocks(weights, "bias_ih", order), _blocks(weights, "bias_hh", order)
    of_x, of_h = (dict(zip(order, t.chunk(len(order)), strict=True)) for t in (of_x, of_h))
    a = {k: of_x[k] + b[k] + of_h[k] + d[k] for k in order}
    p = {k: v.squeeze(0) for k, v in _blocks(weights, "weight_ch", order.replace("g", "")).items() if v.dim()}
    f = activation(gate, a["f"] + p["f"] * c if p else a["f"])
    i = 1 - f if coupled else activation(gate, a["i"] + p["i"] * c if p else a["i"])
    new_c = f * c + i * activation(candidate, a["g"])
    o = activation(gate, a["o"] + p["o"] * (c if peephole_previous else new_c) if p else a["o"])
    seen = (
        layer_norm(new_c, weights["weight_norm_ch"], weights.get("bias_norm_ch"))
        if "weight_norm_ch" in weights
        else new_c
    )
    new_h = o * activation(output, seen)
    return weights["weight_hr"] @ new_h if "weight_hr" in weights else new_h, new_c


def gru_step(
    x: Tensor,
    h: Tensor,
    weights: Weights,
    *,
    reset_after: bool = True,
    gate: str = "sigmoid",
    candidate: str = "tanh",
) -> tuple[Tensor]:
    """One step of a GRU of one sample, as torch documents it, or as Cho et al. 2014 have it (``reset_after=False``).

    Args:
        x: [I].
        h: [H].
        weights: ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh`` with rows of r, z, n.
        reset_after: r * (U h + d), not U (r * h) + d.
        gate: activation of r and z.
        candidate: of n.
    """
    W, U = _blocks(weights, "weight_ih", "rzn"), _blocks(weights, "weight_hh", "rzn")
    b, d = _blocks(weights, "bias_ih", "rzn"), _blocks(weights, "bias_hh", "rzn")
    r, z = (activation(gate, W[k] @ x + b[k] + U[k] @ h + d[k]) for k in "rz")
    of_h = r * (U["n"] @ h + d["n"]) if reset_after else U["n"] @ (r * h) + d["n"]
    n = activation(candidate, W["n"] @ x + b["n"] + of_h)
    return ((1 - z) * n + z * h,)


def rnn_step(x: Tensor, h: Tensor, weights: Weights, *, nonlinearity: str = "tanh") -> tuple[Tensor]:
    """One step of a simple recurrent network of one sample (Elman 1990)."""
    a = weights["weight_ih"] @ x + weights["weight_hh"] @ h
    for name in ("bias_ih", "bias_hh"):
        a = a + weights[name] if weights.get(name) is not None else a
    return (activation(nonlinearity, a),)


def mut_step(x: Tensor, h: Tensor, weights: Weights, *, variant: int) -> tuple[Tensor]:
    """One step of MUT1, MUT2 or MUT3 of one sample, as Jozefowicz et al. 2015 print them.

    Args:
        x: [I].
        h: [H].
        weights: ``weight_ih`` with rows of r, z (MUT1), z, n (MUT2) or r, z, n (MUT3); ``weight_hh`` with rows of r, n
            (MUT1) or r, z, n; ``bias_ih`` with rows of r, z, n, or without.
        variant: 1, 2 or 3.
    """
    W = _blocks(weights, "weight_ih", {1: "rz", 2: "zn", 3: "rzn"}[variant])
    U = _blocks(weights, "weight_hh", "rn" if variant == 1 else "rzn")
    b = _blocks(weights, "bias_ih", "rzn")
    sigmoid, tanh = (lambda a, name=name: activation(name, a) for name in ("sigmoid", "tanh"))
    if variant == 1:
        z = sigmoid(W["z"] @ x + b["z"])
        r = sigmoid(W["r"] @ x + U["r"] @ h + b["r"])
        n = tanh(U["n"] @ (r * h) + tanh(x) + b["n"])
    elif variant == 2:
        z = sigmoid(W["z"] @ x + U["z"] @ h + b["z"])
        r = sigmoid(x + U["r"] @ h + b["r"])
        n = tanh(U["n"] @ (r * h) + W["n"] @ x + b["n"])
    else:
        z = sigmoid(W["z"] @ x + U["z"] @ tanh(h) + b["z"])
        r = sigmoid(W["r"] @ x + U["r"] @ h + b["r"])
        n = tanh(U["n"] @ (r * h) + W["n"] @ x + b["n"])
    return (n * z + h * (1 - z),)


def direction(
    step: Step,
    input: Tensor,
    states: Sequence[Tensor],
    lengths: Sequence[int],
    reverse: bool,
    zoneouts: Sequence[Tensor | None] = (),
) -> tuple[Tensor, list[Tensor], Tensor]:
    """One direction of one layer.

    Args:
        step: from x [I] and each state of a sample to the new states.
        input: [T, N, I].
        states: each [N, H].
        lengths: steps of each sample.
        reverse: whether a sample begins with its own last step.
        zoneouts: of each state the share of the old one that is kept, [T, N, H], or None (Krueger et al. 2017).

    Returns:
        h of every step [T, N, H], 0 beyond a sample's length; the last states; and the last of the states (c, where
        there is one) of every step.
    """
    outputs, seen, last = [], [], []
    for n, length in enumerate(lengths):
        current = [state[n] for state in states]
        first, every = {}, {}
        for t in reversed(range(length)) if reverse else range(length):
            new = step(input[t, n], *current)
            for k, d in enumerate(zoneouts):
                if d is not None:
                    new = (*new[:k], d[t, n] * current[k] + (1 - d[t, n]) * new[k], *new[k + 1 :])
            current = list(new)
            first[t], every[t] = new[0], new[-1]
        zeros = [torch.zeros_like(state[n]) for state in (states[0], states[-1])]
        outputs.append(torch.stack([first.get(t, zeros[0]) for t in range(len(input))]))
        seen.append(torch.stack([every.get(t, zeros[1]) for t in range(len(input))]))
        last.append(current)
    return torch.stack(outputs, 1), [torch.stack(each) for each in zip(*last, strict=True)], torch.stack(seen, 1)


def layers(
    steps: Sequence[Sequence[Step]],
    input: Tensor,
    states: Sequence[Tensor],
    lengths: Sequence[int] | None = None,
    zoneouts: Sequence[Sequence[Tensor | None]] | None = None,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Layers of one or two directions, each on the outputs of the one before.

    Args:
        steps: of each layer, of each direction (the second one reads backwards), what :func:`direction` takes.
        input: [T, N, I].
        states: each [layers * directions, N, H].
        lengths: steps of each sample; None for T.
        zoneouts: of each layer and direction, in one row, what :func:`direction` takes.

    Returns:
        the last layer's outputs [T, N, directions * H], the last states, as ``states``, and the last layer's last
        state of every step.
    """
    lengths = [len(input)] * input.shape[1] if lengths is None else lengths
    last: list[list[Tensor]] = []
    seen = []
    for of_layer in steps:
        outputs, seen = [], []
        for number, step in enumerate(of_layer):
            index = len(last)
            y, end, every = direction(
                step,
                input,
                [state[index] for state in states],
                lengths,
                number == 1,
                () if zoneouts is None else zoneouts[index],
            )
            outputs.append(y)
            seen.append(every)
            last.append(end)
        input = torch.cat(outputs, -1)
    return input, [torch.stack(each) for each in zip(*last, strict=True)], torch.cat(seen, -1)
