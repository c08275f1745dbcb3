"""Cases of batch, group, instance and local response normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fastnn.testing.case import PRECISE, WIDE_RANGE, Case, draw, lay_out


@dataclass(frozen=True, kw_only=True)
class BatchNormCase(Case):
    """input [N, C, ...] of rank 2 to 5, residual likewise; weight, bias and running statistics [C].

    ``mixed`` keeps the parameters and the running statistics in float32 beside an input of a half dtype. With an
    ``activation`` it is ``batch_norm_relu``, and with a ``residual`` too ``batch_norm_add_relu``.
    """

    op: ClassVar[str] = "batch_norm"
    outputs: ClassVar[tuple[str, ...]] = ("output",)
    differentiable: ClassVar[tuple[str, ...]] = ("input", "residual", "weight", "bias")
    shape: tuple[int, ...]
    training: bool = True
    affine: bool = True
    track: bool = True
    momentum: float = 0.1
    eps: float = 1e-5
    mixed: bool = False
    activation: str | None = None
    alpha: float = 0.0
    residual: bool = False

    def make_inputs(self, dtype, device, layout, generator):
        """See ``Case.make_inputs``."""
        channels = self.shape[1]
        param_dtype = torch.float32 if self.mixed and dtype in (torch.bfloat16, torch.float16) else dtype
        inputs = {"input": draw(self.shape, self.values, generator).to(dtype)}
        if self.residual:
            inputs["residual"] = draw(self.shape, "normal", generator).to(dtype)
        if self.affine:
            inputs["weight"] = draw((channels,), "normal", generator).to(param_dtype)
            inputs["bias"] = draw((channels,), "normal", generator).to(param_dtype)
        if self.track or not self.training:
            mean = draw((channels,), "normal", generator)
            inputs["running_mean"] = (mean + 1e4 if self.values == "large_mean" else mean).to(param_dtype)
            variance = 0.5 + torch.rand((channels,), generator=generator, dtype=torch.float64)
            inputs["running_var"] = variance.to(param_dtype)
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        # Repeating a channel keeps its variance; repeating a sample would not for inputs of rank 2.
        return {
            name: lay_out(tensor, layout, expand_dim=0 if tensor.dim() == 1 else 1) for name, tensor in inputs.items()
        }

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        options: dict[str, Any] = {"training": self.training, "momentum": self.momentum, "eps": self.eps}
        function, images = functional.batch_norm, [inputs["input"]]
        if self.activation is not None:
            function = functional.batch_norm_add_relu if self.residual else functional.batch_norm_relu
            options |= {"activation": self.activation, "alpha": self.alpha}
        if self.residual:
            images.append(inputs["residual"])
        by_channel = (inputs.get(name) for name in ("running_mean", "running_var", "weight", "bias"))
        return (function(*images, *by_channel, **options),)


@dataclass(frozen=True, kw_only=True)
class _SampleNormCase(Case):
    """What group and instance normalisation have in common; ``mixed`` as in :class:`BatchNormCase`."""

    outputs: ClassVar[tuple[str, ...]] = ("output",)
    differentiable: ClassVar[tuple[str, ...]] = ("input", "weight", "bias")
    shape: tuple[int, ...]
    affine: bool = True
    eps: float = 1e-5
    mixed: bool = False

    def make_inputs(self, dtype, device, layout, generator):
        """See ``Case.make_inputs``."""
        channels = self.shape[1]
        param_dtype = torch.float32 if self.mixed and dtype in (torch.bfloat16, torch.float16) else dtype
        inputs = {"input": draw(self.shape, self.values, generator).to(dtype)}
        for name in ("weight", "bias") if self.affine else ():
            inputs[name] = draw((channels,), "normal", generator).to(param_dtype)
        if getattr(self, "track", False):
            mean = draw((channels,), "normal", generator)
            inputs["running_mean"] = (mean + 1e4 if self.values == "large_mean" else mean).to(param_dtype)
            variance = 0.5 + torch.rand((channels,), generator=generator, dtype=torch.float64)
            inputs["running_var"] = variance.to(param_dtype)
        # Repeating a sample keeps its variance.
        return {name: lay_out(tensor.to(device), layout) for name, tensor in inputs.items()}


@dataclass(frozen=True, kw_only=True)
class GroupNormCase(_SampleNormCase):
    """input [N, C, ...] of rank 2 or more; weight and bias [C]."""

    op: ClassVar[str] = "group_norm"
    groups: int

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        return (
            functional.group_norm(inputs["input"], self.groups, inputs.get("weight"), inputs.get("bias"), self.eps),
        )


@dataclass(frozen=True, kw_only=True)
class InstanceNormCase(_SampleNormCase):
    """input [N, C, ...] of rank 3 or more; weight, bias and running statistics [C]."""

    op: ClassVar[str] = "instance_norm"
    track: bool = False
    use_input_stats: bool = True
    momentum: float = 0.1

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        by_channel = (inputs.get(name) for name in ("running_mean", "running_var", "weight", "bias"))
        options = {"use_input_stats": self.use_input_stats, "momentum": self.momentum, "eps": self.eps}
        return (functional.instance_norm(inputs["input"], *by_channel, **options),)


@dataclass(frozen=True, kw_only=True)
class LocalResponseNormCase(Case):
    """input [N, C, ...] of rank 3 or more; a window of ``size`` channels."""

    op: ClassVar[str] = "local_response_norm"
    outputs: ClassVar[tuple[str, ...]] = ("output",)
    differentiable: ClassVar[tuple[str, ...]] = ("input",)
    shape: tuple[int, ...]
    size: int
    alpha: float = 0.7  # torch's 1e-4 would hide the sum behind k
    beta: float = 0.75
    k: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the function."""
        return {"size": self.size, "alpha": self.alpha, "beta": self.beta, "k": self.k}

    def make_inputs(self, dtype, device, layout, generator):
        """See ``Case.make_inputs``."""
        return {"input": lay_out(draw(self.shape, self.values, generator).to(dtype).to(device), layout)}

    def apply(self, functional, inputs):
        """See ``Case.apply``."""
        return (functional.local_response_norm(inputs["input"], **self.options),)


