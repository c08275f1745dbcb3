"""Drives CMake: configures with Ninja, builds, and places _C and its companions in the package."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Each may be set in the environment; what they do stands in CMakeLists.txt.
OPTIONS = ("FASTNN_CPU", "FASTNN_CUDA", "FASTNN_EMULATOR", "FASTNN_CUDA_ARCHS")


def tool(name: str) -> str:
    """Path of a build tool: the one installed for this Python, or else the one on PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise SystemExit(f"fastnn: {name} was not found: pip install {name}")
    return found


def check_requirements() -> None:
    """Stops, with the remedy, where the build could not succeed."""
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(
            "fastnn: torch is not installed in the environment that builds. fastnn is compiled against the torch that "
            "will run it, so pip must not make an isolated one: install torch 2.10 or newer, pybind11, ninja, cmake "
            "and setuptools, then run\n    pip install --no-build-isolation ."
        )
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None and shutil.which("g++") is None and shutil.which("clang++") is None:
        raise SystemExit(
            f"fastnn: no C++ compiler was found ({compiler} is not on PATH). Install one with C++20 "
            "(Debian and Ubuntu: apt-get install g++), or set CXX to it."
        )


class CMakeBuild(build_ext):
    """Builds the one extension, fastnn._C, with CMake."""

    def copy_extensions_to_source(self) -> None:
        """In an editable install the extension's companions go into the tree with it."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib) / "fastnn"
        for companion in [built / "_build.json", *built.glob("libfastnn_emulator.*")]:
            shutil.copy2(companion, ROOT / "fastnn" / companion.name)

    def build_extension(self, ext: Extension) -> None:
        check_requirements()
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(os.environ.get("FASTNN_BUILD_DIR") or ROOT / "build" / f"cmake-{sys.implementation.cache_tag}")
        arguments = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DCMAKE_INSTALL_PREFIX={package}",
            f"-DFASTNN_VERSION={self.distribution.get_version()}",
        ]
        for name in OPTIONS:
            if name in os.environ:
                arguments.append(f"-D{name}={os.environ[name].replace(',', ';').replace(' ', ';')}")
        cmake = tool("cmake")
        for command in (
            [cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *arguments],
            [cmake, "--build", str(build)],
            [cmake, "--install", str(build)],
        ):
            if subprocess.run(command, check=False).returncode != 0:
                raise SystemExit(
                    "fastnn: the build failed; the cause stands above (`" + " ".join(command[:2]) + " ...`)"
                )


setup(ext_modules=[Extension("fastnn._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
