"""Do students agree with their own teachers' ensemble, or with any?"""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from weightformer.compare.evidence import Matrix
from weightformer.compare.table import Comparison
from weightformer.report.pictures import style
from weightformer.report.pictures.style import Picture

WRITTEN = 8  # groups up to which every cell has its number
ALIKE = 90.0  # percent; the scale of the agreement begins here or below


def agreement(comparison: Comparison) -> Picture | None:
    """Return KL and agreement of every student with every ensemble, or None where they were not collected."""
    found = comparison.evidence.agreement
    if found is None:
        return None
    n = len(found.kl)
    left, bottom, size, bar = 60.0, 44.0, 270.0, 12.0
    made = style.figure(bottom + size + 34)
    # Scales with a fixed end: differences that do not matter should not look as if they did.
    kl, percent = (_known(values) for values in (found.kl, found.percent))
    farthest, fewest = max([*kl, 1e-6]), min([*percent, ALIKE])
    for column, (values, title, unit, ends, colors) in enumerate(
        (
            (
                found.kl,
                "KL divergence of the student from the ensemble",
                "nats (less is closer)",
                (0.0, farthest),
                "_r",
            ),
            (found.percent, "images for which both name the same class", "% (more is closer)", (fewest, 100.0), ""),
        )
    ):
        x = left + column * (size + 150)
        axes = style.axes(made, x, bottom, size, size)
        side = style.axes(made, x + size + 10, bottom, bar, size)
        image = _matrix(axes, values, ends, style.SEQUENTIAL + colors)
        axes.set_title(title, loc="left", weight="bold", color=style.INK)
        axes.set_xlabel("ensemble of group")
        axes.set_ylabel("student of group")
        made.colorbar(image, cax=side).set_label(unit)
        side.yaxis.set_major_locator(MaxNLocator(6))
    caption = (
        "Every student predicted in one pass against every group's ensemble, on the student's test images; own teachers"
        " in the frame on the diagonal. Only where the diagonal stands out did the student take over what its own"
        " teachers know; where all cells are alike, it knows the task and not its teachers."
    )
    own, other = _means(found.kl)
    beside = "" if n == 1 else f" and {other:.3g} nats beside it"
    alt = f"Two heat maps, {n} students by {n} ensembles. Mean KL divergence is {own:.3g} nats on the diagonal{beside}."
    return style.picture(made, "Agreement between students and ensembles", caption, alt)


def _means(values: Matrix) -> tuple[float, float]:
    own = [value for i, row in enumerate(values) for j, value in enumerate(row) if i == j]
    other = [value for i, row in enumerate(values) for j, value in enumerate(row) if i != j]
    return fmean(own), fmean(other) if other else float("nan")


def _known(values: Matrix) -> list[float]:
    return [value for row in values for value in row if math.isfinite(value)]


def _matrix(axes: Axes, values: Matrix, ends: tuple[float, float], colors: str) -> AxesImage:
    found = np.array(values, dtype=float)
    n = len(found)
    image = axes.imshow(found, cmap=colors, vmin=ends[0], vmax=ends[1], extent=(0.5, n + 0.5, n + 0.5, 0.5))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(min(n, 8), integer=True, min_n_ticks=1))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for i in range(n):
        axes.add_patch(Rectangle((i + 0.5, i + 0.5), 1, 1, fill=False, edgecolor=style.VERMILLION, linewidth=1.6))
    if n > WRITTEN:
        return image
    for i, row in enumerate(found):
        for j, value in enumerate(row):
            red, green, blue, _ = image.cmap(image.norm(value))
            bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            text = f"{value:#.3g}"
            axes.text(
                j + 1, i + 1, text, ha="center", va="center", fontsize=style.SMALL, color="black" if bright else "white"
            )
    return image
