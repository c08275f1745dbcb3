"""The driver of compute-sanitizer: its four tools over the worker ``small``, and what they report by item."""

from __future__ import annotations

import concurrent.futures
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_day import files, machine, workers
from gpu_day.day import Outcome, Settings
from gpu_day.files import PASSED, SKIPPED, STOPPED
from gpu_day.process import Ended

# One source for how its reports read.
sys.path.insert(0, str(machine.ROOT / "tools"))

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
KERNELS = "kernels"
MARK = "@@ "  # begins the line that the worker prints before each item
FOUND = 86  # its exit status when it has something to report
SOURCES = machine.ROOT / "csrc" / "cuda"
DEFINITION = re.compile(r"__global__[^;{]*?\b(\w+_kernel)\(")
# Each tensor an allocation of its own: in a block of torch's cache a kernel may run past its tensor unseen.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def parts(dry: bool) -> tuple[str, ...]:
    """What the stage runs side by side, by name: the tools, and which kernels the cases reach."""
    return ("plain", KERNELS) if dry else (*TOOLS, KERNELS)


def find() -> str | None:
    """The program; None without one."""
    from compare_sanitizer import find_nvcc, find_sanitizer

    nvcc = find_nvcc()
    return find_sanitizer(nvcc if nvcc is not None else sys.executable)


def run(settings: Settings, seconds: float, program: str | None) -> Outcome:
    """Runs all parts at the same time, and merges what they say.

    Args:
        settings: of the day.
        seconds: for all.
        program: compute-sanitizer; None for a dry run.
    """
    names = parts(settings.dry)

    def work(part: str) -> tuple[Ended, str | None]:
        journal = _journal(settings, part)
        worker = workers.command(settings, "small", journal, *(["--kernels"] if part == KERNELS else []))
        if part in TOOLS:
            under = [program, "--tool", part, "--error-exitcode", str(FOUND), "--print-limit", "10000"]
            environment = {**worker.environment, **ENVIRONMENT}
            worker = replace(worker, words=[*under, *worker.words], environment=environment)
        # Under the tools the first item takes as long as it takes to instrument a library of a thousand kernels.
        return workers.keep_working(settings, worker, journal, seconds, hang=seconds)

    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        ended = dict(zip(names, pool.map(work, names), strict=True))
    return _merge(settings, ended)


def _merge(settings: Settings, parts_ended: Mapping[str, tuple[Ended, str | None]]) -> Outcome:
    counts: dict[str, Any] = {}
    failures: list[str] = []
    unfinished, refused = [], []
    for part, (ended, broken) in parts_ended.items():
        journal = files.read(_journal(settings, part))
        if journal is None or journal["planned"] is None:
            # A tool may refuse a device; a worker by itself has no reason to fail.
            why = f"{part}: {ended.cut or ended.said}"
            (refused if part in TOOLS or ended.cut else failures).append(why)
            continue
        outcome = workers.judge(_journal(settings, part), ended, broken)
        counts[part] = outcome.counts[PASSED]
        failures += [f"{part}: {line}" for line in outcome.failures]
        if part in TOOLS:
            reports = list(read(ended.command.log.read_text(encoding="utf-8", errors="replace")))
            files.write(_journal(settings, part), {**journal, "reports": reports})
            ours = [report for report in reports if report["fastnn"]]
            failures += [f"{part}: {r['item']}: {r['what']} ({r['times']} times)" for r in ours]
            if len(reports) > len(ours):
                counts[f"{part} elsewhere"] = len(reports) - len(ours)
        if not journal["complete"]:
            unfinished.append(f"{part} {len(journal['items'])} of {journal['planned']}")
    counts |= _note_kernels(settings)
    if len(refused) == len(parts_ended):
        cut = any(ended.cut for ended, _ in parts_ended.values())
        return Outcome(STOPPED if cut else SKIPPED, "; ".join(refused))
    why = [f"not run: {what}" for what in refused]
    if unfinished:
        why.append(f"not finished: {', '.join(unfinished)}")
    return Outcome.of(counts, failures, "; ".join(why) or None)


def _journal(settings: Settings, part: str) -> Path:
    return settings.out / f"sanitizer-{part}.json"


def read(text: str) -> Iterable[Mapping[str, Any]]:
    """The reports in what a tool has printed, equal ones of an item as one with their number.

    A report begins with a line that names an error, and ends with an empty one; ``fastnn`` says whether a kernel of
    ours stands in it.
    """
    from compare_sanitizer import REPORT

    found: Counter[tuple[str, str, bool]] = Counter()
    item, lines = "before the first item", []

    def close() -> None:
        if lines:
            found[(item, REPORT.match(lines[0])["what"].strip(), any("fastnn::" in line for line in lines))] += 1
        lines.clear()

    for line in text.splitlines():
        if line.startswith(MARK):
            close()
            item = line[len(MARK) :].strip()
        elif REPORT.match(line):
            close()
            lines.append(line)
        elif lines and re.fullmatch(r"=+ *", line):
            close()
        elif lines:
            lines.append(line)
    close()
    for (item, what, ours), times in found.items():
        yield {"item": item, "what": what, "fastnn": ours, "times": times}


def known_kernels() -> set[str]:
    """Names of all kernels that the sources define, without their template's arguments."""
    sources = [path.read_text(encoding="utf-8") for path in SOURCES.iterdir() if path.suffix in (".cu", ".cuh")]
    return {name for text in sources for name in DEFINITION.findall(text)}


def _note_kernels(settings: Settings) -> dict[str, int]:
    """Adds to the kernels' record which ran; and on a GPU, where they have their own names, which never did."""
    path = _journal(settings, KERNELS)
    record = files.read(path)
    if record is None:
        return {}
    ran = {name for item in record["items"] for name in item.get("kernels", ())}
    if settings.dry:
        files.write(path, {**record, "kernels": sorted(ran)})
        return {"names of launches": len(ran)}
    missing = sorted(known_kernels() - ran)
    files.write(path, {**record, "kernels": sorted(ran), "not reached": missing})
    return {"kernels ran": len(ran), "never": len(missing)}
