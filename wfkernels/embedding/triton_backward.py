"""Embedding backward. The forward of a tile runs again; what it leaves is the gradient of every token before LayerNorm
and before the activation, from which products and sums make the rest."""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from wfkernels.embedding.triton_forward import tile_of_slot
from wfkernels.embedding.triton_terms import (
    FIELDS,
    activate_backward,
    as_factor,
    before_norm,
    load_entry,
    load_normalised,
    place_of_layer,
    product_of_tile,
)
from wfkernels.triton_statistics import inverse_deviation, merged_statistics


@triton.jit
def load_slopes(grad, scratch, line, center, inverse, tokens, place, there, column, d):
    """Return a tile [M, N] of the gradient of the tokens and of the normalised tokens, float32; 0 outside."""
    token = load_entry(tokens, 0, 0, place, there, 0)  # [M]
    inside = there[:, None] & (column < d)[None, :]
    grads = tl.load(grad + token[:, None] * d + column[None, :], mask=inside, other=0.0).to(tl.float32)
    values = tl.load(scratch + (line + column[None, :]))
    return grads, tl.where(inside, (values - center[:, None]) * inverse[:, None], 0.0)


@triton.jit(do_not_specialize=["slots", "units", "every"])
def _embedding_backward_kernel(
    grad,  # [tokens, d]
    rows,  # the rows buffer
    base,  # [row_numel], or None
    shift,  # [column_numel]
    scale,  # [column_numel]
    weights,  # [widths of all projection groups, d]
    biases,  # [projection groups, d]
    codes,  # [position + teacher + layer + cross, d]
    gamma,  # [d]
    grad_tokens,  # [units + cross tokens, d]: gradients before LayerNorm
    grad_sums,  # [units, d]: those before the activation; None where there is no activation
    partial,  # [3 * slots, d] float32: gradients of gamma, of beta and of the bias by a tile
    scratch,  # [programs, 2, M, columns] float32: sums before the activation, tokens before LayerNorm
    layers,  # [layers + 1, FIELDS]
    tiles,  # [slots, 4]: layer, first unit, last unit and one, code of the layer
    tokens,  # [4, units + cross tokens]: token, its own code and that of its teacher, neuron
    slots,
    units,
    every,  # units + cross tokens
    d,
    eps,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_N)  # [N]
    breadth = tl.cdiv(d, BLOCK_N) * BLOCK_N
    # Places in the program's own scratch fit 32 bits.
    scratch += tl.program_id(0).to(tl.int64) * 2 * BLOCK_M * breadth
    scratch_of_tokens = scratch + BLOCK_M * breadth
    line = tl.arange(0, BLOCK_M)[:, None] * breadth  # [M, 1]
    for slot in range(tl.program_id(0).to(tl.int64), slots, tl.num_programs(0)):
        number, unit, count, place, of_layer = tile_of_slot(tiles, slot, layers, BLOCK_M)
        there = unit < count
        for start in range(0, d, BLOCK_N):
            column = start + columns
            sums = product_of_tile(
                rows, base, shift, scale, weights, biases, layers, tokens, every, number, unit, place, count, column, d,
                FORM, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            tl.store(scratch + (line + column[None, :]), sums)
        tl.debug_barrier()  # other threads of the program wrote what is read now

        # A part of a tile's columns at a time: nothing is multiplied now, and four tiles are looked at.
        BLOCK_P: tl.constexpr = BLOCK_N // 4
        total = 0.0
        center = tl.zeros([BLOCK_M], tl.float32)
        squares = tl.zeros([BLOCK_M], tl.float32)
        for start in range(0, d, BLOCK_P):
            column = start + tl.arange(0, BLOCK_P)  # [P]
            sums = tl.load(scratch + (line + column[None, :]))  # [M, P]
            values = before_norm(sums, layers, tokens, every, number, codes, of_layer, place, there, column, d, FORM)
            total, center, squares = merged_statistics(total, center, squares, values, column < d)
            tl.store(scratch_of_tokens + (line + column[None, :]), values)
        inverse = inverse_deviation(total, squares, eps)  # [M]
        tl.debug_barrier()

        level = tl.zeros([BLOCK_M], tl.float32)
        along = tl.zeros([BLOCK_M], tl.float32)
        for start in range(0, d, BLOCK_P):
            column = start + tl.arange(0, BLOCK_P)  # [P]
            grads, normalised = load_slopes(
                grad, scratch_of_tokens, line, center, inverse, tokens, place, there, column, d
            )
            slopes = grads * tl.load(gamma + column, mask=column < d, other=0.0).to(tl.float32)[None, :]
            level += tl.sum(slopes, 1) / d
            along += tl.sum(slopes * normalised, 1) / d
            own = partial + 3 * slot * d + column  # [P]
            tl.store(own, tl.sum(grads * normalised, 0), mask=column < d)
            tl.store(own + d, tl.sum(grads, 0), mask=column < d)

        for start in range(0, d, BLOCK_P):
            column = start + tl.arange(0, BLOCK_P)  # [P]
            grads, normalised = load_slopes(
                grad, scratch_of_tokens, line, center, inverse, tokens, place, there, column, d
            )
            slopes = grads * tl.load(gamma + column, mask=column < d, other=0.0).to(tl.float32)[None, :]
            slopes = inverse[:, None] * (slopes - level[:, None] - normalised * along[:, None])
            inside = there[:, None] & (column < d)[None, :]
            places = place[:, None] * d + column[None, :]
            tl.store(grad_tokens + places, slopes, mask=inside)
            if FORM.activation != "none":
                sums = tl.load(scratch + (line + column[None, :]))  # [M, P]
                slopes = activate_backward(slopes, sums, FORM)
                tl.store(grad_sums + places, slopes, mask=inside & (place < units)[:, None])
            slopes = tl.where(inside, slopes, 0.0)
            tl.store(partial + (3 * slot + 2) * d + column, tl.sum(slopes, 0), mask=column < d)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["every"])
