"""The driver's side of the workers: keeps one going until it has been through all items, and reads its journal."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from gpu_day import files
from gpu_day.day import Outcome, Settings
from gpu_day.files import FAILED, PASSED, SKIPPED, STOPPED
from gpu_day.process import Command, Ended

# An item that takes longer is taken for a kernel that hangs: the first has the device's context to make.
HANG_SECONDS = 30.0
HUNG = "it hung"


class Watch:
    """Looks at a journal for the item that takes too long."""

    def __init__(self, journal: Path, seconds: float) -> None:
        self.journal, self.seconds = journal, seconds
        self._item: str | None = None
        self._since = time.monotonic()

    def hangs(self) -> bool:
        """Whether it has been the same item for too long."""
        item = (files.at_item(self.journal) or {}).get("name")
        if item != self._item:
            self._item, self._since = item, time.monotonic()
        return item is not None and time.monotonic() - self._since > self.seconds


def command(settings: Settings, name: str, journal: Path, *words: str) -> Command:
    """That of the worker of a name; its log has the journal's name."""
    options = [*words, "--device", settings.device, "--journal", str(journal)]
    return settings.command(["-m", "gpu_day.worker", name, *options], journal.stem)


def keep_working(
    settings: Settings, worker: Command, journal: Path, seconds: float, hang: float = HANG_SECONDS
) -> tuple[Ended, str | None]:
    """Runs a worker, and again where it died in an item, until it has been through all.

    Args:
        settings: of the day.
        worker: its command.
        journal: its journal.
        seconds: for all.
        hang: what an item may take.

    Returns:
        How the last one ended; and why it makes no sense to go on, where that is so.
    """
    deadline = time.monotonic() + seconds
    while True:
        watch = Watch(journal, hang)
        before = _behind(journal)
        (ended,) = settings.run([replace(worker, hangs=watch.hangs)], max(0.1, deadline - time.monotonic()))
        if ended.cut == HUNG:
            files.lose(journal, f"took more than {watch.seconds:.0f} s: it hangs")
        elif ended.cut is not None or (files.read(journal) or {}).get("complete"):
            return ended, None
        else:
            files.lose(journal, f"the process died in it, status {ended.status}: {ended.said}")
        if _behind(journal) <= before:
            return ended, f"the worker ended with status {ended.status}: {ended.said}"


def _behind(journal: Path) -> int:
    """How many items will be behind the next worker that opens the journal."""
    record = files.read(journal) or {"items": []}
    return len(record["items"]) + (files.at_item(journal) is not None)


def judge(journal: Path, ended: Ended, broken: str | None) -> Outcome:
    """What a worker's journal comes to."""
    record = files.read(journal)
    if record is None or record["planned"] is None:
        why = broken or ended.cut or f"status {ended.status}: {ended.said}"
        return Outcome(STOPPED if ended.cut and not broken else FAILED, f"no item was looked at: {why}")
    items = record["items"]
    counts = {status: sum(item["status"] == status for item in items) for status in (PASSED, FAILED, SKIPPED)}
    failures = [f"{item['name']}: {item['what']}" for item in items if item["status"] == FAILED]
    unfinished = None
    if not record["complete"]:
        item = files.at_item(journal)
        at = f", in {item['name']}" if item else ""
        unfinished = f"{len(items)} of {record['planned']}{at}: {broken or ended.cut}"
        if broken:
            failures.append(broken)
    return Outcome.of({**counts, "planned": record["planned"]}, failures, unfinished)
