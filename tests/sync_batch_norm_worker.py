"""One of two processes, started by torchrun from test_sync_batch_norm.py: each has a part of a batch.

What the parts give together must be what a batch norm gives of the whole batch: outputs, gradients and running
statistics, against torch's in float64.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist

import fastnn

PARTS = {"equal": (3, 3), "unequal": (1, 5), "empty": (4, 0)}
SHAPES = ((7,), (5, 6), (4, 3, 5), (3, 2, 3, 4))  # C and positions
EXACT, ROUNDED = {"rtol": 1e-9, "atol": 1e-10}, {"rtol": 2e-4, "atol": 2e-5}


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over the processes."""
    tensor = tensor.detach().clone().double()
    dist.all_reduce(tensor)
    return tensor


def compare(dtype: torch.dtype, parts: tuple[int, int], shape: tuple[int, ...], affine: bool, cumulative: bool) -> None:
    rank, tolerance = dist.get_rank(), EXACT if dtype == torch.float64 else ROUNDED
    generator = torch.Generator().manual_seed(len(shape) + 10 * affine)
    momentum = None if cumulative else 0.3
    whole = 3 + torch.randn(sum(parts), *shape, generator=generator, dtype=torch.float64)
    cotangent = torch.randn(whole.shape, generator=generator, dtype=torch.float64)
    of_all = [torch.nn.BatchNorm1d, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d][len(shape) - 1]
    stock = of_all(shape[0], momentum=momentum, affine=affine).double()
    for value in stock.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    mine = fastnn.nn.SyncBatchNorm(shape[0], momentum=momentum, affine=affine).to(dtype)
    mine.load_state_dict(stock.state_dict())

    before = sum(parts[:rank])
    own = slice(before, before + parts[rank])
    for _ in range(2):  # twice, so that the running statistics have moved from where they began
        x = whole.clone().requires_grad_()
        want = stock(x)
        wanted = torch.autograd.grad(want, [x, *stock.parameters()], cotangent)
        part = whole[own].to(dtype).requires_grad_()
        got = mine(part)
        gradients = torch.autograd.grad(got, [part, *mine.parameters()], cotangent[own].to(dtype))
        torch.testing.assert_close(got.double(), want[own], **tolerance)
        torch.testing.assert_close(gradients[0].double(), wanted[0][own], **tolerance)
        for one, other in zip(gradients[1:], wanted[1:], strict=True):
            torch.testing.assert_close(gathered(one), other, **tolerance)
    for name, value in stock.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name].double(), value.double(), **tolerance)
    mine.eval()
    torch.testing.assert_close(mine(part).double(), stock.eval()(whole)[own], **tolerance)


def check_channels_last_and_halves() -> None:
    rank = dist.get_rank()
    whole = torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(3))
    part = whole[2 * rank :][:2].to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    layer = fastnn.nn.SyncBatchNorm(5)  # parameters of float32
    y = layer(part.requires_grad_())
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
    assert part.grad.is_contiguous(memory_format=torch.channels_last)
    want = torch.nn.functional.batch_norm(whole.to(torch.bfloat16).float(), None, None, training=True)
    # Apart from y's own rounding, half of 2^-8, as near as float32 is.
    torch.testing.assert_close(y.float(), want[2 * rank :][:2], rtol=2**-8, atol=1e-5)


def check_errors() -> None:
    x = torch.randn(1 - dist.get_rank(), 3, requires_grad=True)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fastnn.functional.sync_batch_norm(x, None, None)
    x = torch.randn(4, 3, requires_grad=True)
    y = fastnn.functional.sync_batch_norm(x, None, None)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative of sync_batch_norm"):
        grad.sum().backward()


def check_skipped_statistics() -> None:
    """A value that is not finite, in one process alone, moves the statistics of none."""
    layer = fastnn.nn.SyncBatchNorm(3)
    layer.skip_nonfinite_stats = True
    x = torch.randn(4, 3)
    if dist.get_rank() == 1:
        x[0, 0] = float("inf")
    layer(x)
    assert torch.equal(layer.running_mean, torch.zeros(3)) and int(layer.num_batches_tracked) == 0
    layer(torch.randn(4, 3))
    assert not torch.equal(layer.running_mean, torch.zeros(3)) and int(layer.num_batches_tracked) == 1


def check_group_of_one() -> None:
    """A group of this process alone: its own statistics."""
    groups = [dist.new_group([rank]) for rank in range(2)]
    layer = fastnn.nn.SyncBatchNorm(3, process_group=groups[dist.get_rank()])
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(dist.get_rank()))
    torch.testing.assert_close(layer(x), torch.nn.functional.batch_norm(x, None, None, training=True))


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for dtype, parts, shape in itertools.product((torch.float64, torch.float32), PARTS.values(), SHAPES):
        compare(dtype, parts, shape, affine=len(shape) != 2, cumulative=len(shape) == 3)
    check_channels_last_and_halves()
    check_errors()
    check_skipped_statistics()
    check_group_of_one()
    dist.destroy_process_group()
    print("all is well")


if __name__ == "__main__":
    main()
