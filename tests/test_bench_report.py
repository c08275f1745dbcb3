"""What `fastnn bench` makes of records: their loading, the page, the comparison and the repository's tables."""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bench_records import LAYERS, make_record, make_row, make_wrong

from fastnn.bench import compare, record, report, summary, tables, units

WHY_WRONG = "largest error 3.1e-2 at [0, 3, 1, 7], bound 1.0e-5"


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def command(module: ModuleType, *arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args([str(argument) for argument in arguments]))


def small_record(**options: Any) -> dict[str, Any]:
    """Two rows, so that drawing takes no time."""
    made = make_record(dtypes=("float32",), **options)
    made["rows"] = made["rows"][:2]
    return made


def scale(row: dict[str, Any], factor: float, peer: str = "fastnn") -> None:
    """Makes a peer of a row slower by a factor."""
    row["seconds"][peer] *= factor
    row["percentiles_20_80"][peer] = [factor * t for t in row["percentiles_20_80"][peer]]
    row["ratio"]["torch"] = row["seconds"]["torch"] / row["seconds"]["fastnn"]


# Records.


def test_a_saved_record_loads(tmp_path: Path):
    made = make_record()
    made["rows"][1] = make_wrong(made["rows"][1], WHY_WRONG)
    path = tmp_path / "new folder" / "record.json"
    record.save(made, path)
    record.save(made, path)
    assert record.load(path) == made
    assert list(path.parent.iterdir()) == [path]


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "record.json"
    record.save(small_record(), path)
    with pytest.raises(ValueError, match="Out of range float"):
        record.save({**small_record(), "seconds": math.nan}, path)
    assert record.load(path) == small_record()
    assert list(tmp_path.iterdir()) == [path]


def drop(name: str) -> Callable[[dict], None]:
    return lambda r: r.pop(name)


def change(**fields: Any) -> Callable[[dict], None]:
    return lambda r: r.update(fields)


def change_row(**fields: Any) -> Callable[[dict], None]:
    return lambda r: r["rows"][1].update(fields)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (drop("schema"), "schema"),
        (change(schema=2), "schema 2: this fastnn reads schema 1"),
        (drop("limits"), "record has no 'limits'"),
        (change(seconds=math.nan), "NaN is no number"),
        (change(seconds=True), "record: seconds is True"),
        (change(rows={}), "record: rows is {}, expected list"),
        (change(machine={"device": "cpu"}), "machine has no 'device_name'"),
        (change(limits={"float32": 3}), "limits of float32 is 3, expected an object"),
        (change_row(op="convolve"), "row 1: op is 'convolve', expected conv2d or"),
        (change_row(multiplicity=1.5), "row 1: multiplicity is 1.5"),
        (change_row(bound=None), "row 1: bound is None"),
        (change_row(seconds={"torch": 1.0}), "row 1: no time of fastnn"),
        (change_row(seconds={"fastnn": 0.0}), "row 1: seconds of fastnn is 0.0"),
        (change_row(ratio={"torch": None}), "row 1, ratio: torch is None"),
        (change_row(percentiles_20_80={"fastnn": [1.0], "torch": [1.0, 2.0]}), "row 1: percentiles_20_80 of fastnn"),
        (lambda r: r["rows"][1].pop("peak_bytes"), "row 1 has no 'peak_bytes'"),
    ],
)
def test_a_wrong_record_is_refused_with_path_and_reason(spoil: Callable, reason: str, tmp_path: Path):
    made = make_record()
    spoil(made)
    path = write(tmp_path / "record.json", made)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{re.escape(reason)}"):
        record.load(path)


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"{", b"\xff\xfe"])
def test_what_is_no_record_is_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        record.load(path)
    with pytest.raises(ValueError, match=r"missing\.json: No such file"):
        record.load(tmp_path / "missing.json")


