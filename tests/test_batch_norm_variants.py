"""batch_norm's kernels: which of them serve a shape on which device, and that all of them are right.

The emulator plays a small device, on which a channel of some thousands of values needs what one of millions needs on a
real one: a block, a cluster of blocks, a cooperative grid, two passes (csrc/cuda/channels_held_plan.cuh).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from op_tester import check_repeatable, check_values_and_gradients, grid, same_bits

import fastnn
from fastnn.testing import trial
from fastnn.testing.access_profile import access_profile
from fastnn.testing.cases import BATCH_NORM, BATCH_NORM_ACTIVATED, BatchNormCase, affordable_in_emulator, generator_for
from fastnn.testing.emulation import emulated_cuda, played_device

# With 24 KB of shared memory a block holds 5 slots of 128 threads beside another block, 2560 values of float32, or 5 of
# 256 alone, and a grid of 9 blocks 2 slots of 512 threads in each, 36 864 values.
SMALL = {"multiprocessors": 9, "shared_bytes": 24 * 1024}
FEW = {"multiprocessors": 4, "shared_bytes": 24 * 1024}
# Grids that hold more than a cluster of 8 does.
WIDE = {"multiprocessors": 22, "shared_bytes": 24 * 1024}
# Where a tile of 64 channels, in rows of half types, leaves room.
ROOMY = {"multiprocessors": 22, "shared_bytes": 44 * 1024}
HALF = (torch.bfloat16, torch.float16)
BLOCK, CLUSTER, GRID, TWO_PASSES = "held", "held_by_cluster", "held_by_grid", "two passes"
TWO_PASS_KERNELS = {"forward": "statistics", "backward": "backward_sums"}


@contextmanager
def device(backend, played: dict) -> Iterator[None]:
    """The device that the emulator plays; any other is what it is."""
    if backend.name == "emulated":
        with played_device(**played):
            yield
    else:
        yield


def variants(run) -> dict[str, str]:
    """What served each direction of what ``run()`` does."""
    with access_profile() as kernels:
        run()
    found = {}
    for direction, sums in TWO_PASS_KERNELS.items():
        for kernel in kernels:
            name = kernel.name.removeprefix("batch_norm_").removeprefix("activated_")
            if name.startswith(f"{direction}_held"):
                found[direction] = name.removeprefix(f"{direction}_")
            elif name == sums:
                found[direction] = TWO_PASSES
    return found


# The device, a shape, and what serves forward and backward of a plain batch norm in float32.
PLANES = [
    (SMALL, (1, 2, 32, 64), BLOCK, CLUSTER),
    (SMALL, (1, 3, 20, 128), BLOCK, CLUSTER),  # as much as a block holds beside another
    (SMALL, (1, 3, 4, 641), CLUSTER, CLUSTER),  # a vector more
    (SMALL, (1, 3, 64, 144), CLUSTER, CLUSTER),  # 4 blocks, 8
    (SMALL, (2, 2, 128, 160), CLUSTER, GRID),  # 8 blocks with a multiprocessor each, as much as they hold
    (WIDE, (2, 2, 128, 164), GRID, GRID),  # all units at once
    (WIDE, (1, 3, 4, 10500), GRID, GRID),  # two units a group, of which each is held
    (ROOMY, (3, 3, 100, 140), CLUSTER, GRID),  # the same of two tensors
    (WIDE, (1, 2, 4, 15001), GRID, GRID),  # two units a group, of which a part is read again
    (SMALL, (7, 1, 90, 100), GRID, GRID),  # a half is held, or a quarter
    (SMALL, (7, 2, 90, 100), GRID, GRID),
    (SMALL, (16, 2, 100, 100), TWO_PASSES, TWO_PASSES),
]
TILES = [
    (SMALL, (3, 12, 7, 7), BLOCK, BLOCK),
    (SMALL, (2, 10, 4, 4), BLOCK, BLOCK),  # tiles of 2 channels
    (SMALL, (5, 6, 3, 2), BLOCK, BLOCK),  # of 6 of 8
    (SMALL, (16, 12, 7, 7), CLUSTER, CLUSTER),
    (SMALL, (41, 20, 7, 7), CLUSTER, CLUSTER),  # 8 blocks of 6 images, the last of none
    (SMALL, (160, 4, 7, 7), CLUSTER, TWO_PASSES),
    (SMALL, (4, 7, 7, 7), TWO_PASSES, TWO_PASSES),  # no run of channels that vectors fit
]
ROWS = [
    (SMALL, (40, 24), BLOCK, BLOCK),
    (SMALL, (257, 4), BLOCK, BLOCK),
    (SMALL, (300, 40), CLUSTER, CLUSTER),  # a tile and a quarter of one
    (SMALL, (1001, 12), CLUSTER, CLUSTER),
    (SMALL, (1201, 96), CLUSTER, GRID),
    (WIDE, (1030, 32), GRID, GRID),
    (WIDE, (2503, 64), GRID, GRID),
    (SMALL, (2503, 32), GRID, TWO_PASSES),
    (SMALL, (100, 7), TWO_PASSES, TWO_PASSES),
]
ENDS = {
    "plain": {},
    "relu": {"activation": "relu"},
    "add_relu": {"activation": "relu", "residual": True},
    "add_elu": {"activation": "elu", "alpha": 1.25, "residual": True},
}


def check_variant(backend, played, shape, layout, dtype, end, forward=None, backward=None) -> None:
    case = BatchNormCase(id=f"variant {shape} {end}", shape=shape, **ENDS[end])
    with device(backend, played):
        if backend.name == "emulated" and forward is not None:
            found = variants(lambda: check_values_and_gradients(case, dtype, layout, backend.device))
            assert found == {"forward": forward, "backward": backward}
        else:
            check_values_and_gradients(case, dtype, layout, backend.device)


@pytest.mark.parametrize("played, shape, forward, backward", PLANES + TILES + ROWS, ids=str)
def test_which_kernels_serve_a_shape(played, shape, forward, backward, backend):
    check_variant(backend, played, shape, "contiguous", torch.float32, "plain", forward, backward)


@pytest.mark.parametrize("end", [end for end in ENDS if end != "plain"])
@pytest.mark.parametrize("played, shape", [row[:2] for row in PLANES[1::2] + TILES[::2] + ROWS[1::2]], ids=str)
def test_activations(played, shape, end, backend):
    check_variant(backend, played, shape, "contiguous", torch.float32, end)


@pytest.mark.parametrize("dtype", [torch.float64, *HALF], ids=str)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "shape, layout",
    [
        ((1, 2, 60, 80), "contiguous"),
        ((3, 2, 100, 140), "contiguous"),
        ((12, 16, 7, 7), "contiguous"),
        ((7, 4, 14, 14), "contiguous"),  # planes of 24 1/2 vectors of a half type: tiles of 2 channels
        ((4, 16, 10, 10), "channels_last"),
        ((2, 72, 20, 20), "channels_last"),
    ],
    ids=str,
)
def test_other_types(shape, layout, end, dtype, backend):
    check_variant(backend, ROOMY, shape, layout, dtype, end)


@grid(
    [c for c in (*BATCH_NORM, *BATCH_NORM_ACTIVATED) if c.training and affordable_in_emulator(c, None, None)],
    dtypes=[torch.float32, torch.bfloat16],
    layouts=["contiguous", "channels_last"],
)
def test_two_passes_of_a_device_without_clusters(case, dtype, layout):
    with emulated_cuda(), played_device(compute_capability=80):
        check_values_and_gradients(case, dtype, layout, torch.device("cpu"))


EVERY_VARIANT = [
    (SMALL, (2, 3, 16, 20)),
    (SMALL, (1, 3, 64, 144)),
    (SMALL, (7, 2, 90, 100)),
    (SMALL, (16, 12, 7, 7)),
    (SMALL, (300, 40)),
    (FEW, (701, 72)),  # forward by clusters of 8, backward by a grid
]
# Where a group has two units, one of them on its way: the fewest vectors that a cluster of 8 does not hold.
TWO_STAGES = ({"multiprocessors": 17, "shared_bytes": 20 * 1024}, (1, 3, 4, 8320))
every_variant = pytest.mark.parametrize("played, shape", EVERY_VARIANT, ids=str)


@pytest.mark.parametrize(
    "played, shape, end",
    # With a residual there is no room for a second unit.
    [*((*row, end) for row in EVERY_VARIANT for end in ("plain", "add_relu")), (*TWO_STAGES, "plain")],
    ids=str,
)
def test_the_same_bits_in_every_order(played, shape, end, backend):
    case = BatchNormCase(id=f"order {shape}", shape=shape, **ENDS[end])
    with device(backend, played):
        check_repeatable(case, torch.float32, "contiguous", backend.device, backend.repetitions(), threads=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("played, shape", [*EVERY_VARIANT, (SMALL, (1201, 72)), (SMALL, (16, 2, 100, 100))], ids=str)
def test_misaligned_memory_changes_no_bit(played, shape, dtype, backend):
    """Inputs that begin one element after where vectors could be moved whole."""
    generator = generator_for("misaligned", shape)
    x, residual, gradient = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))

    def run(place):
        images = [place(t.to(backend.device)).requires_grad_() for t in (x, residual)]
        y = fastnn.functional.batch_norm_add_relu(*images, None, None, training=True)
        return [y, *torch.autograd.grad(y, images, place(gradient.to(backend.device)))]

    def off_by_one(t):
        shifted = t.new_empty(t.numel() + 1)[1:].view(t.shape)
        return shifted.copy_(t).detach()

    with device(backend, played if dtype is torch.float32 else {**ROOMY, "multiprocessors": 9}):
        for ours, theirs in zip(run(off_by_one), run(torch.clone), strict=True):
            assert same_bits(ours, theirs)


@pytest.mark.parametrize("bad", [False, True], ids=["finite", "nonfinite"])
@pytest.mark.parametrize("momentum", [0.25, None])
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
@every_variant
def test_running_statistics(played, shape, skip, momentum, bad, backend):
    """They move once, by numbers of all blocks, and the batch counts once; not where it is to be skipped."""
    generator = generator_for("running", shape)
    x = torch.randn(shape, generator=generator) + 3
    if bad:
        x[-1, 1] = float("inf")
    mean, var = torch.randn(shape[1], generator=generator), torch.rand(shape[1], generator=generator)
    m, v, count = (t.clone().to(backend.device) for t in (mean, var, torch.tensor(4)))
    with device(backend, played):
        fastnn.functional.batch_norm(
            x.to(backend.device),
            m,
            v,
            training=True,
            momentum=momentum,
            num_batches_tracked=count,
            skip_nonfinite_stats=skip,
        )
    if bad and skip:
        assert same_bits(m.cpu(), mean) and same_bits(v.cpu(), var) and int(count) == 4
        return
    assert int(count) == 5
    factor = 1 / 5 if momentum is None else momentum
    axes = [0, *range(2, x.dim())]
    exact = x.double()
    fine = torch.arange(shape[1]) != (1 if bad else -1)
    for ours, before, now in ((m, mean, exact.mean(axes)), (v, var, exact.var(axes))):
        want = (1 - factor) * before.double() + factor * now
        torch.testing.assert_close(ours.cpu().double()[fine], want[fine], rtol=1e-5, atol=1e-6)
        assert not bad or not bool(ours.cpu()[1].isfinite())


@pytest.mark.parametrize("centre, tolerance", [(1e4, 1e-3), (-1e5, 3e-2)])
@every_variant
def test_variance_at_a_large_mean(played, shape, centre, tolerance, backend):
    x = (centre + torch.randn(shape, generator=generator_for("large mean", shape), dtype=torch.float64)).float()
    mean, var = torch.zeros(shape[1], device=backend.device), torch.zeros(shape[1], device=backend.device)
    with device(backend, played):
        fastnn.functional.batch_norm(x.to(backend.device), mean, var, training=True, momentum=1.0)
    axes = [0, *range(2, x.dim())]
    torch.testing.assert_close(var.cpu().double(), x.double().var(axes), rtol=tolerance, atol=0)
    torch.testing.assert_close(mean.cpu().double(), x.double().mean(axes), rtol=1e-5, atol=0)


@every_variant
def test_one_gradient_alone_has_the_bits_that_it_has_with_all(played, shape, backend):
    """The sums come in the same order, whoever asks for them."""
    case = BatchNormCase(id=f"subset {shape}", shape=shape, activation="relu", residual=True)
    with device(backend, played):
        everything = trial.run(case, fastnn.functional, torch.float32, "contiguous", backend.device).results
        for name in case.differentiable:
            inputs = trial.make_inputs(case, torch.float32, "contiguous", backend.device)
            for other, tensor in inputs.items():
                tensor.requires_grad_(other == name)
            outputs = case.apply(fastnn.functional, inputs)
            (alone,) = trial.gradients(outputs, trial.make_cotangents(case, outputs, "contiguous"), [inputs[name]])
            assert same_bits(alone, everything[f"gradient of {name}"]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 24, 7, 7), (2, 40, 6, 6), (2, 3, 64, 64), (5, 7, 9)], ids=str)
def test_a_mask_is_the_same_for_every_variant(shape, dtype):
    """Forward may have held a channel where backward does not, on another device or with more inputs."""
    generator = generator_for("mask", shape)
    x, residual, gradient = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3))

    def run(forward, backward):
        with emulated_cuda(), played_device(**forward):
            y = fastnn.functional.batch_norm_add_relu(x, residual, None, None, training=True)
        with emulated_cuda(), played_device(**backward):
            return torch.autograd.grad(y, residual, gradient.detach())[0], y

    held, two_passes = SMALL if dtype is torch.float32 else ROOMY, {"compute_capability": 80}
    results = [run(a, b) for a in (held, two_passes) for b in (held, two_passes)]
    for grad, y in results:
        assert same_bits(grad, torch.where(y > 0, gradient.detach(), torch.zeros(())))
