"""What a comparison prints."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from weightformer.compare.table import Comparison, Gate, Row

WIDTH = 172
KINDS = {"baseline": "", "weightformer": "bold", "control": "italic"}
# Column -> metric and digits. Means with their spread fill a terminal of 120 columns, so that of several groups the
# scaled metrics stand in the other reports only.
MEASURED = {"accuracy %": ("accuracy", 2), "NLL": ("nll", 3), "Brier": ("brier", 3), "ECE %": ("ece", 2)}
SCALED = {"NLL, T-scaled": ("scaled_nll", 3), "ECE %, T-scaled": ("scaled_ece", 2)}


def show(comparison: Comparison, seconds: float) -> Group:
    """Return the table, the facts and the gates as one printable."""
    # A row stays on one line, so that the output can be searched and pasted: nothing wraps, the terminal scrolls.
    table = Table(
        title=f"{comparison.title}\n{_groups(comparison)}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    measured = MEASURED | (SCALED if comparison.groups == 1 else {})
    for name in ("method", *measured, "passes", "params", "steps", "seconds"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for kind, style in KINDS.items():
        for row in comparison.rows:
            if row.kind == kind:
                table.add_row(*_cells(row, measured), style=style)
        table.add_section()
    facts = [Text(f"  {what}: {_number(value)} {unit}") for what, value, unit in comparison.facts]
    notes = [Text(f"  {row.method}: {row.note}") for row in comparison.rows if row.note]
    gates = [_gate(gate) for gate in comparison.gates]
    parts: list[RenderableType] = [table, Text(), Text("Also measured"), *facts, Text("Notes"), *notes]
    if gates:
        parts += [Text("Gates"), *gates]
    parts.append(Text(f"Total {seconds:.0f} s, seed {comparison.seed}, {torch.get_num_threads()} threads"))
    return Group(*parts)


def _groups(comparison: Comparison) -> str:
    if comparison.groups == 1:
        return "1 group, so without spread; T-scaled: after one temperature, fitted on validation images"
    return (
        f"{comparison.groups} groups of held-out teachers; mean ± standard deviation over groups; controls last"
        "\nNLL and ECE after temperature scaling: in the HTML report and the JSON file"
    )


def _cells(row: Row, measured: Mapping[str, tuple[str, int]]) -> list[str]:
    mean, std = row.summary.mean, row.summary.std
    found = [_spread(getattr(mean, name), getattr(std, name), digits) for name, digits in measured.values()]
    costs = [str(row.cost.passes), f"{row.cost.parameters:,}", str(row.cost.steps), f"{row.seconds:.3f}"]
    return [row.method, *found, *costs]


def _spread(mean: float, std: float, digits: int) -> str:
    """Return a mean with its deviation, which a single group does not have."""
    return f"{mean:.{digits}f}" if math.isnan(std) else f"{mean:.{digits}f}±{std:.{digits}f}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.4g}"


def _gate(gate: Gate) -> Text:
    sign = "<=" if gate.at_most else ">="
    unit = f"{gate.unit} " if gate.unit else ""
    verdict = ("holds", "green") if gate.holds else ("MISSED", "bold red")
    return Text.assemble(f"  {gate.text}: {gate.value:.2f} {sign} {gate.bound:g} {unit}", verdict)


def console() -> Console:
    """Return a console for results, wide enough that no row of a table is cut."""
    found = Console()
    return found if found.width >= WIDTH else Console(width=WIDTH)
