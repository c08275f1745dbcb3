"""``fastnn bench tables``: the tables of the repository, made from the records that it keeps.

``benchmarks/README.md`` has every row of each machine, each suite from the newest record that has it; README.md has a
summary between two markers. Both are what the records give and nothing else: ``--check`` fails where they are not.
"""

from __future__ import annotations

import argparse
import difflib
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastnn.bench import record as records
from fastnn.bench import summary, units

SUCCESS, OUTDATED, USAGE_ERROR = 0, 1, 2
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
RESULTS, PAGE, README = Path("benchmarks/results"), Path("benchmarks/README.md"), Path("README.md")
NOTHING = "No machine has been measured yet."
LAYER_DIRECTIONS, NETWORK_DIRECTIONS = ("forward", "backward"), ("inference", "training_step")


@dataclass
class Results:
    """What lies in the folder of results.

    Attributes:
        machines: the records of each machine, each with its path within the folder, the newest first.
        resources: what each CUDA kernel needs of a multiprocessor, by ``tools/cuda_resources.py``; empty without.
        accesses: how kernels access memory, by ``tools/memory_efficiency.py``; None without.
        sanitizer: the emulator's verdicts against compute-sanitizer's, by ``tools/compare_sanitizer.py``, by folder.
    """

    machines: list[list[tuple[Path, dict[str, Any]]]] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    accesses: dict[str, Any] | None = None
    sanitizer: dict[Path, dict[str, Any]] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``fastnn bench tables`` to a parser."""
    parser.description = (
        f"Writes {PAGE} and the table between the markers {BEGIN} and {END} of {README} from the records under "
        f"{RESULTS}/. They are the only source of measured figures in these files."
    )
    parser.add_argument(
        "--root", type=Path, default=Path(), metavar="DIR", help="a checkout of fastnn (default: the current directory)"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a file is not what the records give"
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes or checks the tables.

    Returns:
        The exit status: 0, 1 when a checked file is out of date, 2 when a record or file cannot be read or written.
    """
    root: Path = arguments.root
    try:
        if not (root / RESULTS).is_dir():
            raise ValueError(f"{root / RESULTS} is no folder; --root names a checkout of fastnn")
        results = collect(root / RESULTS)
        readme = (root / README).read_text(encoding="utf-8")
        wanted = {PAGE: page(results), README: with_summary(readme, results)}
        outdated = 0
        for path, text in wanted.items():
            present = (root / path).read_text(encoding="utf-8") if (root / path).exists() else ""
            if text == present:
                print(f"{path}: up to date")
            elif arguments.check:
                outdated += 1
                print(f"{path}: not what the records give; run `fastnn bench tables`", file=sys.stderr)
                diff = difflib.unified_diff(present.splitlines(), text.splitlines(), "present", "wanted", "", "", 0, "")
                print("\n".join(list(diff)[:20]), file=sys.stderr)
            else:
                (root / path).write_text(text, encoding="utf-8")
                print(f"{path}: written")
    except ValueError as error:
        print(f"fastnn bench tables: {error}", file=sys.stderr)
        return USAGE_ERROR
    except OSError as error:
        print(f"fastnn bench tables: {error.filename}: {error.strerror}", file=sys.stderr)
        return USAGE_ERROR
    return OUTDATED if outdated else SUCCESS


def collect(folder: Path) -> Results:
    """Reads every record of a folder of results.

    Raises:
        ValueError: when one cannot be read or is of no known kind; the text has its path.
    """
    results = Results()
    found = []
    for path in sorted(folder.glob("**/*.json")):
        within = path.relative_to(folder)
        if within == Path("cuda_sass.json"):
            continue  # tools/cuda_sass.py compares with it; it has no figures to show
        if within == Path("cuda_resources.json"):
            results.resources = _parse(path)["rows"]
        elif within == Path("memory_efficiency.json"):
            results.accesses = _parse(path)
        elif path.name == "sanitizer.json":
            results.sanitizer[within.parent] = _parse(path)
        else:
            found.append((within, records.load(path)))
    results.machines = summary.by_machine(found)
    return results


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def with_summary(readme: str, results: Results) -> str:
    """README.md with what stands between its markers made anew.

    Raises:
        ValueError: unless each marker is there once, in their order.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"{README} must have {BEGIN} once and {END} once after it")
    head, rest = readme.split(BEGIN)
    return "".join((head, BEGIN, "\n\n", _join(_summary(results)), "\n", END, rest.split(END)[1]))


def _summary(results: Results) -> list[str]:
    """README.md's part: a few figures for each group of rows, each suite from its newest record of each machine."""
    if not results.machines:
        return [NOTHING]
    parts = []
    for runs in results.machines:
        for _, record in summary.current(runs):
            parts += [f"**{summary.machine_name(record)}**: {_run_line(record)}", *_left_out(record["rows"])]
            for index, dtype in enumerate(dict.fromkeys(row["dtype"] for row in record["rows"])):
                tables = _dtype_tables([row for row in record["rows"] if row["dtype"] == dtype])
                # One dtype is in sight, which keeps the page short.
                parts += [f"{dtype}:", *tables] if index == 0 else _folded(dtype, tables)
    return [*parts, f"Every row: [{PAGE}]({PAGE})."]


