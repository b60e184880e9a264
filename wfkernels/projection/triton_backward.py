"""Projection backward, the products: three kernels, each of which owns what it writes.

delta:   a program owns a tile of a student's layer: it computes z @ weight + bias again, writes the gradient of that
         product row by row, as the other two read it, and leaves the sums over its rows by columns
tokens:  a program owns a tile of tokens and walks over the columns: dz = ddelta @ weight^T
weights: a program owns a tile of a weight and walks over the units of its layers: dweight = z^T @ ddelta
"""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from wfkernels.projection.triton_terms import (
    aligned,
    delta_of_tile,
    load_column,
    load_rows,
    place_of_rows,
    store_rows,
    student_places,
    tile_of_program,
)


@triton.jit(do_not_specialize=["joined", "copies", "count", "numel"])
def _projection_backward_delta_kernel(
    grad,  # [count, numel]
    read,  # [rows read, d]
    weight,  # [d, joined]
    bias,  # [joined]
    strength,  # [layers]
    scale,  # [column_numel]
    prior,  # [row_numel]
    power,  # [1]: by which gradients of products are divided, so that they fit 16 bits
    deltas,  # [count * row_numel] to write: the gradients of products, unit by unit
    sums,  # [slots, 2 or 3, N] to write: of grad * delta, of grad, of grad * prior
    strengths,  # [slots] to write
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
    slot = tl.load(tiles.slot + tl.program_id(0)).to(tl.int64)
    delta = delta_of_tile(
        read, weight, bias, layers, groups, layer, group, row, column, d, joined, copies, count,
        FORM, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    width = tl.load(layers.width + layer)
    row_valid = row < tl.load(layers.rows + layer)
    column_valid = column < width
    entry = tl.load(layers.column + layer) + column
    places = student_places(columns, entry, column_valid, group, row, numel)
    valid = row_valid[:, None] & column_valid[None, :]
    gradient = tl.load(grad + places, mask=valid, other=0.0).to(tl.float32)  # [M, N]
    factor = load_column(scale, entry, column_valid)
    scaled = gradient * factor * tl.load(strength + layer).to(tl.float32)
    if power is not None:
        scaled = scaled / tl.load(power)
    store_rows(deltas, place_of_rows(layers, layer, group, row, count), scaled, row_valid, column, width)

    along = gradient * delta
    kinds: tl.constexpr = 3 if FORM.output == "prior" else 2
    sums += slot * kinds * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.store(sums, tl.sum(along, 0))
    tl.store(sums + BLOCK_N, tl.sum(gradient, 0))
    if FORM.output == "prior":
        learned = load_rows(prior, place_of_rows(layers, layer, 0, row, 1), row_valid, column, width)
        tl.store(sums + 2 * BLOCK_N, tl.sum(gradient * learned, 0))
    tl.store(strengths + slot, tl.sum(tl.sum(along * factor, 0), 0))


@triton.jit(do_not_specialize=["joined", "copies", "count"])
def _projection_backward_tokens_kernel(
    deltas,  # [count * row_numel]
    weight,  # [d, joined]
    power,  # [1]
    gate_weight,  # [projection groups, d]
    overs,  # [copies * rows]: gradients of gates
    grad_tokens,  # [rows read, d] to write
    tiles,
    layers,
    groups,
    d,
    joined,
    copies,
    count,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    layer, group, row, j = tile_of_program(tiles, BLOCK_M, BLOCK_N)  # j: [N] of d
    n = tl.load(layers.rows + layer)
    before = tl.load(layers.row + layer)
    stride = aligned(tl.load(layers.width + layer))
    first_weight = tl.multiple_of(tl.load(layers.weight + layer), 8)
    joined = aligned(joined)
    row_valid = row < n
    valid = row_valid[:, None] & (j < d)[None, :]
    place = place_of_rows(layers, layer, group, row, count)[:, None]  # [M, 1]

    products = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, stride, BLOCK_K):
        column = first + tl.arange(0, BLOCK_K)
        inside = (column < stride)[None, :]
        slopes = tl.load(deltas + place + column[None, :], mask=row_valid[:, None] & inside, other=0.0)  # [M, K]
        places = j[:, None] * joined + (first_weight + column)[None, :]
        w = tl.load(weight + places, mask=(j < d)[:, None] & inside, other=0.0)  # [N, K]
        products = tl.dot(slopes, tl.trans(w), products, input_precision=FORM.precision)
    if power is not None:
        products *= tl.load(power)
    if FORM.read == "anchor":
        tl.store(grad_tokens + (count * before + group * n + row)[:, None] * d + j[None, :], products, mask=valid)
    else:
        products *= tl.load(groups.share + group)
        first_copy = tl.load(groups.first + group)
        for copy in range(first_copy, first_copy + tl.load(groups.teachers + group)):
            token = copies * before + copy * n + row
            value = products
            if FORM.output == "gated":
                w = tl.load(gate_weight + tl.load(layers.group + layer) * d + j, mask=j < d, other=0.0).to(tl.float32)
                value += tl.load(overs + token, mask=row_valid, other=0.0)[:, None] * w[None, :]
            tl.store(grad_tokens + token[:, None] * d + j[None, :], value, mask=valid)


@triton.jit
def _projection_backward_weights_kernel(
    read,  # [count * rows, d]: the tokens, or their mean over the teachers
    deltas,  # [count * row_numel]
    power,  # [1]
    packed,  # every weight's gradient [d, r], one after the other, to write
    partials,  # those of which there are several
    units,
    products,
    d,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    program = tl.program_id(0)
    first = tl.load(products.first + program)
    end = tl.load(products.end + program)
    width = tl.load(products.width + program)
    j = tl.load(products.row + program) * BLOCK_M + tl.arange(0, BLOCK_M)  # [M] of d
    column = tl.load(products.column + program) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    j_valid = (j < d)[None, :]
    column_valid = (column < aligned(width))[None, :]

    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(first, end, BLOCK_K):
        unit = start + tl.arange(0, BLOCK_K)
        unit_valid = unit < end
        token = tl.load(units.read + unit, mask=unit_valid, other=0)[:, None]  # [K, 1]
        place = tl.multiple_of(tl.load(units.place + unit, mask=unit_valid, other=0), 8)[:, None]
        z = tl.load(read + token * d + j[None, :], mask=unit_valid[:, None] & j_valid, other=0.0)  # [K, M]
        slopes = tl.load(deltas + place + column[None, :], mask=unit_valid[:, None] & column_valid, other=0.0)  # [K, N]
        sums = tl.dot(tl.trans(z), slopes, sums, input_precision=FORM.precision)
    if power is not None:
        sums *= tl.load(power)
    places = tl.load(products.place + program) + j[:, None] * width + column[None, :]
    valid = (j < d)[:, None] & (column < width)[None, :]
    if tl.load(products.partial + program) != 0:
        tl.store(partials + places, sums, mask=valid)
    else:
        tl.store(packed + places, sums, mask=valid)
