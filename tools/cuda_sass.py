"""Counts, in the machine code of the tensor-core kernels, the instructions that they are written for; needs no GPU.

    python tools/cuda_sass.py [--objects FOLDER ...] [--archs sm_80 sm_90a] [--out FILE.json] [--compare FILE.json]
        [--as-kept]

Needs nvcc, and cuobjdump with nvdisasm: of the PyPI packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm where this
Python has them, otherwise from PATH. One row per kernel and architecture. What RULES ask of each kernel is checked
always: that nvcc has made mma instructions of what is meant for tensor cores, asynchronous copies of what is meant to
be in flight meanwhile, and no access to local memory.

The objects are those that lie in the folders, by tools/cuda_resources.py or by a build; what none of them has, or has
older than its sources, is compiled into the first.

With --compare it fails as well where a kernel has instructions that it did not have in an earlier table, or lacks some,
or where the two do not have the same kernels. Numbers are not compared: how far a loop is unrolled is the compiler's
choice. Of another release of nvcc than the table's nothing is compared. A change that is meant is kept by writing the
table anew with --out. With --as-kept nothing is compiled where that table is of these very sources: what it says of an
architecture is taken.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cuda_compiler

FILES = ("conv_product.cu", "conv_wgmma.cu")
# Multiplications by tensor cores, of a warp and of a warpgroup, and by CUDA cores; asynchronous copies to shared memory
# (cp.async and TMA), mbarriers; matrices between shared memory and fragments; local memory.
OPCODES = ("HMMA", "HGMMA", "FFMA", "LDGSTS", "UTMALDG", "SYNCS", "LDSM", "STSM", "LDL", "STL")
# Of these the shape and the types matter, so that HMMA.16816.F32.BF16 and HMMA.1688.F32.TF32 are two.
WITH_TYPES = ("HMMA", "HGMMA")

ARCH = re.compile(r"arch = (sm_\w+)")
FUNCTION = re.compile(r"\s+Function : (\w+)")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z]\w*)(?P<modifiers>(?:\.\w+)*)")


@dataclass(frozen=True)
class Rule:
    """What kernels must have and must not have.

    Attributes:
        kernels: regular expression, found in the names of the kernels meant.
        needs: opcodes, each at least once.
        refuses: opcodes, not even once.
        unless: regular expression, found in the names of those among them that are not meant.
        archs: the architectures meant; empty for all.
    """

    kernels: str
    needs: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    unless: str = "$^"
    archs: tuple[str, ...] = ()

    def meant(self, row: dict) -> bool:
        """Whether the rule is about this kernel."""
        if self.archs and row["arch"] not in self.archs:
            return False
        return bool(re.search(self.kernels, row["kernel"])) and not re.search(self.unless, row["kernel"])


RULES = (
    Rule("", refuses=("LDL", "STL")),
    Rule(r"conv_product_kernel<[\w:]*\bMmaTile", needs=("HMMA",)),
    Rule(r"conv_product_kernel<[\w:]*\bFmaTile", needs=("FFMA",), refuses=("HMMA",)),
    # cp.async copies 4 bytes at least, single elements of half types are loaded and stored.
    Rule(r"conv_product_kernel<", needs=("LDGSTS",), unless=r"PositionElementsLoader<(__half|__nv_bfloat16)"),
    # ldmatrix does not transpose floats, and here both operands would need it (conv_product_tiles.cuh).
    Rule(r"conv_product_kernel<[\w:]*\bMmaTile", needs=("LDSM",), unless=r"PositionVectorsLoader<float"),
    # A warpgroup's products are not a warp's; for others than Hopper the body is empty.
    Rule(r"conv_wgmma_kernel<", needs=("HGMMA", "UTMALDG", "SYNCS"), refuses=("HMMA",), archs=("sm_90a",)),
)


def count(sass: Iterable[str]) -> dict[tuple[str, str], Counter[str]]:
    """How often each kernel has the opcodes, by architecture and mangled name, of what cuobjdump -sass prints."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    arch, current = "", Counter[str]()
    for line in sass:
        if match := INSTRUCTION.match(line):
            opcode = match["opcode"]
            if opcode in OPCODES:
                current[opcode + match["modifiers"] if opcode in WITH_TYPES else opcode] += 1
        elif match := FUNCTION.match(line):
            current = counts.setdefault((arch, match[1]), Counter())
        elif match := ARCH.match(line):
            arch = match[1]
    return counts


def has(row: dict, opcode: str) -> bool:
    """Whether a kernel has an opcode, of whatever shape and types."""
    return any(name.split(".")[0] == opcode for name in row["opcodes"])


def broken(rows: list[dict]) -> list[str]:
    """What the kernels have against the rules; a rule that is about no kernel of an architecture counts too."""
    said = []
    for rule in RULES:
        meant = [row for row in rows if rule.meant(row)]
        for arch in sorted({row["arch"] for row in rows} - {row["arch"] for row in meant}):
            if not rule.archs or arch in rule.archs:
                said.append(f"no kernel named {rule.kernels} for {arch}: has it another name now?")
        for row in meant:
            name = f"{row['arch']} {row['file']} {row['kernel']}"
            said += [f"has no {opcode}: {name}" for opcode in rule.needs if not has(row, opcode)]
            said += [f"has {opcode}, which it must not: {name}" for opcode in rule.refuses if has(row, opcode)]
    return said