def _embedding_backward_weights_kernel(
    grad_sums,  # [units, d]
    rows,  # the rows buffer
    base,  # [row_numel], or None
    shift,  # [column_numel]
    scale,  # [column_numel]
    grad_weights,  # [weights and then partial sums of them, d] float32
    layers,  # [layers + 1, FIELDS]
    tokens,  # [4, units + cross tokens]
    blocks,  # [programs, 5]: width of the group, first column of it, row of grad_weights where it begins, runs
    runs,  # [runs, 3]: layer, first unit, end
    every,
    d,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    parts = tl.cdiv(d, BLOCK_N)
    blocks += (tl.program_id(0) // parts) * 5
    column = tl.program_id(0) % parts * BLOCK_N + tl.arange(0, BLOCK_N)  # [N] of tokens
    width = tl.load(blocks)
    depth = tl.multiple_of(tl.load(blocks + 1), 8) + tl.arange(0, BLOCK_M)  # [M] of rows
    target = tl.load(blocks + 2)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for run in range(tl.load(blocks + 3), tl.load(blocks + 4)):
        number = tl.load(runs + 3 * run)
        begin = tl.load(runs + 3 * run + 1)
        end = tl.load(runs + 3 * run + 2)
        first_unit = tl.load(layers + number * FIELDS)
        for first in range(begin, end, BLOCK_K):
            unit = first + tl.arange(0, BLOCK_K)  # [K]
            neuron = unit
            if base is not None:
                neuron = load_entry(tokens, 3, every, first_unit + unit, unit < end, 0)
            x = load_normalised(rows, base, shift, scale, layers, number, unit, neuron, end, depth, FORM)  # [K, M]
            inside = (unit < end)[:, None] & (column < d)[None, :]
            places = (first_unit + unit)[:, None] * d + column[None, :]
            grads = tl.load(grad_sums + places, mask=inside, other=0.0)  # [K, N]
            total = tl.dot(tl.trans(as_factor(x, FORM)), grads, total, input_precision=FORM.precision)
    inside = (depth < width)[:, None] & (column < d)[None, :]
    tl.store(grad_weights + (target + depth)[:, None] * d + column[None, :], total, mask=inside)


@triton.jit(do_not_specialize=["copies"])
def _embedding_backward_inputs_kernel(
    grad_sums,  # [units, d]
    rows,  # the rows buffer
    base,  # [row_numel], or None
    shift,  # [column_numel]
    scale,  # [column_numel]
    weights,  # [widths of all projection groups, d]
    grad_rows,  # the rows buffer
    grad_base,  # [row_numel], or None
    partial,  # [2 * tiles, N] float32: gradients of shift and scale by a tile
    layers,  # [layers + 1, FIELDS]
    blocks,  # [tiles, 3]: layer, first neuron, first column
    copies,
    d,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    blocks += tl.program_id(0) * 3
    number = tl.load(blocks)
    neuron = tl.load(blocks + 1) + tl.arange(0, BLOCK_M)  # [M]
    column = tl.multiple_of(tl.load(blocks + 2), 8) + tl.arange(0, BLOCK_N)  # [N]
    width, stride, first_row, first_base, first_column = place_of_layer(layers, number)
    first_unit = tl.load(layers + number * FIELDS)
    count = tl.load(layers + number * FIELDS + 9)
    weights += tl.load(layers + number * FIELDS + 7) * d
    divisor = tl.load(scale + first_column + column, mask=column < width, other=1.0).to(tl.float32)  # [N]
    inside = (neuron < count)[:, None] & (column < stride)[None, :]
    of_shift = tl.zeros([BLOCK_N], tl.float32)
    of_scale = tl.zeros([BLOCK_N], tl.float32)
    of_base = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # All copies of a neuron in one program: the gradient of their base is their sum.
    for copy in range(0, copies):
        unit = copy * count + neuron  # [M]
        slopes = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first in range(0, d, BLOCK_K):
            depth = first + tl.arange(0, BLOCK_K)  # [K]
            valid = (neuron < count)[:, None] & (depth < d)[None, :]
            grads = tl.load(grad_sums + (first_unit + unit)[:, None] * d + depth[None, :], mask=valid, other=0.0)
            valid = (column < width)[:, None] & (depth < d)[None, :]
            w = tl.load(weights + column[:, None] * d + depth[None, :], mask=valid, other=0.0)  # [N, K]
            slopes = tl.dot(grads, tl.trans(as_factor(w, FORM)), slopes, input_precision=FORM.precision)
        slopes = tl.div_rn(slopes, divisor[None, :])
        x = load_normalised(rows, base, shift, scale, layers, number, unit, neuron, (copy + 1) * count, column, FORM)
        of_shift -= tl.sum(slopes, 0)
        of_scale -= tl.sum(slopes * x, 0)
        of_base -= slopes
        tl.store(grad_rows + first_row + unit[:, None] * stride + column[None, :], slopes, mask=inside)
    if grad_base is not None:
        tl.store(grad_base + first_base + neuron[:, None] * stride + column[None, :], of_base, mask=inside)
    partial += tl.program_id(0).to(tl.int64) * 2 * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.store(partial, of_shift)
    tl.store(partial + BLOCK_N, of_scale)


@triton.jit
def _embedding_sums_kernel(
    source,  # [rows, columns]
    members,  # rows of source, one sum after the other
    bounds,  # [sums + 1]: where the members of a sum begin
    targets,  # [sums]: the row of out that a sum is
    out,  # [rows, columns] float32
    columns,
    WIDE: tl.constexpr,  # add up in float64
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    parts = tl.cdiv(columns, BLOCK_N)
    one = tl.program_id(0) // parts
    column = tl.program_id(0) % parts * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    total = tl.zeros([BLOCK_N], tl.float64 if WIDE else tl.float32)
    end = tl.load(bounds + one + 1)
    for first in range(tl.load(bounds + one), end, BLOCK_M):
        index = first + tl.arange(0, BLOCK_M)  # [M]
        row = tl.load(members + index, mask=index < end, other=0).to(tl.int64)
        inside = (index < end)[:, None] & (column < columns)[None, :]
        values = tl.load(source + row[:, None] * columns + column[None, :], mask=inside, other=0.0)  # [M, N]
        total += tl.sum(values.to(tl.float64 if WIDE else tl.float32), 0)
    target = tl.load(targets + one).to(tl.int64)
    tl.store(out + target * columns + column, total, mask=column < columns)
