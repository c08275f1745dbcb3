"""Loads the compiled module ``fastnn._C``, and where that fails says why and what to do, in one message.

What ``_C`` was built for is read from ``_build.json``, which the build writes beside it, and compared before
loading: a module built for another torch fails with undefined symbols that name no cause, or crashes later.
"""

from __future__ import annotations

import json
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any

_REBUILD = "Build it against the torch that is installed: pip install --no-build-isolation -e . (in fastnn's sources)."


def read_build_record(folder: Path) -> dict[str, Any]:
    """What the build wrote about itself beside ``_C``; empty when there is no readable record."""
    try:
        record = json.loads((folder / "_build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _release(version: str) -> tuple[str, ...]:
    """Major and minor: torch keeps its C++ interface within a minor release, and changes it between them."""
    return tuple(version.split("+")[0].split(".")[:2])


def _cuda_words(cuda: str | None) -> str:
    return f"CUDA {cuda}" if cuda else "no CUDA"


def explain_mismatch(folder: Path, record: dict[str, Any], torch_version: str, torch_cuda: str | None) -> str | None:
    """Says why the module in ``folder`` cannot be loaded here, or returns None when nothing speaks against it.

    Args:
        folder: the package's folder, where ``_C`` lies.
        record: what :func:`read_build_record` returned for it.
        torch_version: ``torch.__version__`` of the torch that is imported.
        torch_cuda: its ``torch.version.cuda``; None for a CPU build.
    """
    modules = sorted(path.name for path in folder.glob("_C.*") if path.suffix in (".so", ".pyd"))
    if not modules:
        return f"its compiled part is not built: there is no _C{EXTENSION_SUFFIXES[0]} in {folder}. {_REBUILD}"
    if not any(name == "_C" + suffix for name in modules for suffix in EXTENSION_SUFFIXES):
        python = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"
        return (
            f"its compiled part is for another Python: found {', '.join(modules)}, but this is {python}, which "
            f"loads _C{EXTENSION_SUFFIXES[0]}. {_REBUILD}"
        )
    built_for = record.get("torch")
    if built_for is None:
        return None
    built_cuda = record.get("torch_cuda") or None
    if _release(built_for) != _release(torch_version) or built_cuda != (torch_cuda or None):
        return (
            f"it was built for torch {built_for} ({_cuda_words(built_cuda)}), but the torch imported is "
            f"{torch_version} ({_cuda_words(torch_cuda)}). {_REBUILD}"
        )
    return None


def _load() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "fastnn needs torch, which cannot be imported here. Install it first (https://pytorch.org), then "
            "build fastnn against it."
        ) from error
    folder = Path(__file__).resolve().parent
    reason = explain_mismatch(folder, read_build_record(folder), torch.__version__, torch.version.cuda)
    if reason is not None:
        raise ImportError(f"fastnn cannot be imported: {reason}")
    try:
        from fastnn import _C
    except ImportError as error:
        raise ImportError(
            f"fastnn cannot be imported: its compiled part does not load ({error}). {_REBUILD}"
        ) from error
    return _C


_C = _load()
BUILD_RECORD = read_build_record(Path(__file__).resolve().parent)
