"""The figures of a report, drawn by matplotlib: a roofline, bars of ratio and of memory, and a trend over commits.

Each is a :class:`Drawing`: the figure, what it shows in words for those who do not see it, and what to say of the
parts that a pointer rests on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from fastnn.bench import record as records
from fastnn.bench import units

# Colours by what they stand for, for light and for dark paper. fastnn.bench.report puts the names in place of the light
# ones, so each must occur once.
INK, MUTED, PAPER = "#1b1f24", "#8a929b", "#fefefe"
COLOURS = {
    INK: ("ink", "#e6e9ec"),
    MUTED: ("muted", "#7d8791"),
    PAPER: ("paper", "#14181d"),
    "#1f5fb4": ("blue", "#6aa8f7"),
    "#c4521a": ("red", "#f08a55"),
    "#17806d": ("green", "#4cc3ab"),
    "#8a4fb0": ("violet", "#c592ea"),
    "#a9790a": ("yellow", "#e2b84a"),
    "#c23a6b": ("pink", "#f286ac"),
    "#4d5b6a": ("slate", "#a9b7c6"),
    "#0f7f9c": ("cyan", "#5cc6e0"),
    "#7a5230": ("brown", "#cfa27c"),
    "#5f7a1c": ("olive", "#b3cf66"),
}
BLUE, RED, GREEN, VIOLET, YELLOW, PINK, SLATE, CYAN, BROWN, OLIVE = list(COLOURS)[3:]
# Ops of one suite are near each other and fewer than there are colours.
OP_COLOURS = dict(
    zip(records.OPS, cycle((BLUE, RED, OLIVE, GREEN, YELLOW, VIOLET, PINK, CYAN, BROWN, SLATE)), strict=False)
)
LAYOUT_COLOURS = dict(zip(records.LAYOUTS, (BLUE, YELLOW), strict=True))
MARKERS = dict(zip(records.DIRECTIONS, ("o", "s", "^", "D"), strict=True))
SERIES = [(c, m) for m in ("o", "s", "^") for c in (BLUE, RED, GREEN, VIOLET, YELLOW, PINK, SLATE)]
COMPILED_COLOUR = PINK
NOISY_ALPHA = 0.25
# Height of one bar and width of a character beside it, in inches.
BAR, CHARACTER = 0.23, 0.066
TABLE = "The table of all rows has the same figures."
STYLE = {
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titlecolor": INK,
    "figure.facecolor": "none",
    "font.size": 9.5,
    "grid.alpha": 0.28,
    "grid.color": MUTED,
    "grid.linewidth": 0.7,
    "hatch.linewidth": 1.4,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    # The same record gives the same file.
    "svg.hashsalt": "fastnn",
    "text.color": INK,
    # Names of layers are no formulas.
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@dataclass
class Drawing:
    """A figure.

    Attributes:
        figure: what matplotlib drew.
        words: what it shows, in a sentence.
        hints: by the ``gid`` of a part of the figure, what that part is.
    """

    figure: Figure
    words: str
    hints: dict[str, str] = field(default_factory=dict)

    def hint(self, text: str) -> str:
        """Notes what a part shows, and returns the ``gid`` for it."""
        name = f"part-{len(self.hints)}"
        self.hints[name] = text
        return name


def style() -> Any:
    """A context in which the figures are to be drawn and saved."""
    return matplotlib.rc_context(STYLE)


def row_name(row: dict[str, Any]) -> str:
    """A row in full, as hints and lists name it."""
    return f"{row['suite']}: {row['op']} {row['case']}, {row['layout']}, {row['dtype']}, {row['direction']}"


def timed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that have times."""
    return [row for row in rows if row["wrong"] is None]


