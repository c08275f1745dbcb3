"""The op tester: one set of checks for every op, dtype, layout and backend.

Each check takes a case of ``fastnn.testing.cases`` and judges ``fastnn.functional`` by the float64 oracle and
the error bounds of ``fastnn.testing``. The tests of each op choose which checks run on which cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastnn
from fastnn.testing import bounds, reference
from fastnn.testing.cases import ALL_DTYPES, LAYOUTS, Case, generator_for, lay_out

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


def same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    """Equal to the bit, NaN for NaN and -0.0 unlike 0.0."""
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    if not a.is_floating_point():
        return torch.equal(a, b)
    as_integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(as_integers), b.view(as_integers))


def assert_bounded(actual: Tensor, expected: bounds.Bounded, what: str) -> None:
    """Every element within its bound; NaN and infinities where the oracle has them, with their signs."""
    want, bound = expected.value, expected.error
    assert actual.shape == want.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(want.shape)}"
    got = actual.detach().cpu().double()
    # Beyond the type's range an infinity is the right rounding.
    limit = torch.finfo(actual.dtype).max
    overflow = want.abs() > limit
    finite = want.isfinite() & ~overflow
    assert torch.equal(got.isnan(), want.isnan()), (
        f"{what}: NaN at {_places(got.isnan() != want.isnan())}, where oracle and result disagree"
    )
    infinite = ~finite & ~want.isnan()
    assert torch.equal(got[infinite].sign(), want[infinite].sign()), f"{what}: sign of an infinity"
    assert bool(got[want.isinf()].isinf().all()), f"{what}: finite at {_places(want.isinf() & ~got.isinf())}, not inf"
    assert bool(got[finite].isfinite().all()), f"{what}: not finite at {_places(finite & ~got.isfinite())}"
    assert not bool(bound[finite].isnan().any()), f"{what}: the bound is NaN where the value is finite"
    error = (got - want).abs()
    bad = finite & (error > bound)
    if bool(bad.any()):
        worst = torch.where(finite, error / bound.clamp_min(1e-300), torch.zeros_like(error)).argmax()
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {bad.numel()} elements beyond the bound, first {_places(bad)}; worst: "
            f"got {got.flatten()[worst]:.9g}, expected {want.flatten()[worst]:.9g}, error "
            f"{error.flatten()[worst]:.3g}, bound {bound.flatten()[worst]:.3g}"
        )


def _places(mask: Tensor) -> str:
    places = mask.nonzero().tolist()
    return ", ".join(map(str, places[:4])) + (f" and {len(places) - 4} more" if len(places) > 4 else "")


def make_inputs(case: Case, dtype: torch.dtype, layout: str, device: torch.device | str) -> dict[str, Tensor]:
    """The case's inputs, the same at every call, requiring gradients where they are differentiable."""
    inputs = case.make_inputs(dtype, device, layout, generator_for(case.op, case.id, str(dtype)))
    return {name: tensor.requires_grad_() if name in case.differentiable else tensor for name, tensor in inputs.items()}


def floating(outputs: Iterable[Tensor]) -> list[Tensor]:
    return [out for out in outputs if out.is_floating_point()]


def make_cotangents(case: Case, outputs: Sequence[Tensor], layout: str) -> list[Tensor | None]:
    """Gradients of a loss with respect to the floating outputs, in the inputs' layout."""
    generator = generator_for(case.op, case.id, "cotangents")
    through = getattr(case, "through", "both")
    result: list[Tensor | None] = []
    for index, out in enumerate(floating(outputs)):
        value = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        if case.values == "integers":
            value = torch.randint(1, 4, out.shape, generator=generator).double()
        used = through == "both" or through == "hc"[index]
        result.append(lay_out(value.to(out.dtype).to(out.device), layout) if used else None)
    return result


def gradients(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], leaves: Sequence[Tensor], **options: Any
) -> tuple[Tensor | None, ...]:
    used = [(o, c) for o, c in zip(floating(outputs), cotangents, strict=True) if c is not None]
    return torch.autograd.grad([o for o, _ in used], leaves, [c for _, c in used], **options)


def run(case: Case, dtype: torch.dtype, layout: str, device: torch.device) -> dict[str, Tensor]:
    """Everything a case gives, by name: outputs, gradients and mutated buffers."""
    inputs = make_inputs(case, dtype, layout, device)
    outputs = case.apply(fastnn.functional, inputs)
    names = [name for name in case.differentiable if name in inputs]
    grads = gradients(outputs, make_cotangents(case, outputs, layout), [inputs[name] for name in names])
    results = {f"output {i}": out for i, out in enumerate(outputs)}
    results |= {f"grad_{name}": grad for name, grad in zip(names, grads, strict=True)}
    return results | {name: tensor for name, tensor in inputs.items() if name not in case.differentiable}


