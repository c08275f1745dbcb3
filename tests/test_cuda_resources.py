"""The comparison of kernels' registers and shared memory with the report that is kept; it needs no nvcc."""

from __future__ import annotations

import json
import sys

import cuda_compiler
import cuda_resources as tool
import pytest


def kernel(name: str, registers: int = 40, shared: int = 1024, arch: str = "sm_80") -> dict:
    return {"arch": arch, "file": "conv.cu", "kernel": name, "registers": registers, "shared_bytes": shared}


@pytest.mark.parametrize(
    "now, complaint",
    [
        (kernel("a"), None),
        (kernel("a", registers=48), None),
        (kernel("a", registers=30, shared=512), None),
        (kernel("a", registers=49), "49 registers, were 40: sm_80 conv.cu a"),
        (kernel("a", shared=1040), "1040 shared_bytes, were 1024: sm_80 conv.cu a"),
        (kernel("b"), "not in the report: sm_80 conv.cu b"),
    ],
)
def test_what_is_worse_is_said(now, complaint):
    kept = [kernel("a")]
    said = tool.compare([now], kept)
    if now["kernel"] != "a":
        assert said.pop() == "in the report alone: sm_80 conv.cu a"
    assert said == ([] if complaint is None else [complaint])


def test_architectures_that_were_not_compiled_are_not_missed():
    assert tool.compare([kernel("a")], [kernel("a"), kernel("a", arch="sm_90a")]) == []


def test_a_build_says_what_its_kernels_need():
    said = """[1/9] Building CXX object CMakeFiles/fastnn_cuda.dir/csrc/cuda/table.cpp.o
[2/9] Building CUDA object CMakeFiles/fastnn_cuda.dir/csrc/cuda/conv.cu.o
ptxas info    : Compiling entry function '_Z1av' for 'sm_90a'
ptxas info    : Function properties for _Z1av
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]
[3/9] Building CUDA object CMakeFiles/fastnn_cuda.dir/csrc/cuda/max_pool.cu.o
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90a'
ptxas info    : Function properties for _Z1bv
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers
"""
    first, second = tool.parse_build(said)
    assert (first["file"], first["kernel"], first["arch"]) == ("conv.cu", "_Z1av", "sm_90a")
    assert (first["registers"], first["shared_bytes"], first["stack_bytes"]) == (40, 1024, 0)
    assert (second["file"], second["registers"], second["stack_bytes"]) == ("max_pool.cu", 32, 8)


@pytest.mark.parametrize("what, status", [({}, 0), ({"sources": "others"}, 1), ({"nvcc": "12.9"}, 1)])
def test_whether_all_tables_are_of_these_sources_and_this_release(what, status, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_compiler, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(cuda_compiler, "release_of", lambda _: "13.0")
    tables = [tmp_path / "resources.json", tmp_path / "sass.json"]
    for table in tables:
        cuda_compiler.write_table(table, "13.0", [])
    tables[1].write_text(json.dumps(json.loads(tables[1].read_text()) | what))
    monkeypatch.setattr(sys, "argv", ["cuda_compiler.py", *map(str, tables)])
    assert cuda_compiler.main() == status
