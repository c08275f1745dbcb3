"""Whether a kernel computes what it should, before anybody asks how fast: a wrong one gets no time.

The oracle is torch's own layer in float64 on the same inputs. (``fastnn check`` judges with derived bounds and other
oracles; here the shapes are a network's, and the tolerance a simple one.) An element may be off by some roundings of
its type and by the rounding that sums of that length are expected to have in the type that they are added up in,
relative to the tensor's root mean square. Whole networks and sequences amplify roundings: there fastnn may be off, as
a whole, by some times what torch itself is in the same type.
"""

from __future__ import annotations

import copy
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastnn.bench.layers import Layer
from fastnn.bench.limits import DTYPES

ROUNDINGS = 16.0
SUM_ROUNDINGS = 8.0
TIMES_TORCH = 8.0
# What chance may do to a network (a ReLU on the other side of zero), as a share of all its outputs or gradients.
CHANCE = {"float32": 0.02, "tf32": 0.05, "bfloat16": 0.2, "float16": 0.2}
# Unit roundoffs of what is stored or multiplied.
ROUNDOFF = {"float32": 2.0**-24, "tf32": 2.0**-11, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def prepared(module: nn.Module, device: torch.device, dtype: torch.dtype, layout: str = "contiguous") -> nn.Module:
    """Moves a module to where it is measured; batch norm's numbers stay in float32 beside 16-bit activations."""
    module = module.to(device, dtype)
    if layout == "channels_last":
        module = module.to(memory_format=torch.channels_last)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and dtype.itemsize == 2:
            part.float()
        if isinstance(part, nn.RNNBase):
            part.flatten_parameters()
    return module


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """A leaf with the same values in that layout, and the same wish for a gradient."""
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return tensor.detach().clone(memory_format=form).requires_grad_(tensor.requires_grad)


@dataclass(frozen=True)
class Problem:
    """A layer with weights, inputs and cotangents, all of the dtype that is measured.

    Attributes:
        layer: what it is.
        dtype: a key of ``DTYPES``.
        module: torch's layer, contiguous.
        inputs: contiguous.
        cotangents: one for each output.
        expected: outputs and gradients by name, in float64.
    """

    layer: Layer
    dtype: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    cotangents: tuple[Tensor, ...]
    expected: dict[str, Tensor]


@functools.lru_cache(maxsize=1)  # the layouts of one layer, which follow each other, share it
def problem(layer: Layer, dtype: str, device: torch.device) -> Problem:
    """Draws weights, inputs and cotangents, the same at every call, and computes what is expected of them."""
    torch.manual_seed(zlib.crc32(repr(layer).encode()))
    module = prepared(layer.make(), device, DTYPES[dtype])
    _without_chance(module)
    inputs = layer.make_inputs(device, DTYPES[dtype])
    exact = copy.deepcopy(module).double()
    exact_inputs = tuple(t.detach().double().requires_grad_(t.requires_grad) for t in inputs)
    with torch.no_grad():
        outputs = layer.call(copy.deepcopy(exact), exact_inputs)
    cotangents = tuple(torch.randn_like(out).to(DTYPES[dtype]) for out in outputs)
    results = results_of(layer, exact, exact_inputs, tuple(c.double() for c in cotangents))
    return Problem(layer, dtype, module, inputs, cotangents, results)


def _without_chance(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


def results_of(
    layer: Layer, module: Any, inputs: tuple[Tensor, ...], cotangents: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Everything that a layer computes, by name: evaluation's outputs where that is measured, outputs and gradients."""
    results = {}
    if "inference" in layer.directions:
        module.eval()
        with torch.no_grad():
            results |= {f"inference, output {i}": out for i, out in enumerate(layer.call(module, inputs))}
        module.train()
    outputs = layer.call(module, inputs)
    results |= {f"forward, output {i}": out.detach() for i, out in enumerate(outputs)}
    leaves = {f"input {i}": t for i, t in enumerate(inputs) if t.requires_grad}
    leaves |= dict(module.named_parameters())
    gradients = torch.autograd.grad(outputs, list(leaves.values()), list(cotangents))
    # By place: a stepped cell names its parameters otherwise than torch's sequence does.
    results |= {f"backward, gradient {i}": g for i, g in enumerate(gradients)}
    return results


def fault(given: Problem, make: Callable[[nn.Module], Any], layout: str, peer: str = "fastnn") -> str | None:
    """What is wrong with a peer's layer, in a line; None when nothing is.

    Args:
        given: the problem.
        make: turns torch's layer into the peer's.
        layout: of inputs and cotangents.
        peer: its name, for the message.
    """

    def results(convert: Callable[[nn.Module], Any]) -> dict[str, Tensor]:
        device = given.inputs[0].device
        module = prepared(copy.deepcopy(given.module), device, DTYPES[given.dtype], layout)
        inputs = tuple(laid_out(t, layout) for t in given.inputs)
        # Outputs that are no images, as a network's, have no channels to be last.
        cotangents = tuple(laid_out(c, layout if c.dim() == 4 else "contiguous") for c in given.cotangents)
        return results_of(given.layer, convert(module), inputs, cotangents)

    try:
        actual = results(make)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return f"{peer} raises {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    for name, want in given.expected.items():
        got = actual.get(name)
        if got is None or got.shape != want.shape:
            return f"{peer}, {name}: shape {None if got is None else tuple(got.shape)}, expected {tuple(want.shape)}"
    if given.layer.amplifies:
        found = _far_as_a_whole(given, actual, results(lambda module: module))
    else:
        found = _far_elements(given, actual)
    return f"{peer}, {found}" if found else None


def _far_elements(given: Problem, actual: Mapping[str, Tensor]) -> str | None:
    accumulate = 2.0**-24 * SUM_ROUNDINGS * given.layer.terms**0.5
    tolerance = ROUNDINGS * ROUNDOFF[given.dtype] + accumulate
    for name, want in given.expected.items():
        error = (actual[name].double() - want).abs()
        allowed = tolerance * (want.abs() + want.square().mean().sqrt())
        bad = ~(error <= allowed)  # NaN is neither
        if bool(bad.any()):
            worst = torch.where(error.isnan(), torch.inf, error - allowed).argmax()
            return (
                f"{name}: {int(bad.sum())} of {bad.numel()} elements wrong, worst "
                f"{float(actual[name].reshape(-1)[worst]):.6g} instead of {float(want.reshape(-1)[worst]):.6g}"
            )
    return None


def _far_as_a_whole(given: Problem, actual: Mapping[str, Tensor], torchs: Mapping[str, Tensor]) -> str | None:
    for direction in ("inference", "forward", "backward"):
        names = [name for name in given.expected if name.startswith(direction)]
        if not names:
            continue
        want = torch.cat([given.expected[name].flatten() for name in names])

        def error(results: Mapping[str, Tensor], names: list[str] = names, want: Tensor = want) -> float:
            got = torch.cat([results[name].double().flatten() for name in names])
            return float((got - want).norm() / want.norm())

        mine, theirs = error(actual), error(torchs)
        # A sequence has no nonlinearity with a kink, so nothing in it is up to chance.
        least = CHANCE[given.dtype] if given.layer.op == "network" else ROUNDINGS * ROUNDOFF[given.dtype]
        if not mine <= max(TIMES_TORCH * theirs, least):
            return f"{direction}: off by {mine:.2g} of the whole, torch's by {theirs:.2g}"
    return None
