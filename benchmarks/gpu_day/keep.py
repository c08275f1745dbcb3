"""``benchmarks/gpu_day.sh keep DIR``: puts a day's benchmarks among the records that the tables are made from.

They are copied to ``benchmarks/results/<device>/<date>-<commit>.json``, the quick ones beside with ``-quick``; where a
record does not know its commit, since it was measured away from git, it is the summary's. Then ``fastnn bench tables``
writes the tables anew.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from gpu_day import files, machine

NAMES = {"bench-quick": "-quick", "bench": ""}


def keep(folder: Path, results: Path, commit: str | None = None) -> list[Path]:
    """Copies the records.

    Args:
        folder: of the day.
        results: folder of results of a checkout.
        commit: of the source, where neither record nor summary knows it.

    Returns:
        The files written.

    Raises:
        ValueError: there is nothing to keep, or a record is none; the text is one line.
    """
    from fastnn.bench import record as records
    from fastnn.bench import session

    summary = files.read(folder / "summary.json")
    if summary is None:
        raise ValueError(f"{folder} has no summary.json")
    written = []
    for name, ending in NAMES.items():
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        record = records.load(path)
        record["commit"] = record["commit"] or commit or summary["commit"]
        if not record["rows"]:
            continue
        day = datetime.date.fromisoformat(record["date"][:10])
        place = session.place_of(record["machine"], day, record["commit"])
        target = results / place.with_name(place.stem + ending + place.suffix)
        records.save(record, target)
        written.append(target)
    if not written:
        raise ValueError(f"{folder} has no benchmark with a row")
    return written


def main(words: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="gpu_day.sh keep", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="what --out was")
    parser.add_argument("--results", type=Path, default=machine.ROOT / "benchmarks" / "results", metavar="DIR")
    parser.add_argument("--commit", metavar="NAME", help="of the source, where the records do not know it")
    arguments = parser.parse_args(words)
    try:
        for path in keep(arguments.folder, arguments.results, arguments.commit):
            print(path)
    except (ValueError, OSError) as error:
        print(f"gpu_day: {error}", file=sys.stderr)
        return 2
    print("now: fastnn bench tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())