def _norm(id: str, shape: tuple[int, ...], **options: Any) -> BatchNormCase:
    return BatchNormCase(id=id, shape=shape, **options)


BATCH_NORM = (
    _norm("2d", (6, 5), small=True),
    _norm("2d_two_rows", (2, 3), small=True),
    _norm("2d_wide", (9, 261), crosses_tile=True),
    _norm("2d_tall", (700, 3), crosses_tile=True),
    _norm("3d", (4, 7, 9), small=True),
    _norm("3d_two_values", (1, 5, 2), small=True),
    _norm("4d", (3, 5, 4, 6), small=True),
    _norm("4d_batch_1", (1, 4, 5, 7), small=True),
    _norm("4d_batch_0", (0, 4, 5, 7), small=True),
    _norm("4d_one_channel", (3, 1, 5, 5), small=True),
    _norm("4d_one_pixel", (5, 67, 1, 1), crosses_tile=True),
    _norm("2d_channels_64", (33, 64), small=True),
    _norm("4d_channels_16", (3, 16, 5, 4), small=True),
    _norm("4d_channels_17", (3, 17, 5, 7), small=True),
    _norm("4d_channels_131", (2, 131, 3, 5), crosses_tile=True),
    _norm("4d_large_plane", (2, 2, 41, 43), crosses_tile=True),
    _norm("4d_many_values", (3, 3, 67, 71)),
    _norm("4d_resnet", (4, 64, 14, 14)),
    _norm("5d", (2, 3, 4, 5, 3), small=True),
    _norm("no_affine", (3, 5, 4, 6), affine=False, small=True),
    _norm("no_track", (3, 5, 4, 6), track=False, small=True),
    _norm("momentum_1", (3, 5, 4), momentum=1.0, small=True),
    _norm("momentum_0", (3, 5, 4), momentum=0.0, small=True),
    _norm("eps_0.1", (3, 5, 4), eps=0.1, small=True),
    _norm("mixed", (3, 5, 4, 6), mixed=True, small=True),
    _norm("mixed_wide", (3, 130, 7, 5), mixed=True, crosses_tile=True),
    _norm("large_mean", (4, 3, 8, 9), values="large_mean", dtypes=PRECISE, small=True),
    _norm("large_mean_2d", (64, 5), values="large_mean", dtypes=PRECISE, small=True),
    _norm("large_mean_many", (3, 2, 51, 53), values="large_mean", dtypes=PRECISE, crosses_tile=True),
    _norm("nonfinite", (2, 9, 5, 4), values="nonfinite", small=True),
    _norm("eval_2d", (6, 5), training=False, small=True),
    _norm("eval_4d", (3, 5, 4, 6), training=False, small=True),
    _norm("eval_5d", (2, 3, 4, 5, 3), training=False, small=True),
    _norm("eval_one_value", (1, 3, 1, 1), training=False, small=True),
    _norm("eval_batch_0", (0, 3, 4, 4), training=False, small=True),
    _norm("eval_no_affine", (3, 5, 4, 6), training=False, affine=False, small=True),
    _norm("eval_mixed", (3, 5, 4, 6), training=False, mixed=True, small=True),
    _norm("eval_wide", (2, 131, 9, 7), training=False, crosses_tile=True),
    _norm("eval_nonfinite", (2, 9, 5, 4), training=False, values="nonfinite", small=True),
    _norm("eval_huge", (3, 5, 4, 6), training=False, values="huge", dtypes=WIDE_RANGE, small=True),
    _norm("eval_large_mean", (3, 5, 4, 6), training=False, values="large_mean", dtypes=PRECISE, small=True),
)

