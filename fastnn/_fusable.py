"""Which of torch's activations are fastnn's, as modules and as calls in a graph, and how to compute them by torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Module

_NN = torch.nn.functional

Activation = tuple[str, float]
"""Name and alpha, as :func:`fastnn.functional.activation` takes them."""


# Each has the parameters of torch's function and module. None: it computes something else.


def _relu(inplace: bool = False) -> Activation | None:
    return "relu", 0.0


def _leaky_relu(negative_slope: float = 0.01, inplace: bool = False) -> Activation | None:
    return "leaky_relu", float(negative_slope)


def _elu(alpha: float = 1.0, inplace: bool = False) -> Activation | None:
    return ("elu", float(alpha)) if alpha >= 0 else None  # torch itself cannot derive others from their output


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation | None:
    return ("softplus", float(beta)) if beta > 0 and threshold == 20 else None


def _sigmoid() -> Activation | None:
    return "sigmoid", 0.0


def _tanh() -> Activation | None:
    return "tanh", 0.0


def _hard_sigmoid(inplace: bool = False) -> Activation | None:
    return "hard_sigmoid", 0.0


def _gelu(approximate: str = "none") -> Activation | None:
    return {"none": ("gelu", 0.0), "tanh": ("gelu_tanh", 0.0)}.get(approximate)


def _silu(inplace: bool = False) -> Activation | None:
    return "silu", 0.0


_OF_MODULE: dict[type[Module], Callable[..., Activation | None]] = {
    torch.nn.ReLU: _relu,
    torch.nn.LeakyReLU: _leaky_relu,
    torch.nn.ELU: _elu,
    torch.nn.Softplus: _softplus,
    torch.nn.Sigmoid: _sigmoid,
    torch.nn.Tanh: _tanh,
    torch.nn.Hardsigmoid: _hard_sigmoid,
    torch.nn.GELU: _gelu,
    torch.nn.SiLU: _silu,
}
# By function, and by the name of a method.
_OF_CALL: dict[Any, Callable[..., Activation | None]] = {
    **dict.fromkeys((_NN.relu, torch.relu, torch.relu_, "relu", "relu_"), _relu),
    **dict.fromkeys((_NN.leaky_relu, _NN.leaky_relu_), _leaky_relu),
    **dict.fromkeys((_NN.elu, _NN.elu_), _elu),
    _NN.softplus: _softplus,
    **dict.fromkeys((_NN.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"), _sigmoid),
    **dict.fromkeys((_NN.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), _tanh),
    _NN.hardsigmoid: _hard_sigmoid,
    _NN.gelu: _gelu,
    _NN.silu: _silu,
}
_COMPUTED: dict[str, Callable[[torch.Tensor, float, bool], torch.Tensor]] = {
    "relu": lambda x, alpha, inplace: _NN.relu(x, inplace),
    "leaky_relu": _NN.leaky_relu,
    "elu": _NN.elu,
    "softplus": lambda x, alpha, inplace: _NN.softplus(x, alpha),
    "sigmoid": lambda x, alpha, inplace: x.sigmoid_() if inplace else x.sigmoid(),
    "tanh": lambda x, alpha, inplace: x.tanh_() if inplace else x.tanh(),
    "hard_sigmoid": lambda x, alpha, inplace: _NN.hardsigmoid(x, inplace),
    "gelu": lambda x, alpha, inplace: _NN.gelu(x),
    "gelu_tanh": lambda x, alpha, inplace: _NN.gelu(x, approximate="tanh"),
    "silu": lambda x, alpha, inplace: _NN.silu(x, inplace),
}


def activation_of(module: Module) -> Activation | None:
    """The activation that a module computes; None for another module."""
    made = None if "forward" in module.__dict__ else _OF_MODULE.get(type(module))
    if made is None:
        return None
    return made(**{name: getattr(module, name) for name in inspect.signature(made).parameters})


def activation_of_call(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Activation | None:
    """The activation that a call in a graph computes of its first argument; None for another call.

    A parameter that the graph computes is not known, and makes it another call.
    """
    made = _OF_CALL.get(target)
    if (
        made is None
        or not args
        or any(not isinstance(a, (bool, int, float, str)) for a in (*args[1:], *kwargs.values()))
    ):
        return None
    try:
        given = inspect.signature(made).bind(*args[1:], **kwargs)
    except TypeError:  # arguments that the function has beside those
        return None
    return made(*given.args, **given.kwargs)


def activate(input: torch.Tensor, activation: Activation, inplace: bool = False) -> torch.Tensor:
    """An activation by torch's own function; where ``inplace`` it may be written over the input."""
    name, alpha = activation
    return _COMPUTED[name](input, alpha, inplace)
