"""What the model learned to look at: the gate of its attention, and the gates of its output over the teachers."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from weightformer.compare.evidence import BucketedGate, DenseGate, RowGates
from weightformer.compare.table import ONE_PASS, Comparison
from weightformer.report.pictures import style
from weightformer.report.pictures.style import Picture

LAYERS = 6  # shown at most
TITLE = "The learned gate"


def gates(comparison: Comparison) -> list[Picture]:
    """Return a picture for every gate that the comparison holds."""
    found = comparison.evidence
    pictures = []
    if found.row_gates is not None:
        pictures.append(_row_gates(found.row_gates))
    if found.dense_gate is not None:
        pictures.append(_dense(found.dense_gate))
    if found.bucketed_gate is not None:
        pictures.append(_bucketed(found.bucketed_gate))
    return pictures


def sentence(comparison: Comparison) -> str:
    """Say which gates the WeightFormer has, in words."""
    found = comparison.evidence
    shown = found.bucketed_gate or found.dense_gate
    parts = []
    if found.row_gates is not None:
        parts.append("The WeightFormer's output has a gate over the teachers for every row.")
    if shown is None:
        parts.append("The WeightFormer's attention has no learned gate.")
    elif shown.method == ONE_PASS:
        parts.append("The WeightFormer's attention has a learned gate.")
    else:
        parts.append(f"The WeightFormer's attention has no learned gate; that of \u201c{shown.method}\u201d is shown.")
    if found.blend:
        shares = ", ".join(f"{layer} {share:.2f}" for layer, share in found.blend)
        parts.append(
            "Its output is a learned prior that the teachers' mean pulls on; the share of the mean that it learned:"
            f" {shares}."
        )
    return " ".join(parts)


def _row_gates(found: RowGates) -> Picture:
    """Return the gates of the output: one heat map of teachers by rows for each layer."""
    picked = sorted({round(i) for i in np.linspace(0, len(found.layers) - 1, min(LAYERS, len(found.layers)))})
    values = [np.array(found.values[i], dtype=float) for i in picked]
    teachers = len(values[0])
    left, bottom, right, between, top = 60.0, 44.0, 76.0, 18.0, 26.0
    tall = max(30.0 * teachers, 110.0)
    made = style.figure(bottom + tall + top)
    room = style.WIDTH - left - right - (len(values) - 1) * between
    # A layer of few rows still has room for its name.
    sizes = np.maximum([v.shape[1] for v in values], 0.09 * sum(v.shape[1] for v in values))
    widths = room * sizes / sizes.sum()
    even = 1 / teachers
    reach = max(float(np.nanmax(np.abs(np.concatenate([v.ravel() for v in values]) - even))), 1e-6)
    x = left
    for i, layer, width in zip(range(len(picked)), picked, widths, strict=True):
        axes = style.axes(made, x, bottom, float(width), tall)
        n = values[i].shape[1]
        image = axes.imshow(
            values[i],
            cmap=style.DIVERGING,
            vmin=even - reach,
            vmax=even + reach,
            aspect="auto",
            interpolation="nearest",
            extent=(0.5, n + 0.5, teachers + 0.5, 0.5),
        )
        axes.set_title(
            style.fitted(found.layers[layer], float(width) + between - 8, "bold"),
            loc="left",
            weight="bold",
            color=style.INK,
        )
        axes.spines[:].set_visible(True)
        axes.yaxis.set_major_locator(FixedLocator(range(1, teachers + 1)))
        axes.xaxis.set_major_locator(MaxNLocator(max(2, int(width / 40)), integer=True, min_n_ticks=1))
        axes.tick_params(labelleft=i == 0, left=i == 0)
        axes.set_xlabel("row")
        if i == 0:
            axes.set_ylabel("teacher")
        x += float(width) + between
    side = style.axes(made, style.WIDTH - right + 14, bottom, 12, tall)
    made.colorbar(image, cax=side).set_label("weight of the teacher")
    side.yaxis.set_major_locator(MaxNLocator(4))
    cropped = any(found.sizes[layer] > v.shape[1] for layer, v in zip(picked, values, strict=True))
    caption = (
        f"What every row of every teacher counts in the student of the first held-out group; 1/{teachers} is the plain"
        " mean (white), more is red, less is blue. A free correction is added to the gated sum and is not shown."
        + (" The first rows of each layer." if cropped else "")
        + (f" {len(picked)} of {len(found.layers)} layers." if len(picked) < len(found.layers) else "")
    )
    every = np.concatenate([v.ravel() for v in values])
    alt = (
        f"Heat maps of the gates of {teachers} teachers by row for {len(values)} layers; they range from"
        f" {np.nanmin(every):.3f} to {np.nanmax(every):.3f} around {even:.3f}."
    )
    return style.picture(made, f"{TITLE} over the teachers", caption, alt)


def _dense(found: DenseGate) -> Picture:
    """Return the gate between all tokens of one layer, as the difference to where it started."""
    values = np.array(found.values, dtype=float)
    np.fill_diagonal(values, np.nan)  # the own token is open by definition
    difference = values - found.initial
    kept = difference[np.isfinite(difference)]
    reach = max(float(np.percentile(np.abs(kept), 99.5)) if kept.size else 0.0, 1e-4)
    left, bottom, size = 150.0, 44.0, 420.0
    made = style.figure(bottom + size + 14)
    axes = style.axes(made, left, bottom, size, size)
    axes.set_facecolor("#d9d9d9")
    length = len(values)
    image = axes.imshow(
        difference,
        cmap=style.DIVERGING,
        vmin=-reach,
        vmax=reach,
        interpolation="nearest",
        extent=(0, length, length, 0),
    )
    _blocks(axes, found)
    side = style.axes(made, left + size + 14, bottom, 12, size)
    made.colorbar(image, cax=side, extend="both").set_label(f"gate \u2212 {found.initial:.3f}, where it started")
    caption = (
        f"How open each token (line) is for each other (column) in a layer of {found.rows} neurons, in"
        f" \u201c{found.method}\u201d, as the difference to the {found.initial:.3f} at which every entry starts; 0 is"
        " closed, 1 is open. Own tokens (grey) are always open."
    )
    alt = (
        f"Heat map of the learned gate of {found.method} between {length} tokens of {found.teachers} teachers; values"
        f" range from {np.nanmin(values):.3f} to {np.nanmax(values):.3f}, all started at {found.initial:.3f}."
    )
    return style.picture(made, f"{TITLE} of the attention", caption, alt)


def _blocks(axes: Axes, found: DenseGate) -> None:
    """Name the tokens on both axes and draw lines between the teachers."""
    starts = [found.cross + found.rows * t for t in range(found.teachers)]
    middles = [start + found.rows / 2 for start in starts]
    names = [f"teacher {t}" for t in range(1, found.teachers + 1)]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(middles, names)
    axes.tick_params(length=0)
    axes.set_xlabel("is read" + (f" (the first {_tokens(found.cross)}: from earlier layers)" if found.cross else ""))
    axes.set_ylabel("reads")
    for start in starts[1:]:
        axes.axhline(start, color=style.INK, linewidth=0.6)
        axes.axvline(start, color=style.INK, linewidth=0.6)
    axes.spines[:].set_visible(True)


def _tokens(count: int) -> str:
    return "token" if count == 1 else f"{count} tokens"


def _bucketed(found: BucketedGate) -> Picture:
    """Return the gate as curves over the difference of two neurons' numbers."""
    left, bottom, tall = 60.0, 44.0, 230.0
    made = style.figure(bottom + tall + 34)
    axes = style.axes(made, left, bottom, style.WIDTH - left - 20, tall)
    looks = ((style.BLUE, "o"), (style.VERMILLION, "s"), (style.GREEN, "^"), (style.BLACK, "D"))
    middles = [(low + high) / 2 for low, high in found.edges]
    for name, curve, (color, marker) in zip(found.names, found.curves, looks, strict=False):
        axes.plot(middles, curve, color=color, marker=marker, markersize=4.5, linewidth=1.1, label=name)
    axes.axhline(found.initial, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    far = max(abs(middle) for middle in middles) or 1.0
    axes.set_xscale("symlog", linthresh=8, linscale=1.5)
    axes.set_xlim(-1.15 * far, 1.15 * far)
    ticks = [sign * d for d in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if d <= far for sign in (-1, 1)]
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(ticks))))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "\u2212"))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.grid(axis="y", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("number of the reading neuron \u2212 number of the one that is read (logarithmic beyond 8)")
    axes.set_ylabel("gate (0 closed, 1 open)")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(found.names), columnspacing=1.6)
    flat = [value for curve in found.curves for value in curve]
    caption = (
        f"How open tokens are for each other, by the distance of their neurons, in \u201c{found.method}\u201d; own"
        f" tokens are always open. Dashed: {found.initial:.3f}, where every entry starts."
    )
    alt = (
        f"Line chart of the learned gate of {found.method} over the distance of two neurons, for"
        f" {', '.join(found.names)}; values range from {min(flat):.3f} to {max(flat):.3f}."
    )
    return style.picture(made, f"{TITLE} of the attention", caption, alt)
