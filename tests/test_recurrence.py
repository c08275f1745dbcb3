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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [c for c in RECURRENCE if c.steps > 3 and c.rows], ids=str)
def test_what_comes_out_does_not_depend_on_the_number_of_threads(case, dtype):
    """The gradients of weights and inputs are torch's products, which may."""
    if dtype not in case.dtypes:
        pytest.skip("no values of this case in this type")
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


@pytest.mark.parametrize("shape", [(4, 0), (0, 3), (2, 0)], ids=str)
@pytest.mark.parametrize("lengths", [False, True])
def test_nothing_to_compute_has_derivatives(shape, lengths, backend):
    """No samples, no steps, or only sequences of length 0: states pass through, all other gradients are zeros."""
    steps, samples = shape
    options = {"lengths": torch.zeros(samples, dtype=torch.long)} if lengths else {}
    x, h, c, w, u, b = (
        torch.randn(size, device=backend.device, requires_grad=True)
        for size in ((steps, samples, 3), (samples, 5), (samples, 5), (20, 3), (20, 5), (20,))
    )
    y, h_n, c_n = F.lstm(x, (h, c), w, u, b, **options)
    assert y.shape == (steps, samples, 5)
    assert torch.equal(h_n, h)
    assert torch.equal(c_n, c)
    gradients = torch.autograd.grad(y.sum() + h_n.sum() + c_n.sum(), (x, h, c, w, u, b), create_graph=True)
    for leaf, grad in zip((x, h, c, w, u, b), gradients, strict=True):
        assert torch.equal(grad, torch.ones_like(leaf) if leaf is h or leaf is c else torch.zeros_like(leaf))


def test_sequences_of_length_0_alone_pass_their_states_through(backend):
    x, h = torch.randn(4, 3, 2, device=backend.device), torch.randn(3, 5, device=backend.device, requires_grad=True)
    w, u = torch.randn(15, 2, device=backend.device, requires_grad=True), torch.randn(15, 5, device=backend.device)
    y, h_n = F.gru(x, h, w, u, lengths=torch.zeros(3, dtype=torch.long))
    assert not y.any()
    assert torch.equal(h_n, h)
    by_w, by_h = torch.autograd.grad(y.sum() + h_n.sum(), (w, h))
    assert not by_w.any()
    assert torch.equal(by_h, torch.ones_like(h))


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
