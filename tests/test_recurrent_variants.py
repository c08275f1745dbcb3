"""Variants of recurrent layers and cells against float64 oracles that go step by step, sample by sample."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from recurrent_pairs import ROUNDING, batch_of, close, flat, hidden_of, states_of
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastnn
from fastnn import functional as F
from fastnn.nn.recurrent_options import _shares_of_old
from fastnn.testing import recurrent_reference as reference

VARIANTS = {
    "lstm": ("LSTM", {}),
    "peephole": ("LSTM", {"peephole": True}),
    "peephole_previous": ("LSTM", {"peephole": True, "peephole_previous": True}),
    "coupled": ("LSTM", {"coupled": True}),
    "coupled_peephole": ("LSTM", {"coupled": True, "peephole": True}),
    "layer_norm": ("LSTM", {"layer_norm": True}),
    "layer_norm_no_bias": ("LSTM", {"layer_norm": True, "bias": False}),
    "layer_norm_coupled_peephole": ("LSTM", {"layer_norm": True, "coupled": True, "peephole": True}),
    "projected": ("LSTM", {"proj_size": 2, "peephole": True, "coupled": True, "zoneout": 0.3}),
    "zoneout": ("LSTM", {"zoneout": (0.3, 0.2)}),
    "zoneout_h": ("LSTM", {"zoneout": (0.4, 0.0)}),
    "zoneout_of_everything": (
        "LSTM",
        {"zoneout": 0.25, "peephole": True, "layer_norm": True, "weight_dropout": 0.4, "coupled": True},
    ),
    "weight_dropout": ("LSTM", {"weight_dropout": 0.5}),
    "lstm_softsign": ("LSTM", {"candidate_activation": "softsign", "output_activation": "identity"}),
    "lstm_hard": (
        "LSTM",
        {"gate_activation": "hard_sigmoid", "candidate_activation": "hard_tanh", "output_activation": "relu"},
    ),
    "gru": ("GRU", {}),
    "cho": ("GRU", {"reset_after": False}),
    "cho_no_bias": ("GRU", {"reset_after": False, "bias": False}),
    "gru_zoneout": ("GRU", {"zoneout": 0.3, "weight_dropout": 0.3}),
    "cho_zoneout": ("GRU", {"zoneout": 0.3, "reset_after": False}),
    "gru_softsign": ("GRU", {"candidate_activation": "softsign"}),
    "gru_hard": ("GRU", {"gate_activation": "hard_sigmoid", "candidate_activation": "hard_tanh"}),
    "rnn": ("RNN", {}),
    "rnn_softsign": ("RNN", {"nonlinearity": "softsign", "zoneout": 0.2, "weight_dropout": 0.2}),
    "mut1": ("MUT1", {}),
    "mut2": ("MUT2", {}),
    "mut3": ("MUT3", {}),
    "mut1_zoneout": ("MUT1", {"zoneout": 0.3, "bias": False}),
    "mut2_no_bias": ("MUT2", {"weight_dropout": 0.3, "bias": False}),
    "mut3_zoneout": ("MUT3", {"zoneout": 0.3}),
}
KINKED = ("lstm_hard", "gru_hard")
ATOMS = ["peephole", "coupled", "layer_norm", "zoneout", "cho", "mut1", "mut2", "mut3"]
every_variant = pytest.mark.parametrize("variant", list(VARIANTS))
some_variants = pytest.mark.parametrize("variant", ATOMS)
HIDDEN = 4


def build(variant: str, dtype=torch.float64, device="cpu", hidden=HIDDEN, inputs=3, cell=False, **more):
    """A layer or cell with weights that are not small, gains that are not 1 and biases of norms that are not 0."""
    name, options = VARIANTS[variant]
    if cell:
        name, options = name + "Cell", {key: value for key, value in options.items() if key != "proj_size"}
    inputs = hidden if name.startswith(("MUT1", "MUT2")) else inputs
    torch.manual_seed(1)
    module = getattr(fastnn.nn, name)(inputs, hidden, **options, **more)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5 / parameter.shape[-1] ** 0.5)
    return module.to(device, dtype)


class Recorder:
    """Stands for a family's function and remembers what was random: the recurrent weights and zoneout's shares."""

    def __init__(self, monkeypatch, module) -> None:
        self.calls: list[dict] = []
        self.function = type(module)._compute
        monkeypatch.setattr(type(module), "_compute", staticmethod(self))

    def __call__(self, *args, **kwargs):
        position = 4 if isinstance(args[0], int) else 3  # after MUT's number
        self.calls.append({"w_hh": args[position].detach(), "zoneouts": zoneouts_of(kwargs)})
        return self.function(*args, **kwargs)


def zoneouts_of(kwargs: dict) -> list[Tensor | None]:
    return [kwargs[key] for key in ("zoneout_h", "zoneout_c") if key in kwargs]


def exact_step(module, weights: dict[str, Tensor], w_hh: Tensor):
    """The oracle's step of a module's cell; ``w_hh`` is what the forward pass used, dropped elements being 0."""
    options = module.cell_options
    if module.training and options.weight_dropout:
        kept = (w_hh != 0).to(torch.float64).cpu() / (1 - options.weight_dropout)
        weights = {**weights, "weight_hh": weights["weight_hh"] * kept}
    name = type(module).__name__.removesuffix("Cell")
    if name == "LSTM":
        return lambda x, h, c: reference.lstm_step(
            x,
            h,
            c,
            weights,
            coupled=options.coupled,
            peephole_previous=options.peephole_previous,
            gate=options.gate_activation,
            candidate=options.candidate_activation,
            output=options.output_activation,
        )
    if name == "GRU":
        return lambda x, h: reference.gru_step(
            x,
            h,
            weights,
            reset_after=options.reset_after,
            gate=options.gate_activation,
            candidate=options.candidate_activation,
        )
    if name == "RNN":
        return partial(reference.rnn_step, weights=weights, nonlinearity=module.nonlinearity)
    return partial(reference.mut_step, weights=weights, variant=options.variant)


def exact_zoneouts(zoneouts, shape) -> list[Tensor | None]:
    """In float64, of every step."""
    return [None if d is None else d.double().cpu().expand(*shape, d.shape[-1]) for d in zoneouts]


def exact_run(module, calls, parameters, x, states, lengths=None):
    """The oracle's outputs and last states of a layer: of ``parameters`` by name, with what ``calls`` recorded."""
    directions = 2 if module.bidirectional else 1
    steps, zoneouts = [], []
    for layer in range(module.num_layers):
        steps.append([])
        for suffix in ("", "_reverse")[:directions]:
            end, call = f"_l{layer}{suffix}", calls[len(zoneouts)]
            weights = {key.removesuffix(end): value for key, value in parameters.items() if key.endswith(end)}
            steps[-1].append(exact_step(module, weights, call["w_hh"]))
            zoneouts.append(exact_zoneouts(call["zoneouts"], x.shape[:2]))
    y, last, every = reference.layers(steps, x, states, lengths, zoneouts)
    return [y, *last], every


