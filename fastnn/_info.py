"""What this fastnn is: versions, how it was built, and what it finds on this machine."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastnn._backend import _C, BUILD_RECORD
from fastnn._version import __version__


def has_code_for(compute_capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether one of the architectures that were built for runs on a GPU.

    Args:
        compute_capability: the GPU's, as (9, 0).
        architectures: as the build takes them. ``80`` is machine code, which runs on its major version from its
            minor on (so does that of a family, ``100f``); ``90a`` is machine code for that one version alone;
            ``90+PTX`` is what the driver compiles for it and every later version.
    """
    for architecture in architectures:
        parts = re.fullmatch(r"(?:sm_|compute_)?(\d+)(\d)([af]?)(\+PTX)?", architecture)
        if parts is None:
            continue
        version, suffix, is_ptx = (int(parts[1]), int(parts[2])), parts[3], parts[4] is not None
        if suffix == "a":
            runs = version == compute_capability
        elif is_ptx and not suffix:
            runs = version <= compute_capability
        else:
            runs = version[0] == compute_capability[0] and version[1] <= compute_capability[1]
        if runs:
            return True
    return False


def _devices(built_with_cuda: bool, architectures: Sequence[str]) -> list[dict[str, Any]]:
    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        capability = torch.cuda.get_device_capability(index)
        devices.append(
            {
                "index": index,
                "name": torch.cuda.get_device_name(index),
                "compute_capability": "{}.{}".format(*capability),
                "supported": built_with_cuda and has_code_for(capability, architectures),
            }
        )
    return devices


def info() -> dict[str, Any]:
    """What ``fastnn info`` prints.

    Returns:
        A dict that JSON can hold:

        - ``version``, ``torch``, ``python``, ``platform``: of this process; ``torch_cuda`` is None for a CPU
          build.
        - ``compiler``: of the compiled module, and ``built_for_torch``.
        - ``cpu``: ``capability`` in use, those ``compiled``, best first, which of them are ``optimised`` (others are
          right, and slow), and ``threads`` of torch's pool.
        - ``cuda``: whether it was ``built``, with which ``toolkit`` and for which ``architectures``.
        - ``devices``: of each GPU ``index``, ``name``, ``compute_capability``, and whether it is ``supported``:
          code was built for it.
        - ``emulator``: whether the library that runs the CUDA kernels on the CPU was built beside.
    """
    built_with_cuda = _C.built_with_cuda()
    compiled = _C.compiled_cpu_capabilities().split()
    architectures = BUILD_RECORD.get("cuda_arch_list", []) if built_with_cuda else []
    return {
        "version": __version__,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "compiler": BUILD_RECORD.get("compiler"),
        "built_for_torch": BUILD_RECORD.get("torch"),
        "cpu": {
            "capability": _C.cpu_capability(),
            "compiled": compiled,
            "optimised": [name for name in compiled if name in BUILD_RECORD.get("cpu_optimised", compiled)],
            "threads": torch.get_num_threads(),
        },
        "cuda": {
            "built": built_with_cuda,
            "toolkit": BUILD_RECORD.get("cuda_compiler") if built_with_cuda else None,
            "architectures": architectures,
        },
        "devices": _devices(built_with_cuda, architectures),
        "emulator": any(Path(__file__).parent.glob("libfastnn_emulator.*")),
    }
