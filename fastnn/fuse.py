"""Fuses batch norms and convolutions of a model with what stands around them, in place and back, and reports on each.

A module's ``forward`` is traced by torch.fx, with its submodules as single calls. Where the graph has a batch norm
followed by an addition, an activation or both, or after a convolution, or a convolution followed by an activation, the
module gets a subclass of its own class whose ``forward`` is the graph with one call for them,
:func:`fastnn._fused.run_chain` or :func:`fastnn._fused.run_convolution`. The submodules stay where they
are, with their parameters, buffers and names. A module that computes nothing fused stays what it was and is called
as before, so that its hooks are too; and one that cannot be traced leaves the others alone.
"""

from __future__ import annotations

import copy as copying
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import fx
from torch.nn import Module
from torch.nn.utils import parametrize

from fastnn import _fused
from fastnn._chains import BatchNorm, Convolution, Finder, Row
from fastnn._tracing import NoGraphError, is_same, required_parameters, trace
from fastnn.convert import Report, _check_module, _layer_class, _set_layer_class
from fastnn.nn.conv_act import ConvBNAct1d, ConvBNAct2d, ConvBNAct3d

ModuleT = TypeVar("ModuleT", bound=Module)

# Where a class made by _fused_class keeps what it was made from.
_PLAN = "_fastnn_fusion"


# ---- the plan for one module --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Code:
    """The generated forward, and the functions that it names."""

    source: str
    functions: dict[str, Any]

    @classmethod
    def of(cls, graph: fx.Graph) -> _Code:
        code = graph.python_code("self")
        return cls(code.src, {k: v for k, v in code.globals.items() if not isinstance(v, ModuleType)})

    def compile(self, name: str) -> Callable[..., Any]:
        namespace = {"torch": torch, **self.functions}
        exec(compile(self.source, f"<{name}.forward fused by fastnn>", "exec"), namespace)
        return namespace["forward"]


@dataclass(frozen=True)
class _Plan:
    """What a fused class is made from. It names submodules and holds none, so that copies of a model share it.

    ``layout`` has, for the module and for each one that became part of its graph or has no forward, its name, its
    class (None where it does not matter) and the names of its submodules.
    """

    original: type[Module]
    recompute: bool
    is_root: bool = False
    parameters: tuple[str, ...] = ()
    layout: tuple[tuple[str, type[Module] | None, tuple[str, ...]], ...] = ()
    training: _Code | None = None
    evaluation: _Code | None = None
    rows: tuple[Row, ...] = ()
    is_complete: bool = True

    @property
    def inlined(self) -> list[str]:
        return [name for name, cls, _ in self.layout if cls is not None]

    def __deepcopy__(self, memo: Any) -> _Plan:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # A graph names functions that cannot be pickled: whoever reads this traces the module again.
        layout = tuple((name, Module, ()) for name in self.inlined)
        return _Plan, (self.original, self.recompute, self.is_root, (), layout, None, None, (), False)


def _original(module: Module) -> type[Module]:
    """The class that a module has when it is not fused."""
    cls = _layer_class(module)
    plan = vars(cls).get(_PLAN)
    return cls if plan is None else plan.original


def _has_fused_forward(module: Module) -> bool:
    plan = vars(_layer_class(module)).get(_PLAN)
    return plan is not None and plan.training is not None


def _has_forward(module: Module) -> bool:
    return type(module).forward is not Module.forward


def _is_container(module: Module) -> bool:
    """Whether a module's forward is somebody's code that calls others; of torch's and ours that is Sequential."""
    cls = _original(module)
    own = cls is torch.nn.Sequential or not cls.__module__.startswith(("torch.nn.", "fastnn.nn."))
    return own and bool(module._modules) and _has_forward(module) and not isinstance(module, BatchNorm)


def _parts(module: Module) -> Iterator[Module]:
    """The submodules that a module's forward calls: what stands in ModuleLists and the like is its own."""
    for child in module.children():
        yield child
        if not _has_forward(child):
            yield from _parts(child)


def _layout(module: Module, inlined: set[Module], name: str = "") -> Iterator[tuple[str, type[Module] | None, Any]]:
    yield name, _layer_class(module) if module in inlined else None, tuple(module._modules)
    for child_name, child in module.named_children():
        if child in inlined or not _has_forward(child):
            yield from _layout(child, inlined, f"{name}.{child_name}" if name else child_name)