def check(
    monkeypatch, variant, dtype, backend, *, samples=3, time=5, lengths=None, rounding=None, training=True, **more
):
    """Values and the gradients of everything, with random cotangents, of a layer that reads in both directions."""
    first = more.get("batch_first", False)
    module = build(variant, dtype, backend.device, **more).train(training)
    recorder = Recorder(monkeypatch, module)
    x = batch_of(time, samples, module.input_size, dtype=dtype, device=backend.device)
    states = states_of(module, samples, dtype, backend.device)
    leaves = [t.requires_grad_() for t in (x, *states)]
    given = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    torch.manual_seed(11)
    got = flat(module(x.transpose(0, 1) if first else x, hidden_of(module, states), **given))
    got[0] = got[0].transpose(0, 1) if first else got[0]
    exact_leaves = [t.detach().double().cpu().requires_grad_() for t in leaves]
    parameters = {name: p.detach().double().cpu().requires_grad_() for name, p in module.named_parameters()}
    want, _ = exact_run(module, recorder.calls, parameters, exact_leaves[0], exact_leaves[1:], lengths)
    generator = torch.Generator().manual_seed(4)
    cotangents = [torch.randn(t.shape, generator=generator).to(dtype) for t in want]
    grads = torch.autograd.grad(
        got, [*leaves, *module.parameters()], [t.to(backend.device) for t in cotangents], allow_unused=True
    )
    exact = torch.autograd.grad(
        want, [*exact_leaves, *parameters.values()], [t.double() for t in cotangents], allow_unused=True
    )
    assert [g is None for g in grads] == [g is None for g in exact]
    close([*got, *filter(is_there, grads)], [*want, *filter(is_there, exact)], dtype, rounding)


def is_there(value) -> bool:
    return value is not None


# ---- against the oracle -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("lengths", [None, [2, 5, 4]], ids=str)
@every_variant
def test_values_and_gradients(variant, lengths, dtype, backend, monkeypatch):
    check(monkeypatch, variant, dtype, backend, lengths=lengths, bidirectional=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in KINKED])
def test_halves(variant, dtype, backend, monkeypatch):
    # Norms are torch's, of products that are rounded already.
    rounding = (2.5 if "layer_norm" in VARIANTS[variant][1] else 1) * ROUNDING[dtype]
    check(monkeypatch, variant, dtype, backend, lengths=[5, 3, 4], rounding=rounding, bidirectional=True)