BATCH_NORM_ACTIVATED = (
    _norm("relu", (3, 5, 4, 6), activation="relu", small=True),
    _norm("relu_2d", (6, 5), activation="relu", small=True),
    _norm("relu_5d", (2, 3, 4, 5, 3), activation="relu", small=True),
    _norm("relu_wide", (3, 130, 7, 5), activation="relu", crosses_tile=True),
    _norm("relu_channels_16", (3, 16, 5, 4), activation="relu", small=True),
    _norm("relu_large_plane", (2, 2, 41, 43), activation="relu", crosses_tile=True),
    _norm("relu_no_affine", (3, 5, 4, 6), activation="relu", affine=False, small=True),
    _norm("relu_mixed", (3, 5, 4, 6), activation="relu", mixed=True, small=True),
    _norm("relu_eval", (3, 5, 4, 6), activation="relu", training=False, small=True),
    _norm("relu_batch_0", (0, 4, 5, 7), activation="relu", small=True),
    _norm("relu_nonfinite", (2, 9, 5, 4), activation="relu", values="nonfinite", small=True),
    _norm("leaky", (3, 5, 4, 6), activation="leaky_relu", alpha=0.1, small=True),
    _norm("leaky_eval", (3, 5, 4, 7), activation="leaky_relu", alpha=-0.5, training=False, small=True),
    _norm("elu", (3, 5, 4, 6), activation="elu", alpha=1.0, small=True),
    _norm("elu_eval", (3, 5, 7, 6), activation="elu", alpha=1.5, training=False, small=True),
    _norm("add_relu", (3, 5, 4, 6), activation="relu", residual=True, small=True),
    _norm("add_relu_2d", (6, 5), activation="relu", residual=True, small=True),
    _norm("add_relu_5d", (2, 3, 4, 5, 3), activation="relu", residual=True, small=True),
    _norm("add_relu_7x7", (3, 20, 7, 7), activation="relu", residual=True, small=True),
    _norm("add_relu_wide", (3, 130, 7, 5), activation="relu", residual=True, crosses_tile=True),
    _norm("add_relu_channels_64", (2, 64, 5, 8), activation="relu", residual=True, crosses_tile=True),
    _norm("add_relu_large_plane", (2, 2, 41, 43), activation="relu", residual=True, crosses_tile=True),
    _norm("add_relu_many_values", (3, 3, 67, 71), activation="relu", residual=True),
    _norm("add_relu_one_channel", (3, 1, 5, 5), activation="relu", residual=True, small=True),
    _norm("add_relu_mixed", (3, 5, 4, 6), activation="relu", residual=True, mixed=True, small=True),
    _norm("add_relu_eval", (3, 5, 4, 6), activation="relu", residual=True, training=False, small=True),
    _norm("add_relu_batch_0", (0, 4, 5, 7), activation="relu", residual=True, small=True),
    _norm("add_leaky", (3, 17, 4, 6), activation="leaky_relu", alpha=0.1, residual=True, small=True),
    _norm("add_elu", (3, 5, 4, 6), activation="elu", alpha=1.0, residual=True, small=True),
    _norm("add_elu_eval", (3, 5, 4, 6), activation="elu", alpha=0.7, residual=True, training=False, small=True),
    _norm("gelu", (3, 5, 4, 6), activation="gelu", small=True),
    _norm("softplus_eval", (3, 5, 4, 7), activation="softplus", alpha=1.5, training=False, small=True),
    _norm("add_silu", (3, 17, 4, 6), activation="silu", residual=True, small=True),
    _norm("add_hard_sigmoid", (3, 5, 4, 6), activation="hard_sigmoid", residual=True, small=True),
    _norm("add_gelu_tanh_eval", (3, 5, 4, 6), activation="gelu_tanh", residual=True, training=False, small=True),
    _norm("add", (3, 5, 4, 6), activation="identity", alpha=1.0, residual=True, small=True),
    _norm("add_eval", (3, 5, 4, 6), activation="identity", alpha=1.0, residual=True, training=False, small=True),
)


