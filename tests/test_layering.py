"""Reads the includes and imports of the whole tree and fails when a file looks at a floor that it must not see.

The floors, and why: docs/architecture.md. A file may look only to the right:

    fastnn/nn, convert, cli, demo -> fastnn/functional, _fake, _vmap -> fastnn._C, torch.ops.fastnn
    csrc/bindings -> csrc/ops <- csrc/cpu, csrc/cuda
"""

from __future__ import annotations

import ast
import re
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
CXX_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)

# What each floor may include besides the C++ standard library, as <...>.
SYSTEM_HEADERS = {
    "csrc/ops": r"$^",
    "csrc/cpu": r"ATen/(cpu/vec/.*|Parallel\.h)|c10/util/(BFloat16|Half)\.h|(imm|arm_neon)(intrin)?\.h|(omp|sched)\.h",
    "csrc/cuda": r"$^",
    "csrc/bindings": r"(torch|ATen|c10|pybind11)/.*|dlfcn\.h",
}
# The one file between the kernels and the CUDA toolkit.
PLATFORM = "csrc/cuda/platform.cuh"
PLATFORM_HEADERS = r"cuda(_[a-z0-9]+)*\.h"
# The only places of PTX: named functions, for each of which the emulator has another body.
PTX = {f"csrc/cuda/{name}.cuh" for name in ("async_copy", "cluster", "mbarrier", "mma", "tensor_map", "tma", "wgmma")}
PTX_HEADERS = r"intrinsics/[a-z_]+\.h"
ASSEMBLY = re.compile(r"\b(asm|__asm__)\b")
# What each floor may include of this project, as "...", by the folder or file that it lies in.
PROJECT_HEADERS = {
    "csrc/ops": ("csrc/ops",),
    "csrc/cpu": ("csrc/cpu", "csrc/ops"),
    "csrc/cuda": ("csrc/cuda", "csrc/ops"),
    # Which of the CPU's instruction sets to use is known on the CPU's floor alone.
    "csrc/bindings": ("csrc/bindings", "csrc/ops", "csrc/cpu/capability.h"),
}

# The Python modules that may name the compiled module, and the one place where ops are called by name.
COMPILED_USERS = {"fastnn/_backend.py", "fastnn/testing/emulation.py"}
BACKEND_USERS = {
    "fastnn/__init__.py",
    "fastnn/functional.py",
    "fastnn/_convolution.py",
    "fastnn/_activation.py",
    "fastnn/_normalisation.py",
    "fastnn/_pooling.py",
    "fastnn/_recurrent.py",
    "fastnn/_cache.py",
    "fastnn/_info.py",
}
OPS_USERS = {
    "fastnn/_activation.py",
    "fastnn/_convolution.py",
    "fastnn/_fused.py",
    "fastnn/_normalisation.py",
    "fastnn/_pooling.py",
    "fastnn/_recurrent.py",
    "fastnn/_sync_batch_norm.py",
    "fastnn/_vmap.py",
    "fastnn/_vmap_normalisation.py",
    "fastnn/functional.py",
}
# Modules of the package that a file may import, by its place; the longest matching place counts.
IMPORTS = {
    "fastnn/_version.py": (),
    "fastnn/_backend.py": ("fastnn._C",),
    "fastnn/_cache.py": ("fastnn._backend", "fastnn._version"),
    "fastnn/_fake.py": (),
    "fastnn/_fake_normalisation.py": ("fastnn._fake",),
    "fastnn/_fake_pooling.py": ("fastnn._fake",),
    "fastnn/_fake_recurrence.py": ("fastnn._fake",),
    "fastnn/_vmap.py": (),
    "fastnn/_vmap_normalisation.py": ("fastnn._vmap",),
    "fastnn/_info.py": ("fastnn._backend", "fastnn._version"),
    "fastnn/_convolution.py": ("fastnn._activation", "fastnn._backend"),
    "fastnn/_activation.py": ("fastnn._backend",),
    "fastnn/_fusable.py": (),
    "fastnn/_tracing.py": (),
    "fastnn/_chains.py": ("fastnn._fusable", "fastnn._fused", "fastnn._tracing", "fastnn.convert"),
    "fastnn/_normalisation.py": ("fastnn._backend",),
    "fastnn/_sync_batch_norm.py": (),
    "fastnn/_recurrent.py": ("fastnn._backend",),
    "fastnn/_pooling.py": ("fastnn._backend",),
    "fastnn/_pooling_by_output.py": ("fastnn._pooling",),
    "fastnn/functional.py": (
        "fastnn._activation",
        "fastnn._backend",
        "fastnn._convolution",
        "fastnn._normalisation",
        "fastnn._pooling",
        "fastnn._pooling_by_output",
        "fastnn._recurrent",
        "fastnn._sync_batch_norm",
    ),
    "fastnn/nn/": ("fastnn.functional", "fastnn.nn"),
    "fastnn/nn/conv_act.py": ("fastnn._fused", "fastnn.functional", "fastnn.nn"),
    "fastnn/convert.py": ("fastnn.functional", "fastnn.nn"),
    "fastnn/_fused.py": ("fastnn._fusable", "fastnn.functional", "fastnn.nn.batchnorm", "fastnn.nn.conv"),
    "fastnn/fuse.py": ("fastnn._chains", "fastnn._fused", "fastnn._tracing", "fastnn.convert", "fastnn.nn.conv_act"),
    "fastnn/cli.py": ("fastnn._info", "fastnn._version", "fastnn.bench", "fastnn.check", "fastnn.demo"),
    "fastnn/__main__.py": ("fastnn.cli",),
    "fastnn/testing/emulation.py": ("fastnn._C",),  # switches backends, which no function does
    "fastnn/testing/": ("fastnn._backend", "fastnn._fusable", "fastnn.functional", "fastnn.nn", "fastnn.testing"),
    "fastnn/models/": ("fastnn.models", "fastnn.nn"),
    "fastnn/bench/": ("fastnn.bench", "fastnn.models", "fastnn.testing.devices"),
    "fastnn/check/": ("fastnn.check", "fastnn.functional", "fastnn.testing"),
    "fastnn/demo/": (
        "fastnn.convert",
        "fastnn.demo",
        "fastnn.functional",
        "fastnn.models",
        "fastnn.nn",
        "fastnn.bench.timing",
        "fastnn.testing.devices",
    ),
}


