"""The integers of a projection call as tables on the device: what lies where, and how the work is cut into tiles.

They follow from the call's sizes alone, are built on the CPU and kept, so that a second call uploads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wfkernels.cached import kept
from wfkernels.layout import aligned, starts
from wfkernels.projection.reference import Shape

# Units that one program multiplies for the gradient of a weight; a second stage adds up what more of them give.
RUN = 2048
KEPT = 256
# The first element of the first part, the number of parts, the elements of one, and where their sum goes.
Segment = tuple[int, int, int, int]


class Sizes(NamedTuple):
    """The integers of a call, hashable. A *unit* is a row of one layer of one student: group * rows + row."""

    rows: tuple[int, ...]
    parameters: tuple[tuple[int, ...], ...]
    projections: tuple[int, ...]
    teachers: tuple[int, ...]
    breadths: tuple[int, ...]  # columns of every weight
    d: int

    @classmethod
    def of(cls, shape: Shape, weights: Sequence[Tensor]) -> Sizes:
        parameters = tuple(tuple(widths) for widths in shape.parameters)
        breadths = tuple(w.shape[1] for w in weights)
        return cls(
            tuple(shape.rows),
            parameters,
            tuple(shape.projections),
            tuple(shape.teachers),
            breadths,
            weights[0].shape[0],
        )

    @property
    def widths(self) -> list[int]:
        return [sum(p) for p in self.parameters]

    @property
    def strides(self) -> list[int]:
        return [aligned(width) for width in self.widths]

    @property
    def groups(self) -> int:
        return len(self.teachers)

    @property
    def copies(self) -> int:
        return sum(self.teachers)

    @property
    def students(self) -> list[int]:
        """Elements that each parameter takes in one student's buffer, padding included."""
        return [aligned(n * w) for n, widths in zip(self.rows, self.parameters, strict=True) for w in widths]

    @property
    def row_numel(self) -> int:
        """Elements of the rows of one network."""
        return sum(n * stride for n, stride in zip(self.rows, self.strides, strict=True))

    @property
    def joined(self) -> int:
        """Columns of all weights side by side, each padded."""
        return sum(aligned(r) for r in self.breadths)

    @property
    def order(self) -> list[int]:
        """The layers, those of one projection group side by side."""
        return sorted(range(len(self.rows)), key=self.projections.__getitem__)


class Layers(NamedTuple):
    """Per layer."""

    rows: Tensor
    width: Tensor
    row: Tensor  # rows of the layers before
    base: Tensor  # first element in the rows of one network
    column: Tensor  # first entry in a column buffer
    weight: Tensor  # first column in the joined weights
    group: Tensor  # of projection


class Groups(NamedTuple):
    """Per group of teachers."""

    first: Tensor  # copy
    teachers: Tensor
    share: Tensor  # 1 / teachers, float32


class Columns(NamedTuple):
    """Per entry of a column buffer: row j of a student's column stands at place + j * step."""

    place: Tensor
    step: Tensor


class Tiles(NamedTuple):
    """One program each, those with most to do first. `slot` counts them layer by layer, in the order of projections."""

    layer: Tensor
    group: Tensor
    row: Tensor  # number of the tile along the rows
    column: Tensor  # and along the columns
    slot: Tensor


class Slots(NamedTuple):
    """Per layer: slots of one column of tiles lie side by side, `parts` of them, column after column."""

    first: Tensor
    parts: Tensor
    columns: Tensor


class Units(NamedTuple):
    """Per unit, in the order of projections."""

    read: Tensor  # row of the tokens that are multiplied
    place: Tensor  # first element in the gradients of products


class Products(NamedTuple):
    """One program each, of the gradients of weights."""

    first: Tensor  # unit
    end: Tensor
    row: Tensor  # number of the tile along d
    column: Tensor  # and along the columns
    width: Tensor
    place: Tensor  # where [d, width] begins
    partial: Tensor  # is it one of several?


class Folds(NamedTuple):
    """One program each: columns of a projection group, with the layers that share it."""

    begin: Tensor  # in `order`
    end: Tensor
    column: Tensor  # number of the tile
    width: Tensor
    place: Tensor  # first element in the packed biases
    order: Tensor  # [layers], not per program


class Segments(NamedTuple):
    """One program each: out[place + j] = sum of sums[first + i * size + j] over parts i, for j in one block."""

    first: Tensor
    parts: Tensor
    size: Tensor
    place: Tensor
    block: Tensor