@pytest.mark.parametrize("variant", [*ATOMS, "projected", "zoneout_of_everything", "gru_zoneout", "rnn_softsign"])
def test_layers_of_directions(variant, backend, monkeypatch):
    """MUT1 and MUT2, whose inputs are as many as their units, have layers of one direction."""
    both = VARIANTS[variant][0] not in ("MUT1", "MUT2")
    more = {"num_layers": 3, "bidirectional": both, "batch_first": True}
    check(monkeypatch, variant, torch.float64, backend, lengths=[1, 5, 3], **more)


@every_variant
def test_evaluation(variant, backend, monkeypatch):
    """Zoneout by its expectation, and no dropped weights."""
    check(monkeypatch, variant, torch.float64, backend, lengths=[2, 5, 4], training=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("samples", "hidden"), [(1, 1), (17, 33), (3, 70)])
@pytest.mark.parametrize("variant", ["peephole", "coupled_peephole", "zoneout", "gru", "cho", "mut1", "mut3", "rnn"])
def test_sizes(variant, samples, hidden, dtype, backend, monkeypatch):
    """On both sides of a vector of units and of a tile of samples."""
    check(monkeypatch, variant, dtype, backend, samples=samples, hidden=hidden, time=4, inputs=5)


@pytest.mark.parametrize("gate", F.GATE_ACTIVATIONS)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "Cho", "RNN"])
def test_every_activation(name, gate, backend, monkeypatch):
    options = {
        "LSTM": {"gate_activation": gate, "candidate_activation": gate, "output_activation": gate},
        "GRU": {"gate_activation": gate, "candidate_activation": gate},
        "Cho": {"gate_activation": gate, "candidate_activation": gate, "reset_after": False},
        "RNN": {"nonlinearity": gate},
    }[name]
    monkeypatch.setitem(VARIANTS, "this", ("GRU" if name == "Cho" else name, options))
    check(monkeypatch, "this", torch.float64, backend)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in KINKED])
def test_derivatives_twice(variant, backend):
    module = build(variant, hidden=3 if variant == "projected" else 2, inputs=2, device=backend.device)
    names, parameters = zip(*module.named_parameters(), strict=True)
    x, states = batch_of(4, 2, 2, device=backend.device), states_of(module, 2, torch.float64, backend.device)
    lengths = torch.tensor([3, 4])

    def call(x, *rest):
        hx, values = rest[: len(states)], dict(zip(names, rest[len(states) :], strict=True))
        torch.manual_seed(3)
        return tuple(flat(torch.func.functional_call(module, values, (x, hidden_of(module, hx)), {"lengths": lengths})))

    leaves = [t.detach().clone().requires_grad_() for t in (x, *states, *parameters)]
    assert gradcheck(call, leaves, fast_mode=True)
    assert gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "projected"])
def test_cells(variant, backend, monkeypatch):
    """One step, against the oracle: a batch and one sample."""
    cell = build(variant, device=backend.device, cell=True)
    recorder = Recorder(monkeypatch, cell)
    x = batch_of(1, 3, cell.input_size, device=backend.device)[0]
    count = 2 if isinstance(cell, torch.nn.LSTMCell) else 1
    states = [t.to(backend.device) for t in torch.randn(count, 3, HIDDEN, dtype=torch.float64)]
    for pick in (slice(None), 0):
        inputs = [t[pick].clone().requires_grad_() for t in (x, *states)]
        got = cell(inputs[0], tuple(inputs[1:]) if count == 2 else inputs[1])
        got = got if count == 2 else (got,)
        call = recorder.calls[-1]
        parameters = {name: p.detach().cpu().requires_grad_() for name, p in cell.named_parameters()}
        exact = [t.detach().cpu().requires_grad_() for t in inputs]
        batch = [t.view(-1, t.shape[-1]) for t in exact]
        zoneouts = exact_zoneouts(call["zoneouts"], batch[0].shape[:1])
        zoneouts = [None if d is None else d[None] for d in zoneouts]
        step = exact_step(cell, parameters, call["w_hh"])
        _, want, _ = reference.direction(step, batch[0][None], batch[1:], [1] * len(batch[0]), False, zoneouts)
        want = [t if pick == slice(None) else t[0] for t in want]
        grads = torch.autograd.grad([t.cos().sum() for t in got], [*inputs, *cell.parameters()])
        exact_grads = torch.autograd.grad([t.cos().sum() for t in want], [*exact, *parameters.values()])
        close([*got, *grads], [*want, *exact_grads], torch.float64)


@pytest.mark.parametrize("variant", [*ATOMS, "layer_norm_coupled_peephole", "lstm_hard"])
def test_cells_are_the_layers_steps(variant, backend):
    layer = build(variant, device=backend.device).eval()
    cell = build(variant, device=backend.device, cell=True).eval()
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    x = batch_of(6, 3, layer.input_size, device=backend.device)
    y, last = layer(x)
    state = None
    for t in range(6):
        state = cell(x[t], state)
        torch.testing.assert_close(state[0] if isinstance(state, tuple) else state, y[t])
    torch.testing.assert_close(state[-1], last[-1][0] if isinstance(last, tuple) else last[0, -1])


