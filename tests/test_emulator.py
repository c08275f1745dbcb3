"""The emulator's own tests: what it must compute, and each mistake that it must catch."""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from fastnn.testing.emulation import library_path

if os.environ.get("FASTNN_TEST_EMULATOR") == "0" and os.environ.get("FASTNN_EMULATE", "0") == "0":
    pytest.skip("FASTNN_TEST_EMULATOR=0", allow_module_level=True)


@dataclass(frozen=True)
class Case:
    """A kernel of tests/emulator/selftest: the tool of compute-sanitizer that should see its mistake on a device, and
    what the emulator must say of it, as a regular expression; that is empty for a correct one."""

    name: str
    tool: str
    expected: str


def load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    library.fastnn_emulator_selftest_list.restype = ctypes.c_char_p
    library.fastnn_emulator_selftest_run.restype = ctypes.c_char_p
    library.fastnn_emulator_selftest_run.argtypes = [ctypes.c_char_p]
    library.fastnn_emulator_seed.restype = ctypes.c_uint64
    library.fastnn_emulator_set_seed.argtypes = [ctypes.c_uint64]
    return library


@functools.cache
def cases() -> tuple[Case, ...]:
    return tuple(Case(*line.split("\t")) for line in load().fastnn_emulator_selftest_list().decode().splitlines())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Arguments called `correct` and `faulty` are the cases of that kind."""
    for kind in ("correct", "faulty"):
        if kind in metafunc.fixturenames:
            chosen = [case for case in cases() if (case.expected != "") == (kind == "faulty")]
            metafunc.parametrize(kind, chosen, ids=[case.name for case in chosen])


@pytest.fixture(params=[(0, 1), (0, 8), (1, 3), (2, 3), (3, 1)], ids=lambda p: f"seed{p[0]}-workers{p[1]}")
def emulator(request: pytest.FixtureRequest) -> Iterator[ctypes.CDLL]:
    """The library, running threads in natural order (seed 0) or in a random one, on some OS threads."""
    library = load()
    seed, workers = library.fastnn_emulator_seed(), library.fastnn_emulator_workers()
    library.fastnn_emulator_set_seed(request.param[0])
    library.fastnn_emulator_set_workers(request.param[1])
    yield library
    library.fastnn_emulator_set_seed(seed)
    library.fastnn_emulator_set_workers(workers)


def run(library: ctypes.CDLL, name: str) -> str | None:
    message = library.fastnn_emulator_selftest_run(name.encode())
    return None if message is None else message.decode()


def test_correct_kernel_is_right_and_not_accused(emulator: ctypes.CDLL, correct: Case) -> None:
    assert run(emulator, correct.name) is None


def test_mistake_is_caught(emulator: ctypes.CDLL, faulty: Case) -> None:
    message = run(emulator, faulty.name)
    assert message is not None, "nothing was noticed"
    # In another order another thread, or another sign of the same mistake, may come first.
    if emulator.fastnn_emulator_seed() == 0:
        assert re.search(faulty.expected, message), message


def test_cases_are_what_the_comparison_with_a_device_expects() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len(set(names))
    assert {case.tool for case in cases()} <= {"memcheck", "racecheck", "initcheck", "synccheck", "none", "hangs"}
    assert sum(case.expected != "" for case in cases()) >= 25


def test_launches_work_after_one_that_failed(emulator: ctypes.CDLL) -> None:
    for _ in range(3):
        assert run(emulator, "barrier_once_too_often") is not None
        assert run(emulator, "lane_at_the_barrier_instead") is not None
        assert run(emulator, "barriers_in_a_loop") is None
