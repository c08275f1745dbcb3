"""GRU and RNN layers and cells against torch's in float64: every option, sequences of any length, derivatives, bits."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from recurrent_pairs import LENGTHS, SIZES, batch_of, check, compare, flat, hidden_of, pair, states_of
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import fastnn
from fastnn import functional as F

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FAMILIES = {
    "GRU": ("GRU", {}),
    "RNN_tanh": ("RNN", {}),
    "RNN_relu": ("RNN", {"nonlinearity": "relu"}),
}
OPTIONS = [
    {},
    {"bias": False},
    {"num_layers": 3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]
every_family = pytest.mark.parametrize("family", list(FAMILIES))


def pair_of(family, options=None, inputs=5, hidden=4, dtype=torch.float64, device="cpu"):
    layer, own = FAMILIES[family]
    return pair({**own, **(options or {})}, inputs, hidden, dtype, device, layer)


# ---- layers -------------------------------------------------------------------------------------------------


# In halves rounding moves values over relu's kink, where the gradient jumps.
SMOOTH = [(family, dtype) for family in FAMILIES for dtype in DTYPES if family != "RNN_relu" or dtype.itemsize > 2]


@pytest.mark.parametrize(("family", "dtype"), SMOOTH, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option(family, options, dtype, backend):
    stock, ours = pair_of(family, options, dtype=dtype, device=backend.device)
    x = batch_of(6, 3, 5, options.get("batch_first", False), dtype, backend.device)
    check(stock, ours, x)
    check(stock, ours, x.detach().clone(), states_of(ours, 3, dtype, backend.device))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("time", "samples", "inputs", "hidden"), SIZES)
@pytest.mark.parametrize("family", ["GRU", "RNN_tanh"])
def test_sizes(family, time, samples, inputs, hidden, dtype, backend):
    stock, ours = pair_of(family, {"bidirectional": True}, inputs, hidden, dtype, backend.device)
    check(stock, ours, batch_of(time, samples, inputs, dtype=dtype, device=backend.device))


@every_family
def test_one_sequence_without_a_batch(family, backend):
    for options in ({}, {"batch_first": True, "bidirectional": True}):
        stock, ours = pair_of(family, options, device=backend.device)
        x = batch_of(6, 1, 5, device=backend.device)[:, 0]
        check(stock, ours, x.clone())
        (h,) = states_of(ours, 1, torch.float64, backend.device)
        check(stock, ours, x.clone(), (h[:, 0].clone(),))


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[4]], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@every_family
def test_packed_sequences(family, lengths, options, backend):
    stock, ours = pair_of(family, options, device=backend.device)
    x = batch_of(max(lengths), len(lengths), 5, device=backend.device)
    hx = states_of(ours, len(lengths), torch.float64, backend.device)
    results, leaves = [], []
    for layer in (ours, stock):
        mine = [t.clone().requires_grad_() for t in (x, *hx)]
        output, h = layer(pack_padded_sequence(mine[0], torch.tensor(lengths), enforce_sorted=False), mine[1])
        assert isinstance(output, PackedSequence)
        padded, seen = pad_packed_sequence(output)
        assert seen.tolist() == lengths
        results.append([padded, h])
        leaves.append(mine)
    compare(*results, torch.float64, *leaves, ours, stock)


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[4]], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@every_family
def test_lengths_of_padded_batches(family, lengths, options, backend):
    """As packing does it, without packing: any order, what lies beyond a sequence is neither read nor filled."""
    stock, ours = pair_of(family, options, device=backend.device)
    first = options.get("batch_first", False)
    x = batch_of(max(lengths) + 2, len(lengths), 5, device=backend.device)
    for n, length in enumerate(lengths):
        x[length:, n] = float("nan")
    hx = states_of(ours, len(lengths), torch.float64, backend.device)
    mine, exact = ([t.clone().requires_grad_() for t in (x, *hx)] for _ in range(2))
    output, h = ours(mine[0].transpose(0, 1) if first else mine[0], mine[1], lengths=torch.tensor(lengths))
    want, want_h = stock(pack_padded_sequence(exact[0], torch.tensor(lengths), enforce_sorted=False), exact[1])
    want, _ = pad_packed_sequence(want, total_length=max(lengths) + 2)
    results = [output.transpose(0, 1) if first else output, h], [want, want_h]
    compare(*results, torch.float64, mine, exact, ours, stock)


@every_family
def test_a_sequence_of_length_0_keeps_its_state(family, backend):
    _, ours = pair_of(family, {"bidirectional": True}, device=backend.device)
    x, (hx,) = batch_of(4, 3, 5, device=backend.device), states_of(ours, 3, torch.float64, backend.device)
    hx.requires_grad_()
    output, h = ours(x, hx, lengths=torch.tensor([4, 0, 2]))
    assert not output[:, 1].any()
    assert torch.equal(h[:, 1], hx[:, 1])
    (grad,) = torch.autograd.grad(h.sum(), hx)
    assert torch.equal(grad[:, 1], torch.ones_like(grad[:, 1]))


@pytest.mark.parametrize("samples", [0, 2])
@every_family
def test_nothing_to_do(family, samples, backend):
    _, ours = pair_of(family, device=backend.device)
    x = batch_of(3, samples, 5, device=backend.device).requires_grad_()
    output, h = ours(x, lengths=torch.zeros(samples, dtype=torch.long))
    assert output.shape == (3, samples, 4)
    assert not output.any()
    assert not h.any()


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}], ids=str)
@pytest.mark.parametrize("lengths", [None, [2, 4]], ids=str)
@pytest.mark.parametrize("family", ["GRU", "RNN_tanh"])
def test_derivatives_twice(family, options, lengths, backend):
    _, ours = pair_of(family, options, 2, 3, device=backend.device)
    x, (h,) = batch_of(4, 2, 2, device=backend.device), states_of(ours, 2, torch.float64, backend.device)
    names, parameters = zip(*ours.named_parameters(), strict=True)
    given = None if lengths is None else torch.tensor(lengths)

    def call(x, h, *parameters):
        values = dict(zip(names, parameters, strict=True))
        return tuple(flat(torch.func.functional_call(ours, values, (x, h), {"lengths": given})))

    leaves = [t.detach().clone().requires_grad_() for t in (x, h, *parameters)]
    assert gradcheck(call, leaves, fast_mode=True)
    assert gradgradcheck(call, leaves, fast_mode=True)


# How the op knows its cells, and their gates and recurrent blocks.
RECURRENCES = {
    "lstm": ([0, 0, 2, 2, 0, 0, 0, 1, 0], 4, 4),
    "coupled": ([0, 0, 2, 2, 1, 0, 0, 1, 0], 3, 3),
    "gru": ([1, 0, 2, 2, 0, 0, 0, 1, 0], 3, 3),
    "rnn": ([2, 0, 2, 2, 0, 0, 0, 1, 0], 1, 1),
    "cho": ([3, 0, 2, 2, 0, 0, 0, 1, 0], 3, 3),
    "mut1": ([3, 0, 2, 2, 0, 0, 1, 0, 0], 3, 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden", [5, 96, 300])
@pytest.mark.parametrize("name", list(RECURRENCES))
def test_the_same_bits_for_any_number_of_threads_and_any_batch(name, hidden, dtype):
    """Of the recurrence: the input's products, of all steps at once, are torch's, and so are their bits."""
    cell, gates, blocks = RECURRENCES[name]
    w_hh = (batch_of(1, blocks * hidden, hidden)[0] / hidden**0.5).to(dtype)
    products = batch_of(9, 21, gates * hidden, dtype=dtype)
    h0 = batch_of(1, 21, hidden, dtype=dtype)[0]

    def run(samples=slice(None)):
        x, h = products[:, samples].clone().requires_grad_(), h0[samples].clone().requires_grad_()
        c = h.detach() if cell[0] == 0 else None
        y, h_n, *_ = torch.ops.fastnn.recurrence(x, h, c, None, w_hh, *[None] * 12, True, False, cell)
        return [y, h_n, *torch.autograd.grad([y, h_n], [x, h], [torch.cos(3 * y.detach()), torch.ones_like(h_n)])]

    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results += [run() for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    for alone, together in zip(run(slice(4, 5)), results[0], strict=True):
        assert torch.equal(alone, together[..., 4:5, :])


@every_family
def test_state_is_carried_over_chunks(family, backend):
    """Truncated backpropagation: chunks give what the whole gives, and no gradient crosses a cut."""
    _, ours = pair_of(family, {"num_layers": 2}, dtype=torch.float32, device=backend.device)
    x = batch_of(12, 3, 5, dtype=torch.float32, device=backend.device)
    whole, last = ours(x)
    state, parts = None, []
    for chunk in x.split(5):
        part, state = ours(chunk, state)
        state = state.detach()
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(state, last.detach(), rtol=0, atol=1e-6)


def test_dropout_is_between_layers_and_repeats_with_its_seed(backend):
    stock, ours = pair_of("GRU", {"num_layers": 3, "dropout": 0.5}, device=backend.device)
    x = batch_of(4, 2, 5, device=backend.device)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(ours(x)[0])
    assert torch.equal(*results)
    assert not torch.equal(ours(x)[0], results[0])
    ours.eval()
    stock.eval()
    torch.testing.assert_close(ours(x)[0], stock(x)[0])


def test_what_is_not_finite_stays_with_its_sample(backend):
    _, ours = pair_of("GRU", dtype=torch.float32, device=backend.device)
    x = batch_of(4, 10, 5, dtype=torch.float32, device=backend.device)
    clean = ours(x)[0]
    x[2, 3, 1] = float("nan")
    output = ours(x)[0]
    assert output[2:, 3].isnan().all()
    others = [n for n in range(10) if n != 3]
    assert torch.equal(output[:, others], clean[:, others])
    assert torch.equal(output[:2], clean[:2])


@every_family
def test_convert_and_revert(family):
    layer, own = FAMILIES[family]
    stock = torch.nn.Sequential(getattr(torch.nn, layer)(5, 4, 2, bidirectional=True, **own)).double()
    x = batch_of(3, 2, 5)
    want = stock(x)[0]
    model = fastnn.convert(copy.deepcopy(stock))
    assert type(model[0]) is getattr(fastnn.nn, layer)
    torch.testing.assert_close(model(x)[0], want)
    assert type(fastnn.revert(model)[0]) is getattr(torch.nn, layer)


@every_family
def test_compile(family):
    _, ours = pair_of(family, {"num_layers": 2, "bidirectional": True}, dtype=torch.float32)
    x = batch_of(4, 2, 5, dtype=torch.float32)
    layer = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(allow_rnn=True):
        for options in ({}, {"lengths": torch.tensor([1, 3])}):
            torch.testing.assert_close(layer(x, **options)[0], ours(x, **options)[0])
            grads = [torch.autograd.grad(m(x, **options)[0].sum(), ours.weight_hh_l0)[0] for m in (layer, ours)]
            torch.testing.assert_close(*grads)


@every_family
def test_autocast(family):
    _, ours = pair_of(family, dtype=torch.float32)
    x = batch_of(4, 2, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(x)[0]
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), ours(x)[0], rtol=0, atol=5e-2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: m(x[0, 0]), ValueError, "Expected input to be 2D or 3D, got 1D"),
        (lambda m, x: m(x.float()), ValueError, "does not match weight dtype"),
        (lambda m, x: m(x[..., :3]), RuntimeError, "must be equal to input_size. Expected 5, got 3"),
        (lambda m, x: m(x, x), RuntimeError, r"Expected hidden size \(1, 2, 4\)"),
        (lambda m, x: m(x, x[0]), RuntimeError, "For batched 3-D input, hx should also be 3-D but got 2-D tensor"),
        (lambda m, x: m(x[:, 0], x), RuntimeError, "For unbatched 2-D input, hx should also be 2-D but got 3-D"),
        (lambda m, x: m(x, lengths=torch.tensor([5, 1])), ValueError, "from 0 to the 4 steps of input, got 5"),
        (lambda m, x: m(x, lengths=torch.tensor([1])), RuntimeError, "a value for each of 2 samples, got 1"),
        (lambda m, x: m(x, lengths=torch.tensor([1.0, 2.0])), RuntimeError, "lengths must be of an integral type"),
        (lambda m, x: m(x[:, 0], lengths=torch.tensor([1])), ValueError, "a single sequence"),
        (lambda m, x: m(pack_sequence([x[:, 0]]), lengths=torch.tensor([1])), ValueError, "beside a PackedSequence"),
    ],
)
@every_family
def test_errors(family, call, error, message):
    _, ours = pair_of(family)
    with pytest.raises(error, match=message):
        call(ours, batch_of(4, 2, 5))


# ---- what layers keep of torch's ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@every_family
def test_the_same_parameters_from_the_same_seed(family, options):
    layer, own = FAMILIES[family]
    made = []
    for namespace in (torch.nn, fastnn.nn):
        torch.manual_seed(5)
        made.append(getattr(namespace, layer)(5, 4, **own, **options))
    stock, ours = made
    assert list(ours.state_dict()) == list(stock.state_dict())
    assert all(torch.equal(value, stock.state_dict()[name]) for name, value in ours.state_dict().items())
    assert repr(ours) == repr(stock)
    again = pickle.loads(pickle.dumps(ours))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("name", ["GRU", "RNN"])
def test_arguments_are_refused_as_by_torch(name):
    layer = getattr(fastnn.nn, name)
    with pytest.raises(ValueError, match="proj_size"):
        layer(3, 4, proj_size=2)
    with pytest.raises(ValueError, match="hidden_size must be greater than zero"):
        layer(3, 0)
    with pytest.raises(ValueError, match="dropout"):
        layer(3, 4, dropout=1.5)
    with pytest.raises(ValueError, match="nonlinearity must be one of sigmoid, hard_sigmoid"):
        fastnn.nn.RNN(3, 4, nonlinearity="sine")


# ---- cells --------------------------------------------------------------------------------------------------

CELLS = {"GRU": ("GRUCell", {}), "RNN_tanh": ("RNNCell", {}), "RNN_relu": ("RNNCell", {"nonlinearity": "relu"})}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@every_family
def test_cells(family, bias, dtype, backend):
    name, own = CELLS[family]
    stock, ours = pair({**own, "bias": bias}, 5, 7, dtype, backend.device, name)
    x = batch_of(1, 3, 5, dtype=dtype, device=backend.device)[0]
    h = torch.randn(3, 7, generator=torch.Generator().manual_seed(3)).to(x)
    for inputs in ((x, h), (x,), (x[0], h[0])):
        mine = [t.clone().requires_grad_() for t in inputs]
        exact = [t.double().clone().requires_grad_() for t in inputs]
        compare([ours(*mine)], [stock(*exact)], dtype, mine, exact, ours, stock)


@every_family
def test_cells_are_the_layers_steps(family, backend):
    _, layer = pair_of(family, device=backend.device)
    name, own = CELLS[family]
    cell = getattr(fastnn.nn, name)(5, 4, **own).to(backend.device, torch.float64)
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    x = batch_of(6, 3, 5, device=backend.device)
    y, last = layer(x)
    h = None
    for t in range(6):
        h = cell(x[t], h)
        torch.testing.assert_close(h, y[t])
    torch.testing.assert_close(h, last[0])


@every_family
def test_cells_derivatives_twice(family, backend):
    name, own = CELLS[family]
    _, ours = pair(own, 2, 3, torch.float64, backend.device, name)
    names, parameters = zip(*ours.named_parameters(), strict=True)
    x = batch_of(1, 2, 2, device=backend.device)[0]

    def call(x, h, *parameters):
        return torch.func.functional_call(ours, dict(zip(names, parameters, strict=True)), (x, h))

    h = torch.randn(2, 3, generator=torch.Generator().manual_seed(3)).to(x)
    leaves = [t.detach().clone().requires_grad_() for t in (x, h, *parameters)]
    assert gradcheck(call, leaves, fast_mode=True)
    assert gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("name", ["GRUCell", "RNNCell"])
def test_errors_of_cells(name):
    cell = getattr(fastnn.nn, name)(5, 4)
    x = torch.randn(2, 5)
    with pytest.raises(ValueError, match=f"{name}: Expected input to be 1D or 2D, got 3D instead"):
        cell(x[None])
    with pytest.raises(ValueError, match=f"{name}: Expected hidden to be 1D or 2D, got 3D instead"):
        cell(x, torch.randn(1, 2, 4))
    for bad in ((x[:, :3],), (x, torch.randn(3, 4)), (x, torch.randn(2, 3)), (x.double(), torch.randn(2, 4))):
        with pytest.raises(RuntimeError):
            cell(*bad)


# ---- functions ----------------------------------------------------------------------------------------------


@every_family
def test_functional_layer_has_the_outputs_of_every_step(family, backend):
    _, ours = pair_of(family, device=backend.device)
    x = batch_of(4, 2, 5, device=backend.device)
    weights = (ours.weight_ih_l0, ours.weight_hh_l0, ours.bias_ih_l0, ours.bias_hh_l0)
    h = torch.zeros(2, 4, dtype=torch.float64, device=backend.device)
    options = FAMILIES[family][1]
    layer, cell = (F.gru, F.gru_cell) if family == "GRU" else (F.rnn, F.rnn_cell)
    y, last = layer(x, h, *weights, **options)
    for t in range(4):
        h = cell(x[t], h, *weights, **options)
        torch.testing.assert_close(y[t], h)
    torch.testing.assert_close(last, h)
    reverse, first = layer(x, torch.zeros_like(h), *weights, reverse=True, **options)
    torch.testing.assert_close(reverse[0], first)
    torch.testing.assert_close(reverse.flip(0), layer(x.flip(0), torch.zeros_like(h), *weights, **options)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, h, w: F.rnn(x, h, w, w, nonlinearity="sin"), "nonlinearity must be one of sigmoid, .*, got 'sin'"),
        (lambda x, h, w: F.gru(x, h, w, w, gate_activation="elu"), "gate_activation must be one of .*, got 'elu'"),
        (lambda x, h, w: F.gru_cell(x, h, w, w, candidate_activation="GELU"), "candidate_activation must be one of"),
        (lambda x, h, w: F.lstm(x, (h, h), w, w, output_activation=None), "output_activation must be one of"),
        (lambda x, h, w: F.mut(4, x, h, w, w), "variant must be 1, 2 or 3, got 4"),
    ],
)
def test_functions_name_what_they_do_not_know(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(2, 3, 4), torch.randn(3, 4), torch.randn(4, 4))


def test_hidden_states_are_torch_s(backend):
    """One state that is a tensor, not a tuple of one."""
    _, ours = pair_of("GRU", device=backend.device)
    states = states_of(ours, 2, torch.float64, backend.device)
    assert hidden_of(ours, states) is states[0]
    assert ours(batch_of(4, 2, 5, device=backend.device), states[0])[1].shape == (1, 2, 4)


def test_the_op_refuses_tensors_of_another_type():
    x, h, w = torch.randn(5, 2, 3), torch.randn(2, 4), (torch.randn(12, 3), torch.randn(12, 4))
    gru = [1, 0, 2, 2, 0, 0, 0, 1, 0]
    for args in ((x, h.double(), *w), (x, h, w[0].double(), w[1]), (x, h, w[0], w[1].bfloat16())):
        x_, h_, w_ih, w_hh = args
        with pytest.raises(RuntimeError, match="must have input's dtype Float, got"):
            torch.ops.fastnn.recurrence_layer(x_, h_, None, w_ih, w_hh, *[None] * 11, False, False, False, gru)


def test_backward_refuses_what_forward_cannot_have_left():
    x, h, w = torch.randn(5, 2, 3), torch.randn(2, 4), (torch.randn(12, 3), torch.randn(12, 4))
    gru, nothing = [1, 0, 2, 2, 0, 0, 0, 1, 0], torch.empty(0)
    y, _, _, gates, record, *_ = torch.ops.fastnn.recurrence_layer(
        x, h, None, *w, *[None] * 11, False, False, True, gru
    )
    backward = torch.ops.fastnn.recurrence_layer_backward
    for left, message in (
        ((y[:3], gates, record), "y must be of shape"),
        ((y, gates[:, :8], record), "gates must be of shape"),
        ((y, gates, record.double()), "record must be of shape"),
    ):
        with pytest.raises(RuntimeError, match=message):
            backward(
                None,
                h,
                None,
                None,
                x,
                h,
                None,
                *w,
                *[None] * 7,
                *left,
                *[nothing] * 3,
                None,
                None,
                False,
                [True] * 12,
                gru,
            )
