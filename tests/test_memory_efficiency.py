"""The emulator's counts of memory accesses, against counts made on paper."""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import memory_efficiency as tool
import pytest
import torch

from fastnn import functional
from fastnn.testing.access_profile import AccessSite, KernelAccesses, access_profile
from fastnn.testing.emulation import emulated_cuda, library_path

pytestmark = pytest.mark.skipif(
    os.environ.get("FASTNN_EMULATE") == "asan", reason="with AddressSanitizer accesses are checked and not counted"
)

# What a case of tests/emulator/selftest/profile.cu must be said to do. Of global memory: kind, bytes of an access,
# requests, lanes, bytes asked for, bytes moved. 256 threads are 8 warps; a warp's floats are 128 bytes in 4 sectors.
GLOBAL = {
    "profile_coalesced": [("read", 4, 8, 256, 1024, 1024), ("write", 4, 8, 256, 1024, 1024)],
    "profile_stride_2": [("read", 4, 8, 256, 1024, 2048), ("write", 4, 8, 256, 1024, 1024)],
    # A sector for each lane.
    "profile_stride_32": [("read", 4, 8, 256, 1024, 8192), ("write", 4, 8, 256, 1024, 1024)],
    # A float for all lanes.
    "profile_broadcast": [("read", 4, 8, 256, 32, 256), ("write", 4, 8, 256, 1024, 1024)],
    # A fifth sector for the last lane.
    "profile_misaligned_by_4_bytes": [("read", 4, 8, 256, 1024, 1280), ("write", 4, 8, 256, 1024, 1024)],
    # Three warps and four lanes.
    "profile_partial_warp": [("read", 4, 4, 100, 400, 416), ("write", 4, 4, 100, 400, 416)],
    "profile_8_bytes": [("read", 8, 8, 256, 2048, 2048), ("write", 8, 8, 256, 2048, 2048)],
    "profile_vector": [("read", 16, 8, 256, 4096, 4096), ("write", 16, 8, 256, 4096, 4096)],
    # Four requests a warp; each touches all 16 sectors of the 512 bytes for a quarter of what they hold.
    "profile_vector_by_element": [("read", 4, 32, 1024, 4096, 16384), ("write", 4, 32, 1024, 4096, 16384)],
    # Half of the lanes, and of each sector, in each of four turns.
    "profile_turns": [("read", 4, 4, 64, 256, 512), ("write", 4, 1, 32, 128, 128)],
    "profile_many_blocks": [
        ("read", 4, 1000, 32000, 128000, 128000),
        ("write", 4, 1000, 32000, 128000, 128000),
    ],
}
# Of shared memory: kind, bytes of an access, requests, ideal wavefronts, wavefronts.
SHARED = {
    "profile_shared_conflict_free": [("read", 4, 1, 1, 1), ("write", 4, 1, 1, 1)],
    "profile_shared_2_way": [("read", 4, 1, 1, 2), ("write", 4, 1, 1, 2)],
    "profile_shared_32_way": [("read", 4, 1, 1, 32), ("write", 4, 1, 1, 32)],
    "profile_shared_odd_stride": [("read", 4, 1, 1, 1), ("write", 4, 1, 1, 1)],
    "profile_shared_2_bytes": [("read", 2, 1, 1, 1), ("write", 2, 1, 1, 1)],
    "profile_shared_8_bytes": [("read", 8, 1, 2, 2), ("write", 8, 1, 2, 2)],
    "profile_shared_8_bytes_2_way": [("read", 8, 1, 2, 4), ("write", 8, 1, 2, 4)],
    "profile_shared_broadcast": [("read", 4, 1, 1, 1), ("write", 4, 1, 1, 1)],
    "profile_shared_vector": [("read", 16, 1, 4, 4), ("write", 16, 1, 4, 4)],
    "profile_shared_vector_2_way": [("read", 16, 1, 4, 8), ("write", 16, 1, 4, 8)],
    "profile_transpose": [("read", 4, 32, 32, 1024), ("write", 4, 32, 32, 32)],
    "profile_transpose_padded": [("read", 4, 32, 32, 32), ("write", 4, 32, 32, 32)],
}
# Sectors of 32 bytes read and written, each once.
DISTINCT_BYTES = {
    "profile_coalesced": 1024 + 1024,
    "profile_stride_32": 8192 + 1024,
    "profile_broadcast": 32 + 1024,
    "profile_misaligned_by_4_bytes": 1056 + 1024,
    "profile_vector_by_element": 4096 + 4096,
    "profile_many_blocks": None,  # not all are profiled
}


@pytest.fixture(params=[(0, 1), (3, 2)], ids=lambda p: f"seed{p[0]}-workers{p[1]}")
def emulator(request: pytest.FixtureRequest) -> Iterator[ctypes.CDLL]:
    """The library, running threads in natural order (seed 0) or in a random one: counts are the same."""
    library = ctypes.CDLL(str(library_path()))
    library.fastnn_emulator_selftest_run.restype = ctypes.c_char_p
    library.fastnn_emulator_selftest_run.argtypes = [ctypes.c_char_p]
    library.fastnn_emulator_seed.restype = ctypes.c_uint64
    library.fastnn_emulator_set_seed.argtypes = [ctypes.c_uint64]
    seed, workers = library.fastnn_emulator_seed(), library.fastnn_emulator_workers()
    library.fastnn_emulator_set_seed(request.param[0])
    library.fastnn_emulator_set_workers(request.param[1])
    yield library
    library.fastnn_emulator_set_seed(seed)
    library.fastnn_emulator_set_workers(workers)


