"""Options of recurrent cells: which weights a cell has, how they begin, and how its function is called.

A family of cells derives from :class:`CellOptions`; layers and cells of it hold one object, whose class attribute is
torch's cell. So converted layers, which torch made, need no attribute of their own.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastnn import functional

States = tuple[Tensor, ...]
Weights = dict[str, Tensor]
TORCH_NONLINEARITIES = ("tanh", "relu")


def _check_share(name: str, value: Any) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")


def check_activation(name: str, value: Any) -> None:
    """Raises ValueError for what is none of ``functional.GATE_ACTIVATIONS``."""
    if value not in functional.GATE_ACTIVATIONS:
        raise ValueError(f"{name} must be one of {', '.join(functional.GATE_ACTIVATIONS)}, got {value!r}")


def _shares_of_old(rate: float, like: Tensor, units: int, training: bool) -> Tensor | None:
    """Zoneout's d: in training a random mask of every step, else the rate itself."""
    if rate == 0:
        return None
    if not training:
        return like.new_full((units,), rate)
    shape = (*like.shape[:-1], units)
    if like.device.type != "cpu" or rate == 1:
        return like.new_empty(shape).bernoulli_(rate)
    # Of 31 bits, which take a third of the time of torch's own draws there: those of a small layer took as long as a
    # third of its training step.
    drawn = torch.empty(shape, dtype=torch.int32, device=like.device).random_()
    return (drawn < min(round(rate * 2**31), 2**31 - 1)).to(like.dtype)


@dataclass(frozen=True, kw_only=True)
class CellOptions(abc.ABC):
    """What makes a cell a variant; by default it is torch's.

    A family of cells derives from it, and says which weights it has and how it is computed.

    Attributes:
        zoneout: the share of units that keep their old state in a step, from 0 to 1 (Krueger et al. 2017): in training
            at random, by torch's generator; in evaluation every unit keeps that share of its old state.
        weight_dropout: the probability with which an element of ``weight_hh`` is 0 for a whole forward pass, the others
            being scaled by ``1 / (1 - weight_dropout)``; in training alone (DropConnect, Merity et al. 2017).
    """

    zoneout: float | tuple[float, float] = 0.0
    weight_dropout: float = 0.0

    # Those that are no other computation.
    _initial: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(f.default, bool) and not isinstance(value, bool):
                raise ValueError(f"{f.name} must be True or False, got {value!r}")
            if f.name.endswith("_activation"):
                check_activation(f.name, value)
        for rate in self.zoneouts:
            _check_share("zoneout", rate)
        _check_share("weight_dropout", self.weight_dropout)

    @property
    def zoneouts(self) -> tuple[float, ...]:
        """The zoneout of each state."""
        return (self.zoneout,)  # type: ignore[return-value]

    @property
    def is_plain(self) -> bool:
        """Whether the cell is one that torch has."""
        return all(name in self._initial for name in self._given())

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._given().items())

    def _given(self) -> dict[str, Any]:
        """The options that are not what they are by default."""
        values = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        return {
            name: value
            for name, (value, default) in values.items()
            if default is not dataclasses.MISSING and value != default
        }

    @abc.abstractmethod
    def shapes(self, inputs: int, hidden: int, bias: bool, proj: int) -> dict[str, tuple[int, ...]]:
        """The weights of one direction of one layer, by torch's names without what follows them."""

    def check_sizes(self, name: str, inputs: int, hidden: int, bias: bool) -> None:  # noqa: B027 - most take any
        """Raises ValueError where the cell cannot have such sizes."""

    def reset(self, weights: Weights, hidden: int) -> None:  # noqa: B027 - most have torch's weights alone
        """Gives those weights that do not begin as torch's do their first values."""

    def call(
        self,
        function: Callable[..., Any],
        input: Tensor,
        states: States,
        weights: Weights,
        training: bool,
        **others: Any,
    ) -> Any:
        """Calls the family's function for a layer or for a step with what the options say."""
        rates = zip(self.zoneouts, states, strict=False)
        zoneouts = [_shares_of_old(rate, input, state.size(-1), training) for rate, state in rates]
        if training and self.weight_dropout:
            dropped = torch.nn.functional.dropout(weights["weight_hh"], self.weight_dropout)
            weights = {**weights, "weight_hh": dropped}
        return self._call(function, input, states, weights, zoneouts, **others)

    @abc.abstractmethod
    def _call(
        self,
        function: Callable[..., Any],
        input: Tensor,
        states: States,
        weights: Weights,
        zoneouts: list[Tensor | None],
        **others: Any,
    ) -> Any:
        """Calls the family's function with weights, zoneout's shares and options where it takes them."""


def _stacked(blocks: int, inputs: int, hidden: int, bias: bool, state: int | None = None) -> dict[str, tuple[int, ...]]:
    """Torch's weights of a cell with so many gates."""
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih": (blocks * hidden, inputs),
        "weight_hh": (blocks * hidden, hidden if state is None else state),
    }
    if bias:
        shapes |= {"bias_ih": (blocks * hidden,), "bias_hh": (blocks * hidden,)}
    return shapes


