"""LSTM layers against torch's in float64: every option, sequences of any length, derivatives, bits."""

from __future__ import annotations

import copy

import pytest
import torch
from recurrent_pairs import LENGTHS, ROUNDING, SIZES, batch_of, check, compare, flat, pair, states_of
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import fastnn
from fastnn import functional as F

PLAIN = [0, 0, 2, 2, 0, 0, 0, 1, 0]  # how ops know the LSTM that has no options
OPTIONS = [
    {},
    {"bias": False},
    {"num_layers": 3},
    {"bidirectional": True},
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"proj_size": 3},
    {"proj_size": 2, "num_layers": 2, "bidirectional": True},
]


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option(options, dtype, backend):
    stock, ours = pair(options, dtype=dtype, device=backend.device)
    x = batch_of(6, 3, 5, options.get("batch_first", False), dtype, backend.device)
    check(stock, ours, x)
    check(stock, ours, x.detach().clone(), states_of(ours, 3, dtype, backend.device))


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize(("time", "samples", "inputs", "hidden"), SIZES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_sizes(time, samples, inputs, hidden, bidirectional, dtype, backend):
    stock, ours = pair({"bidirectional": bidirectional}, inputs, hidden, dtype, backend.device)
    check(stock, ours, batch_of(time, samples, inputs, dtype=dtype, device=backend.device))


def test_one_sequence_without_a_batch(backend):
    for options in ({}, {"batch_first": True, "bidirectional": True}):
        stock, ours = pair(options, device=backend.device)
        x = batch_of(6, 1, 5, device=backend.device)[:, 0]
        check(stock, ours, x.clone())
        h, c = states_of(ours, 1, torch.float64, backend.device)
        check(stock, ours, x.clone(), (h[:, 0].clone(), c[:, 0].clone()))


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3], OPTIONS[5], OPTIONS[7]], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_packed_sequences(lengths, options, backend):
    stock, ours = pair(options, device=backend.device)
    x = batch_of(max(lengths), len(lengths), 5, device=backend.device)
    hx = states_of(ours, len(lengths), torch.float64, backend.device)
    results, leaves = [], []
    for layer in (ours, stock):
        mine = [t.clone().requires_grad_() for t in (x, *hx)]
        packed = pack_padded_sequence(mine[0], torch.tensor(lengths), enforce_sorted=False)
        output, (h, c) = layer(packed, tuple(mine[1:]))
        assert isinstance(output, PackedSequence)
        padded, seen = pad_packed_sequence(output)
        assert seen.tolist() == lengths
        results.append([padded, h, c])
        leaves.append(mine)
    compare(*results, torch.float64, *leaves, ours, stock)


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3], OPTIONS[5], OPTIONS[7]], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_lengths_of_padded_batches(lengths, options, backend):
    """As packing does it, without packing: any order, what lies beyond a sequence is neither read nor filled."""
    stock, ours = pair(options, device=backend.device)
    first = options.get("batch_first", False)
    x = batch_of(max(lengths) + 2, len(lengths), 5, device=backend.device)
    for n, length in enumerate(lengths):
        x[length:, n] = float("nan")
    hx = states_of(ours, len(lengths), torch.float64, backend.device)
    mine, exact = ([t.clone().requires_grad_() for t in (x, *hx)] for _ in range(2))
    output, (h, c) = ours(mine[0].transpose(0, 1) if first else mine[0], tuple(mine[1:]), lengths=torch.tensor(lengths))
    packed = pack_padded_sequence(exact[0], torch.tensor(lengths), enforce_sorted=False)
    want, (want_h, want_c) = stock(packed, tuple(exact[1:]))
    want, _ = pad_packed_sequence(want, total_length=max(lengths) + 2)
    results = [output.transpose(0, 1) if first else output, h, c], [want, want_h, want_c]
    compare(*results, torch.float64, mine, exact, ours, stock)


