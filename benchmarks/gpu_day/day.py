"""The day: stages one after the other, each within its share of the time, and the summary of all."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_day import files, machine
from gpu_day.files import FAILED, PASSED, SKIPPED, STOPPED
from gpu_day.process import Command, Ended, Stop, run_all

SCHEMA = 1
# A stage with less than this learns nothing but that Python starts.
LEAST_SECONDS = 2.0
# What the summary and the table have of a stage's failures; its own record has all.
MOST_FAILURES = 20


@dataclass
class Outcome:
    """What a stage has come to.

    Attributes:
        status: ``passed``; ``failed``: something is wrong; ``stopped``: the time was up, and nothing was wrong until
            then; ``skipped``: it could not run.
        reason: of every status but ``passed``, in a line.
        counts: numbers worth a place in the summary.
        failures: what was wrong, a line each.
        finished: whether all was done, right or wrong.
    """

    status: str = PASSED
    reason: str | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    finished: bool = True

    @staticmethod
    def of(counts: dict[str, Any], failures: Sequence[str], unfinished: str | None) -> Outcome:
        """The verdict: a failure is one also when the time was up; ``unfinished`` says why not all was done."""
        shown = list(failures[:MOST_FAILURES])
        if failures:
            reason = f"{len(failures)} wrong" + (f"; {unfinished}" if unfinished else "")
            return Outcome(FAILED, reason, counts, shown, finished=not unfinished)
        return Outcome(STOPPED, unfinished, counts, finished=False) if unfinished else Outcome(PASSED, None, counts)


@dataclass(frozen=True)
class Settings:
    """What the stages are told.

    Attributes:
        device: ``cuda`` or ``cpu``.
        out: folder of the records.
        work: folder of what is built, kept between runs.
        gpu: what ``machine.find_gpu`` says; None for a dry run.
        cores: of the processor that may be used.
        stop: whether somebody wants the day to end.
    """

    device: str
    out: Path
    work: Path
    gpu: Mapping[str, str] | None
    cores: int
    stop: Stop

    @property
    def dry(self) -> bool:
        """Whether there is no GPU, and every stage has its small form."""
        return self.device == "cpu"

    @property
    def site(self) -> Path:
        """Where the build stage installs."""
        return self.work / "site"

    def environment(self, **more: str) -> dict[str, str]:
        """That of a stage, with the fastnn that was built for the GPU, else the checkout's, else what is installed."""
        paths = [str(machine.ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
        if not self.dry and (self.site / "fastnn").is_dir():
            paths.insert(0, str(self.site))
        elif any((machine.ROOT / "fastnn").glob("_C.*")):
            paths.insert(0, str(machine.ROOT))
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            # What a user's runs have found is neither used nor overwritten.
            "FASTNN_CACHE_DIR": "",
            **more,
        }

    def command(self, words: Sequence[str], log: str, **more: Any) -> Command:
        """A Python command, run away from the tree so that the package of ``environment`` is the one imported."""
        environment = self.environment(**more.pop("environment", {}))
        words = [sys.executable, *words]
        return Command(words, self.out / "logs" / f"{log}.txt", environment, self.work, **more)

    def run(self, commands: Sequence[Command], seconds: float, jobs: int = 1) -> list[Ended]:
        """See ``process.run_all``."""
        return run_all(commands, seconds, self.stop, jobs)


@dataclass(frozen=True)
class Stage:
    """One of the questions.

    Attributes:
        name: of it, in ``--only``, in the summary, and of its record.
        share: of the time, beside the other stages'. What a stage leaves over goes to those behind it.
        learns: what it finds out, in a line.
        run: does it within some seconds.
        needs_fastnn: whether it is skipped where fastnn cannot be used on the device.
    """

    name: str
    share: float
    learns: str
    run: Callable[[Settings, float], Outcome]
    needs_fastnn: bool = True


class Day:
    """Runs stages and keeps the summary.

    Args:
        settings: what they are told.
        minutes: for all of it.
        commit: of the source, where git cannot tell.
        pack: archive that is written anew after each stage; None for none.
        arguments: of the command line, for the summary.
    """

    def __init__(
        self, settings: Settings, minutes: float, commit: str | None, pack: Path | None, arguments: Sequence[str]
    ) -> None:
        self.settings, self.pack = settings, pack
        self.began = time.monotonic()
        self.deadline = self.began + 60 * minutes
        self.summary: dict[str, Any] = {
            "schema": SCHEMA,
            "device": dict(settings.gpu or machine.describe_cpu()),
            "dry_run": settings.dry,
            "versions": {"nvcc": machine.find_nvcc()},
            "commit": commit or machine.find_commit(),
            "date": machine.today(),
            "arguments": list(arguments),
            "minutes": minutes,
            "seconds": 0.0,
            "complete": False,
            "stages": {},
        }

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.deadline - time.monotonic()

    @property
    def minutes_gone(self) -> float:
        """Since the beginning."""
        return (time.monotonic() - self.began) / 60

    @property
    def statuses(self) -> list[str]:
        """Of the stages so far."""
        return [noted["status"] for noted in self.summary["stages"].values()]

    def run(self, stages: Sequence[Stage], say: Callable[[str], None]) -> None:
        """Runs the stages.

        Args:
            stages: in their order.
            say: gets a line when one begins and when it ends.
        """
        known: dict[str, Any] | str | None = None
        for index, stage in enumerate(stages):
            share = stage.share / sum(other.share for other in stages[index:])
            seconds = self.left * share
            if stage.needs_fastnn and known is None and self._may_go_on(seconds) is None:
                known = machine.probe(sys.executable, self.settings.environment(), self.settings.work)
                self._note_versions(known)
                seconds = self.left * share  # the probe took some
            outcome = self._skip(stage, seconds, known)
            began = time.monotonic()
            if outcome is None:
                say(f"{stage.name}: {stage.learns} (at most {seconds:.0f} s)")
                self._note(stage, Outcome("running"), 0.0, seconds)
                try:
                    outcome = stage.run(self.settings, seconds)
                except Exception as error:  # the stages behind it have other questions
                    outcome = Outcome(FAILED, f"the stage itself broke: {type(error).__name__}: {error}")
            self._note(stage, outcome, time.monotonic() - began, seconds)
            say(f"{stage.name}: {outcome.status}" + (f", {outcome.reason}" if outcome.reason else ""))
        self.summary["complete"] = all(noted["finished"] for noted in self.summary["stages"].values())
        self._write()

    def _may_go_on(self, seconds: float) -> str | None:
        """None, or why nothing more is begun."""
        if self.settings.stop.reason is not None:
            return self.settings.stop.reason
        return "no time was left" if seconds < LEAST_SECONDS else None

    def _skip(self, stage: Stage, seconds: float, known: dict[str, Any] | str | None) -> Outcome | None:
        why = self._may_go_on(seconds)
        if why is None and stage.needs_fastnn and known is not None:
            why = machine.why_unusable(known, self.settings.device)
        return None if why is None else Outcome(SKIPPED, why)

    def _note_versions(self, known: dict[str, Any] | str) -> None:
        if isinstance(known, str):
            return
        wanted = ("version", "torch", "torch_cuda", "python", "platform")
        self.summary["versions"] |= {("fastnn" if name == "version" else name): known[name] for name in wanted}

    def _note(self, stage: Stage, outcome: Outcome, seconds: float, limit: float) -> None:
        self.summary["stages"][stage.name] = {
            "status": outcome.status,
            "finished": outcome.finished and outcome.status in (PASSED, FAILED),
            "reason": outcome.reason,
            "seconds": round(seconds, 2),
            "limit": round(max(limit, 0.0), 2),
            "counts": outcome.counts,
            "failures": outcome.failures,
        }
        self._write()

    def _write(self) -> None:
        self.summary["seconds"] = round(time.monotonic() - self.began, 2)
        files.write(self.settings.out / "summary.json", self.summary)
        if self.pack is not None:
            with contextlib.suppress(OSError):  # the records themselves are there
                files.pack(self.settings.out, self.pack)


def table(summary: Mapping[str, Any]) -> str:
    """The summary for the eye, failures below: what a reader of the last lines needs."""
    device = summary["device"]
    commit = summary["commit"] or "commit unknown: --commit names it"
    head = ", ".join(filter(None, (device["name"], device.get("driver"), commit, summary["date"][:10])))
    lines = [head + (" (dry run on the CPU)" if summary["dry_run"] else ""), ""]
    for name, noted in summary["stages"].items():
        counts = ", ".join(f"{value} {key}" for key, value in noted["counts"].items())
        lines.append(f"{name:10} {noted['status']:8} {noted['seconds']:7.1f} s  {noted['reason'] or counts}")
    for name, noted in summary["stages"].items():
        if noted["failures"]:
            lines += ["", f"{name}:", *(f"  {line[:300]}" for line in noted["failures"])]
    return "\n".join(lines)
