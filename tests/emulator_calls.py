"""Calls of the emulator's arithmetic, a whole array at a time: the functions of selftest/numerics_library.cpp."""

from __future__ import annotations

import ctypes
import functools

import numpy as np

from fastnn.testing.emulation import library_path


@functools.cache
def load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    library.fastnn_emulator_call.restype = ctypes.c_bool
    return library


def call(name: str, result: type | np.dtype, *operands: np.ndarray) -> np.ndarray:
    """The function with that name, for each element of its operands."""
    arrays = [np.ascontiguousarray(operand) for operand in operands]
    results = np.empty(arrays[0].shape, result)
    pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    pointer = ctypes.c_void_p(results.ctypes.data)
    found = load().fastnn_emulator_call(name.encode(), pointers, pointer, ctypes.c_int64(arrays[0].size))
    assert found, f"no function {name}"
    return results


def same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal, zeros in sign too; every NaN is as good as another."""
    theirs = theirs.astype(ours.dtype)
    np.testing.assert_array_equal(ours, theirs)
    numbers = ~np.isnan(theirs)
    np.testing.assert_array_equal(np.signbit(ours)[numbers], np.signbit(theirs)[numbers])
