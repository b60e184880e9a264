"""How the work of an embedding call is cut into programs: tables that follow from the integers of the call alone.

They are built on the CPU and kept on the device, so that a second call uploads nothing and waits for nothing.

A *unit* is a row of one layer of all teachers: unit = copy * rows + row, copies counted group by group. Units are
counted through layer by layer, and cross tokens are the units of one more layer, of width -1, behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wfkernels.cached import kept
from wfkernels.embedding.reference import Shape
from wfkernels.layout import aligned, starts

# Columns of the table of layers: first unit, width, stride, first element of the rows buffer, of base and of columns,
# first position, first row of the weight among all, projection group, rows. Cross tokens have the width -1.
FIELDS = 10
# Members that one program of the first stage of a sum adds up.
PIECE = 64
# The sums of the weights' gradients are split until there are about so many programs, but into no shorter parts.
PROGRAMS = 1024
SHORTEST = 1024
KEPT = 64  # calls of different integers whose tables stay on the device


class Lengths(NamedTuple):
    """The integers of a call that its tables follow from."""

    rows: tuple[int, ...]  # [layers]
    widths: tuple[int, ...]
    projections: tuple[int, ...]
    positions: tuple[int, ...]
    teachers: tuple[int, ...]  # [groups]
    cross: int
    group_widths: tuple[int, ...]  # of every projection group
    # Rows of the tables of codes: position, teacher, layer, cross tokens.
    codes: tuple[int, int, int, int]

    @property
    def copies(self) -> int:
        return sum(self.teachers)

    @property
    def units(self) -> int:
        return self.copies * sum(self.rows)

    @property
    def cross_tokens(self) -> int:
        return self.cross * len(self.teachers) * len(self.rows)


def lengths(
    shape: Shape,
    weights: Sequence[Tensor],
    position: Tensor,
    teacher: Tensor | None,
    layer: Tensor | None,
    cross: Tensor | None,
) -> Lengths:
    """Return the integers of a call."""
    codes = (
        position.shape[0],
        0 if teacher is None else teacher.shape[0],
        0 if layer is None else layer.shape[0],
        0 if cross is None else cross.shape[0] * cross.shape[1],
    )
    return Lengths(
        tuple(shape.rows),
        tuple(shape.widths),
        tuple(shape.projections),
        tuple(shape.positions),
        tuple(shape.teachers),
        shape.cross,
        tuple(w.shape[0] for w in weights),
        codes,
    )


class Tokens(NamedTuple):
    """What a kernel that walks over tokens reads."""

    layers: Tensor  # [layers + 1, FIELDS] int64
    tokens: Tensor  # [4, units + cross tokens] int32: token, rows of its own code and of its teacher's or -1, neuron
    tiles: Tensor  # [slots, 4] int64: layer, first unit, last and one, row of the layer's code or -1


class Sums(NamedTuple):
    """Sums of rows of one buffer, each by a list of them."""

    members: Tensor  # int32, the rows of one sum after those of the other
    bounds: Tensor  # [sums + 1] int64
    targets: Tensor  # [sums] int32: the row that a sum is written to


class Weights(NamedTuple):
    """How the gradients of the weights are split."""

    blocks: Tensor  # [programs, 5] int64: width of the group, first column, row where its gradient begins, runs
    runs: Tensor  # [runs, 3] int64: layer, first unit, end
    rows: int  # of the buffer: the gradients of all groups, then partial sums of those that are split
    sums: Sums  # of the partial sums


class Inputs(NamedTuple):
    """How the gradients of the rows are split."""

    blocks: Tensor  # [tiles, 3] int64: layer, first neuron, first column
    sums: Sums  # of the tiles of a layer and column: shift, scale in turn
    places: Tensor  # [2 * column_numel] int64: where an entry of the gradients of shift and scale stands in the sums


@kept(KEPT)
def of_tokens(n: Lengths, block_m: int, device: torch.device) -> Tokens:
    tokens = _tokens(n)[[0, 1, 2, 4]].int()
    return Tokens(*(t.to(device) for t in (_layers(n), tokens, _tiles(n, block_m))))


def _layers(n: Lengths) -> Tensor:
    strides = [aligned(width) for width in n.widths]
    sizes = [rows * stride for rows, stride in zip(n.rows, strides, strict=True)]
    first_base, first_column = starts(sizes), starts(strides)
    first_weight = starts(n.group_widths)
    first_unit = starts([n.copies * rows for rows in n.rows])
    table = [
        [
            first_unit[i],
            n.widths[i],
            strides[i],
            n.copies * first_base[i],
            first_base[i],
            first_column[i],
            n.positions[i],
            first_weight[group],
            group,
            n.rows[i],
        ]
        for i, group in enumerate(n.projections)
    ]
    cross = [n.units, -1, *(FIELDS - 2) * [0]]
    return torch.tensor([*table, cross])


def _tokens(n: Lengths) -> Tensor:
    """Return for every unit and cross token its token, the rows of its codes and its neuron."""
    first_code = starts(n.codes)
    groups = len(n.teachers)
    group = torch.arange(groups).repeat_interleave(torch.tensor(n.teachers))  # of a copy
    within = torch.cat([torch.arange(count) for count in n.teachers])
    columns = []
    token = 0
    for i, rows in enumerate(n.rows):
        unit = torch.arange(n.copies * rows)
        copy, neuron = unit // max(1, rows), unit % max(1, rows)
        second = first_code[1] + 1 + within[copy] if n.codes[1] else torch.full_like(unit, -1)
        third = torch.full_like(unit, first_code[2] + i if n.codes[2] else -1)
        columns.append(
            torch.stack(
                [
                    token + (group[copy] + 1) * n.cross + unit,
                    first_code[0] + n.positions[i] + neuron,
                    second,
                    third,
                    neuron,
                ]
            )
        )
        token += n.copies * rows + groups * n.cross
    index = torch.arange(n.cross_tokens)
    sequence = index // max(1, n.cross)
    first_token = torch.tensor(starts([n.cross + count * rows for rows in n.rows for count in n.teachers]))
    columns.append(
        torch.stack(
            [
                first_token[sequence] + index % max(1, n.cross),
                first_code[3] + index,
                torch.full_like(index, first_code[1] if n.codes[1] else -1),
                first_code[2] + sequence // groups if n.codes[2] else torch.full_like(index, -1),
                torch.zeros_like(index),
            ]
        )
    )
    return torch.cat(columns, 1)


def _tiles(n: Lengths, block_m: int) -> Tensor:
    """Return the tiles of units, those of the widest rows first, and of every layer's cross tokens at the end."""
    order = sorted(range(len(n.rows)), key=lambda i: -n.widths[i])
    heads = n.cross * len(n.teachers)
    spans = [(i, 0, n.copies * n.rows[i], i) for i in order]
    spans += [(len(n.rows), i * heads, (i + 1) * heads, i) for i in range(len(n.rows))]
    first_code = starts(n.codes)[2]
    table = [
        (i, first, end, first_code + layer if n.codes[2] else -1)
        for i, begin, end, layer in spans
        for first in range(begin, end, block_m)
    ]
    return torch.tensor(table, dtype=torch.int64).view(-1, 4)


