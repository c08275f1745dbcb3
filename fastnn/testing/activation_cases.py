"""Cases of the activations by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .case import PRECISE, Case, draw, lay_out

ALPHAS = {"leaky_relu": (0.25, 0.0), "elu": (1.0, 0.75), "softplus": (1.0, 2.5)}
"""Of the activations that have a parameter, values of it to test."""
NAMES = (
    "relu",
    "leaky_relu",
    "elu",
    "softplus",
    "sigmoid",
    "tanh",
    "hard_sigmoid",
    "gelu",
    "gelu_tanh",
    "silu",
    "identity",
)


@dataclass(frozen=True, kw_only=True)
class ActivationCase(Case):
    """input of any shape; with ``residual`` another that is added to it."""

    op: ClassVar[str] = "activation"
    outputs: ClassVar[tuple[str, ...]] = ("output",)
    differentiable: ClassVar[tuple[str, ...]] = ("input", "residual")
    shape: tuple[int, ...]
    activation: str
    alpha: float = 0.0
    residual: bool = False
    scale: float = 2.0  # of normal values, so that the bends and some of the tails are met

    def make_inputs(self, dtype, device, layout, generator):
        """See ``Case.make_inputs``."""
        names = ("input", "residual") if self.residual else ("input",)
        values = {name: self.scale * draw(self.shape, self.values, generator) for name in names}
        return {name: lay_out(value.to(dtype).to(device), layout) for name, value in values.items()}

    def apply(self, functional: Any, inputs):
        """See ``Case.apply``."""
        options = {"activation": self.activation, "alpha": self.alpha}
        return (functional.activation(inputs["input"], inputs.get("residual"), **options),)


def _case(name: str, shape: tuple[int, ...], activation: str, **options: Any) -> ActivationCase:
    alpha = options.pop("alpha", ALPHAS.get(activation, (0.0,))[0])
    return ActivationCase(id=f"{activation}_{name}", shape=shape, activation=activation, alpha=alpha, **options)


ACTIVATION = (
    *(_case("4d", (2, 5, 7, 3), name, small=True) for name in NAMES),
    *(_case("add", (3, 130), name, residual=True, small=True) for name in NAMES),
    *(_case("second", (9, 5), name, alpha=alphas[1], small=True) for name, alphas in ALPHAS.items()),
    *(_case("nonfinite", (6, 20), name, values="nonfinite", small=True) for name in NAMES),
    # Far out, where exponentials over- and underflow.
    *(_case("tails", (5, 40), name, scale=30.0, dtypes=PRECISE, small=True) for name in NAMES),
    # Tasks of 4,096 elements on the CPU, blocks of 2,048 float32 on CUDA, and an end that is no whole vector.
    *(
        _case("blocks", (3, 4099), name, residual=name == "silu", crosses_tile=True)
        for name in ("relu", "gelu", "silu")
    ),
    _case("scalar", (), "tanh", small=True),
    _case("one", (1,), "softplus", small=True),
    _case("empty", (3, 0, 4), "gelu", small=True),
    _case("empty_add", (0, 4), "elu", residual=True, small=True),
    _case("integers", (3, 5, 4), "relu", values="integers", residual=True, small=True),
    _case("ties", (3, 5, 4), "leaky_relu", values="ties", small=True),
    _case("large", (2, 3, 700, 901), "relu"),  # stored past the caches
)