def stepped_with_norms(x, state, w_ih, w_hh, bias, norm_x, norm_h, norm_c, lengths):
    """An LSTM whose products and c are normalised where there is a gain, by torch, sample by sample."""

    def norm(u, gain, bias=None):
        return u if gain is None else torch.nn.functional.layer_norm(u, gain.shape, gain, bias)

    outputs = []
    for n, length in enumerate(lengths):
        h, c, of_sample = state[0][n], state[1][n], []
        for t in range(length):
            a = norm(w_ih @ x[t, n], norm_x) + bias + norm(w_hh @ h, norm_h)
            i, f, g, o = a.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * norm(c, norm_c, None if norm_c is None else norm_c.flip(0)).tanh()
            of_sample.append(h)
        outputs.append(torch.stack(of_sample + [torch.zeros_like(h)] * (len(x) - length)))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("norms", ["x", "h", "c", "xh", "xc", "hc", "xhc"])
@pytest.mark.parametrize(("samples", "hidden"), [(3, 5), (70, 37)])
def test_each_norm_by_itself(norms, samples, hidden, backend):
    if backend.name == "emulated" and samples > 3:
        samples = 5
    lengths = [int(n) for n in torch.randint(1, 8, (samples,))]
    lengths[1] = 7
    x, *state = (torch.randn(*size, dtype=torch.float64) for size in ((7, samples, 4), *[(samples, hidden)] * 2))
    # Products with a mean far from 0, and gains that are not 1.
    w_ih, w_hh = (torch.randn(4 * hidden, n, dtype=torch.float64) + 0.5 for n in (4, hidden))
    bias = torch.randn(4 * hidden, dtype=torch.float64)
    gains = [
        (torch.rand(size, dtype=torch.float64) + 0.5) if name in norms else None
        for name, size in zip("xhc", (4 * hidden, 4 * hidden, hidden), strict=True)
    ]
    leaves = [t.requires_grad_() for t in (x, *state, w_ih, w_hh, bias, *gains) if t is not None]
    want = stepped_with_norms(x, state, w_ih, w_hh, bias, *gains, lengths)
    cotangent = torch.randn_like(want)
    want_grads = torch.autograd.grad(want, leaves, cotangent)

    ours = {id(t): t.detach().to(backend.device).requires_grad_() for t in leaves}
    x, h, c, w_ih, w_hh, bias, *gains = (
        None if t is None else ours[id(t)] for t in (x, *state, w_ih, w_hh, bias, *gains)
    )
    y, *_ = F.lstm(
        x,
        (h, c),
        w_ih,
        w_hh,
        bias,
        lengths=torch.tensor(lengths),
        norm_ih=gains[0],
        norm_hh=gains[1],
        norm_c_weight=gains[2],
        norm_c_bias=None if gains[2] is None else gains[2].flip(0),
    )
    grads = torch.autograd.grad(y, list(ours.values()), cotangent.to(backend.device))
    torch.testing.assert_close(y.cpu(), want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close([g.cpu() for g in grads], list(want_grads), rtol=1e-8, atol=1e-8)


# ---- sequences ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [*ATOMS, "projected", "zoneout_of_everything"])
def test_packed_sequences_are_padded_ones(variant, backend):
    module = build(variant, device=backend.device).eval()
    x, lengths = batch_of(5, 4, module.input_size, device=backend.device), torch.tensor([2, 5, 1, 4])
    want = flat(module(x, lengths=lengths))
    output, hidden = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
    torch.testing.assert_close(flat((pad_packed_sequence(output)[0], hidden)), want)


@pytest.mark.parametrize("kind", ["LSTM", "LSTMCell"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_gains_and_biases_are_added_up_in_float32(dtype, kind):
    """torch's layer norm adds them up in the half type on a CPU: ones up to 256 in bfloat16."""
    torch.manual_seed(0)
    layer = getattr(fastnn.nn, kind)(5, 6, layer_norm=True).to(dtype)
    exact = getattr(fastnn.nn, kind)(5, 6, layer_norm=True).double()
    exact.load_state_dict(layer.state_dict())
    rows = torch.randn(1, 5).to(dtype).expand(3000, 5)
    grads = []
    for module in (layer, exact):
        x = rows.to(module.weight_ih.dtype if kind == "LSTMCell" else module.weight_ih_l0.dtype)
        out, _ = module(x if kind == "LSTMCell" else x.expand(2, 3000, 5))
        grads.append(torch.autograd.grad(out.sum() / 100, list(module.parameters())))
    for (name, _), got, want in zip(layer.named_parameters(), *grads, strict=True):
        assert (got.double() - want).abs().max() <= 0.03 * want.abs().max(), name


@pytest.mark.parametrize("variant", ["layer_norm", "mut1", "mut2", "mut3", "peephole"])
def test_what_lies_beyond_a_sequence_is_not_read(variant, backend):
    module = build(variant, device=backend.device, num_layers=2)
    x, lengths = batch_of(5, 3, module.input_size, device=backend.device), torch.tensor([2, 5, 0])

    def run(x):
        x = x.clone().requires_grad_()
        results = flat(module(x, lengths=lengths))
        return [*results, *torch.autograd.grad(sum(t.cos().sum() for t in results), [x, *module.parameters()])]

    clean = run(x)
    for n, length in enumerate(lengths.tolist()):
        x[length:, n] = float("nan")
    assert all(torch.equal(a, b) for a, b in zip(run(x), clean, strict=True))


@pytest.mark.parametrize("variant", ["lstm", "peephole", "zoneout", "projected", "layer_norm_coupled_peephole"])
@pytest.mark.parametrize("lengths", [None, [2, 5, 4]], ids=str)
def test_cells_of_every_step(variant, lengths, backend, monkeypatch):
    module = build(variant, device=backend.device, bidirectional=True, num_layers=2)
    recorder = Recorder(monkeypatch, module)
    x = batch_of(5, 3, 3, device=backend.device)
    given = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    y, hidden, cells = module(x, return_cells=True, **given)
    parameters = {name: p.detach().cpu() for name, p in module.named_parameters()}
    zeros = [torch.zeros_like(t).cpu() for t in hidden]
    (want, *_), every = exact_run(module, recorder.calls, parameters, x.cpu(), zeros, lengths)
    close([y, cells], [want, every], torch.float64)
    # Their gradient reaches what made them.
    (grad,) = torch.autograd.grad(cells.sum(), module.weight_ih_l0)
    assert grad.abs().max() > 0
    if lengths is None:
        packed = pack_padded_sequence(x, torch.tensor([5, 5, 5]))
        _, _, rows = module.eval()(packed, return_cells=True)
        torch.testing.assert_close(pad_packed_sequence(rows)[0], module(x, return_cells=True)[2])


@some_variants
def test_state_is_carried_over_chunks(variant, backend):
    """Truncated backpropagation: chunks give what the whole gives; gradients end where a state was cut."""
    module = build(variant, device=backend.device).eval()
    x = batch_of(12, 3, module.input_size, device=backend.device)
    whole, _ = module(x)
    state, parts, last = None, [], None
    for chunk in x.split(5):
        last = chunk.detach().requires_grad_()
        part, state = module(last, state)
        state = tuple(t.detach() for t in state) if isinstance(state, tuple) else state.detach()
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts), whole)
    # The last chunk's own gradient is that of the whole with the state before it as a constant.
    (grad,) = torch.autograd.grad(parts[-1].sum(), last)
    leaf = x.clone().requires_grad_()
    (full,) = torch.autograd.grad(module(leaf)[0][10:].sum(), leaf)
    torch.testing.assert_close(grad, full[10:])
    assert full[:10].abs().max() > 0


@pytest.mark.parametrize("variant", ["layer_norm", "mut1", "coupled_peephole", "cho"])
def test_autocast(variant):
    module = build(variant, torch.float32)
    x = batch_of(4, 2, module.input_size, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x)[0]
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), module(x)[0], rtol=0, atol=6e-2)


