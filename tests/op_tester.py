"""The op tester: one set of checks for every op, dtype, layout and backend.

Each check takes a case of ``fastnn.testing.cases`` and judges ``fastnn.functional`` by the float64 oracle and
the error bounds of ``fastnn.testing``. The tests of each op choose which checks run on which cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastnn
from fastnn.testing import bounds, trial
from fastnn.testing.cases import ALL_DTYPES, LAYOUTS, Case
from fastnn.testing.judge import find_fault, same_bits
from fastnn.testing.trial import floating, gradients, make_cotangents, make_inputs

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def grid(
    cases: Iterable[Case],
    dtypes: Sequence[torch.dtype] = ALL_DTYPES,
    layouts: Sequence[str] | None = LAYOUTS,
) -> pytest.MarkDecorator:
    """Parametrises a test over case, dtype and (unless None) layout, without what the case rules out."""
    rows = []
    for case in cases:
        for dtype in dtypes:
            if dtype not in case.dtypes:
                continue
            name = f"{case.id}-{str(dtype).removeprefix('torch.')}"
            if layouts is None:
                rows.append(pytest.param(case, dtype, id=name))
            else:
                rows.extend(pytest.param(case, dtype, layout, id=f"{name}-{layout}") for layout in layouts)
    return pytest.mark.parametrize("case, dtype" if layouts is None else "case, dtype, layout", rows)


def assert_bounded(
    actual: Tensor | None, expected: bounds.Bounded, what: str, dtype: torch.dtype | None = None
) -> None:
    """Every element within its bound; NaN and infinities where the oracle has them, with their signs."""
    fault = find_fault(actual, expected, dtype)
    assert fault is None, f"{what}: {fault}"


def run(case: Case, dtype: torch.dtype, layout: str, device: torch.device) -> dict[str, Tensor | None]:
    """Everything a case gives, by name: outputs, gradients and mutated buffers."""
    return trial.run(case, fastnn.functional, dtype, layout, device).results


def check_values_and_gradients(case: Case, dtype: torch.dtype, layout: str, device: torch.device) -> None:
    """Outputs, gradients and buffers within their bounds; dtypes right; nothing else written."""
    done = trial.run(case, fastnn.functional, dtype, layout, device)
    want = trial.expected(case, dtype, layout)
    assert done.results.keys() == want.keys()
    for name, (bounded, expected_dtype) in want.items():
        assert_bounded(done.results[name], bounded, name, expected_dtype)
    assert not done.modified(), f"{', '.join(done.modified())} modified"


def check_format_kept(case: Case, dtype: torch.dtype, layout: str, device: torch.device) -> None:
    """Contiguous stays contiguous and channels_last stays channels_last, output and input's gradient alike."""
    inputs = make_inputs(case, dtype, layout, device)
    outputs = case.apply(fastnn.functional, inputs)
    (grad,) = gradients(outputs, make_cotangents(case, outputs, layout), [inputs["input"]])
    for what, tensor in [(f"output {i}", out) for i, out in enumerate(outputs)] + [("gradient of input", grad)]:
        expected = FORMATS.get(tensor.dim()) if layout == "channels_last" else torch.contiguous_format
        if expected is not None:
            assert tensor.is_contiguous(memory_format=expected), (
                f"{what}: strides {tensor.stride()} of {tuple(tensor.shape)} are not {expected}"
            )


def check_exact(case: Case, dtype: torch.dtype, layout: str, device: torch.device) -> None:
    """With integers whose sums the accumulation type holds exactly, the only rounding is the result's own."""
    inputs = make_inputs(case, dtype, layout, device)
    outputs = case.apply(fastnn.functional, inputs)
    cotangents = make_cotangents(case, outputs, layout)
    want = bounds.expected(case, inputs, cotangents)
    for index, (out, expected_out) in enumerate(zip(floating(outputs), want.outputs, strict=True)):
        assert same_bits(out, expected_out.value.to(out.dtype)), f"output {index} is not exact"
    names = [name for name in case.differentiable if name in inputs]
    for name, grad in zip(names, gradients(outputs, cotangents, [inputs[n] for n in names]), strict=True):
        assert same_bits(grad, want.gradients[name].value.to(grad.dtype)), f"gradient of {name} is not exact"


def check_repeatable(
    case: Case,
    dtype: torch.dtype,
    layout: str,
    device: torch.device,
    repetitions: Iterable[AbstractContextManager[None]],
    threads: bool = True,
) -> None:
    """The same bits in every repetition and, on the CPU, with one thread as with two."""
    first = run(case, dtype, layout, device)
    for repetition in repetitions:
        with repetition:
            for name, value in run(case, dtype, layout, device).items():
                assert same_bits(value, first[name]), f"{name} differs between runs"
    if threads and device.type == "cpu":
        before = torch.get_num_threads()
        torch.set_num_threads(2 if before == 1 else 1)
        try:
            for name, value in run(case, dtype, layout, device).items():
                assert same_bits(value, first[name]), f"{name} depends on the number of threads"
        finally:
            torch.set_num_threads(before)


class OpRecorder(TorchDispatchMode):
    """Notes every fastnn op called while it is active: (name without overload, arguments)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastnn":
            names = [argument.name for argument in func._schema.arguments]
            self.calls.append((func._schema.name.split("::")[1], dict(zip(names, args, strict=False)) | (kwargs or {})))
        return func(*args, **(kwargs or {}))

    def named(self, name: str) -> list[dict[str, Any]]:
        return [arguments for called, arguments in self.calls if called == name]


def check_gradient_subsets(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    """Asking for one gradient alone gives the bits that asking for all gives; no output needs one without it."""
    everything = run(case, dtype, "contiguous", device)
    for wanted in case.differentiable:
        inputs = make_inputs(case, dtype, "contiguous", device)
        if wanted not in inputs:
            continue
        for name, tensor in inputs.items():
            tensor.requires_grad_(name == wanted)
        outputs = case.apply(fastnn.functional, inputs)
        (grad,) = gradients(outputs, make_cotangents(case, outputs, "contiguous"), [inputs[wanted]])
        assert same_bits(grad, everything[f"gradient of {wanted}"]), f"gradient of {wanted} alone differs"
    inputs = {name: tensor.detach() for name, tensor in make_inputs(case, dtype, "contiguous", device).items()}
    assert not any(out.requires_grad for out in case.apply(fastnn.functional, inputs))


def check_second_derivatives(case: Case, dtype: torch.dtype, layout: str, device: torch.device) -> None:
    """Derivatives of <gradients, random directions>, normwise."""
    got = trial.second_derivatives(case, fastnn.functional, dtype, layout, device)
    for name, (bounded, expected_dtype) in trial.expected_second_derivatives(case, dtype, layout).items():
        assert_bounded(got[name], bounded, name, expected_dtype)
