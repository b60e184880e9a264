"""Projection forward: a pass over the tokens where one is needed, then a program per tile of a student's layer."""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from wfkernels.projection.triton_terms import (
    delta_of_tile,
    load_column,
    load_rows,
    place_of_rows,
    student_places,
    teachers_of_tile,
    tile_of_program,
)


@triton.jit(do_not_specialize=["copies", "count"])
def _projection_read_kernel(
    tokens,  # [copies * rows, d]
    gate_weight,  # [projection groups, d]
    gate_bias,  # [projection groups]
    means,  # [count * rows, d] to write: the mean of every unit's tokens
    gates,  # [copies * rows] to write: what every row of every teacher counts
    tiles,
    layers,
    groups,
    d,
    copies,
    count,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    layer, group, row, _ = tile_of_program(tiles, BLOCK_M, 1)
    n = tl.load(layers.rows + layer)
    before = tl.load(layers.row + layer)
    first = tl.load(groups.first + group)
    teachers = tl.load(groups.teachers + group)
    share = tl.load(groups.share + group)
    row_valid = row < n
    place = copies * before + row
    if means is not None:
        for first_k in range(0, d, BLOCK_K):
            k = first_k + tl.arange(0, BLOCK_K)
            valid = row_valid[:, None] & (k < d)[None, :]
            sums = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
            for copy in range(first, first + teachers):
                z = tl.load(tokens + (place + copy * n)[:, None] * d + k[None, :], mask=valid, other=0.0)
                sums += z.to(tl.float32) * share
            tl.store(means + (count * before + group * n + row)[:, None] * d + k[None, :], sums, mask=valid)
    if gates is not None:
        projection = tl.load(layers.group + layer)
        level = tl.load(gate_bias + projection).to(tl.float32)
        for copy in range(first, first + teachers):
            sums = tl.zeros([BLOCK_M], tl.float32)
            for first_k in range(0, d, BLOCK_K):
                k = first_k + tl.arange(0, BLOCK_K)
                valid = row_valid[:, None] & (k < d)[None, :]
                z = tl.load(tokens + (place + copy * n)[:, None] * d + k[None, :], mask=valid, other=0.0)
                w = tl.load(gate_weight + projection * d + k, mask=k < d, other=0.0).to(tl.float32)
                sums += tl.sum(z.to(tl.float32) * w[None, :], 1)
            tl.store(gates + place + copy * n, share + (sums + level), mask=row_valid)


@triton.jit(do_not_specialize=["joined", "copies", "count", "numel"])
def _projection_forward_kernel(
    read,  # [rows read, d]
    weight,  # [d, joined]
    bias,  # [joined]
    strength,  # [layers]
    shift,  # [column_numel]
    scale,  # [column_numel]
    rows,  # [copies * row_numel]
    base,  # [row_numel]
    prior,  # [row_numel]
    blend,  # [layers]
    gates,  # [copies * rows]
    students,  # [count, numel] to write
    tiles,
    layers,
    groups,
    columns,
    d,
    joined,
    copies,
    count,
    numel,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    layer, group, row, column = tile_of_program(tiles, BLOCK_M, BLOCK_N)
    delta = delta_of_tile(
        read, weight, bias, layers, groups, layer, group, row, column, d, joined, copies, count,
        FORM, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    width = tl.load(layers.width + layer)
    row_valid = row < tl.load(layers.rows + layer)
    column_valid = column < width
    entry = tl.load(layers.column + layer) + column
    correction = tl.load(strength + layer).to(tl.float32) * delta
    place = place_of_rows(layers, layer, 0, row, 1)
    common = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if base is not None:
        common = load_rows(base, place, row_valid, column, width)
    if FORM.output == "plain":
        value = load_column(shift, entry, column_valid) + common
    else:
        value = teachers_of_tile(
            rows, gates, common, layers, groups, layer, group, row, column, copies, FORM, BLOCK_M, BLOCK_N
        )
    if FORM.output == "gated":
        value += common
    if FORM.output == "prior":
        origin = load_column(shift, entry, column_valid) + common
        b = tl.load(blend + layer).to(tl.float32)
        # From the nearer end, so that either end is met to the bit.
        value = tl.where(b < 0.5, origin + b * (value - origin), value - (value - origin) * (1 - b))
        correction += (1 - b) * load_rows(prior, place, row_valid, column, width)
    value += load_column(scale, entry, column_valid) * correction
    places = student_places(columns, entry, column_valid, group, row, numel)
    tl.store(students + places, value, mask=row_valid[:, None] & column_valid[None, :])