# ---- what is random -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["zoneout", "weight_dropout", "gru_zoneout", "mut3_zoneout", "rnn_softsign"])
def test_the_same_seed_gives_the_same_bits(variant, backend):
    module = build(variant, torch.float32, backend.device, num_layers=2, dropout=0.3)
    x = batch_of(6, 3, module.input_size, dtype=torch.float32, device=backend.device)
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        leaf = x.clone().requires_grad_()
        output = flat(module(leaf))
        results.append([*output, *torch.autograd.grad(output[0].sum(), [leaf, *module.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*results[:2], strict=True))
    assert not torch.equal(results[0][0], results[2][0])


def test_zoneout_keeps_the_share_of_units_that_it_should(monkeypatch):
    torch.manual_seed(0)
    module = fastnn.nn.LSTM(3, 50, zoneout=(0.3, 0.1)).double()
    recorder = Recorder(monkeypatch, module)
    cells = module(batch_of(40, 20, 3), return_cells=True)[2]
    masks = recorder.calls[0]["zoneouts"]
    for mask, rate in zip(masks, (0.3, 0.1), strict=True):
        assert mask.shape == (40, 20, 50)
        assert ((mask == 0) | (mask == 1)).all()
        assert mask.mean().item() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / mask.numel()) ** 0.5)
        # Each step, sample and unit for itself.
        for dims in ((0, 1), (0, 2), (1, 2)):
            means = mask.mean(dims)
            assert (means - rate).abs().max() < 5 * (rate * (1 - rate) * means.numel() / mask.numel()) ** 0.5
    kept = masks[1][1:].bool()
    assert torch.equal(cells[1:][kept], cells[:-1][kept])
    assert not (cells[1:] == cells[:-1])[~kept].any()
    module.eval()
    module(batch_of(40, 20, 3))
    for share, rate in zip(recorder.calls[-1]["zoneouts"], (0.3, 0.1), strict=True):
        assert torch.equal(share, torch.full((50,), rate, dtype=torch.float64))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "MUT3"])
