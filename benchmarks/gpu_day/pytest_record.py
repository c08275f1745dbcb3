"""A pytest plugin for the tests' stage: GPU tests first, a record as results come, and no test on a lost device.

``GPU_DAY_TESTS`` names the record, ``GPU_DAY_BACKEND`` the backend whose tests are wanted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_day import files

SECONDS_BETWEEN_WRITES = 1.0


def pytest_configure(config: pytest.Config) -> None:
    """The process that hears of all results keeps the record: pytest-xdist's workers do not."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(os.environ["GPU_DAY_TESTS"])), "gpu_day_recorder")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out other backends; those of the wanted one come first, then those that have none."""
    wanted = os.environ["GPU_DAY_BACKEND"]

    def backend(item: pytest.Item) -> str | None:
        return item.callspec.params.get("backend") if hasattr(item, "callspec") else None

    dropped = [item for item in items if backend(item) not in (wanted, None)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    items[:] = [
        *(item for item in items if backend(item) == wanted),
        *(item for item in items if backend(item) is None),
    ]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Ends a worker whose device is lost, after the test that lost it: xdist then starts another."""
    yield
    if hasattr(item.config, "workerinput") and os.environ["GPU_DAY_BACKEND"] == "cuda" and _lost():
        os._exit(3)


def _lost() -> bool:
    import torch

    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:  # an error of a kernel stays with the process
        return True
    return False


class Recorder:
    """Writes what is known about once a second.

    Args:
        path: of the record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.record: dict[str, Any] = {"planned": None, "complete": False}
        self._written = 0.0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Without pytest-xdist this process collects."""
        if session.items:
            self.record["planned"] = len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """With it the workers do, all the same."""
        self.record["planned"] = len(ids)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that cannot be imported is a failure of its own."""
        if report.failed:
            self._fail(report.nodeid or "collection", report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for set-up, call and tear-down of every test."""
        if report.failed:
            self._fail(report.nodeid, report)
        elif report.when == "call" or report.skipped:
            self.outcomes.setdefault(report.nodeid, report.outcome)
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.write()

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Whether all was done: statuses 0 and 1."""
        self.record["complete"] = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        self.write()

    def write(self) -> None:
        """The record as it is now."""
        counts = {kind: 0 for kind in ("passed", "failed", "skipped")}
        for outcome in self.outcomes.values():
            counts[outcome] += 1
        failures = [{"name": name, "what": what} for name, what in self.failures.items()]
        files.write(self.path, {**self.record, "counts": counts, "failures": failures})
        self._written = time.monotonic()

    def _fail(self, name: str, report: Any) -> None:
        crash = getattr(report.longrepr, "reprcrash", None)
        what = crash.message if crash is not None else report.longreprtext
        # A worker that ended after its test has one report of the test and one of its own end: the first is the cause.
        self.failures.setdefault(name, what.strip()[:600])
        self.outcomes[name] = "failed"