class _Planner:
    """Makes plans for the modules of a model, each once. ``recompute`` is :func:`fuse`'s."""

    def __init__(self, recompute: bool) -> None:
        self._recompute = recompute
        self._plans: dict[Module, _Plan | None] = {}
        # The submodules, itself among them, that a module's caller may take into its graph to reach the batch norm
        # whose output the module returns.
        self._ends: dict[Module, set[Module]] = {}
        self.reasons: dict[Module, str] = {}
        """Why a module with something to fuse has no plan."""
        self.inlined: set[Module] = set()
        """What the plans take into their graphs."""

    def plan(self, module: Module) -> _Plan | None:
        """The plan for a module; None where it has nothing to fuse, has a fused forward or can have none."""
        if module not in self._plans:
            self._plans[module], self._ends[module] = None, set()
            if _is_container(module) and not _has_fused_forward(module):
                try:
                    self._plans[module] = self._make(module)
                except NoGraphError as error:
                    self.reasons[module] = str(error)
        return self._plans[module]

    def _make(self, module: Module) -> _Plan | None:
        parts = set(_parts(module))
        candidates: set[Module] = set()
        for part in parts:
            self.plan(part)
            candidates |= self._ends[part]
        if not candidates and not any(isinstance(part, (BatchNorm, Convolution)) for part in parts):
            return None
        finders = _find(module, candidates, self._recompute)
        end = finders[0].ends_in_batch_norm()
        if end is not None and len(finders) == 1 and not _fused.has_hooks(module):
            self._ends[module] = {module, *_enclosing(module, end)}
        reached = {
            part
            for finder in finders
            for chain in finder.chains
            if len({node.meta["module"] for node in chain.nodes}) > 1
            for node in chain.nodes
            for part in _enclosing(module, node)
        }
        self.inlined |= reached
        if reached != candidates:
            finders = _find(module, reached, self._recompute)
        return _plan_of(module, reached, finders, self._recompute)


def _enclosing(module: Module, node: fx.Node) -> list[Module]:
    """The submodules in whose forwards a node was made, from the outermost."""
    names = node.meta["module"].split(".") if node.meta["module"] else []
    modules = [module.get_submodule(".".join(names[: depth + 1])) for depth in range(len(names))]
    return [m for m in modules if _has_forward(m)]


def _find(module: Module, inlined: set[Module], recompute: bool) -> list[Finder]:
    """The finders of a module's graphs in training and evaluation; one of them where both are the same.

    Raises:
        NoGraphError: where there is no graph.
    """
    if isinstance(module, (torch.jit.ScriptModule, fx.GraphModule)):
        raise NoGraphError("it is traced already: fuse before tracing")
    if "forward" in vars(module):
        raise NoGraphError("its forward is replaced on this object")
    if parametrize.is_parametrized(module):
        raise NoGraphError("it is parametrised")
    graphs = [trace(module, inlined, training) for training in (True, False)]
    return [Finder(module, graph, recompute) for graph in graphs[: 1 if is_same(*graphs) else 2]]


def _plan_of(module: Module, inlined: set[Module], finders: list[Finder], recompute: bool) -> _Plan | None:
    if not any(finder.chains for finder in finders):
        return _Plan(_original(module), recompute, rows=tuple(finders[0].rows))
    codes = [_Code.of(finder.rewritten()) for finder in finders]
    return _Plan(
        _original(module),
        recompute,
        parameters=required_parameters(_original(module).forward),
        layout=tuple(_layout(module, inlined)),
        training=codes[0],
        evaluation=codes[-1],
        rows=tuple(finders[0].rows),
    )


# ---- the class that a module gets ---------------------------------------------------------------------------


def _new_fused(plan: _Plan, *args: Any) -> Module:
    """What unpickling a fused module calls: its class has no importable name of its own."""
    cls = _fused_class(plan)
    return cls.__new__(cls, *args)


def _fused_class(plan: _Plan) -> type[Module]:
    """A subclass of the plan's class that computes as planned; modules of the same plan share it.

    Raises:
        TypeError: where the class cannot be subclassed so.
    """
    original = plan.original
    for made in original.__subclasses__():
        if vars(made).get(_PLAN) == plan:
            return made
    codes = (plan.training, plan.evaluation)
    training, evaluation = (None if code is None else code.compile(original.__qualname__) for code in codes)

    @functools.wraps(original.forward)
    def forward(self: Module, *args: Any, **kwargs: Any) -> Any:
        run = training if self.training else evaluation
        if run is None or not _takes(plan, args, kwargs) or not _is_laid_out(plan, self):
            run = original.forward
        if plan.is_root and _fused.may_recompute():
            with _fused.recomputing():
                return run(self, *args, **kwargs)
        return run(self, *args, **kwargs)

    def train(self: Module, mode: bool = True) -> Module:
        # Writes through `.data`, which torch does not count, usually end with a switch of the mode.
        _fused.forget_folds(self)
        return original.train(self, mode)

    def __setstate__(self: Module, state: Any) -> None:  # noqa: N807
        original.__setstate__(self, state)
        if not plan.is_complete:
            _complete(self, plan)

    def __reduce_ex__(self: Module, protocol: int) -> tuple[Any, ...]:  # noqa: N807
        # Above protocol 1 the default is (copyreg.__newobj__, (class, *arguments), state, ...).
        _, (_, *args), *state = object.__reduce_ex__(self, max(protocol, 2))
        return (_new_fused, (plan, *args), *state)

    namespace: dict[str, Any] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "forward": forward,
        "train": train,
        "__setstate__": __setstate__,
    }
    if original.__reduce_ex__ is object.__reduce_ex__ and original.__reduce__ is object.__reduce__:
        namespace["__reduce_ex__"] = __reduce_ex__
    metaclass: Any = type(original)
    made = metaclass(original.__name__, (original,), namespace)
    # Not in the namespace: a class that an __init_subclass__ refused lingers among the subclasses without it.
    setattr(made, _PLAN, plan)
    return made