def test_zoneout_of_1_keeps_the_state_and_of_0_is_none(name):
    frozen = getattr(fastnn.nn, name)(3, 4, zoneout=1.0).double()
    state = torch.randn(1, 2, 4, dtype=torch.float64)
    y, last = frozen(batch_of(5, 2, 3), (state, state) if name == "LSTM" else state)
    assert torch.equal(y, state.expand(5, 2, 4))
    assert torch.equal(last[0] if name == "LSTM" else last, state)
    none = getattr(fastnn.nn, name)(3, 4, zoneout=(0.0, 0.0) if name == "LSTM" else 0.0)
    assert repr(none) == f"{name}(3, 4)"
    assert none.is_plain or name == "MUT3"


def test_dropped_weights(monkeypatch):
    """Once a forward pass, the same for all steps and samples; the others are scaled; none in evaluation."""
    torch.manual_seed(0)
    module = fastnn.nn.LSTM(3, 40, weight_dropout=0.25, bidirectional=True).double()
    recorder = Recorder(monkeypatch, module)
    module(batch_of(6, 2, 3))
    assert len(recorder.calls) == 2  # one for each direction
    for call, weight in zip(recorder.calls, (module.weight_hh_l0, module.weight_hh_l0_reverse), strict=True):
        dropped = call["w_hh"] == 0
        assert dropped.double().mean().item() == pytest.approx(0.25, abs=4 * (0.1875 / weight.numel()) ** 0.5)
        torch.testing.assert_close(call["w_hh"][~dropped], weight[~dropped] / 0.75)
    assert not torch.equal(recorder.calls[0]["w_hh"] == 0, recorder.calls[1]["w_hh"] == 0)
    module.eval()
    plain = fastnn.nn.LSTM(3, 40, bidirectional=True).double()
    plain.load_state_dict(module.state_dict())
    assert torch.equal(module(batch_of(6, 2, 3))[0], plain(batch_of(6, 2, 3))[0])


@pytest.mark.parametrize("variant", ["lstm", "coupled_peephole", "zoneout", "gru", "cho", "mut1", "layer_norm"])
def test_a_thousand_runs_bit_for_bit(variant):
    module = build(variant, torch.float32, hidden=5)
    x = batch_of(5, 3, module.input_size, dtype=torch.float32)

    def run():
        torch.manual_seed(9)
        leaf = x.clone().requires_grad_()
        output = flat(module(leaf))
        return [*output, *torch.autograd.grad(output[0].square().sum(), [leaf, module.weight_hh_l0])]

    first = run()
    for _ in range(1000):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


@every_variant
@pytest.mark.parametrize("lengths", [None, [2, 6, 4]], ids=str)
def test_memory_efficient_layers_have_the_same_bits_and_keep_less(variant, lengths, backend):
    results, kept = [], []
    for efficient in (False, True):
        module = build(variant, torch.float32, backend.device, memory_efficient=efficient)
        x = batch_of(6, 3, module.input_size, dtype=torch.float32, device=backend.device)
        saved = []
        torch.manual_seed(9)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            output = flat(module(x, lengths=None if lengths is None else torch.tensor(lengths)))
        torch.manual_seed(3)
        loss = sum((t * torch.randn_like(t)).sum() for t in output)
        results.append([*output, *torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)])
        kept.append(sum(saved))
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*results, strict=True))
    if backend.name == "cpu" and variant != "projected":  # elsewhere the cell may be stepped over time
        assert kept[1] < kept[0]


# ---- what an option does to a layer -------------------------------------------------------------------------


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("name", ["LSTM", "LSTMCell"])
def test_forget_bias(name, coupled):
    module = getattr(fastnn.nn, name)(3, 4, forget_bias=1.5, coupled=coupled)
    end = "" if name == "LSTMCell" else "_l0"
    ih, hh = (getattr(module, f"bias_{kind}{end}") for kind in ("ih", "hh"))
    block = slice(0, 4) if coupled else slice(4, 8)
    assert torch.equal((ih + hh)[block], torch.full((4,), 1.5))
    others = torch.ones(ih.numel(), dtype=torch.bool)
    others[block] = False
    assert (ih[others] != 0).all() and (hh[others] != 0).all()
    with torch.no_grad():
        ih.zero_()
    module.reset_parameters()
    assert (ih[block] == 1.5).all()


