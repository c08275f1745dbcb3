"""Processes with a time limit: asked to end, then killed with all that they have started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Between the request to end and the kill: time to write a record.
GRACE_SECONDS = 5.0
POLL_SECONDS = 0.05


class Stop:
    """Whether somebody wants everything to end: Ctrl-C or SIGTERM. A second one grants no time to write."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.again = False

    def listen(self) -> None:
        """Takes the signals of this process.

        Children are in sessions of their own and see none of a terminal's signals: they end by ours. A handler also
        makes sure that they begin with the default action, which a shell's background job does not have for SIGINT.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: object) -> None:
        self.again = self.reason is not None
        self.reason = self.reason or f"stopped by {signal.Signals(number).name}"


@dataclass(frozen=True)
class Command:
    """What to run.

    Attributes:
        words: of the command line.
        log: file that takes what it prints.
        environment: of it; None for ours.
        folder: in which it runs; None for ours.
        hangs: asked again and again; true where it should be killed now.
    """

    words: Sequence[str]
    log: Path
    environment: Mapping[str, str] | None = None
    folder: Path | None = None
    hangs: Callable[[], bool] | None = None


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        command: which.
        status: its exit status, negative for a signal; None where it never began.
        cut: why we ended it; None where it ended by itself.
        seconds: that it took.
    """

    command: Command
    status: int | None = None
    cut: str | None = None
    seconds: float = 0.0

    @property
    def said(self) -> str:
        """The last line that it printed, for the summary."""
        try:
            lines = self.command.log.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


@dataclass
class _Running:
    ended: Ended
    process: subprocess.Popen[bytes]
    began: float
    asked: float | None = None
    killed: bool = field(default=False)

    def over(self) -> bool:
        """Whether the process has ended. It is not reaped yet, so its number cannot be another's."""
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def ask(self, why: str) -> None:
        """Asks it to end: Ctrl-C to the process that we started, which is the one that writes records."""
        self.asked, self.ended.cut = time.monotonic(), why
        os.kill(self.process.pid, signal.SIGINT)

    def kill(self, why: str | None = None) -> None:
        """Kills its whole group."""
        self.ended.cut = self.ended.cut or why
        self.killed = True
        # It leads a session, so the group has its number, and cannot be another's while it is not reaped.
        os.killpg(self.process.pid, signal.SIGKILL)

    def collect(self) -> Ended:
        """Ends what it has left behind, and reaps it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.ended.status = self.process.wait()
        self.ended.seconds = time.monotonic() - self.began
        return self.ended


def run_all(
    commands: Sequence[Command], seconds: float, stop: Stop, jobs: int = 1, grace: float = GRACE_SECONDS
) -> list[Ended]:
    """Runs commands, some at a time, until all have ended or the time is up.

    Args:
        commands: in the order in which they begin.
        seconds: for all of them, the grace included.
        stop: ends them when somebody wants that.
        jobs: how many at a time.
        grace: between the request to end and the kill; at most half of ``seconds``.

    Returns:
        For each command how it ended.
    """
    grace = min(grace, seconds / 2)
    deadline = time.monotonic() + seconds - grace
    results = [Ended(command) for command in commands]
    waiting, active = deque(results), list[_Running]()
    try:
        while waiting or active:
            why = stop.reason or ("its time was up" if time.monotonic() >= deadline else None)
            while waiting and len(active) < jobs and why is None:
                active.append(_start(waiting.popleft()))
            if why is not None:
                for ended in waiting:
                    ended.cut = why
                waiting.clear()
            for running in active:
                _look_after(running, why, grace, stop)
            for running in [running for running in active if running.over()]:
                running.collect()
                active.remove(running)
            if active or waiting:
                time.sleep(POLL_SECONDS)
    finally:
        for running in active:  # only where an exception is on its way
            running.collect()
    return results


def _start(ended: Ended) -> _Running:
    command = ended.command
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("ab") as log:
        process = subprocess.Popen(
            command.words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=None if command.environment is None else dict(command.environment),
            cwd=command.folder,
            start_new_session=True,
        )
    return _Running(ended, process, time.monotonic())


def _look_after(running: _Running, why: str | None, grace: float, stop: Stop) -> None:
    """Asks or kills one that should end."""
    if running.killed or running.over():
        return
    if running.asked is not None:
        if stop.again or time.monotonic() - running.asked > grace:
            running.kill()
    elif why is not None:
        running.ask(why)
    elif running.ended.command.hangs is not None and running.ended.command.hangs():
        running.kill("it hung")