def test_geometric_mean_weighs_by_multiplicity_and_leaves_out_what_cannot_be_believed():
    once, thrice = LAYERS[0], LAYERS[1]
    assert once[3] == 1
    assert thrice[3] == 3
    rows = [
        make_row(once, "contiguous", "float32", "forward", 16.0),
        make_row(thrice, "contiguous", "float32", "forward", 1.0),
        {**make_row(thrice, "contiguous", "float32", "backward", 100.0), "noisy": "load"},
        make_wrong(make_row(thrice, "channels_last", "float32", "forward", 100.0), WHY_WRONG),
    ]
    assert record.geometric_mean(rows) == pytest.approx(2.0)
    assert record.geometric_mean(rows[2:]) is None
    assert record.geometric_mean(rows, "torch.compile") is None


def test_groups_count_what_they_leave_out():
    rows = [make_row(LAYERS[0], "contiguous", "float32", "forward", ratio) for ratio in (0.5, 2.0, 4.0)]
    rows[2]["noisy"] = "load"
    rows.append(make_wrong(rows[0], WHY_WRONG))
    (group,) = summary.groups(rows)
    assert (group.rows, group.noisy, group.wrong) == (2, 1, 1)
    assert group.mean == pytest.approx(1.0)
    assert group.smallest == 0.5
    assert group.fraction == pytest.approx(sum(row["fraction"]["fastnn"] for row in rows[:2]) / 2)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (units.duration(2.71e-2), "27.1 ms"),
        (units.duration(9.4e-6), "9.40 µs"),
        (units.duration(3e-8), "30.0 ns"),
        (units.duration(412.4), "412 s"),
        (units.size(999.9e6), "1.00 GB"),
        (units.size(17), "17 B"),
        (units.size(0), "0 B"),
        (units.with_unit(186e9, "FLOP/s"), "186 GFLOP/s"),
        (units.with_unit(None, "B/s"), "–"),
        (units.tick(2e10, "B/s"), "20 GB/s"),
        (units.ratio(9.996), "10.0"),
        (units.ratio(0.654), "0.65"),
        (units.share(1.06), "106%"),
        (units.share(0.068), "6.8%"),
    ],
)
def test_numbers_have_three_digits_and_a_unit(text: str, wanted: str):
    assert text == wanted


# The page.


class Page(HTMLParser):
    """Fails where elements do not nest, and gathers what tests ask for."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.figures: list[str] = []
        self.counts: dict[str, int] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        assert len(named) == len(attributes), f"{tag} has an attribute twice: {attributes}"
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in named:
            self.ids.append(named["id"] or "")
        for value in named.values():
            self.links.update(re.findall(r"url\(#([^)]+)\)", value or ""))
        if named.get("href", "").startswith("#"):
            self.links.add(named["href"][1:])
        else:
            assert not {"src", "href", "srcset", "data"} & named.keys(), f"{tag} loads {named}"
        if tag == "svg":
            assert named["role"] == "img"
            self.figures.append(named["aria-label"] or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def two_machines(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a CPU with an older run, and of a GPU; with rows that are noisy, wrong and of unusual names."""
    folder = tmp_path_factory.mktemp("records")
    cpu = make_record()
    for row in cpu["rows"][:8]:
        row["ratio"]["torch.compile"] = 0.9
        row["seconds"]["torch.compile"] = row["seconds"]["fastnn"] * 0.9
        row["percentiles_20_80"]["torch.compile"] = row["percentiles_20_80"]["fastnn"]
    cpu["rows"][2]["noisy"] = "load average 2.1"
    cpu["rows"][3]["case"] = '<script>alert("&")</script>'
    cpu["rows"][5] = make_wrong(cpu["rows"][5], WHY_WRONG)
    files = [
        write(folder / "new.json", cpu),
        write(folder / "old.json", small_record(date="2026-10-01", commit="0f0f0f0")),
        write(folder / "gpu.json", small_record(device="cuda:0", name="NVIDIA H200")),
    ]
    assert command(report, *files) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_needs_no_network(two_machines: str):
    page = Page(two_machines)
    assert len(set(page.ids)) == len(page.ids)
    assert page.links <= set(page.ids)
    assert not re.search(r"https?:|@import|xmlns|xlink", two_machines)
    assert page.counts["use"] > 0
    assert "script" not in page.counts
    assert all(len(words) > 60 for words in page.figures)


