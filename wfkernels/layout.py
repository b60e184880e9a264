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
from math import prod

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

    Raises TypeError where a field has the wrong type, ValueError where parameters do not lie side by side, their shapes
    do not have the layer's rows, two have one name, or a tie leads nowhere.
    """

    layers: tuple[Layer, ...]
    tied: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _check_layers(self.layers)
        _check_names(self)

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
        if not isinstance(indices, (list, tuple, range)):
            raise TypeError(f"select: indices: expected a list or tuple of integers, got {type(indices).__name__}")
        for i in indices:
            if isinstance(i, bool) or not isinstance(i, int):
                raise TypeError(f"select: indices: expected integers, got {type(i).__name__}")
            if not 0 <= i < len(self.layers):
                raise ValueError(f"select: indices: expected some from 0 to {len(self.layers) - 1}, got {i}")
        return RowLayout(tuple(self.layers[i] for i in indices))

    def row_blocks(self, rows: Tensor, copies: int) -> list[Tensor]:
        """Return each layer's block [copies * n_l, r_l] of a rows buffer [copies * row_numel], as views."""
        if not _is_count(copies):
            raise TypeError(f"row_blocks: copies: expected int, got {type(copies).__name__}")
        _check_buffer("row_blocks", "rows", rows, copies * self.row_numel)
        return row_blocks(rows, self.rows, self.widths, copies)

    def column_blocks(self, columns: Tensor) -> list[Tensor]:
        """Return each layer's slice [r_l] of a column buffer [column_numel], as views."""
        _check_buffer("column_blocks", "columns", columns, self.column_numel)
        return column_blocks(columns, self.widths)

    def tokens(self, teachers: Sequence[int], cross: int = 0) -> TokenLayout:
        """Return the ragged token batch of groups with teachers[g] teachers each and `cross` tokens per layer."""
        _check_tokens("tokens", teachers, cross)
        return TokenLayout(self, tuple(teachers), cross)


@dataclass(frozen=True)
class TokenLayout:
    """The ragged batch in which a layout's rows become tokens.

    Sequence l * groups + g holds layer l of group g: `cross` tokens, then teacher 0's rows, teacher 1's rows, ...
    """

    layout: RowLayout
    teachers: tuple[int, ...]
    cross: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.layout, RowLayout):
            raise TypeError(f"TokenLayout: layout: expected a RowLayout, got {type(self.layout).__name__}")
        if not isinstance(self.teachers, tuple):
            raise TypeError(f"TokenLayout: teachers: expected a tuple, got {type(self.teachers).__name__}")
        _check_tokens("TokenLayout", self.teachers, self.cross)

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


def _is_count(value: object) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _check_tokens(op: str, teachers: Sequence[int], cross: int) -> None:
    if not isinstance(teachers, (list, tuple)) or not all(map(_is_count, teachers)):
        got = [type(t).__name__ for t in teachers] if isinstance(teachers, (list, tuple)) else type(teachers).__name__
        raise TypeError(f"{op}: teachers: expected a list or tuple of integers, got {got}")
    if not teachers or min(teachers) < 1:
        raise ValueError(f"{op}: teachers: expected at least one teacher in every group, got {list(teachers)}")
    if not _is_count(cross):
        raise TypeError(f"{op}: cross: expected int, got {type(cross).__name__}")
    if cross < 0:
        raise ValueError(f"{op}: cross: expected zero or more tokens per layer, got {cross}")


def _check_buffer(op: str, name: str, buffer: Tensor, numel: int) -> None:
    if not isinstance(buffer, Tensor):
        raise TypeError(f"{op}: {name}: expected a torch.Tensor, got {type(buffer).__name__}")
    if buffer.is_nested or buffer.layout != torch.strided:
        raise TypeError(
            f"{op}: {name}: expected a dense tensor, got {'a nested one' if buffer.is_nested else buffer.layout}"
        )
    if buffer.ndim != 1 or buffer.shape[0] != numel:
        raise ValueError(f"{op}: {name}: expected shape [{numel}] for this layout, got {list(buffer.shape)}")


def _check_layers(layers: tuple[Layer, ...]) -> None:
    _instances("layers", layers, Layer)
    for i, layer in enumerate(layers):
        where = f"layers[{i}]"
        _text(f"{where}.name", layer.name)
        _text(f"{where}.kind", layer.kind)
        _size(f"{where}.rows", layer.rows)
        _instances(f"{where}.parameters", layer.parameters, Parameter)
        if not layer.parameters:
            raise ValueError(f"RowLayout: {where}.parameters: expected at least one parameter, got none")
        end = 0
        for k, parameter in enumerate(layer.parameters):
            _check_parameter(f"{where}.parameters[{k}]", parameter, layer.rows, end)
            end += parameter.width


def _check_parameter(where: str, parameter: Parameter, rows: int, start: int) -> None:
    """Raise unless a parameter has `rows` rows of its width and begins at column `start`."""
    _text(f"{where}.name", parameter.name)
    if not isinstance(parameter.shape, tuple):
        raise TypeError(f"RowLayout: {where}.shape: expected a tuple, got {type(parameter.shape).__name__}")
    for size in parameter.shape:
        _size(f"{where}.shape", size)
    _size(f"{where}.start", parameter.start)
    _size(f"{where}.width", parameter.width)
    if prod(parameter.shape) != rows * parameter.width:
        raise ValueError(
            f"RowLayout: {where}.shape: expected {rows} rows of {parameter.width} columns, got {list(parameter.shape)}"
        )
    if parameter.start != start:
        raise ValueError(
            f"RowLayout: {where}.start: expected {start}, where the columns before it end, got {parameter.start}"
        )


def _check_names(layout: RowLayout) -> None:
    seen: set[str] = set()
    for parameter in layout.parameters:
        if parameter.name in seen:
            raise ValueError(f"RowLayout: layers: expected every parameter once, got {parameter.name!r} twice")
        seen.add(parameter.name)
    holders = frozenset(seen)
    _instances("tied", layout.tied, tuple)
    for i, pair in enumerate(layout.tied):
        if len(pair) != 2:
            raise ValueError(
                f"RowLayout: tied[{i}]: expected (name, name that holds the data), got {len(pair)} entries"
            )
    for name, holder in layout.tied:
        _text("tied", name)
        _text("tied", holder)
        if holder not in holders:
            raise ValueError(f"RowLayout: tied: expected {name!r} to name a parameter of the layers, got {holder!r}")
        if name in seen:
            raise ValueError(f"RowLayout: tied: expected a name of its own, got {name!r}, which stands for another one")
        seen.add(name)


def _instances(where: str, values: object, kind: type) -> None:
    if not isinstance(values, tuple):
        raise TypeError(f"RowLayout: {where}: expected a tuple of {kind.__name__}, got {type(values).__name__}")
    for i, value in enumerate(values):
        if not isinstance(value, kind):
            raise TypeError(f"RowLayout: {where}[{i}]: expected a {kind.__name__}, got {type(value).__name__}")


def _text(where: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"RowLayout: {where}: expected str, got {type(value).__name__}")


def _size(where: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"RowLayout: {where}: expected int, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"RowLayout: {where}: expected zero or more, got {value}")
