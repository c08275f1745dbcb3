"""One case, run: its inputs, outputs, gradients and second derivatives by name, and what the oracle says of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import bounds, pooling_bounds, recurrence_bounds, reference
from .bounds import Bounded
from .cases import TORCH, Case, ConvCase, generator_for, lay_out
from .convolution_cases import ConvTransposeCase, LocallyConnectedCase
from .judge import same_bits

SECOND = "second derivative"


@dataclass(frozen=True)
class Trial:
    """What a case gave in one namespace.

    Attributes:
        inputs: the tensors it was called with, as it left them.
        before: copies of them from before the call.
        cotangents: the gradient that went into each floating output, None for an unused output.
        cotangents_before: copies of them.
        results: by name: the outputs (``Case.outputs``), ``gradient of NAME`` (None where autograd gave none), and
            the inputs that are not differentiable, as running statistics.
    """

    inputs: dict[str, Tensor]
    before: dict[str, Tensor]
    cotangents: list[Tensor | None]
    cotangents_before: list[Tensor | None]
    results: dict[str, Tensor | None]

    def modified(self) -> list[str]:
        """Names of what was written and must not be: all inputs and cotangents that are not among the results."""
        names = [name for name, then in self.before.items() if not same_bits(self.inputs[name], then)]
        pairs = zip(self.cotangents, self.cotangents_before, strict=True)
        names += [f"cotangent {i}" for i, (now, then) in enumerate(pairs) if not same_bits(now, then)]
        return [name for name in names if name not in self.results]


def run(case: Case, functional: Any, dtype: torch.dtype, layout: str, device: torch.device | str) -> Trial:
    """Forward and backward of a case.

    Args:
        case: what to run.
        functional: a namespace with torch's signatures.
        dtype: type of the inputs.
        layout: one of ``cases.LAYOUTS``, of inputs and cotangents.
        device: where the tensors are.
    """
    inputs = make_inputs(case, dtype, layout, device)
    before = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    outputs = case.apply(functional, inputs)
    cotangents = make_cotangents(case, outputs, layout)
    cotangents_before = [None if c is None else c.clone() for c in cotangents]
    names = [name for name in case.differentiable if name in inputs]
    grads = gradients(outputs, cotangents, [inputs[name] for name in names])
    results: dict[str, Tensor | None] = dict(zip(case.outputs, outputs, strict=False))
    results |= {f"gradient of {name}": grad for name, grad in zip(names, grads, strict=True)}
    results |= {name: tensor for name, tensor in inputs.items() if name not in case.differentiable}
    return Trial(inputs, before, cotangents, cotangents_before, results)


def expected(case: Case, dtype: torch.dtype, layout: str) -> dict[str, tuple[Bounded, torch.dtype]]:
    """Oracle, bound and dtype of each result of :func:`run`, by the same names.

    Args:
        case: what is run.
        dtype: type of the inputs.
        layout: one of ``cases.LAYOUTS``; all but ``expanded`` have the same values.
    """
    inputs = make_inputs(case, dtype, layout, "cpu")
    cotangents = make_cotangents(case, _empty_outputs(case, inputs), layout)
    with bounds.repeated_terms() if layout == "expanded" else nullcontext():
        want = bounds.expected(case, inputs, cotangents)
    result = {name: (bounded, dtype) for name, bounded in zip(case.outputs, want.outputs, strict=False)}
    if want.indices is not None:
        result["indices"] = (Bounded.exact(want.indices.double(), 0.0), torch.int64)
    result |= {f"gradient of {name}": (bounded, inputs[name].dtype) for name, bounded in want.gradients.items()}
    return result | {name: (bounded, inputs[name].dtype) for name, bounded in want.buffers.items()}


def _empty_outputs(case: Case, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Tensors of the shapes and dtypes that torch gives the outputs, with nothing in them."""
    outputs = case.apply(TORCH, {name: tensor.detach().to("meta") for name, tensor in inputs.items()})
    return [torch.empty(out.shape, dtype=out.dtype) for out in outputs]


def make_inputs(case: Case, dtype: torch.dtype, layout: str, device: torch.device | str) -> dict[str, Tensor]:
    """The case's inputs, the same at every call, requiring gradients where they are differentiable."""
    inputs = case.make_inputs(dtype, device, layout, generator_for(case.op, case.id, str(dtype)))
    return {name: tensor.requires_grad_() if name in case.differentiable else tensor for name, tensor in inputs.items()}


def floating(outputs: Iterable[Tensor]) -> list[Tensor]:
    """Those outputs that can have a gradient."""
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
    """``torch.autograd.grad`` through the outputs that have a cotangent."""
    used = [(o, c) for o, c in zip(floating(outputs), cotangents, strict=True) if c is not None]
    return torch.autograd.grad([o for o, _ in used], leaves, [c for _, c in used], **options)


