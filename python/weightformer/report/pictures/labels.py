"""Where labels go, so that none covers another: a column of them to the right of the points they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.isotonic import isotonic_regression

MARK = 9.0  # points between the centres of marks that must not touch
LANES = 7  # marks with the same x that may stand side by side
SAME = 6.0  # points within which two marks count as having the same x
LEADER = 15.0  # points from a mark to its label
AIR = 10.0  # points from a label to the next mark


@dataclass(frozen=True)
class Mark:
    """A point with its bar from `low` to `high`, and how wide its label is; all in points."""

    x: float
    y: float
    low: float
    high: float
    width: float


@dataclass(frozen=True)
class Place:
    """Where one mark and the left end of its label go, in points."""

    x: float
    y: float
    label_x: float
    label_y: float


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return the places nearest to `wanted`, ascending, that keep `gap` from each other and stay in [low, high].

    Nearest in the sense of least squares. Where there is no room, the gap becomes smaller.
    """
    n = len(wanted)
    if not n:
        return []
    gap = min(gap, (high - low) / max(n - 1, 1))
    free = [y - i * gap for i, y in enumerate(wanted)]
    fitted = isotonic_regression(free, y_min=low, y_max=high - (n - 1) * gap)
    return [float(y) + i * gap for i, y in enumerate(fitted)]


def place(marks: Sequence[Mark], gap: float, low: float, high: float) -> list[Place]:
    """Return where marks and labels go, in the order given.

    Marks with the same x stand side by side where they or their bars would cover each other. Labels stand in a column
    behind them; where the column would meet the next marks, it goes behind those as well. gap: from one label to the
    next; they stay between `low` and `high`.
    """
    found: dict[int, Place] = {}
    for moved, label_x in _columns(marks):
        by_height = sorted(moved, key=lambda i: (marks[i].y, -moved[i]))
        heights = spread([marks[i].y for i in by_height], gap, low, high)
        for i, height in zip(by_height, heights, strict=True):
            found[i] = Place(moved[i], marks[i].y, label_x, height)
    return [found[i] for i in range(len(marks))]


def _columns(marks: Sequence[Mark]) -> list[tuple[dict[int, float], float]]:
    """Return, for every column of labels, its marks with the x they moved to, and the column's own x."""
    columns: list[tuple[dict[int, float], float]] = []
    for group in _same_x(marks):
        moved = _side_by_side(group, marks)
        label_x = max(moved.values()) + LEADER
        if columns:
            before, column = columns[-1]
            if column + max(marks[i].width for i in before) + AIR > min(moved.values()):
                columns[-1] = (before | moved, max(label_x, column))
                continue
        columns.append((moved, label_x))
    return columns


def _same_x(marks: Sequence[Mark]) -> list[list[int]]:
    groups: list[list[int]] = []
    for i in sorted(range(len(marks)), key=lambda i: marks[i].x):
        if groups and marks[i].x - marks[groups[-1][0]].x <= SAME:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _side_by_side(group: Sequence[int], marks: Sequence[Mark]) -> dict[int, float]:
    """Return an x for every mark of a group, from top to bottom in the first lane that is free, centred on the group.

    Where every lane is taken, bars may cover each other, but no mark another.
    """
    lanes: list[list[Mark]] = []
    chosen: dict[int, int] = {}

    def covered(lane: Sequence[Mark], mark: Mark) -> float:
        touched = any(abs(mark.y - other.y) < MARK for other in lane)
        overlaps = (min(mark.high, other.high) - max(mark.low, other.low) + 2 for other in lane)
        return (1e6 if touched else 0.0) + sum(max(overlap, 0.0) for overlap in overlaps)

    for i in sorted(group, key=lambda i: -marks[i].y):
        costs = [covered(lane, marks[i]) for lane in lanes]
        best = min(costs, default=1e6)
        if best > 0 and (len(lanes) < LANES or best >= 1e6):
            lanes.append([])
            costs.append(0.0)
        chosen[i] = costs.index(min(costs))
        lanes[chosen[i]].append(marks[i])
    middle = (len(lanes) - 1) / 2
    return {i: marks[i].x + MARK * (lane - middle) for i, lane in chosen.items()}