def test_the_page_shows_every_figure_and_row(two_machines: str):
    page = Page(two_machines)
    # Of the CPU: the trend, a roofline for each of two dtypes, bars of ratio for four suites with each, two of memory.
    # Of the GPU, with its two rows: a roofline, bars of ratio and of memory.
    assert len(page.figures) == (1 + 2 + 8 + 2) + 3
    kinds = [words.split()[0] for words in page.figures]
    assert [kinds.count(kind) for kind in ("Geometric", "Roofline", "Bars")] == [1, 3, 9]
    assert two_machines.count(WHY_WRONG) == 2
    assert '<div class="alarm" role="alert"><strong>1 row is wrong</strong>' in two_machines
    assert "&lt;script&gt;" in two_machines
    assert "1 noisy" in two_machines
    # The bar itself is hatched, and not only the legend's.
    noisy_bar = re.search(
        r'<path d="[^"]*"[^>]*>', two_machines[two_machines.index("noisy: load average 2.1</title>") :]
    )
    assert noisy_bar is not None
    assert "fill: url(#" in noisy_bar[0]
    for case in {layer[2] for layer in LAYERS}:
        assert f'<td class="text">{case}</td>' in two_machines
    assert "2026-10-01, 0f0f0f0" in two_machines


def test_the_page_has_colours_of_its_own_for_dark_paper(two_machines: str):
    from fastnn.bench import figures

    assert len({name for name, _ in figures.COLOURS.values()}) == len(figures.COLOURS)
    style = two_machines[: two_machines.index("</style>")]
    for light, (name, dark) in figures.COLOURS.items():
        assert f"--{name}: {light};" in style
        assert f"--{name}: {dark};" in style
        # Drawings name colours; one that is written out would be the same on any paper.
        assert light not in two_machines[len(style) :]


def test_the_same_record_gives_the_same_page(tmp_path: Path):
    path = write(tmp_path / "a.json", small_record())
    assert command(report, path) == 0
    first = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert command(report, path, "--out", tmp_path / "new" / "b.html") == 0
    assert (tmp_path / "new" / "b.html").read_text(encoding="utf-8") == first


@pytest.mark.parametrize("kind", ["no rows", "all wrong", "no torch", "no limits", "no bytes moved"])
def test_a_poor_record_makes_a_page_too(kind: str, tmp_path: Path):
    made = small_record()
    if kind == "no rows":
        made |= {"rows": [], "limits": {}, "complete": False, "commit": None}
    if kind == "no limits":
        made["limits"] = {}
    for index, row in enumerate(made["rows"]):
        if kind == "all wrong":
            made["rows"][index] = make_wrong(row, WHY_WRONG)
        if kind == "no torch":
            for name in ("seconds", "ratio", "fraction", "bytes_per_second", "flops_per_second", "peak_bytes"):
                row[name].pop("torch", None)
        if kind == "no bytes moved":
            row |= {"bytes": 0, "flops": 0, "peak_bytes": {"fastnn": 0, "torch": 0}}
    assert command(report, write(tmp_path / "a.json", made)) == 0
    Page((tmp_path / "a.html").read_text(encoding="utf-8"))


def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "a.json", small_record())
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "a.html", tmp_path):
        assert command(report, path, "--out", out) == 2
        assert f"fastnn bench report: cannot write {out}: " in capsys.readouterr().err
    assert command(report, path, "--out", path) == 2
    assert "is a record" in capsys.readouterr().err
    assert record.load(path) == small_record()
    assert command(report, tmp_path / "missing.json") == 2
    assert "missing.json: No such file" in capsys.readouterr().err


# The comparison.


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """How many rows of each kind a comparison finds, without those that are none."""
    found = compare.compare(before, after)
    kinds = ("slower", "faster", "larger", "wrong", "right", "only_before", "only_after", "warnings")
    return {kind: len(getattr(found, kind)) for kind in kinds if getattr(found, kind)}