def _four(weights: Weights) -> tuple[Tensor | None, ...]:
    return tuple(weights.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


@dataclass(frozen=True, kw_only=True)
class LSTMOptions(CellOptions):
    """Options of :class:`fastnn.nn.LSTM`, which says what they mean."""

    peephole: bool = False
    peephole_previous: bool = False
    coupled: bool = False
    layer_norm: bool = False
    forget_bias: float | None = None
    gate_activation: str = "sigmoid"
    candidate_activation: str = "tanh"
    output_activation: str = "tanh"

    _initial = frozenset({"forget_bias"})

    def __post_init__(self) -> None:
        if isinstance(self.zoneout, (tuple, list)):
            if len(self.zoneout) != 2:
                raise ValueError(f"zoneout must be a number or a pair of them, of h and of c, got {self.zoneout!r}")
            object.__setattr__(self, "zoneout", tuple(self.zoneout) if any(self.zoneout) else 0.0)
        super().__post_init__()
        if self.peephole_previous and not self.peephole:
            raise ValueError("peephole_previous must be False without peephole, got True")
        bias = self.forget_bias
        if bias is not None and (
            not isinstance(bias, numbers.Real) or isinstance(bias, bool) or not math.isfinite(bias)
        ):
            raise ValueError(f"forget_bias must be a finite number or None, got {bias!r}")

    @property
    def zoneouts(self) -> tuple[float, ...]:
        """The zoneout of h and of c."""
        return self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout, self.zoneout)

    def check_sizes(self, name: str, inputs: int, hidden: int, bias: bool) -> None:
        """See :class:`CellOptions`."""
        if self.forget_bias is not None and not bias:
            raise ValueError(f"{name}: forget_bias must be None without bias, got {self.forget_bias!r}")

    def shapes(self, inputs: int, hidden: int, bias: bool, proj: int) -> dict[str, tuple[int, ...]]:
        """See :class:`CellOptions`."""
        gates = 3 if self.coupled else 4
        shapes = _stacked(gates, inputs, hidden, bias, proj or hidden)
        if proj:
            shapes["weight_hr"] = (proj, hidden)
        if self.peephole:
            shapes["weight_ch"] = (gates - 1, hidden)
        if self.layer_norm:
            shapes |= {"weight_norm_ih": (gates * hidden,), "weight_norm_hh": (gates * hidden,)}
            shapes["weight_norm_ch"] = (hidden,)
            if bias:
                shapes["bias_norm_ch"] = (hidden,)
        return shapes

    def reset(self, weights: Weights, hidden: int) -> None:
        """See :class:`CellOptions`."""
        with torch.no_grad():
            for name, weight in weights.items():
                if name.startswith(("weight_norm", "bias_norm")):
                    weight.fill_(name.startswith("weight"))
            if self.forget_bias is not None:
                begin = 0 if self.coupled else hidden
                weights["bias_ih"][begin : begin + hidden] = self.forget_bias
                weights["bias_hh"][begin : begin + hidden] = 0

    def _call(self, function, input, states, weights, zoneouts, **others):
        if "weight_hr" in weights:
            others["w_hr"] = weights["weight_hr"]
        return function(
            input,
            states,
            *_four(weights),
            peephole=weights.get("weight_ch"),
            peephole_previous=self.peephole_previous,
            coupled=self.coupled,
            norm_ih=weights.get("weight_norm_ih"),
            norm_hh=weights.get("weight_norm_hh"),
            norm_c_weight=weights.get("weight_norm_ch"),
            norm_c_bias=weights.get("bias_norm_ch"),
            zoneout_h=zoneouts[0],
            zoneout_c=zoneouts[-1],
            gate_activation=self.gate_activation,
            candidate_activation=self.candidate_activation,
            output_activation=self.output_activation,
            **others,
        )


@dataclass(frozen=True, kw_only=True)
class GRUOptions(CellOptions):
    """Options of :class:`fastnn.nn.GRU`, which says what they mean."""

    reset_after: bool = True
    gate_activation: str = "sigmoid"
    candidate_activation: str = "tanh"

    def shapes(self, inputs: int, hidden: int, bias: bool, proj: int) -> dict[str, tuple[int, ...]]:
        """See :class:`CellOptions`."""
        return _stacked(3, inputs, hidden, bias)

    def _call(self, function, input, states, weights, zoneouts, **others):
        return function(
            input,
            *states,
            *_four(weights),
            reset_after=self.reset_after,
            zoneout_h=zoneouts[0],
            gate_activation=self.gate_activation,
            candidate_activation=self.candidate_activation,
            **others,
        )


@dataclass(frozen=True, kw_only=True)
class RNNOptions(CellOptions):
    """Options of :class:`fastnn.nn.RNN`, which says what they mean; the nonlinearity is torch's own attribute."""

    def shapes(self, inputs: int, hidden: int, bias: bool, proj: int) -> dict[str, tuple[int, ...]]:
        """See :class:`CellOptions`."""
        return _stacked(1, inputs, hidden, bias)

    def _call(self, function, input, states, weights, zoneouts, **others):
        return function(input, *states, *_four(weights), zoneout_h=zoneouts[0], **others)


@dataclass(frozen=True, kw_only=True)
class MUTOptions(CellOptions):
    """Options of :class:`fastnn.nn.MUT1` and the other two; which of them it is, is no option."""

    variant: int

    @property
    def is_plain(self) -> bool:
        """Torch has none of these."""
        return False

    def check_sizes(self, name: str, inputs: int, hidden: int, bias: bool) -> None:
        """See :class:`CellOptions`."""
        if self.variant != 3 and inputs != hidden:
            raise ValueError(
                f"{name}: the inputs of a layer, which enter as they are, must be as many as its {hidden} hidden "
                f"units, got {inputs}"
            )

    def shapes(self, inputs: int, hidden: int, bias: bool, proj: int) -> dict[str, tuple[int, ...]]:
        """See :class:`CellOptions`."""
        of_input, of_state = {1: (2, 2), 2: (2, 3), 3: (3, 3)}[self.variant]
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (of_input * hidden, inputs),
            "weight_hh": (of_state * hidden, hidden),
        }
        return shapes | ({"bias_ih": (3 * hidden,)} if bias else {})

    def _call(self, function, input, states, weights, zoneouts, **others):
        return function(self.variant, input, *states, *_four(weights)[:3], zoneout_h=zoneouts[0], **others)
