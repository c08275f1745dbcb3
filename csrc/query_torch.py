"""Prints, as JSON, what CMakeLists.txt needs to know of the torch and the Python that it builds for."""

import json
import platform
import sys
import sysconfig

try:
    import torch
    import torch.utils.cpp_extension as cpp_extension
except ImportError as error:
    sys.exit(
        f"cannot import torch ({error}). fastnn is built against the torch that is installed: install torch 2.10 or "
        "newer first, then build with `pip install --no-build-isolation .`"
    )
try:
    import pybind11
except ImportError as error:
    sys.exit(f"cannot import pybind11 ({error}): pip install pybind11 ninja cmake setuptools")

if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 10):
    sys.exit(f"torch {torch.__version__} is too old: fastnn needs torch 2.10 or newer")

print(
    json.dumps(
        {
            "version": torch.__version__,
            "cuda": torch.version.cuda or "",
            "include_dirs": ";".join(p for p in cpp_extension.include_paths() if "cuda-" not in p),
            "library_dir": cpp_extension.library_paths()[0],
            "python": platform.python_version(),
            "python_include": sysconfig.get_paths()["include"],
            "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
            "pybind11_include": pybind11.get_include(),
        }
    )
)