def run(library: ctypes.CDLL, case: str) -> KernelAccesses:
    with access_profile() as kernels:
        assert library.fastnn_emulator_selftest_run(case.encode()) is None
    assert len(kernels) == 1
    return kernels[0]


def sites(kernel: KernelAccesses, space: str) -> list[AccessSite]:
    return sorted((s for s in kernel.sites if s.space == space), key=lambda s: s.kind)


@pytest.mark.parametrize("case", GLOBAL)
def test_sectors_of_global_memory(emulator: ctypes.CDLL, case: str) -> None:
    kernel = run(emulator, case)
    counts = [(s.kind, s.bytes, s.requests, s.lanes, s.asked_bytes, s.moved_bytes) for s in sites(kernel, "global")]
    assert counts == GLOBAL[case]
    assert kernel.asked_bytes == sum(c[4] for c in counts)
    assert kernel.moved_bytes == sum(c[5] for c in counts)
    assert kernel.efficiency == kernel.asked_bytes / kernel.moved_bytes
    if case in DISTINCT_BYTES:
        assert kernel.distinct_bytes == DISTINCT_BYTES[case]


@pytest.mark.parametrize("case", SHARED)
def test_wavefronts_of_shared_memory(emulator: ctypes.CDLL, case: str) -> None:
    kernel = run(emulator, case)
    counts = [(s.kind, s.bytes, s.requests, s.ideal_wavefronts, s.wavefronts) for s in sites(kernel, "shared")]
    assert counts == SHARED[case]
    conflicts = [s for s in kernel.worst() if s.space == "shared"]
    assert [s.conflicts for s in conflicts] == sorted((c[4] - c[3] for c in counts if c[4] > c[3]), reverse=True)


def test_large_grids_are_sampled(emulator: ctypes.CDLL) -> None:
    kernel = run(emulator, "profile_many_blocks")
    assert (kernel.launches, kernel.blocks, kernel.profiled_blocks) == (1, 1000, 64)
    assert run(emulator, "profile_coalesced").profiled_blocks == 2


@pytest.mark.parametrize(
    ("case", "place"),
    [
        ("profile_coalesced", r"profile\.cu:\d+"),
        ("profile_shared_32_way", r"profile\.cu:\d+"),
        # Who called a helper of another file is said.
        ("profile_vector", r"vec\.cuh:\d+ \(called from profile\.cu:\d+\)"),
        ("profile_shared_vector", r"vec\.cuh:\d+ \(called from profile\.cu:\d+\)"),
    ],
)
def test_places_are_lines_of_kernels(emulator: ctypes.CDLL, case: str, place: str) -> None:
    for site in run(emulator, case).sites:
        assert re.fullmatch(place, site.place), site.place


def test_nothing_is_counted_outside_the_context(emulator: ctypes.CDLL) -> None:
    before = run(emulator, "profile_coalesced")
    assert emulator.fastnn_emulator_selftest_run(b"profile_stride_2") is None
    with access_profile() as kernels:
        pass
    assert kernels == []
    assert run(emulator, "profile_coalesced") == before


def test_launches_add_up(emulator: ctypes.CDLL) -> None:
    once = run(emulator, "profile_transpose")
    with access_profile() as kernels:
        for _ in range(3):
            assert emulator.fastnn_emulator_selftest_run(b"profile_transpose") is None
    assert kernels[0].launches == 3
    assert kernels[0].asked_bytes == 3 * once.asked_bytes and kernels[0].wavefronts == 3 * once.wavefronts


def test_an_op_is_profiled() -> None:
    x, weight, bias = torch.randn(2, 8, 16, 16), torch.randn(8), torch.randn(8)
    mean, variance = torch.randn(8), torch.rand(8) + 0.5
    with emulated_cuda(), access_profile() as kernels:
        functional.batch_norm(x, mean, variance, weight, bias)
    assert kernels
    for kernel in kernels:
        assert kernel.profiled_blocks == kernel.blocks > 0
        assert 0 < kernel.efficiency <= 1
        assert all(re.match(r"\w+\.cuh?:\d+", s.place) for s in kernel.sites), kernel.sites
    read = sum(s.asked_bytes for k in kernels for s in k.sites if s.kind == "read" and s.space == "global")
    written = sum(s.asked_bytes for k in kernels for s in k.sites if s.kind == "write" and s.space == "global")
    assert read >= 4 * x.numel() and written >= 4 * x.numel()


def test_tool_reports_and_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    record = tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", ["tool", "--only", "max_pool2d 2x2", "--dtypes", "float32", "--json", str(record)])
    assert tool.main() == 0
    assert "max_pool" in capsys.readouterr().out
    rows = json.loads(record.read_text())["rows"]
    assert {(row["layout"], row["direction"]) for row in rows} == {
        (layout, direction) for layout in ("contiguous", "channels_last") for direction in ("forward", "backward")
    }
    for row in rows:
        for kernel in row["kernels"]:
            assert 0 < kernel["asked_bytes"] <= kernel["moved_bytes"]
            assert kernel["efficiency"] == round(kernel["asked_bytes"] / kernel["moved_bytes"], 4)
