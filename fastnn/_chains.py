"""Finds, in the graph of a module's forward, the chains that :mod:`fastnn._fused` computes at once."""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.nn import Module

from fastnn import _fused
from fastnn._fusable import Activation, activation_of, activation_of_call
from fastnn._tracing import ADDITIONS, ADDITIONS_IN_PLACE, in_place_add
from fastnn.convert import _layer_class

BatchNorm = torch.nn.modules.batchnorm._BatchNorm
Convolution = torch.nn.modules.conv._ConvNd


@dataclass(frozen=True)
class Chain:
    """The nodes of one call of :func:`_fused.run_chain`, or of :func:`_fused.run_convolution` without a batch norm."""

    batch_norm: fx.Node | None = None
    convolution: fx.Node | None = None
    addition: fx.Node | None = None
    activation: fx.Node | None = None
    function: Activation | None = None
    """The activation where it is a function, not a module."""

    @property
    def nodes(self) -> list[fx.Node]:
        return [n for n in (self.convolution, self.batch_norm, self.addition, self.activation) if n is not None]

    @property
    def residual(self) -> fx.Node | None:
        if self.addition is None:
            return None
        left, right = self.addition.args
        return right if left is self.batch_norm else left

    @property
    def reads(self) -> set[Any]:
        """What the nodes take from elsewhere, or from each other where they could also be apart."""
        first = {node.args[0] for node in (self.nodes[0], self.batch_norm) if node is not None}
        return first | {self.residual}

    def rewrite(self, graph: fx.Graph) -> None:
        """Puts the one call where the last of the nodes is, in their place."""
        first, last = self.nodes[0], self.nodes[-1]
        with graph.inserting_before(last):

            def module(node: fx.Node | None) -> fx.Node | None:
                return None if node is None else graph.get_attr(node.target)

            activation = self.function or module(self.activation)
            if self.batch_norm is None:
                call = graph.call_function(
                    _fused.run_convolution, (module(self.convolution), activation, first.args[0])
                )
            else:
                in_place = self.addition is not None and self.addition.target in ADDITIONS_IN_PLACE
                layers = (module(self.convolution), module(self.batch_norm), activation, in_place)
                call = graph.call_function(_fused.run_chain, (*layers, first.args[0], self.residual))
        last.replace_all_uses_with(call)
        for node in reversed(self.nodes):
            graph.erase_node(node)


@dataclass(frozen=True)
class Row:
    """What becomes of a layer: ``fused`` names the parts, ``reason`` says why there are not more."""

    target: str
    fused: str
    reason: str


