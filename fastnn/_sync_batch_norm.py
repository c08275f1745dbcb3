"""Batch normalisation over the batches of several processes (``torch.distributed``).

Each process takes the statistics of its own batch; numbers of values, means and variances are gathered, and each
process combines them by the formula of Chan, Golub and LeVeque (1979), which is exact and as safe at large means as the
statistics are. Backward adds up two sums by channel. The kernels are batch normalisation's: statistics without an
output, its last pass, its sums (those of evaluation are of values that are normalised already), and, for the gradient
of x, which is an affine function of ``grad_output`` and the normalised values, the tangent of evaluation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ops = torch.ops.fastnn


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which kernels keep numbers by channel."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _statistics_of_all(input: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Number of values a channel, means and biased variances over all processes, float64."""
    channels = input.shape[1]
    mean, invstd = ops.batch_norm_statistics(input)
    count = input.numel() // max(channels, 1)
    # A process without values has no part in what follows, whatever its numbers are.
    var = invstd.double().square().reciprocal() if count else torch.zeros_like(mean, dtype=torch.float64)
    mine = torch.cat([mean.double(), var, mean.new_full((1,), count, dtype=torch.float64)])
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, mine, group=group)
    means, variances, counts = torch.stack(gathered).split((channels, channels, 1), 1)
    total = counts.sum()
    shares = counts / total
    mean = (shares * means).sum(0)
    return total, mean, (shares * (variances + (means - mean).square())).sum(0)


class _Backward(torch.autograd.Function):
    """Backward as a function of its own, which says that it has no derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        total: Tensor,
        group: Any,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        wide = torch.ones_like(mean) if weight is None else weight.to(mean.dtype)
        _, grad_weight, grad_bias = ops.batch_norm_backward(
            grad_output, input, wide, mean, invstd, False, [False, True, True]
        )
        grad_input = None
        if wanted[0]:
            sums = torch.stack([grad_weight, grad_bias]).double()
            dist.all_reduce(sums, group=group)
            scale = wide.double() * invstd.double()
            of_xhat, of_one = (-(scale * sum / total).to(mean.dtype) for sum in sums)
            grad_input, _, _ = ops.batch_norm_double_backward(
                grad_output, of_xhat, of_one, None, input, wide, mean, invstd, False, [True, False, False]
            )
        if weight is None:
            return grad_input, None, None
        return (
            grad_input,
            grad_weight.to(weight.dtype) if wanted[1] else None,
            grad_bias.to(weight.dtype) if wanted[2] else None,
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        raise NotImplementedError("fastnn: the second derivative of sync_batch_norm is not implemented")


class _SyncBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        total: Tensor,
        mean: Tensor,
        var: Tensor,
        eps: float,
        group: Any,
    ) -> Tensor:
        dtype = _wide(input.dtype)
        invstd = (var + eps).rsqrt()
        rounded = mean.to(dtype)
        scale = invstd if weight is None else weight.double() * invstd
        # What rounding took from the mean comes back with the bias.
        residual = (rounded.double() - mean) * scale
        shift = torch.where(residual.isfinite(), residual, 0.0)
        if bias is not None:
            shift = shift + bias
        ctx.group = group
        saved = (input, weight, rounded, invstd.to(dtype), total)
        ctx.save_for_backward(*saved)
        return ops.batch_norm_act_apply(input, None, rounded, scale.to(dtype), shift.to(dtype), "identity", 1.0)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, invstd, total = ctx.saved_tensors
        gradients = _Backward.apply(
            grad_output, input, weight, mean, invstd, total, ctx.group, tuple(ctx.needs_input_grad[:3])
        )
        return (*gradients, None, None, None, None, None)


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    process_group: Any = None,
    num_batches_tracked: Tensor | None = None,
    skip_nonfinite_stats: bool = False,
) -> Tensor:
    """:func:`batch_norm` in training, with the statistics of the batches of all processes of a group.

    Every process of the group must call it, and its backward, in the same order; their batches may differ in size, and
    be empty. Gradients of weight and bias are of the process's own batch: what averages gradients over processes does
    so for these too, as for torch's layer. Twice differentiable it is not.

    Args:
        input: ``[N, C, ...]`` with at most three spatial sizes; on the CPU with a group that has ``gloo``, on GPUs with
            ``nccl``.
        running_mean: ``[C]``, updated in place; None to keep none.
        running_var: ``[C]``, unbiased variance over all processes, likewise.
        weight: ``[C]``; None for 1.
        bias: ``[C]``; None for 0. These four may be float32 beside an input of a 16-bit type.
        momentum: see :func:`batch_norm`.
        eps: added to the variance; above 0.
        process_group: of ``torch.distributed``; None for that of all processes.
        num_batches_tracked: see :func:`batch_norm`.
        skip_nonfinite_stats: see :func:`batch_norm`; of all processes' statistics.

    Returns:
        A tensor like the input.

    Raises:
        ValueError: for one value a channel in all processes together, or an ``eps`` that is not positive.
        RuntimeError: as :func:`batch_norm`, and where ``torch.distributed`` has not been initialised.
        NotImplementedError: from the second derivative.

    Formulas: Ioffe and Szegedy 2015; Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for
    computing sample variances".
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("sync_batch_norm: torch.distributed has not been initialised (init_process_group)")
    if eps <= 0:
        raise ValueError(f"sync_batch_norm: eps must be positive, but got {eps}")
    if input.dim() < 2:
        raise RuntimeError(f"sync_batch_norm: expected input [N, C, ...], got shape {list(input.shape)}")
    channels = input.shape[1]
    parameters = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, tensor in parameters.items():
        if tensor is not None and (tensor.shape != (channels,) or tensor.device != input.device):
            raise RuntimeError(
                f"sync_batch_norm: {name} should contain {channels} elements on {input.device}, one per channel of "
                f"input of shape {list(input.shape)}, but has shape {list(tensor.shape)} on {tensor.device}"
            )
    if momentum is None and running_mean is not None and num_batches_tracked is None:
        raise ValueError("sync_batch_norm: momentum=None (a cumulative average) needs num_batches_tracked")
    group = dist.group.WORLD if process_group is None else process_group
    with torch.no_grad():
        total, mean, var = _statistics_of_all(input.detach(), group)
        # Of a GPU this would wait for the statistics of all; there a variance over 0 is infinite instead.
        if total.device.type == "cpu" and total == 1:
            raise ValueError(
                f"sync_batch_norm: Expected more than 1 value per channel when training, got input size "
                f"{list(input.shape)} in one process and none in the others"
            )
        _move(running_mean, running_var, num_batches_tracked, total, mean, var, momentum, skip_nonfinite_stats)
    return _SyncBatchNorm.apply(input, weight, bias, total, mean, var, eps, group)


def _move(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    total: Tensor,
    mean: Tensor,
    var: Tensor,
    momentum: float | None,
    skip_nonfinite: bool,
) -> None:
    """The running statistics and their count, without waiting for the device."""
    moves = total > 0
    if skip_nonfinite:
        moves = moves & mean.isfinite().all() & var.isfinite().all()
    if momentum is None:
        factor = 1 / (num_batches_tracked.double() + 1) if num_batches_tracked is not None else torch.zeros_like(total)
    else:
        factor = torch.full_like(total, momentum)
    for running, batch in ((running_mean, mean), (running_var, var * (total / (total - 1)))):
        if running is not None:
            moved = (1 - factor) * running.double() + factor * batch
            running.copy_(torch.where(moves, moved, running.double()))
    if num_batches_tracked is not None:
        num_batches_tracked.add_((moves | (total == 0)).to(num_batches_tracked.dtype))