def roofline(rows: Sequence[dict[str, Any]], dtype: str, limit: dict[str, float] | None) -> Drawing | None:
    """Each kernel of one dtype as a point: FLOPs a byte against FLOPs a second, under the measured roof.

    Args:
        rows: a record's rows; those without FLOPs have no place in it.
        dtype: whose rows are drawn.
        limit: the measured copy bandwidth and matrix rate of that dtype; None draws no roof.
    """
    chosen = [row for row in timed(rows) if row["dtype"] == dtype and row["bytes"] > 0 and row["flops"] > 0]
    if not chosen:
        return None
    figure = Figure(figsize=(11.6, 6.2))
    ops = [op for op in OP_COLOURS if any(row["op"] == op for row in chosen)]
    drawing = Drawing(
        figure,
        f"Roofline of {len(chosen)} {dtype} kernels of {', '.join(ops)}: FLOPs per byte against FLOP/s, fastnn filled "
        "and torch hollow, under the roof that copy bandwidth and matrix rate make. " + TABLE,
    )
    axes = figure.subplots()
    figure.subplots_adjust(left=0.095, right=0.84, bottom=0.09, top=0.94)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte", title=f"{dtype}: FLOPs a second")
    size = 5.5 if len(chosen) <= 100 else 4
    for row in chosen:
        _draw_points(axes, row, size, drawing)
    if limit is not None:
        _draw_roof(axes, limit["copy_bytes_per_second"], limit["flops_per_second"])
    bottom, top = axes.get_ylim()
    if top / bottom < 100:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.tick(value, "FLOP/s")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

    directions = [d for d in MARKERS if any(row["direction"] == d for row in chosen)]
    handles = [Line2D([], [], marker="o", linestyle="", color=OP_COLOURS[op], label=op) for op in ops]
    handles += [
        Line2D([], [], marker=MARKERS[d], linestyle="", color=MUTED, label=d.replace("_", " ")) for d in directions
    ]
    handles += [
        Line2D([], [], marker="o", linestyle="", color=INK, label="fastnn"),
        Line2D([], [], marker="o", linestyle="", color=INK, markerfacecolor="none", label="torch"),
    ]
    if any(row["noisy"] for row in chosen):
        handles.append(Line2D([], [], marker="o", linestyle="", color=INK, alpha=NOISY_ALPHA, label="noisy"))
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.85, 0.95), handletextpad=0.3)
    return drawing


def _draw_points(axes: Axes, row: dict[str, Any], size: float, drawing: Drawing) -> None:
    """Draws a row of both peers, and a line between them."""
    colour, intensity = OP_COLOURS[row["op"]], row["flops"] / row["bytes"]
    rates = row["flops_per_second"]
    found = {peer: rates[peer] for peer in ("torch", "fastnn") if rates.get(peer)}
    if len(found) == 2:
        axes.plot([intensity] * 2, list(found.values()), color=MUTED, linewidth=0.7, alpha=0.5, zorder=2)
    for peer, rate in found.items():
        text = (
            f"{row_name(row)}\n{peer}: {units.duration(row['seconds'].get(peer))}, {units.with_unit(rate, 'FLOP/s')}, "
            f"{units.with_unit(row['bytes_per_second'].get(peer), 'B/s')}, "
            f"{units.share(row['fraction'].get(peer))} of the limit"
        )
        axes.plot(
            intensity,
            rate,
            MARKERS[row["direction"]],
            color=colour,
            markerfacecolor=colour if peer == "fastnn" else "none",
            markersize=size,
            alpha=NOISY_ALPHA if row["noisy"] else 0.9,
            gid=drawing.hint(text),
            zorder=3,
        )


def _draw_roof(axes: Axes, copy: float, product: float) -> None:
    """Draws the most that bytes a second and FLOPs a second allow, over the width of the points and of its corner."""
    ridge = product / copy
    low, high = axes.get_xlim()
    low, high = min(low, ridge / 4), max(high, ridge * 4)
    bottom, top = axes.get_ylim()
    axes.set(xlim=(low, high), ylim=(bottom, max(top, product * 2)))
    axes.plot([low, ridge, high], [low * copy, product, product], color=INK, linewidth=1.6, zorder=1)
    # Both words stand above the roof, where few points are; the slope is known once the limits are.
    start, end = axes.transData.transform([(low, low * copy), (ridge, product)])
    slope = math.degrees(math.atan2(end[1] - start[1], end[0] - start[0]))
    at = {"textcoords": "offset points", "va": "bottom", "rotation_mode": "anchor"}
    middle = math.sqrt(low * ridge)
    words = f"copy {units.with_unit(copy, 'B/s')}"
    axes.annotate(words, (middle, middle * copy), (-2, 5), ha="center", rotation=slope, **at)
    axes.annotate(f"matrix product {units.with_unit(product, 'FLOP/s')}", (high, product), (-2, 4), ha="right", **at)