def compare(rows: list[dict], kept: list[dict]) -> list[str]:
    """Which kernels only one of two tables has, and which instructions a kernel has in only one of them."""

    def by_kernel(table: list[dict]) -> dict[tuple[str, str, str], set[str]]:
        return {(row["arch"], row["file"], row["kernel"]): set(row["opcodes"]) for row in table}

    new, old = by_kernel(rows), by_kernel(kept)
    archs = {row["arch"] for row in rows}
    said = [f"not in the table: {' '.join(key)}" for key in sorted(new.keys() - old.keys())]
    said += [f"in the table alone: {' '.join(key)}" for key in sorted(old.keys() - new.keys()) if key[0] in archs]
    for key in sorted(new.keys() & old.keys()):
        said += [f"{opcode} was there and is gone: {' '.join(key)}" for opcode in sorted(old[key] - new[key])]
        said += [f"{opcode} is new: {' '.join(key)}" for opcode in sorted(new[key] - old[key])]
    return said


def find_cuobjdump() -> str | None:
    """The disassembler: of this Python's packages, whose version is ours to choose, or what is on PATH."""
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/cuobjdump"))
    return str(packaged[-1]) if packaged else shutil.which("cuobjdump")


def find_object(cuobjdump: str, source: Path, arch: str, folders: list[Path]) -> Path | None:
    """The object in one of the folders that has a file's kernels for an architecture and is as new as its sources."""
    csrc = cuda_compiler.KERNELS.parent
    newest = max(path.stat().st_mtime for path in (source, *csrc.rglob("*.h"), *csrc.rglob("*.cuh")))
    for folder in folders:
        for path in (cuda_compiler.object_of(source, arch, folder), *sorted(folder.rglob(f"{source.name}.o"))):
            if path.exists() and path.stat().st_mtime >= newest:
                # Its cubins, one a line, by names such as conv_product.1.sm_90a.cubin.
                listed = subprocess.run([cuobjdump, "-lelf", path], text=True, capture_output=True, check=False)
                if f".{arch}.cubin" in listed.stdout:
                    return path
    return None


def disassemble(cuobjdump: str, path: Path, arch: str) -> dict[str, Counter[str]]:
    """The counts of an object's kernels for one architecture, by mangled name.

    Raises:
        RuntimeError: when cuobjdump cannot; its reason is the text.
    """
    # Tens of megabytes of text, so never held as a whole.
    with subprocess.Popen([cuobjdump, "-sass", path], text=True, stdout=subprocess.PIPE) as process:
        counts = count(process.stdout)
    if process.returncode:
        raise RuntimeError(f"{cuobjdump} failed on {path}; it needs nvdisasm beside it or on PATH")
    return {name: found for (of, name), found in counts.items() if of == arch}


def main() -> int:
    """Prints the table, checks and writes it; 1 when a file does not compile, a rule is broken or the tables differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", nargs="+", type=Path, default=[cuda_compiler.ROOT / "build" / "cuda_objects"])
    parser.add_argument("--archs", nargs="+", default=["sm_80", "sm_90a"])
    parser.add_argument("--out", type=Path, help="write the table here as JSON")
    parser.add_argument("--compare", type=Path, help="fail where kernels or their instructions differ from this table")
    parser.add_argument("--as-kept", action="store_true", help="compile nothing that this table has of these sources")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    nvcc, cuobjdump = cuda_compiler.find_nvcc(), find_cuobjdump()
    if nvcc is None:
        print(cuda_compiler.NO_NVCC, file=sys.stderr)
        return 2
    if cuobjdump is None:
        print("no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm", file=sys.stderr)
        return 2
    release = cuda_compiler.release_of(nvcc)
    kept, is_current = cuda_compiler.read_kept(arguments.compare, release)
    wanted = [(cuda_compiler.KERNELS / name, arch) for name in FILES for arch in arguments.archs]
    objects = {pair: find_object(cuobjdump, *pair, arguments.objects) for pair in wanted}
    missing = [pair for pair, path in objects.items() if path is None]
    rows = []
    if missing and arguments.as_kept and kept is not None and is_current:
        places = {(source.name, arch) for source, arch in missing}
        rows = [row for row in kept["rows"] if (row["file"], row["arch"]) in places]
        print(f"{' '.join(sorted({arch for _, arch in places}))}: as kept, of the same sources")
        objects = {pair: path for pair, path in objects.items() if path is not None}
        missing = []
    for source, arch in missing:
        print(f"compiling {source.name} for {arch}", flush=True)
    done = cuda_compiler.compile_all(nvcc, missing, arguments.objects[0], arguments.jobs)
    if failures := [log for _, compiled, log in done if not compiled]:
        print(*failures, sep="\n", file=sys.stderr)
        return 1
    for (source, arch), path in objects.items():
        path = path or cuda_compiler.object_of(source, arch, arguments.objects[0])
        counts = disassemble(cuobjdump, path, arch)
        for name, (_, found) in zip(cuda_compiler.demangle(list(counts)), counts.items(), strict=True):
            opcodes = {opcode: found[opcode] for opcode in sorted(found)}
            rows.append({"arch": arch, "file": source.name, "kernel": name, "opcodes": opcodes})
    rows.sort(key=lambda row: (row["arch"], row["file"], row["kernel"]))
    for row in rows:
        opcodes = " ".join(f"{opcode}:{times}" for opcode, times in row["opcodes"].items())
        print(f"{row['arch']:8}{row['kernel'][:150]}\n{'':8}{opcodes or '-'}")
    said = broken(rows)
    if arguments.out:
        cuda_compiler.write_table(arguments.out, release, rows)
    if kept is not None and (differences := compare(rows, kept["rows"])):
        said += [*differences, f"differs from {arguments.compare}: where it is meant, write it anew with --out"]
    for line in said:
        print(line, file=sys.stderr)
    print(f"{len(rows)} kernels of {' and '.join(FILES)}; {len(said)} complaints")
    return 1 if said or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