def is_standard(header: str) -> bool:
    """Whether <header> is the C++ standard library's: those have neither a folder nor a suffix."""
    return re.fullmatch(r"[a-z_]+", header) is not None


def within(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(place + "/") for place in places)


def resolve(folder: PurePosixPath, include: str) -> str:
    """The path from the root that "include" names in a file of `folder`."""
    parts: list[str] = list(folder.parts)
    for part in PurePosixPath(include).parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def cxx_violations(path: str, text: str) -> list[str]:
    floor = "/".join(PurePosixPath(path).parts[:2])
    found = []
    for bracket, header in INCLUDE.findall(text):
        if path == PLATFORM and (re.fullmatch(PLATFORM_HEADERS, header) or header == "emulator.h"):
            continue
        if path in PTX and re.fullmatch(PTX_HEADERS, header):
            continue
        if bracket == "<":
            allowed = is_standard(header) or re.fullmatch(SYSTEM_HEADERS[floor], header) is not None
        else:
            target = resolve(PurePosixPath(path).parent, header)
            # A name that is no file there comes from an include directory, which may hold anything.
            allowed = within(target, PROJECT_HEADERS[floor]) and (ROOT / target).is_file()
        if not allowed:
            found.append(f"{path} includes {header}")
    if path not in {PLATFORM, *PTX} and ASSEMBLY.search(re.sub(r"//.*", "", text)):
        found.append(f"{path} has assembly")
    return found


def imported_modules(path: str, tree: ast.AST) -> list[str]:
    """Every module of fastnn that a file imports, anywhere in it; `from a import b` counts as a and as a.b."""
    package = PurePosixPath(path).parent.parts
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) - node.level + 1], node.module or ""]) if node.level else node.module
            )
            base = (base or "").rstrip(".")
            found += [f"{base}.{alias.name}" for alias in node.names]
    return [name for name in found if name == "fastnn" or name.startswith("fastnn.")]


