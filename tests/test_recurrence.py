"""Recurrences over whole sequences against the float64 oracle and its bounds, case by case."""

from __future__ import annotations

import pytest
import torch
from op_tester import (
    check_gradient_subsets,
    check_repeatable,
    check_second_derivatives,
    check_values_and_gradients,
    grid,
    run,
    same_bits,
)

from fastnn import functional as F
from fastnn.testing.cases import RECURRENCE, RecurrenceCase

BY_ID = {case.id: case for case in RECURRENCE}
KINDS = {case.kind: case for case in RECURRENCE if case.id.endswith("_5x2x3x4")}


@grid(RECURRENCE, layouts=("contiguous", "transposed"))
def test_values_and_gradients(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid(
    [case for case in RECURRENCE if not case.id.endswith("few_steps")],
    dtypes=(torch.float32, torch.bfloat16),
    layouts=["contiguous"],
)
def test_same_bits_on_repeat(case, dtype, layout, backend):
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=False)


@grid(
    [case for case in RECURRENCE if case.steps > 3 and case.rows],
    dtypes=(torch.float64, torch.float32, torch.bfloat16),
    layouts=None,
)
def test_what_comes_out_does_not_depend_on_the_number_of_threads(case, dtype):
    """The gradients of weights and inputs are torch's products, which may."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(case, dtype, "contiguous", torch.device("cpu")))
    finally:
        torch.set_num_threads(before)
    for name in ("output", "h_n", "c_n", "gradient of h0", "gradient of c0"):
        assert all(same_bits(other.get(name), found[0].get(name)) for other in found), name


@grid(
    [case for case in RECURRENCE if case.small and case.values == "normal"],
    dtypes=(torch.float64, torch.float32),
    layouts=["contiguous"],
)
def test_second_derivatives(case, dtype, layout, backend):
    check_second_derivatives(case, dtype, layout, backend.device)


@grid(KINDS.values(), dtypes=[torch.float32], layouts=None)
def test_gradient_subsets(case, dtype, backend):
    check_gradient_subsets(case, dtype, backend.device)


LAYERS = {
    "lstm": (F.lstm, 4, ("h0", "c0"), {}),
    "projected": (F.lstm, 4, ("h0", "c0"), {"w_hr": (5, 5)}),
    "peephole": (F.lstm, 4, ("h0", "c0"), {"peephole": (3, 5)}),
    "gru": (F.gru, 3, ("h0",), {}),
    "rnn": (F.rnn, 1, ("h0",), {}),
}


@pytest.mark.parametrize(("steps", "samples", "lengths"), [(4, 0, False), (0, 3, False), (2, 0, True), (4, 3, True)])
@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_to_compute_has_derivatives(layer, steps, samples, lengths, backend):
    """No samples, no steps, or sequences of length 0 alone: states pass through, all other gradients are zeros."""
    function, gates, names, more = LAYERS[layer]
    sizes = {"x": (steps, samples, 3), **dict.fromkeys(names, (samples, 5)), "w": (gates * 5, 3), "u": (gates * 5, 5)}
    leaves = {
        name: torch.randn(size, device=backend.device, requires_grad=True)
        for name, size in (sizes | {"b": (gates * 5,)} | more).items()
    }
    states = tuple(leaves[name] for name in names)
    options = {"lengths": torch.zeros(samples, dtype=torch.long)} if lengths else {}
    y, *last = function(
        leaves["x"],
        states if len(states) > 1 else states[0],
        *(leaves[name] for name in "wub"),
        **options,
        **{name: leaves[name] for name in more},
    )
    assert y.shape == (steps, samples, 5)
    assert not y.any()
    for state, then in zip(last, states, strict=True):
        assert torch.equal(state, then)
    total = y.sum() + sum(state.sum() for state in last)
    gradients = torch.autograd.grad(total, tuple(leaves.values()), create_graph=True)
    for (name, leaf), grad in zip(leaves.items(), gradients, strict=True):
        assert torch.equal(grad, torch.ones_like(leaf) if name in names else torch.zeros_like(leaf)), name


@pytest.mark.parametrize("steps", [1, 6])
def test_a_rectified_state_that_overflows_has_the_slope_1(steps, backend):
    """As torch has it, of NaN too: a gradient of 0 would hide from a gradient scaler what went wrong."""
    values = torch.tensor([float("inf"), float("nan"), 2.0, -1.0, float("-inf")], device=backend.device)
    x = values.view(1, 5, 1).expand(steps, 5, 1).detach().clone().requires_grad_()
    one = torch.ones(1, 1, device=backend.device)
    y, _ = F.rnn(x, torch.zeros(5, 1, device=backend.device), one, one, nonlinearity="relu")
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad[:, :3, 0].cpu(), torch.arange(float(steps), 0, -1)[:, None].expand(steps, 3))
    assert not grad[:, 3:].any()


def test_case_ids_are_unique():
    assert len(BY_ID) == len(RECURRENCE)
    assert all(isinstance(case, RecurrenceCase) for case in RECURRENCE)
