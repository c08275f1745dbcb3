"""Turns the layers of a model into fastnn's, in place and back, and says what became of each.

A layer is converted by giving the very same object another class. fastnn's layers add no state to torch's, so
parameters, buffers, hooks, names, flags, tied weights and everything that refers to the layer stay what they
were; an optimiser made before holds the right parameters.
"""

from __future__ import annotations

import abc
import copy as copying
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch.nn import Module
from torch.nn.utils import parametrize

from fastnn import nn
from fastnn.nn.recurrent import RecurrentCell, RecurrentLayer

ModuleT = TypeVar("ModuleT", bound=Module)

_FASTNN_OF: dict[type[Module], type[Module]] = {getattr(torch.nn, cls.__name__): cls for cls in nn.IMPLEMENTED}
_TORCH_OF: dict[type[Module], type[Module]] = {fastnn_cls: torch_cls for torch_cls, fastnn_cls in _FASTNN_OF.items()}

# The methods that compute a layer's output. A subclass that has its own is not what fastnn implements.
_COMPUTING = ("forward", "_conv_forward", "_apply_instance_norm")
_DTYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
# Where a class made by _converted_subclass keeps the class that it was made from.
_ORIGINAL = "_fastnn_converted_from"


# ---- which class a layer gets -------------------------------------------------------------------------------


def _new_converted(original: type[Module], *args: Any) -> Module:
    """What unpickling a converted subclass's object calls: its class has no importable name of its own."""
    cls = _converted_subclass(original)
    return cls.__new__(cls, *args)


def _reduce_ex(self: Module, protocol: int) -> tuple[Any, ...]:
    # Above protocol 1 the default is (copyreg.__newobj__, (class, *arguments), state, ...).
    _, (_, *args), *state = object.__reduce_ex__(self, max(protocol, 2))
    return (_new_converted, (getattr(type(self), _ORIGINAL), *args), *state)


def _converted_subclass(original: type[Module]) -> type[Module]:
    """A class like ``original``, a subclass of a torch layer, but computing as fastnn's layer.

    The new class derives from both, so that fastnn's methods stand between ``original``'s and torch's. It is
    made once, so that two layers of one class stay of one class, and lives as long as a layer of it does.

    Raises:
        TypeError: where ``original`` cannot be subclassed so.
    """
    for made in original.__subclasses__():
        if vars(made).get(_ORIGINAL) is original:
            return made
    family = _family(original)
    assert family is not None
    namespace: dict[str, Any] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    if original.__reduce_ex__ is object.__reduce_ex__ and original.__reduce__ is object.__reduce__:
        namespace["__reduce_ex__"] = _reduce_ex
    metaclass: Any = type(original)
    made = metaclass(original.__name__, (original, _FASTNN_OF[family]), namespace)
    # Not in the namespace: a class that an __init_subclass__ refused lingers among the subclasses without it.
    setattr(made, _ORIGINAL, original)
    return made


def _family(cls: type) -> type[Module] | None:
    """The torch layer that ``cls`` is or derives from, among those that fastnn implements."""
    return next((base for base in cls.__mro__ if base in _FASTNN_OF), None)


def _own_method(cls: type, base: type) -> str | None:
    """The computing method that ``cls`` or a class between it and ``base`` defines; None for none."""
    mro = cls.__mro__
    for between in mro[: mro.index(base)]:
        for name in _COMPUTING:
            if name in vars(between):
                return f"{between.__name__}.{name}"
    return None


def _layer_class(module: Module) -> type[Module]:
    """The module's class, without the one that a parametrisation puts before it."""
    return parametrize.type_before_parametrizations(module)


def _set_layer_class(module: Module, cls: type[Module]) -> None:
    """Gives the module another class, below a parametrisation's where it has one."""
    if parametrize.is_parametrized(module):
        # Parametrising makes a subclass with properties for this one module; make it again over the new class.
        old = type(module)
        namespace = {k: v for k, v in vars(old).items() if k not in ("__dict__", "__weakref__")}
        name = f"Parametrized{cls.__name__}"
        namespace["__qualname__"] = name
        cls = type(name, (cls,), namespace)
    module.__class__ = cls


@dataclass(frozen=True)
class _Verdict:
    """What is to be done with one module: ``target`` is the class that it gets, None to leave it alone."""

    is_fastnn: bool
    target: type[Module] | None
    reason: str