def oracle(case: Case, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The differentiable float64 oracle's floating outputs."""
    if isinstance(case, ConvCase):
        functions = {ConvTransposeCase: reference.conv_transpose, LocallyConnectedCase: reference.locally_connected}
        function = next((f for kind, f in functions.items() if isinstance(case, kind)), reference.convolution)
        return (function(inputs["input"], inputs["weight"], inputs.get("bias"), **case.options),)
    if case.op == "activation":
        z = inputs["input"] + inputs["residual"] if case.residual else inputs["input"]
        return (reference.activation(z, case.activation, case.alpha),)
    if case.op == "max_pool2d":
        return reference.max_pool2d(inputs["input"], **case.options)[:1]
    if case.op == "pooling":
        return (pooling_bounds.pooled(case, inputs),)
    if case.op == "batch_norm":
        statistics = [inputs.get(name) for name in ("running_mean", "running_var", "weight", "bias")]
        z, *_ = reference.batch_norm(inputs["input"], *statistics, case.training, case.momentum, case.eps)
        if "residual" in inputs:
            z = z + inputs["residual"]
        return (z if case.activation is None else reference.activation(z, case.activation, case.alpha),)
    if case.op == "maxout":
        return (reference.maxout(inputs["input"], case.pieces, case.pieces_first),)
    if case.op in ("group_norm", "instance_norm"):
        if case.op == "instance_norm" and not case.use_input_stats:
            statistics = [inputs.get(name) for name in ("running_mean", "running_var", "weight", "bias")]
            return reference.batch_norm(inputs["input"], *statistics, False, 0.0, case.eps)[:1]
        groups = case.groups if case.op == "group_norm" else inputs["input"].shape[1]
        return (reference.group_norm(inputs["input"], groups, inputs.get("weight"), inputs.get("bias"), case.eps),)
    if case.op == "local_response_norm":
        return (reference.local_response_norm(inputs["input"], **case.options),)
    if case.op == "recurrence":
        return recurrence_bounds.recurrence(case, inputs)
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    return reference.lstm_cell(inputs["input"], (inputs["hx"], inputs["cx"]), *(inputs.get(n) for n in names))


def second_derivatives(
    case: Case, functional: Any, dtype: torch.dtype, layout: str, device: torch.device | str
) -> dict[str, Tensor | None]:
    """Derivatives of <gradients, random directions> by every input and every cotangent.

    Args:
        case: what to run.
        functional: a namespace with torch's signatures.
        dtype: type of the inputs.
        layout: one of ``cases.LAYOUTS``.
        device: where the tensors are.

    Returns:
        ``second derivative by NAME``; zeros where autograd has none.
    """
    inputs = make_inputs(case, dtype, layout, device)
    outputs = case.apply(functional, inputs)
    cotangents = make_cotangents(case, outputs, layout)
    return _second(case, inputs, outputs, cotangents, _directions(case, inputs, layout))


def expected_second_derivatives(case: Case, dtype: torch.dtype, layout: str) -> dict[str, tuple[Bounded, torch.dtype]]:
    """Oracle, bound and dtype of each result of :func:`second_derivatives`.

    The bound is normwise: 64 sqrt(n) u times the largest element of the oracle (at least 1), where n is the number
    of elements of the largest input and u the unit roundoff of the dtype (for halves sqrt(n) = 1, since their error
    is in storing and not in summing).
    """
    rounded = make_inputs(case, dtype, layout, "cpu")
    inputs = {name: tensor.detach().double() for name, tensor in rounded.items()}
    for name in case.differentiable:
        if name in inputs:
            inputs[name].requires_grad_()
    outputs = oracle(case, inputs)
    # Rounded to the kernel's type before they are used.
    drawn = make_cotangents(case, _empty_outputs(case, rounded), layout)
    cotangents = [None if c is None else c.double() for c in drawn]
    directions = [direction.double() for direction in _directions(case, rounded, layout)]
    values = _second(case, inputs, outputs, cotangents, directions)
    elements = max(max(tensor.numel() for tensor in inputs.values()), 1)
    info = torch.finfo(dtype)
    u = info.eps / 2 * (elements**0.5 if info.bits > 16 else 1.0)
    want = {}
    for name, value in values.items():
        scale = max(float(value.abs().max()) if value.numel() else 0.0, 1.0)
        source = rounded.get(name.removeprefix(f"{SECOND} by "))
        want[name] = (
            Bounded(value.detach(), torch.full_like(value, 64 * u * scale), u),
            dtype if source is None else source.dtype,
        )
    return want


def _directions(case: Case, inputs: dict[str, Tensor], layout: str) -> list[Tensor]:
    generator = generator_for(case.op, case.id, "directions")
    leaves = [inputs[name] for name in case.differentiable if name in inputs]
    return [lay_out(torch.randn(leaf.shape, generator=generator).to(leaf), layout) for leaf in leaves]


def _second(
    case: Case,
    inputs: dict[str, Tensor],
    outputs: Sequence[Tensor],
    cotangents: list[Tensor | None],
    directions: list[Tensor],
) -> dict[str, Tensor]:
    leaves = {name: inputs[name] for name in case.differentiable if name in inputs}
    wanted = {f"{SECOND} by {name}": leaf for name, leaf in leaves.items()}
    for index, cotangent in enumerate(cotangents):
        if cotangent is not None:
            wanted[f"{SECOND} by cotangent {index}"] = cotangent.requires_grad_()
    grads = gradients(outputs, cotangents, list(leaves.values()), create_graph=True)
    loss = sum((grad * direction).sum(dtype=torch.float64) for grad, direction in zip(grads, directions, strict=True))
    second = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(wanted.items(), second, strict=True)
    }