def _integers(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def _count(length: int) -> Tensor:
    return torch.arange(length, device="cpu")


def _upload(device: torch.device, fields: Sequence[Tensor], dtype: torch.dtype = torch.int64) -> list[Tensor]:
    """Return every field on the device; all begin at 16 bytes, so that no kernel is compiled for another alignment."""
    length = fields[0].numel()
    table = torch.zeros(len(fields), aligned(length), dtype=dtype, device="cpu")
    for row, field in zip(table, fields, strict=True):
        row[:length] = field
    # Tensors made in inference mode could not be used outside it.
    with torch.inference_mode(False):
        return [row[:length] for row in table.clone().to(device).unbind()]


@kept(KEPT)
def layers(sizes: Sizes, device: torch.device) -> Layers:
    columns = starts([aligned(r) for r in sizes.breadths])
    fields = (
        sizes.rows,
        sizes.widths,
        starts(sizes.rows)[:-1],
        starts([n * stride for n, stride in zip(sizes.rows, sizes.strides, strict=True)])[:-1],
        starts(sizes.strides)[:-1],
        [columns[g] for g in sizes.projections],
        sizes.projections,
    )
    return Layers(*_upload(device, [_integers(field) for field in fields]))


@kept(KEPT)
def groups(sizes: Sizes, device: torch.device) -> Groups:
    first, teachers = _upload(device, [_integers(starts(sizes.teachers)[:-1]), _integers(sizes.teachers)])
    shares = torch.tensor([1 / t for t in sizes.teachers], dtype=torch.float32, device="cpu")
    return Groups(first, teachers, *_upload(device, [shares], torch.float32))


@kept(KEPT)
def columns(sizes: Sizes, device: torch.device) -> Columns:
    places, steps = [_count(0)], [_count(0)]
    firsts = iter(starts(sizes.students))
    for widths, stride in zip(sizes.parameters, sizes.strides, strict=True):
        for width, first in zip(widths, firsts, strict=False):
            places.append(first + _count(width))
            steps.append(torch.full((width,), width, device="cpu"))
        unused = torch.zeros(stride - sum(widths), dtype=torch.int64, device="cpu")
        places.append(unused)
        steps.append(unused)
    return Columns(*_upload(device, [torch.cat(places), torch.cat(steps)]))


@kept(KEPT)
def padding(sizes: Sizes, device: torch.device) -> Tensor:
    """Return the elements of a student's buffer behind the parameters."""
    used = [n * w for n, widths in zip(sizes.rows, sizes.parameters, strict=True) for w in widths]
    ends = zip(starts(sizes.students)[1:], used, sizes.students, strict=True)
    places = [place for end, count, size in ends for place in range(end - size + count, end)]
    return _upload(device, [_integers(places)])[0]


@kept(KEPT)
def tiles(sizes: Sizes, kind: str, block_m: int, block_n: int, device: torch.device) -> tuple[Tiles, Slots, int]:
    """Return the tiles of one kind of work, with how many there are."""
    one = [1] * len(sizes.rows)
    # How many times a layer's rows are there, how wide they are, and what a tile costs by layer and by group.
    copies, widths, by_layer, by_group = {
        "students": (sizes.groups, sizes.widths, one, sizes.teachers),
        "tokens": (sizes.groups, [sizes.d] * len(one), sizes.widths, [1] * sizes.groups),
        "units": (sizes.groups, one, one, sizes.teachers),
        "copies": (sizes.copies, one, one, [1] * sizes.copies),
        "networks": (1, sizes.widths, one, [1]),
    }[kind]
    order = _integers(sizes.order)
    heights = -(-_integers(sizes.rows) // block_m)
    breadths = -(-_integers(widths) // block_n)
    parts = copies * heights
    counts = (parts * breadths)[order]
    ends = counts.cumsum(0)
    total = int(counts.sum())
    slot = _count(total)
    layer = order.repeat_interleave(counts)
    inside = slot - (ends - counts).repeat_interleave(counts)
    part = inside % parts[layer]
    group = part // heights[layer]
    cost = _integers(by_layer)[layer] * _integers(by_group)[group]
    ranked = cost.argsort(descending=True, stable=True)
    fields = (layer, group, part % heights[layer], inside // parts[layer], slot)
    first = torch.empty_like(order)
    first[order] = ends - counts
    found = Tiles(*_upload(device, [field[ranked] for field in fields], torch.int32))
    return found, Slots(*_upload(device, [first, parts, breadths])), total


@kept(KEPT)
def units(sizes: Sizes, device: torch.device) -> Units:
    first_row, base = starts(sizes.rows), starts([n * s for n, s in zip(sizes.rows, sizes.strides, strict=True)])
    read, place = [_count(0)], [_count(0)]
    for i in sizes.order:
        inside = _count(sizes.groups * sizes.rows[i])
        read.append(sizes.groups * first_row[i] + inside)
        place.append(sizes.groups * base[i] + inside * sizes.strides[i])
    return Units(*_upload(device, [torch.cat(read), torch.cat(place)]))


@kept(KEPT)
def products(
    sizes: Sizes, block_m: int, block_n: int, device: torch.device
) -> tuple[Products, int, int, tuple[Segment, ...]]:
    """Return the programs for the gradients of weights, how many, elements of partial sums and what adds those up."""
    found, segments, partials, before = [], [], 0, 0
    packed = starts([sizes.d * r for r in sizes.breadths])
    for g, r in enumerate(sizes.breadths):
        count = sizes.groups * sum(n for n, p in zip(sizes.rows, sizes.projections, strict=True) if p == g)
        runs = max(1, -(-count // RUN))
        size = sizes.d * r
        if runs > 1:
            segments.append((partials, runs, size, packed[g]))
        for run in range(runs):
            bounds = (before + count * run // runs, before + count * (run + 1) // runs)
            place = packed[g] if runs == 1 else partials + run * size
            found.append((*bounds, r, place, int(runs > 1)))
        partials += runs * size if runs > 1 else 0
        before += count
    table = _integers(found).view(-1, 5)
    heights, breadths = -(-sizes.d // block_m), -(-table[:, 2] // block_n)
    each = heights * breadths
    which = _count(len(found)).repeat_interleave(each)
    inside = _count(which.numel()) - (each.cumsum(0) - each)[which]
    ranked = (table[:, 1] - table[:, 0])[which].argsort(descending=True, stable=True)
    first, end, width, places, several = table[which[ranked]].unbind(1)
    fields = (first, end, inside[ranked] % heights, inside[ranked] // heights, width, places, several)
    return Products(*_upload(device, fields)), which.numel(), partials, tuple(segments)


@kept(KEPT)
def folds(sizes: Sizes, block_n: int, device: torch.device) -> tuple[Folds, int]:
    """Return the programs that add up sums by columns, and how many."""
    found, end = [], 0
    packed = starts(sizes.breadths)
    for g, r in enumerate(sizes.breadths):
        begin, end = end, end + sum(p == g for p in sizes.projections)
        found += [(begin, end, tile, r, packed[g]) for tile in range(-(-r // block_n))]
    fields = _upload(device, _integers(found).view(-1, 5).unbind(1))
    return Folds(*fields, *_upload(device, [_integers(sizes.order)])), len(found)


@kept(KEPT)
def segments(given: tuple[Segment, ...], block: int, device: torch.device) -> tuple[Segments, int]:
    """Return the programs that add up segments of (first, parts, size, place), and how many."""
    first, parts, size, place = _integers(given).view(-1, 4).unbind(1)
    blocks = -(-size // block)
    which = _count(len(given)).repeat_interleave(blocks)
    inside = _count(which.numel()) - (blocks.cumsum(0) - blocks)[which]
    fields = (first[which], parts[which], size[which], place[which], inside)
    return Segments(*_upload(device, fields)), which.numel()


@lru_cache(maxsize=KEPT)
def by_layer(sizes: Sizes, kind: str, block_m: int, block_n: int) -> tuple[Segment, ...]:
    """Return the segments that add up one number per tile by layers."""
    _, slots, _ = tiles(sizes, kind, block_m, block_n, torch.device("cpu"))
    counts = (slots.parts * slots.columns).tolist()
    return tuple((first, n, 1, i) for i, (first, n) in enumerate(zip(slots.first.tolist(), counts, strict=True)))


@lru_cache(maxsize=KEPT)
def by_projection(sizes: Sizes, kind: str, block_m: int, block_n: int, size: int) -> tuple[Segment, ...]:
    """Return the segments that add up `size` numbers per tile by projection groups."""
    _, slots, _ = tiles(sizes, kind, block_m, block_n, torch.device("cpu"))
    counts = (slots.parts * slots.columns).tolist()
    found, first = [], 0
    for g in range(len(sizes.breadths)):
        parts = sum(n for n, p in zip(counts, sizes.projections, strict=True) if p == g)
        found.append((first * size, parts, size, g * size))
        first += parts
    return tuple(found)
