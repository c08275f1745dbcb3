"""What the forward of a fused model calls: one chain of layers, computed at once where that is the same.

A chain is ``activation(batch_norm(convolution(x)) + residual)``, of which everything but the batch norm may be
missing, or ``activation(convolution(x))``. :mod:`fastnn.fuse` finds chains; here each call decides how to compute one,
by what the layers are then:

- layers that are no longer what they were (hooks, another class, another shape) are called one by one;
- in evaluation the batch norm becomes part of the convolution (:func:`_folded`), and so does the activation where
  the convolution is fastnn's;
- else the batch norm and what follows it are one op. While :func:`recomputing`, what it returns is not kept for
  backward, but made again there from the op's input, which backward needs in any case (:class:`_Made`).
"""

from __future__ import annotations

import abc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Module
from torch.nn.utils import parametrize

from fastnn import functional
from fastnn._fusable import Activation, activate, activation_of
from fastnn.nn.batchnorm import BatchNorm2d, normalise
from fastnn.nn.conv import Conv2d, convolve

_BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
_BATCH_NORM_FORWARDS = (torch.nn.BatchNorm2d.forward, BatchNorm2d.forward)
_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_CONV_FORWARDS = tuple(cls._conv_forward for cls in (*_CONVOLUTIONS, Conv2d))
# Activations that no op fuses, but that backward can make again too; each needs its input for its derivative.
_POINTWISE: dict[type[Module], Callable[[Any, Tensor], Tensor]] = {
    torch.nn.ReLU6: lambda module, x: torch.nn.functional.relu6(x),
    torch.nn.Hardtanh: lambda module, x: torch.nn.functional.hardtanh(x, module.min_val, module.max_val),
    torch.nn.Hardswish: lambda module, x: torch.nn.functional.hardswish(x),
    torch.nn.Mish: lambda module, x: torch.nn.functional.mish(x),
}


# ---- what a module is ---------------------------------------------------------------------------------------


def is_batch_norm(module: Module) -> bool:
    """Whether the module computes batch normalisation as torch defines it; a subclass may inherit it."""
    return (
        isinstance(module, _BATCH_NORMS)
        and type(module).forward in _BATCH_NORM_FORWARDS
        and "forward" not in module.__dict__
    )


def is_convolution(module: Module) -> bool:
    """Whether the module computes a convolution of its ``weight`` and ``bias``, plain parameters."""
    return (
        isinstance(module, _CONVOLUTIONS)
        and type(module)._conv_forward in _CONV_FORWARDS
        and type(module).forward in tuple(cls.forward for cls in _CONVOLUTIONS)
        and not {"forward", "_conv_forward"} & module.__dict__.keys()
        and not parametrize.is_parametrized(module)
    )


def is_own_convolution(module: Module) -> bool:
    """Whether such a convolution is computed by fastnn, which can apply an activation in the same pass."""
    return type(module)._conv_forward is Conv2d._conv_forward


def pointwise_of(module: Module) -> Callable[[Tensor], Tensor] | None:
    """What an activation computes that no op fuses, never in place; None for another module."""
    function = None if "forward" in module.__dict__ else _POINTWISE.get(type(module))
    return None if function is None else partial(function, module)


