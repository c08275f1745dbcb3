"""Draws how far back a gradient reaches: ``python -m fastnn.demo.gradients FILE.svg``.

Of each cell, the gradient of a fixed random projection of the last state with respect to the state of each earlier
step, its norm divided by that at the end. In a simple recurrent network it is a product of matrices that shrinks with
every factor (Hochreiter 1991; Bengio et al. 1994); an LSTM whose forget gate is open hands it on as it is (Hochreiter
and Schmidhuber 1997), which is why a forget gate's bias begins above 0 (Gers et al. 2000; Jozefowicz et al. 2015).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from torch import Tensor

from fastnn import nn

STEPS, SAMPLES, INPUTS, HIDDEN = 200, 16, 8, 32
OPEN = 30.0  # a bias with which a sigmoid is 1 to the last bit


def cells(seed: int = 0) -> dict[str, torch.nn.Module]:
    """The cells that are drawn, with torch's initial weights; by the names in the legend."""
    torch.manual_seed(seed)
    carousel = nn.LSTMCell(INPUTS, HIDDEN, forget_bias=OPEN)
    with torch.no_grad():
        # Nothing but the carousel: gates do not see the state, or its gradient would come back through them as well.
        carousel.weight_hh.zero_()
        carousel.weight_ih[HIDDEN : 2 * HIDDEN].zero_()
    return {
        "RNN, tanh": nn.RNNCell(INPUTS, HIDDEN),
        "GRU": nn.GRUCell(INPUTS, HIDDEN),
        "LSTM, torch's initial biases": nn.LSTMCell(INPUTS, HIDDEN),
        "LSTM, forget_bias=1": nn.LSTMCell(INPUTS, HIDDEN, forget_bias=1.0),
        "LSTM, forget_bias=3": nn.LSTMCell(INPUTS, HIDDEN, forget_bias=3.0),
        "LSTM, f = 1": carousel,
    }


def norms(cell: torch.nn.Module, steps: int = STEPS, seed: int = 1) -> list[float]:
    """How much of a gradient is left after 0, 1, 2, ... steps back.

    Args:
        cell: a recurrent cell; of an LSTM's the state meant is c.
        steps: how many steps to go.
        seed: of the inputs and of what is differentiated.

    Returns:
        ``steps + 1`` norms, the first of them 1.
    """
    generator = torch.Generator().manual_seed(seed)
    cell = cell.double()
    inputs = torch.randn(steps, SAMPLES, cell.input_size, generator=generator, dtype=torch.float64)
    start = torch.zeros(SAMPLES, cell.hidden_size, dtype=torch.float64, requires_grad=True)
    is_lstm = isinstance(cell, torch.nn.LSTMCell)
    state: Tensor | tuple[Tensor, Tensor] = (torch.zeros_like(start), start) if is_lstm else start
    seen = [start]
    for x in inputs:
        state = cell(x, state)
        seen.append(state[1] if is_lstm else state)
    direction = torch.randn(seen[-1].shape, generator=generator, dtype=torch.float64)
    grads = torch.autograd.grad(seen[-1], seen, direction)
    found = [grad.norm(dim=1).mean().item() for grad in reversed(grads)]
    return [norm / found[0] for norm in found]


def draw(path: Path) -> None:
    """Writes the picture."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, cell in cells().items():
        axes.semilogy(norms(cell), label=name, linewidth=1.6)
    axes.set(xlabel="steps back", ylabel="norm of the gradient, of that at the end", ylim=(1e-16, 10), xlim=(0, STEPS))
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.85))
    axes.grid(alpha=0.3)
    # Text as text, and nothing of when and where: the same picture is the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastnn", "path.simplify_threshold": 0.2}):
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None, "Creator": None})


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    if len(arguments) != 1 or not arguments[0].endswith(".svg"):
        print("usage: python -m fastnn.demo.gradients FILE.svg", file=sys.stderr)
        return 2
    draw(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