def test_a_sequence_of_length_0_keeps_its_state(backend):
    _, ours = pair({"bidirectional": True}, device=backend.device)
    x, hx = batch_of(4, 3, 5, device=backend.device), states_of(ours, 3, torch.float64, backend.device)
    hx = tuple(t.requires_grad_() for t in hx)
    output, (h, c) = ours(x, hx, lengths=torch.tensor([4, 0, 2]))
    assert not output[:, 1].any()
    assert torch.equal(h[:, 1], hx[0][:, 1])
    assert torch.equal(c[:, 1], hx[1][:, 1])
    grads = torch.autograd.grad(h.sum() + c.sum(), hx)
    assert all(torch.equal(grad[:, 1], torch.ones_like(grad[:, 1])) for grad in grads)


@pytest.mark.parametrize("samples", [0, 2])
def test_nothing_to_do(samples, backend):
    _, ours = pair({}, device=backend.device)
    x = batch_of(3, samples, 5, device=backend.device).requires_grad_()
    output, (h, c) = ours(x, lengths=torch.zeros(samples, dtype=torch.long))
    assert output.shape == (3, samples, 4)
    assert not output.any()
    assert not h.any()
    if not output.requires_grad:  # stepped over no time, nothing depends on anything
        return
    (output.sum() + h.sum() + c.sum()).backward()
    assert not x.grad.any()
    assert not ours.weight_ih_l0.grad.any()


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 2}, {"num_layers": 2, "bias": False}])
@pytest.mark.parametrize("lengths", [None, [2, 4]], ids=str)
def test_derivatives_twice(options, lengths, backend):
    _, ours = pair(options, 2, 3, device=backend.device)
    x, hx = batch_of(4, 2, 2, device=backend.device), states_of(ours, 2, torch.float64, backend.device)
    names, parameters = zip(*ours.named_parameters(), strict=True)
    given = None if lengths is None else torch.tensor(lengths)

    def call(x, h, c, *parameters):
        values = dict(zip(names, parameters, strict=True))
        return tuple(flat(torch.func.functional_call(ours, values, (x, (h, c)), {"lengths": given})))

    leaves = [t.detach().clone().requires_grad_() for t in (x, *hx, *parameters)]
    assert gradcheck(call, leaves, fast_mode=True)
    assert gradgradcheck(call, leaves, fast_mode=True)


def test_second_derivatives_are_torch_s(backend):
    """Of the cell stepped over time by torch: its own layer has none on a GPU."""
    _, ours = pair({}, 3, 4, device=backend.device)
    x = batch_of(5, 2, 3, device=backend.device).requires_grad_()

    def penalty(output):
        (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), [x, *ours.parameters()])

    got = penalty(ours(x)[0])
    h = c = torch.zeros(2, 4, dtype=torch.float64, device=backend.device)
    outputs = []
    for t in range(5):
        gates = x[t] @ ours.weight_ih_l0.T + ours.bias_ih_l0 + h @ ours.weight_hh_l0.T + ours.bias_hh_l0
        i, f, g, o = gates.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    for actual, expected in zip(got, penalty(torch.stack(outputs)), strict=True):
        torch.testing.assert_close(actual, expected)


