"""nvcc as the reports of the CUDA kernels use it: where it is, which release, one file compiled, kernels' names.

    python tools/cuda_compiler.py TABLE.json ...

says whether all of these tables are of the sources as they are and of this release of nvcc: 0, else 1.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "csrc" / "cuda"
NO_NVCC = "no nvcc: put the CUDA toolkit's bin directory on PATH or set CUDACXX"


def find_nvcc() -> str | None:
    """The compiler: $CUDACXX, or what is on PATH."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def release_of(nvcc: str) -> str:
    """The compiler's release, as 13.0."""
    text = subprocess.run([nvcc, "--version"], text=True, capture_output=True, check=True).stdout
    match = re.search(r"release (\d+\.\d+)", text)
    return match[1] if match else "unknown"


def digest_of_sources() -> str:
    """Of everything that nvcc reads of the project: with the same digest and release it makes the same kernels."""
    digest = hashlib.sha256()
    for path in sorted([*KERNELS.iterdir(), *(ROOT / "csrc" / "ops").iterdir()]):
        digest.update(f"{path.relative_to(ROOT).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_kept(path: Path | None, release: str) -> tuple[dict[str, Any] | None, bool]:
    """A table that is kept and of this release, else None; and whether it is of the sources as they are."""
    if path is None:
        return None, False
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["nvcc"] != release:
        print(f"{path} is of nvcc {kept['nvcc']}, this is {release}: not compared")
        return None, False
    return kept, kept.get("sources") == digest_of_sources()


def write_table(path: Path, release: str, rows: list[dict[str, Any]]) -> None:
    """Writes a table to be kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"nvcc": release, "sources": digest_of_sources(), "rows": rows}
    path.write_text(json.dumps(table, indent=1) + "\n")


def object_of(source: Path, arch: str, directory: Path) -> Path:
    """Where the object of a file for one architecture lies."""
    return directory / f"{source.stem}.{arch}.o"


def compile_one(nvcc: str, source: Path, arch: str, directory: Path) -> tuple[bool, str]:
    """Compiles one file for one architecture: whether that went well, and what the compiler has said."""
    command = [nvcc, "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-DFASTNN_BACKEND=cuda", "-Xptxas=-v"]
    command += [f"-gencode=arch={arch.replace('sm_', 'compute_')},code={arch}", "-c", str(source)]
    command += ["-o", str(object_of(source, arch, directory))]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def compile_all(
    nvcc: str, wanted: Iterable[tuple[Path, str]], directory: Path, jobs: int
) -> list[tuple[Path, bool, str]]:
    """Compiles pairs of a file and an architecture, some at a time: each file with what ``compile_one`` says."""
    directory.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running = [(source, pool.submit(compile_one, nvcc, source, arch, directory)) for source, arch in wanted]
        return [(source, *job.result()) for source, job in running]


def demangle(names: list[str]) -> list[str]:
    """The kernels' names as C++ writes them, without parameters; as they are where there is no c++filt."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not names:
        return names
    out = subprocess.run([tool], input="\n".join(names), text=True, capture_output=True, check=True).stdout
    whole = [line.replace("(anonymous namespace)::", "") for line in out.splitlines()]
    return [line.split(">(")[0] + ">" if ">(" in line else line.split("(")[0] for line in whole]


def main() -> int:
    """0 where every table named is of these sources and this release."""
    nvcc = find_nvcc()
    if nvcc is None:
        print(NO_NVCC, file=sys.stderr)
        return 2
    release = release_of(nvcc)
    return 0 if all(read_kept(Path(name), release)[1] for name in sys.argv[1:]) else 1


if __name__ == "__main__":
    sys.exit(main())
