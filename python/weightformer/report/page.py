"""The page that a comparison leaves behind: one HTML file that needs no network and no JavaScript."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from weightformer.compare.table import Comparison, Row
from weightformer.report import pictures
from weightformer.report.files import About, write_text
from weightformer.report.pictures import gates

MINUS, NOTHING, TIGHT = "\u2212", "\u2013", "\u00a0"
KINDS = {"weightformer": "WeightFormer", "baseline": "Other methods", "control": "Controls"}


@dataclass(frozen=True)
class Cell:
    """A mean with its standard deviation over groups, as text; no spread where there is one group."""

    mean: str
    spread: str


@dataclass(frozen=True)
class Line:
    """One row of the table. mark: the number of its note, 0 for none."""

    method: str
    cells: tuple[Cell, ...]
    mark: int


def write_html(comparison: Comparison, path: str | os.PathLike[str], seconds: float, *, command: str = "") -> None:
    """Write the report of a run that just ended: the whole file, or none. command: what started it, for repeating."""
    write_text(path, render(comparison, About.now(seconds, command)))


def render(comparison: Comparison, about: About) -> str:
    """Return the report as HTML. The same comparison and run give the same text."""
    notes = list(dict.fromkeys(row.note for row in comparison.rows if row.note))
    environment = Environment(
        loader=PackageLoader("weightformer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        comparison=comparison,
        about=about,
        sections=[
            (title, [_line(row, notes) for row in comparison.rows if row.kind == kind])
            for kind, title in KINDS.items()
            if any(row.kind == kind for row in comparison.rows)
        ],
        notes=notes,
        facts=[(what, number(value), unit) for what, value, unit in comparison.facts],
        verdicts=[
            (
                gate.text,
                _with_unit(f"{gate.value:.2f}".replace("-", MINUS), gate.unit),
                gate.at_most,
                _with_unit(number(gate.bound), gate.unit),
                gate.holds,
            )
            for gate in comparison.gates
        ],
        held=sum(gate.holds for gate in comparison.gates),
        pictures=pictures.of_results(comparison),
        gates=gates.sentence(comparison),
        gate_pictures=pictures.of_gates(comparison),
        settings=_flat(comparison.settings),
        duration=_duration(about.total_seconds),
    )


def _line(row: Row, notes: list[str]) -> Line:
    mean, std = row.summary.mean, row.summary.std

    def cell(name: str, digits: int) -> Cell:
        value, spread = getattr(mean, name), getattr(std, name)
        text = f"{value:.{digits}f}" if math.isfinite(value) else NOTHING
        shown = math.isfinite(spread) and name != "temperature"
        return Cell(text, f"{spread:.{digits}f}" if shown else "")

    measured = [("accuracy", 2), ("nll", 3), ("brier", 3), ("ece", 2)]
    scaled = [("temperature", 2), ("scaled_nll", 3), ("scaled_ece", 2)]
    costs = [str(row.cost.passes), f"{row.cost.parameters:,}", f"{row.cost.steps:,}", f"{row.seconds:.3f}"]
    cells = [cell(name, digits) for name, digits in measured + scaled] + [Cell(text, "") for text in costs]
    return Line(row.method, tuple(cells), notes.index(row.note) + 1 if row.note else 0)


def number(value: float) -> str:
    """Return a number with four significant digits, whole ones as they are."""
    if not math.isfinite(value):
        return NOTHING
    return (f"{value:.0f}" if value == int(value) else f"{value:.4g}").replace("-", MINUS)


def _with_unit(text: str, unit: str) -> str:
    return f"{text}{TIGHT}{unit}" if unit else text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    text = f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return text.replace(" ", TIGHT)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as names with dots and texts."""
    found: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, _plain(value)))
    return found


def _plain(value: Any) -> str:
    """Return a setting as its file would spell it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or NOTHING
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