def test_state_is_carried_over_chunks(backend):
    """Truncated backpropagation: chunks give the bits of the whole."""
    _, ours = pair({"num_layers": 2}, dtype=torch.float32, device=backend.device)
    x = batch_of(12, 3, 5, dtype=torch.float32, device=backend.device)
    whole, last = ours(x)
    state, parts = None, []
    for chunk in x.split(5):
        part, state = ours(chunk, state)
        state = tuple(t.detach() for t in state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(state, tuple(t.detach() for t in last), rtol=0, atol=1e-6)


def test_long_sequences_do_not_drift():
    stock, ours = pair({}, 4, 24, torch.float32)
    x = batch_of(10_000, 2, 4, dtype=torch.float32)
    with torch.no_grad():
        error = (ours(x)[0] - stock(x.double())[0]).abs().amax((1, 2))
    assert error.max() < 2e-5
    assert error[-1000:].max() < 2 * error[:1000].max()


def test_gradients_flow_through_open_forget_gates(backend):
    """Hochreiter and Schmidhuber's carousel: with f = 1 and closed input gates c's gradient arrives unchanged."""
    _, ours = pair({}, 2, 3, device=backend.device)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
        ours.bias_ih_l0[:3], ours.bias_ih_l0[3:6] = -800.0, 800.0
    x, (h, c) = batch_of(1000, 2, 2, device=backend.device), states_of(ours, 2, torch.float64, backend.device)
    c.requires_grad_()
    _, (_, last) = ours(x, (h, c))
    assert torch.equal(last, c)
    (grad,) = torch.autograd.grad(last.sum(), c)
    assert torch.equal(grad, torch.ones_like(c))


def test_dropout_is_torch_s(backend):
    stock, ours = pair({"num_layers": 3, "dropout": 0.5}, device=backend.device)
    x = batch_of(4, 2, 5, device=backend.device)
    results = []
    for layer in (ours, ours, stock):
        torch.manual_seed(7)
        results.append(layer(x)[0])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(ours(x)[0], results[0])
    ours.eval()
    stock.eval()
    torch.testing.assert_close(ours(x)[0], stock(x)[0])


def test_convert_and_revert():
    stock = torch.nn.Sequential(torch.nn.LSTM(5, 4, 2, bidirectional=True)).double()
    x = batch_of(3, 2, 5)
    want = stock(x)[0]
    model = fastnn.convert(copy.deepcopy(stock))
    assert type(model[0]) is fastnn.nn.LSTM
    torch.testing.assert_close(model(x)[0], want)
    assert type(fastnn.revert(model)[0]) is torch.nn.LSTM


def test_opcheck_and_compile():
    _, ours = pair({}, dtype=torch.float32)
    x, h, c = torch.randn(4, 2, 5), torch.randn(2, 4), torch.randn(2, 4)
    leaves = [t.requires_grad_() for t in (x, h, c)]
    weights = (ours.weight_ih_l0, ours.weight_hh_l0, ours.bias_ih_l0, ours.bias_hh_l0)
    options = (None,) * 7  # peepholes, zoneout, norms
    for batch_sizes, lengths in ((None, None), (None, torch.tensor([2, 4]))):
        torch.library.opcheck(
            torch.ops.fastnn.recurrence_layer.default,
            (*leaves, *weights, *options, batch_sizes, lengths, True, False, False, PLAIN),
        )
    torch.library.opcheck(
        torch.ops.fastnn.recurrence_layer.default,
        (
            *(torch.randn(5, 5, requires_grad=True), h, c, *weights, *options),
            *(torch.tensor([2, 2, 1]), None, False, False, False, PLAIN),
        ),
    )
    # Dynamo refuses every subclass of torch's recurrent layers, unless told not to.
    plain = pair({"num_layers": 2, "bidirectional": True}, dtype=torch.float32)[1]
    layer, x = torch.compile(plain, fullgraph=True), x.detach()
    with torch._dynamo.config.patch(allow_rnn=True):
        for options in ({}, {"lengths": torch.tensor([1, 3])}, {"lengths": torch.tensor([3, 3])}):
            torch.testing.assert_close(layer(x, **options)[0], plain(x, **options)[0])
            grads = [torch.autograd.grad(m(x, **options)[0].sum(), plain.weight_hh_l0)[0] for m in (layer, plain)]
            torch.testing.assert_close(*grads)
            cells = [m(x, return_cells=True, **options)[2] for m in (layer, plain)]
            torch.testing.assert_close(*cells)
            grads = [torch.autograd.grad(c.cos().sum(), plain.weight_hh_l0)[0] for c in cells]
            torch.testing.assert_close(*grads)


def test_autocast():
    _, ours = pair({}, dtype=torch.float32)
    x = batch_of(4, 2, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(x)[0]
    torch.testing.assert_close(output.float(), ours(x)[0], rtol=0, atol=3e-2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: m(x[0, 0]), ValueError, "Expected input to be 2D or 3D, got 1D"),
        (lambda m, x: m(x.float()), ValueError, "does not match weight dtype"),
        (lambda m, x: m(x[..., :3]), RuntimeError, "must be equal to input_size. Expected 5, got 3"),
        (lambda m, x: m(x, (x, x)), RuntimeError, r"Expected hidden\[0\] size \(1, 2, 4\)"),
        (lambda m, x: m(x, (x[0], x[0])), RuntimeError, "should also be 3-D"),
        (lambda m, x: m(x, lengths=torch.tensor([5, 1])), ValueError, "from 0 to the 4 steps of input, got 5"),
        (lambda m, x: m(x, lengths=torch.tensor([-1, 1])), ValueError, "from 0 to the 4 steps of input, got -1"),
        (lambda m, x: m(x, lengths=torch.tensor([1])), RuntimeError, "a value for each of 2 samples, got 1"),
        (lambda m, x: m(x, lengths=torch.tensor([1.0, 2.0])), RuntimeError, "lengths must be of an integral type"),
        (lambda m, x: m(x[:, 0], lengths=torch.tensor([1])), ValueError, "a single sequence"),
        (
            lambda m, x: m(pack_sequence([x[:, 0]]), lengths=torch.tensor([1])),
            ValueError,
            "beside a PackedSequence",
        ),
    ],
)
def test_errors(call, error, message):
    _, ours = pair({})
    with pytest.raises(error, match=message):
        call(ours, batch_of(4, 2, 5))