def test_gradients_flow_through_open_forget_gates():
    """Hochreiter and Schmidhuber's carousel, of a coupled cell: f = 1 and nothing else, c's gradient is unchanged."""
    module = fastnn.nn.LSTM(2, 3, coupled=True, peephole=True, forget_bias=800.0).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.startswith("bias"):
                parameter.zero_()
    c = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    _, (_, last) = module(batch_of(1000, 2, 2), (torch.zeros_like(c), c))
    assert torch.equal(last, c)
    (grad,) = torch.autograd.grad(last.sum(), c)
    assert torch.equal(grad, torch.ones_like(c))


@pytest.mark.parametrize("cell", [False, True])
@every_variant
def test_copies_and_state_dicts(variant, cell):
    if cell and variant == "projected":
        return
    module = build(variant, torch.float32, cell=cell).eval()
    x = batch_of(1 if cell else 4, 3, module.input_size, dtype=torch.float32)
    x = x[0] if cell else x
    fresh = build(variant, torch.float32, cell=cell).eval()
    fresh.reset_parameters()
    fresh.load_state_dict(module.state_dict())
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh):
        assert repr(other) == repr(module)
        assert other.cell_options == module.cell_options
        for a, b in zip(flat_any(other(x)), flat_any(module(x)), strict=True):
            assert torch.equal(a, b)
    if module.is_plain:
        stock = getattr(torch.nn, type(module).__name__)
        assert list(module.state_dict()) == list(stock(module.input_size, HIDDEN).state_dict())


def flat_any(results) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(results)


def test_repr_and_names():
    module = fastnn.nn.LSTM(
        3, 4, bidirectional=True, peephole=True, layer_norm=True, zoneout=(0.1, 0.2), gate_activation="hard_sigmoid"
    )
    assert repr(module) == (
        "LSTM(3, 4, bidirectional=True, zoneout=(0.1, 0.2), peephole=True, layer_norm=True, "
        "gate_activation='hard_sigmoid')"
    )
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ch"]
    names += ["weight_norm_ih", "weight_norm_hh", "weight_norm_ch", "bias_norm_ch"]
    assert list(module.state_dict()) == [name + end for end in ("_l0", "_l0_reverse") for name in names]
    assert torch.equal(module.weight_norm_ih_l0, torch.ones(16)) and not module.bias_norm_ch_l0.any()
    assert repr(fastnn.nn.RNNCell(3, 4, nonlinearity="softsign")) == "RNNCell(3, 4, nonlinearity=softsign)"
    assert repr(fastnn.nn.RNN(3, 4, nonlinearity="softsign")) == "RNN(3, 4, nonlinearity=softsign)"
    assert repr(fastnn.nn.MUT2Cell(4, 4, zoneout=0.5)) == "MUT2Cell(4, 4, zoneout=0.5)"
    assert list(fastnn.nn.MUT1(4, 4, bias=False).state_dict()) == ["weight_ih_l0", "weight_hh_l0"]
    assert list(fastnn.nn.GRU(3, 4, reset_after=False).state_dict()) == list(torch.nn.GRU(3, 4).state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda nn: nn.LSTM(3, 4, zoneout=1.5), "zoneout must be a number from 0 to 1, got 1.5"),
        (lambda nn: nn.LSTM(3, 4, zoneout=(0.1, -0.1)), "zoneout must be a number from 0 to 1, got -0.1"),
        (lambda nn: nn.LSTM(3, 4, zoneout=(0.1, 0.1, 0.1)), "zoneout must be a number or a pair"),
        (lambda nn: nn.GRU(3, 4, zoneout=(0.1, 0.1)), r"zoneout must be a number from 0 to 1, got \(0.1, 0.1\)"),
        (lambda nn: nn.RNN(3, 4, weight_dropout=True), "weight_dropout must be a number from 0 to 1, got True"),
        (lambda nn: nn.LSTMCell(3, 4, weight_dropout=float("nan")), "weight_dropout must be a number from 0 to 1"),
        (lambda nn: nn.LSTM(3, 4, gate_activation="elu"), "gate_activation must be one of .*identity, got 'elu'"),
        (lambda nn: nn.GRUCell(3, 4, candidate_activation="elu"), "candidate_activation must be one of"),
        (lambda nn: nn.LSTMCell(3, 4, output_activation="elu"), "output_activation must be one of"),
        (lambda nn: nn.RNNCell(3, 4, nonlinearity="elu"), "nonlinearity must be one of"),
        (lambda nn: nn.LSTM(3, 4, peephole_previous=True), "peephole_previous must be False without peephole"),
        (lambda nn: nn.LSTM(3, 4, bias=False, forget_bias=1.0), "forget_bias must be None without bias, got 1.0"),
        (lambda nn: nn.LSTM(3, 4, forget_bias="one"), "forget_bias must be a finite number or None, got 'one'"),
        (
            lambda nn: nn.LSTMCell(3, 4, forget_bias=float("inf")),
            "forget_bias must be a finite number or None, got inf",
        ),
        (lambda nn: nn.LSTM(3, 4, peephole="diagonal"), "peephole must be True or False, got 'diagonal'"),
        (lambda nn: nn.GRU(3, 4, reset_after=0), "reset_after must be True or False, got 0"),
        (lambda nn: nn.MUT1(3, 4), "MUT1: the inputs of a layer.*4 hidden units, got 3"),
        (lambda nn: nn.MUT2Cell(5, 4), "MUT2Cell: the inputs of a layer.*4 hidden units, got 5"),
        (lambda nn: nn.MUT2(4, 4, 2, bidirectional=True), "MUT2: the inputs of a layer.*4 hidden units, got 8"),
        (lambda nn: nn.MUT3(3, 4, dropout=2.0, num_layers=2), "dropout should be a number in range"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make(fastnn.nn)


def test_variants_are_not_reverted():
    model = torch.nn.ModuleList(
        [
            fastnn.nn.LSTM(3, 4, peephole=True),
            fastnn.nn.GRUCell(3, 4, reset_after=False),
            fastnn.nn.RNN(3, 4, nonlinearity="softsign"),
            fastnn.nn.MUT3(3, 4),
            fastnn.nn.LSTM(3, 4, forget_bias=1.0),
            fastnn.nn.RNNCell(3, 4),
        ]
    )
    before = [type(module) for module in model]
    assert fastnn.conversion_report(model).replaced == 6
    assert [type(module) for module in fastnn.convert(model)] == before
    assert [type(module) for module in fastnn.revert(model)] == [*before[:4], torch.nn.LSTM, torch.nn.RNNCell]


def test_compile():
    module = build("coupled_peephole", torch.float32, bidirectional=True)
    x = batch_of(4, 2, 3, dtype=torch.float32)
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x)[0], module(x)[0])