def _judge(module: Module) -> _Verdict:
    """Decides on one module; :func:`convert` and :func:`conversion_report` both ask here."""

    def keep(reason: str) -> _Verdict:
        return _Verdict(False, None, reason)

    if isinstance(module, torch.jit.ScriptModule):
        return keep("compiled by TorchScript")
    cls = _layer_class(module)
    own = next((base for base in cls.__mro__ if base in _TORCH_OF or base in nn.ADDED), None)
    family = own or _family(cls)
    if family is None:
        return keep(f"fastnn does not implement {cls.__name__}")
    method = _own_method(cls, family)
    if method is not None:
        return keep(f"has its own computation, {method}")
    for name in _COMPUTING:
        if name in vars(module):
            return keep(f"{name} is replaced on this object")
    if own is not None:
        return _Verdict(True, None, "")
    if issubclass(family, torch.nn.RNNBase) and any(parameter.is_cuda for parameter in module.parameters()):
        return keep("on CUDA cuDNN's sequences stay until fastnn's have been timed on a GPU")
    for name, parameter in module.named_parameters():
        if parameter.dtype not in _DTYPES:
            return keep(f"{name} is {parameter.dtype}; fastnn has kernels for float64, float32, bfloat16, float16")
    if cls in _FASTNN_OF:
        return _Verdict(False, _FASTNN_OF[cls], "")
    try:
        return _Verdict(False, _converted_subclass(cls), "")
    except Exception as error:  # whatever a metaclass or __init_subclass__ of somebody else's raises
        return keep(f"{cls.__name__} cannot be subclassed: {error}")


def _stock_class(module: Module) -> type[Module] | None:
    """The class that :func:`revert` gives a layer; None where it has nothing to undo."""
    if isinstance(module, RecurrentLayer | RecurrentCell) and not module.is_plain:
        return None
    cls = _layer_class(module)
    return vars(cls).get(_ORIGINAL) or _TORCH_OF.get(cls)


def _check_module(function: str, model: object) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"{function}: expected a torch.nn.Module, got {type(model).__name__}")


# ---- public functions ---------------------------------------------------------------------------------------


def _synchronise(module: Module, process_group: Any) -> None:
    """Makes a batch norm, already fastnn's, one over several processes: the same state, and the group."""
    cls = _layer_class(module)
    if cls in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        module.process_group = process_group
        _set_layer_class(module, nn.SyncBatchNorm)
    elif isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
        raise ValueError(
            f"convert: {cls.__name__} cannot be made a SyncBatchNorm: a lazy layer must have seen an input, one with "
            "an activation be unfused, and a class of somebody else's has its own ways"
        )


def convert(model: ModuleT, *, copy: bool = False, sync_batchnorm: bool = False, process_group: Any = None) -> ModuleT:
    """Replaces each layer of a model that fastnn implements by fastnn's.

    In place: the layers stay the same objects, with the same parameters, buffers, hooks, names, training flag
    and parametrisations, and change their class. Nothing outside the model changes. Subclasses that inherit
    torch's computation are converted too; those with their own ``forward`` are left alone, as is everything
    that fastnn does not implement: :func:`conversion_report` names each with its reason. Converting twice is
    converting once.

    ``torch.fx.symbolic_trace`` and ``torch.jit.script`` know torch's own layers only: trace before converting
    (the traced model can be converted), and :func:`revert` before scripting.

    Args:
        model: the model; it may itself be such a layer.
        copy: convert a deep copy instead, and leave ``model`` as it is.
        sync_batchnorm: make each batch norm a :class:`fastnn.nn.SyncBatchNorm`, whose statistics are those of the
            batches of all processes. :func:`revert` makes torch's of them.
        process_group: theirs, of ``torch.distributed``; None for that of all processes.

    Returns:
        The model, or the copy.

    Raises:
        TypeError: when ``model`` is not a ``torch.nn.Module``.
        ValueError: for a batch norm that cannot be synchronised, where ``sync_batchnorm``.
    """
    _check_module("convert", model)
    if copy:
        model = copying.deepcopy(model)
    for module in model.modules():
        target = _judge(module).target
        if target is not None:
            _set_layer_class(module, target)
    if sync_batchnorm:
        for module in model.modules():
            _synchronise(module, process_group)
    return model


