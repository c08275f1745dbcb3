"""The backends on which op tests run, and which of the cases each of them gets.

``cpu`` always; ``cuda`` where torch sees a device; ``emulated`` runs the CUDA kernels on CPU tensors under the
emulator of ``tests/emulator``. Without the emulator's library the emulated tests fail and say how to build it;
``FASTNN_TEST_EMULATOR=0`` leaves them out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

# Threads that wait for work must not spin: the emulator and other workers need the cores. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# scikit-learn brings an OpenMP runtime of its own, which asks for static thread-local storage: little of that is left
# once a process has loaded all that the other tests load.
with contextlib.suppress(ImportError):
    import sklearn.datasets  # noqa: F401

import pytest
import torch
from hypothesis import settings

from fastnn.testing.emulation import emulated_cuda

settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci")


@dataclass(frozen=True)
class Backend:
    """Where the kernels run: ``name`` is cpu, cuda or emulated; ``device`` is where the tensors are."""

    name: str
    device: torch.device


def backend_names() -> list[str]:
    names = ["cpu"]
    if torch.cuda.is_available():
        names.append("cuda")
    if os.environ.get("FASTNN_TEST_EMULATOR", "1") != "0":
        names.append("emulated")
    return names


@pytest.fixture(params=backend_names())
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Runs the test once on each backend; emulated ones run with the emulator switched on."""
    if request.param == "emulated":
        with emulated_cuda():
            yield Backend("emulated", torch.device("cpu"))
    else:
        yield Backend(request.param, torch.device(request.param))


def _affordable_in_emulator(params: dict) -> bool:
    """The emulator runs every thread on the CPU: small cases and those that cross a tile's edge, and of the
    dtypes other than float32 the two native layouts alone; of the gradient checks, the quick ones."""
    case, check = params.get("case"), params.get("check")
    if check is not None and not check.quick:
        return False
    if case is not None and not (case.small or case.crosses_tile):
        return False
    return params.get("dtype") in (None, torch.float32) or params.get("layout") in (
        None,
        "contiguous",
        "channels_last",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    dropped = [
        item
        for item in items
        if hasattr(item, "callspec")
        and item.callspec.params.get("backend") == "emulated"
        and not _affordable_in_emulator(item.callspec.params)
    ]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        gone = set(dropped)
        items[:] = [item for item in items if item not in gone]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread for each test, so that pytest-xdist's workers do not crowd each other and a test cannot leave its
    number behind. The checks of repeatability compare it with two threads, bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