# ---- the oracle ---------------------------------------------------------------------------------------------


def test_the_oracle_knows_torch_s_cells():
    generator = torch.Generator().manual_seed(0)

    def t(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x, h, c = t(3), t(4), t(4)
    for gates, step, torch_s, states in (
        (4, reference.lstm_step, lambda x, h, c, *w: torch.lstm_cell(x, (h, c), *w), (h, c)),
        (3, reference.gru_step, lambda *a: (torch.gru_cell(*a),), (h,)),
        (1, reference.rnn_step, lambda *a: (torch.rnn_tanh_cell(*a),), (h,)),
    ):
        weights = (t(4 * gates, 3), t(4 * gates, 4), t(4 * gates), t(4 * gates))
        named = dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights, strict=True))
        want = torch_s(x[None], *(s[None] for s in states), *weights)
        for actual, expected in zip(step(x, *states, named), want, strict=True):
            torch.testing.assert_close(actual, expected[0])


def test_the_oracle_by_hand():
    """One unit, numbers that can be followed."""
    one = torch.ones(1, dtype=torch.float64)
    # a_i, a_f, a_g, a_o = 0, 1, 2, 3 with h = 0; peepholes 1, 2, 3; c = 2.
    weights = {
        "weight_ih": torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64),
        "weight_hh": torch.zeros(4, 1, dtype=torch.float64),
        "weight_ch": torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64),
    }
    h, c = reference.lstm_step(
        one, 0 * one, 2 * one, weights, gate="hard_sigmoid", candidate="identity", output="identity"
    )
    i, f = 2 / 6 + 0.5, 1.0  # of 0 + 1 * 2 and 1 + 2 * 2
    assert c.item() == pytest.approx(f * 2 + i * 2)
    assert h.item() == pytest.approx(1.0 * c.item())  # of 3 + 3 c
    mut = {"weight_ih": 0 * weights["weight_hh"][:2], "weight_hh": weights["weight_hh"][:2]}
    (h,) = reference.mut_step(one, 4 * one, mut, variant=1)
    assert h.item() == pytest.approx(0.5 * torch.tanh(torch.tanh(one)).item() + 0.5 * 4)


@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.5, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_zoneouts_masks_are_as_frequent_as_their_rate(rate, dtype):
    like = torch.empty(50, 64, 3, dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        mask = _shares_of_old(rate, like, 512, training=True)
        torch.manual_seed(5)
        assert torch.equal(mask, _shares_of_old(rate, like, 512, training=True))
    assert mask.shape == (50, 64, 512)
    assert mask.dtype == dtype
    assert ((mask == 0) | (mask == 1)).all()
    assert abs(mask.double().mean().item() - rate) <= 6 * (rate * (1 - rate) / mask.numel()) ** 0.5 + 2**-30