@pytest.fixture
def pair() -> tuple[dict[str, Any], dict[str, Any]]:
    """The same record twice."""
    made = make_record()
    return made, copy.deepcopy(made)


def test_a_record_is_no_worse_than_itself(pair):
    assert changes(*pair) == {}


@pytest.mark.parametrize(
    ("factor", "wanted"), [(1.3, {"slower": 1}), (0.7, {"faster": 1}), (1.045, {}), (0.955, {}), (1.02, {})]
)
def test_only_changes_beyond_noise_and_threshold_count(pair, factor: float, wanted: dict):
    scale(pair[1]["rows"][4], factor)
    assert changes(*pair) == wanted


def test_ranges_that_overlap_are_noise(pair):
    scale(pair[1]["rows"][4], 1.3)
    row = pair[1]["rows"][4]
    row["percentiles_20_80"]["fastnn"][0] = pair[0]["rows"][4]["percentiles_20_80"]["fastnn"][1]
    assert changes(*pair) == {}


def test_a_machine_that_is_slower_for_both_is_no_change_of_ours(pair):
    for peer in ("fastnn", "torch"):
        scale(pair[1]["rows"][4], 1.5, peer)
    assert changes(*pair) == {}


def test_a_torch_that_got_faster_is_no_change_of_ours(pair):
    scale(pair[1]["rows"][4], 0.5, "torch")
    assert changes(*pair) == {}


def test_noisy_rows_are_not_judged(pair):
    scale(pair[1]["rows"][4], 2.0)
    pair[1]["rows"][4]["noisy"] = "load"
    assert changes(*pair) == {}
    assert compare.compare(*pair).noisy == 1


def test_rows_of_another_size_are_not_judged(pair):
    row = pair[1]["rows"][4]
    scale(row, 8.0)
    row["peak_bytes"]["fastnn"] *= 8
    row["bytes"] *= 8
    pair[1]["arguments"].append("--hot")
    assert changes(*pair) == {"warnings": 1}
    assert compare.compare(*pair).resized == 1


def test_rows_that_became_wrong_larger_new_or_lost_are_seen(pair):
    before, after = pair
    after["rows"][1] = make_wrong(after["rows"][1], WHY_WRONG)
    before["rows"][2] = make_wrong(before["rows"][2], WHY_WRONG)
    for both in pair:
        both["rows"][3] = make_wrong(both["rows"][3], WHY_WRONG)
    after["rows"][4]["peak_bytes"]["fastnn"] *= 2
    after["rows"][5]["peak_bytes"]["fastnn"] += 1
    after["rows"][6]["peak_bytes"]["torch"] *= 2
    before["rows"][7]["peak_bytes"]["fastnn"] = 0
    before["rows"].pop(10)
    after["rows"].pop()
    after["complete"] = False
    wanted = {"larger": 2, "wrong": 1, "right": 1, "only_before": 1, "only_after": 1, "warnings": 1}
    assert changes(*pair) == wanted
    new = make_wrong(after["rows"][0], "wrong from its start")
    after["rows"].append({**new, "case": "new"})
    assert changes(*pair)["wrong"] == 2


def test_of_different_machines_ratios_alone_are_compared(pair):
    before, after = pair
    after["machine"]["threads"] = 16
    for row in after["rows"]:
        for peer in ("fastnn", "torch"):
            scale(row, 0.1, peer)
        row["peak_bytes"]["fastnn"] *= 2
    assert changes(before, after) == {"warnings": 1}
    scale(after["rows"][4], 1.3)
    scale(after["rows"][5], 0.7)
    del after["rows"][6]["ratio"]["torch"]
    assert changes(before, after) == {"warnings": 1, "slower": 1, "faster": 1}
    assert compare.compare(before, after).incomparable == 1


def test_instructions_for_one_dtype_make_no_other_machine():
    records = [make_record() for _ in range(3)]
    for made, capability in zip(records, ("avx512", "avx512_bf16", "avx2"), strict=True):
        made["machine"]["cpu_capability"] = capability
    keys = [summary.machine_key(made) for made in records]
    assert keys[0] == keys[1] != keys[2]


