"""CUDA kernels without a GPU: the emulator of ``tests/emulator``, loaded into this process."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = "libfastnn_emulator.so"
_loaded: Path | None = None


def library_path() -> Path:
    """Path of the library that holds the CUDA kernels compiled for the emulator.

    ``FASTNN_EMULATOR_LIBRARY`` names it; otherwise it lies beside the compiled module ``fastnn._C``.

    Raises:
        FileNotFoundError: There is no such file; the message says how to build it.
    """
    chosen = os.environ.get("FASTNN_EMULATOR_LIBRARY")
    if chosen:
        path = Path(chosen)
        if not path.is_file():
            raise FileNotFoundError(f"FASTNN_EMULATOR_LIBRARY names {path}, which is no file")
        return path.resolve()
    module = importlib.util.find_spec("fastnn._C")
    package = Path(module.origin).parent if module and module.origin else Path(__file__).parents[1]
    path = package / _NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"the emulated CUDA kernels, {path}, are not built. In a clone of fastnn, `FASTNN_EMULATE=1 pytest` "
            "builds them and runs the emulated tests, and `make test` builds them and runs all. "
            "FASTNN_EMULATOR_LIBRARY names a library that is elsewhere; FASTNN_TEST_EMULATOR=0 leaves the emulated "
            "tests out."
        )
    return path


@contextmanager
def emulated_cuda() -> Iterator[None]:
    """Within the context, ops on CPU tensors run the CUDA kernels under the emulator.

    The setting is the process's, not the thread's. Contexts may be nested.

    Raises:
        FileNotFoundError: As :func:`library_path`.
        RuntimeError: The library cannot be loaded, or another one is loaded already.
    """
    global _loaded
    from fastnn import _C

    path = library_path()
    if _loaded is None:
        _C.load_emulator(str(path))
        _loaded = path
    elif _loaded != path:
        raise RuntimeError(f"{_loaded} is loaded already; {path} needs a new process")
    before = _C.set_emulated(True)
    try:
        yield
    finally:
        _C.set_emulated(before)


@contextmanager
def execution_order(seed: int, workers: int) -> Iterator[None]:
    """Within the context, emulated kernels run their blocks, warps and lanes in another order.

    Args:
        seed: Of the random order; 0 is the natural one.
        workers: OS threads that blocks are spread over, at least 1.

    Raises:
        FileNotFoundError: As :func:`library_path`.
    """
    library = ctypes.CDLL(str(library_path()))
    library.fastnn_emulator_seed.restype = ctypes.c_uint64
    library.fastnn_emulator_set_seed.argtypes = [ctypes.c_uint64]
    before = library.fastnn_emulator_seed(), library.fastnn_emulator_workers()
    library.fastnn_emulator_set_seed(seed)
    library.fastnn_emulator_set_workers(workers)
    try:
        yield
    finally:
        library.fastnn_emulator_set_seed(before[0])
        library.fastnn_emulator_set_workers(before[1])


@contextmanager
def played_device(
    multiprocessors: int = 4, shared_bytes: int = 227 * 1024, compute_capability: int = 90
) -> Iterator[None]:
    """Within the context, the emulator plays another device, for which kernels may choose other variants.

    Args:
        multiprocessors: on which a cooperative grid must fit, at most 256.
        shared_bytes: what a block may have of shared memory, 1024 to 227 KB; a multiprocessor has 1 KB more.
        compute_capability: 10 times the major plus the minor number; before 90 it launches no clusters.

    Raises:
        FileNotFoundError: As :func:`library_path`.
    """
    library = ctypes.CDLL(str(library_path()))
    before = (
        library.fastnn_emulator_multiprocessors(),
        library.fastnn_emulator_shared_bytes(),
        library.fastnn_emulator_compute_capability(),
    )
    library.fastnn_emulator_set_device.argtypes = [ctypes.c_uint] * 3
    library.fastnn_emulator_set_device(multiprocessors, shared_bytes, compute_capability)
    try:
        yield
    finally:
        library.fastnn_emulator_set_device(*before)