def test_what_is_not_finite_stays_with_its_sample(backend):
    _, ours = pair({}, dtype=torch.float32, device=backend.device)
    x = batch_of(4, 10, 5, dtype=torch.float32, device=backend.device)
    clean = ours(x)[0]
    x[2, 3, 1] = float("nan")
    output = ours(x)[0]
    assert output[2:, 3].isnan().all()
    others = [n for n in range(10) if n != 3]
    assert torch.equal(output[:, others], clean[:, others])
    assert torch.equal(output[:2], clean[:2])


def test_functional_layer_has_the_outputs_of_every_step(backend):
    _, ours = pair({}, device=backend.device)
    x = batch_of(4, 2, 5, device=backend.device)
    weights = (ours.weight_ih_l0, ours.weight_hh_l0, ours.bias_ih_l0, ours.bias_hh_l0)
    zeros = torch.zeros(2, 4, dtype=torch.float64, device=backend.device)
    y, h, c = F.lstm(x, (zeros, zeros), *weights)
    state = (zeros, zeros)
    for t in range(4):
        state = F.lstm_cell(x[t], state, *weights)
        torch.testing.assert_close(y[t], state[0])
    torch.testing.assert_close((h, c), state)


@pytest.mark.parametrize(("time", "samples"), [(0, 2), (5, 0)])
def test_the_op_takes_no_steps_and_no_samples(time, samples):
    w_ih, w_hh = torch.randn(12, 4, requires_grad=True), torch.randn(12, 3, requires_grad=True)
    x, h = torch.randn(time, samples, 4), torch.randn(samples, 3, requires_grad=True)
    y, h_n, *_ = torch.ops.fastnn.recurrence_layer(
        x, h, h.detach(), w_ih, w_hh, *[None] * 11, False, False, False, PLAIN
    )
    assert y.shape == (time, samples, 3)
    assert torch.equal(h_n, h)
    (y.sum() + h_n.sum()).backward()
    assert torch.equal(h.grad, torch.ones_like(h))
    assert not w_hh.grad.any()
    assert not w_ih.grad.any()