def _takes(plan: _Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call leaves every parameter that has a default at it, which is how the forward was traced."""
    names = plan.parameters
    return len(args) + len(kwargs) == len(names) and all(name in names[len(args) :] for name in kwargs)


def _is_laid_out(plan: _Plan, module: Module) -> bool:
    """Whether a module has the submodules that it was traced with, and none that was taken in has got hooks."""
    for name, cls, names in plan.layout:
        part: Any = module
        for step in name.split(".") if name else ():
            part = part._modules[step]
        if part is None or tuple(part._modules) != names:
            return False
        if cls is not None and (type(part) is not cls or _fused.has_hooks(part)):
            return False
    return True


def _complete(module: Module, plan: _Plan) -> None:
    """Fuses a module that was unpickled: its plan had to be left behind."""
    _set_layer_class(module, plan.original)
    inlined = {module.get_submodule(name) for name in plan.inlined}
    try:
        made = _plan_of(module, inlined, _find(module, inlined, plan.recompute), plan.recompute)
    except NoGraphError:  # the code of its class is another now
        made = _Plan(plan.original, plan.recompute)
    if made.training is not None or plan.is_root:
        _set_layer_class(module, _fused_class(replace(made, is_root=plan.is_root)))


# ---- public functions ---------------------------------------------------------------------------------------


def fuse(model: ModuleT, *, recompute: bool = True, copy: bool = False) -> ModuleT:
    """Fuses batch norms and convolutions with the addition and activation after them, and keeps less for backward.

    - ``act(batch_norm(x))`` and ``act(batch_norm(x) + residual)``, with one of the activations of
      :func:`fastnn.functional.activation` or none, are computed by :func:`fastnn.functional.batch_norm_relu` and
      :func:`~fastnn.functional.batch_norm_add_relu`.
    - ``act(conv(x))`` is computed by :func:`fastnn.functional.conv2d_relu`, or that of another rank, where the
      convolution is fastnn's.
    - In evaluation, where no gradient of its parameters is wanted, a batch norm between a convolution and
      anything but an addition becomes part of the convolution. The folded weights are made once and again when a
      parameter or statistic has changed, as far as torch counts changes (writes through ``.data`` it does not:
      call ``model.eval()`` after those). The parameters stay as they are.
    - With ``recompute``, what a batch norm and its activation return is not kept for backward where only autograd
      holds it, but made again there, at the cost of one pass over memory; so too with ReLU6, Hardtanh, Hardswish
      and Mish. It needs the model itself to be called, and does nothing within ``torch.compile``,
      ``torch.func`` and other saved-tensor hooks, as checkpointing's. A residual that is written to in place after
      the addition makes backward raise; without ``recompute`` it may be.

    In place: the model and its modules stay the same objects with the same parameters, buffers, hooks, names and
    ``state_dict``; those whose ``forward`` has something to fuse get a subclass of their class. Copies and pickles of
    the model are fused too. What is changed later is followed: the mode, parameters, hooks, batch norms and
    activations that are replaced, submodules added or removed. What is not: whatever else a ``forward`` with
    something to fuse reads from Python, its attributes and globals, is as it was when it was traced here, and what it
    does besides computing, printing say, is not done; fuse again after a change. ``type(module) is Class`` is no
    longer true, ``isinstance`` is. ``torch.jit.script`` and ``torch.fx.symbolic_trace`` need :func:`unfuse` first.

    Fusing twice is fusing once, with the later arguments. Before or after :func:`fastnn.convert`, it does not matter.

    Args:
        model: the model.
        recompute: make activations again in backward.
        copy: fuse a deep copy instead, and leave ``model`` as it is.

    Returns:
        The model, or the copy. :func:`fusion_report` says what was done.

    Raises:
        TypeError: when ``model`` is not a ``torch.nn.Module``.
    """
    _check_module("fuse", model)
    model = unfuse(model, copy=copy)
    planner = _Planner(recompute)
    plans = [(module, planner.plan(module)) for module in model.modules()]
    plans = [(m, p) for m, p in plans if p is not None and p.training is not None and m not in planner.inlined]
    for module, plan in plans:
        _give_class(module, replace(plan, is_root=recompute and module is model))
    if recompute and plans and _original(model) is _layer_class(model) and "forward" not in vars(model):
        _give_class(model, _Plan(_original(model), recompute, is_root=True))
    return model


def _give_class(module: Module, plan: _Plan) -> None:
    try:
        cls = _fused_class(plan)
    except Exception:  # whatever a metaclass or __init_subclass__ of somebody else's raises; the report says it
        return
    _set_layer_class(module, cls)


def unfuse(model: ModuleT, *, copy: bool = False) -> ModuleT:
    """Undoes :func:`fuse`: gives every module its class again, with the parameters that it has now.

    Args:
        model: the model, fused or not, or one that contains it.
        copy: unfuse a deep copy instead, and leave ``model`` as it is.

    Returns:
        The model, or the copy.

    Raises:
        TypeError: when ``model`` is not a ``torch.nn.Module``.
    """
    _check_module("unfuse", model)
    if copy:
        model = copying.deepcopy(model)
    for module in model.modules():
        if _original(module) is not _layer_class(module):
            _set_layer_class(module, _original(module))
    return model


@dataclass(frozen=True)
class FusionRow:
    """One batch norm of a report, or one convolution that an activation follows."""

    name: str
    """Where it stands in the model, as in ``named_modules()``; empty for the model itself."""
    class_name: str
    """The name of its class."""
    fused: str
    """What it is part of: "batch_norm + add + relu", "conv folded in evaluation", "conv + relu"; empty for none."""
    reason: str
    """Why it is not part of more; may be empty where it is part of something."""


@dataclass(frozen=True)
class FusionReport(Report):
    """What :func:`fusion_report` returns: rows, and as a string a table of them."""

    rows: tuple[FusionRow, ...]
    recomputes: bool
    """Whether activations are made again in backward."""
    _titles = ("layer", "class", "fused", "why not more")

    @property
    def fused(self) -> int:
        """Number of layers that are part of something."""
        return sum(bool(row.fused) for row in self.rows)

    def _cells(self) -> list[tuple[str, str, str, str]]:
        return [(row.name or "(model)", row.class_name, row.fused or "no", row.reason) for row in self.rows]

    def _summary(self) -> str:
        kept = "; their outputs are made again in backward" if self.recomputes else ""
        return f"{self.fused} of {len(self.rows)} batch norms and activated convolutions are fused{kept}"


def fusion_report(model: Module) -> FusionReport:
    """Says of each batch norm and activated convolution what it is fused with, and why not with more.

    Args:
        model: the model, fused or not; it is not changed.

    Returns:
        A report: iterate over it for the rows, each layer once, or print it for a table.

    Raises:
        TypeError: when ``model`` is not a ``torch.nn.Module``.
    """
    _check_module("fusion_report", model)
    fusions = [vars(_layer_class(module)).get(_PLAN) for module in model.modules()]
    planner = _Planner(any(plan is not None and plan.recompute for plan in fusions))
    found: dict[Module, tuple[str, str]] = {}
    reasons: dict[Module, str] = {}
    for module, fusion in zip(model.modules(), fusions, strict=True):  # callers come before what they call
        if isinstance(module, ConvBNAct1d | ConvBNAct2d | ConvBNAct3d):
            found[module.bn] = (f"batch_norm + {module.activation}, conv folded in evaluation", "")
        plan = fusion if _has_fused_forward(module) else planner.plan(module)
        for row in () if plan is None else plan.rows:
            layer = module.get_submodule(row.target)
            if plan is not fusion and row.fused:
                found.setdefault(layer, ("", _why_not_yet(plan)))
            else:
                foreign = isinstance(layer, Convolution) and not _fused.is_own_convolution(layer)
                waits = "not before fastnn.convert makes it fastnn's" if row.fused and foreign else row.reason
                found.setdefault(layer, (row.fused, waits))
        for part in _parts(module) if module in planner.reasons else ():
            reasons[part] = f"in {_layer_class(module).__name__}: {planner.reasons[module]}"
    rows = []
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) or module in found:
            no_caller = ("", reasons.get(module, "no forward that could be traced calls it"))
            rows.append(FusionRow(name, _layer_class(module).__name__, *found.get(module, no_caller)))
    is_root = [plan is not None and plan.is_root for plan in fusions]
    return FusionReport(tuple(rows), any(is_root))


def _why_not_yet(plan: _Plan) -> str:
    try:
        _fused_class(plan)
    except Exception as error:  # as in _give_class
        return f"{plan.original.__name__} cannot be subclassed: {error}"
    return "not fused yet: fastnn.fuse(model) fuses it"