def test_of_two_records_of_a_day_the_later_one_is_the_newest():
    dates = ("2026-11-20T09:00:00+00:00", "2026-11-20", "2026-11-20T10:30:00+00:00")
    made = [(Path(), make_record(date=date)) for date in dates]
    (runs,) = summary.by_machine(made)
    assert [record["date"] for _, record in runs] == [dates[2], dates[0], dates[1]]
    assert summary.run_name(runs[0][1]).startswith("2026-11-20, ")


def test_each_suite_is_shown_from_the_newest_record_that_has_it():
    def record_of(*suites: str) -> dict:
        return {"rows": [{"suite": suite, "dtype": "float32"} for suite in suites]}

    runs = [("new", record_of("lstm")), ("older", record_of("pool", "lstm", "pool")), ("oldest", record_of("pool"))]
    shown = [(name, [row["suite"] for row in made["rows"]]) for name, made in summary.current(runs)]
    assert shown == [("new", ["lstm"]), ("older", ["pool", "pool"])]


def test_rows_without_torch_are_judged_by_their_times(pair):
    for both in pair:
        both["rows"] = [make_row(LAYERS[0], "contiguous", "float32", "forward", 1.0)]
    scale(pair[1]["rows"][0], 1.3)
    for both in pair:
        both["rows"][0]["ratio"] = {}
    assert changes(*pair) == {"slower": 1}


