"""Compiles every CUDA kernel and reports what each needs of a multiprocessor; fails on spills.

    python tools/cuda_resources.py [--archs sm_80 sm_90a] [--log FILE] [--objects FOLDER] [--out FILE.json]
        [--compare FILE.json [--as-kept]]

Needs nvcc (on PATH or in $CUDACXX) and no GPU. One row per kernel and architecture, from ptxas: registers a
thread, shared memory and constant bank of a block in bytes, stack frame and spills of a thread in bytes. Spilled
registers and stack frames go through local memory, at a hundred times a register's cost, so any is an error.

With --log it takes what nvcc has said in a build (of one architecture, by Ninja) as well, and compiles the other
architectures alone. With --objects what it compiles is kept, for tools/cuda_sass.py.

With --compare it fails as well where a kernel wants more than an earlier report says, or where the two do not have the
same kernels, so that a regression shows without a GPU. Compilers differ: of another release of nvcc than the report's
nothing is compared. A change that is meant is kept by writing the report anew with --out. With --as-kept nothing is
compiled where that report is of these very sources: what it says of an architecture is taken.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import cuda_compiler

ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def parse(log: str) -> list[dict]:
    """Rows of one nvcc log with -Xptxas -v."""
    rows: list[dict] = []
    for line in log.splitlines():
        if match := ENTRY.search(line):
            rows.append({"kernel": match["name"], "arch": match["arch"], "shared_bytes": 0})
        elif rows and (match := STACK.search(line)):
            keys = ("stack_bytes", "spill_store_bytes", "spill_load_bytes")
            rows[-1].update(dict(zip(keys, map(int, match.groups()), strict=True)))
        elif rows and (match := USED.search(line)):
            rows[-1]["registers"] = int(match[1])
            if shared := SHARED.search(line):
                rows[-1]["shared_bytes"] = int(shared[1])
    return rows


BUILDING = re.compile(r"Building CUDA object \S*/(?P<file>\w+\.cu)\.o")


def parse_build(log: str) -> list[dict]:
    """Rows of a build's log: Ninja prints what a file's compiler has said behind the line that names the file."""
    pieces = BUILDING.split(log)
    return [{"file": name, **row} for name, said in zip(pieces[1::2], pieces[2::2], strict=True) for row in parse(said)]


# Registers that a kernel may gain before it counts: what an unrelated edit may do to the compiler's choices.
MORE_REGISTERS = 8


def compare(rows: list[dict], kept: list[dict]) -> list[str]:
    """What is worse than in the report that is kept, and which kernels only one of the two has."""

    def by_kernel(report: list[dict]) -> dict[tuple[str, str, str], dict]:
        return {(row["arch"], row["file"], row["kernel"]): row for row in report}

    new, old = by_kernel(rows), by_kernel(kept)
    archs = {row["arch"] for row in rows}
    worse = [f"not in the report: {' '.join(key)}" for key in sorted(new.keys() - old.keys())]
    worse += [f"in the report alone: {' '.join(key)}" for key in sorted(old.keys() - new.keys()) if key[0] in archs]
    for key in sorted(new.keys() & old.keys()):
        for what, more in (("registers", MORE_REGISTERS), ("shared_bytes", 0)):
            before, now = old[key].get(what, 0), new[key].get(what, 0)
            if now > before + more:
                worse.append(f"{now} {what}, were {before}: {' '.join(key)}")
    return worse


def main() -> int:
    """Compiles, prints the table and writes it; 1 when a file does not compile, a kernel spills or wants more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", default=["sm_80", "sm_90a"])
    parser.add_argument("--log", type=Path, help="what a build has printed, whose architecture need not be compiled")
    parser.add_argument("--objects", type=Path, help="keep the objects in this folder")
    parser.add_argument("--out", type=Path, help="write the rows here as JSON")
    parser.add_argument("--compare", type=Path, help="fail where a kernel wants more than this report says")
    parser.add_argument("--as-kept", action="store_true", help="compile nothing that this report has of these sources")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    nvcc = cuda_compiler.find_nvcc()
    if nvcc is None:
        print(cuda_compiler.NO_NVCC, file=sys.stderr)
        return 2
    release = cuda_compiler.release_of(nvcc)
    kept, is_current = cuda_compiler.read_kept(arguments.compare, release)
    sources = sorted(cuda_compiler.KERNELS.glob("*.cu"))
    built = parse_build(arguments.log.read_text(encoding="utf-8")) if arguments.log else []
    if arguments.log and {row["file"] for row in built} != {source.name for source in sources}:
        print(f"{arguments.log} has not said of every file what its kernels need", file=sys.stderr)
        return 1
    archs = [arch for arch in arguments.archs if arch not in {row["arch"] for row in built}]
    taken: list[dict] = []
    if arguments.as_kept and kept is not None and is_current:
        taken = [row for row in kept["rows"] if row["arch"] in archs]
        print(f"{' '.join(archs)}: as kept, of the same sources")
        archs = []
    with tempfile.TemporaryDirectory() as directory:
        wanted = [(source, arch) for source in sources for arch in archs]
        done = cuda_compiler.compile_all(nvcc, wanted, arguments.objects or Path(directory), arguments.jobs)
    failures = [log for _, compiled, log in done if not compiled]
    rows = built + [{"file": source.name, **row} for source, _, log in done for row in parse(log)]
    for row, name in zip(rows, cuda_compiler.demangle([row["kernel"] for row in rows]), strict=True):
        row["kernel"] = name
    rows += taken
    spilled = [r for r in rows if r.get("stack_bytes") or r.get("spill_store_bytes") or r.get("spill_load_bytes")]
    print(f"{'arch':8}{'regs':>5}{'shared':>8}{'stack':>7}{'spill':>7}  kernel")
    for row in sorted(rows, key=lambda r: (r["arch"], r["file"], r["kernel"])):
        print(
            f"{row['arch']:8}{row.get('registers', 0):>5}{row['shared_bytes']:>8}{row.get('stack_bytes', 0):>7}"
            f"{row.get('spill_store_bytes', 0):>7}  {row['kernel'][:150]}"
        )
    if arguments.out:
        cuda_compiler.write_table(arguments.out, release, rows)
    worse = compare(rows, kept["rows"]) if kept is not None else []
    for log in failures:
        print(log, file=sys.stderr)
    for row in spilled:
        print(f"uses local memory: {row['kernel']} on {row['arch']}", file=sys.stderr)
    for line in worse:
        print(line, file=sys.stderr)
    if worse:
        print(f"differs from {arguments.compare}: where it is meant, write it anew with --out", file=sys.stderr)
    print(f"{len(rows)} kernels in {len(sources)} files; {len(failures)} failed to compile, {len(spilled)} spill")
    return 1 if failures or spilled or worse or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
