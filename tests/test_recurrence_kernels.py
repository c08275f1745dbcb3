"""The recurrence's CUDA kernels, whatever blocks they are shared out among (csrc/cuda/recurrence_plan.cuh).

The emulator plays small devices, on which layers of tens of units need what layers of a thousand need on a real one:
several blocks for the units, several groups for the samples, several passes of a group.
"""

from __future__ import annotations

import copy
import os
from contextlib import contextmanager

import pytest
import torch
from recurrent_pairs import ROUNDING, batch_of, close, flat, hidden_of, states_of
from torch.nn.utils.rnn import pack_padded_sequence

import fastnn
from fastnn.testing.access_profile import access_profile
from fastnn.testing.emulation import emulated_cuda, execution_order, played_device

pytestmark = pytest.mark.skipif(os.environ.get("FASTNN_TEST_EMULATOR") == "0", reason="the emulator is left out")

NAMES = ("recurrence_forward", "recurrence_backward")
# How the blocks of a group give each other their state: through L2, or in clusters.
L2, CLUSTERS = 80, 90


def roomy(blocks, dtype):
    """A block has all units; a group of few samples for each multiprocessor."""
    return {"multiprocessors": 4}


def single(blocks, dtype):
    """One block, with more samples than a pass has."""
    return {"multiprocessors": 1}


def tight(blocks, dtype):
    """Three blocks of a group have 37 units, which do not fit into one, and two or three groups the samples.

    Args:
        blocks: blocks of H recurrent weights.
    """
    least, of_block = {2: (2, 5.25), 4: (1.3, 6.7), 8: (6, 12)}[dtype.itemsize]
    return {"multiprocessors": 9, "shared_bytes": int((least + of_block * blocks) * 1024)}


KINDS = {
    "lstm": ("LSTM", {}),
    "peephole_zoneout": ("LSTM", {"peephole": True, "zoneout": (0.3, 0.2)}),
    "coupled_previous": ("LSTM", {"coupled": True, "peephole": True, "peephole_previous": True}),
    "softsign": ("LSTM", {"candidate_activation": "softsign", "output_activation": "identity", "coupled": True}),
    "gru": ("GRU", {}),
    "gru_zoneout": ("GRU", {"zoneout": 0.3}),
    "cho": ("GRU", {"reset_after": False}),
    "rnn": ("RNN", {}),
    "rnn_zoneout": ("RNN", {"nonlinearity": "softsign", "zoneout": 0.2}),
    "mut1": ("MUT1", {}),
    "mut2": ("MUT2", {}),
    "mut3_zoneout": ("MUT3", {"zoneout": 0.3}),
    "normalised": ("LSTM", {"layer_norm": True}),
    "normalised_coupled": ("LSTM", {"layer_norm": True, "coupled": True, "peephole": True, "zoneout": (0.3, 0.2)}),
}


def passes(blocks, dtype):
    """Two or three blocks of the only group have a GRU's 37 units in float32, and more samples than a pass has."""
    return {"multiprocessors": 3, "shared_bytes": 100 * 1024}


def passes_l2(blocks, dtype):
    """The same of an LSTM, through L2."""
    return {"multiprocessors": 3, "shared_bytes": 33 * 1024}


def wide(blocks, dtype):
    """Nine blocks of a group have an LSTM's 72 units in float32: a cluster larger than all devices take."""
    return {"multiprocessors": 16, "shared_bytes": 38 * 1024}


