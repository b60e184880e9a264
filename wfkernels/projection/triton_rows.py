"""Projection backward, what needs no product: gradients of networks' rows, of the blend and of gates.

rows:  a program owns a tile of a layer's rows and walks over groups and teachers, so that the gradients of base and
       prior, which all groups share, add up in registers
gates: a program owns rows of one teacher: the sums that `rows` left for parts of a row are added up, and multiplied by
       the tokens
"""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from wfkernels.projection.triton_terms import (
    load_column,
    load_gates,
    load_rows,
    place_of_rows,
    store_rows,
    student_places,
    teachers_of_tile,
    tile_of_program,
)


@triton.jit(do_not_specialize=["copies", "count", "numel"])
def _projection_backward_rows_kernel(
    grad,  # [count, numel]
    shift,  # [column_numel]
    scale,  # [column_numel]
    rows,  # [copies * row_numel]
    base,  # [row_numel]
    prior,  # [row_numel]
    blend,  # [layers]
    gates,  # [copies * rows]
    grad_rows,  # [copies * row_numel] to write
    grad_base,  # [row_numel] to write
    grad_prior,  # [row_numel] to write
    overs,  # [slots, copies, M] to write: sums over the tile's columns for the gradients of gates
    blends,  # [slots] to write
    tiles,
    layers,
    groups,
    columns,
    copies,
    count,
    numel,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    layer, _, row, column = tile_of_program(tiles, BLOCK_M, BLOCK_N)
    slot = tl.load(tiles.slot + tl.program_id(0)).to(tl.int64)
    width = tl.load(layers.width + layer)
    row_valid = row < tl.load(layers.rows + layer)
    column_valid = column < width
    valid = row_valid[:, None] & column_valid[None, :]
    entry = tl.load(layers.column + layer) + column
    place = place_of_rows(layers, layer, 0, row, 1)
    factor = load_column(scale, entry, column_valid)
    common = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if base is not None:
        common = load_rows(base, place, row_valid, column, width)
    b = 0.0
    if FORM.output == "prior":
        b = tl.load(blend + layer).to(tl.float32)
        learned = load_rows(prior, place, row_valid, column, width)
        origin = load_column(shift, entry, column_valid) + common

    whole = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)  # of grad
    given = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)  # of what the teachers' rows get of it
    slopes = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)  # of the blend
    for group in range(0, count):
        places = student_places(columns, entry, column_valid, group, row, numel)
        gradient = tl.load(grad + places, mask=valid, other=0.0).to(tl.float32)
        whole += gradient
        if FORM.output == "prior":
            mean = teachers_of_tile(
                rows, gates, common, layers, groups, layer, group, row, column, copies, FORM, BLOCK_M, BLOCK_N
            )
            slopes += gradient * (mean - origin) - gradient * factor * learned
        if FORM.output != "plain":
            first = tl.load(groups.first + group)
            share = tl.load(groups.share + group)
            for copy in range(first, first + tl.load(groups.teachers + group)):
                place_of_copy = place_of_rows(layers, layer, copy, row, copies)
                if FORM.output == "gated":
                    x = load_rows(rows, place_of_copy, row_valid, column, width)
                    over = tl.sum(gradient * (x - common), 1)
                    tl.store(overs + (slot * copies + copy) * BLOCK_M + tl.arange(0, BLOCK_M), over)
                if grad_rows is not None or grad_base is not None:
                    if FORM.output == "gated":
                        part = load_gates(gates, layers, layer, copy, row, copies) * gradient
                    elif FORM.output == "anchor":
                        part = gradient * (copy == first).to(tl.float32)
                    elif FORM.output == "prior":
                        part = share * (b * gradient)
                    else:
                        part = share * gradient
                    given += part
                    if grad_rows is not None:
                        store_rows(grad_rows, place_of_copy, part, row_valid, column, width)
    if grad_base is not None:
        if FORM.output == "gated":
            of_base = whole - given
        elif FORM.output == "prior":
            of_base = (1 - b) * whole
        else:
            of_base = whole
        store_rows(grad_base, place, of_base, row_valid, column, width)
    if FORM.output == "prior":
        store_rows(grad_prior, place, (1 - b) * (whole * factor), row_valid, column, width)
        tl.store(blends + slot, tl.sum(tl.sum(slopes, 0), 0))


@triton.jit(do_not_specialize=["copies", "count"])
def _projection_backward_gates_kernel(
    tokens,  # [copies * rows, d]
    overs,  # [slots of rows, copies, M]
    whole,  # [copies * rows] to write: gradients of gates
    sums,  # [slots, d + 1] to write: of gradient times token, and of the gradient
    tiles,
    layers,
    slots,  # of rows
    d,
    copies,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    layer, copy, row, _ = tile_of_program(tiles, BLOCK_M, 1)
    tile = tl.load(tiles.row + tl.program_id(0)).to(tl.int64)
    slot = tl.load(tiles.slot + tl.program_id(0)).to(tl.int64)
    n = tl.load(layers.rows + layer)
    token = copies * tl.load(layers.row + layer) + copy * n + row
    row_valid = row < n
    first = tl.load(slots.first + layer) + tile
    parts = tl.load(slots.parts + layer)
    over = tl.zeros([BLOCK_M], tl.float32)
    for part in range(0, tl.load(slots.columns + layer)):
        place = (first + part * parts) * copies + copy
        over += tl.load(overs + place * BLOCK_M + tl.arange(0, BLOCK_M))
    tl.store(whole + token, over, mask=row_valid)
    sums += slot * (d + 1)
    tl.store(sums + d, tl.sum(over, 0))
    for first_k in range(0, d, BLOCK_K):
        k = first_k + tl.arange(0, BLOCK_K)
        valid = row_valid[:, None] & (k < d)[None, :]
        z = tl.load(tokens + token[:, None] * d + k[None, :], mask=valid, other=0.0).to(tl.float32)
        tl.store(sums + k, tl.sum(over[:, None] * z, 0), mask=k < d)