def ratio_bars(rows: Sequence[dict[str, Any]], suite: str, dtype: str) -> Drawing | None:
    """The ratio of each row of one suite and dtype to torch, as bars from 1; a panel for each direction.

    Args:
        rows: a record's rows.
        suite: whose rows are drawn.
        dtype: the same.
    """
    chosen = [r for r in timed(rows) if r["suite"] == suite and r["dtype"] == dtype and "torch" in r["ratio"]]
    if not chosen:
        return None
    panels = {d: [row for row in chosen if row["direction"] == d] for d in MARKERS}
    panels = {
        direction: sorted(inside, key=lambda row: row["ratio"]["torch"])
        for direction, inside in panels.items()
        if inside
    }
    names = {direction: _layer_names(inside) for direction, inside in panels.items()}
    figure, all_axes = _bar_panels(list(names.values()), bars=2.3, numbers=0.5)
    slower = sum(row["ratio"]["torch"] < 1 for row in chosen if records.counts(row))
    drawing = Drawing(
        figure,
        f"Bars of the ratio to torch of the {len(chosen)} {dtype} rows of {suite}, sorted; in {slower} of them fastnn "
        "is the slower. " + TABLE,
    )
    everything = [value for row in chosen for value in row["ratio"].values()]
    limits = min(0.8, min(everything) / 1.1), max(1.25, max(everything) * 1.1)
    for axes, (direction, inside) in zip(all_axes, panels.items(), strict=True):
        axes.set_title(f"{suite}, {dtype}, {direction.replace('_', ' ')}")
        _draw_ratios(axes, inside, limits, drawing)
    layouts = [layout for layout in LAYOUT_COLOURS if any(row["layout"] == layout for row in chosen)]
    handles: list[Any] = [Patch(facecolor=LAYOUT_COLOURS[layout], label=layout) for layout in layouts]
    if any(row["noisy"] for row in chosen):
        handles.append(Patch(facecolor=MUTED, edgecolor=PAPER, hatch="////", label="noisy"))
    if any("torch.compile" in row["ratio"] for row in chosen):
        compiled = {"marker": "D", "linestyle": "", "color": COMPILED_COLOUR, "markersize": 4}
        handles.append(Line2D([], [], label="against torch.compile", **compiled))
    figure.legend(handles=handles, loc="lower right", ncols=len(handles), bbox_to_anchor=(0.99, 0), borderaxespad=0.2)
    return drawing


def _draw_ratios(axes: Axes, rows: list[dict[str, Any]], limits: tuple[float, float], drawing: Drawing) -> None:
    for place, row in enumerate(rows):
        value = row["ratio"]["torch"]
        text = (
            f"{row_name(row)}\n{units.ratio(value)} × torch: fastnn {units.duration(row['seconds']['fastnn'])}, torch "
            f"{units.duration(row['seconds'].get('torch'))}, {units.share(row['fraction'].get('fastnn'))} of the limit"
        )
        noisy = {"hatch": "////", "edgecolor": PAPER, "linewidth": 0} if row["noisy"] else {}
        if row["noisy"]:
            text += f"\nnoisy: {row['noisy']}"
        colour = LAYOUT_COLOURS[row["layout"]]
        axes.barh(place, value - 1, 0.74, left=1, color=colour, **noisy)
        axes.patches[-1].set_gid(drawing.hint(text))
        compiled = row["ratio"].get("torch.compile")
        if compiled:
            axes.plot(compiled, place, "D", color=COMPILED_COLOUR, markersize=4)
        _beside(axes, place, units.ratio(value))
    axes.axvline(1, color=INK, linewidth=1.1)
    _ratio_axis(axes, "x", limits)
    axes.set_xlabel("× torch (above 1 fastnn is the faster)")


