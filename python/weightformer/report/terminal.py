"""What a comparison prints."""

from __future__ import annotations

import math

import torch
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from weightformer.compare.table import Comparison, Gate, Row

WIDTH = 172
KINDS = {"baseline": "", "weightformer": "bold", "control": "italic"}


def show(comparison: Comparison, seconds: float) -> Group:
    """Return the table, the facts and the gates as one printable."""
    # A row stays on one line, so that the output can be searched and pasted: nothing wraps, the terminal scrolls.
    table = Table(title=f"{comparison.title}\n{_groups(comparison)}", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("method", "accuracy %", "NLL", "Brier", "ECE %", "NLL, T-scaled", "ECE %, T-scaled"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for name in ("passes", "parameters", "steps", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, style in KINDS.items():
        for row in comparison.rows:
            if row.kind == kind:
                table.add_row(*_cells(row), style=style)
        table.add_section()
    facts = [Text(f"  {what}: {_number(value)} {unit}") for what, value, unit in comparison.facts]
    notes = [Text(f"  {row.method}: {row.note}") for row in comparison.rows if row.note]
    gates = [_gate(gate) for gate in comparison.gates]
    parts: list[RenderableType] = [table, Text("Also measured"), *facts, Text("Notes"), *notes]
    if gates:
        parts += [Text("Gates"), *gates]
    parts.append(Text(f"Total {seconds:.0f} s, seed {comparison.seed}, {torch.get_num_threads()} threads"))
    return Group(*parts)


def _groups(comparison: Comparison) -> str:
    return f"{comparison.groups} groups of held-out teachers; mean ± standard deviation over groups; controls last"


def _cells(row: Row) -> list[str]:
    mean, std = row.summary.mean, row.summary.std
    one = math.isnan(std.accuracy)  # a single group has no spread
    return [
        row.method,
        f"{mean.accuracy:.2f}" if one else f"{mean.accuracy:.2f} ±{std.accuracy:5.2f}",
        f"{mean.nll:.3f}" if one else f"{mean.nll:.3f} ±{std.nll:.3f}",
        f"{mean.brier:.3f}",
        f"{mean.ece:.2f}",
        f"{mean.scaled_nll:.3f}",
        f"{mean.scaled_ece:.2f}",
        str(row.cost.passes),
        f"{row.cost.parameters:,}",
        str(row.cost.steps),
        f"{row.seconds:.3f}",
    ]


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.4g}"


def _gate(gate: Gate) -> Text:
    sign = "<=" if gate.at_most else ">="
    verdict = ("holds", "green") if gate.holds else ("MISSED", "bold red")
    return Text.assemble(f"  {gate.text}: {gate.value:.2f} {sign} {gate.bound:g} ", verdict)


def console() -> Console:
    """Return a console for results, wide enough that no row of a table is cut."""
    found = Console()
    return found if found.width >= WIDTH else Console(width=WIDTH)
