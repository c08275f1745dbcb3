"""``fastnn bench report``: records as one HTML page, with its figures inside and nothing from elsewhere.

The newest record of each machine is shown in full; older ones give its trend. Wrong rows stand first.
"""

from __future__ import annotations

import argparse
import io
import itertools
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastnn.bench import record as records
from fastnn.bench import summary, units

if TYPE_CHECKING:
    from fastnn.bench.figures import Drawing

SUCCESS, USAGE_ERROR = 0, 2
# Of the layers, whose memory differs from row to row by orders of magnitude, a figure shows the extremes alone.
MEMORY_ROWS = 24

CSS = """
:root { color-scheme: light dark; %s --tint: #f1f4f7; --line: #d5dbe1; --alarm: #b3261e; --alarm-tint: #fdeceb; }
@media (prefers-color-scheme: dark) {
  :root { %s --tint: #1d232a; --line: #333c45; --alarm: #ff8f85; --alarm-tint: #3a1d1b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; } h2 { font-size: 1.35rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; } h2 + h3 { margin-top: 1rem; }
h2 { border-top: 2px solid var(--line); padding-top: 1.2rem; }
a { color: var(--blue); } p { max-width: 50rem; }
nav ul { padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; }
figure { margin: 1rem 0 1.6rem; overflow-x: auto; }
figcaption { font-size: .87rem; color: var(--muted); max-width: 50rem; }
svg { display: block; max-width: 100%%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; } svg text { font-family: system-ui, sans-serif !important; }
.wide { overflow-x: auto; margin: .6rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td { padding: .22rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; } thead th { border-bottom: 2px solid var(--line); }
tbody tr:hover { background: var(--tint); }
.text { text-align: left; } .prose { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
.slower { color: var(--red); font-weight: 600; } .muted { color: var(--muted); }
.alarm { border-left: .35rem solid var(--alarm); background: var(--alarm-tint); padding: .7rem 1rem; margin: 1rem 0; }
.alarm h3 { margin: 0; color: var(--alarm); }
details { margin: .8rem 0; } summary { cursor: pointer; font-weight: 600; }
@media print { details { display: block; } body { max-width: none; } }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``fastnn bench report`` to a parser."""
    parser.description = (
        "Draws records of `fastnn bench --json` as one HTML page that needs no network: a roofline plot, bars of the "
        "ratio to torch, memory, and all rows as tables. Of several records of one machine the newest is shown in "
        "full, and the others as a trend over commits."
    )
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path, help="record to show")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page (default: beside the record with the suffix .html; for several, report.html beside the first)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the page.

    Returns:
        The exit status: 0, or 2 when a record cannot be read or the page cannot be written.
    """
    files: list[Path] = arguments.files
    out = arguments.out or (files[0].with_suffix(".html") if len(files) == 1 else files[0].with_name("report.html"))
    try:
        loaded = [(path, records.load(path)) for path in files]
        _prove_writable(out, files)
        # Drawing takes seconds: what is wrong with the arguments is said before.
        text = page(loaded)
        out.write_text(text, encoding="utf-8")
    except ValueError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"cannot write {out}: {error.strerror or error}")
    except ImportError as error:
        return _refuse(f"{error}: pip install 'fastnn[bench]'")
    print(f"{out}: {len(text) / 1e6:.1f} MB")
    return SUCCESS


def _refuse(why: str) -> int:
    print(f"fastnn bench report: {why}", file=sys.stderr)
    return USAGE_ERROR


def _prove_writable(out: Path, files: Iterable[Path]) -> None:
    """Makes the page's folder and proves that a file can be written there.

    Raises:
        OSError: when it cannot.
        ValueError: when the page would take the place of a record.
    """
    if any(out.resolve() == path.resolve() for path in files):
        raise ValueError(f"--out {out} is a record")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.open("r+b").close()
    with tempfile.TemporaryFile(dir=out.parent):
        pass


def page(loaded: Sequence[tuple[Path, dict[str, Any]]]) -> str:
    """The page of some records.

    Args:
        loaded: records, each with the file that it came from.

    Raises:
        ImportError: without matplotlib.
    """
    from fastnn.bench import figures

    machines = summary.by_machine(loaded)
    names = [summary.machine_name(runs[0][1]) for runs in machines]
    light = " ".join(f"--{name}: {colour};" for colour, (name, _) in figures.COLOURS.items())
    dark = " ".join(f"--{name}: {colour};" for name, colour in figures.COLOURS.values())
    body = ["<h1>fastnn bench</h1>"]
    body.append(
        "<p>Ratios are torch's time over fastnn's, both measured in turn in one run: above 1 fastnn is the faster. "
        "Geometric means count each layer as often as its network has it, and leave out rows that are noisy or wrong. "
        "<em>Of the limit</em> is the fraction of what the machine's own copy bandwidth and matrix rate allow; above "
        "100 % the data was in a cache.</p>"
    )
    wrong = sum(row["wrong"] is not None for runs in machines for row in runs[0][1]["rows"])
    if wrong:
        body.append(f'<div class="alarm" role="alert"><strong>{_rows(wrong)} wrong</strong>; listed below.</div>')
    if len(machines) > 1:
        links = (f'<li><a href="#machine-{i}">{escape(name)}</a></li>' for i, name in enumerate(names))
        body.append(f'<nav aria-label="machines"><ul>{"".join(links)}</ul></nav>')
        body += ["<h2>Machines side by side</h2>", _side_by_side(names, _series([runs[0][1] for runs in machines]))]
    with figures.style():
        for index, (name, runs) in enumerate(zip(names, machines, strict=True)):
            body += _machine_section(index, name, runs)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>fastnn bench: {escape('; '.join(names))}</title>\n<style>{CSS % (light, dark)}</style>\n"
        "</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _machine_section(index: int, name: str, runs: list[tuple[Path, dict[str, Any]]]) -> list[str]:
    from fastnn.bench import figures

    record = runs[0][1]
    rows = record["rows"]
    number = itertools.count()

    def figure(drawing: Drawing, caption: str) -> str:
        return _figure(drawing, f"m{index}f{next(number)}-", caption)

    parts = [f'<h2 id="machine-{index}">{escape(name)}</h2>', *_wrong(rows), _facts(record), _limits(record)]
    if not rows:
        return [*parts, "<p>No row was measured.</p>"]
    parts += ["<h3>Summary</h3>", _groups(rows)]
    if len(runs) > 1:
        loaded = [older for _, older in reversed(runs)]
        series = _series(loaded)
        parts.append("<h3>Over the runs</h3>")
        drawing = figures.trend([older["commit"] or summary.day(older) for older in loaded], series)
        if drawing is not None:
            parts.append(figure(drawing, "Geometric mean of the ratio to torch; the runs may have had other rows."))
        parts.append(_side_by_side([*map(summary.run_name, loaded)], series))
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    hint = "Rest the pointer on a point for its name and numbers."
    rooflines = [(figures.roofline(rows, d, record["limits"].get(d)), f"{d}. {hint}") for d in dtypes]
    suites = dict.fromkeys(row["suite"] for row in rows)
    often = " The smallest ratio first; ×3: the network has three such layers."
    bars = [(figures.ratio_bars(rows, suite, d), f"{suite}, {d}.{often}") for suite in suites for d in dtypes]
    memory = [
        (figures.memory_bars(*_network_memory(rows)), "What a training step allocates at most."),
        (figures.memory_bars(*_layer_memory(rows)), "What a call of a layer allocates at most."),
    ]
    for title, drawings in (("Roofline", rooflines), ("Ratio to torch", bars), ("Memory", memory)):
        drawn = [figure(drawing, caption) for drawing, caption in drawings if drawing is not None]
        parts += [f"<h3>{title}</h3>", *drawn] if drawn else []
    parts.append("<h3>All rows</h3>")
    parts += [_all_rows(record, opened=len(rows) <= 60)]
    for path, older in runs[1:]:
        parts += [f"<h3>Older: {escape(summary.run_name(older))} ({escape(path.name)})</h3>", *_wrong(older["rows"])]
        parts.append(_all_rows(older, opened=False))
    return parts


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count} rows are"


def _wrong(rows: Sequence[dict[str, Any]]) -> list[str]:
    wrong = [row for row in rows if row["wrong"] is not None]
    if not wrong:
        return []
    fields = ("suite", "op", "case", "layout", "dtype", "direction", "wrong")
    table = _table(fields, ([row[f] for f in fields] for row in wrong), text=len(fields))
    return [f'<div class="alarm"><h3>{_rows(len(wrong))} wrong and have no time</h3>{table}</div>']


def _facts(record: dict[str, Any]) -> str:
    """Machine, versions and run."""
    machine = record["machine"]
    facts: dict[str, Any] = {"run": summary.run_name(record)}
    facts |= {name.replace("_", " "): value for name, value in machine.items() if name != "versions"}
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    facts["command"] = " ".join(["fastnn", "bench", *map(str, record["arguments"])])
    facts["took"] = units.duration(record["seconds"])
    facts["complete"] = "yes" if record["complete"] else "no: interrupted, these are the rows measured until then"
    noisy = sum(row["noisy"] is not None for row in record["rows"])
    facts["rows"] = f"{len(record['rows'])}, of which {noisy} noisy (drawn hatched or pale, in no mean)"
    rows = "".join(
        f'<tr><th scope="row" class="text">{escape(name)}</th><td class="text prose">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f'<div class="wide"><table><caption>Machine and run</caption><tbody>{rows}</tbody></table></div>'


def _limits(record: dict[str, Any]) -> str:
    header = ("dtype", "copy", "matrix product", "FLOPs per byte where both meet")
    rows = []
    for dtype, limit in record["limits"].items():
        copy, product = limit["copy_bytes_per_second"], limit["flops_per_second"]
        ridge = units.ratio(product / copy)
        rows.append((dtype, units.with_unit(copy, "B/s"), units.with_unit(product, "FLOP/s"), ridge))
    return _table(header, rows, text=1, caption="Limits, measured in the same run")


def _groups(rows: Sequence[dict[str, Any]]) -> str:
    header = (*summary.GROUP_FIELDS, "rows", "left out", "× torch, mean", "smallest", "of the limit, median")
    return _table(
        header,
        (
            [
                *(getattr(group, name) for name in summary.GROUP_FIELDS),
                group.rows,
                ", ".join(f"{n} {why}" for n, why in ((group.noisy, "noisy"), (group.wrong, "wrong")) if n),
                _Ratio(group.mean),
                _Ratio(group.smallest),
                units.share(group.fraction),
            ]
            for group in summary.groups(rows)
        ),
        text=len(summary.GROUP_FIELDS),
    )


def _series(loaded: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], list[float | None]]:
    """The geometric means of each record by suite, dtype and direction; None where a record has none."""
    found: dict[tuple[str, str, str], list[float | None]] = {}
    for index, record in enumerate(loaded):
        members: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for row in record["rows"]:
            members.setdefault((row["suite"], row["dtype"], row["direction"]), []).append(row)
        for key, rows in members.items():
            found.setdefault(key, [None] * len(loaded))[index] = records.geometric_mean(rows)
    return found


def _side_by_side(names: Sequence[str], series: dict[tuple[str, str, str], list[float | None]]) -> str:
    """The table of what :func:`_series` gives for records of these names."""
    rows = ([*key, *map(_Ratio, values)] for key, values in series.items())
    return _table(("suite", "dtype", "direction", *names), rows, text=3, caption="Ratio to torch, geometric mean")


def _network_memory(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    return [row for row in rows if row["direction"] == "training_step"], "whole networks: peak bytes"


def _layer_memory(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    chosen = [r for r in rows if r["op"] != "network" and r["wrong"] is None and r["peak_bytes"].get("torch")]
    chosen = [r for r in chosen if r["peak_bytes"].get("fastnn")]
    chosen.sort(key=lambda row: row["peak_bytes"]["fastnn"] / row["peak_bytes"]["torch"], reverse=True)
    if len(chosen) <= MEMORY_ROWS:
        return chosen, "layers: peak bytes"
    half = MEMORY_ROWS // 2
    return chosen[:half] + chosen[
        -half:
    ], f"layers: peak bytes, the {half} worst and the {half} best of {len(chosen)} rows"


def _all_rows(record: dict[str, Any], opened: bool) -> str:
    suites: dict[str, list[dict[str, Any]]] = {}
    for row in record["rows"]:
        suites.setdefault(row["suite"], []).append(row)
    parts = []
    for suite, rows in suites.items():
        count = "1 row" if len(rows) == 1 else f"{len(rows)} rows"
        peers = [p for p in ("torch", "torch.compile") if any(p in r.get("ratio", ()) for r in rows)]
        header = ["op", "case", "layout", "dtype", "direction", "occurs", "fastnn", "20th to 80th percentile"]
        header += [column for peer in peers for column in (peer, f"× {peer}")]
        header += ["of the limit", "bound", "bytes/s", "FLOP/s", "peak, fastnn", "peak, torch", "remarks"]
        table = _table(header, (_cells(row, peers) for row in rows), text=5)
        state = " open" if opened else ""
        parts.append(f"<details{state}><summary>{escape(suite)}: {count}</summary>{table}</details>")
    return "".join(parts)


def _cells(row: dict[str, Any], peers: Sequence[str]) -> list[Any]:
    """A row of the table of all rows."""
    start = [row["op"], row["case"], row["layout"], row["dtype"], row["direction"], row["multiplicity"]]
    if row["wrong"] is not None:
        return [*start, *[units.MISSING] * (8 + 2 * len(peers)), _Remark(f"WRONG: {row['wrong']}")]
    cells = [*start, units.duration(row["seconds"]["fastnn"])]
    cells.append(" to ".join(map(units.duration, row["percentiles_20_80"]["fastnn"])))
    for peer in peers:
        cells += [units.duration(row["seconds"].get(peer)), _Ratio(row["ratio"].get(peer))]
    return [
        *cells,
        units.share(row["fraction"].get("fastnn")),
        row["bound"],
        units.with_unit(row["bytes_per_second"].get("fastnn"), "B/s"),
        units.with_unit(row["flops_per_second"].get("fastnn"), "FLOP/s"),
        units.size(row["peak_bytes"].get("fastnn")),
        units.size(row["peak_bytes"].get("torch")),
        _Remark(f"noisy: {row['noisy']}" if row["noisy"] else ""),
    ]


class _Ratio:
    """A cell that is marked where fastnn is the slower by more than a twentieth."""

    def __init__(self, value: float | None) -> None:
        self.cls = "slower" if value is not None and value < 0.95 else ""
        self.text = units.ratio(value)


class _Remark:
    """A cell of words at the end of a row."""

    def __init__(self, text: str) -> None:
        self.cls, self.text = "text prose" if text else "", text


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], text: int, caption: str = "") -> str:
    """A table whose first ``text`` columns are words, and the others numbers."""

    def cell(place: int, value: Any) -> str:
        classes = getattr(value, "cls", "text prose" if header[place] == "wrong" else "text" if place < text else "")
        content = escape(str(getattr(value, "text", value)))
        return f'<td class="{classes}">{content}</td>' if classes else f"<td>{content}</td>"

    head = "".join(
        f'<th scope="col"{" class=text" if place < text or name == "remarks" else ""}>{escape(name)}</th>'
        for place, name in enumerate(header)
    )
    body = "\n".join("<tr>" + "".join(cell(i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    # A region that scrolls must be reachable by the keyboard.
    table = f"<table>{title}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f'<div class="wide" tabindex="0">{table}</div>'


def _figure(drawing: Drawing, prefix: str, caption: str) -> str:
    return f"<figure>{inline_svg(drawing, prefix)}<figcaption>{escape(caption)}</figcaption></figure>"


def inline_svg(drawing: Drawing, prefix: str) -> str:
    """A drawing as an element of a page.

    matplotlib writes files that stand alone. Within a page ids must differ from those of other figures, colours come
    from the page's style, which has others for dark paper, and namespaces go without saying.

    Args:
        drawing: what to write; within :func:`fastnn.bench.figures.style`.
        prefix: put before every id.
    """
    from fastnn.bench.figures import COLOURS

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    drawing.figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|<defs>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))

    def identity(match: re.Match[str]) -> str:
        return f' id="{prefix}{match[1]}"' if match[1] in used else ""

    for name, words in drawing.hints.items():
        # A character reference, lest line breaks be taken for the source's own.
        text = text.replace(f'<g id="{name}">', f"<g><title>{escape(words).replace(chr(10), '&#10;')}</title>")
    text = re.sub(r' id="([^"]+)"', identity, text)
    text = re.sub(r'(url\(|href=")#', rf"\g<1>#{prefix}", text)
    for colour, (name, _) in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    label = escape(drawing.words, quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