def has_hooks(module: Module) -> bool:
    """Whether something wants to know when this very module is called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch.nn.modules.module._has_any_global_hook()
    )


# ---- a chain ------------------------------------------------------------------------------------------------


def run_chain(
    convolution: Module | None,
    batch_norm: Module,
    activation: Module | Activation | None,
    adds_in_place: bool,
    input: Tensor,
    residual: Tensor | None = None,
) -> Tensor:
    """``activation(batch_norm(convolution(input)) + residual)``.

    Args:
        convolution: None for none.
        batch_norm: any module; what is no batch norm is called as it is.
        activation: a module, or name and parameter of a function; None for none.
        adds_in_place: whether the addition writes into what the batch norm returns, as ``+=``.
        input: ``[N, C, ...]``.
        residual: None for none; fused where it has the shape, type and device of the batch norm's output.

    Raises:
        What the layers raise.
    """
    applied = activation_of(activation) if isinstance(activation, Module) else activation
    pointwise = pointwise_of(activation) if isinstance(activation, Module) and applied is None else None
    hooked = any(isinstance(m, Module) and has_hooks(m) for m in (convolution, batch_norm, activation))
    known = is_batch_norm(batch_norm) and (activation is None or applied is not None or pointwise is not None)
    if convolution is not None:
        folded = _folded(convolution, batch_norm) if known and not hooked else None
        if folded is not None:
            if applied is not None and applied[1] >= 0 and is_own_convolution(convolution):
                output = convolve(convolution, input, *folded, *applied)
                batch_norm._check_input_dim(output)
                return output
            output = convolution._conv_forward(input, *folded)
            batch_norm._check_input_dim(output)
            if applied is None:
                return output if activation is None else activation(output)
            # Nobody else has seen it, so that it may be overwritten.
            return activate(output, applied, inplace=not output.requires_grad)
        input = convolution(input)
    alike = residual is None or (
        residual.shape == input.shape and residual.dtype == input.dtype and residual.device == input.device
    )
    outputs = _outputs() if torch.is_grad_enabled() and not is_compiling() else None
    if hooked or not known or not alike or (pointwise is not None and outputs is None):
        return _one_by_one(batch_norm, activation, adds_in_place, input, residual)
    name, alpha = applied or ("identity", 1.0)
    options = {"activation": name, "alpha": alpha}
    if outputs is not None:
        output = normalise(batch_norm, partial(_recomputable, outputs), input, residual, **options)
        return output if pointwise is None else outputs.apply(pointwise, output)
    if activation is None and residual is None:
        return batch_norm(input)
    if residual is None:
        return normalise(batch_norm, functional.batch_norm_relu, input, **options)
    return normalise(batch_norm, functional.batch_norm_add_relu, input, residual, **options)


def run_convolution(convolution: Module, activation: Module | Activation, input: Tensor) -> Tensor:
    """``activation(convolution(input))``.

    Args:
        convolution: any module; what is no convolution of fastnn's is called as it is.
        activation: a module, or name and parameter of a function.
        input: ``[N, C, ...]``.

    Raises:
        What the layers raise.
    """
    applied = activation_of(activation) if isinstance(activation, Module) else activation
    hooked = has_hooks(convolution) or (isinstance(activation, Module) and has_hooks(activation))
    able = not hooked and is_convolution(convolution) and is_own_convolution(convolution)
    if not able or applied is None or applied[1] < 0:
        return _call(activation, convolution(input))
    return convolve(convolution, input, convolution.weight, convolution.bias, *applied)


def _one_by_one(
    batch_norm: Module,
    activation: Module | Activation | None,
    adds_in_place: bool,
    input: Tensor,
    residual: Tensor | None,
) -> Tensor:
    output = batch_norm(input)
    if residual is not None:
        if adds_in_place:
            output += residual
        else:
            output = output + residual
    return output if activation is None else _call(activation, output)


def _call(activation: Module | Activation, input: Tensor) -> Tensor:
    return activation(input) if isinstance(activation, Module) else activate(input, activation)


# ---- a batch norm as part of a convolution ------------------------------------------------------------------


class _Fold:
    """A convolution's weight and bias with a batch norm in them, and what they were made from."""

    def __init__(self, sources: list[Tensor | None], eps: float, weight: Tensor, bias: Tensor) -> None:
        # The alias keeps the storage, so that no other tensor can come to lie at its address.
        self._sources = [None if t is None else (t, t.detach(), t._version) for t in sources]
        self._eps = eps
        self.tensors = weight, bias

    def is_of(self, sources: list[Tensor | None], eps: float) -> bool:
        """Whether the sources are the same tensors with the same values, as far as torch counts changes."""
        return eps == self._eps and all(
            tensor is None
            if saved is None
            else tensor is saved[0] and tensor._version == saved[2] and tensor.data_ptr() == saved[1].data_ptr()
            for tensor, saved in zip(sources, self._sources, strict=True)
        )


# By batch norm. Not in the layers, so that they have no more state than before.
_folds: weakref.WeakKeyDictionary[Module, _Fold] = weakref.WeakKeyDictionary()


def forget_folds(model: Module) -> None:
    """Has every batch norm of a model folded anew at its next call."""
    for module in model.modules():
        _folds.pop(module, None)