def _listed(rows: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return (members, bounds) of `count` sums; rows[i] is a member of the sum targets[i]."""
    order = targets.argsort(stable=True)
    bounds = torch.zeros(count + 1, dtype=torch.int64)
    bounds[1:] = torch.bincount(targets, minlength=count).cumsum(0)
    return rows[order], bounds


def _sums(rows: Tensor, targets: Tensor, count: int, device: torch.device) -> Sums:
    members, bounds = _listed(rows, targets, count)
    return Sums(*(t.to(device) for t in (members.int(), bounds, torch.arange(count, dtype=torch.int32))))


@kept(KEPT)
def of_codes(n: Lengths, block_m: int, device: torch.device) -> tuple[Sums, Sums]:
    """Return the two stages of the gradients of everything that is not a weight.

    The first adds up pieces of the gradients of tokens by code. Its results stand behind the three rows that every tile
    leaves: gradients of gamma, beta and bias. The second makes of both the rows [biases, gamma, beta, codes].
    """
    tiles = _tiles(n, block_m)
    slots = tiles.shape[0]
    tokens = _tokens(n)
    place = torch.arange(tokens.shape[1]).expand(3, -1)
    codes = tokens[1:4]
    members, bounds = _listed(place[codes >= 0], codes[codes >= 0], sum(n.codes))
    pieces = (bounds.diff() + (PIECE - 1)) // PIECE  # of every code
    first_piece = torch.cat([torch.zeros(1, dtype=torch.int64), pieces.cumsum(0)])
    owner = torch.arange(len(pieces)).repeat_interleave(pieces)
    begins = bounds[owner] + (torch.arange(len(owner)) - first_piece[owner]) * PIECE
    targets = 3 * slots + torch.arange(len(owner))
    first = Sums(members.int(), torch.cat([begins, bounds[-1:]]), targets.int())

    groups = len(n.group_widths)
    slot = torch.arange(slots)
    of_row = tiles[:, 0] < len(n.rows)
    group = torch.tensor([*n.projections, 0])[tiles[:, 0]]
    rows = [3 * slot, 3 * slot + 1, 3 * slot[of_row] + 2, targets]
    sums = [torch.full_like(slot, groups), torch.full_like(slot, groups + 1), group[of_row], groups + 2 + owner]
    second = _sums(torch.cat(rows), torch.cat(sums), groups + 2 + len(pieces), device)
    return Sums(*(t.to(device) for t in first)), second


@kept(KEPT)
def of_weights(n: Lengths, block_m: int, block_n: int, block_k: int, d: int, device: torch.device) -> Weights:
    """Cut the gradient of every weight into tiles, and the units it is a sum over into parts of about equal length."""
    units = [0] * len(n.group_widths)
    for i, group in enumerate(n.projections):
        units[group] += n.copies * n.rows[i]
    tiles = [-(-width // block_m) * -(-d // block_n) for width in n.group_widths]
    work = sum(a * b for a, b in zip(tiles, units, strict=True))
    longest = max(SHORTEST, -(-work // PROGRAMS))
    longest = -(-longest // block_k) * block_k
    first = starts(n.group_widths)
    total = first[-1]
    blocks: list[tuple[int, int, int, int, int, int]] = []
    runs: list[tuple[int, int, int]] = []
    rows, targets = [], []
    for group, width in enumerate(n.group_widths):
        parts = max(1, -(-units[group] // longest))
        for part in range(parts):
            begin = len(runs)
            runs += _runs(n, group, part * longest, (part + 1) * longest)
            target = first[group] if parts == 1 else total
            length = sum(end - start for _, start, end in runs[begin:])
            blocks += [(length, width, m, target, begin, len(runs)) for m in range(0, width, block_m)]
            if parts > 1:
                rows.append(total + torch.arange(width))
                targets.append(first[group] + torch.arange(width))
                total += width
    blocks.sort(key=lambda block: -block[0])
    table = torch.tensor([block[1:] for block in blocks], dtype=torch.int64).view(-1, 5)
    empty = torch.zeros(0, dtype=torch.int64)
    members, bounds = _listed(torch.cat([empty, *rows]), torch.cat([empty, *targets]), first[-1])
    split = bounds.diff() > 0
    sums = Sums(members.int(), torch.cat([bounds[:-1][split], bounds[-1:]]), split.nonzero()[:, 0].int())
    table_of_runs = torch.tensor(runs, dtype=torch.int64).view(-1, 3)
    return Weights(table.to(device), table_of_runs.to(device), total, Sums(*(t.to(device) for t in sums)))


def _runs(n: Lengths, group: int, begin: int, end: int) -> list[tuple[int, int, int]]:
    """Return (layer, first unit, end) of the units [begin, end) of a group, its layers counted through in turn."""
    found = []
    place = 0
    for i, own in enumerate(n.projections):
        if own != group:
            continue
        count = n.copies * n.rows[i]
        first, last = max(0, begin - place), min(count, end - place)
        if first < last:
            found.append((i, first, last))
        place += count
    return found


@kept(KEPT)
def of_inputs(n: Lengths, block_m: int, block_n: int, device: torch.device) -> Inputs:
    """Cut the rows of every layer into tiles, and list the tiles that share columns."""
    blocks, targets, places = [], [], []
    sums = 0
    for i, (rows, width) in enumerate(zip(n.rows, n.widths, strict=True)):
        stride = aligned(width)
        for first in range(0, rows, block_m):
            for k, column in enumerate(range(0, stride, block_n)):
                blocks.append((i, first, column))
                targets.append(sums + k)
        columns = torch.arange(stride)
        places.append((sums + columns // block_n) * 2 * block_n + columns % block_n)
        sums += -(-stride // block_n)
    tile, target = torch.arange(len(blocks)), torch.tensor(targets, dtype=torch.int64)
    kind = torch.arange(2)[:, None]
    listed = _sums((2 * tile + kind).flatten(), (2 * target + kind).flatten(), 2 * sums, device)
    of_shift = torch.cat([torch.zeros(0, dtype=torch.int64), *places])
    table = torch.tensor(blocks, dtype=torch.int64).view(-1, 3)
    return Inputs(table.to(device), listed, torch.cat([of_shift, of_shift + block_n]).to(device))