def _layer_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names for bars: with the op where there are several, and with how often a layer occurs."""
    several_ops = len({row["op"] for row in rows}) > 1
    names = [f"{row['op']} {row['case']}" if several_ops else row["case"] for row in rows]
    times = (f"  ×{row['multiplicity']}" if row["multiplicity"] > 1 else "" for row in rows)
    return [name + often for name, often in zip(names, times, strict=True)]


def _ratio_axis(axes: Axes, which: str, limits: tuple[float, float]) -> None:
    """A logarithmic axis with its ticks at powers of two, so that half and twice as fast are equally far from 1."""
    low, high = math.floor(math.log2(limits[0])), math.ceil(math.log2(limits[1]))
    step = max(1, math.ceil((high - low) / 7))
    ticks = [2.0**power for power in range(low - low % step, high + 1, step)]
    axes.set(**{f"{which}scale": "log", f"{which}lim": limits})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_minor_locator(NullLocator())
    inside = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
    getattr(axes, f"set_{which}ticks")(inside, [f"{tick:g}" for tick in inside])


def memory_bars(rows: Sequence[dict[str, Any]], title: str) -> Drawing | None:
    """Peak bytes of fastnn's rows as a fraction of torch's, which makes a network and a layer fit one scale.

    Args:
        rows: the rows to draw, in this order; those without both peers' peak are left out.
        title: of the figure.
    """
    chosen = [r for r in timed(rows) if r["peak_bytes"].get("torch") and "fastnn" in r["peak_bytes"]]
    if not chosen:
        return None
    names = [
        ", ".join((name, row["layout"], row["dtype"], row["direction"].replace("_", " ")))
        for name, row in zip(_layer_names(chosen), chosen, strict=True)
    ]
    figure, (axes,) = _bar_panels([names], bars=4.5, numbers=2.6)
    more = sum(row["peak_bytes"]["fastnn"] > row["peak_bytes"]["torch"] for row in chosen)
    drawing = Drawing(
        figure,
        f"{title}: bars of fastnn's peak over torch's for {len(chosen)} rows; in {more} fastnn's is the higher. "
        + TABLE,
    )
    axes.set_title(title)
    for place, row in enumerate(chosen):
        mine, theirs = row["peak_bytes"]["fastnn"], row["peak_bytes"]["torch"]
        axes.barh(place, mine / theirs, 0.74, color=RED if mine > theirs else BLUE)
        text = f"fastnn {units.size(mine)}, torch {units.size(theirs)}"
        axes.patches[-1].set_gid(drawing.hint(f"{row_name(row)}\n{text}: {units.share(mine / theirs)}"))
        _beside(axes, place, text)
    axes.axvline(1, color=INK, linewidth=1.1)
    axes.set_xlim(0, 1.05 * max(1, *(row["peak_bytes"]["fastnn"] / row["peak_bytes"]["torch"] for row in chosen)))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("of torch's peak (below 100 % fastnn needs less)")
    return drawing


def _beside(axes: Axes, place: float, text: str) -> None:
    """Writes the numbers of a bar to the right of the axes, where no bar and no other mark can be."""
    where = {"xycoords": ("axes fraction", "data"), "va": "center_baseline"}
    axes.annotate(text, (1.02, place), fontsize=8.5, **where)


def _bar_panels(names: Sequence[Sequence[str]], bars: float, numbers: float) -> tuple[Figure, list[Axes]]:
    """A figure of panels with horizontal bars, all of them equally thick in every figure.

    Args:
        names: for each panel the names of its bars, the first on top.
        bars: width of a panel's bars, in inches.
        numbers: room to the right of the bars, in inches.
    """
    left = 0.3 + CHARACTER * max(len(name) for panel in names for name in panel)
    slots = max(map(len, names))
    above, below = 0.32, 0.75
    width, height = len(names) * (left + bars + numbers), above + BAR * slots + below
    figure = Figure(figsize=(width, height))
    all_axes = []
    for place, panel in enumerate(names):
        start = place * (left + bars + numbers) + left
        axes = figure.add_axes((start / width, below / height, bars / width, BAR * slots / height))
        axes.set_yticks(range(len(panel)), panel, fontsize=8.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_ylim(slots - 0.5, -0.5)
        # Drawing the bars shall not move them.
        axes.set_autoscaley_on(False)
        all_axes.append(axes)
    return figure, all_axes


def trend(runs: Sequence[str], means: dict[tuple[str, str, str], list[float | None]]) -> Drawing | None:
    """Geometric means over the runs of one machine: a panel for each dtype and direction, a line for each suite.

    Args:
        runs: names of the runs, the oldest first.
        means: by suite, dtype and direction the mean in every run, None where it was not measured.
    """
    means = {key: values for key, values in means.items() if any(value is not None for value in values)}
    if not means:
        return None
    suites, dtypes = (list(dict.fromkeys(key[place] for key in means)) for place in (0, 1))
    directions = [direction for direction in MARKERS if any(key[2] == direction for key in means)]
    height = 2.3 * len(dtypes) + 0.8
    figure = Figure(figsize=(11.6, height))
    drawing = Drawing(
        figure,
        f"Geometric mean of the ratio to torch of {len(suites)} suites over {len(runs)} runs, from {runs[0]} to "
        f"{runs[-1]}. The table that follows has the same figures.",
    )
    panels = figure.subplots(len(dtypes), len(directions), squeeze=False, sharex=True, sharey=True)
    figure.subplots_adjust(left=0.06, right=0.86, top=1 - 0.35 / height, bottom=0.85 / height, hspace=0.25, wspace=0.08)
    everything = [value for values in means.values() for value in values if value is not None]
    limits = min(0.9, min(everything) / 1.1), max(1.1, max(everything) * 1.1)
    styles = dict(zip(suites, SERIES * (len(suites) // len(SERIES) + 1), strict=False))
    for dtype, line in zip(dtypes, panels, strict=True):
        for direction, axes in zip(directions, line, strict=True):
            axes.set_title(f"{dtype}, {direction.replace('_', ' ')}", fontsize=9.5)
            axes.axhline(1, color=INK, linewidth=1.1, zorder=1)
            for (suite, *where), values in means.items():
                if where == [dtype, direction]:
                    colour, marker = styles[suite]
                    known = [(place, value) for place, value in enumerate(values) if value is not None]
                    axes.plot(*zip(*known, strict=True), marker=marker, color=colour, markersize=4.5, linewidth=1.4)
            _ratio_axis(axes, "y", limits)
    for axes in panels[-1]:
        axes.set_xticks(range(len(runs)), runs, rotation=30, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_xlim(-0.25, len(runs) - 0.75)
    handles = [Line2D([], [], color=colour, marker=marker, label=name) for name, (colour, marker) in styles.items()]
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.865, 1 - 0.3 / height))
    return drawing