def _folded(convolution: Module, batch_norm: Module) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of the convolution that gives what the two layers give; None where it must not be used.

    It must not where statistics are the batch's or gradients of the parameters are wanted; while a tracer, a
    transform or a mode looks on, to which the weights made here would be constants; and while a CUDA graph is
    captured, which would not follow a change of the parameters.
    """
    if (
        is_compiling()
        or batch_norm.training
        or batch_norm.running_mean is None
        or batch_norm.running_var is None
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or (convolution.weight.is_cuda and torch.cuda.is_current_stream_capturing())
    ):
        return None
    sources = [
        convolution.weight,
        convolution.bias,
        batch_norm.weight,
        batch_norm.bias,
        batch_norm.running_mean,
        batch_norm.running_var,
    ]
    for tensor in sources:
        if tensor is not None and (
            type(tensor) not in (Tensor, torch.nn.Parameter)
            or tensor.is_inference()  # whose changes torch does not count
            or (tensor.requires_grad and torch.is_grad_enabled())
        ):
            return None
    fold = _folds.get(batch_norm)
    if fold is None or not fold.is_of(sources, batch_norm.eps):
        fold = _folds[batch_norm] = _fold(sources, batch_norm.eps)
    return fold.tensors


def _fold(sources: list[Tensor | None], eps: float) -> _Fold:
    # In float64, so that the weights are rounded once. Not as inference tensors, which autograd could not take.
    with torch.inference_mode(False), torch.no_grad():
        weight, bias, gamma, beta, mean, var = (None if t is None else t.detach().double() for t in sources)
        scale = torch.rsqrt(var + eps)
        if gamma is not None:
            scale = scale * gamma
        shift = -mean * scale if bias is None else (bias - mean) * scale
        if beta is not None:
            shift = shift + beta
        made = weight * scale.view(-1, *[1] * (weight.dim() - 1)), shift
        return _Fold(sources, eps, *(t.to(sources[0].dtype) for t in made))


# ---- activations that are made again in backward ------------------------------------------------------------

# Residual blocks one after the other: the output of each is made from that of the one before, so that the last one's
# takes the whole row, all of which backward goes on to need. Every n-th is kept instead. Of a row of m, m / n are
# kept and n - 1 exist at once in backward, fewest together at n = sqrt(m), and hardly more around it. The usual
# networks' rows are 2 to 36 blocks long, with one batch norm before the first; up to 8 nothing is kept.
_LONGEST_ROW = 8

_local = threading.local()


def _outputs() -> _Outputs | None:
    """Where to enter an output; None where what autograd saves does not come here, as in a checkpoint."""
    outputs, pack = getattr(_local, "active", (None, None))
    if outputs is None:
        return None
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return outputs if hooks is not None and hooks[0] is pack else None


def may_recompute() -> bool:
    """Whether hooks on what autograd saves are in place here: gradients are wanted, and nobody else has hooks."""
    return (
        not is_compiling()
        and torch.is_grad_enabled()
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is None
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )


@contextmanager
def recomputing() -> Iterator[None]:
    """Within it autograd saves, for a chain's output, how to make it again."""
    outputs = _Outputs()
    pack = outputs.pack
    _local.active = outputs, pack
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
            yield
    finally:
        _local.active = None, None
        outputs.clear()  # the hooks live as long as the graph


def _unpack(packed: _Kept | _Made | _View) -> Tensor:
    return packed.unpack()