def test_exit_status_and_output(pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before, after = pair
    after["rows"][3]["case"] = "[red]odd[/red]"
    a, same = write(tmp_path / "a.json", before), write(tmp_path / "same.json", before)
    assert command(compare, a, same) == 0
    assert "nothing got worse" in capsys.readouterr().out
    scale(after["rows"][4], 1.3)
    b = write(tmp_path / "b.json", after)
    assert command(compare, a, b) == 1
    out = capsys.readouterr().out
    assert "slower (1)" in out
    assert "-23.1%" in out
    assert "[red]odd[/red]" in out
    assert command(compare, a, b, "--threshold", "0.3") == 0
    capsys.readouterr()
    assert command(compare, a, b, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["worse"]
    assert found["slower"][0]["key"] == list(record.key(after["rows"][4]))
    assert found["slower"][0]["factor"] == pytest.approx(1 / 1.3)
    assert command(compare, a, tmp_path / "missing.json") == 2
    assert "missing.json: No such file" in capsys.readouterr().err
    for wrong in ("-1", "nan", "some"):
        with pytest.raises(SystemExit, match="2"):
            command(compare, a, b, "--threshold", wrong)


# The repository's tables.


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with two machines' records and the other kinds that results have."""
    results = tmp_path / "benchmarks" / "results"
    newest = make_record()
    newest["rows"][2]["noisy"] = "load average 2.1"
    newest["rows"][3]["case"] = "a | b"
    newest["rows"][5] = make_wrong(newest["rows"][5], WHY_WRONG)
    write(results / "amd" / "2026-11-20-abc1234.json", newest)
    write(results / "amd" / "2026-10-01-0f0f0f0.json", small_record(date="2026-10-01", commit="0f0f0f0"))
    write(results / "h200" / "2026-11-19-abc.json", small_record(device="cuda:0", name="NVIDIA H200"))
    kernel = {"file": "conv.cu", "arch": "sm_80", "shared_bytes": 1024, "stack_bytes": 0, "spill_store_bytes": 0}
    kernels = [{**kernel, "registers": r, "stack_bytes": r // 255} for r in (40, 255)]
    write(results / "cuda_resources.json", {"nvcc": "13.0", "rows": kernels})
    write(results / "cuda_sass.json", {"nvcc": "13.0", "rows": []})
    accesses = {"asked_bytes": 50, "moved_bytes": 100, "ideal_wavefronts": 4, "wavefronts": 6, "efficiency": 0.5}
    row = {"op": "conv2d", "dtype": "float32", "direction": "forward", "kernels": [{"name": "k", **accesses}]}
    write(results / "memory_efficiency.json", {"commit": "abc", "rows": [row]})
    cases = [{"verdict": "agree"}, {"verdict": "agree"}, {"verdict": "differ"}]
    write(results / "h200" / "sanitizer.json", {"facts": {"GPU": "NVIDIA H200", "date": "2026-11-19"}, "cases": cases})
    (tmp_path / "README.md").write_text(f"# head\n\n{tables.BEGIN}\nold\n{tables.END}\n\ntail\n", encoding="utf-8")
    return tmp_path


def test_tables_are_what_the_records_give(checkout: Path, capsys: pytest.CaptureFixture[str]):
    assert command(tables, "--root", checkout, "--check") == 1
    assert "README.md: not what the records give" in capsys.readouterr().err
    assert not (checkout / "benchmarks" / "README.md").exists()
    assert command(tables, "--root", checkout) == 0
    assert command(tables, "--root", checkout, "--check") == 0

    readme = (checkout / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# head\n\n{tables.BEGIN}\n\n**AMD EPYC, 2 threads, avx512**: torch 2.13.0")
    assert readme.endswith(f"{tables.END}\n\ntail\n")
    assert "left out of the means: **1 wrong** and 1 noisy" in readme
    rows = record.load(checkout / "benchmarks/results/amd/2026-11-20-abc1234.json")["rows"]
    group = next(g for g in summary.groups(rows) if g.direction == "forward")
    cells = f"{units.ratio(group.mean)} | {units.ratio(group.smallest)} | {units.share(group.fraction)}"
    assert f"| resnet50 | conv2d | contiguous | {cells} |" in readme

    page = (checkout / "benchmarks" / "README.md").read_text(encoding="utf-8")
    times = [units.duration(row["seconds"]["fastnn"]) for row in rows if row["wrong"] is None]
    assert all(f"| {time} |" in page for time in times)
    assert page.count(WHY_WRONG) == 1
    assert "- [2026-10-01, 0f0f0f0](results/amd/2026-10-01-0f0f0f0.json): 2 rows" in page
    assert "| conv.cu | sm_80 | 2 | 255 | 1,024 | 1 |" in page
    assert "| conv2d | float32 | forward | 1 | 50% | 50% | 1.50 |" in page
    assert "| [NVIDIA H200](results/h200/sanitizer.md) | 2026-11-19 | 2 of 3 |" in page
    # Every table is a table: each of its lines has as many cells as its first.
    for block in re.findall(r"(?:^\|.*\n)+", page + readme, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block

    (checkout / "README.md").write_text(readme.replace("1 noisy", "0 noisy"), encoding="utf-8")
    assert command(tables, "--root", checkout, "--check") == 1
    err = capsys.readouterr().err
    assert "+Of 76 rows" in err
    assert "-Of 76 rows" in err


def test_tables_without_any_record(tmp_path: Path):
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "README.md").write_text(f"{tables.BEGIN}{tables.END}", encoding="utf-8")
    assert command(tables, "--root", tmp_path) == 0
    assert tables.NOTHING in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert tables.NOTHING in (tmp_path / "benchmarks" / "README.md").read_text(encoding="utf-8")


def test_tables_that_cannot_be_made_are_refused(checkout: Path, capsys: pytest.CaptureFixture[str]):
    def refused(words: str) -> None:
        assert command(tables, "--root", checkout) == 2
        assert words in capsys.readouterr().err

    write(checkout / "benchmarks" / "results" / "amd" / "odd.json", {"rows": []})
    refused("amd/odd.json: no record of `fastnn bench`")
    (checkout / "benchmarks" / "results" / "amd" / "odd.json").unlink()
    (checkout / "README.md").write_text(f"{tables.BEGIN}\n{tables.BEGIN}\n{tables.END}", encoding="utf-8")
    refused("README.md must have")
    (checkout / "README.md").unlink()
    refused("README.md: No such file")
    assert command(tables, "--root", checkout / "elsewhere") == 2
    assert "is no folder" in capsys.readouterr().err


def test_the_readme_has_its_markers():
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    assert tables.with_summary(readme, tables.Results())
