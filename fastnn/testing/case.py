"""What every op's cases are made of: values, layouts, and the class that they share.

A case is a frozen dataclass: shapes and options, nothing with memory. ``make_inputs`` draws fresh values from a
generator, rounds them to the dtype and lays them out in memory; ``apply`` calls the op in any namespace which
has torch's signatures, so the same case runs on fastnn and on ``torch.nn.functional``.

Values are never zero-filled: a kernel that forgets a term must not be saved by a zero.
"""

from __future__ import annotations

import abc
import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

ALL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WIDE_RANGE = (torch.float64, torch.float32, torch.bfloat16)  # can hold 1e30
PRECISE = (torch.float64, torch.float32)  # can tell 1e4 from 1e4 + 1e-3

LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded", "transposed")


def generator_for(*key: object) -> torch.Generator:
    """A generator seeded from the key's text: the same on every machine and in every worker."""
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


def lay_out(tensor: Tensor, layout: str, channel_dim: int = 1, expand_dim: int = 0) -> Tensor:
    """The same values with other strides (``expanded``: the first row of ``expand_dim``, repeated).

    Args:
        tensor: dense tensor of any rank.
        layout: one of ``LAYOUTS``. ``sliced`` takes every second element of a storage that holds NaN between
            and around, so that a read beside the view is seen. Ranks 0 to 2 stay contiguous under
            ``channels_last``.
        channel_dim: the dimension that ``channels_last`` makes the densest.
        expand_dim: the dimension to which ``expanded`` gives stride 0.

    Returns:
        A tensor of the same shape and dtype; never one that shares storage with ``tensor``.
    """
    if layout == "contiguous":
        return tensor.contiguous().clone()
    if layout == "channels_last":
        if tensor.dim() < 3:
            return tensor.contiguous().clone()
        return tensor.movedim(channel_dim, -1).contiguous().clone().movedim(-1, channel_dim)
    if layout == "sliced":
        if tensor.dim() == 0:
            return tensor.clone()
        sizes = [*tensor.shape[:-1], 2 * tensor.shape[-1] + 1]
        storage = torch.full([sizes[0] + 1, *sizes[1:]] if tensor.dim() > 1 else sizes, float("nan")).to(tensor)
        view = storage[1:, ..., 1::2] if tensor.dim() > 1 else storage[1::2]
        return view.copy_(tensor)
    if layout == "expanded":
        if tensor.dim() < 2 or tensor.shape[expand_dim] == 0:
            return tensor.contiguous().clone()
        return tensor.narrow(expand_dim, 0, 1).clone().expand(tensor.shape)
    if layout == "transposed":
        return tensor.transpose(-1, -2).contiguous().clone().transpose(-1, -2) if tensor.dim() > 1 else tensor.clone()
    raise ValueError(f"layout {layout!r} is none of {LAYOUTS}")


def draw(shape: tuple[int, ...], values: str, generator: torch.Generator) -> Tensor:
    """Random float64 values of one kind.

    Args:
        shape: any shape.
        values: ``normal``; ``integers`` (-4 to 4 without 0); ``ties`` (a few values, 0.0 and -0.0 among them);
            ``nonfinite`` (normal, about one in forty NaN, inf or -inf, at least one of each);
            ``minus_inf`` (normal, seven of ten -inf); ``large_mean`` (1e4 +- 1); ``huge`` (1e30 times normal).
        generator: source of randomness, on the CPU.
    """
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    if values == "normal":
        return normal
    if values == "integers":
        magnitude = torch.randint(1, 5, shape, generator=generator)
        sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        return (magnitude * sign).double()
    if values == "ties":
        pool = torch.tensor([-1.0, -0.0, 0.0, 0.5, 0.5, 0.5], dtype=torch.float64)
        return pool[torch.randint(0, len(pool), shape, generator=generator)]
    if values == "nonfinite":
        flat = normal.flatten()
        count = max(3, flat.numel() // 40)
        places = torch.randperm(flat.numel(), generator=generator)[:count]
        kinds = torch.tensor([float("nan"), float("inf"), float("-inf")], dtype=torch.float64)
        flat[places] = kinds[torch.arange(len(places)) % 3]
        return flat.view(shape)
    if values == "minus_inf":
        return normal.masked_fill(torch.rand(shape, generator=generator) < 0.7, float("-inf"))
    if values == "large_mean":
        return 1e4 + normal
    if values == "huge":
        return 1e30 * normal
    raise ValueError(f"unknown kind of values: {values!r}")


@dataclass(frozen=True, kw_only=True)
class Case(abc.ABC):
    """What every op's case has.

    Attributes:
        op: the op's name.
        outputs: names of its outputs, in order; the last ones may be missing.
        differentiable: names of the inputs that have gradients.
        framework_products: whether some of its matrix products are torch's, whose bits vary with the number of threads.
        id: name in test ids, unique within the op.
        small: cheap enough for the emulator in every dtype and layout.
        crosses_tile: larger than a kernel's tile; the emulator runs it too.
        values: kind of values of the first input, see ``draw``.
        dtypes: the dtypes in which these values mean something.
    """

    op: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    differentiable: ClassVar[tuple[str, ...]]
    framework_products: ClassVar[bool] = False
    id: str
    small: bool = False
    crosses_tile: bool = False
    values: str = "normal"
    dtypes: tuple[torch.dtype, ...] = ALL_DTYPES

    @abc.abstractmethod
    def make_inputs(
        self, dtype: torch.dtype, device: torch.device | str, layout: str, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Fresh tensors by argument name, rounded to ``dtype``, laid out, none requiring a gradient."""

    @abc.abstractmethod
    def apply(self, functional: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Calls the op of ``functional``, a namespace with torch's signatures; returns all its outputs."""

    def __str__(self) -> str:
        return self.id