def _group(id: str, shape: tuple[int, ...], groups: int, **options: Any) -> GroupNormCase:
    return GroupNormCase(id=id, shape=shape, groups=groups, **options)


GROUP_NORM = (
    _group("4d", (3, 6, 4, 5), 2, small=True),
    _group("2d", (5, 12), 3, small=True),
    _group("3d", (2, 10, 9), 5, small=True),
    _group("5d", (2, 4, 2, 3, 4), 2, small=True),
    _group("one_group", (2, 7, 3, 5), 1, small=True),
    _group("group_of_one_channel", (2, 7, 3, 5), 7, small=True),
    _group("one_channel", (3, 1, 4, 5), 1, small=True),
    _group("one_position", (3, 12, 1, 1), 4, small=True),
    _group("batch_0", (0, 6, 4, 5), 2, small=True),
    _group("no_affine", (3, 6, 4, 5), 3, affine=False, small=True),
    _group("eps_0.1", (2, 6, 3, 5), 2, eps=0.1, small=True),
    _group("mixed", (3, 6, 4, 5), 2, mixed=True, small=True),
    _group("channels_64", (2, 64, 3, 5), 32, small=True),
    _group("channels_128", (2, 128, 5, 7), 4, crosses_tile=True),
    _group("channels_131", (2, 131, 3, 5), 1, crosses_tile=True),
    _group("wide_2d", (3, 1030), 2, crosses_tile=True),
    _group("large_plane", (1, 4, 41, 43), 2, crosses_tile=True),
    _group("many_values", (2, 6, 67, 71), 3),
    _group("one_large_group", (1, 40, 60, 61), 1),
    _group("large_mean", (3, 6, 8, 9), 2, values="large_mean", dtypes=PRECISE, small=True),
    _group("large_mean_2d", (3, 60), 2, values="large_mean", dtypes=PRECISE, small=True),
    _group("nonfinite", (4, 12, 2, 3), 6, values="nonfinite", small=True),
)