# Device that is played, its way, hidden size, lengths or samples of 4 steps.
RAGGED = [4, 5, 5, 2, 1, 4, 5, 3, 4]
LAYOUTS = {
    "roomy": (roomy, CLUSTERS, 7, [4, 1, 5]),
    "roomy_l2": (roomy, L2, 40, 1),
    "tight": (tight, CLUSTERS, 37, RAGGED),
    "tight_l2": (tight, L2, 37, RAGGED),
    "single": (single, CLUSTERS, 19, 35),
    "single_l2": (single, L2, 19, 35),
}
FLOAT32_LAYOUTS = {
    "passes": (passes, CLUSTERS, 37, 35),
    "passes_l2": (passes_l2, L2, 37, 35),
    "wide": (wide, CLUSTERS, 72, [4, 2, 1]),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# All types where blocks meet, elsewhere two.
CASES = [(layout, dtype) for layout in ("tight", "tight_l2") for dtype in DTYPES]
CASES += [(layout, dtype) for layout in ("roomy", "single_l2") for dtype in DTYPES[1:3]]
CASES += [(layout, dtype) for layout in ("roomy_l2", "single") for dtype in DTYPES[::3]]


def build(kind: str, hidden: int, dtype: torch.dtype, **more):
    """Zoneout is by its expectation."""
    name, options = KINDS[kind]
    torch.manual_seed(1)
    inputs = hidden if name in ("MUT1", "MUT2") else 5
    layer = getattr(fastnn.nn, name)(inputs, hidden, **options, **more)
    for parameter, value in layer.named_parameters():
        if "norm" in parameter:  # gains are not 1 and biases not 0
            value.data.add_(torch.randn_like(value), alpha=0.5)
    return layer.to(dtype).eval()


@contextmanager
def laid_out(layout: str, layer):
    """The emulator as a layout's device. Fails where other kernels run than that is for."""
    device, exchange, _, _ = (LAYOUTS | FLOAT32_LAYOUTS)[layout]
    dtype = next(layer.parameters()).dtype
    blocks = layer.weight_hh_l0.shape[0] // layer.hidden_size
    with (
        emulated_cuda(),
        played_device(**device(blocks, dtype), compute_capability=exchange),
        access_profile() as kernels,
    ):
        yield
    ending = "_cluster" if exchange == CLUSTERS else ""
    assert {name + ending for name in NAMES} <= {kernel.name for kernel in kernels}


def values_and_gradients(layer, samples, rounded: torch.dtype):
    """Everything that the layer computes of inputs and with cotangents that are numbers of another type."""
    lengths = samples if isinstance(samples, list) else None
    count = len(samples) if lengths else samples
    dtype = next(layer.parameters()).dtype
    x = batch_of(max(lengths) if lengths else 4, count, layer.input_size, dtype=rounded)
    leaves = [t.to(dtype).requires_grad_() for t in (x, *states_of(layer, count, rounded))]
    given = pack_padded_sequence(leaves[0], torch.tensor(lengths), enforce_sorted=False) if lengths else leaves[0]
    got = flat(layer(given, hidden_of(layer, tuple(leaves[1:]))))
    generator = torch.Generator().manual_seed(4)
    cotangents = [torch.randn(t.shape, generator=generator).to(rounded).to(dtype) for t in got]
    return [*got, *torch.autograd.grad(got, [*leaves, *layer.parameters()], cotangents)]


@pytest.mark.parametrize(("layout", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("kind", list(KINDS))
def test_values_and_gradients(kind, layout, dtype):
    """Against the CPU's kernels in float64."""
    _, _, hidden, samples = LAYOUTS[layout]
    layer = build(kind, hidden, dtype)
    with laid_out(layout, layer):
        got = values_and_gradients(layer, samples, dtype)
    rounding = (2.5 if kind.startswith("normalised") else 1) * ROUNDING[dtype]
    close(got, values_and_gradients(copy.deepcopy(layer).double(), samples, dtype), dtype, rounding)


@pytest.mark.parametrize(
    ("kind", "layout"), [("gru", "passes"), ("lstm", "passes_l2"), ("normalised", "passes_l2"), ("lstm", "wide")]
)
def test_several_passes_and_a_wide_cluster(kind, layout):
    _, _, hidden, samples = FLOAT32_LAYOUTS[layout]
    layer = build(kind, hidden, torch.float32)
    with laid_out(layout, layer):
        got = values_and_gradients(layer, samples, torch.float32)
    want = values_and_gradients(copy.deepcopy(layer).double(), samples, torch.float32)
    close(got, want, torch.float32, 2.5 * ROUNDING[torch.float32])


@pytest.mark.parametrize("norms", [["norm_hh"], ["norm_c_weight"], ["norm_c_weight", "norm_c_bias"]], ids="-".join)
@pytest.mark.parametrize("layout", ["tight", "tight_l2"])
def test_one_norm(norms, layout):
    _, _, hidden, samples = LAYOUTS[layout]
    layer = build("lstm", hidden, torch.float32)
    generator = torch.Generator().manual_seed(5)
    sizes = [4 * hidden if name == "norm_hh" else hidden for name in norms]
    gains = [1 + torch.randn(size, generator=generator) / 2 for size in sizes]
    x = batch_of(max(samples), len(samples), 5, dtype=torch.float32)
    lengths = torch.tensor(samples)

    def run(dtype):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *states_of(layer, len(samples), dtype), *gains)]
        weights = [t.detach().to(dtype).requires_grad_() for t in layer.parameters()]
        states = (leaves[1][0], leaves[2][0])
        more = dict(zip(norms, leaves[3:], strict=True))
        got = fastnn.functional.lstm(leaves[0], states, *weights, lengths=lengths, return_cells=True, **more)
        cotangents = [torch.randn(t.shape, generator=torch.Generator().manual_seed(6)).to(dtype) for t in got]
        return [*got, *torch.autograd.grad(got, [*leaves, *weights], cotangents)]

    with laid_out(layout, layer):
        got = run(torch.float32)
    close(got, run(torch.float64), torch.float32, 2.5 * ROUNDING[torch.float32])


@pytest.mark.parametrize(
    ("kind", "layout", "dtype"),
    [
        ("peephole_zoneout", "tight", torch.float32),
        ("gru", "tight", torch.bfloat16),
        ("gru", "tight_l2", torch.float32),
        ("mut3_zoneout", "tight_l2", torch.bfloat16),
        ("normalised", "tight", torch.float32),
        ("normalised", "tight_l2", torch.float32),
    ],
    ids=str,
)
def test_every_order_of_execution_gives_the_same_bits(kind, layout, dtype):
    _, _, hidden, samples = LAYOUTS[layout]
    layer = build(kind, hidden, dtype, bidirectional=kind == "gru")
    with laid_out(layout, layer):
        first = values_and_gradients(layer, samples, dtype)
        for seed in (1, 2, 3):
            with execution_order(seed, 2):
                for again, value in zip(values_and_gradients(layer, samples, dtype), first, strict=True):
                    assert torch.equal(again, value)


@pytest.mark.parametrize("kind", ["lstm", "cho"])
def test_weights_that_do_not_fit(kind):
    """The cell is stepped."""
    layer = build(kind, 40, torch.float32)
    with emulated_cuda(), played_device(multiprocessors=2, shared_bytes=4096), access_profile() as kernels:
        got = values_and_gradients(layer, 3, torch.float32)
    assert not any(kernel.name.startswith(NAMES) for kernel in kernels)
    close(got, values_and_gradients(copy.deepcopy(layer).double(), 3, torch.float32), torch.float32)


@pytest.mark.parametrize("layout", ["tight", "single_l2"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "mut3_zoneout"])
def test_tf32(kind, layout):
    """Where torch's flags allow it operands of products have 11 bits, as float16's have."""
    _, _, hidden, samples = LAYOUTS[layout]
    layer = build(kind, hidden, torch.float32)
    want = values_and_gradients(copy.deepcopy(layer).double(), samples, torch.float32)
    with laid_out(layout, layer):
        exact = values_and_gradients(layer, samples, torch.float32)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            got = values_and_gradients(layer, samples, torch.float32)
    assert not torch.equal(exact[0], got[0])
    close(got, want, torch.float32, ROUNDING[torch.float16])
