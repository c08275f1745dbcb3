"""lstm_cell against the float64 oracle, whole and its pointwise part alone."""

from __future__ import annotations

import pytest
import torch
from op_tester import (
    OpRecorder,
    check_gradient_subsets,
    check_repeatable,
    check_second_derivatives,
    check_values_and_gradients,
    grid,
    make_inputs,
    same_bits,
)

import fastnn
from fastnn.testing import reference
from fastnn.testing.cases import ALL_DTYPES, LSTM_CELL, generator_for

BY_ID = {case.id: case for case in LSTM_CELL}
LAYOUTS = ("contiguous", "sliced", "expanded", "transposed")


@grid(LSTM_CELL, layouts=LAYOUTS)
def test_values_and_gradients(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid(LSTM_CELL, layouts=["contiguous"])
def test_same_bits_on_repeat(case, dtype, layout, backend):
    # The number of threads is the matrix product's affair too; test_pointwise_threads judges what is fastnn's.
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=False)


@grid([BY_ID["2x3x4"], BY_ID["through_c"], BY_ID["wide_both"]], dtypes=[torch.float32], layouts=None)
def test_gradient_subsets(case, dtype, backend):
    check_gradient_subsets(case, dtype, backend.device)


@grid(
    [BY_ID[n] for n in ("2x3x4", "no_bias", "through_h", "through_c", "hidden_odd", "batch_0")],
    layouts=["contiguous", "sliced"],
)
def test_second_derivatives(case, dtype, layout, backend):
    check_second_derivatives(case, dtype, layout, backend.device)


def pointwise(rows, hidden, dtype, device):
    generator = generator_for("pointwise", rows, hidden)
    shapes = [(rows, 4 * hidden), (4 * hidden,), (4 * hidden,), (rows, hidden)]
    return [torch.randn(s, generator=generator).to(dtype).to(device).requires_grad_() for s in shapes]


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("rows, hidden", [(1, 1), (3, 13), (70, 65), (301, 5), (513, 32)])
def test_pointwise_threads(rows, hidden, dtype, backend):
    """Forward, backward and double backward: the same bits on repeat and with one thread as with two."""
    if backend.name == "emulated" and rows > 301:
        rows = 65

    def run():
        tensors = pointwise(rows, hidden, dtype, backend.device)
        h, c = torch.ops.fastnn.lstm_cell_pointwise(*tensors)
        grads = torch.autograd.grad([h.sum() + (c * c).sum()], tensors, create_graph=True)
        seconds = torch.autograd.grad([g.square().sum() for g in grads], tensors)
        return [h, c, *grads, *seconds]

    first = run()
    again = run()
    torch.set_num_threads(2)
    threaded = run()
    assert all(same_bits(a, b) for a, b in zip(first, again, strict=True))
    assert all(same_bits(a, b) for a, b in zip(first, threaded, strict=True))


@pytest.mark.parametrize("gate", range(4), ids=["i", "f", "g", "o"])
def test_each_gate_does_its_own_work(gate, backend):
    """Open one gate at a time with saturating pre-activations; the result tells which gate it was."""
    rows, hidden = 3, 5
    gates = torch.zeros(rows, 4, hidden, device=backend.device)
    gates[:, gate] = torch.linspace(-2, 3, hidden, device=backend.device)
    cell = torch.linspace(-1, 1, rows * hidden, device=backend.device).view(rows, hidden)
    h, c = torch.ops.fastnn.lstm_cell_pointwise(gates.view(rows, 4 * hidden), None, None, cell)
    i, f, g, o = gates.unbind(1)
    want_c = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    torch.testing.assert_close(c, want_c, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(h, o.sigmoid() * want_c.tanh(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("output", [0, 1], ids=["h", "c"])
def test_gradient_through_one_output_alone(output, backend):
    """The other output's gradient is absent, not a tensor of zeros; both add up."""
    case = BY_ID["2x3x4"]
    inputs = make_inputs(case, torch.float64, "contiguous", backend.device)
    leaves = list(inputs.values())
    exact = [t.detach().cpu().requires_grad_() for t in leaves]
    outputs = case.apply(fastnn.functional, inputs)
    named = dict(zip(inputs, exact, strict=True))
    want = reference.lstm_cell(
        named["input"], (named["hx"], named["cx"]), *(named[n] for n in ("w_ih", "w_hh", "b_ih", "b_hh"))
    )
    with OpRecorder() as recorder:
        grads = torch.autograd.grad(outputs[output].square().sum(), leaves, allow_unused=True)
    (call,) = recorder.named("lstm_cell_pointwise_backward")
    assert call["grad_cy" if output == 0 else "grad_hy"] is None
    wants = torch.autograd.grad(want[output].square().sum(), exact, allow_unused=True)
    for name, a, b in zip(inputs, grads, wants, strict=True):
        assert a is not None, name
        torch.testing.assert_close(a.cpu(), torch.zeros_like(a.cpu()) if b is None else b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wanted", ["cx", "b_ih", "input"])
def test_unneeded_gradients_are_not_computed(wanted, backend):
    case = BY_ID["2x3x4"]
    inputs = make_inputs(case, torch.float32, "contiguous", backend.device)
    for name, tensor in inputs.items():
        tensor.requires_grad_(name == wanted)
    outputs = case.apply(fastnn.functional, inputs)
    with OpRecorder() as recorder:
        (outputs[0].sum() + outputs[1].sum()).backward()
    (call,) = recorder.named("lstm_cell_pointwise_backward")
    gates, cell, bias = call["output_mask"]
    assert (cell, bias) == (wanted == "cx", wanted == "b_ih")
    assert gates or wanted != "input"


def test_a_sequence_of_steps(backend):
    """Twenty steps with the state fed back, and the gradient through all of them (backward through time)."""
    generator = generator_for("sequence")
    steps, rows, features, hidden = 20, 3, 4, 6
    sequence = torch.randn(steps, rows, features, generator=generator, dtype=torch.float64)
    weights = [
        torch.randn(s, generator=generator, dtype=torch.float64) / hidden**0.5
        for s in [(4 * hidden, features), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)]
    ]

    def unroll(cell, device):
        leaves = [t.to(device).clone().requires_grad_() for t in [sequence, *weights]]
        state = (torch.zeros(rows, hidden).double().to(device), torch.zeros(rows, hidden).double().to(device))
        loss = 0.0
        for x in leaves[0]:
            state = cell(x, state, *leaves[1:])
            loss = loss + state[0].square().sum()
        return [loss, *torch.autograd.grad(loss, leaves)]

    got = unroll(fastnn.functional.lstm_cell, backend.device)
    for a, b in zip(got, unroll(reference.lstm_cell, "cpu"), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-11)


def test_saturated_gates(backend):
    """Pre-activations of 1e30 and infinite ones: exactly 0 and 1, no NaN, gradients 0."""
    for size in (1e30, float("inf")):
        gates = torch.tensor([[size, -size, size, size]], device=backend.device, requires_grad=True)
        cell = torch.tensor([[5.0]], device=backend.device)
        h, c = torch.ops.fastnn.lstm_cell_pointwise(gates, None, None, cell)
        assert c.item() == 1.0
        torch.testing.assert_close(h.cpu(), torch.tanh(torch.tensor([[1.0]])))
        (grad,) = torch.autograd.grad(h.sum() + c.sum(), gates)
        assert torch.equal(grad, torch.zeros_like(grad))


def test_case_ids_are_unique():
    assert len(BY_ID) == len(LSTM_CELL)
