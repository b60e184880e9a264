"""What the modules share: checks of sizes and layouts, and which layers of a student use one product."""

from __future__ import annotations

from wfkernels import check
from wfkernels.layout import RowLayout


def row_layout(op: str, layout: RowLayout) -> None:
    """Raise unless `layout` is a RowLayout of at least one layer."""
    check.row_layout(op, layout)
    if not layout.layers:
        raise ValueError(f"{op}: layout: expected at least one layer, got none")


def at_least(op: str, least: int, **sizes: int) -> None:
    """Raise unless all sizes are ints of at least `least`."""
    for name, size in sizes.items():
        check.integer(op, name, size)
        if size < least:
            raise ValueError(f"{op}: {name}: expected at least {least}, got {size}")


def projection_groups(layout: RowLayout, share: bool) -> tuple[int, ...]:
    """Return the projection group of every layer: its own, or with `share` one per kind and width."""
    if not share:
        return tuple(range(len(layout.layers)))
    seen: dict[tuple[str, int], int] = {}
    return tuple(seen.setdefault((layer.kind, layer.width), len(seen)) for layer in layout.layers)


def group_widths(layout: RowLayout, groups: tuple[int, ...]) -> list[int]:
    """Return the width of the rows of every projection group."""
    return [layout.widths[groups.index(g)] for g in range(max(groups) + 1)]