class _Outputs:
    """The chains' outputs of one forward, known by their identity for as long as they live."""

    def __init__(self) -> None:
        self._recipes: dict[int, tuple[weakref.ref[Tensor], int, _Made]] = {}

    def clear(self) -> None:
        self._recipes.clear()

    def add(self, output: Tensor, recipe: _Made) -> None:
        if output.requires_grad and type(output) is Tensor and recipe.depth <= _LONGEST_ROW:
            self._recipes[id(output)] = weakref.ref(output), output._version, recipe

    def apply(self, function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        """Calls a function, whose output can be made again where its input can."""
        output = function(tensor)
        recipe = self.recipe(tensor)
        if recipe is not None:
            self.add(output, _Applied(function, recipe))
        return output

    def recipe(self, tensor: Tensor) -> _Made | None:
        """How to make a tensor again; None for one that is no chain's output, or was written to since."""
        reference, version, recipe = self._recipes.get(id(tensor), (None, 0, None))
        return recipe if reference is not None and reference() is tensor and tensor._version == version else None

    def operand(self, tensor: Tensor) -> _Kept | _Made:
        return self.recipe(tensor) or _Kept(tensor)

    def pack(self, tensor: Tensor) -> _Kept | _Made | _View:
        """What autograd saves in place of a tensor."""
        recipe = self.recipe(tensor)
        if recipe is None and tensor._is_view() and (recipe := self.recipe(tensor._base)) is not None:
            recipe.packed += 1
            return _View(recipe, tensor)
        if recipe is None:
            return _Kept(tensor)
        recipe.packed += 1
        return recipe


class _Kept:
    """A tensor itself. Autograd leaves it to hooks to see that nobody writes to what it saved."""

    depth = 0

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.detach()  # with its history it would hold the node that holds it
        self._version = None if tensor.is_inference() else tensor._version

    def value(self) -> Tensor:
        if self._version is not None and self._tensor._version != self._version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"tensor of shape {list(self._tensor.shape)} is at version {self._tensor._version}; expected version "
                f"{self._version} instead. fastnn.fuse(model, recompute=False) needs fewer of them"
            )
        return self._tensor

    unpack = value


class _Made(abc.ABC):
    """An output that is made again in backward, from tensors or from others that are made again themselves.

    The first that needs it there has it made. It is then held until it has been unpacked as often as it was packed,
    so that it is made once in a backward, however many need it.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.packed = self._unpacked = 0
        self._held: tuple[Tensor, object] | None = None

    @abc.abstractmethod
    def make(self) -> Tensor:
        """The output, from what is kept."""

    def value(self) -> Tensor:
        held = self._held
        if held is not None and held[1] == _current_stream(held[0]):
            return held[0]
        with torch.no_grad():
            output = self.make()
        if self._unpacked < self.packed:
            self._held = output, _current_stream(output)
        return output

    def unpack(self) -> Tensor:
        output = self.value()
        self._unpacked += 1
        if self._unpacked >= self.packed:
            self._unpacked, self._held = 0, None  # as it was before: another backward may follow
        return output


class _Normalised(_Made):
    """The output of the fused op."""

    def __init__(
        self,
        input: _Kept | _Made,
        residual: _Kept | _Made | None,
        statistics: tuple[Tensor, Tensor, Tensor],
        activation: Activation,
    ) -> None:
        super().__init__(1 + max(input.depth, 0 if residual is None else residual.depth))
        self._input, self._residual, self._statistics, self._activation = input, residual, statistics, activation

    def make(self) -> Tensor:
        residual = None if self._residual is None else self._residual.value()
        return torch.ops.fastnn.batch_norm_act_apply(
            self._input.value(), residual, *self._statistics, *self._activation
        )


class _Applied(_Made):
    """A function of another."""

    def __init__(self, function: Callable[[Tensor], Tensor], of: _Made) -> None:
        super().__init__(of.depth)
        self._function, self._of = function, of

    def make(self) -> Tensor:
        return self._function(self._of.value())


class _View:
    """A view of a chain's output."""

    def __init__(self, base: _Made, view: Tensor) -> None:
        self._base, self._geometry = base, (view.shape, view.stride(), view.storage_offset())

    def unpack(self) -> Tensor:
        return self._base.unpack().as_strided(*self._geometry)


def _current_stream(tensor: Tensor) -> object:
    """A tensor that was made on one stream is not ready for another."""
    return torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None


def _recomputable(
    outputs: _Outputs,
    input: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    *,
    activation: str,
    alpha: float,
    num_batches_tracked: Tensor | None,
    skip_nonfinite_stats: bool,
) -> Tensor:
    """:func:`functional.batch_norm_add_relu` whose output backward can make again."""
    output, mean, _, scale, shift, _ = torch.ops.fastnn.batch_norm_act_forward(
        input,
        residual,
        weight,
        bias,
        running_mean,
        running_var,
        num_batches_tracked,
        training,
        momentum,
        eps,
        activation,
        alpha,
        True,  # the mask: gradients are enabled
        skip_nonfinite_stats,
    )
    kept = None if residual is None else outputs.operand(residual)
    outputs.add(output, _Normalised(outputs.operand(input), kept, (mean, scale, shift), (activation, alpha)))
    return output