class Finder:
    """Finds the chains of a graph whose modules are those of ``root``.

    With ``recompute`` also those that are one only for what need not be kept: a batch norm alone, or with an
    activation that no op fuses.
    """

    def __init__(self, root: Module, graph: fx.Graph, recompute: bool) -> None:
        self._root, self._graph, self._recompute = root, graph, recompute
        self._place = {node: place for place, node in enumerate(graph.nodes)}
        self.chains: list[Chain] = []
        self.rows: list[Row] = []
        calls: dict[Module, list[fx.Node]] = defaultdict(list)
        for node in graph.nodes:
            module = self._module(node)
            if isinstance(module, (BatchNorm, Convolution)):
                calls[module].append(node)
        norms = {module: nodes for module, nodes in calls.items() if isinstance(module, BatchNorm)}
        refusals = {nodes[0]: self._refusal(module, nodes) for module, nodes in norms.items()}
        self._able = {node for node, refusal in refusals.items() if not refusal}
        for node, refusal in refusals.items():
            self.rows.append(Row(node.target, "", refusal) if refusal else self._fuse(node))
        taken = {chain.convolution for chain in self.chains}
        for module, nodes in calls.items():
            if isinstance(module, Convolution) and taken.isdisjoint(nodes):
                self.rows += self._fuse_convolution(module, nodes)

    def ends_in_batch_norm(self) -> fx.Node | None:
        """The batch norm whose output is the graph's."""
        returned = self._graph.output_node().args[0]
        return returned if isinstance(returned, fx.Node) and returned in self._able else None

    def rewritten(self) -> fx.Graph:
        """The graph, with the chains in it."""
        for chain in self.chains:
            chain.rewrite(self._graph)
        return self._graph

    def _module(self, node: fx.Node) -> Module | None:
        return self._root.get_submodule(node.target) if node.op == "call_module" else None

    def _refusal(self, module: Module, nodes: list[fx.Node]) -> str:
        if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin):
            return "it does not know its size yet: call the model once before"
        if not (_fused.is_batch_norm(module) or _fused.is_convolution(module)):
            return f"{_layer_class(module).__name__} has its own computation"
        if _fused.has_hooks(module):
            return "it has hooks"
        if len(nodes) > 1:
            return f"it is called {len(nodes)} times"
        return "" if self._takes_one(nodes[0]) else "it is called with other arguments"

    @staticmethod
    def _takes_one(node: fx.Node) -> bool:
        return len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs

    def _fuse(self, node: fx.Node) -> Row:
        whole, reason = self._what_follows(Chain(node))
        attempts = [whole, Chain(node)]
        convolution = self._convolution_before(node)
        if convolution is not None:
            folding = [replace(chain, convolution=convolution) for chain in attempts]
            # Not with an addition: the fused op makes one pass over memory there, and folding would leave two.
            attempts = [folding[0], whole, *folding[1:]] if whole.addition is None else [whole, *folding[1:]]
            attempts.append(Chain(node))
        chain = next(chain for chain in attempts if not self._is_disturbed(chain))
        if chain.addition is not whole.addition or chain.activation is not whole.activation:
            reason = "something may be written in place before what follows it"
        if chain.nodes == [node] and not self._recompute:
            return Row(node.target, "", reason)
        self.chains.append(chain)
        parts = ["batch_norm"]
        if chain.addition is not None:
            parts.append("add")
        if chain.activation is not None:
            function = chain.function or activation_of(self._module(chain.activation))
            parts += [function[0]] if function else []
        said = [" + ".join(parts)] if len(parts) > 1 else []
        if chain.convolution is not None:
            said.append("conv folded in evaluation")
        return Row(node.target, ", ".join(said) or "recomputed in backward", reason)

    def _fuse_convolution(self, module: Module, nodes: list[fx.Node]) -> list[Row]:
        """The row of a convolution that an activation follows; none for another."""
        node = nodes[0]
        chain, _ = self._activated(Chain(convolution=node))
        if chain.activation is None:
            return []
        name, alpha = chain.function or activation_of(self._module(chain.activation)) or ("", -1.0)
        if alpha < 0:  # what the convolution returns would not tell backward what was positive
            return []
        reason = self._refusal(module, nodes)
        if not reason and self._is_disturbed(chain):
            reason = "something may be written in place before what follows it"
        if reason:
            return [Row(node.target, "", reason)]
        self.chains.append(chain)
        return [Row(node.target, f"conv + {name}", "")]

    def _convolution_before(self, node: fx.Node) -> fx.Node | None:
        before = node.args[0]
        module = self._module(before)
        able = (
            module is not None
            and _fused.is_convolution(module)
            and not _fused.has_hooks(module)
            and len(before.users) == 1
            and self._takes_one(before)
        )
        return before if able else None

    def _what_follows(self, chain: Chain) -> tuple[Chain, str]:
        """The chain with addition and activation where it has them, and why it has no more."""
        node = chain.nodes[-1]
        if len(node.users) != 1:
            return chain, f"its output is used {len(node.users)} times"
        (user,) = node.users
        if user.op == "output":
            return chain, "its output is returned"
        if chain.addition is None and user.op != "call_module" and user.target in ADDITIONS:
            reason = self._not_added(user, node)
            if reason:
                return chain, reason
            found, _ = self._what_follows(replace(chain, addition=user))
            return found, ""
        return self._activated(chain)

    def _activated(self, chain: Chain) -> tuple[Chain, str]:
        """The chain with the activation that alone uses its output, and why it has none."""
        node = chain.nodes[-1]
        if len(node.users) != 1:
            return chain, f"its output is used {len(node.users)} times"
        (user,) = node.users
        module = self._module(user)
        if module is not None:
            known = activation_of(module) is not None
            reason = "" if known else f"{type(module).__name__} is not fused"
            again = self._recompute and chain.batch_norm is not None and _fused.pointwise_of(module) is not None
            if not (known or again) or not self._takes_one(user):
                return chain, reason or f"{user.target} has other arguments"
            if _fused.has_hooks(module):
                return chain, f"{user.target} has hooks"
            return replace(chain, activation=user), reason
        function = None if user.op == "output" else activation_of_call(user.target, user.args, user.kwargs)
        if function is None:
            return chain, f"{getattr(user.target, '__name__', user.target)} is not fused"
        return replace(chain, activation=user, function=function), ""

    def _not_added(self, addition: fx.Node, node: fx.Node) -> str:
        """Why an addition cannot be fused with a batch norm that it adds."""
        if len(addition.args) != 2 or any(name != "alpha" or value != 1 for name, value in addition.kwargs.items()):
            return "the addition has other arguments"
        left, right = addition.args
        if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or left is right:
            return "no other tensor is added to it"
        if right is node and addition.target in ADDITIONS_IN_PLACE:
            return "the addition writes into its other operand"
        if right is node and left in self._able and len(left.users) == 1:
            return "the addition is fused with its other operand"
        return ""

    def _is_disturbed(self, chain: Chain) -> bool:
        """Whether something between the nodes may write to what they read: they all move to the last one's place."""
        first, last = (self._place[chain.nodes[place]] for place in (0, -1))
        read = chain.reads
        between = [n for n, place in self._place.items() if first < place < last and n not in chain.nodes]
        return any(self._may_write(node, read) for node in between)

    def _may_write(self, node: fx.Node, read: set[Any]) -> bool:
        module = self._module(node)
        if module is not None:
            stock = all(
                type(m).__module__.startswith(("torch.nn.", "fastnn.nn.")) and not getattr(m, "inplace", False)
                for m in module.modules()
            )
            return not stock and not read.isdisjoint(node.all_input_nodes)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        writes = (
            node.op in ("call_function", "call_method")
            and not name.startswith("__")
            and (
                name.endswith("_")
                or node.target in (in_place_add, operator.setitem)
                or any(value is True for value in (*node.args, node.kwargs.get("inplace")))
                or "out" in node.kwargs
            )
        )
        if not writes:
            return False
        # A view of what is read may be written to as well; a layer's own output is none.
        target = self._module(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        return not isinstance(target, (BatchNorm, torch.nn.modules.conv._ConvNd))
