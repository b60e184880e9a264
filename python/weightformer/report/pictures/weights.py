"""One layer's weights in teachers and students, side by side."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.ticker import MaxNLocator

from weightformer.compare.table import Comparison
from weightformer.report.pictures import style
from weightformer.report.pictures.style import Picture

COLUMNS = 3
MEAN = "teachers' mean"
CLIPPED = 0.5  # percent of the weights, at either end, that may lie outside the colour scale


def weights(comparison: Comparison) -> Picture | None:
    """Return the weights of one layer in every network kept, or None where none was."""
    found = comparison.evidence.weights
    if found is None:
        return None
    values = [np.array(matrix, dtype=float) for matrix in found.values]
    n, width = values[0].shape
    limit = float(np.nanpercentile(np.abs(np.concatenate([v.ravel() for v in values])), 100 - CLIPPED)) or 1.0
    left, bottom, right, between, above, top = 46.0, 40.0, 80.0, 26.0, 26.0, 8.0
    panel = (style.WIDTH - left - right - (COLUMNS - 1) * between) / COLUMNS
    tall = min(max(panel * n / width, 100.0), 240.0)
    lines = math.ceil(len(values) / COLUMNS)
    total = bottom + lines * (tall + above) + (lines - 1) * 6 + top
    made = style.figure(total)
    for i, (name, matrix) in enumerate(zip(found.names, values, strict=True)):
        line, column = divmod(i, COLUMNS)
        x, y = left + column * (panel + between), bottom + (lines - 1 - line) * (tall + above + 6)
        axes = style.axes(made, x, y, panel, tall)
        image = axes.imshow(
            matrix,
            cmap=style.DIVERGING,
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            interpolation="nearest",
            extent=(0.5, width + 0.5, n + 0.5, 0.5),
        )
        axes.set_title(name, loc="left", weight="bold", color=style.BLUE if "predicted" in name else style.INK)
        if name != MEAN and MEAN in found.names:
            r = _correlation(matrix, values[found.names.index(MEAN)])
            axes.set_title(f"r = {r:.2f}", loc="right", fontsize=style.SMALL, color=style.MUTED)
        axes.spines[:].set_visible(True)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))
        axes.tick_params(labelleft=column == 0, labelbottom=i + COLUMNS >= len(values))
        if column == 0:
            axes.set_ylabel("neuron")
        if i + COLUMNS >= len(values):
            axes.set_xlabel("weight of the neuron")
    side = style.axes(made, style.WIDTH - right + 14, bottom, 12, total - bottom - above - top)
    unit = "difference to the base" if found.of_base else "weight"
    made.colorbar(image, cax=side, extend="both").set_label(unit)
    rows, columns = found.size
    part = "" if (rows, columns) == (n, width) else f" (of {rows} x {columns}, the first {n} x {width})"
    caption = (
        f"{found.layer} of the first held-out group, a line per neuron{part}; one colour scale for all, no unit."
        + (" Weights are differences to the base from which all teachers were fine-tuned." if found.of_base else "")
        + " Teachers are shown as the WeightFormer reads them: neurons in the common order where they were aligned."
        + (" r: correlation with the teachers' mean." if MEAN in found.names else "")
    )
    deviations = ", ".join(f"{name} {np.nanstd(v):.3g}" for name, v in zip(found.names, values, strict=True))
    alt = f"Heat maps of {found.layer} in {len(values)} networks, side by side. Standard deviations: {deviations}."
    return style.picture(made, "Weights of one layer: teachers, student, prediction", caption, alt)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Pearson's correlation of two matrices, NaN where one is constant."""
    if not one.std() or not other.std():
        return math.nan
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
