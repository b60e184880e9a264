"""Reliability diagrams: how often predictions of a given confidence are right, and how many there are of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from weightformer.compare.reliability import Bins
from weightformer.compare.table import ONE_PASS, Comparison, Row
from weightformer.report.pictures import style
from weightformer.report.pictures.style import Picture

FIRST = ("single teacher", "ensemble", ONE_PASS)
MOST = 6  # methods shown
COLUMNS = 3
SERIES = (("raw", "as it is", style.VERMILLION, "s"), ("scaled", "after temperature scaling", style.BLUE, "o"))
PANEL, COUNTS, APART = 190.0, 52.0, 8.0  # heights in points: of a diagram, of the counts below it, between the two


def reliability(comparison: Comparison) -> Picture | None:
    """Return the reliability diagrams of the main methods, or None where none was collected."""
    rows = chosen(comparison)
    if not rows:
        return None
    title = "Reliability: is a network as often right as it is confident?"
    caption = (
        "Test images by the highest probability, in bins of equal width; all groups together. On the diagonal"
        " confidence is accuracy, below it the network is overconfident. A small mark stands for fewer than one image"
        " in a hundred. ECE: mean over groups, before and after division by the temperature T."
    )
    spoken = "; ".join(f"{row.method}: {_spoken(row)}" for row in rows)
    alt = f"Reliability diagrams of {len(rows)} methods with the number of images in every bin. {spoken}."
    return style.picture(_figure(rows), title, caption, alt)


def chosen(comparison: Comparison) -> list[Row]:
    """Return what a reader asks for first, then the most accurate of each kind, as many as are shown."""
    rows = [row for row in comparison.rows if row.reliability is not None and math.isfinite(row.accuracy)]
    found = [row for name in FIRST for row in rows if row.method == name]
    rest = sorted((row for row in rows if row not in found), key=lambda row: -row.accuracy)
    for kind in ("weightformer", "baseline", "control"):
        found += [row for row in rest if row.kind == kind and row not in found][:1]
    found += [row for row in rest if row not in found]
    return found[:MOST]


def _spoken(row: Row) -> str:
    mean = row.summary.mean
    return f"ECE {mean.ece:.2f} percent, {mean.scaled_ece:.2f} percent after scaling"


def _figure(rows: Sequence[Row]) -> Figure:
    lines = math.ceil(len(rows) / COLUMNS)
    bottom, top, above, left, between = 40.0, 30.0, 34.0, 60.0, 34.0
    whole = PANEL + APART + COUNTS
    made = style.figure(bottom + lines * whole + (lines - 1) * (above + 20) + above + top)
    width = (style.WIDTH - left - 10 - (COLUMNS - 1) * between) / COLUMNS
    for i, row in enumerate(rows):
        line, column = divmod(i, COLUMNS)
        x, y = left + column * (width + between), bottom + (lines - 1 - line) * (whole + above + 20)
        counts = style.axes(made, x, y, width, COUNTS)
        diagram = style.axes(made, x, y + COUNTS + APART, width, PANEL)
        _diagram(diagram, row)
        _counts(counts, row)
        if column == 0:
            diagram.set_ylabel("right, % of the bin")
            counts.set_ylabel("images")
            for axes in (diagram, counts):
                axes.yaxis.set_label_coords(-42 / width, 0.5)
        if i + COLUMNS >= len(rows):
            counts.set_xlabel("confidence, %")
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=5.5, linewidth=1.2, label=label)
        for _, label, color, marker in SERIES
    ]
    handles.append(
        Line2D([], [], color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 3)), label="perfectly calibrated")
    )
    made.legend(handles=handles, loc="upper left", bbox_to_anchor=((left - 8) / style.WIDTH, 1.0), ncols=3)
    return made


def _bins(row: Row, name: str) -> Bins:
    assert row.reliability is not None
    found: Bins = getattr(row.reliability, name)
    return found


def _diagram(axes: Axes, row: Row) -> None:
    axes.plot([0, 100], [0, 100], color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for name, _, color, marker in SERIES:
        found = _bins(row, name)
        count = np.array(found.count, dtype=float)
        used = count > 0
        x = 100 * np.array(found.confidence)[used] / count[used]
        y = 100 * np.array(found.correct)[used] / count[used]
        sizes = np.where(count[used] < 0.01 * count.sum(), 9.0, 28.0)
        axes.plot(x, y, color=color, linewidth=1.0, alpha=0.55, zorder=2)
        axes.scatter(
            x, y, s=sizes, color=color, marker=marker, edgecolor="white", linewidth=0.5, zorder=3, clip_on=False
        )
    mean = row.summary.mean
    axes.set_title(style.short(row.method, 40), loc="left", pad=16, weight="bold", color=style.INK)
    values = f"ECE {mean.ece:.2f} % \u2192 {mean.scaled_ece:.2f} %,  T = {mean.temperature:.2f}"
    axes.text(0.0, 1.02, values, transform=axes.transAxes, fontsize=style.SMALL, color=style.MUTED)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.xaxis.set_major_locator(FixedLocator([0, 20, 40, 60, 80, 100]))
    axes.tick_params(axis="x", labelbottom=False)
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)


def _counts(axes: Axes, row: Row) -> None:
    """Draw the number of images in every bin, on a logarithmic axis, an outline for each series."""
    highest = 1
    for name, _, color, _ in SERIES:
        count = np.array(_bins(row, name).count, dtype=float)
        highest = max(highest, int(count.max(initial=1)))
        edges = np.linspace(0, 100, len(count) + 1)
        below, pale = name == "raw", 0.35
        axes.stairs(
            np.maximum(count, 0.5),
            edges,
            baseline=0.5,
            fill=below,
            alpha=pale if below else 1.0,
            color=color,
            linewidth=1.2,
        )
    axes.set_yscale("log")
    axes.set_ylim(0.5, 3 * highest)
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_locator(FixedLocator([0, 20, 40, 60, 80, 100]))
    axes.yaxis.set_major_locator(LogLocator(numticks=4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _compact(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", left=False)


def _compact(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
