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
    run,
    same_bits,
)

import fastnn
from fastnn.bench.memory import peak_bytes
from fastnn.testing import reference
from fastnn.testing.cases import ALL_DTYPES, LSTM_CELL, LstmCellCase, generator_for

BY_ID = {case.id: case for case in LSTM_CELL}
LAYOUTS = ("contiguous", "sliced", "expanded", "transposed")


def backward_call(recorder: OpRecorder, backend) -> dict:
    """The arguments of the one op that backward called: on the CPU the step's, elsewhere that of its pointwise part."""
    (call,) = recorder.named("lstm_cell_step_backward" if backend.name == "cpu" else "lstm_cell_pointwise_backward")
    return call


@grid(LSTM_CELL, layouts=LAYOUTS)
def test_values_and_gradients(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid(LSTM_CELL, layouts=["contiguous"])
def test_same_bits_on_repeat(case, dtype, layout, backend):
    # Elsewhere the products are torch's, and in the emulator those of its CPU, which vary with the threads.
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=backend.name == "cpu")


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
    call = backward_call(recorder, backend)
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
    mask = backward_call(recorder, backend)["output_mask"]
    if backend.name == "cpu":
        assert mask == [wanted == name for name in ("input", "hx", "cx", "w_ih", "w_hh", "b_ih")]
        return
    gates, cell, bias = mask
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


# Rows, input and hidden size for each way to multiply on the CPU, on each instruction set (vectors of 4 to 16 numbers):
# one sample and few (weights transposed on their way), whole vectors of samples, both at once, more than a group of
# them; tiles of 8, 4, 2 and 1 rows; last columns that are no vector; reductions longer than a piece and odd ones (no
# pairs of bfloat16); more samples than a piece of the weights' gradients has; gradients stored past the caches.
STEPS = [
    (1, 40, 48),
    (3, 24, 20),
    (8, 33, 40),
    (9, 300, 17),
    (16, 32, 64),
    (19, 7, 45),
    (37, 150, 30),
    (67, 20, 70),
    (131, 18, 33),
    (270, 34, 16),
    (5, 512, 256),
]


def step_case(sizes: tuple[int, int, int]) -> LstmCellCase:
    rows, features, hidden = sizes
    return LstmCellCase(id="x".join(map(str, sizes)), rows=rows, input_size=features, hidden_size=hidden)


def cpu_only(backend) -> None:
    if backend.name != "cpu":
        pytest.skip("the other backends leave the products to torch")


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("sizes", STEPS, ids=lambda sizes: "x".join(map(str, sizes)))
def test_each_way_to_multiply(sizes, dtype, backend):
    cpu_only(backend)
    check_values_and_gradients(step_case(sizes), dtype, "contiguous", backend.device)


def parallel_sizes(sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    """The same with so many hidden units that threads share the work."""
    rows, features, hidden = sizes
    return rows, features, hidden + 200


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("sizes", STEPS, ids=lambda sizes: "x".join(map(str, sizes)))
def test_step_is_free_of_threads(sizes, dtype, backend):
    """With one, two, three and four threads the same bits."""
    cpu_only(backend)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(run(step_case(parallel_sizes(sizes)), dtype, "contiguous", backend.device))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, value in results[0].items():
            assert same_bits(value, other[name]), name


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [s for s in STEPS if s[0] > 1], ids=lambda sizes: "x".join(map(str, sizes)))
def test_step_is_free_of_the_batch(sizes, dtype, backend):
    """A sample's results and gradients: the same bits alone, and in any piece of its batch."""
    cpu_only(backend)
    inputs = make_inputs(step_case(sizes), dtype, "contiguous", backend.device)
    weights = [inputs[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    cotangents = [torch.randn_like(inputs["hx"]) for _ in range(2)]

    def compute(part: slice) -> list[torch.Tensor]:
        x, h, c = (inputs[name].detach()[part].requires_grad_() for name in ("input", "hx", "cx"))
        outputs = fastnn.functional.lstm_cell(x, (h, c), *weights)
        return [*outputs, *torch.autograd.grad(outputs, (x, h, c), [t[part] for t in cotangents])]

    whole, rows = compute(slice(None)), sizes[0]
    parts = [slice(0, 1), slice(rows - 1, rows), slice(rows // 2, rows), slice(0, rows - 1)]
    for part in parts:
        for a, b in zip(compute(part), whole, strict=True):
            assert same_bits(a, b[part].contiguous()), part


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", STEPS, ids=lambda sizes: "x".join(map(str, sizes)))
def test_memory_is_never_more_than_torchs(sizes, dtype, backend):
    cpu_only(backend)
    inputs = make_inputs(step_case(sizes), dtype, "contiguous", backend.device)
    leaves = list(inputs.values())

    def peaks(cell) -> list[int]:
        def forward():
            return cell(inputs["input"], (inputs["hx"], inputs["cx"]), *leaves[3:])

        def backward():
            return torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True)

        outputs = forward()
        cotangents = [torch.ones_like(output) for output in outputs]
        backward()
        return [peak_bytes(call, backend.device) for call in (forward, backward, torch.no_grad()(forward))]

    for ours, theirs in zip(peaks(fastnn.functional.lstm_cell), peaks(torch.lstm_cell), strict=True):
        assert ours <= theirs


def test_what_the_step_is_not_for(backend):
    """Where types differ and under autocast the products are torch's; the results are torch's to a rounding."""
    inputs = make_inputs(BY_ID["2x3x4"], torch.float32, "contiguous", backend.device)
    weights = [inputs[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    x, h = inputs["input"], inputs["hx"]
    with OpRecorder() as recorder:
        fastnn.functional.lstm_cell(x, (h, inputs["cx"].double()), *weights)
        with torch.autocast(backend.device.type, torch.bfloat16):
            fastnn.functional.lstm_cell(x, (h, inputs["cx"]), *weights)
    assert not recorder.named("lstm_cell_step")
    assert len(recorder.named("lstm_cell_pointwise")) == 2


def test_third_derivative_of_a_step_raises(backend):
    inputs = make_inputs(BY_ID["2x3x4"], torch.float64, "contiguous", backend.device)
    h, _ = BY_ID["2x3x4"].apply(fastnn.functional, inputs)
    first = torch.autograd.grad(h.square().sum(), inputs["input"], create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), inputs["input"], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="third derivative"):
        torch.autograd.grad(second.sum(), inputs["input"])


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
