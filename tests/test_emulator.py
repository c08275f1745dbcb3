"""The emulator's own tests: what it must compute, and each mistake that it must catch."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fastnn.testing.emulation import library_path

# One mistake a kernel: what must be said of it.
FAULTY = {
    "missing_barrier": r"^out\[0\] is NaN",
    "barrier_after_exit": (
        r"^barrier_after_exit_kernel: block \(\d, \d, 0\): deadlock, barrier not reached by all threads: "
        r"thread \(0, 0, 0\) and 62 more: waits at __syncthreads \(selftest_faulty.cpp:\d+\); "
        r"thread \(5, 0, 0\): has exited$"
    ),
    "barrier_in_each_branch": (
        r"thread \(0, 0, 0\) and 31 more: waits at __syncthreads \(.*:\d+\); "
        r"thread \(32, 0, 0\) and 31 more: waits at __syncthreads"
    ),
    "barrier_once_too_often": (
        r"thread \(0, 0, 0\) and 62 more: has exited; thread \(40, 0, 0\): waits at __syncthreads"
    ),
    "lane_at_the_barrier_instead": (
        r"thread \(0, 0, 0\) and 30 more: waits at __shfl_sync with mask 0xffffffff .*; "
        r"thread \(31, 0, 0\): waits at __syncthreads"
    ),
    "mask_names_lane_that_exited_before": r"__syncwarp .* naming lane \d, which has exited",
    "mask_names_lane_that_exits_later": r"__syncwarp .* naming lane \d+, which has exited",
    "mask_without_own_lane": r"__ballot_sync with mask 0x0000fffe .* without naming its own lane",
    "lanes_with_different_masks": (
        r"deadlock: thread \(0, 0, 0\) and 15 more: waits at __syncwarp with mask 0xffffffff .*; "
        r"thread \(16, 0, 0\) and 15 more: waits at __syncwarp with mask 0xffff8000"
    ),
    "lanes_with_different_operations": (
        r"deadlock: thread \(0, 0, 0\) and 15 more: waits at __any_sync .*; "
        r"thread \(1, 0, 0\) and 15 more: waits at __all_sync"
    ),
    "shuffle_of_odd_width": r"__shfl_xor_sync .* width that is no power of two",
    "overrun_above": r"shared array 'tile' \(.*\) of 256 bytes was overrun: written 0 bytes after its end",
    "overrun_below": r"shared array 'tile' \(.*\) of 256 bytes was overrun: written 4 bytes before its start",
    "overrun_of_dynamic": r"dynamic shared memory of 64 bytes was overrun: written 4 bytes after its end",
    "dynamic_that_was_not_asked_for": r"dynamic shared memory of 0 bytes was overrun",
    "read_beyond_the_end": r"^out\[31\] is NaN",
    "static_beyond_48_kb": r"static shared memory of 49160 bytes with 'second' .* a block may have 49152",
    "static_and_dynamic_beyond_227_kb": r"shared memory of 232452 bytes with 'small' .* may have 232448",
    "dynamic_beyond_227_kb": r"^nothing_kernel: dynamic shared memory of 232449 bytes",
    "too_many_threads": r"^nothing_kernel: a block of \(32, 33, 1\) is larger than 1024 threads",
    "block_too_deep": r"a block of \(1, 1, 65\) is larger than",
    "block_without_threads": r"a block of \(32, 0, 1\) has no threads",
    "grid_too_high": r"a grid of \(1, 65536, 1\) is larger than",
    "grid_too_wide": r"a grid of \(2147483648, 1, 1\) is larger than",
    "exception_in_a_thread": r"thread \(3, 0, 0\) threw a C\+\+ exception",
    "first_block_that_fails_is_named": r"block \(5, 0, 0\): thread \(1, 0, 0\) called __trap \(.*:\d+\)",
}


def load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    library.fastnn_emulator_selftest_names.restype = ctypes.c_char_p
    library.fastnn_emulator_selftest_run.restype = ctypes.c_char_p
    library.fastnn_emulator_selftest_run.argtypes = [ctypes.c_char_p]
    library.fastnn_emulator_seed.restype = ctypes.c_uint64
    library.fastnn_emulator_set_seed.argtypes = [ctypes.c_uint64]
    return library


@pytest.fixture(params=[(0, 1), (0, 8), (1, 3), (2, 3), (3, 1)], ids=lambda p: f"seed{p[0]}-workers{p[1]}")
def emulator(request: pytest.FixtureRequest) -> Iterator[ctypes.CDLL]:
    """The library, running threads in natural order (seed 0) or in a random one, on some OS threads."""
    library = load()
    seed, workers = library.fastnn_emulator_seed(), library.fastnn_emulator_workers()
    library.fastnn_emulator_set_seed(request.param[0])
    library.fastnn_emulator_set_workers(request.param[1])
    yield library
    library.fastnn_emulator_set_seed(seed)
    library.fastnn_emulator_set_workers(workers)


def run(library: ctypes.CDLL, name: str) -> str | None:
    message = library.fastnn_emulator_selftest_run(name.encode())
    return None if message is None else message.decode()


def test_every_correct_kernel_is_right_and_not_accused(emulator: ctypes.CDLL) -> None:
    names = emulator.fastnn_emulator_selftest_names().decode().split()
    assert set(FAULTY) <= set(names)
    said = {name: run(emulator, name) for name in names if name not in FAULTY}
    assert {name: message for name, message in said.items() if message is not None} == {}


@pytest.mark.parametrize("name", FAULTY)
def test_mistake_is_caught(emulator: ctypes.CDLL, name: str) -> None:
    message = run(emulator, name)
    assert message is not None, "nothing was noticed"
    natural_order = emulator.fastnn_emulator_seed() == 0
    # What shows an error of order depends on the order: which output is NaN, which block comes first.
    if natural_order or name not in ("missing_barrier", "first_block_that_fails_is_named"):
        assert re.search(FAULTY[name], message), message


def test_launches_work_after_one_that_failed(emulator: ctypes.CDLL) -> None:
    for _ in range(3):
        assert run(emulator, "barrier_once_too_often") is not None
        assert run(emulator, "lane_at_the_barrier_instead") is not None
        assert run(emulator, "barriers_in_a_loop") is None


# --- the 16-bit types ---


def to_half(values: np.ndarray, bfloat16: bool, from_float: bool) -> np.ndarray:
    values = np.ascontiguousarray(values, dtype=np.float64)
    bits = np.empty(values.shape, np.uint16)
    pointer = ctypes.c_void_p
    load().fastnn_emulator_to_half(
        pointer(values.ctypes.data),
        ctypes.c_bool(from_float),
        ctypes.c_bool(bfloat16),
        pointer(bits.ctypes.data),
        ctypes.c_int64(values.size),
    )
    return bits


def from_half(bits: np.ndarray, bfloat16: bool) -> np.ndarray:
    values = np.empty(bits.shape, np.float32)
    pointer = ctypes.c_void_p
    load().fastnn_emulator_from_half(
        pointer(bits.ctypes.data),
        ctypes.c_bool(bfloat16),
        pointer(values.ctypes.data),
        ctypes.c_int64(bits.size),
    )
    return values


def torch_bits(values: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    bits = values.to(dtype).view(torch.int16).numpy().view(np.uint16).copy()
    bits[torch.isnan(values).numpy()] = 0x7FFF  # the device's NaN
    return bits


HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])


@HALVES
def test_every_half_is_read_as_torch_reads_it(dtype: torch.dtype) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    ours = from_half(bits, dtype == torch.bfloat16)
    theirs = torch.from_numpy(bits.view(np.int16)).view(dtype).float().numpy()
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(np.signbit(ours), np.signbit(theirs))


@HALVES
def test_floats_are_rounded_as_torch_rounds_them(dtype: torch.dtype) -> None:
    half_ulps = 12 if dtype == torch.float16 else 15
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    # Around every tie of a normal number in half, and around the limits.
    ties = (np.arange(1 << 17, dtype=np.uint32) << half_ulps)[:, None] + np.array([-1, 0, 1]).astype(np.uint32)
    ties = ties.ravel() + (0 if dtype == torch.bfloat16 else np.uint32(0x33000000 - (1 << 23)))
    values = np.concatenate([random, ties, ties | np.uint32(1 << 31)]).view(np.float32)
    with np.errstate(invalid="ignore"):
        ours = to_half(values.astype(np.float64), dtype == torch.bfloat16, from_float=True)
    np.testing.assert_array_equal(ours, torch_bits(torch.from_numpy(values), dtype))


@HALVES
def test_doubles_are_rounded_once(dtype: torch.dtype) -> None:
    finite = torch.arange(1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    exact = finite[torch.isfinite(finite)].double().numpy()
    below, above = exact[:-1], exact[1:]
    middle = (below + above) / 2
    bits = np.arange(len(exact), dtype=np.uint16)
    nudge = middle * 2.0**-45  # less than a float can tell
    bfloat16 = dtype == torch.bfloat16
    np.testing.assert_array_equal(to_half(exact, bfloat16, False), bits)
    np.testing.assert_array_equal(to_half(middle - nudge, bfloat16, False), bits[:-1])
    np.testing.assert_array_equal(to_half(middle + nudge, bfloat16, False), bits[1:])
    np.testing.assert_array_equal(to_half(middle, bfloat16, False), (bits[:-1] + 1) // 2 * 2)
    top = exact[-1] + (exact[-1] - exact[-2]) / 2  # the tie between the largest number and infinity
    largest, infinity = bits[-1], bits[-1] + 1
    special = np.array([top * (1 - 2.0**-45), top, 1e300, -1e300, np.nan, -0.0])
    expected = np.array([largest, infinity, infinity, infinity | 0x8000, 0x7FFF, 0x8000], np.uint16)
    np.testing.assert_array_equal(to_half(special, bfloat16, False), expected)
