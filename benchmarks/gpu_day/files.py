"""Records on disk: written all or not at all, so that whatever ends a process leaves the last whole one."""

from __future__ import annotations

import json
import os
import tarfile
import time
from pathlib import Path
from typing import Any

PASSED, FAILED, STOPPED, SKIPPED = "passed", "failed", "stopped", "skipped"
SECONDS_BETWEEN_WRITES = 0.5


def write(path: Path, record: Any) -> None:
    """Writes JSON in the place of what was there; ``fastnn.bench.record.save`` needs a fastnn that is built.

    Raises:
        OSError: the folder cannot be written to.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def read(path: Path) -> Any:
    """A record; None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def pack(folder: Path, archive: Path) -> None:
    """Packs a folder of records into one ``.tar.gz``: the summary first, logs last, so that a part is worth something.

    Raises:
        OSError: it cannot be written.
    """
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(f".{archive.name}.part")
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    with tarfile.open(part, "w:gz") as tar:
        for path in sorted(found, key=lambda path: (path.name != "summary.json", path.suffix != ".json", path)):
            if path.resolve() != archive.resolve():
                tar.add(path, arcname=path.relative_to(folder))
    os.replace(part, archive)


class Journal:
    """The items of a worker and what became of each, on disk as it happens.

    A worker that was killed, or whose device is lost, has left the item that it was at, in a small file beside; the
    next one, which opens the same journal, counts that item as failed and goes on behind it. What passed is written
    about twice a second, since a journal of thousands of items is long: a worker that dies may have some to do again.

    Args:
        path: of the file.
        facts: what stands above the items.
    """

    def __init__(self, path: Path, **facts: Any) -> None:
        self.path = path
        self.record: dict[str, Any] = {**facts, "planned": None, "complete": False}
        self.record["items"] = (read(path) or {}).get("items", [])
        left = at_item(path)
        if left is not None:
            self.record["items"].append({"status": FAILED, "what": "the process died in it", **left})
        self._written = 0.0
        self._write()
        self._marker.unlink(missing_ok=True)

    @property
    def _marker(self) -> Path:
        return marker_of(self.path)

    @property
    def done(self) -> set[str]:
        """Names of the items that are behind us."""
        return {item["name"] for item in self.record["items"]}

    def begin(self, name: str) -> None:
        """Notes what is looked at now."""
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self._write()
        write(self._marker, {"name": name})
        self._name = name

    def end(self, status: str, what: str | None = None, **facts: Any) -> None:
        """Notes what became of it.

        Args:
            status: ``passed``, ``failed`` or ``skipped``.
            what: is wrong, or why it was skipped.
            facts: what else is worth keeping.
        """
        item = {"name": self._name, "status": status, **({} if what is None else {"what": what}), **facts}
        self.record["items"].append(item)
        if status == FAILED:
            self._write()
        self._marker.unlink(missing_ok=True)

    def close(self, complete: bool) -> None:
        """Writes the last of it. An item that was interrupted has no verdict."""
        self.record["complete"] = complete
        self._write()
        self._marker.unlink(missing_ok=True)

    def _write(self) -> None:
        write(self.path, self.record)
        self._written = time.monotonic()


def marker_of(journal: Path) -> Path:
    """The file that names the item that is looked at now."""
    return journal.with_name(f".{journal.stem}.running")


def at_item(journal: Path) -> dict[str, Any] | None:
    """The item that a worker is at or has died in; None for none."""
    return read(marker_of(journal))


def lose(journal: Path, what: str) -> None:
    """Says what became of the item at which a worker was ended."""
    item = at_item(journal)
    if item is not None:
        write(marker_of(journal), {**item, "what": what})
