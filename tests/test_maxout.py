"""maxout against the float64 oracle: values and gradients to the bit; the layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from op_tester import (
    check_format_kept,
    check_repeatable,
    check_second_derivatives,
    check_values_and_gradients,
    grid,
)

import fastnn
from fastnn.testing.cases import MAXOUT, generator_for

BY_ID = {case.id: case for case in MAXOUT}
NATIVE = ["contiguous", "channels_last"]


@grid(MAXOUT)
def test_values_and_gradients(case, dtype, layout, backend):
    check_values_and_gradients(case, dtype, layout, backend.device)


@grid([BY_ID[n] for n in ("4d", "first_5", "5d", "wide")], dtypes=[torch.float32, torch.bfloat16], layouts=NATIVE)
def test_format_and_bits_are_kept(case, dtype, layout, backend):
    check_format_kept(case, dtype, layout, backend.device)
    check_repeatable(case, dtype, layout, backend.device, backend.repetitions(), threads=backend.name == "cpu")


@grid([BY_ID[n] for n in ("3", "first_5", "rows")], dtypes=[torch.float64], layouts=[*NATIVE, "sliced"])
def test_second_derivatives(case, dtype, layout, backend):
    check_second_derivatives(case, dtype, layout, backend.device)


@pytest.mark.parametrize("pieces_first", [False, True])
def test_one_byte_is_kept_for_an_output(pieces_first):
    x = torch.randn(2, 12, 5, 5, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = fastnn.functional.maxout(x, 4, pieces_first)
    assert [(t.dtype, t.numel()) for t in kept] == [(torch.uint8, y.numel())]


@pytest.mark.parametrize("pieces_first", [False, True])
def test_tangents_and_transforms(pieces_first, backend):
    generator = generator_for("maxout transforms")
    x, t = (torch.randn(3, 6, 4, 2, generator=generator, dtype=torch.float64).to(backend.device) for _ in "xt")

    def ours(x):
        return fastnn.functional.maxout(x, 3, pieces_first)

    def torch_s(x):
        return x.unflatten(1, (3, 2) if pieces_first else (2, 3)).amax(1 if pieces_first else 2)

    torch.testing.assert_close(torch.func.jvp(ours, (x,), (t,)), torch.func.jvp(torch_s, (x,), (t,)))
    batch = torch.stack([x, t], 2)
    for f in (lambda g: g, lambda g: torch.func.grad(lambda x: g(x).square().sum())):
        torch.testing.assert_close(torch.func.vmap(f(ours), 2)(batch), torch.func.vmap(f(torch_s), 2)(batch))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic):
    x = torch.randn(3, 12, 5, 5, requires_grad=True)

    def loss(x):
        return fastnn.functional.maxout(x, 3).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    (want,), (got,) = (torch.autograd.grad(f(x), x) for f in (loss, compiled))
    assert torch.equal(got, want)


def test_layer():
    layer = fastnn.nn.Maxout(3, pieces_first=True)
    x = torch.randn(2, 6, 4)
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), fastnn.functional.maxout(x, 3, True))
        assert repr(other) == "Maxout(3, pieces_first=True)"
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), fastnn.nn.Maxout(2), torch.nn.Flatten(), torch.nn.Linear(16, 6)
    )
    assert fastnn.conversion_report(fastnn.convert(model)).rows[1].replaced
    with pytest.raises(ValueError, match="pieces must be at least 1, but got 0"):
        fastnn.nn.Maxout(0)


def test_bad_arguments():
    function = fastnn.functional.maxout
    with pytest.raises(ValueError, match=r"multiple of pieces.*\[2, 7, 3\].*pieces=2"):
        function(torch.randn(2, 7, 3), 2)
    with pytest.raises(RuntimeError, match="pieces=0"):
        function(torch.randn(2, 6), 0)
    with pytest.raises(RuntimeError, match="2 or more dimensions"):
        function(torch.randn(6), 2)
    with pytest.raises(NotImplementedError, match="input has dtype Long"):
        function(torch.ones(2, 4, 3, dtype=torch.int64), 2)