def revert(model: ModuleT, *, copy: bool = False) -> ModuleT:
    """Gives each fastnn layer of a model torch's class again, with the weights that it has now.

    In place, as :func:`convert`. It undoes ``convert`` and takes models built from ``fastnn.nn`` too; a
    subclass that somebody derived from a fastnn layer has no stock class and is left alone, and so are layers and
    recurrent variants that torch has not.

    Args:
        model: the model; it may itself be such a layer.
        copy: revert a deep copy instead, and leave ``model`` as it is.

    Returns:
        The model, or the copy.

    Raises:
        TypeError: when ``model`` is not a ``torch.nn.Module``.
    """
    _check_module("revert", model)
    if copy:
        model = copying.deepcopy(model)
    for module in model.modules():
        stock = _stock_class(module)
        if stock is not None:
            _set_layer_class(module, stock)
    return model


@dataclass(frozen=True)
class ConversionRow:
    """One layer of a report."""

    name: str
    """Where it stands in the model, as in ``named_modules()``; empty for the model itself."""
    class_name: str
    """The name of its class."""
    replaced: bool
    """Whether fastnn computes it."""
    reason: str
    """Why not; empty for a layer that fastnn computes."""


class Report(abc.ABC):
    """Rows, and as a string a table of them with a summary below; rich draws a nicer one."""

    rows: tuple[Any, ...]
    _titles: ClassVar[tuple[str, str, str, str]]

    @abc.abstractmethod
    def _cells(self) -> list[tuple[str, str, str, str]]:
        """The table's rows; the third column is "no" where nothing was done."""

    @abc.abstractmethod
    def _summary(self) -> str:
        """The line below."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        table = [self._titles, *self._cells()]
        widths = [max(len(row[column]) for row in table) for column in range(len(self._titles))]
        table.insert(1, tuple("-" * width for width in widths))
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
        return "\n".join([*(line.rstrip() for line in lines), self._summary()])

    def __rich__(self) -> Any:
        """The table as rich draws it; rich calls this, so it is installed then."""
        from rich.table import Table
        from rich.text import Text

        table = Table(*self._titles, caption=self._summary(), caption_justify="left")
        for name, class_name, done, reason in self._cells():
            style = "yellow" if done == "no" else "green"
            table.add_row(Text(name), Text(class_name), Text(done, style=style), Text(reason))
        return table


@dataclass(frozen=True)
class ConversionReport(Report):
    """What :func:`conversion_report` returns: rows, and as a string a table of them."""

    rows: tuple[ConversionRow, ...]
    _titles = ("layer", "class", "fastnn", "why not")

    @property
    def replaced(self) -> int:
        """Number of layers that fastnn computes."""
        return sum(row.replaced for row in self.rows)

    @property
    def kept(self) -> int:
        """Number of layers that it does not."""
        return len(self.rows) - self.replaced

    def _cells(self) -> list[tuple[str, str, str, str]]:
        return [(r.name or "(model)", r.class_name, "yes" if r.replaced else "no", r.reason) for r in self.rows]

    def _summary(self) -> str:
        return f"{self.replaced} of {len(self.rows)} layers are fastnn's"


def conversion_report(model: Module) -> ConversionReport:
    """Says of each layer of a model whether fastnn computes it, and why not.

    Rows are the modules that have no submodules or own parameters, each object once. Before :func:`convert` the
    layers that it would replace say so.

    Args:
        model: the model, converted or not; it is not changed.

    Returns:
        A report: iterate over it for the rows, print it for a table (``rich.print`` draws a nicer one), or ask
        for ``replaced`` and ``kept``, the numbers of layers.

    Raises:
        TypeError: when ``model`` is not a ``torch.nn.Module``.
    """
    _check_module("conversion_report", model)
    rows = []
    parts_of_others: set[Module] = set()  # what computes a parametrised weight is no layer of the model
    for name, module in model.named_modules():
        if module in parts_of_others:
            continue
        children = list(module.children())
        if parametrize.is_parametrized(module):
            parts_of_others.update(module.parametrizations.modules())
            children = [child for child in children if child not in parts_of_others]
        if children and not any(True for _ in module.parameters(recurse=False)):
            continue
        verdict = _judge(module)
        reason = verdict.reason if verdict.target is None else "not converted yet: fastnn.convert(model) replaces it"
        rows.append(ConversionRow(name, _layer_class(module).__name__, verdict.is_fastnn, reason))
    return ConversionReport(tuple(rows))
