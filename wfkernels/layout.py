"""RowLayout: which rows of which layer of which teacher are which token.

A *row* is dim 0 of a parameter with the rest flattened. A layer has `rows` rows of `width` columns; several parameters
may stand side by side in the columns. Three buffers follow from a layout:

* rows buffer, layer-major: layer l is a block [sum_g T_g * n_l, stride_l], ordered (group, teacher, row);
* column buffer: one entry per layer and column, layer l is a slice [stride_l] (statistics, shifts, scales);
* student buffer, parameter-major: every parameter contiguous, so that `unpack` returns plain views.

Strides and parameter offsets are multiples of ALIGNMENT elements, hence of 16 bytes in every float dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from wfkernels.cached import cached_property

ALIGNMENT = 8


def aligned(count: int) -> int:
    """Round `count` elements up to a multiple of ALIGNMENT."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def starts(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the exclusive prefix sums of `sizes`, with the total as the last entry."""
    return (0, *accumulate(sizes))


def row_blocks(rows: Tensor, counts: Sequence[int], widths: Sequence[int], copies: int) -> list[Tensor]:
    """Return each layer's block [copies * n_l, r_l] of a rows buffer [copies * row_numel], as views."""
    strides = [aligned(width) for width in widths]
    blocks = rows.split([copies * n * stride for n, stride in zip(counts, strides, strict=True)])
    return [
        block.view(copies * n, stride)[:, :width]
        for block, n, stride, width in zip(blocks, counts, strides, widths, strict=True)
    ]


def column_blocks(columns: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Return each layer's slice [r_l] of a column buffer [column_numel], as views."""
    blocks = columns.split([aligned(width) for width in widths])
    return [block[:width] for block, width in zip(blocks, widths, strict=True)]


@dataclass(frozen=True)
class Parameter:
    """A parameter's place in its layer's row: columns [start, start + width)."""

    name: str
    shape: tuple[int, ...]
    start: int
    width: int


@dataclass(frozen=True)
class Layer:
    """`rows` rows of one kind; `parameters` lie side by side and cover the columns without a gap."""

    name: str
    kind: str
    rows: int
    parameters: tuple[Parameter, ...]

    @cached_property
    def width(self) -> int:
        return sum(p.width for p in self.parameters)

    @cached_property
    def stride(self) -> int:
        """Elements from one row of the rows buffer to the next."""
        return aligned(self.width)


@dataclass(frozen=True)
class RowLayout:
    """The rows of one architecture. `tied` maps a parameter's further names to the name that holds the data.

    Hashable and comparable: two networks fit together exactly when their layouts are equal.
    """

    layers: tuple[Layer, ...]
    tied: tuple[tuple[str, str], ...] = ()

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter once, in the order in which `pack` takes tensors."""
        return tuple(p for layer in self.layers for p in layer.parameters)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements each parameter takes in the student buffer, padding included."""
        return tuple(aligned(layer.rows * p.width) for layer in self.layers for p in layer.parameters)

    @cached_property
    def numel(self) -> int:
        """Length of the student buffer."""
        return sum(self.sizes)

    @cached_property
    def rows(self) -> tuple[int, ...]:
        return tuple(layer.rows for layer in self.layers)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        return tuple(layer.width for layer in self.layers)

    @cached_property
    def row_numel(self) -> int:
        """Length of the rows buffer of one teacher."""
        return sum(layer.rows * layer.stride for layer in self.layers)

    @cached_property
    def column_numel(self) -> int:
        """Length of a column buffer."""
        return sum(layer.stride for layer in self.layers)

    def select(self, indices: Sequence[int]) -> RowLayout:
        """Return the layout of some of the layers only (ties dropped)."""
        return RowLayout(tuple(self.layers[i] for i in indices))

    def row_blocks(self, rows: Tensor, copies: int) -> list[Tensor]:
        """Return each layer's block [copies * n_l, r_l] of a rows buffer [copies * row_numel], as views."""
        return row_blocks(rows, self.rows, self.widths, copies)

    def column_blocks(self, columns: Tensor) -> list[Tensor]:
        """Return each layer's slice [r_l] of a column buffer [column_numel], as views."""
        return column_blocks(columns, self.widths)

    def tokens(self, teachers: Sequence[int], cross: int = 0) -> TokenLayout:
        """Return the ragged token batch of groups with teachers[g] teachers each and `cross` tokens per layer."""
        if not teachers or min(teachers) < 1:
            raise ValueError(f"tokens: teachers: expected at least one teacher in every group, got {list(teachers)}")
        if cross < 0:
            raise ValueError(f"tokens: cross: expected zero or more tokens per layer, got {cross}")
        return TokenLayout(self, tuple(teachers), cross)


@dataclass(frozen=True)
class TokenLayout:
    """The ragged batch in which a layout's rows become tokens.

    Sequence l * groups + g holds layer l of group g: `cross` tokens, then teacher 0's rows, teacher 1's rows, ...
    """

    layout: RowLayout
    teachers: tuple[int, ...]
    cross: int = 0

    @property
    def groups(self) -> int:
        return len(self.teachers)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        return tuple(self.cross + t * n for n in self.layout.rows for t in self.teachers)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First token of every sequence; the last entry is the number of tokens."""
        return starts(self.lengths)

    @property
    def total(self) -> int:
        return self.starts[-1]

    @property
    def max_length(self) -> int:
        return max(self.lengths)

    def offsets(self, device: torch.device | str = "cpu") -> Tensor:
        """Return `starts` as an int64 tensor [N+1]."""
        return torch.tensor(self.starts, device=device)