def python_violations(path: str, text: str) -> list[str]:
    tree = ast.parse(text)
    found = []
    if path != "fastnn/__init__.py":
        places = [place for place in IMPORTS if path == place or (place.endswith("/") and path.startswith(place))]
        if not places:
            return [f"{path} stands on no floor: add it to IMPORTS in {Path(__file__).name}"]
        allowed = IMPORTS[max(places, key=len)]
        for name in imported_modules(path, tree):
            # The whole package, as a user has it, is above every floor; only what users run may take it.
            is_public = name == "fastnn" and path.startswith(
                ("fastnn/bench/", "fastnn/check/", "fastnn/demo/", "fastnn/cli.py", "fastnn/testing/")
            )
            is_name_in_package = any(name == m or name.startswith(m + ".") for m in allowed)
            if not is_public and not is_name_in_package:
                found.append(f"{path} imports {name}")
    for name in imported_modules(path, tree):
        if re.match(r"fastnn\._C\b", name) and path not in COMPILED_USERS:
            found.append(f"{path} imports {name}")
        if re.match(r"fastnn\._backend\b", name) and path not in BACKEND_USERS:
            found.append(f"{path} imports {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.ops.fastnn" and path not in OPS_USERS:
            found.append(f"{path}:{node.lineno} calls torch.ops.fastnn")
    return found


def cxx_files() -> list[Path]:
    return sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in CXX_SUFFIXES)


def python_files() -> list[Path]:
    return sorted((ROOT / "fastnn").rglob("*.py"))


def test_includes_stay_on_their_floors():
    files = cxx_files()
    assert {path.parent.name for path in files} >= {"ops", "cpu", "cuda", "bindings"}
    violations = []
    for path in files:
        violations += cxx_violations(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    assert not violations, "\n".join(violations)


def test_imports_stay_on_their_floors():
    files = python_files()
    assert files
    violations = []
    for path in files:
        violations += python_violations(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("csrc/ops/conv.h", "#include <ATen/ATen.h>"),
        ("csrc/ops/conv.h", "#include <cuda_runtime.h>"),
        ("csrc/ops/conv.h", '#include "../cpu/dispatch.h"'),
        ("csrc/cpu/conv.cpp", "#include <torch/library.h>"),
        ("csrc/cpu/conv.cpp", "#include <ATen/ATen.h>"),
        ("csrc/cpu/conv.cpp", "  #  include <c10/core/Stream.h>"),
        ("csrc/cpu/conv.cpp", '#include "../cuda/vec.cuh"'),
        ("csrc/cpu/conv.cpp", '#include "../bindings/tensors.h"'),
        ("csrc/cuda/conv.cu", "#include <ATen/cuda/CUDAContext.h>"),
        ("csrc/cuda/conv.cu", "#include <c10/util/Half.h>"),
        ("csrc/cuda/conv.cu", "#include <pybind11/pybind11.h>"),
        ("csrc/cuda/conv.cu", "#include <cuda_fp16.h>"),
        ("csrc/cuda/conv.cu", '#include "emulator.h"'),
        ("csrc/cuda/conv.cu", '#include "intrinsics/tma.h"'),
        ("csrc/cuda/conv.cu", 'asm volatile("bar.sync 0;");'),
        ("csrc/cuda/mma.cuh", '#include "scheduler/launch.h"'),
        ("csrc/cuda/conv.cu", '#include "../cpu/dispatch.h"'),
        ("csrc/cuda/platform.cuh", "#include <torch/types.h>"),
        ("csrc/bindings/conv.cpp", '#include "../cuda/platform.cuh"'),
        ("csrc/bindings/conv.cpp", '#include "../cpu/dispatch.h"'),
        ("csrc/bindings/conv.cpp", "#include <cuda_runtime.h>"),
    ],
)
def test_a_planted_include_is_seen(path: str, line: str):
    assert cxx_violations(path, "#include <vector>\n" + line + "\n")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("fastnn/nn/conv.py", "from fastnn import _C"),
        ("fastnn/nn/conv.py", "from fastnn._backend import _C"),
        ("fastnn/nn/conv.py", "from .._backend import _C"),
        ("fastnn/nn/conv.py", "from fastnn import convert"),
        ("fastnn/nn/conv.py", "y = torch.ops.fastnn.conv2d(x, w)"),
        ("fastnn/convert.py", "def f():\n    import fastnn._C"),
        ("fastnn/convert.py", "from fastnn import cli"),
        ("fastnn/cli.py", "from fastnn import _C"),
        ("fastnn/functional.py", "from fastnn import nn"),
        ("fastnn/functional.py", "from fastnn import _C"),
        ("fastnn/functional.py", "import fastnn.convert as c"),
        ("fastnn/_backend.py", "import fastnn.functional"),
        ("fastnn/demo/images.py", "from fastnn import _C"),
        ("fastnn/elsewhere.py", "import torch"),
    ],
)
def test_a_planted_import_is_seen(path: str, line: str):
    assert python_violations(path, "import torch\n" + line + "\n")