def check_values_and_gradients(case: Case, dtype: torch.dtype, layout: str, device: torch.device) -> None:
    """Outputs, gradients and buffers within their bounds; dtypes right; nothing else written."""
    inputs = make_inputs(case, dtype, layout, device)
    before = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    outputs = case.apply(fastnn.functional, inputs)
    cotangents = make_cotangents(case, outputs, layout)
    cotangents_before = [None if c is None else c.clone() for c in cotangents]
    want = bounds.expected(case, before, cotangents)

    for index, (out, expected_out) in enumerate(zip(floating(outputs), want.outputs, strict=True)):
        assert out.dtype == dtype, f"output {index} is {out.dtype}"
        assert_bounded(out, expected_out, f"output {index}")
    if want.indices is not None:
        assert outputs[1].dtype == torch.int64
        assert torch.equal(outputs[1].cpu(), want.indices), "indices"

    names = [name for name in case.differentiable if name in inputs]
    for name, grad in zip(names, gradients(outputs, cotangents, [inputs[n] for n in names]), strict=True):
        assert grad is not None, f"no gradient for {name}"
        assert grad.dtype == inputs[name].dtype, f"gradient of {name} is {grad.dtype}"
        assert_bounded(grad, want.gradients[name], f"gradient of {name}")

    for name, tensor in inputs.items():
        if name in want.buffers:
            assert_bounded(tensor, want.buffers[name], name)
        else:
            assert same_bits(tensor, before[name]), f"{name} was modified"
    for now, then in zip(cotangents, cotangents_before, strict=True):
        assert same_bits(now, then), "a gradient given to backward was modified"


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
    case: Case, dtype: torch.dtype, layout: str, device: torch.device, repeats: int = 3, threads: bool = True
) -> None:
    """The same bits at every repeat and, on the CPU, with one thread as with two."""
    first = run(case, dtype, layout, device)
    for _ in range(repeats):
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
        assert same_bits(grad, everything[f"grad_{wanted}"]), f"gradient of {wanted} alone differs"
    inputs = {name: tensor.detach() for name, tensor in make_inputs(case, dtype, "contiguous", device).items()}
    assert not any(out.requires_grad for out in case.apply(fastnn.functional, inputs))


def oracle(case: Case, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The differentiable float64 oracle's floating outputs."""
    if case.op == "conv2d":
        return (reference.conv2d(inputs["input"], inputs["weight"], inputs.get("bias"), **case.options),)
    if case.op == "max_pool2d":
        return reference.max_pool2d(inputs["input"], **case.options)[:1]
    if case.op == "batch_norm":
        statistics = [inputs.get(name) for name in ("running_mean", "running_var", "weight", "bias")]
        return reference.batch_norm(inputs["input"], *statistics, case.training, case.momentum, case.eps)[:1]
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    return reference.lstm_cell(inputs["input"], (inputs["hx"], inputs["cx"]), *(inputs.get(n) for n in names))


def check_second_derivatives(case: Case, dtype: torch.dtype, layout: str, device: torch.device) -> None:
    """Derivatives of <gradients, u>, normwise: each within 64 sqrt(n) u of the oracle's largest element, where n is
    the number of elements of the largest tensor and u the unit roundoff of the dtype (for halves: sqrt(n) = 1,
    since their error is in storing and not in summing)."""

    def second(outputs, leaves, cotangents, directions):
        grads = gradients(outputs, cotangents, list(leaves.values()), create_graph=True)
        loss = sum(
            (grad * direction).sum(dtype=torch.float64) for grad, direction in zip(grads, directions, strict=False)
        )
        wanted = [*leaves.values(), *(c for c in cotangents if c is not None)]
        return torch.autograd.grad(loss, wanted, allow_unused=True)

    inputs = make_inputs(case, dtype, layout, device)
    leaves = {name: inputs[name] for name in case.differentiable if name in inputs}
    outputs = case.apply(fastnn.functional, inputs)
    cotangents = [None if c is None else c.requires_grad_() for c in make_cotangents(case, outputs, layout)]
    generator = generator_for(case.op, case.id, "directions")
    directions = [
        lay_out(torch.randn(leaf.shape, generator=generator).to(leaf.dtype).to(device), layout)
        for leaf in leaves.values()
    ]
    got = second(outputs, leaves, cotangents, directions)

    # Drawn again, for running statistics have moved.
    exact = {n: t.detach().cpu().double() for n, t in make_inputs(case, dtype, layout, device).items()}
    want = second(
        oracle(case, {n: t.requires_grad_() if n in leaves else t for n, t in exact.items()}),
        {name: exact[name] for name in leaves},
        [None if c is None else c.detach().cpu().double().requires_grad_() for c in cotangents],
        [direction.cpu().double() for direction in directions],
    )
    elements = max(t.numel() for t in inputs.values())
    u = torch.finfo(dtype).eps / 2 * (max(elements, 1) ** 0.5 if torch.finfo(dtype).bits > 16 else 1.0)
    names = [*leaves, *(f"cotangent {i}" for i, c in enumerate(cotangents) if c is not None)]
    for name, a, b in zip(names, got, want, strict=True):
        a = torch.zeros(1, dtype=torch.float64) if a is None else a.detach().cpu().double()
        b = torch.zeros_like(a) if b is None else b.detach()
        scale = max(float(b.abs().max()) if b.numel() else 0.0, 1.0)
        error = float((a - b).abs().max()) if b.numel() else 0.0
        assert error <= 64 * u * scale, f"second derivative by {name}: error {error:.3g} at scale {scale:.3g}"
