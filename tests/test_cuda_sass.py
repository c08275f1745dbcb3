"""What tools/cuda_sass.py reads of disassembled kernels, asks of them, and compares; it needs no nvcc."""

from __future__ import annotations

import json
from pathlib import Path

import cuda_sass as tool
import pytest

ROOT = Path(__file__).resolve().parent.parent
MMA = (
    "void fastnn::cuda::conv_product_kernel<fastnn::cuda::MmaTile<64, 64, 2, 2, 3>, fastnn::cuda::PlanesLoader<float> >"
)
FMA = MMA.replace("MmaTile<64, 64, 2, 2, 3>", "FmaTile<64, 64, 4>")
WGMMA = "void fastnn::cuda::conv_wgmma_kernel<float, fastnn::cuda::WgmmaTile<64, 256, true, false> >"

# Lines as cuobjdump -sass prints them.
PRINTED = """
Fatbin elf code:
================
arch = sm_90a
code version = [1,8]

	code for sm_90a
	.target	sm_90a

		Function : _Z1av
	.headerflags	@"EF_CUDA_ACCELERATORS EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                       /* 0x00000a00ff017b82 */
                                                                                /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDGSTS.E.BYPASS.128 [R9], [R2.64] ;          /* 0x0000000000097fae */
        /*0020*/             @UP1 UTMALDG.4D.MULTICAST [UR8], [UR4], UR7 ;      /* 0x0000000000097fae */
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR12], R24, gsb0 ; /* 0x00e000000c187df0 */
        /*0040*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], R24, gsb0 ; /* 0x00e0000010187df0 */
        /*0050*/                   HFMA2.MMA R3, -RZ, RZ, 0, 0 ;                /* 0x00000000ff037435 */
        /*12340*/                  SYNCS.ARRIVE.TRANS64.RED.A1T0 RZ, [R3], RZ ; /* 0x000000ff03ff79a7 */
		..........

Fatbin elf code:
================
arch = sm_80

		Function : _Z1av
        /*0000*/                   HMMA.1688.F32.TF32 R4, R8, R12, R4 ;         /* 0x0000000c0804723c */
		Function : _Z1bv
        /*0000*/                   EXIT ;                                       /* 0x000000000000794d */
"""


def kernel(name: str, *opcodes: str, arch: str = "sm_80") -> dict:
    return {"arch": arch, "file": "conv.cu", "kernel": name, "opcodes": dict.fromkeys(opcodes, 4)}


def good(arch: str) -> list[dict]:
    return [
        kernel(MMA, "HMMA.1688.F32.TF32", "LDGSTS", "LDSM", arch=arch),
        kernel(FMA, "FFMA", "LDGSTS", arch=arch),
        kernel(WGMMA, *(() if arch == "sm_80" else ("HGMMA.64x128x8.F32.TF32", "UTMALDG", "SYNCS")), arch=arch),
    ]


def test_instructions_are_counted_by_kernel_and_architecture():
    assert tool.count(PRINTED.splitlines()) == {
        ("sm_90a", "_Z1av"): {"LDGSTS": 1, "UTMALDG": 1, "HGMMA.64x128x16.F32.BF16": 2, "SYNCS": 1},
        ("sm_80", "_Z1av"): {"HMMA.1688.F32.TF32": 1},
        ("sm_80", "_Z1bv"): {},
    }


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_what_is_as_meant_breaks_no_rule(arch):
    assert tool.broken(good(arch)) == []


@pytest.mark.parametrize(
    "arch, which, gone, more, complaint",
    [
        ("sm_80", 0, "HMMA.1688.F32.TF32", "FFMA", "has no HMMA: sm_80 "),
        ("sm_80", 0, "LDGSTS", "LDG", "has no LDGSTS: sm_80 "),
        ("sm_80", 0, "LDSM", "LDS", "has no LDSM: sm_80 "),
        ("sm_80", 1, "FFMA", "FMUL", "has no FFMA: sm_80 "),
        ("sm_80", 1, None, "HMMA.1688.F32.TF32", "has HMMA, which it must not: sm_80 "),
        ("sm_80", 2, None, "STL", "has STL, which it must not: sm_80 "),
        ("sm_90a", 2, None, "LDL", "has LDL, which it must not: sm_90a "),
        ("sm_90a", 2, "HGMMA.64x128x8.F32.TF32", "FFMA", "has no HGMMA: sm_90a "),
        ("sm_90a", 2, "UTMALDG", "LDG", "has no UTMALDG: sm_90a "),
        ("sm_90a", 2, "SYNCS", "BAR", "has no SYNCS: sm_90a "),
    ],
)
def test_what_is_not_as_meant_is_said(arch, which, gone, more, complaint):
    rows = good(arch)
    opcodes = rows[which]["opcodes"]
    opcodes.pop(gone, None)
    opcodes[more] = 1
    assert tool.broken(rows) == [f"{complaint}conv.cu {rows[which]['kernel']}"]


def test_single_elements_of_half_types_need_no_asynchronous_copies():
    elements = MMA.replace("PlanesLoader<float>", "PositionElementsLoader<__half>")
    assert tool.broken([*good("sm_80"), kernel(elements, "HMMA.16816.F32", "LDSM")]) == []


def test_a_rule_that_finds_no_kernel_is_said():
    said = tool.broken([kernel("conv", "HMMA.16816.F32")])
    assert said and all(line.startswith("no kernel named conv_product_kernel") for line in said)


@pytest.mark.parametrize(
    "now, complaints",
    [
        (kernel("a", "HMMA.16816.F32", "LDSM"), []),
        (kernel("a", "HMMA.16816.F32"), ["LDSM was there and is gone: sm_80 conv.cu a"]),
        (kernel("a", "HMMA.16816.F32", "LDSM", "FFMA"), ["FFMA is new: sm_80 conv.cu a"]),
        (
            kernel("a", "HMMA.16816.F32.BF16", "LDSM"),
            ["HMMA.16816.F32 was there and is gone: sm_80 conv.cu a", "HMMA.16816.F32.BF16 is new: sm_80 conv.cu a"],
        ),
        (kernel("b"), ["not in the table: sm_80 conv.cu b", "in the table alone: sm_80 conv.cu a"]),
    ],
)
def test_differences_from_the_table_are_said(now, complaints):
    kept = [kernel("a", "HMMA.16816.F32", "LDSM"), kernel("a", "HMMA.16816.F32", arch="sm_90a")]
    assert tool.compare([now], kept) == complaints


def test_numbers_of_instructions_are_not_compared():
    fewer = kernel("a", "HMMA.16816.F32")
    fewer["opcodes"]["HMMA.16816.F32"] = 1
    assert tool.compare([fewer], [kernel("a", "HMMA.16816.F32")]) == []


def test_the_table_that_is_kept_breaks_no_rule():
    rows = json.loads((ROOT / "benchmarks/results/cuda_sass.json").read_text(encoding="utf-8"))["rows"]
    assert {row["arch"] for row in rows} == {"sm_80", "sm_90a"}
    assert {row["file"] for row in rows} == set(tool.FILES)
    assert tool.broken(rows) == []
