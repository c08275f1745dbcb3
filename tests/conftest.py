"""The backends on which op tests run, and which of the cases each of them gets.

``cpu`` always; ``cuda`` where torch sees a device; ``emulated`` runs the CUDA kernels on CPU tensors under the
emulator of ``tests/emulator``. Without the emulator's library the emulated tests fail and say how to build it;
``FASTNN_TEST_EMULATOR=0`` leaves them out. ``FASTNN_EMULATE=1`` leaves them alone instead, and first builds the
library where it is older than its sources; ``FASTNN_EMULATE=asan`` does so with AddressSanitizer,
``FASTNN_EMULATE=gdb`` for a debugger.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass

# Threads that wait for work must not spin: the emulator and other workers need the cores. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# What tests measure is not kept.
os.environ["FASTNN_CACHE_DIR"] = ""

# scikit-learn brings an OpenMP runtime of its own, which asks for static thread-local storage: little of that is left
# once a process has loaded all that the other tests load.
with contextlib.suppress(ImportError):
    import sklearn.datasets  # noqa: F401

import pytest
import torch
from emulator.build import build
from hypothesis import settings

from fastnn.testing.cases import affordable_in_emulator
from fastnn.testing.emulation import emulated_cuda, execution_order

settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci")


@dataclass(frozen=True)
class Backend:
    """Where the kernels run: ``name`` is cpu, cuda or emulated; ``device`` is where the tensors are."""

    name: str
    device: torch.device

    def repetitions(self) -> list[contextlib.AbstractContextManager[None]]:
        """Contexts for runs that must all give the same bits: the emulator's are other orders of execution."""
        if self.name == "emulated":
            return [execution_order(seed=1, workers=1), execution_order(seed=2, workers=2)]
        return [contextlib.nullcontext() for _ in range(3 if self.name == "cpu" else 10)]


# "1": the emulator alone; the others: that, in another build.
EMULATE = os.environ.get("FASTNN_EMULATE") or "0"
emulator_in_use = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    if EMULATE not in ("0", "1", "asan", "gdb"):
        raise pytest.UsageError(f"FASTNN_EMULATE={EMULATE}: expected 0, 1, asan or gdb")
    if EMULATE == "asan" and "libasan" not in os.environ.get("LD_PRELOAD", ""):
        raise pytest.UsageError(
            "AddressSanitizer must be in the interpreter from its start. This runs the same tests:\n"
            'LD_PRELOAD="$(g++ -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 FASTNN_EMULATE=asan '
            f"{sys.executable} -m pytest {shlex.join(config.invocation_params.args)}"
        )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Builds before pytest-xdist starts its workers, which inherit the environment."""
    config = session.config
    if EMULATE == "0" or hasattr(config, "workerinput"):
        return
    if "FASTNN_EMULATOR_LIBRARY" in os.environ:
        how = "named by FASTNN_EMULATOR_LIBRARY"
    else:
        try:
            path, built = build("checked" if EMULATE == "1" else EMULATE)
        except RuntimeError as error:
            raise pytest.UsageError(str(error)) from error
        os.environ["FASTNN_EMULATOR_LIBRARY"] = str(path)
        how = "built now" if built else "as new as its sources"
    config.stash[emulator_in_use] = f"{os.environ['FASTNN_EMULATOR_LIBRARY']} ({how})"


def pytest_report_header(config: pytest.Config) -> str | None:
    library = config.stash.get(emulator_in_use, None)
    return None if library is None else f"fastnn: emulated CUDA kernels alone, {library}"


@contextlib.contextmanager
def _skipped_without_emulator() -> Iterator[None]:
    """A test that asks for the emulator by itself is skipped where the emulator is left out and was not built."""
    try:
        yield
    except FileNotFoundError as error:
        if os.environ.get("FASTNN_TEST_EMULATOR") != "0" or "FASTNN_TEST_EMULATOR=0" not in str(error):
            raise
        pytest.skip("the emulator is left out and not built")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with _skipped_without_emulator():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with _skipped_without_emulator():
        return (yield)


def backend_names() -> list[str]:
    if EMULATE != "0":
        return ["emulated"]
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
    """The emulator runs every thread on the CPU: a part of the cases, and of the gradient checks the quick ones."""
    check = params.get("check")
    if check is not None and not check.quick:
        return False
    return affordable_in_emulator(params.get("case"), params.get("dtype"), params.get("layout"))


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
def no_tf32() -> Iterator[None]:
    """float32 products are of float32 operands, in torch's kernels and in ours, where a test does not say otherwise."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread for each test, so that pytest-xdist's workers do not crowd each other and a test cannot leave its
    number behind. The checks of repeatability compare it with two threads, bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