def _run_line(record: dict[str, Any]) -> str:
    """Versions, date, commit and limits of a record."""
    limits = record["limits"]
    copies = [limit["copy_bytes_per_second"] for limit in limits.values()]
    words = [f"torch {record['machine']['versions'].get('torch', 'unknown')}", f"measured {summary.day(record)}"]
    words.append(f"commit {record['commit']}" if record["commit"] else "of no commit")
    if copies:
        words.append(f"copy {units.with_unit(statistics.median(copies), 'B/s')}")
    words += [
        f"{dtype} matrix product {units.with_unit(limit['flops_per_second'], 'FLOP/s')}"
        for dtype, limit in limits.items()
    ]
    return ", ".join(words) + ("." if record["complete"] else "; interrupted, so rows are missing.")


def _left_out(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line about the rows that are in no mean."""
    wrong = sum(row["wrong"] is not None for row in rows)
    noisy = sum(row["wrong"] is None and row["noisy"] is not None for row in rows)
    words = [f"**{wrong} wrong**"] if wrong else []
    words += [f"{noisy} noisy"] if noisy else []
    return [f"Of {len(rows)} rows, left out of the means: {' and '.join(words)}."] if words else []


def _dtype_tables(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table of the layers and one of the whole networks, where there are such."""
    layers = [group for group in summary.groups(rows) if group.op != "network"]
    networks = [row for row in rows if row["op"] == "network"]
    return [_layer_table(layers)] * bool(layers) + [_network_table(networks)] * bool(networks)


def _layer_table(groups: Sequence[summary.Group]) -> str:
    """Groups of one dtype, forward and backward side by side."""
    header = ["suite", "op", "layout"]
    for direction in LAYER_DIRECTIONS:
        header += [f"{direction}: × torch", "smallest", "of limit"]
    both: dict[tuple[str, str, str], dict[str, summary.Group]] = {}
    for group in groups:
        both.setdefault((group.suite, group.op, group.layout), {})[group.direction] = group
    lines = []
    for key, directions in both.items():
        cells = list(key)
        for direction in LAYER_DIRECTIONS:
            group = directions.get(direction)
            if group is None:
                cells += [units.MISSING] * 3
            else:
                cells += [units.ratio(group.mean), units.ratio(group.smallest), units.share(group.fraction)]
        lines.append(cells)
    return _table(header, lines, text=3)


def _network_table(rows: Sequence[dict[str, Any]]) -> str:
    """Whole networks of one dtype: inference and training step side by side, and the memory of the latter."""
    header = ["network", "layout"]
    for direction in NETWORK_DIRECTIONS:
        header += [f"{direction.replace('_', ' ')}: × torch", "of limit"]
    header += ["training step: peak memory", "of torch's"]
    both: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        both.setdefault((row["case"], row["layout"]), {})[row["direction"]] = row
    lines = []
    for key, directions in both.items():
        cells = list(key)
        for direction in NETWORK_DIRECTIONS:
            cells += _network_cells(directions.get(direction))
        step = directions.get("training_step", {})
        peaks = step.get("peak_bytes", {}) if step.get("wrong") is None else {}
        mine, theirs = peaks.get("fastnn"), peaks.get("torch")
        cells += [units.size(mine), units.share(mine / theirs if mine is not None and theirs else None)]
        lines.append(cells)
    return _table(header, lines, text=2)


def _network_cells(row: dict[str, Any] | None) -> list[str]:
    if row is None:
        return [units.MISSING] * 2
    if row["wrong"] is not None:
        return ["**wrong**", units.MISSING]
    mark = " (noisy)" if row["noisy"] else ""
    return [units.ratio(row["ratio"].get("torch")) + mark, units.share(row["fraction"].get("fastnn"))]


def page(results: Results) -> str:
    """``benchmarks/README.md``."""
    parts = [
        "<!-- Made by `fastnn bench tables` from the records in results/: do not edit. -->",
        "# Measured",
        "× torch is torch's time over fastnn's, both measured in turn in one run: above 1 fastnn is the faster. *of "
        "limit* is the fraction of what the machine's own copy bandwidth and matrix rate allow, measured in the same "
        "run; above 100 % the data was in a cache. How it is measured: "
        "[docs/benchmarking.md](../docs/benchmarking.md).",
    ]
    if not results.machines:
        parts.append(NOTHING)
    for runs in results.machines:
        parts += _machine(runs)
    if results.resources:
        parts += _resources(results.resources)
    if results.accesses is not None:
        parts += _accesses(results.accesses)
    if results.sanitizer:
        parts += _sanitizer(results.sanitizer)
    return _join(parts)


def _machine(runs: Sequence[tuple[Path, dict[str, Any]]]) -> list[str]:
    """A machine's suites, each from the newest record that has it, and a line for each record that is not shown."""
    shown = summary.current(runs)
    parts = [f"## {summary.machine_name(runs[0][1])}"]
    for path, record in shown or runs[:1]:
        parts += _record(path, record)
    paths = {path for path, _ in shown}
    older = [item for item in runs[1:] if item[0] not in paths]
    if older:
        parts.append("Older:")
        parts.append("\n".join(_older(*item) for item in older))
    return parts


def _record(path: Path, record: dict[str, Any]) -> list[str]:
    machine, rows = record["machine"], record["rows"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [
        f"[{path.name}](results/{path.as_posix()}): {_run_line(record)}",
        f"{versions}; {machine.get('platform', 'unknown platform')}; {machine.get('cores', 'unknown')} cores; load "
        f"{machine.get('load_before', 'unknown')} before, {machine.get('load_after', 'unknown')} after; took "
        f"{units.duration(record['seconds'])}: `{' '.join(['fastnn', 'bench', *map(str, record['arguments'])])}`.",
        *_left_out(rows),
    ]
    wrong = [row for row in rows if row["wrong"] is not None]
    if wrong:
        fields = ("suite", "op", "case", "layout", "dtype", "direction", "wrong")
        parts += ["**Wrong, so without a time:**", _table(fields, ([r[f] for f in fields] for r in wrong), len(fields))]
    for suite, dtype in dict.fromkeys((row["suite"], row["dtype"]) for row in rows):
        inside = [row for row in rows if (row["suite"], row["dtype"]) == (suite, dtype)]
        mean = units.ratio(records.geometric_mean(inside))
        title = f"{suite}, {dtype}: {len(inside)} rows, geometric mean × torch {mean}"
        parts += _folded(title, [_row_table([row for row in inside if row["wrong"] is None])])
    return parts


def _row_table(rows: Sequence[dict[str, Any]]) -> str:
    header = ("op", "case", "layout", "direction", "occurs", "fastnn", "20th to 80th percentile", "torch", "× torch")
    header += ("of limit", "rate", "peak, fastnn", "peak, torch", "remarks")
    compiled = any("torch.compile" in row["ratio"] for row in rows)
    lines = []
    for row in rows:
        low, high = row["percentiles_20_80"]["fastnn"]
        by_memory = row["bound"] == "memory"
        rate = row["bytes_per_second" if by_memory else "flops_per_second"].get("fastnn")
        remarks = [f"noisy: {row['noisy']}"] if row["noisy"] else []
        if compiled and "torch.compile" in row["ratio"]:
            remarks.append(f"{units.ratio(row['ratio']['torch.compile'])} × torch.compile")
        line = [row["op"], row["case"], row["layout"], row["direction"], row["multiplicity"]]
        line += [units.duration(row["seconds"]["fastnn"]), f"{units.duration(low)} to {units.duration(high)}"]
        line += [units.duration(row["seconds"].get("torch")), units.ratio(row["ratio"].get("torch"))]
        line += [units.share(row["fraction"].get("fastnn")), units.with_unit(rate, "B/s" if by_memory else "FLOP/s")]
        line += [units.size(row["peak_bytes"].get(peer)) for peer in ("fastnn", "torch")]
        lines.append([*line, "; ".join(remarks)])
    return _table(header, lines, text=4)


def _older(path: Path, record: dict[str, Any]) -> str:
    mean = units.ratio(records.geometric_mean(record["rows"]))
    note = "" if record["complete"] else ", interrupted"
    return (
        f"- [{summary.run_name(record)}](results/{path.as_posix()}): {len(record['rows'])} rows, geometric mean × "
        f"torch {mean}, torch {record['machine']['versions'].get('torch', 'unknown')}{note}"
    )


def _resources(kernels: Sequence[dict[str, Any]]) -> list[str]:
    """What the CUDA kernels need of a multiprocessor."""
    files: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for kernel in kernels:
        files.setdefault((kernel["file"], kernel["arch"]), []).append(kernel)
    lines = []
    for (file, arch), inside in sorted(files.items()):
        spills = sum(bool(k.get("stack_bytes") or k.get("spill_store_bytes")) for k in inside)
        registers, shared = (max(k.get(name, 0) for k in inside) for name in ("registers", "shared_bytes"))
        lines.append((file, arch, len(inside), registers, f"{shared:,}", spills))
    header = (
        "file",
        "architecture",
        "kernels",
        "registers a thread, at most",
        "shared bytes a block, at most",
        "that spill",
    )
    return [
        "## Resources of the CUDA kernels",
        "As ptxas reports them; nothing ran. [cuda_resources.json](results/cuda_resources.json), by "
        "`tools/cuda_resources.py`.",
        _table(header, lines, text=2),
    ]


def _accesses(record: dict[str, Any]) -> list[str]:
    """How the CUDA kernels access memory, counted by the emulator."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        groups.setdefault((row["op"], row["dtype"], row["direction"]), []).extend(row["kernels"])
    lines = []
    for key, kernels in groups.items():
        asked, moved, ideal, actual = (
            sum(k[name] for k in kernels) for name in ("asked_bytes", "moved_bytes", "ideal_wavefronts", "wavefronts")
        )
        worst = min((k["efficiency"] for k in kernels), default=None)
        efficiency = units.share(asked / moved if moved else None)
        conflicts = units.ratio(actual / ideal if ideal else None)
        lines.append((*key, len({k["name"] for k in kernels}), efficiency, units.share(worst), conflicts))
    header = ("op", "dtype", "direction", "kernels", "bytes asked of bytes moved", "worst kernel", "wavefronts / ideal")
    commit = f", commit {record['commit']}" if record.get("commit") else ""
    return [
        "## Memory accesses of the CUDA kernels",
        "Counted by the emulator over some representative shapes: 100 % is coalesced; wavefronts over the ideal are "
        f"bank conflicts of shared memory. [memory_efficiency.json](results/memory_efficiency.json){commit}, by "
        "`tools/memory_efficiency.py`; what is counted: [docs/emulator.md](../docs/emulator.md).",
        _table(header, lines, text=3),
    ]


def _sanitizer(found: dict[Path, dict[str, Any]]) -> list[str]:
    """The emulator's verdicts against compute-sanitizer's."""
    lines = []
    for folder, record in found.items():
        verdicts = [case["verdict"] for case in record["cases"]]
        link = f"[{record['facts'].get('GPU', folder.name)}](results/{(folder / 'sanitizer.md').as_posix()})"
        lines.append((link, record["facts"].get("date", ""), f"{verdicts.count('agree')} of {len(verdicts)}"))
    return [
        "## The emulator against compute-sanitizer",
        "Cases of which both say the same, by `tools/compare_sanitizer.py`.",
        _table(("GPU", "date", "agree"), lines, text=2),
    ]


def _table(header: Sequence[str], lines: Iterable[Sequence[Any]], text: int) -> str:
    """A Markdown table whose first ``text`` columns are words, and the others numbers."""

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "|" + "|".join("---" if i < text or name == "remarks" else "--:" for i, name in enumerate(header)) + "|"
    return "\n".join([line(header), rule, *map(line, lines)])


def _folded(title: str, parts: Sequence[str]) -> list[str]:
    """Parts that a reader opens."""
    return [f"<details><summary>{title}</summary>", *parts, "</details>"]


def _join(parts: Iterable[str]) -> str:
    """Blocks of Markdown, with the empty lines between them that it wants."""
    return "\n\n".join(parts) + "\n"
