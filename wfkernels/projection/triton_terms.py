"""What the projection kernels share: where a program works, products of a tile, rows of networks, places in students.

Columns of weights, rows of networks and gradients of products are padded to multiples of 8 and read with that padding:
a mask by the padded width leaves loads whole, one by an odd width would cut them into single elements.
"""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def aligned(width):
    """Return a width rounded up to a multiple of 8, in a form from which the compiler sees that."""
    return (width + 7) // 8 * 8


@triton.jit
def tile_of_program(tiles, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return (layer, group, rows [M], columns [N]), all int64."""
    program = tl.program_id(0)
    layer = tl.load(tiles.layer + program).to(tl.int64)
    group = tl.load(tiles.group + program).to(tl.int64)
    row = tl.load(tiles.row + program).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.load(tiles.column + program).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    return layer, group, row, column


@triton.jit
def delta_of_tile(
    read,  # [rows read, d]
    weight,  # [d, joined]
    bias,  # [joined]
    layers,
    groups,
    layer,
    group,
    row,
    column,
    d,
    joined,
    copies,
    count,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return the learned correction z @ weight + bias of a tile [M, N], float32.

    Where all teachers' tokens are read the sum over d goes on over the teachers: products of 16-bit numbers stay exact,
    which those of a mean that was rounded to 16 bits would not.
    """
    n = tl.load(layers.rows + layer)
    stride = aligned(tl.load(layers.width + layer))
    first_weight = tl.multiple_of(tl.load(layers.weight + layer), 8)
    first = count * tl.load(layers.row + layer) + group * n
    steps = tl.cdiv(d, BLOCK_K)
    walk = steps
    if FORM.reads_all:
        first = copies * tl.load(layers.row + layer) + tl.load(groups.first + group) * n
        walk = steps * tl.load(groups.teachers + group).to(tl.int32)
    row_valid = (row < n)[:, None]
    column_valid = (column < stride)[None, :]
    joined = aligned(joined)

    products = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(0, walk):
        teacher = step // steps
        k = (step - teacher * steps) * BLOCK_K + tl.arange(0, BLOCK_K)
        rows = (first + teacher * n + row)[:, None]
        z = tl.load(read + rows * d + k[None, :], mask=row_valid & (k < d)[None, :], other=0.0)  # [M, K]
        places = k.to(tl.int64)[:, None] * joined + (first_weight + column)[None, :]
        w = tl.load(weight + places, mask=(k < d)[:, None] & column_valid, other=0.0)  # [K, N]
        products = tl.dot(z, w, products, input_precision=FORM.precision)
    if FORM.reads_all:
        products *= tl.load(groups.share + group)
    return products + tl.load(bias + first_weight + column, mask=column < stride, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_column(buffer, entry, valid):
    """Return the entries [1, N] of a column buffer in float32, 0 outside."""
    return tl.load(buffer + entry, mask=valid, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_rows(buffer, place, row_valid, column, width):
    """Return a tile [M, N] of rows that begin at `place` [M], in float32, 0 outside."""
    whole = row_valid[:, None] & (column < aligned(width))[None, :]
    values = tl.load(buffer + place[:, None] + column[None, :], mask=whole, other=0.0).to(tl.float32)
    # What stands in the padding is nobody's business.
    return tl.where((column < width)[None, :], values, 0.0)


@triton.jit
def store_rows(buffer, place, values, row_valid, column, width):
    """Write a tile [M, N] of rows, and zeros in their padding."""
    whole = row_valid[:, None] & (column < aligned(width))[None, :]
    values = tl.where((column < width)[None, :], values, 0.0)
    tl.store(buffer + place[:, None] + column[None, :], values, mask=whole)


@triton.jit
def student_places(columns, entry, column_valid, group, row, numel):
    """Return where a tile's elements [M, N] stand in the students."""
    place = tl.load(columns.place + entry, mask=column_valid, other=0)
    step = tl.load(columns.step + entry, mask=column_valid, other=0)
    return (group * numel.to(tl.int64) + place)[None, :] + row[:, None] * step[None, :]


@triton.jit
def place_of_rows(layers, layer, copy, row, copies):
    """Return where rows [M] of one of `copies` networks begin in a buffer of rows."""
    n = tl.load(layers.rows + layer)
    stride = aligned(tl.load(layers.width + layer))
    return tl.multiple_of(tl.load(layers.base + layer), 8) * copies + (copy * n + row) * stride


@triton.jit
def load_gates(gates, layers, layer, copy, row, copies):
    """Return what rows [M] of one teacher count, as [M, 1]; 0 outside."""
    n = tl.load(layers.rows + layer)
    return tl.load(gates + copies * tl.load(layers.row + layer) + copy * n + row, mask=row < n, other=0.0)[:, None]


@triton.jit
def teachers_of_tile(
    rows, gates, common, layers, groups, layer, group, row, column, copies,
    FORM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Return what a tile [M, N] takes from the teachers: the anchor, the mean, or the gated sum of task vectors."""
    n = tl.load(layers.rows + layer)
    width = tl.load(layers.width + layer)
    first = tl.load(groups.first + group)
    share = tl.load(groups.share + group)
    teachers = tl.load(groups.teachers + group)
    if FORM.output == "anchor":
        teachers = teachers * 0 + 1
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for copy in range(first, first + teachers):
        x = load_rows(rows, place_of_rows(layers, layer, copy, row, copies), row < n, column, width)
        if FORM.output == "anchor":
            sums = x
        elif FORM.output == "gated":
            sums += load_gates(gates, layers, layer, copy, row, copies) * (x - common)
        else:
            sums += x * share
    return sums