def _instance(id: str, shape: tuple[int, ...], **options: Any) -> InstanceNormCase:
    return InstanceNormCase(id=id, shape=shape, **options)


INSTANCE_NORM = (
    _instance("4d", (3, 5, 4, 6), small=True),
    _instance("3d", (2, 7, 9), small=True),
    _instance("5d", (2, 3, 4, 5, 3), small=True),
    _instance("no_affine", (3, 5, 4, 6), affine=False, small=True),
    _instance("track", (3, 5, 4, 6), track=True, small=True),
    _instance("track_mixed", (3, 5, 4, 6), track=True, mixed=True, small=True),
    _instance("track_momentum", (2, 17, 5), track=True, momentum=0.7, affine=False, small=True),
    _instance("track_large_mean", (2, 3, 8, 9), track=True, values="large_mean", dtypes=PRECISE, small=True),
    _instance("eval", (3, 5, 4, 6), track=True, use_input_stats=False, small=True),
    _instance("channels_130", (2, 130, 5, 7), track=True, crosses_tile=True),
    _instance("large_plane", (1, 2, 41, 43), crosses_tile=True),
    _instance("nonfinite", (2, 9, 5, 4), values="nonfinite", small=True),
)


def _response(id: str, shape: tuple[int, ...], size: int, **options: Any) -> LocalResponseNormCase:
    return LocalResponseNormCase(id=id, shape=shape, size=size, **options)


LOCAL_RESPONSE_NORM = (
    _response("4d", (2, 9, 4, 6), 5, small=True),
    _response("3d", (2, 7, 11), 3, small=True),
    _response("5d", (2, 6, 2, 3, 4), 4, small=True),
    _response("6d", (1, 5, 2, 3, 2, 2), 3, small=True),
    _response("1", (2, 5, 3, 4), 1, small=True),
    _response("2", (2, 6, 3, 4), 2, small=True),
    _response("even", (2, 17, 3, 5), 6, small=True),
    _response("of_all_channels", (2, 5, 3, 4), 9, small=True),
    _response("beyond_all_channels", (2, 3, 3, 4), 20, small=True),
    _response("one_channel", (3, 1, 4, 5), 5, small=True),
    _response("batch_0", (0, 5, 4, 4), 5, small=True),
    _response("beta_half", (2, 7, 3, 4), 5, beta=0.5, small=True),
    _response("beta_1", (2, 7, 3, 4), 5, beta=1.0, small=True),
    _response("beta_any", (2, 7, 3, 4), 5, beta=0.6, k=2.0, small=True),
    _response("beta_negative", (1, 7, 3, 4), 3, beta=-1.3, small=True),
    _response("alexnet", (2, 20, 5, 7), 5, alpha=1e-4, k=2.0, small=True),
    _response("no_k", (2, 6, 3, 4), 3, k=0.0, small=True),
    # Wider than a tile of channels and of positions, dividing neither; few positions; windows wider than a tile.
    _response("wide_channels", (2, 131, 3, 5), 5, crosses_tile=True),
    _response("large_plane", (1, 6, 17, 31), 5, crosses_tile=True),
    _response("window_over_tile", (1, 90, 2, 3), 45, beta=0.4, crosses_tile=True),
    _response("even_over_tile", (1, 70, 2, 3), 6, crosses_tile=True),
    _response("many_positions", (3, 40, 9, 11), 3, crosses_tile=True),
    _response("plane_of_strips", (2, 33, 24, 25), 7),
    # Terms that shared memory does not hold.
    _response("thousands_of_channels", (1, 6400, 2), 6301, crosses_tile=True, dtypes=(torch.float32,)),
    _response("nonfinite", (2, 13, 4, 5), 5, values="nonfinite", small=True),
)
