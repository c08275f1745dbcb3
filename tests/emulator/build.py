"""Builds the emulator's library, unless it is as new as its sources; needs neither torch nor nvcc.

    python tests/emulator/build.py [--kind asan|gdb]

It works in build/emulator, with AddressSanitizer in build/emulator-asan, for a debugger (not optimised, with all that
gdb wants to know) in build/emulator-gdb, and prints the library's path. One process builds at a time; others wait.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("csrc/cuda", "csrc/ops", "tests/emulator")
SUFFIXES = {".h", ".cpp", ".cu", ".cuh", ".txt", ".S"}
NAME = "libfastnn_emulator.so"
# By kind: where, and how.
KINDS = {
    "checked": ("emulator", []),
    "asan": ("emulator-asan", ["-DFASTNN_EMULATOR_ASAN=ON"]),
    "gdb": ("emulator-gdb", ["-DCMAKE_BUILD_TYPE=Debug"]),
}


def tool(name: str) -> str | None:
    """Path of a build tool: the one installed for this Python, or else the one on PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def fingerprint() -> str:
    """Changes when a source is edited, added, moved or removed, whatever the times of the files say."""
    files = sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES)
    lines = []
    for path in files:
        status = path.stat()
        lines.append(f"{path.relative_to(ROOT)} {status.st_mtime_ns} {status.st_size}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def build(kind: str = "checked") -> tuple[Path, bool]:
    """The library's path, and whether something had to be built.

    Args:
        kind: one of KINDS.

    Raises:
        RuntimeError: A tool is missing, or the build failed; what the compiler said stands on stderr.
    """
    name, options = KINDS[kind]
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    library, record = folder / NAME, folder / "sources.sha256"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = fingerprint()
        if library.is_file() and record.is_file() and record.read_text() == sources:
            return library, False
        cmake, ninja = tool("cmake"), tool("ninja")
        if cmake is None or ninja is None:
            raise RuntimeError("to build the emulator takes cmake and ninja: pip install cmake ninja")
        print(f"building {library.relative_to(ROOT)}", file=sys.stderr, flush=True)
        configure = [cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-S", str(ROOT / "tests/emulator")]
        configure += ["-B", str(folder), *options]
        for command in (configure, [cmake, "--build", str(folder), "--target", "fastnn_emulator"]):
            done = subprocess.run(command, stdout=sys.stderr, check=False)
            if done.returncode:
                raise RuntimeError(f"the emulator could not be built: {' '.join(command)} failed")
        record.write_text(sources)
        return library, True


def main() -> int:
    """Builds; 1 where that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, default="checked")
    try:
        library, _ = build(parser.parse_args().kind)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(library)
    return 0


if __name__ == "__main__":
    sys.exit(main())
