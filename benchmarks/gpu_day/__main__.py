"""The command line: see ``docs/gpu_day.md``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpu_day import files, machine
from gpu_day.day import Day, Settings, Stage, table
from gpu_day.process import Stop
from gpu_day.stages import STAGES

PASSED, FAILED, USAGE_ERROR, INTERRUPTED = 0, 1, 2, 130


def parser() -> argparse.ArgumentParser:
    """The options."""
    stages = "\n".join(f"  {stage.name:10} {stage.learns}" for stage in STAGES)
    made = argparse.ArgumentParser(
        prog="gpu_day.sh",
        description="Runs what a GPU is needed for, the most important first, and stops when its time is up.",
        epilog=f"stages, in their order:\n{stages}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the records and logs")
    made.add_argument("--minutes", type=_minutes, default=10.0, metavar="M", help="for all of it (default: 10)")
    made.add_argument(
        "--only", action="append", metavar="STAGE", help="this stage alone; may be given again, or with commas between"
    )
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: see --dry-run")
    made.add_argument(
        "--dry-run", action="store_const", dest="device", const="cpu", help="every stage on the CPU, in a small form"
    )
    made.add_argument("--commit", metavar="NAME", help="of the source, where git cannot tell")
    made.add_argument(
        "--work", type=Path, default=machine.ROOT / "build" / "gpu_day", metavar="DIR", help="folder of the build, kept"
    )
    made.add_argument("--pack", type=Path, metavar="FILE.tar.gz", help="also pack --out there, after each stage")
    return made


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < 24 * 60:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and a day")
    return value


def choose(names: Sequence[str] | None) -> list[Stage]:
    """The stages of these names, in their order.

    Raises:
        ValueError: there is none of such a name.
    """
    if names is None:
        return list(STAGES)
    wanted = [name.strip() for text in names for name in text.split(",")]
    known = [stage.name for stage in STAGES]
    for name in wanted:
        if name not in known:
            raise ValueError(f"--only {name}: choose from {', '.join(known)}")
    return [stage for stage in STAGES if stage.name in wanted]


def make_folder(option: str, folder: Path) -> Path:
    """Makes a folder that can be written to, before minutes are spent.

    Raises:
        ValueError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{option} {folder}: cannot write there: {error.strerror or error}") from None
    return folder.resolve()


def main(words: Sequence[str] | None = None) -> int:
    """Runs the day.

    Returns:
        The exit status: 0; 1 if a stage failed, or none could run; 2 if it cannot run as asked; 130 if it was stopped
        by a signal and nothing had failed.
    """
    words = list(sys.argv[1:] if words is None else words)
    arguments = parser().parse_args(words)
    try:
        stages = choose(arguments.only)
        gpu = machine.find_gpu() if arguments.device == "cuda" else None
        if arguments.device == "cuda" and gpu is None:
            raise ValueError("no GPU here: nvidia-smi names none. --dry-run runs every stage on the CPU")
        out = make_folder("--out", arguments.out)
        work = make_folder("--work", arguments.work)
        pack = arguments.pack
        if pack is not None:
            pack = make_folder("--pack", pack.parent) / pack.name
    except ValueError as error:
        print(f"gpu_day: {error}", file=sys.stderr)
        return USAGE_ERROR
    stop = Stop()
    stop.listen()
    settings = Settings(arguments.device, out, work, gpu, len(os.sched_getaffinity(0)), stop)
    day = Day(settings, arguments.minutes, arguments.commit, pack, words)
    day.run(stages, lambda line: print(f"[{day.minutes_gone:4.1f} min] {line}", flush=True))
    print(f"\n{table(day.summary)}\n\nrecords: {out}")
    if files.FAILED in day.statuses:
        return FAILED
    if stop.reason is not None:
        return INTERRUPTED
    return FAILED if set(day.statuses) == {files.SKIPPED} else PASSED


if __name__ == "__main__":
    sys.exit(main())
