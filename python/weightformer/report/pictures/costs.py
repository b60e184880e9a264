"""Accuracy against what a method costs, for every method of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from weightformer.compare.table import Comparison, Row
from weightformer.report.pictures import style
from weightformer.report.pictures.labels import Mark, Place, place
from weightformer.report.pictures.style import Picture

# Kind: what the legend calls it, colour of the mark, marker, colour and weight of the label.
KINDS = {
    "weightformer": ("WeightFormer", style.BLUE, "o", style.BLUE, "bold"),
    "baseline": ("other methods", style.VERMILLION, "s", style.INK, "normal"),
    "control": ("controls", "#8a8a8a", "D", style.MUTED, "normal"),
}
LINE = 12.5  # points from one label to the next
LEFT, BOTTOM, TOP, SPLIT = 60.0, 46.0, 34.0, 16.0

SPREAD = "Bars: one standard deviation over the groups. "
ALIKE = "Methods of equal cost stand side by side. "
CUT = "The scale is broken, so that methods far below do not squeeze the others. "
GAP = 1.0  # percentage points that a break of the scale leaves out at least


@dataclass(frozen=True)
class _Point:
    name: str
    kind: str
    x: float
    y: float
    spread: float  # NaN where there is one group only

    @property
    def low(self) -> float:
        return self.y if math.isnan(self.spread) else self.y - self.spread

    @property
    def high(self) -> float:
        return self.y if math.isnan(self.spread) else self.y + self.spread


def inference(comparison: Comparison) -> Picture | None:
    """Return accuracy against passes of one network per image, with the operations they take."""
    flop = comparison.evidence.flop

    def ticks(axes: Axes, values: Sequence[float]) -> None:
        low, high = min(values), max(values)
        room = 0.08 * (high - low) or 1.0
        axes.set_xlim(low - room, high + room)
        axes.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda passes, _: _passes(passes, flop)))

    return _chart(
        comparison,
        lambda row: float(row.cost.passes),
        ticks,
        "cost of inference: passes of one network per image" + (" and floating-point operations" if flop else ""),
        "Accuracy against the cost of inference",
        "Up and to the left is better. The dashed line is the ensemble. ",
    )


def _passes(passes: float, flop: int | None) -> str:
    text = "1 pass" if passes == 1 else f"{passes:g} passes"
    return f"{text}\n{passes * flop / 1e6:.3g} MFLOP" if flop else text


def steps(comparison: Comparison) -> Picture | None:
    """Return accuracy against steps of gradient descent spent on one group."""

    def ticks(axes: Axes, values: Sequence[float]) -> None:
        positive = [value for value in values if value > 0]
        first, last = 0.8 * min(positive, default=10.0), max(max(positive, default=10.0), 10.0)
        # Room for those that train nothing, whose labels stand between 0 and the first step.
        axes.set_xscale("symlog", linthresh=first, linscale=0.6 * max(1.0, math.log10(last / first)))
        axes.set_xlim(-0.11 * first, last * 1.25)
        apart = [0.0]
        for value in sorted(positive):
            if value >= 1.3 * apart[-1]:
                apart.append(value)
        axes.xaxis.set_major_locator(FixedLocator(apart))
        decades = range(math.floor(math.log10(first)), math.ceil(math.log10(last)))
        between = [k * 10.0**decade for decade in decades for k in range(1, 10)]
        axes.xaxis.set_minor_locator(FixedLocator([value for value in between if value >= first]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value else "none"))
        axes.xaxis.set_minor_formatter(NullFormatter())

    return _chart(
        comparison,
        lambda row: float(row.cost.steps),
        ticks,
        "cost of training for one group of teachers: steps of gradient descent (logarithmic)",
        "Accuracy against steps of training",
        "What the WeightFormer's own training cost, once for all groups, stands under \u201cAlso measured\u201d. ",
    )


def seconds(comparison: Comparison) -> Picture | None:
    """Return accuracy against the seconds from one group's weights to networks that are ready to use."""

    def ticks(axes: Axes, values: Sequence[float]) -> None:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 1.3, max(values) * 1.3)
        near = max(values) < 1000 * min(values)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if near else (1.0,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
        axes.xaxis.set_minor_formatter(NullFormatter())

    return _chart(
        comparison,
        # A method that has nothing to do takes no time that a logarithm could show.
        lambda row: max(row.seconds, 1e-3),
        ticks,
        "cost for one group of teachers: seconds until the network is ready to use (logarithmic)",
        "Accuracy against time",
        "Alignment and running statistics count, judging does not. Less than a millisecond is shown as one. Controls,"
        " which nobody would use, are left out. ",
        without=("control",),
    )


def _chart(
    comparison: Comparison,
    cost: Callable[[Row], float],
    ticks: Callable[[Axes, Sequence[float]], None],
    label: str,
    title: str,
    how: str,
    without: Sequence[str] = (),
) -> Picture | None:
    """Return one picture of all kinds of methods but some, or None where no method has an accuracy."""
    points = []
    for row in comparison.rows:
        if row.kind in without:
            continue
        x, summary = cost(row), row.summary
        if math.isfinite(x) and math.isfinite(summary.mean.accuracy):
            points.append(_Point(row.method, row.kind, x, summary.mean.accuracy, summary.std.accuracy))
    if not points:
        return None
    ensemble = next((p.y for p in points if p.name == "ensemble"), None)
    broken = cut([p.y for p in points])
    drawn = _figure(points, ticks, label, ensemble, broken)
    best = max(points, key=lambda p: p.y)
    caption = how + ALIKE + (SPREAD if comparison.groups > 1 else "") + (CUT if broken is not None else "")
    alt = (
        f"Scatter plot of {len(points)} methods, accuracy in percent against {label}. Highest: {best.name} with"
        f" {best.y:.2f} percent; lowest: {min(p.y for p in points):.2f} percent. All numbers stand in the table."
    )
    return style.picture(drawn, title, caption.strip(), alt)


def cut(values: Sequence[float]) -> float | None:
    """Return the value under which the axis is broken: the first wide gap below the better half, if there is one."""
    ordered = sorted(values, reverse=True)
    for k in range(max(3, math.ceil(len(ordered) / 2)), len(ordered)):
        span = ordered[0] - ordered[k - 1]
        if ordered[k - 1] - ordered[k] > max(0.5 * span, GAP):
            return (ordered[k - 1] + ordered[k]) / 2
    return None


def _figure(
    points: Sequence[_Point],
    ticks: Callable[[Axes, Sequence[float]], None],
    label: str,
    ensemble: float | None,
    broken: float | None,
) -> Figure:
    """Return the figure, with as little room for labels on the right as they need."""
    rightmost = max(p.x for p in points)
    for behind in ([p for p in points if p.x == rightmost], points):
        made = _Chart(points, ticks, label, ensemble, broken, max(_width(p) for p in behind) + 32)
        if made.right <= style.WIDTH:
            break
    return made.figure


class _Chart:
    """A figure of one pair of axes, or two where the scale is broken; right: where its last label ends."""

    def __init__(
        self,
        points: Sequence[_Point],
        ticks: Callable[[Axes, Sequence[float]], None],
        label: str,
        ensemble: float | None,
        broken: float | None,
        behind: float,
    ) -> None:
        upper = [p for p in points if broken is None or p.y > broken]
        lower = [p for p in points if broken is not None and p.y <= broken]
        high = max(270.0, LINE * (len(upper) + 2))
        low = max(64.0, LINE * (len(lower) + 1)) if lower else 0.0
        under = BOTTOM + (low + SPLIT if lower else 0.0)
        self.figure = style.figure(under + high + TOP)
        width = style.WIDTH - LEFT - behind
        parts = [(style.axes(self.figure, LEFT, under, width, high), upper)]
        if lower:
            parts.append((style.axes(self.figure, LEFT, BOTTOM, width, low), lower))
        self.right = 0.0
        for axes, shown in parts:
            axes.set_ylim(*_limits(shown))
            ticks(axes, [p.x for p in points])
            axes.yaxis.set_major_locator(MaxNLocator(7 if shown is upper else 4, steps=[1, 2, 2.5, 5, 10]))
            if shown is lower:
                _clear_top(axes)
            axes.grid(axis="y", color="#ececec", linewidth=0.8)
            axes.set_axisbelow(True)
            if ensemble is not None and any(p.y == ensemble for p in shown):
                axes.axhline(ensemble, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            self.right = max(self.right, _draw(axes, shown))
        first, last = parts[0][0], parts[-1][0]
        if first is not last:
            first.spines.bottom.set_visible(False)
            first.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
            _mark_break(first, last)
        last.set_xlabel(label)
        middle = (under + high / 2) / (under + high + TOP)
        self.figure.text(8 / style.WIDTH, middle, "accuracy, %", rotation=90, va="center", color=style.INK)
        _legend(first, [kind for kind in KINDS if any(p.kind == kind for p in points)])


def _legend(axes: Axes, kinds: Sequence[str]) -> None:
    handles = [
        Line2D([], [], color=KINDS[k][1], marker=KINDS[k][2], linestyle="none", markersize=6, label=KINDS[k][0])
        for k in kinds
    ]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=len(kinds),
        columnspacing=1.6,
        handletextpad=0.2,
    )


def _width(point: _Point) -> float:
    return style.text_width(style.short(point.name), style.SMALL + 0.5, KINDS[point.kind][4])


def _limits(points: Sequence[_Point]) -> tuple[float, float]:
    """Return the ends of an axis; bars that reach far out of the points' own range are cut off."""
    low, high = min(p.y for p in points), max(p.y for p in points)
    reach = 0.5 * (high - low) or max(p.high - p.low for p in points) or 1.0
    low, high = max(min(p.low for p in points), low - reach), min(max(p.high for p in points), high + reach)
    room = 0.06 * (high - low) or 1.0
    return max(low - room, -3.0), min(high + room, 101.0)


def _draw(axes: Axes, points: Sequence[_Point]) -> float:
    """Draw marks, bars and labels on axes that are ready; return where the last label ends, in points."""
    box = axes.bbox
    marks = []
    for p in points:
        (x, y), (_, low), (_, high) = axes.transData.transform([(p.x, p.y), (p.x, p.low), (p.x, p.high)])
        marks.append(Mark(float(x), float(y), float(low), float(high), _width(p)))
    places = place(marks, LINE, box.y0 + LINE / 2, box.y1 - LINE / 2)
    for point, where in zip(points, places, strict=True):
        _draw_one(axes, point, where)
    return max(where.label_x + mark.width for where, mark in zip(places, marks, strict=True))


def _draw_one(axes: Axes, point: _Point, where: Place) -> None:
    _, color, marker, ink, weight = KINDS[point.kind]
    x = float(axes.transData.inverted().transform((where.x, where.y))[0])
    if math.isfinite(point.spread):
        axes.errorbar(x, point.y, point.spread, color=color, linewidth=1.1, capsize=2.2, alpha=0.75, zorder=3)
    axes.plot(
        x,
        point.y,
        marker,
        color=color,
        markersize=7.0 if point.kind == "weightformer" else 5.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=4,
        clip_on=False,
    )
    axes.annotate(
        style.short(point.name),
        (x, point.y),
        (where.label_x, where.label_y),
        textcoords="figure pixels",
        va="center",
        color=ink,
        weight=weight,
        fontsize=style.SMALL + 0.5,
        annotation_clip=False,
        zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        arrowprops={
            "arrowstyle": "-",
            "relpos": (0.0, 0.5),
            "color": style.FAINT,
            "linewidth": 0.7,
            "shrinkA": 2,
            "shrinkB": 4,
        },
    )


def _clear_top(axes: Axes) -> None:
    """Leave out ticks where the strokes of the break stand."""
    low, high = axes.get_ylim()
    ticks = axes.yaxis.get_major_locator().tick_values(low, high)
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= high - 0.15 * (high - low)]))


def _mark_break(above: Axes, below: Axes) -> None:
    """Draw the two strokes that say that an axis is broken."""
    for axes, end in ((above, 0), (below, 1)):
        axes.plot(
            [0],
            [end],
            transform=axes.transAxes,
            marker=[(-1, -0.6), (1, 0.6)],
            markersize=8,
            linestyle="none",
            color=style.MUTED,
            clip_on=False,
        )
