"""The graph of a module's forward by torch.fx, where running it does what running the forward does.

For :mod:`fastnn.fuse`. What torch.fx does not see, and would leave out, is found here and refused: state that the
forward changes, random numbers that it draws, modes that it switches, operators that write in place.
"""

from __future__ import annotations

import inspect
import operator
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import Module


class NoGraphError(Exception):
    """Says why running a graph would not do what running the forward does."""


def in_place_add(tensor: Any, other: Any) -> Any:
    # As a call of operator.iadd the generated code would have the name `tensor` stand for the result.
    return operator.iadd(tensor, other)


ADDITIONS_IN_PLACE = (in_place_add, "add_")
ADDITIONS = (operator.add, torch.add, "add", *ADDITIONS_IN_PLACE)


class _Proxy(fx.Proxy):
    """Has the operators that write, which torch.fx would record as those that do not."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", in_place_add, (self, other), {})

    def _refuse(self, other: Any) -> Any:
        raise NoGraphError("its forward has an operator that writes in place and is not +=")

    __isub__ = __imul__ = __itruediv__ = __ifloordiv__ = __imod__ = __ipow__ = _refuse
    __iand__ = __ior__ = __ixor__ = __ilshift__ = __irshift__ = __imatmul__ = _refuse


class _Tracer(fx.Tracer):
    """Records one forward. The submodules in ``inlined`` become part of its graph, others are single calls.

    Parameters that have defaults take them: what depends on whether they are None is traced rightly so. Every node
    knows in which module's forward it was made: ``meta["module"]``, a name as in ``named_modules()``.
    """

    proxy_buffer_attributes = True

    def __init__(self, inlined: set[Module]) -> None:
        super().__init__()
        self._inlined = inlined
        self._mode = _mode()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        return m not in self._inlined

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        names = required_parameters(root_fn)
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if _mode() != self._mode:
            raise NoGraphError("it switches the gradient or autocast mode")
        node = super().create_node(kind, target, *args, **kwargs)
        callers = [name for name, _ in self.module_stack.values()]
        node.meta["module"] = "".join((callers[:-1] if kind == "call_module" else callers)[-1:])
        return node


def _mode() -> tuple[bool, ...]:
    """What a forward may switch without torch.fx noticing."""
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def required_parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The parameters after self that have no default."""
    _, *parameters = inspect.signature(forward).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    for p in required:
        if p.kind is not p.POSITIONAL_OR_KEYWORD:
            raise NoGraphError(f"its forward takes {p}")
    return tuple(p.name for p in required)


class _Untouched:
    """Within it a forward runs in one mode; after it the modules and random generators are as before.

    Raises:
        NoGraphError: at the end, when the forward changed them, which running its graph would not.
    """

    def __init__(self, modules: set[Module], training: bool) -> None:
        self._dicts = [d for m in modules for d in (vars(m), m._parameters, m._buffers, m._modules)]
        self._modules, self._training = modules, training

    def __enter__(self) -> None:
        self._before = [d.copy() for d in self._dicts]
        self._generators = random.getstate(), torch.get_rng_state()
        for module in self._modules:
            vars(module)["training"] = self._training

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        changed = set()
        for now, before in zip(self._dicts, self._before, strict=True):
            keys = now.keys() | before.keys()
            changed |= {k for k in keys if k != "training" and (k not in before or now.get(k) is not before[k])}
            now.clear()
            now.update(before)
        python, torch_s = self._generators
        drew = random.getstate() != python or not torch.equal(torch.get_rng_state(), torch_s)
        random.setstate(python)
        torch.set_rng_state(torch_s)
        if error is not None:
            return
        if any(name.startswith("_tensor_constant") for name in changed):
            raise NoGraphError("its forward makes tensors of its own")
        if changed:
            raise NoGraphError(f"its forward assigns to self.{min(changed)}")
        if drew:
            raise NoGraphError("its forward draws random numbers by itself")


def trace(module: Module, inlined: set[Module], training: bool) -> fx.Graph:
    """The graph of a module's forward in one mode.

    Raises:
        NoGraphError: where torch.fx fails, or the graph would do something else.
    """
    try:
        with _Untouched({module, *inlined}, training):
            graph = _Tracer(inlined).trace(module)
    except NoGraphError:
        raise
    except Exception as error:  # whatever the forward and torch.fx raise
        first_line = (str(error).splitlines() or [""])[0]
        raise NoGraphError(f"torch.fx cannot trace its forward: {type(error).__name__}: {first_line}") from error
    for node in graph.nodes:
        node.type = None  # an annotation may name what the generated code does not import
    return graph


def is_same(graph: fx.Graph, other: fx.Graph) -> bool:
    def form(node: fx.Node) -> tuple[Any, ...]:
        return node.op, node.name, node.target, str(node.args), str(node.kwargs)

    return [form(node) for node in graph.nodes] == [form(node) for node in other.nodes]
