"""How the report's pictures look, and how a figure becomes an image that a page can hold.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; every kind of thing has a marker
of its own as well. Sizes are in points, 1/72 inch, and a figure has one pixel per point, so that text can be measured.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

BLUE, VERMILLION, GREEN, ORANGE, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#000000"
INK, MUTED, FAINT = "#222222", "#595959", "#c8c8c8"

WIDTH = 840.0  # points; 1120 pixels of a page
FONT = 9.0
SMALL = 8.0
LONGEST = 44  # characters of a label

DIVERGING, SEQUENTIAL = "RdBu_r", "cividis"

_RC: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": FONT,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": FONT,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib: every machine measures and draws the same letters
    "font.size": FONT,
    "legend.fontsize": FONT,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a name with dollar signs is a name
    "svg.hashsalt": "weightformer",  # the same picture is the same file
    "xtick.color": MUTED,
    "xtick.labelsize": SMALL,
    "ytick.color": MUTED,
    "ytick.labelsize": SMALL,
}


@dataclass(frozen=True)
class Picture:
    """An image with what stands around it: a title, how to read it, and a text for whoever cannot see it."""

    title: str
    caption: str
    alt: str
    source: str  # a data URI
    width: int  # in pixels of a page
    height: int


@contextmanager
def styled() -> Iterator[None]:
    """Make and save figures in the report's style; matplotlib's own settings come back afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of a size in points."""
    made = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasAgg(made)
    return made


def axes(of: Figure, left: float, bottom: float, width: float, height: float, **options: object) -> Axes:
    """Return axes at a place given in points from the figure's lower left corner."""
    total_width, total_height = of.get_size_inches() * 72
    place = (left / total_width, bottom / total_height, width / total_width, height / total_height)
    return of.add_axes(place, **options)  # type: ignore[call-overload, no-any-return]


def picture(of: Figure, title: str, caption: str, alt: str) -> Picture:
    """Return the figure as an SVG that is part of the page."""
    file = io.BytesIO()
    of.savefig(file, format="svg", metadata={"Date": None})
    width, height = (round(inches * 96) for inches in of.get_size_inches())
    source = "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(title, caption, alt, source, width, height)


@lru_cache(maxsize=1024)
def text_width(text: str, size: float = FONT, weight: str = "normal") -> float:
    """Return how many points a line of text takes."""
    return float(
        TextPath((0, 0), text, size, prop=FontProperties(family="DejaVu Sans", weight=weight)).get_extents().x1
    )


def fitted(text: str, room: float, weight: str = "normal") -> str:
    """Return a text that takes at most `room` points, with its middle left out as far as needed."""
    length = len(text)
    while length > 3 and text_width(short(text, length), FONT, weight) > room:
        length -= 1
    return short(text, length)


def short(text: str, longest: int = LONGEST) -> str:
    """Return a text that fits a label, with its middle left out where it is long."""
    if len(text) <= longest:
        return text
    head = (longest - 1) * 2 // 3
    return f"{text[:head].rstrip()}…{text[-(longest - 1 - head) :].lstrip()}"
