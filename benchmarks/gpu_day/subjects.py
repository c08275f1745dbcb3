"""What a worker runs: a case, a layer or a function, forward and backward, with inputs that are the same every time."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastnn.functional
from fastnn.testing import trial
from fastnn.testing.case import ALL_DTYPES, Case, generator_for, lay_out

LAYOUTS = ("contiguous", "channels_last")
# Inputs of cases that have a place for each sample, in their first dimension; the others belong to the layer.
PER_SAMPLE = frozenset({"input", "residual", "places", "hx", "cx"})
PARAMETERS = frozenset({"weight", "bias", "running_mean", "running_var", "w_ih", "w_hh", "b_ih", "b_hh"})


@dataclass(frozen=True)
class Subject(abc.ABC):
    """Something to run forward and backward.

    Attributes:
        op: the function's or layer's name.
        id: unique within the op.
        kind: what makes it another computation than its neighbours: subjects of one kind differ in sizes.
    """

    op: str
    id: str
    kind: tuple[Any, ...]

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The types that it is for."""
        return ALL_DTYPES

    @property
    def layouts(self) -> tuple[str, ...]:
        """The layouts in which it is another computation."""
        return LAYOUTS

    @property
    def ordinary(self) -> bool:
        """Whether its values are: no infinities, no ties, nothing beyond a half type's range."""
        return True

    #: Cheap enough to be run under instruments, which slow it down a hundredfold.
    small: bool = True
    #: Whether it takes a whole device to be what it is: it is left out where there is none.
    large: bool = False
    #: Whether second derivatives are asked for.
    twice: bool = True

    @abc.abstractmethod
    def inputs(self, dtype: torch.dtype, layout: str, device: str) -> dict[str, Tensor]:
        """Fresh inputs by name, the same at every call; those that are differentiable require gradients."""

    @abc.abstractmethod
    def outputs(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Computes it."""

    @abc.abstractmethod
    def sample_dimension(self, inputs: Mapping[str, Tensor]) -> dict[str, int] | None:
        """By name the dimension of the samples, of the inputs that have one; None where there are no samples."""


@dataclass(frozen=True)
class OfCase(Subject):
    """A case of the table."""

    case: Case = None  # type: ignore[assignment]

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """See the class."""
        return self.case.dtypes

    @property
    def layouts(self) -> tuple[str, ...]:
        """See the class: with two dimensions there is one."""
        return LAYOUTS if len(getattr(self.case, "shape", ())) > 2 else LAYOUTS[:1]

    @property
    def ordinary(self) -> bool:
        """See the class."""
        return self.case.values == "normal"

    def inputs(self, dtype: torch.dtype, layout: str, device: str) -> dict[str, Tensor]:
        """See the class."""
        return trial.make_inputs(self.case, dtype, layout, device)

    def outputs(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """See the class."""
        return self.case.apply(fastnn.functional, dict(inputs))

    def sample_dimension(self, inputs: Mapping[str, Tensor]) -> dict[str, int] | None:
        """See the class."""
        spatial = getattr(self.case, "kernel", None)
        rank = getattr(self.case, "rank", len(spatial) if isinstance(spatial, tuple) else None)
        if self.case.op == "max_pool2d":
            rank = 2
        # Without a batch.
        if inputs["input"].dim() == (0 if rank is None else rank + 1):
            return None
        return {name: 0 for name in inputs if name in PER_SAMPLE}


@dataclass(frozen=True)
class OfActivatedConvolution(OfCase):
    """A convolution's case, with an activation in the same pass: the function ``op``."""

    activation: str = "relu"

    def outputs(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """See the class."""
        function = getattr(fastnn.functional, self.op)
        tensors = (inputs["input"], inputs["weight"], inputs.get("bias"))
        return (function(*tensors, **self.case.options, activation=self.activation),)


@dataclass(frozen=True)
class OfLayer(Subject):
    """A layer: ``make()`` builds it, ``shapes`` are of its inputs, samples in dimension ``batch_dimension``."""

    make: Callable[[], nn.Module] = None  # type: ignore[assignment]
    shapes: tuple[tuple[int, ...], ...] = ()
    batch_dimension: int = 0

    @property
    def layouts(self) -> tuple[str, ...]:
        """See the class."""
        return LAYOUTS[:1]

    def inputs(self, dtype: torch.dtype, layout: str, device: str) -> dict[str, Tensor]:
        """See the class: the layer's parameters are among them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_for(self.op, self.id).initial_seed())
            layer = self.make()
        generator = generator_for(self.op, self.id, str(dtype))
        drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in self.shapes]
        found = {f"input {i}": x.to(dtype).to(device).requires_grad_() for i, x in enumerate(drawn)}
        parameters = {name: p.detach().to(dtype).to(device) for name, p in layer.named_parameters()}
        return found | {name: p.requires_grad_() for name, p in parameters.items()}

    def outputs(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """See the class."""
        given = [inputs[name] for name in inputs if name.startswith("input ")]
        # Without memory of its own: nothing may be copied to the device while a graph is captured.
        with torch.device("meta"):
            layer = self.make()
        for name, parameter in inputs.items():
            if not name.startswith("input "):
                _put(layer, name, parameter)
        out = layer(*given)
        return tuple(_flat(out))

    def sample_dimension(self, inputs: Mapping[str, Tensor]) -> dict[str, int] | None:
        """See the class."""
        return {name: self.batch_dimension for name in inputs if name.startswith("input ")}


def _flat(out: Any) -> Iterable[Tensor]:
    if isinstance(out, Tensor):
        yield out
    else:
        for part in out:
            yield from _flat(part)


def _put(layer: nn.Module, name: str, value: Tensor) -> None:
    """Has a layer compute with a tensor in a parameter's place: what a graph has captured must be that very one.

    ``torch.func.functional_call`` does not do for recurrent layers, which keep a list of their weights as well.
    """
    *path, last = name.split(".")
    for part in path:
        layer = getattr(layer, part)
    delattr(layer, last)
    setattr(layer, last, value)


@dataclass(frozen=True)
class OfFunction(Subject):
    """A function that no case has, of ``input``, ``[N, C, ...]``, and of others that belong to the layer.

    ``shapes`` are by name; what is called ``samples`` is drawn from 0 to 1 and is not differentiable.
    """

    function: Callable[..., tuple[Tensor, ...]] = None  # type: ignore[assignment]
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def inputs(self, dtype: torch.dtype, layout: str, device: str) -> dict[str, Tensor]:
        """See the class."""
        found = {}
        for name, shape in self.shapes:
            draw = torch.rand if name == "samples" else torch.randn
            x = draw(shape, generator=generator_for(self.op, self.id, name), dtype=torch.float64).to(dtype).to(device)
            found[name] = lay_out(x, layout if name == "input" else "contiguous").requires_grad_(name != "samples")
        return found

    def outputs(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """See the class."""
        return self.function(**inputs)

    def sample_dimension(self, inputs: Mapping[str, Tensor]) -> dict[str, int] | None:
        """See the class."""
        return {"input": 0}


# ---- running one ----------------------------------------------------------------------------------------------------


def cotangents(subject: Subject, outputs: Sequence[Tensor]) -> list[Tensor]:
    """A gradient for each output that can have one, in its layout, the same at every call."""
    found = []
    for index, out in enumerate(out for out in outputs if out.requires_grad):
        generator = generator_for(subject.op, subject.id, "cotangent", index)
        found.append(torch.empty_like(out).copy_(torch.randn(out.shape, generator=generator, dtype=torch.float64)))
    return found


def backward(
    inputs: Mapping[str, Tensor], outputs: Sequence[Tensor], given: Sequence[Tensor], **options: Any
) -> dict[str, Tensor]:
    """Gradients by the inputs' names; of what was not used there is none."""
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    used = [out for out in outputs if out.requires_grad]
    if not used:
        return {}
    grads = torch.autograd.grad(used, list(leaves.values()), given, allow_unused=True, **options)
    return {f"gradient of {n}": g for n, g in zip(leaves, grads, strict=True) if g is not None}


def run(subject: Subject, inputs: Mapping[str, Tensor], given: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
    """Forward and backward: outputs and gradients by name."""
    outputs = subject.outputs(inputs)
    given = cotangents(subject, outputs) if given is None else given
    return {f"output {i}": out.detach() for i, out in enumerate(outputs)} | backward(inputs, outputs, given)


def run_twice(subject: Subject, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Derivatives of the sum of the gradients by the inputs and by the cotangents."""
    outputs = subject.outputs(inputs)
    given = [cotangent.requires_grad_() for cotangent in cotangents(subject, outputs)]
    grads = backward(inputs, outputs, given, create_graph=True)
    sums = [g.sum(dtype=torch.float64) for g in grads.values() if g.requires_grad]
    if not sums:
        return {}
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    leaves |= {f"cotangent {i}": cotangent for i, cotangent in enumerate(given)}
    second = torch.autograd.grad(sum(sums), list(leaves.values()), allow_unused=True)
    return {f"second derivative by {n}": g for n, g in zip(leaves, second, strict=True) if g is not None}


def bits(tensor: Tensor) -> Tensor:
    """A tensor's bits as integers, which are equal where it is NaN too."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
